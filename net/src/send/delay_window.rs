//! How much bulk may be in flight, by the delay that it causes. Reads no clock and sends nothing.
//!
//! The window holds the queue of the slowest link at no more than [`TARGET`], so that a small message beside a
//! saturating transfer waits for that long and no longer, however deep the router's queue is. The parts are
//! known: growth without delay and a cut in proportion to it (Swift, SIGCOMM 2020), a start that leaves on the
//! first delay (HyStart++, RFC 9406), drains in which the shortest round trip is measured again, so that
//! late-comers do not take a standing queue for distance (BBR, draft-ietf-ccwg-bbr; LEDBAT++,
//! draft-irtf-iccrg-ledbat-plus-plus), and a loss-based mode while others fill the queue (Copa, NSDI 2018).
//!
//! A loss is no sign of a queue by itself: many links lose a few packets in a hundred whatever is sent. The
//! window is cut on trial, and only losses that become fewer with it count as congestion.

mod base;
mod losses;
mod remembered;
mod round_trip;
mod stuck;

use super::cubic::Cubic;
use base::Base;
use losses::{Losses, Trial};
pub use remembered::Remembered;
use round_trip::{Closing, RoundTrip};
use std::time::{Duration, Instant};
use stuck::Stuck;

/// What bulk may add to the shortest round trip: a packet time on the slowest links that matter (1 Mbit/s) and
/// enough for a link to stay busy through a timer's lateness.
pub const TARGET: Duration = Duration::from_millis(15);

/// The same for each of two ends that send bulk at the same time: a small message and its answer wait in both queues.
const TARGET_EACH: Duration = Duration::from_millis(6);

/// A delay-based congestion window for one path.
#[derive(Clone, Debug)]
pub struct DelayWindow {
    mtu: u64,
    /// WINDOW_MIN packets <= window <= WINDOW_MAX
    window: u64,
    phase: Phase,
    base: Base,
    trip: RoundTrip,
    /// When something was acknowledged last.
    acked_at: Instant,
    /// Bytes a second that were acknowledged over the last round trip.
    rate: f64,
    losses: Losses,
    /// How long the next loss-based spell lasts.
    fair_for: Duration,
    /// How long acknowledgements wait behind bulk that the other end sends, while it does.
    returning: Option<Duration>,
    /// How long what we send waits, as the other end sees it, while it says so.
    seen: Option<Duration>,
    /// The most that a round trip of the start has carried.
    carried: u64,
    /// What the path was good for before, until the first round trip shows whether it is the same.
    resumed: Option<Remembered>,
    /// Whether the window is what was remembered, and no round trip has carried it yet.
    jumped: bool,
}

/// What the window is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Doubling each round trip until there is delay.
    Startup,
    /// Holding the delay at the target.
    Delay,
    /// Letting the queue run empty, to measure the shortest round trip.
    Drain,
    /// Sharing with others who fill the queue, as they do.
    Fair,
}

#[derive(Clone, Debug)]
enum Phase {
    Startup {
        /// Since when round trips have been longer than without a queue, while that may be no queue of ours.
        suspected: Option<Instant>,
    },
    Steady(Steady),
    /// The window to go on with.
    Drain {
        resume: u64,
    },
    Fair {
        cubic: Cubic,
        until: Instant,
    },
}

/// Growth since the last cut.
#[derive(Clone, Copy, Debug, Default)]
struct Steady {
    /// Rounds since the last cut: the longer ago, the larger the steps.
    grown: u32,
    /// Rounds in a row in which there was no queue at all.
    calm: u32,
    /// A window at which packets were lost: up to there in small steps only.
    ceiling: Option<u64>,
    stuck: Option<Stuck>,
}

