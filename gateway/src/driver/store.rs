//! The gateway's memory on disk: one redb file in the data directory. Interprets nothing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition,
    TableError, WriteTransaction,
};
use tracing::warn;

use super::StartError;
use super::clock;
use crate::{
    BootstrapRecord, Changes, DirectoryRecord, LoadedState, RegistryRecord, StoredLegacyNode, StoredRecord,
};

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
}

/// The file's name in the data directory.
const FILE_NAME: &str = "gateway.redb";
/// What this program writes and reads.
const FORMAT: u64 = 1;
/// The whole state is in memory already; redb needs only enough to write a batch.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// The format's number and the small part of the state, as JSON.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Signed records by the bytes of their peer id, as JSON.
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
/// Nodes of the compatible API by the JSON of their id, as JSON.
const LEGACY: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("legacy");

/// A write that did not reach the disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The storage engine failed.
    #[error("the storage failed: {0}")]
    Redb(Box<redb::Error>),
    /// A value has no JSON form.
    #[error("a value could not be encoded: {0}")]
    Json(#[from] serde_json::Error),
}

impl Store {
    /// Opens the data directory, creating what is missing, and reads all of it. Blocks.
    pub(super) fn open(dir: &Path) -> Result<(Self, LoadedState), StartError> {
        let unusable = |source: io::Error| StartError::DataDir {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(unusable)?;
        let path = dir.join(FILE_NAME);
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&path)
            .map_err(|error| open_error(dir, &path, error))?;
        // The file's name is durable only once its directory is.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(unusable)?;
        let store = Self { database };
        let loaded = match store.read(&path)? {
            Some(loaded) => loaded,
            None => {
                let record = empty();
                let written = store.write_first(&record);
                written.map_err(|error| StartError::Corrupt {
                    path: path.clone(),
                    problem: error.to_string(),
                })?;
                LoadedState {
                    record,
                    records: Vec::new(),
                    legacy: Vec::new(),
                }
            }
        };
        Ok((store, loaded))
    }

    /// Writes a batch; on disk when it returns. Blocks.
    pub(super) fn write(&self, changes: &Changes) -> Result<(), WriteError> {
        self.transact(|transaction| {
            put_record(transaction, &changes.record)?;
            let mut records = transaction.open_table(RECORDS).map_err(redb_error)?;
            for (peer, record) in &changes.records {
                let key = peer.to_bytes();
                match record {
                    Some(record) => {
                        let value = serde_json::to_vec(record)?;
                        records
                            .insert(key.as_slice(), value.as_slice())
                            .map_err(redb_error)?;
                    }
                    None => {
                        records.remove(key.as_slice()).map_err(redb_error)?;
                    }
                }
            }
            let mut legacy = transaction.open_table(LEGACY).map_err(redb_error)?;
            for (key, node) in &changes.legacy {
                let key = serde_json::to_vec(key)?;
                match node {
                    Some(node) => {
                        let value = serde_json::to_vec(node)?;
                        legacy
                            .insert(key.as_slice(), value.as_slice())
                            .map_err(redb_error)?;
                    }
                    None => {
                        legacy.remove(key.as_slice()).map_err(redb_error)?;
                    }
                }
            }
            Ok(())
        })
    }

    fn write_first(&self, record: &DirectoryRecord) -> Result<(), WriteError> {
        self.transact(|transaction| {
            let format = serde_json::to_vec(&FORMAT)?;
            let mut meta = transaction.open_table(META).map_err(redb_error)?;
            meta.insert("format", format.as_slice()).map_err(redb_error)?;
            drop(meta);
            transaction.open_table(RECORDS).map_err(redb_error)?;
            transaction.open_table(LEGACY).map_err(redb_error)?;
            put_record(transaction, record)
        })
    }

    fn transact(
        &self,
        body: impl FnOnce(&WriteTransaction) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let transaction = self.database.begin_write().map_err(redb_error)?;
        body(&transaction)?;
        // The default durability is a commit that is on disk when it returns.
        transaction.commit().map_err(redb_error)
    }

    /// Everything in the file; `None` when nothing was ever written.
    fn read(&self, path: &Path) -> Result<Option<LoadedState>, StartError> {
        let corrupt = |problem: String| StartError::Corrupt {
            path: path.to_owned(),
            problem,
        };
        let failed = |error: redb::Error| corrupt(error.to_string());
        let transaction = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let meta = match transaction.open_table(META) {
            Ok(meta) => meta,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let get = |key: &str| -> Result<Vec<u8>, StartError> {
            let value = meta.get(key).map_err(|error| failed(error.into()))?;
            let value = value.ok_or_else(|| corrupt(format!("`{key}` is missing")))?;
            Ok(value.value().to_vec())
        };
        let format: u64 =
            serde_json::from_slice(&get("format")?).map_err(|error| corrupt(error.to_string()))?;
        if format != FORMAT {
            return Err(StartError::Format {
                path: path.to_owned(),
                found: format,
            });
        }
        let record = serde_json::from_slice(&get("state")?).map_err(|error| corrupt(error.to_string()))?;

        let mut loaded = LoadedState {
            record,
            records: Vec::new(),
            legacy: Vec::new(),
        };
        let records = transaction
            .open_table(RECORDS)
            .map_err(|error| failed(error.into()))?;
        for row in records.iter().map_err(|error| failed(error.into()))? {
            let (_, value) = row.map_err(|error| failed(error.into()))?;
            // A single unreadable node is no loss: it registers again within one heartbeat.
            match serde_json::from_slice::<StoredRecord>(value.value()) {
                Ok(record) => loaded.records.push(record),
                Err(error) => warn!(%error, "skipped an unreadable node record"),
            }
        }
        let legacy = transaction
            .open_table(LEGACY)
            .map_err(|error| failed(error.into()))?;
        for row in legacy.iter().map_err(|error| failed(error.into()))? {
            let (_, value) = row.map_err(|error| failed(error.into()))?;
            match serde_json::from_slice::<StoredLegacyNode>(value.value()) {
                Ok(node) => loaded.legacy.push(node),
                Err(error) => warn!(%error, "skipped an unreadable node"),
            }
        }
        Ok(Some(loaded))
    }
}

fn put_record(transaction: &WriteTransaction, record: &DirectoryRecord) -> Result<(), WriteError> {
    let value = serde_json::to_vec(record)?;
    let mut meta = transaction.open_table(META).map_err(redb_error)?;
    meta.insert("state", value.as_slice()).map_err(redb_error)?;
    Ok(())
}

/// What an empty data directory holds: a new lineage.
fn empty() -> DirectoryRecord {
    DirectoryRecord {
        bootstrap: BootstrapRecord {
            lineage: clock::draw_lineage(),
            epoch: 0,
            claim: None,
            cluster: None,
        },
        hint: None,
        registry: RegistryRecord::default(),
    }
}

fn redb_error(error: impl Into<redb::Error>) -> WriteError {
    WriteError::Redb(Box::new(error.into()))
}

fn open_error(dir: &Path, path: &Path, error: DatabaseError) -> StartError {
    let path = PathBuf::from(path);
    match error {
        DatabaseError::DatabaseAlreadyOpen => StartError::Locked { path: dir.to_owned() },
        // The engine reports a file of something else as invalid data.
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            StartError::DataDir {
                path: dir.to_owned(),
                source,
            }
        }
        other => StartError::Corrupt {
            path,
            problem: other.to_string(),
        },
    }
}
