//! Frames on a stream: a length, little endian, in four bytes, and as many bytes of payload.
//!
//! The length `u32::MAX` marks a refusal, which follows as a short frame and ends the stream. Reading never
//! allocates far ahead of what has arrived, and may be cancelled at any time without losing any of it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::io::AsyncWriteExt as _;

use super::limits::Limits;
use super::now;
use super::stream::{ReadSide, WriteSide};
use crate::{Bucket, DecodeError, Refusal, TransferClock, TransferTiming, decode, encode};
use lapwing_base::{ByteSize, Class, PeerId};

const HEADER: usize = size_of::<u32>();
const REFUSAL_MARK: u32 = u32::MAX;

/// Longest refusal in bytes: the largest holds a cluster id, and a later version may say a little more.
const REFUSAL_MAX: u32 = 128;

/// What is read at once: at least a small message with its successor, at most what keeps a fast link busy.
const READ_MIN: usize = 2 << 10;
const READ_MAX: usize = 128 << 10;

/// Writes frames.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    io: WriteSide,
}

impl FrameWriter {
    pub(crate) fn new(io: WriteSide) -> Self {
        Self { io }
    }

    /// Writes one frame without regard to limits.
    pub(crate) async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        if frame.len() <= Bucket::SLICE.as_usize() {
            // Small ones in one piece, so that they leave in one packet.
            let mut whole = Vec::with_capacity(HEADER + frame.len());
            whole.extend(header(frame.len())?);
            whole.extend(frame);
            self.io.write_bytes(whole.into()).await?;
        } else {
            self.io.write_all(&header(frame.len())?).await?;
            self.io.write_all(frame).await?;
        }
        self.io.flush().await
    }

    /// Writes one frame without regard to limits and without a copy of it.
    pub(crate) async fn write_bytes(&mut self, frame: Bytes) -> io::Result<()> {
        if frame.len() <= Bucket::SLICE.as_usize() {
            return self.write(&frame).await;
        }
        let header = Bytes::copy_from_slice(&header(frame.len())?);
        self.io.write_bytes(header).await?;
        self.io.write_bytes(frame).await?;
        self.io.flush().await
    }

    /// Writes one frame in slices, each when the limits let it go.
    pub(crate) async fn write_within(
        &mut self,
        frame: &[u8],
        limits: &Limits,
        peer: &PeerId,
        class: Class,
    ) -> io::Result<()> {
        self.io.write_all(&header(frame.len())?).await?;
        for slice in frame.chunks(Bucket::SLICE.as_usize()) {
            limits.send(peer, class, slice.len()).await;
            self.io.write_all(slice).await?;
        }
        self.io.flush().await
    }

    /// Writes a refusal and closes this direction.
    pub(crate) async fn refuse(&mut self, refusal: Refusal) -> io::Result<()> {
        let body = encode(&refusal);
        let mut whole = Vec::with_capacity(2 * HEADER + body.len());
        whole.extend(REFUSAL_MARK.to_le_bytes());
        whole.extend(header(body.len())?);
        whole.extend(body);
        self.io.write_all(&whole).await?;
        self.io.close().await
    }

    /// Closes this direction once everything written has been handed over.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.io.close().await
    }
}

