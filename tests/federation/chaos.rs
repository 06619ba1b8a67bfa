//! Everything goes wrong at once, for minutes: nodes are killed and started again, links are cut, clocks jump, services fail,
//! and callers at all nodes go on calling.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::{join, join_all};
use futures::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::backend::Backend;
use crate::calls::{Done, Edge, Ended, tally};
use crate::faults::{Clocks, Links};
use crate::nine::MAINS;
use crate::world::{PATIENCE, World, eventually, free_port, within};

/// How long it goes on where `LAPWING_CHAOS_SECONDS` does not say.
const SECONDS: u64 = 60;

/// How long callers are alone with the services before what processes hold is measured, and the rest begins.
const WARM_UP: Duration = Duration::from_secs(10);

/// How often each node calls.
const CALLS_INTERVAL: Duration = Duration::from_millis(100);

/// Milliseconds between two disturbances.
const PEACE: std::ops::Range<u64> = 300..2_000;

/// Milliseconds for which a node is away or cut off.
const AWAY: std::ops::Range<u64> = 200..8_000;

/// Of nine; with more there is nobody left to disturb.
const AWAY_MAX: usize = 4;

/// Links that are cut at a time, of two nodes that run.
const CUTS_MAX: usize = 3;

/// Seconds by which clocks are wrong.
const CLOCKS: [i64; 4] = [0, 3_600, -3_600, -86_400];

/// Seconds that callers wait: less than the longest cut, so that some see its end and others do not.
const TIMEOUT: u64 = 5;

/// Of so many calls one fails in its service.
const FAILS_ONE_IN: u64 = 10;

/// They are cut off and never killed, so that they show what is left of everything that went wrong around them.
const SURVIVORS: [&str; 2] = ["relay-a", "alice"];

/// How much larger a survivor may have become.
const GROWTH_MAX: f64 = 1.5;

/// Files that a process may have open beside those after the warm-up: a probe that is on its way.
const FILES_BESIDE: usize = 4;

/// How long connections of HTTP to services and other mains are kept that nobody uses.
const IDLE: Duration = Duration::from_secs(90);

/// A node that is asked to end waits 5 s for open requests and as long for connections; the rest is for a busy machine.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Errors that tell of a defect, whatever goes wrong.
const DEFECTS: [&str; 7] = [
    "nameless",
    "internal_error",
    "malformed_message",
    "duplicate_request",
    "invalid_request",
    "invalid_params",
    "parse_error",
];

/// What disturbs a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Disturbance {
    /// It is killed without warning, and started again.
    Killed,
    /// It is asked to end, and started again.
    Stopped,
    /// It does nothing for a while, as if all links to it were cut.
    CutOff,
}

/// A node that is disturbed now.
#[derive(Clone, Copy, Debug)]
struct Away {
    node: &'static str,
    pid: Pid,
    by: Disturbance,
    since: Instant,
    until: Instant,
}

/// A link that is cut now.
#[derive(Clone, Copy, Debug)]
struct Cut {
    ports: (u16, u16),
    until: Instant,
}

/// Nine nodes, and what can be done to them.
struct Stage {
    world: World,
    backends: Vec<Backend>,
    /// Each node's port for QUIC.
    ports: BTreeMap<&'static str, u16>,
    links: Links,
    clocks: Option<Clocks>,
}

