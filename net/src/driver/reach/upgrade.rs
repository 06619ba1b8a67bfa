//! Direct connections with peers that are no nodes of ours, once both sides of a circuit have agreed on the moment:
//! whoever has dialed the circuit dials, and the other opens its NAT.
//!
//! Nobody vouches for the addresses that such a peer names, so what is sent there is little, and of few at a time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::identify;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tracing::{debug, trace};

use super::dial::Dial;
use crate::driver::quic::{from_multiaddr, to_multiaddr};
use crate::driver::upgrading::{self, Agreed};
use crate::driver::{Driver, addresses::is_loopback, draw};
use crate::{Observation, Scope};
use lapwing_base::{Multiaddr, PeerId};

impl Driver {
    /// A peer that is no node of ours says what it speaks.
    pub(in crate::driver) fn on_foreign_identified(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        info: &identify::Info,
        now: Instant,
    ) {
        if info.protocols.contains(&upgrading::PROTOCOL) {
            self.swarm.behaviour_mut().upgrading.is_foreign(id);
        }
        // As a relay it may be the only one who sees us. Whom we have not dialed could say anything.
        if let Some(remote) = self.reach.foreign_dialed.get(&id)
            && let Some((seen, _)) = from_multiaddr(&info.observed_addr)
            && let Some(socket) = self.socket_towards(*remote)
        {
            let said = Observation {
                socket,
                observer: peer,
                observed_at: *remote,
                seen,
            };
            self.on_observed(said, now);
        }
    }

    /// Both sides of a circuit know where the other may be.
    pub(in crate::driver) fn on_agreed(&mut self, agreed: Agreed, now: Instant) {
        let Agreed { peer, theirs, dials } = agreed;
        let named = theirs.len();
        let addresses = self.admitted(theirs);
        self.reach.foreign_refused += (named - addresses.len()) as u64;
        debug!(%peer, ?addresses, dials, "agreed on a direct connection");
        if addresses.is_empty() {
            return;
        }
        if dials {
            self.dial_foreign(peer, &addresses, now);
        } else {
            self.open_towards(peer, &addresses);
        }
    }

    /// Tells those who agree on direct connections where this node may be found.
    pub(super) fn publish_candidates(&self, now: Instant) {
        let candidates = self.here(now).presence.candidates;
        let widest = self.widest();
        let candidates: Vec<_> = candidates
            .into_iter()
            .filter(|address| Scope::of(address.ip()) == widest)
            .map(to_multiaddr)
            .collect();
        self.reach.foreign_candidates.send_if_modified(|known| {
            let changed = *known != candidates;
            *known = candidates;
            changed
        });
    }

    /// What may be sent to of what a stranger names: QUIC at addresses that everybody could reach, and no machine of
    /// our own network's.
    fn admitted(&self, named: Vec<Multiaddr>) -> Vec<SocketAddr> {
        let widest = self.widest();
        let mut admitted = Vec::new();
        for (address, _) in named.iter().filter_map(from_multiaddr) {
            let fits = address.port() != 0 && Scope::of(address.ip()) == widest;
            if fits && admitted.len() < ADDRESSES_MAX && !admitted.contains(&address) {
                admitted.push(address);
            }
        }
        admitted
    }

    /// How far the addresses carry that are exchanged with strangers: everywhere, but for a node that is on its machine
    /// only.
    fn widest(&self) -> Scope {
        let listen = self.shared.listen();
        if !listen.is_empty() && listen.iter().all(is_loopback) {
            Scope::Loopback
        } else {
            Scope::Global
        }
    }

    fn dial_foreign(&mut self, peer: PeerId, addresses: &[SocketAddr], now: Instant) {
        let dials = self.reach.dials.values();
        if dials.filter(|dial| matches!(dial, Dial::Foreign)).count() >= UPGRADES_MAX {
            trace!(%peer, "no dial, since too many are under way");
            return;
        }
        for address in addresses {
            self.reach.reachability.sent(*address, now);
        }
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(addresses.iter().copied().map(to_multiaddr).collect())
            .build();
        let connection = options.connection_id();
        self.reach.dials.insert(connection, Dial::Foreign);
        if let Err(error) = self.swarm.dial(options) {
            self.on_dial_failure(connection, peer, &error, now);
        }
    }

    /// Sends short packets of nothing to the peer's addresses for as long as its dial may take to come, so that our
    /// NAT lets it in.
    fn open_towards(&self, peer: PeerId, addresses: &[SocketAddr]) {
        let Ok(permit) = Arc::clone(&self.reach.foreign_opening).try_acquire_owned() else {
            trace!(%peer, "no NAT is opened, since too many are");
            return;
        };
        let towards: Vec<_> = addresses
            .iter()
            .filter_map(|address| Some((self.socket_towards(*address)?, *address)))
            .collect();
        let (quic, stop) = (Arc::clone(&self.quic), self.stop.clone());
        let mut pauses = StdRng::from_seed(draw());
        self.tracker.spawn(async move {
            let opening = async {
                for _ in 0..PACKETS_MAX {
                    for (socket, address) in &towards {
                        // The first two bits are those of no QUIC packet, and the rest of no probe of ours.
                        let nothing = [0; 16];
                        if let Err(error) = quic.send_probe(*socket, *address, &nothing, None) {
                            trace!(to = %address, %error, "a packet was not sent");
                        }
                    }
                    let pause = pauses.random_range(PAUSE_MS);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            };
            stop.run_until_cancelled(opening).await;
            drop(permit);
        });
    }
}

/// Of those that a peer names: its own and its NAT's, in two families, twice over. Each is sent four packets of a
/// handshake at most, or [`PACKETS_MAX`] short ones.
const ADDRESSES_MAX: usize = 8;

/// Upgrades at once, on either side. Whoever holds circuits with us and names others as itself has us send 160 KiB in
/// three seconds at most.
pub(super) const UPGRADES_MAX: usize = 4;

/// Packets to each address; a handshake that has not come after two seconds does not.
const PACKETS_MAX: usize = 20;

/// Between two of them: as the specification of DCUtR has it.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 10..=200;
