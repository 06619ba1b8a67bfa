//! Trains: follows the committed rounds, and owns what they touch.
//!
//! One loop owns the state. It feeds the round core (`round.rs`) with what the log says and with what has
//! been done, and carries out what the core answers: computing on the training thread (`compute.rs`),
//! exchanging values (`exchange.rs`), moving whole models (`models.rs`), reporting to the leader. It never
//! plans a round and never decides a merge.
//!
//! Shutdown: the loop stops first, then what it had under way is dropped, then the training thread ends
//! after the computation in hand.

mod reduction;
mod reporting;
mod tasks;

use self::reduction::Reduction;
use self::reporting::{changed_links, report};
use self::tasks::Averaged;
use crate::compute::{Compute, ComputeHandle, ComputeStopped};
use crate::data::DataSpec;
use crate::exchange::{self, EXCHANGE, ExchangeError, Offered, Opening};
use crate::models::{self, Ask, FetchError, Held, MODEL, Which};
use crate::quantise;
use crate::round::{Effect, Exchanged, Input, RoundCore, Stage};
use crate::status::{TrainingState, TrainingStatus};
use crate::steps::Trained;
use crate::worker::{Opened, Worker, WorkerError};
use bytes::Bytes;
use lapwing_base::{
    Bandwidth, Garbage, JobId, JobView, Keypair, LinkSpeed, Meeting, MemberState, NodeId, PeerId, Ppm,
    Quarantine, Report, Roster, Round, RoundKind, RoundPlan, Values,
};
use lapwing_net::{Channel, Network};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// What a report that the log does not show yet waits before it is sent again. A leader's crash costs this
/// much at most beyond the election, and a lost report no more.
const RESEND_INTERVAL: Duration = Duration::from_millis(500);

/// How long a peer may take from opening a channel to its first frame.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);

/// How long one whole model may take: 100 MB at 7 Mbit/s.
const MODEL_PATIENCE: Duration = Duration::from_secs(120);

/// Partners that are ahead of us keep their exchange waiting here: one a round and peer, and a peer is at
/// most a few rounds ahead.
const PARKED_MAX: usize = 64;

/// Inbound channels being read at once, and models being given at once.
const SERVING_MAX: usize = 32;

/// Models being asked of the training thread at once: its own work always finds room there, and so keeps its order.
const ASKED_MAX: usize = 4;

/// Evaluated rounds whose models are kept: the one being fetched, and the next.
const SNAPSHOTS_KEPT: usize = 2;

/// The folder of what partners have sent that could not be used.
const EVIDENCE: &str = "evidence";

/// What a trainer needs to know of its node.
#[derive(Clone, Debug)]
pub struct TrainerConfig {
    /// This node.
    pub me: NodeId,
    /// With which it signs what it offers to partners.
    pub keypair: Keypair,
    /// Its part of the data; `None` takes the job's data, split by the members' order.
    pub data: Option<DataSpec>,
    /// What computes, such as `burn`.
    pub backend: String,
    /// The command of the program that has the model, for jobs whose model is not built in.
    pub trainer: Option<String>,
    /// Where checkpoints and consensus models are kept.
    pub dir: PathBuf,
}

/// What the log says, as far as training is concerned.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The members.
    pub roster: Arc<Roster>,
    /// The job that runs, or the last one.
    pub job: Option<Arc<JobView>>,
}

