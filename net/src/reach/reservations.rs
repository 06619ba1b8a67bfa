//! At which relays this node holds reservations, so that others can reach it through them. Makes none itself.
//!
//! Two are held, so that one relay's death leaves a way in. Relays are chosen by round-trip time, but not strictly:
//! the homes of one city would all choose the same. After a relay's death its homes turn elsewhere within half a
//! second each, spread by full jitter ("Exponential Backoff and Jitter", AWS Architecture Blog, 2015).

use lapwing_base::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What to do with a relay.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReservationAction {
    /// Connect if need be, and ask for a reservation or for a longer one.
    Reserve(PeerId),
    /// Let the reservation go.
    Release(PeerId),
}

/// Why a relay gave no reservation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ReservationRefusal {
    /// It has none left.
    NoSlots,
    /// It does not serve this node.
    NotAllowed,
    /// It is no relay.
    NotARelay,
}

/// One reservation that stands, for the status document.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reservation {
    /// The relay that keeps it.
    pub relay: PeerId,
    /// Until when, unless it is renewed.
    pub expires_at: Instant,
}

/// Keeps reservations at a number of relays.
#[derive(Debug)]
pub struct Reservations {
    /// How many to hold; 0 for a node that everybody can reach.
    wanted: usize,
    relays: BTreeMap<PeerId, Relay>,
    /// After a loss the next relay is asked at once, at full jitter.
    not_before: Option<Instant>,
    rng: StdRng,
    releases: Vec<PeerId>,
}

#[derive(Clone, Copy, Debug)]
struct Relay {
    rtt: Option<Duration>,
    failures: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Idle,
    /// Asked; nothing is counted on before the answer.
    Asked {
        gives_up_at: Instant,
    },
    Held {
        expires_at: Instant,
        renew_at: Instant,
        /// Renewal is under way until then.
        asked_until: Option<Instant>,
    },
    /// It has refused or failed; not to be asked before.
    Shunned {
        until: Instant,
    },
}

impl Reservations {
    /// How many reservations a home holds by default: one relay may die at any time.
    pub const WANTED: usize = 2;

    /// Holds `wanted` reservations once relays are known.
    pub fn new(wanted: usize, seed: u64) -> Self {
        Self {
            wanted,
            relays: BTreeMap::new(),
            not_before: None,
            rng: StdRng::seed_from_u64(seed),
            releases: Vec::new(),
        }
    }

