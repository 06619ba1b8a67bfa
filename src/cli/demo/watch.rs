//! What the demo has seen so far: documents of the nodes, merged into one value that view and report draw.
//!
//! Pure: it reads no clock and asks nobody. Times are spans since the demo began, handed in with what was seen.
//! Documents may come late, twice, from nodes that lag behind, or not at all; none of that goes backwards here.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::cli::documents::{
    EvaluationDocument, JobDocument, MembersDocument, RoundDocument, StatusDocument, mean,
};
use crate::cli::output::{percent, span};

/// What was asked of the demo.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How many nodes.
    pub(crate) nodes: usize,
    /// How many rounds.
    pub(crate) rounds: u64,
    /// What everything random follows from.
    pub(crate) seed: u64,
    /// The data set and its partition.
    pub(crate) data: String,
    /// Whether the leader is killed half-way.
    pub(crate) kills: bool,
}

/// Everything that was seen, in an order that does not depend on when it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    pub(crate) plan: Plan,
    /// When the last document came.
    pub(crate) now: Duration,
    /// By the number of the process: the first is `node-1`.
    pub(crate) nodes: Vec<NodeSeen>,
    /// By round.
    pub(crate) rounds: BTreeMap<u64, RoundDocument>,
    /// When each round was first seen closed.
    pub(crate) closed_at: BTreeMap<u64, Duration>,
    /// By round.
    pub(crate) evaluations: BTreeMap<u64, EvaluationDocument>,
    /// Who led, from when on; terms grow.
    pub(crate) leaders: Vec<Leadership>,
    pub(crate) kill: Option<Kill>,
    /// When the job was handed in.
    pub(crate) submitted_at: Option<Duration>,
    /// When the job was first seen finished.
    pub(crate) finished_at: Option<Duration>,
    /// Of the model.
    pub(crate) parameters: Option<u64>,
    /// Of the consensus model.
    pub(crate) hash: Option<String>,
    /// Members that hold the consensus model.
    pub(crate) holders: Vec<String>,
    /// What is worth a line, in order.
    pub(crate) events: Vec<Event>,
    /// Member numbers, such as `n3`, to processes.
    processes: BTreeMap<String, usize>,
}

/// One node process.
#[derive(Clone, Debug)]
pub(crate) struct NodeSeen {
    pub(crate) name: String,
    /// Its number in the cluster, once it is a member.
    pub(crate) member: Option<String>,
    pub(crate) life: Life,
    /// The last status that it gave.
    pub(crate) status: Option<StatusDocument>,
}

/// Whether a node answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Life {
    /// It has not answered yet.
    Starting,
    /// It answers.
    Up,
    /// It does not answer, though it should.
    Silent,
    /// It was killed by the demo.
    Killed,
}

/// One reign.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Leadership {
    /// The process.
    pub(crate) node: usize,
    pub(crate) term: u64,
    pub(crate) since: Duration,
}

/// What was done to the leader, and how the cluster took it.
#[derive(Clone, Debug)]
pub(crate) struct Kill {
    /// The process.
    pub(crate) node: usize,
    pub(crate) at: Duration,
    /// The last round that was closed by then; known from the first document after the kill.
    pub(crate) closed: Option<u64>,
    /// When the next round after that was seen closed.
    pub(crate) next_round_at: Option<Duration>,
    /// When another leader was seen.
    pub(crate) next_leader_at: Option<Duration>,
    pub(crate) restarted_at: Option<Duration>,
    /// When the restarted node was seen active again.
    pub(crate) back_at: Option<Duration>,
}

impl Kill {
    /// How long no round closed.
    pub(crate) fn gap(&self) -> Option<Duration> {
        self.next_round_at?.checked_sub(self.at)
    }
}

