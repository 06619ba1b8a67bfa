//! A training job: what was asked for, and how far the log has brought it.

use crate::{
    Algorithm, ByteSize, Garbage, JobId, NodeId, Pair, Planner, Ppm, Privacy, Refusal, Round, RoundKind,
    RoundOutcome, RoundPlan, RoundReport, Trust, Tuning, Values,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// What a job file asks for, checked and free of floats. Committed once, never changed.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(from = "SpecRecord", into = "SpecRecord")]
pub struct JobSpec {
    /// A built-in model, such as `mlp`.
    pub model: String,
    /// The data set, such as `digits`; a node's own `--data` names its part.
    pub data: String,
    /// How nodes share what they learn.
    pub algorithm: Algorithm,
    /// All rounds, the dense ones included.
    pub rounds: u32,
    /// Optimiser steps a round.
    pub local_steps: u32,
    /// One coordinate in this many is exchanged in a sparse round.
    pub compression: u32,
    /// How values travel.
    pub values: Values,
    /// Learning rate in millionths.
    pub lr_micro: u32,
    /// Samples a step.
    pub batch: u32,
    /// Everything random in the job follows from this.
    pub seed: u64,
    /// The last rounds of the job that exchange everything and do not train; less than [`ROUNDS_KEPT`].
    pub final_dense_rounds: u32,
    /// A checkpoint each this many rounds.
    pub checkpoint_every: u32,
    /// The averaged model is evaluated each this many rounds, and at the end; 0 is only at the end.
    pub evaluate_every: u32,
    /// Ends the sparse rounds early once the averaged accuracy is at least this.
    pub stop: Option<Ppm>,
    /// How the pairs of a sparse round are chosen.
    pub planner: Planner,
    /// What the algorithm goes by beyond the above.
    pub tuning: Tuning,
}

/// A [`JobSpec`] as it is written. Postcard names no fields, so a log tells its older jobs apart by their end alone.
#[derive(Serialize, Deserialize)]
struct SpecRecord {
    model: String,
    data: String,
    algorithm: Algorithm,
    rounds: u32,
    local_steps: u32,
    compression: u32,
    values: Values,
    lr_micro: u32,
    batch: u32,
    seed: u64,
    final_dense_rounds: u32,
    checkpoint_every: u32,
    evaluate_every: u32,
    end: SpecEnd,
}

/// What a written job ends with. The first two are, byte for byte, the `Option` that was all of it before a job had
/// a planner, and still are for a job that leaves planner and tuning to its algorithm.
#[derive(Serialize, Deserialize)]
enum SpecEnd {
    Open,
    Stop(Ppm),
    Planned {
        stop: Option<Ppm>,
        planner: Planner,
    },
    Tuned {
        stop: Option<Ppm>,
        planner: Planner,
        tuning: Tuning,
    },
    Private {
        stop: Option<Ppm>,
        planner: Planner,
        tuning: Tuning,
        privacy: Privacy,
    },
    Slow {
        stop: Option<Ppm>,
        planner: Planner,
        tuning: Tuning,
        privacy: Option<Privacy>,
        slow_momentum_micro: u32,
    },
}

/// What a job leaves to its algorithm that was written before there was a slow momentum.
const fn first_tuning(algorithm: Algorithm) -> Tuning {
    Tuning {
        slow_momentum_micro: 0,
        ..algorithm.tuning()
    }
}

impl From<JobSpec> for SpecRecord {
    fn from(spec: JobSpec) -> Self {
        let JobSpec {
            stop,
            planner,
            tuning,
            ..
        } = spec;
        let end = match (stop, tuning.privacy) {
            (_, privacy) if tuning.slow_momentum_micro > 0 => SpecEnd::Slow {
                stop,
                planner,
                tuning,
                privacy,
                slow_momentum_micro: tuning.slow_momentum_micro,
            },
            (_, Some(privacy)) => SpecEnd::Private {
                stop,
                planner,
                tuning,
                privacy,
            },
            _ if tuning != first_tuning(spec.algorithm) => SpecEnd::Tuned {
                stop,
                planner,
                tuning,
            },
            _ if planner != spec.algorithm.planner() => SpecEnd::Planned { stop, planner },
            (Some(stop), None) => SpecEnd::Stop(stop),
            (None, None) => SpecEnd::Open,
        };
        Self {
            model: spec.model,
            data: spec.data,
            algorithm: spec.algorithm,
            rounds: spec.rounds,
            local_steps: spec.local_steps,
            compression: spec.compression,
            values: spec.values,
            lr_micro: spec.lr_micro,
            batch: spec.batch,
            seed: spec.seed,
            final_dense_rounds: spec.final_dense_rounds,
            checkpoint_every: spec.checkpoint_every,
            evaluate_every: spec.evaluate_every,
            end,
        }
    }
}

impl From<SpecRecord> for JobSpec {
    fn from(record: SpecRecord) -> Self {
        let (planner, tuning) = (record.algorithm.planner(), first_tuning(record.algorithm));
        let (stop, planner, tuning) = match record.end {
            SpecEnd::Open => (None, planner, tuning),
            SpecEnd::Stop(stop) => (Some(stop), planner, tuning),
            SpecEnd::Planned { stop, planner } => (stop, planner, tuning),
            SpecEnd::Tuned {
                stop,
                planner,
                tuning,
            } => (stop, planner, tuning),
            SpecEnd::Private {
                stop,
                planner,
                mut tuning,
                privacy,
            } => {
                tuning.privacy = Some(privacy);
                (stop, planner, tuning)
            }
            SpecEnd::Slow {
                stop,
                planner,
                mut tuning,
                privacy,
                slow_momentum_micro,
            } => {
                (tuning.privacy, tuning.slow_momentum_micro) = (privacy, slow_momentum_micro);
                (stop, planner, tuning)
            }
        };
        Self {
            model: record.model,
            data: record.data,
            algorithm: record.algorithm,
            rounds: record.rounds,
            local_steps: record.local_steps,
            compression: record.compression,
            values: record.values,
            lr_micro: record.lr_micro,
            batch: record.batch,
            seed: record.seed,
            final_dense_rounds: record.final_dense_rounds,
            checkpoint_every: record.checkpoint_every,
            evaluate_every: record.evaluate_every,
            stop,
            planner,
            tuning,
        }
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobPhase {
    /// Rounds are planned.
    Running,
    /// The last round is closed; the consensus model is being made and handed out.
    Finishing,
    /// Every member that was reachable holds the consensus model.
    Finished,
    /// Stopped by a person before its end.
    Stopped,
}

impl JobPhase {
    /// Whether anything is left to do.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Stopped)
    }
}

impl fmt::Display for JobPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Finishing => "finishing",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
        })
    }
}

