//! Questions about addresses. Knows no peers.

use std::net::{IpAddr, SocketAddr};

use libp2p::multiaddr::Protocol;

use lapwing_base::Multiaddr;

/// The address without the identity that it may end with.
pub(crate) fn without_peer(address: &Multiaddr) -> Multiaddr {
    address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect()
}

/// Whether only this machine can use it.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    socket_address(address).is_some_and(|address| address.ip().is_loopback())
}

/// The UDP socket address that it begins with.
pub(crate) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Udp(port) => Some((ip, port).into()),
        _ => None,
    }
}
