//! A peer that is not ours: speaks QUIC with a libp2p certificate, writes any bytes on a stream, and tells what came
//! back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::tls;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};

use crate::nodes::{Node, PATIENCE};
use lapwing_base::{Class, Keypair};

pub(crate) struct RawPeer {
    keypair: Keypair,
    endpoint: Endpoint,
    pub(crate) connection: Connection,
}

/// Longest answer that is read.
const ANSWER_MAX: usize = 1 << 20;

impl RawPeer {
    /// Connects to a node under a fresh identity, as one that speaks its protocol.
    pub(crate) async fn connect(node: &Node) -> Self {
        Self::connect_as(Keypair::generate_ed25519(), node).await
    }

    /// The same under a given identity.
    pub(crate) async fn connect_as(keypair: Keypair, node: &Node) -> Self {
        Self::connect_to(keypair, address(node)).await
    }

    /// Connects to what is at an address, under a fresh identity.
    pub(crate) async fn connect_at(address: SocketAddr) -> Self {
        Self::connect_to(Keypair::generate_ed25519(), address).await
    }

    async fn connect_to(keypair: Keypair, address: SocketAddr) -> Self {
        let config = client_config(&keypair, b"lapwing/1");
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let connection = endpoint
            .connect_with(config, address, "l")
            .unwrap()
            .await
            .unwrap();
        Self {
            keypair,
            endpoint,
            connection,
        }
    }

    /// Shows that it is there, for as long as it is asked.
    pub(crate) async fn is_alive(&self) -> ConnectionError {
        loop {
            match self.connection.read_datagram().await {
                Ok(probe) => {
                    let answer = [&[1], probe.get(1..).unwrap_or_default()].concat();
                    let _ = self.connection.send_datagram(answer.into());
                }
                Err(error) => return error,
            }
        }
    }

    /// Why the node has closed the connection.
    pub(crate) async fn shown_the_door(&self) -> String {
        let closed = tokio::time::timeout(PATIENCE, self.connection.closed()).await;
        closed.unwrap().to_string()
    }

    /// Writes bytes on a control stream, ends it, and reads to its end.
    pub(crate) async fn exchange(&self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        self.exchange_as(Class::Control.index() as u8, bytes).await
    }

    /// The same on a stream with any first byte.
    pub(crate) async fn exchange_as(&self, first: u8, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let exchange = async {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            send.write_all(&[first]).await?;
            send.write_all(&bytes).await?;
            // The node may have stopped reading, which is an answer too.
            let _ = send.finish();
            receive.read_to_end(ANSWER_MAX).await.map_err(io::Error::other)
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap()
    }

    /// Dials a second connection for bulk, under another identity.
    pub(crate) async fn bulk_lane_of_a_stranger(&self, node: &Node) -> Connection {
        let stranger = Keypair::generate_ed25519();
        self.bulk_lane_as(&stranger, node).await
    }

    /// Dials a second connection for bulk.
    pub(crate) async fn bulk_lane(&self, node: &Node) -> Connection {
        self.bulk_lane_as(&self.keypair, node).await
    }

    async fn bulk_lane_as(&self, keypair: &Keypair, node: &Node) -> Connection {
        self.endpoint
            .connect_with(client_config(keypair, b"lapwing-bulk/1"), address(node), "l")
            .unwrap()
            .await
            .unwrap()
    }
}

/// The first packet of a handshake that goes no further.
pub(crate) fn first_packet(node: &Node, now: Instant) -> Vec<u8> {
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, true, None);
    let config = client_config(&Keypair::generate_ed25519(), b"lapwing/1");
    let (_, mut connection) = endpoint.connect(now, config, address(node), "l").unwrap();
    let mut packet = Vec::new();
    let transmit = connection.poll_transmit(now, 1, &mut packet);
    assert!(transmit.is_some(), "whoever dials has something to say");
    packet
}

#[expect(clippy::disallowed_methods, reason = "no two lanes are to share a name")]
fn client_config(keypair: &Keypair, protocol: &[u8]) -> ClientConfig {
    let mut config = tls::make_client_config(keypair, None).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    if protocol == b"lapwing-bulk/1" {
        // What follows the mark tells the lanes of one peer apart.
        let marked = || [*b"lapwbulk", rand::random()].concat();
        config.initial_dst_cid_provider(Arc::new(move || quinn::ConnectionId::new(&marked())));
    }
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    config.transport_config(Arc::new(transport));
    config
}

pub(crate) fn address(node: &Node) -> SocketAddr {
    let address = &node.network.listen_addrs()[0];
    let port = address.iter().find_map(|part| match part {
        Protocol::Udp(port) => Some(port),
        _ => None,
    });
    (Ipv4Addr::LOCALHOST, port.unwrap()).into()
}
