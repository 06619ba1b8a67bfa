//! One channel of a lane as a stream of bytes. Knows nothing of frames.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};

use super::shared::Shared;
use crate::{ChannelId, ChannelRead, WriteError};
use lapwing_base::Class;

/// A stream of bytes both ways. What was written leaves by itself, in order of class: flushing waits for nothing.
///
/// Closing waits until everything written has been handed to the stream below, and the end with it; or until the peer
/// wants no more of it, which is no failure: what it has answered may say why. Dropping it ends both directions: the
/// peer takes everything that was written, then sees the end, and is told that nothing more will be read.
pub struct LaneStream {
    shared: Arc<Shared>,
    channel: ChannelId,
    class: Class,
}

impl LaneStream {
    pub(super) const fn new(shared: Arc<Shared>, channel: ChannelId, class: Class) -> Self {
        Self {
            shared,
            channel,
            class,
        }
    }

    /// Its class.
    pub const fn class(&self) -> Class {
        self.class
    }
}

impl AsyncRead for LaneStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let channel = self.channel;
        let (polled, owes) = self.shared.with(|state| {
            let polled = match state.mux.read(channel, buf) {
                ChannelRead::Bytes(bytes) => Poll::Ready(Ok(bytes)),
                ChannelRead::End => Poll::Ready(Ok(0)),
                ChannelRead::Broken => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                ChannelRead::Nothing => match &state.end {
                    Some(end) => Poll::Ready(Err(end.clone().into())),
                    None => {
                        state.wake_on_read(channel, cx);
                        Poll::Pending
                    }
                },
            };
            (polled, state.mux.owes_credit())
        });
        if owes {
            self.shared.to_send.notify_one();
        }
        polled
    }
}

impl AsyncWrite for LaneStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let channel = self.channel;
        let polled = self.shared.with(|state| {
            if let Some(end) = &state.end {
                return Poll::Ready(Err(end.clone().into()));
            }
            match state.mux.write(channel, buf) {
                Ok(0) => {
                    state.wake_on_write(channel, cx);
                    Poll::Pending
                }
                Ok(bytes) => Poll::Ready(Ok(bytes)),
                Err(error) => Poll::Ready(Err(refused(error))),
            }
        });
        if polled.is_ready() {
            self.shared.to_send.notify_one();
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.with(|state| match &state.end {
            Some(end) => Poll::Ready(Err(end.clone().into())),
            None => Poll::Ready(Ok(())),
        })
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let channel = self.channel;
        let polled = self.shared.with(|state| {
            state.mux.finish(channel);
            match state.mux.has_left(channel) {
                Ok(true) | Err(_) => Poll::Ready(Ok(())),
                Ok(false) => match &state.end {
                    Some(end) => Poll::Ready(Err(end.clone().into())),
                    None => {
                        state.wake_on_write(channel, cx);
                        Poll::Pending
                    }
                },
            }
        });
        self.shared.to_send.notify_one();
        polled
    }
}

fn refused(error: WriteError) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

impl Drop for LaneStream {
    fn drop(&mut self) {
        self.shared.with(|state| state.release(self.channel));
        self.shared.to_send.notify_one();
    }
}

impl fmt::Debug for LaneStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneStream")
            .field("channel", &self.channel)
            .field("class", &self.class)
            .finish_non_exhaustive()
    }
}
