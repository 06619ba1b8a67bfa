//! Which incoming handshakes are begun, and when. Runs none itself.
//!
//! Handshakes that are all begun at once are all done at the end, when those who began them have given up: after a
//! main's restart it would be busy with nothing else. So a number of them run, others wait for a moment, and who has
//! waited too long is told so and comes again later.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::driver::addresses::prefix;

/// Handshakes at once, with those that wait: each costs a signature and some 30 KiB until it is done.
const HANDSHAKES_MAX: usize = 1024;

/// Of these, from one /24 or /48, so that one network leaves room for others.
const HANDSHAKES_PER_PREFIX_MAX: usize = 256;

/// From as many handshakes on, whoever comes first has to prove that it receives at its address (RFC 9000 section
/// 8.1.2), so that forged addresses cost us a packet and no signature.
const RETRY_FROM: usize = 64;

/// Begun within [`YOUNG`]: a tenth of a second of one processor; and with round trips of 200 ms, several hundred
/// in a second are done.
const YOUNG_MAX: usize = 128;

/// A handshake that takes longer waits for its peer or for packets that were lost, and holds up nobody.
const YOUNG: Duration = Duration::from_secs(1);

/// Whoever dials gives up after three seconds, one of which the handshake itself may need.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The handshakes of one socket, as values of type `T` until they are begun.
#[derive(Debug)]
pub(super) struct Admission<T> {
    waiting: VecDeque<Waiting<T>>,
    /// Oldest first.
    young: VecDeque<(Ticket, Instant)>,
    /// Begun and not ended.
    running: usize,
    /// Running and waiting.
    per_prefix: HashMap<IpAddr, usize>,
    next: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    handshake: T,
    from: IpAddr,
    since: Instant,
}

/// Of one handshake that runs; to be handed back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ticket {
    number: u64,
    from: IpAddr,
}

/// What becomes of a handshake that has come.
#[must_use]
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Arrival<T> {
    /// It is kept: see [`Admission::next`].
    Waits,
    /// It has to prove its address and to come again.
    Prove(T),
    /// There are too many.
    Refuse(T),
}

/// What is to be done with a handshake that was kept.
#[must_use]
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Turn<T> {
    /// It runs from now on, until [`Admission::ended`].
    Begin(T, Ticket),
    /// It has waited too long.
    Refuse(T),
}

