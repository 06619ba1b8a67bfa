//! Relays as processes of their own on loopback: started, killed without warning, stopped for a while, and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::calls::Edge;
use crate::faults::Clocks;

pub(crate) const LAPWING: &str = env!("CARGO_BIN_EXE_lapwing");

/// Patience with one condition: what takes a second on an idle machine may take this on a busy one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Mains and homes. All are killed when it is dropped; what they wrote stays where a test has failed.
pub(crate) struct World {
    folder: Option<TempDir>,
    relays: BTreeMap<String, Relay>,
    /// Where their clocks can be set.
    clocks: Option<Clocks>,
}

/// A main or a home, running or not.
struct Relay {
    arguments: Vec<OsString>,
    /// How often it was started: each start has an output of its own.
    starts: u32,
    child: Option<Child>,
    /// What its first line says.
    said: Option<Said>,
}

#[derive(Clone, Debug)]
struct Said {
    url: String,
    peer_id: String,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            folder: Some(tempfile::tempdir().unwrap()),
            relays: BTreeMap::new(),
            clocks: None,
        }
    }

    /// Whoever is started from now on has a clock that can be set; `None` where that cannot be done here.
    pub(crate) fn with_clocks(&mut self) -> Option<Clocks> {
        self.clocks = Clocks::new(self.folder());
        self.clocks.clone()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    pub(crate) fn data_dir(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Starts a main at a port, which it keeps over restarts, as its identity.
    pub(crate) fn main(&mut self, name: &str, port: u16, peers: &[u16], more: &[&str]) {
        let mut arguments: Vec<OsString> = vec![
            "--server".into(),
            "--host=127.0.0.1".into(),
            format!("--port={port}").into(),
            format!("--listen=/ip4/127.0.0.1/udp/{port}/quic-v1").into(),
        ];
        arguments.extend(
            peers
                .iter()
                .map(|peer| format!("--peers=ws://127.0.0.1:{peer}/ws/peers").into()),
        );
        self.add(name, arguments, more);
    }

    /// Starts a home that dials the main at the first of these ports, and the others where that does not answer.
    pub(crate) fn home(&mut self, name: &str, mains: &[u16], more: &[&str]) {
        self.home_at(name, 0, mains, more);
    }

    /// The same at a port of its own, which it keeps over restarts.
    pub(crate) fn home_at(&mut self, name: &str, port: u16, mains: &[u16], more: &[&str]) {
        let mut arguments: Vec<OsString> = vec![
            format!("--port={port}").into(),
            format!("--listen=/ip4/127.0.0.1/udp/{port}/quic-v1").into(),
        ];
        let mut flags = std::iter::once("--connect").chain(std::iter::repeat("--fallback"));
        arguments.extend(mains.iter().map(|main| {
            let flag = flags.next().unwrap_or_default();
            format!("{flag}=ws://127.0.0.1:{main}/ws/federation").into()
        }));
        self.add(name, arguments, more);
    }

    fn add(&mut self, name: &str, mut arguments: Vec<OsString>, more: &[&str]) {
        arguments.push(format!("--node-id={name}").into());
        arguments.push("--data-dir".into());
        arguments.push(self.data_dir(name).into());
        arguments.extend(more.iter().map(|&text| OsString::from(text)));
        let relay = Relay {
            arguments,
            starts: 0,
            child: None,
            said: None,
        };
        assert!(
            self.relays.insert(name.to_owned(), relay).is_none(),
            "{name} is twice"
        );
        self.launch(name);
    }

    /// Starts what was killed.
    pub(crate) fn launch(&mut self, name: &str) {
        let folder = self.folder().to_owned();
        let relay = self.relays.get_mut(name).unwrap();
        assert!(relay.child.is_none(), "{name} runs");
        relay.starts += 1;
        relay.said = None;
        let file = |kind: &str| File::create(folder.join(format!("{name}-{}.{kind}", relay.starts))).unwrap();
        let mut command = Command::new(LAPWING);
        command
            .args(["relay", "--json", "--log-level=debug"])
            .args(&relay.arguments)
            .env("HOME", &folder)
            .env("XDG_RUNTIME_DIR", &folder)
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("log"));
        if let Some(clocks) = &self.clocks {
            clocks.give(name, &mut command);
        }
        relay.child = Some(command.spawn().unwrap());
    }

    /// Waits until all that run answer over HTTP.
    pub(crate) async fn up(&mut self) {
        let names: Vec<String> = self.relays.keys().cloned().collect();
        for name in names {
            if self.relays[&name].child.is_some() && self.relays[&name].said.is_none() {
                self.up_one(&name).await;
            }
        }
    }

    /// Waits until this one does.
    pub(crate) async fn up_one(&mut self, name: &str) {
        let out = self
            .folder()
            .join(format!("{name}-{}.out", self.relays[name].starts));
        let relay = self.relays.get_mut(name).unwrap();
        let said = eventually(&format!("{name} to say where it is"), async || {
            if let Some(status) = relay.child.as_mut().unwrap().try_wait().unwrap() {
                let log = fs::read_to_string(out.with_extension("log")).unwrap_or_default();
                panic!("{name} has ended with {status}: {log}");
            }
            let text = fs::read_to_string(&out).map_err(|error| error.to_string())?;
            let line = text.lines().next().filter(|_| text.ends_with('\n'));
            let line: Value =
                serde_json::from_str(line.unwrap_or_default()).map_err(|error| error.to_string())?;
            let member = |name: &str| {
                line[name]
                    .as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| line.to_string())
            };
            Ok(Said {
                url: member("url")?,
                peer_id: member("peer_id")?,
            })
        })
        .await;
        relay.said = Some(said);
    }

    pub(crate) fn edge(&self, name: &str) -> Edge {
        let said = self.relays[name].said.as_ref();
        let url = said.unwrap_or_else(|| panic!("{name} is not up")).url.clone();
        Edge { url }
    }

    pub(crate) fn peer(&self, name: &str) -> &str {
        &self.relays[name].said.as_ref().unwrap().peer_id
    }

    pub(crate) fn pid(&self, name: &str) -> Pid {
        Pid::from_child(self.relays[name].child.as_ref().unwrap())
    }

    /// Ends one without warning.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut child = self.relays.get_mut(name).unwrap().child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks one to end, and waits until it has.
    pub(crate) async fn stop(&mut self, name: &str) {
        kill_process(self.pid(name), Signal::TERM).unwrap();
        let mut child = self.relays.get_mut(name).unwrap().child.take().unwrap();
        let status = eventually(&format!("{name} to end"), async || {
            let status = child.try_wait().map_err(|error| error.to_string())?;
            status.ok_or_else(|| "it runs".to_owned())
        })
        .await;
        assert!(status.success(), "{name} has ended with {status}");
    }

    /// The nodes that offer a service as far as one relay or its main knows, each reachable.
    pub(crate) async fn offers(&self, at: &str, service: &str) -> Result<BTreeSet<String>, String> {
        let document = self.edge(at).get("/federation/services").await?;
        let rows = document["services"]
            .as_array()
            .ok_or_else(|| document.to_string())?;
        let rows = rows
            .iter()
            .filter(|row| row["name"] == service && row["is_healthy"] == true);
        Ok(rows
            .filter_map(|row| row["node_id"].as_str().map(str::to_owned))
            .collect())
    }

    /// Waits until exactly these offer a service, as one relay or its main sees it.
    pub(crate) async fn until_offered(&self, at: &str, service: &str, by: &[&str]) {
        let expected: BTreeSet<String> = by.iter().map(|name| self.peer(name).to_owned()).collect();
        eventually(
            &format!("{at} to know that {service} is offered by {by:?}"),
            async || {
                let offered = self.offers(at, service).await?;
                if offered == expected {
                    Ok(())
                } else {
                    Err(format!("{offered:?}"))
                }
            },
        )
        .await;
    }

    /// Runs a command of ours against one relay: its status, standard output and standard error.
    pub(crate) fn run(&self, at: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new(LAPWING)
            .args(arguments)
            .arg("--data-dir")
            .arg(self.data_dir(at))
            .env("HOME", self.folder())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// What one has written on standard error since its last start.
    pub(crate) fn log(&self, name: &str) -> String {
        let file = self
            .folder()
            .join(format!("{name}-{}.log", self.relays[name].starts));
        fs::read_to_string(file).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for relay in self.relays.values_mut() {
            if let Some(mut child) = relay.child.take() {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if let Some(folder) = self.folder.take().filter(|_| std::thread::panicking()) {
            println!("what the relays wrote is in {}", folder.keep().display());
        }
    }
}

/// A number of TCP and UDP that is free now, and that the system gives to nobody who does not ask for it.
pub(crate) fn free_port() -> u16 {
    /// Below those that the system hands out itself.
    const FIRST: u16 = 15_000;
    const COUNT: u16 = 17_000;
    // Other tests of this process begin where this one has ended; those of other processes somewhere else.
    static NEXT: LazyLock<Mutex<u16>> = LazyLock::new(|| Mutex::new(rand::random_range(0..COUNT)));
    let mut next = NEXT.lock().unwrap();
    loop {
        *next = (*next + 1) % COUNT;
        let address = ("127.0.0.1", FIRST + *next);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address.1;
        }
    }
}

/// Asks again and again until the answer is `Ok`; fails with the last `Err` after [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    within(PATIENCE, what, probe).await
}

/// The same with another patience, for what has a time of its own.
pub(crate) async fn within<T>(
    patience: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let begun = Instant::now();
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    loop {
        interval.tick().await;
        match probe().await {
            Ok(value) => return value,
            Err(last) => assert!(
                begun.elapsed() < patience,
                "waited {patience:?} in vain for {what}; last seen: {last}"
            ),
        }
    }
}
