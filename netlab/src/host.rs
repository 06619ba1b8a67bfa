//! A machine of the lab.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::error::LabError;
use crate::link::Link;
use crate::node::{Node, Routed};
use crate::shape::Shape;

/// The device of every host.
pub(crate) const DEVICE: &str = "eth0";

/// A machine of the lab: a network namespace with one device, `eth0`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) node: Arc<Node>,
}

impl Host {
    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// Its IPv4 address now.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.node.place().address4
    }

    /// Its global IPv6 address now; `None` behind a router without IPv6.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.node.place().ipv6.map(|(address, _)| address)
    }

    /// Its uplink, to be shaped, cut and counted on.
    pub fn link(&self) -> &Link {
        &self.node.link
    }

    /// A command that runs on this host. It is an ordinary one: add arguments, pipes and variables, spawn it, or make
    /// a tokio command of it. The process is killed when the lab ends.
    ///
    /// A program that does not exist shows as exit status 127, since it is `nsenter` (util-linux) that runs it.
    ///
    /// # Errors
    ///
    /// [`LabError::Ended`] once the lab was dropped.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, LabError> {
        self.node.command(program)
    }

    /// Where its network namespace is found, by `nsenter --net=` and its like, for as long as this process lives.
    ///
    /// # Errors
    ///
    /// [`LabError::Ended`] once the lab was dropped.
    pub fn namespace(&self) -> Result<String, LabError> {
        self.node.space.path()
    }

    /// Runs `work` on a thread of this host and waits for it. A socket that is made there belongs to this host for
    /// good, wherever it is used later; the host's namespace stays until it is closed, too.
    ///
    /// # Errors
    ///
    /// [`LabError::Ended`] once the lab was dropped. A panic of `work` is passed on.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, LabError> {
        self.node.space.enter(work)
    }

    /// Starts a thread of this host. The threads that it starts are of this host, too: a runtime that is built in it,
    /// with all its workers and sockets, runs on this host, and many hosts run in one process.
    ///
    /// The thread is the caller's: it does not end with the lab, whose network it then has lost.
    ///
    /// # Errors
    ///
    /// [`LabError::Ended`] once the lab was dropped.
    pub fn spawn<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<JoinHandle<R>, LabError> {
        self.node.space.spawn(work)
    }

    /// Drops silently what this host sends to another, by any address of it or of a router that it is behind (which
    /// blocks those behind the same router as well). The other direction stays as it is.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn block(&self, to: &Self) -> Result<(), LabError> {
        self.node.link.block(&to.node.reachable_at())
    }

    /// Shapes what this host sends to another, by any address of it or of a router that it is behind (which shapes what
    /// goes to those behind the same router, all together). It comes after the shape of the host's own link, as what is
    /// slow beyond an uplink does, and holds for one direction: the way back has a path of its own. Asked again, it
    /// changes how later frames are treated. Nothing measures a path, and what it drops is not in the link's counters.
    ///
    /// # Errors
    ///
    /// If the shape is out of reason, or the host's link has to be replaced by a shaped one and the system refuses that.
    pub fn shape_path(&self, to: &Self, shape: Shape) -> Result<(), LabError> {
        self.node.link.shape_path(&to.node.reachable_at(), shape)
    }

    /// Ends [`Self::block`].
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn unblock(&self, to: &Self) -> Result<(), LabError> {
        self.node.link.unblock(&to.node.reachable_at())
    }

    /// Gives the host other addresses, as when it moves to another network of the same kind; returns the IPv4 one.
    ///
    /// # Errors
    ///
    /// If there are no more, or the system refuses.
    pub fn renumber(&self) -> Result<Ipv4Addr, LabError> {
        self.node.renumber(DEVICE, Routed::default())
    }
}
