//! The links that a simulation runs over: the papers' cities, made-up ones, or a person's own measurements.
//!
//! Data only: how long something takes over them is said elsewhere.

use crate::cities::{CITIES, city_bandwidths};
use lapwing_base::{Bandwidth, Bandwidths, LinkSpeed, NodeId};

/// Members 1 to `nodes`, every link between them known.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// What it is, for people.
    pub name: String,
    /// How many members.
    pub nodes: u64,
    /// Their links, each direction on its own.
    pub bandwidths: Bandwidths,
}

impl Network {
    /// The first of the papers' cities; `None` for more than there are.
    pub fn cities(nodes: u64) -> Option<Self> {
        let mut bandwidths = city_bandwidths();
        let all = CITIES.len() as u64;
        for node in nodes + 1..=all {
            bandwidths.forget(NodeId(node));
        }
        (nodes <= all).then(|| Self {
            name: format!("{nodes} cities"),
            nodes,
            bandwidths,
        })
    }

    /// All of the papers' cities.
    pub fn fourteen_cities() -> Self {
        Self {
            name: "14 cities".to_owned(),
            nodes: 14,
            bandwidths: city_bandwidths(),
        }
    }

    /// Links that are uniform between two speeds in kbit/s, both left out, and alike in both directions, as in the
    /// papers; each seed is another network.
    pub fn uniform(nodes: u64, low: u32, high: u32, seed: u64) -> Self {
        let mut draw = draws(seed);
        let between = u64::from(high.saturating_sub(low).saturating_sub(1).max(1));
        let megabits = |kbit: u32| f64::from(kbit) / 1000.0;
        Self {
            name: format!(
                "{nodes}, uniform in ({}, {}) Mbit/s",
                megabits(low),
                megabits(high)
            ),
            nodes,
            // Below `high`, which is a `u32`.
            bandwidths: links(nodes, |_, _| low + 1 + (draw() % between) as u32),
        }
    }

    /// Links that are all equal, in kbit/s.
    pub fn equal(nodes: u64, kbit_s: u32) -> Self {
        Self {
            name: format!("{nodes}, all links equal"),
            nodes,
            bandwidths: links(nodes, |_, _| kbit_s),
        }
    }

    /// 16 members, three of them 40 times slower than the others.
    pub fn few_slow() -> Self {
        let mut draw = draws(1);
        let mut below = |bound: u64| (draw() % bound) as u32;
        Self {
            name: "16, three of them slow".to_owned(),
            nodes: 16,
            bandwidths: links(16, |a, _| {
                if a <= 3 {
                    500 + below(500)
                } else {
                    20_000 + below(30_000)
                }
            }),
        }
    }

    /// Reads a table of speeds in Mbit/s, separated by commas: line i has what member i sends to each member. What
    /// stands where a member would send to itself does not matter; empty lines and those that begin with `#` are
    /// passed over.
    ///
    /// # Errors
    ///
    /// When it is not square, has fewer than two lines or more than 4,096, or a value is not a speed.
    pub fn parse(name: &str, text: &str) -> Result<Self, MatrixError> {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        // One more than allowed is enough to know.
        let rows: Vec<Vec<&str>> = lines
            .take(NODES_MAX + 1)
            .map(|line| line.split(',').map(str::trim).collect())
            .collect();
        if !(2..=NODES_MAX).contains(&rows.len()) {
            return Err(MatrixError::Rows { rows: rows.len() });
        }
        let mut bandwidths = Bandwidths::default();
        for (row, cells) in (1..).zip(&rows) {
            if cells.len() != rows.len() {
                return Err(MatrixError::Columns {
                    row,
                    columns: cells.len(),
                    rows: rows.len(),
                });
            }
            for (column, cell) in (1..).zip(cells).filter(|(column, _)| *column != row) {
                let speed = speed(cell).ok_or_else(|| MatrixError::Speed {
                    row,
                    column,
                    text: cell.chars().take(32).collect(),
                })?;
                bandwidths.set(LinkSpeed {
                    from: NodeId(row),
                    to: NodeId(column),
                    speed,
                });
            }
        }
        Ok(Self {
            name: name.to_owned(),
            nodes: rows.len() as u64,
            bandwidths,
        })
    }
}

