//! What this member does for the others: takes entries, votes, snapshots, wishes and proposals.
//!
//! Every body is decoded strictly and checked before raft sees it, since openraft takes a contradiction for a
//! fault of its own. Who may ask at all has been decided by the network's gate.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use lapwing_base::{NodeId, PeerId, Term};
use lapwing_net::{Channel, Kind, ReceiveHalf};
use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, RaftError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::consensus::Inner;
use super::snapshot_files::{SNAPSHOT_MAX, Snapshot};
use super::types::LogId;
use super::wire::{
    APPEND, Append, Appended, Ask, Ballot, BallotAnswer, HEARTBEAT, JOIN, JoinAnswer, JoinAttempt, LEADER,
    Reply, SNAPSHOT, SnapshotHeader, To, Told, VOTE,
};
use crate::{Applied, Command, JoinAccepted, JoinRequest, Request};

/// Streams that wait to be taken up: each is taken up at once, so this only bridges a busy moment.
const QUEUE_MAX: usize = 64;

/// Streams that are served at a time, over all kinds: three for each of some hundred followers, and room for
/// questions. What comes on top waits, and is told that we are busy when the queue is full as well.
const STREAMS_MAX: usize = 1024;

/// How long a stream may be silent within a question.
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the leader takes to make sure that it still leads, and to commit what a joiner needs.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The services of one member.
pub(super) struct Services {
    append: mpsc::Receiver<Channel>,
    heartbeat: mpsc::Receiver<Channel>,
    vote: mpsc::Receiver<Channel>,
    snapshot: mpsc::Receiver<Channel>,
    leader: mpsc::Receiver<Channel>,
    join: mpsc::Receiver<Channel>,
}

impl Services {
    /// Announces the services.
    pub(super) fn open(network: &lapwing_net::Network) -> Self {
        let serve = |kind: Kind| network.serve(kind, QUEUE_MAX);
        Self {
            append: serve(APPEND),
            heartbeat: serve(HEARTBEAT),
            vote: serve(VOTE),
            snapshot: serve(SNAPSHOT),
            leader: serve(LEADER),
            join: serve(JOIN),
        }
    }

    /// Takes up streams until the member stops, each on a task of the member's tracker.
    pub(super) async fn run(mut self, inner: Arc<Inner>) {
        let slots = Arc::new(Semaphore::new(STREAMS_MAX));
        loop {
            let slot = tokio::select! {
                biased;
                () = inner.stop.cancelled() => return,
                slot = slots.clone().acquire_owned() => slot,
            };
            let Ok(slot) = slot else { return };
            let channel = tokio::select! {
                biased;
                () = inner.stop.cancelled() => return,
                Some(channel) = self.vote.recv() => channel,
                Some(channel) = self.heartbeat.recv() => channel,
                Some(channel) = self.append.recv() => channel,
                Some(channel) = self.leader.recv() => channel,
                Some(channel) = self.join.recv() => channel,
                Some(channel) = self.snapshot.recv() => channel,
                else => return,
            };
            let task = {
                let inner = inner.clone();
                async move {
                    let stop = inner.stop.clone();
                    let peer = channel.peer();
                    let kind = channel.kind().name;
                    let served = stop.run_until_cancelled(serve(&inner, channel)).await;
                    if let Some(Err(error)) = served {
                        tracing::debug!(%peer, kind, %error, "a stream ended early");
                    }
                    drop(slot);
                }
            };
            inner.tasks.spawn(task);
        }
    }
}

/// Why a stream was given up.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Channel(#[from] lapwing_net::ChannelError),
    #[error("a frame cannot be read: {0}")]
    Garbled(#[from] lapwing_net::DecodeError),
    #[error("{0}")]
    Misbehaved(String),
    #[error("the peer was silent for {FRAME_TIMEOUT:?}")]
    Silent,
}

async fn serve(inner: &Arc<Inner>, channel: Channel) -> Result<(), ServeError> {
    match channel.kind().name {
        name if name == APPEND.name || name == HEARTBEAT.name => serve_append(inner, channel).await,
        name if name == VOTE.name => serve_vote(inner, channel).await,
        name if name == SNAPSHOT.name => serve_snapshot(inner, channel).await,
        name if name == LEADER.name => serve_leader(inner, channel).await,
        _ => serve_join(inner, channel).await,
    }
}

