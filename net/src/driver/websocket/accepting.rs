//! From a TCP connection to a stream of bytes, on the side that listens: TLS, WebSocket. Whoever wants something
//! else is answered and let go.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use thiserror::Error;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::dialing::TLS_BUFFER;
use super::stream::ByteStream;
use crate::driver::http::{BAD_REQUEST, Head, PAGE, Request, switching};

/// Why somebody who connected did not get a WebSocket.
#[derive(Debug, Error)]
pub(crate) enum AcceptError {
    /// No TLS 1.3, or none that can be agreed on.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// A browser, a crawler or a check of a load balancer; it got a page.
    #[error("a web page was asked for")]
    Page,
    /// What came is not HTTP.
    #[error("what came is not HTTP")]
    Nonsense,
    /// The connection failed.
    #[error("the connection was lost in the handshake")]
    Io(#[source] io::Error),
    /// Nothing more came for too long.
    #[error("the handshake took longer than {} s", .0.as_secs_f32())]
    TimedOut(Duration),
}

/// Does the handshakes of a connection.
pub(crate) async fn accept<G>(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    patience: Duration,
    guard: G,
) -> Result<ByteStream<TlsStream<TcpStream>, G>, AcceptError> {
    let secured = timeout(patience, secure(stream, tls)).await;
    let (stream, rest) = secured.map_err(|_| AcceptError::TimedOut(patience))??;
    Ok(ByteStream::new(stream, rest, Role::Server, guard).await)
}

async fn secure(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
) -> Result<(TlsStream<TcpStream>, Vec<u8>), AcceptError> {
    let accepting = TlsAcceptor::from(tls).accept_with(stream, |session| {
        session.set_buffer_limit(Some(TLS_BUFFER));
    });
    let mut stream = TlsStream::from(accepting.await.map_err(AcceptError::Tls)?);
    let head = match Head::read(&mut stream).await {
        Ok(head) => head,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(refuse(stream, BAD_REQUEST, AcceptError::Nonsense).await);
        }
        Err(error) => return Err(AcceptError::Io(error)),
    };
    let answer = match Request::parse(&head.bytes) {
        Request::WebSocket { key } => switching(&key),
        Request::Page => return Err(refuse(stream, PAGE, AcceptError::Page).await),
        Request::Nonsense => return Err(refuse(stream, BAD_REQUEST, AcceptError::Nonsense).await),
    };
    stream
        .write_all(answer.as_bytes())
        .await
        .map_err(AcceptError::Io)?;
    stream.flush().await.map_err(AcceptError::Io)?;
    Ok((stream, head.rest))
}

/// Answers, closes in order, and gives back why.
async fn refuse(mut stream: TlsStream<TcpStream>, answer: &str, because: AcceptError) -> AcceptError {
    let answered = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    match answered.await {
        Ok(()) => because,
        Err(error) => AcceptError::Io(error),
    }
}
