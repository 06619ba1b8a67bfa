//! What `lapwing doctor` says behind NATs of different kinds, and where UDP is blocked.
//!
//! Needs root and Linux, so that `cargo test` without it says that it did not run; run it with
//! `cargo test --test doctor_behind_nats -- --ignored --nocapture`.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]
#![expect(clippy::disallowed_methods, reason = "a test of real time")]

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lapwing_netlab::{Egress, Host, Lab, Nat};
use serde_json::Value;

const LAPWING: &str = env!("CARGO_BIN_EXE_lapwing");

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn doctor_tells_the_nat_the_role_and_that_udp_is_blocked() {
    let lab = Lab::builder().seed(12).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let gateway = lab.public_host("gateway").unwrap();
    let arguments = ["gateway", "--host", "0.0.0.0", "--port", "8080"];
    let _gateway = start(&gateway, &arguments, &folder.path().join("gateway"));
    let url = format!("http://{}:8080", gateway.ipv4());
    let mut mains = Vec::new();
    for name in ["main-1", "main-2", "main-3"] {
        let (host, data_dir) = (lab.public_host(name).unwrap(), folder.path().join(name));
        let open = ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/443/tls/ws"];
        let arguments = [
            "node",
            "--gateway",
            &url,
            "--name",
            name,
            "--listen",
            open[0],
            "--listen",
            open[1],
        ];
        mains.push((start(&host, &arguments, &data_dir), host.clone()));
        eventually("the main is active and knows that it is one", || {
            let output = host
                .command(LAPWING)
                .unwrap()
                .args(["status", "--json", "--data-dir"])
                .arg(&data_dir)
                .output();
            let status: Option<Value> = serde_json::from_slice(&output.unwrap().stdout).ok();
            status.is_some_and(|status| status["node"]["state"] == "active" && status["role"] == "main")
        });
    }
    let open = examine(&lab.public_host("open").unwrap(), &url, folder.path());
    assert_eq!(
        (&open["role"], &open["nat"]["mapping"]),
        (&"main".into(), &"none".into()),
        "{open}"
    );

    let router = lab.router("nat-symmetric", Nat::symmetric()).unwrap();
    let symmetric = examine(&router.host("symmetric").unwrap(), &url, folder.path());
    let nat = &symmetric["nat"];
    assert_eq!(
        (&symmetric["role"], &nat["udp"]),
        (&"home".into(), &"open".into()),
        "{symmetric}"
    );
    assert_eq!(
        (&nat["mapping"], &nat["port_preserving"]),
        (&"symmetric".into(), &false.into()),
        "{symmetric}"
    );

    let router = lab
        .router("nat-blocked", Nat::port_restricted().with_egress(Egress::Any))
        .unwrap();
    let host = router.host("blocked").unwrap();
    // The gateway does not listen on 443, so everything but UDP passes.
    router.restrict(Egress::NoUdp).unwrap();
    let blocked = examine(&host, &url, folder.path());
    let finding = |topic: &str| {
        let findings = blocked["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|finding| finding["topic"] == topic)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(
        (&blocked["nat"]["udp"], &finding("UDP")["verdict"]),
        (&"blocked".into(), &"bad".into()),
        "{blocked}"
    );
    assert_eq!(finding("NAT")["advice"], Value::Null, "{blocked}");
    assert_eq!(blocked["mains"][0]["transport"], "wss", "{blocked}");
}

/// What doctor finds on a host.
fn examine(host: &Host, url: &str, folder: &Path) -> Value {
    let begun = Instant::now();
    let mut command = host.command(LAPWING).unwrap();
    command
        .args(["doctor", "--json", "--gateway", url, "--data-dir"])
        .arg(folder);
    let output = command.output().unwrap();
    println!(
        "{} after {:.1?}: {}",
        host.name(),
        begun.elapsed(),
        String::from_utf8_lossy(&output.stdout)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn start(host: &Host, arguments: &[&str], data_dir: &Path) -> Running {
    let mut command = host.command(LAPWING).unwrap();
    command.args(arguments).arg("--data-dir").arg(data_dir);
    Running(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(90), "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    println!("{what} after {:.1?}", begun.elapsed());
}
