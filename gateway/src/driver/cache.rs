//! What a client learned last, on disk, for the day on which no gateway answers. Asks nobody.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lapwing_base::ClusterId;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::client::Discovered;
use crate::{Lineage, UnixTime};

/// The cache of one client; only in memory when it has no file.
#[derive(Debug)]
pub(super) struct Cache {
    path: Option<PathBuf>,
    known: Mutex<Known>,
    /// Held while the file is written, so that two writers do not mix.
    writing: Mutex<()>,
}

/// What is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Known {
    /// When `discovered` was learned.
    pub(super) learned_at: UnixTime,
    /// The last answer.
    pub(super) discovered: Option<Discovered>,
    /// Under which lineage each gateway was when this node's cluster was confirmed there.
    #[serde(default)]
    pub(super) pins: BTreeMap<String, Pin>,
}

/// A gateway's lineage, and the cluster it stood for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(super) struct Pin {
    pub(super) lineage: Lineage,
    pub(super) cluster_id: ClusterId,
}

impl Cache {
    /// Reads the file. One that cannot be read is as good as none.
    pub(super) fn open(path: Option<PathBuf>) -> Self {
        let known = path.as_deref().and_then(|path| match read(path) {
            Ok(known) => known,
            Err(error) => {
                warn!(path = %path.display(), %error, "ignored an unreadable gateway cache");
                None
            }
        });
        Self {
            path,
            known: Mutex::new(known.unwrap_or_default()),
            writing: Mutex::new(()),
        }
    }

    /// What is known.
    pub(super) fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is known; true when the file should be written.
    pub(super) fn learn(&self, change: impl FnOnce(&mut Known) -> bool) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut known) && self.path.is_some()
    }

    /// Writes the file, whole or not at all. Blocks.
    pub(super) fn save(&self) {
        let Some(path) = &self.path else {
            return;
        };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write(path, &self.known()) {
            warn!(path = %path.display(), %error, "could not write the gateway cache");
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Known>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, known: &Known) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    lapwing_durable::write(path, &serde_json::to_vec(known)?)
}
