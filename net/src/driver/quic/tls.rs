//! Who is at the other end of a QUIC connection: TLS 1.3 with libp2p's certificates.
//!
//! Source: the libp2p TLS specification (<https://github.com/libp2p/specs/blob/master/tls/tls.md>).

use std::sync::Arc;

use libp2p::tls;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, NoKeyLog, ServerConfig};

use lapwing_base::{Keypair, PeerId};

/// What travels over a connection, as its two ends agree in the handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    /// libp2p's protocols beside class streams of ours: between two nodes of ours.
    Session,
    /// Class streams of bulk only, beside a session with the same peer.
    Bulk,
    /// libp2p's protocols only: with any other implementation.
    Libp2p,
}

impl Protocol {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Session => b"lapwing/1",
            Self::Bulk => b"lapwing-bulk/1",
            Self::Libp2p => b"libp2p",
        }
    }

    /// What the two ends have agreed on.
    pub(crate) fn of(connection: &quinn::Connection) -> Option<Self> {
        let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
        let agreed = data.protocol?;
        [Self::Session, Self::Bulk, Self::Libp2p]
            .into_iter()
            .find(|protocol| protocol.name() == agreed)
    }
}

/// The certificate of this node, in the four uses it has; made anew at each start.
pub(crate) struct Identity {
    pub(crate) dial: Arc<QuicClientConfig>,
    pub(crate) dial_bulk: Arc<QuicClientConfig>,
    pub(crate) accept: Arc<QuicServerConfig>,
    pub(crate) accept_bulk: Arc<QuicServerConfig>,
}

impl Identity {
    /// # Errors
    /// When no certificate can be made for the key.
    pub(crate) fn new(keypair: &Keypair) -> Result<Self, IdentityError> {
        let client = tls::make_client_config(keypair, None)?;
        let server = tls::make_server_config(keypair)?;
        Ok(Self {
            dial: Arc::new(dialing(client.clone(), &[Protocol::Session, Protocol::Libp2p])?),
            dial_bulk: Arc::new(dialing(client, &[Protocol::Bulk])?),
            accept: Arc::new(accepting(server.clone(), &[Protocol::Session, Protocol::Libp2p])?),
            accept_bulk: Arc::new(accepting(server, &[Protocol::Bulk])?),
        })
    }
}

fn dialing(mut config: ClientConfig, protocols: &[Protocol]) -> Result<QuicClientConfig, IdentityError> {
    config.alpn_protocols = protocols
        .iter()
        .map(|protocol| protocol.name().to_vec())
        .collect();
    // Secrets are written to no file, whatever the environment says.
    config.key_log = Arc::new(NoKeyLog);
    Ok(config.try_into()?)
}

fn accepting(mut config: ServerConfig, protocols: &[Protocol]) -> Result<QuicServerConfig, IdentityError> {
    config.alpn_protocols = protocols
        .iter()
        .map(|protocol| protocol.name().to_vec())
        .collect();
    config.key_log = Arc::new(NoKeyLog);
    Ok(config.try_into()?)
}

/// Who has proved to be at the other end.
///
/// # Errors
/// When its certificate is not one of libp2p's; the handshake does not let such a one pass.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Result<PeerId, IdentityError> {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .unwrap_or_default();
    let certificate = certificates.first().ok_or(IdentityError::NoCertificate)?;
    Ok(tls::certificate::parse(certificate)?.peer_id())
}

/// There is no identity to show, or none was shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("cannot make a certificate")]
    Make(#[from] tls::certificate::GenError),
    #[error("the TLS library has no cipher that QUIC needs")]
    Cipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    #[error("the peer has shown no certificate")]
    NoCertificate,
    #[error("the peer's certificate is not one of libp2p's")]
    Parse(#[from] tls::certificate::ParseError),
}
