//! Garbage, floods and dawdlers: refused, and nobody else notices.

use std::time::Duration;

use lapwing_gateway::{Gateway, GatewayConfig};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Http, config, read, start};

#[tokio::test]
async fn a_body_over_64_kib_is_refused_and_one_below_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    for path in ["/register", "/heartbeat", "/v1/nodes", "/v1/bootstrap/claim"] {
        for size in [65 * 1024, 900 * 1024] {
            let (status, _) = read(http.request("POST", path).body(vec![b' '; size])).await;
            assert_eq!(status, 413, "{path} {size}");
        }
        let (status, _) = read(http.request("POST", path).body(vec![b' '; 64 * 1024])).await;
        assert_eq!(status, 400, "{path}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn bytes_that_are_not_http_end_the_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting",
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /register HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /register HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as an answer.
        let _ = stream.read_to_end(&mut answer).await;
    }
    assert_eq!(Http::new(gateway.local_addr()).get("/health").await.0, 200);
    gateway.stop().await;
}

#[tokio::test]
async fn dawdlers_lose_their_connection_and_the_next_one_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let tight = GatewayConfig {
        request_timeout: Duration::from_millis(300),
        max_connections: 3,
        ..config(dir.path())
    };
    let gateway = Gateway::start(tight).await.unwrap();
    let beginnings: [&[u8]; 3] = [
        b"",
        b"GET /health HTTP/1.1\r\nhost: x\r\n",
        b"POST /register HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ];
    let mut dawdlers = Vec::new();
    for beginning in beginnings {
        let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        dawdlers.push(stream);
    }
    assert_eq!(Http::new(gateway.local_addr()).get("/health").await.0, 200);
    for mut stream in dawdlers {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_full_registry_says_so_and_still_serves() {
    let dir = tempfile::tempdir().unwrap();
    let small = GatewayConfig {
        nodes_max: 1,
        ..config(dir.path())
    };
    let gateway = Gateway::start(small).await.unwrap();
    let http = Http::new(gateway.local_addr());
    let node =
        |id: i64| serde_json::json!({"node_id": id, "ip_address": "::1", "port": 1, "capabilities": []});
    assert_eq!(http.post("/register", &node(1)).await.0, 200);
    assert_eq!(http.post("/register", &node(2)).await.0, 503);
    assert_eq!(http.post("/register", &node(1)).await.0, 200);
    gateway.stop().await;
}

#[test]
fn ten_thousand_random_bodies_never_get_a_server_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let gateway = runtime.block_on(start(dir.path()));
    let http = Http::new(gateway.local_addr());
    let paths = [
        "/register",
        "/heartbeat",
        "/leader",
        "/remove",
        "/v1/nodes",
        "/v1/leader",
        "/v1/bootstrap/claim",
        "/v1/bootstrap/confirm",
    ];
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        (-9_i32..9).prop_map(|value| value.to_string()),
        any::<f64>().prop_map(|value| value.to_string()),
        ".{0,12}".prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just("[\"a\", \"b\"]".to_owned()),
        Just("{\"a\": {\"b\": []}}".to_owned()),
        Just("\"12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp\"".to_owned()),
        Just("\"/ip4/10.0.0.1/udp/1\"".to_owned()),
    ];
    let key = proptest::sample::select(vec![
        "node_id",
        "leader_id",
        "ip_address",
        "port",
        "capabilities",
        "metadata",
        "term",
        "peer_id",
        "addrs",
        "name",
        "role",
        "cluster_id",
        "leader",
        "incarnation",
        "seq",
        "epoch",
        "signature",
    ]);
    let object = proptest::collection::vec((key, scalar), 0..9).prop_map(|fields| {
        let fields: Vec<String> = fields
            .into_iter()
            .map(|(key, value)| format!("\"{key}\": {value}"))
            .collect();
        format!("{{{}}}", fields.join(", ")).into_bytes()
    });
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    let body = prop_oneof![3 => object, 1 => bytes];
    let input = (proptest::sample::select(paths.to_vec()), body);

    let mut runner = TestRunner::new(Config {
        cases: 10_000,
        failure_persistence: None,
        ..Config::default()
    });
    let ran = runner.run(&input, |(path, body)| {
        let response = runtime.block_on(async {
            let request = http.request("POST", path).body(body);
            request.send().await
        });
        let status = response
            .map_err(|error| TestCaseError::fail(error.to_string()))?
            .status();
        prop_assert!(!status.is_server_error(), "{} answered {}", path, status);
        Ok(())
    });
    ran.unwrap();
    runtime.block_on(async {
        assert_eq!(http.get("/health").await.0, 200);
        gateway.stop().await;
    });
}
