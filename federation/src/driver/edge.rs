//! JSON-RPC at the edge: what a body asks is carried out, and what a caller is answered. Knows no HTTP but its status.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::{BoxFuture, join_all};
use futures::stream::FuturesUnordered;
use lapwing_base::PeerId;
use rand::RngExt as _;
use serde_json::{Map, Value, json};
use tracing::{Instrument as _, debug, debug_span, warn};

use super::documents::time_text;
use super::results::Share;
use super::spans::OpenSpan;
use super::{Federation, Inner, now};
use crate::call::TRACE_STATE_MAX;
use crate::json_rpc::{Answer, Incoming, Parsed, Reply, Request};
use crate::{
    Arguments, Call, CallAnswer, CallError, CallId, Commands, Constraint, ErrorCode, Progress, ReadyCommand,
    RemoteCall, Span, SpanKind, Token, TraceContext, TraceParent,
};

/// What a caller of the edge has sent beside the body, as far as it is of use.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Headers {
    /// `traceparent`; what is none begins a trace.
    pub trace_parent: Option<String>,
    /// Whether that was drawn for this request, and nobody has a span of it.
    pub is_root: bool,
    /// What `Authorization: Bearer` has, for services that ask their callers for it. It goes no further than this node.
    pub token: Option<Token>,
    /// `tracestate`, which is passed on with the trace.
    pub trace_state: Option<String>,
    /// `X-Request-Id`, by which what is logged of it is found.
    pub request_id: Option<String>,
}

/// A call that is made for a body, and the trace that it belongs to.
#[derive(Clone, Copy, Debug)]
struct Tracing<'a> {
    parent: TraceParent,
    /// Whether the trace has begun before it came here, so that somebody knows the span of `parent`.
    is_continued: bool,
    state: Option<&'a str>,
    /// What the caller knows, where a service asks.
    token: Option<&'a Token>,
    /// What the caller calls the request.
    request_id: Option<&'a str>,
    /// What the request has of results.
    share: &'a Share,
    /// Whether a message id says that the caller may ask again. Older messages all have one.
    names_calls: bool,
}

impl Federation {
    /// Carries out what a body of JSON-RPC 2.0 asks, and says what is answered. The methods are `remote_call`, `request` with
    /// commands that may need each other's results, and `service.method` for any instance of a service.
    pub async fn answer(&self, body: &[u8], headers: &Headers) -> Reply {
        self.answer_with_share(body, headers).await.0
    }

    /// The same, with what the answer has of results: to be kept until it is written.
    pub(super) async fn answer_with_share(&self, body: &[u8], headers: &Headers) -> (Reply, Share) {
        let share = self.inner.results.share();
        let tracing = self.tracing(headers, &share);
        let reply = self
            .answer_all(Incoming::parse(body), tracing)
            .instrument(self.span(headers, tracing))
            .await;
        (reply, share)
    }

    /// Makes a call that was asked for in another form than JSON-RPC, over no more links than it may cross; the result or the
    /// `error` that its caller is told, and how that came if it was asked for.
    pub(super) async fn answer_call(
        &self,
        asked: Result<RemoteCall, CallError>,
        links_max: u8,
        headers: &Headers,
    ) -> (Result<Value, Value>, Option<Value>) {
        let share = self.inner.results.share();
        let tracing = Tracing {
            names_calls: false,
            ..self.tracing(headers, &share)
        };
        let span = self.span(headers, tracing);
        let came = match asked {
            Ok(asked) => self.make(asked, links_max, tracing).instrument(span).await,
            Err(error) => Err(span.in_scope(|| refused(error, tracing.parent))),
        };
        let failed = came.as_ref().err().map(|failed| failed.error.code);
        self.inner.lock().counts.on_request(failed);
        match came {
            Ok((result, trace)) => (Ok(result), trace),
            Err(failed) => {
                let (document, trace) = failed.told(self.inner.me, &tracing.parent.trace_id());
                (Err(document), trace)
            }
        }
    }

    /// What is logged of a request is found by this.
    fn span(&self, headers: &Headers, tracing: Tracing<'_>) -> tracing::Span {
        let request_id = headers.request_id.as_deref();
        debug_span!("rpc", me = %self.inner.me, request_id, trace_id = tracing.parent.trace_id())
    }

