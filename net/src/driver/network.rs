//! The handle that the other rooms hold. It asks the driver and reads the shared tables; it owns no socket.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info_span};

use super::addresses::{relay_of, without_peer};
use super::channel::{Channel, ChannelError};
use super::limits::Limits;
use super::links::Link;
use super::notes::{self, Inboxes};
use super::shared::Shared;
use super::{COMMANDS_MAX, Command, ConnectFailure, Driver, now, prober};
use crate::{
    CandidateRow, Gate, Hello, Kind, LinkStatus, NetworkStatus, Path, Probes, RateLimits, ReachStatus,
    Refusal, TransferTiming,
};
use lapwing_base::{Bandwidth, Keypair, Multiaddr, PeerId, Role};

/// How a node takes part in the network.
#[derive(Clone)]
pub struct NetworkConfig {
    /// The node's identity; see [`crate::load_or_create_identity`].
    pub keypair: Keypair,
    /// Where to listen, as `/ip4/0.0.0.0/udp/0/quic-v1`; port 0 lets the system choose, and with no address at
    /// all the node only dials. A home that listens on all of one version of IP, and meets others over the other one,
    /// listens there too.
    pub listen: Vec<Multiaddr>,
    /// Main or home; `None` finds out: by asking others whether they reach it. Default: `None`.
    pub role: Option<Role>,
    /// Whether to relay for peers that are not members too. Default: no.
    pub relays_strangers: bool,
    /// Whether to ask the router for a port (UPnP, PCP, NAT-PMP). Default: yes, unless it listens on loopback only.
    pub maps_port: bool,
    /// Whether to look for members in the local network, and to tell them of this node (multicast DNS). Default: yes,
    /// unless it listens on loopback only.
    pub finds_neighbours: bool,
    /// What a WebSocket listener shows: files with a certificate chain and its key, both PEM. Default: a certificate
    /// made at the start, which serves everybody who does not look inside.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Keeps over a restart on which networks UDP is blocked, so that the fallback is not put off there: a file of at
    /// most 8 KiB, written when that changes. Default: none, and nothing is kept.
    pub networks_file: Option<PathBuf>,
    /// What is kept to when sending, over whatever path. Default: no limits. Each costs a timer for every 16 KiB that
    /// it holds up.
    pub upload_max: RateLimits,
    /// The same for receiving, by reading no faster and by letting senders be ahead of that by half a second only.
    pub download_max: RateLimits,
    /// A link to a member that no transfer has measured for so long is probed. Default 30 s: up to 1 MiB each time,
    /// and never more than a tenth of the link. At least a second.
    pub probe_interval: Duration,
}

