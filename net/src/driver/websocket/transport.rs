//! The sockets of this transport, for libp2p: what listens, and what is dialed. The handshakes run in the tasks of
//! whoever asked for them.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::{Stream as _, TryFutureExt as _};
use if_watch::IfEvent;
use if_watch::tokio::IfWatcher;
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use rustls::{ClientConfig, ServerConfig};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tracing::{debug, trace};

use super::accepting::{AcceptError, accept};
use super::address::{Remote, listen_socket, websocket_address};
use super::dialing::{DialError, Dialing};
use super::handshakes::{Crowded, Ends, HandshakeId, Handshakes};
use super::proxy::Proxy;
use super::stream::ByteStream;
use super::{Counters, count};
use crate::driver::shared::lock;
use lapwing_base::Multiaddr;

/// Connections that the kernel may hold for us: those of a relay's homes that come back all at once.
const BACKLOG: i32 = 1024;

/// How long a listener waits after an error; most are a lack of file descriptors, which does not pass at once.
const PAUSE: Duration = Duration::from_millis(100);

/// A stream of bytes over TCP, TLS and WebSocket.
pub(crate) type Output = ByteStream<tokio_rustls::TlsStream<TcpStream>, Guard>;

/// What went wrong with one connection or listener.
#[derive(Debug, Error)]
pub(crate) enum WebSocketError {
    /// A dial.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// A connection that came in.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// A listener.
    #[error("cannot listen")]
    Listen(#[source] io::Error),
}

/// Dials and listens.
pub(crate) struct WebSocketTransport {
    setup: Setup,
    handshakes: Arc<Mutex<Handshakes>>,
    listeners: Vec<Listener>,
    closed: VecDeque<ListenerId>,
    /// Who polls, to be told of a new listener.
    waker: Option<Waker>,
}

/// What it is made of.
pub(crate) struct Setup {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) dial_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) counters: Arc<Counters>,
}

/// Counts a handshake out when its connection is dropped, if nobody did before.
pub(crate) struct Guard(Option<Counted>);

struct Counted {
    handshakes: Arc<Mutex<Handshakes>>,
    ends: Ends,
    id: HandshakeId,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(Counted { handshakes, ends, id }) = self.0.take() {
            lock(&handshakes).ended(ends, id);
        }
    }
}

struct Listener {
    id: ListenerId,
    socket: TcpListener,
    bound: SocketAddr,
    /// Not yet told.
    addresses: Addresses,
    pause: Option<Pin<Box<Sleep>>>,
}

/// Under which addresses a listener is reached.
enum Addresses {
    /// One, to be told.
    New,
    /// One, told.
    Told,
    /// Those of the interfaces, as they come and go.
    Watched(Box<IfWatcher>),
}

impl WebSocketTransport {
    pub(crate) fn new(setup: Setup, handshakes: Arc<Mutex<Handshakes>>) -> Self {
        Self {
            setup,
            handshakes,
            listeners: Vec::new(),
            closed: VecDeque::new(),
            waker: None,
        }
    }

    /// Begins the handshakes of a connection, if there is room for them.
    fn incoming(
        &self,
        stream: TcpStream,
        ends: Ends,
    ) -> Option<BoxFuture<'static, Result<Output, WebSocketError>>> {
        let Setup {
            server,
            handshake_timeout,
            counters,
            ..
        } = &self.setup;
        let id = match lock(&self.handshakes).admit(ends) {
            Ok(id) => id,
            Err(crowded) => {
                let counter = match crowded {
                    Crowded::All => &counters.refused_crowded,
                    Crowded::Prefix => &counters.refused_prefix,
                };
                count(counter);
                trace!(remote = %ends.1, ?crowded, "a WebSocket connection was refused");
                return None;
            }
        };
        let guard = Guard(Some(Counted {
            handshakes: Arc::clone(&self.handshakes),
            ends,
            id,
        }));
        super::tcp::tune(&stream);
        let counters = Arc::clone(counters);
        let accepting = accept(stream, Arc::clone(server), *handshake_timeout, guard);
        let counted = accepting.map(move |result| match result {
            Ok(stream) => Ok(stream),
            Err(error) => {
                count(&counters.failed_handshakes);
                Err(error.into())
            }
        });
        Some(counted.boxed())
    }
}

