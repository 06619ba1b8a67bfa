//! What the trainer's loop has under way: each piece of work runs beside the loop and ends in an [`Event`].
//!
//! Nothing here decides what is done next; the loop (`driver.rs`) and the round core do.

use super::{Event, GREETING_PATIENCE, MODEL_PATIENCE, RESEND_INTERVAL};
use crate::compute::{ComputeHandle, ComputeStopped};
use crate::evidence::Evidence;
use crate::exchange::{self, EXCHANGE, ExchangeError, Offer, Offered, SignedOffer};
use crate::incoming::IncomingModel;
use crate::merge;
use crate::models::{self, FetchError, Header, Held, Which};
use crate::round::Exchanged;
use crate::worker::{Worker, WorkerError};
use bytes::Bytes;
use futures::StreamExt as _;
use lapwing_base::{
    Bandwidth, ByteSize, Evaluation, JobId, Keypair, LinkSpeed, NodeId, PeerId, Ppm, Report, Round,
    RoundPlan, chain,
};
use lapwing_net::Network;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

/// Models fetched at once for an average: enough to hide a slow peer, few enough to hold in memory.
const FETCHING_MAX: usize = 4;

/// Goes to the training thread at once: a round is settled before the next one is trained.
pub(super) fn train(
    id: JobId,
    compute: &ComputeHandle,
    plan: Box<RoundPlan>,
    steps: u32,
) -> impl Future<Output = Event> + use<> {
    let started = now();
    let trained = compute.run(move |slot| with(slot, id, |worker| worker.train(&plan, steps)));
    async move { Event::Trained(id, flatten(trained.await), now().duration_since(started)) }
}

/// Goes to the training thread at once, as [`train`] does.
pub(super) fn settle(
    id: JobId,
    compute: &ComputeHandle,
    round: Round,
    merged: Vec<NodeId>,
    snapshot: bool,
) -> impl Future<Output = Event> + use<> {
    let settled = compute.run(move |slot| {
        with(slot, id, |worker| {
            worker.settle(round, &merged)?;
            if snapshot {
                worker.snapshot().map(Some)
            } else {
                Ok(None)
            }
        })
    });
    async move { told(id, round, snapshot, flatten(settled.await)) }
}

fn told(id: JobId, round: Round, snapshot: bool, settled: Result<Option<Held>, String>) -> Event {
    match settled {
        Ok(Some(held)) => Event::Snapshot(id, Ok(held)),
        Ok(None) => Event::Done,
        Err(error) if snapshot => Event::Snapshot(id, Err(error)),
        Err(error) => {
            warn!(error, %round, "the round could not be merged");
            Event::Done
        }
    }
}

/// The exchange of one round.
pub(super) struct Exchange {
    pub(super) job: JobId,
    pub(super) compute: ComputeHandle,
    pub(super) network: Network,
    pub(super) me: NodeId,
    pub(super) keypair: Keypair,
    /// Where what a partner has sent is kept if it cannot be used.
    pub(super) evidence: PathBuf,
    pub(super) plan: RoundPlan,
    pub(super) partner: NodeId,
    pub(super) peer: PeerId,
    /// Bytes of the round's model that this node has sent the partner before, or the partner this node.
    pub(super) before: (u64, u64),
    /// Where the partner's channel comes from, if it is the partner that opens.
    pub(super) arrived: oneshot::Receiver<Offered>,
}

