//! Wherever the caller and the service are, and whoever is there first: a call is answered, or told why it is not.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

use crate::backend::Backend;
use crate::calls::{Edge, Ended};
use crate::world::{World, eventually, free_port};

/// Errors of a federation that is being built or taken apart.
const NOT_YET: [&str; 5] = [
    "peer_unreachable",
    "node_offline",
    "node_not_found",
    "service_not_found",
    "hop_limit_exceeded",
];

/// How long each call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A busy machine may say so much later that the time is over.
const LATE: Duration = Duration::from_secs(10);

/// Calls each of these services from each of these nodes until all are answered; what is not is told why, from the beginning.
async fn all_reach_all(world: &World, callers: &[&str], services: &[&str]) {
    let mut pairs: FuturesUnordered<_> = callers
        .iter()
        .flat_map(|caller| services.iter().map(move |service| (caller, service)))
        .map(|(caller, service)| reach(world.edge(caller), caller, service))
        .collect();
    while pairs.next().await.is_some() {}
}

/// Calls a service in every form of address until it is answered in each.
async fn reach(edge: Edge, caller: &str, service: &str) {
    for node in [None, Some(service.to_owned()), Some(address(service))] {
        let mut params =
            json!({ "service_name": service, "method": "say", "args": [], "timeout": TIMEOUT.as_secs() });
        let mut called = service.to_owned();
        if let Some(node) = node {
            called = format!("{service} of {node}");
            params["node_id"] = json!(node);
        }
        eventually(&format!("{caller} to reach {called}"), async || {
            let begun = Instant::now();
            let ended = edge.call(params.clone()).await;
            let took = begun.elapsed();
            assert!(
                took < TIMEOUT + LATE,
                "{caller} calls {called}: {ended:?} after {took:?}"
            );
            match ended {
                Ended::Answered(result) => {
                    assert_eq!(result["by"], service);
                    Ok(())
                }
                ended => {
                    assert!(
                        NOT_YET.contains(&ended.name()),
                        "{caller} calls {called}: {ended:?}"
                    );
                    Err(format!("{ended:?}"))
                }
            }
        })
        .await;
    }
}

/// The compound address of a node. In every layout here the homes of a name are at the same main.
fn address(node: &str) -> String {
    let main = match node {
        "alice" | "anna" => "relay-a",
        "bob" | "bert" => "relay-b",
        "charlie" => "relay-c",
        "dora" => "relay-d",
        main => return format!("{main}.main"),
    };
    format!("{node}.home@{main}")
}

