//! How calls are spread over the instances of a service.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use lapwing_federation::{Algorithm, Backend, Balancing, CallError, ErrorCode, Invocation};
use tokio::sync::watch;

use crate::nodes::{Houses, Node, call, eventually};
use crate::{Never, Says};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_spread_by_its_own_algorithm_and_every_other_by_turns() {
    let named = "patient".parse().unwrap();
    let balancing = Balancing {
        services: [(named, Algorithm::LeastConnections)].into(),
        ..Balancing::default()
    };
    let houses = Houses::start_with(|config| config.balancing = balancing.clone()).await;
    for service in ["quick", "patient", "fair"] {
        houses.carol.offer(service, Arc::new(Says("carol")));
    }
    houses.alice.offer("quick", Arc::new(Says("alice")));
    let (never_of_patient, never_of_fair) = (Arc::new(Never::default()), Arc::new(Never::default()));
    houses.alice.offer("patient", Arc::clone(&never_of_patient) as _);
    houses.alice.offer("fair", Arc::clone(&never_of_fair) as _);
    eventually("the main knows both homes' services", || {
        ["quick", "patient", "fair"]
            .iter()
            .all(|service| houses.main_a.offers(service).len() == 2)
    })
    .await;
    let mut by_alice = 0;
    for _ in 0..10 {
        let said = houses.main_a.call(call("quick", "say", "[]")).await.outcome;
        by_alice += usize::from(said.unwrap() == "\"alice\"");
    }
    assert_eq!(by_alice, 5, "by turns");
    assert_eq!(
        answered_of_ten(&houses.main_a, "fair", &never_of_fair).await,
        5,
        "by turns, whoever has something to do already"
    );
    assert_eq!(
        answered_of_ten(&houses.main_a, "patient", &never_of_patient).await,
        9,
        "whoever has nothing to do"
    );
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_home_here_offers_goes_before_what_another_main_does_itself_until_it_is_gone() {
    let houses = Houses::start().await;
    for node in [&houses.alice, &houses.main_b] {
        node.offer("who", Arc::new(Says(node.name)));
    }
    eventually("the main knows both, each one link away", || {
        let known = houses.main_a.offers("who");
        known.len() == 2 && known.iter().all(|one| one.hops == Some(1))
    })
    .await;
    for _ in 0..10 {
        let answer = houses.main_a.call(call("who", "say", "[]")).await;
        assert_eq!(answer.outcome, Ok("\"alice\"".to_owned()));
    }
    assert!(houses.alice.withdraw("who"));
    eventually("alice's is gone", || houses.main_a.offers("who").len() == 1).await;
    let answer = houses.main_a.call(call("who", "say", "[]")).await;
    assert_eq!(answer.outcome, Ok("\"main-b\"".to_owned()));
    houses.stop().await;
}

/// Says that it can answer, or cannot.
struct Shop {
    is_open: watch::Sender<bool>,
}

impl Backend for Shop {
    fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        std::future::ready(Ok("true".to_owned())).boxed()
    }

    fn health(&self) -> Option<watch::Receiver<bool>> {
        Some(self.is_open.subscribe())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_says_that_it_cannot_answer_is_called_again_when_it_says_that_it_can() {
    let houses = Houses::start().await;
    let shop = Arc::new(Shop {
        is_open: watch::Sender::new(false),
    });
    houses.bob.offer("shop", Arc::clone(&shop) as Arc<dyn Backend>);
    houses.until_known("shop", 2).await;
    for is_open in [false, true, false, true] {
        shop.is_open.send_replace(is_open);
        eventually("the caller's main knows", || {
            houses.main_a.offers("shop")[0].service.is_healthy == is_open
        })
        .await;
        let answer = houses.alice.call(call("shop", "open", "[]")).await;
        let expected = if is_open {
            Ok(())
        } else {
            Err(ErrorCode::NoHealthyInstance)
        };
        let came = answer.outcome.map(|_| ()).map_err(|failure| failure.code);
        assert_eq!(came, expected);
    }
    houses.stop().await;
}

/// Ten calls, each begun once the one before was answered or has come to an instance that never answers: how many were.
async fn answered_of_ten(main: &Node, service: &str, never: &Never) -> usize {
    let (mut answered, mut waiting) = (0, Vec::new());
    for _ in 0..10 {
        let mut asked = main.call(call(service, "say", "[]")).boxed();
        let has_come = || never.waiting.load(Ordering::Relaxed) > waiting.len();
        tokio::select! {
            answer = &mut asked => {
                assert_eq!(answer.outcome, Ok("\"carol\"".to_owned()));
                answered += 1;
                continue;
            }
            () = eventually("it has come to whoever never answers", has_come) => {}
        }
        waiting.push(asked);
    }
    answered
}
