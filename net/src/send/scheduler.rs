//! Which bytes leave next on a lane, and how many may be under way. Writes nothing and reads no clock.
//!
//! Classes go in strict order. What a cluster lives by has fixed credits for bytes that have not been
//! acknowledged; all the rest shares one delay-based window, so that the path below never holds more than it
//! needs to stay busy. Bytes leave in slices, so that an urgent one waits for one slice and for what is under
//! way. Receivers acknowledge on arrival, not when somebody reads: a reader that has stalled holds up its own
//! channel (by the channel's credit) and nobody else.

use bytes::{Bytes, BytesMut};
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::delay_window::DelayWindow;
use super::packet::{ChannelId, SLICE_MAX};
use crate::Bucket;
use lapwing_base::{Bandwidth, ByteSize, CLASSES, Class};

/// The send side of a lane.
#[derive(Debug)]
pub struct Scheduler {
    queues: HashMap<ChannelId, Queue>,
    classes: [ClassState; CLASSES.len()],
    window: DelayWindow,
    /// What the window governs and has not been acknowledged.
    governed: u64,
    /// In the order sent.
    under_way: VecDeque<Slip>,
    /// 0 <= acked <= sent
    sent: u64,
    acked: u64,
    /// The window did not stop anything when it was last asked.
    limited: bool,
    peer: Option<Bucket>,
    /// A tenth of the link, where the link is known.
    tenth: Option<Bucket>,
    /// How far maintenance is ahead of a tenth, in ninths of a byte.
    ahead: u64,
}

/// One channel's bytes.
#[derive(Debug)]
struct Queue {
    class: Class,
    bytes: BytesMut,
    /// What the peer still has room for.
    credit: u64,
    /// Nothing follows after these.
    finishing: bool,
    /// It stands in its class's line; then it has something to send.
    in_line: bool,
}

#[derive(Debug, Default)]
struct ClassState {
    /// Channels that take turns.
    line: VecDeque<ChannelId>,
    /// Places in the line whose channels are gone.
    /// 0 <= stale <= line.len()
    stale: usize,
    queued: usize,
    in_flight: u64,
    limit: Option<Bucket>,
    /// Bytes for which the buckets have been asked already, and when those may go.
    paid: Option<(u64, Instant)>,
}

/// A slice under way.
#[derive(Clone, Copy, Debug)]
struct Slip {
    class: Class,
    bytes: u64,
    /// The total of all bytes sent, with it.
    end: u64,
    sent_at: Instant,
}

/// What leaves next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// These bytes of this channel; `last` where nothing follows on it.
    Slice {
        /// Whose bytes.
        channel: ChannelId,
        /// Of what class.
        class: Class,
        /// At most [`SLICE_MAX`] of them; none where only the end is left.
        bytes: Bytes,
        /// The channel has been finished, and this is all of it.
        last: bool,
    },
    /// Nothing before then, or before an acknowledgement, a credit or more bytes.
    At(Instant),
    /// Nothing before an acknowledgement, a credit or more bytes.
    Idle,
}

/// An acknowledgement that cannot be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{total} bytes are acknowledged, which is not between {acked} and {sent}")]
pub struct AckError {
    total: u64,
    acked: u64,
    sent: u64,
}

/// Whether a class may send.
enum Allowance {
    Bytes(usize),
    At(Instant),
    /// Not before something under way has arrived.
    Full,
}

impl Scheduler {
    /// A lane on which nothing has been sent.
    pub fn new(now: Instant) -> Self {
        Self {
            queues: HashMap::new(),
            classes: Default::default(),
            window: DelayWindow::new(now, SEGMENT),
            governed: 0,
            under_way: VecDeque::new(),
            sent: 0,
            acked: 0,
            limited: true,
            peer: None,
            tenth: None,
            ahead: 0,
        }
    }

