//! A gateway, mains, and homes behind NATs of different kinds that train together.

use std::time::Duration;

use lapwing_netlab::{Egress, Lab, Nat, Shape};

use crate::running::{Gateway, Running, eventually, folder};

#[test]
#[ignore = "needs root"]
fn homes_behind_nats_of_every_kind_join_and_train_without_any_configuration() {
    let lab = Lab::builder().seed(11).start().unwrap();
    let folder = folder("behind-nats");
    let gateway = Gateway::start(&lab, &folder);
    let open = ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/443/tls/ws"];
    let mut nodes = Vec::new();
    for name in ["main-1", "main-2", "main-3"] {
        let host = lab.public_host(name).unwrap();
        nodes.push(Running::start(name, host, &gateway.url, &folder, &open));
        eventually("the main is active", || {
            nodes[nodes.len() - 1].is("/node/state", "active")
        });
    }
    let homes = [
        ("translating", Nat::port_restricted().translated()),
        ("symmetric", Nat::symmetric()),
        ("blocked", Nat::port_restricted().with_egress(Egress::Any)),
    ];
    for (name, nat) in homes {
        let router = lab.router(&format!("nat-{name}"), nat.clone()).unwrap();
        router
            .link()
            .shape(Shape::delayed(Duration::from_millis(5)))
            .unwrap();
        let host = router.host(name).unwrap();
        if name == "blocked" {
            // UDP is blocked, and everything else passes: the gateway does not listen on 443.
            router.restrict(Egress::NoUdp).unwrap();
        }
        nodes.push(Running::start(name, host, &gateway.url, &folder, &[]));
    }
    for node in &nodes {
        eventually(&format!("{} is active", node.name), || {
            node.is("/node/state", "active")
        });
        let role = if node.name.starts_with("main") {
            "main"
        } else {
            "home"
        };
        eventually(&format!("{} is a {role}", node.name), || node.is("/role", role));
    }
    for home in &nodes[3..] {
        eventually(&format!("{} holds two reservations", home.name), || {
            let status = home.status();
            let held = status
                .as_ref()
                .and_then(|status| status.pointer("/network/reservations")?.as_array());
            held.is_some_and(|held| held.len() == 2)
        });
    }
    let job = folder.join("job.toml");
    std::fs::write(
        &job,
        "data = \"digits\"\nrounds = 60\nlocal_steps = 10\nlr = 0.05\nfinal_dense_rounds = 5\nevaluate_every = 20\n",
    )
    .unwrap();
    let submitted = nodes[0].ask(&["job", "submit", job.to_str().unwrap()]).unwrap();
    let id = submitted["id"].as_str().unwrap().to_owned();
    eventually("every node holds the consensus model", || {
        let shown = nodes[5].ask(&["job", "show", &id]);
        let holders = shown
            .as_ref()
            .and_then(|shown| shown.pointer("/manifest/holders")?.as_array());
        holders.is_some_and(|holders| holders.len() == nodes.len())
    });
    let shown = nodes[5].ask(&["job", "show", &id]).unwrap();
    let last = shown["evaluations"].as_array().unwrap().last().unwrap();
    println!("evaluated: {last}");
    assert!(last["averaged_accuracy"].as_f64().unwrap() > 0.85, "{last}");
    for node in &nodes {
        let status = node.status().unwrap();
        println!("{:12} {}", node.name, status["network"]["nat"]);
        for peer in status["network"]["peers"].as_array().unwrap() {
            println!(
                "    {:12} {:8} {:5} {}",
                peer["name"].as_str().unwrap_or("-"),
                peer["path"].as_str().unwrap_or("-"),
                peer["transport"].as_str().unwrap_or("-"),
                peer["relayed_because"].as_str().unwrap_or(""),
            );
        }
    }
    drop(nodes);
}
