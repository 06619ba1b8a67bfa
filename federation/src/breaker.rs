//! Decides whether one instance of a service, or one link to a peer, may be called.
//!
//! Pure: it reads no clock, makes no call and spawns nothing. Ask [`Breaker::admit`] before a call, and report with
//! [`Breaker::on_end`] after it. Which instance is asked is the balancer's business.

use crate::window::{Tally, Window};
use crate::{CallError, ErrorCode};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// Shields what keeps failing until it has had time to recover.
///
/// It opens after some failures in a row, or when at least half of at least [`Breaker::CALLS_MIN`] calls of the last ten
/// seconds have failed. While it is open it lets one probe through per cool-down: one that succeeds closes it, one that
/// fails doubles the cool-down. "Half-open" is a moment and not a state, so a lost probe cannot wedge it.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    recent: Window,
    /// Grows with each opening and each probe, so that a ticket tells what it is older than.
    serial: u64,
    rng: StdRng,
}

impl Breaker {
    /// Of fewer calls the share that failed says nothing.
    pub const CALLS_MIN: u64 = 10;

    /// A closed one, with a jitter that follows from the seed.
    pub fn new(config: BreakerConfig, seed: u64) -> Self {
        let state = State::Closed {
            failures: 0,
            recovered: None,
        };
        Self {
            config,
            state,
            recent: Window::default(),
            serial: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Whether a call may start at `now`.
    pub fn admit(&mut self, now: Instant) -> Verdict {
        match self.state {
            State::Closed { .. } => Verdict::Call(self.ticket(Kind::Normal)),
            State::Open { retry_at, .. } if now < retry_at => Verdict::Refuse { retry_at },
            State::Open {
                doublings, opened, ..
            } => {
                self.serial += 1;
                // Renew the wait at once: a probe that never reports must not block the next one.
                self.open(now, doublings, opened);
                Verdict::Call(self.ticket(Kind::Probe))
            }
        }
    }

    /// Lets a call through whatever the state, for when too many instances are ejected.
    ///
    /// While the breaker is open such a call closes it by its success, as a probe would; its failure was expected and
    /// changes nothing.
    pub fn admit_anyway(&mut self, now: Instant) -> Ticket {
        match self.admit(now) {
            Verdict::Call(ticket) => ticket,
            Verdict::Refuse { .. } => self.ticket(Kind::Forced),
        }
    }

    /// A call has ended.
    pub fn on_end(&mut self, ticket: Ticket, now: Instant, outcome: Outcome) {
        match self.state {
            State::Closed { .. } if ticket.kind == Kind::Normal && ticket.serial == self.serial => {
                self.count(now, outcome);
            }
            State::Open {
                doublings, opened, ..
            } if ticket.kind != Kind::Normal && ticket.serial >= opened => {
                self.judge(ticket, now, outcome, doublings, opened);
            }
            // A straggler from before the last change says nothing about the instance now.
            State::Closed { .. } | State::Open { .. } => (),
        }
    }

    /// When the next probe may go; `None` while calls pass.
    pub fn retry_at(&self) -> Option<Instant> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { retry_at, .. } => Some(retry_at),
        }
    }

    /// How long it is until then, for the error of a call that was refused; `None` while calls pass.
    pub fn retry_after(&self, now: Instant) -> Option<Duration> {
        self.retry_at().map(|at| at.saturating_duration_since(now))
    }

    /// Whether calls are refused, except for probes.
    pub fn is_open(&self) -> bool {
        self.retry_at().is_some()
    }

    fn ticket(&self, kind: Kind) -> Ticket {
        let serial = self.serial;
        Ticket { serial, kind }
    }

    /// Takes the end of a call into account that began since the breaker closed last.
    fn count(&mut self, now: Instant, outcome: Outcome) {
        let State::Closed { failures, recovered } = &mut self.state else {
            return;
        };
        let has_failed = match outcome {
            Outcome::Success | Outcome::CallersFault => false,
            Outcome::ServersFault => true,
            Outcome::Unknown => return,
        };
        *failures = if has_failed { failures.saturating_add(1) } else { 0 };
        let marked = u64::from(has_failed);
        self.recent.add(now, Tally { all: 1, marked });
        let total = self.recent.total(now);
        let is_mostly_failing = total.all >= Self::CALLS_MIN && total.marked * 2 >= total.all;
        if *failures < self.config.failures_in_a_row_max.max(1) && !is_mostly_failing {
            return;
        }
        let doublings = match recovered {
            Some(recovered) if now.saturating_duration_since(recovered.at) < FORGIVEN_AFTER => {
                recovered.doublings.saturating_add(1)
            }
            _ => 0,
        };
        self.serial += 1;
        self.open(now, doublings, self.serial);
    }