/// Entries and heartbeats: handed to raft as they come, answered in order.
async fn serve_append(inner: &Arc<Inner>, channel: Channel) -> Result<(), ServeError> {
    let (mut send, receive) = channel.split();
    let ended = Arc::new(Mutex::new(None));
    let appends = futures::stream::unfold(
        (receive, inner.link.me, ended.clone()),
        |(mut receive, me, ended)| async move {
            match next_append(&mut receive, me).await {
                Ok(Some(append)) => Some((append, (receive, me, ended))),
                Ok(None) => None,
                Err(reply) => {
                    *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
                    None
                }
            }
        },
    );
    let appends = Box::pin(appends).take_until(inner.stop.clone().cancelled_owned());
    let mut answers = std::pin::pin!(inner.raft.stream_append(appends));
    while let Some(answer) = answers.next().await {
        let reply = match answer {
            Ok(answer) => {
                if answer.is_ok() {
                    inner.link.leader_heard(super::now());
                }
                Reply::Done(answer)
            }
            Err(fatal) => Reply::Failed(fatal.to_string()),
        };
        send.send(&lapwing_net::encode(&reply)).await?;
    }
    let ended = ended.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(reply) = ended {
        send.send(&lapwing_net::encode(&reply)).await?;
    }
    Ok(send.finish().await?)
}

async fn next_append(receive: &mut ReceiveHalf, me: u64) -> Result<Option<Append>, Reply<Appended>> {
    let Ok(Some(frame)) = receive.receive().await else {
        return Ok(None);
    };
    let To { to, body: append } =
        lapwing_net::decode::<To<Append>>(&frame).map_err(|error| Reply::Failed(error.to_string()))?;
    if to != me {
        return Err(Reply::NotMe(me));
    }
    check_append(&append).map_err(Reply::Failed)?;
    Ok(Some(append))
}

/// What a leader that follows the protocol sends: entries one after another, none newer than its term.
fn check_append(append: &Append) -> Result<(), String> {
    if !append.vote.committed {
        return Err("entries come from a leader, not from a candidate".to_owned());
    }
    let mut last = append.prev_log_id;
    for entry in &append.entries {
        let follows = match last {
            Some(last) => entry.log_id.index == last.index + 1 && entry.log_id.leader_id >= last.leader_id,
            None => entry.log_id.index == 0,
        };
        if !follows {
            return Err(format!("entry {} does not follow", entry.log_id));
        }
        last = Some(entry.log_id);
    }
    if last.is_some_and(|last| last.leader_id.term > append.vote.leader_id.term) {
        return Err("the last entry is newer than its leader".to_owned());
    }
    Ok(())
}

async fn serve_vote(inner: &Arc<Inner>, mut channel: Channel) -> Result<(), ServeError> {
    while let Some(frame) = channel.receive().await? {
        let To { to, body: ballot } = lapwing_net::decode::<To<Ballot>>(&frame)?;
        let reply = if to == inner.link.me {
            match removed_candidate(inner, &ballot) {
                Some(id) => Reply::Failed(format!("{id} was removed")),
                None => cast(inner, ballot).await,
            }
        } else {
            Reply::NotMe(inner.link.me)
        };
        channel.send(&lapwing_net::encode(&reply)).await?;
    }
    Ok(channel.finish().await?)
}

/// Whoever stands for election although the log says that it is removed: its stream may be older than that.
/// One that we have not heard of is another matter, since our log may be behind.
fn removed_candidate(inner: &Inner, ballot: &Ballot) -> Option<NodeId> {
    let candidate = match ballot {
        Ballot::Vote(request) | Ballot::PreVote(request) => NodeId(request.vote.leader_id.voted_for),
        Ballot::TransferLeader(_) => return None,
    };
    inner.state.borrow().was_removed(candidate).then_some(candidate)
}

async fn cast(inner: &Inner, ballot: Ballot) -> Reply<BallotAnswer> {
    let answer = match ballot {
        Ballot::Vote(request) => inner
            .raft
            .vote(request)
            .await
            .map(BallotAnswer::Vote)
            .map_err(|error| error.to_string()),
        Ballot::PreVote(request) => inner
            .raft
            .pre_vote(request)
            .await
            .map(BallotAnswer::Vote)
            .map_err(|error| error.to_string()),
        Ballot::TransferLeader(request) => inner
            .raft
            .handle_transfer_leader(request)
            .await
            .map(BallotAnswer::TransferLeader)
            .map_err(|error| error.to_string()),
    };
    match answer {
        Ok(answer) => Reply::Done(answer),
        Err(why) => Reply::Failed(why),
    }
}

