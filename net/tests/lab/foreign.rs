//! Peers that speak libp2p and are no nodes of ours, behind NATs: rust-libp2p as it comes.

use std::sync::mpsc;
use std::time::Duration;

use futures::StreamExt as _;
use lapwing_base::{Keypair, Multiaddr, PeerId, Role};
use lapwing_net::NetworkConfig;
use lapwing_netlab::{Host, Lab, Nat, Shape};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::upgrade::Version;
use libp2p::swarm::{Config, NetworkBehaviour, SwarmEvent};
use libp2p::{Swarm, Transport as _, dcutr, identify, noise, quic, relay, yamux};
use tokio::runtime::Runtime;

use crate::nodes::{LabNode, enrol, eventually};
use crate::world::{ANY, DELAY};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
#[ignore = "needs root"]
fn circuits_with_foreign_peers_are_upgraded_whoever_has_dialed_them() {
    let lab = Lab::builder().seed(7).start().unwrap();
    let main = |name: &str| {
        let config = NetworkConfig {
            listen: vec!["/ip4/0.0.0.0/udp/4001/quic-v1".parse().unwrap()],
            role: Some(Role::Main),
            relays_strangers: true,
            maps_port: false,
            finds_neighbours: false,
            ..NetworkConfig::new(Keypair::generate_ed25519())
        };
        LabNode::with(&lab.public_host(name).unwrap(), config)
    };
    let mains = [main("relay-1"), main("relay-2")];
    let behind = |nat: Nat, name: &str| {
        let router = lab.router(&format!("nat-{name}"), nat).unwrap();
        router.link().shape(Shape::delayed(DELAY)).unwrap();
        router.host(name).unwrap()
    };
    // Ours translates ports: what libp2p would make of its address is wrong.
    let home = behind(Nat::port_restricted().translated(), "ours");
    let homes = [LabNode::start(&home, None, &[ANY])];
    let home = &homes[0];
    enrol(&mains, &homes);
    eventually("ours can be reached", PATIENCE, || {
        let reach = home.reach();
        reach.reservations.len() == 2 && !reach.observed.is_empty()
    });
    let relay = &mains[0];
    let relay_address = relay.reach().advertised[0].clone();
    let circuit: Multiaddr = format!("{relay_address}/p2p/{}/p2p-circuit", relay.id())
        .parse()
        .unwrap();

    // It dials us: it is ours to begin.
    let host = behind(Nat::port_restricted(), "dials");
    let dials = Foreign::start(&host, &relay_address, None);
    dials.dial(format!("{circuit}/p2p/{}", home.id()).parse().unwrap());
    println!(
        "\nwho has dialed us: direct {:.0?} after the circuit",
        dials.direct(home.id())
    );

    // We dial it.
    let host = behind(Nat::port_restricted(), "dialed");
    let dialed = Foreign::start(&host, &relay_address, Some(circuit.clone()));
    home.network.learn(dialed.peer, vec![circuit]);
    let network = home.network.clone();
    let peer = dialed.peer;
    home.spawn(async move {
        // It is no node of ours, and never answers as one.
        let _ = network.connect(peer, PATIENCE).await;
    });
    println!(
        "whom we have dialed: direct {:.0?} after the circuit",
        dialed.direct(home.id())
    );
    for node in mains.into_iter().chain(homes) {
        node.stop();
    }
}

#[derive(NetworkBehaviour)]
struct Protocols {
    identify: identify::Behaviour,
    relayed: relay::client::Behaviour,
    dcutr: dcutr::Behaviour,
}

/// A swarm on a host, which ends with this.
struct Foreign {
    peer: PeerId,
    dials: tokio::sync::mpsc::Sender<Multiaddr>,
    /// With whom a connection stands, and whether it is direct.
    connected: mpsc::Receiver<(PeerId, bool)>,
    runtime: Option<Runtime>,
}

impl Foreign {
    /// Connects to a relay, and reserves there when it is given where.
    fn start(host: &Host, relay: &Multiaddr, reserves: Option<Multiaddr>) -> Self {
        let build = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        };
        let runtime = host.enter(build).unwrap();
        let keypair = Keypair::generate_ed25519();
        let peer = keypair.public().to_peer_id();
        let (dials, dialing) = tokio::sync::mpsc::channel(4);
        let (tell, connected) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let relay = relay.clone();
        runtime.spawn(async move {
            let mut swarm = swarm(&keypair);
            swarm.listen_on(ANY.parse().unwrap()).unwrap();
            swarm.dial(relay).unwrap();
            run(swarm, reserves, dialing, &tell, &ready).await;
        });
        started.recv_timeout(PATIENCE).unwrap();
        Self {
            peer,
            dials,
            connected,
            runtime: Some(runtime),
        }
    }

    fn dial(&self, address: Multiaddr) {
        self.dials.blocking_send(address).unwrap();
    }

    /// Waits for a direct connection with a peer; how long after the circuit it came.
    fn direct(&self, with: PeerId) -> Duration {
        let mut relayed_at = None;
        loop {
            let (peer, direct) = self
                .connected
                .recv_timeout(PATIENCE)
                .expect("no direct connection");
            let now = std::time::Instant::now();
            if peer == with && direct {
                return now - relayed_at.expect("there was a circuit before");
            }
            if peer == with {
                relayed_at = relayed_at.or(Some(now));
            }
        }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn swarm(keypair: &Keypair) -> Swarm<Protocols> {
    let peer = keypair.public().to_peer_id();
    let (circuits, relayed) = relay::client::new(peer);
    let circuits = circuits
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(keypair).unwrap())
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let quic = quic::tokio::Transport::new(quic::Config::new(keypair))
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    let transport = circuits
        .or_transport(quic)
        .map(|output, _| output.into_inner())
        .boxed();
    let protocols = Protocols {
        identify: identify::Behaviour::new(identify::Config::new("/foreign/1".to_owned(), keypair.public())),
        relayed,
        dcutr: dcutr::Behaviour::new(peer),
    };
    let config = Config::with_tokio_executor().with_idle_connection_timeout(PATIENCE * 3);
    Swarm::new(transport, protocols, peer, config)
}

async fn run(
    mut swarm: Swarm<Protocols>,
    mut reserves: Option<Multiaddr>,
    mut dialing: tokio::sync::mpsc::Receiver<Multiaddr>,
    tell: &mpsc::Sender<(PeerId, bool)>,
    ready: &mpsc::Sender<()>,
) {
    loop {
        tokio::select! {
            event = swarm.select_next_some() => match event {
                // The relay says where it sees this one, without which there is nothing to tell others.
                SwarmEvent::NewExternalAddrCandidate { .. } => match reserves.take() {
                    Some(circuit) => drop(swarm.listen_on(circuit).unwrap()),
                    None => drop(ready.send(())),
                },
                SwarmEvent::Behaviour(ProtocolsEvent::Relayed(_)) => drop(ready.send(())),
                SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => {
                    let _ = tell.send((peer_id, !endpoint.is_relayed()));
                }
                _ => (),
            },
            Some(address) = dialing.recv() => swarm.dial(address).unwrap(),
        }
    }
}
