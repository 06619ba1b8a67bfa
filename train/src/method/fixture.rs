//! A few nodes that train on plain numbers and exchange as a plan says, for the tests of the methods.

use super::{Collective, Done, Gossip, Method, MethodError, method};
use crate::draws::Draws;
use crate::jobfile::defaults;
use crate::mask::round_seed;
use lapwing_base::{Algorithm, JobId, JobSpec, NodeId, Pair, Round, RoundKind, RoundPlan, Values};

pub(super) fn spec(algorithm: Algorithm, values: Values) -> JobSpec {
    JobSpec {
        values,
        ..defaults(algorithm)
    }
}

/// The same without what only [`SlowMomentum`](super::slow_momentum::SlowMomentum) does.
pub(super) fn without_momentum(algorithm: Algorithm, values: Values) -> JobSpec {
    let mut spec = spec(algorithm, values);
    spec.tuning.slow_momentum_micro = 0;
    spec
}

pub(super) fn node(place: usize) -> NodeId {
    NodeId(place as u64 + 1)
}

fn place(node: NodeId) -> usize {
    node.0 as usize - 1
}

/// The edges of a ring, the smaller place first.
pub(crate) fn ring_edges(n: usize) -> Vec<[usize; 2]> {
    let mut edges: Vec<[usize; 2]> = (0..n).map(|a| [a.min((a + 1) % n), a.max((a + 1) % n)]).collect();
    edges.sort_unstable();
    edges
}

pub(crate) fn plan(round: u64, kind: RoundKind, edges: &[[usize; 2]], compression: u32) -> RoundPlan {
    RoundPlan {
        job: JobId(1),
        round: Round(round),
        kind,
        seed: round_seed(1, Round(round)),
        pairs: edges
            .iter()
            .filter_map(|&[a, b]| Pair::new(node(a), node(b)))
            .collect(),
        alone: Vec::new(),
        compression,
        local_steps: 1,
        lr_micro: 1,
        deadline_ms: 1,
    }
}

pub(super) fn ring_plan(round: u64, n: usize, compression: u32) -> RoundPlan {
    plan(round, RoundKind::Sparse, &ring_edges(n), compression)
}

/// Pairs of this round; the last of an odd number is alone.
pub(super) fn drawn_pairs(round: u64, n: usize) -> Vec<[usize; 2]> {
    let mut order: Vec<usize> = (0..n).collect();
    Draws::new("method test pairs", &[round]).shuffle(&mut order);
    order
        .chunks_exact(2)
        .map(|two| [two[0].min(two[1]), two[0].max(two[1])])
        .collect()
}

pub(super) fn pairs_plan(round: u64, n: usize, compression: u32) -> RoundPlan {
    plan(round, RoundKind::Sparse, &drawn_pairs(round, n), compression)
}

/// Edges on which a message is lost in this round: three in ten.
pub(super) fn lossy(round: u64, n: usize) -> Vec<[usize; 2]> {
    let mut draws = Draws::new("method test losses", &[round]);
    let edges = (0..n).flat_map(|b| (0..b).map(move |a| [a, b]));
    edges.filter(|_| draws.below(10) < 3).collect()
}

/// What each node's data pull it to, and by how much in a round: a quarter of the way, exactly in either precision.
fn pull(place: usize, dimension: usize, round: u64) -> f32 {
    let at = |numbers: &[u64]| Draws::new("method test data", numbers).symmetric();
    at(&[place as u64, dimension as u64]) + 0.25 * at(&[place as u64, dimension as u64, round])
}

/// One round of local steps.
pub(super) fn train(models: &mut [Vec<f32>], round: u64) {
    for (place, model) in models.iter_mut().enumerate() {
        for (dimension, x) in model.iter_mut().enumerate() {
            *x += 0.25 * (pull(place, dimension, round) - *x);
        }
    }
}

/// The same, for a reference.
pub(super) fn train_f64(models: &mut [Vec<f64>], round: u64) {
    for (place, model) in models.iter_mut().enumerate() {
        for (dimension, x) in model.iter_mut().enumerate() {
            *x += 0.25 * (f64::from(pull(place, dimension, round)) - *x);
        }
    }
}

pub(super) fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

pub(super) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

