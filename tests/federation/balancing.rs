//! Several instances of a service, and those that fail.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::backend::Backend;
use crate::world::{World, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_spread_evenly_until_an_instance_stops_and_then_all_go_to_the_other() {
    let mut world = World::new();
    let port = free_port();
    let backends = ["alice1", "alice2"].map(Backend::start);
    world.main("relay-a", port, &[], &[]);
    for (name, backend) in ["alice1", "alice2"].iter().zip(&backends) {
        world.home(name, &[port], &[&backend.as_service("blog")]);
    }
    world.up().await;
    world
        .until_offered("relay-a", "blog", &["alice1", "alice2"])
        .await;
    let edge = world.edge("relay-a");
    let ten = async || {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for number in 0..10 {
            let result = edge.number("blog", number, &json!({})).await.ended.result();
            *counts
                .entry(result["by"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
        counts
    };
    assert_eq!(
        ten().await,
        BTreeMap::from([("alice1".to_owned(), 5), ("alice2".to_owned(), 5)])
    );
    // What it says when it goes is heard before it has gone: nothing is waited for here.
    world.stop("alice1").await;
    assert_eq!(ten().await, BTreeMap::from([("alice2".to_owned(), 10)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_keeps_failing_is_called_no_more() {
    let mut world = World::new();
    let port = free_port();
    let shop = Backend::start("shop");
    world.main("relay-a", port, &[], &[]);
    world.home("alice", &[port], &[&shop.as_service("shop_service")]);
    world.up().await;
    world.until_offered("relay-a", "shop_service", &["alice"]).await;
    let edge = world.edge("relay-a");
    shop.fail(true);
    let mut names = Vec::new();
    for number in 0..10 {
        names.push(
            edge.number("shop_service", number, &json!({}))
                .await
                .ended
                .name()
                .to_owned(),
        );
    }
    assert_eq!(names[0], "remote_error");
    assert_eq!(names[9], "circuit_open", "{names:?}");
    let before = shop.calls();
    let begun = Instant::now();
    for number in 10..20 {
        let error = edge
            .number("shop_service", number, &json!({}))
            .await
            .ended
            .error();
        assert_eq!(error["code"], -32005, "{error}");
        assert_eq!(error["data"]["retryable"], true, "{error}");
        let after = error["data"]["retry_after_ms"].as_u64().unwrap();
        assert!((1..=45_000).contains(&after), "{error}");
    }
    let took = begun.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "ten calls that are blocked took {took:?}"
    );
    assert_eq!(shop.calls(), before, "none of them came as far as the service");
    let health = edge.get("/federation/health").await.unwrap();
    assert_eq!(health["failed_services"], 1, "{health}");
}
