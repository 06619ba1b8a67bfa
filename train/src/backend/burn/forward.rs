//! A model's layers as operations of burn, from a batch's features to its logits. Gradients are burn's own.

use burn::tensor::activation::{gelu_approximate, relu, softmax};
use burn::tensor::module::{avg_pool2d, conv2d, embedding, linear, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::model::{BYTES, Extent, InputKind, Layer, Model, NORM_EPSILON, shortcut};

/// A model's parameters as tensors, and where they are.
///
/// Each is a row of numbers as it lies in the flat vector, shaped where it is used, so that gradients come as rows
/// too.
pub(super) struct Forward<'a> {
    pub(super) parameters: &'a [Tensor<1>],
    pub(super) device: &'a Device,
}

impl Forward<'_> {
    /// The logits of a batch, a row for each answer.
    pub(super) fn logits(&self, model: &Model, features: &[f32]) -> Tensor<2> {
        let Extent {
            channels,
            height,
            width,
        } = model.extent();
        let samples = features.len() / model.extent().values();
        let mut parameters = self.parameters.iter();
        let mut layers = model.layers();
        let shape = [samples, channels, height, width];
        let input = match (model.input().kind, layers) {
            (InputKind::Bytes, [Layer::Embedding { positions, width }, rest @ ..]) => {
                layers = rest;
                self.embed(features, [samples, *positions, *width], &mut parameters)
            }
            _ => Tensor::from_data(TensorData::new(features.to_vec(), shape), self.device),
        };
        let logits = self.layers(layers, input, &mut parameters);
        let answers = samples * model.input().answers();
        logits.reshape([answers, model.classes()])
    }

    /// What layers make of `[samples, channels, height, width]`.
    fn layers<'p>(
        &self,
        layers: &[Layer],
        input: Tensor<4>,
        parameters: &mut impl Iterator<Item = &'p Tensor<1>>,
    ) -> Tensor<4> {
        layers.iter().fold(input, |input, layer| {
            // A model's parameters are those of its layers, in their order.
            let mut next = || {
                parameters
                    .next()
                    .cloned()
                    .unwrap_or_else(|| Tensor::empty([0], self.device))
            };
            match layer {
                Layer::Dense { inputs, outputs, .. } => {
                    let weight = next().reshape([*outputs, *inputs]);
                    dense(input, weight, next())
                }
                Layer::Conv2d {
                    inputs,
                    outputs,
                    kernel,
                    stride,
                    padding,
                    bias,
                    ..
                } => {
                    let weight = next().reshape([*outputs, *inputs, *kernel, *kernel]);
                    let bias = bias.then(next);
                    let options = ConvOptions::new([*stride; 2], [*padding; 2], [1; 2], 1);
                    conv2d(input, weight, bias, options)
                }
                Layer::MaxPool { window } => max_pool2d(input, MaxPoolOptions::new([*window; 2])),
                Layer::GlobalAverage => {
                    let [samples, channels, ..] = input.dims();
                    input.mean_dim(3).mean_dim(2).reshape([samples, 1, 1, channels])
                }
                Layer::GroupNorm { groups, channels, .. } => {
                    let all = input.dims();
                    let [samples, _, height, width] = all;
                    let group = channels / groups * height * width;
                    let rows = normed(input.reshape([samples, *groups, 1, group])).reshape(all);
                    let shape = [1, *channels, 1, 1];
                    rows * next().reshape(shape) + next().reshape(shape)
                }
                Layer::LayerNorm { width, .. } => {
                    let shape = [1, 1, 1, *width];
                    normed(input) * next().reshape(shape) + next().reshape(shape)
                }
                Layer::Residual { body } => {
                    let output = self.layers(body, input.clone(), parameters);
                    output.clone() + self.shortcut(input, output.dims())
                }
                Layer::Relu => relu(input),
                Layer::Gelu => gelu_approximate(input),
                Layer::Flatten => {
                    let [samples, channels, height, width] = input.dims();
                    input.reshape([samples, 1, 1, channels * height * width])
                }
                // The first of a text's layers, and computed from its bytes.
                Layer::Embedding { .. } => input,
                Layer::Attention { width, heads, .. } => {
                    let projection = next().reshape([3 * width, *width]);
                    let projected = dense(input, projection, next());
                    let means = self.attend(projected, *width, *heads);
                    let joining = next().reshape([*width, *width]);
                    dense(means, joining, next())
                }
            }
        })
    }

    fn embed<'p>(
        &self,
        features: &[f32],
        [samples, positions, width]: [usize; 3],
        parameters: &mut impl Iterator<Item = &'p Tensor<1>>,
    ) -> Tensor<4> {
        let mut next = || {
            parameters
                .next()
                .cloned()
                .unwrap_or_else(|| Tensor::empty([0], self.device))
        };
        let bytes: Vec<i32> = features.iter().map(|byte| *byte as i32).collect();
        let bytes = TensorData::new(bytes, [samples, positions]);
        let bytes = Tensor::<2, Int>::from_data(bytes, self.device);
        let rows = embedding(next().reshape([BYTES, width]), bytes);
        let places = next().reshape([1, positions, width]);
        (rows + places).reshape([samples, 1, positions, width])
    }

    /// A residual's input as large as its output.
    fn shortcut(&self, input: Tensor<4>, output: [usize; 4]) -> Tensor<4> {
        let [samples, channels, height, width] = input.dims();
        let extent = |channels, height, width| Extent {
            channels,
            height,
            width,
        };
        // A model whose shortcut does not fit is not made.
        let (stride, more) = shortcut(
            extent(channels, height, width),
            extent(output[1], output[2], output[3]),
        )
        .unwrap_or((1, 0));
        let taken = match stride {
            1 => input,
            _ => avg_pool2d(input, AvgPoolOptions::new([1; 2]).with_stride([stride; 2])),
        };
        match more {
            0 => taken,
            _ => {
                let zeros = Tensor::zeros([samples, more, output[2], output[3]], self.device);
                Tensor::cat(vec![zeros.clone(), taken, zeros], 1)
            }
        }
    }

    /// Causal attention, from queries, keys and values side by side.
    fn attend(&self, projected: Tensor<4>, width: usize, heads: usize) -> Tensor<4> {
        let [samples, _, positions, _] = projected.dims();
        let share = width / heads;
        let part = |part: usize| {
            projected
                .clone()
                .narrow(3, part * width, width)
                .reshape([samples, positions, heads, share])
                .swap_dims(1, 2)
        };
        let scores = part(0).matmul(part(1).transpose()) / (share as f32).sqrt();
        let later = (0..positions).flat_map(|row| {
            (0..positions).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 })
        });
        let later = TensorData::new(later.collect::<Vec<_>>(), [1, 1, positions, positions]);
        let shares = softmax(scores + Tensor::from_data(later, self.device), 3);
        shares
            .matmul(part(2))
            .swap_dims(1, 2)
            .reshape([samples, 1, positions, width])
    }
}

/// `W x + b` for every row.
fn dense(input: Tensor<4>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<4> {
    let [samples, channels, height, width] = input.dims();
    let [outputs, _] = weight.dims();
    linear(
        input.reshape([samples * channels * height, width]),
        weight.transpose(),
        Some(bias),
    )
    .reshape([samples, channels, height, outputs])
}

/// Brings every row to mean 0 and variance 1.
fn normed(rows: Tensor<4>) -> Tensor<4> {
    let centred = rows.clone() - rows.mean_dim(3);
    let variance = (centred.clone() * centred.clone()).mean_dim(3);
    centred / (variance + NORM_EPSILON).sqrt()
}
