//! Logging of the process: what is told, how loudly, and where.
//!
//! Logs go to standard error, so that standard output stays a command's result. This file decides the filter and
//! the format; it defines no spans, events or metrics.

use std::io::{self, IsTerminal};

use lapwing_base::nearest;
use tracing_subscriber::EnvFilter;

/// The words that name a level, quietest first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The text names no log level and is no list of directives.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum LevelError {
    /// A single word that is no level.
    #[error("`{word}` is no log level{}", known(word))]
    Unknown {
        /// What was given.
        word: String,
    },
    /// A list of `target=level` directives with a mistake in it.
    #[error("`{text}` is no list of `target=level` directives: {problem}")]
    Directives {
        /// What was given.
        text: String,
        /// What the parser said.
        problem: String,
    },
}

fn known(word: &str) -> String {
    match nearest(&word.to_ascii_lowercase(), LEVELS) {
        Some(level) => format!("; did you mean `{level}`?"),
        None => format!("; the levels are {}", LEVELS.join(", ")),
    }
}

/// Starts logging to standard error for the rest of the process.
///
/// `level` is a word such as `info`, which is meant for our own rooms, or a list of directives such as
/// `warn,lapwing_net=trace`, which is taken as it is.
///
/// # Errors
///
/// When `level` cannot be read.
pub(crate) fn start(level: &str) -> Result<(), LevelError> {
    let filter = filter(level)?;
    let stderr_is_terminal = io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(stderr_is_terminal && colour_is_wanted())
        .finish();
    // Only one process-wide subscriber is possible; when somebody who embeds us has set theirs, it stays.
    let _already_set = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// Whether `NO_COLOR` (<https://no-color.org>) leaves colour on.
pub(crate) fn colour_is_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    let level = level.trim();
    let directives = if level.contains(['=', ',']) {
        level.to_owned()
    } else {
        let word = level.to_ascii_lowercase();
        match word.as_str() {
            "off" | "error" => word,
            // The words of other logging systems, which older deployments have in their environment.
            "critical" => "error".to_owned(),
            "warning" => "warn".to_owned(),
            // The libraries below us are kept quieter than we are: their `info` is our `debug`.
            // Raft's library warns of each message that an absent member misses; consensus tells the same once.
            "warn" | "info" | "debug" => format!("warn,openraft=error,lapwing={word}"),
            "trace" => "debug,lapwing=trace".to_owned(),
            _ => return Err(LevelError::Unknown { word: shown(level) }),
        }
    };
    EnvFilter::builder()
        .parse(&directives)
        .map_err(|problem| LevelError::Directives {
            text: shown(level),
            problem: problem.to_string(),
        })
}

/// At most 64 characters of what a person typed.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_our_rooms_and_directives_are_taken_as_they_are() {
        assert_eq!(
            filter("INFO").unwrap().to_string(),
            "openraft=error,lapwing=info,warn"
        );
        assert_eq!(
            filter("lapwing_net=trace").unwrap().to_string(),
            "lapwing_net=trace"
        );
        assert_eq!(filter("off").unwrap().to_string(), "off");
    }

    #[test]
    fn a_mistyped_level_gets_the_nearest_one_named() {
        assert_eq!(
            filter("inof").unwrap_err().to_string(),
            "`inof` is no log level; the levels are off, error, warn, info, debug, trace"
        );
        assert_eq!(
            filter("debugg").unwrap_err().to_string(),
            "`debugg` is no log level; did you mean `debug`?"
        );
        assert!(matches!(filter("a=b=c"), Err(LevelError::Directives { .. })));
    }
}
