//! Homes behind NATs of every kind that call each other's services, in a laboratory of network namespaces.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lapwing_netlab::{Egress, Lab, Nat, Shape};
use serde_json::json;

use crate::backend::Backend;
use crate::calls::{Done, tally};
use crate::placed::{Placed, folder, mains};
use crate::world::eventually;

#[tokio::test]
#[ignore = "needs root: lays out network namespaces"]
async fn homes_behind_nats_of_every_kind_call_each_other_by_three_mains() {
    let lab = Lab::builder().seed(31).start().unwrap();
    let folder = folder("federation-behind-nats");
    let hosts = ["relay-a", "relay-b", "relay-c"].map(|name| lab.public_host(name).unwrap());
    let urls: Vec<String> = hosts
        .iter()
        .map(|host| format!("ws://{}:8080", host.ipv4()))
        .collect();
    let mut mains = Vec::new();
    for (place, host) in hosts.iter().enumerate() {
        let mut arguments: Vec<String> = ["--server", "--listen=/ip4/0.0.0.0/udp/8080/quic-v1"]
            .map(str::to_owned)
            .into();
        // For homes whose network blocks UDP.
        arguments.push("--listen=/ip4/0.0.0.0/tcp/443/tls/ws".to_owned());
        let others = urls.iter().filter(|url| **url != urls[place]);
        arguments.extend(others.map(|url| format!("--peers={url}")));
        mains.push(Placed::start(host.name(), host.clone(), &folder, &arguments));
    }
    let mut homes = Vec::new();
    for (place, (name, nat)) in [
        ("full-cone", Nat::full_cone()),
        ("restricted", Nat::restricted()),
        ("port-restricted", Nat::port_restricted().translated()),
        ("symmetric", Nat::symmetric()),
        ("carrier", Nat::carrier()),
        ("blocked", Nat::port_restricted().with_egress(Egress::Any)),
    ]
    .into_iter()
    .enumerate()
    {
        let router = lab.router(&format!("nat-{name}"), nat).unwrap();
        router
            .link()
            .shape(Shape::delayed(Duration::from_millis(5)))
            .unwrap();
        let host = router.host(name).unwrap();
        if name == "blocked" {
            router.restrict(Egress::NoUdp).unwrap();
        }
        let mut in_order = urls.clone();
        in_order.rotate_left(place % urls.len());
        let mut arguments = vec![format!("--connect={}", in_order[0])];
        arguments.extend(in_order[1..].iter().map(|url| format!("--fallback={url}")));
        homes.push(Placed::start(name, host, &folder, &arguments));
    }
    for caller in &homes {
        for called in homes.iter().filter(|called| called.name != caller.name) {
            let hops = eventually(
                &format!("{} to be answered by {}", caller.name, called.name),
                async || caller.call(&called.name),
            )
            .await;
            assert!(
                (2..=3).contains(&hops),
                "{} calls {}: {hops}",
                caller.name,
                called.name
            );
        }
        println!("{} has called all others", caller.name);
    }
    // Homes of the main that is gone now are reached by their fallback.
    drop(mains.remove(2));
    for caller in &homes {
        for called in homes.iter().filter(|called| called.name != caller.name) {
            eventually(
                &format!("{} to be answered by {} without a main", caller.name, called.name),
                async || caller.call(&called.name),
            )
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: lays out network namespaces"]
async fn homes_behind_nats_are_registered_balanced_shielded_and_loaded_as_on_one_machine() {
    let lab = Lab::builder().seed(36).start().unwrap();
    let folder = folder("federation-behind-nats-all");
    let hosts = ["relay-a", "relay-b", "relay-c"].map(|name| lab.public_host(name).unwrap());
    let mains = mains(&hosts, &folder);
    let [a, b, c] = &hosts;
    // Two instances at the same main, each behind another NAT; whoever calls them is at the first.
    let behind = |name: &str, nat: Nat| {
        let router = lab.router(&format!("nat-{name}"), nat).unwrap();
        let delay = Duration::from_millis(2);
        router.link().shape(Shape::delayed(delay)).unwrap();
        router.host(name).unwrap()
    };
    let places = [
        behind("symmetric", Nat::symmetric()),
        behind("full-cone", Nat::full_cone()),
        behind("port-restricted", Nat::port_restricted().translated()),
        behind("carrier", Nat::carrier()),
    ];
    let [alice, one, other, shop] = &places;
    let alice = Placed::home(alice, a, &folder, &[]);
    let backends = [one, other].map(Backend::start_on);
    let failing = Backend::start_on(shop);
    let start = |place: usize| {
        let service = backends[place].as_service("diary");
        Placed::home([one, other][place], b, &folder, &[service])
    };
    let [first, second] = [0, 1].map(start);
    let carrier = Placed::home(shop, c, &folder, &[failing.as_service("shop")]);
    for relay in mains.iter().chain([&alice]) {
        relay
            .until_offered("diary", &["full-cone", "port-restricted"])
            .await;
        relay.until_offered("shop", &["carrier"]).await;
    }

    let begun = Instant::now();
    let done = alice
        .numbers("diary", 0..1_000, 50, json!({ "timeout": 60 }))
        .await;
    println!("1000 calls, 50 at a time: {:.2?}", begun.elapsed());
    let failed: Vec<&Done> = done.iter().filter(|done| !done.ended.is_ok()).collect();
    assert!(failed.is_empty(), "{:?}, such as {:?}", tally(&done), failed[0]);
    for done in done {
        assert_eq!(
            done.ended.result()["args"],
            json!([done.number]),
            "each has its own answer"
        );
    }
    let mut carried_out: BTreeMap<u64, u32> = BTreeMap::new();
    for (number, times) in backends.iter().flat_map(Backend::carried_out) {
        *carried_out.entry(number).or_default() += times;
    }
    assert_eq!(carried_out, (0..1_000).map(|number| (number, 1)).collect());

    let ten = async |first: u64| {
        let before = backends.each_ref().map(Backend::calls);
        let done = alice.numbers("diary", first..first + 10, 1, json!({})).await;
        assert!(done.iter().all(|done| done.ended.is_ok()), "{:?}", tally(&done));
        [0, 1].map(|place: usize| backends[place].calls() - before[place])
    };
    assert_eq!(ten(1_000).await, [5, 5]);
    // What it says when it goes is heard before it has gone: nothing is waited for here.
    first.stop().await;
    assert_eq!(ten(1_010).await, [0, 10]);
    for main in &mains {
        main.until_offered("diary", &["port-restricted"]).await;
        let registry = main.get("/federation/registry").await.unwrap().to_string();
        let is_withdrawn = !registry.contains("full-cone") && registry.contains("port-restricted");
        assert!(is_withdrawn, "{}: {registry}", main.name);
    }

    failing.fail(true);
    let done = alice.numbers("shop", 0..10, 1, json!({})).await;
    let names: Vec<&str> = done.iter().map(|done| done.ended.name()).collect();
    assert_eq!(
        (names[0], names[9]),
        ("remote_error", "circuit_open"),
        "{names:?}"
    );

    // These say nothing as they go: they are killed.
    drop(second);
    drop(carrier);
    for main in &mains {
        main.until_offered("diary", &[]).await;
        main.until_offered("shop", &[]).await;
    }
    let gone = alice.number("diary", 1_020, json!({ "timeout": 10 })).await;
    assert_eq!(gone.ended.name(), "node_offline", "{gone:?}");
    // Its NAT lets it out again as it did.
    let _back = start(0);
    alice.until_answered("diary", 1_021).await;
    for main in &mains {
        main.until_offered("diary", &["full-cone"]).await;
    }
}
