//! Who votes, who only learns, who is suspected and who is gone: the leader's care for its members.
//!
//! Pure: it is given what the log says, what raft says and when each member was last heard, and answers with
//! at most one thing to do. It does nothing itself, and remembers only since when things have been as they
//! are. One of these serves one term of one leader.
//!
//! The rules, in the order in which they are looked at:
//!
//! 1. Whoever is no longer a member leaves raft's membership, after a moment in which it can read of it.
//! 2. Every member that stays is at least a learner.
//! 3. Members are activated, restored and suspected by what is heard of them.
//! 4. A member that leaves hands over its vote (and, if it leads, the lead), and is then removed.
//! 5. Below three voters, a learner that has caught up is promoted at once. From three on there is one change
//!    in ten seconds and a candidate has been healthy for a minute, unless it replaces a dead voter. Promotion
//!    and demotion are one step, so that there are never fewer voters than before.
//! 6. Who has been silent for very long is removed; a voter only once its place is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lapwing_base::{Member, MemberState, NodeId, Role};

use crate::{Pin, Timing};

/// What the leader sees at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The leader itself.
    pub me: NodeId,
    /// The members by the log.
    pub members: &'a BTreeMap<NodeId, Member>,
    /// What operators said.
    pub pins: &'a BTreeMap<NodeId, Pin>,
    /// Those that vote by raft's own membership.
    pub voters: &'a BTreeSet<NodeId>,
    /// Those that only learn.
    pub learners: &'a BTreeSet<NodeId>,
    /// How many entries each one is behind; absent while unknown.
    pub lag: &'a BTreeMap<NodeId, u64>,
    /// When each one last answered.
    pub heard: &'a BTreeMap<NodeId, Instant>,
    /// How patient to be.
    pub timing: Timing,
}

/// One thing to do.
#[must_use]
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Raft replicates to this member from now on.
    AddLearner(NodeId),
    /// A learner votes from now on.
    Promote(NodeId),
    /// A learner takes a voter's place, in one change.
    Replace {
        /// Who votes from now on.
        promote: NodeId,
        /// Who only learns from now on.
        demote: NodeId,
    },
    /// A voter only learns from now on.
    Demote(NodeId),
    /// Raft forgets a learner.
    RemoveFromRaft(NodeId),
    /// Commit that a member is suspected.
    Suspect(NodeId),
    /// Commit that a member is active again.
    Restore(NodeId),
    /// Commit that a joining member follows the log.
    Activate(NodeId),
    /// Commit that a member is one no longer.
    Remove(NodeId),
    /// Hand over the lead.
    TransferLeader(NodeId),
}

/// Remembers since when things have been as they are, and says what to do next.
#[derive(Debug)]
pub struct Reconciler {
    leading_since: Instant,
    seen_since: BTreeMap<NodeId, Instant>,
    healthy_since: BTreeMap<NodeId, Instant>,
    gone_since: BTreeMap<NodeId, Instant>,
    voters_changed_at: Option<Instant>,
    looked_at: Instant,
}

/// A candidate is caught up when it lags by less than this many entries.
pub const LAG_MAX: u64 = 250;

/// From three voters on, one change of voters in this time.
const CHANGE_INTERVAL: Duration = Duration::from_secs(10);

/// From three voters on, a candidate has been healthy for this long, unless it replaces a dead one.
const HEALTHY_MIN: Duration = Duration::from_secs(60);

/// How long raft goes on replicating to one that is no longer a member, so that it can read of its removal.
const FAREWELL: Duration = Duration::from_secs(1);

/// Voters that are never given up without a replacement once they were reached.
const VOTERS_FLOOR: usize = 3;

impl Reconciler {
    /// Begins with a term. `silent` is the leader before, if its silence brought this term about, and how long
    /// it has been silent at least: it need not be waited for all over again.
    pub fn new(now: Instant, silent: Option<(NodeId, Duration)>) -> Self {
        let mut seen_since = BTreeMap::new();
        if let Some((node, silence)) = silent {
            seen_since.insert(node, now.checked_sub(silence).unwrap_or(now));
        }
        Self {
            leading_since: now,
            seen_since,
            healthy_since: BTreeMap::new(),
            gone_since: BTreeMap::new(),
            voters_changed_at: None,
            looked_at: now,
        }
    }

