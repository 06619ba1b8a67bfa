//! One end of a lane: channels of all classes over one ordered stream of bytes. Moves no bytes itself.
//!
//! What arrives goes in by [`Mux::receive`], what leaves comes out of [`Mux::transmit`]. Every channel has room
//! for what its peer may send, which grows while somebody reads it; so the reader of the stream never waits for
//! the reader of a channel, and a channel that nobody reads holds up itself only. A peer that breaks the rules
//! ends the lane; one that opens more than is allowed has the channel refused.

mod channel;
mod error;
mod event;

use bytes::{Buf as _, BytesMut};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::packet::{ChannelId, DATA_HEADER, Packet, SLICE_MAX};
use super::scheduler::{Next, Scheduler};
use channel::{Channel, Receives, Sends};
use lapwing_base::{ByteSize, CLASSES, Class};

pub use error::{LaneError, OpenChannelError, WriteError};
pub use event::{Event, Read, Turn};

/// Which end of the stream of bytes this is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The one that opened it.
    Dialer,
    /// The one that took it.
    Listener,
}

/// One end of a lane.
#[derive(Debug)]
pub struct Mux {
    scheduler: Scheduler,
    channels: HashMap<ChannelId, Channel>,
    /// The next channel of ours and of the peer's: all below, of the same parity, have been opened.
    next_ours: u32,
    next_theirs: u32,
    ours: usize,
    theirs: usize,
    /// What a channel of each class may be granted at most.
    windows: [u32; CLASSES.len()],
    /// What `theirs` may become: at most [`CHANNELS_MAX`].
    theirs_max: usize,
    /// Bytes granted over [`WINDOW_MIN`], by class.
    lent: [u64; CLASSES.len()],
    /// The beginning of a packet.
    partial: BytesMut,
    received: u64,
    acked: u64,
    /// Opens, ends without data and refusals, in order.
    notices: VecDeque<Packet>,
    credits: BTreeSet<ChannelId>,
    ping: Option<u64>,
    pong: Option<u64>,
    /// The ping that has not been answered.
    pinged: Option<(u64, Instant)>,
    pings: u64,
    rtt: Option<Duration>,
}

impl Mux {
    /// An end of a lane on which nothing has been sent.
    pub fn new(side: Side, now: Instant) -> Self {
        let (next_ours, next_theirs) = match side {
            Side::Dialer => (1, 2),
            Side::Listener => (2, 1),
        };
        Self {
            scheduler: Scheduler::new(now),
            channels: HashMap::new(),
            next_ours,
            next_theirs,
            ours: 0,
            theirs: 0,
            windows: CLASSES.map(window_max),
            theirs_max: CHANNELS_MAX,
            lent: [0; CLASSES.len()],
            partial: BytesMut::new(),
            received: 0,
            acked: 0,
            notices: VecDeque::new(),
            credits: BTreeSet::new(),
            ping: None,
            pong: None,
            pinged: None,
            pings: 0,
            rtt: None,
        }
    }

    /// How many channels the peer may have open from now on; those that are open stay. At most [`CHANNELS_MAX`], which
    /// it is at first.
    pub fn set_theirs_max(&mut self, max: usize) {
        self.theirs_max = max.min(CHANNELS_MAX);
    }

    /// Opens a channel. The peer learns of it before anything that is written on it.
    ///
    /// # Errors
    /// [`OpenChannelError`] while too many are open, and when every identifier has been used.
    pub fn open(&mut self, class: Class) -> Result<ChannelId, OpenChannelError> {
        if self.ours >= CHANNELS_MAX {
            return Err(OpenChannelError::TooMany);
        }
        let channel = ChannelId(self.next_ours);
        self.next_ours = self.next_ours.checked_add(2).ok_or(OpenChannelError::Exhausted)?;
        self.ours += 1;
        self.insert(channel, class);
        self.notices.push_back(Packet::Open { channel, class });
        Ok(channel)
    }

