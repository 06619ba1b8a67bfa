//! The links that stand: which one new channels take, which are asked whether they still lead anywhere, and which are let
//! go. Part of the driver's one task.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use tokio::sync::oneshot;
use tracing::{debug, info, trace};

use super::addresses::{relay_of, without_peer};
use super::behaviour::Carrier;
use super::links::{LaneLink, Link, LinkId};
use super::quic::{Session, to_multiaddr};
use super::{Driver, now};
use crate::{Dialed, Rung};
use lapwing_base::{Multiaddr, PeerId};

/// Somebody who wants links closed.
pub(super) struct Disconnecting {
    /// Those that stood when it was asked for; what the peer dials afterwards is not waited for.
    pub(super) links: Vec<LinkId>,
    pub(super) done: oneshot::Sender<()>,
}

impl Driver {
    pub(super) fn on_established(&mut self, session: &Arc<Session>) {
        let (peer, dialed) = (session.peer, session.dialed);
        let address = to_multiaddr(session.remote());
        if dialed == Dialed::ByUs {
            self.shared.book().reached(peer, address.clone());
        }
        self.on_link(
            LinkId::Session(session.id),
            Link::Session(Arc::clone(session)),
            dialed,
            &address,
        );
    }

    pub(super) fn on_carrier(&mut self, carrier: Carrier) {
        let link = LaneLink::start(
            carrier,
            &self.shared,
            &self.tracker,
            &self.stop,
            self.lane_closed.clone(),
        );
        let (id, dialed, address) = (LinkId::Lane(link.id), link.dialed, without_peer(&link.address));
        self.on_link(id, Link::Lane(link), dialed, &address);
    }

    fn on_link(&mut self, id: LinkId, link: Link, dialed: Dialed, address: &Multiaddr) {
        let (peer, now) = (link.peer(), now());
        // One of the two has had a reason to come anew.
        self.suspect(&peer);
        self.links.insert(id, link.clone());
        let first = self.connections.established(peer, id, dialed, link.rung(), now);
        self.watch(&peer);
        let standing = self.standing(&peer);
        {
            let mut peers = self.shared.peers();
            let entry = peers.entry(peer);
            entry.connections = standing;
            entry.address = Some(address.clone());
            entry.last_error = None;
            entry.told_unreachable = false;
        }
        self.publish_link(&peer);
        let rung = link.rung();
        if first && self.is_member(&peer) {
            info!(%peer, %address, %rung, "member connected");
        } else {
            debug!(%peer, %address, %rung, ?id, "link established");
        }
        for waiting in self.take_pending(&peer) {
            // The newest link is known to work; the preferred one may be the remains of a restart.
            drop(waiting.reply.send(Ok(link.clone())));
        }
        self.on_path(&link, address, now);
        self.shared.probe_soon();
    }

    pub(super) fn on_closed(&mut self, peer: PeerId, id: LinkId, why: String) {
        let Some(rung) = self.links.remove(&id).map(|link| link.rung()) else {
            return;
        };
        if let LinkId::Lane(connection) = id
            && self.is_member(&peer)
        {
            // libp2p keeps the connections of members, and without its lane this one is of no use. Those of others,
            // who may speak libp2p's protocols only, end when they are idle.
            self.swarm.close_connection(connection);
        }
        self.retiring.remove(&id);
        let last = self.connections.closed(&peer, id);
        self.watch(&peer);
        self.publish_link(&peer);
        self.disconnected(id);
        if self.connections.on_rung(&peer, rung).is_empty() {
            self.on_path_lost(peer, rung, now());
        }
        if !last {
            let standing = self.standing(&peer);
            let address = self.preferred(&peer).map(|link| link.address());
            let mut peers = self.shared.peers();
            let entry = peers.entry(peer);
            entry.connections = standing;
            entry.address = address;
            debug!(%peer, ?id, reason = why, "link closed, another one stands");
            drop(peers);
            // What has ended this one may have ended them too.
            self.suspect(&peer);
            return;
        }
        if self.is_member(&peer) {
            info!(%peer, reason = why, "member disconnected");
        } else {
            debug!(%peer, reason = why, "link closed");
        }
        {
            let mut peers = self.shared.peers();
            let entry = peers.entry(peer);
            entry.connections = 0;
            entry.last_error = Some(why);
        }
        self.suspected_at.remove(&peer);
    }

