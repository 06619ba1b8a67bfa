//! The lab on a real kernel. Every test needs root, so that `cargo test` without it says that they did not run; run
//! them with `cargo test -p lapwing-netlab --test it -- --ignored`.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]
#![expect(clippy::disallowed_methods, reason = "tests of real time")]

mod ends;
mod faults;
mod hosts;
mod kinds;
mod links;
