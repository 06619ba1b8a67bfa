//! One bidirectional stream of frames, of one kind, with one peer. Knows nothing of connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::acceptor::Seat;
use super::frames::{FrameReader, FrameWriter, Incoming, ReadError};
use super::limits::Limits;
use super::shared::Shared;
use super::stream::Opened;
use super::usage::Use;
use crate::{Counters, DecodeError, Kind, Refusal, TransferTiming};
use lapwing_base::{ByteSize, PeerId};

/// A stream of frames in both directions. Frames arrive whole, in order and once, or the channel is lost.
///
/// Dropping it ends both directions; the peer takes everything that was sent, and then sees the end.
#[derive(Debug)]
pub struct Channel {
    send: SendHalf,
    receive: ReceiveHalf,
}

/// What both halves know.
#[derive(Debug)]
struct Ends {
    peer: PeerId,
    kind: Kind,
    counters: Arc<Counters>,
    limits: Arc<Limits>,
    /// Holds the connection open.
    _usage: Use,
    /// Of an inbound channel: its place among those that are open.
    _seat: Option<Seat>,
}

/// After a send has failed, how long a refusal that explains it may take to be read: it was sent before the
/// stream was closed, so it is here or one packet behind.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(250);

impl Channel {
    /// Opens the frames of a stream that this node has opened, beginning with the hello.
    pub(crate) async fn outbound(
        peer: PeerId,
        kind: Kind,
        opened: Opened,
        hello: &[u8],
        shared: &Shared,
    ) -> io::Result<Self> {
        let (reader, writer) = opened.stream.split();
        let mut writer = FrameWriter::new(writer);
        writer.write(hello).await?;
        Ok(Self::new(
            peer,
            kind,
            FrameReader::new(reader),
            writer,
            opened.usage,
            None,
            shared,
        ))
    }

    /// A channel over a stream whose hello has been exchanged.
    pub(crate) fn new(
        peer: PeerId,
        kind: Kind,
        mut reader: FrameReader,
        writer: FrameWriter,
        usage: Use,
        seat: Option<Seat>,
        shared: &Shared,
    ) -> Self {
        reader.limit(Arc::clone(&shared.limits), peer, kind.class);
        let ends = Arc::new(Ends {
            peer,
            kind,
            counters: shared.counters(peer),
            limits: Arc::clone(&shared.limits),
            _usage: usage,
            _seat: seat,
        });
        Self {
            send: SendHalf {
                writer,
                ends: Arc::clone(&ends),
                state: State::Open,
            },
            receive: ReceiveHalf { reader, ends },
        }
    }

    /// The other end.
    pub fn peer(&self) -> PeerId {
        self.send.ends.peer
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        self.send.ends.kind
    }

    /// Sends one frame: returns once the transport has taken all of it, which says nothing of the peer.
    ///
    /// # Errors
    /// [`ChannelError::TooLong`] when the frame is longer than the kind allows: nothing was sent and the channel
    /// goes on. Any other error ends it; where the peer has refused the channel, the error says why.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), ChannelError> {
        let sent = self.send.send(frame).await;
        self.explain(sent).await
    }

    /// As [`Channel::send`], without a copy of the frame where the transport and the limits allow it: for bulk.
    ///
    /// # Errors
    /// Those of [`Channel::send`].
    pub async fn send_bytes(&mut self, frame: Bytes) -> Result<(), ChannelError> {
        let sent = self.send.send_bytes(frame).await;
        self.explain(sent).await
    }

    /// A refusal says more than that the channel is lost.
    async fn explain(&mut self, sent: Result<(), ChannelError>) -> Result<(), ChannelError> {
        match sent {
            Err(lost @ ChannelError::Lost { .. }) => {
                match tokio::time::timeout(REFUSAL_PATIENCE, self.receive.receive()).await {
                    Ok(Err(refused @ ChannelError::Refused { .. })) => Err(refused),
                    _ => Err(lost),
                }
            }
            result => result,
        }
    }

    /// The next frame; `None` when the peer has finished. May be cancelled without losing anything.
    ///
    /// # Errors
    /// [`ChannelError::Refused`] when the peer did not take the channel. Any error ends the channel.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ChannelError> {
        let received = self.receive.receive().await;
        if let Err(ChannelError::TooLong { size, max, .. }) = received {
            // The peer may have ended its side already and then does not need to know.
            let _ = self.send.writer.refuse(Refusal::TooLong { size, max }).await;
            self.send.state = State::Finished;
        }
        received
    }

    /// Says that no frame will follow; the other direction goes on.
    ///
    /// # Errors
    /// When the channel is lost.
    pub async fn finish(&mut self) -> Result<(), ChannelError> {
        self.send.finish().await
    }

    /// Both directions on their own, for use at the same time.
    pub fn split(self) -> (SendHalf, ReceiveHalf) {
        (self.send, self.receive)
    }
}

/// The sending direction of a [`Channel`].
#[derive(Debug)]
pub struct SendHalf {
    writer: FrameWriter,
    ends: Arc<Ends>,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    /// A frame was begun and not ended: its send failed or was cancelled.
    Broken,
    Finished,
}

impl SendHalf {
    /// The other end.
    pub fn peer(&self) -> PeerId {
        self.ends.peer
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        self.ends.kind
    }

