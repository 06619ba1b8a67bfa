//! What the models of the members have in common, followed through merges without any model.
//!
//! It averages small vectors in the members' places. They start as far from each other as vectors can, so how close two
//! of them are in the end is how well the merges have mixed their members' models. Integers only: the same merges give
//! the same distances on every machine. Which merges there were, the caller knows.

use crate::draws::Draws;

/// A vector for each member.
#[derive(Debug)]
pub(super) struct Mixing {
    rows: Vec<i32>,
    columns: usize,
    /// What each vector was at first: the direction in which a member's own data pulls it.
    own: Vec<i32>,
}

/// The length of a vector at first.
const ONE: i32 = 1 << 16;

/// Up to as many members each has a coordinate of its own, and distances are exact. More have vectors of this many
/// random signs (Johnson and Lindenstrauss), whose distances are right within `sqrt(2 / 64)`, 18 %: enough to tell who
/// mixed from who did not, at a cost that grows with the members and not with their square.
const COLUMNS: usize = 64;

/// By this part of its first length a training member moves towards its own data while another one exchanges its whole
/// model. It only has to be small: it decides between pairs that have mixed equally well else, for the one that did so
/// longer ago.
const DRIFT: i32 = 32;

impl Mixing {
    /// `n` members that have nothing in common.
    pub(super) fn new(n: usize) -> Self {
        let columns = n.min(COLUMNS);
        let mut rows = vec![0; n * columns];
        if n == columns {
            for own in rows.iter_mut().step_by(n + 1) {
                *own = ONE;
            }
        } else {
            let mut draws = Draws::new("lapwing 2026-11 mixing", &[]);
            for row in rows.chunks_mut(columns) {
                let signs = draws.below(u64::MAX);
                for (column, cell) in row.iter_mut().enumerate() {
                    // The root of 64 makes the vector as long as above.
                    *cell = if signs >> column & 1 == 1 {
                        ONE / 8
                    } else {
                        -ONE / 8
                    };
                }
            }
        }
        let own = rows.clone();
        Self { rows, columns, own }
    }

    /// Two members merge `exchanged` of `whole` equal parts of their models.
    pub(super) fn merge(&mut self, a: usize, b: usize, exchanged: u64, whole: u64) {
        // The squared distance of the two must shrink by the part that was exchanged, so each moves towards their mean
        // by one minus the root of what was not.
        let left = whole.saturating_sub(exchanged) * (1 << 32) / whole.max(1);
        let kept = left.isqrt().cast_signed();
        let (a, b) = (a * self.columns, b * self.columns);
        for column in 0..self.columns {
            let (x, y) = (i64::from(self.rows[a + column]), i64::from(self.rows[b + column]));
            let (mean, half) = ((x + y) >> 1, ((x - y) * kept) >> 17);
            // Between `x` and `y`, which came as `i32`s.
            self.rows[a + column] = (mean + half) as i32;
            self.rows[b + column] = (mean - half) as i32;
        }
    }

    /// Everybody trains on its own for as long as an exchange of whole models takes.
    pub(super) fn drift(&mut self) {
        for (cell, own) in self.rows.iter_mut().zip(&self.own) {
            *cell += own / DRIFT;
        }
    }

    /// How little two members have in common: the squared distance of their vectors.
    pub(super) fn distance(&self, a: usize, b: usize) -> u64 {
        let row = |place: usize| &self.rows[place * self.columns..(place + 1) * self.columns];
        row(a)
            .iter()
            .zip(row(b))
            .map(|(x, y)| u64::from(x.abs_diff(*y)).pow(2))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_merged_have_everything_in_common() {
        for n in [5, 200] {
            let mut mixing = Mixing::new(n);
            let apart = mixing.distance(0, 1);
            mixing.merge(0, 1, 25, 25);
            assert_eq!(mixing.distance(0, 1), 0);
            // A quarter less, give or take what random signs are wrong by.
            assert!((apart / 3..apart * 3 / 2).contains(&mixing.distance(0, 2)));
            mixing.drift();
            assert!(mixing.distance(0, 1) > 0);
        }
    }

    #[test]
    fn the_distance_of_two_shrinks_by_the_part_that_they_exchange() {
        let mut mixing = Mixing::new(4);
        let apart = mixing.distance(0, 1);
        mixing.merge(0, 1, 5, 20);
        let left = mixing.distance(0, 1) as f64 / apart as f64;
        assert!((left - 0.75).abs() < 1e-3, "{left}");
    }

    #[test]
    fn a_hypercube_of_merges_leaves_no_distance() {
        let mut mixing = Mixing::new(8);
        for bit in [1, 2, 4] {
            for a in (0..8_usize).filter(|a| a & bit == 0) {
                mixing.merge(a, a | bit, 1, 1);
            }
        }
        assert_eq!((0..8).map(|a| mixing.distance(0, a)).max(), Some(0));
    }
}
