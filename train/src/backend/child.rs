//! A model that its users bring: a program of theirs trains it, as a child process (`docs/trainer-protocol.md`).
//!
//! The node has the parameters; the program is handed them with each request and has nothing but its optimiser to lose.
//! One that dies, is silent or talks nonsense is started again after a pause. Blocking: for the training thread.

mod message;
mod process;
mod restarts;
mod vectors;

pub use message::MessageError;
pub(crate) use message::Opening;
pub use vectors::VectorsError;

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use lapwing_base::{JobId, Ppm, RoundPlan};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::message::{Answer, Expected, Hello, Init, PROTOCOL, Request};
use self::process::{Fault, Process};
use self::restarts::Restarts;
use self::vectors::Vectors;
use super::{BackendError, check_flat};
use crate::draws::Draws;
use crate::external::ExternalModel;
use crate::layout::Layout;
use crate::steps::Trained;
use crate::trainee::{State, Trainee, TraineeError};

/// How long a trainer may say nothing before it is given up, but for local steps: a large library takes ten seconds to be
/// loaded on a fast machine, and this is for busy ones.
const PATIENCE: Duration = Duration::from_secs(120);

/// The same for local steps, at least: a round's deadline follows the rounds before, which may have been empty.
const TRAIN_PATIENCE_MIN: Duration = Duration::from_secs(30);

/// How often a program is started for a job before the node gives the job up: it takes seconds, while its partners go on.
const OPENINGS_MAX: u32 = 3;

/// What a program says of the model that it trains.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Introduced {
    /// What it calls itself; may be empty.
    pub name: String,
    /// How jobs name its model.
    pub model: ExternalModel,
    /// How many parameters that has.
    pub parameters: usize,
}

/// Starts a program, hears what it trains, and ends it.
///
/// Blocks for as long as the program takes, until `stop` is cancelled.
///
/// # Errors
///
/// When it cannot be started, ends, is silent, or says something else.
pub fn introduce(command: &str, stop: &CancellationToken) -> Result<Introduced, ChildError> {
    let (process, hello, layout) = start(command, stop)?;
    drop(process);
    Ok(Introduced {
        name: hello.name,
        model: ExternalModel::of(&layout),
        parameters: layout.parameters(),
    })
}

/// Why a program did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// No shell, or no room for a process.
    #[error("the trainer cannot be started")]
    Start(#[source] io::Error),
    /// It ended.
    #[error("the trainer has ended{0}")]
    Ended(String),
    /// It is silent, and was ended.
    #[error("the trainer has said nothing for {} s and was ended; it may say `progress` while it is busy", .0.as_secs())]
    Silent(Duration),
    /// What it said makes no sense, and it was ended.
    #[error("the trainer was ended")]
    Message(#[from] MessageError),
    /// It could not do what was asked, and said why.
    #[error("the trainer says: {0}")]
    Refused(String),
    /// Nothing can be written to it.
    #[error("the trainer cannot be spoken with")]
    Pipe(#[source] io::Error),
    /// What is shared with it.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
    /// What it has trained is no model.
    #[error("the trainer has diverged: {0}; use a smaller learning rate")]
    Diverged(BackendError),
    /// It failed a moment ago.
    #[error("the trainer has failed before and is started again in {} s or more: {why}", .pause.as_secs().max(1))]
    Pausing {
        /// How long it waits still.
        pause: Duration,
        /// How it failed last.
        why: String,
    },
    /// Other parameters than the job's.
    #[error(
        "the job trains `{wanted}`, but this node's trainer has `{own}`: other names or shapes; start the node with the trainer of the others"
    )]
    AnotherModel {
        /// The job's.
        wanted: ExternalModel,
        /// The trainer's.
        own: ExternalModel,
    },
    /// The node has no trainer.
    #[error("the job trains a model of its users' own, `{0}`: start this node with --trainer COMMAND")]
    None(ExternalModel),
    /// The algorithm is not for such models.
    #[error("`all-reduce` sums gradients, and a trainer tells parameters only")]
    Gradient,
    /// The node is being stopped.
    #[error("the node stops")]
    Stopped,
}

