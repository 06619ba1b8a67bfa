//! `lapwing simulate`: trains virtual nodes over a given network in virtual time, and compares algorithms.
//!
//! What is simulated, `comparison.rs` reads from the command line; the room that trains does it. Runs are kept in
//! files (`results.rs`), so that the next time only what is missing is computed. Here is the order of things, and
//! what people see of it.

mod chart;
mod comparison;
mod page;
mod results;

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use lapwing_base::{Algorithm, ByteSize};
use lapwing_train::simulate::averaging::{PUBLISHED, spread};
use lapwing_train::simulate::{Ended, Event, Progress, Run, Simulation};
use lapwing_train::{Dataset, Partition};
use serde_json::json;

use self::comparison::{Case, Comparison};
use self::results::Results;
use super::failure::Failure;
use super::interrupt::Interrupts;
use super::output::{Align, Output, Table, or_dash, percent, span};

/// What can be asked of a simulation.
#[derive(Args, Clone, Debug)]
pub(crate) struct SimulateFlags {
    /// Job file; a section such as [saps] holds what is different for that algorithm
    #[arg(value_name = "JOB.toml")]
    job: Option<PathBuf>,

    /// Algorithms to compare, separated by commas, or all [default: the job's]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    algorithm: Vec<String>,

    /// How many virtual nodes [default: as many as the network has; 14]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=lapwing_train::simulate::NODES_MAX as u64))]
    nodes: Option<u64>,

    /// Links: cities14, uniform:LOW,HIGH or equal:SPEED in Mbit/s, or a file whose row i has what node i sends to each
    #[arg(long, alias = "matrix", value_name = "NETWORK", default_value = "cities14")]
    network: String,

    /// How the training samples are shared out: iid, dirichlet:ALPHA or labels:K
    #[arg(long, value_name = "SCHEME", default_value = "iid")]
    partition: Partition,

    /// A key of the job file, as in --set compression=100; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Passes over a node's part of the data; sets the rounds
    #[arg(long, conflicts_with = "rounds")]
    epochs: Option<f64>,

    /// Rounds, the dense ones included
    #[arg(long)]
    rounds: Option<u32>,

    /// How many seeds, from the job's on; the table has their means
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,

    /// How many evaluations on the way [default: as the job says]
    #[arg(long)]
    points: Option<u32>,

    /// Virtual seconds of a local step
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    step_time: f64,

    /// Virtual seconds of a round beside steps and exchanges
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    overhead: f64,

    /// The bandwidth from which planning by thresholds takes a link for fast, in Mbit/s
    #[arg(long, value_name = "MBIT/S")]
    b_thres: Option<f64>,

    /// The rounds within which planning by thresholds has meetings connect everybody
    #[arg(long, value_name = "ROUNDS")]
    t_thres: Option<u32>,

    /// What happens to a node: die:NODE@ROUND, join:NODE@ROUND, slow:NODE*FACTOR or poison:NODE=nan, =huge, =flip, =noise
    /// (what it tells instead of its model); repeatable
    #[arg(long, value_name = "EVENT")]
    event: Vec<Event>,

    /// Does not train: plans, bytes and times alone
    #[arg(long)]
    plan_only: bool,

    /// Threads to compute on; the results are the same with any number [default: one a core]
    #[arg(long)]
    threads: Option<usize>,

    /// Folder for results, chart and page; what is there is not computed again [default: nothing is kept]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Only the table of the planners' published figures
    #[arg(long)]
    planners: bool,
}

/// Simulates, and prints a row for each algorithm, or for programs an object.
pub(crate) async fn run(flags: SimulateFlags, output: Output) -> Result<(), Failure> {
    if flags.planners {
        return planners(output).await;
    }
    let mut interrupts = Interrupts::catch().map_err(|error| Failure::new("catch signals", error))?;
    let comparison = Comparison::read(&flags)?;
    let results = flags.out.as_deref().map(Results::open).transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    let threads = flags
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let told = stop.clone();
    let mut work = tokio::task::spawn_blocking(move || compute(&comparison, results, threads, &told));
    let mut is_interrupted = false;
    let computed = loop {
        tokio::select! {
            biased;
            _ = interrupts.next(), if !is_interrupted => {
                // The round in hand is the last one; what is there is shown.
                is_interrupted = true;
                stop.store(true, Ordering::Relaxed);
            }
            computed = &mut work => break computed,
        }
    };
    let (runs, results) = computed.map_err(|error| Failure::new("simulate", error))??;
    let rows = rows(&runs);
    show(&rows, output)?;
    if let Some(results) = &results
        && !rows.is_empty()
    {
        results.draw(&runs, &table(&rows, Layout::Page))?;
        if !output.is_json() {
            output.line(format!("\nchart and page: {}", results.folder().display()))?;
        }
    }
    if is_interrupted {
        Err(Failure::Interrupted)
    } else {
        Ok(())
    }
}

