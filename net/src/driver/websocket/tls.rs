//! The outer TLS: what firewalls and proxies expect to see on port 443. Proves nothing to us; see the parent.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use thiserror::Error;

/// What browsers speak WebSocket over.
const ALPN: &[u8] = b"http/1.1";

/// A certificate and its key, as an operator's tools write them, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    /// The chain, the leaf first.
    pub(crate) chain: PathBuf,
    /// The leaf's key: PKCS #8, PKCS #1 or SEC 1.
    pub(crate) key: PathBuf,
}

/// Why a relay has no certificate to show.
#[derive(Debug, Error)]
pub(crate) enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {expected} in PEM", file.display())]
    Content {
        /// Which.
        file: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The key is not the certificate's, or of a kind that cannot be used.
    #[error("the certificate in {} and its key cannot be used together", chain.display())]
    Mismatch {
        /// The file of the certificate.
        chain: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// A certificate of our own could not be made.
    #[error("cannot make a certificate")]
    Make(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What those who dial use. Never asks for early data, and keeps nothing of one session for the next.
pub(crate) fn client_config() -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What a listener uses: the operator's certificate, or one that it makes up.
pub(crate) fn server_config(files: Option<&CertificateFiles>) -> Result<ServerConfig, CertificateError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| CertificateError::Make(error.into()))?
        .with_no_client_auth();
    let mut config = match files {
        Some(files) => {
            let chain = read_chain(files)?;
            let key = read_key(files)?;
            builder
                .with_single_cert(chain, key)
                .map_err(|source| CertificateError::Mismatch {
                    chain: files.chain.clone(),
                    source,
                })?
        }
        None => {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
                .map_err(|error| CertificateError::Make(error.into()))?;
            let key = PrivatePkcs8KeyDer::from(made.key_pair.serialize_der());
            builder
                .with_single_cert(vec![made.cert.der().clone()], key.into())
                .map_err(|error| CertificateError::Make(error.into()))?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Nobody resumes, so tickets would only cost memory and bytes.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read_chain(files: &CertificateFiles) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let file = &files.chain;
    let empty = || CertificateError::Content {
        file: file.clone(),
        expected: "certificate",
    };
    let bytes = read(file)?;
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(empty()),
    }
}

fn read_key(files: &CertificateFiles) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let file = &files.key;
    // What the parser says could quote the key, so it is not passed on.
    PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|_| CertificateError::Content {
        file: file.clone(),
        expected: "private key",
    })
}

fn read(file: &PathBuf) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(file).map_err(|source| CertificateError::Read {
        file: file.clone(),
        source,
    })
}

/// Takes whatever certificate is shown: the peer proves who it is with noise, inside.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn a_relay_without_files_makes_a_certificate() {
        server_config(None).unwrap();
    }

    #[test]
    fn an_operators_certificate_is_used() {
        let (chain, key) = made();
        let (_folder, files) = files(&chain, &key);
        server_config(Some(&files)).unwrap();
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let (chain, key) = made();
        let (_folder, swapped) = files(&key, &chain);
        let error = server_config(Some(&swapped)).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("chain.pem holds no certificate in PEM"),
            "{error}"
        );
        let (_folder, no_key) = files(&chain, &chain);
        let error = server_config(Some(&no_key)).unwrap_err();
        assert!(
            error.to_string().ends_with("key.pem holds no private key in PEM"),
            "{error}"
        );
        let (folder, files) = files(&chain, &key);
        std::fs::remove_file(folder.path().join("key.pem")).unwrap();
        let error = server_config(Some(&files)).unwrap_err();
        assert!(matches!(error, CertificateError::Read { .. }));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let ((chain, _), (_, key)) = (made(), made());
        let (_folder, files) = files(&chain, &key);
        let error = server_config(Some(&files)).unwrap_err();
        assert!(matches!(error, CertificateError::Mismatch { .. }), "{error}");
    }

    /// A certificate and its key, in PEM.
    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["main.example".to_owned()]).unwrap();
        let pem = |kind: &str, der: &[u8]| {
            format!(
                "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
                STANDARD.encode(der)
            )
        };
        let chain = pem("CERTIFICATE", made.cert.der());
        let key = pem("PRIVATE KEY", &made.key_pair.serialize_der());
        (chain, key)
    }

    fn files(chain: &str, key: &str) -> (tempfile::TempDir, CertificateFiles) {
        let folder = tempfile::tempdir().unwrap();
        let files = CertificateFiles {
            chain: folder.path().join("chain.pem"),
            key: folder.path().join("key.pem"),
        };
        std::fs::write(&files.chain, chain).unwrap();
        std::fs::write(&files.key, key).unwrap();
        (folder, files)
    }
}
