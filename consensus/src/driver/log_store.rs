//! Raft's log and vote on disk, behind openraft's traits: one writer, group commit, a bounded cache.
//!
//! Where a vote becomes durable: `save_vote` queues it and waits until the writer thread has committed the
//! batch that holds it. Entries are readable at once and reported durable by the same thread. What the file
//! looks like is in `log_file.rs`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use super::StorageError;
use super::log_file::{Change, LogFile, Stored, encode_entry};
use super::types::{Entry, LogId, TypeConfig, Vote};

/// Operations that may wait for the writer. openraft waits for each vote and truncation and bounds what it
/// appends; this many waiting means that the disk is far behind, and the caller then waits for it.
const QUEUE_MAX: usize = 1024;

/// Operations in one commit: more would not make the sync cheaper, and would make the first one wait.
const BATCH_MAX: usize = 256;

/// Bytes in one commit, for the same reason.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Encoded bytes of durable entries that are kept decoded in memory, for followers and for applying.
const CACHE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most encoded bytes in one read for a follower: with the largest entry on top still well within a frame.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// How long the mark of what is committed waits for a batch to travel in, before it gets one of its own.
const COMMITTED_WAIT: Duration = Duration::from_millis(20);

/// A handle on the log; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    writer: SyncSender<Operation>,
}

#[derive(Debug)]
struct Shared {
    memory: Mutex<Memory>,
}

#[derive(Debug)]
struct Memory {
    /// `None` once the log is closed.
    file: Option<Arc<LogFile>>,
    entries: BTreeMap<u64, Cached>,
    cached_bytes: usize,
    /// Entries below this index are durable.
    durable: u64,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// Why the disk failed; nothing is written after that.
    failed: Option<String>,
}

#[derive(Debug)]
struct Cached {
    entry: Arc<Entry>,
    size: usize,
}

struct Operation {
    change: Option<Change>,
    done: Done,
}

enum Done {
    Nobody,
    Flushed(IOFlushed<TypeConfig>),
    Waiting(oneshot::Sender<Result<(), String>>),
    /// The last operation: the file is closed after it.
    Closed(oneshot::Sender<Result<(), String>>),
}

impl LogStore {
    /// Takes over an open file, and starts its writer.
    pub(crate) fn start(file: LogFile) -> Result<Self, StorageError> {
        let marks = file.marks()?;
        let mut memory = Memory {
            file: None,
            entries: BTreeMap::new(),
            cached_bytes: 0,
            durable: 0,
            vote: marks.vote,
            committed: marks.committed,
            purged: marks.purged,
            last: None,
            failed: None,
        };
        memory.last = file.scan(marks.purged, |entry, size| {
            memory.durable = entry.log_id.index + 1;
            memory.cache(entry, size);
        })?;
        memory.durable = memory.last.map_or(0, |last| last.index + 1);
        let file = Arc::new(file);
        memory.file = Some(file.clone());
        let shared = Arc::new(Shared {
            memory: Mutex::new(memory),
        });
        let (writer, queue) = sync_channel(QUEUE_MAX);
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("raft-log".to_owned())
                .spawn(move || write_all(&shared, file, &queue))
        };
        // The thread ends with `close`, or when the last handle is dropped.
        thread.map_err(|source| StorageError::Io {
            path: "raft-log".into(),
            source,
        })?;
        Ok(Self { shared, writer })
    }

    /// Commits what is queued, closes the file and gives up its lock.
    pub(crate) async fn close(&self) -> Result<(), io::Error> {
        let (done, closed) = oneshot::channel();
        self.send(None, Done::Closed(done))?;
        wait(closed).await
    }

    /// Records that the bootstrap is confirmed. Durable with the next commit at the latest.
    pub(crate) fn save_identity(&self, stored: Stored) -> Result<(), io::Error> {
        self.send(Some(Change::Identity(stored)), Done::Nobody)
    }

    fn send(&self, change: Option<Change>, done: Done) -> Result<(), io::Error> {
        self.writer
            .send(Operation { change, done })
            .map_err(|_| io::Error::other("the log is closed"))
    }

    async fn write_durably(&self, change: Change) -> Result<(), io::Error> {
        let (done, written) = oneshot::channel();
        self.send(Some(change), Done::Waiting(done))?;
        wait(written).await
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.shared.memory()
    }
}

