//! What our network is compared with: QUIC as its library ships it, and plain TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lapwing_base::Keypair;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, ServerConfig, TransportConfig};
use rustls::CipherSuite;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pipe::Pipe;
use super::serving::attend;
use super::{BenchError, failed};
use crate::driver::quic::client_config;

/// Both ends have it, as TLS wants one.
const SERVER_NAME: &str = "l";
const PROTOCOL: &[u8] = b"lapwing-bench-floor/1";

/// A third of the library's own patience with a silent connection, and of a NAT's with a mapping.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// In the order in which the TLS library itself prefers them.
const SHIPPED_CIPHERS: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// The answering side. It ends when the endpoint is closed and the listener's task is dropped with the tracker's.
#[derive(Debug)]
pub(super) struct FloorServer {
    endpoint: Endpoint,
    pub(super) quic: SocketAddr,
    pub(super) tcp: SocketAddr,
}

impl FloorServer {
    /// Binds on the same interface as the network that is measured.
    pub(super) async fn start(
        address: SocketAddr,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, BenchError> {
        let tls = libp2p::tls::make_server_config(&Keypair::generate_ed25519());
        let mut tls = tls.map_err(failed("make a certificate"))?;
        tls.alpn_protocols = vec![PROTOCOL.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).map_err(failed("set up QUIC"))?;
        let config = ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = Endpoint::server(config, address).map_err(failed("bind QUIC"))?;
        let listener = TcpListener::bind(address).await.map_err(failed("bind TCP"))?;
        let floor = Self {
            quic: endpoint.local_addr().map_err(failed("bind QUIC"))?,
            tcp: listener.local_addr().map_err(failed("bind TCP"))?,
            endpoint: endpoint.clone(),
        };
        tasks.spawn(accept_quic(endpoint, tasks.clone()));
        let (accepting, stop) = (accept_tcp(listener, tasks.clone(), stop.clone()), stop.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(accepting).await;
        });
        Ok(floor)
    }

    pub(super) async fn close(&self) {
        self.endpoint.close(0_u32.into(), b"done");
        self.endpoint.wait_idle().await;
    }
}

async fn accept_quic(endpoint: Endpoint, tasks: TaskTracker) {
    while let Some(incoming) = endpoint.accept().await {
        let serving = tasks.clone();
        tasks.spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            // It ends with the connection.
            while let Ok(streams) = connection.accept_bi().await {
                serving.spawn(attend(Pipe::quic(streams)));
            }
        });
    }
}

async fn accept_tcp(listener: TcpListener, tasks: TaskTracker, stop: CancellationToken) {
    while let Ok((stream, _)) = listener.accept().await {
        if let Ok(pipe) = Pipe::tcp(stream) {
            let stop = stop.clone();
            tasks.spawn(async move {
                stop.run_until_cancelled(attend(pipe)).await;
            });
        }
    }
}

/// The asking side.
#[derive(Debug)]
pub(super) struct Floor {
    endpoint: Endpoint,
    quic: SocketAddr,
    tcp: SocketAddr,
}

impl Floor {
    pub(super) fn new(quic: SocketAddr, tcp: SocketAddr) -> Result<Self, BenchError> {
        let any: SocketAddr = if quic.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0; 16], 0).into()
        };
        let mut endpoint = Endpoint::client(any).map_err(failed("bind QUIC"))?;
        let tls = client_config(&Keypair::generate_ed25519(), SHIPPED_CIPHERS);
        let mut tls = tls.map_err(failed("make a certificate"))?;
        tls.alpn_protocols = vec![PROTOCOL.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(failed("set up QUIC"))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        // It stays while others are measured, which changes nothing else.
        let mut transport = TransportConfig::default();
        transport.keep_alive_interval(Some(KEEP_ALIVE));
        config.transport_config(Arc::new(transport));
        endpoint.set_default_client_config(config);
        Ok(Self { endpoint, quic, tcp })
    }

    /// A connection with the library's own settings.
    pub(super) async fn connect(&self) -> Result<Connection, BenchError> {
        let connecting = self.endpoint.connect(self.quic, SERVER_NAME);
        connecting
            .map_err(failed("connect over QUIC"))?
            .await
            .map_err(failed("connect over QUIC"))
    }

    pub(super) async fn tcp(&self) -> Result<Pipe, BenchError> {
        let stream = TcpStream::connect(self.tcp).await;
        Pipe::tcp(stream.map_err(failed("connect over TCP"))?)
    }

    pub(super) async fn close(&self) {
        self.endpoint.close(0_u32.into(), b"done");
        self.endpoint.wait_idle().await;
    }
}