impl DelayWindow {
    /// The window of a path of which nothing is known.
    pub fn new(now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu).max(1);
        let window = WINDOW_INITIAL * mtu;
        Self {
            mtu,
            window,
            phase: Phase::Startup { suspected: None },
            base: Base::new(now),
            trip: RoundTrip::opened(now, window),
            acked_at: now,
            rate: 0.0,
            losses: Losses::new(now),
            fair_for: FAIR_MIN,
            returning: None,
            seen: None,
            carried: 0,
            resumed: None,
            jumped: false,
        }
    }

    /// Goes on with what an earlier connection over the same path has found: at once where a round trip shows that it is
    /// the same, or when one does.
    pub fn resume(&mut self, remembered: Remembered, now: Instant) {
        self.resumed = Some(remembered);
        if self.base.rtt().is_some() {
            self.jump(now);
        }
    }

    /// How large the window would be if it went on with that now.
    pub fn window_if_resumed(&self, remembered: Remembered, now: Instant) -> u64 {
        let jump = self.base.rtt().and_then(|rtt| remembered.jump(rtt, now));
        let is_new = matches!(self.phase, Phase::Startup { .. });
        jump.filter(|_| is_new)
            .unwrap_or(0)
            .clamp(self.window, WINDOW_MAX)
    }

    /// What the next connection over this path may go on with; `None` if nothing was learnt.
    pub fn remember(&self, now: Instant) -> Option<Remembered> {
        let rtt = self.base.rtt()?;
        let window = match &self.phase {
            // A few messages say nothing of the path.
            Phase::Startup { .. } if self.carried <= WINDOW_INITIAL * self.mtu => return None,
            Phase::Startup { .. } => self.carried,
            Phase::Steady(_) => self.window,
            Phase::Drain { resume } => *resume,
            // What it would be without the others is not known.
            Phase::Fair { .. } => (self.rate * rtt.as_secs_f64()) as u64,
        };
        Some(Remembered { window, rtt, at: now })
    }

    /// How long what the other end sends waits in queues on its way here, while it sends bulk too; see [`super::Arrivals`].
    ///
    /// Acknowledgements wait there as well. Who took that for a queue of ours would send less and less, and so would the
    /// other; and who allowed nothing in flight for that time would send less whenever the other sends more, by turns.
    ///
    /// `seen` is what the other end says in return of what we send. That is known late, but it is known apart from all that
    /// may hold an acknowledgement up.
    pub fn set_returning(&mut self, queue: Option<Duration>, seen: Option<Duration>) {
        // What is longer nobody waits for, whatever a peer says.
        self.returning = queue.map(|queue| queue.min(TOLD_MAX));
        self.seen = seen.map(|seen| seen.min(TOLD_MAX));
    }

    /// Bytes that may be in flight.
    pub fn window(&self) -> u64 {
        let Some((base, returning)) = self.base.rtt().zip(self.returning) else {
            return self.window;
        };
        let longer = 1.0 + ratio(returning, base + TARGET_EACH);
        scaled(self.window, longer).min(WINDOW_MAX)
    }

    /// The same at `now`, for a sender that keeps acknowledgements back while its window is full, as quinn does. `is_crossed`
    /// says that the other end sends bulk too.
    ///
    /// Two such ends that fill their windows would each wait for the other until a timeout. So whoever has waited for a
    /// while, and hears the other send, may say something.
    pub fn window_at(&self, now: Instant, is_crossed: bool) -> u64 {
        let window = self.window();
        // On a slow link acknowledgements are far apart by themselves.
        let apart = Duration::from_secs_f64(2.0 * self.mtu as f64 / self.rate.max(RATE_MIN));
        let held = HELD_FOR.max(self.base.rtt().unwrap_or_default() / 4).max(apart);
        if is_crossed && now >= self.acked_at + held {
            (window + (window / 8).max(2 * self.mtu)).min(WINDOW_MAX)
        } else {
            window
        }
    }

    /// What the window is doing.
    pub const fn mode(&self) -> Mode {
        match self.phase {
            Phase::Startup { .. } => Mode::Startup,
            Phase::Steady(_) => Mode::Delay,
            Phase::Drain { .. } => Mode::Drain,
            Phase::Fair { .. } => Mode::Fair,
        }
    }

    /// The round trip without a queue, as far as it is known.
    pub fn base_rtt(&self) -> Option<Duration> {
        self.base.rtt()
    }

    /// Bytes a second that were acknowledged over the last round trip; 0 before there was one.
    pub const fn rate(&self) -> f64 {
        self.rate
    }

    /// `bytes` that were sent at `sent_at` have arrived. `limited` says that the sender had nothing more to
    /// send, so that the path could have carried more.
    pub fn on_ack(&mut self, now: Instant, sent_at: Instant, bytes: u64, limited: bool) {
        self.acked_at = self.acked_at.max(now);
        // Within one machine a clock that was read before the packet left gives no round trip at all.
        let rtt = now.checked_duration_since(sent_at).filter(|rtt| *rtt >= RTT_MIN);
        let rtt = rtt.map(|rtt| self.without_returning(rtt));
        if rtt.is_some_and(|rtt| self.base.observe(rtt)) {
            // Everybody who shares the link sees the queue run empty, and drains together from now on.
            self.base.drained_at = now;
        }
        if rtt.is_some() {
            self.jump(now);
        }
        if sent_at >= self.losses.since {
            self.losses.acked += bytes;
        }
        self.trip.acked += bytes;
        if limited {
            self.trip.acked_limited += bytes;
        }
        if sent_at >= self.trip.opened_at {
            if self.trip.closing.is_none() {
                self.trip.start(now, self.window, bytes, limited);
            }
            if let Some(rtt) = rtt {
                self.trip.samples += 1;
                self.trip.rtt_min = self.trip.rtt_min.min(rtt);
                self.trip.rtt_sum += rtt;
            }
        }
        match &mut self.phase {
            Phase::Startup { suspected } => {
                let suspected = *suspected;
                self.start(now, suspected, if limited { 0 } else { bytes });
            }
            Phase::Fair { cubic, .. } => {
                if !limited {
                    cubic.on_ack(now, sent_at, bytes, rtt.unwrap_or(RTT_MIN));
                }
                self.window = cubic.window();
            }
            Phase::Steady(_) | Phase::Drain { .. } => {}
        }
        if let Some(closing) = self.trip.closing {
            let whole = sent_at >= closing.at && now.saturating_duration_since(closing.at) >= ROUND_MIN;
            if whole || self.is_stuck_still() {
                self.end_round(now, closing);
            }
        }
        self.bound();
    }

    /// `bytes` were lost, the latest of them sent at `sent_at`. `persistent` says that nothing arrived for
    /// several probe timeouts.
    pub fn on_loss(&mut self, now: Instant, sent_at: Instant, bytes: u64, persistent: bool) {
        if persistent {
            if let Phase::Steady(Steady {
                stuck: Some(stuck), ..
            }) = self.phase
                && let Some(base) = self.base.rtt()
            {
                // Others leave so little room that nothing of ours gets through.
                self.share_fairly(now, stuck, base);
                return;
            }
            self.window = WINDOW_MIN * self.mtu;
            self.phase = Phase::Startup { suspected: None };
            self.carried = 0;
            self.open_round(now);
            self.losses.begin(now);
            return;
        }
        if let Phase::Fair { cubic, .. } = &mut self.phase {
            cubic.on_loss(now, sent_at);
            self.window = cubic.window();
            self.bound();
            return;
        }
        if sent_at < self.losses.since {
            return;
        }
        self.losses.lost += bytes;
        self.trip.lost += bytes;
        // A start that has outrun a shallow queue loses half of what it sends.
        let seen = self.trip.acked + self.trip.lost;
        if matches!(self.phase, Phase::Startup { .. })
            && seen >= STARTUP_LOSS_SAMPLE * self.mtu
            && self.trip.lost as f64 > STARTUP_LOSS_MAX * seen as f64
        {
            let ceiling = Some(self.trip.window_at_open);
            self.window = if self.jumped {
                // What was remembered is not the path's any more.
                self.trip.acked / 2
            } else {
                scaled(self.trip.window_at_open, LOSS_CUT)
            };
            self.settle(
                now,
                Steady {
                    ceiling,
                    ..Steady::default()
                },
            );
            self.bound();
        }
    }

    /// A router has marked a packet that was sent at `sent_at` instead of dropping it.
    pub fn on_mark(&mut self, now: Instant, sent_at: Instant) {
        match &mut self.phase {
            Phase::Fair { cubic, .. } => {
                cubic.on_loss(now, sent_at);
                self.window = cubic.window();
            }
            Phase::Startup { .. } | Phase::Steady(_) if sent_at >= self.trip.opened_at => {
                self.window = scaled(self.window, MARK_CUT);
                self.settle(now, Steady::default());
            }
            // Answered already, or about to be.
            Phase::Startup { .. } | Phase::Steady(_) | Phase::Drain { .. } => {}
        }
        self.bound();
    }

    /// Packets are now this long.
    pub fn on_mtu(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu).max(1);
        self.bound();
    }

    /// A round trip as it would be if nothing but our own bulk waited.
    fn without_returning(&self, rtt: Duration) -> Duration {
        match self.base.rtt().zip(self.returning) {
            Some((base, returning)) => {
                // That queue is known as it was a moment ago, so this may be too much.
                let ours = rtt.saturating_sub(returning).max(base.min(rtt));
                let is_starting = matches!(self.phase, Phase::Startup { .. });
                match self.seen.map(|seen| base + seen) {
                    Some(seen) if ours > seen + HELD && !is_starting => seen,
                    Some(_) | None => ours,
                }
            }
            None => rtt,
        }
    }

    /// What we may add to the shortest round trip.
    const fn target(&self) -> Duration {
        match self.returning {
            Some(_) => TARGET_EACH,
            None => TARGET,
        }
    }

    /// Once, as soon as there is a round trip.
    fn jump(&mut self, now: Instant) {
        let Some(resumed) = self.resumed.take() else {
            return;
        };
        let window = self.window_if_resumed(resumed, now);
        if window > self.window {
            self.window = window;
            self.jumped = true;
            self.open_round(now);
        }
    }

    /// So many bytes have arrived of a start that is not over.
    fn start(&mut self, now: Instant, suspected: Option<Instant>, bytes: u64) {
        let base = self.base.rtt().unwrap_or_default();
        let delay = self.trip.rtt_min.saturating_sub(base);
        let is_long = self.trip.samples >= STARTUP_SAMPLES
            && delay >= (base / 8).clamp(STARTUP_DELAY_MIN, STARTUP_DELAY_MAX);
        let Some(returning) = self.returning else {
            self.window += bytes;
            if is_long {
                self.leave_startup(now, delay);
            }
            return;
        };
        // While both ends send, each waits for what the other keeps back. Whether there is a queue only the other knows, and
        // says it a little later: until then the window grows slowly (as in RFC 9406, 4.2).
        self.window += if suspected.is_some() { bytes / 4 } else { bytes };
        let since = suspected.or_else(|| is_long.then_some(now));
        let is_told = since.is_some_and(|since| now >= since + base + returning + TOLD_WITHIN);
        match self.seen {
            // What was in the queue before this connection began to send is not its doing.
            Some(seen) if seen >= STARTUP_DELAY_MAX && self.trip.samples >= STARTUP_SAMPLES => {
                self.leave_startup(now, seen);
            }
            None if is_told && is_long => self.leave_startup(now, delay),
            // Nobody keeps acknowledgements back for so long, whatever the other end says.
            Some(_) if is_told && delay > base.max(DENIED_MAX) => self.leave_startup(now, delay),
            Some(_) | None => {
                let suspected = since.filter(|_| !is_told);
                self.phase = Phase::Startup { suspected };
            }
        }
    }

    /// The start has filled the link, and a queue of this length.
    fn leave_startup(&mut self, now: Instant, queue: Duration) {
        let Some(base) = self.base.rtt() else { return };
        // The samples left when this much was in flight; the window has grown ahead of them since.
        self.window = scaled(self.trip.window_at_open, ratio(base, base + queue));
        self.settle(now, Steady::default());
        // What the overshoot loses says nothing of the window as it is now.
        self.losses.begin(now);
    }

    /// Whether a cut has changed nothing: a few packets show that, without a whole round trip of them.
    fn is_stuck_still(&self) -> bool {
        let stuck = matches!(self.phase, Phase::Steady(Steady { stuck: Some(_), .. }));
        let foreign = |base| self.trip.rtt_min.saturating_sub(base) > FOREIGN;
        stuck && self.trip.samples >= STARTUP_SAMPLES && self.base.rtt().is_some_and(foreign)
    }

    /// Everything sent in one round trip has been answered.
    fn end_round(&mut self, now: Instant, closing: Closing) {
        let trip = self.trip;
        let took = now.saturating_duration_since(closing.at).as_secs_f64();
        self.rate = trip.acked as f64 / took.max(RTT_MIN.as_secs_f64());
        self.trip = RoundTrip::opened(closing.at, closing.window);
        let Some(base) = self.base.rtt() else { return };
        let Some(mean) = trip.rtt_sum.checked_div(trip.samples) else {
            return;
        };
        // The shortest alone would miss a queue that comes and goes within the round trip, as when timers are late;
        // the mean alone would take jitter for a queue.
        let rtt = (trip.rtt_min + mean) / 2;
        let delay = rtt.saturating_sub(base);
        let limited = 2 * trip.acked_limited > trip.acked;
        match self.phase.clone() {
            Phase::Startup { .. } => {
                self.carried = self.carried.max(trip.acked);
                self.jumped = false;
            }
            // What a lane sends now and then makes no queue. Whoever gets a packet alone keeps its acknowledgement back for a
            // while, but no longer; and whether a cut has changed anything few packets may show, but not one or two.
            Phase::Steady(Steady { stuck, .. })
                if IDLE_SHARE * (trip.acked + trip.lost) < self.window
                    && delay <= ALONE_MAX
                    && (stuck.is_none() || trip.samples < STARTUP_SAMPLES) =>
            {
                self.losses.begin(now);
                if delay < CALM {
                    self.base.drained_at = now;
                }
            }
            Phase::Steady(steady) => {
                if delay > TARGET {
                    self.losses.begin(now);
                    self.losses.trial = None;
                    self.cut(now, steady, base, rtt, trip.rtt_min);
                } else if self.judge_losses(now) {
                    // Looks at the result next.
                } else if now >= self.base.drained_at + DRAIN_INTERVAL.max(DRAIN_INTERVAL_RTTS * rtt) {
                    let target = self.target();
                    let resume = scaled(self.window, ratio(base + target / 5, base + delay).min(1.0));
                    let drained = (1.0 - ratio(4 * target, base)).clamp(DRAIN_MAX, DRAIN_MIN);
                    self.window = scaled(self.window, drained * ratio(base + CALM, base + delay).min(1.0));
                    self.phase = Phase::Drain { resume };
                    self.open_round(now);
                } else if delay > self.target() {
                    self.ease(steady, base, delay);
                } else {
                    self.grow(now, steady, base, delay, limited);
                }
            }
            Phase::Drain { resume } => {
                self.base.turn(trip.rtt_min, now);
                self.window = resume;
                self.settle(now, Steady::default());
            }
            Phase::Fair { until, .. } => {
                if delay <= TARGET {
                    self.fair_for = FAIR_MIN;
                    self.settle(now, Steady::default());
                } else if now >= until {
                    self.try_alone(now, base, rtt);
                }
            }
        }
    }

    /// The delay is a little above what both ends together may cause. Each answers in part, since it takes a round trip to
    /// see what came of it.
    fn ease(&mut self, mut steady: Steady, base: Duration, delay: Duration) {
        let excess = delay.saturating_sub(self.target()).mul_f64(EASE);
        self.window = scaled(self.window, 1.0 - ratio(excess, base + delay));
        if steady.stuck.take().is_some_and(|stuck| stuck.by_trial) {
            self.fair_for = FAIR_MIN;
        }
        (steady.grown, steady.calm) = (0, 0);
        self.phase = Phase::Steady(steady);
    }

    fn grow(&mut self, now: Instant, mut steady: Steady, base: Duration, delay: Duration, limited: bool) {
        if steady.stuck.take().is_some_and(|stuck| stuck.by_trial) {
            self.fair_for = FAIR_MIN;
        }
        if limited {
            self.phase = Phase::Steady(steady);
            return;
        }
        if steady
            .ceiling
            .is_some_and(|ceiling| self.window > ceiling + ceiling / 10)
        {
            steady.ceiling = None;
        }
        steady.calm = if delay < CALM { steady.calm + 1 } else { 0 };
        steady.grown += 1;
        if steady.calm > CALM_TRIPS && steady.ceiling.is_none() {
            // The link is not full: half the target at once, and more each time that this shows no delay.
            let doublings = ((steady.calm - CALM_TRIPS) / 2).min(8);
            let step = ratio(TARGET / 2, base + delay) * f64::from(1_u32 << doublings);
            let step = step.min(ratio(2 * TARGET, base + delay)).min(CALM_STEP_MAX);
            self.window = scaled(self.window, 1.0 + step);
            self.open_round(now);
        } else {
            let step = self.mtu * u64::from(1 + steady.grown / 8);
            // Back to where packets were lost in a few rounds, the slower the nearer (BIC, INFOCOM 2004).
            let below = steady
                .ceiling
                .map_or(0, |ceiling| ceiling.saturating_sub(self.window));
            self.window += step.max(below / 8);
        }
        self.phase = Phase::Steady(steady);
    }

    /// The delay of this round trip was above the target.
    fn cut(&mut self, now: Instant, steady: Steady, base: Duration, rtt: Duration, rtt_min: Duration) {
        // Where round trips scatter, so do the shortest of them.
        let scatter = 2 * rtt.saturating_sub(rtt_min);
        let stuck = match steady.stuck {
            None => Stuck::new(self.window, rtt_min),
            Some(stuck) => stuck.after_cut(self.window, rtt_min, scatter),
        };
        if stuck.flat >= FLAT_TRIPS {
            // Whatever we take away changes nothing: it is the path that has become longer.
            self.base.restart(rtt_min, now);
            self.window = scaled(stuck.before, LOSS_CUT);
            self.settle(now, Steady::default());
        } else if stuck.cuts > STUCK_FAIR
            && stuck.flat < FLAT_SUSPECT
            && rtt_min.saturating_sub(base) > FOREIGN
        {
            self.share_fairly(now, stuck, base);
        } else {
            let factor = ratio(base + TARGET / 5, rtt).max(CUT_MAX);
            self.window = scaled(self.window, factor);
            let stuck = Some(stuck);
            self.settle(
                now,
                Steady {
                    stuck,
                    ..Steady::default()
                },
            );
        }
    }

    fn share_fairly(&mut self, now: Instant, stuck: Stuck, base: Duration) {
        // Half of what the link carried before is our part, and takes more in flight as the queue is longer.
        let half = scaled(stuck.before, 0.5 * ratio(stuck.rtt, base + TARGET));
        let claim = if stuck.by_trial {
            stuck.before
        } else {
            half.clamp(stuck.before, WINDOW_MAX)
        };
        self.window = stuck.before;
        self.phase = Phase::Fair {
            cubic: Cubic::resumed(stuck.before, claim, self.mtu),
            until: now + self.fair_for.max(FAIR_RTTS * stuck.rtt),
        };
        self.fair_for = (2 * self.fair_for).min(FAIR_MAX);
        self.open_round(now);
    }

    /// Holds to the target for a moment, to see whether the queue was ours.
    fn try_alone(&mut self, now: Instant, base: Duration, rtt: Duration) {
        let stuck = Some(Stuck {
            cuts: STUCK_BY_TRIAL,
            by_trial: true,
            ..Stuck::new(self.window, rtt)
        });
        self.window = scaled(self.window, ratio(base + TARGET / 2, rtt));
        self.settle(
            now,
            Steady {
                stuck,
                ..Steady::default()
            },
        );
    }

    /// Looks at the share of losses; true where the window was changed for it.
    fn judge_losses(&mut self, now: Instant) -> bool {
        let Some(share) = self.losses.share(self.mtu) else {
            return false;
        };
        self.losses.begin(now);
        let tolerated = AMBIENT_SLACK + 1.5 * self.losses.ambient;
        match self.losses.trial.take() {
            // As many with less in flight: not of our making.
            Some(trial) if share >= 0.6 * trial.share && share < HEAVY_LOSS => {
                self.losses.ambient = share.max(trial.share).min(AMBIENT_MAX);
                self.window = self.window.max(trial.before);
                self.settle(now, Steady::default());
                true
            }
            trial if share > tolerated => {
                let before = self.window;
                self.window = scaled(before, LOSS_CUT);
                self.losses.trial = Some(Trial { before, share });
                let ceiling = Some(trial.map_or(before, |trial| trial.before.min(before)));
                self.settle(
                    now,
                    Steady {
                        ceiling,
                        ..Steady::default()
                    },
                );
                true
            }
            _ => {
                self.losses.ambient -= (self.losses.ambient - share).max(0.0) / 8.0;
                false
            }
        }
    }

    /// Goes on with the window as it is now, and looks only at what is sent from now on.
    fn settle(&mut self, now: Instant, steady: Steady) {
        self.phase = Phase::Steady(steady);
        self.open_round(now);
    }

    fn open_round(&mut self, now: Instant) {
        self.bound();
        self.trip = RoundTrip::opened(now, self.window);
    }

    fn bound(&mut self) {
        self.window = self.window.clamp(WINDOW_MIN * self.mtu, WINDOW_MAX);
    }
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.max(RTT_MIN).as_secs_f64()
}