impl Exchange {
    /// Swaps values within the round's deadline.
    pub(super) async fn run(self) -> Event {
        let (job, round, me, partner) = (self.job, self.plan.round, self.me, self.partner);
        let (sent_before, received_before) = self.before;
        let started = now();
        let (folder, mut refused) = (self.evidence.clone(), None);
        let swapped = tokio::time::timeout(self.plan.deadline(), self.swap(&mut refused))
            .await
            .unwrap_or(Err(ExchangeError::Late));
        let took = now().duration_since(started);
        // Not within the deadline: a slow disk takes nothing back of what was refused.
        if let Some(evidence) = refused {
            keep(folder, evidence).await;
        }
        match swapped {
            Ok(Swapped {
                sent_bytes,
                received_bytes,
                speed,
            }) => {
                debug!(%round, %partner, ?took, "exchange finished");
                let link = speed.map(|speed| LinkSpeed {
                    from: partner,
                    to: me,
                    speed,
                });
                let exchanged = Exchanged {
                    received: true,
                    sent_bytes: sent_bytes + sent_before,
                    received_bytes: received_bytes + received_before,
                    took,
                    refused: None,
                };
                Event::Exchanged(job, round, partner, exchanged, link)
            }
            Err(error) => {
                info!(%round, %partner, error = %chain(&error), "exchange failed");
                Event::Exchanged(
                    job,
                    round,
                    partner,
                    Exchanged {
                        took,
                        refused: error.garbage(),
                        ..Exchanged::default()
                    },
                    None,
                )
            }
        }
    }

    /// What it refuses is in `refused` afterwards.
    async fn swap(self, refused: &mut Option<Evidence>) -> Result<Swapped, ExchangeError> {
        let Self {
            job,
            compute,
            network,
            me,
            keypair,
            evidence: _,
            plan,
            partner,
            peer,
            before: _,
            arrived,
        } = self;
        let round = plan.round;
        let (message, bytes_max) = compute
            .run(move |slot| with(slot, job, |worker| worker.offer(round, partner)))
            .await
            .map_err(|ComputeStopped| ExchangeError::Stopped)?
            .map_err(ExchangeError::Values)?;
        let mine = SignedOffer::new(Offer::new(&plan, &message), &keypair, peer)?;
        // One of two opens, so that they never open past each other.
        let exchange::Swapped { received, theirs } = if me < partner {
            swap_by_opening(&network, peer, &mine, &message, bytes_max, plan.deadline()).await?
        } else {
            let offered = arrived.await.map_err(|_| ExchangeError::Stopped)?;
            exchange::swap_as_acceptor(offered, &mine, message.clone(), bytes_max).await?
        };
        if let Some(timing) = received.timing {
            network.transfer_received(peer, timing);
        }
        let steady = received.timing.filter(|timing| timing.is_steady);
        let speed = steady.and_then(|timing| timing.speed());
        let received_bytes = received.bytes.len() as u64;
        let told = Bytes::from(received.bytes);
        let accepting = told.clone();
        let accepted = compute
            .run(move |slot| with(slot, job, |worker| worker.accept(round, partner, &accepting)))
            .await
            .map_err(|ComputeStopped| ExchangeError::Stopped)?
            .map_err(ExchangeError::Refused);
        if let Err(error) = accepted {
            if let Some(why) = error.garbage() {
                let ends = (peer, network.peer_id());
                *refused = Some(Evidence::new(ends, why, theirs, told.into()));
            }
            return Err(error);
        }
        Ok(Swapped {
            sent_bytes: message.len() as u64,
            received_bytes,
            speed,
        })
    }
}

/// Keeps what a partner has sent, and says where; without it the partner is refused all the same.
async fn keep(folder: PathBuf, evidence: Evidence) {
    let from = evidence.from;
    let kept = tokio::task::spawn_blocking(move || evidence.keep(&folder)).await;
    match kept.map_err(std::io::Error::other).flatten() {
        Ok(file) => {
            warn!(%from, file = %file.display(), "what the partner sent is kept; `lapwing job evidence` checks it")
        }
        Err(error) => warn!(%from, %error, "what the partner sent could not be kept"),
    }
}

/// What an exchange that went well came to.
struct Swapped {
    sent_bytes: u64,
    received_bytes: u64,
    /// The partner's uplink, when there was enough to measure.
    speed: Option<Bandwidth>,
}

