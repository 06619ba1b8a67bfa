//! Raft's messages to the other members, behind openraft's traits.
//!
//! Appends are pipelined: several are on the way on one stream, answered in order. Heartbeats, ballots and
//! snapshots have streams of their own. What the other side does with them is in `serve.rs`.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use lapwing_base::PeerId;
use lapwing_net::{ChannelError, Kind, ReceiveHalf, SendHalf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, alias};
use tokio::time::{Instant, timeout, timeout_at};

use super::link::{Link, LinkError, Stream};
use super::types::{LogId, RaftNode, TypeConfig, Vote};
use super::wire::{
    APPEND, Append, Appended, Ballot, BallotAnswer, CHUNK_SIZE, HEARTBEAT, Reply, SNAPSHOT, SnapshotHeader,
    To, VOTE,
};

/// Appends that are on the way to one follower at a time: a round trip's worth at the rate that one disk
/// syncs. openraft's own pipeline on the other side takes 64.
const ON_THE_WAY_MAX: usize = 16;

/// How long an append may take, from the disk of a busy follower and back. openraft suggests a heartbeat's
/// length, which a sync on a busy disk may exceed.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one chunk of a snapshot may take to be taken.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the other side may take to write a whole snapshot.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes clients for the other members.
#[derive(Clone, Debug)]
pub(crate) struct RaftNetwork {
    pub(crate) link: Arc<Link>,
}

/// What reaches one other member.
#[derive(Debug)]
pub(crate) struct RaftClient {
    link: Arc<Link>,
    target: u64,
    peer: Option<PeerId>,
    kind: Kind,
}

