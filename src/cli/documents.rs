//! The documents of a node's admin address, as far as the command line reads them.
//!
//! A key that is missing or null is read as "nothing known", and a key that we do not know is passed over: a
//! command must be able to speak to a node that is a version older or newer. What `--json` prints is the node's
//! own document, not one of these. The keys are described where the node writes them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// `GET /v1/status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StatusDocument {
    pub(crate) version: String,
    pub(crate) peer_id: String,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) cluster_id: Option<String>,
    pub(crate) uptime_seconds: f64,
    pub(crate) node: NodeSection,
    pub(crate) raft: RaftSection,
    pub(crate) training: TrainingSection,
    pub(crate) network: NetworkSection,
}

/// How the node is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSection {
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
}

/// Its part in the cluster's log.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RaftSection {
    pub(crate) state: String,
    pub(crate) term: u64,
    pub(crate) leader: Option<String>,
    pub(crate) voters: Vec<String>,
    pub(crate) learners: Vec<String>,
    pub(crate) last_log_index: u64,
    pub(crate) committed_index: u64,
    pub(crate) applied_index: u64,
}

/// Its part in the job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TrainingSection {
    pub(crate) state: String,
    pub(crate) job: Option<String>,
    pub(crate) round: u64,
    pub(crate) rounds: u64,
    pub(crate) partner: Option<String>,
    pub(crate) loss: Option<f64>,
    pub(crate) local_accuracy: Option<f64>,
    pub(crate) averaged_accuracy: Option<f64>,
    /// Why the node takes no useful part, when it cannot.
    pub(crate) problem: Option<String>,
    pub(crate) epsilon: Option<f64>,
    pub(crate) delta: Option<f64>,
    pub(crate) quarantined: Vec<QuarantineSection>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

/// A member without which rounds are planned for a while.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct QuarantineSection {
    pub(crate) id: String,
    pub(crate) peer_id: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) until_round: u64,
    pub(crate) reason: String,
    pub(crate) refused_by: Vec<String>,
}

/// Its links.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NetworkSection {
    pub(crate) state: String,
    pub(crate) listen: Vec<String>,
    pub(crate) external: Vec<String>,
    pub(crate) nat: NatSection,
    pub(crate) nat_ipv6: NatSection,
    pub(crate) reservations: Vec<ReservationSection>,
    pub(crate) peers: Vec<PeerSection>,
    pub(crate) max_upload: LimitsSection,
    pub(crate) max_download: LimitsSection,
}

/// What it keeps to in one direction, in Mbit/s.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct LimitsSection {
    pub(crate) node_mbit_s: Option<f64>,
    pub(crate) class_mbit_s: BTreeMap<String, f64>,
    pub(crate) peer_mbit_s: BTreeMap<String, f64>,
}

/// What stands before it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NatSection {
    pub(crate) mapping: String,
    pub(crate) port_preserving: Option<bool>,
    pub(crate) filtering: String,
    pub(crate) udp: String,
}

/// A relay's promise.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ReservationSection {
    pub(crate) relay: String,
}

/// One peer, as the node sees it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PeerSection {
    pub(crate) peer_id: String,
    pub(crate) name: Option<String>,
    pub(crate) member: bool,
    pub(crate) agent: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) transport: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) relayed_explanation: Option<String>,
    pub(crate) last_error: Option<String>,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) bandwidth_mbit_s: Option<f64>,
    pub(crate) download_mbit_s: Option<f64>,
    pub(crate) sent_bytes: BTreeMap<String, u64>,
    pub(crate) received_bytes: BTreeMap<String, u64>,
}

impl PeerSection {
    /// How it is reached, or that it is not.
    pub(crate) fn way(&self) -> String {
        match (&self.path, &self.transport) {
            (Some(path), Some(transport)) => format!("{path}, {transport}"),
            (Some(way), None) | (None, Some(way)) => way.clone(),
            (None, None) => "-".to_owned(),
        }
    }

    /// What a person may want to know of the way: why it is relayed, or why there is none.
    pub(crate) fn remark(&self) -> Option<&str> {
        match self.path.as_deref() {
            Some("relayed") => self.relayed_explanation.as_deref(),
            Some(_) => None,
            None => self.last_error.as_deref(),
        }
    }
}

/// `GET /v1/peers/{peer}/tried`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TriedDocument {
    pub(crate) peer_id: String,
    pub(crate) name: Option<String>,
    pub(crate) connected: bool,
    pub(crate) tried: Vec<TriedRow>,
}