fn header(length: usize) -> io::Result<[u8; HEADER]> {
    u32::try_from(length)
        .ok()
        .filter(|length| *length < REFUSAL_MARK)
        .map(u32::to_le_bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame is shorter than 4 GiB"))
}

/// Reads frames.
#[derive(Debug)]
pub(crate) struct FrameReader {
    io: ReadSide,
    /// What has been read and not taken.
    buffer: BytesMut,
    /// The node's limits and for what they are asked, once that is known.
    limits: Option<(Arc<Limits>, PeerId, Class)>,
    /// Nothing is read before this.
    resume_at: Option<Instant>,
    /// When what was read has arrived, where somebody wants to know.
    clock: Option<Box<TransferClock>>,
}

/// What has arrived.
#[derive(Debug)]
pub(crate) enum Incoming {
    Frame(Bytes),
    Refusal(Refusal),
}

/// Nothing more will arrive.
#[derive(Debug)]
pub(crate) enum ReadError {
    TooLong {
        size: ByteSize,
    },
    /// The stream ended within a frame.
    Truncated,
    Malformed(DecodeError),
    Io(io::Error),
}

impl FrameReader {
    pub(crate) fn new(io: ReadSide) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            limits: None,
            resume_at: None,
            clock: None,
        }
    }

    /// From now on what is read counts against the limit.
    pub(crate) fn limit(&mut self, limits: Arc<Limits>, peer: PeerId, class: Class) {
        self.limits = Some((limits, peer, class));
    }

    /// From now on what arrives is timed.
    pub(crate) fn measure(&mut self) {
        self.clock = Some(Box::default());
    }

    /// What that has shown so far.
    pub(crate) fn timing(&self) -> Option<TransferTiming> {
        self.clock.as_ref()?.timing()
    }

    /// The next frame of at most `max`, or `None` where the stream has ended between frames.
    pub(crate) async fn next(&mut self, max: ByteSize) -> Result<Option<Incoming>, ReadError> {
        loop {
            let needed = match self.parse(max)? {
                Parsed::Whole(incoming) => return Ok(Some(incoming)),
                Parsed::Needs(needed) => needed,
            };
            if let Some(at) = self.resume_at {
                tokio::time::sleep_until(at.into()).await;
                self.resume_at = None;
            }
            if self.fill(needed).await.map_err(ReadError::Io)? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(ReadError::Truncated)
                };
            }
        }
    }

    async fn fill(&mut self, needed: usize) -> io::Result<usize> {
        let wanted = (needed - self.buffer.len()).clamp(READ_MIN, READ_MAX);
        let read = self.io.read_into(&mut self.buffer, wanted).await?;
        if let Some(clock) = &mut self.clock {
            clock.record(ByteSize(read as u64), now());
        }
        if let Some((limits, peer, class)) = &self.limits {
            self.resume_at = limits.received(peer, *class, read);
        }
        Ok(read)
    }

    fn parse(&mut self, max: ByteSize) -> Result<Parsed, ReadError> {
        let Some(length) = self.word(0) else {
            return Ok(Parsed::Needs(HEADER));
        };
        if length == REFUSAL_MARK {
            return self.parse_refusal();
        }
        let size = ByteSize(length.into());
        if size > max {
            return Err(ReadError::TooLong { size });
        }
        let needed = HEADER + size.as_usize();
        if self.buffer.len() < needed {
            return Ok(Parsed::Needs(needed));
        }
        Ok(Parsed::Whole(Incoming::Frame(self.take(HEADER, needed))))
    }

    fn parse_refusal(&mut self) -> Result<Parsed, ReadError> {
        let Some(length) = self.word(HEADER) else {
            return Ok(Parsed::Needs(2 * HEADER));
        };
        if length > REFUSAL_MAX {
            return Err(ReadError::TooLong {
                size: ByteSize(length.into()),
            });
        }
        let needed = 2 * HEADER + ByteSize(length.into()).as_usize();
        if self.buffer.len() < needed {
            return Ok(Parsed::Needs(needed));
        }
        let body = self.take(2 * HEADER, needed);
        let refusal = decode(&body).map_err(ReadError::Malformed)?;
        Ok(Parsed::Whole(Incoming::Refusal(refusal)))
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.buffer.get(at..at + HEADER)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    fn take(&mut self, skip: usize, end: usize) -> Bytes {
        let mut whole = self.buffer.split_to(end);
        whole.advance(skip);
        whole.freeze()
    }
}

enum Parsed {
    Whole(Incoming),
    /// The buffer must hold this many bytes first.
    Needs(usize),
}
