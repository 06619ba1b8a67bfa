//! What computes a model: one object-safe trait over the flat vector, and the choice of an implementation.
//!
//! A backend knows tensors and nothing of rounds, partners or disks. It computes on the caller's thread, one
//! thread only: several nodes share a machine, and the driver gives training a thread of its own.

mod burn;
pub(crate) mod child;
#[cfg(test)]
mod layer_tests;
mod optimiser;
mod plain;
mod prior;
mod score;
#[cfg(feature = "tch")]
mod tch;

pub use score::Score;

use std::borrow::Cow;
use std::path::PathBuf;

use lapwing_base::{Tuning, nearest};

use crate::data::{Batch, Samples};
use crate::layout::Layout;
use crate::model::{InputKind, InputShape, Model, ModelError};
use crate::quantise::are_finite;
use crate::script::ScriptModel;

/// A model with its parameters and its optimiser, on some tensor library.
pub trait Backend: Send {
    /// Where each parameter lies in the flat vector.
    fn layout(&self) -> &Layout;

    /// All parameters; lent where they lie in one vector, and copied where they do not.
    fn flat(&self) -> Cow<'_, [f32]>;

    /// Copies all parameters to `flat`, whatever was in it.
    fn read(&self, flat: &mut Vec<f32>) {
        flat.clear();
        flat.extend_from_slice(&self.flat());
    }

    /// Replaces all parameters. The optimiser's state stays.
    ///
    /// # Errors
    ///
    /// When the length is not the layout's, or a value is not finite; then nothing is changed.
    fn write(&mut self, flat: &[f32]) -> Result<(), BackendError>;

    /// Changes parameters where they lie, without a copy where they lie in one vector. The optimiser's state stays.
    ///
    /// # Errors
    ///
    /// When a value is not finite afterwards; then the next step says that training diverged.
    fn edit(&mut self, edit: &mut dyn FnMut(&mut [f32])) -> Result<(), BackendError> {
        let mut flat = self.flat().into_owned();
        edit(&mut flat);
        self.write(&flat)
    }

    /// One step of the optimiser on a batch, with learning rate `lr`.
    ///
    /// Where the batch says how often its classes occur, a class's logit is shifted by the logarithm of that
    /// while training, so that parts of the data with few of a class do not unlearn it.
    ///
    /// # Errors
    ///
    /// When the batch does not fit the model, or training diverged; then nothing is changed.
    fn step(&mut self, batch: &Batch<'_>, lr: f32) -> Result<StepReport, BackendError>;

    /// One step of the optimiser down a gradient that was computed elsewhere, in the layout's order.
    ///
    /// # Errors
    ///
    /// As for [`Self::write`].
    fn descend(&mut self, gradient: &[f32], lr: f32) -> Result<(), BackendError>;

    /// The mean loss of a batch and its gradient, in the layout's order, as [`Self::step`] takes them. Changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// When the batch does not fit the model, or, where the backend looks for that, training diverged.
    fn gradient(&mut self, batch: &Batch<'_>) -> Result<(f32, Vec<f32>), BackendError>;

    /// The sum of the gradients of single samples, each cut to a length of at most `norm`; one that is not finite counts
    /// as zero. Changes nothing. For differential privacy; it takes as long as steps on batches of one.
    ///
    /// # Errors
    ///
    /// When the backend does not compute gradients of single samples, which is the default, or the batch does not fit the
    /// model.
    fn clipped_sum(&mut self, batch: &Batch<'_>, norm: f32) -> Result<Vec<f32>, BackendError> {
        let _ = (batch, norm);
        Err(BackendError::NotPrivate)
    }

    /// How good the model is on these samples. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the samples do not fit the model.
    fn evaluate(&mut self, data: &Samples) -> Result<Score, BackendError>;

    /// The optimiser's momentum, in the layout's order; lent as [`Self::flat`] is.
    fn optimiser_state(&self) -> Cow<'_, [f32]>;

    /// Replaces the optimiser's momentum.
    ///
    /// # Errors
    ///
    /// As for [`Self::write`].
    fn set_optimiser_state(&mut self, state: &[f32]) -> Result<(), BackendError>;
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss of the batch before the step, in nats.
    pub loss: f32,
    /// Samples in the batch.
    pub samples: u32,
}

/// Why a backend did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The backend on libtorch, which is not in this build.
    #[error(
        "the backend `tch` is not in this build; build lapwing with `--features tch` and libtorch, as docs/models.md says"
    )]
    WithoutTch,
    /// No backend has this name.
    #[error("there is no backend `{name}` in this build; {}", hint(*.nearest))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The known name that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A model file, and a backend that cannot train it.
    #[error(
        "the model is a TorchScript file, which only the backend `tch` trains; start the node with `--backend tch`, as docs/models.md says"
    )]
    Script,
    /// A model file that cannot be trained.
    #[error("the model file {} cannot be trained: {reason}", file.display())]
    ScriptFile {
        /// Which.
        file: PathBuf,
        /// Why, and what would help.
        reason: String,
    },
    /// There is no such model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A flat vector of another model.
    #[error("a vector of {given} values is not one of this model's {expected}")]
    Length {
        /// Its length.
        given: usize,
        /// The layout's.
        expected: usize,
    },
    /// A flat vector with an infinity or a NaN.
    #[error("the value of coordinate {coordinate} is not finite")]
    NotFinite {
        /// The first such coordinate.
        coordinate: usize,
    },
    /// A batch for another model.
    #[error("samples of {width} values do not fit a model for {expected}")]
    Width {
        /// Values a sample.
        width: usize,
        /// The model's input.
        expected: usize,
    },
    /// A batch with no samples, or with another number of values than its labels ask for.
    #[error("a batch of {labels} labels and {features} values is empty or ragged")]
    Ragged {
        /// Its labels.
        labels: usize,
        /// Its values.
        features: usize,
    },
    /// A class that the model has no output for.
    #[error("label {label} is beyond a model of {classes} classes")]
    Label {
        /// The label.
        label: u8,
        /// The model's classes.
        classes: usize,
    },
    /// A value of a text that is no byte.
    #[error("the value {value} in a text is not a byte; a model for texts takes the numbers from 0 to 255")]
    Byte {
        /// The first such value.
        value: f32,
    },
    /// The loss or the gradient is infinite or a NaN.
    #[error(
        "training diverged: the loss is {loss} and its gradient is not finite; use a smaller learning rate"
    )]
    Diverged {
        /// The loss of the batch.
        loss: f32,
    },
    /// Differential privacy is asked for.
    #[error("only the backend `plain` computes what `dp_noise` needs; start the node with `--backend plain`")]
    NotPrivate,
    /// The tensor library failed.
    #[error("the tensor library failed: {0}")]
    Library(String),
}