impl From<Fault> for ChildError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Pipe(error) => Self::Pipe(error),
            Fault::Ended(how) => Self::Ended(how),
            Fault::Silent(patience) => Self::Silent(patience),
            Fault::Message(wrong) => Self::Message(wrong),
            Fault::Refused(why) => Self::Refused(why),
            Fault::Stopped => Self::Stopped,
        }
    }
}

fn start(command: &str, stop: &CancellationToken) -> Result<(Process, Hello, Layout), ChildError> {
    let mut process = Process::start(command, stop.clone()).map_err(ChildError::Start)?;
    match process.answer(Expected::Hello, PATIENCE)? {
        Answer::Hello(hello) => {
            let layout = hello.layout()?;
            Ok((process, hello, layout))
        }
        other => Err(unexpected("hello", &other).into()),
    }
}

/// A program's model on this node.
#[derive(Debug)]
pub(crate) struct Child {
    command: String,
    model: ExternalModel,
    opening: Opening,
    stop: CancellationToken,
    layout: Layout,
    /// As it has said when it was opened last.
    samples: u64,
    /// The parameters.
    flat: Vec<f32>,
    vectors: Vectors,
    /// `None` once it has failed and until it is started again.
    process: Option<Process>,
    restarts: Restarts,
    /// How it failed last.
    failure: String,
}

impl Child {
    /// Starts the program for a job and gets the first parameters.
    pub(crate) fn open(
        command: Option<&str>,
        model: ExternalModel,
        job: JobId,
        opening: Opening,
        dir: &Path,
        stop: &CancellationToken,
    ) -> Result<Self, ChildError> {
        let command = command.ok_or(ChildError::None(model))?;
        let mut restarts = Restarts::default();
        loop {
            match Self::try_open(command, model, job, opening.clone(), dir, stop) {
                // What another attempt does not change.
                Err(error @ (ChildError::AnotherModel { .. } | ChildError::Stopped)) => return Err(error),
                Err(error) if restarts.failures() < OPENINGS_MAX - 1 => {
                    warn!(error = %lapwing_base::chain(&error), "the trainer failed; it is started again");
                    restarts.failed(now());
                    std::thread::sleep(restarts.pause(now()).unwrap_or_default());
                }
                ended => return ended,
            }
        }
    }

    fn try_open(
        command: &str,
        model: ExternalModel,
        job: JobId,
        opening: Opening,
        dir: &Path,
        stop: &CancellationToken,
    ) -> Result<Self, ChildError> {
        let (process, hello, layout) = start(command, stop)?;
        check_model(model, &layout)?;
        let vectors = Vectors::create(dir, &shared_name(dir, job), layout.parameters())?;
        let mut child = Self {
            command: command.to_owned(),
            model,
            opening,
            stop: stop.clone(),
            samples: 1,
            flat: Vec::new(),
            layout,
            vectors,
            process: None,
            restarts: Restarts::default(),
            failure: String::new(),
        };
        let process = child.opened(process)?;
        child.flat = match hello.init {
            Init::Node => drawn(&child.layout, child.opening.seed),
            Init::Trainer => child.vectors.read_model()?,
        };
        check_flat(&child.flat, &child.layout).map_err(ChildError::Diverged)?;
        child.process = Some(process);
        info!(model = %ExternalModel::of(&child.layout), name = hello.name, "trainer opened");
        Ok(child)
    }

    /// Tells a fresh process of the job.
    fn opened(&mut self, mut process: Process) -> Result<Process, ChildError> {
        let request = Request::Open {
            protocol: PROTOCOL,
            model: self.vectors.model(),
            state: self.vectors.state(),
            opening: &self.opening,
        };
        if let Answer::Opened {
            samples: Some(samples),
        } = process.ask(&request, Expected::Opened, PATIENCE)?
        {
            self.samples = samples.into();
        }
        Ok(process)
    }

