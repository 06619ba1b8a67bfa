//! Processes that a measurement needs: they end when this one does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::cli::failure::Failure;
use crate::cli::interrupt::EXIT_WITH_PARENT;

/// A process; it is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    log: PathBuf,
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts a program, with what it logs in the folder.
    ///
    /// # Errors
    /// `NotFound` where there is no such program.
    pub(super) fn start<A: AsRef<OsStr>>(
        name: &'static str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
    ) -> io::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env(EXIT_WITH_PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .kill_on_drop(true);
        // What a person has set for their own nodes is not meant for these.
        for (variable, _) in std::env::vars_os() {
            let is_setting = variable.as_encoded_bytes().starts_with(b"LAPWING_");
            if is_setting && variable != EXIT_WITH_PARENT {
                command.env_remove(&variable);
            }
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self {
            name,
            log,
            child,
            stdout,
        })
    }

    /// The first line that it prints.
    ///
    /// # Errors
    /// Where it has ended without one; the failure shows what it has logged.
    pub(super) async fn first_line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if let Some(stdout) = &mut self.stdout {
            let read = stdout.read_line(&mut line).await;
            read.map_err(|error| Failure::new(format!("read what {} prints", self.name), error))?;
        }
        if line.is_empty() {
            return Err(self.failure("it has ended"));
        }
        Ok(line)
    }

    /// Ends it as power that fails does.
    ///
    /// # Errors
    /// When it cannot be.
    pub(super) async fn kill(&mut self) -> Result<(), Failure> {
        let killed = self.child.kill().await;
        killed.map_err(|error| Failure::new(format!("kill {}", self.name), error))
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// That it does not do what it should, with the end of what it has logged.
    pub(super) fn failure(&self, why: &str) -> Failure {
        const LOG_SHOWN: usize = 2000;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.floor_char_boundary(log.len().saturating_sub(LOG_SHOWN));
        Failure::new(
            format!("start {}", self.name),
            format!("{why}; it has logged:\n{}", &log[from..]),
        )
    }
}
