//! Rates: limits hold, what they must not hold up passes, and probes measure what there is.

use crate::nodes::{Node, PATIENCE, befriend, config, eventually, kind, limited};
use lapwing_base::{Bandwidth, ByteSize, Class};
use lapwing_net::{NetworkConfig, Probes, RateLimits, TransferTiming, Transport};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const LIMIT: Bandwidth = Bandwidth::mbit(8);

#[tokio::test]
async fn an_upload_limit_holds_and_control_does_not_wait_for_it() {
    let mut a = Node::with(limited(RateLimits::of_node(LIMIT), RateLimits::default()))
        .await
        .unwrap();
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
            slowest = slowest.max(now().duration_since(begun));
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
    let b = Node::with(limited(RateLimits::default(), RateLimits::of_node(LIMIT)))
        .await
        .unwrap();
    befriend(&a, &b);
    holds(&a, &b).await;
}

#[tokio::test]
async fn a_class_keeps_to_its_limit_and_another_does_not_wait_for_it() {
    for [upload, download] in [[true, false], [false, true]] {
        let limits = |limited: bool| {
            let mut limits = RateLimits::default();
            if limited {
                limits.limit_class(Class::Model, LIMIT).unwrap();
            }
            limits
        };
        let a = Node::with(limited(limits(upload), RateLimits::default()))
            .await
            .unwrap();
        let b = Node::with(limited(RateLimits::default(), limits(download)))
            .await
            .unwrap();
        befriend(&a, &b);
        let free = async {
            let began = now();
            transfer(&a, &b, Class::Maintenance, SIZE).await;
            Bandwidth::per(ByteSize(SIZE as u64), now().duration_since(began))
        };
        let ((), free) = tokio::join!(holds(&a, &b), free);
        assert!(free.as_mbit_s() > 1.5 * LIMIT.as_mbit_s(), "{free}");
    }
}

#[tokio::test]
async fn a_peer_keeps_to_its_limit_and_another_does_not_wait_for_it() {
    let (slow, free) = (Node::start().await, Node::start().await);
    let limits = || RateLimits::default().with_peers([(slow.id(), LIMIT)]);
    let a = Node::with(limited(limits(), limits())).await.unwrap();
    for other in [&slow, &free] {
        a.learn(other);
        other.learn(&a);
        other.admit(&[a.id()]);
    }
    a.admit(&[slow.id(), free.id()]);
    let rate = async |from: &Node, to: &Node| {
        let began = now();
        transfer(from, to, Class::Model, SIZE).await;
        Bandwidth::per(ByteSize(SIZE as u64), now().duration_since(began))
    };
    holds(&a, &slow).await;
    let up = rate(&a, &free).await;
    holds(&slow, &a).await;
    let down = rate(&free, &a).await;
    for free in [up, down] {
        assert!(free.as_mbit_s() > 1.5 * LIMIT.as_mbit_s(), "{free}");
    }
    // From then on it may take what it likes.
    a.network.limit_peers(BTreeMap::new(), BTreeMap::new());
    let lifted = rate(&a, &slow).await;
    assert!(lifted.as_mbit_s() > 1.5 * LIMIT.as_mbit_s(), "{lifted}");
}

#[tokio::test]
async fn limits_hold_over_websocket_too() {
    for [upload, download] in [[true, false], [false, true]] {
        let limits = |limited: bool| {
            if limited {
                RateLimits::of_node(LIMIT)
            } else {
                RateLimits::default()
            }
        };
        // Nobody can dial it, so that there is one path only.
        let a = NetworkConfig {
            listen: Vec::new(),
            ..limited(limits(upload), RateLimits::default())
        };
        let a = Node::with(a).await.unwrap();
        let b = NetworkConfig {
            listen: vec!["/ip4/127.0.0.1/tcp/0/tls/ws".parse().unwrap()],
            download_max: limits(download),
            ..config()
        };
        let b = Node::with(b).await.unwrap();
        befriend(&a, &b);
        holds(&a, &b).await;
        let link = a.peer(&b).link.expect("it is connected");
        assert_eq!(link.transport, Transport::Wss);
    }
}

#[tokio::test]
async fn the_probe_of_a_fresh_connection_measures_a_limited_uplink() {
    // So slow that a busy machine's delays do not count.
    let slow = Bandwidth::mbit(1);
    let a = Node::with(limited(RateLimits::of_node(slow), RateLimits::default()))
        .await
        .unwrap();
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
    let second = Duration::from_secs(1);
    let timing = |counted| TransferTiming {
        counted,
        took: second,
        is_steady: true,
    };
    a.network.transfer_received(b.id(), timing(ByteSize::kib(63)));
    assert_eq!(a.network.status().peers, []);
    a.network.transfer_received(b.id(), timing(ByteSize::kib(64)));
    assert_eq!(a.peer(&b).download, Some(Bandwidth::kbit(524)));
    assert_eq!(a.peer(&b).bandwidth, None, "the other direction");
}

