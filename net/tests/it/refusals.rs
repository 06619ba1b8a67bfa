//! What is not let in is told why, and what to do.

use crate::nodes::{CLUSTER, Node, PATIENCE, eventually, kind, two_members};
use crate::raw_peer::RawPeer;
use lapwing_base::{ByteSize, Class, ClusterId};
use lapwing_net::{Access, Gate, Hello, Kind, Refusal, RequestError, VERSION, decode, encode};
use std::sync::Arc;

const JOIN: Kind = Kind {
    class: Class::Control,
    name: "join",
    access: Access::Anyone,
    frame_max: ByteSize::kib(4),
};

#[tokio::test]
async fn a_member_of_another_cluster_is_told_which_one_this_is() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    a.gate
        .send_modify(|gate| gate.cluster = Some(ClusterId::from_bytes([8; 16])));
    let error = refused(&a, &b).await;
    assert_eq!(
        error.refusal(),
        Some(&Refusal::WrongCluster {
            theirs: Some(CLUSTER)
        })
    );
    let text = error.to_string();
    assert!(
        text.contains(&CLUSTER.to_string()) && text.contains(&b.id().to_string()),
        "{text}"
    );
    assert!(text.contains("control/test"), "{text}");
}

#[tokio::test]
async fn a_node_without_a_cluster_takes_no_members_yet() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    b.gate.send_replace(Gate::default());
    assert_eq!(
        refused(&a, &b).await.refusal(),
        Some(&Refusal::WrongCluster { theirs: None })
    );
}

#[tokio::test]
async fn a_stranger_is_told_to_join_and_may() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    b.echo(JOIN);
    b.admit(&[]);
    let error = refused(&a, &b).await;
    assert_eq!(error.refusal(), Some(&Refusal::NotMember));
    assert!(error.to_string().contains("join"), "{error}");
    let answer = a
        .network
        .request(b.id(), JOIN, b"let me in", PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer, "let me in");
}

#[tokio::test]
async fn membership_that_ends_is_noticed_at_the_next_channel() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    a.network
        .request(b.id(), kind(Class::Control), b"1", PATIENCE)
        .await
        .unwrap();
    b.gate.send_modify(|gate| gate.members = Arc::default());
    let (network, peer) = (&a.network, b.id());
    let mut refusal = None;
    while refusal.is_none() {
        // The driver may see the change a moment later.
        match network.request(peer, kind(Class::Control), b"2", PATIENCE).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => refusal = error.refusal().copied(),
        }
    }
    assert_eq!(refusal, Some(Refusal::NotMember));
}

#[tokio::test]
async fn a_kind_that_is_not_served_is_refused() {
    let (a, b) = two_members().await;
    assert_eq!(refused(&a, &b).await.refusal(), Some(&Refusal::NotServed));
    drop(b.network.serve(kind(Class::Control), 4));
    assert_eq!(
        refused(&a, &b).await.refusal(),
        Some(&Refusal::NotServed),
        "nobody receives any more"
    );
}

#[tokio::test]
async fn a_full_queue_is_busy_and_drops_nothing() {
    let (a, b) = two_members().await;
    let mut inbound = b.network.serve(kind(Class::Control), 2);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut channel = a
            .network
            .open(b.id(), kind(Class::Control), PATIENCE)
            .await
            .unwrap();
        channel.send(b"waits").await.unwrap();
        held.push(channel);
    }
    eventually("both wait in the queue", || inbound.len() == 2).await;
    let error = refused(&a, &b).await;
    assert_eq!(error.refusal(), Some(&Refusal::Busy));
    assert!(Refusal::Busy.is_transient());
    for mut channel in held {
        let mut accepted = inbound.recv().await.unwrap();
        assert_eq!(accepted.receive().await.unwrap().unwrap(), "waits");
        accepted.send(b"served").await.unwrap();
        assert_eq!(channel.receive().await.unwrap().unwrap(), "served");
    }
}

