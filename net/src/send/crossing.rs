//! Two made-up ends that fill the two ways between them at once, each with its drop-tail queue. For tests, in made-up
//! time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use super::arrivals::Arrivals;
use super::bottleneck::Bulk;
use super::delay_window::DelayWindow;

/// The link between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crossing {
    /// Bytes a second from each end.
    rates: [f64; 2],
    base: Duration,
    queue: Duration,
    /// An end wakes up so much later than it should, at most.
    late: Duration,
    /// Acknowledgements wait until data may leave, as they do with quinn.
    held: bool,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Crossed {
    /// The part of its way that each end had.
    pub(crate) shares: [f64; 2],
    /// What 99 of 100 small messages waited at most, there and back, in milliseconds.
    pub(crate) p99_added: f64,
    p50_added: f64,
    worst_added: f64,
}

/// What a start took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    /// Times what the way of each end needs for the bytes.
    times: [f64; 2],
    /// The longest on each way.
    queues: [Duration; 2],
}

impl Crossing {
    /// A link of so many Mbit/s each way, over `base_ms` there and back, whose queues hold `queue_ms`.
    pub(crate) fn new(mbit: [f64; 2], base_ms: u64, queue_ms: u64) -> Self {
        Self {
            rates: mbit.map(|mbit| mbit * 125_000.0),
            base: Duration::from_millis(base_ms),
            queue: Duration::from_millis(queue_ms),
            late: Duration::from_millis(1),
            held: true,
        }
    }

    /// Acknowledgements leave at once.
    pub(crate) const fn with_prompt_acknowledgements(mut self) -> Self {
        self.held = false;
        self
    }

    /// What it takes both ends, which begin at once, until so many bytes of each have arrived: over a new connection and
    /// over the next one.
    pub(crate) fn exchange(self, name: &str, bytes: u64) -> [Started; 2] {
        let (first, ended) = World::new(self).exchange(bytes);
        let mut again = World::new(self);
        for (end, before) in again.ends.iter_mut().zip(&ended) {
            if let Some(remembered) = before.window.remember(again.origin) {
                end.window.resume(remembered, again.origin);
            }
        }
        let (next, _) = again.exchange(bytes);
        println!(
            "{name:<28} {:.2?} times the least, then {:.2?}",
            first.times, next.times
        );
        println!(
            "{:<28} queues of {:.0?}, then {:.0?}",
            "", first.queues, next.queues
        );
        [first, next]
    }

    /// What several exchanges over one connection take, one after the other with a pause in between: for each, times what the
    /// way of each end needs for the bytes.
    pub(crate) fn exchanges(self, name: &str, bytes: u64) -> Vec<[f64; 2]> {
        let mut world = World::new(self);
        world.shake_hands();
        let mut begun = world.origin;
        let times: Vec<_> = (0..EXCHANGES)
            .map(|_| {
                let (times, ended) = world.exchange_once(bytes, begun);
                begun = ended + PAUSE;
                times
            })
            .collect();
        println!("{name:<28} {times:.2?} times the least");
        times
    }

    /// Runs it, prints a row, and says what came of it, the first seconds left out.
    pub(crate) fn run(self, name: &str, seconds: u64) -> Crossed {
        let crossed = World::new(self).run(Duration::from_secs(seconds));
        println!(
            "{name:<36} shares {:.1} + {:.1} % | added p50 {:.1} p99 {:.1} worst {:.1} ms",
            100.0 * crossed.shares[0],
            100.0 * crossed.shares[1],
            crossed.p50_added,
            crossed.p99_added,
            crossed.worst_added,
        );
        crossed
    }
}

/// A packet on its way.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Packet {
    data: Option<u64>,
    acks: Vec<u64>,
    /// When it was sent, and the queue that its sender knows of.
    stamp: Option<(Duration, Option<Duration>)>,
    /// When the small message left the first end.
    echo: Option<Instant>,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Arrives { at: usize, packet: Packet },
    Wake { end: usize },
    Begin { end: usize, packets: u64 },
    Stamp { end: usize },
    Probe { end: usize },
    Echo,
}

struct End {
    window: DelayWindow,
    next: u64,
    outstanding: BTreeMap<u64, Instant>,
    rtt: Duration,
    tokens: f64,
    refilled_at: Instant,
    wakes_at: Option<Instant>,
    sent_at: Instant,
    /// To be acknowledged.
    owed: Vec<u64>,
    arrivals: Arrivals,
    seen: Option<(Duration, Instant)>,
    /// When its way has sent what is queued.
    idle_at: Instant,
    arrived: u64,
    /// The same from the very beginning.
    arrived_all: u64,
    /// Packets that it may send.
    left: u64,
    /// Since when.
    sending_since: Instant,
}