    /// Sends one frame: returns once the transport has taken all of it, which says nothing of the peer.
    ///
    /// When it is cancelled, the channel is lost.
    ///
    /// # Errors
    /// [`ChannelError::TooLong`] when the frame is longer than the kind allows: nothing was sent and the channel
    /// goes on. Any other error ends it.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), ChannelError> {
        self.begin(frame.len())?;
        let (peer, class) = (self.ends.peer, self.ends.kind.class);
        let limits = &self.ends.limits;
        let written = if limits.holds_up(&peer, class) {
            self.writer.write_within(frame, limits, &peer, class).await
        } else {
            limits.send(&peer, class, frame.len()).await;
            self.writer.write(frame).await
        };
        self.end(frame.len(), written)
    }

    /// As [`SendHalf::send`], without a copy of the frame where the transport and the limits allow it: for bulk.
    ///
    /// # Errors
    /// Those of [`SendHalf::send`].
    pub async fn send_bytes(&mut self, frame: Bytes) -> Result<(), ChannelError> {
        let (peer, class) = (self.ends.peer, self.ends.kind.class);
        if self.ends.limits.holds_up(&peer, class) {
            return self.send(&frame).await;
        }
        let size = frame.len();
        self.begin(size)?;
        self.ends.limits.send(&peer, class, size).await;
        let written = self.writer.write_bytes(frame).await;
        self.end(size, written)
    }

    fn begin(&mut self, size: usize) -> Result<(), ChannelError> {
        let Ends { peer, kind, .. } = *self.ends;
        let (size, max) = (ByteSize(size as u64), kind.frame_max);
        if size > max {
            return Err(ChannelError::TooLong {
                peer,
                kind,
                size,
                max,
            });
        }
        match self.state {
            State::Open => {
                self.state = State::Broken;
                Ok(())
            }
            State::Broken => Err(self.lost(io::Error::other("an earlier frame was not sent whole"))),
            State::Finished => Err(ChannelError::Finished { peer, kind }),
        }
    }

    fn end(&mut self, size: usize, written: io::Result<()>) -> Result<(), ChannelError> {
        written.map_err(|error| self.lost(error))?;
        self.state = State::Open;
        self.ends.counters.count_sent(self.ends.kind.class, size);
        Ok(())
    }

    /// Says that no frame will follow.
    ///
    /// # Errors
    /// When the channel is lost.
    pub async fn finish(&mut self) -> Result<(), ChannelError> {
        if self.state == State::Finished {
            return Ok(());
        }
        self.state = State::Finished;
        self.writer.close().await.map_err(|error| self.lost(error))
    }

    fn lost(&self, source: io::Error) -> ChannelError {
        ChannelError::Lost {
            peer: self.ends.peer,
            kind: self.ends.kind,
            source,
        }
    }
}

/// The receiving direction of a [`Channel`].
#[derive(Debug)]
pub struct ReceiveHalf {
    reader: FrameReader,
    ends: Arc<Ends>,
}

impl ReceiveHalf {
    /// The other end.
    pub fn peer(&self) -> PeerId {
        self.ends.peer
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        self.ends.kind
    }

    /// Times what arrives from now on, for [`Self::timing`].
    pub fn measure(&mut self) {
        self.reader.measure();
    }

    /// How fast it has arrived since then; `None` of too little, or where nothing was to be timed.
    pub fn timing(&self) -> Option<TransferTiming> {
        self.reader.timing()
    }

    /// The next frame; `None` when the peer has finished. May be cancelled without losing anything.
    ///
    /// # Errors
    /// [`ChannelError::Refused`] when the peer did not take the channel. Any error ends the channel.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ChannelError> {
        let (peer, kind) = (self.ends.peer, self.ends.kind);
        let lost = |source| ChannelError::Lost { peer, kind, source };
        match self.reader.next(kind.frame_max).await {
            Ok(Some(Incoming::Frame(frame))) => {
                self.ends.counters.count_received(kind.class, frame.len());
                Ok(Some(frame))
            }
            Ok(Some(Incoming::Refusal(refusal))) => Err(ChannelError::Refused { peer, kind, refusal }),
            Ok(None) => Ok(None),
            Err(ReadError::TooLong { size }) => {
                let max = kind.frame_max;
                Err(ChannelError::TooLong {
                    peer,
                    kind,
                    size,
                    max,
                })
            }
            Err(ReadError::Truncated) => Err(lost(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it ended within a frame",
            ))),
            Err(ReadError::Malformed(source)) => Err(ChannelError::Malformed { peer, kind, source }),
            Err(ReadError::Io(error)) => Err(lost(error)),
        }
    }
}

/// A channel has no more to give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The peer did not take it, and says why.
    #[error("peer {peer} refused {kind}: {refusal}")]
    Refused {
        /// Who.
        peer: PeerId,
        /// What was asked for.
        kind: Kind,
        /// Why, and what to do.
        refusal: Refusal,
    },
    /// A frame, ours or the peer's, is longer than the kind allows.
    #[error("a {kind} frame of {size} with peer {peer} is longer than the {max} that are allowed")]
    TooLong {
        /// The other end.
        peer: PeerId,
        /// The channel's kind.
        kind: Kind,
        /// How long it is.
        size: ByteSize,
        /// How long it may be.
        max: ByteSize,
    },
    /// The peer wrote something that is not a frame.
    #[error("peer {peer} wrote something on {kind} that is not a frame")]
    Malformed {
        /// The other end.
        peer: PeerId,
        /// The channel's kind.
        kind: Kind,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The caller had finished this direction before.
    #[error("the {kind} channel to peer {peer} was finished before")]
    Finished {
        /// The other end.
        peer: PeerId,
        /// The channel's kind.
        kind: Kind,
    },
    /// The connection or the peer is gone, or the peer has dropped the channel.
    #[error("the {kind} channel with peer {peer} was lost")]
    Lost {
        /// The other end.
        peer: PeerId,
        /// The channel's kind.
        kind: Kind,
        /// What the transport says.
        source: io::Error,
    },
}

impl ChannelError {
    /// The peer's refusal, when that is what it is.
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            Self::TooLong { .. } | Self::Malformed { .. } | Self::Finished { .. } | Self::Lost { .. } => None,
        }
    }
}
