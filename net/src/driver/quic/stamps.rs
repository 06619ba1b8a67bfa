//! What two ends of a bulk lane tell each other of the time while they send: from that each knows how long what arrives has
//! waited in queues, and says so. Sends nothing itself.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::Arrivals;
use crate::driver::congestion::Crossing;

/// One end of it.
#[derive(Debug)]
pub(super) struct Stamps {
    began_at: Instant,
    sent: Option<Sent>,
    arrivals: Arrivals,
}

/// How far the peer has been told.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// How many frames the bulk lane had sent by then.
    frames: u64,
    /// When it began to send after a pause, and how many frames it had sent before.
    began_at: Instant,
    before: u64,
    /// When they had become so many.
    changed_at: Instant,
    /// When it was looked at last.
    at: Instant,
}

impl Sent {
    /// More often while the window grows, which may double its queue within a round trip.
    fn again_at(&self) -> Instant {
        let is_new = self.at < self.began_at + NEW_FOR;
        self.at + if is_new { INTERVAL_NEW } else { INTERVAL }
    }
}

impl Stamps {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began_at: now,
            sent: None,
            arrivals: Arrivals::new(now),
        }
    }

    /// What to tell the peer now, if anything, and when to look again. `frames` is how many the bulk lane has sent; fewer
    /// than before, and it is another lane.
    pub(super) fn poll(&mut self, frames: u64, now: Instant) -> (Option<Bytes>, Instant) {
        let sent = match self.sent {
            Some(sent) if now < sent.again_at() => return (None, sent.again_at()),
            Some(sent) if sent.frames == frames => Sent { at: now, ..sent },
            Some(sent) if sent.frames < frames && now < sent.changed_at + TOLD_AFTER => Sent {
                frames,
                changed_at: now,
                at: now,
                ..sent
            },
            sent => Sent {
                frames,
                began_at: now,
                before: sent
                    .map(|sent| sent.frames)
                    .filter(|before| *before < frames)
                    .unwrap_or(0),
                changed_at: now,
                at: now,
            },
        };
        self.sent = Some(sent);
        let is_bulk = sent.frames.saturating_sub(sent.before) >= FRAMES_MIN;
        let is_due = is_bulk && now < sent.changed_at + TOLD_AFTER;
        (is_due.then(|| self.write(now)), sent.again_at())
    }

    /// Whether a datagram is one of these.
    pub(super) fn is_stamp(datagram: &[u8]) -> bool {
        datagram.len() == SIZE && datagram.first() == Some(&KIND)
    }

    /// The peer has told this; says what is known now of the queues on both ways.
    pub(super) fn heard(&mut self, datagram: &[u8], now: Instant) -> Option<Crossing> {
        let (time, seen) = datagram.get(1..)?.split_first_chunk()?;
        let seen = u32::from_le_bytes(seen.try_into().ok()?);
        self.arrivals
            .heard(Duration::from_micros(u64::from_le_bytes(*time)), now);
        Some(Crossing {
            returning: self.arrivals.queue(now)?,
            seen: (seen != UNKNOWN).then(|| Duration::from_micros(seen.into())),
        })
    }

    fn write(&self, now: Instant) -> Bytes {
        let time = now.saturating_duration_since(self.began_at).as_micros();
        let queue = self.arrivals.queue(now);
        let queue = queue.and_then(|queue| u32::try_from(queue.as_micros()).ok());
        let mut datagram = Vec::with_capacity(SIZE);
        datagram.push(KIND);
        datagram.extend_from_slice(&u64::try_from(time).unwrap_or(u64::MAX).to_le_bytes());
        datagram.extend_from_slice(&queue.unwrap_or(UNKNOWN).to_le_bytes());
        datagram.into()
    }
}

/// How often the peer is told: a queue of 15 ms comes and goes in a few of these.
const INTERVAL: Duration = Duration::from_millis(20);

/// The same at first, and for how long: a start over all but the longest paths.
const INTERVAL_NEW: Duration = Duration::from_millis(5);
const NEW_FOR: Duration = Duration::from_millis(300);

