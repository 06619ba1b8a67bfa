//! What two neighbours know of each other's models: copies that follow by compressed changes.
//!
//! A message may be lost in one round and not in another, on one edge and not on another. So each edge has copies of its
//! own, and they move only when a round is settled, by what both ends know to have arrived: then what a node keeps of its
//! neighbour is, bit by bit, what the neighbour knows to be kept of it. Every message names the copy that it changes and
//! the one that its sender has of the receiver, so that an end that lost its copies (or is new) is told the whole model
//! in the next round instead of a change of something else.

use super::MethodError;
use super::sparse::{Sparse, kept, sparse_len};
use super::values::{check_length, hear, tell, told_len};
use crate::layout::model_hash;
use lapwing_base::{JobSpec, NodeId, Round, RoundPlan, Values};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The copies on a node's edges.
///
/// Kept over a restart: one copy of each neighbour, and one of the node itself for all edges on which nothing failed
/// (three vectors on a ring); one more for every edge on which something did.
#[derive(Debug)]
pub(super) struct Copies {
    values: Values,
    parameters: usize,
    /// What all nodes of the job start from, until the first round with neighbours is settled: edges of that round
    /// begin with it, and later ones with a whole model.
    start: Option<Held>,
    edges: BTreeMap<NodeId, Edge>,
    open: Option<Open>,
}

/// A vector that two nodes have, and a number that they have it by.
#[derive(Clone, Debug)]
struct Held {
    /// Never zero, which stands for none.
    name: u64,
    vector: Arc<Vec<f32>>,
}

impl Held {
    /// What becomes of a copy, or of none, by what was told in a round.
    fn after(previous: Option<&Self>, round: Round, vector: Arc<Vec<f32>>) -> Self {
        let mut material = [0; 16];
        material[..8].copy_from_slice(&previous.map_or(0, |copy| copy.name).to_le_bytes());
        material[8..].copy_from_slice(&round.0.to_le_bytes());
        let name = name_of(&blake3::derive_key("lapwing 2026-11 copy", &material));
        Self { name, vector }
    }
}

fn name_of(hash: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) | 1
}

#[derive(Debug, Default)]
struct Edge {
    /// What the neighbour has of this node; `None` until it was told a whole model.
    mine: Option<Held>,
    /// What this node has of the neighbour.
    theirs: Option<Held>,
    /// The neighbour said that it has another copy, or none.
    is_lost: bool,
}

#[derive(Debug)]
struct Open {
    round: Round,
    drafts: Vec<Draft>,
    exchanges: BTreeMap<NodeId, Exchange>,
}

/// What is told to all neighbours that have the same copy of this node.
#[derive(Debug)]
struct Draft {
    base: Option<Arc<Vec<f32>>>,
    body: Vec<u8>,
    told: Arc<Told>,
}

#[derive(Debug)]
struct Exchange {
    told: Arc<Told>,
    /// As a neighbour would have to tell it, if it is a change: how many values, and how large.
    like: Arc<Told>,
    heard: Option<Told>,
}

/// A copy of this node, or none, and what became of it.
type Moved = (Option<Arc<Vec<f32>>>, Arc<Vec<f32>>);

/// What a message makes of a copy.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// It takes its place.
    Whole(Vec<f32>),
    /// It is added to it.
    Change(Sparse),
}

impl Told {
    /// What becomes of a copy, or of none.
    pub(super) fn apply(&self, base: Option<&[f32]>) -> Vec<f32> {
        match self {
            Self::Whole(vector) => vector.clone(),
            Self::Change(change) => {
                let mut vector = base.unwrap_or_default().to_vec();
                change.add_to(&mut vector);
                vector
            }
        }
    }
}

/// The copies that a message is about: two names, little endian.
const HEAD_BYTES: usize = 16;

impl Copies {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(super) fn new(spec: &JobSpec, model: &Arc<Vec<f32>>) -> Self {
        Self {
            values: spec.values,
            parameters: model.len(),
            start: Some(Held {
                name: name_of(&model_hash(model)),
                vector: Arc::clone(model),
            }),
            edges: BTreeMap::new(),
            open: None,
        }
    }

