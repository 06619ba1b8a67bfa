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
    let ((), slowest) = tokio::join!(holds(&a, &b), control);
    assert!(
        slowest < Duration::from_secs(1),
        "half of the transfer: {slowest:?}"
    );
}

#[tokio::test]
async fn a_download_limit_holds() {
    let a = Node::start().await;
    let b = Node::with(limited(None, Some(LIMIT))).await.unwrap();
    befriend(&a, &b);
    holds(&a, &b).await;
}

#[tokio::test]
async fn the_probe_of_a_fresh_connection_measures_a_limited_uplink() {
    // So slow that a busy machine's delays do not count.
    let slow = Bandwidth::mbit(1);
    let a = Node::with(limited(Some(slow), None)).await.unwrap();
    let b = Node::start().await;
    befriend(&a, &b);
    let speed = measured(&a, &b).await;
    assert!((0.7..=1.3).contains(&speed.as_mbit_s()), "{speed}");
    let back = measured(&b, &a).await;
    assert!(back > slow, "the other direction has no limit: {back}");
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

/// Transfers at [`LIMIT`], within a fifth. Where the machine cannot keep time, it is allowed to be as much slower as a
/// timer that is set for each slice in the same run.
async fn holds(from: &Node, to: &Node) {
    const SIZE: usize = 2 << 20;
    let slice = LIMIT.time_for(ByteSize::kib(16)).unwrap();
    let mut ticks = 0;
    let metronome = async {
        loop {
            tokio::time::sleep(slice).await;
            ticks += 1;
        }
    };
    let begun = now();
    tokio::select! {
        () = transfer(from, to, SIZE) => (),
        () = metronome => (),
    }
    let took = begun.elapsed();
    let share = Bandwidth::per(ByteSize(SIZE as u64), took).as_mbit_s() / LIMIT.as_mbit_s();
    let kept = (slice * ticks).as_secs_f64() / took.as_secs_f64();
    assert!(share <= 1.2, "{share} of the limit");
    assert!(
        share >= 0.8 * kept,
        "{share} of the limit, where timers kept {kept} of their time"
    );
}

#[expect(clippy::disallowed_methods, reason = "a test of real time")]
fn now() -> Instant {
    Instant::now()
}
