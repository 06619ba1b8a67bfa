//! Lapwing: train a model together, on machines behind any NAT, without a data centre.
//!
//! This is the paved path for programs that want a node inside: configure it with [`NodeConfig`], start it
//! with [`Node::start`], look at its [`StatusDocument`], and stop it with [`NodeHandle::shutdown`]. The
//! gateway is a crate of its own, `lapwing-gateway`.

mod admin;
mod audit;
mod data_dir;
mod documents;
mod metrics;
mod node;
mod rate_rules;
mod relay;
mod services;
mod spans;
mod status;
mod wiring;

pub use data_dir::DataDirError;
pub use node::{Node, NodeConfig, NodeError, NodeHandle, StartError};
pub use rate_rules::{RateRule, RateRuleError, RateRules};
pub use relay::{MainSource, Relay, RelayConfig, RelayError, RelayHandle};
pub use services::{OfferFailure, ParseServiceError, ServiceAt, ServiceSpec};
pub use spans::SpanExporterError;
pub use status::{
    ConfigSection, LimitsSection, NetworkSection, NetworkState, NodeSection, NodeState, PeerSection,
    QuarantineSection, RaftSection, ReservationSection, ServiceSection, StatusDocument, TrainingSection,
};
