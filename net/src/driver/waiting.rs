//! Those who wait for a link to a peer, and what they are told when there is none. Part of the driver's one task.

use std::time::Instant;

use tokio::sync::oneshot;
use tracing::{info, trace};

use super::links::Link;
use super::{ConnectFailure, Driver, now};
use lapwing_base::PeerId;

/// Somebody who wants a link.
pub(super) struct Waiting {
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<Link, ConnectFailure>>,
}

impl Driver {
    pub(super) fn enqueue(&mut self, peer: PeerId, waiting: Waiting) {
        let now = now();
        if self.pending_count >= PENDING_MAX {
            drop(waiting.reply.send(Err(ConnectFailure::Overloaded)));
            return;
        }
        if self.addresses_of(&peer).is_empty() {
            drop(waiting.reply.send(Err(ConnectFailure::NoAddress)));
            return;
        }
        self.pending.entry(peer).or_default().push(waiting);
        self.pending_count += 1;
        self.want(peer, now);
    }

    /// Drops opens that nobody waits for any more. Whoever waits keeps the deadline, and knows best what to say then.
    pub(super) fn prune(&mut self, peer: &PeerId) {
        if let Some(opens) = self.pending.get_mut(peer) {
            let before = opens.len();
            opens.retain(|open| !open.reply.is_closed());
            self.pending_count -= before - opens.len();
            if opens.is_empty() {
                self.pending.remove(peer);
            }
        }
    }

    pub(super) fn take_pending(&mut self, peer: &PeerId) -> Vec<Waiting> {
        let opens = self.pending.remove(peer).unwrap_or_default();
        self.pending_count -= opens.len();
        opens
    }

    /// Fails the opens whose patience ends before the next dial begins.
    fn give_up(&mut self, peer: PeerId, retry_at: Instant, now: Instant) {
        let Some(opens) = self.pending.remove(&peer) else {
            return;
        };
        let (hopeless, waiting): (Vec<_>, Vec<_>) =
            opens.into_iter().partition(|open| open.deadline <= retry_at);
        self.pending_count -= hopeless.len();
        if !waiting.is_empty() {
            self.pending.insert(peer, waiting);
        }
        if hopeless.is_empty() {
            return;
        }
        let why = self
            .shared
            .last_error(&peer)
            .unwrap_or_else(|| "it does not answer".to_owned());
        for open in hopeless {
            drop(open.reply.send(Err(ConnectFailure::Unreachable(why.clone()))));
        }
        self.want_no_more(peer, now);
    }

    /// Every address has failed; they are tried again at `retry_at`.
    pub(super) fn on_unreachable(&mut self, peer: PeerId, retry_at: Instant, now: Instant) {
        if self.connections.count(&peer) > 0 {
            return;
        }
        let why = self
            .dial_failures(&peer, now)
            .unwrap_or_else(|| "no address of it answers".to_owned());
        let first = {
            let mut peers = self.shared.peers();
            let entry = peers.entry(peer);
            entry.last_error = Some(why.clone());
            !std::mem::replace(&mut entry.told_unreachable, true)
        };
        if first && self.is_member(&peer) {
            info!(%peer, reason = why, "member is unreachable");
        } else {
            trace!(%peer, reason = why, "peer is unreachable");
        }
        self.give_up(peer, retry_at, now);
    }

    /// A peer has answered as itself, and takes none of our channels.
    pub(super) fn on_foreign(&mut self, peer: PeerId, now: Instant) {
        let why = "it speaks libp2p, and is no node of ours";
        self.shared.peers().entry(peer).last_error = Some(why.to_owned());
        // No other address of it leads to anybody else.
        for open in self.take_pending(&peer) {
            drop(open.reply.send(Err(ConnectFailure::Unreachable(why.to_owned()))));
        }
        self.unwanted(peer, now);
    }
}

/// Opens that may wait for a connection: the streams of ten peers.
const PENDING_MAX: usize = 4096;
