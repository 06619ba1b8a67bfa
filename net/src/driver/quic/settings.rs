//! How QUIC is set: windows, patience, limits. Each number with its reason.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    ClientConfig, ConnectionId, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};

use super::route;
use super::tls::Identity;
use crate::driver::congestion::DelayCongestion;
use crate::driver::draw;
use crate::driver::limits::Limits;
use lapwing_base::{ByteSize, PeerId};

/// A connection on which nothing has arrived for so long is given up; sessions that matter are probed, and are
/// given up much sooner.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(30);

/// Keeps the mapping of a NAT, which may last as little as 30 s (RFC 4787 asks for two minutes; many do less).
const KEEP_ALIVE: Duration = Duration::from_secs(12);

/// Before anything was measured. Half of the default: the first loss costs 300 ms and not a second.
const RTT_INITIAL: Duration = Duration::from_millis(100);

/// Streams that a member may have open with us over one connection: two kinds' worth of channels, and as many on
/// their way.
pub(super) const STREAMS_MAX: u32 = 1024;

/// What everybody may have open before any is used: libp2p's own substreams, and enough for a request to each kind.
pub(super) const STREAMS_AT_FIRST: u32 = 32;

/// Messages about the session itself; each is short and read at once.
const UNI_STREAMS_MAX: u32 = 8;

/// What a peer may send on a session before we have read it: eight streams that nobody reads fill it.
const STREAM_WINDOW: u32 = 1 << 20;
const RECEIVE_WINDOW: u32 = 8 << 20;
/// What may be on its way of everything but bulk: more than the upper classes ever need, less than what would
/// make a heartbeat wait.
const SEND_WINDOW: u64 = 2 << 20;

/// A bulk lane carries a gigabit over a round trip of 130 ms.
const BULK_STREAM_WINDOW: u32 = 16 << 20;
const BULK_RECEIVE_WINDOW: u32 = 32 << 20;
const BULK_SEND_WINDOW: u64 = 16 << 20;
/// Where the longest datagrams fit, which is on this machine, a round trip takes a fraction of a millisecond. What is
/// under way then fits in the sockets' buffers, so that nothing is lost, and in the processor's cache.
const BULK_SEND_WINDOW_LOCAL: u64 = 2 << 20;

/// Handshakes that may wait to be looked at; beyond as many, new ones are refused.
const INCOMING_MAX: usize = 1024;

/// Liveness probes: a few bytes each.
const DATAGRAM_BUFFER: usize = 4 << 10;

/// The first bytes of the connection id that the dialer of a bulk lane makes up, so that the other end gives the
/// connection a bulk lane's windows from its first packet. No secret: to say it without a session gains nothing.
const BULK_MARK: [u8; 8] = *b"lapwbulk";
/// Of the 20 bytes that QUIC allows (RFC 9000 section 17.2).
const CID_SIZE: usize = 20;

/// The longest datagrams that are tried: where the first link carries them, a transfer costs a half or a third.
///
/// The first is what QUIC tries on any Ethernet, the second fits in its jumbo frames, and four of the third fill what
/// the system takes at once. Longer ones gain nothing.
const DATAGRAMS_MAX: [u16; 3] = [1452, 8952, 16_368];

/// What we take of others: as much as UDP carries. The socket reserves the memory, and does so only once.
const PAYLOAD_MAX: u16 = 65_527;

/// Everything that an endpoint is built and dials with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) endpoint: EndpointConfig,
    pub(crate) accept: Arc<ServerConfig>,
    /// For each of [`DATAGRAMS_MAX`].
    routes: [RouteSettings; DATAGRAMS_MAX.len()],
}

/// What a peer may send on a bulk lane before it was read: less where the node's limits hold what is read to a rate, so
/// that they hold on the way too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BulkWindows {
    pub(crate) stream: VarInt,
    pub(crate) connection: VarInt,
}

impl BulkWindows {
    /// Of lanes with this peer, or of a lane of which it is not known yet whose it is.
    pub(crate) fn within(limits: &Limits, peer: Option<&PeerId>) -> Self {
        let window = |max: u32, limit: Option<ByteSize>| {
            let limit = limit.and_then(|size| u32::try_from(size.0).ok());
            VarInt::from_u32(limit.map_or(max, |size| size.min(max)))
        };
        Self {
            stream: window(BULK_STREAM_WINDOW, limits.stream_window()),
            connection: window(BULK_RECEIVE_WINDOW, limits.bulk_window(peer)),
        }
    }
}

