//! One node's part in the rounds of a job: what to do next, given what the log says and what is done.
//!
//! Pure: it trains nothing, sends nothing and reads no clock. Feed it one [`Input`], carry out every
//! [`Effect`] it returns, in order, and feed the results back; after any other input, feed the newest
//! [`Input::Applied`] again, since the log may have moved on meanwhile. The log decides whether a pair merges
//! (both partners report receipt, the leader's `CloseRound` names the pair), so an exchange that went well
//! here is only *held* until the round's outcome is applied.

use lapwing_base::{
    ByteSize, Garbage, JobView, NodeId, NodeOutcome, Round, RoundKind, RoundPlan, RoundReport,
};
use std::time::Duration;

/// Follows the rounds of one job for one node.
#[derive(Debug)]
pub struct RoundCore {
    me: NodeId,
    /// Every round up to this one is dealt with, merged or not.
    settled: Round,
    stage: Stage,
    /// Partners whose exchange has not ended yet.
    waiting: Vec<NodeId>,
}

/// What a node is doing in a round; drives the training state of the status document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Waits for a plan that names it.
    Waiting,
    /// Takes local steps.
    Training(Box<RoundPlan>),
    /// Swaps values with its partners. The report is filled in as the exchanges end.
    Exchanging(Box<RoundReport>),
    /// Writes what it holds to disk before it says so.
    Holding(Box<RoundReport>),
    /// Has told the leader, and waits for the outcome in the log.
    Reported(Box<RoundReport>),
    /// Takes the current model from a peer, as of this round.
    CatchingUp(Round),
}

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// What the log says now.
    Applied(&'a JobView),
    /// The local steps are done, or could not be taken (zero samples).
    Trained {
        /// Mean loss, in millionths.
        loss_micro: u32,
        /// Samples seen.
        samples: u32,
        /// How long it took.
        took: Duration,
    },
    /// The exchange with a partner ended, well or not.
    Exchanged(NodeId, Exchanged),
    /// What the node holds is written.
    Held {
        /// Whether it will be there after a crash; if not, the node does not claim to have received anything.
        kept: bool,
    },
    /// The model is a peer's now, or nobody had a better one: go on from it.
    CaughtUp,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Exchanged {
    /// Whether the partner's values are here, whole and checked.
    pub received: bool,
    /// `Model` payload sent.
    pub sent_bytes: u64,
    /// `Model` payload received.
    pub received_bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Why what the partner sent is not to be trusted, where that is why it is not here. The core does not go by it.
    pub refused: Option<Garbage>,
}

/// What should happen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Take the plan's local steps; answer with [`Input::Trained`].
    Train(Box<RoundPlan>),
    /// Swap values with each of the plan's partners; answer with an [`Input::Exchanged`] for each.
    Exchange(Box<RoundPlan>),
    /// The round closed while exchanges were under way: stop them, without an answer.
    Abandon,
    /// Write the model, and the values of the partners whom this report names, to disk; answer with [`Input::Held`].
    Hold(Box<RoundReport>),
    /// Tell the leader, again and again until the stage changes.
    Report(Box<RoundReport>),
    /// The round is over here: merge what is held, or drop it.
    Settle {
        /// Which round.
        round: Round,
        /// The partners with whom the log says that this node has merged.
        merged: Vec<NodeId>,
        /// Whether the model after this round is to be kept for an evaluation.
        snapshot: bool,
    },
    /// This node merged a round whose values it has lost, or was away for too long, or is new: take the
    /// current model from a peer; answer with [`Input::CaughtUp`].
    CatchUp {
        /// The newest closed round.
        round: Round,
    },
}

impl RoundCore {
    /// Starts after `settled`, the round of the checkpoint, or round 0.
    pub fn new(me: NodeId, settled: Round) -> Self {
        Self {
            me,
            settled,
            stage: Stage::Waiting,
            waiting: Vec::new(),
        }
    }

