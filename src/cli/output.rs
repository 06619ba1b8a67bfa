//! Standard output: lines for people, JSON documents for programs, and tables.
//!
//! Only a command's result goes here. A reader that goes away is no error: see [`Failure::OutputClosed`].

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use super::failure::Failure;

/// Where a command's result goes, and in which form it is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Output for programs, if `json`, and otherwise for people.
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read it.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Writes a line, or several.
    pub(crate) fn line(self, text: impl fmt::Display) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")
            .and_then(|()| stdout.flush())
            .map_err(lost)
    }

    /// Writes a document on one line: several of them are a stream.
    pub(crate) fn document(self, document: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(document).map_err(|error| Failure::new("write JSON", error))?;
        self.line(text)
    }
}

fn lost(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::OutputClosed
    } else {
        Failure::new("write to standard output", error)
    }
}

/// Rows under a header, in columns as wide as they need to be.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    header: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(header: impl IntoIterator<Item = (&'static str, Align)>) -> Self {
        Self {
            header: header.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: one cell a column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The cells of each row, the header's first.
    pub(crate) fn cells(&self) -> impl Iterator<Item = impl Iterator<Item = &str>> {
        let header: Vec<&str> = self.header.iter().map(|(name, _)| *name).collect();
        let rows = self
            .rows
            .iter()
            .map(|row| row.iter().map(String::as_str).collect());
        std::iter::once(header).chain(rows).map(Vec::into_iter)
    }
}

impl fmt::Display for Table {
    /// Writes without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = self.header.iter().map(|(name, _)| name.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let names: Vec<String> = self.header.iter().map(|(name, _)| (*name).to_owned()).collect();
        for (index, row) in std::iter::once(&names).chain(&self.rows).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.header) {
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => line.push_str(&format!("{cell:>width$}  ")),
                }
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

/// A value for people, or a dash where there is none.
pub(crate) fn or_dash<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A share from 0 to 1 in percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A span of time in the unit that people would say it in.
pub(crate) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => format!("{:.0} ms", s * 1000.0),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

/// A round trip, which people compare by tenths of a millisecond.
pub(crate) fn millis(milliseconds: f64) -> String {
    format!("{milliseconds:.1} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([("name", Align::Left), ("bytes", Align::Right), ("", Align::Left)]);
        table.row(["a".into(), "1".into(), String::new()]);
        table.row(["bärbel".into(), "123456".into(), "x".into()]);
        assert_eq!(
            table.to_string(),
            "name     bytes\na            1\nbärbel  123456  x"
        );
    }

    #[test]
    fn a_span_is_said_in_the_unit_people_would_use() {
        assert_eq!(span(0.0123), "12 ms");
        assert_eq!(span(1.94), "1.9 s");
        assert_eq!(span(600.0), "10 min");
        assert_eq!(span(90_000.0), "25.0 h");
    }
}
