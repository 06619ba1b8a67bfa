//! The job file: what a person asks to be trained, as TOML, read into a checked [`JobSpec`] and written back.
//!
//! It touches no disk and submits nothing. Whether a data set is there, and whether a model fits it, only the
//! nodes that train can say.

use crate::data::{ParseDataSpecError, Source};
use crate::external::ExternalModel;
use crate::model::Model;
use crate::script::ScriptModel;
use lapwing_base::{Algorithm, JobSpec, Meeting, Planner, Ppm, Privacy, Tuning, Values, nearest};
use std::fmt::{self, Write as _};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest job file. One with every key and a comment for each is under 2 KiB.
pub const JOB_FILE_BYTES_MAX: usize = 64 * 1024;

/// The job file does not say what to train.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JobFileError {
    /// It is too long to be a job file.
    #[error("a job file of {bytes} bytes is longer than the {JOB_FILE_BYTES_MAX} that are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is not TOML.
    #[error("line {line}: {message}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that no job has.
    #[error("line {line}: unknown key `{key}`{}", DidYouMean(*.nearest))]
    UnknownKey {
        /// Counted from 1.
        line: usize,
        /// The key, shortened.
        key: String,
        /// The known key that may have been meant.
        nearest: Option<&'static str>,
    },
    /// A value of another type, or out of its range.
    #[error("line {line}: `{key}` must be {allowed}, not {value}")]
    BadValue {
        /// Counted from 1.
        line: usize,
        /// The key.
        key: &'static str,
        /// The value as it was written, shortened.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// The data set cannot be named so.
    #[error("line {line}: `data` is not a data set")]
    BadData {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: ParseDataSpecError,
    },
    /// Two values that do not go together.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// Prints a suggestion, or nothing.
struct DidYouMean(Option<&'static str>);

impl fmt::Display for DidYouMean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
            None => Ok(()),
        }
    }
}

/// Every key, in the order in which they are written back.
const KEYS: [&str; 27] = [
    "model",
    "data",
    "algorithm",
    "planner",
    "rounds",
    "local_steps",
    "compression",
    "values",
    "lr",
    "batch",
    "seed",
    "final_dense_rounds",
    "checkpoint_every",
    "evaluate_every",
    "stop",
    "momentum",
    "weight_decay",
    "lr_final",
    "outer_lr",
    "outer_momentum",
    "slow_momentum",
    "gossip_step",
    "asked",
    "clip",
    "dp_noise",
    "dp_norm",
    "dp_delta",
];

/// Which algorithms a key is for, as an error says it; nothing where it is for all.
fn is_for(key: &str, algorithm: Algorithm) -> Result<(), &'static str> {
    let (is_used, by) = match key {
        "planner" => (
            algorithm.meeting() == Meeting::Pairs,
            "`planner` is for algorithms that meet in pairs: `default`, `saps` and `noloco`",
        ),
        "compression" => (
            !matches!(
                algorithm,
                Algorithm::DPsgd
                    | Algorithm::DiLoCo
                    | Algorithm::NoLoCo
                    | Algorithm::FedAvg
                    | Algorithm::AllReduce
                    | Algorithm::Local
            ),
            "`compression` is for `default`, `saps`, `dcd-psgd`, `choco-sgd` and `s-fedavg`: the others exchange everything",
        ),
        "outer_lr" | "outer_momentum" => (
            matches!(algorithm, Algorithm::DiLoCo | Algorithm::NoLoCo),
            "`outer_lr` and `outer_momentum` are for `diloco` and `noloco`",
        ),
        "slow_momentum" => (
            algorithm == Algorithm::Default,
            "`slow_momentum` is for `default`",
        ),
        "gossip_step" => (
            matches!(algorithm, Algorithm::ChocoSgd | Algorithm::NoLoCo),
            "`gossip_step` is for `choco-sgd` and `noloco`",
        ),
        "clip" => (
            matches!(algorithm, Algorithm::Default | Algorithm::Saps),
            "`clip` is for `default` and `saps`",
        ),
        "dp_noise" | "dp_norm" | "dp_delta" => (
            algorithm != Algorithm::AllReduce,
            "`dp_noise`, `dp_norm` and `dp_delta` are for algorithms with local steps: all but `all-reduce`",
        ),
        "asked" => (
            algorithm.meeting() == Meeting::Server,
            "`asked` is for `fedavg` and `s-fedavg`",
        ),
        _ => (true, ""),
    };
    if is_used { Ok(()) } else { Err(by) }
}

