//! Causal attention between the rows of a text, and the embedding that makes them.
//!
//! A row's queries, keys and values lie side by side, as the layer's one projection gives them. The projections
//! are dense layers and not computed here.

use super::activation::exp;
use super::buffers::Buffers;
use super::multiply::sum;

/// Attention for one shape of text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    pub(super) positions: usize,
    pub(super) width: usize,
    pub(super) heads: usize,
    /// Length of a row of samples.
    pub(super) columns: usize,
}

/// Which of the three that each row projects.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

impl Attention {
    /// The means, and the shares that each row gave the rows up to itself.
    #[inline(always)]
    pub(super) fn forward(self, buffers: &Buffers, projected: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let columns = self.columns;
        let mut outputs = buffers.zeros(self.positions * self.width * columns);
        let mut shares = buffers.zeros(self.heads * self.positions * self.positions * columns);
        let scale = self.scale();
        for (head, position) in self.pairs() {
            let query = self.of(projected, Part::Query, head, position);
            let shares = &mut shares[self.shares(head, position)];
            for (earlier, share) in shares.chunks_exact_mut(columns).enumerate().take(position + 1) {
                let key = self.of(projected, Part::Key, head, earlier);
                add_dots(share, query, key);
                share.iter_mut().for_each(|share| *share *= scale);
            }
            softmax(&mut shares[..(position + 1) * columns], columns);
            let first = position * self.width * columns + head * self.share();
            let output = &mut outputs[first..first + self.share()];
            for (earlier, share) in shares.chunks_exact(columns).enumerate().take(position + 1) {
                add_products(output, share, self.of(projected, Part::Value, head, earlier));
            }
        }
        (outputs, shares)
    }

    /// The slopes of what was projected.
    #[inline(always)]
    pub(super) fn backward(
        self,
        buffers: &Buffers,
        projected: &[f32],
        shares: &[f32],
        slopes: &[f32],
    ) -> Vec<f32> {
        let columns = self.columns;
        let mut gradient = buffers.zeros(projected.len());
        let mut share_slopes = vec![0.0; self.positions * columns];
        let mut mean = vec![0.0; columns];
        let scale = self.scale();
        for (head, position) in self.pairs() {
            let first = position * self.width * columns + head * self.share();
            let slope = &slopes[first..first + self.share()];
            let shares = &shares[self.shares(head, position)];
            let share_slopes = &mut share_slopes[..(position + 1) * columns];
            share_slopes.fill(0.0);
            mean.fill(0.0);
            for (earlier, (share, share_slope)) in shares
                .chunks_exact(columns)
                .zip(share_slopes.chunks_exact_mut(columns))
                .enumerate()
            {
                add_dots(share_slope, slope, self.of(projected, Part::Value, head, earlier));
                for ((mean, share), slope) in mean.iter_mut().zip(share).zip(share_slope) {
                    *mean += share * *slope;
                }
                add_products(
                    self.of_mut(&mut gradient, Part::Value, head, earlier),
                    share,
                    slope,
                );
            }
            for (earlier, (share, share_slope)) in shares
                .chunks_exact(columns)
                .zip(share_slopes.chunks_exact_mut(columns))
                .enumerate()
            {
                // Through the softmax.
                for ((slope, share), mean) in share_slope.iter_mut().zip(share).zip(&mean) {
                    *slope = share * (*slope - mean) * scale;
                }
                let key = self.of(projected, Part::Key, head, earlier);
                add_products(
                    self.of_mut(&mut gradient, Part::Query, head, position),
                    share_slope,
                    key,
                );
                let query = self.of(projected, Part::Query, head, position);
                add_products(
                    self.of_mut(&mut gradient, Part::Key, head, earlier),
                    share_slope,
                    query,
                );
            }
        }
        gradient
    }

