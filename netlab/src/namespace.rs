//! A network namespace that has no name anywhere: it lives as long as somebody has it open, or runs in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::LabError;
use crate::tool;

/// A network namespace. Closed explicitly, since handles to it may outlive the lab.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: Mutex<Option<Arc<File>>>,
    inode: u64,
}

impl Namespace {
    /// Makes one.
    pub(crate) fn create() -> Result<Self, LabError> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        // A thread of its own, which ends with it: nobody else's work moves.
        let made = thread::scope(|scope| scope.spawn(make).join());
        let file = made
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
            .map_err(LabError::system("make a network namespace"))?;
        let inode = file
            .metadata()
            .map_err(LabError::system("look at a network namespace"))?
            .ino();
        Ok(Self {
            file: Mutex::new(Some(Arc::new(file))),
            inode,
        })
    }

    /// The number by which `/proc/PID/ns/net` names it.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Where another process of root finds it, for as long as this one lives.
    pub(crate) fn path(&self) -> Result<String, LabError> {
        let file = self.open()?;
        Ok(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    }

    /// Runs `work` on a thread in the namespace. Sockets made there belong to it for good, and so do processes.
    pub(crate) fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, LabError> {
        let file = self.open()?;
        let run = || -> io::Result<R> {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        thread::scope(|scope| scope.spawn(run).join())
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
            .map_err(LabError::system("enter a network namespace"))
    }

    /// Starts a thread in the namespace; the threads and processes that it starts are in it as well.
    pub(crate) fn spawn<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<JoinHandle<R>, LabError> {
        // A thread starts where the one that starts it is.
        self.enter(|| thread::Builder::new().spawn(work))?
            .map_err(LabError::system("start a thread on a host"))
    }

    /// Runs lines of `ip` in it, in one process.
    pub(crate) fn ip(&self, lines: &str) -> Result<(), LabError> {
        self.enter(|| tool::feed("ip", &["-batch", "-"], lines))?
    }

    /// Loads rules of nftables into it, as one transaction.
    pub(crate) fn nft(&self, rules: &str) -> Result<(), LabError> {
        self.enter(|| tool::feed("nft", &["-f", "-"], rules))?
    }

    /// Sets kernel parameters of it; those that this kernel does not have are passed over.
    pub(crate) fn set(&self, parameters: &[(&str, &str)]) -> Result<(), LabError> {
        let set = || {
            for (name, value) in parameters {
                match std::fs::write(format!("/proc/sys/net/{name}"), value) {
                    Err(missing) if missing.kind() == io::ErrorKind::NotFound => (),
                    set => set?,
                }
            }
            Ok(())
        };
        self.enter(set)?
            .map_err(LabError::system("set a kernel parameter"))
    }

    /// Lets go of it: it ends once no process and no socket is in it.
    pub(crate) fn close(&self) {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn open(&self) -> Result<Arc<File>, LabError> {
        self.file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or(LabError::Ended)
    }
}