/// Something worth a line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    /// Since the demo began.
    pub(crate) at_seconds: f64,
    #[serde(flatten)]
    pub(crate) what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum What {
    Waiting {
        joined: usize,
        nodes: usize,
        missing: Vec<String>,
    },
    ClusterFormed {
        leader: String,
        voters: usize,
        learners: usize,
        links_measured: usize,
        links: usize,
    },
    JobSubmitted {
        id: String,
    },
    Progress {
        round: u64,
        rounds: u64,
        loss: Option<f64>,
        local_accuracy: Option<f64>,
        averaged_accuracy: Option<f64>,
        sent_bytes_per_node: u64,
        dense_bytes_per_node: u64,
    },
    LeaderKilled {
        node: String,
        round: u64,
    },
    LeaderElected {
        node: String,
        term: u64,
        after_kill_seconds: Option<f64>,
    },
    RoundClosedAfterKill {
        round: u64,
        after_kill_seconds: f64,
    },
    NodeRestarted {
        node: String,
    },
    NodeBack {
        node: String,
        after_kill_seconds: f64,
    },
    JobFinished {
        round: u64,
        holders: usize,
    },
    NotKilled {
        reason: String,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting {
                joined,
                nodes,
                missing,
            } => write!(
                f,
                "waiting for {} of {nodes} nodes to join: {}",
                nodes - joined,
                missing.join(", ")
            ),
            Self::ClusterFormed {
                leader,
                voters,
                learners,
                links_measured,
                links,
            } => write!(
                f,
                "one cluster: {leader} leads, {voters} voters, {learners} learners, {links_measured} of {links} links measured"
            ),
            Self::JobSubmitted { id } => write!(f, "{id} is submitted"),
            Self::Progress {
                round,
                rounds,
                loss,
                local_accuracy,
                averaged_accuracy,
                sent_bytes_per_node,
                dense_bytes_per_node,
            } => {
                write!(f, "round {round} of {rounds}")?;
                if let Some(loss) = loss {
                    write!(f, ", loss {loss:.3}")?;
                }
                if let (Some(averaged), Some(local)) = (averaged_accuracy, local_accuracy) {
                    write!(
                        f,
                        ", accuracy {} averaged, {} local",
                        percent(*averaged),
                        percent(*local)
                    )?;
                }
                write!(
                    f,
                    ", {} sent a node (dense {})",
                    lapwing_base::ByteSize(*sent_bytes_per_node),
                    lapwing_base::ByteSize(*dense_bytes_per_node)
                )
            }
            Self::LeaderKilled { node, round } => write!(f, "leader {node} killed after round {round}"),
            Self::LeaderElected {
                node,
                term,
                after_kill_seconds,
            } => {
                write!(f, "{node} leads now (term {term})")?;
                after_kill_seconds.map_or(Ok(()), |after| write!(f, ", {} after the kill", span(after)))
            }
            Self::RoundClosedAfterKill {
                round,
                after_kill_seconds,
            } => write!(
                f,
                "round {round} closed, {} after the kill",
                span(*after_kill_seconds)
            ),
            Self::NodeRestarted { node } => write!(f, "{node} restarted on its own data"),
            Self::NodeBack {
                node,
                after_kill_seconds,
            } => write!(
                f,
                "{node} is back, {} after it was killed",
                span(*after_kill_seconds)
            ),
            Self::JobFinished { round, holders } => {
                write!(
                    f,
                    "finished after round {round}; {holders} nodes hold the consensus model"
                )
            }
            Self::NotKilled { reason } => write!(f, "no leader is killed: {reason}"),
        }
    }
}

/// How much of the job is told: once each tenth.
const PROGRESS_STEPS: u64 = 10;

impl Timeline {
    /// A demo that has not begun.
    pub(crate) fn new(plan: Plan) -> Self {
        let nodes = (1..=plan.nodes)
            .map(|number| NodeSeen {
                name: format!("node-{number}"),
                member: None,
                life: Life::Starting,
                status: None,
            })
            .collect();
        Self {
            plan,
            now: Duration::ZERO,
            nodes,
            rounds: BTreeMap::new(),
            closed_at: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            leaders: Vec::new(),
            kill: None,
            submitted_at: None,
            finished_at: None,
            parameters: None,
            hash: None,
            holders: Vec::new(),
            events: Vec::new(),
            processes: BTreeMap::new(),
        }
    }

    /// A node answered, or did not.
    pub(crate) fn on_status(&mut self, now: Duration, process: usize, status: Option<StatusDocument>) {
        self.now = self.now.max(now);
        let Some(node) = self.nodes.get_mut(process) else {
            return;
        };
        match status {
            // Asked before it was killed, answered after.
            _ if node.life == Life::Killed => (),
            Some(status) => {
                node.life = Life::Up;
                let leader = (status.raft.term, status.raft.leader.clone());
                let active = status.node.state == "active";
                node.status = Some(status);
                if active {
                    self.on_active(now, process);
                }
                if let (term, Some(peer)) = leader {
                    self.on_leader(now, term, &peer);
                }
            }
            None if node.life == Life::Up => node.life = Life::Silent,
            None => (),
        }
    }

