//! What one node computes for one job: local steps, the values it offers, merging, evaluation, checkpoints.
//!
//! Synchronous; runs on the training thread (`compute.rs`). It knows no peer and no log: what to do, and
//! whether a merge counts, comes from the driver.

use crate::backend::child::{Child, Opening};
use crate::backend::{BackendError, backend};
use crate::card::{Made, card};
use crate::checkpoint::{Checkpoint, LoadError, Pending, SaveError};
use crate::data::{self, Batches, DataError, DataSpec, ParseDataSpecError, Share};
use crate::driver::TrainerConfig;
use crate::external::ExternalModel;
use crate::ledger::{Ledger, LedgerError};
use crate::method::{Done, Learnt, MethodError, Methods, contribution};
use crate::model_file::{ExportError, ImportError, export_safetensors, import_safetensors};
use crate::models::Held;
use crate::private_steps::PrivateSteps;
use crate::quantise;
use crate::ring::Ring;
use crate::steps::{Trained, learning_rate, own_plan};
use crate::trainee::{BuiltIn, State, Trainee, TraineeError};
use bytes::Bytes;
use lapwing_base::{
    ByteSize, JobId, JobSpec, JobView, NodeId, Ppm, Roster, Round, RoundKind, RoundPlan, RoundReport,
};
use rand::RngExt as _;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The state of one job on this node.
pub(crate) struct Worker {
    me: NodeId,
    job: JobId,
    spec: JobSpec,
    trainee: Box<dyn Trainee>,
    /// Local steps taken since the job began.
    step: u64,
    /// Every round up to this one is merged or dropped.
    settled: Round,
    methods: Methods,
    /// The round in hand.
    open: Option<Open>,
    checkpoint_file: PathBuf,
    consensus_file: PathBuf,
}

/// A round whose local steps are taken and that is not settled.
struct Open {
    plan: RoundPlan,
    /// Where the work is one; otherwise empty.
    gradient: Vec<f32>,
    /// What partners told, of those that have.
    received: Vec<(NodeId, Bytes)>,
    /// What went around the ring, where the round has one.
    mean: Option<Vec<f32>>,
}

impl Open {
    fn new(plan: RoundPlan) -> Self {
        Self {
            plan,
            gradient: Vec::new(),
            received: Vec::new(),
            mean: None,
        }
    }
}

/// What a job looks like when it has been opened.
pub(crate) struct Opened {
    pub(crate) parameters: usize,
    /// Values of what a node that joins takes: [`Worker::shared`].
    pub(crate) shared: usize,
    pub(crate) settled: Round,
    /// The report of a round that was on disk, but not settled, when the node stopped.
    pub(crate) held: Option<RoundReport>,
    pub(crate) consensus: Option<Held>,
    /// What was told of one sample before the node stopped, where the job promises something.
    pub(crate) epsilon: Option<f64>,
}

/// Where the checkpoint of a job is kept.
fn checkpoint_file(dir: &Path, job: JobId) -> PathBuf {
    dir.join(format!("{job}.checkpoint"))
}

/// Where the consensus model of a job is kept below a trainer's directory, once the node holds it: a
/// safetensors file.
pub fn consensus_file(dir: &Path, job: JobId) -> PathBuf {
    dir.join(format!("{job}.safetensors"))
}

impl Worker {
    /// At the start of a job, with the model with which all of its nodes begin.
    pub(crate) fn new(me: NodeId, job: JobId, spec: JobSpec, trainee: Box<dyn Trainee>, dir: &Path) -> Self {
        Self {
            me,
            job,
            methods: Methods::new(&spec, &trainee.flat()),
            spec,
            trainee,
            step: 0,
            settled: Round(0),
            open: None,
            checkpoint_file: checkpoint_file(dir, job),
            consensus_file: consensus_file(dir, job),
        }
    }

    /// Loads data, model and, if there is one, the checkpoint.
    pub(crate) fn open(
        view: &JobView,
        roster: &Roster,
        config: &TrainerConfig,
        stop: &CancellationToken,
    ) -> Result<(Self, Opened), WorkerError> {
        let trainee = trainee(view, roster, config, stop)?;
        let parameters = trainee.layout().parameters();
        let mut worker = Self::new(config.me, view.id, view.spec.clone(), trainee, &config.dir);
        let held = worker.restore(view)?;
        let consensus = worker.stored_consensus()?;
        let opened = Opened {
            parameters,
            shared: parameters * (1 + worker.methods.commons()),
            settled: worker.settled,
            held,
            consensus,
            epsilon: worker.trainee.epsilon(),
        };
        Ok((worker, opened))
    }