    /// Holds everything together to a rate; the highest classes are counted and do not wait.
    pub fn limit_peer(&mut self, rate: Option<Bandwidth>) {
        self.peer = rate.map(Bucket::new);
    }

    /// Holds one class to a rate.
    pub fn limit_class(&mut self, class: Class, rate: Option<Bandwidth>) {
        self.classes[class.index()].limit = rate.map(Bucket::new);
    }

    /// The link carries so much, as measured otherwise: maintenance gets a tenth. Where nothing is known it gets
    /// a tenth while model values wait, and what it likes while none do.
    pub fn set_link_rate(&mut self, rate: Option<Bandwidth>) {
        self.tenth = rate.map(|rate| Bucket::new(Bandwidth::kbit(rate.kbit_s / SHARE)));
    }

    /// Takes in a channel to whose reader `credit` bytes may be sent.
    pub fn open(&mut self, channel: ChannelId, class: Class, credit: u64) {
        let queue = Queue {
            class,
            bytes: BytesMut::new(),
            credit,
            finishing: false,
            in_line: false,
        };
        self.queues.insert(channel, queue);
    }

    /// How many bytes of a channel may be queued now.
    pub fn room(&self, channel: ChannelId) -> usize {
        let Some(queue) = self.queues.get(&channel) else {
            return 0;
        };
        let class_is_full = self.classes[queue.class.index()].queued >= CLASS_QUEUED_MAX;
        // Channels whose readers have stalled may fill a class; the others go on with a little.
        let max = if class_is_full { QUEUED_MIN } else { QUEUED_MAX };
        max.saturating_sub(queue.bytes.len())
    }

    /// Queues as much of `bytes` as there is room for, and says how much that is.
    pub fn push(&mut self, channel: ChannelId, bytes: &[u8]) -> usize {
        let taken = self.room(channel).min(bytes.len());
        if let Some(queue) = self.queues.get_mut(&channel)
            && !queue.finishing
        {
            queue.bytes.extend_from_slice(&bytes[..taken]);
            self.classes[queue.class.index()].queued += taken;
            self.line_up(channel);
            taken
        } else {
            0
        }
    }

    /// Bytes of a channel that have not been sent.
    pub fn queued(&self, channel: ChannelId) -> usize {
        self.queues.get(&channel).map_or(0, |queue| queue.bytes.len())
    }

    /// Nothing more will be queued on this channel.
    pub fn finish(&mut self, channel: ChannelId) {
        if let Some(queue) = self.queues.get_mut(&channel) {
            queue.finishing = true;
            self.line_up(channel);
        }
    }

    /// Forgets a channel and what it has queued.
    pub fn remove(&mut self, channel: ChannelId) {
        let Some(queue) = self.queues.remove(&channel) else {
            return;
        };
        let state = &mut self.classes[queue.class.index()];
        state.queued -= queue.bytes.len();
        if queue.in_line {
            // Its place is passed over when its turn comes, which it does not while the class is held up; so a line
            // is swept when most of it is stale.
            state.stale += 1;
            if 2 * state.stale > state.line.len() {
                state.line.retain(|channel| self.queues.contains_key(channel));
                state.stale = 0;
            }
        }
    }

    /// The reader of a channel has room for so many more bytes.
    pub fn add_credit(&mut self, channel: ChannelId, bytes: u32) {
        if let Some(queue) = self.queues.get_mut(&channel) {
            queue.credit = queue.credit.saturating_add(bytes.into());
            self.line_up(channel);
        }
    }

    /// The other side has received `total` bytes in all.
    ///
    /// # Errors
    /// [`AckError`] where that is more than was sent, or less than it said before.
    pub fn on_ack(&mut self, now: Instant, total: u64) -> Result<(), AckError> {
        if total < self.acked || total > self.sent {
            let (acked, sent) = (self.acked, self.sent);
            return Err(AckError { total, acked, sent });
        }
        self.acked = total;
        while let Some(slip) = self.under_way.pop_front_if(|slip| slip.end <= total) {
            self.classes[slip.class.index()].in_flight -= slip.bytes;
            if is_governed(slip.class) {
                self.governed -= slip.bytes;
                self.window.on_ack(now, slip.sent_at, slip.bytes, self.limited);
            }
        }
        Ok(())
    }

