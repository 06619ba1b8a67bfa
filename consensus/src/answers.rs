//! The answers to the latest requests, so that a repeated request is not applied twice.
//!
//! Not a log of everything: it is bounded, and forgets by count, never by time, so that it is the same on
//! every machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Applied, RequestId};

/// Between [`Answers::KEPT_MIN`] and twice as many of the latest answers, in two generations.
///
/// The generations are shared between copies of the state: publishing a state copies two pointers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    recent: Arc<BTreeMap<RequestId, Applied>>,
    older: Arc<BTreeMap<RequestId, Applied>>,
}

impl Answers {
    /// At least this many answers are remembered: one for each request that [`MEMBERS_MAX`](crate::MEMBERS_MAX)
    /// members can have on the way, several times over. Copying the younger generation costs every batch of
    /// commits some ten microseconds, which is why there are not more.
    pub const KEPT_MIN: usize = 4096;

    /// The answer to a request that was applied before, while it is remembered.
    pub fn get(&self, id: &RequestId) -> Option<&Applied> {
        self.recent.get(id).or_else(|| self.older.get(id))
    }

    /// Remembers an answer.
    pub fn keep(&mut self, id: RequestId, answer: Applied) {
        if self.recent.len() >= Self::KEPT_MIN {
            self.older = std::mem::take(&mut self.recent);
        }
        Arc::make_mut(&mut self.recent).insert(id, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_answers_are_remembered_and_old_ones_forgotten() {
        let id = |n: usize| RequestId((n as u128).to_be_bytes());
        let mut answers = Answers::default();
        for n in 0..3 * Answers::KEPT_MIN {
            answers.keep(id(n), Applied::Done);
        }
        assert!(answers.get(&id(0)).is_none());
        for n in 2 * Answers::KEPT_MIN..3 * Answers::KEPT_MIN {
            assert!(answers.get(&id(n)).is_some());
        }
    }
}
