//! Asks the router for a port outside that leads to ours: by PCP, NAT-PMP or UPnP, whichever it speaks.
//!
//! Keeps one mapping of one UDP port alive, makes it again after the network has changed, and takes it back when the
//! node stops. Nobody waits for it. Whether the port can really be reached through it, others must find out.

mod pcp;
mod upnp;

use std::fmt;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use socket2::SockRef;
use thiserror::Error;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::http::exchange;
use super::interfaces::Interfaces;
use super::{draw, timer_now};
use pcp::{Nonce, Promise};
use upnp::{Place, Service};

/// For how long a mapping is asked. When we vanish without a word, the router forgets it after so long.
const LIFETIME: Duration = Duration::from_secs(20 * 60);

/// A router that has been started again has forgotten the mapping, and is asked again after so long at most.
const RENEW_MAX: Duration = Duration::from_secs(5 * 60);

/// A network without such a router is asked again after so long: somebody may have changed its settings.
const RETRY: Duration = Duration::from_secs(10 * 60);

/// How long a gateway may take to answer each time it is asked (RFC 6886, 3.1, but fewer: it is one hop away).
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];

/// For how long answers to a search for UPnP are taken; they may spread theirs over a second, as we ask them to.
const SEARCH_MAX: Duration = Duration::from_millis(1500);

/// Answers that are looked at: a few routers, and their chatter.
const ANSWERS_MAX: usize = 16;

/// How long a router may take over one HTTP request. Their web servers are slow.
const REQUEST_MAX: Duration = Duration::from_secs(3);

/// Ports that are tried when another node of the network has the one that we would like.
const PORTS_TRIED: usize = 4;

/// How long taking a mapping back may hold up the end of the node.
const RELEASE_MAX: Duration = Duration::from_secs(1);

/// What may be asked.
#[derive(Clone, Debug)]
pub(crate) struct PortMappingConfig {
    /// Whether to ask by PCP. Default: yes. It costs three small messages where nobody answers, as do the others.
    pub(crate) pcp: bool,
    /// Whether to ask by NAT-PMP. Default: yes.
    pub(crate) nat_pmp: bool,
    /// Whether to ask by UPnP. Default: yes.
    pub(crate) upnp: bool,
    /// Where gateways listen. Default: 5351, for both protocols.
    pub(crate) gateway_port: u16,
    /// Where UPnP's devices are searched. Default: 239.255.255.250:1900.
    pub(crate) ssdp: SocketAddrV4,
    /// How long a mapping is left alone at least, whatever lifetime the gateway gives it. Default 30 s.
    pub(crate) renew_min: Duration,
}

impl Default for PortMappingConfig {
    fn default() -> Self {
        Self {
            pcp: true,
            nat_pmp: true,
            upnp: true,
            gateway_port: pcp::PORT,
            ssdp: upnp::SSDP,
            renew_min: Duration::from_secs(30),
        }
    }
}

/// How a router is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Method {
    Pcp,
    NatPmp,
    Upnp,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// How it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum PortMapping {
    /// The router is being asked.
    Searching,
    /// The router forwards.
    Mapped {
        /// What leads to our port. It may be private or shared (RFC 6598), when that router is behind another NAT.
        external: SocketAddr,
        /// Who said so.
        by: Method,
    },
    /// No router forwards.
    Unavailable {
        /// Why not, by each way that was tried; none when all are switched off.
        because: Vec<(Method, MapError)>,
    },
}

/// Why a router does not forward.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub(crate) enum MapError {
    /// There is nobody to ask.
    #[error("this machine knows no gateway")]
    NoGateway,
    /// Nobody answers.
    #[error("no router answered")]
    Silent,
    /// Somebody answers, who speaks something else.
    #[error("the router does not speak it")]
    Unsupported,
    /// The router does not want to.
    #[error("the router refused: {meaning} (code {code})")]
    Refused {
        /// The protocol's number.
        code: u16,
        /// What it stands for.
        meaning: &'static str,
    },
    /// The router is itself not connected.
    #[error("the router has no address outside")]
    NoOutside,
    /// The router answers nonsense.
    #[error("the router's answer makes no sense")]
    Misbehaved,
    /// The network did not even take the question.
    #[error("the router cannot be asked: {0}")]
    Io(io::ErrorKind),
}

impl From<io::Error> for MapError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Unsupported,
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Misbehaved,
            kind => Self::Io(kind),
        }
    }
}