fn scaled(window: u64, factor: f64) -> u64 {
    (window as f64 * factor) as u64
}

/// Packets to begin with (RFC 9002, 7.2).
const WINDOW_INITIAL: u64 = 10;

/// Packets that are always allowed: two, so that the second has the first acknowledged at once.
const WINDOW_MIN: u64 = 2;

/// Bytes that are never exceeded: 2 Gbit/s over 128 ms, and bounded memory for what may be sent again.
const WINDOW_MAX: u64 = 32 << 20;

/// What is shorter is no round trip.
const RTT_MIN: Duration = Duration::from_micros(1);

/// Where round trips are shorter than this, a scheduler's moods are most of what would be seen in one.
const ROUND_MIN: Duration = Duration::from_millis(4);

/// HyStart++ (RFC 9406, 4.3): samples that a round trip needs, and the delay at which the start is over.
const STARTUP_SAMPLES: u32 = 8;
const STARTUP_DELAY_MIN: Duration = Duration::from_millis(4);
const STARTUP_DELAY_MAX: Duration = Duration::from_millis(8);

/// A queue that is there now is told of within this and a round trip.
const TOLD_WITHIN: Duration = Duration::from_millis(20);

/// A queue that a peer tells of is no longer than this.
const TOLD_MAX: Duration = Duration::from_secs(1);

