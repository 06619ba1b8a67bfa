//! Turns raft's own measurements and the applied state into what the other rooms read: the roster and raft's
//! status; and keeps the network's address book as the log says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lapwing_base::{LogIndex, NodeId, Roster, Term};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Instant as _, ServerState};

use super::consensus::Inner;
use super::status::{RaftState, RaftStatus};
use crate::State;

/// How often it looks without being told of a change: silence is not an event.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Watches until the member stops.
pub(super) async fn run(inner: Arc<Inner>, mut shown: Option<RosterKey>) {
    let mut metrics = inner.raft.metrics();
    let mut state = inner.state.clone();
    let mut interval = tokio::time::interval(LOOK_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = inner.stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() { return },
            changed = state.changed() => if changed.is_err() { return },
            _ = interval.tick() => {}
        }
        look(&inner, &mut shown);
    }
}

/// Publishes what has changed.
pub(super) fn look(inner: &Inner, shown: &mut Option<RosterKey>) {
    let metrics = inner.raft.metrics().borrow_watched().clone();
    // What is committed, and in the middle of a change only who votes before and after it: nobody is to count
    // on a voter whose vote does not yet replace another's.
    let membership = &metrics.committed_membership_config;
    let voters: BTreeSet<NodeId> = membership
        .voter_ids()
        .filter(|id| {
            membership
                .get_joint_config()
                .iter()
                .all(|config| config.contains(id))
        })
        .map(NodeId)
        .collect();
    let learners: BTreeSet<NodeId> = membership
        .nodes()
        .map(|(id, _)| NodeId(*id))
        .filter(|id| !voters.contains(id))
        .collect();
    let state = match metrics.state {
        ServerState::Learner => RaftState::Learner,
        ServerState::Follower => RaftState::Follower,
        ServerState::Candidate => RaftState::Candidate,
        ServerState::Leader => RaftState::Leader,
        ServerState::Shutdown => RaftState::Stopped,
    };
    let failure = match &metrics.running_state {
        Err(fatal) if !inner.stop.is_cancelled() => Some(fatal.to_string()),
        _ => None,
    };
    // Raft names the last leader until it votes for another, and a learner never votes.
    let heard = inner.leader_silence() <= inner.config.timing.silence_max();
    let leader = metrics
        .current_leader
        .map(NodeId)
        .filter(|_| heard && failure.is_none());
    let quorum = match state {
        RaftState::Leader => {
            voters.len() == 1
                || metrics
                    .last_quorum_acked
                    .is_some_and(|acked| acked.elapsed() <= inner.config.timing.election_max)
        }
        _ => leader.is_some(),
    };
    let index = |log_id: Option<super::types::LogId>| LogIndex(log_id.map_or(0, |log_id| log_id.index));
    let status = RaftStatus {
        state,
        term: Term(metrics.current_term),
        leader,
        voters: voters.clone(),
        learners,
        last_log: LogIndex(metrics.last_log_index.unwrap_or(0)),
        committed: index(metrics.local_committed),
        applied: index(metrics.last_applied),
        quorum,
        failure,
    };
    inner.status.send_if_modified(|before| {
        let changed = *before != status;
        if changed {
            if before.leader != status.leader {
                match status.leader {
                    Some(leader) => tracing::info!(%leader, term = %status.term, "the leader changed"),
                    None => tracing::info!(term = %status.term, "no leader is heard"),
                }
            }
            *before = status.clone();
        }
        changed
    });

    let applied = inner.state.borrow().clone();
    let membership_changed = index(*membership.log_id());
    let key = RosterKey {
        members_changed: applied.members_changed,
        membership_changed,
        leader: status.leader,
        term: status.term,
    };
    if *shown == Some(key) {
        return;
    }
    *shown = Some(key);
    let members = &applied.members;
    inner.roster.send_replace(Arc::new(Roster {
        cluster: inner.cluster,
        version: applied.members_changed.max(membership_changed),
        members: members.clone(),
        voters: voters.into_iter().filter(|id| members.contains_key(id)).collect(),
        leader: status.leader,
        term: status.term,
    }));
    learn(inner, &applied);
}

/// What a roster follows from: a new one is made only when one of these changes, since raft's measurements
/// change with every commit and a roster holds every member.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct RosterKey {
    members_changed: LogIndex,
    membership_changed: LogIndex,
    leader: Option<NodeId>,
    term: Term,
}

/// Tells the network where members listen, and gives up the streams to those that are gone.
fn learn(inner: &Inner, state: &State) {
    let metrics = inner.raft.metrics().borrow_watched().membership_config.clone();
    let mut targets: BTreeSet<u64> = BTreeSet::new();
    for (id, node) in metrics.nodes() {
        targets.insert(*id);
        // Before the entry that made it a member is applied, raft's membership is all that is known.
        if let Some(peer) = node.peer
            && *id != inner.link.me
            && !state.members.contains_key(&NodeId(*id))
        {
            inner.learn(peer, &node.addrs);
        }
    }
    for member in state.members.values().filter(|member| member.id != inner.id) {
        inner.learn(member.peer, &member.addrs);
    }
    inner.link.keep_only(&targets);
}
