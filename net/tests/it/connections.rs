//! Connections come and go: dialed on demand, one for each peer, noticed when dead, found again.

use crate::nodes::{Node, PATIENCE, befriend, config, eventually, kind, loopback, two_members};
use lapwing_base::{Class, Keypair, Multiaddr, PeerId};
use lapwing_net::{Access, ChannelError, Kind, NetworkConfig, OpenError, RequestError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

#[tokio::test]
async fn a_connection_is_dialed_on_demand_and_reused() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    assert!(a.network.status().peers.iter().all(|peer| !peer.connected));
    for _ in 0..10 {
        a.network
            .request(b.id(), kind(Class::Control), b"ping", PATIENCE)
            .await
            .unwrap();
    }
    let (seen, sees) = (a.peer(&b), b.peer(&a));
    assert!(seen.connected && sees.connected);
    assert_eq!(seen.address, Some(b.network.listen_addrs()[0].clone()));
    eventually("the round trip is measured", || {
        a.peer(&b)
            .link
            .is_some_and(|link| link.rtt.is_some_and(|rtt| !rtt.is_zero()))
    })
    .await;
    eventually("peers say where they see us", || {
        !a.network.status().reach.observed.is_empty()
    })
    .await;
}

#[tokio::test]
async fn when_both_sides_dial_at_once_both_keep_working_over_one_connection() {
    for _ in 0..3 {
        let (mut a, mut b) = two_members().await;
        a.echo(kind(Class::Control));
        b.echo(kind(Class::Control));
        let there = a.network.request(b.id(), kind(Class::Control), b"a", PATIENCE);
        let back = b.network.request(a.id(), kind(Class::Control), b"b", PATIENCE);
        let (there, back) = tokio::join!(there, back);
        assert_eq!((there.unwrap(), back.unwrap()), ("a".into(), "b".into()));
        let mut long = a
            .network
            .open(b.id(), kind(Class::Control), PATIENCE)
            .await
            .unwrap();
        long.send(b"whichever it is on").await.unwrap();
        assert!(long.receive().await.unwrap().is_some());
        drop(long);
        let counts = || (a.peer(&b).connections, b.peer(&a).connections);
        eventually("one connection is left", || counts() == (1, 1)).await;
        for (from, to) in [(&a, &b), (&b, &a)] {
            from.network
                .request(to.id(), kind(Class::Control), b"on", PATIENCE)
                .await
                .unwrap();
        }
        assert_eq!(counts(), (1, 1));
    }
}

#[tokio::test]
async fn a_peer_that_shuts_down_is_noticed_at_once() {
    // Strangers, so that no probe fills the sockets' buffers: of a full one the close frame is lost, and then the
    // silence tells.
    let (a, mut b) = (Node::start().await, Node::start().await);
    // A main is remembered.
    a.gate.send_replace(lapwing_net::Gate {
        mains: std::sync::Arc::new([b.id()].into()),
        ..lapwing_net::Gate::default()
    });
    a.learn(&b);
    let open = Kind {
        access: Access::Anyone,
        ..kind(Class::Control)
    };
    b.echo(open);
    let mut channel = a.network.open(b.id(), open, PATIENCE).await.unwrap();
    channel.send(b"here").await.unwrap();
    channel.receive().await.unwrap();
    let begun = now();
    b.tasks.shutdown().await;
    b.network.shutdown().await;
    assert!(!matches!(channel.receive().await, Ok(Some(_))));
    eventually("the connection is gone", || !a.peer(&b).connected).await;
    assert!(
        now().duration_since(begun) < Duration::from_secs(3),
        "{:?}",
        now().duration_since(begun)
    );
    assert!(a.peer(&b).last_error.is_some());
}

