//! Holds one direction of a node's traffic to its [`RateLimits`]: says when what may move. Moves nothing and reads no
//! clock.
//!
//! One for the whole node, asked for every slice on whatever path it takes, so that a limit holds over direct and
//! relayed paths and over TLS alike.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::rate_limits::RateLimits;
use crate::Bucket;
use lapwing_base::{Bandwidth, ByteSize, CLASSES, Class, PeerId};

/// The buckets of one direction.
#[derive(Debug, Default)]
pub struct Limiter {
    limits: RateLimits,
    node: Option<Bucket>,
    classes: [Option<Bucket>; CLASSES.len()],
    peers: HashMap<PeerId, Bucket>,
}

impl Limiter {
    /// Nothing has moved yet.
    pub fn new(limits: RateLimits) -> Self {
        Self {
            node: limits.node.map(Bucket::new),
            classes: CLASSES.map(|class| limits.class(class).map(Bucket::new)),
            peers: buckets(&limits.peers),
            limits,
        }
    }

    /// What is kept to.
    pub const fn limits(&self) -> &RateLimits {
        &self.limits
    }

    /// Other limits for peers from now on. Those whose rate stays the same go on where they are.
    pub fn limit_peers(&mut self, peers: BTreeMap<PeerId, Bandwidth>) {
        let known = &self.limits.peers;
        self.peers.retain(|peer, _| known.get(peer) == peers.get(peer));
        for (peer, bucket) in buckets(&peers) {
            self.peers.entry(peer).or_insert(bucket);
        }
        self.limits.peers = peers;
    }

    /// Whether messages of a class with a peer may have to wait, and so go in slices.
    pub fn holds_up(&self, peer: &PeerId, class: Class) -> bool {
        let of_all = is_bulk(class) && (self.node.is_some() || self.peers.contains_key(peer));
        of_all || self.classes[class.index()].is_some()
    }

    /// Counts so many bytes of a class with a peer, and says when they may move: `now`, or later.
    ///
    /// What is no bulk is counted against the limits of the node and of the peer and does not wait for them.
    pub fn take(&mut self, peer: &PeerId, class: Class, size: ByteSize, now: Instant) -> Instant {
        let mut at = now;
        if let Some(bucket) = &mut self.classes[class.index()] {
            at = bucket.reserve(size, now);
        }
        for bucket in [self.peers.get_mut(peer), self.node.as_mut()]
            .into_iter()
            .flatten()
        {
            if is_bulk(class) {
                at = at.max(bucket.reserve(size, now));
            } else {
                bucket.charge(size, now);
            }
        }
        at
    }

    /// How much of a class a peer may have under way to us that nobody here has read, so that a limit of what is
    /// read holds on the way too; `None` where there is no limit.
    pub fn window(&self, peer: &PeerId, class: Class) -> Option<ByteSize> {
        let of_all = [self.limits.node, self.limits.peers.get(peer).copied()];
        let of_all = of_all.into_iter().flatten().filter(|_| is_bulk(class));
        of_all.chain(self.limits.class(class)).min().map(window)
    }

    /// The same for all bulk of a peer together, which shares one connection; before it is known who that is,
    /// the least that anybody may have.
    pub fn bulk_window(&self, peer: Option<&PeerId>) -> Option<ByteSize> {
        let peers = &self.limits.peers;
        let of_peer = match peer {
            Some(peer) => peers.get(peer).copied(),
            None => peers.values().min().copied(),
        };
        let of_both = [Class::Maintenance, Class::Model].map(|class| self.limits.class(class));
        let of_both = match of_both {
            [Some(one), Some(other)] => Some(Bandwidth::kbit(one.kbit_s.saturating_add(other.kbit_s))),
            _ => None,
        };
        let all = [self.limits.node, of_peer, of_both];
        all.into_iter().flatten().min().map(window)
    }

    /// The same for one stream of bulk, of whichever class that has more.
    pub fn stream_window(&self) -> Option<ByteSize> {
        let classes = [Class::Maintenance, Class::Model].map(|class| self.limits.class(class));
        let most = match classes {
            [Some(one), Some(other)] => Some(one.max(other)),
            _ => None,
        };
        most.into_iter().chain(self.limits.node).min().map(window)
    }
}

fn buckets(peers: &BTreeMap<PeerId, Bandwidth>) -> HashMap<PeerId, Bucket> {
    peers
        .iter()
        .map(|(peer, rate)| (*peer, Bucket::new(*rate)))
        .collect()
}

/// What passes in [`AHEAD`] at this rate, and at least [`WINDOW_MIN`].
fn window(rate: Bandwidth) -> ByteSize {
    let bytes = rate.bytes_per_second() * AHEAD.as_secs_f64();
    ByteSize((bytes as u64).max(WINDOW_MIN.0))
}

/// How far a sender may be ahead of a limited reader. Round trips up to this cost a limited transfer nothing, and a
/// limit is overrun by no more than this when a transfer begins.
const AHEAD: Duration = Duration::from_millis(500);

/// A reader takes at least as much at once.
const WINDOW_MIN: ByteSize = ByteSize::kib(64);

