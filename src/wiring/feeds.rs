//! What follows from the roster and the state of the cluster: whom the network lets in and where it finds
//! them, and what the trainer has to know.

use super::registration::GatewayLink;
use crate::node::card_of;
use crate::rate_rules::RateRules;
use lapwing_base::{NodeId, Roster};
use lapwing_consensus::{Consensus, State};
use lapwing_net::{Gate, Network};
use lapwing_train::Applied;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Whom a roster lets in.
pub(crate) fn gate_of(roster: &Roster) -> Gate {
    // Voters are mains wherever there are enough of them.
    let voters = roster.voters.iter().filter_map(|id| roster.members.get(id));
    let gate = Gate::of(roster.cluster, roster.members.values());
    let watched = gate
        .mains
        .iter()
        .copied()
        .chain(voters.map(|voter| voter.peer))
        .collect();
    Gate {
        watched: Arc::new(watched),
        ..gate
    }
}

/// Keeps the network's gate, its address book and the limits of members that are called by name (of what is sent, and
/// of what is received) as the roster says, until `stop`.
pub(crate) async fn feed_network(
    mut rosters: watch::Receiver<Arc<Roster>>,
    me: NodeId,
    network: Network,
    gate: watch::Sender<Gate>,
    rates: [RateRules; 2],
    stop: CancellationToken,
) {
    let mut known = HashSet::new();
    loop {
        let roster = rosters.borrow_and_update().clone();
        // A log that is still being read has nobody in it yet; what the node knew before stays.
        if !roster.members.is_empty() {
            if known.is_empty() {
                rates.iter().for_each(|rules| rules.tell_of_strangers(&roster));
            }
            let [upload, download] = rates.each_ref().map(|rules| rules.peers(&roster));
            network.limit_peers(upload, download);
            let next = gate_of(&roster);
            for member in roster.members.values().filter(|member| member.id != me) {
                network.learn(member.peer, member.addrs.clone());
            }
            let gone: Vec<_> = known.difference(&*next.members).copied().collect();
            known.clone_from(&next.members);
            gate.send_replace(next);
            for peer in gone {
                network.disconnect(peer).await;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = rosters.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells the log and the gateways where this node can be reached, as that changes, until `stop`.
pub(crate) async fn feed_card(
    network: Network,
    consensus: Option<Consensus>,
    gateway: Option<GatewayLink>,
    stop: CancellationToken,
) {
    let mut reach = network.reach();
    loop {
        reach.mark_unchanged();
        let card = card_of(&network);
        if let Some(gateway) = &gateway {
            gateway.reached_at(card.clone());
        }
        if let Some(consensus) = &consensus {
            consensus.set_card(card);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = reach.changed() => if changed.is_err() { return },
        }
    }
}

/// What the trainer sees now.
pub(crate) fn applied(roster: &Arc<Roster>, state: &State) -> Applied {
    Applied {
        roster: roster.clone(),
        job: state.current_job().cloned(),
    }
}

/// Keeps the trainer's view as the log says, until `stop`.
pub(crate) async fn feed_trainer(
    consensus: Consensus,
    applied_sender: watch::Sender<Applied>,
    stop: CancellationToken,
) {
    let (mut states, mut rosters) = (consensus.state(), consensus.roster());
    loop {
        let (state, roster) = (
            states.borrow_and_update().clone(),
            rosters.borrow_and_update().clone(),
        );
        let next = applied(&roster, &state);
        applied_sender.send_if_modified(|seen| {
            let same_job = match (&seen.job, &next.job) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            let same = same_job && Arc::ptr_eq(&seen.roster, &next.roster);
            *seen = next;
            !same
        });
        tokio::select! {
            () = stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
            changed = rosters.changed() => if changed.is_err() { return },
        }
    }
}
