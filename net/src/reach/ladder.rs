//! Which path to a peer to try next: QUIC to each of its addresses, the way through a relay, the fallback over TLS.
//! Dials nobody, punches nothing and moves no messages.
//!
//! A peer is climbed to on all rungs nearly at once, so that the first that stands can be used, and the better ones
//! go on being tried: make before break. What is worse is let go a while after something better stands.

use crate::reach::dial_order::{relay_of, staggered};
use crate::{RelayedBecause, Rung, Udp};
use lapwing_base::Multiaddr;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Names one dial of one ladder.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DialId(pub u64);

/// What to do.
#[must_use]
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LadderAction {
    /// Dial, and report by [`Ladder::connected`] or [`Ladder::dial_failed`].
    Dial {
        /// Names it.
        id: DialId,
        /// Where to.
        address: Multiaddr,
    },
    /// Let a dial go, if it is still under way.
    Abandon(DialId),
    /// Offer an attempt to punch over what stands, and report a failure by [`Ladder::punch_failed`].
    Punch,
    /// New messages go this way, and channels move here.
    Prefer(Rung),
    /// Something better has stood for a while: close what stands on this rung.
    Retire(Rung),
    /// QUIC has had time and only the fallback stands: this side's network seems to block UDP; see
    /// [`crate::UdpVerdicts`].
    SawBlocked,
    /// Nothing stands and every address has failed; they are tried again then.
    Unreachable {
        /// When.
        retry_at: Instant,
    },
}

/// The way to one peer.
#[derive(Debug)]
pub struct Ladder {
    rng: StdRng,
    wanted: bool,
    udp: Udp,
    /// At most [`ADDRESSES_MAX`] of each rung, the likeliest first.
    addresses: [Vec<Multiaddr>; 3],
    dials: Vec<Dial>,
    next_id: u64,
    /// Since when a path stands, by [`Rung::index`].
    stands: [Option<Instant>; 3],
    told: Option<Rung>,
    /// Whether the last connection was direct, so that a relay is not asked at once.
    was_direct: bool,
    failures: u32,
    /// Connections in a row that were lost as soon as they stood.
    flaps: u32,
    /// How often QUIC was tried again beside a fallback of ours, or as many as count.
    retries: u32,
    next: Next,
    punch_at: Option<Instant>,
    punching: bool,
    because: RelayedBecause,
    /// When QUIC was dialed in vain while the fallback stood; told once for each climb.
    saw_blocked: bool,
    actions: VecDeque<LadderAction>,
}

#[derive(Debug)]
struct Dial {
    id: DialId,
    rung: Rung,
    address: Multiaddr,
    /// When it starts, or has started.
    at: Instant,
    started: bool,
}

/// What comes after the dials that are under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// Nothing is wanted, or the best stands.
    Rest,
    /// All rungs, from then on.
    Climb(Instant),
    /// Only what is better than what stands.
    Upgrade(Instant),
}

