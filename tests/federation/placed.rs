//! Relays on hosts of a laboratory of network namespaces, each on one of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use lapwing_netlab::Host;
use serde_json::Value;

use crate::world::LAPWING;

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
