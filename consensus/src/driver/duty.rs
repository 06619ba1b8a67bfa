//! What a leader does for its members: asks the reconciler, and carries out what it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapwing_base::NodeId;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{ChangeMembers, Instant as _, RaftMetrics, ServerState};

use super::consensus::{Inner, NODE_ADDRS_MAX};
use super::types::{RaftNode, TypeConfig, raft_id};
use super::wire::Told;
use super::{draw_request_id, now};
use crate::promotion::{Action, Reconciler, View};
use crate::{Applied, Command, Request, State};

/// How often the members are looked at: a fraction of the shortest patience.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long one action may take; a change of voters is two commits.
const ACTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Rest after an action that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Actions in one look, so that a fault of the rules cannot fill the log in a moment.
const ACTIONS_MAX: usize = 64;

/// Watches until the member stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut state = inner.state.clone();
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut term: Option<(u64, Reconciler)> = None;
    let mut leader_before: Option<NodeId> = None;
    loop {
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            _ = interval.tick() => {}
        }
        state.mark_unchanged();
        let metrics = metrics(&inner);
        if !leads(&metrics) {
            term = None;
            let other = metrics
                .current_leader
                .map(NodeId)
                .filter(|leader| *leader != inner.id);
            leader_before = other.or(leader_before);
            continue;
        }
        let reconciler = match &mut term {
            Some((led, reconciler)) if *led == metrics.current_term => reconciler,
            _ => {
                let silent = leader_before
                    .filter(|before| *before != inner.id)
                    .zip(inner.link.leader_heard_at())
                    .map(|(before, heard)| (before, now().saturating_duration_since(heard)));
                tracing::info!(term = metrics.current_term, "this node leads");
                &mut term
                    .insert((metrics.current_term, Reconciler::new(now(), silent)))
                    .1
            }
        };
        leader_before = Some(inner.id);
        let work = care(&inner, reconciler);
        if inner.stop.run_until_cancelled(work).await.is_none() {
            return;
        }
    }
}

fn metrics(inner: &Inner) -> RaftMetrics<TypeConfig> {
    inner.raft.metrics().borrow_watched().clone()
}

/// Whether this node leads, and has applied an entry of its own term: before that its state may be old.
fn leads(metrics: &RaftMetrics<TypeConfig>) -> bool {
    metrics.state == ServerState::Leader
        && metrics
            .last_applied
            .is_some_and(|applied| applied.leader_id.term == metrics.current_term)
}

async fn care(inner: &Inner, reconciler: &mut Reconciler) {
    for _ in 0..ACTIONS_MAX {
        let metrics = metrics(inner);
        let state = inner.state.borrow().clone();
        if !leads(&metrics) || state.cluster.is_none() {
            return;
        }
        // A leader that died between the two steps of a change of voters has left the first one, under which both
        // the old and the new voters must agree.
        if metrics.membership_config.get_joint_config().len() > 1 {
            let finished = tokio::time::timeout(
                ACTION_TIMEOUT,
                change(inner, ChangeMembers::AddVoterIds(BTreeSet::new())),
            );
            if !matches!(finished.await, Ok(Ok(()))) {
                tokio::time::sleep(RETRY_INTERVAL).await;
                return;
            }
            continue;
        }
        let Some(action) = decide(inner, reconciler, &metrics, &state) else {
            return;
        };
        tracing::debug!(?action, "caring for the members");
        let done = tokio::time::timeout(ACTION_TIMEOUT, act(inner, &state, &action)).await;
        let failure = match done {
            Ok(Ok(Acted::Done)) => continue,
            Ok(Ok(Acted::HandingOver)) => {
                tokio::time::sleep(RETRY_INTERVAL).await;
                return;
            }
            Ok(Err(failure)) => failure,
            Err(_) => format!("not done in {ACTION_TIMEOUT:?}"),
        };
        tracing::debug!(?action, %failure, "an action for the members failed");
        tokio::time::sleep(RETRY_INTERVAL).await;
        return;
    }
}

fn decide(
    inner: &Inner,
    reconciler: &mut Reconciler,
    metrics: &RaftMetrics<TypeConfig>,
    state: &State,
) -> Option<Action> {
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<NodeId> = membership.voter_ids().map(NodeId).collect();
    let learners: BTreeSet<NodeId> = membership.learner_ids().map(NodeId).collect();
    let last = metrics.last_log_index.unwrap_or(0);
    let lag: BTreeMap<NodeId, u64> = metrics
        .replication
        .iter()
        .flatten()
        .filter_map(|(id, matched)| Some((NodeId(*id), last.saturating_sub(matched.as_ref()?.index))))
        .collect();
    let now = now();
    let heard: BTreeMap<NodeId, Instant> = metrics
        .heartbeat
        .iter()
        .flatten()
        .filter_map(|(id, heard)| Some((NodeId(*id), now.checked_sub(heard.as_ref()?.elapsed())?)))
        .collect();
    let view = View {
        me: inner.id,
        members: &state.members,
        pins: &state.pins,
        voters: &voters,
        learners: &learners,
        lag: &lag,
        heard: &heard,
        timing: inner.config.timing.with_settings_of(state),
    };
    reconciler.next(&view, now)
}

