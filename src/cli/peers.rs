//! `lapwing peers`: the peers of one node, and how each is reached; of a relay the mains that it knows.

use lapwing_base::ByteSize;

use super::admin_client::{AdminClient, AdminError, Target};
use super::cluster::escaped;
use super::documents::{self, StatusDocument, TriedDocument, TriedRow};
use super::failure::Failure;
use super::output::{Align, Output, Table, millis, or_dash, span};
use super::relay_status::RelayStatus;
use clap::Args;

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
        let document: serde_json::Value =
            match client.get(&format!("/v1/peers/{}/tried", escaped(peer))).await {
                Ok(document) => document,
                Err(error) => return Err(not_tried(&client, error).await),
            };
        if output.is_json() {
            return output.document(&document);
        }
        let tried: TriedDocument =
            documents::read(document).map_err(|error| Failure::new("read what was tried", error))?;
        return output.line(tried_text(&tried));
    }
    let document: serde_json::Value = match client.get("/v1/status").await {
        Ok(document) => document,
        Err(error) => {
            let relay = RelayStatus::get(&client, error).await;
            return relay
                .map_err(|error| error.failing_to("get the peers"))?
                .print_peers(output);
        }
    };
    if output.is_json() {
        let peers = document.pointer("/network/peers").cloned().unwrap_or_default();
        return output.document(&serde_json::json!({ "peers": peers }));
    }
    let document: StatusDocument =
        documents::read(document).map_err(|error| Failure::new("read the peers", error))?;
    output.line(table(&document))
}

/// Why there is nothing: a node does not know the peer, and a relay does not tell.
async fn not_tried(client: &AdminClient, error: AdminError) -> Failure {
    let is_relay = match client.get("/v1/status").await {
        Err(status) => RelayStatus::get(client, status).await.is_ok(),
        Ok(_) => false,
    };
    if is_relay {
        Failure::new("get what was tried", "a relay does not tell which addresses it has tried")
            .with_hint("see `lapwing peers` for its mains, and its log for why one is not reached: --log-level info,lapwing_net=debug")
    } else {
        error.failing_to("get what was tried")
    }
}

fn tried_text(document: &TriedDocument) -> String {
    if !document.tried.is_empty() {
        return tried_table(&document.tried).to_string();
    }
    let peer = document.name.as_ref().unwrap_or(&document.peer_id);
    if document.connected {
        format!(
            "this node has not dialed {peer} lately: the connection stands since {peer} has dialed this node"
        )
    } else {
        format!("this node has not dialed {peer} lately: nothing was wanted of it")
    }
}

fn tried_table(rows: &[TriedRow]) -> Table {
    let mut table = Table::new([
        ("address", Align::Left),
        ("kind", Align::Left),
        ("known by", Align::Left),
        ("tries", Align::Right),
        ("last", Align::Right),
        ("outcome", Align::Left),
    ]);
    for row in rows {
        table.row([
            row.address.clone(),
            row.kind.clone(),
            row.source.clone(),
            row.tries.to_string(),
            format!("{} ago", span(row.ago_seconds)),
            outcome(row),
        ]);
    }
    table
}

/// What came of an address, in words.
fn outcome(row: &TriedRow) -> String {
    let after = row
        .after_ms
        .map_or_else(String::new, |after| format!(" after {}", span(after / 1e3)));
    match (row.outcome.as_str(), &row.why) {
        ("trying", Some(why)) => format!("being tried again; last: {why}"),
        ("trying", None) => "being tried".to_owned(),
        ("not-needed", _) => "not needed".to_owned(),
        (word, Some(why)) => format!("{word}{after}: {why}"),
        (word, None) => format!("{word}{after}"),
    }
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
        ("runs", Align::Left),
        ("why", Align::Left),
    ]);
    for peer in &status.network.peers {
        table.row([
            or_dash(peer.name.as_ref()),
            peer.way(),
            or_dash(peer.rtt_ms.map(millis)),
            or_dash(peer.bandwidth_mbit_s.map(|rate| format!("{rate:.1} Mbit/s"))),
            or_dash(peer.download_mbit_s.map(|rate| format!("{rate:.1} Mbit/s"))),
            ByteSize(peer.sent_bytes.values().sum()).to_string(),
            ByteSize(peer.received_bytes.values().sum()).to_string(),
            or_dash(peer.address.as_ref()),
            peer.peer_id.clone(),
            or_dash(peer.agent.as_ref()),
            peer.remark().unwrap_or_default().to_owned(),
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
            "bob   direct, quic  0.3 ms       -         -  1.0 KiB       0 B  -        12D3b  -"
        );
    }

    #[test]
    fn a_peer_that_is_not_reached_directly_says_why() {
        let text = r#"{"network": {"peers": [
            {"peer_id": "A", "path": "relayed", "transport": "quic", "relayed_because": "one-way",
             "relayed_explanation": "probes arrive in one direction only", "last_error": "old"},
            {"peer_id": "B", "last_error": "no address of it answers"},
            {"peer_id": "C", "path": "direct", "transport": "wss", "agent": "lapwing/0.1.0", "last_error": "old"}]}}"#;
        let shown = table(&serde_json::from_str(text).unwrap()).to_string();
        let lines: Vec<_> = shown.lines().skip(1).collect();
        assert!(
            lines[0].ends_with("A     -              probes arrive in one direction only"),
            "{shown}"
        );
        assert!(lines[1].ends_with("no address of it answers"), "{shown}");
        assert!(lines[2].ends_with("C     lapwing/0.1.0"), "{shown}");
    }

    #[test]
    fn what_was_tried_is_told_in_words() {
        let row = |text: &str| outcome(&serde_json::from_str(text).unwrap());
        assert_eq!(
            row(r#"{"outcome": "succeeded", "after_ms": 12.34}"#),
            "succeeded after 12 ms"
        );
        assert_eq!(
            row(r#"{"outcome": "failed", "after_ms": 1500.0, "why": "timed out"}"#),
            "failed after 1.5 s: timed out"
        );
        assert_eq!(
            row(r#"{"outcome": "trying", "why": "timed out"}"#),
            "being tried again; last: timed out"
        );
        assert_eq!(row(r#"{"outcome": "not-needed"}"#), "not needed");
    }

    #[test]
    fn a_member_that_was_never_dialed_is_told_from_one_that_fails() {
        let text = |text: &str| tried_text(&serde_json::from_str(text).unwrap());
        assert_eq!(
            text(r#"{"peer_id": "A", "name": "bob", "connected": true, "tried": []}"#),
            "this node has not dialed bob lately: the connection stands since bob has dialed this node"
        );
        assert_eq!(
            text(r#"{"peer_id": "A", "tried": []}"#),
            "this node has not dialed A lately: nothing was wanted of it"
        );
    }
}
