//! What follows for the federation from the cluster and the network: what this node is, to whom it belongs, and which mains
//! there are.

use std::collections::HashSet;
use std::sync::Arc;

use lapwing_base::{PeerId, Role, Roster};
use lapwing_federation::Around;
use lapwing_net::Network;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Keeps what the federation knows of others as the roster says, until `stop`. After it there is no cluster, unless the
/// whole node stops: then its neighbours are still to hear that it goes.
pub(crate) async fn feed_members(
    mut rosters: watch::Receiver<Arc<Roster>>,
    me: PeerId,
    around: watch::Sender<Around>,
    stop: CancellationToken,
    node_stop: CancellationToken,
) {
    loop {
        let roster = rosters.borrow_and_update().clone();
        // A log that is still being read has nobody in it yet.
        if !roster.members.is_empty() {
            let members: HashSet<PeerId> = roster.members.values().map(|member| member.peer).collect();
            let mains = mains_of(&roster, me);
            around.send_if_modified(|around| {
                let next = Around {
                    role: around.role,
                    cluster: Some(roster.cluster),
                    members: Some(Arc::new(members)),
                    mains,
                };
                let is_news = *around != next;
                *around = next;
                is_news
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = rosters.changed() => if changed.is_err() { break },
        }
    }
    if !node_stop.is_cancelled() {
        around.send_modify(|around| *around = Around::new(around.role));
    }
}

/// Keeps what the federation knows of this node itself as the network finds out, until `stop`.
pub(crate) async fn feed_role(network: Network, around: watch::Sender<Around>, stop: CancellationToken) {
    let mut reach = network.reach();
    loop {
        let role = reach.borrow_and_update().standing.role;
        around.send_if_modified(|around| std::mem::replace(&mut around.role, role) != role);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = reach.changed() => if changed.is_err() { return },
        }
    }
}

/// The mains of a roster, each node's own order of them: by a hash of both, so that homes spread over the mains evenly, and few
/// of them move when a main comes or goes (rendezvous hashing; Thaler and Ravishankar 1998).
fn mains_of(roster: &Roster, me: PeerId) -> Vec<PeerId> {
    let is_main = |member: &&lapwing_base::Member| member.role == Role::Main && member.peer != me;
    let mut mains: Vec<PeerId> = roster
        .members
        .values()
        .filter(is_main)
        .map(|member| member.peer)
        .collect();
    mains.sort_by_cached_key(|main| weight(me, *main));
    mains
}

fn weight(me: PeerId, main: PeerId) -> [u8; 32] {
    *blake3::hash(&[me.to_bytes(), main.to_bytes()].concat()).as_bytes()
}
