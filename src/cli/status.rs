//! `lapwing status`: the status document of one node.

use super::admin_client::Target;
use super::documents::{self, LimitsSection, StatusDocument};
use super::failure::Failure;
use super::output::{Output, or_dash, percent, span};
use lapwing_base::ByteSize;

/// Asks the node and prints its answer.
pub(crate) async fn run(target: &Target, output: Output) -> Result<(), Failure> {
    let client = target.client()?;
    let document: serde_json::Value = client
        .get("/v1/status")
        .await
        .map_err(|error| error.failing_to("get the status"))?;
    if output.is_json() {
        return output.document(&document);
    }
    let document: StatusDocument =
        documents::read(document).map_err(|error| Failure::new("read the status", error))?;
    output.line(lines(&document).join("\n"))
}

/// The document for people.
fn lines(status: &StatusDocument) -> Vec<String> {
    let mut lines = Vec::new();
    let reason = status
        .node
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    lines.push(format!(
        "node      {} {}{reason}, {}, version {}, up {}",
        status.name,
        status.node.state,
        status.role,
        status.version,
        span(status.uptime_seconds),
    ));
    lines.push(format!("          {}", status.peer_id));
    lines.push(format!("cluster   {}", or_dash(status.cluster_id.as_ref())));
    let raft = &status.raft;
    lines.push(format!(
        "raft      {}, term {}, leader {}, {} voters, {} learners, log {} committed {} applied {}",
        raft.state,
        raft.term,
        or_dash(raft.leader.as_ref().map(|leader| name_of(status, leader))),
        raft.voters.len(),
        raft.learners.len(),
        raft.last_log_index,
        raft.committed_index,
        raft.applied_index,
    ));
    let training = &status.training;
    let job = match &training.job {
        Some(job) => format!(
            ", {job} round {} of {}, partner {}, loss {}, accuracy {} local, {} averaged, {} sent, {} received",
            training.round,
            training.rounds,
            or_dash(training.partner.as_ref().map(|partner| name_of(status, partner))),
            or_dash(training.loss.map(|loss| format!("{loss:.3}"))),
            or_dash(training.local_accuracy.map(percent)),
            or_dash(training.averaged_accuracy.map(percent)),
            ByteSize(training.sent_bytes),
            ByteSize(training.received_bytes),
        ),
        None => String::new(),
    };
    lines.push(format!("training  {}{job}", training.state));
    if let Some(problem) = &training.problem {
        lines.push(format!("          takes no useful part: {problem}"));
    }
    lines.push(format!(
        "network   {}, {} peers, listens on {}",
        status.network.state,
        status.network.peers.len(),
        if status.network.listen.is_empty() {
            "-".to_owned()
        } else {
            status.network.listen.join(" ")
        },
    ));
    for (direction, limits) in [
        ("upload", &status.network.max_upload),
        ("download", &status.network.max_download),
    ] {
        if let Some(rates) = rates(status, limits) {
            lines.push(format!("          {direction} limited to {rates}"));
        }
    }
    lines
}

/// The rates of one direction, if there are any.
fn rates(status: &StatusDocument, limits: &LimitsSection) -> Option<String> {
    let node = limits.node_mbit_s.map(|rate| format!("{rate} Mbit/s"));
    let classes = limits.class_mbit_s.iter();
    let peers = limits.peer_mbit_s.iter();
    let each: Vec<String> = node
        .into_iter()
        .chain(classes.map(|(class, rate)| format!("{class} {rate} Mbit/s")))
        .chain(peers.map(|(peer, rate)| format!("{} {rate} Mbit/s", name_of(status, peer))))
        .collect();
    (!each.is_empty()).then(|| each.join(", "))
}

/// The name of a peer that the node knows, or its id.
fn name_of(status: &StatusDocument, peer_id: &str) -> String {
    if peer_id == status.peer_id {
        return status.name.clone();
    }
    status
        .network
        .peers
        .iter()
        .find(|peer| peer.peer_id == peer_id)
        .and_then(|peer| peer.name.clone())
        .unwrap_or_else(|| peer_id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_called_by_their_names_where_they_are_known() {
        let text = r#"{
            "version": "0.1.0", "peer_id": "12D3a", "name": "alice", "role": "main", "cluster_id": "ab", "uptime_seconds": 12.5,
            "node": {"state": "active", "reason": null},
            "raft": {"state": "follower", "term": 2, "leader": "12D3b", "voters": ["12D3a"], "learners": [],
                     "last_log_index": 9, "committed_index": 9, "applied_index": 8},
            "training": {"state": "idle", "job": null},
            "network": {"state": "connected", "listen": [], "peers": [{"peer_id": "12D3b", "name": "bob"}],
                        "max_upload": {"node_mbit_s": 10.0, "class_mbit_s": {"model": 2.5}, "peer_mbit_s": {"12D3b": 1.0}}}
        }"#;
        let lines = lines(&serde_json::from_str(text).unwrap());
        assert_eq!(lines[0], "node      alice active, main, version 0.1.0, up 12.5 s");
        assert_eq!(
            lines[3],
            "raft      follower, term 2, leader bob, 1 voters, 0 learners, log 9 committed 9 applied 8"
        );
        assert_eq!(lines[4], "training  idle");
        assert_eq!(
            lines[6..],
            ["          upload limited to 10 Mbit/s, model 2.5 Mbit/s, bob 1 Mbit/s"]
        );
    }
}
