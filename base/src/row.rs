//! What a benchmark prints: one figure beside what it is compared with. Measures nothing.

use serde::Serialize;

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub bench: &'static str,
    /// Under which circumstances.
    pub case: String,
    /// The figure.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it is compared with, in the same unit; not a number where there was nothing to compare with.
    pub baseline: f64,
    /// `value / baseline`.
    pub ratio: f64,
}

impl Row {
    /// A figure beside its baseline.
    pub fn new(
        bench: &'static str,
        case: impl Into<String>,
        value: f64,
        unit: &'static str,
        baseline: f64,
    ) -> Self {
        Self {
            bench,
            case: case.into(),
            value,
            unit,
            baseline,
            ratio: value / baseline,
        }
    }
}
