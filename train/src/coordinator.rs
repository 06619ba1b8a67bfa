//! The leader's side of rounds: from the members' reports to the next log entry.
//!
//! Pure: it reads no clock, proposes nothing itself and keeps nothing that must survive. Only the node that leads
//! feeds it. Everything that matters is in the log, and nodes send their reports again until the log shows that
//! they arrived, so a new leader starts from an empty [`Coordinator`] and loses no round. How partners are chosen
//! is `planner`'s.

use crate::paces::Paces;
use crate::planner::{Knobs, PlanInput, is_dense_next, plan_round};
use lapwing_base::{
    Bandwidth, Bandwidths, Evaluation, JobId, JobPhase, JobView, LinkSpeed, Manifest, MemberState, NodeId,
    Pair, Ppm, Refusal, Report, Roster, Round, RoundKind, RoundOutcome, RoundPlan, RoundRecord, RoundReport,
};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Turns reports and applied state into decisions, while this node leads.
#[derive(Debug)]
pub struct Coordinator {
    config: CoordinatorConfig,
    /// The round that was open in the newest state, or the last one.
    round: Option<SeenRound>,
    /// The newest report of each node; never of a round that is over.
    reports: BTreeMap<NodeId, Received>,
    /// Smoothed rates that the log does not have yet.
    speeds: BTreeMap<(NodeId, NodeId), Bandwidth>,
    /// The round whose speeds were proposed last: at most once a round.
    speeds_told: Option<(JobId, Round)>,
    evaluating: Option<SeenEvaluation>,
    /// An evaluation that arrived and is not in the log yet.
    evaluation: Option<Evaluated>,
    /// When the manifest of this job was first seen.
    manifest: Option<(JobId, Instant)>,
    /// What each node said that it refused last; of a round that is over nothing is used.
    refused: BTreeMap<NodeId, (JobId, Vec<Refusal>)>,
    /// How long local steps took in the rounds of this job that this leader closed.
    paces: (Option<JobId>, Paces),
    /// Who said that it holds the consensus model, and which model of which job.
    holding: BTreeMap<NodeId, (JobId, [u8; 32])>,
    /// What was decided within the last `retry_after`.
    issued: Vec<(Issued, Instant)>,
    wake_at: Option<Instant>,
    dropped: u64,
}

/// The committed state that a leader decides on.
#[derive(Clone, Copy, Debug)]
pub struct Committed<'a> {
    /// Who is a member.
    pub roster: &'a Roster,
    /// The job that runs, if any.
    pub job: Option<&'a JobView>,
    /// What is known of the links.
    pub bandwidths: &'a Bandwidths,
}

/// What should be proposed to the log next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// The next round.
    Plan(RoundPlan),
    /// How the open round ended.
    Close(RoundOutcome),
    /// What was refused in the open round; before its `Close`, with which it counts.
    RecordRefusals {
        /// The job.
        job: JobId,
        /// Between partners of that round.
        refusals: Vec<Refusal>,
    },
    /// Which members take fewer local steps from the next round on; before its `Plan`.
    SetPaces {
        /// The job.
        job: JobId,
        /// Who, and how many.
        steps: BTreeMap<NodeId, u32>,
    },
    /// Links that changed; before the `Close` of the round that measured them, so that the next plan knows.
    Speeds(Vec<LinkSpeed>),
    /// A member is to average and evaluate the models after a round.
    AssignEvaluation {
        /// The job.
        job: JobId,
        /// After which closed round.
        round: Round,
        /// The member.
        evaluator: NodeId,
    },
    /// What it found.
    RecordEvaluation {
        /// The job.
        job: JobId,
        /// The finding.
        evaluation: Evaluation,
        /// The consensus model, when the job's last round was evaluated.
        manifest: Option<Manifest>,
    },
    /// Members that hold the consensus model, beyond those in the log.
    RecordHolders {
        /// The job.
        job: JobId,
        /// Who, sorted.
        holders: Vec<NodeId>,
    },
    /// The consensus model is handed out.
    Finish {
        /// The job.
        job: JobId,
    },
}

/// The patience of a leader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CoordinatorConfig {
    /// What the planner by thresholds goes by, in a job that wants it.
    pub knobs: Knobs,
    /// After this time a decision that the state does not show is made again. Default 1 s: longer than a commit
    /// takes on a busy machine, short beside a round's deadline.
    pub retry_after: Duration,
    /// Deadline of a round while none of its kind has been measured. Default 30 s: covers a cold start on a
    /// machine with fifty busy processes, and a dead partner costs it once.
    pub deadline_initial: Duration,
    /// Shortest deadline. Default 3 s: below this a pause of a loaded machine looks like a death.
    pub deadline_min: Duration,
    /// Longest deadline. Default 60 s: what a dead partner may cost at most.
    pub deadline_max: Duration,
    /// How long an evaluator is waited for. Default 30 s: it fetches a model from each member, which takes a
    /// dense round's time and a little.
    pub evaluation_timeout: Duration,
    /// How long members may take to fetch the consensus model before the job ends without them. Default 60 s.
    pub holding_timeout: Duration,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            knobs: Knobs::default(),
            retry_after: Duration::from_secs(1),
            deadline_initial: Duration::from_secs(30),
            deadline_min: Duration::from_secs(3),
            deadline_max: Duration::from_secs(60),
            evaluation_timeout: Duration::from_secs(30),
            holding_timeout: Duration::from_secs(60),
        }
    }
}

/// A round, and when this leader first saw it open.
#[derive(Clone, Copy, Debug)]
struct SeenRound {
    job: JobId,
    round: Round,
    is_open: bool,
    seen_at: Instant,
}

/// A report, and whether its measured links were taken into account: it comes again and again.
#[derive(Debug)]
struct Received {
    report: RoundReport,
    is_measured: bool,
}

/// An evaluation that the log has assigned, and when this leader first saw that.
#[derive(Clone, Copy, Debug)]
struct SeenEvaluation {
    job: JobId,
    round: Round,
    evaluator: NodeId,
    seen_at: Instant,
}

#[derive(Clone, Debug)]
struct Evaluated {
    job: JobId,
    evaluation: Evaluation,
    hash: [u8; 32],
    parameters: u64,
}

/// Names a decision, so that it is not made twice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Issued {
    Plan(JobId, Round),
    Close(JobId, Round),
    Assign(JobId, Round, NodeId),
    Evaluation(JobId, Round),
    Holders(JobId, usize),
    Refusals(JobId, Round),
    Paces(JobId, Round),
    Finish(JobId),
}

/// Most nodes whose reports are kept: as many as a cluster may have members.
const REPORTS_MAX: usize = 1024;

/// Partners of one node in a round: of a server, everybody.
const PARTNERS_MAX: usize = REPORTS_MAX;

/// Most links taken from one report: a node measures its partner's, and by probes a few more.
const LINKS_REPORTED_MAX: usize = 64;

/// Most links in one decision, which is one log entry of about 40 KB.
const LINKS_DECIDED_MAX: usize = 4096;

/// Most refusals in one decision: as many as the log takes.
const REFUSALS_DECIDED_MAX: usize = 2048;

