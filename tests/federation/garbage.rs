//! What no caller should send: the relay says so, or hangs up, and goes on.

use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use crate::backend::Backend;
use crate::calls::{Edge, HTTP};
use crate::world::{World, eventually, free_port};

/// A relay reads a request for 15 s, and a busy machine is late.
const HANGS_UP: Duration = Duration::from_secs(40);

/// A main with a service of its own.
struct Victim {
    world: World,
    port: u16,
    _diary: Backend,
}

impl Victim {
    async fn start() -> Self {
        let mut world = World::new();
        let port = free_port();
        let diary = Backend::start("diary");
        world.main(
            "relay-a",
            port,
            &[],
            &[&diary.as_service("diary"), "--peers-may-change"],
        );
        world.up().await;
        Self {
            world,
            port,
            _diary: diary,
        }
    }

    fn edge(&self) -> Edge {
        self.world.edge("relay-a")
    }

    async fn lives(&self, after: &str) {
        let done = self.edge().number("diary", 1, &json!({})).await;
        assert!(done.ended.is_ok(), "after {after}: {done:?}");
        let log = self.world.log("relay-a");
        assert!(!log.contains("panicked"), "after {after}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_monstrous_json_is_refused_with_a_reason() {
    let victim = Victim::start().await;
    let edge = victim.edge();
    let deep = "[".repeat(100_000);
    let wide = format!("[{}]", vec!["1"; 101].join(","));
    for (what, body) in [
        ("half a document", &b"{\"jsonrpc\":"[..]),
        ("no UTF-8", b"{\"jsonrpc\":\"2.0\",\"method\":\"\xff\xfe\"}"),
        ("zeros", &[0; 4096]),
        ("a deep document", deep.as_bytes()),
        ("a large batch", wide.as_bytes()),
        ("a number", b"1e999"),
    ] {
        let (status, document) = edge.post(body.to_vec()).await;
        assert_eq!(status, 400, "{what}: {document}");
        assert!(document["error"]["code"].is_i64(), "{what}: {document}");
        victim.lives(what).await;
    }
    for (what, params) in [
        (
            "a name of spaces",
            json!({ "node_id": "   ", "server_name": "diary", "method": "say" }),
        ),
        (
            "a long name",
            json!({ "service_name": "x".repeat(5_000), "method": "say" }),
        ),
        (
            "a long method",
            json!({ "service_name": "diary", "method": "y".repeat(5_000) }),
        ),
        (
            "a negative time",
            json!({ "service_name": "diary", "method": "say", "timeout": -1 }),
        ),
        (
            "too long a time",
            json!({ "service_name": "diary", "method": "say", "timeout": 1e12 }),
        ),
        (
            "a name with a zero",
            json!({ "service_name": "di\u{0}ary", "method": "say" }),
        ),
    ] {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": params });
        let (status, document) = edge.post(request.to_string()).await;
        assert_eq!(
            (status, &document["error"]["code"]),
            (200, &json!(-32602)),
            "{what}: {document}"
        );
    }
    for address in [
        "",
        "/ip4/300.1.1.1/udp/1/quic-v1",
        "ftp://x",
        "http://",
        "javascript:alert(1)",
        "\u{7}",
    ] {
        let request = HTTP
            .post(format!("{}/federation/peers/add", edge.url))
            .json(&json!({ "address": address }));
        let status = request.send().await.unwrap().status();
        assert!(status.is_client_error() || status == 202, "{address}: {status}");
    }
    victim.lives("addresses that are none").await;
    let peers: Value = edge.get("/federation/peers").await.unwrap();
    assert_eq!(peers["peers"], json!([]), "none of them is one");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_huge_or_never_end_are_given_up() {
    let victim = Victim::start().await;
    let edge = victim.edge();
    let huge = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{}\"}}", "x".repeat(3 << 20));
    let (status, document) = edge.post(huge).await;
    assert_eq!(status, 413, "{document}");
    assert_eq!(document["error"]["data"]["name"], "payload_too_large");
    // As many as may be in hand send a head and nothing more; nobody else is kept out for longer than they are waited for.
    let slow = (0..300).map(async |number: u32| {
        let mut stream = TcpStream::connect(("127.0.0.1", victim.port)).await.unwrap();
        let head = format!(
            "POST /rpc HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{}",
            number % 10
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    });
    let mut slow = join_all(slow).await;
    victim.lives("three hundred bodies that do not come").await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(HANGS_UP, slow[0].read_to_end(&mut answer)).await;
    read.expect("it hangs up").unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    drop(slow);
    victim.lives("bodies that broke off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_at_any_port_disturb_nobody() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let victim = Victim::start().await;
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for round in 0..200 {
        let mut bytes = vec![0; random.random_range(1..2_000)];
        random.fill_bytes(&mut bytes);
        // Something that begins as a request does, every other time.
        if round % 2 == 0 {
            let mut request = b"POST /rpc HTTP/1.1\r\n".to_vec();
            request.append(&mut bytes);
            bytes = request;
        }
        let mut stream = TcpStream::connect(("127.0.0.1", victim.port)).await.unwrap();
        // It may hang up while it is being told.
        let _ = stream.write_all(&bytes).await;
        bytes.truncate(1_200);
        udp.send_to(&bytes, ("127.0.0.1", victim.port)).await.unwrap();
    }
    // A greeting of another protocol, without an end.
    let mut stream = TcpStream::connect(("127.0.0.1", victim.port)).await.unwrap();
    let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await;
    victim.lives("random bytes").await;
    let fds = format!("/proc/{}/fd", victim.world.pid("relay-a").as_raw_nonzero());
    drop(stream);
    eventually("its connections to be closed", async || {
        let open = std::fs::read_dir(&fds)
            .map_err(|error| error.to_string())?
            .count();
        if open < 60 {
            Ok(())
        } else {
            Err(format!("{open} files are open"))
        }
    })
    .await;
}