    /// What to do next, if anything. Ask again once it is done, and from time to time.
    pub fn next(&mut self, view: &View<'_>, now: Instant) -> Option<Action> {
        self.look(view, now);
        let action = self
            .clear_out(view, now)
            .or_else(|| add_learner(view))
            .or_else(|| self.turn(view))
            .or_else(|| self.see_off(view))
            .or_else(|| self.choose_voters(view, now))
            .or_else(|| self.remove_dead(view));
        if let Some(Action::Promote(_) | Action::Replace { .. } | Action::Demote(_)) = action {
            self.voters_changed_at = Some(now);
        }
        action
    }

    fn look(&mut self, view: &View<'_>, now: Instant) {
        // A leader that did not run for a while heard nobody meanwhile; that is not their silence.
        let asleep = now.saturating_duration_since(self.looked_at);
        if asleep > view.timing.suspect_after / 2 {
            self.leading_since = now;
            self.seen_since.clear();
        }
        self.looked_at = now;

        let first_look = self.healthy_since.is_empty() && self.gone_since.is_empty();
        for id in view.members.keys() {
            let since = if first_look { self.leading_since } else { now };
            self.seen_since.entry(*id).or_insert(since);
        }
        self.seen_since.retain(|id, _| view.members.contains_key(id));

        for (id, member) in view.members {
            let healthy =
                member.state == MemberState::Active && !self.is_silent(view, *id, view.timing.suspect_after);
            if healthy {
                self.healthy_since.entry(*id).or_insert(now);
            } else {
                self.healthy_since.remove(id);
            }
        }
        self.healthy_since.retain(|id, _| view.members.contains_key(id));

        for id in view.voters.union(view.learners) {
            if !view.members.contains_key(id) {
                self.gone_since.entry(*id).or_insert(now);
            }
        }
        self.gone_since.retain(|id, _| {
            !view.members.contains_key(id) && (view.voters.contains(id) || view.learners.contains(id))
        });
    }

    fn silence(&self, view: &View<'_>, id: NodeId) -> Duration {
        if id == view.me {
            return Duration::ZERO;
        }
        let base = self.seen_since.get(&id).copied().unwrap_or(self.leading_since);
        let last = view.heard.get(&id).map_or(base, |heard| base.max(*heard));
        self.looked_at.saturating_duration_since(last)
    }

    fn is_silent(&self, view: &View<'_>, id: NodeId, patience: Duration) -> bool {
        self.silence(view, id) >= patience
    }

    fn clear_out(&self, view: &View<'_>, now: Instant) -> Option<Action> {
        let (id, _) = self
            .gone_since
            .iter()
            .find(|(_, since)| now.saturating_duration_since(**since) >= FAREWELL)?;
        if view.learners.contains(id) {
            return Some(Action::RemoveFromRaft(*id));
        }
        self.give_up_vote(view, *id)
    }

    /// A voter goes: its place is taken, or else given up, and a leader hands over first.
    fn give_up_vote(&self, view: &View<'_>, id: NodeId) -> Option<Action> {
        let successor = self.candidates(view).first().copied();
        if id == view.me {
            let heir = view.voters.iter().copied().find(|voter| {
                *voter != view.me
                    && is_caught_up(view, *voter)
                    && !self.is_silent(view, *voter, view.timing.suspect_after)
                    && view
                        .members
                        .get(voter)
                        .is_some_and(|member| member.state != MemberState::Leaving)
            });
            return heir
                .map(Action::TransferLeader)
                .or_else(|| successor.map(Action::Promote));
        }
        match successor {
            Some(promote) => Some(Action::Replace { promote, demote: id }),
            None if view.voters.len() > 1 => Some(Action::Demote(id)),
            None => None,
        }
    }

