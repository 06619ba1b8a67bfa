//! What training with noise tells about one sample: an accountant for differentially private SGD, and how much noise a
//! promise needs.
//!
//! Abadi et al., "Deep Learning with Differential Privacy" (arXiv 1607.00133): each sample's gradient is clipped to a
//! norm, their sum gets normal noise of a multiple of that norm, and every step takes each sample with the same chance.
//! Mironov, "Rényi Differential Privacy" (arXiv 1702.07476) adds up what steps tell; Mironov, Talwar and Zhang, "Rényi
//! Differential Privacy of the Sampled Gaussian Mechanism" (arXiv 1908.10530) says what one step tells.
//!
//! Pure numbers. It clips no gradient, draws no noise, and promises nothing where batches are not drawn so.

/// Adds up the Rényi divergences of the steps of a training.
#[derive(Clone, Debug)]
pub struct Accountant {
    /// At each of the [`orders`].
    spent: Vec<f64>,
}

/// A setting for which nothing can be promised.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum PrivacyError {
    /// Not a chance.
    #[error("a sample is taken with a chance above 0 and up to 1, not {0}")]
    SampleRate(f64),
    /// Too little noise to compute with, or not a number.
    #[error("noise is at least {NOISE_MIN} times the norm of a gradient, not {0}")]
    Noise(f64),
    /// Not a chance that makes sense.
    #[error("delta is above 0 and below 1, not {0}")]
    Delta(f64),
    /// No amount of noise that is worth looking at keeps the promise.
    #[error("an epsilon of {0} would need noise of more than {NOISE_MAX} times the norm of a gradient")]
    Epsilon(f64),
}

/// Below this nothing worth the name is promised: one step alone has an epsilon in the thousands.
const NOISE_MIN: f64 = 0.05;

/// With a million steps on every sample this still promises an epsilon below one.
const NOISE_MAX: f64 = 10_000.0;

/// Where divergences are kept: densely where trainings of many steps have their best one, up to where those of few do.
fn orders() -> impl Iterator<Item = f64> {
    let fine = (1..100).map(|tenth| 1.0 + f64::from(tenth) / 10.0);
    let whole = (11..64).map(f64::from);
    fine.chain(whole).chain([80.0, 96.0, 128.0, 192.0, 256.0, 512.0])
}

impl Default for Accountant {
    fn default() -> Self {
        Self::new()
    }
}

impl Accountant {
    /// Nothing was told yet.
    pub fn new() -> Self {
        Self {
            spent: orders().map(|_| 0.0).collect(),
        }
    }

    /// So many steps that took each sample with a chance of `sample_rate` and added noise with a standard deviation of
    /// `noise_multiplier` times the norm that gradients are clipped to, to their sum.
    ///
    /// # Errors
    ///
    /// When the chance is not one, or there is too little noise; then nothing is added.
    pub fn add_steps(
        &mut self,
        sample_rate: f64,
        noise_multiplier: f64,
        steps: u64,
    ) -> Result<(), PrivacyError> {
        check(sample_rate, noise_multiplier)?;
        for (spent, order) in self.spent.iter_mut().zip(orders()) {
            // Theorem 3 of 1702.07476: divergences of one order add up.
            *spent += steps as f64 * divergence(order, sample_rate, noise_multiplier);
        }
        Ok(())
    }

    /// All of this so many times.
    #[must_use]
    pub fn times(&self, times: u64) -> Self {
        Self {
            spent: self.spent.iter().map(|spent| spent * times as f64).collect(),
        }
    }

    /// And what these tell.
    pub fn add(&mut self, other: &Self) {
        self.spent
            .iter_mut()
            .zip(&other.spent)
            .for_each(|(spent, more)| *spent += more);
    }

    /// The epsilon that holds but for a chance of `delta`: the ratio to which any outcome's probability can change by one
    /// sample is at most its exponential.
    ///
    /// The best over the orders of the conversion of Balle et al., "Hypothesis Testing Interpretations and Rényi
    /// Differential Privacy" (arXiv 1905.09982), Theorem 21, which the common libraries use too.
    ///
    /// # Errors
    ///
    /// When `delta` is not between 0 and 1.
    pub fn epsilon(&self, delta: f64) -> Result<f64, PrivacyError> {
        if !(delta > 0.0 && delta < 1.0) {
            return Err(PrivacyError::Delta(delta));
        }
        let converted = self.spent.iter().zip(orders()).map(|(spent, order)| {
            spent + ((order - 1.0) / order).ln() - (delta.ln() + order.ln()) / (order - 1.0)
        });
        // Nothing told is an epsilon of zero, which no order quite reaches.
        let best = converted.fold(f64::INFINITY, f64::min).max(0.0);
        Ok(if self.spent.iter().all(|spent| *spent == 0.0) {
            0.0
        } else {
            best
        })
    }
}