    fn tracing<'a>(&self, headers: &'a Headers, share: &'a Share) -> Tracing<'a> {
        let given = headers.trace_parent.as_deref().and_then(|text| text.parse().ok());
        let is_continued = given.is_some() && !headers.is_root;
        let parent = given.unwrap_or_else(|| self.inner.begin_trace());
        // The state belongs to its parent.
        let state = headers
            .trace_state
            .as_deref()
            .filter(|state| is_continued && state.len() <= TRACE_STATE_MAX);
        Tracing {
            parent,
            is_continued,
            state,
            token: headers.token.as_ref(),
            request_id: headers.request_id.as_deref(),
            share,
            names_calls: true,
        }
    }

    async fn answer_all(&self, incoming: Incoming, tracing: Tracing<'_>) -> Reply {
        match incoming {
            Incoming::Single(parsed) => {
                let message_id = match &parsed {
                    Parsed::Request(request) if request.method == "remote_call" => {
                        RemoteCall::message_id_in(&request.params)
                    }
                    _ => None,
                };
                Reply {
                    message_id,
                    ..Reply::single(self.answer_one(parsed, tracing).await)
                }
            }
            Incoming::Batch(all) => {
                let answers = all.into_iter().map(|parsed| self.answer_one(parsed, tracing));
                Reply::batch(join_all(answers).await)
            }
        }
    }

    async fn answer_one(&self, parsed: Parsed, tracing: Tracing<'_>) -> Option<Answer> {
        let trace_id = tracing.parent.trace_id();
        let Request { id, method, params } = match parsed {
            Parsed::Invalid(invalid) => {
                log_refusal(&invalid.error, tracing.parent);
                self.inner.lock().counts.on_request(Some(invalid.error.code));
                return Some(invalid.answer(|error| error.document(self.inner.me, &[], &trace_id)));
            }
            Parsed::Request(request) => request,
        };
        let came = match method.as_str() {
            "request" => match self.run(params, tracing).await {
                Ok(result) => Ok((result, None)),
                Err(failed) => {
                    log_refusal(&failed.error, tracing.parent);
                    Err(failed)
                }
            },
            "remote_call" => match RemoteCall::parse(params) {
                Ok(call) => self.make(call, Call::LINKS_MAX, tracing).await,
                Err(error) => Err(refused(error, tracing.parent)),
            },
            direct => match RemoteCall::direct(direct, params) {
                Some(call) => self.make(call, Call::LINKS_MAX, tracing).await,
                None => {
                    let said = format!(
                        "there is no method `{}`; there are `remote_call`, `request`, `echo`, `echos`, and `SERVICE.METHOD` for any instance",
                        direct.chars().take(METHOD_SHOWN).collect::<String>()
                    );
                    Err(refused(
                        CallError::new(ErrorCode::MethodNotFound, said),
                        tracing.parent,
                    ))
                }
            },
        };
        let failed = came.as_ref().err().map(|failed| failed.error.code);
        self.inner.lock().counts.on_request(failed);
        // A notification is carried out and not answered.
        let id = id?;
        let (answer, trace) = match came {
            Ok((result, trace)) => (Answer::result(id, result), trace),
            Err(failed) => {
                let (document, trace) = failed.told(self.inner.me, &trace_id);
                (Answer::error(id, document), trace)
            }
        };
        Some(match trace {
            Some(trace) => answer.with_trace(trace),
            None => answer,
        })
    }

    /// Makes one call; its result, and how it came if that was asked for.
    async fn make(
        &self,
        asked: RemoteCall,
        links_max: u8,
        tracing: Tracing<'_>,
    ) -> Result<(Value, Option<Value>), Failed> {
        let wants_trace = asked.trace;
        let called = self.call_of(asked, tracing);
        let mut call = called.map_err(|error| refused(error, tracing.parent))?;
        call.links_max = links_max;
        let span = self.begin_call(SpanKind::Server, &mut call, tracing, Vec::new());
        let answer = self.call(call).await;
        span.end(&answer);
        let trace = wants_trace.then(|| shown(&answer, tracing.parent));
        let path = way(&answer);
        match result_of(answer, tracing.share) {
            Ok(result) => Ok((result, trace)),
            Err(error) => Err(Failed {
                path,
                trace,
                ..error.into()
            }),
        }
    }

