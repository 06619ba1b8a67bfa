//! The binary: reads the command line, runs the command, and turns its outcome into words and an exit status.
//!
//! Nothing else happens here; the commands are in `cli/`.

mod cli;
mod config;
mod federation_settings;
mod telemetry;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Failure};

/// Of what a short call costs a node a seventh was allocating, with the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::run(Cli::parse_from(arguments())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure);
            ExitCode::from(failure.exit_status())
        }
    }
}

/// What was typed. Relays before ours had flags with one dash, such as `-server`; they have two since.
fn arguments() -> Vec<OsString> {
    let given: Vec<OsString> = std::env::args_os().collect();
    if given.iter().skip(1).any(|word| word == "relay") {
        lapwing_federation::double_dashed(given).collect()
    } else {
        given
    }
}

/// Says on standard error what failed; there is nobody left to tell when that is closed too.
fn tell(failure: &Failure) {
    if let Some(text) = failure.text() {
        let _closed = writeln!(std::io::stderr(), "{text}");
    }
}
