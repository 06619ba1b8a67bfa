//! The database file that holds one member's log, vote and identity: opening, checking, reading, writing.
//!
//! Synchronous and without openraft's traits (those are in `log_store.rs`). A vote or an entry is durable when
//! [`LogFile::write`] has returned: redb writes, and then syncs the file. The directory is synced when the
//! file is made. Each record carries a checksum of its own, since redb verifies its pages only when it has
//! to recover.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use lapwing_base::{ClusterId, NodeId, PeerId};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StorageError;
use super::types::{Entry, LogId, Vote};

/// Entries by index: checksum, then postcard.
const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("log");
/// Everything else by name: checksum, then postcard.
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

const IDENTITY: &str = "identity";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// The layout of this file.
const FORMAT: u16 = 1;

/// Pages that redb keeps in memory. The log is read from our own cache; redb needs its tree's upper levels.
const CACHE_SIZE: usize = 2 * 1024 * 1024;

const CHECKSUM_LENGTH: usize = 16;

/// What a data directory is.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// Which member.
    pub id: NodeId,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// With which identity.
    pub peer: PeerId,
    /// A founder's fencing number for as long as nobody has confirmed the bootstrap: such a node must ask the
    /// gateway before it lets others in, since another one may have been told to found the cluster meanwhile.
    pub unconfirmed: Option<u64>,
}

/// What the file holds beside the entries.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
}

/// One change, applied in order with others of its batch.
#[derive(Debug)]
pub(crate) enum Change {
    Append(Vec<(u64, Vec<u8>)>),
    Vote(Vote),
    Committed(Option<LogId>),
    /// Removes every entry from this index on.
    TruncateFrom(u64),
    /// Removes every entry up to this one.
    Purge(LogId),
    Identity(Stored),
}

/// An open, checked log file. It is locked against other processes while this lives.
#[derive(Debug)]
pub(crate) struct LogFile {
    database: Database,
    path: PathBuf,
}

impl LogFile {
    /// The directory of a member's log and snapshots in its data directory.
    pub(crate) fn directory(data_dir: &Path) -> PathBuf {
        data_dir.join("raft")
    }

    fn path(data_dir: &Path) -> PathBuf {
        Self::directory(data_dir).join("log.redb")
    }

    /// Makes the file for a new member. It appears whole or not at all.
    pub(crate) fn create(data_dir: &Path, identity: &Stored) -> Result<Self, StorageError> {
        let directory = Self::directory(data_dir);
        let path = Self::path(data_dir);
        let io_error = |source| StorageError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(&directory).map_err(io_error)?;
        sync_directory(data_dir)?;
        let draft = directory.join("log.redb.new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
            _ => {}
        }
        let database = Builder::new()
            .set_cache_size(CACHE_SIZE)
            .create(&draft)
            .map_err(|error| database_error(&draft, error))?;
        let file = Self {
            database,
            path: draft,
        };
        file.write([Change::Identity(identity.clone())].iter())?;
        let draft = file.path.clone();
        drop(file);
        File::open(&draft)
            .and_then(|file| file.sync_all())
            .map_err(io_error)?;
        fs::rename(&draft, &path).map_err(io_error)?;
        sync_directory(&directory)?;
        Self::open(data_dir)?.ok_or(StorageError::Empty { path: directory })
    }

