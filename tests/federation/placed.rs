//! Relays on hosts of a laboratory of network namespaces, each on one of its own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use lapwing_netlab::Host;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::calls::{Done, Edge};
use crate::world::{LAPWING, eventually};

/// A relay on a host of its own.
pub(crate) struct Placed {
    pub(crate) name: String,
    pub(crate) host: Host,
    data_dir: PathBuf,
    child: Child,
}

/// An empty folder for what the relays of a test write, which stays until its next run.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // There is none at the first run.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Mains on public hosts, each of which names all others.
pub(crate) fn mains(hosts: &[Host], folder: &Path) -> Vec<Placed> {
    let start = |host: &Host| {
        let others = hosts.iter().filter(|other| other.name() != host.name());
        let mut arguments: Vec<String> = others
            .map(|other| format!("--peers=ws://{}:8080", other.ipv4()))
            .collect();
        arguments.extend(["--server", "--listen=/ip4/0.0.0.0/udp/8080/quic-v1"].map(str::to_owned));
        Placed::start(host.name(), host.clone(), folder, &arguments)
    };
    hosts.iter().map(start).collect()
}

impl Placed {
    pub(crate) fn start(name: &str, host: Host, folder: &Path, arguments: &[String]) -> Self {
        let data_dir = folder.join(name);
        let log = File::create(folder.join(format!("{name}.log"))).unwrap();
        let mut command = host.command(LAPWING).unwrap();
        command
            .args(["relay", "--log-level=debug", "--node-id", name, "--data-dir"])
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

    /// A home of a main, on a host that is called as it is.
    pub(crate) fn home(host: &Host, main: &Host, folder: &Path, more: &[String]) -> Self {
        let mut arguments = vec![format!("--connect=ws://{}:8080", main.ipv4())];
        arguments.extend_from_slice(more);
        Self::start(host.name(), host.clone(), folder, &arguments)
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

    /// Does on its host what asks its edge.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        work: impl AsyncFnOnce(Edge) -> T + Send + 'static,
    ) -> T {
        let host = self.host.clone();
        let edge = Edge {
            url: "http://127.0.0.1:8080".to_owned(),
        };
        let asking = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(work(edge))
        };
        let asked = tokio::task::spawn_blocking(move || host.enter(asking).unwrap());
        asked.await.unwrap()
    }

    /// Calls any instance of a service with all of these numbers, so many at a time.
    pub(crate) async fn numbers(
        &self,
        service: &str,
        numbers: std::ops::Range<u64>,
        at_a_time: usize,
        more: Value,
    ) -> Vec<Done> {
        let service = service.to_owned();
        self.ask(async move |edge| edge.numbers(&service, numbers, at_a_time, more).await)
            .await
    }

    /// The same with one.
    pub(crate) async fn number(&self, service: &str, number: u64, more: Value) -> Done {
        let service = service.to_owned();
        self.ask(async move |edge| edge.number(&service, number, &more).await)
            .await
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, String> {
        let path = path.to_owned();
        self.ask(async move |edge| edge.get(&path).await).await
    }

    /// Waits until it or its main knows exactly these to offer a service.
    pub(crate) async fn until_offered(&self, service: &str, by: &[&str]) {
        let expected: BTreeSet<&str> = by.iter().copied().collect();
        let what = format!("{} to know that {service} is offered by {by:?}", self.name);
        eventually(&what, async || {
            let document = self.get("/federation/services").await?;
            let rows = document["services"]
                .as_array()
                .ok_or_else(|| document.to_string())?;
            let offered: BTreeSet<&str> = rows
                .iter()
                .filter(|row| row["name"] == service && row["is_healthy"] == true)
                .filter_map(|row| row["node_address"].as_str()?.split('.').next())
                .collect();
            if offered == expected {
                Ok(())
            } else {
                Err(format!("{offered:?}"))
            }
        })
        .await;
    }

    /// Waits until a call is answered.
    pub(crate) async fn until_answered(&self, service: &str, number: u64) {
        let what = format!("{} to be answered by {service}", self.name);
        eventually(&what, async || {
            let done = self.number(service, number, json!({ "timeout": 5 })).await;
            if done.ended.is_ok() {
                Ok(())
            } else {
                Err(format!("{:?}", done.ended))
            }
        })
        .await;
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let name = self.name.clone();
        eventually(&format!("{name} to end"), async || {
            let status = self.child.try_wait().map_err(|error| error.to_string())?;
            status.ok_or_else(|| "it runs".to_owned())
        })
        .await;
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
