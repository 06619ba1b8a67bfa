//! A session: one QUIC connection between two nodes of ours for everything that may not wait, and a second one
//! beside it, on the same sockets, for bulk.
//!
//! The first carries class streams and libp2p's own substreams; which of them a stream is, its first byte tells.
//! The second, the bulk lane, is opened by whoever dialed the first, when there is bulk to send; it has a congestion
//! controller of its own, since priorities alone do not keep a queue short that bulk has filled.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, OptionFuture};
use quinn::{Connection, ConnectionError, PathStats, RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{debug, trace};

use super::Quic;
use super::message::{Message, SIZE_MAX};
use super::muxer::Substream;
use super::settings::{BulkWindows, STREAMS_AT_FIRST};
use super::stamps::Stamps;
use super::telling::Telling;
use super::{priority, settings};
use crate::driver::acceptor::{Accepted, HELLO_TIMEOUT, OFFENCES};
use crate::driver::shared::lock;
use crate::driver::stream::{Opened, Stream};
use crate::driver::usage::{Place, Usage, Use};
use crate::driver::{congestion, explain, now};
use crate::liveness::{Beat, Liveness, Pace};
use crate::{
    Allowance, Dialed, LinkStatus, Observation, Packets, Path, RememberedWindow, Sighting, SocketId, Traffic,
    Transport, Unwelcome, decode, encode,
};
use lapwing_base::{ByteSize, CLASSES, Class, PeerId};

/// Why a connection was closed, for the other end's log.
pub(crate) const CLOSED: VarInt = VarInt::from_u32(0);
pub(crate) const REFUSED: VarInt = VarInt::from_u32(1);
const SILENT: VarInt = VarInt::from_u32(2);
const MISBEHAVED: VarInt = VarInt::from_u32(3);

/// Messages about the session: a peer sends a handful in its lifetime, and a few whenever it moves or wants bulk.
const MESSAGES: Allowance = Allowance::new(32, Duration::from_millis(500));

/// How often the peer is asked for a bulk lane at most, however many channels wait for it.
const BULK_ASK_INTERVAL: Duration = Duration::from_secs(1);

/// A bulk lane that has carried nothing for so long is closed: a main would keep one for each of thousands of homes,
/// and another one costs a round trip.
const BULK_IDLE_MAX: Duration = Duration::from_secs(3);

/// A lane over which something has travelled within so long is not closed: it may not have been acknowledged yet.
const BULK_QUIET: Duration = Duration::from_secs(1);

/// How long the peer may take to close a lane that this end does not need any more.
const BULK_REST_MAX: Duration = Duration::from_secs(3);

/// How long an opener of a bulk stream waits for the lane; the handshake has a shorter patience of its own.
const BULK_PATIENCE: Duration = Duration::from_secs(5);

/// Messages about the session that may wait: a peer sends a handful in its lifetime.
const MESSAGES_MAX: usize = 8;

/// Distinguishes sessions of one node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct SessionId(pub(crate) u64);

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) peer: PeerId,
    pub(crate) dialed: Dialed,
    /// The socket that it runs on.
    pub(crate) socket: SocketId,
    control: Connection,
    bulk: watch::Sender<Bulk>,
    bulk_wanted: Notify,
    /// What the last bulk lane has found, and where it led.
    remembered: Mutex<Option<(SocketAddr, RememberedWindow)>>,
    pace: watch::Sender<Pace>,
    suspected: Notify,
    /// When the bulk lane last failed to open, as a count, so that waiters see a failure that is theirs.
    failures: AtomicU64,
    usage: Usage,
    /// The same of the bulk lane.
    bulk_usage: Usage,
    offences: Mutex<Allowance>,
    /// Where the peer said last that it sees us.
    seen: Mutex<Option<SocketAddr>>,
}

#[derive(Clone, Debug)]
enum Bulk {
    None,
    Up(Connection),
    /// Nothing is opened over it while the peer is asked to close it.
    Resting(Connection),
    /// The lane could not be opened, for the so many-th time.
    Failed(u64, String),
}