pub(super) fn assert_close(models: &[Vec<f32>], expected: &[Vec<f64>], tolerance: f64) {
    assert_eq!(models.len(), expected.len());
    for (place, (model, expected)) in models.iter().zip(expected).enumerate() {
        for (dimension, (x, expected)) in model.iter().zip(expected).enumerate() {
            let apart = (f64::from(*x) - expected).abs();
            assert!(
                apart <= tolerance,
                "node {place}, dimension {dimension}: {x}, not {expected}"
            );
        }
    }
}

/// The places of the largest values by magnitude.
pub(super) fn largest_f64(values: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
    order.truncate(count);
    order
}

impl<G: Gossip + ?Sized> Gossip for Box<G> {
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        (**self).offer(plan, partner, model, message)
    }

    fn message_bytes_max(&self, plan: &RoundPlan) -> usize {
        (**self).message_bytes_max(plan)
    }

    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError> {
        (**self).accept(plan, partner, message)
    }

    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError> {
        (**self).settle(plan, merged, model)
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        (**self).state()
    }

    fn restore(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        (**self).restore(state)
    }
}

/// What everybody tells everybody in a round: from, to, and the message.
pub(super) fn offers<G: Gossip>(
    nodes: &mut [G],
    models: &[Vec<f32>],
    plan: &RoundPlan,
) -> Vec<(NodeId, NodeId, Vec<u8>)> {
    let mut messages = Vec::new();
    for pair in &plan.pairs {
        let [a, b] = pair.nodes();
        for (from, to) in [(a, b), (b, a)] {
            let mut message = vec![1, 2, 3];
            let sender = &mut nodes[place(from)];
            sender
                .offer(plan, to, &models[place(from)], &mut message)
                .unwrap();
            assert!(message.len() <= sender.message_bytes_max(plan));
            messages.push((from, to, message));
        }
    }
    messages
}

/// Delivers messages; on the edges in `cut` only those from the smaller place. Returns the edges on which both accepted.
pub(super) fn deliver<G: Gossip>(
    nodes: &mut [G],
    plan: &RoundPlan,
    messages: &[(NodeId, NodeId, Vec<u8>)],
    cut: &[[usize; 2]],
) -> Vec<[usize; 2]> {
    let mut arrived = Vec::new();
    for (from, to, message) in messages {
        let (from, to) = (place(*from), place(*to));
        let is_lost = from > to && cut.contains(&[to, from]);
        if !is_lost && nodes[to].accept(plan, node(from), message).is_ok() {
            arrived.push([from, to]);
        }
    }
    let is_mutual = |&[a, b]: &[usize; 2]| a < b && arrived.contains(&[b, a]);
    arrived.iter().copied().filter(is_mutual).collect()
}

pub(super) fn settle<G: Gossip>(
    nodes: &mut [G],
    models: &mut [Vec<f32>],
    plan: &RoundPlan,
    merged: &[[usize; 2]],
) {
    for (place, (gossip, model)) in nodes.iter_mut().zip(models).enumerate() {
        let partners: Vec<NodeId> = merged
            .iter()
            .filter_map(|&[a, b]| match place {
                _ if place == a => Some(node(b)),
                _ if place == b => Some(node(a)),
                _ => None,
            })
            .collect();
        gossip.settle(plan, &partners, model).unwrap();
    }
}

/// A whole round's exchange, with what was lost. Returns the edges that merged.
pub(super) fn exchange<G: Gossip>(
    nodes: &mut [G],
    models: &mut [Vec<f32>],
    plan: &RoundPlan,
    cut: &[[usize; 2]],
) -> Vec<[usize; 2]> {
    let messages = offers(nodes, models, plan);
    let merged = deliver(nodes, plan, &messages, cut);
    settle(nodes, models, plan, &merged);
    merged
}

/// Nodes of one job, which start with the same model.
pub(super) struct World {
    spec: JobSpec,
    pub(super) nodes: Vec<Box<dyn Gossip>>,
    pub(super) models: Vec<Vec<f32>>,
}

impl World {
    pub(super) fn new(algorithm: Algorithm, values: Values, n: usize, dimensions: usize) -> Self {
        Self::of(spec(algorithm, values), n, dimensions)
    }

