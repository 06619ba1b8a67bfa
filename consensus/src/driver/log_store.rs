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
            // There may be nothing to take back.
            if memory.last > last_log_id {
                memory.last = last_log_id;
            }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lapwing_base::{ClusterId, Keypair, NodeId, PeerId};
    use openraft::entry::RaftEntry as _;
    use openraft::testing::log::{StoreBuilder, Suite};
    use openraft::type_config::TypeConfigExt as _;
    use tempfile::TempDir;

    use super::super::snapshot_files::SnapshotFiles;
    use super::super::state_machine::StateMachine;
    use super::*;
    use crate::{Command, Request, RequestId};

    struct Stores;

    impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Stores {
        async fn build(
            &self,
        ) -> Result<(TempDir, LogStore, StateMachine), openraft::StorageError<TypeConfig>> {
            let (directory, log) = fresh();
            let (files, newest) = SnapshotFiles::open(&LogFile::directory(directory.path())).unwrap();
            Ok((directory, log, StateMachine::new(files, newest)))
        }
    }

    #[test]
    fn passes_the_storage_suite_of_openraft() {
        runtime().block_on(async { Suite::test_all(Stores).await.unwrap() });
    }

    #[test]
    fn what_was_reported_durable_is_there_after_a_crash() {
        runtime().block_on(async {
            let (directory, mut log) = fresh();
            append(&mut log, 0..10).await;
            log.save_vote(&Vote::new(7, 3)).await.unwrap();
            let crashed = image_of(directory.path());
            let mut log = reopen(crashed.path());
            assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(7, 3)));
            assert_eq!(indices(&mut log).await, (0..10).collect::<Vec<_>>());
        });
    }

    #[test]
    fn truncation_and_purging_survive_a_crash() {
        runtime().block_on(async {
            let (directory, mut log) = fresh();
            append(&mut log, 0..20).await;
            log.truncate_after(Some(log_id(14))).await.unwrap();
            log.purge(log_id(4)).await.unwrap();
            append(&mut log, 15..17).await;
            let crashed = image_of(directory.path());
            let mut log = reopen(crashed.path());
            assert_eq!(indices(&mut log).await, (5..17).collect::<Vec<_>>());
            let state = log.get_log_state().await.unwrap();
            assert_eq!(state.last_purged_log_id, Some(log_id(4)));
            assert_eq!(state.last_log_id, Some(log_id(16)));
        });
    }

    #[test]
    fn the_mark_of_what_is_committed_is_saved_when_the_log_is_closed() {
        runtime().block_on(async {
            let (directory, mut log) = fresh();
            append(&mut log, 0..3).await;
            log.save_committed(Some(log_id(2))).await.unwrap();
            log.close().await.unwrap();
            let mut log = reopen(directory.path());
            assert_eq!(log.read_committed().await.unwrap(), Some(log_id(2)));
        });
    }

    #[test]
    fn entries_that_no_longer_fit_the_cache_are_read_from_disk() {
        runtime().block_on(async {
            let (_directory, mut log) = fresh();
            let big = 200 * 1024;
            let count = (3 * CACHE_BYTES_MAX / big) as u64;
            for index in 0..count {
                append_entries(&mut log, vec![entry(index, big)]).await;
            }
            assert!(log.memory().cached_bytes <= CACHE_BYTES_MAX);
            assert_eq!(indices(&mut log).await, (0..count).collect::<Vec<_>>());
            let some = log.limited_get_log_entries(0, count).await.unwrap();
            assert!(!some.is_empty() && some.len() < 10);
            let recent = log.limited_get_log_entries(count - 2, count).await.unwrap();
            assert_eq!(recent.len(), 2);
        });
    }

    #[test]
    fn a_directory_that_is_in_use_says_so() {
        let (directory, _log) = fresh();
        let error = LogFile::open(directory.path()).unwrap_err();
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    }

    #[test]
    fn a_flipped_byte_or_a_cut_file_is_an_error_that_names_the_file_or_harmless() {
        runtime().block_on(async {
            let (directory, mut log) = fresh();
            append(&mut log, 0..200).await;
            log.save_vote(&Vote::new(7, 3)).await.unwrap();
            log.close().await.unwrap();
            let path = LogFile::directory(directory.path()).join("log.redb");
            let whole = std::fs::read(&path).unwrap();
            let mut noticed = 0;
            let mut tried = 0;
            // Most of the file is space for later or was given up; damage there harms nobody.
            let used: Vec<usize> = (0..whole.len()).filter(|place| whole[*place] != 0).collect();
            for place in used.iter().copied().step_by(used.len() / 150) {
                let mut damaged = whole.clone();
                damaged[place] ^= 0x40;
                tried += 1;
                noticed += u32::from(!opens_unharmed(&damaged, place).await);
            }
            for length in [0, 1, 511, 4096, whole.len() / 2, whole.len() - 1] {
                tried += 1;
                noticed += u32::from(!opens_unharmed(&whole[..length], length).await);
            }
            assert!(noticed > tried / 4, "{noticed} of {tried} damages were noticed");
        });
    }

    /// Opens a file with this content: it is refused with an error that names it, or all of it is there.
    async fn opens_unharmed(content: &[u8], place: usize) -> bool {
        let directory = TempDir::new().unwrap();
        std::fs::create_dir_all(LogFile::directory(directory.path())).unwrap();
        let path = LogFile::directory(directory.path()).join("log.redb");
        std::fs::write(&path, content).unwrap();
        let opened = LogFile::open(directory.path()).and_then(|file| {
            let file = file.expect("the file is there");
            file.identity()?;
            LogStore::start(file)
        });
        match opened {
            Ok(mut log) => {
                assert_eq!(
                    log.read_vote().await.unwrap(),
                    Some(Vote::new(7, 3)),
                    "at {place}"
                );
                assert_eq!(
                    indices(&mut log).await,
                    (0..200).collect::<Vec<_>>(),
                    "at {place}"
                );
                true
            }
            Err(error) => {
                assert!(error.to_string().contains("log.redb"), "{error} at {place}");
                assert!(
                    matches!(error, StorageError::Corrupt { .. }),
                    "{error:?} at {place}"
                );
                false
            }
        }
    }

    #[test]
    fn snapshots_without_their_log_are_not_taken_for_an_empty_directory() {
        let directory = TempDir::new().unwrap();
        let raft = LogFile::directory(directory.path());
        assert!(LogFile::open(directory.path()).unwrap().is_none());
        std::fs::create_dir_all(&raft).unwrap();
        std::fs::write(raft.join("snapshot-00000000000000000012"), b"LWSN").unwrap();
        let error = LogFile::open(directory.path()).unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    }

    #[test]
    fn a_half_made_log_is_no_log() {
        let directory = TempDir::new().unwrap();
        let raft = LogFile::directory(directory.path());
        std::fs::create_dir_all(&raft).unwrap();
        std::fs::write(raft.join("log.redb.new"), b"half").unwrap();
        assert!(LogFile::open(directory.path()).unwrap().is_none());
        assert!(LogFile::create(directory.path(), &identity()).is_ok());
    }

    #[test]
    fn a_damaged_snapshot_is_named() {
        runtime().block_on(async {
            let (directory, _log) = fresh();
            let raft = LogFile::directory(directory.path());
            let (files, newest) = SnapshotFiles::open(&raft).unwrap();
            let mut machine = StateMachine::new(files, newest);
            use openraft::storage::{RaftSnapshotBuilder as _, RaftStateMachine as _};
            machine
                .get_snapshot_builder()
                .await
                .build_snapshot()
                .await
                .unwrap();
            let path = raft.join("snapshot-00000000000000000000");
            let whole = std::fs::read(&path).unwrap();
            assert!(SnapshotFiles::open(&raft).unwrap().1.is_some());
            for place in 0..whole.len() {
                let mut damaged = whole.clone();
                damaged[place] ^= 1;
                std::fs::write(&path, damaged).unwrap();
                let error = SnapshotFiles::open(&raft).unwrap_err();
                assert!(error.to_string().contains("snapshot-0000"), "{error}");
                std::fs::write(&path, &whole[..place]).unwrap();
                assert!(SnapshotFiles::open(&raft).is_err());
            }
        });
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    }

    fn identity() -> Stored {
        Stored {
            id: NodeId(1),
            cluster: ClusterId::from_bytes([1; 16]),
            peer: peer(),
            unconfirmed: None,
        }
    }

    fn peer() -> PeerId {
        Keypair::generate_ed25519().public().to_peer_id()
    }

    fn fresh() -> (TempDir, LogStore) {
        let directory = TempDir::new().unwrap();
        let file = LogFile::create(directory.path(), &identity()).unwrap();
        (directory, LogStore::start(file).unwrap())
    }

    fn reopen(directory: &Path) -> LogStore {
        LogStore::start(LogFile::open(directory).unwrap().unwrap()).unwrap()
    }

    /// The directory as a crash at this moment would leave it.
    fn image_of(directory: &Path) -> TempDir {
        let image = TempDir::new().unwrap();
        std::fs::create_dir_all(LogFile::directory(image.path())).unwrap();
        let name = "log.redb";
        std::fs::copy(
            LogFile::directory(directory).join(name),
            LogFile::directory(image.path()).join(name),
        )
        .unwrap();
        image
    }

    fn log_id(index: u64) -> LogId {
        LogId::new(openraft::vote::leader_id_std::CommittedLeaderId::new(1), index)
    }

    fn entry(index: u64, size: usize) -> Entry {
        let command = Command::SetConfig {
            key: "k".repeat(size),
            value: String::new(),
            expected: None,
        };
        let id = RequestId([0; 16]);
        Entry::new(
            log_id(index),
            openraft::EntryPayload::Normal(Request { id, command }),
        )
    }

    async fn append(log: &mut LogStore, range: std::ops::Range<u64>) {
        append_entries(log, range.map(|index| entry(index, 100)).collect()).await;
    }

    async fn append_entries(log: &mut LogStore, entries: Vec<Entry>) {
        let (done, durable) = TypeConfig::oneshot();
        let flushed = IOFlushed::signal(done);
        log.append(entries, flushed).await.unwrap();
        durable.await.unwrap().unwrap();
    }

    async fn indices(log: &mut LogStore) -> Vec<u64> {
        let entries = log.try_get_log_entries(..).await.unwrap();
        entries.iter().map(|entry| entry.log_id.index).collect()
    }
}
