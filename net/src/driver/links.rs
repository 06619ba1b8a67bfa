//! What leads to a peer, whatever it is made of.

use std::io;
use std::sync::Arc;

use libp2p::swarm::ConnectionId;

use super::quic::{Session, SessionId};
use super::stream::Opened;
use crate::LinkStatus;
use lapwing_base::Class;

/// Distinguishes the links of one node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum LinkId {
    Session(SessionId),
    Lane(ConnectionId),
}

/// One way to a peer.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// QUIC, to the peer itself.
    Session(Arc<Session>),
}

impl Link {
    /// Opens a stream of a class. Says nothing to the peer until something is written.
    ///
    /// # Errors
    /// When the link is gone, or takes no stream of this class.
    pub(crate) async fn open(&self, class: Class) -> io::Result<Opened> {
        match self {
            Self::Session(session) => session.open(class).await,
        }
    }

    /// Whether any channel is open over it.
    pub(crate) fn in_use(&self) -> bool {
        match self {
            Self::Session(session) => session.in_use(),
        }
    }

    /// What it is made of now.
    pub(crate) fn status(&self) -> LinkStatus {
        match self {
            Self::Session(session) => session.status(),
        }
    }

    /// Ends it.
    pub(crate) fn close(&self, why: &str) {
        match self {
            Self::Session(session) => session.close(why),
        }
    }
}
