//! The card of a model: what its file says of how it was made.
//!
//! Keys and texts only. They are the metadata of a safetensors file (`model_file.rs`), so that they go where the model goes.

use crate::jobfile;
use lapwing_base::{ByteSize, JobId, JobSpec, Ppm, Round};
use std::collections::HashMap;

/// What came of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    /// Rounds that were run.
    pub(crate) rounds: Round,
    /// What all nodes together sent in them.
    pub(crate) sent: ByteSize,
    /// On the test samples.
    pub(crate) accuracy: Ppm,
    /// What the node that writes this has told about one of its samples, where the job promises differential privacy.
    pub(crate) epsilon: Option<f64>,
}

/// The card of a job's model.
pub(crate) fn card(job: JobId, spec: &JobSpec, made: &Made) -> HashMap<String, String> {
    let mut card = HashMap::from([
        ("job", job.to_string()),
        ("model", spec.model.clone()),
        ("data", spec.data.clone()),
        ("algorithm", spec.algorithm.to_string()),
        ("rounds", made.rounds.to_string()),
        ("bytes_sent", made.sent.0.to_string()),
        ("accuracy", made.accuracy.as_f64().to_string()),
        // All that was asked for, as it can be asked for again.
        ("job_file", jobfile::to_toml(spec)),
    ]);
    if let (Some(epsilon), Some(privacy)) = (made.epsilon, spec.tuning.privacy) {
        card.insert("epsilon", epsilon.to_string());
        card.insert("delta", (f64::from(privacy.delta_nano) / 1e9).to_string());
    }
    card.into_iter()
        .map(|(key, text)| (key.to_owned(), text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_names_data_algorithm_rounds_bytes_and_accuracy_and_what_privacy_is_left() {
        let spec = jobfile::parse("algorithm = 'saps'\nrounds = 90\ndp_noise = 1.5").unwrap();
        let made = Made {
            rounds: Round(70),
            sent: ByteSize(123_456),
            accuracy: Ppm(951_000),
            epsilon: Some(2.5),
        };
        let told = card(JobId(7), &spec, &made);
        for (key, text) in [
            ("job", "job-7"),
            ("model", "mlp"),
            ("data", "digits"),
            ("algorithm", "saps"),
            ("rounds", "70"),
            ("bytes_sent", "123456"),
            ("accuracy", "0.951"),
            ("epsilon", "2.5"),
            ("delta", "0.00001"),
        ] {
            assert_eq!(told[key], text, "{key}");
        }
        assert_eq!(jobfile::parse(&told["job_file"]), Ok(spec));
    }

    #[test]
    fn a_job_that_promises_nothing_has_no_epsilon() {
        let spec = jobfile::parse("").unwrap();
        let made = Made {
            rounds: Round(1),
            sent: ByteSize(0),
            accuracy: Ppm(0),
            epsilon: None,
        };
        assert!(!card(JobId(1), &spec, &made).contains_key("epsilon"));
    }
}
