//! The binary: reads the command line, runs the command, and turns its outcome into words and an exit status.
//!
//! Nothing else happens here; the commands are in `cli/`.

mod cli;
mod config;
mod federation_settings;
mod telemetry;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::ExitCode;

use clap::{Command, CommandFactory, FromArgMatches};

use crate::cli::{Cli, Failure};

/// Of what a short call costs a node a seventh was allocating, with the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    let given = without_empty(Cli::command(), &is_empty).get_matches_from(arguments());
    let cli = Cli::from_arg_matches(&given).unwrap_or_else(|error| error.exit());
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure);
            ExitCode::from(failure.exit_status())
        }
    }
}

/// A variable that is empty is as good as none: where services are composed, `LAPWING_PEERS=` is how to set nothing.
fn without_empty(command: Command, is_empty: &dyn Fn(&OsStr) -> bool) -> Command {
    let without = command.mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
        true => arg.env(None::<&'static str>),
        false => arg,
    });
    without.mut_subcommands(|command| without_empty(command, is_empty))
}

/// What was typed. Relays before ours had flags with one dash, such as `-server`; they have two since.
fn arguments() -> Vec<OsString> {
    let given: Vec<OsString> = env::args_os().collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_empty_is_as_good_as_none() {
        let read = |command: &Command| -> Vec<String> {
            let relay = command.find_subcommand("relay").unwrap();
            let variables = relay.get_arguments().filter_map(clap::Arg::get_env);
            variables
                .map(|name| name.to_string_lossy().into_owned())
                .collect()
        };
        let all = without_empty(Cli::command(), &|_| false);
        assert!(read(&all).iter().any(|name| name == "LAPWING_PEERS"));
        let but_one = without_empty(Cli::command(), &|name| name == "LAPWING_PEERS");
        assert_eq!(read(&but_one).len(), read(&all).len() - 1);
        assert!(!read(&but_one).iter().any(|name| name == "LAPWING_PEERS"));
    }
}
