//! QUIC's multiaddresses. Resolves no names.

use std::net::{IpAddr, SocketAddr};

use libp2p::multiaddr::Protocol;

use lapwing_base::{Multiaddr, PeerId};

/// `/ip4|ip6/…/udp/PORT/quic-v1`.
pub(crate) fn to_multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::empty()
        .with(address.ip().into())
        .with(Protocol::Udp(address.port()))
        .with(Protocol::QuicV1)
}

/// The socket address, and the peer that the address ends with, if it is an address of QUIC version 1.
pub(crate) fn from_multiaddr(address: &Multiaddr) -> Option<(SocketAddr, Option<PeerId>)> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Udp(port) = parts.next()? else {
        return None;
    };
    if parts.next()? != Protocol::QuicV1 {
        return None;
    }
    let peer = match parts.next() {
        None => None,
        Some(Protocol::P2p(peer)) => Some(peer),
        Some(_) => return None,
    };
    parts.next().is_none().then_some(((ip, port).into(), peer))
}
