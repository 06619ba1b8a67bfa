//! One direction of a shaped link, as a core: frames and the time go in, frames come out when they arrive.
//!
//! It reads no clock, and its seed decides what it loses. The rate is a virtual clock: each frame leaves when the
//! one before it has left, and what would have to wait too long is dropped at the tail of the queue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::draws::Draws;
use crate::shape::{Queue, Shape};

/// Frames that are on their way at once, at most: 600 ms of full frames at 5 Gbit/s, 400 MB. Only a link without a
/// rate gets there.
const FLYING_MAX: usize = 1 << 18;

/// What a direction of a link did so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Frames that arrived.
    pub forwarded: u64,
    /// Bytes of the frames that arrived.
    pub bytes: u64,
    /// Frames that found the queue full.
    pub dropped: u64,
    /// Frames that vanished by chance, as asked.
    pub lost: u64,
}

/// One direction of a link.
#[derive(Debug)]
pub(crate) struct Pipe {
    shape: Shape,
    draws: Draws,
    /// When the last accepted frame has left; the next one leaves after it.
    busy_until: Option<Instant>,
    /// Sorted by arrival.
    flying: VecDeque<Flying>,
    counters: Counters,
}

#[derive(Debug)]
struct Flying {
    arrives_at: Instant,
    frame: Vec<u8>,
}

impl Pipe {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            draws: Draws::new(seed),
            busy_until: None,
            flying: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Changes how later frames are treated. Frames that are on their way arrive when they were to.
    pub(crate) fn set_shape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes a frame that came at `now`; gives its buffer back when the frame goes no further.
    pub(crate) fn push(&mut self, now: Instant, frame: Vec<u8>) -> Option<Vec<u8>> {
        let leaves_from = self.busy_until.map_or(now, |busy| busy.max(now));
        if self.is_full(leaves_from - now, frame.len()) {
            self.counters.dropped += 1;
            return Some(frame);
        }
        let left_at = leaves_from + self.shape.airtime(frame.len());
        self.busy_until = Some(left_at);
        // Both are drawn for every frame, so that a change of one does not shift what the other does.
        let (chance, late) = (self.draws.share(), self.draws.share());
        if chance < self.shape.loss {
            self.counters.lost += 1;
            return Some(frame);
        }
        let mut arrives_at = left_at + self.shape.delay + self.shape.jitter.mul_f64(late);
        let mut place = self.flying.len();
        if self.shape.reorder {
            while place > 0 && self.flying[place - 1].arrives_at > arrives_at {
                place -= 1;
            }
        } else if let Some(last) = self.flying.back() {
            arrives_at = arrives_at.max(last.arrives_at);
        }
        self.flying.insert(place, Flying { arrives_at, frame });
        None
    }

