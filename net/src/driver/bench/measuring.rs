//! What is measured of a pipe: bytes a second in each direction, and the time of a round trip.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pipe::{In, Out, Pipe};
use super::serving::{ECHO, SINK, SOURCE};
use super::{BLOCK, BenchError, ECHO_SIZE, failed};
use crate::driver::now;
use crate::driver::shared::lock;

/// How long anything may take that should take a fraction of it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Pipes that are kept full by this end, until it is told to stop.
#[derive(Debug)]
pub(super) struct Load {
    progress: Arc<Progress>,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), BenchError>>,
}

#[derive(Debug, Default)]
struct Progress {
    /// What the other end says that it has, and when it last said so.
    last: Mutex<Option<(u64, Instant)>>,
    changed: Notify,
}

impl Load {
    pub(super) fn start(pipes: impl IntoIterator<Item = Pipe>) -> Self {
        let (progress, stop) = (Arc::<Progress>::default(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        for Pipe { out, inn } in pipes {
            let (progress, stop) = (Arc::clone(&progress), stop.clone());
            tasks.spawn(async move { tokio::try_join!(fill(out, stop), follow(inn, &progress)).map(|_| ()) });
        }
        Self {
            progress,
            stop,
            tasks,
        }
    }

    /// What arrives in a second, over at least so long a time. The time before the first byte does not count.
    pub(super) async fn rate(&mut self, over: Duration) -> Result<f64, BenchError> {
        let (before, from) = self.progress_after(None).await?;
        let (after, to) = self.progress_after(Some(from + over)).await?;
        Ok((after - before) as f64 / (to - from).as_secs_f64())
    }

    async fn progress_after(&mut self, at: Option<Instant>) -> Result<(u64, Instant), BenchError> {
        let progress = Arc::clone(&self.progress);
        let waiting = async {
            if let Some(at) = at {
                tokio::time::sleep_until(at.into()).await;
            }
            loop {
                let changed = progress.changed.notified();
                let last = *lock(&progress.last);
                if let Some((total, reported_at)) = last
                    && at.is_none_or(|at| reported_at >= at)
                {
                    return (total, reported_at);
                }
                changed.await;
            }
        };
        let patience = PATIENCE + at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now()));
        tokio::select! {
            taken = tokio::time::timeout(patience, waiting) => {
                taken.map_err(|_| failed("send")("nothing arrives at the other end"))
            }
            // No pipe ends while it is measured, but by an error.
            Some(ended) = self.tasks.join_next() => match ended.map_err(failed("send"))? {
                Ok(()) => Err(failed("send")("the other end has ended the stream")),
                Err(error) => Err(error),
            },
        }
    }

    /// Sends no more, and waits until the other end has everything, so that nothing of it meets the next measurement.
    pub(super) async fn finish(mut self) -> Result<(), BenchError> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(failed("send"))??;
        }
        Ok(())
    }

    /// Ends at once: what is under way is of no use to anybody.
    pub(super) async fn abort(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn fill(mut out: Out, stop: CancellationToken) -> Result<(), BenchError> {
    let block = Bytes::from(vec![0x5a; BLOCK]);
    out.send(&SINK).await?;
    while !stop.is_cancelled() {
        out.send_block(&block).await?;
    }
    out.finish().await
}

async fn follow(mut inn: In, progress: &Progress) -> Result<(), BenchError> {
    let mut known = 0;
    while let Some(total) = inn.take().await? {
        let total = u64::from_le_bytes(total);
        {
            let mut last = lock(&progress.last);
            let sum = last.map_or(0, |(sum, _)| sum);
            // The other end counts up; one that does not is no reason to panic.
            *last = Some((sum + total.saturating_sub(known), now()));
        }
        progress.changed.notify_waiters();
        known = total;
    }
    Ok(())
}

/// What arrives here in a second, over at least so long a time.
pub(super) async fn download(mut pipe: Pipe, over: Duration) -> Result<f64, BenchError> {
    pipe.out.send(&SOURCE).await?;
    let (mut total, mut from) = (0, None);
    loop {
        let taken = tokio::time::timeout(PATIENCE, pipe.inn.drain()).await;
        let size = taken.map_err(failed("receive"))??;
        let size = size.ok_or("the other end has ended the stream");
        let size = size.map_err(failed("receive"))?;
        match from {
            None => from = Some(now()),
            Some(from) => {
                total += size;
                let took = from.elapsed();
                if took >= over {
                    return Ok(total as f64 / took.as_secs_f64());
                }
            }
        }
    }
}

/// Times of round trips, shortest first.
#[derive(Clone, Debug)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn new(mut each: Vec<Duration>) -> Self {
        each.sort();
        Self(each)
    }

    /// In milliseconds; not a number where nothing was measured.
    pub(super) fn at(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let position = (last as f64 * share).round() as usize;
        self.0
            .get(position)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// A pipe over which messages of [`ECHO_SIZE`] bytes come back.
#[derive(Debug)]
pub(super) struct Echo(Pipe);

impl Echo {
    pub(super) async fn start(mut pipe: Pipe) -> Result<Self, BenchError> {
        pipe.out.send(&ECHO).await?;
        Ok(Self(pipe))
    }

    /// One round trip.
    pub(super) async fn once(&mut self) -> Result<(), BenchError> {
        let round_trip = async {
            self.0.out.send(&[0; ECHO_SIZE]).await?;
            let answer = self.0.inn.take::<ECHO_SIZE>().await?;
            answer
                .map(|_| ())
                .ok_or("the other end has ended the stream")
                .map_err(failed("echo"))
        };
        let answered = tokio::time::timeout(PATIENCE, round_trip).await;
        answered.map_err(failed("echo"))?
    }

    /// Sends one message after each interval, whether or not the one before it is back, as heartbeats are sent.
    pub(super) async fn times(&mut self, over: Duration, interval: Duration) -> Result<Times, BenchError> {
        let began = now();
        let count = (over.as_secs_f64() / interval.as_secs_f64()).ceil().max(1.0) as usize;
        let Pipe { out, inn } = &mut self.0;
        let asking = async {
            let mut ticks = tokio::time::interval(interval);
            for _ in 0..count {
                ticks.tick().await;
                let mut message = [0; ECHO_SIZE];
                message[..size_of::<u64>()].copy_from_slice(&nanos(began).to_le_bytes());
                out.send(&message).await?;
            }
            Ok(())
        };
        let hearing = async {
            let mut each = Vec::with_capacity(count);
            while each.len() < count {
                let answer = inn.take::<ECHO_SIZE>().await?;
                let answer = answer.ok_or("the other end has ended the stream");
                let answer = answer.map_err(failed("echo"))?;
                let mut sent = [0; size_of::<u64>()];
                sent.copy_from_slice(&answer[..size_of::<u64>()]);
                each.push(Duration::from_nanos(
                    nanos(began).saturating_sub(u64::from_le_bytes(sent)),
                ));
            }
            Ok(each)
        };
        let both = async { tokio::try_join!(asking, hearing) };
        let done = tokio::time::timeout(over + PATIENCE, both).await;
        let ((), each) = done.map_err(failed("echo"))??;
        Ok(Times::new(each))
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_measured_times() {
        let times = Times::new((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(times.at(0.0), 1.0);
        assert_eq!(times.at(0.5), 51.0);
        assert_eq!(times.at(0.99), 99.0);
        assert!(Times::new(Vec::new()).at(0.5).is_nan());
    }
}