    fn pairs(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.heads).flat_map(move |head| (0..self.positions).map(move |position| (head, position)))
    }

    /// Numbers of one head of one row.
    fn share(self) -> usize {
        self.width / self.heads * self.columns
    }

    fn scale(self) -> f32 {
        1.0 / ((self.width / self.heads) as f32).sqrt()
    }

    fn shares(self, head: usize, position: usize) -> std::ops::Range<usize> {
        let size = self.positions * self.columns;
        let first = (head * self.positions + position) * size;
        first..first + size
    }

    fn place(self, part: Part, head: usize, position: usize) -> std::ops::Range<usize> {
        let first = (position * 3 + part as usize) * self.width * self.columns + head * self.share();
        first..first + self.share()
    }

    fn of(self, projected: &[f32], part: Part, head: usize, position: usize) -> &[f32] {
        &projected[self.place(part, head, position)]
    }

    fn of_mut(self, gradient: &mut [f32], part: Part, head: usize, position: usize) -> &mut [f32] {
        &mut gradient[self.place(part, head, position)]
    }
}

/// Adds to `sums` the products of two lists of rows, sample by sample.
#[inline(always)]
fn add_dots(sums: &mut [f32], one: &[f32], other: &[f32]) {
    let columns = sums.len();
    for (one, other) in one.chunks_exact(columns).zip(other.chunks_exact(columns)) {
        for ((sum, one), other) in sums.iter_mut().zip(one).zip(other) {
            *sum += one * other;
        }
    }
}

/// Adds to each row of `sums` the row of `rows`, sample by sample times `factors`.
#[inline(always)]
fn add_products(sums: &mut [f32], factors: &[f32], rows: &[f32]) {
    let columns = factors.len();
    for (sums, row) in sums.chunks_exact_mut(columns).zip(rows.chunks_exact(columns)) {
        for ((sum, factor), value) in sums.iter_mut().zip(factors).zip(row) {
            *sum += factor * value;
        }
    }
}

/// Turns rows of scores into shares that add up to one, sample by sample.
#[inline(always)]
fn softmax(rows: &mut [f32], columns: usize) {
    let mut largest = vec![f32::NEG_INFINITY; columns];
    for row in rows.chunks_exact(columns) {
        for (largest, score) in largest.iter_mut().zip(row) {
            *largest = largest.max(*score);
        }
    }
    let mut sums = vec![0.0_f32; columns];
    for row in rows.chunks_exact_mut(columns) {
        for ((score, largest), sum) in row.iter_mut().zip(&largest).zip(&mut sums) {
            *score = exp(*score - largest);
            *sum += *score;
        }
    }
    for row in rows.chunks_exact_mut(columns) {
        row.iter_mut().zip(&sums).for_each(|(share, sum)| *share /= sum);
    }
}

/// A row for each byte of each sample: its own plus its position's.
pub(super) fn embed(
    bytes: &[f32],
    outputs: &mut [f32],
    (tokens, positions): (&[f32], &[f32]),
    width: usize,
    columns: usize,
) {
    for ((bytes, place), output) in bytes
        .chunks_exact(columns)
        .zip(positions.chunks_exact(width))
        .zip(outputs.chunks_exact_mut(width * columns))
    {
        for (column, byte) in bytes.iter().enumerate() {
            let token = &tokens[*byte as usize * width..][..width];
            for (index, (token, place)) in token.iter().zip(place).enumerate() {
                output[index * columns + column] = token + place;
            }
        }
    }
}

/// Adds the slopes of the tables of [`embed`] to `gradient`, which holds first the bytes', then the positions'.
pub(super) fn embed_gradient(
    bytes: &[f32],
    slopes: &[f32],
    gradient: &mut [f32],
    (width, positions): (usize, usize),
    columns: usize,
) {
    let (tokens, places) = gradient.split_at_mut(gradient.len() - positions * width);
    for ((bytes, place), slopes) in bytes
        .chunks_exact(columns)
        .zip(places.chunks_exact_mut(width))
        .zip(slopes.chunks_exact(width * columns))
    {
        for (index, (place, slopes)) in place.iter_mut().zip(slopes.chunks_exact(columns)).enumerate() {
            *place += sum(slopes);
            for (byte, slope) in bytes.iter().zip(slopes) {
                tokens[*byte as usize * width + index] += slope;
            }
        }
    }
}