    /// The job it works on.
    pub(crate) fn job(&self) -> JobId {
        self.job
    }

    /// Goes on from the checkpoint, if there is one of this job and model.
    fn restore(&mut self, view: &JobView) -> Result<Option<RoundReport>, WorkerError> {
        let Some(checkpoint) = Checkpoint::load(&self.checkpoint_file)? else {
            return Ok(None);
        };
        if checkpoint.job != self.job || checkpoint.layout != self.trainee.layout().hash() {
            return Err(WorkerError::AnotherModel {
                file: self.checkpoint_file.clone(),
            });
        }
        self.trainee.write(&checkpoint.model)?;
        self.trainee.set_optimiser_state(&checkpoint.optimiser)?;
        self.step = checkpoint.step;
        self.settled = checkpoint.round;
        let kept = checkpoint.kept.into_iter();
        self.methods
            .restore(kept.map(|(name, vector)| (name, vector.into_owned())).collect())?;
        let held = checkpoint.held.filter(|held| held.round > self.settled);
        // Without its plan a round cannot be settled; then so many have passed that the node catches up from a peer.
        if let Some(held) = &held
            && let Some(plan) = view.record(held.round).map(|record| record.plan.clone())
        {
            let pending = checkpoint.pending.filter(|pending| pending.plan == plan.digest());
            self.open = Some(Open::new(plan));
            if let Some(pending) = pending
                && let Err(error) = self.replay(held.round, pending)
                && let Some(open) = &mut self.open
            {
                // As if nothing had been received: if it was merged, the node takes the model from a peer.
                warn!(%error, "the exchanges in the checkpoint cannot be used");
                open.received.clear();
            }
        }
        Ok(held.map(|mut held| {
            let open = self.open.as_ref().filter(|open| open.plan.round == held.round);
            let is_here = |partner: &NodeId| {
                open.is_some_and(|open| {
                    open.mean.is_some() || open.received.iter().any(|(node, _)| node == partner)
                })
            };
            held.received.retain(is_here);
            held
        }))
    }

    /// Brings the exchanges of the round in hand to where they were before a restart, from the same model.
    fn replay(&mut self, round: Round, pending: Pending) -> Result<(), WorkerError> {
        let open = self.open.as_ref().ok_or(WorkerError::NotInHand { round })?;
        if open.plan.kind == RoundKind::Reduced {
            let mut received = pending.received.into_iter();
            return match received.next() {
                Some((_, mean)) => self.keep_mean(round, floats(&mean)),
                None => Ok(()),
            };
        }
        let partners: Vec<NodeId> = open.plan.partners_of(self.me).collect();
        for partner in partners {
            self.offer(round, partner)?;
        }
        for (partner, received) in pending.received {
            self.accept(round, partner, &received)?;
        }
        Ok(())
    }

    fn stored_consensus(&self) -> Result<Option<Held>, WorkerError> {
        let flat = import_safetensors(self.trainee.layout(), &self.consensus_file)?;
        Ok(flat.map(|flat| Held {
            round: self.settled,
            accuracy: None,
            flat: Arc::new(flat),
        }))
    }

    /// Notes the model from which a round's work starts, and encodes it for those that this node serves.
    pub(crate) fn begin_serving(&mut self, plan: &RoundPlan) -> Result<Bytes, WorkerError> {
        let flat = self.trainee.flat();
        let mut message = Vec::new();
        quantise::encode(&flat, self.spec.values, &mut message);
        if let Some(collective) = self.methods.collective(plan) {
            collective.begin(plan, &flat);
        }
        Ok(message.into())
    }

    /// Goes on from the server's model, without a momentum of its own.
    pub(crate) fn follow(&mut self, started: &[u8]) -> Result<(), WorkerError> {
        let parameters = self.trainee.layout().parameters();
        let mut flat = Vec::new();
        quantise::decode(started, self.spec.values, parameters, &mut flat).map_err(MethodError::Decode)?;
        self.trainee.write(&flat)?;
        self.trainee.forget()?;
        Ok(())
    }

