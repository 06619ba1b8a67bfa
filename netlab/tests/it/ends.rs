//! Nothing of a lab is left when it ends, however it ends; and it is there soon.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::panic;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lapwing_netlab::{Lab, LabError, Nat, Shape};

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_lab_with_two_routers_and_three_public_hosts_is_there_in_less_than_two_seconds() {
    let begun = Instant::now();
    let lab = Lab::new().unwrap();
    for name in ["relay", "first", "second"] {
        lab.public_host(name).unwrap();
    }
    for name in ["a", "b"] {
        lab.router(&format!("nat-{name}"), Nat::default())
            .unwrap()
            .host(name)
            .unwrap();
    }
    println!("there in {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn nothing_is_left_when_a_lab_is_dropped() {
    let lab = Lab::new().unwrap();
    let space = lay_out(&lab);
    assert!(!left(&space).is_empty());
    drop(lab);
    assert_eq!(left(&space), Vec::<String>::new());
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn nothing_is_left_after_a_panic() {
    let mut space = String::new();
    let panicked = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let lab = Lab::new().unwrap();
        space = lay_out(&lab);
        panic!("as a test that fails");
    }));
    assert!(panicked.is_err());
    assert_eq!(left(&space), Vec::<String>::new());
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn nothing_is_left_after_the_owner_was_killed() {
    let (mut owner, space) = owner();
    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !left(&space).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", left(&space));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn the_next_lab_sweeps_when_the_warden_was_killed_too() {
    let (mut owner, space) = owner();
    for warden in wardens_of(owner.id()) {
        assert!(
            Command::new("kill")
                .args(["-9", &warden])
                .status()
                .unwrap()
                .success()
        );
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(!left(&space).is_empty());
    let _lab = Lab::new().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !left(&space).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", left(&space));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_lab_leaves_the_processes_of_another_alone() {
    let first = Lab::new().unwrap();
    let space = lay_out(&first);
    let second = Lab::new().unwrap();
    lay_out(&second);
    drop(second);
    assert!(!left(&space).is_empty());
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_handle_that_outlives_its_lab_says_that_it_has_ended() {
    let lab = Lab::new().unwrap();
    let home = lab.router("home", Nat::default()).unwrap();
    let host = home.host("host").unwrap();
    drop(lab);
    assert!(matches!(host.enter(|| ()), Err(LabError::Ended)));
    assert!(matches!(host.command("true"), Err(LabError::Ended)));
    assert!(matches!(home.host("late"), Err(LabError::Ended)));
    assert!(matches!(home.reboot(), Err(LabError::Ended)));
}

/// A host behind a router, a shaped link, and a process that spawned another; the name of the host's namespace.
#[expect(
    clippy::zombie_processes,
    reason = "that the lab ends it, and not we, is what is tested"
)]
fn lay_out(lab: &Lab) -> String {
    let host = lab.router("home", Nat::default()).unwrap().host("host").unwrap();
    host.link()
        .shape(Shape::delayed(Duration::from_millis(1)))
        .unwrap();
    let script = "sleep 1000 & echo here; wait";
    let mut child = host
        .command("sh")
        .unwrap()
        .args(["-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let space = host
        .enter(|| fs::read_link("/proc/thread-self/ns/net"))
        .unwrap()
        .unwrap();
    space.to_str().unwrap().to_owned()
}

/// The processes that are in a namespace.
fn left(space: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let inside = processes.filter(|process| {
        fs::read_link(process.join("ns/net")).is_ok_and(|link| link.to_str() == Some(space))
    });
    inside.map(|process| process.display().to_string()).collect()
}

/// Another process with a lab, and the namespace that a process of the lab's is in.
fn owner() -> (Child, String) {
    let plan = env::temp_dir().join(format!("netlab-{}.toml", std::process::id()));
    fs::write(
        &plan,
        "[[router]]\nname = 'home'\n[[host]]\nname = 'host'\nbehind = 'home'\nlink.both.delay = '1ms'\n",
    )
    .unwrap();
    let script = "readlink /proc/self/ns/net; sleep 1000 & wait";
    let mut owner = Command::new(env!("CARGO_BIN_EXE_netlab"))
        .arg("run")
        .arg(&plan)
        .args(["--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut space = String::new();
    BufReader::new(owner.stdout.take().unwrap())
        .read_line(&mut space)
        .unwrap();
    (owner, space.trim().to_owned())
}

fn wardens_of(owner: u32) -> Vec<String> {
    let children = Command::new("sh")
        .args([
            "-c",
            &format!("grep -l '^PPid:.{owner}$' /proc/[0-9]*/status | cut -d / -f 3"),
        ])
        .output()
        .unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    let is_warden = |pid: &&str| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"netlab-warden\0"))
    };
    children.lines().filter(is_warden).map(str::to_owned).collect()
}
