//! What two nodes say to one another over their relayed connection before they punch. Decides nothing.

use crate::{DecodeError, NatType, PortSpan, RelayedBecause, Strategy, Token, decode, encode};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// A message of an attempt. Its frames go in order, encrypted from end to end.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum PunchMessage {
    /// Let us try.
    Offer {
        /// Names the attempt.
        attempt: u64,
        /// Proves probes to be of this attempt.
        token: Token,
        /// How many attempts there were before, as far as the offerer knows: the next one does something else.
        number: u32,
        /// Where the offerer can be found.
        presence: Presence,
    },
    /// Let us do it like this; begins the attempt.
    Answer {
        /// As in the offer.
        attempt: u64,
        /// What both do.
        strategy: Strategy,
        /// Where the answerer can be found.
        presence: Presence,
    },
    /// Not now, or not at all; ends the attempt on both sides.
    GiveUp {
        /// As in the offer.
        attempt: u64,
        /// Why.
        why: RelayedBecause,
    },
}

/// Where a node can be found, as far as it knows itself.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Presence {
    /// What stands before it.
    pub nat: NatType,
    /// Its addresses, its own and those that others see, the likeliest first; at most [`Presence::ADDRESSES_MAX`].
    /// Where others see its socket comes before a port that is mapped to it: a symmetric peer opens ports towards the
    /// first address at which this node is seen.
    pub candidates: Vec<SocketAddr>,
    /// The addresses that its NAT will give next; at most [`Presence::ADDRESSES_MAX`].
    pub predicted: Vec<SocketAddr>,
    /// From where its NAT gives ports, when that is known.
    pub ports: Option<PortSpan>,
    /// Its round trip to the relay: with the other's, that of the relayed path, which is too new to have been measured.
    pub to_relay: Option<Duration>,
}

impl Presence {
    /// Most addresses of each kind: two families, a few interfaces, a mapped port, and what observers see.
    pub const ADDRESSES_MAX: usize = 16;

    /// The same without what is beyond the bounds or no address.
    pub(crate) fn bounded(mut self) -> Self {
        for addresses in [&mut self.candidates, &mut self.predicted] {
            addresses.retain(|address| address.port() != 0);
            addresses.truncate(Self::ADDRESSES_MAX);
        }
        self.ports = self.ports.filter(|ports| !ports.is_empty());
        self
    }
}

impl PunchMessage {
    /// Longest message in bytes: 32 addresses of 20 bytes, and room for what a later version may add.
    pub const SIZE_MAX: usize = 1024;

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// The message that these bytes hold, cut to the bounds.
    ///
    /// # Errors
    /// When they hold none or are too many.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > Self::SIZE_MAX {
            let bytes = bytes.len() - Self::SIZE_MAX;
            return Err(DecodeError::Trailing { bytes });
        }
        Ok(match decode(bytes)? {
            Self::Offer {
                attempt,
                token,
                number,
                presence,
            } => Self::Offer {
                attempt,
                token,
                number,
                presence: presence.bounded(),
            },
            Self::Answer {
                attempt,
                strategy,
                presence,
            } => Self::Answer {
                attempt,
                strategy,
                presence: presence.bounded(),
            },
            give_up @ Self::GiveUp { .. } => give_up,
        })
    }

    /// Which attempt it belongs to.
    pub const fn attempt(&self) -> u64 {
        match self {
            Self::Offer { attempt, .. } | Self::Answer { attempt, .. } | Self::GiveUp { attempt, .. } => {
                *attempt
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_message_fits() {
        let addresses = vec!["[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(); 16];
        let message = PunchMessage::Offer {
            attempt: u64::MAX,
            token: Token([255; 16]),
            number: u32::MAX,
            presence: Presence {
                candidates: addresses.clone(),
                predicted: addresses,
                ports: Some(PortSpan::ANY),
                to_relay: Some(Duration::MAX),
                ..Presence::default()
            },
        };
        let bytes = message.to_bytes();
        assert!(bytes.len() <= PunchMessage::SIZE_MAX * 3 / 4, "{}", bytes.len());
        assert_eq!(PunchMessage::parse(&bytes), Ok(message));
    }

    #[test]
    fn what_is_beyond_the_bounds_is_cut_off() {
        let message = PunchMessage::Offer {
            attempt: 1,
            token: Token([0; 16]),
            number: 0,
            presence: Presence {
                candidates: vec!["203.0.113.1:9".parse().unwrap(); 60],
                predicted: vec!["203.0.113.1:0".parse().unwrap()],
                ports: Some(PortSpan { low: 9, high: 8 }),
                ..Presence::default()
            },
        };
        let Ok(PunchMessage::Offer { presence, .. }) = PunchMessage::parse(&message.to_bytes()) else {
            panic!("an offer");
        };
        assert_eq!(presence.candidates.len(), Presence::ADDRESSES_MAX);
        assert!(presence.predicted.is_empty());
        assert_eq!(presence.ports, None);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_within_the_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            if let Ok(PunchMessage::Offer { presence, .. } | PunchMessage::Answer { presence, .. }) =
                PunchMessage::parse(&bytes)
            {
                prop_assert!(presence.candidates.len() <= Presence::ADDRESSES_MAX);
            }
        }
    }
}
