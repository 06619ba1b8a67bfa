//! Nodes behind NATs, in a laboratory of network namespaces. Every test needs root and Linux, so that `cargo test`
//! without it says that they did not run; run them with `cargo test -p lapwing-net --test lab -- --ignored`.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]
#![expect(clippy::disallowed_methods, reason = "tests of real time")]

mod birthday;
mod cell;
mod counting;
mod exchanges;
mod fallback;
mod faults;
mod foreign;
mod houses;
mod kinds;
mod latency;
mod matrix;
mod nodes;
mod pair;
mod restart;
mod world;
