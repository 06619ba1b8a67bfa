//! What all members agree on: the log, applied.
//!
//! Deterministic and total: the same requests in the same order give the same state and the same answers
//! on every machine, whatever they contain. It reads no clock, draws nothing and uses no floats. Who votes
//! is not here: voters and learners are raft's own membership. The rounds of jobs are in `jobs.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use lapwing_base::{
    Bandwidths, ClusterId, JobId, JobView, LinkSpeed, LogIndex, Member, MemberState, Multiaddr, NodeId,
    PeerId, Role,
};
use serde::{Deserialize, Serialize};

use crate::answers::Answers;
use crate::command::LINKS_MAX;
use crate::{Applied, ClusterConfig, Command, Pin, RefusedReason, Request};

/// The applied state.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The cluster; `None` before its bootstrap is applied.
    pub cluster: Option<ClusterId>,
    /// The fencing number of the bootstrap.
    pub epoch: u64,
    /// Every member, by its number; at most [`MEMBERS_MAX`].
    pub members: BTreeMap<NodeId, Member>,
    /// What operators said about who votes; keys are members.
    pub pins: BTreeMap<NodeId, Pin>,
    /// The job that is not over yet, if any, and the last [`JOBS_OVER_KEPT`] that are.
    pub jobs: BTreeMap<JobId, Arc<JobView>>,
    /// What is known of the links between members.
    pub bandwidths: Bandwidths,
    /// The cluster's settings.
    pub config: ClusterConfig,
    /// The last entry that was applied.
    pub applied: LogIndex,
    /// The last entry that changed `members`.
    pub members_changed: LogIndex,
    pub(crate) answers: Answers,
}

/// Most members of one cluster. A plan with this many is a few kilobytes in the log; larger crowds federate.
pub const MEMBERS_MAX: usize = 1024;

/// Jobs that are over and still shown.
pub const JOBS_OVER_KEPT: usize = 8;

/// Longest address, in bytes: a relayed one with two peers' names is about 150.
pub const ADDR_LENGTH_MAX: usize = 512;

impl State {
    /// Applies one request. A request that was applied before gets the same answer and changes nothing; one
    /// that is not valid here is refused with the reason.
    pub fn apply(&mut self, index: LogIndex, request: Request) -> Applied {
        self.advance(index);
        if let Some(answer) = self.answers.get(&request.id) {
            return answer.clone();
        }
        let answer = self
            .execute(index, request.command)
            .unwrap_or_else(Applied::Refused);
        self.answers.keep(request.id, answer.clone());
        answer
    }

    /// Notes an entry that carries no request.
    pub fn advance(&mut self, index: LogIndex) {
        self.applied = self.applied.max(index);
    }

    /// The job that is not over yet or, when all are, the last one.
    pub fn current_job(&self) -> Option<&Arc<JobView>> {
        self.running_job().or_else(|| self.jobs.values().next_back())
    }

    /// The job that is not over yet.
    pub fn running_job(&self) -> Option<&Arc<JobView>> {
        self.jobs.values().find(|job| !job.phase.is_over())
    }

    /// The member with this identity.
    pub fn by_peer(&self, peer: &PeerId) -> Option<&Member> {
        self.members.values().find(|member| member.peer == *peer)
    }

    /// Whether this number was given to a member that is one no longer. Numbers are positions in the log, so
    /// one that is applied and not there is gone.
    pub fn was_removed(&self, id: NodeId) -> bool {
        self.cluster.is_some() && id.0 <= self.applied.0 && !self.members.contains_key(&id)
    }

    fn execute(&mut self, index: LogIndex, command: Command) -> Result<Applied, RefusedReason> {
        if let Command::BootstrapEpoch {
            cluster,
            epoch,
            peer,
            name,
            addrs,
            role,
        } = command
        {
            return self.bootstrap(index, cluster, epoch, (peer, name, addrs, role));
        }
        if self.cluster.is_none() {
            return Err(RefusedReason::NotBootstrapped);
        }
        match command {
            Command::BootstrapEpoch { .. } => Ok(Applied::Done),
            Command::Join {
                peer,
                name,
                addrs,
                role,
            } => self.join(index, peer, name, addrs, role),
            Command::Update {
                id,
                addrs,
                name,
                role,
            } => self.update(index, id, name, addrs, role),
            Command::Leave { id } => self.leave(index, id),
            Command::Suspect { id } => self.turn(index, id, |state| match state {
                MemberState::Joining | MemberState::Active | MemberState::Suspected => MemberState::Suspected,
                MemberState::Leaving => MemberState::Leaving,
            }),
            Command::Restore { id } => self.turn(index, id, |state| match state {
                MemberState::Suspected => MemberState::Active,
                MemberState::Joining | MemberState::Active | MemberState::Leaving => state,
            }),
            Command::Activate { id } => self.turn(index, id, |state| match state {
                MemberState::Joining => MemberState::Active,
                MemberState::Active | MemberState::Suspected | MemberState::Leaving => state,
            }),
            Command::Remove { id } => {
                self.member(id)?;
                self.remove(index, id);
                Ok(Applied::Done)
            }
            Command::Pin { id, pin } => {
                self.member(id)?;
                match pin {
                    Some(pin) => self.pins.insert(id, pin),
                    None => self.pins.remove(&id),
                };
                Ok(Applied::Done)
            }
            Command::Bandwidth(links) => self.measure(links),
            Command::SetConfig { key, value, expected } => {
                self.config.set(&key, &value, expected)?;
                Ok(Applied::Done)
            }
            Command::RollbackConfig { version } => {
                self.config.rollback(version)?;
                Ok(Applied::Done)
            }
            Command::SubmitJob(spec) => self.submit_job(index, spec),
            Command::StopJob(job) => self.stop_job(job),
            Command::PlanRound(plan) => self.plan_round(plan),
            Command::CloseRound(outcome) => self.close_round(outcome),
            Command::AssignEvaluation {
                job,
                round,
                evaluator,
            } => self.assign_evaluation(job, round, evaluator),
            Command::RecordEvaluation {
                job,
                evaluation,
                manifest,
            } => self.record_evaluation(job, evaluation, manifest),
            Command::RecordHolders { job, holders } => self.record_holders(job, &holders),
            Command::FinishJob(job) => self.finish_job(job),
        }
    }

