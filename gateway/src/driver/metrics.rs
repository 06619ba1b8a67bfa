//! `GET /metrics`: the directory's numbers and the server's own, as Prometheus text (exposition format 0.0.4).

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{ClusterState, Directory, Now, Status};

/// What the server counts itself. The rest is read from the directory when asked.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Answers sent, by the first digit of their status; index 0 is 1xx.
    answers: [AtomicU64; 5],
    /// Connections accepted. Minus [`Self::closed`] gives those that are open.
    accepted: AtomicU64,
    /// Connections closed, for whatever reason.
    closed: AtomicU64,
}

impl Metrics {
    /// Counts one answer.
    pub(super) fn answered(&self, status: u16) {
        let class = usize::from(status / 100).wrapping_sub(1);
        if let Some(counter) = self.answers.get(class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a connection that opens.
    pub(super) fn opened(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that ends.
    pub(super) fn ended(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// The whole page.
    pub(super) fn render(&self, directory: &Directory, now: Now) -> String {
        let mut page = Page(String::with_capacity(4096));
        let (records, registry) = (directory.records(), directory.registry());
        let (summary, counts) = (directory.summary(now.instant), directory.counts());

        page.open("nodes", "gauge", "Known nodes by API and status.");
        let statuses = [
            Status::Joining,
            Status::Active,
            Status::Suspected,
            Status::Failed,
            Status::Leaving,
        ];
        for status in statuses {
            for (api, count) in [
                ("v1", records.count(status)),
                ("compatible", registry.count(status)),
            ] {
                let labels = format!("{{api=\"{api}\",status=\"{}\"}}", status.as_str());
                page.value("nodes", &labels, count as u64);
            }
        }
        page.single(
            "cluster_members",
            "gauge",
            "Listed nodes that name the cluster.",
            summary.size as u64,
        );
        let formed = u64::from(summary.cluster == ClusterState::Formed);
        page.single(
            "cluster_formed",
            "gauge",
            "1 once a cluster was confirmed.",
            formed,
        );
        page.single(
            "bootstrap_epoch",
            "gauge",
            "Number of the newest bootstrap grant.",
            summary.epoch,
        );
        let term = summary.term.map_or(0, |term| term.0);
        page.single(
            "leader_term",
            "gauge",
            "Term of the leader hint; 0 without one.",
            term,
        );
        let guarded = records.is_guarded() || registry.is_guarded();
        let help = "1 while nodes are kept since most fell silent at once.";
        page.single("mass_expiry_guard", "gauge", help, u64::from(guarded));

        let counters = [
            (
                "registrations_total",
                "Signed registrations and heartbeats taken.",
                counts.registrations,
            ),
            (
                "heartbeats_total",
                "Heartbeats of the compatible API taken.",
                counts.heartbeats,
            ),
            (
                "claims_granted_total",
                "Bootstrap claims granted, repetitions included.",
                counts.claims_granted,
            ),
            (
                "stale_hints_total",
                "Leader hints older than the known one.",
                counts.hints_stale,
            ),
            (
                "conflicting_hints_total",
                "Leader hints that name a second leader of a term.",
                counts.hints_conflicting,
            ),
            (
                "cluster_mismatches_total",
                "Messages that named a second cluster.",
                counts.cluster_mismatches,
            ),
            (
                "nodes_expired_total",
                "Nodes forgotten after a silence.",
                counts.nodes_expired,
            ),
        ];
        for (name, help, value) in counters {
            page.single(name, "counter", help, value);
        }

        page.open(
            "http_answers_total",
            "counter",
            "Answers sent by class of status.",
        );
        for (class, counter) in self.answers.iter().enumerate() {
            let labels = format!("{{class=\"{}xx\"}}", class + 1);
            page.value("http_answers_total", &labels, counter.load(Ordering::Relaxed));
        }
        let closed = self.closed.load(Ordering::Relaxed);
        let accepted = self.accepted.load(Ordering::Relaxed);
        page.single(
            "connections_accepted_total",
            "counter",
            "Connections accepted.",
            accepted,
        );
        page.single(
            "connections_open",
            "gauge",
            "Connections open now.",
            accepted.saturating_sub(closed),
        );
        page.0
    }
}

/// Text under construction.
#[derive(Debug)]
struct Page(String);

impl Page {
    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.open(name, kind, help);
        self.value(name, "", value);
    }

    fn open(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP lapwing_gateway_{name} {help}");
        let _ = writeln!(self.0, "# TYPE lapwing_gateway_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "lapwing_gateway_{name}{labels} {value}");
    }
}
