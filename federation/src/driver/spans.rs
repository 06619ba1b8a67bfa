//! Spans of the calls that pass through this node, given to whoever exports them. Exports none itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use lapwing_base::PeerId;
use rand::RngExt as _;
use tokio::sync::mpsc;

use super::{Inner, now, wall_clock};
use crate::{Call, CallAnswer, CallError, ErrorCode, Sampler, Span, SpanKind, TraceParent};

/// Where spans go, and how many could not.
#[derive(Debug)]
pub(super) struct Spans {
    queue: Option<mpsc::Sender<Span>>,
    sampler: Sampler,
    lost: AtomicU64,
}

/// A span that goes on until it is told how it has ended; dropped before, it was given up. Nothing where none is wanted.
#[must_use = "a span that is dropped says that its call was given up"]
pub(super) struct OpenSpan<'a> {
    inner: &'a Inner,
    open: Option<Open>,
}

struct Open {
    own: TraceParent,
    span: Span,
    begun: Instant,
}

impl Spans {
    pub(super) const fn new(queue: Option<mpsc::Sender<Span>>, sampler: Sampler) -> Self {
        Self {
            queue,
            sampler,
            lost: AtomicU64::new(0),
        }
    }

    /// Whether anybody wants them.
    pub(super) const fn are_wanted(&self) -> bool {
        self.queue.is_some()
    }

    /// Those that found no place.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn send(&self, span: Span) {
        if let Some(queue) = &self.queue
            && queue.try_send(span).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Inner {
    /// Begins a trace. Where nobody collects spans here, nobody on the way is asked for any.
    pub(super) fn begin_trace(&self) -> TraceParent {
        let root = {
            let mut state = self.lock();
            TraceParent::root(state.rng.random(), state.rng.random())
        };
        if self.spans.are_wanted() && self.spans.sampler.samples_root(root) {
            root.with_sampled()
        } else {
            root
        }
    }

    /// Begins the span of a hop under what the call has come with, and has the call go on under that span.
    pub(super) fn begin_hop(&self, kind: SpanKind, call: &mut Call, peer: PeerId) -> OpenSpan<'_> {
        // Nothing is even read where nobody wants to know.
        let sampler = self.spans.sampler;
        let wanted = self.spans.are_wanted().then(|| call.trace.sampled(sampler));
        let span = self.begin_span(wanted.flatten(), |own, parent, at| {
            Span::of_call(kind, own, Some(parent), call, at).with_peer(peer)
        });
        if let Some(own) = span.own() {
            call.trace.parent = Some(own.to_string());
        }
        span
    }

    /// Begins a span with an id of its own in the trace of `parent`, where that is sampled here. Whatever has come, what goes on
    /// under it says so.
    pub(super) fn begin_span(
        &self,
        parent: Option<TraceParent>,
        span: impl FnOnce(TraceParent, TraceParent, SystemTime) -> Span,
    ) -> OpenSpan<'_> {
        let parent = parent.filter(|parent| self.spans.are_wanted() && self.spans.sampler.samples(*parent));
        let open = parent.map(|parent| {
            let own = parent.child(self.lock().rng.random()).with_sampled();
            Open {
                own,
                span: span(own, parent, wall_clock()),
                begun: now(),
            }
        });
        OpenSpan { inner: self, open }
    }
}

impl OpenSpan<'_> {
    /// Its place in the trace, where it is one.
    pub(super) fn own(&self) -> Option<TraceParent> {
        self.open.as_ref().map(|open| open.own)
    }

    /// The call has been answered.
    pub(super) fn end(mut self, answer: &CallAnswer) {
        let failure = answer.outcome.as_ref().err();
        self.tell(failure.map(|failure| (failure.code, failure.message.as_str())));
    }

    /// It has come to this.
    pub(super) fn end_with<T>(mut self, result: &Result<T, CallError>) {
        let error = result.as_ref().err();
        self.tell(error.map(|error| (error.code, error.message.as_str())));
    }

    fn tell(&mut self, error: Option<(ErrorCode, &str)>) {
        if let Some(Open { mut span, begun, .. }) = self.open.take() {
            span.end(now().saturating_duration_since(begun), error);
            self.inner.spans.send(span);
        }
    }
}

impl Drop for OpenSpan<'_> {
    fn drop(&mut self) {
        self.tell(Some((
            ErrorCode::Cancelled,
            "nobody waits for the answer any more",
        )));
    }
}
