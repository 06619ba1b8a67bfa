//! The time of a plan beside what a round would notice.

use super::{PARAMETERS, fastest, millis, row};
use crate::planner::{Knobs, PlanInput, plan_round};
use lapwing_base::{
    Algorithm, Bandwidth, Bandwidths, ByteSize, JobId, JobSpec, JobView, LinkSpeed, NodeId, NodeOutcome,
    Pair, Planner, Round, RoundKind, RoundOutcome, RoundPlan, RoundRecord, Row,
};
use std::hint::black_box;
use std::time::Duration;

/// A plan may take this long before a round that lasts half a second notices.
const PLAN_TARGET: Duration = Duration::from_millis(100);

/// Plans for clusters of several sizes, in milliseconds beside their target.
pub(super) fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = [14, 100, 1000]
        .map(|nodes| plan_row("plan", nodes, &cluster(nodes)))
        .into();
    let mut by_thresholds = cluster(1000);
    by_thresholds.0.spec.planner = Planner::Thresholds;
    rows.push(plan_row("plan by thresholds", 1000, &by_thresholds));
    // Nobody has met yet and nothing is known: every link is ranked.
    rows.push(plan_row("first plan", 1000, &(job(), Bandwidths::default())));
    // The largest cluster in which the shares of all models are followed.
    let mut dense = cluster(256);
    dense.0.spec.final_dense_rounds = dense.0.spec.rounds;
    rows.push(plan_row("dense plan", 256, &dense));
    rows
}

fn plan_row(name: &str, nodes: u64, (job, bandwidths): &(JobView, Bandwidths)) -> Row {
    let members: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
    let input = PlanInput {
        job,
        members: &members,
        bandwidths,
        deadline: Duration::from_secs(30),
        knobs: Knobs::default(),
    };
    let took = fastest(|| drop(black_box(plan_round(black_box(&input)))));
    row(
        format!("{name}, {nodes} nodes"),
        millis(took),
        "ms",
        millis(PLAN_TARGET),
    )
}

/// A cluster where every link was measured and the last rounds are known: the most there is to read.
fn cluster(nodes: u64) -> (JobView, Bandwidths) {
    let mut bandwidths = Bandwidths::default();
    let mut state = 1_u32;
    for (from, to) in (1..=nodes).flat_map(|from| (1..=nodes).map(move |to| (NodeId(from), NodeId(to)))) {
        // Any spread-out numbers do.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let speed = Bandwidth::kbit(state >> 12);
        bandwidths.set(LinkSpeed { from, to, speed });
    }
    let mut job = job();
    // Everybody has met every third member.
    for (a, b) in (0..nodes).flat_map(|a| (a + 1..nodes).step_by(3).map(move |b| (a, b))) {
        if let Some(pair) = Pair::new(NodeId(a + 1), NodeId(b + 1)) {
            job.last_matched.insert(pair, Round(b % 100));
        }
    }
    // The round that those meetings led up to, and what it carried.
    let mut plan = round_of(job.spec.compression);
    plan.round = Round(100);
    let sent = ByteSize(PARAMETERS as u64 / u64::from(plan.compression));
    let outcome = RoundOutcome {
        job: job.id,
        round: plan.round,
        merged: Vec::new(),
        nodes: vec![NodeOutcome {
            node: NodeId(1),
            loss_micro: 0,
            samples: 1,
            sent,
            received: sent,
        }],
        took_ms: 1000,
    };
    job.rounds.push_back(RoundRecord {
        plan,
        outcome: Some(outcome),
    });
    (job, bandwidths)
}

fn round_of(compression: u32) -> RoundPlan {
    RoundPlan {
        job: JobId(1),
        round: Round(1),
        kind: RoundKind::Sparse,
        seed: [0; 32],
        pairs: Vec::new(),
        alone: Vec::new(),
        compression,
        local_steps: 1,
        lr_micro: 1,
        deadline_ms: 1,
    }
}

fn job() -> JobView {
    JobView::new(
        JobId(1),
        JobSpec {
            rounds: 1000,
            compression: 25,
            ..crate::jobfile::defaults(Algorithm::Default)
        },
    )
}