impl Ladder {
    /// A ladder whose jitter follows from the seed.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            wanted: false,
            udp: Udp::Unknown,
            addresses: [const { Vec::new() }; 3],
            dials: Vec::new(),
            next_id: 0,
            stands: [None; 3],
            told: None,
            was_direct: false,
            failures: 0,
            flaps: 0,
            retries: RETRIES_SOON,
            next: Next::Rest,
            punch_at: None,
            punching: false,
            because: RelayedBecause::NotTriedYet,
            saw_blocked: false,
            actions: VecDeque::new(),
        }
    }

    /// Whether somebody wants a connection. What stands is not closed when nobody does any more.
    pub fn want(&mut self, wanted: bool, now: Instant) {
        if self.wanted == wanted {
            return;
        }
        self.wanted = wanted;
        if wanted {
            self.next = match self.best() {
                None => Next::Climb(now),
                Some(Rung::Direct) => Next::Rest,
                Some(_) => Next::Upgrade(now),
            };
        } else {
            self.abandon(|_| true);
            self.next = Next::Rest;
        }
    }

    /// Where the peer may be, the likeliest first. An address that was not known is tried at once.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = Multiaddr>, now: Instant) {
        let mut by_rung = [const { Vec::new() }; 3];
        for address in addresses {
            if let Some(rung) = Rung::of(&address) {
                let list: &mut Vec<Multiaddr> = &mut by_rung[rung.index()];
                // Every address of one relay leads to the same circuit.
                let known = |other: &Multiaddr| {
                    *other == address || (rung == Rung::Relayed && relay_of(other) == relay_of(&address))
                };
                if list.len() < ADDRESSES_MAX && !list.iter().any(known) {
                    list.push(address);
                }
            }
        }
        let better = |rung: Rung| self.best().is_none_or(|best| rung > best);
        let news = Rung::ALL.into_iter().any(|rung| {
            let known = &self.addresses[rung.index()];
            better(rung)
                && by_rung[rung.index()]
                    .iter()
                    .any(|address| !known.contains(address))
        });
        self.addresses = by_rung;
        if news && self.wanted && self.best() != Some(Rung::Direct) {
            self.failures = 0;
            self.next = match self.best() {
                None => Next::Climb(now),
                Some(_) => Next::Upgrade(now),
            };
        }
    }

    /// What is known of UDP on this side's network.
    pub fn set_udp(&mut self, udp: Udp) {
        self.udp = udp;
    }

    /// This machine is in another network: everything may be otherwise, and what stands may be dead.
    pub fn network_changed(&mut self, now: Instant) {
        self.failures = 0;
        self.saw_blocked = false;
        self.abandon(|_| true);
        self.because = RelayedBecause::NotTriedYet;
        self.punch_at = None;
        self.punching = false;
        if self.wanted {
            self.next = match self.best() {
                None => Next::Climb(now),
                Some(_) => Next::Upgrade(now),
            };
        }
    }

    /// A connection stands, whoever dialed it and however it was found.
    pub fn connected(&mut self, rung: Rung, dial: Option<DialId>, now: Instant) {
        self.dials.retain(|other| Some(other.id) != dial);
        if rung == Rung::Fallback && dial.is_some() {
            // Whether UDP is blocked here or was only lost with everything else a moment ago shows soon.
            self.retries = 0;
        }
        self.stands[rung.index()] = Some(now);
        self.failures = 0;
        if rung == Rung::Direct {
            self.was_direct = true;
            self.punching = false;
            self.punch_at = None;
            self.saw_blocked = false;
        }
        // What is not better than this need not be waited for.
        self.abandon(|other| other <= rung);
        if self.best() == Some(Rung::Direct) {
            self.next = Next::Rest;
        } else if self.wanted && matches!(self.next, Next::Rest | Next::Climb(_)) {
            self.upgrade_soon(now);
        }
        // Whoever has dialed the circuit offers first: two offers that cross cost half a round trip more than one.
        self.punch_soon(if dial.is_some() { now } else { now + OFFER_LEAD });
        self.tell();
    }

    /// The last connection on a rung is gone.
    pub fn lost(&mut self, rung: Rung, now: Instant) {
        if let Some(since) = self.stands[rung.index()].take() {
            let brief = now.saturating_duration_since(since) < BRIEF;
            self.flaps = if brief { self.flaps.saturating_add(1) } else { 0 };
        }
        if self.best().is_none() {
            self.punching = false;
            self.because = RelayedBecause::NotTriedYet;
        }
        let again_at = now + self.flap_pause();
        if self.wanted && rung == Rung::Direct {
            // A mapping has run out or a router was restarted: what was learned about punching may not hold.
            self.punching = false;
            self.punch_at = Some(again_at);
        }
        if self.wanted {
            self.next = match self.best() {
                None => Next::Climb(again_at),
                Some(Rung::Direct) => Next::Rest,
                Some(_) => Next::Upgrade(again_at),
            };
        }
        self.tell();
    }

    /// A dial has come to nothing.
    pub fn dial_failed(&mut self, id: DialId, now: Instant) {
        self.dials.retain(|dial| dial.id != id);
        self.settle(now);
    }

    /// An attempt to punch has come to nothing, or could not be begun.
    pub fn punch_failed(&mut self, why: RelayedBecause, retry_at: Instant) {
        self.punching = false;
        self.because = why;
        self.punch_at = Some(retry_at);
    }

    /// What is to be done now; call until there is nothing more, after every input and at [`Self::next_at`].
    pub fn poll(&mut self, now: Instant) -> Option<LadderAction> {
        match self.next {
            Next::Climb(at) if at <= now => self.climb(now),
            Next::Upgrade(at) if at <= now => self.upgrade(now),
            Next::Rest | Next::Climb(_) | Next::Upgrade(_) => (),
        }
        for dial in &mut self.dials {
            if !dial.started && dial.at <= now {
                dial.started = true;
                let (id, address) = (dial.id, dial.address.clone());
                self.actions.push_back(LadderAction::Dial { id, address });
            }
        }
        let overdue: Vec<_> = self
            .dials
            .iter()
            .filter(|dial| dial.at + DIAL_PATIENCE <= now)
            .map(|dial| dial.id)
            .collect();
        for id in overdue {
            self.actions.push_back(LadderAction::Abandon(id));
            self.dial_failed(id, now);
        }
        if self.punch_due_at().is_some_and(|at| at <= now) {
            self.punching = true;
            self.punch_at = None;
            self.actions.push_back(LadderAction::Punch);
        }
        if let Some(at) = self.blocked_at()
            && at <= now
        {
            self.saw_blocked = true;
            self.actions.push_back(LadderAction::SawBlocked);
        }
        for rung in Rung::ALL {
            if self.retire_at(rung).is_some_and(|at| at <= now) {
                self.stands[rung.index()] = None;
                self.actions.push_back(LadderAction::Retire(rung));
            }
        }
        self.actions.pop_front()
    }

    /// When [`Self::poll`] has something to do.
    pub fn next_at(&self) -> Option<Instant> {
        let next = match self.next {
            Next::Rest => None,
            Next::Climb(at) | Next::Upgrade(at) => Some(at),
        };
        let dials = self.dials.iter().map(|dial| {
            if dial.started {
                dial.at + DIAL_PATIENCE
            } else {
                dial.at
            }
        });
        let retire = Rung::ALL.into_iter().filter_map(|rung| self.retire_at(rung));
        dials
            .chain(next)
            .chain(self.punch_due_at())
            .chain(self.blocked_at())
            .chain(retire)
            .min()
    }

    /// The best path that stands.
    pub fn best(&self) -> Option<Rung> {
        Rung::ALL
            .into_iter()
            .rev()
            .find(|rung| self.stands[rung.index()].is_some())
    }

    /// Why the peer is not reached directly; `None` while it is, or when nothing stands.
    pub fn because(&self) -> Option<RelayedBecause> {
        match self.best()? {
            Rung::Direct => None,
            _ if self.udp == Udp::Blocked => Some(RelayedBecause::UdpBlocked),
            _ if self.because == RelayedBecause::NotTriedYet && self.is_trying() => {
                Some(RelayedBecause::Trying)
            }
            Rung::Fallback if self.because == RelayedBecause::NotTriedYet => Some(RelayedBecause::TimedOut),
            Rung::Relayed | Rung::Fallback => Some(self.because),
        }
    }

    /// Begins on every rung.
    fn climb(&mut self, now: Instant) {
        self.next = Next::Rest;
        self.saw_blocked = false;
        let relayed_after = if self.was_direct {
            DIRECT_LEAD
        } else {
            Duration::ZERO
        };
        let quic = !self.addresses[Rung::Direct.index()].is_empty();
        let fallback_after = if self.udp == Udp::Blocked || !quic {
            Duration::ZERO
        } else {
            self.rng.random_range(FALLBACK_LEAD)
        };
        self.begin(Rung::Direct, Duration::ZERO, now);
        self.begin(Rung::Relayed, relayed_after, now);
        self.begin(Rung::Fallback, fallback_after, now);
        self.settle(now);
    }

    /// Begins on the rungs that are better than what stands.
    fn upgrade(&mut self, now: Instant) {
        self.upgrade_soon(now);
        let Some(best) = self.best() else {
            self.next = Next::Climb(now);
            return;
        };
        for rung in Rung::ALL {
            if rung > best {
                self.begin(rung, Duration::ZERO, now);
            }
        }
    }

    fn begin(&mut self, rung: Rung, after: Duration, now: Instant) {
        let mut addresses = self.addresses[rung.index()].clone();
        if rung == Rung::Direct {
            addresses = staggered(addresses);
        }
        let stagger = if rung == Rung::Relayed {
            RELAYED_STAGGER
        } else {
            STAGGER
        };
        let mut at = now + after;
        for address in addresses {
            let under_way = self.dials.iter().any(|dial| dial.address == address);
            if under_way || self.dials.len() >= DIALS_MAX {
                continue;
            }
            let id = DialId(self.next_id);
            self.next_id += 1;
            self.dials.push(Dial {
                id,
                rung,
                address,
                at,
                started: false,
            });
            at += stagger;
        }
    }

    /// Ends a climb of which nothing is left.
    fn settle(&mut self, now: Instant) {
        if !self.dials.is_empty() || self.best().is_some() || !self.wanted || self.next != Next::Rest {
            return;
        }
        // As between any two dials: doubling, with full jitter.
        self.failures = self.failures.saturating_add(1);
        let bound = BACKOFF_MIN
            .saturating_mul(1 << (self.failures - 1).min(16))
            .min(BACKOFF_MAX);
        // A second between climbs without an address would be too often already.
        let least = if self.addresses.iter().all(Vec::is_empty) {
            BACKOFF_MAX / 2
        } else {
            Duration::ZERO
        };
        let retry_at = now + least.max(bound.mul_f64(self.rng.random_range(0.0..=1.0)));
        self.next = Next::Climb(retry_at);
        self.actions.push_back(LadderAction::Unreachable { retry_at });
    }

    fn upgrade_soon(&mut self, now: Instant) {
        let better = |rung: &Rung| self.best().is_some_and(|best| *rung > best);
        let any = Rung::ALL
            .iter()
            .filter(|rung| better(rung))
            .any(|rung| !self.addresses[rung.index()].is_empty());
        let wait = if self.best() == Some(Rung::Fallback) && self.retries < RETRIES_SOON {
            self.retries += 1;
            let bound = RETRY_FIRST * (1 << (self.retries - 1));
            bound.mul_f64(self.rng.random_range(0.5..1.0))
        } else {
            self.rng.random_range(UPGRADE_EVERY)
        };
        self.next = if any {
            Next::Upgrade(now + wait)
        } else {
            Next::Rest
        };
    }

    /// Until the next attempt after a loss: none, unless what stood was lost at once and more than once.
    fn flap_pause(&self) -> Duration {
        match self.flaps.checked_sub(2) {
            None => Duration::ZERO,
            Some(more) => FLAP_MIN.saturating_mul(1 << more.min(16)).min(FLAP_MAX),
        }
    }

    fn punch_soon(&mut self, at: Instant) {
        if !self.punching && self.punch_at.is_none() {
            self.punch_at = Some(at);
        }
    }

    /// Only what goes through a relay is worth punching for: the fallback leads to a main, which is dialed.
    fn punch_due_at(&self) -> Option<Instant> {
        let due = self.wanted && !self.punching && self.best() == Some(Rung::Relayed);
        self.punch_at.filter(|_| due && self.udp != Udp::Blocked)
    }

    /// When QUIC has had its time while the fallback stood.
    fn blocked_at(&self) -> Option<Instant> {
        let since = self.stands[Rung::Fallback.index()]?;
        let quic = !self.addresses[Rung::Direct.index()].is_empty();
        (quic && !self.saw_blocked && self.best() == Some(Rung::Fallback)).then_some(since + QUIC_PATIENCE)
    }

    fn retire_at(&self, rung: Rung) -> Option<Instant> {
        let since = self.stands[rung.index()]?;
        let better = Rung::ALL
            .into_iter()
            .filter(|other| *other > rung)
            .filter_map(|other| self.stands[other.index()])
            .min()?;
        Some(better.max(since) + RETIRE_AFTER)
    }

    fn is_trying(&self) -> bool {
        self.punching || self.dials.iter().any(|dial| dial.rung == Rung::Direct)
    }

    fn abandon(&mut self, is: impl Fn(Rung) -> bool) {
        for dial in self.dials.iter().filter(|dial| is(dial.rung) && dial.started) {
            self.actions.push_back(LadderAction::Abandon(dial.id));
        }
        self.dials.retain(|dial| !is(dial.rung));
    }

    fn tell(&mut self) {
        let best = self.best();
        if best != self.told {
            self.told = best;
            if let Some(best) = best {
                self.actions.push_back(LadderAction::Prefer(best));
            }
        }
    }
}

