//! The local steps of a round: what a node computes before it exchanges, in a cluster and in a simulation alike.
//!
//! Synchronous, on the caller's thread. It decides nothing: the plan says how many steps and at which rate.

use crate::backend::{Backend, BackendError};
use crate::data::{Batches, Part};
use crate::quantise::are_finite;
use lapwing_base::RoundPlan;
use std::borrow::Cow;

/// The result of a round's local steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trained {
    /// Mean over the steps, in nats.
    pub(crate) loss: f32,
    pub(crate) samples: u32,
    /// After these steps, where the job promises privacy.
    pub(crate) epsilon: Option<f64>,
}

/// The plan as a member carries it out that takes so many steps.
pub(crate) fn own_plan(plan: &RoundPlan, steps: u32) -> Cow<'_, RoundPlan> {
    if steps == plan.local_steps {
        return Cow::Borrowed(plan);
    }
    Cow::Owned(RoundPlan {
        local_steps: steps,
        ..plan.clone()
    })
}

/// Takes the plan's local steps, from the step with the number `step` on, which then is the next one's.
///
/// # Errors
///
/// When the samples do not fit the model, or training diverged; the steps before are taken.
pub(crate) fn take_steps(
    backend: &mut dyn Backend,
    batches: &mut Batches,
    part: Part<'_>,
    step: &mut u64,
    plan: &RoundPlan,
) -> Result<Trained, BackendError> {
    let lr = learning_rate(plan);
    let mut loss = 0.0;
    let mut samples = 0;
    for _ in 0..plan.local_steps {
        let batch = batches.at(part, *step);
        let report = backend.step(&batch, lr)?;
        *step += 1;
        loss += report.loss;
        samples += report.samples;
    }
    let steps = plan.local_steps.max(1) as f32;
    Ok(Trained {
        loss: loss / steps,
        samples,
        epsilon: None,
    })
}

/// The gradient of the batch of the step with the number `step`, which is not taken; the next one is the next batch's.
///
/// # Errors
///
/// When the samples do not fit the model, or training diverged.
pub(crate) fn gradient(
    backend: &mut dyn Backend,
    batches: &mut Batches,
    part: Part<'_>,
    step: &mut u64,
) -> Result<(Trained, Vec<f32>), BackendError> {
    let batch = batches.at(part, *step);
    let samples = batch.labels.len() as u32;
    let (loss, gradient) = backend.gradient(&batch)?;
    if !loss.is_finite() || !are_finite(&gradient) {
        return Err(BackendError::Diverged { loss });
    }
    *step += 1;
    let trained = Trained {
        loss,
        samples,
        epsilon: None,
    };
    Ok((trained, gradient))
}

impl Trained {
    /// Nothing was to be done.
    pub(crate) const NOTHING: Self = Self {
        loss: 0.0,
        samples: 0,
        epsilon: None,
    };
}

/// The learning rate of a plan as backends take it.
pub(crate) fn learning_rate(plan: &RoundPlan) -> f32 {
    (f64::from(plan.lr_micro) / 1e6) as f32
}
