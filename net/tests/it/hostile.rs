//! Peers that mean harm: what they do is refused, counted and bounded, and the node goes on serving others.

use crate::nodes::{CLUSTER, Node, PATIENCE, befriend, eventually, kind};
use crate::raw_peer::{RawPeer, address, first_packet};
use futures::{FutureExt as _, StreamExt as _};
use lapwing_base::{ByteSize, Class, Keypair, Multiaddr, PeerId};
use lapwing_net::{
    Access, Hello, Kind, NatType, Presence, PunchMessage, Refusal, Refused, Stance, Token, WitnessMessage,
    decode, encode,
};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Swarm, noise, relay, yamux};
use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

const OPEN: Kind = Kind {
    class: Class::Control,
    name: "open",
    access: Access::Anyone,
    frame_max: ByteSize::kib(4),
};

const CONTROL: u8 = Class::Control.index() as u8;

#[tokio::test]
async fn an_oversized_frame_is_refused_before_it_is_read() {
    let mut besieged = Besieged::start().await;
    besieged.node.echo(OPEN);
    let raw = RawPeer::connect(&besieged.node).await;
    let hello = framed(&Hello::new(None, &OPEN).to_bytes());
    let long = [hello.as_slice(), &(1_u32 << 30).to_le_bytes(), &[0; 100]].concat();
    let answer = raw.exchange(long).await.unwrap();
    let expected = Refusal::TooLong {
        size: ByteSize::mib(1024),
        max: OPEN.frame_max,
    };
    assert_eq!(refusal_in(&answer), expected);
    let no_hello = [&(1_u32 << 30).to_le_bytes(), [0; 100].as_slice()].concat();
    assert!(raw.exchange(no_hello).await.unwrap_or_default().is_empty());
    besieged
        .counts("the stream", |refused| refused.streams == 1)
        .await;
    besieged.serves_others().await;
}

#[tokio::test]
async fn half_open_streams_are_few_and_given_up() {
    let besieged = Besieged::start().await;
    let raw = RawPeer::connect(&besieged.node).await;
    let mut streams = Vec::new();
    while let Some(opened) = raw.connection.open_bi().now_or_never() {
        let (mut send, receive) = opened.unwrap();
        send.write_all(&[CONTROL]).await.unwrap();
        streams.push((send, receive));
        assert!(streams.len() <= 64, "nobody who is no member has more");
    }
    besieged.serves_others().await;
    let opened = streams.len() as u64;
    let given_up = besieged.counts("they are given up", |refused| refused.streams >= opened);
    tokio::select! {
        () = given_up => (),
        why = raw.is_alive() => panic!("the session has ended: {why}"),
    }
    // Others may take their places.
    drop(streams);
    raw.connection.open_bi().await.unwrap();
}

#[tokio::test]
async fn a_peer_that_goes_on_with_streams_of_no_kind_is_shown_the_door() {
    let besieged = Besieged::start().await;
    let raw = RawPeer::connect(&besieged.node).await;
    let flood = async {
        while let Ok((mut send, _)) = raw.connection.open_bi().await {
            let _ = send.write_all(&[77]).await;
        }
    };
    let (why, ()) = tokio::join!(raw.shown_the_door(), flood);
    assert!(why.contains("not understood"), "{why}");
    let refused = besieged.refused();
    assert!((64..4096).contains(&refused.streams), "{refused:?}");
    assert_eq!(refused.sessions, 1);
    besieged.serves_others().await;
}

#[tokio::test]
async fn messages_about_a_session_are_not_taken_all_the_time() {
    const BULK_WANTED: u8 = 2;
    let besieged = Besieged::start().await;
    for message in [vec![BULK_WANTED], vec![0xff; 20], vec![0; 4096]] {
        let raw = RawPeer::connect(&besieged.node).await;
        let flood = async {
            while let Ok(mut send) = raw.connection.open_uni().await {
                let _ = send.write_all(&message).await;
            }
        };
        let (why, ()) = tokio::join!(raw.shown_the_door(), flood);
        assert!(why.contains("not understood"), "{why}");
    }
    let refused = besieged.refused();
    assert!(refused.messages >= 3 * 64 && refused.sessions == 3, "{refused:?}");
    besieged.serves_others().await;
}

