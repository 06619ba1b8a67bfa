//! A job and a log of its rounds, for the tests of the planners.

use super::{Knobs, PlanInput, plan_round};
use crate::jobfile::defaults;
use lapwing_base::{
    Algorithm, Bandwidth, Bandwidths, ByteSize, JobId, JobSpec, JobView, LinkSpeed, NodeId, NodeOutcome,
    Pair, RoundKind, RoundOutcome, RoundPlan,
};
use std::time::Duration;

pub(super) fn plan_with(job: &JobView, members: usize, bandwidths: &Bandwidths, knobs: Knobs) -> RoundPlan {
    let members: Vec<NodeId> = (1..=members as u64).map(NodeId).collect();
    plan_round(&PlanInput {
        job,
        members: &members,
        bandwidths,
        deadline: Duration::from_secs(30),
        knobs,
    })
}

pub(super) fn pair(a: u64, b: u64) -> Pair {
    Pair::new(NodeId(a), NodeId(b)).unwrap()
}

pub(super) fn set(bandwidths: &mut Bandwidths, from: u64, to: u64, kbit: u32) {
    let (from, to) = (NodeId(from), NodeId(to));
    bandwidths.set(LinkSpeed {
        from,
        to,
        speed: Bandwidth::kbit(kbit),
    });
}

/// What the log does when a plan is committed and all its pairs merge.
pub(super) fn advance(job: &mut JobView, plan: RoundPlan) {
    let merged = plan.pairs.clone();
    advance_merged(job, plan, merged);
}

pub(super) fn advance_merged(job: &mut JobView, plan: RoundPlan, merged: Vec<Pair>) {
    let outcome = RoundOutcome {
        job: job.id,
        round: plan.round,
        merged,
        nodes: Vec::new(),
        took_ms: 1,
    };
    job.open(plan);
    job.close(outcome);
}

pub(super) fn push(job: &mut JobView, kind: RoundKind, pairs: Vec<Pair>, merged: bool) {
    let mut plan = plan_with(job, 0, &Bandwidths::default(), Knobs::default());
    plan.kind = kind;
    plan.pairs = pairs.clone();
    advance_merged(job, plan, if merged { pairs } else { Vec::new() });
}

pub(super) fn job(seed: u64, rounds: u32) -> JobView {
    JobView::new(
        JobId(1),
        JobSpec {
            rounds,
            local_steps: 5,
            compression: 25,
            lr_micro: 100_000,
            seed,
            final_dense_rounds: 0,
            evaluate_every: 0,
            ..defaults(Algorithm::Default)
        },
    )
}

/// As [`advance`], and everybody with a partner sent this much in a round of 100 ms.
pub(super) fn advance_sent(job: &mut JobView, plan: RoundPlan, sent: ByteSize) {
    let partners: Vec<NodeId> = plan.pairs.iter().flat_map(|pair| pair.nodes()).collect();
    advance(job, plan);
    let done = |node| NodeOutcome {
        node,
        loss_micro: 0,
        samples: 1,
        sent,
        received: sent,
    };
    if let Some(outcome) = job.rounds.back_mut().and_then(|record| record.outcome.as_mut()) {
        outcome.nodes = partners.into_iter().map(done).collect();
        outcome.took_ms = 100;
    }
}
