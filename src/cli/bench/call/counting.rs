//! A service that counts, and a thousand calls of it: how many were answered, and how many times each was carried out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use futures::stream;
use lapwing_base::Row;
use lapwing_federation::{Methods, RemoteError};

use super::measuring::now;
use super::relays::Relays;
use crate::cli::failure::Failure;

/// As many as there are.
pub(super) const CALLS: usize = 1_000;

/// What the service has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Executions {
    /// How many times each call was carried out, by its number.
    counted: Arc<Mutex<BTreeMap<u64, u64>>>,
    /// Calls that are not answered.
    begun: Arc<AtomicUsize>,
}

impl Executions {
    /// A service with a method that counts and says what it was told, and one that does not answer.
    pub(super) fn methods(&self) -> Methods {
        let (executions, begun) = (self.clone(), Arc::clone(&self.begun));
        let methods = Methods::new().method("count", move |(number, text): (u64, String)| {
            *executions.lock().entry(number).or_default() += 1;
            async move { Ok(text) }
        });
        methods.method("wait", move |()| {
            begun.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Result<(), RemoteError>>()
        })
    }

    /// Calls so far of the method that does not answer.
    pub(super) fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u64>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thousand calls, so many of them under way at any time: how many were answered, and how long all took.
///
/// # Errors
/// Where one was not answered, or was not carried out exactly once.
pub(super) async fn rows(relays: &Relays, case: &str, in_flight: usize) -> Result<[Row; 2], Failure> {
    let executions = relays.executions();
    executions.lock().clear();
    let caller = relays.counting_caller();
    let begun = now();
    let calls = (0..CALLS).map(|number| {
        let caller = Arc::clone(&caller);
        let arguments = relays.counted_arguments(number);
        async move { caller.call(arguments).await }
    });
    let outcomes: Vec<_> = stream::iter(calls).buffer_unordered(in_flight).collect().await;
    let took = (now() - begun).as_secs_f64() * 1e3;
    let errors: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().err())
        .collect();
    let failed = |why: String| Err(Failure::new(format!("make {CALLS} calls {case}"), why));
    if let Some((code, message)) = errors.first() {
        return failed(format!(
            "{} were not answered, the first because of {}: {message}",
            errors.len(),
            code.name()
        ));
    }
    let (carried_out, twice) = {
        let executions = executions.lock();
        let twice = executions.values().filter(|times| **times > 1).count();
        (executions.len(), twice)
    };
    if carried_out != CALLS || twice > 0 {
        return failed(format!(
            "{carried_out} were carried out, and {twice} more than once"
        ));
    }
    let answered = (outcomes.len() - errors.len()) as f64;
    Ok([
        Row::new(
            "call",
            format!("answered of 1,000 {case}, none carried out twice"),
            answered,
            "calls",
            CALLS as f64,
        ),
        Row::new("call", format!("all 1,000 {case}"), took, "ms", f64::NAN),
    ])
}
