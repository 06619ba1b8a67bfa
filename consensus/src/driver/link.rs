//! The streams to the other members, kept open between messages, and what is known of who answers.
//!
//! A stream is taken out while it is used and put back when its exchange is whole. One whose exchange was
//! dropped half-way (openraft drops what takes too long) never comes back: the next answer on it would belong
//! to the wrong question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapwing_base::{NodeId, PeerId};
use lapwing_net::{ChannelError, Kind, Network, OpenError, ReceiveHalf, SendHalf};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{Reply, To};

/// What one node's raft uses to reach the others.
pub(crate) struct Link {
    pub(crate) network: Network,
    pub(crate) me: u64,
    idle: Mutex<BTreeMap<(u64, &'static str), Stream>>,
    contacts: Mutex<Contacts>,
}

/// One open stream.
pub(crate) struct Stream {
    pub(crate) send: SendHalf,
    pub(crate) receive: ReceiveHalf,
}

#[derive(Debug, Default)]
struct Contacts {
    /// Whether the last attempt to reach each one succeeded.
    answers: BTreeMap<u64, bool>,
    leader_heard_at: Option<Instant>,
}

/// An exchange with another member failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("raft's membership does not name the identity of n{0}")]
    Nameless(u64),
    #[error(transparent)]
    Open(Box<OpenError>),
    #[error(transparent)]
    Channel(Box<ChannelError>),
    #[error("the stream was closed before the answer")]
    Closed,
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    #[error("the answer cannot be read: {0}")]
    Garbled(#[from] lapwing_net::DecodeError),
    #[error("that peer is n{0} now")]
    OtherNode(u64),
    #[error("it answered: {0}")]
    Failed(String),
}

impl From<OpenError> for LinkError {
    fn from(error: OpenError) -> Self {
        Self::Open(Box::new(error))
    }
}

impl From<ChannelError> for LinkError {
    fn from(error: ChannelError) -> Self {
        Self::Channel(Box::new(error))
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(network: Network, me: u64) -> Self {
        Self {
            network,
            me,
            idle: Mutex::default(),
            contacts: Mutex::default(),
        }
    }

    /// A stream that is open already.
    pub(crate) fn take(&self, target: u64, kind: Kind) -> Option<Stream> {
        self.idle().remove(&(target, kind.name))
    }

    /// Opens a stream.
    pub(crate) async fn open(
        &self,
        target: u64,
        peer: Option<PeerId>,
        kind: Kind,
        timeout: Duration,
    ) -> Result<Stream, LinkError> {
        let peer = peer.ok_or(LinkError::Nameless(target))?;
        let (send, receive) = self.network.open(peer, kind, timeout).await?.split();
        Ok(Stream { send, receive })
    }

    /// Gives back a stream on which nothing is on the way.
    pub(crate) fn put(&self, target: u64, kind: Kind, stream: Stream) {
        self.idle().insert((target, kind.name), stream);
    }

    /// Closes the streams to all that are not among these.
    pub(crate) fn keep_only(&self, targets: &BTreeSet<u64>) {
        self.idle().retain(|(target, _), _| targets.contains(target));
        self.contacts()
            .answers
            .retain(|target, _| targets.contains(target));
    }

    /// Asks one question and waits for its answer. A stream that was idle may be dead by now; then a fresh one
    /// is tried at once: every question of raft may be asked twice.
    pub(crate) async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        target: u64,
        peer: Option<PeerId>,
        kind: Kind,
        question: Q,
        timeout: Duration,
    ) -> Result<A, LinkError> {
        let frame = lapwing_net::encode(&To {
            to: target,
            body: question,
        });
        let asking = async {
            if let Some(stream) = self.take(target, kind)
                && let Ok((answer, stream)) = exchange(stream, &frame).await
            {
                self.put(target, kind, stream);
                return Ok(answer);
            }
            let stream = self.open(target, peer, kind, timeout).await?;
            let (answer, stream) = exchange(stream, &frame).await?;
            self.put(target, kind, stream);
            Ok(answer)
        };
        let result = match tokio::time::timeout(timeout, asking).await {
            Ok(Ok(Reply::Done(answer))) => Ok(answer),
            Ok(Ok(Reply::NotMe(id))) => Err(LinkError::OtherNode(id)),
            Ok(Ok(Reply::Failed(why))) => Err(LinkError::Failed(why)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(LinkError::Timeout(timeout)),
        };
        self.note(target, result.is_ok());
        result
    }

    /// Notes whether a member answered.
    pub(crate) fn note(&self, target: u64, answered: bool) {
        self.contacts().answers.insert(target, answered);
    }

    /// Those among some members that did not answer when they were last asked.
    pub(crate) fn silent_among(&self, nodes: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
        let contacts = self.contacts();
        nodes
            .filter(|id| contacts.answers.get(&id.0) == Some(&false))
            .collect()
    }

    /// Notes a message from the present leader.
    pub(crate) fn leader_heard(&self, now: Instant) {
        self.contacts().leader_heard_at = Some(now);
    }

    /// When a leader was last heard.
    pub(crate) fn leader_heard_at(&self) -> Option<Instant> {
        self.contacts().leader_heard_at
    }

    // Both locks are held for single operations on maps, which leave them whole.
    fn idle(&self) -> MutexGuard<'_, BTreeMap<(u64, &'static str), Stream>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contacts(&self) -> MutexGuard<'_, Contacts> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn exchange<A: DeserializeOwned>(
    mut stream: Stream,
    frame: &[u8],
) -> Result<(Reply<A>, Stream), LinkError> {
    stream.send.send(frame).await?;
    let answer = stream.receive.receive().await?.ok_or(LinkError::Closed)?;
    Ok((lapwing_net::decode(&answer)?, stream))
}
