//! The demo's child processes: started from this very binary, watched, killed, and every one waited for.
//!
//! Children stand in process groups of their own, so that Ctrl-C reaches only the demo, which then ends them in
//! order. Should the demo itself be killed, they end with it (see [`EXIT_WITH_PARENT`]).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::cli::folder::Folder;
use crate::cli::interrupt::EXIT_WITH_PARENT;

/// A gateway and some nodes, each a process with a directory and a log below one folder.
#[derive(Debug)]
pub(crate) struct Processes {
    binary: PathBuf,
    folder: Folder,
    gateway: Option<Process>,
    nodes: Vec<Process>,
}

#[derive(Debug)]
struct Process {
    name: String,
    dir: PathBuf,
    log: PathBuf,
    arguments: Vec<OsString>,
    /// `None` between the death of a process that was killed and its restart, and once it was waited for.
    child: Option<Child>,
}

/// What can go wrong with child processes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// No folder could be made for them.
    #[error("cannot make a folder in {}", parent.display())]
    Folder {
        /// Where it was to be.
        parent: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// One could not be started.
    #[error("cannot start {name}")]
    Start {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// One ended though nobody asked it to.
    #[error("{name} ended by itself ({status}); its log ends with\n{tail}")]
    Died {
        /// Which.
        name: String,
        /// How.
        status: ExitStatus,
        /// The last lines of its log, indented.
        tail: String,
    },
    /// One could not be killed or waited for.
    #[error("cannot end {name}")]
    End {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// How long a process may take to end in order, before it is killed: a node hands over and flushes in well under
/// a second.
const GRACE: Duration = Duration::from_secs(3);

impl Processes {
    /// Makes the folder; starts nothing. `keep` leaves the folder there at the end.
    ///
    /// # Errors
    ///
    /// When this program's own file cannot be found, or no folder made.
    pub(crate) fn new(keep: bool) -> Result<Self, ProcessError> {
        let binary = std::env::current_exe().map_err(|source| ProcessError::Start {
            name: "lapwing".to_owned(),
            source,
        })?;
        let parent = std::env::temp_dir();
        let folder = Folder::new(&parent, "lapwing-demo", keep)
            .map_err(|source| ProcessError::Folder { parent, source })?;
        Ok(Self {
            binary,
            folder,
            gateway: None,
            nodes: Vec::new(),
        })
    }

    /// The folder below which everything is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the gateway on a free port of loopback.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(crate) fn start_gateway(&mut self) -> Result<(), ProcessError> {
        let arguments = ["gateway", "--host", "127.0.0.1", "--port", "0"];
        let mut gateway = self.process("gateway", arguments.map(OsString::from).to_vec());
        gateway.start(&self.binary)?;
        self.gateway = Some(gateway);
        Ok(())
    }

    /// The gateway's URL, once it has one.
    pub(crate) fn gateway_url(&self) -> Option<String> {
        let file = self.gateway.as_ref()?.dir.join("gateway.addr");
        let text = fs::read_to_string(file).ok()?;
        Some(text.trim().to_owned())
    }

    /// Starts a node on free ports of loopback.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(crate) fn start_node(&mut self, name: &str, gateway: &str, data: &str) -> Result<(), ProcessError> {
        let arguments = [
            "node",
            "--name",
            name,
            "--gateway",
            gateway,
            "--data",
            data,
            "--listen",
            "/ip4/127.0.0.1/udp/0/quic-v1",
            "--admin",
            "127.0.0.1:0",
        ];
        let mut node = self.process(name, arguments.map(OsString::from).to_vec());
        node.start(&self.binary)?;
        self.nodes.push(node);
        Ok(())
    }

    /// How many nodes were started.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The data directory of a node.
    pub(crate) fn node_dir(&self, index: usize) -> &Path {
        &self.nodes[index].dir
    }

    /// Kills a node as a power failure would, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When the system does not let us.
    pub(crate) async fn kill_node(&mut self, index: usize) -> Result<(), ProcessError> {
        let node = &mut self.nodes[index];
        if let Some(mut child) = node.child.take() {
            child.kill().await.map_err(|source| ProcessError::End {
                name: node.name.clone(),
                source,
            })?;
        }
        // Its address is of no use any more, and the next one is to be told from it.
        let _not_written = fs::remove_file(node.dir.join("admin.addr"));
        Ok(())
    }

    /// Starts a killed node again, on its own directory.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub(crate) fn restart_node(&mut self, index: usize) -> Result<(), ProcessError> {
        self.nodes[index].start(&self.binary)
    }

    /// Checks that everything that should run does.
    ///
    /// # Errors
    ///
    /// When a process has ended by itself.
    pub(crate) fn check(&mut self) -> Result<(), ProcessError> {
        for process in self.gateway.iter_mut().chain(&mut self.nodes) {
            let Some(child) = &mut process.child else { continue };
            let ended = child.try_wait().map_err(|source| ProcessError::End {
                name: process.name.clone(),
                source,
            })?;
            if let Some(status) = ended {
                process.child = None;
                return Err(ProcessError::Died {
                    name: process.name.clone(),
                    status,
                    tail: tail(&process.log),
                });
            }
        }
        Ok(())
    }

    /// The last lines of a node's log, indented.
    pub(crate) fn node_log_tail(&self, index: usize) -> String {
        tail(&self.nodes[index].log)
    }

    /// Ends every process, waits for each, and removes the folder unless it is to be kept.
    ///
    /// All are asked at once; those that have not ended after [`GRACE`] are killed.
    pub(crate) async fn stop(mut self) {
        // The gateway last: nodes say goodbye to it.
        let mut children: Vec<(String, Child)> = Vec::new();
        for process in self.nodes.iter_mut().chain(&mut self.gateway) {
            if let Some(child) = process.child.take() {
                terminate(&process.name, &child);
                children.push((process.name.clone(), child));
            }
        }
        let deadline = tokio::time::Instant::now() + GRACE;
        for (name, child) in &mut children {
            if tokio::time::timeout_at(deadline, child.wait()).await.is_ok() {
                continue;
            }
            tracing::warn!(process = %name, "killed, as it did not end when asked to");
            if let Err(error) = child.kill().await {
                tracing::warn!(process = %name, %error, "could not be killed");
            }
        }
    }

    fn process(&self, name: &str, mut arguments: Vec<OsString>) -> Process {
        let dir = self.folder.path().join(name);
        arguments.push("--data-dir".into());
        arguments.push(dir.clone().into());
        Process {
            name: name.to_owned(),
            log: self.folder.path().join(format!("{name}.log")),
            dir,
            arguments,
            child: None,
        }
    }
}

