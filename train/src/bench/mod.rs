//! Measures the kernels of a round and the planner, beside what bounds them.
//!
//! `lapwing bench train` and the bench `kernels` call it. It asserts nothing: numbers are for people and for
//! comparisons between two runs on one machine.

mod kernels;
mod plans;

pub use kernels::kernel_rows;

use lapwing_base::Row;
use std::time::{Duration, Instant};

/// Parameters of the MNIST-CNN in the papers (conv5x5x32, conv5x5x64, fc512, fc10).
pub const PARAMETERS: usize = 1_663_370;

/// Each case runs this often, and its fastest run counts: what else the machine does only ever adds time.
const RUNS: u32 = 15;

/// Measures the kernels on the papers' model, and plans; takes about two seconds.
pub fn rows() -> Vec<Row> {
    let mut rows = kernel_rows(PARAMETERS);
    rows.extend(plans::rows());
    rows
}

fn row(case: String, value: f64, unit: &'static str, baseline: f64) -> Row {
    Row::new("train", case, value, unit, baseline)
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn fastest(mut run: impl FnMut()) -> Duration {
    // Once more than counted: the first run touches memory that is new to it.
    let runs = (0..=RUNS).map(|_| {
        let started = Instant::now();
        run();
        started.elapsed()
    });
    runs.skip(1)
        .min()
        .unwrap_or_default()
        .max(Duration::from_nanos(1))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
