//! Decides whether a call that has failed is made once more. Makes no call, and does not know which instance is next.

use crate::window::{Tally, Window};
use crate::{CallError, ErrorCode, Retry};
use std::time::Instant;

/// A budget for retries, so that a failure does not double the load that may have caused it.
///
/// Of the requests of the last ten seconds at most a tenth is retried, or ten if that is more. One budget belongs to one
/// service of one node: all its calls share it.
#[derive(Debug, Default)]
pub struct Retries {
    /// Requests, and marked among them those that were retried.
    recent: Window,
}

impl Retries {
    /// A budget that nothing was taken from yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is kept of any call.
    pub fn is_idle(&mut self, now: Instant) -> bool {
        self.recent.total(now).all == 0
    }

    /// A call begins; a retry is none.
    pub fn on_request(&mut self, now: Instant) {
        self.recent.add(now, Tally { all: 1, marked: 0 });
    }

    /// Whether a call that has failed with `error` may be made again at once; takes it from the budget if so.
    ///
    /// Only what was not sent yet, or what may be carried out twice. A call is retried once at most, and the budget does
    /// not know calls: ask once for each, and only while there is time until its deadline.
    pub fn may_retry(
        &mut self,
        now: Instant,
        error: &CallError,
        was_sent: bool,
        is_idempotent: bool,
    ) -> bool {
        let may_help = match error.code.retry() {
            Retry::Never => false,
            // The limit is the caller's own, whoever it asks.
            Retry::Later => error.code != ErrorCode::RateLimited,
            Retry::IfIdempotent => is_idempotent,
        };
        if !may_help || (was_sent && !is_idempotent) {
            return false;
        }
        let total = self.recent.total(now);
        let has_room = total.marked < (total.all / SHARE).max(FLOOR);
        if has_room {
            self.recent.add(now, Tally { all: 0, marked: 1 });
        }
        has_room
    }
}

/// One in ten: where all calls fail, the load grows by no more than a tenth.
const SHARE: u64 = 10;

/// One for each second of the window: by its share alone somebody who calls once a second could never retry.
const FLOOR: u64 = Window::SECONDS as u64;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn a_single_caller_may_retry() {
        let now = Instant::now();
        let mut retries = Retries::new();
        retries.on_request(now);
        assert!(retries.may_retry(now, &error(ErrorCode::NodeOffline), false, false));
    }

    #[test]
    fn what_was_sent_is_retried_only_if_it_may_be_carried_out_twice() {
        let now = Instant::now();
        for (code, was_sent, is_idempotent, expected) in [
            (ErrorCode::PeerUnreachable, false, false, true),
            (ErrorCode::PeerUnreachable, true, false, false),
            (ErrorCode::PeerUnreachable, true, true, true),
            (ErrorCode::Timeout, true, false, false),
            (ErrorCode::Timeout, true, true, true),
        ] {
            let retries = Retries::new().may_retry(now, &error(code), was_sent, is_idempotent);
            assert_eq!(retries, expected, "{code:?} {was_sent} {is_idempotent}");
        }
    }

    #[test]
    fn what_would_fail_again_is_not_retried() {
        let now = Instant::now();
        let mut retries = Retries::new();
        for code in [
            ErrorCode::InvalidParams,
            ErrorCode::RemoteError,
            ErrorCode::RateLimited,
        ] {
            assert!(!retries.may_retry(now, &error(code), false, true), "{code:?}");
        }
    }

    #[test]
    fn at_most_a_tenth_of_many_requests_is_retried() {
        let now = Instant::now();
        let mut retries = Retries::new();
        let retried = (0..1000).filter(|_| {
            retries.on_request(now);
            retries.may_retry(now, &error(ErrorCode::Overloaded), false, false)
        });
        assert_eq!(retried.count(), 100);
    }

    #[test]
    fn the_budget_comes_back_after_ten_seconds_and_is_not_saved_up() {
        let start = Instant::now();
        let mut retries = Retries::new();
        (0..1000).for_each(|_| retries.on_request(start));
        for seconds in [0, 10, 20, 3600] {
            let now = start + Duration::from_secs(seconds);
            let retried =
                (0..1000).filter(|_| retries.may_retry(now, &error(ErrorCode::NodeOffline), false, false));
            assert_eq!(retried.count(), if seconds == 0 { 100 } else { 10 });
        }
    }

    proptest! {
        #[test]
        fn retries_never_exceed_a_tenth_of_the_requests_or_the_floor(
            events in proptest::collection::vec((any::<bool>(), 0_u64..200), 0..500)
        ) {
            let mut now = Instant::now();
            let mut retries = Retries::new();
            let (mut requests, mut retried) = (0_u64, 0_u64);
            for (is_request, millis) in events {
                // Less than the window in all, so that nothing is forgotten.
                now += Duration::from_millis(millis / 11);
                if is_request {
                    retries.on_request(now);
                    requests += 1;
                } else if retries.may_retry(now, &error(ErrorCode::NodeOffline), false, false) {
                    retried += 1;
                }
                prop_assert!(retried <= (requests / 10).max(10));
            }
        }
    }

    fn error(code: ErrorCode) -> CallError {
        CallError::new(code, "")
    }
}
