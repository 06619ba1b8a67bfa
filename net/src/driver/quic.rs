//! QUIC as libp2p's transport, and beneath it what libp2p's own does not give: sessions with priorities and a bulk
//! lane, migration, Retry, statistics, and a socket that probes may share.
//!
//! [`Transport`] plugs into the swarm. [`Quic`] is what the transport, the sessions and the driver share.

mod accept;
mod address;
mod admission;
mod batch;
mod batching;
mod dial;
mod listener;
mod message;
mod muxer;
mod priority;
mod resets;
mod route;
mod runtime;
pub(crate) mod session;
mod settings;
mod socket;
mod spares;
mod stamps;
mod telling;
mod tls;

pub(crate) use address::{from_multiaddr, to_multiaddr};
pub(crate) use dial::Error;
pub(crate) use session::{Session, SessionEvent, SessionId};
pub(crate) use socket::Stray;
pub(crate) use tls::{IdentityError, client_config};

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::SelectAll;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use quinn::{Connection, Endpoint, VarInt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::now;
use super::shared::{Shared, lock};
use crate::{Dialed, SocketId, Unwelcome};
use lapwing_base::{Keypair, Multiaddr, PeerId};
use listener::Listener;
use muxer::Muxer;
use resets::Resets;
use runtime::Tracked;
use session::{CLOSED, REFUSED};
use settings::{BulkWindows, Settings};
use socket::Socket;
use spares::Spares;
use tls::Identity;

/// Events of sessions that the driver may have waiting: sessions wait when it is behind.
pub(crate) const EVENTS_MAX: usize = 256;

/// Probes that may wait; more are lost like any datagram.
pub(crate) const PROBES_MAX: usize = 1024;

/// Substreams that libp2p has not yet taken; the session's streams wait meanwhile, and have a patience of their own.
const SUBSTREAMS_MAX: usize = 16;

/// Endpoints, sessions, and what they are made with.
#[derive(Debug)]
pub(crate) struct Quic {
    settings: Settings,
    resets: Resets,
    shared: Arc<Shared>,
    tracker: TaskTracker,
    stop: CancellationToken,
    events: mpsc::Sender<SessionEvent>,
    probes: mpsc::Sender<Stray>,
    incarnation: u64,
    next_session: AtomicU64,
    locals: Mutex<Vec<Local>>,
    sessions: Mutex<HashMap<PeerId, Vec<Weak<Session>>>>,
    next_socket: AtomicU64,
    /// From which socket the next dial to an address goes, where a path was found from that one only.
    preferred: Mutex<HashMap<SocketAddr, SocketId>>,
    /// By the peer that they were opened for.
    spares: Mutex<HashMap<PeerId, Spares>>,
}

/// A socket with its endpoint.
#[derive(Clone, Debug)]
struct Local {
    /// The listener that bound it; none of one that only dials.
    listener: Option<ListenerId>,
    /// When it was kept for a path that was found from it; it is closed when that has ended.
    adopted: Option<Instant>,
    socket: Arc<Socket>,
    endpoint: Endpoint,
}

/// How long a socket may wait for the connection that it was kept for: the longest handshake, and some.
const ADOPTED_UNUSED: Duration = Duration::from_secs(10);

/// What the driver gives and takes.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) keypair: &'a Keypair,
    pub(crate) shared: Arc<Shared>,
    pub(crate) tracker: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) incarnation: u64,
    pub(crate) events: mpsc::Sender<SessionEvent>,
    pub(crate) probes: mpsc::Sender<Stray>,
}

impl Quic {
    /// # Errors
    /// When no certificate can be made for the key.
    pub(crate) fn new(setup: Setup<'_>) -> Result<Self, IdentityError> {
        let identity = Identity::new(setup.keypair)?;
        Ok(Self {
            settings: Settings::new(&identity, BulkWindows::within(&setup.shared.limits, None)),
            resets: Resets::of(setup.keypair),
            shared: setup.shared,
            tracker: setup.tracker,
            stop: setup.stop,
            events: setup.events,
            probes: setup.probes,
            incarnation: setup.incarnation,
            next_session: AtomicU64::new(1),
            locals: Mutex::default(),
            sessions: Mutex::default(),
            next_socket: AtomicU64::new(1),
            preferred: Mutex::default(),
            spares: Mutex::default(),
        })
    }