    fn call_of(&self, asked: RemoteCall, tracing: Tracing<'_>) -> Result<Call, CallError> {
        let versions: Constraint = asked
            .version
            .as_deref()
            .unwrap_or_default()
            .parse()
            .map_err(|error| CallError::new(ErrorCode::InvalidParams, format!("version: {error}")))?;
        let id = match &asked.message_id {
            Some(message_id) if tracing.names_calls => self.inner.id_of(message_id),
            // The same twice is still carried out once where the first is remembered.
            Some(message_id) => CallId::drawn(self.inner.id_of(message_id).0),
            None => CallId::drawn(self.inner.lock().rng.random()),
        };
        // By the id of the request, which whoever looks has, others are found: services are told that of the call, nodes the
        // trace. Both are in the span. A request is no name of a call, since whoever sends it twice may mean two.
        let message_id = asked.message_id.as_deref();
        debug!(call = %format_args!("{:032x}", id.0), message_id, service = %asked.service, "a call is made");
        let arguments = asked.arguments.into_params().map(|params| params.to_string());
        let proof = tracing
            .token
            .map(|token| token.prove_call(id.0, &asked.service, &asked.method, arguments.as_deref()));
        Ok(Call {
            id,
            address: asked.target,
            target: None,
            service: asked.service,
            method: asked.method,
            versions,
            resources: asked.resources,
            arguments,
            path: Vec::new(),
            links_max: Call::LINKS_MAX,
            remaining_ms: u32::try_from(asked.timeout.as_millis()).unwrap_or(u32::MAX),
            priority: asked.priority,
            is_idempotent: asked.idempotent,
            trace: TraceContext {
                parent: Some(tracing.parent.to_string()),
                state: tracing.state.map(str::to_owned),
            },
            proof,
        })
    }