/// What the driver hears of sessions.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    Established(Arc<Session>),
    Greeted {
        id: SessionId,
        peer: PeerId,
        incarnation: u64,
    },
    /// A peer has told where it sees us: [`Session::observation`].
    Observed(Arc<Session>),
    /// A peer that we have dialed speaks libp2p's protocols only.
    Foreign(PeerId),
    Closed {
        id: SessionId,
        peer: PeerId,
        why: String,
    },
}

impl Session {
    pub(super) fn new(
        id: SessionId,
        peer: PeerId,
        dialed: Dialed,
        socket: SocketId,
        control: Connection,
    ) -> Self {
        Self {
            id,
            peer,
            dialed,
            socket,
            control,
            bulk: watch::Sender::new(Bulk::None),
            bulk_wanted: Notify::new(),
            remembered: Mutex::default(),
            pace: watch::Sender::new(Pace::LOOSE),
            suspected: Notify::new(),
            failures: AtomicU64::new(0),
            usage: Usage::default(),
            bulk_usage: Usage::default(),
            offences: Mutex::new(OFFENCES),
            seen: Mutex::default(),
        }
    }

    /// Opens a stream of a class. Says nothing to the peer until something is written.
    ///
    /// # Errors
    /// When the session is gone, or there is no bulk lane.
    pub(crate) async fn open(&self, class: Class) -> io::Result<Opened> {
        let (connection, usage) = if priority::is_bulk(class) {
            self.bulk_lane().await?
        } else {
            (self.control.clone(), self.usage.channel(None))
        };
        let (mut send, receive) = connection.open_bi().await?;
        send.set_priority(priority::of(class)).map_err(io::Error::other)?;
        // It leaves with the first frame.
        send.write_all(&[tag(class)]).await?;
        Ok(self.opened(class, send, receive, usage))
    }

    fn opened(&self, class: Class, send: SendStream, receive: RecvStream, usage: Use) -> Opened {
        if priority::is_bulk(class) {
            // The session's loop looks what time it is from now on.
            self.bulk_wanted.notify_one();
        }
        Opened {
            stream: Stream::quic(send, receive),
            usage,
        }
    }

    const fn usage_of(&self, bulk: bool) -> &Usage {
        if bulk { &self.bulk_usage } else { &self.usage }
    }

