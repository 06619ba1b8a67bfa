//! Masks and round seeds are part of the protocol: two nodes that derive different ones corrupt each other's models.
//!
//! `vectors/masks.txt` holds what every machine and every version must derive, one case a line:
//! `algorithm job_seed round compression parameters count first,indices BLAKE3-of-all-indices-as-u32-LE`.
//! A line that no longer holds means a new protocol version, not a new line.

use lapwing_base::{Algorithm, JobId, Round, RoundKind, RoundPlan};
use lapwing_train::{Mask, round_seed};

const CASES: [(Algorithm, u64, u64, u32, usize); 14] = [
    (Algorithm::Saps, 1, 1, 100, 1_663_370),
    (Algorithm::Saps, 1, 2, 100, 1_663_370),
    (Algorithm::Saps, 2, 1, 100, 1_663_370),
    (Algorithm::Saps, 1, 1, 10, 50_890),
    (Algorithm::Saps, 1, 1, 4, 50_890),
    (Algorithm::Saps, u64::MAX, 1_000_000, 1000, 269_722),
    (Algorithm::Saps, 7, 3, 5000, 269_722),
    (Algorithm::Saps, 7, 3, 2, 1),
    (Algorithm::Default, 1, 1, 25, 50_890),
    (Algorithm::Default, 1, 2, 25, 50_890),
    (Algorithm::Default, 1, 26, 25, 50_890),
    (Algorithm::Default, 2, 1, 100, 1_663_370),
    (Algorithm::Default, u64::MAX, 1_000_000, 1000, 2410),
    (Algorithm::Default, 7, 3, 100, 10),
];

#[test]
fn every_machine_derives_the_same_masks() {
    let derived: Vec<String> = CASES.into_iter().map(line).collect();
    let fixed: Vec<&str> = include_str!("vectors/masks.txt").lines().collect();
    assert_eq!(derived, fixed, "\n{}\n", derived.join("\n"));
}

#[test]
fn every_machine_derives_the_same_round_seeds() {
    let seeds =
        [(1, 1), (1, 2), (u64::MAX, 1_000_000)].map(|(seed, round)| hex(&round_seed(seed, Round(round))));
    let fixed: Vec<&str> = include_str!("vectors/round_seeds.txt").lines().collect();
    assert_eq!(seeds.to_vec(), fixed);
}

fn line((algorithm, job_seed, round, compression, parameters): (Algorithm, u64, u64, u32, usize)) -> String {
    let plan = RoundPlan {
        job: JobId(1),
        round: Round(round),
        kind: RoundKind::Sparse,
        seed: round_seed(job_seed, Round(round)),
        pairs: Vec::new(),
        alone: Vec::new(),
        compression,
        local_steps: 1,
        lr_micro: 1,
        deadline_ms: 1,
    };
    let mask = Mask::of(job_seed, algorithm, &plan, parameters);
    let first: Vec<String> = mask
        .coordinates()
        .take(8)
        .map(|index| index.to_string())
        .collect();
    let first = if first.is_empty() {
        "-".to_owned()
    } else {
        first.join(",")
    };
    let (count, digest) = (mask.len(), hex(&mask.digest()));
    format!("{algorithm} {job_seed} {round} {compression} {parameters} {count} {first} {digest}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