    /// A node told who the members are.
    pub(crate) fn on_members(&mut self, now: Duration, members: &MembersDocument) {
        self.now = self.now.max(now);
        for member in &members.members {
            // Names are ours, since we gave them; the peer id is the surer sign once it is known.
            let process = self
                .process_of_peer(&member.peer_id)
                .or_else(|| self.nodes.iter().position(|node| node.name == member.name));
            if let Some(process) = process {
                self.nodes[process].member = Some(member.id.clone());
                self.processes.insert(member.id.clone(), process);
            }
        }
    }

    /// A node told how far the job is.
    pub(crate) fn on_job(&mut self, now: Duration, job: &JobDocument) {
        self.now = self.now.max(now);
        self.parameters = self.parameters.or(job.parameters);
        for evaluation in &job.evaluations {
            self.evaluations.insert(evaluation.round, evaluation.clone());
        }
        let before = self.closed();
        for round in &job.history {
            let known = self.rounds.get(&round.round);
            // A node that lags behind must not open a round again.
            if known.is_none_or(|known| known.merged.is_none()) {
                self.rounds.insert(round.round, round.clone());
                if round.merged.is_some() {
                    self.closed_at.insert(round.round, now);
                }
            }
        }
        let after = self.closed();
        let tenth = |round: u64| round * PROGRESS_STEPS / self.plan.rounds.max(1);
        if tenth(after) > tenth(before) {
            let progress = self.progress();
            self.tell(now, progress);
        }
        if let Some(kill) = &mut self.kill {
            match kill.closed {
                None => kill.closed = Some(after),
                Some(closed) if after > closed && kill.next_round_at.is_none() => {
                    kill.next_round_at = Some(now);
                    let after_kill_seconds = (now - kill.at).as_secs_f64();
                    self.tell(
                        now,
                        What::RoundClosedAfterKill {
                            round: closed + 1,
                            after_kill_seconds,
                        },
                    );
                }
                Some(_) => (),
            }
        }
        if let Some(manifest) = &job.manifest {
            self.hash = Some(manifest.hash.clone());
            if manifest.holders.len() > self.holders.len() {
                self.holders.clone_from(&manifest.holders);
            }
        }
        if job.is_over() && self.finished_at.is_none() {
            self.finished_at = Some(now);
            self.tell(
                now,
                What::JobFinished {
                    round: after,
                    holders: self.holders.len(),
                },
            );
        }
    }

    /// The demo killed a node.
    pub(crate) fn on_killed(&mut self, now: Duration, process: usize) {
        self.now = self.now.max(now);
        self.nodes[process].life = Life::Killed;
        self.kill = Some(Kill {
            node: process,
            at: now,
            closed: None,
            next_round_at: None,
            next_leader_at: None,
            restarted_at: None,
            back_at: None,
        });
        self.tell(
            now,
            What::LeaderKilled {
                node: self.nodes[process].name.clone(),
                round: self.closed(),
            },
        );
    }

    /// The demo started the killed node again.
    pub(crate) fn on_restarted(&mut self, now: Duration) {
        self.now = self.now.max(now);
        if let Some(kill) = &mut self.kill {
            kill.restarted_at = Some(now);
            let node = &mut self.nodes[kill.node];
            node.life = Life::Starting;
            let node = node.name.clone();
            self.tell(now, What::NodeRestarted { node });
        }
    }

    /// The job was handed in.
    pub(crate) fn on_submitted(&mut self, now: Duration, id: &str) {
        self.submitted_at = Some(now);
        self.tell(now, What::JobSubmitted { id: id.to_owned() });
    }

    /// Adds a line.
    pub(crate) fn tell(&mut self, now: Duration, what: What) {
        self.now = self.now.max(now);
        self.events.push(Event {
            at_seconds: now.as_secs_f64(),
            what,
        });
    }

    fn on_active(&mut self, now: Duration, process: usize) {
        let Some(kill) = &mut self.kill else { return };
        if kill.node == process && kill.restarted_at.is_some() && kill.back_at.is_none() {
            kill.back_at = Some(now);
            let after_kill_seconds = (now - kill.at).as_secs_f64();
            let node = self.nodes[process].name.clone();
            self.tell(
                now,
                What::NodeBack {
                    node,
                    after_kill_seconds,
                },
            );
        }
    }

