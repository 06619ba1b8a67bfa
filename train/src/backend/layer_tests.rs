//! Every kind of layer on every backend, against a reference that is nothing but sums in `f64`.
//!
//! The reference computes losses only. Its slopes are finite differences, which in `f64` are good to six digits, so
//! no backend's gradient is trusted, nor any formula for one.

use lapwing_base::Algorithm;

use super::*;
use crate::draws::Draws;
use crate::model::{BYTES, Extent, Layer, NORM_EPSILON, shortcut};

#[test]
fn gradients_of_every_kind_of_layer_are_those_of_the_reference() {
    for (case, layers, input, classes) in cases() {
        let model = Model::of(layers, input, classes).unwrap();
        let batch = Sampled::new(input, classes, 3);
        let flat = perturbed(&mut *plain_of(&model));
        let exact: Vec<f64> = flat.iter().map(|value| f64::from(*value)).collect();
        let expected = reference_loss(&model, &exact, &batch.batch());
        let slope = |coordinate: usize| {
            const STEP: f64 = 1e-5;
            let at = |offset| {
                let mut moved = exact.clone();
                moved[coordinate] += offset;
                reference_loss(&model, &moved, &batch.batch())
            };
            (at(STEP) - at(-STEP)) / (2.0 * STEP)
        };
        let mut slopes = vec![];
        for parameter in model.layout().iter() {
            // All of a small tensor, and a few hundred spread over a table of bytes.
            let range = parameter.range.clone();
            let some = range.step_by(1 + parameter.range.len() / 300);
            let before = slopes.len();
            slopes.extend(some.map(|coordinate| (coordinate, slope(coordinate))));
            let all: f64 = slopes[before..].iter().map(|(_, slope)| slope.abs()).sum();
            assert!(all > 1e-4, "{case}, {}: nothing is tested", parameter.name);
        }
        for (name, mut backend) in every(&model) {
            assert_eq!(perturbed(&mut *backend), flat);
            let (loss, gradient) = backend.gradient(&batch.batch()).unwrap();
            assert!(
                (f64::from(loss) - expected).abs() < 1e-5,
                "{case} on {name}: {loss} {expected}"
            );
            let score = backend.evaluate(&batch.samples).unwrap();
            assert!(
                (score.loss - loss).abs() < 1e-5,
                "{case} on {name}: {score:?} {loss}"
            );
            let largest = gradient.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
            for (coordinate, slope) in &slopes {
                let here = gradient[*coordinate];
                let error = (slope - f64::from(here)).abs();
                assert!(
                    error < 2e-5 * f64::from(largest),
                    "{case} on {name} at {coordinate}: {slope} but {here}"
                );
            }
        }
    }
}

#[test]
fn every_built_in_model_has_the_same_gradient_on_all_backends() {
    for (name, input, classes) in [
        ("mlp", InputShape::image(1, 8, 8), 10),
        ("lenet", InputShape::image(1, 28, 28), 10),
        ("lenet", InputShape::image(3, 32, 32), 7),
        ("mnist-cnn", InputShape::image(1, 28, 28), 10),
        ("cifar10-cnn", InputShape::image(3, 32, 32), 10),
        ("resnet20", InputShape::image(3, 32, 32), 10),
        ("transformer", InputShape::text(16), BYTES),
    ] {
        let model = Model::named(name, input, classes).unwrap();
        let batch = Sampled::new(input, classes, 5);
        let counts: Vec<u32> = (1..=classes as u32).collect();
        let batch = Batch {
            counts: &counts,
            ..batch.batch()
        };
        let (loss, one) = plain_of(&model).gradient(&batch).unwrap();
        for (backend, mut other) in every(&model) {
            let (other_loss, other) = other.gradient(&batch).unwrap();
            assert!(
                (loss / other_loss - 1.0).abs() < 1e-5,
                "{name} on {backend}: {loss} {other_loss}"
            );
            let norm = |flat: &[f32]| flat.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let difference: Vec<f32> = one.iter().zip(&other).map(|(a, b)| a - b).collect();
            let ratio = norm(&difference) / norm(&one);
            // A ReLU whose input is nothing but rounding opens here and not there, and the ResNet has a million.
            let allowed = if name == "resnet20" { 2e-3 } else { 1e-4 };
            assert!(
                ratio < allowed,
                "{name} on {backend}: the gradients differ by {ratio}"
            );
        }
    }
}