/// One address that was tried.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TriedRow {
    pub(crate) address: String,
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) ago_seconds: f64,
    pub(crate) tries: u32,
    pub(crate) outcome: String,
    pub(crate) after_ms: Option<f64>,
    pub(crate) why: Option<String>,
}

/// `GET /v1/members`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MembersDocument {
    pub(crate) cluster_id: Option<String>,
    pub(crate) term: u64,
    pub(crate) leader: Option<String>,
    pub(crate) members: Vec<MemberSection>,
}

/// One member.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MemberSection {
    pub(crate) id: String,
    pub(crate) peer_id: String,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) state: String,
    pub(crate) voter: bool,
    pub(crate) addrs: Vec<String>,
    pub(crate) quarantine: Option<QuarantineSection>,
}

/// `GET /v1/jobs`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct JobsDocument {
    pub(crate) jobs: Vec<JobLine>,
}

/// One job, in short.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct JobLine {
    pub(crate) id: String,
    pub(crate) phase: String,
    pub(crate) model: String,
    pub(crate) data: String,
    pub(crate) rounds: u64,
    pub(crate) round: u64,
}

/// `POST /v1/jobs`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SubmittedDocument {
    pub(crate) id: String,
}

/// `GET /v1/jobs/{id}`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct JobDocument {
    pub(crate) id: String,
    pub(crate) phase: String,
    pub(crate) spec: serde_json::Map<String, Value>,
    pub(crate) parameters: Option<u64>,
    pub(crate) round: u64,
    pub(crate) history: Vec<RoundDocument>,
    pub(crate) evaluations: Vec<EvaluationDocument>,
    pub(crate) manifest: Option<ManifestDocument>,
}

impl JobDocument {
    /// Whether nothing more will happen in the job.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase.as_str(), "finished" | "stopped")
    }

    /// All rounds that the job asks for.
    pub(crate) fn rounds(&self) -> u64 {
        self.spec.get("rounds").and_then(Value::as_u64).unwrap_or(0)
    }
}

/// One round.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RoundDocument {
    pub(crate) round: u64,
    pub(crate) kind: String,
    pub(crate) pairs: Vec<[String; 2]>,
    pub(crate) alone: Vec<String>,
    /// `None` while the round is open.
    pub(crate) merged: Option<Vec<[String; 2]>>,
    pub(crate) took_ms: Option<u64>,
    pub(crate) nodes: Vec<NodeRoundDocument>,
}

impl RoundDocument {
    /// Mean loss of the nodes that reported, weighted by nothing; `None` when none did.
    pub(crate) fn loss(&self) -> Option<f64> {
        let losses: Vec<f64> = self.nodes.iter().filter_map(|node| node.loss).collect();
        mean(&losses)
    }
}

/// What one node did in one round.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeRoundDocument {
    pub(crate) node: String,
    pub(crate) loss: Option<f64>,
    pub(crate) samples: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

/// One evaluation of the averaged model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EvaluationDocument {
    pub(crate) round: u64,
    pub(crate) averaged_accuracy: f64,
    pub(crate) local_accuracy: f64,
    pub(crate) transferred_bytes: u64,
    pub(crate) local: BTreeMap<String, f64>,
}

/// The consensus model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ManifestDocument {
    pub(crate) hash: String,
    pub(crate) holders: Vec<String>,
}

/// The mean; `None` of nothing.
pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Reads a document, with null as if the key were missing.
pub(crate) fn read<T: DeserializeOwned>(mut document: Value) -> Result<T, serde_json::Error> {
    drop_nulls(&mut document);
    serde_json::from_value(document)
}

/// Takes out every key whose value is null. As deep as the parser went, which stops at 128 levels.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, value| !value.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_null_and_missing_keys_do_not_stop_a_reader() {
        let text =
            r#"{"peer_id": "x", "role": null, "raft": {"term": 3, "voters": null}, "later": {"a": 1}}"#;
        let document: StatusDocument = read(serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(document.peer_id, "x");
        assert_eq!(document.role, "");
        assert_eq!(document.raft.term, 3);
        assert!(document.raft.voters.is_empty() && document.training.loss.is_none());
    }

    #[test]
    fn an_open_round_is_told_from_one_that_merged_nothing() {
        let text = r#"{"history": [{"round": 1, "pairs": [["n1", "n2"]], "merged": []}, {"round": 2, "merged": null}]}"#;
        let document: JobDocument = read(serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(document.history[0].merged, Some(Vec::new()));
        assert_eq!(document.history[1].merged, None);
    }
}
