//! What handles, channels and the driver share: tables behind short locks, never held across a wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::acceptor::Acceptor;
use super::limits::Limits;
use super::links::Link;
use super::websocket;
use super::{Command, draw, now};
use crate::{
    AddressBook, Counters, Estimate, Lookouts, PeerTable, Probes, ReachStatus, Refused, RefusedCounters,
    TransferTiming,
};
use lapwing_base::{Bandwidth, Multiaddr, PeerId};

/// One network's shared state.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) me: PeerId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) acceptor: Acceptor,
    pub(crate) limits: Arc<Limits>,
    pub(crate) refused: RefusedCounters,
    /// What the WebSocket transport has turned away.
    pub(crate) websockets: Arc<websocket::Counters>,
    pub(crate) probe_interval: Duration,
    /// What transfers have shown, for those who sent them.
    pub(crate) received: mpsc::Sender<(PeerId, TransferTiming)>,
    /// Woken when there may be a link to probe.
    pub(crate) probe_wanted: Notify,
    /// Who has it takes part in a probe, as the one who probes or the one who answers.
    pub(crate) probing: Semaphore,
    /// Probes of others that were let in.
    pub(crate) probes_let_in: AtomicU64,
    book: Mutex<AddressBook>,
    peers: Mutex<PeerTable>,
    addresses: Mutex<Addresses>,
    /// The link that new channels to a peer take.
    links: Mutex<HashMap<PeerId, Link>>,
    reach: watch::Sender<ReachStatus>,
    /// Where members are seen over the family that their connection does not use.
    lookouts: Mutex<Lookouts>,
}

#[derive(Debug, Default)]
struct Addresses {
    listen: Vec<Multiaddr>,
}

impl Shared {
    pub(crate) fn new(
        me: PeerId,
        commands: mpsc::Sender<Command>,
        limits: Limits,
        probe_interval: Duration,
        received: mpsc::Sender<(PeerId, TransferTiming)>,
    ) -> Self {
        Self {
            me,
            commands,
            acceptor: Acceptor::default(),
            limits: Arc::new(limits),
            refused: RefusedCounters::default(),
            websockets: Arc::default(),
            probe_interval,
            received,
            probe_wanted: Notify::new(),
            probing: Semaphore::new(1),
            probes_let_in: AtomicU64::new(0),
            book: Mutex::default(),
            peers: Mutex::default(),
            addresses: Mutex::default(),
            links: Mutex::default(),
            reach: watch::Sender::default(),
            lookouts: Mutex::new(Lookouts::new(draw())),
        }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, AddressBook> {
        lock(&self.book)
    }

    pub(crate) fn peers(&self) -> MutexGuard<'_, PeerTable> {
        lock(&self.peers)
    }

    /// What was turned away so far.
    pub(crate) fn refused(&self) -> Refused {
        let websockets = &self.websockets;
        Refused {
            websockets: websockets.refused_crowded()
                + websockets.refused_prefix()
                + websockets.failed_handshakes(),
            ..self.refused.get()
        }
    }

    pub(crate) fn counters(&self, peer: PeerId) -> Arc<Counters> {
        Arc::clone(&self.peers().entry(peer).counters)
    }

    pub(crate) fn last_error(&self, peer: &PeerId) -> Option<String> {
        self.peers().get(peer)?.last_error.clone()
    }

    /// How long a measurement counts.
    pub(crate) fn fresh(&self) -> Duration {
        Probes::interval(self.probe_interval, self.acceptor.members()) * Estimate::FRESH_INTERVALS
    }

    /// Takes in the measurement of a transfer to a peer.
    pub(crate) fn record(&self, peer: PeerId, speed: Bandwidth) {
        let fresh = self.fresh();
        self.peers().entry(peer).estimate.record(speed, now(), fresh);
    }

    /// Takes in that a transfer to a peer was as fast as this, while its window grew.
    pub(crate) fn record_at_least(&self, peer: PeerId, speed: Bandwidth) {
        let fresh = self.fresh();
        let mut peers = self.peers();
        peers.entry(peer).estimate.record_at_least(speed, now(), fresh);
    }

