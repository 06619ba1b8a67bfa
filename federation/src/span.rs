//! What of a call whoever collects traces is told: a span for each hop, with the names of OpenTelemetry's conventions for RPC.
//!
//! Pure: it draws no ids, reads no clock and sends nothing. A node that makes a span passes on a `traceparent` with that
//! span's id ([`TraceParent::child`]); a node that makes none passes on what has come, so that no trace has a gap.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use lapwing_base::PeerId;

use crate::{Call, ErrorCode, Sampler, TraceContext, TraceParent};

/// One hop of a call, as one node has seen it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Span {
    /// The trace that it belongs to; never zero.
    pub trace_id: u128,
    /// Its own id; never zero.
    pub span_id: u64,
    /// The span under which it was made; `None` where the trace begins with this one.
    pub parent_span_id: Option<u64>,
    /// What is called: `service.method`.
    pub name: String,
    /// Which end of a hop it is.
    pub kind: SpanKind,
    /// When it began, by this node's clock.
    pub started_at: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What came of it.
    pub status: SpanStatus,
    /// What else is known of it, by the names of OpenTelemetry's semantic conventions.
    pub attributes: Vec<(&'static str, Cow<'static, str>)>,
    /// Spans of the same trace whose results it was given.
    pub links: Vec<u64>,
}

/// Which end of a hop a span is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SpanKind {
    /// A call is taken: from a link, or at the edge.
    Server,
    /// A call is passed on.
    Client,
    /// A part of a request, within a node.
    Internal,
}

/// What came of a span.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SpanStatus {
    /// Nothing that is worth a word: it went well, or has not ended.
    Unset,
    /// It has failed.
    Error {
        /// Why, for people: at most 256 bytes.
        message: String,
    },
}

/// Of an error's words in a span, in bytes: one line. Those of another node may be long.
const MESSAGE_MAX: usize = 256;

impl Span {
    /// A span with the id of `own`, under `parent` where the trace has begun before it.
    pub fn begin(
        kind: SpanKind,
        own: TraceParent,
        parent: Option<TraceParent>,
        method: String,
        started_at: SystemTime,
    ) -> Self {
        Self {
            trace_id: own.trace(),
            span_id: own.span(),
            parent_span_id: parent.map(|parent| parent.span()),
            attributes: vec![
                ("rpc.system.name", "jsonrpc".into()),
                // Left out it would mean 1.0.
                ("jsonrpc.protocol.version", "2.0".into()),
                ("rpc.method", method.clone().into()),
            ],
            name: method,
            kind,
            started_at,
            took: Duration::ZERO,
            status: SpanStatus::Unset,
            links: Vec::new(),
        }
    }

    /// The span of a call.
    pub fn of_call(
        kind: SpanKind,
        own: TraceParent,
        parent: Option<TraceParent>,
        call: &Call,
        started_at: SystemTime,
    ) -> Self {
        let service = call.service.as_str();
        let method = match call.method.as_str() {
            "" => service.to_owned(),
            method => format!("{service}.{method}"),
        };
        let mut span = Self::begin(kind, own, parent, method, started_at);
        span.attributes.push(("rpc.service", service.to_owned().into()));
        span
    }

    /// The same, with the node at the other end.
    #[must_use]
    pub fn with_peer(mut self, peer: PeerId) -> Self {
        self.attributes
            .push(("network.peer.address", peer.to_string().into()));
        self
    }

    /// The same, with the spans whose results it was given.
    #[must_use]
    pub fn with_links(mut self, links: Vec<u64>) -> Self {
        self.links = links;
        self
    }

    /// It has ended: well, or with an error.
    pub fn end(&mut self, took: Duration, error: Option<(ErrorCode, &str)>) {
        self.took = took;
        if let Some((code, message)) = error {
            self.attributes.push(("error.type", code.name().into()));
            self.attributes
                .push(("rpc.response.status_code", code.number().to_string().into()));
            let end = message.floor_char_boundary(MESSAGE_MAX);
            let message = message[..end].to_owned();
            self.status = SpanStatus::Error { message };
        }
    }
}

