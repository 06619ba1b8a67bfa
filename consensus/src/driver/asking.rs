//! Asks whoever leads, on this node or another: proposals, linearizable reads, a change of the leader.
//!
//! What the leader answers with is in `serve.rs`.

use std::sync::Arc;
use std::time::Duration;

use lapwing_base::{ByteSize, NodeId, PeerId};

use super::consensus::Inner;
use super::now;
use super::wire::{Ask, LEADER, Told};
use crate::{Applied, RefusedReason, Request, State};

/// A proposal came to nothing, as far as this node knows. Refusals are not errors: see [`Applied::Refused`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// There is nobody who could commit it.
    #[error("no leader for {}{}", in_seconds(.since), absent(.silent, *.voters))]
    NoLeader {
        /// For how long.
        since: Duration,
        /// Voters that did not answer.
        silent: Vec<NodeId>,
        /// How many vote.
        voters: usize,
    },
    /// It was not committed in time; it may be yet.
    #[error("not committed in {}{}", in_seconds(.after), absent(.silent, *.voters))]
    Timeout {
        /// How long was tried.
        after: Duration,
        /// Voters that did not answer.
        silent: Vec<NodeId>,
        /// How many vote.
        voters: usize,
    },
    /// It is too long for the log.
    #[error("a request of {size} is longer than the {max} that are allowed")]
    TooLong {
        /// Its size.
        size: ByteSize,
        /// The bound.
        max: ByteSize,
    },
    /// The log refused what this node asked for itself.
    #[error("refused: {0}")]
    Refused(RefusedReason),
    /// This node has been shut down.
    #[error("this node has stopped")]
    Stopped,
    /// This node's disk, or its raft, has failed.
    #[error("raft has failed on this node: {0}")]
    Storage(String),
}

/// A linearizable read came to nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Nobody could say what is current.
    #[error("no leader for {}{}", in_seconds(.since), absent(.silent, *.voters))]
    NoLeader {
        /// For how long.
        since: Duration,
        /// Voters that did not answer.
        silent: Vec<NodeId>,
        /// How many vote.
        voters: usize,
    },
    /// The leader did not say in time what is current.
    #[error("no answer of the leader in {}{}", in_seconds(.after), absent(.silent, *.voters))]
    Timeout {
        /// How long was tried.
        after: Duration,
        /// Voters that did not answer.
        silent: Vec<NodeId>,
        /// How many vote.
        voters: usize,
    },
    /// This node did not catch up in time.
    #[error("this node did not catch up with the leader in {}", in_seconds(.after))]
    Behind {
        /// How long was tried.
        after: Duration,
    },
    /// This node has been shut down.
    #[error("this node has stopped")]
    Stopped,
    /// This node's disk, or its raft, has failed.
    #[error("raft has failed on this node: {0}")]
    Storage(String),
}

