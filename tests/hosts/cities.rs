//! Nodes between which bandwidths are as they were measured between cities: what nodes measure, whom plans pair by it, and
//! how long the same rounds take where pairs are drawn by chance.
//!
//! Eight of the cities, which takes two processors less than two minutes; `LAPWING_LONG=1` takes all fourteen and more rounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use lapwing_netlab::{Host, Lab, Rate, Shape};
use lapwing_train::{CITIES, CITY_KBIT_S};
use serde_json::Value;

use crate::running::{Gateway, Running, eventually, folder};

const N: usize = CITIES.len();

/// Two of those from which everything is slow, and those with the fastest and the slowest links of all.
const EIGHT: [&str; 8] = [
    "Beijing",
    "Shanghai",
    "Columbus",
    "Frankfurt",
    "London",
    "Montreal",
    "Mumbai",
    "Sao Paulo",
];

/// From a city to the internet, one way: a quarter of the round trip between two.
const DELAY: Duration = Duration::from_millis(5);

const QUEUE: Duration = Duration::from_millis(200);

/// With 256 values for each, a model of 410 KB, which every exchange has whole: 0.7 s from one of the slow cities.
const FEATURES: usize = 400;

/// Forty for each node's training or more, and some for testing.
const SAMPLES: usize = 700;

const CLASSES: usize = 10;

/// Of what a link carries, either way.
const TOLERANCE: f64 = 0.2;

/// How many of the links over which planned pairs have exchanged, some of them once, the log has to know within that. What
/// exchanges measure is what is left beside consensus, what comes back, and a trainer for each city on two processors.
const MEASURED: f64 = 0.8;

/// Of two links, one of which is so many times as fast as the other, and how often the log has to know which: what
/// plans need.
const TOLD_APART: f64 = 2.0;
const IN_ORDER: f64 = 0.9;

/// What the log knows of a link in the middle, of what it carries, once chance has paired everybody too: packets' headers
/// are 4 % of it.
const KNOWN: f64 = 0.75;

/// Between two looks at what the log knows of the links.
const LOOK: Duration = Duration::from_secs(5);

fn is_long() -> bool {
    std::env::var_os("LAPWING_LONG").is_some()
}

fn rounds() -> usize {
    if is_long() { 120 } else { 28 }
}

/// Those that there are here.
fn cities() -> Vec<usize> {
    let is_here = |city: &usize| is_long() || EIGHT.contains(&CITIES[*city]);
    (0..N).filter(is_here).collect()
}

/// From one of them to another.
fn directions() -> impl Iterator<Item = (usize, usize)> {
    let all = cities().into_iter();
    let pairs = all.flat_map(|from| cities().into_iter().map(move |to| (from, to)));
    pairs.filter(|(from, to)| from != to)
}

/// What one city sends to another here, in kbit/s of frames.
///
/// The roots of what was measured, so that the fastest link is 57 times as fast as the slowest and not 3,300 times: two
/// processors carry the one, and the other is done within a test. Which of two links is faster stays as it is.
fn kbit(from: usize, to: usize) -> u64 {
    let measured = f64::from(CITY_KBIT_S[from][to]) / 1_500.0;
    (5_000.0 * measured.sqrt()) as u64
}

