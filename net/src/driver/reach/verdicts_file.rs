//! The file that keeps over a restart on which networks UDP passes. What is in it is the core's to say.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::{UdpVerdicts, UdpVerdictsError};

/// Replaces the file by what is handed to it last, beside the driver's own work. What was handed over is on disk when
/// the tracker's tasks have ended.
pub(super) struct VerdictsFile {
    texts: watch::Sender<String>,
}

impl VerdictsFile {
    /// What the file holds, and how to replace it. One that is missing, damaged or somebody else's holds nothing.
    pub(super) fn open(path: &Path, tracker: &TaskTracker, now: Instant) -> (Self, UdpVerdicts) {
        let verdicts = match read(path, now) {
            Ok(verdicts) => verdicts,
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => UdpVerdicts::default(),
            Err(error) => {
                warn!(file = %path.display(), %error, "what was known of networks is lost; they are looked at anew");
                UdpVerdicts::default()
            }
        };
        let (texts, taken) = watch::channel(String::new());
        tracker.spawn(write_each(path.to_owned(), taken));
        (Self { texts }, verdicts)
    }

    /// Keeps this from now on.
    pub(super) fn keep(&self, verdicts: &UdpVerdicts, now: Instant) {
        self.texts.send_replace(verdicts.to_text(now, today()));
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Content(#[from] UdpVerdictsError),
}

fn read(path: &Path, now: Instant) -> Result<UdpVerdicts, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SIZE_MAX).read_to_end(&mut bytes)?;
    let text = str::from_utf8(&bytes).map_err(|_| UdpVerdictsError::Foreign)?;
    Ok(UdpVerdicts::from_text(text, now, today())?)
}

/// Ends when nobody can hand anything over any more, and the last is written.
async fn write_each(path: PathBuf, mut texts: watch::Receiver<String>) {
    while texts.changed().await.is_ok() {
        let text = texts.borrow_and_update().clone();
        let to = path.clone();
        let written = tokio::task::spawn_blocking(move || lapwing_durable::write(&to, text.as_bytes())).await;
        if let Ok(Err(error)) = written {
            // Nobody needs it: the next start looks anew.
            debug!(file = %path.display(), %error, "what is known of networks is not kept");
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the driver reads the clock for the cores"
)]
fn today() -> SystemTime {
    SystemTime::now()
}

/// Every network that is kept, at 50 bytes a line, twice over.
const SIZE_MAX: u64 = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::now;
    use crate::{NetworkPrint, Udp};
    use lapwing_base::PeerId;
    use std::fs;

    const HERE: NetworkPrint = NetworkPrint(7);

    #[tokio::test]
    async fn what_was_kept_last_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("networks");
        let tracker = TaskTracker::new();
        let (file, mut verdicts) = VerdictsFile::open(&path, &tracker, now());
        assert_eq!(verdicts.udp(HERE, now()), Udp::Unknown);
        verdicts.open(HERE, now());
        file.keep(&verdicts, now());
        for _ in 0..2 {
            verdicts.fallback_only(HERE, PeerId::random(), now());
        }
        file.keep(&verdicts, now());
        drop(file);
        tracker.close();
        tracker.wait().await;
        let (_, verdicts) = VerdictsFile::open(&path, &TaskTracker::new(), now());
        assert_eq!(verdicts.udp(HERE, now()), Udp::Blocked);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_is_not_ours_holds_nothing_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("networks");
        let endless = "lapwing networks 1\n".repeat(1 << 20).into_bytes();
        for foreign in [vec![0xff; 3], b"{}".to_vec(), Vec::new(), endless] {
            fs::write(&path, foreign).unwrap();
            let tracker = TaskTracker::new();
            let (file, mut verdicts) = VerdictsFile::open(&path, &tracker, now());
            assert_eq!(verdicts.udp(HERE, now()), Udp::Unknown);
            verdicts.open(HERE, now());
            file.keep(&verdicts, now());
            drop(file);
            tracker.close();
            tracker.wait().await;
            let (_, verdicts) = VerdictsFile::open(&path, &TaskTracker::new(), now());
            assert_eq!(verdicts.udp(HERE, now()), Udp::Open);
        }
    }
}
