//! Rounds in which more than two meet: a ring, and one that averages for others.
//!
//! For algorithms whose meetings are given and not chosen; what the links are worth still decides who sits beside whom.

use super::PlanInput;
use super::links::Links;
use super::seats::Seats;
use crate::draws::Draws;
use lapwing_base::{NodeId, Pair, Round, RoundKind};
use std::cmp::Reverse;

/// A ring through everybody: each one's next neighbour is the one with the fastest link among those left, from a first
/// one that is the same in all rounds. Two members are one pair, one is none.
pub(super) fn ring(input: &PlanInput<'_>) -> Vec<Pair> {
    let seats = seats(input);
    let links = Links::new(&seats, input.bandwidths);
    let mut left: Vec<usize> = (1..seats.len()).rev().collect();
    let mut order = Vec::with_capacity(seats.len());
    order.extend((seats.len() > 0).then_some(0));
    while let Some(&at) = order.last() {
        // Among equally fast ones the first in the drawn order, which is at the end.
        let next = (0..left.len()).max_by_key(|&place| (links.between(at, left[place]), place));
        let Some(next) = next else { break };
        order.push(left.remove(next));
    }
    let next = order.iter().cycle().skip(1);
    let mut pairs = seats.pairs(order.iter().copied().zip(next.copied()));
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// Who averages in a round, and those that train for it: joined with it by a pair, but for the server itself.
pub(super) struct Served {
    pub(super) server: NodeId,
    pub(super) pairs: Vec<Pair>,
    /// Whether the server is among those that train.
    pub(super) trains: bool,
}

/// The server stays as long as it is a member, since it holds the model. The first one is who would serve everybody
/// soonest. `None` without members.
pub(super) fn served(input: &PlanInput<'_>, round: Round) -> Option<Served> {
    let spec = &input.job.spec;
    let last = input
        .job
        .rounds
        .iter()
        .rev()
        .find_map(|record| match record.plan.kind {
            RoundKind::Served { server } => Some(server),
            RoundKind::Sparse | RoundKind::Dense | RoundKind::Reduced => None,
        });
    let server = last
        .filter(|server| input.members.binary_search(server).is_ok())
        .or_else(|| best_server(input))?;
    let mut asked = input.members.to_vec();
    Draws::new("lapwing 2026-11 asked", &[spec.seed, round.0]).shuffle(&mut asked);
    let share = asked.len() as u64 * u64::from(spec.tuning.asked.0);
    // A share of the members is no more than there are; at least one trains.
    asked.truncate(usize::try_from(share.div_ceil(1_000_000)).unwrap_or(1).max(1));
    let mut pairs: Vec<Pair> = asked.iter().filter_map(|&node| Pair::new(node, server)).collect();
    pairs.sort_unstable();
    Some(Served {
        server,
        pairs,
        trains: asked.contains(&server),
    })
}

/// Whose slowest link is the fastest; among several the one with the smallest sum of times to all.
fn best_server(input: &PlanInput<'_>) -> Option<NodeId> {
    let seats = seats(input);
    let links = Links::new(&seats, input.bandwidths);
    let worth = |server: usize| {
        let speeds = (0..seats.len()).filter(|&other| other != server);
        // A link that nobody measured may be as slow as any.
        let speeds: Vec<u64> = speeds
            .map(|other| u64::from(links.between(server, other).unwrap_or_default()))
            .collect();
        let seconds: u64 = speeds.iter().map(|speed| KBIT_S_MAX / (1 + speed)).sum();
        (speeds.iter().min().copied().unwrap_or_default(), Reverse(seconds))
    };
    let best = (0..seats.len()).max_by_key(|&server| (worth(server), Reverse(server)))?;
    seats.node(best)
}

/// Faster than any link, so that a whole number tells the times of all apart.
const KBIT_S_MAX: u64 = 1 << 40;

fn seats(input: &PlanInput<'_>) -> Seats {
    let mut order = input.members.to_vec();
    Draws::new("lapwing 2026-11 groups", &[input.job.spec.seed]).shuffle(&mut order);
    Seats::new(order)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{advance, job, plan_with, set};
    use super::super::{Knobs, seats::edges};
    use lapwing_base::{Algorithm, Bandwidths, NodeId, Ppm, RoundKind};

    #[test]
    fn on_a_ring_everybody_has_two_neighbours_and_the_same_in_all_rounds() {
        for n in 3..12_usize {
            let mut job = job(5, 100);
            job.spec.algorithm = Algorithm::DPsgd;
            let first = plan_with(&job, n, &Bandwidths::default(), Knobs::default());
            assert_eq!((first.kind, first.pairs.len()), (RoundKind::Sparse, n));
            assert!((1..=n as u64).all(|node| first.partners_of(NodeId(node)).count() == 2));
            let pairs = first.pairs.clone();
            advance(&mut job, first);
            assert_eq!(
                plan_with(&job, n, &Bandwidths::default(), Knobs::default()).pairs,
                pairs
            );
        }
        let mut job = job(5, 100);
        job.spec.algorithm = Algorithm::AllReduce;
        for (n, pairs) in [(0, 0), (1, 0), (2, 1)] {
            let plan = plan_with(&job, n, &Bandwidths::default(), Knobs::default());
            assert_eq!((plan.kind, plan.pairs.len()), (RoundKind::Reduced, pairs));
        }
    }

    #[test]
    fn a_ring_takes_the_fast_links() {
        let mut bandwidths = Bandwidths::default();
        for (a, b) in edges(8) {
            let kbit = if b == a + 1 || (a, b) == (0, 7) { 1000 } else { 10 };
            set(&mut bandwidths, a as u64 + 1, b as u64 + 1, kbit);
            set(&mut bandwidths, b as u64 + 1, a as u64 + 1, kbit);
        }
        let mut job = job(2, 100);
        job.spec.algorithm = Algorithm::DPsgd;
        let plan = plan_with(&job, 8, &bandwidths, Knobs::default());
        let slow = plan.pairs.iter().filter(|pair| {
            let [a, b] = pair.nodes();
            bandwidths.between(a, b).unwrap().kbit_s < 1000
        });
        assert_eq!(slow.count(), 0);
    }

    #[test]
    fn the_server_is_whom_all_reach_fastest_and_stays() {
        let mut bandwidths = Bandwidths::default();
        for (a, b) in edges(6) {
            let kbit = if (a, b) == (0, 1) || b == 3 || a == 3 {
                900
            } else {
                100
            };
            set(&mut bandwidths, a as u64 + 1, b as u64 + 1, kbit);
            set(&mut bandwidths, b as u64 + 1, a as u64 + 1, kbit);
        }
        let mut job = job(2, 100);
        (job.spec.algorithm, job.spec.tuning.asked) = (Algorithm::FedAvg, Ppm(500_000));
        let mut trained = [0; 7];
        for _ in 0..60 {
            let plan = plan_with(&job, 6, &bandwidths, Knobs::default());
            let server = NodeId(4);
            assert_eq!(plan.kind, RoundKind::Served { server });
            let clients = plan.partners_of(server).count();
            assert_eq!(clients + plan.alone.len(), 3);
            plan.partners_of(server)
                .chain(plan.alone.iter().copied())
                .for_each(|node| trained[node.0 as usize] += 1);
            advance(&mut job, plan);
            bandwidths = Bandwidths::default();
        }
        assert!(
            trained[1..].iter().all(|times| (18..=42).contains(times)),
            "{trained:?}"
        );
    }
}
