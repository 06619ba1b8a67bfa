//! Jobs and their rounds, as the log moves them: the half of [`State`] that training lives on.
//!
//! It plans nothing and trains nothing; it only decides what is valid. A round is planned once and closed
//! once, in order, and only planned pairs are ever merged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lapwing_base::{
    Evaluation, JobId, JobPhase, JobSpec, JobView, LogIndex, Manifest, Meeting, NodeId, Pair, ROUNDS_KEPT,
    Refusal, Round, RoundKind, RoundOutcome, RoundPlan,
};

use crate::command::{Malformed, REFUSALS_MAX};
use crate::state::{JOBS_OVER_KEPT, MEMBERS_MAX, State, check_count};
use crate::{Applied, RefusedReason};

impl State {
    pub(crate) fn submit_job(&mut self, index: LogIndex, spec: JobSpec) -> Result<Applied, RefusedReason> {
        if let Some(job) = self.running_job() {
            return Err(RefusedReason::JobNotOver(job.id));
        }
        check_spec(&spec)?;
        let id = JobId(index.0);
        let job = JobView::new(id, spec);
        self.jobs.insert(id, Arc::new(job));
        while self.jobs.len() > JOBS_OVER_KEPT + 1 {
            // The first one is over: only the last can run.
            self.jobs.pop_first();
        }
        Ok(Applied::Submitted(id))
    }

    pub(crate) fn stop_job(&mut self, id: JobId) -> Result<Applied, RefusedReason> {
        let job = self.job_in(id, &[JobPhase::Running, JobPhase::Finishing])?;
        job.phase = JobPhase::Stopped;
        job.evaluating = None;
        Ok(Applied::Done)
    }

    pub(crate) fn plan_round(&mut self, plan: RoundPlan) -> Result<Applied, RefusedReason> {
        // Averaging by halves, as all dense rounds do, needs one partner each.
        let meets_pairs = |job: &Arc<JobView>| job.spec.algorithm.meeting() == Meeting::Pairs;
        let one_partner = plan.kind == RoundKind::Dense || self.jobs.get(&plan.job).is_none_or(meets_pairs);
        check_participants(&plan, one_partner)?;
        for node in plan.participants() {
            self.member(node)?;
        }
        let job = self.job_in(plan.job, &[JobPhase::Running])?;
        if plan.round <= job.round() {
            return Err(RefusedReason::RoundPlanned(plan.round));
        }
        if job.open_round().is_some() {
            return Err(RefusedReason::RoundOpen(job.round()));
        }
        let expected = job.round().next();
        if plan.round != expected {
            let given = plan.round;
            return Err(RefusedReason::RoundOutOfOrder { expected, given });
        }
        job.open(plan);
        Ok(Applied::Done)
    }

    pub(crate) fn close_round(&mut self, outcome: RoundOutcome) -> Result<Applied, RefusedReason> {
        let job = self.job_in(outcome.job, &[JobPhase::Running])?;
        let record = job
            .rounds
            .back_mut()
            .filter(|record| record.outcome.is_none() && record.plan.round == outcome.round)
            .ok_or(RefusedReason::RoundNotOpen(outcome.round))?;
        check_outcome(&record.plan, &outcome)?;
        job.close(outcome);
        Ok(Applied::Done)
    }

    pub(crate) fn record_refusals(
        &mut self,
        id: JobId,
        refusals: &[Refusal],
    ) -> Result<Applied, RefusedReason> {
        check_count("refusals", refusals.len(), REFUSALS_MAX)?;
        let job = self.job_in(id, &[JobPhase::Running])?;
        let round = job.round();
        let plan = job.open_round().ok_or(RefusedReason::RoundNotOpen(round))?;
        for refusal in refusals {
            if refusal.round != plan.round {
                return Err(RefusedReason::RoundNotOpen(refusal.round));
            }
            // The plan's pairs are in order, by `check_participants`.
            let is_planned = |pair| plan.pairs.binary_search(&pair).is_ok();
            if !refusal.pair().is_some_and(is_planned) {
                let malformed = Malformed::NotPlanned(refusal.of, refusal.by);
                return Err(RefusedReason::Malformed(malformed));
            }
        }
        for refusal in refusals {
            job.refuse(*refusal);
        }
        Ok(Applied::Done)
    }

