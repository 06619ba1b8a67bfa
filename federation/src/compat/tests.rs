use super::*;
use proptest::prelude::*;
use serde_json::json;

const ID: CallId = CallId(7);

#[test]
fn a_message_says_all_there_is_and_is_written_as_it_was_read() {
    let written = json!({
        "v": 1,
        "type": "request",
        "message_id": "m-1",
        "correlation_id": "m-0",
        "timestamp": "2025-07-01T12:00:00Z",
        "source_node": {"type": "home", "id": "alice.home", "main_relay": "relay-a.com"},
        "destination_node": {"type": "home", "id": "bob.home", "main_relay": "relay-b.com"},
        "routing_path": ["alice.home", "relay-a.com"],
        "ttl": 10,
        "server_name": "blog",
        "method": "get",
        "jsonrpc_request": {"jsonrpc": "2.0", "method": "get", "id": 1},
        "data": {"args": [1, "two"]},
        "priority": 5,
        "timeout_seconds": 60,
    });
    let message = parse(written.clone()).unwrap();
    assert_eq!(message.kind, MessageKind::Request);
    assert_eq!(message.routing_path.len(), 2);
    assert_eq!(serde_json::to_value(&message).unwrap(), written);
    assert_eq!(
        FederationMessage::parse(message.to_string().as_bytes()),
        Ok(message)
    );
}

#[test]
fn each_type_has_its_name() {
    for (kind, name) in [
        (MessageKind::Registration, "registration"),
        (MessageKind::Heartbeat, "heartbeat"),
        (MessageKind::Request, "request"),
        (MessageKind::Response, "response"),
        (MessageKind::ServiceDiscovery, "service_discovery"),
        (MessageKind::Error, "error"),
    ] {
        let message = parse(with("type", json!(name))).unwrap();
        assert_eq!((message.kind, json!(message.kind)), (kind, json!(name)));
    }
}

#[test]
fn what_is_absent_null_or_empty_has_its_default() {
    let short = parse(json!({
        "type": "registration", "message_id": "m-1", "source_node": {"type": "home", "id": "alice.home"},
    }));
    let nulls = parse(json!({
        "v": null, "type": "registration", "message_id": "m-1", "correlation_id": "", "timestamp": null,
        "source_node": {"type": "home", "id": "alice.home", "main_relay": ""},
        // As Go writes what was not set.
        "destination_node": {"type": "", "id": ""},
        "routing_path": null, "ttl": null, "server_name": "", "method": "", "jsonrpc_request": null, "data": null,
        "priority": null, "timeout_seconds": 0,
    }));
    assert_eq!(nulls, short);
    let short = short.unwrap();
    assert_eq!((short.version, short.ttl), (1, 10));
    assert_eq!(short.destination_node, None);
}

#[test]
fn what_a_later_version_has_beside_it_is_left_alone() {
    let mut later = request();
    later["v"] = json!(2);
    later["flavour"] = json!({"of": "later"});
    later["source_node"]["flavour"] = json!(1);
    let mut expected = parse(request()).unwrap();
    expected.version = 2;
    assert_eq!(parse(later), Ok(expected));
}

