//! A node's numbers as Prometheus text (exposition format 0.0.4), drawn anew at each scrape.

use std::fmt::{Display, Write as _};

use lapwing_base::PeerId;

use super::Federation;
use super::calls::IN_HAND_MAX;
use super::counts::{Histogram, Outcomes};
use crate::InstanceMetrics;

/// Instances of which a scrape has samples: of each there are five.
const INSTANCES_MAX: usize = 4_096;

/// What the HTTP edge counts itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct EdgeNumbers {
    /// Requests to `/rpc` that are not answered yet.
    pub(super) in_hand: usize,
    /// Requests that were told that there are too many.
    pub(super) refused: u64,
    /// WebSockets that are open.
    pub(super) sockets: usize,
}

impl Federation {
    /// The whole page.
    pub(super) fn metrics_text(&self, edge: EdgeNumbers) -> String {
        let mut text = Exposition::default();
        self.write_sessions(&mut text);
        self.write_calls(&mut text, edge);
        self.write_instances(&mut text);
        self.write_mains(&mut text);
        text.0
    }

    fn write_sessions(&self, text: &mut Exposition) {
        let numbers = self.inner.numbers();
        text.family("sessions", "gauge", "Sessions with neighbours that stand.");
        text.sample("sessions", &[("role", "home")], numbers.homes);
        text.sample("sessions", &[("role", "main")], numbers.mains);
        text.single(
            "sessions_begun_total",
            "counter",
            "Sessions with neighbours that began.",
            self.inner.lock().sessions_begun,
        );
        text.single(
            "nodes_known",
            "gauge",
            "Other nodes whose announcements are known.",
            numbers.nodes,
        );
        text.single(
            "services",
            "gauge",
            "Names of services that are known.",
            numbers.services,
        );
        let help = "Names of services of which no instance would be called.";
        text.single("services_failed", "gauge", help, numbers.services_failed);
        let help = "Instances of services: of this node and its homes, and of all others.";
        text.family("instances", "gauge", help);
        text.sample("instances", &[("scope", "local")], numbers.local_instances);
        text.sample(
            "instances",
            &[("scope", "federated")],
            numbers.federated_instances,
        );
        let help = "Instances out of reach, unable by their own word, or with an open breaker.";
        text.single("instances_failed", "gauge", help, numbers.instances_failed);
    }

    fn write_calls(&self, text: &mut Exposition, edge: EdgeNumbers) {
        let in_hand = IN_HAND_MAX.saturating_sub(self.inner.room.free());
        let help = "Calls that this node carries out or has passed on, and that are not answered.";
        text.single("calls_in_hand", "gauge", help, in_hand);
        let state = self.inner.lock();
        let help = "Calls that came from links or the edge, and have ended, by `ok` or the error.";
        text.outcomes("calls_total", help, &state.counts.calls);
        let help = "How long calls took that have ended.";
        text.histogram("call_duration_seconds", help, &state.counts.durations);
        let help = "Requests of JSON-RPC at the edge that have ended, by `ok` or the error.";
        text.outcomes("requests_total", help, &state.counts.requests);
        drop(state);
        let help = "Spans that were not exported since too many waited for it.";
        text.single("spans_lost_total", "counter", help, self.spans_lost());
        let help = "Requests to /rpc that are not answered.";
        text.single("edge_requests_in_hand", "gauge", help, edge.in_hand);
        let help = "Requests over HTTP that were refused since there were too many.";
        text.single("edge_requests_refused_total", "counter", help, edge.refused);
        let help = "WebSockets with older messages that are open.";
        text.single("edge_sockets", "gauge", help, edge.sockets);
    }