    /// The process, started again if there is none and the time has come.
    fn process(&mut self) -> Result<Process, ChildError> {
        if let Some(process) = self.process.take() {
            return Ok(process);
        }
        if let Some(pause) = self.restarts.pause(now()) {
            return Err(ChildError::Pausing {
                pause,
                why: self.failure.clone(),
            });
        }
        info!("starting the trainer again");
        let started = start(&self.command, &self.stop).and_then(|(process, _, layout)| {
            check_model(self.model, &layout)?;
            check_model(ExternalModel::of(&self.layout), &layout)?;
            self.opened(process)
        });
        started.inspect_err(|error| self.failed(error))
    }

    /// Notes how a process failed that is gone.
    fn failed(&mut self, error: &ChildError) {
        if matches!(error, ChildError::Stopped) {
            return;
        }
        self.failure = lapwing_base::chain(error).to_string();
        warn!(error = self.failure, "the trainer failed");
        self.restarts.failed(now());
    }

    /// Asks the process, and ends it where nothing can be expected of it any more.
    fn ask<T>(
        &mut self,
        request: &Request<'_>,
        expected: Expected,
        patience: Duration,
        take: impl FnOnce(&Self, Answer) -> Result<T, ChildError>,
    ) -> Result<T, ChildError> {
        let mut process = self.process()?;
        let answered = process
            .ask(request, expected, patience)
            .map_err(ChildError::from)
            .and_then(|answer| take(self, answer));
        match &answered {
            // Where it refuses it has said why, and waits for the next request.
            Ok(_) | Err(ChildError::Refused(_)) => self.process = Some(process),
            Err(error) => {
                drop(process);
                self.failed(error);
            }
        }
        answered
    }

    /// Has the optimiser go on from a state; from nothing when that is empty.
    fn restore(&mut self, state: &[u8]) -> Result<(), ChildError> {
        self.vectors.write_state(state)?;
        let bytes = state.len() as u64;
        self.ask(
            &Request::Restore { bytes },
            Expected::Restored,
            PATIENCE,
            |_, _| Ok(()),
        )
    }

    fn save(&mut self) -> Result<Vec<u8>, ChildError> {
        self.ask(
            &Request::Save,
            Expected::Saved,
            PATIENCE,
            |child, answer| match answer {
                Answer::Saved { bytes } => Ok(child.vectors.read_state(bytes)?),
                other => Err(unexpected("saved", &other).into()),
            },
        )
    }

    fn take_steps(&mut self, step: u64, plan: &RoundPlan) -> Result<(Trained, Vec<f32>), ChildError> {
        self.vectors.write_model(&self.flat)?;
        let request = Request::Train {
            round: plan.round.0,
            step,
            steps: plan.local_steps,
            lr: f64::from(plan.lr_micro) / 1e6,
        };
        let patience = (plan.deadline() * 2).max(TRAIN_PATIENCE_MIN);
        self.ask(
            &request,
            Expected::Trained,
            patience,
            |child, answer| match answer {
                Answer::Trained { loss, samples } => {
                    let flat = child.vectors.read_model()?;
                    check_flat(&flat, &child.layout).map_err(ChildError::Diverged)?;
                    let loss = loss as f32;
                    let trained = Trained {
                        loss,
                        samples,
                        epsilon: None,
                    };
                    Ok((trained, flat))
                }
                other => Err(unexpected("trained", &other).into()),
            },
        )
    }

    fn evaluate(&mut self) -> Result<Ppm, ChildError> {
        self.vectors.write_model(&self.flat)?;
        self.ask(
            &Request::Evaluate,
            Expected::Evaluated,
            PATIENCE,
            |_, answer| match answer {
                // From 0 to 1, as the reader has checked.
                Answer::Evaluated { accuracy } => Ok(Ppm((accuracy * 1e6).round() as u32)),
                other => Err(unexpected("evaluated", &other).into()),
            },
        )
    }
}