    /// Opens and checks the file; `None` when the directory holds no member.
    pub(crate) fn open(data_dir: &Path) -> Result<Option<Self>, StorageError> {
        let path = Self::path(data_dir);
        match fs::metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match first_orphan(&Self::directory(data_dir)) {
                    None => Ok(None),
                    Some(_) => Err(StorageError::Corrupt {
                        path,
                        what: "the file is missing, but snapshots of its member are there".to_owned(),
                    }),
                };
            }
            Err(source) => return Err(StorageError::Io { path, source }),
        }
        let mut database = Builder::new()
            .set_cache_size(CACHE_SIZE)
            .open(&path)
            .map_err(|error| database_error(&path, error))?;
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => {
                return Err(StorageError::Corrupt {
                    path,
                    what: "its pages do not have the checksums they were written with".to_owned(),
                });
            }
            Err(error) => return Err(database_error(&path, error)),
        }
        Ok(Some(Self { database, path }))
    }

    /// Whose file it is.
    pub(crate) fn identity(&self) -> Result<Stored, StorageError> {
        let read = self.database.begin_read().map_err(|e| self.failed(e))?;
        let meta = read.open_table(META).map_err(|e| self.failed(e))?;
        let value = meta.get(IDENTITY).map_err(|e| self.failed(e))?;
        let value = value.ok_or_else(|| self.corrupt("it does not say whose it is".to_owned()))?;
        let (format, stored): (u16, Stored) = self.decode_meta(IDENTITY, value.value())?;
        if format != FORMAT {
            return Err(StorageError::Format {
                path: self.path.clone(),
                found: format,
                known: FORMAT,
            });
        }
        Ok(stored)
    }

    pub(crate) fn marks(&self) -> Result<Marks, StorageError> {
        let read = self.database.begin_read().map_err(|e| self.failed(e))?;
        let meta = read.open_table(META).map_err(|e| self.failed(e))?;
        let mut marks = Marks::default();
        if let Some(value) = meta.get(VOTE).map_err(|e| self.failed(e))? {
            marks.vote = Some(self.decode_meta(VOTE, value.value())?);
        }
        if let Some(value) = meta.get(COMMITTED).map_err(|e| self.failed(e))? {
            marks.committed = self.decode_meta(COMMITTED, value.value())?;
        }
        if let Some(value) = meta.get(PURGED).map_err(|e| self.failed(e))? {
            marks.purged = Some(self.decode_meta(PURGED, value.value())?);
        }
        Ok(marks)
    }

    /// Reads every entry in order, with its encoded length.
    ///
    /// # Errors
    ///
    /// An entry is damaged, or one is missing between two others or after the purged ones.
    pub(crate) fn scan(
        &self,
        purged: Option<LogId>,
        mut each: impl FnMut(Entry, usize),
    ) -> Result<Option<LogId>, StorageError> {
        let read = self.database.begin_read().map_err(|e| self.failed(e))?;
        let log = read.open_table(LOG).map_err(|e| self.failed(e))?;
        let mut last = purged;
        for item in log.iter().map_err(|e| self.failed(e))? {
            let (index, value) = item.map_err(|e| self.failed(e))?;
            let index = index.value();
            let expected = last.map_or(0, |last| last.index + 1);
            if index != expected {
                return Err(self.corrupt(format!("entry {expected} is missing before entry {index}")));
            }
            let entry = self.decode_entry(index, value.value())?;
            last = Some(entry.log_id);
            each(entry, value.value().len());
        }
        Ok(last)
    }

    /// Reads the entries in `first..end` that are there.
    pub(crate) fn read(&self, first: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let read = self.database.begin_read().map_err(|e| self.failed(e))?;
        let log = read.open_table(LOG).map_err(|e| self.failed(e))?;
        let mut entries = Vec::new();
        for item in log.range(first..end).map_err(|e| self.failed(e))? {
            let (index, value) = item.map_err(|e| self.failed(e))?;
            entries.push(self.decode_entry(index.value(), value.value())?);
        }
        Ok(entries)
    }

    /// Makes the changes durable, all or none.
    pub(crate) fn write<'a>(&self, changes: impl Iterator<Item = &'a Change>) -> Result<(), StorageError> {
        let write = self.database.begin_write().map_err(|e| self.failed(e))?;
        {
            let mut log = write.open_table(LOG).map_err(|e| self.failed(e))?;
            let mut meta = write.open_table(META).map_err(|e| self.failed(e))?;
            let mut mark = |name: &'static str, value: Vec<u8>| match meta.insert(name, value.as_slice()) {
                Ok(_) => Ok(()),
                Err(error) => Err(self.failed(error)),
            };
            for change in changes {
                match change {
                    Change::Append(records) => {
                        for (index, record) in records {
                            log.insert(*index, record.as_slice())
                                .map_err(|e| self.failed(e))?;
                        }
                    }
                    Change::Vote(vote) => mark(VOTE, encode_meta(VOTE, vote))?,
                    Change::Committed(committed) => mark(COMMITTED, encode_meta(COMMITTED, committed))?,
                    Change::TruncateFrom(first) => {
                        log.retain_in(*first.., |_, _| false)
                            .map_err(|e| self.failed(e))?;
                    }
                    Change::Purge(upto) => {
                        log.retain_in(..=upto.index, |_, _| false)
                            .map_err(|e| self.failed(e))?;
                        mark(PURGED, encode_meta(PURGED, upto))?;
                    }
                    Change::Identity(stored) => mark(IDENTITY, encode_meta(IDENTITY, &(FORMAT, stored)))?,
                }
            }
        }
        write.commit().map_err(|e| self.failed(e))
    }

    fn decode_entry(&self, index: u64, record: &[u8]) -> Result<Entry, StorageError> {
        let entry: Entry = unseal(&index.to_be_bytes(), record)
            .ok_or_else(|| self.corrupt(format!("entry {index} is not what was written")))?;
        if entry.log_id.index == index {
            Ok(entry)
        } else {
            Err(self.corrupt(format!(
                "entry {index} says that it is entry {}",
                entry.log_id.index
            )))
        }
    }

    fn decode_meta<T: DeserializeOwned>(&self, name: &str, record: &[u8]) -> Result<T, StorageError> {
        unseal(name.as_bytes(), record)
            .ok_or_else(|| self.corrupt(format!("its {name} is not what was written")))
    }

    fn corrupt(&self, what: String) -> StorageError {
        StorageError::Corrupt {
            path: self.path.clone(),
            what,
        }
    }

    fn failed(&self, error: impl Into<redb::Error>) -> StorageError {
        storage_error(&self.path, error.into())
    }
}