    /// Queues as much of `bytes` as there is room for; nothing at all says to wait for [`Event::Writable`].
    ///
    /// # Errors
    /// [`WriteError`] where nothing will ever be taken.
    pub fn write(&mut self, channel: ChannelId, bytes: &[u8]) -> Result<usize, WriteError> {
        match self.channels.get(&channel).map(|channel| channel.sends) {
            Some(Sends::Open) => Ok(self.scheduler.push(channel, bytes)),
            Some(Sends::Finishing | Sends::Done) => Err(WriteError::Finished),
            Some(Sends::Refused) | None => Err(WriteError::Refused),
        }
    }

    /// Whether everything written has left, and the end too where the channel was finished.
    ///
    /// # Errors
    /// [`WriteError::Refused`] where the peer does not take it.
    pub fn has_left(&self, channel: ChannelId) -> Result<bool, WriteError> {
        match self.channels.get(&channel).map(|channel| channel.sends) {
            Some(Sends::Open) => Ok(self.scheduler.queued(channel) == 0),
            Some(Sends::Finishing) => Ok(false),
            Some(Sends::Done) => Ok(true),
            Some(Sends::Refused) | None => Err(WriteError::Refused),
        }
    }

    /// Says that nothing more will be written; what is queued still leaves. Saying so twice changes nothing.
    pub fn finish(&mut self, channel: ChannelId) {
        if let Some(state) = self.channels.get_mut(&channel)
            && state.sends == Sends::Open
        {
            state.sends = Sends::Finishing;
            self.scheduler.finish(channel);
        }
    }

    /// Takes what has arrived on a channel, which lets the peer send more.
    pub fn read(&mut self, channel: ChannelId, into: &mut [u8]) -> Read {
        let Some(state) = self.channels.get_mut(&channel) else {
            return Read::Broken;
        };
        if state.receives == Receives::Broken {
            return Read::Broken;
        }
        if state.arrived.is_empty() {
            return match state.receives {
                Receives::Open => Read::Nothing,
                Receives::Ended | Receives::Broken => Read::End,
            };
        }
        let bytes = state.arrived.len().min(into.len());
        into[..bytes].copy_from_slice(&state.arrived[..bytes]);
        state.arrived.advance(bytes);
        if state.arrived.is_empty() {
            // An idle channel holds no memory.
            state.arrived = BytesMut::new();
        }
        // At most a window, which fits.
        state.consumed += bytes as u32;
        if state.receives == Receives::Open && state.consumed >= state.window / 2 {
            self.credits.insert(channel);
        }
        Read::Bytes(bytes)
    }

    /// Nobody will read or write this channel again. What was written still leaves, then the end; what arrives is
    /// dropped, and the peer is told to stop.
    pub fn release(&mut self, channel: ChannelId) {
        self.finish(channel);
        if let Some(state) = self.channels.get_mut(&channel)
            && !state.released
        {
            state.released = true;
            state.arrived = BytesMut::new();
            if state.receives == Receives::Open {
                self.notices.push_back(Packet::Stop { channel });
            }
            self.forget_if_over(channel);
        }
    }

    /// Whether the peer should be told that it may send more.
    pub fn owes_credit(&self) -> bool {
        !self.credits.is_empty()
    }

    /// Takes in what has arrived on the stream. `on` is told what became of the channels.
    ///
    /// # Errors
    /// [`LaneError`] where the peer has broken the rules; the lane is over then.
    pub fn receive(
        &mut self,
        input: &[u8],
        now: Instant,
        on: &mut dyn FnMut(Event),
    ) -> Result<(), LaneError> {
        self.partial.extend_from_slice(input);
        while let Some(packet) = Packet::decode(&mut self.partial)? {
            self.on_packet(packet, now, on)?;
        }
        if self.partial.is_empty() {
            self.partial = BytesMut::new();
        }
        Ok(())
    }