    fn turn(&self, view: &View<'_>) -> Option<Action> {
        view.members.values().find_map(|member| {
            let id = member.id;
            let silent = self.is_silent(view, id, view.timing.suspect_after);
            let heard = id == view.me || (view.heard.contains_key(&id) && !silent);
            match member.state {
                MemberState::Joining if heard && (id == view.me || is_caught_up(view, id)) => {
                    Some(Action::Activate(id))
                }
                MemberState::Suspected if heard => Some(Action::Restore(id)),
                MemberState::Active if silent => Some(Action::Suspect(id)),
                MemberState::Joining
                | MemberState::Active
                | MemberState::Suspected
                | MemberState::Leaving => None,
            }
        })
    }

    fn see_off(&self, view: &View<'_>) -> Option<Action> {
        let mut leaving = view
            .members
            .values()
            .filter(|member| member.state == MemberState::Leaving)
            .map(|member| member.id);
        leaving.find_map(|id| {
            if view.voters.contains(&id) {
                self.give_up_vote(view, id)
            } else {
                Some(Action::Remove(id))
            }
        })
    }

    fn choose_voters(&self, view: &View<'_>, now: Instant) -> Option<Action> {
        let steady = view.voters.len() >= VOTERS_FLOOR;
        let may_change = !steady
            || self
                .voters_changed_at
                .is_none_or(|at| now.saturating_duration_since(at) >= CHANGE_INTERVAL);
        let candidates = self.candidates(view);
        let healthy = |id: &NodeId| {
            self.healthy_since
                .get(id)
                .is_some_and(|since| now.saturating_duration_since(*since) >= HEALTHY_MIN)
        };

        // A dead voter's place is taken whatever was changed before.
        let dead = view.voters.iter().copied().find(|id| {
            view.members.contains_key(id)
                && self.is_silent(view, *id, view.timing.dead_after.max(view.timing.suspect_after))
        });
        if let (Some(demote), Some(promote)) = (dead, candidates.first().copied()) {
            return Some(Action::Replace { promote, demote });
        }
        if !may_change {
            return None;
        }

        let target = self.voters_wanted(view);
        if view.voters.len() < target {
            let candidate = candidates.iter().copied().find(|id| !steady || healthy(id))?;
            return Some(Action::Promote(candidate));
        }
        if view.voters.len() > target {
            let mut surplus: Vec<NodeId> = view.voters.iter().copied().filter(|id| *id != view.me).collect();
            surplus.sort_by_key(|id| (rank(view, *id), std::cmp::Reverse(*id)));
            return surplus.last().copied().map(Action::Demote);
        }
        // The right number, but better ones stand by: as an operator said, or mains before homes.
        let best = candidates.iter().copied().find(healthy)?;
        let worst = view
            .voters
            .iter()
            .copied()
            .filter(|id| *id != view.me)
            .max_by_key(|id| rank(view, *id))?;
        (rank(view, best) < rank(view, worst)).then_some(Action::Replace {
            promote: best,
            demote: worst,
        })
    }

    /// As many as are allowed and live, an odd number, but never fewer than now up to three.
    fn voters_wanted(&self, view: &View<'_>) -> usize {
        let live = view
            .voters
            .iter()
            .filter(|id| !self.is_silent(view, **id, view.timing.dead_after))
            .count()
            + self.candidates(view).len();
        let allowed = live.max(view.voters.len()).min(view.timing.voters_max.max(1));
        match allowed {
            n if n < VOTERS_FLOOR || n % 2 == 1 => n.max(1),
            n => n - 1,
        }
    }

    fn remove_dead(&self, view: &View<'_>) -> Option<Action> {
        let patience = view.timing.remove_after.max(view.timing.suspect_after);
        view.members
            .keys()
            .copied()
            .filter(|id| !view.voters.contains(id))
            .find(|id| self.is_silent(view, *id, patience))
            .map(Action::Remove)
    }

