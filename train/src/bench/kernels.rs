//! The kernels of a round beside a memory copy in the same run, on one thread.

use super::{fastest, millis, row};
use crate::mask::Mask;
use crate::merge;
use crate::quantise::Encoded;
use lapwing_base::{Algorithm, JobId, Round, RoundKind, RoundPlan, Row, Values};
use std::hint::black_box;
use std::time::Duration;

/// One in a hundred is the papers' setting, one in 25 our default, one in four about the most that a list is for.
const SPARSE: [(Algorithm, u32); 7] = [
    (Algorithm::Saps, 100),
    (Algorithm::Saps, 10),
    (Algorithm::Saps, 4),
    (Algorithm::Default, 100),
    (Algorithm::Default, 25),
    (Algorithm::Default, 10),
    (Algorithm::Default, 4),
];

const KINDS: [Values; 3] = [Values::F32, Values::F16, Values::Int8];

/// The kernels on a model of so many parameters; needs five times its memory.
///
/// What touches a part of the model is in milliseconds beside one copy of it: below 1, it costs less than one pass.
/// What touches all of it is in GB/s, read and written, beside those of the copy.
///
/// # Panics
///
/// When there are more parameters than a `u32` counts.
pub fn kernel_rows(parameters: usize) -> Vec<Row> {
    let model: Vec<f32> = (0..parameters).map(|index| (index as f32).sin() * 0.1).collect();
    let mut other = vec![0.0_f32; parameters];
    let copied = fastest(|| black_box(&mut other[..]).copy_from_slice(black_box(&model)));
    let mut rows = Rows {
        parameters,
        copied,
        rows: Vec::new(),
    };
    rows.part("memory copy", copied);
    for (algorithm, compression) in SPARSE {
        sparse(&mut rows, algorithm, compression, &model, &mut other);
    }
    chosen(&mut rows, &model);
    rows.pass("memory copy", copied, 8 * parameters);
    for kind in KINDS {
        dense(&mut rows, kind, &model, &mut other);
    }
    rows.rows
}

struct Rows {
    parameters: usize,
    copied: Duration,
    rows: Vec<Row>,
}

impl Rows {
    /// A kernel that touches a part of the model.
    fn part(&mut self, case: &str, took: Duration) {
        let case = format!("{case}, {} parameters", self.parameters);
        self.rows.push(row(case, millis(took), "ms", millis(self.copied)));
    }

    /// A kernel that reads and writes so many bytes.
    fn pass(&mut self, case: &str, took: Duration, bytes: usize) {
        let case = format!("{case}, {} parameters", self.parameters);
        let copied = rate(self.copied, 2 * size_of::<f32>() * self.parameters);
        self.rows.push(row(case, rate(took, bytes), "GB/s", copied));
    }
}

fn sparse(rows: &mut Rows, algorithm: Algorithm, compression: u32, model: &[f32], other: &mut [f32]) {
    let plan = round_of(compression);
    let name = format!("{algorithm} c={compression}");
    let mut mask = Mask::All(0);
    let took = fastest(|| mask.renew(1, algorithm, &plan, model.len()));
    rows.part(&format!("mask, {name}"), took);
    let mut values = Vec::new();
    let took = fastest(|| mask.gather(black_box(model), &mut values));
    rows.part(&format!("gather, {name}"), took);
    drop(values);
    for kind in [Values::F32, Values::Int8] {
        let mut buffer = Vec::new();
        let took = fastest(|| buffer = encode(model, &mask, kind, std::mem::take(&mut buffer)));
        rows.part(&format!("gather + encode {kind}, {name}"), took);
        let Ok(values) = Encoded::of(model, &mask, kind, buffer) else {
            continue;
        };
        let took = fastest(|| halve(other, &mask, &values));
        rows.part(&format!("merge {kind}, {name}"), took);
        let mut buffer = values.into_buffer();
        let took = fastest(|| {
            mask.renew(1, algorithm, &plan, model.len());
            if let Ok(values) = Encoded::of(black_box(other), &mask, kind, std::mem::take(&mut buffer)) {
                halve(other, &mask, &values);
                buffer = values.into_buffer();
            }
        });
        rows.part(&format!("mask + gather + encode + merge {kind}, {name}"), took);
    }
}

/// Coordinates that a node chooses by their values and sends.
fn chosen(rows: &mut Rows, model: &[f32]) {
    let count = model.len() / 100;
    let mut mask = Mask::All(0);
    let took = fastest(|| mask = Mask::largest(black_box(model), count));
    rows.part("largest hundredth", took);
    let mut bytes = Vec::new();
    let took = fastest(|| black_box(&mask).write(&mut bytes));
    rows.part("write its coordinates", took);
    let took = fastest(|| {
        // What this run has just written is readable.
        let _ = mask.read(black_box(&bytes), count, model.len());
    });
    rows.part("read its coordinates", took);
}

fn dense(rows: &mut Rows, kind: Values, model: &[f32], other: &mut [f32]) {
    let all = Mask::All(model.len());
    let mut buffer = Vec::new();
    let took = fastest(|| buffer = encode(model, &all, kind, std::mem::take(&mut buffer)));
    let (flat, written) = (size_of_val(model), buffer.len());
    // Encoded, and read once more to see that all is finite.
    rows.pass(&format!("encode {kind}"), took, flat + 2 * written);
    if kind != Values::F32 {
        let took = fastest(|| {
            let memory = std::mem::take(&mut buffer);
            if let Ok(values) = Encoded::with_feedback(black_box(model), &all, kind, other, memory) {
                buffer = values.into_buffer();
            }
        });
        rows.pass(
            &format!("encode {kind} with feedback"),
            took,
            3 * flat + 2 * written,
        );
    }
    let Ok(sent) = Encoded::of(model, &all, kind, buffer) else {
        return;
    };
    let mut decoded = Vec::new();
    let took = fastest(|| black_box(&sent).decode(&mut decoded));
    rows.pass(&format!("decode {kind}"), took, flat + written);
    drop(decoded);
    let took = fastest(|| drop(black_box(Encoded::parse(sent.bytes(), kind, model.len()))));
    rows.pass(&format!("parse {kind}"), took, written);
    let took = fastest(|| drop(black_box(merge::check_encoded(&all, &sent, &sent))));
    rows.pass(&format!("check {kind}"), took, 2 * written);
    let took = fastest(|| {
        black_box(merge::distance(black_box(&sent), &sent));
    });
    rows.pass(&format!("distance {kind}"), took, 2 * written);
    let took = fastest(|| halve(other, &all, &sent));
    rows.pass(&format!("merge {kind}"), took, 2 * flat + 2 * written);
}

fn encode(model: &[f32], mask: &Mask, kind: Values, buffer: Vec<u8>) -> Vec<u8> {
    // The model is finite, so it is never refused.
    Encoded::of(black_box(model), mask, kind, buffer).map_or_else(|_| Vec::new(), Encoded::into_buffer)
}

fn halve(model: &mut [f32], mask: &Mask, values: &Encoded) {
    // The lengths are the mask's, so it is never refused.
    let _ = merge::merge_encoded(black_box(model), mask, values, values);
}

fn rate(took: Duration, bytes: usize) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e9
}

fn round_of(compression: u32) -> RoundPlan {
    RoundPlan {
        job: JobId(1),
        round: Round(1),
        kind: RoundKind::Sparse,
        seed: [0; 32],
        pairs: Vec::new(),
        alone: Vec::new(),
        compression,
        local_steps: 1,
        lr_micro: 1,
        deadline_ms: 1,
    }
}
