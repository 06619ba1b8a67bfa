//! Discovery over HTTP: where a new node asks first, and nothing more.
//!
//! The gateway hands out bootstrap peers and leader hints. It carries no consensus, training or call
//! traffic, and a running cluster does not notice when it is gone. This crate holds the service
//! ([`Gateway`]) and the node's side of it ([`Client`]); everything that decides something is a pure core
//! that takes `now` as a value, and the `driver` feature adds sockets, disk, tasks and the clock.

mod answer;
mod backoff;
mod bootstrap;
mod directory;
mod expiry;
mod hints;
mod legacy_node;
mod lineage;
mod message;
mod now;
mod records;
mod refusal;
mod registry;

#[cfg(feature = "driver")]
mod driver;

pub use answer::{
    Claim, ClusterState, ClusterSummary, LeaderHint, NodePage, NodeRecord, Problem, RefusedReason,
    Registered, Standing,
};
pub use backoff::Backoff;
pub use bootstrap::{Bootstrap, BootstrapRecord, ClaimRecord, Decision, LEASE, Mismatch, Superseded};
pub use directory::{Changes, Counts, Directory, DirectoryRecord, Limits, LoadedState, SweepReport};
pub use expiry::{Expiry, Status};
pub use hints::{Hint, HintError, Hints};
pub use legacy_node::{FieldError, LegacyNode, NodeKey, Profile, StoredLegacyNode};
pub use lineage::{Lineage, ParseLineageError};
pub use message::{ClaimRequest, Confirm, ConfirmRequest, HintRequest, Leave, Message, Registration, Signed};
pub use now::{Now, UnixTime};
pub use records::{RecordError, Records, StoredRecord, Upsert};
pub use refusal::Refusal;
pub use registry::{EnterError, Entrance, Genesis, LeaderUpdate, Registry, RegistryRecord, Stats};

#[cfg(feature = "driver")]
pub use driver::bench;
#[cfg(feature = "driver")]
pub use driver::{
    Client, ClientConfig, ClientError, ConfigError, ConfirmError, Discovered, Gateway, GatewayConfig,
    StartError,
};
