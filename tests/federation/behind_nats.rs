//! Homes behind NATs of every kind that call each other's services, in a laboratory of network namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use lapwing_netlab::{Egress, Host, Lab, Nat, Shape};
use serde_json::Value;

use crate::world::{LAPWING, eventually};

/// A relay on a host of its own.
pub(crate) struct Placed {
    pub(crate) name: String,
    host: Host,
    data_dir: PathBuf,
    child: Child,
}

impl Placed {
    pub(crate) fn start(name: &str, host: Host, folder: &Path, arguments: &[String]) -> Self {
        let data_dir = folder.join(name);
        let log = File::create(folder.join(format!("{name}.log"))).unwrap();
        let mut command = host.command(LAPWING).unwrap();
        command
            .args(["relay", "--node-id", name, "--data-dir"])
            .arg(&data_dir);
        command.arg(format!("--service={name}=echo:"));
        command.args(arguments);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self {
            name: name.to_owned(),
            host,
            data_dir,
            child,
        }
    }

    /// Calls another's service, and says by how many links the answer has come.
    pub(crate) fn call(&self, service: &str) -> Result<u64, String> {
        let output = self
            .host
            .command(LAPWING)
            .unwrap()
            .args([
                "call",
                "-",
                service,
                "echo",
                "[\"hello\"]",
                "--trace",
                "--json",
                "--timeout=10",
            ])
            .arg("--data-dir")
            .arg(&self.data_dir)
            .output()
            .unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
        if answer["result"] == "hello" {
            Ok(answer["trace"]["hops"].as_u64().unwrap())
        } else {
            Err(answer.to_string())
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
#[ignore = "needs root: lays out network namespaces"]
async fn homes_behind_nats_of_every_kind_call_each_other_by_three_mains() {
    let lab = Lab::builder().seed(31).start().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("federation-behind-nats");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
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
