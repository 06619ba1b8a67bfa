//! Who takes fewer local steps: a member that is far slower than the others would have them all wait in every round.
//!
//! Pure: it is told how long steps took, by the leader's coordinator and by the simulation alike. What it decides goes
//! through the log, so that a member that starts anew takes as many steps as before.

use lapwing_base::NodeId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Rounds of which the middle one counts: a machine that was busy once is not slow.
const RECENT_ROUNDS: usize = 5;

/// Rounds of a member before it is judged, and before it is judged anew after a change of its steps.
const JUDGED_AFTER: usize = 3;

/// From where on a member is slow, and down to where it stays so, in times of the typical step: apart, so that a machine
/// between the two does not go to and fro.
const SLOW: u32 = 2;
const STILL_SLOW: f64 = 1.5;

/// How much longer than the others' a slow member's round may be: its steps are as many as fit.
const LONGER: f64 = 1.25;

/// What everybody must lose in a round before a member takes fewer steps; less is not noticed over hours.
const WORTH: Duration = Duration::from_millis(500);

/// How long members' steps took lately.
#[derive(Debug, Default)]
pub(crate) struct Paces {
    /// Time of a step, newest last.
    recent: BTreeMap<NodeId, VecDeque<Duration>>,
}

impl Paces {
    /// A member took so many steps, at least one, in this time.
    pub(crate) fn note(&mut self, node: NodeId, took: Duration, steps: u32) {
        let recent = self.recent.entry(node).or_default();
        recent.push_back(took / steps.max(1));
        while recent.len() > RECENT_ROUNDS {
            recent.pop_front();
        }
    }

    /// How many steps those of these members take that take fewer than a plan's `steps`. `held` is what holds by now.
    pub(crate) fn decide(
        &mut self,
        members: &[NodeId],
        steps: u32,
        held: &BTreeMap<NodeId, u32>,
    ) -> BTreeMap<NodeId, u32> {
        let present: BTreeSet<NodeId> = members.iter().copied().collect();
        self.recent.retain(|node, _| present.contains(node));
        let mut times: Vec<Duration> = self.recent.values().filter_map(middle).collect();
        times.sort_unstable();
        // Of two members, the faster one.
        let typical = times.get(times.len().saturating_sub(1) / 2).copied();
        let decided: BTreeMap<NodeId, u32> = members
            .iter()
            .filter_map(|node| {
                let held = held.get(node).copied();
                let own = self.recent.get(node).and_then(middle);
                let fewer = match (own, typical) {
                    (Some(own), Some(typical)) => fewer(own, typical, steps, held),
                    // Not judged yet.
                    _ => held.filter(|held| *held < steps),
                };
                fewer.map(|fewer| (*node, fewer))
            })
            .collect();
        decided
    }
}

fn fewer(own: Duration, typical: Duration, steps: u32, held: Option<u32>) -> Option<u32> {
    let is_slow = own > typical * SLOW && (own - typical) * steps >= WORTH;
    let is_still_slow = held.is_some() && own > typical.mul_f64(STILL_SLOW);
    if !is_slow && !is_still_slow {
        return None;
    }
    let fitting = (LONGER * typical.as_secs_f64() / own.as_secs_f64() * f64::from(steps)) as u32;
    let fitting = fitting.clamp(1, steps);
    let is_near = |held: &u32| held.abs_diff(fitting) <= (held / 4).max(1);
    let chosen = held.filter(is_near).unwrap_or(fitting);
    (chosen < steps).then_some(chosen)
}