impl RaftNetwork {
    fn client(&self, target: u64, node: &RaftNode, kind: Kind) -> RaftClient {
        RaftClient {
            link: self.link.clone(),
            target,
            peer: node.peer,
            kind,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for RaftNetwork {
    type Network = RaftClient;

    async fn new_client(&mut self, target: u64, node: &RaftNode) -> RaftClient {
        self.client(target, node, APPEND)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &RaftNode) -> RaftClient {
        self.client(target, node, HEARTBEAT)
    }
}

impl RaftClient {
    async fn ballot(
        &self,
        ballot: Ballot,
        action: RPCTypes,
        option: &RPCOption,
    ) -> Result<BallotAnswer, RPCError<TypeConfig>> {
        let ttl = option.soft_ttl();
        self.link
            .ask(self.target, self.peer, VOTE, ballot, ttl)
            .await
            .map_err(|error| self.rpc_error(&error, action))
    }

    fn rpc_error(&self, error: &LinkError, action: RPCTypes) -> RPCError<TypeConfig> {
        match error {
            LinkError::Timeout(timeout) => RPCError::Timeout(Timeout {
                action,
                id: self.link.me,
                target: self.target,
                timeout: *timeout,
            }),
            // Nothing to gain from trying again at once.
            LinkError::Nameless(_) | LinkError::Open(_) | LinkError::OtherNode(_) | LinkError::Failed(_) => {
                RPCError::Unreachable(Unreachable::new(error))
            }
            LinkError::Channel(refused) if refused.refusal().is_some() => {
                RPCError::Unreachable(Unreachable::new(error))
            }
            LinkError::Channel(_) | LinkError::Closed | LinkError::Garbled(_) => {
                RPCError::Network(NetworkError::new(error))
            }
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: alias::SnapshotOf<TypeConfig, Bytes>,
    ) -> Result<SnapshotResponse<TypeConfig>, LinkError> {
        let mut stream = self
            .link
            .open(self.target, self.peer, SNAPSHOT, CHUNK_TIMEOUT)
            .await?;
        let header = lapwing_net::encode(&To {
            to: self.target,
            body: SnapshotHeader {
                vote,
                meta: snapshot.meta,
                size: snapshot.snapshot.len() as u64,
            },
        });
        for chunk in std::iter::once(header.as_slice()).chain(snapshot.snapshot.chunks(CHUNK_SIZE)) {
            match timeout(CHUNK_TIMEOUT, stream.send.send(chunk)).await {
                Ok(sent) => sent?,
                Err(_) => return Err(LinkError::Timeout(CHUNK_TIMEOUT)),
            }
        }
        stream.send.finish().await?;
        let answer = match timeout(INSTALL_TIMEOUT, stream.receive.receive()).await {
            Ok(answer) => answer?.ok_or(LinkError::Closed)?,
            Err(_) => return Err(LinkError::Timeout(INSTALL_TIMEOUT)),
        };
        match lapwing_net::decode::<Reply<Vote>>(&answer)? {
            Reply::Done(vote) => Ok(SnapshotResponse::new(vote)),
            Reply::NotMe(id) => Err(LinkError::OtherNode(id)),
            Reply::Failed(why) => Err(LinkError::Failed(why)),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for RaftClient {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let one = futures::stream::iter([rpc]);
        let mut answers = self.stream_append(one, option).await?;
        match answers.next().await {
            Some(answer) => Ok(answer?.into()),
            None => Err(RPCError::Network(NetworkError::new(&LinkError::Closed))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let stream = match self.link.take(self.target, self.kind) {
                Some(stream) => stream,
                None => {
                    let opened = self
                        .link
                        .open(self.target, self.peer, self.kind, APPEND_TIMEOUT)
                        .await;
                    opened.map_err(|error| {
                        self.link.note(self.target, false);
                        self.rpc_error(&error, RPCTypes::AppendEntries)
                    })?
                }
            };
            let Stream { send, receive } = stream;
            let pipeline = Pipeline {
                client: self,
                input: Some(input),
                send,
                receiving: Receiving::Idle(receive),
                sent: VecDeque::new(),
                deadline: super::timer_now() + APPEND_TIMEOUT,
            };
            let answers = futures::stream::unfold(Some(pipeline), |pipeline| async move {
                let pipeline = pipeline?;
                pipeline.next().await
            });
            Ok(answers.boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        vote_of(self.ballot(Ballot::Vote(rpc), RPCTypes::Vote, &option).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        vote_of(self.ballot(Ballot::PreVote(rpc), RPCTypes::Vote, &option).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: alias::SnapshotOf<TypeConfig, Bytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => {
                self.link.note(self.target, sent.is_ok());
                sent.map_err(|error| self.rpc_error(&error, RPCTypes::InstallSnapshot).into())
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self
            .ballot(Ballot::TransferLeader(request), RPCTypes::TransferLeader, &option)
            .await?
        {
            BallotAnswer::TransferLeader(response) => Ok(response),
            BallotAnswer::Vote(_) => Err(RPCError::Network(NetworkError::from_string(
                "the answer is to another question",
            ))),
        }
    }
}

fn vote_of(answer: BallotAnswer) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
    match answer {
        BallotAnswer::Vote(response) => Ok(response),
        BallotAnswer::TransferLeader(_) => Err(RPCError::Network(NetworkError::from_string(
            "the answer is to another question",
        ))),
    }
}

/// Appends on the way on one stream. It gives the stream back when all are answered and none will follow.
struct Pipeline<'s, S> {
    client: &'s RaftClient,
    input: Option<S>,
    send: SendHalf,
    receiving: Receiving,
    sent: VecDeque<Sent>,
    /// When the oldest must be answered.
    deadline: Instant,
}

/// The range of one append on the way.
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
}

type Received = (ReceiveHalf, Result<Option<Bytes>, ChannelError>);

/// A frame is awaited by one future from its beginning to its end: a half-read frame must not be lost when
/// the next append is ready to be sent.
enum Receiving {
    Idle(ReceiveHalf),
    Waiting(BoxFuture<'static, Received>),
    Gone,
}

impl Receiving {
    async fn frame(&mut self) -> Result<Option<Bytes>, ChannelError> {
        if let Self::Idle(_) = self
            && let Self::Idle(mut half) = std::mem::replace(self, Self::Gone)
        {
            *self = Self::Waiting(Box::pin(async move {
                let frame = half.receive().await;
                (half, frame)
            }));
        }
        let Self::Waiting(waiting) = self else {
            return Ok(None);
        };
        let (half, frame) = waiting.await;
        *self = Self::Idle(half);
        frame
    }
}

type Answer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl<S> Pipeline<'_, S>
where
    S: futures::Stream<Item = Append> + Unpin,
{
    /// The next answer; with `None` beside it, it is the last one.
    async fn next(mut self) -> Option<(Answer, Option<Self>)> {
        match self.turn().await {
            Ok(Some(Ok(answer))) => {
                self.client.link.note(self.client.target, true);
                // After a conflict or a higher vote nothing that is on the way counts.
                let more = answer.is_ok().then_some(self);
                Some((Ok(answer), more))
            }
            Ok(Some(Err(error))) | Err(error) => {
                self.client.link.note(self.client.target, false);
                let error = self.client.rpc_error(&error, RPCTypes::AppendEntries);
                Some((Err(error), None))
            }
            Ok(None) => {
                let Self {
                    client,
                    send,
                    receiving,
                    ..
                } = self;
                if let Receiving::Idle(receive) = receiving {
                    client
                        .link
                        .put(client.target, client.kind, Stream { send, receive });
                }
                None
            }
        }
    }

    /// Sends and receives until there is an answer, or nothing to wait for.
    async fn turn(&mut self) -> Result<Option<Result<Appended, LinkError>>, LinkError> {
        loop {
            if self.input.is_none() && self.sent.is_empty() {
                return Ok(None);
            }
            let may_send = self.sent.len() < ON_THE_WAY_MAX;
            let awaits = !self.sent.is_empty();
            let deadline = self.deadline;
            let next_input = async {
                match &mut self.input {
                    Some(input) if may_send => input.next().await,
                    _ => std::future::pending().await,
                }
            };
            let next_answer = async {
                if awaits {
                    timeout_at(deadline, self.receiving.frame()).await
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                biased;
                answer = next_answer => {
                    let frame = match answer {
                        Ok(frame) => frame?.ok_or(LinkError::Closed)?,
                        Err(_) => return Err(LinkError::Timeout(APPEND_TIMEOUT)),
                    };
                    self.deadline = super::timer_now() + APPEND_TIMEOUT;
                    return Ok(self.sent.pop_front().map(|sent| read_answer(&frame, &sent)));
                }
                append = next_input => match append {
                    Some(append) => self.send(append).await?,
                    None => self.input = None,
                },
            }
        }
    }

    async fn send(&mut self, append: Append) -> Result<(), LinkError> {
        if self.sent.is_empty() {
            self.deadline = super::timer_now() + APPEND_TIMEOUT;
        }
        let sent = Sent {
            prev: append.prev_log_id,
            last: append
                .entries
                .last()
                .map(|entry| entry.log_id)
                .or(append.prev_log_id),
        };
        let frame = lapwing_net::encode(&To {
            to: self.client.target,
            body: append,
        });
        self.sent.push_back(sent);
        match timeout_at(self.deadline, self.send.send(&frame)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(LinkError::Timeout(APPEND_TIMEOUT)),
        }
    }
}

/// Reads an answer, and refuses one that cannot be meant for what was sent: openraft would take it for a fault
/// of its own.
fn read_answer(frame: &[u8], sent: &Sent) -> Result<Appended, LinkError> {
    let answer = match lapwing_net::decode::<Reply<Appended>>(frame)? {
        Reply::Done(answer) => answer,
        Reply::NotMe(id) => return Err(LinkError::OtherNode(id)),
        Reply::Failed(why) => return Err(LinkError::Failed(why)),
    };
    let sane = match &answer {
        Ok(matching) => *matching <= sent.last,
        Err(StreamAppendError::Conflict(at)) => sent.prev == Some(*at),
        Err(StreamAppendError::HigherVote(_)) => true,
    };
    if sane {
        Ok(answer)
    } else {
        Err(LinkError::Failed(format!(
            "it acknowledged what was not sent: {answer:?}"
        )))
    }
}
