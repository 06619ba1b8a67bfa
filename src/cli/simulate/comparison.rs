//! From the command line to settings: which algorithms, each with its own keys, on which network, with which seeds.

use std::fmt;
use std::path::Path;

use lapwing_base::{Algorithm, Bandwidth, JobSpec, chain};
use lapwing_train::simulate::{Every, Network, Setting, rounds_of_epochs};
use lapwing_train::{DataSpec, Dataset, Knobs, Threshold, jobfile, load};
use toml::{Table, Value};

use super::SimulateFlags;
use crate::cli::failure::Failure;

/// All runs that were asked for, and what they train on.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) data: Dataset,
    pub(super) cases: Vec<Case>,
}

/// One run.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) setting: Setting,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let job = &self.setting.job;
        write!(f, "{}, seed {}", job.algorithm, job.seed)
    }
}

impl Comparison {
    pub(super) fn read(flags: &SimulateFlags) -> Result<Self, Failure> {
        let text = match &flags.job {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|error| Failure::new(format!("read the job file {}", file.display()), error))?,
            None => String::new(),
        };
        let mut file: Table = text.parse().map_err(Failure::usage)?;
        let sections = sections(&mut file)?;
        let named = match file.get("algorithm") {
            Some(Value::String(name)) => algorithm(name)?,
            _ => Algorithm::default(),
        };
        let algorithms = algorithms(&flags.algorithm, named)?;
        for setting in &flags.set {
            let (key, value) = key_value(setting)?;
            file.insert(key, value);
        }
        if let Some(rounds) = flags.rounds {
            file.insert("rounds".to_owned(), Value::Integer(rounds.into()));
        }
        let jobs = algorithms
            .iter()
            .map(|algorithm| job(&file, &sections, *algorithm));
        let mut jobs = jobs.collect::<Result<Vec<_>, _>>()?;
        let data = whole(&jobs)?;
        let nodes = flags.nodes;
        let matrix = Matrix::parse(&flags.network)?;
        for job in &mut jobs {
            if let Some(epochs) = flags.epochs {
                if !(epochs > 0.0 && epochs.is_finite()) {
                    return Err(Failure::usage("--epochs needs a positive number"));
                }
                let nodes = matrix.network(nodes, job.seed)?.nodes;
                job.rounds = rounds_of_epochs(job, data.train.len(), nodes, epochs);
            }
            if let Some(points) = flags.points.filter(|points| *points > 0) {
                job.evaluate_every = job.rounds.div_ceil(points);
            }
        }
        let knobs = Knobs {
            threshold: match flags.b_thres {
                Some(speed) => Threshold::AtLeast(Bandwidth::kbit((speed * 1e3).round() as u32)),
                None => Threshold::default(),
            },
            recent_rounds: flags.t_thres,
        };
        for (name, seconds) in [("--step-time", flags.step_time), ("--overhead", flags.overhead)] {
            if !(0.0..1e9).contains(&seconds) {
                return Err(Failure::usage(format!(
                    "{name} needs a number of seconds, not below 0"
                )));
            }
        }
        let mut cases = Vec::new();
        for seed in 0..flags.seeds {
            for job in &jobs {
                let mut job = job.clone();
                job.seed += seed;
                let network = matrix.network(nodes, job.seed)?;
                // Only `plain` computes what privacy needs.
                let backend = match job.tuning.privacy {
                    Some(_) => "plain",
                    None => "burn",
                };
                let setting = Setting {
                    every: Every::Rounds(job.evaluate_every),
                    job,
                    network,
                    partition: flags.partition,
                    knobs,
                    step_seconds: flags.step_time,
                    overhead_seconds: flags.overhead,
                    events: flags.event.clone(),
                    backend: backend.to_owned(),
                    trains: !flags.plan_only,
                };
                cases.push(Case { setting });
            }
        }
        Ok(Self { data, cases })
    }
}

