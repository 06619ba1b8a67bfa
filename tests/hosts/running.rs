//! Programs on hosts of the laboratory, and waiting for what they should come to.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lapwing_netlab::{Host, Lab};
use serde_json::Value;

const LAPWING: &str = env!("CARGO_BIN_EXE_lapwing");

/// A node and what it runs on.
pub(crate) struct Running {
    pub(crate) name: &'static str,
    pub(crate) host: Host,
    data_dir: PathBuf,
    child: Child,
}

impl Running {
    pub(crate) fn start(
        name: &'static str,
        host: Host,
        gateway: &str,
        folder: &Path,
        listen: &[&str],
    ) -> Self {
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
    pub(crate) fn ask(&self, arguments: &[&str]) -> Option<Value> {
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

    pub(crate) fn status(&self) -> Option<Value> {
        self.ask(&["status"])
    }

    /// Whether its status document says so.
    pub(crate) fn is(&self, pointer: &str, value: &str) -> bool {
        let status = self.status();
        status.is_some_and(|status| status.pointer(pointer).and_then(Value::as_str) == Some(value))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gateway on a public host.
pub(crate) struct Gateway {
    pub(crate) url: String,
    child: Child,
}

impl Gateway {
    pub(crate) fn start(lab: &Lab, folder: &Path) -> Self {
        let host = lab.public_host("gateway").unwrap();
        let mut child = host
            .command(LAPWING)
            .unwrap()
            .args(["gateway", "--host", "0.0.0.0", "--port", "8080", "--data-dir"])
            .arg(folder.join("gateway"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = format!("http://{}:8080", host.ipv4());
        Self { url, child }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An empty folder, which stays with every node's log until the next run.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(90), "not in time: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    println!("{what} after {:.1?}", begun.elapsed());
}
