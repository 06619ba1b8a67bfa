//! `lapwing bench`: measures this machine, always beside a floor that nothing could beat.
//!
//! The rooms measure themselves; this file only prints their rows.

mod call;
mod net;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use lapwing_base::Row;

use super::failure::Failure;
use super::folder::Folder;
use super::output::{Align, Output, Table};
use super::until_interrupted;

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Calls from a home to a home across two mains, one at a time and fifty, beside nats-server where there is one
    Call(call::CallFlags),
    /// Commit latency and throughput of three nodes on one disk, beside a bare append and fdatasync
    Consensus {
        /// Folder on the disk in question [default: the current one]
        #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
        dir: PathBuf,
    },
    /// Throughput and round trips of every class beside plain QUIC and TCP, here or between two machines, and what each
    /// class waits on links that bulk fills
    #[command(after_help = NET_HELP)]
    Net(net::NetFlags),
    /// Requests to a gateway beside a bare HTTP server, and the memory of a registered node
    Gateway,
    /// Masks, gathering and merging beside a memory copy, the planning of rounds, and the memory of a node
    Train,
}

/// How two machines measure what lies between them.
const NET_HELP: &str = "\
Between two machines: `lapwing bench net serve` on one of them prints what to run on the other. Where neither can be
reached, a third one that can runs `serve` too, and the first one `serve --relay` with what that has printed.
On one: `lapwing bench net --shape 20mbit,50ms,queue=200ms` fills such a link with bulk, first over one QUIC
connection as it ships, then with priorities, then over two connections, then with the classes of a node.";

/// Measures, and prints a table, or for programs an object a row.
pub(crate) async fn run(command: BenchCommand, output: Output) -> Result<(), Failure> {
    let rows = match command {
        BenchCommand::Call(flags) => until_interrupted(call::rows(flags, output)).await?,
        BenchCommand::Consensus { dir } => until_interrupted(consensus(&dir)).await?,
        BenchCommand::Gateway => until_interrupted(gateway()).await?,
        BenchCommand::Net(flags) => net::rows(flags, output).await?,
        BenchCommand::Train => until_interrupted(train()).await?,
    };
    if output.is_json() {
        return rows.iter().try_for_each(|row| output.document(row));
    }
    output.line(table(&rows))
}

async fn consensus(dir: &Path) -> Result<Vec<Row>, Failure> {
    let folder = Folder::new(dir, "lapwing-bench", false)
        .map_err(|error| Failure::new(format!("make a folder in {}", dir.display()), error))?;
    lapwing_consensus::bench::rows(folder.path())
        .await
        .map_err(|error| Failure::new("measure the consensus", error))
}

async fn gateway() -> Result<Vec<Row>, Failure> {
    let parent = std::env::temp_dir();
    let folder = Folder::new(&parent, "lapwing-bench", false)
        .map_err(|error| Failure::new(format!("make a folder in {}", parent.display()), error))?;
    lapwing_gateway::bench::rows(folder.path())
        .await
        .map_err(|error| Failure::new("measure the gateway", error))
}

async fn train() -> Result<Vec<Row>, Failure> {
    let parent = std::env::temp_dir();
    let folder = Folder::new(&parent, "lapwing-bench", false)
        .map_err(|error| Failure::new(format!("make a folder in {}", parent.display()), error))?;
    let path = folder.path().to_owned();
    // It computes for seconds, and Ctrl-C is to be heard meanwhile.
    let measured = tokio::task::spawn_blocking(move || lapwing_train::bench::rows(&path)).await;
    measured
        .map_err(|error| Failure::new("measure the training", error))?
        .map_err(|error| Failure::new("measure the training", error))
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new([
        ("bench", Align::Left),
        ("case", Align::Left),
        ("value", Align::Right),
        ("baseline", Align::Right),
        ("unit", Align::Left),
        ("ratio", Align::Right),
    ]);
    for row in rows {
        table.row([
            row.bench.to_owned(),
            row.case.clone(),
            figures(row.value),
            figures(row.baseline),
            row.unit.to_owned(),
            if row.ratio.is_nan() {
                "-".to_owned()
            } else {
                format!("{:.2}", row.ratio)
            },
        ]);
    }
    table
}

/// Three figures: more is noise between two runs.
fn figures(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size if size.is_nan() => "-".to_owned(),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_printed_beside_its_baseline() {
        let row = Row::new("train", "mask".to_owned(), 12.345, "GB/s", 6.1725);
        assert_eq!(
            table(&[row]).to_string(),
            "bench  case  value  baseline  unit  ratio\ntrain  mask   12.3      6.17  GB/s   2.00"
        );
        let alone = Row::new("upload", "model", 12.345, "MB/s", f64::NAN);
        assert!(
            table(&[alone])
                .to_string()
                .ends_with("upload  model   12.3         -  MB/s      -")
        );
        assert_eq!(figures(0.0123), "0.012");
        assert_eq!(figures(1234.5), "1234");
    }
}