struct World {
    crossing: Crossing,
    origin: Instant,
    ends: [End; 2],
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    ordinal: u64,
    random: u64,
    added: Vec<f64>,
}

impl World {
    fn new(crossing: Crossing) -> Self {
        let origin = Bulk::origin();
        let end = || End {
            window: DelayWindow::new(origin, MTU as u16),
            next: 0,
            outstanding: BTreeMap::new(),
            rtt: crossing.base,
            tokens: 0.0,
            refilled_at: origin,
            wakes_at: None,
            sent_at: origin,
            owed: Vec::new(),
            arrivals: Arrivals::new(origin),
            seen: None,
            idle_at: origin,
            arrived: 0,
            arrived_all: 0,
            left: u64::MAX,
            sending_since: origin,
        };
        let mut world = Self {
            crossing,
            origin,
            ends: [end(), end()],
            events: BinaryHeap::new(),
            ordinal: 0,
            random: 0x9E37_79B9_7F4A_7C15,
            added: Vec::new(),
        };
        for end in 0..2 {
            // One begins a little later, as whoever is asked does.
            let at = origin + crossing.base / 2 * end as u32;
            world.at(at, Event::Wake { end });
            world.at(at, Event::Stamp { end });
            world.at(at, Event::Probe { end });
        }
        world.at(origin, Event::Echo);
        world
    }

    fn shake_hands(&mut self) {
        let (now, rtt) = (self.origin, self.crossing.base);
        for end in &mut self.ends {
            end.window
                .on_ack(now, now.checked_sub(rtt).unwrap_or(now), 0, true);
        }
    }

    /// What each way needs for so many bytes, in seconds.
    fn least(&self, bytes: u64) -> [f64; 2] {
        let distance = self.crossing.base.as_secs_f64() / 2.0;
        self.crossing.rates.map(|rate| bytes as f64 / rate + distance)
    }

    /// Sends so many bytes from each end, from `begun` on; for each end times what its way needs for them, and when the last
    /// has arrived.
    fn exchange_once(&mut self, bytes: u64, begun: Instant) -> ([f64; 2], Instant) {
        let least = self.least(bytes);
        let packets = bytes.div_ceil(MTU);
        // Whoever is asked begins when it is.
        let begins = [begun, begun + self.crossing.base / 2];
        for (number, at) in begins.into_iter().enumerate() {
            self.ends[number].left = 0;
            self.ends[number].arrived_all = 0;
            self.at(at, Event::Begin { end: number, packets });
        }
        let mut times = [None; 2];
        loop {
            let now = self.step();
            assert!(
                now < begun + EXCHANGE_MAX,
                "a packet was lost, and nothing sends it again"
            );
            for (number, end) in self.ends.iter().enumerate() {
                if end.arrived_all >= packets {
                    let took = now - begins[number];
                    times[number].get_or_insert(took.as_secs_f64() / least[number]);
                }
            }
            if let [Some(one), Some(other)] = times {
                return ([one, other], now);
            }
        }
    }

    /// Runs until so many bytes have arrived from each; also what both ends know by then.
    fn exchange(mut self, bytes: u64) -> (Started, [End; 2]) {
        self.shake_hands();
        let least = self.least(bytes);
        let (mut times, mut queues) = ([None; 2], [Duration::ZERO; 2]);
        loop {
            let now = self.step();
            for (number, end) in self.ends.iter().enumerate() {
                let queue = end.idle_at.saturating_duration_since(now);
                queues[number] = queues[number].max(queue);
                if end.arrived_all * MTU >= bytes {
                    let took = (now - self.origin).as_secs_f64();
                    times[number].get_or_insert(took / least[number]);
                }
            }
            if let [Some(one), Some(other)] = times {
                let times = [one, other];
                return (Started { times, queues }, self.ends);
            }
        }
    }

    fn run(mut self, lasts: Duration) -> Crossed {
        while self.step() < self.origin + lasts {}
        self.added.sort_by(f64::total_cmp);
        let quantile = |q: f64| self.added[((self.added.len() - 1) as f64 * q) as usize];
        let most = self
            .crossing
            .rates
            .map(|rate| rate * (lasts - MEASURED_FROM).as_secs_f64());
        Crossed {
            shares: [0, 1].map(|end| (self.ends[end].arrived * MTU) as f64 / most[end]),
            p99_added: quantile(0.99),
            p50_added: quantile(0.5),
            worst_added: quantile(1.0),
        }
    }