/// A planned round and, once it is closed, how it ended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The plan.
    pub plan: RoundPlan,
    /// `None` while the round is open; only the last record may be open.
    pub outcome: Option<RoundOutcome>,
}

/// One evaluation of the averaged model.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After which round.
    pub round: Round,
    /// Accuracy of the averaged model on the test set.
    pub averaged_accuracy: Ppm,
    /// Accuracy of each member's own model, for those that were averaged, by number.
    pub local_accuracies: Vec<(NodeId, Ppm)>,
    /// `Model` payload that the evaluation moved; counted apart from the rounds' exchanges.
    pub transferred: ByteSize,
}

impl Evaluation {
    /// Mean of the single models' accuracies; zero when there is none.
    pub fn local_accuracy(&self) -> Ppm {
        let sum: u64 = self
            .local_accuracies
            .iter()
            .map(|(_, accuracy)| u64::from(accuracy.0))
            .sum();
        let mean = sum.checked_div(self.local_accuracies.len() as u64).unwrap_or(0);
        // A mean of `u32`s is a `u32`.
        Ppm(u32::try_from(mean).unwrap_or(u32::MAX))
    }
}

/// What a node tells the leader, again and again until the log shows that it arrived.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// Its part of a round is done.
    Round(RoundReport),
    /// It has averaged and evaluated the models of a round, as the log had asked it to.
    Evaluation {
        /// The job.
        job: JobId,
        /// What came out.
        evaluation: Evaluation,
        /// BLAKE3 of the averaged model's flat parameters, little endian.
        hash: [u8; 32],
        /// Number of parameters.
        parameters: u64,
    },
    /// It holds the consensus model of a job.
    Holding {
        /// The job.
        job: JobId,
        /// The holder.
        node: NodeId,
        /// The model's hash.
        hash: [u8; 32],
    },
    /// What it refused to merge in a round: beside its report of that round, which is the same for those who refused
    /// nothing as it always was.
    Refused {
        /// The job.
        job: JobId,
        /// The round.
        round: Round,
        /// Who refused.
        node: NodeId,
        /// Whose values, and why.
        partners: Vec<(NodeId, Garbage)>,
    },
}

