//! The kinds of NAT of the matrix.

use std::net::IpAddr;

use lapwing_netlab::{Egress, Nat};

/// What a home is behind.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) nat: Nat,
    pub(crate) sort: Sort,
}

/// What counts for whether two reach each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sort {
    /// Everybody's packets come in.
    Open,
    /// One outside port, whoever is sent to; addresses that were sent to may answer from any port.
    Address,
    /// One outside port, whoever is sent to; only what was sent to may answer.
    Port,
    /// Another outside port for everybody.
    Symmetric,
    /// No UDP at all.
    Blocked,
}

pub(crate) fn kinds() -> Vec<Kind> {
    let kind = |name, nat, sort| Kind { name, nat, sort };
    vec![
        kind("none", Nat::open(), Sort::Open),
        kind("full cone", Nat::full_cone(), Sort::Open),
        kind(
            "full cone, translating",
            Nat::full_cone().translated(),
            Sort::Open,
        ),
        kind("EIM + ADF", Nat::restricted(), Sort::Address),
        kind(
            "EIM + ADF, translating",
            Nat::restricted().translated(),
            Sort::Address,
        ),
        kind("EIM + APDF", Nat::port_restricted(), Sort::Port),
        kind(
            "EIM + APDF, translating",
            Nat::port_restricted().translated(),
            Sort::Port,
        ),
        kind("symmetric", Nat::symmetric(), Sort::Symmetric),
        kind(
            "UDP blocked",
            Nat::port_restricted().with_egress(Egress::Web),
            Sort::Blocked,
        ),
    ]
}

/// What the specification's matrix says of a pair.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Expected {
    Direct,
    /// At an address of this kind.
    DirectOver(Over),
    /// By foretelling or guessing ports.
    Guessed,
    /// With a reason.
    Relayed,
}

/// What kind of address a direct path leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Over {
    /// IPv4, at the peer's or its router's address.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// A private IPv4 address: within the home.
    Lan,
}

impl Over {
    pub(crate) fn has(self, ip: IpAddr) -> bool {
        match (self, ip) {
            (Self::Ipv4, IpAddr::V4(ip)) => !ip.is_private(),
            (Self::Lan, IpAddr::V4(ip)) => ip.is_private(),
            (Self::Ipv6, IpAddr::V6(_)) => true,
            (Self::Ipv4 | Self::Lan, IpAddr::V6(_)) | (Self::Ipv6, IpAddr::V4(_)) => false,
        }
    }
}

pub(crate) fn expected(a: Sort, b: Sort) -> Expected {
    match (a, b) {
        (Sort::Blocked, _) | (_, Sort::Blocked) => Expected::Relayed,
        (Sort::Open, _) | (_, Sort::Open) => Expected::Direct,
        (Sort::Symmetric, Sort::Symmetric) => Expected::Relayed,
        (Sort::Symmetric, Sort::Port) | (Sort::Port, Sort::Symmetric) => Expected::Guessed,
        _ => Expected::Direct,
    }
}