    fn on_leader(&mut self, now: Duration, term: u64, peer: &str) {
        let Some(process) = self.process_of_peer(peer) else {
            return;
        };
        let last = self.leaders.last().copied();
        // Old terms are the news of nodes that lag behind.
        if last.is_some_and(|last| term <= last.term) {
            return;
        }
        self.leaders.push(Leadership {
            node: process,
            term,
            since: now,
        });
        let mut after_kill_seconds = None;
        if let Some(kill) = &mut self.kill
            && kill.next_leader_at.is_none()
            && kill.node != process
        {
            kill.next_leader_at = Some(now);
            after_kill_seconds = Some((now - kill.at).as_secs_f64());
        }
        // Before the job, leaders come and go while the cluster grows, and nothing depends on them.
        if last.is_some_and(|last| last.node != process) && self.submitted_at.is_some() {
            let node = self.nodes[process].name.clone();
            self.tell(
                now,
                What::LeaderElected {
                    node,
                    term,
                    after_kill_seconds,
                },
            );
        }
    }

    /// The last round of which every one up to it is closed, as far as was seen.
    pub(crate) fn closed(&self) -> u64 {
        self.closed_at.keys().next_back().copied().unwrap_or(0)
    }

    /// The last round that was planned.
    pub(crate) fn round(&self) -> u64 {
        self.rounds.keys().next_back().copied().unwrap_or(0)
    }

    /// Who leads, as far as is known.
    pub(crate) fn leader(&self) -> Option<Leadership> {
        self.leaders.last().copied()
    }

    /// How often the leadership went to another node.
    pub(crate) fn leader_changes(&self) -> usize {
        self.leaders
            .windows(2)
            .filter(|pair| pair[0].node != pair[1].node)
            .count()
    }

    /// What a member's process is called, or the member's number when it is none of ours.
    pub(crate) fn name_of<'a>(&'a self, member: &'a str) -> &'a str {
        self.process_of(member)
            .map_or(member, |process| self.nodes[process].name.as_str())
    }

    /// The process of a member.
    pub(crate) fn process_of(&self, member: &str) -> Option<usize> {
        self.processes.get(member).copied()
    }

    /// The process of an identity.
    pub(crate) fn process_of_peer(&self, peer: &str) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.status.as_ref().is_some_and(|status| status.peer_id == peer))
    }

    /// Whether a round names a member of whom we do not know which process it is.
    pub(crate) fn has_strangers(&self) -> bool {
        self.rounds.values().next_back().is_some_and(|round| {
            round
                .pairs
                .iter()
                .flatten()
                .chain(&round.alone)
                .any(|member| self.process_of(member).is_none())
        })
    }

    /// The mean loss of the last round that trained.
    pub(crate) fn loss(&self) -> Option<f64> {
        self.trained_rounds()
            .next_back()
            .and_then(|(_, round)| round.loss())
    }

    /// Closed rounds with local steps.
    pub(crate) fn trained_rounds(&self) -> impl DoubleEndedIterator<Item = (u64, &RoundDocument)> {
        self.rounds
            .iter()
            .filter(|(_, round)| round.merged.is_some() && round.kind != "dense")
            .map(|(number, round)| (*number, round))
    }

    /// Whether several rounds that were to train have closed, and nobody has trained on anything in any of them.
    pub(crate) fn nobody_trains(&self) -> bool {
        /// One round may close empty-handed on a machine that is slow to load its data; five in a row do not.
        const EMPTY_MAX: usize = 5;
        self.trained_rounds().count() >= EMPTY_MAX
            && self
                .trained_rounds()
                .all(|(_, round)| round.nodes.iter().all(|node| node.samples == 0))
    }

    /// What nodes say that keeps them from taking part.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.nodes
            .iter()
            .find_map(|node| node.status.as_ref()?.training.problem.as_deref())
    }

    /// The last evaluation.
    pub(crate) fn evaluation(&self) -> Option<&EvaluationDocument> {
        self.evaluations.values().next_back()
    }

    /// What each node would have sent in a dense exchange in each of the first `rounds` rounds.
    pub(crate) fn dense_bytes(&self, rounds: u64) -> u64 {
        rounds * self.parameters.unwrap_or(0) * 4
    }

    /// What a node sent on average.
    pub(crate) fn sent_bytes_per_node(&self) -> u64 {
        let sent: u64 = self
            .rounds
            .values()
            .flat_map(|round| &round.nodes)
            .map(|node| node.sent_bytes)
            .sum();
        sent / self.plan.nodes.max(1) as u64
    }

    fn progress(&self) -> What {
        let round = self.closed();
        let evaluation = self.evaluation();
        What::Progress {
            round,
            rounds: self.plan.rounds,
            loss: self.loss(),
            local_accuracy: evaluation.map(|evaluation| evaluation.local_accuracy),
            averaged_accuracy: evaluation.map(|evaluation| evaluation.averaged_accuracy),
            sent_bytes_per_node: self.sent_bytes_per_node(),
            dense_bytes_per_node: self.dense_bytes(round),
        }
    }

    /// What each node did, by process.
    pub(crate) fn totals(&self) -> Vec<NodeTotal> {
        let mut totals: Vec<NodeTotal> = self
            .nodes
            .iter()
            .map(|node| NodeTotal {
                name: node.name.clone(),
                ..NodeTotal::default()
            })
            .collect();
        for round in self.rounds.values() {
            for done in &round.nodes {
                let Some(total) = self.process_of(&done.node).map(|process| &mut totals[process]) else {
                    continue;
                };
                total.samples += done.samples;
                total.sent_bytes += done.sent_bytes;
                total.received_bytes += done.received_bytes;
                if round.kind != "dense" {
                    total.loss = done.loss.or(total.loss);
                }
            }
            for member in round.merged.iter().flatten().flatten() {
                if let Some(process) = self.process_of(member) {
                    totals[process].merged += 1;
                }
            }
        }
        if let Some(evaluation) = self.evaluation() {
            for (member, accuracy) in &evaluation.local {
                if let Some(process) = self.process_of(member) {
                    totals[process].accuracy = Some(*accuracy);
                }
            }
        }
        totals
    }

    /// How long a round takes that does not train: the cost of planning, agreeing and exchanging.
    pub(crate) fn seconds_beyond_training(&self) -> Option<f64> {
        let took: Vec<f64> = self
            .rounds
            .values()
            .filter(|round| round.kind == "dense")
            .filter_map(|round| round.took_ms)
            .map(|took| took as f64 / 1000.0)
            .collect();
        mean(&took)
    }
}

