//! One exchange between two partners of a round: each tells the other its message, as the algorithm writes it.
//!
//! Both derive the same coordinates from the plan, and compare the plan's digest before anything that is told is
//! believed. Whether the pair merges is not decided here but by the log (`round.rs`).
//!
//! Every offer is signed, with the hash of the message that follows: what a partner sends it cannot deny (`evidence.rs`).
//!
//! On the channel, in each direction: one [`Greeting`], then, after an offer, the message in frames
//! of at most 64 KiB. The partner with the smaller number opens the channel.
//!
//! On a ring every node opens one to the next: the greetings are the same, of no message, and then come the pieces of the
//! mean in that direction alone (`ring.rs`).

use crate::payload::{self, FRAME_BYTES, PayloadError};
use crate::ring::RingError;
use crate::worker::WorkerError;
use bytes::Bytes;
use lapwing_base::{ByteSize, Class, Garbage, JobId, Keypair, PeerId, Round, RoundPlan, public_key};
use lapwing_net::{Access, Channel, ChannelError, DecodeError, Kind, OpenError, ReceiveHalf, SendHalf};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The values of a round.
pub(crate) const EXCHANGE: Kind = Kind {
    class: Class::Model,
    name: "exchange",
    access: Access::Members,
    // A chunk, or a greeting, which is smaller.
    frame_max: ByteSize(FRAME_BYTES as u64),
};

/// What a partner is about to send.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) job: JobId,
    pub(crate) round: Round,
    /// [`RoundPlan::digest`]: the same plan, so the same mask.
    pub(crate) plan: [u8; 32],
    /// Bytes of the message.
    pub(crate) bytes: u64,
    /// BLAKE3 of the message.
    pub(crate) hash: [u8; 32],
}

impl Offer {
    pub(crate) fn new(plan: &RoundPlan, message: &[u8]) -> Self {
        Self {
            job: plan.job,
            round: plan.round,
            plan: plan.digest(),
            bytes: message.len() as u64,
            hash: *blake3::hash(message).as_bytes(),
        }
    }
}

/// An offer as it is sent.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct SignedOffer {
    pub(crate) offer: Offer,
    /// Of [`Self::input`].
    signature: Vec<u8>,
}

impl SignedOffer {
    /// Signs an offer to a partner.
    ///
    /// # Errors
    /// [`ExchangeError::Unsigned`] where the key cannot sign.
    pub(crate) fn new(offer: Offer, keypair: &Keypair, to: PeerId) -> Result<Self, ExchangeError> {
        let input = Self::input(&offer, keypair.public().to_peer_id(), to);
        let signature = input.and_then(|input| keypair.sign(&input).ok());
        let signature = signature.ok_or(ExchangeError::Unsigned)?;
        Ok(Self { offer, signature })
    }

    /// Whether `from` has made `to` this offer.
    pub(crate) fn is_signed_by(&self, from: PeerId, to: PeerId) -> bool {
        let signed = public_key(&from).zip(Self::input(&self.offer, from, to));
        signed.is_some_and(|(key, input)| key.verify(&input, &self.signature))
    }

    /// The bytes that are signed: nothing that a key signs elsewhere begins like them.
    fn input(offer: &Offer, from: PeerId, to: PeerId) -> Option<Vec<u8>> {
        postcard::to_extend(&(from, to, offer), b"lapwing-train/v1/offer\0".to_vec()).ok()
    }
}

/// The first frame of each side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Greeting {
    Offer(SignedOffer),
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
    /// Its signature was checked.
    pub(crate) offer: SignedOffer,
}

