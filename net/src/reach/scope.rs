//! How far an IP address carries: this machine, this link, this site, this carrier, everywhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far an address carries, the narrowest first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Scope {
    /// Not an address to send to: unspecified, multicast, broadcast, reserved.
    Nowhere,
    /// This machine.
    Loopback,
    /// One link (RFC 3927, RFC 4291).
    Link,
    /// One site (RFC 1918, RFC 4193).
    Private,
    /// One carrier's network, behind its NAT (RFC 6598).
    Carrier,
    /// Everywhere.
    Global,
}

impl Scope {
    /// How far `ip` carries.
    ///
    /// The addresses that are set aside for documentation count as global: laboratories use them as such, and
    /// elsewhere they lead nowhere.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => Self::of_v4(ip),
                None => Self::of_v6(ip),
            },
        }
    }

    /// Whether what goes there leaves this site, so that its firewall has a say.
    pub const fn is_outside(self) -> bool {
        matches!(self, Self::Carrier | Self::Global)
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        let [a, b, ..] = ip.octets();
        if a == 0 || a >= 240 || ip.is_multicast() {
            Self::Nowhere
        } else if ip.is_loopback() {
            Self::Loopback
        } else if ip.is_link_local() {
            Self::Link
        } else if ip.is_private() {
            Self::Private
        } else if a == 100 && (64..128).contains(&b) {
            Self::Carrier
        } else {
            Self::Global
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        if ip.is_unspecified() || ip.is_multicast() {
            Self::Nowhere
        } else if ip.is_loopback() {
            Self::Loopback
        } else if ip.is_unicast_link_local() {
            Self::Link
        } else if ip.is_unique_local() {
            Self::Private
        } else {
            Self::Global
        }
    }
}

/// The network that an address belongs to, as far as it can be told from outside: whoever holds one address
/// can have many others of the same prefix.
pub(crate) fn prefix(ip: IpAddr) -> [u8; 6] {
    let ip = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    };
    match ip {
        // A /24 is the smallest that is routed; the marker keeps the families apart.
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            [0, 0, 4, a, b, c]
        }
        // A site gets a /48.
        IpAddr::V6(ip) => {
            let [a, b, c, d, e, f, ..] = ip.octets();
            [a, b, c, d, e, f]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_told_apart_and_ordered() {
        let cases = [
            ("0.0.0.0", Scope::Nowhere),
            ("255.255.255.255", Scope::Nowhere),
            ("224.0.0.1", Scope::Nowhere),
            ("::", Scope::Nowhere),
            ("ff02::1", Scope::Nowhere),
            ("127.0.0.1", Scope::Loopback),
            ("::1", Scope::Loopback),
            ("169.254.1.1", Scope::Link),
            ("fe80::1", Scope::Link),
            ("10.0.0.1", Scope::Private),
            ("192.168.1.1", Scope::Private),
            ("fd00::1", Scope::Private),
            ("::ffff:10.0.0.1", Scope::Private),
            ("100.64.0.1", Scope::Carrier),
            ("203.0.113.7", Scope::Global),
            ("2001:db8::1", Scope::Global),
        ];
        for (ip, scope) in cases {
            assert_eq!(Scope::of(ip.parse().unwrap()), scope, "{ip}");
        }
        assert!(Scope::Loopback < Scope::Private && Scope::Private < Scope::Global);
    }

    #[test]
    fn only_what_leaves_the_site_passes_its_firewall() {
        for ip in [
            "127.0.0.1",
            "169.254.1.1",
            "192.168.1.7",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!Scope::of(ip.parse().unwrap()).is_outside(), "{ip}");
        }
        for ip in ["100.64.0.1", "203.0.113.7", "2001:db8::1"] {
            assert!(Scope::of(ip.parse().unwrap()).is_outside(), "{ip}");
        }
    }

    #[test]
    fn neighbours_share_a_prefix_and_families_do_not() {
        let of = |ip: &str| prefix(ip.parse().unwrap());
        assert_eq!(of("203.0.113.1"), of("203.0.113.9"));
        assert_eq!(of("::ffff:203.0.113.1"), of("203.0.113.9"));
        assert_ne!(of("203.0.113.1"), of("203.0.114.1"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("2001:db8:1::1"), of("2001:db8:2::1"));
    }
}
