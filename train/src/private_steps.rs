//! The local steps of a job that promises differential privacy. What they tell, `ledger.rs` counts.
//!
//! Abadi et al., "Deep Learning with Differential Privacy" (arXiv 1607.00133), Algorithm 1: each step takes every sample
//! with the same chance, clips each one's gradient, and adds normal noise to their sum. Which samples are taken and what
//! the noise is follows from a secret that never leaves the node: from the job's seed, which all know, anybody could
//! take the noise out again.
//!
//! What is protected are the samples in what a node tells of its model. Their number counts as known.

use crate::backend::{Backend, BackendError};
use crate::data::{Batch, Part};
use crate::draws::Draws;
use crate::privacy::Accountant;
use crate::steps::{Trained, learning_rate};
use lapwing_base::{Privacy, RoundPlan};

/// Takes steps in private.
#[derive(Debug)]
pub(crate) struct PrivateSteps {
    privacy: Privacy,
    secret: [u64; 4],
    /// Samples that a step takes in the mean.
    batch: u32,
    features: Vec<f32>,
    labels: Vec<u8>,
}

impl PrivateSteps {
    /// Steps that take `batch` samples in the mean.
    pub(crate) fn new(privacy: Privacy, batch: u32, secret: [u64; 4]) -> Self {
        Self {
            privacy,
            secret,
            batch,
            features: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// Takes the plan's local steps, from the step with the number `step` on, which then is the next one's.
    ///
    /// Neither their loss nor how many samples came is told: both would say something about the samples.
    ///
    /// # Errors
    ///
    /// When the backend computes no gradient of a single sample, the samples do not fit the model, or training diverged.
    pub(crate) fn take(
        &mut self,
        backend: &mut dyn Backend,
        part: Part<'_>,
        step: &mut u64,
        plan: &RoundPlan,
    ) -> Result<Trained, BackendError> {
        let lr = learning_rate(plan);
        for _ in 0..plan.local_steps {
            let gradient = self.gradient(backend, part, *step)?;
            backend.descend(&gradient, lr)?;
            *step += 1;
        }
        Ok(Trained {
            loss: 0.0,
            samples: self.batch.saturating_mul(plan.local_steps),
            epsilon: None,
        })
    }

    /// What so many steps have told about one of so many samples; `None` when nothing can be promised.
    pub(crate) fn epsilon(&self, samples: usize, steps: u64) -> Option<f64> {
        let mut accountant = Accountant::new();
        let noise = f64::from(self.privacy.noise_micro) / 1e6;
        let rate = sample_rate(self.batch, samples);
        accountant.add_steps(rate, noise, steps).ok()?;
        accountant.epsilon(f64::from(self.privacy.delta_nano) / 1e9).ok()
    }

    /// The noisy mean of the clipped gradients of one step.
    fn gradient(
        &mut self,
        backend: &mut dyn Backend,
        part: Part<'_>,
        step: u64,
    ) -> Result<Vec<f32>, BackendError> {
        let [a, b, c, d] = self.secret;
        let mut draws = Draws::new("lapwing private steps 1", &[a, b, c, d, step]);
        let rate = sample_rate(self.batch, part.len());
        let width = part.samples().width();
        self.features.clear();
        self.labels.clear();
        for index in 0..part.len() {
            if draws.chance(rate) {
                let sample = part.position(index);
                self.features
                    .extend_from_slice(&part.samples().features()[sample * width..(sample + 1) * width]);
                self.labels.push(part.samples().labels()[sample]);
            }
        }
        let norm = f64::from(self.privacy.norm_micro) / 1e6;
        let mut sum = if self.labels.is_empty() {
            vec![0.0; backend.layout().parameters()]
        } else {
            let batch = Batch {
                features: &self.features,
                labels: &self.labels,
                width,
                // How often classes occur is known of the samples alone.
                counts: &[],
            };
            backend.clipped_sum(&batch, norm as f32)?
        };
        let deviation = norm * f64::from(self.privacy.noise_micro) / 1e6;
        // The number that came is as secret as which ones did: divided is by how many come in the mean.
        let expected = rate * part.len().max(1) as f64;
        for value in &mut sum {
            *value = ((f64::from(*value) + deviation * draws.normal()) / expected) as f32;
        }
        Ok(sum)
    }
}

/// The chance with which a step takes each of so many samples.
pub(crate) fn sample_rate(batch: u32, samples: usize) -> f64 {
    (f64::from(batch) / samples.max(1) as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::backend;
    use crate::data::Samples;
    use crate::model::InputShape;
    use lapwing_base::{Algorithm, JobId, NodeId, Round, RoundKind};

    const PRIVACY: Privacy = Privacy {
        noise_micro: 1_500_000,
        norm_micro: 200_000,
        delta_nano: 10_000,
    };

    /// Pixels from 0 to 1, and whatever label.
    fn samples(count: usize, scale: f32) -> Samples {
        let mut draws = Draws::new("private steps tests", &[count as u64]);
        let features = (0..count * 64).map(|_| draws.symmetric().abs() * scale).collect();
        let labels = (0..count).map(|_| draws.below(10) as u8).collect();
        Samples::new(features, labels, 64).unwrap()
    }

    fn plain() -> Box<dyn Backend> {
        let shape = InputShape::image(1, 8, 8);
        backend("plain", "mlp", shape, 10, 1, &Algorithm::Default.tuning()).unwrap()
    }

    fn length(vector: &[f32]) -> f64 {
        vector
            .iter()
            .map(|value| f64::from(*value).powi(2))
            .sum::<f64>()
            .sqrt()
    }

    #[test]
    fn no_sample_moves_the_sum_by_more_than_the_norm_and_small_gradients_are_left_alone() {
        let mut backend = plain();
        let samples = samples(7, 50.0);
        let all = samples.as_batch();
        let sum_of = |backend: &mut dyn Backend, count: usize, norm: f32| {
            let batch = Batch {
                features: &all.features[..count * all.width],
                labels: &all.labels[..count],
                counts: &[],
                ..all
            };
            backend.clipped_sum(&batch, norm).unwrap()
        };
        let mut before = vec![0.0; backend.layout().parameters()];
        for count in 1..=7 {
            let after = sum_of(&mut *backend, count, 0.2);
            let moved: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            assert!((length(&moved) - 0.2).abs() < 1e-4, "{}", length(&moved));
            before = after;
        }
        // Unclipped it is the gradient of the whole batch, times its samples.
        let whole = sum_of(&mut *backend, 7, 1e9);
        let batch = Batch { counts: &[], ..all };
        let (_, mean) = backend.gradient(&batch).unwrap();
        let apart: Vec<f32> = whole
            .iter()
            .zip(&mean)
            .map(|(sum, mean)| sum - 7.0 * mean)
            .collect();
        assert!(length(&apart) < 1e-4 * length(&whole), "{}", length(&apart));
    }

    #[test]
    fn the_noise_has_the_deviation_that_was_promised() {
        let mut backend = plain();
        // Nobody is there, so that what comes is noise alone.
        let nobody = Samples::new(Vec::new(), Vec::new(), 64).unwrap();
        let mut private = PrivateSteps::new(PRIVACY, 32, [1, 2, 3, 4]);
        // One is divided by: there is no sample.
        let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
        for step in 0..20 {
            for value in private.gradient(&mut *backend, (&nobody).into(), step).unwrap() {
                sum += f64::from(value);
                squares += f64::from(value).powi(2);
                count += 1.0;
            }
        }
        let deviation = (squares / count).sqrt();
        // 380,000 draws: a thousandth is their own scatter.
        assert!((deviation / 0.3 - 1.0).abs() < 0.01, "{deviation}");
        assert!((sum / count).abs() < 0.003, "{}", sum / count);
    }

    #[test]
    fn samples_come_with_the_chance_that_the_accountant_goes_by_and_another_secret_takes_others() {
        let mut backend = plain();
        let samples = samples(200, 1.0);
        let mut came = Vec::new();
        for secret in [[1; 4], [2; 4]] {
            let mut private = PrivateSteps::new(PRIVACY, 20, secret);
            let mut counts = Vec::new();
            for step in 0..100 {
                private.gradient(&mut *backend, (&samples).into(), step).unwrap();
                counts.push(private.labels.len());
            }
            let mean = counts.iter().sum::<usize>() as f64 / 100.0;
            // A deviation of 4.2 a step.
            assert!((mean - 20.0).abs() < 2.0, "{mean}");
            assert!(counts.iter().any(|count| *count != counts[0]));
            came.push(counts);
        }
        assert_ne!(came[0], came[1]);
    }

    #[test]
    fn steps_are_those_of_a_reference_with_gradients_of_another_backend() {
        let shape = InputShape::image(1, 8, 8);
        let tuning = Algorithm::Default.tuning();
        let mut reference = backend("burn", "mlp", shape, 10, 1, &tuning).unwrap();
        let samples = samples(30, 1.0);
        let (all, (mut model, mut momentum)) = (samples.as_batch(), (Vec::new(), Vec::new()));
        reference.read(&mut model);
        momentum.resize(model.len(), 0.0_f64);
        let mut clipped = 0;
        for step in 0..3 {
            let mut draws = Draws::new("lapwing private steps 1", &[1, 2, 3, 4, step]);
            let taken: Vec<usize> = (0..30).filter(|_| draws.chance(0.2)).collect();
            let mut sum = vec![0.0_f64; model.len()];
            for sample in taken {
                let one = Batch {
                    features: &all.features[sample * 64..(sample + 1) * 64],
                    labels: &all.labels[sample..=sample],
                    width: 64,
                    counts: &[],
                };
                let (_, gradient) = reference.gradient(&one).unwrap();
                let longer = length(&gradient) / 0.2;
                clipped += u32::from(longer > 1.0);
                let cut = gradient.iter().map(|value| f64::from(*value) / longer.max(1.0));
                sum.iter_mut().zip(cut).for_each(|(sum, value)| *sum += value);
            }
            for ((value, moved), sum) in model.iter_mut().zip(&mut momentum).zip(sum) {
                // Six of thirty are taken in the mean.
                let noisy = (sum + 1.5 * 0.2 * draws.normal()) / 6.0;
                // Nesterov's momentum and weight decay, which see the noisy gradient alone.
                let slope = noisy + 1e-4 * f64::from(*value);
                *moved = 0.9 * *moved + slope;
                *value = (f64::from(*value) - 0.05 * (slope + 0.9 * *moved)) as f32;
            }
            reference.write(&model).unwrap();
        }
        assert!(clipped > 5, "{clipped}");
        let mut private = plain();
        let mut steps = PrivateSteps::new(PRIVACY, 6, [1, 2, 3, 4]);
        let mut step = 0;
        let trained = steps
            .take(&mut *private, (&samples).into(), &mut step, &plan())
            .unwrap();
        assert_eq!((trained.loss, trained.samples, step), (0.0, 18, 3));
        let mut own = Vec::new();
        private.read(&mut own);
        let apart = own
            .iter()
            .zip(&model)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(apart < 1e-5, "{apart}");
    }

    /// Three steps.
    fn plan() -> RoundPlan {
        RoundPlan {
            job: JobId(1),
            round: Round(1),
            kind: RoundKind::Sparse,
            seed: [0; 32],
            pairs: Vec::new(),
            alone: vec![NodeId(1)],
            compression: 25,
            local_steps: 3,
            lr_micro: 50_000,
            deadline_ms: 1,
        }
    }

    #[test]
    fn a_sample_whose_gradient_is_not_finite_neither_counts_nor_is_told_of() {
        let mut backend = plain();
        let mut features = vec![0.5; 128];
        features[64..].fill(f32::MAX);
        let both = Samples::new(features, vec![3, 4], 64).unwrap();
        let one = Samples::new(vec![0.5; 64], vec![3], 64).unwrap();
        let mut sum_of = |samples: &Samples| {
            let batch = Batch {
                counts: &[],
                ..samples.as_batch()
            };
            backend.clipped_sum(&batch, 0.2).unwrap()
        };
        assert_eq!(sum_of(&both), sum_of(&one));
    }

    #[test]
    fn a_backend_without_gradients_of_single_samples_says_which_one_has_them() {
        let shape = InputShape::image(1, 8, 8);
        let mut tuning = Algorithm::Default.tuning();
        tuning.privacy = Some(PRIVACY);
        let Err(error) = backend("burn", "mlp", shape, 10, 1, &tuning) else {
            panic!("it promises what it cannot keep")
        };
        assert!(error.to_string().contains("`plain`"), "{error}");
    }
}
