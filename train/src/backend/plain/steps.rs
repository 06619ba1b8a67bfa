//! Walks a model's layers, forward and backward, over one slice of a batch.

use std::ops::Range;

use pulp::Arch;

use super::activation::{gelu, gelu_gradient, relu, relu_gradient};
use super::attention::{Attention, embed, embed_gradient};
use super::buffers::Buffers;
use super::conv::Conv;
use super::dense::Dense;
use super::norm::{Norm, Normed};
use super::pool::{
    add_shortcut, add_shortcut_gradient, global_average, global_average_gradient, max_pool, max_pool_gradient,
};
use crate::model::{Extent, Layer};

/// A layer at its place in a model.
#[derive(Debug)]
pub(super) struct Step {
    layer: Layer,
    /// Its parameters in the flat vector.
    parameters: Range<usize>,
    input: Extent,
    output: Extent,
    /// The layers within it, if it has such.
    body: Vec<Self>,
}

/// What all layers of one pass over a slice share.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) arch: Arch,
    pub(super) buffers: &'a Buffers,
    pub(super) flat: &'a [f32],
    pub(super) samples: usize,
    /// Length of a row of samples, with its padding.
    pub(super) columns: usize,
}

/// What a layer's gradient needs of the forward pass.
#[derive(Debug)]
pub(super) enum Kept {
    /// Nothing but the shapes.
    Nothing,
    /// Its input; that of a convolution with padding.
    Input(Vec<f32>),
    /// Where a ReLU's input was positive.
    Positive(Vec<bool>),
    Normed(Normed),
    Attention {
        input: Vec<f32>,
        projected: Vec<f32>,
        shares: Vec<f32>,
        means: Vec<f32>,
    },
    /// What the layers within it need.
    Body(Vec<Self>),
}

impl Step {
    /// Layers in their places, from `input` and the parameter `first` on; layers that do not fit end the list.
    pub(super) fn all(layers: &[Layer], input: Extent, first: &mut usize) -> Vec<Self> {
        let mut input = input;
        layers
            .iter()
            .map_while(|layer| {
                let start = *first;
                let body = match layer {
                    Layer::Residual { body } => Self::all(body, input, first),
                    _ => {
                        *first += layer.parameters();
                        vec![]
                    }
                };
                let step = Self {
                    layer: layer.clone(),
                    parameters: start..*first,
                    input,
                    output: layer.output(input)?,
                    body,
                };
                input = step.output;
                Some(step)
            })
            .collect()
    }

    fn conv<'a>(&self, pass: &Pass<'a>) -> Conv<'a> {
        let (kernel, stride, padding) = match self.layer {
            Layer::Conv2d {
                kernel,
                stride,
                padding,
                ..
            } => (kernel, stride, padding),
            _ => (1, 1, 0),
        };
        Conv {
            arch: pass.arch,
            buffers: pass.buffers,
            input: self.input,
            output: self.output,
            kernel,
            stride,
            padding,
            columns: pass.columns,
        }
    }

    fn norm(&self, columns: usize) -> Norm {
        let Extent {
            channels,
            height,
            width,
        } = self.input;
        match self.layer {
            Layer::GroupNorm { groups, .. } => Norm {
                sets: groups,
                rows: channels / groups.max(1) * height * width,
                scales: channels,
                alike: height * width,
                columns,
            },
            // A layer norm: a set for each row.
            _ => Norm {
                sets: height,
                rows: width,
                scales: width,
                alike: 1,
                columns,
            },
        }
    }
}

