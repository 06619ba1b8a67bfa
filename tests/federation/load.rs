//! Many calls at once from home to home, by two mains.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::backend::Backend;
use crate::calls::{Done, tally};
use crate::world::{World, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_across_two_mains_are_each_carried_out_once_fifty_at_a_time_or_all_at_once() {
    let mut world = World::new();
    let [a, b] = [(); 2].map(|()| free_port());
    let bob = Backend::start("bob");
    world.main("relay-a", a, &[b], &[]);
    world.main("relay-b", b, &[a], &[]);
    world.home("alice", &[a], &[]);
    world.home("bob", &[b], &[&bob.as_service("diary")]);
    world.up().await;
    world.until_offered("alice", "diary", &["bob"]).await;
    let edge = world.edge("alice");
    for (first, at_a_time) in [(0, 50), (1_000, 1_000)] {
        let begun = Instant::now();
        let done = edge
            .numbers("diary", first..first + 1_000, at_a_time, json!({ "timeout": 60 }))
            .await;
        let took = begun.elapsed();
        let mut times: Vec<Duration> = done.iter().map(|done| done.took).collect();
        times.sort();
        println!(
            "1000 calls, {at_a_time} at a time: {took:.2?}, half of them within {:.1?}, 99 of 100 within {:.1?}",
            times[499], times[989]
        );
        let failed: Vec<&Done> = done.iter().filter(|done| !done.ended.is_ok()).collect();
        assert!(failed.is_empty(), "{:?}, such as {:?}", tally(&done), failed[0]);
        for done in done {
            assert_eq!(
                done.ended.result()["args"],
                json!([done.number]),
                "each has its own answer"
            );
        }
        assert!(took < Duration::from_secs(60), "it took {took:?}");
    }
    let carried_out = bob.carried_out();
    assert_eq!(carried_out.len(), 2_000);
    assert_eq!(carried_out.into_iter().find(|(_, times)| *times != 1), None);
}
