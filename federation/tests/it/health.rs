//! A main that greets as others do and then does its part no longer, while its link stands.

use lapwing_base::{ByteSize, Class, Keypair, Role};
use lapwing_net::{Access, Channel, Gate, Kind, Network, NetworkConfig, encode};
use tokio::sync::watch;

use crate::http::Edge;
use crate::nodes::{CLUSTER, Node, PATIENCE, eventually};

/// As neighbours open it.
const ANNOUNCE: Kind = Kind {
    class: Class::Call,
    name: "announce",
    access: Access::Anyone,
    frame_max: ByteSize::mib(1),
};

/// What a frame of a session begins with.
const GREETING: u8 = 0;
const PROBE: u8 = 3;

/// Takes a session as a main does, and hears what comes until its other end has had enough; the first byte of each frame.
async fn hear(mut channel: Channel) -> Vec<u8> {
    let mut heard = Vec::new();
    while let Ok(Some(frame)) = channel.receive().await {
        heard.push(frame[0]);
        if heard == [GREETING] {
            // Its role, its cluster, and no proof of a token.
            let greeting = encode(&(GREETING, Role::Main, Some(CLUSTER), None::<()>));
            channel.send(&greeting).await.unwrap();
        }
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_that_greets_and_answers_no_probe_is_given_up_though_its_link_stands() {
    let node = Node::start("main-a", Role::Main).await;
    let (_gate, watched) = watch::channel(Gate::default());
    let config = NetworkConfig {
        listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
        role: Some(Role::Main),
        ..NetworkConfig::new(Keypair::generate_ed25519())
    };
    let silent = Network::start(config, watched).await.unwrap();
    let mut sessions = silent.serve(ANNOUNCE, 1);
    let edge = Edge::of(&node).await;
    node.name_main_at(silent.peer_id(), silent.listen_addrs());
    let session = tokio::time::timeout(PATIENCE, sessions.recv()).await;
    let hearing = tokio::time::timeout(PATIENCE, hear(session.unwrap().unwrap()));
    let is_up = || node.federation.neighbours().contains(&silent.peer_id());
    let up = eventually("it is let in, since it has greeted", is_up);
    // It is asked at once, has ten seconds, and is left then.
    let (heard, ()) = tokio::join!(hearing, up);
    let heard = heard.unwrap();
    assert_eq!(heard.first(), Some(&GREETING));
    assert_eq!(heard.last(), Some(&PROBE), "{heard:?}");
    eventually("it is no neighbour any more", || !is_up()).await;
    let peers = edge.get("/federation/peers").await;
    assert_eq!(peers["peers"][0]["healthy"], false, "{peers}");
    assert!(
        peers["peers"][0]["probe_ms"].is_null(),
        "it was never well: {peers}"
    );
    edge.stop().await;
    node.stop().await;
    silent.shutdown().await;
}