impl<T> Admission<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            young: VecDeque::new(),
            running: 0,
            per_prefix: HashMap::new(),
            next: 0,
        }
    }

    /// A handshake has come.
    pub(super) fn arrived(&mut self, handshake: T, from: IpAddr, proven: bool, now: Instant) -> Arrival<T> {
        let from = prefix(from);
        let of_prefix = self.per_prefix.get(&from).copied().unwrap_or(0);
        let all = self.running + self.waiting.len();
        if all >= HANDSHAKES_MAX || of_prefix >= HANDSHAKES_PER_PREFIX_MAX {
            return Arrival::Refuse(handshake);
        }
        if all >= RETRY_FROM && !proven {
            return Arrival::Prove(handshake);
        }
        *self.per_prefix.entry(from).or_default() += 1;
        self.waiting.push_back(Waiting {
            handshake,
            from,
            since: now,
        });
        Arrival::Waits
    }

    /// Whose turn it is; call until there is nobody, after every other call and at [`Self::next_at`].
    pub(super) fn next(&mut self, now: Instant) -> Option<Turn<T>> {
        while self.young.front().is_some_and(|(_, begun)| *begun + YOUNG <= now) {
            self.young.pop_front();
        }
        let late = self.waiting.front()?.since + WAIT_MAX <= now;
        if !late && self.young.len() >= YOUNG_MAX {
            return None;
        }
        let Waiting { handshake, from, .. } = self.waiting.pop_front()?;
        if late {
            self.left(from);
            return Some(Turn::Refuse(handshake));
        }
        let ticket = Ticket {
            number: self.next,
            from,
        };
        self.next += 1;
        self.running += 1;
        self.young.push_back((ticket, now));
        Some(Turn::Begin(handshake, ticket))
    }

    /// When somebody's turn comes by time alone.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let late = self.waiting.front()?.since + WAIT_MAX;
        let grown = self.young.front().map(|(_, begun)| *begun + YOUNG);
        Some(grown.map_or(late, |at| at.min(late)))
    }

    /// A handshake is done, or has failed.
    pub(super) fn ended(&mut self, ticket: Ticket) {
        self.running -= 1;
        self.young.retain(|(young, _)| *young != ticket);
        self.left(ticket.from);
    }

    fn left(&mut self, from: IpAddr) {
        if let Some(count) = self.per_prefix.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.per_prefix.remove(&from);
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn while_there_are_few_each_begins_at_once() {
        let (mut admission, now) = (Admission::new(), Instant::now());
        for number in 0..RETRY_FROM {
            assert_eq!(admission.arrived(number, ip(number), false, now), Arrival::Waits);
            assert!(matches!(admission.next(now), Some(Turn::Begin(begun, _)) if begun == number));
        }
        assert_eq!(admission.arrived(99, ip(99), false, now), Arrival::Prove(99));
        assert_eq!(admission.arrived(99, ip(99), true, now), Arrival::Waits);
    }

    #[test]
    fn of_many_some_run_and_the_others_follow_as_they_end() {
        let (mut admission, now) = (Admission::new(), Instant::now());
        let mut running = crowd(&mut admission, YOUNG_MAX + 2, now);
        assert_eq!(running.len(), YOUNG_MAX);
        admission.ended(running.remove(0));
        assert!(matches!(admission.next(now), Some(Turn::Begin(begun, _)) if begun == YOUNG_MAX));
        assert_eq!(admission.next(now), None);
    }

    #[test]
    fn those_that_hang_hold_up_nobody_for_longer_than_their_youth() {
        let (mut admission, now) = (Admission::new(), Instant::now());
        crowd(&mut admission, YOUNG_MAX, now);
        let soon = now + YOUNG / 2;
        assert_eq!(admission.arrived(1000, ip(1000), true, soon), Arrival::Waits);
        assert_eq!(admission.next(soon), None);
        assert_eq!(admission.next_at(), Some(now + YOUNG));
        assert!(matches!(admission.next(now + YOUNG), Some(Turn::Begin(1000, _))));
    }

    #[test]
    fn who_has_waited_too_long_is_told_so() {
        let (mut admission, now) = (Admission::new(), Instant::now());
        crowd(&mut admission, YOUNG_MAX + 1, now);
        let later = now + WAIT_MAX;
        assert_eq!(admission.next(later), Some(Turn::Refuse(YOUNG_MAX)));
        assert_eq!(admission.next(later), None);
        assert_eq!(admission.next_at(), None);
    }

    #[test]
    fn one_network_leaves_room_for_others() {
        let (mut admission, now) = (Admission::new(), Instant::now());
        for number in 0..HANDSHAKES_PER_PREFIX_MAX {
            assert_eq!(admission.arrived(number, ip(0), true, now), Arrival::Waits);
        }
        assert_eq!(admission.arrived(1, ip(0), true, now), Arrival::Refuse(1));
        assert_eq!(admission.arrived(1, ip(1), true, now), Arrival::Waits);
        let Some(Turn::Begin(_, ticket)) = admission.next(now) else {
            panic!("there is room");
        };
        admission.ended(ticket);
        assert_eq!(admission.arrived(1, ip(0), true, now), Arrival::Waits);
    }

    #[test]
    fn there_is_an_end_to_it() {
        let (mut admission, now) = (Admission::new(), Instant::now());
        for number in 0..HANDSHAKES_MAX {
            assert_eq!(admission.arrived(number, ip(number), true, now), Arrival::Waits);
        }
        assert_eq!(admission.arrived(1, ip(5000), true, now), Arrival::Refuse(1));
    }

    /// So many that have proven their addresses, each of a network of its own; those that run.
    fn crowd(admission: &mut Admission<usize>, count: usize, now: Instant) -> Vec<Ticket> {
        for number in 0..count {
            assert_eq!(admission.arrived(number, ip(number), true, now), Arrival::Waits);
        }
        let mut running = Vec::new();
        while let Some(Turn::Begin(_, ticket)) = admission.next(now) {
            running.push(ticket);
        }
        running
    }

    fn ip(network: usize) -> IpAddr {
        let [.., a, b] = network.to_be_bytes();
        [10, a, b, 1].into()
    }
}