    /// Learners that could vote now, best first.
    fn candidates(&self, view: &View<'_>) -> Vec<NodeId> {
        let mut fit: Vec<NodeId> = view
            .learners
            .iter()
            .copied()
            .filter(|id| {
                view.members
                    .get(id)
                    .is_some_and(|member| member.state == MemberState::Active)
                    && view.pins.get(id) != Some(&Pin::Learner)
                    && view.heard.contains_key(id)
                    && !self.is_silent(view, *id, view.timing.suspect_after)
                    && is_caught_up(view, *id)
            })
            .collect();
        fit.sort_by_key(|id| (rank(view, *id), self.healthy_since.get(id).copied(), *id));
        fit
    }
}

fn add_learner(view: &View<'_>) -> Option<Action> {
    view.members
        .values()
        .filter(|member| member.state != MemberState::Leaving)
        .map(|member| member.id)
        .find(|id| !view.voters.contains(id) && !view.learners.contains(id))
        .map(Action::AddLearner)
}

fn is_caught_up(view: &View<'_>, id: NodeId) -> bool {
    view.lag.get(&id).is_some_and(|lag| *lag < LAG_MAX)
}

/// Who should rather vote: the operator's word first, then mains. Smaller is better.
fn rank(view: &View<'_>, id: NodeId) -> (u8, u8) {
    let pinned = match view.pins.get(&id) {
        Some(Pin::Voter) => 0,
        None => 1,
        Some(Pin::Learner) => 2,
    };
    let role = match view.members.get(&id).map(|member| member.role) {
        Some(Role::Main) => 0,
        Some(Role::Home) | None => 1,
    };
    (pinned, role)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do to begin a story")]
mod tests {
    use lapwing_base::Keypair;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_joiner_becomes_learner_then_active_then_voter_once_it_has_caught_up() {
        let mut world = World::of(1);
        world.join(2, MemberState::Joining);
        assert_eq!(world.next(), Some(Action::AddLearner(NodeId(2))));
        world.learners.insert(NodeId(2));
        assert_eq!(world.next(), None, "not heard yet");
        world.hear(2, LAG_MAX);
        assert_eq!(world.next(), None, "too far behind");
        world.hear(2, LAG_MAX - 1);
        assert_eq!(world.next(), Some(Action::Activate(NodeId(2))));
        world.set(2, MemberState::Active);
        assert_eq!(world.next(), Some(Action::Promote(NodeId(2))));
    }

    #[test]
    fn three_vote_and_the_rest_stand_by() {
        let mut world = World::of(3);
        for id in 4..=9 {
            world.add_learner(id);
        }
        world.wait(10 * SECOND);
        assert_eq!(world.next(), None);
    }

    #[test]
    fn five_vote_when_that_is_allowed_one_in_ten_seconds_after_a_healthy_minute() {
        let mut world = World::of(3);
        world.timing.voters_max = 5;
        world.add_learner(4);
        assert_eq!(world.next(), None, "four would be no better than three");
        world.add_learner(5);
        assert_eq!(world.next(), None);
        world.wait(61 * SECOND);
        assert_eq!(world.next(), Some(Action::Promote(NodeId(4))));
        world.promote(4);
        assert_eq!(world.next(), None);
        world.wait(11 * SECOND);
        assert_eq!(world.next(), Some(Action::Promote(NodeId(5))));
    }

    #[test]
    fn a_silent_member_is_suspected_and_restored_when_it_answers() {
        let mut world = World::of(3);
        world.silence(3);
        world.wait(world.timing.suspect_after - Duration::from_millis(100));
        assert_eq!(world.next(), None);
        world.wait(Duration::from_millis(100));
        assert_eq!(world.next(), Some(Action::Suspect(NodeId(3))));
        world.set(3, MemberState::Suspected);
        assert_eq!(world.next(), None);
        world.answer(3);
        assert_eq!(world.next(), Some(Action::Restore(NodeId(3))));
    }

    #[test]
    fn a_dead_voter_is_replaced_by_a_caught_up_learner_in_one_step() {
        let mut world = World::of(3);
        world.add_learner(4);
        world.silence(3);
        world.set(3, MemberState::Suspected);
        world.wait(world.timing.dead_after);
        let (promote, demote) = (NodeId(4), NodeId(3));
        assert_eq!(world.next(), Some(Action::Replace { promote, demote }));
    }

    #[test]
    fn a_dead_voter_that_nobody_can_replace_stays_however_long_it_is_silent() {
        let mut world = World::of(3);
        world.silence(3);
        world.set(3, MemberState::Suspected);
        world.wait(world.timing.remove_after * 2);
        assert_eq!(world.next(), None);
    }

    #[test]
    fn mains_vote_before_homes_and_pins_before_both() {
        let mut world = World::of(1);
        for id in 2..=4 {
            world.add_learner(id);
        }
        world.member(2).role = Role::Home;
        assert_eq!(world.next(), Some(Action::Promote(NodeId(3))));
        world.pins.insert(NodeId(2), Pin::Voter);
        world.pins.insert(NodeId(3), Pin::Learner);
        assert_eq!(world.next(), Some(Action::Promote(NodeId(2))));
    }

    #[test]
    fn an_operators_pin_moves_a_vote_after_a_healthy_minute() {
        let mut world = World::of(3);
        world.add_learner(4);
        world.pins.insert(NodeId(4), Pin::Voter);
        assert_eq!(world.next(), None);
        world.wait(61 * SECOND);
        assert!(matches!(
            world.next(),
            Some(Action::Replace {
                promote: NodeId(4),
                ..
            })
        ));
    }

    #[test]
    fn a_learner_that_is_silent_for_very_long_is_removed_and_then_forgotten_by_raft() {
        let mut world = World::of(3);
        world.add_learner(4);
        world.silence(4);
        world.set(4, MemberState::Suspected);
        world.wait(world.timing.remove_after);
        assert_eq!(world.next(), Some(Action::Remove(NodeId(4))));
        world.members.remove(&NodeId(4));
        assert_eq!(world.next(), None, "it may still read of it");
        world.wait(FAREWELL);
        assert_eq!(world.next(), Some(Action::RemoveFromRaft(NodeId(4))));
    }

    #[test]
    fn a_leaving_voter_hands_over_its_vote_and_is_removed() {
        let mut world = World::of(3);
        world.add_learner(4);
        world.set(2, MemberState::Leaving);
        let (promote, demote) = (NodeId(4), NodeId(2));
        assert_eq!(world.next(), Some(Action::Replace { promote, demote }));
        world.promote(4);
        world.demote(2);
        assert_eq!(world.next(), Some(Action::Remove(NodeId(2))));
    }

    #[test]
    fn a_leaving_leader_hands_over_the_lead_first() {
        let mut world = World::of(3);
        world.set(1, MemberState::Leaving);
        assert_eq!(world.next(), Some(Action::TransferLeader(NodeId(2))));
    }

    #[test]
    fn the_leader_that_fell_silent_before_this_term_is_suspected_soon() {
        let mut world = World::of(3);
        world.silence(3);
        world.heard.remove(&NodeId(3));
        world.reconciler = Reconciler::new(world.now, Some((NodeId(3), Duration::from_millis(1500))));
        world.wait(Duration::from_millis(400));
        assert_eq!(world.next(), None);
        world.wait(Duration::from_millis(100));
        assert_eq!(world.next(), Some(Action::Suspect(NodeId(3))));
    }

    #[test]
    fn a_leader_that_slept_does_not_blame_the_others() {
        let mut world = World::of(3);
        assert_eq!(world.next(), None);
        world.now += 100 * SECOND;
        assert_eq!(world.next(), None);
    }

    #[test]
    fn surplus_voters_are_demoted_and_never_the_leader() {
        let mut world = World::of(5);
        world.timing.voters_max = 3;
        assert_eq!(world.next(), Some(Action::Demote(NodeId(2))));
        world.member(4).role = Role::Home;
        world.wait(11 * SECOND);
        assert_eq!(world.next(), Some(Action::Demote(NodeId(4))));
    }

    struct World {
        now: Instant,
        members: BTreeMap<NodeId, Member>,
        pins: BTreeMap<NodeId, Pin>,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
        lag: BTreeMap<NodeId, u64>,
        heard: BTreeMap<NodeId, Instant>,
        silent: BTreeSet<NodeId>,
        timing: Timing,
        reconciler: Reconciler,
    }

    impl World {
        fn of(voters: u64) -> Self {
            let now = Instant::now() + Duration::from_secs(3600);
            let mut world = Self {
                now,
                members: BTreeMap::new(),
                pins: BTreeMap::new(),
                voters: BTreeSet::new(),
                learners: BTreeSet::new(),
                lag: BTreeMap::new(),
                heard: BTreeMap::new(),
                silent: BTreeSet::new(),
                timing: Timing::default(),
                reconciler: Reconciler::new(now, None),
            };
            for id in 1..=voters {
                world.add_learner(id);
                world.promote(id);
            }
            world
        }

        fn join(&mut self, id: u64, state: MemberState) {
            let id = NodeId(id);
            let member = Member {
                id,
                peer: Keypair::generate_ed25519().public().to_peer_id(),
                name: id.to_string(),
                addrs: Vec::new(),
                role: Role::Main,
                state,
            };
            self.members.insert(id, member);
        }

        fn add_learner(&mut self, id: u64) {
            self.join(id, MemberState::Active);
            self.learners.insert(NodeId(id));
            self.hear(id, 0);
        }

        fn hear(&mut self, id: u64, lag: u64) {
            self.heard.insert(NodeId(id), self.now);
            self.lag.insert(NodeId(id), lag);
        }

        fn promote(&mut self, id: u64) {
            self.learners.remove(&NodeId(id));
            self.voters.insert(NodeId(id));
        }

        fn demote(&mut self, id: u64) {
            self.voters.remove(&NodeId(id));
            self.learners.insert(NodeId(id));
        }

        fn member(&mut self, id: u64) -> &mut Member {
            self.members.get_mut(&NodeId(id)).unwrap()
        }

        fn set(&mut self, id: u64, state: MemberState) {
            self.member(id).state = state;
        }

        fn silence(&mut self, id: u64) {
            self.silent.insert(NodeId(id));
        }

        fn answer(&mut self, id: u64) {
            self.silent.remove(&NodeId(id));
            self.heard.insert(NodeId(id), self.now);
        }

        /// Time passes, and everybody but the silent answers all along.
        fn wait(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now = end.min(self.now + SECOND / 10);
                for (id, heard) in &mut self.heard {
                    if !self.silent.contains(id) {
                        *heard = self.now;
                    }
                }
                let view = view(
                    self.now,
                    &self.members,
                    &self.pins,
                    &self.voters,
                    &self.learners,
                    &self.lag,
                    &self.heard,
                    self.timing,
                );
                self.reconciler.look(&view.1, view.0);
            }
        }

        fn next(&mut self) -> Option<Action> {
            let view = view(
                self.now,
                &self.members,
                &self.pins,
                &self.voters,
                &self.learners,
                &self.lag,
                &self.heard,
                self.timing,
            );
            self.reconciler.next(&view.1, view.0)
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "borrows the fields apart from the reconciler"
    )]
    fn view<'a>(
        now: Instant,
        members: &'a BTreeMap<NodeId, Member>,
        pins: &'a BTreeMap<NodeId, Pin>,
        voters: &'a BTreeSet<NodeId>,
        learners: &'a BTreeSet<NodeId>,
        lag: &'a BTreeMap<NodeId, u64>,
        heard: &'a BTreeMap<NodeId, Instant>,
        timing: Timing,
    ) -> (Instant, View<'a>) {
        let me = NodeId(1);
        (
            now,
            View {
                me,
                members,
                pins,
                voters,
                learners,
                lag,
                heard,
                timing,
            },
        )
    }
}
