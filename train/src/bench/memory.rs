//! How much memory a node's side of a job takes, in multiples of its model, on the backend that nodes have by default.
//!
//! Measured as what the process has resident at most during a few rounds, beyond what it had before the model was there:
//! parameters, gradient, momentum, what the algorithm keeps, what an exchange holds, and the writing of checkpoints.
//! Samples are not counted. The model is large, so that each of its vectors is given back to the system when it is dropped.

use super::{BenchError, row};
use crate::backend::backend;
use crate::data::{Batches, Dataset, Samples, Scaling};
use crate::jobfile::defaults;
use crate::mask::round_seed;
use crate::model::InputShape;
use crate::trainee::BuiltIn;
use crate::worker::{Worker, WorkerError};
use lapwing_base::{
    Algorithm, ByteSize, JobId, JobSpec, Meeting, NodeId, NodeOutcome, Pair, Round, RoundKind, RoundPlan,
    RoundReport, Row, chain,
};
use std::path::Path;

/// Parameters, gradient, momentum, error feedback, and a half for what is on its way.
const TARGET: f64 = 4.5;

/// With 256 values for each, a model of 41 MB.
const FEATURES: u32 = 40_000;

const CLASSES: usize = 2;

/// As many as a batch has.
const SAMPLES: u32 = 8;

const ROUNDS: u64 = 3;

const ME: NodeId = NodeId(2);
const NEIGHBOURS: [NodeId; 2] = [NodeId(1), NodeId(3)];

/// What a node has resident with each algorithm, in models, beside what it should.
///
/// Only Linux tells; elsewhere there are no rows.
///
/// # Errors
///
/// When a round fails, such as for a disk that is full.
pub(super) fn rows(dir: &Path) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for algorithm in Algorithm::ALL {
        let measured = measure(algorithm, dir).map_err(|error| BenchError(chain(&error).to_string()))?;
        let case = format!("memory of a node, {algorithm}");
        rows.extend(measured.map(|models| row(case, models, "models", TARGET)));
    }
    Ok(rows)
}

fn measure(algorithm: Algorithm, dir: &Path) -> Result<Option<f64>, WorkerError> {
    let spec = JobSpec {
        batch: SAMPLES,
        checkpoint_every: 1,
        ..defaults(algorithm)
    };
    let Some(data) = samples() else {
        return Ok(None);
    };
    forget_peak();
    let before = resident("VmRSS:");
    let backend = backend("plain", "mlp", data.shape, data.classes, spec.seed, &spec.tuning)?;
    let parameters = backend.layout().parameters();
    let trainee = BuiltIn {
        backend,
        data,
        batches: Batches::of_part(spec.seed, 1, SAMPLES),
        private: None,
    };
    let mut worker = Worker::new(ME, JobId(1), spec, Box::new(trainee), dir);
    for round in 1..=ROUNDS {
        take_part(&mut worker, algorithm, Round(round), parameters)?;
    }
    let most = resident("VmHWM:");
    Ok(before
        .zip(most)
        .map(|(before, most)| most.saturating_sub(before) as f64 / (4 * parameters) as f64))
}

/// One round with neighbours that tell what this node tells.
fn take_part(
    worker: &mut Worker,
    algorithm: Algorithm,
    round: Round,
    parameters: usize,
) -> Result<(), WorkerError> {
    let plan = plan(algorithm, round);
    worker.train(&plan, plan.local_steps)?;
    let partners: Vec<NodeId> = plan.partners_of(ME).collect();
    let ring = (plan.kind == RoundKind::Reduced)
        .then(|| worker.ring(round, &[ME, NEIGHBOURS[1]]))
        .transpose()?;
    match &ring {
        Some(_) => worker.keep_mean(round, vec![0.0; parameters])?,
        None => {
            for &partner in &partners {
                let (message, _) = worker.offer(round, partner)?;
                worker.accept(round, partner, &message)?;
            }
        }
    }
    let outcome = NodeOutcome {
        node: ME,
        loss_micro: 0,
        samples: 0,
        sent: ByteSize(0),
        received: ByteSize(0),
    };
    worker.hold(&RoundReport {
        job: JobId(1),
        round,
        outcome,
        received: partners.clone(),
        training_ms: 0,
        exchange_ms: 0,
        links: Vec::new(),
    })?;
    drop(ring);
    worker.settle(round, &partners)
}

fn plan(algorithm: Algorithm, round: Round) -> RoundPlan {
    let spec = defaults(algorithm);
    let (kind, partners) = match algorithm.meeting() {
        Meeting::Pairs => (RoundKind::Sparse, &NEIGHBOURS[1..]),
        Meeting::Ring => (RoundKind::Sparse, &NEIGHBOURS[..]),
        Meeting::All => (RoundKind::Reduced, &NEIGHBOURS[1..]),
        Meeting::Server => (
            RoundKind::Served {
                server: NEIGHBOURS[1],
            },
            &NEIGHBOURS[1..],
        ),
        Meeting::Nobody => (RoundKind::Sparse, &NEIGHBOURS[..0]),
    };
    RoundPlan {
        job: JobId(1),
        round,
        kind,
        seed: round_seed(spec.seed, round),
        pairs: partners
            .iter()
            .filter_map(|partner| Pair::new(ME, *partner))
            .collect(),
        alone: Vec::new(),
        compression: spec.compression,
        // More would take longer, and no more memory.
        local_steps: 1,
        lr_micro: 1000,
        deadline_ms: 1,
    }
}

/// As many labels as rows, so that there are some.
fn samples() -> Option<Dataset> {
    let features = (0..SAMPLES * FEATURES)
        .map(|index| (index as f32).sin())
        .collect();
    let labels = (0..SAMPLES).map(|sample| (sample % 2) as u8).collect();
    let samples = Samples::new(features, labels, FEATURES as usize)?;
    Some(Dataset {
        test: Samples::new(Vec::new(), Vec::new(), FEATURES as usize)?,
        train: samples,
        classes: CLASSES,
        shape: InputShape::flat(FEATURES),
        scaling: Scaling {
            mean: 0.0,
            deviation: 1.0,
        },
    })
}

/// What the kernel knows of this process's memory, in bytes.
fn resident(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(1024 * kilobytes)
}

/// Has the kernel count anew what was resident at most. Where it does not, what came before this counts too.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