/// The least noise, to a thousandth, in multiples of the norm that gradients are clipped to, with which so many steps
/// keep within an epsilon. A step adds it to the sum of a batch: to the mean, divided by the batch's size.
///
/// # Errors
///
/// When a number is out of its range, or no noise is enough.
pub fn noise_multiplier(epsilon: f64, delta: f64, sample_rate: f64, steps: u64) -> Result<f64, PrivacyError> {
    let epsilon_of = |noise: f64| {
        let mut accountant = Accountant::new();
        accountant.add_steps(sample_rate, noise, steps)?;
        accountant.epsilon(delta)
    };
    if epsilon.is_nan() || epsilon_of(NOISE_MAX)? > epsilon {
        return Err(PrivacyError::Epsilon(epsilon));
    }
    let (mut too_little, mut enough) = (NOISE_MIN, NOISE_MAX);
    if epsilon_of(too_little)? <= epsilon {
        return Ok(too_little);
    }
    while enough - too_little > 0.001 * too_little.min(1.0) {
        // Halves the ratio: noise may be anything from a tenth to thousands.
        let between = (too_little * enough).sqrt();
        if epsilon_of(between)? <= epsilon {
            enough = between;
        } else {
            too_little = between;
        }
    }
    Ok(enough)
}

fn check(sample_rate: f64, noise_multiplier: f64) -> Result<(), PrivacyError> {
    if !(sample_rate > 0.0 && sample_rate <= 1.0) {
        return Err(PrivacyError::SampleRate(sample_rate));
    }
    if !(noise_multiplier.is_finite() && noise_multiplier >= NOISE_MIN) {
        return Err(PrivacyError::Noise(noise_multiplier));
    }
    Ok(())
}

/// The Rényi divergence of an order above one, of one step with this chance `q` and noise `sigma`.
///
/// With all samples in every step it is `order / (2 sigma^2)` (Proposition 7 of 1702.07476). Otherwise Section 3.3 of
/// 1908.10530: `ln(A) / (order - 1)` with `A` the mean, over `z` from a normal distribution of deviation `sigma`, of
/// `(1 - q + q exp((2z - 1) / (2 sigma^2)))^order`. They develop it in series, for whole orders and for others; here it is
/// integrated as it stands, by the trapezoidal rule, whose error on such a function (analytic, and gone at both ends like
/// a normal density) falls exponentially with the step: at an eighth of a deviation it is below the rounding.
fn divergence(order: f64, q: f64, sigma: f64) -> f64 {
    let variance = sigma * sigma;
    if q >= 1.0 {
        return order / (2.0 * variance);
    }
    // The mass lies between the densities around 0 and around `order`; twelve deviations out it is 1e-31 of the whole.
    let (from, to) = (-12.0 * sigma, order + 12.0 * sigma);
    let step = sigma.min(variance) / 8.0;
    let points = ((to - from) / step).ceil() as u64;
    let log_term = |point: u64| {
        let z = from + point as f64 * step;
        let log_density = -z * z / (2.0 * variance);
        log_density + order * log_mix(q, (2.0 * z - 1.0) / (2.0 * variance))
    };
    let largest = (0..=points).map(log_term).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = (0..=points).map(|point| (log_term(point) - largest).exp()).sum();
    let log_scale = (step / (sigma * std::f64::consts::TAU.sqrt())).ln();
    // A divergence is never negative; a rounding might be.
    ((largest + sum.ln() + log_scale) / (order - 1.0)).max(0.0)
}

