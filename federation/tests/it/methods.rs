//! Services that are functions in Rust.

use std::sync::Arc;

use lapwing_federation::{ErrorCode, Methods, RemoteError, Service};

use crate::nodes::{Houses, call};

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
