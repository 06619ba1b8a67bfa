//! Runs a job on virtual nodes, round by round: plans it, has the nodes do their part, and says how long that took.
//!
//! It reads no clock and opens no file. What a plan is, who merges and what a node computes is decided by the cores
//! that nodes in a cluster use; here is only what stands between them there: the network, and who is alive.

use super::clock;
use super::crew::Crew;
use super::event::Event;
use super::node::{LearnError, Node};
use super::run::{Ended, Point, Progress, Run};
use super::setting::{Every, Setting, epochs_of_rounds};
use crate::backend::{BackendError, backend};
use crate::data::{Dataset, PartitionError};
use crate::method::{MethodError, contribution};
use crate::paces::Paces;
use crate::planner::{PlanInput, plan_round};
use crate::quantise::{self, DecodeError};
use crate::ring::{self, Ring, RingError};
use crate::steps::Trained;
use lapwing_base::{
    Algorithm, ByteSize, Evaluation, JobId, JobPhase, JobView, Meeting, NodeId, NodeOutcome, Pair, Ppm,
    Refusal, Round, RoundKind, RoundOutcome, RoundPlan,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// What some have given to a mean.
struct Given {
    /// By their weights; `None` where nobody gave anything.
    mean: Option<Vec<f32>>,
    /// Of the message of each.
    bytes: BTreeMap<NodeId, u64>,
}

/// A run under way.
#[derive(Debug)]
pub struct Simulation<'a> {
    setting: &'a Setting,
    data: &'a Dataset,
    crew: Crew,
    /// By number; those that have not joined yet are here too.
    nodes: BTreeMap<NodeId, Node>,
    job: JobView,
    seconds: f64,
    /// Sum and number of the rounds' slowest exchanges, in Mbit/s.
    bottlenecks: (f64, u64),
    /// How long local steps take, as a leader learns it.
    paces: Paces,
    /// Of what [`Every`] names, when the next evaluation is due.
    due: f64,
    training_loss: Option<f64>,
    points: Vec<Point>,
}

/// What a round came to, before it is closed.
#[derive(Debug, Default)]
struct Played {
    merged: Vec<Pair>,
    refused: Vec<Refusal>,
    /// Of all that took part, by number.
    done: BTreeMap<NodeId, NodeOutcome>,
    seconds: f64,
}

/// Most nodes whose own models are evaluated at a point: the mean over so many is within a fraction of a per cent of
/// that over all, and evaluating a thousand would take longer than training them.
const EVALUATED_MAX: usize = 32;

/// What a dead partner costs a round: nodes give an exchange up when its partner is suspected, which by default takes
/// this long.
const SUSPECTED_AFTER: f64 = 2.0;

/// A round's deadline enters nothing but its plan's digest: nobody is late here.
const DEADLINE: Duration = Duration::from_secs(60);

impl<'a> Simulation<'a> {
    /// Gives every node its part of the data and the first model. The data are all of a source, nobody's share.
    ///
    /// # Errors
    ///
    /// When the data cannot be shared out so, there is no such model or backend, or an event is about nobody.
    pub fn new(setting: &'a Setting, data: &'a Dataset, threads: usize) -> Result<Self, SimulateError> {
        let spec = &setting.job;
        let nodes = setting.network.nodes;
        if let Some(event) = setting.events.iter().find(|event| event.node().0 > nodes) {
            return Err(SimulateError::NoSuchNode { event: *event, nodes });
        }
        let sums = matches!(spec.algorithm.meeting(), Meeting::All | Meeting::Server);
        let is_lie = |event: &&Event| matches!(event, Event::Poisoned { .. });
        if let Some(event) = setting.events.iter().find(is_lie).filter(|_| sums) {
            let algorithm = spec.algorithm;
            return Err(SimulateError::NoPartners {
                event: *event,
                algorithm,
            });
        }
        // A network has at most a few thousand nodes.
        let parts = u32::try_from(nodes).unwrap_or(u32::MAX);
        let parts = setting.partition.parts(data.train.labels(), spec.seed, parts)?;
        let make = || {
            backend(
                &setting.backend,
                &spec.model,
                data.shape,
                data.classes,
                spec.seed,
                &spec.tuning,
            )
        };
        let backends = (0..threads.max(1))
            .map(|_| make())
            .collect::<Result<Vec<_>, _>>()?;
        let mut model = Vec::new();
        backends.iter().for_each(|backend| backend.read(&mut model));
        let nodes = (1..).zip(parts).map(|(place, part)| {
            let id = NodeId(u64::from(place));
            let mut node = Node::new(spec, id, place, part, &model);
            node.poison = setting.events.iter().find_map(|event| match event {
                Event::Poisoned { node, with } if *node == id => Some(*with),
                _ => None,
            });
            (id, node)
        });
        Ok(Self {
            setting,
            data,
            crew: Crew::new(backends),
            nodes: nodes.collect(),
            job: JobView::new(JobId(1), spec.clone()),
            seconds: 0.0,
            bottlenecks: (0.0, 0),
            paces: Paces::default(),
            due: match setting.every {
                // As in a cluster: never but at the end.
                Every::Rounds(0) => f64::INFINITY,
                Every::Rounds(rounds) => f64::from(rounds),
                Every::Bytes(bytes) => bytes as f64,
                Every::Seconds(every) | Every::Epochs(every) => every,
            },
            training_loss: None,
            points: Vec::new(),
        })
    }