fn in_seconds(time: &Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn absent(silent: &[NodeId], voters: usize) -> String {
    if silent.is_empty() {
        return String::new();
    }
    let names: Vec<String> = silent.iter().map(ToString::to_string).collect();
    let verb = if silent.len() == 1 { "does" } else { "do" };
    format!(
        "; {} of {voters} voters {verb} not answer: {}",
        silent.len(),
        names.join(", ")
    )
}

/// How long a proposal or a read is tried: longer than an election, shorter than a person's patience.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the leader is given for one attempt, before it is asked again, or another one is.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a voter is given that is only asked who leads.
const HINT_TIMEOUT: Duration = Duration::from_secs(1);

/// Rest between attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Why whoever leads did not answer a question.
#[derive(Debug)]
enum Unanswered {
    /// Nobody leads, as far as is known.
    NoLeader,
    /// Somebody leads, and did not answer in time.
    Timeout,
    /// This node has stopped.
    Stopped,
    /// Raft has failed on this node, which leads.
    Failed(String),
}

impl Inner {
    pub(super) fn leader_silence(&self) -> Duration {
        if self.raft.is_leader() {
            return Duration::ZERO;
        }
        let since = self.link.leader_heard_at().unwrap_or(self.started_at);
        now().saturating_duration_since(since)
    }

    pub(super) async fn propose(
        &self,
        request: Request,
        patience: Duration,
    ) -> Result<Applied, ProposeError> {
        let size = ByteSize(lapwing_net::encode(&request).len() as u64);
        if size > Request::SIZE_MAX {
            let max = Request::SIZE_MAX;
            return Err(ProposeError::TooLong { size, max });
        }
        let wait_ms = u32::try_from(ATTEMPT_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
        let ask = || Ask::Propose {
            request: request.clone(),
            wait_ms,
        };
        let here = || self.commit(request.clone(), ATTEMPT_TIMEOUT);
        let applied = |told| match told {
            Told::Applied(applied) => Ok(applied),
            other => Err(other),
        };
        let told = self.until_led(patience, ask, here, applied).await;
        told.map_err(|why| self.propose_error(why, patience))
    }

    /// Has the leader hand over to a voter.
    pub(super) async fn transfer_leader(&self, to: NodeId) -> Result<(), ProposeError> {
        let ask = || Ask::TransferLeader(to);
        let here = || self.hand_over(to);
        let done = |told| match told {
            Told::Done => Ok(()),
            other => Err(other),
        };
        let told = self.until_led(PATIENCE, ask, here, done).await;
        told.map_err(|why| self.propose_error(why, PATIENCE))
    }

    fn propose_error(&self, why: Unanswered, patience: Duration) -> ProposeError {
        let (silent, voters) = self.silent_voters();
        match why {
            Unanswered::NoLeader => ProposeError::NoLeader {
                since: self.leader_silence(),
                silent,
                voters,
            },
            Unanswered::Timeout => ProposeError::Timeout {
                after: patience,
                silent,
                voters,
            },
            Unanswered::Stopped => ProposeError::Stopped,
            Unanswered::Failed(why) => ProposeError::Storage(why),
        }
    }

    /// The state as it is now or later, on whichever node is asked.
    pub(super) async fn read(&self, patience: Duration) -> Result<Arc<State>, ReadError> {
        let began = now();
        let here = || self.read_index();
        let index = |told| match told {
            Told::ReadIndex(at) => Ok(at.map_or(0, |at| at.index)),
            other => Err(other),
        };
        let told = self.until_led(patience, || Ask::ReadIndex, here, index).await;
        let index = told.map_err(|why| self.read_error(why, patience))?;
        let left = patience.saturating_sub(now().saturating_duration_since(began));
        let mut state = self.state.clone();
        let caught_up = state.wait_for(|state| state.applied.0 >= index);
        match tokio::time::timeout(left.max(RETRY_INTERVAL), caught_up).await {
            Ok(Ok(state)) => Ok(state.clone()),
            Ok(Err(_)) => Err(ReadError::Stopped),
            Err(_) => Err(ReadError::Behind { after: patience }),
        }
    }

    fn read_error(&self, why: Unanswered, patience: Duration) -> ReadError {
        let (silent, voters) = self.silent_voters();
        match why {
            Unanswered::NoLeader => ReadError::NoLeader {
                since: self.leader_silence(),
                silent,
                voters,
            },
            Unanswered::Timeout => ReadError::Timeout {
                after: patience,
                silent,
                voters,
            },
            Unanswered::Stopped => ReadError::Stopped,
            Unanswered::Failed(why) => ReadError::Storage(why),
        }
    }

    /// Asks whoever leads, here or elsewhere, again and again until one does and answers what was asked: `expected`
    /// gives back any other answer.
    async fn until_led<T, F: Future<Output = Told>>(
        &self,
        patience: Duration,
        ask: impl Fn() -> Ask,
        here: impl Fn() -> F,
        expected: impl Fn(Told) -> Result<T, Told>,
    ) -> Result<T, Unanswered> {
        let began = now();
        let mut hint: Option<PeerId> = None;
        let mut led = false;
        let mut attempt = 0;
        loop {
            if self.stop.is_cancelled() {
                return Err(Unanswered::Stopped);
            }
            let left = patience.saturating_sub(now().saturating_duration_since(began));
            if left.is_zero() {
                return Err(if led && self.status.borrow().leader.is_some() {
                    Unanswered::Timeout
                } else {
                    Unanswered::NoLeader
                });
            }
            let told = if self.raft.is_leader() {
                led = true;
                self.stop.run_until_cancelled(here()).await
            } else {
                let leader = hint.take().or_else(|| self.other_leader().map(|(peer, _)| peer));
                led |= leader.is_some();
                // Whoever has not heard of a new leader yet asks a voter, who has.
                let (asked, timeout) = match leader {
                    Some(leader) => (Some(leader), ATTEMPT_TIMEOUT),
                    None => (self.other_voter(attempt), HINT_TIMEOUT),
                };
                attempt += 1;
                match asked {
                    Some(asked) => {
                        let asking = self.ask_leader(asked, ask(), left.min(timeout));
                        let told = self.stop.run_until_cancelled(asking).await;
                        told.map(|told| told.unwrap_or(Told::NotLeader { leader: None }))
                    }
                    None => Some(Told::NotLeader { leader: None }),
                }
            };
            let Some(told) = told else {
                return Err(Unanswered::Stopped);
            };
            match expected(told) {
                Ok(answer) => return Ok(answer),
                Err(Told::NotLeader { leader }) => {
                    if let Some((peer, addrs)) = leader.filter(|(peer, _)| *peer != self.config.peer) {
                        self.link.network.learn(peer, addrs);
                        hint = Some(peer);
                    }
                }
                Err(Told::Failed(why)) if self.stop.is_cancelled() => {
                    tracing::debug!(%why, "raft stopped under a question");
                    return Err(Unanswered::Stopped);
                }
                Err(Told::Failed(why)) => return Err(Unanswered::Failed(why)),
                Err(told) => tracing::warn!(?told, "the leader answers another question"),
            }
            let rest = tokio::time::sleep(RETRY_INTERVAL.min(left));
            if self.stop.run_until_cancelled(rest).await.is_none() {
                return Err(Unanswered::Stopped);
            }
        }
    }

    async fn ask_leader(&self, leader: PeerId, ask: Ask, timeout: Duration) -> Option<Told> {
        let question = lapwing_net::encode(&ask);
        let answer = match self
            .link
            .network
            .request(leader, LEADER, &question, timeout)
            .await
        {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%leader, %error, "the leader does not answer");
                return None;
            }
        };
        match lapwing_net::decode(&answer) {
            // What failed there may succeed under the next leader.
            Ok(Told::Failed(why)) => {
                tracing::debug!(%leader, %why, "the leader failed");
                None
            }
            Ok(told) => Some(told),
            Err(error) => {
                tracing::warn!(%leader, %error, "the leader's answer cannot be read");
                None
            }
        }
    }

    /// A voter other than this node, another one in each attempt.
    fn other_voter(&self, attempt: usize) -> Option<PeerId> {
        let status = self.status.borrow();
        let others: Vec<NodeId> = status
            .voters
            .iter()
            .copied()
            .filter(|id| *id != self.id)
            .collect();
        let id = others.get(attempt.checked_rem(others.len())?)?;
        self.state.borrow().members.get(id).map(|member| member.peer)
    }

    fn silent_voters(&self) -> (Vec<NodeId>, usize) {
        let status = self.status.borrow();
        let others = status.voters.iter().copied().filter(|id| *id != self.id);
        (self.link.silent_among(others), status.voters.len())
    }
}