/// Encodes an entry as it is kept.
pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    seal(&entry.log_id.index.to_be_bytes(), entry)
}

fn encode_meta<T: Serialize>(name: &str, value: &T) -> Vec<u8> {
    seal(name.as_bytes(), value)
}

/// The checksum covers the place as well as the value, so that a record in the wrong place is noticed.
fn seal<T: Serialize>(place: &[u8], value: &T) -> Vec<u8> {
    let body = lapwing_net::encode(value);
    let mut record = checksum(place, &body).to_vec();
    record.extend_from_slice(&body);
    record
}

fn unseal<T: DeserializeOwned>(place: &[u8], record: &[u8]) -> Option<T> {
    let (sum, body) = record.split_at_checked(CHECKSUM_LENGTH)?;
    if sum != checksum(place, body) {
        return None;
    }
    lapwing_net::decode(body).ok()
}

fn checksum(place: &[u8], body: &[u8]) -> [u8; CHECKSUM_LENGTH] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(place);
    hasher.update(body);
    let mut sum = [0; CHECKSUM_LENGTH];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

fn database_error(path: &Path, error: DatabaseError) -> StorageError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StorageError::Locked {
            path: path.to_path_buf(),
        },
        other => storage_error(path, other.into()),
    }
}

fn storage_error(path: &Path, error: redb::Error) -> StorageError {
    let path = path.to_path_buf();
    match error {
        redb::Error::Corrupted(what) => StorageError::Corrupt { path, what },
        redb::Error::Io(source)
            if matches!(
                source.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            StorageError::Corrupt {
                path,
                what: source.to_string(),
            }
        }
        redb::Error::Io(source) => StorageError::Io { path, source },
        source @ (redb::Error::TableDoesNotExist(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted) => StorageError::Corrupt {
            path,
            what: source.to_string(),
        },
        source => StorageError::Database {
            path,
            source: Box::new(source),
        },
    }
}

/// A file of a member in a directory that has no log.
fn first_orphan(directory: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| super::snapshot_files::is_snapshot(path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), StorageError> {
    lapwing_durable::sync_directory(directory).map_err(|source| StorageError::Io {
        path: directory.to_path_buf(),
        source,
    })
}