async fn serve_snapshot(inner: &Arc<Inner>, mut channel: Channel) -> Result<(), ServeError> {
    let To { to, body: header } = frame::<To<SnapshotHeader>>(&mut channel).await?;
    let reply = if to == inner.link.me {
        // One at a time: each may be as large as a snapshot is allowed to be.
        match inner.receiving.acquire().await {
            Ok(_turn) => install(inner, &mut channel, header).await?,
            Err(_) => Reply::Failed("this node stops".to_owned()),
        }
    } else {
        Reply::NotMe(inner.link.me)
    };
    answer(&mut channel, &reply).await
}

async fn install(
    inner: &Inner,
    channel: &mut Channel,
    header: SnapshotHeader,
) -> Result<Reply<super::types::Vote>, ServeError> {
    let size = usize::try_from(header.size).unwrap_or(usize::MAX);
    if size > SNAPSHOT_MAX {
        return Err(ServeError::Misbehaved(format!(
            "a snapshot of {size} bytes is too large"
        )));
    }
    let mut bytes = BytesMut::new();
    while bytes.len() < size {
        let chunk = next_frame(channel)
            .await?
            .ok_or_else(|| ServeError::Misbehaved("the snapshot ended early".to_owned()))?;
        if chunk.is_empty() || bytes.len() + chunk.len() > size {
            return Err(ServeError::Misbehaved(
                "the snapshot is not as long as it said".to_owned(),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    let bytes: Bytes = bytes.freeze();
    let snapshot = Snapshot::decode(&bytes).map_err(|error| ServeError::Misbehaved(error.to_string()))?;
    let newer = |last: LogId| last.leader_id.term > header.vote.leader_id.term;
    if snapshot.meta != header.meta || !header.vote.committed || header.meta.last_log_id.is_some_and(newer) {
        return Err(ServeError::Misbehaved(
            "the snapshot is not what its header says".to_owned(),
        ));
    }
    // openraft refuses by a panic what contradicts our own log; a snapshot that is not newer is no news.
    let applied = inner.state.borrow().applied;
    let is_news = header
        .meta
        .last_log_id
        .is_some_and(|last| applied.0 == 0 || last.index > applied.0);
    if !is_news {
        return Ok(Reply::Done(header.vote));
    }
    let installed = inner
        .raft
        .install_full_snapshot(
            header.vote,
            openraft::Snapshot {
                meta: header.meta,
                snapshot: bytes,
            },
        )
        .await;
    Ok(match installed {
        Ok(response) => Reply::Done(response.vote),
        Err(fatal) => Reply::Failed(fatal.to_string()),
    })
}

async fn serve_leader(inner: &Arc<Inner>, mut channel: Channel) -> Result<(), ServeError> {
    let told = match frame::<Ask>(&mut channel).await? {
        Ask::Propose { request, wait_ms } => {
            let wait = Duration::from_millis(wait_ms.into()).min(PROPOSAL_WAIT_MAX);
            inner.commit(request, wait).await
        }
        Ask::ReadIndex => inner.read_index().await,
        Ask::TransferLeader(to) => inner.hand_over(to).await,
    };
    answer(&mut channel, &told).await
}

/// The longest that a proposal of another member may occupy one of our streams.
const PROPOSAL_WAIT_MAX: Duration = Duration::from_secs(10);

async fn serve_join(inner: &Arc<Inner>, mut channel: Channel) -> Result<(), ServeError> {
    let peer = channel.peer();
    let attempt = frame::<JoinAttempt>(&mut channel).await?;
    let told = match timeout(JOIN_TIMEOUT, inner.admit(peer, attempt)).await {
        Ok(told) => told,
        Err(_) => JoinAnswer::NotLeader { leader: None },
    };
    answer(&mut channel, &told).await
}

async fn next_frame(channel: &mut Channel) -> Result<Option<Bytes>, ServeError> {
    match timeout(FRAME_TIMEOUT, channel.receive()).await {
        Ok(frame) => Ok(frame?),
        Err(_) => Err(ServeError::Silent),
    }
}

async fn frame<T: DeserializeOwned>(channel: &mut Channel) -> Result<T, ServeError> {
    let frame = next_frame(channel)
        .await?
        .ok_or_else(|| ServeError::Misbehaved("the stream ended without a question".to_owned()))?;
    Ok(lapwing_net::decode(&frame)?)
}

async fn answer<T: Serialize + Sync>(channel: &mut Channel, answer: &T) -> Result<(), ServeError> {
    channel.send(&lapwing_net::encode(answer)).await?;
    Ok(channel.finish().await?)
}

impl Inner {
    /// Commits a request, if this node leads.
    pub(super) async fn commit(&self, request: Request, wait: Duration) -> Told {
        match timeout(wait, self.raft.client_write(request)).await {
            Ok(Ok(response)) => Told::Applied(response.data),
            Ok(Err(RaftError::Fatal(fatal))) => Told::Failed(fatal.to_string()),
            // The proposer asks again with the same id, so an entry whose fate is unknown does no harm.
            Ok(Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(_)
                | ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            )))
            | Err(_) => self.not_leader(),
        }
    }

    /// Makes sure that this node leads, and says up to where reads must see the log.
    pub(super) async fn read_index(&self) -> Told {
        match timeout(JOIN_TIMEOUT, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await {
            Ok(Ok(read)) => Told::ReadIndex(Some(*read.log_id())),
            Ok(Err(RaftError::Fatal(fatal))) => Told::Failed(fatal.to_string()),
            Ok(Err(RaftError::APIError(_))) | Err(_) => self.not_leader(),
        }
    }

    /// Hands over the lead.
    pub(super) async fn hand_over(&self, to: NodeId) -> Told {
        if !self.raft.is_leader() {
            return self.not_leader();
        }
        match self.raft.trigger().transfer_leader(to.0).await {
            Ok(()) => Told::Done,
            Err(fatal) => Told::Failed(fatal.to_string()),
        }
    }

    fn not_leader(&self) -> Told {
        Told::NotLeader {
            leader: self.other_leader(),
        }
    }

    /// The leader's identity and addresses, unless that is this node itself.
    pub(super) fn other_leader(&self) -> Option<(PeerId, Vec<lapwing_base::Multiaddr>)> {
        let leader = self.status.borrow().leader.filter(|leader| *leader != self.id)?;
        let state = self.state.borrow();
        let member = state.members.get(&leader)?;
        Some((member.peer, member.addrs.clone()))
    }

    /// Lets a peer in, or back in.
    async fn admit(&self, peer: PeerId, attempt: JoinAttempt) -> JoinAnswer {
        if !self.raft.is_leader() {
            return JoinAnswer::NotLeader {
                leader: self.other_leader(),
            };
        }
        if !*self.admission.borrow() {
            return JoinAnswer::NotOpenYet;
        }
        // What the applied state says about this peer must be what the cluster says.
        if !matches!(self.read_index().await, Told::ReadIndex(_)) {
            return JoinAnswer::NotLeader {
                leader: self.other_leader(),
            };
        }
        let JoinAttempt { id, request } = attempt;
        let JoinRequest {
            peer: _,
            name,
            addrs,
            role,
            known,
        } = request;
        let command = match known {
            Some((_, cluster)) if cluster != self.cluster => return JoinAnswer::WrongCluster(self.cluster),
            Some((id, _)) => {
                let member = self.state.borrow().members.get(&id).cloned();
                let Some(member) = member.filter(|member| member.peer == peer) else {
                    return JoinAnswer::Removed;
                };
                if (&member.name, &member.addrs, member.role) == (&name, &addrs, role) {
                    return self.accepted(id);
                }
                Command::Update {
                    id,
                    addrs,
                    name,
                    role,
                }
            }
            None => Command::Join {
                peer,
                name,
                addrs,
                role,
            },
        };
        match (self.commit(Request { id, command }, JOIN_TIMEOUT).await, known) {
            (Told::Applied(Applied::Joined(id)), _) => self.accepted(id),
            (Told::Applied(Applied::Done), Some((id, _))) => self.accepted(id),
            (Told::Applied(Applied::Refused(reason)), _) => JoinAnswer::Refused(reason.to_string()),
            (Told::NotLeader { leader }, _) => JoinAnswer::NotLeader { leader },
            (Told::Failed(why), _) => JoinAnswer::Refused(why),
            (Told::Applied(_) | Told::Done | Told::ReadIndex(_), _) => JoinAnswer::NotLeader { leader: None },
        }
    }

    fn accepted(&self, id: NodeId) -> JoinAnswer {
        let state = self.state.borrow();
        JoinAnswer::Accepted(JoinAccepted {
            id,
            cluster: self.cluster,
            term: Term(self.status.borrow().term.0),
            members: state.members.values().cloned().collect(),
            leader: self.id,
        })
    }
}