/// Keeps `local_port` mapped until it is told to stop, and then takes the mapping back, which the tracker waits for.
/// The receiver tells how it stands.
pub(crate) fn map_port(
    local_port: u16,
    config: PortMappingConfig,
    interfaces: watch::Receiver<Interfaces>,
    tracker: &TaskTracker,
    stop: CancellationToken,
) -> watch::Receiver<PortMapping> {
    let (state, receiver) = watch::channel(PortMapping::Searching);
    let keeper = Keeper {
        local_port,
        config,
        state,
    };
    tracker.spawn(keeper.run(interfaces, stop));
    receiver
}

struct Keeper {
    local_port: u16,
    config: PortMappingConfig,
    state: watch::Sender<PortMapping>,
}

/// The gateway and our address beside it: with another, the mapping leads nowhere.
type Way = (Option<IpAddr>, Option<IpAddr>);

impl Keeper {
    async fn run(self, mut interfaces: watch::Receiver<Interfaces>, stop: CancellationToken) {
        loop {
            let way = way(&interfaces.borrow_and_update());
            let found = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = changed(&mut interfaces, way) => continue,
                found = self.search(way) => found,
            };
            let mut lease = match found {
                Ok(lease) => lease,
                Err(because) => {
                    debug!(?because, "no router maps a port");
                    self.state.send_replace(PortMapping::Unavailable { because });
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        () = changed(&mut interfaces, way) => (),
                        () = sleep(RETRY) => (),
                    }
                    continue;
                }
            };
            let stopped = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = changed(&mut interfaces, way) => false,
                () = self.renew(&mut lease) => false,
            };
            lease.release(self.local_port).await;
            if stopped {
                return;
            }
            self.state.send_replace(PortMapping::Searching);
        }
    }

    /// Renews a mapping until the router does not want it any more.
    async fn renew(&self, lease: &mut Lease) {
        loop {
            let mapped = PortMapping::Mapped {
                external: lease.external,
                by: lease.handle.method(),
            };
            if self.state.send_replace(mapped.clone()) != mapped {
                info!(external = %lease.external, by = %lease.handle.method(), "a router maps our port");
            }
            sleep((lease.lifetime / 2).min(RENEW_MAX).max(self.config.renew_min)).await;
            if let Err(error) = lease.renew(self.local_port).await {
                debug!(%error, "the router did not renew our mapping");
                return;
            }
        }
    }

    /// Asks in each way that is allowed, the simplest first, until one yields.
    async fn search(&self, (gateway, ours): Way) -> Result<Lease, Vec<(Method, MapError)>> {
        let mut because = Vec::new();
        let gateway = gateway.map(|ip| SocketAddr::new(ip, self.config.gateway_port));
        for (method, allowed) in [
            (Method::Pcp, self.config.pcp),
            (Method::NatPmp, self.config.nat_pmp),
            (Method::Upnp, self.config.upnp),
        ] {
            if !allowed {
                continue;
            }
            let leased = match (method, gateway) {
                (Method::Pcp, Some(gateway)) => Lease::by_pcp(gateway, self.local_port).await,
                (Method::NatPmp, Some(gateway)) => Lease::by_nat_pmp(gateway, self.local_port).await,
                (Method::Pcp | Method::NatPmp, None) => Err(MapError::NoGateway),
                (Method::Upnp, _) => self.by_upnp(ours).await,
            };
            match leased {
                Ok(lease) => return Ok(lease),
                Err(error) => because.push((method, error)),
            }
        }
        Err(because)
    }

    async fn by_upnp(&self, ours: Option<IpAddr>) -> Result<Lease, MapError> {
        let ours = match ours {
            Some(IpAddr::V4(ip)) => ip,
            Some(IpAddr::V6(_)) | None => Ipv4Addr::UNSPECIFIED,
        };
        let socket = UdpSocket::bind((ours, 0)).await?;
        // Else it leaves by whichever interface the system has for multicast.
        SockRef::from(&socket).set_multicast_if_v4(&ours)?;
        for search in upnp::searches() {
            socket.send_to(search.as_bytes(), self.config.ssdp).await?;
        }
        let deadline = timer_now() + SEARCH_MAX;
        let mut asked: Vec<Place> = Vec::new();
        let mut failure = MapError::Silent;
        let mut buffer = [0; upnp::DATAGRAM_MAX];
        for _ in 0..ANSWERS_MAX {
            let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await else {
                break;
            };
            let (size, SocketAddr::V4(from)) = received? else {
                continue;
            };
            let Some(place) = upnp::description(&buffer[..size], *from.ip()) else {
                continue;
            };
            if asked.contains(&place) {
                continue;
            }
            match Lease::by_upnp(&place, self.local_port).await {
                Ok(lease) => return Ok(lease),
                Err(error) => failure = error,
            }
            asked.push(place);
        }
        Err(failure)
    }
}

