//! Our own loops: every layer, forward and backward, for one thread, with the widest vectors the processor has.
//!
//! A slice of the batch is laid out so that a row holds one number of every sample (`plain/multiply.rs`); then all
//! layers are sums of rows, and no tensor is copied to suit a library. It holds the parameters, the momentum and
//! one gradient, and while a batch is computed the activations of one slice.

mod activation;
mod attention;
mod buffers;
mod columns;
mod conv;
mod dense;
mod loss;
mod multiply;
mod norm;
mod pool;
mod steps;

use std::borrow::Cow;

use lapwing_base::Tuning;
use pulp::Arch;

use super::optimiser::Optimiser;
use super::prior::shifts;
use super::score::{Score, Tally};
use super::{Backend, BackendError, StepReport, answers, check_batch, check_flat};
use crate::data::{Batch, Samples};
use crate::layout::Layout;
use crate::model::Model;
use crate::quantise::are_finite;
use buffers::Buffers;
use columns::{columns_for, transpose, transpose_part};
use loss::cross_entropy;
use steps::{Pass, Step};

/// A model on loops of our own.
#[derive(Debug)]
pub(super) struct Plain {
    model: Model,
    steps: Vec<Step>,
    flat: Vec<f32>,
    gradient: Vec<f32>,
    optimiser: Optimiser,
    arch: Arch,
    buffers: Buffers,
}

/// Samples computed at a time: four of the widest vectors, and few enough that what passes from layer to layer stays
/// near the processor.
const SLICE: usize = 64;

impl Plain {
    /// The model with its first parameters and an optimiser at rest.
    pub(super) fn new(model: Model, seed: u64, tuning: &Tuning) -> Self {
        let flat = model.initial(seed);
        Self {
            steps: Step::all(model.layers(), model.extent(), &mut 0),
            gradient: vec![0.0; flat.len()],
            optimiser: Optimiser::new(flat.len(), tuning),
            flat,
            model,
            arch: Arch::new(),
            buffers: Buffers::default(),
        }
    }

    /// Makes `self.gradient` that of the batch; returns the mean loss.
    fn backpropagate(&mut self, batch: &Batch<'_>) -> Result<f32, BackendError> {
        check_batch(batch, &self.model)?;
        let classes = self.model.classes();
        let shifts = shifts(batch, &self.model);
        let answers = answers(batch, self.model.input());
        let each = self.model.input().answers();
        let weight = 1.0 / answers.len() as f32;
        self.gradient.fill(0.0);
        let mut loss = 0.0;
        for (features, answers) in batch
            .features
            .chunks(SLICE * batch.width)
            .zip(answers.chunks(SLICE * each))
        {
            let pass = pass(self.arch, &self.buffers, &self.flat, features.len() / batch.width);
            let input = transpose(pass.buffers, features, pass.samples, batch.width, pass.columns);
            let mut kept = Vec::with_capacity(self.steps.len());
            let mut logits = pass.forward(&self.steps, input, Some(&mut kept));
            let shifts = shifts.as_deref();
            loss += pass
                .arch
                .dispatch(|| cross_entropy(&mut logits, classes, pass.columns, answers, shifts, weight));
            let left = pass.backward(&self.steps, kept, logits, &mut self.gradient, true);
            pass.buffers.give(left);
        }
        Ok((loss / answers.len() as f64) as f32)
    }
}

/// A pass over so many samples.
fn pass<'a>(arch: Arch, buffers: &'a Buffers, flat: &'a [f32], samples: usize) -> Pass<'a> {
    Pass {
        arch,
        buffers,
        flat,
        samples,
        columns: columns_for(samples),
    }
}

impl Backend for Plain {
    fn layout(&self) -> &Layout {
        self.model.layout()
    }

