//! Draws runs as SVG: averaged accuracy against bytes and against virtual time, a line for each algorithm.
//!
//! Where an algorithm has several seeds, the line is their mean and the band around it reaches from the lowest to the
//! highest. Both axes below are logarithmic, since what the algorithms need differs by orders of magnitude.

use std::fmt::Write as _;

use lapwing_base::Algorithm;
use lapwing_train::simulate::{Point, Run};

/// Width and height of one of the two panels, without its margins.
const PANEL: (f64, f64) = (400.0, 300.0);
/// Left of a panel, above it, between both.
const MARGIN: (f64, f64, f64) = (52.0, 34.0, 70.0);
/// Height of a line of the legend.
const LEGEND: f64 = 18.0;

/// Colours that differ in lightness and hue and are legible on white and on black; with dashes from the second turn on,
/// so that no two algorithms look alike.
const COLOURS: [&str; 6] = ["#d1495b", "#2b7de9", "#1f9e73", "#c98a00", "#9b5de5", "#6d8b9c"];

/// The chart; without axes where no run has an accuracy.
pub(super) fn svg(runs: &[Run]) -> String {
    let lines = lines(runs);
    let rows = lines.len().div_ceil(3) as f64;
    let width = MARGIN.0 + 2.0 * PANEL.0 + MARGIN.2 + 20.0;
    let height = MARGIN.1 + PANEL.1 + 50.0 + rows * LEGEND;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\">\n\
         <title>Averaged accuracy against bytes and against virtual time</title>\n\
         <style>.ink {{ fill: #1d1d1b }} .grid {{ stroke: #d8d5cc }} .page {{ fill: #fff }} \
         @media (prefers-color-scheme: dark) {{ .ink {{ fill: #f0eee6 }} .grid {{ stroke: #3b3a36 }} .page {{ fill: #131312 }} }}</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    let y = Scale::accuracy(&lines);
    let bytes: fn(&Point) -> f64 = |point| point.bytes_per_node() / 1e6;
    let seconds: fn(&Point) -> f64 = |point| point.virtual_seconds;
    let panels = [
        ("MB sent and received by a node", bytes),
        ("virtual seconds", seconds),
    ];
    for (place, (title, measure)) in panels.into_iter().enumerate() {
        let left = MARGIN.0 + place as f64 * (PANEL.0 + MARGIN.2);
        panel(&mut out, &lines, left, title, measure, &y);
    }
    for (place, line) in lines.iter().enumerate() {
        let (x, y) = (
            MARGIN.0 + (place % 3) as f64 * (width - MARGIN.0) / 3.0,
            MARGIN.1 + PANEL.1 + 54.0 + (place / 3) as f64 * LEGEND,
        );
        put(
            &mut out,
            format_args!(
                "<line x1=\"{x}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\" {2}/><text class=\"ink\" x=\"{3}\" y=\"{y}\">{4}</text>\n",
                y - 4.0,
                x + 26.0,
                line.stroke,
                x + 32.0,
                line.algorithm
            ),
        );
    }
    out + "</svg>\n"
}

/// An algorithm's runs, and how it looks.
struct Line<'a> {
    algorithm: Algorithm,
    runs: Vec<&'a Run>,
    stroke: String,
    colour: &'static str,
}

fn lines(runs: &[Run]) -> Vec<Line<'_>> {
    let looks = |place: usize| {
        let colour = COLOURS[place % COLOURS.len()];
        let dashes =
            ["", " stroke-dasharray=\"7 4\"", " stroke-dasharray=\"2 3\""][place / COLOURS.len() % 3];
        (
            format!("stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"{dashes}"),
            colour,
        )
    };
    let of = |(place, algorithm): (usize, Algorithm)| {
        let (stroke, colour) = looks(place);
        let own = runs.iter().filter(|run| {
            run.algorithm == algorithm && run.points.iter().any(|p| p.averaged_accuracy.is_some())
        });
        Line {
            algorithm,
            runs: own.collect(),
            stroke,
            colour,
        }
    };
    // A place for each, whoever takes part, so that an algorithm looks the same in all charts.
    Algorithm::ALL
        .into_iter()
        .enumerate()
        .map(of)
        .filter(|line| !line.runs.is_empty())
        .collect()
}