#[tokio::test]
async fn a_long_send_that_is_refused_says_why() {
    let (a, b) = two_members().await;
    let mut channel = a
        .network
        .open(b.id(), kind(Class::Model), PATIENCE)
        .await
        .unwrap();
    let frame = vec![0; 1 << 20];
    let error = loop {
        if let Err(error) = channel.send(&frame).await {
            break error;
        }
    };
    assert_eq!(error.refusal(), Some(&Refusal::NotServed), "{error}");
}

#[tokio::test]
async fn a_peer_of_another_version_is_told_ours() {
    let mut b = Node::start().await;
    b.echo(JOIN);
    let raw = RawPeer::connect(&b).await;
    let hello = Hello {
        version: VERSION + 1,
        ..Hello::new(None, &JOIN)
    };
    let answer = raw.exchange(framed(&hello.to_bytes())).await.unwrap();
    assert_eq!(refusal_in(&answer), Refusal::Version { theirs: VERSION });
}

#[tokio::test]
async fn garbage_ends_its_stream_and_nothing_else() {
    let mut b = Node::start().await;
    b.echo(JOIN);
    let raw = RawPeer::connect(&b).await;
    let announced_long = [u32::MAX - 1, 5, 6].map(u32::to_le_bytes).concat();
    let hello = framed(&Hello::new(None, &JOIN).to_bytes());
    let after_hello = |rest: &[u8]| [hello.as_slice(), rest].concat();
    for garbage in [
        vec![0xff; 4096],
        vec![0; 64],
        announced_long.clone(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        framed(&[VERSION as u8, 9, 9]),
        after_hello(&announced_long),
        after_hello(&[9, 0]),
        after_hello(&[0xff; 100]),
    ] {
        let answer = raw.exchange(garbage).await.unwrap_or_default();
        assert!(
            answer.is_empty() || answer.starts_with(&u32::MAX.to_le_bytes()),
            "{answer:?}"
        );
    }
    let answer = raw.exchange(after_hello(&framed(b"still there"))).await.unwrap();
    assert_eq!(answer, framed(b"still there"));
}

#[tokio::test]
async fn a_stream_of_an_unknown_class_is_not_taken() {
    let b = Node::start().await;
    let raw = RawPeer::connect(&b).await;
    for first in [5, 18, 20, 255] {
        assert!(raw.exchange_as(first, framed(b"hello")).await.is_err(), "{first}");
    }
}

#[tokio::test]
async fn bulk_outside_the_bulk_lane_is_not_taken() {
    let mut b = Node::start().await;
    b.echo(kind(Class::Model));
    let raw = RawPeer::connect(&b).await;
    let hello = framed(&Hello::new(None, &kind(Class::Model)).to_bytes());
    assert!(raw.exchange_as(Class::Model.index() as u8, hello).await.is_err());
}

#[tokio::test]
async fn a_bulk_lane_without_a_session_is_closed() {
    let b = Node::start().await;
    let raw = RawPeer::connect(&b).await;
    let lane = raw.bulk_lane_of_a_stranger(&b).await;
    let closed = tokio::time::timeout(PATIENCE, lane.closed()).await.unwrap();
    assert!(closed.to_string().contains("needs a session"), "{closed}");
}

#[test]
fn refusals_survive_the_wire() {
    for refusal in [
        Refusal::WrongCluster {
            theirs: Some(CLUSTER),
        },
        Refusal::NotMember,
        Refusal::Version { theirs: 9 },
        Refusal::TooLong {
            size: ByteSize(u64::MAX),
            max: ByteSize(1),
        },
        Refusal::Busy,
        Refusal::NotServed,
    ] {
        assert_eq!(decode(&encode(&refusal)), Ok(refusal));
    }
}

async fn refused(from: &Node, to: &Node) -> RequestError {
    let request = from
        .network
        .request(to.id(), kind(Class::Control), b"please", PATIENCE);
    request.await.unwrap_err()
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes(), body].concat()
}

fn refusal_in(answer: &[u8]) -> Refusal {
    assert_eq!(answer[..4], u32::MAX.to_le_bytes());
    decode(&answer[8..]).unwrap()
}
