//! All that a simulated run follows from: two runs of one setting are the same, bit by bit.

use super::event::Event;
use super::network::Network;
use crate::data::Partition;
use crate::planner::Knobs;
use lapwing_base::JobSpec;

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The job, as nodes would have it from the log.
    pub job: JobSpec,
    /// Who there is, and how fast the links are.
    pub network: Network,
    /// How the training samples are shared out; drawn from the job's seed, as members without data of their own do.
    pub partition: Partition,
    /// What [`lapwing_base::Planner::Thresholds`] goes by.
    pub knobs: Knobs,
    /// Virtual seconds that a node takes for one local step; 0 counts exchanges alone, as the papers do.
    pub step_seconds: f64,
    /// Virtual seconds of a round beside training and exchanges: a commit and a few round trips.
    pub overhead_seconds: f64,
    /// When the models are evaluated; always at the end.
    pub every: Every,
    /// What happens to nodes.
    pub events: Vec<Event>,
    /// What computes, such as `burn`.
    pub backend: String,
    /// Without training nothing is evaluated either: what is left are plans, bytes and times.
    pub trains: bool,
}

impl Setting {
    /// Names this setting and what computes it: equal for two settings whose runs are the same. Data enter by their
    /// name.
    pub fn key(&self) -> String {
        // Everything that a run follows from is in its debug form, to the last bit: floats are written so that they
        // read back as they were.
        let text = format!("{COMPUTED_AS} {self:?}");
        blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
    }
}

/// Names the way of computing; another one makes runs that were stored not count any more.
const COMPUTED_AS: &str = "lapwing simulate 1";

/// After how much of what the models are evaluated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Every {
    /// So many rounds.
    Rounds(u32),
    /// So many bytes sent by a node, in the mean.
    Bytes(u64),
    /// So many virtual seconds.
    Seconds(f64),
    /// So many passes over a node's part of the data, in the mean.
    Epochs(f64),
}

/// The rounds of a job in which a node that takes part in all of them passes so often over its part of the data;
/// dense rounds come on top.
pub fn rounds_of_epochs(job: &JobSpec, samples: usize, nodes: u64, epochs: f64) -> u32 {
    let rounds = (epochs * samples as f64 / samples_of_round(job, nodes)).ceil();
    // Saturates, and a job has at least one round that trains.
    (rounds as u32).max(1).saturating_add(job.final_dense_rounds)
}

/// How often a node passes over its part of the data in so many rounds that train.
pub fn epochs_of_rounds(job: &JobSpec, samples: usize, nodes: u64, rounds: u64) -> f64 {
    rounds as f64 * samples_of_round(job, nodes) / samples as f64
}

/// What all nodes see in a round if all take part.
fn samples_of_round(job: &JobSpec, nodes: u64) -> f64 {
    f64::from(job.batch) * f64::from(job.local_steps) * nodes as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobfile::defaults;
    use lapwing_base::Algorithm;

    #[test]
    fn epochs_are_rounds_that_train_and_dense_ones_come_on_top() {
        let mut job = defaults(Algorithm::Default);
        (job.batch, job.local_steps, job.final_dense_rounds) = (50, 1, 5);
        // 60,000 / (14 * 50) = 85.7 rounds an epoch.
        assert_eq!(rounds_of_epochs(&job, 60_000, 14, 10.0), 858 + 5);
        assert!((epochs_of_rounds(&job, 60_000, 14, 858) - 10.0).abs() < 0.02);
    }

    #[test]
    fn any_change_of_a_setting_changes_its_key() {
        let setting = Setting {
            job: defaults(Algorithm::Saps),
            network: Network::equal(4, 1000),
            partition: Partition::Iid,
            knobs: Knobs::default(),
            step_seconds: 0.0,
            overhead_seconds: 0.0,
            every: Every::Rounds(10),
            events: Vec::new(),
            backend: "burn".to_owned(),
            trains: true,
        };
        let mut other = setting.clone();
        assert_eq!(setting.key(), other.key());
        other.job.seed += 1;
        assert_ne!(setting.key(), other.key());
        let other = Setting {
            network: Network::equal(4, 1001),
            ..setting.clone()
        };
        assert_ne!(setting.key(), other.key());
        let other = Setting {
            step_seconds: 1e-9,
            ..setting.clone()
        };
        assert_ne!(setting.key(), other.key());
    }
}
