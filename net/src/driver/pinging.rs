//! libp2p's ping, which answers every ping when it comes.
//!
//! As it is (libp2p-ping 0.48, `Handler::poll`), it waits for the next ping of a stream without asking to be woken
//! by it: peers that ping over one stream, as other implementations do, get each answer only when something else
//! happens on the connection, up to an interval later. This one asks.

use std::task::{Context, Poll};

use libp2p::ping;
use libp2p::swarm::{ConnectionHandler, THandler};

use super::around::{Around, AroundHandler, Plain, Says};
use lapwing_base::PeerId;

/// Pings every peer, and answers.
pub(crate) struct Pinging {
    inner: ping::Behaviour,
}

impl Pinging {
    pub(crate) fn new(config: ping::Config) -> Self {
        let inner = ping::Behaviour::new(config);
        Self { inner }
    }
}

impl Around for Pinging {
    type Inner = ping::Behaviour;
    type Handler = Handler;

    fn inner(&mut self) -> &mut ping::Behaviour {
        &mut self.inner
    }

    fn handler(&self, _: PeerId, inner: Inner) -> Handler {
        Handler { inner }
    }
}

type Inner = THandler<ping::Behaviour>;

/// Of one connection.
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

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Says<Inner>> {
        // The second time it begins to wait for the ping after the one that it has just answered.
        match self.inner.poll(cx) {
            Poll::Pending => self.inner.poll(cx),
            ready @ Poll::Ready(_) => ready,
        }
    }
}
