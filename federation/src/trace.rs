//! To which trace a call belongs: W3C Trace Context, Recommendation of 23 November 2021. Collects nothing.

use std::fmt;
use std::str::FromStr;

/// A `traceparent`: the trace, and the span in it under which a call is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceParent {
    /// Never zero.
    trace: u128,
    /// Never zero.
    span: u64,
    flags: u8,
}

/// A text that is no `traceparent`: whoever gets one begins a trace of its own (section 3.2.2.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "it is no `traceparent`: `00-`, 32 digits, `-`, 16 digits, `-` and 2 digits, hexadecimal in lower case"
)]
pub struct ParseTraceParentError;

impl TraceParent {
    /// The first span of a new trace, from random numbers.
    pub const fn root(trace: u128, span: u64) -> Self {
        Self {
            // One of 2^128 draws is none.
            trace: if trace == 0 { 1 } else { trace },
            span: if span == 0 { 1 } else { span },
            flags: 0,
        }
    }

    /// Another span of the same trace.
    #[must_use]
    pub const fn child(self, span: u64) -> Self {
        Self {
            span: if span == 0 { 1 } else { span },
            ..self
        }
    }

    /// The same in a trace of which spans are collected.
    #[must_use]
    pub const fn with_sampled(self) -> Self {
        Self {
            flags: self.flags | SAMPLED,
            ..self
        }
    }

    /// Whether spans of this trace are collected.
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace; never zero.
    pub const fn trace(&self) -> u128 {
        self.trace
    }

    /// The span in it; never zero.
    pub const fn span(&self) -> u64 {
        self.span
    }

    /// The trace as it is written: 32 digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }
}

/// Of which traces a node collects spans. Default: of all that begin here, and of others as whoever calls says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sampler {
    /// Whether a trace that has begun elsewhere is sampled as it says, whatever its id is.
    follows_parent: bool,
    /// Those whose id ends in a number below this: 0 <= below <= [`Sampler::ALL`].
    below: u64,
}

impl Sampler {
    /// The last seven bytes of an id are random (W3C Trace Context Level 2, section 2.2.2): 2^56 numbers.
    const ALL: u64 = 1 << 56;

    /// A share of all traces, from 0 to 1; the same traces at every node that has the same share. What is no share is the
    /// nearest.
    pub fn share(share: f64) -> Self {
        // Of what is no number there is nothing, and 2^56 is a number that both types have.
        let below = share.clamp(0.0, 1.0) * Self::ALL as f64;
        Self {
            follows_parent: false,
            below: below as u64,
        }
    }

    /// The same of traces that begin here alone, and of others what whoever calls says.
    #[must_use]
    pub const fn by_parent(self) -> Self {
        Self {
            follows_parent: true,
            ..self
        }
    }

    /// Whether a trace is sampled that begins here.
    pub fn samples_root(&self, root: TraceParent) -> bool {
        let end = root.trace() % u128::from(Self::ALL);
        end < u128::from(self.below)
    }

    /// Whether one is that has come with a call.
    pub fn samples(&self, parent: TraceParent) -> bool {
        match self.follows_parent {
            true => parent.is_sampled(),
            false => self.samples_root(parent),
        }
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::share(1.0).by_parent()
    }
}

impl FromStr for TraceParent {
    type Err = ParseTraceParentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
        if text.len() < LENGTH || !text.as_bytes()[..LENGTH].iter().all(is_digit) {
            return Err(ParseTraceParentError);
        }
        // All of these are ASCII.
        let (known, more) = text.split_at(LENGTH);
        let parts: Vec<&str> = known.split('-').collect();
        let &[version, trace, span, flags] = parts.as_slice() else {
            return Err(ParseTraceParentError);
        };
        let lengths = [version, trace, span, flags].map(str::len);
        // Later versions may have more behind another dash, and what is in front means the same.
        let is_known = match version {
            "ff" => false,
            "00" => more.is_empty(),
            _ => more.is_empty() || more.starts_with('-'),
        };
        if lengths != [2, 32, 16, 2] || !is_known {
            return Err(ParseTraceParentError);
        }
        let wrong = |_| ParseTraceParentError;
        let parent = Self {
            trace: u128::from_str_radix(trace, 16).map_err(wrong)?,
            span: u64::from_str_radix(span, 16).map_err(wrong)?,
            flags: u8::from_str_radix(flags, 16).map_err(wrong)?,
        };
        if parent.trace == 0 || parent.span == 0 {
            return Err(ParseTraceParentError);
        }
        Ok(parent)
    }
}

/// Section 3.2.2.5.1.
const SAMPLED: u8 = 1;

/// Of version 00.
const LENGTH: usize = 55;

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn it_is_read_and_written_as_it_came() {
        let parent: TraceParent = TEXT.parse().unwrap();
        assert_eq!(parent.to_string(), TEXT);
        assert_eq!(parent.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        let child = parent.child(7);
        assert_eq!(
            child.to_string(),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01"
        );
    }

    #[test]
    fn a_share_of_traces_is_sampled_and_those_that_come_so_as_they_say_where_that_is_followed() {
        let sampled: TraceParent = TEXT.parse().unwrap();
        let unsampled: TraceParent = TEXT.replace("-01", "-00").parse().unwrap();
        let both = |sampler: Sampler| [sampled, unsampled].map(|parent| sampler.samples(parent));
        assert_eq!(both(Sampler::default()), [true, false]);
        assert_eq!(both(Sampler::share(1.0)), [true, true]);
        assert_eq!(both(Sampler::share(0.0)), [false, false]);
        assert_eq!(both(Sampler::share(0.0).by_parent()), [true, false]);
        assert_eq!(both(Sampler::share(f64::NAN)), [false, false]);
        let roots = |sampler: Sampler| {
            let last = u128::from(Sampler::ALL - 1);
            [1, last / 4, last / 4 * 3, last].map(|end| sampler.samples_root(TraceParent::root(end, 1)))
        };
        assert_eq!(roots(Sampler::default()), [true; 4]);
        assert_eq!(roots(Sampler::share(0.5)), [true, true, false, false]);
        assert_eq!(roots(Sampler::share(0.5).by_parent()), [true, true, false, false]);
        assert_eq!(roots(Sampler::share(0.0).by_parent()), [false; 4]);
    }

    #[test]
    fn a_later_version_means_the_same_as_far_as_it_is_known() {
        let later = TEXT.replacen("00-", "cc-", 1);
        assert_eq!(later.parse(), TEXT.parse::<TraceParent>());
        assert_eq!(
            format!("{later}-what-the-future-brings").parse(),
            TEXT.parse::<TraceParent>()
        );
    }

    #[test]
    fn what_is_none_begins_a_trace_of_its_own() {
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let zero_span = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        let wrong = [
            "",
            &TEXT[1..],
            &TEXT.to_uppercase(),
            &TEXT.replacen("00-", "ff-", 1),
            &format!("{TEXT}-more"),
            &format!("{}.more", TEXT.replacen("00-", "cc-", 1)),
            &zero_trace,
            &zero_span,
            &TEXT.replacen("-b7", "b7-", 1),
            "ä0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        ];
        for text in wrong {
            assert_eq!(text.parse::<TraceParent>(), Err(ParseTraceParentError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_panics_and_what_was_made_is_read(text in any::<String>(), trace: u128, span: u64) {
            let _ = text.parse::<TraceParent>();
            let root = TraceParent::root(trace, span);
            prop_assert_eq!(root.to_string().parse(), Ok(root));
        }
    }
}
