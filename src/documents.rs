//! The members and the jobs of a cluster as JSON, for the admin address. Shapes only.

use lapwing_base::{JobView, NodeId, Pair, Ppm, Quarantine, Roster, Round, RoundRecord};
use lapwing_consensus::State;
use serde_json::{Value, json};
use std::fmt::Display;

/// Numbers as the texts that people use.
pub(crate) fn ids<T: Display>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

/// Everybody in the roster, and which of them are in quarantine in the job that runs.
pub(crate) fn members(roster: &Roster, job: Option<&JobView>) -> Value {
    let members: Vec<Value> = roster
        .members
        .values()
        .map(|member| {
            json!({
                "id": member.id.to_string(),
                "peer_id": member.peer,
                "name": member.name,
                "role": member.role,
                "state": member.state,
                "voter": roster.voters.contains(&member.id),
                "addrs": member.addrs,
                "quarantine": job
                    .and_then(|job| job.trust.quarantine(member.id, job.round().next()))
                    .map(quarantine),
            })
        })
        .collect();
    json!({
        "cluster_id": roster.cluster,
        "term": roster.term,
        "leader": roster.leader.map(|leader| leader.to_string()),
        "members": members,
    })
}

/// The jobs that are kept, a line each.
pub(crate) fn jobs(state: &State) -> Value {
    let jobs: Vec<Value> = state
        .jobs
        .values()
        .map(|view| {
            json!({
                "id": view.id.to_string(),
                "phase": view.phase,
                "model": view.spec.model,
                "data": view.spec.data,
                "rounds": view.spec.rounds,
                "round": view.round(),
            })
        })
        .collect();
    json!({ "jobs": jobs })
}

/// One job, with the rounds after `after` that are kept.
pub(crate) fn job(view: &JobView, after: Round, parameters: Option<u64>) -> Value {
    let history: Vec<Value> = view
        .rounds
        .iter()
        .filter(|record| record.plan.round > after)
        .map(|record| round(record, view.spec.tuning.privacy.is_some()))
        .collect();
    let evaluations: Vec<Value> = view
        .evaluations
        .iter()
        .map(|evaluation| {
            let local: serde_json::Map<String, Value> = evaluation
                .local_accuracies
                .iter()
                .map(|(node, accuracy)| (node.to_string(), json!(accuracy.as_f64())))
                .collect();
            json!({
                "round": evaluation.round,
                "averaged_accuracy": evaluation.averaged_accuracy.as_f64(),
                "local_accuracy": evaluation.local_accuracy().as_f64(),
                "transferred_bytes": evaluation.transferred,
                "local": local,
            })
        })
        .collect();
    let manifest = view.manifest.as_ref().map(|manifest| {
        json!({
            "hash": hex::encode(manifest.hash),
            "parameters": manifest.parameters,
            "holders": ids(&manifest.holders),
        })
    });
    let quarantined: serde_json::Map<String, Value> = view
        .trust
        .in_quarantine(view.round().next())
        .map(|(node, entry)| (node.to_string(), quarantine(entry)))
        .collect();
    let paces: serde_json::Map<String, Value> = view
        .paces
        .iter()
        .map(|(node, steps)| (node.to_string(), json!(steps)))
        .collect();
    json!({
        "id": view.id.to_string(),
        "phase": view.phase,
        "spec": spec(view),
        "parameters": parameters,
        "round": view.round(),
        "last_round": view.last_round(),
        "history": history,
        "evaluations": evaluations,
        "manifest": manifest,
        "quarantined": quarantined,
        "fewer_steps": paces,
    })
}

fn quarantine(quarantine: &Quarantine) -> Value {
    json!({
        "until_round": quarantine.until,
        "times": quarantine.times,
        "reason": format!("sent {}", quarantine.why),
        "refused_by": ids(&quarantine.by),
    })
}

/// The job's settings under the keys of the job file.
fn spec(view: &JobView) -> Value {
    let spec = &view.spec;
    json!({
        "model": spec.model,
        "data": spec.data,
        "algorithm": spec.algorithm,
        "planner": spec.planner,
        "rounds": spec.rounds,
        "local_steps": spec.local_steps,
        "compression": spec.compression,
        "values": spec.values,
        "lr": f64::from(spec.lr_micro) / 1e6,
        "batch": spec.batch,
        "seed": spec.seed,
        "final_dense_rounds": spec.final_dense_rounds,
        "checkpoint_every": spec.checkpoint_every,
        "evaluate_every": spec.evaluate_every,
        "stop": spec.stop.map(Ppm::as_f64),
        "clip": spec.tuning.clip,
        "dp_noise": spec.tuning.privacy.map(|privacy| f64::from(privacy.noise_micro) / 1e6),
        "dp_norm": spec.tuning.privacy.map(|privacy| f64::from(privacy.norm_micro) / 1e6),
        "dp_delta": spec.tuning.privacy.map(|privacy| f64::from(privacy.delta_nano) / 1e9),
    })
}

fn round(record: &RoundRecord, is_private: bool) -> Value {
    let plan = &record.plan;
    let outcome = record.outcome.as_ref();
    let nodes: Vec<Value> = outcome
        .map(|outcome| outcome.nodes.as_slice())
        .unwrap_or_default()
        .iter()
        .map(|node| {
            // A node that took no local steps has no loss to show, and one that keeps it to itself neither.
            let loss = (node.samples > 0 && !is_private).then_some(f64::from(node.loss_micro) / 1e6);
            json!({
                "node": node.node.to_string(),
                "loss": loss,
                "samples": node.samples,
                "sent_bytes": node.sent,
                "received_bytes": node.received,
            })
        })
        .collect();
    json!({
        "round": plan.round,
        "kind": plan.kind.name(),
        "pairs": pairs(&plan.pairs),
        "alone": ids(&plan.alone),
        "merged": outcome.map(|outcome| pairs(&outcome.merged)),
        "took_ms": outcome.map(|outcome| outcome.took_ms),
        "nodes": nodes,
    })
}

fn pairs(pairs: &[Pair]) -> Vec<[String; 2]> {
    pairs
        .iter()
        .map(|pair| pair.nodes().map(|node: NodeId| node.to_string()))
        .collect()
}