    /// What happens next, and when.
    fn step(&mut self) -> Instant {
        let Some(Reverse((now, _, event))) = self.events.pop() else {
            unreachable!("both ends send for ever");
        };
        match event {
            Event::Arrives { at, packet } => self.arrive(at, packet, now),
            Event::Wake { end } => {
                self.ends[end].wakes_at = None;
                self.send(end, now);
            }
            Event::Begin { end, packets } => {
                self.ends[end].left = packets;
                self.ends[end].sending_since = now;
                self.send(end, now);
            }
            Event::Stamp { end } => {
                let queue = self.ends[end].arrivals.queue(now);
                let stamp = Some((now - self.origin, queue));
                // For a while after the last, as whoever sends says it.
                if self.ends[end].left > 0 || now < self.ends[end].sent_at + STAMPS_GO_ON {
                    self.carry(end, 86, Packet { stamp, ..NOTHING }, now);
                }
                let late = self.late();
                let is_new = now < self.ends[end].sending_since + STAMPS_NEW_FOR;
                let interval = if is_new {
                    STAMP_INTERVAL_NEW
                } else {
                    STAMP_INTERVAL
                };
                self.at(now + interval + late, Event::Stamp { end });
            }
            Event::Probe { end } => {
                // A probe timeout (RFC 9002, 6.2), which may always send: data, so that its acknowledgement shows what
                // was lost before.
                let patience = 3 * self.ends[end].rtt + Duration::from_millis(25);
                if now >= self.ends[end].sent_at + patience && self.ends[end].left > 0 {
                    self.carry_data(end, now);
                }
                self.at(now + Duration::from_millis(10), Event::Probe { end });
            }
            Event::Echo => {
                let echo = Some(now);
                self.carry(0, 320, Packet { echo, ..NOTHING }, now);
            }
        }
        now
    }

    fn arrive(&mut self, at: usize, packet: Packet, now: Instant) {
        if let Some(sent_at) = packet.echo {
            if at == 1 {
                return self.carry(
                    1,
                    320,
                    Packet {
                        echo: packet.echo,
                        ..NOTHING
                    },
                    now,
                );
            }
            if self.measuring(now) {
                let added = (now - sent_at).saturating_sub(self.crossing.base);
                self.added.push(added.as_secs_f64() * 1000.0);
            }
            return self.at(now + Duration::from_millis(10), Event::Echo);
        }
        if let Some((sent, queue)) = packet.stamp {
            let end = &mut self.ends[at];
            end.arrivals.heard(sent, now);
            end.seen = queue.map(|queue| (queue, now)).or(end.seen);
        }
        for number in packet.acks {
            self.acked(at, number, now);
        }
        if let Some(number) = packet.data {
            self.ends[1 - at].arrived += u64::from(self.measuring(now));
            self.ends[1 - at].arrived_all += 1;
            self.ends[at].owed.push(number);
        }
        self.send(at, now);
        let is_idle = self.ends[at].left == 0;
        if (!self.crossing.held || is_idle) && self.ends[at].owed.len() >= 2 {
            let acks = std::mem::take(&mut self.ends[at].owed);
            self.carry(at, 80, Packet { acks, ..NOTHING }, now);
        }
    }

    fn acked(&mut self, at: usize, number: u64, now: Instant) {
        let end = &mut self.ends[at];
        let Some(sent_at) = end.outstanding.remove(&number) else {
            return;
        };
        end.rtt = (7 * end.rtt + (now - sent_at)) / 8;
        let fresh = end.seen.filter(|(_, at)| now < *at + Arrivals::FRESH);
        end.window
            .set_returning(end.arrivals.queue(now), fresh.map(|(queue, _)| queue));
        end.window.on_ack(now, sent_at, MTU, end.left == 0);
        // Nothing overtakes here.
        let left = end.outstanding.split_off(&number.saturating_sub(2));
        let gone = std::mem::replace(&mut end.outstanding, left);
        if let Some((_, latest)) = gone.last_key_value() {
            end.window.on_loss(now, *latest, MTU * gone.len() as u64, false);
        }
    }

