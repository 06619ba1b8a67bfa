//! The documents of a main and of a home that older programs read, and what a node says of itself.

use serde_json::{Map, Value, json};

use crate::backend::Backend;
use crate::calls::HTTP;
use crate::nine::Nine;
use crate::world::{World, free_port};

/// A main and a home of its.
const NODES: [(&str, &str); 2] = [("relay-a", "main"), ("alice", "home")];

/// By which a node knows itself. Homes are not told what their main is called.
fn address(nine: &Nine, node: &str) -> String {
    match node {
        "relay-a" => "relay-a.main".to_owned(),
        home => format!("{home}.home@{}", nine.world.peer("relay-a")),
    }
}

/// The members of an object, all of these among them.
#[track_caller]
fn members<'a>(document: &'a Value, expected: &[&str]) -> &'a Map<String, Value> {
    let members = document.as_object().unwrap_or_else(|| panic!("{document}"));
    for name in expected {
        assert!(members.contains_key(*name), "`{name}` is not in {document}");
    }
    members
}

fn names(services: &Value) -> Vec<&str> {
    let services = services.as_array().unwrap_or_else(|| panic!("{services}"));
    services
        .iter()
        .map(|service| service["name"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_lists_what_it_offers_itself() {
    let nine = Nine::shared().await;
    for (at, _) in NODES {
        let document = nine.world.edge(at).get("/services").await.unwrap();
        members(&document, &["node_id", "node_address", "services", "timestamp"]);
        assert_eq!(document["node_id"], nine.world.peer(at));
        assert_eq!(document["node_address"], address(&nine, at));
        let offered = if at == "alice" {
            vec!["diary", "echo"]
        } else {
            vec!["echo"]
        };
        assert_eq!(names(&document["services"]), offered, "{document}");
        for service in document["services"].as_array().unwrap() {
            members(
                service,
                &["name", "version", "methods", "resources", "is_healthy"],
            );
            assert_eq!(
                (&service["version"], &service["is_healthy"]),
                (&json!("1.0.0"), &json!(true))
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_keeps_is_called_by_its_own_http_and_not_listed_among_what_it_offers() {
    let mut world = World::new();
    let backend = Backend::start("alone");
    let service = backend.as_service("diary");
    world.main("relay-a", free_port(), &[], &[&service, "--keep=diary"]);
    world.up().await;
    let edge = world.edge("relay-a");
    let call = json!({ "service_name": "diary", "method": "say", "args": [] });
    assert_eq!(edge.call(call).await.result()["by"], "alone");
    let document = edge.get("/services").await.unwrap();
    assert_eq!(names(&document["services"]), ["echo"], "{document}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_who_it_is_and_which_paths_it_has() {
    let nine = Nine::shared().await;
    for (at, kind) in NODES {
        let edge = nine.world.edge(at);
        let info = edge.get("/info").await.unwrap();
        members(
            &info,
            &[
                "peer_id",
                "addresses",
                "name",
                "cluster_id",
                "version",
                "endpoints",
                "methods",
            ],
        );
        assert_eq!(
            (&info["node_id"], &info["node_address"], &info["node_type"]),
            (
                &json!(nine.world.peer(at)),
                &json!(address(&nine, at)),
                &json!(kind)
            )
        );
        let identity = edge.get("/federation/identity").await.unwrap();
        for (name, value) in members(&identity, &[]) {
            assert_eq!(&info[name], value, "{at}: {name} of the identity");
        }
        for endpoint in info["endpoints"].as_array().unwrap() {
            let endpoint = endpoint.as_str().unwrap();
            let Some(path) = endpoint.strip_prefix("GET ") else {
                continue;
            };
            let response = HTTP.get(format!("{}{path}", edge.url)).send().await.unwrap();
            // Those of WebSockets want a handshake.
            let is_there = if path.starts_with("/ws/") {
                response.status() != 404
            } else {
                response.status() == 200
            };
            assert!(is_there, "{at}: {endpoint}: {}", response.status());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_path_of_peers_shows_each_main_as_the_one_of_the_federation_does() {
    let nine = Nine::shared().await;
    for (at, kind) in NODES {
        let edge = nine.world.edge(at);
        let document = edge.get("/registry/peers").await.unwrap();
        members(&document, &["node_id", "node_type", "peers", "timestamp"]);
        assert_eq!(
            (&document["node_id"], &document["node_type"]),
            (&json!(nine.world.peer(at)), &json!(kind))
        );
        let others = if at == "alice" {
            vec!["relay-a"]
        } else {
            vec!["relay-b", "relay-c"]
        };
        let federated = edge.get("/federation/peers").await.unwrap();
        let peers = document["peers"].as_array().unwrap();
        assert_eq!(peers.len(), others.len(), "{document}");
        for other in others {
            let of = |peers: &Value| {
                let mut peers = peers.as_array().unwrap().iter();
                let found = peers.find(|peer| peer["node_id"] == nine.world.peer(other));
                found.unwrap_or_else(|| panic!("no {other}")).clone()
            };
            let peer = of(&document["peers"]);
            let shown = members(
                &peer,
                &[
                    "node_address",
                    "url",
                    "cluster_id",
                    "funs",
                    "locs",
                    "error",
                    "connected_since",
                    "last_seen",
                    "rtt_ms",
                    "probe_ms",
                    "reconnects",
                ],
            );
            assert_eq!(
                (&peer["status"], &peer["healthy"]),
                (&json!("connected"), &json!(true))
            );
            assert!(
                peer["url"].as_str().unwrap().starts_with("ws://127.0.0.1:"),
                "{peer}"
            );
            if at == "relay-a" {
                assert_eq!(peer["node_address"], format!("{other}.main"));
                assert_eq!(peer["funs"], json!(["echo.echo", "echo.echos"]), "{peer}");
            }
            let same = of(&federated["peers"]);
            assert!(
                members(&same, &[]).keys().eq(shown.keys()),
                "{peer} and {same}: each has the same members"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_path_of_health_says_how_a_node_is_as_the_newer_one_does() {
    let nine = Nine::shared().await;
    for (at, kind) in NODES {
        let edge = nine.world.edge(at);
        let mut documents = Vec::new();
        for path in ["/registry/health", "/health"] {
            let mut document = edge.get(path).await.unwrap();
            assert!(document["timestamp"].take().is_string(), "{at}: {path}");
            documents.push(document);
        }
        let expected = json!({ "status": "healthy", "timestamp": null, "servers": 2, "node_type": kind });
        // A main counts what its homes offer too: the diary and the echo of all, by name.
        assert_eq!(documents, [expected.clone(), expected], "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_path_of_servers_has_the_local_services_by_name_and_no_peers() {
    let nine = Nine::shared().await;
    for (at, _) in NODES {
        let edge = nine.world.edge(at);
        let servers = edge.get("/registry/servers").await.unwrap();
        members(&servers, &["servers", "timestamp", "next_page_token"]);
        assert_eq!(
            (
                &servers["node_id"],
                &servers["node_address"],
                servers.get("peers")
            ),
            (&json!(nine.world.peer(at)), &json!(address(&nine, at)), None)
        );
        let registry = edge.get("/registry").await.unwrap();
        members(&registry["peers"], &[]);
        let shown = members(&servers["servers"], &["diary", "echo"]);
        assert!(
            members(&registry["servers"], &[]).keys().eq(shown.keys()),
            "{servers} and {registry}"
        );
        for (name, server) in shown {
            members(
                server,
                &[
                    "node_id",
                    "node_address",
                    "methods",
                    "last_seen",
                    "hops",
                    "instances",
                ],
            );
            assert_eq!(
                (&server["name"], &server["is_local"]),
                (&json!(name), &json!(true))
            );
        }
        let diaries = if at == "alice" { 1 } else { 2 };
        let instances = servers["servers"]["diary"]["instances"].as_array();
        assert_eq!(instances.map(Vec::len), Some(diaries), "{servers}");
    }
}
