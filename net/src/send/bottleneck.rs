//! A made-up bottleneck with a drop-tail queue, and senders that share it. For tests, in made-up time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::time::{Duration, Instant};

use super::cubic::Cubic;
use super::delay_window::DelayWindow;

/// How a sender of bulk behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Delay,
    Cubic,
}

/// A link, who uses it and when.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Bytes a second, from which second on.
    rates: Vec<(u64, f64)>,
    bases: Vec<(u64, Duration)>,
    queue: f64,
    jitter: Duration,
    loss: f64,
    mtu: u16,
    bulk: Vec<(Kind, u64, u64)>,
    measured_from: u64,
}

/// What came of it.
pub(crate) struct Figures {
    /// Bytes a second of each sender while it was measured.
    pub(crate) bulk: Vec<f64>,
    rate: f64,
    /// Round trips in milliseconds of a small message every 20 ms, over the base, sorted.
    added: Vec<f64>,
    pub(crate) lost_share: f64,
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures")
            .field("bulk", &self.bulk)
            .field("p99_added", &self.p99_added())
            .field("lost_share", &self.lost_share)
            .finish_non_exhaustive()
    }
}

impl Figures {
    /// The part of the link that a sender had.
    pub(crate) fn share(&self, bulk: usize) -> f64 {
        self.bulk[bulk] / self.rate
    }

    pub(crate) fn p99_added(&self) -> f64 {
        self.quantile(0.99)
    }

    fn quantile(&self, q: f64) -> f64 {
        let last = self.added.len().saturating_sub(1);
        self.added
            .get((last as f64 * q) as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }
}

impl Scenario {
    /// A link of `mbit` over `base_ms` there and back, whose queue holds `queue_ms`.
    pub(crate) fn new(mbit: f64, base_ms: u64, queue_ms: u64) -> Self {
        let rate = mbit * 125_000.0;
        let base = Duration::from_millis(base_ms).max(Duration::from_micros(100));
        Self {
            rates: vec![(0, rate)],
            bases: vec![(0, base)],
            queue: rate * queue_ms as f64 / 1000.0,
            jitter: Duration::ZERO,
            loss: 0.0,
            mtu: 1200,
            bulk: Vec::new(),
            measured_from: 2,
        }
    }

    pub(crate) fn bulk(mut self, kind: Kind, from: u64, until: u64) -> Self {
        self.bulk.push((kind, from, until));
        self
    }

    pub(crate) fn jitter(mut self, ms: u64) -> Self {
        self.jitter = Duration::from_millis(ms);
        self
    }

    pub(crate) fn loss(mut self, share: f64) -> Self {
        self.loss = share;
        self
    }

    pub(crate) fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    pub(crate) fn base_from(mut self, second: u64, ms: u64) -> Self {
        self.bases.push((second, Duration::from_millis(ms)));
        self
    }

    pub(crate) fn rate_from(mut self, second: u64, mbit: f64) -> Self {
        self.rates.push((second, mbit * 125_000.0));
        self
    }

    pub(crate) fn measured_from(mut self, second: u64) -> Self {
        self.measured_from = second;
        self
    }

    /// Runs it, prints a row, and says what came of it.
    pub(crate) fn run(&self, name: &str, seconds: u64) -> Figures {
        let figures = World::new(self).run(seconds);
        let shares: Vec<String> = (0..figures.bulk.len())
            .map(|n| format!("{:.1}", 100.0 * figures.share(n)))
            .collect();
        println!(
            "{name:<36} bulk {:>22} % | added p50 {:>6.1} p99 {:>6.1} max {:>6.1} ms | lost {:.1} %",
            shares.join(" + "),
            figures.quantile(0.5),
            figures.p99_added(),
            figures.quantile(1.0),
            100.0 * figures.lost_share,
        );
        figures
    }
}

/// One sender of bulk.
#[derive(Debug)]
pub(crate) struct Bulk {
    control: Control,
    until: Duration,
    next: u64,
    outstanding: BTreeMap<u64, (Instant, u64)>,
    in_flight: u64,
    rtt: Duration,
    progress_at: Instant,
    tokens: f64,
    refilled_at: Instant,
    /// When it looks again by itself.
    wakes_at: Option<Instant>,
    arrives_last: Instant,
    measured: u64,
}

#[derive(Debug)]
enum Control {
    Delay(Box<DelayWindow>),
    Cubic(Cubic),
}

impl Bulk {
    /// When made-up time begins.
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    pub(crate) fn origin() -> Instant {
        Instant::now()
    }

