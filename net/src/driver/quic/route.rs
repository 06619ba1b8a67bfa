//! How long a datagram may be on the first link of the way to an address. What the rest of the way takes, QUIC finds
//! out by probes of its own.

use std::net::SocketAddr;

/// IPv6 and UDP: the longer of the two headers.
const HEADERS: u32 = 48;

/// What every Ethernet carries, and what is taken for known where the system does not tell.
const ETHERNET: u32 = 1500;

/// The longest payload that the first link to `remote` carries.
pub(super) fn datagram_max(remote: SocketAddr) -> u32 {
    link_max(remote).unwrap_or(ETHERNET).saturating_sub(HEADERS)
}

#[cfg(target_os = "linux")]
fn link_max(remote: SocketAddr) -> Option<u32> {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

    let any: IpAddr = if remote.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // A socket that sends nothing: to connect it looks the route up.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    let found = if remote.is_ipv4() {
        rustix::net::sockopt::ip_mtu(&socket)
    } else {
        rustix::net::sockopt::ipv6_mtu(&socket)
    };
    found.ok()
}

/// Loopback carries as much everywhere.
#[cfg(not(target_os = "linux"))]
fn link_max(remote: SocketAddr) -> Option<u32> {
    remote.ip().is_loopback().then_some(16 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_more_than_an_ethernet() {
        assert!(datagram_max(([127, 0, 0, 1], 9).into()) > 8000);
    }

    #[test]
    fn where_no_route_leads_an_ethernet_is_assumed() {
        // Not an address that anybody can be at.
        let nowhere = ([255, 255, 255, 255], 9).into();
        assert_eq!(datagram_max(nowhere), ETHERNET - HEADERS);
    }
}