    fn send(&mut self, index: usize, now: Instant) {
        loop {
            let end = &mut self.ends[index];
            if end.left == 0 {
                return;
            }
            let is_crossed = end.arrivals.queue(now).is_some();
            let window = end.window.window_at(now, is_crossed);
            if MTU * (end.outstanding.len() as u64 + 1) > window {
                return;
            }
            // As quinn paces: a burst of ten packets or two milliseconds, refilled at 5/4 of the window a RTT.
            let pace = 1.25 * window as f64 / end.rtt.as_secs_f64();
            let burst = (pace * 0.002).max(10.0 * MTU as f64);
            let passed = now.saturating_duration_since(end.refilled_at).as_secs_f64();
            end.tokens = (end.tokens + pace * passed).min(burst);
            end.refilled_at = now;
            if end.tokens < MTU as f64 {
                if end.wakes_at.is_none() {
                    let wait = (burst - end.tokens) / pace;
                    let at = now + Duration::from_secs_f64(wait) + Duration::from_nanos(1);
                    end.wakes_at = Some(at);
                    self.at(at, Event::Wake { end: index });
                }
                return;
            }
            end.tokens -= MTU as f64;
            self.carry_data(index, now);
        }
    }

    fn carry_data(&mut self, index: usize, now: Instant) {
        let end = &mut self.ends[index];
        let data = Some(end.next);
        end.outstanding.insert(end.next, now);
        end.next += 1;
        end.left -= 1;
        end.sent_at = now;
        let acks = std::mem::take(&mut end.owed);
        self.carry(
            index,
            MTU,
            Packet {
                data,
                acks,
                ..NOTHING
            },
            now,
        );
    }

    fn carry(&mut self, from: usize, size: u64, packet: Packet, now: Instant) {
        let rate = self.crossing.rates[from];
        let end = &mut self.ends[from];
        // Only bulk is dropped, so that every small message is counted.
        if packet.data.is_some() && end.idle_at.saturating_duration_since(now) > self.crossing.queue {
            return;
        }
        end.idle_at = end.idle_at.max(now) + Duration::from_secs_f64(size as f64 / rate);
        let mut arrives_at = end.idle_at + self.crossing.base / 2;
        // Whoever wakes up late takes several at once, in order: rounded up to a tick.
        let tick = self.crossing.late.as_nanos().max(1);
        let since = (arrives_at - self.origin).as_nanos();
        let rounded = since.div_ceil(tick) * tick;
        arrives_at = self.origin + Duration::from_nanos(u64::try_from(rounded).unwrap_or(u64::MAX));
        self.at(arrives_at, Event::Arrives { at: 1 - from, packet });
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.ordinal += 1;
        self.events.push(Reverse((at, self.ordinal, event)));
    }

    fn measuring(&self, now: Instant) -> bool {
        now >= self.origin + MEASURED_FROM
    }