/// The backends of this build, the default first.
///
/// `plain` is our own loops and the default: it trains the built-in models several times faster than `burn`, and
/// holds fewer copies of their parameters (`docs/models.md`, `examples/throughput.rs`). `burn` is the tensor library of that
/// name. `tch` is PyTorch's libtorch, where the feature of that name is on.
pub const BACKENDS: &[&str] = &[
    "plain",
    "burn",
    #[cfg(feature = "tch")]
    "tch",
];

fn hint(nearest: Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known: {}", BACKENDS.join(", ")),
    }
}

/// Checks that a backend is in this build.
///
/// # Errors
///
/// When it is not; the error says what would help.
pub fn check_backend(name: &str) -> Result<(), BackendError> {
    match name {
        _ if BACKENDS.contains(&name) => Ok(()),
        "tch" => Err(BackendError::WithoutTch),
        _ => Err(BackendError::Unknown {
            name: name.chars().take(64).collect(),
            nearest: nearest(name, BACKENDS.iter().copied()),
        }),
    }
}

/// A backend by name, holding a built-in model with its first parameters, or a [`ScriptModel`] with those of its file.
///
/// # Errors
///
/// When there is no such backend in this build, or no such model, or the tensor library cannot hold it.
pub fn backend(
    name: &str,
    model: &str,
    shape: InputShape,
    classes: usize,
    seed: u64,
    tuning: &Tuning,
) -> Result<Box<dyn Backend>, BackendError> {
    check_backend(name)?;
    if tuning.privacy.is_some() && name != "plain" {
        return Err(BackendError::NotPrivate);
    }
    #[cfg(feature = "tch")]
    if name == "tch"
        && let Some(script) = ScriptModel::named(model)
    {
        return Ok(Box::new(tch::Tch::of_script(&script, shape, classes, tuning)?));
    }
    if ScriptModel::named(model).is_some() {
        return Err(BackendError::Script);
    }
    let model = Model::named(model, shape, classes)?;
    Ok(match name {
        #[cfg(feature = "tch")]
        "tch" => Box::new(tch::Tch::new(model, seed, tuning)?),
        "burn" => Box::new(burn::Burn::new(model, seed, tuning)),
        _ => Box::new(plain::Plain::new(model, seed, tuning)),
    })
}