    /// Takes what leaves next, of at most `max` bytes. `toll` is asked for every slice before it leaves, and says
    /// when it may: so a node's own limits, which several lanes share, take part.
    pub fn next(
        &mut self,
        now: Instant,
        max: usize,
        toll: &mut dyn FnMut(Class, ByteSize) -> Instant,
    ) -> Next {
        let mut wakes_at: Option<Instant> = None;
        let mut full = false;
        for class in self.order() {
            let Some(channel) = self.first_in_line(class) else {
                continue;
            };
            match self.allowance(class, channel, max, now, toll) {
                Allowance::Bytes(bytes) => return self.take(class, channel, bytes, now),
                Allowance::At(at) => wakes_at = Some(wakes_at.map_or(at, |earlier| earlier.min(at))),
                Allowance::Full => full |= is_governed(class),
            }
        }
        self.limited = !full;
        wakes_at.map_or(Next::Idle, Next::At)
    }

    /// The window over what is not urgent.
    pub const fn window(&self) -> &DelayWindow {
        &self.window
    }

    /// Bytes sent and not acknowledged.
    pub const fn in_flight(&self) -> u64 {
        self.sent - self.acked
    }

    /// Strict, but that maintenance lets model values go first once it has had its tenth.
    fn order(&self) -> [Class; CLASSES.len()] {
        let mut order = CLASSES;
        if self.ahead > u64::from(SHARE) * SLICE_MAX as u64 {
            order.swap(Class::Maintenance.index(), Class::Model.index());
        }
        order
    }

    fn line_up(&mut self, channel: ChannelId) {
        if let Some(queue) = self.queues.get_mut(&channel)
            && !queue.in_line
            && queue.has_something()
        {
            queue.in_line = true;
            self.classes[queue.class.index()].line.push_back(channel);
        }
    }

    fn first_in_line(&mut self, class: Class) -> Option<ChannelId> {
        let state = &mut self.classes[class.index()];
        while let Some(channel) = state.line.front().copied() {
            // Identifiers are never used again, so a place in the line is always of the channel that took it.
            if self.queues.contains_key(&channel) {
                return Some(channel);
            }
            state.line.pop_front();
            state.stale -= 1;
        }
        None
    }

    fn allowance(
        &mut self,
        class: Class,
        channel: ChannelId,
        max: usize,
        now: Instant,
        toll: &mut dyn FnMut(Class, ByteSize) -> Instant,
    ) -> Allowance {
        let Some(queue) = self.queues.get(&channel) else {
            return Allowance::Full;
        };
        let wanted = queue.sendable().min(self.slice(class)).min(max);
        if wanted == 0 && queue.sendable() > 0 {
            return Allowance::Full;
        }
        if wanted as u64 > self.credit(class) {
            return Allowance::Full;
        }
        let state = &mut self.classes[class.index()];
        let paid = state.paid.map_or(0, |(paid, _)| paid);
        if (wanted as u64) > paid {
            let missing = ByteSize(wanted as u64 - paid);
            let mut at = toll(class, missing);
            if let Some(limit) = &mut state.limit {
                at = at.max(limit.reserve(missing, now));
            }
            if class == Class::Maintenance
                && let Some(tenth) = &mut self.tenth
            {
                at = at.max(tenth.reserve(missing, now));
            }
            if let Some(peer) = &mut self.peer {
                if is_bulk(class) {
                    at = at.max(peer.reserve(missing, now));
                } else {
                    peer.charge(missing, now);
                }
            }
            state.paid = Some((wanted as u64, at));
        }
        match state.paid {
            Some((_, at)) if at > now && wanted > 0 => Allowance::At(at),
            _ => Allowance::Bytes(wanted),
        }
    }