/// Bulk waits; what a cluster lives by does not.
const fn is_bulk(class: Class) -> bool {
    match class {
        Class::Control | Class::Consensus | Class::Call => false,
        Class::Maintenance | Class::Model => true,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    /// What each sender gets through in [`TIME`], when all send slices as fast as they may; in Mbit/s.
    fn carried<const N: usize>(limiter: &mut Limiter, senders: [(PeerId, Class); N]) -> [f64; N] {
        let begun = Instant::now();
        let mut sent = [0_u64; N];
        let mut ready = [begun; N];
        while let Some((turn, at)) = ready.iter().copied().enumerate().min_by_key(|(_, at)| *at) {
            if at >= begun + TIME {
                break;
            }
            let (peer, class) = senders[turn];
            ready[turn] = limiter.take(&peer, class, Bucket::SLICE, at);
            sent[turn] += Bucket::SLICE.0;
            if ready[turn] == at {
                // What nothing holds up is as fast as a link of a gigabit.
                ready[turn] += Bandwidth::mbit(1000).time_for(Bucket::SLICE).unwrap();
            }
        }
        sent.map(|bytes| bytes as f64 * 8e-6 / TIME.as_secs_f64())
    }

    fn close(rate: f64, to: f64) -> bool {
        (0.95 * to..1.05 * to).contains(&rate)
    }

    #[test]
    fn a_class_keeps_to_its_own_rate_with_all_peers_together_and_the_others_do_not_wait() {
        let mut limits = RateLimits::default();
        limits.limit_class(Class::Model, Bandwidth::mbit(8)).unwrap();
        let [a, b] = [PeerId::random(), PeerId::random()];
        let mut limiter = Limiter::new(limits);
        let [one, other, free] = carried(
            &mut limiter,
            [(a, Class::Model), (b, Class::Model), (a, Class::Maintenance)],
        );
        assert!(close(one + other, 8.0), "{one} {other}");
        assert!(free > 900.0, "{free}");
    }

    #[test]
    fn a_peer_keeps_to_its_own_rate_and_the_others_share_the_node_s() {
        let [slow, fast] = [PeerId::random(), PeerId::random()];
        let mut limiter =
            Limiter::new(RateLimits::of_node(Bandwidth::mbit(20)).with_peers([(slow, Bandwidth::mbit(4))]));
        let [held, rest] = carried(&mut limiter, [(slow, Class::Model), (fast, Class::Model)]);
        assert!(close(held, 4.0), "{held}");
        assert!(close(held + rest, 20.0), "{held} {rest}");
    }

    #[test]
    fn what_is_urgent_is_counted_and_never_waits_but_for_a_limit_of_its_own() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut limits = RateLimits::of_node(Bandwidth::mbit(1)).with_peers([(peer, Bandwidth::mbit(1))]);
        limits.limit_class(Class::Call, Bandwidth::mbit(1)).unwrap();
        let mut limiter = Limiter::new(limits);
        for class in [Class::Control, Class::Consensus] {
            assert!(!limiter.holds_up(&peer, class));
            assert_eq!(limiter.take(&peer, class, ByteSize::kib(50), now), now);
        }
        assert!(limiter.holds_up(&peer, Class::Call));
        limiter.take(&peer, Class::Call, Bucket::SLICE, now);
        assert!(limiter.take(&peer, Class::Call, Bucket::SLICE, now) > now);
        // 100 KiB at a megabit, and the bulk that comes after them.
        let at = limiter.take(&peer, Class::Model, Bucket::SLICE, now);
        assert!(at > now + Duration::from_millis(800), "{:?}", at - now);
    }

    #[test]
    fn a_peer_s_limit_comes_and_goes_and_keeps_what_was_spent() {
        let (peer, now) = (PeerId::random(), Instant::now());
        let mut limiter = Limiter::default();
        assert!(!limiter.holds_up(&peer, Class::Model));
        let rates = |rate| BTreeMap::from([(peer, Bandwidth::mbit(rate))]);
        limiter.limit_peers(rates(1));
        limiter.take(&peer, Class::Model, ByteSize::kib(100), now);
        limiter.limit_peers(rates(1));
        let at = limiter.take(&peer, Class::Model, Bucket::SLICE, now);
        assert!(at > now + Duration::from_millis(700), "{:?}", at - now);
        limiter.limit_peers(rates(100));
        assert_eq!(limiter.take(&peer, Class::Model, Bucket::SLICE, now), now);
        limiter.limit_peers(BTreeMap::new());
        assert!(!limiter.holds_up(&peer, Class::Model));
    }

    #[test]
    fn nobody_is_ahead_of_a_limit_by_more_than_half_a_second() {
        let [slow, fast] = [PeerId::random(), PeerId::random()];
        let mut limits = RateLimits::of_node(Bandwidth::mbit(80)).with_peers([(slow, Bandwidth::mbit(8))]);
        let limiter = Limiter::new(limits.clone());
        assert_eq!(limiter.window(&slow, Class::Model), Some(ByteSize(500_000)));
        assert_eq!(limiter.window(&fast, Class::Model), Some(ByteSize(5_000_000)));
        assert_eq!(limiter.window(&slow, Class::Call), None);
        assert_eq!(limiter.bulk_window(None), Some(ByteSize(500_000)));
        assert_eq!(limiter.bulk_window(Some(&fast)), Some(ByteSize(5_000_000)));
        assert_eq!(limiter.stream_window(), Some(ByteSize(5_000_000)));
        limits.node = None;
        limits.limit_class(Class::Model, Bandwidth::kbit(8)).unwrap();
        let limiter = Limiter::new(limits.clone());
        assert_eq!(limiter.window(&fast, Class::Model), Some(WINDOW_MIN));
        // The other class of bulk shares its connection, and has no limit.
        assert_eq!(limiter.bulk_window(Some(&fast)), None);
        assert_eq!(limiter.stream_window(), None);
        limits
            .limit_class(Class::Maintenance, Bandwidth::mbit(8))
            .unwrap();
        let limiter = Limiter::new(limits);
        assert_eq!(limiter.stream_window(), Some(ByteSize(500_000)));
        assert_eq!(limiter.bulk_window(Some(&fast)), Some(ByteSize(500_500)));
    }
}
