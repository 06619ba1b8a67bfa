//! The embedded default: burn with its pure Rust CPU backend, flex. It needs nothing installed and gives the
//! same bits for any number of threads; here it is built without any.
//!
//! Parameters and optimiser live in flat vectors of our own. Tensors exist only while a batch is computed, so
//! that reading and writing parameters is a copy and an idle node holds no tensor library state.

mod forward;

use std::borrow::Cow;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData, TensorReadError};

use super::optimiser::Optimiser;
use super::prior::shifts;
use super::score::{Score, Tally};
use super::{Backend, BackendError, StepReport, answers, check_batch, check_flat};
use crate::data::{Batch, Samples};
use crate::layout::Layout;
use crate::model::Model;
use crate::quantise::are_finite;
use forward::Forward;
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
const EVALUATED_AT_ONCE: usize = 64;

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

    /// The parameters as tensors on `device`; gradients are kept if it records any.
    fn tensors(&self, device: &Device) -> Vec<Tensor<1>> {
        let layout = self.model.layout();
        layout
            .iter()
            .map(|parameter| {
                let values = self.flat[parameter.range.clone()].to_vec();
                let shape = [values.len()];
                let tensor = Tensor::from_data(TensorData::new(values, shape), device);
                match device.is_autodiff() {
                    true => tensor.require_grad(),
                    false => tensor,
                }
            })
            .collect()
    }
}

impl Backend for Burn {
    fn layout(&self) -> &Layout {
        self.model.layout()
    }

    fn flat(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.flat)
    }

    fn write(&mut self, flat: &[f32]) -> Result<(), BackendError> {
        check_flat(flat, self.model.layout())?;
        self.flat.copy_from_slice(flat);
        Ok(())
    }

    fn edit(&mut self, edit: &mut dyn FnMut(&mut [f32])) -> Result<(), BackendError> {
        edit(&mut self.flat);
        check_flat(&self.flat, self.model.layout())
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
        let parameters = self.tensors(&device);
        let forward = Forward {
            parameters: &parameters,
            device: &device,
        };
        let logits = forward.logits(&self.model, batch.features);
        let logits = match shifts(batch, &self.model) {
            Some(shifts) => {
                let shape = [1, shifts.len()];
                logits + Tensor::from_data(TensorData::new(shifts, shape), &device)
            }
            None => logits,
        };
        let labels: Vec<i32> = answers(batch, self.model.input())
            .iter()
            .map(|label| i32::from(*label))
            .collect();
        let shape = [labels.len(), 1];
        let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, shape), &device);
        let loss = log_softmax(logits, 1).gather(1, labels).mean().neg();
        let mut gradients = loss.backward();
        let mut flat = Vec::with_capacity(self.flat.len());
        for parameter in &parameters {
            let slopes = parameter.grad_remove(&mut gradients).ok_or_else(no_gradient)?;
            flat.append(&mut slopes.try_into_vec_as::<f32>().map_err(library)?);
        }
        let loss = loss.inner().try_into_scalar::<f32>().map_err(library)?;
        Ok((loss, flat))
    }

    fn evaluate(&mut self, data: &Samples) -> Result<Score, BackendError> {
        let device = Device::flex();
        let parameters = self.tensors(&device);
        let forward = Forward {
            parameters: &parameters,
            device: &device,
        };
        let mut tally = Tally::default();
        for batch in data.chunks(EVALUATED_AT_ONCE) {
            check_batch(&batch, &self.model)?;
            let logits = forward.logits(&self.model, batch.features);
            let logits = logits.try_into_vec_as::<f32>().map_err(library)?;
            let answers = answers(&batch, self.model.input());
            tally.add(&logits, answers.iter().copied(), self.model.classes());
        }
        Ok(tally.score())
    }

    fn optimiser_state(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(self.optimiser.state())
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