impl Pass<'_> {
    /// What `steps` make of `input`; appends to `kept`, if there is such, what their gradients need.
    pub(super) fn forward(
        &self,
        steps: &[Step],
        input: Vec<f32>,
        mut kept: Option<&mut Vec<Kept>>,
    ) -> Vec<f32> {
        steps.iter().fold(input, |input, step| {
            let (output, need) = self.step(step, input, kept.is_some());
            match &mut kept {
                Some(kept) => kept.push(need),
                None => self.give(need),
            }
            output
        })
    }

    fn step(&self, step: &Step, mut input: Vec<f32>, keep: bool) -> (Vec<f32>, Kept) {
        let Self {
            arch,
            buffers,
            columns,
            ..
        } = *self;
        let parameters = &self.flat[step.parameters.clone()];
        match &step.layer {
            Layer::Dense { inputs, outputs, .. } => {
                let (weight, bias) = parameters.split_at(inputs * outputs);
                let dense = self.dense(*inputs, *outputs, step.input.height);
                let output = dense.forward(weight, bias, &input);
                (output, Kept::Input(input))
            }
            Layer::Conv2d {
                inputs,
                outputs,
                kernel,
                bias,
                ..
            } => {
                let (weight, biases) = parameters.split_at(inputs * outputs * kernel * kernel);
                let conv = step.conv(self);
                let padded = conv.pad(input);
                let output = conv.forward(weight, bias.then_some(biases), &padded);
                (output, Kept::Input(padded))
            }
            Layer::MaxPool { window } => {
                let mut output = buffers.any(step.output.values() * columns);
                arch.dispatch(|| max_pool(&input, &mut output, (step.input, step.output), *window));
                (output, Kept::Input(input))
            }
            Layer::GlobalAverage => {
                let mut output = buffers.zeros(step.output.values() * columns);
                global_average(&input, &mut output, step.input);
                buffers.give(input);
                (output, Kept::Nothing)
            }
            Layer::GroupNorm { channels: scales, .. } | Layer::LayerNorm { width: scales, .. } => {
                let (weight, bias) = parameters.split_at(*scales);
                let norm = step.norm(columns);
                let (output, normed) = arch.dispatch(|| norm.forward(buffers, weight, bias, input));
                (output, Kept::Normed(normed))
            }
            Layer::Residual { .. } => {
                let mut kept = vec![];
                let mut output = self.forward(&step.body, buffers.copy(&input), keep.then_some(&mut kept));
                add_shortcut(&input, &mut output, (step.input, step.output));
                buffers.give(input);
                (output, Kept::Body(kept))
            }
            Layer::Relu => {
                let positive = arch.dispatch(|| relu(&mut input));
                (input, Kept::Positive(positive))
            }
            Layer::Gelu => {
                let mut output = buffers.any(input.len());
                arch.dispatch(|| gelu(&input, &mut output));
                (output, Kept::Input(input))
            }
            Layer::Flatten => (input, Kept::Nothing),
            Layer::Embedding { positions, width } => {
                let tables = parameters.split_at(parameters.len() - positions * width);
                let mut output = buffers.any(step.output.values() * columns);
                embed(&input, &mut output, tables, *width, columns);
                (output, Kept::Input(input))
            }
            Layer::Attention { width, heads, .. } => {
                let (weights, [project, join]) = self.attention(parameters, *width, step.input.height);
                let attention = Attention {
                    positions: step.input.height,
                    width: *width,
                    heads: *heads,
                    columns,
                };
                let projected = project.forward(weights[0], weights[1], &input);
                let (means, shares) = arch.dispatch(|| attention.forward(buffers, &projected));
                let output = join.forward(weights[2], weights[3], &means);
                let kept = Kept::Attention {
                    input,
                    projected,
                    shares,
                    means,
                };
                (output, kept)
            }
        }
    }

    /// Adds to `gradient` the slopes of the steps' parameters, and returns those of their input; where the model
    /// begins nobody asks for these, and some buffer comes back.
    pub(super) fn backward(
        &self,
        steps: &[Step],
        kept: Vec<Kept>,
        slopes: Vec<f32>,
        gradient: &mut [f32],
        begins: bool,
    ) -> Vec<f32> {
        // Before the first parameters there is nothing to learn.
        let last = match begins {
            true => steps.iter().position(|step| !step.parameters.is_empty()),
            false => None,
        };
        let mut slopes = slopes;
        for (index, (step, kept)) in steps.iter().zip(kept).enumerate().rev() {
            match last {
                Some(last) if index < last => self.give(kept),
                _ => slopes = self.step_back(step, kept, slopes, gradient, last != Some(index)),
            }
        }
        slopes
    }

    fn step_back(
        &self,
        step: &Step,
        kept: Kept,
        mut slopes: Vec<f32>,
        gradient: &mut [f32],
        input_too: bool,
    ) -> Vec<f32> {
        let Self {
            arch,
            buffers,
            columns,
            ..
        } = *self;
        let parameters = &self.flat[step.parameters.clone()];
        let own = step.parameters.clone();
        match (&step.layer, kept) {
            (Layer::Dense { inputs, outputs, .. }, Kept::Input(input)) => {
                let dense = self.dense(*inputs, *outputs, step.input.height);
                dense.weight_gradient(&input, &slopes, &mut gradient[own]);
                buffers.give(input);
                let weight = &parameters[..inputs * outputs];
                let input_slopes = input_too.then(|| dense.input_gradient(weight, &slopes));
                buffers.give(slopes);
                input_slopes.unwrap_or_default()
            }
            (
                Layer::Conv2d {
                    inputs,
                    outputs,
                    kernel,
                    ..
                },
                Kept::Input(padded),
            ) => {
                let conv = step.conv(self);
                conv.weight_gradient(&padded, &slopes, &mut gradient[own]);
                buffers.give(padded);
                let weight = &parameters[..inputs * outputs * kernel * kernel];
                let input_slopes = input_too.then(|| conv.input_gradient(weight, &slopes));
                buffers.give(slopes);
                input_slopes.unwrap_or_default()
            }
            (Layer::MaxPool { window }, Kept::Input(input)) => {
                let mut target = buffers.zeros(input.len());
                let extents = (step.input, step.output);
                arch.dispatch(|| max_pool_gradient(&input, &slopes, &mut target, extents, *window));
                buffers.give(input);
                buffers.give(slopes);
                target
            }
            (Layer::GlobalAverage, _) => {
                let mut target = buffers.zeros(step.input.values() * columns);
                global_average_gradient(&slopes, &mut target, step.input);
                buffers.give(slopes);
                target
            }
            (
                Layer::GroupNorm { channels: scales, .. } | Layer::LayerNorm { width: scales, .. },
                Kept::Normed(normed),
            ) => {
                let weight = &parameters[..*scales];
                let norm = step.norm(columns);
                let slopes = arch.dispatch(|| norm.backward(weight, &normed, slopes, &mut gradient[own]));
                self.give(Kept::Normed(normed));
                slopes
            }
            (Layer::Residual { .. }, Kept::Body(kept)) => {
                let mut inner = self.backward(&step.body, kept, buffers.copy(&slopes), gradient, false);
                add_shortcut_gradient(&slopes, &mut inner, (step.input, step.output));
                buffers.give(slopes);
                inner
            }
            (Layer::Relu, Kept::Positive(positive)) => {
                arch.dispatch(|| relu_gradient(&positive, &mut slopes));
                slopes
            }
            (Layer::Gelu, Kept::Input(input)) => {
                arch.dispatch(|| gelu_gradient(&input, &mut slopes));
                buffers.give(input);
                slopes
            }
            (Layer::Embedding { positions, width }, Kept::Input(bytes)) => {
                embed_gradient(&bytes, &slopes, &mut gradient[own], (*width, *positions), columns);
                buffers.give(bytes);
                slopes
            }
            (
                Layer::Attention { width, heads, .. },
                Kept::Attention {
                    input,
                    projected,
                    shares,
                    means,
                },
            ) => {
                let (weights, [project, join]) = self.attention(parameters, *width, step.input.height);
                let attention = Attention {
                    positions: step.input.height,
                    width: *width,
                    heads: *heads,
                    columns,
                };
                let (project_own, join_own) = gradient[own].split_at_mut(3 * width * (width + 1));
                join.weight_gradient(&means, &slopes, join_own);
                let mean_slopes = join.input_gradient(weights[2], &slopes);
                buffers.give(slopes);
                let slopes = arch.dispatch(|| attention.backward(buffers, &projected, &shares, &mean_slopes));
                buffers.give(mean_slopes);
                project.weight_gradient(&input, &slopes, project_own);
                let input_slopes = project.input_gradient(weights[0], &slopes);
                buffers.give(slopes);
                self.give(Kept::Attention {
                    input,
                    projected,
                    shares,
                    means,
                });
                input_slopes
            }
            // Each layer keeps what it asks for here; a flattened image is the same numbers.
            (_, _) => slopes,
        }
    }

    /// Takes back what a layer kept.
    fn give(&self, kept: Kept) {
        match kept {
            Kept::Nothing | Kept::Positive(_) => {}
            Kept::Input(input) => self.buffers.give(input),
            Kept::Normed(Normed { values, inverse }) => {
                self.buffers.give(values);
                self.buffers.give(inverse);
            }
            Kept::Attention {
                input,
                projected,
                shares,
                means,
            } => {
                for values in [input, projected, shares, means] {
                    self.buffers.give(values);
                }
            }
            Kept::Body(kept) => kept.into_iter().for_each(|kept| self.give(kept)),
        }
    }

    fn dense(&self, inputs: usize, outputs: usize, positions: usize) -> Dense<'_> {
        Dense {
            arch: self.arch,
            buffers: self.buffers,
            inputs,
            outputs,
            positions,
            columns: self.columns,
            samples: self.samples,
        }
    }

    /// The weights and biases of an attention's two projections, and these.
    fn attention<'p>(
        &self,
        parameters: &'p [f32],
        width: usize,
        positions: usize,
    ) -> ([&'p [f32]; 4], [Dense<'_>; 2]) {
        let (in_weight, rest) = parameters.split_at(3 * width * width);
        let (in_bias, rest) = rest.split_at(3 * width);
        let (out_weight, out_bias) = rest.split_at(width * width);
        let dense = [
            self.dense(width, 3 * width, positions),
            self.dense(width, width, positions),
        ];
        ([in_weight, in_bias, out_weight, out_bias], dense)
    }
}