    pub(super) fn of(spec: JobSpec, n: usize, dimensions: usize) -> Self {
        let mut draws = Draws::new("method test start", &[]);
        let start: Vec<f32> = (0..dimensions).map(|_| draws.symmetric()).collect();
        Self {
            nodes: (0..n).map(|_| gossip(&spec, &start)).collect(),
            models: vec![start; n],
            spec,
        }
    }

    /// The model of all before they train.
    pub(super) fn start(&self) -> Vec<f64> {
        to_f64(&self.models[0])
    }

    pub(super) fn models_f64(&self) -> Vec<Vec<f64>> {
        self.models.iter().map(|model| to_f64(model)).collect()
    }

    pub(super) fn train(&mut self, round: u64) {
        train(&mut self.models, round);
    }

    pub(super) fn exchange(&mut self, plan: &RoundPlan, cut: &[[usize; 2]]) -> Vec<[usize; 2]> {
        exchange(&mut self.nodes, &mut self.models, plan, cut)
    }

    pub(super) fn mean(&self) -> Vec<f64> {
        let models = self.models_f64();
        (0..models[0].len())
            .map(|d| models.iter().map(|model| model[d]).sum::<f64>() / models.len() as f64)
            .collect()
    }

    /// Root of the mean squared distance from the mean.
    pub(super) fn disagreement(&self) -> f64 {
        let mean = self.mean();
        let models = self.models_f64();
        let squares = models
            .iter()
            .flat_map(|model| model.iter().zip(&mean))
            .map(|(x, mean)| (x - mean).powi(2));
        (squares.sum::<f64>() / (models.len() * mean.len()) as f64).sqrt()
    }

    /// What a node keeps of a neighbour is, under the same name, what the neighbour knows to be kept.
    pub(super) fn copies_agree(&self) {
        let mut mine = Vec::new();
        let mut theirs = Vec::new();
        for (at, gossip) in self.nodes.iter().enumerate() {
            for (key, vector) in gossip.state() {
                let words: Vec<&str> = key.split(' ').collect();
                let bits: Vec<u32> = vector.iter().map(|x| x.to_bits()).collect();
                match words[..] {
                    ["mine", other, name] => {
                        mine.push((place(NodeId(other.parse().unwrap())), at, name.to_owned(), bits))
                    }
                    ["theirs", other, name] => {
                        theirs.push((at, place(NodeId(other.parse().unwrap())), name.to_owned(), bits))
                    }
                    _ => (),
                }
            }
        }
        mine.sort_unstable();
        theirs.sort_unstable();
        assert!(!mine.is_empty() && mine == theirs, "copies differ");
    }

    /// Ends the process of a node and starts another from its checkpoint.
    pub(super) fn restart(&mut self, at: usize) {
        let state = self.nodes[at].state();
        let state: Vec<(String, Vec<f32>)> = state.into_iter().map(|(name, x)| (name, x.to_vec())).collect();
        let mut node = gossip(&self.spec, &self.models[at]);
        node.restore(state).unwrap();
        self.nodes[at] = node;
    }

    /// Starts a node anew with its model alone.
    pub(super) fn forget(&mut self, at: usize) {
        self.nodes[at] = gossip(&self.spec, &self.models[at]);
    }
}

fn gossip(spec: &JobSpec, model: &[f32]) -> Box<dyn Gossip> {
    match method(spec, model) {
        Method::Gossip(gossip) => gossip,
        other => panic!("{other:?} does not gossip"),
    }
}

/// Whoever is restarted between any two rounds ends as whoever was not.
pub(super) fn restart_goes_on(
    algorithm: Algorithm,
    plan: impl Fn(u64) -> RoundPlan,
    cut: impl Fn(u64, usize) -> Vec<[usize; 2]>,
) {
    let [mut steady, mut restarted] = [0, 1].map(|_| World::new(algorithm, Values::Int8, 5, 30));
    for round in 1..=15 {
        for world in [&mut steady, &mut restarted] {
            world.train(round);
            world.exchange(&plan(round), &cut(round, 5));
        }
        restarted.restart(round as usize % 5);
        restarted.restart((round as usize + 2) % 5);
    }
    assert_eq!(steady.models, restarted.models);
    let mut node = gossip(&restarted.spec, &restarted.models[0]);
    let state = steady.nodes[0].state();
    if !state.is_empty() {
        let damaged = state.iter().map(|(name, x)| (name.clone(), x[1..].to_vec()));
        assert!(node.restore(damaged.collect()).is_err());
        assert!(node.restore(Vec::new()).is_err());
    }
}

