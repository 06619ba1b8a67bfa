//! What the command line tells people of a running node: the real binary beside nodes on loopback.

use crate::support::{Cluster, wait_for};
use serde_json::Value;
use std::process::{Command, Output, Stdio};

#[tokio::test(flavor = "multi_thread")]
async fn status_and_peers_tell_how_every_member_is_reached_and_why_one_is_not() {
    let mut cluster = Cluster::of(3).await;
    cluster.formed(3, 3).await;
    wait_for("a connection with every member", async || {
        let shown = told(&cluster, 0, &["status"]).await;
        let all = shown.contains("connected, 2 of 2 other members connected, listens on")
            && shown.contains("node-1: direct, quic")
            && shown.contains("NAT       IPv4: ");
        if all { Ok(()) } else { Err(shown) }
    })
    .await;
    cluster.stop(2).await;
    wait_for("the one that has stopped to be missed", async || {
        let status = cluster.get(0, "/v1/status").await;
        let peers = told(&cluster, 0, &["peers"]).await;
        // Its last cell says why.
        let row = peers
            .lines()
            .find(|line| line.starts_with("node-2"))
            .map(str::to_owned);
        let missed = row
            .as_ref()
            .is_some_and(|row| row.contains("node-2  -  ") && !row.ends_with('-'));
        if status["network"]["state"] == "degraded" && missed {
            Ok(())
        } else {
            Err(format!("{}\n{peers}", status["network"]))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_tried_is_told_of_any_member_by_name_and_of_nobody_else() {
    let mut cluster = Cluster::of(1).await;
    cluster.formed(1, 1).await;
    let place = cluster.add(|config| config.name = "a/b é?".to_owned()).await;
    cluster.add(|_| ()).await;
    cluster.formed(3, 3).await;
    let shown = told(&cluster, 0, &["peers", "--tried", "a/b é?"]).await;
    assert!(
        shown.contains("succeeded after") || shown.contains("this node has not dialed a/b é? lately"),
        "{shown}"
    );
    // It has found its cluster by dialing.
    let tried: Value =
        serde_json::from_str(&told(&cluster, place, &["peers", "--tried", "node-0", "--json"]).await)
            .unwrap();
    let row = &tried["tried"][0];
    assert_eq!(
        (&row["outcome"], &row["why"]),
        (&"succeeded".into(), &Value::Null),
        "{tried}"
    );
    assert!(row["after_ms"].is_number(), "{tried}");
    assert_eq!(
        (&tried["name"], &tried["connected"]),
        (&"node-0".into(), &true.into()),
        "{tried}"
    );
    let stranger = lapwing_base::PeerId::random().to_string();
    for (asked, answer) in [
        (stranger.as_str(), "this node knows no peer"),
        ("node-0", "node-0 is this node itself"),
        ("nobody", "there is no member `nobody`"),
    ] {
        let output = ask(&cluster, 0, &["peers", "--tried", asked]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(answer), "{}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_looks_at_this_machine_from_the_mains_and_leaves_no_trace_there() {
    let cluster = Cluster::of(3).await;
    cluster.formed(3, 3).await;
    let folder = tempfile::tempdir().unwrap();
    let arguments = doctor(&cluster, folder.path().join("node").to_str().unwrap());
    let output = run(&arguments, &[]).await;
    let report: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert!(
        report["disk_append_ms"].is_number() && report["clock_skew_seconds"].is_number(),
        "{report}"
    );
    // What passes on loopback says nothing of the way out.
    assert_eq!(
        (&report["nat"]["udp"], &report["role"]),
        (&"unknown".into(), &"main".into()),
        "{report}"
    );
    let mains = report["mains"].as_array().unwrap();
    assert_eq!(
        mains.len(),
        3,
        "each is asked once, however many gateways name it: {report}"
    );
    for main in mains {
        assert_eq!(
            (&main["transport"], &main["path"]),
            (&"quic".into(), &"direct".into()),
            "{report}"
        );
        assert!(main["rtt_ms"].as_f64().is_some_and(|rtt| rtt > 0.0), "{report}");
    }
    wait_for("the stranger to be forgotten", async || {
        let status = cluster.get(0, "/v1/status").await;
        let peers = status["network"]["peers"].as_array().unwrap();
        match peers.iter().all(|peer| peer["member"] == true) {
            true => Ok(()),
            false => Err(status["network"]["peers"].to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_what_is_wrong_and_looks_at_the_rest() {
    let cluster = Cluster::of(1).await;
    cluster.formed(1, 1).await;
    let arguments = doctor(&cluster, "/proc/none/of/ours");
    let output = run(&arguments, &[("HTTPS_PROXY", "socks5://user:secret@proxy:1080")]).await;
    let shown = text(&output.stdout);
    let report: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    let finding = |topic: &str| {
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["topic"] == topic).unwrap();
        (
            found["verdict"].to_string(),
            format!("{} {}", found["found"], found["advice"]),
        )
    };
    for (topic, verdict, word) in [
        ("disk", "\"bad\"", "/proc"),
        ("proxy", "\"bad\"", "HTTPS_PROXY"),
        ("gateway", "\"good\"", "1 of them mains"),
        ("clock", "\"good\"", "gateway"),
    ] {
        let (found, said) = finding(topic);
        assert_eq!(found, verdict, "{report}");
        assert!(said.contains(word), "{said}");
    }
    assert!(!shown.contains("secret"), "{shown}");
    // The port of a node that runs is another thing that can be wrong.
    let taken = cluster.get(0, "/v1/status").await["network"]["listen"][0].clone();
    let mut arguments = doctor(&cluster, ".");
    let listen = arguments
        .iter()
        .position(|argument| argument == "--listen")
        .unwrap();
    arguments[listen + 1] = taken.as_str().unwrap().to_owned();
    let output = run(&arguments, &[]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("is in use by another process"),
        "{}",
        text(&output.stdout)
    );
}

/// Doctor's arguments on loopback; the gateway is named twice.
fn doctor(cluster: &Cluster, data_dir: &str) -> Vec<String> {
    let gateway = &cluster.gateway_url;
    [
        "doctor",
        "--json",
        "--gateway",
        gateway,
        "--gateway",
        gateway,
        "--listen",
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "--data-dir",
        data_dir,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What a command prints of a node.
async fn told(cluster: &Cluster, place: usize, arguments: &[&str]) -> String {
    let output = ask(cluster, place, arguments).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

async fn ask(cluster: &Cluster, place: usize, arguments: &[&str]) -> Output {
    let admin = cluster.nodes[place].as_ref().unwrap().admin_addr().to_string();
    let arguments = arguments.iter().copied().chain(["--admin", &admin]);
    run(&arguments.map(str::to_owned).collect::<Vec<_>>(), &[]).await
}

/// Runs the binary for a user who has nothing but these variables.
async fn run(arguments: &[String], variables: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapwing"));
    command
        .args(arguments)
        .env_clear()
        .env("HOME", home.path())
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