    /// The bulk lane, which is kept for as long as the second value is held.
    async fn bulk_lane(&self) -> io::Result<(Connection, Use)> {
        let mut bulk = self.bulk.subscribe();
        let failures = self.failures.load(Ordering::Acquire);
        let waiting = async {
            loop {
                match &*bulk.borrow_and_update() {
                    // Counted before anybody else can look: `rest` finds it in use.
                    Bulk::Up(lane) if lane.close_reason().is_none() => {
                        return Ok((lane.clone(), self.bulk_usage.channel(None)));
                    }
                    Bulk::Failed(count, why) if *count > failures => {
                        return Err(io::Error::other(why.clone()));
                    }
                    // The peer closes it, or wants it.
                    Bulk::Resting(lane) if lane.close_reason().is_none() => (),
                    Bulk::None | Bulk::Up(_) | Bulk::Resting(_) | Bulk::Failed(..) => {
                        self.bulk_wanted.notify_one()
                    }
                }
                if bulk.changed().await.is_err() {
                    return Err(io::ErrorKind::NotConnected.into());
                }
            }
        };
        tokio::select! {
            lane = waiting => lane,
            error = self.control.closed() => Err(error.into()),
            () = tokio::time::sleep(BULK_PATIENCE) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the peer has opened no bulk lane"))
            }
        }
    }

    /// Takes a connection for bulk that the peer has dialed, in place of an earlier one; says whether this session has
    /// a place for it.
    pub(super) fn attach_bulk(&self, lane: Connection) -> bool {
        let takes = self.dialed == Dialed::ByThem && self.control.close_reason().is_none();
        if takes {
            self.set_bulk(lane);
        }
        takes
    }

    /// One lane at a time: the peer opens another where it has lost the one before.
    fn set_bulk(&self, lane: Connection) {
        if let Some((remote, remembered)) = *lock(&self.remembered)
            && remote == lane.remote_address()
        {
            congestion::resume(&lane, remembered);
        }
        if let Bulk::Up(before) | Bulk::Resting(before) = self.bulk.send_replace(Bulk::Up(lane)) {
            before.close(CLOSED, b"another one has taken its place");
        }
    }

    /// Takes the bulk lane out of use, unless a channel is open over it: this end opens nothing over it any more.
    fn rest(&self, next: impl FnOnce(&Connection) -> Bulk) -> Option<Connection> {
        let mut resting = None;
        self.bulk.send_if_modified(|bulk| {
            if let Bulk::Up(lane) = bulk
                && self.bulk_usage.channels() == 0
                && self.bulk_usage.of_peer() == 0
            {
                let lane = lane.clone();
                *bulk = next(&lane);
                resting = Some(lane);
            }
            resting.is_some()
        });
        resting
    }

    /// Counts a stream that has come over the bulk lane, unless the lane was closed before.
    fn taken(&self, lane: &Connection) -> Option<Place> {
        // Under the lock, so that nobody lets the lane rest between the two.
        let _bulk = self.bulk.borrow();
        lane.close_reason().is_none().then(|| self.bulk_usage.place())
    }

    /// Whether any channel is open over it.
    pub(crate) fn in_use(&self) -> bool {
        self.usage.channels() > 0 || self.bulk_usage.channels() > 0
    }

    /// What happens over it now.
    pub(crate) fn traffic(&self) -> Traffic {
        let carried = |lane: &Connection| {
            let stats = lane.stats();
            // What is lost and sent again counts again.
            stats.frame_tx.stream + stats.frame_rx.stream
        };
        let bulk = match &*self.bulk.borrow() {
            Bulk::Up(lane) | Bulk::Resting(lane) => carried(lane),
            Bulk::None | Bulk::Failed(..) => 0,
        };
        let begun = u64::from(self.usage.begun()) + u64::from(self.bulk_usage.begun());
        Traffic {
            busy: self.in_use(),
            moved: carried(&self.control) + bulk + begun,
            rtt: Some(self.rtt()),
        }
    }

    /// The peer has done what no node of ours does. Ends the session when it goes on with it.
    fn offend(&self, quic: &Quic, what: Unwelcome) {
        quic.shared.refused.count(what);
        if !lock(&self.offences).take(now()) && self.control.close_reason().is_none() {
            debug!(peer = %self.peer, "peer misbehaves, closing the session");
            quic.shared.refused.count(Unwelcome::Session);
            self.control.close(MISBEHAVED, b"too much that is not understood");
        }
    }

    /// Watches the peer more or less closely from now on.
    pub(crate) fn set_pace(&self, pace: Pace) {
        self.pace
            .send_if_modified(|current| std::mem::replace(current, pace) != pace);
    }

    /// Asks at once whether the peer is still there: something else says that it may not be.
    pub(crate) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Ends it, and says why in the peer's log.
    pub(crate) fn close(&self, why: &str) {
        self.control.close(CLOSED, why.as_bytes());
    }

    /// Where the peer is now; it may have moved.
    pub(crate) fn remote(&self) -> SocketAddr {
        self.control.remote_address()
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.control.rtt()
    }

    /// Where the peer sees us, by its last word.
    pub(crate) fn observation(&self) -> Option<Observation> {
        let seen = (*lock(&self.seen))?;
        Some(Observation {
            socket: self.socket,
            observer: self.peer,
            observed_at: self.remote(),
            seen,
        })
    }

    /// What it is made of now.
    pub(crate) fn status(&self) -> LinkStatus {
        let control = self.control.stats().path;
        let bulk = match &*self.bulk.borrow() {
            Bulk::Up(lane) | Bulk::Resting(lane) => Some(lane.stats().path),
            Bulk::None | Bulk::Failed(..) => None,
        };
        let packets = |path: &PathStats| Packets {
            sent: path.sent_packets,
            lost: path.lost_packets,
        };
        let of_bulk = bulk.as_ref().map(packets).unwrap_or_default();
        LinkStatus {
            path: Path::Direct,
            transport: Transport::Quic,
            rtt: Some(control.rtt),
            window: Some(ByteSize(control.cwnd)),
            bulk_window: bulk.map(|path| ByteSize(path.cwnd)),
            packets: Packets {
                sent: control.sent_packets + of_bulk.sent,
                lost: control.lost_packets + of_bulk.lost,
            },
        }
    }

    fn bulk_failed(&self, why: String) {
        let count = self.failures.fetch_add(1, Ordering::AcqRel) + 1;
        self.bulk.send_replace(Bulk::Failed(count, why));
    }
}