impl Line<'_> {
    /// Where the line goes: the mean of measure, and mean, lowest and highest accuracy. At each of the evaluations that
    /// all runs have.
    fn course(&self, measure: fn(&Point) -> f64) -> Vec<(f64, [f64; 3])> {
        let shared = self
            .runs
            .iter()
            .map(|run| run.points.len())
            .min()
            .unwrap_or_default();
        let count = self.runs.len() as f64;
        (0..shared)
            .filter_map(|place| {
                let points = || self.runs.iter().map(|run| &run.points[place]);
                let accuracies = points()
                    .map(|point| point.averaged_accuracy)
                    .collect::<Option<Vec<_>>>()?;
                let x = points().map(measure).sum::<f64>() / count;
                let mean = accuracies.iter().sum::<f64>() / count;
                let lowest = accuracies.iter().copied().fold(f64::INFINITY, f64::min);
                let highest = accuracies.iter().copied().fold(0.0, f64::max);
                Some((x, [mean, lowest, highest]))
            })
            .collect()
    }
}

/// From values to places.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// Whole tenths around the accuracies in the better half of every run, so that the ends can be told apart.
    fn accuracy(lines: &[Line<'_>]) -> Self {
        let courses = lines.iter().flat_map(|line| {
            let course = line.course(|point| point.virtual_seconds);
            let later = course.len() / 2;
            course.into_iter().skip(later).flat_map(|(_, values)| values)
        });
        let (low, high) = courses.fold((1.0_f64, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let (low, high) = ((low * 10.0).floor() / 10.0, (high * 10.0).ceil() / 10.0);
        Self {
            low,
            high: high.max(low + 0.1),
        }
    }

    fn at(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

fn panel(
    out: &mut String,
    lines: &[Line<'_>],
    left: f64,
    title: &str,
    measure: fn(&Point) -> f64,
    y: &Scale,
) {
    let bottom = MARGIN.1 + PANEL.1;
    let to_y = |accuracy: f64| bottom - y.at(accuracy) * PANEL.1;
    let courses: Vec<_> = lines.iter().map(|line| line.course(measure)).collect();
    let positive = || courses.iter().flatten().map(|(x, _)| *x).filter(|x| *x > 0.0);
    let (first, last) = (
        positive().fold(f64::INFINITY, f64::min),
        positive().fold(0.0, f64::max),
    );
    let (first, last) = if last > 0.0 {
        (first.log10().floor(), last.log10().ceil())
    } else {
        (0.0, 1.0)
    };
    let x = Scale {
        low: first,
        high: last.max(first + 1.0),
    };
    let to_x = |value: f64| {
        left + if value > 0.0 {
            x.at(value.log10()) * PANEL.0
        } else {
            0.0
        }
    };
    put(
        out,
        format_args!(
            "<text class=\"ink\" x=\"{left}\" y=\"{}\">accuracy against {title}</text>\n",
            MARGIN.1 - 14.0
        ),
    );
    for step in 0..=5 {
        let accuracy = y.low + (y.high - y.low) * f64::from(step) / 5.0;
        let at = to_y(accuracy);
        put(
            out,
            format_args!(
                "<line class=\"grid\" x1=\"{left}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/><text class=\"ink\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>\n",
                left + PANEL.0,
                left - 6.0,
                at + 4.0,
                accuracy * 100.0
            ),
        );
    }
    let mut decade = x.low;
    while decade <= x.high {
        let at = left + x.at(decade) * PANEL.0;
        put(
            out,
            format_args!(
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\"/><text class=\"ink\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                MARGIN.1,
                bottom + 16.0,
                10_f64.powf(decade)
            ),
        );
        decade += 1.0;
    }
    for (line, course) in lines.iter().zip(&courses) {
        let Some((_, [end, ..])) = course.last() else {
            continue;
        };
        if course.iter().all(|(x, _)| *x <= 0.0) {
            // It costs nothing: its end is as good everywhere.
            let at = to_y(*end);
            put(
                out,
                format_args!(
                    "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" {}/>\n",
                    left + PANEL.0,
                    line.stroke
                ),
            );
            continue;
        }
        let place = |x: f64, accuracy: f64| format!("{:.1},{:.1} ", to_x(x), to_y(accuracy));
        if line.runs.len() > 1 {
            let there = course.iter().map(|(x, [_, lowest, _])| place(*x, *lowest));
            let back = course
                .iter()
                .rev()
                .map(|(x, [_, _, highest])| place(*x, *highest));
            let band: String = there.chain(back).collect();
            put(
                out,
                format_args!(
                    "<polygon points=\"{}\" fill=\"{}\" fill-opacity=\"0.18\"/>\n",
                    band.trim_end(),
                    line.colour
                ),
            );
        }
        let points: String = course.iter().map(|(x, [mean, ..])| place(*x, *mean)).collect();
        put(
            out,
            format_args!("<polyline points=\"{}\" {}/>\n", points.trim_end(), line.stroke),
        );
        if let Some((x, _)) = course.last() {
            put(
                out,
                format_args!(
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"/>\n",
                    to_x(*x),
                    to_y(*end),
                    line.colour
                ),
            );
        }
    }
}

fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _infallible = out.write_fmt(arguments);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use lapwing_train::simulate::Ended;

    /// A run of three evaluations that ends at some accuracy.
    pub(in super::super) fn run(algorithm: Algorithm, accuracy: f64) -> Run {
        let point = |round: u32| Point {
            round: round.into(),
            epochs: round.into(),
            virtual_seconds: f64::from(round) * if algorithm == Algorithm::Local { 0.0 } else { 10.0 },
            sent_bytes_per_node: f64::from(round) * if algorithm == Algorithm::Local { 0.0 } else { 1e5 },
            received_bytes_per_node: 0.0,
            local_accuracy: Some(accuracy),
            averaged_accuracy: Some(accuracy - 0.125 + f64::from(round) / 32.0),
            averaged_loss: Some(1.0),
            training_loss: None,
            disagreement: 0.0,
        };
        Run {
            algorithm,
            nodes: 2,
            seed: 1,
            parameters: 10,
            rounds: 3,
            epsilon: None,
            mean_bottleneck_mbit_s: None,
            points: (1..=3).map(point).collect(),
            ended: Ended::Done,
        }
    }

    #[test]
    fn every_algorithm_has_a_line_of_its_own_and_several_seeds_a_band() {
        let runs = [
            run(Algorithm::Saps, 0.8),
            run(Algorithm::Saps, 0.9),
            run(Algorithm::Default, 0.85),
        ];
        let chart = svg(&runs);
        assert_eq!(
            (
                chart.matches("<polyline").count(),
                chart.matches("<polygon").count()
            ),
            (4, 2)
        );
        assert!(chart.contains(">saps</text>") && !chart.contains(">fedavg</text>"));
        assert!(!chart.contains("NaN") && !chart.contains("inf"));
    }

    #[test]
    fn what_costs_nothing_is_a_level_line_and_no_runs_are_an_empty_chart() {
        let chart = svg(&[run(Algorithm::Local, 0.6)]);
        assert_eq!(chart.matches("<polyline").count(), 0);
        assert!(!chart.contains("NaN") && !chart.contains("inf"));
        let empty = svg(&[]);
        assert!(empty.ends_with("</svg>\n") && !empty.contains("NaN") && !empty.contains("inf"));
    }
}