/// Checks that a flat vector may become a model's parameters or momentum.
fn check_flat(flat: &[f32], layout: &Layout) -> Result<(), BackendError> {
    if flat.len() != layout.parameters() {
        return Err(BackendError::Length {
            given: flat.len(),
            expected: layout.parameters(),
        });
    }
    if are_finite(flat) {
        return Ok(());
    }
    let coordinate = flat.iter().position(|value| !value.is_finite());
    coordinate.map_or(Ok(()), |coordinate| Err(BackendError::NotFinite { coordinate }))
}

/// Checks that a batch fits a model, so that the tensor library need not.
fn check_batch(batch: &Batch<'_>, model: &Model) -> Result<(), BackendError> {
    let expected = model.input().values();
    if batch.width != expected {
        return Err(BackendError::Width {
            width: batch.width,
            expected,
        });
    }
    if batch.labels.is_empty() || batch.features.len() != batch.labels.len() * batch.width {
        return Err(BackendError::Ragged {
            labels: batch.labels.len(),
            features: batch.features.len(),
        });
    }
    if model.input().kind == InputKind::Bytes
        && let Some(value) = batch.features.iter().find(|value| !is_byte(**value))
    {
        return Err(BackendError::Byte { value: *value });
    }
    let classes = model.classes();
    match batch.labels.iter().find(|label| usize::from(**label) >= classes) {
        Some(label) => Err(BackendError::Label {
            label: *label,
            classes,
        }),
        None => Ok(()),
    }
}

fn is_byte(value: f32) -> bool {
    value.fract() == 0.0 && (0.0..=255.0).contains(&value)
}