/// Tells the partner that there will be no exchange, so that it does not wait for the deadline.
pub(super) async fn withdraw(
    network: Network,
    job: JobId,
    round: Round,
    partner: NodeId,
    peer: PeerId,
) -> Event {
    let withdrawn = tokio::time::timeout(GREETING_PATIENCE, async {
        let channel = network.open(peer, EXCHANGE, GREETING_PATIENCE).await?;
        exchange::withdraw(channel, job, round).await
    });
    if let Ok(Err(error)) = withdrawn.await {
        debug!(%peer, %error, "the partner could not be told");
    }
    Event::Exchanged(job, round, partner, Exchanged::default(), None)
}

/// Attempts at what needs a peer that may not be as far as we are.
pub(super) struct Attempts {
    peer: PeerId,
    pause: Duration,
}

impl Attempts {
    pub(super) const fn new(peer: PeerId) -> Self {
        Self {
            peer,
            pause: PAUSE_MIN,
        }
    }

    /// Waits before the next attempt, or returns the error after which there is none.
    pub(super) async fn again(&mut self, error: ExchangeError) -> Result<(), ExchangeError> {
        match error {
            ExchangeError::Declined(
                exchange::Decline::RoundOver | exchange::Decline::AnotherPlan | exchange::Decline::Unable,
            )
            | ExchangeError::Mismatch { .. } => return Err(error),
            // It would not be better the next time.
            error if error.garbage().is_some() => return Err(error),
            error => debug!(peer = %self.peer, %error, "the partner is not ready; trying again"),
        }
        self.pause().await;
        Ok(())
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

/// Opens, and opens again while the partner is not reachable or not as far as we are.
async fn swap_by_opening(
    network: &Network,
    peer: PeerId,
    mine: &SignedOffer,
    message: &Bytes,
    bytes_max: usize,
    patience: Duration,
) -> Result<exchange::Swapped, ExchangeError> {
    let mut attempts = Attempts::new(peer);
    loop {
        let swapped = async {
            let channel = network.open(peer, EXCHANGE, patience).await?;
            exchange::swap_as_opener(channel, network.peer_id(), mine, message.clone(), bytes_max).await
        };
        match swapped.await {
            Ok(swapped) => return Ok(swapped),
            Err(error) => attempts.again(error).await?,
        }
    }
}

/// Between two attempts to have from a peer what it does not have yet: doubling, since a commit takes milliseconds and a
/// restart seconds.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Takes the model with which the server begins the round, and trains it.
pub(super) async fn follow(
    job: JobId,
    compute: ComputeHandle,
    network: Network,
    server: PeerId,
    (plan, steps): (Box<RoundPlan>, u32),
    bytes: usize,
) -> Event {
    let patience = plan.deadline();
    let started = tokio::time::timeout(patience, fetch_start(&network, server, &plan, bytes, patience))
        .await
        .unwrap_or(Err(FetchError::Late));
    let since = now();
    let trained = match started {
        Ok(start) => {
            let trained = compute.run(move |slot| {
                with(slot, job, |worker| {
                    worker.follow(&start)?;
                    worker.train(&plan, steps)
                })
            });
            flatten(trained.await)
        }
        Err(error) => Err(format!("the server's model could not be had: {}", chain(&error))),
    };
    Event::Trained(job, trained, now().duration_since(since))
}

/// Asks again until the server has begun the round.
async fn fetch_start(
    network: &Network,
    server: PeerId,
    plan: &RoundPlan,
    bytes: usize,
    patience: Duration,
) -> Result<Vec<u8>, FetchError> {
    let mut attempts = Attempts::new(server);
    loop {
        match models::fetch_start(network, server, plan.job, plan.round, bytes, patience).await {
            Ok(start) => return Ok(start),
            Err(error @ FetchError::Declined(models::Decline::RoundOver)) => return Err(error),
            Err(error) => debug!(peer = %server, %error, "the server has not begun the round; asking again"),
        }
        attempts.pause().await;
    }
}

/// Notes the model with which this node begins a round for those that it serves; goes to the training thread at once,
/// before the steps of the same round.
pub(super) fn begin_serving(
    id: JobId,
    compute: &ComputeHandle,
    plan: Box<RoundPlan>,
) -> impl Future<Output = Event> + use<> {
    let round = plan.round;
    let begun = compute.run(move |slot| with(slot, id, |worker| worker.begin_serving(&plan)));
    async move { Event::Begun(id, round, flatten(begun.await)) }
}

/// Whom a node that is behind may ask, and what it has to get.
pub(super) struct CatchUp {
    pub(super) peers: Vec<(NodeId, PeerId)>,
    /// The newest closed round.
    pub(super) round: Round,
    /// Values of what peers give.
    pub(super) shared: usize,
    /// Whether nothing older than that round will do, since all move together.
    pub(super) exactly: bool,
}

pub(super) async fn catch_up(
    compute: ComputeHandle,
    network: Network,
    job: JobId,
    wanted: CatchUp,
) -> Result<(), String> {
    let CatchUp {
        peers,
        round,
        shared,
        exactly,
    } = wanted;
    let mut last = "there is no other member".to_owned();
    let least = if exactly { round } else { Round(1) };
    let (began, mut pause) = (now(), PAUSE_MIN);
    loop {
        for (node, peer) in &peers {
            match fetch_whole(&network, *peer, (job, Which::Current), shared).await {
                // A peer that lost its own model has nothing to teach.
                Ok((header, flat)) if header.round >= least => {
                    let replaced = compute
                        .run(move |slot| with(slot, job, |worker| worker.replace(&flat, round)))
                        .await;
                    return flatten(replaced);
                }
                Ok(_) => last = format!("{node} has no model of a later round either"),
                Err(error) => last = format!("{node}: {}", chain(&error)),
            }
        }
        if !exactly || peers.is_empty() || now().duration_since(began) > MODEL_PATIENCE {
            break;
        }
        // They have not settled the round yet.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    let kept = compute
        .run(move |slot| with(slot, job, |worker| worker.keep_own(round)))
        .await;
    flatten(kept)?;
    Err(last)
}

pub(super) async fn adopt(
    network: Network,
    compute: ComputeHandle,
    holders: Vec<PeerId>,
    job: JobId,
    hash: [u8; 32],
    parameters: usize,
    sent: ByteSize,
) -> Result<Held, String> {
    let mut last = "no holder is a member".to_owned();
    let mut wanted = IncomingModel::new(parameters, Some(hash));
    // All hold the same: what one gave before it was lost, the next does not give again.
    for peer in holders {
        let fetched = models::fetch(
            &network,
            peer,
            (job, Which::Consensus),
            &mut wanted,
            MODEL_PATIENCE,
        );
        match fetched.await {
            Ok(()) => break,
            Err(error) => last = format!("{peer}: {}", chain(&error)),
        }
    }
    if let Some((_, flat)) = wanted.into_whole() {
        let kept = compute
            .run(move |slot| with(slot, job, |worker| worker.keep_consensus(flat, None, sent)))
            .await;
        return flatten(kept);
    }
    // Asked again when the log shows another holder, or after this.
    tokio::time::sleep(RESEND_INTERVAL).await;
    Err(last)
}

/// Averages the members' models of one round and evaluates the average.
pub(super) struct Averaging {
    pub(super) network: Network,
    pub(super) compute: ComputeHandle,
    pub(super) job: JobId,
    pub(super) round: Round,
    pub(super) own: (NodeId, Held),
    pub(super) peers: Vec<(NodeId, PeerId)>,
    pub(super) parameters: usize,
    pub(super) is_final: bool,
    /// By all nodes, in the rounds of the job.
    pub(super) sent: ByteSize,
}

/// An average: what to tell of it, and, after the last round, the model itself.
pub(super) struct Averaged {
    pub(super) report: Report,
    pub(super) consensus: Option<Held>,
}

impl Averaging {
    pub(super) async fn run(self) -> Result<Averaged, String> {
        let Self {
            network,
            compute,
            job,
            round,
            own: (me, own),
            peers,
            parameters,
            is_final,
            sent,
        } = self;
        let mut sum: Vec<f64> = own.flat.iter().copied().map(f64::from).collect();
        let mut accuracies: Vec<(NodeId, Ppm)> =
            own.accuracy.map(|accuracy| (me, accuracy)).into_iter().collect();
        let mut models = 1_u32;
        let mut transferred = 0;
        // In the members' order, so that the sum does not depend on who answers first.
        let mut fetched = futures::stream::iter(peers)
            .map(|(node, peer)| {
                let network = network.clone();
                async move { (node, fetch_after(&network, peer, job, round, parameters).await) }
            })
            .buffered(FETCHING_MAX);
        while let Some((node, fetched)) = fetched.next().await {
            match fetched {
                Ok((_, flat)) if merge::is_too_large(&own.flat, &flat) => {
                    warn!(%node, %round, "a model has far too large values, and is left out of the average");
                }
                Ok((header, flat)) => {
                    sum.iter_mut()
                        .zip(&flat)
                        .for_each(|(sum, value)| *sum += f64::from(*value));
                    accuracies.extend(header.accuracy.map(|accuracy| (node, accuracy)));
                    models += 1;
                    transferred += size_of_val(&flat[..]) as u64;
                }
                Err(error) => {
                    info!(%node, %round, error = %chain(&error), "a model is missing in the average")
                }
            }
        }
        drop(fetched);
        let mut average: Vec<f32> = sum
            .into_iter()
            .map(|sum| (sum / f64::from(models)) as f32)
            .collect();
        accuracies.sort_unstable();
        let hash = crate::layout::model_hash(&average);
        let (averaged_accuracy, consensus) = flatten(
            compute
                .run(move |slot| {
                    with(slot, job, |worker| {
                        let accuracy = worker.evaluate(&mut average)?;
                        let kept = is_final
                            .then(|| worker.keep_consensus(average, Some(accuracy), sent))
                            .transpose()?;
                        Ok((accuracy, kept))
                    })
                })
                .await,
        )?;
        let evaluation = Evaluation {
            round,
            averaged_accuracy,
            local_accuracies: accuracies,
            transferred: ByteSize(transferred),
        };
        let report = Report::Evaluation {
            job,
            evaluation,
            hash,
            parameters: parameters as u64,
        };
        Ok(Averaged { report, consensus })
    }
}

/// A peer may not have applied the round's end yet: asks again for a while.
async fn fetch_after(
    network: &Network,
    peer: PeerId,
    job: JobId,
    round: Round,
    parameters: usize,
) -> Result<(Header, Vec<f32>), FetchError> {
    let started = now();
    loop {
        match fetch_whole(network, peer, (job, Which::After(round)), parameters).await {
            Err(FetchError::Declined(_)) if now().duration_since(started) < GREETING_PATIENCE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            ended => return ended,
        }
    }
}

/// A model that only this peer has.
async fn fetch_whole(
    network: &Network,
    peer: PeerId,
    asked: (JobId, Which),
    parameters: usize,
) -> Result<(Header, Vec<f32>), FetchError> {
    let mut wanted = IncomingModel::new(parameters, None);
    models::fetch(network, peer, asked, &mut wanted, MODEL_PATIENCE).await?;
    wanted.into_whole().ok_or(FetchError::Silent)
}

/// Works on the worker of a job; what comes too late, for a job that is open no longer, is refused.
pub(super) fn with<R>(
    slot: &mut Option<Worker>,
    job: JobId,
    work: impl FnOnce(&mut Worker) -> Result<R, WorkerError>,
) -> Result<R, WorkerError> {
    slot.as_mut()
        .filter(|worker| worker.job() == job)
        .map_or(Err(WorkerError::NoJob), work)
}

pub(super) fn flatten<R>(result: Result<Result<R, WorkerError>, ComputeStopped>) -> Result<R, String> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(chain(&error)),
        Err(stopped) => Err(stopped.to_string()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the driver times what it does")]
pub(super) fn now() -> Instant {
    Instant::now()
}