/// What one node did in the whole job.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeTotal {
    pub(crate) name: String,
    /// Trained on, counted again each time.
    pub(crate) samples: u64,
    /// Of the last round in which it trained.
    pub(crate) loss: Option<f64>,
    /// Of its own model, at the last evaluation.
    pub(crate) accuracy: Option<f64>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    /// Rounds in which it merged with its partner.
    pub(crate) merged: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_lagging_node_does_not_open_a_round_again() {
        let mut timeline = formed();
        timeline.on_job(
            at(1),
            &job(r#"{"history": [{"round": 1, "merged": [["n1", "n2"]]}, {"round": 2}]}"#),
        );
        timeline.on_job(at(2), &job(r#"{"history": [{"round": 1}]}"#));
        assert_eq!(timeline.closed(), 1);
        assert_eq!(timeline.round(), 2);
        assert_eq!(timeline.closed_at[&1], at(1));
    }

    #[test]
    fn leaders_of_old_terms_are_no_news() {
        let mut timeline = formed();
        timeline.on_status(at(1), 1, status("B", 2, "B"));
        timeline.on_status(at(2), 2, status("C", 1, "A"));
        assert_eq!(timeline.leader().unwrap().node, 1);
        assert_eq!(timeline.leader_changes(), 1);
    }

    #[test]
    fn the_gap_after_a_kill_ends_with_the_first_round_that_closes_without_the_leader() {
        let mut timeline = formed();
        timeline.on_submitted(at(1), "job-9");
        timeline.on_job(at(2), &job(r#"{"history": [{"round": 1, "merged": []}]}"#));
        timeline.on_killed(at(3), 0);
        // Closed before the kill, and only now seen.
        let seen_late = r#"{"history": [{"round": 2, "merged": []}, {"round": 3}]}"#;
        timeline.on_job(at(4), &job(seen_late));
        timeline.on_status(at(5), 1, status("B", 2, "B"));
        timeline.on_job(at(6), &job(r#"{"history": [{"round": 3, "merged": []}]}"#));
        timeline.on_restarted(at(7));
        timeline.on_status(at(8), 0, status("A", 2, "B"));
        let kill = timeline.kill.clone().unwrap();
        assert_eq!(kill.gap(), Some(at(3)));
        assert_eq!(kill.next_leader_at, Some(at(5)));
        assert_eq!(kill.back_at, Some(at(8)));
        let told: Vec<String> = timeline
            .events
            .iter()
            .map(|event| event.what.to_string())
            .collect();
        assert_eq!(
            told.iter()
                .filter(|line| !line.starts_with("round 1 of")
                    && !line.starts_with("round 2 of")
                    && !line.starts_with("round 3 of"))
                .collect::<Vec<_>>(),
            [
                "job-9 is submitted",
                "leader node-1 killed after round 1",
                "node-2 leads now (term 2), 2.0 s after the kill",
                "round 3 closed, 3.0 s after the kill",
                "node-1 restarted on its own data",
                "node-1 is back, 5.0 s after it was killed",
            ]
        );
    }

    #[test]
    fn progress_is_told_once_each_tenth() {
        let mut timeline = formed();
        for round in 1..=20 {
            let text = format!(r#"{{"history": [{{"round": {round}, "merged": []}}]}}"#);
            timeline.on_job(at(round), &job(&text));
            timeline.on_job(at(round), &job(&text));
        }
        let told = timeline
            .events
            .iter()
            .filter(|event| matches!(event.what, What::Progress { .. }))
            .count();
        assert_eq!(told, 10);
    }

    #[test]
    fn totals_are_sums_over_rounds_and_dense_rounds_leave_the_loss_alone() {
        let timeline = trained();
        let totals = timeline.totals();
        assert_eq!(totals[0].samples, 64);
        assert_eq!(totals[0].sent_bytes, 2000);
        assert_eq!(totals[0].merged, 1);
        assert_eq!(totals[0].loss, Some(0.25));
        assert_eq!(totals[1].accuracy, Some(0.75));
        assert_eq!(timeline.dense_bytes(2), 80);
        assert_eq!(timeline.seconds_beyond_training(), Some(0.2));
    }

    #[test]
    fn rounds_that_close_without_a_sample_are_noticed_and_one_sample_is_enough() {
        let empty = |round: u64, samples: u64| {
            format!(
                r#"{{"history": [{{"round": {round}, "kind": "sparse", "merged": [], "nodes": [{{"node": "n1", "samples": {samples}}}]}}]}}"#
            )
        };
        let mut timeline = formed();
        for round in 1..=5 {
            assert!(!timeline.nobody_trains(), "{round}");
            timeline.on_job(at(round), &job(&empty(round, 0)));
        }
        assert!(timeline.nobody_trains());
        timeline.on_job(at(6), &job(&empty(6, 32)));
        assert!(!timeline.nobody_trains());
    }

    /// Three nodes `A`, `B`, `C` with the numbers n1, n2, n3, led by the first.
    pub(crate) fn formed() -> Timeline {
        let mut timeline = Timeline::new(Plan {
            nodes: 3,
            rounds: 20,
            seed: 1,
            data: "digits".to_owned(),
            kills: true,
        });
        for (process, peer) in ["A", "B", "C"].into_iter().enumerate() {
            timeline.on_status(at(0), process, status(peer, 1, "A"));
        }
        // The first to answer knew a leader that had not answered yet.
        timeline.on_status(at(0), 1, status("B", 1, "A"));
        let members = r#"{"members": [{"id": "n1", "peer_id": "A"}, {"id": "n2", "peer_id": "B"}, {"id": "n3", "name": "node-3"}]}"#;
        timeline.on_members(at(0), &serde_json::from_str(members).unwrap());
        timeline
    }

    /// The same after one sparse round and one dense one.
    pub(crate) fn trained() -> Timeline {
        let mut timeline = formed();
        timeline.on_submitted(at(1), "job-9");
        timeline.on_job(
            at(3),
            &job(
                r#"{"phase": "running", "parameters": 10, "history": [
                    {"round": 1, "kind": "sparse", "pairs": [["n1", "n2"]], "alone": ["n3"], "merged": [["n1", "n2"]], "took_ms": 900,
                     "nodes": [{"node": "n1", "loss": 0.25, "samples": 64, "sent_bytes": 1000}]},
                    {"round": 2, "kind": "dense", "pairs": [["n1", "n3"]], "alone": ["n2"], "merged": [], "took_ms": 200,
                     "nodes": [{"node": "n1", "loss": 0.0, "samples": 0, "sent_bytes": 1000}]}],
                    "evaluations": [{"round": 1, "averaged_accuracy": 0.8, "local_accuracy": 0.7, "local": {"n2": 0.75}}]}"#,
            ),
        );
        timeline
    }

    fn job(text: &str) -> JobDocument {
        serde_json::from_str(text).unwrap()
    }

    fn status(peer: &str, term: u64, leader: &str) -> Option<StatusDocument> {
        let text = format!(
            r#"{{"peer_id": "{peer}", "node": {{"state": "active"}}, "raft": {{"term": {term}, "leader": "{leader}"}}}}"#
        );
        Some(serde_json::from_str(&text).unwrap())
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
}