#[test]
fn a_malformed_message_is_refused_with_what_is_wrong() {
    let long = "x".repeat(129);
    let path: Vec<String> = (0..11).map(|node| format!("node-{node}")).collect();
    for (member, value, said) in [
        ("type", json!(null), "no `type`"),
        ("type", json!(""), "no `type`"),
        ("type", json!("gossip"), "of type `gossip`"),
        ("type", json!(7), "invalid type"),
        ("message_id", json!(null), "no `message_id`"),
        ("message_id", json!("a b"), "`message_id` is"),
        ("message_id", json!(long), "`message_id` is"),
        ("correlation_id", json!("\n"), "`correlation_id` is"),
        ("source_node", json!(null), "no `source_node`"),
        (
            "source_node",
            json!({"type": "home"}),
            "`source_node` has no `id`",
        ),
        (
            "source_node",
            json!({"id": "alice"}),
            "the `type` of `source_node`",
        ),
        (
            "source_node",
            json!({"type": "server", "id": "alice"}),
            "the `type` of",
        ),
        (
            "source_node",
            json!({"type": "home", "id": "no such"}),
            "`source_node` names nobody",
        ),
        (
            "source_node",
            json!({"type": "main", "id": "a", "main_relay": "b"}),
            "main behind a main",
        ),
        ("destination_node", json!(null), "no `destination_node`"),
        (
            "destination_node",
            json!({"type": "home", "main_relay": "relay-a.com"}),
            "`destination_node` has no `id`",
        ),
        ("routing_path", json!(["a", "b", "a"]), "by `a` twice"),
        ("routing_path", json!(path), "by 11 nodes and may be by 10"),
        ("routing_path", json!([""]), "`routing_path` names nobody"),
        ("ttl", json!(-1), "not -1"),
        ("ttl", json!(17), "0 to 16 nodes, not 17"),
        ("ttl", json!(1.5), "cannot be read"),
        ("server_name", json!("no such"), "`server_name` names nobody"),
        ("server_name", json!(null), "no `server_name`"),
        ("method", json!(""), "no `method`"),
        ("method", json!(long), "more than 128 bytes"),
        ("data", json!([1]), "cannot be read"),
        ("timeout_seconds", json!(-1), "cannot be read"),
    ] {
        let mut wrong = request();
        wrong[member] = value.clone();
        let error = parse(wrong).unwrap_err();
        assert!(error.to_string().contains(said), "{member} {value}: {error}");
        assert_eq!(CallError::from(error).code, ErrorCode::MalformedMessage);
    }
}

#[test]
fn a_response_says_what_it_answers() {
    let mut response = with("type", json!("response"));
    assert!(parse(response.clone()).is_ok());
    response["correlation_id"] = json!(null);
    let missing = MessageError::Missing {
        member: "correlation_id",
    };
    assert_eq!(parse(response), Err(missing));
}

#[test]
fn what_is_too_long_or_no_json_is_refused_and_little_of_it_repeated() {
    let long = vec![b' '; Incoming::BODY_MAX + 1];
    let error = FederationMessage::parse(&long).unwrap_err();
    assert_eq!(error, MessageError::Length { length: long.len() });
    assert_eq!(CallError::from(error).code, ErrorCode::PayloadTooLarge);
    assert!(FederationMessage::adapt(&long, ID).is_err());
    for body in ["", "{", "[]", "null", "\"ping\""] {
        assert!(FederationMessage::parse(body.as_bytes()).is_err(), "{body}");
        assert!(FederationMessage::adapt(body.as_bytes(), ID).is_err(), "{body}");
    }
    let name = "x".repeat(100_000);
    for member in ["type", "ttl", "server_name", "source_node"] {
        let error = parse(with(member, json!(name))).unwrap_err().to_string();
        assert!(error.len() < 300, "{} bytes", error.len());
    }
}

#[test]
fn the_longest_way_is_taken() {
    let path: Vec<String> = (0..16).map(|node| format!("node-{node}")).collect();
    let mut far = request();
    far["ttl"] = json!(16);
    far["routing_path"] = json!(path);
    assert_eq!(parse(far).unwrap().links_max(), 0);
    assert_eq!(parse(with("ttl", json!(0))).unwrap().links_max(), 0);
    assert_eq!(parse(with("ttl", json!(2))).unwrap().links_max(), 2);
    assert_eq!(parse(request()).unwrap().links_max(), Call::LINKS_MAX);
}

#[test]
fn an_address_is_the_same_with_its_ending_and_without() {
    for (given, printed) in [
        (json!({"type": "home", "id": "bob"}), "bob.home"),
        (json!({"type": "home", "id": "bob.home"}), "bob.home"),
        (
            json!({"type": "home", "id": "bob", "main_relay": "relay-a.com"}),
            "bob.home@relay-a.com",
        ),
        (json!({"type": "main", "id": "relay-a.com"}), "relay-a.com.main"),
        (json!({"type": "main", "id": "alice.home"}), "alice.home.main"),
    ] {
        let message = parse(with("source_node", given.clone())).unwrap();
        assert_eq!(message.source_node.address().to_string(), printed);
        assert_eq!(json!(message.source_node), given);
    }
}

