//! A child process with a group of its own: started, seen to end, and ended with everything that it has started.

use std::future::pending;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tracing::debug;

/// How long a process has to end after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// A running process. Its group is killed when this is dropped before it has ended.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Its own number, and that of its group.
    group: Pid,
    /// Told of every child of this program that ends.
    deaths: tokio::signal::unix::Signal,
    /// It was waited for: its number may be another's now.
    is_over: bool,
}

impl Process {
    /// Starts a command of the shell.
    pub(super) fn start(command: &str) -> io::Result<Self> {
        // Before there is a child whose end could be missed.
        let deaths = signal(SignalKind::child())?;
        let child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A keyboard's interrupt is for the node, which then ends the service; and a group can be ended as a whole.
            .process_group(0)
            .spawn()?;
        let group = child
            .id()
            .and_then(|id| Pid::from_raw(id.try_into().ok()?))
            .ok_or(io::ErrorKind::NotFound)?;
        debug!(pid = group.as_raw_pid(), command, "service started");
        Ok(Self {
            child,
            group,
            deaths,
            is_over: false,
        })
    }

    /// Its pipes, once.
    pub(super) fn take_pipes(&mut self) -> Option<(ChildStdin, ChildStdout, ChildStderr)> {
        let child = &mut self.child;
        Some((child.stdin.take()?, child.stdout.take()?, child.stderr.take()?))
    }

    /// Waits until it has ended; its number stays its own.
    pub(super) async fn ended(&mut self) {
        while !self.has_ended() {
            if self.deaths.recv().await.is_none() {
                // The runtime ends, and whoever waits with it.
                pending::<()>().await;
            }
        }
    }

    /// Ends it with all of its group that is still there, and says how it ended.
    pub(super) async fn end(&mut self) -> String {
        // As long as it was not waited for, its number is no other's.
        if !self.is_over && !self.has_ended() {
            let _ = kill_process_group(self.group, Signal::TERM);
            let _ = tokio::time::timeout(END_PATIENCE, self.ended()).await;
        }
        self.kill();
        // Nothing survives that signal.
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    fn kill(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }

    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.group), options), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The runtime takes note of the end of what was not waited for.
        self.kill();
    }
}
