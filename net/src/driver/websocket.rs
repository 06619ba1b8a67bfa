//! Peers over WebSocket in TLS, for nodes that can send no UDP: on port 443 it passes firewalls, and HTTP proxies.
//!
//! From the bottom: TCP (perhaps through a proxy's `CONNECT`), TLS 1.3, WebSocket with binary frames, and inside of
//! that a plain stream of bytes on which libp2p's noise and yamux run as on any. It interoperates with libp2p's
//! `/tls/ws`. It is a transport only: when to fall back to it, and when to leave it again, is decided elsewhere.
//!
//! # Security
//!
//! The outer TLS exists to pass what stands between two peers, and proves nothing. A relay may show its operator's
//! certificate or one that it made up, and whoever dials accepts any. Somebody in between can therefore open the
//! outer TLS, as corporate proxies do, and then sees exactly what he would see of a connection without it: a noise
//! handshake (XX, with ephemeral keys signed by the identities) and then noise's ciphertext. He learns the peer ids
//! no more than their sizes and times tell, cannot read or change what is said without both ends noticing, and can
//! only cut the connection, as he can anyway. Who the other end is, noise proves: its payload is signed with the key
//! that the peer id is made of, and a dial whose address names a peer fails when another answers.
//!
//! Nothing may therefore ever be sent between the outer TLS and noise that must be kept secret or must be believed.
//! What is sent there is the request for a WebSocket, whose path and host come from the address.

mod accepting;
mod address;
mod dialing;
mod handshakes;
mod proxy;
mod stream;
mod tcp;
mod tls;
mod transport;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future;
use libp2p::core::ConnectedPoint;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, Transport as _};
use libp2p::core::upgrade::Version;
use libp2p::{noise, yamux};
use thiserror::Error;

pub use proxy::{Proxy, ProxySettingError};
pub(crate) use tls::{CertificateError, CertificateFiles};

use crate::driver::shared::lock;
use address::{expected_peer, listen_socket};
use handshakes::Handshakes;
use lapwing_base::{Keypair, PeerId};
use transport::{Setup, WebSocketTransport};

/// Substreams of one connection: a lane for all classes, and libp2p's own protocols, which come and go.
const SUBSTREAMS_MAX: usize = 128;

/// How this transport behaves.
#[derive(Clone, Debug)]
pub(crate) struct WebSocketConfig {
    /// The way out. Default: the direct one; see [`Proxy::from_environment`].
    pub(crate) proxy: Option<Proxy>,
    /// What a listener shows. Default: a certificate made at the start, which passes whatever does not look inside.
    pub(crate) certificate: Option<CertificateFiles>,
    /// How long a dial may take up to the WebSocket, and again up to the muxer. Default 10 s: seven round trips of
    /// 600 ms, and one lost packet with its retransmissions.
    pub(crate) dial_timeout: Duration,
    /// How long somebody who connects may take for the same. Default 10 s, for the same reason.
    pub(crate) handshake_timeout: Duration,
    /// Handshakes that may be in progress. Default 512: at some 2 ms of work each, what one core does in a second.
    pub(crate) handshakes_max: usize,
    /// Of these, from one /24 or /48. Default 128, so that one network leaves room for others.
    pub(crate) handshakes_per_prefix_max: usize,
}

impl Default for WebSocketConfig {
    fn default() -> Self {
        Self {
            proxy: None,
            certificate: None,
            dial_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            handshakes_max: 512,
            handshakes_per_prefix_max: 128,
        }
    }
}

/// What was turned away.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    refused_crowded: AtomicU64,
    refused_prefix: AtomicU64,
    failed_handshakes: AtomicU64,
}

impl Counters {
    /// Connections closed unheard since there were too many handshakes.
    pub(crate) fn refused_crowded(&self) -> u64 {
        self.refused_crowded.load(Ordering::Relaxed)
    }

    /// Connections closed unheard since there were too many handshakes from their network.
    pub(crate) fn refused_prefix(&self) -> u64 {
        self.refused_prefix.load(Ordering::Relaxed)
    }

    /// Handshakes that were begun and gave no WebSocket: garbage, web pages, silence. What fails in noise, after
    /// that, is not counted here.
    pub(crate) fn failed_handshakes(&self) -> u64 {
        self.failed_handshakes.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Why there is no such transport.
#[derive(Debug, Error)]
pub(crate) enum SetupError {
    /// The operator's certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The outer TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The identity cannot sign noise's key.
    #[error("cannot set up noise")]
    Noise(#[from] noise::Error),
}

/// Another peer than the one dialed answered.
#[derive(Debug, Error)]
#[error("another peer answered, {obtained}, instead of {expected}")]
struct WrongPeer {
    obtained: PeerId,
    expected: PeerId,
}

/// The transport, up to authenticated and multiplexed connections. What it turns away moves the counters.
///
/// It dials `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/tls/ws` (or `…/wss`, or `…/tls/sni/NAME/ws`) and listens on the same
/// with an IP address; port 0 takes a free one. It must be used inside of a tokio runtime.
///
/// # Errors
/// When the certificate, TLS or noise cannot be set up.
pub(crate) fn transport(
    keypair: &Keypair,
    config: &WebSocketConfig,
    counters: &Arc<Counters>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, SetupError> {
    let handshakes = Handshakes::new(config.handshakes_max, config.handshakes_per_prefix_max);
    let handshakes = Arc::new(Mutex::new(handshakes));
    let setup = Setup {
        client: Arc::new(tls::client_config()?),
        server: Arc::new(tls::server_config(config.certificate.as_ref())?),
        proxy: config.proxy.clone(),
        dial_timeout: config.dial_timeout,
        handshake_timeout: config.handshake_timeout,
        counters: Arc::clone(counters),
    };
    let mut muxer = yamux::Config::default();
    muxer.set_max_num_streams(SUBSTREAMS_MAX);
    let transport = WebSocketTransport::new(setup, Arc::clone(&handshakes))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(muxer)
        // The steps below have timeouts of their own, which say more; this one ends what is silent in noise.
        .outbound_timeout(2 * config.dial_timeout)
        .inbound_timeout(2 * config.handshake_timeout)
        .boxed()
        .and_then(move |(peer, muxer), point| {
            let expected = match &point {
                ConnectedPoint::Dialer { address, .. } => expected_peer(address),
                ConnectedPoint::Listener {
                    local_addr,
                    send_back_addr,
                } => {
                    if let (Some(ours), Some(theirs)) =
                        (listen_socket(local_addr), listen_socket(send_back_addr))
                    {
                        lock(&handshakes).established((ours, theirs));
                    }
                    None
                }
            };
            future::ready(match expected {
                Some(expected) if expected != peer => Err(WrongPeer {
                    obtained: peer,
                    expected,
                }),
                _ => Ok((peer, muxer)),
            })
        })
        .boxed();
    Ok(transport)
}

#[cfg(test)]
mod tests;
