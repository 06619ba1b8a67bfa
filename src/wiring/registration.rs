//! Keeps the node registered with its gateways: who it is, where it listens, and who leads as far as it
//! knows. The gateway is told at once when the leader changes; everything else it is told by heartbeat.

use lapwing_base::{ClusterId, PeerId, Role, Roster};
use lapwing_consensus::Card;
use lapwing_gateway::{Client, Registration};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The node's side of its gateways.
#[derive(Clone, Debug)]
pub(crate) struct GatewayLink {
    pub(crate) client: Arc<Client>,
    /// What is registered now; the client renews it whenever it changes.
    pub(crate) registration: watch::Sender<Registration>,
}

impl GatewayLink {
    pub(crate) fn new(client: Client, peer: PeerId, name: String, role: Role, incarnation: u64) -> Self {
        let registration = Registration {
            peer_id: peer,
            addrs: Vec::new(),
            name,
            capabilities: vec!["raft".to_owned(), "train".to_owned()],
            role,
            cluster_id: None,
            term: None,
            leader: None,
            incarnation,
            seq: 1,
        };
        Self {
            client: Arc::new(client),
            registration: watch::Sender::new(registration),
        }
    }

    pub(crate) fn reached_at(&self, card: Card) {
        self.update(|registration| {
            registration.addrs = card.addrs;
            registration.role = card.role;
        });
    }

    /// No longer, or not yet, a member.
    pub(crate) fn outside(&self) {
        self.update(|registration| {
            registration.cluster_id = None;
            registration.term = None;
            registration.leader = None;
        });
    }

    fn member(&self, cluster: ClusterId, roster: &Roster) {
        let leader = roster.leader().map(|leader| leader.peer);
        self.update(|registration| {
            registration.cluster_id = Some(cluster);
            // A term without a leader says nothing that a joiner can use.
            registration.leader = leader;
            registration.term = leader.map(|_| roster.term);
        });
    }

    fn update(&self, change: impl FnOnce(&mut Registration)) {
        self.registration.send_if_modified(|registration| {
            let before = registration.clone();
            change(registration);
            let changed = *registration != before;
            if changed {
                registration.seq += 1;
            }
            changed
        });
    }

    /// Keeps the registration as the roster says, until `stop`.
    pub(crate) async fn follow(
        self,
        cluster: ClusterId,
        mut rosters: watch::Receiver<Arc<Roster>>,
        stop: CancellationToken,
    ) {
        loop {
            let roster = rosters.borrow_and_update().clone();
            self.member(cluster, &roster);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = rosters.changed() => if changed.is_err() { return },
            }
        }
    }
}
