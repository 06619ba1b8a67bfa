//! Peers, addresses and priority streams: the only room with a UDP socket.
//!
//! The cores decide (whom to let in, when to dial, which of two connections to keep, how fast to send, what a
//! link carries) and know neither clock nor socket. The driver owns the sockets and does what they say.
//! Nothing of libp2p leaks out of [`Network`].
//!
//! This room knows nothing of rounds, logs or models: it moves frames between peers, by class.

mod address_book;
mod allowance;
mod bucket;
mod codec;
mod connections;
mod estimate;
mod gate;
mod hello;
mod kind;
mod liveness;
mod peer_table;
mod probes;
mod quiet;
mod reach;
mod refusal;
mod refused;
mod said;
mod send;
mod status;
mod transfer;

#[cfg(feature = "driver")]
mod driver;

pub use address_book::AddressBook;
pub use allowance::Allowance;
pub use bucket::Bucket;
pub use codec::{DecodeError, decode, encode};
pub use connections::{Connections, Dialed};
pub use estimate::Estimate;
pub use gate::Gate;
pub use hello::{Hello, HelloError, VERSION};
pub use kind::{Access, Kind};
pub use liveness::{Beat, Liveness, Pace};
pub use peer_table::{Counters, PeerEntry, PeerTable};
pub use probes::{Candidate, ProbeClock, ProbeTiming, Probes};
pub use quiet::{Quiet, Traffic};
pub use reach::{
    BeaconAction, Beaconed, Beacons, CandidateKind, CandidateOutcome, CandidateRow, CandidateSource,
    CandidateTable, Change, Chosen, Contacted, Contacts, Datagram, DialId, Family, Filtering, Here, Ladder,
    LadderAction, Lookouts, Mapping, NatType, NetworkPrint, Observation, Observations, PortSpan, Presence,
    Probe, ProbeError, ProbeId, ProbeKey, ProbeKind, Probed, ProbedOutcome, ProbedSource, Prospect,
    PunchAction, PunchError, PunchMessage, Punches, ReachAction, Reachability, RelayedBecause, Reservation,
    ReservationAction, ReservationRefusal, Reservations, Rung, Scope, Side, Sighting, SocketId, Stance,
    Standing, Strategy, Surroundings, There, Token, Udp, UdpVerdicts, UdpVerdictsError, Vetting, Whereabouts,
    Witness, WitnessAction, WitnessMessage, WitnessRefusal,
};
pub use refusal::Refusal;
pub use refused::{Refused, RefusedCounters, Unwelcome};
pub use send::{
    AckError, Arrivals, CHANNELS_MAX as LANE_CHANNELS_MAX, ChannelId, DelayWindow, Event as LaneEvent,
    LaneError, Limiter, Mode as WindowMode, Mux, Next, OpenChannelError, PacketError, RateLimits,
    Read as ChannelRead, Remembered as RememberedWindow, SLICE_MAX, Scheduler, Side as LaneSide,
    TARGET as DELAY_TARGET, Turn, UnlimitedClass, WriteError,
};
pub use status::{LinkStatus, NetworkStatus, Packets, Path, PeerStatus, ReachStatus, Transport};
pub use transfer::{TransferClock, TransferTiming};

#[cfg(feature = "driver")]
pub use driver::bench;
#[cfg(feature = "driver")]
pub use driver::{
    Channel, ChannelError, DelayCongestion, IdentityError, Lane, LaneConfig, LaneEnd, LaneFigures,
    LaneStream, Network, NetworkConfig, OpenError, OpenLaneStreamError, Proxy, ProxySettingError,
    ReceiveHalf, RequestError, SendHalf, StartError, Toll, Welcome, WindowFigures, load_or_create_identity,
};
