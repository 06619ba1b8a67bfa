//! The edge: the one task that owns the swarm, and the order in which it starts and stops.
//!
//! It feeds events to the cores and does what they say; the decisions are theirs. Streams belong to their channels,
//! which open them over the links that are made here.

mod acceptor;
mod addresses;
mod around;
mod behaviour;
#[expect(clippy::disallowed_methods, reason = "it measures real time")]
pub mod bench;
mod boxed_handlers;
mod channel;
mod confirming;
mod congestion;
mod explain;
mod frames;
mod fused;
mod http;
mod identity;
mod interfaces;
mod lane;
mod limits;
mod links;
mod listening;
mod local_discovery;
mod network;
mod notes;
mod pinging;
mod port_mapping;
mod prober;
mod quic;
mod reach;
mod relaying;
mod shared;
mod standing;
mod stream;
mod swarm;
mod upgrading;
mod usage;
mod vicinity;
mod waiting;
mod websocket;

pub use channel::{Channel, ChannelError, ReceiveHalf, SendHalf};
pub use congestion::{DelayCongestion, WindowFigures};
pub use identity::{IdentityError, load_or_create_identity};
pub use lane::{Lane, LaneConfig, LaneEnd, LaneFigures, LaneStream, OpenLaneStreamError, Toll};
pub use network::{Network, NetworkConfig, OpenError, RequestError, StartError, Welcome};
pub use websocket::{Proxy, ProxySettingError};

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::SwarmEvent;
use libp2p::{Swarm, identify};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace};

use crate::{CandidateRow, Connections, Gate, Quiet};
use addresses::{is_loopback, without_peer};
use around::Wrapped;
use boxed_handlers::BoxedHandlers;
use interfaces::Interfaces;
use lapwing_base::{Multiaddr, PeerId, Role, chain};
use links::{LaneClosed, Link, LinkId};
use listening::Listener;
use local_discovery::Neighbourhood;
use notes::Note;
use port_mapping::PortMapping;
use quic::{Quic, SessionEvent, Stray};
use rand::distr::{Distribution, StandardUniform};
use reach::Reach;
use shared::Shared;
use standing::Disconnecting;
use swarm::{Protocols, ProtocolsEvent};
use waiting::Waiting;
use websocket::CertificateFiles;

/// The clock of this room; cores take what it says as an argument.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver reads the clock for the cores"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The clock of the runtime's timers, which tests can set.
#[expect(clippy::disallowed_methods, reason = "the driver reads the clock")]
pub(crate) fn timer_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// The randomness of this room; cores take seeds.
#[expect(clippy::disallowed_methods, reason = "the driver draws for the cores")]
pub(crate) fn draw<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    rand::random()
}

/// What handles ask of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    /// A link to a peer, which is dialed when there is none.
    Connect {
        peer: PeerId,
        deadline: Instant,
        reply: oneshot::Sender<Result<Link, ConnectFailure>>,
    },
    /// The address book knows something new of a peer.
    Learned(PeerId),
    /// A relay has said where it sees a peer.
    SeenAt { peer: PeerId, seen: Vec<IpAddr> },
    /// Every address that was tried for a peer.
    Candidates {
        peer: PeerId,
        reply: oneshot::Sender<Vec<CandidateRow>>,
    },
    /// A peer has not answered in time, though a connection stands.
    Suspect(PeerId),
    /// Close every connection with a peer.
    Disconnect { peer: PeerId, done: oneshot::Sender<()> },
}

/// Why there is no link.
#[derive(Clone, Debug)]
pub(crate) enum ConnectFailure {
    NoAddress,
    Unreachable(String),
    Overloaded,
    Stopped,
}

/// Commands that may wait while the driver handles an event: a burst of opens from every room at once.
pub(crate) const COMMANDS_MAX: usize = 1024;

/// How long closing may take: a close frame to every peer, and three probe timeouts until the sockets are free.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Notes on their way at once.
const NOTES_MAX: usize = 64;

/// Lanes whose end the driver has not yet taken in.
const LANES_CLOSED_MAX: usize = 64;

