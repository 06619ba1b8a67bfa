//! With a peer that speaks libp2p and is no node of ours: rust-libp2p as it comes. Other implementations are in
//! `tests/interop`.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::swarm::{Config, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate, SwarmEvent};
use libp2p::{Swarm, Transport, autonat, identify, ping, quic, relay};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::nodes::{Node, PATIENCE, config, eventually, kind, loopback};
use lapwing_base::{Class, Keypair, Multiaddr, PeerId, Role};
use lapwing_net::{Gate, NetworkConfig, OpenError};

#[tokio::test]
async fn a_peer_that_is_no_node_of_ours_is_told_apart_at_once_and_named() {
    let (node, foreign) = (Node::start().await, Foreign::start().await);
    node.network.learn(foreign.peer, vec![foreign.address.clone()]);
    let opened = node.network.open(foreign.peer, kind(Class::Call), PATIENCE);
    // Not as long as it may take: the answer is known once the peer is connected.
    let error = tokio::time::timeout(PATIENCE / 2, opened)
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(&error, OpenError::Unreachable { reason, .. } if reason.contains("no node of ours")),
        "{error:?}"
    );
    let said = async {
        loop {
            let status = node.network.status();
            let known = status.peers.iter().find(|known| known.peer == foreign.peer);
            if let Some(known) = known
                && known.pinged.is_some()
                && let Some(agent) = &known.agent
            {
                return agent.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, said).await.unwrap(), AGENT);
}

#[tokio::test]
async fn each_ping_over_one_stream_is_answered_when_it_comes() {
    let (node, mut foreign) = (Node::start().await, Foreign::start().await);
    let address = node.network.listen_addrs()[0].clone();
    foreign.dial.send(address).await.unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let took = tokio::time::timeout(PATIENCE, foreign.pings.recv())
            .await
            .unwrap();
        slowest = slowest.max(took.unwrap());
    }
    // An answer that waited for our own ping would be seconds late.
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[tokio::test]
async fn a_home_reserves_at_a_relay_that_is_no_node_of_ours_and_is_reached_through_it() {
    let foreign = Foreign::start().await;
    let home = || NetworkConfig {
        role: Some(Role::Home),
        ..config()
    };
    let mut reached = Node::with(home()).await.unwrap();
    let other = Node::with(home()).await.unwrap();
    reached.echo(kind(Class::Call));
    reached.network.learn(foreign.peer, vec![foreign.address.clone()]);
    for (node, member) in [(&reached, other.id()), (&other, reached.id())] {
        node.admit(&[member]);
    }
    reached.gate.send_modify(|gate: &mut Gate| {
        gate.mains = Arc::new(HashSet::from([foreign.peer]));
    });
    let mut reach = reached.network.reach();
    let held = reach.wait_for(|reach| reach.reservations.iter().any(|(relay, _)| *relay == foreign.peer));
    tokio::time::timeout(PATIENCE, held).await.unwrap().unwrap();
    let through = format!("{}/p2p/{}/p2p-circuit", foreign.address, foreign.peer);
    let through: Multiaddr = through.parse().unwrap();
    assert!(reached.network.reach().borrow().advertised.contains(&through));
    other.network.learn(reached.id(), vec![through]);
    let answer = other
        .network
        .request(reached.id(), kind(Class::Call), b"hello", PATIENCE);
    assert_eq!(&*answer.await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_stranger_hears_whether_it_can_be_reached_and_has_nobody_else_dialed() {
    let (node, mut foreign) = (Node::start().await, Foreign::start().await);
    let address = node.network.listen_addrs()[0].clone();
    foreign.dial.send(address).await.unwrap();
    foreign.candidates.send(foreign.address.clone()).await.unwrap();
    let confirmed = tokio::time::timeout(PATIENCE, foreign.confirmed.recv()).await;
    assert_eq!(confirmed.unwrap(), Some((foreign.address.clone(), true)));

    let other = UdpSocket::bind("127.0.0.2:0").unwrap();
    other.set_nonblocking(true).unwrap();
    let port = other.local_addr().unwrap().port();
    let named: Multiaddr = format!("/ip4/127.0.0.2/udp/{port}/quic-v1").parse().unwrap();
    foreign.candidates.send(named).await.unwrap();
    // It is told that we could not say, and asks again.
    eventually("we were asked, and have refused, twice", || {
        node.network.status().refused.witness_questions > 1
    })
    .await;
    let nothing = other.recv(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

const AGENT: &str = "foreign/1";

#[derive(NetworkBehaviour)]
struct Protocols {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    relay: relay::Behaviour,
    autonat: autonat::v2::client::Behaviour,
}

/// A swarm that runs until it is dropped.
struct Foreign {
    peer: PeerId,
    address: Multiaddr,
    dial: mpsc::Sender<Multiaddr>,
    /// Round trips of its pings.
    pings: mpsc::Receiver<Duration>,
    /// Addresses that it has others look at, and whether they reach them.
    candidates: mpsc::Sender<Multiaddr>,
    confirmed: mpsc::Receiver<(Multiaddr, bool)>,
    _stop: DropGuard,
}

impl Foreign {
    async fn start() -> Self {
        let keypair = Keypair::generate_ed25519();
        let peer = keypair.public().to_peer_id();
        let transport = quic::tokio::Transport::new(quic::Config::new(&keypair));
        let transport = Transport::map(transport, |(peer, connection), _| {
            (peer, StreamMuxerBox::new(connection))
        });
        let identify = identify::Config::new("/foreign/1".to_owned(), keypair.public());
        let protocols = Protocols {
            identify: identify::Behaviour::new(identify.with_agent_version(AGENT.to_owned())),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_millis(20))),
            relay: relay::Behaviour::new(peer, relay::Config::default()),
            autonat: autonat::v2::client::Behaviour::new(
                StdRng::seed_from_u64(7),
                autonat::v2::client::Config::default().with_probe_interval(Duration::from_millis(20)),
            ),
        };
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let spawned = tracker.clone();
        let executor = move |task| {
            spawned.spawn(task);
        };
        let patient = Config::with_executor(executor).with_idle_connection_timeout(PATIENCE);
        let mut swarm = Swarm::new(transport.boxed(), protocols, peer, patient);
        swarm.listen_on(loopback(0)).unwrap();
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        swarm.add_external_address(address.clone());
        let (dial, mut dials) = mpsc::channel::<Multiaddr>(1);
        let (took, pings) = mpsc::channel(64);
        let (candidates, mut named) = mpsc::channel::<Multiaddr>(1);
        let (tell, confirmed) = mpsc::channel(8);
        let stopped = stop.clone();
        tracker.spawn(stopped.run_until_cancelled_owned(async move {
            loop {
                tokio::select! {
                    // Nobody asks where a test is about something else.
                    event = swarm.select_next_some() => match event {
                        SwarmEvent::Behaviour(ProtocolsEvent::Ping(ping::Event { result: Ok(rtt), .. })) => {
                            let _ = took.try_send(rtt);
                        }
                        SwarmEvent::Behaviour(ProtocolsEvent::Autonat(event)) => {
                            let _ = tell.try_send((event.tested_addr, event.result.is_ok()));
                        }
                        _ => (),
                    },
                    Some(addr) = named.recv() => {
                        let candidate = FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr: &addr });
                        swarm.behaviour_mut().autonat.on_swarm_event(candidate);
                    }
                    Some(address) = dials.recv() => swarm.dial(address).unwrap(),
                }
            }
        }));
        Self {
            peer,
            address,
            dial,
            pings,
            candidates,
            confirmed,
            _stop: stop.drop_guard(),
        }
    }
}
