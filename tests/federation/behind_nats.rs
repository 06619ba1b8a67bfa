//! Homes behind NATs of every kind that call each other's services, in a laboratory of network namespaces.

use std::time::Duration;

use lapwing_netlab::{Egress, Lab, Nat, Shape};

use crate::placed::{Placed, folder};
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