/// Takes the tables named after algorithms out of a file.
fn sections(file: &mut Table) -> Result<Vec<(Algorithm, Table)>, Failure> {
    let names: Vec<String> = file
        .iter()
        .filter(|(_, value)| value.is_table())
        .map(|(key, _)| key.clone())
        .collect();
    names
        .into_iter()
        .map(|name| match file.remove(&name) {
            Some(Value::Table(section)) => Ok((algorithm(&name)?, section)),
            _ => Err(Failure::usage(format!("`{name}` is no section"))),
        })
        .collect()
}

fn job(file: &Table, sections: &[(Algorithm, Table)], algorithm: Algorithm) -> Result<JobSpec, Failure> {
    let mut file = file.clone();
    let own = sections.iter().filter(|(name, _)| *name == algorithm);
    own.for_each(|(_, section)| file.extend(section.clone()));
    jobfile::parse_as(&file.to_string(), algorithm)
        .map_err(|error| Failure::usage(format!("{algorithm}: {}", chain(&error))))
}

fn algorithm(name: &str) -> Result<Algorithm, Failure> {
    Algorithm::ALL
        .into_iter()
        .find(|known| known.name() == name)
        .ok_or_else(|| {
            let failure = Failure::usage(format!("there is no algorithm `{name}`"));
            failure.with_hint(format!(
                "known: {}",
                Algorithm::ALL.map(Algorithm::name).join(", ")
            ))
        })
}

fn algorithms(names: &[String], default: Algorithm) -> Result<Vec<Algorithm>, Failure> {
    match names {
        [] => Ok(vec![default]),
        [all] if all == "all" => Ok(Algorithm::ALL.to_vec()),
        names => names.iter().map(|name| algorithm(name)).collect(),
    }
}

/// A value is a number where it reads as one, and a text otherwise.
fn key_value(text: &str) -> Result<(String, Value), Failure> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Failure::usage(format!("`--set {text}` needs KEY=VALUE")))?;
    let value = match (value.parse(), value.parse()) {
        (Ok(number), _) => Value::Integer(number),
        (_, Ok(number)) => Value::Float(number),
        _ => Value::String(value.to_owned()),
    };
    Ok((key.to_owned(), value))
}

/// The data of all jobs, which is the same for all.
fn whole(jobs: &[JobSpec]) -> Result<Dataset, Failure> {
    let names: Vec<&str> = jobs.iter().map(|job| job.data.as_str()).collect();
    let first = names.first().copied().unwrap_or("digits");
    if names.iter().any(|name| *name != first) {
        return Err(Failure::usage(
            "algorithms are compared on the same data; move `data` out of the sections",
        ));
    }
    let spec = first
        .parse::<DataSpec>()
        .map_err(|error| Failure::usage(chain(&error)))?;
    if spec.share.is_some() {
        return Err(Failure::usage(
            "a simulation shares the data out itself; use --partition",
        ));
    }
    load(&spec).map_err(|error| Failure::new(format!("load {first}"), error))
}

/// What `--network` names.
#[derive(Clone, Debug)]
enum Matrix {
    Cities,
    /// In kbit/s.
    Uniform {
        low: u32,
        high: u32,
    },
    /// In kbit/s.
    Equal(u32),
    File(Network),
}