    /// Does the plan's local work, in as many steps as are this node's.
    pub(crate) fn train(&mut self, plan: &RoundPlan, steps: u32) -> Result<Trained, WorkerError> {
        let mut open = Open::new(plan.clone());
        if let Some(collective) = self.methods.collective(plan) {
            collective.begin(plan, &self.trainee.flat());
        }
        let is_idle = matches!(plan.kind, RoundKind::Served { server } if server == self.me)
            && !plan.alone.contains(&self.me);
        let trained = if is_idle || plan.local_steps == 0 {
            Trained::NOTHING
        } else if self.methods.works_on_gradient(plan) {
            let (trained, gradient) = self.trainee.gradient(&mut self.step)?;
            open.gradient = gradient;
            trained
        } else {
            self.trainee.train(&mut self.step, &own_plan(plan, steps))?
        };
        self.open = Some(open);
        Ok(trained)
    }

    /// What a partner is told in the round in hand, which must be `round`, and how many bytes it may tell at most.
    pub(crate) fn offer(&mut self, round: Round, partner: NodeId) -> Result<(Bytes, usize), WorkerError> {
        let not_in_hand = || WorkerError::NotInHand { round };
        let open = self.open.as_ref().filter(|open| open.plan.round == round);
        let plan = open.ok_or_else(not_in_hand)?.plan.clone();
        let values = self.spec.values;
        if let RoundKind::Served { server } = plan.kind {
            // Whoever is served has had the model before its steps.
            if server == self.me {
                let collective = self.methods.collective(&plan).ok_or_else(not_in_hand)?;
                let bytes_max = contribution::message_bytes(collective.length(&plan), values);
                return Ok((Bytes::new(), bytes_max));
            }
            return Ok((self.contribution(round)?, 0));
        }
        let mut message = Vec::new();
        let gossip = self.methods.gossip(&plan).ok_or_else(not_in_hand)?;
        gossip.offer(&plan, partner, &self.trainee.flat(), &mut message)?;
        Ok((message.into(), gossip.message_bytes_max(&plan)))
    }

    /// Takes what the partner told, if it can be merged.
    pub(crate) fn accept(
        &mut self,
        round: Round,
        partner: NodeId,
        message: &Bytes,
    ) -> Result<(), WorkerError> {
        let not_in_hand = || WorkerError::NotInHand { round };
        let open = self.open.as_mut().filter(|open| open.plan.round == round);
        let open = open.ok_or_else(not_in_hand)?;
        match open.plan.kind {
            RoundKind::Served { server } if server == self.me => {
                let collective = self.methods.collective(&open.plan).ok_or_else(not_in_hand)?;
                let length = collective.length(&open.plan);
                contribution::read(message, self.spec.values, length, &mut Vec::new())?;
            }
            // The server's word that it has what this node has learnt.
            RoundKind::Served { .. } => (),
            RoundKind::Sparse | RoundKind::Dense | RoundKind::Reduced => {
                let gossip = self.methods.gossip(&open.plan).ok_or_else(not_in_hand)?;
                gossip.accept(&open.plan, partner, message)?;
            }
        }
        open.received.push((partner, message.clone()));
        Ok(())
    }

    /// Replaces the contents of `vector` by what this node adds to a round's mean, and returns its weight.
    fn contribute(&mut self, open: &Open, vector: &mut Vec<f32>) -> Result<u64, WorkerError> {
        let round = open.plan.round;
        let collective = self.methods.collective(&open.plan);
        let collective = collective.ok_or(WorkerError::NotInHand { round })?;
        let done = Done {
            model: &self.trainee.flat(),
            gradient: &open.gradient,
            samples: self.trainee.samples(),
        };
        Ok(collective.contribute(&open.plan, done, vector)?)
    }

    /// What this node adds to the mean of the round in hand, as it travels.
    fn contribution(&mut self, round: Round) -> Result<Bytes, WorkerError> {
        let open = self.open.take_if(|open| open.plan.round == round);
        let open = open.ok_or(WorkerError::NotInHand { round })?;
        let (mut vector, mut message) = (Vec::new(), Vec::new());
        let weight = self.contribute(&open, &mut vector);
        self.open = Some(open);
        contribution::write(&vector, weight?, self.spec.values, &mut message);
        Ok(message.into())
    }

