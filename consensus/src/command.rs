//! What members may ask of the log, and what the log answers.
//!
//! Only values: how a command changes the state is in `state.rs` and `jobs.rs`. Nothing here is a float,
//! reads a clock or draws: applying a command is the same on every machine.

use std::collections::BTreeMap;
use std::fmt;

use lapwing_base::{
    ByteSize, ClusterId, Evaluation, JobId, JobPhase, JobSpec, LinkSpeed, Manifest, Member, Multiaddr,
    NodeId, PeerId, Refusal, Role, Round, RoundOutcome, RoundPlan,
};
use serde::{Deserialize, Serialize};

/// Names one request for ever: 16 random bytes, drawn by whoever asks, kept through every retry.
///
/// The state remembers the last ones with their answers, so that a request whose answer was lost is not
/// applied twice.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub [u8; 16]);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

/// A command with the id that makes it happen once.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The same for every attempt of one wish.
    pub id: RequestId,
    /// The wish.
    pub command: Command,
}

impl Request {
    /// Longest encoded request. The longest legitimate one is the outcome of a round of
    /// [`MEMBERS_MAX`](crate::MEMBERS_MAX) members, about 40 KiB; six times that leaves room to grow.
    pub const SIZE_MAX: ByteSize = ByteSize::kib(256);
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.command.name(), self.id)
    }
}

/// One change of what all agree on.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The first application entry of every cluster: its id, the gateway's fencing number, its founder,
    /// who becomes member [`NodeId::FOUNDER`].
    BootstrapEpoch {
        /// The cluster that begins here.
        cluster: ClusterId,
        /// The fencing number under which the gateway granted the bootstrap; 0 without a gateway.
        epoch: u64,
        /// The founder's identity.
        peer: PeerId,
        /// The founder's name.
        name: String,
        /// Where the founder listens.
        addrs: Vec<Multiaddr>,
        /// Whether the founder is publicly reachable.
        role: Role,
    },
    /// A peer becomes a member under a new number: the index of this entry. A member with the same identity
    /// is removed by it, since that one has lost its disk.
    Join {
        /// Its identity.
        peer: PeerId,
        /// Its name.
        name: String,
        /// Where it listens.
        addrs: Vec<Multiaddr>,
        /// Whether it is publicly reachable.
        role: Role,
    },
    /// A member has moved, or is called otherwise.
    Update {
        /// The member.
        id: NodeId,
        /// Where it listens now.
        addrs: Vec<Multiaddr>,
        /// Its name now.
        name: String,
        /// Its role now.
        role: Role,
    },
    /// A member announces that it goes.
    Leave {
        /// The member.
        id: NodeId,
    },
    /// A member has not answered for a while.
    Suspect {
        /// The member.
        id: NodeId,
    },
    /// A suspected member answers again.
    Restore {
        /// The member.
        id: NodeId,
    },
    /// A joining member follows the log.
    Activate {
        /// The member.
        id: NodeId,
    },
    /// A member is one no longer. Its number is never given again.
    Remove {
        /// The member.
        id: NodeId,
    },
    /// An operator says who should, or should never, vote; `None` leaves it to the cluster again.
    Pin {
        /// The member.
        id: NodeId,
        /// What the operator wants.
        pin: Option<Pin>,
    },
    /// A job to train. One runs at a time.
    SubmitJob(JobSpec),
    /// A person ends a job early.
    StopJob(JobId),
    /// The next round of the running job.
    PlanRound(RoundPlan),
    /// How the open round ended.
    CloseRound(RoundOutcome),
    /// Changed bandwidths, at most [`LINKS_MAX`] of them.
    Bandwidth(Vec<LinkSpeed>),
    /// Who averages and evaluates the models after a round.
    AssignEvaluation {
        /// The job.
        job: JobId,
        /// After which closed round.
        round: Round,
        /// The member that does it.
        evaluator: NodeId,
    },
    /// What an evaluation found; after the last round with the consensus model's manifest.
    RecordEvaluation {
        /// The job.
        job: JobId,
        /// The finding.
        evaluation: Evaluation,
        /// The consensus model, once the job is finishing.
        manifest: Option<Manifest>,
    },
    /// More members that hold the consensus model.
    RecordHolders {
        /// The job.
        job: JobId,
        /// The members.
        holders: Vec<NodeId>,
    },
    /// The consensus model has been handed out.
    FinishJob(JobId),
    /// One setting of the cluster.
    SetConfig {
        /// A key of [`ConfigKey`](crate::ConfigKey).
        key: String,
        /// Its new value, as written by a person.
        value: String,
        /// The configuration version this change is meant for; refused when another one holds.
        expected: Option<u64>,
    },
    /// Every setting as it was at a version that is still kept. Makes a new version.
    RollbackConfig {
        /// The version whose settings are wanted.
        version: u64,
    },
    /// What members refused to merge in the open round; before the [`Command::CloseRound`] that it counts for.
    RecordRefusals {
        /// The job.
        job: JobId,
        /// Each of the open round, between partners in it; at most [`REFUSALS_MAX`].
        refusals: Vec<Refusal>,
    },
    /// Which members take fewer local steps from the next round on, and how many; between rounds, in place of what held.
    SetPaces {
        /// The job.
        job: JobId,
        /// At least one step, and fewer than the job's; all others take the job's.
        steps: BTreeMap<NodeId, u32>,
    },
}