impl Coordinator {
    /// A leader that knows nothing yet.
    pub fn new(config: CoordinatorConfig) -> Self {
        Self {
            config,
            round: None,
            reports: BTreeMap::new(),
            speeds: BTreeMap::new(),
            speeds_told: None,
            evaluating: None,
            evaluation: None,
            manifest: None,
            refused: BTreeMap::new(),
            paces: (None, Paces::default()),
            holding: BTreeMap::new(),
            issued: Vec::new(),
            wake_at: None,
            dropped: 0,
        }
    }

    /// Forgets everything: this node leads no longer. The count of dropped reports stays.
    pub fn reset(&mut self) {
        let dropped = self.dropped;
        *self = Self::new(self.config);
        self.dropped = dropped;
    }

    /// Takes a report. The caller has checked that its sender is who the report says.
    ///
    /// A report may come any number of times. One about a round that is over is dropped; one about a round that
    /// this node has not applied yet waits. Afterwards, [`poll`](Self::poll).
    pub fn on_report(&mut self, report: Report, _now: Instant) {
        match report {
            Report::Round(report) => self.on_round_report(report),
            Report::Evaluation {
                job,
                evaluation,
                hash,
                parameters,
            } => {
                // Whether it is the one that was asked for, `poll` knows.
                self.evaluation = Some(Evaluated {
                    job,
                    evaluation,
                    hash,
                    parameters,
                });
            }
            Report::Refused {
                job,
                round,
                node,
                partners,
            } => {
                let refusals = partners.into_iter().take(PARTNERS_MAX);
                let refusals = refusals.map(|(of, why)| Refusal {
                    round,
                    of,
                    by: node,
                    why,
                });
                if self.refused.len() < REPORTS_MAX || self.refused.contains_key(&node) {
                    self.refused.insert(node, (job, refusals.collect()));
                } else {
                    self.dropped += 1;
                }
            }
            Report::Holding { job, node, hash } => {
                if self.holding.len() < REPORTS_MAX || self.holding.contains_key(&node) {
                    self.holding.insert(node, (job, hash));
                } else {
                    self.dropped += 1;
                }
            }
        }
    }

    fn on_round_report(&mut self, mut report: RoundReport) {
        // No plan has more, so whoever names more is not heard out.
        report.received.truncate(PARTNERS_MAX);
        let about = (report.job, report.round);
        let node = report.outcome.node;
        let is_over = |seen: SeenRound| match about.cmp(&(seen.job, seen.round)) {
            Ordering::Less => true,
            Ordering::Equal => !seen.is_open,
            Ordering::Greater => false,
        };
        if self.round.is_some_and(is_over) {
            self.dropped += 1;
            return;
        }
        let has_room = self.reports.len() < REPORTS_MAX;
        match self.reports.get_mut(&node) {
            Some(known) => match about.cmp(&(known.report.job, known.report.round)) {
                Ordering::Less => self.dropped += 1,
                // What was on disk stays there, so receipt is never taken back.
                Ordering::Equal => {
                    let received = &mut known.report.received;
                    let new: Vec<NodeId> = report
                        .received
                        .into_iter()
                        .filter(|node| !received.contains(node))
                        .collect();
                    received.extend(new);
                    received.truncate(PARTNERS_MAX);
                }
                Ordering::Greater => {
                    *known = Received {
                        report,
                        is_measured: false,
                    }
                }
            },
            None if has_room => {
                self.reports.insert(
                    node,
                    Received {
                        report,
                        is_measured: false,
                    },
                );
            }
            None => self.dropped += 1,
        }
    }

    /// Takes note of newly applied state, or of leadership just gained. Afterwards, [`poll`](Self::poll).
    pub fn on_committed(&mut self, committed: &Committed<'_>, now: Instant) {
        let job = committed.job.filter(|job| !job.phase.is_over());
        self.issued.retain(|(_, at)| now < *at + self.config.retry_after);
        let Some(job) = job else {
            self.reports.clear();
            self.refused.clear();
            self.evaluating = None;
            return;
        };
        let known = self
            .round
            .filter(|seen| (seen.job, seen.round) == (job.id, job.round()));
        self.round = Some(SeenRound {
            job: job.id,
            round: job.round(),
            is_open: job.open_round().is_some(),
            seen_at: known.map_or(now, |seen| seen.seen_at),
        });
        if self.paces.0 != Some(job.id) {
            self.paces = (Some(job.id), Paces::default());
        }
        self.sift_reports(committed, job);
        let assigned = job
            .evaluating
            .map(|(round, evaluator)| (job.id, round, evaluator));
        if assigned != self.evaluating.map(|seen| (seen.job, seen.round, seen.evaluator)) {
            self.evaluating = assigned.map(|(job, round, evaluator)| SeenEvaluation {
                job,
                round,
                evaluator,
                seen_at: now,
            });
        }
        if job.manifest.is_some() && self.manifest.is_none_or(|(id, _)| id != job.id) {
            self.manifest = Some((job.id, now));
        }
        // What the log has by now, within a tenth, need not be told.
        let members = &committed.roster.members;
        self.speeds.retain(|(from, to), speed| {
            let are_members = members.contains_key(from) && members.contains_key(to);
            are_members && has_changed(committed.bandwidths.get(*from, *to), *speed)
        });
    }

    /// Keeps the reports about the open round and later ones, and takes their measurements in, once each.
    fn sift_reports(&mut self, committed: &Committed<'_>, job: &JobView) {
        let open = job.open_round();
        let newest = (job.id, job.round());
        let participants: BTreeSet<NodeId> = open.into_iter().flat_map(|plan| plan.participants()).collect();
        let mut foreign = 0;
        self.reports.retain(|node, received| {
            match (received.report.job, received.report.round).cmp(&newest) {
                Ordering::Less => false,
                Ordering::Equal => {
                    let keeps = participants.contains(node);
                    foreign += u64::from(open.is_some() && !keeps);
                    keeps
                }
                Ordering::Greater => true,
            }
        });
        self.dropped += foreign;
        let mut measured: Vec<(LinkSpeed, bool)> = Vec::new();
        for (node, received) in &mut self.reports {
            if received.is_measured || !participants.contains(node) {
                continue;
            }
            received.is_measured = true;
            let links = received.report.links.iter().take(LINKS_REPORTED_MAX);
            let own = links.copied().filter(|link| {
                let is_own = (link.from == *node) != (link.to == *node);
                let other = if link.from == *node { link.to } else { link.from };
                is_own && link.speed.kbit_s > 0 && committed.roster.members.contains_key(&other)
            });
            // A sender's word is the estimate of many transfers; a receiver's is of one.
            measured.extend(own.map(|link| (link, link.from == *node)));
        }
        for (link, is_estimate) in measured {
            let key = (link.from, link.to);
            if is_estimate {
                self.speeds.insert(key, link.speed);
                continue;
            }
            let known = self
                .speeds
                .get(&key)
                .copied()
                .or_else(|| committed.bandwidths.get(link.from, link.to));
            self.speeds.insert(key, smoothed(known, link.speed));
        }
    }

    /// The next thing to propose; call until `None`. Each decision comes once, and again after `retry_after` when
    /// the state does not show it.
    pub fn poll(&mut self, committed: &Committed<'_>, now: Instant) -> Option<Decision> {
        self.on_committed(committed, now);
        self.wake_at = None;
        let job = committed.job.filter(|job| !job.phase.is_over())?;
        self.record_evaluation(committed, job, now)
            .or_else(|| self.record_holders(committed, job, now))
            .or_else(|| self.finish(committed, job, now))
            .or_else(|| self.close(committed, job, now))
            .or_else(|| self.assign_evaluation(committed, job, now))
            .or_else(|| self.plan(committed, job, now))
    }

