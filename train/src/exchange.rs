//! One exchange between two partners of a round: each sends the values of its mask, and gets the other's.
//!
//! Values only: both derive the same coordinates from the plan, and compare the plan's digest before any
//! value is believed. Whether the pair merges is not decided here but by the log (`round.rs`).
//!
//! On the channel, in each direction: one [`Greeting`], then, after an offer, the encoded values in frames
//! of at most 64 KiB. The partner with the smaller number opens the channel.

use crate::payload::{self, CHUNK_BYTES, PayloadError};
use bytes::Bytes;
use lapwing_base::{ByteSize, Class, JobId, Round, RoundPlan, Values};
use lapwing_net::{Access, Channel, ChannelError, DecodeError, Kind, OpenError};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The values of a round.
pub(crate) const EXCHANGE: Kind = Kind {
    class: Class::Model,
    name: "exchange",
    access: Access::Members,
    // A chunk, or a greeting, which is smaller.
    frame_max: ByteSize(CHUNK_BYTES as u64),
};

/// What a partner is about to send.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) job: JobId,
    pub(crate) round: Round,
    /// [`RoundPlan::digest`]: the same plan, so the same mask.
    pub(crate) plan: [u8; 32],
    /// How the values are written.
    pub(crate) values: Values,
    /// How many coordinates.
    pub(crate) count: u64,
    /// BLAKE3 of the encoded values.
    pub(crate) hash: [u8; 32],
}

impl Offer {
    pub(crate) fn new(plan: &RoundPlan, values: Values, count: usize, encoded: &[u8]) -> Self {
        Self {
            job: plan.job,
            round: plan.round,
            plan: plan.digest(),
            values,
            count: count as u64,
            hash: *blake3::hash(encoded).as_bytes(),
        }
    }
}

/// The first frame of each side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Greeting {
    Offer(Offer),
    Declined(Decline),
    /// Instead of an offer: its sender takes no part in this round.
    Withdrawn {
        job: JobId,
        round: Round,
    },
}

/// Why a partner does not exchange.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Decline {
    /// Its round has closed.
    #[error("the round is over at the partner")]
    RoundOver,
    /// It has another plan for the round; merging would corrupt both models.
    #[error("the partner has another plan for this round")]
    AnotherPlan,
    /// It cannot work on the job.
    #[error("the partner cannot work on the job")]
    Unable,
    /// It keeps too many exchanges waiting already.
    #[error("the partner has too many exchanges waiting")]
    Busy,
}

/// What a partner opened a channel for.
#[derive(Debug)]
pub(crate) enum Opening {
    /// Boxed: it is many times the size of the other.
    Offered(Box<Offered>),
    Withdrawn {
        job: JobId,
        round: Round,
    },
}

/// A partner's channel, up to and including its offer.
#[derive(Debug)]
pub(crate) struct Offered {
    pub(crate) channel: Channel,
    pub(crate) offer: Offer,
}

/// Reads with what a partner opened `channel`.
pub(crate) async fn accept(mut channel: Channel, patience: Duration) -> Result<Opening, ExchangeError> {
    let frame = tokio::time::timeout(patience, channel.receive())
        .await
        .map_err(|_| ExchangeError::Late)??;
    match greeting(frame)? {
        Greeting::Offer(offer) => Ok(Opening::Offered(Box::new(Offered { channel, offer }))),
        Greeting::Withdrawn { job, round } => Ok(Opening::Withdrawn { job, round }),
        Greeting::Declined(reason) => Err(ExchangeError::Declined(reason)),
    }
}

/// Says over a channel that this side opened that it takes no part.
pub(crate) async fn withdraw(mut channel: Channel, job: JobId, round: Round) -> Result<(), ExchangeError> {
    channel
        .send(&lapwing_net::encode(&Greeting::Withdrawn { job, round }))
        .await?;
    channel.finish().await?;
    // Waits until the partner has let go, so that the word is not lost with the channel.
    channel.receive().await?;
    Ok(())
}

/// Tells a partner that there will be no exchange.
pub(crate) async fn decline(mut channel: Channel, reason: Decline) -> Result<(), ExchangeError> {
    channel
        .send(&lapwing_net::encode(&Greeting::Declined(reason)))
        .await?;
    channel.finish().await?;
    Ok(())
}

