//! What stands between this node and the others, and which two of such nodes can meet. Infers nothing: the
//! mapping comes from [`crate::Observations`], the filtering from [`crate::Reachability`].

use crate::RelayedBecause;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A node's NAT and firewall, in the words of RFC 4787.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct NatType {
    /// Which public address our packets get.
    pub mapping: Mapping,
    /// Whether the public port is the local one; `None` while nobody has seen us, or without a NAT.
    pub port_preserving: Option<bool>,
    /// Whose packets come in.
    pub filtering: Filtering,
    /// Whether UDP passes at all.
    pub udp: Udp,
}

/// How public addresses are given to our packets.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// No translation: others see the address that the socket has.
    None,
    /// One public address per socket, whomever it sends to.
    EndpointIndependent,
    /// One per socket and IP address it sends to.
    AddressDependent,
    /// One per socket, IP address and port it sends to.
    Symmetric,
    /// Not enough observers have said what they see.
    #[default]
    Unknown,
}

/// Which packets are let in to a public address of ours.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Everybody's.
    EndpointIndependent,
    /// Those from IP addresses that we have sent to.
    AddressDependent,
    /// Those from exactly the addresses and ports that we have sent to.
    AddressAndPortDependent,
    /// Nobody has tried yet.
    #[default]
    Unknown,
}

/// Whether UDP passes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Udp {
    /// A QUIC connection has stood on this network.
    Open,
    /// Only the fallback over TLS gets through.
    Blocked,
    /// Neither is known.
    #[default]
    Unknown,
}

/// What two nodes can hope for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Prospect {
    /// One of them is open to everybody: the other just dials.
    Direct,
    /// Both must send at about the same time.
    Simultaneous,
    /// One of them must guess the port that the other's symmetric NAT gives.
    Birthday,
    /// No direct path is possible.
    Relayed(RelayedBecause),
}

impl NatType {
    /// Whether anybody's packets reach this node.
    ///
    /// Without translation an unknown filter is taken for an open one: a dial in vain costs a few packets, and
    /// the nodes punch in any case while they are relayed.
    pub const fn is_open(&self) -> bool {
        match self.mapping {
            Mapping::None => matches!(
                self.filtering,
                Filtering::EndpointIndependent | Filtering::Unknown
            ),
            Mapping::EndpointIndependent => matches!(self.filtering, Filtering::EndpointIndependent),
            Mapping::AddressDependent | Mapping::Symmetric | Mapping::Unknown => false,
        }
    }

    /// Whether the public address depends on who is sent to, so that a peer cannot be told it beforehand.
    pub const fn is_symmetric(&self) -> bool {
        matches!(self.mapping, Mapping::AddressDependent | Mapping::Symmetric)
    }

    /// Whether a packet from an unforeseen port of a peer that was sent to comes in.
    const fn admits_other_ports(&self) -> bool {
        matches!(
            self.filtering,
            Filtering::EndpointIndependent | Filtering::AddressDependent
        )
    }