    /// Begins the span of a call, and has the call go on under it.
    fn begin_call(
        &self,
        kind: SpanKind,
        call: &mut Call,
        tracing: Tracing<'_>,
        links: Vec<u64>,
    ) -> OpenSpan<'_> {
        let span = self.inner.begin_span(Some(tracing.parent), |own, parent, at| {
            let parent = tracing.is_continued.then_some(parent);
            Span::of_call(kind, own, parent, call, at).with_links(links)
        });
        if let Some(own) = span.own() {
            call.trace.parent = Some(own.to_string());
        }
        span
    }

    /// Runs the commands of a request under a span of its own.
    async fn run(&self, params: Arguments, tracing: Tracing<'_>) -> Result<Value, Failed> {
        let span = self.inner.begin_span(Some(tracing.parent), |own, parent, at| {
            let parent = tracing.is_continued.then_some(parent);
            Span::begin(SpanKind::Server, own, parent, "request".to_owned(), at)
        });
        let below = span.own().map_or(tracing, |own| Tracing {
            parent: own,
            is_continued: true,
            ..tracing
        });
        let result = self.run_commands(params, below).await;
        span.end_with(&result.as_ref().map_err(|failed| failed.error.clone()));
        result
    }

    /// Runs the commands of a request, those that need no results of each other at the same time.
    async fn run_commands(&self, params: Arguments, tracing: Tracing<'_>) -> Result<Value, Failed> {
        let begun = now();
        let mut commands = Commands::parse(params.into_params().unwrap_or_else(|| json!({})))?;
        let ends_at = begun + commands.timeout();
        let mut levels = Vec::new();
        let (mut path, mut links_crossed) = (Vec::new(), 0);
        let request_id = tracing
            .request_id
            .map_or_else(|| tracing.parent.trace_id(), str::to_owned);
        let mut spans: BTreeMap<String, u64> = BTreeMap::new();
        let mut running: FuturesUnordered<BoxFuture<'_, Ended>> = FuturesUnordered::new();
        loop {
            // Calls end by themselves when their time is over. What is less than they count is none.
            let left = ends_at.saturating_duration_since(now());
            if running.is_empty() && left < LEFT_MIN {
                commands.on_timeout();
            }
            for command in commands.ready() {
                let links = command.needs.iter().filter_map(|name| spans.get(name));
                let links = links.copied().collect();
                running.push(Box::pin(self.run_command(command, left, tracing, links)));
            }
            if let Some(answer) = commands.finished() {
                // What is still under way is dropped, and given up by everybody.
                let mut more = Map::new();
                if let Some(summary) = commands.summary() {
                    let mut shown = json!(summary);
                    let took = now().saturating_duration_since(begun);
                    shown["request_id"] = request_id.into();
                    shown["total_execution_time_ms"] = (took.as_secs_f64() * 1e3).into();
                    // By all calls that have ended. Which of them led into another cluster nobody says.
                    shown["links_crossed"] = links_crossed.into();
                    more.insert("execution_summary".to_owned(), shown);
                }
                if commands.wants_intermediate() {
                    more.insert("intermediate_results".to_owned(), levels.into());
                }
                return match answer {
                    Ok(results) if more.is_empty() => Ok(results),
                    Ok(results) => {
                        more.insert("results".to_owned(), results);
                        Ok(more.into())
                    }
                    Err(error) => {
                        if let Some(name) = commands.failed() {
                            more.insert("command".to_owned(), name.into());
                        }
                        Err(Failed {
                            path,
                            more,
                            ..error.into()
                        })
                    }
                };
            }
            let Some(ended) = running.next().await else {
                let said = "the commands of the request wait for each other";
                return Err(CallError::new(ErrorCode::Internal, said).into());
            };
            if let Some(span) = ended.span {
                spans.insert(ended.name.clone(), span);
            }
            links_crossed += ended.links;
            if ended.result.is_err() {
                path = ended.path;
            }
            match commands.on_result(&ended.name, ended.result, ended.took) {
                Progress::LevelDone(Some(level)) => {
                    let mut shown = json!(level);
                    shown["request_id"] = request_id.as_str().into();
                    shown["timestamp"] = time_text().into();
                    levels.push(shown);
                }
                Progress::LevelDone(None) | Progress::Nothing | Progress::Failed { .. } => {}
            }
        }
    }

    async fn run_command(
        &self,
        command: ReadyCommand,
        timeout: Duration,
        tracing: Tracing<'_>,
        span_links: Vec<u64>,
    ) -> Ended {
        let begun = now();
        let asked = RemoteCall {
            target: command.target,
            service: command.service,
            // The only one that the service has.
            method: command.method.unwrap_or_default(),
            arguments: command.arguments,
            timeout,
            trace: false,
            version: command.version,
            resources: command.locs,
            priority: command.priority,
            idempotent: command.is_idempotent,
            message_id: None,
        };
        let (mut span_id, mut path, mut links) = (None, Vec::new(), 0);
        let result = match self.call_of(asked, tracing) {
            Ok(mut call) => {
                let span = self.begin_call(SpanKind::Internal, &mut call, tracing, span_links);
                span_id = span.own().map(|own| own.span());
                let answer = self.call(call).await;
                span.end(&answer);
                path = way(&answer);
                links = answer.hops.len().saturating_sub(1);
                result_of(answer, tracing.share)
            }
            Err(error) => Err(error),
        };
        Ended {
            name: command.name,
            span: span_id,
            path,
            links,
            result,
            took: now().saturating_duration_since(begun),
        }
    }
}

/// A call that has failed, and by which nodes it had come until then: none where it was never made.
struct Failed {
    error: CallError,
    path: Vec<PeerId>,
    /// What its caller is told besides.
    more: Map<String, Value>,
    /// What it took at those nodes that have said so, if that was asked for.
    trace: Option<Value>,
}

impl Failed {
    /// The `error` that its caller is told, and the trace that stands beside it.
    fn told(self, me: PeerId, trace_id: &str) -> (Value, Option<Value>) {
        let mut document = self.error.document(me, &self.path, trace_id);
        if let Some(data) = document["data"].as_object_mut() {
            data.extend(self.more);
        }
        (document, self.trace)
    }
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        Self {
            error,
            path: Vec::new(),
            more: Map::new(),
            trace: None,
        }
    }
}

/// A request that did not become one call, or the commands of which have failed: it is logged with what it is found by. Of a call
/// that has failed the log has a line already.
fn refused(error: CallError, parent: TraceParent) -> Failed {
    log_refusal(&error, parent);
    error.into()
}

