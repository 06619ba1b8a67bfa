//! Whoever is not let in, and whose calls are not carried out, and what is written down of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use lapwing_base::Role;
use lapwing_federation::{
    AuditEvent, Backend, Boundary, CallError, Echo, ErrorCode, Exposure, Headers, Invocation, Policy,
    Service, Token,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::http::Edge;
use crate::nodes::{CLUSTER, ELSEWHERE, Houses, Node, PATIENCE, call, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_only_one_side_has_is_written_down_once_however_often_it_is_tried() {
    let (to, mut of_bridging) = mpsc::channel(100);
    let bridging = Node::start_with("bridging", Role::Main, |config| {
        config.audit = Some(to);
        config.policy = Policy {
            boundary: Boundary::Bridged([ELSEWHERE].into()),
            ..Policy::default()
        };
    })
    .await;
    let (to, mut of_strict) = mpsc::channel(100);
    let strict = Node::start_with("strict", Role::Main, |config| config.audit = Some(to)).await;
    strict.belong_elsewhere();
    bridging.name_mains(&[&strict]);
    strict.name_mains(&[&bridging]);
    let edge = Edge::of(&bridging).await;
    // The one that lets the other in has a session each time, which ends at once.
    edge.until("/federation/peers", |document| {
        document["peers"][0]["reconnects"].as_u64() >= Some(3)
    })
    .await;
    assert_eq!(strict.federation.neighbours(), []);
    let first = tokio::time::timeout(PATIENCE, async {
        (of_bridging.recv().await, of_strict.recv().await)
    });
    let (admitted, refused) = first.await.unwrap();
    assert!(
        matches!(&admitted, Some(AuditEvent::Admitted { peer, is_foreign: true, .. }) if *peer == strict.id()),
        "{admitted:?}"
    );
    assert!(
        matches!(&refused, Some(AuditEvent::Refused { peer, reason }) if *peer == bridging.id() && reason.contains("--bridge")),
        "{refused:?}"
    );
    let again = (of_bridging.try_recv().ok(), of_strict.try_recv().ok());
    assert_eq!(again, (None, None));
    edge.stop().await;
    bridging.stop().await;
    strict.stop().await;
}

/// Has always too much to do, and counts how often it has said so.
#[derive(Default)]
struct Busy(AtomicUsize);

impl Backend for Busy {
    fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let busy = CallError::new(ErrorCode::Overloaded, "the service has too much to do");
        std::future::ready(Err(busy)).boxed()
    }
}

const SECRET: &str = "what only some callers know";

/// Offers a service whose callers know the secret.
fn offer_guarded(node: &Node, service: &str, backend: Arc<dyn Backend>) {
    let exposure = Exposure {
        token: Some(Token::new(SECRET).unwrap()),
        ..Exposure::default()
    };
    let service = Service::new(service.parse().unwrap());
    node.federation.offer_to(service, backend, exposure).unwrap();
}

/// What Alice's edge answers to somebody who knows this.
async fn ask_knowing(houses: &Houses, token: Option<&str>, body: &Value) -> Value {
    let headers = Headers {
        token: token.map(|text| Token::new(text).unwrap()),
        ..Headers::default()
    };
    let federation = &houses.alice.federation;
    let reply = federation.answer(body.to_string().as_bytes(), &headers).await;
    serde_json::from_str(&reply.body.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_three_links_away_answers_who_knows_its_token_and_nobody_else() {
    let (to, mut written) = mpsc::channel(100);
    let houses = Houses::start_with(|config| config.audit = Some(to.clone())).await;
    offer_guarded(&houses.bob, "vault", Arc::new(Echo));
    houses.until_known("vault", 2).await;
    let open = json!({"jsonrpc": "2.0", "id": 1, "method": "vault.echo", "params": ["gold"]});
    let opened = ask_knowing(&houses, Some(SECRET), &open).await;
    assert_eq!(opened["result"], "gold", "{opened}");
    for (token, said) in [
        (Some("something else altogether"), "another token"),
        (None, "with a token only"),
    ] {
        let refused = ask_knowing(&houses, token, &open).await;
        let (error, data) = (&refused["error"], &refused["error"]["data"]);
        assert_eq!(
            (&error["code"], &data["name"], &data["retryable"]),
            (&json!(-32012), &json!("unauthenticated"), &json!(false)),
            "{refused}"
        );
        assert!(error["message"].as_str().unwrap().contains(said), "{refused}");
        assert_eq!(data["failed_at"], houses.bob.id().to_string());
        let way = [&houses.alice, &houses.main_a, &houses.main_b, &houses.bob];
        assert_eq!(data["path"], json!(way.map(|node| node.id().to_string())));
        let line = tokio::time::timeout(PATIENCE, async {
            loop {
                if let event @ AuditEvent::CallRefused { .. } = written.recv().await.unwrap() {
                    break event;
                }
            }
        });
        let AuditEvent::CallRefused {
            from,
            caller,
            service,
            reason,
        } = line.await.unwrap()
        else {
            panic!("another line");
        };
        assert_eq!(
            (from, caller, service.as_str()),
            (Some(houses.main_b.id()), Some(houses.alice.id()), "vault")
        );
        assert!(reason.contains(said), "{reason}");
    }
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_attempt_and_the_commands_of_a_request_know_the_token_of_the_caller() {
    let houses = Houses::start().await;
    let busy = Arc::new(Busy::default());
    offer_guarded(&houses.carol, "vault", Arc::clone(&busy) as _);
    offer_guarded(&houses.bob, "vault", Arc::new(Echo));
    offer_guarded(&houses.bob, "safe", Arc::new(Echo));
    eventually("main-a knows all", || {
        houses.main_a.offers("vault").len() == 2 && houses.main_a.offers("safe").len() == 1
    })
    .await;
    // Carol's is the nearer one, and is asked first.
    let open = json!({"jsonrpc": "2.0", "id": 1, "method": "vault.echo", "params": ["gold"]});
    let opened = ask_knowing(&houses, Some(SECRET), &open).await;
    assert_eq!(opened["result"], "gold", "{opened}");
    assert_eq!(busy.0.load(Ordering::Relaxed), 1, "it was let in there too");
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "request", "params": {"commands": [
        {"name": "first", "fun": "safe.echo", "args": ["gold"]},
        {"name": "second", "fun": "safe.echos", "args": ["first", "silver"]},
    ]}});
    let both = ask_knowing(&houses, Some(SECRET), &request).await;
    assert_eq!(both["result"]["second"], json!(["gold", "silver"]), "{both}");
    let neither = ask_knowing(&houses, None, &request).await;
    let data = &neither["error"]["data"];
    assert_eq!(
        (&data["name"], &data["command"]),
        (&json!("dependency_failed"), &json!("first")),
        "{neither}"
    );
    assert!(
        neither["error"]["message"]
            .as_str()
            .unwrap()
            .contains("with a token only"),
        "{neither}"
    );
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_of_another_cluster_that_calls_more_than_it_may_is_told_when_it_may_again() {
    const MOST: u32 = 3;
    let (to, mut written) = mpsc::channel(100);
    let host = Node::start_with("host", Role::Main, |config| {
        config.audit = Some(to);
        config.policy = Policy {
            boundary: Boundary::Bridged([ELSEWHERE].into()),
            foreign_calls_per_minute: Some(MOST),
            ..Policy::default()
        };
    })
    .await;
    let guest = Node::start_with("guest", Role::Main, |config| {
        config.policy.boundary = Boundary::Bridged([CLUSTER].into());
    })
    .await;
    let resident = Node::start("resident", Role::Home).await;
    guest.belong_elsewhere();
    host.offer("blog", Arc::new(Echo));
    host.name_mains(&[&guest]);
    guest.name_mains(&[&host]);
    resident.name_mains(&[&host]);
    eventually("both are there", || {
        guest.offers("blog").len() == 1 && host.federation.neighbours().contains(&resident.id())
    })
    .await;
    for number in 0..MOST {
        let answer = guest.call(call("blog", "echo", &format!("[{number}]"))).await;
        assert_eq!(answer.outcome, Ok(number.to_string()));
    }
    let failure = guest.call(call("blog", "echo", "[9]")).await.outcome.unwrap_err();
    assert_eq!(
        (failure.code, failure.failed_at),
        (ErrorCode::RateLimited, host.id())
    );
    let after = failure.retry_after_ms.unwrap();
    assert!((1..=60_000).contains(&after), "{after}");
    let line = tokio::time::timeout(PATIENCE, async {
        loop {
            if let AuditEvent::CallRefused { from, reason, .. } = written.recv().await.unwrap() {
                break (from, reason);
            }
        }
    });
    let (from, reason) = line.await.unwrap();
    assert_eq!(from, Some(guest.id()));
    assert!(reason.contains("3 calls a minute"), "{reason}");
    let mut of_a_home = resident.call(call("blog", "echo", "[1]")).await;
    for _ in 0..MOST {
        of_a_home = resident.call(call("blog", "echo", "[1]")).await;
    }
    assert_eq!(of_a_home.outcome, Ok("1".to_owned()), "whoever is of the cluster");
    for node in [resident, guest, host] {
        node.stop().await;
    }
}