/// Most refusals in one [`Command::RecordRefusals`]: twice as many as members, of whom each meets one or two others.
pub const REFUSALS_MAX: usize = 2048;

/// Most links in one [`Command::Bandwidth`]: four for each of [`MEMBERS_MAX`](crate::MEMBERS_MAX) members,
/// twice what a round can measure.
pub const LINKS_MAX: usize = 4096;

impl Command {
    /// The command's name in logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BootstrapEpoch { .. } => "bootstrap",
            Self::Join { .. } => "join",
            Self::Update { .. } => "update",
            Self::Leave { .. } => "leave",
            Self::Suspect { .. } => "suspect",
            Self::Restore { .. } => "restore",
            Self::Activate { .. } => "activate",
            Self::Remove { .. } => "remove",
            Self::Pin { .. } => "pin",
            Self::SubmitJob(_) => "submit-job",
            Self::StopJob(_) => "stop-job",
            Self::PlanRound(_) => "plan-round",
            Self::CloseRound(_) => "close-round",
            Self::Bandwidth(_) => "bandwidth",
            Self::AssignEvaluation { .. } => "assign-evaluation",
            Self::RecordEvaluation { .. } => "record-evaluation",
            Self::RecordHolders { .. } => "record-holders",
            Self::FinishJob(_) => "finish-job",
            Self::SetConfig { .. } => "set-config",
            Self::RollbackConfig { .. } => "rollback-config",
            Self::RecordRefusals { .. } => "record-refusals",
            Self::SetPaces { .. } => "set-paces",
        }
    }
}

/// An operator's word on whether a member votes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pin {
    /// Votes before any member that is not pinned.
    Voter,
    /// Never votes while anybody else can.
    Learner,
}

/// What applying a request came to.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Applied {
    /// The member's number.
    Joined(NodeId),
    /// The job's number.
    Submitted(JobId),
    /// It holds now; perhaps it did already.
    Done,
    /// The state is as before.
    Refused(RefusedReason),
}

