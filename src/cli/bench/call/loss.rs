//! A main that is killed while calls are under way over it: how soon they end, each with an error that says why, and how
//! soon after the main's return calls come through again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapwing_base::Row;
use lapwing_federation::ErrorCode;
use tokio::task::JoinSet;

use super::CROWD;
use super::caller::HomeCaller;
use super::measuring::now;
use super::relays::Relays;
use crate::cli::failure::Failure;

/// Times that each main is killed; the worst of them counts.
const KILLS: u32 = 3;

/// A lost link between nodes that are near each other is noticed within so long.
const NOTICED_MAX: Duration = Duration::from_secs(1);

/// So long after that calls have ended.
const ENDED_MAX: Duration = Duration::from_millis(50);

/// And so long after a main has started again it serves.
const BACK_MAX: Duration = Duration::from_millis(1500);

/// Every call ends within so long, or the measurement has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);

/// Which main is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Killed {
    /// The one that the caller is connected with.
    Near,
    /// The one behind it.
    Far,
}

/// What one kill has shown.
#[derive(Clone, Copy, Debug)]
struct Loss {
    /// From the kill until the caller's node had noticed it, where that node is connected with the main.
    noticed: Option<Duration>,
    /// From the kill until the last call had ended.
    ended: Duration,
    /// From the main's answering again until a call came through.
    back: Duration,
}

/// Kills each main a few times, with fifty calls under way.
///
/// # Errors
/// Where a call did not end, ended with an error that does not say that somebody was lost, or where the main's services did
/// not come back.
pub(super) async fn rows(relays: &mut Relays) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (killed, name) in [
        (Killed::Near, "the caller's main"),
        (Killed::Far, "the other main"),
    ] {
        let mut losses = Vec::new();
        for _ in 0..KILLS {
            losses.push(lose(relays, killed).await?);
        }
        let mut row = |case: &str, figure: fn(&Loss) -> Option<Duration>, most: Duration| {
            if let Some(worst) = losses.iter().filter_map(figure).max() {
                let what = format!("kill -9 of {name}: {case}, beside what it may take");
                let [worst, most] = [worst, most].map(|time| time.as_secs_f64() * 1e3);
                rows.push(Row::new("call", what, worst, "ms", most));
            }
        };
        row("noticed", |loss| loss.noticed, NOTICED_MAX);
        row(
            "last of 50 calls ended after that",
            |loss| Some(loss.ended.saturating_sub(loss.noticed?)),
            ENDED_MAX,
        );
        row(
            "last of 50 calls ended",
            |loss| Some(loss.ended),
            NOTICED_MAX + ENDED_MAX,
        );
        row(
            "calls come through again after its start",
            |loss| Some(loss.back),
            BACK_MAX,
        );
    }
    Ok(rows)
}

async fn lose(relays: &mut Relays, killed: Killed) -> Result<Loss, Failure> {
    let failed = |why: String| Failure::new("kill a main", why);
    let (caller, before) = (relays.waiting_caller(), relays.executions().begun());
    let mut calls = JoinSet::new();
    for _ in 0..CROWD {
        calls.spawn(one(Arc::clone(&caller)));
    }
    let until = now() + PATIENCE;
    while relays.executions().begun() < before + CROWD {
        if now() > until {
            return Err(failed("calls do not come through before that".to_owned()));
        }
        tokio::time::sleep(LOOK).await;
    }
    let begun = now();
    relays.kill(killed).await?;
    let noticed = async {
        while killed == Killed::Near && relays.has_main() {
            tokio::time::sleep(LOOK).await;
        }
        now() - begun
    };
    let ended = tokio::time::timeout(PATIENCE, async { tokio::join!(noticed, calls.join_all()) }).await;
    let (noticed, outcomes) =
        ended.map_err(|_| failed(format!("calls have not ended within {PATIENCE:?}")))?;
    let mut last = begun;
    for (outcome, at) in outcomes {
        match outcome {
            Err((ErrorCode::PeerUnreachable | ErrorCode::NodeOffline, _)) => last = last.max(at),
            other => return Err(failed(format!("a call under way ended so: {other:?}"))),
        }
    }
    let answering = relays.start_again(killed).await?;
    let until = now() + PATIENCE;
    while let Err(why) = relays.reach().await {
        if now() > until {
            return Err(failed(format!("no call comes through after its return: {why}")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(Loss {
        noticed: (killed == Killed::Near).then_some(noticed),
        ended: last - begun,
        back: now() - answering,
    })
}

/// A call that is not answered, how it ended, and when.
async fn one(caller: Arc<HomeCaller>) -> (Result<String, (ErrorCode, String)>, Instant) {
    let outcome = caller.call("[]".to_owned()).await;
    (outcome, now())
}
