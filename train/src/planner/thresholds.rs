//! Pairs by thresholds, after Tang et al., "Communication-Efficient Decentralized Learning with Sparsification and
//! Adaptive Peer Selection" (ICDCS 2020, arXiv 2002.09692).
//!
//! As published, with two things of our own: the pairs that are left over when the fast links do not match everybody
//! are the fastest of those that remain, where the paper draws them, and members that are apart are joined over the
//! fastest links. So bandwidth still counts where no link reaches the threshold.

use super::links::Links;
use super::seats::{Seats, edges};
use super::{PlanInput, payload};
use crate::matching::{Graph, Matching};
use lapwing_base::{Bandwidth, ByteSize, Ppm, Round};
use std::cmp::Reverse;
use std::time::Duration;

/// What the planner by thresholds goes by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Knobs {
    /// Which links are fast.
    pub threshold: Threshold,
    /// Rounds within which the meetings must connect all members (`T_thres` of the paper). Fewer mix faster,
    /// more leave more rounds to the fast links. By default the logarithm of the number of members, rounded up,
    /// plus two, and at least 5: connecting n members takes the logarithm, and with 3 nearly every round
    /// serves the connection and none the speed.
    pub recent_rounds: Option<u32>,
}

/// Which links are fast (`B_thres` of the paper). A link that was not measured yet counts as just fast enough, so
/// that it is tried.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Threshold {
    /// At least half of what the median member has on its best link, or enough to carry the values of the last
    /// sparse round in [`IMPERCEPTIBLE`]. Follows the network and the job by itself: links that are alike are all
    /// fast, however their measurements scatter; a member whose uplink is throttled has no fast link left; and where
    /// no link can be felt, partners are chosen as if all were equal, which mixes best.
    #[default]
    HalfOfBest,
    /// At least this quantile of the known links.
    Quantile(Ppm),
    /// At least this rate.
    AtLeast(Bandwidth),
}

/// An exchange this short is not felt in a round: it is a few round trips between homes, or one batch.
pub const IMPERCEPTIBLE: Duration = Duration::from_millis(20);

/// The matching of a sparse round: maximum over the fast links while the meetings of the recent rounds connect
/// everybody, and over the links that join what is apart otherwise. A tie is broken by the draw of the seats.
pub(super) fn matching(input: &PlanInput<'_>, round: Round, seats: &Seats) -> Matching {
    let n = seats.len();
    let speeds = Speeds::new(seats, input);
    let components = recent_meetings(input, round, seats).components();
    let is_connected = components.iter().all(|&component| component == 0);
    let mut graph = Graph::new(n);
    let mut matching = Matching::new(n);
    if is_connected {
        for (a, b) in edges(n).filter(|&(a, b)| speeds.between(a, b) >= speeds.threshold) {
            graph.connect(a, b);
        }
    } else {
        let apart = || edges(n).filter(|&(a, b)| components[a] != components[b]);
        for (a, b) in apart() {
            graph.connect(a, b);
        }
        matching.extend_greedily(speeds.best_first(apart().collect()));
    }
    matching.augment(&graph);
    let left_over: Vec<usize> = matching.left_over().collect();
    let among_left_over = edges(left_over.len()).map(|(a, b)| (left_over[a], left_over[b]));
    matching.extend_greedily(speeds.best_first(among_left_over.collect()));
    matching
}

/// Who met whom within the last rounds, by plan.
fn recent_meetings(input: &PlanInput<'_>, round: Round, seats: &Seats) -> Graph {
    let window = input
        .knobs
        .recent_rounds
        .unwrap_or_else(|| recent_rounds_default(seats.len()));
    let since = round.0.saturating_sub(u64::from(window));
    let mut graph = Graph::new(seats.len());
    let recent = input.job.last_matched.iter().filter(|(_, last)| last.0 >= since);
    for (a, b) in recent.filter_map(|(&pair, _)| seats.places(pair)) {
        graph.connect(a, b);
    }
    graph
}

