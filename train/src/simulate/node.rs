//! A virtual node: its part of the data, its model, and its side of the algorithm.
//!
//! It holds plain vectors only. What it computes, it computes on whichever backend is free: the vectors are handed over
//! and taken back, so that tensors exist only for the nodes that are being computed.

use super::poison::Poison;
use crate::backend::{Backend, BackendError};
use crate::data::{Batches, Part, Samples};
use crate::method::{Collective, Done, Learnt, MethodError, Methods};
use crate::private_steps::PrivateSteps;
use crate::steps::{self, Trained, learning_rate, own_plan, take_steps};
use lapwing_base::{JobSpec, NodeId, RoundPlan};

/// One of the nodes of a simulation.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) model: Vec<f32>,
    momentum: Vec<f32>,
    /// Of the last batch, where the algorithm works with gradients.
    gradient: Vec<f32>,
    /// Positions of its samples among all.
    part: Vec<u32>,
    batches: Batches,
    /// Where the job promises privacy. Here is nobody from whom the noise would have to be kept.
    private: Option<PrivateSteps>,
    /// Local steps taken since the start.
    step: u64,
    pub(super) methods: Methods,
    /// What it tells whom in the round in hand.
    pub(super) told: Vec<(NodeId, Vec<u8>)>,
    /// How it lies, if it does.
    pub(super) poison: Option<Poison>,
    pub(super) totals: Totals,
}