#[tokio::test]
async fn floods_of_datagrams_over_a_session_hold_up_nobody_else() {
    let besieged = Besieged::start().await;
    let raw = RawPeer::connect(&besieged.node).await;
    for number in 0..20_000_u64 {
        let probe = [&[0], number.to_le_bytes().as_slice()].concat();
        for datagram in [probe, vec![number as u8; 100]] {
            raw.connection.send_datagram_wait(datagram.into()).await.unwrap();
        }
    }
    besieged.serves_others().await;
}

#[tokio::test]
async fn garbage_at_the_socket_is_nothing() {
    let besieged = Besieged::start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut drawn = 1_u64;
    let mut draw = || {
        // The generator of Knuth's MMIX.
        drawn = drawn
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (drawn >> 33) as usize
    };
    // First bytes of probes, of short and of long headers, and of anything.
    for first in [None, Some(0x40), Some(0x00), Some(0xc0), Some(0x80)] {
        for _ in 0..400 {
            let mut datagram: Vec<u8> = (0..=draw() % 1400).map(|_| draw() as u8).collect();
            if let Some(first) = first {
                datagram[0] = first;
            }
            let _ = socket.send_to(&datagram, address(&besieged.node));
        }
    }
    besieged.serves_others().await;
}

#[tokio::test]
async fn a_flood_of_handshakes_has_to_prove_its_addresses_and_holds_nobody_up() {
    const FLOOD: usize = 300;
    let besieged = Besieged::start().await;
    let begun = now();
    let mut sockets = Vec::new();
    for _ in 0..FLOOD {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let packet = first_packet(&besieged.node, begun);
        socket.send_to(&packet, address(&besieged.node)).unwrap();
        sockets.push(socket);
    }
    besieged.serves_others().await;
    besieged
        .counts("most were asked to", |refused| refused.handshakes_retried > 100)
        .await;
    besieged
        .counts("the others are given up", |refused| {
            refused.handshakes_failed >= 64
        })
        .await;
    besieged.serves_others().await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_not_written_to_for_ever() {
    let mut besieged = Besieged::start().await;
    besieged.node.echo(OPEN);
    let raw = RawPeer::connect(&besieged.node).await;
    let hello = framed(&Hello::new(None, &OPEN).to_bytes());
    let frame = framed(&[7; 4096]);
    let (mut written, mut unread) = (0, Vec::new());
    for _ in 0..8 {
        let (mut send, receive) = raw.connection.open_bi().await.unwrap();
        send.write_all(&[&[CONTROL], hello.as_slice()].concat())
            .await
            .unwrap();
        let stuck = Duration::from_millis(300);
        while let Ok(sent) = tokio::time::timeout(stuck, send.write_all(&frame)).await {
            sent.unwrap();
            written += frame.len();
        }
        unread.push((send, receive));
    }
    assert!(
        written < 32 << 20,
        "{written} bytes were taken from a peer that reads nothing"
    );
    besieged.serves_others().await;
}

#[tokio::test]
async fn bulk_lanes_are_for_those_with_a_session_and_carry_bulk_only() {
    let besieged = Besieged::start().await;
    let raw = RawPeer::connect(&besieged.node).await;
    let lane = raw.bulk_lane_of_a_stranger(&besieged.node).await;
    lane.closed().await;
    besieged
        .counts("the lane", |refused| refused.bulk_lanes == 1)
        .await;
    let lane = raw.bulk_lane(&besieged.node).await;
    let (mut send, mut receive) = lane.open_bi().await.unwrap();
    send.write_all(&[CONTROL]).await.unwrap();
    assert!(receive.read_to_end(100).await.is_err());
    besieged
        .counts("the stream", |refused| refused.streams == 1)
        .await;
    besieged.serves_others().await;
}

#[tokio::test]
async fn a_bulk_lane_is_closed_only_where_both_ends_have_no_use_for_it() {
    const BULK_WANTED: u8 = 2;
    const BULK_IDLE: u8 = 3;
    let mut besieged = Besieged::start().await;
    besieged.node.echo(OPEN);
    let keypair = Keypair::generate_ed25519();
    besieged.admit(keypair.public().to_peer_id());
    let raw = RawPeer::connect_as(keypair.clone(), &besieged.node).await;
    let lane = raw.bulk_lane(&besieged.node).await;
    let to_raw = keypair.public().to_peer_id();
    let opened = besieged.node.network.open(to_raw, kind(Class::Model), PATIENCE);
    let asked = async {
        // What the node opens over the lane, or asks for a lane with.
        let (channel, stream) = tokio::join!(opened, lane.accept_bi());
        (channel.unwrap(), stream.unwrap())
    };
    let (channel, stream) = tokio::time::timeout(PATIENCE, asked).await.unwrap();
    let idle = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        loop {
            ticks.tick().await;
            let mut send = raw.connection.open_uni().await.unwrap();
            send.write_all(&[BULK_IDLE]).await.unwrap();
        }
    };
    // It is in use, and quiet, for longer than what has just travelled counts.
    let mut wanted = 0;
    let answers = async {
        while wanted < 4 {
            let mut said = raw.connection.accept_uni().await.unwrap();
            if said.read_to_end(100).await.unwrap() == [BULK_WANTED] {
                wanted += 1;
            }
        }
    };
    tokio::select! {
        () = answers => (),
        () = idle => (),
        why = raw.is_alive() => panic!("the session has ended: {why}"),
        why = lane.closed() => panic!("the lane was closed: {why}"),
    }
    drop((channel, stream));
    let idle = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        loop {
            ticks.tick().await;
            let mut send = raw.connection.open_uni().await.unwrap();
            send.write_all(&[BULK_IDLE]).await.unwrap();
        }
    };
    let closed = tokio::time::timeout(PATIENCE, lane.closed());
    tokio::select! {
        closed = closed => drop(closed.unwrap()),
        () = idle => (),
        why = raw.is_alive() => panic!("the session has ended: {why}"),
    }
    besieged.serves_others().await;
}