/// The first byte of a class stream. libp2p's streams begin with 19, the length of `/multistream/1.0.0\n`.
const fn tag(class: Class) -> u8 {
    class.index() as u8
}

/// What a first byte announces.
enum Announced {
    Class(Class),
    Libp2p,
    Nothing,
}

fn announced(first: u8) -> Announced {
    const MULTISTREAM: u8 = 19;
    match CLASSES.into_iter().find(|class| tag(*class) == first) {
        Some(class) => Announced::Class(class),
        None if first == MULTISTREAM => Announced::Libp2p,
        None => Announced::Nothing,
    }
}

/// Runs one session to its end.
pub(super) async fn run(session: Arc<Session>, quic: Arc<Quic>, substreams: mpsc::Sender<Box<Substream>>) {
    let established = SessionEvent::Established(Arc::clone(&session));
    if quic.events.send(established).await.is_err() {
        session.close("stopping");
        return;
    }
    let (messages, inbox) = mpsc::channel(MESSAGES_MAX);
    let mut task = Task {
        session: Arc::clone(&session),
        quic: Arc::clone(&quic),
        substreams,
        messages,
        sighting: Sighting::default(),
        allowed: MESSAGES,
        telling: Telling::default(),
        bulk_asked_at: None,
        bulk_ask_at: None,
        bulk_idle: None,
        bulk_resting: None,
        streams: Streams::default(),
        liveness: Liveness::new(*session.pace.borrow(), now()),
        stamps: Stamps::new(now()),
    };
    let ended = task.run(inbox).await;
    let why = explain::ended(&ended);
    trace!(peer = %session.peer, why, "session ended");
    let closed = SessionEvent::Closed {
        id: session.id,
        peer: session.peer,
        why,
    };
    // Nobody listens where the whole network has stopped.
    let _ = quic.events.send(closed).await;
}

/// What one session's loop owns.
struct Task {
    session: Arc<Session>,
    quic: Arc<Quic>,
    substreams: mpsc::Sender<Box<Substream>>,
    messages: mpsc::Sender<Message>,
    /// What the peer was last told of where we see it.
    sighting: Sighting,
    /// Messages that the peer may send.
    allowed: Allowance,
    telling: Telling,
    /// When the peer was last asked for a bulk lane.
    bulk_asked_at: Option<Instant>,
    /// When it is to be asked again: somebody has wanted one who came too soon after that.
    bulk_ask_at: Option<Instant>,
    /// How much the bulk lane had carried when it was last looked at, and since when that has not changed.
    bulk_idle: Option<(u64, Instant)>,
    /// Since when the peer has been asked to close it.
    bulk_resting: Option<Instant>,
    streams: Streams,
    liveness: Liveness,
    stamps: Stamps,
}

/// How many streams the peer may have open on one connection.
///
/// Each has its place in two tables as soon as it is allowed, some 90 bytes, so most peers are allowed few; members
/// that use half of theirs, for whatever it is (of the circuits that we relay each is a stream), are given more.
struct Streams(u32);

impl Default for Streams {
    fn default() -> Self {
        Self(STREAMS_AT_FIRST)
    }
}

impl Streams {
    fn make_room(&mut self, connection: &Connection, session: &Session, quic: &Quic, bulk: bool) {
        let is_short = session.usage_of(bulk).of_peer() >= self.0 / 2;
        if is_short && self.0 < settings::STREAMS_MAX && quic.shared.is_let_in(&session.peer) {
            self.0 = (self.0 * 4).min(settings::STREAMS_MAX);
            connection.set_max_concurrent_bi_streams(self.0.into());
        }
    }
}