    /// Takes the end of a call into account that was let through since the breaker opened.
    fn judge(&mut self, ticket: Ticket, now: Instant, outcome: Outcome, doublings: u32, opened: u64) {
        match outcome {
            // Also of a probe that others have followed: it began after the failures, and an instance may be slow.
            Outcome::Success | Outcome::CallersFault => {
                let recovered = Some(Recovered { at: now, doublings });
                self.state = State::Closed {
                    failures: 0,
                    recovered,
                };
                self.recent = Window::default();
            }
            Outcome::ServersFault if ticket.kind == Kind::Probe => {
                self.open(now, doublings.saturating_add(1), opened);
            }
            // It was no probe after all, and the instance may be well: the next call is one.
            Outcome::Unknown if ticket.kind == Kind::Probe && ticket.serial == self.serial => {
                let retry_at = now;
                self.state = State::Open {
                    doublings,
                    opened,
                    retry_at,
                };
            }
            Outcome::ServersFault | Outcome::Unknown => (),
        }
    }

    fn open(&mut self, now: Instant, doublings: u32, opened: u64) {
        let times = 2_u32.saturating_pow(doublings);
        let cool_down = self.config.cool_down.saturating_mul(times);
        let wait = cool_down
            .min(self.config.cool_down_max)
            .mul_f64(self.rng.random_range(JITTER));
        self.state = State::Open {
            doublings,
            opened,
            retry_at: now + wait,
        };
    }
}

/// Of each cool-down between half and all is waited, so that the callers of an instance that has failed for all of them
/// do not come back in one crowd.
const JITTER: RangeInclusive<f64> = 0.5..=1.0;

/// Whoever opens again sooner than the longest cool-down has not recovered but flaps: its cool-down grows on from where
/// it was.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);

/// How much a breaker puts up with, and how long it waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BreakerConfig {
    /// Failures in a row that open it, at least 1. By default 5: ten calls to what fails must have opened it. Fewer eject instances
    /// for one short loss of a link.
    pub failures_in_a_row_max: u32,
    /// How long it waits before the first probe, by default 30 s; each probe that fails doubles it. A probe is somebody's
    /// call, which is likely to fail.
    pub cool_down: Duration,
    /// How long it waits at most, by default 300 s: that long an instance may be well without being called.
    pub cool_down_max: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures_in_a_row_max: 5,
            cool_down: Duration::from_secs(30),
            cool_down_max: Duration::from_secs(300),
        }
    }
}

/// Whether a call may start.
#[must_use]
#[derive(Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It may; the ticket is handed back with its end.
    Call(Ticket),
    /// It may not.
    Refuse {
        /// When the next probe may go.
        retry_at: Instant,
    },
}

/// Handed out with a call and handed back with its end.
#[must_use]
#[derive(Debug, Eq, PartialEq)]
pub struct Ticket {
    serial: u64,
    kind: Kind,
}

impl Ticket {
    /// Whether its call is the one that tests whether the instance has recovered.
    pub fn is_probe(&self) -> bool {
        self.kind == Kind::Probe
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Let through while closed.
    Normal,
    /// Let through while open, once per cool-down.
    Probe,
    /// Let through while open because too many others are open too.
    Forced,
}

/// What the end of a call says about whoever was called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It has answered.
    Success,
    /// It has answered that the call is wrong: it is well, and somebody else is to blame.
    CallersFault,
    /// It has failed, or could not be reached.
    ServersFault,
    /// The call was withdrawn, or refused before it came to the service. That says nothing either way: as a success it
    /// would close breakers of instances nobody has heard of, as a failure anybody could open them.
    Unknown,
}

