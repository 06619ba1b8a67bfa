//! Links that take long and lose much, in a laboratory of network namespaces.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lapwing_netlab::{Lab, Shape};
use serde_json::json;

use crate::backend::Backend;
use crate::calls::{Done, tally};
use crate::placed::{Placed, folder, mains};
use crate::world::eventually;

const CALLS: u64 = 100;
const AT_A_TIME: usize = 20;

/// Each way: 600 ms of round trip, of which nearly a tenth is lost.
const DELAY: Duration = Duration::from_millis(300);
const LOSS: f64 = 0.05;

/// How often each main that a relay knows was lost, with all of them there.
async fn reconnects(relay: &Placed) -> Result<BTreeMap<String, u64>, String> {
    let document = relay.get("/federation/peers").await?;
    let peers = document["peers"].as_array().ok_or_else(|| document.to_string())?;
    let of = |peer: &serde_json::Value| {
        let name = peer["node_address"]
            .as_str()
            .filter(|_| peer["healthy"] == true)?;
        Some((name.to_owned(), peer["reconnects"].as_u64()?))
    };
    let all: Option<BTreeMap<String, u64>> = peers.iter().map(of).collect();
    all.filter(|all| all.len() == 1)
        .ok_or_else(|| document.to_string())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: lays out network namespaces"]
async fn calls_over_far_links_that_lose_much_are_each_carried_out_once_and_no_node_is_taken_for_dead() {
    let lab = Lab::builder().seed(33).start().unwrap();
    let folder = folder("federation-far");
    let far = Shape::delayed(DELAY).with_loss(LOSS);
    let [a, b, alice, bob] =
        ["relay-a", "relay-b", "alice", "bob"].map(|name| lab.public_host(name).unwrap());
    a.shape_path(&b, far).unwrap();
    b.shape_path(&a, far).unwrap();
    for home in [&alice, &bob] {
        // Not measured, which takes seconds.
        home.link().reshape(far, far).unwrap();
    }
    let diary = Backend::start_on(&bob);
    let begun = Instant::now();
    let mains = mains(&[a.clone(), b.clone()], &folder);
    let homes = [
        Placed::home(&alice, &a, &folder, &[]),
        Placed::home(&bob, &b, &folder, &[diary.as_service("diary")]),
    ];
    mains[0].until_offered("diary", &["bob"]).await;
    homes[0].until_answered("diary", CALLS).await;
    println!("the first call was answered after {:.2?}", begun.elapsed());
    let relays = || mains.iter().chain(&homes);
    let mut before = Vec::new();
    for relay in relays() {
        let what = format!("{} to have its main", relay.name);
        before.push(eventually(&what, async || reconnects(relay).await).await);
    }

    let begun = Instant::now();
    let done = homes[0]
        .numbers("diary", 0..CALLS, AT_A_TIME, json!({ "timeout": 60 }))
        .await;
    let mut times: Vec<Duration> = done.iter().map(|done| done.took).collect();
    times.sort();
    println!(
        "{CALLS} calls, {AT_A_TIME} at a time: {:.2?}, half of them within {:.2?}, the slowest {:.2?}",
        begun.elapsed(),
        times[times.len() / 2],
        times[times.len() - 1],
    );
    let failed: Vec<&Done> = done.iter().filter(|done| !done.ended.is_ok()).collect();
    assert!(failed.is_empty(), "{:?}, such as {:?}", tally(&done), failed[0]);
    let mut carried_out = diary.carried_out();
    carried_out.remove(&CALLS);
    assert_eq!(carried_out, (0..CALLS).map(|number| (number, 1)).collect());
    for (relay, before) in relays().zip(before) {
        assert_eq!(reconnects(relay).await, Ok(before), "{}", relay.name);
    }
}
