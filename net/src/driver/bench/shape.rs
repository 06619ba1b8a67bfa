//! A link of a given rate, delay and queue, as arithmetic. It moves nothing.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use lapwing_base::{Bandwidth, ByteSize};

/// How a link is: `20mbit,50ms,queue=200ms`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// What it carries in each direction, headers included.
    pub rate: Bandwidth,
    /// There and back, with an empty queue.
    pub rtt: Duration,
    /// What may wait, in the time that it takes to send it; more is lost.
    pub queue: Duration,
}

/// IP and UDP, in front of every datagram.
const HEADERS: usize = 28;

/// What an Ethernet carries: longer datagrams are lost.
pub(super) const DATAGRAM_MAX: usize = 1500 - HEADERS;

/// Without another word a queue holds as much as many home routers do.
const QUEUE: Duration = Duration::from_millis(200);

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rtt, queue) = (self.rtt.as_millis(), self.queue.as_millis());
        write!(f, "{}mbit,{rtt}ms,queue={queue}ms", self.rate.as_mbit_s())
    }
}

/// It is not the shape of a link.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not a link such as 20mbit,50ms,queue=200ms")]
pub struct ParseShapeError {
    text: String,
}

impl FromStr for Shape {
    type Err = ParseShapeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseShapeError {
            text: text.chars().take(64).collect(),
        })
    }
}

fn parse(text: &str) -> Option<Shape> {
    let mut parts = text.split(',').map(str::trim);
    let rate = parts.next()?.parse().ok()?;
    let rtt = millis(parts.next()?)?;
    let queue = match parts.next() {
        Some(part) => millis(part.strip_prefix("queue=")?)?,
        None => QUEUE,
    };
    parts.next().is_none().then_some(Shape { rate, rtt, queue })
}

/// At most ten seconds: no link that anybody uses is slower.
fn millis(text: &str) -> Option<Duration> {
    const MAX: Duration = Duration::from_secs(10);
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s')?, 1.0),
    };
    let time = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()?;
    (time <= MAX).then_some(time)
}

/// One direction of a link: says when what is offered arrives, if it does.
#[derive(Debug)]
pub(super) struct Direction {
    shape: Shape,
    /// When everything that was taken will have been sent.
    free_at: Option<Instant>,
}

impl Direction {
    pub(super) const fn new(shape: Shape) -> Self {
        Self { shape, free_at: None }
    }

    /// When a datagram of this size arrives that is sent now; `None` where it is lost.
    pub(super) fn offer(&mut self, size: usize, now: Instant) -> Option<Instant> {
        if size > DATAGRAM_MAX {
            return None;
        }
        let begins_at = self.free_at.map_or(now, |free_at| free_at.max(now));
        if begins_at - now > self.shape.queue {
            return None;
        }
        let size = ByteSize((size + HEADERS) as u64);
        let free_at = begins_at + self.shape.rate.time_for(size)?;
        self.free_at = Some(free_at);
        Some(free_at + self.shape.rtt / 2)
    }
}

/// Datagrams under way, in the order of their arrival.
pub(super) type UnderWay = VecDeque<(Instant, Vec<u8>)>;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        rate: Bandwidth::mbit(12),
        rtt: Duration::from_millis(50),
        queue: Duration::from_millis(10),
    };

    #[test]
    fn a_shape_is_read_as_people_write_it() {
        assert_eq!("12mbit,50ms,queue=10ms".parse(), Ok(SHAPE));
        assert_eq!(
            "12mbit, 0.05s".parse::<Shape>().map(|shape| shape.queue),
            Ok(QUEUE)
        );
        assert_eq!(SHAPE.to_string().parse(), Ok(SHAPE));
        for wrong in [
            "",
            "12mbit",
            "50ms,12mbit",
            "12mbit,50ms,10ms",
            "12mbit,-1ms",
            "12mbit,1h",
            "12mbit,1ms,queue=1ms,",
        ] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_full_packet_takes_its_time_and_half_the_round_trip() {
        let (mut link, now) = (Direction::new(SHAPE), Instant::now());
        let (send, way) = (Duration::from_millis(1), Duration::from_millis(25));
        assert_eq!(link.offer(DATAGRAM_MAX, now), Some(now + send + way));
        assert_eq!(link.offer(DATAGRAM_MAX, now), Some(now + 2 * send + way));
        assert_eq!(
            link.offer(DATAGRAM_MAX, now + 5 * send),
            Some(now + 6 * send + way)
        );
    }

    #[test]
    fn what_finds_the_queue_full_is_lost_and_takes_no_time() {
        let (mut link, now) = (Direction::new(SHAPE), Instant::now());
        let taken = (0..100)
            .filter(|_| link.offer(DATAGRAM_MAX, now).is_some())
            .count();
        // One is being sent, and ten milliseconds of them wait.
        assert_eq!(taken, 11);
        assert!(link.offer(DATAGRAM_MAX, now + Duration::from_millis(1)).is_some());
    }

    #[test]
    fn a_datagram_that_no_ethernet_carries_is_lost() {
        let mut link = Direction::new(SHAPE);
        assert_eq!(link.offer(DATAGRAM_MAX + 1, Instant::now()), None);
    }
}
