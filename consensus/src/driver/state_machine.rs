//! The applied state behind openraft's traits: kept in memory, published after every batch, written only as
//! snapshots.
//!
//! What an entry changes is the core's business (`state.rs`).

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use lapwing_base::LogIndex;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, alias};
use tokio::sync::watch;

use super::snapshot_files::{Snapshot, SnapshotFiles};
use super::types::{LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::{Applied, State};

/// The state as raft drives it.
#[derive(Debug)]
pub(crate) struct StateMachine {
    state: State,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    files: SnapshotFiles,
    published: watch::Sender<Arc<State>>,
}

impl StateMachine {
    /// Begins with the newest snapshot, or with nothing.
    pub(crate) fn new(files: SnapshotFiles, newest: Option<Snapshot>) -> Self {
        let (published, _) = watch::channel(Arc::new(State::default()));
        let mut machine = Self {
            state: State::default(),
            last_applied: None,
            membership: StoredMembership::default(),
            files,
            published,
        };
        if let Some(snapshot) = newest {
            machine.take(snapshot);
        }
        machine
    }

    /// Where the applied state is published.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<State>> {
        self.published.subscribe()
    }

    fn take(&mut self, snapshot: Snapshot) {
        self.last_applied = snapshot.meta.last_log_id;
        self.membership = snapshot.meta.last_membership;
        self.state = snapshot.state;
        self.publish();
    }

    fn publish(&self) {
        self.published.send_replace(Arc::new(self.state.clone()));
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    /// A whole snapshot, as its file is.
    type SnapshotData = Bytes;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let index = LogIndex(entry.log_id.index);
            self.last_applied = Some(entry.log_id);
            let answer = match entry.payload {
                EntryPayload::Blank => {
                    self.state.advance(index);
                    Applied::Done
                }
                EntryPayload::Normal(request) => self.state.apply(index, request),
                EntryPayload::Membership(membership) => {
                    self.state.advance(index);
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Applied::Done
                }
            };
            if let Some(responder) = responder {
                answers.push((responder, answer));
            }
        }
        // Whoever hears that a command is applied finds it in the published state.
        self.publish();
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        SnapshotBuilder {
            snapshot: Arc::new(Snapshot {
                meta: SnapshotMeta {
                    last_log_id: self.last_applied,
                    last_membership: self.membership.clone(),
                },
                state: self.state.clone(),
            }),
            files: self.files.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, bytes: Bytes) -> Result<(), io::Error> {
        let snapshot = Snapshot::decode(&bytes)?;
        if snapshot.meta != *meta {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a snapshot does not hold what its description says",
            ));
        }
        let files = self.files.clone();
        let meta = meta.clone();
        blocking(move || files.write(&meta, &bytes)).await?;
        self.take(snapshot);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<alias::SmSnapshotOf<TypeConfig, Self>>, io::Error> {
        let files = self.files.clone();
        let newest = blocking(move || files.newest()).await?;
        Ok(newest.map(|(meta, snapshot)| openraft::Snapshot { meta, snapshot }))
    }
}

/// Writes the state as it was when this was made.
#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    snapshot: Arc<Snapshot>,
    files: SnapshotFiles,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<alias::SnapshotOf<TypeConfig, Bytes>, io::Error> {
        let snapshot = self.snapshot.clone();
        let files = self.files.clone();
        let bytes = blocking(move || {
            let bytes = snapshot.encode();
            files.write(&snapshot.meta, &bytes)?;
            Ok(bytes)
        })
        .await?;
        Ok(openraft::Snapshot {
            meta: self.snapshot.meta.clone(),
            snapshot: bytes,
        })
    }
}

/// Files are written off the runtime's threads: a sync may take as long as the disk likes.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, super::StorageError> + Send + 'static,
) -> Result<T, io::Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(io::Error::other(error)),
    }
}
