//! How much of results the edge has at a time: whoever sends a few hundred bytes may ask for gigabytes. Nothing else here
//! knows of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::{CallError, ErrorCode};

/// What all requests together have.
#[derive(Debug, Default)]
pub(super) struct Results {
    held: AtomicUsize,
}

/// What one request or one batch has, until its answer is written; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    results: Arc<Results>,
    taken: AtomicUsize,
}

/// As much as the commands of one request may have: four answers as long as a link carries them.
const ONE_MAX: usize = 64 << 20;

/// Four requests that have as much. In memory a result takes a few times as much as its text.
const ALL_MAX: usize = 256 << 20;

/// An answer is written within this, mostly.
const BUSY_FOR: Duration = Duration::from_secs(1);

impl Results {
    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share {
            results: Arc::clone(self),
            taken: AtomicUsize::new(0),
        }
    }
}

impl Share {
    /// Takes up a result whose text has so many bytes.
    ///
    /// # Errors
    /// When this request has too much, or all together have.
    pub(super) fn take(&self, bytes: usize) -> Result<(), CallError> {
        if !add(&self.taken, bytes, ONE_MAX) {
            let said = format!(
                "the results of one request or batch take more than {} MiB: ask for fewer at a time",
                ONE_MAX >> 20
            );
            return Err(CallError::new(ErrorCode::PayloadTooLarge, said));
        }
        if !add(&self.results.held, bytes, ALL_MAX) {
            self.taken.fetch_sub(bytes, Ordering::Relaxed);
            let said = format!("the results of all requests take more than {} MiB", ALL_MAX >> 20);
            return Err(CallError::new(ErrorCode::Overloaded, said).with_retry_after(BUSY_FOR));
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let taken = *self.taken.get_mut();
        self.results.held.fetch_sub(taken, Ordering::Relaxed);
    }
}

/// Adds where that is no more than `most`; says whether it was.
fn add(to: &AtomicUsize, bytes: usize, most: usize) -> bool {
    let sum = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= most);
    to.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(taken: Result<(), CallError>) -> Option<ErrorCode> {
        taken.err().map(|error| error.code)
    }

    #[test]
    fn one_request_has_no_more_than_its_share() {
        let results = Arc::new(Results::default());
        let share = results.share();
        assert_eq!(code(share.take(ONE_MAX)), None);
        assert_eq!(code(share.take(1)), Some(ErrorCode::PayloadTooLarge));
        assert_eq!(code(share.take(usize::MAX)), Some(ErrorCode::PayloadTooLarge));
        assert_eq!(code(share.take(0)), None);
    }

    #[test]
    fn all_together_have_no_more_than_there_is_and_what_is_over_makes_room() {
        let results = Arc::new(Results::default());
        let shares = [(); ALL_MAX / ONE_MAX].map(|()| results.share());
        for share in &shares {
            assert_eq!(code(share.take(ONE_MAX)), None);
        }
        let next = results.share();
        assert_eq!(code(next.take(1)), Some(ErrorCode::Overloaded));
        drop(shares);
        assert_eq!(code(next.take(ONE_MAX)), None);
        drop(next);
        assert_eq!(results.held.load(Ordering::Relaxed), 0);
    }
}
