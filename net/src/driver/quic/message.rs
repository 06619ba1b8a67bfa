//! What two nodes tell each other about their session: one message on each unidirectional stream.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::VERSION;

/// Longest message in bytes: an IPv6 address with a port, twice, and what a later version may add.
pub(crate) const SIZE_MAX: usize = 128;

/// About the session. The order of the variants is their number on the wire.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// First of all, from both ends.
    Greeting {
        /// The version that the sender speaks.
        version: u16,
        /// A number that the sender has drawn when it started.
        incarnation: u64,
    },
    /// Where the sender sees the receiver: after the greeting, whenever that changes, and from time to time.
    Observed(SocketAddr),
    /// The sender has bulk to send and did not dial: please open a bulk lane, or keep the one that stands.
    BulkWanted,
    /// The sender has dialed the bulk lane, opens nothing over it any more and does not need it: please close it, or
    /// say that you want it.
    BulkIdle,
}

impl Message {
    pub(crate) const fn greeting(incarnation: u64) -> Self {
        Self::Greeting {
            version: VERSION,
            incarnation,
        }
    }
}
