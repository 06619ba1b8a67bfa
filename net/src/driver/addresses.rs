//! Questions about addresses. Knows no peers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libp2p::multiaddr::Protocol;

use lapwing_base::{Multiaddr, PeerId};

/// The address without the identity that it may end with. That of a relay on the way stays.
pub(crate) fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut address = address.clone();
    if let Some(Protocol::P2p(_)) = address.iter().last() {
        address.pop();
    }
    address
}

/// Whether only this machine can use it.
pub(crate) fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

/// Of the addresses that listeners are bound to, those that others can use, in order: none of this machine alone, unless
/// there is nothing else. Asked for all interfaces of a family, a listener may have found no other.
pub(crate) fn for_others(bound: impl IntoIterator<Item = Multiaddr>) -> Vec<Multiaddr> {
    let mut addresses: Vec<_> = bound.into_iter().collect();
    if !addresses.iter().all(is_loopback) {
        addresses.retain(|address| !is_loopback(address));
    }
    addresses.sort();
    addresses.dedup();
    addresses
}

/// The UDP socket address that it begins with.
pub(crate) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    match address.iter().nth(1)? {
        Protocol::Udp(port) => Some((ip_of(address)?, port).into()),
        _ => None,
    }
}

/// The IP address that it begins with.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The relay that an address leads through.
pub(crate) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    let mut relay = None;
    for part in address.iter() {
        match part {
            Protocol::P2p(peer) => relay = Some(peer),
            Protocol::P2pCircuit => return relay,
            _ => (),
        }
    }
    None
}

/// What one customer has at least: a /24 of IPv4, a /48 of IPv6 (RFC 6177).
pub(crate) fn prefix(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_for_others_only_where_there_is_nothing_else() {
        let all = |addresses: &[&str]| -> Vec<Multiaddr> {
            addresses.iter().map(|address| address.parse().unwrap()).collect()
        };
        let (v4, v6, own) = (
            "/ip4/203.0.113.7/udp/4001/quic-v1",
            "/ip6/::1/udp/4001/quic-v1",
            "/ip4/127.0.0.1/udp/4001/quic-v1",
        );
        // One listener for each family, and no interface with an IPv6 address.
        assert_eq!(for_others(all(&[v6, own, v4, v4])), all(&[v4]));
        assert_eq!(for_others(all(&[v6, own])), all(&[own, v6]));
    }

    #[test]
    fn loopback_is_loopback_over_every_transport() {
        for (address, loopback) in [
            ("/ip4/127.0.0.1/udp/4001/quic-v1", true),
            ("/ip4/127.0.0.1/tcp/443/tls/ws", true),
            ("/ip6/::1/tcp/443/tls/ws", true),
            ("/ip4/192.0.2.1/tcp/443/tls/ws", false),
            ("/ip4/0.0.0.0/tcp/443/tls/ws", false),
            ("/dns4/localhost/tcp/443/tls/ws", false),
        ] {
            assert_eq!(is_loopback(&address.parse().unwrap()), loopback, "{address}");
        }
    }
}