    fn socket_id(&self) -> SocketId {
        SocketId(self.next_socket.fetch_add(1, Ordering::Relaxed))
    }

    /// Binds a socket and begins to use it.
    fn bind(&self, address: SocketAddr, listener: Option<ListenerId>) -> io::Result<Local> {
        let socket = Socket::bind(self.socket_id(), address, self.probes.clone())?;
        self.begin_on(socket, listener, None)
    }

    fn begin_on(
        &self,
        socket: Socket,
        listener: Option<ListenerId>,
        adopted: Option<Instant>,
    ) -> io::Result<Local> {
        let socket = Arc::new(socket);
        let server = listener.map(|_| (*self.settings.accept).clone());
        let mut config = self.settings.endpoint.clone();
        self.resets.set(&mut config, socket.local());
        let endpoint = Endpoint::new_with_abstract_socket(
            config,
            server,
            Arc::clone(&socket) as _,
            Arc::new(Tracked {
                tracker: self.tracker.clone(),
                socket: Arc::clone(&socket),
            }),
        )?;
        let local = Local {
            listener,
            adopted,
            socket,
            endpoint,
        };
        self.locals().push(local.clone());
        Ok(local)
    }

    fn locals(&self) -> MutexGuard<'_, Vec<Local>> {
        lock(&self.locals)
    }

    /// The socket from which an address is dialed: one that listens, so that the peer sees the port on which we are
    /// reached; else one that only dials, which is bound when there is none.
    fn local_for(&self, remote: SocketAddr) -> io::Result<Local> {
        let fits = |local: &&Local| {
            let bound = local.socket.local().ip();
            bound.is_ipv4() == remote.is_ipv4()
                && (bound.is_unspecified() || bound.is_loopback() == remote.ip().is_loopback())
        };
        {
            let preferred = lock(&self.preferred).remove(&remote);
            let locals = self.locals();
            if let Some(local) = locals.iter().find(|local| Some(local.socket.id()) == preferred) {
                return Ok(local.clone());
            }
            let listening = locals.iter().filter(|local| local.listener.is_some());
            if let Some(local) = listening.chain(locals.iter()).find(fits) {
                return Ok(local.clone());
            }
        }
        let any: IpAddr = if remote.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        self.bind((any, 0).into(), None)
    }

    /// A socket for one dial, at a port that the peer's NAT has not let anything go out to.
    fn local_apart(&self, remote: SocketAddr) -> io::Result<Local> {
        let any: IpAddr = if remote.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = Socket::bind(self.socket_id(), (any, 0).into(), self.probes.clone())?;
        self.begin_on(socket, None, Some(now()))
    }

    /// Makes a session of a connection whose handshake is done, and runs it.
    fn begin(self: &Arc<Self>, peer: PeerId, dialed: Dialed, socket: SocketId, control: Connection) -> Muxer {
        let id = SessionId(self.next_session.fetch_add(1, Ordering::Relaxed));
        let session = Arc::new(Session::new(id, peer, dialed, socket, control.clone()));
        {
            let mut sessions = lock(&self.sessions);
            sessions.entry(peer).or_default().push(Arc::downgrade(&session));
        }
        let (sender, substreams) = mpsc::channel(SUBSTREAMS_MAX);
        self.tracker.spawn({
            let quic = Arc::clone(self);
            async move {
                session::run(session, Arc::clone(&quic), sender).await;
                quic.forget(peer, id);
            }
        });
        Muxer::sorted(control, substreams)
    }

    /// A session has ended, though others may hold on to it for a while.
    fn forget(&self, peer: PeerId, id: SessionId) {
        let mut sessions = lock(&self.sessions);
        if let Some(of_peer) = sessions.get_mut(&peer) {
            of_peer.retain(|session| session.upgrade().is_some_and(|session| session.id != id));
            if of_peer.is_empty() {
                sessions.remove(&peer);
            }
        }
    }

    /// Gives a bulk lane that a peer has dialed to its session with us.
    fn attach_bulk(self: &Arc<Self>, peer: PeerId, lane: Connection) {
        let sessions: Vec<_> = {
            let sessions = lock(&self.sessions);
            let of_peer = sessions.get(&peer).map(Vec::as_slice).unwrap_or_default();
            of_peer.iter().filter_map(Weak::upgrade).collect()
        };
        // The one from the same socket; where the peer's NAT has moved it between the two, the newest.
        let same = sessions
            .iter()
            .rev()
            .find(|session| session.remote() == lane.remote_address());
        let session = same.into_iter().chain(sessions.iter().rev());
        for session in session {
            if session.attach_bulk(lane.clone()) {
                let accepting = session::accept_bulk(Arc::clone(session), Arc::clone(self), lane);
                self.tracker.spawn(accepting);
                return;
            }
        }
        self.shared.refused.count(Unwelcome::BulkLane);
        lane.close(REFUSED, b"a bulk lane needs a session");
    }

    /// The sockets on which connections are taken, with what they are bound to: of those from which this node only dials
    /// nobody is to be told, since nobody would be answered there.
    pub(crate) fn sockets(&self) -> Vec<(SocketId, SocketAddr)> {
        let locals = self.locals();
        locals
            .iter()
            .filter(|local| local.listener.is_some())
            .map(|local| (local.socket.id(), local.socket.local()))
            .collect()
    }

    /// Sends a probe from a socket, or a datagram that dies after as many hops.
    ///
    /// # Errors
    /// When there is no such socket any more, or what the system says of the destination.
    pub(crate) fn send_probe(
        &self,
        socket: SocketId,
        to: SocketAddr,
        payload: &[u8],
        hops: Option<u8>,
    ) -> io::Result<()> {
        let found = {
            let locals = self.locals();
            let found = locals.iter().find(|candidate| candidate.socket.id() == socket);
            found.map(|found| Arc::clone(&found.socket))
        };
        match (found, hops) {
            (Some(socket), Some(hops)) => socket.send_priming(to, payload, hops.into()),
            (Some(socket), None) => socket.send_probe(to, payload),
            (None, _) => {
                let spares = lock(&self.spares);
                let sent = spares
                    .values()
                    .find_map(|spares| spares.send(socket, to, payload));
                sent.unwrap_or_else(|| Err(io::ErrorKind::AddrNotAvailable.into()))
            }
        }
    }

    /// Sends a probe from a port that nobody connects to.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn send_from_other_port(to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        socket.send_to(payload, to)?;
        Ok(())
    }

    /// Opens sockets for a peer, in place of earlier ones; as many as there can be.
    pub(crate) fn open_spares(&self, peer: PeerId, count: u16) -> Vec<SocketId> {
        let ids = std::iter::repeat_with(|| self.socket_id());
        let spares = Spares::open(ids, count, &self.probes, &self.tracker, &self.stop);
        let ids = spares.ids();
        lock(&self.spares).insert(peer, spares);
        ids
    }

    /// Closes the sockets that were opened for a peer; from the one to keep, connections can be dialed from now on.
    ///
    /// # Errors
    /// When the system does not let it be kept.
    pub(crate) fn close_spares(&self, peer: &PeerId, keep: Option<SocketId>) -> io::Result<()> {
        let Some(spares) = lock(&self.spares).remove(peer) else {
            return Ok(());
        };
        if let Some(id) = keep
            && let Some(socket) = spares.take(id)
        {
            let socket = Socket::adopt(id, socket?, self.probes.clone())?;
            self.begin_on(socket, None, Some(now()))?;
        }
        Ok(())
    }

    /// Closes the sockets that were kept for paths which have ended since, and says which.
    pub(crate) fn tidy(&self) -> Vec<SocketId> {
        let dialed = lock(&self.preferred);
        let mut closed = Vec::new();
        self.locals().retain(|local| {
            let used = local.adopted.is_none_or(|adopted| {
                local.endpoint.open_connections() > 0
                    || now().saturating_duration_since(adopted) < ADOPTED_UNUSED
                    || dialed.values().any(|socket| *socket == local.socket.id())
            });
            if !used {
                local.endpoint.close(CLOSED, b"");
                closed.push(local.socket.id());
            }
            used
        });
        closed
    }

    /// The next dial to an address goes from this socket.
    pub(crate) fn dial_from(&self, socket: SocketId, remote: SocketAddr) {
        lock(&self.preferred).insert(remote, socket);
    }

    /// Closes every connection, so that peers see it at once, and every socket once its last packet is sent.
    pub(crate) async fn close(&self) {
        let locals = std::mem::take(&mut *self.locals());
        for local in &locals {
            local.endpoint.close(CLOSED, b"stopping");
        }
        for local in &locals {
            local.endpoint.wait_idle().await;
        }
    }
}

