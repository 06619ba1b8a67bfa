//! A main over whose link to another one more calls want to go than it takes at a time.

use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use lapwing_federation::{Backend, Call, CallAnswer, CallError, ErrorCode, Invocation};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::http::Edge;
use crate::nodes::{Houses, Node, PATIENCE, call, eventually};

/// Calls of one service that are under way to one neighbour: three times as many as are free then.
const PLACES: usize = 144;

/// And those of a second one, beside as many of the first.
const OTHER_PLACES: usize = 36;

/// Calls of one service that a node has in hand: as many as are free then.
const IN_HAND_MAX: usize = 1_000;

/// Calls that wait to go to one neighbour.
const WAITING_MAX: usize = 1_000;

/// Knows what has come, and answers as many calls as it is allowed to.
struct Door {
    came: Mutex<Vec<String>>,
    may_answer: Semaphore,
}

impl Door {
    fn closed() -> Arc<Self> {
        Arc::new(Self {
            came: Mutex::default(),
            may_answer: Semaphore::new(0),
        })
    }

    async fn until_came(&self, count: usize) {
        let what = format!("{count} calls have come");
        eventually(&what, || self.came.lock().unwrap().len() == count).await;
    }

    fn last(&self) -> String {
        self.came.lock().unwrap().last().unwrap().clone()
    }
}

impl Backend for Door {
    fn call(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        let came = invocation.arguments.unwrap_or_default();
        self.came.lock().unwrap().push(came);
        async move {
            self.may_answer.acquire().await.unwrap().forget();
            Ok("true".to_owned())
        }
        .boxed()
    }
}

/// Calls that are made and not awaited yet.
struct Made(JoinSet<CallAnswer>);

impl Made {
    fn make(&mut self, at: &Node, call: Call) {
        let federation = at.federation.clone();
        self.0.spawn(async move { federation.call(call).await });
    }

    async fn all_succeed(self) {
        let answers = tokio::time::timeout(PATIENCE, self.0.join_all()).await.unwrap();
        assert!(answers.iter().all(|answer| answer.outcome.is_ok()));
    }
}

/// Waits until a node has so many calls in hand.
async fn until_in_hand(edge: &Edge, count: usize) {
    let line = format!("lapwing_federation_calls_in_hand {count}");
    let has = tokio::time::timeout(PATIENCE, async {
        loop {
            let metrics = edge.client.get(format!("{}/metrics", edge.url)).send().await;
            if metrics
                .unwrap()
                .text()
                .await
                .unwrap()
                .lines()
                .any(|found| found == line)
            {
                break;
            }
        }
    });
    assert!(has.await.is_ok(), "not in time: {line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_calls_that_wait_at_a_main_the_most_urgent_goes_first_though_it_came_last() {
    let houses = Houses::start().await;
    let door = Door::closed();
    houses.bob.offer("door", Arc::clone(&door) as Arc<dyn Backend>);
    houses.until_known("door", 2).await;
    let edge = Edge::of(&houses.main_a).await;
    let mut made = Made(JoinSet::new());
    for _ in 0..PLACES {
        made.make(&houses.alice, call("door", "pass", "[]"));
    }
    door.until_came(PLACES).await;
    // Another home's, so that they wait at the main and not at the home.
    for (number, (name, priority)) in [("patient", -1), ("usual", 0), ("urgent", 7)]
        .into_iter()
        .enumerate()
    {
        let waiting = Call {
            priority,
            ..call("door", "pass", &format!("[\"{name}\"]"))
        };
        made.make(&houses.carol, waiting);
        until_in_hand(&edge, PLACES + number + 1).await;
    }
    for (number, name) in ["urgent", "usual", "patient"].into_iter().enumerate() {
        door.may_answer.add_permits(1);
        door.until_came(PLACES + number + 1).await;
        assert_eq!(door.last(), format!("[\"{name}\"]"));
    }
    door.may_answer.add_permits(PLACES);
    made.all_succeed().await;
    edge.stop().await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_which_a_main_has_no_place_is_refused_at_once_and_told_when_to_come_again() {
    let houses = Houses::start().await;
    let door = Door::closed();
    for service in ["door", "gate"] {
        houses.bob.offer(service, Arc::clone(&door) as Arc<dyn Backend>);
        houses.until_known(service, 2).await;
    }
    let edge = Edge::of(&houses.main_a).await;
    let refused = async |service: &str, said: &str| {
        let refused = houses.carol.call(call(service, "pass", "[]"));
        let refused = tokio::time::timeout(PATIENCE, refused).await.unwrap();
        let failure = refused.outcome.unwrap_err();
        assert_eq!(
            (failure.code, failure.failed_at),
            (ErrorCode::Overloaded, houses.main_a.id())
        );
        assert_eq!(failure.retry_after_ms, Some(100));
        assert!(failure.message.contains(said), "{}", failure.message);
    };
    let mut made = Made(JoinSet::new());
    for _ in 0..IN_HAND_MAX {
        made.make(&houses.main_a, call("door", "pass", "[]"));
    }
    until_in_hand(&edge, IN_HAND_MAX).await;
    door.until_came(PLACES).await;
    refused("door", "calls of service `door` in hand").await;
    // Of another service there may be some, until as many wait as may.
    let others = OTHER_PLACES + WAITING_MAX - (IN_HAND_MAX - PLACES);
    for _ in 0..others {
        made.make(&houses.main_a, call("gate", "pass", "[]"));
    }
    until_in_hand(&edge, IN_HAND_MAX + others).await;
    door.until_came(PLACES + OTHER_PLACES).await;
    refused("gate", "1000 calls wait").await;
    let came = door.came.lock().unwrap().len();
    assert_eq!(came, PLACES + OTHER_PLACES, "nobody was answered yet");
    door.may_answer.add_permits(IN_HAND_MAX + others + 1);
    made.all_succeed().await;
    let answer = houses.carol.call(call("gate", "pass", "[]")).await;
    assert_eq!(answer.outcome, Ok("true".to_owned()));
    edge.stop().await;
    houses.stop().await;
}