/// What a job is that a file says nothing about: what suits the embedded digits on eight nodes, and takes as many
/// optimiser steps with every algorithm.
pub fn defaults(algorithm: Algorithm) -> JobSpec {
    let Cadence {
        rounds,
        local_steps,
        checkpoint_every,
        evaluate_every,
    } = cadence(algorithm);
    JobSpec {
        // One hidden layer is enough for the digits, and trains on any machine.
        model: "mlp".to_owned(),
        // Embedded: needs no file and no network.
        data: "digits".to_owned(),
        algorithm,
        rounds,
        local_steps,
        compression: match algorithm {
            // With five steps a round, 20 to a whole exchange: 140 times fewer bytes than a sum of gradients in every step. Twice
            // the bytes end no higher (docs/algorithms.md).
            Algorithm::Default => 4,
            // What the authors of SAPS compare it at: beyond, it stops learning.
            Algorithm::DcdPsgd => 4,
            // With 14 nodes disagreement shrinks by 1/e in about 40 rounds; at 100 it would take 185.
            _ if is_for("compression", algorithm).is_ok() => 25,
            _ => 1,
        },
        values: match algorithm {
            // A quarter of the bytes; a value's rounding is gone with its next exchange.
            Algorithm::Default => Values::Int8,
            // As published.
            _ => Values::F32,
        },
        lr_micro: match algorithm {
            // LeNet on Fashion-MNIST in uneven parts ends at 82.5 %, with 0.02 at 82.4 and with 0.05 at 73.0 (three epochs).
            Algorithm::Default => 30_000,
            // Between 0.05 and 0.1 hardly matters on the digits; 0.2 costs a point.
            _ => 50_000,
        },
        batch: 32,
        seed: 1,
        final_dense_rounds: match algorithm {
            // Five bring 14 nodes to consensus; eight nodes need three, and two are to spare for a failed pair.
            Algorithm::Default | Algorithm::Saps => 5,
            // As published; with one server or one sum, all have one model anyway.
            _ => 0,
        },
        checkpoint_every,
        evaluate_every,
        stop: None,
        planner: algorithm.planner(),
        tuning: algorithm.tuning(),
    }
}

/// How many rounds, of how many steps, with what in between.
struct Cadence {
    rounds: u32,
    local_steps: u32,
    checkpoint_every: u32,
    evaluate_every: u32,
}

fn cadence(algorithm: Algorithm) -> Cadence {
    match algorithm {
        // A round of five steps exchanges a quarter of the model. One of two that exchanges an eighth ends as high and
        // takes more time (LeNet, Fashion-MNIST in uneven parts).
        Algorithm::Default => Cadence {
            rounds: 400,
            local_steps: 5,
            checkpoint_every: 1,
            evaluate_every: 20,
        },
        // Eight cycles at compression 25: with four, the digits end a point below 95 %.
        // Ten steps are about two passes over a node's share: 1,437 digits on 8 nodes are 180 each, 5.6 batches of 32.
        // Fewer learn as much, and are a smaller part of a round's time.
        Algorithm::Saps | Algorithm::FedAvg | Algorithm::SFedAvg | Algorithm::Local => {
            Cadence {
                rounds: 200,
                local_steps: 10,
                // A small model costs a millisecond to write; raise this for a large one.
                checkpoint_every: 1,
                evaluate_every: 10,
            }
        }
        // Published with one step a round.
        Algorithm::DPsgd | Algorithm::DcdPsgd | Algorithm::ChocoSgd | Algorithm::AllReduce => Cadence {
            rounds: 2000,
            local_steps: 1,
            checkpoint_every: 10,
            evaluate_every: 100,
        },
        // Published with 50 to 500 steps a round, of far longer runs: 20 rounds are the fewest in which the outer
        // momentum, which remembers ten, comes to rest.
        Algorithm::DiLoCo | Algorithm::NoLoCo => Cadence {
            rounds: 40,
            local_steps: 50,
            checkpoint_every: 1,
            evaluate_every: 2,
        },
    }
}

/// Reads a job file.
///
/// Keys that are absent have the [`defaults`] of the file's algorithm.
///
/// # Errors
///
/// When the text is too long, is not TOML, has a key that no job has, or a value that is out of its range; the
/// error names line, key, value and what is allowed.
pub fn parse(text: &str) -> Result<JobSpec, JobFileError> {
    read(text, None)
}

/// Reads a job file as one for another algorithm than it names, to compare them: keys that are not for that one are
/// passed over.
///
/// # Errors
///
/// As for [`parse`].
pub fn parse_as(text: &str, algorithm: Algorithm) -> Result<JobSpec, JobFileError> {
    read(text, Some(algorithm))
}

