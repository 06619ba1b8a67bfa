//! The network as its users see it: real sockets on loopback, one file for each behaviour.
#![cfg(feature = "driver")]
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod connections;
mod exchange;
mod foreign;
mod hostile;
mod hostile_lanes;
mod identity;
mod lane_peer;
mod lifecycle;
mod limits;
mod links;
mod nodes;
mod raw_peer;
mod refusals;
mod restart;
