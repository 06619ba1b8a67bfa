//! What can be wrong with a data directory.

use std::io;
use std::path::PathBuf;

use lapwing_base::{ClusterId, NodeId, PeerId};

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Another process has it.
    #[error("{} is in use by another process; stop that one, or give this node a directory of its own", path.display())]
    Locked {
        /// The log file.
        path: PathBuf,
    },
    /// A file is damaged.
    #[error(
        "{} is corrupt ({what}); move its directory {} away and start again: the node then joins as a new member and takes the state from the others",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A snapshot is damaged.
    #[error(
        "{} is corrupt ({what}); move this file away and start again: the snapshot before it and the log serve instead, or the next start says what else is missing",
        path.display()
    )]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A newer program has written it.
    #[error("{} was written in format {found}; this program reads format {known}: use the newer program", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// It belongs to another identity.
    #[error(
        "{} belongs to the node with identity {theirs}, not to {ours}; use that node's key, or another directory",
        path.display()
    )]
    OtherPeer {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        theirs: Box<PeerId>,
        /// Who we are.
        ours: Box<PeerId>,
    },
    /// It belongs to another cluster, or to another member of this one.
    #[error(
        "{} belongs to {theirs_id} of cluster {theirs}, not to {ours_id} of cluster {ours}; use another directory, or move this one away",
        path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        theirs: ClusterId,
        /// Its member.
        theirs_id: NodeId,
        /// The cluster that was to be entered.
        ours: ClusterId,
        /// As which member.
        ours_id: NodeId,
    },
    /// There is nothing to resume.
    #[error("{} has no log to resume; join a cluster or found one", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("{}: {source}{}", path.display(), remedy(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// The database failed.
    #[error("{}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// How.
        source: Box<redb::Error>,
    },
}

/// What a person can do about a disk's error, where that is known.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room and start the node again: nothing that it acknowledged is lost"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; let this user write there and start the node again"
        }
        _ => "",
    }
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        let kind = match error {
            StorageError::Corrupt { .. } | StorageError::Snapshot { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_to_do() {
        let error = StorageError::Io {
            path: "raft/log.redb".into(),
            source: io::ErrorKind::StorageFull.into(),
        };
        let text = error.to_string();
        assert!(
            text.starts_with("raft/log.redb: ") && text.contains("make room"),
            "{text}"
        );
        let error = StorageError::Io {
            path: "raft/log.redb".into(),
            source: io::ErrorKind::Other.into(),
        };
        assert!(!error.to_string().contains(';'), "{error}");
    }
}