/// Why a command was not valid in the state that it met.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RefusedReason {
    /// Nothing can happen before the bootstrap.
    #[error("the cluster is not bootstrapped yet")]
    NotBootstrapped,
    /// A cluster begins once.
    #[error("the cluster is bootstrapped already, as {0}")]
    AlreadyBootstrapped(ClusterId),
    /// Not, or no longer, a member.
    #[error("{0} is not a member")]
    UnknownMember(NodeId),
    /// The cluster takes no more.
    #[error("the cluster has its {max} members already")]
    ClusterFull {
        /// The bound.
        max: u32,
    },
    /// A name is too long.
    #[error(
        "a name of {length} bytes is longer than the {} that are allowed",
        Member::NAME_MAX
    )]
    NameTooLong {
        /// How long.
        length: u32,
    },
    /// Too many addresses, or one that is too long.
    #[error(
        "{count} addresses of up to {longest} bytes; at most {} of {} bytes are allowed",
        Member::ADDRS_MAX,
        crate::state::ADDR_LENGTH_MAX
    )]
    BadAddresses {
        /// How many.
        count: u32,
        /// The longest, in bytes.
        longest: u32,
    },
    /// The member goes; nobody waits for it.
    #[error("{0} is leaving")]
    Leaving(NodeId),
    /// The cluster would be gone.
    #[error("{0} is the only member; stop it instead")]
    LastMember(NodeId),
    /// No such job, or one that is kept no longer.
    #[error("{0} is not known")]
    UnknownJob(JobId),
    /// One job at a time.
    #[error("{0} is not over yet; stop it first")]
    JobNotOver(JobId),
    /// The job is in a phase that this does not fit.
    #[error("{job} is {phase}")]
    WrongPhase {
        /// The job.
        job: JobId,
        /// Its phase.
        phase: JobPhase,
    },
    /// The job cannot be trained as asked.
    #[error("the job's `{key}` must be {expected}")]
    BadJob {
        /// Which part.
        key: String,
        /// What is allowed.
        expected: String,
    },
    /// The round is planned already: a plan is made once.
    #[error("round {0} is planned already")]
    RoundPlanned(Round),
    /// The round before is still open.
    #[error("round {0} is still open")]
    RoundOpen(Round),
    /// Rounds follow one another.
    #[error("round {given} does not follow; {expected} does")]
    RoundOutOfOrder {
        /// The round that would follow.
        expected: Round,
        /// The round that was asked for.
        given: Round,
    },
    /// The round is not open: closed already, or never planned.
    #[error("round {0} is not open")]
    RoundNotOpen(Round),
    /// The plan or the outcome contradicts itself or the plan.
    #[error("{0}")]
    Malformed(Malformed),
    /// The evaluation is recorded already, or nothing was there to evaluate.
    #[error("round {0} has no evaluation to record")]
    NotEvaluating(Round),
    /// There is no consensus model yet.
    #[error("{0} has no consensus model yet")]
    NoManifest(JobId),
    /// Too many parts in one command.
    #[error("{count} {what} in one request; at most {max} are allowed")]
    TooMany {
        /// Of what.
        what: String,
        /// How many.
        count: u32,
        /// The bound.
        max: u32,
    },
    /// No such setting.
    #[error("the cluster has no setting `{key}`{}", .nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// What was asked for, shortened.
        key: String,
        /// The known key that may have been meant.
        nearest: Option<String>,
    },
    /// The value does not fit the setting.
    #[error("`{key}` must be {expected}, not `{value}`")]
    BadValue {
        /// The setting.
        key: String,
        /// What was given, shortened.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// Somebody else has changed the configuration meanwhile.
    #[error("the configuration is at version {current}, not {expected}; look at it again")]
    StaleVersion {
        /// The version that the change was meant for.
        expected: u64,
        /// The version that holds.
        current: u64,
    },
    /// The version is not kept, or was never made.
    #[error("configuration version {0} is not kept")]
    UnknownVersion(u64),
}

/// How a plan or an outcome is malformed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error, Serialize, Deserialize)]
pub enum Malformed {
    /// Somebody appears twice, or the lists are not in order.
    #[error("the plan names {0} twice or out of order")]
    Repeated(NodeId),
    /// Nobody takes part.
    #[error("the plan has no participants")]
    Empty,
    /// A pair was merged that was not planned, or twice, or out of order.
    #[error("the outcome merges {0} and {1}, who were not planned as a pair, or names them twice")]
    NotPlanned(NodeId, NodeId),
    /// Somebody reports who takes no part, or twice, or out of order.
    #[error("the outcome has {0}, who takes no part, or twice or out of order")]
    NotParticipating(NodeId),
    /// Members' accuracies are not in order, or one appears twice.
    #[error("the evaluation names {0} twice or out of order")]
    EvaluatedTwice(NodeId),
    /// A member is to take no steps, or not fewer than the job's.
    #[error("{0} is to take no steps, or not fewer than all others")]
    NotFewer(NodeId),
}