/// The consensus model of a finished job.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// BLAKE3 of the flat parameters, little endian.
    pub hash: [u8; 32],
    /// Number of parameters.
    pub parameters: u64,
    /// Who has said that it holds the model, sorted.
    pub holders: Vec<NodeId>,
}

/// A job as the log has brought it so far.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(from = "JobRecord", into = "JobRecord")]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// How far it is.
    pub phase: JobPhase,
    /// The last [`ROUNDS_KEPT`] rounds, oldest first.
    pub rounds: VecDeque<RoundRecord>,
    /// When each pair last met, by plan.
    pub last_matched: BTreeMap<Pair, Round>,
    /// When each member was last left without a partner.
    pub last_alone: BTreeMap<NodeId, Round>,
    /// The evaluation that is under way: after which round, and by whom.
    pub evaluating: Option<(Round, NodeId)>,
    /// Evaluations so far, oldest first; the last [`ROUNDS_KEPT`].
    pub evaluations: VecDeque<Evaluation>,
    /// The consensus model, from the end of the last round on.
    pub manifest: Option<Manifest>,
    /// Whose values partners refused, and who is left out of plans for it.
    pub trust: Trust,
    /// What all nodes together have sent in the closed rounds.
    pub sent: ByteSize,
    /// Members that take fewer local steps than plans say, since they are slow, and how many.
    pub paces: BTreeMap<NodeId, u32>,
}

/// A [`JobView`] as it is written; as with a [`SpecRecord`], only its end tells an older one.
#[derive(Serialize, Deserialize)]
struct JobRecord {
    id: JobId,
    spec: JobSpec,
    phase: JobPhase,
    rounds: VecDeque<RoundRecord>,
    last_matched: BTreeMap<Pair, Round>,
    last_alone: BTreeMap<NodeId, Round>,
    evaluating: Option<(Round, NodeId)>,
    evaluations: VecDeque<Evaluation>,
    end: JobEnd,
}

/// What a written job view ends with. The first two are, byte for byte, the `Option` that was all of it before anything
/// could be refused, and still are for a job in which nothing was, nothing was sent, and nobody is slow.
#[derive(Serialize, Deserialize)]
enum JobEnd {
    Open,
    Made(Manifest),
    Watched {
        manifest: Option<Manifest>,
        trust: Trust,
    },
    Counted {
        manifest: Option<Manifest>,
        trust: Trust,
        sent: ByteSize,
        paces: BTreeMap<NodeId, u32>,
    },
}

impl From<JobView> for JobRecord {
    fn from(view: JobView) -> Self {
        let JobView {
            manifest,
            trust,
            sent,
            paces,
            ..
        } = view;
        let end = match manifest {
            _ if sent.0 > 0 || !paces.is_empty() => JobEnd::Counted {
                manifest,
                trust,
                sent,
                paces,
            },
            _ if !trust.is_empty() => JobEnd::Watched { manifest, trust },
            Some(manifest) => JobEnd::Made(manifest),
            None => JobEnd::Open,
        };
        Self {
            id: view.id,
            spec: view.spec,
            phase: view.phase,
            rounds: view.rounds,
            last_matched: view.last_matched,
            last_alone: view.last_alone,
            evaluating: view.evaluating,
            evaluations: view.evaluations,
            end,
        }
    }
}

