//! A made-up link between two streams of bytes: a rate, a delay and a queue, in the runtime's time. For tests.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};
use tokio_util::task::TaskTracker;

/// What a link does to bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Bytes a second.
    pub(super) rate: f64,
    /// There and back.
    pub(super) rtt: Duration,
    /// Bytes that wait for their turn; whoever writes more waits too.
    pub(super) queue: usize,
}

impl Link {
    /// Its two ends.
    pub(super) fn lay(self, tasks: &TaskTracker) -> [Compat<DuplexStream>; 2] {
        let (left, left_far) = duplex(self.queue);
        let (right, right_far) = duplex(self.queue);
        let (left_reads, left_writes) = split(left_far);
        let (right_reads, right_writes) = split(right_far);
        self.carry(left_reads, right_writes, tasks);
        self.carry(right_reads, left_writes, tasks);
        [left.compat(), right.compat()]
    }

    fn carry(self, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, tasks: &TaskTracker) {
        // As many pieces as fly at 1 Gbit/s over a second.
        let (flying, mut landing) = mpsc::channel::<(Instant, Vec<u8>)>(100_000);
        tasks.spawn(async move {
            let mut idle_at = Instant::now();
            let mut piece = [0; 1200];
            while let Ok(bytes @ 1..) = from.read(&mut piece).await {
                // A timer is late by up to a millisecond, which the next piece makes up for.
                if idle_at + Duration::from_millis(2) < Instant::now() {
                    idle_at = Instant::now();
                }
                idle_at += Duration::from_secs_f64(bytes as f64 / self.rate);
                sleep_until(idle_at).await;
                let lands = (idle_at + self.rtt / 2, piece[..bytes].to_vec());
                if flying.send(lands).await.is_err() {
                    return;
                }
            }
        });
        tasks.spawn(async move {
            while let Some((at, piece)) = landing.recv().await {
                sleep_until(at).await;
                if to.write_all(&piece).await.is_err() {
                    return;
                }
            }
            // Whether anybody is there still makes no difference.
            drop(to.shutdown().await);
        });
    }
}
