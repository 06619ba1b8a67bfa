//! The whole thing with real sockets: a gateway and nodes in this process, asked through their public
//! interfaces only. One file per behaviour.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what it expects by unwrapping it, and so do the functions that several tests share"
)]

mod cluster;
mod disturbed;
mod examples;
mod external;
mod private;
mod processes;
mod refusals;
mod services;
mod simulated;
mod support;
mod telling;
mod training;
