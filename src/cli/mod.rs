//! The command line: one file per subcommand, and what they share.
//!
//! A command parses nothing from the network itself and has no protocol logic: it either runs a room
//! (`gateway`, `node`, `bench`), or speaks to a running node through the node's admin address as anybody could.

mod admin_client;
mod bench;
mod call;
mod cluster;
#[expect(clippy::disallowed_methods, reason = "it follows a run in real time")]
mod demo;
mod doctor;
mod documents;
mod explain;
mod failure;
mod folder;
mod gateway;
mod interrupt;
mod job;
mod node;
mod output;
mod peers;
mod relay;
mod relay_status;
mod running;
mod services;
mod simulate;
mod status;

use std::num::NonZeroUsize;

use clap::{ArgAction, Parser, Subcommand};
use tokio::runtime;

use self::admin_client::Target;
use self::interrupt::Interrupts;
use self::output::Output;
use crate::config::{Defaults, NodeFlags};
use crate::telemetry;
use lapwing_base::chain;

pub(crate) use self::failure::Failure;

/// Trains a model together: nodes find one another, agree by raft and average by gossip.
#[derive(Debug, Parser)]
#[command(name = "lapwing", version, propagate_version = false, max_term_width = 110)]
pub(crate) struct Cli {
    /// Print for programs: one JSON document, or one object a line for a stream
    #[arg(long, global = true)]
    json: bool,

    /// How much to log to standard error: off, error, warn, info, debug, trace, or a list of target=level
    #[arg(long, global = true, env = "LAPWING_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,

    /// Log more; repeat for still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trains on this machine: a gateway and 8 node processes, the leader killed half-way, a report at the end
    Demo(demo::DemoFlags),
    /// Runs the discovery service
    Gateway(gateway::GatewayFlags),
    /// Runs one node
    Node(Box<NodeFlags>),
    /// Runs a node that only relays and routes calls: a public main, or a home that offers services
    Relay(Box<relay::RelayFlags>),
    /// How a node or a relay is
    Status(#[command(flatten)] Target),
    /// The peers of a node, and how each is reached; of a relay the mains that it knows
    Peers(#[command(flatten)] peers::PeersFlags),
    /// Calls a service of any node
    Call(call::CallFlags),
    /// What is callable
    Services(#[command(flatten)] Target),
    /// What an error of a call means, and what to do about it
    Explain(explain::ExplainFlags),
    /// Submits and follows training jobs
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Who is a member in what role
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Says what stands between this machine and a cluster, and what to do about it
    Doctor(doctor::DoctorFlags),
    /// Trains virtual nodes over a given network in virtual time, to choose settings before spending uplink
    Simulate(Box<simulate::SimulateFlags>),
    /// Measures this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(cli.json);
    match cli.command {
        Command::Gateway(flags) => {
            end_with_parent()?;
            // The variable that gateways before ours had stands where a settings file would.
            let older = std::env::var("GATEWAY_LOG_LEVEL").ok();
            start_log(&cli.log_level, older.as_deref(), cli.verbose, "info")?;
            several_threads()?.block_on(gateway::run(flags, output))
        }
        Command::Node(flags) => {
            end_with_parent()?;
            let settings = flags.settings(Defaults::of_this_machine()).map_err(|error| {
                let unreadable = matches!(error, crate::config::SettingsError::Unreadable { .. });
                if unreadable {
                    Failure::new("start the node", error)
                } else {
                    Failure::usage(chain(&error))
                }
            })?;
            start_log(&cli.log_level, settings.log_level.as_deref(), cli.verbose, "info")?;
            several_threads()?.block_on(node::run(settings, output))
        }
        Command::Relay(flags) => {
            end_with_parent()?;
            start_log(&cli.log_level, None, cli.verbose, "info")?;
            several_threads()?.block_on(relay::run(*flags, output))
        }
        Command::Demo(flags) => {
            start_log(&cli.log_level, None, cli.verbose, "warn")?;
            one_thread()?.block_on(demo::run(flags, output))
        }
        Command::Simulate(flags) => {
            start_log(&cli.log_level, None, cli.verbose, "warn")?;
            one_thread()?.block_on(simulate::run(*flags, output))
        }
        Command::Bench(command) => {
            start_log(&cli.log_level, None, cli.verbose, "warn")?;
            several_threads()?.block_on(bench::run(command, output))
        }
        Command::Doctor(flags) => {
            start_log(&cli.log_level, None, cli.verbose, "warn")?;
            several_threads()?.block_on(until_interrupted(doctor::run(flags, output)))
        }
        Command::Status(target) => client(&cli.log_level, cli.verbose, status::run(&target, output)),
        Command::Peers(target) => client(&cli.log_level, cli.verbose, peers::run(&target, output)),
        Command::Call(flags) => client(&cli.log_level, cli.verbose, call::run(flags, output)),
        Command::Services(target) => client(&cli.log_level, cli.verbose, services::run(&target, output)),
        Command::Explain(flags) => explain::run(&flags, output),
        Command::Job(command) => client(&cli.log_level, cli.verbose, job::run(&command, output)),
        Command::Cluster(command) => client(&cli.log_level, cli.verbose, cluster::run(&command, output)),
    }
}

/// Runs a command that only asks a node.
fn client(
    level: &Option<String>,
    verbose: u8,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    start_log(level, None, verbose, "warn")?;
    one_thread()?.block_on(until_interrupted(command))
}

/// Drops the command when somebody wants it to end, so that what it holds is tidied up.
async fn until_interrupted<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut interrupts = Interrupts::catch().map_err(|error| Failure::new("catch signals", error))?;
    tokio::select! {
        biased;
        _ = interrupts.next() => Err(Failure::Interrupted),
        outcome = command => outcome,
    }
}

/// `-v` counts from the command's own level; a level that is given wins.
fn start_log(flag: &Option<String>, file: Option<&str>, verbose: u8, default: &str) -> Result<(), Failure> {
    let raised = match verbose {
        0 => None,
        1 => Some("debug"),
        _ => Some("trace"),
    };
    let level = flag.as_deref().or(raised).or(file).unwrap_or(default);
    telemetry::start(level).map_err(Failure::usage)
}

fn end_with_parent() -> Result<(), Failure> {
    interrupt::exit_with_parent().map_err(|error| Failure::new("stay with the parent process", error))
}

/// For a command that waits for answers.
fn one_thread() -> Result<runtime::Runtime, Failure> {
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("start the runtime", error))
}

/// For a command that serves. Training has threads of its own; what is left is I/O, and more than four threads
/// of it do not help one node, while many nodes on one large machine would have them idle by the thousand.
fn several_threads() -> Result<runtime::Runtime, Failure> {
    let cores = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(2, 4))
        .enable_all()
        .build()
        .map_err(|error| Failure::new("start the runtime", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_may_stand_behind_the_command() {
        let cli =
            Cli::try_parse_from(["lapwing", "status", "--admin", "127.0.0.1:1", "--json", "-vv"]).unwrap();
        assert!(cli.json);
        assert_eq!(cli.verbose, 2);
        assert!(
            matches!(cli.command, Command::Status(target) if target.admin.as_deref() == Some("127.0.0.1:1"))
        );
    }

    #[test]
    fn the_commands_are_exactly_those_that_exist() {
        let command = Cli::command();
        let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(
            names,
            [
                "demo", "gateway", "node", "relay", "status", "peers", "call", "services", "explain", "job",
                "cluster", "doctor", "simulate", "bench"
            ]
        );
    }
}
