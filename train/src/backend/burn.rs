//! The embedded default: burn with its pure Rust CPU backend, flex. It needs nothing installed and gives the
//! same bits for any number of threads; here it is built without any.
//!
//! Parameters and optimiser live in flat vectors of our own. Tensors exist only while a batch is computed, so
//! that reading and writing parameters is a copy and an idle node holds no tensor library state.

use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::module::linear;
use burn::tensor::{Device, Int, Tensor, TensorData, TensorReadError};

use super::optimiser::Optimiser;
use super::prior::shifts;
use super::score::{Score, Tally};
use super::{Backend, BackendError, StepReport, check_batch, check_flat};
use crate::data::{Batch, Samples};
use crate::layout::Layout;
use crate::model::{Layer, Model};
use crate::quantise::are_finite;
use lapwing_base::Tuning;

/// A model on burn's flex backend.
#[derive(Debug)]
pub(super) struct Burn {
    model: Model,
    flat: Vec<f32>,
    optimiser: Optimiser,
}

/// Samples evaluated at a time: enough to keep the matrix kernels busy, few enough that the activations of a
/// convolutional net stay in tens of megabytes.
const EVALUATED_AT_ONCE: usize = 256;

/// A layer with its parameters as tensors.
#[expect(
    clippy::large_enum_variant,
    reason = "a model has a handful of layers, and these live while one batch is computed"
)]
enum Computed {
    Dense { weight: Tensor<2>, bias: Tensor<1> },
    Relu,
}

impl Burn {
    /// The model with its first parameters and an optimiser at rest.
    pub(super) fn new(model: Model, seed: u64, tuning: &Tuning) -> Self {
        let flat = model.initial(seed);
        let optimiser = Optimiser::new(flat.len(), tuning);
        Self {
            model,
            flat,
            optimiser,
        }
    }

    /// The layers with their parameters as tensors on `device`; gradients are kept if it records any.
    fn tensors(&self, device: &Device) -> Vec<Computed> {
        let mut rest = self.flat.as_slice();
        let mut take = |length: usize| {
            let (values, after) = rest.split_at(length);
            rest = after;
            values.to_vec()
        };
        self.model
            .layers()
            .iter()
            .map(|layer| match *layer {
                Layer::Dense { inputs, outputs, .. } => {
                    let weight = TensorData::new(take(inputs * outputs), [outputs, inputs]);
                    let bias = TensorData::new(take(outputs), [outputs]);
                    let weight = Tensor::from_data(weight, device);
                    let bias = Tensor::from_data(bias, device);
                    if device.is_autodiff() {
                        Computed::Dense {
                            weight: weight.require_grad(),
                            bias: bias.require_grad(),
                        }
                    } else {
                        Computed::Dense { weight, bias }
                    }
                }
                Layer::Relu => Computed::Relu,
            })
            .collect()
    }

    /// The logits of a batch of features.
    fn logits(&self, layers: &[Computed], features: &[f32], device: &Device) -> Tensor<2> {
        let width = self.model.input().values();
        let rows = features.len() / width;
        let input = Tensor::from_data(TensorData::new(features.to_vec(), [rows, width]), device);
        layers.iter().fold(input, |values, layer| match layer {
            Computed::Dense { weight, bias } => {
                linear(values, weight.clone().transpose(), Some(bias.clone()))
            }
            Computed::Relu => relu(values),
        })
    }
}

impl Backend for Burn {
    fn layout(&self) -> &Layout {
        self.model.layout()
    }

    fn read(&self, flat: &mut Vec<f32>) {
        flat.clear();
        flat.extend_from_slice(&self.flat);
    }

    fn write(&mut self, flat: &[f32]) -> Result<(), BackendError> {
        check_flat(flat, self.model.layout())?;
        self.flat.copy_from_slice(flat);
        Ok(())
    }

    fn step(&mut self, batch: &Batch<'_>, lr: f32) -> Result<StepReport, BackendError> {
        let (loss, gradient) = self.gradient(batch)?;
        if !loss.is_finite() || !are_finite(&gradient) {
            return Err(BackendError::Diverged { loss });
        }
        self.optimiser.step(&mut self.flat, &gradient, lr);
        // A batch is bounded by its job's `u32`.
        let samples = u32::try_from(batch.labels.len()).unwrap_or(u32::MAX);
        Ok(StepReport { loss, samples })
    }

    fn descend(&mut self, gradient: &[f32], lr: f32) -> Result<(), BackendError> {
        check_flat(gradient, self.model.layout())?;
        self.optimiser.step(&mut self.flat, gradient, lr);
        Ok(())
    }

    fn gradient(&mut self, batch: &Batch<'_>) -> Result<(f32, Vec<f32>), BackendError> {
        check_batch(batch, &self.model)?;
        let device = Device::flex().autodiff();
        let layers = self.tensors(&device);
        let logits = self.logits(&layers, batch.features, &device);
        let classes = self.model.classes();
        let logits = match shifts(batch.counts, classes) {
            Some(shifts) => logits + Tensor::from_data(TensorData::new(shifts, [1, classes]), &device),
            None => logits,
        };
        let labels: Vec<i32> = batch.labels.iter().map(|label| i32::from(*label)).collect();
        let labels = TensorData::new(labels, [batch.labels.len(), 1]);
        let labels = Tensor::<2, Int>::from_data(labels, &device);
        let loss = log_softmax(logits, 1).gather(1, labels).mean().neg();
        let mut gradients = loss.backward();
        let mut flat = Vec::with_capacity(self.flat.len());
        for layer in &layers {
            match layer {
                Computed::Dense { weight, bias } => {
                    let weight = weight.grad_remove(&mut gradients).ok_or_else(no_gradient)?;
                    let bias = bias.grad_remove(&mut gradients).ok_or_else(no_gradient)?;
                    flat.append(&mut weight.try_into_vec_as::<f32>().map_err(library)?);
                    flat.append(&mut bias.try_into_vec_as::<f32>().map_err(library)?);
                }
                Computed::Relu => {}
            }
        }
        let loss = loss.inner().try_into_scalar::<f32>().map_err(library)?;
        Ok((loss, flat))
    }

    fn evaluate(&mut self, data: &Samples) -> Result<Score, BackendError> {
        let device = Device::flex();
        let layers = self.tensors(&device);
        let mut tally = Tally::default();
        for batch in data.chunks(EVALUATED_AT_ONCE) {
            check_batch(&batch, &self.model)?;
            let logits = self.logits(&layers, batch.features, &device);
            let logits = logits.try_into_vec_as::<f32>().map_err(library)?;
            tally.add(&logits, batch.labels, self.model.classes());
        }
        Ok(tally.score())
    }

    fn optimiser_state(&self) -> Vec<f32> {
        self.optimiser.state().to_vec()
    }

    fn set_optimiser_state(&mut self, state: &[f32]) -> Result<(), BackendError> {
        check_flat(state, self.model.layout())?;
        self.optimiser.set_state(state);
        Ok(())
    }
}

fn library(error: TensorReadError) -> BackendError {
    BackendError::Library(error.to_string())
}

fn no_gradient() -> BackendError {
    BackendError::Library("a parameter has no gradient".to_owned())
}