    pub(crate) fn set_paces(
        &mut self,
        id: JobId,
        steps: BTreeMap<NodeId, u32>,
    ) -> Result<Applied, RefusedReason> {
        for node in steps.keys() {
            self.member(*node)?;
        }
        let job = self.job_in(id, &[JobPhase::Running])?;
        if job.open_round().is_some() {
            return Err(RefusedReason::RoundOpen(job.round()));
        }
        let all = job.spec.local_steps;
        let is_fewer = |steps: &u32| (1..all).contains(steps);
        if let Some((node, _)) = steps.iter().find(|(_, steps)| !is_fewer(steps)) {
            return Err(RefusedReason::Malformed(Malformed::NotFewer(*node)));
        }
        job.paces = steps;
        Ok(Applied::Done)
    }

    pub(crate) fn assign_evaluation(
        &mut self,
        id: JobId,
        round: Round,
        evaluator: NodeId,
    ) -> Result<Applied, RefusedReason> {
        self.member(evaluator)?;
        let job = self.job_in(id, &[JobPhase::Running, JobPhase::Finishing])?;
        if !is_evaluable(job, round) {
            return Err(RefusedReason::NotEvaluating(round));
        }
        job.evaluating = Some((round, evaluator));
        Ok(Applied::Done)
    }

    pub(crate) fn record_evaluation(
        &mut self,
        id: JobId,
        evaluation: Evaluation,
        manifest: Option<Manifest>,
    ) -> Result<Applied, RefusedReason> {
        check_count("accuracies", evaluation.local_accuracies.len(), MEMBERS_MAX)?;
        let nodes = evaluation.local_accuracies.iter().map(|(node, _)| *node);
        if let Some(node) = out_of_order(nodes) {
            return Err(RefusedReason::Malformed(Malformed::EvaluatedTwice(node)));
        }
        let holders = manifest
            .as_ref()
            .map(|manifest| self.members_among(&manifest.holders));
        let job = self.job_in(id, &[JobPhase::Running, JobPhase::Finishing])?;
        if !is_evaluable(job, evaluation.round) {
            return Err(RefusedReason::NotEvaluating(evaluation.round));
        }
        if manifest.is_some() && job.phase != JobPhase::Finishing {
            return Err(wrong_phase(job));
        }
        if job.evaluating.is_some_and(|(round, _)| round <= evaluation.round) {
            job.evaluating = None;
        }
        job.record_evaluation(evaluation);
        if let (Some(manifest), Some(holders)) = (manifest, holders) {
            let holders = holders.into_iter().collect();
            job.manifest = Some(Manifest { holders, ..manifest });
        }
        Ok(Applied::Done)
    }

    pub(crate) fn record_holders(&mut self, id: JobId, holders: &[NodeId]) -> Result<Applied, RefusedReason> {
        check_count("holders", holders.len(), MEMBERS_MAX)?;
        let holders = self.members_among(holders);
        let job = self.job_in(id, &[JobPhase::Finishing, JobPhase::Finished])?;
        let manifest = job.manifest.as_mut().ok_or(RefusedReason::NoManifest(id))?;
        let all: BTreeSet<NodeId> = manifest.holders.iter().copied().chain(holders).collect();
        manifest.holders = all.into_iter().collect();
        Ok(Applied::Done)
    }

    pub(crate) fn finish_job(&mut self, id: JobId) -> Result<Applied, RefusedReason> {
        let job = self.job_in(id, &[JobPhase::Finishing])?;
        job.phase = JobPhase::Finished;
        job.evaluating = None;
        Ok(Applied::Done)
    }

    /// A member is gone.
    pub(crate) fn forget_in_jobs(&mut self, node: NodeId) {
        for job in self.jobs.values_mut().filter(|job| !job.phase.is_over()) {
            Arc::make_mut(job).forget(node);
        }
    }

    fn job_in(&mut self, id: JobId, phases: &[JobPhase]) -> Result<&mut JobView, RefusedReason> {
        let job = self.jobs.get_mut(&id).ok_or(RefusedReason::UnknownJob(id))?;
        if phases.contains(&job.phase) {
            Ok(Arc::make_mut(job))
        } else {
            Err(wrong_phase(job))
        }
    }

    fn members_among(&self, nodes: &[NodeId]) -> BTreeSet<NodeId> {
        nodes
            .iter()
            .copied()
            .filter(|node| self.members.contains_key(node))
            .collect()
    }
}

fn wrong_phase(job: &JobView) -> RefusedReason {
    RefusedReason::WrongPhase {
        job: job.id,
        phase: job.phase,
    }
}

