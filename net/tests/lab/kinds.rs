//! The kinds of NAT of the matrix.

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
    /// By guessing ports.
    Guessed,
    Relayed,
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