impl Trainee for Child {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn flat(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.flat)
    }

    fn write(&mut self, flat: &[f32]) -> Result<(), TraineeError> {
        check_flat(flat, &self.layout)?;
        self.flat.copy_from_slice(flat);
        Ok(())
    }

    fn edit(&mut self, edit: &mut dyn FnMut(&mut [f32])) -> Result<(), TraineeError> {
        edit(&mut self.flat);
        Ok(check_flat(&self.flat, &self.layout)?)
    }

    fn train(&mut self, step: &mut u64, plan: &RoundPlan) -> Result<Trained, TraineeError> {
        if plan.local_steps == 0 {
            return Ok(Trained::NOTHING);
        }
        let (trained, flat) = self.take_steps(*step, plan)?;
        self.flat = flat;
        *step += u64::from(plan.local_steps);
        self.restarts.worked();
        Ok(trained)
    }

    fn gradient(&mut self, _: &mut u64) -> Result<(Trained, Vec<f32>), TraineeError> {
        Err(ChildError::Gradient.into())
    }

    fn descend(&mut self, _: &[f32], _: f32) -> Result<(), TraineeError> {
        Err(ChildError::Gradient.into())
    }

    fn momentum(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&[])
    }

    fn samples(&self) -> u64 {
        self.samples
    }

    fn accuracy(&mut self) -> Result<Ppm, TraineeError> {
        let accuracy = self.evaluate()?;
        self.restarts.worked();
        Ok(accuracy)
    }

    fn state(&mut self) -> Result<State<'_>, TraineeError> {
        // A process that is not there remembers nothing, and none is started to say so.
        let state = match self.process {
            Some(_) => self.save().unwrap_or_else(|error| {
                warn!(error = %lapwing_base::chain(&error), "the checkpoint is without the optimiser's state");
                Vec::new()
            }),
            None => Vec::new(),
        };
        Ok(State {
            model: Cow::Borrowed(&self.flat),
            optimiser: Cow::Owned(packed(&state)),
        })
    }

    fn set_optimiser_state(&mut self, state: &[f32]) -> Result<(), TraineeError> {
        let state = unpacked(state);
        if let Err(error) = self.restore(&state) {
            warn!(error = %lapwing_base::chain(&error), "the optimiser begins anew");
        }
        Ok(())
    }

    fn forget(&mut self) -> Result<(), TraineeError> {
        // A process that is started anew has nothing to forget.
        if self.process.is_some()
            && let Err(error) = self.restore(&[])
        {
            warn!(error = %lapwing_base::chain(&error), "the trainer is started again to forget what it remembers");
            self.process = None;
        }
        Ok(())
    }
}

fn check_model(wanted: ExternalModel, layout: &Layout) -> Result<(), ChildError> {
    let own = ExternalModel::of(layout);
    if wanted == own {
        Ok(())
    } else {
        Err(ChildError::AnotherModel { wanted, own })
    }
}

fn unexpected(expected: &'static str, found: &Answer) -> MessageError {
    MessageError::Unexpected {
        expected,
        found: found.kind(),
    }
}

/// The same name for the same job of the same node.
fn shared_name(dir: &Path, job: JobId) -> String {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let hash = blake3::hash(dir.as_os_str().as_encoded_bytes()).to_hex();
    format!("lapwing-{}-{job}", &hash[..16])
}

/// First parameters for a trainer that has none of its own: the same bits on every machine.
fn drawn(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut flat = Vec::with_capacity(layout.parameters());
    for (index, tensor) in (0_u64..).zip(layout.iter()) {
        let length = tensor.range.len();
        match tensor.shape.split_first() {
            Some((_, inputs)) if !inputs.is_empty() => {
                let bound = 1.0 / (inputs.iter().product::<usize>() as f32).sqrt();
                let mut draws = Draws::new("lapwing train initial 1", &[seed, index]);
                flat.extend((0..length).map(|_| draws.symmetric() * bound));
            }
            _ => flat.extend(std::iter::repeat_n(0.0, length)),
        }
    }
    flat
}