#[tokio::test]
async fn messages_about_paths_that_are_none_are_counted_and_others_answered() {
    let besieged = Besieged::start().await;
    let keypair = Keypair::generate_ed25519();
    besieged.admit(keypair.public().to_peer_id());
    let raw = RawPeer::connect_as(keypair, &besieged.node).await;
    let (punch, witness) = (named("punch", Access::Members), named("witness", Access::Anyone));
    let places = named("where", Access::Members);
    for number in 0..50_u8 {
        for kind in [&punch, &witness, &places] {
            let _ = raw.exchange(said(kind, &[0xff, number, 0xff])).await;
        }
    }
    besieged.counts("each", |refused| refused.messages >= 150).await;
    let asked = encode(&besieged.friend.id());
    let answer = raw.exchange(said(&places, &asked)).await.unwrap();
    assert!(!answer.is_empty());
    besieged.serves_others().await;
}

#[tokio::test]
async fn one_peer_has_a_handful_of_connections() {
    let besieged = Besieged::start().await;
    let keypair = Keypair::generate_ed25519();
    let mut connections = Vec::new();
    for _ in 0..12 {
        connections.push(RawPeer::connect_as(keypair.clone(), &besieged.node).await);
    }
    besieged
        .counts("the others", |refused| refused.connections >= 4)
        .await;
    besieged.serves_others().await;
}

#[tokio::test]
async fn strangers_take_a_few_places_and_no_more() {
    const WITNESS: Kind = named("witness", Access::Anyone);
    let besieged = Besieged::start().await;
    let raw = RawPeer::connect(&besieged.node).await;
    let hello = framed(&Hello::new(None, &WITNESS).to_bytes());
    let mut silent = Vec::new();
    for _ in 0..12 {
        let (mut send, receive) = raw.connection.open_bi().await.unwrap();
        send.write_all(&[&[CONTROL], hello.as_slice()].concat())
            .await
            .unwrap();
        silent.push((send, receive));
    }
    besieged
        .counts("four too many", |refused| refused.channels >= 4)
        .await;
    let mut busy = 0;
    for (_, receive) in &mut silent {
        let mut answer = [0; 9];
        let answered = tokio::time::timeout(Duration::from_millis(50), receive.read_exact(&mut answer)).await;
        if answered.is_ok() {
            assert_eq!(refusal_in(&answer), Refusal::Busy);
            busy += 1;
        }
    }
    assert_eq!(busy, 4);
    besieged.serves_others().await;
}

