//! Frames travel: on every class, up to their longest length, many at once, in both directions.

use crate::nodes::{Node, PATIENCE, kind, two_members};
use lapwing_base::{ByteSize, CLASSES, Class};
use lapwing_net::{ChannelError, Kind, Refusal, RequestError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

#[tokio::test]
async fn requests_travel_on_every_class_in_both_directions() {
    let (mut a, mut b) = two_members().await;
    for class in CLASSES {
        a.echo(kind(class));
        b.echo(kind(class));
    }
    for class in CLASSES {
        let body = class.as_str().as_bytes();
        for (from, to) in [(&a, &b), (&b, &a)] {
            let answer = from
                .network
                .request(to.id(), kind(class), body, PATIENCE)
                .await
                .unwrap();
            assert_eq!(answer, body);
        }
    }
    let seen = a.peer(&b);
    assert!(seen.connected);
    for class in CLASSES {
        // Maintenance may also have carried a probe.
        assert!(seen.sent[class.index()] >= ByteSize(2 * class.as_str().len() as u64));
        assert!(seen.received[class.index()] >= ByteSize(2 * class.as_str().len() as u64));
    }
}

#[tokio::test]
async fn the_longest_frame_passes_and_a_longer_one_is_not_sent() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Model));
    let mut channel = a
        .network
        .open(b.id(), kind(Class::Model), PATIENCE)
        .await
        .unwrap();
    let longest = vec![1; 1 << 20];
    channel.send(&longest).await.unwrap();
    assert_eq!(channel.receive().await.unwrap().unwrap(), longest);
    let error = channel.send(&vec![1; (1 << 20) + 1]).await.unwrap_err();
    assert!(
        matches!(error, ChannelError::TooLong { size, .. } if size.0 == (1 << 20) + 1),
        "{error}"
    );
    channel.send(b"and goes on").await.unwrap();
    assert_eq!(channel.receive().await.unwrap().unwrap(), "and goes on");
    channel.send(b"").await.unwrap();
    assert_eq!(channel.receive().await.unwrap().unwrap(), "");
}

#[tokio::test]
async fn a_frame_that_the_receiver_finds_too_long_is_refused_with_its_limit() {
    let (a, mut b) = two_members().await;
    let narrow = Kind {
        frame_max: ByteSize::kib(1),
        ..kind(Class::Control)
    };
    b.echo(narrow);
    let error = a
        .network
        .request(b.id(), kind(Class::Control), &[0; 2048], PATIENCE)
        .await
        .unwrap_err();
    let expected = Refusal::TooLong {
        size: ByteSize::kib(2),
        max: ByteSize::kib(1),
    };
    assert_eq!(error.refusal(), Some(&expected), "{error}");
}

#[tokio::test]
async fn two_hundred_requests_at_once_are_all_answered() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    let mut requests = JoinSet::new();
    for number in 0..200_u32 {
        let (network, peer) = (a.network.clone(), b.id());
        requests.spawn(async move {
            let body = number.to_le_bytes();
            let answer = network.request(peer, kind(Class::Control), &body, PATIENCE).await;
            assert_eq!(answer.unwrap(), body.as_slice());
        });
    }
    while let Some(done) = requests.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn control_requests_are_answered_beside_a_long_transfer() {
    const FRAMES: usize = 20;
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    let mut inbound = b.network.serve(kind(Class::Model), 1);
    let mut transfer = JoinSet::new();
    let (network, peer) = (a.network.clone(), b.id());
    transfer.spawn(async move {
        let mut channel = network.open(peer, kind(Class::Model), PATIENCE).await.unwrap();
        let frame = vec![7; 1 << 20];
        for _ in 0..FRAMES {
            channel.send(&frame).await.unwrap();
        }
        channel.finish().await.unwrap();
        assert_eq!(channel.receive().await.unwrap().unwrap(), "whole");
    });
    transfer.spawn(async move {
        let mut channel = inbound.recv().await.unwrap();
        let mut received = 0;
        while let Some(frame) = channel.receive().await.unwrap() {
            assert!(frame.iter().all(|byte| *byte == 7));
            received += frame.len();
        }
        assert_eq!(received, FRAMES << 20);
        channel.send(b"whole").await.unwrap();
        channel.finish().await.unwrap();
    });
    let mut answered = 0;
    let mut slowest = Duration::ZERO;
    let requests = async {
        loop {
            let begun = now();
            a.network
                .request(b.id(), kind(Class::Control), b"now", PATIENCE)
                .await
                .unwrap();
            slowest = slowest.max(now().duration_since(begun));
            answered += 1;
        }
    };
    let transferred = async { while transfer.join_next().await.transpose().unwrap().is_some() {} };
    tokio::select! {
        () = requests => unreachable!("requests go on"),
        () = transferred => (),
    }
    assert!(
        answered > 3,
        "only {answered} requests were answered during the transfer"
    );
    assert!(slowest < Duration::from_secs(2), "a request took {slowest:?}");
}

