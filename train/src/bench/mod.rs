//! Measures the kernels of a round, the planner and the memory of a node, beside what bounds them.
//!
//! `lapwing bench train` and the bench `kernels` call it. It asserts nothing: numbers are for people and for
//! comparisons between two runs on one machine.

mod kernels;
#[cfg(feature = "driver")]
mod memory;
#[cfg(feature = "driver")]
mod plans;

pub use kernels::kernel_rows;

use lapwing_base::Row;
use std::time::{Duration, Instant};

/// Parameters of the MNIST-CNN in the papers (conv5x5x32, conv5x5x64, fc512, fc10).
pub const PARAMETERS: usize = 1_663_370;

/// Each case runs this often, and its fastest run counts: what else the machine does only ever adds time.
const RUNS: u32 = 15;

/// Measures the kernels on the papers' model, plans, and the memory of a node, whose checkpoints go to `dir`; takes about
/// twenty seconds and 0.5 GB.
///
/// # Errors
///
/// When checkpoints cannot be written.
#[cfg(feature = "driver")]
pub fn rows(dir: &std::path::Path) -> Result<Vec<Row>, BenchError> {
    let mut rows = kernel_rows(PARAMETERS);
    rows.extend(plans::rows());
    rows.extend(memory::rows(dir)?);
    Ok(rows)
}

/// Why something could not be measured.
#[cfg(feature = "driver")]
#[derive(Debug, thiserror::Error)]
#[error("a round of the measured node failed: {0}")]
pub struct BenchError(String);

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