impl From<JobRecord> for JobView {
    fn from(record: JobRecord) -> Self {
        let nobody = BTreeMap::new;
        let (manifest, trust, sent, paces) = match record.end {
            JobEnd::Open => (None, Trust::default(), ByteSize(0), nobody()),
            JobEnd::Made(manifest) => (Some(manifest), Trust::default(), ByteSize(0), nobody()),
            JobEnd::Watched { manifest, trust } => (manifest, trust, ByteSize(0), nobody()),
            JobEnd::Counted {
                manifest,
                trust,
                sent,
                paces,
            } => (manifest, trust, sent, paces),
        };
        Self {
            id: record.id,
            spec: record.spec,
            phase: record.phase,
            rounds: record.rounds,
            last_matched: record.last_matched,
            last_alone: record.last_alone,
            evaluating: record.evaluating,
            evaluations: record.evaluations,
            manifest,
            trust,
            sent,
            paces,
        }
    }
}

/// How many rounds the state keeps: a node that was away for longer takes the current model from a peer.
pub const ROUNDS_KEPT: usize = 64;

impl JobView {
    /// A job that was just submitted.
    pub fn new(id: JobId, spec: JobSpec) -> Self {
        Self {
            id,
            spec,
            phase: JobPhase::Running,
            rounds: VecDeque::new(),
            last_matched: BTreeMap::new(),
            last_alone: BTreeMap::new(),
            evaluating: None,
            evaluations: VecDeque::new(),
            manifest: None,
            trust: Trust::default(),
            sent: ByteSize(0),
            paces: BTreeMap::new(),
        }
    }

    /// What a committed plan does to the job. That it is the next one, the caller has checked.
    pub fn open(&mut self, plan: RoundPlan) {
        for pair in &plan.pairs {
            self.last_matched.insert(*pair, plan.round);
        }
        for node in &plan.alone {
            self.last_alone.insert(*node, plan.round);
        }
        self.rounds.push_back(RoundRecord { plan, outcome: None });
        while self.rounds.len() > ROUNDS_KEPT {
            self.rounds.pop_front();
        }
    }

    /// What the outcome of the open round does to the job. That it is of that round, the caller has checked.
    pub fn close(&mut self, outcome: RoundOutcome) {
        let sent = outcome.nodes.iter().map(|node| node.sent.0);
        self.sent.0 = sent.fold(self.sent.0, u64::saturating_add);
        if let Some(record) = self.rounds.back_mut() {
            record.outcome = Some(outcome);
        }
        self.trust.judge(&self.rounds);
        if self.is_at_its_end() {
            self.phase = JobPhase::Finishing;
        }
    }