/// Swaps values over a channel that this side opened.
pub(crate) async fn swap_as_opener(
    channel: Channel,
    mine: &Offer,
    encoded: Bytes,
) -> Result<payload::Received, ExchangeError> {
    let (mut sender, mut receiver) = channel.split();
    let expected = encoded.len();
    let send = async {
        sender
            .send(&lapwing_net::encode(&Greeting::Offer(mine.clone())))
            .await?;
        payload::send(&mut sender, encoded).await?;
        sender.finish().await?;
        Ok::<_, ExchangeError>(())
    };
    let receive = async {
        let theirs = match greeting(receiver.receive().await?)? {
            Greeting::Offer(offer) => offer,
            Greeting::Declined(reason) => return Err(ExchangeError::Declined(reason)),
            Greeting::Withdrawn { .. } => return Err(ExchangeError::Declined(Decline::Unable)),
        };
        check(mine, &theirs)?;
        Ok(payload::receive(&mut receiver, expected, &theirs.hash).await?)
    };
    let ((), received) = tokio::try_join!(send, receive)?;
    Ok(received)
}

/// Swaps values over a channel that the partner opened with an offer.
pub(crate) async fn swap_as_acceptor(
    Offered {
        channel,
        offer: theirs,
    }: Offered,
    mine: &Offer,
    encoded: Bytes,
) -> Result<payload::Received, ExchangeError> {
    if let Err(error) = check(mine, &theirs) {
        decline(channel, Decline::AnotherPlan).await?;
        return Err(error);
    }
    let (mut sender, mut receiver) = channel.split();
    let expected = encoded.len();
    let send = async {
        sender
            .send(&lapwing_net::encode(&Greeting::Offer(mine.clone())))
            .await?;
        payload::send(&mut sender, encoded).await?;
        sender.finish().await?;
        Ok::<_, ExchangeError>(())
    };
    let receive = async { Ok(payload::receive(&mut receiver, expected, &theirs.hash).await?) };
    let ((), received) = tokio::try_join!(send, receive)?;
    Ok(received)
}

/// Both must mean the same round, plan, encoding and number of values.
fn check(mine: &Offer, theirs: &Offer) -> Result<(), ExchangeError> {
    let Offer {
        job,
        round,
        plan,
        values,
        count,
        hash: _,
    } = theirs;
    let same =
        (*job, *round, *plan, *values, *count) == (mine.job, mine.round, mine.plan, mine.values, mine.count);
    if same {
        Ok(())
    } else {
        Err(ExchangeError::Mismatch {
            mine: mine.round,
            theirs: *round,
        })
    }
}

fn greeting(frame: Option<Bytes>) -> Result<Greeting, ExchangeError> {
    Ok(lapwing_net::decode(&frame.ok_or(ExchangeError::Silent)?)?)
}

/// Why an exchange failed; it costs the pair this merge, and nothing else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("the partner is not reachable")]
    Unreachable(#[source] Box<OpenError>),
    #[error("the channel to the partner failed")]
    Channel(#[from] ChannelError),
    #[error("the partner closed the channel without a word")]
    Silent,
    #[error("the partner did not answer in time")]
    Late,
    #[error("{0}")]
    Declined(Decline),
    #[error("the partner sent a greeting that cannot be read")]
    Unreadable(#[from] DecodeError),
    #[error("the partner means another plan (its round {theirs}, ours {mine}); nothing was merged")]
    Mismatch { mine: Round, theirs: Round },
    #[error("the partner's values did not arrive whole")]
    Payload(#[source] PayloadError),
    #[error("the values cannot be used")]
    Values(#[source] crate::worker::WorkerError),
    #[error("the trainer is stopping")]
    Stopped,
}

impl From<OpenError> for ExchangeError {
    fn from(error: OpenError) -> Self {
        Self::Unreachable(Box::new(error))
    }
}

impl From<PayloadError> for ExchangeError {
    fn from(error: PayloadError) -> Self {
        Self::Payload(error)
    }
}
