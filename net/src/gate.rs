//! Whom a node lets in. Knows nothing of how they came.

use crate::{Access, Hello, Refusal};
use lapwing_base::{ClusterId, Member, PeerId, Role};
use std::collections::HashSet;
use std::sync::Arc;

/// The cluster and the members whose channels a node takes. By default there is no cluster and nobody.
///
/// Identities are proven by the transport before a gate is asked.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Gate {
    /// The cluster that this node belongs to.
    pub cluster: Option<ClusterId>,
    /// Who else belongs to it.
    pub members: Arc<HashSet<PeerId>>,
    /// Who is publicly reachable and relays, of the cluster or of those that were named to join it by.
    pub mains: Arc<HashSet<PeerId>>,
    /// Whose silence is to be noticed at once: mains, and voters of a node that votes.
    pub watched: Arc<HashSet<PeerId>>,
}

impl Gate {
    /// The gate of a cluster with these members. Mains are watched; a node that votes watches those who do, too.
    pub fn of<'a>(cluster: ClusterId, members: impl IntoIterator<Item = &'a Member>) -> Self {
        let (mut all, mut mains) = (HashSet::new(), HashSet::new());
        for member in members {
            all.insert(member.peer);
            if member.role == Role::Main {
                mains.insert(member.peer);
            }
        }
        let mains = Arc::new(mains);
        Self {
            cluster: Some(cluster),
            members: Arc::new(all),
            watched: Arc::clone(&mains),
            mains,
        }
    }

    /// Whether `peer` may open a channel of a kind with this access after this hello.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn admit(&self, peer: &PeerId, hello: &Hello, access: Access) -> Result<(), Refusal> {
        match access {
            Access::Anyone => Ok(()),
            Access::Members if self.cluster.is_none() || hello.cluster != self.cluster => {
                Err(Refusal::WrongCluster { theirs: self.cluster })
            }
            Access::Members if !self.members.contains(peer) => Err(Refusal::NotMember),
            // Who is a guest is not the gate's to know.
            Access::Guests if !self.members.contains(peer) => Err(Refusal::NotMember),
            Access::Members | Access::Guests => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VERSION;

    #[test]
    fn a_closed_gate_admits_only_what_is_open_to_anyone() {
        let (gate, peer) = (Gate::default(), PeerId::random());
        assert_eq!(gate.admit(&peer, &hello(None), Access::Anyone), Ok(()));
        assert_eq!(
            gate.admit(&peer, &hello(None), Access::Members),
            Err(Refusal::WrongCluster { theirs: None })
        );
    }

    #[test]
    fn a_member_that_names_the_cluster_is_admitted() {
        let peer = PeerId::random();
        assert_eq!(
            gate_with(peer).admit(&peer, &hello(Some(OURS)), Access::Members),
            Ok(())
        );
    }

    #[test]
    fn a_member_that_names_another_cluster_is_told_ours() {
        let peer = PeerId::random();
        let other = ClusterId::from_bytes([2; 16]);
        assert_eq!(
            gate_with(peer).admit(&peer, &hello(Some(other)), Access::Members),
            Err(Refusal::WrongCluster { theirs: Some(OURS) })
        );
    }

    #[test]
    fn a_stranger_that_names_the_cluster_is_no_member() {
        let gate = gate_with(PeerId::random());
        assert_eq!(
            gate.admit(&PeerId::random(), &hello(Some(OURS)), Access::Members),
            Err(Refusal::NotMember)
        );
    }

    const OURS: ClusterId = ClusterId::from_bytes([1; 16]);

    fn gate_with(peer: PeerId) -> Gate {
        Gate {
            cluster: Some(OURS),
            members: Arc::new(HashSet::from([peer])),
            ..Gate::default()
        }
    }

    fn hello(cluster: Option<ClusterId>) -> Hello {
        Hello {
            version: VERSION,
            cluster,
            name: "test".to_owned(),
        }
    }
}
