//! The part that one connection owns: runs an exchange at a time, and few of them.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use libp2p::core::upgrade::{DeniedUpgrade, ReadyUpgrade};
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamProtocol, SubstreamProtocol};
use tokio::sync::watch;
use tracing::debug;

use super::PROTOCOL;
use super::exchange::{self, ExchangeError};
use crate::Dialed;
use either::Either;
use lapwing_base::Multiaddr;

/// How long an exchange may take: three messages and what is lost of them, at 600 ms each way.
const PATIENCE: Duration = Duration::from_secs(10);

/// Exchanges over one circuit: libp2p's implementations try three times.
const EXCHANGES_MAX: u8 = 3;

/// Begin an exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin;

/// An exchange has come to its end.
#[derive(Debug)]
pub(crate) struct Exchanged {
    pub(super) theirs: Vec<Multiaddr>,
    pub(super) dials: bool,
}

/// Of one connection; of those that are no circuits, nothing.
#[derive(Default)]
pub(crate) struct Handler {
    /// Apart, since most connections are none.
    circuit: Option<Box<Circuit>>,
}

struct Circuit {
    dialed: Dialed,
    ours: watch::Receiver<Vec<Multiaddr>>,
    exchanges: u8,
    wanted: bool,
    under_way: Option<BoxFuture<'static, Result<Vec<Multiaddr>, ExchangeError>>>,
}

impl Handler {
    pub(super) fn of_circuit(dialed: Dialed, ours: watch::Receiver<Vec<Multiaddr>>) -> Self {
        let circuit = Circuit {
            dialed,
            ours,
            exchanges: 0,
            wanted: false,
            under_way: None,
        };
        Self {
            circuit: Some(Box::new(circuit)),
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Begin;
    type ToBehaviour = Exchanged;
    type InboundProtocol = Either<ReadyUpgrade<StreamProtocol>, DeniedUpgrade>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        // Whoever was dialed begins.
        let answers = |circuit: &Circuit| circuit.dialed == Dialed::ByUs && circuit.exchanges < EXCHANGES_MAX;
        let protocol = if self.circuit.as_deref().is_some_and(answers) {
            Either::Left(ReadyUpgrade::new(PROTOCOL))
        } else {
            Either::Right(DeniedUpgrade)
        };
        SubstreamProtocol::new(protocol, ())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Exchanged>> {
        let Some(circuit) = &mut self.circuit else {
            return Poll::Pending;
        };
        if let Some(under_way) = &mut circuit.under_way
            && let Poll::Ready(result) = under_way.poll_unpin(cx)
        {
            circuit.under_way = None;
            let dials = circuit.dialed == Dialed::ByUs;
            match result {
                Ok(theirs) => {
                    let exchanged = Exchanged { theirs, dials };
                    return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(exchanged));
                }
                Err(error) => debug!(%error, "no upgrade of a circuit was agreed on"),
            }
        }
        if std::mem::take(&mut circuit.wanted) {
            let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, Begin: Begin) {
        if let Some(circuit) = &mut self.circuit
            && circuit.dialed == Dialed::ByThem
            && circuit.exchanges < EXCHANGES_MAX
            && !circuit.ours.borrow().is_empty()
        {
            circuit.exchanges += 1;
            circuit.wanted = true;
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        let Some(circuit) = &mut self.circuit else {
            return;
        };
        let ours = circuit.ours.borrow().clone();
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: futures::future::Either::Left(stream),
                ..
            }) if circuit.exchanges < EXCHANGES_MAX => {
                circuit.exchanges += 1;
                // In place of one that is under way: the peer has given that up.
                circuit.under_way = Some(in_time(exchange::respond(stream, ours)));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream, ..
            }) => {
                circuit.under_way = Some(in_time(exchange::begin(stream, ours)));
            }
            _ => (),
        }
    }
}

fn in_time(
    exchange: impl Future<Output = Result<Vec<Multiaddr>, ExchangeError>> + Send + 'static,
) -> BoxFuture<'static, Result<Vec<Multiaddr>, ExchangeError>> {
    let bounded = async {
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(result) => result,
            Err(_) => Err(ExchangeError::Io(std::io::ErrorKind::TimedOut.into())),
        }
    };
    bounded.boxed()
}
