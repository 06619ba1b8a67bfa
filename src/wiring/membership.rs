//! One stretch of being a member: consensus, training and everything that ties them together, from entering
//! until the node stops, is removed, or cannot go on.
//!
//! Shutdown, in order: leadership is handed over, the trainer ends with the computation in hand, the feeds
//! end, and consensus closes its log last.

use super::entry::announce;
use super::registration::GatewayLink;
use super::{federated, feeds, reports, rounds};
use crate::data_dir::DataDir;
use crate::node::{Membership, NodeConfig, Shared};
use lapwing_base::chain;
use lapwing_consensus::{Consensus, JoinError, RaftState};
use lapwing_net::Gate;
use lapwing_train::{DataSpec, Trainer, TrainerConfig, TrainerError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Reports waiting for the coordinator: one of each kind from every member of a large cluster.
const REPORTS_QUEUED_MAX: usize = 1024;

/// Reports waiting to be sent: a trainer has at most three kinds outstanding.
const OUTBOX_MAX: usize = 8;

/// How often a member checks whether it still hears a leader.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a member hears no leader before it makes itself known to whoever can be found: two elections. It
/// may have moved, or the leader may be a node that it does not know yet.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How long handing over leadership may hold up a stop.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(2);

/// How a stretch ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As asked.
    Stopped,
    /// The cluster has removed this node; it can join again as a new member.
    Removed,
    /// It cannot go on.
    Failed(String),
}

/// Lives as a member until one of [`Ended`].
pub(crate) async fn live(
    consensus: Consensus,
    shared: &Arc<Shared>,
    config: &NodeConfig,
    data: Option<DataSpec>,
    dir: &DataDir,
    gateway: Option<&GatewayLink>,
    gate: &watch::Sender<Gate>,
) -> Ended {
    let me = consensus.id();
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();

    let first = feeds::applied(&consensus.roster().borrow(), &consensus.state().borrow());
    let (applied_sender, applied) = watch::channel(first);
    let (outbox_sender, outbox) = mpsc::channel(OUTBOX_MAX);
    let (local, inbox) = mpsc::channel(REPORTS_QUEUED_MAX);
    let network = shared.network.clone();

    let trainer_config = TrainerConfig {
        me,
        keypair: shared.keypair.clone(),
        data,
        backend: config.backend.clone(),
        trainer: config.trainer.clone(),
        dir: dir.train(),
    };
    let trainer = match Trainer::start(trainer_config, network.clone(), applied, outbox_sender) {
        Ok(trainer) => trainer,
        Err(error) => {
            consensus.shutdown().await;
            return Ended::Failed(failed_training(&error));
        }
    };
    tasks.spawn(feeds::feed_network(
        consensus.roster(),
        me,
        network.clone(),
        gate.clone(),
        [config.max_upload.clone(), config.max_download.clone()],
        stop.clone(),
    ));
    tasks.spawn(feeds::feed_card(
        network.clone(),
        Some(consensus.clone()),
        gateway.cloned(),
        stop.clone(),
    ));
    tasks.spawn(federated::feed_members(
        consensus.roster(),
        network.peer_id(),
        shared.around.clone(),
        stop.clone(),
        shared.stop.clone(),
    ));
    tasks.spawn(feeds::feed_trainer(
        consensus.clone(),
        applied_sender,
        stop.clone(),
    ));
    tasks.spawn(reports::send(
        outbox,
        local.clone(),
        consensus.roster(),
        me,
        network.clone(),
        stop.clone(),
    ));
    tasks.spawn(reports::serve(
        local,
        consensus.roster(),
        consensus.state(),
        me,
        network,
        stop.clone(),
    ));
    tasks.spawn(rounds::coordinate(consensus.clone(), inbox, stop.clone()));
    if let Some(gateway) = gateway {
        let client = gateway.client.clone();
        let (registration, token) = (gateway.registration.subscribe(), stop.clone());
        tasks.spawn(
            gateway
                .clone()
                .follow(consensus.cluster(), consensus.roster(), stop.clone()),
        );
        tasks.spawn(async move { client.keep_registered(registration, token).await });
    }
    let member = Membership {
        consensus: consensus.clone(),
        training: trainer.status(),
        train_dir: dir.train(),
    };
    shared
        .phase
        .send_modify(|phase| phase.member = Some(Arc::new(member)));

    let ended = tokio::select! {
        biased;
        () = shared.stop.cancelled() => Ended::Stopped,
        ended = watch_over(&consensus, shared, config, gateway, gate) => ended,
    };
    debug!(?ended, "the membership ends");

    if matches!(ended, Ended::Stopped) {
        hand_over(&consensus).await;
    }
    trainer.shutdown().await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    shared.phase.send_modify(|phase| phase.member = None);
    consensus.shutdown().await;
    ended
}

/// Sees to it that the cluster knows this node, and sees when it no longer does.
async fn watch_over(
    consensus: &Consensus,
    shared: &Shared,
    config: &NodeConfig,
    gateway: Option<&GatewayLink>,
    gate: &watch::Sender<Gate>,
) -> Ended {
    let me = consensus.id();
    let (mut rosters, mut raft) = (consensus.roster(), consensus.raft());
    let mut interval = tokio::time::interval(ANNOUNCE_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = raft.changed() => {
                if changed.is_err() {
                    return Ended::Failed("consensus has stopped".to_owned());
                }
                if let Some(failure) = &raft.borrow_and_update().failure {
                    return Ended::Failed(failure.clone());
                }
            }
            changed = rosters.changed() => {
                if changed.is_err() {
                    return Ended::Failed("consensus has stopped".to_owned());
                }
                if consensus.state().borrow().was_removed(me) {
                    warn!(%me, "the cluster has removed this node");
                    return Ended::Removed;
                }
            }
            _ = interval.tick() => {
                // A leader that was just lost is found again by election; after a while it is worth asking.
                if consensus.leader_silence() < SILENCE_MAX {
                    continue;
                }
                match announce(shared, &config.name, consensus, gateway, gate).await {
                    Ok(()) => debug!("announced where this node listens"),
                    Err(JoinError::Removed) => {
                        warn!(%me, "the cluster has removed this node");
                        return Ended::Removed;
                    }
                    Err(error) => debug!(error = %chain(&error), "nobody has taken the announcement yet"),
                }
            }
        }
    }
}

/// A leader that stops lets another voter lead at once, instead of being missed first.
async fn hand_over(consensus: &Consensus) {
    let (state, me) = (consensus.raft().borrow().state, consensus.id());
    let heir = consensus
        .roster()
        .borrow()
        .voters
        .iter()
        .copied()
        .find(|voter| *voter != me);
    if let (RaftState::Leader, Some(heir)) = (state, heir) {
        match tokio::time::timeout(HAND_OVER_PATIENCE, consensus.transfer_leader(heir)).await {
            Ok(Ok(())) => info!(%heir, "handed over the leadership"),
            Ok(Err(error)) => debug!(%error, "the leadership was not handed over"),
            Err(_) => debug!("the leadership was not handed over in time"),
        }
    }
}

fn failed_training(error: &TrainerError) -> String {
    format!("training cannot start: {}", chain(error))
}
