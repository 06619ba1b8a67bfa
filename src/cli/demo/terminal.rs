//! Shows the demo's progress on standard error: redrawn in place on a terminal, line by line elsewhere.
//!
//! What is shown is decided in `view.rs`; this file knows escape sequences and the terminal's size.

use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;

use super::view::frame;
use super::watch::{Event, Timeline};
use crate::telemetry::colour_is_wanted;

/// Where progress goes. It goes on without it when nobody can be shown anything any more.
#[derive(Debug)]
pub(crate) struct Terminal {
    mode: Mode,
    colour: bool,
    /// How many events were told.
    told: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mode {
    /// Redrawn in place; holds how many lines stand there now.
    Live { drawn: usize },
    /// One line an event.
    Lines,
    /// Somebody else is told: the events go to standard output as JSON.
    Silent,
}

/// Where nothing is known of the terminal: the size that terminals have had since 1978.
const SIZE_FALLBACK: (usize, usize) = (80, 24);

impl Terminal {
    /// Shows nothing if `silent`.
    pub(crate) fn new(silent: bool) -> Self {
        let stderr = io::stderr();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let mode = match (silent, stderr.is_terminal() && !dumb) {
            (true, _) => Mode::Silent,
            (false, true) => Mode::Live { drawn: 0 },
            (false, false) => Mode::Lines,
        };
        Self {
            mode,
            colour: colour_is_wanted(),
            told: 0,
        }
    }

    /// Brings what is shown up to date, and returns the events that were not told before.
    pub(crate) fn show<'a>(&mut self, timeline: &'a Timeline) -> &'a [Event] {
        let news = &timeline.events[self.told.min(timeline.events.len())..];
        self.told = timeline.events.len();
        match &mut self.mode {
            Mode::Silent => (),
            Mode::Lines => {
                for event in news {
                    let _closed = writeln!(io::stderr(), "{:6.1} s  {}", event.at_seconds, event.what);
                }
            }
            Mode::Live { drawn } => {
                let (width, height) = size();
                // One line less than there is: the cursor stands below the last.
                let lines = frame(timeline, height.saturating_sub(1));
                let mut text = String::new();
                if *drawn > 0 {
                    text.push_str(&format!("\x1b[{drawn}A"));
                } else {
                    // The cursor would flicker.
                    text.push_str("\x1b[?25l");
                }
                for line in &lines {
                    text.push('\r');
                    text.push_str(&line.render(width, self.colour));
                    text.push_str("\x1b[K\n");
                }
                // What stood below, when the frame was longer.
                text.push_str("\x1b[J");
                *drawn = lines.len();
                let mut stderr = io::stderr().lock();
                let _closed = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
            }
        }
        news
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.mode, Mode::Live { drawn } if drawn > 0) {
            let _closed = writeln!(io::stderr(), "\x1b[?25h");
        }
    }
}

/// Columns and rows.
fn size() -> (usize, usize) {
    match tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => SIZE_FALLBACK,
    }
}
