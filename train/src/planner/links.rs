//! The measured bandwidths between the members of a plan, by their places.
//!
//! It only looks up; what a link that nobody measured is worth, each planner decides for itself.

use super::seats::Seats;
use lapwing_base::Bandwidths;

/// Bandwidths of exchanges, in kbit/s. An exchange is as fast as its slower direction.
#[derive(Debug)]
pub(super) struct Links {
    n: usize,
    speeds: Vec<u32>,
}

/// No direction was measured.
const UNKNOWN: u32 = u32::MAX;

impl Links {
    pub(super) fn new(seats: &Seats, bandwidths: &Bandwidths) -> Self {
        let n = seats.len();
        let places = seats.by_number();
        let mut speeds = vec![UNKNOWN; n * n];
        // Both lists are sorted, so that one walk along the members per sender finds all its receivers.
        let mut from = None;
        let mut walk = places.iter().peekable();
        for link in bandwidths.iter() {
            if from.is_none_or(|(node, _)| node != link.from) {
                from = Some((link.from, seats.place(link.from)));
                walk = places.iter().peekable();
            }
            let Some((_, Some(a))) = from else { continue };
            while walk.next_if(|(node, _)| *node < link.to).is_some() {}
            let Some(&&(_, b)) = walk.peek().filter(|(node, _)| *node == link.to) else {
                continue;
            };
            // See `Bandwidths::between`.
            for cell in [a * n + b, b * n + a] {
                speeds[cell] = speeds[cell].min(link.speed.kbit_s);
            }
        }
        Self { n, speeds }
    }

    /// How fast two members exchange, when either direction was measured.
    pub(super) fn between(&self, a: usize, b: usize) -> Option<u32> {
        Some(self.speeds[a * self.n + b]).filter(|&speed| speed != UNKNOWN)
    }

    /// The measured links of a member.
    pub(super) fn of(&self, a: usize) -> impl Iterator<Item = u32> + '_ {
        let row = &self.speeds[a * self.n..(a + 1) * self.n];
        row.iter().copied().filter(|&speed| speed != UNKNOWN)
    }
}