    /// Appends what may leave now to `out`: all that is owed to the peer, and slices of at most [`SLICE_MAX`]
    /// together, no two of them of bulk. `toll` is asked before a slice leaves and says when it may.
    pub fn transmit(
        &mut self,
        now: Instant,
        toll: &mut dyn FnMut(Class, ByteSize) -> Instant,
        out: &mut BytesMut,
        on: &mut dyn FnMut(Event),
    ) -> Turn {
        let before = out.len();
        self.transmit_owed(out);
        let mut room = SLICE_MAX;
        let wait = loop {
            match self.scheduler.next(now, room, toll) {
                Next::Slice {
                    channel,
                    class,
                    bytes,
                    last,
                } => {
                    room -= bytes.len();
                    if !bytes.is_empty() {
                        out.reserve(DATA_HEADER + bytes.len());
                        Packet::Data {
                            channel,
                            payload: bytes,
                        }
                        .encode(out);
                    }
                    if last {
                        Packet::Fin { channel }.encode(out);
                        self.sent_all(channel);
                    }
                    on(Event::Writable(channel));
                    if room == 0 || matches!(class, Class::Maintenance | Class::Model) {
                        break None;
                    }
                }
                Next::At(at) => break Some(at),
                Next::Idle => break None,
            }
        };
        if out.len() > before {
            Turn::Wrote
        } else {
            Turn::Wait(wait)
        }
    }

    /// Asks the peer for an answer, by which the round trip is measured. While one is asked for, no other is.
    pub fn ping(&mut self, now: Instant) {
        if self.pinged.is_none() {
            self.pings += 1;
            self.ping = Some(self.pings);
            self.pinged = Some((self.pings, now));
        }
    }

    /// Lets the peer have no more than so much under way on a channel of this class, from the next grant on; a slice
    /// at least.
    pub fn limit_window(&mut self, class: Class, size: ByteSize) {
        let size = u32::try_from(size.0).unwrap_or(u32::MAX);
        self.windows[class.index()] = size.clamp(WINDOW_MIN, window_max(class));
    }

    /// The round trip of the last ping.
    pub const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// The send side, for its limits and its figures.
    pub const fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// The send side, to set its limits.
    pub const fn scheduler_mut(&mut self) -> &mut Scheduler {
        &mut self.scheduler
    }

