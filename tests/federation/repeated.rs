//! Callers that go before they have their answer, and ask again by the same id.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::backend::Backend;
use crate::calls::Edge;
use crate::world::{World, eventually, free_port};

/// Two mains, a caller at the one and the diary at the other.
async fn street() -> (World, Backend) {
    let mut world = World::new();
    let [a, b] = [(); 2].map(|()| free_port());
    let diary = Backend::start("bob");
    world.main("relay-a", a, &[b], &[]);
    world.main("relay-b", b, &[a], &[]);
    world.home("alice", &[a], &[]);
    world.home("bob", &[b], &[&diary.as_service("diary")]);
    world.up().await;
    world.until_offered("alice", "diary", &["bob"]).await;
    (world, diary)
}

fn named(id: &str, is_idempotent: bool) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": {
        "service_name": "diary", "method": "say", "args": [17], "message_id": id, "timeout": 10,
        "idempotent": is_idempotent } })
}

/// The same with a second's time.
fn impatient(id: &str) -> Value {
    let mut call = named(id, false);
    call["params"]["timeout"] = json!(1);
    call
}

/// Posts a request and goes no further: what comes back is for whoever has the connection.
async fn post(edge: &Edge, body: &Value) -> TcpStream {
    let body = body.to_string();
    let host = edge.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let length = body.len();
    let request = format!("POST /rpc HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_lost_the_answer_gets_the_same_one_when_it_asks_again() {
    let (world, diary) = street().await;
    let edge = world.edge("alice");
    let body = named("order-17", false);
    let stream = post(&edge, &body).await;
    diary.until_called(1).await;
    // The answer has come this far, and nobody reads it.
    stream.readable().await.unwrap();
    drop(stream);
    let (_, again) = edge.post(body.to_string()).await;
    assert_eq!(again["result"]["args"], json!([17]), "{again}");
    assert_eq!(edge.post(body.to_string()).await.1, again);
    assert_eq!(diary.calls(), 1, "it was carried out once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_call_goes_on_without_its_caller_who_gets_its_answer_when_it_asks_again() {
    let (world, diary) = street().await;
    let edge = world.edge("alice");
    diary.take(Duration::from_secs(1));
    let stream = post(&edge, &named("order-17", false)).await;
    diary.until_called(1).await;
    drop(stream);
    let (_, again) = edge.post(named("order-17", false).to_string()).await;
    assert_eq!(again["result"]["args"], json!([17]), "{again}");
    assert_eq!(edge.post(named("order-17", false).to_string()).await.1, again);
    assert_eq!(diary.calls(), 1, "it was carried out once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_call_that_has_taken_all_of_its_time_is_not_carried_out_again_unless_it_may_be() {
    let (world, diary) = street().await;
    let edge = world.edge("alice");
    diary.take(Duration::from_secs(3_600));
    let stream = post(&edge, &impatient("order-17")).await;
    diary.until_called(1).await;
    drop(stream);
    diary.take(Duration::ZERO);
    eventually("the call to be given up", async || {
        let (_, again) = edge.post(named("order-17", false).to_string()).await;
        match again["error"]["data"]["name"].as_str() {
            Some("duplicate_request") => Ok(()),
            _ => Err(again.to_string()),
        }
    })
    .await;
    assert_eq!(diary.calls(), 1, "it may have been carried out");
    let (_, again) = edge.post(named("order-17", true).to_string()).await;
    assert_eq!(again["result"]["args"], json!([17]), "{again}");
    assert_eq!(diary.calls(), 2);
}
