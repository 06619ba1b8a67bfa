//! A behaviour whose handlers, and their events, lie apart from the tasks that poll them. Changes nothing else about it.
//!
//! libp2p's task of a connection has room for its handler twice, as the argument that it is spawned with and as what
//! it is polled in, and for an event at each of its steps. The events are rare and the connections thousands.

use std::ops::{Deref, DerefMut};

use libp2p::swarm::{ConnectionHandler, NetworkBehaviour, THandler};

use super::around::{Around, AroundHandler, Boxed};
use lapwing_base::PeerId;

/// A behaviour with boxed handlers.
pub(crate) struct BoxedHandlers<B>(pub(crate) B);

impl<B> Deref for BoxedHandlers<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.0
    }
}

impl<B> DerefMut for BoxedHandlers<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.0
    }
}

impl<B: NetworkBehaviour> Around for BoxedHandlers<B> {
    type Inner = B;
    type Handler = Handler<THandler<B>>;

    fn inner(&mut self) -> &mut B {
        &mut self.0
    }

    fn handler(&self, _: PeerId, inner: THandler<B>) -> Self::Handler {
        Handler(Box::new(inner))
    }
}

/// A handler of one connection, apart.
pub(crate) struct Handler<H>(Box<H>);

impl<H: ConnectionHandler> AroundHandler for Handler<H> {
    type Inner = H;
    type Events = Boxed;

    fn inner(&self) -> &H {
        &self.0
    }

    fn inner_mut(&mut self) -> &mut H {
        &mut self.0
    }
}