/// Each node offers a service that has its name.
struct Named(BTreeMap<&'static str, Backend>);

impl Named {
    fn of(names: &[&'static str]) -> Self {
        Self(names.iter().map(|name| (*name, Backend::start(name))).collect())
    }

    fn flag(&self, name: &str) -> String {
        self.0[name].as_service(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_reaches_every_service_whoever_was_started_first() {
    const NODES: [&str; 6] = ["relay-a", "relay-b", "alice", "anna", "bob", "bert"];
    let named = Named::of(&NODES);
    // Homes before their mains, mains before their homes, and one main with its homes before the other.
    for order in [
        ["relay-a", "relay-b", "alice", "anna", "bob", "bert"],
        ["alice", "bob", "anna", "bert", "relay-b", "relay-a"],
        ["relay-b", "bert", "bob", "alice", "relay-a", "anna"],
    ] {
        let mut world = World::new();
        let [a, b] = [(); 2].map(|()| free_port());
        for name in order {
            let service = named.flag(name);
            let more = [service.as_str()];
            match name {
                "relay-a" => world.main(name, a, &[b], &more),
                "relay-b" => world.main(name, b, &[a], &more),
                "alice" | "anna" => world.home(name, &[a], &more),
                _ => world.home(name, &[b], &more),
            }
            // Each is there before the next is started.
            world.up_one(name).await;
        }
        all_reach_all(&world, &NODES, &NODES).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_at_the_ends_of_a_line_of_three_mains_reach_each_other_and_those_of_four_are_told_that_they_do_not()
 {
    const NODES: [&str; 6] = ["relay-a", "relay-b", "relay-c", "alice", "bob", "charlie"];
    let named = Named::of(&[
        "relay-a", "relay-b", "relay-c", "relay-d", "alice", "bob", "charlie", "dora",
    ]);
    let mut world = World::new();
    let [a, b, c, d] = [(); 4].map(|()| free_port());
    for (main, port, peers) in [
        ("relay-c", c, &[b, d][..]),
        ("relay-a", a, &[b]),
        ("relay-d", d, &[c]),
        ("relay-b", b, &[a, c]),
    ] {
        world.main(main, port, peers, &[&named.flag(main)]);
    }
    for (home, main) in [("alice", a), ("bob", b), ("charlie", c), ("dora", d)] {
        world.home(home, &[main], &[&named.flag(home)]);
    }
    world.up().await;
    all_reach_all(&world, &NODES, &NODES).await;
    // Their services are known three links away.
    all_reach_all(
        &world,
        &["dora", "relay-d"],
        &["bob", "relay-b", "charlie", "relay-a"],
    )
    .await;
    for (caller, service) in [("alice", "dora"), ("dora", "alice")] {
        let params = json!({ "service_name": service, "method": "say", "timeout": 5 });
        let error = world.edge(caller).call(params).await.error();
        assert_eq!(error["data"]["name"], "service_not_found", "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_in_a_line_that_are_bridged_reach_each_other_whichever_was_started_first() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        clusters_in_a_line(order).await;
    }
}

/// The nodes of each cluster are there before those of the next of this order are started.
async fn clusters_in_a_line(order: [usize; 3]) {
    const NAMES: [[&str; 2]; 3] = [["relay-a", "alice"], ["relay-b", "bob"], ["relay-c", "charlie"]];
    const CLUSTERS: [&str; 3] = [
        "000000000000000000000000000000a1",
        "000000000000000000000000000000b2",
        "000000000000000000000000000000c3",
    ];
    const NODES: [&str; 6] = ["relay-a", "relay-b", "relay-c", "alice", "bob", "charlie"];
    let named = Named::of(&NODES);
    let mut world = World::new();
    let ports = [(); 3].map(|()| free_port());
    for place in order {
        let [main, home] = NAMES[place];
        let cluster = format!("--cluster={}", CLUSTERS[place]);
        let besides = |all: &[usize]| {
            all.iter()
                .filter(|other| other.abs_diff(place) == 1)
                .copied()
                .collect::<Vec<_>>()
        };
        let neighbours = besides(&[0, 1, 2]);
        let bridges: Vec<String> = neighbours
            .iter()
            .map(|other| format!("--bridge={}", CLUSTERS[*other]))
            .collect();
        let peers: Vec<u16> = neighbours.iter().map(|other| ports[*other]).collect();
        let service = named.flag(main);
        let more: Vec<&str> = [&cluster, &service]
            .into_iter()
            .chain(&bridges)
            .map(String::as_str)
            .collect();
        world.main(main, ports[place], &peers, &more);
        world.home(home, &[ports[place]], &[&cluster, &named.flag(home)]);
        world.up().await;
    }
    all_reach_all(&world, &NODES, &NODES).await;
}

/// Which nodes there are, and which of them know each other.
struct Layout {
    /// Each main with those that it names.
    mains: &'static [(&'static str, &'static [&'static str])],
    /// Each home with its main.
    homes: &'static [(&'static str, &'static str)],
    /// Whether each main and its homes are a cluster, which lets in those of the mains that it names.
    has_clusters: bool,
}

const LINE: Layout = Layout {
    mains: &[
        ("relay-a", &["relay-b"]),
        ("relay-b", &["relay-a", "relay-c"]),
        ("relay-c", &["relay-b"]),
    ],
    homes: &[("alice", "relay-a"), ("bob", "relay-b"), ("charlie", "relay-c")],
    has_clusters: false,
};

/// Orders of each layout in which its nodes are started.
const ORDERS: u32 = 3;

/// What chance is drawn from; a test that fails says how to draw the same.
struct Seed(u64);

impl Seed {
    const VARIABLE: &str = "LAPWING_REPLIES_SEED";

    fn new() -> Self {
        let given = std::env::var(Self::VARIABLE).ok();
        Self(given.map_or_else(rand::random, |text| text.parse().unwrap()))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}={} draws the same", Self::VARIABLE, self.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mains_and_their_homes_reach_each_other_in_whatever_order_they_were_started() {
    let layout = Layout {
        mains: &[("relay-a", &["relay-b"]), ("relay-b", &["relay-a"])],
        homes: &[
            ("alice", "relay-a"),
            ("anna", "relay-a"),
            ("bob", "relay-b"),
            ("bert", "relay-b"),
        ],
        has_clusters: false,
    };
    layout.in_random_orders().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_mains_and_their_homes_reach_each_other_in_whatever_order_they_were_started() {
    let layout = Layout {
        mains: &[
            ("relay-a", &["relay-b", "relay-c"]),
            ("relay-b", &["relay-a", "relay-c"]),
            ("relay-c", &["relay-a", "relay-b"]),
        ],
        homes: &[("alice", "relay-a"), ("bob", "relay-b"), ("charlie", "relay-c")],
        has_clusters: false,
    };
    layout.in_random_orders().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_mains_in_a_line_and_their_homes_reach_each_other_in_whatever_order_they_were_started() {
    LINE.in_random_orders().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_in_a_line_that_are_bridged_reach_each_other_in_whatever_order_their_nodes_were_started() {
    let layout = Layout {
        has_clusters: true,
        ..LINE
    };
    layout.in_random_orders().await;
}

impl Layout {
    async fn in_random_orders(&self) {
        let seed = Seed::new();
        let mut random = StdRng::seed_from_u64(seed.0);
        for _ in 0..ORDERS {
            self.in_an_order(&mut random).await;
        }
    }

    /// Starts the nodes one after the other, with some of them not before the last one is there; each that is there calls all
    /// services at once and until all have answered.
    async fn in_an_order(&self, random: &mut StdRng) {
        let homes = self.homes.iter().map(|(home, _)| *home);
        let nodes: Vec<&str> = self.mains.iter().map(|(main, _)| *main).chain(homes).collect();
        let mut order = nodes.clone();
        order.shuffle(random);
        println!("started in the order {order:?}");
        let named = Named::of(&nodes);
        let ports: BTreeMap<&str, u16> = self.mains.iter().map(|(main, _)| (*main, free_port())).collect();
        let mut world = World::new();
        let mut calls = FuturesUnordered::new();
        let mut starting = Vec::new();
        let mut order = order.into_iter().peekable();
        while let Some(name) = order.next() {
            self.start(name, &mut world, &ports, &named.flag(name));
            starting.push(name);
            if order.peek().is_some() && random.random() {
                continue;
            }
            for caller in starting.drain(..) {
                beside(&mut calls, world.up_one(caller)).await;
                calls.extend(
                    nodes
                        .iter()
                        .map(|service| reach(world.edge(caller), caller, service)),
                );
            }
        }
        while calls.next().await.is_some() {}
    }

    fn start(&self, name: &str, world: &mut World, ports: &BTreeMap<&str, u16>, service: &str) {
        let home = self.homes.iter().find(|(home, _)| *home == name);
        let main = home.map_or(name, |(_, main)| main);
        let (_, others) = self.mains.iter().find(|(found, _)| *found == main).unwrap();
        let mut more = vec![service.to_owned()];
        if self.has_clusters {
            more.push(format!("--cluster={}", self.cluster(main)));
        }
        if home.is_none() && self.has_clusters {
            more.extend(
                others
                    .iter()
                    .map(|other| format!("--bridge={}", self.cluster(other))),
            );
        }
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let peers: Vec<u16> = others.iter().map(|other| ports[other]).collect();
        match home {
            Some(_) => world.home(name, &[ports[main]], &more),
            None => world.main(name, ports[main], &peers, &more),
        }
    }

    /// Of a main and its homes.
    fn cluster(&self, main: &str) -> String {
        let place = self.mains.iter().position(|(found, _)| *found == main);
        format!("{:032x}", place.unwrap() + 1)
    }
}

/// Waits for something while calls are made.
async fn beside(calls: &mut FuturesUnordered<impl Future<Output = ()>>, awaited: impl Future<Output = ()>) {
    let mut awaited = pin!(awaited);
    loop {
        tokio::select! {
            () = &mut awaited => return,
            Some(()) = calls.next() => (),
        }
    }
}
