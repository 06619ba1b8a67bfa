//! The command line of the lab: lays one out from a file and runs something in it. What it does is the library's.

mod plan;

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::thread::{self, ScopedJoinHandle};

use clap::{Parser, Subcommand};
use lapwing_netlab::{Found, Lab, Nat, ProbeError, sweep};

use crate::plan::{LaidOut, Plan};

/// Where the hosts of a running lab are, for `netlab on`: `name=namespace` by spaces.
const HOSTS: &str = "NETLAB_HOSTS";

/// Lays out hosts, routers with every kind of NAT, and shaped links on this machine. Needs root.
#[derive(Debug, Parser)]
#[command(name = "netlab", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Lays out a lab and runs a command (or a shell) on one of its hosts; the lab ends with it
    Run {
        /// The lab, as in the README
        file: PathBuf,
        /// The host to run on [default: the first of the file]
        #[arg(long, value_name = "HOST")]
        on: Option<String>,
        /// The command and its arguments [default: $SHELL]
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Runs a command on another host, from within what `netlab run` runs
    On {
        /// The host
        host: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Lays out a lab and says what each host finds between itself and the internet
    Classify {
        /// The lab, as in the README
        file: PathBuf,
    },
    /// Lays out every kind of router and checks that a probe finds it to be what it claims
    Kinds,
    /// Kills what was left running by labs whose owner is dead; every lab does so when it starts
    Sweep,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Run { file, on, command } => run(&file, on.as_deref(), &command),
        Task::On { host, command } => on(&host, &command),
        Task::Classify { file } => classify(&file),
        Task::Kinds => kinds(),
        Task::Sweep => {
            println!("{} killed", sweep());
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        eprint!("netlab: {error}");
        let mut source = error.source();
        while let Some(error) = source {
            eprint!(": {error}");
            source = error.source();
        }
        eprintln!();
        ExitCode::FAILURE
    })
}

fn run(file: &Path, on: Option<&str>, command: &[OsString]) -> Result<ExitCode, Box<dyn Error>> {
    let LaidOut { lab, routers, hosts } = lay_out(file)?;
    for router in &routers {
        eprintln!(
            "{:<20} {:<15} {}",
            router.name(),
            router.ipv4().to_string(),
            router.nat()
        );
    }
    let mut spaces = Vec::new();
    for (host, _) in &hosts {
        let ipv6 = host.ipv6().map(|address| address.to_string()).unwrap_or_default();
        eprintln!("{:<20} {:<15} {ipv6}", host.name(), host.ipv4().to_string());
        spaces.push(format!("{}={}", host.name(), host.namespace()?));
    }
    let spaces = spaces.join(" ");
    for (host, background) in &hosts {
        if let Some(script) = background {
            host.command("sh")?
                .args(["-c", script])
                .env(HOSTS, &spaces)
                .spawn()?;
        }
    }
    let host = match on {
        Some(name) => hosts
            .iter()
            .find(|(host, _)| host.name() == name)
            .ok_or("no such host in the file")?,
        None => hosts.first().ok_or("no host in the file")?,
    };
    let shell = [std::env::var_os("SHELL").unwrap_or_else(|| "sh".into())];
    let [program, arguments @ ..] = (if command.is_empty() { &shell } else { command }) else {
        return Err("no command".into());
    };
    let status = host
        .0
        .command(program)?
        .args(arguments)
        .env(HOSTS, &spaces)
        .status()?;
    drop(lab);
    Ok(exit_code(status))
}

fn on(host: &str, command: &[OsString]) -> Result<ExitCode, Box<dyn Error>> {
    let hosts =
        std::env::var(HOSTS).map_err(|_| "this is not within a lab: use it in what `netlab run` runs")?;
    let here = hosts
        .split(' ')
        .find_map(|place| place.split_once('=').filter(|(name, _)| *name == host));
    let (_, space) = here.ok_or("no such host in the lab")?;
    // Only returns if there is nothing to run.
    Err(Command::new("nsenter")
        .arg(format!("--net={space}"))
        .arg("--")
        .args(command)
        .exec()
        .into())
}

fn classify(file: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let LaidOut { lab, hosts, .. } = lay_out(file)?;
    for (host, _) in &hosts {
        println!("{:<20} {}", host.name(), lab.classify(host)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn kinds() -> Result<ExitCode, Box<dyn Error>> {
    let lab = Lab::new()?;
    let mut all_right = true;
    println!("{:<62} | {:<62} |", "laid out", "found");
    let kinds: Vec<_> = Nat::kinds().into_iter().enumerate().collect();
    // Most of a probe is waiting for what does not come.
    for some in kinds.chunks(8) {
        let probe = |(number, nat): &(usize, Nat)| -> Result<Found, ProbeError> {
            let router = lab.router(&format!("router-{number}"), nat.clone())?;
            lab.classify(&router.host(&format!("host-{number}"))?)
        };
        let found: Vec<_> = thread::scope(|scope| {
            let probes: Vec<_> = some.iter().map(|kind| scope.spawn(|| probe(kind))).collect();
            probes.into_iter().map(ScopedJoinHandle::join).collect()
        });
        for ((_, nat), found) in some.iter().zip(found) {
            let found = found.map_err(|_| "a probe panicked")??;
            let right = found.is(nat);
            let verdict = if right { "" } else { "WRONG" };
            println!("{:<62} | {:<62} | {verdict}", nat.to_string(), found.to_string());
            all_right &= right;
        }
    }
    Ok(if all_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn lay_out(file: &Path) -> Result<LaidOut, Box<dyn Error>> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let plan: Plan = toml::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(plan.lay_out()?)
}

/// What the command exited with; 1 if a signal ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}
