//! A WebSocket as a stream of bytes. Keeps no boundaries of messages, and holds little back.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures::{AsyncRead, AsyncWrite, Sink as _, Stream as _};
use tokio::io::{AsyncRead as TokioRead, AsyncWrite as TokioWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

/// Sent in one frame at most: what a lower class puts before a higher one here, 7 ms at 20 Mbit/s.
const SENT_FRAME_MAX: usize = 16 * 1024;

/// Taken in one frame or message at most. Others put a noise message, up to 64 KiB, into each, and some put several.
pub(crate) const RECEIVED_FRAME_MAX: usize = 128 * 1024;

/// Read at once. A thousand idle connections of a relay have 8 MB of these.
const READ_BUFFER: usize = 8 * 1024;

/// A WebSocket, as everything above wants it.
pub(crate) struct ByteStream<S, G> {
    socket: WebSocketStream<S>,
    /// Has arrived and is not read yet.
    received: Bytes,
    closing: Closing,
    /// Is given back with the stream.
    _guard: G,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Closing {
    /// Bytes may be sent.
    No,
    /// The close frame is out; the stream below is still open.
    Said,
}

impl<S, G> fmt::Debug for ByteStream<S, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStream")
            .field("received", &self.received.len())
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}

impl<S: TokioRead + TokioWrite + Unpin, G> ByteStream<S, G> {
    /// Of a connection whose handshake is done, and of what came behind the handshake.
    pub(crate) async fn new(stream: S, rest: Vec<u8>, role: Role, guard: G) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            // Nothing waits for company.
            .write_buffer_size(0)
            // One frame of ours with its header, and the answers to pings.
            .max_write_buffer_size(2 * SENT_FRAME_MAX)
            .max_frame_size(Some(RECEIVED_FRAME_MAX))
            .max_message_size(Some(RECEIVED_FRAME_MAX));
        Self {
            socket: WebSocketStream::from_partially_read(stream, rest, role, Some(config)).await,
            received: Bytes::new(),
            closing: Closing::No,
            _guard: guard,
        }
    }
}

impl<S: TokioRead + TokioWrite + Unpin, G: Unpin> AsyncRead for ByteStream<S, G> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        while self.received.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.received = bytes,
                // Answered below us.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => (),
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    let error = "the peer sent text";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(0)),
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let size = self.received.len().min(buf.len());
        self.received.copy_to_slice(&mut buf[..size]);
        Poll::Ready(Ok(size))
    }
}

impl<S: TokioRead + TokioWrite + Unpin, G: Unpin> AsyncWrite for ByteStream<S, G> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.closing != Closing::No {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // The frame before must be out: there is at most one in here.
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io_error)?;
        let size = buf.len().min(SENT_FRAME_MAX);
        let frame = Message::Binary(Bytes::copy_from_slice(&buf[..size]));
        Pin::new(&mut self.socket).start_send(frame).map_err(io_error)?;
        Poll::Ready(Ok(size))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io_error)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing == Closing::No {
            // A peer that is gone already needs no close frame.
            let _ = ready!(Pin::new(&mut self.socket).poll_close(cx));
            self.closing = Closing::Said;
        }
        Pin::new(self.socket.get_mut()).poll_shutdown(cx)
    }
}

fn io_error(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
            io::ErrorKind::BrokenPipe.into()
        }
        error @ tungstenite::Error::Capacity(_) => io::Error::new(io::ErrorKind::InvalidData, error),
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            io::ErrorKind::ConnectionReset.into()
        }
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn bytes_arrive_in_order_whatever_their_grouping() {
        let (mut a, mut b) = pair().await;
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();
        let send = async {
            a.write_all(&sent).await.unwrap();
            a.close().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, read) = futures::join!(send, b.read_to_end(&mut received));
        read.unwrap();
        assert!(received == expected);
    }

    #[tokio::test]
    async fn an_oversized_frame_is_refused_before_it_is_taken_in() {
        let (raw, ours) = tokio::io::duplex(1024);
        let mut ours = ByteStream::new(ours, Vec::new(), Role::Client, ()).await;
        let mut raw = raw;
        // Binary, final, 2^40 bytes to come.
        let header = [&[0x82, 127][..], &(1_u64 << 40).to_be_bytes()].concat();
        raw.write_all(&header).await.unwrap();
        let error = ours.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_message_in_endless_fragments_is_refused() {
        let (raw, ours) = tokio::io::duplex(1024);
        let mut ours = ByteStream::new(ours, Vec::new(), Role::Client, ()).await;
        let mut raw = raw;
        let send = async {
            let mut opcode = 0x02;
            // Until the other side has had enough.
            loop {
                let mut frame = vec![opcode, 126];
                frame.extend(16_384_u16.to_be_bytes());
                frame.resize(4 + 16_384, 0);
                if raw.write_all(&frame).await.is_err() {
                    break;
                }
                opcode = 0x00;
            }
        };
        let receive = async {
            let error = ours.read(&mut [0; 16]).await.unwrap_err();
            drop(ours);
            error
        };
        let ((), error) = futures::join!(send, receive);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn text_is_refused() {
        let (mut raw, ours) = tokio::io::duplex(1024);
        let mut ours = ByteStream::new(ours, Vec::new(), Role::Client, ()).await;
        raw.write_all(&[0x81, 2, b'h', b'i']).await.unwrap();
        let error = ours.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_sent_little() {
        const PIPE: usize = 1024;
        let (_raw, ours) = tokio::io::duplex(PIPE);
        let mut ours = ByteStream::new(ours, Vec::new(), Role::Server, ()).await;
        let mut taken = 0;
        loop {
            let chunk = [0; SENT_FRAME_MAX];
            match futures::poll!(ours.write(&chunk)) {
                Poll::Ready(size) => taken += size.unwrap(),
                Poll::Pending => break,
            }
        }
        assert!(taken <= SENT_FRAME_MAX, "{taken} bytes are held back");
    }

    #[tokio::test]
    async fn a_vanished_peer_is_an_error_and_not_an_end() {
        let (mut a, b) = pair().await;
        drop(b);
        let error = a.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    type Pipe = ByteStream<tokio::io::DuplexStream, ()>;

    async fn pair() -> (Pipe, Pipe) {
        let (a, b) = tokio::io::duplex(4096);
        let a = ByteStream::new(a, Vec::new(), Role::Client, ());
        let b = ByteStream::new(b, Vec::new(), Role::Server, ());
        futures::join!(a, b)
    }
}