#[test]
fn a_ping_of_the_mesh_is_a_heartbeat() {
    let ping = adapt(json!({"type": "ping", "from": "node1", "to": "node2"})).unwrap();
    let expected = parse(json!({
        "type": "heartbeat",
        "message_id": "00000000000000000000000000000007",
        "source_node": {"type": "main", "id": "node1"},
        "destination_node": {"type": "main", "id": "node2"},
        "data": {"heartbeat": "ping"},
    }));
    assert_eq!(Ok(ping), expected);
    let pong = adapt(json!({
        "type": "pong", "id": "17", "from": "alice.home", "to": "relay-a.com", "data": null, "reply_to": "16",
        "timestamp": "0001-01-01T00:00:00Z",
    }));
    let pong = pong.unwrap();
    assert_eq!(pong.data["heartbeat"], "pong");
    assert_eq!(
        (pong.message_id.as_str(), pong.correlation_id.as_deref()),
        ("17", Some("16"))
    );
    assert_eq!(pong.source_node.address().to_string(), "alice.home");
}

#[test]
fn a_server_call_of_the_mesh_is_a_request_with_its_arguments_and_its_time() {
    let call = r#"{"server_name":"blog","method":"get","args":[1,"two"],"timeout":1500000000}"#;
    let message = adapt(json!({
        "type": "server_call", "id": "1", "from": "node1", "to": "bob.home@relay-b.com", "reply_to": "2",
        "data": {"call": call}, "timestamp": "2025-07-01T12:00:00Z", "route": ["node1", "node3"], "ttl": 9,
    }));
    let message = message.unwrap();
    assert_eq!((message.kind, message.ttl), (MessageKind::Request, 11));
    assert_eq!(message.routing_path.len(), 2);
    let call = message.call().unwrap();
    assert_eq!(call.target.unwrap().to_string(), "bob.home@relay-b.com");
    assert_eq!((call.service.as_str(), call.method.as_str()), ("blog", "get"));
    assert_eq!(
        call.arguments,
        Arguments::Positional(vec![json!(1), json!("two")])
    );
    assert_eq!(call.timeout, Duration::from_secs(2));
    assert_eq!(call.message_id.as_deref(), Some("1"));
}