/// A delay that the other end's word does not explain away.
const DENIED_MAX: Duration = Duration::from_millis(100);

/// Packets of a round trip, and the share of them lost, that end the start.
const STARTUP_LOSS_SAMPLE: u64 = 32;
const STARTUP_LOSS_MAX: f64 = 0.2;

/// Whoever sends less than this part of the window in a round trip is idle, but for a message now and then.
const IDLE_SHARE: u64 = 4;

/// So long an acknowledgement is kept back (RFC 9000, 18.2: 25 ms), and a timer's lateness.
const ALONE_MAX: Duration = Duration::from_millis(30);

/// Below this delay the link is not full.
const CALM: Duration = Duration::from_millis(2);

/// Rounds without a queue that are no accident.
const CALM_TRIPS: u32 = 2;

/// The largest step up in one round trip.
const CALM_STEP_MAX: f64 = 0.25;

/// More than the queue of the way there changes within a few round trips where both ends send: what an acknowledgement
/// took longer, the other end has held it back.
const HELD: Duration = Duration::from_millis(20);

/// After this without an acknowledgement the other end may be keeping them back: longer than they are apart on a link that
/// is not slow.
const HELD_FOR: Duration = Duration::from_millis(3);

/// Bytes a second on the slowest links that matter, as far as packets are apart.
const RATE_MIN: f64 = 125_000.0;

