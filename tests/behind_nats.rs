//! The whole program on several hosts: a gateway, mains, and homes behind NATs of different kinds that train together.
//!
//! Needs root and Linux, so that `cargo test` without it says that it did not run; run it with
//! `cargo test --test behind_nats -- --ignored --nocapture`.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]
#![expect(clippy::disallowed_methods, reason = "a test of real time")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lapwing_netlab::{Egress, Host, Lab, Nat, Shape};
use serde_json::Value;

const LAPWING: &str = env!("CARGO_BIN_EXE_lapwing");

/// A node and what it runs on.
struct Running {
    name: &'static str,
    host: Host,
    data_dir: PathBuf,
    child: Child,
}

impl Running {
    fn start(name: &'static str, host: Host, gateway: &str, folder: &Path, listen: &[&str]) -> Self {
        let data_dir = folder.join(name);
        let log = std::fs::File::create(folder.join(format!("{name}.log"))).unwrap();
        let mut command = host.command(LAPWING).unwrap();
        command.args(["node", "--gateway", gateway, "--name", name, "--data-dir"]);
        command.arg(&data_dir);
        for address in listen {
            command.args(["--listen", address]);
        }
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self {
            name,
            host,
            data_dir,
            child,
        }
    }

    /// What a command says of this node, if it answers.
    fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let output = self
            .host
            .command(LAPWING)
            .unwrap()
            .args(arguments)
            .args(["--json", "--data-dir"])
            .arg(&self.data_dir)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    fn status(&self) -> Option<Value> {
        self.ask(&["status"])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn homes_behind_nats_of_every_kind_join_and_train_without_any_configuration() {
    let lab = Lab::builder().seed(11).start().unwrap();
    // It stays, with every node's log, until the next run.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("behind-nats");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let gateway_host = lab.public_host("gateway").unwrap();
    let mut gateway = gateway_host
        .command(LAPWING)
        .unwrap()
        .args(["gateway", "--host", "0.0.0.0", "--port", "8080", "--data-dir"])
        .arg(folder.join("gateway"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(gateway.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let url = format!("http://{}:8080", gateway_host.ipv4());
    let open = ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/443/tls/ws"];
    let mut nodes = Vec::new();
    for name in ["main-1", "main-2", "main-3"] {
        let host = lab.public_host(name).unwrap();
        nodes.push(Running::start(name, host, &url, &folder, &open));
        eventually("the main is active", || {
            is(&nodes[nodes.len() - 1], "/node/state", "active")
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
        nodes.push(Running::start(name, host, &url, &folder, &[]));
    }
    for node in &nodes {
        eventually(&format!("{} is active", node.name), || {
            is(node, "/node/state", "active")
        });
        let role = if node.name.starts_with("main") {
            "main"
        } else {
            "home"
        };
        eventually(&format!("{} is a {role}", node.name), || is(node, "/role", role));
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
    gateway.kill().unwrap();
    gateway.wait().unwrap();
}

/// Whether the status document of a node says so.
fn is(node: &Running, pointer: &str, value: &str) -> bool {
    let status = node.status();
    status.is_some_and(|status| status.pointer(pointer).and_then(Value::as_str) == Some(value))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(90), "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    println!("{what} after {:.1?}", begun.elapsed());
}
