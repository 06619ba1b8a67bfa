//! `lapwing bench call`: calls from a home to a home across two mains, beside requests that take the same way through
//! four nats-servers.
//!
//! Mains and the home that answers are processes of their own, and the home that calls is in this one. Rounds of all
//! candidates are interleaved and the median counts, so that what else the machine does meets all of them. It asserts
//! nothing about times, but fails where a call was not answered, or was carried out twice.

mod caller;
mod counting;
mod loss;
mod measuring;
mod nats;
mod processes;
mod relays;

use std::io::{self, Write as _};
use std::time::Duration;

use clap::Args;
use lapwing_base::Row;
use tracing::info;

use super::net::{seconds, tell};
use super::{Failure, Folder, Output};
use caller::Caller;
use measuring::{Figures, measure, median};
use nats::Nats;
use relays::Relays;

/// What to measure, and beside what.
#[derive(Args, Clone, Debug)]
pub(crate) struct CallFlags {
    /// Seconds for which each case is measured, over all rounds
    #[arg(long, value_name = "SECONDS", default_value = "2.5", value_parser = seconds)]
    seconds: Duration,

    /// Fail where there is no nats-server to compare with [default: measure without it, and say so]
    #[arg(long)]
    beside_nats: bool,
}

/// Bytes of an argument and of its answer.
const ECHO_SIZE: usize = 128;

/// Rounds of which the median counts.
const ROUNDS: u32 = 5;

/// How long a candidate is called before it is measured: connections, windows and allocators are as they stay then.
const WARM_UP: Duration = Duration::from_millis(500);

/// Calls at a time, where there are several.
const CROWD: usize = 50;

/// What an unknown service may take, in milliseconds.
const UNKNOWN_MAX_MS: f64 = 1.0;

/// A candidate that is measured one call at a time, and many at a time.
struct Candidate {
    caller: Caller,
    alone: Vec<Figures>,
    crowd: Vec<Figures>,
}

impl Candidate {
    const fn new(caller: Caller) -> Self {
        Self {
            caller,
            alone: Vec::new(),
            crowd: Vec::new(),
        }
    }

    async fn warm_up(&self, time: Duration) -> Result<(), Failure> {
        measure(&self.caller, 1, time).await?;
        measure(&self.caller, CROWD, time).await?;
        Ok(())
    }

    async fn round(&mut self, time: Duration) -> Result<(), Failure> {
        self.alone.push(measure(&self.caller, 1, time).await?);
        self.crowd.push(measure(&self.caller, CROWD, time).await?);
        Ok(())
    }

    /// The rows of a candidate, each beside the same figure of another one.
    fn rows(&self, what: &str, beside: Option<&Self>) -> [Row; 4] {
        let row = |case: &str, unit, figure: fn(&Self) -> f64| {
            let baseline = beside.map_or(f64::NAN, figure);
            Row::new("call", format!("{what}, {case}"), figure(self), unit, baseline)
        };
        [
            row("p50 at 1 in flight", "ms", |of| {
                median(&of.alone, |figures| figures.at(0.5))
            }),
            row("p99 at 1 in flight", "ms", |of| {
                median(&of.alone, |figures| figures.at(0.99))
            }),
            row("at 50 in flight", "calls/s", |of| {
                median(&of.crowd, Figures::rate)
            }),
            row("p99 at 50 in flight", "ms", |of| {
                median(&of.crowd, |figures| figures.at(0.99))
            }),
        ]
    }
}

/// Measures calls; each row is told as soon as it is known.
pub(super) async fn rows(flags: CallFlags, output: Output) -> Result<Vec<Row>, Failure> {
    let parent = std::env::temp_dir();
    let folder = Folder::new(&parent, "lapwing-bench", false)
        .map_err(|error| Failure::new(format!("make a folder in {}", parent.display()), error))?;
    let nats = match Nats::start(folder.path(), ECHO_SIZE).await? {
        Some(nats) => Some(nats),
        None if flags.beside_nats => {
            return Err(
                Failure::new("start nats-server", "there is no such program on the PATH")
                    .with_hint("apt-get install nats-server"),
            );
        }
        None => {
            // Whether anybody reads along makes no difference.
            let _closed = writeln!(
                io::stderr(),
                "nats-server is not on the PATH, so there is nothing to compare with; apt-get install nats-server"
            );
            None
        }
    };
    let mut relays = Relays::start(folder.path(), ECHO_SIZE).await?;
    let mut rows = Vec::new();
    for (case, in_flight) in [("at 50 at a time", CROWD), ("at once", counting::CALLS)] {
        for row in counting::rows(&relays, case, in_flight).await? {
            tell(&row, output);
            rows.push(row);
        }
    }
    let mut measured = measured(&relays, nats.as_ref(), flags.seconds / ROUNDS).await;
    if let Ok(rows) = &mut measured {
        match loss::rows(&mut relays).await {
            Ok(losses) => rows.extend(losses),
            Err(failure) => measured = Err(failure),
        }
    }
    // In good order also where something went wrong.
    relays.shutdown().await;
    for row in measured? {
        tell(&row, output);
        rows.push(row);
    }
    Ok(rows)
}

async fn measured(relays: &Relays, nats: Option<&Nats>, time: Duration) -> Result<Vec<Row>, Failure> {
    let mut nats = nats.map(|nats| Candidate::new(nats.caller()));
    let mut home = Candidate::new(relays.caller());
    let mut from_home = Candidate::new(relays.caller_at_home());
    let mut from_main = Candidate::new(relays.caller_at_main());
    let unknown = relays.caller_of_nobody();
    let mut unknown_times = Vec::new();
    for candidate in [&home, &from_home, &from_main].into_iter().chain(nats.as_ref()) {
        candidate.warm_up(WARM_UP.min(time)).await?;
    }
    for round in 1..=ROUNDS {
        info!(round, "measuring calls");
        home.round(time).await?;
        if let Some(nats) = &mut nats {
            nats.round(time).await?;
        }
        from_home.round(time).await?;
        from_main.round(time).await?;
        unknown_times.push(measure(&unknown, 1, time).await?);
    }
    let mut rows = Vec::new();
    match &nats {
        Some(nats) => rows.extend(home.rows("home to home, beside nats-server", Some(nats))),
        None => rows.extend(home.rows("home to home", None)),
    }
    rows.extend(from_home.rows("POST /rpc on the home, beside calls within it", Some(&home)));
    rows.extend(from_main.rows("POST /rpc on the main, beside calls within the home", Some(&home)));
    rows.push(Row::new(
        "call",
        "unknown service, p50, beside what it may take",
        median(&unknown_times, |figures| figures.at(0.5)),
        "ms",
        UNKNOWN_MAX_MS,
    ));
    Ok(rows)
}
