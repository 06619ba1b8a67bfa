//! Dense layers: a matrix of weights, applied to each row of a sample.

use pulp::Arch;

use super::buffers::Buffers;
use super::columns::transpose_part;
use super::multiply::{LANES, Place, Start, Sums, Weights, sum};

/// `outputs` numbers from `inputs` numbers, at each of `positions` rows of a sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dense<'a> {
    pub(super) arch: Arch,
    pub(super) buffers: &'a Buffers,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) positions: usize,
    /// Length of a row of samples, and how many of those are samples and not padding.
    pub(super) columns: usize,
    pub(super) samples: usize,
}

impl Dense<'_> {
    /// `W x + b`.
    pub(super) fn forward(self, weight: &[f32], bias: &[f32], input: &[f32]) -> Vec<f32> {
        let mut outputs = self.buffers.any(self.positions * self.outputs * self.columns);
        Sums {
            weights: Weights::Rows(weight, self.inputs),
            rows: self.outputs,
            start: Start::Bias(bias),
            inputs: input,
            offsets: &self.rows(self.inputs),
            places: &self.places(self.inputs, self.outputs),
            stride: self.columns,
            columns: self.columns,
            outputs: &mut outputs,
        }
        .compute(self.arch);
        outputs
    }

    /// Adds the slopes of weights and biases to `gradient`, which holds first those, then these.
    pub(super) fn weight_gradient(self, input: &[f32], slopes: &[f32], gradient: &mut [f32]) {
        let (weight, bias) = gradient.split_at_mut(self.inputs * self.outputs);
        for position in slopes.chunks_exact(self.outputs * self.columns) {
            for (slope, row) in bias.iter_mut().zip(position.chunks_exact(self.columns)) {
                *slope += sum(row);
            }
        }
        // A sample's numbers side by side: then the samples are what is added up. Rows of weights that are not
        // a multiple of the lanes are added up beside the gradient.
        let width = self.inputs.next_multiple_of(LANES);
        let mut beside = (width != self.inputs).then(|| self.buffers.zeros(width * self.outputs));
        let offsets: Vec<usize> = (0..self.samples).map(|sample| sample * width).collect();
        for (input, slopes) in input
            .chunks_exact(self.inputs * self.columns)
            .zip(slopes.chunks_exact(self.outputs * self.columns))
        {
            let turned = transpose_part(
                self.buffers,
                input,
                self.inputs,
                (self.columns, self.samples),
                width,
            );
            Sums {
                weights: Weights::Rows(slopes, self.columns),
                rows: self.outputs,
                start: Start::Output,
                inputs: &turned,
                offsets: &offsets,
                places: &[Place { input: 0, output: 0 }],
                stride: width,
                columns: width,
                outputs: beside.as_deref_mut().unwrap_or(weight),
            }
            .compute(self.arch);
            self.buffers.give(turned);
        }
        if let Some(beside) = beside {
            for (row, more) in weight
                .chunks_exact_mut(self.inputs)
                .zip(beside.chunks_exact(width))
            {
                row.iter_mut().zip(more).for_each(|(slope, more)| *slope += more);
            }
            self.buffers.give(beside);
        }
    }

    /// The slopes of the input.
    pub(super) fn input_gradient(self, weight: &[f32], slopes: &[f32]) -> Vec<f32> {
        let mut outputs = self.buffers.any(self.positions * self.inputs * self.columns);
        Sums {
            weights: Weights::Columns(weight, self.inputs),
            rows: self.inputs,
            start: Start::Zero,
            inputs: slopes,
            offsets: &self.rows(self.outputs),
            places: &self.places(self.outputs, self.inputs),
            stride: self.columns,
            columns: self.columns,
            outputs: &mut outputs,
        }
        .compute(self.arch);
        outputs
    }

    fn rows(self, count: usize) -> Vec<usize> {
        (0..count).map(|row| row * self.columns).collect()
    }

    fn places(self, inputs: usize, outputs: usize) -> Vec<Place> {
        (0..self.positions)
            .map(|position| Place {
                input: position * inputs * self.columns,
                output: position * outputs * self.columns,
            })
            .collect()
    }
}