    /// This node's part of the mean that goes around in the round in hand, which must be `round`.
    pub(crate) fn ring(&mut self, round: Round, order: &[NodeId]) -> Result<Ring, WorkerError> {
        let place = order.iter().position(|node| *node == self.me);
        let place = place.ok_or(WorkerError::NotInHand { round })?;
        let open = self.open.take_if(|open| open.plan.round == round);
        let open = open.ok_or(WorkerError::NotInHand { round })?;
        let mut vector = Vec::new();
        let weight = self.contribute(&open, &mut vector);
        self.open = Some(open);
        Ok(Ring::new(vector, weight?, place, order.len(), self.spec.values))
    }

    /// Keeps the mean that went around, until the log says whether it counts.
    pub(crate) fn keep_mean(&mut self, round: Round, mean: Vec<f32>) -> Result<(), WorkerError> {
        let not_in_hand = || WorkerError::NotInHand { round };
        let open = self.open.as_mut().filter(|open| open.plan.round == round);
        let open = open.ok_or_else(not_in_hand)?;
        let collective = self.methods.collective(&open.plan).ok_or_else(not_in_hand)?;
        if mean.len() != collective.length(&open.plan) || !quantise::are_finite(&mean) {
            return Err(MethodError::Malformed {
                why: "the mean is of another length, or not finite",
            }
            .into());
        }
        open.mean = Some(mean);
        Ok(())
    }

    /// Writes everything that a restart needs to go on from here, if the schedule names this round.
    ///
    /// Returns whether what was received may be claimed: also without a checkpoint, since a node that loses
    /// it takes the current model from a peer.
    pub(crate) fn hold(&mut self, report: &RoundReport) -> Result<bool, WorkerError> {
        let every = u64::from(self.spec.checkpoint_every);
        if every == 0 || !report.round.0.is_multiple_of(every) {
            return Ok(true);
        }
        self.save(Some(report))?;
        Ok(true)
    }

    fn save(&mut self, held: Option<&RoundReport>) -> Result<(), WorkerError> {
        let open = self.open.as_ref().filter(|_| held.is_some());
        let pending = open.filter(|open| !open.received.is_empty() || open.mean.is_some());
        let pending = pending.map(|open| Pending {
            plan: open.plan.digest(),
            received: match &open.mean {
                Some(mean) => vec![(self.me, mean.iter().flat_map(|x| x.to_le_bytes()).collect())],
                None => open.received.clone(),
            },
        });
        let layout = self.trainee.layout().hash();
        let State { model, optimiser } = self.trainee.state()?;
        if !quantise::are_finite(&model) {
            return Err(WorkerError::Diverged);
        }
        let kept = self.methods.state().into_iter();
        let checkpoint = Checkpoint {
            job: self.job,
            layout,
            round: self.settled,
            step: self.step,
            model,
            optimiser,
            kept: kept.map(|(name, vector)| (name, Cow::Borrowed(vector))).collect(),
            held: held.cloned(),
            pending,
        };
        checkpoint.save(&self.checkpoint_file)?;
        Ok(())
    }

    /// Ends a round: merges what those partners told, or learns the mean that was made with them, and drops the rest.
    pub(crate) fn settle(&mut self, round: Round, merged: &[NodeId]) -> Result<(), WorkerError> {
        self.settled = round;
        let open = self.open.take_if(|open| open.plan.round <= round);
        let Some(mut open) = open.filter(|open| open.plan.round == round) else {
            return match merged {
                [] => Ok(()),
                _ => Err(WorkerError::NotInHand { round }),
            };
        };
        match open.plan.kind {
            RoundKind::Sparse | RoundKind::Dense => {
                let Some(gossip) = self.methods.gossip(&open.plan) else {
                    return Ok(());
                };
                let mut settled = Ok(());
                self.trainee
                    .edit(&mut |flat| settled = gossip.settle(&open.plan, merged, flat))?;
                Ok(settled?)
            }
            RoundKind::Reduced if merged.is_empty() && !open.plan.pairs.is_empty() => Ok(()),
            RoundKind::Reduced => {
                let mean = match open.mean.take() {
                    Some(mean) => mean,
                    // Alone, a node is its own mean.
                    None if open.plan.pairs.is_empty() => {
                        let mut own = Vec::new();
                        self.contribute(&open, &mut own)?;
                        own
                    }
                    None => return Err(WorkerError::NotInHand { round }),
                };
                self.learn(&open.plan, &mean)
            }
            RoundKind::Served { server } if server == self.me => self.serve(open, merged),
            RoundKind::Served { .. } => Ok(()),
        }
    }

