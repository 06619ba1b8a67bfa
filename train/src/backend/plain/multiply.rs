//! The two loops that nearly all time goes into: sums of weighted rows, and sums of products of two rows.
//!
//! A row holds one number for each sample of a slice, one after the other, so that every vector instruction works
//! on as many samples as it has lanes, whatever the layer's shape. What a row stands for is the caller's: a matrix
//! product and a convolution differ only in which rows are added, which a list of offsets says, so that a
//! convolution copies no patches.

use std::array::from_fn;

use pulp::{Arch, Simd, WithSimd};

/// Rows are padded to a multiple of so many numbers: the lanes of the widest vectors there are.
pub(super) const LANES: usize = 16;

/// For each place and each row `r`: `output[r] = bias[r] + sum over k of weight(r, k) * input[k]`.
pub(super) struct Sums<'a> {
    pub(super) weights: Weights<'a>,
    /// Rows of the output.
    pub(super) rows: usize,
    /// What each row starts with.
    pub(super) start: Start<'a>,
    pub(super) inputs: &'a [f32],
    /// Where `input[k]` lies, from the place's first number on.
    pub(super) offsets: &'a [usize],
    pub(super) places: &'a [Place],
    /// Numbers from one row of the output to the next.
    pub(super) stride: usize,
    /// Length of a row; a multiple of [`LANES`].
    pub(super) columns: usize,
    pub(super) outputs: &'a mut [f32],
}

/// How a matrix of weights lies.
#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    /// The weights of one output row are neighbours; the next row's are so many numbers further.
    Rows(&'a [f32], usize),
    /// The weights of one input row are neighbours; the next row's are so many numbers further.
    Columns(&'a [f32], usize),
}

/// What a sum starts with.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Zero,
    /// A number for each row.
    Bias(&'a [f32]),
    /// What the output holds.
    Output,
}

/// Where a convolution's window, or a position of a text, begins in its input and in its output.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) input: usize,
    pub(super) output: usize,
}

/// For each row `r` and each `k`: `gradient[r][k] += sum over places and columns of slope[r] * input[k]`.
pub(super) struct Dots<'a> {
    pub(super) slopes: &'a [f32],
    /// Numbers from one row of the slopes to the next.
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) inputs: &'a [f32],
    pub(super) offsets: &'a [usize],
    pub(super) places: &'a [Place],
    pub(super) columns: usize,
    /// Rows of as many numbers as there are offsets.
    pub(super) gradient: &'a mut [f32],
}

impl Sums<'_> {
    pub(super) fn compute(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl Dots<'_> {
    pub(super) fn compute(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for index in 0..self.places.len() {
            let place = self.places[index];
            let mut row = 0;
            // As many rows at a time as the registers hold sums of.
            while row < self.rows {
                row += match self.rows - row {
                    6.. => self.rows_at::<S, 6>(simd, place, row),
                    4.. => self.rows_at::<S, 4>(simd, place, row),
                    2.. => self.rows_at::<S, 2>(simd, place, row),
                    _ => self.rows_at::<S, 1>(simd, place, row),
                };
            }
        }
    }
}