/// Between two dials of one climb: an address that works answers within this on most networks.
const STAGGER: Duration = Duration::from_millis(50);
/// Between two relays: a circuit and the handshakes through it take several round trips, and each that stands besides
/// the first is for nothing.
const RELAYED_STAGGER: Duration = Duration::from_millis(250);
/// How long QUIC goes ahead of the fallback. Drawn, so that the homes of one main do not fall back together.
const FALLBACK_LEAD: std::ops::Range<Duration> = Duration::from_millis(250)..Duration::from_millis(400);
/// How long the side that was dialed waits for the other's offer, which follows the circuit at once.
const OFFER_LEAD: Duration = Duration::from_millis(300);
/// How long a direct dial goes ahead of the relay where the last connection was direct.
const DIRECT_LEAD: Duration = Duration::from_millis(200);
/// How often something better is tried while something worse stands.
const UPGRADE_EVERY: std::ops::Range<Duration> = Duration::from_secs(30)..Duration::from_secs(60);
/// QUIC is first tried again so long after the fallback came to stand, at the latest, then after twice as long, ...
const RETRY_FIRST: Duration = Duration::from_secs(4);
/// ... so often: up to 16 s, when [`UPGRADE_EVERY`] takes over.
const RETRIES_SOON: u32 = 3;
/// A QUIC handshake over 600 ms with two lost packets.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);
/// How long QUIC may take beside the fallback before the network counts as one that blocks UDP.
const QUIC_PATIENCE: Duration = Duration::from_secs(4);
/// Until the channels have moved: what they had in flight is acknowledged within seconds or sent again.
const RETIRE_AFTER: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// What is lost sooner was no use: the peer closes it, or the path does not carry.
const BRIEF: Duration = Duration::from_secs(5);
const FLAP_MIN: Duration = Duration::from_millis(500);
const FLAP_MAX: Duration = Duration::from_secs(60);
/// A peer that comes back is found within this.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// As many addresses of each rung as a peer may have without being a nuisance.
const ADDRESSES_MAX: usize = 8;
/// Dials of one peer at once.
const DIALS_MAX: usize = 16;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const V4: &str = "/ip4/203.0.113.9/udp/4001/quic-v1";
    const V6: &str = "/ip6/2001:db8::9/udp/4001/quic-v1";
    const LAN: &str = "/ip4/192.168.1.9/udp/4001/quic-v1";
    const RELAYED: &str = "/ip4/198.51.100.1/udp/4001/quic-v1/p2p-circuit";
    const FALLBACK: &str = "/ip4/203.0.113.9/tcp/443/tls/ws";

    #[test]
    fn addresses_are_dialed_nearest_first_and_ipv6_before_ipv4() {
        let mut peer = climbing(&[V4, V6, LAN]);
        let dialed = peer.dials_until(Duration::from_millis(200));
        let order: Vec<_> = dialed
            .iter()
            .map(|(_, at, address)| (*at, address.as_str()))
            .collect();
        assert_eq!(order, [(0, LAN), (50, V6), (100, V4)]);
    }

    #[test]
    fn the_relay_is_asked_beside_quic_and_the_fallback_a_little_later() {
        for seed in 0..50 {
            let mut peer = climbing_with(seed, &[V4, RELAYED, FALLBACK]);
            let dialed = peer.dials_until(Duration::from_secs(1));
            assert_eq!((dialed[0].2.as_str(), dialed[0].1), (V4, 0));
            assert_eq!((dialed[1].2.as_str(), dialed[1].1), (RELAYED, 0));
            assert_eq!(dialed[2].2, FALLBACK);
            assert!((250..400).contains(&dialed[2].1), "{}", dialed[2].1);
        }
    }

    #[test]
    fn where_udp_is_known_to_be_blocked_the_fallback_starts_at_once() {
        let mut peer = climbing(&[V4, FALLBACK]);
        peer.ladder.set_udp(Udp::Blocked);
        let dialed = peer.dials_until(Duration::ZERO);
        assert_eq!(dialed.len(), 2, "and QUIC beside it: {dialed:?}");
    }

    #[test]
    fn a_direct_connection_ends_everything_else() {
        let mut peer = climbing(&[V4, RELAYED, FALLBACK]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.ladder.connected(Rung::Direct, Some(dialed[0].0), peer.now);
        let actions = peer.drain();
        assert_eq!(
            actions,
            [
                LadderAction::Abandon(dialed[1].0),
                LadderAction::Prefer(Rung::Direct)
            ]
        );
        assert_eq!((peer.ladder.next_at(), peer.ladder.because()), (None, None));
    }

    #[test]
    fn over_a_relay_a_punch_is_offered_at_once_and_again_when_it_is_due() {
        let mut peer = climbing(&[RELAYED]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.ladder.connected(Rung::Relayed, Some(dialed[0].0), peer.now);
        assert_eq!(
            peer.drain(),
            [LadderAction::Prefer(Rung::Relayed), LadderAction::Punch]
        );
        assert_eq!(peer.ladder.because(), Some(RelayedBecause::Trying));
        let retry_at = peer.now + Duration::from_secs(40);
        peer.ladder.punch_failed(RelayedBecause::OneWay, retry_at);
        assert_eq!(peer.ladder.because(), Some(RelayedBecause::OneWay));
        assert_eq!(peer.ladder.next_at(), Some(retry_at));
        peer.now = retry_at;
        assert_eq!(peer.drain(), [LadderAction::Punch]);
    }

    #[test]
    fn a_punched_path_is_preferred_and_the_relayed_one_retired_later() {
        let mut peer = climbing(&[RELAYED]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.ladder.connected(Rung::Relayed, Some(dialed[0].0), peer.now);
        let _ = peer.drain();
        peer.ladder.connected(Rung::Direct, None, peer.now);
        assert!(peer.drain().contains(&LadderAction::Prefer(Rung::Direct)));
        assert_eq!(peer.ladder.next_at(), Some(peer.now + RETIRE_AFTER));
        peer.now += RETIRE_AFTER;
        assert_eq!(peer.drain(), [LadderAction::Retire(Rung::Relayed)]);
    }

    #[test]
    fn on_the_fallback_quic_is_tried_again_within_seconds_and_then_every_half_to_whole_minute() {
        let mut peer = climbing(&[V4, FALLBACK]);
        let dialed = peer.dials_until(Duration::from_millis(400));
        peer.ladder.connected(Rung::Fallback, Some(dialed[1].0), peer.now);
        peer.ladder.dial_failed(dialed[0].0, peer.now);
        let began = peer.now;
        let mut at = Vec::new();
        while peer.now < began + Duration::from_secs(600) {
            if let LadderAction::Dial { id, address } = peer.next() {
                assert_eq!(address.to_string(), V4);
                at.push((peer.now - began).as_millis());
                peer.now += Duration::from_secs(2);
                peer.ladder.dial_failed(id, peer.now);
            }
        }
        for (pair, wait) in [0].iter().chain(&at).zip(&at).zip([4_000, 8_000, 16_000]) {
            assert!((wait / 2..=wait).contains(&(pair.1 - pair.0)), "{at:?}");
        }
        for pair in at[2..].windows(2) {
            assert!((30_000..=60_000).contains(&(pair[1] - pair[0])), "{at:?}");
        }
    }

    #[test]
    fn who_was_reached_over_the_fallback_does_not_dial_back_in_a_hurry() {
        let mut peer = climbing(&[V4]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.ladder.connected(Rung::Fallback, None, peer.now);
        peer.ladder.dial_failed(dialed[0].0, peer.now);
        assert!(peer.dials_until(Duration::from_secs(29)).is_empty());
    }

    #[test]
    fn a_fallback_that_stands_while_quic_is_silent_is_seen_as_blocked_once() {
        let mut peer = climbing(&[V4, FALLBACK]);
        let dialed = peer.dials_until(Duration::from_millis(400));
        peer.ladder.connected(Rung::Fallback, Some(dialed[1].0), peer.now);
        let mut saw = 0;
        let end = peer.now + Duration::from_secs(20);
        while peer.now < end {
            let drained = peer.drain();
            saw += drained
                .iter()
                .filter(|action| **action == LadderAction::SawBlocked)
                .count();
            peer.now = peer.ladder.next_at().unwrap().max(peer.now);
        }
        assert_eq!(saw, 1);
        peer.ladder.set_udp(Udp::Blocked);
        assert_eq!(peer.ladder.because(), Some(RelayedBecause::UdpBlocked));
    }

    #[test]
    fn when_everything_fails_it_is_tried_again_ever_more_patiently() {
        let mut peer = climbing(&[V4]);
        let mut waits = Vec::new();
        for _ in 0..200 {
            match peer.next() {
                LadderAction::Dial { id, .. } => peer.ladder.dial_failed(id, peer.now),
                LadderAction::Unreachable { retry_at } => waits.push(retry_at - peer.now),
                other => panic!("{other:?}"),
            }
        }
        assert!(waits[0] <= BACKOFF_MIN && waits.iter().all(|wait| *wait <= BACKOFF_MAX));
        let late: Duration = waits[50..].iter().sum();
        assert!(late / 50 > Duration::from_secs(2));
    }

    #[test]
    fn a_dial_that_never_ends_is_abandoned() {
        let mut peer = climbing(&[V4]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.now += DIAL_PATIENCE;
        let actions = peer.drain();
        assert_eq!(actions[0], LadderAction::Abandon(dialed[0].0));
        assert!(matches!(actions[1], LadderAction::Unreachable { .. }));
    }

    #[test]
    fn a_lost_direct_path_is_climbed_to_at_once_and_the_relay_gets_a_later_start() {
        let mut peer = climbing(&[V4, RELAYED]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.ladder.connected(Rung::Direct, Some(dialed[0].0), peer.now);
        let _ = peer.drain();
        peer.now += Duration::from_secs(100);
        peer.ladder.lost(Rung::Direct, peer.now);
        let dialed = peer.dials_until(Duration::from_secs(1));
        let order: Vec<_> = dialed
            .iter()
            .map(|(_, at, address)| (*at, address.as_str()))
            .collect();
        assert_eq!(order, [(0, V4), (200, RELAYED)]);
    }

    #[test]
    fn a_relay_with_several_addresses_is_asked_once_and_another_a_little_later() {
        let relay = |number: u8, via: &str| {
            let key = lapwing_base::Keypair::ed25519_from_bytes([number; 32]).unwrap();
            format!("{via}/p2p/{}/p2p-circuit", key.public().to_peer_id())
        };
        let addresses = [
            relay(1, "/ip4/198.51.100.1/udp/4001/quic-v1"),
            relay(1, "/ip4/198.51.100.1/tcp/443/tls/ws"),
            relay(2, "/ip4/198.51.100.2/udp/4001/quic-v1"),
        ];
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        let mut peer = climbing(&addresses);
        let dialed = peer.dials_until(Duration::from_secs(1));
        let order: Vec<_> = dialed
            .iter()
            .map(|(_, at, address)| (*at, address.as_str()))
            .collect();
        assert_eq!(order, [(0, addresses[0]), (250, addresses[2])]);
    }

    #[test]
    fn a_direct_path_that_is_lost_as_soon_as_it_stands_is_looked_for_ever_more_patiently() {
        let mut peer = climbing(&[RELAYED]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.ladder.connected(Rung::Relayed, Some(dialed[0].0), peer.now);
        let _ = peer.drain();
        let mut waits = Vec::new();
        for _ in 0..12 {
            peer.ladder.connected(Rung::Direct, None, peer.now);
            peer.ladder.lost(Rung::Direct, peer.now);
            let since = peer.now;
            while peer.next() != LadderAction::Punch {}
            waits.push(peer.now - since);
        }
        assert_eq!(waits[..2], [Duration::ZERO, FLAP_MIN], "once may be an accident");
        assert_eq!(waits.last(), Some(&FLAP_MAX));
    }

    #[test]
    fn a_new_address_is_tried_at_once_and_an_old_one_is_not() {
        let mut peer = climbing(&[RELAYED]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.ladder.connected(Rung::Relayed, Some(dialed[0].0), peer.now);
        let _ = peer.drain();
        let addresses = [RELAYED, V4].map(|text| text.parse().unwrap());
        peer.ladder.set_addresses(addresses.clone(), peer.now);
        assert_eq!(peer.dials_until(Duration::ZERO).len(), 1);
        peer.ladder.set_addresses(addresses, peer.now);
        assert!(peer.dials_until(Duration::ZERO).is_empty());
    }

    #[test]
    fn nothing_is_dialed_for_nobody() {
        let mut peer = climbing(&[V4, RELAYED, FALLBACK]);
        let dialed = peer.dials_until(Duration::ZERO);
        peer.ladder.want(false, peer.now);
        assert_eq!(peer.drain().len(), dialed.len(), "all are abandoned");
        assert_eq!(peer.ladder.next_at(), None);
    }

    #[test]
    fn dials_are_bounded_whatever_a_peer_claims() {
        let many: Vec<_> = (1..200)
            .map(|n| format!("/ip4/203.0.113.{n}/udp/1/quic-v1"))
            .collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let mut peer = climbing(&many);
        assert_eq!(peer.dials_until(Duration::from_secs(5)).len(), ADDRESSES_MAX);
    }

    struct Peer {
        ladder: Ladder,
        now: Instant,
    }

    impl Peer {
        fn drain(&mut self) -> Vec<LadderAction> {
            std::iter::from_fn(|| self.ladder.poll(self.now)).collect()
        }

        /// The next action, whenever it comes.
        fn next(&mut self) -> LadderAction {
            loop {
                if let Some(action) = self.ladder.poll(self.now) {
                    return action;
                }
                self.now = self.ladder.next_at().unwrap().max(self.now);
            }
        }

        /// What is dialed within so long, and after how many milliseconds.
        fn dials_until(&mut self, patience: Duration) -> Vec<(DialId, u128, String)> {
            let (start, end) = (self.now, self.now + patience);
            let mut dialed = Vec::new();
            loop {
                for action in self.drain() {
                    if let LadderAction::Dial { id, address } = action {
                        dialed.push((id, (self.now - start).as_millis(), address.to_string()));
                    }
                }
                match self.ladder.next_at() {
                    Some(at) if at <= end => self.now = at.max(self.now),
                    _ => break,
                }
            }
            self.now = end;
            dialed
        }
    }

    fn climbing(addresses: &[&str]) -> Peer {
        climbing_with(1, addresses)
    }

    fn climbing_with(seed: u64, addresses: &[&str]) -> Peer {
        let now = Instant::now();
        let mut ladder = Ladder::new(seed);
        ladder.set_addresses(addresses.iter().map(|text| text.parse().unwrap()), now);
        ladder.want(true, now);
        Peer { ladder, now }
    }
}