/// The middle one, once there are enough.
fn middle(recent: &VecDeque<Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = recent.iter().copied().collect();
    sorted.sort_unstable();
    let enough = sorted.len() >= JUDGED_AFTER;
    enough.then(|| sorted.get(sorted.len() / 2).copied()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u32 = 20;

    fn members() -> Vec<NodeId> {
        (1..=5).map(NodeId).collect()
    }

    /// Rounds in which the fifth member's steps take so many times the others' 100 ms.
    fn play(paces: &mut Paces, rounds: usize, factor: f64, held: &BTreeMap<NodeId, u32>) {
        for _ in 0..rounds {
            for node in members() {
                let factor = if node == NodeId(5) { factor } else { 1.0 };
                let steps = held.get(&node).copied().unwrap_or(STEPS);
                paces.note(node, Duration::from_millis(100).mul_f64(factor) * steps, steps);
            }
        }
    }

    fn decide(paces: &mut Paces, held: &BTreeMap<NodeId, u32>) -> BTreeMap<NodeId, u32> {
        paces.decide(&members(), STEPS, held)
    }

    #[test]
    fn a_slow_member_takes_as_many_steps_as_fit_into_the_others_time() {
        let (mut paces, nobody) = (Paces::default(), BTreeMap::new());
        play(&mut paces, JUDGED_AFTER - 1, 4.0, &nobody);
        assert_eq!(decide(&mut paces, &nobody), nobody, "judged too early");
        play(&mut paces, 1, 4.0, &nobody);
        let slow = decide(&mut paces, &nobody);
        assert_eq!(slow, BTreeMap::from([(NodeId(5), 6)]));
        // A little faster or slower changes nothing; far slower does, and one step is the least.
        play(&mut paces, RECENT_ROUNDS, 4.6, &slow);
        assert_eq!(decide(&mut paces, &slow), slow);
        play(&mut paces, RECENT_ROUNDS, 400.0, &slow);
        assert_eq!(decide(&mut paces, &slow), BTreeMap::from([(NodeId(5), 1)]));
        // Between the two bounds it stays as it is, below it takes all steps again.
        play(&mut paces, RECENT_ROUNDS, 1.7, &slow);
        assert!(decide(&mut paces, &slow).contains_key(&NodeId(5)));
        assert_eq!(decide(&mut paces, &nobody), nobody);
        play(&mut paces, RECENT_ROUNDS, 1.2, &slow);
        assert_eq!(decide(&mut paces, &slow), nobody);
    }

    #[test]
    fn nobody_is_slow_for_one_bad_round_or_for_what_nobody_notices() {
        let (mut paces, nobody) = (Paces::default(), BTreeMap::new());
        play(&mut paces, 4, 1.0, &nobody);
        play(&mut paces, 1, 50.0, &nobody);
        assert_eq!(decide(&mut paces, &nobody), nobody);
        let mut paces = Paces::default();
        for _ in 0..RECENT_ROUNDS {
            for node in members() {
                let took = if node == NodeId(5) { 300 } else { 20 };
                paces.note(node, Duration::from_millis(took), STEPS);
            }
        }
        assert_eq!(decide(&mut paces, &nobody), nobody);
    }

    #[test]
    fn of_two_members_the_slower_one_is_the_slow_one_and_who_left_is_forgotten() {
        let (mut paces, nobody) = (Paces::default(), BTreeMap::new());
        play(&mut paces, RECENT_ROUNDS, 10.0, &nobody);
        let two = [NodeId(4), NodeId(5)];
        assert_eq!(
            paces.decide(&two, STEPS, &nobody),
            BTreeMap::from([(NodeId(5), 2)])
        );
        assert_eq!(paces.decide(&[NodeId(5)], STEPS, &nobody), nobody);
        assert_eq!(paces.recent.len(), 1);
        // Whoever has not been judged keeps what it has, unless the job's steps are no more than that.
        let held = BTreeMap::from([(NodeId(1), 3), (NodeId(2), STEPS)]);
        assert_eq!(
            paces.decide(&members(), STEPS, &held),
            BTreeMap::from([(NodeId(1), 3)])
        );
    }

    #[test]
    fn a_job_of_single_steps_has_none_to_spare() {
        let (mut paces, nobody) = (Paces::default(), BTreeMap::new());
        for _ in 0..RECENT_ROUNDS {
            for node in members() {
                paces.note(
                    node,
                    Duration::from_secs(if node == NodeId(5) { 60 } else { 1 }),
                    1,
                );
            }
        }
        assert_eq!(paces.decide(&members(), 1, &nobody), nobody);
        assert_eq!(Paces::default().decide(&members(), STEPS, &nobody), nobody);
    }
}
