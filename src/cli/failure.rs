//! How a command ends when it does not succeed: what a person reads, and the exit status.
//!
//! Commands return a [`Failure`]; `main` prints it. Nothing is printed here.

use lapwing_base::chain;
use std::error::Error;
use std::fmt::Write as _;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something was tried and did not work. Exit status 1.
    Failed {
        /// Completes "failed to …".
        doing: String,
        /// What went wrong.
        cause: Box<dyn Error + Send + Sync>,
        /// A line that says what to do.
        hint: Option<String>,
    },
    /// The command line or a setting asks for what cannot be. Exit status 2, as for a flag that does not exist.
    Usage {
        /// What is wrong.
        problem: String,
        /// A line that says what to do.
        hint: Option<String>,
    },
    /// Somebody pressed Ctrl-C, or asked a command that was not done yet to end. Exit status 130.
    Interrupted,
    /// Whoever read standard output has seen enough, as in `lapwing status | head -1`. Silent; exit status 0.
    OutputClosed,
}

impl Failure {
    /// A failure to do something, because of `cause`.
    pub(crate) fn new(doing: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed {
            doing: doing.into(),
            cause: cause.into(),
            hint: None,
        }
    }

    /// A use that cannot be meant.
    pub(crate) fn usage(problem: impl ToString) -> Self {
        Self::Usage {
            problem: problem.to_string(),
            hint: None,
        }
    }

    /// Adds the line that says what to do.
    #[must_use]
    pub(crate) fn with_hint(mut self, line: impl Into<String>) -> Self {
        if let Self::Failed { hint, .. } | Self::Usage { hint, .. } = &mut self {
            *hint = Some(line.into());
        }
        self
    }

    /// The status that the process ends with.
    pub(crate) const fn exit_status(&self) -> u8 {
        match self {
            Self::Failed { .. } => 1,
            Self::Usage { .. } => 2,
            // 128 and the number of SIGINT, as shells have it.
            Self::Interrupted => 130,
            Self::OutputClosed => 0,
        }
    }

    /// What a person reads, without a newline at its end; `None` when there is nothing to say.
    pub(crate) fn text(&self) -> Option<String> {
        let (mut text, hint) = match self {
            Self::Failed { doing, cause, hint } => (
                format!("lapwing: failed to {doing}: {}", chain(cause.as_ref())),
                hint,
            ),
            Self::Usage { problem, hint } => (format!("lapwing: {problem}"), hint),
            Self::Interrupted | Self::OutputClosed => return None,
        };
        if let Some(hint) = hint {
            // Writing to a string cannot fail.
            let _infallible = write!(text, "\n  {hint}");
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the port is taken")]
    struct Port;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot listen on {0}")]
    struct Listen(u16, #[source] Port);

    #[test]
    fn a_failure_reads_from_the_outside_in_and_ends_with_what_to_do() {
        let failure =
            Failure::new("start the gateway", Listen(80, Port)).with_hint("choose another with --port");
        assert_eq!(
            failure.text().unwrap(),
            "lapwing: failed to start the gateway: cannot listen on 80: the port is taken\n  choose another with --port"
        );
        assert_eq!(failure.exit_status(), 1);
    }

    #[test]
    fn a_closed_output_is_silent_and_no_failure() {
        assert_eq!(Failure::OutputClosed.text(), None);
        assert_eq!(Failure::OutputClosed.exit_status(), 0);
        assert_eq!(Failure::Interrupted.exit_status(), 130);
    }
}