    fn bootstrap(
        &mut self,
        index: LogIndex,
        cluster: ClusterId,
        epoch: u64,
        (peer, name, addrs, role): (PeerId, String, Vec<Multiaddr>, Role),
    ) -> Result<Applied, RefusedReason> {
        if let Some(cluster) = self.cluster {
            return Err(RefusedReason::AlreadyBootstrapped(cluster));
        }
        check_card(&name, &addrs)?;
        self.cluster = Some(cluster);
        self.epoch = epoch;
        self.members_changed = index;
        let founder = Member {
            id: NodeId::FOUNDER,
            peer,
            name,
            addrs,
            role,
            state: MemberState::Active,
        };
        self.members.insert(founder.id, founder);
        Ok(Applied::Joined(NodeId::FOUNDER))
    }

    fn join(
        &mut self,
        index: LogIndex,
        peer: PeerId,
        name: String,
        addrs: Vec<Multiaddr>,
        role: Role,
    ) -> Result<Applied, RefusedReason> {
        check_card(&name, &addrs)?;
        let before = self.by_peer(&peer).map(|member| member.id);
        if before.is_none() && self.members.len() >= MEMBERS_MAX {
            let max = u32::try_from(MEMBERS_MAX).unwrap_or(u32::MAX);
            return Err(RefusedReason::ClusterFull { max });
        }
        if let Some(before) = before {
            self.remove(index, before);
        }
        let id = NodeId(index.0);
        let member = Member {
            id,
            peer,
            name,
            addrs,
            role,
            state: MemberState::Joining,
        };
        self.members.insert(id, member);
        self.members_changed = index;
        Ok(Applied::Joined(id))
    }

    fn update(
        &mut self,
        index: LogIndex,
        id: NodeId,
        name: String,
        addrs: Vec<Multiaddr>,
        role: Role,
    ) -> Result<Applied, RefusedReason> {
        check_card(&name, &addrs)?;
        let member = self
            .members
            .get_mut(&id)
            .ok_or(RefusedReason::UnknownMember(id))?;
        if (&member.name, &member.addrs, member.role) != (&name, &addrs, role) {
            (member.name, member.addrs, member.role) = (name, addrs, role);
            self.members_changed = index;
        }
        Ok(Applied::Done)
    }

    fn leave(&mut self, index: LogIndex, id: NodeId) -> Result<Applied, RefusedReason> {
        self.member(id)?;
        if self.members.len() == 1 {
            return Err(RefusedReason::LastMember(id));
        }
        self.turn(index, id, |_| MemberState::Leaving)
    }

    fn turn(
        &mut self,
        index: LogIndex,
        id: NodeId,
        to: impl FnOnce(MemberState) -> MemberState,
    ) -> Result<Applied, RefusedReason> {
        let member = self
            .members
            .get_mut(&id)
            .ok_or(RefusedReason::UnknownMember(id))?;
        let state = to(member.state);
        if member.state != state {
            member.state = state;
            self.members_changed = index;
        }
        Ok(Applied::Done)
    }

    fn remove(&mut self, index: LogIndex, id: NodeId) {
        self.members.remove(&id);
        self.pins.remove(&id);
        self.bandwidths.forget(id);
        self.forget_in_jobs(id);
        self.members_changed = index;
    }

    fn measure(&mut self, links: Vec<LinkSpeed>) -> Result<Applied, RefusedReason> {
        check_count("links", links.len(), LINKS_MAX)?;
        for link in links {
            // A member that was removed meanwhile takes nothing from the others' measurements.
            if link.from != link.to
                && self.members.contains_key(&link.from)
                && self.members.contains_key(&link.to)
            {
                self.bandwidths.set(link);
            }
        }
        Ok(Applied::Done)
    }

    pub(crate) fn member(&self, id: NodeId) -> Result<&Member, RefusedReason> {
        self.members.get(&id).ok_or(RefusedReason::UnknownMember(id))
    }
}

/// Whether what a node says of itself is within bounds.
pub(crate) fn check_card(name: &str, addrs: &[Multiaddr]) -> Result<(), RefusedReason> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    if name.len() > Member::NAME_MAX {
        return Err(RefusedReason::NameTooLong {
            length: number(name.len()),
        });
    }
    let longest = addrs.iter().map(|addr| addr.len()).max().unwrap_or(0);
    if addrs.len() > Member::ADDRS_MAX || longest > ADDR_LENGTH_MAX {
        return Err(RefusedReason::BadAddresses {
            count: number(addrs.len()),
            longest: number(longest),
        });
    }
    Ok(())
}

pub(crate) fn check_count(what: &str, count: usize, max: usize) -> Result<(), RefusedReason> {
    if count <= max {
        return Ok(());
    }
    Err(RefusedReason::TooMany {
        what: what.to_owned(),
        count: u32::try_from(count).unwrap_or(u32::MAX),
        max: u32::try_from(max).unwrap_or(u32::MAX),
    })
}
