//! Whole models between peers: for an evaluation, for a node that must catch up, and for the consensus model
//! at the end of a job. The log never carries one.
//!
//! On the channel: the asker's [`Ask`]; the holder's [`Answer`]; after a header, the parameters as little
//! endian `f32` in frames of at most 64 KiB.

use crate::payload::{self, CHUNK_BYTES, PayloadError};
use bytes::Bytes;
use lapwing_base::{ByteSize, Class, JobId, PeerId, Ppm, Round};
use lapwing_net::{Access, Channel, ChannelError, DecodeError, Kind, Network, OpenError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// A whole model.
pub(crate) const MODEL: Kind = Kind {
    class: Class::Model,
    name: "model",
    access: Access::Members,
    frame_max: ByteSize(CHUNK_BYTES as u64),
};

/// How long a peer may take to be reached: one that is not by then is asked again, or another one is.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// Which model of a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Which {
    /// The peer's own model as it was after this round.
    After(Round),
    /// The peer's own model as it is now, and what all who take part have in common beside it.
    Current,
    /// The consensus model.
    Consensus,
    /// The model with which the peer begins this round for those that it serves, in the job's encoding.
    Start(Round),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) job: JobId,
    pub(crate) which: Which,
}

/// What comes before the parameters.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// The newest round that is in the model.
    pub(crate) round: Round,
    /// How many parameters.
    pub(crate) parameters: u64,
    /// Of this model on the test set, where the holder has evaluated it.
    pub(crate) accuracy: Option<Ppm>,
    /// BLAKE3 of the parameters.
    pub(crate) hash: [u8; 32],
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Model(Header),
    Declined(Decline),
    /// Encoded bytes follow, with this BLAKE3 hash.
    Start([u8; 32]),
}

/// Why a peer has no model to give.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Decline {
    #[error("the peer takes no part in the job")]
    NotInJob,
    #[error("the peer does not have that model")]
    NotHere,
    #[error("the peer serves as many models as it can")]
    Busy,
    #[error("the round is over at the peer")]
    RoundOver,
}

/// A model that can be handed out, shared and not copied.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) round: Round,
    pub(crate) accuracy: Option<Ppm>,
    pub(crate) flat: Arc<Vec<f32>>,
}

/// Reads what a peer asks for.
pub(crate) async fn asked(channel: &mut Channel, patience: Duration) -> Result<Ask, FetchError> {
    let frame = tokio::time::timeout(patience, channel.receive())
        .await
        .map_err(|_| FetchError::Late)??;
    Ok(lapwing_net::decode(&frame.ok_or(FetchError::Silent)?)?)
}

/// Answers with a model.
pub(crate) async fn give(channel: Channel, held: Held) -> Result<(), FetchError> {
    let bytes = Bytes::from(to_bytes(&held.flat));
    let header = Header {
        round: held.round,
        parameters: held.flat.len() as u64,
        accuracy: held.accuracy,
        hash: *blake3::hash(&bytes).as_bytes(),
    };
    let (mut sender, _receiver) = channel.split();
    sender.send(&lapwing_net::encode(&Answer::Model(header))).await?;
    payload::send(&mut sender, bytes).await?;
    sender.finish().await?;
    Ok(())
}

/// Answers with the model with which a round begins.
pub(crate) async fn give_start(channel: Channel, start: Bytes) -> Result<(), FetchError> {
    let (mut sender, _receiver) = channel.split();
    let answer = Answer::Start(*blake3::hash(&start).as_bytes());
    sender.send(&lapwing_net::encode(&answer)).await?;
    payload::send(&mut sender, start).await?;
    sender.finish().await?;
    Ok(())
}

/// Answers that there is none.
pub(crate) async fn decline(mut channel: Channel, reason: Decline) -> Result<(), FetchError> {
    channel
        .send(&lapwing_net::encode(&Answer::Declined(reason)))
        .await?;
    channel.finish().await?;
    Ok(())
}

/// A model that came from a peer, finite and of the right size.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) header: Header,
    pub(crate) flat: Vec<f32>,
    pub(crate) bytes: u64,
}