/// Which part of the delay above the target is taken back in one round trip where both ends send.
const EASE: f64 = 0.3;

/// The deepest cut in one round trip (Swift).
const CUT_MAX: f64 = 0.5;

/// What is left of the window after a loss, as with Cubic, and after a mark, as with ABE (RFC 8511).
const LOSS_CUT: f64 = 0.7;
const MARK_CUT: f64 = 0.8;

/// How often the queue is let run empty: as often as BBR does.
const DRAIN_INTERVAL: Duration = Duration::from_secs(10);

/// A drain costs one round trip's worth of sending: at most a thirtieth of it, also over a satellite.
const DRAIN_INTERVAL_RTTS: u32 = 32;

/// What a drain leaves of the window: four targets less, so that the queues of a few of our kind run empty
/// when one of them drains, and no less than half of it.
const DRAIN_MAX: f64 = 0.5;
const DRAIN_MIN: f64 = 0.9;

/// Cuts in a row that the queue must outlast to be called another's: together they leave an eighth.
const STUCK_FAIR: u32 = 3;

/// A trial from the loss-based mode has cut deeply at once, and needs one more.
const STUCK_BY_TRIAL: u32 = 2;

/// Rounds of cuts in which the delay has not moved, which make it the path's.
const FLAT_TRIPS: u32 = 5;

