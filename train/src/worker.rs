//! What one node computes for one job: local steps, the values it offers, merging, evaluation, checkpoints.
//!
//! Synchronous; runs on the training thread (`compute.rs`). It knows no peer and no log: what to do, and
//! whether a merge counts, comes from the driver.

use crate::backend::{Backend, BackendError, backend};
use crate::checkpoint::{Checkpoint, LoadError, Pending, SaveError};
use crate::data::{self, Batches, DataError, DataSpec, Dataset, ParseDataSpecError, Share};
use crate::driver::TrainerConfig;
use crate::method::{Averaging, Gossip, Method, MethodError, method};
use crate::model_file::{ExportError, ImportError, export_safetensors, import_safetensors};
use crate::models::Held;
use crate::steps::{Trained, take_steps};
use bytes::Bytes;
use lapwing_base::{JobId, JobSpec, JobView, NodeId, Ppm, Roster, Round, RoundKind, RoundPlan, RoundReport};
use std::collections::HashMap;
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::warn;

/// The state of one job on this node.
pub(crate) struct Worker {
    me: NodeId,
    job: JobId,
    spec: JobSpec,
    backend: Box<dyn Backend>,
    data: Dataset,
    batches: Batches,
    /// Local steps taken since the job began.
    step: u64,
    /// Every round up to this one is merged or dropped.
    settled: Round,
    method: Method,
    /// What dense rounds do, whichever the algorithm.
    averaging: Averaging,
    /// The round in hand.
    open: Option<Open>,
    checkpoint_file: PathBuf,
    consensus_file: PathBuf,
}

/// A round whose local steps are taken and that is not settled.
struct Open {
    plan: RoundPlan,
    /// What partners told, of those that have.
    received: Vec<(NodeId, Bytes)>,
}