    fn window(&self) -> u64 {
        match &self.control {
            Control::Delay(window) => window.window(),
            Control::Cubic(cubic) => cubic.window(),
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Ack { bulk: usize, number: u64 },
    Wake { bulk: usize },
    Check,
    Probe,
}

struct World<'a> {
    scenario: &'a Scenario,
    origin: Instant,
    bulk: Vec<Bulk>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    ordinal: u64,
    /// When the link has sent what is queued.
    idle_at: Instant,
    random: u64,
    added: Vec<f64>,
    sent: u64,
    lost: u64,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let origin = Bulk::origin();
        let mut world = Self {
            scenario,
            origin,
            bulk: Vec::new(),
            events: BinaryHeap::new(),
            ordinal: 0,
            idle_at: origin,
            random: 0x9E37_79B9_7F4A_7C15,
            added: Vec::new(),
            sent: 0,
            lost: 0,
        };
        for (index, &(kind, from, until)) in scenario.bulk.iter().enumerate() {
            let starts = origin + Duration::from_secs(from);
            world.bulk.push(Bulk {
                control: match kind {
                    Kind::Delay => Control::Delay(Box::new(DelayWindow::new(starts, scenario.mtu))),
                    Kind::Cubic => Control::Cubic(Cubic::new(scenario.mtu.into())),
                },
                until: Duration::from_secs(until),
                next: 0,
                outstanding: BTreeMap::new(),
                in_flight: 0,
                rtt: Duration::from_millis(100),
                progress_at: starts,
                tokens: 0.0,
                refilled_at: starts,
                wakes_at: None,
                arrives_last: starts,
                measured: 0,
            });
            world.at(starts, Event::Wake { bulk: index });
        }
        world.at(origin, Event::Probe);
        world.at(origin, Event::Check);
        world
    }

    fn run(mut self, seconds: u64) -> Figures {
        let end = self.origin + Duration::from_secs(seconds);
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now >= end {
                break;
            }
            match event {
                Event::Ack { bulk, number } => {
                    self.on_ack(bulk, number, now);
                    self.send(bulk, now);
                }
                Event::Wake { bulk } => {
                    self.bulk[bulk].wakes_at = None;
                    self.send(bulk, now);
                }
                Event::Check => {
                    for bulk in 0..self.bulk.len() {
                        self.check(bulk, now);
                    }
                    self.at(now + Duration::from_millis(100), Event::Check);
                }
                Event::Probe => {
                    let base = self.base(now);
                    if let Some(arrives_at) = self.carry(now, 256, false)
                        && self.measuring(now)
                    {
                        let rtt = arrives_at + base + self.jitter() - now;
                        self.added.push((rtt.saturating_sub(base)).as_secs_f64() * 1000.0);
                    }
                    self.at(now + Duration::from_millis(20), Event::Probe);
                }
            }
        }
        self.added.sort_by(f64::total_cmp);
        let measured = (seconds - self.scenario.measured_from) as f64;
        Figures {
            bulk: self
                .bulk
                .iter()
                .map(|bulk| bulk.measured as f64 / measured)
                .collect(),
            rate: self.rate(end),
            added: self.added,
            lost_share: self.lost as f64 / self.sent.max(1) as f64,
        }
    }

    fn send(&mut self, index: usize, now: Instant) {
        let mtu = u64::from(self.scenario.mtu);
        loop {
            let bulk = &mut self.bulk[index];
            if now.duration_since(self.origin) >= bulk.until || bulk.in_flight + mtu > bulk.window() {
                return;
            }
            // As quinn paces: a burst of ten packets or two milliseconds, refilled at 5/4 of the window a RTT.
            let pace = 1.25 * bulk.window() as f64 / bulk.rtt.as_secs_f64();
            let burst = (pace * 0.002).max(10.0 * mtu as f64);
            let passed = now.saturating_duration_since(bulk.refilled_at).as_secs_f64();
            bulk.tokens = (bulk.tokens + pace * passed).min(burst);
            bulk.refilled_at = now;
            if bulk.tokens < mtu as f64 {
                if bulk.wakes_at.is_none() {
                    let wait = (burst - bulk.tokens) / pace;
                    let at = now + Duration::from_secs_f64(wait) + Duration::from_nanos(1);
                    bulk.wakes_at = Some(at);
                    self.at(at, Event::Wake { bulk: index });
                }
                return;
            }
            bulk.tokens -= mtu as f64;
            let number = bulk.next;
            bulk.next += 1;
            bulk.in_flight += mtu;
            bulk.outstanding.insert(number, (now, mtu));
            self.sent += 1;
            let Some(arrives_at) = self.carry(now, mtu, true) else {
                self.lost += 1;
                continue;
            };
            let at = arrives_at + self.base(now) + self.jitter();
            let bulk = &mut self.bulk[index];
            bulk.arrives_last = bulk.arrives_last.max(at);
            let at = bulk.arrives_last;
            self.at(at, Event::Ack { bulk: index, number });
        }
    }

