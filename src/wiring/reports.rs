//! Takes the trainer's reports to the leader's coordinator, wherever the leader is.
//!
//! A report that is lost on the way is sent again by the trainer until the log shows it, so nothing is kept
//! or retried here.

use lapwing_base::{ByteSize, Class, JobId, NodeId, Report, Roster, Round};
use lapwing_consensus::State;
use lapwing_net::{Access, Channel, Kind, Network};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A report: a round's is a few hundred bytes and a few dozen for each measured link; an evaluation's has a
/// dozen bytes for each member.
const REPORT: Kind = Kind {
    class: Class::Control,
    name: "report",
    access: Access::Members,
    frame_max: ByteSize::kib(64),
};

/// How long the leader may take to answer. A report is repeated sooner than it pays to wait longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reports taken in at once: every member of a large cluster reports at nearly the same moment.
const SERVING_MAX: usize = 128;

/// What the leader answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
enum Answer {
    Taken,
    /// Another node leads, or nobody does.
    NotLeader,
    /// Too many at once; it will be sent again.
    Busy,
    /// A member may report for itself only.
    NotYours,
    /// The bytes are no report.
    Unreadable,
}

/// Sends what the trainer reports, until `stop`.
pub(crate) async fn send(
    mut outbox: mpsc::Receiver<Report>,
    local: mpsc::Sender<Report>,
    rosters: watch::Receiver<Arc<Roster>>,
    me: NodeId,
    network: Network,
    stop: CancellationToken,
) {
    loop {
        let report = tokio::select! {
            () = stop.cancelled() => return,
            report = outbox.recv() => match report {
                Some(report) => report,
                None => return,
            },
        };
        let leader = rosters.borrow().leader().map(|leader| (leader.id, leader.peer));
        match leader {
            None => debug!("a report waits for a leader"),
            Some((id, _)) if id == me => {
                if local.try_send(report).is_err() {
                    debug!("the coordinator is busy; the report is sent again later");
                }
            }
            Some((id, peer)) => {
                let body = lapwing_net::encode(&report);
                let sent = stop
                    .run_until_cancelled(network.request(peer, REPORT, &body, PATIENCE))
                    .await;
                match sent.map(|answered| answered.map(|frame| lapwing_net::decode::<Answer>(&frame))) {
                    None => return,
                    Some(Ok(Ok(Answer::Taken))) => (),
                    Some(Ok(Ok(answer))) => debug!(leader = %id, ?answer, "the report was not taken"),
                    Some(Ok(Err(error))) => {
                        debug!(leader = %id, %error, "the leader's answer cannot be read")
                    }
                    Some(Err(error)) => debug!(leader = %id, %error, "the report did not arrive"),
                }
            }
        }
    }
}

/// Takes in what others report, until `stop`.
pub(crate) async fn serve(
    local: mpsc::Sender<Report>,
    rosters: watch::Receiver<Arc<Roster>>,
    states: watch::Receiver<Arc<State>>,
    me: NodeId,
    network: Network,
    stop: CancellationToken,
) {
    let mut inbound = network.serve(REPORT, SERVING_MAX);
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = serving.join_next() => (),
            channel = inbound.recv(), if serving.len() < SERVING_MAX => {
                let Some(channel) = channel else { break };
                let (local, roster) = (local.clone(), rosters.borrow().clone());
                let asked = Asked::by(&states.borrow());
                serving.spawn(async move {
                    // A sender that stops half-way has only its own report to lose.
                    let _ = tokio::time::timeout(PATIENCE, take(channel, local, roster, asked, me)).await;
                });
            }
        }
    }
    serving.shutdown().await;
}

async fn take(
    mut channel: Channel,
    local: mpsc::Sender<Report>,
    roster: Arc<Roster>,
    asked: Option<Asked>,
    me: NodeId,
) {
    let Ok(Some(frame)) = channel.receive().await else {
        return;
    };
    let sender = roster.by_peer(&channel.peer()).map(|member| member.id);
    let answer = match lapwing_net::decode::<Report>(&frame) {
        Err(_) => Answer::Unreadable,
        Ok(report) if !is_from(&report, sender, asked) => Answer::NotYours,
        Ok(_) if roster.leader != Some(me) => Answer::NotLeader,
        Ok(report) => match local.try_send(report) {
            Ok(()) => Answer::Taken,
            Err(_) => Answer::Busy,
        },
    };
    if channel.send(&lapwing_net::encode(&answer)).await.is_ok() {
        // The answer is on its way; whether it is read is the sender's business.
        let _ = channel.finish().await;
    }
}

/// Whom the log has asked to evaluate which round.
#[derive(Clone, Copy, Debug)]
struct Asked {
    job: JobId,
    round: Round,
    evaluator: NodeId,
}

impl Asked {
    fn by(state: &State) -> Option<Self> {
        let job = state.current_job()?;
        let (round, evaluator) = job.evaluating?;
        Some(Self {
            job: job.id,
            round,
            evaluator,
        })
    }
}

/// Whether a report speaks of its sender alone, or of what its sender was asked for.
fn is_from(report: &Report, sender: Option<NodeId>, asked: Option<Asked>) -> bool {
    let Some(sender) = sender else { return false };
    match report {
        Report::Round(report) => {
            report.outcome.node == sender
                && report
                    .links
                    .iter()
                    .all(|link| link.from == sender || link.to == sender)
        }
        Report::Holding { node, .. } | Report::Refused { node, .. } => *node == sender,
        // The consensus model's hash comes from here: only who was asked may say it.
        Report::Evaluation { job, evaluation, .. } => asked.is_some_and(|asked| {
            (asked.job, asked.round, asked.evaluator) == (*job, evaluation.round, sender)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::{Evaluation, Ppm};

    #[test]
    fn an_evaluation_is_taken_only_from_the_member_that_was_asked_for_it() {
        let evaluation = Evaluation {
            round: Round(10),
            averaged_accuracy: Ppm(1),
            local_accuracies: Vec::new(),
            transferred: ByteSize(0),
        };
        let report = Report::Evaluation {
            job: JobId(5),
            evaluation,
            hash: [1; 32],
            parameters: 4,
        };
        let asked = Asked {
            job: JobId(5),
            round: Round(10),
            evaluator: NodeId(2),
        };
        assert!(is_from(&report, Some(NodeId(2)), Some(asked)));
        assert!(!is_from(&report, Some(NodeId(3)), Some(asked)));
        assert!(!is_from(
            &report,
            Some(NodeId(2)),
            Some(Asked {
                round: Round(11),
                ..asked
            })
        ));
        assert!(!is_from(&report, Some(NodeId(2)), None));
        assert!(!is_from(&report, None, Some(asked)));
    }

    #[test]
    fn a_member_says_of_itself_alone_that_it_holds_a_model() {
        let report = Report::Holding {
            job: JobId(5),
            node: NodeId(2),
            hash: [1; 32],
        };
        assert!(is_from(&report, Some(NodeId(2)), None));
        assert!(!is_from(&report, Some(NodeId(3)), None));
    }
}