/// When nodes could not be asked.
type Outages = BTreeMap<&'static str, Vec<(Instant, Instant)>>;

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    pages: u64,
    files: usize,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn calls_are_answered_and_registries_converge_whatever_goes_wrong() {
    let seed = from_environment("LAPWING_CHAOS_SEED").unwrap_or_else(rand::random);
    let seconds = from_environment("LAPWING_CHAOS_SECONDS").unwrap_or(SECONDS);
    println!("LAPWING_CHAOS_SEED={seed} LAPWING_CHAOS_SECONDS={seconds}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = start().await;
    let has_all = stage.links.can_cut() && stage.clocks.is_some();
    assert!(
        has_all || from_environment("LAPWING_CHAOS_WHOLE") != Some(1),
        "something cannot be done here, as was said"
    );
    let world = &stage.world;
    let edges: BTreeMap<&str, Edge> = nodes().map(|node| (node, world.edge(node))).collect();

    let warmed_at = Instant::now() + WARM_UP;
    let calling = nodes().map(|node| call_until(&edges[node], place(node) * 1_000_000, warmed_at));
    let warm: Vec<Done> = join_all(calling).await.concat();
    println!("warm: {:?}", tally(&warm));
    let before = SURVIVORS.map(|node| held(world, node));

    for backend in &stage.backends {
        backend.fail_one_in(FAILS_ONE_IN);
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let calling = nodes().map(|node| call_until(&edges[node], place(node) * 1_000_000 + 500_000, end));
    let (outages, done) = join(disturb(&mut stage, &mut random, end), join_all(calling)).await;
    let Stage { world, backends, .. } = &stage;
    for backend in backends {
        backend.fail_one_in(0);
    }

    for (node, done) in nodes().zip(&done) {
        println!("{node:8} {:?}", tally(done));
        for one in done {
            let outages = outages.get(node).map(Vec::as_slice).unwrap_or_default();
            is_answered(node, one, outages);
        }
    }
    let mut carried_out: BTreeMap<u64, u32> = BTreeMap::new();
    for (number, times) in backends.iter().flat_map(Backend::carried_out) {
        *carried_out.entry(number).or_default() += times;
    }
    let twice = carried_out
        .into_iter()
        .find(|(number, times)| !is_idempotent(*number) && *times > 1);
    assert_eq!(twice, None, "what may not be carried out twice was not");

    let begun = Instant::now();
    converge(world).await;
    println!("the registries agree after {:.2?}", begun.elapsed());
    for node in nodes() {
        eventually(&format!("{node} to be answered"), async || {
            let done = edges[node]
                .number("diary", 0, &json!({ "timeout": TIMEOUT }))
                .await;
            if done.ended.is_ok() {
                Ok(())
            } else {
                Err(format!("{:?}", done.ended))
            }
        })
        .await;
        assert!(
            !world.log(node).contains("panicked"),
            "{node}: {}",
            world.log(node)
        );
    }
    for (node, before) in SURVIVORS.into_iter().zip(before) {
        let most = before.files + FILES_BESIDE;
        within(
            IDLE + PATIENCE,
            &format!("{node} to have closed what it opened"),
            async || {
                let now = held(world, node);
                if now.files <= most {
                    Ok(())
                } else {
                    Err(format!("{before:?} before and {now:?} now"))
                }
            },
        )
        .await;
        let now = held(world, node);
        println!("{node}: {before:?} before, {now:?} now");
        let growth = now.pages as f64 / before.pages as f64;
        assert!(
            growth <= GROWTH_MAX,
            "{node} is {growth:.2} times as large as before"
        );
    }
}

/// Three mains that know each other; each home prefers its own and falls back to the others.
async fn start() -> Stage {
    let mut world = World::new();
    let clocks = world.with_clocks();
    let ports = MAINS.map(|_| free_port());
    let (mut backends, mut ports_of) = (Vec::new(), BTreeMap::new());
    for (place, (main, homes)) in MAINS.into_iter().enumerate() {
        let mut in_order = ports;
        in_order.rotate_left(place);
        let [own, others @ ..] = in_order;
        world.main(main, own, &others, &[]);
        ports_of.insert(main, own);
        for home in homes {
            let (backend, port) = (Backend::start(home), free_port());
            world.home_at(home, port, &in_order, &[&backend.as_service("diary")]);
            ports_of.insert(home, port);
            backends.push(backend);
        }
    }
    world.up().await;
    converge(&world).await;
    Stage {
        world,
        backends,
        ports: ports_of,
        links: Links::new(),
        clocks,
    }
}

/// Waits until every main knows of what is offered, and of nothing else.
async fn converge(world: &World) {
    let all: Vec<&str> = nodes().collect();
    let homes: Vec<&str> = MAINS.iter().flat_map(|(_, homes)| *homes).collect();
    let services: BTreeSet<&str> = ["diary", "echo"].into();
    for (main, _) in MAINS {
        world.until_offered(main, "diary", &homes).await;
        world.until_offered(main, "echo", &all).await;
        let registry = world.edge(main).get("/federation/registry").await.unwrap();
        let names = registry["servers"].as_object().unwrap().keys();
        assert_eq!(
            names.map(String::as_str).collect::<BTreeSet<_>>(),
            services,
            "{main}"
        );
    }
}

/// Calls from one node at a steady rate until an instant, whatever has become of earlier calls, and waits for the last.
async fn call_until(edge: &Edge, first: u64, end: Instant) -> Vec<Done> {
    let homes: Vec<&str> = MAINS.iter().flat_map(|(_, homes)| *homes).collect();
    let mut ticks = interval(CALLS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut calls = FuturesUnordered::new();
    let mut done = Vec::new();
    let mut number = first;
    loop {
        tokio::select! {
            _ = ticks.tick(), if Instant::now() < end => {
                number += 1;
                let mut more = json!({ "timeout": TIMEOUT, "idempotent": is_idempotent(number) });
                // Every third goes to a certain node.
                if number.is_multiple_of(3) {
                    let home = usize::try_from(number).unwrap() % homes.len();
                    more["node_id"] = json!(homes[home]);
                }
                calls.push(async move { edge.number("diary", number, &more).await });
            }
            Some(one) = calls.next() => done.push(one),
            else => return done,
        }
    }
}

fn is_idempotent(number: u64) -> bool {
    number.is_multiple_of(2)
}

/// Disturbs nodes until an instant, and then waits until none is any more.
async fn disturb(stage: &mut Stage, random: &mut StdRng, end: Instant) -> Outages {
    let mut outages = Outages::new();
    let mut away: Vec<Away> = Vec::new();
    let mut cuts: Vec<Cut> = Vec::new();
    let mut next = Instant::now();
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let [mut slowest_stop, mut slowest_start] = [Duration::ZERO; 2];
    loop {
        let returns = away.iter().map(|away| away.until);
        let mends = cuts.iter().map(|cut| cut.until);
        let disturbs = (next < end).then_some(next);
        let Some(at) = returns.chain(mends).chain(disturbs).min() else {
            println!("disturbances: {counts:?}");
            println!("the slowest stop took {slowest_stop:.1?}, the slowest start {slowest_start:.1?}");
            assert!(slowest_stop < STOP_MAX, "a stop took {slowest_stop:.1?}");
            return outages;
        };
        thawing(&mut away, &mut outages, sleep_until(at.into())).await;
        for cut in cuts.extract_if(.., |cut| cut.until <= at) {
            let (one, other) = cut.ports;
            stage.links.mend(one, other);
        }
        let back = away
            .iter()
            .position(|away| away.until <= at && away.by != Disturbance::CutOff);
        if let Some(place) = back {
            let Away { node, since, .. } = away.swap_remove(place);
            let begun = Instant::now();
            stage.world.launch(node);
            thawing(&mut away, &mut outages, stage.world.up_one(node)).await;
            slowest_start = slowest_start.max(begun.elapsed());
            outages.entry(node).or_default().push((since, Instant::now()));
            continue;
        }
        if at < next {
            continue;
        }
        next = at + Duration::from_millis(random.random_range(PEACE));
        if let Some(clocks) = stage.clocks.as_ref().filter(|_| random.random_ratio(1, 4)) {
            let node = nodes().choose(random).unwrap();
            clocks.set(node, *CLOCKS.choose(random).unwrap());
            *counts.entry("a clock was set".to_owned()).or_default() += 1;
        }
        if stage.links.can_cut() && cuts.len() < CUTS_MAX && random.random_ratio(1, 3) {
            // Whether these two have a link or not: whoever loses its main may take another one.
            let main = MAINS.map(|(main, _)| main).into_iter().choose(random).unwrap();
            let other = nodes().filter(|node| *node != main).choose(random).unwrap();
            let ports = (stage.ports[main], stage.ports[other]);
            stage.links.cut(ports.0, ports.1);
            let until = Instant::now() + Duration::from_millis(random.random_range(AWAY));
            cuts.push(Cut { ports, until });
            *counts.entry("a link was cut".to_owned()).or_default() += 1;
        }
        let left: Vec<&str> = nodes()
            .filter(|node| away.iter().all(|away| away.node != *node))
            .collect();
        if away.len() >= AWAY_MAX {
            continue;
        }
        let node = *left.choose(random).unwrap();
        let by = match random.random_range(0..4) {
            _ if SURVIVORS.contains(&node) => Disturbance::CutOff,
            0 => Disturbance::CutOff,
            1 => Disturbance::Stopped,
            _ => Disturbance::Killed,
        };
        *counts.entry(format!("{by:?}")).or_default() += 1;
        let (since, pid) = (Instant::now(), stage.world.pid(node));
        match by {
            Disturbance::Killed => stage.world.kill(node),
            Disturbance::Stopped => {
                thawing(&mut away, &mut outages, stage.world.stop(node)).await;
                slowest_stop = slowest_stop.max(since.elapsed());
            }
            Disturbance::CutOff => kill_process(pid, Signal::STOP).unwrap(),
        }
        let until = Instant::now() + Duration::from_millis(random.random_range(AWAY));
        away.push(Away {
            node,
            pid,
            by,
            since,
            until,
        });
    }
}

/// Waits for something, and lets nodes go on that were cut off for as long as they were to be.
async fn thawing<T>(away: &mut Vec<Away>, outages: &mut Outages, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let cut_off = away.iter().filter(|away| away.by == Disturbance::CutOff);
        let due = cut_off.map(|away| away.until).min();
        let until_due = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = until_due => away.retain(|away| {
                let stays = away.by != Disturbance::CutOff || Some(away.until) != due;
                if !stays {
                    kill_process(away.pid, Signal::CONT).unwrap();
                    outages.entry(away.node).or_default().push((away.since, Instant::now()));
                }
                stays
            }),
            done = &mut work => return done,
        }
    }
}

/// Whoever asks a node that is there is answered; a node that is killed takes the calls with it that it was asked itself.
fn is_answered(node: &str, done: &Done, outages: &[(Instant, Instant)]) {
    let until = done.begun + done.took;
    match &done.ended {
        Ended::Answered(_) => (),
        Ended::Failed(_) => assert!(!DEFECTS.contains(&done.ended.name()), "at {node}: {done:?}"),
        Ended::Gone(_) => assert!(
            outages
                .iter()
                .any(|(from, to)| *from <= until && done.begun <= *to),
            "{node} was there: {done:?}"
        ),
        Ended::Silent => panic!("at {node} nobody was answered: {done:?}"),
    }
}

fn nodes() -> impl Iterator<Item = &'static str> {
    MAINS
        .into_iter()
        .flat_map(|(main, homes)| [main].into_iter().chain(homes))
}

/// Which of all it is, from 1.
fn place(node: &str) -> u64 {
    (1..).zip(nodes()).find(|(_, other)| *other == node).unwrap().0
}

fn held(world: &World, node: &str) -> Held {
    let proc = format!("/proc/{}", world.pid(node).as_raw_nonzero());
    let statm = fs::read_to_string(format!("{proc}/statm")).unwrap();
    Held {
        pages: statm.split_whitespace().nth(1).unwrap().parse().unwrap(),
        files: fs::read_dir(format!("{proc}/fd")).unwrap().count(),
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}
