//! The relay service (circuit relay v2): libp2p's, for whom we choose. Everybody else finds that we do not speak it.

use std::sync::Arc;
use std::time::Duration;

use either::Either;
use libp2p::relay;
use libp2p::swarm::{ConnectionHandler, THandler, dummy};

use super::around::{Around, AroundHandler, Listens, Plain};
use super::shared::Shared;
use lapwing_base::PeerId;

/// Reservations at once: as many homes as one main is planned for.
const RESERVATIONS_MAX: usize = 10_000;

/// A home needs one; a second may overlap while the first is replaced. libp2p-relay 0.22 looks at how many there are
/// before it adds one, and so gives one more than it is told.
const RESERVATIONS_PER_PEER_MAX: usize = 1;

/// Of the reservation; clients renew it well before. What libp2p's relays give.
pub(crate) const RESERVATION_LIFETIME: Duration = Duration::from_secs(3600);

/// Circuits at once: each is two streams and two buffers of 8 KiB.
const CIRCUITS_MAX: usize = 4096;

/// A home that talks with everybody of a middling cluster through us.
const CIRCUITS_PER_PEER_MAX: usize = 64;

/// A circuit is for control, and may have to last: nodes hold each other's bulk off relayed paths.
const CIRCUIT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Per circuit and direction; then the nodes make another one.
const CIRCUIT_BYTES_MAX: u64 = 4 << 30;

/// libp2p's relay service behind a door.
pub(crate) struct Relaying {
    inner: relay::Behaviour,
    shared: Arc<Shared>,
    /// Whether strangers may use it too.
    open: bool,
}

impl Relaying {
    pub(crate) fn new(me: PeerId, shared: Arc<Shared>, open: bool) -> Self {
        let config = relay::Config {
            max_reservations: RESERVATIONS_MAX,
            max_reservations_per_peer: RESERVATIONS_PER_PEER_MAX,
            reservation_duration: RESERVATION_LIFETIME,
            // Members are counted, and accepting connections has its own limits; the homes of one household or lab
            // share an IP address.
            reservation_rate_limiters: Vec::new(),
            max_circuits: CIRCUITS_MAX,
            max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
            max_circuit_duration: CIRCUIT_LIFETIME,
            max_circuit_bytes: CIRCUIT_BYTES_MAX,
            circuit_src_rate_limiters: Vec::new(),
        };
        let mut inner = relay::Behaviour::new(me, config);
        inner.set_status(Some(relay::Status::Disable));
        Self { inner, shared, open }
    }

    /// Serves from now on, or no longer.
    pub(crate) fn serve(&mut self, serve: bool) {
        let status = if serve {
            relay::Status::Enable
        } else {
            relay::Status::Disable
        };
        self.inner.set_status(Some(status));
    }
}

impl Around for Relaying {
    type Inner = relay::Behaviour;
    type Handler = Door;

    fn inner(&mut self) -> &mut relay::Behaviour {
        &mut self.inner
    }

    fn handler(&self, peer: PeerId, inner: Inner) -> Door {
        Door {
            peer,
            inner,
            shared: Arc::clone(&self.shared),
            open: self.open,
        }
    }
}

type Inner = THandler<relay::Behaviour>;

/// Of one connection: takes the relay protocol only from whom it is for, at the moment that it is asked.
pub(crate) struct Door {
    peer: PeerId,
    inner: Inner,
    shared: Arc<Shared>,
    open: bool,
}

impl AroundHandler for Door {
    type Inner = Inner;
    type Events = Plain;

    fn inner(&self) -> &Inner {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }

    fn listen_protocol(&self) -> Listens<Inner> {
        if self.open || self.shared.is_let_in(&self.peer) {
            self.inner.listen_protocol()
        } else {
            let shut: Inner = Either::Right(dummy::ConnectionHandler);
            shut.listen_protocol()
        }
    }

    fn on_behaviour_event(&mut self, event: <Inner as ConnectionHandler>::FromBehaviour) {
        // A change of the service's status is told to relayed connections too, which have no such handler and would
        // panic (libp2p-relay 0.22, `reconfigure_relay_status`).
        if self.inner.is_left() == event.is_left() {
            self.inner.on_behaviour_event(event);
        }
    }
}