    /// Runs to the job's end, or until `watch`, which is told of every round, has enough.
    ///
    /// # Errors
    ///
    /// When nobody is left, or a method refuses its own kind of plan. Training that diverges is an end, no error.
    pub fn run(
        mut self,
        mut watch: impl FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Run, SimulateError> {
        let ended = loop {
            if self.job.phase != JobPhase::Running {
                break Ended::Done;
            }
            match self.round() {
                Ok(()) => {}
                Err(error) if error.is_divergence() => break Ended::Diverged,
                Err(error) => return Err(error),
            }
            let progress = Progress {
                round: self.job.round().0,
                rounds: self.job.last_round().0,
                virtual_seconds: self.seconds,
                point: self.points.last(),
            };
            if watch(&progress).is_break() {
                break Ended::Stopped;
            }
        };
        let (sum, rounds) = self.bottlenecks;
        Ok(Run {
            algorithm: self.setting.job.algorithm,
            nodes: self.setting.network.nodes,
            seed: self.setting.job.seed,
            parameters: self
                .nodes
                .values()
                .next()
                .map_or(0, |node| node.model.len() as u64),
            rounds: self.job.round().0,
            epsilon: self.nodes.values().filter_map(Node::epsilon).reduce(f64::max),
            mean_bottleneck_mbit_s: (rounds > 0).then(|| sum / rounds as f64),
            points: self.points,
            ended,
        })
    }

    /// The models of all nodes, by number, as they are now.
    pub fn models(&self) -> impl Iterator<Item = (NodeId, &[f32])> {
        self.nodes.iter().map(|(id, node)| (*id, &node.model[..]))
    }

    /// The job as the log would have it.
    pub fn job(&self) -> &JobView {
        &self.job
    }

    /// Plays the next round, and evaluates after it if that is due.
    ///
    /// # Errors
    ///
    /// As for [`Self::run`]; also when training diverged.
    pub fn round(&mut self) -> Result<(), SimulateError> {
        let round = self.job.round().next().0;
        let mut members = self.members(round);
        members.retain(|member| self.job.trust.quarantine(*member, Round(round)).is_none());
        if members.is_empty() {
            return Err(SimulateError::NobodyLeft { round });
        }
        self.welcome(round, &members)?;
        let local_steps = self.setting.job.local_steps;
        self.job.paces = self.paces.decide(&members, local_steps, &self.job.paces);
        let mut plan = plan_round(&PlanInput {
            job: &self.job,
            members: &members,
            bandwidths: &self.setting.network.bandwidths,
            deadline: DEADLINE,
            knobs: self.setting.knobs,
        });
        let steps = |node: &NodeId| (*node, self.job.steps_of(*node, &plan));
        let steps: BTreeMap<NodeId, u32> = members.iter().map(steps).collect();
        self.job.open(plan.clone());
        self.note_bottleneck(&plan);
        if !self.setting.trains {
            plan.local_steps = 0;
        }
        let dying: BTreeSet<NodeId> = members
            .iter()
            .copied()
            .filter(|node| self.dies_by(*node, round))
            .collect();
        let step_seconds = |node: NodeId| self.setting.step_seconds * self.slowness(node);
        let seconds = |(node, steps): (&NodeId, &u32)| (*node, f64::from(*steps) * step_seconds(*node));
        let compute: BTreeMap<NodeId, f64> = steps.iter().map(seconds).collect();
        let took: Vec<NodeId> = plan.participants().filter(|node| !dying.contains(node)).collect();
        for node in took {
            if let (Some(steps @ 1..), Some(seconds)) = (steps.get(&node).copied(), compute.get(&node)) {
                let took = Duration::try_from_secs_f64(*seconds).unwrap_or(Duration::MAX);
                self.paces.note(node, took, steps);
            }
        }
        let mut played = match plan.kind {
            RoundKind::Sparse | RoundKind::Dense => self.pairwise(&plan, &dying, &compute)?,
            RoundKind::Reduced => self.reduced(&plan, &dying, &compute)?,
            RoundKind::Served { server } => self.served(&plan, server, &dying, &compute)?,
        };
        if plan.participants().any(|node| dying.contains(&node)) {
            played.seconds += SUSPECTED_AFTER;
        }
        played.seconds += self.setting.overhead_seconds;
        self.close(&plan, played);
        let is_over = self.job.phase != JobPhase::Running;
        if is_over || self.is_due() {
            self.evaluate()?;
        }
        Ok(())
    }

    /// Whose part it is in a round: those that have joined, and were alive when it was planned.
    fn members(&self, round: u64) -> Vec<NodeId> {
        let joins = |node| {
            let rounds = self.setting.events.iter().filter_map(|event| match event {
                Event::Joins { node: who, round } if *who == node => Some(*round),
                _ => None,
            });
            rounds.max().unwrap_or(1)
        };
        let nodes = self.nodes.keys().copied();
        nodes
            .filter(|node| joins(*node) <= round && !self.dies_by(*node, round - 1))
            .collect()
    }

    fn dies_by(&self, node: NodeId, round: u64) -> bool {
        self.setting.events.iter().any(
            |event| matches!(event, Event::Dies { node: who, round: at } if *who == node && *at <= round),
        )
    }

    fn slowness(&self, node: NodeId) -> f64 {
        let factors = self.setting.events.iter().filter_map(|event| match event {
            Event::Slow { node: who, factor } if *who == node => Some(*factor),
            _ => None,
        });
        factors.product()
    }

    /// Late joiners, and those who come from a quarantine, take the current model from the member that sends fastest to
    /// them. It holds up nobody.
    fn welcome(&mut self, round: u64, members: &[NodeId]) -> Result<(), SimulateError> {
        if round == 1 {
            return Ok(());
        }
        let joins = |node: &NodeId| {
            let event = Event::Joins { node: *node, round };
            let quarantine = self.job.trust.last_quarantine(*node);
            let is_freed = quarantine.is_some_and(|quarantine| quarantine.until.next() == Round(round));
            is_freed || self.setting.events.contains(&event)
        };
        let late: Vec<NodeId> = members.iter().copied().filter(joins).collect();
        for joiner in late.iter().copied() {
            let bandwidths = &self.setting.network.bandwidths;
            let others = members.iter().copied().filter(|node| !late.contains(node));
            let source = others.max_by_key(|node| (bandwidths.get(*node, joiner), std::cmp::Reverse(*node)));
            let source = source.ok_or(SimulateError::NobodyLeft { round })?;
            let source = self.node(source);
            let (model, common) = (source.model.clone(), source.common());
            let spec = &self.setting.job;
            self.node_mut(joiner).join(spec, &model, common)?;
        }
        Ok(())
    }

    fn note_bottleneck(&mut self, plan: &RoundPlan) {
        if let Some(speed) = super::averaging::bottleneck(plan, &self.setting.network.bandwidths) {
            self.bottlenecks.0 += speed.as_mbit_s();
            self.bottlenecks.1 += 1;
        }
    }

    /// Has some nodes do their local work; `prepare` comes right before it.
    fn train(
        &mut self,
        plan: &RoundPlan,
        who: &BTreeSet<NodeId>,
        prepare: impl Fn(&mut Node) + Sync,
    ) -> Result<BTreeMap<NodeId, NodeOutcome>, SimulateError> {
        let (samples, job) = (&self.data.train, &self.job);
        let nodes = working(&mut self.nodes, who);
        let trained = self.crew.each(nodes, |backend, node| {
            prepare(node);
            let trained = node.train(backend, samples, plan, job.steps_of(node.id, plan))?;
            Ok::<_, BackendError>((node.id, trained))
        });
        let mut done = BTreeMap::new();
        for trained in trained {
            let (id, trained) = trained?;
            done.insert(id, outcome(id, trained));
        }
        Ok(done)
    }

    /// Everybody exchanges with each of its partners.
    fn pairwise(
        &mut self,
        plan: &RoundPlan,
        dying: &BTreeSet<NodeId>,
        compute: &BTreeMap<NodeId, f64>,
    ) -> Result<Played, SimulateError> {
        let who: BTreeSet<NodeId> = plan.participants().filter(|node| !dying.contains(node)).collect();
        let mut done = self.train(plan, &who, |_| {})?;
        let offered = self
            .crew
            .each(working(&mut self.nodes, &who), |_, node| node.offer(plan));
        offered.into_iter().collect::<Result<Vec<()>, _>>()?;
        for node in working(&mut self.nodes, &who) {
            node.lie(&self.setting.job, plan)?;
        }
        // What everybody told, by teller and told.
        let mut messages = BTreeMap::new();
        for id in &who {
            for (to, message) in std::mem::take(&mut self.node_mut(*id).told) {
                messages.insert((*id, to), message);
            }
        }
        let accepted = self.crew.each(working(&mut self.nodes, &who), |_, node| {
            let (id, partners) = (node.id, plan.partners_of(node.id));
            let Some(gossip) = node.methods.gossip(plan) else {
                return Vec::new();
            };
            let told = partners.filter_map(|partner| Some((partner, messages.get(&(partner, id))?)));
            told.map(|(partner, message)| {
                let refused = gossip.accept(plan, partner, message).err();
                ((partner, id), refused)
            })
            .collect()
        });
        // What a node refuses is not merged by its partner either, as in a cluster.
        let (mut taken, mut refused) = (BTreeSet::new(), Vec::new());
        for ((of, by), error) in accepted.into_iter().flatten() {
            match error {
                None => {
                    taken.insert((of, by));
                }
                Some(error) => refused.extend(error.garbage().map(|why| Refusal {
                    round: plan.round,
                    of,
                    by,
                    why,
                })),
            }
        }
        let accepted: BTreeSet<(NodeId, NodeId)> = taken;
        let has_merged = |pair: &&Pair| {
            let [a, b] = pair.nodes();
            accepted.contains(&(a, b)) && accepted.contains(&(b, a))
        };
        let merged: Vec<Pair> = plan.pairs.iter().filter(has_merged).copied().collect();
        let settled = self.crew.each(working(&mut self.nodes, &who), |_, node| {
            let id = node.id;
            let with: Vec<NodeId> = merged.iter().filter_map(|pair| pair.partner_of(id)).collect();
            node.settle(plan, &with)
        });
        settled.into_iter().collect::<Result<Vec<()>, _>>()?;
        let mut seconds = who.iter().map(|node| compute[node]).fold(0.0, f64::max);
        for pair in &plan.pairs {
            let [a, b] = pair.nodes();
            let bytes = |from, to| {
                messages
                    .get(&(from, to))
                    .map_or(0, |message| message.len() as u64)
            };
            let (there, back) = (bytes(a, b), bytes(b, a));
            if !(who.contains(&a) && who.contains(&b)) {
                continue;
            }
            count(&mut done, a, there, back);
            count(&mut done, b, back, there);
            let exchange = clock::exchange(&self.setting.network.bandwidths, *pair, [there, back]);
            seconds = seconds.max(compute[&a].max(compute[&b]) + exchange);
        }
        Ok(Played {
            merged,
            refused,
            done,
            seconds,
        })
    }

    /// Everybody learns the mean of what all give, on a ring. One that is missing leaves the others without it.
    fn reduced(
        &mut self,
        plan: &RoundPlan,
        dying: &BTreeSet<NodeId>,
        compute: &BTreeMap<NodeId, f64>,
    ) -> Result<Played, SimulateError> {
        let all: BTreeSet<NodeId> = plan.participants().collect();
        let who: BTreeSet<NodeId> = all.difference(dying).copied().collect();
        let mut done = self.train(plan, &who, |node| node.begin(plan))?;
        let mut seconds = who.iter().map(|node| compute[node]).fold(0.0, f64::max);
        if who.len() < all.len() {
            return Ok(Played {
                done,
                seconds,
                ..Played::default()
            });
        }
        let Some(order) = ring::order(plan) else {
            return Ok(Played {
                done,
                seconds,
                ..Played::default()
            });
        };
        let (mean, bytes) = self.ring_mean(plan, &who, &order)?;
        let learnt = self.crew.each(working(&mut self.nodes, &who), |backend, node| {
            node.learn(backend, plan, &mean)
        });
        learnt.into_iter().collect::<Result<Vec<()>, _>>()?;
        who.iter().for_each(|node| count(&mut done, *node, bytes, bytes));
        seconds += clock::ring(&self.setting.network.bandwidths, &order, bytes);
        Ok(Played {
            merged: plan.pairs.clone(),
            done,
            seconds,
            ..Played::default()
        })
    }

    /// Those that the server asked take its model, and it takes the mean of what they made of it.
    fn served(
        &mut self,
        plan: &RoundPlan,
        server: NodeId,
        dying: &BTreeSet<NodeId>,
        compute: &BTreeMap<NodeId, f64>,
    ) -> Result<Played, SimulateError> {
        if dying.contains(&server) {
            return Ok(Played::default());
        }
        let who: BTreeSet<NodeId> = plan.participants().filter(|node| !dying.contains(node)).collect();
        let trains: BTreeSet<NodeId> = who
            .iter()
            .copied()
            .filter(|node| *node != server || plan.alone.contains(&server))
            .collect();
        let values = self.setting.job.values;
        let (mut sent, mut model) = (Vec::new(), Vec::new());
        let own = &self.node(server).model;
        quantise::encode(own, values, &mut sent);
        quantise::decode(&sent, values, own.len(), &mut model)?;
        let mut done = self.train(plan, &trains, |node| {
            if node.id != server {
                node.follow(&model);
            }
            node.begin(plan);
        })?;
        if !trains.contains(&server) {
            self.node_mut(server).begin(plan);
            done.insert(server, outcome(server, Trained::NOTHING));
        }
        let Given { mean, bytes } = self.mean(plan, &trains)?;
        let only_server = BTreeSet::from([server]);
        let learnt = self.crew.each(
            working(&mut self.nodes, &only_server),
            |backend, node| match &mean {
                Some(mean) => node.learn(backend, plan, mean),
                None => Ok(()),
            },
        );
        learnt.into_iter().collect::<Result<Vec<()>, _>>()?;
        let bandwidths = &self.setting.network.bandwidths;
        let mut seconds = compute
            .get(&server)
            .filter(|_| trains.contains(&server))
            .copied()
            .unwrap_or_default();
        let merged: Vec<Pair> = plan
            .pairs
            .iter()
            .filter(|pair| {
                pair.partner_of(server)
                    .is_some_and(|client| trains.contains(&client))
            })
            .copied()
            .collect();
        for client in merged.iter().filter_map(|pair| pair.partner_of(server)) {
            let (down, up) = (sent.len() as u64, bytes.get(&client).copied().unwrap_or_default());
            count(&mut done, server, down, up);
            count(&mut done, client, up, down);
            let there = clock::transfer(bandwidths, server, client, down);
            let back = clock::transfer(bandwidths, client, server, up);
            seconds = seconds.max(there + compute[&client] + back);
        }
        Ok(Played {
            merged,
            done,
            seconds,
            ..Played::default()
        })
    }

    /// The mean of what all give, and the bytes that each sends, and receives, for it.
    fn ring_mean(
        &mut self,
        plan: &RoundPlan,
        who: &BTreeSet<NodeId>,
        order: &[NodeId],
    ) -> Result<(Vec<f32>, u64), SimulateError> {
        let values = self.setting.job.values;
        let given = self.crew.each(working(&mut self.nodes, who), |_, node| {
            let id = node.id;
            let (mut vector, mut weight) = (Vec::new(), 0);
            if let Some(giving) = node.collective(plan) {
                weight = giving.contribute(plan, &mut vector)?;
            }
            Ok::<_, SimulateError>((id, (vector, weight)))
        });
        let mut given = given.into_iter().collect::<Result<BTreeMap<_, _>, _>>()?;
        let places = order.iter().enumerate();
        let mut rings: Vec<Ring> = places
            .filter_map(|(place, node)| {
                let (vector, weight) = given.remove(node)?;
                Some(Ring::new(vector, weight, place, order.len(), values))
            })
            .collect();
        let mut sent = 0;
        let mut messages = vec![Vec::new(); rings.len()];
        while rings.iter().any(|ring| !ring.is_done()) {
            rings
                .iter()
                .zip(&mut messages)
                .for_each(|(ring, message)| ring.outgoing(message));
            // Pieces differ by a value at most.
            sent += messages.iter().map(Vec::len).max().unwrap_or_default() as u64;
            let last = messages.len() - 1;
            rings
                .iter_mut()
                .enumerate()
                .try_for_each(|(place, ring)| ring.incoming(&messages[(place + last) % (last + 1)]))?;
        }
        // All are alike.
        Ok((rings.pop().map(Ring::into_mean).unwrap_or_default(), sent))
    }

    /// What some give to the one that serves them, as it is after having travelled.
    fn mean(&mut self, plan: &RoundPlan, who: &BTreeSet<NodeId>) -> Result<Given, SimulateError> {
        let values = self.setting.job.values;
        let given = self.crew.each(working(&mut self.nodes, who), |_, node| {
            let id = node.id;
            let Some(giving) = node.collective(plan) else {
                return Ok(None);
            };
            let (mut vector, mut message) = (Vec::new(), Vec::new());
            let weight = giving.contribute(plan, &mut vector)?;
            contribution::write(&vector, weight, values, &mut message);
            let length = vector.len();
            let weight = contribution::read(&message, values, length, &mut vector)?;
            Ok::<_, SimulateError>(Some((id, weight, vector, message.len() as u64)))
        });
        let mut mean = contribution::Mean::default();
        let mut bytes = BTreeMap::new();
        for given in given {
            if let Some((id, weight, vector, length)) = given? {
                mean.add(&vector, weight);
                bytes.insert(id, length);
            }
        }
        Ok(Given {
            mean: mean.into_mean(),
            bytes,
        })
    }

    /// Does what the log does with a round's outcome.
    fn close(&mut self, plan: &RoundPlan, played: Played) {
        self.seconds += played.seconds;
        for refusal in played.refused {
            self.job.refuse(refusal);
        }
        // In private no loss is told.
        let is_private = self.setting.job.tuning.privacy.is_some();
        let trained = played
            .done
            .values()
            .filter(|done| done.samples > 0 && !is_private);
        let losses: Vec<f64> = trained.map(|done| f64::from(done.loss_micro) / 1e6).collect();
        if !losses.is_empty() {
            self.training_loss = Some(losses.iter().sum::<f64>() / losses.len() as f64);
        }
        for (node, done) in &played.done {
            let totals = &mut self.node_mut(*node).totals;
            totals.sent += done.sent.0;
            totals.received += done.received.0;
        }
        let outcome = RoundOutcome {
            job: plan.job,
            round: plan.round,
            merged: played.merged,
            nodes: played.done.into_values().collect(),
            // Saturates.
            took_ms: (played.seconds * 1e3).round() as u32,
        };
        self.job.close(outcome);
    }

    fn is_due(&mut self) -> bool {
        let nodes = self.nodes.len() as f64;
        let (reached, step) = match self.setting.every {
            Every::Rounds(rounds) => (self.job.round().0 as f64, f64::from(rounds)),
            Every::Bytes(bytes) => {
                let sent: u64 = self.nodes.values().map(|node| node.totals.sent).sum();
                (sent as f64 / nodes, bytes as f64)
            }
            Every::Seconds(seconds) => (self.seconds, seconds),
            Every::Epochs(epochs) => (self.epochs(), epochs),
        };
        let is_due = reached >= self.due;
        while reached >= self.due && step > 0.0 {
            self.due += step;
        }
        is_due
    }

    fn epochs(&self) -> f64 {
        if !self.setting.trains {
            let spec = &self.setting.job;
            return epochs_of_rounds(
                spec,
                self.data.train.len(),
                self.setting.network.nodes,
                self.job.round().0,
            );
        }
        let samples: u64 = self.nodes.values().map(|node| node.totals.samples).sum();
        samples as f64 / self.data.train.len() as f64
    }

    /// How good the members' models are, and their mean, without those who lie. Where a server holds the model, it is
    /// everybody's.
    fn evaluate(&mut self) -> Result<(), SimulateError> {
        let round = self.job.round();
        let mut members = self.members(round.0 + 1);
        members.retain(|member| self.node(*member).poison.is_none());
        let last = self.job.rounds.back().map(|record| record.plan.kind);
        let nodes = &self.nodes;
        let models: Vec<(NodeId, &[f32])> = match last {
            Some(RoundKind::Served { server }) => vec![(server, &nodes[&server].model[..])],
            _ => members.iter().map(|id| (*id, &nodes[id].model[..])).collect(),
        };
        if models.is_empty() {
            return Err(SimulateError::NobodyLeft { round: round.0 });
        }
        let mean = mean_of(&models);
        let disagreement = disagreement(&models, &mean);
        let mut scores = Vec::new();
        if self.setting.trains {
            let stride = models.len().div_ceil(EVALUATED_MAX);
            let own = models
                .iter()
                .step_by(stride)
                .map(|(id, model)| (Some(*id), *model));
            let (all, test): (Vec<_>, _) = (own.chain([(None, &mean[..])]).collect(), &self.data.test);
            scores = self.crew.each(all, |backend, (id, model)| {
                backend.write(model)?;
                Ok::<_, BackendError>((id, backend.evaluate(test)?))
            });
        }
        let scores = scores.into_iter().collect::<Result<Vec<_>, _>>()?;
        let nodes = self.nodes.len() as f64;
        let per_node = |total: fn(&Node) -> u64| self.nodes.values().map(total).sum::<u64>() as f64 / nodes;
        let averaged = scores.last().map(|(_, score)| *score);
        let local_accuracies: Vec<(NodeId, Ppm)> = scores
            .iter()
            .filter_map(|(id, score)| Some(((*id)?, score.accuracy())))
            .collect();
        let evaluation = averaged.map(|score| Evaluation {
            round,
            averaged_accuracy: score.accuracy(),
            local_accuracies,
            transferred: ByteSize(0),
        });
        let local_accuracy = evaluation.as_ref().map(|evaluation| {
            let shares = evaluation
                .local_accuracies
                .iter()
                .map(|(_, accuracy)| accuracy.as_f64());
            shares.sum::<f64>() / evaluation.local_accuracies.len() as f64
        });
        let point = Point {
            round: round.0,
            epochs: self.epochs(),
            virtual_seconds: self.seconds,
            sent_bytes_per_node: per_node(|node| node.totals.sent),
            received_bytes_per_node: per_node(|node| node.totals.received),
            local_accuracy,
            averaged_accuracy: averaged.map(|score| score.accuracy().as_f64()),
            averaged_loss: averaged.map(|score| f64::from(score.loss)),
            training_loss: self.training_loss,
            disagreement,
        };
        self.points.push(point);
        evaluation
            .into_iter()
            .for_each(|evaluation| self.job.record_evaluation(evaluation));
        Ok(())
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    #[expect(
        clippy::expect_used,
        reason = "plans name members, and every member is a node"
    )]
    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a member is a node")
    }
}