/// Fewer frames are answers, and no bulk: whoever sends to this end alone has to know that it is alone.
const FRAMES_MIN: u64 = 8;

/// And for so long after the last frame: the less gets through, the more the peer's word is needed.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// The first byte, apart from those of the session's other datagrams; then the time in eight bytes and the queue in four,
/// both in microseconds, little endian.
const KIND: u8 = 2;
const SIZE: usize = 1 + size_of::<u64>() + size_of::<u32>();
const UNKNOWN: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::now;

    #[test]
    fn each_end_knows_the_queue_that_the_other_causes_and_hears_of_its_own() {
        let origin = now();
        let [mut a, mut b] = [Stamps::new(origin), Stamps::new(origin)];
        let (mut by_a, mut by_b) = (None, None);
        for round in 1..20 {
            let at = origin + INTERVAL * round;
            // A queue builds up from a to b.
            let queue = Duration::from_millis(if round < 10 { 0 } else { 12 });
            let (stamp, _) = a.poll(100 * u64::from(round), at);
            let stamp = stamp.unwrap();
            assert!(Stamps::is_stamp(&stamp));
            by_b = b.heard(&stamp, at + queue);
            let (stamp, _) = b.poll(100 * u64::from(round), at + queue);
            by_a = stamp.and_then(|stamp| a.heard(&stamp, at + queue)).or(by_a);
        }
        let queue = Duration::from_millis(12);
        assert_eq!(by_b.map(|queues| queues.returning), Some(queue));
        let (returning, seen) = (Duration::ZERO, Some(queue));
        assert_eq!(by_a, Some(Crossing { returning, seen }));
    }

    #[test]
    fn whoever_sends_nothing_says_nothing() {
        let origin = now();
        let mut stamps = Stamps::new(origin);
        assert!(stamps.poll(100, origin).0.is_some());
        let told = (1..200).filter(|round| stamps.poll(100, origin + INTERVAL * *round).0.is_some());
        assert_eq!(told.count(), 49);
    }

    #[test]
    fn whoever_only_answers_is_not_taken_for_one_who_sends_bulk() {
        let origin = now();
        let mut stamps = Stamps::new(origin);
        let told = (0..100_u32).filter(|round| {
            let answers = u64::from(*round / 20);
            stamps.poll(answers, origin + INTERVAL * *round).0.is_some()
        });
        assert_eq!(told.count(), 0);
    }

    #[test]
    fn the_peer_is_told_more_often_at_first_and_after_a_pause() {
        let origin = now();
        let mut stamps = Stamps::new(origin);
        let mut told = |from: u32, until: u32| {
            let ticks = (from..until).filter(|ms| {
                let at = origin + Duration::from_millis(1) * *ms;
                stamps.poll(100 + u64::from(*ms) * 2, at).0.is_some()
            });
            ticks.count()
        };
        assert_eq!(told(0, 300), 60);
        assert_eq!(told(320, 1320), 50);
        assert_eq!(told(5000, 5300), 60);
    }

    #[test]
    fn the_next_lane_is_counted_from_its_first_frame() {
        let origin = now();
        for pause in [Duration::from_millis(100), Duration::from_secs(10)] {
            let mut stamps = Stamps::new(origin);
            assert!(stamps.poll(5000, origin).0.is_some());
            let (few, bulk) = (
                stamps.poll(2, origin + pause),
                stamps.poll(10, origin + pause + INTERVAL),
            );
            assert_eq!((few.0.is_some(), bulk.0.is_some()), (false, true), "{pause:?}");
        }
    }

    #[test]
    fn what_is_no_stamp_is_not_taken_for_one() {
        assert!(!Stamps::is_stamp(&[]));
        assert!(!Stamps::is_stamp(&[KIND]));
        assert!(!Stamps::is_stamp(&[0; SIZE]));
        assert_eq!(Stamps::new(now()).heard(&[KIND], now()), None);
    }
}