    /// The longest slice of a class: a small part of the window, so that what a slice takes to arrive whole is
    /// not taken for a queue.
    fn slice(&self, class: Class) -> usize {
        if !is_governed(class) {
            return SLICE_MAX;
        }
        let part = usize::try_from(self.window.window() / SLICES_PER_WINDOW).unwrap_or(SLICE_MAX);
        part.clamp(SLICE_MIN, SLICE_MAX)
    }

    /// How many bytes of a class may leave before something arrives.
    fn credit(&self, class: Class) -> u64 {
        let in_flight = self.classes[class.index()].in_flight;
        if !is_governed(class) {
            return URGENT_CREDIT.saturating_sub(in_flight);
        }
        let free = self.window.window().saturating_sub(self.governed);
        match class {
            // A short call need not wait until bulk makes room.
            Class::Call => free.max(CALL_CREDIT.saturating_sub(in_flight)),
            // One slice is always allowed, or a small window would never open.
            _ if self.governed == 0 => free.max(SLICE_MIN as u64),
            _ => free,
        }
    }

    fn take(&mut self, class: Class, channel: ChannelId, bytes: usize, now: Instant) -> Next {
        let state = &mut self.classes[class.index()];
        state.line.pop_front();
        let Some(queue) = self.queues.get_mut(&channel) else {
            return Next::Idle;
        };
        queue.in_line = false;
        let slice = queue.bytes.split_to(bytes).freeze();
        if queue.bytes.is_empty() {
            // An idle channel holds no memory.
            queue.bytes = BytesMut::new();
        }
        queue.credit -= bytes as u64;
        let last = queue.finishing && queue.bytes.is_empty();
        let bytes = bytes as u64;
        state.queued -= slice.len();
        state.in_flight += bytes;
        state.paid = state
            .paid
            .and_then(|(paid, at)| (paid > bytes).then_some((paid - bytes, at)));
        match class {
            Class::Maintenance => {
                let most = 4 * u64::from(SHARE) * SLICE_MAX as u64;
                self.ahead = (self.ahead + u64::from(SHARE - 1) * bytes).min(most);
            }
            Class::Model => self.ahead = self.ahead.saturating_sub(bytes),
            Class::Control | Class::Consensus | Class::Call => {}
        }
        if is_governed(class) {
            self.governed += bytes;
        }
        if bytes > 0 {
            self.sent += bytes;
            let (end, sent_at) = (self.sent, now);
            self.under_way.push_back(Slip {
                class,
                bytes,
                end,
                sent_at,
            });
        }
        if last {
            self.queues.remove(&channel);
        } else {
            self.line_up(channel);
        }
        Next::Slice {
            channel,
            class,
            bytes: slice,
            last,
        }
    }
}

impl Queue {
    fn sendable(&self) -> usize {
        let credit = usize::try_from(self.credit).unwrap_or(usize::MAX);
        self.bytes.len().min(credit)
    }

    fn has_something(&self) -> bool {
        self.sendable() > 0 || (self.finishing && self.bytes.is_empty())
    }
}

/// Whether the window over bytes in flight holds a class: all that may be long.
const fn is_governed(class: Class) -> bool {
    match class {
        Class::Control | Class::Consensus => false,
        Class::Call | Class::Maintenance | Class::Model => true,
    }
}

/// Whether a class waits for the limits of a peer.
const fn is_bulk(class: Class) -> bool {
    match class {
        Class::Control | Class::Consensus | Class::Call => false,
        Class::Maintenance | Class::Model => true,
    }
}

/// The unit in which the window grows; a stream of bytes has no packets, but the path below it has.
const SEGMENT: u16 = 1200;

