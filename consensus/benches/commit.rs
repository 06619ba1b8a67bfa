//! Commit latency and throughput of three members on this disk, beside the disk alone.

use std::process::ExitCode;

fn main() -> ExitCode {
    let directory = match tempfile::tempdir_in(".") {
        Ok(directory) => directory,
        Err(error) => {
            eprintln!("failed to make a directory here: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failed to start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(lapwing_consensus::bench::rows(directory.path())) {
        Ok(rows) => {
            for row in rows {
                println!(
                    "{:<11} {:<30} {:>12.1} {:<4} floor {:>10.1}  x {:.2}",
                    row.bench, row.case, row.value, row.unit, row.baseline, row.ratio
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