    /// Changes how many to hold: a node that everybody reaches holds none, one that became a home holds some again.
    pub fn set_wanted(&mut self, wanted: usize) {
        self.wanted = wanted;
        let mut held: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, relay)| relay.is_promising())
            .map(|(peer, relay)| (relay.rtt.unwrap_or(RTT_UNKNOWN), *peer))
            .collect();
        held.sort_unstable();
        for (_, peer) in held.drain(..).skip(wanted) {
            if let Some(relay) = self.relays.get_mut(&peer) {
                relay.state = State::Idle;
                self.releases.push(peer);
            }
        }
    }

    /// A main is known, and its round-trip time if it was measured.
    pub fn learn(&mut self, peer: PeerId, rtt: Option<Duration>) {
        if let Some(relay) = self.relays.get_mut(&peer) {
            relay.rtt = rtt.or(relay.rtt);
        } else if self.relays.len() < RELAYS_MAX {
            let state = State::Idle;
            let failures = 0;
            self.relays.insert(peer, Relay { rtt, failures, state });
        }
    }

    /// A peer is no main any more.
    pub fn forget(&mut self, peer: &PeerId) {
        self.relays.remove(peer);
    }

    /// A relay has granted a reservation, or a longer one.
    pub fn granted(&mut self, peer: PeerId, lifetime: Duration, now: Instant) {
        let wanted = self.wanted;
        let held = self.held_besides(&peer);
        let Some(relay) = self.relays.get_mut(&peer) else {
            self.releases.push(peer);
            return;
        };
        if held >= wanted {
            // Two that were asked at once may both have granted.
            relay.state = State::Idle;
            self.releases.push(peer);
            return;
        }
        relay.failures = 0;
        // Homes that reserved together do not renew together.
        let share = self.rng.random_range(0.5..0.75);
        relay.state = State::Held {
            expires_at: now + lifetime,
            renew_at: now + lifetime.mul_f64(share),
            asked_until: None,
        };
    }

    /// A relay has refused.
    pub fn refused(&mut self, peer: &PeerId, why: ReservationRefusal, now: Instant) {
        let pause = match why {
            ReservationRefusal::NoSlots => NO_SLOTS_PAUSE,
            ReservationRefusal::NotAllowed | ReservationRefusal::NotARelay => NOT_ALLOWED_PAUSE,
        };
        let pause = pause.mul_f64(self.rng.random_range(0.8..1.2));
        if let Some(relay) = self.relays.get_mut(peer) {
            let until = now + pause;
            relay.state = State::Shunned { until };
        }
    }

    /// A relay could not be asked, did not answer, or its connection with the reservation is gone.
    pub fn lost(&mut self, peer: &PeerId, now: Instant) {
        let Some(relay) = self.relays.get_mut(peer) else {
            return;
        };
        let was_held = matches!(relay.state, State::Held { .. });
        relay.failures = relay.failures.saturating_add(1);
        let bound = BACKOFF_MIN
            .saturating_mul(1 << (relay.failures - 1).min(16))
            .min(BACKOFF_MAX);
        // Elsewhere first: at least half the bound before the same relay again.
        let until = now + bound.mul_f64(self.rng.random_range(0.5..1.0));
        relay.state = State::Shunned { until };
        if was_held {
            let spread = LOSS_SPREAD.mul_f64(self.rng.random_range(0.0..1.0));
            self.not_before = Some(now + spread);
        }
    }

    /// The network has changed: what failed may work now, what was held is to be made sure of.
    pub fn network_changed(&mut self, now: Instant) {
        for relay in self.relays.values_mut() {
            relay.failures = 0;
            match &mut relay.state {
                State::Shunned { until } => *until = now,
                State::Held { renew_at, .. } => *renew_at = now,
                State::Idle | State::Asked { .. } => (),
            }
        }
    }

    /// What is to be done now; call after every input and at [`Self::next_at`].
    pub fn poll(&mut self, now: Instant) -> Vec<ReservationAction> {
        let overdue: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, relay)| relay.is_overdue(now))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in overdue {
            self.lost(&peer, now);
        }
        let releases = self.releases.drain(..).map(ReservationAction::Release);
        let mut actions: Vec<_> = releases.collect();
        for (peer, relay) in &mut self.relays {
            if let State::Held {
                renew_at,
                asked_until,
                ..
            } = &mut relay.state
                && *renew_at <= now
                && asked_until.is_none_or(|until| until <= now)
            {
                // A renewal that is not answered is asked for again until the reservation expires.
                *asked_until = Some(now + RENEW_AGAIN);
                actions.push(ReservationAction::Reserve(*peer));
            }
        }
        if self.not_before.is_some_and(|at| now < at) {
            return actions;
        }
        self.not_before = None;
        let promising = self.relays.values().filter(|relay| relay.is_promising()).count();
        for _ in promising..self.wanted {
            let Some(peer) = self.choose(now) else {
                break;
            };
            if let Some(relay) = self.relays.get_mut(&peer) {
                let gives_up_at = now + PATIENCE;
                relay.state = State::Asked { gives_up_at };
                actions.push(ReservationAction::Reserve(peer));
            }
        }
        actions
    }

    /// When [`Self::poll`] has something to do.
    pub fn next_at(&self) -> Option<Instant> {
        let promising = self.relays.values().filter(|relay| relay.is_promising()).count();
        let short = promising < self.wanted;
        let states = self.relays.values().filter_map(|relay| match relay.state {
            State::Idle if short => self.not_before,
            State::Shunned { until } if short => Some(self.not_before.map_or(until, |at| at.max(until))),
            State::Idle | State::Shunned { .. } => None,
            State::Asked { gives_up_at } => Some(gives_up_at),
            State::Held {
                expires_at,
                renew_at,
                asked_until,
            } => Some(asked_until.unwrap_or(renew_at).min(expires_at)),
        });
        states.min()
    }

    /// Whether a relay's answer is waited for.
    pub fn asks(&self, peer: &PeerId) -> bool {
        let relay = self.relays.get(peer);
        relay.is_some_and(|relay| matches!(relay.state, State::Asked { .. }))
    }

    /// The reservations that stand.
    pub fn held(&self) -> impl Iterator<Item = Reservation> + '_ {
        self.relays.iter().filter_map(|(peer, relay)| match relay.state {
            State::Held { expires_at, .. } => Some(Reservation {
                relay: *peer,
                expires_at,
            }),
            State::Idle | State::Asked { .. } | State::Shunned { .. } => None,
        })
    }

    fn held_besides(&self, peer: &PeerId) -> usize {
        self.held()
            .filter(|reservation| reservation.relay != *peer)
            .count()
    }

    /// One of the near relays, at random among those that are about as near as the nearest.
    fn choose(&mut self, now: Instant) -> Option<PeerId> {
        let mut ready: Vec<_> = self
            .relays
            .iter()
            .filter(|(_, relay)| match relay.state {
                State::Idle => true,
                State::Shunned { until } => until <= now,
                State::Asked { .. } | State::Held { .. } => false,
            })
            .map(|(peer, relay)| (relay.failures_at(now), relay.rtt.unwrap_or(RTT_UNKNOWN), *peer))
            .collect();
        // What has failed lately comes last, however near it is.
        ready.sort_unstable();
        let &(failures, nearest, _) = ready.first()?;
        let far = nearest.mul_f64(NEAR_FACTOR) + NEAR_MARGIN;
        let alike = |relay: &&(u32, Duration, PeerId)| relay.0 == failures && relay.1 <= far;
        let alike = ready.iter().take_while(alike).count();
        Some(ready[self.rng.random_range(0..alike)].2)
    }
}

