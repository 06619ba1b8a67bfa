//! Tasks of quinn's whose datagrams leave together at the end of each of their turns.
//!
//! quinn puts datagrams together by itself, in a buffer that each connection keeps once it has been busy: 14 KiB, or 160 KiB
//! where the longest datagrams fit, too much for who has thousands of homes. Here a buffer belongs to a thread, and
//! whichever connection has its turn there fills it; only what the system does not take stays with the connection.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::Transmit;
use tracing::debug;

use super::batch::Batch;

/// What takes datagrams.
pub(super) trait Outlet: Send + Sync {
    /// Takes all or nothing.
    ///
    /// # Errors
    /// `WouldBlock` where there is no room now.
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()>;

    /// How many datagrams can be cut out of one call.
    fn at_once_max(&self) -> usize;

    /// Waits until there may be room again.
    fn writable(self: Arc<Self>) -> Waiting;
}

pub(super) type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Such a task.
pub(super) struct Batching<O> {
    /// `None` once it has ended.
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    outlet: Arc<O>,
    blocked: Option<Box<Blocked>>,
}

/// What the outlet did not take, before which nothing more is sent.
struct Blocked {
    batch: Batch,
    waiting: Waiting,
}

/// What the task on this thread has sent in its turn.
struct Turn {
    runs: bool,
    /// The outlet takes nothing more for now.
    blocked: bool,
    batch: Batch,
}

thread_local! {
    static TURN: RefCell<Turn> = const {
        RefCell::new(Turn {
            runs: false,
            blocked: false,
            batch: Batch::new(),
        })
    };
}

/// Sends a datagram with the others of this turn; at once where no such task has its turn.
///
/// # Errors
/// `WouldBlock` where the outlet does not take what was sent before; then [`is_blocked`] until the task is woken.
pub(super) fn send<O: Outlet>(outlet: &O, datagram: &Transmit<'_>) -> io::Result<()> {
    TURN.with_borrow_mut(|turn| {
        if !turn.runs {
            return outlet.send(datagram);
        }
        if turn.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count_max = outlet.at_once_max();
        if !turn.batch.take(datagram, count_max) {
            turn.flush(outlet)?;
            // Nothing stands before it.
            turn.batch.take(datagram, count_max);
        }
        Ok(())
    })
}

/// Whether nothing can be sent in this turn any more.
pub(super) fn is_blocked() -> bool {
    TURN.with_borrow(|turn| turn.blocked)
}

impl Turn {
    fn flush<O: Outlet>(&mut self, outlet: &O) -> io::Result<()> {
        let Some(transmit) = self.batch.transmit() else {
            return Ok(());
        };
        let sent = outlet.send(&transmit);
        match &sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
            _ => self.batch.clear(),
        }
        sent
    }
}

impl<O: Outlet> Batching<O> {
    pub(super) fn new(task: Pin<Box<dyn Future<Output = ()> + Send>>, outlet: Arc<O>) -> Self {
        Self {
            task: Some(task),
            outlet,
            blocked: None,
        }
    }

    /// What was not taken in an earlier turn.
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(blocked) = &mut self.blocked {
            // An error of the socket shows when something is sent.
            let _ = std::task::ready!(blocked.waiting.as_mut().poll(cx));
            match blocked.batch.transmit().map(|all| self.outlet.send(&all)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    blocked.waiting = Arc::clone(&self.outlet).writable();
                }
                Some(Err(error)) => {
                    debug!(%error, "datagrams were not sent");
                    self.blocked = None;
                }
                Some(Ok(())) | None => self.blocked = None,
            }
        }
        Poll::Ready(())
    }

    fn poll_task(&mut self, cx: &mut Context<'_>) {
        TURN.with_borrow_mut(|turn| {
            turn.runs = true;
            turn.blocked = self.blocked.is_some();
            // One that has panicked may have left something.
            turn.batch.clear();
        });
        if let Some(task) = &mut self.task
            && task.as_mut().poll(cx).is_ready()
        {
            self.task = None;
        }
        TURN.with_borrow_mut(|turn| {
            turn.runs = false;
            if !turn.blocked
                && let Err(error) = turn.flush(&*self.outlet)
                && error.kind() != io::ErrorKind::WouldBlock
            {
                debug!(%error, "datagrams were not sent");
            }
            if std::mem::take(&mut turn.blocked) && self.blocked.is_none() {
                self.blocked = Some(Box::new(Blocked {
                    batch: std::mem::take(&mut turn.batch),
                    waiting: Arc::clone(&self.outlet).writable(),
                }));
            }
        });
    }
}

