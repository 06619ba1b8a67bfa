//! One socket that libp2p listens on: its addresses as interfaces come and go, and the connections it has taken.

use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use if_watch::IfEvent;
use if_watch::tokio::IfWatcher;
use libp2p::core::transport::{ListenerId, TransportEvent};
use quinn::Endpoint;
use tokio::sync::mpsc;

use super::muxer::Muxer;
use super::socket::Socket;
use super::{Error, Quic, accept, to_multiaddr};
use lapwing_base::{Multiaddr, PeerId};

/// Connections that the swarm has not yet taken; handshakes wait behind them.
const ARRIVED_MAX: usize = 64;

/// A connection whose handshake is done.
pub(super) struct Arrived {
    pub(super) peer: PeerId,
    pub(super) muxer: Muxer,
    pub(super) remote: SocketAddr,
}

/// What the swarm polls.
pub(super) struct Listener {
    id: ListenerId,
    local: SocketAddr,
    addresses: Addresses,
    arrived: mpsc::Receiver<Arrived>,
    closed: bool,
}

enum Addresses {
    /// Bound to one, which has not been told yet.
    One(Option<Multiaddr>),
    /// Bound to all interfaces.
    Every(Box<IfWatcher>),
}

impl Listener {
    pub(super) fn start(
        id: ListenerId,
        socket: &Socket,
        endpoint: Endpoint,
        quic: &Arc<Quic>,
    ) -> io::Result<Self> {
        let local = socket.local();
        let addresses = if local.ip().is_unspecified() {
            Addresses::Every(Box::new(IfWatcher::new()?))
        } else {
            Addresses::One(Some(to_multiaddr(local)))
        };
        let (sender, arrived) = mpsc::channel(ARRIVED_MAX);
        quic.tracker
            .spawn(accept::run(Arc::clone(quic), endpoint, socket.id(), sender));
        Ok(Self {
            id,
            local,
            addresses,
            arrived,
            closed: false,
        })
    }

    fn poll_addresses(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let listener_id = self.id;
        let watcher = match &mut self.addresses {
            Addresses::One(address) => {
                return address.take().map_or(Poll::Pending, |listen_addr| {
                    Poll::Ready(TransportEvent::NewAddress {
                        listener_id,
                        listen_addr,
                    })
                });
            }
            Addresses::Every(watcher) => watcher,
        };
        loop {
            match std::task::ready!(watcher.poll_if_event(cx)) {
                Ok(IfEvent::Up(interface)) => {
                    if let Some(listen_addr) = at_interface(self.local, interface.addr()) {
                        return Poll::Ready(TransportEvent::NewAddress {
                            listener_id,
                            listen_addr,
                        });
                    }
                }
                Ok(IfEvent::Down(interface)) => {
                    if let Some(listen_addr) = at_interface(self.local, interface.addr()) {
                        return Poll::Ready(TransportEvent::AddressExpired {
                            listener_id,
                            listen_addr,
                        });
                    }
                }
                Err(error) => {
                    // It would say so again each time that it is asked, and never anything else.
                    self.addresses = Addresses::One(None);
                    return Poll::Ready(TransportEvent::ListenerError {
                        listener_id,
                        error: Error::Io(error),
                    });
                }
            }
        }
    }
}

type Event = TransportEvent<Ready<Result<(PeerId, Muxer), Error>>, Error>;

impl Stream for Listener {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.closed {
            return Poll::Ready(None);
        }
        if let Poll::Ready(event) = self.poll_addresses(cx) {
            return Poll::Ready(Some(event));
        }
        let listener_id = self.id;
        match std::task::ready!(self.arrived.poll_recv(cx)) {
            Some(Arrived { peer, muxer, remote }) => Poll::Ready(Some(TransportEvent::Incoming {
                listener_id,
                upgrade: ready(Ok((peer, muxer))),
                local_addr: to_multiaddr(self.local),
                send_back_addr: to_multiaddr(remote),
            })),
            None => {
                self.closed = true;
                Poll::Ready(Some(TransportEvent::ListenerClosed {
                    listener_id,
                    reason: Ok(()),
                }))
            }
        }
    }
}

/// The address of a socket on one of its interfaces.
fn at_interface(local: SocketAddr, ip: IpAddr) -> Option<Multiaddr> {
    // Link-local addresses of IPv6 mean nothing without the interface's name, which a multiaddress has no room for.
    let usable = match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    (usable && local.is_ipv4() == ip.is_ipv4()).then(|| to_multiaddr((ip, local.port()).into()))
}
