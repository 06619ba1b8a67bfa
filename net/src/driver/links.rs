//! What leads to a peer, whatever it is made of.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace};

use super::acceptor::{Accepted, HELLO_TIMEOUT, OFFENCES};
use super::addresses::{ip_of, without_peer};
use super::behaviour::Carrier;
use super::explain::REASON_MAX;
use super::fused::Fused;
use super::lane::{Lane, LaneConfig, LaneEnd, LaneStream};
use super::now;
use super::quic::{Session, SessionId, to_multiaddr};
use super::shared::{Shared, lock};
use super::stream::{Opened, Stream};
use super::usage::Usage;
use crate::said::legible;
use crate::{
    Allowance, Dialed, LANE_CHANNELS_MAX, LaneSide, LinkStatus, Pace, Packets, Path, Rung, Traffic,
    Transport, Unwelcome,
};
use lapwing_base::{Bandwidth, ByteSize, CLASSES, Class, Multiaddr, PeerId};

/// Distinguishes the links of one node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum LinkId {
    Session(SessionId),
    Lane(ConnectionId),
}

/// One way to a peer.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// QUIC, to the peer itself.
    Session(Arc<Session>),
    /// Anything else: one stream of bytes, through a relay or over TLS.
    Lane(Arc<LaneLink>),
}

impl Link {
    /// Opens a stream of a class. Says nothing to the peer until something is written.
    ///
    /// # Errors
    /// When the link is gone, or takes no stream of this class.
    pub(crate) async fn open(&self, class: Class) -> io::Result<Opened> {
        match self {
            Self::Session(session) => session.open(class).await,
            Self::Lane(link) => link.open(class),
        }
    }

    pub(crate) fn peer(&self) -> PeerId {
        match self {
            Self::Session(session) => session.peer,
            Self::Lane(link) => link.peer,
        }
    }

    pub(crate) fn rung(&self) -> Rung {
        match self {
            Self::Session(_) => Rung::Direct,
            Self::Lane(link) => link.rung,
        }
    }

    /// Where it leads.
    pub(crate) fn address(&self) -> Multiaddr {
        match self {
            Self::Session(session) => to_multiaddr(session.remote()),
            Self::Lane(link) => without_peer(&link.address),
        }
    }

    /// Where the peer's packets come from; `None` through a relay.
    pub(crate) fn remote_ip(&self) -> Option<IpAddr> {
        match self {
            Self::Session(session) => Some(session.remote().ip()),
            Self::Lane(link) if link.rung == Rung::Relayed => None,
            Self::Lane(link) => ip_of(&link.address),
        }
    }

    /// Whether any channel is open over it.
    pub(crate) fn in_use(&self) -> bool {
        match self {
            Self::Session(session) => session.in_use(),
            Self::Lane(link) => link.usage.channels() > 0,
        }
    }

    /// What happens over it now, channels that are held elsewhere included.
    pub(crate) fn traffic(&self) -> Traffic {
        match self {
            Self::Session(session) => session.traffic(),
            Self::Lane(link) => link.traffic(),
        }
    }

    /// What it is made of now.
    pub(crate) fn status(&self) -> LinkStatus {
        match self {
            Self::Session(session) => session.status(),
            Self::Lane(link) => link.status(),
        }
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        match self {
            Self::Session(session) => Some(session.rtt()),
            Self::Lane(link) => link.lane.figures().rtt,
        }
    }

    /// Watches the peer more or less closely from now on. A lane is `spare` while a session stands beside it: then it is
    /// given up no later than the session, since circuits may still lead through it.
    pub(crate) fn watch(&self, closely: bool, spare: bool) {
        match self {
            Self::Session(session) => session.set_pace(if closely { Pace::CLOSE } else { Pace::LOOSE }),
            // A lost segment holds up everything behind it: two in a row already take a second.
            Self::Lane(link) => link.lane.set_pace(match (closely, spare) {
                (true, true) => Pace::CLOSE,
                (true, false) => Pace::USED,
                (false, _) => Pace::LOOSE,
            }),
        }
    }

    /// The peer is let in further than a stranger from now on, or no longer.
    pub(crate) fn admit(&self, is_let_in: bool) {
        match self {
            // It gives more when more are used.
            Self::Session(_) => (),
            Self::Lane(link) => link.lane.set_inbound_max(inbound_max(is_let_in)),
        }
    }

    /// Asks at once whether the peer is still there, where that is not sure.
    pub(crate) fn suspect(&self) {
        match self {
            Self::Session(session) => session.suspect(),
            Self::Lane(link) => link.lane.suspect(),
        }
    }

    /// Ends it.
    pub(crate) fn close(&self, why: &str) {
        match self {
            Self::Session(session) => session.close(why),
            Self::Lane(link) => link.stop.cancel(),
        }
    }
}

/// A lane and what it runs over.
#[derive(Debug)]
pub(crate) struct LaneLink {
    pub(crate) id: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) dialed: Dialed,
    pub(crate) rung: Rung,
    pub(crate) address: Multiaddr,
    lane: Lane,
    stop: CancellationToken,
    /// Bulk passes where there is no better way, and waits where one may be found.
    takes_bulk: AtomicBool,
    usage: Usage,
    offences: Mutex<Allowance>,
}

/// Channels that a peer may have open with us over one lane. Each may send 16 KiB before anybody has looked at it, so
/// whoever is no member gets as many as streams on a session.
const fn inbound_max(is_let_in: bool) -> usize {
    if is_let_in { LANE_CHANNELS_MAX } else { 32 }
}