impl NetworkConfig {
    /// A node with this identity that listens on every interface, at a port of the system's choice, without limits.
    pub fn new(keypair: Keypair) -> Self {
        let any = Multiaddr::empty()
            .with(std::net::Ipv4Addr::UNSPECIFIED.into())
            .with(libp2p::multiaddr::Protocol::Udp(0))
            .with(libp2p::multiaddr::Protocol::QuicV1);
        Self {
            keypair,
            listen: vec![any],
            role: None,
            relays_strangers: false,
            maps_port: true,
            finds_neighbours: true,
            certificate: None,
            networks_file: None,
            upload_max: RateLimits::default(),
            download_max: RateLimits::default(),
            probe_interval: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkConfig")
            .field("peer", &self.keypair.public().to_peer_id())
            .field("listen", &self.listen)
            .field("upload_max", &self.upload_max)
            .field("download_max", &self.download_max)
            .field("probe_interval", &self.probe_interval)
            .finish_non_exhaustive()
    }
}

/// A node's place in the network. Cheap to clone; the network stops at [`Network::shutdown`], or when the last
/// clone is dropped.
#[derive(Clone, Debug)]
#[must_use = "a network stops when its last handle is dropped"]
pub struct Network {
    inner: Arc<Inner>,
}

/// A peer's being let in as a guest; ends when this is dropped.
#[derive(Debug)]
#[must_use = "a guest is let in for as long as this is kept"]
pub struct Welcome {
    shared: Arc<Shared>,
    peer: PeerId,
    watched: bool,
}

impl Drop for Welcome {
    fn drop(&mut self) {
        self.shared.dismiss(&self.peer, self.watched);
    }
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Cancelled when the driver has ended, be it by a panic.
    ended: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Network {
    /// Binds every address and begins to take and open channels, for those that `gate` lets in.
    ///
    /// # Errors
    /// When an address cannot be listened on; nothing stays bound then.
    pub async fn start(config: NetworkConfig, gate: watch::Receiver<Gate>) -> Result<Self, StartError> {
        let me = config.keypair.public().to_peer_id();
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let limits = Limits::new(config.upload_max.clone(), config.download_max.clone());
        let probe_interval = config.probe_interval.max(Duration::from_secs(1));
        let (received, to_tell) = mpsc::channel(prober::QUEUE);
        let shared = Arc::new(Shared::new(me, commands, limits, probe_interval, received));
        let tracker = TaskTracker::new();
        let stop = CancellationToken::new();
        // What was begun ends where the rest cannot be.
        let stop_on_drop = stop.clone().drop_guard();
        let probed = shared.acceptor.serve(prober::PROBE, prober::QUEUE);
        let told = shared.acceptor.serve(prober::MEASURED, prober::QUEUE);
        let inboxes = Inboxes::open(&shared);
        let (noted, notes) = mpsc::channel(notes::QUEUE);
        let bound = Driver::bind(super::Setup {
            config: &config,
            notes,
            shared: Arc::clone(&shared),
            commands: inbox,
            gate,
            tracker: tracker.clone(),
            stop: stop.child_token(),
            incarnation: super::draw(),
        })
        .await;
        let driver = match bound {
            Ok(driver) => driver,
            Err(error) => {
                drop(stop_on_drop);
                tracker.close();
                // Sockets are free once the tasks have ended that use them.
                tracker.wait().await;
                return Err(error);
            }
        };
        let span = info_span!("net", %me);
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        let driving = async move {
            driver.run().await;
            drop(end);
        };
        tracker.spawn(driving.instrument(span.clone()));
        let probing = prober::probe_members(Arc::clone(&shared), Probes::new(probe_interval, super::draw()));
        let answering = prober::answer_probes(Arc::clone(&shared), probed);
        let telling = prober::tell_received(Arc::clone(&shared), to_tell);
        let hearing = prober::hear_received(Arc::clone(&shared), told);
        let noting = notes::take(Arc::clone(&shared), inboxes, noted);
        let stopped = stop.child_token();
        let tasks = async move {
            stopped
                .run_until_cancelled(async { tokio::join!(probing, answering, telling, hearing, noting) })
                .await;
        };
        tracker.spawn(tasks.instrument(span));
        let inner = Inner {
            shared,
            tracker,
            ended,
            _stop_on_drop: stop_on_drop,
            stop,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// This node.
    pub fn peer_id(&self) -> PeerId {
        self.inner.shared.me
    }

    /// Where others can reach it: concrete addresses. Loopback only when it was asked for, or there is nothing else.
    pub fn listen_addrs(&self) -> Vec<Multiaddr> {
        self.inner.shared.listen()
    }

    /// How this node can be reached, and whether it is a main, as that becomes known and changes.
    pub fn reach(&self) -> watch::Receiver<ReachStatus> {
        self.inner.shared.reach()
    }

    /// Every address that was tried for a peer lately, and what came of it.
    pub async fn candidates(&self, peer: PeerId) -> Vec<CandidateRow> {
        let (reply, rows) = oneshot::channel();
        let command = Command::Candidates { peer, reply };
        if self.inner.shared.commands.send(command).await.is_err() {
            return Vec::new();
        }
        // The driver answers every command until it stops.
        rows.await.unwrap_or_default()
    }

    /// Replaces what was learned earlier of a peer's addresses.
    pub fn learn(&self, peer: PeerId, addrs: Vec<Multiaddr>) {
        let shared = &self.inner.shared;
        if peer == shared.me {
            return;
        }
        let addrs = addrs.iter().map(without_peer).collect();
        if shared.book().learn(peer, addrs) {
            // Only cuts a backoff of seconds short, so it may be lost where the driver is busy.
            let _ = shared.commands.try_send(Command::Learned(peer));
        }
    }

    /// Takes inbound channels of a kind from now on, past the gate; up to `queue` of them may wait to be received,
    /// and peers that open more are refused as [`Refusal::Busy`]. Replaces an earlier receiver of the same kind.
    pub fn serve(&self, kind: Kind, queue: usize) -> mpsc::Receiver<Channel> {
        self.inner.shared.acceptor.serve(kind, queue)
    }

    /// Lets a peer in as a guest for as long as the returned value is kept: it may open channels of
    /// [`Access::Guests`](crate::Access::Guests), and as many as a member.
    pub fn welcome(&self, peer: PeerId) -> Welcome {
        self.let_in(peer, false)
    }

    /// The same of a guest whose silence is noticed as soon as that of the [`Gate::watched`](crate::Gate::watched).
    pub fn welcome_watched(&self, peer: PeerId) -> Welcome {
        self.let_in(peer, true)
    }

    fn let_in(&self, peer: PeerId, watched: bool) -> Welcome {
        self.inner.shared.welcome(peer, watched);
        Welcome {
            shared: Arc::clone(&self.inner.shared),
            peer,
            watched,
        }
    }

    /// Connects to a peer by whatever path there is, unless a connection stands.
    ///
    /// # Errors
    /// When the peer cannot be reached within `timeout`, or cannot be hoped to be.
    pub async fn connect(&self, peer: PeerId, timeout: Duration) -> Result<(), OpenError> {
        let deadline = now() + timeout;
        if self.inner.shared.link(&peer).is_some() {
            return Ok(());
        }
        let connecting = connect(&self.inner.shared, peer, notes::WITNESS, deadline);
        match tokio::time::timeout_at(deadline.into(), connecting).await {
            Ok(connected) => connected.map(drop),
            Err(_) => Err(unanswered(&self.inner.shared, peer, notes::WITNESS, timeout)),
        }
    }

    /// Opens a channel over the peer's connection, which is dialed when there is none.
    ///
    /// Whether the peer takes it shows at the first [`Channel::receive`]: opening costs no round trip.
    ///
    /// # Errors
    /// When the peer cannot be reached within `timeout`, or cannot be hoped to be.
    pub async fn open(&self, peer: PeerId, kind: Kind, timeout: Duration) -> Result<Channel, OpenError> {
        open(&self.inner.shared, peer, kind, timeout).await
    }

    /// Opens a channel, sends one frame and receives one.
    ///
    /// # Errors
    /// When there is no answer within `timeout`, for whatever reason. The peer may have acted all the same.
    pub async fn request(
        &self,
        peer: PeerId,
        kind: Kind,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Bytes, RequestError> {
        request(&self.inner.shared, peer, kind, body, timeout).await
    }

    /// Our upload to each peer, as far as it was measured lately: smoothed.
    pub fn measured(&self) -> Vec<(PeerId, Bandwidth)> {
        let (now, fresh) = (now(), self.inner.shared.fresh());
        let peers = self.inner.shared.peers();
        peers
            .iter()
            .filter_map(|(peer, entry)| Some((*peer, entry.estimate.speed(now, fresh)?)))
            .collect()
    }

    /// Takes what a peer has sent for a measurement of its link to this node, of which the peer is told. Of less than
    /// 64 KiB nothing is learnt. A link that transfers measure is not probed.
    pub fn transfer_received(&self, peer: PeerId, timing: TransferTiming) {
        prober::transfer_received(&self.inner.shared, peer, timing);
    }

    /// Other limits for single peers from now on, of what is sent and of what is received, in place of those that it
    /// was started with. A connection that stands goes on with the windows that it has.
    pub fn limit_peers(&self, upload: BTreeMap<PeerId, Bandwidth>, download: BTreeMap<PeerId, Bandwidth>) {
        self.inner.shared.limits.limit_peers(upload, download);
    }

    /// The network as this node sees it now.
    pub fn status(&self) -> NetworkStatus {
        let shared = &self.inner.shared;
        let (now, fresh) = (now(), shared.fresh());
        let table = shared.peers();
        let (sent, received) = (table.sent(), table.received());
        let peers = table
            .iter()
            .map(|(peer, entry)| {
                let link = shared.link(peer).map(|link| seen(shared, &link));
                entry.status(*peer, link, now, fresh)
            })
            .collect();
        drop(table);
        let [upload_max, download_max] = shared.limits.get();
        NetworkStatus {
            peer: shared.me,
            listen: shared.listen(),
            reach: shared.reach().borrow().clone(),
            refused: shared.refused(),
            upload_max,
            download_max,
            sent,
            received,
            peers,
        }
    }

    /// Closes every connection with a peer and waits until they are closed. Does not keep it from coming back.
    pub async fn disconnect(&self, peer: PeerId) {
        let (done, closed) = oneshot::channel();
        if self
            .inner
            .shared
            .commands
            .send(Command::Disconnect { peer, done })
            .await
            .is_ok()
        {
            // An error means that the driver has stopped, and then everything is closed.
            let _ = closed.await;
        }
    }

    /// Waits until it has stopped: because it was told to, or because it cannot go on.
    pub async fn ended(&self) {
        self.inner.ended.cancelled().await;
    }

    /// Closes every connection, so that peers see it at once, frees the ports and waits for every task.
    ///
    /// Channels that are still held are lost; a port is free at once only when they are dropped first.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
    }
}

/// A link as it is shown: a relayed one is spoken over what leads to its relay. What lies behind that, the relay knows.
fn seen(shared: &Shared, link: &Link) -> LinkStatus {
    let status = link.status();
    let relay = relay_of(&link.address()).and_then(|relay| shared.link(&relay));
    match relay {
        Some(leg) if status.path == Path::Relayed => LinkStatus {
            transport: leg.status().transport,
            ..status
        },
        _ => status,
    }
}

pub(crate) async fn request(
    shared: &Arc<Shared>,
    peer: PeerId,
    kind: Kind,
    body: &[u8],
    timeout: Duration,
) -> Result<Bytes, RequestError> {
    let begun_at = now();
    let exchange = async {
        let mut channel = open(shared, peer, kind, timeout).await?;
        channel.send(body).await?;
        channel.finish().await?;
        channel
            .receive()
            .await?
            .ok_or(RequestError::NoAnswer { peer, kind })
    };
    match tokio::time::timeout_at((begun_at + timeout).into(), exchange).await {
        Ok(answer) => answer,
        Err(_) => {
            // A hint, which may be lost where the driver is busy.
            let _ = shared.commands.try_send(Command::Suspect(peer));
            Err(RequestError::Timeout {
                peer,
                kind,
                waited: timeout,
            })
        }
    }
}

pub(crate) async fn open(
    shared: &Arc<Shared>,
    peer: PeerId,
    kind: Kind,
    timeout: Duration,
) -> Result<Channel, OpenError> {
    if peer == shared.me {
        return Err(OpenError::Myself { kind });
    }
    let deadline = now() + timeout;
    match tokio::time::timeout_at(deadline.into(), open_before(shared, peer, kind, deadline)).await {
        Ok(result) => result,
        Err(_) => Err(unanswered(shared, peer, kind, timeout)),
    }
}

/// Why there is no channel after the whole timeout.
fn unanswered(shared: &Shared, peer: PeerId, kind: Kind, timeout: Duration) -> OpenError {
    match shared.last_error(&peer) {
        Some(reason) => OpenError::Unreachable { peer, kind, reason },
        None => OpenError::Timeout {
            peer,
            kind,
            waited: timeout,
        },
    }
}

/// Between two attempts over connections that turn out to be lost.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(10);

/// Tries until a stream takes the hello: until then nothing has happened at the other end.
async fn open_before(
    shared: &Arc<Shared>,
    peer: PeerId,
    kind: Kind,
    deadline: Instant,
) -> Result<Channel, OpenError> {
    loop {
        let link = match shared.link(&peer) {
            Some(link) => link,
            None => connect(shared, peer, kind, deadline).await?,
        };
        match open_over(shared, &link, kind).await {
            Ok(channel) => return Ok(channel),
            Err(error) => tracing::trace!(%peer, %kind, %error, "a stream was lost before its hello"),
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
    }
}

/// Opens a channel over one link.
pub(crate) async fn open_over(shared: &Shared, link: &Link, kind: Kind) -> io::Result<Channel> {
    let opened = link.open(kind.class).await?;
    let hello = Hello::new(shared.acceptor.gate().cluster, &kind).to_bytes();
    Channel::outbound(link.peer(), kind, opened, &hello, shared).await
}

async fn connect(
    shared: &Arc<Shared>,
    peer: PeerId,
    kind: Kind,
    deadline: Instant,
) -> Result<Link, OpenError> {
    let (reply, answer) = oneshot::channel();
    let command = Command::Connect {
        peer,
        deadline,
        reply,
    };
    shared
        .commands
        .send(command)
        .await
        .map_err(|_| OpenError::Stopped)?;
    match answer.await {
        Ok(Ok(link)) => Ok(link),
        Ok(Err(ConnectFailure::NoAddress)) => Err(OpenError::NoAddress { peer, kind }),
        Ok(Err(ConnectFailure::Unreachable(reason))) => Err(OpenError::Unreachable { peer, kind, reason }),
        Ok(Err(ConnectFailure::Overloaded)) => Err(OpenError::Overloaded { peer, kind }),
        // Dropped only where the driver has ended.
        Ok(Err(ConnectFailure::Stopped)) | Err(_) => Err(OpenError::Stopped),
    }
}

/// The network cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The identity's key cannot sign a certificate.
    #[error("cannot make a certificate for this node's identity")]
    Identity {
        /// What the library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The proxy of the environment cannot be used.
    #[error("cannot use the proxy that HTTPS_PROXY names; correct or unset it")]
    Proxy {
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// WebSocket cannot be set up.
    #[error("cannot set up WebSocket; check the certificate's files")]
    WebSocket {
        /// What the library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The system does not tell which networks this machine is in.
    #[error("cannot watch this machine's networks")]
    Interfaces {
        /// What the system says.
        source: io::Error,
    },
    /// Another process has the port.
    #[error("{address} is in use by another process; stop it, or choose another port (0 takes a free one)")]
    AddressInUse {
        /// The address that was asked for.
        address: Multiaddr,
    },
    /// The address is not one to listen on.
    #[error(
        "{address} is no address to listen on; use one such as /ip4/0.0.0.0/udp/4001/quic-v1, or \
         /ip4/0.0.0.0/tcp/443/tls/ws for networks without UDP"
    )]
    Unsupported {
        /// The address that was asked for.
        address: Multiaddr,
    },
    /// The port is for those with more rights.
    #[error(
        "this user may not listen on {address}; take a port from 1024 on, or allow it to the program with \
         `setcap cap_net_bind_service=+ep`"
    )]
    PermissionDenied {
        /// The address that was asked for.
        address: Multiaddr,
    },
    /// The address is another machine's.
    #[error(
        "no interface of this machine has the address of {address}; 0.0.0.0, or :: with /ip6, stands for all"
    )]
    NotHere {
        /// The address that was asked for.
        address: Multiaddr,
    },
    /// The system does not let us.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address that was asked for.
        address: Multiaddr,
        /// What the system says.
        source: io::Error,
    },
}

