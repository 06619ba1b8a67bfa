//! The status document as Prometheus text (exposition format 0.0.4), drawn anew at each scrape.

use crate::status::{NetworkState, StatusDocument};
use lapwing_net::{Path, RelayedBecause};
use std::fmt::{Display, Write as _};

/// Writes the metrics of one node.
pub(crate) fn render(status: &StatusDocument) -> String {
    let mut text = Exposition::default();
    let none: [(&str, &str); 0] = [];

    text.family(
        "lapwing_build_info",
        "gauge",
        "Always 1; the label names the running version.",
    );
    text.sample("lapwing_build_info", &[("version", status.version)], 1);
    text.family(
        "lapwing_uptime_seconds",
        "gauge",
        "Time since the process started.",
    );
    text.sample("lapwing_uptime_seconds", &none, status.uptime_seconds);
    text.family(
        "lapwing_node_state",
        "gauge",
        "1 for the state the node is in, 0 for the others.",
    );
    for state in ["joining", "active", "suspected", "leaving", "failed"] {
        let is_in = u8::from(status.node.state.as_str() == state);
        text.sample("lapwing_node_state", &[("state", state)], is_in);
    }

    text.family(
        "lapwing_raft_state",
        "gauge",
        "1 for the part the node plays in consensus, 0 for the others.",
    );
    for state in ["observer", "learner", "follower", "candidate", "leader"] {
        text.sample(
            "lapwing_raft_state",
            &[("state", state)],
            u8::from(status.raft.state == state),
        );
    }
    text.family(
        "lapwing_raft_term",
        "gauge",
        "The current term; grows with every election.",
    );
    text.sample("lapwing_raft_term", &none, status.raft.term);
    text.family("lapwing_raft_voters", "gauge", "Members that vote.");
    text.sample("lapwing_raft_voters", &none, status.raft.voters.len());
    text.family(
        "lapwing_raft_learners",
        "gauge",
        "Members that follow the log without a vote.",
    );
    text.sample("lapwing_raft_learners", &none, status.raft.learners.len());
    text.family(
        "lapwing_raft_last_log_index",
        "gauge",
        "The last log entry on this node's disk.",
    );
    text.sample("lapwing_raft_last_log_index", &none, status.raft.last_log_index);
    text.family(
        "lapwing_raft_committed_index",
        "gauge",
        "The last log entry that is known to be committed.",
    );
    text.sample("lapwing_raft_committed_index", &none, status.raft.committed_index);
    text.family(
        "lapwing_raft_applied_index",
        "gauge",
        "The last log entry in this node's state.",
    );
    text.sample("lapwing_raft_applied_index", &none, status.raft.applied_index);

    let training = &status.training;
    text.family(
        "lapwing_training_round",
        "gauge",
        "The round this node is in, or dealt with last.",
    );
    text.sample("lapwing_training_round", &none, training.round);
    text.family("lapwing_training_rounds", "gauge", "All rounds of the job.");
    text.sample("lapwing_training_rounds", &none, training.rounds);
    if let Some(loss) = training.loss {
        text.family(
            "lapwing_training_loss",
            "gauge",
            "Mean training loss of the last local steps, in nats.",
        );
        text.sample("lapwing_training_loss", &none, loss);
    }
    if let Some(accuracy) = training.local_accuracy {
        text.family(
            "lapwing_training_local_accuracy_ratio",
            "gauge",
            "Of this node's own model, when last evaluated.",
        );
        text.sample("lapwing_training_local_accuracy_ratio", &none, accuracy);
    }
    if let Some(accuracy) = training.averaged_accuracy {
        text.family(
            "lapwing_training_averaged_accuracy_ratio",
            "gauge",
            "Of the averaged model, when last evaluated.",
        );
        text.sample("lapwing_training_averaged_accuracy_ratio", &none, accuracy);
    }
    text.family(
        "lapwing_training_samples_total",
        "counter",
        "Samples trained on since the process started.",
    );
    text.sample("lapwing_training_samples_total", &none, training.samples);
    text.family(
        "lapwing_training_exchanged_bytes_total",
        "counter",
        "Payload of finished exchanges since the process started; evaluations are not in it.",
    );
    for (direction, bytes) in [
        ("sent", training.sent_bytes),
        ("received", training.received_bytes),
    ] {
        text.sample(
            "lapwing_training_exchanged_bytes_total",
            &[("direction", direction)],
            bytes.0,
        );
    }

    text.family(
        "lapwing_network_state",
        "gauge",
        "1 for the state the network is in as seen from here, 0 for the others.",
    );
    for (word, state) in [
        ("connected", NetworkState::Connected),
        ("degraded", NetworkState::Degraded),
        ("partitioned", NetworkState::Partitioned),
    ] {
        text.sample(
            "lapwing_network_state",
            &[("state", word)],
            u8::from(status.network.state == state),
        );
    }
    let connected = status
        .network
        .peers
        .iter()
        .filter(|peer| peer.path.is_some())
        .count();
    text.family(
        "lapwing_peers_connected",
        "gauge",
        "Peers with a connection to this node.",
    );
    text.sample("lapwing_peers_connected", &none, connected);
    let peers = status.network.peers.iter();
    let relayed: Vec<_> = peers
        .filter(|peer| peer.path == Some(Path::Relayed))
        // A stranger's path is not improved from here.
        .map(|peer| peer.relayed_because.unwrap_or(RelayedBecause::NotTriedYet.code()))
        .collect();
    text.family(
        "lapwing_peers_relayed",
        "gauge",
        "Peers that are reached through a relay, by why they are not reached directly.",
    );
    for because in RelayedBecause::ALL.map(RelayedBecause::code) {
        let count = relayed.iter().filter(|why| **why == because).count();
        text.sample("lapwing_peers_relayed", &[("because", because)], count);
    }
    text.family(
        "lapwing_reservations",
        "gauge",
        "Relays that accept circuits for this node; a main needs none.",
    );
    text.sample("lapwing_reservations", &none, status.network.reservations.len());
    text.family(
        "lapwing_network_refused_total",
        "counter",
        "What was turned away at the door since the process started, by what it was.",
    );
    if let Ok(serde_json::Value::Object(refused)) = serde_json::to_value(status.network.refused) {
        for (what, count) in refused {
            let count = count.as_u64().unwrap_or(0);
            text.sample("lapwing_network_refused_total", &[("what", &what)], count);
        }
    }
    // Of all peers together: a label for each would grow without bound in a large cluster.
    text.family(
        "lapwing_network_payload_bytes_total",
        "counter",
        "Payload of all channels since the process started, by class and direction.",
    );
    for (direction, classes) in [
        ("sent", &status.network.sent_bytes),
        ("received", &status.network.received_bytes),
    ] {
        for (class, bytes) in classes {
            let labels = [("class", *class), ("direction", direction)];
            text.sample("lapwing_network_payload_bytes_total", &labels, bytes);
        }
    }
    text.family(
        "lapwing_config_version",
        "gauge",
        "Version of the cluster's configuration; grows with every change.",
    );
    text.sample("lapwing_config_version", &none, status.config.version);
    text.0
}

/// Text in the exposition format, family by family.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (position, (label, text)) in labels.iter().enumerate() {
            let open = if position == 0 { '{' } else { ',' };
            let escaped = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{escaped}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_quoted_as_the_format_asks() {
        let mut text = Exposition::default();
        text.family("a_total", "counter", "Counts.");
        text.sample("a_total", &[("x", "a\"b\\c\nd"), ("y", "z")], 3);
        text.sample("b", &[], 1.5);
        assert_eq!(
            text.0,
            "# HELP a_total Counts.\n# TYPE a_total counter\na_total{x=\"a\\\"b\\\\c\\nd\",y=\"z\"} 3\nb 1.5\n"
        );
    }
}