    /// Learns the mean of what those whom this node served have learnt, in the order of their numbers.
    fn serve(&mut self, open: Open, merged: &[NodeId]) -> Result<(), WorkerError> {
        let values = self.spec.values;
        let told = open.received.iter().filter(|(node, _)| merged.contains(node));
        let mut messages: BTreeMap<NodeId, Bytes> = told.cloned().collect();
        if messages.len() < merged.len() {
            let round = open.plan.round;
            return Err(WorkerError::NotInHand { round });
        }
        let mut vector = Vec::new();
        if open.plan.alone.contains(&self.me) {
            let weight = self.contribute(&open, &mut vector)?;
            let mut message = Vec::new();
            // As all others' travel, so that what it learns does not depend on who serves.
            contribution::write(&vector, weight, values, &mut message);
            messages.insert(self.me, message.into());
        }
        let plan = open.plan;
        let collective = self.methods.collective(&plan);
        let length = collective.map_or(0, |method| method.length(&plan));
        let mut mean = contribution::Mean::default();
        for message in messages.values() {
            let weight = contribution::read(message, values, length, &mut vector)?;
            mean.add(&vector, weight);
        }
        match mean.into_mean() {
            Some(mean) => self.learn(&plan, &mean),
            None => Ok(()),
        }
    }

    fn learn(&mut self, plan: &RoundPlan, mean: &[f32]) -> Result<(), WorkerError> {
        let Some(collective) = self.methods.collective(plan) else {
            return Ok(());
        };
        let mut learnt = Ok(Learnt::Model);
        self.trainee
            .edit(&mut |flat| learnt = collective.settle(plan, mean, flat))?;
        if learnt? == Learnt::Gradient {
            self.trainee.descend(mean, learning_rate(plan))?;
        }
        Ok(())
    }

    /// The model as it is now.
    pub(crate) fn current(&self) -> Held {
        Held {
            round: self.settled,
            accuracy: None,
            flat: Arc::new(self.trainee.flat().into_owned()),
        }
    }

    /// What a peer that catches up takes: the model as it is now, and after it what all who take part have in common.
    pub(crate) fn shared(&self) -> Held {
        let mut flat = self.trainee.flat().into_owned();
        for vector in self.methods.common(&self.trainee.momentum()) {
            flat.extend(vector);
        }
        Held {
            round: self.settled,
            accuracy: None,
            flat: Arc::new(flat),
        }
    }

    /// The model as it is now, with its accuracy on the test set.
    pub(crate) fn snapshot(&mut self) -> Result<Held, WorkerError> {
        let accuracy = self.trainee.accuracy()?;
        Ok(Held {
            accuracy: Some(accuracy),
            ..self.current()
        })
    }

    /// The accuracy of another model on the test set; `other` is as it was afterwards, unless this fails.
    pub(crate) fn evaluate(&mut self, other: &mut [f32]) -> Result<Ppm, WorkerError> {
        let (given, expected) = (other.len(), self.trainee.layout().parameters());
        if given != expected {
            return Err(MethodError::Length { given, expected }.into());
        }
        let taken = self.trainee.edit(&mut |flat| flat.swap_with_slice(other));
        let accuracy = taken.and_then(|()| self.trainee.accuracy());
        self.trainee.edit(&mut |flat| flat.swap_with_slice(other))?;
        Ok(accuracy?)
    }