type Computed = (Vec<Run>, Option<Results>);

/// Computes what is not there yet; stops where it is told to.
fn compute(
    comparison: &Comparison,
    results: Option<Results>,
    threads: usize,
    stop: &AtomicBool,
) -> Result<Computed, Failure> {
    let mut runs = Vec::new();
    for (place, case) in comparison.cases.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = case.setting.key();
        if let Some(run) = results.as_ref().and_then(|results| results.read(&key)) {
            runs.push(run);
            continue;
        }
        let title = format!("{}/{} {case}", place + 1, comparison.cases.len());
        let run = simulate(case, &comparison.data, threads, stop, &title)?;
        if run.ended != Ended::Stopped
            && let Some(results) = &results
        {
            results.keep(&key, &run)?;
        }
        runs.push(run);
    }
    Ok((runs, results))
}

fn simulate(
    case: &Case,
    data: &Dataset,
    threads: usize,
    stop: &AtomicBool,
    title: &str,
) -> Result<Run, Failure> {
    let doing = || format!("simulate {}", case.setting.job.algorithm);
    let simulation =
        Simulation::new(&case.setting, data, threads).map_err(|error| Failure::new(doing(), error))?;
    let live = io::stderr().is_terminal();
    let run = simulation
        .run(|progress| {
            if live {
                tell(title, progress);
            }
            if stop.load(Ordering::Relaxed) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .map_err(|error| Failure::new(doing(), error))?;
    let accuracy = run.last().and_then(|point| point.averaged_accuracy).map(percent);
    let clear = if live { "\r\x1b[K" } else { "" };
    // Nobody listens on a closed standard error; the runs count all the same.
    let _closed = writeln!(
        io::stderr(),
        "{clear}{title}: {} after {} rounds",
        or_dash(accuracy),
        run.rounds
    );
    Ok(run)
}

/// One line, drawn over the last one.
fn tell(title: &str, progress: &Progress<'_>) {
    let accuracy = progress
        .point
        .and_then(|point| point.averaged_accuracy)
        .map(percent);
    let mut stderr = io::stderr().lock();
    let _closed = write!(
        stderr,
        "\r\x1b[K{title}: round {}/{}, {} of virtual time, {}",
        progress.round,
        progress.rounds,
        span(progress.virtual_seconds),
        or_dash(accuracy)
    );
    let _closed = stderr.flush();
}

/// An algorithm's runs, one for each seed that was computed.
#[derive(Debug)]
struct Row<'a> {
    algorithm: Algorithm,
    runs: Vec<&'a Run>,
}

/// In the order in which they were asked for.
fn rows(runs: &[Run]) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for run in runs.iter().filter(|run| run.last().is_some()) {
        match rows.iter_mut().find(|row| row.algorithm == run.algorithm) {
            Some(row) => row.runs.push(run),
            None => rows.push(Row {
                algorithm: run.algorithm,
                runs: vec![run],
            }),
        }
    }
    rows
}

