//! A peer that is not ours: speaks QUIC with a libp2p certificate, writes any bytes on a stream, and tells what came
//! back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use libp2p::multiaddr::Protocol;
use libp2p::tls;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint};

use crate::nodes::{Node, PATIENCE};
use lapwing_base::{Class, Keypair};

pub(crate) struct RawPeer {
    endpoint: Endpoint,
    connection: Connection,
}

/// Longest answer that is read.
const ANSWER_MAX: usize = 1 << 20;

impl RawPeer {
    /// Connects to a node under a fresh identity, as one that speaks its protocol.
    pub(crate) async fn connect(node: &Node) -> Self {
        let config = client_config(b"lapwing/1");
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let connection = endpoint
            .connect_with(config, address(node), "l")
            .unwrap()
            .await
            .unwrap();
        Self { endpoint, connection }
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
        self.endpoint
            .connect_with(client_config(b"lapwing-bulk/1"), address(node), "l")
            .unwrap()
            .await
            .unwrap()
    }
}

fn client_config(protocol: &[u8]) -> ClientConfig {
    let keypair = Keypair::generate_ed25519();
    let mut config = tls::make_client_config(&keypair, None).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    if protocol == b"lapwing-bulk/1" {
        config.initial_dst_cid_provider(Arc::new(|| quinn::ConnectionId::new(b"lapwbulk-raw-peer-20")));
    }
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    config.transport_config(Arc::new(transport));
    config
}

fn address(node: &Node) -> SocketAddr {
    let address = &node.network.listen_addrs()[0];
    let port = address.iter().find_map(|part| match part {
        Protocol::Udp(port) => Some(port),
        _ => None,
    });
    (Ipv4Addr::LOCALHOST, port.unwrap()).into()
}
