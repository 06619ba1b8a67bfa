//! What a data directory holds of a member: looking, opening, and putting it out of the way.

use std::path::Path;

use lapwing_base::NodeId;

use super::StorageError;
use super::consensus::{ConsensusConfig, Start};
use super::log_file::{LogFile, Stored, sync_directory};

/// Says what a data directory holds, without starting anything; `None` when it holds no member.
///
/// # Errors
///
/// The directory is in use by another process, damaged, or from a newer program.
pub fn stored(data_dir: &Path) -> Result<Option<Stored>, StorageError> {
    match LogFile::open(data_dir)? {
        Some(file) => file.identity().map(Some),
        None => Ok(None),
    }
}

/// Moves what a data directory holds of a member that is one no longer out of the way, so that the node can
/// join as a new one. It stays beside as `raft.old`, where a person can look at it; an older one is deleted.
///
/// # Errors
///
/// The directory is in use, or the disk failed.
pub fn retire(data_dir: &Path) -> Result<(), StorageError> {
    if let Err(locked @ StorageError::Locked { .. }) = LogFile::open(data_dir) {
        return Err(locked);
    }
    let present = LogFile::directory(data_dir);
    let old = data_dir.join("raft.old");
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        |source| StorageError::Io { path, source }
    };
    if !present.try_exists().map_err(failed(&present))? {
        return Ok(());
    }
    if old.try_exists().map_err(failed(&old))? {
        std::fs::remove_dir_all(&old).map_err(failed(&old))?;
    }
    std::fs::rename(&present, &old).map_err(failed(&present))?;
    sync_directory(data_dir)
}

/// Opens, or makes, the log that a start asks for, and makes sure that it is this node's.
pub(super) fn open_file(config: &ConsensusConfig, start: &Start) -> Result<LogFile, StorageError> {
    let path = LogFile::directory(&config.data_dir);
    let wanted = match start {
        Start::Resume => None,
        Start::Found { cluster, epoch } => Some(Stored {
            id: NodeId::FOUNDER,
            cluster: *cluster,
            peer: config.peer,
            unconfirmed: Some(*epoch),
        }),
        Start::Joined(accepted) => Some(Stored {
            id: accepted.id,
            cluster: accepted.cluster,
            peer: config.peer,
            unconfirmed: None,
        }),
    };
    let file = match (LogFile::open(&config.data_dir)?, &wanted) {
        (Some(file), _) => file,
        (None, Some(wanted)) => LogFile::create(&config.data_dir, wanted)?,
        (None, None) => return Err(StorageError::Empty { path }),
    };
    let found = file.identity()?;
    if found.peer != config.peer {
        return Err(StorageError::OtherPeer {
            path,
            theirs: Box::new(found.peer),
            ours: Box::new(config.peer),
        });
    }
    match wanted {
        Some(wanted) if (wanted.cluster, wanted.id) != (found.cluster, found.id) => {
            Err(StorageError::OtherCluster {
                path,
                theirs: found.cluster,
                theirs_id: found.id,
                ours: wanted.cluster,
                ours_id: wanted.id,
            })
        }
        _ => Ok(file),
    }
}
