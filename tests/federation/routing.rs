//! The way of a call from one node to another.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::nine::Nine;

/// What nobody offers is told without waiting for anybody; the rest is for a busy machine.
const PROMPT: Duration = Duration::from_secs(3);

fn path(answer: &Value) -> Vec<&str> {
    let path = answer["trace"]["path"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"));
    path.iter().map(|hop| hop["node"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_has_two_hops_to_a_home_of_the_same_main_and_three_to_one_of_another() {
    let nine = Nine::shared().await;
    let world = &nine.world;
    for (at, to, way) in [
        ("alice", "bob.home@relay-a", &["alice", "relay-a", "bob"][..]),
        (
            "alice",
            "charlie.home@relay-b",
            &["alice", "relay-a", "relay-b", "charlie"],
        ),
        ("relay-a", "bob.home@relay-a", &["relay-a", "bob"]),
        (
            "relay-a",
            "charlie.home@relay-b",
            &["relay-a", "relay-b", "charlie"],
        ),
        ("alice", "alice.home@relay-a", &["alice"]),
        ("erin", "dora", &["erin", "relay-c", "relay-b", "dora"]),
    ] {
        let params =
            json!({ "node_id": to, "server_name": "diary", "method": "say", "args": ["x"], "trace": true });
        let (answer, ended) = world.edge(at).asked(params).await;
        let result = ended.result();
        let name = to.split('.').next().unwrap();
        assert_eq!(result, json!({ "by": name, "args": ["x"] }), "{at} calls {to}");
        let nodes: Vec<&str> = way.iter().map(|node| world.peer(node)).collect();
        assert_eq!(path(&answer), nodes, "{at} calls {to}");
        assert_eq!(answer["trace"]["hops"], way.len() - 1, "{at} calls {to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_not_is_told_at_once_wherever_it_is_asked() {
    let nine = Nine::shared().await;
    for at in ["alice", "relay-a"] {
        for (params, name) in [
            (
                json!({ "service_name": "nothing", "method": "say" }),
                "service_not_found",
            ),
            (
                json!({ "node_id": "nonexistent.home", "server_name": "diary", "method": "say" }),
                "node_not_found",
            ),
            (
                json!({ "node_id": "nobody.home@relay-b", "server_name": "diary", "method": "say" }),
                "node_not_found",
            ),
            (
                json!({ "node_id": "charlie.home@relay-b", "server_name": "nothing", "method": "say" }),
                "service_not_found",
            ),
        ] {
            let begun = Instant::now();
            let error = nine.world.edge(at).call(params.clone()).await.error();
            let took = begun.elapsed();
            assert_eq!(error["data"]["name"], name, "{at}: {params}: {error}");
            assert!(took < PROMPT, "{at}: {params} took {took:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_the_nodes_by_which_the_call_had_come() {
    let nine = Nine::shared().await;
    let world = &nine.world;
    for (to, way) in [
        ("nobody.home@relay-b", &["alice", "relay-a", "relay-b"][..]),
        ("nonexistent.home", &["alice", "relay-a"]),
    ] {
        let params = json!({ "node_id": to, "server_name": "diary", "method": "say" });
        let error = world.edge("alice").call(params).await.error();
        let nodes: Vec<&str> = way.iter().map(|node| world.peer(node)).collect();
        assert_eq!(error["data"]["path"], json!(nodes), "{to}: {error}");
        assert_eq!(error["data"]["failed_at"], json!(nodes.last()), "{to}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_calls_and_lists_what_is_callable_at_any_relay() {
    let nine = Nine::shared().await;
    let (status, out, err) = nine.world.run(
        "alice",
        &[
            "call",
            "charlie.home@relay-b",
            "diary",
            "say",
            "[\"hello\"]",
            "--trace",
        ],
    );
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("\"charlie\"") && out.contains("3 hops"), "{out}");
    let (status, out, err) = nine.world.run("alice", &["services"]);
    assert_eq!(status, Some(0), "{err}");
    assert_eq!(out.matches("diary").count(), 6, "{out}");
    assert!(out.contains("frank.home@relay-c"), "{out}");
    let (status, _, err) = nine.world.run("relay-b", &["call", "-", "nothing", "say"]);
    assert_eq!(status, Some(1));
    assert!(
        err.contains("service_not_found") && err.contains("lapwing services"),
        "{err}"
    );
}