/// The classes to be told, sample after sample: each sample's, or for texts each byte's successor.
fn answers<'a>(batch: &Batch<'a>, input: InputShape) -> Cow<'a, [u8]> {
    match input.kind {
        InputKind::Numbers => Cow::Borrowed(batch.labels),
        InputKind::Bytes => batch
            .features
            .chunks_exact(batch.width)
            .zip(batch.labels)
            .flat_map(|(bytes, last)| bytes[1..].iter().map(|byte| *byte as u8).chain([*last]))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::Draws;

    const SHAPE: InputShape = InputShape::flat(6);

    fn tuning() -> Tuning {
        lapwing_base::Algorithm::Default.tuning()
    }

    fn samples(count: usize) -> Samples {
        let mut draws = Draws::new("backend tests", &[count as u64]);
        let labels: Vec<u8> = (0..count).map(|_| draws.below(4) as u8).collect();
        let features = labels
            .iter()
            .flat_map(|label| {
                let mut row: [f32; 6] = std::array::from_fn(|_| draws.symmetric() * 0.5);
                row[usize::from(*label)] += 1.0;
                row
            })
            .collect();
        Samples::new(features, labels, 6).unwrap()
    }

    fn each(test: impl Fn(Box<dyn Backend>)) {
        for name in BACKENDS {
            test(backend(name, "mlp", SHAPE, 4, 11, &tuning()).unwrap());
        }
    }

    /// Away from the first parameters, whose zero biases hide mistakes.
    fn perturbed(backend: &mut dyn Backend) -> Vec<f32> {
        let mut flat = vec![];
        backend.read(&mut flat);
        let mut draws = Draws::new("backend tests", &[1]);
        for value in &mut flat {
            *value += draws.symmetric() * 0.1;
        }
        backend.write(&flat).unwrap();
        flat
    }

    #[test]
    fn gradients_agree_with_finite_differences_in_every_parameter() {
        each(|mut backend| {
            /// Large enough that a loss in `f32` shows it, small enough that few ReLUs bend in between.
            const STEP: f32 = 5e-4;
            let data = samples(32);
            let flat = perturbed(&mut *backend);
            let (loss, _) = backend.gradient(&data.as_batch()).unwrap();
            assert!((loss - backend.evaluate(&data).unwrap().loss).abs() < 1e-5);
            let parameters: Vec<_> = backend.layout().iter().cloned().collect();
            for counts in [&[][..], &[50, 0, 3, 11]] {
                let batch = Batch {
                    counts,
                    ..data.as_batch()
                };
                backend.write(&flat).unwrap();
                let (_, gradient) = backend.gradient(&batch).unwrap();
                for parameter in &parameters {
                    // Where the slope is large, rounding of the loss does not hide it.
                    let mut steepest: Vec<usize> = parameter.range.clone().collect();
                    steepest.sort_by(|a, b| gradient[*b].abs().total_cmp(&gradient[*a].abs()));
                    assert_ne!(gradient[steepest[3]], 0.0);
                    for coordinate in steepest.into_iter().take(4) {
                        let mut loss_at = |offset: f32| {
                            let mut moved = flat.clone();
                            moved[coordinate] += offset;
                            backend.write(&moved).unwrap();
                            f64::from(backend.gradient(&batch).unwrap().0)
                        };
                        let slope = (loss_at(STEP) - loss_at(-STEP)) / f64::from(2.0 * STEP);
                        let error = (slope / f64::from(gradient[coordinate]) - 1.0).abs();
                        assert!(error < 1e-2, "{} at {coordinate}: {error}", parameter.name);
                    }
                }
            }
        });
    }

    #[test]
    fn steps_learn_and_report_the_loss_before_them() {
        each(|mut backend| {
            let data = samples(128);
            let first = backend.step(&data.as_batch(), 0.1).unwrap();
            for _ in 0..60 {
                let _ = backend.step(&data.as_batch(), 0.1).unwrap();
            }
            let last = backend.step(&data.as_batch(), 0.1).unwrap();
            assert_eq!(first.samples, 128);
            assert!(last.loss < first.loss / 4.0, "{first:?} {last:?}");
            let score = backend.evaluate(&data).unwrap();
            assert_eq!(score.total, 128);
            assert!(score.correct > 120, "{score:?}");
        });
    }

    #[test]
    fn parameters_and_momentum_carried_to_another_backend_go_on_the_same() {
        for name in BACKENDS {
            let mut one = backend(name, "mlp", SHAPE, 4, 11, &tuning()).unwrap();
            let data = samples(16);
            let _ = one.step(&data.as_batch(), 0.05).unwrap();
            let mut flat = vec![];
            one.read(&mut flat);
            let mut other = backend(name, "mlp", SHAPE, 4, 99, &tuning()).unwrap();
            other.write(&flat).unwrap();
            other.set_optimiser_state(&one.optimiser_state()).unwrap();
            for _ in 0..3 {
                assert_eq!(
                    one.step(&data.as_batch(), 0.05).unwrap(),
                    other.step(&data.as_batch(), 0.05).unwrap()
                );
            }
            let mut same = vec![];
            one.read(&mut flat);
            other.read(&mut same);
            assert_eq!(flat, same);
        }
    }

    #[test]
    fn vectors_of_another_model_or_with_a_nan_are_refused_and_change_nothing() {
        each(|mut backend| {
            let before = perturbed(&mut *backend);
            let mut wrong = before.clone();
            wrong[7] = f32::NAN;
            assert!(matches!(
                backend.write(&wrong),
                Err(BackendError::NotFinite { coordinate: 7 })
            ));
            assert!(backend.write(&before[1..]).is_err());
            assert!(backend.set_optimiser_state(&[1.0]).is_err());
            assert!(backend.set_optimiser_state(&wrong).is_err());
            let mut after = vec![];
            backend.read(&mut after);
            assert_eq!(before, after);
        });
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        each(|mut backend| {
            let ok = [0.0; 12];
            for (features, labels, width) in [
                (&ok[..], &[0_u8, 4][..], 6),
                (&ok, &[0, 1], 5),
                (&ok, &[0], 6),
                (&[], &[], 6),
            ] {
                let batch = Batch {
                    features,
                    labels,
                    width,
                    counts: &[],
                };
                assert!(backend.step(&batch, 0.1).is_err());
                assert!(backend.gradient(&batch).is_err());
            }
        });
    }

    #[test]
    fn a_step_that_would_diverge_changes_nothing() {
        each(|mut backend| {
            let before = perturbed(&mut *backend);
            let data = Samples::new(vec![f32::MAX; 12], vec![0, 1], 6).unwrap();
            let error = backend.step(&data.as_batch(), 0.1).unwrap_err();
            assert!(matches!(error, BackendError::Diverged { .. }), "{error}");
            let mut after = vec![];
            backend.read(&mut after);
            assert_eq!(before, after);
        });
    }

    #[test]
    fn a_mistyped_backend_is_answered_with_the_one_that_was_meant() {
        let error = backend("bur", "mlp", SHAPE, 4, 1, &tuning())
            .err()
            .unwrap()
            .to_string();
        assert_eq!(
            error,
            "there is no backend `bur` in this build; did you mean `burn`?"
        );
    }

    #[test]
    fn a_build_without_libtorch_says_how_to_get_one_with_it() {
        match check_backend("tch") {
            Ok(()) if cfg!(feature = "tch") => (),
            Ok(()) => panic!("it is in this build"),
            Err(error) => assert!(error.to_string().contains("`--features tch`"), "{error}"),
        }
    }
}
