//! Who is at the other end of a QUIC connection: TLS 1.3 with libp2p's certificates.
//!
//! Source: the libp2p TLS specification (<https://github.com/libp2p/specs/blob/master/tls/tls.md>).

use std::sync::Arc;

use libp2p::tls;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CipherSuite, ClientConfig, DigitallySignedStruct, NoKeyLog, ServerConfig, SignatureScheme};

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
        let client = client_config(keypair, preferred_ciphers())?;
        let server = tls::make_server_config(keypair)?;
        Ok(Self {
            dial: Arc::new(dialing(client.clone(), &[Protocol::Session, Protocol::Libp2p])?),
            dial_bulk: Arc::new(dialing(client, &[Protocol::Bulk])?),
            accept: Arc::new(accepting(server.clone(), &[Protocol::Session, Protocol::Libp2p])?),
            accept_bulk: Arc::new(accepting(server, &[Protocol::Bulk])?),
        })
    }
}

/// How a node dials: as libp2p does, but with the ciphers in another order. Where the dialer may choose, it chooses,
/// and libp2p's order begins with the one that costs three times as much where the processor helps with the others.
///
/// # Errors
/// When no certificate can be made for the key.
pub(crate) fn client_config(
    keypair: &Keypair,
    ciphers: [CipherSuite; 3],
) -> Result<ClientConfig, IdentityError> {
    let usual = tls::make_client_config(keypair, None)?;
    let mut provider = CryptoProvider::clone(usual.crypto_provider());
    let place = |suite| ciphers.iter().position(|cipher| *cipher == suite);
    provider
        .cipher_suites
        .sort_by_key(|suite| place(suite.suite()).unwrap_or(usize::MAX));
    let verifier = Arc::new(AnyPeer(
        provider.signature_verification_algorithms.supported_schemes(),
    ));
    Ok(ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(usual.client_auth_cert_resolver))
}

/// What this machine is fastest with first.
fn preferred_ciphers() -> [CipherSuite; 3] {
    let [small, large] = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
    ];
    let software = CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
    if has_aes() {
        [small, large, software]
    } else {
        [software, small, large]
    }
}

/// Whether the processor has instructions for AES.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// Takes a certificate of libp2p's, whoever's it is: who was expected is compared after the handshake, so that the
/// error can name who has answered.
#[derive(Debug)]
struct AnyPeer(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyPeer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !intermediates.is_empty() {
            return Err(rustls::Error::General(
                "there is more than one certificate".to_owned(),
            ));
        }
        // It is self-signed, and the peer's key has signed the certificate's.
        tls::certificate::parse(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let certificate = tls::certificate::parse(certificate)?;
        certificate.verify_signature(signature.scheme, message, signature.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
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
    #[error("the TLS library does not take the settings")]
    Settings(#[from] rustls::Error),
    #[error("the TLS library has no cipher that QUIC needs")]
    Cipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    #[error("the peer has shown no certificate")]
    NoCertificate,
    #[error("the peer's certificate is not one of libp2p's")]
    Parse(#[from] tls::certificate::ParseError),
}