impl Outcome {
    /// What an error says.
    pub fn of(error: &CallError) -> Self {
        match error.code {
            ErrorCode::Timeout
            | ErrorCode::NodeOffline
            | ErrorCode::Overloaded
            | ErrorCode::Internal
            | ErrorCode::PeerUnreachable => Self::ServersFault,
            ErrorCode::RemoteError => match &error.remote {
                Some(remote) if remote.fault => Self::ServersFault,
                _ => Self::CallersFault,
            },
            ErrorCode::MethodNotFound | ErrorCode::InvalidParams | ErrorCode::DuplicateRequest => {
                Self::CallersFault
            }
            // Those of another breaker are left to that one: two of which each waits for the other's probe stay open.
            ErrorCode::CircuitOpen | ErrorCode::NoHealthyInstance => Self::Unknown,
            // The way, a policy or the caller was the reason; whether the service is well was not found out.
            ErrorCode::ParseError
            | ErrorCode::InvalidRequest
            | ErrorCode::ServiceNotFound
            | ErrorCode::NodeNotFound
            | ErrorCode::HopLimitExceeded
            | ErrorCode::RoutingLoop
            | ErrorCode::RateLimited
            | ErrorCode::Unauthenticated
            | ErrorCode::ForbiddenByPolicy
            | ErrorCode::PayloadTooLarge
            | ErrorCode::VersionUnsatisfied
            | ErrorCode::MalformedMessage
            | ErrorCode::DependencyCycle
            | ErrorCode::DependencyFailed
            | ErrorCode::StaleEpoch
            | ErrorCode::Cancelled => Self::Unknown,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Calls pass.
    Closed {
        /// Since the last success.
        failures: u32,
        recovered: Option<Recovered>,
    },
    /// Calls are refused, except one probe each time `retry_at` passes.
    Open {
        /// How often the cool-down has doubled.
        doublings: u32,
        /// The serial of the opening: older tickets are of calls from before.
        opened: u64,
        retry_at: Instant,
    },
}

/// When it last closed, and how far its cool-down had grown by then.
#[derive(Clone, Copy, Debug)]
struct Recovered {
    at: Instant,
    doublings: u32,
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use crate::RemoteError;
    use proptest::prelude::*;

    #[test]
    fn ten_calls_to_a_failing_service_open_its_breaker() {
        let now = Instant::now();
        let mut breaker = breaker();
        let admitted = (0..10).filter(|_| call(&mut breaker, now, Outcome::ServersFault));
        assert_eq!(admitted.count(), 5);
        assert!(breaker.is_open() && breaker.retry_after(now).unwrap() >= Duration::from_secs(15));
    }

    #[test]
    fn a_success_forgives_earlier_failures_in_a_row() {
        let now = Instant::now();
        let mut breaker = breaker();
        for outcome in [Outcome::Success, Outcome::CallersFault] {
            (0..4).for_each(|_| assert!(call(&mut breaker, now, Outcome::ServersFault)));
            call(&mut breaker, now + Duration::from_secs(11), outcome);
            assert!(!breaker.is_open());
        }
    }

    #[test]
    fn half_of_ten_calls_failing_open_it_and_half_of_nine_do_not() {
        let now = Instant::now();
        let mut breaker = breaker();
        for i in 0..9 {
            call(&mut breaker, now, fails_if(i % 2 == 0));
        }
        assert!(!breaker.is_open());
        call(&mut breaker, now, Outcome::Success);
        assert!(breaker.is_open());
    }

    #[test]
    fn what_failed_more_than_ten_seconds_ago_is_forgotten() {
        let start = Instant::now();
        let mut breaker = breaker();
        for i in 0..8 {
            call(&mut breaker, start, fails_if(i % 2 == 0));
        }
        let later = start + Duration::from_secs(10);
        for i in 0..9 {
            call(&mut breaker, later, fails_if(i % 3 == 0));
        }
        assert_eq!(breaker.recent.total(later), Tally { all: 9, marked: 3 });
        assert!(!breaker.is_open());
    }

    #[test]
    fn callers_faults_and_withdrawn_calls_never_open_it() {
        let now = Instant::now();
        let mut breaker = breaker();
        for _ in 0..100 {
            assert!(call(&mut breaker, now, Outcome::CallersFault));
            assert!(call(&mut breaker, now, Outcome::Unknown));
        }
    }

    #[test]
    fn sends_one_probe_per_cool_down_even_if_it_never_reports() {
        let mut now = Instant::now();
        let mut breaker = opened_at(now);
        for _ in 0..20 {
            now = breaker.retry_at().unwrap();
            assert!(matches!(breaker.admit(now), Verdict::Call(ticket) if ticket.is_probe()));
            let waits = breaker.retry_after(now).unwrap();
            assert!(
                waits >= COOL_DOWN / 2 && waits <= COOL_DOWN,
                "a lost probe has not failed: {waits:?}"
            );
            let retry_at = now + waits;
            assert_eq!(breaker.admit(now), Verdict::Refuse { retry_at });
        }
    }

    #[test]
    fn each_probe_that_fails_doubles_the_wait_up_to_five_minutes() {
        let mut now = Instant::now();
        let mut breaker = opened_at(now);
        for seconds in [30, 60, 120, 240, 300, 300, 300] {
            let waits = breaker.retry_after(now).unwrap();
            let cool_down = Duration::from_secs(seconds);
            assert!(waits >= cool_down / 2 && waits <= cool_down, "{waits:?}");
            now += waits;
            assert!(call(&mut breaker, now, Outcome::ServersFault));
        }
    }

    #[test]
    fn a_successful_probe_closes_it() {
        let mut breaker = opened_at(Instant::now());
        let now = breaker.retry_at().unwrap();
        assert!(call(&mut breaker, now, Outcome::Success));
        assert!(!breaker.is_open());
        assert!(call(&mut breaker, now, Outcome::ServersFault));
        assert!(!breaker.is_open(), "what was before counts no more");
    }

    #[test]
    fn a_slow_probe_closes_it_though_another_has_followed() {
        let mut breaker = opened_at(Instant::now());
        let slow = admitted(&mut breaker, None);
        let _lost = admitted(&mut breaker, None);
        let now = breaker.retry_at().unwrap();
        breaker.on_end(slow, now, Outcome::Success);
        assert!(!breaker.is_open());
    }

    #[test]
    fn the_next_call_is_the_probe_if_one_was_withdrawn() {
        let mut breaker = opened_at(Instant::now());
        let now = breaker.retry_at().unwrap();
        assert!(call(&mut breaker, now, Outcome::Unknown));
        assert!(matches!(breaker.admit(now), Verdict::Call(ticket) if ticket.is_probe()));
        assert!(matches!(breaker.admit(now), Verdict::Refuse { .. }));
    }

    #[test]
    fn who_fails_again_soon_waits_longer_and_who_fails_again_late_does_not() {
        for (lasts, cool_down) in [(10, 60), (299, 60), (300, 30)] {
            let mut breaker = opened_at(Instant::now());
            let closed_at = breaker.retry_at().unwrap();
            call(&mut breaker, closed_at, Outcome::Success);
            let now = closed_at + Duration::from_secs(lasts);
            (0..5).for_each(|_| assert!(call(&mut breaker, now, Outcome::ServersFault)));
            let waits = breaker.retry_after(now).unwrap();
            let cool_down = Duration::from_secs(cool_down);
            assert!(
                waits > cool_down / 2 && waits <= cool_down,
                "{lasts} s: {waits:?}"
            );
        }
    }

    #[test]
    fn stragglers_from_before_neither_close_nor_open_it() {
        let now = Instant::now();
        let mut breaker = breaker();
        let stragglers: Vec<_> = (0..12).map(|_| admitted(&mut breaker, Some(now))).collect();
        (0..5).for_each(|_| assert!(call(&mut breaker, now, Outcome::ServersFault)));
        let retry_at = breaker.retry_at();
        let mut stragglers = stragglers.into_iter();
        for ticket in stragglers.by_ref().take(3) {
            breaker.on_end(ticket, now, Outcome::Success);
        }
        assert_eq!(breaker.retry_at(), retry_at);

        let now = retry_at.unwrap();
        assert!(call(&mut breaker, now, Outcome::Success));
        for ticket in stragglers {
            breaker.on_end(ticket, now, Outcome::ServersFault);
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_probe_of_an_earlier_opening_does_not_close_it() {
        let mut breaker = opened_at(Instant::now());
        let early = admitted(&mut breaker, None);
        let now = breaker.retry_at().unwrap();
        call(&mut breaker, now, Outcome::Success);
        (0..5).for_each(|_| assert!(call(&mut breaker, now, Outcome::ServersFault)));
        breaker.on_end(early, now, Outcome::Success);
        assert!(breaker.is_open());
    }

    #[test]
    fn a_call_that_was_let_through_anyway_may_close_it_and_cannot_make_it_wait_longer() {
        let now = Instant::now();
        let mut breaker = opened_at(now);
        let retry_at = breaker.retry_at();
        for outcome in [Outcome::ServersFault, Outcome::Unknown] {
            let ticket = breaker.admit_anyway(now);
            assert!(!ticket.is_probe());
            breaker.on_end(ticket, now, outcome);
            assert_eq!(breaker.retry_at(), retry_at);
        }
        let ticket = breaker.admit_anyway(now);
        breaker.on_end(ticket, now, Outcome::Success);
        assert!(!breaker.is_open());
    }

    #[test]
    fn breakers_that_open_together_do_not_probe_together() {
        let now = Instant::now();
        let mut at: Vec<_> = (0..100)
            .map(|seed| {
                let mut breaker = Breaker::new(BreakerConfig::default(), seed);
                (0..5).for_each(|_| assert!(call(&mut breaker, now, Outcome::ServersFault)));
                breaker.retry_at().unwrap()
            })
            .collect();
        at.sort_unstable();
        assert!(at[99] - at[0] > Duration::from_secs(12));
    }

    #[test]
    fn servers_faults_count_and_callers_faults_do_not() {
        let of = |code| Outcome::of(&CallError::new(code, ""));
        for code in [
            ErrorCode::Timeout,
            ErrorCode::NodeOffline,
            ErrorCode::Overloaded,
            ErrorCode::Internal,
            ErrorCode::PeerUnreachable,
        ] {
            assert_eq!(of(code), Outcome::ServersFault, "{code:?}");
        }
        assert_eq!(of(ErrorCode::InvalidParams), Outcome::CallersFault);
        assert_eq!(of(ErrorCode::Cancelled), Outcome::Unknown);
        let of_the_service = |fault| {
            let mut error = CallError::new(ErrorCode::RemoteError, "");
            let message = String::new();
            error.remote = Some(RemoteError {
                code: 1,
                message,
                fault,
            });
            Outcome::of(&error)
        };
        assert_eq!(of_the_service(true), Outcome::ServersFault);
        assert_eq!(of_the_service(false), Outcome::CallersFault);
    }

    proptest! {
        #[test]
        fn an_open_breaker_never_admits_a_normal_call_nor_two_probes_in_a_cool_down(
            events in proptest::collection::vec((0_u8..6, any::<prop::sample::Index>(), 0_u64..40_000), 0..400),
            seed in any::<u64>(),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(BreakerConfig::default(), seed);
            let mut under_way = Vec::new();
            // The last probe of this opening, if nothing was heard that makes room for another.
            let mut probed_at: Option<Instant> = None;
            for (event, index, millis) in events {
                match event {
                    0 | 1 => {
                        let was_open = breaker.is_open();
                        if let Verdict::Call(ticket) = breaker.admit(now) {
                            prop_assert_eq!(ticket.is_probe(), was_open);
                            if was_open {
                                let waited = probed_at.map(|at| now - at);
                                prop_assert!(waited.is_none_or(|waited| waited >= COOL_DOWN / 2));
                                probed_at = Some(now);
                            }
                            under_way.push(ticket);
                        }
                    }
                    2 => now += Duration::from_millis(millis),
                    _ if under_way.is_empty() => (),
                    _ => {
                        let outcome = [Outcome::Success, Outcome::ServersFault, Outcome::Unknown][usize::from(event) - 3];
                        let ticket = under_way.swap_remove(index.index(under_way.len()));
                        if outcome == Outcome::Unknown {
                            probed_at = None;
                        }
                        breaker.on_end(ticket, now, outcome);
                        if !breaker.is_open() {
                            probed_at = None;
                        }
                    }
                }
                let waits = breaker.retry_after(now).unwrap_or_default();
                prop_assert!(waits <= BreakerConfig::default().cool_down_max);
            }
        }
    }

    const COOL_DOWN: Duration = Duration::from_secs(30);

    fn breaker() -> Breaker {
        Breaker::new(BreakerConfig::default(), 1)
    }

    fn opened_at(now: Instant) -> Breaker {
        let mut breaker = breaker();
        (0..5).for_each(|_| assert!(call(&mut breaker, now, Outcome::ServersFault)));
        breaker
    }

    /// Whether the call was admitted.
    fn call(breaker: &mut Breaker, now: Instant, outcome: Outcome) -> bool {
        let Verdict::Call(ticket) = breaker.admit(now) else {
            return false;
        };
        breaker.on_end(ticket, now, outcome);
        true
    }

    /// The ticket of a call at that time, or as soon as a probe may go.
    fn admitted(breaker: &mut Breaker, at: Option<Instant>) -> Ticket {
        let now = at.or_else(|| breaker.retry_at()).unwrap();
        match breaker.admit(now) {
            Verdict::Call(ticket) => ticket,
            Verdict::Refuse { .. } => unreachable!("a call may go"),
        }
    }

    fn fails_if(fails: bool) -> Outcome {
        if fails {
            Outcome::ServersFault
        } else {
            Outcome::Success
        }
    }
}
