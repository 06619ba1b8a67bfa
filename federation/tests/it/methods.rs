//! Services that are functions in Rust.

use std::sync::Arc;

use lapwing_federation::{CallContext, ErrorCode, Methods, RemoteError, Service};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::nodes::{Houses, call, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_called_from_another_home_and_one_that_panics_fails_alone() {
    let houses = Houses::start().await;
    let methods = Methods::new()
        .method("add", |(a, b): (i64, i64)| async move { Ok(a + b) })
        .method("buy", |(what,): (String,)| async move {
            Err::<(), _>(RemoteError::new(17, format!("no {what}")))
        })
        .method("first", |all: Vec<i64>| async move { Ok(all[0]) });
    let mut service = Service::new("shop".parse().unwrap());
    service.methods = methods.names();
    houses.bob.federation.offer(service, Arc::new(methods)).unwrap();
    houses.until_known("shop", 2).await;
    let failure = async |method, arguments| {
        let answer = houses.alice.call(call("shop", method, arguments)).await;
        answer.outcome.unwrap_err()
    };
    assert_eq!(
        failure("buy", "[\"milk\"]").await.remote,
        Some(RemoteError::new(17, "no milk"))
    );
    assert_eq!(failure("sing", "[]").await.code, ErrorCode::MethodNotFound);
    assert_eq!(failure("add", "[1]").await.code, ErrorCode::InvalidParams);
    let broken = failure("first", "[]").await;
    assert_eq!(
        (broken.code, broken.failed_at),
        (ErrorCode::RemoteError, houses.bob.id())
    );
    let remote = broken.remote.unwrap();
    assert!(remote.fault && !remote.message.contains("index"), "{remote:?}");
    let answer = houses.alice.call(call("shop", "add", "[1,2]")).await;
    assert_eq!(answer.outcome, Ok("3".to_owned()));
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_is_told_who_calls_for_how_long_and_in_which_trace() {
    let houses = Houses::start().await;
    for node in [&houses.bob, &houses.main_b] {
        let methods = Methods::new().method_with_context("who", |context: CallContext, ()| async move {
            Ok(json!({
                "caller": context.caller.to_string(),
                "address": context.caller_address.as_ref().map(ToString::to_string),
                "remaining_ms": context.remaining().as_millis() as u64,
                "trace_id": context.trace_id(),
            }))
        });
        let mut service = Service::new(format!("of-{}", node.name).parse().unwrap());
        service.methods = methods.names();
        node.federation.offer(service, Arc::new(methods)).unwrap();
    }
    houses.until_known("of-bob", 2).await;
    houses.until_known("of-main-b", 1).await;
    let told = async |service: &str| -> Value {
        let mut asked = call(service, "who", "[]");
        asked.remaining_ms = 10_000;
        asked.trace.parent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".to_owned());
        houses.alice.call(asked).await.result().unwrap()
    };
    // A main knows what those are called that call, a home only who they are.
    for (service, address) in [("of-bob", None), ("of-main-b", Some("alice.home@main-a"))] {
        let told = told(service).await;
        assert_eq!(told["caller"], houses.alice.id().to_string());
        assert_eq!(told["address"], json!(address));
        assert_eq!(told["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        let remaining = told["remaining_ms"].as_u64().unwrap();
        assert!(
            remaining <= 9_500,
            "each node keeps a part for the way back: {remaining}"
        );
    }
    // This node itself, where the call was made at its own edge.
    let own = houses.bob.call(call("of-bob", "who", "[]")).await;
    let own: Value = own.result().unwrap();
    assert_eq!(own["caller"], houses.bob.id().to_string());
    assert_eq!(own["address"], format!("bob.home@{}", houses.main_b.id()));
    assert_eq!(own["trace_id"], Value::Null);
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_ends_before_its_node_does_and_nothing_new_begins() {
    let houses = Houses::start().await;
    let (begun, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let [begins, ends] = [&begun, &may_end].map(Arc::clone);
    let methods = Methods::new().method("work", move |()| {
        let (begins, ends) = (Arc::clone(&begins), Arc::clone(&ends));
        async move {
            begins.add_permits(1);
            let _may_end = ends.acquire().await;
            Ok("done")
        }
    });
    let mut service = Service::new("works".parse().unwrap());
    service.methods = methods.names();
    houses.bob.federation.offer(service, Arc::new(methods)).unwrap();
    houses.until_known("works", 2).await;
    let alice = houses.alice.federation.clone();
    let mut under_way = JoinSet::new();
    under_way.spawn(async move { alice.call(call("works", "work", "[]")).await });
    begun.acquire().await.unwrap().forget();
    let mut ending = JoinSet::new();
    ending.spawn(houses.bob.federation.clone().shutdown());
    eventually("the others to know that it goes", || {
        houses.main_a.offers("works").is_empty()
    })
    .await;
    let refused = houses.bob.call(call("works", "work", "[]")).await;
    assert_eq!(refused.outcome.unwrap_err().code, ErrorCode::NodeOffline);
    assert!(ending.try_join_next().is_none() && under_way.try_join_next().is_none());
    may_end.add_permits(1);
    let answers = under_way.join_all().await;
    assert_eq!(answers[0].outcome, Ok("\"done\"".to_owned()));
    ending.join_all().await;
    houses.stop().await;
}
