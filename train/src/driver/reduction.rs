//! The mean of all over the plan's ring: pieces from the one before, pieces to the next one. What is in them, `ring.rs`
//! knows; whether the mean counts, the log.

use super::Event;
use super::tasks::{Attempts, now, with};
use crate::compute::{ComputeHandle, ComputeStopped};
use crate::exchange::{self, EXCHANGE, ExchangeError, Offer, Offered, SignedOffer};
use crate::payload;
use crate::ring::{self, Ring, RingError};
use crate::round::Exchanged;
use bytes::Bytes;
use lapwing_base::{JobId, Keypair, NodeId, PeerId, RoundPlan, chain};
use lapwing_net::{Network, ReceiveHalf, SendHalf};
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::{debug, info};

/// One node's part in the mean of one round.
pub(super) struct Reduction {
    pub(super) job: JobId,
    pub(super) compute: ComputeHandle,
    pub(super) network: Network,
    pub(super) keypair: Keypair,
    pub(super) plan: RoundPlan,
    pub(super) order: Vec<NodeId>,
    /// To whom pieces go.
    pub(super) next: PeerId,
    /// Where the channel of the one before comes from.
    pub(super) arrived: oneshot::Receiver<Offered>,
}

/// The two beside a node on a ring: from whom pieces come, and to whom they go. In a ring of two they are one. `None`
/// when the plan has no ring, or the node no part in it.
pub(super) fn neighbours(plan: &RoundPlan, me: NodeId) -> Option<(Vec<NodeId>, NodeId, NodeId)> {
    let order = ring::order(plan).filter(|order| order.len() > 1)?;
    let place = order.iter().position(|node| *node == me)?;
    let before = *order.get((place + order.len() - 1) % order.len())?;
    let next = *order.get((place + 1) % order.len())?;
    Some((order, before, next))
}

impl Reduction {
    /// Makes the mean within the round's deadline.
    pub(super) async fn run(self) -> Event {
        let (job, round) = (self.job, self.plan.round);
        let started = now();
        let reduced = tokio::time::timeout(self.plan.deadline(), self.reduce())
            .await
            .unwrap_or(Err(ExchangeError::Late));
        let took = now().duration_since(started);
        let exchanged = match reduced {
            Ok((sent_bytes, received_bytes)) => {
                debug!(%round, ?took, "the mean is here");
                Exchanged {
                    received: true,
                    sent_bytes,
                    received_bytes,
                    took,
                    refused: None,
                }
            }
            Err(error) => {
                info!(%round, error = %chain(&error), "the mean could not be made");
                Exchanged {
                    took,
                    ..Exchanged::default()
                }
            }
        };
        Event::Reduced(job, round, exchanged)
    }

    /// Returns the bytes that were sent and received.
    async fn reduce(self) -> Result<(u64, u64), ExchangeError> {
        let Self {
            job,
            compute,
            network,
            keypair,
            plan,
            order,
            next,
            arrived,
        } = self;
        let round = plan.round;
        let ring = compute
            .run(move |slot| with(slot, job, |worker| worker.ring(round, &order)))
            .await
            .map_err(|ComputeStopped| ExchangeError::Stopped)?
            .map_err(ExchangeError::Values)?;
        // Of no message: what comes is as long as both know.
        let mine = SignedOffer::new(Offer::new(&plan, &[]), &keypair, next)?;
        let open = open_ring(&network, next, &mine, plan.deadline());
        let accept = async {
            let offered = arrived.await.map_err(|_| ExchangeError::Stopped)?;
            let mine = SignedOffer::new(Offer::new(&plan, &[]), &keypair, offered.channel.peer())?;
            exchange::join_as_acceptor(offered, &mine).await
        };
        // What they do not use is kept, since a channel is closed with either half.
        let ((mut to_next, _next), (_before, mut from_before)) = tokio::try_join!(open, accept)?;
        let (mut sent, mut received) = (0, 0);
        let (mut ring, mut piece) = step(&compute, ring, None).await?;
        while !ring.is_done() {
            sent += piece.len() as u64;
            let send = async {
                payload::send(&mut to_next, piece).await?;
                Ok::<_, ExchangeError>(())
            };
            let due = ring.incoming_bytes();
            let receive = async { Ok(payload::receive_piece(&mut from_before, due).await?) };
            let ((), came) = tokio::try_join!(send, receive)?;
            received += came.len() as u64;
            (ring, piece) = step(&compute, ring, Some(came)).await?;
        }
        to_next.finish().await?;
        let mean = ring.into_mean();
        compute
            .run(move |slot| with(slot, job, |worker| worker.keep_mean(round, mean)))
            .await
            .map_err(|ComputeStopped| ExchangeError::Stopped)?
            .map_err(ExchangeError::Values)?;
        Ok((sent, received))
    }
}

/// Opens, and opens again while the next one is not reachable or not as far as we are.
async fn open_ring(
    network: &Network,
    next: PeerId,
    mine: &SignedOffer,
    patience: Duration,
) -> Result<(SendHalf, ReceiveHalf), ExchangeError> {
    let mut attempts = Attempts::new(next);
    loop {
        let joined = async {
            let channel = network.open(next, EXCHANGE, patience).await?;
            exchange::join_as_opener(channel, network.peer_id(), mine).await
        };
        match joined.await {
            Ok(halves) => return Ok(halves),
            Err(error) => attempts.again(error).await?,
        }
    }
}

/// Takes what came, and makes what goes out next; on the training thread, since it is arithmetic over the model.
async fn step(
    compute: &ComputeHandle,
    mut ring: Ring,
    came: Option<Vec<u8>>,
) -> Result<(Ring, Bytes), ExchangeError> {
    let stepped = compute.run(move |_| {
        if let Some(came) = came {
            ring.incoming(&came)?;
        }
        let mut piece = Vec::new();
        if !ring.is_done() {
            ring.outgoing(&mut piece);
        }
        Ok::<_, RingError>((ring, Bytes::from(piece)))
    });
    Ok(stepped.await.map_err(|ComputeStopped| ExchangeError::Stopped)??)
}