#[test]
#[ignore = "needs root"]
fn plans_follow_what_nodes_measure_between_cities() {
    let lab = Lab::builder().seed(14).start().unwrap();
    let folder = folder("cities");
    let gateway = Gateway::start(&lab, &folder);
    let names = cities().into_iter().map(|city| CITIES[city]);
    let plug = |name: &str| lab.public_host(&name.replace(' ', "-")).unwrap();
    let hosts: Vec<_> = names.clone().map(plug).collect();
    lay_out(&hosts);
    let listen = ["/ip4/0.0.0.0/udp/4001/quic-v1"];
    let mut nodes = Vec::new();
    for (name, host) in names.zip(hosts) {
        nodes.push(Running::start(name, host, &gateway.url, &folder, &listen));
        if nodes.len() == 1 {
            // The others find a cluster, and do not each offer to begin one.
            eventually("the first is active", || nodes[0].is("/node/state", "active"));
        }
    }
    for node in &nodes {
        eventually(&format!("{} is active", node.name), || {
            node.is("/node/state", "active")
        });
    }

    let data = folder.join("cities.csv");
    std::fs::write(&data, table()).unwrap();
    let adaptive = train(&nodes, &folder, &data, "adaptive");
    let committed = Links::seen(&nodes, "committed_mbit_s");
    let random = train(&nodes, &folder, &data, "random");
    let both = Links::seen(&nodes, "committed_mbit_s");

    println!(
        "\n{:9} {:>7} {:>10} {:>14} {:>14} {:>9} {:>9}",
        "planner", "rounds", "wall time", "a pair", "slowest pair", "averaged", "local"
    );
    for job in [&adaptive, &random] {
        println!(
            "{:9} {:>7} {:>8.1} s {:>7.2} Mbit/s {:>7.2} Mbit/s {:>8.1}% {:>8.1}%",
            job.planner,
            job.pairs.len(),
            job.took.as_secs_f64(),
            job.mean(),
            job.slowest(),
            job.averaged * 100.0,
            job.local * 100.0
        );
    }
    let uses = |from, to| adaptive.uses(from, to);
    committed.print("\nin the log after the first job", |_, _| true);
    both.print("in the log after both jobs", |_, _| true);
    both.print_worst(|_, _| true);
    committed.print("in the log, of the pairs that were planned", uses);
    committed.print_worst(uses);
    let in_order = committed.in_order(uses);
    println!(
        "of two links, one of which is {TOLD_APART} times as fast, the log knows which in {:.1} % of the cases",
        in_order * 100.0
    );
    let (within, of) = committed.within(uses);
    assert!(
        within as f64 >= MEASURED * of as f64,
        "{within} of {of} links are known within 20 %"
    );
    assert!(both.median() >= KNOWN, "links are known for slower than they are");
    assert!(in_order >= IN_ORDER, "links are taken for others");
    assert!(adaptive.mean() > random.mean(), "pairs do not follow the links");
    assert!(adaptive.took < random.took, "pairs by chance were faster");
}

/// Every city's link is as fast as its fastest path, and beyond it each other city has one of its own.
fn lay_out(hosts: &[Host]) {
    let shape = |kbit| Shape::default().with_rate(Rate::kbit(kbit)).with_queue(QUEUE);
    let link = |fastest: Option<u64>| shape(fastest.unwrap_or_default()).with_delay(DELAY);
    for (city, host) in cities().into_iter().zip(hosts) {
        let up = directions().filter(|(from, _)| *from == city);
        let down = directions().filter(|(_, to)| *to == city);
        let fastest = |(from, to)| kbit(from, to);
        let (up, down) = (up.map(fastest).max(), down.map(fastest).max());
        host.link().shape_each(link(up), link(down)).unwrap();
        for (other, to) in cities()
            .into_iter()
            .zip(hosts)
            .filter(|(other, _)| *other != city)
        {
            host.shape_path(to, shape(kbit(city, other))).unwrap();
        }
    }
}

/// What each city knows of its link to each other one, in Mbit/s.
struct Links([[Option<f64>; N]; N]);

impl Links {
    fn seen(nodes: &[Running], field: &str) -> Self {
        let mut links = [[None; N]; N];
        for (from, node) in cities().into_iter().zip(nodes) {
            let status = node.status().unwrap_or_default();
            let peers = status.pointer("/network/peers").and_then(Value::as_array);
            for peer in peers.into_iter().flatten() {
                let to = CITIES.iter().position(|city| peer["name"] == **city);
                if let Some(to) = to {
                    links[from][to] = peer[field].as_f64();
                }
            }
        }
        Self(links)
    }

