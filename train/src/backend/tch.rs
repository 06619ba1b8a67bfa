//! The backend on libtorch, PyTorch's own library, through the crate of this name: on CUDA where there is one,
//! otherwise on one thread of the processor.
//!
//! Parameters and momentum are one tensor each and stay where they are computed; every parameter is a view of a part of
//! them. With one kind of processor and one version of libtorch the same steps give the same bits; across machines they
//! agree to about six digits.

mod forward;
mod script;

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use lapwing_base::Tuning;
use tch::{Device, Kind, Reduction, TchError, Tensor};

use super::prior::shifts;
use super::score::{Score, Tally};
use super::{Backend, BackendError, StepReport, answers, check_batch, check_flat};
use crate::data::{Batch, Samples};
use crate::layout::Layout;
use crate::model::{Extent, InputKind, InputShape, Model, ModelError};
use crate::quantise::are_finite;
use crate::script::ScriptModel;
use forward::{logits, long};
use script::{Script, ScriptError};

/// A model on libtorch.
#[derive(Debug)]
pub(super) struct Tch {
    /// The layers; of a script, which has its own, only what goes in and what comes out.
    model: Model,
    script: Option<Script>,
    layout: Layout,
    device: Device,
    /// The parameters, in the layout's order.
    flat: Tensor,
    /// The same as tensors by which a loss can be differentiated, in their shapes; none of a script.
    leaves: Vec<Tensor>,
    /// As long as the parameters.
    momentum: Tensor,
    /// How much of the last direction is kept.
    kept: f32,
    /// Pull of every parameter towards zero, relative to the learning rate.
    decay: f32,
}

/// Samples evaluated at a time: enough to keep the matrix kernels busy, few enough that what passes from layer to layer
/// stays in tens of megabytes.
const EVALUATED_AT_ONCE: usize = 64;

/// What a step frees the next one needs again, and every page that has gone back to the system in between costs a fault: up
/// to an eighth of a step of `resnet20`.
///
/// glibc keeps at the end of its heap twice as much as the largest block, of up to 32 MiB, that had pages of its own and was
/// freed (mallopt(3), `M_MMAP_THRESHOLD`). So one of nearly that size is taken and freed. Other C libraries do nothing.
fn keep_memory() {
    // Whoever has no room for it goes on as without.
    drop(Tensor::f_empty([KEPT_BYTES], (Kind::Uint8, Device::Cpu)));
}

/// A little less than the 32 MiB that it is up to.
const KEPT_BYTES: i64 = 31 << 20;

/// Slopes in a row, and of which parameters.
type Part = (Range<usize>, Tensor);

/// Of so many parameters slopes are put together before they are used: calls of libtorch take longer than what they do then,
/// and of more, another copy of all.
const TOGETHER_MAX: usize = 1 << 19;

impl Tch {
    /// The model with its first parameters and an optimiser at rest.
    ///
    /// # Errors
    ///
    /// When libtorch has no memory for them on its device.
    pub(super) fn new(model: Model, seed: u64, tuning: &Tuning) -> Result<Self, BackendError> {
        let device = Device::cuda_if_available();
        let flat = on(device, &model.initial(seed))?;
        Ok(Self::with(model, None, flat, device, tuning)?)
    }

    /// A network from a file with the parameters that are in it, and an optimiser at rest.
    ///
    /// # Errors
    ///
    /// When the file is not there, not the job's, or cannot be trained.
    pub(super) fn of_script(
        named: &ScriptModel,
        input: InputShape,
        classes: usize,
        tuning: &Tuning,
    ) -> Result<Self, BackendError> {
        // What `check_batch` takes for granted.
        let values = input.values();
        if values == 0 || classes < 2 {
            return Err(ModelError::Empty { values, classes }.into());
        }
        let device = Device::cuda_if_available();
        let script = Script::load(named, device).map_err(|error| refused(&named.file, &error))?;
        let rows = script
            .parameters()
            .iter()
            .map(|parameter| parameter.f_detach()?.f_reshape(-1))
            .collect::<Result<Vec<_>, _>>()?;
        let flat = Tensor::f_cat(&rows, 0)?;
        check_flat(&read_out(&flat)?, script.layout())?;
        let model = Model::of(Vec::new(), input, classes)?;
        let mut tch = Self::with(model, Some(script), flat, device, tuning)?;
        let views = tch.views()?;
        if let Some(script) = &mut tch.script {
            script.bind(&views)?;
        }
        compute_alone();
        // Whether it takes these samples and gives such answers is told now, and not when it is to train.
        let sample = Batch {
            features: &vec![0.0; values],
            labels: &[0],
            width: values,
            counts: &[],
        };
        let _ = tch.logits(&sample, &views, false)?;
        Ok(tch)
    }

