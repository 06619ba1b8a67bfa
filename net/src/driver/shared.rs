//! What handles, channels and the driver share: tables behind short locks, never held across a wait.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::acceptor::Acceptor;
use super::limits::Limits;
use super::{Command, now};
use crate::{AddressBook, Counters, Estimate, PeerTable};
use lapwing_base::{Bandwidth, Multiaddr, PeerId};

/// One network's shared state.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) me: PeerId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) acceptor: Acceptor,
    pub(crate) limits: Arc<Limits>,
    pub(crate) probe_interval: Duration,
    /// Woken when there may be a link to probe.
    pub(crate) probe_wanted: Notify,
    book: Mutex<AddressBook>,
    peers: Mutex<PeerTable>,
    addresses: Mutex<Addresses>,
}

#[derive(Debug, Default)]
struct Addresses {
    listen: Vec<Multiaddr>,
    observed: Vec<Multiaddr>,
    /// The sockets as they were bound, to know when they are free.
    sockets: Vec<SocketAddr>,
}

impl Shared {
    pub(crate) fn new(
        me: PeerId,
        commands: mpsc::Sender<Command>,
        limits: Limits,
        probe_interval: Duration,
    ) -> Self {
        Self {
            me,
            commands,
            acceptor: Acceptor::default(),
            limits: Arc::new(limits),
            probe_interval,
            probe_wanted: Notify::new(),
            book: Mutex::default(),
            peers: Mutex::default(),
            addresses: Mutex::default(),
        }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, AddressBook> {
        lock(&self.book)
    }

    pub(crate) fn peers(&self) -> MutexGuard<'_, PeerTable> {
        lock(&self.peers)
    }

    pub(crate) fn counters(&self, peer: PeerId) -> Arc<Counters> {
        Arc::clone(&self.peers().entry(peer).counters)
    }

    pub(crate) fn last_error(&self, peer: &PeerId) -> Option<String> {
        self.peers().get(peer)?.last_error.clone()
    }

    /// How long a measurement counts.
    pub(crate) fn fresh(&self) -> Duration {
        self.probe_interval * Estimate::FRESH_INTERVALS
    }

    /// Takes in the measurement of a transfer to a peer.
    pub(crate) fn record(&self, peer: PeerId, speed: Bandwidth) {
        let fresh = self.fresh();
        self.peers().entry(peer).estimate.record(speed, now(), fresh);
    }

    pub(crate) fn probe_soon(&self) {
        self.probe_wanted.notify_one();
    }

    pub(crate) fn listen(&self) -> Vec<Multiaddr> {
        lock(&self.addresses).listen.clone()
    }

    pub(crate) fn observed(&self) -> Vec<Multiaddr> {
        lock(&self.addresses).observed.clone()
    }

    pub(crate) fn bound_sockets(&self) -> Vec<SocketAddr> {
        lock(&self.addresses).sockets.clone()
    }

    pub(crate) fn set_listen(&self, listen: Vec<Multiaddr>, sockets: Vec<SocketAddr>) {
        let mut addresses = lock(&self.addresses);
        addresses.listen = listen;
        addresses.sockets = sockets;
    }

    pub(crate) fn set_observed(&self, observed: Vec<Multiaddr>) {
        lock(&self.addresses).observed = observed;
    }
}

/// The tables are whole after every statement, so a panic elsewhere does not spoil them.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
