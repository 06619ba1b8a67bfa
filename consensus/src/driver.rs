//! The edge: raft on the cores, with disk, tasks, messages and the clock.

mod asking;
#[expect(clippy::disallowed_methods, reason = "it measures real time")]
pub mod bench;
mod consensus;
mod directory;
mod duty;
mod join;
mod link;
mod log_file;
mod log_store;
mod observe;
mod raft_network;
mod serve;
mod snapshot_files;
mod state_machine;
mod status;
mod storage_error;
mod types;
mod wire;

pub use asking::{ProposeError, ReadError};
pub use consensus::{Card, Consensus, ConsensusConfig, Start, StartError};
pub use directory::{retire, stored};
pub use join::{JoinError, join};
pub use log_file::Stored;
pub use status::{RaftState, RaftStatus};
pub use storage_error::StorageError;

use std::time::Instant;

use crate::RequestId;

#[expect(
    clippy::disallowed_methods,
    reason = "the driver reads the clock for its cores"
)]
fn now() -> Instant {
    Instant::now()
}

/// The clock of the runtime's timers.
#[expect(clippy::disallowed_methods, reason = "the driver reads the clock")]
fn timer_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// Request ids name wishes across nodes and restarts, so they are drawn and never derived.
#[expect(clippy::disallowed_methods, reason = "the driver draws for its cores")]
fn draw_request_id() -> RequestId {
    use rand::RngExt;
    RequestId(rand::rng().random())
}