    fn with(
        model: Model,
        script: Option<Script>,
        flat: Tensor,
        device: Device,
        tuning: &Tuning,
    ) -> Result<Self, TchError> {
        let millionths = |count: u32| (f64::from(count) / 1e6) as f32;
        keep_memory();
        let layout = script
            .as_ref()
            .map_or_else(|| model.layout(), Script::layout)
            .clone();
        let mut tch = Self {
            leaves: Vec::new(),
            momentum: flat.f_zeros_like()?,
            flat,
            layout,
            model,
            script,
            device,
            kept: millionths(tuning.momentum_micro),
            decay: millionths(tuning.weight_decay_micro),
        };
        if tch.script.is_none() {
            let views = tch.views()?;
            tch.leaves = views
                .iter()
                .map(|view| view.f_detach()?.f_set_requires_grad(true))
                .collect::<Result<_, _>>()?;
        }
        Ok(tch)
    }

    /// The parameters as views of the flat tensor, in their shapes.
    fn views(&self) -> Result<Vec<Tensor>, TchError> {
        self.layout
            .iter()
            .map(|parameter| {
                let shape: Vec<i64> = parameter.shape.iter().map(|side| long(*side)).collect();
                part(&self.flat, &parameter.range)?.f_view(&shape[..])
            })
            .collect()
    }

    /// The parameters as tensors by which a loss can be differentiated.
    fn parameters(&self) -> Vec<Tensor> {
        let parameters = self.script.as_ref().map_or(&self.leaves[..], Script::parameters);
        parameters.iter().map(Tensor::shallow_clone).collect()
    }

    /// A batch's features as the model takes them: images, rows of numbers, or bytes.
    fn input(&self, batch: &Batch<'_>) -> Result<Tensor, TchError> {
        let samples = long(batch.labels.len());
        let features = on(self.device, batch.features)?;
        let Extent {
            channels,
            height,
            width,
        } = self.model.extent();
        match self.model.input().kind {
            InputKind::Bytes => features.f_to_kind(Kind::Int64)?.f_view([samples, long(width)]),
            InputKind::Numbers if channels * height == 1 => features.f_view([samples, long(width)]),
            InputKind::Numbers => features.f_view([samples, long(channels), long(height), long(width)]),
        }
    }

    /// The logits of a batch, a row for each answer.
    fn logits(
        &mut self,
        batch: &Batch<'_>,
        parameters: &[Tensor],
        trains: bool,
    ) -> Result<Tensor, BackendError> {
        let input = self.input(batch)?;
        let Some(script) = &mut self.script else {
            return Ok(logits(&self.model, &input, parameters)?);
        };
        let answers = batch.labels.len() * self.model.input().answers();
        let logits = script.logits(&input, trains, [long(answers), long(self.model.classes())]);
        logits.map_err(|error| refused(script.file(), &error))
    }