/// Fetches a model of `parameters` parameters from a peer, within `patience` in all.
pub(crate) async fn fetch(
    network: &Network,
    peer: PeerId,
    ask: Ask,
    parameters: usize,
    patience: Duration,
) -> Result<Fetched, FetchError> {
    tokio::time::timeout(
        patience,
        fetch_patiently(network, peer, ask, parameters, patience),
    )
    .await
    .map_err(|_| FetchError::Late)?
}

/// Fetches the model with which a peer begins a round, `bytes` long, within `patience` in all.
pub(crate) async fn fetch_start(
    network: &Network,
    peer: PeerId,
    job: JobId,
    round: Round,
    bytes: usize,
    patience: Duration,
) -> Result<Vec<u8>, FetchError> {
    let ask = Ask {
        job,
        which: Which::Start(round),
    };
    let fetched = async {
        let (answer, channel) = ask_for(network, peer, ask, patience).await?;
        let hash = match answer {
            Answer::Start(hash) => hash,
            Answer::Declined(reason) => return Err(FetchError::Declined(reason)),
            Answer::Model(_) => return Err(FetchError::Unasked),
        };
        let (_sender, mut receiver) = channel.split();
        Ok(payload::receive(&mut receiver, bytes, &hash).await?.bytes)
    };
    tokio::time::timeout(patience, fetched)
        .await
        .map_err(|_| FetchError::Late)?
}

async fn ask_for(
    network: &Network,
    peer: PeerId,
    ask: Ask,
    patience: Duration,
) -> Result<(Answer, Channel), FetchError> {
    let mut channel = network.open(peer, MODEL, patience.min(OPEN_PATIENCE)).await?;
    channel.send(&lapwing_net::encode(&ask)).await?;
    channel.finish().await?;
    let frame = channel.receive().await?.ok_or(FetchError::Silent)?;
    Ok((lapwing_net::decode(&frame)?, channel))
}

async fn fetch_patiently(
    network: &Network,
    peer: PeerId,
    ask: Ask,
    parameters: usize,
    patience: Duration,
) -> Result<Fetched, FetchError> {
    let (answer, channel) = ask_for(network, peer, ask, patience).await?;
    let header = match answer {
        Answer::Model(header) => header,
        Answer::Declined(reason) => return Err(FetchError::Declined(reason)),
        Answer::Start(_) => return Err(FetchError::Unasked),
    };
    if header.parameters != parameters as u64 {
        return Err(FetchError::AnotherModel {
            theirs: header.parameters,
            ours: parameters,
        });
    }
    let (_sender, mut receiver) = channel.split();
    let received = payload::receive(&mut receiver, parameters * size_of::<f32>(), &header.hash).await?;
    let flat = from_bytes(&received.bytes);
    if !flat.iter().all(|value| value.is_finite()) {
        return Err(FetchError::NotFinite);
    }
    Ok(Fetched {
        header,
        flat,
        bytes: received.bytes.len() as u64,
    })
}

fn to_bytes(flat: &[f32]) -> Vec<u8> {
    flat.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The length is a multiple of four: it was asked for as such.
fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|chunk| f32::from_le_bytes(*chunk))
        .collect()
}

/// Why a model could not be had from a peer; another peer may have it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the peer is not reachable")]
    Unreachable(#[from] OpenError),
    #[error("the channel to the peer failed")]
    Channel(#[from] ChannelError),
    #[error("the peer closed the channel without a word")]
    Silent,
    #[error("the peer did not answer in time")]
    Late,
    #[error("{0}")]
    Declined(Decline),
    #[error("the peer answers what was not asked")]
    Unasked,
    #[error("the peer sent something that cannot be read")]
    Unreadable(#[from] DecodeError),
    #[error("the peer's model has {theirs} parameters, ours {ours}")]
    AnotherModel { theirs: u64, ours: usize },
    #[error("the peer's model has values that are not finite")]
    NotFinite,
    #[error("the model did not arrive whole")]
    Payload(#[from] PayloadError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_survive_the_wire_bit_by_bit() {
        let flat = vec![0.0, -0.0, 1.5, f32::MIN_POSITIVE, f32::MAX, -3.25e-7];
        let back = from_bytes(&to_bytes(&flat));
        assert_eq!(flat.len(), back.len());
        assert!(flat.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
