//! Spans as OTLP has them: a request of its service for traces, as protobuf.

use std::time::{Duration, SystemTime};

use lapwing_base::PeerId;
use lapwing_federation::{Span, SpanKind, SpanStatus};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{self as proto, ResourceSpans, ScopeSpans};
use prost::Message as _;

/// The sampled flag of a `traceparent`: of other traces there are no spans.
const FLAGS: u32 = 1;

/// Who has made the spans.
pub(super) fn resource(service_name: String, node: PeerId) -> Resource {
    let attributes = [
        ("service.name", service_name),
        ("service.instance.id", node.to_string()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    Resource {
        attributes: attributes
            .into_iter()
            .map(|(name, value)| attribute(name, value))
            .collect(),
        ..Resource::default()
    }
}

/// The body of a request.
pub(super) fn request(resource: &Resource, spans: &[Span]) -> Vec<u8> {
    let scope = InstrumentationScope {
        name: "lapwing-federation".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource.clone()),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope),
                spans: spans.iter().map(span).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    request.encode_to_vec()
}

fn span(span: &Span) -> proto::Span {
    let trace_id = span.trace_id.to_be_bytes().to_vec();
    let link = |linked: &u64| proto::span::Link {
        trace_id: trace_id.clone(),
        span_id: linked.to_be_bytes().to_vec(),
        flags: FLAGS,
        ..proto::span::Link::default()
    };
    let attributes = span.attributes.iter();
    proto::Span {
        span_id: span.span_id.to_be_bytes().to_vec(),
        // None is written as no bytes.
        parent_span_id: span
            .parent_span_id
            .map(|parent| parent.to_be_bytes().to_vec())
            .unwrap_or_default(),
        flags: FLAGS,
        name: span.name.clone(),
        kind: kind(span.kind).into(),
        start_time_unix_nano: nanos(span.started_at, Duration::ZERO),
        end_time_unix_nano: nanos(span.started_at, span.took),
        attributes: attributes
            .map(|(name, value)| attribute(name, value.to_string()))
            .collect(),
        links: span.links.iter().map(link).collect(),
        status: status(&span.status),
        trace_id,
        ..proto::Span::default()
    }
}

const fn kind(kind: SpanKind) -> proto::span::SpanKind {
    match kind {
        SpanKind::Server => proto::span::SpanKind::Server,
        SpanKind::Client => proto::span::SpanKind::Client,
        SpanKind::Internal => proto::span::SpanKind::Internal,
    }
}

fn status(status: &SpanStatus) -> Option<proto::Status> {
    match status {
        SpanStatus::Unset => None,
        SpanStatus::Error { message } => Some(proto::Status {
            message: message.clone(),
            code: proto::status::StatusCode::Error.into(),
        }),
    }
}

/// Since 1970. Clocks that are set to before then, or to after 2554, show it.
fn nanos(at: SystemTime, later: Duration) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.saturating_add(later).as_nanos()).unwrap_or(u64::MAX)
}

fn attribute(name: &str, value: String) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value)),
        }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use lapwing_federation::{ErrorCode, TraceParent};

    #[test]
    fn a_span_is_written_with_all_that_is_known_of_it() {
        let parent = TraceParent::root(0x0102, 0x03);
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(5_000_000_001);
        let mut one = Span::begin(
            SpanKind::Internal,
            parent.child(4),
            Some(parent),
            "shop.buy".to_owned(),
            at,
        )
        .with_links(vec![9]);
        one.end(Duration::from_nanos(7), Some((ErrorCode::Timeout, "too long")));
        let node = PeerId::random();
        let body = request(&resource("lapwing".to_owned(), node), &[one]);
        let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        let of_node = &request.resource_spans[0];
        let resource = &of_node.resource.as_ref().unwrap().attributes;
        assert_eq!(
            text(resource, "service.instance.id"),
            Some(node.to_string().as_str())
        );
        let span = &of_node.scope_spans[0].spans[0];
        let mut trace_id = vec![0; 16];
        trace_id[14..].copy_from_slice(&[1, 2]);
        assert_eq!(span.trace_id, trace_id);
        assert_eq!(span.span_id, [0, 0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(span.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!((span.name.as_str(), span.kind), ("shop.buy", 1));
        assert_eq!(span.start_time_unix_nano, 5_000_000_001);
        assert_eq!(span.end_time_unix_nano, 5_000_000_008);
        assert_eq!(text(&span.attributes, "error.type"), Some("timeout"));
        assert_eq!(span.links[0].span_id, [0, 0, 0, 0, 0, 0, 0, 9]);
        let status = span.status.as_ref().unwrap();
        assert_eq!((status.code, status.message.as_str()), (2, "too long"));
    }

    #[test]
    fn a_span_that_begins_a_trace_and_went_well_says_no_more() {
        let one = Span::begin(
            SpanKind::Server,
            TraceParent::root(1, 2),
            None,
            "request".to_owned(),
            SystemTime::UNIX_EPOCH - Duration::from_secs(1),
        );
        let written = span(&one);
        assert!(written.parent_span_id.is_empty() && written.status.is_none() && written.links.is_empty());
        assert_eq!((written.start_time_unix_nano, written.kind), (0, 2));
    }

    pub(in crate::spans) fn text<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a str> {
        let attribute = attributes.iter().find(|attribute| attribute.key == name)?;
        match attribute.value.as_ref()?.value.as_ref()? {
            any_value::Value::StringValue(text) => Some(text),
            _ => None,
        }
    }
}
