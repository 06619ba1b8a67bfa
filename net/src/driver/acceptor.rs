//! What happens to an inbound stream: hello, gate, queue, or a refusal that says why.
//!
//! Runs in the stream's own task, within its patience for a hello.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, trace};

use super::channel::Channel;
use super::frames::{FrameReader, FrameWriter, Incoming, ReadError};
use super::shared::{Shared, lock};
use super::stream::Opened;
use crate::{Access, Allowance, Gate, Hello, Kind, Refusal, Unwelcome};
use lapwing_base::{ByteSize, Class, PeerId};

/// A stream that has not said hello after this long is dropped.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams and messages that are none may happen, as between versions; a peer that goes on with them wants to keep us
/// busy.
pub(crate) const OFFENCES: Allowance = Allowance::new(64, Duration::from_secs(1));

/// Channels of one kind that one peer may have open with us at once.
pub(crate) const PER_PEER_AND_KIND_MAX: usize = 256;

/// The same for a peer that is no member: it joins, or finds out how it can be reached.
const PER_STRANGER_AND_KIND_MAX: usize = 8;

/// Inbound channels at once over all peers and kinds; each costs a few KiB until somebody reads it.
const CHANNELS_MAX: usize = 8192;

/// What became of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Accepted {
    /// It is a channel, or was told why not.
    Answered,
    /// It ended without having said anything whole.
    Ended,
    /// It is none of ours.
    NotOurs,
}

