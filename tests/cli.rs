//! What the command line does with what people type, as far as no cluster is needed for it: exit status, standard
//! output and standard error of the real binary.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

#[test]
fn the_version_goes_to_standard_output() {
    let output = lapwing(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stdout),
        format!("lapwing {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_ends_with_status_2_and_says_what_was_meant() {
    let output = lapwing(&["statsu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("status"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(lapwing(&["demo", "--nodes", "1"]).status.code(), Some(2));
    assert_eq!(lapwing(&["demo", "--nodes", "65"]).status.code(), Some(2));
    assert_eq!(lapwing(&["demo", "--rounds", "0"]).status.code(), Some(2));
    assert_eq!(
        lapwing(&["demo", "--data", "digits#partition=iid,part=1/8"])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(lapwing(&["demo", "--data", "zebra"]).status.code(), Some(2));
}

#[test]
fn without_a_node_a_client_command_says_how_to_get_one() {
    let output = lapwing(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(
        text(&output.stderr),
        "lapwing: failed to find the node: no node of this user runs here\n  \
         start one with `lapwing node`, or name one with --admin ADDR or --data-dir DIR; a relay is found where it has a \
         --data-dir\n"
    );
}

#[test]
fn a_node_that_does_not_answer_is_named_with_its_address() {
    // Bound and dropped: nobody listens on that port now.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let output = lapwing(&["cluster", "members", "--admin", &format!("127.0.0.1:{port}")]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    let expected = format!("lapwing: failed to list the members: no node answers at 127.0.0.1:{port}: ");
    assert!(stderr.starts_with(&expected), "{stderr}");
    assert!(!stderr.contains("http://") && !stderr.contains('{'), "{stderr}");
}

#[test]
fn what_is_no_node_is_told_from_one_that_refuses() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _size = stream.read(&mut request).unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
    });
    let output = lapwing(&["status", "--admin", &address]);
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("is no node of ours"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_data_directory_without_a_node_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = lapwing(&["peers", "--data-dir", path(dir.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("none runs on"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn an_unknown_key_in_the_settings_names_the_nearest_known_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    fs::write(&file, "gatewey = \"http://127.0.0.1:1\"\n").unwrap();
    let output = lapwing(&["node", "--config", path(&file), "--data-dir", path(dir.path())]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("unknown key `gatewey`; did you mean `gateway`?"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_variable_stands_for_a_flag_and_a_flag_wins_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let variable = command(dir.path())
        .arg("status")
        .env("LAPWING_ADMIN", "not an address")
        .output()
        .unwrap();
    assert!(
        text(&variable.stderr).contains("`not an address` is no admin address"),
        "{}",
        text(&variable.stderr)
    );
    let flag = command(dir.path())
        .args(["status", "--admin", "neither is this"])
        .env("LAPWING_ADMIN", "not an address")
        .output()
        .unwrap();
    assert!(
        text(&flag.stderr).contains("`neither is this` is no admin address"),
        "{}",
        text(&flag.stderr)
    );
}

#[test]
fn a_job_file_that_is_not_there_is_named() {
    let output = lapwing(&["job", "submit", "/nonexistent/job.toml", "--admin", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).starts_with("lapwing: failed to read the job file /nonexistent/job.toml: "),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_mistyped_log_level_is_wrong_usage() {
    let output = lapwing(&["status", "--log-level", "debugg"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("did you mean `debug`?"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = command(dir.path())
        .args(["bench", "train", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_process_that_is_to_end_with_its_parent_does_not_start_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = command(dir.path())
        .args(["gateway", "--port", "0", "--data-dir", path(dir.path())])
        // The parent is this test, and process 1 is not.
        .env("LAPWING_EXIT_WITH_PARENT", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("is gone"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn flags_of_a_relay_that_contradict_each_other_are_wrong_usage_and_both_named() {
    for (arguments, named) in [
        (
            &["--server", "--node-type=home"][..],
            ["--server", "--node-type home"],
        ),
        (
            &["--server", "--connect=ws://127.0.0.1:1"],
            ["--server", "--connect"],
        ),
        (
            &["--connect=ws://127.0.0.1:1", "--peers=ws://127.0.0.1:2"],
            ["--peers", "--connect"],
        ),
        (
            &[
                "--node-type=home",
                "--connect=ws://127.0.0.1:1",
                "--peers=ws://127.0.0.1:2",
            ],
            ["--peers", "--connect"],
        ),
        (&["--node-type=home"], ["--node-type home", "--connect"]),
    ] {
        let output = lapwing(&[&["relay", "--port=0"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(
            named.iter().all(|flag| stderr.contains(flag)),
            "{arguments:?}: {stderr}"
        );
    }
}

#[test]
fn a_relay_says_in_its_log_as_what_it_starts() {
    // Nobody has to answer a home for that.
    for (arguments, said) in [
        (
            &["--server", "--host=127.0.0.1"][..],
            "Starting as Main Relay with auto-generated node ID",
        ),
        (
            &["--connect=ws://127.0.0.1:1"],
            "Starting as Home Relay with auto-generated node ID",
        ),
        (
            &["--connect=ws://127.0.0.1:1", "--node-id=alice"],
            "Starting as Home Relay with node ID alice",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let _relay = Running(
            command(dir.path())
                .args(["relay", "--port=0", "--listen=/ip4/127.0.0.1/udp/0/quic-v1"])
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(File::create(&file).unwrap())
                .spawn()
                .unwrap(),
        );
        let line = eventually(|| {
            let log = fs::read_to_string(&file).unwrap();
            let mut whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let line = whole.find(|line| line.contains("Starting as"));
            line.map(str::to_owned).ok_or(log)
        });
        assert!(line.contains(said), "{arguments:?}: {line}");
        let kind = said.split(' ').nth(2).unwrap().to_lowercase();
        assert!(line.contains(&format!("node_type={kind}")), "{line}");
    }
}

/// A process that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks again and again until the answer is `Ok`; fails with the last `Err` after a minute.
fn eventually<T>(probe: impl Fn() -> Result<T, String>) -> T {
    const INTERVAL: Duration = Duration::from_millis(20);
    const TIMES: usize = 3000;
    let mut last = String::new();
    for _ in 0..TIMES {
        match probe() {
            Ok(value) => return value,
            Err(error) => last = error,
        }
        std::thread::sleep(INTERVAL);
    }
    panic!("waited in vain; last seen: {last}")
}

/// Runs the binary for a user who has nothing yet.
fn lapwing(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    command(home.path()).args(arguments).output().unwrap()
}

fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapwing"));
    command
        .env_clear()
        .env("HOME", home)
        .env("TMPDIR", home)
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