fn way(interfaces: &Interfaces) -> Way {
    let gateway = interfaces.gateway.map(|gateway| gateway.ip);
    (gateway, gateway.and_then(|gateway| interfaces.beside(gateway)))
}

/// Returns once the way out is another.
async fn changed(interfaces: &mut watch::Receiver<Interfaces>, from: Way) {
    loop {
        if interfaces.changed().await.is_err() {
            // Nobody watches any more, so it stays.
            pending::<()>().await;
        }
        if way(&interfaces.borrow_and_update()) != from {
            return;
        }
    }
}

/// A mapping that stands.
#[derive(Debug)]
struct Lease {
    external: SocketAddr,
    lifetime: Duration,
    handle: Handle,
}

/// What it takes to renew it and to take it back.
#[derive(Debug)]
enum Handle {
    Pcp { gateway: SocketAddr, nonce: Nonce },
    NatPmp { gateway: SocketAddr },
    Upnp { service: Service, internal: Ipv4Addr },
}

impl Handle {
    fn method(&self) -> Method {
        match self {
            Self::Pcp { .. } => Method::Pcp,
            Self::NatPmp { .. } => Method::NatPmp,
            Self::Upnp { .. } => Method::Upnp,
        }
    }
}

impl Lease {
    async fn by_pcp(gateway: SocketAddr, port: u16) -> Result<Self, MapError> {
        let nonce = draw();
        let promise = pcp_exchange(gateway, port, None, LIFETIME, &nonce).await?;
        Ok(Self::new(promise, Handle::Pcp { gateway, nonce }))
    }

    async fn by_nat_pmp(gateway: SocketAddr, port: u16) -> Result<Self, MapError> {
        let promise = nat_pmp_exchange(gateway, port, port, LIFETIME).await?;
        Ok(Self::new(promise, Handle::NatPmp { gateway }))
    }