/// Bytes as a checkpoint keeps them, which knows values of four bytes only: how many, then all of them.
fn packed(bytes: &[u8]) -> Vec<f32> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let length = bytes.len() as u64;
    let head = [length as u32, (length >> 32) as u32].map(u32::to_le_bytes);
    head.iter()
        .chain(words)
        .chain((!rest.is_empty()).then_some(&last))
        .map(|word| f32::from_le_bytes(*word))
        .collect()
}

/// What [`packed`] was given; nothing when it is not of its making.
fn unpacked(values: &[f32]) -> Vec<u8> {
    let [low, high, words @ ..] = values else {
        return Vec::new();
    };
    let length = u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32;
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let is_ours = length.div_ceil(4) == words.len() as u64;
    bytes.truncate(if is_ours { length as usize } else { 0 });
    bytes
}

#[expect(clippy::disallowed_methods, reason = "a process is paused after it failed")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::{Round, RoundKind, chain};
    use std::fs;
    use tempfile::TempDir;

    const HELLO: &str = r#"echo '{"type":"hello","protocol":1,"layout":[["w",[2,2]],["b",[2]]]}'"#;

    /// A trainer in the language of the shell: what it does when it is asked for each thing, which `$model`, `$state` and
    /// `$line` help with.
    fn trainer(hello: &str, cases: &[(&str, &str)]) -> String {
        let field =
            |name: &str| format!(r#"{name}=$(printf '%s' "$line" | sed 's/.*"{name}":"\([^"]*\)".*/\1/')"#);
        let opened = r#"printf '\000\000\200\077%.0s' 1 2 3 4 5 6 > "$model"; echo '{"type":"opened"}'"#;
        let cases: String = cases
            .iter()
            .map(|(request, does)| format!("*'\"{request}\"'*) {does};;\n"))
            .collect();
        format!(
            "{hello}\nwhile read -r line; do case \"$line\" in\n{cases}\
             *'\"open\"'*) {}; {}; {opened};;\n*'\"stop\"'*) exit 0;;\nesac; done",
            field("model"),
            field("state"),
        )
    }

    /// All parameters are two afterwards.
    const TRAINED: &str = r#"printf '\000\000\000\100%.0s' 1 2 3 4 5 6 > "$model"; echo '{"type":"trained","loss":0.5,"samples":64}'"#;
    const EVALUATED: &str = r#"echo '{"type":"evaluated","accuracy":0.75}'"#;

    fn model() -> ExternalModel {
        let tensors = [("w".to_owned(), vec![2, 2]), ("b".to_owned(), vec![2])];
        ExternalModel::of(&Layout::new(tensors).unwrap())
    }

    fn opening() -> Opening {
        Opening {
            seed: 7,
            batch: 32,
            momentum: 0.9,
            weight_decay: 0.0,
            data: "digits".to_owned(),
            part: 1,
            parts: 3,
        }
    }

    fn open(command: &str, dir: &TempDir) -> Result<Child, ChildError> {
        let stop = CancellationToken::new();
        Child::try_open(command, model(), JobId(3), opening(), dir.path(), &stop)
    }

    fn plan() -> RoundPlan {
        RoundPlan {
            job: JobId(3),
            round: Round(12),
            kind: RoundKind::Sparse,
            seed: [0; 32],
            pairs: Vec::new(),
            alone: Vec::new(),
            compression: 4,
            local_steps: 2,
            lr_micro: 50_000,
            deadline_ms: 1000,
        }
    }

    fn flat(child: &Child) -> Vec<f32> {
        child.flat().into_owned()
    }

    fn told(error: impl std::error::Error) -> String {
        chain(&error).to_string()
    }

    /// What a step comes to, for a trainer that does this when it is told to train.
    fn failing(does: &str) -> (String, Child, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut child = open(&trainer(HELLO, &[("train", does)]), &dir).unwrap();
        let mut step = 10;
        let error = child.train(&mut step, &plan()).unwrap_err();
        assert_eq!(step, 10, "no step was taken");
        assert_eq!(flat(&child), [1.0; 6], "the parameters are as they were");
        (told(error), child, dir)
    }

    #[test]
    fn a_trainer_trains_and_evaluates_what_the_node_hands_it() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        let keep = format!("printf '%s\\n' \"$line\" >> '{}'; {TRAINED}", asked.display());
        let command = trainer(HELLO, &[("train", &keep), ("evaluate", EVALUATED)]);
        let mut child = open(&command, &dir).unwrap();
        assert_eq!(child.layout().parameters(), 6);
        assert_eq!(flat(&child), [1.0; 6], "as the trainer made them");
        let mut step = 110;
        let trained = child.train(&mut step, &plan()).unwrap();
        assert_eq!((trained.loss, trained.samples, step), (0.5, 64, 112));
        assert_eq!(flat(&child), [2.0; 6]);
        assert_eq!(
            fs::read_to_string(&asked).unwrap(),
            "{\"type\":\"train\",\"round\":12,\"step\":110,\"steps\":2,\"lr\":0.05}\n"
        );
        child.write(&[3.0; 6]).unwrap();
        assert_eq!(child.accuracy().unwrap(), Ppm(750_000));
        let bytes = fs::read(child.vectors.model()).unwrap();
        assert_eq!(
            bytes,
            3.0_f32.to_le_bytes().repeat(6),
            "evaluated is what was written"
        );
        assert!(child.write(&[3.0; 5]).is_err());
        assert!(child.write(&[f32::NAN; 6]).is_err());
        assert_eq!(flat(&child), [3.0; 6]);
    }

    #[test]
    fn parameters_that_the_node_draws_are_the_same_for_the_same_seed() {
        let dir = tempfile::tempdir().unwrap();
        let hello = HELLO.replace("\"protocol\"", "\"init\":\"node\",\"protocol\"");
        let drawn = flat(&open(&trainer(&hello, &[]), &dir).unwrap());
        assert_eq!(drawn, flat(&open(&trainer(&hello, &[]), &dir).unwrap()));
        assert_eq!(drawn[4..], [0.0; 2], "biases are zero");
        let bound = 0.5_f32.sqrt();
        assert!(
            drawn[..4]
                .iter()
                .all(|value| value.abs() <= bound && *value != 0.0)
        );
    }

    #[test]
    fn a_trainer_that_dies_in_a_step_is_started_again_after_a_pause() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("died").display().to_string();
        let does = format!(
            "if [ -e '{marker}' ]; then {TRAINED}; else touch '{marker}'; echo 'no memory left' >&2; exit 3; fi"
        );
        let mut child = open(&trainer(HELLO, &[("train", &does)]), &dir).unwrap();
        let mut step = 0;
        let error = told(child.train(&mut step, &plan()).unwrap_err());
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("no memory left"), "{error}");
        let error = told(child.train(&mut step, &plan()).unwrap_err());
        assert!(error.contains("is started again in 1 s"), "{error}");
        // What the pause is, the restarts' own test says.
        child.restarts.worked();
        child.train(&mut step, &plan()).unwrap();
        assert_eq!((flat(&child), step), (vec![2.0; 6], 2));
    }

    #[test]
    fn parameters_that_are_not_finite_are_not_taken() {
        let (error, child, _dir) = failing(
            r#"printf '\000\000\300\177%.0s' 1 2 3 4 5 6 > "$model"; echo '{"type":"trained","loss":0.5,"samples":64}'"#,
        );
        assert!(error.contains("coordinate 0 is not finite"), "{error}");
        assert!(child.process.is_none(), "its optimiser may be no better");
    }

    #[test]
    fn a_file_of_another_length_is_not_taken() {
        let (error, ..) =
            failing(r#"printf '\000\000\300' > "$model"; echo '{"type":"trained","loss":0.5,"samples":64}'"#);
        assert!(error.contains("3 bytes of parameters, not 24"), "{error}");
    }

    #[test]
    fn what_is_no_message_ends_the_trainer_and_is_shown() {
        let (error, child, _dir) = failing("echo 'Epoch 1: 10%'");
        assert!(
            error.contains("Epoch 1: 10%") && error.contains("standard error"),
            "{error}"
        );
        assert!(child.process.is_none());
        let (error, ..) = failing("head -c 1100000 /dev/zero | tr '\\000' x");
        assert!(error.contains("more than 1048576 bytes"), "{error}");
        let (error, ..) = failing(EVALUATED);
        assert!(
            error.contains("`evaluated` where `trained` was expected"),
            "{error}"
        );
    }

    #[test]
    fn a_trainer_that_says_what_went_wrong_goes_on() {
        let (error, mut child, _dir) = failing(r#"echo '{"type":"error","message":"the disk is full"}'"#);
        assert!(error.contains("the trainer says: the disk is full"), "{error}");
        let error = told(child.train(&mut 0, &plan()).unwrap_err());
        assert!(
            error.contains("the disk is full"),
            "at once, by the same process: {error}"
        );
    }

    #[test]
    fn what_the_optimiser_remembers_goes_into_the_checkpoint_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let saved = r#"printf '%s' "momentum!" > "$state"; echo '{"type":"saved","bytes":9}'"#;
        let kept = dir.path().join("kept").display().to_string();
        let restored = format!("cp \"$state\" '{kept}'; echo '{{\"type\":\"restored\"}}'");
        let mut child = open(&trainer(HELLO, &[("save", saved), ("restore", &restored)]), &dir).unwrap();
        let state = child.state().unwrap().optimiser.into_owned();
        child.set_optimiser_state(&state).unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"momentum!");
        child.forget().unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"");
    }

    #[test]
    fn bytes_of_any_length_survive_a_checkpoint() {
        for length in [0, 1, 3, 4, 5, 8, 1000] {
            // Also those that make NaNs.
            let bytes: Vec<u8> = (0..length).map(|i| 255 - i as u8).collect();
            assert_eq!(unpacked(&packed(&bytes)), bytes);
        }
        assert_eq!(unpacked(&[1.0]), b"");
        assert_eq!(unpacked(&[f32::from_bits(9), 0.0, 1.0]), b"", "of another making");
        assert_eq!(unpacked(&[f32::NAN; 5]), b"");
    }

    #[test]
    fn a_trainer_of_another_layout_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let other = HELLO.replace("[2,2]", "[4]");
        let error = open(&trainer(&other, &[]), &dir).unwrap_err();
        assert!(matches!(error, ChildError::AnotherModel { wanted, .. } if wanted == model()));
        let error = error.to_string();
        assert!(
            error.contains(&model().to_string()) && error.contains("names or shapes"),
            "{error}"
        );
        let stop = CancellationToken::new();
        let error = Child::open(None, model(), JobId(3), opening(), dir.path(), &stop).unwrap_err();
        assert!(error.to_string().contains("--trainer"), "{error}");
    }

    #[test]
    fn a_command_that_does_not_exist_is_told_with_the_shells_own_words() {
        let error = introduce("lapwing-has-no-such-program", &CancellationToken::new()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("exit status: 127") && error.contains("not found"),
            "{error}"
        );
    }

    #[test]
    fn a_trainer_introduces_itself() {
        let command = trainer(
            &HELLO.replace("\"protocol\"", "\"name\":\"mine\",\"protocol\""),
            &[],
        );
        let introduced = introduce(&command, &CancellationToken::new()).unwrap();
        assert_eq!(introduced.name, "mine");
        assert_eq!((introduced.model, introduced.parameters), (model(), 6));
    }

    #[test]
    fn nothing_is_left_of_a_trainer_that_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let child = open(&trainer(HELLO, &[]), &dir).unwrap();
        let shared = child.vectors.model().to_owned();
        assert!(shared.exists());
        drop(child);
        assert!(!shared.exists() && !shared.parent().unwrap().exists());
    }
}
