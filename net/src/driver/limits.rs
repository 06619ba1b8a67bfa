//! The node's own rates, as waiting. The arithmetic is [`Limiter`]'s.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::now;
use super::shared::lock;
use crate::{Limiter, RateLimits};
use lapwing_base::{Bandwidth, ByteSize, Class, PeerId};
use std::time::Instant;

/// What all channels of a node share: what it sends, and what it receives.
#[derive(Debug)]
pub(crate) struct Limits {
    upload: Mutex<Limiter>,
    download: Mutex<Limiter>,
}

impl Limits {
    pub(crate) fn new(upload: RateLimits, download: RateLimits) -> Self {
        let [upload, download] = [upload, download].map(|limits| Mutex::new(Limiter::new(limits)));
        Self { upload, download }
    }

    /// Other limits for peers from now on, of what is sent and of what is received.
    pub(crate) fn limit_peers(
        &self,
        upload: BTreeMap<PeerId, Bandwidth>,
        download: BTreeMap<PeerId, Bandwidth>,
    ) {
        lock(&self.upload).limit_peers(upload);
        lock(&self.download).limit_peers(download);
    }

    /// What is kept to: of what is sent, and of what is received.
    pub(crate) fn get(&self) -> [RateLimits; 2] {
        [&self.upload, &self.download].map(|limiter| lock(limiter).limits().clone())
    }

    /// Whether sends of this class to a peer are cut into slices that wait.
    pub(crate) fn holds_up(&self, peer: &PeerId, class: Class) -> bool {
        lock(&self.upload).holds_up(peer, class)
    }

    /// Waits until this much of a class may be sent to a peer; what never waits is counted.
    pub(crate) async fn send(&self, peer: &PeerId, class: Class, size: usize) {
        let now = now();
        let at = lock(&self.upload).take(peer, class, ByteSize(size as u64), now);
        if at > now {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// This much of a class has been read from a peer; says until when to read no more.
    pub(crate) fn received(&self, peer: &PeerId, class: Class, size: usize) -> Option<Instant> {
        let now = now();
        let at = lock(&self.download).take(peer, class, ByteSize(size as u64), now);
        (at > now).then_some(at)
    }

    /// See [`Limiter::window`], of what is received.
    pub(crate) fn window(&self, peer: &PeerId, class: Class) -> Option<ByteSize> {
        lock(&self.download).window(peer, class)
    }

    /// See [`Limiter::bulk_window`], of what is received.
    pub(crate) fn bulk_window(&self, peer: Option<&PeerId>) -> Option<ByteSize> {
        lock(&self.download).bulk_window(peer)
    }

    /// See [`Limiter::stream_window`], of what is received.
    pub(crate) fn stream_window(&self) -> Option<ByteSize> {
        lock(&self.download).stream_window()
    }
}
