//! Calls that come more than once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{join, poll_immediate};
use futures::{FutureExt as _, future::BoxFuture};
use lapwing_federation::{Backend, Call, CallError, ErrorCode, Invocation};
use tokio::sync::Semaphore;

use crate::nodes::{Houses, call, eventually};

/// Counts how often it is asked, and answers once it may.
struct Counter {
    asked: AtomicUsize,
    dropped: AtomicUsize,
    may_answer: Semaphore,
    result: String,
}

impl Counter {
    fn new(result: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            asked: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
            may_answer: Semaphore::new(0),
            result: result.into(),
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Backend for Counter {
    fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let ends = Ends(Arc::clone(&self));
        async move {
            let _permit = self.may_answer.acquire().await.unwrap();
            std::mem::forget(ends);
            Ok(self.result.clone())
        }
        .boxed()
    }
}

/// Dropped where an execution is given up.
struct Ends(Arc<Counter>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

fn once() -> Call {
    let mut once = call("count", "up", "[]");
    once.is_idempotent = false;
    once
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_comes_twice_is_carried_out_once_and_both_are_answered() {
    let houses = Houses::start().await;
    let counter = Counter::new("7");
    houses
        .bob
        .offer("count", Arc::clone(&counter) as Arc<dyn Backend>);
    houses.until_known("count", 2).await;
    let once = once();
    let both = join(houses.alice.call(once.clone()), houses.alice.call(once.clone()));
    let allowed = eventually("the first has come", || counter.asked() > 0);
    let ((first, second), ()) = join(both, allowed.map(|()| counter.may_answer.add_permits(1))).await;
    let later = houses.alice.call(once.clone()).await;
    for answer in [first, second, later] {
        assert_eq!(answer.outcome, Ok("7".to_owned()));
    }
    assert_eq!(counter.asked(), 1);
    // What another node calls by the same id is another call, and another request of the same id is none.
    assert!(houses.carol.call(once.clone()).await.outcome.is_ok());
    assert_eq!(counter.asked(), 2);
    let mut other = once;
    other.arguments = Some("[2]".to_owned());
    let failure = houses.alice.call(other).await.outcome.unwrap_err();
    assert_eq!(failure.code, ErrorCode::DuplicateRequest);
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_as_long_as_one_waits_and_is_given_up_with_the_last() {
    let houses = Houses::start().await;
    let counter = Counter::new("7");
    houses
        .bob
        .offer("count", Arc::clone(&counter) as Arc<dyn Backend>);
    let call = once();
    let mut first = Box::pin(houses.bob.call(call.clone()));
    assert!(poll_immediate(&mut first).await.is_none());
    let mut second = Box::pin(houses.bob.call(call.clone()));
    assert!(poll_immediate(&mut second).await.is_none());
    drop(first);
    counter.may_answer.add_permits(1);
    assert_eq!(second.await.outcome, Ok("7".to_owned()));
    assert_eq!((counter.asked(), counter.dropped.load(Ordering::Relaxed)), (1, 0));

    counter.may_answer.forget_permits(1);
    let call = once();
    let mut only = Box::pin(houses.bob.call(call.clone()));
    assert!(poll_immediate(&mut only).await.is_none());
    drop(only);
    assert_eq!((counter.asked(), counter.dropped.load(Ordering::Relaxed)), (2, 1));
    // Nobody knows how far it had come.
    let failure = houses.bob.call(call.clone()).await.outcome.unwrap_err();
    assert_eq!(failure.code, ErrorCode::DuplicateRequest);
    counter.may_answer.add_permits(1);
    let again = Call {
        is_idempotent: true,
        ..call
    };
    assert_eq!(houses.bob.call(again).await.outcome, Ok("7".to_owned()));
    assert_eq!(counter.asked(), 3);
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_was_too_long_to_keep_is_carried_out_again_only_where_it_may_be() {
    let houses = Houses::start().await;
    let counter = Counter::new(format!("\"{}\"", "x".repeat(64 * 1024)));
    counter.may_answer.add_permits(1);
    houses
        .bob
        .offer("count", Arc::clone(&counter) as Arc<dyn Backend>);
    houses.until_known("count", 2).await;
    let call = once();
    assert!(houses.alice.call(call.clone()).await.outcome.is_ok());
    let failure = houses.alice.call(call.clone()).await.outcome.unwrap_err();
    assert_eq!(failure.code, ErrorCode::DuplicateRequest);
    assert_eq!(counter.asked(), 1);
    let again = Call {
        is_idempotent: true,
        ..call
    };
    assert!(houses.alice.call(again).await.outcome.is_ok());
    assert_eq!(counter.asked(), 2);
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_the_edge_repeats_a_call_safely_by_its_message_id() {
    let houses = Houses::start().await;
    let counter = Counter::new("1");
    counter.may_answer.add_permits(10);
    houses
        .bob
        .offer("count", Arc::clone(&counter) as Arc<dyn Backend>);
    houses.until_known("count", 2).await;
    let body = |args: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":7,"method":"remote_call","params":{{"service_name":"count","method":"up","args":{args},"message_id":"order-17"}}}}"#
        )
    };
    for _ in 0..3 {
        assert_eq!(houses.ask(&body("[]")).await["result"], 1);
    }
    assert_eq!(counter.asked(), 1, "the same name is the same call");
    let other = houses.ask(&body("[2]")).await;
    assert_eq!(other["error"]["data"]["name"], "duplicate_request", "{other}");
    houses.stop().await;
}