impl Task {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Message>) -> ConnectionError {
        let session = Arc::clone(&self.session);
        let control = &session.control;
        let mut pace = session.pace.subscribe();
        let mut dialing: OptionFuture<BoxFuture<'static, Result<Connection, String>>> = None.into();
        let mut dialing_now = false;
        self.telling.add(Message::greeting(self.quic.incarnation));
        loop {
            self.streams.make_room(control, &session, &self.quic, false);
            self.tell_observed();
            self.set_pace(*pace.borrow_and_update());
            if self.bulk_ask_at.is_some_and(|at| at <= now()) {
                self.bulk_ask_at = None;
                session.bulk_wanted.notify_one();
            }
            let stamp_at = self.stamp(now());
            let wake_at = match self.liveness.poll(control.rtt(), now()) {
                Beat::Wait(at) => at,
                Beat::Probe(number) => {
                    self.rest_bulk();
                    // Where datagrams are not to be had, the transport's own idle timeout is left.
                    let _ = control.send_datagram(beat(PROBE, number));
                    continue;
                }
                Beat::Dead(silent) => {
                    debug!(peer = %session.peer, ?silent, "peer is silent, giving the session up");
                    control.close(SILENT, b"silent");
                    return ConnectionError::TimedOut;
                }
            };
            let wake_at = stamp_at.map_or(wake_at, |at| at.min(wake_at));
            tokio::select! {
                stream = control.accept_bi() => match stream {
                    Ok((send, receive)) => self.route(send, receive),
                    Err(error) => return error,
                },
                stream = control.accept_uni() => match stream {
                    Ok(receive) if self.allowed.take(now()) => self.read_message(receive),
                    Ok(_) => session.offend(&self.quic, Unwelcome::Message),
                    Err(error) => return error,
                },
                datagram = control.read_datagram() => match datagram {
                    Ok(datagram) => self.on_datagram(&datagram),
                    Err(error) => return error,
                },
                Some(message) = inbox.recv() => match message {
                    Message::Greeting { incarnation, .. } => {
                        let (id, peer) = (session.id, session.peer);
                        report(&self.quic, SessionEvent::Greeted { id, peer, incarnation }).await;
                    }
                    Message::Observed(seen) => {
                        *lock(&session.seen) = Some(seen);
                        report(&self.quic, SessionEvent::Observed(Arc::clone(&session))).await;
                    }
                    Message::BulkWanted => self.on_bulk_wanted(),
                    Message::BulkIdle => self.on_bulk_idle(now()),
                },
                () = session.bulk_wanted.notified(), if !dialing_now => {
                    let up = matches!(
                        &*session.bulk.borrow(),
                        Bulk::Up(lane) | Bulk::Resting(lane) if lane.close_reason().is_none()
                    );
                    match session.dialed {
                        Dialed::ByUs if !up => {
                            dialing_now = true;
                            dialing = Some(self.quic.dial_bulk(&session, control.remote_address())).into();
                        }
                        Dialed::ByThem if !up => self.ask_bulk(now()),
                        Dialed::ByUs | Dialed::ByThem => (),
                    }
                }
                Some(dialed) = &mut dialing, if dialing_now => {
                    dialing_now = false;
                    dialing = None.into();
                    match dialed {
                        Ok(lane) => {
                            self.quic.tracker.spawn(accept_bulk(Arc::clone(&session), Arc::clone(&self.quic), lane.clone()));
                            session.set_bulk(lane);
                        }
                        Err(why) => {
                            debug!(peer = %session.peer, why, "no bulk lane");
                            session.bulk_failed(why);
                        }
                    }
                }
                () = self.telling.next(|message| tell(control.clone(), message).boxed()) => (),
                _ = pace.changed() => (),
                // It is watched as one that is used from now on, and not from when it would have been looked at next.
                () = session.usage.used() => (),
                () = session.suspected.notified() => self.liveness.suspect(now()),
                () = tokio::time::sleep_until(self.bulk_ask_at.map_or(wake_at, |at| at.min(wake_at)).into()) => (),
            }
        }
    }

    /// Where something is under way, somebody waits for it.
    fn set_pace(&mut self, pace: Pace) {
        let used = self.session.in_use() && pace.interval > Pace::USED.interval;
        self.liveness
            .set_pace(if used { Pace::USED } else { pace }, now());
    }

    /// Asks the peer for a bulk lane; where it was asked a moment ago, once that is over. Whoever waits may have come
    /// after the peer had tried, and the peer does not try again unasked.
    fn ask_bulk(&mut self, now: Instant) {
        match self.bulk_asked_at.map(|at| at + BULK_ASK_INTERVAL) {
            Some(at) if now < at => self.bulk_ask_at = Some(at),
            Some(_) | None => {
                self.bulk_asked_at = Some(now);
                self.telling.add(Message::BulkWanted);
            }
        }
    }

    /// Looks whether the bulk lane is used, and has it closed when it is not.
    ///
    /// What one end has just opened, the other does not know of, and would close it with the lane. So whoever dialed
    /// the lane opens nothing over it any more and asks the other end, who closes it unless it has opened something.
    fn rest_bulk(&mut self) {
        let (session, now) = (Arc::clone(&self.session), now());
        let lane = match &*session.bulk.borrow() {
            Bulk::Up(lane) => {
                // Another one, where one was resting.
                self.bulk_resting = None;
                lane.clone()
            }
            Bulk::Resting(lane) => lane.clone(),
            Bulk::None | Bulk::Failed(..) => {
                (self.bulk_idle, self.bulk_resting) = (None, None);
                return;
            }
        };
        let idle = self.bulk_idle_for(&lane, now);
        if session.dialed == Dialed::ByThem {
            return;
        }
        match self.bulk_resting {
            None if idle >= BULK_IDLE_MAX && session.rest(|lane| Bulk::Resting(lane.clone())).is_some() => {
                self.bulk_resting = Some(now);
                self.telling.add(Message::BulkIdle);
            }
            // One that neither closes it nor wants it.
            Some(since) if now >= since + BULK_REST_MAX => lane.close(CLOSED, b"idle"),
            None | Some(_) => (),
        }
    }

    /// How long a lane has carried nothing, as far as it was looked at.
    fn bulk_idle_for(&mut self, lane: &Connection, now: Instant) -> Duration {
        let stats = lane.stats();
        let carried = stats.frame_tx.stream + stats.frame_rx.stream;
        match self.bulk_idle {
            Some((before, since)) if before == carried => now.saturating_duration_since(since),
            _ => {
                self.bulk_idle = Some((carried, now));
                Duration::ZERO
            }
        }
    }

    /// The peer wants a bulk lane, or keeps the one that was about to be closed.
    fn on_bulk_wanted(&mut self) {
        if self.bulk_resting.take().is_some() {
            self.bulk_idle = None;
            self.session.bulk.send_if_modified(|bulk| match bulk {
                Bulk::Resting(lane) if lane.close_reason().is_none() => {
                    *bulk = Bulk::Up(lane.clone());
                    true
                }
                _ => false,
            });
        }
        self.session.bulk_wanted.notify_one();
    }

    /// The peer does not need the bulk lane, which it has dialed, any more.
    fn on_bulk_idle(&mut self, now: Instant) {
        let session = Arc::clone(&self.session);
        let lane = match &*session.bulk.borrow() {
            Bulk::Up(lane) if session.dialed == Dialed::ByThem => lane.clone(),
            _ => return,
        };
        if self.bulk_idle_for(&lane, now) < BULK_QUIET {
            return self.telling.add(Message::BulkWanted);
        }
        match session.rest(|_| Bulk::None) {
            Some(lane) => {
                trace!(peer = %session.peer, "closing the bulk lane, which is idle");
                lane.close(CLOSED, b"idle");
            }
            None => self.telling.add(Message::BulkWanted),
        }
    }

    fn route(&self, send: SendStream, receive: RecvStream) {
        let routing = route(
            Arc::clone(&self.session),
            Arc::clone(&self.quic),
            self.substreams.clone(),
            (send, receive),
            self.session.usage.place(),
        );
        self.quic.tracker.spawn(routing);
    }

    /// Tells the peer where we see it, at first, when it has moved, and before it forgets.
    fn tell_observed(&mut self) {
        let remote = self.session.control.remote_address();
        if self.sighting.is_due(remote, now()) {
            self.telling.add(Message::Observed(remote));
        }
    }

    fn read_message(&self, mut receive: RecvStream) {
        let messages = self.messages.clone();
        let (session, quic) = (Arc::clone(&self.session), Arc::clone(&self.quic));
        self.quic.tracker.spawn(async move {
            let peer = session.peer;
            let read = tokio::time::timeout(HELLO_TIMEOUT, receive.read_to_end(SIZE_MAX)).await;
            let Ok(Ok(bytes)) = read else {
                return session.offend(&quic, Unwelcome::Message);
            };
            match decode::<Message>(&bytes) {
                Ok(message) => drop(messages.send(message).await),
                // A later version may say more than we know.
                Err(error) => {
                    debug!(%peer, %error, "a message about the session is not understood");
                    session.offend(&quic, Unwelcome::Message);
                }
            }
        });
    }

    /// Tells the peer what time it is here while bulk is sent to it: from that it knows how long what we send waits on
    /// the way, and says so while it sends bulk too. Says when to look again.
    fn stamp(&mut self, now: Instant) -> Option<Instant> {
        let lane = match &*self.session.bulk.borrow() {
            Bulk::Up(lane) if self.session.bulk_usage.channels() > 0 => lane.clone(),
            _ => return None,
        };
        let (stamp, again_at) = self.stamps.poll(lane.stats().frame_tx.stream, now);
        if let Some(stamp) = stamp {
            let _ = self.session.control.send_datagram(stamp);
        }
        Some(again_at)
    }

    fn on_datagram(&mut self, datagram: &Bytes) {
        match read_beat(datagram) {
            Some((PROBE, number)) => drop(self.session.control.send_datagram(beat(ANSWER, number))),
            Some((ANSWER, _)) => self.liveness.answered(now()),
            _ if Stamps::is_stamp(datagram) => {
                let now = now();
                let queues = self.stamps.heard(datagram, now);
                if let (Some(queues), Bulk::Up(lane)) = (queues, &*self.session.bulk.borrow()) {
                    congestion::set_crossing(lane, queues, now);
                }
            }
            _ => trace!(peer = %self.session.peer, "a datagram is not understood"),
        }
    }
}