    /// Starts with what a checkpoint held when its node was killed: the round was trained, the partner's
    /// values (if `received`) are on disk, and whether they count is for the log to say.
    pub fn resume(me: NodeId, settled: Round, held: RoundReport) -> Self {
        debug_assert!(
            held.round > settled,
            "a held round is newer than the settled ones"
        );
        Self {
            me,
            settled,
            stage: Stage::Reported(Box::new(held)),
            waiting: Vec::new(),
        }
    }

    /// What the node is doing.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The partners of the round in hand whose exchange has not ended.
    pub fn awaited(&self) -> &[NodeId] {
        &self.waiting
    }

    /// The newest round that is dealt with.
    pub fn settled(&self) -> Round {
        self.settled
    }

    /// Takes one input and returns what follows from it, in order.
    pub fn handle(&mut self, input: Input<'_>) -> Vec<Effect> {
        match input {
            Input::Applied(job) => self.on_applied(job),
            Input::Trained {
                loss_micro,
                samples,
                took,
            } => self.on_trained(loss_micro, samples, took),
            Input::Exchanged(partner, exchanged) => self.on_exchanged(partner, exchanged),
            Input::Held { kept } => self.on_held(kept),
            Input::CaughtUp => {
                if let Stage::CatchingUp(round) = self.stage {
                    self.settled = self.settled.max(round);
                    self.stage = Stage::Waiting;
                }
                Vec::new()
            }
        }
    }

