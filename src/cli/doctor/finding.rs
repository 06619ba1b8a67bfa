//! One thing that was looked at, what was found, and what to do. Looks at nothing.

use serde::Serialize;

/// What was found of one topic.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Finding {
    pub(super) topic: &'static str,
    pub(super) verdict: Verdict,
    pub(super) found: String,
    /// What to do; nothing where all is well, or where another finding says it.
    pub(super) advice: Option<String>,
}

/// How well things stand.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Good,
    /// It works, and could work better; or it is not known.
    Fair,
    Bad,
}

impl Verdict {
    /// The mark in a table: what needs somebody stands out.
    pub(super) const fn mark(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Fair => "fair",
            Self::Bad => "BAD",
        }
    }
}

impl Finding {
    pub(super) fn good(topic: &'static str, found: impl Into<String>) -> Self {
        Self::new(topic, Verdict::Good, found, None)
    }

    pub(super) fn fair(topic: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(topic, Verdict::Fair, found, Some(advice.into()))
    }

    /// What cannot be told, for a reason that another finding has.
    pub(super) fn untold(topic: &'static str, found: impl Into<String>) -> Self {
        Self::new(topic, Verdict::Fair, found, None)
    }

    pub(super) fn bad(topic: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(topic, Verdict::Bad, found, Some(advice.into()))
    }

    fn new(topic: &'static str, verdict: Verdict, found: impl Into<String>, advice: Option<String>) -> Self {
        Self {
            topic,
            verdict,
            found: found.into(),
            advice,
        }
    }
}
