//! Wherever the caller and the service are, and whoever is there first: a call is answered, or told why it is not.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
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

/// Calls each of these services from each of these nodes until all are answered; what is not is told why, from the beginning.
async fn all_reach_all(world: &World, callers: &[&str], services: &[&str]) {
    let mut pairs: FuturesUnordered<_> = callers
        .iter()
        .flat_map(|caller| services.iter().map(move |service| (caller, service)))
        .map(|(caller, service)| reach(world.edge(caller), caller, service))
        .collect();
    while pairs.next().await.is_some() {}
}

async fn reach(edge: Edge, caller: &str, service: &str) {
    let params = json!({ "service_name": service, "method": "say", "args": [], "timeout": 10 });
    eventually(&format!("{caller} to reach {service}"), async || {
        match edge.call(params.clone()).await {
            Ended::Answered(result) => {
                assert_eq!(result["by"], service);
                Ok(())
            }
            ended => {
                assert!(
                    NOT_YET.contains(&ended.name()),
                    "{caller} calls {service}: {ended:?}"
                );
                Err(format!("{ended:?}"))
            }
        }
    })
    .await;
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
