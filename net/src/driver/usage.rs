//! What is open over one connection, counted by whatever holds it. Opens and closes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

/// The counts of one connection.
#[derive(Debug, Default)]
pub(crate) struct Usage(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    channels: AtomicU32,
    /// There is a channel where there was none.
    used: Notify,
    /// Channels that there have ever been. It wraps: only that it has changed says anything.
    begun: AtomicU32,
    of_peer: AtomicU32,
}

/// A channel's hold on its connection.
#[derive(Debug)]
pub(crate) struct Use {
    counts: Arc<Counts>,
    /// Of a channel that the peer has opened.
    _place: Option<Place>,
}

/// A stream that the peer has opened, be it a channel or not.
#[derive(Debug)]
pub(crate) struct Place(Arc<Counts>);

impl Usage {
    /// One channel more, for as long as what is returned is held.
    pub(crate) fn channel(&self, place: Option<Place>) -> Use {
        if self.0.channels.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0.used.notify_one();
        }
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        Use {
            counts: Arc::clone(&self.0),
            _place: place,
        }
    }

    /// One stream of the peer's more, for as long as what is returned is held.
    pub(crate) fn place(&self) -> Place {
        self.0.of_peer.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(&self.0))
    }

    /// Channels that are open, of either side.
    pub(crate) fn channels(&self) -> u32 {
        self.0.channels.load(Ordering::Relaxed)
    }

    /// Waits until there is a channel where there was none, since this was last waited for. For one at a time.
    pub(crate) async fn used(&self) {
        self.0.used.notified().await;
    }

    /// Changes whenever a channel is opened.
    pub(crate) fn begun(&self) -> u32 {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// Streams that the peer has open.
    pub(crate) fn of_peer(&self) -> u32 {
        self.0.of_peer.load(Ordering::Relaxed)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.counts.channels.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.of_peer.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn whoever_waits_for_a_channel_is_woken_by_the_first_one_and_not_by_others_beside_it() {
        let usage = Usage::default();
        let is_woken = || usage.used().now_or_never().is_some();
        assert!(!is_woken());
        let first = usage.channel(None);
        assert!(is_woken() && !is_woken());
        let second = usage.channel(None);
        assert!(!is_woken());
        drop((first, second));
        assert!(!is_woken());
        let _third = usage.channel(None);
        assert!(is_woken());
    }

    #[test]
    fn what_is_held_counts_and_what_was_shows_in_how_many_there_have_been() {
        let usage = Usage::default();
        let theirs = usage.channel(Some(usage.place()));
        let substream = usage.place();
        assert_eq!((usage.channels(), usage.of_peer(), usage.begun()), (1, 2, 1));
        drop(usage.channel(None));
        assert_eq!((usage.channels(), usage.of_peer(), usage.begun()), (1, 2, 2));
        drop((theirs, substream));
        assert_eq!((usage.channels(), usage.of_peer(), usage.begun()), (0, 0, 2));
    }
}