/// Rounds after which a delay that has not moved may turn out to be the path's.
const FLAT_SUSPECT: u32 = 1;

/// A delay that our own kind does not cause: two targets, of somebody who took our queue for distance, and a
/// little more.
const FOREIGN: Duration = Duration::from_millis(35);

/// How long a loss-based spell lasts: doubled each time that the queue turns out to be another's.
const FAIR_MIN: Duration = Duration::from_secs(5);
const FAIR_MAX: Duration = Duration::from_secs(40);

/// Round trips that a loss-based spell lasts at least: a trial costs three or four.
const FAIR_RTTS: u32 = 20;

/// Losses above the ambient share that call for a trial, and the ambient share that is believed at most.
const AMBIENT_SLACK: f64 = 0.01;
const AMBIENT_MAX: f64 = 0.15;

/// A share of losses that is congestion whatever a trial says.
const HEAVY_LOSS: f64 = 0.3;

#[cfg(test)]
mod tests {
    use super::super::bottleneck::{Bulk, Figures, Kind, Scenario};
    use super::*;

    #[test]
    fn a_full_link_stays_full_and_adds_no_more_than_the_target() {
        for (name, rate, base, queue) in [
            ("20 Mbit/s, 50 ms, 200 ms queue", 20.0, 50, 200),
            ("20 Mbit/s, 50 ms, 1 s queue", 20.0, 50, 1000),
            ("100 Mbit/s, 20 ms, 200 ms queue", 100.0, 20, 200),
        ] {
            let figures = Scenario::new(rate, base, queue)
                .bulk(Kind::Delay, 0, 60)
                .run(name, 60);
            assert!(figures.share(0) > 0.95, "{name}: {figures:?}");
            assert!(figures.p99_added() < 25.0, "{name}: {figures:?}");
        }
    }

    #[test]
    fn a_loss_based_sender_shows_what_is_gained() {
        let figures = Scenario::new(20.0, 50, 1000)
            .bulk(Kind::Cubic, 0, 60)
            .run("Cubic, 1 s queue", 60);
        assert!(figures.p99_added() > 500.0, "{figures:?}");
    }

    #[test]
    fn jitter_and_random_losses_do_not_slow_it_down() {
        let jitter = Scenario::new(20.0, 50, 200).jitter(5).bulk(Kind::Delay, 0, 60);
        let figures = jitter.run("5 ms jitter", 60);
        assert!(figures.share(0) > 0.95, "{figures:?}");
        assert!(figures.p99_added() < 30.0, "{figures:?}");
        let lossy = Scenario::new(20.0, 50, 200).loss(0.05).bulk(Kind::Delay, 0, 60);
        let figures = lossy.run("5 % loss", 60);
        assert!(figures.share(0) > 0.85, "{figures:?}");
        assert!(figures.p99_added() < 25.0, "{figures:?}");
        let both = Scenario::new(20.0, 50, 200)
            .loss(0.05)
            .jitter(5)
            .bulk(Kind::Delay, 0, 60);
        let figures = both.run("5 % loss, 5 ms jitter", 60);
        assert!(figures.share(0) > 0.85, "{figures:?}");
    }

    #[test]
    fn a_queue_too_short_to_show_delay_is_not_overrun() {
        let figures = Scenario::new(20.0, 50, 5)
            .bulk(Kind::Delay, 0, 60)
            .run("5 ms queue", 60);
        assert!(figures.share(0) > 0.85, "{figures:?}");
        assert!(figures.lost_share < 0.03, "{figures:?}");
    }

