//! Who goes next over a link that has as many calls under way as it takes: the most urgent, and of two as urgent the first
//! that came.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The turns of one link.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<State>,
    waiting_max: usize,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// The most urgent in front, then by when they came.
    waiting: BTreeMap<(Reverse<i8>, u64), oneshot::Sender<Turn>>,
    came: u64,
}

/// The right to have a call under way; the next one has it when this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn(Option<Arc<Turns>>);

/// As many wait as may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Full;

impl Turns {
    /// So many at a time, and so many that wait.
    pub(super) fn new(at_a_time: usize, waiting_max: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: at_a_time,
                waiting: BTreeMap::new(),
                came: 0,
            }),
            waiting_max,
        })
    }

    /// Waits until it is the turn of a call of this priority. May be cancelled.
    pub(super) async fn take(self: &Arc<Self>, priority: i8) -> Result<Turn, Full> {
        let next = {
            let mut state = self.lock();
            // Whoever waits no longer makes room.
            state.waiting.retain(|_, waiter| !waiter.is_closed());
            if state.free > 0 {
                state.free -= 1;
                return Ok(Turn(Some(Arc::clone(self))));
            }
            if state.waiting.len() >= self.waiting_max {
                return Err(Full);
            }
            let (turn, next) = oneshot::channel();
            state.came += 1;
            let place = (Reverse(priority), state.came);
            state.waiting.insert(place, turn);
            next
        };
        // Its other end stays where it is until it is used.
        next.await.map_err(|_| Full)
    }

    /// Whether nobody has or wants a turn, so that nothing is lost with this.
    pub(super) fn is_idle(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1
    }

    fn pass_on(self: &Arc<Self>) {
        loop {
            let first = {
                let mut state = self.lock();
                let first = state.waiting.pop_first();
                if first.is_none() {
                    state.free += 1;
                }
                first
            };
            let Some((_, waiter)) = first else { return };
            match waiter.send(Turn(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // It waits no longer: the next one.
                Err(mut turn) => drop(turn.0.take()),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn the_most_urgent_goes_first_and_of_two_the_one_that_came_first() {
        let turns = Turns::new(1, 10);
        let mut now = Some(turns.take(0).await.unwrap());
        let mut waiting: Vec<_> = [0, 5, 5, -3]
            .into_iter()
            .map(|priority| Box::pin(turns.take(priority)))
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
        let turns = Turns::new(1, 1);
        let first = turns.take(0).await.unwrap();
        let mut gone = Box::pin(turns.take(9));
        assert!(gone.as_mut().now_or_never().is_none());
        assert_eq!(turns.take(9).now_or_never().unwrap().unwrap_err(), Full);
        drop(gone);
        let mut next = Box::pin(turns.take(0));
        assert!(next.as_mut().now_or_never().is_none());
        drop(first);
        let second = next.await.unwrap();
        assert!(!turns.is_idle());
        drop(second);
        assert!(turns.is_idle());
        assert!(turns.take(0).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_turn_that_comes_to_one_who_has_just_gone_is_not_lost() {
        let turns = Turns::new(1, 10);
        let first = turns.take(0).await.unwrap();
        let mut gone = Box::pin(turns.take(0));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(first);
        // It has its turn, and never looks.
        drop(gone);
        assert!(turns.take(0).now_or_never().is_some());
    }
}
