//! Prints how long each planner takes to average over four networks, in virtual seconds.
//!
//! `cargo run --release -p lapwing-train --no-default-features --example planners`; takes a minute or two. The table in
//! `docs/planning.md` is its output.

use averaging::{Choice, LATENCY, MODEL, PUBLISHED, advance, by_thresholds, job, median, spread};
use lapwing_base::{ByteSize, NodeId, Pair, Planner};
use lapwing_train::simulate::{Network, averaging, links};
use lapwing_train::{Knobs, PlanInput, plan_round};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Each cell is the median over this many seeds.
const SEEDS: u64 = 20;

fn main() {
    println!("Mean bottleneck, Mbit/s: mean and standard deviation over {SEEDS} seeds\n");
    for published in PUBLISHED {
        let (mean, deviation) = spread(&(1..=SEEDS).map(published.run).collect::<Vec<_>>());
        let (case, by_them) = (published.case, published.published_mbit_s);
        println!("{case}: {mean:.3} ± {deviation:.3} (published {by_them})");
    }

    for nodes in [14, 100, 1000] {
        let [adaptive, thresholds] =
            [Planner::Adaptive, Planner::Thresholds].map(|planner| fastest_plan(planner, nodes));
        println!("a plan for {nodes} members: adaptive {adaptive:.2} ms, thresholds {thresholds:.2} ms");
    }

    println!("\nSeconds until the disagreement is a hundredth (rounds), median of {SEEDS} seeds\n");
    println!(
        "| network | c | random | exponential | thresholds at their best | adaptive | adaptive, no link known at first |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for network in [
        Network::fourteen_cities(),
        Network::uniform(32, 0, 5000, 1),
        Network::few_slow(),
        Network::equal(16, 10_000),
    ] {
        for compression in [1, 25, 100] {
            let plain = |planner, learns| {
                let choice = |seed| Choice {
                    planner,
                    knobs: Knobs::default(),
                    seed,
                    compression,
                    learns,
                };
                cell(&network, choice)
            };
            println!(
                "| {} | {compression} | {} | {} | {} | {} | {} |",
                network.name,
                plain(Planner::Random, false),
                plain(Planner::Exponential, false),
                best_thresholds(&network, compression),
                plain(Planner::Adaptive, false),
                plain(Planner::Adaptive, true),
            );
        }
    }
}

/// Tries sixteen bandwidths, from the network's slowest exchange up, with three windows, and measures the best.
fn best_thresholds(network: &Network, compression: u32) -> String {
    let links = network.bandwidths.iter().filter(|link| link.from < link.to);
    let exchanges = links.filter_map(|link| network.bandwidths.between(link.from, link.to));
    let mut speeds: Vec<u32> = exchanges.map(|speed| speed.kbit_s).collect();
    speeds.sort_unstable();
    let mut tried: Vec<u32> = (0..16)
        .map(|part| speeds[part * (speeds.len() - 1) / 16])
        .collect();
    tried.dedup();
    let settings = tried
        .into_iter()
        .flat_map(|speed| [5, 10, 20].map(|window| (speed, window)));
    let timed = settings.map(|(speed, window)| {
        let run = median(network, 5, |seed| by_thresholds(speed, window, seed, compression));
        (run.seconds, speed, window)
    });
    let Some((_, speed, window)) = timed.min_by(|(one, ..), (other, ..)| one.total_cmp(other)) else {
        return "none".to_owned();
    };
    let best = cell(network, |seed| by_thresholds(speed, window, seed, compression));
    format!("{best}, B {:.1} T {window}", f64::from(speed) / 1000.0)
}

/// The fastest of ten plans, in milliseconds, where every link is known and every third pair has met.
#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn fastest_plan(planner: Planner, nodes: u64) -> f64 {
    let choice = Choice {
        planner,
        knobs: Knobs::default(),
        seed: 1,
        compression: 1,
        learns: false,
    };
    let members: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
    let bandwidths = links(nodes, |a, b| 1000 + (a * 7919 * b % 50_000) as u32);
    let mut job = job(&choice);
    for _ in 0..100 {
        let mut plan = plan_round(&PlanInput {
            job: &job,
            members: &[],
            bandwidths: &bandwidths,
            deadline: Duration::ZERO,
            knobs: choice.knobs,
        });
        let steps = (1..nodes).filter(|step| step % 100 == plan.round.0 % 100);
        let met = steps.flat_map(|step| (1..=nodes - step).step_by(3).map(move |a| (a, a + step)));
        plan.pairs = met.filter_map(|(a, b)| Pair::new(NodeId(a), NodeId(b))).collect();
        advance(&mut job, plan, ByteSize(MODEL), LATENCY);
    }
    // A round has at most that many pairs.
    job.rounds
        .iter_mut()
        .for_each(|record| record.plan.pairs.truncate(nodes as usize / 2));
    let input = PlanInput {
        job: &job,
        members: &members,
        bandwidths: &bandwidths,
        deadline: Duration::ZERO,
        knobs: choice.knobs,
    };
    let times = (0..10).map(|_| {
        let started = Instant::now();
        black_box(plan_round(black_box(&input)));
        started.elapsed().as_secs_f64() * 1e3
    });
    times.fold(f64::INFINITY, f64::min)
}

fn cell(network: &Network, choice: impl Fn(u64) -> Choice) -> String {
    let run = median(network, SEEDS, choice);
    format!("{:.1} ({})", run.seconds, run.rounds)
}