impl Matrix {
    fn parse(text: &str) -> Result<Self, Failure> {
        let kbit = |text: &str| {
            let kbit = text.trim().parse::<f64>().ok()? * 1000.0;
            (0.0..=f64::from(u32::MAX))
                .contains(&kbit)
                .then(|| kbit.round() as u32)
        };
        let wrong = |form: &str| Failure::usage(format!("`--network {text}` is not {form}, in Mbit/s"));
        match text.split_once(':').unwrap_or((text, "")) {
            ("cities" | "cities14", "") => Ok(Self::Cities),
            ("uniform", range) => {
                let bounds = range.split_once("..").or_else(|| range.split_once(','));
                let bounds = bounds.and_then(|(low, high)| Some((kbit(low)?, kbit(high)?)));
                match bounds {
                    Some((low, high)) if high > low.saturating_add(1) => Ok(Self::Uniform { low, high }),
                    _ => Err(wrong("uniform:LOW,HIGH")),
                }
            }
            ("equal", speed) => match kbit(speed) {
                Some(speed) if speed > 0 => Ok(Self::Equal(speed)),
                _ => Err(wrong("equal:SPEED")),
            },
            _ => {
                let doing = || format!("read the matrix {text}");
                let matrix = std::fs::read_to_string(Path::new(text)).map_err(|error| {
                    Failure::new(doing(), error)
                        .with_hint("known: cities14, uniform:LOW,HIGH, equal:SPEED, or a file")
                })?;
                let network = Network::parse(text, &matrix).map_err(|error| Failure::new(doing(), error))?;
                Ok(Self::File(network))
            }
        }
    }

    /// The links of so many nodes; where they are drawn, each seed draws its own.
    fn network(&self, nodes: Option<u64>, seed: u64) -> Result<Network, Failure> {
        /// As many as the papers have.
        const NODES: u64 = 14;
        match self {
            Self::Cities => Network::cities(nodes.unwrap_or(NODES)).ok_or_else(|| {
                Failure::usage("there are 14 cities")
                    .with_hint("for more nodes: --network uniform:LOW,HIGH or equal:SPEED")
            }),
            Self::Uniform { low, high } => Ok(Network::uniform(nodes.unwrap_or(NODES), *low, *high, seed)),
            Self::Equal(speed) => Ok(Network::equal(nodes.unwrap_or(NODES), *speed)),
            Self::File(network) if nodes.is_none_or(|nodes| nodes == network.nodes) => Ok(network.clone()),
            Self::File(network) => Err(Failure::usage(format!(
                "the matrix {} has {} rows; leave --nodes out, or give as many",
                network.name, network.nodes
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_holds_what_is_different_for_its_algorithm() {
        let text = "lr = 0.1\ncompression = 50\n[saps]\ncompression = 100\n[all-reduce]\nlocal_steps = 1";
        let mut file: Table = text.parse().unwrap();
        let sections = sections(&mut file).unwrap();
        let of = |algorithm| job(&file, &sections, algorithm).unwrap();
        assert_eq!(
            (of(Algorithm::Saps).compression, of(Algorithm::Saps).lr_micro),
            (100, 100_000)
        );
        assert_eq!(of(Algorithm::Default).compression, 50);
        assert_eq!(
            (
                of(Algorithm::AllReduce).compression,
                of(Algorithm::AllReduce).local_steps
            ),
            (1, 1)
        );
    }

    #[test]
    fn networks_are_read_in_the_forms_of_the_manual() {
        let nodes = |text: &str, nodes| {
            Matrix::parse(text)
                .and_then(|matrix| matrix.network(nodes, 1))
                .map(|n| n.nodes)
        };
        assert_eq!(nodes("cities14", None).unwrap(), 14);
        assert_eq!(nodes("uniform:0..5", Some(32)).unwrap(), 32);
        assert_eq!(nodes("uniform:0,5", Some(3)).unwrap(), 3);
        assert_eq!(nodes("equal:10", None).unwrap(), 14);
        assert!(nodes("cities", Some(15)).is_err());
        for text in [
            "uniform:5,0",
            "uniform:1",
            "equal:0",
            "equal:x",
            "/no/such/file.csv",
        ] {
            assert!(Matrix::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_unknown_algorithm_is_answered_with_the_known_ones() {
        let failure = algorithms(&["sabs".to_owned()], Algorithm::Saps).unwrap_err();
        assert!(failure.text().unwrap().contains("known: default, saps"));
        assert_eq!(
            algorithms(&["all".to_owned()], Algorithm::Saps).unwrap().len(),
            11
        );
    }
}