    /// Bytes of data that have arrived since the lane began.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Channels that are open, of either side.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    fn insert(&mut self, channel: ChannelId, class: Class) {
        let state = Channel::new(class, WINDOW_MIN);
        self.channels.insert(channel, state);
        self.scheduler.open(channel, class, WINDOW_MIN.into());
    }

    fn transmit_owed(&mut self, out: &mut BytesMut) {
        if self.acked < self.received {
            self.acked = self.received;
            Packet::Ack { total: self.received }.encode(out);
        }
        if let Some(token) = self.pong.take() {
            Packet::Pong { token }.encode(out);
        }
        if let Some(token) = self.ping.take() {
            Packet::Ping { token }.encode(out);
        }
        for notice in self.notices.drain(..) {
            notice.encode(out);
        }
        for channel in std::mem::take(&mut self.credits) {
            if let Some(bytes) = self.grant(channel) {
                Packet::Credit { channel, bytes }.encode(out);
            }
        }
    }

    /// Lets the peer send as much as was read; twice the window where whoever reads keeps up and the class has
    /// not lent all that it may.
    fn grant(&mut self, channel: ChannelId) -> Option<u32> {
        let state = self.channels.get_mut(&channel)?;
        if state.released || state.receives != Receives::Open {
            return None;
        }
        let lent = &mut self.lent[state.class.index()];
        let window = (2 * state.window).min(self.windows[state.class.index()]);
        let more = window.saturating_sub(state.window);
        let growth = if *lent + u64::from(more) <= LENT_MAX {
            more
        } else {
            0
        };
        *lent += u64::from(growth);
        state.window += growth;
        let bytes = std::mem::take(&mut state.consumed) + growth;
        state.granted += bytes;
        Some(bytes)
    }

    fn on_packet(
        &mut self,
        packet: Packet,
        now: Instant,
        on: &mut dyn FnMut(Event),
    ) -> Result<(), LaneError> {
        match packet {
            Packet::Open { channel, class } => self.on_open(channel, class, on)?,
            Packet::Data { channel, payload } => {
                self.received += payload.len() as u64;
                // A channel that is over here may have been sending still.
                let Some(state) = self.known(channel)? else {
                    return Ok(());
                };
                if state.receives != Receives::Open {
                    return Err(LaneError::AfterEnd { channel });
                }
                let bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                let Some(granted) = state.granted.checked_sub(bytes) else {
                    let excess = payload.len() - state.granted as usize;
                    return Err(LaneError::BeyondCredit { channel, excess });
                };
                state.granted = granted;
                if !state.released {
                    // Copied, so that a short payload does not hold on to all that arrived with it.
                    state.arrived.extend_from_slice(&payload);
                    on(Event::Readable(channel));
                }
            }
            Packet::Fin { channel } => self.on_end(channel, Receives::Ended, on)?,
            Packet::Reset { channel } => self.on_end(channel, Receives::Broken, on)?,
            Packet::Stop { channel } => {
                let Some(state) = self.known(channel)? else {
                    return Ok(());
                };
                let told = state.sends == Sends::Done;
                if state.sends == Sends::Refused {
                    return Ok(());
                }
                state.sends = Sends::Refused;
                self.scheduler.remove(channel);
                if !told {
                    self.notice(Packet::Reset { channel })?;
                }
                on(Event::Writable(channel));
                self.forget_if_over(channel);
            }
            Packet::Credit { channel, bytes } => {
                if self.known(channel)?.is_some() {
                    self.scheduler.add_credit(channel, bytes);
                }
            }
            Packet::Ack { total } => self.scheduler.on_ack(now, total)?,
            // Only the last one is answered, so that a peer cannot make us remember many.
            Packet::Ping { token } => self.pong = Some(token),
            Packet::Pong { token } => {
                if let Some((pinged, at)) = self.pinged
                    && token == pinged
                {
                    self.pinged = None;
                    self.rtt = Some(now.saturating_duration_since(at));
                }
            }
        }
        Ok(())
    }

    fn on_open(
        &mut self,
        channel: ChannelId,
        class: Class,
        on: &mut dyn FnMut(Event),
    ) -> Result<(), LaneError> {
        if channel.0 != self.next_theirs {
            return Err(LaneError::OutOfOrder { channel });
        }
        self.next_theirs = self
            .next_theirs
            .checked_add(2)
            .ok_or(LaneError::OutOfOrder { channel })?;
        if self.theirs >= self.theirs_max {
            // The peer may have seen the end of channels that are still being read here.
            self.notice(Packet::Stop { channel })?;
            return self.notice(Packet::Reset { channel });
        }
        self.theirs += 1;
        self.insert(channel, class);
        on(Event::Opened(channel, class));
        Ok(())
    }

    fn on_end(
        &mut self,
        channel: ChannelId,
        end: Receives,
        on: &mut dyn FnMut(Event),
    ) -> Result<(), LaneError> {
        let Some(state) = self.known(channel)? else {
            return Ok(());
        };
        if state.receives != Receives::Open {
            return Err(LaneError::AfterEnd { channel });
        }
        state.receives = end;
        on(Event::Readable(channel));
        self.forget_if_over(channel);
        Ok(())
    }

    /// The channel, or nothing where it is over already.
    fn known(&mut self, channel: ChannelId) -> Result<Option<&mut Channel>, LaneError> {
        let next = if self.is_ours(channel) {
            self.next_ours
        } else {
            self.next_theirs
        };
        if channel.0 == 0 || channel.0 >= next {
            return Err(LaneError::Unknown { channel });
        }
        Ok(self.channels.get_mut(&channel))
    }

    const fn is_ours(&self, channel: ChannelId) -> bool {
        channel.0 % 2 == self.next_ours % 2
    }

    fn notice(&mut self, packet: Packet) -> Result<(), LaneError> {
        if self.notices.len() >= NOTICES_MAX {
            return Err(LaneError::Flooded);
        }
        self.notices.push_back(packet);
        Ok(())
    }

    /// Everything of a channel, its end too, has been handed over.
    fn sent_all(&mut self, channel: ChannelId) {
        if let Some(state) = self.channels.get_mut(&channel) {
            state.sends = Sends::Done;
            self.forget_if_over(channel);
        }
    }

    fn forget_if_over(&mut self, channel: ChannelId) {
        let over = self.channels.get(&channel).is_some_and(|state| {
            let sent = matches!(state.sends, Sends::Done | Sends::Refused);
            state.released && sent && state.receives != Receives::Open
        });
        if !over {
            return;
        }
        if let Some(state) = self.channels.remove(&channel) {
            self.lent[state.class.index()] -= u64::from(state.window - WINDOW_MIN);
            self.scheduler.remove(channel);
            self.credits.remove(&channel);
            if self.is_ours(channel) {
                self.ours -= 1;
            } else {
                self.theirs -= 1;
            }
        }
    }
}

