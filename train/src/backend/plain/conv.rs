//! Convolutions: sums over the rows that a window covers, without copying patches.

use pulp::Arch;

use super::buffers::Buffers;
use super::multiply::{Dots, Place, Start, Sums, Weights, sum};
use crate::model::Extent;

/// A convolution for one shape of image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv<'a> {
    pub(super) arch: Arch,
    pub(super) buffers: &'a Buffers,
    pub(super) input: Extent,
    pub(super) output: Extent,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
    /// Length of a row of samples.
    pub(super) columns: usize,
}

/// Where an image lies in a larger one of zeros.
struct Frame {
    /// Of the larger image.
    height: usize,
    width: usize,
    /// Rows above and columns before the first pixel.
    before: usize,
    /// Rows and columns from one pixel to the next.
    step: usize,
}

impl Conv<'_> {
    /// The input with its padding, as [`Self::forward`] and [`Self::weight_gradient`] take it.
    pub(super) fn pad(self, input: Vec<f32>) -> Vec<f32> {
        if self.padding == 0 {
            return input;
        }
        let frame = Frame {
            height: self.input.height + 2 * self.padding,
            width: self.input.width + 2 * self.padding,
            before: self.padding,
            step: 1,
        };
        let padded = frame.put(self.buffers, &input, self.input, self.columns);
        self.buffers.give(input);
        padded
    }

    /// The outputs, from padded input.
    pub(super) fn forward(self, weight: &[f32], bias: Option<&[f32]>, padded: &[f32]) -> Vec<f32> {
        let mut outputs = self.buffers.any(self.output.values() * self.columns);
        let offsets = self.offsets(self.input.channels, self.padded());
        Sums {
            weights: Weights::Rows(weight, offsets.len()),
            rows: self.output.channels,
            start: bias.map_or(Start::Zero, Start::Bias),
            inputs: padded,
            offsets: &offsets,
            places: &self.places(self.output, self.padded().1, self.stride),
            stride: self.output.height * self.output.width * self.columns,
            columns: self.columns,
            outputs: &mut outputs,
        }
        .compute(self.arch);
        outputs
    }

    /// Adds the slopes of weights and, if there is one, of the bias to `gradient`, in this order.
    pub(super) fn weight_gradient(self, padded: &[f32], slopes: &[f32], gradient: &mut [f32]) {
        let offsets = self.offsets(self.input.channels, self.padded());
        let (weight, bias) = gradient.split_at_mut(self.output.channels * offsets.len());
        let stride = self.output.height * self.output.width * self.columns;
        for (slope, channel) in bias.iter_mut().zip(slopes.chunks_exact(stride)) {
            *slope += sum(channel);
        }
        Dots {
            slopes,
            stride,
            rows: self.output.channels,
            inputs: padded,
            offsets: &offsets,
            places: &self.places(self.output, self.padded().1, self.stride),
            columns: self.columns,
            gradient: weight,
        }
        .compute(self.arch);
    }

    /// The slopes of the input: the convolution of the outputs' slopes, as far apart as the windows were and framed
    /// with zeros, with the kernels turned round.
    pub(super) fn input_gradient(self, weight: &[f32], slopes: &[f32]) -> Vec<f32> {
        let frame = Frame {
            height: self.input.height + self.kernel - 1,
            width: self.input.width + self.kernel - 1,
            before: self.kernel - 1 - self.padding,
            step: self.stride,
        };
        let framed = frame.put(self.buffers, slopes, self.output, self.columns);
        let size = (frame.height, frame.width);
        let mut outputs = self.buffers.any(self.input.values() * self.columns);
        let offsets = self.offsets(self.output.channels, size);
        Sums {
            weights: Weights::Rows(&self.turned(weight), offsets.len()),
            rows: self.input.channels,
            start: Start::Zero,
            inputs: &framed,
            offsets: &offsets,
            places: &self.places(self.input, size.1, 1),
            stride: self.input.height * self.input.width * self.columns,
            columns: self.columns,
            outputs: &mut outputs,
        }
        .compute(self.arch);
        self.buffers.give(framed);
        outputs
    }

    /// Rows and columns of the padded input.
    fn padded(self) -> (usize, usize) {
        (
            self.input.height + 2 * self.padding,
            self.input.width + 2 * self.padding,
        )
    }

    /// Where the rows under a window lie, channel by channel, in an image of `height` by `width`.
    fn offsets(self, channels: usize, (height, width): (usize, usize)) -> Vec<usize> {
        let mut offsets = Vec::with_capacity(channels * self.kernel * self.kernel);
        for channel in 0..channels {
            for y in 0..self.kernel {
                for x in 0..self.kernel {
                    offsets.push(((channel * height + y) * width + x) * self.columns);
                }
            }
        }
        offsets
    }

    /// Where windows begin that make an image of this size from one of `width` columns.
    fn places(self, output: Extent, width: usize, stride: usize) -> Vec<Place> {
        let mut places = Vec::with_capacity(output.height * output.width);
        for y in 0..output.height {
            for x in 0..output.width {
                places.push(Place {
                    input: (y * width + x) * stride * self.columns,
                    output: (y * output.width + x) * self.columns,
                });
            }
        }
        places
    }

    /// The kernels turned by half a circle, by input channel and then by output channel.
    fn turned(self, weight: &[f32]) -> Vec<f32> {
        let (inputs, outputs) = (self.input.channels, self.output.channels);
        let size = self.kernel * self.kernel;
        let mut turned = Vec::with_capacity(weight.len());
        for input in 0..inputs {
            for output in 0..outputs {
                let kernel = &weight[(output * inputs + input) * size..][..size];
                turned.extend(kernel.iter().rev());
            }
        }
        turned
    }
}

impl Frame {
    fn put(&self, buffers: &Buffers, image: &[f32], extent: Extent, columns: usize) -> Vec<f32> {
        let mut framed = buffers.zeros(extent.channels * self.height * self.width * columns);
        let rows = image.chunks_exact(extent.width * columns);
        for (index, row) in rows.enumerate() {
            let (channel, y) = (index / extent.height, index % extent.height);
            let first = (channel * self.height + y * self.step + self.before) * self.width + self.before;
            if self.step == 1 {
                framed[first * columns..][..row.len()].copy_from_slice(row);
            } else {
                for (x, pixel) in row.chunks_exact(columns).enumerate() {
                    framed[(first + x * self.step) * columns..][..columns].copy_from_slice(pixel);
                }
            }
        }
        framed
    }
}
