//! A gateway on a free port, nodes with fresh keys, and plain HTTP.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use lapwing_base::{ClusterId, Keypair, PeerId, Role, Term};
use lapwing_gateway::{Client, ClientConfig, Gateway, GatewayConfig, Message, Registration, Signed};
use reqwest::StatusCode;
use serde_json::Value;

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
pub(crate) const OTHER: ClusterId = ClusterId::from_bytes([2; 16]);

pub(crate) fn config(dir: &Path) -> GatewayConfig {
    GatewayConfig {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        data_dir: dir.to_owned(),
        ..GatewayConfig::default()
    }
}

pub(crate) async fn start(dir: &Path) -> Gateway {
    Gateway::start(config(dir)).await.unwrap()
}

pub(crate) fn url(addr: SocketAddr) -> String {
    format!("http://{addr}")
}

/// An address on which nobody listens.
pub(crate) fn dead_addr() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// A node: its key, and a client of the given gateways.
pub(crate) struct Node {
    pub(crate) keypair: Keypair,
    pub(crate) client: Arc<Client>,
    pub(crate) gateways: Vec<SocketAddr>,
}

impl Node {
    pub(crate) fn new(gateways: &[SocketAddr]) -> Self {
        Self::with(gateways, ClientConfig::default(), Keypair::generate_ed25519())
    }

    /// The same identity at another gateway.
    pub(crate) fn at(&self, gateway: SocketAddr) -> Self {
        Self::with(&[gateway], ClientConfig::default(), self.keypair.clone())
    }

    pub(crate) fn with(gateways: &[SocketAddr], config: ClientConfig, keypair: Keypair) -> Self {
        let config = ClientConfig {
            gateways: gateways.iter().copied().map(url).collect(),
            ..config
        };
        let client = Arc::new(Client::new(config, keypair.clone()).unwrap());
        Self {
            keypair,
            client,
            gateways: gateways.to_vec(),
        }
    }

    pub(crate) fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    pub(crate) fn registration(&self) -> Registration {
        Registration {
            peer_id: self.peer_id(),
            addrs: vec!["/ip4/127.0.0.1/udp/4001/quic-v1".parse().unwrap()],
            name: "alice".to_owned(),
            capabilities: vec!["train".to_owned()],
            role: Role::Main,
            cluster_id: None,
            term: None,
            leader: None,
            incarnation: 1,
            seq: 0,
        }
    }

    /// As a member of [`CLUSTER`] that leads it in `term`.
    pub(crate) fn membership(&self, term: u64) -> Registration {
        Registration {
            cluster_id: Some(CLUSTER),
            term: Some(Term(term)),
            leader: Some(self.peer_id()),
            ..self.registration()
        }
    }

    pub(crate) fn sign(&self, message: impl Message) -> Value {
        serde_json::to_value(Signed::new(message, &self.keypair).unwrap()).unwrap()
    }
}

/// Plain HTTP to one gateway.
pub(crate) struct Http {
    client: reqwest::Client,
    addr: SocketAddr,
}

impl Http {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy();
        Self {
            client: client.build().unwrap(),
            addr,
        }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, format!("http://{}{path}", self.addr))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        read(self.request("GET", path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        read(self.request("POST", path).json(body)).await
    }
}

/// Sends, and reads the answer as JSON; null for an empty body.
pub(crate) async fn read(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body = response.bytes().await.unwrap();
    let body = if body.is_empty() {
        b"null".as_slice()
    } else {
        &body
    };
    (status, serde_json::from_slice(body).unwrap())
}
