//! Group norm and layer norm: the same sums over other sets of rows.

use super::buffers::Buffers;
use super::multiply::sum;
use crate::model::NORM_EPSILON;

/// Rows that are brought to mean 0 and variance 1 together, and how they are scaled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    /// Sets of rows.
    pub(super) sets: usize,
    /// Rows of a set.
    pub(super) rows: usize,
    /// Scales; those of a set's rows follow each other, and sets after the last scale begin with the first again.
    pub(super) scales: usize,
    /// Neighbouring rows with the same scale.
    pub(super) alike: usize,
    /// Length of a row of samples.
    pub(super) columns: usize,
}

/// What the gradient of a norm needs.
#[derive(Debug)]
pub(super) struct Normed {
    /// The input, normed but neither scaled nor shifted.
    pub(super) values: Vec<f32>,
    /// One over each set's deviation, sample by sample.
    pub(super) inverse: Vec<f32>,
}

impl Norm {
    /// Norms, then multiplies with `weight` and adds `bias`.
    #[inline(always)]
    pub(super) fn forward(
        self,
        buffers: &Buffers,
        weight: &[f32],
        bias: &[f32],
        mut input: Vec<f32>,
    ) -> (Vec<f32>, Normed) {
        let mut inverse = buffers.zeros(self.sets * self.columns);
        let mut outputs = buffers.any(input.len());
        let count = self.rows as f32;
        let mut mean = vec![0.0; self.columns];
        let set = self.rows * self.columns;
        let rows = input.chunks_exact_mut(set).zip(outputs.chunks_exact_mut(set));
        for (index, ((values, outputs), inverse)) in
            rows.zip(inverse.chunks_exact_mut(self.columns)).enumerate()
        {
            mean.fill(0.0);
            for row in values.chunks_exact(self.columns) {
                mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            mean.iter_mut().for_each(|sum| *sum /= count);
            for row in values.chunks_exact_mut(self.columns) {
                for ((value, mean), square) in row.iter_mut().zip(&mean).zip(&mut *inverse) {
                    *value -= mean;
                    *square += *value * *value;
                }
            }
            for square in &mut *inverse {
                *square = 1.0 / (*square / count + NORM_EPSILON).sqrt();
            }
            let both = values
                .chunks_exact_mut(self.columns)
                .zip(outputs.chunks_exact_mut(self.columns));
            for (row, (values, outputs)) in both.enumerate() {
                let scale = self.scale(index, row);
                let (weight, bias) = (weight[scale], bias[scale]);
                for ((value, output), inverse) in values.iter_mut().zip(outputs).zip(&*inverse) {
                    *value *= inverse;
                    *output = *value * weight + bias;
                }
            }
        }
        let values = input;
        (outputs, Normed { values, inverse })
    }

    /// Adds the slopes of weights and biases to `gradient`, which holds first those, then these; returns the
    /// slopes of the input.
    #[inline(always)]
    pub(super) fn backward(
        self,
        weight: &[f32],
        normed: &Normed,
        mut slopes: Vec<f32>,
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let (weight_gradient, bias_gradient) = gradient.split_at_mut(self.scales);
        let count = self.rows as f32;
        let (mut total, mut product) = (vec![0.0; self.columns], vec![0.0; self.columns]);
        let set = self.rows * self.columns;
        let sets = slopes
            .chunks_exact_mut(set)
            .zip(normed.values.chunks_exact(set))
            .zip(normed.inverse.chunks_exact(self.columns));
        for (index, ((slopes, values), inverse)) in sets.enumerate() {
            total.fill(0.0);
            product.fill(0.0);
            let rows = slopes
                .chunks_exact_mut(self.columns)
                .zip(values.chunks_exact(self.columns));
            for (row, (slopes, values)) in rows.enumerate() {
                let scale = self.scale(index, row);
                bias_gradient[scale] += sum(slopes);
                weight_gradient[scale] += slopes.iter().zip(values).map(|(a, b)| a * b).sum::<f32>();
                let weight = weight[scale];
                for (((slope, value), total), product) in
                    slopes.iter_mut().zip(values).zip(&mut total).zip(&mut product)
                {
                    *slope *= weight;
                    *total += *slope;
                    *product += *slope * value;
                }
            }
            // What moves the mean or the deviation of the set is taken back.
            let rows = slopes
                .chunks_exact_mut(self.columns)
                .zip(values.chunks_exact(self.columns));
            for (slopes, values) in rows {
                for ((((slope, value), total), product), inverse) in slopes
                    .iter_mut()
                    .zip(values)
                    .zip(&total)
                    .zip(&product)
                    .zip(inverse)
                {
                    *slope = inverse * (*slope - (total + value * product) / count);
                }
            }
        }
        slopes
    }

    /// Which scale a row of a set has.
    fn scale(self, set: usize, row: usize) -> usize {
        (set * self.rows + row) / self.alike % self.scales
    }
}
