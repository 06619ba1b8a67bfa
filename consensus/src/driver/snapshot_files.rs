//! Snapshots of the state as files: whole, checked, the last two kept.
//!
//! A file is written beside its final name, synced, renamed, and its directory synced: it is there whole or
//! not at all. Its BLAKE3 hash is checked whenever it is read, from disk or from another member.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::StorageError;
use super::types::SnapshotMeta;
use crate::State;

/// Begins every snapshot: what it is.
const MAGIC: &[u8; 4] = b"LWSN";

/// The layout of what follows.
const FORMAT: u16 = 1;

/// Magic, format, hash.
const HEADER_LENGTH: usize = 4 + 2 + 32;

/// How many snapshots stay: the newest, and the one before, which the kept log still reaches.
const KEPT: usize = 2;

/// Longest snapshot that is accepted from another member. A thousand members with every link measured and
/// all rounds kept are about 30 MiB.
pub(crate) const SNAPSHOT_MAX: usize = 64 * 1024 * 1024;

/// What a snapshot holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) meta: SnapshotMeta,
    pub(crate) state: State,
}

/// A snapshot that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("it is no snapshot")]
    Foreign,
    #[error("it is format {0}")]
    Format(u16),
    #[error("its content does not have the hash it was written with")]
    Hash,
    #[error("its content cannot be read: {0}")]
    Content(String),
}

impl Snapshot {
    /// The snapshot as it is kept and sent.
    pub(crate) fn encode(&self) -> Bytes {
        let body = lapwing_net::encode(self);
        let mut bytes = Vec::with_capacity(HEADER_LENGTH + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_be_bytes());
        bytes.extend_from_slice(blake3::hash(&body).as_bytes());
        bytes.extend_from_slice(&body);
        bytes.into()
    }

    /// Reads and checks a snapshot.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (magic, rest) = bytes.split_at_checked(4).ok_or(DecodeError::Foreign)?;
        let (format, rest) = rest.split_at_checked(2).ok_or(DecodeError::Foreign)?;
        let (hash, body) = rest.split_at_checked(32).ok_or(DecodeError::Foreign)?;
        if magic != MAGIC {
            return Err(DecodeError::Foreign);
        }
        let format = u16::from_be_bytes([format[0], format[1]]);
        if format != FORMAT {
            return Err(DecodeError::Format(format));
        }
        if blake3::hash(body).as_bytes().as_slice() != hash {
            return Err(DecodeError::Hash);
        }
        lapwing_net::decode(body).map_err(|error| DecodeError::Content(error.to_string()))
    }
}

/// The snapshots in a directory; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFiles {
    directory: PathBuf,
    newest: Arc<Mutex<Option<(SnapshotMeta, PathBuf)>>>,
}

impl SnapshotFiles {
    /// Opens the directory, and reads the newest snapshot, if there is one.
    ///
    /// # Errors
    ///
    /// The newest snapshot is damaged. It is named: when it is moved away, the one before serves, as long as
    /// the log still begins where that one ends.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Option<Snapshot>), StorageError> {
        let files = Self {
            directory: directory.to_path_buf(),
            newest: Arc::new(Mutex::new(None)),
        };
        let Some(path) = files.list()?.pop() else {
            return Ok((files, None));
        };
        let snapshot = read(&path)?;
        files.set_newest(snapshot.meta.clone(), path);
        Ok((files, Some(snapshot)))
    }

    /// Writes a snapshot that [`Snapshot::encode`] made, durably, and removes all but the newest two.
    pub(crate) fn write(&self, meta: &SnapshotMeta, bytes: &[u8]) -> Result<(), StorageError> {
        let index = meta.last_log_id.map_or(0, |last| last.index);
        let path = self.directory.join(format!("snapshot-{index:020}"));
        let draft = self.directory.join("snapshot.new");
        lapwing_durable::replace_through(&draft, &path, |output| output.write_all(bytes)).map_err(
            |source| StorageError::Io {
                path: path.clone(),
                source,
            },
        )?;
        self.set_newest(meta.clone(), path);
        let mut all = self.list()?;
        all.truncate(all.len().saturating_sub(KEPT));
        for old in all {
            if let Err(error) = fs::remove_file(&old) {
                tracing::warn!(path = %old.display(), %error, "an old snapshot cannot be removed");
            }
        }
        Ok(())
    }

    /// The newest snapshot, as it is sent.
    pub(crate) fn newest(&self) -> Result<Option<(SnapshotMeta, Bytes)>, StorageError> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((meta, path)) = newest else {
            return Ok(None);
        };
        let bytes = fs::read(&path).map_err(|source| StorageError::Io { path, source })?;
        Ok(Some((meta, bytes.into())))
    }

    fn set_newest(&self, meta: SnapshotMeta, path: PathBuf) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some((meta, path));
    }

    /// Every snapshot, oldest first: their names sort by index.
    fn list(&self) -> Result<Vec<PathBuf>, StorageError> {
        let io_error = |source| StorageError::Io {
            path: self.directory.clone(),
            source,
        };
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(io_error)? {
            let path = entry.map_err(io_error)?.path();
            if is_snapshot(&path) {
                all.push(path);
            }
        }
        all.sort();
        Ok(all)
    }
}

/// Whether a file's name is one that snapshots have.
pub(crate) fn is_snapshot(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("snapshot-"))
        .is_some_and(|index| index.len() == 20 && index.bytes().all(|byte| byte.is_ascii_digit()))
}

fn read(path: &Path) -> Result<Snapshot, StorageError> {
    let path = path.to_path_buf();
    let bytes = fs::read(&path).map_err(|source| StorageError::Io {
        path: path.clone(),
        source,
    })?;
    Snapshot::decode(&bytes).map_err(|error| match error {
        DecodeError::Format(found) => StorageError::Format {
            path,
            found,
            known: FORMAT,
        },
        error => StorageError::Snapshot {
            path,
            what: error.to_string(),
        },
    })
}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}