    /// What is known beside what is true, the furthest below first.
    fn ratios(&self, counts: impl Fn(usize, usize) -> bool) -> Vec<(f64, usize, usize)> {
        let known = directions()
            .filter(|&(from, to)| counts(from, to))
            .filter_map(|(from, to)| Some((self.0[from][to]? * 1e3 / kbit(from, to) as f64, from, to)));
        let mut ratios: Vec<_> = known.collect();
        ratios.sort_by(|one, other| one.0.total_cmp(&other.0));
        ratios
    }

    /// How many links are known within the tolerance, and how many count.
    fn within(&self, counts: impl Fn(usize, usize) -> bool) -> (usize, usize) {
        let ratios = self.ratios(&counts);
        let close = ratios
            .iter()
            .filter(|(ratio, ..)| (ratio - 1.0).abs() <= TOLERANCE);
        let counted = directions().filter(|&(from, to)| counts(from, to));
        (close.count(), counted.count())
    }

    /// Of two known links that differ enough, how often the faster is known for faster.
    fn in_order(&self, counts: impl Fn(usize, usize) -> bool) -> f64 {
        let known: Vec<_> = directions()
            .filter(|&(from, to)| counts(from, to))
            .filter_map(|(from, to)| Some((kbit(from, to) as f64, self.0[from][to]?)))
            .collect();
        let pairs = known
            .iter()
            .flat_map(|one| known.iter().map(move |other| (one, other)));
        let differ = pairs.filter(|(one, other)| one.0 >= other.0 * TOLD_APART);
        mean(differ.map(|(one, other)| if one.1 > other.1 { 1.0 } else { 0.0 }))
    }

    fn median(&self) -> f64 {
        let ratios = self.ratios(|_, _| true);
        ratios.get(ratios.len() / 2).map_or(0.0, |(ratio, ..)| *ratio)
    }

    fn print(&self, what: &str, counts: impl Fn(usize, usize) -> bool) {
        let (ratios, (within, of)) = (self.ratios(&counts), self.within(&counts));
        let ratio = |at: usize| ratios.get(at).map_or(f64::NAN, |(ratio, ..)| *ratio);
        println!(
            "{what}: {} of {of} links known, {within} within 20 %; times what is true: {:.2} at least, {:.2} in the \
             middle, {:.2} at most",
            ratios.len(),
            ratio(0),
            ratio(ratios.len() / 2),
            ratio(ratios.len().saturating_sub(1)),
        );
    }

    fn print_worst(&self, counts: impl Fn(usize, usize) -> bool) {
        let ratios = self.ratios(counts);
        let outside = ratios
            .iter()
            .filter(|(ratio, ..)| (ratio - 1.0).abs() > TOLERANCE);
        for (ratio, from, to) in outside {
            println!(
                "    {} to {}: {:.2} Mbit/s, {ratio:.2} of it known",
                CITIES[*from],
                CITIES[*to],
                kbit(*from, *to) as f64 / 1e3
            );
        }
    }
}

/// What a job came to.
struct Trained {
    planner: &'static str,
    /// Of each round, as cities.
    pairs: Vec<Vec<[usize; 2]>>,
    took: Duration,
    averaged: f64,
    local: f64,
}

impl Trained {
    fn uses(&self, from: usize, to: usize) -> bool {
        self.pairs
            .iter()
            .flatten()
            .any(|pair| *pair == [from, to] || *pair == [to, from])
    }

    /// What the planned pairs exchange at, as it is laid out, in Mbit/s.
    fn mean(&self) -> f64 {
        let pairs = self.pairs.iter().flatten();
        mean(pairs.map(|pair| between(*pair)))
    }

    /// The same of the slowest pair of each round.
    fn slowest(&self) -> f64 {
        let rounds = self.pairs.iter();
        mean(rounds.map(|pairs| pairs.iter().map(|pair| between(*pair)).fold(f64::MAX, f64::min)))
    }
}

