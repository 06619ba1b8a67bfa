//! What the registries of mains show.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::nine::{MAINS, Nine};

/// Address and whether it is local, of every instance of the diary.
fn instances(registry: &Value) -> BTreeMap<String, bool> {
    let instances = registry["servers"]["diary"]["instances"].as_array();
    let instances = instances.unwrap_or_else(|| panic!("{registry}")).iter();
    instances
        .map(|instance| {
            let address = instance["node_address"].as_str().unwrap().to_owned();
            (address, instance["is_local"].as_bool().unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_main_shows_its_own_homes_as_local_and_those_of_other_mains_as_federated() {
    let nine = Nine::shared().await;
    for (main, _) in MAINS {
        let edge = nine.world.edge(main);
        let all: BTreeMap<String, bool> = MAINS
            .iter()
            .flat_map(|(of, homes)| homes.map(|home| (format!("{home}.home@{of}"), *of == main)))
            .collect();
        let local = instances(&edge.get("/registry").await.unwrap());
        let own: BTreeMap<_, _> = all
            .clone()
            .into_iter()
            .filter(|(_, is_local)| *is_local)
            .collect();
        assert_eq!(local, own, "{main}");
        let federated = instances(&edge.get("/federation/registry").await.unwrap());
        assert_eq!(federated, all, "{main}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_and_the_peers_of_a_main_say_with_whom_it_is_connected() {
    let nine = Nine::shared().await;
    let edge = nine.world.edge("relay-a");
    let health = edge.get("/federation/health").await.unwrap();
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(health["connected_homes"], 2, "{health}");
    assert_eq!(health["connected_peers"], 2, "{health}");
    assert_eq!(health["failed_services"], 0, "{health}");
    assert!(
        health["average_latency"].as_str().unwrap().ends_with("ms"),
        "{health}"
    );
    let peers = edge.get("/federation/peers").await.unwrap();
    let peers = peers["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 2);
    for peer in peers {
        assert_eq!(peer["healthy"], true, "{peer}");
        assert!(
            peer["last_seen"].is_string() && peer["address"].is_string(),
            "{peer}"
        );
    }
    for node in ["relay-a", "alice"] {
        let health = nine.world.edge(node).get("/health").await.unwrap();
        assert_eq!(health["status"], "healthy", "{node}: {health}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_for_nodes_show_a_relay_as_what_it_is() {
    let nine = Nine::shared().await;
    let (status, text, error) = nine.world.run("relay-a", &["status"]);
    assert_eq!(status, Some(0), "{error}");
    assert!(
        text.starts_with("relay     relay-a.main healthy, main, version "),
        "{text}"
    );
    assert!(text.contains("\nhomes     2 connected\n"), "{text}");
    let (status, text, error) = nine.world.run("alice", &["status", "--json"]);
    assert_eq!(status, Some(0), "{error}");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["identity"]["peer_id"], nine.world.peer("alice"));
    assert_eq!(document["health"]["status"], "healthy");
    let (status, text, error) = nine.world.run("relay-a", &["peers", "--json"]);
    assert_eq!(status, Some(0), "{error}");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["peers"].as_array().map(Vec::len), Some(2), "{document}");
    let (status, text, _) = nine.world.run("alice", &["peers"]);
    assert_eq!(status, Some(0));
    assert!(
        text.lines().nth(1).is_some_and(|row| row.contains("since 2")),
        "{text}"
    );
    let (status, _, error) = nine.world.run("relay-a", &["peers", "--tried", "relay-b"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("a relay does not tell"), "{error}");
}
