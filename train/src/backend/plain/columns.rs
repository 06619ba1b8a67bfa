//! Samples as columns: how a batch, sample after sample, becomes rows of one number for each sample, and back.

use super::buffers::Buffers;
use super::multiply::LANES;

/// How many columns rows for so many samples have.
pub(super) fn columns_for(samples: usize) -> usize {
    samples.next_multiple_of(LANES)
}

/// Turns `rows` rows of `from` numbers into columns: row `r` of the result holds the `r`th number of each, and
/// zeros up to `to` numbers.
pub(super) fn transpose(buffers: &Buffers, input: &[f32], rows: usize, from: usize, to: usize) -> Vec<f32> {
    transpose_part(buffers, input, rows, (from, from), to)
}

/// The same where each row holds `stride` numbers, of which the first `from` are taken.
pub(super) fn transpose_part(
    buffers: &Buffers,
    input: &[f32],
    rows: usize,
    (stride, from): (usize, usize),
    to: usize,
) -> Vec<f32> {
    /// Rows and columns turned at a time: both sides of such a square are in the nearest cache.
    const SQUARE: usize = 16;
    let mut output = buffers.zeros(from * to);
    for first in (0..rows).step_by(SQUARE) {
        let last = (first + SQUARE).min(rows);
        for left in (0..from).step_by(SQUARE) {
            let right = (left + SQUARE).min(from);
            for column in left..right {
                let target = &mut output[column * to + first..column * to + last];
                for (row, target) in (first..last).zip(target) {
                    *target = input[row * stride + column];
                }
            }
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_with_zeros_behind_them() {
        let input: Vec<f32> = (0..6).map(|value| value as f32).collect();
        let buffers = Buffers::default();
        let output = transpose(&buffers, &input, 2, 3, 4);
        assert_eq!(
            output,
            [0.0, 3.0, 0.0, 0.0, 1.0, 4.0, 0.0, 0.0, 2.0, 5.0, 0.0, 0.0]
        );
        assert_eq!(
            transpose_part(&buffers, &input, 2, (3, 2), 2),
            [0.0, 3.0, 1.0, 4.0]
        );
    }
}
