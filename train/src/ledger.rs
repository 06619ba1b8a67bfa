//! What a node's steps have told about one of its samples: a count of steps on disk, and the accountant's epsilon.
//!
//! Every step that was ever begun counts, also one that a crash undid: what it told may have been told. It takes no
//! step and draws no noise (`private_steps.rs`).

use crate::privacy::{Accountant, PrivacyError};
use crate::private_steps::sample_rate;
use lapwing_base::Privacy;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

/// The steps of one job.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// By how many samples the node had, since each is taken with another chance then: what one step tells, and how many
    /// were begun.
    entries: BTreeMap<usize, (Accountant, u64)>,
    /// How many samples it has.
    samples: usize,
    delta: f64,
    file: PathBuf,
}

/// Why nothing can be promised.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("the job's `dp_noise` promises nothing here")]
    Privacy(#[from] PrivacyError),
    #[error(
        "the file {}, which counts steps, is damaged; without it nothing can be promised: stop the job and submit it anew", file.display()
    )]
    Damaged { file: PathBuf },
    #[error("the count of steps in {} cannot be kept", file.display())]
    Disk {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Ledger {
    /// Goes on counting where the node stopped; `batch` samples are taken in the mean, of so many.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or there is too little noise for a promise.
    pub(crate) fn open(
        privacy: Privacy,
        batch: u32,
        samples: usize,
        file: PathBuf,
    ) -> Result<Self, LedgerError> {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(LedgerError::Disk { file, source }),
        };
        let mut taken = BTreeMap::from([(samples, 0)]);
        for line in text.lines() {
            let entry = line.split_once(' ');
            let entry = entry.and_then(|(samples, steps)| Some((samples.parse().ok()?, steps.parse().ok()?)));
            let Some((samples, steps)) = entry else {
                return Err(LedgerError::Damaged { file });
            };
            taken.insert(samples, steps);
        }
        let noise = f64::from(privacy.noise_micro) / 1e6;
        let delta = f64::from(privacy.delta_nano) / 1e9;
        let mut entries = BTreeMap::new();
        for (samples, steps) in taken {
            let mut step = Accountant::new();
            step.add_steps(sample_rate(batch, samples), noise, 1)?;
            step.epsilon(delta)?;
            entries.insert(samples, (step, steps));
        }
        Ok(Self {
            entries,
            samples,
            delta,
            file,
        })
    }

    /// Counts steps that are about to be taken.
    ///
    /// # Errors
    ///
    /// When that cannot be written down; then they must not be taken.
    pub(crate) fn enter(&mut self, steps: u32) -> Result<(), LedgerError> {
        if steps == 0 {
            return Ok(());
        }
        if let Some((_, taken)) = self.entries.get_mut(&self.samples) {
            *taken = taken.saturating_add(steps.into());
        }
        let lines = self
            .entries
            .iter()
            .map(|(samples, (_, taken))| format!("{samples} {taken}\n"));
        let text: String = lines.collect();
        lapwing_durable::write(&self.file, text.as_bytes()).map_err(|source| LedgerError::Disk {
            file: self.file.clone(),
            source,
        })
    }

    /// The epsilon of all steps so far.
    pub(crate) fn epsilon(&self) -> f64 {
        let mut all = Accountant::new();
        for (step, taken) in self.entries.values() {
            all.add(&step.times(*taken));
        }
        // Delta was checked when this was opened.
        all.epsilon(self.delta).unwrap_or(f64::INFINITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const PRIVACY: Privacy = Privacy {
        noise_micro: 1_500_000,
        norm_micro: 200_000,
        delta_nano: 10_000,
    };

    fn open(dir: &Path, samples: usize) -> Ledger {
        Ledger::open(PRIVACY, 32, samples, dir.join("job.privacy")).unwrap()
    }

    fn accounted(steps: &[(f64, u64)]) -> f64 {
        let mut accountant = Accountant::new();
        for (rate, steps) in steps {
            accountant.add_steps(*rate, 1.5, *steps).unwrap();
        }
        accountant.epsilon(1e-5).unwrap()
    }

    #[test]
    fn the_epsilon_is_that_of_the_accountant_after_as_many_steps() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(dir.path(), 800);
        assert_eq!(ledger.epsilon(), 0.0);
        ledger.enter(250).unwrap();
        assert!((ledger.epsilon() - accounted(&[(0.04, 250)])).abs() < 1e-9);
        ledger.enter(2000).unwrap();
        // As the accountant's own test: Opacus says 7.33 after 2,250.
        assert!(
            (ledger.epsilon() - 7.329_111).abs() < 1e-4,
            "{}",
            ledger.epsilon()
        );
    }

    #[test]
    fn steps_count_over_a_restart_and_at_the_chance_that_samples_had_then() {
        let dir = tempfile::tempdir().unwrap();
        // Killed after each, so that the second may be the same round as the first.
        open(dir.path(), 800).enter(40).unwrap();
        open(dir.path(), 800).enter(40).unwrap();
        let before = open(dir.path(), 800).epsilon();
        assert!((before - accounted(&[(0.04, 80)])).abs() < 1e-9, "{before}");
        // With more samples the steps from before tell as much as they told.
        let mut ledger = open(dir.path(), 3200);
        assert!((ledger.epsilon() - before).abs() < 1e-9);
        ledger.enter(40).unwrap();
        let expected = accounted(&[(0.04, 80), (0.01, 40)]);
        assert!((open(dir.path(), 3200).epsilon() - expected).abs() < 1e-9);
    }

    #[test]
    fn without_a_count_nothing_is_promised() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("job.privacy");
        std::fs::write(&file, "many").unwrap();
        let opened = Ledger::open(PRIVACY, 32, 800, file);
        assert!(matches!(opened, Err(LedgerError::Damaged { .. })));
    }
}
