//! `lapwing bench net`: the network on this machine, or between two of them. The room measures; this file reads what
//! is asked for.

use std::io::{self, Write as _};
use std::pin::pin;
use std::time::Duration;

use clap::{Args, Subcommand};
use lapwing_base::{Multiaddr, Row};
use lapwing_net::bench::{self, SHAPES, Server, Shape, Told};
use tokio_util::sync::CancellationToken;

use super::{Output, figures};
use crate::cli::failure::Failure;
use crate::cli::interrupt::Interrupts;
use crate::cli::until_interrupted;

/// What to measure, and between whom.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct NetFlags {
    #[command(subcommand)]
    command: Option<NetCommand>,

    /// Seconds for which each case is measured; four times as many over a shaped link
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    seconds: Duration,

    /// Only what a full link of this kind does to the classes; repeat for several. The link is shaped in this
    /// process, so it needs no rights [default: everything on loopback, then three such links]
    #[arg(long, value_name = "RATE,RTT[,queue=TIME]")]
    shape: Vec<Shape>,
}

#[derive(Clone, Debug, Subcommand)]
enum NetCommand {
    /// Answers whoever measures, until it is interrupted: for the other one of two machines
    Serve {
        /// Where to listen
        #[arg(long, value_name = "MULTIADDR", default_value = "/ip4/0.0.0.0/udp/0/quic-v1")]
        listen: Multiaddr,

        /// Where this end cannot be reached: the address of another `serve` that can, and that leads here until the
        /// two ends have found a direct path; repeatable
        #[arg(long, value_name = "MULTIADDR")]
        relay: Vec<Multiaddr>,
    },
    /// Measures what lies between this machine and one that serves
    Run {
        /// An address that `serve` has printed
        #[arg(value_name = "MULTIADDR")]
        address: Multiaddr,

        /// Seconds for which each case is measured
        #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
        seconds: Duration,
    },
}

/// A tenth of a second fits three rounds that say a little, and an hour is more patience than anybody has.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if (0.1..=3600.0).contains(&number) {
        Ok(Duration::from_secs_f64(number))
    } else {
        Err("it is not between 0.1 and 3600".to_owned())
    }
}

/// What was asked for. An end that only serves gives no rows: it goes on until it is interrupted.
pub(super) async fn rows(flags: NetFlags, output: Output) -> Result<Vec<Row>, Failure> {
    match flags.command {
        Some(NetCommand::Serve { listen, relay }) => serve(listen, &relay, output).await,
        Some(NetCommand::Run { address, seconds }) => {
            between(&address, seconds, &mut |row: &Row| tell(row, output)).await
        }
        None => {
            let mut told = |row: &Row| tell(row, output);
            until_interrupted(here(flags.shape, flags.seconds, &mut told)).await
        }
    }
}

/// Says what was just measured, for people who wait for the table.
pub(super) fn tell(row: &Row, output: Output) {
    if !output.is_json() {
        // Whether anybody reads along makes no difference.
        let _closed = writeln!(io::stderr(), "{}", line(row));
    }
}

fn line(row: &Row) -> String {
    let Row {
        bench, case, unit, ..
    } = row;
    let ratio = if row.ratio.is_nan() {
        String::new()
    } else {
        format!(", {:.2} of {}", row.ratio, figures(row.baseline))
    };
    format!("{bench}, {case}: {} {unit}{ratio}", figures(row.value))
}

/// What this machine can do by itself.
async fn here(mut shapes: Vec<Shape>, seconds: Duration, told: Told<'_>) -> Result<Vec<Row>, Failure> {
    let failed = |error| Failure::new("measure the network", error);
    let mut rows = Vec::new();
    if shapes.is_empty() {
        rows = bench::rows(seconds, told).await.map_err(failed)?;
        shapes = SHAPES.to_vec();
    }
    for shape in shapes {
        let shaped = bench::shaped_rows(shape, seconds, told).await;
        rows.extend(shaped.map_err(failed)?);
    }
    Ok(rows)
}

/// Measures until it is done or interrupted; then the other end is told, so that somebody else may.
async fn between(address: &Multiaddr, seconds: Duration, told: Told<'_>) -> Result<Vec<Row>, Failure> {
    let mut interrupts = catch()?;
    let stop = CancellationToken::new();
    let mut measuring = pin!(bench::run(address, seconds, told, &stop));
    tokio::select! {
        rows = &mut measuring => rows.map_err(|error| Failure::new("measure the network", error)),
        _ = interrupts.next() => {
            stop.cancel();
            // It has said that it was stopped, which is known.
            drop(measuring.await);
            Err(Failure::Interrupted)
        }
    }
}

fn catch() -> Result<Interrupts, Failure> {
    Interrupts::catch().map_err(|error| Failure::new("catch signals", error))
}

/// Serves until the command is interrupted; then whoever measures is told.
async fn serve(listen: Multiaddr, relays: &[Multiaddr], output: Output) -> Result<Vec<Row>, Failure> {
    let mut interrupts = catch()?;
    let server = tokio::select! {
        started = Server::start(listen, relays) => started.map_err(|error| Failure::new("serve", error))?,
        _ = interrupts.next() => return Err(Failure::Interrupted),
    };
    let addresses = server.addrs();
    let told = if output.is_json() {
        output.document(&serde_json::json!({ "addresses": addresses }))
    } else {
        let each = addresses.iter();
        let lines: Vec<String> = each
            .map(|address| format!("lapwing bench net run {address}"))
            .collect();
        output.line(lines.join("\n"))
    };
    let end = match told {
        // Whoever started us may not care to read on; we serve all the same.
        Ok(()) | Err(Failure::OutputClosed) => {
            interrupts.next().await;
            Failure::Interrupted
        }
        Err(failure) => failure,
    };
    server.shutdown().await;
    Err(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_told_in_a_line() {
        let row = Row::new("upload", "model beside plain QUIC", 12.345, "MB/s", 6.1725);
        assert_eq!(
            line(&row),
            "upload, model beside plain QUIC: 12.3 MB/s, 2.00 of 6.17"
        );
        let alone = Row::new("set-up", "first answer", 1.5, "ms", f64::NAN);
        assert_eq!(line(&alone), "set-up, first answer: 1.50 ms");
    }

    #[test]
    fn a_case_takes_a_time_that_somebody_may_wait_for() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0", "-1", "nan", "1e9", "3s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
