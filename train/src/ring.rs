//! The mean of a vector over a ring of nodes: every node passes pieces on to the next one until all have all of it.
//!
//! The ring all-reduce of Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations"
//! (J. Parallel Distrib. Comput. 69, 2009): a piece of the sum for each node goes around once, growing, and once more,
//! finished. Each node sends and receives twice the vector, less two pieces, however many they are.
//!
//! Pure: sends nothing. Nodes and the simulation drive the same [`Ring`].
//!
//! What travels is encoded as the job says, so a growing piece is rounded at every node that it passes. A finished one is
//! encoded once and passed on as it is: all nodes get the same mean, bit by bit, also the one that has finished it.

use crate::quantise::{self, DecodeError, encoded_len};
use lapwing_base::{NodeId, RoundPlan, Values};
use std::ops::Range;

/// The nodes of a plan's ring in the order in which pieces are passed on, beginning with the smallest number. Of a
/// plan whose pairs are no ring through everybody, `None`.
pub(crate) fn order(plan: &RoundPlan) -> Option<Vec<NodeId>> {
    let first = plan.participants().min()?;
    let mut order = vec![first];
    let mut at = first;
    loop {
        let before = order
            .len()
            .checked_sub(2)
            .and_then(|place| order.get(place))
            .copied();
        let mut neighbours = plan.partners_of(at).filter(|node| Some(*node) != before);
        let next = match before {
            // Either way round would do; all have to go the same.
            None => neighbours.min(),
            Some(_) => neighbours.next(),
        };
        match next {
            Some(next) if next != first => {
                if order.len() > plan.pairs.len() {
                    return None;
                }
                order.push(next);
                at = next;
            }
            _ => break,
        }
    }
    let mut sorted = order.clone();
    sorted.sort_unstable();
    let mut everybody: Vec<NodeId> = plan.participants().collect();
    everybody.sort_unstable();
    everybody.dedup();
    let edges = match order.len() {
        1 => 0,
        2 => 1,
        nodes => nodes,
    };
    (sorted == everybody && plan.pairs.len() == edges).then_some(order)
}

/// One node's part of one mean.
///
/// Until [`is_done`](Self::is_done): send what [`outgoing`](Self::outgoing) writes to the next node, and feed what comes
/// from the one before to [`incoming`](Self::incoming), which has the length that [`incoming_bytes`](Self::incoming_bytes)
/// says.
#[derive(Debug)]
pub(crate) struct Ring {
    place: usize,
    nodes: usize,
    values: Values,
    /// This node's vector, times its weight; piece by piece the sum of those before it, then the mean.
    vector: Vec<f32>,
    weight: u64,
    /// Weights of all whose vectors are in the piece that goes out next.
    weights: u64,
    /// A finished piece on its way, as it came.
    passing: Vec<u8>,
    step: usize,
}

/// Why a piece was not taken. Nothing comes of the mean then.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// It is not as long as the piece that is due.
    #[error("a piece of {given} bytes came where one of {expected} is due")]
    Length {
        /// Its bytes.
        given: usize,
        /// Those that are due.
        expected: usize,
    },
    /// It has no weight, or more than can be.
    #[error("a piece says that it weighs {weight}")]
    Weight {
        /// Its word.
        weight: u64,
    },
    /// Its values cannot be read.
    #[error("the values cannot be decoded")]
    Decode(#[from] DecodeError),
}

/// Before the values of a growing piece: the weights of all that are in it, little endian.
const WEIGHT_BYTES: usize = size_of::<u64>();

/// More than any number of samples; a sum of thousands of them does not overflow.
const WEIGHT_MAX: u64 = 1 << 48;

impl Ring {
    /// For the node at `place`, from 0, of `nodes`, that adds `vector` with this weight.
    pub(crate) fn new(mut vector: Vec<f32>, weight: u64, place: usize, nodes: usize, values: Values) -> Self {
        let weight = weight.min(WEIGHT_MAX);
        if weight != 1 {
            vector.iter_mut().for_each(|x| *x *= weight as f32);
        }
        let mut ring = Self {
            place,
            nodes,
            values,
            vector,
            weight,
            weights: weight,
            passing: Vec::new(),
            step: 0,
        };
        if nodes < 2 {
            ring.scale(0..ring.vector.len(), weight);
        }
        ring
    }

    /// Whether the mean is here.
    pub(crate) fn is_done(&self) -> bool {
        self.step >= self.steps()
    }

    /// The mean of all, once [`is_done`](Self::is_done).
    pub(crate) fn into_mean(self) -> Vec<f32> {
        self.vector
    }

