//! The binary: reads the command line, runs the command, and turns its outcome into words and an exit status.
//!
//! Nothing else happens here; the commands are in `cli/`.

mod cli;
mod config;
mod federation_settings;
mod telemetry;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Failure};

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure);
            ExitCode::from(failure.exit_status())
        }
    }
}

/// Says on standard error what failed; there is nobody left to tell when that is closed too.
fn tell(failure: &Failure) {
    if let Some(text) = failure.text() {
        let _closed = writeln!(std::io::stderr(), "{text}");
    }
}
