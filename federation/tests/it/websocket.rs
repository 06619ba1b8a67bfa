//! Older messages over WebSockets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{SinkExt as _, StreamExt as _};
use lapwing_federation::{Backend, Echo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::Never;
use crate::http::Edge;
use crate::nodes::{Houses, Node, PATIENCE, eventually};

/// A program that speaks in older messages.
struct Program(WebSocketStream<TcpStream>);

impl Program {
    async fn connect(edge: &Edge, path: &str) -> Self {
        let host = edge.url.strip_prefix("http://").unwrap();
        let stream = TcpStream::connect(host).await.unwrap();
        let (socket, response) = client_async(format!("ws://{host}{path}"), stream).await.unwrap();
        assert_eq!(response.status(), 101);
        Self(socket)
    }

    async fn say(&mut self, text: impl Into<String>) {
        self.0.send(Message::text(text.into())).await.unwrap();
    }

    /// The next message; `None` where the node has closed the socket.
    async fn hear(&mut self) -> Option<Value> {
        loop {
            let heard = tokio::time::timeout(PATIENCE, self.0.next()).await.unwrap();
            match heard {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    async fn ask(&mut self, message: Value) -> Value {
        self.say(message.to_string()).await;
        self.hear().await.unwrap()
    }
}

fn message(kind: &str, id: &str) -> Value {
    json!({
        "type": kind,
        "message_id": id,
        "source_node": {"type": "home", "id": "program.home"},
        "destination_node": {"type": "home", "id": "bob.home", "main_relay": "main-b"},
        "server_name": "blog",
        "method": "echo",
        "data": {"args": [id]},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_call_and_its_response_says_what_it_answers() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let edge = Edge::of(&houses.alice).await;
    for path in ["/ws/p2p?node_id=program", "/ws/federation", "/ws/peers"] {
        let mut program = Program::connect(&edge, path).await;
        let answer = program.ask(message("request", "m-1")).await;
        assert_eq!(
            (&answer["type"], &answer["correlation_id"]),
            (&json!("response"), &json!("m-1")),
            "{path}: {answer}"
        );
        assert_eq!(answer["data"], json!({"result": "m-1"}));
        assert_eq!(answer["source_node"]["id"], "alice");
        assert_eq!(answer["destination_node"]["id"], "program.home");
    }
    let mut program = Program::connect(&edge, "/ws/p2p").await;
    // In the older form, and as JSON-RPC in which the way is asked for.
    let call = json!({"server_name": "blog", "method": "echo", "args": [7]}).to_string();
    let answer = program
        .ask(json!({"type": "server_call", "id": "m-2", "from": "program", "to": "bob.home@main-b", "data": {"call": call}}))
        .await;
    assert_eq!(
        (&answer["type"], &answer["data"]),
        (&json!("response"), &json!({"result": 7}))
    );
    let mut traced = message("request", "m-3");
    traced["jsonrpc_request"] = json!({"jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": {
        "server_name": "blog", "method": "echo", "args": [8], "trace": true}});
    let answer = program.ask(traced).await;
    assert_eq!(answer["data"]["result"], 8, "{answer}");
    assert_eq!(answer["data"]["trace"]["hops"], 3);
    let mut failing = message("request", "m-6");
    failing["jsonrpc_request"] = json!({"jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": {
        "server_name": "blog", "method": "sing", "trace": true}});
    let answer = program.ask(failing).await;
    assert_eq!(answer["data"]["error"]["code"], -32601, "{answer}");
    assert_eq!(answer["data"]["trace"]["hops"], 3, "{answer}");
    // It has been passed on so often that it gets no further.
    let mut tired = message("request", "m-4");
    tired["ttl"] = json!(1);
    let answer = program.ask(tired).await;
    assert_eq!(answer["data"]["error"]["code"], -32006, "{answer}");
    let mut unknown = message("request", "m-5");
    unknown["server_name"] = json!("none");
    let answer = program.ask(unknown).await;
    assert_eq!(
        (&answer["type"], &answer["correlation_id"]),
        (&json!("error"), &json!("m-5"))
    );
    assert_eq!(answer["data"]["error"]["data"]["name"], "service_not_found");
    edge.stop().await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_call_is_answered_with_what_there_is() {
    let node = Node::start("main-a", lapwing_base::Role::Main).await;
    node.offer("blog", Arc::new(Echo));
    let edge = Edge::of(&node).await;
    let mut program = Program::connect(&edge, "/ws/p2p").await;
    // An answer is answered by nothing, so that what comes is for what follows.
    program
        .say(json!({"type": "pong", "from": "a", "to": "b"}).to_string())
        .await;
    let answer = program
        .ask(json!({"type": "ping", "id": "p-1", "from": "a", "to": "b"}))
        .await;
    assert_eq!(
        (&answer["type"], &answer["correlation_id"]),
        (&json!("heartbeat"), &json!("p-1"))
    );
    assert_eq!(answer["source_node"], json!({"type": "main", "id": "main-a"}));
    let answer = program.ask(message("service_discovery", "d-1")).await;
    assert_eq!(answer["type"], "service_discovery");
    assert_eq!(answer["data"]["servers"]["blog"]["node_address"], "main-a.main");
    let answer = program.ask(message("registration", "r-1")).await;
    assert_eq!(
        (&answer["type"], &answer["correlation_id"]),
        (&json!("error"), &json!("r-1"))
    );
    let said = answer["data"]["error"]["message"].as_str().unwrap();
    assert!(said.contains("lapwing relay --connect"), "{said}");
    edge.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_what_is_no_message_is_told_so_and_let_go_only_if_nothing_else_comes() {
    let node = Node::start("main-a", lapwing_base::Role::Main).await;
    node.offer("blog", Arc::new(Echo));
    let edge = Edge::of(&node).await;
    let mut program = Program::connect(&edge, "/ws/p2p").await;
    for wrong in ["nonsense", "[]", r#"{"type":"gossip","message_id":"g-1"}"#] {
        program.say(wrong).await;
        let answer = program.hear().await.unwrap();
        assert_eq!(answer["type"], "error");
        assert_eq!(answer["data"]["error"]["code"], -32016, "{wrong}: {answer}");
    }
    let answer = program.ask(message("heartbeat", "h-1")).await;
    assert_eq!(answer["type"], "heartbeat", "it goes on");
    let mut told = 0;
    loop {
        // What is closed meanwhile takes nothing more.
        let _ = program.0.send(Message::text("nonsense")).await;
        match program.hear().await {
            Some(_) => told += 1,
            None => break,
        }
    }
    assert_eq!(told, 16);
    let mut program = Program::connect(&edge, "/ws/p2p").await;
    let _ = program.0.send(Message::text("x".repeat(1024 * 1024 + 1))).await;
    assert_eq!(program.hear().await, None, "what is too long is not read");
    edge.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_has_so_many_requests_in_hand_and_they_are_given_up_with_it() {
    let node = Node::start("main-a", lapwing_base::Role::Main).await;
    let never = Arc::new(Never::default());
    node.offer("slow", Arc::clone(&never) as Arc<dyn Backend>);
    let edge = Edge::of(&node).await;
    let mut program = Program::connect(&edge, "/ws/p2p").await;
    for number in 0..65 {
        let mut request = message("request", &format!("m-{number}"));
        request["server_name"] = json!("slow");
        request["destination_node"] = json!({"type": "main", "id": "main-a"});
        program.say(request.to_string()).await;
    }
    let answer = program.hear().await.unwrap();
    assert_eq!(answer["correlation_id"], "m-64", "the first 64 are under way");
    assert_eq!(answer["data"]["error"]["code"], -32010);
    assert_eq!(answer["data"]["error"]["data"]["retry_after_ms"], 100);
    eventually("all are under way", || {
        never.waiting.load(Ordering::Relaxed) == 64
    })
    .await;
    drop(program);
    eventually("nobody waits", || never.waiting.load(Ordering::Relaxed) == 0).await;
    edge.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_no_websocket_is_told_so_and_one_that_is_open_ends_with_the_node() {
    let node = Node::start("main-a", lapwing_base::Role::Main).await;
    let edge = Edge::of(&node).await;
    let url = format!("{}/ws/p2p", edge.url);
    let response = edge.client.get(url).send().await.unwrap();
    assert_eq!(response.status(), 426);
    assert_eq!(response.headers()["upgrade"], "websocket");
    drop(response);
    let mut program = Program::connect(&edge, "/ws/p2p").await;
    edge.stop().await;
    let (closed, ()) = tokio::join!(program.hear(), node.stop());
    assert_eq!(closed, None);
}
