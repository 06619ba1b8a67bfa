//! Short messages to peers and from them, which the cores of reaching one another exchange.

use std::sync::Arc;
use std::time::Instant;

use tracing::trace;

use crate::driver::Driver;
use crate::driver::notes::{self, Note};
use crate::{Kind, PunchMessage, Rung};
use lapwing_base::PeerId;

impl Driver {
    pub(in crate::driver) fn on_note(&mut self, note: Note, now: Instant) {
        match note {
            Note::Punch(peer, message) => {
                trace!(%peer, ?message, "punch message");
                if matches!(message, PunchMessage::Offer { .. }) {
                    // The peer has no direct path to us any more.
                    self.suspect(&peer);
                }
                let (here, there) = (self.here_for(&peer, now), self.there(&peer));
                self.reach.punches.on_message(peer, message, here, there, now);
            }
            Note::Witness(peer, message) => {
                self.reach.reachability.on_message(&peer, &message, now);
                if let Some(from) = self.seen_for(&peer, &message) {
                    let mains = self.connected_mains();
                    let actions = self.reach.witness.on_message(peer, from, message, &mains, now);
                    for action in actions {
                        self.witness(action, now);
                    }
                }
            }
        }
        self.pump(now);
    }

    pub(super) fn tell(&self, peer: PeerId, kind: Kind, body: Vec<u8>) {
        if !self.spawn_note(notes::tell(Arc::clone(&self.shared), peer, kind, body)) {
            trace!(%peer, %kind, "a message was not sent, since too many are on their way");
        }
    }

    /// Says something of punching: it is about the direct path, which may be dead where it still stands, and so goes
    /// beside it.
    pub(super) fn tell_beside(&self, peer: PeerId, body: Vec<u8>) {
        let lanes = self.connections.on_rung(&peer, Rung::Relayed);
        let Some(link) = lanes.last().and_then(|id| self.links.get(id)) else {
            return self.tell(peer, notes::PUNCH, body);
        };
        let telling = notes::tell_over(Arc::clone(&self.shared), link.clone(), notes::PUNCH, body);
        if !self.spawn_note(telling) {
            trace!(%peer, "a message was not sent, since too many are on their way");
        }
    }

    /// Notes are short and few; beyond their bound they are lost, and sent again if they matter.
    /// Says whether this one is on its way.
    pub(super) fn spawn_note(&self, note: impl Future<Output = ()> + Send + 'static) -> bool {
        let Ok(permit) = Arc::clone(&self.notes_under_way).try_acquire_owned() else {
            return false;
        };
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled(note).await;
            drop(permit);
        });
        true
    }
}