/// What connections are made with, on routes whose first link carries datagrams of one length.
#[derive(Debug)]
pub(crate) struct RouteSettings {
    pub(crate) dial: ClientConfig,
    pub(crate) dial_bulk: ClientConfig,
    pub(crate) accept: Arc<ServerConfig>,
    pub(crate) accept_bulk: Arc<ServerConfig>,
}

impl Settings {
    pub(crate) fn new(identity: &Identity, windows: BulkWindows) -> Self {
        let mut endpoint = EndpointConfig::default();
        endpoint.supported_versions(vec![1]);
        // The bit tells packets from probes, so it may not be greased (RFC 9287).
        endpoint.grease_quic_bit(false);
        endpoint
            .max_udp_payload_size(PAYLOAD_MAX)
            .expect("as long as UDP's longest");
        let routes = DATAGRAMS_MAX.map(|datagram_max| RouteSettings::new(identity, datagram_max, windows));
        Self {
            endpoint,
            accept: Arc::clone(&routes[0].accept),
            routes,
        }
    }

    /// What to connect with to or from an address.
    pub(crate) fn towards(&self, remote: SocketAddr) -> &RouteSettings {
        let carried = route::datagram_max(remote);
        let fits = DATAGRAMS_MAX
            .iter()
            .rposition(|length| u32::from(*length) <= carried);
        // The shortest where even that does not fit: probes find out what does.
        &self.routes[fits.unwrap_or(0)]
    }
}

impl RouteSettings {
    fn new(identity: &Identity, datagram_max: u16, windows: BulkWindows) -> Self {
        // A session's datagrams stay short: a probe as long as the first window would hold up what may not wait, and
        // even the close frame.
        let session = Arc::new(session());
        let bulk = Arc::new(bulk(datagram_max, windows));
        let mut dial = ClientConfig::new(Arc::clone(&identity.dial) as _);
        dial.transport_config(Arc::clone(&session));
        let mut dial_bulk = ClientConfig::new(Arc::clone(&identity.dial_bulk) as _);
        dial_bulk.transport_config(Arc::clone(&bulk));
        dial_bulk.initial_dst_cid_provider(Arc::new(marked_cid));
        let mut accept = ServerConfig::with_crypto(Arc::clone(&identity.accept) as _);
        accept.transport_config(session).max_incoming(INCOMING_MAX);
        let mut accept_bulk = ServerConfig::with_crypto(Arc::clone(&identity.accept_bulk) as _);
        accept_bulk.transport_config(bulk);
        Self {
            dial,
            dial_bulk,
            accept: Arc::new(accept),
            accept_bulk: Arc::new(accept_bulk),
        }
    }
}

fn session() -> TransportConfig {
    let mut config = base(DATAGRAMS_MAX[0]);
    config
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into())
        .send_window(SEND_WINDOW);
    config
}

fn bulk(datagram_max: u16, windows: BulkWindows) -> TransportConfig {
    let mut config = base(datagram_max);
    let [.., longest] = DATAGRAMS_MAX;
    let send_window = if datagram_max == longest {
        BULK_SEND_WINDOW_LOCAL
    } else {
        BULK_SEND_WINDOW
    };
    config
        .stream_receive_window(windows.stream)
        .receive_window(windows.connection)
        .send_window(send_window)
        .congestion_controller_factory(Arc::new(DelayCongestion));
    config
}

fn base(datagram_max: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(datagram_max);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS_AT_FIRST.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        // Thirty seconds fit in a variable-length integer of milliseconds.
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            IDLE_MAX.as_millis() as u32
        ))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(RTT_INITIAL)
        .mtu_discovery_config(Some(discovery))
        .allow_spin(false);
    config
}

fn marked_cid() -> ConnectionId {
    let mut cid = [0; CID_SIZE];
    cid[..BULK_MARK.len()].copy_from_slice(&BULK_MARK);
    // Unpredictable, as RFC 9000 section 7.2 asks: at least eight bytes.
    cid[BULK_MARK.len()..].copy_from_slice(&draw::<[u8; CID_SIZE - BULK_MARK.len()]>());
    ConnectionId::new(&cid)
}

/// Whether the dialer announces a bulk lane.
pub(crate) fn is_bulk(cid: &ConnectionId) -> bool {
    cid.starts_with(&BULK_MARK)
}
