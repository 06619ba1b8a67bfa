//! Signed records: who may write them, and what is refused with which code.

use lapwing_base::{PeerId, Term};
use lapwing_gateway::{ClusterState, HintRequest, Leave, Registration, Standing, Status};
use serde_json::{Value, json};

use crate::support::{CLUSTER, Http, Node, OTHER, read, start};

#[tokio::test]
async fn a_node_registers_renews_and_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let (alice, bob) = (
        Node::new(&[gateway.local_addr()]),
        Node::new(&[gateway.local_addr()]),
    );
    let first = alice.client.register(alice.registration()).await.unwrap();
    assert_eq!(first.status, Standing::Registered);
    assert_eq!(first.cluster, ClusterState::None);
    assert_eq!(first.heartbeat_interval_seconds, 30.0);
    let again = alice.client.register(alice.registration()).await.unwrap();
    assert_eq!(again.status, Standing::Renewed);

    let other = bob.client.register(bob.registration()).await.unwrap();
    assert_eq!(other.nodes.len(), 1);
    assert_eq!(other.nodes[0].peer_id, alice.peer_id());
    assert_eq!(other.nodes[0].addrs, alice.registration().addrs);

    alice.client.leave().await.unwrap();
    let known = bob.client.discover().await.unwrap();
    let alice = known.nodes.iter().find(|node| node.peer_id == alice.peer_id());
    assert_eq!(alice.unwrap().status, Status::Leaving);
    gateway.stop().await;
}

#[tokio::test]
async fn a_forged_signature_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    let (owner, thief) = (
        Node::new(&[gateway.local_addr()]),
        Node::new(&[gateway.local_addr()]),
    );
    owner.client.register(owner.registration()).await.unwrap();

    let stolen = Registration {
        seq: 100,
        ..owner.registration()
    };
    let (status, answer) = http.post("/v1/nodes", &thief.sign(stolen.clone())).await;
    assert_problem(status.as_u16(), &answer, 422, "bad-signature");

    let mut changed = owner.sign(stolen);
    changed["name"] = json!("mallory");
    let (status, answer) = http.post("/v1/nodes", &changed).await;
    assert_problem(status.as_u16(), &answer, 422, "bad-signature");

    let leave = Leave {
        peer_id: owner.peer_id(),
        incarnation: 1,
        seq: 100,
    };
    let path = format!("/v1/nodes/{}", owner.peer_id());
    let (status, answer) = read(http.request("DELETE", &path).json(&thief.sign(leave))).await;
    assert_problem(status.as_u16(), &answer, 422, "bad-signature");
    assert_eq!(owner.client.discover().await.unwrap().nodes[0].name, "alice");
    gateway.stop().await;
}

#[tokio::test]
async fn a_replayed_message_is_refused_once_a_newer_one_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    let node = Node::new(&[gateway.local_addr()]);
    let at = |seq| {
        let registration = Registration {
            seq,
            ..node.registration()
        };
        node.sign(registration)
    };
    assert_eq!(http.post("/v1/nodes", &at(5)).await.0, 200);
    assert_eq!(
        http.post("/v1/nodes", &at(5)).await.0,
        200,
        "a retry is the same request"
    );
    assert_eq!(http.post("/v1/nodes", &at(6)).await.0, 200);
    let (status, answer) = http.post("/v1/nodes", &at(5)).await;
    assert_problem(status.as_u16(), &answer, 409, "stale-sequence");
    assert_eq!((&answer["incarnation"], &answer["seq"]), (&json!(1), &json!(6)));
    // The client of a node that forgot its numbers goes on from there.
    node.client.register(node.registration()).await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn a_farewell_needs_the_right_path_and_a_known_node() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    let node = Node::new(&[gateway.local_addr()]);
    let leave = node.sign(Leave {
        peer_id: node.peer_id(),
        incarnation: 1,
        seq: 9,
    });
    let own = format!("/v1/nodes/{}", node.peer_id());
    let (status, answer) = read(http.request("DELETE", &own).json(&leave)).await;
    assert_problem(status.as_u16(), &answer, 404, "not-registered");
    let foreign = format!("/v1/nodes/{}", PeerId::random());
    let (status, answer) = read(http.request("DELETE", &foreign).json(&leave)).await;
    assert_problem(status.as_u16(), &answer, 422, "invalid-field");
    node.client.register(node.registration()).await.unwrap();
    for _ in 0..2 {
        let (status, _) = read(http.request("DELETE", &own).json(&leave)).await;
        assert_eq!(status, 204, "a farewell may be repeated");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn hints_are_fenced_by_term_and_come_from_members_only() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    let (member, stranger) = (
        Node::new(&[gateway.local_addr()]),
        Node::new(&[gateway.local_addr()]),
    );
    member.client.register(member.membership(3)).await.unwrap();
    stranger.client.register(stranger.registration()).await.unwrap();
    let hint = |from: &Node, leader, term| {
        let request = HintRequest {
            peer_id: from.peer_id(),
            cluster_id: CLUSTER,
            leader,
            term: Term(term),
        };
        from.sign(request)
    };
    let cases = [
        (hint(&member, member.peer_id(), 2), 409, "stale-term"),
        (hint(&member, stranger.peer_id(), 3), 409, "leader-conflict"),
        (hint(&stranger, stranger.peer_id(), 9), 409, "not-a-member"),
    ];
    for (body, status, code) in cases {
        let (answered, answer) = http.post("/v1/leader", &body).await;
        assert_problem(answered.as_u16(), &answer, status, code);
    }
    member
        .client
        .hint(CLUSTER, stranger.peer_id(), Term(4))
        .await
        .unwrap();
    let leader = member.client.discover().await.unwrap().leader.unwrap();
    assert_eq!((leader.peer_id, leader.term), (stranger.peer_id(), Term(4)));
    assert_eq!(leader.addrs, stranger.registration().addrs);
    gateway.stop().await;
}

