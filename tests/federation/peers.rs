//! Mains that are added to one that runs, and removed from it, over HTTP.

use reqwest::Method;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::world::{World, eventually, free_port};

/// What one main shows of the others.
async fn peers(world: &World, at: &str) -> Result<Vec<Value>, String> {
    let document = world.edge(at).get("/federation/peers").await?;
    let peers = document["peers"].as_array().cloned();
    peers.ok_or_else(|| document.to_string())
}

/// Waits until one main shows exactly one other, with a session or without.
async fn until_one(world: &World, at: &str, other: &str, is_healthy: bool) {
    eventually(
        &format!("{at} to show {other}, healthy: {is_healthy}"),
        async || {
            let peers = peers(world, at).await?;
            match peers.as_slice() {
                [peer] if peer["node_id"] == world.peer(other) && peer["healthy"] == is_healthy => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_is_added_over_http_with_what_its_homes_offer_and_removed_again() {
    let mut world = World::new();
    let [a, b] = [(); 2].map(|()| free_port());
    let bob = Backend::start("bob");
    world.main("relay-a", a, &[], &["--peers-may-change"]);
    // It dials the first from the beginning, which has not heard of it and does not let it in.
    world.main("relay-b", b, &[a], &[]);
    world.home("bob", &[b], &[&bob.as_service("diary")]);
    world.up().await;
    world.until_offered("relay-b", "diary", &["bob"]).await;
    let edge = world.edge("relay-a");
    let call = json!({ "service_name": "diary", "method": "say", "args": [], "timeout": 5 });
    eventually("the one that was not named to be refused", async || {
        let shown = peers(&world, "relay-b").await?;
        let error = shown.first().and_then(|peer| peer["error"].as_str());
        let is_refused = error.is_some_and(|error| error.contains("was not named as one"));
        is_refused.then_some(()).ok_or_else(|| format!("{shown:?}"))
    })
    .await;
    assert_eq!(peers(&world, "relay-a").await.unwrap(), Vec::<Value>::new());
    assert_eq!(edge.call(call.clone()).await.name(), "service_not_found");

    let address = json!({ "address": format!("ws://127.0.0.1:{b}/ws/peers") });
    let (status, answer) = edge.ask(Method::POST, "/federation/peers/add", &address).await;
    assert_eq!(status, 202, "{answer}");
    until_one(&world, "relay-a", "relay-b", true).await;
    until_one(&world, "relay-b", "relay-a", true).await;
    world.until_offered("relay-a", "diary", &["bob"]).await;
    assert_eq!(edge.call(call.clone()).await.result()["by"], "bob");

    let node = json!({ "node_id": world.peer("relay-b") });
    let (status, answer) = edge.ask(Method::DELETE, "/federation/peers/remove", &node).await;
    assert_eq!(status, 202, "{answer}");
    eventually("the main to be gone", async || {
        match peers(&world, "relay-a").await? {
            shown if shown.is_empty() => Ok(()),
            shown => Err(format!("{shown:?}")),
        }
    })
    .await;
    world.until_offered("relay-a", "diary", &[]).await;
    assert!(!edge.call(call.clone()).await.is_ok());
    // It is refused again, however often it comes.
    until_one(&world, "relay-b", "relay-a", false).await;

    let (status, _) = edge.ask(Method::POST, "/federation/peers/add", &address).await;
    assert_eq!(status, 202);
    until_one(&world, "relay-a", "relay-b", true).await;
    world.until_offered("relay-a", "diary", &["bob"]).await;
    assert_eq!(edge.call(call).await.result()["by"], "bob");
}
