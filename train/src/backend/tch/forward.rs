//! A model's layers as operations of libtorch, from a batch to its logits. Gradients are libtorch's own.

use tch::{Kind, TchError, Tensor};

use crate::model::{Extent, Layer, Model, NORM_EPSILON, shortcut};

/// The logits of a batch, a row for each answer.
///
/// `input` has a row for each sample; of a text, the bytes as integers. `parameters` have the layout's order and shapes.
pub(super) fn logits(model: &Model, input: &Tensor, parameters: &[Tensor]) -> Result<Tensor, TchError> {
    let extent = model.extent();
    let sides = [-1, long(extent.channels), long(extent.height), long(extent.width)];
    let mut parameters = Parameters(parameters.iter());
    let logits = through(model.layers(), input.f_view(sides)?, &mut parameters)?;
    logits.f_reshape([-1, long(model.classes())])
}

/// A dimension as libtorch takes it; those of a layout that was made are far below the limit.
pub(super) fn long(side: usize) -> i64 {
    side as i64
}

/// Parameters that were not taken yet.
struct Parameters<'a>(std::slice::Iter<'a, Tensor>);

impl<'a> Parameters<'a> {
    fn next(&mut self) -> Result<&'a Tensor, TchError> {
        let next = self.0.next();
        next.ok_or_else(|| TchError::Shape("the layers have more parameters than the layout".to_owned()))
    }
}

/// What layers make of `[samples, channels, height, width]`.
fn through(layers: &[Layer], input: Tensor, parameters: &mut Parameters<'_>) -> Result<Tensor, TchError> {
    let mut before = None;
    layers.iter().try_fold(input, |mut input, layer| {
        let output = match layer {
            Layer::Relu if before.is_some_and(is_not_needed) => input.f_relu_(),
            layer => apply(layer, input, parameters),
        };
        before = Some(layer);
        output
    })
}

/// Whether nobody else reads what a layer puts out, neither on the way back nor beside it, so that the next may overwrite it.
const fn is_not_needed(layer: &Layer) -> bool {
    matches!(
        layer,
        Layer::Dense { .. }
            | Layer::Conv2d { .. }
            | Layer::MaxPool { .. }
            | Layer::GroupNorm { .. }
            | Layer::LayerNorm { .. }
            | Layer::Residual { .. }
    )
}

fn apply(layer: &Layer, input: Tensor, parameters: &mut Parameters<'_>) -> Result<Tensor, TchError> {
    match layer {
        Layer::Dense { .. } => dense(&input, parameters),
        Layer::Conv2d {
            stride,
            padding,
            bias,
            ..
        } => {
            let weight = parameters.next()?;
            let bias = bias.then(|| parameters.next()).transpose()?;
            input.f_conv2d(weight, bias, [long(*stride); 2], [long(*padding); 2], [1, 1], 1)
        }
        Layer::MaxPool { window } => {
            input.f_max_pool2d([long(*window); 2], [long(*window); 2], [0, 0], [1, 1], false)
        }
        Layer::GlobalAverage => {
            let (samples, channels, ..) = input.size4()?;
            input
                .f_mean_dim(&[2, 3][..], false, Kind::Float)?
                .f_view([samples, 1, 1, channels])
        }
        Layer::GroupNorm { groups, .. } => {
            let (weight, bias) = (parameters.next()?, parameters.next()?);
            let epsilon = f64::from(NORM_EPSILON);
            input.f_group_norm(long(*groups), Some(weight), Some(bias), epsilon, true)
        }
        Layer::LayerNorm { width, .. } => {
            let (weight, bias) = (parameters.next()?, parameters.next()?);
            let epsilon = f64::from(NORM_EPSILON);
            input.f_layer_norm([long(*width)], Some(weight), Some(bias), epsilon, true)
        }
        Layer::Residual { body } => {
            let output = through(body, input.shallow_clone(), parameters)?;
            let taken = taken(&input, extent(&input)?, extent(&output)?)?;
            output.f_add(&taken)
        }
        Layer::Relu => input.f_relu(),
        Layer::Gelu => input.f_gelu("tanh"),
        Layer::Flatten => {
            let (samples, ..) = input.size4()?;
            input.f_reshape([samples, 1, 1, -1])
        }
        Layer::Embedding { .. } => {
            let (tokens, places) = (parameters.next()?, parameters.next()?);
            // One row of bytes becomes a row of numbers for each byte.
            let bytes = input.f_squeeze_dim(2)?;
            Tensor::f_embedding(tokens, &bytes, -1, false, false)?.f_add(places)
        }
        Layer::Attention { heads, .. } => {
            let means = attend(&dense(&input, parameters)?, long(*heads))?;
            dense(&means, parameters)
        }
    }
}

/// `W x + b` for every row.
fn dense(input: &Tensor, parameters: &mut Parameters<'_>) -> Result<Tensor, TchError> {
    let (weight, bias) = (parameters.next()?, parameters.next()?);
    input.f_linear(weight, Some(bias))
}

/// Causal attention, from queries, keys and values side by side.
fn attend(projected: &Tensor, heads: i64) -> Result<Tensor, TchError> {
    let (samples, _, positions, all) = projected.size4()?;
    let width = all / 3;
    let parts = projected
        .f_view([samples, positions, 3, heads, width / heads])?
        .f_permute([2, 0, 3, 1, 4])?;
    let part = |part| parts.f_select(0, part);
    let (queries, keys, values) = (part(0)?, part(1)?, part(2)?);
    let none = None::<Tensor>;
    Tensor::f_scaled_dot_product_attention(&queries, &keys, &values, none, 0.0, true, None, false)?
        .f_transpose(1, 2)?
        .f_reshape([samples, 1, positions, width])
}

/// A residual's input as large as its output.
fn taken(input: &Tensor, from: Extent, to: Extent) -> Result<Tensor, TchError> {
    let (stride, more) = shortcut(from, to)
        .ok_or_else(|| TchError::Shape(format!("no shortcut leads from {from:?} to {to:?}")))?;
    let mut taken = input.shallow_clone();
    if stride > 1 {
        let stride = long(stride);
        taken = taken
            .f_slice(2, None, None, stride)?
            .f_slice(3, None, None, stride)?;
    }
    if more > 0 {
        // Zeros around channels; none around rows and columns.
        taken = taken.f_constant_pad_nd([0, 0, 0, 0, long(more), long(more)])?;
    }
    Ok(taken)
}

fn extent(tensor: &Tensor) -> Result<Extent, TchError> {
    let (_, channels, height, width) = tensor.size4()?;
    let side = |side: i64| usize::try_from(side).unwrap_or_default();
    Ok(Extent {
        channels: side(channels),
        height: side(height),
        width: side(width),
    })
}