/// A running trainer.
#[derive(Debug)]
#[must_use = "a trainer runs until it is shut down"]
pub struct Trainer {
    status: watch::Receiver<TrainingStatus>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Trainer {
    /// Starts to follow the log.
    ///
    /// Reports go to `reports`, again and again until `applied` shows that they arrived; the receiver takes
    /// them to the leader.
    ///
    /// # Errors
    /// When the directory cannot be made or no thread can be started.
    pub fn start(
        config: TrainerConfig,
        network: Network,
        applied: watch::Receiver<Applied>,
        reports: mpsc::Sender<Report>,
    ) -> Result<Self, TrainerError> {
        std::fs::create_dir_all(&config.dir).map_err(|source| TrainerError::Directory {
            dir: config.dir.clone(),
            source,
        })?;
        let compute = Compute::start().map_err(TrainerError::Thread)?;
        let (status_sender, status) = watch::channel(TrainingStatus::default());
        let stop = CancellationToken::new();
        // A few exchanges a round are ours; others that queue are early or wrong.
        let exchanges = network.serve(EXCHANGE, 16);
        let asks = network.serve(MODEL, 16);
        let driver = Driver {
            config,
            network,
            applied,
            reports,
            status: status_sender,
            compute: compute.handle(),
            job: Job::None,
            running: JoinSet::new(),
            asked: Arc::new(Semaphore::new(ASKED_MAX)),
            serving: JoinSet::new(),
            speeds: BTreeMap::new(),
            stop: stop.clone(),
        };
        let mut tasks = JoinSet::new();
        let token = stop.clone();
        tasks.spawn(async move {
            driver.run(token, exchanges, asks).await;
            compute.stop().await;
        });
        Ok(Self { status, stop, tasks })
    }

    /// What the training is doing, now and whenever it changes.
    pub fn status(&self) -> watch::Receiver<TrainingStatus> {
        self.status.clone()
    }

    /// Stops, and waits until the computation in hand has ended.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Why a trainer could not start.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// The directory for checkpoints.
    #[error("the directory for checkpoints {} cannot be made", dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The system has no thread to give.
    #[error("the training thread cannot be started")]
    Thread(#[source] std::io::Error),
}

struct Driver {
    config: TrainerConfig,
    network: Network,
    applied: watch::Receiver<Applied>,
    reports: mpsc::Sender<Report>,
    status: watch::Sender<TrainingStatus>,
    compute: ComputeHandle,
    job: Job,
    /// What the loop waits for; each ends in an event.
    running: JoinSet<Event>,
    /// Models that others ask for and that the training thread has to give.
    asked: Arc<Semaphore>,
    /// Channels of others being read or served; at most [`SERVING_MAX`].
    serving: JoinSet<Served>,
    /// What was last reported of our links.
    speeds: BTreeMap<NodeId, Bandwidth>,
    /// Ends what the training thread waits for.
    stop: CancellationToken,
}

enum Job {
    None,
    /// Data and model are being loaded.
    Opening(JobId),
    Open(Box<OpenJob>),
}

/// The state of the job this node works on.
struct OpenJob {
    id: JobId,
    core: RoundCore,
    /// `None` when the job cannot be computed here: the node then reports each round empty-handed, so that
    /// nobody waits for it.
    parameters: Option<usize>,
    /// Values of what a node that joins takes from a peer.
    shared: usize,
    /// The model with which this node begins a round for those that it serves.
    start: Option<(Round, Bytes)>,
    problem: Option<String>,
    /// One for each partner of the round in hand that has not ended.
    exchanges: Vec<UnderWay>,
    /// The round whose mean is going around; the exchanges are then the two ends of one task.
    reducing: Option<Round>,
    parked: BTreeMap<(Round, PeerId), Offered>,
    /// Partners that have said that they take no part in a round that is not exchanged here yet.
    withdrawn: BTreeSet<(Round, PeerId)>,
    snapshots: VecDeque<Held>,
    /// The round after which a snapshot is being made.
    snapshotting: Option<Round>,
    /// The round whose average is being, or was, computed here.
    averaged: Option<Round>,
    evaluation: Option<Report>,
    adopting: bool,
    consensus: Option<Held>,
    links: Vec<LinkSpeed>,
    /// Whose values were refused in the newest round in which that happened, and why.
    refused: (Round, Vec<(NodeId, Garbage)>),
    /// The end of the quarantine of this node that was told in its log.
    quarantine_told: Option<Round>,
    loss: Option<f32>,
    local_accuracy: Option<Ppm>,
    epsilon: Option<f64>,
}

/// An exchange of the round in hand.
struct UnderWay {
    round: Round,
    node: NodeId,
    partner: PeerId,
    task: AbortHandle,
    /// Where the partner's channel goes when it is the partner that opens.
    arrival: Option<oneshot::Sender<Offered>>,
}

/// The end of something that was under way, with the job it belonged to.
enum Event {
    Opened(JobId, Result<Opened, String>),
    Trained(JobId, Result<Trained, String>, Duration),
    Begun(JobId, Round, Result<Bytes, String>),
    Exchanged(JobId, Round, NodeId, Exchanged, Option<LinkSpeed>),
    Reduced(JobId, Round, Exchanged),
    Held(JobId, Result<bool, String>),
    Snapshot(JobId, Result<Held, String>),
    CaughtUp(JobId, Result<(), String>),
    Averaged(JobId, Round, Result<Averaged, String>),
    Adopted(JobId, Result<Held, String>),
    /// Nothing to tell.
    Done,
}

enum Served {
    Opened(PeerId, Result<Opening, ExchangeError>),
    Asked(Channel, Result<Ask, FetchError>),
    Done,
}

impl Driver {
    async fn run(
        mut self,
        stop: CancellationToken,
        mut exchanges: mpsc::Receiver<Channel>,
        mut asks: mpsc::Receiver<Channel>,
    ) {
        let mut resend = tokio::time::interval(RESEND_INTERVAL);
        resend.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leader = None;
        loop {
            self.advance();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.applied.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let now = self.applied.borrow().roster.leader;
                    if std::mem::replace(&mut leader, now) != now {
                        // A new leader knows nothing of what the old one was told.
                        self.report_again();
                    }
                }
                Some(ended) = self.running.join_next() => match ended {
                    Ok(event) => self.on_event(event),
                    Err(error) if error.is_cancelled() => (),
                    Err(error) => warn!(%error, "a task of the trainer panicked"),
                },
                Some(served) = self.serving.join_next() => if let Ok(served) = served {
                    self.on_served(served);
                },
                Some(channel) = exchanges.recv(), if self.serving.len() < SERVING_MAX => {
                    let peer = channel.peer();
                    let me = self.network.peer_id();
                    self.serving.spawn(async move {
                        Served::Opened(peer, exchange::accept(channel, me, GREETING_PATIENCE).await)
                    });
                }
                Some(channel) = asks.recv(), if self.serving.len() < SERVING_MAX => {
                    self.serving.spawn(async move {
                        let mut channel = channel;
                        let ask = models::asked(&mut channel, GREETING_PATIENCE).await;
                        Served::Asked(channel, ask)
                    });
                }
                _ = resend.tick() => self.report_again(),
            }
        }
        self.running.shutdown().await;
        self.serving.shutdown().await;
    }

    /// Does whatever the newest applied state calls for.
    fn advance(&mut self) {
        let applied = self.applied.borrow_and_update().clone();
        self.follow_job(&applied);
        self.give_up_on_the_dead(&applied);
        if let Some(view) = &applied.job {
            let effects = match &mut self.job {
                Job::Open(open) if open.id == view.id => open.core.handle(Input::Applied(view)),
                Job::None | Job::Opening(_) | Job::Open(_) => Vec::new(),
            };
            self.carry_out(effects, &applied);
            self.tell_of_quarantine(view);
            self.average_if_asked(view, &applied);
            self.adopt_if_needed(view, &applied.roster);
        }
        self.show(&applied);
    }