    fn on_applied(&mut self, job: &JobView) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.close(job, &mut effects);
        if self.stage == Stage::Waiting {
            self.note_missed(job, &mut effects);
        }
        if self.stage == Stage::Waiting {
            self.start(job, &mut effects);
        }
        effects
    }

    /// Ends the round in hand once its outcome is known. Local steps and writes to disk are not cut
    /// short: their end asks again.
    fn close(&mut self, job: &JobView, effects: &mut Vec<Effect>) {
        let (Stage::Exchanging(report) | Stage::Reported(report)) = &self.stage else {
            return;
        };
        let round = report.round;
        let merged: Vec<NodeId> = match job.record(round) {
            Some(record) => match &record.outcome {
                Some(outcome) => outcome.merged_with(self.me).collect(),
                None => return,
            },
            // Too old to be kept: what came of it can no longer be known.
            None if job.round() >= round => Vec::new(),
            // A log that is still being read again after a restart.
            None => return,
        };
        let is_held = matches!(self.stage, Stage::Reported(_));
        let is_here = |partner: &NodeId| is_held && report.received.contains(partner);
        let is_whole = merged.iter().all(is_here);
        if !is_held {
            self.waiting.clear();
            effects.push(Effect::Abandon);
        }
        if !is_whole {
            self.stage = Stage::CatchingUp(round);
            effects.push(Effect::CatchUp { round });
        } else {
            effects.push(self.settle(job, round, merged));
        }
    }

    /// Rounds that closed without this node: nothing to do, unless its model has no part in them.
    fn note_missed(&mut self, job: &JobView, effects: &mut Vec<Effect>) {
        let mut closed = job.rounds.iter().filter(|record| record.outcome.is_some());
        let Some(newest) = closed.next_back().map(|record| record.plan.round) else {
            return;
        };
        if newest <= self.settled {
            return;
        }
        if let Some(quarantine) = job.trust.last_quarantine(self.me)
            && self.settled < quarantine.until
        {
            // What it has is not to be trusted: at the end of its quarantine it starts from a peer's model.
            if newest >= quarantine.until {
                self.stage = Stage::CatchingUp(newest);
                effects.push(Effect::CatchUp { round: newest });
            }
            return;
        }
        let first_kept = job.rounds.front().map_or(newest, |record| record.plan.round);
        let is_new = self.settled == Round(0);
        let was_away = first_kept > self.settled.next();
        let lost_a_merge = job.rounds.iter().any(|record| {
            record.plan.round > self.settled
                && record.outcome.as_ref().is_some_and(|outcome| {
                    // Where all move together, whoever is left out is left behind.
                    let all_merged = record.plan.kind == RoundKind::Reduced && !outcome.merged.is_empty();
                    all_merged || outcome.has_merged(self.me)
                })
        });
        if is_new || was_away || lost_a_merge {
            self.stage = Stage::CatchingUp(newest);
            effects.push(Effect::CatchUp { round: newest });
        } else {
            effects.push(self.settle(job, newest, Vec::new()));
        }
    }

    fn start(&mut self, job: &JobView, effects: &mut Vec<Effect>) {
        let Some(plan) = job.open_round().filter(|_| !job.phase.is_over()) else {
            return;
        };
        if plan.round > self.settled && plan.participants().any(|node| node == self.me) {
            let plan = Box::new(plan.clone());
            self.stage = Stage::Training(plan.clone());
            effects.push(Effect::Train(plan));
        }
    }

    fn settle(&mut self, job: &JobView, round: Round, merged: Vec<NodeId>) -> Effect {
        debug_assert!(round > self.settled, "a round is settled once");
        self.settled = round;
        self.stage = Stage::Waiting;
        Effect::Settle {
            round,
            merged,
            snapshot: job.evaluates_after(round),
        }
    }

    fn on_trained(&mut self, loss_micro: u32, samples: u32, took: Duration) -> Vec<Effect> {
        let Stage::Training(plan) = &self.stage else {
            return Vec::new();
        };
        let plan = plan.clone();
        let report = Box::new(RoundReport {
            job: plan.job,
            round: plan.round,
            outcome: NodeOutcome {
                node: self.me,
                loss_micro,
                samples,
                sent: ByteSize(0),
                received: ByteSize(0),
            },
            received: Vec::new(),
            training_ms: millis(took),
            exchange_ms: 0,
            links: Vec::new(),
        });
        self.waiting = plan.partners_of(self.me).collect();
        if self.waiting.is_empty() {
            return self.hold(report);
        }
        self.stage = Stage::Exchanging(report);
        vec![Effect::Exchange(plan)]
    }

    fn on_exchanged(&mut self, partner: NodeId, exchanged: Exchanged) -> Vec<Effect> {
        let Stage::Exchanging(report) = &mut self.stage else {
            // Abandoned just before it ended.
            return Vec::new();
        };
        let Some(place) = self.waiting.iter().position(|waiting| *waiting == partner) else {
            return Vec::new();
        };
        self.waiting.swap_remove(place);
        if exchanged.received {
            report.received.push(partner);
        }
        report.exchange_ms = report.exchange_ms.max(millis(exchanged.took));
        let NodeOutcome { sent, received, .. } = &mut report.outcome;
        sent.0 = sent.0.saturating_add(exchanged.sent_bytes);
        received.0 = received.0.saturating_add(exchanged.received_bytes);
        if !self.waiting.is_empty() {
            return Vec::new();
        }
        let report = report.clone();
        self.hold(report)
    }

    fn hold(&mut self, report: Box<RoundReport>) -> Vec<Effect> {
        self.stage = Stage::Holding(report.clone());
        vec![Effect::Hold(report)]
    }

    fn on_held(&mut self, kept: bool) -> Vec<Effect> {
        let Stage::Holding(report) = &self.stage else {
            return Vec::new();
        };
        let mut report = report.clone();
        if !kept {
            report.received.clear();
        }
        self.stage = Stage::Reported(report.clone());
        vec![Effect::Report(report)]
    }
}

