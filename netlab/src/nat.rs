//! What kind of router stands between a host and the internet: values only, in the words of RFC 4787.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::LabError;

/// How a router translates and what it lets in. The default is the common home router: endpoint-independent
/// mapping that keeps ports, address-and-port-dependent filtering, no hairpin, IPv6 behind a stateful firewall.
///
/// The kinds are those of UDP. A TCP connection keeps its port if it is free, and can be opened from inside only,
/// but for a router that neither translates nor filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Nat {
    /// Which outside port a socket behind the router gets. Default: [`Mapping::EndpointIndependent`], ports kept.
    pub mapping: Mapping,
    /// From whom a socket behind the router hears. Default: [`Filtering::AddressAndPort`].
    pub filtering: Filtering,
    /// Whether a host behind the router reaches another by the router's outside address. Default: no.
    pub hairpin: bool,
    /// What hosts behind the router may send at all. Default: anything.
    pub egress: Egress,
    /// What happens to IPv6. Default: a stateful firewall.
    pub ipv6: Ipv6,
    /// Where the addresses behind the router come from. Default: 192.168.n.0/24, n different for every router.
    pub lan: Lan,
    /// The outside ports of mappings that do not keep the port, in blocks of 256. Default: 1024 to 65535. A carrier's
    /// router often has a block of 1,024 for each customer. A sequence starts again after 4,096.
    pub ports: RangeInclusive<u16>,
    /// How long a UDP mapping lives without traffic. Default: 120 s, as RFC 4787 asks (REQ-5); many routers have 30.
    pub lifetime: Duration,
    /// Whether the router itself accepts packets from outside that belong to nothing, instead of dropping them.
    ///
    /// Default: no. A Linux router that does remembers such a packet as a flow of its own, so that a peer's early
    /// probe takes the outside port which the answer would have had: the mapping is then another one.
    pub accepts_input: bool,
}

/// Which outside port a flow gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mapping {
    /// No translation: the hosts behind the router have public addresses.
    None,
    /// One outside port for each inside socket, whoever it sends to.
    EndpointIndependent(Ports),
    /// One outside port for each inside socket and destination: "symmetric".
    Symmetric(Sequence),
}

/// Whether the outside port is the inside one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ports {
    /// It is, if it is free.
    Preserved,
    /// It is not.
    Translated,
}

/// How a symmetric router chooses outside ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sequence {
    /// By a hash of both ends: looks random, and the same flow gets the same port again until a reboot.
    Hashed,
    /// By chance. The kernel draws, so that the lab's seed does not decide it.
    Random,
    /// One after the other, which a peer can predict.
    Sequential,
}

/// From whom a socket behind the router hears, once it has sent something.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Filtering {
    /// From everybody: with endpoint-independent mapping this is the "full cone".
    EndpointIndependent,
    /// From every port of the addresses that it has sent to: "restricted cone".
    Address,
    /// From the addresses and ports that it has sent to: "port-restricted cone".
    AddressAndPort,
}

/// What hosts behind a router may send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Egress {
    /// Anything.
    Any,
    /// No UDP but DNS.
    NoUdp,
    /// TCP to port 443 and DNS; nothing else.
    Web,
}

/// What a router does with IPv6.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ipv6 {
    /// There is none behind it.
    Off,
    /// Global addresses behind a firewall that lets in what answers something.
    Firewalled,
    /// Global addresses that everybody reaches.
    Open,
}

/// Where the IPv4 addresses behind a router come from; each is a /24.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lan {
    /// 192.168.n.0/24, n different for every router of the lab; public addresses where nothing is translated.
    Own,
    /// 100.64.n.0/24, as between a carrier's router and its customers' (RFC 6598).
    Carrier,
    /// The /24 that this address is in. Two routers may have the same, as homes do.
    Prefix(Ipv4Addr),
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            mapping: Mapping::EndpointIndependent(Ports::Preserved),
            filtering: Filtering::AddressAndPort,
            hairpin: false,
            egress: Egress::Any,
            ipv6: Ipv6::Firewalled,
            lan: Lan::Own,
            ports: 1024..=65535,
            lifetime: Duration::from_secs(120),
            accepts_input: false,
        }
    }
}

impl Nat {
    /// A router of this kind that is otherwise the default.
    pub fn new(mapping: Mapping, filtering: Filtering) -> Self {
        Self {
            mapping,
            filtering,
            ..Self::default()
        }
    }

    /// No translation and no filter: a plain router with public addresses behind it.
    pub fn open() -> Self {
        Self {
            ipv6: Ipv6::Open,
            ..Self::new(Mapping::None, Filtering::EndpointIndependent)
        }
    }

