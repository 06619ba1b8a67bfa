//! Whom to measure, read from an address: a server, or one behind a NAT and the relay that leads there. Dials nobody.

use libp2p::multiaddr::Protocol;

use super::{BenchError, failed};
use crate::driver::addresses::{relay_of, without_peer};
use lapwing_base::{Multiaddr, PeerId};

/// A server, and how to get there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Target {
    pub(super) peer: PeerId,
    /// Where it is, without its identity.
    pub(super) address: Multiaddr,
    pub(super) relay: Option<Relay>,
}

/// A relay on the way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Relay {
    pub(super) peer: PeerId,
    pub(super) address: Multiaddr,
}

impl Target {
    /// Of an address that a server has printed.
    pub(super) fn parse(address: &Multiaddr) -> Result<Self, BenchError> {
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            return Err(failed("find the other end")(
                "the address ends with no /p2p/PEER; give it as `lapwing bench net serve` prints it",
            ));
        };
        let relay = match relay_of(address) {
            Some(relay) => {
                let before = |part: &Protocol<'_>| !matches!(part, Protocol::P2pCircuit);
                Some(Relay {
                    peer: relay,
                    address: without_peer(&address.iter().take_while(before).collect()),
                })
            }
            None => None,
        };
        Ok(Self {
            peer,
            address: without_peer(address),
            relay,
        })
    }
}

impl Relay {
    /// Of a server's address.
    pub(super) fn parse(address: &Multiaddr) -> Result<Self, BenchError> {
        let Target {
            peer,
            address,
            relay: None,
        } = Target::parse(address)?
        else {
            return Err(failed("find the relay")("its address leads through another one"));
        };
        Ok(Self { peer, address })
    }

    /// The address of somebody who has reserved here.
    pub(super) fn circuit_to(&self, peer: PeerId) -> Multiaddr {
        let mut address = self.address.clone();
        address.push(Protocol::P2p(self.peer));
        address.push(Protocol::P2pCircuit);
        address.with(Protocol::P2p(peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_the_server_and_the_relay_before_it() {
        let [relay, peer] = [PeerId::random(), PeerId::random()];
        let at: Multiaddr = "/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap();
        let direct = Target::parse(&at.clone().with(Protocol::P2p(peer))).unwrap();
        assert_eq!((direct.peer, &direct.address, direct.relay), (peer, &at, None));
        let relay = Relay::parse(&at.clone().with(Protocol::P2p(relay))).unwrap();
        let relayed = Target::parse(&relay.circuit_to(peer)).unwrap();
        assert_eq!((relayed.peer, relayed.relay), (peer, Some(relay.clone())));
        assert!(Relay::parse(&relay.circuit_to(peer)).is_err());
        assert!(
            Target::parse(&at)
                .unwrap_err()
                .to_string()
                .contains("no /p2p/PEER")
        );
    }
}
