//! Everything that `lapwing bench` measures, one after the other: `cargo bench --bench rows`.
//!
//! It measures nothing itself. The rooms do, in their `bench` modules, and the command prints what they found; names
//! after `--` choose some of them, and options such as `--json` go to the command.

use std::process::{Command, ExitCode};

/// What there is to measure, with the options that each needs here.
const BENCHES: [(&str, &[&str]); 5] = [
    ("call", &[]),
    // On the disk that builds this, and never in the working tree.
    ("consensus", &["--dir", env!("CARGO_TARGET_TMPDIR")]),
    ("gateway", &[]),
    ("net", &[]),
    ("train", &[]),
];

fn main() -> ExitCode {
    // Cargo adds `--bench`, for harnesses that also run tests.
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (options, names): (Vec<_>, Vec<_>) = arguments.partition(|argument| argument.starts_with('-'));
    if let Some(unknown) = names
        .iter()
        .find(|name| BENCHES.iter().all(|(known, _)| known != name))
    {
        eprintln!("there is no bench {unknown}; there are call, consensus, gateway, net and train");
        return ExitCode::from(2);
    }
    let chosen = BENCHES
        .iter()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|chosen| chosen == name));
    for (name, own) in chosen {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapwing"));
        command.arg("bench").arg(name).args(*own).args(&options);
        match command.status() {
            Ok(status) if status.success() => (),
            Ok(status) => {
                eprintln!("lapwing bench {name} ended with {status}");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("failed to start lapwing bench {name}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
