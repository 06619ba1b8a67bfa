//! The compatible API, row by row.

use lapwing_gateway::Gateway;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Http, Node, read, start};

#[tokio::test]
async fn health_says_healthy_with_time_and_version() {
    let (_dir, gateway, http) = empty().await;
    let (status, body) = http.get("/health").await;
    assert_eq!(status, 200);
    assert_eq!(body["status"], "healthy");
    assert!(body["timestamp"].as_f64().unwrap() > 1.7e9);
    assert!(body["version"].is_string());
    assert_eq!(keys(&body), ["status", "timestamp", "version"]);
    gateway.stop().await;
}

#[tokio::test]
async fn the_first_registration_bootstraps_and_leads_and_the_second_sees_it() {
    let (_dir, gateway, http) = empty().await;
    let (status, first) = http.post("/register", &node(0)).await;
    assert_eq!(status, 200);
    let expected = [
        "is_bootstrap",
        "leader",
        "node_id",
        "nodes",
        "registry_version",
        "status",
    ];
    assert_eq!(keys(&first), expected);
    assert_eq!(first["status"], "registered");
    assert_eq!(first["node_id"], 0);
    assert_eq!(first["is_bootstrap"], true);
    assert_eq!(first["nodes"], json!([]));
    assert_eq!(first["leader"]["node_id"], 0);

    let (_, second) = http.post("/register", &node(1)).await;
    assert_eq!(second["is_bootstrap"], false);
    assert_eq!(second["leader"]["node_id"], 0);
    let seen = &second["nodes"][0];
    let expected = [
        "capabilities",
        "ip_address",
        "join_timestamp",
        "last_seen",
        "metadata",
        "node_id",
        "port",
        "status",
    ];
    assert_eq!(keys(seen), expected);
    assert_eq!(seen["status"], "active");
    assert_eq!(seen["ip_address"], "10.0.0.1");
    assert_eq!(seen["metadata"], json!({"role": "worker"}));
    assert!(second["registry_version"].as_u64() > first["registry_version"].as_u64());

    let (_, again) = http.post("/register", &node(1)).await;
    assert_eq!(again["status"], "updated");
    assert_eq!(again["is_bootstrap"], false);
    gateway.stop().await;
}

