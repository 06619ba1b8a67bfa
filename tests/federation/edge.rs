//! JSON-RPC 2.0 at the edge of a main and of a home.

use reqwest::Method;
use serde_json::{Value, json};

use crate::calls::HTTP;
use crate::nine::Nine;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_as_json_rpc_has_it() {
    let nine = Nine::shared().await;
    for at in ["relay-a", "alice"] {
        let edge = nine.world.edge(at);
        for (body, status, code) in [
            ("{", 400, -32700),
            ("", 400, -32700),
            (r#"{"id":1,"method":"diary.say"}"#, 400, -32600),
            (r#"{"jsonrpc":"1.0","id":1,"method":"diary.say"}"#, 400, -32600),
            (r#"{"jsonrpc":"2.0","id":1}"#, 400, -32600),
            ("[]", 400, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"sing"}"#, 200, -32601),
        ] {
            let (answered, document) = edge.post(body).await;
            assert_eq!(answered, status, "{at}: {body}: {document}");
            assert_eq!(document["error"]["code"], code, "{at}: {body}: {document}");
            assert_eq!(document.get("result"), None, "{at}: {body}");
        }
        let response = HTTP.get(format!("{}/rpc", edge.url)).send().await.unwrap();
        assert_eq!(response.status(), 405);
        let document: Value = response.json().await.unwrap();
        assert_eq!(document["error"]["code"], -32600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_lacks_something_is_told_what() {
    let nine = Nine::shared().await;
    let edge = nine.world.edge("relay-a");
    for (params, said) in [
        (json!({}), "server_name is required"),
        (json!({ "node_id": "bob" }), "server_name is required"),
        (
            json!({ "node_id": "bob", "server_name": "diary" }),
            "method is required",
        ),
        (json!({ "service_name": "diary" }), "method is required"),
        (
            json!({ "node_id": "bob", "server_name": "diary", "method": "" }),
            "method is required",
        ),
    ] {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": params });
        let (status, document) = edge.post(request.to_string()).await;
        assert_eq!(
            (status, &document["error"]["code"]),
            (200, &json!(-32602)),
            "{document}"
        );
        assert!(
            document["error"]["data"].to_string().contains(said),
            "{params}: {document}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_come_by_position_by_name_or_alone_and_services_are_called_in_every_form() {
    let nine = Nine::shared().await;
    let edge = nine.world.edge("alice");
    for (given, expected) in [
        (json!([1, "two"]), json!([1, "two"])),
        (json!({ "title": "x" }), json!({ "title": "x" })),
        (json!("alone"), json!(["alone"])),
        (Value::Null, Value::Null),
    ] {
        let params = json!({ "node_id": "charlie.home@relay-b", "service_name": "diary", "method": "say", "args": given });
        assert_eq!(edge.call(params).await.result()["args"], expected, "{given}");
    }
    let (status, answers) = edge
        .post(
            r#"[{"jsonrpc":"2.0","id":"a","method":"diary.say","params":[1]},
                {"jsonrpc":"2.0","method":"diary.say","params":[2]},
                {"jsonrpc":"2.0","id":null,"method":"diary.say","params":[3]},
                7,
                {"jsonrpc":"2.0","id":4,"method":"remote_call","params":{"service_name":"nothing","method":"say"}}]"#,
        )
        .await;
    assert_eq!(status, 200);
    let ids: Vec<&Value> = answers
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| &answer["id"])
        .collect();
    assert_eq!(
        ids,
        [&json!("a"), &Value::Null, &Value::Null, &json!(4)],
        "{answers}"
    );
    assert_eq!(answers[0]["result"]["args"], json!([1]));
    assert_eq!(answers[2]["error"]["code"], -32600);
    assert_eq!(answers[3]["error"]["code"], -32001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_is_carried_out_and_not_answered() {
    let nine = Nine::shared().await;
    let before = nine.calls();
    let notification = r#"{"jsonrpc":"2.0","method":"diary.say","params":[1]}"#;
    let (status, document) = nine.world.edge("alice").post(notification).await;
    assert_eq!((status, document), (204, Value::Null));
    assert!(nine.calls() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_browsers_may_call_and_what_a_request_is_known_by_comes_back() {
    let nine = Nine::shared().await;
    let url = format!("{}/rpc", nine.world.edge("relay-a").url);
    let response = HTTP.request(Method::OPTIONS, &url).send().await.unwrap();
    assert_eq!(response.status(), 200);
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "POST, GET, OPTIONS"),
        ("access-control-allow-headers", "Content-Type, Authorization"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let response = HTTP
        .post(&url)
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("x-request-id", "mine-7")
        .body(r#"{"jsonrpc":"2.0","id":1,"method":"remote_call","params":{"service_name":"nothing","method":"say"}}"#)
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-7");
    assert!(
        response.headers()["traceparent"]
            .to_str()
            .unwrap()
            .contains(trace)
    );
    let document: Value = response.json().await.unwrap();
    assert_eq!(document["error"]["data"]["trace_id"], trace);
    assert_eq!(document["error"]["data"]["failed_at"], nine.world.peer("relay-a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_one_request_use_results_of_services_at_several_mains() {
    let nine = Nine::shared().await;
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "request", "params": { "commands": [
        { "name": "second", "fun": "diary.say", "args": [{ "$ref": "first.by" }] },
        { "name": "first", "fun": "diary.say", "args": [] },
    ] } });
    let (status, document) = nine.world.edge("alice").post(request.to_string()).await;
    assert_eq!(status, 200);
    let said = document["result"]["second"]["args"][0].as_str();
    assert!(said.is_some(), "{document}");
}
