//! What was turned away at the door, counted. Turns nobody away itself.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// What is turned away.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unwelcome {
    /// A handshake that was begun and came to nothing.
    FailedHandshake,
    /// A handshake while too many were under way, in all or from one network.
    CrowdedHandshake,
    /// A handshake, many being under way, that was asked to prove its address.
    RetriedHandshake,
    /// A connection beyond what one peer, or strangers together, may have.
    Connection,
    /// A bulk lane of whom we have no session with.
    BulkLane,
    /// A stream that says nothing, nothing of ours, or too much before it has said what it is about.
    Stream,
    /// A channel that was refused with a reason: not served, not a member, another cluster, busy.
    Channel,
    /// A message about a session or a path, of a peer that sends them all the time or writes something else.
    Message,
    /// A session with a peer that has offended too often, or a lane whose rules it has broken.
    Session,
    /// A reservation beyond the quota.
    Reservation,
    /// A circuit to whom we keep no reservation for, or beyond the quota.
    Circuit,
}

/// Counts since this node started; each moves where the thing is refused.
#[derive(Debug, Default)]
pub struct RefusedCounters {
    counts: [AtomicU64; Unwelcome::Circuit as usize + 1],
    punch_addresses: AtomicU64,
    probes: AtomicU64,
    witness_questions: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Incoming handshakes that were begun and came to nothing.
    pub handshakes_failed: u64,
    /// Incoming handshakes that were refused, because too many were under way in all or from one network.
    pub handshakes_refused: u64,
    /// Incoming handshakes that were asked to prove their address first, because many were under way.
    pub handshakes_retried: u64,
    /// Incoming WebSocket connections that came to nothing, or were closed unheard because there were too many.
    pub websockets: u64,
    /// Connections beyond what one peer, or strangers together, may have.
    pub connections: u64,
    /// Bulk lanes of peers without a session.
    pub bulk_lanes: u64,
    /// Streams that said nothing, or nothing of ours.
    pub streams: u64,
    /// Channels refused with a reason.
    pub channels: u64,
    /// Messages about sessions and paths that were too many, or not understood.
    pub messages: u64,
    /// Sessions that were closed because the peer has offended too often, and lanes whose rules it has broken.
    pub sessions: u64,
    /// Reservations beyond the quota. Strangers do not get so far as to ask.
    pub reservations: u64,
    /// Circuits beyond the quota, or to somebody who holds no reservation.
    pub circuits: u64,
    /// Addresses to punch to that are not the peer's own: they were not sent to.
    pub punch_addresses: u64,
    /// Probes of paths that were not sealed with the key of their attempt.
    pub probes: u64,
    /// Questions for a witness about an address that is not the asker's, or too many.
    pub witness_questions: u64,
}

impl RefusedCounters {
    /// One more was turned away.
    pub fn count(&self, what: Unwelcome) {
        self.counts[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What the cores that find paths have refused so far.
    pub fn set_reach(&self, punch_addresses: u64, probes: u64, witness_questions: u64) {
        self.punch_addresses.store(punch_addresses, Ordering::Relaxed);
        self.probes.store(probes, Ordering::Relaxed);
        self.witness_questions.store(witness_questions, Ordering::Relaxed);
    }

    /// The counts now; those of WebSockets are the transport's own.
    pub fn get(&self) -> Refused {
        let of = |what: Unwelcome| self.counts[what as usize].load(Ordering::Relaxed);
        Refused {
            handshakes_failed: of(Unwelcome::FailedHandshake),
            handshakes_refused: of(Unwelcome::CrowdedHandshake),
            handshakes_retried: of(Unwelcome::RetriedHandshake),
            websockets: 0,
            connections: of(Unwelcome::Connection),
            bulk_lanes: of(Unwelcome::BulkLane),
            streams: of(Unwelcome::Stream),
            channels: of(Unwelcome::Channel),
            messages: of(Unwelcome::Message),
            sessions: of(Unwelcome::Session),
            reservations: of(Unwelcome::Reservation),
            circuits: of(Unwelcome::Circuit),
            punch_addresses: self.punch_addresses.load(Ordering::Relaxed),
            probes: self.probes.load(Ordering::Relaxed),
            witness_questions: self.witness_questions.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_moves_alone() {
        let counters = RefusedCounters::default();
        counters.count(Unwelcome::FailedHandshake);
        counters.count(Unwelcome::Circuit);
        counters.count(Unwelcome::Circuit);
        counters.set_reach(3, 4, 5);
        let expected = Refused {
            handshakes_failed: 1,
            circuits: 2,
            punch_addresses: 3,
            probes: 4,
            witness_questions: 5,
            ..Refused::default()
        };
        assert_eq!(counters.get(), expected);
    }
}