#[tokio::test]
async fn a_punch_aimed_at_a_third_party_hits_nobody() {
    const PUNCH: Kind = named("punch", Access::Members);
    let besieged = Besieged::start().await;
    let keypair = Keypair::generate_ed25519();
    besieged.admit(keypair.public().to_peer_id());
    let raw = RawPeer::connect_as(keypair, &besieged.node).await;
    let victim = Victim::new();
    for attempt in 0..50 {
        let offer = PunchMessage::Offer {
            attempt,
            token: Token([attempt as u8; 16]),
            number: 0,
            presence: Presence {
                nat: NatType::default(),
                candidates: vec![victim.address(); 16],
                predicted: vec![victim.address(); 16],
                ports: None,
                to_relay: None,
            },
        };
        let _ = raw.exchange(said(&PUNCH, &offer.to_bytes())).await;
    }
    besieged
        .counts("the addresses", |refused| refused.punch_addresses >= 32)
        .await;
    besieged.serves_others().await;
    victim.was_left_alone();
}

#[tokio::test]
async fn a_witness_sends_to_nobody_but_the_asker() {
    const WITNESS: Kind = named("witness", Access::Anyone);
    let besieged = Besieged::start().await;
    let raw = RawPeer::connect(&besieged.node).await;
    let victim = Victim::new();
    for stance in [Stance::OtherPort, Stance::ThirdParty] {
        for number in 0..30 {
            let ask = WitnessMessage::Ask {
                token: Token([number; 16]),
                target: victim.address(),
                stance,
                avoid: Vec::new(),
            };
            let _ = raw.exchange(said(&WITNESS, &ask.to_bytes())).await;
        }
    }
    let forward = WitnessMessage::Forward {
        token: Token([99; 16]),
        target: victim.address(),
    };
    let _ = raw.exchange(said(&WITNESS, &forward.to_bytes())).await;
    besieged
        .counts("the questions", |refused| refused.witness_questions >= 30)
        .await;
    besieged.serves_others().await;
    victim.was_left_alone();
}

#[tokio::test]
async fn where_a_stranger_sees_a_node_counts_for_nothing_until_it_is_a_main() {
    const OBSERVED: u8 = 1;
    let besieged = Besieged::start().await;
    let keypair = Keypair::generate_ed25519();
    let stranger = keypair.public().to_peer_id();
    let raw = RawPeer::connect_as(keypair, &besieged.node).await;
    let seen = address(&besieged.node);
    let observed = || besieged.node.network.status().reach.observed;
    let story = async {
        let mut send = raw.connection.open_uni().await.unwrap();
        let message = [[OBSERVED].as_slice(), &encode(&seen)].concat();
        send.write_all(&message).await.unwrap();
        send.finish().unwrap();
        send.stopped().await.unwrap();
        besieged.serves_others().await;
        assert_eq!(observed(), []);
        let mains = Arc::new(HashSet::from([stranger]));
        besieged.node.gate.send_modify(|gate| gate.mains = mains);
        eventually("the word of a main counts", || observed() == [seen]).await;
    };
    tokio::select! {
        () = story => (),
        gone = raw.is_alive() => panic!("the session has ended: {gone}"),
    }
}

#[tokio::test]
async fn what_a_peer_says_at_the_end_steers_no_terminal() {
    let besieged = Besieged::start().await;
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    // A main is remembered when it is gone.
    let mains = Arc::new(HashSet::from([peer]));
    besieged.node.gate.send_modify(|gate| gate.mains = mains);
    let raw = RawPeer::connect_as(keypair, &besieged.node).await;
    let error = || {
        let peers = besieged.node.network.status().peers;
        peers.into_iter().find(|of| of.peer == peer)?.last_error
    };
    eventually("the session stands", || {
        besieged
            .node
            .network
            .status()
            .peers
            .iter()
            .any(|of| of.peer == peer)
    })
    .await;
    let words = [b"\x1b[2J so long\r\n".as_slice(), &[b'x'; 900]].concat();
    raw.connection.close(0_u32.into(), &words);
    eventually("the session has ended", || error().is_some()).await;
    let error = error().unwrap();
    assert!(error.contains("so long") && error.len() < 500, "{error:?}");
    assert!(!error.contains(char::is_control), "{error:?}");
}

#[tokio::test]
async fn strangers_get_no_reservation_and_no_circuit() {
    let besieged = Besieged::start().await;
    let member = Keypair::generate_ed25519();
    besieged.admit(member.public().to_peer_id());
    let mut reserved = client(&member);
    reserved.listen_on(besieged.circuit()).unwrap();
    assert!(is_granted(&mut reserved).await);
    let stranger = Keypair::generate_ed25519();
    let mut refused = client(&stranger);
    refused.listen_on(besieged.circuit()).unwrap();
    assert!(!is_granted(&mut refused).await);
    let to_member = besieged
        .circuit()
        .with(Protocol::P2p(member.public().to_peer_id()));
    refused.dial(to_member).unwrap();
    assert!(!is_connected(&mut refused, member.public().to_peer_id()).await);
    besieged.serves_others().await;
}