#[test]
fn a_server_response_of_the_mesh_is_a_response_to_what_it_names() {
    for (response, member, value) in [
        (
            r#"{"success":true,"result":{"id":7},"node_id":"n"}"#,
            "result",
            json!({"id": 7}),
        ),
        (r#"{"success":true,"node_id":"n"}"#, "result", json!(null)),
        (
            r#"{"success":false,"error":"no such post"}"#,
            "error",
            json!("no such post"),
        ),
    ] {
        let message = adapt(json!({
            "type": "server_response", "from": "node2", "to": "node1", "reply_to": "1", "data": {"response": response},
        }));
        let message = message.unwrap();
        assert_eq!(message.kind, MessageKind::Response);
        assert_eq!(message.correlation_id.as_deref(), Some("1"));
        assert_eq!(Value::Object(message.data), json!({ member: value }));
    }
}

#[test]
fn a_registry_sync_of_the_mesh_is_a_service_discovery_with_what_it_says() {
    let data = json!({"servers": ["blog"]});
    let message = adapt(json!({"type": "registry_sync", "from": "node1", "to": "node2", "data": data}));
    let message = message.unwrap();
    assert_eq!(
        (message.kind, Value::Object(message.data)),
        (MessageKind::ServiceDiscovery, data)
    );
}

#[test]
fn what_is_wrapped_for_others_is_taken_out_however_often_it_was_wrapped() {
    let ping =
        json!({"type": "ping", "id": "1", "from": "node1", "to": "node3", "route": ["node1"], "ttl": 3});
    let alone = adapt(ping.clone()).unwrap();
    let wrap = |inner: Value, _: i32| json!({"type": "route_message", "from": "node1", "to": "node2", "data": {"routed_message": inner}});
    for times in [1, 2, 40] {
        assert_eq!(adapt((0..times).fold(ping.clone(), wrap)).as_ref(), Ok(&alone));
    }
    assert!(adapt(json!({"type": "route_message", "from": "node1", "to": "node2", "data": {}})).is_err());
    assert!(adapt(wrap(json!("ping"), 0)).is_err());
}

#[test]
fn what_is_no_message_of_the_mesh_is_refused() {
    for (member, value, said) in [
        ("type", json!(null), "no `type`"),
        ("type", json!("heartbeat"), "of type `heartbeat`"),
        ("from", json!(null), "no `from`"),
        ("to", json!(""), "no `to`"),
        ("from", json!("no such"), "`from` names nobody"),
        ("id", json!("a b"), "`message_id` is"),
        ("ttl", json!(-1), "not -1"),
        ("route", json!(["a", "a"]), "by `a` twice"),
        ("type", json!("server_call"), "`data.call` is to be a text"),
        ("type", json!("server_response"), "`data.response` is"),
    ] {
        let mut wrong = json!({"type": "ping", "from": "node1", "to": "node2"});
        wrong[member] = value.clone();
        let error = adapt(wrong).unwrap_err().to_string();
        assert!(error.contains(said), "{member} {value}: {error}");
    }
}

#[test]
fn a_request_is_the_call_that_the_edge_makes_of_the_same() {
    let named = json!({"id": 7});
    let args = |args: &Value| Arguments::from(args.clone());
    let expected = |target: Option<&str>, arguments: Arguments| {
        let mut call = RemoteCall::direct("blog.get", arguments).unwrap();
        call.target = target.map(|target| target.parse().unwrap());
        call.message_id = Some("m-1".to_owned());
        Ok(call)
    };
    let bob = Some("bob.home@relay-b.com");
    let rpc =
        |method: &str, params: &Value| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let any = json!({"service_name": "blog", "method": "get", "args": named});
    let at_carol = json!({"node_id": "carol.home", "service_name": "blog", "method": "get"});
    let by_place = json!(["carol.home", "blog", "get"]);
    for (server, method, request, args, call) in [
        (
            "blog",
            "get",
            json!(null),
            named.clone(),
            expected(bob, args(&named)),
        ),
        (
            "blog",
            "get",
            json!(null),
            json!(null),
            expected(bob, Arguments::None),
        ),
        (
            "blog",
            "",
            rpc("get", &named),
            json!(null),
            expected(bob, args(&named)),
        ),
        (
            "",
            "",
            rpc("blog.get", &named),
            json!(null),
            expected(bob, args(&named)),
        ),
        (
            "",
            "",
            rpc("remote_call", &any),
            json!(null),
            expected(None, args(&named)),
        ),
        (
            "",
            "",
            rpc("remote_call", &at_carol),
            json!(null),
            expected(Some("carol.home"), Arguments::None),
        ),
        (
            "blog",
            "get",
            rpc("remote_call", &by_place),
            json!(null),
            expected(Some("carol.home"), Arguments::None),
        ),
    ] {
        let mut message = self::request();
        message["server_name"] = json!(server);
        message["method"] = json!(method);
        message["jsonrpc_request"] = request;
        message["data"] = json!({ "args": args });
        assert_eq!(parse(message.clone()).unwrap().call(), call, "{message}");
    }
}

#[test]
fn a_request_has_the_priority_and_the_time_of_its_message() {
    for (priority, timeout, expected) in [
        (json!(null), json!(null), (0, RemoteCall::TIMEOUT_DEFAULT)),
        (json!(5), json!(30), (5, Duration::from_secs(30))),
        (json!(1000), json!(3600), (10, RemoteCall::TIMEOUT_MAX)),
        (json!(i64::MIN), json!(1), (-10, Duration::from_secs(1))),
    ] {
        let mut message = request();
        message["priority"] = priority;
        message["timeout_seconds"] = timeout;
        let call = parse(message).unwrap().call().unwrap();
        assert_eq!((call.priority, call.timeout), expected);
    }
}

#[test]
fn what_is_no_call_is_refused() {
    let rpc = |method: Value| json!({"jsonrpc": "2.0", "id": 1, "method": method});
    for (member, value, code) in [
        ("type", json!("heartbeat"), ErrorCode::MalformedMessage),
        ("timeout_seconds", json!(3601), ErrorCode::InvalidParams),
        (
            "jsonrpc_request",
            rpc(json!("remote_call")),
            ErrorCode::InvalidParams,
        ),
        ("jsonrpc_request", rpc(json!("get")), ErrorCode::MethodNotFound),
        ("jsonrpc_request", rpc(json!(null)), ErrorCode::MethodNotFound),
        ("jsonrpc_request", json!("blog.get"), ErrorCode::MethodNotFound),
    ] {
        let mut message = request();
        if member == "jsonrpc_request" {
            message["server_name"] = json!(null);
        }
        message[member] = value.clone();
        let error = parse(message).unwrap().call().unwrap_err();
        assert_eq!(error.code, code, "{member} {value}: {error}");
    }
}

#[test]
fn an_answer_goes_back_to_who_has_asked_and_says_to_what() {
    let asked = parse(request()).unwrap();
    let me = MessageAddress {
        role: Role::Main,
        id: "relay-b.com".parse().unwrap(),
        main: None,
    };
    let error = json!({"code": -32001, "message": "service `blog` was not announced", "data": {}});
    for (outcome, kind, data) in [
        (Ok(json!([1])), "response", json!({"result": [1]})),
        (Err(error.clone()), "error", json!({"error": error})),
    ] {
        let timestamp = Some(Timestamp::Number(5.into()));
        let answer = asked.answer(me.clone(), ID, timestamp, outcome);
        assert_eq!(
            serde_json::to_value(&answer).unwrap(),
            json!({
                "v": 1, "type": kind, "message_id": "00000000000000000000000000000007", "correlation_id": "m-1",
                "timestamp": 5,
                "source_node": {"type": "main", "id": "relay-b.com"},
                "destination_node": {"type": "home", "id": "alice.home", "main_relay": "relay-a.com"},
                "routing_path": [], "ttl": 10, "data": data,
            })
        );
        assert_eq!(
            FederationMessage::parse(answer.to_string().as_bytes()),
            Ok(answer)
        );
    }
}

#[test]
fn either_form_is_read_for_what_it_is() {
    let ping = json!({"type": "ping", "from": "node1", "to": "node2"}).to_string();
    assert_eq!(
        FederationMessage::read(ping.as_bytes(), ID),
        FederationMessage::adapt(ping.as_bytes(), ID)
    );
    let mut both = request();
    both["from"] = json!("node1");
    let both = both.to_string();
    assert_eq!(
        FederationMessage::read(both.as_bytes(), ID),
        FederationMessage::parse(both.as_bytes())
    );
    for neither in ["", "[]", "{}", r#"{"type":"ping"}"#] {
        assert!(
            FederationMessage::read(neither.as_bytes(), ID).is_err(),
            "{neither}"
        );
    }
}

#[test]
fn a_message_wants_a_call_a_sign_of_life_the_registry_or_nothing() {
    let wanted = |kind: &str| {
        let mut message = request();
        message["type"] = json!(kind);
        parse(message).unwrap().wanted()
    };
    let call = parse(request()).unwrap().call().unwrap();
    assert_eq!(wanted("request"), Ok(WantedOfUs::Call(Box::new(call))));
    assert_eq!(wanted("heartbeat"), Ok(WantedOfUs::SignOfLife));
    assert_eq!(wanted("service_discovery"), Ok(WantedOfUs::Registry));
    let refused = wanted("registration").unwrap_err();
    assert!(refused.message.contains("lapwing relay"), "{refused}");
    // What answers something is answered by nothing.
    for kind in ["heartbeat", "service_discovery", "response", "error"] {
        let answer = parse(with("type", json!(kind))).unwrap();
        assert_eq!(answer.wanted(), Ok(WantedOfUs::Nothing), "{kind}");
    }
    let pong = adapt(json!({"type": "pong", "from": "node1", "to": "node2"})).unwrap();
    assert_eq!(pong.wanted(), Ok(WantedOfUs::Nothing));
}

#[test]
fn what_is_no_message_is_told_so_by_one_and_known_again_where_it_has_an_id() {
    let me = MessageAddress::of("alice.home@relay-a.com".parse().unwrap());
    let document = json!({"code": -32016});
    for (body, known) in [
        (r#"{"message_id":"m-1","type":"gossip"}"#, Some("m-1")),
        (r#"{"id":"m-2","type":7}"#, Some("m-2")),
        (r#"{"message_id":"a b"}"#, None),
        (r#"{"message_id":7}"#, None),
        ("nonsense", None),
    ] {
        let refusal = FederationMessage::refusal(body.as_bytes(), me.clone(), ID, None, document.clone());
        assert_eq!(refusal.correlation_id.as_deref(), known, "{body}");
        assert_eq!(refusal.data["error"], document);
        assert_eq!(
            FederationMessage::parse(refusal.to_string().as_bytes()),
            Ok(refusal)
        );
    }
}

#[test]
fn older_flags_get_their_second_dash_and_nothing_else_changes() {
    for (written, expected) in [
        (
            "-server -node-type main -connect ws://relay-a.com:8080",
            "--server --node-type main --connect ws://relay-a.com:8080",
        ),
        ("-port=8080 -host=0.0.0.0", "--port=8080 --host=0.0.0.0"),
        (
            "-peers a:1,b:2 -node-id alice.home -fallback c:3 -add-peer d:4 -disable-registry",
            "--peers a:1,b:2 --node-id alice.home --fallback c:3 --add-peer d:4 --disable-registry",
        ),
        (
            "--server -v -s -p 8080 server -",
            "--server -v -s -p 8080 server -",
        ),
        ("-servers -port8080 -=port", "-servers -port8080 -=port"),
        ("-server -- -server", "--server -- -server"),
    ] {
        let args = written.split(' ').map(OsString::from);
        let changed: Vec<OsString> = double_dashed(args).collect();
        assert_eq!(changed, expected.split(' ').collect::<Vec<_>>());
    }
}

proptest! {
    #[test]
    fn whatever_comes_is_read_as_it_will_be_written_or_refused(
        kind in prop_oneof![
            "(request|response|heartbeat|error|ping|pong|server_call|server_response|registry_sync|route_message)",
            any::<String>(),
        ],
        ids in proptest::collection::vec(prop_oneof!["[a-c.@]{0,8}", any::<String>()], 6),
        path in proptest::collection::vec("[a-f]", 0..4),
        ttl in prop_oneof![-2..20_i64, any::<i64>()],
        number in any::<i64>(),
        args in prop_oneof![any::<String>().prop_map(Value::from), any::<i32>().prop_map(Value::from), Just(Value::Null)],
    ) {
        let [id, other, source, destination, service, method] = ids.try_into().unwrap();
        let inner = json!({
            "server_name": service, "method": method, "args": args, "timeout": number, "success": ttl > 0, "result": args,
        });
        let body = json!({
            "type": kind, "message_id": id, "correlation_id": other, "source_node": {"type": "home", "id": source},
            "destination_node": {"type": "main", "id": destination}, "routing_path": path, "ttl": ttl,
            "server_name": service, "method": method, "data": {"args": args}, "priority": number,
        });
        let mesh = json!({
            "type": kind, "id": id, "from": source, "to": destination, "reply_to": other, "route": path, "ttl": ttl,
            "data": {"call": inner.to_string(), "response": inner.to_string(), "routed_message": body},
        });
        let adapted = [adapt(mesh), adapt(body.clone()), parse(body)];
        for message in adapted.into_iter().flatten() {
            let _ = message.call();
            prop_assert!(message.routing_path.len() <= usize::from(message.ttl));
            prop_assert!(message.ttl <= FederationMessage::TTL_MAX);
            prop_assert_eq!(FederationMessage::parse(message.to_string().as_bytes()), Ok(message));
        }
    }
}

/// Of alice, for bob.
fn request() -> Value {
    json!({
        "type": "request",
        "message_id": "m-1",
        "source_node": {"type": "home", "id": "alice.home", "main_relay": "relay-a.com"},
        "destination_node": {"type": "home", "id": "bob.home", "main_relay": "relay-b.com"},
        "server_name": "blog",
        "method": "get",
    })
}

/// The same with another member, and an answer to something.
fn with(member: &str, value: Value) -> Value {
    let mut message = request();
    message["correlation_id"] = json!("m-0");
    message[member] = value;
    message
}

fn parse(message: Value) -> Result<FederationMessage, MessageError> {
    FederationMessage::parse(message.to_string().as_bytes())
}

fn adapt(message: Value) -> Result<FederationMessage, MessageError> {
    FederationMessage::adapt(message.to_string().as_bytes(), ID)
}