/// Slices that make up a window: at 50 ms and the target each takes 2 ms.
const SLICES_PER_WINDOW: u64 = 32;

/// The shortest slice that a small window makes: most of it is payload still.
const SLICE_MIN: usize = 1 << 10;

/// Unacknowledged bytes of a class by which a cluster lives: an append of a few entries over a slow path, and
/// 100 ms of a link of 20 Mbit/s at the worst.
const URGENT_CREDIT: u64 = 256 << 10;

/// Unacknowledged bytes of calls that need not wait for the window.
const CALL_CREDIT: u64 = 32 << 10;

/// Maintenance gets one part in so many.
const SHARE: u32 = 10;

/// Bytes that a channel may have queued: several slices, so that it is never empty when its turn comes.
const QUEUED_MAX: usize = 256 << 10;

/// Bytes that every channel may have queued, also where others have filled its class.
const QUEUED_MIN: usize = 4 << 10;

/// Bytes queued in a class from which on each channel has the least only.
const CLASS_QUEUED_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MODEL: ChannelId = ChannelId(1);

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn start() -> Instant {
        Instant::now()
    }

    fn scheduler(now: Instant, channels: &[(u32, Class)]) -> Scheduler {
        let mut scheduler = Scheduler::new(now);
        for &(id, class) in channels {
            scheduler.open(ChannelId(id), class, u64::MAX);
        }
        scheduler
    }

    /// The next slice where nothing holds up, as channel and length.
    fn next(scheduler: &mut Scheduler, now: Instant) -> Option<(u32, usize)> {
        match scheduler.next(now, SLICE_MAX, &mut |_, _| now) {
            Next::Slice { channel, bytes, .. } => Some((channel.0, bytes.len())),
            Next::At(_) | Next::Idle => None,
        }
    }

    /// A link of `rate` bytes a second that acknowledges after `rtt`, always fed; what each channel sent.
    fn carry(
        scheduler: &mut Scheduler,
        start: Instant,
        took: Duration,
        rate: f64,
        rtt: Duration,
        channels: &[u32],
    ) -> HashMap<u32, usize> {
        let mut carried = HashMap::new();
        let mut arrivals: VecDeque<(Instant, u64)> = VecDeque::new();
        let (mut now, mut idle_at) = (start, start);
        while now < start + took {
            for &channel in channels {
                scheduler.push(ChannelId(channel), &[0; 64 << 10]);
            }
            while let Some((_, total)) = arrivals.pop_front_if(|(at, _)| *at <= now) {
                scheduler.on_ack(now, total).unwrap();
            }
            while let Some((channel, bytes)) = next(scheduler, now) {
                *carried.entry(channel).or_default() += bytes;
                idle_at = idle_at.max(now) + Duration::from_secs_f64(bytes as f64 / rate);
                arrivals.push_back((idle_at + rtt, scheduler.sent));
            }
            now += Duration::from_millis(1);
        }
        carried
    }

    #[test]
    fn a_higher_class_goes_first_and_channels_of_one_class_take_turns() {
        let now = start();
        let channels = [
            (1, Class::Model),
            (2, Class::Consensus),
            (3, Class::Consensus),
            (4, Class::Control),
        ];
        let mut scheduler = scheduler(now, &channels);
        for (id, _) in channels {
            scheduler.push(ChannelId(id), &[0; 20 << 10]);
        }
        let order: Vec<u32> = std::iter::from_fn(|| next(&mut scheduler, now))
            .map(|(id, _)| id)
            .collect();
        assert_eq!(order[..6], [4, 4, 2, 3, 2, 3]);
        assert!(order[6..].iter().all(|id| *id == 1));
    }

    #[test]
    fn bulk_keeps_no_more_under_way_than_the_link_and_the_target_hold() {
        let now = start();
        let mut scheduler = scheduler(now, &[(1, Class::Model)]);
        let rtt = Duration::from_millis(50);
        // 20 Mbit/s.
        let carried = carry(&mut scheduler, now, Duration::from_secs(20), 2.5e6, rtt, &[1]);
        assert!(carried[&1] as f64 > 0.93 * 2.5e6 * 20.0, "{carried:?}");
        // 50 ms and the target, and two slices.
        assert!(
            scheduler.in_flight() < 2_500 * 65 + 2 * SLICE_MAX as u64,
            "{}",
            scheduler.in_flight()
        );
        scheduler.open(ChannelId(3), Class::Control, u64::MAX);
        scheduler.push(ChannelId(3), b"urgent");
        assert_eq!(next(&mut scheduler, now), Some((3, 6)));
    }

    #[test]
    fn maintenance_gets_a_tenth_while_model_values_wait_and_all_while_none_do() {
        let now = start();
        let mut both = scheduler(now, &[(1, Class::Model), (2, Class::Maintenance)]);
        let (rtt, took) = (Duration::from_millis(20), Duration::from_secs(10));
        let carried = carry(&mut both, now, took, 2.5e6, rtt, &[1, 2]);
        let share = carried[&2] as f64 / (carried[&1] + carried[&2]) as f64;
        assert!((0.08..0.12).contains(&share), "{carried:?}");
        let mut alone = scheduler(now, &[(2, Class::Maintenance)]);
        let carried = carry(&mut alone, now, took, 2.5e6, rtt, &[2]);
        assert!(carried[&2] as f64 > 0.9 * 2.5e7, "{carried:?}");
    }

    #[test]
    fn maintenance_gets_a_tenth_of_a_known_link_also_alone() {
        let now = start();
        let mut scheduler = scheduler(now, &[(2, Class::Maintenance)]);
        scheduler.set_link_rate(Some(Bandwidth::mbit(20)));
        let (rtt, took) = (Duration::from_millis(20), Duration::from_secs(10));
        let carried = carry(&mut scheduler, now, took, 2.5e6, rtt, &[2]);
        assert!((2.3e6..2.7e6).contains(&(carried[&2] as f64)), "{carried:?}");
    }

    #[test]
    fn a_peer_s_limit_holds_bulk_and_lets_the_urgent_pass() {
        let now = start();
        let mut scheduler = scheduler(now, &[(1, Class::Model), (3, Class::Consensus)]);
        scheduler.limit_peer(Some(Bandwidth::mbit(8)));
        let (rtt, took) = (Duration::from_millis(20), Duration::from_secs(10));
        let carried = carry(&mut scheduler, now, took, 1e9, rtt, &[1]);
        assert!((0.9e7..1.1e7).contains(&(carried[&1] as f64)), "{carried:?}");
        scheduler.push(ChannelId(3), b"vote");
        assert_eq!(next(&mut scheduler, now + took), Some((3, 4)));
    }

    #[test]
    fn a_slice_waits_for_the_node_s_own_limit_too_and_pays_once() {
        let now = start();
        let later = now + Duration::from_secs(1);
        let mut scheduler = scheduler(now, &[(1, Class::Model)]);
        scheduler.push(MODEL, &[0; SLICE_MAX]);
        let mut asked = 0;
        for at in [now, now, later] {
            let next = scheduler.next(at, SLICE_MAX, &mut |_, size| {
                asked += size.0;
                later
            });
            assert_eq!(matches!(next, Next::Slice { .. }), at == later, "{next:?}");
            assert!(at == later || next == Next::At(later), "{next:?}");
        }
        assert_eq!(asked as usize, SLICE_MIN);
    }

    #[test]
    fn a_class_whose_reader_has_stalled_does_not_hold_up_another() {
        let now = start();
        let mut scheduler = scheduler(
            now,
            &[(1, Class::Control), (3, Class::Consensus), (5, Class::Call)],
        );
        scheduler.push(ChannelId(1), &[0; QUEUED_MAX]);
        let mut control = 0;
        while let Some((_, bytes)) = next(&mut scheduler, now) {
            control += bytes;
            scheduler.push(ChannelId(1), &[0; SLICE_MAX]);
        }
        assert_eq!(control as u64, URGENT_CREDIT);
        scheduler.push(ChannelId(3), b"vote");
        scheduler.push(ChannelId(5), b"call");
        assert_eq!(next(&mut scheduler, now), Some((3, 4)));
        assert_eq!(next(&mut scheduler, now), Some((5, 4)));
    }

    #[test]
    fn a_channel_without_credit_waits_and_the_next_takes_its_turn() {
        let now = start();
        let mut scheduler = Scheduler::new(now);
        scheduler.open(ChannelId(1), Class::Control, 10);
        scheduler.open(ChannelId(3), Class::Control, 10);
        scheduler.push(ChannelId(1), &[0; 15]);
        scheduler.push(ChannelId(3), &[0; 5]);
        assert_eq!(next(&mut scheduler, now), Some((1, 10)));
        assert_eq!(next(&mut scheduler, now), Some((3, 5)));
        assert_eq!(next(&mut scheduler, now), None);
        scheduler.add_credit(ChannelId(1), 100);
        scheduler.finish(ChannelId(1));
        let end = scheduler.next(now, SLICE_MAX, &mut |_, _| now);
        assert!(
            matches!(end, Next::Slice { ref bytes, last: true, .. } if bytes.len() == 5),
            "{end:?}"
        );
    }

    #[test]
    fn queues_are_bounded_and_stalled_channels_leave_room_for_others() {
        let now = start();
        let mut scheduler = Scheduler::new(now);
        for id in 0..100 {
            scheduler.open(ChannelId(id), Class::Call, 0);
            scheduler.push(ChannelId(id), &[0; 2 * QUEUED_MAX]);
        }
        let queued: usize = (0..100).map(|id| scheduler.queued(ChannelId(id))).sum();
        assert!(
            queued <= CLASS_QUEUED_MAX + QUEUED_MAX + 100 * QUEUED_MIN,
            "{queued}"
        );
        assert_eq!(scheduler.queued(ChannelId(99)), QUEUED_MIN);
        scheduler.remove(ChannelId(0));
        assert_eq!(scheduler.queued(ChannelId(0)), 0);
        assert_eq!(scheduler.push(ChannelId(0), b"gone"), 0);
    }

    #[test]
    fn channels_that_come_and_go_while_their_class_is_held_up_leave_no_places_behind() {
        let now = start();
        let mut scheduler = scheduler(now, &[(1, Class::Control)]);
        scheduler.push(ChannelId(1), &[0; QUEUED_MAX]);
        while next(&mut scheduler, now).is_some() {
            scheduler.push(ChannelId(1), &[0; SLICE_MAX]);
        }
        for id in 2..10_000 {
            scheduler.open(ChannelId(id), Class::Control, 100);
            scheduler.push(ChannelId(id), b"open");
            scheduler.remove(ChannelId(id));
        }
        let line = &scheduler.classes[Class::Control.index()].line;
        assert!(line.len() < 4, "{}", line.len());
        scheduler.on_ack(now, scheduler.sent).unwrap();
        assert!(matches!(next(&mut scheduler, now), Some((1, _))));
    }

    #[test]
    fn an_acknowledgement_of_what_was_not_sent_is_an_error() {
        let now = start();
        let mut scheduler = scheduler(now, &[(1, Class::Control)]);
        scheduler.push(MODEL, &[0; 100]);
        assert!(scheduler.on_ack(now, 1).is_err());
        next(&mut scheduler, now);
        assert!(scheduler.on_ack(now, 101).is_err());
        assert_eq!(scheduler.on_ack(now, 100), Ok(()));
        assert!(scheduler.on_ack(now, 99).is_err());
        assert_eq!(scheduler.in_flight(), 0);
    }
}
