//! What a link carries, and when it is let go.

use crate::lane_peer::Relayed;
use crate::nodes::{Node, PATIENCE, eventually, kind};
use crate::raw_peer::RawPeer;
use lapwing_base::{Class, Keypair};
use quinn::Connection;
use std::time::Duration;

const CONTROL: u8 = Class::Control.index() as u8;

/// What libp2p's streams begin with: the length of the first line of multistream-select.
const MULTISTREAM: u8 = 19;

#[tokio::test]
async fn a_member_has_more_streams_than_a_stranger_whatever_they_are_for() {
    let node = Node::start().await;
    let keypair = Keypair::generate_ed25519();
    node.admit(&[keypair.public().to_peer_id()]);
    let raw = RawPeer::connect_as(keypair, &node).await;
    let opening = async {
        let mut streams = Vec::new();
        // As many as circuits through a relay; each says nothing more, and is given up seconds later.
        for _ in 0..100 {
            let (mut send, receive) = raw.connection.open_bi().await.unwrap();
            send.write_all(&[MULTISTREAM]).await.unwrap();
            streams.push((send, receive));
        }
    };
    tokio::time::timeout(PATIENCE, opening).await.unwrap();
}

#[tokio::test]
async fn of_several_bulk_lanes_the_last_counts_and_it_ends_with_its_session() {
    let node = Node::start().await;
    let raw = RawPeer::connect(&node).await;
    let first = raw.bulk_lane(&node).await;
    is_taken(&first).await;
    let second = raw.bulk_lane(&node).await;
    is_taken(&second).await;
    let why = tokio::time::timeout(PATIENCE, first.closed()).await.unwrap();
    assert!(why.to_string().contains("another one"), "{why}");
    assert!(second.close_reason().is_none());
    raw.connection.close(0_u32.into(), b"");
    let why = tokio::time::timeout(PATIENCE, second.closed()).await.unwrap();
    assert!(why.to_string().contains("session has ended"), "{why}");
}

#[tokio::test]
async fn who_wants_bulk_right_after_the_peer_was_asked_for_a_lane_has_it_asked_again() {
    const BULK_WANTED: [u8; 1] = [2];
    let node = Node::start().await;
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    node.admit(&[peer]);
    let raw = RawPeer::connect_as(keypair, &node).await;
    let asked = || async {
        loop {
            let mut told = raw.connection.accept_uni().await.unwrap();
            if told.read_to_end(128).await.unwrap() == BULK_WANTED {
                return now();
            }
        }
    };
    eventually("there is a session", || {
        node.network
            .status()
            .peers
            .iter()
            .any(|known| known.peer == peer && known.connected)
    })
    .await;
    let opening = || node.network.open(peer, kind(Class::Model), PATIENCE);
    let twice = async {
        let first = tokio::select! {
            at = asked() => at,
            _ = opening() => panic!("there is no lane"),
        };
        let second = tokio::select! {
            at = asked() => at,
            _ = opening() => panic!("there is no lane"),
        };
        second - first
    };
    let apart = tokio::time::timeout(PATIENCE, twice).await.unwrap();
    // Nobody asks by itself again before five seconds are over.
    assert!(
        apart > Duration::from_millis(900) && apart < Duration::from_secs(4),
        "{apart:?}"
    );
}

#[tokio::test]
async fn of_several_lanes_over_one_connection_one_is_taken() {
    let relayed = Relayed::start().await;
    let mut lanes = relayed.lanes(8).await;
    let mut standing = 0;
    for lane in &mut lanes.opened {
        lane.mux.ping(now());
        if lane.until(|mux| mux.rtt().is_some()).await {
            standing += 1;
        }
    }
    assert_eq!(standing, 1);
}

#[tokio::test]
async fn over_a_lane_a_stranger_has_as_few_channels_as_on_a_session() {
    let relayed = Relayed::start().await;
    let mut lanes = relayed.lanes(1).await;
    let lane = &mut lanes.opened[0];
    let channels: Vec<_> = (0..40).map(|_| lane.mux.open(Class::Call).unwrap()).collect();
    let refused = |mux: &lapwing_net::Mux| {
        let refused = channels.iter().filter(|channel| mux.has_left(**channel).is_err());
        refused.count()
    };
    assert!(lane.until(|mux| refused(mux) > 0).await);
    lane.mux.ping(now());
    assert!(lane.until(|mux| mux.rtt().is_some()).await);
    assert_eq!(refused(&lane.mux), 8);
}

#[tokio::test]
async fn a_peer_that_goes_on_with_nonsense_over_a_lane_loses_it() {
    let relayed = Relayed::start().await;
    let mut lanes = relayed.lanes(1).await;
    let lane = &mut lanes.opened[0];
    let stands = lane
        .until(|mux| {
            // As many at a time as it may have; each is over when the node has seen that it is nonsense.
            if mux.channels() == 0 {
                for _ in 0..16 {
                    let channel = mux.open(Class::Control).unwrap();
                    mux.write(channel, &[0xff; 100]).unwrap();
                    mux.release(channel);
                }
            }
            false
        })
        .await;
    assert!(!stands);
    let refused = || relayed.home.network.status().refused;
    eventually("it is counted", || refused().sessions == 1).await;
    assert!((64..4096).contains(&refused().streams), "{:?}", refused());
}

/// Waits until the node has given the lane to its session: then what is no bulk is turned away.
async fn is_taken(lane: &Connection) {
    let (mut send, mut receive) = lane.open_bi().await.unwrap();
    send.write_all(&[CONTROL]).await.unwrap();
    assert!(receive.read_to_end(100).await.is_err());
}

#[expect(clippy::disallowed_methods, reason = "a test of real time")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}