/// The slower of both directions, in Mbit/s.
fn between([a, b]: [usize; 2]) -> f64 {
    kbit(a, b).min(kbit(b, a)) as f64 / 1e3
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

/// Trains, from the submission to the last round's end.
fn train(nodes: &[Running], folder: &Path, data: &Path, planner: &'static str) -> Trained {
    let job = folder.join(format!("{planner}.toml"));
    let text = format!(
        "data = \"csv:{}\"\nrounds = {}\nlocal_steps = 4\nbatch = 8\nlr = 0.02\ncompression = 1\nvalues = \"f32\"\n\
         planner = \"{planner}\"\nevaluate_every = 0\nfinal_dense_rounds = 0\n",
        data.display(),
        rounds()
    );
    std::fs::write(&job, text).unwrap();
    let cities = numbered(&nodes[0]);
    let begun = Instant::now();
    let submitted = nodes[0].ask(&["job", "submit", job.to_str().unwrap()]).unwrap();
    let id = submitted["id"].as_str().unwrap().to_owned();
    let (mut took, mut looked) = (None, begun);
    // A document has the last rounds only.
    let mut history = BTreeMap::new();
    let shown = loop {
        let shown = nodes[0].ask(&["job", "show", &id]).unwrap_or_default();
        for round in shown["history"].as_array().into_iter().flatten() {
            history.insert(round["round"].as_u64().unwrap(), round.clone());
        }
        let closed = history
            .values()
            .filter(|round| !round["merged"].is_null())
            .count();
        if closed == rounds() {
            took.get_or_insert_with(|| begun.elapsed());
        }
        if shown["phase"] == "finished" {
            break shown;
        }
        if looked.elapsed() > LOOK && took.is_none() {
            looked = Instant::now();
            let links = Links::seen(nodes, "committed_mbit_s");
            links.print(
                &format!("{planner}, {closed} rounds, {:.0?}", begun.elapsed()),
                |_, _| true,
            );
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "not in time: {shown}");
        std::thread::park_timeout(Duration::from_millis(200));
    };
    let mut pairs = Vec::new();
    for round in history.values() {
        let planned: Vec<[usize; 2]> = round["pairs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| [0, 1].map(|end| cities[pair[end].as_str().unwrap()]))
            .collect();
        let slowest = planned
            .iter()
            .min_by(|one, other| between(**one).total_cmp(&between(**other)));
        let merged = round["merged"].as_array().map_or(0, Vec::len);
        println!(
            "{planner} round {}: {} pairs, {merged} merged, {} ms, the slowest {:?}",
            round["round"],
            planned.len(),
            round["took_ms"],
            slowest.map(|pair| (pair.map(|city| CITIES[city]), between(*pair)))
        );
        pairs.push(planned);
    }
    let evaluation = shown["evaluations"]
        .as_array()
        .and_then(|all| all.last())
        .unwrap();
    Trained {
        planner,
        pairs,
        took: took.unwrap(),
        averaged: evaluation["averaged_accuracy"].as_f64().unwrap(),
        local: evaluation["local_accuracy"].as_f64().unwrap(),
    }
}

/// Which city has which number in the log.
fn numbered(node: &Running) -> BTreeMap<String, usize> {
    let document = node.ask(&["cluster", "members"]).unwrap();
    let members = document["members"].as_array().unwrap().iter();
    let named = members.map(|member| {
        let city = CITIES.iter().position(|city| member["name"] == **city).unwrap();
        (member["id"].as_str().unwrap().to_owned(), city)
    });
    named.collect()
}

/// Samples of ten classes, each around a centre of its own and far enough from it that a part of the data does not do.
fn table() -> String {
    let mut state = 1_u64;
    let mut draw = || {
        // The multiplier of Knuth's MMIX; the upper bits are good enough for noise.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 24) - 0.5
    };
    let centres: Vec<f64> = (0..CLASSES * FEATURES).map(|_| draw()).collect();
    let mut table = String::new();
    for sample in 0..SAMPLES {
        let class = sample % CLASSES;
        for centre in &centres[class * FEATURES..][..FEATURES] {
            // Writing to a string does not fail.
            let _ = write!(table, "{:.3},", 0.25 * centre + draw());
        }
        let _ = writeln!(table, "{class}");
    }
    table
}