impl Process {
    fn start(&mut self, binary: &Path) -> Result<(), ProcessError> {
        let failed = |source| ProcessError::Start {
            name: self.name.clone(),
            source,
        };
        // Appended to, since a node that was killed goes on in the same log.
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(failed)?;
        let mut command = Command::new(binary);
        command
            .args(&self.arguments)
            .args(["--log-level", "info"])
            .env(EXIT_WITH_PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        // What a person has set for their own nodes is not meant for these.
        for (variable, _) in std::env::vars_os() {
            let ours = variable.as_encoded_bytes();
            let settings = ours.starts_with(b"LAPWING_") || ours.starts_with(b"GATEWAY_");
            if settings && ours != EXIT_WITH_PARENT.as_bytes() {
                command.env_remove(&variable);
            }
        }
        self.child = Some(command.spawn().map_err(failed)?);
        Ok(())
    }
}

fn terminate(name: &str, child: &Child) {
    // `id` is `None` once the process was waited for: then its number may be another's by now.
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        tracing::debug!(process = %name, %error, "could not be asked to end");
    }
}

/// The last lines of a log, indented, for a person to see why a process ended.
fn tail(log: &Path) -> String {
    const BYTES_MAX: u64 = 8 * 1024;
    const LINES_MAX: usize = 12;
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "    (nothing)".to_owned();
    }
    lines[lines.len().saturating_sub(LINES_MAX)..]
        .iter()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(tail(&log), "    (nothing)");
        let lines: Vec<String> = (0..5000).map(|number| format!("line {number}")).collect();
        fs::write(&log, lines.join("\n")).unwrap();
        let tail = tail(&log);
        assert_eq!(tail.lines().count(), 12);
        assert!(tail.ends_with("    line 4999"));
    }

    #[tokio::test]
    async fn a_process_that_ends_by_itself_is_reported_with_its_log_and_the_folder_goes_at_the_end() {
        let mut processes = Processes::new(false).unwrap();
        // Any program that ends at once with a message does.
        processes.binary = PathBuf::from("/bin/sh");
        let folder = processes.folder().to_owned();
        let mut process = processes.process("shell", Vec::new());
        process.arguments = ["-c", "echo it broke; exit 7"].map(OsString::from).to_vec();
        process.start(&processes.binary).unwrap();
        process.child.as_mut().unwrap().wait().await.unwrap();
        processes.nodes.push(process);
        let error = processes.check().unwrap_err();
        assert!(
            error
                .to_string()
                .contains("shell ended by itself (exit status: 7)"),
            "{error}"
        );
        assert!(error.to_string().contains("    it broke"), "{error}");
        processes.check().unwrap();
        processes.stop().await;
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn every_process_is_ended_and_waited_for() {
        let mut processes = Processes::new(false).unwrap();
        processes.binary = PathBuf::from("/bin/sh");
        let mut process = processes.process("shell", Vec::new());
        process.arguments = ["-c", "exec sleep 600"].map(OsString::from).to_vec();
        process.start(&processes.binary).unwrap();
        let id = process.child.as_ref().unwrap().id().unwrap();
        processes.nodes.push(process);
        processes.stop().await;
        let pid = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