    /// Bytes that come in the step at hand.
    pub(crate) fn incoming_bytes(&self) -> usize {
        let piece = self.piece(self.place + self.nodes - 1);
        encoded_len(piece.len(), self.values) + if self.grows() { WEIGHT_BYTES } else { 0 }
    }

    /// Writes what the next node gets in the step at hand into `message`, whatever was in it.
    pub(crate) fn outgoing(&self, message: &mut Vec<u8>) {
        if self.grows() {
            let piece = self.piece(self.place);
            quantise::encode(&self.vector[piece], self.values, message);
            message.extend_from_slice(&self.weights.to_le_bytes());
        } else {
            message.clear();
            message.extend_from_slice(&self.passing);
        }
    }

    /// Takes what came from the node before, which ends the step.
    ///
    /// # Errors
    /// When it is not the piece that is due.
    pub(crate) fn incoming(&mut self, message: &[u8]) -> Result<(), RingError> {
        let expected = self.incoming_bytes();
        if message.len() != expected {
            return Err(RingError::Length {
                given: message.len(),
                expected,
            });
        }
        let piece = self.piece(self.place + self.nodes - 1);
        let mut came = Vec::new();
        if self.grows() {
            let (values, weights) = message.split_at(expected - WEIGHT_BYTES);
            let weights = weights.try_into().map_or(0, u64::from_le_bytes);
            if weights > WEIGHT_MAX * self.nodes as u64 {
                return Err(RingError::Weight { weight: weights });
            }
            quantise::decode(values, self.values, piece.len(), &mut came)?;
            self.vector[piece.clone()]
                .iter_mut()
                .zip(&came)
                .for_each(|(own, came)| *own += came);
            self.weights = weights + self.weight;
            if self.step + 2 == self.nodes {
                self.finish(piece)?;
            }
        } else {
            quantise::decode(message, self.values, piece.len(), &mut came)?;
            self.vector[piece].copy_from_slice(&came);
            self.passing.clear();
            self.passing.extend_from_slice(message);
        }
        self.step += 1;
        Ok(())
    }

    /// Makes the mean of the piece that has been everywhere, as all others will decode it.
    fn finish(&mut self, piece: Range<usize>) -> Result<(), RingError> {
        if self.weights == 0 {
            return Err(RingError::Weight { weight: 0 });
        }
        self.scale(piece.clone(), self.weights);
        quantise::encode(&self.vector[piece.clone()], self.values, &mut self.passing);
        let mut mean = Vec::new();
        quantise::decode(&self.passing, self.values, piece.len(), &mut mean)?;
        self.vector[piece].copy_from_slice(&mean);
        Ok(())
    }

    fn scale(&mut self, piece: Range<usize>, weights: u64) {
        if weights > 1 {
            let weights = weights as f32;
            self.vector[piece].iter_mut().for_each(|x| *x /= weights);
        }
    }

    fn steps(&self) -> usize {
        2 * self.nodes.saturating_sub(1)
    }

    /// Whether pieces still grow in the step at hand.
    fn grows(&self) -> bool {
        self.step + 1 < self.nodes
    }

