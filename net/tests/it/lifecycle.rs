//! A network starts whole or not at all, and leaves nothing behind.

use crate::nodes::{Node, PATIENCE, config, kind, loopback, two_members};
use futures::FutureExt as _;
use lapwing_base::{Class, Multiaddr};
use lapwing_net::{NetworkConfig, OpenError, StartError};

#[tokio::test]
async fn a_port_in_use_is_named() {
    let a = Node::start().await;
    let taken = a.network.listen_addrs()[0].clone();
    let error = start_at(vec![loopback(0), taken.clone()]).await.err().unwrap();
    assert!(
        matches!(&error, StartError::AddressInUse { address } if *address == taken),
        "{error:?}"
    );
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_port_bound() {
    let a = Node::start().await;
    let free = a.network.listen_addrs()[0].clone();
    a.network.shutdown().await;
    let b = Node::start().await;
    let taken = b.network.listen_addrs()[0].clone();
    let failed = start_at(vec![free.clone(), taken]).await;
    assert!(matches!(failed.err(), Some(StartError::AddressInUse { .. })));
    let again = start_at(vec![free]).await;
    assert!(again.is_ok(), "{:?}", again.err());
}

#[tokio::test]
async fn a_port_in_use_is_named_over_websocket_too() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let taken: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}/tls/ws").parse().unwrap();
    let error = start_at(vec![taken.clone()]).await.err().unwrap();
    assert!(
        matches!(&error, StartError::AddressInUse { address } if *address == taken),
        "{error:?}"
    );
    let foreign: Multiaddr = "/ip4/192.0.2.1/tcp/0/tls/ws".parse().unwrap();
    let error = start_at(vec![foreign.clone()]).await.err().unwrap();
    assert!(
        matches!(&error, StartError::NotHere { address } if *address == foreign),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_node_on_loopback_is_a_main_at_once_also_over_websocket_alone() {
    let listen = vec!["/ip4/127.0.0.1/tcp/0/tls/ws".parse().unwrap()];
    let config = NetworkConfig {
        listen,
        ..NetworkConfig::new(lapwing_base::Keypair::generate_ed25519())
    };
    let node = Node::with(config).await.unwrap();
    let mut reach = node.network.reach();
    let settled = reach.wait_for(|reach| !reach.standing.provisional);
    let reach = tokio::time::timeout(PATIENCE, settled).await.unwrap().unwrap();
    assert_eq!(reach.standing.role, lapwing_base::Role::Main);
    assert_eq!(reach.advertised, node.network.listen_addrs());
}

#[tokio::test]
async fn an_address_that_is_not_ours_is_named() {
    let foreign: Multiaddr = "/ip4/192.0.2.1/udp/0/quic-v1".parse().unwrap();
    let error = start_at(vec![foreign.clone()]).await.err().unwrap();
    assert!(
        matches!(&error, StartError::NotHere { address } if *address == foreign),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_address_of_another_kind_is_named() {
    let tcp: Multiaddr = "/ip4/127.0.0.1/tcp/0".parse().unwrap();
    let error = start_at(vec![tcp.clone()]).await.err().unwrap();
    assert!(
        matches!(&error, StartError::Unsupported { address } if *address == tcp),
        "{error:?}"
    );
    assert!(error.to_string().contains("quic-v1"), "{error}");
}

#[tokio::test]
async fn an_open_address_is_filled_in() {
    let a = Node::with(NetworkConfig::new(lapwing_base::Keypair::generate_ed25519()))
        .await
        .unwrap();
    let addrs = a.network.listen_addrs();
    assert!(!addrs.is_empty());
    for addr in &addrs {
        let text = addr.to_string();
        assert!(!text.contains("0.0.0.0") && !text.contains("/udp/0/"), "{text}");
        assert!(
            addrs.len() == 1 || !text.contains("127.0.0.1"),
            "loopback was not asked for: {addrs:?}"
        );
    }
}

#[tokio::test]
async fn a_network_that_was_shut_down_leaves_no_port_and_opens_nothing() {
    for _ in 0..3 {
        let (a, mut b) = two_members().await;
        b.echo(kind(Class::Control));
        a.network
            .request(b.id(), kind(Class::Control), b"busy", PATIENCE)
            .await
            .unwrap();
        let mut served = a.network.serve(kind(Class::Call), 1);
        let addr = a.network.listen_addrs();
        assert!(a.network.ended().now_or_never().is_none());
        a.network.shutdown().await;
        a.network.ended().await;
        let again = start_at(addr).await;
        assert!(again.is_ok(), "{:?}", again.err());
        assert!(served.recv().await.is_none());
        let error = a
            .network
            .open(b.id(), kind(Class::Control), PATIENCE)
            .await
            .unwrap_err();
        assert!(matches!(error, OpenError::Stopped), "{error}");
        a.network.disconnect(b.id()).await;
        a.network.shutdown().await;
    }
}

#[tokio::test]
async fn a_network_that_was_dropped_frees_its_port() {
    let a = Node::start().await;
    let addr = a.network.listen_addrs();
    drop(a);
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(5));
    let freed = async {
        while start_at(addr.clone()).await.is_err() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.unwrap();
}

#[tokio::test]
async fn a_node_that_only_dials_needs_no_address() {
    let (a, mut b) = (start_at(Vec::new()).await.unwrap(), Node::start().await);
    crate::nodes::befriend(&a, &b);
    b.echo(kind(Class::Control));
    assert_eq!(a.network.listen_addrs(), []);
    a.network
        .request(b.id(), kind(Class::Control), b"out", PATIENCE)
        .await
        .unwrap();
}

async fn start_at(listen: Vec<Multiaddr>) -> Result<Node, StartError> {
    Node::with(NetworkConfig { listen, ..config() }).await
}
