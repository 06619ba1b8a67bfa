//! The federation as processes: mains and homes on loopback, called over HTTP as anybody's program would. One file per
//! behaviour. What takes minutes or root is run by `cargo test --test federation -- --ignored --nocapture`.
#![expect(
    clippy::unwrap_used,
    reason = "a test says what it expects by unwrapping it, and so do the functions that several tests share"
)]
#![expect(clippy::disallowed_methods, reason = "tests of real time")]

mod backend;
mod calls;
mod faults;
mod nine;
mod placed;
mod world;

mod balancing;
mod behind_nats;
mod chaos;
mod cut;
mod documents;
mod edge;
mod failover;
mod far;
mod garbage;
mod half_open;
mod killed;
mod load;
mod peers;
mod policies;
mod registry;
mod repeated;
mod replies;
mod routing;