/// Knows who may open what, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Acceptor {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    gate: Gate,
    /// Whom a room has let in beside the members.
    guests: HashMap<PeerId, Guest>,
    served: HashMap<(Class, &'static str), Served>,
    seats: HashMap<(PeerId, Class, &'static str), usize>,
    seats_taken: usize,
}

#[derive(Debug)]
struct Served {
    kind: Kind,
    queue: mpsc::Sender<Channel>,
}

/// One inbound channel's place among those that are open; given back when the channel is gone.
#[derive(Debug)]
pub(crate) struct Seat {
    state: Arc<Mutex<State>>,
    key: (PeerId, Class, &'static str),
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.seats_taken = state.seats_taken.saturating_sub(1);
        if let Some(taken) = state.seats.get_mut(&self.key) {
            *taken -= 1;
            if *taken == 0 {
                state.seats.remove(&self.key);
            }
        }
    }
}

/// How many times a room has let somebody in, and wants their silence noticed at once.
#[derive(Debug, Default)]
struct Guest {
    welcomes: usize,
    watched: usize,
}

impl State {
    fn is_let_in(&self, peer: &PeerId) -> bool {
        self.gate.members.contains(peer) || self.guests.contains_key(peer)
    }
}

impl Acceptor {
    /// From now on channels of this kind go to the returned queue.
    pub(crate) fn serve(&self, kind: Kind, queue: usize) -> mpsc::Receiver<Channel> {
        let (sender, receiver) = mpsc::channel(queue.max(1));
        let served = Served { kind, queue: sender };
        lock(&self.state).served.insert((kind.class, kind.name), served);
        receiver
    }

    pub(crate) fn set_gate(&self, gate: Gate) {
        lock(&self.state).gate = gate;
    }

    pub(crate) fn gate(&self) -> Gate {
        lock(&self.state).gate.clone()
    }

    /// Whether a peer is let in further than a stranger: a member, or somebody's guest.
    pub(crate) fn is_let_in(&self, peer: &PeerId) -> bool {
        lock(&self.state).is_let_in(peer)
    }

    pub(crate) fn is_guest(&self, peer: &PeerId) -> bool {
        lock(&self.state).guests.contains_key(peer)
    }

    /// Whether somebody has let a peer in whose silence is to be noticed at once.
    pub(crate) fn is_watched_guest(&self, peer: &PeerId) -> bool {
        let state = lock(&self.state);
        state.guests.get(peer).is_some_and(|guest| guest.watched > 0)
    }

    /// The same, or that it is so by the gate.
    pub(crate) fn is_watched(&self, peer: &PeerId) -> bool {
        self.is_watched_guest(peer) || lock(&self.state).gate.watched.contains(peer)
    }

    /// Lets a peer in as a guest, watched or not.
    pub(crate) fn welcome(&self, peer: PeerId, watched: bool) {
        let mut state = lock(&self.state);
        let guest = state.guests.entry(peer).or_default();
        guest.welcomes += 1;
        guest.watched += usize::from(watched);
    }

    /// Takes one welcome back.
    pub(crate) fn dismiss(&self, peer: &PeerId, watched: bool) {
        let mut state = lock(&self.state);
        if let Some(guest) = state.guests.get_mut(peer) {
            guest.welcomes -= 1;
            guest.watched -= usize::from(watched);
            if guest.welcomes == 0 {
                state.guests.remove(peer);
            }
        }
    }

    /// How many members there are.
    pub(crate) fn members(&self) -> usize {
        lock(&self.state).gate.members.len()
    }

    /// Ends every queue.
    pub(crate) fn stop(&self) {
        lock(&self.state).served.clear();
    }

    /// Takes one stream through to its queue, or refuses it.
    pub(crate) async fn accept(
        &self,
        peer: PeerId,
        class: Class,
        opened: Opened,
        shared: &Shared,
    ) -> Accepted {
        let (reader, writer) = opened.stream.split();
        let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        let hello = match reader.next(ByteSize(Hello::SIZE_MAX as u64)).await {
            Ok(Some(Incoming::Frame(bytes))) => bytes,
            Ok(None) | Err(ReadError::Io(_)) => return Accepted::Ended,
            other => {
                debug!(%peer, %class, ?other, "a stream did not begin with a hello");
                return Accepted::NotOurs;
            }
        };
        let verdict = match Hello::parse(&hello) {
            Ok(hello) => self.admit(peer, class, &hello),
            Err(error) => {
                debug!(%peer, %class, %error, "a stream began with a hello that is not ours");
                match error.refusal() {
                    Some(refusal) => Err(refusal),
                    None => return Accepted::NotOurs,
                }
            }
        };
        match verdict {
            Ok((kind, seat, place)) => {
                trace!(%peer, %kind, "channel accepted");
                place.send(Channel::new(
                    peer,
                    kind,
                    reader,
                    writer,
                    opened.usage,
                    Some(seat),
                    shared,
                ));
            }
            Err(refusal) => {
                debug!(%peer, %class, ?refusal, "channel refused");
                shared.refused.count(Unwelcome::Channel);
                // The opener may be gone already.
                let _ = writer.refuse(refusal).await;
            }
        }
        Accepted::Answered
    }

    fn admit(
        &self,
        peer: PeerId,
        class: Class,
        hello: &Hello,
    ) -> Result<(Kind, Seat, mpsc::OwnedPermit<Channel>), Refusal> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let served = state
            .served
            .iter()
            .find(|((served_class, name), _)| *served_class == class && *name == hello.name)
            .map(|(_, served)| served)
            .ok_or(Refusal::NotServed)?;
        let kind = served.kind;
        if kind.access != Access::Guests || !state.guests.contains_key(&peer) {
            state.gate.admit(&peer, hello, kind.access)?;
        }
        let place = match served.queue.clone().try_reserve_owned() {
            Ok(place) => place,
            Err(mpsc::error::TrySendError::Full(_)) => return Err(Refusal::Busy),
            // Nobody listens any more.
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Refusal::NotServed),
        };
        let key = (peer, class, kind.name);
        let taken = state.seats.get(&key).copied().unwrap_or(0);
        let max = if state.is_let_in(&peer) {
            PER_PEER_AND_KIND_MAX
        } else {
            PER_STRANGER_AND_KIND_MAX
        };
        if taken >= max || state.seats_taken >= CHANNELS_MAX {
            return Err(Refusal::Busy);
        }
        state.seats.insert(key, taken + 1);
        state.seats_taken += 1;
        let seat = Seat {
            state: Arc::clone(&self.state),
            key,
        };
        Ok((kind, seat, place))
    }
}