impl Sums<'_> {
    /// Computes `M` rows of a place; returns `M`.
    #[inline(always)]
    fn rows_at<S: Simd, const M: usize>(&mut self, simd: S, place: Place, row: usize) -> usize {
        let depth = self.offsets.len();
        match self.weights {
            Weights::Rows(weights, stride) => {
                let rows: [&[f32]; M] = from_fn(|m| &weights[(row + m) * stride..][..depth]);
                self.columns_at::<S, M>(simd, place, row, |k| from_fn(|m| rows[m][k]));
            }
            Weights::Columns(weights, stride) => {
                self.columns_at::<S, M>(simd, place, row, |k| {
                    let column = &weights[k * stride + row..][..M];
                    from_fn(|m| column[m])
                });
            }
        }
        M
    }

    #[inline(always)]
    fn columns_at<S: Simd, const M: usize>(
        &mut self,
        simd: S,
        place: Place,
        row: usize,
        weight: impl Fn(usize) -> [f32; M],
    ) {
        let mut column = 0;
        while column < self.columns {
            let vectors = (self.columns - column) / S::F32_LANES;
            // 6 rows of 4 vectors are 24 sums; with 16 registers there is room for 6 rows of 2.
            column += match vectors {
                4.. if S::REGISTER_COUNT >= 32 => self.tile::<S, M, 4>(simd, place, row, column, &weight),
                2.. => self.tile::<S, M, 2>(simd, place, row, column, &weight),
                _ => self.tile::<S, M, 1>(simd, place, row, column, &weight),
            };
        }
    }

    /// Computes `M` rows of `V` vectors; returns how many columns those are.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(
        &mut self,
        simd: S,
        place: Place,
        row: usize,
        column: usize,
        weight: &impl Fn(usize) -> [f32; M],
    ) -> usize {
        let width = V * S::F32_LANES;
        let output = |m: usize| (row + m) * self.stride + place.output + column;
        let mut sums: [[S::f32s; V]; M] = match self.start {
            Start::Zero => [[simd.splat_f32s(0.0); V]; M],
            Start::Bias(bias) => from_fn(|m| [simd.splat_f32s(bias[row + m]); V]),
            Start::Output => from_fn(|m| vectors::<S, V>(&self.outputs[output(m)..][..width])),
        };
        let first = place.input + column;
        for (k, offset) in self.offsets.iter().enumerate() {
            let input = vectors::<S, V>(&self.inputs[first + offset..][..width]);
            let weight = weight(k);
            for m in 0..M {
                let weight = simd.splat_f32s(weight[m]);
                for v in 0..V {
                    sums[m][v] = simd.mul_add_e_f32s(weight, input[v], sums[m][v]);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            let first = output(m);
            let (vectors, _) = S::as_mut_simd_f32s(&mut self.outputs[first..first + width]);
            vectors[..V].copy_from_slice(sums);
        }
        width
    }
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        /// Numbers of one row that are added up before the next rows have their turn: rows of eight such pieces,
        /// four slopes and four inputs, stay in the nearest cache of 32 KiB.
        const PIECE: usize = 1024;
        for places in self.places.chunks((PIECE / self.columns).max(1)) {
            let mut row = 0;
            while row < self.rows {
                row += match self.rows - row {
                    4.. => self.rows_at::<S, 4>(simd, places, row),
                    2.. => self.rows_at::<S, 2>(simd, places, row),
                    _ => self.rows_at::<S, 1>(simd, places, row),
                };
            }
        }
    }
}

impl Dots<'_> {
    #[inline(always)]
    fn rows_at<S: Simd, const M: usize>(&mut self, simd: S, places: &[Place], row: usize) -> usize {
        let mut k = 0;
        while k < self.offsets.len() {
            k += match self.offsets.len() - k {
                4.. if S::REGISTER_COUNT >= 32 => self.tile::<S, M, 4>(simd, places, row, k),
                2.. => self.tile::<S, M, 2>(simd, places, row, k),
                _ => self.tile::<S, M, 1>(simd, places, row, k),
            };
        }
        M
    }

    #[inline(always)]
    fn tile<S: Simd, const M: usize, const K: usize>(
        &mut self,
        simd: S,
        places: &[Place],
        row: usize,
        k: usize,
    ) -> usize {
        let columns = self.columns;
        let mut sums = [[simd.splat_f32s(0.0); K]; M];
        for place in places {
            let slopes: [&[S::f32s]; M] = from_fn(|m| {
                let first = (row + m) * self.stride + place.output;
                S::as_simd_f32s(&self.slopes[first..first + columns]).0
            });
            let inputs: [&[S::f32s]; K] = from_fn(|i| {
                let first = place.input + self.offsets[k + i];
                S::as_simd_f32s(&self.inputs[first..first + columns]).0
            });
            for vector in 0..columns / S::F32_LANES {
                let input: [S::f32s; K] = from_fn(|i| inputs[i][vector]);
                for m in 0..M {
                    let slope = slopes[m][vector];
                    for i in 0..K {
                        sums[m][i] = simd.mul_add_e_f32s(slope, input[i], sums[m][i]);
                    }
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            let gradient = &mut self.gradient[(row + m) * self.offsets.len() + k..][..K];
            for (slope, sum) in gradient.iter_mut().zip(sums) {
                *slope += simd.reduce_sum_f32s(*sum);
            }
        }
        K
    }
}

/// The sum of numbers, in as many parts as there are lanes.
#[inline(always)]
pub(super) fn sum(numbers: &[f32]) -> f32 {
    let (pieces, rest) = numbers.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for piece in pieces {
        sums.iter_mut()
            .zip(piece)
            .for_each(|(sum, number)| *sum += number);
    }
    sums.iter().chain(rest).sum()
}

/// The first `V` vectors of numbers that are at least so many.
#[inline(always)]
fn vectors<S: Simd, const V: usize>(numbers: &[f32]) -> [S::f32s; V] {
    let (vectors, _) = S::as_simd_f32s(numbers);
    from_fn(|v| vectors[v])
}
