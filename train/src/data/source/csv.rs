//! Reads tables: lines of numbers with the class last.
//!
//! No quotes, no other separators, no text: a table of features needs none. It opens no file.

use std::io::{self, BufRead, Read as _};

/// A table as its file has it.
#[derive(Debug)]
pub(super) struct Table {
    /// Row after row, without the classes; all finite.
    pub(super) values: Vec<f32>,
    /// A class each row.
    pub(super) labels: Vec<u8>,
    /// Features a row; not 0.
    pub(super) width: usize,
}

/// Why a file is no such table. Lines and columns count from 1.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    /// A line with more or fewer columns than the one before it.
    #[error("line {line} has {found} columns where {expected} were expected")]
    Ragged {
        /// Where.
        line: u64,
        /// Its columns.
        found: usize,
        /// Those of the lines before.
        expected: usize,
    },
    /// A line that has a class at most.
    #[error("line {line} has {found} column where features and a class were expected")]
    Narrow {
        /// Where.
        line: u64,
        /// Its columns.
        found: usize,
    },
    /// Something else where a number should be.
    #[error("line {line}, column {column}: `{text}` is not a finite number")]
    Number {
        /// Where.
        line: u64,
        /// Which of its columns.
        column: usize,
        /// What is there.
        text: String,
    },
    /// Something else where the class should be.
    #[error("line {line}: the last column must be a class from 0 to 255, not `{text}`")]
    Label {
        /// Where.
        line: u64,
        /// What is there.
        text: String,
    },
    /// A line without an end.
    #[error("line {line} is longer than {LINE_MAX} bytes")]
    Long {
        /// Where.
        line: u64,
    },
    /// More numbers than we would read.
    #[error("it has more than {VALUES_MAX} numbers, at line {line}")]
    TooLarge {
        /// Where it became too many.
        line: u64,
    },
    /// No line with numbers.
    #[error("it has no samples")]
    Empty,
    /// It cannot be read or unpacked.
    #[error("it cannot be read or unpacked after line {line}; if it was cut, copy or download it again")]
    Read {
        /// The last whole line.
        line: u64,
        /// Why.
        source: io::Error,
    },
}

/// The longest line: 65,536 features of 16 characters.
const LINE_MAX: u64 = 1 << 20;

/// The most numbers: 1 GiB as `f32`.
const VALUES_MAX: usize = 1 << 28;

impl Table {
    /// Reads lines to the end. A first line whose last column is no number is a header and skipped; so are
    /// empty lines.
    pub(super) fn read(mut input: impl BufRead) -> Result<Self, CsvError> {
        let mut table = Self {
            values: vec![],
            labels: vec![],
            width: 0,
        };
        let mut buffer = vec![];
        for line in 1.. {
            buffer.clear();
            let read = input.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut buffer);
            match read {
                Ok(0) => break,
                Ok(length) if length as u64 > LINE_MAX => return Err(CsvError::Long { line }),
                Ok(_) => {}
                Err(source) => {
                    return Err(CsvError::Read {
                        line: line - 1,
                        source,
                    });
                }
            }
            // What is not UTF-8 becomes something that is no number, and is quoted in the error.
            let text = String::from_utf8_lossy(&buffer);
            // Spreadsheets begin a file with a byte order mark.
            let text = text.trim_start_matches('\u{feff}').trim();
            if !text.is_empty() {
                table.push(line, text)?;
            }
        }
        if table.labels.is_empty() {
            return Err(CsvError::Empty);
        }
        Ok(table)
    }

    fn push(&mut self, line: u64, text: &str) -> Result<(), CsvError> {
        let (features, label) = text.rsplit_once(',').unwrap_or(("", text));
        let label = label.trim();
        let number = label.parse::<f32>();
        if line == 1 && number.is_err() {
            return Ok(());
        }
        let found = text.split(',').count();
        if found < 2 {
            return Err(CsvError::Narrow { line, found });
        }
        if self.labels.is_empty() {
            self.width = found - 1;
        }
        if found != self.width + 1 {
            return Err(CsvError::Ragged {
                line,
                found,
                expected: self.width + 1,
            });
        }
        if self.values.len() + self.width > VALUES_MAX {
            return Err(CsvError::TooLarge { line });
        }
        for (column, text) in (1..).zip(features.split(',')) {
            let text = text.trim();
            match text.parse::<f32>() {
                Ok(value) if value.is_finite() => self.values.push(value),
                Ok(_) | Err(_) => {
                    return Err(CsvError::Number {
                        line,
                        column,
                        text: quoted(text),
                    });
                }
            }
        }
        match number {
            Ok(class) if class.fract() == 0.0 && (0.0..=255.0).contains(&class) => {
                // A whole number in range, as just checked.
                self.labels.push(class as u8);
                Ok(())
            }
            Ok(_) | Err(_) => Err(CsvError::Label {
                line,
                text: quoted(label),
            }),
        }
    }

    /// Divides each column whose largest magnitude is above 1 by that magnitude, so that pixels from 0 to 255
    /// and ages in years both come to where training with one learning rate works. Columns within 1 stay.
    ///
    /// Nodes with different files divide by different numbers; those who mind scale their files themselves.
    pub(super) fn scale(&mut self) {
        let mut largest = vec![1.0_f32; self.width];
        for row in self.values.chunks_exact(self.width) {
            for (largest, value) in largest.iter_mut().zip(row) {
                *largest = largest.max(value.abs());
            }
        }
        for row in self.values.chunks_exact_mut(self.width) {
            for (value, largest) in row.iter_mut().zip(&largest) {
                *value /= largest;
            }
        }
    }
}