/// A node that comes back with its model alone misses a round, and then goes on with copies that agree.
pub(super) fn lost_copies_heal(algorithm: Algorithm) {
    let mut world = World::new(algorithm, Values::F32, 5, 30);
    for round in 1..=5 {
        world.train(round);
        world.exchange(&ring_plan(round, 5, 4), &[]);
    }
    world.forget(2);
    assert_eq!(world.exchange(&ring_plan(6, 5, 4), &[]).len(), 3);
    let plan = ring_plan(7, 5, 4);
    let messages = offers(&mut world.nodes, &world.models, &plan);
    let whole = messages
        .iter()
        .filter(|(.., message)| message.len() >= 4 * 30)
        .count();
    assert_eq!(whole, 4);
    let merged = deliver(&mut world.nodes, &plan, &messages, &[]);
    assert_eq!(merged.len(), 5);
    settle(&mut world.nodes, &mut world.models, &plan, &merged);
    world.copies_agree();
    let before = world.disagreement();
    for round in 8..400 {
        assert_eq!(world.exchange(&ring_plan(round, 5, 4), &[]).len(), 5);
    }
    assert!(
        world.disagreement() < 0.05 * before,
        "{} of {before}",
        world.disagreement()
    );
}

/// Messages that are damaged, too long, not numbers, too large, of nobody or of another round are refused, and a node
/// that was told them ends as one that was not.
pub(super) fn refuses_what_it_should(algorithm: Algorithm, plan: RoundPlan) {
    let head = match algorithm {
        Algorithm::ChocoSgd | Algorithm::DcdPsgd => 16,
        _ => 0,
    };
    let [mut clean, mut told] = [0, 1].map(|_| World::new(algorithm, Values::F32, 5, 30));
    for world in [&mut clean, &mut told] {
        world.train(1);
    }
    let messages = offers(&mut told.nodes, &told.models, &plan);
    let (from, to, message) = &messages[0];
    let receiver = &mut told.nodes[place(*to)];
    let mut bad = vec![
        Vec::new(),
        message[1..].to_vec(),
        message[..message.len() - 1].to_vec(),
        [message.as_slice(), &[0]].concat(),
        message.repeat(100),
    ];
    for poison in [f32::NAN, f32::INFINITY, 3e38] {
        let mut poisoned = message.clone();
        poisoned[head..head + 4].copy_from_slice(&poison.to_le_bytes());
        bad.push(poisoned);
    }
    for bad in bad {
        assert!(receiver.accept(&plan, *from, &bad).is_err(), "{bad:?}");
    }
    assert!(receiver.accept(&plan, NodeId(99), message).is_err());
    let later = RoundPlan {
        round: plan.round.next(),
        ..plan.clone()
    };
    assert!(receiver.accept(&later, *from, message).is_err());
    let before = told.models[place(*to)].clone();
    let refused = receiver.settle(&plan, &[*from], &mut told.models[place(*to)]);
    assert!(
        matches!(refused, Err(MethodError::NotAccepted { .. })),
        "{refused:?}"
    );
    assert_eq!(told.models[place(*to)], before);
    let merged = deliver(&mut told.nodes, &plan, &messages, &[]);
    assert_eq!(merged.len(), plan.pairs.len());
    settle(&mut told.nodes, &mut told.models, &plan, &merged);
    clean.exchange(&plan, &[]);
    assert_eq!(clean.models, told.models);
}

