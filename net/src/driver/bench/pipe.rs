//! One stream in both directions, over a channel of ours, plain QUIC or plain TCP, so that all are measured alike.

use bytes::Bytes;
use quinn::{ReadExactError, RecvStream, SendStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{BenchError, failed};
use crate::driver::channel::{Channel, ReceiveHalf, SendHalf};

/// Both directions.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) out: Out,
    pub(super) inn: In,
}

impl Pipe {
    pub(super) fn quic((send, receive): (SendStream, RecvStream)) -> Self {
        Self {
            out: Out::Quic(send),
            inn: In::Quic(receive),
        }
    }

    pub(super) fn tcp(stream: TcpStream) -> Result<Self, BenchError> {
        stream.set_nodelay(true).map_err(failed("set up TCP"))?;
        let (read, write) = stream.into_split();
        Ok(Self {
            out: Out::Tcp(write),
            inn: In::Tcp(read, vec![0; READ_SIZE]),
        })
    }

    pub(super) fn channel(channel: Channel) -> Self {
        let (send, receive) = channel.split();
        Self {
            out: Out::Channel(send),
            inn: In::Channel(receive),
        }
    }
}

/// What plain TCP reads at once: as much as [`CHUNKS`] full packets of QUIC.
const READ_SIZE: usize = 64 << 10;

/// Packets that plain QUIC takes at once, as its own benchmark does.
const CHUNKS: usize = 32;

#[derive(Debug)]
pub(super) enum Out {
    Quic(SendStream),
    Tcp(OwnedWriteHalf),
    Channel(SendHalf),
}

impl Out {
    pub(super) async fn send(&mut self, message: &[u8]) -> Result<(), BenchError> {
        match self {
            Self::Quic(stream) => stream.write_all(message).await.map_err(failed("write to QUIC")),
            Self::Tcp(stream) => stream.write_all(message).await.map_err(failed("write to TCP")),
            Self::Channel(channel) => channel.send(message).await.map_err(failed("send")),
        }
    }

    /// Sends a block of bulk, without a copy where there is a way.
    pub(super) async fn send_block(&mut self, block: &Bytes) -> Result<(), BenchError> {
        match self {
            Self::Quic(stream) => stream
                .write_chunk(block.clone())
                .await
                .map_err(failed("write to QUIC")),
            Self::Channel(channel) => channel.send_bytes(block.clone()).await.map_err(failed("send")),
            Self::Tcp(_) => self.send(block).await,
        }
    }

    pub(super) async fn finish(&mut self) -> Result<(), BenchError> {
        match self {
            Self::Quic(stream) => stream.finish().map_err(failed("finish QUIC")),
            Self::Tcp(stream) => stream.shutdown().await.map_err(failed("finish TCP")),
            Self::Channel(channel) => channel.finish().await.map_err(failed("finish")),
        }
    }
}

#[derive(Debug)]
pub(super) enum In {
    Quic(RecvStream),
    Tcp(OwnedReadHalf, Vec<u8>),
    Channel(ReceiveHalf),
}

impl In {
    /// Takes a message of a length that both ends know; `None` at the end.
    pub(super) async fn take<const N: usize>(&mut self) -> Result<Option<[u8; N]>, BenchError> {
        let mut message = [0; N];
        match self {
            Self::Quic(stream) => match stream.read_exact(&mut message).await {
                Ok(()) => Ok(Some(message)),
                Err(ReadExactError::FinishedEarly(0)) => Ok(None),
                Err(error) => Err(failed("read from QUIC")(error)),
            },
            Self::Tcp(stream, _) => match stream.read_exact(&mut message).await {
                Ok(_) => Ok(Some(message)),
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
                Err(error) => Err(failed("read from TCP")(error)),
            },
            Self::Channel(channel) => match channel.receive().await.map_err(failed("receive"))? {
                Some(frame) => match frame[..].try_into() {
                    Ok(message) => Ok(Some(message)),
                    Err(_) => Err(failed("receive")("the other end is no benchmark of this version")),
                },
                None => Ok(None),
            },
        }
    }

    /// Takes what has arrived, and says how much; `None` at the end.
    pub(super) async fn drain(&mut self) -> Result<Option<u64>, BenchError> {
        let size = match self {
            Self::Quic(stream) => {
                let mut chunks = [const { Bytes::new() }; CHUNKS];
                let read = stream.read_chunks(&mut chunks).await;
                let read = read.map_err(failed("read from QUIC"))?;
                read.map(|read| chunks.iter().take(read).map(Bytes::len).sum())
            }
            Self::Tcp(stream, buffer) => {
                let read = stream.read(buffer).await.map_err(failed("read from TCP"))?;
                (read > 0).then_some(read)
            }
            Self::Channel(channel) => {
                let frame = channel.receive().await.map_err(failed("receive"))?;
                frame.map(|frame| frame.len())
            }
        };
        Ok(size.map(|size| size as u64))
    }
}