/// Reads with what a partner opened `channel` to `me`.
pub(crate) async fn accept(
    mut channel: Channel,
    me: PeerId,
    patience: Duration,
) -> Result<Opening, ExchangeError> {
    let frame = tokio::time::timeout(patience, channel.receive())
        .await
        .map_err(|_| ExchangeError::Late)??;
    match greeting(frame)? {
        Greeting::Offer(offer) if !offer.is_signed_by(channel.peer(), me) => Err(ExchangeError::Forged),
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

/// What came of it: the partner's message, and its offer of it.
#[derive(Debug)]
pub(crate) struct Swapped {
    pub(crate) received: payload::Received,
    pub(crate) theirs: SignedOffer,
}

/// Swaps values over a channel that this side, `me`, opened.
pub(crate) async fn swap_as_opener(
    channel: Channel,
    me: PeerId,
    mine: &SignedOffer,
    message: Bytes,
    bytes_max: usize,
) -> Result<Swapped, ExchangeError> {
    let peer = channel.peer();
    let (mut sender, mut receiver) = channel.split();
    let send = async {
        sender
            .send(&lapwing_net::encode(&Greeting::Offer(mine.clone())))
            .await?;
        payload::send(&mut sender, message).await?;
        sender.finish().await?;
        Ok::<_, ExchangeError>(())
    };
    let receive = async {
        let theirs = answer(receiver.receive().await?, peer, me)?;
        let expected = check(&mine.offer, &theirs.offer, bytes_max)?;
        let received = payload::receive(&mut receiver, expected, &theirs.offer.hash).await?;
        Ok(Swapped { received, theirs })
    };
    let ((), swapped) = tokio::try_join!(send, receive)?;
    Ok(swapped)
}

/// Swaps values over a channel that the partner opened with an offer.
pub(crate) async fn swap_as_acceptor(
    Offered {
        channel,
        offer: theirs,
    }: Offered,
    mine: &SignedOffer,
    message: Bytes,
    bytes_max: usize,
) -> Result<Swapped, ExchangeError> {
    let expected = match check(&mine.offer, &theirs.offer, bytes_max) {
        Ok(expected) => expected,
        Err(error) => {
            decline(channel, Decline::AnotherPlan).await?;
            return Err(error);
        }
    };
    let (mut sender, mut receiver) = channel.split();
    let send = async {
        sender
            .send(&lapwing_net::encode(&Greeting::Offer(mine.clone())))
            .await?;
        payload::send(&mut sender, message).await?;
        sender.finish().await?;
        Ok::<_, ExchangeError>(())
    };
    let receive = async { Ok(payload::receive(&mut receiver, expected, &theirs.offer.hash).await?) };
    let ((), received) = tokio::try_join!(send, receive)?;
    Ok(Swapped { received, theirs })
}

/// Agrees with the next one on a ring that this side will send it pieces, over a channel that this side opened.
pub(crate) async fn join_as_opener(
    mut channel: Channel,
    me: PeerId,
    mine: &SignedOffer,
) -> Result<(SendHalf, ReceiveHalf), ExchangeError> {
    channel
        .send(&lapwing_net::encode(&Greeting::Offer(mine.clone())))
        .await?;
    let theirs = answer(channel.receive().await?, channel.peer(), me)?;
    check(&mine.offer, &theirs.offer, 0)?;
    Ok(channel.split())
}

/// Agrees with the one before on a ring that this side will take its pieces, over the channel that it opened.
pub(crate) async fn join_as_acceptor(
    Offered {
        mut channel,
        offer: theirs,
    }: Offered,
    mine: &SignedOffer,
) -> Result<(SendHalf, ReceiveHalf), ExchangeError> {
    if let Err(error) = check(&mine.offer, &theirs.offer, 0) {
        decline(channel, Decline::AnotherPlan).await?;
        return Err(error);
    }
    channel
        .send(&lapwing_net::encode(&Greeting::Offer(mine.clone())))
        .await?;
    Ok(channel.split())
}

/// Both must mean the same round and plan, and the partner's message be one that it allows. Returns its bytes.
fn check(mine: &Offer, theirs: &Offer, bytes_max: usize) -> Result<usize, ExchangeError> {
    if (theirs.job, theirs.round, theirs.plan) != (mine.job, mine.round, mine.plan) {
        return Err(ExchangeError::Mismatch {
            mine: mine.round,
            theirs: theirs.round,
        });
    }
    usize::try_from(theirs.bytes)
        .ok()
        .filter(|bytes| *bytes <= bytes_max)
        .ok_or(ExchangeError::TooLong {
            bytes: theirs.bytes,
            bytes_max,
        })
}

/// With what a partner answers an offer.
fn answer(frame: Option<Bytes>, peer: PeerId, me: PeerId) -> Result<SignedOffer, ExchangeError> {
    match greeting(frame)? {
        Greeting::Offer(offer) if offer.is_signed_by(peer, me) => Ok(offer),
        Greeting::Offer(_) => Err(ExchangeError::Forged),
        Greeting::Declined(reason) => Err(ExchangeError::Declined(reason)),
        Greeting::Withdrawn { .. } => Err(ExchangeError::Declined(Decline::Unable)),
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
    #[error("the partner's offer is not signed by its key")]
    Forged,
    #[error("this node's key cannot sign an offer")]
    Unsigned,
    #[error("the partner means another plan (its round {theirs}, ours {mine}); nothing was merged")]
    Mismatch { mine: Round, theirs: Round },
    #[error("the partner would send {bytes} bytes, where the plan allows {bytes_max}")]
    TooLong { bytes: u64, bytes_max: usize },
    #[error("the partner's values did not arrive whole")]
    Payload(#[source] PayloadError),
    #[error("this node has no values to send")]
    Values(#[source] WorkerError),
    #[error("the partner's values cannot be used")]
    Refused(#[source] WorkerError),
    #[error("a piece of the mean cannot be used")]
    Ring(#[from] RingError),
    #[error("the trainer is stopping")]
    Stopped,
}

impl ExchangeError {
    /// What is wrong with what the partner sent, where nothing but the partner can have made it so: frames arrive as they
    /// were sent, or not at all.
    pub(crate) fn garbage(&self) -> Option<Garbage> {
        match self {
            Self::TooLong { .. } | Self::Forged => Some(Garbage::Malformed),
            Self::Payload(PayloadError::Damaged | PayloadError::Long { .. }) => Some(Garbage::Damaged),
            Self::Refused(WorkerError::Method(error)) => error.garbage(),
            _ => None,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::MergeError;
    use crate::method::MethodError;
    use crate::quantise::DecodeError;
    use lapwing_base::NodeId;

    fn offer(bytes: u64) -> Offer {
        Offer {
            job: JobId(1),
            round: Round(2),
            plan: [3; 32],
            bytes,
            hash: [4; 32],
        }
    }

    #[test]
    fn a_partner_that_means_another_plan_or_would_send_more_than_the_plan_allows_is_refused() {
        assert!(matches!(check(&offer(10), &offer(100), 100), Ok(100)));
        for bytes in [101, u64::MAX] {
            let refused = check(&offer(10), &offer(bytes), 100);
            assert!(matches!(refused, Err(ExchangeError::TooLong { .. })), "{bytes}");
        }
        let other = Offer {
            plan: [5; 32],
            ..offer(10)
        };
        let refused = check(&offer(10), &other, 100);
        assert!(matches!(refused, Err(ExchangeError::Mismatch { .. })));
    }

    #[test]
    fn an_offer_is_its_sender_s_alone_to_that_partner_alone_and_as_it_was_made() {
        let (from, to) = (Keypair::generate_ed25519(), PeerId::random());
        let me = from.public().to_peer_id();
        let signed = SignedOffer::new(offer(10), &from, to).unwrap();
        assert!(signed.is_signed_by(me, to));
        assert!(!signed.is_signed_by(me, PeerId::random()));
        assert!(!signed.is_signed_by(to, me));
        let other = Keypair::generate_ed25519().public().to_peer_id();
        assert!(!signed.is_signed_by(other, to));
        let changed = SignedOffer {
            offer: offer(11),
            ..signed.clone()
        };
        assert!(!changed.is_signed_by(me, to));
        let bare = SignedOffer {
            signature: Vec::new(),
            ..signed.clone()
        };
        assert!(!bare.is_signed_by(me, to));
        let frame = |offer| Some(Bytes::from(lapwing_net::encode(&Greeting::Offer(offer))));
        assert_eq!(answer(frame(signed.clone()), me, to).unwrap(), signed);
        let forged = answer(frame(changed), me, to).unwrap_err();
        assert_eq!(forged.garbage(), Some(Garbage::Malformed));
    }

    #[test]
    fn a_partner_is_accused_of_what_it_sent_and_of_nothing_that_the_way_or_this_node_may_have_done() {
        let method = |error: MethodError| ExchangeError::Refused(WorkerError::Method(error));
        let too_large = MergeError::TooLarge {
            sent: 1.0,
            received: 1e6,
        };
        for (error, garbage) in [
            (ExchangeError::Payload(PayloadError::Damaged), Garbage::Damaged),
            (
                ExchangeError::TooLong {
                    bytes: 2,
                    bytes_max: 1,
                },
                Garbage::Malformed,
            ),
            (method(too_large.clone().into()), Garbage::TooLarge),
            (
                method(DecodeError::NotFinite { index: 3 }.into()),
                Garbage::NotFinite,
            ),
        ] {
            assert_eq!(error.garbage(), Some(garbage), "{error}");
        }
        let partner = NodeId(2);
        for error in [
            ExchangeError::Late,
            ExchangeError::Silent,
            ExchangeError::Declined(Decline::RoundOver),
            ExchangeError::Payload(PayloadError::Short { got: 1, expected: 2 }),
            // What this node cannot encode is its own model.
            ExchangeError::Values(WorkerError::Method(too_large.into())),
            method(MethodError::OutOfStep { partner }),
            method(MethodError::NotOffered {
                round: Round(1),
                partner,
            }),
        ] {
            assert_eq!(error.garbage(), None, "{error}");
        }
    }
}