    /// Goes on from what a peer has [`shared`](Self::shared).
    pub(crate) fn replace(&mut self, shared: &[f32], round: Round) -> Result<(), WorkerError> {
        let parameters = self.trainee.layout().parameters();
        let mut vectors = shared.chunks(parameters.max(1)).map(<[f32]>::to_vec);
        let model = vectors.next().unwrap_or_default();
        self.trainee.write(&model)?;
        let momentum = self.methods.join(&self.spec, &model, vectors.collect())?;
        match momentum {
            Some(momentum) => self.trainee.set_optimiser_state(&momentum)?,
            // That of another model would push this one off its course.
            None => self.trainee.forget()?,
        }
        self.keep_own(round)
    }

    /// Goes on from this node's own model, as of a later round.
    pub(crate) fn keep_own(&mut self, round: Round) -> Result<(), WorkerError> {
        self.settled = self.settled.max(round);
        self.open = None;
        self.save(None)
    }

    /// Keeps the consensus model: as a file for its user, and as this node's own model. `sent` is what all nodes have sent
    /// in the job.
    pub(crate) fn keep_consensus(
        &mut self,
        model: Vec<f32>,
        accuracy: Option<Ppm>,
        sent: ByteSize,
    ) -> Result<Held, WorkerError> {
        self.trainee.write(&model)?;
        let accuracy = match accuracy {
            Some(accuracy) => accuracy,
            None => self.trainee.accuracy()?,
        };
        let made = Made {
            rounds: self.settled,
            sent,
            accuracy,
            epsilon: self.trainee.epsilon(),
        };
        let card = card(self.job, &self.spec, &made);
        export_safetensors(self.trainee.layout(), &model, card, &self.consensus_file)?;
        Ok(Held {
            round: self.settled,
            accuracy: Some(accuracy),
            flat: Arc::new(model),
        })
    }
}

/// What nobody else knows, new each time the job is opened: no noise is ever drawn twice.
#[expect(
    clippy::disallowed_methods,
    reason = "noise that follows from a seed that others know hides nothing"
)]
fn secret() -> [u64; 4] {
    rand::rng().random()
}

