//! What a node tells the leader, and when it is said again.

use super::{Applied, OpenJob};
use crate::round::Stage;
use lapwing_base::{Bandwidth, LinkSpeed, NodeId, Report, Roster};
use lapwing_net::Network;
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tracing::debug;

/// Sends everything that the log does not show yet. A full queue loses it until the next time.
pub(super) fn report(open: &OpenJob, reports: &mpsc::Sender<Report>, applied: &Applied, me: NodeId) {
    let Some(view) = applied.job.as_ref().filter(|view| view.id == open.id) else {
        return;
    };
    let mut outstanding = Vec::new();
    if let Stage::Reported(report) = open.core.stage() {
        // Before the round's report, with which the leader may close it.
        let (round, partners) = &open.refused;
        if *round == report.round {
            outstanding.push(Report::Refused {
                job: open.id,
                round: *round,
                node: me,
                partners: partners.clone(),
            });
        }
        let mut report = report.clone();
        report.links.clone_from(&open.links);
        outstanding.push(Report::Round(*report));
    }
    if let Some(report @ Report::Evaluation { evaluation, .. }) = &open.evaluation
        && view.evaluating == Some((evaluation.round, me))
    {
        outstanding.push(report.clone());
    }
    if let (Some(manifest), Some(_)) = (&view.manifest, &open.consensus)
        && !manifest.holders.contains(&me)
    {
        outstanding.push(Report::Holding {
            job: open.id,
            node: me,
            hash: manifest.hash,
        });
    }
    for report in outstanding {
        if reports.try_send(report).is_err() {
            debug!("the way to the leader is busy; the report is sent again later");
        }
    }
}

/// Our links whose measurement has changed by more than a twentieth since it was last reported.
pub(super) fn changed_links(
    known: &mut BTreeMap<NodeId, Bandwidth>,
    network: &Network,
    me: NodeId,
    roster: &Roster,
) -> Vec<LinkSpeed> {
    let mut links = Vec::new();
    for (peer, speed) in network.measured() {
        let Some(member) = roster.by_peer(&peer) else {
            continue;
        };
        let same = known
            .get(&member.id)
            .is_some_and(|before| before.kbit_s.abs_diff(speed.kbit_s) <= before.kbit_s / 20);
        if !same {
            known.insert(member.id, speed);
            links.push(LinkSpeed {
                from: me,
                to: member.id,
                speed,
            });
        }
    }
    links
}