async fn wait(done: oneshot::Receiver<Result<(), String>>) -> Result<(), io::Error> {
    match done.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => Err(io::Error::other(failure)),
        Err(_) => Err(io::Error::other("the log is closed")),
    }
}

impl Shared {
    /// Every change of the memory is a few assignments; a panic between them would be a fault in the map
    /// itself, so a poisoned lock is as good as a whole one.
    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn cache(&mut self, entry: Entry, size: usize) {
        let index = entry.log_id.index;
        let cached = Cached {
            entry: Arc::new(entry),
            size,
        };
        self.cached_bytes += size;
        if let Some(before) = self.entries.insert(index, cached) {
            self.cached_bytes -= before.size;
        }
        self.trim();
    }

    /// Entries that are not durable yet are nowhere else, so those stay.
    fn trim(&mut self) {
        while self.cached_bytes > CACHE_BYTES_MAX {
            match self.entries.first_entry() {
                Some(first) if *first.key() < self.durable => {
                    self.cached_bytes -= first.remove().size;
                }
                _ => break,
            }
        }
    }

    fn forget_from(&mut self, first: u64) {
        for (_, cached) in self.entries.split_off(&first) {
            self.cached_bytes -= cached.size;
        }
        self.durable = self.durable.min(first);
    }

    fn forget_upto(&mut self, last: u64) {
        let kept = self.entries.split_off(&(last + 1));
        for (_, cached) in std::mem::replace(&mut self.entries, kept) {
            self.cached_bytes -= cached.size;
        }
    }
}

/// The writer's whole life: takes what is queued, commits it at once, reports, and takes what has been queued
/// meanwhile.
fn write_all(shared: &Shared, file: Arc<LogFile>, queue: &Receiver<Operation>) {
    let mut committed = None;
    loop {
        let first = match committed {
            None => queue.recv().ok(),
            Some(_) => match queue.recv_timeout(COMMITTED_WAIT) {
                Ok(operation) => Some(operation),
                Err(RecvTimeoutError::Timeout) => Some(Operation {
                    change: None,
                    done: Done::Nobody,
                }),
                Err(RecvTimeoutError::Disconnected) => None,
            },
        };
        let ended = first.is_none();
        let batch = gather(first, queue);
        let closing = batch
            .iter()
            .any(|operation| matches!(operation.done, Done::Closed(_)));

        let mut changes = Vec::with_capacity(batch.len());
        let mut dones = Vec::with_capacity(batch.len());
        let mut marked = false;
        for Operation { change, done } in batch {
            match change {
                // Only the newest mark counts.
                Some(Change::Committed(mark)) => {
                    committed = Some(mark);
                    marked = true;
                }
                Some(change) => changes.push(change),
                None => {}
            }
            dones.push(done);
        }
        // A mark that comes alone waits for something to travel with.
        let waits = changes.is_empty() && marked && !ended && !closing;
        if !waits && let Some(mark) = committed.take() {
            changes.push(Change::Committed(mark));
        }

        let failure = shared.memory().failed.clone();
        let result = match failure {
            Some(failure) => Err(failure),
            None if changes.is_empty() => Ok(()),
            None => file.write(changes.iter()).map_err(|error| error.to_string()),
        };
        settle(shared, &changes, &result);
        if closing || ended {
            shared.memory().file = None;
            drop(file);
            report(dones, &result);
            return;
        }
        report(dones, &result);
    }
}

fn gather(first: Option<Operation>, queue: &Receiver<Operation>) -> Vec<Operation> {
    let mut bytes = 0;
    let mut batch = Vec::new();
    let mut next = first;
    while let Some(operation) = next {
        if let Some(Change::Append(records)) = &operation.change {
            bytes += records.iter().map(|(_, record)| record.len()).sum::<usize>();
        }
        let last = matches!(operation.done, Done::Closed(_));
        batch.push(operation);
        next = if last || batch.len() >= BATCH_MAX || bytes >= BATCH_BYTES_MAX {
            None
        } else {
            queue.try_recv().ok()
        };
    }
    batch
}

