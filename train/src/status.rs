//! What a node shows of its training: the `training` part of the status document, as a value.

use lapwing_base::{ByteSize, JobId, NodeId, Ppm, Quarantine, Round};
use serde::{Deserialize, Serialize};

/// What the node is doing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainingState {
    /// No job, or no plan that names this node.
    #[default]
    Idle,
    /// Takes local steps.
    Training,
    /// Swaps values with its partner.
    Exchanging,
    /// Waits for the round's outcome, merges, or takes a model from a peer.
    Aggregating,
}

/// A snapshot of a node's training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingStatus {
    /// What it is doing.
    pub state: TrainingState,
    /// The job it works on.
    pub job: Option<JobId>,
    /// The round it is in, or the last one it dealt with.
    pub round: Round,
    /// How many rounds the job has.
    pub rounds: u32,
    /// How many parameters the job's model has, once it is built here.
    pub parameters: Option<u64>,
    /// Its partner in this round.
    pub partner: Option<NodeId>,
    /// Mean training loss of its last local steps, in nats.
    pub loss: Option<f32>,
    /// Accuracy of its own model at the last evaluation.
    pub local_accuracy: Option<Ppm>,
    /// Accuracy of the averaged model at the last evaluation.
    pub averaged_accuracy: Option<Ppm>,
    /// Payload of rounds' exchanges sent since the process started; grows only.
    pub sent: ByteSize,
    /// Payload of rounds' exchanges received since the process started; grows only.
    pub received: ByteSize,
    /// Samples trained on since the process started; grows only.
    pub samples: u64,
    /// Why this node takes no useful part, when it cannot.
    pub problem: Option<String>,
    /// What this node has told about one of its samples so far, where the job promises differential privacy.
    pub epsilon: Option<f64>,
    /// The chance with which that promise may fail.
    pub delta: Option<f64>,
    /// Members without which rounds are planned, since partners refused what they sent.
    pub quarantined: Vec<(NodeId, Quarantine)>,
}
