//! Whose values are believed: who refused what of whom, and who is left out of plans for it.
//!
//! A part of what the log says of a job, and a pure function of it: no leader's opinion enters, and one that takes over
//! goes on with the same knowledge. It does not look at values (the room that trains does), and what it leaves through
//! is not good for that: it is what partners cannot tell from an honest model.

use crate::{NodeId, Pair, Round, RoundRecord};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// What a node refused to merge.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Refusal {
    /// In which round.
    pub round: Round,
    /// Whose values were refused.
    pub of: NodeId,
    /// Who refused them: a partner in that round.
    pub by: NodeId,
    /// Why.
    pub why: Garbage,
}

/// Why values are not to be trusted: only what no honest partner with the same plan sends, whatever its data.
///
/// A distance that a clipped merge cuts short is none of them. It is the same for both partners, so that each would
/// accuse the other, and nodes with unusual data are far away without being wrong.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Garbage {
    /// Other bytes than the sender had announced itself.
    Damaged,
    /// No message of that round.
    Malformed,
    /// Values that are infinite or no numbers.
    NotFinite,
    /// Values a hundred times as large as the receiver's own.
    TooLarge,
}

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Damaged => "other bytes than it had announced",
            Self::Malformed => "messages that cannot be read",
            Self::NotFinite => "values that are not finite",
            Self::TooLarge => "values that are far too large",
        })
    }
}

/// A stretch of rounds that are planned without a node.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The round after which it began.
    pub since: Round,
    /// The last round without the node; then it is tried again.
    pub until: Round,
    /// The how manieth of this node in this job, from 1.
    pub times: u32,
    /// What its partners refused last.
    pub why: Garbage,
    /// Who refused it, by number.
    pub by: Vec<NodeId>,
}

impl Quarantine {
    /// Whether it holds in a round.
    pub fn covers(&self, round: Round) -> bool {
        self.since < round && round <= self.until
    }
}

/// What is known of the members' trustworthiness in one job.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Trust {
    /// Of the last [`ROUNDS_HEARD`] rounds, the oldest first.
    refusals: Vec<Refusal>,
    /// The last one of each node that was in one.
    quarantines: BTreeMap<NodeId, Quarantine>,
}

/// Rounds whose refusals count: partners change every few rounds, so that two of them meet a node within these, and a
/// node that turned bad after a long good time is known by what it does now.
const ROUNDS_HEARD: u64 = 16;

/// Partners that must have refused a node: one alone may be the one that is wrong, or lie.
const ACCUSERS_MIN: usize = 2;

/// A node that refused at least so many others, and more than it merged with, is not believed: that it met garbage
/// everywhere is less likely than that it makes it up.
const REFUSED_BY_ONE_MAX: usize = 3;

/// The first quarantine: long enough to be worth the planning, short enough to try a node again that was restarted.
const ROUNDS_FIRST: u64 = 10;

/// Doublings of that; with a million rounds there is no difference to never.
const DOUBLINGS_MAX: u32 = 16;

impl Trust {
    /// Whether nothing was ever refused.
    pub fn is_empty(&self) -> bool {
        self.refusals.is_empty() && self.quarantines.is_empty()
    }

    /// Whether exactly this is known.
    pub fn knows(&self, refusal: &Refusal) -> bool {
        self.refusals.contains(refusal)
    }

    /// The quarantine that holds for a node in a round.
    pub fn quarantine(&self, node: NodeId, round: Round) -> Option<&Quarantine> {
        self.last_quarantine(node)
            .filter(|quarantine| quarantine.covers(round))
    }

    /// The newest quarantine of a node, over or not.
    pub fn last_quarantine(&self, node: NodeId) -> Option<&Quarantine> {
        self.quarantines.get(&node)
    }

    /// Whether a node has ever been in quarantine in this job, or somebody has refused its values of late: enough to let
    /// others speak for all.
    pub fn is_doubted(&self, node: NodeId) -> bool {
        self.quarantines.contains_key(&node) || self.refusals.iter().any(|refusal| refusal.of == node)
    }

    /// Everybody in quarantine in a round, by number.
    pub fn in_quarantine(&self, round: Round) -> impl Iterator<Item = (NodeId, &Quarantine)> {
        let all = self
            .quarantines
            .iter()
            .map(|(node, quarantine)| (*node, quarantine));
        all.filter(move |(_, quarantine)| quarantine.covers(round))
    }