    /// Of the instances that this node has chosen among.
    fn write_instances(&self, text: &mut Exposition) {
        let instances: Vec<(String, PeerId, InstanceMetrics)> = {
            let state = self.inner.lock();
            let all = state.balancers.iter().flat_map(|(service, balancer)| {
                let metrics = balancer.metrics();
                metrics.map(move |(node, metrics)| (service.to_string(), *node, metrics))
            });
            all.take(INSTANCES_MAX).collect()
        };
        let labels = instances.iter().map(|(service, node, metrics)| {
            let labels = [("service", service.clone()), ("node", node.to_string())];
            (labels, metrics)
        });
        let labels: Vec<_> = labels.collect();
        let help = "Calls of the instance that have ended and say something about it.";
        text.family("instance_calls_total", "counter", help);
        for (labels, metrics) in &labels {
            let [service, node] = labels.each_ref().map(|(name, text)| (*name, text.as_str()));
            let outcomes = [
                ("ok", metrics.calls.saturating_sub(metrics.failures)),
                ("failed", metrics.failures),
            ];
            for (outcome, count) in outcomes {
                text.sample(
                    "instance_calls_total",
                    &[service, node, ("outcome", outcome)],
                    count,
                );
            }
        }
        let help = "Average of the calls of the last ten seconds or so that succeeded, or the last.";
        text.family("instance_latency_seconds", "gauge", help);
        for (labels, metrics) in &labels {
            let labels = labels.each_ref().map(|(name, text)| (*name, text.as_str()));
            if let Some(latency) = metrics.latency {
                text.sample("instance_latency_seconds", &labels, latency.as_secs_f64());
            }
        }
        text.family(
            "instance_calls_in_flight",
            "gauge",
            "Calls of the instance that have not ended.",
        );
        for (labels, metrics) in &labels {
            let labels = labels.each_ref().map(|(name, text)| (*name, text.as_str()));
            text.sample("instance_calls_in_flight", &labels, metrics.in_flight);
        }
        text.family(
            "breaker_open",
            "gauge",
            "1 while the breaker of the instance is open.",
        );
        for (labels, metrics) in &labels {
            let labels = labels.each_ref().map(|(name, text)| (*name, text.as_str()));
            text.sample("breaker_open", &labels, u8::from(metrics.retry_at.is_some()));
        }
    }

    fn write_mains(&self, text: &mut Exposition) {
        let mains = self.inner.mains();
        let labels: Vec<[(&str, String); 2]> = mains
            .iter()
            .map(|main| {
                [
                    ("peer", main.peer.to_string()),
                    ("name", main.node_address.clone()),
                ]
            })
            .collect();
        let labelled = || {
            let labels = labels.iter();
            let labels = labels.map(|labels| labels.each_ref().map(|(name, text)| (*name, text.as_str())));
            labels.zip(&mains)
        };
        text.family(
            "peer_healthy",
            "gauge",
            "1 while there is a session with the main.",
        );
        for (labels, main) in labelled() {
            text.sample("peer_healthy", &labels, u8::from(main.is_up));
        }
        // Where nobody was found there is an address in place of a name.
        for missing in self.inner.missing_mains() {
            let labels = [("peer", ""), ("name", missing.given.as_str())];
            text.sample("peer_healthy", &labels, 0);
        }
        text.family(
            "peer_sessions_total",
            "counter",
            "Sessions with the main that began.",
        );
        for (labels, main) in labelled() {
            text.sample("peer_sessions_total", &labels, main.record.sessions);
        }
        let help = "Sessions with the main that began after another had ended.";
        text.family("peer_reconnects_total", "counter", help);
        for (labels, main) in labelled() {
            text.sample("peer_reconnects_total", &labels, main.record.reconnects);
        }
        text.family(
            "peer_rtt_seconds",
            "gauge",
            "Round-trip time to the main, smoothed.",
        );
        for (labels, main) in labelled() {
            if let Some(rtt) = main.rtt {
                text.sample("peer_rtt_seconds", &labels, rtt.as_secs_f64());
            }
        }
    }
}

/// Text under construction. Names are without what all of them begin with.
#[derive(Debug, Default)]
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {PREFIX}{name} {help}");
        let _ = writeln!(self.0, "# TYPE {PREFIX}{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "{PREFIX}{name}");
        for (place, (label, text)) in labels.iter().enumerate() {
            let open = if place == 0 { '{' } else { ',' };
            let escaped = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{escaped}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn outcomes(&mut self, name: &str, help: &str, outcomes: &Outcomes) {
        self.family(name, "counter", help);
        for (outcome, count) in outcomes.named() {
            self.sample(name, &[("outcome", outcome)], count);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound, count) in histogram.cumulative() {
            self.sample(&bucket, &[("le", &bound.to_string())], count);
        }
        let (count, sum) = histogram.total();
        self.sample(&bucket, &[("le", "+Inf")], count);
        self.sample(&format!("{name}_sum"), &[], sum.as_secs_f64());
        self.sample(&format!("{name}_count"), &[], count);
    }
}

const PREFIX: &str = "lapwing_federation_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_quoted_as_the_format_asks() {
        let mut text = Exposition::default();
        text.family("a_total", "counter", "Counts.");
        text.sample("a_total", &[("x", "a\"b\\c\nd"), ("y", "z")], 3);
        assert_eq!(
            text.0,
            "# HELP lapwing_federation_a_total Counts.\n# TYPE lapwing_federation_a_total counter\nlapwing_federation_a_total{x=\"a\\\"b\\\\c\\nd\",y=\"z\"} 3\n"
        );
    }
}
