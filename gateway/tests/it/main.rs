//! The gateway and its client over real sockets on port 0, one file per behaviour.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

mod bootstrap;
mod client;
mod compatible;
mod hostile;
mod registration;
mod start;
mod support;
