//! What the tasks and the streams of a lane share. Its lock is held for single steps only, and never across a
//! wait.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::OpenLaneStreamError;
use crate::driver::timer_now;
use crate::{ChannelId, LaneError, LaneEvent, Mux, Pace};
use lapwing_base::Class;

/// The runtime's clock, which tests can set.
pub(super) fn now() -> Instant {
    timer_now().into_std()
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// There is something to transmit.
    pub(super) to_send: Notify,
    /// Cancelled when the lane is over.
    pub(super) stop: CancellationToken,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) mux: Mux,
    wakers: HashMap<ChannelId, Wakers>,
    /// How closely the peer is watched while nothing is under way.
    pub(super) pace: Pace,
    /// Something makes it doubtful that the peer is still there, until whoever watches has asked.
    pub(super) suspected: bool,
    /// When anything arrived last, until whoever watches has seen it.
    pub(super) heard_at: Option<Instant>,
    pub(super) end: Option<LaneEnd>,
}

#[derive(Debug, Default)]
struct Wakers {
    read: Option<Waker>,
    write: Option<Waker>,
}

/// Why a lane is over.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaneEnd {
    /// This node has ended it.
    #[error("it was closed here")]
    Stopped,
    /// The peer has ended it.
    #[error("the peer closed it")]
    Closed,
    /// Nothing has arrived for too long, and pings were not answered.
    #[error("the peer is silent")]
    Silent,
    /// The peer does not keep to the rules: do not come back to it soon.
    #[error("the peer misbehaved: {0}")]
    Misbehaved(LaneError),
    /// What carried it failed.
    #[error("its stream failed: {0}")]
    Io(Arc<io::Error>),
}

impl From<LaneEnd> for io::Error {
    fn from(end: LaneEnd) -> Self {
        let kind = match &end {
            LaneEnd::Stopped => io::ErrorKind::NotConnected,
            LaneEnd::Closed => io::ErrorKind::UnexpectedEof,
            LaneEnd::Silent => io::ErrorKind::TimedOut,
            LaneEnd::Misbehaved(_) => io::ErrorKind::InvalidData,
            LaneEnd::Io(error) => error.kind(),
        };
        Self::new(kind, end)
    }
}

impl Shared {
    pub(super) fn new(mux: Mux, stop: CancellationToken) -> Self {
        Self {
            state: Mutex::new(State {
                mux,
                wakers: HashMap::new(),
                pace: Pace::LOOSE,
                suspected: false,
                heard_at: None,
                end: None,
            }),
            to_send: Notify::new(),
            stop,
        }
    }

    /// One step on the state.
    pub(super) fn with<T>(&self, step: impl FnOnce(&mut State) -> T) -> T {
        // The state is whole after every step, so a panic elsewhere does not spoil it.
        step(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn open(&self, class: Class) -> Result<ChannelId, OpenLaneStreamError> {
        let opened = self.with(|state| match &state.end {
            Some(end) => Err(OpenLaneStreamError::Over(end.clone())),
            None => Ok(state.mux.open(class)?),
        });
        self.to_send.notify_one();
        opened
    }

    /// The lane is over. The first reason counts.
    pub(super) fn end(&self, end: LaneEnd) {
        let wakers = self.with(|state| {
            state.end.get_or_insert(end);
            std::mem::take(&mut state.wakers)
        });
        self.stop.cancel();
        for waiting in wakers.into_values() {
            waiting
                .read
                .into_iter()
                .chain(waiting.write)
                .for_each(Waker::wake);
        }
    }

    pub(super) async fn ended(&self) -> LaneEnd {
        self.stop.cancelled().await;
        self.with(|state| state.end.clone()).unwrap_or(LaneEnd::Stopped)
    }
}

impl State {
    /// Whoever waits for this event, to be woken once the lock is free.
    pub(super) fn waiting_for(&mut self, event: LaneEvent) -> Option<Waker> {
        match event {
            LaneEvent::Opened(..) => None,
            LaneEvent::Readable(channel) => self.wakers.get_mut(&channel)?.read.take(),
            LaneEvent::Writable(channel) => self.wakers.get_mut(&channel)?.write.take(),
        }
    }

    pub(super) fn wake_on_read(&mut self, channel: ChannelId, cx: &Context<'_>) {
        self.wakers.entry(channel).or_default().read = Some(cx.waker().clone());
    }

    pub(super) fn wake_on_write(&mut self, channel: ChannelId, cx: &Context<'_>) {
        self.wakers.entry(channel).or_default().write = Some(cx.waker().clone());
    }

    pub(super) fn release(&mut self, channel: ChannelId) {
        self.wakers.remove(&channel);
        self.mux.release(channel);
    }
}