impl Row<'_> {
    /// Mean and standard deviation over the seeds of something at the end; `None` where no run has it.
    fn figure(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<(f64, f64)> {
        let values: Vec<f64> = self.runs.iter().filter_map(|run| of(run)).collect();
        match values[..] {
            [] => None,
            [one] => Some((one, 0.0)),
            _ => Some(spread(&values)),
        }
    }

    fn mean(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<f64> {
        self.figure(of).map(|(mean, _)| mean)
    }

    /// The most that any node has told in any run, where the job promises privacy.
    fn epsilon(&self) -> Option<f64> {
        self.runs.iter().filter_map(|run| run.epsilon).reduce(f64::max)
    }
}

fn show(rows: &[Row<'_>], output: Output) -> Result<(), Failure> {
    if !output.is_json() {
        return output.line(table(rows, Layout::Terminal));
    }
    for row in rows {
        let first = row.runs[0];
        output.document(&json!({
            "algorithm": row.algorithm.name(),
            "nodes": first.nodes,
            "seeds": row.runs.len(),
            "parameters": first.parameters,
            "rounds": first.rounds,
            "diverged": row.runs.iter().filter(|run| run.ended == Ended::Diverged).count(),
            "interrupted": row.runs.iter().any(|run| run.ended == Ended::Stopped),
            "mean_bottleneck_mbit_s": row.mean(|run| run.mean_bottleneck_mbit_s),
            "epsilon": row.epsilon(),
            "local_accuracy": row.mean(|run| run.last()?.local_accuracy),
            "averaged_accuracy": row.mean(|run| run.last()?.averaged_accuracy),
            "bytes_per_node": row.mean(|run| Some(run.last()?.bytes_per_node())),
            "sent_bytes_per_node": row.mean(|run| Some(run.last()?.sent_bytes_per_node)),
            "virtual_seconds": row.mean(|run| Some(run.last()?.virtual_seconds)),
        }))?;
    }
    Ok(())
}

/// Where a table is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Layout {
    /// Units are short.
    Terminal,
    /// In a page, whose cells are wide enough for the spread as well.
    Page,
}

fn table(rows: &[Row<'_>], layout: Layout) -> Table {
    let mut table = Table::new([
        ("algorithm", Align::Left),
        ("rounds", Align::Right),
        ("local", Align::Right),
        ("averaged", Align::Right),
        ("sent + received a node", Align::Right),
        ("virtual time", Align::Right),
        ("slowest link", Align::Right),
        ("", Align::Left),
    ]);
    for row in rows {
        let accuracy = |of: fn(&Run) -> Option<f64>| {
            or_dash(row.figure(of).map(|(mean, deviation)| {
                if row.runs.len() > 1 || layout == Layout::Page {
                    format!("{:.2} ± {:.2} %", mean * 100.0, deviation * 100.0)
                } else {
                    format!("{:.2} %", mean * 100.0)
                }
            }))
        };
        let diverged = row.runs.iter().filter(|run| run.ended == Ended::Diverged).count();
        let remark = match diverged {
            0 if row.runs.iter().any(|run| run.ended == Ended::Stopped) => "interrupted".to_owned(),
            0 => row
                .epsilon()
                .map_or_else(String::new, |epsilon| format!("epsilon {epsilon:.2}")),
            some => format!("{some} of {} diverged", row.runs.len()),
        };
        table.row([
            row.algorithm.name().to_owned(),
            row.runs[0].rounds.to_string(),
            accuracy(|run| run.last()?.local_accuracy),
            accuracy(|run| run.last()?.averaged_accuracy),
            or_dash(
                row.mean(|run| Some(run.last()?.bytes_per_node()))
                    .map(|bytes| ByteSize(bytes.round() as u64)),
            ),
            or_dash(row.mean(|run| Some(run.last()?.virtual_seconds)).map(span)),
            or_dash(
                row.mean(|run| run.mean_bottleneck_mbit_s)
                    .map(|speed| format!("{speed:.2} Mbit/s")),
            ),
            remark,
        ]);
    }
    table
}

/// Each figure is the mean over this many seeds.
const PLANNER_SEEDS: u64 = 20;

async fn planners(output: Output) -> Result<(), Failure> {
    let computed = tokio::task::spawn_blocking(|| {
        PUBLISHED.map(|row| (row, spread(&(1..=PLANNER_SEEDS).map(row.run).collect::<Vec<_>>())))
    });
    let rows =
        super::until_interrupted(async { computed.await.map_err(|error| Failure::new("plan", error)) })
            .await?;
    let mut table = Table::new([
        ("planning by thresholds, T_thres 10", Align::Left),
        ("published", Align::Right),
        ("ours, mean bottleneck in Mbit/s", Align::Right),
    ]);
    for (row, (mean, deviation)) in rows {
        if output.is_json() {
            output.document(&json!({
                "case": row.case,
                "published_mbit_s": row.published_mbit_s,
                "mean_bottleneck_mbit_s": mean,
                "deviation_mbit_s": deviation,
                "seeds": PLANNER_SEEDS,
            }))?;
        }
        let published = row.published_mbit_s.to_string();
        table.row([
            row.case.to_owned(),
            published,
            format!("{mean:.3} ± {deviation:.3}"),
        ]);
    }
    if output.is_json() {
        Ok(())
    } else {
        output.line(table)
    }
}
