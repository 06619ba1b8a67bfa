//! Takes incoming connections of one socket: handshakes as [`Admission`] says, then each to where it belongs.

use std::collections::HashMap;
use std::sync::Arc;

use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tracing::debug;

use super::admission::{Admission, Arrival, Ticket, Turn};
use super::dial::{Error, HANDSHAKE_TIMEOUT};
use super::listener::Arrived;
use super::muxer::Muxer;
use super::session::REFUSED;
use super::tls::{Protocol, peer_of};
use super::{Quic, settings};
use crate::driver::now;
use crate::{Dialed, SocketId, Unwelcome};
use lapwing_base::PeerId;

/// Runs until the endpoint is closed or the network stops.
pub(super) async fn run(
    quic: Arc<Quic>,
    endpoint: Endpoint,
    socket: SocketId,
    arrived: mpsc::Sender<Arrived>,
) {
    let mut handshakes = Handshakes::new();
    loop {
        handshakes.take_turns(&quic);
        let turn_at = handshakes.admission.next_at();
        tokio::select! {
            () = quic.stop.cancelled() => break,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => handshakes.take(&quic, incoming),
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
            () = tokio::time::sleep_until(turn_at.unwrap_or_else(now).into()), if turn_at.is_some() => (),
        }
    }
}

/// Those under way, and those that wait.
struct Handshakes {
    admission: Admission<Incoming>,
    running: JoinSet<Handshake>,
    tickets: HashMap<Id, Ticket>,
}

type Handshake = Result<(PeerId, Connection), Error>;

impl Handshakes {
    fn new() -> Self {
        Self {
            admission: Admission::new(),
            running: JoinSet::new(),
            tickets: HashMap::new(),
        }
    }

    /// Somebody wants to connect.
    fn take(&mut self, quic: &Quic, incoming: Incoming) {
        let from = incoming.remote_address().ip();
        let proven = incoming.remote_address_validated();
        match self.admission.arrived(incoming, from, proven, now()) {
            Arrival::Waits => (),
            Arrival::Prove(incoming) => {
                quic.shared.refused.count(Unwelcome::RetriedHandshake);
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
            }
            Arrival::Refuse(incoming) => refuse(quic, incoming),
        }
    }

    /// Begins those whose turn it is.
    fn take_turns(&mut self, quic: &Quic) {
        while let Some(turn) = self.admission.next(now()) {
            match turn {
                Turn::Begin(incoming, ticket) => self.begin(quic, incoming, ticket),
                Turn::Refuse(incoming) => refuse(quic, incoming),
            }
        }
    }

    fn begin(&mut self, quic: &Quic, incoming: Incoming, ticket: Ticket) {
        let route = quic.settings.towards(incoming.remote_address());
        let config = if settings::is_bulk(&incoming.orig_dst_cid()) {
            &route.accept_bulk
        } else {
            &route.accept
        };
        match incoming.accept_with(Arc::clone(config)) {
            Ok(connecting) => {
                let handshake = async move {
                    let connection = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
                        .await
                        .map_err(|_| Error::Timeout)??;
                    let peer = peer_of(&connection)?;
                    Ok((peer, connection))
                };
                let id = self.running.spawn(handshake).id();
                self.tickets.insert(id, ticket);
            }
            Err(error) => {
                self.admission.ended(ticket);
                quic.shared.refused.count(Unwelcome::FailedHandshake);
                debug!(%error, "an incoming connection is not one");
            }
        }
    }

    /// The next that is done; `None` when none is under way, or one has panicked, which has been reported.
    async fn next(&mut self) -> Option<Handshake> {
        let (id, done) = match self.running.join_next_with_id().await? {
            Ok((id, done)) => (id, Some(done)),
            Err(error) => (error.id(), None),
        };
        if let Some(ticket) = self.tickets.remove(&id) {
            self.admission.ended(ticket);
        }
        done
    }
}

fn refuse(quic: &Quic, incoming: Incoming) {
    quic.shared.refused.count(Unwelcome::CrowdedHandshake);
    incoming.refuse();
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