    /// Tells those who wait for this link's end.
    fn disconnected(&mut self, id: LinkId) {
        for waiting in &mut self.disconnecting {
            waiting.links.retain(|link| *link != id);
        }
        for waiting in self
            .disconnecting
            .extract_if(.., |waiting| waiting.links.is_empty())
        {
            // Whoever asked may have stopped waiting.
            let _ = waiting.done.send(());
        }
    }

    pub(super) fn preferred(&self, peer: &PeerId) -> Option<Link> {
        self.links.get(&self.connections.preferred(peer)?).cloned()
    }

    /// Tells everybody which link new channels to a peer are to take.
    pub(super) fn publish_link(&self, peer: &PeerId) {
        self.shared.set_link(*peer, self.preferred(peer));
    }

    /// Preferences change with time alone, and links move.
    pub(super) fn publish_links(&self) {
        for peer in self.connections.peers() {
            self.publish_link(peer);
        }
    }

    fn standing(&self, peer: &PeerId) -> u32 {
        // A handful at most: `Connections::PER_PEER_MAX`.
        self.connections.count(peer) as u32
    }

    /// A peer that was killed and has come back does not know the old connection, and nothing on it says so until
    /// it has been silent for a while. A second one tells at once; a peer that is only slow is not asked twice.
    pub(super) fn on_suspicion(&mut self, peer: PeerId) {
        let now = now();
        let trusted = self.suspected_at.get(&peer).is_some_and(|at| now < *at + TRUST);
        if self.connections.count(&peer) == 0 || trusted || self.shared.book().addresses(&peer).is_empty() {
            return;
        }
        debug!(%peer, "peer does not answer, trying a second connection");
        self.suspect(&peer);
        self.suspected_at.insert(peer, now);
        let addresses = self.shared.book().addresses(&peer);
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(addresses)
            .build();
        if let Err(error) = self.swarm.dial(options) {
            trace!(%peer, %error, "no second connection");
        }
    }

    /// Watches every link to a peer as closely as it is worth.
    pub(super) fn watch(&self, peer: &PeerId) {
        let closely = self.gate.borrow().watched.contains(peer) || self.shared.is_watched_guest(peer);
        let ids = self.connections.of(peer);
        let links = || ids.iter().filter_map(|id| self.links.get(id));
        let spare = links().any(|link| matches!(link, Link::Session(_)));
        links().for_each(|link| link.watch(closely, spare));
    }

    /// Asks on every link to a peer whether it is still there.
    pub(super) fn suspect(&self, peer: &PeerId) {
        for id in self.connections.of(peer) {
            if let Some(link) = self.links.get(&id) {
                link.suspect();
            }
        }
    }

    /// Closes what is not needed any more, once nothing is open or under way over it.
    pub(super) fn let_go(&mut self, now: Instant) {
        let surplus: Vec<_> = self
            .connections
            .surplus(now)
            .into_iter()
            .map(|(_, id)| id)
            .collect();
        let leaving: HashSet<_> = surplus.into_iter().chain(self.retiring.keys().copied()).collect();
        let links = &self.links;
        let traffic = leaving.iter().filter_map(|id| {
            let link = links.get(id)?;
            let mut traffic = link.traffic();
            traffic.busy |= link.rung() == Rung::Fallback && self.leads_on(&link.peer());
            Some((*id, traffic))
        });
        let traffic: Vec<_> = traffic.collect();
        let mut due = self.quiet.look(traffic, now);
        let overdue = self.retiring.iter().filter(|(_, latest)| **latest <= now);
        due.extend(overdue.map(|(id, _)| *id).filter(|id| links.contains_key(id)));
        for id in due {
            if let LinkId::Lane(connection) = id {
                // libp2p keeps the connections of members, and without its lane this one is of no use.
                self.swarm.close_connection(connection);
            }
            if let Some(link) = self.links.get(&id) {
                debug!(peer = %link.peer(), rung = %link.rung(), ?id, "closing the link that is not needed any more");
                link.close("a better one stands");
            }
            self.retiring.remove(&id);
        }
    }

    /// Whether links lead through a peer. libp2p's circuits take whichever connection with the relay is the oldest.
    fn leads_on(&self, relay: &PeerId) -> bool {
        self.links
            .values()
            .any(|link| matches!(link, Link::Lane(lane) if relay_of(&lane.address) == Some(*relay)))
    }
}

/// A peer that has answered a second connection is slow and not gone, and is not dialed again for so long.
const TRUST: Duration = Duration::from_secs(30);

/// How long a channel may hold a path that is not needed any more: longer than any single exchange takes.
pub(super) const RETIRE_MAX: Duration = Duration::from_secs(60);