/// There is no channel.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nobody has said where the peer is.
    #[error("no address of peer {peer} is known")]
    NoAddress {
        /// Who.
        peer: PeerId,
        /// What for.
        kind: Kind,
    },
    /// It does not answer where it should be.
    #[error("peer {peer} cannot be reached: {reason}")]
    Unreachable {
        /// Who.
        peer: PeerId,
        /// What for.
        kind: Kind,
        /// What the last attempt came to.
        reason: String,
    },
    /// Nothing failed, and nothing came of it in time.
    #[error("peer {peer} did not answer within {waited:?}")]
    Timeout {
        /// Who.
        peer: PeerId,
        /// What for.
        kind: Kind,
        /// How long it was given.
        waited: Duration,
    },
    /// Too many channels of this node already wait for connections.
    #[error("too many messages wait for connections; try peer {peer} again later")]
    Overloaded {
        /// Who.
        peer: PeerId,
        /// What for.
        kind: Kind,
    },
    /// The peer is this node.
    #[error("a node does not connect to itself")]
    Myself {
        /// What for.
        kind: Kind,
    },
    /// This node's network has been shut down.
    #[error("the network of this node has stopped")]
    Stopped,
}

/// There is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request was not sent.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The channel failed, or the peer refused it.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The peer took the request and ended the channel without an answer.
    #[error("peer {peer} took a {kind} request and did not answer it")]
    NoAnswer {
        /// Who.
        peer: PeerId,
        /// What for.
        kind: Kind,
    },
    /// The answer did not come in time.
    #[error("peer {peer} did not answer a {kind} request within {waited:?}")]
    Timeout {
        /// Who.
        peer: PeerId,
        /// What for.
        kind: Kind,
        /// How long it was given.
        waited: Duration,
    },
}

impl RequestError {
    /// The peer's refusal, when that is what it is.
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Channel(error) => error.refusal(),
            Self::Open(_) | Self::NoAnswer { .. } | Self::Timeout { .. } => None,
        }
    }
}