/// Kinds of liveness datagrams: one byte, then the number of the probe in eight, little endian.
const PROBE: u8 = 0;
const ANSWER: u8 = 1;
const BEAT_SIZE: usize = 1 + size_of::<u64>();

fn beat(kind: u8, number: u64) -> Bytes {
    let mut datagram = [0; BEAT_SIZE];
    datagram[0] = kind;
    datagram[1..].copy_from_slice(&number.to_le_bytes());
    Bytes::copy_from_slice(&datagram)
}

fn read_beat(datagram: &[u8]) -> Option<(u8, u64)> {
    let (kind, number) = datagram.split_first()?;
    Some((*kind, u64::from_le_bytes(number.try_into().ok()?)))
}

async fn report(quic: &Quic, event: SessionEvent) {
    // Nobody listens where the whole network has stopped.
    let _ = quic.events.send(event).await;
}

/// Tells the peer something about the session.
async fn tell(control: Connection, message: Message) {
    // A session that ends meanwhile has nothing more to be told.
    if let Ok(mut send) = control.open_uni().await {
        let _ = send.set_priority(priority::of(Class::Control));
        let _ = send.write_all(&encode(&message)).await;
    }
}

/// Reads whose stream it is and hands it on.
async fn route(
    session: Arc<Session>,
    quic: Arc<Quic>,
    substreams: mpsc::Sender<Box<Substream>>,
    (mut send, mut receive): (SendStream, RecvStream),
    place: Place,
) {
    let accepting = async {
        let mut first = [0];
        if receive.read_exact(&mut first).await.is_err() {
            return;
        }
        match announced(first[0]) {
            Announced::Class(class) if !priority::is_bulk(class) => {
                accept(&session, &quic, class, (send, receive), place).await;
            }
            Announced::Class(class) => {
                debug!(peer = %session.peer, %class, "a stream of bulk came outside the bulk lane");
                session.offend(&quic, Unwelcome::Stream);
                let _ = send.reset(REFUSED);
            }
            Announced::Libp2p => {
                let substream = Substream::sorted(send, receive, first[0], place);
                // libp2p has let go of the connection: it is being closed.
                drop(substreams.send(Box::new(substream)).await);
            }
            Announced::Nothing => {
                debug!(peer = %session.peer, first = first[0], "a stream is of no known kind");
                session.offend(&quic, Unwelcome::Stream);
                let _ = send.reset(REFUSED);
            }
        }
    };
    // A stream that says nothing for so long is half-open and dropped.
    if tokio::time::timeout(HELLO_TIMEOUT, accepting).await.is_err() {
        quic.shared.refused.count(Unwelcome::Stream);
    }
}

