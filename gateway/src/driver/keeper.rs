//! Holds the directory for everybody, and lets nobody be answered from what is not yet on disk.
//!
//! One lock, never held across an await. A message that changes what must survive a crash raises the durable
//! version; whoever saw that version waits until the flusher has written it, and many wait for one write.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::clock;
use super::store::Store;
use crate::{Directory, Now, Refusal};

/// The shared directory.
#[derive(Debug)]
pub(super) struct Keeper {
    directory: Mutex<Directory>,
    /// Wakes the flusher.
    unsaved: Notify,
    flushed: watch::Sender<Flushed>,
    /// The version of what `/v1` shows; moves when it does.
    version: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flushed {
    /// The durable version that is on disk.
    durable: u64,
    /// The durable version whose last write failed; 0 when the last write succeeded.
    failed: u64,
}

/// How long changes wait that may be lost in a crash. Nodes repeat themselves every thirty seconds anyway.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

impl Keeper {
    pub(super) fn new(directory: Directory) -> Self {
        let version = directory.version();
        Self {
            directory: Mutex::new(directory),
            unsaved: Notify::new(),
            flushed: watch::Sender::new(Flushed::default()),
            version: watch::Sender::new(version),
        }
    }

    /// Does something that depends on nothing that must survive a crash.
    pub(super) fn apply<R>(&self, body: impl FnOnce(&mut Directory, Now) -> R) -> R {
        self.enter(body).0
    }

    /// Does something, and returns once everything it saw is on disk.
    pub(super) async fn settled<R>(&self, body: impl FnOnce(&mut Directory, Now) -> R) -> Result<R, Refusal> {
        let (result, durable) = self.enter(body);
        if self.flushed.borrow().durable >= durable {
            return Ok(result);
        }
        let mut flushed = self.flushed.subscribe();
        let flushed = flushed
            .wait_for(|flushed| flushed.durable >= durable || flushed.failed >= durable)
            .await;
        match flushed {
            Ok(flushed) if flushed.durable >= durable => Ok(result),
            _ => Err(Refusal::StorageFailed),
        }
    }

    /// Follows the version of what `/v1` shows.
    pub(super) fn watch_version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Writes what changed: at once what must survive a crash, in batches the rest. Once more when stopped.
    pub(super) async fn flush_until(self: Arc<Self>, store: Arc<Store>, stop: CancellationToken) {
        let mut save = interval(SAVE_INTERVAL);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stopped = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = self.unsaved.notified() => false,
                _ = save.tick() => false,
            };
            self.flush(&store).await;
            if stopped {
                return;
            }
        }
    }

    /// Ages the nodes at every interval.
    pub(super) async fn sweep_until(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => (),
            }
            let report = self.apply(|directory, now| directory.sweep(now.instant));
            for peer in &report.forgotten {
                info!(%peer, "forgot a silent node");
            }
            for node in &report.forgotten_legacy {
                info!(%node, "forgot a silent node of the compatible API");
            }
            match report.guard_changed {
                Some(true) => warn!("most nodes fell silent at once: keeping them as suspected"),
                Some(false) => info!("most nodes are heard of again"),
                None => (),
            }
        }
    }

    fn enter<R>(&self, body: impl FnOnce(&mut Directory, Now) -> R) -> (R, u64) {
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        // Read inside the lock: messages are handled in the order of their times.
        let now = clock::now();
        let result = body(&mut directory, now);
        let (durable, version) = (directory.durable_version(), directory.version());
        drop(directory);
        if self.flushed.borrow().durable < durable {
            self.unsaved.notify_one();
        }
        if *self.version.borrow() != version {
            self.version.send_if_modified(|known| {
                let grew = *known < version;
                *known = version.max(*known);
                grew
            });
        }
        (result, durable)
    }

    async fn flush(&self, store: &Arc<Store>) {
        let changes = {
            let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
            if directory.durable_version() == self.flushed.borrow().durable && !directory.has_unsaved() {
                return;
            }
            directory.take_changes()
        };
        let durable = changes.durable_version;
        let store = Arc::clone(store);
        let written = tokio::task::spawn_blocking(move || {
            let written = store.write(&changes);
            (changes, written)
        })
        .await;
        match written {
            Ok((_, Ok(()))) => {
                self.flushed.send_replace(Flushed { durable, failed: 0 });
            }
            Ok((changes, Err(problem))) => {
                error!(%problem, "could not write the state to disk");
                self.directory
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .return_changes(changes);
                self.flushed.send_modify(|flushed| flushed.failed = durable);
            }
            Err(problem) => {
                error!(%problem, "could not write the state to disk");
                self.flushed.send_modify(|flushed| flushed.failed = durable);
            }
        }
    }
}
