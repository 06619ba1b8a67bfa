//! Several nodes in one process, with real sockets on loopback, that call each other's services.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod balancing;
mod catalog;
mod chain;
mod child_backend;
mod congestion;
mod executed;
mod health;
mod http;
mod http_backend;
mod leaving;
mod matching;
mod methods;
mod names;
mod nodes;
mod refusals;
mod spans;
mod websocket;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use lapwing_base::Role;
use lapwing_federation::{
    Backend, CallError, Echo, ErrorCode, Invocation, Methods, OfferError, RemoteError, Service,
};
use nodes::{Houses, PATIENCE, call, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_home_calls_a_home_of_another_main_over_three_links() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let answer = houses.alice.call(call("blog", "echo", "[\"hello\"]")).await;
    assert_eq!(answer.outcome, Ok("\"hello\"".to_owned()));
    let nodes: Vec<_> = answer.hops.iter().map(|hop| hop.node).collect();
    let way = [&houses.bob, &houses.main_b, &houses.main_a, &houses.alice];
    assert_eq!(nodes, way.map(|node| node.id()), "whoever has answered first");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_by_name_goes_to_that_node_and_to_none_other() {
    let houses = Houses::start().await;
    for node in [&houses.bob, &houses.carol] {
        node.offer("who", Arc::new(Says(node.name)));
    }
    houses.until_known("who", 2).await;
    for (address, said) in [
        ("bob.home@main-b", "bob"),
        ("carol", "carol"),
        ("carol.home@main-a", "carol"),
    ] {
        let mut by_name = call("who", "say", "[]");
        by_name.address = Some(address.parse().unwrap());
        let answer = houses.alice.call(by_name).await;
        assert_eq!(answer.outcome, Ok(format!("\"{said}\"")), "{address}");
    }
    let mut missing = call("who", "say", "[]");
    missing.address = Some("nonexistent.home".parse().unwrap());
    let answer = houses.alice.call(missing).await;
    let failure = answer.outcome.unwrap_err();
    assert_eq!(failure.code, ErrorCode::NodeNotFound);
    assert_eq!(
        failure.failed_at,
        houses.main_a.id(),
        "its main does not know either"
    );
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_any_instance_are_spread_evenly_and_go_to_the_other_when_one_has_gone() {
    let mut houses = Houses::start().await;
    for node in [&houses.alice, &houses.carol] {
        node.offer("who", Arc::new(Says(node.name)));
    }
    houses.until_known("who", 2).await;
    let mut said = Vec::new();
    for _ in 0..10 {
        said.push(
            houses
                .main_a
                .call(call("who", "say", "[]"))
                .await
                .outcome
                .unwrap(),
        );
    }
    let by_alice = said.iter().filter(|who| *who == "\"alice\"").count();
    assert_eq!(by_alice, 5, "{said:?}");
    houses.alice.stop().await;
    houses.alice = nodes::Node::start("alice", Role::Home).await;
    eventually("alice's services are gone", || {
        houses.main_a.offers("who").len() == 1
    })
    .await;
    for _ in 0..10 {
        let answer = houses.main_a.call(call("who", "say", "[]")).await;
        assert_eq!(answer.outcome, Ok("\"carol\"".to_owned()));
    }
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_offers_is_told_at_once() {
    let houses = Houses::start().await;
    let answer = houses.alice.call(call("none", "say", "[]")).await;
    assert_eq!(answer.outcome.unwrap_err().code, ErrorCode::ServiceNotFound);
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    assert!(houses.bob.withdraw("blog"));
    eventually("nobody offers it any more", || {
        houses.main_a.offers("blog").is_empty()
    })
    .await;
    let answer = houses.alice.call(call("blog", "echo", "[]")).await;
    assert_eq!(answer.outcome.unwrap_err().code, ErrorCode::ServiceNotFound);
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_answers_in_place_of_a_result_comes_back_and_opens_the_breaker_where_it_is_its_fault()
{
    let houses = Houses::start().await;
    houses.bob.offer("shop", Arc::new(Fails { fault: true }));
    houses.until_known("shop", 2).await;
    let mut codes = Vec::new();
    for _ in 0..10 {
        let failure = houses
            .alice
            .call(call("shop", "buy", "[]"))
            .await
            .outcome
            .unwrap_err();
        if failure.code == ErrorCode::RemoteError {
            assert_eq!(failure.failed_at, houses.bob.id());
            assert_eq!(failure.remote.unwrap().message, "no stock");
        } else {
            assert!(failure.retry_after_ms.is_some());
        }
        codes.push(failure.code);
    }
    assert_eq!(codes[0], ErrorCode::RemoteError);
    assert_eq!(*codes.last().unwrap(), ErrorCode::CircuitOpen, "{codes:?}");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_in_time_is_a_timeout_and_its_call_is_dropped() {
    let houses = Houses::start().await;
    let never = Arc::new(Never::default());
    houses.bob.offer("slow", Arc::clone(&never) as Arc<dyn Backend>);
    houses.until_known("slow", 2).await;
    let mut slow = call("slow", "wait", "[]");
    // Of which each node keeps a twentieth for the way back.
    slow.remaining_ms = 3_000;
    let failure = houses.alice.call(slow).await.outcome.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Timeout);
    assert_eq!(
        failure.failed_at,
        houses.bob.id(),
        "who has waited, and not a link"
    );
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_caller_waits_no_longer_is_given_up_on_the_whole_way() {
    let houses = Houses::start().await;
    let never = Arc::new(Never::default());
    houses.bob.offer("slow", Arc::clone(&never) as Arc<dyn Backend>);
    houses.until_known("slow", 2).await;
    let calls = join_all((0..300).map(|_| houses.alice.call(call("slow", "wait", "[]"))));
    tokio::select! {
        _ = calls => panic!("it never answers"),
        () = eventually("calls have come three links far", || never.waiting.load(Ordering::Relaxed) > 100) => {}
    }
    eventually("nobody waits", || never.waiting.load(Ordering::Relaxed) == 0).await;
    // And nothing of them is in the way of others.
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    assert_eq!(
        houses.alice.call(call("blog", "echo", "[1]")).await.outcome,
        Ok("1".to_owned())
    );
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_goes_to_another_main_when_its_own_is_gone_and_its_services_with_it() {
    let mut houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    // Bob's list has the other main, too.
    let gone = std::mem::replace(&mut houses.main_b, nodes::Node::start("main-b", Role::Main).await);
    gone.kill().await;
    let comes_back = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(said) = houses.alice.call(call("blog", "echo", "[1]")).await.outcome {
                break said;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(comes_back.await.unwrap(), "1");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_at_once_are_all_answered_each_with_its_own() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let calls = (0..1000).map(|number| houses.alice.call(call("blog", "echo", &format!("[{number}]"))));
    for (number, answer) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(answer.outcome, Ok(number.to_string()));
    }
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_calls_and_long_answers_come_whole_and_nothing_waits_behind_them() {
    let houses = Houses::start().await;
    let methods = Methods::new()
        .method(
            "repeat",
            |(times,): (usize,)| async move { Ok("x".repeat(times)) },
        )
        .method("length", |(text,): (String,)| async move { Ok(text.len()) });
    let mut service = Service::new("blog".parse().unwrap());
    service.methods = methods.names();
    houses.bob.federation.offer(service, Arc::new(methods)).unwrap();
    houses.until_known("blog", 2).await;
    // Below and above what goes over a line, and far above it.
    let calls = [100, 40_000, 1_000_000].map(|times| {
        let text = "x".repeat(times);
        let repeat = call("blog", "repeat", &format!("[{times}]"));
        let length = call("blog", "length", &format!("[\"{text}\"]"));
        let houses = &houses;
        async move {
            let both = futures::future::join(houses.alice.call(repeat), houses.alice.call(length)).await;
            assert_eq!(both.0.outcome, Ok(format!("\"{text}\"")));
            assert_eq!(both.1.outcome, Ok(times.to_string()));
        }
    });
    join_all(calls).await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_rpc_at_a_home_reaches_a_service_three_links_away_and_shows_the_way() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    let answer = houses
        .ask(r#"{"jsonrpc":"2.0","id":7,"method":"remote_call","params":{"node_id":"bob.home@main-b","server_name":"blog","method":"echo","args":["hi"],"trace":true}}"#)
        .await;
    assert_eq!(
        (&answer["id"], &answer["result"]),
        (&7.into(), &"hi".into()),
        "{answer}"
    );
    assert_eq!(answer["trace"]["hops"], 3);
    assert_eq!(answer["trace"]["path"][0]["node"], houses.alice.id().to_string());
    assert_eq!(answer["trace"]["path"][3]["node"], houses.bob.id().to_string());
    let path = answer["trace"]["path"].as_array().unwrap();
    let roles: Vec<_> = path.iter().map(|hop| hop["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["home", "main", "main", "home"]);
    // All are of one machine here, so that its clock has seen them in this order, and none before this test was written.
    let came: Vec<_> = path
        .iter()
        .map(|hop| hop["in_unix_ns"].as_u64().unwrap())
        .collect();
    assert!(
        came.is_sorted() && came[0] > 1_700_000_000_000_000_000,
        "{came:?}"
    );
    // The same of any instance, and directly; several at once, of which one is answered with what is wrong.
    let answers = houses
        .ask(r#"[{"jsonrpc":"2.0","id":"a","method":"remote_call","params":{"service_name":"blog","method":"echo","args":1}},
                 {"jsonrpc":"2.0","id":"b","method":"blog.echos","params":[2,3]},
                 {"jsonrpc":"2.0","method":"blog.echo","params":[4]},
                 {"jsonrpc":"2.0","id":"d","method":"none.echo"}]"#)
        .await;
    assert_eq!(
        answers.as_array().unwrap().len(),
        3,
        "a notification is not answered"
    );
    assert_eq!(answers[0]["result"], 1);
    assert_eq!(answers[1]["result"], serde_json::json!([2, 3]));
    assert_eq!(answers[2]["error"]["code"], -32001);
    assert_eq!(
        answers[2]["error"]["data"]["failed_at"],
        houses.main_a.id().to_string()
    );
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_far_away_shows_its_way_and_times_as_far_as_they_are_known() {
    let houses = Houses::start().await;
    houses.bob.offer("shop", Arc::new(Fails { fault: false }));
    houses.bob.offer("slow", Arc::new(Never::default()));
    houses.until_known("shop", 2).await;
    houses.until_known("slow", 2).await;
    let ask = async |service: &str, trace: bool| {
        let timeout = if service == "slow" { 0.5 } else { 30.0 };
        let params =
            serde_json::json!({"service_name": service, "method": "any", "timeout": timeout, "trace": trace});
        let body = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": params});
        houses.ask(&body.to_string()).await
    };
    let nodes = [&houses.alice, &houses.main_a, &houses.main_b, &houses.bob];
    let way = nodes.map(|node| serde_json::json!(node.id().to_string()));
    let nodes_of = |answer: &serde_json::Value| -> Vec<serde_json::Value> {
        let path = answer["trace"]["path"].as_array().unwrap();
        path.iter().map(|hop| hop["node"].clone()).collect()
    };
    let failed = ask("shop", true).await;
    assert_eq!(failed["error"]["data"]["name"], "remote_error", "{failed}");
    assert_eq!(nodes_of(&failed), way, "{failed}");
    assert_eq!(failed["trace"]["hops"], 3);
    assert_eq!(
        failed["trace"]["trace_id"], failed["error"]["data"]["trace_id"],
        "{failed}"
    );
    let late = ask("slow", true).await;
    assert_eq!(late["error"]["data"]["name"], "timeout", "{late}");
    // Of a busy machine those who have waited longer may have said so first.
    let known = nodes_of(&late);
    assert!(!known.is_empty() && way.starts_with(&known), "{late}");
    let waited = late["trace"]["path"][0]["forward_us"].as_u64().unwrap();
    assert!(waited > 100_000, "{late}");
    let quiet = ask("shop", false).await;
    assert!(quiet.get("trace").is_none(), "{quiet}");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_one_request_get_the_results_of_others_from_wherever_those_are() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.carol.offer("shop", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    houses.until_known("shop", 2).await;
    let answer = houses
        .ask(r#"{"jsonrpc":"2.0","id":1,"method":"request","params":{
                 "include_execution_summary":true,"return_intermediate_results":true,"return":"all","commands":[
                 {"name":"both","fun":"shop.echos","args":[{"$ref":"post.title"},{"$ref":"price"}]},
                 {"name":"post","fun":"blog.echo","args":[{"title":"hello"}]},
                 {"name":"price","fun":"shop.echo","args":[12]}]}}"#)
        .await;
    assert_eq!(
        answer["result"]["results"]["both"],
        serde_json::json!(["hello", 12]),
        "{answer}"
    );
    let summary = &answer["result"]["execution_summary"];
    assert_eq!(summary["total_levels"], 2);
    assert_eq!(summary["level_execution_times"].as_array().map(Vec::len), Some(2));
    // Two commands at carol's, two links away from alice, and one at bob's.
    assert_eq!(summary["links_crossed"], 2 + 2 + 3, "{answer}");
    let levels = answer["result"]["intermediate_results"].as_array().unwrap();
    assert_eq!(levels.len(), 2, "{answer}");
    for level in levels {
        assert!(level["timestamp"].is_string() && level["execution_time_ms"].is_number());
        assert_eq!(level["request_id"], summary["request_id"]);
    }
    let answer = houses
        .ask(r#"{"jsonrpc":"2.0","id":1,"method":"request","params":{"commands":[],"return_intermediate_results":true}}"#)
        .await;
    let nothing = serde_json::json!({"results": {}, "intermediate_results": []});
    assert_eq!(answer["result"], nothing, "{answer}");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_as_long_as_it_says_and_its_commands_go_where_they_say() {
    let houses = Houses::start().await;
    houses.bob.offer("name", Arc::new(Says("bob")));
    houses.carol.offer("name", Arc::new(Says("carol")));
    houses.alice.offer("slow", Arc::new(Never::default()));
    houses.until_known("name", 2).await;
    eventually("both are known", || houses.main_a.offers("name").len() == 2).await;
    let answer = houses
        .ask(
            r#"{"jsonrpc":"2.0","id":1,"method":"request","params":{"commands":[
                 {"name":"b","fun":"name.say","node_id":"bob.home@main-b"},
                 {"name":"c","fun":"name.say","node_id":"carol.home"},
                 {"name":"v","fun":"name.say","version":">=1","locs":[],"idempotent":true,"priority":3}]}}"#,
        )
        .await;
    let said = &answer["result"];
    assert_eq!(
        (&said["b"], &said["c"]),
        (&"bob".into(), &"carol".into()),
        "{answer}"
    );
    assert!(said["v"].is_string(), "{answer}");
    let answer = houses
        .ask(
            r#"{"jsonrpc":"2.0","id":1,"method":"request","params":{"timeout":0.2,"commands":[
                 {"name":"late","fun":"slow.wait"},{"name":"later","fun":"name.say","args":["late"]}]}}"#,
        )
        .await;
    assert_eq!(answer["error"]["data"]["name"], "timeout", "{answer}");
    assert_eq!(answer["error"]["data"]["mpreg_code"], 1004, "{answer}");
    let answer = houses
        .ask(
            r#"{"jsonrpc":"2.0","id":1,"method":"request","params":{"commands":[
                 {"name":"v","fun":"name.say","version":">=2"}]}}"#,
        )
        .await;
    assert_eq!(answer["error"]["data"]["name"], "version_unsatisfied", "{answer}");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_fails_says_with_which_command_on_which_way_and_what_it_took() {
    let houses = Houses::start().await;
    houses.bob.offer("shop", Arc::new(Fails { fault: false }));
    houses.until_known("shop", 2).await;
    let answer = houses
        .ask(r#"{"jsonrpc":"2.0","id":1,"method":"request","params":{"include_execution_summary":true,"commands":[
                 {"name":"bought","fun":"shop.buy"}]}}"#)
        .await;
    let error = &answer["error"];
    assert_eq!(
        error["message"],
        "command `bought` has failed: the service has answered with an error"
    );
    let data = &error["data"];
    assert_eq!(
        (&data["name"], &data["command"]),
        (&"remote_error".into(), &"bought".into())
    );
    let way = [&houses.alice, &houses.main_a, &houses.main_b, &houses.bob].map(|node| node.id().to_string());
    assert_eq!(data["path"], serde_json::json!(way), "{answer}");
    assert_eq!(data["failed_at"], houses.bob.id().to_string());
    assert_eq!(data["execution_summary"]["total_levels"], 1, "{answer}");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_node_has_and_the_only_method_of_a_service_are_called_without_the_other_name() {
    let houses = Houses::start().await;
    let methods = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    for (name, announced) in [
        ("echo", &["echo", "echos"][..]),
        ("clock", &["echo"]),
        ("quiet", &[]),
    ] {
        let mut service = Service::new(name.parse().unwrap());
        service.methods = methods(announced);
        houses.bob.federation.offer(service, Arc::new(Echo)).unwrap();
        houses.until_known(name, 2).await;
    }
    let answers = houses
        .ask(r#"[{"jsonrpc":"2.0","id":1,"method":"echo","params":["a","b"]},
                 {"jsonrpc":"2.0","id":2,"method":"echos","params":["a","b"]},
                 {"jsonrpc":"2.0","id":3,"method":"request","params":{"commands":[
                     {"name":"x","fun":"echo","args":[1,2]},{"name":"y","fun":"echos","args":[1,2]},
                     {"name":"z","fun":"clock","args":[1,2]}]}},
                 {"jsonrpc":"2.0","id":4,"method":"request","params":{"commands":[{"name":"q","fun":"quiet"}]}}]"#)
        .await;
    assert_eq!(answers[0]["result"], "a", "{answers}");
    assert_eq!(answers[1]["result"], serde_json::json!(["a", "b"]), "{answers}");
    let expected = serde_json::json!({"x": 1, "y": [1, 2], "z": 1});
    assert_eq!(answers[2]["result"], expected, "{answers}");
    let error = &answers[3]["error"];
    assert_eq!(error["data"]["name"], "method_not_found", "{answers}");
    let said = error["message"].as_str().unwrap();
    assert!(said.ends_with("as in `quiet.METHOD`"), "{said}");
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_offered_once_by_a_node() {
    let houses = Houses::start().await;
    houses.bob.offer("blog", Arc::new(Echo));
    let again = Service::new("blog".parse().unwrap());
    let refused = houses.bob.federation.offer(again, Arc::new(Echo));
    assert!(matches!(refused, Err(OfferError::Twice(_))));
    houses.stop().await;
}

/// Says a name.
struct Says(&'static str);

impl Backend for Says {
    fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        std::future::ready(Ok(format!("\"{}\"", self.0))).boxed()
    }
}

/// Answers with an error of its own.
struct Fails {
    fault: bool,
}

impl Backend for Fails {
    fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        let mut error = CallError::new(ErrorCode::RemoteError, "the service has answered with an error");
        error.remote = Some(RemoteError {
            code: 17,
            message: "no stock".to_owned(),
            fault: self.fault,
        });
        std::future::ready(Err(error)).boxed()
    }
}

/// Never answers, and knows how many wait.
#[derive(Default)]
struct Never {
    waiting: AtomicUsize,
}

/// One that waits.
struct Waiting(Arc<Never>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Backend for Never {
    fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(self);
        tokio::time::sleep(Duration::from_secs(3600))
            .map(|()| {
                drop(waiting);
                Ok(String::new())
            })
            .boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mains_of_a_cluster_meet_as_soon_as_one_of_them_has_something_to_tell() {
    let (quiet, offering) = (
        nodes::Node::start("quiet", Role::Main).await,
        nodes::Node::start("offering", Role::Main).await,
    );
    quiet.join(&offering);
    offering.join(&quiet);
    assert_eq!(quiet.federation.neighbours(), [], "nobody has anything to tell");
    offering.offer("blog", Arc::new(Echo));
    eventually("the other knows of it", || quiet.offers("blog").len() == 1).await;
    let answer = quiet.call(call("blog", "echo", "[\"hello\"]")).await;
    assert_eq!(answer.outcome, Ok("\"hello\"".to_owned()));
    for node in [quiet, offering] {
        node.stop().await;
    }
}
