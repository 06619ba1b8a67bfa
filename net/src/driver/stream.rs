//! One bidirectional stream of bytes, over whatever path there is. Knows nothing of frames.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt as _, FutureExt as _};
use quinn::{RecvStream, SendStream, StoppedError, VarInt};
use tokio::io::AsyncReadExt as _;

use super::lane::LaneStream;
use super::usage::Use;

/// A stream with a hold on what carries it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    pub(crate) usage: Use,
}

/// Both directions.
#[derive(Debug)]
pub(crate) struct Stream {
    read: ReadSide,
    write: WriteSide,
}

impl Stream {
    pub(crate) fn quic(send: SendStream, receive: RecvStream) -> Self {
        Self {
            read: ReadSide::Quic(receive),
            write: WriteSide::Quic(QuicWriter { send, stopped: None }),
        }
    }

    pub(crate) fn lane(stream: LaneStream) -> Self {
        let (read, write) = AsyncReadExt::split(stream);
        Self {
            read: ReadSide::Lane(read),
            write: WriteSide::Lane(write),
        }
    }

    pub(crate) fn split(self) -> (ReadSide, WriteSide) {
        (self.read, self.write)
    }
}

/// What arrives.
#[derive(Debug)]
pub(crate) enum ReadSide {
    Quic(RecvStream),
    Lane(ReadHalf<LaneStream>),
}

/// What leaves. Dropping it ends the direction; what was written before still arrives.
#[derive(Debug)]
pub(crate) enum WriteSide {
    Quic(QuicWriter),
    Lane(WriteHalf<LaneStream>),
}

/// A stream of QUIC, of which a writer that waits also hears that the peer has stopped reading.
///
/// quinn wakes such a writer, but looks at the connection's window before it looks at the stream: where the window is
/// full, of what this very stream has not sent, it would wait for ever.
pub(crate) struct QuicWriter {
    send: SendStream,
    /// Made only where a write has to wait.
    stopped: Option<Stopped>,
}

type Stopped = BoxFuture<'static, Result<Option<VarInt>, StoppedError>>;

impl QuicWriter {
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf) {
            self.stopped = None;
            return Poll::Ready(written);
        }
        self.poll_stopped(cx).map(Err)
    }

    /// Takes from the front of `bytes` until they are all written.
    fn poll_write_bytes(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<()>> {
        while !bytes.is_empty() {
            let chunks = std::slice::from_mut(bytes);
            // Between two polls it holds nothing, so a new one may be made each time.
            let Poll::Ready(written) = pin!(self.send.write_chunks(chunks)).poll(cx) else {
                return self.poll_stopped(cx).map(Err);
            };
            self.stopped = None;
            written?;
        }
        Poll::Ready(Ok(()))
    }

    /// Why a write that has to wait need not wait any longer.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let send = &self.send;
        let stopped = self.stopped.get_or_insert_with(|| send.stopped().boxed());
        match ready!(stopped.poll_unpin(cx)) {
            Ok(Some(code)) => {
                // What was not sent makes room for others.
                let _ = self.send.reset(code);
                Poll::Ready(io::ErrorKind::ConnectionReset.into())
            }
            Ok(None) => Poll::Ready(io::ErrorKind::BrokenPipe.into()),
            Err(error) => Poll::Ready(error.into()),
        }
    }
}

impl fmt::Debug for QuicWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("QuicWriter").field(&self.send).finish()
    }
}

impl ReadSide {
    /// Reads some of what has arrived, at most `wanted` bytes of it, to the end of `buffer`; none at the end of the
    /// stream. May be cancelled without losing anything.
    pub(crate) async fn read_into(&mut self, buffer: &mut BytesMut, wanted: usize) -> io::Result<usize> {
        match self {
            Self::Quic(stream) => {
                // Into space that nobody has cleared: it is overwritten at once.
                buffer.reserve(wanted);
                stream.read_buf(&mut buffer.limit(wanted)).await
            }
            Self::Lane(stream) => {
                poll_fn(|cx| {
                    let filled = buffer.len();
                    buffer.resize(filled + wanted, 0);
                    let read = Pin::new(&mut *stream).poll_read(cx, &mut buffer[filled..]);
                    let arrived = match &read {
                        Poll::Ready(Ok(size)) => *size,
                        Poll::Ready(Err(_)) | Poll::Pending => 0,
                    };
                    buffer.truncate(filled + arrived);
                    read
                })
                .await
            }
        }
    }
}

impl WriteSide {
    /// Writes all of it, where there is a way without a copy.
    pub(crate) async fn write_bytes(&mut self, mut bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Quic(stream) => poll_fn(|cx| stream.poll_write_bytes(cx, &mut bytes)).await,
            Self::Lane(stream) => stream.write_all(&bytes).await,
        }
    }
}

impl AsyncWrite for WriteSide {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Quic(stream) => stream.poll_write(cx, buf),
            Self::Lane(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => AsyncWrite::poll_flush(Pin::new(&mut stream.send), cx),
            Self::Lane(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => AsyncWrite::poll_close(Pin::new(&mut stream.send), cx),
            Self::Lane(stream) => Pin::new(stream).poll_close(cx),
        }
    }
}
