//! In which order the addresses of a peer are dialed, and which of them lead to the same place. Dials none.

use crate::Family;
use crate::reach::scope::Scope;
use lapwing_base::{Multiaddr, PeerId, Protocol};
use std::cmp::Reverse;
use std::net::IpAddr;

/// The relay that a circuit goes through; `None` where the address does not say.
pub(super) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    let mut relay = None;
    for part in address {
        match part {
            Protocol::P2p(peer) => relay = Some(peer),
            Protocol::P2pCircuit => return relay,
            _ => (),
        }
    }
    None
}

/// Addresses in the order in which they are dialed: nearer networks first, IPv6 before IPv4 and in turn (RFC 8305),
/// otherwise as they came.
pub(super) fn staggered(addresses: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let ip = |address: &Multiaddr| {
        address.iter().find_map(|part| match part {
            Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
            Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
            _ => None,
        })
    };
    let mut places = [0_usize; 2];
    let mut keyed: Vec<_> = addresses
        .into_iter()
        .map(|address| {
            let ip = ip(&address);
            let family = ip.map_or(Family::V6, Family::of);
            // A machine in the same network answers at once if it is there; one dial costs a packet.
            let near = ip.is_some_and(|ip| Scope::of(ip) < Scope::Global);
            let place = &mut places[usize::from(family == Family::V6)];
            *place += 1;
            ((Reverse(near), *place, Reverse(family)), address)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    keyed.into_iter().map(|(_, address)| address).collect()
}