    /// Opens the job that the log shows, and lets go of one that it no longer shows.
    fn follow_job(&mut self, applied: &Applied) {
        let mine = match &self.job {
            Job::None => None,
            Job::Opening(id) => Some(*id),
            Job::Open(open) => Some(open.id),
        };
        if mine == applied.job.as_ref().map(|view| view.id) {
            return;
        }
        self.leave_job();
        let to_do = |view: &&Arc<JobView>| !view.phase.is_over() || view.manifest.is_some();
        let Some(view) = applied.job.as_ref().filter(to_do) else {
            if mine.is_some() {
                self.free_job();
            }
            return;
        };
        self.job = Job::Opening(view.id);
        let (view, roster, config) = (view.clone(), applied.roster.clone(), self.config.clone());
        let (compute, stop) = (self.compute.clone(), self.stop.clone());
        self.running.spawn(async move {
            let id = view.id;
            let opened = compute
                .run(move |slot| {
                    *slot = None;
                    let (worker, opened) = Worker::open(&view, &roster, &config, &stop)?;
                    *slot = Some(worker);
                    Ok::<_, WorkerError>(opened)
                })
                .await;
            Event::Opened(id, tasks::flatten(opened))
        });
    }

    /// The cluster suspects a partner: waiting for it until the round's deadline would hold up everybody.
    fn give_up_on_the_dead(&mut self, applied: &Applied) {
        let Job::Open(open) = &mut self.job else { return };
        let is_lost = |exchange: &mut UnderWay| {
            let partner = applied.roster.by_peer(&exchange.partner);
            partner.is_none_or(|partner| partner.state == MemberState::Suspected)
        };
        let mut effects = Vec::new();
        if let Some(round) = open.reducing
            && applied
                .job
                .as_ref()
                .and_then(|view| view.record(round))
                .is_some_and(|record| {
                    record.plan.participants().any(|node| {
                        let member = applied.roster.members.get(&node);
                        member.is_none_or(|member| member.state == MemberState::Suspected)
                    })
                })
        {
            info!(%round, "somebody on the ring does not answer; giving up the mean");
            effects.extend(open.end_reduction(round, Exchanged::default()));
        }
        let lost: Vec<UnderWay> = open.exchanges.extract_if(.., is_lost).collect();
        for exchange in lost {
            info!(round = %exchange.round, partner = %exchange.partner, "the partner does not answer; giving up the exchange");
            exchange.task.abort();
            effects.extend(
                open.core
                    .handle(Input::Exchanged(exchange.node, Exchanged::default())),
            );
        }
        self.carry_out(effects, applied);
    }

    fn leave_job(&mut self) {
        if let Job::Open(open) = std::mem::replace(&mut self.job, Job::None) {
            open.exchanges.iter().for_each(|exchange| exchange.task.abort());
        }
    }

    /// Gives back the memory of model and data; a job that is opened does so by itself.
    fn free_job(&mut self) {
        let compute = self.compute.clone();
        self.running.spawn(async move {
            // A stopped thread has freed them already.
            let _ = compute.run(|slot| *slot = None).await;
            Event::Done
        });
    }