/// How an action ended that did not fail.
enum Acted {
    Done,
    /// Another one is about to lead; until then there is nothing else to do.
    HandingOver,
}

/// Carries one action out, and tells of it once it is done: a leader that cannot commit tries again and again.
async fn act(inner: &Inner, state: &State, action: &Action) -> Result<Acted, String> {
    let one = |id: NodeId| BTreeSet::from([raft_id(id)]);
    match *action {
        Action::AddLearner(id) => {
            let Some(member) = state.members.get(&id) else {
                return Ok(Acted::Done);
            };
            let node = RaftNode {
                peer: Some(member.peer),
                addrs: member.addrs.iter().take(NODE_ADDRS_MAX).cloned().collect(),
            };
            inner.learn(member.peer, &member.addrs);
            change(
                inner,
                ChangeMembers::AddNodes(BTreeMap::from([(raft_id(id), node)])),
            )
            .await?;
        }
        Action::Promote(id) => {
            change(inner, ChangeMembers::AddVoterIds(one(id))).await?;
            tracing::info!(member = %id, "promoted to voter");
        }
        Action::Replace { promote, demote } => {
            let both = vec![
                ChangeMembers::AddVoterIds(one(promote)),
                ChangeMembers::RemoveVoters(one(demote)),
            ];
            change(inner, ChangeMembers::Batch(both)).await?;
            tracing::info!(%promote, %demote, "a voter is replaced");
        }
        Action::Demote(id) => {
            change(inner, ChangeMembers::RemoveVoters(one(id))).await?;
            tracing::info!(member = %id, "demoted to learner");
        }
        Action::RemoveFromRaft(id) => change(inner, ChangeMembers::RemoveNodes(one(id))).await?,
        Action::Suspect(id) => {
            commit(inner, Command::Suspect { id }).await?;
            tracing::info!(member = %id, "suspected");
        }
        Action::Restore(id) => commit(inner, Command::Restore { id }).await?,
        Action::Activate(id) => commit(inner, Command::Activate { id }).await?,
        Action::Remove(id) => {
            commit(inner, Command::Remove { id }).await?;
            tracing::info!(member = %id, "removed");
        }
        Action::TransferLeader(id) => {
            let told = inner.raft.trigger().transfer_leader(raft_id(id)).await;
            told.map_err(|fatal| fatal.to_string())?;
            return Ok(Acted::HandingOver);
        }
    }
    Ok(Acted::Done)
}

/// Changes raft's membership; demoted voters stay as learners.
async fn change(inner: &Inner, change: ChangeMembers<u64, RaftNode>) -> Result<(), String> {
    let changed = inner.raft.change_membership(change, true).await;
    changed.map(drop).map_err(|error| error.to_string())
}

async fn commit(inner: &Inner, command: Command) -> Result<(), String> {
    let id = draw_request_id();
    match inner.commit(Request { id, command }, ACTION_TIMEOUT).await {
        Told::Applied(Applied::Refused(reason)) => Err(reason.to_string()),
        Told::Applied(_) => Ok(()),
        Told::Failed(why) => Err(why),
        Told::NotLeader { .. } | Told::ReadIndex(_) | Told::Done => Err("this node leads no more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use lapwing_base::{ClusterId, Keypair, Role};
    use lapwing_net::{Gate, Network, NetworkConfig};
    use openraft::{EntryPayload, Membership};
    use tokio::sync::watch;

    use super::super::consensus::{Consensus, ConsensusConfig, Start};
    use super::*;
    use crate::Timing;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_of_voters_that_was_left_half_done_is_finished() {
        let directory = tempfile::TempDir::new().unwrap();
        let (_gate, gate) = watch::channel(Gate::default());
        let config = NetworkConfig {
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
            ..NetworkConfig::new(Keypair::generate_ed25519())
        };
        let network = Network::start(config, gate).await.unwrap();
        let config = ConsensusConfig {
            data_dir: directory.path().to_path_buf(),
            peer: network.peer_id(),
            name: "founder".to_owned(),
            addrs: Vec::new(),
            role: Role::Main,
            timing: Timing::default(),
        };
        let cluster = ClusterId::from_bytes([4; 16]);
        let consensus = Consensus::start(config, Start::Found { cluster, epoch: 1 }, network.clone())
            .await
            .unwrap();

        let raft = consensus.raft_for_tests();
        let nodes = BTreeMap::from([(
            1,
            raft.metrics()
                .borrow_watched()
                .membership_config
                .get_node(&1)
                .unwrap()
                .clone(),
        )]);
        let half_done = Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1])], nodes).unwrap();
        raft.append_membership(half_done, EntryPayload::Blank, [])
            .await
            .unwrap();

        let wait = raft.wait(Some(Duration::from_secs(30)));
        let finished = wait.metrics(
            |metrics| metrics.committed_membership_config.get_joint_config().len() == 1,
            "one configuration",
        );
        finished.await.unwrap();
        consensus.shutdown().await;
        network.shutdown().await;
    }
}
