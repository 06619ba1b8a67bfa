//! What comes out of a simulated run, and what is told while it goes on.

use lapwing_base::Algorithm;
use serde::{Deserialize, Serialize};

/// A run, and all that was measured on its way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// How nodes shared what they learnt.
    pub algorithm: Algorithm,
    /// How many nodes there were.
    pub nodes: u64,
    /// What everything random followed from.
    pub seed: u64,
    /// Parameters of the model.
    pub parameters: u64,
    /// Rounds that were run.
    pub rounds: u64,
    /// The most that a node has told about one of its samples, where the job promises differential privacy.
    #[serde(default)]
    pub epsilon: Option<f64>,
    /// Mean over the rounds with exchanges of the slowest one's bandwidth; `None` where nobody met.
    pub mean_bottleneck_mbit_s: Option<f64>,
    /// Evaluations, in order; the last one is at the end.
    pub points: Vec<Point>,
    /// How it ended.
    pub ended: Ended,
}

impl Run {
    /// The evaluation at the end.
    pub fn last(&self) -> Option<&Point> {
        self.points.last()
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// With its job's last round.
    Done,
    /// A node's training left all bounds.
    Diverged,
    /// Somebody wanted it to end.
    Stopped,
}

/// How far a run was, and how good its models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// After which round.
    pub round: u64,
    /// Passes over a node's part of the data, in the mean.
    pub epochs: f64,
    /// Virtual time since the start.
    pub virtual_seconds: f64,
    /// What a node had sent, in the mean.
    pub sent_bytes_per_node: f64,
    /// What a node had received, in the mean.
    pub received_bytes_per_node: f64,
    /// Mean of the accuracies of nodes' own models on the test set; `None` where nothing is trained. Of 32 nodes, evenly
    /// spread, where there are more.
    pub local_accuracy: Option<f64>,
    /// Accuracy of the mean of all models.
    pub averaged_accuracy: Option<f64>,
    /// Loss of the mean of all models on the test set, in nats.
    pub averaged_loss: Option<f64>,
    /// Mean loss of the last round's local steps, in nats.
    pub training_loss: Option<f64>,
    /// Root mean square distance of the models from their mean, in lengths of that mean.
    pub disagreement: f64,
}

impl Point {
    /// Bytes sent and received by a node, in the mean.
    pub fn bytes_per_node(&self) -> f64 {
        self.sent_bytes_per_node + self.received_bytes_per_node
    }
}

/// Where a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The round that has just ended.
    pub round: u64,
    /// All rounds, as far as is known.
    pub rounds: u64,
    /// Virtual time since the start.
    pub virtual_seconds: f64,
    /// The newest evaluation.
    pub point: Option<&'a Point>,
}