#[tokio::test]
async fn halves_of_a_channel_work_at_the_same_time() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Call));
    let channel = a.network.open(b.id(), kind(Class::Call), PATIENCE).await.unwrap();
    let (mut send, mut receive) = channel.split();
    let sending = async {
        for number in 0..1000_u32 {
            send.send(&number.to_le_bytes()).await.unwrap();
        }
        send.finish().await.unwrap();
    };
    let receiving = async {
        let mut received = 0_u32;
        while let Some(frame) = receive.receive().await.unwrap() {
            assert_eq!(frame, received.to_le_bytes().as_slice());
            received += 1;
        }
        received
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(received, 1000);
}

#[tokio::test]
async fn a_receive_that_is_cancelled_loses_nothing() {
    let (a, mut b) = two_members().await;
    b.echo(kind(Class::Control));
    let mut channel = a
        .network
        .open(b.id(), kind(Class::Control), PATIENCE)
        .await
        .unwrap();
    for number in 0..100_u32 {
        channel.send(&[number as u8; 5000]).await.unwrap();
        // Gives up now and then before the frame is whole.
        let frame = loop {
            if let Ok(frame) = tokio::time::timeout(Duration::from_micros(50), channel.receive()).await {
                break frame;
            }
        };
        assert_eq!(frame.unwrap().unwrap(), [number as u8; 5000].as_slice());
    }
}

#[tokio::test]
async fn a_request_to_which_the_peer_says_nothing_has_no_answer() {
    let (a, b) = two_members().await;
    let mut inbound = b.network.serve(kind(Class::Control), 1);
    let request = a
        .network
        .request(b.id(), kind(Class::Control), b"hello?", PATIENCE);
    let dropping = async { drop(inbound.recv().await.unwrap()) };
    let (result, ()) = tokio::join!(request, dropping);
    assert!(
        matches!(
            result,
            Err(RequestError::NoAnswer { .. } | RequestError::Channel(ChannelError::Lost { .. }))
        ),
        "{result:?}"
    );
}

#[tokio::test]
async fn an_answer_that_never_comes_is_a_timeout() {
    let (a, b) = two_members().await;
    let _inbound = b.network.serve(kind(Class::Control), 1);
    let timeout = Duration::from_millis(300);
    let error = a
        .network
        .request(b.id(), kind(Class::Control), b"hello?", timeout)
        .await
        .unwrap_err();
    assert!(
        matches!(error, RequestError::Timeout { waited, .. } if waited == timeout),
        "{error}"
    );
}

#[tokio::test]
async fn serving_a_kind_again_replaces_the_older_queue() {
    let (a, mut b) = two_members().await;
    let mut older = b.network.serve(kind(Class::Control), 1);
    b.echo(kind(Class::Control));
    assert!(older.recv().await.is_none());
    let answer = a
        .network
        .request(b.id(), kind(Class::Control), b"who?", PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer, "who?");
}

#[tokio::test]
async fn a_node_opens_no_channel_to_itself() {
    let a = Node::start().await;
    let error = a
        .network
        .open(a.id(), kind(Class::Control), PATIENCE)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("itself"), "{error}");
}

#[expect(clippy::disallowed_methods, reason = "a test of real time")]
fn now() -> Instant {
    Instant::now()
}
