//! Counts how often logits name the right class, and what they cost; shared by all backends.

use lapwing_base::Ppm;

/// How good a model is on some samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Samples whose largest logit is their label's.
    pub correct: u64,
    /// Samples.
    pub total: u64,
    /// Mean cross entropy, in nats; zero when there are no samples.
    pub loss: f32,
}

impl Score {
    /// The share of right answers; zero when there are no samples.
    pub fn accuracy(&self) -> Ppm {
        Ppm::ratio(self.correct, self.total)
    }
}

/// Adds up a score over several pieces of the samples.
#[derive(Debug, Default)]
pub(super) struct Tally {
    correct: u64,
    total: u64,
    loss: f64,
}

impl Tally {
    /// Counts the rows of `logits`, one for each label, of `classes` values each.
    pub(super) fn add(&mut self, logits: &[f32], labels: impl IntoIterator<Item = u8>, classes: usize) {
        for (row, label) in logits.chunks_exact(classes).zip(labels) {
            let label = usize::from(label);
            let right = f64::from(row[label]);
            let largest = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f64 = row
                .iter()
                .map(|logit| (f64::from(*logit) - f64::from(largest)).exp())
                .sum();
            self.loss += sum.ln() + f64::from(largest) - right;
            // The first of equal logits counts as the answer; a NaN is never right.
            let answer = row.iter().position(|logit| *logit == largest);
            self.correct += u64::from(answer == Some(label));
            self.total += 1;
        }
    }

    /// The sums as a score.
    pub(super) fn score(&self) -> Score {
        Score {
            correct: self.correct,
            total: self.total,
            loss: (self.loss / self.total.max(1) as f64) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_logits_cost_the_logarithm_of_the_classes_and_name_the_first() {
        let mut tally = Tally::default();
        tally.add(&[0.0; 8], [0, 3], 4);
        let score = tally.score();
        assert_eq!((score.correct, score.total), (1, 2));
        assert!((score.loss - 4_f32.ln()).abs() < 1e-6);
        assert_eq!(score.accuracy(), Ppm(500_000));
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let mut tally = Tally::default();
        tally.add(&[1e30, -1e30], [0], 2);
        assert_eq!(tally.score().loss, 0.0);
    }

    #[test]
    fn no_samples_score_nothing() {
        assert_eq!(Tally::default().score(), Score::default());
        assert_eq!(Score::default().accuracy(), Ppm(0));
    }
}