/// What bulk may take of a relay that others need too, for each peer.
const RELAYED_BULK_MAX: Bandwidth = Bandwidth { kbit_s: 2_000 };

/// A lane has come to its end.
#[derive(Debug)]
pub(crate) struct LaneClosed {
    pub(crate) id: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) why: String,
}

impl LaneLink {
    /// Starts a lane; its end is told to `closed`.
    pub(crate) fn start(
        carrier: Carrier,
        shared: &Arc<Shared>,
        tracker: &TaskTracker,
        stop: &CancellationToken,
        closed: mpsc::Sender<LaneClosed>,
    ) -> Arc<Self> {
        let Carrier {
            id,
            peer,
            dialed,
            rung,
            address,
            stream,
        } = carrier;
        let side = match dialed {
            Dialed::ByUs => LaneSide::Dialer,
            Dialed::ByThem => LaneSide::Listener,
        };
        let config = LaneConfig {
            upload_max: (rung == Rung::Relayed).then_some(RELAYED_BULK_MAX),
            window_max: CLASSES
                .into_iter()
                .filter_map(|class| Some((class, shared.limits.window(&peer, class)?)))
                .collect(),
            inbound_max: Some(inbound_max(shared.is_let_in(&peer))),
            ..LaneConfig::default()
        };
        let stop = stop.child_token();
        let (lane, inbound) = Lane::start(Fused::new(stream), side, config, tracker, &stop);
        let link = Arc::new(Self {
            id,
            peer,
            dialed,
            rung,
            address,
            lane,
            stop,
            takes_bulk: AtomicBool::new(rung != Rung::Relayed),
            usage: Usage::default(),
            offences: Mutex::new(OFFENCES),
        });
        tracker.spawn(run(
            Arc::clone(&link),
            inbound,
            Arc::clone(shared),
            tracker.clone(),
            closed,
        ));
        link
    }

    fn open(&self, class: Class) -> io::Result<Opened> {
        let bulk = matches!(class, Class::Maintenance | Class::Model);
        if bulk && !self.takes_bulk.load(Ordering::Relaxed) {
            let why = "bulk does not go through a relay while a direct path may be found";
            return Err(io::Error::new(io::ErrorKind::NotConnected, why));
        }
        let stream = self.lane.open(class).map_err(io::Error::other)?;
        Ok(self.opened(stream))
    }

    /// Whether bulk may go through the relay from now on.
    pub(crate) fn allow_bulk(&self, allow: bool) {
        self.takes_bulk
            .store(allow || self.rung != Rung::Relayed, Ordering::Relaxed);
    }

    /// The peer has done what no node of ours does. Ends the lane when it goes on with it.
    fn offend(&self, shared: &Shared) {
        shared.refused.count(Unwelcome::Stream);
        if !lock(&self.offences).take(now()) && !self.stop.is_cancelled() {
            debug!(peer = %self.peer, "peer misbehaves, closing the lane");
            shared.refused.count(Unwelcome::Session);
            self.stop.cancel();
        }
    }

    fn opened(&self, stream: LaneStream) -> Opened {
        Opened {
            stream: Stream::lane(stream),
            usage: self.usage.channel(None),
        }
    }

    fn traffic(&self) -> Traffic {
        let figures = self.lane.figures();
        Traffic {
            // A channel that was let go here is one of the lane's until all of it has left.
            busy: self.usage.channels() > 0 || figures.channels > 0 || figures.in_flight > 0,
            moved: figures.received.wrapping_add(self.usage.begun().into()),
            rtt: figures.rtt,
        }
    }

    fn status(&self) -> LinkStatus {
        let figures = self.lane.figures();
        LinkStatus {
            path: if self.rung == Rung::Relayed {
                Path::Relayed
            } else {
                Path::Direct
            },
            transport: if self.rung == Rung::Fallback {
                Transport::Wss
            } else {
                Transport::Quic
            },
            rtt: figures.rtt,
            window: None,
            bulk_window: Some(ByteSize(figures.window)),
            packets: Packets::default(),
        }
    }
}

/// Takes what the peer opens, until the lane ends.
async fn run(
    link: Arc<LaneLink>,
    mut inbound: mpsc::Receiver<(Class, LaneStream)>,
    shared: Arc<Shared>,
    tracker: TaskTracker,
    closed: mpsc::Sender<LaneClosed>,
) {
    let why = loop {
        tokio::select! {
            end = link.lane.ended() => {
                if matches!(end, LaneEnd::Misbehaved(_)) {
                    shared.refused.count(Unwelcome::Session);
                }
                break legible(&end.to_string(), REASON_MAX);
            }
            Some((class, stream)) = inbound.recv() => {
                let (opened, link, shared) = (link.opened(stream), Arc::clone(&link), Arc::clone(&shared));
                tracker.spawn(async move {
                    let peer = link.peer;
                    let accepting = shared.acceptor.accept(peer, class, opened, &shared);
                    match tokio::time::timeout(HELLO_TIMEOUT, accepting).await {
                        Ok(Accepted::Answered | Accepted::Ended) => (),
                        Ok(Accepted::NotOurs) => {
                            trace!(%peer, %class, "a stream said nothing of ours");
                            link.offend(&shared);
                        }
                        // A stream that says nothing for so long is half-open and dropped.
                        Err(_) => shared.refused.count(Unwelcome::Stream),
                    }
                });
            }
        }
    };
    let (id, peer) = (link.id, link.peer);
    drop(link);
    // Nobody listens where the whole network has stopped.
    let _ = closed.send(LaneClosed { id, peer, why }).await;
}
