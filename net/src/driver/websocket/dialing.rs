//! From an address to a stream of bytes, on the side that dials: TCP, perhaps a proxy, TLS, WebSocket.
//! Says which step failed.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::address::{Family, Host, Remote};
use super::proxy::{Proxy, ProxyError};
use super::stream::ByteStream;
use super::tcp;
use crate::driver::http::{Head, Response, upgrade_request};
use crate::driver::timer_now;

/// Plaintext and ciphertext that TLS may hold each, so that a message of a higher class does not wait behind more.
pub(crate) const TLS_BUFFER: usize = 16 * 1024;

/// Why a WebSocket could not be reached.
#[derive(Debug, Error)]
pub(crate) enum DialError {
    /// The name is unknown, or nobody listens there.
    #[error("cannot connect to {to} over TCP")]
    Connect {
        /// The host and port.
        to: String,
        /// What the system says.
        source: io::Error,
    },
    /// The proxy of this machine's settings is not there.
    #[error("cannot connect to the proxy {proxy}, which HTTPS_PROXY names")]
    ProxyUnreachable {
        /// Its host and port.
        proxy: String,
        /// What the system says.
        source: io::Error,
    },
    /// The proxy does not let us through.
    #[error("cannot pass the proxy {proxy} to {to}")]
    Proxy {
        /// Its host and port.
        proxy: String,
        /// Where we want to go.
        to: String,
        /// What it said.
        source: ProxyError,
    },
    /// What answers does not speak TLS 1.3.
    #[error("no TLS with {to}")]
    Tls {
        /// The host and port.
        to: String,
        /// What went wrong.
        source: io::Error,
    },
    /// What answers is some other web server.
    #[error("no WebSocket at {to}: HTTP status {status}")]
    NotWebSocket {
        /// The host and port.
        to: String,
        /// HTTP's number for it.
        status: u16,
    },
    /// What answers is no web server, or went away.
    #[error("no WebSocket at {to}")]
    Handshake {
        /// The host and port.
        to: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Somebody was silent for too long.
    #[error("no answer from {to} within {} s ({step})", after.as_secs_f32())]
    TimedOut {
        /// The host and port.
        to: String,
        /// What was waited for.
        step: Step,
        /// For how long in all.
        after: Duration,
    },
}

/// What a dial is waiting for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Step {
    Tcp,
    Proxy,
    Tls,
    WebSocket,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP connection",
            Self::Proxy => "proxy",
            Self::Tls => "TLS handshake",
            Self::WebSocket => "WebSocket handshake",
        })
    }
}

/// One dial.
#[derive(Debug)]
pub(crate) struct Dialing {
    pub(crate) remote: Remote,
    /// The way out, if not the direct one.
    pub(crate) proxy: Option<Proxy>,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) patience: Duration,
}

impl Dialing {
    /// Connects.
    pub(crate) async fn run<G>(self, guard: G) -> Result<ByteStream<TlsStream<TcpStream>, G>, DialError> {
        let to = self.remote.authority();
        let deadline = timer_now() + self.patience;
        let timed_out = |step| {
            let (to, after) = (to.clone(), self.patience);
            move |_| DialError::TimedOut { to, step, after }
        };
        let stream = match &self.proxy {
            Some(proxy) => {
                let through = timeout_at(deadline, self.through(proxy, &to)).await;
                through.map_err(timed_out(Step::Proxy))??
            }
            None => {
                let direct = tcp::connect(&self.remote.host, self.remote.port);
                let connected = timeout_at(deadline, direct).await.map_err(timed_out(Step::Tcp))?;
                connected.map_err(|source| DialError::Connect {
                    to: to.clone(),
                    source,
                })?
            }
        };
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let secured = connector.connect_with(self.remote.server_name.clone(), stream, |session| {
            session.set_buffer_limit(Some(TLS_BUFFER));
        });
        let secured = timeout_at(deadline, secured)
            .await
            .map_err(timed_out(Step::Tls))?;
        let stream = secured.map_err(|source| DialError::Tls {
            to: to.clone(),
            source,
        })?;
        let upgraded = timeout_at(deadline, self.upgrade(stream.into(), &to)).await;
        let (stream, rest) = upgraded.map_err(timed_out(Step::WebSocket))??;
        Ok(ByteStream::new(stream, rest, Role::Client, guard).await)
    }

    async fn through(&self, proxy: &Proxy, to: &str) -> Result<TcpStream, DialError> {
        let (host, port) = proxy.place();
        let host = match host.parse() {
            Ok(ip) => Host::Ip(ip),
            Err(_) => Host::Name {
                name: host.to_owned(),
                family: Family::Any,
            },
        };
        let connected = tcp::connect(&host, port).await;
        let mut stream = connected.map_err(|source| DialError::ProxyUnreachable {
            proxy: proxy.to_string(),
            source,
        })?;
        let passed = proxy.connect(&mut stream, to).await;
        passed.map_err(|source| DialError::Proxy {
            proxy: proxy.to_string(),
            to: to.to_owned(),
            source,
        })?;
        Ok(stream)
    }

    async fn upgrade(
        &self,
        mut stream: TlsStream<TcpStream>,
        to: &str,
    ) -> Result<(TlsStream<TcpStream>, Vec<u8>), DialError> {
        let failed = |source| DialError::Handshake {
            to: to.to_owned(),
            source,
        };
        let key = generate_key();
        let request = upgrade_request(to, &self.remote.path, &key);
        stream.write_all(request.as_bytes()).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let head = Head::read(&mut stream).await.map_err(failed)?;
        let not_http = || {
            failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is not HTTP",
            ))
        };
        let response = Response::parse(&head.bytes).ok_or_else(not_http)?;
        if !response.switches(&key) {
            return Err(DialError::NotWebSocket {
                to: to.to_owned(),
                status: response.status,
            });
        }
        Ok((stream, head.rest))
    }
}
