//! Who leads, as far as members have said. A hint is never the truth: a joiner asks the node it names.

use lapwing_base::{PeerId, Term};
use serde::{Deserialize, Serialize};

/// A leader and the term that elected it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Hint {
    /// The leader.
    pub leader: PeerId,
    /// Its term.
    pub term: Term,
}

/// Keeps the hint of the highest term. The term fences: an older one never replaces a newer one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints {
    current: Option<Hint>,
}

/// Why a hint was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HintError {
    /// A newer term is known.
    #[error("the hint is of an older term than {known}")]
    Stale {
        /// The term that is known.
        known: Term,
    },
    /// One term has one leader, so one of the two reporters is wrong.
    #[error("term {} is already led by {}", known.term, known.leader)]
    Conflict {
        /// The hint that stays.
        known: Hint,
    },
}

impl Hints {
    /// Starts from what was kept on disk.
    pub const fn new(current: Option<Hint>) -> Self {
        Self { current }
    }

    /// The hint of the highest term.
    pub const fn current(&self) -> Option<Hint> {
        self.current
    }

    /// Takes a hint; true when it changed something.
    pub fn offer(&mut self, hint: Hint) -> Result<bool, HintError> {
        if let Some(known) = self.current {
            if hint.term < known.term {
                return Err(HintError::Stale { known: known.term });
            }
            if hint.term == known.term && hint.leader != known.leader {
                return Err(HintError::Conflict { known });
            }
        }
        let changed = self.current != Some(hint);
        self.current = Some(hint);
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_term_is_refused_and_an_equal_one_must_agree() {
        let (a, b) = (PeerId::random(), PeerId::random());
        let hint = |leader, term| Hint {
            leader,
            term: Term(term),
        };
        let mut hints = Hints::default();
        assert_eq!(hints.offer(hint(a, 3)), Ok(true));
        assert_eq!(hints.offer(hint(a, 3)), Ok(false));
        assert_eq!(hints.offer(hint(b, 2)), Err(HintError::Stale { known: Term(3) }));
        assert_eq!(
            hints.offer(hint(b, 3)),
            Err(HintError::Conflict { known: hint(a, 3) })
        );
        assert_eq!(hints.offer(hint(b, 4)), Ok(true));
        assert_eq!(hints.current(), Some(hint(b, 4)));
    }
}
