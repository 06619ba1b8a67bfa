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
            Command::RecordRefusals { job, refusals } => self.record_refusals(job, &refusals),
            Command::SetPaces { job, steps } => self.set_paces(job, steps),
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

#[cfg(test)]
mod tests {
    use lapwing_base::{
        Algorithm, Bandwidth, Evaluation, Garbage, JobPhase, JobSpec, Keypair, Manifest, Pair, Planner, Ppm,
        ROUNDS_KEPT, Refusal, Round, RoundKind, RoundOutcome, RoundPlan, Values,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::command::Malformed;
    use crate::{ConfigKey, RequestId};

    #[test]
    fn nothing_happens_before_the_bootstrap_and_it_happens_once() {
        let mut state = State::default();
        let refused = state.apply(LogIndex(1), request(1, join(2)));
        assert_eq!(refused, Applied::Refused(RefusedReason::NotBootstrapped));
        let mut log = Log::founded();
        assert_eq!(log.state.members.len(), 1);
        assert!(matches!(
            log.apply(bootstrap()),
            Applied::Refused(RefusedReason::AlreadyBootstrapped(_))
        ));
    }

    #[test]
    fn a_member_is_numbered_by_its_entry() {
        let mut log = Log::founded();
        let Applied::Joined(id) = log.apply(join(2)) else {
            panic!("it joins");
        };
        assert_eq!(id.0, log.state.applied.0);
        assert_eq!(log.state.members[&id].state, MemberState::Joining);
        assert!(!log.state.was_removed(id));
        assert!(!log.state.was_removed(NodeId(id.0 + 1)), "not yet given");
        log.apply(Command::Remove { id });
        assert!(log.state.was_removed(id));
    }

    #[test]
    fn a_peer_that_joins_again_replaces_its_old_self() {
        let mut log = Log::founded();
        let old = log.join(2);
        let new = log.join(2);
        assert!(new > old);
        assert!(log.state.was_removed(old));
        assert_eq!(log.state.members.len(), 2);
    }

    #[test]
    fn a_request_is_applied_once_however_often_it_arrives() {
        let mut log = Log::founded();
        let first = log.state.apply(LogIndex(10), request(500, join(2)));
        let again = log.state.apply(LogIndex(11), request(500, join(2)));
        assert_eq!(first, again);
        assert_eq!(log.state.members.len(), 2);
    }

    #[test]
    fn the_last_member_cannot_leave() {
        let mut log = Log::founded();
        let id = NodeId::FOUNDER;
        let refused = log.apply(Command::Leave { id });
        assert_eq!(refused, Applied::Refused(RefusedReason::LastMember(id)));
    }

    #[test]
    fn names_and_addresses_are_bounded() {
        let mut log = Log::founded();
        let long = Command::Update {
            id: NodeId::FOUNDER,
            addrs: Vec::new(),
            name: "n".repeat(Member::NAME_MAX + 1),
            role: Role::Main,
        };
        assert!(matches!(
            log.apply(long),
            Applied::Refused(RefusedReason::NameTooLong { length: 65 })
        ));
        let many = Command::Update {
            id: NodeId::FOUNDER,
            addrs: vec!["/ip4/127.0.0.1/udp/1/quic-v1".parse().unwrap(); Member::ADDRS_MAX + 1],
            name: String::new(),
            role: Role::Main,
        };
        assert!(matches!(
            log.apply(many),
            Applied::Refused(RefusedReason::BadAddresses { count: 17, .. })
        ));
    }

    #[test]
    fn a_removed_members_links_and_meetings_are_forgotten() {
        let mut log = Log::founded();
        let (a, b) = (log.join(2), log.join(3));
        let speed = Bandwidth::mbit(1);
        let links = vec![
            LinkSpeed {
                from: a,
                to: b,
                speed,
            },
            LinkSpeed {
                from: a,
                to: NodeId(999),
                speed,
            },
        ];
        log.apply(Command::Bandwidth(links));
        assert_eq!(log.state.bandwidths.len(), 1);
        let job = log.submit(10);
        log.apply(Command::PlanRound(plan(job, 1, &[(a, b)], &[NodeId::FOUNDER])));
        log.apply(Command::Remove { id: b });
        assert!(log.state.bandwidths.is_empty());
        assert!(log.state.jobs[&job].last_matched.is_empty());
        assert_eq!(log.state.jobs[&job].last_alone.len(), 1);
    }

    #[test]
    fn rounds_are_planned_once_closed_once_and_in_order() {
        let mut log = Log::founded();
        let (a, b) = (log.join(2), log.join(3));
        let job = log.submit(10);
        let first = plan(job, 1, &[(a, b)], &[]);
        assert!(matches!(
            log.apply(Command::PlanRound(plan(job, 2, &[(a, b)], &[]))),
            Applied::Refused(RefusedReason::RoundOutOfOrder { .. })
        ));
        assert_eq!(log.apply(Command::PlanRound(first.clone())), Applied::Done);
        assert_eq!(
            log.apply(Command::PlanRound(first)),
            Applied::Refused(RefusedReason::RoundPlanned(Round(1)))
        );
        assert_eq!(
            log.apply(Command::PlanRound(plan(job, 2, &[(a, b)], &[]))),
            Applied::Refused(RefusedReason::RoundOpen(Round(1)))
        );
        assert!(matches!(
            log.apply(Command::CloseRound(outcome(job, 1, &[(NodeId::FOUNDER, a)]))),
            Applied::Refused(RefusedReason::Malformed(Malformed::NotPlanned(..)))
        ));
        assert_eq!(
            log.apply(Command::CloseRound(outcome(job, 1, &[(a, b)]))),
            Applied::Done
        );
        assert_eq!(
            log.apply(Command::CloseRound(outcome(job, 1, &[]))),
            Applied::Refused(RefusedReason::RoundNotOpen(Round(1)))
        );
    }

    #[test]
    fn a_plan_that_names_somebody_twice_or_nobody_is_refused() {
        let mut log = Log::founded();
        let (a, b) = (log.join(2), log.join(3));
        let job = log.submit(10);
        for (pairs, alone) in [
            (vec![(a, b), (NodeId::FOUNDER, a)], vec![]),
            (vec![(NodeId::FOUNDER, a), (a, b)], vec![]),
            (vec![(a, b)], vec![b]),
            (vec![], vec![b, a]),
            (vec![], vec![]),
        ] {
            let refused = log.apply(Command::PlanRound(plan(job, 1, &pairs, &alone)));
            assert!(
                matches!(refused, Applied::Refused(RefusedReason::Malformed(_))),
                "{refused:?}"
            );
        }
        // Only who serves the others may train beside them.
        let mut served = plan(job, 1, &[(a, b)], &[b]);
        served.kind = RoundKind::Served { server: a };
        let refused = log.apply(Command::PlanRound(served.clone()));
        assert!(
            matches!(refused, Applied::Refused(RefusedReason::Malformed(_))),
            "{refused:?}"
        );
        let stranger = log.apply(Command::PlanRound(plan(job, 1, &[], &[NodeId(77)])));
        assert_eq!(
            stranger,
            Applied::Refused(RefusedReason::UnknownMember(NodeId(77)))
        );
        served.kind = RoundKind::Served { server: b };
        assert_eq!(log.apply(Command::PlanRound(served)), Applied::Done);
    }

    #[test]
    fn the_last_round_brings_the_job_to_its_end_and_the_manifest_finishes_it() {
        let mut log = Log::founded();
        let me = NodeId::FOUNDER;
        let job = log.submit(2);
        log.round(job, 1, RoundKind::Sparse);
        assert_eq!(log.phase(job), JobPhase::Running);
        log.round(job, 2, RoundKind::Sparse);
        assert_eq!(log.phase(job), JobPhase::Finishing);
        let assign = Command::AssignEvaluation {
            job,
            round: Round(2),
            evaluator: me,
        };
        assert_eq!(log.apply(assign), Applied::Done);
        let record = Command::RecordEvaluation {
            job,
            evaluation: evaluation(2, 900_000),
            manifest: Some(Manifest {
                hash: [1; 32],
                parameters: 10,
                holders: vec![me, NodeId(99)],
            }),
        };
        assert_eq!(log.apply(record.clone()), Applied::Done);
        assert_eq!(
            log.apply(record),
            Applied::Refused(RefusedReason::NotEvaluating(Round(2)))
        );
        let view = &log.state.jobs[&job];
        assert_eq!(view.evaluating, None);
        assert_eq!(view.manifest.as_ref().unwrap().holders, [me]);
        assert_eq!(log.apply(Command::FinishJob(job)), Applied::Done);
        assert_eq!(log.phase(job), JobPhase::Finished);
        log.submit(1);
    }

    #[test]
    fn dense_rounds_that_come_early_end_the_job_too() {
        let mut log = Log::founded();
        let spec = JobSpec {
            final_dense_rounds: 2,
            stop: Some(Ppm(800_000)),
            ..spec(50)
        };
        let Applied::Submitted(job) = log.apply(Command::SubmitJob(spec)) else {
            panic!("it is submitted");
        };
        log.round(job, 1, RoundKind::Sparse);
        log.round(job, 2, RoundKind::Dense);
        assert_eq!(log.phase(job), JobPhase::Running);
        log.round(job, 3, RoundKind::Dense);
        assert_eq!(log.phase(job), JobPhase::Finishing);
    }

    #[test]
    fn partners_that_refuse_a_node_put_it_into_quarantine_until_it_leaves() {
        let mut log = Log::founded();
        let nodes: Vec<NodeId> = [NodeId::FOUNDER]
            .into_iter()
            .chain((2..7).map(|who| log.join(who)))
            .collect();
        let job = log.submit(50);
        let bad = nodes[1];
        for (round, by) in [(1, nodes[0]), (2, nodes[2])] {
            let early = Command::RecordRefusals {
                job,
                refusals: vec![refusal(round, bad, by)],
            };
            assert!(matches!(
                log.apply(early.clone()),
                Applied::Refused(RefusedReason::RoundNotOpen(_))
            ));
            let alone: Vec<NodeId> = nodes
                .iter()
                .copied()
                .filter(|node| *node != bad && *node != by)
                .collect();
            log.apply(Command::PlanRound(plan(job, round, &[(bad, by)], &alone)));
            let foreign = Command::RecordRefusals {
                job,
                refusals: vec![refusal(round, bad, nodes[3])],
            };
            assert!(matches!(
                log.apply(foreign),
                Applied::Refused(RefusedReason::Malformed(Malformed::NotPlanned(..)))
            ));
            assert_eq!(log.apply(early), Applied::Done);
            log.apply(Command::CloseRound(outcome(job, round, &[])));
        }
        let trust = &log.state.current_job().unwrap().trust;
        let inside: Vec<NodeId> = trust.in_quarantine(Round(3)).map(|(node, _)| node).collect();
        assert_eq!(inside, [bad]);
        log.apply(Command::Remove { id: bad });
        assert!(log.state.current_job().unwrap().trust.is_empty());
    }

    #[test]
    fn slow_members_take_fewer_steps_from_the_next_round_on_until_they_leave() {
        let mut log = Log::founded();
        let slow = log.join(2);
        let job = log.submit(50);
        let paces = |node, steps| Command::SetPaces {
            job,
            steps: BTreeMap::from([(node, steps)]),
        };
        let all = log.state.current_job().unwrap().spec.local_steps;
        for steps in [0, all] {
            assert!(matches!(
                log.apply(paces(slow, steps)),
                Applied::Refused(RefusedReason::Malformed(Malformed::NotFewer(_)))
            ));
        }
        assert!(matches!(
            log.apply(paces(NodeId(99), 1)),
            Applied::Refused(RefusedReason::UnknownMember(_))
        ));
        assert_eq!(log.apply(paces(slow, 1)), Applied::Done);
        let plan = plan(job, 1, &[(NodeId::FOUNDER, slow)], &[]);
        log.apply(Command::PlanRound(plan.clone()));
        // Who starts anew in the middle of a round takes as many steps in it as before.
        assert!(matches!(
            log.apply(paces(slow, 2)),
            Applied::Refused(RefusedReason::RoundOpen(Round(1)))
        ));
        let view = log.state.current_job().unwrap();
        assert_eq!(view.steps_of(slow, &plan), 1);
        assert_eq!(view.steps_of(NodeId::FOUNDER, &plan), all);
        log.apply(Command::Remove { id: slow });
        assert!(log.state.current_job().unwrap().paces.is_empty());
    }

    #[test]
    fn only_the_latest_rounds_and_jobs_are_kept() {
        let mut log = Log::founded();
        for _ in 0..2 * JOBS_OVER_KEPT {
            let job = log.submit(10);
            log.apply(Command::StopJob(job));
        }
        let job = log.submit(1000);
        assert_eq!(log.state.jobs.len(), JOBS_OVER_KEPT + 1);
        for round in 1..=2 * ROUNDS_KEPT as u64 {
            log.round(job, round, RoundKind::Sparse);
        }
        let view = log.state.current_job().unwrap();
        assert_eq!((view.id, view.rounds.len()), (job, ROUNDS_KEPT));
        assert_eq!(view.round(), Round(2 * ROUNDS_KEPT as u64));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

        /// The laws of the state machine, after any sequence of commands, sensible or not.
        #[test]
        fn no_sequence_of_commands_breaks_the_laws(commands in proptest::collection::vec(any_command(), 1..120)) {
            let mut log = Log::founded();
            let mut twin = Log::founded();
            let mut closed: BTreeMap<(JobId, Round), RoundOutcome> = BTreeMap::new();
            for command in commands {
                let before = log.state.clone();
                let answer = log.apply(command.clone());
                prop_assert_eq!(&answer, &twin.apply(command));
                if matches!(answer, Applied::Refused(_)) {
                    let mut unchanged = before.clone();
                    unchanged.applied = log.state.applied;
                    unchanged.answers = log.state.answers.clone();
                    prop_assert_eq!(&unchanged, &log.state, "a refusal changes nothing");
                }
                prop_assert!(log.state.config.version() >= before.config.version());
                for (id, job) in &log.state.jobs {
                    let earlier = before.jobs.get(id).map_or(Round(0), |job| job.round());
                    prop_assert!(job.round() >= earlier && job.round() <= earlier.next());
                    for (position, record) in job.rounds.iter().enumerate() {
                        prop_assert_eq!(record.plan.round.0, job.rounds[0].plan.round.0 + position as u64);
                        match &record.outcome {
                            None => prop_assert_eq!(position + 1, job.rounds.len(), "only the last is open"),
                            Some(outcome) => {
                                for pair in &outcome.merged {
                                    prop_assert!(record.plan.pairs.contains(pair));
                                }
                                let first = closed.entry((*id, record.plan.round)).or_insert_with(|| outcome.clone());
                                prop_assert_eq!(&*first, outcome, "a round is closed once");
                            }
                        }
                    }
                }
                prop_assert!(log.state.jobs.values().filter(|job| !job.phase.is_over()).count() <= 1);
                prop_assert!(log.state.pins.keys().all(|id| log.state.members.contains_key(id)));
            }
            prop_assert_eq!(
                postcard::to_stdvec(&log.state).unwrap(),
                postcard::to_stdvec(&twin.state).unwrap()
            );
            let bytes = postcard::to_stdvec(&log.state).unwrap();
            prop_assert_eq!(postcard::from_bytes::<State>(&bytes).unwrap(), log.state);
        }
    }

    fn any_command() -> impl Strategy<Value = Command> {
        let node = || (1u64..12).prop_map(NodeId);
        let job = || (1u64..40).prop_map(JobId);
        let pairs = || proptest::collection::vec((1u64..12, 1u64..12), 0..4);
        prop_oneof![
            (2u8..6).prop_map(join),
            node().prop_map(|id| Command::Remove { id }),
            node().prop_map(|id| Command::Leave { id }),
            node().prop_map(|id| Command::Suspect { id }),
            node().prop_map(|id| Command::Restore { id }),
            node().prop_map(|id| Command::Activate { id }),
            node().prop_map(|id| Command::Pin {
                id,
                pin: Some(Pin::Voter)
            }),
            (1u32..6).prop_map(|rounds| Command::SubmitJob(spec(rounds))),
            job().prop_map(Command::StopJob),
            job().prop_map(Command::FinishJob),
            (job(), 1u64..6, pairs(), proptest::collection::vec(1u64..12, 0..3)).prop_map(
                |(job, round, pairs, alone)| {
                    let pairs: Vec<_> = pairs.into_iter().map(|(a, b)| (NodeId(a), NodeId(b))).collect();
                    let alone: Vec<_> = alone.into_iter().map(NodeId).collect();
                    Command::PlanRound(plan(job, round, &pairs, &alone))
                }
            ),
            // A plan that fits as often as not: the first job after the founder joins somebody.
            (3u64..8, 1u64..6).prop_map(|(job, round)| Command::PlanRound(plan(
                JobId(job),
                round,
                &[],
                &[NodeId(1)]
            ))),
            (job(), 1u64..6, pairs()).prop_map(|(job, round, pairs)| {
                let pairs: Vec<_> = pairs.into_iter().map(|(a, b)| (NodeId(a), NodeId(b))).collect();
                Command::CloseRound(outcome(job, round, &pairs))
            }),
            (3u64..8, 1u64..6).prop_map(|(job, round)| Command::CloseRound(outcome(JobId(job), round, &[]))),
            (3u64..8, 1u64..6, 1u64..12, 1u64..12).prop_map(|(job, round, of, by)| Command::RecordRefusals {
                job: JobId(job),
                refusals: vec![refusal(round, NodeId(of), NodeId(by))],
            }),
            (3u64..8, node(), 0u32..4).prop_map(|(job, node, steps)| Command::SetPaces {
                job: JobId(job),
                steps: BTreeMap::from([(node, steps)]),
            }),
            (job(), 1u64..6, node()).prop_map(|(job, round, evaluator)| Command::AssignEvaluation {
                job,
                round: Round(round),
                evaluator
            }),
            (job(), 1u64..6).prop_map(|(job, round)| Command::RecordEvaluation {
                job,
                evaluation: evaluation(round, 5),
                manifest: None
            }),
            ("[a-z_]{0,12}", "[0-9]{0,4}").prop_map(|(key, value)| Command::SetConfig {
                key,
                value,
                expected: None
            }),
            (proptest::sample::select(ConfigKey::ALL.to_vec()), 0u64..100_000).prop_map(|(key, value)| {
                Command::SetConfig {
                    key: key.to_string(),
                    value: value.to_string(),
                    expected: None,
                }
            }),
            (0u64..9).prop_map(|version| Command::RollbackConfig { version }),
        ]
    }

    struct Log {
        state: State,
        next: u64,
    }

    impl Log {
        fn founded() -> Self {
            let mut log = Self {
                state: State::default(),
                next: 2,
            };
            assert_eq!(log.apply(bootstrap()), Applied::Joined(NodeId::FOUNDER));
            log
        }

        fn apply(&mut self, command: Command) -> Applied {
            let index = self.next;
            self.next += 1;
            self.state.apply(LogIndex(index), request(index, command))
        }

        fn join(&mut self, who: u8) -> NodeId {
            match self.apply(join(who)) {
                Applied::Joined(id) => id,
                other => panic!("{other:?}"),
            }
        }

        fn submit(&mut self, rounds: u32) -> JobId {
            match self.apply(Command::SubmitJob(spec(rounds))) {
                Applied::Submitted(id) => id,
                other => panic!("{other:?}"),
            }
        }

        fn round(&mut self, job: JobId, round: u64, kind: RoundKind) {
            let plan = RoundPlan {
                kind,
                ..plan(job, round, &[], &[NodeId::FOUNDER])
            };
            assert_eq!(self.apply(Command::PlanRound(plan)), Applied::Done);
            assert_eq!(
                self.apply(Command::CloseRound(outcome(job, round, &[]))),
                Applied::Done
            );
        }

        fn phase(&self, job: JobId) -> JobPhase {
            self.state.jobs[&job].phase
        }
    }

    fn request(id: u64, command: Command) -> Request {
        Request {
            id: RequestId(u128::from(id).to_be_bytes()),
            command,
        }
    }

    /// The same identity for the same number, in every run.
    fn peer(who: u8) -> PeerId {
        let keypair = Keypair::ed25519_from_bytes([who; 32]).unwrap();
        keypair.public().to_peer_id()
    }

    fn bootstrap() -> Command {
        Command::BootstrapEpoch {
            cluster: ClusterId::from_bytes([1; 16]),
            epoch: 3,
            peer: peer(1),
            name: "founder".to_owned(),
            addrs: Vec::new(),
            role: Role::Main,
        }
    }

    fn join(who: u8) -> Command {
        Command::Join {
            peer: peer(who),
            name: who.to_string(),
            addrs: Vec::new(),
            role: Role::Home,
        }
    }

    fn spec(rounds: u32) -> JobSpec {
        JobSpec {
            model: "mlp".to_owned(),
            data: "digits".to_owned(),
            algorithm: Algorithm::Default,
            rounds,
            local_steps: 5,
            compression: 25,
            values: Values::Int8,
            lr_micro: 100_000,
            batch: 32,
            seed: 1,
            final_dense_rounds: 0,
            checkpoint_every: 1,
            evaluate_every: 1,
            stop: None,
            planner: Planner::Adaptive,
            tuning: Algorithm::Default.tuning(),
        }
    }

    fn plan(job: JobId, round: u64, pairs: &[(NodeId, NodeId)], alone: &[NodeId]) -> RoundPlan {
        RoundPlan {
            job,
            round: Round(round),
            kind: RoundKind::Sparse,
            seed: [0; 32],
            pairs: pairs.iter().filter_map(|(a, b)| Pair::new(*a, *b)).collect(),
            alone: alone.to_vec(),
            compression: 25,
            local_steps: 5,
            lr_micro: 100_000,
            deadline_ms: 1000,
        }
    }

    fn outcome(job: JobId, round: u64, merged: &[(NodeId, NodeId)]) -> RoundOutcome {
        RoundOutcome {
            job,
            round: Round(round),
            merged: merged.iter().filter_map(|(a, b)| Pair::new(*a, *b)).collect(),
            nodes: Vec::new(),
            took_ms: 5,
        }
    }

    fn refusal(round: u64, of: NodeId, by: NodeId) -> Refusal {
        Refusal {
            round: Round(round),
            of,
            by,
            why: Garbage::Damaged,
        }
    }

    fn evaluation(round: u64, accuracy: u32) -> Evaluation {
        Evaluation {
            round: Round(round),
            averaged_accuracy: Ppm(accuracy),
            local_accuracies: Vec::new(),
            transferred: lapwing_base::ByteSize(0),
        }
    }
}
