//! Who goes next over a link that has as many calls under way as it takes: the most urgent, and of two as urgent the first
//! that came. No service takes all places, since it may hang, and others are called over the same link: it has up to so many
//! times as many as are free, so that each that hangs leaves a part of what it found to the next (dynamic thresholds: Choudhury
//! and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::ServiceName;

/// The turns of one link.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    waiting_max: usize,
    /// A service has so many times as many as are free.
    share: usize,
    hasher: RandomState,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Of each service that has or wants any.
    services: BTreeMap<Mark, Places>,
    waiting: usize,
    came: u64,
}

/// Stands for a service: two that have the same by chance share their places.
type Mark = u64;

/// What one service has of a link.
#[derive(Debug, Default)]
struct Places {
    under_way: usize,
    /// The most urgent in front, then by when they came.
    waiting: BTreeMap<(Reverse<i8>, u64), oneshot::Sender<Turn>>,
}

/// The right to have a call under way; the next one has it when this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn(Option<(Arc<Turns>, Mark)>);

/// As many wait as may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Full;

impl Turns {
    /// So many at a time, of one service up to `share` times as many as are free, and so many that wait.
    pub(super) fn new(at_a_time: usize, share: usize, waiting_max: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: at_a_time,
                services: BTreeMap::new(),
                waiting: 0,
                came: 0,
            }),
            waiting_max,
            share,
            hasher: RandomState::new(),
        })
    }

    /// Waits until it is the turn of a call of this service and priority. May be cancelled.
    pub(super) async fn take(self: &Arc<Self>, service: &ServiceName, priority: i8) -> Result<Turn, Full> {
        let mark = self.hasher.hash_one(service);
        let next = {
            let mut guard = self.lock();
            let state = &mut *guard;
            if state.has_place(mark, self.share) {
                state.enter(mark);
                return Ok(Turn(Some((Arc::clone(self), mark))));
            }
            if state.waiting >= self.waiting_max {
                // Whoever waits no longer makes room.
                state.forget_gone();
            }
            if state.waiting >= self.waiting_max {
                return Err(Full);
            }
            let (turn, next) = oneshot::channel();
            state.came += 1;
            state.waiting += 1;
            let place = (Reverse(priority), state.came);
            let places = state.services.entry(mark).or_default();
            places.waiting.insert(place, turn);
            next
        };
        // Its other end stays where it is until it is used.
        next.await.map_err(|_| Full)
    }

    /// A turn of a call of this service, if there is one now.
    pub(super) fn try_take(self: &Arc<Self>, service: &ServiceName) -> Result<Turn, Full> {
        let mark = self.hasher.hash_one(service);
        let mut state = self.lock();
        if !state.has_place(mark, self.share) {
            return Err(Full);
        }
        state.enter(mark);
        Ok(Turn(Some((Arc::clone(self), mark))))
    }

    /// Turns that nobody has.
    pub(super) fn free(&self) -> usize {
        self.lock().free
    }

    /// Whether nobody has or wants a turn, so that nothing is lost with this.
    pub(super) fn is_idle(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }

    /// A call of a service is over: its place is the next one's, and where more places are free than before, others of
    /// services that may have more now go too.
    fn pass_on(self: &Arc<Self>, mark: Mark) {
        let mut left = Some(mark);
        loop {
            let (next, waiter) = {
                let mut state = self.lock();
                if let Some(mark) = left.take() {
                    state.leave(mark);
                }
                let Some(next) = state.next(self.share) else {
                    return;
                };
                next
            };
            // Where it waits no longer, its place is free again.
            if let Err(mut turn) = waiter.send(Turn(Some((Arc::clone(self), next)))) {
                left = turn.0.take().map(|(_, mark)| mark);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether there may be one more call of a service.
    fn has_place(&self, mark: Mark, share: usize) -> bool {
        let under_way = self.services.get(&mark).map_or(0, |places| places.under_way);
        under_way < self.free.saturating_mul(share)
    }

    fn enter(&mut self, mark: Mark) {
        self.free -= 1;
        self.services.entry(mark).or_default().under_way += 1;
    }

    fn leave(&mut self, mark: Mark) {
        self.free += 1;
        if let Some(places) = self.services.get_mut(&mark) {
            places.under_way -= 1;
            if places.under_way == 0 && places.waiting.is_empty() {
                self.services.remove(&mark);
            }
        }
    }

    /// Whoever is the next, and counts as under way from now on. Few services have anybody waiting at a time.
    fn next(&mut self, share: usize) -> Option<(Mark, oneshot::Sender<Turn>)> {
        if self.waiting == 0 {
            return None;
        }
        let most = self.free.saturating_mul(share);
        let may = self.services.iter().filter(|(_, places)| places.under_way < most);
        let first = may.filter_map(|(mark, places)| Some((*places.waiting.first_key_value()?.0, *mark)));
        let (_, mark) = first.min()?;
        let (_, waiter) = self.services.get_mut(&mark)?.waiting.pop_first()?;
        self.waiting -= 1;
        self.enter(mark);
        Some((mark, waiter))
    }

    fn forget_gone(&mut self) {
        for places in self.services.values_mut() {
            places.waiting.retain(|_, waiter| !waiter.is_closed());
        }
        self.services
            .retain(|_, places| places.under_way > 0 || !places.waiting.is_empty());
        self.waiting = self.services.values().map(|places| places.waiting.len()).sum();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some((turns, mark)) = self.0.take() {
            turns.pass_on(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    async fn take(turns: &Arc<Turns>, priority: i8) -> Result<Turn, Full> {
        take_for(turns, "echo", priority).await
    }

    async fn take_for(turns: &Arc<Turns>, service: &str, priority: i8) -> Result<Turn, Full> {
        turns.take(&service.parse().unwrap(), priority).await
    }

    #[tokio::test]
    async fn the_most_urgent_goes_first_and_of_two_the_one_that_came_first() {
        let turns = Turns::new(1, 3, 10);
        let mut now = Some(take(&turns, 0).await.unwrap());
        let mut waiting: Vec<_> = [0, 5, 5, -3]
            .into_iter()
            .map(|priority| Box::pin(take(&turns, priority)))
            .collect();
        assert!(
            waiting
                .iter_mut()
                .all(|one| one.as_mut().now_or_never().is_none())
        );
        let mut numbers = vec![0, 1, 2, 3];
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(now.take());
            let place = (0..waiting.len()).find_map(|place| {
                let turn = waiting[place].as_mut().now_or_never()?;
                now = Some(turn.unwrap());
                Some(place)
            });
            let place = place.unwrap();
            drop(waiting.remove(place));
            order.push(numbers.remove(place));
        }
        assert_eq!(order, [1, 2, 0, 3]);
    }

    #[tokio::test]
    async fn who_waits_no_longer_is_passed_over_and_makes_room() {
        let turns = Turns::new(1, 3, 1);
        let first = take(&turns, 0).await.unwrap();
        let mut gone = Box::pin(take(&turns, 9));
        assert!(gone.as_mut().now_or_never().is_none());
        assert_eq!(take(&turns, 9).now_or_never().unwrap().unwrap_err(), Full);
        drop(gone);
        let mut next = Box::pin(take(&turns, 0));
        assert!(next.as_mut().now_or_never().is_none());
        drop(first);
        let second = next.await.unwrap();
        assert!(!turns.is_idle());
        drop(second);
        assert!(turns.is_idle());
        assert!(take(&turns, 0).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_turn_that_comes_to_one_who_has_just_gone_is_not_lost() {
        let turns = Turns::new(1, 3, 10);
        let first = take(&turns, 0).await.unwrap();
        let mut gone = Box::pin(take(&turns, 0));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(first);
        // It has its turn, and never looks.
        drop(gone);
        assert!(take(&turns, 0).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_service_that_hangs_leaves_places_for_others() {
        let turns = Turns::new(4, 3, 10);
        let mut hanging = Vec::new();
        for _ in 0..3 {
            hanging.push(take_for(&turns, "hangs", 0).await.unwrap());
        }
        let mut fourth = Box::pin(take_for(&turns, "hangs", 9));
        assert!(fourth.as_mut().now_or_never().is_none(), "it has its share");
        let other = take(&turns, 0).now_or_never().unwrap().unwrap();
        let mut second = Box::pin(take(&turns, 0));
        assert!(second.as_mut().now_or_never().is_none(), "all places are taken");
        drop(other);
        let other = second.as_mut().now_or_never().unwrap().unwrap();
        drop(hanging.pop());
        drop(fourth.await.unwrap());
        drop((hanging, other));
        assert!(
            turns.lock().services.is_empty(),
            "nothing is kept of what is over"
        );
    }

    #[test]
    fn each_service_that_hangs_leaves_half_of_what_it_found_to_the_next_or_a_quarter() {
        for (share, expected) in [(1, [500, 250, 125, 62, 31]), (3, [250, 62, 15, 3, 0])] {
            let turns = Turns::new(1000, share, 0);
            let mut hanging = Vec::new();
            let free = [0, 1, 2, 3, 4].map(|service| {
                let name = format!("hangs-{service}").parse().unwrap();
                while let Ok(turn) = turns.try_take(&name) {
                    hanging.push(turn);
                }
                turns.free()
            });
            assert_eq!(free, expected);
            drop(hanging);
            assert_eq!(turns.free(), 1000);
            assert!(turns.lock().services.is_empty());
        }
    }
}
