//! Mains to look for, and what a network that is not a member anywhere finds out with their help. Says nothing of
//! what that means.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use lapwing_base::{Keypair, Multiaddr, PeerId};
use lapwing_net::{CandidateRow, Gate, LinkStatus, Network, NetworkConfig, ReachStatus, StartError};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Mains that are asked: one to be reached by, one to look from another place, one more against a dead one.
const ASKED_MAX: usize = 3;

/// Mains that are tried until so many answer: three times as many, so that it ends where none does.
const TRIED_MAX: usize = 3 * ASKED_MAX;

/// A main answers within this, or is of no use: a climb over all paths.
const MAIN_PATIENCE: Duration = Duration::from_secs(8);

/// Being looked at from outside: a question that is passed on, its patience, and once again.
const LOOK_PATIENCE: Duration = Duration::from_secs(12);

/// Mains and where each is said to be, in the order in which they were named first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Mains(Vec<(PeerId, Vec<Multiaddr>)>);

impl Mains {
    /// Somebody has named a main; one that is known already is merged.
    pub(super) fn add(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        let at = self.0.iter().position(|(known, _)| *known == peer);
        let at = at.unwrap_or_else(|| {
            self.0.push((peer, Vec::new()));
            self.0.len() - 1
        });
        for address in addresses {
            if !self.0[at].1.contains(&address) {
                self.0[at].1.push(address);
            }
        }
    }

    /// Whether nobody has named one.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every address of every main.
    pub(super) fn addresses(&self) -> Vec<&Multiaddr> {
        self.0.iter().flat_map(|(_, addresses)| addresses).collect()
    }
}

/// What was found out.
#[derive(Debug)]
pub(super) struct Seen {
    /// Every main that was tried, and its link, or why there is none.
    pub(super) mains: Vec<(PeerId, Result<Option<LinkStatus>, String>)>,
    /// What the network knows of its own place.
    pub(super) reach: ReachStatus,
    /// Every address of a main that was tried.
    pub(super) tried: Vec<(PeerId, CandidateRow)>,
}

/// Starts a network that listens on `listen`, connects to some of the mains and has itself looked at.
///
/// # Errors
/// When an address cannot be listened on.
pub(super) async fn look(
    keypair: Keypair,
    mains: &Mains,
    listen: Vec<Multiaddr>,
) -> Result<Seen, StartError> {
    let mut waiting: VecDeque<_> = mains.0.iter().take(TRIED_MAX).cloned().collect();
    let gate = Gate {
        mains: Arc::new(waiting.iter().map(|(peer, _)| *peer).collect()),
        ..Gate::default()
    };
    let (_gate, gates) = watch::channel(gate);
    let config = NetworkConfig {
        listen,
        // It comes and goes: a router's port would stay behind it, and nobody is to find it.
        maps_port: false,
        finds_neighbours: false,
        ..NetworkConfig::new(keypair)
    };
    let network = Network::start(config, gates).await?;
    let mut answered: Vec<(PeerId, Option<String>)> = Vec::new();
    let mut connecting = JoinSet::new();
    loop {
        let reached = answered.iter().filter(|(_, error)| error.is_none()).count();
        while reached + connecting.len() < ASKED_MAX
            && let Some((peer, addresses)) = waiting.pop_front()
        {
            network.learn(peer, addresses);
            let network = network.clone();
            connecting.spawn(async move {
                let connected = network.connect(peer, MAIN_PATIENCE).await;
                (peer, connected.err().map(|error| error.to_string()))
            });
        }
        let Some(ended) = connecting.join_next().await else {
            break;
        };
        // A task that was cancelled ends with the process.
        answered.extend(ended.ok());
    }
    if answered.iter().any(|(_, error)| error.is_none()) {
        let mut reach = network.reach();
        let settled = reach.wait_for(|reach| !reach.standing.provisional);
        // Without a third party it may stay provisional, which is told.
        let _ = tokio::time::timeout(LOOK_PATIENCE, settled).await;
    }
    let status = network.status();
    let link_of = |peer: &PeerId| {
        let known = status.peers.iter().find(|known| known.peer == *peer);
        known.and_then(|known| known.link)
    };
    let mut tried = Vec::new();
    for (peer, _) in &answered {
        let rows = network.candidates(*peer).await;
        tried.extend(rows.into_iter().map(|row| (*peer, row)));
    }
    let mains = answered.into_iter().map(|(peer, error)| {
        let seen = match error {
            Some(error) => Err(error),
            None => Ok(link_of(&peer)),
        };
        (peer, seen)
    });
    let seen = Seen {
        mains: mains.collect(),
        reach: network.reach().borrow().clone(),
        tried,
    };
    network.shutdown().await;
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_that_two_gateways_name_is_one_with_all_its_addresses() {
        let (a, b) = (PeerId::random(), PeerId::random());
        let at = |port: u16| -> Multiaddr { format!("/ip4/192.0.2.1/udp/{port}/quic-v1").parse().unwrap() };
        let mut mains = Mains::default();
        mains.add(a, [at(1)]);
        mains.add(b, [at(2)]);
        mains.add(a, [at(1), at(3)]);
        assert_eq!(mains.0, [(a, vec![at(1), at(3)]), (b, vec![at(2)])]);
    }
}
