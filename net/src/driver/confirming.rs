//! AutoNAT for peers that are no nodes of ours (`/libp2p/autonat/2`): a main dials back, and so tells them whether they
//! can be reached. Nodes of ours have witnesses, which tell more; see [`crate::Reachability`].
//!
//! libp2p's server (libp2p-autonat 0.16) dials whatever it is told to, once it was sent 30 to 100 kB. Here it dials
//! QUIC only, and only the IP address that the asker itself comes from, so that nobody has us send to others; and few
//! at a time. Whoever asks for more hears that this node is not able to, from which nothing follows for its address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use either::Either;
use libp2p::autonat::v2::server;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour as _, THandler, ToSwarm, dummy,
};
use tracing::trace;

use super::addresses::{ip_of, relay_of};
use super::around::{Around, AroundHandler, Plain, Wants};
use super::quic::from_multiaddr;
use super::shared::Shared;
use lapwing_base::{Multiaddr, PeerId};

/// libp2p's AutoNAT server behind a door.
pub(crate) struct Confirming {
    inner: server::Behaviour,
    shared: Arc<Shared>,
    serves: bool,
    /// Connections of strangers who may ask, with where they come from: as many as there may be strangers.
    askers: HashMap<ConnectionId, (PeerId, IpAddr)>,
    /// What is being dialed for whom; at most [`DIALS_MAX`] of them go on.
    dials: HashMap<ConnectionId, Dial>,
    refused: u64,
}

#[derive(Clone, Copy, Debug)]
struct Dial {
    peer: PeerId,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Asked,
    UnderWay(IpAddr),
    Refused,
}

/// Dials at once, and one at a time to each IP address: each sends four packets of a handshake in three seconds to an
/// address that does not answer.
const DIALS_MAX: usize = 8;

/// The dial is not for this node to make.
#[derive(Debug, thiserror::Error)]
#[error("only few addresses are dialed, and only the asker's own")]
struct NotDialed;

impl Confirming {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            inner: server::Behaviour::default(),
            shared,
            serves: false,
            askers: HashMap::new(),
            dials: HashMap::new(),
            refused: 0,
        }
    }

    /// Answers those who connect from now on, or nobody.
    pub(crate) fn serve(&mut self, serve: bool) {
        self.serves = serve;
    }

    /// Addresses that were not dialed, since the start.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Where a dial for this peer may go.
    fn admitted(&self, peer: &PeerId, addresses: &[Multiaddr]) -> Option<IpAddr> {
        let [address] = addresses else {
            return None;
        };
        let ip = from_multiaddr(address)?.0.ip();
        let is_own = self.askers.values().any(|asker| *asker == (*peer, ip));
        let under_way = || self.dials.values().map(|dial| dial.state);
        let crowded = under_way()
            .filter(|state| matches!(state, State::UnderWay(_)))
            .count()
            >= DIALS_MAX;
        let twice = under_way().any(|state| state == State::UnderWay(ip));
        (is_own && !crowded && !twice).then_some(ip)
    }

    /// Lets go of what the server has kept for a dial that was refused, so that it says that it could not.
    fn forget(&mut self, id: ConnectionId, peer: PeerId) {
        let nowhere = Multiaddr::empty();
        let kept = self.inner.handle_established_outbound_connection(
            id,
            peer,
            &nowhere,
            Endpoint::Dialer,
            PortUse::New,
        );
        drop(kept);
    }
}

impl Around for Confirming {
    type Inner = server::Behaviour;
    type Handler = Handler;

    fn inner(&mut self) -> &mut server::Behaviour {
        &mut self.inner
    }

    fn handler(&self, _: PeerId, inner: Inner) -> Handler {
        Handler { inner }
    }

    fn inbound(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<Inner, ConnectionDenied> {
        match ip_of(remote) {
            Some(ip) if self.serves && relay_of(local).is_none() && !self.shared.is_let_in(&peer) => {
                self.askers.insert(id, (peer, ip));
                self.inner
                    .handle_established_inbound_connection(id, peer, local, remote)
            }
            _ => Ok(Either::Left(Either::Right(dummy::ConnectionHandler))),
        }
    }

    fn pending_outbound(
        &mut self,
        id: ConnectionId,
        _: Option<PeerId>,
        addresses: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let Some(Dial { peer, .. }) = self.dials.get(&id).copied() else {
            return Ok(Vec::new());
        };
        let state = match self.admitted(&peer, addresses) {
            Some(ip) => State::UnderWay(ip),
            None => State::Refused,
        };
        self.dials.insert(id, Dial { peer, state });
        if state == State::Refused {
            self.refused += 1;
            trace!(%peer, ?addresses, "not dialed back");
            return Err(ConnectionDenied::new(NotDialed));
        }
        Ok(Vec::new())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::DialFailure(failure) => {
                if let Some(Dial { peer, state }) = self.dials.remove(&failure.connection_id)
                    && state == State::Refused
                {
                    self.forget(failure.connection_id, peer);
                    return;
                }
            }
            FromSwarm::ConnectionEstablished(established) => {
                self.dials.remove(&established.connection_id);
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.askers.remove(&closed.connection_id);
            }
            FromSwarm::ListenFailure(failure) => {
                // Another protocol has denied it after our handler was made.
                self.askers.remove(&failure.connection_id);
            }
            _ => (),
        }
        self.inner.on_swarm_event(event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wants<server::Behaviour>> {
        let polled = self.inner.poll(cx);
        if let Poll::Ready(ToSwarm::Dial { opts }) = &polled
            && let Some(peer) = opts.get_peer_id()
        {
            let state = State::Asked;
            self.dials.insert(opts.connection_id(), Dial { peer, state });
        }
        polled
    }
}

type Inner = THandler<server::Behaviour>;

/// Of one connection: the server's, or none.
pub(crate) struct Handler {
    inner: Inner,
}

impl AroundHandler for Handler {
    type Inner = Inner;
    type Events = Plain;

    fn inner(&self) -> &Inner {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}