    /// Keeps ports and lets everybody in through a mapping.
    pub fn full_cone() -> Self {
        Self::new(
            Mapping::EndpointIndependent(Ports::Preserved),
            Filtering::EndpointIndependent,
        )
    }

    /// Keeps ports and lets in whom the host has sent to, from any port.
    pub fn restricted() -> Self {
        Self::new(Mapping::EndpointIndependent(Ports::Preserved), Filtering::Address)
    }

    /// Keeps ports and lets in what answers: the default.
    pub fn port_restricted() -> Self {
        Self::default()
    }

    /// Another port for every destination, and lets in only what answers.
    pub fn symmetric() -> Self {
        Self::new(Mapping::Symmetric(Sequence::Random), Filtering::AddressAndPort)
    }

    /// A carrier's router (CGNAT): translated ports from one mapping per socket, 100.64/10 behind it, no IPv6.
    pub fn carrier() -> Self {
        Self {
            lan: Lan::Carrier,
            ipv6: Ipv6::Off,
            ..Self::new(
                Mapping::EndpointIndependent(Ports::Translated),
                Filtering::AddressAndPort,
            )
        }
    }

    /// The same with another port for every socket or, where there is one mapping per flow, no change.
    #[must_use]
    pub fn translated(self) -> Self {
        match self.mapping {
            Mapping::EndpointIndependent(_) => Self {
                mapping: Mapping::EndpointIndependent(Ports::Translated),
                ..self
            },
            Mapping::None | Mapping::Symmetric(_) => self,
        }
    }

    /// The same with hairpin.
    #[must_use]
    pub fn with_hairpin(self) -> Self {
        Self {
            hairpin: true,
            ..self
        }
    }

    /// The same with a limit on what hosts may send.
    #[must_use]
    pub fn with_egress(self, egress: Egress) -> Self {
        Self { egress, ..self }
    }

    /// The same with another treatment of IPv6.
    #[must_use]
    pub fn with_ipv6(self, ipv6: Ipv6) -> Self {
        Self { ipv6, ..self }
    }

    /// Every mapping with every filtering, with and without hairpin: all the kinds that a lab can lay out.
    pub fn kinds() -> Vec<Self> {
        let mappings = [
            Mapping::None,
            Mapping::EndpointIndependent(Ports::Preserved),
            Mapping::EndpointIndependent(Ports::Translated),
            Mapping::Symmetric(Sequence::Hashed),
            Mapping::Symmetric(Sequence::Random),
            Mapping::Symmetric(Sequence::Sequential),
        ];
        let filterings = [
            Filtering::EndpointIndependent,
            Filtering::Address,
            Filtering::AddressAndPort,
        ];
        let mut kinds = Vec::new();
        for mapping in mappings {
            for filtering in filterings {
                let nat = Self::new(mapping, filtering);
                if mapping != Mapping::None {
                    kinds.push(nat.clone().with_hairpin());
                }
                kinds.push(nat);
            }
        }
        kinds
    }

    /// Whether a lab can lay it out.
    ///
    /// # Errors
    ///
    /// Says what does not go together.
    pub(crate) fn check(&self) -> Result<(), LabError> {
        let blocks = self.ports.start().is_multiple_of(256) && self.ports.end() % 256 == 255;
        if self.ports.is_empty() || *self.ports.start() == 0 || !blocks {
            return Err(LabError::Unsupported(
                "outside ports come in blocks of 256, as in 1024..=2047, and not from 0",
            ));
        }
        if self.lifetime < Duration::from_secs(1) {
            return Err(LabError::Unsupported(
                "mappings live for whole seconds, at least one",
            ));
        }
        if self.mapping == Mapping::None && self.hairpin {
            return Err(LabError::Unsupported(
                "hairpin is a matter of translation: without a mapping there is none",
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.mapping, self.filtering)?;
        if self.hairpin {
            f.write_str(", hairpin")?;
        }
        match self.egress {
            Egress::Any => Ok(()),
            Egress::NoUdp => f.write_str(", no UDP"),
            Egress::Web => f.write_str(", 443 only"),
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no translation",
            Self::EndpointIndependent(Ports::Preserved) => "independent, ports kept",
            Self::EndpointIndependent(Ports::Translated) => "independent, ports translated",
            Self::Symmetric(Sequence::Hashed) => "symmetric, hashed",
            Self::Symmetric(Sequence::Random) => "symmetric, random",
            Self::Symmetric(Sequence::Sequential) => "symmetric, sequential",
        })
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "lets in everybody",
            Self::Address => "by address",
            Self::AddressAndPort => "by address and port",
        })
    }
}