/// The length is a multiple of four, unless the file is damaged: then it is not as long as a mean.
fn floats(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.as_chunks::<4>().0.iter();
    chunks.map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

/// The job's model on this node: a built-in one with this node's data, or that of the node's own program.
fn trainee(
    view: &JobView,
    roster: &Roster,
    config: &TrainerConfig,
    stop: &CancellationToken,
) -> Result<Box<dyn Trainee>, WorkerError> {
    let spec = &view.spec;
    if let Some(model) = ExternalModel::named(&spec.model) {
        if spec.tuning.privacy.is_some() {
            return Err(WorkerError::NotPrivate);
        }
        let data = external_data(spec, roster, config)?;
        let share = data.share;
        let opening = Opening {
            seed: spec.seed,
            batch: spec.batch,
            momentum: f64::from(spec.tuning.momentum_micro) / 1e6,
            weight_decay: f64::from(spec.tuning.weight_decay_micro) / 1e6,
            data: DataSpec::whole(data.source).to_string(),
            part: share.map_or(1, |share| share.part),
            parts: share.map_or(1, |share| share.parts),
        };
        let command = config.trainer.as_deref();
        let child = Child::open(command, model, view.id, opening, &config.dir, stop);
        return Ok(Box::new(child.map_err(TraineeError::from)?));
    }
    let data_spec = data_spec(spec, roster, config)?;
    let part = data_spec.share.map_or(0, |share| share.part);
    let data = data::load(&data_spec)?;
    let backend = backend(
        &config.backend,
        &spec.model,
        data.shape,
        data.classes,
        spec.seed,
        &spec.tuning,
    )?;
    let privacy = spec.tuning.privacy.map(|privacy| {
        let file = config.dir.join(format!("{}.privacy", view.id));
        let ledger = Ledger::open(privacy, spec.batch, data.train.len(), file)?;
        Ok::<_, LedgerError>((PrivateSteps::new(privacy, spec.batch, secret()), ledger))
    });
    Ok(Box::new(BuiltIn {
        backend,
        private: privacy.transpose()?,
        data,
        batches: Batches::of_part(spec.seed, part, spec.batch),
    }))
}

/// What a program is told of the data, of which it takes what it likes.
fn external_data(spec: &JobSpec, roster: &Roster, config: &TrainerConfig) -> Result<DataSpec, WorkerError> {
    match &config.data {
        Some(own) => Ok(own.clone()),
        None => data_spec(spec, roster, config),
    }
}

/// This node's part of the job's data: its own `--data`, or an equal share by its place among the members.
fn data_spec(spec: &JobSpec, roster: &Roster, config: &TrainerConfig) -> Result<DataSpec, WorkerError> {
    let wanted: DataSpec = spec.data.parse()?;
    if let Some(own) = &config.data {
        return if discriminant(&own.source) == discriminant(&wanted.source) {
            Ok(own.clone())
        } else {
            Err(WorkerError::AnotherData {
                wanted: spec.data.clone(),
                own: own.to_string(),
            })
        };
    }
    if wanted.share.is_some() {
        return Ok(wanted);
    }
    let place = roster
        .members
        .keys()
        .filter(|member| **member < config.me)
        .count();
    Ok(DataSpec {
        source: wanted.source,
        share: Some(Share::of_place(spec.seed, place, roster.members.len())),
    })
}

/// Why this node cannot do its part of a job, or of one round.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    #[error("no job is open")]
    NoJob,
    #[error("the job's `data` cannot be read")]
    DataSpec(#[from] ParseDataSpecError),
    #[error("the job trains on `{wanted}`, but this node was started with `--data {own}`")]
    AnotherData { wanted: String, own: String },
    #[error("the data cannot be loaded")]
    Data(#[from] DataError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Trainee(#[from] TraineeError),
    #[error("the checkpoint cannot be used")]
    Load(#[from] LoadError),
    #[error("the checkpoint {} is of another job or model; move it away and start the node again", file.display())]
    AnotherModel { file: PathBuf },
    #[error("the checkpoint cannot be written")]
    Save(#[from] SaveError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(
        "`dp_noise` needs gradients of single samples, and a trainer of `external` models tells parameters only; it may add noise itself"
    )]
    NotPrivate,
    #[error("the consensus model cannot be kept")]
    Export(#[from] ExportError),
    #[error("the consensus model on disk cannot be used")]
    Import(#[from] ImportError),
    #[error("the model has values that are not finite: training diverged; the checkpoint before is intact")]
    Diverged,
    #[error("round {round} is not in hand")]
    NotInHand { round: Round },
    #[error("the round cannot be carried through")]
    Method(#[from] MethodError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobfile::defaults;
    use crate::model::InputShape;
    use lapwing_base::Algorithm;

    fn worker(dir: &Path) -> Worker {
        let spec = defaults(Algorithm::Default);
        let (shape, source) = (InputShape::image(1, 8, 8), "digits");
        let data = data::load(&source.parse().unwrap()).unwrap();
        let backend = backend("plain", "mlp", shape, data.classes, 1, &spec.tuning).unwrap();
        let trainee = BuiltIn {
            backend,
            data,
            batches: Batches::of_part(1, 0, spec.batch),
            private: None,
        };
        Worker::new(NodeId(1), JobId(1), spec, Box::new(trainee), dir)
    }

    #[test]
    fn another_model_is_evaluated_and_both_are_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let mut worker = worker(folder.path());
        let own = worker.current().flat;
        let other: Vec<f32> = own.iter().map(|value| -value).collect();
        let mut lent = other.clone();
        let accuracy = worker.evaluate(&mut lent).unwrap();
        assert_eq!((&lent, &worker.current().flat), (&other, &own));
        assert_eq!(worker.evaluate(&mut lent).unwrap(), accuracy);
        lent[3] = f32::NAN;
        assert!(worker.evaluate(&mut lent).is_err());
        assert!(worker.evaluate(&mut lent[..7]).is_err());
        assert_eq!(worker.current().flat, own);
    }

    #[test]
    fn a_model_that_is_not_finite_does_not_replace_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut worker = worker(folder.path());
        worker.keep_own(Round(1)).unwrap();
        let kept = std::fs::read(&worker.checkpoint_file).unwrap();
        assert!(worker.trainee.edit(&mut |flat| flat[0] = f32::INFINITY).is_err());
        assert!(matches!(worker.keep_own(Round(2)), Err(WorkerError::Diverged)));
        assert_eq!(std::fs::read(&worker.checkpoint_file).unwrap(), kept);
    }

    #[test]
    fn no_noise_is_drawn_twice() {
        assert_ne!(secret(), secret());
    }
}