    /// When to [`poll`](Self::poll) again at the latest, as of the last one that returned `None`.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.wake_at
    }

    /// Reports that were stale, or of nodes that take no part.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn close(&mut self, committed: &Committed<'_>, job: &JobView, now: Instant) -> Option<Decision> {
        let plan = job.open_round()?;
        let seen_at = self.round?.seen_at;
        let about = (job.id, plan.round);
        let reports: BTreeMap<NodeId, &RoundReport> = self
            .reports
            .iter()
            .filter(|(_, received)| (received.report.job, received.report.round) == about)
            .map(|(node, received)| (*node, &received.report))
            .collect();
        let is_complete = plan
            .participants()
            .all(|node| reports.contains_key(&node) || !is_active(committed.roster, node));
        let deadline_at = seen_at + plan.deadline();
        if !is_complete && now < deadline_at {
            self.wake(deadline_at);
            return None;
        }
        let has_received = |node, from| {
            reports
                .get(&node)
                .is_some_and(|report| report.received.contains(&from))
        };
        let merged = plan.pairs.iter().copied().filter(|pair| {
            let [a, b] = pair.nodes();
            has_received(a, b) && has_received(b, a)
        });
        let mut merged: Vec<Pair> = merged.collect();
        if plan.kind == RoundKind::Reduced && merged.len() < plan.pairs.len() {
            // What some have and others do not is a mean of nobody.
            merged.clear();
        }
        let trained: Vec<(NodeId, Duration, u32)> = reports
            .values()
            .filter(|report| report.outcome.samples > 0)
            .map(|report| {
                let took = Duration::from_millis(report.training_ms.into());
                let node = report.outcome.node;
                (node, took, job.steps_of(node, plan))
            })
            .collect();
        let outcome = RoundOutcome {
            job: job.id,
            round: plan.round,
            merged,
            nodes: reports.values().map(|report| report.outcome.clone()).collect(),
            took_ms: u32::try_from((now - seen_at).as_millis()).unwrap_or(u32::MAX),
        };
        if let Some(speeds) = self.tell_speeds(about) {
            return Some(speeds);
        }
        if let Some(refusals) = self.record_refusals(job, plan, now) {
            return Some(refusals);
        }
        if !self.issue(Issued::Close(job.id, plan.round), now) {
            return None;
        }
        for (node, took, steps) in trained {
            self.paces.1.note(node, took, steps);
        }
        Some(Decision::Close(outcome))
    }

    /// What was refused in the open round and the log does not have: only what partners of it say of each other.
    fn record_refusals(&mut self, job: &JobView, plan: &RoundPlan, now: Instant) -> Option<Decision> {
        self.refused
            .retain(|_, (id, refusals)| *id == job.id && refusals.iter().any(|it| it.round >= plan.round));
        let is_new = |refusal: &&Refusal| {
            let is_planned = |pair| plan.pairs.binary_search(&pair).is_ok();
            refusal.round == plan.round && refusal.pair().is_some_and(is_planned) && !job.trust.knows(refusal)
        };
        let reported = self.refused.values().flat_map(|(_, refusals)| refusals);
        let refusals: Vec<Refusal> = reported
            .filter(is_new)
            .take(REFUSALS_DECIDED_MAX)
            .copied()
            .collect();
        let issued = Issued::Refusals(job.id, plan.round);
        (!refusals.is_empty() && self.issue(issued, now)).then_some(Decision::RecordRefusals {
            job: job.id,
            refusals,
        })
    }

    fn tell_speeds(&mut self, about: (JobId, Round)) -> Option<Decision> {
        if self.speeds.is_empty() || self.speeds_told == Some(about) {
            return None;
        }
        self.speeds_told = Some(about);
        let changed = self.speeds.iter().take(LINKS_DECIDED_MAX);
        Some(Decision::Speeds(
            changed
                .map(|(&(from, to), &speed)| LinkSpeed { from, to, speed })
                .collect(),
        ))
    }

    fn plan(&mut self, committed: &Committed<'_>, job: &JobView, now: Instant) -> Option<Decision> {
        if job.phase != JobPhase::Running || job.open_round().is_some() || job.round() >= job.last_round() {
            return None;
        }
        let mut members = active_members(committed.roster);
        // Most members are never in quarantine, but those that are not may be away; then it is better to go on with those
        // that are there.
        let in_quarantine = |member: &NodeId| job.trust.quarantine(*member, job.round().next()).is_some();
        if !members.iter().all(in_quarantine) {
            members.retain(|member| !in_quarantine(member));
        }
        let round = job.round().next();
        let steps = self.paces.1.decide(&members, job.spec.local_steps, &job.paces);
        if steps != job.paces && self.issue(Issued::Paces(job.id, round), now) {
            return Some(Decision::SetPaces { job: job.id, steps });
        }
        if members.is_empty() || !self.issue(Issued::Plan(job.id, round), now) {
            return None;
        }
        Some(Decision::Plan(plan_round(&PlanInput {
            job,
            members: &members,
            bandwidths: committed.bandwidths,
            deadline: deadline(&self.config, job, committed.roster),
            knobs: self.config.knobs,
        })))
    }

    fn assign_evaluation(
        &mut self,
        committed: &Committed<'_>,
        job: &JobView,
        now: Instant,
    ) -> Option<Decision> {
        let round = job.round();
        if job.open_round().is_some() || round == Round(0) || !job.evaluates_after(round) {
            return None;
        }
        let is_last = job.phase == JobPhase::Finishing;
        let is_recorded = job
            .evaluations
            .back()
            .is_some_and(|evaluation| evaluation.round >= round);
        if is_recorded || job.manifest.is_some() {
            return None;
        }
        let assigned = self.evaluating;
        if let Some(seen) = assigned {
            // One in the middle is made once, and never pushed aside by the next: a slow one would never end.
            let busy_until = seen.seen_at + self.config.evaluation_timeout;
            let is_busy = now < busy_until && is_active(committed.roster, seen.evaluator);
            if is_busy && (seen.round == round || !is_last) {
                self.wake(busy_until);
                return None;
            }
            if seen.round == round && !is_last {
                return None;
            }
        }
        let failed = assigned
            .filter(|seen| seen.round == round)
            .map(|seen| seen.evaluator);
        let evaluator = evaluator(committed.roster, job, failed)?;
        if !self.issue(Issued::Assign(job.id, round, evaluator), now) {
            return None;
        }
        if let Some(seen) = self.evaluating.as_mut().filter(|_| failed == Some(evaluator)) {
            // Nobody else is there to ask; the state will look the same.
            seen.seen_at = now;
        }
        Some(Decision::AssignEvaluation {
            job: job.id,
            round,
            evaluator,
        })
    }

    fn record_evaluation(
        &mut self,
        committed: &Committed<'_>,
        job: &JobView,
        now: Instant,
    ) -> Option<Decision> {
        let evaluated = self.evaluation.as_ref()?;
        let recorded = job
            .evaluations
            .back()
            .map_or(Round(0), |evaluation| evaluation.round);
        if evaluated.job == job.id && evaluated.evaluation.round <= recorded {
            self.evaluation = None;
            return None;
        }
        let assigned = job
            .evaluating
            .filter(|(round, _)| (job.id, *round) == (evaluated.job, evaluated.evaluation.round));
        let is_possible = is_possible(&evaluated.evaluation, committed.roster);
        let Some((round, evaluator)) = assigned.filter(|_| is_possible) else {
            self.evaluation = None;
            self.dropped += 1;
            return None;
        };
        let is_last = job.phase == JobPhase::Finishing && round == job.round();
        let manifest = is_last.then(|| Manifest {
            hash: evaluated.hash,
            parameters: evaluated.parameters,
            holders: vec![evaluator],
        });
        let evaluation = evaluated.evaluation.clone();
        self.issue(Issued::Evaluation(job.id, round), now)
            .then_some(Decision::RecordEvaluation {
                job: job.id,
                evaluation,
                manifest,
            })
    }

    fn record_holders(&mut self, committed: &Committed<'_>, job: &JobView, now: Instant) -> Option<Decision> {
        let manifest = job.manifest.as_ref()?;
        let known: BTreeSet<NodeId> = manifest.holders.iter().copied().collect();
        let before = self.holding.len();
        self.holding.retain(|node, (id, hash)| {
            *id == job.id && *hash == manifest.hash && committed.roster.members.contains_key(node)
        });
        self.dropped += (before - self.holding.len()) as u64;
        let holders: Vec<NodeId> = self
            .holding
            .keys()
            .copied()
            .filter(|node| !known.contains(node))
            .collect();
        // Named by what the log has: those that come while an entry is under way go into the next one together.
        let issued = Issued::Holders(job.id, known.len());
        (!holders.is_empty() && self.issue(issued, now))
            .then_some(Decision::RecordHolders { job: job.id, holders })
    }

    fn finish(&mut self, committed: &Committed<'_>, job: &JobView, now: Instant) -> Option<Decision> {
        let Some(manifest) = &job.manifest else {
            // A job without dense rounds that stopped at its accuracy: its last evaluation is already in the log,
            // made before anybody knew that it would be the last, so no model was kept.
            let is_evaluated = job
                .evaluations
                .back()
                .is_some_and(|evaluation| evaluation.round >= job.round());
            let is_over = job.phase == JobPhase::Finishing && is_evaluated;
            return (is_over && self.issue(Issued::Finish(job.id), now))
                .then_some(Decision::Finish { job: job.id });
        };
        let (_, seen_at) = self.manifest?;
        let until = seen_at + self.config.holding_timeout;
        // A member that never trained, since it cannot work on the job, has no use for its model either.
        let all_hold = active_members(committed.roster)
            .iter()
            .all(|member| manifest.holders.contains(member) || !has_trained(job, *member));
        if !all_hold && now < until {
            self.wake(until);
            return None;
        }
        self.issue(Issued::Finish(job.id), now)
            .then_some(Decision::Finish { job: job.id })
    }

    /// Whether this may be decided now; if not, it may once its time has passed.
    fn issue(&mut self, what: Issued, now: Instant) -> bool {
        match self.issued.iter().find(|(issued, _)| *issued == what) {
            Some((_, at)) => {
                self.wake(*at + self.config.retry_after);
                false
            }
            None => {
                self.issued.push((what, now));
                true
            }
        }
    }

    fn wake(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

fn is_active(roster: &Roster, node: NodeId) -> bool {
    roster
        .members
        .get(&node)
        .is_some_and(|member| member.state == MemberState::Active)
}

fn active_members(roster: &Roster) -> Vec<NodeId> {
    let members = roster.members.keys().copied();
    members.filter(|&member| is_active(roster, member)).collect()
}

/// What is new where it is faster, up to four times what was known, as the sender's own estimate does it; else half of it and
/// half of what was known: a link that became ten times slower is below the median after one exchange.
fn smoothed(known: Option<Bandwidth>, measured: Bandwidth) -> Bandwidth {
    match known {
        Some(known) if known > measured => Bandwidth::kbit(known.kbit_s.midpoint(measured.kbit_s)),
        Some(known) => measured.min(Bandwidth::kbit(known.kbit_s.saturating_mul(4))),
        None => measured,
    }
}

/// More than a tenth away from what the log says, or not in the log: smaller changes are noise, and no plan
/// depends on them.
fn has_changed(committed: Option<Bandwidth>, speed: Bandwidth) -> bool {
    committed.is_none_or(|known| known.kbit_s.abs_diff(speed.kbit_s) > known.kbit_s / 10)
}

/// Whether a member has trained in a round that the log still has.
fn has_trained(job: &JobView, member: NodeId) -> bool {
    let done = job.rounds.iter().filter_map(|record| record.outcome.as_ref());
    done.flat_map(|outcome| &outcome.nodes)
        .any(|done| done.node == member && done.samples > 0)
}

/// An evaluation by one of those who reported in the round, another one each time.
fn evaluator(roster: &Roster, job: &JobView, failed: Option<NodeId>) -> Option<NodeId> {
    let record = job.rounds.back()?;
    let outcome = record.outcome.as_ref()?;
    if let RoundKind::Served { server } = record.plan.kind
        && is_active(roster, server)
    {
        // Its model is everybody's.
        return Some(server);
    }
    let reporters = outcome.nodes.iter().map(|done| done.node);
    let mut candidates: Vec<NodeId> = reporters.filter(|&node| is_active(roster, node)).collect();
    // Who cannot work on the job reports too, and would be waited for in vain.
    if candidates.iter().any(|&node| has_trained(job, node)) {
        candidates.retain(|&node| has_trained(job, node));
    }
    if candidates.is_empty() {
        candidates = active_members(roster);
    }
    // What it finds is everybody's model in the end: a node that is tried again after a quarantine is not the one to ask.
    if candidates.iter().any(|&node| !job.trust.is_doubted(node)) {
        candidates.retain(|&node| !job.trust.is_doubted(node));
    }
    if let Some(failed) = failed {
        let next = candidates.iter().find(|&&candidate| candidate > failed);
        return next.or_else(|| candidates.first()).copied();
    }
    let turn = job.round().0 / u64::from(job.spec.evaluate_every.max(1));
    let place = turn.checked_rem(candidates.len() as u64)?;
    candidates.get(usize::try_from(place).ok()?).copied()
}

/// Shares are shares, members are members, and each is named once.
fn is_possible(evaluation: &Evaluation, roster: &Roster) -> bool {
    let whole = Ppm(1_000_000);
    let locals = &evaluation.local_accuracies;
    evaluation.averaged_accuracy <= whole
        && locals.is_sorted_by(|(a, _), (b, _)| a < b)
        && locals.len() <= REPORTS_MAX
        && locals
            .iter()
            .all(|(node, accuracy)| roster.members.contains_key(node) && *accuracy <= whole)
}

/// How long the next round may take, from how long the rounds of its kind took.
///
/// Four times the smoothed time of those that ended by themselves. After one that its deadline ended while an
/// active member was missing, twice that deadline: a starved machine then gets the time it needs and makes
/// progress, instead of being cut off in every round.
fn deadline(config: &CoordinatorConfig, job: &JobView, roster: &Roster) -> Duration {
    let is_dense = is_dense_next(job);
    let mut smoothed: Option<u64> = None;
    let mut last: Option<(&RoundRecord, &RoundOutcome)> = None;
    for record in job
        .rounds
        .iter()
        .filter(|record| (record.plan.kind == RoundKind::Dense) == is_dense)
    {
        let Some(outcome) = &record.outcome else { continue };
        last = Some((record, outcome));
        if !was_cut_off(record, outcome) {
            let took = u64::from(outcome.took_ms);
            smoothed = Some(match smoothed {
                None => took,
                // Up quickly, down slowly: a deadline that is too long costs only where somebody dies.
                Some(known) if took > known => known.midpoint(took),
                Some(known) => known - (known - took) / 8,
            });
        }
    }
    let measured = smoothed.map_or(config.deadline_initial, |ms| Duration::from_millis(ms * 4));
    let extended = last
        .filter(|(record, outcome)| {
            was_cut_off(record, outcome) && misses_an_active_member(record, outcome, roster)
        })
        .map(|(record, _)| record.plan.deadline() * 2);
    measured
        .max(extended.unwrap_or_default())
        .clamp(config.deadline_min, config.deadline_max.max(config.deadline_min))
}

fn was_cut_off(record: &RoundRecord, outcome: &RoundOutcome) -> bool {
    outcome.took_ms >= record.plan.deadline_ms
}

fn misses_an_active_member(record: &RoundRecord, outcome: &RoundOutcome, roster: &Roster) -> bool {
    record.plan.participants().any(|node| {
        is_active(roster, node)
            && outcome
                .nodes
                .binary_search_by_key(&node, |done| done.node)
                .is_err()
    })
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's any instant")]
mod tests {
    use super::*;
    use crate::jobfile::defaults;
    use lapwing_base::{
        Algorithm, ByteSize, ClusterId, Garbage, JobSpec, Keypair, LogIndex, Member, NodeOutcome, Role, Term,
    };
    use proptest::prelude::*;

    #[test]
    fn a_round_is_planned_closed_and_followed_by_the_next() {
        let mut story = Story::new(4);
        let plan = story.expect_plan();
        assert_eq!((plan.round, plan.pairs.len()), (Round(1), 2));
        assert_eq!(story.poll(), None);
        for node in 1..=4 {
            assert_eq!(story.poll(), None, "before the report of {node}");
            story.report(node, true);
        }
        let outcome = story.expect_close();
        assert_eq!(outcome.merged, plan.pairs);
        assert_eq!(outcome.nodes.len(), 4);
        assert_eq!(story.expect_plan().round, Round(2));
    }

    #[test]
    fn a_pair_merges_only_when_both_have_what_the_other_sent() {
        let mut story = Story::new(4);
        let plan = story.expect_plan();
        let [broken, _] = plan.pairs[0].nodes();
        for node in 1..=4 {
            story.report(node, node != broken.0);
        }
        // A failed exchange costs the merge and not the training: all four are in the outcome.
        let outcome = story.expect_close();
        assert_eq!(outcome.merged, plan.pairs[1..]);
        assert_eq!(outcome.nodes.len(), 4);
    }

    #[test]
    fn a_dead_partner_costs_its_exchange_and_a_deadline_but_not_the_round() {
        let mut story = Story::new(4);
        let plan = story.expect_plan();
        for node in 2..=4 {
            story.report(node, plan.partner_of(NodeId(node)) != Some(NodeId(1)));
        }
        assert_eq!(story.poll(), None);
        assert_eq!(
            story.coordinator.next_timeout(),
            Some(story.now + plan.deadline())
        );
        story.now += plan.deadline();
        let outcome = story.expect_close();
        assert_eq!((outcome.merged.len(), outcome.nodes.len()), (1, 3));
        assert_eq!(outcome.took_ms, plan.deadline_ms);
    }

    #[test]
    fn a_suspected_member_is_not_waited_for_and_not_planned_again() {
        let mut story = Story::new(4);
        story.expect_plan();
        for node in 2..=4 {
            story.report(node, false);
        }
        assert_eq!(story.poll(), None);
        story.set_state(1, MemberState::Suspected);
        assert_eq!(story.expect_close().nodes.len(), 3);
        let plan = story.expect_plan();
        assert!(plan.participants().all(|node| node != NodeId(1)));
        assert_eq!(plan.alone.len(), 1);
    }

    #[test]
    fn nothing_is_planned_without_an_active_member() {
        let mut story = Story::new(1);
        story.set_state(1, MemberState::Joining);
        assert_eq!(story.poll(), None);
        story.set_state(1, MemberState::Active);
        assert_eq!(story.expect_plan().alone, [NodeId(1)]);
    }

    #[test]
    fn a_decision_that_is_not_applied_is_made_again_after_a_while() {
        let mut story = Story::new(2);
        let Some(Decision::Plan(plan)) = story.poll() else {
            panic!("no plan")
        };
        assert_eq!(story.poll(), None);
        let retry_at = story.coordinator.next_timeout().unwrap();
        assert_eq!(retry_at, story.now + CoordinatorConfig::default().retry_after);
        story.now = retry_at;
        assert_eq!(story.poll(), Some(Decision::Plan(plan)));
    }

    #[test]
    fn a_new_leader_closes_the_open_round_from_the_repeated_reports() {
        let mut story = Story::new(4);
        story.expect_plan();
        story.report(1, true);
        story.report(2, true);
        story.coordinator.reset();
        assert_eq!(story.poll(), None);
        for node in 1..=4 {
            story.report(node, true);
        }
        assert_eq!(story.expect_close().merged.len(), 2);
    }

    #[test]
    fn stale_and_foreign_reports_are_dropped_and_counted() {
        let mut story = Story::new(2);
        story.expect_plan();
        let foreign = story.round_report(9, true);
        story.coordinator.on_report(Report::Round(foreign), story.now);
        assert_eq!(story.poll(), None);
        assert_eq!(story.coordinator.dropped(), 1);
        let stale = story.round_report(1, true);
        story.report(1, true);
        story.report(2, true);
        story.expect_close();
        story.expect_plan();
        story.coordinator.on_report(Report::Round(stale), story.now);
        assert_eq!(story.coordinator.dropped(), 2);
        assert_eq!(story.poll(), None);
    }

    #[test]
    fn a_report_that_is_ahead_of_the_applied_plan_waits_for_it() {
        let mut story = Story::new(2);
        let Some(Decision::Plan(plan)) = story.poll() else {
            panic!("no plan")
        };
        for node in 1..=2 {
            let mut report = story.round_report(node, true);
            report.round = plan.round;
            story.coordinator.on_report(Report::Round(report), story.now);
        }
        assert_eq!(story.poll(), None);
        story.apply(&Decision::Plan(plan));
        story.expect_close();
    }

    #[test]
    fn receipt_is_never_taken_back_by_an_older_report() {
        let mut story = Story::new(2);
        story.expect_plan();
        story.report(1, true);
        story.report(1, false);
        story.report(2, true);
        assert_eq!(story.expect_close().merged.len(), 1);
    }

    #[test]
    fn measured_links_are_told_once_a_round_before_it_closes_and_only_when_they_changed() {
        let mut story = Story::new(2);
        let told: Vec<Option<Vec<u32>>> = [8000, 8400, 4000]
            .into_iter()
            .map(|kbit| {
                story.expect_plan();
                let mut report = story.round_report(1, true);
                report.links = vec![
                    link(1, 2, kbit),
                    link(2, 1, 0),
                    link(1, 9, 5),
                    link(7, 8, 5),
                    link(1, 1, 5),
                ];
                // Told three times, taken once.
                for _ in 0..3 {
                    story
                        .coordinator
                        .on_report(Report::Round(report.clone()), story.now);
                    assert_eq!(story.poll(), None);
                }
                story.report(2, true);
                let first = story.poll().unwrap();
                story.apply(&first);
                if let Decision::Speeds(links) = first {
                    story.expect_close();
                    assert!(
                        links
                            .iter()
                            .all(|link| (link.from, link.to) == (NodeId(1), NodeId(2)))
                    );
                    Some(links.iter().map(|link| link.speed.kbit_s).collect())
                } else {
                    None
                }
            })
            .collect();
        // 8,400 is within a tenth of 8,000; a sender's estimate is taken as it is.
        assert_eq!(told, [Some(vec![8000]), None, Some(vec![4000])]);
    }

    #[test]
    fn a_node_that_several_refuse_is_left_out_of_plans_for_a_while() {
        let mut story = Story::new(6);
        let mut left_out = Vec::new();
        for _ in 0..30 {
            let plan = story.expect_plan();
            if plan.participants().all(|node| node != NodeId(1)) {
                left_out.push(plan.round.0);
            }
            let partner = plan.partner_of(NodeId(1));
            for node in plan.participants() {
                if Some(node) == partner {
                    story.refuse(node.0, plan.round, NodeId(1));
                }
                story.report(node.0, Some(node) != partner);
            }
            if partner.is_some() {
                let Some(Decision::RecordRefusals { refusals, .. }) = story.poll_applied() else {
                    panic!("what was refused is not told")
                };
                assert_eq!((refusals.len(), refusals[0].of), (1, NodeId(1)));
            }
            story.expect_close();
        }
        // Refused by two within its first rounds, then tried again and refused once more.
        let first = left_out[0];
        assert!(first <= 4, "{left_out:?}");
        assert_eq!(left_out[..10], (first..first + 10).collect::<Vec<_>>());
        assert!(left_out[10] > first + 11, "{left_out:?}");
    }

    #[test]
    fn only_partners_of_the_open_round_are_heard_about_each_other() {
        let mut story = Story::new(4);
        let plan = story.expect_plan();
        let partner = plan.partner_of(NodeId(1)).unwrap();
        let stranger = (2..=4).map(NodeId).find(|node| *node != partner).unwrap();
        // Of somebody it did not meet, of itself, and of another round.
        story.refuse(1, plan.round, stranger);
        story.refuse(2, plan.round, NodeId(2));
        story.refuse(partner.0, plan.round.next(), NodeId(1));
        for node in 1..=4 {
            story.report(node, true);
        }
        assert_eq!(story.expect_close().merged, plan.pairs);
        assert!(story.job.trust.is_empty());
    }

    #[test]
    fn deadlines_follow_the_measured_rounds() {
        let mut story = Story::new(2);
        assert_eq!(story.expect_plan().deadline(), Duration::from_secs(30));
        story.finish_round(Duration::from_secs(2));
        assert_eq!(story.expect_plan().deadline(), Duration::from_secs(8));
        story.finish_round(Duration::from_millis(100));
        assert!(story.expect_plan().deadline() < Duration::from_secs(8));
        for _ in 0..30 {
            story.finish_round(Duration::from_millis(100));
            story.expect_plan();
        }
        story.finish_round(Duration::from_millis(100));
        assert_eq!(story.expect_plan().deadline(), Duration::from_secs(3));
    }

    #[test]
    fn a_starved_machine_gets_longer_deadlines_until_it_makes_progress() {
        let mut story = Story::new(2);
        story.expect_plan();
        story.finish_round(Duration::from_millis(100));
        let mut deadlines = Vec::new();
        for _ in 0..6 {
            let plan = story.expect_plan();
            deadlines.push(plan.deadline().as_secs());
            story.now += plan.deadline();
            story.expect_close();
        }
        assert_eq!(deadlines, [3, 6, 12, 24, 48, 60]);
        // It needs 40 s: that is within reach now, and the deadline stays there.
        story.expect_plan();
        story.finish_round(Duration::from_secs(40));
        assert!(story.expect_plan().deadline() >= Duration::from_secs(40));
    }

    #[test]
    fn a_deadline_that_a_suspected_member_missed_is_not_extended() {
        let mut story = Story::new(3);
        story.expect_plan();
        story.finish_round(Duration::from_millis(100));
        let plan = story.expect_plan();
        story.report(1, false);
        story.report(2, false);
        story.now += plan.deadline();
        story.expect_close();
        story.set_state(3, MemberState::Suspected);
        assert_eq!(story.expect_plan().deadline(), Duration::from_secs(3));
    }

    #[test]
    fn an_evaluation_in_the_middle_does_not_hold_up_the_next_round() {
        let mut story = Story::new(2);
        story.job.spec.evaluate_every = 1;
        story.expect_plan();
        story.finish_round(Duration::from_millis(1));
        let assigned = story.expect_assigned();
        assert_eq!(assigned.0, Round(1));
        story.expect_plan();
        // It is still under way when the next one is due: that one is left out.
        story.finish_round(Duration::from_millis(1));
        story.expect_plan();
        story.evaluate(Round(1), 500_000);
        let Some(Decision::RecordEvaluation { manifest, .. }) = story.poll_applied() else {
            panic!()
        };
        assert_eq!(manifest, None);
        story.finish_round(Duration::from_millis(1));
        let next = story.expect_assigned();
        assert_eq!(next.0, Round(3));
    }

    #[test]
    fn evaluators_take_turns() {
        let mut story = Story::new(4);
        story.job.spec.evaluate_every = 1;
        let mut evaluators = BTreeSet::new();
        for round in 1..=4 {
            story.expect_plan();
            story.finish_round(Duration::from_millis(1));
            evaluators.insert(story.expect_assigned().1);
            story.evaluate(Round(round), 500_000);
            story.poll_applied();
        }
        assert_eq!(evaluators.len(), 4);
    }

    #[test]
    fn who_cannot_work_on_a_job_is_not_asked_to_evaluate_it() {
        let mut story = Story::new(4);
        story.job.spec.evaluate_every = 1;
        for round in 1..=4 {
            story.expect_plan();
            for node in 1..=4 {
                let mut report = story.round_report(node, node > 2);
                report.outcome.samples = u32::from(node > 2);
                story.coordinator.on_report(Report::Round(report), story.now);
            }
            story.expect_close();
            let (_, evaluator) = story.expect_assigned();
            assert!(evaluator > NodeId(2), "{evaluator}");
            story.evaluate(Round(round), 500_000);
            story.poll_applied();
        }
    }

    #[test]
    fn whom_somebody_has_refused_is_not_asked_to_evaluate_the_models_of_all() {
        let mut story = Story::new(4);
        story.job.spec.evaluate_every = 1;
        for round in 1..=4 {
            story.expect_plan();
            story.job.refuse(Refusal {
                round: Round(round),
                of: NodeId(3),
                by: NodeId(1),
                why: Garbage::TooLarge,
            });
            story.finish_round(Duration::from_millis(1));
            let (_, evaluator) = story.expect_assigned();
            assert_ne!(evaluator, NodeId(3));
            story.evaluate(Round(round), 500_000);
            story.poll_applied();
        }
    }

    #[test]
    fn a_job_ends_with_a_model_that_every_active_member_holds() {
        let mut story = Story::at_the_end(3);
        let (round, evaluator) = story.expect_assigned();
        assert_eq!(story.poll(), None);
        story.evaluate(round, 960_000);
        let Some(Decision::RecordEvaluation {
            manifest: Some(manifest),
            ..
        }) = story.poll_applied()
        else {
            panic!("no manifest")
        };
        assert_eq!(
            (manifest.hash, &manifest.holders[..]),
            ([7; 32], &[evaluator][..])
        );
        let others: Vec<u64> = (1..=3).filter(|node| *node != evaluator.0).collect();
        story.hold(others[0], [7; 32]);
        story.hold(others[1], [8; 32]);
        let holders = vec![NodeId(others[0])];
        assert_eq!(
            story.poll_applied(),
            Some(Decision::RecordHolders {
                job: JobId(1),
                holders
            })
        );
        assert_eq!(story.poll(), None);
        assert_eq!(story.coordinator.dropped(), 1);
        story.hold(others[1], [7; 32]);
        assert!(matches!(
            story.poll_applied(),
            Some(Decision::RecordHolders { .. })
        ));
        assert_eq!(story.poll_applied(), Some(Decision::Finish { job: JobId(1) }));
        assert_eq!(story.poll(), None);
        assert_eq!(story.coordinator.next_timeout(), None);
    }

    #[test]
    fn a_job_ends_without_those_who_do_not_fetch_the_model_in_time() {
        let mut story = Story::at_the_end(3);
        let (round, _) = story.expect_assigned();
        story.evaluate(round, 960_000);
        story.poll_applied();
        assert_eq!(story.poll(), None);
        story.now = story.coordinator.next_timeout().unwrap();
        assert_eq!(story.poll_applied(), Some(Decision::Finish { job: JobId(1) }));
    }

    #[test]
    fn the_last_evaluation_is_given_to_another_when_it_does_not_come() {
        let mut story = Story::at_the_end(3);
        let (_, first) = story.expect_assigned();
        assert_eq!(story.poll(), None);
        story.now = story.coordinator.next_timeout().unwrap();
        let (_, second) = story.expect_assigned();
        assert_ne!(first, second);
        // A dead one is not waited for.
        story.set_state(second.0, MemberState::Suspected);
        let (_, third) = story.expect_assigned();
        assert!(third != second);
    }

    #[test]
    fn an_evaluation_nobody_asked_for_or_of_impossible_numbers_is_dropped() {
        let mut story = Story::at_the_end(2);
        let (round, _) = story.expect_assigned();
        story.evaluate(Round(round.0 + 1), 500_000);
        assert_eq!(story.poll(), None);
        story.evaluate(round, 1_000_001);
        assert_eq!(story.poll(), None);
        assert_eq!(story.coordinator.dropped(), 2);
    }

    #[test]
    fn a_stopped_job_is_left_alone() {
        let mut story = Story::new(2);
        story.expect_plan();
        story.job.phase = JobPhase::Stopped;
        story.report(1, true);
        story.report(2, true);
        assert_eq!(story.poll(), None);
    }

    proptest! {
        #[test]
        fn whatever_is_reported_only_planned_pairs_merge_and_rounds_follow_one_another(
            events in prop::collection::vec((0_u8..6, 1_u64..8, 0_u64..4, any::<bool>()), 0..200),
        ) {
            let mut story = Story::new(5);
            story.job.spec.rounds = 6;
            let mut received = BTreeSet::new();
            for (event, node, offset, flag) in events {
                match event {
                    0 | 1 => {
                        let mut report = story.round_report(node, flag);
                        report.round = Round((report.round.0 + offset).saturating_sub(1));
                        if flag {
                            received.insert((report.round, NodeId(node)));
                        }
                        story.coordinator.on_report(Report::Round(report), story.now);
                    }
                    2 => story.evaluate(Round(offset), 500_000),
                    3 => story.hold(node, [7; 32]),
                    4 => story.now += Duration::from_secs(offset * 10),
                    _ if node <= 5 => {
                        let state = if flag { MemberState::Active } else { MemberState::Suspected };
                        story.set_state(node, state);
                    }
                    _ => story.coordinator.reset(),
                }
                let before = story.job.round();
                // A handful of decisions follow from one event, never an endless row of them.
                for decision in 0.. {
                    prop_assert!(decision < 10);
                    match story.poll_applied() {
                        Some(Decision::Plan(plan)) => prop_assert!(plan.round > before),
                        Some(Decision::Close(outcome)) => {
                            let plan = &story.job.record(outcome.round).unwrap().plan;
                            for pair in &outcome.merged {
                                prop_assert!(plan.pairs.contains(pair));
                                for node in pair.nodes() {
                                    prop_assert!(received.contains(&(outcome.round, node)));
                                }
                            }
                            prop_assert!(outcome.nodes.is_sorted_by(|a, b| a.node < b.node));
                        }
                        Some(_) => (),
                        None => break,
                    }
                }
            }
        }
    }

    /// A cluster whose log applies every decision that the story applies to it.
    #[test]
    fn a_pair_merges_only_when_each_names_the_other() {
        let mut story = Story::new(2);
        story.expect_plan();
        let mut elsewhere = story.round_report(1, true);
        elsewhere.received = vec![NodeId(1), NodeId(3), NodeId(77)];
        story.coordinator.on_report(Report::Round(elsewhere), story.now);
        story.report(2, true);
        assert_eq!(story.expect_close().merged, []);
    }

    #[test]
    fn on_a_ring_each_edge_merges_by_itself_and_a_mean_of_all_counts_for_all_or_nobody() {
        for (algorithm, merged) in [(Algorithm::DPsgd, 2), (Algorithm::DiLoCo, 0)] {
            let mut story = Story::new(4);
            story.job.spec.algorithm = algorithm;
            let plan = story.expect_plan();
            assert_eq!(plan.pairs.len(), 4);
            for node in 1..=4 {
                story.report(node, node != 2);
            }
            assert_eq!(story.expect_close().merged.len(), merged, "{algorithm}");
            let plan = story.expect_plan();
            story.finish_round(Duration::from_millis(1));
            let outcome = story.job.rounds.back().unwrap().outcome.as_ref().unwrap();
            assert_eq!(outcome.merged, plan.pairs, "{algorithm}");
        }
    }

    #[test]
    fn a_member_that_everybody_waits_for_takes_fewer_steps() {
        let mut story = Story::new(4);
        let mut plans = 0;
        let steps = loop {
            match story.poll_applied() {
                Some(Decision::Plan(_)) => plans += 1,
                Some(Decision::SetPaces { steps, .. }) => break steps,
                other => panic!("{other:?}"),
            }
            for node in 1..=4 {
                let mut report = story.round_report(node, true);
                report.training_ms = if node == 3 { 8000 } else { 1000 };
                story.coordinator.on_report(Report::Round(report), story.now);
            }
            story.expect_close();
        };
        assert_eq!((plans, steps), (3, BTreeMap::from([(NodeId(3), 1)])));
        // It is told once, and holds while the member is as slow as it was.
        story.expect_plan();
    }

    #[test]
    fn whoever_serves_evaluates_too() {
        let mut story = Story::new(4);
        story.job.spec.algorithm = Algorithm::FedAvg;
        story.job.spec.evaluate_every = 1;
        for round in 1..4 {
            let plan = story.expect_plan();
            let RoundKind::Served { server } = plan.kind else {
                panic!("{plan:?}");
            };
            story.finish_round(Duration::from_millis(1));
            assert_eq!(story.expect_assigned(), (Round(round), server));
            story.evaluate(Round(round), 1);
            assert!(matches!(
                story.poll_applied(),
                Some(Decision::RecordEvaluation { .. })
            ));
        }
    }

    struct Story {
        coordinator: Coordinator,
        roster: Roster,
        job: JobView,
        bandwidths: Bandwidths,
        now: Instant,
    }

    impl Story {
        fn new(members: u64) -> Self {
            let peer = Keypair::generate_ed25519().public().to_peer_id();
            let member = |id| Member {
                id: NodeId(id),
                peer,
                name: String::new(),
                addrs: Vec::new(),
                role: Role::Main,
                state: MemberState::Active,
            };
            Self {
                coordinator: Coordinator::new(CoordinatorConfig::default()),
                roster: Roster {
                    cluster: ClusterId::from_bytes([0; 16]),
                    version: LogIndex(1),
                    members: (1..=members).map(|id| (NodeId(id), member(id))).collect(),
                    voters: BTreeSet::new(),
                    leader: None,
                    term: Term(1),
                },
                job: JobView::new(
                    JobId(1),
                    JobSpec {
                        rounds: 1000,
                        local_steps: 5,
                        compression: 25,
                        lr_micro: 100_000,
                        final_dense_rounds: 0,
                        evaluate_every: 0,
                        ..defaults(Algorithm::Default)
                    },
                ),
                bandwidths: Bandwidths::default(),
                now: Instant::now(),
            }
        }

        /// Two rounds are done, and there are no more.
        fn at_the_end(members: u64) -> Self {
            let mut story = Self::new(members);
            story.job.spec.rounds = 2;
            for _ in 0..2 {
                story.expect_plan();
                story.finish_round(Duration::from_millis(1));
            }
            story
        }

        fn poll(&mut self) -> Option<Decision> {
            let committed = Committed {
                roster: &self.roster,
                job: Some(&self.job),
                bandwidths: &self.bandwidths,
            };
            self.coordinator.poll(&committed, self.now)
        }

        fn poll_applied(&mut self) -> Option<Decision> {
            let decision = self.poll()?;
            self.apply(&decision);
            Some(decision)
        }

        fn expect_plan(&mut self) -> RoundPlan {
            match self.poll_applied() {
                Some(Decision::Plan(plan)) => plan,
                other => panic!("{other:?} instead of a plan"),
            }
        }

        fn expect_close(&mut self) -> RoundOutcome {
            match self.poll_applied() {
                Some(Decision::Close(outcome)) => outcome,
                other => panic!("{other:?} instead of a close"),
            }
        }

        fn expect_assigned(&mut self) -> (Round, NodeId) {
            match self.poll_applied() {
                Some(Decision::AssignEvaluation { round, evaluator, .. }) => (round, evaluator),
                other => panic!("{other:?} instead of an assignment"),
            }
        }

        fn apply(&mut self, decision: &Decision) {
            match decision.clone() {
                Decision::Plan(plan) => self.job.rounds.push_back(RoundRecord { plan, outcome: None }),
                Decision::Close(outcome) => self.job.close(outcome),
                Decision::SetPaces { steps, .. } => self.job.paces = steps,
                Decision::RecordRefusals { refusals, .. } => {
                    refusals.into_iter().for_each(|refusal| self.job.refuse(refusal));
                }
                Decision::Speeds(links) => links.into_iter().for_each(|link| self.bandwidths.set(link)),
                Decision::AssignEvaluation { round, evaluator, .. } => {
                    self.job.evaluating = Some((round, evaluator));
                }
                Decision::RecordEvaluation {
                    evaluation, manifest, ..
                } => {
                    self.job.evaluating = None;
                    self.job.evaluations.push_back(evaluation);
                    self.job.manifest = manifest;
                }
                Decision::RecordHolders { holders, .. } => {
                    self.job.manifest.as_mut().unwrap().holders.extend(holders);
                }
                Decision::Finish { .. } => self.job.phase = JobPhase::Finished,
            }
            let committed = Committed {
                roster: &self.roster,
                job: Some(&self.job),
                bandwidths: &self.bandwidths,
            };
            self.coordinator.on_committed(&committed, self.now);
        }

        fn round_report(&self, node: u64, received: bool) -> RoundReport {
            RoundReport {
                job: self.job.id,
                round: self.job.round(),
                outcome: NodeOutcome {
                    node: NodeId(node),
                    loss_micro: 1,
                    samples: 1,
                    sent: ByteSize(1),
                    received: ByteSize(1),
                },
                received: if received { self.partners(node) } else { Vec::new() },
                training_ms: 1,
                exchange_ms: 1,
                links: Vec::new(),
            }
        }

        fn partners(&self, node: u64) -> Vec<NodeId> {
            let plan = self.job.open_round();
            plan.into_iter()
                .flat_map(|plan| plan.partners_of(NodeId(node)))
                .collect()
        }

        fn report(&mut self, node: u64, received: bool) {
            let report = self.round_report(node, received);
            self.coordinator.on_report(Report::Round(report), self.now);
        }

        fn refuse(&mut self, by: u64, round: Round, of: NodeId) {
            let report = Report::Refused {
                job: self.job.id,
                round,
                node: NodeId(by),
                partners: vec![(of, Garbage::NotFinite)],
            };
            self.coordinator.on_report(report, self.now);
        }

        /// Everybody who takes part reports after this time, and the round is closed.
        fn finish_round(&mut self, took: Duration) {
            assert_eq!(self.poll(), None);
            self.now += took;
            let participants: Vec<NodeId> = self.job.open_round().unwrap().participants().collect();
            for node in participants {
                self.report(node.0, true);
            }
            self.expect_close();
        }

        fn evaluate(&mut self, round: Round, accuracy: u32) {
            let evaluation = Evaluation {
                round,
                averaged_accuracy: Ppm(accuracy),
                local_accuracies: Vec::new(),
                transferred: ByteSize(0),
            };
            let report = Report::Evaluation {
                job: self.job.id,
                evaluation,
                hash: [7; 32],
                parameters: 10,
            };
            self.coordinator.on_report(report, self.now);
        }

        fn hold(&mut self, node: u64, hash: [u8; 32]) {
            let report = Report::Holding {
                job: self.job.id,
                node: NodeId(node),
                hash,
            };
            self.coordinator.on_report(report, self.now);
        }

        fn set_state(&mut self, node: u64, state: MemberState) {
            self.roster.members.get_mut(&NodeId(node)).unwrap().state = state;
        }
    }

    fn link(from: u64, to: u64, kbit: u32) -> LinkSpeed {
        LinkSpeed {
            from: NodeId(from),
            to: NodeId(to),
            speed: Bandwidth::kbit(kbit),
        }
    }
}
