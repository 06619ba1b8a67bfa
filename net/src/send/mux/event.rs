//! What a lane tells whoever moves its bytes. Values only.

use std::time::Instant;

use crate::ChannelId;
use lapwing_base::Class;

/// What the owner of a channel should know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// The peer has opened a channel.
    Opened(ChannelId, Class),
    /// There is something to read, or the end.
    Readable(ChannelId),
    /// There is room to write, or there will never be again, or all has left.
    Writable(ChannelId),
}

/// What [`Mux::transmit`](super::Mux::transmit) did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// Bytes were appended: hand them over, and ask again.
    Wrote,
    /// Nothing may leave before then, or before something arrives or is written.
    Wait(Option<Instant>),
}

/// What [`Mux::read`](super::Mux::read) found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// Everything has been read.
    End,
    /// The peer has given the channel up.
    Broken,
}
