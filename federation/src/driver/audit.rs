//! Gives what is to be written down to whoever writes it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;
use tracing::warn;

use super::now;
use crate::{AuditEvent, AuditLimit};

/// The way to the audit log, where anybody reads it.
#[derive(Debug)]
pub(super) struct Audit {
    to: Option<mpsc::Sender<AuditEvent>>,
    /// Nothing else is locked while this is.
    limit: Mutex<AuditLimit>,
    is_behind: AtomicBool,
}

impl Audit {
    pub(super) fn new(to: Option<mpsc::Sender<AuditEvent>>) -> Self {
        Self {
            to,
            limit: Mutex::new(AuditLimit::new(now())),
            is_behind: AtomicBool::new(false),
        }
    }

    /// Writes something down, unless there was enough of it lately.
    pub(super) fn write(&self, event: impl FnOnce() -> AuditEvent) {
        let Some(to) = &self.to else { return };
        let event = event();
        let admitted = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.admit(&event, now())
        };
        let Some(count) = admitted else { return };
        if count > 0 {
            self.send(to, AuditEvent::Omitted { count });
        }
        self.send(to, event);
    }

    fn send(&self, to: &mpsc::Sender<AuditEvent>, event: AuditEvent) {
        let is_behind = to.try_send(event).is_err();
        // Told once: strangers who are refused could fill the log otherwise.
        if is_behind && !self.is_behind.swap(true, Ordering::Relaxed) {
            warn!("events are not written to the audit log, which is behind");
        } else if !is_behind {
            self.is_behind.store(false, Ordering::Relaxed);
        }
    }
}
