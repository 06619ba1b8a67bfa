//! Kinds of messages: what a stream is for. Does not move any.

use lapwing_base::{ByteSize, Class};
use std::fmt;

/// One kind of message. Both ends name it with the same class and name; constants of the room that owns it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Kind {
    /// What its messages may overtake.
    pub class: Class,
    /// Its name within the class: at most [`Kind::NAME_MAX`] bytes.
    pub name: &'static str,
    /// Who may open a channel of this kind.
    pub access: Access,
    /// The longest frame in either direction; checked before anything is allocated for it.
    pub frame_max: ByteSize,
}

impl Kind {
    /// Longest name in bytes, so that a hello stays within one packet.
    pub const NAME_MAX: usize = 64;

    /// The name of this kind among all protocols: `/lapwing/1/CLASS/NAME`.
    ///
    /// The part up to the class is negotiated where the stream is opened; the name travels in the hello, so
    /// that a node that does not serve a kind can say so.
    pub fn protocol(&self) -> String {
        format!("/lapwing/1/{}/{}", self.class, self.name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.class, self.name)
    }
}

/// Who may open a channel.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Access {
    /// Everybody who can prove an identity: joins come before membership.
    Anyone,
    /// Members of the cluster that name the cluster's id.
    Members,
    /// Members, whatever cluster they name, and whom a room has welcomed; see `Network::welcome`.
    Guests,
}