    pub(super) fn parameters(&self) -> usize {
        self.parameters
    }

    /// Whether something was offered in this round.
    pub(super) fn is_open(&self, round: Round) -> bool {
        self.open.as_ref().is_some_and(|open| open.round == round)
    }

    /// What a vector is told as to those who have `base` of it, or nothing. The same again for the same `base` in a
    /// round.
    pub(super) fn draft(
        &mut self,
        plan: &RoundPlan,
        base: Option<&Arc<Vec<f32>>>,
        vector: &[f32],
    ) -> Result<Arc<Told>, MethodError> {
        let place = self.draft_place(plan, base, vector)?;
        let open = self.open.as_ref();
        let draft = open.and_then(|open| open.drafts.get(place));
        // It was made just now.
        draft
            .map(|draft| Arc::clone(&draft.told))
            .ok_or(MethodError::Malformed {
                why: "nothing was drafted",
            })
    }

    fn draft_place(
        &mut self,
        plan: &RoundPlan,
        base: Option<&Arc<Vec<f32>>>,
        vector: &[f32],
    ) -> Result<usize, MethodError> {
        check_length(vector, self.parameters)?;
        if !self.is_open(plan.round) {
            self.open = Some(Open {
                round: plan.round,
                drafts: Vec::new(),
                exchanges: BTreeMap::new(),
            });
        }
        let is_of_base = |draft: &Draft| match (&draft.base, base) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let drafts = self.open.as_mut().map(|open| &mut open.drafts);
        let drafts = drafts.ok_or(MethodError::Malformed {
            why: "no round is open",
        })?;
        if let Some(place) = drafts.iter().position(is_of_base) {
            return Ok(place);
        }
        let mut body = Vec::new();
        let told = match base {
            Some(base) => {
                let change: Vec<f32> = vector.iter().zip(base.iter()).map(|(x, base)| x - base).collect();
                let count = kept(self.parameters, plan.compression);
                Told::Change(Sparse::largest(&change, count, self.values, &mut body)?)
            }
            None => {
                let mut decoded = Vec::new();
                tell(vector, self.values, &mut body, &mut decoded)?;
                Told::Whole(decoded)
            }
        };
        drafts.push(Draft {
            base: base.cloned(),
            body,
            told: Arc::new(told),
        });
        Ok(drafts.len() - 1)
    }