/// Channels of each side: the exchanges of a thousand peers over one gateway, and 16 MiB of their smallest windows.
pub const CHANNELS_MAX: usize = 1024;

/// Bytes that may be sent on a channel before its reader has read any: one slice.
const WINDOW_MIN: u32 = SLICE_MAX as u32;

/// Bytes over [`WINDOW_MIN`] that the channels of one class may be granted together.
const LENT_MAX: u64 = 16 << 20;

/// Answers that may wait: the refusal of every channel, twice, is two packets each.
const NOTICES_MAX: usize = 4 * CHANNELS_MAX;

/// Bytes that a channel is granted at most: 100 Mbit/s over 600 ms for what is long, and for the rest what a
/// message takes.
const fn window_max(class: Class) -> u32 {
    match class {
        Class::Control | Class::Consensus => 1 << 20,
        Class::Call | Class::Maintenance | Class::Model => 8 << 20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// Two ends, and what they were told.
    struct Pair {
        now: Instant,
        ends: [Mux; 2],
        events: [Vec<Event>; 2],
    }

    impl Pair {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        fn new() -> Self {
            let now = Instant::now();
            Self {
                now,
                ends: [Mux::new(Side::Dialer, now), Mux::new(Side::Listener, now)],
                events: [Vec::new(), Vec::new()],
            }
        }

        /// Moves bytes both ways until nothing moves.
        fn settle(&mut self) {
            loop {
                let mut moved = false;
                for from in [0, 1] {
                    self.now += Duration::from_millis(1);
                    let (mut out, now) = (BytesMut::new(), self.now);
                    let (told, heard) = (1 - from, &mut self.events);
                    let mut note = |event| heard[from].push(event);
                    let turn = self.ends[from].transmit(now, &mut |_, _| now, &mut out, &mut note);
                    moved |= turn == Turn::Wrote;
                    self.ends[told]
                        .receive(&out, now, &mut |event| heard[told].push(event))
                        .unwrap();
                }
                if !moved {
                    return;
                }
            }
        }

        fn drain(&mut self, end: usize, channel: ChannelId) -> (Vec<u8>, Read) {
            let mut all = Vec::new();
            loop {
                let mut piece = [0; 5000];
                match self.ends[end].read(channel, &mut piece) {
                    Read::Bytes(bytes) => all.extend_from_slice(&piece[..bytes]),
                    other => return (all, other),
                }
            }
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 251) as u8).collect()
    }

    /// Feeds one end what a hostile peer would send.
    fn hostile(packets: &[Packet]) -> Result<Vec<Event>, LaneError> {
        let mut pair = Pair::new();
        let ours = pair.ends[1].open(Class::Call).unwrap();
        assert_eq!(ours, ChannelId(2));
        let mut wire = BytesMut::new();
        for packet in packets {
            packet.encode(&mut wire);
        }
        let mut events = Vec::new();
        pair.ends[1].receive(&wire, pair.now, &mut |event| events.push(event))?;
        Ok(events)
    }

    #[test]
    fn what_is_written_is_read_in_order_and_then_the_end() {
        let mut pair = Pair::new();
        let channel = pair.ends[0].open(Class::Model).unwrap();
        let sent = pattern(1_000_000);
        let (mut written, mut read) = (0, Vec::new());
        while read.len() < sent.len() {
            written += pair.ends[0].write(channel, &sent[written..]).unwrap();
            pair.settle();
            read.extend(pair.drain(1, channel).0);
        }
        assert_eq!(read, sent);
        pair.ends[0].finish(channel);
        assert_eq!(pair.ends[0].has_left(channel), Ok(false));
        pair.settle();
        assert_eq!(pair.ends[0].has_left(channel), Ok(true));
        assert_eq!(pair.drain(1, channel), (Vec::new(), Read::End));
        assert_eq!(pair.ends[0].write(channel, b"more"), Err(WriteError::Finished));
        assert_eq!(pair.events[1][0], Event::Opened(channel, Class::Model));
    }

    #[test]
    fn both_ends_open_channels_and_talk_at_once() {
        let mut pair = Pair::new();
        let a = pair.ends[0].open(Class::Call).unwrap();
        let b = pair.ends[1].open(Class::Consensus).unwrap();
        for (channel, text) in [(a, b"to and fro"), (b, b"fro and to")] {
            pair.settle();
            for end in [0, 1] {
                pair.ends[end].write(channel, text).unwrap();
            }
            pair.settle();
            for end in [0, 1] {
                assert_eq!(pair.drain(end, channel), (text.to_vec(), Read::Nothing));
            }
        }
    }

    #[test]
    fn a_channel_that_nobody_reads_holds_up_itself_only() {
        let mut pair = Pair::new();
        let stalled = pair.ends[0].open(Class::Call).unwrap();
        let read = pair.ends[0].open(Class::Call).unwrap();
        let sent = pattern(200_000);
        pair.ends[0].write(stalled, &sent).unwrap();
        pair.settle();
        // One window has left, and no more.
        let left = sent.len() - pair.ends[0].scheduler().queued(stalled);
        assert_eq!(left, WINDOW_MIN as usize);
        let (mut written, mut got) = (0, Vec::new());
        while got.len() < sent.len() {
            written += pair.ends[0].write(read, &sent[written..]).unwrap();
            pair.settle();
            got.extend(pair.drain(1, read).0);
        }
        assert_eq!(got, sent);
        // Whoever begins to read has the rest.
        let mut late = Vec::new();
        while late.len() < sent.len() {
            late.extend(pair.drain(1, stalled).0);
            pair.settle();
        }
        assert_eq!(late, sent);
    }

    #[test]
    fn the_window_grows_while_somebody_reads_and_a_class_lends_only_so_much() {
        let mut pair = Pair::new();
        let channels: Vec<ChannelId> = (0..4).map(|_| pair.ends[0].open(Class::Model).unwrap()).collect();
        let zeros = vec![0; 1 << 20];
        for _ in 0..300 {
            for &channel in &channels {
                pair.ends[0].write(channel, &zeros).unwrap();
                pair.settle();
                pair.drain(1, channel);
            }
        }
        let windows: Vec<u32> = channels
            .iter()
            .map(|id| pair.ends[1].channels[id].window)
            .collect();
        assert!(windows.iter().all(|window| *window > 1 << 20), "{windows:?}");
        let lent: u64 = windows.iter().map(|window| u64::from(window - WINDOW_MIN)).sum();
        assert!(
            lent <= LENT_MAX && lent == pair.ends[1].lent[Class::Model.index()],
            "{windows:?}"
        );
        for channel in channels {
            for end in [0, 1] {
                pair.ends[end].release(channel);
            }
        }
        pair.settle();
        assert_eq!(pair.ends[1].lent, [0; CLASSES.len()]);
        assert_eq!((pair.ends[0].channels(), pair.ends[1].channels()), (0, 0));
    }

    #[test]
    fn an_urgent_packet_waits_for_one_slice() {
        let mut pair = Pair::new();
        let bulk = pair.ends[0].open(Class::Model).unwrap();
        let urgent = pair.ends[0].open(Class::Consensus).unwrap();
        pair.settle();
        pair.ends[0].write(bulk, &pattern(100_000)).unwrap();
        let (mut out, now) = (BytesMut::new(), pair.now);
        pair.ends[0].transmit(now, &mut |_, _| now, &mut out, &mut |_| {});
        assert!(out.len() <= SLICE_MAX + DATA_HEADER);
        pair.ends[0].write(urgent, b"vote").unwrap();
        out.clear();
        pair.ends[0].transmit(now, &mut |_, _| now, &mut out, &mut |_| {});
        let first = Packet::decode(&mut out).unwrap();
        let payload = Bytes::from_static(b"vote");
        assert_eq!(
            first,
            Some(Packet::Data {
                channel: urgent,
                payload
            })
        );
    }

    #[test]
    fn a_dropped_reader_stops_the_writer_and_both_ends_forget_the_channel() {
        let mut pair = Pair::new();
        let channel = pair.ends[0].open(Class::Call).unwrap();
        pair.ends[0].write(channel, &pattern(100_000)).unwrap();
        pair.settle();
        pair.ends[1].release(channel);
        pair.settle();
        assert_eq!(pair.ends[0].write(channel, b"more"), Err(WriteError::Refused));
        assert_eq!(pair.ends[1].channels(), 0);
        pair.ends[0].release(channel);
        pair.settle();
        assert_eq!(pair.ends[0].channels(), 0);
        assert_eq!(pair.ends[0].scheduler().queued(channel), 0);
    }

    #[test]
    fn a_dropped_writer_has_all_delivered_that_was_written() {
        let mut pair = Pair::new();
        let channel = pair.ends[0].open(Class::Call).unwrap();
        let sent = pattern(60_000);
        pair.ends[0].write(channel, &sent).unwrap();
        pair.ends[0].release(channel);
        let mut read = Vec::new();
        let end = loop {
            pair.settle();
            let (bytes, end) = pair.drain(1, channel);
            read.extend(bytes);
            if end != Read::Nothing {
                break end;
            }
        };
        assert_eq!((read, end), (sent, Read::End));
        pair.ends[1].release(channel);
        pair.settle();
        assert_eq!((pair.ends[0].channels(), pair.ends[1].channels()), (0, 0));
    }

    #[test]
    fn a_thousand_channels_are_open_at_once_and_one_more_is_refused() {
        let mut pair = Pair::new();
        for _ in 0..CHANNELS_MAX {
            let channel = pair.ends[0].open(Class::Call).unwrap();
            pair.ends[0].write(channel, &channel.0.to_le_bytes()).unwrap();
        }
        assert_eq!(pair.ends[0].open(Class::Call), Err(OpenChannelError::TooMany));
        pair.settle();
        for number in 0..CHANNELS_MAX {
            let channel = ChannelId(2 * number as u32 + 1);
            assert_eq!(pair.drain(1, channel).0, channel.0.to_le_bytes());
        }
        // Over here, but still held there.
        let first = ChannelId(1);
        pair.ends[0].release(first);
        pair.ends[1].finish(first);
        pair.settle();
        let refused = pair.ends[0].open(Class::Call).unwrap();
        pair.settle();
        assert_eq!(pair.drain(0, refused).1, Read::Broken);
        assert_eq!(pair.ends[0].write(refused, b"x"), Err(WriteError::Refused));
        assert_eq!(pair.ends[1].channels(), CHANNELS_MAX);
    }

    #[test]
    fn a_peer_that_is_allowed_few_channels_has_the_others_refused() {
        let mut pair = Pair::new();
        pair.ends[1].set_theirs_max(2);
        let opened: Vec<ChannelId> = (0..3).map(|_| pair.ends[0].open(Class::Call).unwrap()).collect();
        pair.settle();
        assert_eq!(pair.ends[1].channels(), 2);
        assert_eq!(pair.ends[0].write(opened[2], b"x"), Err(WriteError::Refused));
        pair.ends[0].release(opened[2]);
        pair.ends[1].set_theirs_max(CHANNELS_MAX + 1);
        for _ in 0..2 * CHANNELS_MAX {
            let _ = pair.ends[0].open(Class::Call);
        }
        pair.settle();
        assert_eq!(pair.ends[1].channels(), CHANNELS_MAX);
    }

    #[test]
    fn a_peer_that_breaks_the_rules_ends_the_lane() {
        let channel = ChannelId(1);
        let open = Packet::Open {
            channel,
            class: Class::Call,
        };
        let data = |length| Packet::Data {
            channel,
            payload: vec![0; length].into(),
        };
        let after_end = Err(LaneError::AfterEnd { channel });
        assert_eq!(hostile(&[data(1)]), Err(LaneError::Unknown { channel }));
        for id in [0, 4, 5, u32::MAX] {
            let channel = ChannelId(id);
            assert_eq!(
                hostile(&[Packet::Fin { channel }]),
                Err(LaneError::Unknown { channel })
            );
        }
        for id in [0, 2, 3, u32::MAX] {
            let channel = ChannelId(id);
            let open = Packet::Open {
                channel,
                class: Class::Call,
            };
            assert_eq!(hostile(&[open]), Err(LaneError::OutOfOrder { channel }));
        }
        assert_eq!(
            hostile(&[open.clone(), open.clone()]),
            Err(LaneError::OutOfOrder { channel })
        );
        let excess = 1;
        let beyond = Err(LaneError::BeyondCredit { channel, excess });
        assert_eq!(hostile(&[open.clone(), data(SLICE_MAX), data(1)]), beyond);
        assert_eq!(
            hostile(&[open.clone(), Packet::Fin { channel }, data(1)]),
            after_end
        );
        let reset = Packet::Reset { channel };
        assert_eq!(hostile(&[open.clone(), reset.clone(), reset]), after_end);
        assert!(matches!(
            hostile(&[Packet::Ack { total: 1 }]),
            Err(LaneError::Ack(_))
        ));
        // More credit than there are bytes in the world is no harm, nor is being told to stop twice.
        let credit = Packet::Credit {
            channel,
            bytes: u32::MAX,
        };
        let stop = Packet::Stop { channel };
        assert!(hostile(&[open, credit.clone(), credit, stop.clone(), stop]).is_ok());
        assert!(hostile(&[Packet::Pong { token: 77 }, Packet::Ping { token: 1 }]).is_ok());
    }

    #[test]
    fn a_peer_that_opens_without_end_and_never_reads_is_cut_off() {
        let opens: Vec<Packet> = (0..2 * NOTICES_MAX as u32)
            .map(|n| Packet::Open {
                channel: ChannelId(2 * n + 1),
                class: Class::Control,
            })
            .collect();
        assert_eq!(hostile(&opens), Err(LaneError::Flooded));
        let opened = hostile(&opens[..2 * CHANNELS_MAX]).unwrap();
        assert_eq!(opened.len(), CHANNELS_MAX);
    }

    #[test]
    fn channels_that_are_never_ended_here_use_up_no_more_than_their_number() {
        let mut pair = Pair::new();
        for _ in 0..3 * CHANNELS_MAX {
            let channel = pair.ends[0].open(Class::Call).unwrap();
            // Over there, and never released here.
            pair.ends[0].release(channel);
            pair.settle();
        }
        assert_eq!(
            (pair.ends[0].channels(), pair.ends[1].channels()),
            (0, CHANNELS_MAX)
        );
    }

    #[test]
    fn a_ping_measures_the_round_trip() {
        let mut pair = Pair::new();
        pair.ends[0].ping(pair.now);
        pair.ends[0].ping(pair.now);
        pair.settle();
        // The answer arrives three transmissions later.
        assert_eq!(pair.ends[0].rtt(), Some(Duration::from_millis(2)));
    }

    #[test]
    fn random_bytes_neither_panic_nor_allocate_without_end() {
        let mut random = 0x1234_5678_9ABC_DEF1_u64;
        for _ in 0..2000 {
            let mut pair = Pair::new();
            let bytes: Vec<u8> = (0..600)
                .map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    // Mostly small numbers, which are valid kinds and channels.
                    if random.is_multiple_of(3) {
                        (random >> 32) as u8
                    } else {
                        (random >> 32) as u8 % 10
                    }
                })
                .collect();
            let end = &mut pair.ends[1];
            if end.receive(&bytes, pair.now, &mut |_| {}).is_ok() {
                assert!(end.partial.len() <= bytes.len());
            }
        }
    }
}
