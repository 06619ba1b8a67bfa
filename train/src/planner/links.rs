//! The measured bandwidths between the members of a plan, by their places.
//!
//! It only looks up; what a link that nobody measured is worth, each planner decides for itself.

use super::seats::{Seats, edges};
use lapwing_base::Bandwidths;

/// Bandwidths of exchanges, in kbit/s. An exchange is as fast as its slower direction.
#[derive(Debug)]
pub(super) struct Links {
    n: usize,
    /// From each member (row) to each other one, by their numbers: filled in the order in which they come, since a
    /// million writes to random places take longer than the rest of a plan.
    speeds: Vec<u32>,
    /// The row of each place.
    rows: Vec<usize>,
}

/// The direction was not measured.
const UNKNOWN: u32 = u32::MAX;

impl Links {
    pub(super) fn new(seats: &Seats, bandwidths: &Bandwidths) -> Self {
        let n = seats.len();
        let by_number = seats.by_number();
        let mut rows = vec![0; n];
        for (row, &(_, place)) in by_number.iter().enumerate() {
            rows[place] = row;
        }
        let mut speeds = vec![UNKNOWN; n * n];
        // Both lists are sorted, so that one walk along the members per sender finds all its receivers.
        let mut sender = None;
        let mut column = 0;
        for link in bandwidths.iter() {
            if sender.is_none_or(|(node, _)| node != link.from) {
                let row = by_number.binary_search_by_key(&link.from, |&(node, _)| node);
                sender = Some((link.from, row.ok()));
                column = 0;
            }
            let Some((_, Some(row))) = sender else { continue };
            while by_number.get(column).is_some_and(|&(node, _)| node < link.to) {
                column += 1;
            }
            if by_number.get(column).is_some_and(|&(node, _)| node == link.to) {
                speeds[row * n + column] = link.speed.kbit_s;
            }
        }
        Self { n, speeds, rows }
    }

    /// How fast two members exchange, when either direction was measured; see `Bandwidths::between`.
    pub(super) fn between(&self, a: usize, b: usize) -> Option<u32> {
        self.between_rows(self.rows[a], self.rows[b])
    }

    fn between_rows(&self, a: usize, b: usize) -> Option<u32> {
        // What is unknown is the greater one.
        let slower = self.speeds[a * self.n + b].min(self.speeds[b * self.n + a]);
        (slower != UNKNOWN).then_some(slower)
    }

    /// For each place the speed of its member's best link, and how many of its links are known.
    pub(super) fn bests(&self) -> Vec<(u32, usize)> {
        let mut bests = vec![(0, 0); self.n];
        for (a, b) in edges(self.n) {
            if let Some(speed) = self.between_rows(a, b) {
                for row in [a, b] {
                    let (best, known) = &mut bests[row];
                    *best = speed.max(*best);
                    *known += 1;
                }
            }
        }
        self.rows.iter().map(|&row| bests[row]).collect()
    }
}