#[tokio::test]
async fn nodes_leaves_the_asker_out_and_ignores_a_bad_id() {
    let (_dir, gateway, http) = empty().await;
    for id in 0..3 {
        http.post("/register", &node(id)).await;
    }
    let (_, body) = http.get("/nodes").await;
    assert_eq!(keys(&body), ["nodes", "registry_version"]);
    assert_eq!(ids(&body), [json!(0), json!(1), json!(2)]);
    assert_eq!(ids(&http.get("/nodes?node_id=0").await.1), [json!(1), json!(2)]);
    for bad in ["x", "", "1.5", "9999999999999999999999", "%00", "%ff"] {
        let (status, body) = http.get(&format!("/nodes?node_id={bad}")).await;
        assert_eq!((status, ids(&body).len()), (StatusCode::OK, 3), "{bad}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_word_is_an_id_too() {
    let (_dir, gateway, http) = empty().await;
    let mut body = node(0);
    body["node_id"] = json!("12D3KooWword");
    let (_, answer) = http.post("/register", &body).await;
    assert_eq!(answer["node_id"], "12D3KooWword");
    let heartbeat = json!({"node_id": "12D3KooWword"});
    assert_eq!(
        http.post("/heartbeat", &heartbeat).await.1["status"],
        "acknowledged"
    );
    assert_eq!(ids(&http.get("/nodes?node_id=12D3KooWword").await.1).len(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn the_leader_can_be_asked_and_told() {
    let (_dir, gateway, http) = empty().await;
    let none = json!({"leader": null, "message": "No leader currently registered"});
    assert_eq!(http.get("/leader").await, (StatusCode::OK, none));
    http.post("/register", &node(0)).await;
    http.post("/register", &node(7)).await;
    let (_, told) = http.post("/leader", &json!({"leader_id": 7})).await;
    assert_eq!(told, json!({"status": "updated", "leader_id": 7}));
    let (_, body) = http.get("/leader").await;
    assert_eq!(keys(&body), ["leader", "registry_version"]);
    assert_eq!(body["leader"]["node_id"], 7);
    let failed = json!({"status": "failed", "message": "Leader not found in registry"});
    let unknown = http.post("/leader", &json!({"leader_id": 8})).await;
    assert_eq!(unknown, (StatusCode::OK, failed));
    http.post("/leader", &json!({"leader_id": 0})).await;
    assert_eq!(http.get("/leader").await.1["leader"]["node_id"], 0);
    gateway.stop().await;
}

#[tokio::test]
async fn an_older_term_is_refused_and_a_second_leader_of_a_term_is_a_conflict() {
    let (_dir, gateway, http) = empty().await;
    http.post("/register", &node(1)).await;
    http.post("/register", &node(2)).await;
    let tell = async |id, term| {
        let answer = http
            .post("/leader", &json!({"leader_id": id, "term": term}))
            .await;
        answer.0.as_u16()
    };
    assert_eq!(tell(1, 5).await, 200);
    assert_eq!(tell(2, 4).await, 409);
    assert_eq!(tell(2, 5).await, 409);
    let (_, termless) = http.post("/leader", &json!({"leader_id": 2})).await;
    assert_eq!(termless["status"], "failed");
    assert_eq!(http.get("/leader").await.1["leader"]["node_id"], 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_heartbeat_is_acknowledged_or_not_found() {
    let (_dir, gateway, http) = empty().await;
    http.post("/register", &node(0)).await;
    let (status, known) = http.post("/heartbeat", &json!({"node_id": 0})).await;
    assert_eq!(status, 200);
    assert_eq!(keys(&known), ["registry_version", "status"]);
    assert_eq!(known["status"], "acknowledged");
    let unknown = http.post("/heartbeat", &json!({"node_id": 1})).await;
    assert_eq!(unknown, (StatusCode::OK, json!({"status": "not_found"})));
    gateway.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_gone_and_leads_no_more() {
    let (_dir, gateway, http) = empty().await;
    http.post("/register", &node(3)).await;
    let removed = json!({"status": "removed", "node_id": 3});
    assert_eq!(http.post("/remove", &json!({"node_id": 3})).await.1, removed);
    let gone = json!({"status": "not_found", "node_id": 3});
    assert_eq!(
        http.post("/remove", &json!({"node_id": 3})).await,
        (StatusCode::OK, gone)
    );
    assert_eq!(http.get("/leader").await.1["leader"], Value::Null);
    gateway.stop().await;
}

#[tokio::test]
async fn stats_has_the_six_keys() {
    let (_dir, gateway, http) = empty().await;
    let (_, before) = http.get("/stats").await;
    assert_eq!(before["bootstrap_initiated"], false);
    assert_eq!(before["leader_id"], Value::Null);
    http.post("/register", &node(0)).await;
    http.post("/register", &node(1)).await;
    let (_, stats) = http.get("/stats").await;
    assert_eq!(stats["total_nodes"], 2);
    assert_eq!(stats["active_nodes"], 2);
    assert_eq!(stats["leader_id"], 0);
    assert_eq!(stats["bootstrap_initiated"], true);
    assert!(stats["registry_version"].as_u64().unwrap() >= 2);
    assert!(stats["uptime"].as_f64().unwrap() >= 0.0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_wrong_body_is_a_400_that_names_the_field() {
    let (_dir, gateway, http) = empty().await;
    let cases = [
        ("/register", "node_id"),
        ("/register", "ip_address"),
        ("/register", "port"),
        ("/register", "capabilities"),
        ("/heartbeat", "node_id"),
        ("/remove", "node_id"),
        ("/leader", "leader_id"),
    ];
    for (path, field) in cases {
        let mut missing = node(1);
        missing["leader_id"] = json!(1);
        missing.as_object_mut().unwrap().remove(field);
        let mut wrong = missing.clone();
        wrong[field] = json!({});
        for body in [missing, wrong] {
            let (status, answer) = http.post(path, &body).await;
            assert_error(status, &answer, 400);
            assert!(answer["error"].as_str().unwrap().contains(field), "{answer}");
        }
    }
    for body in ["", "{", "[]", "nonsense", "\u{fffd}", "{\"node_id\":1e999}"] {
        for path in ["/register", "/heartbeat", "/remove", "/leader"] {
            let (status, answer) = read(http.request("POST", path).body(body)).await;
            assert_error(status, &answer, 400);
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_unknown_path_is_a_404_and_a_wrong_method_a_405_with_allow() {
    let (_dir, gateway, http) = empty().await;
    for path in ["/", "/nope", "/health/x", "/register/"] {
        let (status, answer) = http.get(path).await;
        assert_error(status, &answer, 404);
    }
    let cases = [
        ("POST", "/health", "GET,HEAD"),
        ("GET", "/register", "POST"),
        ("DELETE", "/nodes", "GET,HEAD"),
        ("PUT", "/leader", "GET,HEAD,POST"),
        ("GET", "/heartbeat", "POST"),
        ("GET", "/remove", "POST"),
        ("PATCH", "/stats", "GET,HEAD"),
    ];
    for (method, path, allow) in cases {
        let response = http.request(method, path).send().await.unwrap();
        assert_eq!(response.headers()["allow"], allow, "{method} {path}");
        let status = response.status();
        assert_error(status, &response.json().await.unwrap(), 405);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn old_clients_see_signed_nodes_and_cannot_touch_them() {
    let (_dir, gateway, http) = empty().await;
    let ours = Node::new(&[gateway.local_addr()]);
    ours.client.register(ours.membership(4)).await.unwrap();
    let id = json!(ours.peer_id());

    let (_, old) = http.post("/register", &node(0)).await;
    assert_eq!(old["is_bootstrap"], false);
    assert_eq!(old["nodes"][0]["node_id"], id);
    assert_eq!(old["nodes"][0]["port"], 4001);
    assert_eq!(old["leader"]["node_id"], id);

    assert_eq!(
        http.post("/remove", &json!({"node_id": id})).await.1["status"],
        "not_found"
    );
    assert_eq!(
        http.post("/leader", &json!({"leader_id": 0})).await.1["status"],
        "failed"
    );
    assert_eq!(
        http.post("/leader", &json!({"leader_id": 0, "term": 4})).await.0,
        409
    );
    let known = ours.client.discover().await.unwrap();
    assert_eq!(known.leader.unwrap().peer_id, ours.peer_id());
    assert_eq!(known.nodes.len(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_nodes_and_bootstraps_nobody_again() {
    let (dir, gateway, http) = empty().await;
    http.post("/register", &node(0)).await;
    http.post("/register", &node(1)).await;
    gateway.stop().await;

    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    assert_eq!(
        http.post("/heartbeat", &json!({"node_id": 1})).await.1["status"],
        "acknowledged"
    );
    assert_eq!(http.get("/leader").await.1["leader"]["node_id"], 0);
    http.post("/remove", &json!({"node_id": 0})).await;
    http.post("/remove", &json!({"node_id": 1})).await;
    assert_eq!(http.post("/register", &node(2)).await.1["is_bootstrap"], false);
    gateway.stop().await;
}

async fn empty() -> (TempDir, Gateway, Http) {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    (dir, gateway, http)
}

fn node(id: i64) -> Value {
    json!({"node_id": id, "ip_address": "10.0.0.1", "port": 5001, "capabilities": ["raft", "gossip"],
        "metadata": {"role": "worker"}})
}

fn ids(body: &Value) -> Vec<Value> {
    let nodes = body["nodes"].as_array().unwrap();
    nodes.iter().map(|node| node["node_id"].clone()).collect()
}

fn keys(body: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn assert_error(status: StatusCode, answer: &Value, expected: u16) {
    assert_eq!(status, expected);
    assert_eq!(keys(answer), ["error", "status_code", "timestamp"]);
    assert_eq!(answer["status_code"], expected);
    assert!(answer["error"].is_string());
    assert!(answer["timestamp"].is_f64());
}
