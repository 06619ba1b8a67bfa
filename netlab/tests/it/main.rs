//! The lab on a real kernel. Every test needs root, so that `cargo test` without it says that they did not run; run
//! them with `cargo test -p lapwing-netlab --test it -- --ignored`.

mod ends;
mod faults;
mod kinds;
mod links;