#[tokio::test]
async fn a_second_cluster_is_refused_and_shows_in_stats() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let (member, other) = (
        Node::new(&[gateway.local_addr()]),
        Node::new(&[gateway.local_addr()]),
    );
    member.client.register(member.membership(1)).await.unwrap();
    let foreign = Registration {
        cluster_id: Some(OTHER),
        ..other.membership(9)
    };
    let error = other.client.register(foreign).await.unwrap_err();
    assert!(
        matches!(error, lapwing_gateway::ClientError::ClusterMismatch { .. }),
        "{error}"
    );
    let (_, stats) = Http::new(gateway.local_addr()).get("/stats").await;
    assert_eq!(stats["cluster_mismatches"], 1);
    assert_eq!(stats["cluster_id"], CLUSTER.to_string());
    gateway.stop().await;
}

#[tokio::test]
async fn the_list_comes_in_pages_with_a_tag_and_a_long_poll() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    let nodes: Vec<Node> = (0..5).map(|_| Node::new(&[gateway.local_addr()])).collect();
    for node in &nodes {
        node.client.register(node.registration()).await.unwrap();
    }
    let (_, first) = http.get("/v1/nodes?limit=3").await;
    let cursor = first["next_cursor"].as_str().unwrap();
    let (_, rest) = http.get(&format!("/v1/nodes?limit=3&cursor={cursor}")).await;
    assert_eq!(first["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(rest["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(rest["next_cursor"], Value::Null);

    let answer = http.request("GET", "/v1/nodes").send().await.unwrap();
    let tag = answer.headers()["etag"].clone();
    let unchanged = http.request("GET", "/v1/nodes").header("if-none-match", tag);
    assert_eq!(unchanged.send().await.unwrap().status(), 304);

    let version = first["version"].as_u64().unwrap();
    let newcomer = Node::new(&[gateway.local_addr()]);
    let path = format!("/v1/nodes?since={version}&wait=50s");
    let (polled, registered) =
        tokio::join!(http.get(&path), newcomer.client.register(newcomer.registration()));
    registered.unwrap();
    assert_eq!(polled.1["nodes"].as_array().unwrap().len(), 6);
    for wrong in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=!",
        "since=x",
        "wait=x",
        "what=1",
    ] {
        let (status, answer) = http.get(&format!("/v1/nodes?{wrong}")).await;
        assert_problem(status.as_u16(), &answer, 400, "invalid-query");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn wrong_requests_get_problem_documents() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let http = Http::new(gateway.local_addr());
    let text = http
        .request("POST", "/v1/nodes")
        .header("content-type", "text/plain")
        .body("{}");
    let (status, answer) = read(text).await;
    assert_problem(status.as_u16(), &answer, 415, "unsupported-media-type");
    let (status, answer) = http.post("/v1/nodes", &json!({"peer_id": 1})).await;
    assert_problem(status.as_u16(), &answer, 400, "invalid-json");
    for path in ["/v1", "/v1/", "/v1/nope"] {
        let (status, answer) = http.get(path).await;
        assert_problem(status.as_u16(), &answer, 404, "not-found");
    }
    let response = http.request("PUT", "/v1/nodes").send().await.unwrap();
    assert_eq!(response.headers()["allow"], "GET,HEAD,POST");
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.status(), 405);
    gateway.stop().await;
}

fn assert_problem(status: u16, answer: &Value, expected: u16, code: &str) {
    assert_eq!((status, &answer["code"]), (expected, &json!(code)), "{answer}");
    assert_eq!(answer["status"], expected);
    assert!(answer["retryable"].is_boolean());
    assert!(answer["type"].is_string() && answer["title"].is_string());
}