impl Relay {
    fn is_promising(&self) -> bool {
        matches!(self.state, State::Asked { .. } | State::Held { .. })
    }

    /// Failures in a row, unless they are long past.
    fn failures_at(&self, now: Instant) -> u32 {
        match self.state {
            State::Shunned { until } if now < until + FORGIVEN => self.failures,
            _ => 0,
        }
    }

    fn is_overdue(&self, now: Instant) -> bool {
        match self.state {
            State::Asked { gives_up_at } => gives_up_at <= now,
            State::Held { expires_at, .. } => expires_at <= now,
            State::Idle | State::Shunned { .. } => false,
        }
    }
}

/// A handshake and a question take 3 RTT: 1.8 s on the slowest link that is planned for. Two relays can be
/// tried in vain and a third still be held 5 s after a loss.
const PATIENCE: Duration = Duration::from_secs(2);
/// Spreads the homes of a dead relay: 2,000 of them make 4 handshakes per millisecond and not 2,000.
const LOSS_SPREAD: Duration = Duration::from_millis(500);
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// A relay that comes back has its homes again within a minute or so, if they need it.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A relay that failed longer ago is as good as any other.
const FORGIVEN: Duration = Duration::from_secs(600);
/// Slots come free as homes leave or their reservations run out.
const NO_SLOTS_PAUSE: Duration = Duration::from_secs(120);
/// Somebody has to enrol this node first.
const NOT_ALLOWED_PAUSE: Duration = Duration::from_secs(600);
const RENEW_AGAIN: Duration = Duration::from_secs(10);
/// What is assumed of a relay that nobody has measured: worse than a near one, better than another continent.
const RTT_UNKNOWN: Duration = Duration::from_millis(150);
/// Relays that are about as near as the nearest share the load.
const NEAR_FACTOR: f64 = 1.25;
const NEAR_MARGIN: Duration = Duration::from_millis(10);
/// More mains than a node needs to know in order to find two that have room.
const RELAYS_MAX: usize = 64;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use ReservationAction::{Release, Reserve};

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn two_relays_of_the_nearest_are_asked() {
        let now = Instant::now();
        let mut all = Reservations::new(2, 1);
        let near = [PeerId::random(), PeerId::random()];
        for peer in near {
            all.learn(peer, Some(Duration::from_millis(20)));
        }
        for _ in 0..10 {
            all.learn(PeerId::random(), Some(Duration::from_millis(200)));
        }
        let mut asked = reserved(&all.poll(now));
        asked.sort_unstable();
        let mut expected = near.to_vec();
        expected.sort_unstable();
        assert_eq!(asked, expected);
        assert!(all.poll(now).is_empty(), "once");
        for peer in near {
            all.granted(peer, HOUR, now);
        }
        assert_eq!(all.held().count(), 2);
    }

    #[test]
    fn a_lost_relay_is_replaced_within_five_seconds_even_if_the_first_choice_is_dead_too() {
        for seed in 0..200 {
            let now = Instant::now();
            let (mut all, peers) = holding(seed, now);
            let alive = PeerId::random();
            let dead = PeerId::random();
            all.learn(alive, Some(Duration::from_millis(40)));
            all.learn(dead, Some(Duration::from_millis(5)));
            all.lost(&peers[0], now);
            let replaced = loop {
                let at = all.next_at().unwrap();
                for peer in reserved(&all.poll(at)) {
                    if peer == alive {
                        all.granted(peer, HOUR, at);
                    }
                }
                if all.held().count() == 2 {
                    break at;
                }
            };
            assert!(replaced - now < Duration::from_secs(5), "seed {seed}");
        }
    }

    #[test]
    fn the_homes_of_a_dead_relay_do_not_turn_elsewhere_at_once() {
        let now = Instant::now();
        let mut by_window = [0_u32; 10];
        for seed in 0..2000 {
            let (mut all, peers) = holding(seed, now);
            all.learn(PeerId::random(), None);
            all.lost(&peers[0], now);
            let at = all.next_at().unwrap();
            let window = (at - now).as_millis() / 50;
            by_window[usize::try_from(window).unwrap()] += 1;
        }
        assert!(
            by_window.iter().all(|homes| (120..280).contains(homes)),
            "{by_window:?}"
        );
    }

    #[test]
    fn a_dead_relay_is_asked_ever_less_often() {
        let now = Instant::now();
        let mut all = Reservations::new(1, 3);
        all.learn(PeerId::random(), None);
        let mut at = now;
        let mut asked = Vec::new();
        while at < now + HOUR {
            if !reserved(&all.poll(at)).is_empty() {
                asked.push(at);
            }
            at = all.next_at().unwrap();
        }
        assert!(asked[1] - asked[0] < Duration::from_secs(4));
        assert!(asked.len() < 100, "{}", asked.len());
        let last = asked[asked.len() - 1] - asked[asked.len() - 2];
        assert!(last >= BACKOFF_MAX / 2 && last <= BACKOFF_MAX + PATIENCE);
    }

    #[test]
    fn reservations_are_renewed_before_they_expire_and_not_all_at_once() {
        let now = Instant::now();
        let (mut all, peers) = holding(1, now);
        let first = all.next_at().unwrap();
        assert!(first >= now + HOUR / 2 && first < now + HOUR * 3 / 4);
        let renewing = reserved(&all.poll(first));
        assert_eq!(renewing.len(), 1);
        all.granted(renewing[0], HOUR, first);
        assert!(peers.contains(&renewing[0]));
        assert!(all.held().any(|held| held.expires_at == first + HOUR));
    }

    #[test]
    fn a_renewal_without_an_answer_is_asked_for_again_and_then_replaced() {
        let now = Instant::now();
        let mut all = Reservations::new(1, 1);
        let peer = PeerId::random();
        all.learn(peer, None);
        assert_eq!(all.poll(now), [Reserve(peer)]);
        all.granted(peer, Duration::from_secs(60), now);
        let (mut asked, mut at) = (0, now);
        while at < now + Duration::from_secs(60) {
            at = all.next_at().unwrap();
            asked += reserved(&all.poll(at)).len();
        }
        assert!(asked >= 2, "{asked}");
        assert_eq!(all.held().count(), 0);
    }

    #[test]
    fn a_relay_without_slots_is_left_alone_for_a_while() {
        let now = Instant::now();
        let mut all = Reservations::new(1, 1);
        let (full, free) = (PeerId::random(), PeerId::random());
        all.learn(full, Some(Duration::from_millis(1)));
        assert_eq!(all.poll(now), [Reserve(full)]);
        all.refused(&full, ReservationRefusal::NoSlots, now);
        assert!(all.next_at().unwrap() > now + Duration::from_secs(60));
        all.learn(free, Some(Duration::from_millis(500)));
        assert_eq!(all.poll(now), [Reserve(free)]);
    }

    #[test]
    fn a_better_relay_moves_nothing() {
        let now = Instant::now();
        let (mut all, _) = holding(1, now);
        all.learn(PeerId::random(), Some(Duration::from_millis(1)));
        assert!(all.poll(now).is_empty());
    }

    #[test]
    fn a_main_gives_its_reservations_up_and_a_home_takes_them_again() {
        let now = Instant::now();
        let (mut all, peers) = holding(1, now);
        all.set_wanted(0);
        let mut released: Vec<_> = all.poll(now);
        released.sort_unstable_by_key(|action| format!("{action:?}"));
        let mut expected: Vec<_> = peers.into_iter().map(Release).collect();
        expected.sort_unstable_by_key(|action| format!("{action:?}"));
        assert_eq!(released, expected);
        assert_eq!((all.held().count(), all.next_at()), (0, None));
        all.set_wanted(2);
        assert_eq!(reserved(&all.poll(now)).len(), 2);
    }

    #[test]
    fn a_grant_that_nobody_needs_any_more_is_released() {
        let now = Instant::now();
        let (mut all, _) = holding(1, now);
        let late = PeerId::random();
        all.learn(late, None);
        all.granted(late, HOUR, now);
        assert_eq!(all.poll(now), [Release(late)]);
    }

    #[test]
    fn another_network_makes_sure_of_what_was_held() {
        let now = Instant::now();
        let (mut all, _) = holding(1, now);
        all.network_changed(now);
        assert_eq!(reserved(&all.poll(now)).len(), 2);
    }

    fn holding(seed: u64, now: Instant) -> (Reservations, [PeerId; 2]) {
        let mut all = Reservations::new(2, seed);
        let peers = [PeerId::random(), PeerId::random()];
        for peer in peers {
            all.learn(peer, Some(Duration::from_millis(30)));
        }
        assert_eq!(reserved(&all.poll(now)).len(), 2);
        for peer in peers {
            all.granted(peer, HOUR, now);
        }
        (all, peers)
    }

    fn reserved(actions: &[ReservationAction]) -> Vec<PeerId> {
        let reserve = |action: &ReservationAction| match action {
            Reserve(peer) => Some(*peer),
            Release(_) => None,
        };
        actions.iter().filter_map(reserve).collect()
    }
}
