//! A libp2p stream that is never touched again once using it has failed.
//!
//! A stream whose protocol was proposed without waiting for the answer is negotiated by its first reads, and panics
//! when it is used after that negotiation has failed (multistream-select 0.14, `Negotiated::poll`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};
use libp2p::Stream;

#[derive(Debug)]
pub(crate) struct Fused {
    inner: Stream,
    failed: Option<io::ErrorKind>,
}

impl Fused {
    pub(crate) const fn new(inner: Stream) -> Self {
        Self { inner, failed: None }
    }

    fn guarded<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Some(kind) = self.failed {
            return Poll::Ready(Err(kind.into()));
        }
        let polled = poll(Pin::new(&mut self.inner));
        if let Poll::Ready(Err(error)) = &polled {
            self.failed = Some(error.kind());
        }
        polled
    }
}

impl AsyncRead for Fused {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.guarded(|inner| inner.poll_read(cx, buf))
    }
}

impl AsyncWrite for Fused {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.guarded(|inner| inner.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guarded(|inner| inner.poll_flush(cx))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guarded(|inner| inner.poll_close(cx))
    }
}
