//! Who is let in, what crosses the border between clusters, and what is written down of it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::world::{World, eventually, free_port};

const OURS: &str = "--cluster=000000000000000000000000000000a1";
const THEIRS: &str = "--cluster=000000000000000000000000000000b2";
const BRIDGE_TO_OURS: &str = "--bridge=000000000000000000000000000000a1";
const BRIDGE_TO_THEIRS: &str = "--bridge=000000000000000000000000000000b2";

/// The events of a node's audit log that have this name.
fn audited(world: &World, node: &str, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(world.data_dir(node).join("audit.jsonl")).unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == event).collect()
}

/// Waits until a node has written down that it refuses another, and returns why.
async fn refused(world: &World, node: &str, peer: &str) -> String {
    eventually(&format!("{node} to refuse {peer}"), async || {
        let all = audited(world, node, "refused");
        let one = all.iter().find(|event| event["peer"] == world.peer(peer));
        one.and_then(|event| event["reason"].as_str().map(str::to_owned))
            .ok_or_else(|| format!("{all:?}"))
    })
    .await
}

async fn call(world: &World, at: &str, service: &str) -> crate::calls::Ended {
    let params = json!({ "service_name": service, "method": "say", "args": [], "timeout": 5 });
    world.edge(at).call(params).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_refused_by_default_with_what_to_do_about_it_and_let_in_over_a_bridge() {
    let mut world = World::new();
    let [a, b, c] = [(); 3].map(|()| free_port());
    let [blog, secret] = ["blog", "secret"].map(Backend::start);
    // The first has no bridge, so that the second is refused, who has one; the third and the second let each other in.
    world.main("strict", a, &[b], &[OURS]);
    world.main(
        "theirs",
        b,
        &[a, c],
        &[
            THEIRS,
            BRIDGE_TO_OURS,
            "--let-out=!secret",
            &blog.as_service("blog"),
            &secret.as_service("secret"),
        ],
    );
    world.main(
        "bridged",
        c,
        &[b],
        &[OURS, BRIDGE_TO_THEIRS, "--let-in=blog", "--let-in=secret"],
    );
    world.home("alice", &[c], &[OURS]);
    world.up().await;

    let reason = refused(&world, "strict", "theirs").await;
    assert!(
        reason.contains("--bridge") && reason.contains("000000000000000000000000000000b2"),
        "{reason}"
    );
    let error = call(&world, "strict", "blog").await.error();
    assert_eq!(error["data"]["name"], "service_not_found");

    world.until_offered("alice", "blog", &["theirs"]).await;
    assert_eq!(call(&world, "alice", "blog").await.result()["by"], "blog");
    let foreign = audited(&world, "bridged", "admitted");
    assert!(
        foreign.iter().any(|event| event["is_foreign"] == true),
        "{foreign:?}"
    );

    // What is not let out is not carried out for whoever is on the other side, and that is written down.
    for params in [
        json!({ "service_name": "secret", "method": "say", "timeout": 5 }),
        json!({ "node_id": "theirs", "server_name": "secret", "method": "say", "timeout": 5 }),
    ] {
        let error = world.edge("bridged").call(params).await.error();
        assert_eq!(error["data"]["name"], "forbidden_by_policy", "{error}");
        assert_eq!(error["data"]["failed_at"], world.peer("theirs"), "{error}");
    }
    assert_eq!(secret.calls(), 0);
    eventually("the refusals to be written down", async || {
        let refused = audited(&world, "theirs", "call_refused");
        let is_whole = refused.len() == 2 && refused.iter().all(|event| event["service"] == "secret");
        if is_whole {
            Ok(())
        } else {
            Err(format!("{refused:?}"))
        }
    })
    .await;
    // What is not let in is not called over the border, whoever offers it there.
    let over = json!({ "node_id": "theirs", "server_name": "echo", "method": "echo", "timeout": 5 });
    let error = world.edge("bridged").call(over).await.error();
    assert_eq!(error["data"]["name"], "forbidden_by_policy", "{error}");
    assert_eq!(error["data"]["failed_at"], world.peer("bridged"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_know_the_token_is_refused_and_no_token_is_written_anywhere() {
    const RIGHT: &str = "the-right-token-of-this-test-4711";
    const WRONG: &str = "the-wrong-token-of-this-test-4712";
    let mut world = World::new();
    let [a, b] = [(); 2].map(|()| free_port());
    let tokens = tempfile::tempdir().unwrap();
    let flag = |name: &str, token: &str| {
        let file = tokens.path().join(name);
        fs::write(&file, token).unwrap();
        format!("--token-file={}", file.display())
    };
    let (right, wrong) = (flag("right", RIGHT), flag("wrong", WRONG));
    let diary = Backend::start("bob");
    let service = diary.as_service("diary");
    world.main("relay-a", a, &[], &[&right]);
    // Nobody has told the first of the second: its token is enough.
    world.main("relay-b", b, &[a], &[&right]);
    world.home("bob", &[b], &[&right, &service]);
    world.home("mallory", &[a], &[&wrong]);
    world.home("nobody", &[a], &[]);
    world.up().await;
    world.until_offered("relay-a", "diary", &["bob"]).await;
    assert!(call(&world, "relay-a", "diary").await.is_ok());
    let mut texts = Vec::new();
    for name in ["mallory", "nobody"] {
        let reason = refused(&world, "relay-a", name).await;
        assert!(reason.contains("--token-file"), "{reason}");
        let error = call(&world, name, "diary").await.error();
        assert_eq!(error["data"]["name"], "peer_unreachable", "{error}");
        texts.push(error.to_string());
        assert_eq!(
            world.edge(name).get("/health").await.unwrap()["status"],
            "unhealthy"
        );
        eventually(&format!("{name} to write why it has no main"), async || {
            if world.log(name).contains("it does not let this node in") {
                Ok(())
            } else {
                Err(world.log(name))
            }
        })
        .await;
    }
    for name in ["relay-a", "relay-b", "bob", "mallory", "nobody"] {
        let edge = world.edge(name);
        for path in [
            "/info",
            "/services",
            "/registry",
            "/federation/registry",
            "/federation/peers",
            "/federation/health",
        ] {
            texts.push(edge.get(path).await.unwrap().to_string());
        }
        let metrics = crate::calls::HTTP
            .get(format!("{}/metrics", edge.url))
            .send()
            .await
            .unwrap();
        texts.push(metrics.text().await.unwrap());
    }
    for name in ["relay-a", "mallory"] {
        world.stop(name).await;
    }
    texts.extend(files(world.folder()));
    for text in texts {
        for token in [RIGHT, WRONG] {
            let at = text.find(token);
            assert_eq!(
                at,
                None,
                "{}",
                &text[at.unwrap_or_default().saturating_sub(200)..]
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_homes_on_the_list_of_a_main_are_taken_in_and_a_main_that_nobody_named_is_none() {
    let mut world = World::new();
    let [a, b] = [(); 2].map(|()| free_port());
    // It takes in nobody but itself, whose id is a valid one.
    let listed = lapwing_base::PeerId::random().to_string();
    world.main("relay-a", a, &[], &["--admit", &listed]);
    world.main("relay-b", b, &[a], &[]);
    world.home("alice", &[a], &[]);
    world.up().await;
    assert!(refused(&world, "relay-a", "alice").await.contains("--admit"));
    assert!(refused(&world, "relay-a", "relay-b").await.contains("--peers"));
    let health = world.edge("relay-a").get("/federation/health").await.unwrap();
    assert_eq!(
        (&health["connected_homes"], &health["connected_peers"]),
        (&json!(0), &json!(0)),
        "{health}"
    );
}

/// All that the relays have written, as far as it is text.
fn files(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(files(&path));
        } else if let Ok(bytes) = fs::read(&path) {
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    texts
}