/// Some of the nodes, by number.
fn working<'n>(
    nodes: &'n mut BTreeMap<NodeId, Node>,
    who: &'n BTreeSet<NodeId>,
) -> impl Iterator<Item = &'n mut Node> + Send {
    nodes.values_mut().filter(|node| who.contains(&node.id))
}

fn outcome(node: NodeId, trained: Trained) -> NodeOutcome {
    NodeOutcome {
        node,
        // As nodes report it: in millionths, and not below zero.
        loss_micro: (f64::from(trained.loss) * 1e6).round() as u32,
        samples: trained.samples,
        sent: ByteSize(0),
        received: ByteSize(0),
    }
}

fn count(done: &mut BTreeMap<NodeId, NodeOutcome>, node: NodeId, sent: u64, received: u64) {
    if let Some(done) = done.get_mut(&node) {
        done.sent.0 += sent;
        done.received.0 += received;
    }
}

/// The mean of some models, in their order: in doubles, as nodes average the consensus model.
fn mean_of(models: &[(NodeId, &[f32])]) -> Vec<f32> {
    let mut sum = vec![0.0_f64; models.first().map_or(0, |(_, model)| model.len())];
    for (_, model) in models {
        sum.iter_mut()
            .zip(*model)
            .for_each(|(sum, value)| *sum += f64::from(*value));
    }
    sum.into_iter()
        .map(|sum| (sum / models.len() as f64) as f32)
        .collect()
}

