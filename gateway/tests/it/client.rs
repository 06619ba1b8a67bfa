//! The client when gateways die, return, or have forgotten everything.

use std::sync::Arc;
use std::time::Duration;

use lapwing_base::Keypair;
use lapwing_gateway::{ClientConfig, ClientError, ClusterState, Gateway, GatewayConfig, Registration};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{CLUSTER, Http, Node, config, dead_addr, start};

#[tokio::test]
async fn one_dead_gateway_of_two_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let node = Node::new(&[dead_addr(), gateway.local_addr()]);
    node.client.register(node.registration()).await.unwrap();
    let known = node.client.discover().await.unwrap();
    assert_eq!(known.nodes.len(), 1);
    assert!(!known.from_cache);
    node.client.leave().await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn every_gateway_is_told() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let gateways = [start(dirs[0].path()).await, start(dirs[1].path()).await];
    let node = Node::new(&gateways.each_ref().map(Gateway::local_addr));
    node.client.register(node.registration()).await.unwrap();
    for gateway in gateways {
        let polled = Http::new(gateway.local_addr())
            .get("/v1/nodes?since=0&wait=50s")
            .await;
        assert_eq!(polled.1["nodes"][0]["peer_id"], node.peer_id().to_string());
        gateway.stop().await;
    }
}

#[tokio::test]
async fn the_cache_answers_when_nobody_does_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(&dir.path().join("gateway")).await;
    let settings = ClientConfig {
        cache_file: Some(dir.path().join("node").join("gateway.json")),
        ..ClientConfig::default()
    };
    let keypair = Keypair::generate_ed25519();
    let node = Node::with(&[gateway.local_addr()], settings.clone(), keypair.clone());
    node.client.register(node.membership(3)).await.unwrap();
    node.client.discover().await.unwrap();
    gateway.stop().await;
    let known = node.client.discover().await.unwrap();
    assert!(known.from_cache);
    assert_eq!(known.leader.unwrap().peer_id, node.peer_id());
    // Writes the cache to its end, and fails to say goodbye to a gateway that is gone.
    node.client.shutdown().await;

    let reborn = Node::with(&node.gateways, settings.clone(), keypair.clone());
    let known = reborn.client.discover().await.unwrap();
    assert!(known.from_cache);
    assert_eq!((known.cluster_id, known.nodes.len()), (Some(CLUSTER), 1));
    let expired = ClientConfig {
        cache_ttl: Duration::ZERO,
        ..settings
    };
    let late = Node::with(&node.gateways, expired, keypair);
    let error = late.client.discover().await.unwrap_err();
    assert!(matches!(error, ClientError::NoAnswer { .. }), "{error}");
}

#[tokio::test]
async fn a_broken_cache_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.json");
    std::fs::write(&path, b"{\"learned_at\":").unwrap();
    let settings = ClientConfig {
        cache_file: Some(path),
        ..ClientConfig::default()
    };
    let node = Node::with(&[dead_addr()], settings, Keypair::generate_ed25519());
    assert!(node.client.discover().await.is_err());
}

#[tokio::test]
async fn a_change_is_told_at_once_and_a_gateway_that_forgot_is_told_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let settings = ClientConfig {
        heartbeat_interval: Some(Duration::from_millis(100)),
        ..ClientConfig::default()
    };
    let node = Node::with(&[gateway.local_addr()], settings, Keypair::generate_ed25519());
    let http = Http::new(gateway.local_addr());
    let (said, registrations) = watch::channel(node.registration());
    let stop = CancellationToken::new();
    let keep = Arc::clone(&node.client).keep_registered(registrations, stop.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(keep);

    let (_, polled) = http.get("/v1/nodes?since=0&wait=50s").await;
    let version = polled["version"].as_u64().unwrap();
    said.send_modify(|registration| registration.name = "bob".to_owned());
    let (_, polled) = http.get(&format!("/v1/nodes?since={version}&wait=50s")).await;
    assert_eq!(polled["nodes"][0]["name"], "bob");
    said.send_replace(Registration {
        name: "bob".to_owned(),
        ..node.membership(5)
    });
    let version = polled["version"].as_u64().unwrap();
    let (_, polled) = http.get(&format!("/v1/nodes?since={version}&wait=50s")).await;
    assert_eq!(polled["cluster"], "formed");
    gateway.stop().await;

    let empty = tempfile::tempdir().unwrap();
    let again = GatewayConfig {
        listen: node.gateways[0],
        ..config(empty.path())
    };
    let gateway = Gateway::start(again).await.unwrap();
    let (_, polled) = http.get("/v1/nodes?since=0&wait=50s").await;
    assert_eq!(polled["nodes"][0]["name"], "bob");
    assert_eq!(polled["cluster_id"], CLUSTER.to_string());
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn a_member_does_not_follow_a_gateway_with_a_new_history() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let gateway = start(first.path()).await;
    let node = Node::new(&[gateway.local_addr()]);
    node.client.register(node.membership(1)).await.unwrap();
    gateway.stop().await;
    let again = GatewayConfig {
        listen: node.gateways[0],
        ..config(second.path())
    };
    let gateway = Gateway::start(again).await.unwrap();
    let stranger = node.client.register(node.registration()).await.unwrap_err();
    assert!(matches!(stranger, ClientError::OtherLineage { .. }), "{stranger}");
    // As a member it tells the gateway of its cluster, and then they agree again.
    let answer = node.client.register(node.membership(1)).await.unwrap();
    assert_eq!(answer.cluster_id, Some(CLUSTER));
    gateway.stop().await;
}

#[tokio::test]
async fn a_later_life_of_the_same_identity_ends_the_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let (early, late) = {
        let node = Node::new(&[gateway.local_addr()]);
        let twin = node.at(gateway.local_addr());
        (node, twin)
    };
    let reborn = Registration {
        incarnation: 2,
        ..late.registration()
    };
    late.client.register(reborn).await.unwrap();
    let error = early.client.register(early.registration()).await.unwrap_err();
    assert!(matches!(error, ClientError::Outrun { known: 2, .. }), "{error}");
    gateway.stop().await;
}

#[tokio::test]
async fn other_programs_discover_stay_and_leave_in_three_calls() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    let node = Node::new(&[gateway.local_addr()]);
    let answer = node.client.discover_cluster(node.registration()).await.unwrap();
    assert_eq!(answer.cluster, ClusterState::None);
    let path = format!("/v1/nodes?since={}&wait=50s", answer.version);
    node.client
        .update(|registration| registration.name = "carol".to_owned());
    assert_eq!(http.get(&path).await.1["nodes"][0]["name"], "carol");
    node.client.shutdown().await;
    assert_eq!(http.get("/v1/nodes").await.1["nodes"][0]["status"], "leaving");
    gateway.stop().await;
}

#[tokio::test]
async fn something_else_on_the_address_is_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::new(&[listener.local_addr().unwrap()]);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
        stream.write_all(answer).await.unwrap();
    });
    let error = node.client.register(node.registration()).await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    tasks.join_next().await.unwrap().unwrap();
}