    /// Writes what `partner` is told of `vector`: a change of what it has, or all of it.
    pub(super) fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        vector: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        let start = &self.start;
        let edge = self.edges.entry(partner).or_insert_with(|| Edge {
            mine: start.clone(),
            theirs: start.clone(),
            is_lost: false,
        });
        let mine = edge.mine.clone().filter(|_| !edge.is_lost);
        let head = [&mine, &edge.theirs].map(|copy| copy.as_ref().map_or(0, |copy| copy.name));
        let base = mine.as_ref().map(|copy| &copy.vector);
        let place = self.draft_place(plan, base, vector)?;
        // What a neighbour's change is measured by: there is a change among the drafts, unless all are told everything.
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let told = Arc::clone(&open.drafts[place].told);
        message.clear();
        message.extend(head.iter().flat_map(|name| name.to_le_bytes()));
        message.extend_from_slice(&open.drafts[place].body);
        let like = match &*told {
            Told::Change(_) => Arc::clone(&told),
            Told::Whole(vector) => {
                let count = kept(self.parameters, plan.compression);
                Arc::new(Told::Change(Sparse::largest(
                    vector,
                    count,
                    self.values,
                    &mut Vec::new(),
                )?))
            }
        };
        let heard = None;
        open.exchanges.insert(partner, Exchange { told, like, heard });
        Ok(())
    }

    /// The most bytes of a message in a round.
    pub(super) fn message_bytes_max(&self, plan: &RoundPlan) -> usize {
        let count = kept(self.parameters, plan.compression);
        let change = sparse_len(count, self.parameters, self.values);
        HEAD_BYTES.saturating_add(change.max(told_len(self.parameters, self.values)))
    }

    /// Takes what a partner told, if it is of a copy that this node has.
    pub(super) fn accept(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &[u8],
    ) -> Result<(), MethodError> {
        let round = plan.round;
        let open = self.open.as_mut().filter(|open| open.round == round);
        let exchange = open.and_then(|open| open.exchanges.get_mut(&partner));
        let edge = self.edges.get_mut(&partner);
        let (Some(exchange), Some(edge)) = (exchange, edge) else {
            return Err(MethodError::NotOffered { round, partner });
        };
        let malformed = |why| MethodError::Malformed { why };
        let (head, body) = message
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or_else(|| malformed("it has no head"))?;
        let (names, _) = head.as_chunks::<8>();
        let [changed, held] = [names[0], names[1]].map(u64::from_le_bytes);
        let name = |copy: &Option<Held>| copy.as_ref().map_or(0, |copy| copy.name);
        let told = if changed == 0 {
            Told::Whole(hear(body, self.values, model)?)
        } else {
            let Told::Change(like) = &*exchange.like else {
                return Err(MethodError::OutOfStep { partner });
            };
            Told::Change(Sparse::read(body, self.values, like, self.parameters)?)
        };
        // Only now: a message that cannot be read says nothing about its sender.
        if held != name(&edge.mine) {
            edge.is_lost = true;
        }
        if changed != 0 && changed != name(&edge.theirs) {
            return Err(MethodError::OutOfStep { partner });
        }
        exchange.heard = Some(told);
        Ok(())
    }

    /// Ends the round: moves the copies of both ends on the edges to `merged`, and forgets those of former neighbours.
    ///
    /// # Errors
    ///
    /// When one of them was not accepted; then nothing is changed.
    pub(super) fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId]) -> Result<(), MethodError> {
        let round = plan.round;
        let open = self.open.as_ref().filter(|open| open.round == round);
        for &partner in merged {
            let heard = open.and_then(|open| open.exchanges.get(&partner)?.heard.as_ref());
            if heard.is_none() || !self.edges.contains_key(&partner) {
                return Err(MethodError::NotAccepted { round, partner });
            }
        }
        let Some(open) = self.open.take().filter(|open| open.round == round) else {
            return Ok(());
        };
        self.start = None;
        self.edges
            .retain(|partner, _| open.exchanges.contains_key(partner));
        // Edges with one copy of this node in common still have one afterwards.
        let mut moved: Vec<Moved> = Vec::new();
        for (partner, exchange) in open.exchanges {
            let edge = self.edges.get_mut(&partner).filter(|_| merged.contains(&partner));
            let (Some(edge), Some(heard)) = (edge, exchange.heard) else {
                continue;
            };
            let mine = edge
                .mine
                .take()
                .filter(|_| matches!(*exchange.told, Told::Change(_)));
            let base = mine.as_ref().map(|copy| Arc::clone(&copy.vector));
            let known = moved.iter().find(|(known, _)| match (known, &base) {
                (Some(known), Some(base)) => Arc::ptr_eq(known, base),
                (known, base) => known.is_none() && base.is_none(),
            });
            let vector = known.map(|(_, vector)| Arc::clone(vector)).unwrap_or_else(|| {
                let vector = Arc::new(exchange.told.apply(base.as_ref().map(|base| base.as_slice())));
                moved.push((base, Arc::clone(&vector)));
                vector
            });
            edge.mine = Some(Held::after(mine.as_ref(), round, vector));
            edge.is_lost = false;
            let theirs = edge.theirs.take().filter(|_| matches!(heard, Told::Change(_)));
            let vector = heard.apply(theirs.as_ref().map(|copy| copy.vector.as_slice()));
            edge.theirs = Some(Held::after(theirs.as_ref(), round, Arc::new(vector)));
        }
        Ok(())
    }

    /// What the neighbour has of this node, and this node of the neighbour.
    pub(super) fn edge(&self, partner: NodeId) -> Option<(&[f32], &[f32])> {
        let edge = self.edges.get(&partner)?;
        Some((
            edge.mine.as_ref()?.vector.as_slice(),
            edge.theirs.as_ref()?.vector.as_slice(),
        ))
    }

    /// Every neighbour whose copies are here.
    pub(super) fn neighbours(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.edges.keys().copied()
    }

    /// Keeps a vector once that is, bit by bit, also the copy of this node on some edges.
    pub(super) fn share(&mut self, vector: &Arc<Vec<f32>>) {
        for copy in self.edges.values_mut().filter_map(|edge| edge.mine.as_mut()) {
            if !Arc::ptr_eq(&copy.vector, vector) && is_equal(&copy.vector, vector) {
                copy.vector = Arc::clone(vector);
            }
        }
    }

    /// Vectors that are kept now, the ones in common counted once.
    #[cfg(test)]
    pub(super) fn vectors(&self) -> usize {
        let copies = self.edges.values().flat_map(|edge| [&edge.mine, &edge.theirs]);
        let copies = copies.chain([&self.start]).flatten();
        let mut vectors: Vec<_> = copies.map(|copy| Arc::as_ptr(&copy.vector)).collect();
        vectors.sort_unstable();
        vectors.dedup();
        vectors.len()
    }

    /// What each neighbour has of this node.
    #[cfg(test)]
    pub(super) fn of_this_node(&self) -> impl Iterator<Item = &Arc<Vec<f32>>> {
        self.edges
            .values()
            .filter_map(|edge| Some(&edge.mine.as_ref()?.vector))
    }

    /// All copies, each under whose it is, the neighbour that has the other end, and its name.
    pub(super) fn state(&self) -> Vec<(String, &[f32])> {
        let start = self.start.as_ref().map(|copy| ("start 0".to_owned(), copy));
        let edges = self.edges.iter().flat_map(|(partner, edge)| {
            let mine = edge
                .mine
                .as_ref()
                .map(|copy| (format!("mine {}", partner.0), copy));
            let theirs = edge
                .theirs
                .as_ref()
                .map(|copy| (format!("theirs {}", partner.0), copy));
            mine.into_iter().chain(theirs)
        });
        start
            .into_iter()
            .chain(edges)
            .map(|(about, copy)| (format!("{about} {:016x}", copy.name), copy.vector.as_slice()))
            .collect()
    }

    /// Goes on from what [`state`](Self::state) gave. Vectors of other names are not touched.
    pub(super) fn restore(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let no_state = MethodError::NoState { name: "copies" };
        let (mut start, mut edges) = (None, BTreeMap::<NodeId, Edge>::new());
        let mut known: Vec<Arc<Vec<f32>>> = Vec::new();
        for (key, vector) in state {
            check_length(&vector, self.parameters)?;
            let mut words = key.split(' ');
            let (what, node) = (words.next(), words.next().and_then(|word| word.parse().ok()));
            let name = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
            let (Some(what), Some(node), Some(name)) = (what, node, name) else {
                return Err(no_state);
            };
            // A copy that edges had in common is one again.
            let same = known.iter().find(|known| is_equal(known, &vector)).cloned();
            let vector = same.unwrap_or_else(|| Arc::new(vector));
            known.push(Arc::clone(&vector));
            let copy = Some(Held { name, vector });
            match what {
                "start" => start = copy,
                "mine" => edges.entry(NodeId(node)).or_default().mine = copy,
                "theirs" => edges.entry(NodeId(node)).or_default().theirs = copy,
                _ => return Err(no_state),
            }
        }
        if start.is_none() && edges.is_empty() {
            return Err(no_state);
        }
        (self.start, self.edges, self.open) = (start, edges, None);
        Ok(())
    }
}

/// Bit by bit.
fn is_equal(one: &[f32], other: &[f32]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits())
}
