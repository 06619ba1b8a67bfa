//! What goes wrong on a lane, by who can act on it.

use super::{CHANNELS_MAX, NOTICES_MAX};
use crate::{AckError, ChannelId, PacketError};

/// No channel can be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenChannelError {
    /// Close some.
    #[error("{CHANNELS_MAX} channels are open on this lane already")]
    TooMany,
    /// Make another lane.
    #[error("every identifier of this lane has been used")]
    Exhausted,
}

/// Nothing more can be written on a channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The caller had finished it before.
    #[error("the channel was finished before")]
    Finished,
    /// The peer has dropped or refused it.
    #[error("the peer does not take the channel any more")]
    Refused,
}

/// The peer has broken the rules of a lane, which ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// What arrived is not a packet.
    #[error("what arrived is not a packet")]
    Malformed(#[from] PacketError),
    /// A packet for a channel that nobody has opened.
    #[error("channel {channel} has not been opened")]
    Unknown {
        /// As named by the peer.
        channel: ChannelId,
    },
    /// The peer opened another channel than its next one.
    #[error("channel {channel} is not the next one")]
    OutOfOrder {
        /// As named by the peer.
        channel: ChannelId,
    },
    /// More data than was granted.
    #[error("channel {channel} has sent {excess} bytes more than were granted")]
    BeyondCredit {
        /// Whose.
        channel: ChannelId,
        /// By how much.
        excess: usize,
    },
    /// Something after a channel's end.
    #[error("channel {channel} goes on after its end")]
    AfterEnd {
        /// Whose.
        channel: ChannelId,
    },
    /// Acknowledged bytes that cannot have arrived.
    #[error(transparent)]
    Ack(#[from] AckError),
    /// The peer makes us answer faster than it reads the answers.
    #[error("{NOTICES_MAX} answers wait to be read")]
    Flooded,
}