fn recent_rounds_default(members: usize) -> u32 {
    (members.next_power_of_two().trailing_zeros() + 2).max(5)
}

/// The speed of every link, measured or not, and which count as fast; in kbit/s.
struct Speeds {
    links: Links,
    threshold: u32,
}

impl Speeds {
    fn new(seats: &Seats, input: &PlanInput<'_>) -> Self {
        let links = Links::new(seats, input.bandwidths);
        let n = seats.len();
        let threshold = match input.knobs.threshold {
            Threshold::AtLeast(speed) => speed.kbit_s,
            Threshold::HalfOfBest => {
                let known = links.bests().into_iter().filter(|&(_, known)| known > 0);
                let mut bests: Vec<u32> = known.map(|(best, _)| best).collect();
                bests.sort_unstable();
                // The upper one of two: half of the members being slow does not make slow the measure.
                let half = bests.get(bests.len() / 2).map_or(0, |best| best / 2);
                match payload(input.job) {
                    ByteSize(0) => half,
                    payload => half.min(Bandwidth::per(payload, IMPERCEPTIBLE).kbit_s),
                }
            }
            Threshold::Quantile(quantile) => {
                let mut known: Vec<u32> = edges(n).filter_map(|(a, b)| links.between(a, b)).collect();
                let place = known.len().saturating_sub(1) as u64 * u64::from(quantile.0.min(1_000_000));
                let place = (place / 1_000_000) as usize;
                match known.get(place) {
                    Some(_) => *known.select_nth_unstable(place).1,
                    None => 0,
                }
            }
        };
        Self { links, threshold }
    }

    fn between(&self, a: usize, b: usize) -> u32 {
        self.links.between(a, b).unwrap_or(self.threshold)
    }