/// Enough of a text to find it again.
fn quoted(text: &str) -> String {
    text.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Table, CsvError> {
        Table::read(text.as_bytes())
    }

    #[test]
    fn a_table_is_read_with_or_without_a_header_and_with_any_line_ends() {
        for text in [
            "1,2,0\n-3,4.5,1\n",
            "\u{feff}a,b,label\r\n1, 2 ,0\r\n\r\n-3,4.5,1.0",
        ] {
            let table = read(text).unwrap();
            assert_eq!(table.values, [1.0, 2.0, -3.0, 4.5]);
            assert_eq!(table.labels, [0, 1]);
            assert_eq!(table.width, 2);
        }
    }

    #[test]
    fn a_wrong_line_is_named_with_what_is_wrong() {
        for (text, message) in [
            ("1,2,0\n1,0\n", "line 2 has 2 columns where 3 were expected"),
            ("1,x,0\n", "line 1, column 2: `x` is not a finite number"),
            (
                "1,2,0\n1,inf,0\n",
                "line 2, column 2: `inf` is not a finite number",
            ),
            ("1,2,0\n1,,0\n", "line 2, column 2: `` is not a finite number"),
            (
                "1,2,0\n1,2,b\n",
                "line 2: the last column must be a class from 0 to 255, not `b`",
            ),
            (
                "1,2,0.5\n",
                "line 1: the last column must be a class from 0 to 255, not `0.5`",
            ),
            (
                "1,2,256\n",
                "line 1: the last column must be a class from 0 to 255, not `256`",
            ),
            (
                "7\n",
                "line 1 has 1 column where features and a class were expected",
            ),
            ("a,b,label\n", "it has no samples"),
            ("", "it has no samples"),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), message, "{text:?}");
        }
        let error = Table::read(&b"1,2,0\n1,\xff,0\n"[..]).unwrap_err();
        assert!(matches!(
            error,
            CsvError::Number {
                line: 2,
                column: 2,
                ..
            }
        ));
    }

    #[test]
    fn a_line_without_an_end_is_refused_without_reading_it_all() {
        let endless = io::BufReader::new(io::repeat(b'1'));
        assert!(matches!(Table::read(endless), Err(CsvError::Long { line: 1 })));
    }

    #[test]
    fn only_columns_beyond_one_are_scaled() {
        let mut table = read("16,0.5,-200,0\n8,0.25,100,1\n").unwrap();
        table.scale();
        assert_eq!(table.values, [1.0, 0.5, -1.0, 0.5, 0.25, 0.5]);
    }
}