impl<O: Outlet> Future for Batching<O> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let was_blocked = self.poll_blocked(cx).is_pending();
        self.poll_task(cx);
        if !was_blocked && self.blocked.is_some() {
            // To be woken; and where there is room already, for the task to go on.
            if self.poll_blocked(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        if self.task.is_none() && self.blocked.is_none() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn what_is_sent_in_one_turn_leaves_in_one_call() {
        let outlet = Arc::new(Recorder::default());
        let sending = sends(&outlet, [&[1; 1200], &[2; 1200], &[3; 1200]]);
        Batching::new(sending, Arc::clone(&outlet)).await;
        assert_eq!(*outlet.calls.lock().unwrap(), [(3600, Some(1200))]);
    }

    #[tokio::test]
    async fn what_is_sent_outside_of_a_turn_leaves_at_once() {
        let outlet = Recorder::default();
        send(&outlet, &datagram(&[1; 1200])).unwrap();
        send(&outlet, &datagram(&[2; 1200])).unwrap();
        assert_eq!(*outlet.calls.lock().unwrap(), [(1200, None), (1200, None)]);
    }

    #[tokio::test]
    async fn what_the_system_does_not_take_is_kept_until_it_does_and_nothing_overtakes_it() {
        let outlet = Arc::new(Recorder::default());
        outlet.full.store(true, Ordering::Relaxed);
        let task = Box::pin({
            let outlet = Arc::clone(&outlet);
            async move {
                send(&*outlet, &datagram(&[1; 1200])).unwrap();
                // Longer, so that the first has to leave before it.
                let refused = send(&*outlet, &datagram(&[2; 1400])).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
                assert!(is_blocked());
                outlet.waited.notified().await;
                assert!(!is_blocked());
                send(&*outlet, &datagram(&[2; 1400])).unwrap();
            }
        });
        let mut batching = Batching::new(task, Arc::clone(&outlet));
        assert!(futures::poll!(&mut batching).is_pending());
        assert!(outlet.calls.lock().unwrap().is_empty());
        outlet.full.store(false, Ordering::Relaxed);
        outlet.room.notify_one();
        outlet.waited.notify_one();
        batching.await;
        assert_eq!(*outlet.calls.lock().unwrap(), [(1200, None), (1400, None)]);
    }

    /// Remembers the length of each call and of its datagrams, where there are several.
    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<(usize, Option<usize>)>>,
        full: AtomicBool,
        room: Notify,
        waited: Notify,
    }

    impl Outlet for Recorder {
        fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            if self.full.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let call = (transmit.contents.len(), transmit.segment_size);
            self.calls.lock().unwrap().push(call);
            Ok(())
        }

        fn at_once_max(&self) -> usize {
            64
        }

        fn writable(self: Arc<Self>) -> Waiting {
            Box::pin(async move {
                self.room.notified().await;
                Ok(())
            })
        }
    }

    fn sends<const N: usize>(
        outlet: &Arc<Recorder>,
        datagrams: [&'static [u8]; N],
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let outlet = Arc::clone(outlet);
        Box::pin(async move {
            for contents in datagrams {
                send(&*outlet, &datagram(contents)).unwrap();
            }
        })
    }

    fn datagram(contents: &[u8]) -> Transmit<'_> {
        Transmit {
            destination: ([127, 0, 0, 1], 1).into(),
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        }
    }
}