    fn on_ack(&mut self, index: usize, number: u64, now: Instant) {
        let measuring = self.measuring(now);
        let bulk = &mut self.bulk[index];
        let Some((sent_at, size)) = bulk.outstanding.remove(&number) else {
            return;
        };
        bulk.in_flight -= size;
        bulk.progress_at = now;
        bulk.rtt = (7 * bulk.rtt + (now - sent_at)) / 8;
        if measuring {
            bulk.measured += size;
        }
        match &mut bulk.control {
            Control::Delay(window) => window.on_ack(now, sent_at, size, false),
            Control::Cubic(cubic) => cubic.on_ack(now, sent_at, size, bulk.rtt),
        }
        let left = bulk.outstanding.split_off(&number.saturating_sub(2));
        let gone = std::mem::replace(&mut bulk.outstanding, left);
        self.lose(index, gone, now, false);
    }

    fn lose(&mut self, index: usize, gone: BTreeMap<u64, (Instant, u64)>, now: Instant, persistent: bool) {
        let Some((_, &(latest, _))) = gone.last_key_value() else {
            return;
        };
        let bytes = gone.values().map(|(_, size)| size).sum();
        let bulk = &mut self.bulk[index];
        bulk.in_flight -= bytes;
        match &mut bulk.control {
            Control::Delay(window) => window.on_loss(now, latest, bytes, persistent),
            Control::Cubic(cubic) => cubic.on_loss(now, latest),
        }
    }

    fn check(&mut self, index: usize, now: Instant) {
        let bulk = &mut self.bulk[index];
        let patience = (3 * bulk.rtt).max(Duration::from_secs(1));
        if bulk.in_flight > 0 && now.saturating_duration_since(bulk.progress_at) > patience {
            bulk.progress_at = now;
            let gone = std::mem::take(&mut bulk.outstanding);
            self.lose(index, gone, now, true);
            self.send(index, now);
        }
    }

    /// When a packet leaves the link, unless it is lost.
    fn carry(&mut self, now: Instant, size: u64, may_be_lost: bool) -> Option<Instant> {
        let rate = self.rate(now);
        let queued = self.idle_at.saturating_duration_since(now).as_secs_f64() * rate;
        let lost = may_be_lost && self.uniform() < self.scenario.loss;
        // A probe is always carried, so that its round trip is known.
        if lost || (may_be_lost && queued + size as f64 > self.scenario.queue) {
            return None;
        }
        self.idle_at = self.idle_at.max(now) + Duration::from_secs_f64(size as f64 / rate);
        Some(self.idle_at)
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.ordinal += 1;
        self.events.push(Reverse((at, self.ordinal, event)));
    }

    fn measuring(&self, now: Instant) -> bool {
        now.duration_since(self.origin) >= Duration::from_secs(self.scenario.measured_from)
    }

    fn rate(&self, now: Instant) -> f64 {
        current(&self.scenario.rates, now.duration_since(self.origin))
    }

    fn base(&self, now: Instant) -> Duration {
        current(&self.scenario.bases, now.duration_since(self.origin))
    }

    fn jitter(&mut self) -> Duration {
        self.scenario.jitter.mul_f64(self.uniform())
    }

    /// A number from 0 to 1 (xorshift64*).
    fn uniform(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let mixed = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D);
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn current<T: Copy>(steps: &[(u64, T)], passed: Duration) -> T {
    let reached = steps.iter().rev().find(|(from, _)| passed.as_secs() >= *from);
    reached.unwrap_or(&steps[0]).1
}
