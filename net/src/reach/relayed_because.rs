//! Why a path is relayed: a code for programs and words for people.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why two nodes are not connected directly.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayedBecause {
    /// The connection is young; nothing has been tried.
    NotTriedYet,
    /// An attempt is under way.
    Trying,
    /// One side knows no address of its own that the other may probe.
    NoCandidates,
    /// Both sides are behind NATs whose ports cannot be foretold.
    SymmetricBothSides,
    /// UDP does not pass on one side's network.
    UdpBlocked,
    /// Nothing of what was sent arrived.
    TimedOut,
    /// Probes of one side arrive, the answers do not.
    OneWay,
    /// A router gave another port because the peer's probe came first.
    Race,
    /// None of the ports that were guessed at a symmetric NAT was right.
    PortsMissed,
    /// The probes passed, and the QUIC handshake after them did not.
    HandshakeFailed,
    /// The peer did not answer the offer to punch, or does not punch.
    NoAnswer,
    /// The peer, or this node, has too much of this in hand.
    Busy,
}

impl RelayedBecause {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::NotTriedYet,
        Self::Trying,
        Self::NoCandidates,
        Self::SymmetricBothSides,
        Self::UdpBlocked,
        Self::TimedOut,
        Self::OneWay,
        Self::Race,
        Self::PortsMissed,
        Self::HandshakeFailed,
        Self::NoAnswer,
        Self::Busy,
    ];

    /// The word in status documents, logs and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotTriedYet => "not-tried-yet",
            Self::Trying => "trying",
            Self::NoCandidates => "no-candidates",
            Self::SymmetricBothSides => "symmetric-both-sides",
            Self::UdpBlocked => "udp-blocked",
            Self::TimedOut => "timed-out",
            Self::OneWay => "one-way",
            Self::Race => "race",
            Self::PortsMissed => "ports-missed",
            Self::HandshakeFailed => "handshake-failed",
            Self::NoAnswer => "no-answer",
            Self::Busy => "busy",
        }
    }

    /// What it means, and what a person can do about it.
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::NotTriedYet => "a direct path has not been tried yet",
            Self::Trying => "a direct path is being tried",
            Self::NoCandidates => {
                "one side knows no address at which it could be reached; it needs a connection to a main over UDP"
            }
            Self::SymmetricBothSides => {
                "both sides are behind symmetric NATs; port mapping (UPnP) or IPv6 on either side would help"
            }
            Self::UdpBlocked => {
                "a firewall on one side lets no UDP through; ask for outgoing UDP to be allowed"
            }
            Self::TimedOut => "no probe arrived; a firewall may drop packets between these networks",
            Self::OneWay => "probes arrive in one direction only; a firewall may drop the other",
            Self::Race => {
                "a router changed its port while both sides were sending; the next attempt sends in turn"
            }
            Self::PortsMissed => {
                "the ports of a symmetric NAT were not guessed; the next attempt is minutes away, and port mapping \
                 (UPnP) or IPv6 would help"
            }
            Self::HandshakeFailed => "probes pass, but the connection that followed them failed",
            Self::NoAnswer => "the peer does not take part in finding a direct path",
            Self::Busy => "too many direct paths are being tried at once; it is tried again soon",
        }
    }

    /// Whether trying again within minutes may end otherwise, all else being equal.
    pub const fn is_transient(self) -> bool {
        !matches!(self, Self::SymmetricBothSides | Self::UdpBlocked)
    }
}

impl fmt::Display for RelayedBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.explanation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::IntoDeserializer as _;
    use serde::de::value::{Error, StrDeserializer};

    #[test]
    fn the_code_is_the_word_in_documents() {
        for why in RelayedBecause::ALL {
            let code: StrDeserializer<'_, Error> = why.code().into_deserializer();
            assert_eq!(RelayedBecause::deserialize(code), Ok(why));
            assert!(!why.to_string().ends_with('.'));
        }
    }
}
