//! Short messages between nodes about how they reach each other: over ordinary channels, one message each.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::trace;

use super::channel::{Channel, ChannelError};
use super::links::Link;
use super::network::{RequestError, open, open_over, request};
use super::shared::Shared;
use crate::{Access, Kind, PunchMessage, Token, Unwelcome, WitnessMessage, decode, encode};
use lapwing_base::{ByteSize, Class, PeerId};

/// Agreements to punch.
pub(crate) const PUNCH: Kind = Kind {
    class: Class::Control,
    name: "punch",
    access: Access::Members,
    frame_max: ByteSize(PunchMessage::SIZE_MAX as u64),
};

/// Checks of reachability. Nodes find out what they are before they join.
pub(crate) const WITNESS: Kind = Kind {
    class: Class::Control,
    name: "witness",
    access: Access::Anyone,
    frame_max: ByteSize(WitnessMessage::SIZE_MAX as u64),
};

/// Asks a relay where it sees a peer's packets come from; answered with IP addresses.
pub(crate) const WHERE: Kind = Kind {
    class: Class::Control,
    name: "where",
    access: Access::Members,
    frame_max: ByteSize(128),
};

/// Tells a relay by which token the beacons are known that come to it over the other address family.
pub(crate) const BEACON: Kind = Kind {
    class: Class::Control,
    name: "beacon",
    access: Access::Members,
    frame_max: ByteSize(32),
};

/// Of each kind, waiting to be taken: more of them are refused, and sent again if they matter.
pub(crate) const QUEUE: usize = 64;

/// Of each kind, being read or answered at the same time.
const AT_ONCE: usize = 64;

/// Addresses that a relay may see one peer at: one of each family.
const SEEN_MAX: usize = 2;

/// A message that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A message that has come.
#[derive(Debug)]
pub(crate) enum Note {
    Punch(PeerId, PunchMessage),
    Witness(PeerId, WitnessMessage),
}

/// The queues of the kinds above.
#[derive(Debug)]
pub(crate) struct Inboxes {
    punch: mpsc::Receiver<Channel>,
    witness: mpsc::Receiver<Channel>,
    places: mpsc::Receiver<Channel>,
    beacons: mpsc::Receiver<Channel>,
}

impl Inboxes {
    pub(crate) fn open(shared: &Shared) -> Self {
        let serve = |kind| shared.acceptor.serve(kind, QUEUE);
        Self {
            punch: serve(PUNCH),
            witness: serve(WITNESS),
            places: serve(WHERE),
            beacons: serve(BEACON),
        }
    }
}

/// Reads what comes and hands it to the driver, and answers what needs no driver, until the queues end. Each kind has
/// its own places, since strangers may fill those of one.
pub(crate) async fn take(shared: Arc<Shared>, inboxes: Inboxes, notes: mpsc::Sender<Note>) {
    let Inboxes {
        punch,
        witness,
        places,
        beacons,
    } = inboxes;
    tokio::join!(
        each(punch, |channel| read(channel, notes.clone(), Arc::clone(&shared))),
        each(witness, |channel| read(
            channel,
            notes.clone(),
            Arc::clone(&shared)
        )),
        each(places, |channel| answer(channel, Arc::clone(&shared))),
        each(beacons, |channel| look_out(channel, Arc::clone(&shared))),
    );
}

async fn each<F>(mut inbox: mpsc::Receiver<Channel>, handle: impl Fn(Channel) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut handling = JoinSet::new();
    loop {
        tokio::select! {
            channel = inbox.recv(), if handling.len() < AT_ONCE => match channel {
                Some(channel) => drop(handling.spawn(handle(channel))),
                None => break,
            },
            Some(_) = handling.join_next() => (),
        }
    }
}

async fn read(mut channel: Channel, notes: mpsc::Sender<Note>, shared: Arc<Shared>) {
    let (peer, kind) = (channel.peer(), channel.kind());
    let Ok(Ok(Some(frame))) = tokio::time::timeout(PATIENCE, channel.receive()).await else {
        trace!(%peer, %kind, "a message did not come");
        return;
    };
    let note = if kind == PUNCH {
        PunchMessage::parse(&frame).map(|message| Note::Punch(peer, message))
    } else {
        WitnessMessage::parse(&frame).map(|message| Note::Witness(peer, message))
    };
    match note {
        // The driver is gone when it does not take it.
        Ok(note) => drop(notes.send(note).await),
        Err(error) => {
            trace!(%peer, %kind, %error, "a message is not understood");
            shared.refused.count(Unwelcome::Message);
        }
    }
}

async fn answer(mut channel: Channel, shared: Arc<Shared>) {
    let peer = channel.peer();
    let answering = async {
        let Some(frame) = channel.receive().await? else {
            return Ok(());
        };
        let Ok(asked) = decode::<PeerId>(&frame) else {
            shared.refused.count(Unwelcome::Message);
            return Ok(());
        };
        channel.send(&encode(&shared.seen_at(&asked))).await?;
        channel.finish().await
    };
    let answered: Result<Result<(), ChannelError>, _> = tokio::time::timeout(PATIENCE, answering).await;
    if !matches!(answered, Ok(Ok(()))) {
        trace!(%peer, "a question was not answered");
    }
}

/// Takes in by which token a member's beacons are known.
async fn look_out(mut channel: Channel, shared: Arc<Shared>) {
    let peer = channel.peer();
    let Ok(Ok(Some(frame))) = tokio::time::timeout(PATIENCE, channel.receive()).await else {
        trace!(%peer, "an announcement did not come");
        return;
    };
    match decode::<Token>(&frame) {
        Ok(token) => shared.lookouts().announced(peer, &token),
        Err(error) => {
            trace!(%peer, %error, "an announcement is not understood");
            shared.refused.count(Unwelcome::Message);
        }
    }
}

/// Says something to a peer over whatever link stands.
pub(crate) async fn tell(shared: Arc<Shared>, peer: PeerId, kind: Kind, body: Vec<u8>) {
    let telling = async {
        let mut channel = open(&shared, peer, kind, PATIENCE).await?;
        channel.send(&body).await?;
        channel.finish().await?;
        Ok::<_, RequestError>(())
    };
    if let Err(error) = telling.await {
        trace!(%peer, %kind, %error, "a message was not sent");
    }
}

/// Says something to a peer over this link.
pub(crate) async fn tell_over(shared: Arc<Shared>, link: Link, kind: Kind, body: Vec<u8>) {
    let peer = link.peer();
    let telling = async {
        let mut channel = open_over(&shared, &link, kind)
            .await
            .map_err(|source| ChannelError::Lost { peer, kind, source })?;
        channel.send(&body).await?;
        channel.finish().await
    };
    match tokio::time::timeout(PATIENCE, telling).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => trace!(%peer, %kind, %error, "a message was not sent"),
        Err(_) => trace!(%peer, %kind, "a message was not sent in time"),
    }
}

/// Where a relay sees a peer's packets come from.
pub(crate) async fn ask_where(shared: &Arc<Shared>, relay: PeerId, peer: PeerId) -> Vec<IpAddr> {
    let asked = request(shared, relay, WHERE, &encode(&peer), PATIENCE).await;
    let mut seen: Vec<IpAddr> = asked
        .ok()
        .and_then(|answer| decode(&answer).ok())
        .unwrap_or_default();
    seen.truncate(SEEN_MAX);
    seen
}
