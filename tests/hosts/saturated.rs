//! Nodes whose model values fill their uplinks all the time: consensus, commands and rounds go on.
//!
//! For a minute; `LAPWING_LONG=1` makes it ten.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use lapwing_netlab::{Lab, Shape, Way};
use serde_json::Value;

use crate::running::{Gateway, Running, eventually, folder};

/// Of every node's uplink and downlink, in Mbit/s.
const RATE: u64 = 20;

/// From a node to the internet, one way: a quarter of the round trip between two.
const DELAY: Duration = Duration::from_micros(12_500);

/// Drops at its tail, and long before would make who waits for a heartbeat believe that nobody leads.
const QUEUE: Duration = Duration::from_secs(1);

/// With 256 values for each, a model of 41 MB, for which such a link takes 16 s: what a round does besides is little.
const FEATURES: usize = 40_000;

/// Ten for each node's training and some for testing.
const SAMPLES: usize = 60;

/// Of the link, over the whole time: a node trains and agrees with the others on the next round in between.
const SHARE: f64 = 0.8;

/// Between two looks at a node.
const LOOK: Duration = Duration::from_secs(1);

/// How long a node may take to say how it is: it answers from memory, on a machine that trains four models.
const ANSWERED: Duration = Duration::from_secs(5);

fn lasts() -> Duration {
    let long = std::env::var_os("LAPWING_LONG").is_some();
    Duration::from_secs(if long { 600 } else { 60 })
}

#[test]
#[ignore = "needs root"]
fn nobody_loses_its_leader_while_model_values_fill_every_uplink() {
    let lab = Lab::builder().seed(11).start().unwrap();
    let folder = folder("saturated");
    let gateway = Gateway::start(&lab, &folder);
    let shape = Shape::mbit(RATE).with_delay(DELAY).with_queue(QUEUE);
    let nodes: Vec<_> = ["a", "b", "c", "d"]
        .map(|name| {
            let host = lab.public_host(name).unwrap();
            host.link().shape(shape).unwrap();
            let node = Running::start(
                name,
                host,
                &gateway.url,
                &folder,
                &["/ip4/0.0.0.0/udp/4001/quic-v1"],
            );
            eventually(&format!("{name} is active"), || node.is("/node/state", "active"));
            node
        })
        .into();
    eventually("three vote", || {
        let status = nodes[0].status();
        let voters = status.and_then(|status| Some(status.pointer("/raft/voters")?.as_array()?.len()));
        voters == Some(3)
    });
    let data = folder.join("wide.csv");
    std::fs::write(&data, table()).unwrap();
    let job = submit(&nodes[0], &folder, &data);
    eventually("values are exchanged", || {
        nodes.iter().all(|node| round(&node.status()) >= 2)
    });

    // What the pairs are chosen by.
    nodes.iter().for_each(print_links);
    let (terms, rounds) = (terms(&nodes), rounds(&nodes));
    let before: Vec<_> = nodes.iter().map(carried).collect();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < lasts() {
        let looked = Instant::now();
        for node in &nodes {
            let asked = Instant::now();
            let status = node.status();
            slowest = slowest.max(asked.elapsed());
            let raft = status.map(|status| status["raft"].clone());
            assert!(
                raft.as_ref().is_some_and(|raft| raft["leader"].is_string()),
                "{} knows of no leader: {raft:?}",
                node.name
            );
        }
        std::thread::park_timeout(LOOK.saturating_sub(looked.elapsed()));
    }
    let elapsed = begun.elapsed();
    println!(
        "\n{:5} {:>12} {:>7} {:>8}",
        "node", "sent Mbit/s", "share", "dropped"
    );
    let mut idle = Vec::new();
    for (node, before) in nodes.iter().zip(before) {
        let sent = (carried(node) - before) as f64 * 8.0 / elapsed.as_secs_f64() / 1e6;
        let share = sent / RATE as f64;
        let dropped = node.host.link().counters(Way::Up).dropped;
        println!(
            "{:5} {sent:>12.1} {:>6.1}% {dropped:>8}",
            node.name,
            share * 100.0
        );
        if share < SHARE {
            idle.push(node.name);
        }
    }
    let (terms_after, rounds_after) = (self::terms(&nodes), self::rounds(&nodes));
    println!("terms {terms:?}, then {terms_after:?}; rounds {rounds:?}, then {rounds_after:?}");
    println!("the slowest answer of a node took {slowest:.2?}");
    nodes.iter().for_each(print_links);
    let show = nodes[0].ask(&["job", "show", &job]).unwrap();
    for round in show["history"].as_array().unwrap() {
        println!("{} {}", round["round"], round["pairs"]);
    }
    assert_eq!(terms, terms_after, "somebody has called an election");
    assert!(idle.is_empty(), "the uplinks of {idle:?} were not filled");
    let closed = lasts().as_secs() / 40;
    assert!(
        rounds
            .iter()
            .zip(&rounds_after)
            .all(|(before, after)| after - before >= closed),
        "rounds do not go on"
    );
    assert!(slowest < ANSWERED, "a node took {slowest:?} to answer");
}

/// Has the model exchanged whole and as it is by everybody in every round, and hardly trained.
///
/// Answers the job's ID.
fn submit(node: &Running, folder: &Path, data: &Path) -> String {
    let job = folder.join("job.toml");
    let text = format!(
        "data = \"csv:{}\"\nrounds = 10000\nlocal_steps = 1\nbatch = 4\nlr = 0.0001\ncompression = 1\nvalues = \"f32\"\n\
         evaluate_every = 0\nfinal_dense_rounds = 0\ncheckpoint_every = 1000000\n",
        data.display()
    );
    std::fs::write(&job, text).unwrap();
    let submitted = node.ask(&["job", "submit", job.to_str().unwrap()]).unwrap();
    submitted["id"].as_str().unwrap().to_owned()
}

/// Samples of two classes, with values that say which.
fn table() -> String {
    let mut table = String::with_capacity(SAMPLES * (FEATURES * 2 + 2));
    for sample in 0..SAMPLES {
        for feature in 0..FEATURES {
            // Writing to a string does not fail.
            let _ = write!(table, "{},", (sample + feature * sample) % 3);
        }
        let _ = writeln!(table, "{}", sample % 2);
    }
    table
}

fn round(status: &Option<Value>) -> u64 {
    let round = status
        .as_ref()
        .and_then(|status| status.pointer("/training/round"));
    round.and_then(Value::as_u64).unwrap_or(0)
}

fn rounds(nodes: &[Running]) -> Vec<u64> {
    nodes.iter().map(|node| round(&node.status())).collect()
}

fn terms(nodes: &[Running]) -> Vec<u64> {
    let term = |node: &Running| node.status()?.pointer("/raft/term")?.as_u64();
    nodes.iter().map(|node| term(node).unwrap()).collect()
}

/// Prints how fast the log takes the links from a node for, and how fast it measures them.
fn print_links(node: &Running) {
    let status = node.status().unwrap_or_default();
    let peers = status.pointer("/network/peers").and_then(Value::as_array);
    for peer in peers.into_iter().flatten() {
        println!(
            "{} to {}: {} Mbit/s in the log, {} up and {} down",
            node.name,
            peer["name"],
            peer["committed_mbit_s"],
            peer["bandwidth_mbit_s"],
            peer["download_mbit_s"]
        );
    }
}

/// Bytes of the frames that have left through a node's uplink.
fn carried(node: &Running) -> u64 {
    node.host.link().counters(Way::Up).bytes
}