#[tokio::test]
async fn a_killed_peer_that_restarts_on_its_port_is_reached_again() {
    let mut a = Node::start().await;
    a.echo(kind(Class::Control));
    let keypair = Keypair::generate_ed25519();
    let (first, addr) = Victim::start(keypair.clone(), loopback(0), &a).await;
    let peer = keypair.public().to_peer_id();
    a.admit(&[peer]);
    a.network.learn(peer, vec![addr.clone()]);
    let mut channel = a
        .network
        .open(peer, kind(Class::Control), PATIENCE)
        .await
        .unwrap();
    channel.send(b"alive").await.unwrap();
    assert_eq!(channel.receive().await.unwrap().unwrap(), "alive");
    first.kill().await;

    let (second, same) = Victim::start(keypair, addr.clone(), &a).await;
    assert_eq!(same, addr);
    let begun = now();
    loop {
        let patience = Duration::from_millis(500);
        match a
            .network
            .request(peer, kind(Class::Control), b"again", patience)
            .await
        {
            Ok(answer) => break assert_eq!(answer, "again"),
            Err(RequestError::Channel(_) | RequestError::Timeout { .. } | RequestError::Open(_)) => (),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        now().duration_since(begun) < Duration::from_secs(4),
        "{:?}",
        now().duration_since(begun)
    );
    let lost = channel.receive().await.unwrap_err();
    assert!(matches!(lost, ChannelError::Lost { .. }), "{lost}");
    second.kill().await;
}

#[tokio::test]
async fn a_restarted_peer_that_calls_first_is_answered_over_its_new_connection() {
    let mut a = Node::start().await;
    a.echo(kind(Class::Control));
    let keypair = Keypair::generate_ed25519();
    let (first, addr) = Victim::start(keypair.clone(), loopback(0), &a).await;
    let peer = keypair.public().to_peer_id();
    a.admit(&[peer]);
    a.network.learn(peer, vec![addr.clone()]);
    a.network
        .request(peer, kind(Class::Control), b"1", PATIENCE)
        .await
        .unwrap();
    first.kill().await;
    let (second, _) = Victim::start(keypair, addr, &a).await;
    let begun = now();
    second.call_home().await;
    a.network
        .request(peer, kind(Class::Control), b"2", PATIENCE)
        .await
        .unwrap();
    assert!(
        now().duration_since(begun) < Duration::from_secs(2),
        "{:?}",
        now().duration_since(begun)
    );
    second.kill().await;
}

#[tokio::test]
async fn a_peer_that_is_disconnected_may_come_back() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    a.network
        .request(b.id(), kind(Class::Control), b"1", PATIENCE)
        .await
        .unwrap();
    a.network.disconnect(b.id()).await;
    assert!(!a.peer(&b).connected);
    a.network.disconnect(b.id()).await;
    a.network
        .request(b.id(), kind(Class::Control), b"2", PATIENCE)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_peer_without_an_address_is_not_waited_for() {
    let a = Node::start().await;
    let error = a
        .network
        .open(PeerId::random(), kind(Class::Control), PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::NoAddress { .. }), "{error}");
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_unreachable_in_time() {
    let (a, nobody) = (Node::start().await, PeerId::random());
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    a.network
        .learn(nobody, vec![loopback(silent.local_addr().unwrap().port())]);
    let begun = now();
    let patience = Duration::from_millis(300);
    let error = a
        .network
        .open(nobody, kind(Class::Control), patience)
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");
    assert!(now().duration_since(begun) < Duration::from_secs(2));
}

#[tokio::test]
async fn a_peer_that_nobody_waits_for_any_more_is_dialed_no_more() {
    let (a, nobody) = (Node::start().await, PeerId::random());
    let hangs_up = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = hangs_up.local_addr().unwrap().port();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}/tls/ws").parse().unwrap();
    a.network.learn(nobody, vec![address]);
    let open = a
        .network
        .open(nobody, kind(Class::Control), Duration::from_millis(300));
    let accept = async {
        loop {
            drop(hangs_up.accept().await);
        }
    };
    tokio::select! {
        opened = open => drop(opened.unwrap_err()),
        () = accept => (),
    }
    // The next dial would begin within a second.
    let dialed = tokio::time::timeout(Duration::from_secs(2), hangs_up.accept()).await;
    assert!(dialed.is_err(), "{dialed:?}");
}

#[tokio::test]
async fn another_node_at_the_address_is_named() {
    let (a, b) = (Node::start().await, Node::start().await);
    let expected = PeerId::random();
    a.network.learn(expected, b.network.listen_addrs());
    let error = a
        .network
        .open(expected, kind(Class::Control), Duration::from_secs(1))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, OpenError::Unreachable { .. }), "{text}");
    assert!(text.contains(&b.id().to_string()), "{text}");
}

#[tokio::test]
async fn an_open_waits_for_an_address_that_becomes_right() {
    let (a, mut b) = (Node::start().await, Node::start().await);
    befriend(&a, &b);
    b.echo(kind(Class::Control));
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    a.network
        .learn(b.id(), vec![loopback(silent.local_addr().unwrap().port())]);
    let request = a.network.request(b.id(), kind(Class::Control), b"late", PATIENCE);
    // The dial to where nobody answers takes three seconds; what is learned meanwhile does not wait for it.
    let correct = async { a.learn(&b) };
    let begun = now();
    let (answer, ()) = tokio::join!(request, correct);
    assert_eq!(answer.unwrap(), "late");
    assert!(
        now().duration_since(begun) < Duration::from_secs(2),
        "{:?}",
        now().duration_since(begun)
    );
}

/// A node in a runtime of its own, so that it can end as if killed: nothing of it runs again, no peer is told.
struct Victim {
    runtime: tokio::runtime::Runtime,
    node: std::sync::Arc<Node>,
    home: PeerId,
}

impl Victim {
    async fn start(keypair: Keypair, listen: Multiaddr, home: &Node) -> (Self, Multiaddr) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (started, node) = oneshot::channel();
        let (home_id, addrs) = (home.id(), home.network.listen_addrs());
        runtime.spawn(async move {
            let config = NetworkConfig {
                keypair,
                listen: vec![listen],
                ..config()
            };
            let mut node = Node::with(config).await.unwrap();
            node.admit(&[home_id]);
            node.network.learn(home_id, addrs);
            node.echo(kind(Class::Control));
            started.send(node).ok().unwrap();
        });
        let node = node.await.unwrap();
        let addr = node.network.listen_addrs()[0].clone();
        let victim = Self {
            runtime,
            node: std::sync::Arc::new(node),
            home: home_id,
        };
        (victim, addr)
    }

    async fn call_home(&self) {
        let (node, home) = (std::sync::Arc::clone(&self.node), self.home);
        let (called, done) = oneshot::channel();
        self.runtime.spawn(async move {
            let answer = node
                .network
                .request(home, kind(Class::Control), b"I am back", PATIENCE)
                .await;
            called.send(answer.is_ok()).unwrap();
        });
        assert!(done.await.unwrap());
    }

    async fn kill(self) {
        let Self { runtime, node, .. } = self;
        tokio::task::spawn_blocking(move || {
            runtime.shutdown_timeout(PATIENCE);
            drop(node);
        })
        .await
        .unwrap();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test of real time")]
fn now() -> Instant {
    Instant::now()
}