    fn carry_out(&mut self, effects: Vec<Effect>, applied: &Applied) {
        let Job::Open(open) = &mut self.job else {
            return;
        };
        let id = open.id;
        let able = open.parameters.is_some();
        for effect in effects {
            let compute = self.compute.clone();
            match effect {
                Effect::Train(plan) if able => {
                    let me = self.config.me;
                    let view = applied.job.as_ref();
                    let steps = view.map_or(plan.local_steps, |view| view.steps_of(me, &plan));
                    debug!(round = %plan.round, steps, "training");
                    let values = view.map(|view| view.spec.values);
                    match plan.kind {
                        RoundKind::Served { server } if server != self.config.me => {
                            let peer = applied.roster.members.get(&server).map(|member| member.peer);
                            let bytes = open.start_bytes(values);
                            match peer {
                                Some(peer) => {
                                    let network = self.network.clone();
                                    self.running.spawn(tasks::follow(
                                        id,
                                        compute,
                                        network,
                                        peer,
                                        (plan, steps),
                                        bytes,
                                    ));
                                }
                                None => {
                                    let left = "the server has left".to_owned();
                                    self.running
                                        .spawn(async move { Event::Trained(id, Err(left), Duration::ZERO) });
                                }
                            }
                        }
                        RoundKind::Served { .. } => {
                            self.running
                                .spawn(tasks::begin_serving(id, &compute, plan.clone()));
                            self.running.spawn(tasks::train(id, &compute, plan, steps));
                        }
                        RoundKind::Sparse | RoundKind::Dense | RoundKind::Reduced => {
                            self.running.spawn(tasks::train(id, &compute, plan, steps));
                        }
                    }
                }
                Effect::Train(_) => {
                    self.running
                        .spawn(async move { Event::Trained(id, Ok(Trained::NOTHING), Duration::ZERO) });
                }
                Effect::Exchange(plan) if able && plan.kind == RoundKind::Reduced => {
                    let (running, network) = (&mut self.running, &self.network);
                    open.reduce(running, compute, network, &self.config, &plan, &applied.roster);
                }
                Effect::Exchange(plan) => {
                    let round = plan.round;
                    let values = applied.job.as_ref().map(|view| view.spec.values);
                    let start_bytes = open.start_bytes(values) as u64;
                    let before = match plan.kind {
                        RoundKind::Served { server } if server == self.config.me => (start_bytes, 0),
                        RoundKind::Served { .. } => (0, start_bytes),
                        RoundKind::Sparse | RoundKind::Dense | RoundKind::Reduced => (0, 0),
                    };
                    for partner in plan.partners_of(self.config.me) {
                        let network = self.network.clone();
                        let peer = applied.roster.members.get(&partner).map(|member| member.peer);
                        match peer {
                            Some(peer) if able && !open.withdrawn.contains(&(round, peer)) => {
                                let exchange = |arrived| tasks::Exchange {
                                    job: id,
                                    compute: compute.clone(),
                                    network,
                                    me: self.config.me,
                                    keypair: self.config.keypair.clone(),
                                    evidence: self.config.dir.join(EVIDENCE),
                                    plan: (*plan).clone(),
                                    partner,
                                    peer,
                                    before,
                                    arrived,
                                };
                                let under_way = start_exchange(&mut self.running, &mut open.parked, exchange);
                                open.exchanges.push(under_way);
                            }
                            Some(peer) if !able => {
                                self.running
                                    .spawn(tasks::withdraw(network, id, round, partner, peer));
                            }
                            // It has left, or takes no part: there is nobody to exchange with.
                            Some(_) | None => {
                                let nothing = Exchanged::default();
                                self.running.spawn(async move {
                                    Event::Exchanged(id, round, partner, nothing, None)
                                });
                            }
                        }
                    }
                }
                Effect::Abandon => {
                    open.reducing = None;
                    for exchange in open.exchanges.drain(..) {
                        debug!(round = %exchange.round, "exchange abandoned: the round has closed");
                        exchange.task.abort();
                    }
                }
                Effect::Hold(report) if able => {
                    self.running.spawn(async move {
                        let held = compute
                            .run(move |slot| tasks::with(slot, id, |worker| worker.hold(&report)))
                            .await;
                        Event::Held(id, tasks::flatten(held))
                    });
                }
                Effect::Hold(_) => {
                    self.running.spawn(async move { Event::Held(id, Ok(false)) });
                }
                Effect::Report(_) => {
                    open.links =
                        changed_links(&mut self.speeds, &self.network, self.config.me, &applied.roster);
                    report(open, &self.reports, applied, self.config.me);
                }
                Effect::Settle { .. } if !able => (),
                Effect::Settle {
                    round,
                    merged,
                    snapshot,
                } => {
                    open.parked.retain(|(parked, _), _| *parked > round);
                    open.withdrawn.retain(|(withdrawn, _)| *withdrawn > round);
                    open.snapshotting = snapshot.then_some(round);
                    self.running
                        .spawn(tasks::settle(id, &compute, round, merged, snapshot));
                }
                Effect::CatchUp { round } => {
                    let meeting = applied.job.as_ref().map(|view| view.spec.algorithm.meeting());
                    // The server's model is all that counts: nobody has a better one than it has itself.
                    let keeps = meeting == Some(Meeting::Server) && open.core.settled() > Round(0);
                    let wanted = tasks::CatchUp {
                        peers: if keeps {
                            Vec::new()
                        } else {
                            answering(applied, self.config.me)
                        },
                        round,
                        shared: open.shared,
                        exactly: meeting == Some(Meeting::All),
                    };
                    let network = self.network.clone();
                    self.running.spawn(async move {
                        let caught_up = if able {
                            tasks::catch_up(compute, network, id, wanted).await
                        } else {
                            Ok(())
                        };
                        Event::CaughtUp(id, caught_up)
                    });
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Opened(id, opened) => self.on_opened(id, opened),
            Event::Done => (),
            Event::Trained(id, trained, took) => {
                let Some(open) = self.open_job(id) else { return };
                let trained = match trained {
                    Ok(trained) => {
                        open.epsilon = trained.epsilon.or(open.epsilon);
                        if trained.samples > 0 {
                            open.problem = None;
                            // In private the loss is not told.
                            open.loss = Some(trained.loss).filter(|_| trained.epsilon.is_none());
                        }
                        trained
                    }
                    Err(error) => {
                        warn!(error, "the local steps failed");
                        open.problem = Some(error);
                        Trained::NOTHING
                    }
                };
                let loss_micro = (f64::from(trained.loss) * 1e6).clamp(0.0, f64::from(u32::MAX)) as u32;
                let effects = open.core.handle(Input::Trained {
                    loss_micro,
                    samples: trained.samples,
                    took,
                });
                self.status
                    .send_modify(|status| status.samples += u64::from(trained.samples));
                self.follow_up(effects);
            }
            Event::Exchanged(id, round, node, exchanged, link) => {
                let me = self.config.me;
                let Some(open) = self.open_job(id) else { return };
                open.exchanges
                    .retain(|exchange| (exchange.round, exchange.node) != (round, node));
                if let Some(garbage) = exchanged.refused {
                    warn!(%round, partner = %node, what = %garbage, "refused what a partner sent");
                    if open.refused.0 != round {
                        open.refused = (round, Vec::new());
                    }
                    open.refused.1.push((node, garbage));
                }
                // What is left of an earlier round tells nothing of this one.
                let is_of_this_round =
                    matches!(open.core.stage(), Stage::Exchanging(report) if report.round == round);
                let effects = if is_of_this_round {
                    open.core.handle(Input::Exchanged(node, exchanged))
                } else {
                    Vec::new()
                };
                // The partner's uplink, as it was seen here.
                if let Some(link) = link.filter(|link| link.from != me) {
                    open.links.push(link);
                }
                self.status.send_modify(|status| {
                    status.sent.0 += exchanged.sent_bytes;
                    status.received.0 += exchanged.received_bytes;
                });
                self.follow_up(effects);
            }
            Event::Begun(id, round, start) => {
                let Some(open) = self.open_job(id) else { return };
                match start {
                    Ok(start) => open.start = Some((round, start)),
                    Err(error) => warn!(error, %round, "the round could not be begun"),
                }
            }
            Event::Reduced(id, round, exchanged) => {
                let Some(open) = self.open_job(id) else { return };
                let effects = open.end_reduction(round, exchanged);
                self.status.send_modify(|status| {
                    status.sent.0 += exchanged.sent_bytes;
                    status.received.0 += exchanged.received_bytes;
                });
                self.follow_up(effects);
            }
            Event::Held(id, held) => {
                let Some(open) = self.open_job(id) else { return };
                let kept = held.unwrap_or_else(|error| {
                    warn!(
                        error,
                        "the checkpoint could not be written; this round is not merged here"
                    );
                    open.problem = Some(error);
                    false
                });
                let effects = open.core.handle(Input::Held { kept });
                self.follow_up(effects);
            }
            Event::Snapshot(id, snapshot) => {
                let Some(open) = self.open_job(id) else { return };
                open.snapshotting = None;
                match snapshot {
                    Ok(held) => {
                        open.local_accuracy = held.accuracy.or(open.local_accuracy);
                        open.snapshots.push_back(held);
                        while open.snapshots.len() > SNAPSHOTS_KEPT {
                            open.snapshots.pop_front();
                        }
                    }
                    Err(error) => warn!(error, "the model could not be kept for the evaluation"),
                }
            }
            Event::CaughtUp(id, caught_up) => {
                let Some(open) = self.open_job(id) else { return };
                match caught_up {
                    Ok(()) => info!("caught up with the current model"),
                    Err(error) => info!(
                        error,
                        "no peer gave the current model; going on with this node's own"
                    ),
                }
                let effects = open.core.handle(Input::CaughtUp);
                self.follow_up(effects);
            }
            Event::Averaged(id, round, averaged) => {
                let Some(open) = self.open_job(id) else { return };
                match averaged {
                    Ok(Averaged { report, consensus }) => {
                        debug!(%round, "evaluated the averaged model");
                        open.evaluation = Some(report);
                        if consensus.is_some() {
                            open.consensus = consensus;
                        }
                    }
                    Err(error) => {
                        warn!(error, %round, "the models could not be averaged");
                        open.averaged = None;
                    }
                }
                self.report_again();
            }
            Event::Adopted(id, adopted) => {
                let Some(open) = self.open_job(id) else { return };
                open.adopting = false;
                match adopted {
                    Ok(held) => {
                        info!(job = %id, "holds the consensus model");
                        open.consensus = Some(held);
                    }
                    Err(error) => debug!(error, "the consensus model is not here yet"),
                }
                self.report_again();
            }
        }
    }

    fn on_opened(&mut self, id: JobId, opened: Result<Opened, String>) {
        if !matches!(self.job, Job::Opening(opening) if opening == id) {
            return;
        }
        let me = self.config.me;
        let epsilon = opened.as_ref().ok().and_then(|opened| opened.epsilon);
        let (core, parameters, shared, consensus, problem) = match opened {
            Ok(opened) => {
                info!(job = %id, round = %opened.settled, parameters = opened.parameters, "job opened");
                let core = match opened.held {
                    Some(held) => RoundCore::resume(me, opened.settled, held),
                    None => RoundCore::new(me, opened.settled),
                };
                (
                    core,
                    Some(opened.parameters),
                    opened.shared,
                    opened.consensus,
                    None,
                )
            }
            Err(error) => {
                warn!(error, job = %id, "this node cannot work on the job; it tells its partners so");
                (RoundCore::new(me, Round(0)), None, 0, None, Some(error))
            }
        };
        self.job = Job::Open(Box::new(OpenJob {
            id,
            core,
            parameters,
            shared,
            start: None,
            problem,
            exchanges: Vec::new(),
            reducing: None,
            parked: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            snapshots: VecDeque::new(),
            snapshotting: None,
            averaged: None,
            evaluation: None,
            adopting: false,
            consensus,
            links: Vec::new(),
            refused: (Round(0), Vec::new()),
            quarantine_told: None,
            loss: None,
            local_accuracy: None,
            epsilon,
        }));
    }

    fn follow_up(&mut self, effects: Vec<Effect>) {
        let applied = self.applied.borrow().clone();
        self.carry_out(effects, &applied);
    }

    fn open_job(&mut self, id: JobId) -> Option<&mut OpenJob> {
        match &mut self.job {
            Job::Open(open) if open.id == id => Some(open),
            Job::None | Job::Opening(_) | Job::Open(_) => None,
        }
    }

    fn on_served(&mut self, served: Served) {
        match served {
            Served::Done => (),
            Served::Opened(peer, Ok(Opening::Offered(offered))) => self.on_offered(peer, *offered),
            Served::Opened(peer, Ok(Opening::Withdrawn { job, round })) => {
                self.on_withdrawn(peer, job, round)
            }
            Served::Opened(peer, Err(error)) => {
                debug!(%peer, %error, "a partner's offer could not be read");
                if let Some(why) = error.garbage() {
                    self.on_garbage(peer, why);
                }
            }
            Served::Asked(channel, Ok(ask)) => self.on_asked(channel, ask),
            Served::Asked(channel, Err(error)) => {
                debug!(peer = %channel.peer(), %error, "a peer's question for a model could not be read");
            }
        }
    }

    /// A partner has opened with what is no offer of its own: there is nothing better to wait for.
    fn on_garbage(&mut self, peer: PeerId, why: Garbage) {
        let Job::Open(open) = &mut self.job else { return };
        // Of a ring the mean fails with it, at the deadline.
        if open.reducing.is_some() {
            return;
        }
        let waits = |exchange: &UnderWay| exchange.partner == peer && exchange.arrival.is_some();
        if let Some(place) = open.exchanges.iter().position(waits) {
            let exchange = open.exchanges.swap_remove(place);
            exchange.task.abort();
            let (id, refused) = (open.id, Some(why));
            self.running.spawn(async move {
                let exchanged = Exchanged {
                    refused,
                    ..Exchanged::default()
                };
                Event::Exchanged(id, exchange.round, exchange.node, exchanged, None)
            });
        }
    }

    /// A partner takes no part in a round: there is nothing to wait for.
    fn on_withdrawn(&mut self, peer: PeerId, job: JobId, round: Round) {
        let Some(open) = self.open_job(job) else { return };
        let expects = |exchange: &UnderWay| exchange.round == round && exchange.partner == peer;
        if let Some(place) = open.exchanges.iter().position(expects) {
            if open.reducing == Some(round) {
                info!(%round, %peer, "a neighbour takes no part in this round");
                let effects = open.end_reduction(round, Exchanged::default());
                self.follow_up(effects);
                return;
            }
            let exchange = open.exchanges.swap_remove(place);
            exchange.task.abort();
            info!(%round, %peer, "the partner takes no part in this round");
            let effects = open
                .core
                .handle(Input::Exchanged(exchange.node, Exchanged::default()));
            self.follow_up(effects);
        } else if round > open.core.settled() && open.withdrawn.len() < PARKED_MAX {
            open.withdrawn.insert((round, peer));
        }
    }

    /// A partner has its values ready: they are swapped now, or kept waiting until we are ready too.
    fn on_offered(&mut self, peer: PeerId, offered: Offered) {
        let (job, round) = (offered.offer.offer.job, offered.offer.offer.round);
        let refused = match &mut self.job {
            Job::Open(open) if open.id == job && open.parameters.is_none() => exchange::Decline::Unable,
            Job::Open(open) if open.id == job => {
                let expects = |exchange: &&mut UnderWay| exchange.round == round && exchange.partner == peer;
                if let Some(exchange) = open.exchanges.iter_mut().find(expects) {
                    if let Some(arrival) = exchange.arrival.take() {
                        // An exchange that ended meanwhile drops the channel, which the partner sees.
                        let _ = arrival.send(offered);
                        return;
                    }
                    exchange::Decline::AnotherPlan
                } else if round <= open.core.settled() {
                    exchange::Decline::RoundOver
                } else if open.parked.len() < PARKED_MAX {
                    open.parked.insert((round, peer), offered);
                    return;
                } else {
                    exchange::Decline::Busy
                }
            }
            // The partner knows of a job that the log has not shown us yet; it will ask again.
            Job::None | Job::Opening(_) | Job::Open(_) => exchange::Decline::Busy,
        };
        debug!(%peer, %round, reason = %refused, "declined an exchange");
        self.serving.spawn(async move {
            let declined =
                tokio::time::timeout(GREETING_PATIENCE, exchange::decline(offered.channel, refused)).await;
            drop(declined);
            Served::Done
        });
    }

    fn on_asked(&mut self, channel: Channel, ask: Ask) {
        let peer = channel.peer();
        let found = match &self.job {
            Job::Open(open) if open.id == ask.job && open.parameters.is_some() => match ask.which {
                Which::Start(round) => match &open.start {
                    Some((begun, start)) if *begun == round => Found::Start(start.clone()),
                    _ if open.core.settled() >= round => Found::RoundOver,
                    _ => Found::Nothing,
                },
                Which::After(round) => match open.snapshots.iter().find(|held| held.round == round) {
                    Some(held) => Found::Held(held.clone()),
                    // With its accuracy in a moment; whoever asks does so again.
                    None if open.snapshotting == Some(round) => Found::Nothing,
                    // Started again since: the model on disk is still that of the round.
                    None if open.core.settled() == round && *open.core.stage() == Stage::Waiting => {
                        Found::Computed(Worker::current)
                    }
                    None => Found::Nothing,
                },
                Which::Current => Found::Computed(Worker::shared),
                Which::Consensus => open.consensus.clone().map_or(Found::Nothing, Found::Held),
            },
            Job::None | Job::Opening(_) | Job::Open(_) => Found::NoJob,
        };
        let (compute, asked) = (self.compute.clone(), Arc::clone(&self.asked));
        self.serving.spawn(async move {
            let given = match found {
                Found::Held(held) => models::give(channel, held, ask.resume).await,
                Found::Start(start) => models::give_start(channel, start).await,
                Found::RoundOver => models::decline(channel, models::Decline::RoundOver).await,
                Found::Computed(which) => {
                    let permit = asked.acquire().await;
                    let computed = compute.run(move |slot| of_job(slot, ask.job).map(which)).await;
                    drop(permit);
                    match computed {
                        Ok(Some(held)) => models::give(channel, held, ask.resume).await,
                        Ok(None) | Err(ComputeStopped) => {
                            models::decline(channel, models::Decline::NotHere).await
                        }
                    }
                }
                Found::Nothing => models::decline(channel, models::Decline::NotHere).await,
                Found::NoJob => models::decline(channel, models::Decline::NotInJob).await,
            };
            if let Err(error) = given {
                debug!(%peer, %error, "a model could not be given");
            }
            Served::Done
        });
    }

    /// The others refuse what this node sends: its owner has to know, once each time.
    fn tell_of_quarantine(&mut self, view: &JobView) {
        let me = self.config.me;
        let Job::Open(open) = &mut self.job else { return };
        let Some(quarantine) = view.trust.quarantine(me, view.round().next()) else {
            return;
        };
        if view.phase.is_over() || open.quarantine_told.replace(quarantine.until) == Some(quarantine.until) {
            return;
        }
        warn!(
            until = %quarantine.until,
            what = %quarantine.why,
            refused_by = quarantine.by.len(),
            "this node is in quarantine: partners refused what it sent, and rounds are planned without it; check its \
             data (`--data`), memory and program, and start it again. After that round it is tried again with the \
             model of a peer"
        );
    }

    /// The log has asked this node to average and evaluate the models of a round.
    fn average_if_asked(&mut self, view: &Arc<JobView>, applied: &Applied) {
        let me = self.config.me;
        let Job::Open(open) = &mut self.job else { return };
        let Some((round, _)) = view.evaluating.filter(|(_, evaluator)| *evaluator == me) else {
            return;
        };
        if open.id != view.id || open.averaged.is_some_and(|averaged| averaged >= round) {
            return;
        }
        let (Some(parameters), Some(own)) = (
            open.parameters,
            open.snapshots.iter().find(|held| held.round == round),
        ) else {
            // Either it comes soon, or the leader asks somebody else after a while.
            return;
        };
        open.averaged = Some(round);
        let kind = view.record(round).map(|record| record.plan.kind);
        let peers = match kind {
            // What those whom this node serves have is theirs for a round.
            Some(RoundKind::Served { server }) if server == me => Vec::new(),
            _ => answering(applied, me),
        };
        let is_final = round >= view.last_round();
        let task = tasks::Averaging {
            network: self.network.clone(),
            compute: self.compute.clone(),
            job: open.id,
            round,
            own: (me, own.clone()),
            peers,
            parameters,
            is_final,
            sent: view.sent,
        };
        let id = open.id;
        self.running
            .spawn(async move { Event::Averaged(id, round, task.run().await) });
    }

    /// The job has a consensus model: take it, unless it is here.
    fn adopt_if_needed(&mut self, view: &Arc<JobView>, roster: &Roster) {
        let me = self.config.me;
        let Job::Open(open) = &mut self.job else { return };
        let Some(manifest) = &view.manifest else { return };
        let Some(parameters) = open.parameters else { return };
        if open.id != view.id || open.adopting || open.consensus.is_some() {
            return;
        }
        open.adopting = true;
        let holders: Vec<PeerId> = rotated(&manifest.holders, me)
            .filter_map(|holder| roster.members.get(&holder).map(|member| member.peer))
            .collect();
        let (id, hash, sent) = (open.id, manifest.hash, view.sent);
        let (network, compute) = (self.network.clone(), self.compute.clone());
        self.running.spawn(async move {
            Event::Adopted(
                id,
                tasks::adopt(network, compute, holders, id, hash, parameters, sent).await,
            )
        });
    }

    fn report_again(&self) {
        if let Job::Open(open) = &self.job {
            report(open, &self.reports, &self.applied.borrow(), self.config.me);
        }
    }

    fn show(&self, applied: &Applied) {
        self.status.send_if_modified(|status| {
            let mut shown = TrainingStatus {
                sent: status.sent,
                received: status.received,
                samples: status.samples,
                ..TrainingStatus::default()
            };
            if let Some(view) = &applied.job {
                shown.job = Some(view.id);
                shown.rounds = view.spec.rounds;
                shown.round = view.round();
                shown.averaged_accuracy = view.evaluations.back().map(|last| last.averaged_accuracy);
                shown.quarantined = quarantined(view);
                let delta = view.spec.tuning.privacy.map(|privacy| privacy.delta_nano);
                shown.delta = delta.map(|delta| f64::from(delta) / 1e9);
            }
            if let Job::Open(open) = &self.job {
                shown.loss = open.loss;
                shown.local_accuracy = open.local_accuracy;
                shown.epsilon = open.epsilon;
                shown.problem.clone_from(&open.problem);
                shown.parameters = open.parameters.map(|parameters| parameters as u64);
                shown.round = open.core.settled();
                match open.core.stage() {
                    Stage::Waiting => (),
                    Stage::Training(plan) => {
                        shown.state = TrainingState::Training;
                        shown.round = plan.round;
                    }
                    Stage::Exchanging(report) => {
                        shown.state = TrainingState::Exchanging;
                        shown.round = report.round;
                    }
                    Stage::Holding(report) | Stage::Reported(report) => {
                        shown.state = TrainingState::Aggregating;
                        shown.round = report.round;
                    }
                    Stage::CatchingUp(round) => {
                        shown.state = TrainingState::Aggregating;
                        shown.round = *round;
                    }
                }
                let plan = applied.job.as_ref().and_then(|view| view.record(shown.round));
                shown.partner = plan.and_then(|record| record.plan.partner_of(self.config.me));
            }
            let changed = *status != shown;
            *status = shown;
            changed
        });
    }
}

impl OpenJob {
    /// Starts to make the mean of a round with all the others.
    fn reduce(
        &mut self,
        running: &mut JoinSet<Event>,
        compute: ComputeHandle,
        network: &Network,
        config: &TrainerConfig,
        plan: &RoundPlan,
        roster: &Roster,
    ) {
        let (me, id, round) = (config.me, self.id, plan.round);
        let peer_of = |node: NodeId| roster.members.get(&node).map(|member| member.peer);
        self.reducing = Some(round);
        let ends = reduction::neighbours(plan, me).and_then(|(order, before, next)| {
            let peers = (peer_of(before)?, peer_of(next)?);
            let is_there = |peer| !self.withdrawn.contains(&(round, peer));
            (is_there(peers.0) && is_there(peers.1)).then_some((order, (before, next), peers))
        });
        let Some((order, (before, next), (peer_before, peer_next))) = ends else {
            // Somebody has left, or takes no part: there is no mean.
            running.spawn(async move { Event::Reduced(id, round, Exchanged::default()) });
            return;
        };
        let (arrival, arrived) = oneshot::channel();
        let mut arrival = Some(arrival);
        if let Some(offered) = self.parked.remove(&(round, peer_before))
            && let Some(arrival) = arrival.take()
        {
            // The receiving end is here, so this cannot fail.
            let _ = arrival.send(offered);
        }
        let reduction = Reduction {
            job: id,
            compute,
            network: network.clone(),
            keypair: config.keypair.clone(),
            plan: plan.clone(),
            order,
            next: peer_next,
            arrived,
        };
        let task = running.spawn(reduction.run());
        self.exchanges.push(UnderWay {
            round,
            node: before,
            partner: peer_before,
            task: task.clone(),
            arrival,
        });
        if next != before {
            self.exchanges.push(UnderWay {
                round,
                node: next,
                partner: peer_next,
                task,
                arrival: None,
            });
        }
    }

    /// Bytes of the model with which a server begins a round.
    fn start_bytes(&self, values: Option<Values>) -> usize {
        let parameters = self.parameters.unwrap_or_default();
        values.map_or(0, |values| quantise::encoded_len(parameters, values))
    }

    /// Ends the round's mean, well or not: what both neighbours were waited for.
    fn end_reduction(&mut self, round: Round, exchanged: Exchanged) -> Vec<Effect> {
        if self.reducing != Some(round) {
            // What is left of an earlier round tells nothing of this one.
            return Vec::new();
        }
        self.reducing = None;
        self.exchanges.drain(..).for_each(|end| end.task.abort());
        let Stage::Exchanging(_) = self.core.stage() else {
            return Vec::new();
        };
        let mut effects = Vec::new();
        let mut told = exchanged;
        for node in self.core.awaited().to_vec() {
            effects.extend(self.core.handle(Input::Exchanged(node, told)));
            // Its bytes count once.
            (told.sent_bytes, told.received_bytes) = (0, 0);
        }
        effects
    }
}

/// Who is in quarantine, while the job is not over.
fn quarantined(view: &JobView) -> Vec<(NodeId, Quarantine)> {
    let inside = view.trust.in_quarantine(view.round().next());
    inside
        .filter(|_| !view.phase.is_over())
        .map(|(node, quarantine)| (node, quarantine.clone()))
        .collect()
}

enum Found {
    Held(Held),
    Computed(fn(&Worker) -> Held),
    Start(Bytes),
    RoundOver,
    Nothing,
    NoJob,
}

fn start_exchange(
    running: &mut JoinSet<Event>,
    parked: &mut BTreeMap<(Round, PeerId), Offered>,
    exchange: impl FnOnce(oneshot::Receiver<Offered>) -> tasks::Exchange,
) -> UnderWay {
    let (arrival, arrived) = oneshot::channel();
    let exchange = exchange(arrived);
    let (round, node, partner) = (exchange.plan.round, exchange.partner, exchange.peer);
    let mut arrival = Some(arrival);
    if let Some(offered) = parked.remove(&(round, partner))
        && let Some(arrival) = arrival.take()
    {
        // The receiving end is held by the exchange, so this cannot fail.
        let _ = arrival.send(offered);
    }
    UnderWay {
        round,
        node,
        partner,
        task: running.spawn(exchange.run()),
        arrival,
    }
}

/// The worker, if it works on that job.
fn of_job(slot: &Option<Worker>, job: JobId) -> Option<&Worker> {
    slot.as_ref().filter(|worker| worker.job() == job)
}

/// Every other member that answers and is not in quarantine, by number.
fn answering(applied: &Applied, me: NodeId) -> Vec<(NodeId, PeerId)> {
    let in_quarantine = |node: NodeId| {
        let job = applied.job.as_ref();
        job.is_some_and(|job| job.trust.quarantine(node, job.round().next()).is_some())
    };
    let members = applied.roster.members.values();
    let answers = members.filter(|member| member.id != me && member.state != MemberState::Suspected);
    answers
        .filter(|member| !in_quarantine(member.id))
        .map(|member| (member.id, member.peer))
        .collect()
}

/// The holders, beginning at another one for each node, so that not all ask the first.
fn rotated(holders: &[NodeId], me: NodeId) -> impl Iterator<Item = NodeId> + '_ {
    let start = (me.0 as usize).checked_rem(holders.len()).unwrap_or(0);
    holders.iter().cycle().skip(start).take(holders.len()).copied()
}