    /// Takes note of a refusal, once. That the two were partners in that round, the caller has checked.
    pub(crate) fn note(&mut self, refusal: Refusal) {
        let same =
            |known: &Refusal| (known.round, known.of, known.by) == (refusal.round, refusal.of, refusal.by);
        if !self.refusals.iter().any(same) {
            self.refusals.push(refusal);
        }
    }

    /// Decides about those who were refused in the round that has just been closed, the last of `rounds`.
    pub(crate) fn judge(&mut self, rounds: &VecDeque<RoundRecord>) {
        let Some(last) = rounds.back().filter(|_| !self.refusals.is_empty()) else {
            return;
        };
        let now = last.plan.round;
        self.refusals
            .retain(|refusal| refusal.round.0 + ROUNDS_HEARD > now.0);
        let refused = self.refusals.iter().filter(|refusal| refusal.round == now);
        let mut accused: Vec<NodeId> = refused.map(|refusal| refusal.of).collect();
        accused.sort_unstable();
        accused.dedup();
        let mut guilty: Vec<(NodeId, Vec<NodeId>)> = accused
            .into_iter()
            .filter_map(|node| Some((node, self.convicted_by(node, rounds)?)))
            .collect();
        // Those that most are against come first, should there not be room for all.
        guilty.sort_by_key(|(node, by)| (std::cmp::Reverse(by.len()), *node));
        let inside_now = self.in_quarantine(now.next()).map(|(node, _)| node);
        let inside_now: BTreeSet<NodeId> = inside_now.collect();
        let mut inside = inside_now.len();
        let mut everybody = inside_now;
        everybody.extend(last.plan.participants());
        for (node, by) in guilty {
            // Whatever is reported, most go on: else those who lie could take a job over.
            if 2 * (inside + 1) >= everybody.len() {
                break;
            }
            let newest = self.refusals.iter().rev().find(|refusal| refusal.of == node);
            let Some(why) = newest.map(|refusal| refusal.why) else {
                continue;
            };
            let times = self
                .quarantines
                .get(&node)
                .map_or(0, |quarantine| quarantine.times)
                .saturating_add(1);
            let rounds = ROUNDS_FIRST << (times - 1).min(DOUBLINGS_MAX);
            let quarantine = Quarantine {
                since: now,
                until: Round(now.0.saturating_add(rounds)),
                times,
                why,
                by,
            };
            self.quarantines.insert(node, quarantine);
            inside += 1;
        }
    }

    /// Who has refused a node, if that is enough against it: two whose word counts, and no fewer than half of all who
    /// heard it out since it was last let in.
    fn convicted_by(&self, node: NodeId, rounds: &VecDeque<RoundRecord>) -> Option<Vec<NodeId>> {
        let verdicts = self.verdicts(rounds, |refusal| (refusal.of == node).then_some(refusal.by), node);
        let by: Vec<NodeId> = verdicts
            .iter()
            .filter(|(_, is_refused)| **is_refused)
            .map(|(by, _)| *by)
            .filter(|by| self.is_believed(*by, rounds))
            .collect();
        (by.len() >= ACCUSERS_MIN && 2 * by.len() >= verdicts.len()).then_some(by)
    }

    fn is_believed(&self, accuser: NodeId, rounds: &VecDeque<RoundRecord>) -> bool {
        let of = |refusal: &Refusal| (refusal.by == accuser).then_some(refusal.of);
        let verdicts = self.verdicts(rounds, of, accuser);
        let refused = verdicts.values().filter(|is_refused| **is_refused).count();
        refused < REFUSED_BY_ONE_MAX || 2 * refused <= verdicts.len()
    }

    /// How each partner of a node did with it last, whether something was refused, within the rounds that count and since
    /// the node was last let in. `other` names the partner that a refusal is about.
    fn verdicts(
        &self,
        rounds: &VecDeque<RoundRecord>,
        other: impl Fn(&Refusal) -> Option<NodeId>,
        node: NodeId,
    ) -> BTreeMap<NodeId, bool> {
        let now = rounds.back().map_or(Round(0), |record| record.plan.round);
        let freed = self
            .last_quarantine(node)
            .map_or(Round(0), |quarantine| quarantine.until);
        let counts = |round: Round| round > freed && round.0 + ROUNDS_HEARD > now.0;
        let mut newest = BTreeMap::<NodeId, (Round, bool)>::new();
        for record in rounds.iter().filter(|record| counts(record.plan.round)) {
            let round = record.plan.round;
            let merged = record
                .outcome
                .iter()
                .flat_map(|outcome| outcome.merged_with(node));
            newest.extend(merged.map(|partner| (partner, (round, false))));
        }
        for refusal in self.refusals.iter().filter(|refusal| counts(refusal.round)) {
            if let Some(partner) = other(refusal) {
                let known = newest.entry(partner).or_insert((refusal.round, true));
                *known = (*known).max((refusal.round, true));
            }
        }
        newest
            .into_iter()
            .map(|(partner, (_, is_refused))| (partner, is_refused))
            .collect()
    }