    /// The link that a new channel to a peer takes.
    pub(crate) fn link(&self, peer: &PeerId) -> Option<Link> {
        lock(&self.links).get(peer).cloned()
    }

    pub(crate) fn set_link(&self, peer: PeerId, link: Option<Link>) {
        let mut links = lock(&self.links);
        match link {
            Some(link) => drop(links.insert(peer, link)),
            None => drop(links.remove(&peer)),
        }
    }

    pub(crate) fn lookouts(&self) -> MutexGuard<'_, Lookouts> {
        lock(&self.lookouts)
    }

    /// Where a peer's packets come from: one address of each family, as far as this node sees any.
    pub(crate) fn seen_at(&self, peer: &PeerId) -> Vec<IpAddr> {
        let over_link = self.link(peer).and_then(|link| link.remote_ip());
        let beside = self.lookouts().seen(peer, now());
        let mut seen: Vec<_> = over_link.into_iter().chain(beside).collect();
        seen.dedup();
        seen
    }

    pub(crate) fn forget_links(&self) {
        lock(&self.links).clear();
    }

    /// Whether a peer is let in further than a stranger: a member, or somebody's guest.
    pub(crate) fn is_let_in(&self, peer: &PeerId) -> bool {
        self.acceptor.is_let_in(peer)
    }

    pub(crate) fn is_guest(&self, peer: &PeerId) -> bool {
        self.acceptor.is_guest(peer)
    }

    pub(crate) fn is_watched_guest(&self, peer: &PeerId) -> bool {
        self.acceptor.is_watched_guest(peer)
    }

    /// Lets a peer in as a guest, over the link that stands with it too.
    pub(crate) fn welcome(&self, peer: PeerId, watched: bool) {
        self.acceptor.welcome(peer, watched);
        self.admit_link(&peer, watched);
    }

    /// Takes one welcome back.
    pub(crate) fn dismiss(&self, peer: &PeerId, watched: bool) {
        self.acceptor.dismiss(peer, watched);
        self.admit_link(peer, watched);
    }

    fn admit_link(&self, peer: &PeerId, may_be_watched: bool) {
        if let Some(link) = self.link(peer) {
            link.admit(self.is_let_in(peer));
            if may_be_watched {
                // A session is preferred to any lane, so that there is none where this is one.
                let is_session = matches!(link, Link::Session(_));
                link.watch(self.acceptor.is_watched(peer), is_session);
            }
        }
    }

    /// Whether a connection with a peer is worth having while nothing travels over it.
    pub(crate) fn keeps(&self, peer: &PeerId) -> bool {
        self.is_let_in(peer) || lock(&self.links).get(peer).is_some_and(Link::in_use)
    }

    pub(crate) fn probe_soon(&self) {
        self.probe_wanted.notify_one();
    }

    pub(crate) fn listen(&self) -> Vec<Multiaddr> {
        lock(&self.addresses).listen.clone()
    }

    pub(crate) fn reach(&self) -> watch::Receiver<ReachStatus> {
        self.reach.subscribe()
    }

    pub(crate) fn set_reach(&self, reach: ReachStatus) {
        self.reach.send_if_modified(|known| {
            // How long reservations still last is no news.
            let relays = |status: &ReachStatus| -> Vec<PeerId> {
                status.reservations.iter().map(|(relay, _)| *relay).collect()
            };
            let news = known.standing != reach.standing
                || known.nat != reach.nat
                || known.nat_v6 != reach.nat_v6
                || known.observed != reach.observed
                || known.advertised != reach.advertised
                || relays(known) != relays(&reach);
            *known = reach;
            news
        });
    }

    pub(crate) fn set_listen(&self, listen: Vec<Multiaddr>) {
        lock(&self.addresses).listen = listen;
    }
}

/// The tables are whole after every statement, so a panic elsewhere does not spoil them.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