/// Owns the swarm.
pub(crate) struct Driver {
    swarm: Swarm<Wrapped<BoxedHandlers<Protocols>>>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    gate: watch::Receiver<Gate>,
    stop: CancellationToken,
    connections: Connections<LinkId>,
    links: HashMap<LinkId, Link>,
    quic: Arc<Quic>,
    sessions: mpsc::Receiver<SessionEvent>,
    strays: mpsc::Receiver<Stray>,
    lane_closed: mpsc::Sender<LaneClosed>,
    lanes: mpsc::Receiver<LaneClosed>,
    notes: mpsc::Receiver<Note>,
    notes_under_way: Arc<Semaphore>,
    interfaces: watch::Receiver<Interfaces>,
    mapping: Option<watch::Receiver<PortMapping>>,
    /// What is told to the local network.
    announced: watch::Sender<Vec<Multiaddr>>,
    neighbours: Option<watch::Receiver<Neighbourhood>>,
    reach: Reach,
    tracker: TaskTracker,
    /// What the gate said last.
    known_gate: Gate,
    /// Opens that wait for a connection.
    pending: HashMap<PeerId, Vec<Waiting>>,
    pending_count: usize,
    disconnecting: Vec<Disconnecting>,
    /// Links that are closed once they are quiet, or at the latest then.
    retiring: HashMap<LinkId, Instant>,
    quiet: Quiet<LinkId>,
    /// When a connected peer was last dialed because it did not answer.
    suspected_at: HashMap<PeerId, Instant>,
    listeners: Vec<Listener>,
    /// When deadlines and surplus connections were last looked at.
    looked_at: Instant,
}

/// What a driver is made of.
pub(crate) struct Setup<'a> {
    pub(crate) config: &'a NetworkConfig,
    pub(crate) notes: mpsc::Receiver<Note>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) gate: watch::Receiver<Gate>,
    pub(crate) tracker: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) incarnation: u64,
}

impl Driver {
    /// Builds the swarm and binds every address.
    pub(crate) async fn bind(setup: Setup<'_>) -> Result<Self, StartError> {
        let Setup {
            config,
            notes,
            shared,
            commands,
            gate,
            tracker,
            stop,
            incarnation,
        } = setup;
        let (keypair, listen) = (&config.keypair, config.listen.clone());
        let me = keypair.public().to_peer_id();
        let (events, sessions) = mpsc::channel(quic::EVENTS_MAX);
        let (found, strays) = mpsc::channel(quic::PROBES_MAX);
        let (lane_closed, lanes) = mpsc::channel(LANES_CLOSED_MAX);
        let quic = Quic::new(quic::Setup {
            keypair,
            shared: Arc::clone(&shared),
            tracker: tracker.clone(),
            stop: stop.clone(),
            incarnation,
            events,
            probes: found,
        })
        .map_err(|error| StartError::Identity { source: error.into() })?;
        let quic = Arc::new(quic);
        let proxy = Proxy::from_environment(|variable| std::env::var(variable).ok())
            .map_err(|error| StartError::Proxy { source: error.into() })?;
        let candidates = watch::Sender::default();
        let mut swarm = swarm::build(swarm::Setup {
            keypair,
            shared: Arc::clone(&shared),
            quic: Arc::clone(&quic),
            tracker: tracker.clone(),
            relays_strangers: config.relays_strangers,
            certificate: config
                .certificate
                .clone()
                .map(|(chain, key)| CertificateFiles { chain, key }),
            proxy,
            candidates: candidates.subscribe(),
        })?;
        // What only this machine can use needs nobody's help, and nobody else can say what it is; nor does it matter
        // which networks the machine is in.
        let only_loopback = !listen.is_empty() && listen.iter().all(is_loopback);
        let interfaces = if only_loopback {
            watch::channel(Interfaces::default()).1
        } else {
            interfaces::watch_interfaces(&tracker, stop.clone())
                .await
                .map_err(|source| StartError::Interfaces { source })?
        };
        let role = config.role.or_else(|| only_loopback.then_some(Role::Main));
        let mut listeners = Vec::new();
        for asked in listen {
            match swarm.listen_on(asked.clone()) {
                Ok(id) => listeners.push(Listener {
                    id,
                    asked,
                    bound: Vec::new(),
                }),
                Err(error) => return Err(explain::start_error(asked, error)),
            }
        }
        let mut driver = Self {
            swarm,
            shared,
            commands,
            gate,
            stop,
            connections: Connections::new(me),
            links: HashMap::new(),
            quic,
            sessions,
            strays,
            lane_closed,
            lanes,
            notes,
            notes_under_way: Arc::new(Semaphore::new(NOTES_MAX)),
            interfaces,
            mapping: None,
            announced: watch::Sender::default(),
            neighbours: None,
            reach: Reach::new(me, role, draw(), candidates, now()),
            tracker,
            known_gate: Gate::default(),
            pending: HashMap::new(),
            pending_count: 0,
            disconnecting: Vec::new(),
            retiring: HashMap::new(),
            quiet: Quiet::default(),
            suspected_at: HashMap::new(),
            listeners,
            looked_at: now(),
        };
        if let Some(file) = &config.networks_file {
            driver.reach.keep_verdicts_in(file, &driver.tracker, now());
        }
        driver.on_gate();
        driver.wait_until_bound().await?;
        if config.maps_port && !only_loopback {
            driver.map_port();
        }
        if config.finds_neighbours && !only_loopback {
            driver.look_around();
        }
        driver.on_interfaces();
        Ok(driver)
    }