    /// The next frame that has arrived by `now`.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.flying.front()?.arrives_at > now {
            return None;
        }
        let frame = self.flying.pop_front()?.frame;
        self.counters.forwarded += 1;
        self.counters.bytes += frame.len() as u64;
        Some(frame)
    }

    /// When the next frame arrives.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.flying.front().map(|next| next.arrives_at)
    }

    fn is_full(&self, wait: Duration, bytes: usize) -> bool {
        let Some(rate) = self.shape.rate else {
            return self.flying.len() >= FLYING_MAX;
        };
        match self.shape.queue {
            Queue::Time(longest) => wait > longest,
            // A frame that finds the link idle is sent and not queued.
            Queue::Bytes(most) => !wait.is_zero() && rate.bytes_in(wait) + bytes as u64 > most,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use crate::shape::Rate;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_frame_arrives_after_its_airtime_and_the_delay() {
        let now = Instant::now();
        let mut pipe = pipe(Shape::mbit(8).with_delay(25 * MS));
        pipe.push(now, vec![0; 1_000]);
        assert_eq!(pipe.next_at(), Some(now + 26 * MS));
        assert_eq!(pipe.pop(now + 25 * MS), None);
        assert_eq!(pipe.pop(now + 26 * MS), Some(vec![0; 1_000]));
    }

    #[test]
    fn a_burst_leaves_at_the_rate_and_fills_the_queue_to_its_length() {
        let now = Instant::now();
        let mut pipe = pipe(Shape::mbit(8).with_queue(200 * MS));
        for _ in 0..1_000 {
            pipe.push(now, vec![0; 1_000]);
        }
        // One is being sent, 200 wait.
        assert_eq!(pipe.counters().dropped, 1_000 - 201);
        assert_eq!(drain(&mut pipe, now + 100 * MS), 100);
        assert_eq!(drain(&mut pipe, now + 201 * MS), 101);
    }

    #[test]
    fn a_queue_in_bytes_holds_so_many_bytes() {
        let now = Instant::now();
        let mut pipe = pipe(Shape {
            queue: Queue::Bytes(10_000),
            ..Shape::mbit(8)
        });
        for _ in 0..100 {
            pipe.push(now, vec![0; 1_000]);
        }
        assert_eq!(pipe.counters().dropped, 90);
    }

    #[test]
    fn the_link_is_not_paid_for_being_idle() {
        let now = Instant::now();
        let mut pipe = pipe(Shape::mbit(8));
        pipe.push(now, vec![0; 1_000]);
        let later = now + 1_000 * MS;
        pipe.push(later, vec![0; 1_000]);
        pipe.push(later, vec![0; 1_000]);
        assert_eq!(drain(&mut pipe, later), 1);
        assert_eq!(drain(&mut pipe, later + MS), 1);
        assert_eq!(pipe.next_at(), Some(later + 2 * MS));
    }

    #[test]
    fn loses_the_share_that_was_asked_for_and_the_same_frames_from_the_same_seed() {
        let now = Instant::now();
        let lost = |seed| {
            let mut pipe = Pipe::new(Shape::default().with_loss(0.05), seed);
            (0..10_000)
                .map(|_| pipe.push(now, Vec::new()).is_some())
                .collect::<Vec<_>>()
        };
        let count = lost(1).iter().filter(|lost| **lost).count();
        assert!((440..560).contains(&count), "{count}");
        assert_eq!(lost(1), lost(1));
        assert_ne!(lost(1), lost(2));
    }

    #[test]
    fn jitter_keeps_the_order_unless_reordering_was_asked_for() {
        let now = Instant::now();
        let order = |reorder| {
            let mut pipe = pipe(Shape {
                reorder,
                ..Shape::delayed(MS).with_jitter(10 * MS)
            });
            for number in 0..100_u8 {
                pipe.push(now + MS / 10 * u32::from(number), vec![number]);
            }
            let arrived: Vec<_> = std::iter::from_fn(|| pipe.pop(now + 100 * MS))
                .flatten()
                .collect();
            assert_eq!(arrived.len(), 100);
            arrived.is_sorted()
        };
        assert!(order(false));
        assert!(!order(true));
    }

    #[test]
    fn a_change_of_shape_leaves_what_is_on_its_way_alone() {
        let now = Instant::now();
        let mut pipe = pipe(Shape::delayed(100 * MS));
        pipe.push(now, vec![1]);
        pipe.set_shape(Shape::mbit(1));
        pipe.set_shape(Shape::default());
        pipe.push(now, vec![2]);
        assert_eq!(drain(&mut pipe, now + 99 * MS), 0);
        assert_eq!(drain(&mut pipe, now + 100 * MS), 2);
        assert_eq!(pipe.shape(), Shape::default());
    }

    #[test]
    fn every_frame_arrives_or_is_counted_as_gone_and_none_comes_early_or_late() {
        for seed in 0..500 {
            let mut draws = Draws::new(seed);
            let mut below = |bound: u64| draws.number() % bound;
            let (queue, delay, jitter) = (
                MS * below(300) as u32,
                MS * below(100) as u32,
                MS * below(20) as u32,
            );
            let shape = Shape {
                rate: (below(4) > 0).then(|| Rate::mbit(1 + below(1_000))),
                loss: below(100) as f64 / 100.0,
                ..Shape::delayed(delay).with_jitter(jitter).with_queue(queue)
            };
            // The longest that a frame takes: its wait, its own time on the slowest link, its way.
            let longest = queue + Rate::mbit(1).airtime(1_514) + delay + jitter;
            let mut pipe = Pipe::new(shape, seed);
            let mut now = Instant::now();
            let mut latest = now;
            let frames = 1 + below(200);
            for _ in 0..frames {
                now += Duration::from_micros(below(20_000));
                if pipe.push(now, vec![0; 60 + below(1_455) as usize]).is_none() {
                    let arrives_at = pipe.flying.back().unwrap().arrives_at;
                    assert!(arrives_at >= latest && arrives_at >= now + delay, "seed {seed}");
                    // One that would have overtaken waits for the one before it.
                    assert!(arrives_at <= latest.max(now + longest), "seed {seed}");
                    latest = arrives_at;
                }
            }
            let arrived = drain(&mut pipe, latest) as u64;
            let Counters {
                forwarded,
                dropped,
                lost,
                ..
            } = pipe.counters();
            assert_eq!(
                (arrived, forwarded + dropped + lost),
                (forwarded, frames),
                "seed {seed}"
            );
            assert_eq!(pipe.next_at(), None, "seed {seed}");
        }
    }

    fn pipe(shape: Shape) -> Pipe {
        Pipe::new(shape, 1)
    }

    fn drain(pipe: &mut Pipe, now: Instant) -> usize {
        std::iter::from_fn(|| pipe.pop(now)).count()
    }
}