/// Most members of a simulation: a table of all their links is then 16 million, and a plan takes seconds.
pub const NODES_MAX: usize = 4096;

/// A speed in Mbit/s that is at least 1 kbit/s and at most what [`Bandwidth`] holds.
fn speed(text: &str) -> Option<Bandwidth> {
    let kbit = text.parse::<f64>().ok()? * 1000.0;
    // In range, so nothing is lost but the fraction.
    (1.0..=f64::from(u32::MAX))
        .contains(&kbit)
        .then(|| Bandwidth::kbit(kbit.round() as u32))
}

/// Every link of `nodes` members, alike in both directions, in kbit/s; `speed` is told the smaller number first.
pub fn links(nodes: u64, mut speed: impl FnMut(u64, u64) -> u32) -> Bandwidths {
    let mut bandwidths = Bandwidths::default();
    for (a, b) in (1..=nodes).flat_map(|a| (a + 1..=nodes).map(move |b| (a, b))) {
        let speed = Bandwidth::kbit(speed(a, b));
        for (from, to) in [(NodeId(a), NodeId(b)), (NodeId(b), NodeId(a))] {
            bandwidths.set(LinkSpeed { from, to, speed });
        }
    }
    bandwidths
}

/// A stream of draws (splitmix64): integers only, so that a network is the same on every machine.
pub(super) fn draws(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

/// Why a text is no table of speeds.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MatrixError {
    /// Too few or too many lines.
    #[error("it has {rows} rows; a matrix has from 2 to {NODES_MAX}, one for each node")]
    Rows {
        /// How many; one more than allowed stands for any more.
        rows: usize,
    },
    /// A line of another length.
    #[error(
        "row {row} has {columns} columns, but there are {rows} rows; row i has what node i sends to each node"
    )]
    Columns {
        /// The row, counted from 1.
        row: u64,
        /// Its columns.
        columns: usize,
        /// All rows.
        rows: usize,
    },
    /// A value that is none.
    #[error("row {row}, column {column}: `{text}` is not a speed in Mbit/s of at least 0.001")]
    Speed {
        /// The row, counted from 1.
        row: u64,
        /// The column, counted from 1.
        column: u64,
        /// What stands there.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_i_of_a_matrix_is_what_node_i_sends() {
        let network = Network::parse("mine", "# two homes\n0, 1.5\n\n 20 ,-\n").unwrap();
        assert_eq!(network.nodes, 2);
        assert_eq!(
            network.bandwidths.get(NodeId(1), NodeId(2)),
            Some(Bandwidth::kbit(1500))
        );
        assert_eq!(
            network.bandwidths.get(NodeId(2), NodeId(1)),
            Some(Bandwidth::mbit(20))
        );
    }

    #[test]
    fn a_mistake_in_a_matrix_is_named_with_its_row_and_column() {
        let error = |text: &str| Network::parse("mine", text).unwrap_err().to_string();
        assert_eq!(
            error("0,1\nfast,0"),
            "row 2, column 1: `fast` is not a speed in Mbit/s of at least 0.001"
        );
        for wrong in [
            "0,-1\n1,0",
            "0,0\n1,0",
            "0,nan\n1,0",
            "0,inf\n1,0",
            "0,1e300\n1,0",
        ] {
            assert!(error(wrong).starts_with("row 1, column 2: "), "{wrong}");
        }
        assert!(error("0,1,2\n1,0,2").starts_with("row 1 has 3 columns, but there are 2 rows"));
        assert!(error("0").starts_with("it has 1 rows"));
        assert!(error("").starts_with("it has 0 rows"));
    }

    #[test]
    fn fewer_nodes_than_cities_are_the_first_ones_and_more_there_are_not() {
        assert_eq!(Network::cities(14), Some(Network::fourteen_cities()));
        assert_eq!(Network::cities(3).unwrap().bandwidths.len(), 6);
        assert_eq!(Network::cities(15), None);
    }
}