/// Saturates after 49 days.
fn millis(took: Duration) -> u32 {
    u32::try_from(took.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobfile::defaults;
    use lapwing_base::{Algorithm, JobId, JobSpec, Pair, Refusal, RoundOutcome, RoundRecord};

    const ME: NodeId = NodeId(1);
    const PARTNER: NodeId = NodeId(2);

    #[test]
    fn a_round_goes_from_training_to_a_merge_that_the_log_decides() {
        let mut core = RoundCore::new(ME, Round(0));
        let mut job = job();
        plan(&mut job, 1);
        assert!(matches!(
            core.handle(Input::Applied(&job))[..],
            [Effect::Train(_)]
        ));
        assert!(matches!(core.handle(trained())[..], [Effect::Exchange(_)]));
        assert!(matches!(core.handle(exchanged(true))[..], [Effect::Hold(_)]));
        let [Effect::Report(report)] = &core.handle(Input::Held { kept: true })[..] else {
            panic!("no report")
        };
        assert_eq!(report.received, [PARTNER]);
        assert_eq!(
            core.handle(Input::Applied(&job)),
            [],
            "an open round is waited for"
        );
        close(&mut job, true);
        let settle = Effect::Settle {
            round: Round(1),
            merged: vec![PARTNER],
            snapshot: false,
        };
        assert_eq!(core.handle(Input::Applied(&job)), [settle]);
        assert_eq!(core.handle(Input::Applied(&job)), [], "a round is settled once");
    }

    #[test]
    fn a_node_on_a_ring_reports_once_both_exchanges_have_ended_and_merges_with_whom_the_log_names() {
        const OTHER: NodeId = NodeId(3);
        let mut core = RoundCore::new(ME, Round(0));
        let mut job = job();
        plan(&mut job, 1);
        let record = &mut job.rounds[0];
        record.plan.pairs.extend(Pair::new(ME, OTHER));
        record.plan.alone.clear();
        core.handle(Input::Applied(&job));
        core.handle(trained());
        assert_eq!(core.handle(exchanged(true)), []);
        assert_eq!(core.handle(exchanged(true)), [], "one partner counts once");
        let ended = Exchanged {
            received: true,
            ..Exchanged::default()
        };
        assert!(matches!(
            core.handle(Input::Exchanged(OTHER, ended))[..],
            [Effect::Hold(_)]
        ));
        let [Effect::Report(report)] = &core.handle(Input::Held { kept: true })[..] else {
            panic!("no report")
        };
        assert_eq!(report.received, [PARTNER, OTHER]);
        close(&mut job, true);
        job.rounds[0].outcome.as_mut().unwrap().merged.truncate(1);
        let settle = Effect::Settle {
            round: Round(1),
            merged: vec![PARTNER],
            snapshot: false,
        };
        assert_eq!(core.handle(Input::Applied(&job)), [settle]);
    }

    #[test]
    fn values_that_the_disk_did_not_take_are_not_reported_as_received() {
        let mut core = RoundCore::new(ME, Round(0));
        let mut job = job();
        plan(&mut job, 1);
        core.handle(Input::Applied(&job));
        core.handle(trained());
        core.handle(exchanged(true));
        let [Effect::Report(report)] = &core.handle(Input::Held { kept: false })[..] else {
            panic!("no report")
        };
        assert_eq!(report.received, []);
    }

    #[test]
    fn what_the_log_does_not_name_is_dropped() {
        let mut core = reported(true);
        let mut job = job();
        plan(&mut job, 1);
        close(&mut job, false);
        let settle = Effect::Settle {
            round: Round(1),
            merged: Vec::new(),
            snapshot: false,
        };
        assert_eq!(core.handle(Input::Applied(&job)), [settle]);
    }

    #[test]
    fn the_next_plan_starts_as_soon_as_the_outcome_is_applied() {
        let mut core = reported(true);
        let mut job = job();
        plan(&mut job, 1);
        close(&mut job, true);
        plan(&mut job, 2);
        let [Effect::Settle { merged, .. }, Effect::Train(_)] = &core.handle(Input::Applied(&job))[..] else {
            panic!("no merge")
        };
        assert_eq!(merged, &[PARTNER]);
    }

    #[test]
    fn an_exchange_is_abandoned_when_its_round_closes() {
        let mut core = RoundCore::new(ME, Round(0));
        let mut job = job();
        plan(&mut job, 1);
        core.handle(Input::Applied(&job));
        core.handle(trained());
        close(&mut job, false);
        assert!(matches!(
            core.handle(Input::Applied(&job))[..],
            [Effect::Abandon, Effect::Settle { .. }]
        ));
        assert_eq!(
            core.handle(exchanged(true)),
            [],
            "a late end of it changes nothing"
        );
    }

    #[test]
    fn training_is_not_cut_short_by_a_close_and_is_kept() {
        let mut core = RoundCore::new(ME, Round(0));
        let mut job = job();
        plan(&mut job, 1);
        core.handle(Input::Applied(&job));
        close(&mut job, false);
        assert_eq!(core.handle(Input::Applied(&job)), []);
        core.handle(trained());
        assert!(matches!(
            core.handle(Input::Applied(&job))[..],
            [Effect::Abandon, Effect::Settle { .. }]
        ));
    }

    #[test]
    fn a_node_without_a_partner_trains_and_reports() {
        let mut core = RoundCore::new(NodeId(3), Round(0));
        let mut job = job();
        plan(&mut job, 1);
        assert!(matches!(
            core.handle(Input::Applied(&job))[..],
            [Effect::Train(_)]
        ));
        assert!(matches!(core.handle(trained())[..], [Effect::Hold(_)]));
    }

    #[test]
    fn a_node_that_no_plan_names_waits() {
        let mut core = RoundCore::new(NodeId(9), Round(0));
        let mut job = job();
        plan(&mut job, 1);
        assert_eq!(core.handle(Input::Applied(&job)), []);
    }

    #[test]
    fn a_merge_that_was_held_on_disk_survives_a_restart() {
        let mut job = job();
        plan(&mut job, 1);
        close(&mut job, true);
        let mut core = RoundCore::resume(ME, Round(0), held(true));
        let settle = Effect::Settle {
            round: Round(1),
            merged: vec![PARTNER],
            snapshot: false,
        };
        assert_eq!(core.handle(Input::Applied(&job)), [settle]);
    }

    #[test]
    fn a_merge_whose_values_were_lost_makes_the_node_catch_up() {
        let mut job = job();
        for round in 1..=3 {
            plan(&mut job, round);
            close(&mut job, round == 3);
        }
        let mut core = RoundCore::new(ME, Round(1));
        assert_eq!(
            core.handle(Input::Applied(&job)),
            [Effect::CatchUp { round: Round(3) }]
        );
        assert_eq!(core.handle(Input::Applied(&job)), [], "it is asked once");
        core.handle(Input::CaughtUp);
        assert_eq!(core.settled(), Round(3));
    }

    #[test]
    fn rounds_that_closed_without_the_node_are_passed_over() {
        let mut job = job();
        for round in 1..=3 {
            plan(&mut job, round);
            close(&mut job, false);
        }
        let mut core = RoundCore::new(ME, Round(1));
        let settle = Effect::Settle {
            round: Round(3),
            merged: Vec::new(),
            snapshot: false,
        };
        assert_eq!(core.handle(Input::Applied(&job)), [settle]);
    }

    #[test]
    fn a_node_in_quarantine_waits_and_then_takes_a_peers_model() {
        let mut job = job();
        let refuse = |job: &mut JobView, by: u64| {
            let round = job.round();
            let refusal = Refusal {
                round,
                of: ME,
                by: NodeId(by),
                why: Garbage::TooLarge,
            };
            job.refuse(refusal);
        };
        let mut core = RoundCore::new(ME, Round(0));
        for (round, by) in [(1, 2), (2, 3)] {
            plan(&mut job, round);
            job.rounds
                .back_mut()
                .unwrap()
                .plan
                .alone
                .extend([4, 5].map(NodeId));
            refuse(&mut job, by);
            let RoundRecord { plan, .. } = job.rounds.back().unwrap();
            let outcome = RoundOutcome {
                job: job.id,
                round: plan.round,
                merged: Vec::new(),
                nodes: Vec::new(),
                took_ms: 1,
            };
            core.handle(Input::Applied(&job));
            core.handle(trained());
            core.handle(exchanged(true));
            core.handle(Input::Held { kept: true });
            job.close(outcome);
            core.handle(Input::Applied(&job));
        }
        let until = job.trust.quarantine(ME, Round(3)).unwrap().until;
        for round in 3..=until.0 {
            assert_eq!(core.handle(Input::Applied(&job)), []);
            plan(&mut job, round);
            close(&mut job, false);
        }
        assert_eq!(
            core.handle(Input::Applied(&job)),
            [Effect::CatchUp { round: until }]
        );
        core.handle(Input::CaughtUp);
        plan(&mut job, until.0 + 1);
        assert!(matches!(
            core.handle(Input::Applied(&job))[..],
            [Effect::Train(_)]
        ));
    }

    #[test]
    fn a_late_joiner_takes_the_current_model() {
        let mut job = job();
        plan(&mut job, 1);
        close(&mut job, false);
        plan(&mut job, 2);
        let mut core = RoundCore::new(NodeId(7), Round(0));
        assert_eq!(
            core.handle(Input::Applied(&job)),
            [Effect::CatchUp { round: Round(1) }]
        );
    }

    fn reported(received: bool) -> RoundCore {
        RoundCore::resume(ME, Round(0), held(received))
    }

    fn held(received: bool) -> RoundReport {
        RoundReport {
            job: JobId(5),
            round: Round(1),
            outcome: NodeOutcome {
                node: ME,
                loss_micro: 1,
                samples: 1,
                sent: ByteSize(0),
                received: ByteSize(0),
            },
            received: received.then_some(PARTNER).into_iter().collect(),
            training_ms: 0,
            exchange_ms: 0,
            links: Vec::new(),
        }
    }

    fn trained() -> Input<'static> {
        Input::Trained {
            loss_micro: 5,
            samples: 10,
            took: Duration::from_millis(3),
        }
    }

    fn exchanged(received: bool) -> Input<'static> {
        Input::Exchanged(
            PARTNER,
            Exchanged {
                received,
                ..Exchanged::default()
            },
        )
    }

    #[test]
    fn who_was_left_out_of_a_mean_of_all_takes_the_model_from_a_peer_and_of_a_pair_it_does_not() {
        for (kind, is_behind) in [(RoundKind::Reduced, true), (RoundKind::Sparse, false)] {
            let mut core = RoundCore::new(ME, Round(1));
            let mut job = job();
            plan(&mut job, 2);
            let record = &mut job.rounds[0];
            record.plan.kind = kind;
            record.plan.pairs = Pair::new(PARTNER, NodeId(3)).into_iter().collect();
            record.plan.alone.clear();
            close(&mut job, true);
            let effects = core.handle(Input::Applied(&job));
            let catches_up = matches!(effects[..], [Effect::CatchUp { round: Round(2) }]);
            assert_eq!(catches_up, is_behind, "{kind:?}: {effects:?}");
        }
    }

    fn job() -> JobView {
        JobView::new(
            JobId(5),
            JobSpec {
                rounds: 100,
                local_steps: 1,
                lr_micro: 1,
                batch: 1,
                evaluate_every: 0,
                ..defaults(Algorithm::Default)
            },
        )
    }

    fn plan(job: &mut JobView, round: u64) {
        let plan = RoundPlan {
            job: job.id,
            round: Round(round),
            kind: RoundKind::Sparse,
            seed: [0; 32],
            pairs: Pair::new(ME, PARTNER).into_iter().collect(),
            alone: vec![NodeId(3)],
            compression: 25,
            local_steps: 1,
            lr_micro: 1,
            deadline_ms: 1000,
        };
        job.rounds.push_back(RoundRecord { plan, outcome: None });
    }

    fn close(job: &mut JobView, merged: bool) {
        let record = job.rounds.back_mut().unwrap();
        let merged = if merged {
            record.plan.pairs.clone()
        } else {
            Vec::new()
        };
        record.outcome = Some(RoundOutcome {
            job: JobId(5),
            round: record.plan.round,
            merged,
            nodes: Vec::new(),
            took_ms: 1,
        });
    }
}