/// What a job looks like when it has been opened.
pub(crate) struct Opened {
    pub(crate) parameters: usize,
    pub(crate) settled: Round,
    /// The report of a round that was on disk, but not settled, when the node stopped.
    pub(crate) held: Option<RoundReport>,
    pub(crate) consensus: Option<Held>,
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
    /// Loads data, model and, if there is one, the checkpoint.
    pub(crate) fn open(
        view: &JobView,
        roster: &Roster,
        config: &TrainerConfig,
    ) -> Result<(Self, Opened), WorkerError> {
        let spec = view.spec.clone();
        let data_spec = data_spec(&spec, roster, config)?;
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
        let parameters = backend.layout().parameters();
        // All nodes of a job begin with the same one.
        let mut initial = Vec::new();
        backend.read(&mut initial);
        let mut worker = Self {
            me: config.me,
            job: view.id,
            batches: Batches::of_part(spec.seed, part, spec.batch),
            method: method(&spec, &initial),
            averaging: Averaging::new(&spec, parameters),
            spec,
            backend,
            data,
            step: 0,
            settled: Round(0),
            open: None,
            checkpoint_file: checkpoint_file(&config.dir, view.id),
            consensus_file: consensus_file(&config.dir, view.id),
        };
        let held = worker.restore(view)?;
        let consensus = worker.stored_consensus()?;
        let opened = Opened {
            parameters,
            settled: worker.settled,
            held,
            consensus,
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
        if checkpoint.job != self.job || checkpoint.layout != self.backend.layout().hash() {
            return Err(WorkerError::AnotherModel {
                file: self.checkpoint_file.clone(),
            });
        }
        self.backend.write(&checkpoint.model)?;
        self.backend.set_optimiser_state(&checkpoint.optimiser)?;
        self.step = checkpoint.step;
        self.settled = checkpoint.round;
        self.restore_kept(checkpoint.kept)?;
        let held = checkpoint.held.filter(|held| held.round > self.settled);
        // Without its plan a round cannot be settled; then so many have passed that the node catches up from a peer.
        if let Some(held) = &held
            && let Some(plan) = view.record(held.round).map(|record| record.plan.clone())
        {
            let pending = checkpoint.pending.filter(|pending| pending.plan == plan.digest());
            self.open = Some(Open {
                plan,
                received: Vec::new(),
            });
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
            let open = self.open.iter().filter(|open| open.plan.round == held.round);
            let here: Vec<NodeId> = open
                .flat_map(|open| &open.received)
                .map(|(node, _)| *node)
                .collect();
            held.received.retain(|node| here.contains(node));
            held
        }))
    }

    /// Brings the exchanges of the round in hand to where they were before a restart, from the same model.
    fn replay(&mut self, round: Round, pending: Pending) -> Result<(), WorkerError> {
        let open = self.open.as_ref().ok_or(WorkerError::NotInHand { round })?;
        let partners: Vec<NodeId> = open.plan.partners_of(self.me).collect();
        for partner in partners {
            self.offer(round, partner)?;
        }
        for (partner, received) in pending.received {
            self.accept(round, partner, &Bytes::from(received))?;
        }
        Ok(())
    }

    /// What the algorithm keeps beside the model, by names that tell dense rounds from the others.
    fn kept(&self) -> Vec<(String, Vec<f32>)> {
        let of_method = match &self.method {
            Method::Gossip(method) => method.state(),
            Method::Collective(method) => method.state(),
            Method::Local => Vec::new(),
        };
        let named = |prefix: &'static str| {
            move |(name, vector): (String, &[f32])| (format!("{prefix}{name}"), vector.to_vec())
        };
        let of_method = of_method.into_iter().map(named(OF_METHOD));
        of_method
            .chain(self.averaging.state().into_iter().map(named(OF_DENSE)))
            .collect()
    }

    fn restore_kept(&mut self, kept: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let (mut of_method, mut of_dense) = (Vec::new(), Vec::new());
        for (name, vector) in kept {
            if let Some(name) = name.strip_prefix(OF_METHOD) {
                of_method.push((name.to_owned(), vector));
            } else if let Some(name) = name.strip_prefix(OF_DENSE) {
                of_dense.push((name.to_owned(), vector));
            }
        }
        match &mut self.method {
            Method::Gossip(method) => method.restore(of_method)?,
            Method::Collective(method) => method.restore(of_method)?,
            Method::Local => (),
        }
        self.averaging.restore(of_dense)
    }

    fn stored_consensus(&self) -> Result<Option<Held>, WorkerError> {
        let flat = import_safetensors(self.backend.layout(), &self.consensus_file)?;
        Ok(flat.map(|flat| Held {
            round: self.settled,
            accuracy: None,
            flat: Arc::new(flat),
        }))
    }

    /// Takes the plan's local steps.
    pub(crate) fn train(&mut self, plan: &RoundPlan) -> Result<Trained, WorkerError> {
        self.open = Some(Open {
            plan: plan.clone(),
            received: Vec::new(),
        });
        let trained = take_steps(
            &mut *self.backend,
            &mut self.batches,
            (&self.data.train).into(),
            &mut self.step,
            plan,
        )?;
        Ok(trained)
    }

    /// What a partner is told in the round in hand, which must be `round`, and how many bytes it may tell at most.
    pub(crate) fn offer(&mut self, round: Round, partner: NodeId) -> Result<(Bytes, usize), WorkerError> {
        let not_in_hand = || WorkerError::NotInHand { round };
        let open = self.open.as_ref().filter(|open| open.plan.round == round);
        let open = open.ok_or_else(not_in_hand)?;
        let (mut flat, mut message) = (Vec::new(), Vec::new());
        self.backend.read(&mut flat);
        let gossip = gossip(&mut self.method, &mut self.averaging, &open.plan).ok_or_else(not_in_hand)?;
        gossip.offer(&open.plan, partner, &flat, &mut message)?;
        Ok((message.into(), gossip.message_bytes_max(&open.plan)))
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
        let gossip = gossip(&mut self.method, &mut self.averaging, &open.plan).ok_or_else(not_in_hand)?;
        gossip.accept(&open.plan, partner, message)?;
        open.received.push((partner, message.clone()));
        Ok(())
    }

    /// Writes everything that a restart needs to go on from here, if the schedule names this round.
    ///
    /// Returns whether what was received may be claimed: also without a checkpoint, since a node that loses
    /// it takes the current model from a peer.
    pub(crate) fn hold(&self, report: &RoundReport) -> Result<bool, WorkerError> {
        let every = u64::from(self.spec.checkpoint_every);
        if every == 0 || !report.round.0.is_multiple_of(every) {
            return Ok(true);
        }
        self.save(Some(report))?;
        Ok(true)
    }

    fn save(&self, held: Option<&RoundReport>) -> Result<(), WorkerError> {
        let mut model = Vec::new();
        self.backend.read(&mut model);
        let open = self.open.as_ref().filter(|_| held.is_some());
        let pending = open.filter(|open| !open.received.is_empty()).map(|open| Pending {
            plan: open.plan.digest(),
            received: open
                .received
                .iter()
                .map(|(partner, message)| (*partner, message.to_vec()))
                .collect(),
        });
        let checkpoint = Checkpoint {
            job: self.job,
            layout: self.backend.layout().hash(),
            round: self.settled,
            step: self.step,
            model,
            optimiser: self.backend.optimiser_state(),
            kept: self.kept(),
            held: held.cloned(),
            pending,
        };
        checkpoint.save(&self.checkpoint_file)?;
        Ok(())
    }

    /// Ends a round: merges what those partners told, and drops the rest.
    pub(crate) fn settle(&mut self, round: Round, merged: &[NodeId]) -> Result<(), WorkerError> {
        self.settled = round;
        let open = self.open.take_if(|open| open.plan.round <= round);
        let Some(Open { plan, .. }) = open.filter(|open| open.plan.round == round) else {
            return match merged {
                [] => Ok(()),
                _ => Err(WorkerError::NotInHand { round }),
            };
        };
        let Some(gossip) = gossip(&mut self.method, &mut self.averaging, &plan) else {
            return Ok(());
        };
        let mut flat = Vec::new();
        self.backend.read(&mut flat);
        gossip.settle(&plan, merged, &mut flat)?;
        self.backend.write(&flat)?;
        Ok(())
    }

    /// The model as it is now, for a peer that catches up.
    pub(crate) fn current(&self) -> Held {
        let mut flat = Vec::new();
        self.backend.read(&mut flat);
        Held {
            round: self.settled,
            accuracy: None,
            flat: Arc::new(flat),
        }
    }

    /// The model as it is now, with its accuracy on the test set.
    pub(crate) fn snapshot(&mut self) -> Result<Held, WorkerError> {
        let accuracy = self.backend.evaluate(&self.data.test)?.accuracy();
        Ok(Held {
            accuracy: Some(accuracy),
            ..self.current()
        })
    }

    /// The accuracy of another model on the test set.
    pub(crate) fn evaluate(&mut self, other: &[f32]) -> Result<Ppm, WorkerError> {
        let mut own = Vec::new();
        self.backend.read(&mut own);
        self.backend.write(other)?;
        let score = self.backend.evaluate(&self.data.test);
        self.backend.write(&own)?;
        Ok(score?.accuracy())
    }

    /// Goes on from a peer's model.
    pub(crate) fn replace(&mut self, model: &[f32], round: Round) -> Result<(), WorkerError> {
        self.backend.write(model)?;
        // The momentum of another model would push this one off its course.
        let parameters = self.backend.layout().parameters();
        self.backend.set_optimiser_state(&vec![0.0; parameters])?;
        self.method = method(&self.spec, model);
        self.averaging = Averaging::new(&self.spec, parameters);
        self.keep_own(round)
    }

    /// Goes on from this node's own model, as of a later round.
    pub(crate) fn keep_own(&mut self, round: Round) -> Result<(), WorkerError> {
        self.settled = self.settled.max(round);
        self.open = None;
        self.save(None)
    }

    /// Keeps the consensus model: as a file for its user, and as this node's own model.
    pub(crate) fn keep_consensus(
        &mut self,
        model: Vec<f32>,
        accuracy: Option<Ppm>,
    ) -> Result<Held, WorkerError> {
        self.backend.write(&model)?;
        let accuracy = match accuracy {
            Some(accuracy) => accuracy,
            None => self.backend.evaluate(&self.data.test)?.accuracy(),
        };
        let metadata = HashMap::from([
            ("job".to_owned(), self.job.to_string()),
            ("model".to_owned(), self.spec.model.clone()),
            ("data".to_owned(), self.spec.data.clone()),
            ("rounds".to_owned(), self.spec.rounds.to_string()),
            ("accuracy".to_owned(), accuracy.as_f64().to_string()),
        ]);
        export_safetensors(self.backend.layout(), &model, metadata, &self.consensus_file)?;
        Ok(Held {
            round: self.settled,
            accuracy: Some(accuracy),
            flat: Arc::new(model),
        })
    }
}

/// What tells partners in a round, if the round is one of telling partners.
fn gossip<'a>(
    method: &'a mut Method,
    averaging: &'a mut Averaging,
    plan: &RoundPlan,
) -> Option<&'a mut dyn Gossip> {
    match (method, plan.kind) {
        (_, RoundKind::Dense) => Some(averaging),
        (Method::Gossip(method), RoundKind::Sparse) => Some(&mut **method),
        _ => None,
    }
}

/// What precedes the names of what is kept.
const OF_METHOD: &str = "method/";
const OF_DENSE: &str = "dense/";

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
    #[error("the checkpoint cannot be used")]
    Load(#[from] LoadError),
    #[error("the checkpoint {} is of another job or model; move it away and start the node again", file.display())]
    AnotherModel { file: PathBuf },
    #[error("the checkpoint cannot be written")]
    Save(#[from] SaveError),
    #[error("the consensus model cannot be kept")]
    Export(#[from] ExportError),
    #[error("the consensus model on disk cannot be used")]
    Import(#[from] ImportError),
    #[error("round {round} is not in hand")]
    NotInHand { round: Round },
    #[error("the round cannot be carried through")]
    Method(#[from] MethodError),
}
