//! `lapwing peers`: the peers of one node, and how each is reached.

use lapwing_base::ByteSize;

use super::admin_client::Target;
use super::documents::StatusDocument;
use super::failure::Failure;
use super::output::{Align, Output, Table, or_dash};

/// Asks the node and prints its peers. For programs: `{"peers": […]}`, as in the status document.
pub(crate) async fn run(target: &Target, output: Output) -> Result<(), Failure> {
    let client = target.client()?;
    let document: serde_json::Value = client
        .get("/v1/status")
        .await
        .map_err(|error| error.failing_to("get the peers"))?;
    if output.is_json() {
        let peers = document.pointer("/network/peers").cloned().unwrap_or_default();
        return output.document(&serde_json::json!({ "peers": peers }));
    }
    let document: StatusDocument =
        serde_json::from_value(document).map_err(|error| Failure::new("read the peers", error))?;
    output.line(table(&document))
}

fn table(status: &StatusDocument) -> Table {
    let mut table = Table::new([
        ("name", Align::Left),
        ("path", Align::Left),
        ("rtt", Align::Right),
        ("bandwidth", Align::Right),
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
            "bob   direct, quic  0.3 ms          -  1.0 KiB       0 B  -        12D3b"
        );
    }
}
