//! Pairs for dense rounds: those whose models have least in common meet.
//!
//! With a power of two of members, everybody holds the mean of all after its logarithm of rounds, unless some links are
//! so slow that it is better to go around them.

use super::links::Links;
use super::mixing::Mixing;
use super::seats::{Seats, edges};
use super::{IMPERCEPTIBLE, PlanInput, payload};
use crate::matching::{Graph, Matching};
use lapwing_base::{Bandwidth, ByteSize, RoundKind};
use std::cmp::Reverse;

/// The matching of the job's next round, a dense one.
///
/// What each member's model is made of follows from the dense rounds so far, merged pair by merged pair. Among
/// pairs with equally little in common, those whose places differ in one bit come first, a lower bit in an earlier
/// round: undisturbed, and with a power of two of members, this walks a hypercube, and it finds the best next
/// pairs also after a pair that failed.
pub(super) fn matching(input: &PlanInput<'_>, seats: &Seats) -> Matching {
    let n = seats.len();
    let mut mixing = Mixing::new(n);
    let dense = input
        .job
        .rounds
        .iter()
        .filter(|record| record.plan.kind == RoundKind::Dense);
    for record in dense {
        let merged = record.outcome.iter().flat_map(|outcome| &outcome.merged);
        for (a, b) in merged.filter_map(|&pair| seats.places(pair)) {
            mixing.merge(a, b, 1, 1);
        }
    }
    let fast = fast_links(input, seats);
    let mut ranked: Vec<_> = edges(n)
        .map(|(a, b)| {
            (
                !fast.has(a, b),
                Reverse(mixing.distance(a, b)),
                hypercube_rank(a, b),
                a,
                b,
            )
        })
        .collect();
    ranked.sort_unstable();
    let furthest_first = || ranked.iter().map(|&(.., a, b)| (a, b));
    let mut matching = Matching::new(n);
    matching.extend_greedily(furthest_first().filter(|&(a, b)| fast.has(a, b)));
    matching.augment(&fast);
    matching.extend_greedily(furthest_first());
    matching
}

/// The links at least half as fast as the slowest one that a round cannot do without: a dense round carries the whole
/// model, and one pair that takes ten times as long takes it from everybody. Half, because the pairs of such links
/// mix better than the pairs of the fastest alone. Every link in clusters that are too large to look for it.
fn fast_links(input: &PlanInput<'_>, seats: &Seats) -> Graph {
    let n = seats.len();
    let links = Links::new(seats, input.bandwidths);
    // What is not felt is as fast as can be, and so is what nobody has measured.
    let whole = payload(input.job)
        .0
        .saturating_mul(input.job.spec.compression.into());
    let unfelt = match whole {
        0 => 0,
        whole => Bandwidth::per(ByteSize(whole), IMPERCEPTIBLE).kbit_s,
    };
    let speed = |a, b| links.between(a, b).map_or(unfelt, |speed| speed.min(unfelt));
    let within = |slowest: u32| {
        let mut graph = Graph::new(n);
        for (a, b) in edges(n).filter(|&(a, b)| speed(a, b) >= slowest) {
            graph.connect(a, b);
        }
        graph
    };
    if n > SEARCHED_MAX {
        return within(0);
    }
    let mut speeds: Vec<u32> = edges(n).map(|(a, b)| speed(a, b)).collect();
    speeds.sort_unstable();
    speeds.dedup();
    let matches_all = |&slowest: &u32| {
        let mut matching = Matching::new(n);
        matching.augment(&within(slowest));
        matching.left_over().count() == n % 2
    };
    let needed = speeds
        .partition_point(matches_all)
        .checked_sub(1)
        .map_or(0, |place| speeds[place]);
    within(needed / 2)
}

/// Largest cluster in which the needed speed is looked for: it takes a dozen matchings of all pairs.
const SEARCHED_MAX: usize = 128;

/// Orders pairs of places: those that differ in one bit by that bit, and then the others.
pub(super) fn hypercube_rank(a: usize, b: usize) -> usize {
    let differing = a ^ b;
    if differing.is_power_of_two() {
        differing
    } else {
        usize::MAX
    }
}
