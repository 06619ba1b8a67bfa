//! Services that answer over HTTP.

use std::future::IntoFuture as _;
use std::io;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use lapwing_federation::HttpBackend;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::http::Edge;
use crate::nodes::{Houses, call, eventually};

/// A service on loopback that answers every call with its method, and keeps the headers of those that came.
struct Service {
    url: String,
    came: Arc<Mutex<Vec<HeaderMap>>>,
    serving: JoinSet<io::Result<()>>,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/rpc", listener.local_addr().unwrap());
        let came: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
        let keeping = Arc::clone(&came);
        let answer = async move |headers: HeaderMap, body: String| {
            keeping.lock().unwrap().push(headers);
            let asked: Value = serde_json::from_str(&body).unwrap();
            json!({"jsonrpc": "2.0", "id": asked["id"], "result": asked["method"]}).to_string()
        };
        let router = Router::new().route("/rpc", post(answer));
        let mut serving = JoinSet::new();
        serving.spawn(axum::serve(listener, router).into_future());
        Self { url, came, serving }
    }

    async fn stop(mut self) {
        self.serving.shutdown().await;
    }
}

fn at(url: &str) -> Arc<HttpBackend> {
    Arc::new(HttpBackend::new(url).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_over_http_is_told_the_trace_of_a_call_and_no_baggage() {
    let houses = Houses::start().await;
    let service = Service::start().await;
    houses.bob.offer("blog", at(&service.url));
    houses.until_known("blog", 2).await;
    let edge = Edge::of(&houses.alice).await;
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "blog.list"});
    let response = edge
        .client
        .post(format!("{}/rpc", edge.url))
        .header("traceparent", format!("00-{trace_id}-b7ad6b7169203331-01"))
        .header("baggage", "account=17")
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    assert!(!response.headers().contains_key("baggage"));
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["result"], "list", "{answer}");
    let came = service.came.lock().unwrap().clone();
    let [headers] = &came[..] else {
        panic!("one call: {came:?}");
    };
    assert!(
        headers["traceparent"].to_str().unwrap().contains(trace_id),
        "{headers:?}"
    );
    assert!(!headers.contains_key("baggage"), "{headers:?}");
    edge.stop().await;
    houses.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_service_that_takes_no_connection_are_answered_by_its_other_instance() {
    let houses = Houses::start().await;
    let service = Service::start().await;
    let nowhere = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/rpc", listener.local_addr().unwrap())
    };
    // At the home that is nearer, and asked first.
    houses.carol.offer("blog", at(&nowhere));
    houses.bob.offer("blog", at(&service.url));
    eventually("main-a knows both", || houses.main_a.offers("blog").len() == 2).await;
    for _ in 0..10 {
        // None may be carried out twice, and none has been.
        let mut once = call("blog", "list", "[]");
        once.is_idempotent = false;
        let answer = houses.alice.call(once).await;
        assert_eq!(answer.outcome, Ok("\"list\"".to_owned()));
        assert_eq!(answer.hops[0].node, houses.bob.id());
    }
    assert_eq!(service.came.lock().unwrap().len(), 10);
    houses.stop().await;
    service.stop().await;
}