    /// What two nodes can hope for; the same whichever is asked first.
    ///
    /// What is unknown is taken for what is commonest: endpoint-independent mapping with the strictest filter.
    /// Two symmetric NATs would need both ports guessed at once, 2^32 pairs.
    pub const fn prospect(&self, other: &Self) -> Prospect {
        if matches!(self.udp, Udp::Blocked) || matches!(other.udp, Udp::Blocked) {
            return Prospect::Relayed(RelayedBecause::UdpBlocked);
        }
        if self.is_open() || other.is_open() {
            return Prospect::Direct;
        }
        match (self.is_symmetric(), other.is_symmetric()) {
            (false, false) => Prospect::Simultaneous,
            (true, true) => Prospect::Relayed(RelayedBecause::SymmetricBothSides),
            // The symmetric side's new port is let in by a filter that looks at the IP address only.
            (true, false) if other.admits_other_ports() => Prospect::Simultaneous,
            (false, true) if self.admits_other_ports() => Prospect::Simultaneous,
            _ => Prospect::Birthday,
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::Symmetric => "symmetric",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for Udp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Filtering::{AddressAndPortDependent as Apdf, AddressDependent as Adf, EndpointIndependent as Eif};
    use Mapping::{AddressDependent as Adm, EndpointIndependent as Eim, Symmetric as Edm};
    use serde::de::IntoDeserializer as _;
    use serde::de::value::{Error, StrDeserializer};

    const NONE: NatType = nat(Mapping::None, Eif);
    const FULL_CONE: NatType = nat(Eim, Eif);
    const EIM_ADF: NatType = nat(Eim, Adf);
    const EIM_APDF: NatType = nat(Eim, Apdf);
    const SYMMETRIC: NatType = nat(Edm, Apdf);

    #[test]
    fn whoever_meets_an_open_node_dials_it() {
        for open in [NONE, FULL_CONE] {
            for other in [NONE, FULL_CONE, EIM_ADF, EIM_APDF, SYMMETRIC] {
                assert_both(open, other, Prospect::Direct);
            }
        }
    }

    #[test]
    fn address_filtered_nodes_meet_everybody_by_sending_at_once() {
        for other in [EIM_ADF, EIM_APDF, SYMMETRIC] {
            assert_both(EIM_ADF, other, Prospect::Simultaneous);
        }
    }

    #[test]
    fn port_filtered_nodes_meet_by_sending_at_once() {
        assert_both(EIM_APDF, EIM_APDF, Prospect::Simultaneous);
    }

    #[test]
    fn a_port_filtered_node_must_guess_the_port_of_a_symmetric_one() {
        assert_both(EIM_APDF, SYMMETRIC, Prospect::Birthday);
        assert_both(EIM_APDF, nat(Adm, Apdf), Prospect::Birthday);
    }

    #[test]
    fn two_symmetric_nodes_are_relayed() {
        let why = Prospect::Relayed(RelayedBecause::SymmetricBothSides);
        assert_both(SYMMETRIC, SYMMETRIC, why);
        assert_both(SYMMETRIC, nat(Adm, Apdf), why);
    }

    #[test]
    fn a_node_without_udp_is_relayed_to_everybody() {
        let blocked = NatType {
            udp: Udp::Blocked,
            ..NONE
        };
        for other in [NONE, FULL_CONE, EIM_ADF, EIM_APDF, SYMMETRIC, blocked] {
            assert_both(blocked, other, Prospect::Relayed(RelayedBecause::UdpBlocked));
        }
    }

    #[test]
    fn a_stateful_firewall_counts_as_the_nat_with_its_filter() {
        let firewall = nat(Mapping::None, Apdf);
        assert_both(firewall, EIM_APDF, Prospect::Simultaneous);
        assert_both(firewall, SYMMETRIC, Prospect::Birthday);
    }

    #[test]
    fn what_is_unknown_is_worth_an_attempt() {
        let unknown = NatType::default();
        assert_both(unknown, unknown, Prospect::Simultaneous);
        assert_both(unknown, EIM_APDF, Prospect::Simultaneous);
        assert_both(unknown, SYMMETRIC, Prospect::Birthday);
    }

    #[test]
    fn the_words_are_those_of_the_status_document() {
        for mapping in [Mapping::None, Eim, Adm, Edm, Mapping::Unknown] {
            assert_eq!(Mapping::deserialize(word(&mapping.to_string())), Ok(mapping));
        }
        for filtering in [Eif, Adf, Apdf, Filtering::Unknown] {
            assert_eq!(
                Filtering::deserialize(word(&filtering.to_string())),
                Ok(filtering)
            );
        }
        for udp in [Udp::Open, Udp::Blocked, Udp::Unknown] {
            assert_eq!(Udp::deserialize(word(&udp.to_string())), Ok(udp));
        }
    }

    fn word(text: &str) -> StrDeserializer<'_, Error> {
        text.into_deserializer()
    }

    fn assert_both(a: NatType, b: NatType, expected: Prospect) {
        assert_eq!(a.prospect(&b), expected, "{a:?} with {b:?}");
        assert_eq!(b.prospect(&a), expected, "{b:?} with {a:?}");
    }

    const fn nat(mapping: Mapping, filtering: Filtering) -> NatType {
        NatType {
            mapping,
            port_preserving: None,
            filtering,
            udp: Udp::Open,
        }
    }
}
