//! The measuring side's network, and the one peer that it measures.

use std::time::Duration;

use super::measuring::PATIENCE;
use super::pipe::Pipe;
use super::serving::{FLOOR, start_network};
use super::{BenchError, failed, kind};
use crate::driver::network::Network;
use lapwing_base::{Class, Multiaddr, PeerId, Role};

/// How long a stream may take to open: a handshake and a bulk lane over the slowest link, with losses.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct Asking {
    network: Network,
    peer: PeerId,
}

impl Asking {
    /// A node that listens nowhere and knows one address of one peer.
    pub(super) async fn start(peer: PeerId, address: Multiaddr) -> Result<Self, BenchError> {
        let network = start_network(Vec::new(), Role::Home).await?;
        network.learn(peer, vec![address]);
        Ok(Self { network, peer })
    }

    pub(super) async fn open(&self, class: Class) -> Result<Pipe, BenchError> {
        let opening = self.network.open(self.peer, kind(class), OPEN_TIMEOUT);
        Ok(Pipe::channel(opening.await.map_err(failed("open a channel"))?))
    }

    /// The ports of the peer's floors: QUIC's and TCP's.
    pub(super) async fn floors(&self) -> Result<[u16; 2], BenchError> {
        let mut pipe = self.open(Class::Control).await?;
        pipe.out.send(&FLOOR).await?;
        let answer = tokio::time::timeout(PATIENCE, pipe.inn.take()).await;
        let answer: Option<[u8; 4]> = answer.map_err(failed("ask for the floors"))??;
        let [quic_low, quic_high, tcp_low, tcp_high] = answer
            .ok_or("the other end has ended the stream")
            .map_err(failed("ask for the floors"))?;
        Ok([[quic_low, quic_high], [tcp_low, tcp_high]].map(u16::from_le_bytes))
    }

    /// Closes every connection with the peer.
    pub(super) async fn disconnect(&self) {
        self.network.disconnect(self.peer).await;
    }

    pub(super) async fn shutdown(&self) {
        self.network.shutdown().await;
    }
}