/// What a node learns between its offer and the end of the round is added to what the exchange makes of its model.
pub(super) fn training_meanwhile_is_kept(algorithm: Algorithm, plan: RoundPlan) {
    let [mut still, mut busy] = [0, 1].map(|_| World::new(algorithm, Values::F32, 5, 30));
    still.train(1);
    busy.train(1);
    still.exchange(&plan, &[]);
    let messages = offers(&mut busy.nodes, &busy.models, &plan);
    let merged = deliver(&mut busy.nodes, &plan, &messages, &[]);
    let before = busy.models_f64();
    busy.train(2);
    let learnt: Vec<Vec<f64>> = (busy.models_f64().iter().zip(&before))
        .map(|(after, before)| after.iter().zip(before).map(|(a, b)| a - b).collect())
        .collect();
    settle(&mut busy.nodes, &mut busy.models, &plan, &merged);
    // Whoever is alone offered nothing: to it, all is one training.
    for pair in &plan.pairs {
        for at in pair.nodes().map(place) {
            let expected = to_f64(&still.models[at])
                .iter()
                .zip(&learnt[at])
                .map(|(a, b)| a + b)
                .collect();
            assert_close(&[busy.models[at].clone()], &[expected], 1e-5);
        }
    }
}

/// Nodes of one job that share means.
pub(super) struct Collectives {
    pub(super) nodes: Vec<Box<dyn Collective>>,
    pub(super) models: Vec<Vec<f32>>,
    spec: JobSpec,
}

impl Collectives {
    pub(super) fn new(algorithm: Algorithm, n: usize, dimensions: usize) -> Self {
        let spec = spec(algorithm, Values::F32);
        let mut draws = Draws::new("method test start", &[]);
        let start: Vec<f32> = (0..dimensions).map(|_| draws.symmetric()).collect();
        Self {
            nodes: (0..n).map(|_| collective(&spec, &start)).collect(),
            models: vec![start; n],
            spec,
        }
    }

    pub(super) fn start(&self) -> Vec<f64> {
        to_f64(&self.models[0])
    }

    pub(super) fn train(&mut self, round: u64) {
        train(&mut self.models, round);
    }

    /// The mean of what these nodes contribute, each with as many samples as its place and one.
    pub(super) fn mean(&mut self, plan: &RoundPlan, asked: &[usize]) -> Vec<f32> {
        let (mut sum, mut weights) = (Vec::new(), 0.0);
        for &at in asked {
            let done = Done {
                model: &self.models[at],
                gradient: &[],
                samples: at as u64 + 1,
            };
            let mut vector = vec![9.0; 3];
            let weight = self.nodes[at].contribute(plan, done, &mut vector).unwrap() as f64;
            sum.resize(vector.len(), 0.0);
            sum.iter_mut()
                .zip(&vector)
                .for_each(|(sum, x)| *sum += weight * f64::from(*x));
            weights += weight;
        }
        sum.iter().map(|sum| (sum / weights) as f32).collect()
    }

    pub(super) fn restart(&mut self, at: usize) {
        let state = self.nodes[at].state();
        let state: Vec<(String, Vec<f32>)> = state.into_iter().map(|(name, x)| (name, x.to_vec())).collect();
        let mut node = collective(&self.spec, &self.models[at]);
        node.restore(state).unwrap();
        self.nodes[at] = node;
    }
}

fn collective(spec: &JobSpec, model: &[f32]) -> Box<dyn Collective> {
    match method(spec, model) {
        Method::Collective(collective) => collective,
        other => panic!("{other:?} takes no mean"),
    }
}

/// A mean of another length, or with something in it that is not a number, changes neither model nor state.
pub(super) fn refuses_bad_means(algorithm: Algorithm, plan: &RoundPlan) {
    let mut world = Collectives::new(algorithm, 2, 6);
    let models = world.models.clone();
    for (node, model) in world.nodes.iter_mut().zip(&models) {
        node.begin(plan, model);
    }
    world.train(1);
    let mean = world.mean(plan, &[0, 1]);
    let (before, state) = (world.models[0].clone(), format!("{:?}", world.nodes[0].state()));
    let mut poisoned = mean.clone();
    poisoned[0] = f32::NAN;
    for bad in [Vec::new(), [mean.as_slice(), &[0.0]].concat(), poisoned] {
        assert!(world.nodes[0].settle(plan, &bad, &mut world.models[0]).is_err());
        assert_eq!(world.models[0], before);
        assert_eq!(format!("{:?}", world.nodes[0].state()), state);
    }
    assert!(
        world.nodes[0]
            .settle(plan, &mean, &mut world.models[0][..5])
            .is_err()
    );
    assert!(world.nodes[0].settle(plan, &mean, &mut world.models[0]).is_ok());
}
