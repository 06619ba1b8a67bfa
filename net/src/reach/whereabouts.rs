//! Where relays see the peers that are reached through them: what was asked, what was answered, and when to ask again.
//! Asks nobody itself.

use lapwing_base::PeerId;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// What relays say of peers. Only what they see is probed, so a peer that nobody has seen cannot be punched to.
#[derive(Debug, Default)]
pub struct Whereabouts {
    peers: HashMap<PeerId, State>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum State {
    Asked,
    /// Never empty.
    Seen(Vec<IpAddr>),
    /// Nobody could say.
    Unseen {
        again_at: Instant,
    },
}

impl Whereabouts {
    /// Whether a relay should be asked for a peer now.
    pub fn is_due(&self, peer: &PeerId, now: Instant) -> bool {
        match self.peers.get(peer) {
            None => true,
            Some(State::Asked | State::Seen(_)) => false,
            Some(State::Unseen { again_at }) => *again_at <= now,
        }
    }

    /// A relay is being asked.
    pub fn asked(&mut self, peer: PeerId) {
        self.peers.insert(peer, State::Asked);
    }

    /// A relay has answered, with nothing when it does not know, or cannot be asked.
    pub fn answered(&mut self, peer: PeerId, seen: Vec<IpAddr>, now: Instant) {
        let older = matches!(self.peers.get(&peer), Some(State::Seen(_)));
        if !seen.is_empty() {
            self.peers.insert(peer, State::Seen(seen));
        } else if !older {
            // An older answer is better than none.
            let again_at = now + AGAIN;
            self.peers.insert(peer, State::Unseen { again_at });
        }
    }

    /// Whether an answer is on its way.
    pub fn is_awaited(&self, peer: &PeerId) -> bool {
        self.peers.get(peer) == Some(&State::Asked)
    }

    /// Where the peer is seen, as far as is known.
    pub fn of(&self, peer: &PeerId) -> &[IpAddr] {
        match self.peers.get(peer) {
            Some(State::Seen(seen)) => seen,
            Some(State::Asked | State::Unseen { .. }) | None => &[],
        }
    }

    /// Nothing counts any more of what is known of a peer.
    pub fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    /// Forgets all but these.
    pub fn retain(&mut self, keeps: impl Fn(&PeerId) -> bool) {
        self.peers.retain(|peer, _| keeps(peer));
    }
}

/// A relay that does not know now may know when the peer has reserved anew; asking is a round trip, and may be a dial.
const AGAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_relay_that_knows_nothing_is_not_asked_again_at_once() {
        let (mut whereabouts, peer, now) = (Whereabouts::default(), PeerId::random(), Instant::now());
        assert!(whereabouts.is_due(&peer, now));
        whereabouts.asked(peer);
        assert!(whereabouts.is_awaited(&peer));
        assert!(!whereabouts.is_due(&peer, now + AGAIN), "one question at a time");
        whereabouts.answered(peer, Vec::new(), now);
        assert!(!whereabouts.is_awaited(&peer));
        assert!(!whereabouts.is_due(&peer, now));
        assert!(whereabouts.is_due(&peer, now + AGAIN));
    }

    #[test]
    fn an_older_answer_is_kept_where_there_is_no_newer_one() {
        let (mut whereabouts, peer, now) = (Whereabouts::default(), PeerId::random(), Instant::now());
        let seen = vec![IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7))];
        whereabouts.asked(peer);
        whereabouts.answered(peer, seen.clone(), now);
        whereabouts.answered(peer, Vec::new(), now);
        assert_eq!(whereabouts.of(&peer), seen);
        whereabouts.forget(&peer);
        assert_eq!(whereabouts.of(&peer), [] as [IpAddr; 0]);
        assert!(whereabouts.is_due(&peer, now));
    }
}