    fn late(&mut self) -> Duration {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let mixed = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D);
        self.crossing
            .late
            .mul_f64((mixed >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

const NOTHING: Packet = Packet {
    data: None,
    acks: Vec::new(),
    stamp: None,
    echo: None,
};

const MTU: u64 = 1494;

/// As the ends of a bulk lane tell each other the time, at first more often.
const STAMP_INTERVAL: Duration = Duration::from_millis(20);
const STAMP_INTERVAL_NEW: Duration = Duration::from_millis(5);
const STAMPS_NEW_FOR: Duration = Duration::from_millis(300);
const STAMPS_GO_ON: Duration = Duration::from_secs(1);

/// Over one connection, and in between partners train.
const EXCHANGES: usize = 8;
const PAUSE: Duration = Duration::from_millis(300);
const EXCHANGE_MAX: Duration = Duration::from_secs(60);

/// As in the laboratory.
const MEASURED_FROM: Duration = Duration::from_secs(3);

mod tests {
    use super::*;

    #[test]
    fn two_ends_that_send_at_once_fill_both_ways_and_keep_both_queues_short() {
        for (name, mbit, base, queue) in [
            ("20 Mbit/s, 50 ms, 200 ms queue", 20.0, 50, 200),
            ("20 Mbit/s, 50 ms, 1 s queue", 20.0, 50, 1000),
            ("100 Mbit/s, 20 ms, 200 ms queue", 100.0, 20, 200),
        ] {
            let crossing = Crossing::new([mbit; 2], base, queue);
            for crossing in [crossing, crossing.with_prompt_acknowledgements()] {
                let crossed = crossing.run(name, 60);
                assert!(crossed.shares.iter().all(|share| *share > 0.95), "{crossed:?}");
                assert!(crossed.p99_added < 25.0, "{crossed:?}");
            }
        }
    }

    #[test]
    fn ten_minutes_change_nothing() {
        let crossed = Crossing::new([20.0; 2], 50, 1000).run("ten minutes", 600);
        assert!(crossed.shares.iter().all(|share| *share > 0.95), "{crossed:?}");
        assert!(crossed.p99_added < 25.0, "{crossed:?}");
    }

    #[test]
    fn a_slow_way_does_not_hold_up_the_fast_one_against_it() {
        let crossed = Crossing::new([5.0, 50.0], 40, 500).run("5 and 50 Mbit/s", 60);
        assert!(crossed.shares.iter().all(|share| *share > 0.85), "{crossed:?}");
        assert!(crossed.p99_added < 45.0, "{crossed:?}");
    }

    #[test]
    fn far_and_slow_paths_are_filled_both_ways() {
        for (name, mbit, base, queue, added) in [
            // A packet takes 2.4 ms here, on either way.
            ("5 Mbit/s, 100 ms", 5.0, 100, 500, 80.0),
            ("20 Mbit/s, 150 ms", 20.0, 150, 200, 40.0),
        ] {
            let crossed = Crossing::new([mbit; 2], base, queue).run(name, 60);
            assert!(crossed.shares.iter().all(|share| *share > 0.9), "{crossed:?}");
            assert!(crossed.p99_added < added, "{crossed:?}");
        }
    }

    #[test]
    fn an_exchange_is_soon_as_fast_as_its_link_and_the_next_one_sooner() {
        // What a start costs, in times of what the way of each end needs for the bytes alone. Two ends that waited for each
        // other's acknowledgements, or took them for a queue, came to 3.3 times in the second row and 24 in the last but one.
        for (name, mbit, base, first_max, next_max) in [
            ("20 Mbit/s, 10 ms", [20.0, 20.0], 10, 1.4, 1.4),
            ("20 Mbit/s, 20 ms", [20.0, 20.0], 20, 1.8, 1.6),
            ("50 Mbit/s, 20 ms", [50.0, 50.0], 20, 2.7, 2.3),
            ("20 and 40 Mbit/s, 20 ms", [20.0, 40.0], 20, 2.5, 1.8),
            ("5 and 50 Mbit/s, 20 ms", [5.0, 50.0], 20, 4.0, 2.4),
            ("1.3 and 5 Mbit/s, 20 ms", [1.3, 5.0], 20, 1.8, 1.8),
            ("20 Mbit/s, 50 ms", [20.0, 20.0], 50, 2.5, 2.0),
            ("100 Mbit/s, 50 ms", [100.0, 100.0], 50, 6.6, 4.1),
            ("20 Mbit/s, 150 ms", [20.0, 20.0], 150, 5.1, 3.2),
        ] {
            let crossing = Crossing::new(mbit, base, 200);
            for crossing in [crossing, crossing.with_prompt_acknowledgements()] {
                let [first, next] = crossing.exchange(name, 400_000);
                assert!(
                    first.times.iter().all(|times| *times < first_max),
                    "{name}: {first:?}"
                );
                assert!(
                    next.times.iter().all(|times| *times < next_max),
                    "{name}: {next:?}"
                );
                // Ten packets, with which a start begins, are a tenth of a second of the slowest way.
                let slowest = mbit[0].min(mbit[1]);
                let queue_max = Duration::from_millis(if slowest < 2.0 { 170 } else { 110 });
                for started in [first, next] {
                    assert!(
                        started.queues.iter().all(|queue| *queue < queue_max),
                        "{name}: {started:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn partners_that_meet_again_over_the_same_connection_are_as_fast_as_their_link() {
        for (name, mbit, base) in [
            ("20 Mbit/s, 20 ms", [20.0, 20.0], 20),
            ("50 Mbit/s, 20 ms", [50.0, 50.0], 20),
            ("5 and 20 Mbit/s, 20 ms", [5.0, 20.0], 20),
            ("20 and 5 Mbit/s, 20 ms", [20.0, 5.0], 20),
            ("1.3 and 5 Mbit/s, 20 ms", [1.3, 5.0], 20),
            ("5 and 1.3 Mbit/s, 20 ms", [5.0, 1.3], 20),
            ("20 Mbit/s, 100 ms", [20.0, 20.0], 100),
        ] {
            let times = Crossing::new(mbit, base, 200).exchanges(name, 400_000);
            // All but the first, with which the ends find out what their ways carry.
            let slowest = times[1..].as_flattened().iter().copied().fold(0.0, f64::max);
            assert!(slowest < 2.0, "{name}: {times:?}");
        }
    }
}