    fn flat(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.flat)
    }

    fn write(&mut self, flat: &[f32]) -> Result<(), BackendError> {
        check_flat(flat, self.model.layout())?;
        self.flat.copy_from_slice(flat);
        Ok(())
    }

    fn edit(&mut self, edit: &mut dyn FnMut(&mut [f32])) -> Result<(), BackendError> {
        edit(&mut self.flat);
        check_flat(&self.flat, self.model.layout())
    }

    fn step(&mut self, batch: &Batch<'_>, lr: f32) -> Result<StepReport, BackendError> {
        let loss = self.backpropagate(batch)?;
        if !loss.is_finite() || !are_finite(&self.gradient) {
            return Err(BackendError::Diverged { loss });
        }
        self.optimiser.step(&mut self.flat, &self.gradient, lr);
        // A batch is bounded by its job's `u32`.
        let samples = u32::try_from(batch.labels.len()).unwrap_or(u32::MAX);
        Ok(StepReport { loss, samples })
    }

    fn descend(&mut self, gradient: &[f32], lr: f32) -> Result<(), BackendError> {
        check_flat(gradient, self.model.layout())?;
        self.optimiser.step(&mut self.flat, gradient, lr);
        Ok(())
    }

    fn gradient(&mut self, batch: &Batch<'_>) -> Result<(f32, Vec<f32>), BackendError> {
        let loss = self.backpropagate(batch)?;
        Ok((loss, self.gradient.clone()))
    }

    fn clipped_sum(&mut self, batch: &Batch<'_>, norm: f32) -> Result<Vec<f32>, BackendError> {
        check_batch(batch, &self.model)?;
        let mut sum = vec![0.0; self.flat.len()];
        let samples = batch.features.chunks(batch.width).zip(batch.labels.chunks(1));
        for (features, labels) in samples {
            let one = Batch {
                features,
                labels,
                ..*batch
            };
            self.backpropagate(&one)?;
            let squares: f64 = self.gradient.iter().map(|value| f64::from(*value).powi(2)).sum();
            // An error would tell of this sample.
            if !squares.is_finite() {
                continue;
            }
            let share = (f64::from(norm) / squares.sqrt()).min(1.0) as f32;
            let gradient = self.gradient.iter();
            sum.iter_mut()
                .zip(gradient)
                .for_each(|(sum, value)| *sum += share * value);
        }
        Ok(sum)
    }

    fn evaluate(&mut self, data: &Samples) -> Result<Score, BackendError> {
        let mut tally = Tally::default();
        let (classes, each) = (self.model.classes(), self.model.input().answers());
        for batch in data.chunks(SLICE) {
            check_batch(&batch, &self.model)?;
            let answers = answers(&batch, self.model.input());
            let pass = pass(self.arch, &self.buffers, &self.flat, batch.labels.len());
            let input = transpose(
                pass.buffers,
                batch.features,
                pass.samples,
                batch.width,
                pass.columns,
            );
            let logits = pass.forward(&self.steps, input, None);
            for (position, logits) in logits.chunks_exact(classes * pass.columns).enumerate() {
                let shape = (pass.columns, pass.samples);
                let rows = transpose_part(pass.buffers, logits, classes, shape, classes);
                let labels = answers.iter().skip(position).step_by(each);
                tally.add(&rows, labels.copied(), classes);
                pass.buffers.give(rows);
            }
            pass.buffers.give(logits);
        }
        Ok(tally.score())
    }

    fn optimiser_state(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(self.optimiser.state())
    }

    fn set_optimiser_state(&mut self, state: &[f32]) -> Result<(), BackendError> {
        check_flat(state, self.model.layout())?;
        self.optimiser.set_state(state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::Algorithm;

    use crate::draws::Draws;
    use crate::model::InputShape;

    #[test]
    fn narrow_vectors_and_none_give_the_gradient_of_the_widest() {
        let input = InputShape::image(1, 28, 28);
        let mut draws = Draws::new("plain tests", &[1]);
        let features = (0..20 * input.values()).map(|_| draws.symmetric()).collect();
        let labels = (0..20).map(|_| draws.below(10) as u8).collect();
        let samples = Samples::new(features, labels, input.values()).unwrap();
        let gradient_on = |arch| {
            let mut plain = Plain::new(
                Model::named("lenet", input, 10).unwrap(),
                1,
                &Algorithm::Default.tuning(),
            );
            plain.arch = arch;
            plain.gradient(&samples.as_batch()).unwrap().1
        };
        let widest = gradient_on(Arch::new());
        let mut others = vec![Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        others.extend(pulp::x86::V3::try_new().map(Arch::V3));
        for arch in others {
            let gradient = gradient_on(arch);
            let same = gradient.iter().zip(&widest).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(same, "{arch:?}");
        }
    }

    #[test]
    fn steps_of_one_size_need_memory_once() {
        let input = InputShape::image(1, 28, 28);
        let samples = Samples::new(vec![0.5; 70 * input.values()], vec![3; 70], input.values()).unwrap();
        let mut plain = Plain::new(
            Model::named("resnet20", input, 10).unwrap(),
            1,
            &Algorithm::Default.tuning(),
        );
        let _ = plain.step(&samples.as_batch(), 0.1).unwrap();
        let held = plain.buffers.held();
        for _ in 0..3 {
            let _ = plain.step(&samples.as_batch(), 0.1).unwrap();
        }
        assert_eq!(plain.buffers.held(), held);
    }
}
