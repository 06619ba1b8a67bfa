//! Mains that stop, are killed and come back, and homes that do.

use std::time::Instant;

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::calls::Edge;
use crate::world::{World, eventually, free_port};

/// By which way a call to bob has come.
async fn way(edge: &Edge) -> Result<Vec<String>, String> {
    let params = json!({ "service_name": "diary", "method": "say", "args": [], "trace": true, "timeout": 5 });
    let (answer, ended) = edge.asked(params).await;
    if !ended.is_ok() {
        return Err(format!("{ended:?}"));
    }
    let path = answer["trace"]["path"]
        .as_array()
        .ok_or_else(|| answer.to_string())?;
    let nodes = path.iter().filter_map(|hop| hop["node"].as_str());
    Ok(nodes.map(str::to_owned).collect())
}

async fn until_by(world: &World, at: &str, nodes: &[&str]) {
    let expected: Vec<&str> = nodes.iter().map(|node| world.peer(node)).collect();
    let edge = world.edge(at);
    eventually(&format!("calls to go by {nodes:?}"), async || {
        let way = way(&edge).await?;
        if way == expected {
            Ok(())
        } else {
            Err(format!("{way:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_goes_to_its_fallback_when_its_main_stops_and_calls_to_it_go_that_way() {
    let mut world = World::new();
    let [a, b, c] = [(); 3].map(|()| free_port());
    let bob = Backend::start("bob");
    world.main("relay-a", a, &[b, c], &[]);
    world.main("relay-b", b, &[a, c], &[]);
    world.main("relay-c", c, &[a, b], &[]);
    world.home("alice", &[a], &[]);
    world.home("bob", &[b, c], &[&bob.as_service("diary")]);
    world.up().await;
    until_by(&world, "alice", &["alice", "relay-a", "relay-b", "bob"]).await;

    let begun = Instant::now();
    world.stop("relay-b").await;
    until_by(&world, "alice", &["alice", "relay-a", "relay-c", "bob"]).await;
    println!(
        "its main was stopped: called by its fallback after {:.2?}",
        begun.elapsed()
    );
    let peers = world.edge("relay-a").get("/federation/peers").await.unwrap();
    let healthy: Vec<&Value> = peers["peers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|peer| &peer["healthy"])
        .collect();
    assert_eq!(
        healthy.iter().filter(|healthy| **healthy == false).count(),
        1,
        "{peers}"
    );

    // It goes back to the main that it would rather have; and is without that again, this time without a word.
    world.launch("relay-b");
    world.up_one("relay-b").await;
    until_by(&world, "alice", &["alice", "relay-a", "relay-b", "bob"]).await;
    let begun = Instant::now();
    world.kill("relay-b");
    until_by(&world, "alice", &["alice", "relay-a", "relay-c", "bob"]).await;
    println!(
        "its main was killed: called by its fallback after {:.2?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_is_there_again_with_its_services_when_its_only_main_was_killed_and_has_come_back() {
    let mut world = World::new();
    let [a, b] = [(); 2].map(|()| free_port());
    let bob = Backend::start("bob");
    world.main("relay-a", a, &[b], &[]);
    world.main("relay-b", b, &[a], &[]);
    world.home("bob", &[b], &[&bob.as_service("diary")]);
    world.up().await;
    world.until_offered("relay-a", "diary", &["bob"]).await;
    let edge = world.edge("relay-a");

    world.kill("relay-b");
    let begun = Instant::now();
    world.until_offered("relay-a", "diary", &[]).await;
    println!("a killed main is missed after {:.2?}", begun.elapsed());
    let error = edge.number("diary", 1, &json!({})).await.ended.error();
    assert!(
        ["service_not_found", "peer_unreachable", "node_offline"]
            .contains(&error["data"]["name"].as_str().unwrap()),
        "{error}"
    );

    let begun = Instant::now();
    world.launch("relay-b");
    let answered = eventually("the service to be back", async || {
        let done = edge.number("diary", 2, &json!({ "timeout": 5 })).await;
        if done.ended.is_ok() {
            Ok(begun.elapsed())
        } else {
            Err(done.ended.name().to_owned())
        }
    })
    .await;
    println!("a main was started again: its home is called after {answered:.2?}");
    world.up().await;
    world.until_offered("relay-a", "diary", &["bob"]).await;
    world.until_offered("relay-b", "diary", &["bob"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_home_offers_is_gone_everywhere_when_it_goes_and_there_when_it_is_back() {
    let mut world = World::new();
    let [a, b] = [(); 2].map(|()| free_port());
    let bob = Backend::start("bob");
    world.main("relay-a", a, &[b], &[]);
    world.main("relay-b", b, &[a], &[]);
    world.home("bob", &[b], &[&bob.as_service("diary")]);
    world.up().await;
    world.until_offered("relay-a", "diary", &["bob"]).await;
    for is_killed in [false, true] {
        let begun = Instant::now();
        if is_killed {
            world.kill("bob");
        } else {
            world.stop("bob").await;
        }
        world.until_offered("relay-a", "diary", &[]).await;
        println!(
            "killed: {is_killed}; gone everywhere after {:.2?}",
            begun.elapsed()
        );
        let begun = Instant::now();
        world.launch("bob");
        world.up().await;
        world.until_offered("relay-a", "diary", &["bob"]).await;
        println!("killed: {is_killed}; there again after {:.2?}", begun.elapsed());
        assert!(way(&world.edge("relay-a")).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_lets_calls_pass_again_when_the_service_has_recovered() {
    let mut world = World::new();
    let port = free_port();
    let shop = Backend::start("shop");
    world.main("relay-a", port, &[], &[]);
    world.home("alice", &[port], &[&shop.as_service("shop")]);
    world.up().await;
    world.until_offered("relay-a", "shop", &["alice"]).await;
    let edge = world.edge("relay-a");
    shop.fail(true);
    eventually("the breaker to open", async || {
        match edge.number("shop", 1, &json!({})).await.ended.name() {
            "circuit_open" => Ok(()),
            name => Err(name.to_owned()),
        }
    })
    .await;
    let begun = Instant::now();
    shop.fail(false);
    eventually("the breaker to close", async || {
        let done = edge.number("shop", 2, &json!({})).await;
        if done.ended.is_ok() {
            Ok(())
        } else {
            Err(format!("{:?}", done.ended))
        }
    })
    .await;
    println!("the breaker was closed by a probe after {:.1?}", begun.elapsed());
    for number in 3..6 {
        assert!(edge.number("shop", number, &json!({})).await.ended.is_ok());
    }
}
