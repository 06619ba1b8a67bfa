//! Words of others, fit to be shown to people.

/// What somebody else has said, for a terminal and for logs: cut to so many bytes, and in place of what is not shown as
/// a letter, a digit or a mark that everybody has, a mark that shows as much. Terminals obey some characters, and others
/// turn the text around or hide parts of it.
pub(crate) fn legible(said: &str, bytes_max: usize) -> String {
    let mut text = String::new();
    for char in said.chars() {
        let shown = char == ' ' || char.is_ascii_graphic() || char.is_alphanumeric();
        let char = if shown { char } else { HIDDEN };
        if text.len() + char.len_utf8() > bytes_max {
            break;
        }
        text.push(char);
    }
    text
}

/// Stands for what is not shown.
const HIDDEN: char = '\u{fffd}';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_or_hide_is_not_shown() {
        let said = "closed\u{1b}[2J\r\nby Zo\u{eb} \u{202e}(now)\u{9b}";
        let shown = "closed\u{fffd}[2J\u{fffd}\u{fffd}by Zo\u{eb} \u{fffd}(now)\u{fffd}";
        assert_eq!(legible(said, 100), shown);
    }

    #[test]
    fn it_is_cut_between_characters() {
        assert_eq!(legible("h\u{e9}llo", 2), "h");
        assert_eq!(legible("h\u{e9}llo", 3), "h\u{e9}");
        assert_eq!(legible(&"\n".repeat(100), 10), "\u{fffd}".repeat(3));
    }
}
