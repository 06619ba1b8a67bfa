//! The edge over HTTP of nodes that know each other.

use std::sync::Arc;

use lapwing_base::Role;
use lapwing_federation::{Echo, HttpConfig, Methods, Service, router, serve};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::nodes::{Houses, Node, PATIENCE, eventually};

/// A node's edge, served on loopback.
pub(crate) struct Edge {
    pub(crate) url: String,
    pub(crate) client: Client,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Edge {
    #[expect(
        clippy::disallowed_methods,
        reason = "the edge owns this task, and waits for it"
    )]
    pub(crate) async fn of(node: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = router(node.federation.clone(), HttpConfig::default());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, router, stop.clone()));
        // An error means that another test has done so before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().tls_certs_only([]).no_proxy();
        Self {
            url,
            client: client.build().unwrap(),
            stop,
            serving,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self.client.get(format!("{}{path}", self.url)).send().await;
        response.unwrap().json().await.unwrap()
    }

    /// The first document at a path of which something holds.
    pub(crate) async fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                let document = self.get(path).await;
                if holds(&document) {
                    break document;
                }
            }
        });
        found.await.unwrap()
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> Response {
        let url = format!("{}/rpc", self.url);
        self.client.post(url).body(body).send().await.unwrap()
    }

    /// The document that a request is answered with, over HTTP 200.
    async fn rpc(&self, body: Value) -> Value {
        let response = self.post(body.to_string()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        response.json().await.unwrap()
    }

    pub(crate) async fn stop(self) {
        // Connections that are kept for another request would be waited for.
        drop(self.client);
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_shows_its_homes_as_local_and_those_of_others_as_federated() {
    let houses = Houses::start().await;
    houses.alice.offer("alice-blog", Arc::new(Echo));
    houses.bob.offer("bob-shop", Arc::new(Echo));
    houses.until_known("alice-blog", 2).await;
    houses.until_known("bob-shop", 2).await;
    let mains = [
        (
            &houses.main_a,
            ("alice-blog", "alice.home@main-a"),
            ("bob-shop", "bob.home@main-b"),
        ),
        (
            &houses.main_b,
            ("bob-shop", "bob.home@main-b"),
            ("alice-blog", "alice.home@main-a"),
        ),
    ];
    for (main, own, others) in mains {
        let edge = Edge::of(main).await;
        // A home may have been with the other main first.
        let is_own = |local: &Value| names(local) == [own.0];
        let local = edge.until("/registry", is_own).await;
        assert_eq!(local["node_id"], main.id().to_string());
        let shown = &local["servers"][own.0];
        assert_eq!(
            (&shown["node_address"], &shown["is_local"]),
            (&json!(own.1), &json!(true))
        );
        let servers = edge.get("/registry/servers").await;
        assert_eq!(names(&servers), [own.0], "{servers}");
        let federated = edge.get("/federation/registry").await;
        assert_eq!(names(&federated), ["alice-blog", "bob-shop"], "{federated}");
        for ((name, address), is_local, hops) in [(own, true, 1), (others, false, 2)] {
            let service = &federated["servers"][name];
            assert_eq!(service["node_address"], address);
            assert_eq!(service["instances"].as_array().map(Vec::len), Some(1));
            assert_eq!(
                (&service["is_local"], &service["hops"]),
                (&json!(is_local), &json!(hops))
            );
        }
        edge.stop().await;
    }
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_comes_in_parts_that_together_have_everything_once() {
    let houses = Houses::start().await;
    for node in [&houses.alice, &houses.carol, &houses.bob] {
        node.offer("who", Arc::new(Echo));
    }
    eventually("main-a knows all three", || {
        houses.main_a.offers("who").len() == 3
    })
    .await;
    let edge = Edge::of(&houses.main_a).await;
    let mut addresses = Vec::new();
    let mut path = "/federation/registry?limit=1".to_owned();
    loop {
        let part = edge.get(&path).await;
        let instances = part["servers"]["who"]["instances"].as_array().unwrap();
        addresses.extend(
            instances
                .iter()
                .map(|one| one["node_address"].as_str().unwrap().to_owned()),
        );
        let Some(token) = part["next_page_token"].as_str() else {
            break;
        };
        path = format!("/federation/registry?limit=1&page_token={token}");
    }
    addresses.sort();
    assert_eq!(
        addresses,
        ["alice.home@main-a", "bob.home@main-b", "carol.home@main-a"]
    );
    edge.stop().await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_says_how_the_federation_is_and_whom_it_is_connected_with() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let edge = Edge::of(&houses.main_a).await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "blog.echo", "params": [1]});
    assert_eq!(edge.rpc(call).await["result"], 1);
    // A home may have been with the other main first.
    let health = edge
        .until("/federation/health", |health| health["connected_homes"] == 2)
        .await;
    for (name, expected) in [
        ("status", json!("healthy")),
        ("connected_peers", json!(1)),
        ("total_services", json!(1)),
        ("failed_services", json!(0)),
    ] {
        assert_eq!(health[name], expected, "{name}");
    }
    let latency = health["average_latency"].as_str().unwrap();
    let millis: f64 = latency.strip_suffix("ms").unwrap().parse().unwrap();
    assert!(millis > 0.0, "{latency}");
    let peers = edge.get("/federation/peers").await;
    let peer = &peers["peers"][0];
    assert_eq!(peer["node_id"], houses.main_b.id().to_string());
    assert_eq!(
        (&peer["node_address"], &peer["healthy"]),
        (&json!("main-b.main"), &json!(true))
    );
    assert!(peer["reconnects"].is_u64(), "{peer}");
    assert!(
        peer["last_seen"].is_string() && peer["address"].is_string(),
        "{peer}"
    );
    let at_home = Edge::of(&houses.alice).await;
    let uplink = &at_home.get("/federation/peers").await["peers"];
    let uplinks = uplink
        .as_array()
        .unwrap()
        .iter()
        .filter(|peer| peer["is_uplink"] == true);
    assert_eq!(uplinks.count(), 1);
    assert_eq!(at_home.get("/health").await["status"], "healthy");
    let text = edge
        .client
        .get(format!("{}/metrics", edge.url))
        .send()
        .await
        .unwrap();
    assert_eq!(
        text.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = text.text().await.unwrap();
    let peer = houses.main_b.id();
    for line in [
        "lapwing_federation_sessions{role=\"home\"} 2".to_owned(),
        "lapwing_federation_instances{scope=\"federated\"} 1".to_owned(),
        format!("lapwing_federation_peer_healthy{{peer=\"{peer}\",name=\"main-b.main\"}} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    at_home.stop().await;
    edge.stop().await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_that_has_gone_is_shown_as_gone_and_the_federation_as_degraded() {
    let mut houses = Houses::start().await;
    let edge = Edge::of(&houses.main_a).await;
    let b = houses.main_b.id().to_string();
    let stops = std::mem::replace(&mut houses.main_b, Node::start("main-b", Role::Main).await);
    stops.stop().await;
    eventually("main-a has lost it", || {
        !houses
            .main_a
            .federation
            .neighbours()
            .iter()
            .any(|peer| peer.to_string() == b)
    })
    .await;
    let peers = edge.get("/federation/peers").await;
    assert_eq!(
        (&peers["peers"][0]["node_id"], &peers["peers"][0]["healthy"]),
        (&json!(b), &json!(false))
    );
    assert!(peers["peers"][0]["last_seen"].is_string());
    assert_eq!(edge.get("/federation/health").await["status"], "degraded");
    edge.stop().await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_those_that_clients_of_the_peer_to_peer_edge_know() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let edge = Edge::of(&houses.alice).await;
    for (body, status, code) in [
        ("{", 400, -32700),
        (r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, 400, -32600),
        (r#"{"jsonrpc":"2.0","id":1}"#, 400, -32600),
        ("[]", 400, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"unknown"}"#, 200, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"none.echo"}"#, 200, -32001),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"remote_call","params":{"node_id":"nobody.home","server_name":"blog","method":"echo"}}"#,
            200,
            -32002,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"remote_call","params":{"node_id":"","server_name":"s","method":"m"}}"#,
            200,
            -32602,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"remote_call","params":{"node_id":"bob","method":"m"}}"#,
            200,
            -32602,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"remote_call","params":{"node_id":"bob","server_name":"s"}}"#,
            200,
            -32602,
        ),
    ] {
        let response = edge.post(body).await;
        assert_eq!(response.status(), status, "{body}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["error"]["code"], code, "{body}: {answer}");
        assert!(answer.get("result").is_none());
    }
    let long = edge.post("x".repeat((1 << 20) + 1)).await;
    assert_eq!(long.status(), 413);
    assert_eq!(long.json::<Value>().await.unwrap()["error"]["code"], -32014);
    for (method, status) in [(Method::GET, 405), (Method::OPTIONS, 200)] {
        let url = format!("{}/rpc", edge.url);
        let response = edge.client.request(method, url).send().await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(
            response.headers()["access-control-allow-methods"],
            "POST, GET, OPTIONS"
        );
    }
    edge.stop().await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_http_shows_its_way_and_a_notification_has_no_answer() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let edge = Edge::of(&houses.alice).await;
    let params = json!({"service_name": "blog", "method": "echo", "args": ["hi"], "trace": true});
    let call = json!({"jsonrpc": "2.0", "id": "a", "method": "remote_call", "params": params});
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let response = edge
        .client
        .post(format!("{}/rpc", edge.url))
        .header("traceparent", format!("00-{trace_id}-b7ad6b7169203331-01"))
        .header("tracestate", "a=1")
        .header("tracestate", "b=2")
        .header("x-request-id", "mine-7")
        .body(call.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-7");
    assert_eq!(response.headers()["tracestate"], "a=1,b=2");
    assert_eq!(response.headers()["content-type"], "application/json");
    let continued = response.headers()["traceparent"]
        .to_str()
        .unwrap()
        .contains(trace_id);
    assert!(continued);
    let answer: Value = response.json().await.unwrap();
    assert_eq!((&answer["id"], &answer["result"]), (&json!("a"), &json!("hi")));
    assert_eq!(
        (&answer["trace"]["hops"], &answer["trace"]["trace_id"]),
        (&json!(3), &json!(trace_id))
    );
    let mut named = call.clone();
    named["params"]["message_id"] = json!("order-17");
    let request = edge
        .client
        .post(format!("{}/rpc", edge.url))
        .header("x-request-id", "mine-8");
    let response = request.body(named.to_string()).send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "order-17");
    assert!(!response.headers().contains_key("tracestate"));
    let way: Vec<_> = answer["trace"]["path"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hop| &hop["node"])
        .collect();
    let nodes = [&houses.alice, &houses.main_a, &houses.main_b, &houses.bob];
    assert_eq!(way, nodes.map(|node| json!(node.id().to_string())).each_ref());
    let batch = json!([
        {"jsonrpc": "2.0", "id": 1, "method": "blog.echo", "params": [1]},
        {"jsonrpc": "2.0", "method": "blog.echo", "params": [2]},
        {"jsonrpc": "2.0", "id": 3, "method": "none.echo"},
    ]);
    let answers = edge.rpc(batch).await;
    assert_eq!(answers.as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&answers[0]["result"], &answers[1]["error"]["code"]),
        (&json!(1), &json!(-32001))
    );
    let silent = edge
        .post(r#"{"jsonrpc":"2.0","method":"blog.echo","params":[4]}"#)
        .await;
    assert_eq!(silent.status(), 204);
    assert!(silent.bytes().await.unwrap().is_empty());
    edge.stop().await;
    houses.stop().await;
}

fn names(registry: &Value) -> Vec<&str> {
    let servers = registry["servers"].as_object().unwrap();
    servers.keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_pass_a_call_unchanged() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let edge = Edge::of(&houses.alice).await;
    // Sums and thirds as every language has them, the ends of what a double holds, and integers beyond 2^53.
    let numbers = "[0.30000000000000004,0.1,0.3333333333333333,7.038531e-26,-0.0,5e-324,2.2250738585072014e-308,\
                   1.7976931348623157e308,9007199254740993,18446744073709551615,-9223372036854775808]";
    for (method, params) in [
        ("blog.echos", numbers.to_owned()),
        ("blog.echo", format!("[{numbers}]")),
    ] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let answer = edge.post(body).await.text().await.unwrap();
        let answer = answer.replace("e+", "e");
        assert_eq!(
            answer,
            format!(r#"{{"jsonrpc":"2.0","id":1,"result":{numbers}}}"#)
        );
    }
    edge.stop().await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_long_results_has_as_many_as_there_is_room_for_and_says_so_of_the_others() {
    const LONG: usize = 12 << 20;
    let node = Node::start("main", Role::Main).await;
    let methods = Methods::new().method("long", |()| async move { Ok("x".repeat(LONG)) });
    let mut service = Service::new("book".parse().unwrap());
    service.methods = methods.names();
    node.federation.offer(service, Arc::new(methods)).unwrap();
    let edge = Edge::of(&node).await;
    let call = |id: u32| json!({ "jsonrpc": "2.0", "id": id, "method": "book.long", "params": [] });
    // Twice, since what was answered makes room.
    for _ in 0..2 {
        let answers = edge.rpc((0..8).map(call).collect()).await;
        let answers = answers.as_array().unwrap();
        let (whole, left): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer["error"].is_null());
        assert_eq!((whole.len(), left.len()), (5, 3));
        let is_whole = |answer: &&Value| answer["result"].as_str().map(str::len) == Some(LONG);
        assert!(whole.iter().all(is_whole));
        for answer in left {
            assert_eq!(answer["error"]["data"]["name"], "payload_too_large");
        }
    }
    edge.stop().await;
    node.stop().await;
}