/// Takes the streams of a bulk lane until it ends, which it does with its session.
pub(super) async fn accept_bulk(session: Arc<Session>, quic: Arc<Quic>, lane: Connection) {
    // It began with what anybody may have.
    let windows = BulkWindows::within(&quic.shared.limits, Some(&session.peer));
    lane.set_receive_window(windows.connection);
    let mut streams = Streams::default();
    let why = loop {
        let accepted = tokio::select! {
            accepted = lane.accept_bi() => accepted,
            _ = session.control.closed() => {
                lane.close(CLOSED, b"the session has ended");
                break ConnectionError::LocallyClosed;
            }
        };
        let (mut send, mut receive) = match accepted {
            Ok(stream) => stream,
            Err(error) => break error,
        };
        let Some(place) = session.taken(&lane) else {
            // What was not taken in time has not happened.
            continue;
        };
        streams.make_room(&lane, &session, &quic, true);
        let (session, quic_of_stream) = (Arc::clone(&session), Arc::clone(&quic));
        quic.tracker.spawn(async move {
            let accepting = async {
                let mut first = [0];
                if receive.read_exact(&mut first).await.is_err() {
                    return;
                }
                match announced(first[0]) {
                    Announced::Class(class) if priority::is_bulk(class) => {
                        accept(&session, &quic_of_stream, class, (send, receive), place).await;
                    }
                    _ => {
                        debug!(peer = %session.peer, first = first[0], "the bulk lane carries nothing but bulk");
                        session.offend(&quic_of_stream, Unwelcome::Stream);
                        let _ = send.reset(REFUSED);
                    }
                }
            };
            if tokio::time::timeout(HELLO_TIMEOUT, accepting).await.is_err() {
                quic_of_stream.shared.refused.count(Unwelcome::Stream);
            }
        });
    };
    trace!(peer = %session.peer, %why, "bulk lane ended");
    if let Some(remembered) = congestion::remember(&lane, now()) {
        *lock(&session.remembered) = Some((lane.remote_address(), remembered));
    }
    session.bulk.send_if_modified(|bulk| {
        let ours = matches!(
            bulk,
            Bulk::Up(current) | Bulk::Resting(current) if current.stable_id() == lane.stable_id()
        );
        if ours {
            *bulk = Bulk::None;
        }
        ours
    });
}

async fn accept(
    session: &Session,
    quic: &Quic,
    class: Class,
    (send, receive): (SendStream, RecvStream),
    place: Place,
) {
    // Answers travel as urgently as what they answer. It fails where the stream has ended, which the first use tells.
    let _ = send.set_priority(priority::of(class));
    let usage = session.usage_of(priority::is_bulk(class)).channel(Some(place));
    let opened = session.opened(class, send, receive, usage);
    let accepting = quic
        .shared
        .acceptor
        .accept(session.peer, class, opened, &quic.shared);
    if accepting.await == Accepted::NotOurs {
        session.offend(quic, Unwelcome::Stream);
    }
}
