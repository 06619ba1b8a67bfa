//! Lets the coordinator of `train` plan and close rounds through the log, while this node leads.

use lapwing_base::Report;
use lapwing_consensus::{Applied, Command, Consensus, RaftState};
use lapwing_train::{Committed, Coordinator, CoordinatorConfig, Decision};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// How long one decision may take to commit. A leader that cannot commit for this long has lost its quorum,
/// and its successor decides anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs until `stop`.
pub(crate) async fn coordinate(
    consensus: Consensus,
    mut reports: mpsc::Receiver<Report>,
    stop: CancellationToken,
) {
    let mut coordinator = Coordinator::new(CoordinatorConfig::default());
    let (mut states, mut rosters, mut raft) = (consensus.state(), consensus.roster(), consensus.raft());
    let mut leads = false;
    loop {
        let led = std::mem::replace(&mut leads, raft.borrow_and_update().state == RaftState::Leader);
        if led && !leads {
            coordinator.reset();
        }
        let (state, roster) = (
            states.borrow_and_update().clone(),
            rosters.borrow_and_update().clone(),
        );
        let committed = Committed {
            roster: &roster,
            job: state.current_job().map(|job| &**job),
            bandwidths: &state.bandwidths,
        };
        let mut wake_at = None;
        if leads {
            if !led {
                info!(term = %roster.term, "this node leads; it plans the rounds");
            }
            coordinator.on_committed(&committed, now());
            if let Some(decision) = coordinator.poll(&committed, now()) {
                let deciding = tokio::time::timeout(PATIENCE, decide(&consensus, decision));
                if stop.run_until_cancelled(deciding).await.is_none() {
                    return;
                }
                // The state has moved on, or the coordinator decides again after a while.
                continue;
            }
            wake_at = coordinator.next_timeout();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            report = reports.recv() => match report {
                Some(report) if leads => coordinator.on_report(report, now()),
                Some(_) => (),
                None => return,
            },
            changed = states.changed() => if changed.is_err() { return },
            changed = rosters.changed() => if changed.is_err() { return },
            changed = raft.changed() => if changed.is_err() { return },
            () = sleep_until(wake_at) => (),
        }
    }
}

async fn decide(consensus: &Consensus, decision: Decision) {
    let command = match decision {
        Decision::Plan(plan) => Command::PlanRound(plan),
        Decision::Close(outcome) => Command::CloseRound(outcome),
        Decision::Speeds(links) => Command::Bandwidth(links),
        Decision::AssignEvaluation {
            job,
            round,
            evaluator,
        } => Command::AssignEvaluation {
            job,
            round,
            evaluator,
        },
        Decision::RecordEvaluation {
            job,
            evaluation,
            manifest,
        } => Command::RecordEvaluation {
            job,
            evaluation,
            manifest,
        },
        Decision::RecordRefusals { job, refusals } => Command::RecordRefusals { job, refusals },
        Decision::SetPaces { job, steps } => Command::SetPaces { job, steps },
        Decision::RecordHolders { job, holders } => Command::RecordHolders { job, holders },
        Decision::Finish { job } => Command::FinishJob(job),
    };
    let name = command.name();
    match consensus.propose(command).await {
        Ok(Applied::Refused(reason)) => debug!(name, %reason, "the log refused a decision"),
        Ok(_) => (),
        Err(error) => debug!(name, %error, "a decision was not committed"),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[expect(clippy::disallowed_methods, reason = "the driver of the coordinator's core")]
fn now() -> Instant {
    Instant::now()
}
