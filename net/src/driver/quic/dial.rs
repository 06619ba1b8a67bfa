//! Dialing: a session with a node of ours, a plain connection with anybody else, a bulk lane beside a session.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use libp2p::core::transport::PortUse;
use quinn::{ConnectError, Connection, ConnectionError};

use super::muxer::Muxer;
use super::session::{REFUSED, Session, SessionEvent};
use super::tls::{IdentityError, Protocol, peer_of};
use super::{Local, Quic};
use crate::Dialed;
use crate::driver::explain::REASON_MAX;
use crate::said::legible;
use lapwing_base::PeerId;

/// Two round trips at 600 ms and one lost packet.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// QUIC wants a server's name, and libp2p's certificates have none.
const SERVER_NAME: &str = "l";

/// Connects, and makes a session where the peer speaks our protocol.
///
/// Whoever answers that is not the expected peer gets no session; the swarm closes the connection and says who it is.
pub(super) async fn dial(
    quic: Arc<Quic>,
    remote: SocketAddr,
    expected: Option<PeerId>,
    port: PortUse,
) -> Result<(PeerId, Muxer), Error> {
    let local = match port {
        PortUse::Reuse => quic.local_for(remote)?,
        PortUse::New => quic.local_apart(remote)?,
    };
    let (peer, connection) = handshake(&local, quic.settings.towards(remote).dial.clone(), remote).await?;
    let is_expected = expected.is_none_or(|expected| expected == peer);
    let muxer = if Protocol::of(&connection) != Some(Protocol::Session) {
        if is_expected {
            // Nobody listens where the whole network has stopped.
            let _ = quic.events.send(SessionEvent::Foreign(peer)).await;
        }
        Muxer::direct(connection)
    } else if is_expected {
        quic.begin(peer, Dialed::ByUs, local.socket.id(), connection)
    } else {
        Muxer::direct(connection)
    };
    Ok((peer, muxer))
}

impl Quic {
    /// Connects once more to where a session leads, for bulk.
    pub(super) fn dial_bulk(
        &self,
        session: &Session,
        remote: SocketAddr,
    ) -> BoxFuture<'static, Result<Connection, String>> {
        let local = {
            let locals = self.locals();
            locals
                .iter()
                .find(|local| local.socket.id() == session.socket)
                .cloned()
        };
        let (config, expected) = (self.settings.towards(remote).dial_bulk.clone(), session.peer);
        Box::pin(async move {
            let local = local.ok_or_else(|| "its socket is closed".to_owned())?;
            let (peer, connection) = handshake(&local, config, remote)
                .await
                .map_err(|error| legible(&error.to_string(), REASON_MAX))?;
            if peer == expected {
                return Ok(connection);
            }
            connection.close(REFUSED, b"another node was expected");
            Err(format!("at {remote} answers another node, {peer}"))
        })
    }
}

async fn handshake(
    local: &Local,
    config: quinn::ClientConfig,
    remote: SocketAddr,
) -> Result<(PeerId, Connection), Error> {
    let connecting = local.endpoint.connect_with(config, remote, SERVER_NAME)?;
    let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| Error::Timeout)??;
    let peer = peer_of(&connection)?;
    Ok((peer, connection))
}

/// There is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("nobody has answered within {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
}
