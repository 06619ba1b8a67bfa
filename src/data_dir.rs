//! The data directory of one node: what lies where, and that only one process uses it.
//!
//! ```text
//! lock             held as long as the process runs
//! identity.key     the node's key; whoever has it is the node
//! incarnation      how often the node has started
//! listen.port      the UDP port in use, taken again at the next start
//! admin.addr       where the admin address answers now
//! networks         on which networks UDP passes
//! gateway.json     what gateways answered last
//! raft/            log, vote and snapshots; raft.old of a membership that is over
//! train/           checkpoints and consensus models
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// An open, locked data directory.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is missing, and locks it for this process.
    pub(crate) fn open(root: &Path) -> Result<Self, DataDirError> {
        let fail = |source| DataDirError::Unusable {
            dir: root.to_owned(),
            source,
        };
        fs::create_dir_all(root).map_err(fail)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join("lock"))
            .map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                root: root.to_owned(),
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => Err(DataDirError::InUse { dir: root.to_owned() }),
            Err(fs::TryLockError::Error(source)) => Err(fail(source)),
        }
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join("identity.key")
    }

    /// Below which consensus keeps its `raft/`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn train(&self) -> PathBuf {
        self.root.join("train")
    }

    /// Where the network keeps what it knows of networks that this machine was in.
    pub(crate) fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    pub(crate) fn gateway_cache(&self) -> PathBuf {
        self.root.join("gateway.json")
    }

    /// Counts this start, durably: the gateway orders what it hears of us by this number.
    pub(crate) fn next_incarnation(&self) -> Result<u64, DataDirError> {
        let last = self.number("incarnation", INCARNATION_REMEDY)?.unwrap_or(0);
        let incarnation = last.checked_add(1).ok_or_else(|| DataDirError::Corrupt {
            file: self.root.join("incarnation"),
            remedy: INCARNATION_REMEDY,
        })?;
        self.write("incarnation", &incarnation.to_string())?;
        Ok(incarnation)
    }

    pub(crate) fn listen_port(&self) -> Result<Option<u16>, DataDirError> {
        // A port that is out of range is as good as none.
        Ok(self
            .number("listen.port", PORT_REMEDY)?
            .and_then(|port| u16::try_from(port).ok()))
    }

    pub(crate) fn remember_listen_port(&self, port: u16) -> Result<(), DataDirError> {
        self.write("listen.port", &port.to_string())
    }

    pub(crate) fn write_admin_addr(&self, addr: std::net::SocketAddr) -> Result<(), DataDirError> {
        self.write("admin.addr", &addr.to_string())
    }

    /// The process no longer answers there.
    pub(crate) fn remove_admin_addr(&self) {
        // Whoever reads a stale address gets a refused connection, and an error that says so.
        let _ = fs::remove_file(self.root.join("admin.addr"));
    }

    fn number(&self, name: &str, remedy: &'static str) -> Result<Option<u64>, DataDirError> {
        let file = self.root.join(name);
        match fs::read_to_string(&file) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| DataDirError::Corrupt { file, remedy }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(DataDirError::Corrupt { file, remedy })
            }
            Err(source) => Err(DataDirError::Unusable {
                dir: self.root.clone(),
                source,
            }),
        }
    }

    /// Replaces a small file so that a crash leaves the old or the new text, never half of one.
    fn write(&self, name: &str, text: &str) -> Result<(), DataDirError> {
        lapwing_durable::write(&self.root.join(name), text.as_bytes()).map_err(|source| {
            DataDirError::Unusable {
                dir: self.root.clone(),
                source,
            }
        })
    }
}

/// A gateway hears no node that counts from 1 again: it takes it for a copy.
const INCARNATION_REMEDY: &str =
    "write into it a number that is larger than the node's starts so far, such as 1000000";

/// Any free port will do.
const PORT_REMEDY: &str = "delete it, and the node takes any free port";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process holds it.
    #[error("another lapwing node uses the data directory {}; stop it, or give this one another --data-dir", dir.display())]
    InUse {
        /// Which.
        dir: PathBuf,
    },
    /// The disk or the permissions.
    #[error("the data directory {} cannot be used", dir.display())]
    Unusable {
        /// Which.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A small file of ours that is not a number.
    #[error("{} is damaged; {remedy}", file.display())]
    Corrupt {
        /// Which.
        file: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = DataDir::open(root.path()).unwrap();
        assert!(matches!(
            DataDir::open(root.path()),
            Err(DataDirError::InUse { .. })
        ));
        drop(first);
        DataDir::open(root.path()).unwrap();
    }

    #[test]
    fn incarnations_only_grow() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        assert_eq!(dir.next_incarnation().unwrap(), 1);
        assert_eq!(dir.next_incarnation().unwrap(), 2);
        fs::write(root.path().join("incarnation"), "many").unwrap();
        let error = dir.next_incarnation().unwrap_err();
        assert!(error.to_string().contains("incarnation is damaged"), "{error}");
    }
}
