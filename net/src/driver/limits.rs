//! The node's own rates, as waiting. The arithmetic is [`Bucket`]'s.

use std::sync::{Mutex, PoisonError};

use super::now;
use crate::Bucket;
use lapwing_base::{Bandwidth, ByteSize, Class};
use std::time::Instant;

/// What all channels of a node share: one limit up, one down.
#[derive(Debug)]
pub(crate) struct Limits {
    upload: Limit,
    download: Limit,
}

#[derive(Debug)]
struct Limit(Option<Mutex<Bucket>>);

impl Limits {
    pub(crate) fn new(upload_max: Option<Bandwidth>, download_max: Option<Bandwidth>) -> Self {
        let limit = |rate: Option<Bandwidth>| Limit(rate.map(|rate| Mutex::new(Bucket::new(rate))));
        Self {
            upload: limit(upload_max),
            download: limit(download_max),
        }
    }

    /// Whether sends of this class are cut into slices that wait.
    pub(crate) fn holds_up(&self, class: Class) -> bool {
        self.upload.0.is_some() && waits(class)
    }

    /// Waits until this much of a class may be sent; the highest classes are charged and do not wait.
    pub(crate) async fn send(&self, class: Class, size: usize) {
        if let Some(at) = self.upload.take(class, size) {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// This much of a class has been read; says until when to read no more.
    pub(crate) fn received(&self, class: Class, size: usize) -> Option<Instant> {
        self.download.take(class, size)
    }
}

impl Limit {
    fn take(&self, class: Class, size: usize) -> Option<Instant> {
        let bucket = self.0.as_ref()?;
        let now = now();
        // A bucket is whole after every statement, so a panic elsewhere does not spoil it.
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let size = ByteSize(size as u64);
        if waits(class) {
            let at = bucket.reserve(size, now);
            (at > now).then_some(at)
        } else {
            bucket.charge(size, now);
            None
        }
    }
}

/// Bulk waits; what a cluster lives by does not.
const fn waits(class: Class) -> bool {
    match class {
        Class::Control | Class::Consensus | Class::Call => false,
        Class::Maintenance | Class::Model => true,
    }
}