    /// The mean loss of a batch, and the slopes of parts of the parameters that together are all; all of them finite.
    fn backpropagate(&mut self, batch: &Batch<'_>) -> Result<(f32, Vec<Part>), BackendError> {
        check_batch(batch, &self.model)?;
        compute_alone();
        let parameters = self.parameters();
        let mut logits = self.logits(batch, &parameters, true)?;
        if let Some(shifts) = shifts(batch, &self.model) {
            logits = logits.f_add(&on(self.device, &shifts)?)?;
        }
        let answers: Vec<i64> = answers(batch, self.model.input())
            .iter()
            .map(|answer| i64::from(*answer))
            .collect();
        let answers = Tensor::f_from_slice(&answers)?.f_to_device(self.device)?;
        let loss = logits.f_cross_entropy_loss::<Tensor>(&answers, None, Reduction::Mean, NO_ANSWER, 0.0)?;
        let mut slopes = Tensor::f_run_backward(&[&loss], &parameters, false, false)?;
        for (slopes, parameter) in slopes.iter_mut().zip(&parameters) {
            // A script may have parameters that it does not compute with.
            if !slopes.defined() {
                *slopes = parameter.f_detach()?.f_zeros_like()?;
            }
        }
        let rows = slopes.iter().map(|slopes| slopes.f_reshape(-1));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<Part> = if self.layout.parameters() <= TOGETHER_MAX {
            vec![(0..self.layout.parameters(), Tensor::f_cat(&rows, 0)?)]
        } else {
            let ranges = self.layout.iter().map(|parameter| parameter.range.clone());
            ranges.zip(rows).collect()
        };
        // What is largest and smallest tells whether all are finite, and is waited for once.
        let mut told = vec![loss.f_detach()?];
        for (_, slopes) in &parts {
            let (least, most) = slopes.f_aminmax(None, false)?;
            told.extend([least, most]);
        }
        let told = read_out(&Tensor::f_stack(&told, 0)?)?;
        let loss = told[0];
        match are_finite(&told) {
            true => Ok((loss, parts)),
            false => Err(BackendError::Diverged { loss }),
        }
    }

    /// How far a step at this learning rate goes along the momentum, and along the slopes.
    fn factors(&self, lr: f32) -> Result<[Tensor; 2], TchError> {
        Ok([on(self.device, &[-lr * self.kept])?, on(self.device, &[-lr])?])
    }

    /// Moves some parameters one step down their slopes, as the other backends' optimiser does.
    fn move_down(
        &self,
        parameters: &mut Tensor,
        momentum: &mut Tensor,
        slopes: &Tensor,
        [along, down]: &[Tensor; 2],
    ) -> Result<(), TchError> {
        let scaled = |tensor: &Tensor, factor: f32| tensor.f_mul_scalar(f64::from(factor));
        let slopes = if self.decay == 0.0 {
            slopes.shallow_clone()
        } else {
            scaled(parameters, self.decay)?.f_add_(slopes)?
        };
        let _ = momentum.f_mul_scalar_(f64::from(self.kept))?.f_add_(&slopes)?;
        // In place, without another copy of the parameters in between.
        let _ = parameters
            .f_addcmul_(momentum, along)?
            .f_addcmul_(&slopes, down)?;
        Ok(())
    }
}