fn disagreement(models: &[(NodeId, &[f32])], mean: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let distances = models
        .iter()
        .map(|(_, model)| square(&mut model.iter().zip(mean).map(|(x, m)| f64::from(*x) - f64::from(*m))));
    let distance = distances.sum::<f64>() / models.len() as f64;
    let length = square(&mut mean.iter().map(|value| f64::from(*value)));
    (distance / length.max(f64::MIN_POSITIVE)).sqrt()
}

/// Why a simulation cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// Something is to happen to nobody.
    #[error("`{event}` is about none of the {nodes} nodes")]
    NoSuchNode {
        /// What.
        event: Event,
        /// How many there are.
        nodes: u64,
    },
    /// A node cannot lie to partners that it does not have.
    #[error("`{event}` needs partners that meet, and `{algorithm}` sums what all give")]
    NoPartners {
        /// What.
        event: Event,
        /// The job's algorithm.
        algorithm: Algorithm,
    },
    /// All are dead, or none has joined yet.
    #[error("nobody is left in round {round}")]
    NobodyLeft {
        /// When.
        round: u64,
    },
    /// The samples cannot be shared out so.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// The model cannot be computed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The algorithm does not do as its contract says.
    #[error("the algorithm cannot go on")]
    Method(#[from] MethodError),
    /// A message cannot be read by who wrote it: the model has values that its encoding cannot hold.
    #[error("what was encoded cannot be decoded")]
    Decode(#[from] DecodeError),
    /// The same, of a piece on a ring.
    #[error("what was passed on cannot be taken")]
    Ring(#[from] RingError),
}

impl SimulateError {
    /// Whether a model has left all bounds.
    fn is_divergence(&self) -> bool {
        matches!(
            self,
            Self::Backend(BackendError::Diverged { .. } | BackendError::NotFinite { .. })
                | Self::Method(MethodError::Decode(DecodeError::NotFinite { .. }))
                | Self::Decode(DecodeError::NotFinite { .. })
        )
    }
}

impl From<LearnError> for SimulateError {
    fn from(error: LearnError) -> Self {
        match error {
            LearnError::Method(error) => Self::Method(error),
            LearnError::Backend(error) => Self::Backend(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Batches, DataSpec, Partition, load};
    use crate::jobfile;
    use crate::method::Gossip as _;
    use crate::method::averaging::Averaging;
    use crate::planner::Knobs;
    use crate::privacy::Accountant;
    use crate::simulate::{Network, Poison};
    use crate::steps::take_steps;

    /// Parameters of the `mlp` on the digits: 64 inputs, 256 hidden, 10 classes.
    const PARAMETERS: u64 = 64 * 256 + 256 + 256 * 10 + 10;

    fn digits() -> Dataset {
        load(&"digits".parse().unwrap()).unwrap()
    }

    fn setting(job: &str, network: Network) -> Setting {
        Setting {
            job: jobfile::parse(job).unwrap(),
            network,
            partition: Partition::Iid,
            knobs: Knobs::default(),
            step_seconds: 0.0,
            overhead_seconds: 0.0,
            every: Every::Rounds(0),
            events: Vec::new(),
            backend: "burn".to_owned(),
            trains: true,
        }
    }

    fn run(setting: &Setting) -> Run {
        let data = digits();
        let simulation = Simulation::new(setting, &data, 1).unwrap();
        simulation.run(|_| ControlFlow::Continue(())).unwrap()
    }

    fn models_after(setting: &Setting, data: &Dataset, threads: usize, rounds: u32) -> Vec<Vec<f32>> {
        let mut simulation = Simulation::new(setting, data, threads).unwrap();
        (0..rounds).for_each(|_| simulation.round().unwrap());
        simulation.models().map(|(_, model)| model.to_vec()).collect()
    }

    #[test]
    fn two_nodes_take_the_time_of_their_steps_and_of_the_slower_direction() {
        let matrix = Network::parse("two", "0,1\n8,0").unwrap();
        let job = "algorithm='saps'\ncompression=1\nrounds=2\nlocal_steps=2\nfinal_dense_rounds=1";
        let mut setting = setting(job, matrix);
        (setting.step_seconds, setting.overhead_seconds) = (0.25, 0.05);
        setting.events = vec!["slow:2*3".parse().unwrap()];
        let run = run(&setting);
        let last = run.last().unwrap();
        // 76,840 bytes at 1 Mbit/s, twice; two steps of the slow node; the dense round has none.
        let by_hand = 2.0 * (PARAMETERS * 4 * 8) as f64 / 1e6 + 2.0 * 0.75 + 2.0 * 0.05;
        assert!(
            (last.virtual_seconds - by_hand).abs() < 1e-9,
            "{}",
            last.virtual_seconds
        );
        assert_eq!(
            (last.sent_bytes_per_node, last.received_bytes_per_node),
            (153_680.0, 153_680.0)
        );
        assert_eq!((run.rounds, run.ended), (2, Ended::Done));
        // Both hold the mean.
        assert!(last.disagreement < 1e-6, "{}", last.disagreement);
        assert_eq!(last.local_accuracy, last.averaged_accuracy);
    }

    #[test]
    fn a_round_of_four_takes_as_long_as_its_slowest_pair() {
        let matrix = Network::parse("four", "0,1,2,3\n1,0,4,5\n2,4,0,6\n3,5,6,0").unwrap();
        let job = "algorithm='saps'\ncompression=1\nvalues='f16'\nrounds=6\nplanner='random'\nlocal_steps=1\nfinal_dense_rounds=0";
        let setting = setting(job, matrix);
        let data = digits();
        let mut simulation = Simulation::new(&setting, &data, 1).unwrap();
        let mut by_hand = 0.0;
        for _ in 0..6 {
            simulation.round().unwrap();
            let record = simulation.job().rounds.back().unwrap();
            // Pairs of four: 12 and 34 (1 and 6 Mbit/s), 13 and 24 (2 and 5), 14 and 23 (3 and 4).
            let speed: f64 = match record.plan.partner_of(NodeId(1)).unwrap() {
                NodeId(2) => 1e6,
                NodeId(3) => 2e6,
                _ => 3e6,
            };
            let took = (PARAMETERS * 2 * 8) as f64 / speed;
            by_hand += took;
            assert_eq!(
                record.outcome.as_ref().unwrap().took_ms,
                (took * 1e3).round() as u32
            );
            assert_eq!(record.outcome.as_ref().unwrap().merged.len(), 2);
        }
        assert!((simulation.seconds - by_hand).abs() < 1e-9);
    }

    #[test]
    fn models_are_the_same_bits_on_one_thread_and_on_three() {
        let data = digits();
        let mut setting = setting("local_steps=2\nrounds=9", Network::fourteen_cities());
        setting.partition = "dirichlet:0.5".parse().unwrap();
        assert_eq!(
            models_after(&setting, &data, 1, 4),
            models_after(&setting, &data, 3, 4)
        );
    }

    #[test]
    fn nodes_have_the_batches_masks_and_plans_that_members_of_a_cluster_have() {
        let data = digits();
        let setting = setting("local_steps=3\nrounds=9\nseed=5", Network::equal(2, 1000));
        let spec = &setting.job;
        // As a member does it: its share of the data, its batches, its steps, its exchange.
        let mut job = JobView::new(JobId(1), spec.clone());
        let mut members: Vec<_> = (1..=2)
            .map(|part| {
                let share: DataSpec = format!("digits#partition=iid,seed=5,part={part}/2")
                    .parse()
                    .unwrap();
                let own = load(&share).unwrap();
                let backend = backend("burn", "mlp", own.shape, own.classes, 5, &spec.tuning).unwrap();
                let method = Averaging::new(spec, PARAMETERS as usize);
                (own, backend, Batches::of_part(5, part, spec.batch), 0_u64, method)
            })
            .collect();
        for _ in 0..3 {
            let plan = plan_round(&PlanInput {
                job: &job,
                members: &[NodeId(1), NodeId(2)],
                bandwidths: &setting.network.bandwidths,
                deadline: Duration::from_secs(30),
                knobs: setting.knobs,
            });
            job.open(plan.clone());
            let told: Vec<Vec<u8>> = (1..)
                .zip(&mut members)
                .map(|(me, (own, backend, batches, step, method))| {
                    take_steps(&mut **backend, batches, (&own.train).into(), step, &plan).unwrap();
                    let (mut model, mut message) = (Vec::new(), Vec::new());
                    backend.read(&mut model);
                    method.offer(&plan, NodeId(3 - me), &model, &mut message).unwrap();
                    message
                })
                .collect();
            for (me, (_, backend, _, _, method)) in (1..).zip(&mut members) {
                let partner = NodeId(3 - me);
                let mut model = Vec::new();
                backend.read(&mut model);
                method
                    .accept(&plan, partner, &told[partner.0 as usize - 1])
                    .unwrap();
                method.settle(&plan, &[partner], &mut model).unwrap();
                backend.write(&model).unwrap();
            }
            job.close(RoundOutcome {
                job: job.id,
                round: plan.round,
                merged: plan.pairs.clone(),
                nodes: Vec::new(),
                took_ms: 1,
            });
        }
        let simulated = models_after(&setting, &data, 2, 3);
        for ((_, backend, ..), simulated) in members.iter().zip(&simulated) {
            let mut model = Vec::new();
            backend.read(&mut model);
            assert!(model == *simulated, "the models differ");
        }
    }

    #[test]
    fn dense_exchanges_of_equal_parts_learn_what_one_node_with_all_data_learns() {
        let several =
            "algorithm='saps'\ncompression=1\nrounds=60\nlocal_steps=1\nfinal_dense_rounds=2\nbatch=16";
        let alone = "algorithm='local'\nrounds=60\nlocal_steps=1\nfinal_dense_rounds=0\nbatch=64";
        let several = run(&setting(several, Network::equal(4, 1000)));
        let alone = run(&setting(alone, Network::equal(1, 1000)));
        let accuracy = |run: &Run| run.last().unwrap().averaged_accuracy.unwrap();
        let (several, alone) = (accuracy(&several), accuracy(&alone));
        assert!(
            (several - alone).abs() < 0.03 && alone > 0.85,
            "{several} {alone}"
        );
    }

    #[test]
    fn a_node_that_dies_costs_its_round_the_patience_of_the_others_and_no_more() {
        let job = "algorithm='saps'\ncompression=1\nrounds=4\nlocal_steps=1\nfinal_dense_rounds=0\nplanner='random'";
        let mut setting = setting(job, Network::equal(4, 8000));
        setting.events = vec!["die:3@2".parse().unwrap()];
        let data = digits();
        let mut simulation = Simulation::new(&setting, &data, 1).unwrap();
        for _ in 0..4 {
            simulation.round().unwrap();
        }
        let records: Vec<_> = simulation.job().rounds.iter().collect();
        let merged = |round: usize| records[round - 1].outcome.as_ref().unwrap().merged.len();
        assert_eq!((merged(1), merged(2), merged(3), merged(4)), (2, 1, 1, 1));
        assert_eq!(records[2].plan.alone.len(), 1);
        let exchange = (PARAMETERS * 4) as f64 / 1e6;
        assert!((simulation.seconds - (4.0 * exchange + SUSPECTED_AFTER)).abs() < 1e-9);
        assert_eq!(simulation.members(5), [1, 2, 4].map(NodeId));
    }

    #[test]
    fn a_late_joiner_goes_on_from_the_model_of_a_member() {
        let job = "algorithm='saps'\nrounds=9\nlocal_steps=2\nplanner='random'";
        let mut setting = setting(job, Network::equal(3, 8000));
        setting.events = vec!["join:2@3".parse().unwrap()];
        let data = digits();
        let mut simulation = Simulation::new(&setting, &data, 1).unwrap();
        simulation.round().unwrap();
        simulation.round().unwrap();
        assert_eq!(simulation.job().rounds[0].plan.participants().count(), 2);
        let first = simulation.node(NodeId(1)).model.clone();
        simulation.welcome(3, &simulation.members(3)).unwrap();
        assert_eq!(simulation.node(NodeId(2)).model, first);
        simulation.round().unwrap();
        assert_eq!(simulation.job().rounds[2].plan.participants().count(), 3);
    }

    #[test]
    fn without_training_there_are_bytes_and_times_and_no_accuracy() {
        let mut setting = setting("rounds=30\nlocal_steps=100", Network::fourteen_cities());
        (setting.trains, setting.every) = (false, Every::Rounds(10));
        let run = run(&setting);
        let last = run.last().unwrap();
        assert_eq!(
            (run.points.len(), last.round, last.averaged_accuracy),
            (3, 30, None)
        );
        assert!(last.sent_bytes_per_node > 0.0 && last.virtual_seconds > 0.0);
        assert!(run.mean_bottleneck_mbit_s.unwrap() > 0.1);
    }

    #[test]
    fn a_slow_node_takes_fewer_steps_once_that_is_known_and_holds_up_nobody_any_more() {
        let job = "rounds=8\nlocal_steps=10\nfinal_dense_rounds=0\nplanner='random'";
        let mut setting = setting(job, Network::equal(4, 1_000_000));
        (setting.trains, setting.step_seconds) = (false, 0.1);
        setting.events = vec!["slow:2*10".parse().unwrap()];
        let data = digits();
        let mut simulation = Simulation::new(&setting, &data, 1).unwrap();
        for _ in 0..8 {
            simulation.round().unwrap();
        }
        assert_eq!(simulation.job().paces, BTreeMap::from([(NodeId(2), 1)]));
        // Three rounds of ten seconds, and five of one.
        assert!(
            (35.0..36.0).contains(&simulation.seconds),
            "{}",
            simulation.seconds
        );
    }

    #[test]
    fn training_that_leaves_all_bounds_ends_the_run_and_says_so() {
        let run = run(&setting(
            "algorithm='local'\nlr=10\nlocal_steps=500\nrounds=3\nweight_decay=1",
            Network::equal(2, 1000),
        ));
        assert_eq!(run.ended, Ended::Diverged);
    }

    /// Eight nodes on the digits, of which one lies from the start; the honest ones' local and averaged accuracy.
    fn poisoned(poison: Option<Poison>, clip: bool) -> (f64, f64, Vec<NodeId>) {
        let job = format!(
            "rounds=80\nlocal_steps=5\nfinal_dense_rounds=3\nplanner='random'\ncompression=10\n\
             slow_momentum=0\nseed=3\nclip={clip}"
        );
        let mut setting = setting(&job, Network::equal(8, 8000));
        setting.backend = "plain".to_owned();
        setting.events = poison
            .map(|with| Event::Poisoned {
                node: NodeId(8),
                with,
            })
            .into_iter()
            .collect();
        let data = digits();
        let mut simulation = Simulation::new(&setting, &data, 2).unwrap();
        while simulation.job().phase == JobPhase::Running {
            simulation.round().unwrap();
        }
        let last = simulation.points.last().unwrap();
        let inside = simulation.job.trust.in_quarantine(simulation.job.round());
        let inside = inside.map(|(node, _)| node).collect();
        (
            last.local_accuracy.unwrap(),
            last.averaged_accuracy.unwrap(),
            inside,
        )
    }

    #[test]
    fn against_a_node_that_lies_within_bounds_the_clipped_merge_holds_and_the_plain_one_does_not() {
        let (undisturbed, ..) = poisoned(None, false);
        let (plain, _, inside) = poisoned(Some(Poison::Flipped), false);
        let (clipped, ..) = poisoned(Some(Poison::Flipped), true);
        assert!(clipped > undisturbed - 0.03, "{clipped} of {undisturbed}");
        assert!(plain < undisturbed - 0.08, "{plain} of {undisturbed}");
        // Nothing tells it from an honest one.
        assert!(inside.is_empty());
        let (noisy, ..) = poisoned(Some(Poison::Noise), true);
        assert!(noisy > undisturbed - 0.03, "{noisy} of {undisturbed}");
    }

    #[test]
    fn a_node_that_sends_garbage_is_quarantined_and_the_others_accuracy_holds() {
        let (undisturbed, averaged, _) = poisoned(None, false);
        for poison in [Poison::NotFinite, Poison::Huge] {
            let (local, mean, inside) = poisoned(Some(poison), false);
            assert_eq!(inside, [NodeId(8)]);
            assert!(local > undisturbed - 0.02, "{poison}: {local} of {undisturbed}");
            assert!(mean > averaged - 0.02, "{poison}: {mean} of {averaged}");
        }
    }

    #[test]
    fn a_private_job_learns_although_every_step_is_noisy() {
        let job = "rounds=60\nlocal_steps=5\nfinal_dense_rounds=3\nbatch=32\nlr=0.02\ncompression=5\n\
            dp_noise=1.5\ndp_norm=0.5";
        let mut setting = setting(job, Network::equal(4, 8000));
        setting.backend = "plain".to_owned();
        let run = run(&setting);
        let accuracy = run.last().unwrap().averaged_accuracy.unwrap();
        println!("private: {accuracy}, epsilon {:?}", run.epsilon);
        assert!(accuracy > 0.85, "{accuracy}");
        // A quarter of the digits each, and 285 steps.
        let mut accountant = Accountant::new();
        accountant.add_steps(32.0 / 359.0, 1.5, 285).unwrap();
        let expected = accountant.epsilon(1e-5).unwrap();
        assert!(
            (run.epsilon.unwrap() - expected).abs() < 1e-6 * expected,
            "{expected}"
        );
        setting.backend = "burn".to_owned();
        let data = digits();
        assert!(matches!(
            Simulation::new(&setting, &data, 1),
            Err(SimulateError::Backend(BackendError::NotPrivate))
        ));
    }

    #[test]
    fn nobody_lies_to_a_sum() {
        let mut setting = setting("algorithm='all-reduce'", Network::equal(2, 1000));
        setting.events = vec!["poison:1=nan".parse().unwrap()];
        let data = digits();
        let error = Simulation::new(&setting, &data, 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`poison:1=nan` needs partners that meet, and `all-reduce` sums what all give"
        );
    }

    #[test]
    fn an_event_about_nobody_is_refused() {
        let mut setting = setting("", Network::equal(2, 1000));
        setting.events = vec!["die:3@2".parse().unwrap()];
        let data = digits();
        let error = Simulation::new(&setting, &data, 1).unwrap_err();
        assert_eq!(error.to_string(), "`die:3@2` is about none of the 2 nodes");
    }
}