    /// What the node at this place sends in the step at hand: in the first its own piece, and then what it has just
    /// received.
    fn piece(&self, sender: usize) -> Range<usize> {
        let turns = self.nodes.max(1);
        // A finished piece starts from the node before the one that it is named after.
        let number = if self.grows() {
            sender + turns * 2 - self.step
        } else {
            sender + turns * 2 + 1 - (self.step + 1 - self.nodes)
        } % turns;
        let bound = |number: usize| self.vector.len() * number / turns;
        bound(number)..bound(number + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::fixture::{plan, ring_edges};
    use lapwing_base::RoundKind;
    use proptest::prelude::*;

    /// Every node's mean, and the bytes that each sent.
    fn around(vectors: &[Vec<f32>], weights: &[u64], values: Values) -> (Vec<Vec<f32>>, Vec<usize>) {
        let nodes = vectors.len();
        let given = vectors.iter().zip(weights).enumerate();
        let mut rings: Vec<Ring> = given
            .map(|(place, (vector, weight))| Ring::new(vector.clone(), *weight, place, nodes, values))
            .collect();
        let mut sent = vec![0; nodes];
        while !rings[0].is_done() {
            let messages: Vec<Vec<u8>> = rings
                .iter()
                .map(|ring| {
                    let mut message = vec![7];
                    ring.outgoing(&mut message);
                    message
                })
                .collect();
            for (place, message) in messages.iter().enumerate() {
                sent[place] += message.len();
                let next = &mut rings[(place + 1) % nodes];
                assert_eq!(next.incoming_bytes(), message.len());
                next.incoming(message).unwrap();
            }
        }
        assert!(rings.iter().all(Ring::is_done));
        (rings.into_iter().map(Ring::into_mean).collect(), sent)
    }

    fn weighted_mean(vectors: &[Vec<f32>], weights: &[u64], at: usize) -> f64 {
        let all: u64 = weights.iter().sum();
        let terms = vectors.iter().zip(weights);
        terms
            .map(|(vector, weight)| f64::from(vector[at]) * *weight as f64)
            .sum::<f64>()
            / all as f64
    }

    proptest! {
        #[test]
        fn all_get_the_same_mean_whatever_the_lengths_and_weights(
            (vectors, weights) in (1_usize..9, 0_usize..40).prop_flat_map(|(nodes, length)| (
                prop::collection::vec(prop::collection::vec(-10.0_f32..10.0, length), nodes),
                prop::collection::vec(1_u64..1000, nodes),
            )),
        ) {
            let (means, _) = around(&vectors, &weights, Values::F32);
            prop_assert!(means.windows(2).all(|two| two[0] == two[1]));
            for (at, mean) in means[0].iter().enumerate() {
                let expected = weighted_mean(&vectors, &weights, at);
                prop_assert!((f64::from(*mean) - expected).abs() < 1e-4, "{mean} {expected}");
            }
        }
    }

    #[test]
    fn values_of_a_byte_cost_a_little_and_all_still_get_the_same() {
        let vectors: Vec<Vec<f32>> = (0..7_u32)
            .map(|node| {
                (0..5000_u32)
                    .map(|at| ((node * 31 + at * 7) % 101) as f32 / 50.0 - 1.0)
                    .collect()
            })
            .collect();
        for (values, tolerance) in [(Values::F16, 2e-3), (Values::Int8, 5e-2)] {
            let (means, sent) = around(&vectors, &[1; 7], values);
            assert!(means.windows(2).all(|two| two[0] == two[1]));
            for (at, mean) in means[0].iter().enumerate() {
                let expected = weighted_mean(&vectors, &[1; 7], at);
                assert!(
                    (f64::from(*mean) - expected).abs() < tolerance,
                    "{mean} {expected}"
                );
            }
            let whole = encoded_len(5000, values);
            assert!(
                sent.iter().all(|bytes| *bytes < whole * 12 / 7 + 1500),
                "{sent:?}"
            );
        }
    }

    #[test]
    fn a_piece_that_is_not_the_one_that_is_due_is_refused() {
        let fresh = || Ring::new(vec![1.0; 10], 1, 0, 3, Values::F32);
        assert!(matches!(
            fresh().incoming(&[0; 5]),
            Err(RingError::Length { given: 5, .. })
        ));
        let mut ring = fresh();
        let mut message = vec![0; ring.incoming_bytes()];
        message[0..4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(matches!(ring.incoming(&message), Err(RingError::Decode(_))));
        let end = message.len() - WEIGHT_BYTES;
        message[end..].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(
            fresh().incoming(&message),
            Err(RingError::Weight { .. })
        ));
    }

    #[test]
    fn the_order_is_the_ring_from_the_smallest_number_on_and_the_same_for_all() {
        let order_of = |edges: &[[usize; 2]]| order(&plan(1, RoundKind::Reduced, edges, 1));
        let nodes = |places: &[u64]| Some(places.iter().map(|place| NodeId(place + 1)).collect::<Vec<_>>());
        assert_eq!(order_of(&ring_edges(4)), nodes(&[0, 1, 2, 3]));
        assert_eq!(order_of(&[[0, 2], [2, 1], [1, 3], [3, 0]]), nodes(&[0, 2, 1, 3]));
        assert_eq!(order_of(&[[0, 1]]), nodes(&[0, 1]));
        assert_eq!(order_of(&[[0, 1], [1, 2]]), None, "a chain");
        assert_eq!(
            order_of(&[[0, 1], [1, 2], [2, 0], [3, 4], [4, 5], [5, 3]]),
            None,
            "two rings"
        );
        assert_eq!(order_of(&[[0, 1], [0, 2], [0, 3]]), None, "a star");
    }

    #[test]
    fn one_node_has_the_mean_from_the_start() {
        let ring = Ring::new(vec![2.0, 4.0], 5, 0, 1, Values::Int8);
        assert!(ring.is_done());
        assert_eq!(ring.into_mean(), [2.0, 4.0]);
    }
}