fn log_refusal(error: &CallError, parent: TraceParent) {
    let code = error.code.name();
    if error.code == ErrorCode::Internal {
        warn!(
            trace_id = parent.trace_id(),
            code,
            error = error.message,
            "a request has failed by a defect"
        );
    } else {
        debug!(trace_id = parent.trace_id(), code, "a request has failed");
    }
}

impl Inner {
    /// The id of a call to which its caller has given a name: the same name is the same call, which is carried out once.
    fn id_of(&self, message_id: &str) -> CallId {
        let mut hasher = blake3::Hasher::new_derive_key("lapwing-federation/v1/message id");
        hasher.update(&self.me.to_bytes());
        hasher.update(message_id.as_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        CallId::named(u128::from_be_bytes(id))
    }
}

/// A command's end.
struct Ended {
    name: String,
    /// Its span, for those that are given its result.
    span: Option<u64>,
    /// By which nodes it has come.
    path: Vec<PeerId>,
    /// How many links its answer has crossed.
    links: usize,
    result: Result<Value, CallError>,
    took: Duration,
}

/// What calls count their time in.
const LEFT_MIN: Duration = Duration::from_millis(1);

/// Of a method that there is not.
const METHOD_SHOWN: usize = 64;

fn result_of(answer: CallAnswer, share: &Share) -> Result<Value, CallError> {
    let result = answer.outcome.map_err(CallError::from)?;
    share.take(result.len())?;
    serde_json::from_str(&result).map_err(|_| {
        let said = "the service has answered what is no JSON";
        CallError::new(ErrorCode::MalformedMessage, said)
    })
}

/// The nodes by which a call has come, from the caller's to where it was carried out or has failed.
fn way(answer: &CallAnswer) -> Vec<PeerId> {
    let mut path: Vec<PeerId> = answer.hops.iter().rev().map(|hop| hop.node).collect();
    // Only nodes that have carried it out or passed it on have said how long that took.
    let failed_at = answer.outcome.as_ref().err().map(|failure| failure.failed_at);
    path.extend(failed_at.filter(|node| !path.contains(node)));
    path
}

/// The way of a call, from the caller to whoever has answered, and what it took at each node. Where it has failed, as far as
/// nodes have said so: not where it has only come to.
fn shown(answer: &CallAnswer, parent: TraceParent) -> Value {
    let path: Vec<Value> = answer
        .hops
        .iter()
        .rev()
        .map(|hop| {
            json!({
                "node": hop.node.to_string(),
                "role": hop.role.to_string(),
                "in_unix_ns": hop.in_unix_ns,
                "queue_us": hop.queue_us,
                "forward_us": hop.forward_us,
                "exec_us": hop.exec_us,
            })
        })
        .collect();
    json!({
        "trace_id": parent.trace_id(),
        "hops": answer.hops.len().saturating_sub(1),
        "path": path,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use lapwing_base::Role;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::driver::documents::tests::Alone;

    /// What is logged on this thread.
    #[derive(Clone, Default)]
    pub(in crate::driver) struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        pub(in crate::driver) fn subscriber(&self) -> impl tracing::Subscriber + use<> {
            tracing_subscriber::fmt()
                .with_env_filter("lapwing_federation=debug")
                .with_ansi(false)
                .with_writer(self.clone())
                .finish()
        }

        pub(in crate::driver) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[tokio::test]
    async fn a_call_that_fails_is_found_in_the_log_by_its_request_id_and_nothing_that_it_asks_is() {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.subscriber());
        let alone = Alone::start(Role::Main).await;
        let headers = Headers {
            request_id: Some("mine-7".to_owned()),
            ..Headers::default()
        };
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"nobody.sing","params":["hush"]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"remote_call","params":["hush"]}"#,
        ] {
            let _ = alone.federation.answer(body.as_bytes(), &headers).await;
        }
        alone.stop().await;
        let text = log.text();
        let failed: Vec<&str> = text.lines().filter(|line| line.contains(" has failed")).collect();
        let [call, request] = failed[..] else {
            panic!("one line each: {text}");
        };
        assert!(
            call.contains("service=nobody code=\"service_not_found\""),
            "{call}"
        );
        assert!(request.contains("code=\"invalid_params\""), "{request}");
        for line in failed {
            assert!(line.contains("mine-7") && line.contains("trace_id="), "{line}");
        }
        assert!(!text.contains("hush"), "{text}");
    }
}