    /// The fastest first, equally fast ones in the order of their places.
    fn best_first(&self, mut edges: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
        edges.sort_unstable_by_key(|&(a, b)| (Reverse(self.between(a, b)), a, b));
        edges
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{advance, advance_sent, job, pair, plan_with, push, set};
    use super::*;
    use lapwing_base::{Bandwidths, NodeId, Pair, Planner, RoundKind};
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn both_triangles_of_the_matrix_count() {
        // An earlier implementation read the lower one alone. Here each link is slow in one direction, which is
        // in the lower triangle for some and in the upper one for others; only 1-2 and 3-4 are fast both ways.
        let mut bandwidths = Bandwidths::default();
        for (from, to, mbit) in [
            (1, 2, 9),
            (2, 1, 9),
            (3, 4, 9),
            (4, 3, 9),
            (1, 3, 1),
            (3, 1, 9),
            (1, 4, 9),
            (4, 1, 1),
            (2, 3, 1),
            (3, 2, 9),
            (2, 4, 9),
            (4, 2, 1),
        ] {
            set(&mut bandwidths, from, to, mbit * 1000);
        }
        let mut job = job(4, 1000);
        job.spec.planner = Planner::Thresholds;
        // Everybody met everybody just now, so that speed alone decides.
        for (a, b) in edges(4) {
            job.last_matched
                .insert(pair(a as u64 + 1, b as u64 + 1), Round(1));
        }
        push(&mut job, RoundKind::Sparse, Vec::new(), true);
        let knobs = Knobs {
            threshold: Threshold::AtLeast(Bandwidth::mbit(5)),
            recent_rounds: None,
        };
        let plan = plan_with(&job, 4, &bandwidths, knobs);
        assert_eq!(plan.pairs, [pair(1, 2), pair(3, 4)]);
    }

    #[test]
    fn a_partial_matching_is_kept_and_only_the_rest_is_paired_anew() {
        // Members 1 to 4 are fast among themselves; 5 and 6 are slow to everybody, and 6 slower than 5.
        let mut bandwidths = Bandwidths::default();
        for (a, b) in edges(6) {
            let kbit = if b < 4 { 9000 } else { 1000 - b as u64 * 10 };
            set(&mut bandwidths, a as u64 + 1, b as u64 + 1, kbit as u32);
        }
        let mut job = job(6, 1000);
        job.spec.planner = Planner::Thresholds;
        for (a, b) in edges(6) {
            job.last_matched
                .insert(pair(a as u64 + 1, b as u64 + 1), Round(1));
        }
        push(&mut job, RoundKind::Sparse, Vec::new(), true);
        let knobs = Knobs {
            threshold: Threshold::AtLeast(Bandwidth::mbit(5)),
            recent_rounds: None,
        };
        let plan = plan_with(&job, 6, &bandwidths, knobs);
        assert!(plan.pairs.contains(&pair(5, 6)), "{:?}", plan.pairs);
        assert_eq!(plan.pairs.len(), 3);
    }

    #[test]
    fn links_that_were_never_measured_are_tried() {
        // One known link of all: a planner that took unknown for slow would use it for ever.
        let mut bandwidths = Bandwidths::default();
        set(&mut bandwidths, 1, 2, 50_000);
        let mut job = job(8, 1000);
        job.spec.planner = Planner::Thresholds;
        let mut met = BTreeSet::new();
        for _ in 0..60 {
            let plan = plan_with(&job, 8, &bandwidths, Knobs::default());
            met.extend(plan.pairs.iter().copied());
            advance(&mut job, plan);
        }
        assert_eq!(met.len(), 28);
    }

    #[test]
    fn a_throttled_member_leaves_the_fast_pairs() {
        let mut job = job(8, 10_000);
        job.spec.planner = Planner::Thresholds;
        let mut with_fast = [0_u32; 2];
        for (throttled, count) in [(false, 0), (true, 1)] {
            let mut bandwidths = Bandwidths::default();
            for (a, b) in edges(8) {
                // Members 7 and 8 are slow from the start; member 1 becomes slow.
                let slow = b >= 6 || (throttled && a == 0);
                set(
                    &mut bandwidths,
                    a as u64 + 1,
                    b as u64 + 1,
                    if slow { 500 } else { 100_000 },
                );
            }
            for _ in 0..200 {
                let plan = plan_with(&job, 8, &bandwidths, Knobs::default());
                let partner = plan.partner_of(NodeId(1)).unwrap();
                with_fast[count] += u32::from(partner.0 < 7);
                advance(&mut job, plan);
            }
        }
        assert!(with_fast[1] < with_fast[0], "{with_fast:?}");
    }

    #[test]
    fn links_that_cannot_be_felt_are_all_fast() {
        let mut job = job(1, 1000);
        job.spec.planner = Planner::Thresholds;
        let mut bandwidths = Bandwidths::default();
        for (a, b) in edges(4) {
            // As measured on one machine: far apart, and all far beyond what the round needs.
            set(
                &mut bandwidths,
                a as u64 + 1,
                b as u64 + 1,
                100_000 * (1 + 7 * (a + b) as u32),
            );
        }
        let mut met = BTreeMap::<Pair, u32>::new();
        for _ in 0..300 {
            let plan = plan_with(&job, 4, &bandwidths, Knobs::default());
            plan.pairs
                .iter()
                .for_each(|pair| *met.entry(*pair).or_default() += 1);
            advance_sent(&mut job, plan, ByteSize(1000));
        }
        assert!(
            met.len() == 6 && met.values().all(|&times| (60..140).contains(&times)),
            "{met:?}"
        );
    }

    #[test]
    fn the_window_of_recent_rounds_grows_with_the_logarithm() {
        let windows: Vec<u32> = [1, 8, 9, 14, 32, 1000].map(recent_rounds_default).to_vec();
        assert_eq!(windows, [5, 5, 6, 6, 7, 12]);
    }
}
