//! Which of the addresses that a peer names are probed: its own only. Otherwise anybody could have a third party
//! flooded with probes in our name.

use crate::{Presence, Scope};
use std::net::{IpAddr, SocketAddr};

/// What is known of where a peer is, other than by its own word.
#[derive(Clone, Copy, Debug)]
pub struct Vetting<'a> {
    /// The IP addresses from which we or a relay see the peer's packets come.
    pub theirs: &'a [IpAddr],
    /// The IP addresses from which others see ours come.
    pub ours: &'a [IpAddr],
}

impl Vetting<'_> {
    /// Whether an address that the peer names may be probed: its IP address is one from which the peer is seen, or
    /// it is a private one while both are behind the same public one.
    pub fn admits(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let is_seen = |ip: IpAddr| self.theirs.iter().any(|theirs| theirs.to_canonical() == ip);
        if address.port() == 0 || Scope::of(ip) == Scope::Nowhere {
            return false;
        }
        is_seen(ip) || (matches!(Scope::of(ip), Scope::Private | Scope::Carrier) && self.same_site())
    }

    /// What remains of what a peer names, and how many of its addresses were refused.
    pub fn vet(&self, mut presence: Presence) -> (Presence, u64) {
        let before = presence.candidates.len() + presence.predicted.len();
        presence.candidates.retain(|address| self.admits(*address));
        presence.predicted.retain(|address| self.admits(*address));
        let after = presence.candidates.len() + presence.predicted.len();
        (presence, (before - after) as u64)
    }

    fn same_site(&self) -> bool {
        self.theirs.iter().any(|theirs| {
            self.ours
                .iter()
                .any(|ours| ours.to_canonical() == theirs.to_canonical())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_probed_where_it_is_seen_at_any_port() {
        assert!(admits("203.0.113.9:4001", &["203.0.113.9"], &[]));
        assert!(admits("203.0.113.9:9", &["::ffff:203.0.113.9"], &[]));
        assert!(admits("10.0.0.9:9", &["10.0.0.9"], &[]));
    }

    #[test]
    fn third_parties_are_not_probed() {
        let theirs = ["203.0.113.9"];
        for address in [
            "198.51.100.1:53",
            "203.0.113.10:4001",
            "[2001:db8::1]:9",
            "127.0.0.1:22",
        ] {
            assert!(!admits(address, &theirs, &["203.0.113.9"]), "{address}");
        }
    }

    #[test]
    fn private_addresses_are_probed_behind_the_same_public_one_only() {
        for address in ["192.168.1.7:4001", "100.64.3.4:4001", "[fd00::7]:9"] {
            assert!(admits(address, &["203.0.113.9"], &["203.0.113.9"]), "{address}");
            assert!(!admits(address, &["203.0.113.9"], &["203.0.113.8"]), "{address}");
        }
        assert!(!admits("192.168.1.7:4001", &[], &[]));
    }

    #[test]
    fn nowhere_is_not_probed_even_if_it_was_seen() {
        assert!(!admits("255.255.255.255:9", &["255.255.255.255"], &[]));
        assert!(!admits("203.0.113.9:0", &["203.0.113.9"], &[]));
    }

    #[test]
    fn what_is_refused_is_counted() {
        let (theirs, ours) = (["203.0.113.9".parse().unwrap()], []);
        let vetting = Vetting {
            theirs: &theirs,
            ours: &ours,
        };
        let presence = Presence {
            candidates: ["203.0.113.9:1", "8.8.8.8:53"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            predicted: ["1.1.1.1:53"].map(|text| text.parse().unwrap()).to_vec(),
            ..Presence::default()
        };
        let (left, refused) = vetting.vet(presence);
        assert_eq!((left.candidates.len(), left.predicted.len(), refused), (1, 0, 2));
    }

    fn admits(address: &str, theirs: &[&str], ours: &[&str]) -> bool {
        let ips =
            |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let (theirs, ours) = (ips(theirs), ips(ours));
        Vetting {
            theirs: &theirs,
            ours: &ours,
        }
        .admits(address.parse().unwrap())
    }
}
