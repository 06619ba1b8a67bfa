//! `lapwing status`: the status document of one node, or what a relay says of itself.

use super::admin_client::Target;
use super::documents::{self, LimitsSection, NatSection, QuarantineSection, StatusDocument};
use super::failure::Failure;
use super::output::{Output, millis, or_dash, percent, span};
use super::relay_status::RelayStatus;
use lapwing_base::ByteSize;

/// Asks the node and prints its answer.
pub(crate) async fn run(target: &Target, output: Output) -> Result<(), Failure> {
    let client = target.client()?;
    let document: serde_json::Value = match client.get("/v1/status").await {
        Ok(document) => document,
        Err(error) => {
            let relay = RelayStatus::get(&client, error).await;
            return relay
                .map_err(|error| error.failing_to("get the status"))?
                .print(output);
        }
    };
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
    if let (Some(epsilon), Some(delta)) = (training.epsilon, training.delta) {
        lines.push(format!(
            "          private: epsilon {epsilon:.2} at delta {delta:e} so far"
        ));
    }
    lines.extend(
        training
            .quarantined
            .iter()
            .map(|member| quarantine(status, member)),
    );
    lines.extend(network(status));
    lines
}

/// Who is left out, for how long and why; and what to do, where it is the node that is asked.
fn quarantine(status: &StatusDocument, member: &QuarantineSection) -> String {
    let is_me = member.peer_id.as_ref() == Some(&status.peer_id);
    let (who, what_to_do) = if is_me {
        let advice = "; check its data, memory and program, and start it again";
        ("this node".to_owned(), advice)
    } else {
        (member.name.clone().unwrap_or_else(|| member.id.clone()), "")
    };
    format!(
        "          {who} is in quarantine until round {}: it {} (refused by {}){what_to_do}",
        member.until_round,
        member.reason,
        member.refused_by.join(", "),
    )
}

/// Peers that are listed; the others are counted. `lapwing peers` has them all.
const PEERS_SHOWN: usize = 16;

fn network(status: &StatusDocument) -> Vec<String> {
    let network = &status.network;
    let members: Vec<_> = network.peers.iter().filter(|peer| peer.member).collect();
    let connected = members.iter().filter(|peer| peer.path.is_some()).count();
    let strangers = match network.peers.len() - members.len() {
        0 => String::new(),
        count => format!(", {count} that are no members"),
    };
    let listen = or_dash((!network.listen.is_empty()).then(|| network.listen.join(" ")));
    let mut lines = vec![format!(
        "network   {}, {connected} of {} other members connected{strangers}, listens on {listen}",
        network.state,
        members.len(),
    )];
    if !network.external.is_empty() {
        lines.push(format!("          reached at {}", network.external.join(" ")));
    }
    for (direction, limits) in [
        ("upload", &network.max_upload),
        ("download", &network.max_download),
    ] {
        if let Some(rates) = rates(status, limits) {
            lines.push(format!("          {direction} limited to {rates}"));
        }
    }
    let families = [("IPv4", &network.nat), ("IPv6", &network.nat_ipv6)];
    for (family, nat) in families {
        // Many networks have no IPv6.
        if family == "IPv4" || !matches!(nat.mapping.as_str(), "" | "unknown") {
            lines.push(format!("NAT       {family}: {}", nat_in_words(nat)));
        }
    }
    if !network.reservations.is_empty() {
        let relays = network.reservations.iter();
        let relays: Vec<_> = relays.map(|held| name_of(status, &held.relay)).collect();
        lines.push(format!("relays    reserved at {}", relays.join(", ")));
    }
    for (index, peer) in network.peers.iter().take(PEERS_SHOWN).enumerate() {
        let head = if index == 0 { "peers" } else { "" };
        let name = peer.name.as_ref().unwrap_or(&peer.peer_id);
        let rtt = peer
            .rtt_ms
            .map_or_else(String::new, |rtt| format!(", {}", millis(rtt)));
        let way = if peer.path.is_some() {
            peer.way()
        } else {
            "not connected".to_owned()
        };
        let remark = peer
            .remark()
            .map_or_else(String::new, |remark| format!(" ({remark})"));
        lines.push(format!("{head:<10}{name}: {way}{rtt}{remark}"));
    }
    if network.peers.len() > PEERS_SHOWN {
        let more = network.peers.len() - PEERS_SHOWN;
        lines.push(format!("          and {more} more; see `lapwing peers`"));
    }
    lines
}

