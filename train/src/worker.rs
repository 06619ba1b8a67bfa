//! What one node computes for one job: local steps, the values it offers, merging, evaluation, checkpoints.
//!
//! Synchronous; runs on the training thread (`compute.rs`). It knows no peer and no log: what to do, and
//! whether a merge counts, comes from the driver.

use crate::backend::{Backend, BackendError, backend};
use crate::checkpoint::{Checkpoint, LoadError, Pending, SaveError};
use crate::data::{self, Batches, DataError, DataSpec, Dataset, ParseDataSpecError, Share};
use crate::driver::TrainerConfig;
use crate::mask::Mask;
use crate::merge::{self, MergeError};
use crate::model_file::{ExportError, ImportError, export_safetensors, import_safetensors};
use crate::models::Held;
use crate::quantise::{self, DecodeError};
use crate::steps::{Trained, take_steps};
use lapwing_base::{JobId, JobSpec, JobView, NodeId, Ppm, Roster, Round, RoundPlan, RoundReport, Values};
use std::collections::HashMap;
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The state of one job on this node.
pub(crate) struct Worker {
    job: JobId,
    spec: JobSpec,
    backend: Box<dyn Backend>,
    data: Dataset,
    batches: Batches,
    /// Local steps taken since the job began.
    step: u64,
    /// Every round up to this one is merged or dropped.
    settled: Round,
    /// The exchange of the round in hand.
    exchange: Option<Exchange>,
    checkpoint_file: PathBuf,
    consensus_file: PathBuf,
}

/// What was offered to the partner and, once it is here, what came back.
struct Exchange {
    round: Round,
    mask: Mask,
    /// As the partner decodes it.
    sent: Vec<f32>,
    received: Option<(NodeId, [u8; 32], Vec<f32>)>,
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
        let mut worker = Self {
            job: view.id,
            batches: Batches::of_part(spec.seed, part, spec.batch),
            spec,
            backend,
            data,
            step: 0,
            settled: Round(0),
            exchange: None,
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
        if let Some(pending) = checkpoint.pending {
            // Without its plan the mask cannot be derived; then so many rounds have passed that the node
            // catches up from a peer.
            let plan = view.record(pending.round).map(|record| &record.plan);
            if let Some(plan) = plan.filter(|plan| plan.digest() == pending.plan) {
                self.exchange = Some(Exchange {
                    round: pending.round,
                    mask: self.mask(plan),
                    sent: pending.sent,
                    received: Some((pending.partner, pending.plan, pending.received)),
                });
            }
        }
        let held = checkpoint.held.filter(|held| held.round > self.settled);
        Ok(held.map(|mut held| {
            held.received &= self
                .exchange
                .as_ref()
                .is_some_and(|exchange| exchange.round == held.round);
            held
        }))
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
        let trained = take_steps(
            &mut *self.backend,
            &mut self.batches,
            (&self.data.train).into(),
            &mut self.step,
            plan,
        )?;
        Ok(trained)
    }

    /// Encodes the values of the round's mask; returns them with their number and encoding.
    pub(crate) fn offer(&mut self, plan: &RoundPlan) -> Result<(Vec<u8>, usize, Values), WorkerError> {
        let mask = self.mask(plan);
        let (mut flat, mut values) = (Vec::new(), Vec::new());
        self.backend.read(&mut flat);
        mask.gather(&flat, &mut values);
        let mut encoded = Vec::with_capacity(quantise::encoded_len(values.len(), self.spec.values));
        quantise::encode(&values, self.spec.values, &mut encoded);
        // Merging is against what the partner sees, so that the pair's mean stays what it was.
        let mut sent = values;
        quantise::decode(&encoded, self.spec.values, mask.len(), &mut sent)?;
        let count = mask.len();
        self.exchange = Some(Exchange {
            round: plan.round,
            mask,
            sent,
            received: None,
        });
        Ok((encoded, count, self.spec.values))
    }

    /// Takes the partner's values, if they can be merged.
    pub(crate) fn accept(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        encoded: &[u8],
    ) -> Result<(), WorkerError> {
        let exchange = self
            .exchange
            .as_mut()
            .filter(|exchange| exchange.round == plan.round)
            .ok_or(WorkerError::NotOffered { round: plan.round })?;
        let mut received = Vec::new();
        quantise::decode(encoded, self.spec.values, exchange.mask.len(), &mut received)?;
        merge::check(&exchange.mask, &exchange.sent, &received)?;
        exchange.received = Some((partner, plan.digest(), received));
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
        let pending = self
            .exchange
            .as_ref()
            .filter(|_| held.is_some())
            .and_then(|exchange| {
                let (partner, plan, received) = exchange.received.clone()?;
                Some(Pending {
                    round: exchange.round,
                    partner,
                    plan,
                    sent: exchange.sent.clone(),
                    received,
                })
            });
        let checkpoint = Checkpoint {
            job: self.job,
            layout: self.backend.layout().hash(),
            round: self.settled,
            step: self.step,
            model,
            optimiser: self.backend.optimiser_state(),
            held: held.cloned(),
            pending,
        };
        checkpoint.save(&self.checkpoint_file)?;
        Ok(())
    }

    /// Ends a round: merges what was received, or drops it.
    pub(crate) fn settle(&mut self, round: Round, merge: bool) -> Result<(), WorkerError> {
        self.settled = round;
        let Some(exchange) = self.exchange.take().filter(|exchange| exchange.round == round) else {
            return Ok(());
        };
        if let (true, Some((_, _, received))) = (merge, exchange.received) {
            let mut flat = Vec::new();
            self.backend.read(&mut flat);
            merge::merge(&mut flat, &exchange.mask, &exchange.sent, &received)?;
            self.backend.write(&flat)?;
        }
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
        self.keep_own(round)
    }

    /// Goes on from this node's own model, as of a later round.
    pub(crate) fn keep_own(&mut self, round: Round) -> Result<(), WorkerError> {
        self.settled = self.settled.max(round);
        self.exchange = None;
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

    fn mask(&self, plan: &RoundPlan) -> Mask {
        Mask::of(
            self.spec.seed,
            self.spec.algorithm,
            plan,
            self.backend.layout().parameters(),
        )
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
    #[error("nothing was offered in round {round}")]
    NotOffered { round: Round },
    #[error("the values cannot be decoded")]
    Decode(#[from] DecodeError),
    #[error("the values cannot be merged")]
    Merge(#[from] MergeError),
}