fn read(text: &str, another: Option<Algorithm>) -> Result<JobSpec, JobFileError> {
    if text.len() > JOB_FILE_BYTES_MAX {
        return Err(JobFileError::TooLong { bytes: text.len() });
    }
    let table = DeTable::parse(text).map_err(|error| JobFileError::Syntax {
        line: line_at(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let file = File {
        text,
        table: table.get_ref(),
        read_as: another,
    };
    file.check_keys()?;
    let algorithms = Algorithm::ALL.map(|algorithm| (algorithm.name(), algorithm));
    let named = file.choice("algorithm", &algorithms)?.unwrap_or_default();
    let algorithm = another.unwrap_or(named);
    if another.is_none() {
        for key in KEYS.iter().filter(|key| file.table.contains_key(**key)) {
            is_for(key, algorithm).map_err(JobFileError::Contradiction)?;
        }
    }
    let mut spec = defaults(algorithm);
    if let Some((model, line)) = file.string("model")? {
        let is_known = Model::names().any(|known| known == model)
            || ScriptModel::named(model).is_some()
            || ExternalModel::named(model).is_some();
        if !is_known {
            let names: Vec<String> = Model::names()
                .chain(["external"])
                .map(|name| format!("`{name}`"))
                .collect();
            return Err(bad_value(
                line,
                "model",
                model,
                &format!(
                    "one of {}, or `torchscript:FILE#HASH` with the file's BLAKE3, as `b3sum FILE` prints it",
                    names.join(", ")
                ),
            ));
        }
        spec.model = model.to_owned();
    }
    if let Some((data, line)) = file.string("data")? {
        if data.len() > DATA_BYTES_MAX {
            return Err(bad_value(
                line,
                "data",
                data,
                &format!("at most {DATA_BYTES_MAX} bytes"),
            ));
        }
        data.parse::<Source>()
            .map_err(|source| JobFileError::BadData { line, source })?;
        spec.data = data.to_owned();
    }
    let planners = Planner::ALL.map(|planner| (planner.name(), planner));
    replace(&mut spec.planner, file.choice("planner", &planners)?);
    let values = Values::ALL.map(|values| (values.name(), values));
    replace(&mut spec.values, file.choice("values", &values)?);
    replace(&mut spec.rounds, file.whole("rounds", 1, 1_000_000)?);
    replace(&mut spec.local_steps, file.whole("local_steps", 1, 100_000)?);
    // Beyond this even a model of a billion parameters mixes too slowly to be of use.
    replace(&mut spec.compression, file.whole("compression", 1, 10_000)?);
    replace(&mut spec.lr_micro, file.millionths("lr", 1, 10_000_000)?);
    replace(&mut spec.batch, file.whole("batch", 1, 65_536)?);
    replace(
        &mut spec.seed,
        file.integer("seed", 0, i64::MAX)?.map(i64::unsigned_abs),
    );
    replace(
        &mut spec.final_dense_rounds,
        file.whole("final_dense_rounds", 0, FINAL_DENSE_ROUNDS_MAX)?,
    );
    replace(
        &mut spec.checkpoint_every,
        file.whole("checkpoint_every", 1, 1_000_000)?,
    );
    replace(
        &mut spec.evaluate_every,
        file.whole("evaluate_every", 0, 1_000_000)?,
    );
    spec.stop = file.millionths("stop", 1, 1_000_000)?.map(Ppm);
    read_tuning(&file, &mut spec.tuning)?;
    check_together(&file, &mut spec)?;
    Ok(spec)
}

fn read_tuning(file: &File<'_, '_>, tuning: &mut Tuning) -> Result<(), JobFileError> {
    // A momentum of one never forgets.
    replace(
        &mut tuning.momentum_micro,
        file.millionths("momentum", 0, 999_999)?,
    );
    replace(
        &mut tuning.weight_decay_micro,
        file.millionths("weight_decay", 0, 1_000_000)?,
    );
    replace(
        &mut tuning.lr_final,
        file.millionths("lr_final", 0, 1_000_000)?.map(Ppm),
    );
    replace(
        &mut tuning.outer_lr_micro,
        file.millionths("outer_lr", 1, 10_000_000)?,
    );
    replace(
        &mut tuning.outer_momentum_micro,
        file.millionths("outer_momentum", 0, 999_999)?,
    );
    replace(
        &mut tuning.slow_momentum_micro,
        file.millionths("slow_momentum", 0, 999_999)?,
    );
    replace(
        &mut tuning.gossip_step_micro,
        file.millionths("gossip_step", 1, 1_000_000)?,
    );
    replace(
        &mut tuning.asked,
        file.millionths("asked", 1, 1_000_000)?.map(Ppm),
    );
    replace(&mut tuning.clip, file.boolean("clip")?);
    tuning.privacy = privacy(file)?;
    Ok(())
}

/// Differential privacy, which `dp_noise` asks for.
fn privacy(file: &File<'_, '_>) -> Result<Option<Privacy>, JobFileError> {
    // Below a twentieth nothing worth the name is promised.
    let noise = file.millionths("dp_noise", 50_000, 1_000_000_000)?;
    let norm = file.millionths("dp_norm", 1, 1_000_000_000)?;
    let delta = file.billionths("dp_delta", 1, 999_999_999)?;
    match noise {
        Some(noise_micro) => Ok(Some(Privacy {
            noise_micro,
            // Gradients of the built-in models at their start are about as long.
            norm_micro: norm.unwrap_or(1_000_000),
            // Customary: well below one over the number of samples.
            delta_nano: delta.unwrap_or(10_000),
        })),
        None if norm.or(delta).is_some() => Err(JobFileError::Contradiction(
            "`dp_norm` and `dp_delta` need `dp_noise`: without noise nothing is private",
        )),
        None => Ok(None),
    }
}

/// Longest name of a data set in a job, in bytes: it goes into the log.
const DATA_BYTES_MAX: usize = 256;

/// Most dense rounds: the log keeps 64 rounds, and with 32 dense ones any number of members agrees to the last bit.
const FINAL_DENSE_ROUNDS_MAX: u32 = 32;

fn check_together(file: &File<'_, '_>, spec: &mut JobSpec) -> Result<(), JobFileError> {
    if spec.tuning.clip && spec.tuning.slow_momentum_micro > 0 {
        if file.table.contains_key("slow_momentum") {
            return Err(JobFileError::Contradiction(
                "`clip` needs `slow_momentum` to be 0: a momentum goes on in the direction that a poisoned node gave",
            ));
        }
        spec.tuning.slow_momentum_micro = 0;
    }
    if spec.algorithm == Algorithm::AllReduce && ExternalModel::named(&spec.model).is_some() {
        return Err(JobFileError::Contradiction(
            "`all-reduce` sums gradients, and a trainer of `external` models tells parameters only",
        ));
    }
    if spec.tuning.privacy.is_some() && ExternalModel::named(&spec.model).is_some() {
        return Err(JobFileError::Contradiction(
            "`dp_noise` needs gradients of single samples, and a trainer of `external` models tells parameters only; it may add noise itself",
        ));
    }
    if spec.final_dense_rounds >= spec.rounds {
        if file.table.contains_key("final_dense_rounds") {
            return Err(JobFileError::Contradiction(
                "`final_dense_rounds` must be less than `rounds`: dense rounds do not train",
            ));
        }
        // A short job that does not mention them: keep at least one round that trains.
        spec.final_dense_rounds = spec.rounds - 1;
    }
    if spec.stop.is_some() && spec.evaluate_every == 0 {
        return Err(JobFileError::Contradiction(
            "`stop` needs `evaluate_every` to be at least 1: nothing else tells the accuracy before the end",
        ));
    }
    let has_one_model = matches!(spec.algorithm.meeting(), Meeting::All | Meeting::Server);
    if spec.stop.is_some() && spec.final_dense_rounds == 0 && !has_one_model {
        return Err(JobFileError::Contradiction(
            "`stop` needs `final_dense_rounds` to be at least 1: they make the model that is handed out",
        ));
    }
    Ok(())
}

/// Writes a job so that [`parse`] reads the same job again, every key on a line of its own.
pub fn to_toml(spec: &JobSpec) -> String {
    let mut out = String::new();
    let used = KEYS.iter().filter(|key| is_for(key, spec.algorithm).is_ok());
    for key in used {
        let value = match *key {
            "model" => quoted(&spec.model),
            "data" => quoted(&spec.data),
            "algorithm" => quoted(&spec.algorithm.to_string()),
            "planner" => quoted(&spec.planner.to_string()),
            "rounds" => spec.rounds.to_string(),
            "local_steps" => spec.local_steps.to_string(),
            "compression" => spec.compression.to_string(),
            "values" => quoted(&spec.values.to_string()),
            "lr" => decimal(spec.lr_micro),
            "batch" => spec.batch.to_string(),
            "seed" => spec.seed.to_string(),
            "final_dense_rounds" => spec.final_dense_rounds.to_string(),
            "checkpoint_every" => spec.checkpoint_every.to_string(),
            "evaluate_every" => spec.evaluate_every.to_string(),
            "momentum" => decimal(spec.tuning.momentum_micro),
            "weight_decay" => decimal(spec.tuning.weight_decay_micro),
            "lr_final" => decimal(spec.tuning.lr_final.0),
            "outer_lr" => decimal(spec.tuning.outer_lr_micro),
            "outer_momentum" => decimal(spec.tuning.outer_momentum_micro),
            "slow_momentum" => decimal(spec.tuning.slow_momentum_micro),
            "gossip_step" => decimal(spec.tuning.gossip_step_micro),
            "asked" => decimal(spec.tuning.asked.0),
            "clip" => spec.tuning.clip.to_string(),
            "dp_noise" | "dp_norm" | "dp_delta" => match (spec.tuning.privacy, *key) {
                (Some(privacy), "dp_noise") => decimal(privacy.noise_micro),
                (Some(privacy), "dp_norm") => decimal(privacy.norm_micro),
                (Some(privacy), _) => decimal_of(privacy.delta_nano, 9),
                (None, _) => continue,
            },
            _ => match spec.stop {
                Some(stop) => decimal(stop.0),
                None => continue,
            },
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "{key} = {value}");
    }
    out
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Millionths as a decimal fraction, exactly.
fn decimal(micro: u32) -> String {
    decimal_of(micro, 6)
}

/// So many parts of a power of ten as a decimal fraction, exactly.
fn decimal_of(parts: u32, digits: u32) -> String {
    let whole = 10_u32.pow(digits);
    let (before, after) = (parts / whole, parts % whole);
    let text = format!("{before}.{after:0width$}", width = digits as usize);
    let short = text.trim_end_matches('0');
    if short.ends_with('.') {
        format!("{short}0")
    } else {
        short.to_owned()
    }
}

fn replace<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// A parsed file and the text that its places refer to.
struct File<'a, 't> {
    text: &'t str,
    table: &'a DeTable<'t>,
    /// Keys that are not for this algorithm are as if they were not there.
    read_as: Option<Algorithm>,
}

impl<'a, 't> File<'a, 't> {
    fn check_keys(&self) -> Result<(), JobFileError> {
        let unknown = self
            .table
            .keys()
            .find(|key| !KEYS.contains(&key.get_ref().as_ref()));
        unknown.map_or(Ok(()), |key| {
            Err(JobFileError::UnknownKey {
                line: line_at(self.text, key.span().start),
                key: shortened(key.get_ref()),
                nearest: nearest(key.get_ref(), KEYS),
            })
        })
    }

    fn get(&self, key: &str) -> Option<(&'a DeValue<'t>, usize, String)> {
        if self
            .read_as
            .is_some_and(|algorithm| is_for(key, algorithm).is_err())
        {
            return None;
        }
        let value: &'a Spanned<DeValue<'t>> = self.table.get(key)?;
        let span = value.span();
        let written = self.text.get(span.clone()).unwrap_or_default();
        Some((
            value.get_ref(),
            line_at(self.text, span.start),
            shortened(written),
        ))
    }

    fn string(&self, key: &'static str) -> Result<Option<(&'a str, usize)>, JobFileError> {
        let Some((value, line, written)) = self.get(key) else {
            return Ok(None);
        };
        match value.as_str() {
            Some(text) => Ok(Some((text, line))),
            None => Err(bad_value(line, key, &written, "a text in quotes")),
        }
    }

    fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, JobFileError> {
        let Some((text, line)) = self.string(key)? else {
            return Ok(None);
        };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let names: Vec<String> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
                Err(bad_value(
                    line,
                    key,
                    text,
                    &format!("one of {}", names.join(", ")),
                ))
            }
        }
    }

    fn boolean(&self, key: &'static str) -> Result<Option<bool>, JobFileError> {
        let Some((value, line, written)) = self.get(key) else {
            return Ok(None);
        };
        match value.as_bool() {
            Some(value) => Ok(Some(value)),
            None => Err(bad_value(line, key, &written, "true or false")),
        }
    }

    fn integer(&self, key: &'static str, min: i64, max: i64) -> Result<Option<i64>, JobFileError> {
        let Some((value, line, written)) = self.get(key) else {
            return Ok(None);
        };
        let number = value
            .as_integer()
            .and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
        match number {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(bad_value(
                line,
                key,
                &written,
                &format!("a whole number from {min} to {max}"),
            )),
        }
    }

    fn whole(&self, key: &'static str, min: u32, max: u32) -> Result<Option<u32>, JobFileError> {
        let number = self.integer(key, min.into(), max.into())?;
        // Within the range of two `u32`s.
        Ok(number.and_then(|number| u32::try_from(number).ok()))
    }

    /// A fraction, in millionths; nothing finer is kept.
    fn millionths(&self, key: &'static str, min: u32, max: u32) -> Result<Option<u32>, JobFileError> {
        self.parts(key, 6, min, max)
    }

    fn billionths(&self, key: &'static str, min: u32, max: u32) -> Result<Option<u32>, JobFileError> {
        self.parts(key, 9, min, max)
    }

    /// A number in parts of a power of ten.
    fn parts(&self, key: &'static str, digits: u32, min: u32, max: u32) -> Result<Option<u32>, JobFileError> {
        let Some((value, line, written)) = self.get(key) else {
            return Ok(None);
        };
        let number = match value {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse::<f64>().ok(),
            _ => None,
        };
        let parts = number.map(|number| (number * f64::from(10_u32.pow(digits))).round());
        match parts {
            Some(parts) if (f64::from(min)..=f64::from(max)).contains(&parts) => Ok(Some(parts as u32)),
            _ => {
                let [least, most] = [min, max].map(|parts| decimal_of(parts, digits));
                let allowed = format!("a number from {least} to {most}");
                Err(bad_value(line, key, &written, &allowed))
            }
        }
    }
}

fn bad_value(line: usize, key: &'static str, value: &str, allowed: &str) -> JobFileError {
    JobFileError::BadValue {
        line,
        key,
        value: shortened(value),
        allowed: allowed.to_owned(),
    }
}

/// What a person wrote, as much of it as fits into an error.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The line of a place in the text, counted from 1.
fn line_at(text: &str, place: usize) -> usize {
    let before = text.as_bytes().iter().take(place);
    1 + before.filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_file_is_the_default_job() {
        assert_eq!(parse(""), Ok(defaults(Algorithm::Default)));
        assert_eq!(parse("# nothing\n").map(|spec| spec.values), Ok(Values::Int8));
    }

    #[test]
    fn a_model_of_the_users_own_is_named_alone_or_with_its_layout() {
        for model in ["external", "external:91c2a0d7e45b3f68"] {
            let spec = parse(&format!("model = '{model}'")).unwrap();
            assert_eq!(spec.model, model);
            assert_eq!(parse(&to_toml(&spec)), Ok(spec));
        }
        let error = parse("model = 'external:mine'").unwrap_err().to_string();
        assert!(error.contains("`external`"), "{error}");
        let error = parse("model = 'external'\nalgorithm = 'all-reduce'").unwrap_err();
        assert!(matches!(error, JobFileError::Contradiction(text) if text.contains("gradients")));
    }

    #[test]
    fn plain_saps_sends_exact_values_unless_the_file_says_otherwise() {
        assert_eq!(
            parse("algorithm = 'saps'").map(|spec| spec.values),
            Ok(Values::F32)
        );
        let spec = parse("values = 'f16'\nalgorithm = 'saps'").unwrap();
        assert_eq!((spec.algorithm, spec.values), (Algorithm::Saps, Values::F16));
    }

    #[test]
    fn the_planner_follows_from_the_algorithm_unless_the_file_names_one() {
        let planner = |text: &str| parse(text).map(|spec| spec.planner);
        assert_eq!(planner(""), Ok(Planner::Adaptive));
        assert_eq!(planner("algorithm = 'saps'"), Ok(Planner::Thresholds));
        for (name, expected) in [
            ("adaptive", Planner::Adaptive),
            ("thresholds", Planner::Thresholds),
            ("random", Planner::Random),
            ("exponential", Planner::Exponential),
        ] {
            let text = format!("planner = '{name}'\nalgorithm = 'saps'");
            assert_eq!(planner(&text), Ok(expected));
            assert_eq!(planner(&to_toml(&parse(&text).unwrap())), Ok(expected));
        }
    }

    #[test]
    fn a_file_read_as_another_algorithm_leaves_out_what_is_not_for_that() {
        let text = "algorithm = 'saps'\nplanner = 'random'\ncompression = 10\nlr = 0.1";
        let spec = parse_as(text, Algorithm::AllReduce).unwrap();
        assert_eq!((spec.algorithm, spec.compression), (Algorithm::AllReduce, 1));
        assert_eq!(
            (spec.planner, spec.lr_micro),
            (Algorithm::AllReduce.planner(), 100_000)
        );
        let spec = parse_as(text, Algorithm::Default).unwrap();
        assert_eq!((spec.planner, spec.compression), (Planner::Random, 10));
        assert_eq!(parse_as(text, Algorithm::Saps), parse(text));
    }

    #[test]
    fn every_algorithm_has_its_published_settings_and_as_many_steps() {
        for algorithm in Algorithm::ALL {
            let spec = parse(&format!("algorithm = '{algorithm}'")).unwrap();
            assert_eq!(spec, defaults(algorithm));
            assert_eq!(parse(&to_toml(&spec)), Ok(spec.clone()));
            assert_eq!(spec.rounds * spec.local_steps, 2000, "{algorithm}");
            let is_stepwise = matches!(
                algorithm,
                Algorithm::DPsgd | Algorithm::DcdPsgd | Algorithm::ChocoSgd | Algorithm::AllReduce
            );
            assert_eq!(spec.local_steps == 1, is_stepwise, "{algorithm}");
            let ends_dense = matches!(algorithm, Algorithm::Default | Algorithm::Saps);
            assert_eq!(spec.final_dense_rounds > 0, ends_dense, "{algorithm}");
            assert!(!spec.tuning.clip);
        }
    }

    #[test]
    fn a_clipped_merge_has_no_momentum() {
        let momentum = |text: &str| parse(text).map(|spec| spec.tuning.slow_momentum_micro);
        assert_eq!(momentum(""), Ok(500_000));
        assert_eq!(momentum("slow_momentum = 0.25"), Ok(250_000));
        for text in [
            "clip = true",
            "clip = true\nslow_momentum = 0",
            "algorithm = 'saps'",
        ] {
            assert_eq!(momentum(text), Ok(0), "{text}");
        }
        let clipped = parse_as("algorithm = 'saps'\nclip = true", Algorithm::Default).unwrap();
        assert_eq!(clipped.tuning.slow_momentum_micro, 0);
        for text in [
            "clip = true\nslow_momentum = 0.5",
            "algorithm = 'saps'\nslow_momentum = 0.5",
        ] {
            assert!(
                matches!(parse(text), Err(JobFileError::Contradiction(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_key_of_another_algorithm_is_a_contradiction() {
        for (text, spec) in [
            (
                "algorithm = 'diloco'\nouter_lr = 0.5\nouter_momentum = 0.8",
                Algorithm::DiLoCo,
            ),
            ("algorithm = 'noloco'\ngossip_step = 0.9", Algorithm::NoLoCo),
            ("algorithm = 'choco-sgd'\ngossip_step = 0.2", Algorithm::ChocoSgd),
            (
                "algorithm = 's-fedavg'\nasked = 0.3\ncompression = 100",
                Algorithm::SFedAvg,
            ),
            ("clip = true", Algorithm::Default),
            ("slow_momentum = 0.3", Algorithm::Default),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(parsed.algorithm, spec);
            assert_ne!(parsed, defaults(spec));
            assert_eq!(parse(&to_toml(&parsed)), Ok(parsed));
        }
        for text in [
            "outer_lr = 0.5",
            "gossip_step = 0.5",
            "asked = 0.5",
            "algorithm = 'diloco'\ncompression = 4",
            "algorithm = 'd-psgd'\nplanner = 'random'",
            "algorithm = 'noloco'\nclip = true",
        ] {
            assert!(
                matches!(parse(text), Err(JobFileError::Contradiction(_))),
                "{text}"
            );
        }
        assert!(
            parse("clip = 1")
                .unwrap_err()
                .to_string()
                .contains("true or false")
        );
    }

    #[test]
    fn privacy_is_asked_for_by_its_noise() {
        let private = |text: &str| parse(text).map(|spec| spec.tuning.privacy);
        let all = "dp_noise = 1.2\ndp_norm = 0.5\ndp_delta = 1e-6";
        let privacy = Privacy {
            noise_micro: 1_200_000,
            norm_micro: 500_000,
            delta_nano: 1_000,
        };
        assert_eq!(private(all), Ok(Some(privacy)));
        assert_eq!(private(&to_toml(&parse(all).unwrap())), Ok(Some(privacy)));
        let short = private("dp_noise = 1").unwrap().unwrap();
        assert_eq!((short.norm_micro, short.delta_nano), (1_000_000, 10_000));
        assert_eq!(private(""), Ok(None));
        for text in [
            "dp_norm = 1",
            "algorithm = 'all-reduce'\ndp_noise = 1",
            "model = 'external'\ndp_noise = 1",
        ] {
            assert!(
                matches!(parse(text), Err(JobFileError::Contradiction(_))),
                "{text}"
            );
        }
        for text in [
            "dp_noise = 0",
            "dp_noise = 1\ndp_delta = 1",
            "dp_noise = 1\ndp_delta = 0",
        ] {
            assert!(
                matches!(parse(text), Err(JobFileError::BadValue { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn every_key_is_read() {
        let text = "model = \"mlp\"\ndata = \"csv:/a \\\"b\\\".csv\"\nalgorithm = \"saps\"\nrounds = 7\n\
            local_steps = 2\ncompression = 10\nvalues = \"f16\"\nlr = 0.05\nbatch = 8\nseed = 9\n\
            final_dense_rounds = 2\ncheckpoint_every = 3\nevaluate_every = 4\nstop = 0.95\n";
        let spec = parse(text).unwrap();
        assert_eq!(spec.data, "csv:/a \"b\".csv");
        assert_eq!((spec.rounds, spec.local_steps, spec.compression), (7, 2, 10));
        assert_eq!((spec.lr_micro, spec.batch, spec.seed), (50_000, 8, 9));
        assert_eq!(
            (
                spec.final_dense_rounds,
                spec.checkpoint_every,
                spec.evaluate_every
            ),
            (2, 3, 4)
        );
        assert_eq!(spec.stop, Some(Ppm(950_000)));
        assert_eq!(parse(&to_toml(&spec)), Ok(spec));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        let error = parse("rounds = 5\n\nlokal_steps = 3\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "line 3: unknown key `lokal_steps`; did you mean `local_steps`?"
        );
        let error = parse("[zebra]\n").unwrap_err();
        assert_eq!(error.to_string(), "line 1: unknown key `zebra`");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_key_and_the_range() {
        for (text, message) in [
            (
                "rounds = 0",
                "line 1: `rounds` must be a whole number from 1 to 1000000, not 0",
            ),
            (
                "\nbatch = -3",
                "line 2: `batch` must be a whole number from 1 to 65536, not -3",
            ),
            (
                "compression = 2.5",
                "line 1: `compression` must be a whole number from 1 to 10000, not 2.5",
            ),
            (
                "lr = 0",
                "line 1: `lr` must be a number from 0.000001 to 10.0, not 0",
            ),
            (
                "lr = nan",
                "line 1: `lr` must be a number from 0.000001 to 10.0, not nan",
            ),
            (
                "stop = 95",
                "line 1: `stop` must be a number from 0.000001 to 1.0, not 95",
            ),
            (
                "values = 'int4'",
                "line 1: `values` must be one of `f32`, `f16`, `int8`, not int4",
            ),
            ("model = 3", "line 1: `model` must be a text in quotes, not 3"),
            (
                "algorithm = 'sabs'",
                "line 1: `algorithm` must be one of `default`, `saps`, `d-psgd`, `dcd-psgd`, `choco-sgd`, `diloco`, `noloco`, \
                 `fedavg`, `s-fedavg`, `all-reduce`, `local`, not sabs",
            ),
            (
                "planner = 'greedy'",
                "line 1: `planner` must be one of `adaptive`, `thresholds`, `random`, `exponential`, not greedy",
            ),
            (
                "seed = -1",
                "line 1: `seed` must be a whole number from 0 to 9223372036854775807, not -1",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_file_that_is_not_toml_is_told_the_line() {
        let error = parse("rounds = 5\nbatch = \n").unwrap_err();
        assert!(matches!(error, JobFileError::Syntax { line: 2, .. }), "{error:?}");
        let error = parse(&"#".repeat(JOB_FILE_BYTES_MAX + 1)).unwrap_err();
        assert!(matches!(error, JobFileError::TooLong { .. }));
    }

    #[test]
    fn an_unknown_model_and_data_set_are_refused() {
        let error = parse("model = 'mpl'").unwrap_err();
        assert!(error.to_string().contains("`mlp`"), "{error}");
        assert!(matches!(
            parse("data = 'digit'"),
            Err(JobFileError::BadData { line: 1, .. })
        ));
    }

    #[test]
    fn a_job_keeps_at_least_one_round_that_trains() {
        assert_eq!(parse("rounds = 3").map(|spec| spec.final_dense_rounds), Ok(2));
        let error = parse("rounds = 3\nfinal_dense_rounds = 3").unwrap_err();
        assert!(matches!(error, JobFileError::Contradiction(_)));
        assert!(parse("stop = 0.9\nevaluate_every = 0").is_err());
        assert!(parse("stop = 0.9\nfinal_dense_rounds = 0").is_err());
        assert!(parse("algorithm = 'd-psgd'\nstop = 0.9").is_err());
        assert!(parse("algorithm = 'fedavg'\nstop = 0.9").is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_as_the_same_job(
            rounds in 33_u32..1_000_000, compression in 1_u32..=10_000, lr_micro in 1_u32..=10_000_000,
            seed in 0..=i64::MAX as u64, dense in 1_u32..=32, stop in prop::option::of(1_u32..=1_000_000),
        ) {
            let spec = JobSpec {
                rounds, compression, lr_micro, seed, final_dense_rounds: dense, stop: stop.map(Ppm),
                ..defaults(Algorithm::Saps)
            };
            prop_assert_eq!(parse(&to_toml(&spec)), Ok(spec));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
