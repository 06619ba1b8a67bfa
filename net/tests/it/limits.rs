//! Rates: limits hold, what they must not hold up passes, and probes measure what there is.

use crate::nodes::{Node, PATIENCE, befriend, eventually, kind, limited};
use lapwing_base::{Bandwidth, ByteSize, Class};
use std::time::{Duration, Instant};

const LIMIT: Bandwidth = Bandwidth::mbit(8);

#[tokio::test]
async fn an_upload_limit_holds_and_control_does_not_wait_for_it() {
    let mut a = Node::with(limited(Some(LIMIT), None)).await.unwrap();
    let mut b = Node::start().await;
    befriend(&a, &b);
    a.echo(kind(Class::Control));
    b.echo(kind(Class::Control));
    measured(&a, &b).await;
    let begun = now();
    let transfer = transfer(&a, &b, 2 << 20);
    let control = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let begun = now();
            a.network
                .request(b.id(), kind(Class::Control), b"now", PATIENCE)
                .await
                .unwrap();
            slowest = slowest.max(begun.elapsed());
        }
        slowest
    };
    let ((), slowest) = tokio::join!(transfer, control);
    let speed = Bandwidth::per(ByteSize(2 << 20), begun.elapsed());
    assert!(within(speed, LIMIT, 0.2), "{speed}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

#[tokio::test]
async fn a_download_limit_holds() {
    let a = Node::start().await;
    let b = Node::with(limited(None, Some(LIMIT))).await.unwrap();
    befriend(&a, &b);
    // Up to a stream's window travels ahead of the reader, and arrives at the limit all the same.
    let begun = now();
    transfer(&a, &b, 2 << 20).await;
    let speed = Bandwidth::per(ByteSize(2 << 20), begun.elapsed());
    assert!(within(speed, LIMIT, 0.2), "{speed}");
}

#[tokio::test]
async fn the_probe_of_a_fresh_connection_measures_a_limited_uplink() {
    let a = Node::with(limited(Some(LIMIT), None)).await.unwrap();
    let b = Node::start().await;
    befriend(&a, &b);
    let speed = measured(&a, &b).await;
    assert!(within(speed, LIMIT, 0.3), "{speed}");
    let back = measured(&b, &a).await;
    assert!(
        back > Bandwidth::mbit(40),
        "the other direction has no limit: {back}"
    );
}

#[tokio::test]
async fn a_transfer_of_64_kib_counts_and_a_smaller_one_does_not() {
    let (a, b) = (Node::start().await, Node::start().await);
    a.network
        .record_transfer(b.id(), ByteSize::kib(63), Duration::from_secs(1));
    assert_eq!(a.network.measured(), []);
    a.network
        .record_transfer(b.id(), ByteSize::kib(64), Duration::from_secs(1));
    assert_eq!(a.network.measured(), [(b.id(), Bandwidth::kbit(524))]);
    assert_eq!(a.peer(&b).bandwidth, Some(Bandwidth::kbit(524)));
}

/// Connects, and waits for the probe.
async fn measured(from: &Node, to: &Node) -> Bandwidth {
    // Whether anybody serves it does not matter.
    drop(
        from.network
            .open(to.id(), kind(Class::Call), PATIENCE)
            .await
            .unwrap(),
    );
    let find = || {
        from.network
            .measured()
            .iter()
            .find(|(peer, _)| *peer == to.id())
            .copied()
    };
    eventually("the link is measured", || find().is_some()).await;
    find().unwrap().1
}

/// Sends so much in frames of 64 KiB and waits until the last has arrived.
async fn transfer(from: &Node, to: &Node, size: usize) {
    let mut inbound = to.network.serve(kind(Class::Model), 1);
    let sending = async {
        let mut channel = from
            .network
            .open(to.id(), kind(Class::Model), PATIENCE)
            .await
            .unwrap();
        for _ in 0..size >> 16 {
            channel.send(&[1; 1 << 16]).await.unwrap();
        }
        channel.finish().await.unwrap();
        assert_eq!(channel.receive().await.unwrap().unwrap(), "all");
    };
    let receiving = async {
        let mut channel = inbound.recv().await.unwrap();
        let mut received = 0;
        while let Some(frame) = channel.receive().await.unwrap() {
            received += frame.len();
        }
        assert_eq!(received, size);
        channel.send(b"all").await.unwrap();
        channel.finish().await.unwrap();
        channel
    };
    tokio::join!(sending, receiving);
}

fn within(speed: Bandwidth, expected: Bandwidth, tolerance: f64) -> bool {
    (speed.as_mbit_s() / expected.as_mbit_s() - 1.0).abs() <= tolerance
}

#[expect(clippy::disallowed_methods, reason = "a test of real time")]
fn now() -> Instant {
    Instant::now()
}