    /// What a refusal in the open round does to the job: it counts when the round closes. That the two are partners in
    /// it, the caller has checked.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.trust.note(refusal);
    }

    /// A member is gone: who it met, what it was to evaluate and what was said of it means nothing any more.
    pub fn forget(&mut self, node: NodeId) {
        self.last_matched
            .retain(|pair, _| pair.partner_of(node).is_none());
        self.last_alone.remove(&node);
        self.evaluating = self.evaluating.filter(|(_, evaluator)| *evaluator != node);
        self.trust.forget(node);
        self.paces.remove(&node);
    }

    /// The local steps that a member takes in a round.
    pub fn steps_of(&self, node: NodeId, plan: &RoundPlan) -> u32 {
        let own = self.paces.get(&node).copied();
        own.map_or(plan.local_steps, |own| own.min(plan.local_steps))
    }

    /// What a recorded evaluation does to the job.
    pub fn record_evaluation(&mut self, evaluation: Evaluation) {
        self.evaluations.push_back(evaluation);
        while self.evaluations.len() > ROUNDS_KEPT {
            self.evaluations.pop_front();
        }
        if self.is_at_its_end() {
            self.phase = JobPhase::Finishing;
        }
    }

    /// Whether the last round is closed, or all dense rounds are: those come early when the accuracy that was asked
    /// for is reached.
    pub fn is_at_its_end(&self) -> bool {
        if self.phase != JobPhase::Running || self.open_round().is_some() || self.round() == Round(0) {
            return false;
        }
        let is_dense = |record: &&RoundRecord| record.plan.kind == RoundKind::Dense;
        let dense = self.rounds.iter().rev().take_while(is_dense).count();
        let dense_wanted = usize::try_from(self.spec.final_dense_rounds).unwrap_or(usize::MAX);
        let accurate = |stop| {
            self.evaluations
                .iter()
                .any(|evaluation| evaluation.averaged_accuracy >= stop)
        };
        self.round().0 >= u64::from(self.spec.rounds)
            || (dense_wanted > 0 && dense >= dense_wanted)
            || (dense_wanted == 0 && self.spec.stop.is_some_and(accurate))
    }

    /// The last round that was planned; 0 before the first.
    pub fn round(&self) -> Round {
        self.rounds.back().map_or(Round(0), |record| record.plan.round)
    }

    /// The round that is open now.
    pub fn open_round(&self) -> Option<&RoundPlan> {
        self.rounds
            .back()
            .filter(|record| record.outcome.is_none())
            .map(|record| &record.plan)
    }

    /// The record of a round, while it is kept.
    pub fn record(&self, round: Round) -> Option<&RoundRecord> {
        let first = self.rounds.front()?.plan.round;
        let offset = round.0.checked_sub(first.0)?;
        self.rounds.get(usize::try_from(offset).ok()?)
    }

    /// The round that ends the job, as far as is known: dense rounds that began early end it early.
    pub fn last_round(&self) -> Round {
        let first_dense = self
            .rounds
            .iter()
            .find(|record| record.plan.kind == RoundKind::Dense);
        match first_dense {
            Some(first) => Round(first.plan.round.0 + u64::from(self.spec.final_dense_rounds.max(1)) - 1),
            None => Round(self.spec.rounds.into()),
        }
    }

    /// Whether the averaged model is evaluated after this round.
    pub fn evaluates_after(&self, round: Round) -> bool {
        let every = u64::from(self.spec.evaluate_every);
        round >= self.last_round() || (every > 0 && round.0 > 0 && round.0.is_multiple_of(every))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeOutcome;

    #[test]
    fn a_job_written_before_there_were_planners_reads_as_one_that_leaves_it_to_its_algorithm() {
        // Everything up to `stop`, as postcard writes it field by field.
        for (algorithm, planner) in [
            (Algorithm::Default, Planner::Adaptive),
            (Algorithm::Saps, Planner::Thresholds),
        ] {
            for stop in [None, Some(Ppm(950_000))] {
                let counts = (9_u32, 3_u32, 25_u32, Values::F16, 50_000_u32, 32_u32, 7_u64);
                let older = ("mlp", "digits", algorithm, counts, (5_u32, 1_u32, 10_u32, stop));
                let bytes = postcard::to_stdvec(&older).unwrap();
                let spec: JobSpec = postcard::from_bytes(&bytes).unwrap();
                assert_eq!((spec.rounds, spec.evaluate_every), (9, 10));
                assert_eq!((spec.stop, spec.planner), (stop, planner));
                assert_eq!(spec.tuning.slow_momentum_micro, 0);
                // It is written as it was, so that members of the older version still read it.
                assert_eq!(postcard::to_stdvec(&spec).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn a_job_in_which_nothing_was_refused_is_written_as_before_there_were_refusals() {
        let spec: JobSpec = postcard::from_bytes(&older_spec()).unwrap();
        let manifest = Manifest {
            hash: [3; 32],
            parameters: 7,
            holders: vec![NodeId(1)],
        };
        for manifest in [None, Some(manifest)] {
            let mut view = JobView::new(JobId(4), spec.clone());
            view.manifest = manifest;
            let counts = (view.id, view.spec.clone(), view.phase, view.rounds.clone());
            let meetings = (view.last_matched.clone(), view.last_alone.clone());
            let end = (view.evaluating, view.evaluations.clone(), view.manifest.clone());
            let older = postcard::to_stdvec(&(counts, meetings, end)).unwrap();
            assert_eq!(postcard::to_stdvec(&view).unwrap(), older);
            assert_eq!(postcard::from_bytes::<JobView>(&older).as_ref(), Ok(&view));
            view.refuse(Refusal {
                round: Round(1),
                of: NodeId(1),
                by: NodeId(2),
                why: Garbage::TooLarge,
            });
            let bytes = postcard::to_stdvec(&view).unwrap();
            assert_eq!(postcard::from_bytes::<JobView>(&bytes).as_ref(), Ok(&view));
        }
    }

    fn older_spec() -> Vec<u8> {
        let counts = (9_u32, 3_u32, 25_u32, Values::F16, 50_000_u32, 32_u32, 7_u64);
        let rest = (5_u32, 1_u32, 10_u32, None::<Ppm>);
        postcard::to_stdvec(&("mlp", "digits", Algorithm::Saps, counts, rest)).unwrap()
    }

    #[test]
    fn a_job_with_a_slow_momentum_reads_back_as_it_was() {
        let mut spec: JobSpec = postcard::from_bytes(&older_spec()).unwrap();
        spec.algorithm = Algorithm::Default;
        let privacy = Privacy {
            noise_micro: 1,
            norm_micro: 2,
            delta_nano: 3,
        };
        for slow_momentum_micro in [0, 250_000, 500_000] {
            for privacy in [None, Some(privacy)] {
                for stop in [None, Some(Ppm(1))] {
                    spec.tuning = Tuning {
                        privacy,
                        slow_momentum_micro,
                        ..Algorithm::Default.tuning()
                    };
                    (spec.stop, spec.planner) = (stop, Planner::Random);
                    let bytes = postcard::to_stdvec(&spec).unwrap();
                    assert_eq!(postcard::from_bytes::<JobSpec>(&bytes).as_ref(), Ok(&spec));
                }
            }
        }
    }

    #[test]
    fn a_job_with_a_planner_of_its_own_reads_back_as_it_was() {
        let older = (
            "mlp",
            "digits",
            Algorithm::Saps,
            (9_u32, 3_u32, 25_u32, Values::F16),
        );
        let rest = (50_000_u32, 32_u32, 7_u64, (5_u32, 1_u32, 10_u32, None::<Ppm>));
        let bytes = postcard::to_stdvec(&(older, rest)).unwrap();
        let mut spec: JobSpec = postcard::from_bytes(&bytes).unwrap();
        for planner in [Planner::Adaptive, Planner::Random, Planner::Exponential] {
            for stop in [None, Some(Ppm(1))] {
                (spec.planner, spec.stop) = (planner, stop);
                spec.tuning.lr_final = Ppm(if stop.is_some() { 920_000 } else { 1_000_000 });
                let bytes = postcard::to_stdvec(&spec).unwrap();
                assert_eq!(postcard::from_bytes::<JobSpec>(&bytes).as_ref(), Ok(&spec));
                let mut private = spec.clone();
                private.tuning.privacy = Some(Privacy {
                    noise_micro: 1,
                    norm_micro: 2,
                    delta_nano: 3,
                });
                let bytes = postcard::to_stdvec(&private).unwrap();
                assert_eq!(postcard::from_bytes::<JobSpec>(&bytes).as_ref(), Ok(&private));
            }
        }
    }

    #[test]
    fn what_all_have_sent_adds_up_over_rounds_and_over_being_written() {
        let mut spec = postcard::from_bytes::<JobSpec>(&older_spec()).unwrap();
        spec.rounds = 100;
        let mut job = JobView::new(JobId(1), spec);
        for round in 1..=80 {
            job.open(RoundPlan {
                job: JobId(1),
                round: Round(round),
                kind: RoundKind::Sparse,
                seed: [0; 32],
                pairs: Vec::new(),
                alone: vec![NodeId(1), NodeId(2)],
                compression: 25,
                local_steps: 1,
                lr_micro: 1,
                deadline_ms: 1,
            });
            let node = |id| NodeOutcome {
                node: NodeId(id),
                loss_micro: 0,
                samples: 0,
                sent: ByteSize(10 * id),
                received: ByteSize(0),
            };
            job.close(RoundOutcome {
                job: JobId(1),
                round: Round(round),
                merged: Vec::new(),
                nodes: vec![node(1), node(2)],
                took_ms: 1,
            });
        }
        assert_eq!(job.sent, ByteSize(80 * 30));
        let bytes = postcard::to_stdvec(&job).unwrap();
        assert_eq!(postcard::from_bytes::<JobView>(&bytes), Ok(job));
    }
}
