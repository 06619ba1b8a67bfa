//! Who is a member in what role, and the rounds and configuration that all agree on.
//!
//! The cores are pure: [`State`] applies the log, [`Reconciler`] says who should vote. The edge (feature
//! `driver`) runs raft on them: the log on disk, snapshots, messages between members, joining. It carries no
//! model, no call and no bulk, and decides nothing about training but what is valid.

mod answers;
mod command;
mod config;
mod jobs;
mod joining;
mod promotion;
mod state;
mod timing;

#[cfg(feature = "driver")]
mod driver;

pub use answers::Answers;
pub use command::{
    Applied, Command, LINKS_MAX, Malformed, Pin, REFUSALS_MAX, RefusedReason, Request, RequestId,
};
pub use config::{ClusterConfig, ConfigKey, ConfigRevision};
pub use joining::{JoinAccepted, JoinRequest};
pub use promotion::{Action, LAG_MAX, Reconciler, View};
pub use state::{ADDR_LENGTH_MAX, JOBS_OVER_KEPT, MEMBERS_MAX, State};
pub use timing::Timing;

#[cfg(feature = "driver")]
pub use driver::bench;
#[cfg(feature = "driver")]
pub use driver::{
    Card, Consensus, ConsensusConfig, JoinError, ProposeError, RaftState, RaftStatus, ReadError, Start,
    StartError, StorageError, Stored, join, retire, stored,
};