impl Transport for WebSocketTransport {
    type Output = Output;
    type Error = WebSocketError;
    type ListenerUpgrade = BoxFuture<'static, Result<Output, WebSocketError>>;
    type Dial = BoxFuture<'static, Result<Output, WebSocketError>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        let Some(asked) = listen_socket(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let listener = Listener::bind(id, asked)
            .map_err(|error| TransportError::Other(WebSocketError::Listen(error)))?;
        self.listeners.push(listener);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|listener| listener.id != id);
        let removed = self.listeners.len() < before;
        if removed {
            self.closed.push_back(id);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
        removed
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let remote = Remote::parse(&address);
        let (Some(remote), Endpoint::Dialer) = (remote, options.role) else {
            // Nobody punches with this: one side must listen.
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let dialing = Dialing {
            proxy: self.setup.proxy.clone().filter(|proxy| proxy.serves(&remote)),
            remote,
            tls: Arc::clone(&self.setup.client),
            patience: self.setup.dial_timeout,
        };
        Ok(dialing.run(Guard(None)).err_into().boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        if let Some(listener_id) = this.closed.pop_front() {
            let reason = Ok(());
            return Poll::Ready(TransportEvent::ListenerClosed { listener_id, reason });
        }
        // The one that was served last comes last, so that a busy listener starves no other.
        for at in 0..this.listeners.len() {
            if let Poll::Ready(event) = this.poll_listener(at, cx) {
                this.listeners[at..].rotate_left(1);
                return Poll::Ready(event);
            }
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl WebSocketTransport {
    fn poll_listener(
        &mut self,
        at: usize,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<<Self as Transport>::ListenerUpgrade, WebSocketError>> {
        loop {
            let listener = &mut self.listeners[at];
            let listener_id = listener.id;
            if let Poll::Ready(change) = listener.poll_addresses(cx) {
                return Poll::Ready(match change {
                    Ok(Change::New(socket)) => TransportEvent::NewAddress {
                        listener_id,
                        listen_addr: websocket_address(socket),
                    },
                    Ok(Change::Expired(socket)) => TransportEvent::AddressExpired {
                        listener_id,
                        listen_addr: websocket_address(socket),
                    },
                    Err(error) => TransportEvent::ListenerError {
                        listener_id,
                        error: WebSocketError::Listen(error),
                    },
                });
            }
            match listener.poll_accept(cx) {
                Poll::Ready(Ok((stream, ends))) => {
                    let Some(upgrade) = self.incoming(stream, ends) else {
                        continue;
                    };
                    return Poll::Ready(TransportEvent::Incoming {
                        listener_id,
                        upgrade,
                        local_addr: websocket_address(ends.0),
                        send_back_addr: websocket_address(ends.1),
                    });
                }
                Poll::Ready(Err(error)) => {
                    debug!(%error, "accepting a connection failed");
                    return Poll::Ready(TransportEvent::ListenerError {
                        listener_id,
                        error: WebSocketError::Listen(error),
                    });
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

enum Change {
    New(SocketAddr),
    Expired(SocketAddr),
}

impl Listener {
    fn bind(id: ListenerId, asked: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(asked), Type::STREAM, Some(Protocol::TCP))?;
        if asked.is_ipv6() {
            // Else `[::]` would take the port of `0.0.0.0` as well.
            socket.set_only_v6(true)?;
        }
        // A relay that starts again takes its port back while old connections fade.
        #[cfg(unix)]
        socket.set_reuse_address(true)?;
        socket.bind(&asked.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket.into())?;
        let addresses = if asked.ip().is_unspecified() {
            Addresses::Watched(Box::new(IfWatcher::new()?))
        } else {
            Addresses::New
        };
        Ok(Self {
            id,
            bound: socket.local_addr()?,
            socket,
            addresses,
            pause: None,
        })
    }

    fn poll_addresses(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Change>> {
        let at = |ip: IpAddr| SocketAddr::new(ip, self.bound.port());
        let watcher = match &mut self.addresses {
            Addresses::New => {
                self.addresses = Addresses::Told;
                return Poll::Ready(Ok(Change::New(self.bound)));
            }
            Addresses::Told => return Poll::Pending,
            Addresses::Watched(watcher) => watcher,
        };
        loop {
            return match Pin::new(&mut **watcher).poll_next(cx) {
                Poll::Ready(Some(Ok(IfEvent::Up(net)))) if net.addr().is_ipv4() == self.bound.is_ipv4() => {
                    Poll::Ready(Ok(Change::New(at(net.addr()))))
                }
                Poll::Ready(Some(Ok(IfEvent::Down(net)))) if net.addr().is_ipv4() == self.bound.is_ipv4() => {
                    Poll::Ready(Ok(Change::Expired(at(net.addr()))))
                }
                Poll::Ready(Some(Ok(_))) => continue,
                Poll::Ready(Some(Err(error))) => {
                    // What listens goes on; only changes of address are no longer seen.
                    self.addresses = Addresses::Told;
                    Poll::Ready(Err(error))
                }
                Poll::Ready(None) => {
                    self.addresses = Addresses::Told;
                    Poll::Pending
                }
                Poll::Pending => Poll::Pending,
            };
        }
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, Ends)>> {
        loop {
            if let Some(pause) = &mut self.pause {
                if pause.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.pause = None;
            }
            match self.socket.poll_accept(cx) {
                Poll::Ready(Ok((stream, remote))) => match stream.local_addr() {
                    Ok(local) => return Poll::Ready(Ok((stream, (local, remote)))),
                    // It is gone already.
                    Err(_) => continue,
                },
                Poll::Ready(Err(error)) if is_of_one_connection(&error) => continue,
                Poll::Ready(Err(error)) => {
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Whether an error of `accept` speaks of a connection that was lost before we took it (`accept(2)`).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
