//! The threads of a simulation: each has a backend of its own, and takes the next item when it is done with one.
//!
//! Which thread computes what is chance, and makes no difference: a backend is given all it needs with each item.

use crate::backend::Backend;
use std::sync::{Mutex, PoisonError};

/// Some backends, a thread each.
pub(super) struct Crew {
    backends: Vec<Box<dyn Backend>>,
}

impl Crew {
    /// One thread for each backend; at least one.
    pub(super) fn new(backends: Vec<Box<dyn Backend>>) -> Self {
        debug_assert!(!backends.is_empty(), "somebody has to work");
        Self { backends }
    }

    /// Does the work on every item, and gives the results in the items' order.
    pub(super) fn each<T, R>(
        &mut self,
        items: impl IntoIterator<Item = T, IntoIter: Send>,
        work: impl Fn(&mut dyn Backend, T) -> R + Sync,
    ) -> Vec<R>
    where
        T: Send,
        R: Send,
    {
        let items = items.into_iter();
        if let [backend] = &mut self.backends[..] {
            return items.map(|item| work(&mut **backend, item)).collect();
        }
        let queue = Mutex::new(items.enumerate());
        let next = || {
            // Nothing that panics is done while it is locked.
            queue.lock().unwrap_or_else(PoisonError::into_inner).next()
        };
        let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .backends
                .iter_mut()
                .map(|backend| {
                    scope.spawn(|| {
                        let mut results = Vec::new();
                        while let Some((place, item)) = next() {
                            results.push((place, work(&mut **backend, item)));
                        }
                        results
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(results) => results,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.flatten().collect()
        });
        results.sort_unstable_by_key(|(place, _)| *place);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew")
            .field("threads", &self.backends.len())
            .finish()
    }
}