impl Backend for Tch {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn flat(&self) -> Cow<'_, [f32]> {
        let mut flat = Vec::new();
        self.read(&mut flat);
        Cow::Owned(flat)
    }

    fn read(&self, flat: &mut Vec<f32>) {
        copy_or_nan(&self.flat, flat);
    }

    fn write(&mut self, flat: &[f32]) -> Result<(), BackendError> {
        check_flat(flat, &self.layout)?;
        self.flat.f_copy_(&Tensor::f_from_slice(flat)?)?;
        Ok(())
    }

    fn step(&mut self, batch: &Batch<'_>, lr: f32) -> Result<StepReport, BackendError> {
        let (loss, parts) = self.backpropagate(batch)?;
        let _guard = tch::no_grad_guard();
        let factors = self.factors(lr)?;
        for (range, slopes) in &parts {
            let mut values = part(&self.flat, range)?;
            let mut momentum = part(&self.momentum, range)?;
            self.move_down(&mut values, &mut momentum, slopes, &factors)?;
        }
        // A batch is bounded by its job's `u32`.
        let samples = u32::try_from(batch.labels.len()).unwrap_or(u32::MAX);
        Ok(StepReport { loss, samples })
    }

    fn descend(&mut self, gradient: &[f32], lr: f32) -> Result<(), BackendError> {
        check_flat(gradient, &self.layout)?;
        compute_alone();
        let slopes = on(self.device, gradient)?;
        let (mut flat, mut momentum) = (self.flat.f_detach()?, self.momentum.f_detach()?);
        self.move_down(&mut flat, &mut momentum, &slopes, &self.factors(lr)?)?;
        Ok(())
    }

    fn gradient(&mut self, batch: &Batch<'_>) -> Result<(f32, Vec<f32>), BackendError> {
        let (loss, parts) = self.backpropagate(batch)?;
        let rows: Vec<Tensor> = parts.into_iter().map(|(_, slopes)| slopes).collect();
        Ok((loss, read_out(&Tensor::f_cat(&rows, 0)?)?))
    }

    fn evaluate(&mut self, data: &Samples) -> Result<Score, BackendError> {
        compute_alone();
        let _guard = tch::no_grad_guard();
        let parameters = self.views()?;
        let mut tally = Tally::default();
        for batch in data.chunks(EVALUATED_AT_ONCE) {
            check_batch(&batch, &self.model)?;
            let logits = read_out(&self.logits(&batch, &parameters, false)?)?;
            let answers = answers(&batch, self.model.input());
            tally.add(&logits, answers.iter().copied(), self.model.classes());
        }
        Ok(tally.score())
    }

    fn optimiser_state(&self) -> Cow<'_, [f32]> {
        let mut state = Vec::new();
        copy_or_nan(&self.momentum, &mut state);
        Cow::Owned(state)
    }

    fn set_optimiser_state(&mut self, state: &[f32]) -> Result<(), BackendError> {
        check_flat(state, &self.layout)?;
        self.momentum.f_copy_(&Tensor::f_from_slice(state)?)?;
        Ok(())
    }
}

impl From<TchError> for BackendError {
    fn from(error: TchError) -> Self {
        // What follows the first line of an error of libtorch is where in its sources it was raised.
        let text = error.to_string();
        Self::Library(text.lines().next().unwrap_or_default().to_owned())
    }
}

fn refused(file: &Path, error: &ScriptError) -> BackendError {
    let text = error.to_string();
    // As above; what a script itself raised comes after where it was.
    let raised = text.lines().find(|line| line.contains("Error: "));
    BackendError::ScriptFile {
        file: file.to_owned(),
        reason: raised
            .or_else(|| text.lines().next())
            .unwrap_or_default()
            .to_owned(),
    }
}

/// What PyTorch calls a class that is not counted; none of ours.
const NO_ANSWER: i64 = -100;

/// Has this thread compute without helpers: several nodes share a machine, and libtorch's threads spin while they wait.
///
/// The setting is one of the thread, and a backend may be moved to another one, so it is made again before each batch;
/// that takes less than a microsecond.
fn compute_alone() {
    tch::set_num_threads(1);
}

/// Values as a row on a device.
fn on(device: Device, values: &[f32]) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(values)?.f_to_device(device)
}

/// A part of a row, which stays a part of it.
fn part(row: &Tensor, range: &Range<usize>) -> Result<Tensor, TchError> {
    row.f_narrow(0, long(range.start), long(range.len()))
}

/// A tensor's values, wherever it is.
fn read_out(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let mut values = vec![0.0; tensor.numel()];
    let length = values.len();
    tensor.f_copy_data(&mut values, length)?;
    Ok(values)
}

/// Copies a tensor. Only a device that fails while it runs can make that impossible: then every value is a NaN, which
/// whoever is given it refuses, and the next step says what is wrong.
fn copy_or_nan(tensor: &Tensor, to: &mut Vec<f32>) {
    let length = tensor.numel();
    to.clear();
    to.resize(length, f32::NAN);
    if let Err(error) = tensor.f_copy_data(to, length) {
        let error = BackendError::from(error);
        tracing::error!(%error, "the model cannot be read from its device");
        to.fill(f32::NAN);
    }
}

