//! `lapwing explain`: what an error of a call means, and what to do about it. Asks nobody: what it says is the table of the
//! guide, so that both say the same.

use std::fmt;

use clap::Args;
use lapwing_federation::{ErrorCode, Retry};
use serde::Serialize;

use super::failure::Failure;
use super::output::Output;

/// The guide has a row for each error: code, name, meaning, what to do.
const GUIDE: &str = include_str!("../../docs/federation.md");

#[derive(Debug, Args)]
pub(crate) struct ExplainFlags {
    /// A number (-32010 or 32010) or a name (overloaded); without one, all of them in a line each
    #[arg(allow_negative_numbers = true)]
    code: Option<String>,
}

/// What there is to say of one error.
#[derive(Debug, Serialize)]
struct Explained {
    code: i32,
    name: &'static str,
    http_status: u16,
    means: String,
    do_about_it: String,
    /// When the same call may do better: `never`, `later`, or `if_idempotent`.
    retry: &'static str,
}

/// Prints what one error means, or all of them do. For programs: an object, or a list of them.
pub(crate) fn run(flags: &ExplainFlags, output: Output) -> Result<(), Failure> {
    let Some(asked) = &flags.code else {
        let all: Vec<_> = ErrorCode::ALL.into_iter().filter_map(explained).collect();
        if output.is_json() {
            return output.document(&all);
        }
        for Explained {
            code, name, means, ..
        } in all
        {
            output.line(format!("{code} {name}: {means}"))?;
        }
        return Ok(());
    };
    let is_it = |code: &ErrorCode| {
        let number = code.number().to_string();
        code.name() == asked || number == *asked || number.strip_prefix('-') == Some(asked)
    };
    let code = ErrorCode::ALL.into_iter().find(is_it);
    let explained = code.and_then(explained).ok_or_else(|| {
        Failure::usage(format!("`{asked}` is no error of a call"))
            .with_hint("`lapwing explain` lists all of them")
    })?;
    if output.is_json() {
        return output.document(&explained);
    }
    output.line(explained)
}

fn explained(code: ErrorCode) -> Option<Explained> {
    let cells = row(code.name())?;
    let retry = match code.retry() {
        Retry::Never => "never",
        Retry::Later => "later",
        Retry::IfIdempotent => "if_idempotent",
    };
    Some(Explained {
        code: code.number(),
        name: code.name(),
        http_status: code.http_status(),
        means: plain(cells[2]),
        do_about_it: plain(cells[3]),
        retry,
    })
}

/// The cells of an error's row.
fn row(name: &str) -> Option<[&'static str; 4]> {
    let quoted = format!("`{name}`");
    GUIDE.lines().find_map(|line| {
        let inner = line.strip_prefix("| -")?.strip_suffix(" |")?;
        let cells: [&str; 4] = inner.split(" | ").collect::<Vec<_>>().try_into().ok()?;
        (cells[1] == quoted).then_some(cells)
    })
}

/// Without the marks of Markdown, and with links' words alone.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        let Some((words, after)) = link.split_once("](") else {
            break;
        };
        let Some((_, after)) = after.split_once(')') else {
            break;
        };
        plain.extend([before, words]);
        rest = after;
    }
    plain.push_str(rest);
    plain
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            code,
            name,
            http_status,
            means,
            do_about_it,
            retry,
        } = self;
        let again = match *retry {
            "later" => "the same call may do better a little later",
            "if_idempotent" => "the same call may be made again where twice does no harm",
            _ => "the same call will do no better without a change",
        };
        write!(
            f,
            "{code} {name}, over plain HTTP {http_status}\n  means   {means}\n  to do   {do_about_it}\n  again   {again}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_has_every_error_with_its_number_and_status() {
        for code in ErrorCode::ALL {
            let cells = row(code.name());
            let head = format!("{} ({})", -code.number(), code.http_status());
            assert_eq!(cells.map(|cells| cells[0]), Some(head.as_str()), "{code:?}");
        }
    }

    #[test]
    fn what_is_printed_has_no_marks_of_links() {
        assert_eq!(
            plain("see [below](#x), or [Limits](#limits)"),
            "see below, or Limits"
        );
        assert_eq!(plain("after `retry_after_ms` [1"), "after `retry_after_ms` [1");
        for code in ErrorCode::ALL {
            let explained = explained(code).unwrap();
            assert!(!explained.to_string().contains("]("), "{explained}");
        }
    }
}
