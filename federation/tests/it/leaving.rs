//! What becomes of calls while nodes that were asked to end do, and where calls go that come again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use lapwing_federation::{Backend, CallError, Echo, ErrorCode, Headers, Invocation};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::nodes::{Houses, PATIENCE, call, eventually};

/// Answers, as long as it is asked to, once it may.
struct Gated {
    came: AtomicUsize,
    may_answer: Semaphore,
    bytes: usize,
}

impl Gated {
    fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            came: AtomicUsize::new(0),
            may_answer: Semaphore::new(0),
            bytes,
        })
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::Relaxed)
    }
}

impl Backend for Gated {
    fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        async move {
            self.came.fetch_add(1, Ordering::Relaxed);
            self.may_answer.acquire().await.unwrap().forget();
            Ok(format!("\"{}\"", "x".repeat(self.bytes)))
        }
        .boxed()
    }
}

/// Counts what it is asked.
#[derive(Default)]
struct Counts(AtomicUsize);

impl Backend for Counts {
    fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        async move { Ok(number.to_string()) }.boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_that_ends_lets_its_homes_go_first_and_no_call_is_lost() {
    let houses = Houses::start().await;
    let gated = Gated::new(100_000);
    houses.bob.offer("slow", Arc::clone(&gated) as _);
    houses.bob.offer("quick", Arc::new(Echo));
    houses.until_known("slow", 2).await;
    houses.until_known("quick", 2).await;
    let Houses {
        main_a,
        main_b,
        alice,
        carol,
        bob,
    } = houses;
    let b = main_b.id();
    let slow = async {
        let mut once = call("slow", "say", "[]");
        once.is_idempotent = false;
        alice.call(once).await.outcome
    };
    let others = async {
        eventually("the slow call is under way", || gated.came() == 1).await;
        let mut stopping = JoinSet::new();
        stopping.spawn(main_b.stop());
        let mut asked = 0;
        // Some after the home has gone elsewhere, too.
        let mut last = usize::MAX;
        while asked < last {
            let mut once = call("quick", "echo", "[1]");
            once.is_idempotent = false;
            let answer = alice.call(once).await;
            assert_eq!(answer.outcome, Ok("1".to_owned()), "call {asked}");
            asked += 1;
            if !bob.federation.neighbours().contains(&b) {
                last = last.min(asked + 50);
            }
        }
        gated.may_answer.add_permits(1);
        (asked, stopping)
    };
    let both = async { tokio::join!(slow, others) };
    let (slow, (asked, mut stopping)) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    assert_eq!(slow.map(|said| said.len()), Ok(100_002), "beside {asked} others");
    stopping.join_next().await.unwrap().unwrap();
    for node in [alice, carol, bob, main_a] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_has_no_other_main_does_not_keep_its_own_from_ending() {
    let houses = Houses::start().await;
    let Houses {
        main_a,
        main_b,
        alice,
        carol,
        bob,
    } = houses;
    bob.name_mains(&[&main_b]);
    let stopped = tokio::time::timeout(Duration::from_millis(1_500), main_b.stop()).await;
    assert!(stopped.is_ok(), "nobody is waited for");
    for node in [alice, carol, bob, main_a] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_to_the_other_instance_while_one_ends_at_this_main_or_at_another() {
    for is_far in [false, true] {
        let houses = Houses::start().await;
        houses.bob.offer("who", Arc::new(Echo));
        if is_far {
            houses.main_b.offer("who", Arc::new(Echo));
        } else {
            houses.carol.offer("who", Arc::new(Echo));
        }
        eventually("both are known", || houses.main_a.offers("who").len() == 2).await;
        let Houses {
            main_a,
            main_b,
            alice,
            carol,
            bob,
        } = houses;
        let (ends, stays) = if is_far { (bob, carol) } else { (carol, bob) };
        let stopping = async {
            ends.stop().await;
            stays
        };
        let calling = async {
            for number in 0..300 {
                let mut once = call("who", "echo", &format!("[{number}]"));
                once.is_idempotent = false;
                let answer = alice.call(once).await;
                assert_eq!(answer.outcome, Ok(number.to_string()), "far: {is_far}");
            }
        };
        let (stays, ()) = tokio::join!(stopping, calling);
        for node in [alice, stays, main_a, main_b] {
            node.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_may_be_made_again_is_by_the_next_main_of_its_home_when_the_first_dies() {
    let houses = Houses::start().await;
    let gated = Gated::new(1);
    houses.bob.offer("slow", Arc::clone(&gated) as _);
    houses.until_known("slow", 2).await;
    let Houses {
        main_a,
        main_b,
        alice,
        carol,
        bob,
    } = houses;
    let calls = async {
        let mut once = call("slow", "say", "[]");
        once.is_idempotent = false;
        let again = call("slow", "say", "[]");
        tokio::join!(alice.call(once), alice.call(again))
    };
    let killing = async {
        eventually("both are under way", || gated.came() == 2).await;
        main_a.kill().await;
        gated.may_answer.add_permits(3);
    };
    let ((once, again), ()) = tokio::join!(calls, killing);
    let failed = once.outcome.unwrap_err();
    assert_eq!(
        failed.code,
        ErrorCode::PeerUnreachable,
        "it may have been carried out"
    );
    assert_eq!(again.outcome, Ok("\"x\"".to_owned()));
    for node in [alice, carol, bob, main_b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_a_name_that_comes_again_is_carried_out_once_whichever_instances_there_are() {
    let houses = Houses::start().await;
    let [at_alice, at_carol] = [(); 2].map(|()| Arc::new(Counts::default()));
    houses.alice.offer("shop", Arc::clone(&at_alice) as _);
    houses.carol.offer("shop", Arc::clone(&at_carol) as _);
    eventually("both are known", || houses.main_a.offers("shop").len() == 2).await;
    let asked = async |name: usize| {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": {
            "service_name": "shop", "method": "buy", "message_id": format!("order-{name}") } });
        let edge = &houses.main_a.federation;
        let reply = edge
            .answer(body.to_string().as_bytes(), &Headers::default())
            .await;
        reply.body.unwrap()
    };
    for name in 0..20 {
        let first = asked(name).await;
        assert!(first.contains("result"), "{first}");
        assert_eq!(asked(name).await, first);
    }
    let carried_out = [&at_alice, &at_carol].map(|counts| counts.0.load(Ordering::Relaxed));
    assert_eq!(carried_out.iter().sum::<usize>(), 20, "{carried_out:?}");
    assert!(!carried_out.contains(&0), "both have some: {carried_out:?}");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_hangs_is_refused_at_once_what_is_too_much_and_others_are_called_as_ever() {
    let houses = Houses::start().await;
    let gated = Gated::new(1);
    houses.bob.offer("hangs", Arc::clone(&gated) as _);
    houses.bob.offer("quick", Arc::new(Echo));
    houses.until_known("hangs", 2).await;
    houses.until_known("quick", 2).await;
    let hung = join_all((0..1_500).map(|_| houses.main_a.call(call("hangs", "say", "[]"))));
    let others = async {
        eventually("as many have come as go over a link", || gated.came() == 144).await;
        let answer = houses.main_a.call(call("quick", "echo", "[1]")).await;
        assert_eq!(answer.outcome, Ok("1".to_owned()));
        let refused = houses.main_a.call(call("hangs", "say", "[]")).await;
        let failed = refused.outcome.unwrap_err();
        assert_eq!(failed.code, ErrorCode::Overloaded);
        assert!(failed.retry_after_ms.is_some());
        gated.may_answer.add_permits(2_000);
    };
    let (answers, ()) = tokio::join!(hung, others);
    let (answered, refused): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .map(|answer| answer.outcome)
        .partition(Result::is_ok);
    assert_eq!(answered.len(), 1_000, "a node's half");
    assert!(refused.iter().all(|outcome| {
        outcome
            .as_ref()
            .is_err_and(|failed| failed.code == ErrorCode::Overloaded)
    }));
    houses.stop().await;
}