    #[test]
    fn extreme_paths_are_filled() {
        for (name, rate, base, queue, added) in [
            ("600 ms RTT", 20.0, 600, 200, 70.0),
            // Two packets take longer than the target here.
            ("1 Mbit/s", 1.0, 50, 500, 50.0),
            ("5 ms RTT", 50.0, 5, 100, 25.0),
        ] {
            let figures = Scenario::new(rate, base, queue).bulk(Kind::Delay, 0, 90);
            let figures = figures.measured_from(18).run(name, 90);
            assert!(figures.share(0) > 0.85, "{name}: {figures:?}");
            assert!(figures.p99_added() < added, "{name}: {figures:?}");
        }
    }

    #[test]
    fn a_machine_s_own_path_is_not_throttled_by_its_scheduler() {
        let loopback = Scenario::new(8000.0, 0, 100).mtu(16_000).jitter(5);
        let figures = loopback
            .bulk(Kind::Delay, 0, 4)
            .run("8 Gbit/s loopback, 5 ms noise", 4);
        assert!(figures.share(0) > 0.9, "{figures:?}");
    }

    #[test]
    fn late_comers_get_their_part() {
        let two = Scenario::new(20.0, 50, 200)
            .bulk(Kind::Delay, 0, 80)
            .bulk(Kind::Delay, 15, 80);
        fair(&two.measured_from(30).run("two, 15 s apart", 80));
        let mut four = Scenario::new(20.0, 50, 200);
        for number in 0..4 {
            four = four.bulk(Kind::Delay, 7 * number, 120);
        }
        fair(&four.measured_from(50).run("four, 7 s apart", 120));
        let two = Scenario::new(100.0, 20, 1000)
            .bulk(Kind::Delay, 0, 80)
            .bulk(Kind::Delay, 22, 80);
        fair(&two.measured_from(36).run("two, 22 s apart, 100 Mbit/s", 80));
    }

    fn fair(figures: &Figures) {
        let shares: Vec<f64> = (0..figures.bulk.len()).map(|n| figures.share(n)).collect();
        let most = shares.iter().copied().fold(0.0, f64::max);
        let least = shares.iter().copied().fold(1.0, f64::min);
        assert!(most < 2.0 * least, "{figures:?}");
        assert!(shares.iter().sum::<f64>() > 0.9, "{figures:?}");
        assert!(figures.p99_added() < 45.0, "{figures:?}");
    }

    #[test]
    fn it_follows_a_path_that_changes() {
        let longer = Scenario::new(20.0, 50, 200)
            .base_from(20, 80)
            .bulk(Kind::Delay, 0, 60);
        let figures = longer.measured_from(25).run("50 to 80 ms", 60);
        assert!(figures.share(0) > 0.9, "{figures:?}");
        let far = Scenario::new(20.0, 50, 200)
            .base_from(20, 150)
            .bulk(Kind::Delay, 0, 60);
        let figures = far.measured_from(30).run("50 to 150 ms", 60);
        assert!(figures.share(0) > 0.85, "{figures:?}");
        // As where a route through another network begins: the window is far too large, and its queue is our own.
        for (name, rate, base, queue) in [
            ("loopback to 20 Mbit/s, 50 ms", 400.0, 1, 20),
            ("1 Gbit/s, 2 ms to 20 Mbit/s, 50 ms", 1000.0, 2, 20),
            ("100 Mbit/s, 10 ms to 20 Mbit/s, 50 ms", 100.0, 10, 40),
            ("100 Mbit/s, 10 ms to 5 Mbit/s, 120 ms", 100.0, 10, 40),
        ] {
            let longer = if name.contains("120") {
                (5.0, 120)
            } else {
                (20.0, 50)
            };
            let other = Scenario::new(rate, base, queue)
                .rate_from(20, longer.0)
                .base_from(20, longer.1)
                .bulk(Kind::Delay, 0, 40);
            let figures = other.measured_from(24).run(name, 40);
            assert!(figures.share(0) > 0.85, "{name}: {figures:?}");
            assert!(figures.p99_added() < 30.0, "{name}: {figures:?}");
        }
        let shorter = Scenario::new(20.0, 80, 200)
            .base_from(20, 50)
            .bulk(Kind::Delay, 0, 60);
        let figures = shorter.measured_from(22).run("80 to 50 ms", 60);
        assert!(figures.share(0) > 0.9, "{figures:?}");
        assert!(figures.p99_added() < 25.0, "{figures:?}");
        let slower = Scenario::new(20.0, 50, 1000)
            .rate_from(20, 5.0)
            .bulk(Kind::Delay, 0, 60);
        let figures = slower.measured_from(24).run("20 to 5 Mbit/s", 60);
        assert!(figures.share(0) > 0.9, "{figures:?}");
        assert!(figures.p99_added() < 30.0, "{figures:?}");
        let faster = Scenario::new(5.0, 50, 1000)
            .rate_from(20, 50.0)
            .bulk(Kind::Delay, 0, 60);
        let figures = faster.measured_from(24).run("5 to 50 Mbit/s", 60);
        assert!(figures.share(0) > 0.9, "{figures:?}");
    }

    #[test]
    fn beside_senders_who_fill_the_queue_it_keeps_a_part_and_comes_back_when_they_leave() {
        // At a round trip of a second loss-based senders take minutes to become equal.
        for (queue, least) in [(200, 0.3), (1000, 0.15)] {
            let scenario = || {
                Scenario::new(20.0, 50, queue)
                    .bulk(Kind::Delay, 0, 200)
                    .bulk(Kind::Cubic, 20, 120)
            };
            let name = format!("beside Cubic, {queue} ms queue");
            let figures = scenario().measured_from(30).run(&name, 120);
            assert!(figures.share(0) > least, "{name}: {figures:?}");
            assert!(figures.share(1) > 0.25, "{name}: {figures:?}");
            let name = format!("after Cubic, {queue} ms queue");
            let figures = scenario().measured_from(155).run(&name, 200);
            assert!(figures.share(0) > 0.95, "{name}: {figures:?}");
            assert!(figures.p99_added() < 25.0, "{name}: {figures:?}");
        }
    }

