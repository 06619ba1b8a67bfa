//! What nodes answer about the federation, to calls of the service that all of them have.

use std::sync::Arc;

use lapwing_federation::Echo;

use crate::nodes::Houses;

#[tokio::test(flavor = "multi_thread")]
async fn every_node_is_asked_by_its_address_what_it_knows_also_from_homes() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let alice = houses.alice.id().to_string();
    for (address, node) in [
        ("bob.home@main-b", &houses.bob),
        ("main-b", &houses.main_b),
        ("main-a", &houses.main_a),
        (alice.as_str(), &houses.alice),
    ] {
        let answer = houses
            .ask(&format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"remote_call","params":{{"node_id":"{address}","server_name":"federation","method":"list_peers"}}}}"#
            ))
            .await;
        assert_eq!(answer["result"]["node_id"], node.id().to_string(), "{answer}");
        // Each of them has a main.
        let peers = answer["result"]["peers"].as_array().unwrap();
        let peer = peers.iter().find(|peer| peer["status"] == "connected").unwrap();
        assert_eq!(peer["funs"], serde_json::json!([]));
        assert!(peer["last_seen"].is_string(), "{answer}");
    }
    let answer = houses
        .ask(r#"{"jsonrpc":"2.0","id":1,"method":"remote_call","params":{"node_id":"main-b","server_name":"federation","method":"services","args":{"limit":10}}}"#)
        .await;
    assert_eq!(answer["result"]["services"][0]["name"], "blog", "{answer}");
    // A home knows of nothing but its own, so that its main is asked where nobody is named.
    let answer = houses
        .ask(r#"{"jsonrpc":"2.0","id":1,"method":"federation.services"}"#)
        .await;
    assert_eq!(
        answer["result"]["node_id"],
        houses.main_a.id().to_string(),
        "{answer}"
    );
    let answer = houses
        .ask(r#"{"jsonrpc":"2.0","id":1,"method":"remote_call","params":{"node_id":"main-b","server_name":"federation","method":"none"}}"#)
        .await;
    assert_eq!(answer["error"]["data"]["name"], "method_not_found", "{answer}");
    houses.stop().await;
}
