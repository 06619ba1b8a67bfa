//! What a node trains: a model together with what it learns from and is measured by.
//!
//! The worker knows rounds, merges and checkpoints, and of the model only the flat vector. Here is a built-in model
//! on a backend, with the node's samples; a program of the user's own brings all of that itself
//! (`backend/child.rs`).

use crate::backend::child::ChildError;
use crate::backend::{Backend, BackendError};
use crate::data::{Batches, Dataset};
use crate::layout::Layout;
use crate::ledger::{Ledger, LedgerError};
use crate::private_steps::PrivateSteps;
use crate::steps::{self, Trained, take_steps};
use lapwing_base::{Ppm, RoundPlan};
use std::borrow::Cow;

/// A model that learns. Synchronous: it computes on the caller's thread.
pub(crate) trait Trainee: Send {
    /// Where each parameter lies in the flat vector.
    fn layout(&self) -> &Layout;

    /// All parameters; lent where they lie in one vector, and copied where they do not.
    fn flat(&self) -> Cow<'_, [f32]>;

    /// Replaces all parameters. The optimiser's state stays.
    ///
    /// # Errors
    ///
    /// When the length is not the layout's, or a value is not finite; then nothing is changed.
    fn write(&mut self, flat: &[f32]) -> Result<(), TraineeError>;

    /// Changes parameters where they lie, as [`Backend::edit`] says.
    ///
    /// # Errors
    ///
    /// As for [`Backend::edit`].
    fn edit(&mut self, edit: &mut dyn FnMut(&mut [f32])) -> Result<(), TraineeError>;

    /// Takes the plan's local steps, from the step with the number `step` on, which then is the next one's.
    ///
    /// # Errors
    ///
    /// When the samples do not fit the model, or training diverged.
    fn train(&mut self, step: &mut u64, plan: &RoundPlan) -> Result<Trained, TraineeError>;

    /// The gradient of the batch of the step with the number `step`, which is not taken; the next one is the next
    /// batch's.
    ///
    /// # Errors
    ///
    /// As for [`Self::train`], or when such a model tells no gradients.
    fn gradient(&mut self, step: &mut u64) -> Result<(Trained, Vec<f32>), TraineeError>;

    /// One step of the optimiser down a gradient that was computed elsewhere, in the layout's order.
    ///
    /// # Errors
    ///
    /// As for [`Self::write`], or when such a model takes no gradients.
    fn descend(&mut self, gradient: &[f32], lr: f32) -> Result<(), TraineeError>;

    /// The optimiser's momentum, in the layout's order, of a model that tells gradients.
    fn momentum(&self) -> Cow<'_, [f32]>;

    /// What has been told of one of its samples so far, where the job promises differential privacy.
    fn epsilon(&self) -> Option<f64> {
        None
    }

    /// How many samples it trains on, by which algorithms weigh what it has learnt.
    fn samples(&self) -> u64;

    /// The accuracy on the test samples. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the samples do not fit the model.
    fn accuracy(&mut self) -> Result<Ppm, TraineeError>;

    /// What has to be known after a restart.
    ///
    /// # Errors
    ///
    /// When it cannot be had now.
    fn state(&mut self) -> Result<State<'_>, TraineeError>;

    /// Goes on with what [`State::optimiser`] was.
    ///
    /// # Errors
    ///
    /// When it is of another model.
    fn set_optimiser_state(&mut self, state: &[f32]) -> Result<(), TraineeError>;

    /// Brings the optimiser to where it was before the first step: the momentum of another model would push this one
    /// off its course.
    ///
    /// # Errors
    ///
    /// When it cannot be told so now.
    fn forget(&mut self) -> Result<(), TraineeError>;
}

/// What a model has to know after a restart.
#[derive(Debug)]
pub(crate) struct State<'a> {
    /// All parameters.
    pub(crate) model: Cow<'a, [f32]>,
    /// Only for [`Trainee::set_optimiser_state`] to make sense of.
    pub(crate) optimiser: Cow<'a, [f32]>,
}

/// Why a model did not learn, or was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraineeError {
    /// A built-in model.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A program's.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// What steps tell cannot be counted, so that none is taken.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A built-in model and this node's samples.
pub(crate) struct BuiltIn {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) data: Dataset,
    pub(crate) batches: Batches,
    /// Where the job promises privacy.
    pub(crate) private: Option<(PrivateSteps, Ledger)>,
}

impl Trainee for BuiltIn {
    fn layout(&self) -> &Layout {
        self.backend.layout()
    }

    fn flat(&self) -> Cow<'_, [f32]> {
        self.backend.flat()
    }

    fn write(&mut self, flat: &[f32]) -> Result<(), TraineeError> {
        Ok(self.backend.write(flat)?)
    }

    fn edit(&mut self, edit: &mut dyn FnMut(&mut [f32])) -> Result<(), TraineeError> {
        Ok(self.backend.edit(edit)?)
    }

    fn train(&mut self, step: &mut u64, plan: &RoundPlan) -> Result<Trained, TraineeError> {
        let part = (&self.data.train).into();
        if let Some((steps, ledger)) = &mut self.private {
            // Before they are taken, so that no crash makes them come for free.
            ledger.enter(plan.local_steps)?;
            let trained = steps.take(&mut *self.backend, part, step, plan)?;
            return Ok(Trained {
                epsilon: Some(ledger.epsilon()),
                ..trained
            });
        }
        Ok(take_steps(
            &mut *self.backend,
            &mut self.batches,
            part,
            step,
            plan,
        )?)
    }

    fn gradient(&mut self, step: &mut u64) -> Result<(Trained, Vec<f32>), TraineeError> {
        let part = (&self.data.train).into();
        Ok(steps::gradient(
            &mut *self.backend,
            &mut self.batches,
            part,
            step,
        )?)
    }

    fn descend(&mut self, gradient: &[f32], lr: f32) -> Result<(), TraineeError> {
        Ok(self.backend.descend(gradient, lr)?)
    }

    fn momentum(&self) -> Cow<'_, [f32]> {
        self.backend.optimiser_state()
    }

    fn epsilon(&self) -> Option<f64> {
        self.private.as_ref().map(|(_, ledger)| ledger.epsilon())
    }

    fn samples(&self) -> u64 {
        self.data.train.len() as u64
    }

    fn accuracy(&mut self) -> Result<Ppm, TraineeError> {
        Ok(self.backend.evaluate(&self.data.test)?.accuracy())
    }

    fn state(&mut self) -> Result<State<'_>, TraineeError> {
        Ok(State {
            model: self.backend.flat(),
            optimiser: self.backend.optimiser_state(),
        })
    }

    fn set_optimiser_state(&mut self, state: &[f32]) -> Result<(), TraineeError> {
        Ok(self.backend.set_optimiser_state(state)?)
    }

    fn forget(&mut self) -> Result<(), TraineeError> {
        let parameters = self.backend.layout().parameters();
        self.set_optimiser_state(&vec![0.0; parameters])
    }
}