/// `ln(1 - q + q e^t)`, also where `e^t` is too large for a number.
fn log_mix(q: f64, t: f64) -> f64 {
    if t > 0.0 {
        t + (q + (1.0 - q) * (-t).exp()).ln()
    } else {
        (q * t.exp_m1()).ln_1p()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(sample_rate: f64, noise: f64, steps: u64) -> Accountant {
        let mut accountant = Accountant::new();
        accountant.add_steps(sample_rate, noise, steps).unwrap();
        accountant
    }

    /// The earlier conversion, Proposition 3 of 1702.07476, by which older figures were published.
    fn epsilon_of_2017(accountant: &Accountant, delta: f64) -> f64 {
        let converted = accountant.spent.iter().zip(orders());
        converted
            .map(|(spent, order)| spent - delta.ln() / (order - 1.0))
            .fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn a_published_epsilon_of_opacus_is_met_to_all_its_digits() {
        // Its test of the accountant: noise 1.5, rate 0.04, 90 epochs of 25 steps.
        let epsilon = after(0.04, 1.5, 2250).epsilon(1e-5).unwrap();
        assert!((epsilon - 7.329_111_171_43).abs() < 1e-8, "{epsilon}");
    }

    #[test]
    fn the_published_noise_for_an_epsilon_is_found() {
        // Opacus again: its search ends within 0.01 of the epsilon, below.
        for (steps, published) in [(2250, 1.416), (2000, 1.3562)] {
            let noise = noise_multiplier(8.0, 1e-5, 0.04, steps).unwrap();
            assert!((noise - published).abs() < 0.003, "{noise}");
            assert!(after(0.04, noise, steps).epsilon(1e-5).unwrap() <= 8.0);
        }
    }

    #[test]
    fn the_epsilons_of_the_mnist_tutorial_of_tensorflow_privacy_are_met() {
        // 60,000 digits in batches of 256, delta 1e-5; published with the conversion of their time, to two places.
        for (noise, epochs, published) in [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)] {
            let steps = epochs * 60_000 / 256;
            let accountant = after(256.0 / 60_000.0, noise, steps);
            let epsilon = epsilon_of_2017(&accountant, 1e-5);
            assert!((epsilon - published).abs() < 0.02, "{noise}: {epsilon}");
            assert!(accountant.epsilon(1e-5).unwrap() < epsilon);
        }
    }

    #[test]
    fn whole_orders_are_the_finite_sum_of_the_paper() {
        // 1908.10530, Section 3.3: for whole orders the mean is a binomial sum.
        for (q, sigma) in [(0.01, 0.7), (0.01, 4.0), (0.3, 1.0), (0.9, 2.5), (1e-4, 0.5)] {
            for order in [2_u32, 3, 7, 20] {
                let (mut binomial, mut sum) = (1.0, 0.0);
                for k in 0..=order {
                    let (k, n) = (f64::from(k), f64::from(order));
                    let power = (1.0_f64 - q).powf(n - k) * q.powf(k);
                    sum += binomial * power * ((k * k - k) / (2.0 * sigma * sigma)).exp();
                    binomial *= (n - k) / (k + 1.0);
                }
                let expected = f64::from(order - 1).recip() * f64::ln(sum);
                let integrated = divergence(f64::from(order), q, sigma);
                let error = (integrated - expected).abs();
                assert!(
                    error <= 1e-9 * expected + 1e-13,
                    "{q} {sigma} {order}: {integrated} {expected}"
                );
            }
        }
    }

    #[test]
    fn steps_add_up_and_more_noise_or_fewer_samples_tell_less() {
        let epsilon = |accountant: Accountant| accountant.epsilon(1e-5).unwrap();
        let mut twice = after(0.01, 1.0, 500);
        twice.add_steps(0.01, 1.0, 500).unwrap();
        let (twice, once) = (epsilon(twice), epsilon(after(0.01, 1.0, 1000)));
        assert!((twice - once).abs() < 1e-12);
        assert!(epsilon(after(0.01, 1.1, 1000)) < once);
        assert!(epsilon(after(0.009, 1.0, 1000)) < once);
        // With every sample in every step there is nothing to gain from chance.
        assert!(epsilon(after(0.999_999, 2.0, 10)) <= epsilon(after(1.0, 2.0, 10)) + 1e-9);
        assert_eq!(epsilon(Accountant::new()), 0.0);
    }

    #[test]
    fn what_nothing_can_be_promised_for_is_refused() {
        let mut accountant = Accountant::new();
        for rate in [0.0, -1.0, 1.1, f64::NAN] {
            assert!(matches!(
                accountant.add_steps(rate, 1.0, 1),
                Err(PrivacyError::SampleRate(_))
            ));
        }
        for noise in [0.0, 0.01, f64::INFINITY, f64::NAN] {
            assert!(matches!(
                accountant.add_steps(0.1, noise, 1),
                Err(PrivacyError::Noise(_))
            ));
        }
        for delta in [0.0, 1.0, f64::NAN] {
            assert!(matches!(accountant.epsilon(delta), Err(PrivacyError::Delta(_))));
        }
        assert!(matches!(
            noise_multiplier(1e-9, 1e-5, 1.0, 1_000_000),
            Err(PrivacyError::Epsilon(_))
        ));
        assert!(noise_multiplier(f64::NAN, 1e-5, 0.1, 1).is_err());
    }
}
