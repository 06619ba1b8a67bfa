//! Lines of bounded length, from a pipe. What they say is for others to know, but for the number of an answer too long to read.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

/// A line without its end.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// At most as much as is wanted.
    bytes: Vec<u8>,
    /// The end of what came beyond that.
    beyond: Vec<u8>,
}

/// Of a line that is too long: an answer's number may stand there.
const END_KEPT: usize = 64;

impl Line {
    /// Reads the next one, of which at most `max` bytes are kept; `None` at the end.
    pub(super) async fn read(
        input: &mut (impl AsyncBufRead + Unpin),
        max: usize,
    ) -> io::Result<Option<Self>> {
        let mut line = Self::default();
        let mut has_begun = false;
        loop {
            let chunk = input.fill_buf().await?;
            if chunk.is_empty() {
                return Ok(has_begun.then_some(line));
            }
            has_begun = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let piece = &chunk[..end.unwrap_or(chunk.len())];
            line.add(piece, max);
            let used = piece.len() + usize::from(end.is_some());
            input.consume(used);
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }

    fn add(&mut self, piece: &[u8], max: usize) {
        let (fits, rest) = piece.split_at(piece.len().min(max - self.bytes.len()));
        self.bytes.extend_from_slice(fits);
        self.beyond.extend_from_slice(rest);
        let old = self.beyond.len().saturating_sub(END_KEPT);
        self.beyond.drain(..old);
    }

    /// As much as was kept.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether that is not all.
    pub(super) fn is_too_long(&self) -> bool {
        !self.beyond.is_empty()
    }

    /// As it may stand in a log.
    pub(super) fn shown(&self, max: usize) -> String {
        let shown = &self.bytes[..self.bytes.len().min(max)];
        let text = String::from_utf8_lossy(shown);
        text.chars().filter(|character| !character.is_control()).collect()
    }

    /// The number of the answer that this is the beginning and the end of, where that stands before or behind everything
    /// else: within a result there may be others.
    pub(super) fn number(&self) -> Option<u64> {
        let in_head = head(&self.bytes).and_then(|head| numbers(head).next());
        in_head.map(|(number, _)| number).or_else(|| {
            let near = &self.bytes[self.bytes.len().saturating_sub(END_KEPT)..];
            let end = [near, &self.beyond].concat();
            // What closes the line closes the answer, whose last member it is then.
            let mut last = numbers(&end).filter(|(_, rest)| rest.trim_ascii() == b"}");
            last.next().map(|(number, _)| number)
        })
    }
}

/// What stands before the result or the error of an answer: members that are numbers or texts.
fn head(answer: &[u8]) -> Option<&[u8]> {
    let near = &answer[..answer.len().min(2 * END_KEPT)];
    let place = |name: &[u8]| near.windows(name.len()).position(|window| window == name);
    let ends = [place(b"\"result\""), place(b"\"error\"")];
    let head = &near[..ends.into_iter().flatten().min()?];
    let members = head.trim_ascii_start().strip_prefix(b"{")?;
    (!members.contains(&b'{') && !members.contains(&b'[')).then_some(members)
}

/// Every number that is called `id`, and what follows it.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    const NAME: &[u8] = b"\"id\"";
    let places = bytes.windows(NAME.len()).enumerate();
    places
        .filter(|(_, window)| *window == NAME)
        .filter_map(|(at, _)| {
            let value = bytes[at + NAME.len()..].trim_ascii_start().strip_prefix(b":")?;
            let value = value.trim_ascii_start();
            let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (digits, rest) = value.split_at(digits);
            Some((std::str::from_utf8(digits).ok()?.parse().ok()?, rest))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(mut text: &[u8], max: usize) -> Vec<(String, bool)> {
        let mut all = Vec::new();
        while let Some(line) = Line::read(&mut text, max).await.unwrap() {
            all.push((line.shown(max), line.is_too_long()));
        }
        all
    }

    #[tokio::test]
    async fn a_line_is_kept_as_far_as_is_wanted_and_the_next_begins_behind_its_end() {
        let expected = [("abc", false), ("", false), ("abcd", true), ("e", false)];
        let expected = expected.map(|(text, is_too_long)| (text.to_owned(), is_too_long));
        assert_eq!(lines(b"abc\n\nabcdefghi\ne", 4).await, expected);
        assert_eq!(lines(b"", 4).await, []);
    }

    #[tokio::test]
    async fn the_number_of_an_answer_that_is_too_long_is_found_before_or_behind_it() {
        let long = format!("[{}1]", r#"{"id":4},"#.repeat(50));
        for (text, number) in [
            (format!(r#"{{"jsonrpc":"2.0","id":7,"result":{long}}}"#), Some(7)),
            (
                format!(r#"{{"result":{long},"jsonrpc":"2.0", "id" : 7 }}"#),
                Some(7),
            ),
            (format!(r#"{{"result":{long},"jsonrpc":"2.0"}}"#), None),
            (format!(r#"{{"params":{{"id":4}},"result":{long}}}"#), None),
            (long.clone(), None),
            ("x".repeat(200), None),
        ] {
            let line = Line::read(&mut text.as_bytes(), 100).await.unwrap().unwrap();
            assert!(line.is_too_long());
            assert_eq!(line.number(), number, "{text}");
        }
    }
}
