//! Many bytes over one channel: cut into frames on the way out, counted and checked on the way in.
//!
//! How long a payload may be is the receiver's knowledge (its own mask, its own layout), never the sender's
//! word, so that no peer decides how much memory another one uses.

use bytes::Bytes;
use lapwing_net::{ChannelError, ReceiveHalf, SendHalf, TransferTiming};

/// Payload of one frame: small enough that a frame of a higher class never waits long behind it.
pub(crate) const FRAME_BYTES: usize = 64 * 1024;

/// Sends a payload in frames of at most [`FRAME_BYTES`]. An empty payload sends nothing.
pub(crate) async fn send(channel: &mut SendHalf, payload: Bytes) -> Result<(), ChannelError> {
    for frame in frames(payload) {
        channel.send_bytes(frame).await?;
    }
    Ok(())
}

/// A payload as the frames in which it goes.
pub(crate) fn frames(mut payload: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let next = FRAME_BYTES.min(payload.len());
        (next > 0).then(|| payload.split_to(next))
    })
}

/// A payload that arrived whole.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Vec<u8>,
    /// How fast it came: what the sender's uplink allowed. `None` of too little.
    pub(crate) timing: Option<TransferTiming>,
}

/// Receives exactly `expected` bytes and checks their BLAKE3 hash.
///
/// # Errors
/// The channel's own error; or the peer sent more, less, or other bytes than it had announced.
pub(crate) async fn receive(
    channel: &mut ReceiveHalf,
    expected: usize,
    hash: &[u8; 32],
) -> Result<Received, PayloadError> {
    // Hashed frame by frame, while the next one is on its way and this one still in the cache.
    let mut hasher = blake3::Hasher::new();
    channel.measure();
    let received = gather(channel, expected, |frame| {
        hasher.update(frame);
    })
    .await?;
    if hasher.finalize().as_bytes() != hash {
        return Err(PayloadError::Damaged);
    }
    Ok(received)
}

/// Receives exactly `expected` bytes of which no hash was announced: the channel itself keeps them from damage.
///
/// # Errors
/// As for [`receive`].
pub(crate) async fn receive_piece(
    channel: &mut ReceiveHalf,
    expected: usize,
) -> Result<Vec<u8>, PayloadError> {
    Ok(gather(channel, expected, |_| ()).await?.bytes)
}

async fn gather(
    channel: &mut ReceiveHalf,
    expected: usize,
    mut note: impl FnMut(&[u8]),
) -> Result<Received, PayloadError> {
    let mut bytes = Vec::with_capacity(expected);
    while bytes.len() < expected {
        let frame = channel.receive().await?.ok_or(PayloadError::Short {
            got: bytes.len(),
            expected,
        })?;
        if frame.is_empty() || frame.len() > expected - bytes.len() {
            return Err(PayloadError::Long { expected });
        }
        note(&frame);
        bytes.extend_from_slice(&frame);
    }
    Ok(Received {
        bytes,
        timing: channel.timing(),
    })
}

/// Why a payload could not be received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PayloadError {
    /// The channel failed or was refused.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The peer stopped early.
    #[error("the peer sent {got} of {expected} bytes")]
    Short { got: usize, expected: usize },
    /// The peer sent an empty frame, or more than was agreed.
    #[error("the peer sent more than the {expected} bytes that were agreed")]
    Long { expected: usize },
    /// The bytes are not the announced ones.
    #[error("the bytes do not match the peer's checksum")]
    Damaged,
}
