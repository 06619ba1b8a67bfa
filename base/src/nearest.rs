//! "Did you mean …": the known word nearest to a mistyped one.

/// The candidate nearest to `word` by edit distance, if it is near enough to be meant.
///
/// Near enough is a third of the longer word's characters, at least one: `lokal_steps` finds `local_steps`,
/// `zebra` finds nothing.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (word.chars().count().max(candidate.chars().count()) / 3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_word_that_was_meant() {
        let words = ["local_steps", "compression", "lr"];
        assert_eq!(nearest("lokal_steps", words), Some("local_steps"));
        assert_eq!(nearest("localsteps", words), Some("local_steps"));
        assert_eq!(nearest("rl", words), None);
        assert_eq!(nearest("zebra", words), None);
    }
}