    async fn by_upnp(place: &Place, port: u16) -> Result<Self, MapError> {
        let (stream, internal) = connect(place).await?;
        let description = http(stream, &upnp::description_request(place)).await?;
        let (200, description) = description else {
            return Err(MapError::Misbehaved);
        };
        let service = Service::find(&description, place).ok_or(MapError::Unsupported)?;
        let (status, body) = ask_router(&service, &service.address_request()).await?;
        let ip = upnp::address(status, &body)?;
        let mut external = port;
        let mut tries = 1;
        let lifetime = loop {
            match map_by_upnp(&service, external, SocketAddrV4::new(internal, port)).await {
                Ok(lifetime) => break lifetime,
                Err(MapError::Refused {
                    code: upnp::CONFLICT, ..
                }) if tries < PORTS_TRIED => {
                    // Out of the way of services that people map by hand.
                    external = 20_000 + draw::<u16>() % 40_000;
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        };
        let promise = Promise {
            external: SocketAddr::new(ip.into(), external),
            lifetime,
        };
        Ok(Self::new(promise, Handle::Upnp { service, internal }))
    }

    fn new(promise: Promise, handle: Handle) -> Self {
        let Promise { external, lifetime } = promise;
        Self {
            external,
            lifetime,
            handle,
        }
    }

    /// Asks for the same again.
    async fn renew(&mut self, port: u16) -> Result<(), MapError> {
        let promise = match &self.handle {
            Handle::Pcp { gateway, nonce } => {
                pcp_exchange(*gateway, port, Some(self.external), LIFETIME, nonce).await?
            }
            Handle::NatPmp { gateway } => {
                nat_pmp_exchange(*gateway, port, self.external.port(), LIFETIME).await?
            }
            Handle::Upnp { service, internal } => {
                let (status, body) = ask_router(service, &service.address_request()).await?;
                let ip = upnp::address(status, &body)?;
                let external = self.external.port();
                let lifetime = map_by_upnp(service, external, SocketAddrV4::new(*internal, port)).await?;
                Promise {
                    external: SocketAddr::new(ip.into(), external),
                    lifetime,
                }
            }
        };
        self.external = promise.external;
        self.lifetime = promise.lifetime;
        Ok(())
    }

    /// Takes it back, if the router hears it in time; else it forgets by itself.
    async fn release(self, port: u16) {
        let release = async {
            match &self.handle {
                Handle::Pcp { gateway, nonce } => {
                    pcp_exchange(*gateway, port, Some(self.external), Duration::ZERO, nonce).await?;
                }
                Handle::NatPmp { gateway } => {
                    // RFC 6886, 3.4: the port outside is zero.
                    nat_pmp_exchange(*gateway, port, 0, Duration::ZERO).await?;
                }
                Handle::Upnp { service, .. } => {
                    let (status, body) =
                        ask_router(service, &service.unmap_request(self.external.port())).await?;
                    upnp::done(status, &body)?;
                }
            }
            Ok::<(), MapError>(())
        };
        match timeout(RELEASE_MAX, release).await {
            Ok(Ok(())) => debug!(external = %self.external, "the router has taken our mapping back"),
            Ok(Err(error)) => debug!(%error, "the router did not take our mapping back"),
            Err(_) => debug!("the router did not take our mapping back in time"),
        }
    }
}

async fn pcp_exchange(
    gateway: SocketAddr,
    port: u16,
    external: Option<SocketAddr>,
    lifetime: Duration,
    nonce: &Nonce,
) -> Result<Promise, MapError> {
    ask(
        gateway,
        |ours| pcp::request(ours, port, external, lifetime, nonce),
        |message| pcp::response(message, port, nonce),
    )
    .await
}

async fn nat_pmp_exchange(
    gateway: SocketAddr,
    port: u16,
    external: u16,
    lifetime: Duration,
) -> Result<Promise, MapError> {
    let ip = ask(
        gateway,
        |_| pcp::nat_pmp_address_request(),
        pcp::nat_pmp_address_response,
    )
    .await?;
    ask(
        gateway,
        |_| pcp::nat_pmp_request(port, external, lifetime),
        |message| pcp::nat_pmp_response(message, port, ip),
    )
    .await
}

/// Asks a gateway, with what `request` makes of our address as it sees it, until `read` finds an answer.
async fn ask<T>(
    gateway: SocketAddr,
    request: impl FnOnce(IpAddr) -> Vec<u8>,
    read: impl Fn(&[u8]) -> Option<Result<T, MapError>>,
) -> Result<T, MapError> {
    let unspecified: IpAddr = match gateway {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((unspecified, 0)).await?;
    // Takes answers of the gateway only.
    socket.connect(gateway).await?;
    let request = request(socket.local_addr()?.ip());
    let mut buffer = [0; pcp::SIZE_MAX];
    for patience in PATIENCE {
        socket.send(&request).await?;
        let deadline = timer_now() + patience;
        while let Ok(received) = timeout_at(deadline, socket.recv(&mut buffer)).await {
            if let Some(answer) = read(&buffer[..received?]) {
                return answer;
            }
        }
    }
    Err(MapError::Silent)
}

/// A connection to a router, and our address on it.
async fn connect(place: &Place) -> Result<(TcpStream, Ipv4Addr), MapError> {
    let connected = timeout(REQUEST_MAX, TcpStream::connect(place.socket)).await;
    let stream = connected.map_err(|_| MapError::Silent)??;
    match stream.local_addr()? {
        SocketAddr::V4(ours) => Ok((stream, *ours.ip())),
        SocketAddr::V6(_) => Err(MapError::Misbehaved),
    }
}

async fn http(mut stream: TcpStream, request: &str) -> Result<(u16, String), MapError> {
    let exchanged = timeout(
        REQUEST_MAX,
        exchange(&mut stream, request.as_bytes(), upnp::BODY_MAX),
    );
    let (status, body) = exchanged.await.map_err(|_| MapError::Silent)??;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

async fn ask_router(service: &Service, request: &str) -> Result<(u16, String), MapError> {
    let (stream, _) = connect(&service.place).await?;
    http(stream, request).await
}

/// Maps a port for as long as the router will, and says for how long.
async fn map_by_upnp(service: &Service, external: u16, internal: SocketAddrV4) -> Result<Duration, MapError> {
    let (status, body) = ask_router(service, &service.map_request(external, internal, LIFETIME)).await?;
    match upnp::done(status, &body) {
        Ok(()) => Ok(LIFETIME),
        Err(MapError::Refused {
            code: upnp::ONLY_PERMANENT,
            ..
        }) => {
            let request = service.map_request(external, internal, Duration::ZERO);
            let (status, body) = ask_router(service, &request).await?;
            upnp::done(status, &body)?;
            // It lasts until we take it back, but the router may be started again.
            Ok(LIFETIME)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
