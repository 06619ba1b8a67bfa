//! The one thread on which a node computes: training, masks, merging, evaluation and checkpoints.
//!
//! It has a lower priority than the rest of the process, so that a busy trainer never delays a heartbeat,
//! and its inbox is bounded. What runs on it is a closure over the job's [`Worker`].

use crate::worker::Worker;
use std::thread::JoinHandle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

/// Jobs waiting for the thread: one of each kind that the driver can have under way at once.
const WAITING_MAX: usize = 16;

/// How much lower than the process the thread stands (`nice`): enough to yield to network and consensus
/// whenever they wake, without starving beside other people's processes.
const NICE: i32 = 10;

type Task = Box<dyn FnOnce(&mut Option<Worker>) + Send>;

/// A handle to the thread. The thread ends when the last handle is dropped or [`Compute::stop`] is called.
#[derive(Debug)]
pub(crate) struct Compute {
    tasks: mpsc::Sender<Task>,
    thread: JoinHandle<()>,
}

/// Hands closures to the thread.
#[derive(Clone, Debug)]
pub(crate) struct ComputeHandle {
    tasks: mpsc::Sender<Task>,
}

/// The thread is gone: the trainer stops, or a computation panicked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the training thread has stopped")]
pub(crate) struct ComputeStopped;

impl Compute {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (tasks, mut inbox) = mpsc::channel::<Task>(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("lapwing-train".into())
            .spawn(move || {
                if let Err(error) = rustix::process::nice(NICE) {
                    tracing::debug!(%error, "the training thread keeps its priority");
                }
                let mut worker = None;
                while let Some(task) = inbox.blocking_recv() {
                    task(&mut worker);
                }
            })?;
        Ok(Self { tasks, thread })
    }

    pub(crate) fn handle(&self) -> ComputeHandle {
        ComputeHandle {
            tasks: self.tasks.clone(),
        }
    }

    /// Waits for what is under way. All handles must be gone, or go while this waits.
    pub(crate) async fn stop(self) {
        drop(self.tasks);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::warn!("the training thread ended by a panic");
        }
    }
}

impl ComputeHandle {
    /// Runs a closure on the thread, after what waits there already.
    ///
    /// While there is room the order is that of the calls, whenever the futures are polled. The driver sees to it that
    /// there is, since a round has to be settled before the next one is trained.
    pub(crate) fn run<R, F>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<R, ComputeStopped>> + Send + use<R, F>
    where
        R: Send + 'static,
        F: FnOnce(&mut Option<Worker>) -> R + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move |worker| {
            // Nobody listens when the driver has moved on; the work itself still counts.
            let _ = answer.send(work(worker));
        });
        let sent = self.tasks.try_send(task);
        let tasks = self.tasks.clone();
        async move {
            match sent {
                Ok(()) => (),
                Err(TrySendError::Full(task)) => tasks.send(task).await.map_err(|_| ComputeStopped)?,
                Err(TrySendError::Closed(_)) => return Err(ComputeStopped),
            }
            drop(tasks);
            answered.await.map_err(|_| ComputeStopped)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn what_is_asked_first_runs_first_whichever_is_waited_for() {
        let compute = Compute::start().unwrap();
        let handle = compute.handle();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let asked: Vec<_> = (0..WAITING_MAX / 2)
            .map(|place| {
                let seen = Arc::clone(&seen);
                handle.run(move |_| seen.lock().unwrap().push(place))
            })
            .collect();
        for answer in asked.into_iter().rev() {
            answer.await.unwrap();
        }
        let expected: Vec<usize> = (0..WAITING_MAX / 2).collect();
        assert_eq!(*seen.lock().unwrap(), expected);
        drop(handle);
        compute.stop().await;
    }
}