/// A closed round that has no evaluation yet, nor has a later one.
fn is_evaluable(job: &JobView, round: Round) -> bool {
    let recorded = job
        .evaluations
        .back()
        .map_or(Round(0), |evaluation| evaluation.round);
    let closed = match job.open_round() {
        Some(open) => Round(open.round.0.saturating_sub(1)),
        None => job.round(),
    };
    round > recorded && round <= closed
}

/// Pairs and those alone are in order, and nobody is in two places, where each has one partner at most. Who serves the
/// others may train too, and then is among both.
fn check_participants(plan: &RoundPlan, one_partner: bool) -> Result<(), RefusedReason> {
    // On a ring there are as many pairs as nodes, and never more.
    check_count("pairs", plan.pairs.len(), MEMBERS_MAX)?;
    check_count("participants", plan.alone.len(), MEMBERS_MAX)?;
    let malformed = |kind| Err(RefusedReason::Malformed(kind));
    let mut seen = BTreeSet::new();
    let mut last: Option<Pair> = None;
    for pair in &plan.pairs {
        let [a, b] = pair.nodes();
        if a >= b || last.is_some_and(|last| last >= *pair) {
            return malformed(Malformed::Repeated(a));
        }
        last = Some(*pair);
    }
    if let Some(node) = out_of_order(plan.alone.iter().copied()) {
        return malformed(Malformed::Repeated(node));
    }
    for node in plan.pairs.iter().flat_map(|pair| pair.nodes()) {
        if !seen.insert(node) && one_partner {
            return malformed(Malformed::Repeated(node));
        }
    }
    for node in &plan.alone {
        let serves = matches!(plan.kind, RoundKind::Served { server } if server == *node);
        if !seen.insert(*node) && !serves {
            return malformed(Malformed::Repeated(*node));
        }
    }
    check_count("participants", seen.len(), MEMBERS_MAX)?;
    if seen.is_empty() {
        return malformed(Malformed::Empty);
    }
    Ok(())
}

fn check_outcome(plan: &RoundPlan, outcome: &RoundOutcome) -> Result<(), RefusedReason> {
    let malformed = |kind| Err(RefusedReason::Malformed(kind));
    let mut last: Option<Pair> = None;
    for pair in &outcome.merged {
        let [a, b] = pair.nodes();
        // The plan's pairs are in order, by `check_participants`.
        if plan.pairs.binary_search(pair).is_err() || last.is_some_and(|last| last >= *pair) {
            return malformed(Malformed::NotPlanned(a, b));
        }
        last = Some(*pair);
    }
    let participants: BTreeSet<NodeId> = plan.participants().collect();
    let stranger = outcome
        .nodes
        .iter()
        .map(|done| done.node)
        .find(|node| !participants.contains(node));
    if let Some(node) = stranger.or_else(|| out_of_order(outcome.nodes.iter().map(|done| done.node))) {
        return malformed(Malformed::NotParticipating(node));
    }
    Ok(())
}

/// The first that is not greater than the one before.
fn out_of_order(nodes: impl Iterator<Item = NodeId>) -> Option<NodeId> {
    let mut last = None;
    for node in nodes {
        if last.is_some_and(|last| last >= node) {
            return Some(node);
        }
        last = Some(node);
    }
    None
}

/// Bounds that hold for every job, whatever room reads it: so that no job can fill the log or the state.
fn check_spec(spec: &JobSpec) -> Result<(), RefusedReason> {
    let bad = |key: &str, expected: &str| {
        Err(RefusedReason::BadJob {
            key: key.to_owned(),
            expected: expected.to_owned(),
        })
    };
    if spec.model.is_empty() || spec.model.len() > TEXT_LENGTH_MAX {
        return bad("model", "a name of 1 to 256 bytes");
    }
    if spec.data.is_empty() || spec.data.len() > TEXT_LENGTH_MAX {
        return bad("data", "a name of 1 to 256 bytes");
    }
    if spec.rounds == 0 {
        return bad("rounds", "at least 1");
    }
    if spec.compression == 0 {
        return bad("compression", "at least 1");
    }
    if spec.batch == 0 {
        return bad("batch", "at least 1");
    }
    // The dense rounds are counted among the rounds that are kept.
    if spec.final_dense_rounds > spec.rounds || spec.final_dense_rounds as usize > ROUNDS_KEPT / 2 {
        return bad("final_dense_rounds", "at most `rounds`, and at most 32");
    }
    Ok(())
}

/// Longest model or data name, in bytes.
const TEXT_LENGTH_MAX: usize = 256;
