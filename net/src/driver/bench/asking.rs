//! The measuring side's network, and the one peer that it measures.

use std::sync::Arc;
use std::time::Duration;

use super::greeting::{CLUSTER, Wish, greet};
use super::pipe::Pipe;
use super::serving::start_network;
use super::target::{Relay, Target};
use super::{BenchError, LISTEN_ANY, failed, kind};
use crate::driver::network::Network;
use crate::{Gate, LinkStatus};
use lapwing_base::{Class, Keypair, PeerId, Role};

/// How long a stream may take to open: a handshake and a bulk lane over the slowest link, with losses.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// The same where a relay is on the way: bulk waits until it is sure that there is no direct path.
const OPEN_RELAYED_TIMEOUT: Duration = Duration::from_secs(60);

/// The other end is asked whether it is free.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// It is told that it is; if it does not hear it, it notices in a few seconds.
const LEAVING_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Asking {
    network: Network,
    peer: PeerId,
    /// The ports of the peer's floors: QUIC's and TCP's.
    pub(super) floors: [u16; 2],
    open_timeout: Duration,
}

impl Asking {
    /// A node that may measure a server. Through a relay the two have not met yet.
    pub(super) async fn start(target: &Target) -> Result<Self, BenchError> {
        match &target.relay {
            None => Self::beside(target).await,
            Some(relay) => Self::across(target, relay).await,
        }
    }

    /// A node that listens nowhere and knows one address of one peer, whose end it notices at once.
    async fn beside(target: &Target) -> Result<Self, BenchError> {
        let gate = Gate {
            watched: Arc::new([target.peer].into()),
            ..Gate::default()
        };
        let network = start_network(Keypair::generate_ed25519(), Vec::new(), Role::Home, gate).await?;
        network.learn(target.peer, vec![target.address.clone()]);
        let wish = Wish::Measure(network.peer_id());
        let greeted = greet(&network, target.peer, wish, GREETING_TIMEOUT).await;
        Ok(Self {
            floors: or_shut_down(&network, greeted).await?,
            network,
            peer: target.peer,
            open_timeout: OPEN_TIMEOUT,
        })
    }

    /// A home that is known to a relay, and which the server expects.
    async fn across(target: &Target, relay: &Relay) -> Result<Self, BenchError> {
        let keypair = Keypair::generate_ed25519();
        let me = keypair.public().to_peer_id();
        // Somebody else goes ahead, so that what it learns of the way does not help.
        let scout = guest(Keypair::generate_ed25519(), relay, None).await?;
        scout.learn(target.peer, vec![target.address.clone()]);
        let introduced = async {
            greet(&scout, relay.peer, Wish::Join(me), GREETING_TIMEOUT).await?;
            greet(&scout, target.peer, Wish::Measure(me), GREETING_TIMEOUT).await
        };
        let floors = introduced.await;
        scout.shutdown().await;
        let floors = floors?;
        let network = guest(keypair, relay, Some(target.peer)).await?;
        network.learn(target.peer, vec![target.address.clone()]);
        // With the answer it has heard where the relay sees it, as a node that has been there for a while.
        let greeted = greet(&network, relay.peer, Wish::Join(me), GREETING_TIMEOUT).await;
        or_shut_down(&network, greeted).await?;
        Ok(Self {
            network,
            peer: target.peer,
            floors,
            open_timeout: OPEN_RELAYED_TIMEOUT,
        })
    }

    /// Waits for the first link with the peer.
    pub(super) async fn connect(&self) -> Result<(), BenchError> {
        let connected = self.network.connect(self.peer, self.open_timeout).await;
        connected.map_err(failed("reach the other end"))
    }

    /// What leads to the peer now.
    pub(super) fn link(&self) -> Option<LinkStatus> {
        let peers = self.network.status().peers;
        peers.into_iter().find(|entry| entry.peer == self.peer)?.link
    }

    /// Why no direct link does.
    pub(super) fn relayed_because(&self) -> String {
        let peers = self.network.status().peers;
        let because = peers.into_iter().find(|entry| entry.peer == self.peer);
        let because = because.and_then(|entry| entry.relayed_because);
        because.map_or_else(|| "no reason is known".to_owned(), |because| because.to_string())
    }

    pub(super) async fn open(&self, class: Class) -> Result<Pipe, BenchError> {
        let opening = self.network.open(self.peer, kind(class), self.open_timeout);
        Ok(Pipe::channel(opening.await.map_err(failed("open a channel"))?))
    }

    /// Closes every connection with the peer.
    pub(super) async fn disconnect(&self) {
        self.network.disconnect(self.peer).await;
    }

    /// Lets others measure, and ends.
    pub(super) async fn shutdown(&self) {
        let wish = Wish::Leave(self.network.peer_id());
        if self.link().is_some() {
            // It may have gone first.
            let _ = greet(&self.network, self.peer, wish, LEAVING_TIMEOUT).await;
        }
        self.network.shutdown().await;
    }
}

/// A member of the measurement, with one relay and perhaps somebody to find.
async fn guest(keypair: Keypair, relay: &Relay, other: Option<PeerId>) -> Result<Network, BenchError> {
    let gate = Gate {
        cluster: Some(CLUSTER),
        members: Arc::new(other.into_iter().chain([relay.peer]).collect()),
        mains: Arc::new([relay.peer].into()),
        watched: Arc::new(other.into_iter().chain([relay.peer]).collect()),
    };
    let listen = vec![LISTEN_ANY.parse().map_err(failed("listen"))?];
    let network = start_network(keypair, listen, Role::Home, gate).await?;
    network.learn(relay.peer, vec![relay.address.clone()]);
    Ok(network)
}

/// Nothing stays of a network that is not used.
async fn or_shut_down<T>(network: &Network, outcome: Result<T, BenchError>) -> Result<T, BenchError> {
    if outcome.is_err() {
        network.shutdown().await;
    }
    outcome
}
