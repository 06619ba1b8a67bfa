//! The edge: sockets, disk, tasks and the clock around [`Directory`](crate::Directory). Decides nothing.

pub mod bench;

mod cache;
mod client;
mod clock;
mod gateway;
mod http;
mod keeper;
mod legacy_api;
mod metrics;
mod patient;
mod server;
mod store;
mod v1_api;

pub use client::{Client, ClientConfig, ClientError, ConfigError, ConfirmError, Discovered};
pub use gateway::{Gateway, GatewayConfig, StartError};