#[tokio::test]
async fn a_transfer_measures_the_link_for_both_ends_and_a_probe_only_where_there_is_none() {
    // Probes would measure a hundred times as much.
    let slow = Bandwidth::mbit(2);
    let a = Node::start().await;
    let b = Node::start().await;
    befriend(&a, &b);
    measured(&a, &b).await;
    assert!(a.peer(&b).bandwidth.unwrap().as_mbit_s() > 10.0);
    eventually("the probe has measured for both ends", || {
        b.peer(&a).download.is_some()
    })
    .await;
    transfer(&a, &b, Class::Model, SIZE).await;
    let before = a.peer(&b).bandwidth.unwrap();
    // Each counts half, so that of what loopback carries twenty of them leave a millionth.
    for _ in 0..20 {
        let size = ByteSize::mib(1);
        let timing = TransferTiming {
            counted: size,
            took: slow.time_for(size).unwrap(),
            is_steady: true,
        };
        b.network.transfer_received(a.id(), timing);
    }
    let seen = b.peer(&a).download.unwrap();
    assert!((2.0..3.0).contains(&seen.as_mbit_s()), "{seen}");
    // The first is told at once, and the rest within seconds would say no more.
    eventually("the sender has been told", || {
        a.peer(&b).bandwidth.unwrap() < before
    })
    .await;
    let told = a.peer(&b).bandwidth.unwrap().as_mbit_s();
    let halved = (before.as_mbit_s() + slow.as_mbit_s()) / 2.0;
    assert!((told / halved - 1.0).abs() < 0.01, "{told} {halved}");
}

#[tokio::test]
async fn probes_beside_a_transfer_do_not_make_the_link_look_slow() {
    let a = NetworkConfig {
        probe_interval: Duration::from_secs(1),
        ..limited(RateLimits::of_node(LIMIT), RateLimits::default())
    };
    let a = Node::with(a).await.unwrap();
    let (b, c) = (Node::start().await, Node::start().await);
    befriend_both(&a, [&b, &c]);
    let alone = measured(&a, &b).await;
    assert!(alone.as_mbit_s() > 0.8 * LIMIT.as_mbit_s(), "{alone}");
    // Six seconds, in which a probe is due again and again.
    for _ in 0..3 {
        transfer(&a, &c, Class::Model, SIZE).await;
    }
    let beside = a.peer(&b).bandwidth.unwrap();
    assert!(beside.as_mbit_s() > 0.8 * LIMIT.as_mbit_s(), "{beside}");
}

#[tokio::test]
async fn a_peer_that_sees_other_traffic_lets_no_probe_in_until_that_is_over() {
    let a = Node::with(limited(RateLimits::of_node(LIMIT), RateLimits::default()))
        .await
        .unwrap();
    let (b, c) = (Node::start().await, Node::start().await);
    befriend_both(&a, [&b, &c]);
    measured(&a, &c).await;
    let transferring = async {
        for _ in 0..2 {
            transfer(&a, &c, Class::Model, SIZE).await;
        }
        b.peer(&a).sent[Class::Maintenance.index()]
    };
    let under_way = || c.peer(&a).received[Class::Model.index()] > ByteSize::kib(256);
    let coming = async {
        eventually("the transfer is under way", under_way).await;
        measured(&b, &a).await
    };
    let (sent, _) = tokio::join!(transferring, coming);
    assert!(
        sent < Probes::SIZE_MIN,
        "{sent} of a probe went out beside the transfer"
    );
}

/// Lets a node and each of two others know each other.
fn befriend_both(node: &Node, others: [&Node; 2]) {
    for other in others {
        node.learn(other);
        other.learn(node);
        other.admit(&[node.id()]);
    }
    node.admit(&others.map(Node::id));
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
async fn transfer(from: &Node, to: &Node, class: Class, size: usize) {
    let mut inbound = to.network.serve(kind(class), 1);
    let sending = async {
        let mut channel = from.network.open(to.id(), kind(class), PATIENCE).await.unwrap();
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

/// Two seconds at [`LIMIT`].
const SIZE: usize = 2 << 20;

/// Transfers at [`LIMIT`], within a fifth. Where the machine cannot keep time, it is allowed to be as much slower as a
/// timer that is set for each slice in the same run.
async fn holds(from: &Node, to: &Node) {
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
        () = transfer(from, to, Class::Model, SIZE) => (),
        () = metronome => (),
    }
    let took = now().duration_since(begun);
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