#[tokio::test]
async fn reservations_and_circuits_beyond_the_quota_are_counted() {
    let besieged = Besieged::start().await;
    let member = Keypair::generate_ed25519();
    besieged.admit(member.public().to_peer_id());
    let mut clients = Vec::new();
    for granted in [true, true, false] {
        let mut client = client(&member);
        client.listen_on(besieged.circuit()).unwrap();
        assert_eq!(is_granted(&mut client).await, granted);
        clients.push(client);
    }
    besieged
        .counts("the third", |refused| refused.reservations == 1)
        .await;
    let nobody = PeerId::random();
    clients[0]
        .dial(besieged.circuit().with(Protocol::P2p(nobody)))
        .unwrap();
    assert!(!is_connected(&mut clients[0], nobody).await);
    besieged
        .counts("the circuit", |refused| refused.circuits == 1)
        .await;
    besieged.serves_others().await;
}

/// A node that somebody means harm, and one that means none.
struct Besieged {
    node: Node,
    friend: Node,
}

impl Besieged {
    async fn start() -> Self {
        let (mut node, friend) = (Node::start().await, Node::start().await);
        befriend(&node, &friend);
        node.echo(kind(Class::Consensus));
        Self { node, friend }
    }

    /// Makes somebody a member, who means harm all the same.
    fn admit(&self, peer: PeerId) {
        self.node.admit(&[self.friend.id(), peer]);
    }

    /// Whether somebody else finds a connection and an answer.
    async fn serves_others(&self) {
        self.friend.network.disconnect(self.node.id()).await;
        let asked = self
            .friend
            .network
            .request(self.node.id(), kind(Class::Consensus), b"well?", PATIENCE);
        assert_eq!(asked.await.unwrap(), "well?");
    }

    fn refused(&self) -> Refused {
        self.node.network.status().refused
    }

    async fn counts(&self, what: &str, is_so: impl Fn(&Refused) -> bool) {
        let what = format!("{what}, of {:?} and more", self.refused());
        eventually(&what, || is_so(&self.refused())).await;
    }

    /// The way through its relay.
    fn circuit(&self) -> Multiaddr {
        self.node.network.listen_addrs()[0]
            .clone()
            .with(Protocol::P2p(self.node.id()))
            .with(Protocol::P2pCircuit)
    }
}

/// Somebody who has nothing to do with it.
struct Victim(UdpSocket);

impl Victim {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.66:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn was_left_alone(&self) {
        let received = self.0.recv_from(&mut [0; 1500]);
        assert_eq!(received.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// A node of another implementation, as far as we can tell.
fn client(keypair: &Keypair) -> Swarm<relay::client::Behaviour> {
    libp2p::SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_, relay| relay)
        .unwrap()
        .build()
}

async fn is_granted(client: &mut Swarm<relay::client::Behaviour>) -> bool {
    let asked = async {
        loop {
            match client.select_next_some().await {
                SwarmEvent::Behaviour(relay::client::Event::ReservationReqAccepted { .. }) => break true,
                SwarmEvent::ListenerClosed { .. } => break false,
                _ => (),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap()
}

async fn is_connected(client: &mut Swarm<relay::client::Behaviour>, peer: PeerId) -> bool {
    let asked = async {
        loop {
            match client.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } if peer_id == peer => break true,
                SwarmEvent::OutgoingConnectionError { .. } => break false,
                _ => (),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap()
}

const fn named(name: &'static str, access: Access) -> Kind {
    Kind {
        class: Class::Control,
        name,
        access,
        frame_max: ByteSize::kib(1),
    }
}

/// A channel with one frame.
fn said(kind: &Kind, body: &[u8]) -> Vec<u8> {
    [framed(&Hello::new(Some(CLUSTER), kind).to_bytes()), framed(body)].concat()
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes(), body].concat()
}

fn refusal_in(answer: &[u8]) -> Refusal {
    assert_eq!(answer[..4], u32::MAX.to_le_bytes());
    decode(&answer[8..]).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a test of real time")]
fn now() -> Instant {
    Instant::now()
}
