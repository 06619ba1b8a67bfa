//! The cyclic mask: block `(round - 1) mod c` of a permutation that is cut into `c` blocks, fresh in each cycle of `c`
//! rounds.
//!
//! The permutation is never written out. The vector is cut into strata of `c` runs of neighbouring coordinates; one
//! order of the `c` runs serves all strata, and each stratum starts at a place of its own in it. So a block takes one
//! run of each stratum: sorted as it comes, spread evenly over the layers, in a time proportional to what is exchanged.
//! A fresh order each cycle keeps a coordinate from meeting the same kind of round again and again when the matchings
//! have a rhythm too (each few rounds joins the slow members).

use super::key;
use super::runs::{LINE, Runs};
use super::words::Words;
use lapwing_base::Round;

/// A block of a small model is at least this many runs, so that no layer is exchanged in one piece.
const STRATA_MIN: u64 = 64;

/// The runs of a round, in the memory of `starts`; `compression` is at least 2.
pub(super) fn draw(job_seed: u64, round: Round, compression: u32, n: u32, mut starts: Vec<u32>) -> Runs {
    let step = round.0.saturating_sub(1);
    let cycle = step / u64::from(compression);
    let slot = step % u64::from(compression);
    let mut words = Words::new(key("lapwing 2026-11 cyclic mask", job_seed, cycle));
    let mut order: Vec<u32> = (0..compression).collect();
    for last in (1..compression).rev() {
        order.swap(last as usize, words.below(last + 1) as usize);
    }
    let (n, c) = (u64::from(n), u64::from(compression));
    let run = (n / (c * STRATA_MIN)).clamp(1, LINE as u64);
    starts.clear();
    starts.reserve((n / (c * run) + 1) as usize);
    for stratum in (0..n).step_by((c * run) as usize) {
        let place = slot + u64::from(words.below(compression));
        let place = if place < c { place } else { place - c };
        let first = stratum + u64::from(order[place as usize]) * run;
        // The last stratum may be cut short. Below `n`, which came as a `u32`.
        if first < n {
            starts.push(first as u32);
        }
    }
    Runs::new(starts, run as usize, n as usize)
}
