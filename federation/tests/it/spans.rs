//! The spans that calls leave behind.

use std::sync::Arc;

use lapwing_federation::{Echo, Headers, Span, SpanKind, SpanStatus, TraceParent};
use tokio::sync::mpsc;

use crate::http::Edge;
use crate::nodes::{Houses, PATIENCE};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const CALLERS_SPAN: u64 = 0xb7ad_6b71_6920_3331;

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_three_links_leaves_one_chain_of_spans_below_its_callers() {
    let (houses, mut spans) = start().await;
    let answer = ask(&houses, BLOG_ECHO, Some(CALLER)).await;
    assert_eq!(answer["result"], "hi");
    // In at the edge and at three nodes, out at three.
    let spans = next(&mut spans, 7).await;
    let mut parent = Some(CALLERS_SPAN);
    let mut chain = Vec::new();
    while let Some(span) = spans.iter().find(|span| span.parent_span_id == parent) {
        chain.push((span.kind, peer(span)));
        parent = Some(span.span_id);
    }
    let [alice, a, b, bob] =
        [&houses.alice, &houses.main_a, &houses.main_b, &houses.bob].map(|node| Some(node.id().to_string()));
    use SpanKind::{Client, Server};
    assert_eq!(
        chain,
        [
            (Server, None),
            (Client, a.clone()),
            (Server, alice),
            (Client, b.clone()),
            (Server, a),
            (Client, bob),
            (Server, b),
        ]
    );
    for span in &spans {
        assert_eq!(span.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(
            (span.name.as_str(), &span.status),
            ("blog.echo", &SpanStatus::Unset)
        );
    }
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_is_not_sampled_leaves_none_and_one_that_begins_here_has_a_root() {
    let (houses, mut spans) = start().await;
    let unsampled = CALLER.replace("-01", "-00");
    ask(&houses, BLOG_ECHO, Some(&unsampled)).await;
    // What comes first is of the second call.
    let answer = ask(&houses, r#"{"jsonrpc":"2.0","id":1,"method":"none.echo"}"#, None).await;
    assert_eq!(answer["error"]["code"], -32001);
    // In at Alice's edge, out to her main, in there: nobody has such a service.
    let spans = next(&mut spans, 3).await;
    let roots: Vec<&Span> = spans
        .iter()
        .filter(|span| span.parent_span_id.is_none())
        .collect();
    assert_eq!(roots.len(), 1);
    for span in &spans {
        let message = "service `none` was not announced".to_owned();
        assert_eq!(
            (span.name.as_str(), &span.status),
            ("none.echo", &SpanStatus::Error { message })
        );
        assert!(
            span.attributes
                .contains(&("error.type", "service_not_found".into()))
        );
        assert_eq!(span.trace_id, roots[0].trace_id);
    }
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_begins_with_a_request_over_http_has_a_root_and_its_caller_is_told_that_it_is_sampled() {
    let (houses, mut spans) = start().await;
    let edge = Edge::of(&houses.alice).await;
    let response = edge.client.post(format!("{}/rpc", edge.url)).body(BLOG_ECHO);
    let response = response.send().await.unwrap();
    let parent = response.headers()["traceparent"].to_str().unwrap().to_owned();
    drop(response);
    let spans = next(&mut spans, 7).await;
    let root = spans.iter().find(|span| span.parent_span_id.is_none()).unwrap();
    let parent: TraceParent = parent.parse().unwrap();
    assert_eq!((parent.trace(), parent.is_sampled()), (root.trace_id, true));
    edge.stop().await;
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_linked_with_those_whose_results_it_was_given() {
    let (houses, mut spans) = start().await;
    let answer = ask(
        &houses,
        r#"{"jsonrpc":"2.0","id":1,"method":"request","params":{"commands":[
            {"name":"first","fun":"blog.echo","args":[1]},
            {"name":"second","fun":"blog.echo","args":["first"]}]}}"#,
        Some(CALLER),
    )
    .await;
    assert_eq!(answer["result"]["second"], 1);
    // The request, and of each command one span within Alice and six on its way.
    let spans = next(&mut spans, 15).await;
    let request = spans.iter().find(|span| span.name == "request").unwrap();
    assert_eq!(
        (request.kind, request.parent_span_id),
        (SpanKind::Server, Some(CALLERS_SPAN))
    );
    let commands = spans.iter().filter(|span| span.kind == SpanKind::Internal);
    let [first, second] = commands.collect::<Vec<_>>()[..] else {
        panic!("{spans:?}");
    };
    for command in [first, second] {
        assert_eq!(command.parent_span_id, Some(request.span_id));
    }
    assert_eq!((&first.links, &second.links), (&vec![], &vec![first.span_id]));
    houses.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_do_not_wait_for_whoever_collects_spans() {
    let (to, spans) = mpsc::channel(1);
    let houses = Houses::start_with(|config| config.spans = Some(to.clone())).await;
    houses.alice.offer("blog", Arc::new(Echo));
    for _ in 0..3 {
        let answer = ask(&houses, BLOG_ECHO, Some(CALLER)).await;
        assert_eq!(answer["result"], "hi");
    }
    assert_eq!(houses.alice.federation.spans_lost(), 2);
    let edge = Edge::of(&houses.alice).await;
    let metrics = edge.client.get(format!("{}/metrics", edge.url)).send().await;
    let metrics = metrics.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("\nlapwing_federation_spans_lost_total 2\n"),
        "{metrics}"
    );
    edge.stop().await;
    drop(spans);
    houses.stop().await;
}

const BLOG_ECHO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"blog.echo","params":["hi"]}"#;

/// Bob offers `blog`, three links from Alice.
async fn start() -> (Houses, mpsc::Receiver<Span>) {
    let (to, spans) = mpsc::channel(100);
    let houses = Houses::start_with(|config| config.spans = Some(to.clone())).await;
    houses.bob.offer("blog", Arc::new(Echo));
    houses.until_known("blog", 2).await;
    (houses, spans)
}

async fn ask(houses: &Houses, body: &str, trace_parent: Option<&str>) -> serde_json::Value {
    let headers = Headers {
        trace_parent: trace_parent.map(str::to_owned),
        ..Headers::default()
    };
    let reply = houses.alice.federation.answer(body.as_bytes(), &headers).await;
    serde_json::from_str(&reply.body.unwrap()).unwrap()
}

/// So many spans, in the order in which they have ended.
async fn next(spans: &mut mpsc::Receiver<Span>, count: usize) -> Vec<Span> {
    let mut all = Vec::new();
    while all.len() < count {
        let span = tokio::time::timeout(PATIENCE, spans.recv()).await;
        all.push(span.unwrap().unwrap());
    }
    assert!(spans.try_recv().is_err(), "there are more");
    all
}

fn peer(span: &Span) -> Option<String> {
    let mut attributes = span.attributes.iter();
    let (_, peer) = attributes.find(|(name, _)| *name == "network.peer.address")?;
    Some(peer.to_string())
}
