//! The demo's report: the timeline as one HTML page that needs nothing else.
//!
//! Pure: a page out of a value, the same value the same page. No script, no font, no image and no style sheet is
//! fetched; colours follow the reader's light or dark setting.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lapwing_base::ByteSize;

use super::view::totals;
use super::watch::{Timeline, What};
use crate::cli::output::{or_dash, percent, span};

/// The page.
pub(crate) fn html(timeline: &Timeline) -> String {
    let plan = &timeline.plan;
    let mut page = String::with_capacity(64 * 1024);
    page.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.push_str("<title>Lapwing demo</title>\n<style>\n");
    page.push_str(STYLE);
    page.push_str("</style>\n</head>\n<body>\n<main>\n");
    put(
        &mut page,
        format_args!(
            "<h1>Lapwing demo</h1>\n<p class=\"lead\">{} nodes trained on {} for {} rounds, seed {}.{}</p>\n",
            plan.nodes,
            escape(&plan.data),
            timeline.closed(),
            plan.seed,
            killed(timeline),
        ),
    );
    page.push_str(&figures(timeline));
    let sections = [
        ("Accuracy on the test set", ACCURACY_NOTE, accuracy(timeline)),
        ("Training loss", LOSS_NOTE, loss(timeline)),
        ("Bytes sent by a node", BYTES_NOTE, bytes(timeline)),
        ("Who led, and when rounds closed", LEADER_NOTE, leaders(timeline)),
        (
            "Who met whom, round by round",
            ROUNDS_NOTE,
            meetings_by_round(timeline),
        ),
        ("How often each pair met", MATRIX_NOTE, meetings(timeline)),
        ("Nodes", "", nodes(timeline)),
        ("What happened", "", events(timeline)),
    ];
    for (title, note, body) in sections {
        put(&mut page, format_args!("<section>\n<h2>{title}</h2>\n"));
        if !note.is_empty() {
            put(&mut page, format_args!("<p class=\"note\">{note}</p>\n"));
        }
        page.push_str(&body);
        page.push_str("</section>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

const ACCURACY_NOTE: &str = "The model averaged over all nodes, and the nodes' own models: their mean, and from the \
    worst to the best as a band.";
const LOSS_NOTE: &str = "Of the local steps of each round: the mean over the nodes, and from the lowest to the highest \
    as a band. The last, dense rounds do not train.";
const BYTES_NOTE: &str = "Payload of the exchanges, summed up, beside what a dense exchange of 32-bit values would have \
    sent in each round.";
const LEADER_NOTE: &str =
    "Over the seconds of the whole demo. Each tick below the bar is a round that was seen closed.";
const ROUNDS_NOTE: &str = "A row is a node, a column a round, the number its partner. Faint: it had no partner. \
    Outlined: the exchange did not count, and neither of the two merged.";
const MATRIX_NOTE: &str = "Exchanges that counted. The darker, the more.";

const STYLE: &str = "\
:root { color-scheme: light dark; --page: #f6f5f2; --card: #fdfdfc; --ink: #16150f; --soft: #5c5a52; --line: #dddad2; \
--one: #2a6fc9; --two: #c85a1e; --good: #23803c; --bad: #c0322e; }
@media (prefers-color-scheme: dark) { :root { --page: #131312; --card: #1c1c1a; --ink: #f0eee6; --soft: #aaa79c; \
--line: #37362f; --one: #5b9bec; --two: #e8834a; --good: #5cbf78; --bad: #ec6a63; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.1rem; margin: 0 0 .25rem; }
.lead { margin: .25rem 0 1.5rem; color: var(--soft); } .note { margin: 0 0 .75rem; color: var(--soft); max-width: 46rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.25rem; margin-top: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 0; } dt { color: var(--soft); } dd { margin: 0; }
.wide { overflow-x: auto; }
svg { display: block; max-width: 100%; height: auto; } .wide svg { max-width: none; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg .name { fill: var(--ink); font-weight: 600; }
.grid { stroke: var(--line); stroke-width: 1; } .mark { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
.one { stroke: var(--one); fill: none; stroke-width: 2; } .two { stroke: var(--two); fill: none; stroke-width: 2; }
.dot-one { fill: var(--one); } .dot-two { fill: var(--two); } .band { fill: var(--two); opacity: .15; }
.tick { stroke: var(--soft); stroke-width: 1; opacity: .7; } .back { stroke: var(--good); stroke-width: 1.5; stroke-dasharray: 4 3; }
.reign { fill: var(--one); } .reign.odd { fill: var(--two); } svg .on { fill: #fff; font-weight: 600; }
.met { fill: var(--one); } .lost { fill: none; stroke: var(--bad); stroke-width: 1.5; } .alone { fill: var(--line); }
svg .small { font-size: 9px; text-anchor: middle; } svg .small.in { fill: #fff; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child, td.text, th.text { text-align: left; white-space: normal; }
";

/// Writes to a string, which cannot fail.
fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _infallible = out.write_fmt(arguments);
}

/// Text that is safe inside an element or a quoted attribute.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

fn killed(timeline: &Timeline) -> String {
    let Some(kill) = &timeline.kill else {
        return String::new();
    };
    let name = escape(&timeline.nodes[kill.node].name);
    match kill.gap() {
        Some(gap) => format!(
            " Its leader, {name}, was killed half-way; the next round closed {} later.",
            span(gap.as_secs_f64())
        ),
        None => format!(" Its leader, {name}, was killed half-way."),
    }
}

fn figures(timeline: &Timeline) -> String {
    let mut out = String::from("<section>\n<dl>\n");
    for (name, value) in totals(timeline) {
        put(
            &mut out,
            format_args!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(&value)),
        );
    }
    out.push_str("</dl>\n</section>\n");
    out
}

/// A line of a chart.
struct Series {
    name: String,
    class: &'static str,
    points: Vec<(f64, f64)>,
    /// How the last value reads.
    last: String,
}

/// A chart over rounds.
struct Chart {
    x_max: f64,
    y: (f64, f64),
    series: Vec<Series>,
    /// From the lower to the upper edge.
    band: Vec<(f64, f64, f64)>,
    mark: Option<f64>,
    label: fn(f64) -> String,
}

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 260.0;
/// Room for the axis' numbers, and on the right for the names of the lines.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 28.0;

impl Chart {
    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.x_max.max(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.y;
        let share = if high > low {
            (value - low) / (high - low)
        } else {
            0.5
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn svg(&self, what: &str) -> String {
        if self.series.iter().all(|series| series.points.is_empty()) {
            return "<p class=\"note\">Nothing was recorded.</p>\n".to_owned();
        }
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(what)
        );
        self.axes(&mut out);
        if self.band.len() > 1 {
            let there = self.band.iter().map(|(x, low, _)| (*x, *low));
            let back = self.band.iter().rev().map(|(x, _, high)| (*x, *high));
            let points = self.points(there.chain(back));
            put(
                &mut out,
                format_args!("<polygon class=\"band\" points=\"{points}\"/>\n"),
            );
        }
        if let Some(round) = self.mark {
            let x = self.x(round);
            put(
                &mut out,
                format_args!(
                    "<line class=\"mark\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\">leader killed</text>\n",
                    HEIGHT - BOTTOM,
                    x + 5.0,
                    TOP + 10.0,
                ),
            );
        }
        let mut label_ys: Vec<f64> = Vec::new();
        for series in &self.series {
            self.draw(series, &mut label_ys, &mut out);
        }
        out.push_str("</svg>\n");
        out
    }

    fn axes(&self, out: &mut String) {
        const STEPS: u32 = 4;
        let (low, high) = self.y;
        for step in 0..=STEPS {
            let value = low + (high - low) * f64::from(step) / f64::from(STEPS);
            let y = self.y(value);
            put(
                out,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                    WIDTH - RIGHT,
                    LEFT - 8.0,
                    y + 4.0,
                    (self.label)(value),
                ),
            );
        }
        for round in [0.0, (self.x_max / 2.0).round(), self.x_max] {
            put(
                out,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}{round:.0}</text>\n",
                    self.x(round),
                    HEIGHT - 8.0,
                    if round == 0.0 { "round " } else { "" },
                ),
            );
        }
    }

    fn draw(&self, series: &Series, label_ys: &mut Vec<f64>, out: &mut String) {
        let Some(&(last_x, last_y)) = series.points.last() else {
            return;
        };
        put(
            out,
            format_args!(
                "<polyline class=\"{}\" points=\"{}\"/>\n",
                series.class,
                self.points(series.points.iter().copied()),
            ),
        );
        // Few points are measurements that a reader may want to know one by one.
        const DOTS_MAX: usize = 40;
        if series.points.len() <= DOTS_MAX {
            for (x, y) in &series.points {
                put(
                    out,
                    format_args!(
                        "<circle class=\"dot-{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>round {x:.0}: {}</title></circle>\n",
                        series.class,
                        self.x(*x),
                        self.y(*y),
                        (self.label)(*y),
                    ),
                );
            }
        }
        // Names stand at the ends of their lines, one below the other where lines meet.
        let mut y = self.y(last_y) + 4.0;
        while label_ys.iter().any(|taken| (taken - y).abs() < 15.0) {
            y += 15.0;
        }
        label_ys.push(y);
        put(
            out,
            format_args!(
                "<text x=\"{:.1}\" y=\"{y:.1}\"><tspan class=\"name\">{}</tspan> {}</text>\n",
                self.x(last_x) + 10.0,
                escape(&series.name),
                escape(&series.last),
            ),
        );
    }

    fn points(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        points
            .map(|(x, y)| format!("{:.1},{:.1}", self.x(x), self.y(y)))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// The round after which the leader was killed.
fn mark(timeline: &Timeline) -> Option<f64> {
    let closed = timeline.kill.as_ref()?.closed?;
    Some(closed as f64)
}

fn x_max(timeline: &Timeline) -> f64 {
    timeline.closed().max(1) as f64
}

/// Lowest and highest; `None` of nothing.
fn extremes(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

fn accuracy(timeline: &Timeline) -> String {
    let evaluations: Vec<_> = timeline.evaluations.values().collect();
    let points = |of: fn(&crate::cli::documents::EvaluationDocument) -> f64| {
        evaluations
            .iter()
            .map(|one| (one.round as f64, of(one)))
            .collect::<Vec<_>>()
    };
    let band: Vec<(f64, f64, f64)> = evaluations
        .iter()
        .filter_map(|one| {
            let (low, high) = extremes(one.local.values().copied())?;
            Some((one.round as f64, low, high))
        })
        .collect();
    let averaged = points(|one| one.averaged_accuracy);
    let local = points(|one| one.local_accuracy);
    let lowest = averaged
        .iter()
        .chain(&local)
        .map(|(_, y)| *y)
        .chain(band.iter().map(|(_, low, _)| *low))
        .fold(1.0, f64::min);
    let last = |points: &[(f64, f64)]| or_dash(points.last().map(|(_, y)| percent(*y)));
    Chart {
        x_max: x_max(timeline),
        // Down to the next ten percent: the interesting part is near the top.
        y: ((lowest * 10.0).floor() / 10.0, 1.0),
        series: vec![
            Series {
                name: "averaged".into(),
                class: "one",
                last: last(&averaged),
                points: averaged,
            },
            Series {
                name: "nodes' own".into(),
                class: "two",
                last: last(&local),
                points: local,
            },
        ],
        band,
        mark: mark(timeline),
        label: |share| format!("{:.0} %", share * 100.0),
    }
    .svg("Accuracy over rounds")
}

fn loss(timeline: &Timeline) -> String {
    let mut points = Vec::new();
    let mut band = Vec::new();
    for (number, round) in timeline.trained_rounds() {
        let Some(mean) = round.loss() else { continue };
        points.push((number as f64, mean));
        if let Some((low, high)) = extremes(round.nodes.iter().filter_map(|node| node.loss)) {
            band.push((number as f64, low, high));
        }
    }
    let highest = band.iter().map(|(_, _, high)| *high).fold(0.0, f64::max);
    Chart {
        x_max: x_max(timeline),
        y: (0.0, if highest > 0.0 { highest } else { 1.0 }),
        series: vec![Series {
            name: "mean".into(),
            class: "two",
            last: or_dash(points.last().map(|(_, y)| format!("{y:.3}"))),
            points,
        }],
        band,
        mark: mark(timeline),
        label: |loss| format!("{loss:.2}"),
    }
    .svg("Training loss over rounds")
}

fn bytes(timeline: &Timeline) -> String {
    let nodes = timeline.plan.nodes.max(1) as f64;
    let mut sent = vec![(0.0, 0.0)];
    let mut dense = vec![(0.0, 0.0)];
    let mut sum = 0;
    for (number, round) in &timeline.rounds {
        if round.merged.is_none() {
            continue;
        }
        sum += round.nodes.iter().map(|node| node.sent_bytes).sum::<u64>();
        sent.push((*number as f64, sum as f64 / nodes));
        dense.push((*number as f64, timeline.dense_bytes(*number) as f64));
    }
    let size = |points: &[(f64, f64)]| or_dash(points.last().map(|(_, y)| ByteSize(*y as u64)));
    let highest = dense.iter().chain(&sent).map(|(_, y)| *y).fold(0.0, f64::max);
    Chart {
        x_max: x_max(timeline),
        y: (0.0, highest.max(1.0)),
        series: vec![
            Series {
                name: "dense".into(),
                class: "two",
                last: size(&dense),
                points: dense,
            },
            Series {
                name: "sent".into(),
                class: "one",
                last: size(&sent),
                points: sent,
            },
        ],
        band: Vec::new(),
        mark: mark(timeline),
        label: |bytes| ByteSize(bytes as u64).to_string(),
    }
    .svg("Bytes sent by a node over rounds")
}

fn leaders(timeline: &Timeline) -> String {
    const HEIGHT: f64 = 96.0;
    const BAR: (f64, f64) = (24.0, 26.0);
    let end = timeline.now.as_secs_f64().max(1.0);
    let x = |seconds: f64| 8.0 + seconds / end * (WIDTH - 16.0);
    let mut out =
        format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Leaders over time\">\n");
    for (index, reign) in timeline.leaders.iter().enumerate() {
        let from = x(reign.since.as_secs_f64());
        // A killed leader leads no more, though nobody has said so yet.
        let kill = timeline
            .kill
            .as_ref()
            .filter(|kill| kill.node == reign.node && kill.at >= reign.since)
            .map(|kill| kill.at);
        let next = timeline.leaders.get(index + 1).map(|next| next.since);
        let until = [kill, next]
            .into_iter()
            .flatten()
            .min()
            .map_or(end, |until| until.as_secs_f64());
        let name = escape(&timeline.nodes[reign.node].name);
        let width = (x(until) - from).max(1.0);
        put(
            &mut out,
            format_args!(
                "<rect class=\"reign{}\" x=\"{from:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" rx=\"3\"><title>{name}, term {}, from {}</title></rect>\n",
                if index % 2 == 1 { " odd" } else { "" },
                BAR.0,
                BAR.1,
                reign.term,
                span(reign.since.as_secs_f64()),
            ),
        );
        // Eight pixels a character are enough for any name of ours.
        let label = format!("{name}, term {}", reign.term);
        if width > 8.0 * label.len() as f64 {
            put(
                &mut out,
                format_args!(
                    "<text class=\"on\" x=\"{:.1}\" y=\"{:.1}\">{label}</text>\n",
                    from + 8.0,
                    BAR.0 + 17.0,
                ),
            );
        }
    }
    for at in timeline.closed_at.values() {
        let x = x(at.as_secs_f64());
        put(
            &mut out,
            format_args!("<line class=\"tick\" x1=\"{x:.1}\" y1=\"54\" x2=\"{x:.1}\" y2=\"64\"/>\n"),
        );
    }
    if let Some(kill) = &timeline.kill {
        let marks = [("mark", Some(kill.at), "killed"), ("back", kill.back_at, "back")];
        for (class, at, word) in marks {
            let Some(at) = at else { continue };
            let x = x(at.as_secs_f64());
            put(
                &mut out,
                format_args!(
                    "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"16\" x2=\"{x:.1}\" y2=\"70\"/><text x=\"{x:.1}\" y=\"12\" text-anchor=\"middle\">{word}</text>\n"
                ),
            );
        }
    }
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let anchor = match share {
            0.0 => "start",
            1.0 => "end",
            _ => "middle",
        };
        put(
            &mut out,
            format_args!(
                "<text x=\"{:.1}\" y=\"86\" text-anchor=\"{anchor}\">{:.0} s</text>\n",
                x(end * share),
                end * share,
            ),
        );
    }
    out.push_str("</svg>\n");
    out
}

/// More columns than this do not help a reader; the last ones show the kill and the end.
const ROUNDS_SHOWN_MAX: usize = 400;

fn meetings_by_round(timeline: &Timeline) -> String {
    let rounds: Vec<_> = timeline
        .rounds
        .iter()
        .filter(|(_, round)| round.merged.is_some())
        .collect();
    let shown = &rounds[rounds.len().saturating_sub(ROUNDS_SHOWN_MAX)..];
    if shown.is_empty() {
        return "<p class=\"note\">Nothing was recorded.</p>\n".to_owned();
    }
    const CELL: f64 = 15.0;
    const NAMES: f64 = 64.0;
    let (width, height) = (
        NAMES + CELL * shown.len() as f64 + 8.0,
        CELL * timeline.nodes.len() as f64 + 24.0,
    );
    let mut out = format!(
        "<div class=\"wide\"><svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Pairs of each round\">\n"
    );
    for (row, node) in timeline.nodes.iter().enumerate() {
        put(
            &mut out,
            format_args!(
                "<text x=\"0\" y=\"{:.1}\">{}</text>\n",
                row as f64 * CELL + 11.0,
                escape(&node.name)
            ),
        );
    }
    for (column, (number, round)) in shown.iter().enumerate() {
        let x = NAMES + column as f64 * CELL;
        for member in &round.alone {
            if let Some(row) = timeline.process_of(member) {
                cell(
                    &mut out,
                    "alone",
                    x,
                    row as f64 * CELL,
                    CELL,
                    &format!("round {number}: alone"),
                    "",
                );
            }
        }
        for [a, b] in &round.pairs {
            let merged = round
                .merged
                .iter()
                .flatten()
                .any(|pair| pair == &[a.clone(), b.clone()]);
            for (one, other) in [(a, b), (b, a)] {
                let Some(row) = timeline.process_of(one) else {
                    continue;
                };
                let partner = timeline.name_of(other);
                let (class, outcome) = if merged {
                    ("met", "met")
                } else {
                    ("lost", "was to meet")
                };
                let title = format!("round {number}: {} {outcome} {partner}", timeline.name_of(one));
                let short = partner.trim_start_matches("node-");
                cell(&mut out, class, x, row as f64 * CELL, CELL, &title, short);
            }
        }
        if *number % 10 == 0 {
            put(
                &mut out,
                format_args!(
                    "<text class=\"small\" x=\"{:.1}\" y=\"{:.1}\">{number}</text>\n",
                    x + CELL / 2.0,
                    height - 8.0,
                ),
            );
        }
    }
    out.push_str("</svg></div>\n");
    out
}

fn cell(out: &mut String, class: &str, x: f64, y: f64, size: f64, title: &str, text: &str) {
    put(
        out,
        format_args!(
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"><title>{}</title></rect>",
            x + 1.0,
            y + 1.0,
            size - 2.0,
            size - 2.0,
            escape(title),
        ),
    );
    if !text.is_empty() {
        put(
            out,
            format_args!(
                "<text class=\"small{}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                if class == "met" { " in" } else { "" },
                x + size / 2.0,
                y + size / 2.0 + 3.0,
                escape(text),
            ),
        );
    }
    out.push('\n');
}

fn meetings(timeline: &Timeline) -> String {
    let nodes = timeline.nodes.len();
    let mut counts: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for [a, b] in timeline
        .rounds
        .values()
        .flat_map(|round| round.merged.iter().flatten())
    {
        if let (Some(a), Some(b)) = (timeline.process_of(a), timeline.process_of(b)) {
            *counts.entry((a.min(b), a.max(b))).or_default() += 1;
        }
    }
    let most = counts.values().copied().max().unwrap_or(0).max(1);
    // Large enough for a number as long as there are few.
    let size = if nodes <= 16 { 34.0 } else { 12.0 };
    let side = 64.0 + size * nodes as f64;
    let mut out = format!(
        "<div class=\"wide\"><svg width=\"{side}\" height=\"{side}\" viewBox=\"0 0 {side} {side}\" role=\"img\" aria-label=\"Meetings of each pair\">\n"
    );
    for (index, node) in timeline.nodes.iter().enumerate() {
        let middle = 60.0 + (index as f64 + 0.5) * size;
        let name = escape(&node.name);
        put(
            &mut out,
            format_args!("<text x=\"0\" y=\"{:.1}\">{name}</text>\n", middle - 36.0 + 4.0),
        );
        let short = name.trim_start_matches("node-");
        put(
            &mut out,
            format_args!("<text class=\"small\" x=\"{middle:.1}\" y=\"16\">{short}</text>\n"),
        );
    }
    for a in 0..nodes {
        for b in 0..nodes {
            if a == b {
                continue;
            }
            let count = counts.get(&(a.min(b), a.max(b))).copied().unwrap_or(0);
            let (x, y) = (60.0 + b as f64 * size, 24.0 + a as f64 * size);
            put(
                &mut out,
                format_args!(
                    "<rect class=\"met\" opacity=\"{:.2}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"><title>{} and {} met {count} times</title></rect>",
                    0.06 + 0.94 * count as f64 / most as f64,
                    x + 1.0,
                    y + 1.0,
                    size - 2.0,
                    size - 2.0,
                    escape(&timeline.nodes[a].name),
                    escape(&timeline.nodes[b].name),
                ),
            );
            if nodes <= 16 {
                put(
                    &mut out,
                    format_args!(
                        "<text class=\"small{}\" x=\"{:.1}\" y=\"{:.1}\">{count}</text>",
                        if count * 2 > most { " in" } else { "" },
                        x + size / 2.0,
                        y + size / 2.0 + 3.0,
                    ),
                );
            }
            out.push('\n');
        }
    }
    out.push_str("</svg></div>\n");
    out
}

fn nodes(timeline: &Timeline) -> String {
    let closed = timeline.closed();
    let dense = ByteSize(timeline.dense_bytes(closed));
    let mut out = String::from(
        "<div class=\"wide\"><table>\n<tr><th>node</th><th>samples</th><th>loss</th><th>accuracy</th><th>sent</th>\
         <th>received</th><th>dense would send</th><th>rounds merged</th></tr>\n",
    );
    for total in timeline.totals() {
        put(
            &mut out,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{dense}</td><td>{} of {closed}</td></tr>\n",
                escape(&total.name),
                total.samples,
                or_dash(total.loss.map(|loss| format!("{loss:.3}"))),
                or_dash(total.accuracy.map(percent)),
                ByteSize(total.sent_bytes),
                ByteSize(total.received_bytes),
                total.merged,
            ),
        );
    }
    out.push_str("</table></div>\n");
    out
}

fn events(timeline: &Timeline) -> String {
    let mut out = String::from("<table>\n");
    for event in &timeline.events {
        if matches!(event.what, What::Progress { .. }) {
            continue;
        }
        put(
            &mut out,
            format_args!(
                "<tr><td>{:.1} s</td><td class=\"text\">{}</td></tr>\n",
                event.at_seconds,
                escape(&event.what.to_string()),
            ),
        );
    }
    out.push_str("</table>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::watch::tests::{formed, trained};
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_anywhere_else() {
        let page = html(&trained());
        for outside in [
            "http:", "https:", "//", "<script", "<link", "<img", "@import", "url(",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    }

    #[test]
    fn every_element_that_is_opened_is_closed() {
        for page in [html(&trained()), html(&formed()), html(&killed_timeline())] {
            let mut open: Vec<&str> = Vec::new();
            for tag in page.split('<').skip(1) {
                let (inside, _) = tag.split_once('>').unwrap();
                let name = inside.trim_start_matches('/').split([' ', '/']).next().unwrap();
                if inside.starts_with('!') || inside.ends_with('/') || name == "meta" {
                    continue;
                }
                if inside.starts_with('/') {
                    assert_eq!(open.pop(), Some(name), "{inside}");
                } else {
                    open.push(name);
                }
            }
            assert_eq!(open, Vec::<&str>::new());
        }
    }

    #[test]
    fn what_people_named_cannot_become_markup() {
        let mut timeline = trained();
        timeline.plan.data = "csv:<script>alert('1')</script>&\"".to_owned();
        let page = html(&timeline);
        assert!(page.contains("csv:&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;"));
        assert!(!page.contains("<script"));
    }

    #[test]
    fn a_pair_that_met_and_one_that_did_not_look_different() {
        let page = html(&trained());
        assert!(page.contains("<title>round 1: node-1 met node-2</title>"));
        assert!(page.contains("<title>round 2: node-3 was to meet node-1</title>"));
        assert!(page.contains("<title>round 1: alone</title>"));
        assert!(page.contains("node-1 and node-2 met 1 times"));
    }

    #[test]
    fn the_kill_is_marked_where_it_happened() {
        let page = html(&killed_timeline());
        assert!(page.contains("Its leader, node-1, was killed half-way"));
        assert!(page.contains("leader killed</text>"));
        assert!(page.contains(">killed</text>"));
    }

    #[test]
    fn a_demo_of_which_nothing_was_seen_still_has_a_report() {
        assert!(html(&formed()).contains("Nothing was recorded."));
    }

    fn killed_timeline() -> Timeline {
        let mut timeline = trained();
        timeline.on_killed(std::time::Duration::from_secs(4), 0);
        let job = r#"{"history": [{"round": 3, "kind": "sparse", "merged": []}]}"#;
        timeline.on_job(
            std::time::Duration::from_secs(5),
            &serde_json::from_str(job).unwrap(),
        );
        timeline
    }
}
