//! What kind of path an address leads to. Chooses none.

use lapwing_base::{Multiaddr, Protocol};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A kind of path, the best last.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Through a relay.
    Relayed,
    /// WebSocket over TLS to the peer itself.
    Fallback,
    /// QUIC to the peer itself.
    Direct,
}

impl Rung {
    pub(super) const ALL: [Self; 3] = [Self::Relayed, Self::Fallback, Self::Direct];

    /// The rung that an address leads to; `None` when it is for something that nodes do not speak.
    pub fn of(address: &Multiaddr) -> Option<Self> {
        let has = |is: fn(&Protocol<'_>) -> bool| address.iter().any(|part| is(&part));
        if has(|part| matches!(part, Protocol::P2pCircuit)) {
            Some(Self::Relayed)
        } else if has(|part| matches!(part, Protocol::QuicV1)) {
            Some(Self::Direct)
        } else if has(|part| matches!(part, Protocol::Ws(_) | Protocol::Wss(_))) {
            Some(Self::Fallback)
        } else {
            None
        }
    }

    /// Its place from below, from 0.
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Relayed => 0,
            Self::Fallback => 1,
            Self::Direct => 2,
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relayed => "relayed",
            Self::Fallback => "fallback",
            Self::Direct => "direct",
        })
    }
}