/// The part that the swarm owns: listeners, and what they have taken.
pub(crate) struct Transport {
    quic: Arc<Quic>,
    listeners: SelectAll<Listener>,
    waker: Option<Waker>,
}

impl Transport {
    pub(crate) fn new(quic: Arc<Quic>) -> Self {
        Self {
            quic,
            listeners: SelectAll::new(),
            waker: None,
        }
    }
}

impl libp2p::core::Transport for Transport {
    type Output = (PeerId, Muxer);
    type Error = Error;
    type ListenerUpgrade = std::future::Ready<Result<Self::Output, Error>>;
    type Dial = BoxFuture<'static, Result<Self::Output, Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Error>> {
        let (socket, _) =
            from_multiaddr(&address).ok_or_else(|| TransportError::MultiaddrNotSupported(address.clone()))?;
        let local = self
            .quic
            .bind(socket, Some(id))
            .map_err(|error| TransportError::Other(Error::Io(error)))?;
        let listener = Listener::start(id, &local.socket, local.endpoint, &self.quic)
            .map_err(|error| TransportError::Other(Error::Io(error)))?;
        self.listeners.push(listener);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let removed = {
            let mut locals = self.quic.locals();
            let position = locals.iter().position(|local| local.listener == Some(id));
            position.map(|position| locals.swap_remove(position))
        };
        // Its listener ends when the endpoint is closed.
        removed.is_some_and(|local| {
            local.endpoint.close(VarInt::from_u32(0), &[]);
            true
        })
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<Error>> {
        // Whoever is to play the listener of a crossing dial dials too: QUIC has no simultaneous open, and of two
        // connections one is closed.
        let (remote, expected) = from_multiaddr(&address)
            .filter(|(remote, _)| remote.port() != 0 && !remote.ip().is_unspecified())
            .ok_or(TransportError::MultiaddrNotSupported(address))?;
        let quic = Arc::clone(&self.quic);
        Ok(Box::pin(dial::dial(quic, remote, expected, options.port_use)))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Error>> {
        if let Poll::Ready(Some(event)) = self.listeners.poll_next_unpin(cx) {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::RateLimits;
    use crate::driver::limits::Limits;
    use libp2p::core::transport::PortUse;

    fn end(keypair: &Keypair) -> (Arc<Quic>, mpsc::Receiver<SessionEvent>) {
        let (commands, _) = mpsc::channel(1);
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let (probes, _) = mpsc::channel(1);
        let (received, _) = mpsc::channel(1);
        let me = keypair.public().to_peer_id();
        let limits = Limits::new(RateLimits::default(), RateLimits::default());
        let quic = Quic::new(Setup {
            keypair,
            shared: Arc::new(Shared::new(
                me,
                commands,
                limits,
                Duration::from_secs(30),
                received,
            )),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            incarnation: 1,
            events,
            probes,
        });
        (Arc::new(quic.unwrap()), heard)
    }

    #[tokio::test]
    async fn a_session_that_has_ended_is_forgotten_though_somebody_holds_on_to_it() {
        let (ours, theirs) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let ((ours, mut heard), (theirs, _heard)) = (end(&ours), end(&theirs));
        let mut transport = Transport::new(Arc::clone(&ours));
        let any = "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap();
        libp2p::core::Transport::listen_on(&mut transport, ListenerId::next(), any).unwrap();
        let (_, address) = ours.sockets()[0];
        let (_, muxer) = dial::dial(theirs, address, None, PortUse::Reuse).await.unwrap();
        let Some(SessionEvent::Established(held)) = heard.recv().await else {
            panic!("it begins with this");
        };
        assert_eq!(lock(&ours.sessions).len(), 1);
        drop(muxer);
        let forgotten = async {
            while !matches!(heard.recv().await, Some(SessionEvent::Closed { .. })) {}
            while !lock(&ours.sessions).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), forgotten)
            .await
            .unwrap();
        drop(held);
        ours.stop.cancel();
    }
}
