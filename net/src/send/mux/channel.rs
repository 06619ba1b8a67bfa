//! One channel of a lane: how far each direction is, and what has arrived. Moves nothing.

use bytes::BytesMut;

use lapwing_base::Class;

/// One channel as one end knows it.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) class: Class,
    pub(super) sends: Sends,
    pub(super) receives: Receives,
    /// What has arrived and has not been read: at most `window` bytes.
    pub(super) arrived: BytesMut,
    /// Bytes that the peer may send still. granted + arrived + consumed = window
    pub(super) granted: u32,
    pub(super) consumed: u32,
    pub(super) window: u32,
    /// Nobody will read or write it again.
    pub(super) released: bool,
}

/// How far our direction is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sends {
    Open,
    /// All has been queued; the end leaves after it.
    Finishing,
    /// The peer knows that nothing follows.
    Done,
    /// The peer does not want it.
    Refused,
}

/// How far the peer's direction is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Receives {
    Open,
    /// The peer has sent all.
    Ended,
    /// The peer has given it up.
    Broken,
}

impl Channel {
    /// One that has just been opened, with room for so much.
    pub(super) fn new(class: Class, window: u32) -> Self {
        Self {
            class,
            sends: Sends::Open,
            receives: Receives::Open,
            arrived: BytesMut::new(),
            granted: window,
            consumed: 0,
            window,
            released: false,
        }
    }
}
