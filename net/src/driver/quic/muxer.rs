//! libp2p's view of a QUIC connection: substreams for its own protocols. Class streams do not pass through here.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::StreamMuxer;
use libp2p::core::muxing::StreamMuxerEvent;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;

use super::address::to_multiaddr;
use super::priority::LIBP2P;
use crate::driver::usage::Place;

/// One connection. Dropping it closes the connection, and with it a session that shares it.
pub(crate) struct Muxer {
    connection: Connection,
    inbound: Inbound,
    outgoing: Option<BoxFuture<'static, Result<(SendStream, RecvStream), ConnectionError>>>,
    closing: Option<BoxFuture<'static, ConnectionError>>,
    remote: SocketAddr,
}

/// Where substreams that the peer opens come from.
enum Inbound {
    /// From the connection.
    Direct(Option<BoxFuture<'static, Result<(SendStream, RecvStream), ConnectionError>>>),
    /// From the session, which has taken its own out.
    Sorted(mpsc::Receiver<Box<Substream>>),
}

impl Muxer {
    /// Of a connection that speaks libp2p's protocols only.
    pub(crate) fn direct(connection: Connection) -> Self {
        Self::new(connection, Inbound::Direct(None))
    }

    /// Of a connection that it shares with a session.
    pub(crate) fn sorted(connection: Connection, substreams: mpsc::Receiver<Box<Substream>>) -> Self {
        Self::new(connection, Inbound::Sorted(substreams))
    }

    fn new(connection: Connection, inbound: Inbound) -> Self {
        Self {
            remote: connection.remote_address(),
            connection,
            inbound,
            outgoing: None,
            closing: None,
        }
    }

    fn ended(&self) -> ConnectionError {
        self.connection
            .close_reason()
            .unwrap_or(ConnectionError::LocallyClosed)
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), &[]);
    }
}

impl StreamMuxer for Muxer {
    type Substream = Substream;
    type Error = ConnectionError;

    fn poll_inbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        let this = self.get_mut();
        match &mut this.inbound {
            Inbound::Sorted(substreams) => {
                let next = ready!(substreams.poll_recv(cx));
                Poll::Ready(next.map(|substream| *substream).ok_or_else(|| this.ended()))
            }
            Inbound::Direct(incoming) => {
                let next = incoming.get_or_insert_with(|| {
                    let connection = this.connection.clone();
                    Box::pin(async move { connection.accept_bi().await })
                });
                let accepted = ready!(next.as_mut().poll(cx));
                *incoming = None;
                Poll::Ready(accepted.map(|(send, receive)| Substream::new(send, receive)))
            }
        }
    }

    fn poll_outbound(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        let this = self.get_mut();
        let next = this.outgoing.get_or_insert_with(|| {
            let connection = this.connection.clone();
            Box::pin(async move { connection.open_bi().await })
        });
        let opened = ready!(next.as_mut().poll(cx));
        this.outgoing = None;
        Poll::Ready(opened.map(|(send, receive)| Substream::new(send, receive)))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let this = self.get_mut();
        let closing = this.closing.get_or_insert_with(|| {
            this.connection.close(VarInt::from_u32(0), &[]);
            let connection = this.connection.clone();
            Box::pin(async move { connection.closed().await })
        });
        match ready!(closing.as_mut().poll(cx)) {
            ConnectionError::LocallyClosed => Poll::Ready(Ok(())),
            error => Poll::Ready(Err(error)),
        }
    }

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        // quinn tells nobody when a peer has moved, so this is looked at whenever the connection is.
        let this = self.get_mut();
        let remote = this.connection.remote_address();
        if remote == this.remote {
            return Poll::Pending;
        }
        this.remote = remote;
        Poll::Ready(Ok(StreamMuxerEvent::AddressChange(to_multiaddr(remote))))
    }
}

/// One bidirectional stream of libp2p's.
pub(crate) struct Substream {
    send: SendStream,
    receive: RecvStream,
    /// A byte that was read to tell whose stream it is.
    first: Option<u8>,
    /// Where the peer has opened it, beside a session.
    _place: Option<Place>,
}

impl Substream {
    fn new(send: SendStream, receive: RecvStream) -> Self {
        // It fails only where the stream has ended, which the first use will tell.
        let _ = send.set_priority(LIBP2P);
        Self {
            send,
            receive,
            first: None,
            _place: None,
        }
    }

    /// One that a session has taken, and of which it has read the first byte.
    pub(super) fn sorted(send: SendStream, receive: RecvStream, first: u8, place: Place) -> Self {
        Self {
            first: Some(first),
            _place: Some(place),
            ..Self::new(send, receive)
        }
    }
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if let (Some(first), Some(space)) = (self.first, buf.first_mut()) {
            *space = first;
            self.first = None;
            return Poll::Ready(Ok(1));
        }
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buf)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It may be closed more than once; finished is finished.
        let _ = self.send.finish();
        Poll::Ready(Ok(()))
    }
}
