//! The whole program on several hosts, in a laboratory of network namespaces. Needs root and Linux, so that `cargo test`
//! without it says that these did not run; run them with `cargo test --test hosts -- --ignored --nocapture`.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]
#![expect(clippy::disallowed_methods, reason = "tests of real time")]

mod behind_nats;
mod cities;
mod running;
mod saturated;
