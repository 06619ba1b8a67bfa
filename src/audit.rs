//! The audit log of the federation: who was let in, and what was refused, a JSON object a line in `audit.jsonl` of the data
//! directory. What is older than two files of [`FILE_MAX`] is dropped.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lapwing_federation::AuditEvent;
use serde::Serialize;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::node::unix_now;

/// Events that wait to be written; a disk that stands still for longer loses some.
pub(crate) const QUEUE: usize = 1024;

/// Bytes after which another file is begun.
const FILE_MAX: u64 = 16 << 20;

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// Seconds since the Unix epoch.
    at: f64,
    #[serde(flatten)]
    event: &'a AuditEvent,
}

/// Writes events until `stop`, and those that wait then: to the folder, or to the log where there is none.
pub(crate) async fn write(
    folder: Option<PathBuf>,
    mut events: mpsc::Receiver<AuditEvent>,
    stop: CancellationToken,
) {
    let mut file = None;
    let mut is_failing = false;
    loop {
        let event = match stop.run_until_cancelled(events.recv()).await {
            Some(event) => event,
            None => {
                events.close();
                events.recv().await
            }
        };
        let Some(event) = event else { return };
        let line = Line {
            at: unix_now().as_secs_f64(),
            event: &event,
        };
        // It has texts and numbers only.
        let Ok(mut text) = serde_json::to_string(&line) else {
            continue;
        };
        let Some(folder) = &folder else {
            info!(target: "lapwing::audit", event = text);
            continue;
        };
        text.push('\n');
        match append(folder, &mut file, &text).await {
            Ok(()) => is_failing = false,
            Err(error) => {
                file = None;
                if !std::mem::replace(&mut is_failing, true) {
                    warn!(%error, folder = %folder.display(), "the audit log cannot be written");
                }
                // A full disk is not asked a thousand times a second.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn append(folder: &Path, open: &mut Option<(File, u64)>, text: &str) -> io::Result<()> {
    let path = folder.join("audit.jsonl");
    if open.as_ref().is_some_and(|(_, size)| *size >= FILE_MAX) {
        *open = None;
        fs::rename(&path, folder.join("audit.jsonl.1")).await?;
    }
    let (file, size) = match open {
        Some(open) => open,
        None => {
            let file = OpenOptions::new().append(true).create(true).open(&path).await?;
            let size = file.metadata().await?.len();
            open.insert((file, size))
        }
    };
    file.write_all(text.as_bytes()).await?;
    // What was told before a crash is there after it, as far as the system keeps it.
    file.flush().await?;
    *size += text.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::PeerId;

    #[tokio::test]
    async fn every_event_is_a_line_that_says_when_and_what() {
        let folder = tempfile::tempdir().unwrap();
        let (sender, events) = mpsc::channel(QUEUE);
        let peer = PeerId::random();
        for reason in ["one", "two"] {
            let event = AuditEvent::Refused {
                peer,
                reason: reason.to_owned(),
            };
            sender.send(event).await.unwrap();
        }
        drop(sender);
        write(Some(folder.path().to_owned()), events, CancellationToken::new()).await;
        let text = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["event"], "refused");
        assert_eq!(lines[1]["reason"], "two");
        assert_eq!(lines[1]["peer"], peer.to_string());
        assert!(lines[1]["at"].as_f64().unwrap() > 1e9);
    }

    #[tokio::test]
    async fn a_file_that_is_long_enough_makes_room_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let mut open = None;
        append(folder.path(), &mut open, "first\n").await.unwrap();
        open.as_mut().unwrap().1 = FILE_MAX;
        append(folder.path(), &mut open, "second\n").await.unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("audit.jsonl.1"), "first\n");
        assert_eq!(read("audit.jsonl"), "second\n");
    }
}
