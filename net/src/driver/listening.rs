//! What this node listens on, and which addresses that comes to. Part of the driver's one task.

use std::io;
use std::time::Duration;

use futures::StreamExt as _;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::SwarmEvent;

use super::addresses::for_others;
use super::network::StartError;
use super::{CLOSE_MAX, Driver, now};
use lapwing_base::Multiaddr;

/// What was asked for, and the addresses that it is bound to.
pub(super) struct Listener {
    pub(super) id: ListenerId,
    pub(super) asked: Multiaddr,
    pub(super) bound: Vec<Multiaddr>,
}

impl Driver {
    pub(super) async fn wait_until_bound(&mut self) -> Result<(), StartError> {
        loop {
            let all_bound = self.listeners.iter().all(|listener| !listener.bound.is_empty());
            let patience = if all_bound { LISTEN_SETTLE } else { CLOSE_MAX };
            match tokio::time::timeout(patience, self.swarm.select_next_some()).await {
                Ok(SwarmEvent::ListenerClosed {
                    listener_id, reason, ..
                }) => {
                    let reason = reason
                        .err()
                        .unwrap_or_else(|| io::Error::other("the listener has closed"));
                    let address = self.asked(listener_id);
                    return Err(StartError::Listen {
                        address,
                        source: reason,
                    });
                }
                Ok(event) => self.on_event(event),
                Err(_) if all_bound => return Ok(()),
                Err(_) => {
                    let unbound = self.listeners.iter().find(|listener| listener.bound.is_empty());
                    let address = unbound.map_or_else(Multiaddr::empty, |listener| listener.asked.clone());
                    return Err(StartError::NotHere { address });
                }
            }
        }
    }

    pub(super) fn asked(&self, id: ListenerId) -> Multiaddr {
        let listener = self.listeners.iter().find(|listener| listener.id == id);
        listener.map_or_else(Multiaddr::empty, |listener| listener.asked.clone())
    }

    pub(super) fn listener(&mut self, id: ListenerId) -> Option<&mut Listener> {
        self.listeners.iter_mut().find(|listener| listener.id == id)
    }

    pub(super) fn publish_listen(&mut self) {
        let bound = self.listeners.iter().flat_map(|listener| &listener.bound);
        let addresses = for_others(bound.cloned());
        self.announced.send_replace(addresses.clone());
        self.shared.set_listen(addresses);
        self.publish_reach(now());
    }
}

/// How long a listener on all interfaces may take to name one more address.
const LISTEN_SETTLE: Duration = Duration::from_millis(50);