impl TraceContext {
    /// Under which span a node makes its own; `None` where none is wanted.
    pub fn sampled(&self, sampler: Sampler) -> Option<TraceParent> {
        let parent = self.parent.as_deref()?.parse().ok()?;
        sampler.samples(parent).then_some(parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CallId;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_hop_is_a_child_of_what_came_and_the_parent_of_what_goes_on() {
        let came = context(PARENT).sampled(Sampler::default()).unwrap();
        let taken = came.child(2);
        let server = Span::of_call(SpanKind::Server, taken, Some(came), &call("echo"), at(1));
        let passed_on = taken.child(3);
        let client = Span::of_call(SpanKind::Client, passed_on, Some(taken), &call("echo"), at(2));
        assert_eq!(server.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!(server.parent_span_id, Some(0xb7ad_6b71_6920_3331));
        assert_eq!(client.parent_span_id, Some(server.span_id));
        assert_eq!(
            passed_on.to_string(),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000003-01"
        );
    }

    #[test]
    fn a_trace_that_is_not_sampled_gives_no_spans_and_neither_does_what_is_no_trace() {
        assert_eq!(
            context(&PARENT.replace("-01", "-00")).sampled(Sampler::default()),
            None
        );
        assert_eq!(context("nonsense").sampled(Sampler::default()), None);
        assert_eq!(TraceContext::default().sampled(Sampler::default()), None);
        // The other flags mean something else.
        assert!(
            context(&PARENT.replace("-01", "-03"))
                .sampled(Sampler::default())
                .is_some()
        );
        assert_eq!(
            context(&PARENT.replace("-01", "-02")).sampled(Sampler::default()),
            None
        );
    }

    #[test]
    fn a_trace_that_begins_here_has_no_parent() {
        let own = TraceParent::root(5, 6).with_sampled();
        let span = Span::begin(SpanKind::Server, own, None, "request".to_owned(), at(1));
        assert_eq!((span.trace_id, span.span_id, span.parent_span_id), (5, 6, None));
        assert!(own.is_sampled());
    }

    #[test]
    fn it_is_named_as_the_conventions_for_rpc_want_it() {
        let own = TraceParent::root(5, 6);
        let peer = PeerId::random();
        let mut span = Span::of_call(SpanKind::Client, own, None, &call("echo"), at(1)).with_peer(peer);
        span.end(Duration::from_millis(5), None);
        assert_eq!(
            (span.name.as_str(), &span.status),
            ("blog.echo", &SpanStatus::Unset)
        );
        let peer = peer.to_string();
        assert_eq!(
            attributes(&span),
            [
                ("rpc.system.name", "jsonrpc"),
                ("jsonrpc.protocol.version", "2.0"),
                ("rpc.method", "blog.echo"),
                ("rpc.service", "blog"),
                ("network.peer.address", peer.as_str()),
            ]
        );
        // The only method that the service has.
        let only = Span::of_call(SpanKind::Client, own, None, &call(""), at(1));
        assert_eq!(only.name, "blog");
    }

    #[test]
    fn an_error_is_named_as_callers_see_it_and_told_in_one_line() {
        let own = TraceParent::root(5, 6);
        let mut span = Span::of_call(SpanKind::Server, own, None, &call("echo"), at(1));
        let long = "ä".repeat(MESSAGE_MAX);
        span.end(Duration::from_millis(5), Some((ErrorCode::Timeout, &long)));
        assert!(attributes(&span).contains(&("error.type", "timeout")));
        assert!(attributes(&span).contains(&("rpc.response.status_code", "-32009")));
        let message = "ä".repeat(MESSAGE_MAX / 2);
        assert_eq!(span.status, SpanStatus::Error { message });
    }

    fn attributes(span: &Span) -> Vec<(&'static str, &str)> {
        let all = span.attributes.iter();
        all.map(|(name, value)| (*name, value.as_ref())).collect()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn context(parent: &str) -> TraceContext {
        TraceContext {
            parent: Some(parent.to_owned()),
            state: None,
        }
    }

    fn call(method: &str) -> Call {
        Call {
            id: CallId(1),
            address: None,
            target: None,
            service: "blog".parse().unwrap(),
            method: method.to_owned(),
            versions: "".parse().unwrap(),
            resources: [].into(),
            arguments: None,
            path: Vec::new(),
            links_max: Call::LINKS_MAX,
            remaining_ms: 60_000,
            priority: 0,
            is_idempotent: false,
            trace: TraceContext::default(),
            proof: None,
        }
    }
}