/// What a node has done since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) samples: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Node {
    /// A node that holds the `place`th part of the data, counted from 1, before its first step.
    pub(super) fn new(spec: &JobSpec, id: NodeId, place: u32, part: Vec<u32>, model: &[f32]) -> Self {
        Self {
            id,
            model: model.to_vec(),
            momentum: vec![0.0; model.len()],
            gradient: Vec::new(),
            part,
            batches: Batches::of_part(spec.seed, place, spec.batch),
            private: spec.tuning.privacy.map(|privacy| {
                let secret = [spec.seed, u64::from(place), 0, 0];
                PrivateSteps::new(privacy, spec.batch, secret)
            }),
            step: 0,
            methods: Methods::new(spec, model),
            told: Vec::new(),
            poison: None,
            totals: Totals::default(),
        }
    }

    /// Goes on from another's model and from what all have in common beside it.
    pub(super) fn join(
        &mut self,
        spec: &JobSpec,
        model: &[f32],
        common: Vec<Vec<f32>>,
    ) -> Result<(), MethodError> {
        let momentum = self.methods.join(spec, model, common)?;
        self.model.clear();
        self.model.extend_from_slice(model);
        // The momentum of another model would push this one off its course.
        self.momentum = momentum.unwrap_or_else(|| vec![0.0; model.len()]);
        Ok(())
    }

    /// What whoever joins needs beside the model.
    pub(super) fn common(&self) -> Vec<Vec<f32>> {
        self.methods.common(&self.momentum)
    }

    /// Does the round's local work, in as many steps as are its own.
    pub(super) fn train(
        &mut self,
        backend: &mut dyn Backend,
        data: &Samples,
        plan: &RoundPlan,
        steps: u32,
    ) -> Result<Trained, BackendError> {
        let part = Part::new(data, &self.part);
        let trained = if plan.local_steps == 0 {
            Trained::NOTHING
        } else if self.methods.works_on_gradient(plan) {
            backend.write(&self.model)?;
            let (trained, gradient) = steps::gradient(backend, &mut self.batches, part, &mut self.step)?;
            self.gradient = gradient;
            trained
        } else {
            backend.write(&self.model)?;
            backend.set_optimiser_state(&self.momentum)?;
            let plan = &own_plan(plan, steps);
            let trained = match &mut self.private {
                Some(private) => private.take(backend, part, &mut self.step, plan)?,
                None => take_steps(backend, &mut self.batches, part, &mut self.step, plan)?,
            };
            backend.read(&mut self.model);
            self.momentum.clear();
            self.momentum.extend_from_slice(&backend.optimiser_state());
            trained
        };
        self.totals.samples += u64::from(trained.samples);
        Ok(trained)
    }

    /// What it has told about one of its samples, where the job promises something.
    pub(super) fn epsilon(&self) -> Option<f64> {
        self.private.as_ref()?.epsilon(self.part.len(), self.step)
    }

    /// Starts a round of FedAvg from the server's model, without a momentum of its own.
    pub(super) fn follow(&mut self, model: &[f32]) {
        self.model.clear();
        self.model.extend_from_slice(model);
        self.momentum.fill(0.0);
    }

    /// Writes what each partner is told, into `told`.
    pub(super) fn offer(&mut self, plan: &RoundPlan) -> Result<(), MethodError> {
        let partners: Vec<NodeId> = plan.partners_of(self.id).collect();
        let mut told = std::mem::take(&mut self.told);
        told.truncate(partners.len());
        told.resize_with(partners.len(), || (self.id, Vec::new()));
        let model = std::mem::take(&mut self.model);
        let offered = match self.methods.gossip(plan) {
            Some(gossip) => told
                .iter_mut()
                .zip(&partners)
                .try_for_each(|((to, message), partner)| {
                    *to = *partner;
                    gossip.offer(plan, *partner, &model, message)
                }),
            None => {
                told.clear();
                Ok(())
            }
        };
        (self.model, self.told) = (model, told);
        offered
    }

    /// Has a poisoned node tell everybody something else, as one would who writes messages that can be read.
    pub(super) fn lie(&mut self, spec: &JobSpec, plan: &RoundPlan) -> Result<(), MethodError> {
        let Some(poison) = self.poison else {
            return Ok(());
        };
        let model = poison.model(plan, &self.model);
        let mut methods = Methods::new(spec, &model);
        let Some(gossip) = methods.gossip(plan) else {
            return Ok(());
        };
        for (partner, message) in &mut self.told {
            gossip.offer(plan, *partner, &model, message)?;
            poison.spoil(message);
        }
        Ok(())
    }

    /// Ends a round of telling partners.
    pub(super) fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId]) -> Result<(), MethodError> {
        let mut model = std::mem::take(&mut self.model);
        let settled = match self.methods.gossip(plan) {
            Some(gossip) => gossip.settle(plan, merged, &mut model),
            None => Ok(()),
        };
        self.model = model;
        settled
    }

    /// What it does where all give a vector; `None` where its algorithm is of another kind.
    pub(super) fn collective(&mut self, plan: &RoundPlan) -> Option<Giving<'_>> {
        Some(Giving {
            method: self.methods.collective(plan)?,
            model: &mut self.model,
            gradient: &self.gradient,
            samples: self.part.len() as u64,
        })
    }

    /// Takes note of the model from which a round's work starts.
    pub(super) fn begin(&mut self, plan: &RoundPlan) {
        if let Some(Giving { method, model, .. }) = self.collective(plan) {
            method.begin(plan, model);
        }
    }

    /// Ends a round in which all gave a vector.
    pub(super) fn learn(
        &mut self,
        backend: &mut dyn Backend,
        plan: &RoundPlan,
        mean: &[f32],
    ) -> Result<(), LearnError> {
        let Some(Giving { method, model, .. }) = self.collective(plan) else {
            return Ok(());
        };
        if method.settle(plan, mean, model)? == Learnt::Gradient {
            backend.write(&self.model)?;
            backend.set_optimiser_state(&self.momentum)?;
            backend.descend(mean, learning_rate(plan))?;
            backend.read(&mut self.model);
            self.momentum.clear();
            self.momentum.extend_from_slice(&backend.optimiser_state());
        }
        Ok(())
    }
}

/// A node where all give a vector.
pub(super) struct Giving<'a> {
    pub(super) method: &'a mut dyn Collective,
    pub(super) model: &'a mut Vec<f32>,
    /// Empty where its work are steps.
    pub(super) gradient: &'a [f32],
    /// Of its part of the data.
    pub(super) samples: u64,
}

impl Giving<'_> {
    /// Replaces the contents of `vector` by what the node adds to the mean, and returns its weight.
    pub(super) fn contribute(self, plan: &RoundPlan, vector: &mut Vec<f32>) -> Result<u64, MethodError> {
        let done = Done {
            model: self.model,
            gradient: self.gradient,
            samples: self.samples,
        };
        self.method.contribute(plan, done, vector)
    }
}

/// Why a mean was not followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LearnError {
    #[error(transparent)]
    Method(#[from] MethodError),
    #[error(transparent)]
    Backend(#[from] BackendError),
}
