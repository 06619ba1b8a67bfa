//! Sees to it that nothing outlives a lab: kills what runs in its namespaces when it ends, and also when its owner
//! was killed and could not.
//!
//! Namespaces, devices and rules have no names on disk, so that they end with their last process. What is left are
//! processes. There are three answers, each for when the one before it could not be given: the lab kills them when
//! it is dropped; a process of its own reads from a pipe that breaks with the owner, and then kills them; and each
//! lab, when it starts, sweeps after dead owners by the mark that every process of a lab has in its environment.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::error::LabError;

/// The variable that marks the processes of a lab.
pub(crate) const MARK: &str = "NETLAB";

/// Reads the numbers of namespaces until the pipe breaks, then kills what is in them, again until nothing is.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
set --
while read -r space; do
    [ $# -eq 0 ] || set -- "$@" -o
    set -- "$@" -lname "net:\[$space\]"
done
[ $# -gt 0 ] || exit 0
round=0
while [ $round -lt 100 ]; do
    left=$(find /proc/[0-9]*/ns/net -maxdepth 0 \( "$@" \) 2>/dev/null | cut -d / -f 3)
    [ -n "$left" ] || exit 0
    kill -9 $left 2>/dev/null
    round=$((round + 1))
done
"#;

/// The process that outlives the owner of a lab just long enough.
#[derive(Debug)]
pub(crate) struct Warden {
    process: Child,
    /// `None` once it is told that all is well.
    pipe: Option<ChildStdin>,
    spaces: Vec<u64>,
    mark: String,
}

impl Warden {
    pub(crate) fn start() -> Result<Self, LabError> {
        /// Labs of one process have different marks.
        static LABS: AtomicU32 = AtomicU32::new(0);

        let me = std::process::id();
        let started = started_at(me).ok_or_else(|| LabError::System {
            doing: "read when this process started",
            source: io::ErrorKind::InvalidData.into(),
        })?;
        let mark = format!(
            "{}:{me}:{started}:{}",
            realm(),
            LABS.fetch_add(1, Ordering::Relaxed)
        );
        let mut process = Command::new("sh")
            .args(["-c", SCRIPT, "netlab-warden"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            // What ends the owner's group must not end the one who clears up after it.
            .process_group(0)
            .spawn()
            .map_err(LabError::system("start the warden of a lab"))?;
        let pipe = process.stdin.take();
        Ok(Self {
            process,
            pipe,
            spaces: Vec::new(),
            mark,
        })
    }

    /// What marks the processes of this lab.
    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// Watches over another namespace.
    pub(crate) fn watch(&mut self, inode: u64) -> Result<(), LabError> {
        self.spaces.push(inode);
        let told = self
            .pipe
            .as_mut()
            .map_or(Ok(()), |pipe| writeln!(pipe, "{inode}"));
        told.map_err(LabError::system("tell the warden of a namespace"))
    }

    /// Kills what is in the namespaces; returns when nothing is.
    pub(crate) fn clear(&self) {
        // A process that forks while we look is found in the next round; one that hangs in the kernel is not ours
        // to wait for.
        for _ in 0..100 {
            let left: Vec<_> = processes()
                .filter(|pid| self.spaces.contains(&space_of(*pid)))
                .collect();
            if left.is_empty() {
                break;
            }
            kill(&left);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.clear();
        self.pipe.take();
        // It finds nothing and goes; that it is waited for leaves no zombie.
        let _ = self.process.wait();
    }
}

/// Kills the processes of labs whose owners are dead; says how many there were.
///
/// Every lab does it when it starts. It needs root, and does nothing without.
pub fn sweep() -> usize {
    let realm = realm();
    let mut left = Vec::new();
    for pid in processes() {
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            continue;
        };
        let mark = environment.split(|byte| *byte == 0).find_map(|variable| {
            let value = str::from_utf8(variable)
                .ok()?
                .strip_prefix(MARK)?
                .strip_prefix('=')?;
            let mut parts = value.split(':');
            let here = parts.next()? == realm;
            here.then_some((
                parts.next()?.parse::<u32>().ok()?,
                parts.next()?.parse::<u64>().ok()?,
            ))
        });
        // The number of a process is given away again; when it started is not.
        if mark.is_some_and(|(owner, started)| started_at(owner) != Some(started)) {
            left.push(pid);
        }
    }
    kill(&left);
    left.len()
}

fn kill(processes: &[u32]) {
    for pid in processes {
        if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
            // One that is gone already is what we want.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// All processes but this one, whose threads may be at work in a namespace.
fn processes() -> impl Iterator<Item = u32> {
    let me = std::process::id();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(move |pid| *pid != me)
}

/// The space that process numbers are of: a container's labs are not swept from outside it, where the number of their
/// owner means another process.
fn realm() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect()
}

/// The number of the network namespace of a process; zero, which none has, if it is gone.
fn space_of(pid: u32) -> u64 {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap_or_default();
    let number = link
        .to_str()
        .and_then(|link| link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
    number.unwrap_or(0)
}

/// When a process started, in ticks since the machine did.
fn started_at(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have spaces and parentheses in it; the 22nd field is the 20th behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
