//! Draws the demo's timeline as lines of text: the live view, and the tables at the end.
//!
//! Pure: lines out of a value. What a terminal needs to show them in place is in `terminal.rs`.

use std::fmt::Write as _;
use std::time::Duration;

use lapwing_base::ByteSize;

use super::watch::{Life, NodeSeen, Timeline};
use crate::cli::output::{Align, Table, or_dash, percent, span};

/// How a piece of text stands out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
}

impl Tone {
    /// The escape sequence (ECMA-48, SGR) that begins it.
    const fn begin(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\x1b[1m",
            Self::Faint => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// One line of the live view.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Line {
    pieces: Vec<(Tone, String)>,
}

impl Line {
    fn with(mut self, tone: Tone, text: impl Into<String>) -> Self {
        self.pieces.push((tone, text.into()));
        self
    }

    fn plain(text: impl Into<String>) -> Self {
        Self::default().with(Tone::Plain, text)
    }

    /// The line, cut off at `width` characters; a line that wraps would break the redrawing in place.
    pub(crate) fn render(&self, width: usize, colour: bool) -> String {
        let mut left = width;
        let mut out = String::new();
        for (tone, text) in &self.pieces {
            let cut: String = text.chars().take(left).collect();
            left -= cut.chars().count();
            if colour && *tone != Tone::Plain && !cut.is_empty() {
                out.push_str(tone.begin());
                out.push_str(&cut);
                out.push_str("\x1b[0m");
            } else {
                out.push_str(&cut);
            }
        }
        out
    }
}

/// How many of the last events the live view shows.
const EVENTS_SHOWN: usize = 6;

/// The live view, at most `height` lines of it.
pub(crate) fn frame(timeline: &Timeline, height: usize) -> Vec<Line> {
    let mut lines = vec![
        title(timeline),
        progress(timeline),
        learning(timeline),
        leading(timeline),
    ];
    if let Some(line) = pairs(timeline) {
        lines.push(line);
    }
    let events = last_events(timeline);
    // Header, its distance, the table's own head, and the line that counts what is left out.
    let room = height.saturating_sub(lines.len() + events.len() + 4).max(1);
    lines.push(Line::default());
    lines.extend(nodes(timeline, room));
    if !events.is_empty() {
        lines.push(Line::default());
        lines.extend(events);
    }
    lines.truncate(height.max(1));
    lines
}

fn title(timeline: &Timeline) -> Line {
    let plan = &timeline.plan;
    Line::default().with(Tone::Strong, "lapwing demo").with(
        Tone::Plain,
        format!(" · {} nodes · {} · seed {}", plan.nodes, plan.data, plan.seed),
    )
}

fn progress(timeline: &Timeline) -> Line {
    const BAR: u64 = 24;
    let (closed, rounds) = (timeline.closed(), timeline.plan.rounds.max(1));
    if timeline.submitted_at.is_none() {
        let up = timeline.nodes.iter().filter(|node| node.member.is_some()).count();
        return Line::plain(format!(
            "forming one cluster: {up} of {} nodes are members · {}",
            timeline.plan.nodes,
            span(timeline.now.as_secs_f64())
        ));
    }
    let full = (closed * BAR / rounds).min(BAR) as usize;
    let bar = "█".repeat(full) + &"░".repeat(BAR as usize - full);
    let mut text = format!(" · {}", span(timeline.now.as_secs_f64()));
    if timeline.finished_at.is_some() {
        text.push_str(" · finished");
    } else if let Some(left) = time_left(timeline) {
        let _infallible = write!(text, " · about {} left", span(left.as_secs_f64().max(1.0)));
    }
    Line::plain(format!("round {} of {rounds} ", timeline.round()))
        .with(Tone::Good, bar)
        .with(Tone::Plain, text)
}

/// How long the rest takes at the pace so far.
fn time_left(timeline: &Timeline) -> Option<Duration> {
    let took = timeline.now.checked_sub(timeline.submitted_at?)?;
    let closed = timeline.closed();
    let left = timeline.plan.rounds.saturating_sub(closed);
    (closed >= 3).then(|| took.mul_f64(left as f64 / closed as f64))
}

fn learning(timeline: &Timeline) -> Line {
    let sent = timeline.sent_bytes_per_node();
    let dense = timeline.dense_bytes(timeline.closed());
    let mut line = Line::plain(format!(
        "loss {}",
        or_dash(timeline.loss().map(|loss| format!("{loss:.3}")))
    ));
    line = match timeline.evaluation() {
        Some(evaluation) => line
            .with(Tone::Plain, " · accuracy ")
            .with(Tone::Strong, percent(evaluation.averaged_accuracy))
            .with(
                Tone::Plain,
                format!(
                    " averaged, {} local (round {})",
                    percent(evaluation.local_accuracy),
                    evaluation.round
                ),
            ),
        None => line.with(Tone::Plain, " · accuracy -"),
    };
    line.with(
        Tone::Plain,
        format!(
            " · {} sent a node, dense {}{}",
            ByteSize(sent),
            ByteSize(dense),
            share(sent, dense)
        ),
    )
}

/// `: 1/45`, or nothing where nothing is saved.
fn share(sent: u64, dense: u64) -> String {
    if sent == 0 || dense <= sent {
        return String::new();
    }
    format!(": 1/{:.0}", dense as f64 / sent as f64)
}

fn leading(timeline: &Timeline) -> Line {
    let Some(leader) = timeline.leader() else {
        return Line::plain("no leader yet");
    };
    let node = &timeline.nodes[leader.node];
    let raft = timeline
        .nodes
        .iter()
        .filter(|node| node.life == Life::Up)
        .filter_map(|node| node.status.as_ref())
        .max_by_key(|status| (status.raft.term, status.raft.applied_index));
    let voters = raft.map_or(0, |status| status.raft.voters.len());
    let line = if node.life == Life::Up {
        Line::plain("leader ").with(Tone::Strong, node.name.clone())
    } else {
        Line::plain("leader ").with(Tone::Bad, format!("{} ({})", node.name, life(node.life)))
    };
    line.with(Tone::Plain, format!(" (term {}) · {voters} voters", leader.term))
}

/// Who exchanges with whom in the round that was planned last.
fn pairs(timeline: &Timeline) -> Option<Line> {
    let round = timeline.rounds.values().next_back()?;
    let short = |member: &str| timeline.name_of(member).trim_start_matches("node-").to_owned();
    let mut texts: Vec<String> = round
        .pairs
        .iter()
        .map(|[a, b]| format!("{}–{}", short(a), short(b)))
        .collect();
    if !round.alone.is_empty() {
        let alone: Vec<String> = round.alone.iter().map(|member| short(member)).collect();
        texts.push(format!("alone {}", alone.join(" ")));
    }
    Some(Line::plain(format!("pairs {}", texts.join("  "))))
}

fn nodes(timeline: &Timeline, room: usize) -> Vec<Line> {
    let totals = timeline.totals();
    let mut table = Table::new([
        ("node", Align::Left),
        ("raft", Align::Left),
        ("state", Align::Left),
        ("partner", Align::Left),
        ("loss", Align::Right),
        ("accuracy", Align::Right),
        ("sent", Align::Right),
        ("merged", Align::Right),
    ]);
    for (node, total) in timeline.nodes.iter().zip(&totals) {
        table.row([
            node.name.clone(),
            raft_of(node),
            state_of(node),
            or_dash(partner_of(timeline, node)),
            or_dash(total.loss.map(|loss| format!("{loss:.3}"))),
            or_dash(total.accuracy.map(percent)),
            ByteSize(total.sent_bytes).to_string(),
            total.merged.to_string(),
        ]);
    }
    let text = table.to_string();
    let mut lines = text.lines();
    let mut out: Vec<Line> = lines
        .next()
        .map(|head| Line::default().with(Tone::Faint, head))
        .into_iter()
        .collect();
    for (node, line) in timeline.nodes.iter().zip(lines).take(room) {
        let tone = match (node.life, is_leader(node)) {
            (Life::Killed | Life::Silent, _) => Tone::Bad,
            (Life::Up, true) => Tone::Strong,
            (Life::Starting | Life::Up, _) => Tone::Plain,
        };
        out.push(Line::default().with(tone, line));
    }
    if timeline.nodes.len() > room {
        out.push(Line::default().with(Tone::Faint, format!("and {} more", timeline.nodes.len() - room)));
    }
    out
}

fn is_leader(node: &NodeSeen) -> bool {
    node.status
        .as_ref()
        .is_some_and(|status| status.raft.state == "leader")
}

fn raft_of(node: &NodeSeen) -> String {
    match (&node.status, node.life) {
        (Some(status), Life::Up) => status.raft.state.clone(),
        _ => "-".to_owned(),
    }
}

fn state_of(node: &NodeSeen) -> String {
    match (&node.status, node.life) {
        (Some(status), Life::Up) if status.training.problem.is_some() => "cannot train".to_owned(),
        (Some(status), Life::Up) if status.node.state == "active" => status.training.state.clone(),
        (Some(status), Life::Up) => status.node.state.clone(),
        (_, other) => life(other).to_owned(),
    }
}

const fn life(life: Life) -> &'static str {
    match life {
        Life::Starting => "starting",
        Life::Up => "up",
        Life::Silent => "no answer",
        Life::Killed => "killed",
    }
}

fn partner_of<'a>(timeline: &'a Timeline, node: &'a NodeSeen) -> Option<&'a str> {
    let peer = node.status.as_ref()?.training.partner.as_ref()?;
    if node.life != Life::Up {
        return None;
    }
    let process = timeline.process_of_peer(peer)?;
    Some(timeline.nodes[process].name.as_str())
}

fn last_events(timeline: &Timeline) -> Vec<Line> {
    use super::watch::What;
    let shown: Vec<_> = timeline
        .events
        .iter()
        // The header shows the progress itself.
        .filter(|event| !matches!(event.what, What::Progress { .. }))
        .collect();
    shown[shown.len().saturating_sub(EVENTS_SHOWN)..]
        .iter()
        .map(|event| {
            let tone = match event.what {
                What::LeaderKilled { .. } => Tone::Bad,
                What::LeaderElected { .. } | What::NodeBack { .. } | What::JobFinished { .. } => Tone::Good,
                _ => Tone::Plain,
            };
            Line::default()
                .with(Tone::Faint, format!("{:6.1} s  ", event.at_seconds))
                .with(tone, event.what.to_string())
        })
        .collect()
}

/// The table and the totals that stand at the end of a demo.
pub(crate) fn summary(timeline: &Timeline) -> String {
    let mut table = Table::new([
        ("node", Align::Left),
        ("samples", Align::Right),
        ("loss", Align::Right),
        ("accuracy", Align::Right),
        ("sent", Align::Right),
        ("dense would send", Align::Right),
        ("rounds merged", Align::Right),
    ]);
    let closed = timeline.closed();
    let dense = timeline.dense_bytes(closed);
    for total in timeline.totals() {
        table.row([
            total.name,
            total.samples.to_string(),
            or_dash(total.loss.map(|loss| format!("{loss:.3}"))),
            or_dash(total.accuracy.map(percent)),
            ByteSize(total.sent_bytes).to_string(),
            ByteSize(dense).to_string(),
            format!("{} of {closed}", total.merged),
        ]);
    }
    let mut lines = vec![table.to_string(), String::new()];
    lines.extend(
        totals(timeline)
            .into_iter()
            .map(|(name, value)| format!("{name:<20}{value}")),
    );
    lines.join("\n")
}

/// The figures of the whole, by name; also the head of the report.
pub(crate) fn totals(timeline: &Timeline) -> Vec<(&'static str, String)> {
    let sent = timeline.sent_bytes_per_node();
    let closed = timeline.closed();
    let dense = timeline.dense_bytes(closed);
    let mut totals = Vec::new();
    if let Some(evaluation) = timeline.evaluation() {
        totals.push((
            "accuracy",
            format!(
                "{} of the averaged model, {} of the nodes' own (after round {})",
                percent(evaluation.averaged_accuracy),
                percent(evaluation.local_accuracy),
                evaluation.round
            ),
        ));
    }
    if sent > 0 {
        totals.push((
            "traffic",
            format!(
                "{} sent a node, {} if every round were dense{}",
                ByteSize(sent),
                ByteSize(dense),
                share(sent, dense)
            ),
        ));
    }
    let trained = timeline
        .submitted_at
        .and_then(|start| timeline.finished_at?.checked_sub(start));
    if let Some(trained) = trained {
        totals.push((
            "time",
            format!(
                "{} in all, {} for {closed} rounds",
                span(timeline.now.as_secs_f64()),
                span(trained.as_secs_f64())
            ),
        ));
    }
    if let Some(seconds) = timeline.seconds_beyond_training() {
        totals.push((
            "beyond training",
            format!(
                "{} a round: what the dense rounds took, which do not train",
                span(seconds)
            ),
        ));
    }
    totals.push(("leader changes", timeline.leader_changes().to_string()));
    if let Some(kill) = &timeline.kill {
        let after = |at: Option<Duration>| {
            or_dash(
                at.and_then(|at| at.checked_sub(kill.at))
                    .map(|after| span(after.as_secs_f64())),
            )
        };
        totals.push((
            "after the kill",
            format!(
                "another leader after {}, the next round closed after {}, the killed node back after {}",
                after(kill.next_leader_at),
                after(kill.next_round_at),
                after(kill.back_at),
            ),
        ));
    }
    if let Some(hash) = &timeline.hash {
        let short: String = hash.chars().take(16).collect();
        totals.push((
            "consensus",
            format!(
                "{} of {} nodes hold model {short}…",
                timeline.holders.len(),
                timeline.plan.nodes
            ),
        ));
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::super::watch::tests::{formed, trained};
    use super::*;

    #[test]
    fn a_line_is_cut_off_at_the_width_and_its_colour_ends_with_it() {
        let line = Line::plain("ab").with(Tone::Bad, "cdé").with(Tone::Good, "fg");
        assert_eq!(line.render(4, false), "abcd");
        assert_eq!(line.render(4, true), "ab\x1b[31mcd\x1b[0m");
        assert_eq!(line.render(80, false), "abcdéfg");
    }

    #[test]
    fn the_view_says_where_the_job_stands_and_who_meets_whom() {
        let shown = shown(&trained(), 40);
        assert_eq!(
            shown[..5],
            [
                "lapwing demo · 3 nodes · digits · seed 1",
                "round 2 of 20 ██░░░░░░░░░░░░░░░░░░░░░░ · 3.0 s",
                "loss 0.250 · accuracy 80.0 % averaged, 70.0 % local (round 1) · 666 B sent a node, dense 80 B",
                "leader node-1 (term 1) · 0 voters",
                "pairs 1–3  alone 2",
            ]
        );
        assert!(
            shown
                .iter()
                .any(|line| line.starts_with("node-2") && line.contains("75.0 %"))
        );
    }

    #[test]
    fn the_view_never_outgrows_the_terminal() {
        for height in 1..30 {
            assert!(frame(&trained(), height).len() <= height, "{height}");
        }
        let shown = shown(&trained(), 12);
        assert!(shown.iter().any(|line| line.starts_with("and ")), "{shown:?}");
    }

    #[test]
    fn before_the_job_the_view_counts_members() {
        assert!(shown(&formed(), 40)[1].starts_with("forming one cluster: 3 of 3 nodes are members"));
    }

    #[test]
    fn the_summary_has_a_row_a_node_and_the_figures_of_the_whole() {
        let text = summary(&trained());
        assert!(text.contains("node-1       64  0.250"), "{text}");
        assert!(
            text.contains("accuracy            80.0 % of the averaged model"),
            "{text}"
        );
        assert!(text.contains("leader changes      0"), "{text}");
    }

    fn shown(timeline: &Timeline, height: usize) -> Vec<String> {
        frame(timeline, height)
            .iter()
            .map(|line| line.render(110, false))
            .collect()
    }
}
