//! `lapwing peers`: the peers of one node, and how each is reached.

use lapwing_base::ByteSize;

use super::admin_client::Target;
use super::documents::{self, StatusDocument};
use super::failure::Failure;
use super::output::{Align, Output, Table, or_dash, span};
use clap::Args;
use serde::Deserialize;

/// Which node, and what of its peers.
#[derive(Clone, Debug, Args)]
pub(crate) struct PeersFlags {
    #[command(flatten)]
    target: Target,

    /// Every address that was tried for this peer (name or peer id), and why it failed
    #[arg(long, value_name = "PEER")]
    tried: Option<String>,
}

/// Asks the node and prints its peers. For programs: `{"peers": […]}`, as in the status document, or
/// `{"tried": […]}` for one of them.
pub(crate) async fn run(flags: &PeersFlags, output: Output) -> Result<(), Failure> {
    let client = flags.target.client()?;
    if let Some(peer) = &flags.tried {
        let document: serde_json::Value = client
            .get(&format!("/v1/peers/{peer}/tried"))
            .await
            .map_err(|error| error.failing_to("get what was tried"))?;
        if output.is_json() {
            return output.document(&document);
        }
        let tried: Tried =
            documents::read(document).map_err(|error| Failure::new("read what was tried", error))?;
        return output.line(tried_table(&tried));
    }
    let document: serde_json::Value = client
        .get("/v1/status")
        .await
        .map_err(|error| error.failing_to("get the peers"))?;
    if output.is_json() {
        let peers = document.pointer("/network/peers").cloned().unwrap_or_default();
        return output.document(&serde_json::json!({ "peers": peers }));
    }
    let document: StatusDocument =
        documents::read(document).map_err(|error| Failure::new("read the peers", error))?;
    output.line(table(&document))
}

#[derive(Debug, Deserialize)]
struct Tried {
    tried: Vec<TriedRow>,
}

#[derive(Debug, Deserialize)]
struct TriedRow {
    address: String,
    kind: String,
    source: String,
    ago_seconds: f64,
    tries: u32,
    outcome: String,
}

fn tried_table(tried: &Tried) -> Table {
    let mut table = Table::new([
        ("address", Align::Left),
        ("kind", Align::Left),
        ("known by", Align::Left),
        ("tries", Align::Right),
        ("last", Align::Right),
        ("outcome", Align::Left),
    ]);
    for row in &tried.tried {
        table.row([
            row.address.clone(),
            row.kind.clone(),
            row.source.clone(),
            row.tries.to_string(),
            format!("{} ago", span(row.ago_seconds)),
            row.outcome.clone(),
        ]);
    }
    table
}

fn table(status: &StatusDocument) -> Table {
    let mut table = Table::new([
        ("name", Align::Left),
        ("path", Align::Left),
        ("rtt", Align::Right),
        ("upload", Align::Right),
        ("download", Align::Right),
        ("sent", Align::Right),
        ("received", Align::Right),
        ("address", Align::Left),
        ("peer", Align::Left),
    ]);
    for peer in &status.network.peers {
        let path = match (&peer.path, &peer.transport) {
            (Some(path), Some(transport)) => format!("{path}, {transport}"),
            (path, transport) => or_dash(path.as_ref().or(transport.as_ref())),
        };
        table.row([
            or_dash(peer.name.as_ref()),
            path,
            or_dash(peer.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            or_dash(peer.bandwidth_mbit_s.map(|rate| format!("{rate:.1} Mbit/s"))),
            or_dash(peer.download_mbit_s.map(|rate| format!("{rate:.1} Mbit/s"))),
            ByteSize(peer.sent_bytes.values().sum()).to_string(),
            ByteSize(peer.received_bytes.values().sum()).to_string(),
            or_dash(peer.address.as_ref()),
            peer.peer_id.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_all_classes_are_added_up() {
        let text = r#"{"network": {"peers": [{"peer_id": "12D3b", "name": "bob", "path": "direct", "transport": "quic",
            "rtt_ms": 0.31, "sent_bytes": {"control": 24, "model": 1000}}]}}"#;
        let shown = table(&serde_json::from_str(text).unwrap()).to_string();
        assert_eq!(
            shown.lines().nth(1).unwrap(),
            "bob   direct, quic  0.3 ms       -         -  1.0 KiB       0 B  -        12D3b"
        );
    }
}
