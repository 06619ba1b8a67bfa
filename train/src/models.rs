//! Whole models between peers: for an evaluation, for a node that must catch up, and for the consensus model
//! at the end of a job. The log never carries one.
//!
//! On the channel: the asker's [`Ask`]; the holder's [`Answer`]; after a header, the list of hashes of [`HashTree`] in
//! frames of at most 64 KiB, and the parameters as little endian `f32`, a frame for each chunk, from where the asker
//! said that it stopped. How long that takes in all nobody limits, since links are slow and models large: it ends when
//! nothing moves any more.

use crate::hash_tree::{CHUNK_BYTES, CHUNK_VALUES, HashTree, to_bytes};
use crate::incoming::{IncomingError, IncomingModel};
use crate::payload::{self, PayloadError};
use bytes::Bytes;
use lapwing_base::{ByteSize, Class, JobId, PeerId, Ppm, Round};
use lapwing_net::{Access, Channel, ChannelError, DecodeError, Kind, Network, OpenError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

/// A whole model.
pub(crate) const MODEL: Kind = Kind {
    class: Class::Model,
    name: "model",
    access: Access::Members,
    frame_max: ByteSize(CHUNK_BYTES as u64),
};

/// How long a peer may take to be reached: one that is not by then is asked again, or another one is.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// How long a chunk of 64 KiB may take: what moves slower than 20 kbit/s has stopped.
const CHUNK_PATIENCE: Duration = Duration::from_secs(30);

/// How often a peer that was lost on the way is asked again for the rest.
const RESUMES_MAX: usize = 4;

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
    /// What of it is here already.
    pub(crate) resume: Option<Resume>,
}

/// The beginning of a model, which the asker has.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resume {
    /// Of the whole model.
    pub(crate) hash: [u8; 32],
    /// Chunks from its start.
    pub(crate) chunks: u64,
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
    /// The first chunk that follows; those before it the asker has.
    pub(crate) from: u64,
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

/// Answers with a model, or with the rest of it.
pub(crate) async fn give(channel: Channel, held: Held, resume: Option<Resume>) -> Result<(), FetchError> {
    let flat = Arc::clone(&held.flat);
    // A large model takes longer to hash than anybody should hold up the runtime.
    let tree = tokio::task::spawn_blocking(move || HashTree::of(&flat))
        .await
        .map_err(|_| FetchError::Unhashed)?;
    let hash = tree.root();
    let known = resume.filter(|resume| resume.hash == hash);
    let chunks = held.flat.chunks(CHUNK_VALUES);
    let from = known.map_or(0, |resume| resume.chunks.min(chunks.len() as u64));
    let header = Header {
        round: held.round,
        parameters: held.flat.len() as u64,
        accuracy: held.accuracy,
        hash,
        from,
    };
    let (mut sender, _receiver) = channel.split();
    in_time(CHUNK_PATIENCE, async {
        sender.send(&lapwing_net::encode(&Answer::Model(header))).await?;
        Ok(payload::send(&mut sender, Bytes::from(tree.list())).await?)
    })
    .await?;
    // Each chunk becomes bytes only when it goes: a model is not copied as a whole to be given.
    for values in chunks.skip(from as usize) {
        let chunk = Bytes::from(to_bytes(values));
        in_time(CHUNK_PATIENCE, async { Ok(sender.send_bytes(chunk).await?) }).await?;
    }
    sender.finish().await?;
    Ok(())
}

/// Answers with the model with which a round begins.
pub(crate) async fn give_start(channel: Channel, start: Bytes) -> Result<(), FetchError> {
    let (mut sender, _receiver) = channel.split();
    let answer = Answer::Start(*blake3::hash(&start).as_bytes());
    sender.send(&lapwing_net::encode(&answer)).await?;
    for frame in payload::frames(start) {
        in_time(CHUNK_PATIENCE, async { Ok(sender.send_bytes(frame).await?) }).await?;
    }
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

/// Fetches what is missing of a model from a peer, asking it again for the rest where it was lost on the way.
/// `patience` is for its answer.
///
/// # Errors
/// As the peer or the way to it fails. What has arrived until then stays in `wanted`, for another peer.
pub(crate) async fn fetch(
    network: &Network,
    peer: PeerId,
    (job, which): (JobId, Which),
    wanted: &mut IncomingModel,
    patience: Duration,
) -> Result<(), FetchError> {
    let mut resumed = 0;
    loop {
        let before = wanted.arrived();
        match fetch_once(network, peer, (job, which), wanted, patience).await {
            Err(error) if error.is_of_the_way() && wanted.arrived() > before && resumed < RESUMES_MAX => {
                debug!(%peer, %error, arrived = wanted.arrived(), "a model stopped on its way; asking for the rest");
                resumed += 1;
            }
            ended => return ended,
        }
    }
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
        resume: None,
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

async fn fetch_once(
    network: &Network,
    peer: PeerId,
    (job, which): (JobId, Which),
    wanted: &mut IncomingModel,
    patience: Duration,
) -> Result<(), FetchError> {
    let resume = wanted.resume();
    let ask = Ask { job, which, resume };
    let (answer, channel) = in_time(patience, ask_for(network, peer, ask, patience)).await?;
    let header = match answer {
        Answer::Model(header) => header,
        Answer::Declined(reason) => return Err(FetchError::Declined(reason)),
        Answer::Start(_) => return Err(FetchError::Unasked),
    };
    wanted.check(&header)?;
    let (_sender, mut receiver) = channel.split();
    let list = in_time(CHUNK_PATIENCE, async {
        Ok(payload::receive_piece(&mut receiver, wanted.list_bytes()).await?)
    })
    .await?;
    wanted.begin(header, &list)?;
    while !wanted.is_whole() {
        let chunk = in_time(CHUNK_PATIENCE, async { Ok(receiver.receive().await?) }).await?;
        wanted.take(&chunk.ok_or(FetchError::Silent)?)?;
    }
    Ok(())
}

async fn in_time<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    tokio::time::timeout(patience, work)
        .await
        .map_err(|_| FetchError::Late)?
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
    #[error(transparent)]
    Refused(#[from] IncomingError),
    #[error("the model did not arrive whole")]
    Payload(#[from] PayloadError),
    #[error("the model could not be hashed before it was given")]
    Unhashed,
}

impl FetchError {
    /// Whether the peer may be asked again: the way to it failed, not what it said.
    const fn is_of_the_way(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_)
                | Self::Channel(_)
                | Self::Silent
                | Self::Late
                | Self::Payload(PayloadError::Channel(_))
        )
    }
}