    /// A member is gone: what it said, and what was said of it, means nothing any more.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.refusals
            .retain(|refusal| refusal.of != node && refusal.by != node);
        self.quarantines.remove(&node);
    }
}

impl Refusal {
    /// The two whom it is about; `None` when a node accuses itself.
    pub fn pair(&self) -> Option<Pair> {
        Pair::new(self.of, self.by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Algorithm, JobId, JobSpec, JobView, Planner, RoundKind, RoundOutcome, RoundPlan, Values};

    #[test]
    fn two_partners_that_refuse_a_node_put_it_into_quarantine_and_one_does_not() {
        let mut job = job(6);
        play(&mut job, &[(1, 2), (3, 4), (5, 6)], &[(2, 1)]);
        assert!(inside(&job).is_empty());
        // Again by the same one: it counts once.
        play(&mut job, &[(1, 2), (3, 4), (5, 6)], &[(2, 1)]);
        assert!(inside(&job).is_empty());
        play(&mut job, &[(1, 3), (2, 4), (5, 6)], &[(3, 1)]);
        assert_eq!(inside(&job), [1]);
        let quarantine = job.trust.quarantine(NodeId(1), Round(4)).unwrap();
        assert_eq!((quarantine.since, quarantine.until), (Round(3), Round(13)));
        assert_eq!((quarantine.times, quarantine.why), (1, Garbage::NotFinite));
        assert_eq!(quarantine.by, [NodeId(2), NodeId(3)]);
        assert!(job.trust.quarantine(NodeId(1), Round(14)).is_none());
    }

    #[test]
    fn one_liar_puts_nobody_into_quarantine_however_many_it_accuses() {
        let mut job = job(6);
        for round in 0..40 {
            // Node 6 meets everybody in turn, and accuses each.
            let met = 1 + round % 5;
            let others: Vec<u64> = (1..6).filter(|node| *node != met).collect();
            let pairs = [(met, 6), (others[0], others[1]), (others[2], others[3])];
            play(&mut job, &pairs, &[(6, met)]);
            assert!(inside(&job).is_empty());
        }
    }

    #[test]
    fn who_refuses_most_of_those_it_meets_is_not_believed() {
        let mut job = job(8);
        // Node 8 has refused three, and merged with nobody.
        for met in [2, 3, 4] {
            play(&mut job, &[(met, 8)], &[(8, met)]);
        }
        play(&mut job, &[(1, 8)], &[(8, 1)]);
        play(&mut job, &[(1, 7)], &[(7, 1)]);
        assert!(inside(&job).is_empty());
        play(&mut job, &[(1, 6)], &[(6, 1)]);
        assert_eq!(inside(&job), [1]);
    }

    #[test]
    fn a_node_that_most_partners_merge_with_stays() {
        let mut job = job(8);
        for met in 2..=6 {
            play(&mut job, &[(1, met)], &[]);
        }
        for met in 7..=8 {
            play(&mut job, &[(1, met)], &[(met, 1)]);
        }
        // Two of seven.
        assert!(inside(&job).is_empty());
        // What they think now counts, and not what they thought before.
        for met in 2..=3 {
            play(&mut job, &[(1, met)], &[(met, 1)]);
        }
        assert_eq!(inside(&job), [1]);
    }

    #[test]
    fn what_was_refused_long_ago_is_forgotten() {
        let mut job = job(6);
        play(&mut job, &[(1, 2)], &[(2, 1)]);
        for _ in 0..ROUNDS_HEARD {
            play(&mut job, &[(3, 4)], &[]);
        }
        play(&mut job, &[(1, 3)], &[(3, 1)]);
        assert!(inside(&job).is_empty());
    }

    #[test]
    fn each_quarantine_of_a_node_is_twice_as_long_as_the_one_before() {
        let mut job = job(6);
        let mut lengths = Vec::new();
        while lengths.len() < 4 {
            if job.trust.quarantine(NodeId(1), job.round().next()).is_some() {
                play(&mut job, &[(3, 4)], &[]);
                continue;
            }
            let met = 2 + job.round().0 % 2;
            play(&mut job, &[(1, met)], &[(met, 1)]);
            if let Some(quarantine) = job.trust.quarantine(NodeId(1), job.round().next()) {
                lengths.push(quarantine.until.0 - quarantine.since.0);
            }
        }
        assert_eq!(lengths, [10, 20, 40, 80]);
    }

    #[test]
    fn most_go_on_whatever_is_reported() {
        let mut job = job(6);
        for round in 0..30 {
            let shift = round % 5 + 1;
            let pairs: Vec<(u64, u64)> = (1..=6)
                .map(|node| (node, (node + shift - 1) % 6 + 1))
                .filter(|(a, b)| a < b)
                .collect();
            let all: Vec<(u64, u64)> = pairs.iter().flat_map(|&(a, b)| [(a, b), (b, a)]).collect();
            play(&mut job, &pairs, &all);
            assert!(inside(&job).len() <= 2);
        }
    }

    #[test]
    fn a_member_that_is_gone_is_forgotten() {
        let mut job = job(6);
        play(&mut job, &[(1, 2)], &[(2, 1)]);
        play(&mut job, &[(1, 3)], &[(3, 1)]);
        assert_eq!(inside(&job), [1]);
        job.forget(NodeId(1));
        assert!(job.trust.is_empty());
    }

    fn inside(job: &JobView) -> Vec<u64> {
        let inside = job.trust.in_quarantine(job.round().next());
        inside.map(|(node, _)| node.0).collect()
    }

    /// One round of these pairs, without those in quarantine, in which those that no refusal (by, of) names merge. Six take
    /// part at least.
    fn play(job: &mut JobView, pairs: &[(u64, u64)], refused: &[(u64, u64)]) {
        let round = job.round().next();
        let inside = inside(job);
        let is_out = |node: &u64| !inside.contains(node);
        let both_out = |(a, b): &(u64, u64)| is_out(a) && is_out(b);
        let pairs: Vec<(u64, u64)> = pairs.iter().copied().filter(both_out).collect();
        let refused: Vec<(u64, u64)> = refused.iter().copied().filter(both_out).collect();
        let pairs: Vec<Pair> = pairs
            .iter()
            .filter_map(|(a, b)| Pair::new(NodeId(*a), NodeId(*b)))
            .collect();
        let in_pairs: Vec<NodeId> = pairs.iter().flat_map(|pair| pair.nodes()).collect();
        job.open(RoundPlan {
            job: job.id,
            round,
            kind: RoundKind::Sparse,
            seed: [0; 32],
            pairs: pairs.clone(),
            alone: (1..=6)
                .filter(is_out)
                .map(NodeId)
                .filter(|node| !in_pairs.contains(node))
                .collect(),
            compression: 1,
            local_steps: 1,
            lr_micro: 1,
            deadline_ms: 1,
        });
        for (by, of) in &refused {
            job.refuse(Refusal {
                round,
                of: NodeId(*of),
                by: NodeId(*by),
                why: Garbage::NotFinite,
            });
        }
        let is_refused = |pair: &Pair| {
            refused
                .iter()
                .any(|(a, b)| Pair::new(NodeId(*a), NodeId(*b)) == Some(*pair))
        };
        job.close(RoundOutcome {
            job: job.id,
            round,
            merged: pairs.into_iter().filter(|pair| !is_refused(pair)).collect(),
            nodes: Vec::new(),
            took_ms: 1,
        });
    }

    fn job(seed: u64) -> JobView {
        JobView::new(
            JobId(1),
            JobSpec {
                model: "mlp".to_owned(),
                data: "digits".to_owned(),
                algorithm: Algorithm::Default,
                rounds: 1000,
                local_steps: 1,
                compression: 1,
                values: Values::Int8,
                lr_micro: 1,
                batch: 1,
                seed,
                final_dense_rounds: 0,
                checkpoint_every: 0,
                evaluate_every: 0,
                stop: None,
                planner: Planner::Random,
                tuning: Algorithm::Default.tuning(),
            },
        )
    }
}