    /// Handles events until it is told to stop, then closes everything.
    pub(crate) async fn run(mut self) {
        let mut gate_open = true;
        loop {
            let wake_at = self.wake_at();
            tokio::select! {
                () = self.stop.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_event(event),
                Some(event) = self.sessions.recv() => self.on_session(event),
                Some(stray) = self.strays.recv() => self.on_stray(&stray, now()),
                Some(closed) = self.lanes.recv() => self.on_closed(closed.peer, LinkId::Lane(closed.id), closed.why),
                Some(note) = self.notes.recv() => self.on_note(note, now()),
                Ok(()) = self.interfaces.changed() => self.on_interfaces(),
                Some(()) = changed(&mut self.mapping) => self.on_port_mapping(),
                Some(()) = changed(&mut self.neighbours) => self.on_neighbours(),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                changed = self.gate.changed(), if gate_open => match changed {
                    Ok(()) => self.on_gate(),
                    // Whoever decides about members is gone; the last word stands.
                    Err(_) => gate_open = false,
                },
                () = tokio::time::sleep_until(wake_at.into()) => self.on_time(),
            }
        }
        self.close().await;
    }

    /// Shutdown, in this order: no new links; close frames to all peers; no listeners; wait until the sockets have
    /// sent what they had to.
    async fn close(mut self) {
        self.commands.close();
        self.reach.keep_verdicts(now());
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Connect { reply, .. } => drop(reply.send(Err(ConnectFailure::Stopped))),
                Command::Learned(_) | Command::Suspect(_) | Command::SeenAt { .. } => (),
                Command::Candidates { reply, .. } => drop(reply.send(Vec::new())),
                Command::Disconnect { done, .. } => {
                    let _ = done.send(());
                }
            }
        }
        for waiting in self.pending.drain().flat_map(|(_, waiting)| waiting) {
            drop(waiting.reply.send(Err(ConnectFailure::Stopped)));
        }
        self.shared.acceptor.stop();
        for link in self.links.values() {
            link.close("stopping");
        }
        // They hold their sockets.
        self.links.clear();
        self.shared.forget_links();
        drop(self.swarm);
        // Sessions end without anybody to tell.
        drop(self.sessions);
        if tokio::time::timeout(CLOSE_MAX, self.quic.close()).await.is_err() {
            debug!("connections did not close in time");
        }
        debug!("network stopped");
    }

    fn wake_at(&self) -> Instant {
        let patience = if self.pending.is_empty() { TIDY } else { RETRY };
        // From the last look, not from now: other events must not put it off.
        let look = self.looked_at + patience;
        self.reach.next_at().map_or(look, |at| at.min(look))
    }

    fn on_time(&mut self) {
        let now = now();
        self.on_reach_time(now);
        let patience = if self.pending.is_empty() { TIDY } else { RETRY };
        if now < self.looked_at + patience {
            return;
        }
        self.looked_at = now;
        let waiting: Vec<_> = self.pending.keys().copied().collect();
        for peer in waiting {
            self.prune(&peer);
            self.want_no_more(peer, now);
        }
        self.let_go(now);
        for closed in self.quic.tidy() {
            self.on_socket_closed(closed, now);
        }
        self.forget_strangers();
        self.publish_links();
    }

    /// Forgets those who are no members once nothing stands with them and nobody tries to reach them.
    fn forget_strangers(&self) {
        let (gate, swarm) = (&self.known_gate, &self.swarm);
        self.shared.peers().forget_unless(|peer| {
            gate.members.contains(peer)
                || gate.mains.contains(peer)
                || self.is_climbed_to(peer)
                || swarm.is_connected(peer)
        });
    }

    fn on_gate(&mut self) {
        let gate = self.gate.borrow_and_update().clone();
        self.connections.peers().for_each(|peer| self.watch(peer));
        for link in self.links.values() {
            link.admit(gate.members.contains(&link.peer()) || self.shared.is_guest(&link.peer()));
        }
        let before = std::mem::replace(&mut self.known_gate, gate.clone());
        self.on_mains(&gate, &before, now());
        self.shared.acceptor.set_gate(gate);
        self.shared.probe_soon();
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect {
                peer,
                deadline,
                reply,
            } => match self.preferred(&peer) {
                // Whoever asked may have stopped waiting.
                Some(link) => drop(reply.send(Ok(link))),
                None => self.enqueue(peer, Waiting { deadline, reply }),
            },
            Command::Learned(peer) => {
                self.relearn(peer, now());
            }
            Command::Suspect(peer) => self.on_suspicion(peer),
            Command::SeenAt { peer, seen } => self.on_seen_at(peer, seen, now()),
            Command::Candidates { peer, reply } => drop(reply.send(self.candidates(&peer, now()))),
            Command::Disconnect { peer, done } => {
                let links = self.connections.of(&peer);
                if links.is_empty() {
                    let _ = done.send(());
                } else {
                    for id in &links {
                        if let Some(link) = self.links.get(id) {
                            link.close("disconnected");
                        }
                    }
                    self.disconnecting.push(Disconnecting { links, done });
                }
            }
        }
    }

    fn is_member(&self, peer: &PeerId) -> bool {
        self.known_gate.members.contains(peer)
    }

    fn on_event(&mut self, event: SwarmEvent<ProtocolsEvent>) {
        match event {
            SwarmEvent::Behaviour(ProtocolsEvent::Identify(event)) => self.on_identify(event),
            SwarmEvent::Behaviour(ProtocolsEvent::Ping(event)) => {
                if let Ok(took) = event.result {
                    self.shared.peers().entry(event.peer).pinged = Some(took);
                }
            }
            SwarmEvent::Behaviour(ProtocolsEvent::Upkeep(carrier)) => self.on_carrier(carrier),
            SwarmEvent::Behaviour(ProtocolsEvent::Relayed(event)) => self.on_relayed(&event, now()),
            SwarmEvent::Behaviour(ProtocolsEvent::Upgrading(agreed)) => self.on_agreed(agreed, now()),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint:
                    ConnectedPoint::Dialer {
                        address,
                        port_use: PortUse::Reuse,
                        ..
                    },
                ..
            } => self.on_dialed(connection_id, peer_id, &address, now()),
            SwarmEvent::ConnectionClosed { connection_id, .. } => self.on_dialed_closed(connection_id),
            SwarmEvent::Behaviour(ProtocolsEvent::Relaying(event)) => self.on_relaying(&event),
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id: Some(peer),
                error,
            } => self.on_dial_failure(connection_id, peer, &error, now()),
            SwarmEvent::NewListenAddr { listener_id, address } => {
                if self.on_circuit_address(listener_id, address.clone(), now()) {
                    return;
                }
                if let Some(listener) = self.listener(listener_id) {
                    listener.bound.push(address);
                }
                self.publish_listen();
            }
            SwarmEvent::ExpiredListenAddr { listener_id, address } => {
                if let Some(listener) = self.listener(listener_id) {
                    listener.bound.retain(|bound| *bound != address);
                }
                self.publish_listen();
            }
            SwarmEvent::ListenerClosed {
                listener_id, reason, ..
            } => {
                if !self.on_circuit_closed(listener_id, reason.as_ref().err(), now()) {
                    debug!(address = %self.asked(listener_id), ?reason, "a listener has closed");
                }
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => {
                debug!(address = %send_back_addr, error = chain(&error), "incoming connection failed");
            }
            SwarmEvent::ListenerError { listener_id, error } => {
                debug!(address = %self.asked(listener_id), %error, "listener reported an error");
            }
            event => trace!(?event, "swarm"),
        }
    }

    fn on_identify(&mut self, event: identify::Event) {
        if let identify::Event::Received {
            connection_id,
            peer_id,
            info,
        } = event
        {
            if info.protocol_version != swarm::PROTOCOL_VERSION {
                self.on_foreign_identified(connection_id, peer_id, &info, now());
            }
            self.shared.peers().entry(peer_id).set_agent(&info.agent_version);
            // What strangers say of themselves helps nobody to reach anybody.
            if self.is_member(&peer_id) || self.shared.book().has_learned(&peer_id) {
                let addrs = info.listen_addrs.iter().map(without_peer).collect();
                self.shared.book().told(peer_id, addrs);
            }
        }
    }

    fn on_session(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::Established(session) => self.on_established(&session),
            SessionEvent::Greeted {
                id,
                peer,
                incarnation,
            } => {
                for dead in self
                    .connections
                    .identified(&peer, LinkId::Session(id), incarnation)
                {
                    if let Some(link) = self.links.get(&dead) {
                        debug!(%peer, id = ?dead, "peer has restarted, closing its old link");
                        link.close("you have restarted");
                    }
                }
            }
            SessionEvent::Observed(session) => self.on_word(&session, now()),
            SessionEvent::Foreign(peer) => {
                debug!(%peer, "the peer speaks libp2p, and is no node of ours");
                self.on_foreign(peer, now());
            }
            SessionEvent::Closed { id, peer, why } => self.on_closed(peer, LinkId::Session(id), why),
        }
    }
}

/// While opens wait for a connection, how often their deadlines and the dialer's are looked at.
const RETRY: Duration = Duration::from_millis(25);

/// How often surplus connections are looked for.
const TIDY: Duration = Duration::from_secs(1);

/// The next change of something that there may not be.
async fn changed<T>(receiver: &mut Option<watch::Receiver<T>>) -> Option<()> {
    receiver.as_mut()?.changed().await.ok()
}