#[test]
fn a_batch_of_several_slices_has_the_mean_of_their_gradients() {
    let input = InputShape::image(1, 28, 28);
    let model = Model::named("lenet", input, 10).unwrap();
    let all = Sampled::new(input, 10, 150);
    for (_, mut backend) in every(&model) {
        let (loss, gradient) = backend.gradient(&all.batch()).unwrap();
        let mut mean = vec![0.0; gradient.len()];
        let mut mean_loss = 0.0;
        for part in all.samples.chunks(50) {
            let (loss, gradient) = backend.gradient(&part).unwrap();
            mean.iter_mut().zip(gradient).for_each(|(a, b)| *a += b / 3.0);
            mean_loss += loss / 3.0;
        }
        assert!((loss - mean_loss).abs() < 1e-5);
        assert!(gradient.iter().zip(&mean).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn of_equally_large_numbers_in_a_pool_the_first_gets_the_slope() {
    // Two colours whose sum is the same in all four pixels; the weights' slopes tell which pixel was taken.
    let layers = vec![
        conv(2, 1, 1, 1, 0),
        Layer::MaxPool { window: 2 },
        Layer::Flatten,
        dense(1, 2),
    ];
    let model = Model::of(layers, InputShape::image(2, 2, 2), 2).unwrap();
    let features = vec![0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0];
    let samples = Samples::new(features, vec![0], 8).unwrap();
    for (_, mut backend) in every(&model) {
        // The convolution's weights and bias, the dense layer's two weights and biases.
        backend.write(&[1.0, 1.0, 0.0, 1.0, -1.0, 0.0, 0.0]).unwrap();
        let (_, gradient) = backend.gradient(&samples.as_batch()).unwrap();
        assert!((gradient[1] / gradient[0] - 3.0).abs() < 1e-5, "{gradient:?}");
    }
}

#[test]
fn what_is_no_byte_is_refused_in_a_text() {
    for name in BACKENDS {
        let mut backend = backend(
            name,
            "transformer",
            InputShape::text(4),
            BYTES,
            1,
            &Algorithm::Default.tuning(),
        )
        .unwrap();
        for value in [-1.0, 256.0, 0.5, f32::NAN, f32::INFINITY] {
            let samples = Samples::new(vec![0.0, 1.0, value, 2.0], vec![9], 4).unwrap();
            let error = backend.step(&samples.as_batch(), 0.1).unwrap_err();
            assert!(matches!(error, BackendError::Byte { .. }), "{error}");
            assert!(backend.evaluate(&samples).is_err());
        }
    }
}

/// Small models that have every kind of layer, in all its forms.
fn cases() -> Vec<(&'static str, Vec<Layer>, InputShape, usize)> {
    let norm = |channels, groups| Layer::GroupNorm {
        name: format!("norm{channels}"),
        groups,
        channels,
    };
    let residual = |body| Layer::Residual { body };
    let layer_norm = || Layer::LayerNorm {
        name: "norm".to_owned(),
        width: 6,
    };
    let attention = Layer::Attention {
        name: "attention".to_owned(),
        width: 6,
        heads: 2,
    };
    vec![
        (
            "convolutions and pools",
            vec![
                conv(2, 3, 3, 1, 1),
                Layer::MaxPool { window: 2 },
                Layer::Relu,
                conv(3, 7, 2, 1, 0),
                Layer::MaxPool { window: 2 },
                Layer::Flatten,
                dense(14, 4),
            ],
            InputShape::image(2, 7, 10),
            4,
        ),
        (
            "strides and residuals",
            vec![
                conv(1, 4, 3, 1, 1),
                norm(4, 2),
                Layer::Relu,
                residual(vec![
                    conv(4, 8, 3, 2, 1),
                    norm(8, 1),
                    Layer::Relu,
                    conv(8, 8, 3, 1, 1),
                ]),
                Layer::Relu,
                residual(vec![conv(8, 8, 1, 1, 0), norm(8, 4)]),
                Layer::GlobalAverage,
                dense(8, 3),
            ],
            InputShape::image(1, 6, 5),
            3,
        ),
        (
            "attention",
            vec![
                Layer::Embedding {
                    positions: 5,
                    width: 6,
                },
                residual(vec![layer_norm(), attention]),
                residual(vec![layer_norm(), dense(6, 10), Layer::Gelu, dense(10, 6)]),
                layer_norm(),
                dense(6, BYTES),
            ],
            InputShape::text(5),
            BYTES,
        ),
    ]
}

fn dense(inputs: usize, outputs: usize) -> Layer {
    Layer::Dense {
        name: format!("dense{outputs}"),
        inputs,
        outputs,
    }
}

fn conv(inputs: usize, outputs: usize, kernel: usize, stride: usize, padding: usize) -> Layer {
    Layer::Conv2d {
        name: format!("conv{outputs}"),
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        bias: stride == 1,
    }
}

fn plain_of(model: &Model) -> Box<dyn Backend> {
    Box::new(plain::Plain::new(model.clone(), 5, &Algorithm::Default.tuning()))
}

/// The model on each backend of this build.
fn every(model: &Model) -> Vec<(&'static str, Box<dyn Backend>)> {
    let tuning = Algorithm::Default.tuning();
    vec![
        ("plain", plain_of(model)),
        ("burn", Box::new(burn::Burn::new(model.clone(), 5, &tuning))),
        #[cfg(feature = "tch")]
        ("tch", Box::new(tch::Tch::new(model.clone(), 5, &tuning).unwrap())),
    ]
}

/// Away from zero biases and scales of one, which hide mistakes.
fn perturbed(backend: &mut dyn Backend) -> Vec<f32> {
    let mut flat = vec![];
    backend.read(&mut flat);
    let mut draws = Draws::new("layer tests", &[1]);
    for value in &mut flat {
        *value += draws.symmetric() * 0.3;
    }
    backend.write(&flat).unwrap();
    flat
}

struct Sampled {
    samples: Samples,
}

impl Sampled {
    fn new(input: InputShape, classes: usize, count: usize) -> Self {
        let mut draws = Draws::new("layer tests", &[2]);
        let features = (0..count * input.values())
            .map(|_| match input.kind {
                InputKind::Numbers => draws.symmetric() * 2.0,
                InputKind::Bytes => draws.below(256) as f32,
            })
            .collect();
        let labels = (0..count).map(|_| draws.below(classes as u64) as u8).collect();
        Self {
            samples: Samples::new(features, labels, input.values()).unwrap(),
        }
    }

    fn batch(&self) -> Batch<'_> {
        self.samples.as_batch()
    }
}

/// The mean cross entropy of a batch.
fn reference_loss(model: &Model, flat: &[f64], batch: &Batch<'_>) -> f64 {
    let answers = answers(batch, model.input());
    let each = model.input().answers();
    let mut total = 0.0;
    for (features, answers) in batch.features.chunks(batch.width).zip(answers.chunks(each)) {
        let values = features.iter().map(|value| f64::from(*value)).collect();
        let logits = reference(model.layers(), values, model.extent(), &mut { flat });
        for (row, answer) in logits.chunks(model.classes()).zip(answers) {
            let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
            total += sum.ln() - row[usize::from(*answer)];
        }
    }
    total / answers.len() as f64
}

/// What layers make of one sample, number by number.
fn reference(layers: &[Layer], input: Vec<f64>, extent: Extent, flat: &mut &[f64]) -> Vec<f64> {
    let mut extent = extent;
    layers.iter().fold(input, |input, layer| {
        let output = layer.output(extent).unwrap();
        let values = reference_layer(layer, input, extent, output, flat);
        assert_eq!(values.len(), output.values());
        extent = output;
        values
    })
}

fn reference_layer(layer: &Layer, x: Vec<f64>, from: Extent, to: Extent, flat: &mut &[f64]) -> Vec<f64> {
    let mut take = |count: usize| {
        let (values, rest) = flat.split_at(count);
        *flat = rest;
        values
    };
    let at = |channel: usize, row: usize, column: usize| (channel * from.height + row) * from.width + column;
    let cells = |to: Extent| {
        (0..to.channels).flat_map(move |channel| {
            (0..to.height).flat_map(move |row| (0..to.width).map(move |column| (channel, row, column)))
        })
    };
    match layer {
        Layer::Dense { inputs, outputs, .. } => affine(&x, take(inputs * outputs), take(*outputs)),
        Layer::Conv2d {
            inputs,
            outputs,
            kernel,
            stride,
            padding,
            bias,
            ..
        } => {
            let weight = take(outputs * inputs * kernel * kernel);
            let bias = if *bias { take(*outputs) } else { &[] };
            cells(to)
                .map(|(channel, row, column)| {
                    let mut sum = bias.get(channel).copied().unwrap_or(0.0);
                    let size = inputs * kernel * kernel;
                    for (k, weight) in weight[channel * size..][..size].iter().enumerate() {
                        let source = k / kernel / kernel;
                        let (y, z) = (row * stride + k / kernel % kernel, column * stride + k % kernel);
                        let inside = (*padding..from.height + padding).contains(&y)
                            && (*padding..from.width + padding).contains(&z);
                        if inside {
                            sum += weight * x[at(source, y - padding, z - padding)];
                        }
                    }
                    sum
                })
                .collect()
        }
        Layer::MaxPool { window } => cells(to)
            .map(|(channel, row, column)| {
                (0..window * window)
                    .map(|k| x[at(channel, row * window + k / window, column * window + k % window)])
                    .fold(f64::NEG_INFINITY, f64::max)
            })
            .collect(),
        Layer::GlobalAverage => x
            .chunks(from.height * from.width)
            .map(|channel| channel.iter().sum::<f64>() / channel.len() as f64)
            .collect(),
        Layer::GroupNorm { groups, channels, .. } => {
            let (weight, bias) = (take(*channels), take(*channels));
            let area = from.height * from.width;
            let rows = x.chunks(x.len() / groups).flat_map(standard);
            rows.enumerate()
                .map(|(index, value)| value * weight[index / area] + bias[index / area])
                .collect()
        }
        Layer::LayerNorm { width, .. } => {
            let (weight, bias) = (take(*width), take(*width));
            let rows = x.chunks(*width).flat_map(standard);
            rows.enumerate()
                .map(|(index, value)| value * weight[index % width] + bias[index % width])
                .collect()
        }
        Layer::Residual { body } => {
            let mut output = reference(body, x.clone(), from, flat);
            let (stride, before) = shortcut(from, to).unwrap();
            for (channel, row, column) in cells(to) {
                if (before..before + from.channels).contains(&channel) {
                    let target = (channel * to.height + row) * to.width + column;
                    output[target] += x[at(channel - before, row * stride, column * stride)];
                }
            }
            output
        }
        Layer::Relu => x.into_iter().map(|value| value.max(0.0)).collect(),
        Layer::Gelu => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            x.into_iter()
                .map(|v| 0.5 * v * (1.0 + (root * (v + 0.044_715 * v.powi(3))).tanh()))
                .collect()
        }
        Layer::Flatten => x,
        Layer::Embedding { positions, width } => {
            let (tokens, places) = (take(BYTES * width), take(positions * width));
            (0..positions * width)
                .map(|k| tokens[x[k / width] as usize * width + k % width] + places[k])
                .collect()
        }
        Layer::Attention { width, heads, .. } => {
            let projected = affine(&x, take(3 * width * width), take(3 * width));
            let share = width / heads;
            let mut means = vec![0.0; x.len()];
            for (row, head) in (0..from.height).flat_map(|row| (0..*heads).map(move |head| (row, head))) {
                let part = |part: usize, row: usize| {
                    &projected[row * 3 * width + part * width + head * share..][..share]
                };
                let scores: Vec<f64> = (0..=row)
                    .map(|key| {
                        part(0, row)
                            .iter()
                            .zip(part(1, key))
                            .map(|(a, b)| a * b)
                            .sum::<f64>()
                    })
                    .map(|score| (score / (share as f64).sqrt()).exp())
                    .collect();
                let sum: f64 = scores.iter().sum();
                for (key, score) in scores.iter().enumerate() {
                    for (k, value) in part(2, key).iter().enumerate() {
                        means[row * width + head * share + k] += score / sum * value;
                    }
                }
            }
            affine(&means, take(width * width), take(*width))
        }
    }
}

/// `W x + b` for each row.
fn affine(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let inputs = weight.len() / bias.len();
    x.chunks(inputs)
        .flat_map(|x| {
            weight
                .chunks(inputs)
                .zip(bias)
                .map(|(row, bias)| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + bias)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Numbers with mean 0 and variance 1.
fn standard(x: &[f64]) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
    x.iter()
        .map(|v| (v - mean) / (variance + f64::from(NORM_EPSILON)).sqrt())
        .collect()
}
