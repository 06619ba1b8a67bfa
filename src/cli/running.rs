//! Which nodes of this user run on this machine, so that `lapwing status` needs no address.
//!
//! Each running node keeps one small file below a directory of its user, and holds a lock on it for as long as it
//! lives. The lock, not the file, says that it runs: the system drops it however the process ends. The directory
//! is a convenience of the command line; no node reads it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use lapwing_base::PeerId;
use serde::{Deserialize, Serialize};

use crate::config::absolute;

/// A node of this user that runs now.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// Its identity.
    pub(crate) peer_id: String,
    /// Its name.
    pub(crate) name: String,
    /// Where its `admin.addr` is.
    pub(crate) data_dir: PathBuf,
}

/// A node's entry; it goes when this is dropped.
#[derive(Debug)]
#[must_use = "the entry goes when this is dropped"]
pub(crate) struct Entry {
    file: PathBuf,
    _lock: File,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Whoever lists the nodes removes what is left over.
        let _left_over = fs::remove_file(&self.file);
    }
}

/// Largest entry that is read: a path, a name and a peer id.
const ENTRY_SIZE_MAX: u64 = 16 * 1024;

/// Most entries that are listed; more than one person runs on one machine.
const ENTRIES_MAX: usize = 1024;

/// Enters a node that starts here. `None` when this user has no place for such entries.
///
/// # Errors
///
/// When the entry cannot be written.
pub(crate) fn enter(peer: &PeerId, name: &str, data_dir: &Path) -> io::Result<Option<Entry>> {
    match directory() {
        Some(directory) => enter_in(&directory, peer, name, data_dir).map(Some),
        None => Ok(None),
    }
}

/// The nodes of this user that run now, by name.
pub(crate) fn list() -> Vec<Running> {
    directory().map_or_else(Vec::new, |directory| list_in(&directory))
}

/// Below the user's run directory, or else the state directory (XDG base directory specification 0.8).
fn directory() -> Option<PathBuf> {
    let base = absolute("XDG_RUNTIME_DIR")
        .or_else(|| absolute("XDG_STATE_HOME"))
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(base.join("lapwing/nodes"))
}

fn enter_in(directory: &Path, peer: &PeerId, name: &str, data_dir: &Path) -> io::Result<Entry> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let entry = Running {
        peer_id: peer.to_string(),
        name: name.to_owned(),
        data_dir: std::path::absolute(data_dir)?,
    };
    let file = directory.join(&entry.peer_id);
    // Locked before it gets its name, so that nobody ever sees it without its lock.
    let unnamed = directory.join(format!(".{}", entry.peer_id));
    let mut lock = File::create(&unnamed)?;
    lock.try_lock().map_err(io::Error::from)?;
    lock.write_all(serde_json::to_string(&entry)?.as_bytes())?;
    fs::rename(&unnamed, &file)?;
    Ok(Entry { file, _lock: lock })
}

fn list_in(directory: &Path) -> Vec<Running> {
    let Ok(files) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut nodes: Vec<Running> = files
        .filter_map(Result::ok)
        .filter(|file| !file.file_name().as_encoded_bytes().starts_with(b"."))
        .take(ENTRIES_MAX)
        .filter_map(|file| read(&file.path()))
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.peer_id.cmp(&b.peer_id)));
    nodes
}

/// The entry of a node that runs; one that a dead node left is removed.
fn read(path: &Path) -> Option<Running> {
    let file = File::open(path).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.take(ENTRY_SIZE_MAX).read_to_string(&mut text).ok()?;
            serde_json::from_str(&text).ok()
        }
        Ok(()) => {
            let _removed_by_another = fs::remove_file(path);
            None
        }
        Err(TryLockError::Error(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::Keypair;

    #[test]
    fn a_node_is_listed_as_long_as_it_holds_its_entry() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = dir.path().join("nodes");
        assert_eq!(list_in(&nodes), []);
        let peer = Keypair::generate_ed25519().public().to_peer_id();
        let entry = enter_in(&nodes, &peer, "alice", dir.path()).unwrap();
        let listed = list_in(&nodes);
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].name, "alice");
        assert_eq!(listed[0].data_dir, dir.path());
        drop(entry);
        assert_eq!(list_in(&nodes), []);
    }

    #[test]
    fn what_a_dead_node_left_is_neither_listed_nor_kept() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("12D3KooWdead");
        fs::write(
            &left,
            "{\"peer_id\":\"12D3KooWdead\",\"name\":\"dead\",\"data_dir\":\"/x\"}",
        )
        .unwrap();
        assert_eq!(list_in(dir.path()), []);
        assert!(!left.exists());
    }
}
