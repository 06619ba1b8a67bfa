//! `lapwing demo` from outside: what it ends with, and that it leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[test]
fn a_demo_ends_with_one_object_of_exactly_the_promised_keys() {
    let home = tempfile::tempdir().unwrap();
    let report = home.path().join("report.html");
    let output = demo(home.path())
        .args(["--nodes", "4", "--rounds", "30", "--json", "--report"])
        .arg(&report)
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let last: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let keys: Vec<&str> = last.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "averaged_accuracy",
            "dense_bytes_per_node",
            "leader_changes",
            "local_accuracy",
            "nodes",
            "report",
            "rounds",
            "seconds",
            "sent_bytes_per_node",
        ]
    );
    assert_eq!(last["nodes"], 4);
    assert_eq!(last["rounds"], 30);
    assert!(last["averaged_accuracy"].as_f64().unwrap() > 0.8, "{last}");
    let (sent, dense) = (
        last["sent_bytes_per_node"].as_u64().unwrap(),
        last["dense_bytes_per_node"].as_u64().unwrap(),
    );
    assert!(sent > 0 && sent * 10 <= dense, "{last}");
    assert_eq!(last["report"], report.to_str().unwrap());
    assert!(
        fs::read_to_string(&report)
            .unwrap()
            .starts_with("<!doctype html>")
    );
    nothing_is_left(home.path());
}

#[test]
fn ctrl_c_ends_every_process_and_removes_every_file() {
    let home = tempfile::tempdir().unwrap();
    let mut child = begun(home.path());
    kill_process(pid(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_is_left(home.path());
}

#[test]
fn a_demo_that_is_killed_takes_its_processes_with_it() {
    let home = tempfile::tempdir().unwrap();
    let mut child = begun(home.path());
    child.kill().unwrap();
    child.wait().unwrap();
    // Each lock is free when its holder is dead, and not before; a node that lived on would hang the test.
    for entry in fs::read_dir(home.path().join("lapwing/nodes")).unwrap() {
        fs::File::open(entry.unwrap().path())
            .unwrap()
            .lock_shared()
            .unwrap();
    }
    assert_eq!(running_nodes(home.path()), 0);
}

/// A demo whose nodes have formed a cluster and train.
fn begun(home: &Path) -> Child {
    let mut child = demo(home)
        .args(["--nodes", "3", "--rounds", "100000", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let submitted = BufReader::new(child.stdout.as_mut().unwrap())
        .lines()
        .any(|line| line.unwrap().contains("job_submitted"));
    assert!(submitted);
    assert_eq!(running_nodes(home), 3);
    child
}

fn demo(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapwing"));
    command
        .env_clear()
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("XDG_RUNTIME_DIR", home)
        .stdin(Stdio::null())
        .current_dir(home)
        .arg("demo");
    command
}

/// Entries of nodes that hold their lock, which they do as long as they live.
fn running_nodes(home: &Path) -> usize {
    let Ok(entries) = fs::read_dir(home.join("lapwing/nodes")) else {
        return 0;
    };
    entries
        .filter_map(|entry| fs::File::open(entry.unwrap().path()).ok())
        .filter(|file| file.try_lock_shared().is_err())
        .count()
}

fn nothing_is_left(home: &Path) {
    assert_eq!(running_nodes(home), 0);
    let left: Vec<String> = fs::read_dir(home)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("lapwing-demo-"))
        .filter(|name| name != "lapwing-demo-report.html")
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}