fn nat_in_words(nat: &NatSection) -> String {
    let mut words = match nat.mapping.as_str() {
        "none" => "none".to_owned(),
        "" | "unknown" => "not known".to_owned(),
        mapping => format!("{mapping} mapping"),
    };
    match nat.port_preserving {
        Some(true) => words.push_str(" that keeps ports"),
        Some(false) => words.push_str(" that translates ports"),
        None => (),
    }
    if !matches!(nat.filtering.as_str(), "" | "unknown") {
        words.push_str(&format!(", {} filtering", nat.filtering));
    }
    if !nat.udp.is_empty() {
        words.push_str(&format!(", UDP {}", nat.udp));
    }
    words
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
            lines[6],
            "          upload limited to 10 Mbit/s, model 2.5 Mbit/s, bob 1 Mbit/s"
        );
    }

    #[test]
    fn those_in_quarantine_are_named_with_the_reason_and_the_node_itself_with_what_to_do() {
        let text = r#"{"peer_id": "A", "name": "alice", "training": {"state": "training", "epsilon": 1.25, "delta": 0.00001, "quarantined": [
            {"id": "n3", "peer_id": "C", "name": "carol", "until_round": 40, "reason": "sent values that are not finite",
             "refused_by": ["n1", "n2"]},
            {"id": "n1", "peer_id": "A", "name": "alice", "until_round": 12, "reason": "sent values that are far too large",
             "refused_by": ["n4", "n5"]}]}}"#;
        let lines = lines(&serde_json::from_str(text).unwrap());
        assert_eq!(
            lines[5..8],
            [
                "          private: epsilon 1.25 at delta 1e-5 so far",
                "          carol is in quarantine until round 40: it sent values that are not finite (refused by n1, n2)",
                "          this node is in quarantine until round 12: it sent values that are far too large (refused by \
                 n4, n5); check its data, memory and program, and start it again",
            ]
        );
    }

    #[test]
    fn the_network_tells_the_nat_the_reservations_and_each_path() {
        let text = r#"{"peer_id": "A", "name": "alice", "network": {"state": "degraded", "listen": ["/ip4/10.0.0.1"],
            "external": ["/ip4/192.0.2.1"],
            "nat": {"mapping": "symmetric", "port_preserving": false, "filtering": "address-dependent", "udp": "open"},
            "nat_ipv6": {"mapping": "unknown", "filtering": "unknown", "udp": "open"},
            "reservations": [{"relay": "B", "expires_at": 1.0}],
            "peers": [
                {"peer_id": "B", "name": "bob", "member": true, "path": "direct", "transport": "quic", "rtt_ms": 0.31},
                {"peer_id": "C", "name": "carol", "member": true, "path": "relayed", "transport": "quic",
                 "relayed_explanation": "a direct path is being tried"},
                {"peer_id": "D", "name": "dave", "member": true, "last_error": "it does not answer"},
                {"peer_id": "E", "member": false, "path": "direct", "transport": "wss"}]}}"#;
        let shown = network(&serde_json::from_str(text).unwrap());
        assert_eq!(
            shown,
            [
                "network   degraded, 2 of 3 other members connected, 1 that are no members, listens on /ip4/10.0.0.1",
                "          reached at /ip4/192.0.2.1",
                "NAT       IPv4: symmetric mapping that translates ports, address-dependent filtering, UDP open",
                "relays    reserved at bob",
                "peers     bob: direct, quic, 0.3 ms",
                "          carol: relayed, quic (a direct path is being tried)",
                "          dave: not connected (it does not answer)",
                "          E: direct, wss",
            ]
        );
    }
}