/// Notes in memory what is durable now, or that nothing will be any more.
fn settle(shared: &Shared, changes: &[Change], result: &Result<(), String>) {
    let mut memory = shared.memory();
    if let Err(failure) = result {
        if memory.failed.is_none() {
            tracing::error!(%failure, "the log cannot be written");
            memory.failed = Some(failure.clone());
        }
        return;
    }
    for change in changes {
        if let Change::Append(records) = change
            && let Some((last, _)) = records.last()
            // A truncation may have taken it back meanwhile.
            && memory.last.is_some_and(|newest| newest.index >= *last)
        {
            memory.durable = memory.durable.max(last + 1);
        }
    }
    memory.trim();
}

fn report(dones: Vec<Done>, result: &Result<(), String>) {
    for done in dones {
        match done {
            Done::Nobody => {}
            Done::Flushed(flushed) => flushed.io_completed(result.clone().map_err(io::Error::other)),
            // Whoever waited may have been stopped.
            Done::Waiting(waiting) | Done::Closed(waiting) => drop(waiting.send(result.clone())),
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(first, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory().vote)
    }
}

impl LogStore {
    fn read(&self, first: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>, io::Error> {
        let (cached, missing, file) = {
            let memory = self.memory();
            let first = memory.purged.map_or(first, |purged| first.max(purged.index + 1));
            let end = memory.last.map_or(0, |last| end.min(last.index + 1));
            if first >= end {
                return Ok(Vec::new());
            }
            let cached_from = memory
                .entries
                .keys()
                .next()
                .copied()
                .unwrap_or(end)
                .clamp(first, end);
            let mut bytes = 0;
            let cached: Vec<Arc<Entry>> = memory
                .entries
                .range(cached_from..end)
                .take_while(|(_, cached)| {
                    let fits = bytes == 0 || bytes + cached.size <= bytes_max;
                    bytes += cached.size;
                    fits
                })
                .map(|(_, cached)| cached.entry.clone())
                .collect();
            (cached, first..cached_from, memory.file.clone())
        };
        if missing.is_empty() {
            return Ok(cached.iter().map(|entry| Entry::clone(entry)).collect());
        }
        let file = file.ok_or_else(|| io::Error::other("the log is closed"))?;
        if bytes_max < usize::MAX {
            // Old entries for a follower that is far behind: a few at a time, without measuring them.
            let some = missing.start..missing.end.min(missing.start + OLD_ENTRIES_MAX);
            return Ok(file.read(some.start, some.end)?);
        }
        let mut entries = file.read(missing.start, missing.end)?;
        entries.extend(cached.iter().map(|entry| Entry::clone(entry)));
        Ok(entries)
    }
}

/// Entries that are read from disk for a follower at once: a frame holds this many of the largest.
const OLD_ENTRIES_MAX: u64 = 8;

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.memory();
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: memory.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.memory().vote = Some(*vote);
        self.write_durably(Change::Vote(*vote)).await
    }

    /// Queued, and durable some milliseconds later: until then a restart applies a little less than was
    /// applied before, and catches up as soon as a leader speaks. Linearizable reads ask a leader anyway.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.memory().committed = committed;
        self.send(Some(Change::Committed(committed)), Done::Nobody)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<(Entry, Vec<u8>)> = entries
            .into_iter()
            .map(|entry| {
                let record = encode_entry(&entry);
                (entry, record)
            })
            .collect();
        let mut records = Vec::with_capacity(entries.len());
        {
            let mut memory = self.memory();
            for (entry, record) in entries {
                memory.last = Some(entry.log_id);
                records.push((entry.log_id.index, record));
                let size = records.last().map_or(0, |(_, record)| record.len());
                memory.cache(entry, size);
            }
        }
        self.send(Some(Change::Append(records)), Done::Flushed(callback))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let first = last_log_id.map_or(0, |last| last.index + 1);
        {
            let mut memory = self.memory();
            memory.forget_from(first);
            memory.last = last_log_id;
        }
        self.write_durably(Change::TruncateFrom(first)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        {
            let mut memory = self.memory();
            memory.forget_upto(log_id.index);
            memory.purged = Some(log_id);
            if memory.last.is_none_or(|last| last.index <= log_id.index) {
                memory.last = Some(log_id);
                memory.durable = memory.durable.max(log_id.index + 1);
            }
        }
        // In order with what is appended later; nobody needs to wait for space to be free.
        self.send(Some(Change::Purge(log_id)), Done::Nobody)
    }
}
