//! Stochastic gradient descent on flat vectors, shared by all backends so that they step alike.
//!
//! It computes no gradient.

use lapwing_base::Tuning;

/// SGD with Nesterov momentum and weight decay, as PyTorch defines it (its `torch.optim.SGD`).
#[derive(Debug)]
pub(super) struct Optimiser {
    momentum: Vec<f32>,
    /// How much of the last direction is kept.
    kept: f32,
    /// Pull of every parameter towards zero, relative to the learning rate.
    decay: f32,
}

impl Optimiser {
    /// At rest.
    pub(super) fn new(parameters: usize, tuning: &Tuning) -> Self {
        let millionths = |count: u32| (f64::from(count) / 1e6) as f32;
        Self {
            momentum: vec![0.0; parameters],
            kept: millionths(tuning.momentum_micro),
            decay: millionths(tuning.weight_decay_micro),
        }
    }

    /// Moves `flat` one step down the gradient. All three vectors are as long as the model.
    pub(super) fn step(&mut self, flat: &mut [f32], gradient: &[f32], lr: f32) {
        let (kept, decay) = (self.kept, self.decay);
        for ((value, momentum), slope) in flat.iter_mut().zip(&mut self.momentum).zip(gradient) {
            let slope = slope + decay * *value;
            *momentum = kept * *momentum + slope;
            *value -= lr * (slope + kept * *momentum);
        }
    }

    /// The momentum, coordinate by coordinate.
    pub(super) fn state(&self) -> &[f32] {
        &self.momentum
    }

    /// Replaces the momentum with one of the same length.
    pub(super) fn set_state(&mut self, state: &[f32]) {
        self.momentum.clear();
        self.momentum.extend_from_slice(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::Algorithm;

    #[test]
    fn a_step_follows_the_published_recurrence() {
        let mut optimiser = Optimiser::new(1, &Algorithm::Default.tuning());
        let mut flat = [1.0];
        optimiser.step(&mut flat, &[0.5], 0.1);
        // g = 0.5001, v = 0.5001, w = 1 - 0.1 * (0.5001 + 0.9 * 0.5001).
        assert!((flat[0] - (1.0 - 0.1 * 1.9 * 0.5001)).abs() < 1e-6);
        let before = flat[0];
        optimiser.step(&mut flat, &[0.0], 0.1);
        let slope = 1e-4 * before;
        let momentum = 0.9 * 0.5001 + slope;
        assert!((flat[0] - (before - 0.1 * (slope + 0.9 * momentum))).abs() < 1e-6);
    }
}