#[cfg(test)]
mod tests {
    use super::super::plain::Plain;
    use super::*;
    use crate::draws::Draws;
    use crate::model::InputShape;
    use lapwing_base::Algorithm;

    fn lenet() -> Model {
        named("lenet")
    }

    fn named(name: &str) -> Model {
        Model::named(name, InputShape::image(1, 28, 28), 10).unwrap()
    }

    fn are_near(one: &[f32], other: &[f32], within: f32) -> bool {
        one.iter().zip(other).all(|(a, b)| (a - b).abs() < within)
    }

    #[test]
    fn it_begins_with_the_bits_of_the_default_and_descends_by_the_same_rule() {
        let tuning = Algorithm::Default.tuning();
        let mut tch = Tch::new(lenet(), 3, &tuning).unwrap();
        let mut plain = Plain::new(lenet(), 3, &tuning);
        let mut draws = Draws::new("tch tests", &[1]);
        let (mut one, mut other) = (vec![], vec![]);
        tch.read(&mut one);
        plain.read(&mut other);
        assert_eq!(one, other);
        for _ in 0..3 {
            let gradient: Vec<f32> = one.iter().map(|_| draws.symmetric()).collect();
            tch.descend(&gradient, 0.1).unwrap();
            plain.descend(&gradient, 0.1).unwrap();
            tch.read(&mut one);
            plain.read(&mut other);
            assert!(are_near(&one, &other, 1e-6));
        }
        assert!(are_near(&tch.optimiser_state(), &plain.optimiser_state(), 1e-6));
    }

    #[test]
    fn models_of_every_size_take_the_steps_of_the_default_with_and_without_decay() {
        let mut draws = Draws::new("tch tests", &[2]);
        let features = (0..8 * 784).map(|_| draws.symmetric()).collect();
        let samples = Samples::new(features, (0..8).collect(), 784).unwrap();
        // More parameters than are put together, and fewer.
        for name in ["mnist-cnn", "lenet"] {
            for weight_decay_micro in [0, 10_000] {
                let tuning = Tuning {
                    weight_decay_micro,
                    ..Algorithm::Default.tuning()
                };
                let mut tch = Tch::new(named(name), 3, &tuning).unwrap();
                let mut plain = Plain::new(named(name), 3, &tuning);
                for _ in 0..3 {
                    let one = tch.step(&samples.as_batch(), 0.05).unwrap();
                    let other = plain.step(&samples.as_batch(), 0.05).unwrap();
                    assert!((one.loss - other.loss).abs() < 1e-4, "{one:?}, {other:?}");
                }
                assert!(are_near(&tch.flat(), &plain.flat(), 1e-4), "{name}");
                assert!(
                    are_near(&tch.optimiser_state(), &plain.optimiser_state(), 1e-3),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_not_given_out() {
        let mut tch = Tch::new(lenet(), 3, &Algorithm::Default.tuning()).unwrap();
        for value in [f32::MAX, f32::INFINITY, f32::NAN] {
            let samples = Samples::new(vec![value; 784], vec![1], 784).unwrap();
            let error = tch.gradient(&samples.as_batch()).unwrap_err();
            assert!(matches!(error, BackendError::Diverged { .. }), "{error}");
        }
    }

    #[test]
    fn what_libtorch_refuses_is_an_error_of_one_line() {
        let row = Tensor::f_from_slice(&[1.0_f32, 2.0]).unwrap();
        let error = BackendError::from(row.f_view([3]).unwrap_err()).to_string();
        assert!(error.starts_with("the tensor library failed: "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn a_thread_computes_alone() {
        let alone = std::thread::spawn(|| {
            let mut tch = Tch::new(lenet(), 3, &Algorithm::Default.tuning()).unwrap();
            let samples = Samples::new(vec![0.5; 784], vec![1], 784).unwrap();
            let _ = tch.step(&samples.as_batch(), 0.1).unwrap();
            tch::get_num_threads()
        });
        assert_eq!(alone.join().unwrap(), 1);
    }
}
