//! Takes incoming connections of one socket: limits first, then handshakes, then each to where it belongs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tracing::debug;

use super::dial::{Error, HANDSHAKE_TIMEOUT};
use super::listener::Arrived;
use super::muxer::Muxer;
use super::session::REFUSED;
use super::tls::{Protocol, peer_of};
use super::{Quic, settings};
use crate::driver::addresses::prefix;
use crate::{Dialed, SocketId, Unwelcome};
use lapwing_base::PeerId;

/// Handshakes at once: each costs a signature and some 30 KiB until it is done.
const HANDSHAKES_MAX: usize = 1024;

/// Of these, from one /24 or /48, so that one network leaves room for others.
const HANDSHAKES_PER_PREFIX_MAX: usize = 256;

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
    let mut handshakes = Handshakes::default();
    loop {
        tokio::select! {
            () = quic.stop.cancelled() => break,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => begin(&quic, incoming, &mut handshakes),
                None => break,
            },
            Some(done) = handshakes.next() => {
                let connection = match done {
                    Ok((peer, connection)) => sort(&quic, peer, connection, socket),
                    Err(error) => {
                        quic.shared.refused.count(Unwelcome::FailedHandshake);
                        debug!(%error, "an incoming handshake failed");
                        None
                    }
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

/// Those under way, and from which networks they come.
#[derive(Default)]
struct Handshakes {
    running: JoinSet<Handshake>,
    from: HashMap<Id, IpAddr>,
    per_prefix: HashMap<IpAddr, usize>,
}

type Handshake = Result<(PeerId, Connection), Error>;

impl Handshakes {
    fn len(&self) -> usize {
        self.running.len()
    }

    fn is_crowded(&self, from: IpAddr) -> bool {
        self.len() >= HANDSHAKES_MAX
            || self
                .per_prefix
                .get(&prefix(from))
                .is_some_and(|count| *count >= HANDSHAKES_PER_PREFIX_MAX)
    }

    fn spawn(&mut self, from: IpAddr, handshake: impl Future<Output = Handshake> + Send + 'static) {
        let from = prefix(from);
        let id = self.running.spawn(handshake).id();
        self.from.insert(id, from);
        *self.per_prefix.entry(from).or_default() += 1;
    }

    /// The next that is done; `None` when none is under way, or one has panicked, which has been reported.
    async fn next(&mut self) -> Option<Handshake> {
        let (id, done) = match self.running.join_next_with_id().await? {
            Ok((id, done)) => (id, Some(done)),
            Err(error) => (error.id(), None),
        };
        if let Some(from) = self.from.remove(&id)
            && let Some(count) = self.per_prefix.get_mut(&from)
        {
            *count -= 1;
            if *count == 0 {
                self.per_prefix.remove(&from);
            }
        }
        done
    }
}

fn begin(quic: &Quic, incoming: Incoming, handshakes: &mut Handshakes) {
    let from = incoming.remote_address().ip();
    if handshakes.is_crowded(from) {
        quic.shared.refused.count(Unwelcome::CrowdedHandshake);
        return incoming.refuse();
    }
    if handshakes.len() >= RETRY_FROM && !incoming.remote_address_validated() {
        quic.shared.refused.count(Unwelcome::RetriedHandshake);
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
            handshakes.spawn(from, async move {
                let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
                    .await
                    .map_err(|_| Error::Timeout)??;
                let peer = peer_of(&connection)?;
                Ok((peer, connection))
            });
        }
        Err(error) => {
            quic.shared.refused.count(Unwelcome::FailedHandshake);
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