    #[test]
    fn whoever_has_nothing_to_send_learns_nothing_of_the_link() {
        let start = Bulk::origin();
        let mut window = DelayWindow::new(start, 1200);
        let rtt = Duration::from_millis(50);
        for step in 1..1000 {
            let now = start + rtt * step;
            window.on_ack(now, now - rtt, 1200, true);
        }
        assert_eq!(window.window(), 12_000);
    }

    /// A window that has left its start, over 20 ms.
    fn steady() -> (DelayWindow, Instant) {
        let mut now = Bulk::origin();
        let mut window = DelayWindow::new(now, 1200);
        for _ in 0..7 {
            now += RTT;
            for _ in 0..window.window() / 1200 {
                window.on_ack(now, now - RTT, 1200, false);
            }
        }
        // Ends the start.
        window.on_mark(now, now);
        assert_eq!(window.mode(), Mode::Delay);
        (window, now)
    }

    const RTT: Duration = Duration::from_millis(20);

    #[test]
    fn messages_now_and_then_do_not_take_a_window_away() {
        for after_a_cut in [false, true] {
            let (mut window, mut now) = steady();
            if after_a_cut {
                for _ in 0..2 {
                    let sent_at = now;
                    now += RTT + 2 * TARGET;
                    for _ in 0..window.window() / 1200 {
                        window.on_ack(now, sent_at, 1200, false);
                    }
                }
            }
            let before = window.window();
            for message in 0..100 {
                let sent_at = now;
                // Acknowledged when the other end has waited for a second one, and by then there may be more to send.
                now += RTT + Duration::from_millis(25);
                window.on_ack(now, sent_at, 100, message % 2 == 0);
                now += Duration::from_millis(50);
            }
            assert_eq!(window.window(), before, "after a cut: {after_a_cut}");
        }
    }

    #[test]
    fn whoever_sends_little_and_meets_a_queue_all_the_same_is_not_idle() {
        let (mut window, mut now) = steady();
        let before = window.window();
        for _ in 0..20 {
            let sent_at = now;
            now += RTT + Duration::from_millis(100);
            for _ in 0..20 {
                window.on_ack(now, sent_at, 1200, false);
            }
        }
        assert!(window.window() < before, "{} of {before}", window.window());
    }

    #[test]
    fn the_next_connection_goes_on_with_half_where_the_path_is_the_same() {
        let start = Bulk::origin();
        let rtt = Duration::from_millis(50);
        let mut window = DelayWindow::new(start, 1200);
        assert_eq!(window.remember(start), None);
        let mut now = start;
        // Each round trip carries the whole window; there is no queue.
        for _ in 0..7 {
            now += rtt;
            for _ in 0..window.window() / 1200 {
                window.on_ack(now, now - rtt, 1200, false);
            }
        }
        let carried = window.window() / 4;
        let remembered = window.remember(now).unwrap();
        let resumed = |rtt: Duration, later: Duration| {
            let at = now + later;
            let mut next = DelayWindow::new(at, 1200);
            next.resume(remembered, at);
            assert_eq!(
                next.window(),
                12_000,
                "not before a round trip shows which path it is"
            );
            next.on_ack(at + rtt, at, 1200, true);
            next.window()
        };
        let soon = Duration::from_secs(1);
        assert_eq!(resumed(rtt, soon), carried / 2);
        assert_eq!(resumed(rtt * 4, soon), 12_000);
        assert_eq!(resumed(rtt / 4, soon), 12_000);
        assert_eq!(resumed(rtt, Duration::from_secs(3600)), 12_000);
    }

    #[test]
    fn what_a_peer_says_of_queues_does_not_keep_a_start_going() {
        // Acknowledgements take ever longer, and the peer denies it or claims that it is its own doing.
        for (returning, seen) in [(0, Some(0)), (1 << 40, None), (1 << 40, Some(0))] {
            let (mut now, rtt) = (Bulk::origin(), Duration::from_millis(20));
            let mut window = DelayWindow::new(now, 1200);
            let mut longest = rtt;
            for _ in 0..400 {
                window.set_returning(
                    Some(Duration::from_micros(returning)),
                    seen.map(Duration::from_micros),
                );
                for _ in 0..16 {
                    window.on_ack(now + longest, now, 1200, false);
                }
                now += longest;
                longest = (longest + longest / 10).min(Duration::from_secs(3));
                if window.mode() != Mode::Startup {
                    break;
                }
            }
            assert_ne!(window.mode(), Mode::Startup, "{returning} {seen:?}");
        }
    }

    #[test]
    fn silence_begins_anew_and_nothing_underflows() {
        let start = Bulk::origin();
        let mut window = DelayWindow::new(start, 1200);
        window.on_loss(start, start, u64::from(u32::MAX), true);
        assert_eq!((window.window(), window.mode()), (2400, Mode::Startup));
        // Acknowledgements from before the start of time, and for packets of the future.
        window.on_ack(start, start + Duration::from_secs(1), 0, false);
        window.on_ack(start, start, u64::from(u32::MAX), false);
        window.on_mark(start, start);
        window.on_mtu(0);
        assert!(window.window() >= 2);
    }
}
