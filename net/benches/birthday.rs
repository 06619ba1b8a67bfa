//! How often, and after how long, ports that are guessed at open the way between a symmetric NAT and a strict one:
//! `cargo bench -p lapwing-net --bench birthday [RUNS]`, a hundred by default. Needs root and Linux.
//!
//! By fresh peers each time, several pairs at once; fails if fewer than 95 of a hundred become direct.
#![expect(clippy::unwrap_used, reason = "a measurement that fails has nothing to say")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::process::ExitCode;
use std::time::Duration;

#[path = "../tests/lab/birthday.rs"]
mod birthday;
#[path = "../tests/lab/cell.rs"]
#[expect(dead_code, reason = "the laboratory's tests use all of it")]
mod cell;
#[path = "../tests/lab/kinds.rs"]
#[expect(dead_code, reason = "the laboratory's tests use all of it")]
mod kinds;
#[path = "../tests/lab/nodes.rs"]
#[expect(dead_code, reason = "the laboratory's tests use all of it")]
mod nodes;

/// More than that, and two processors are what is measured: each pair sends a hundred packets a second.
const AT_ONCE: usize = 8;

/// Of a hundred.
const DIRECT_MIN: usize = 95;

fn main() -> ExitCode {
    // Cargo adds `--bench`, for harnesses that also run tests.
    let runs = std::env::args().skip(1).find(|argument| argument != "--bench");
    let runs = runs.map_or(100, |runs| runs.parse().unwrap());
    let outcomes = birthday::run(runs, AT_ONCE);
    let mut took: Vec<_> = outcomes.iter().flatten().flatten().copied().collect();
    took.sort();
    let at = |share: f64| {
        let last = took.len().checked_sub(1)?;
        took.get((last as f64 * share).round() as usize)
    };
    let [p50, p90, worst] = [0.5, 0.9, 1.0].map(|share| at(share).map_or(f64::NAN, Duration::as_secs_f64));
    for why in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        println!("{why}");
    }
    println!(
        "\n{} of {runs} became direct: p50 {p50:.1} s, p90 {p90:.1} s, at most {worst:.1} s after the first answer",
        took.len()
    );
    if took.len() * 100 < runs * DIRECT_MIN {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
