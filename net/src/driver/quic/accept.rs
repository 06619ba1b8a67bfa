//! Takes incoming connections of one socket: limits first, then handshakes, then each to where it belongs.

use std::sync::Arc;

use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use super::dial::{Error, HANDSHAKE_TIMEOUT};
use super::listener::Arrived;
use super::muxer::Muxer;
use super::session::REFUSED;
use super::tls::{Protocol, peer_of};
use super::{Quic, settings};
use crate::{Dialed, SocketId};
use lapwing_base::PeerId;

/// Handshakes at once: each costs a signature and some 30 KiB until it is done.
const HANDSHAKES_MAX: usize = 1024;

/// From as many handshakes on, whoever comes first has to prove that it receives at its address (RFC 9000 section
/// 8.1.2), so that forged addresses cost us a packet and no signature.
const RETRY_FROM: usize = 64;

/// Runs until the endpoint is closed or the network stops.
pub(super) async fn run(
    quic: Arc<Quic>,
    endpoint: Endpoint,
    socket: SocketId,
    arrived: mpsc::Sender<Arrived>,
) {
    let mut handshakes: JoinSet<Result<(PeerId, Connection), Error>> = JoinSet::new();
    loop {
        tokio::select! {
            () = quic.stop.cancelled() => break,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => begin(&quic, incoming, &mut handshakes),
                None => break,
            },
            Some(done) = handshakes.join_next() => {
                let connection = match done {
                    Ok(Ok((peer, connection))) => sort(&quic, peer, connection, socket),
                    Ok(Err(error)) => {
                        quic.shared.refused.handshake_failed();
                        debug!(%error, "an incoming handshake failed");
                        None
                    }
                    // It panicked, which has been reported, or the runtime is stopping.
                    Err(_) => None,
                };
                if let Some(connection) = connection
                    && arrived.send(connection).await.is_err()
                {
                    break;
                }
            }
        }
    }
}

fn begin(quic: &Quic, incoming: Incoming, handshakes: &mut JoinSet<Result<(PeerId, Connection), Error>>) {
    if handshakes.len() >= HANDSHAKES_MAX {
        quic.shared.refused.handshake_refused();
        return incoming.refuse();
    }
    if handshakes.len() >= RETRY_FROM && !incoming.remote_address_validated() {
        quic.shared.refused.handshake_retried();
        if let Err(error) = incoming.retry() {
            error.into_incoming().refuse();
        }
        return;
    }
    let route = quic.settings.towards(incoming.remote_address());
    let config = if settings::is_bulk(&incoming.orig_dst_cid()) {
        &route.accept_bulk
    } else {
        &route.accept
    };
    match incoming.accept_with(Arc::clone(config)) {
        Ok(connecting) => {
            handshakes.spawn(async move {
                let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
                    .await
                    .map_err(|_| Error::Timeout)??;
                let peer = peer_of(&connection)?;
                Ok((peer, connection))
            });
        }
        Err(error) => {
            quic.shared.refused.handshake_failed();
            debug!(%error, "an incoming connection is not one");
        }
    }
}

/// What libp2p is to see of a connection.
fn sort(quic: &Arc<Quic>, peer: PeerId, connection: Connection, socket: SocketId) -> Option<Arrived> {
    let remote = connection.remote_address();
    let muxer = match Protocol::of(&connection) {
        Some(Protocol::Session) => quic.begin(peer, Dialed::ByThem, socket, connection),
        Some(Protocol::Libp2p) => Muxer::direct(connection),
        Some(Protocol::Bulk) => {
            quic.attach_bulk(peer, connection);
            return None;
        }
        None => {
            connection.close(REFUSED, b"no protocol in common");
            return None;
        }
    };
    Some(Arrived { peer, muxer, remote })
}
