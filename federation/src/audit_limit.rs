//! Decides which events get a line in the audit log, so that nobody who comes again and again turns it over. Writes nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lapwing_base::PeerId;

use crate::AuditEvent;

/// What was written lately, and of whom.
///
/// That a peer was let in or refused is written where it was not so before, and else once an hour. Of any one peer there are
/// ten lines at once and then one a minute, and of all refusals together a thousand and then
/// one every ten seconds: two MiB a day, of 32 that are kept. How many were left out the next line says.
#[derive(Debug)]
pub struct AuditLimit {
    /// By peer; `None` is this node's own edge. At most [`AuditLimit::PEERS_MAX`].
    peers: BTreeMap<Option<PeerId>, Record>,
    refusals: Budget,
    omitted: u64,
}

#[derive(Debug)]
struct Record {
    /// Whether it was let in, as it was written last.
    verdict: Option<(AuditEvent, Instant)>,
    lines: Budget,
    seen_at: Instant,
}

impl AuditLimit {
    /// Lines of one peer at once: as many changes as somebody makes who tries to get it right.
    const OF_ONE: u32 = 10;

    /// Refusals at once: as many homes as come to a main with the wrong token.
    const OF_ALL: u32 = 1_000;

    /// Peers of which something is known: a thousand homes, and some strangers.
    const PEERS_MAX: usize = 4_096;

    /// After which what is still so is written again.
    const AGAIN: Duration = Duration::from_secs(3_600);

    /// Nothing was written yet.
    pub fn new(now: Instant) -> Self {
        Self {
            peers: BTreeMap::new(),
            refusals: Budget::new(Self::OF_ALL, Duration::from_secs(10), now),
            omitted: 0,
        }
    }

    /// Whether an event is to be written, and how many were not since the last that was.
    pub fn admit(&mut self, event: &AuditEvent, now: Instant) -> Option<u64> {
        let (peer, is_verdict) = match event {
            AuditEvent::Admitted { peer, .. } | AuditEvent::Refused { peer, .. } => (Some(*peer), true),
            AuditEvent::NameTaken { peer, .. } => (Some(*peer), false),
            AuditEvent::CallRefused { from, .. } => (*from, false),
            AuditEvent::Omitted { .. } => return Some(0),
        };
        let is_refusal = !matches!(event, AuditEvent::Admitted { .. });
        if self.peers.len() >= Self::PEERS_MAX && !self.peers.contains_key(&peer) {
            self.peers.retain(|_, record| now < record.seen_at + Self::AGAIN);
        }
        // Of whoever finds no place the budget of all is the only bound.
        let has_place = self.peers.len() < Self::PEERS_MAX || self.peers.contains_key(&peer);
        let mut record = has_place.then(|| {
            self.peers.entry(peer).or_insert_with(|| Record {
                verdict: None,
                lines: Budget::new(Self::OF_ONE, Duration::from_secs(60), now),
                seen_at: now,
            })
        });
        let mut has_line = true;
        if let Some(record) = &mut record {
            record.seen_at = now;
            let is_known = |(known, at): &(AuditEvent, Instant)| known == event && now < *at + Self::AGAIN;
            if is_verdict && record.verdict.as_ref().is_some_and(is_known) {
                return None;
            }
            has_line = record.lines.take(now);
        }
        if !has_line || (is_refusal && !self.refusals.take(now)) {
            self.omitted = self.omitted.saturating_add(1);
            return None;
        }
        if let Some(record) = record.filter(|_| is_verdict) {
            record.verdict = Some((event.clone(), now));
        }
        Some(std::mem::take(&mut self.omitted))
    }
}

/// How many there may be: some at once, and then another after each interval.
#[derive(Debug)]
struct Budget {
    most: u32,
    interval: Duration,
    /// `left <= most`
    left: u32,
    /// Since when the next one is saved for.
    since: Instant,
}

impl Budget {
    fn new(most: u32, interval: Duration, now: Instant) -> Self {
        Self {
            most,
            interval,
            left: most,
            since: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.left < self.most && now >= self.since + self.interval {
            self.since += self.interval;
            self.left += 1;
        }
        if self.left == self.most {
            self.since = now;
        }
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::Role;

    fn refused(peer: PeerId, reason: &str) -> AuditEvent {
        AuditEvent::Refused {
            peer,
            reason: reason.to_owned(),
        }
    }

    fn admitted(peer: PeerId) -> AuditEvent {
        AuditEvent::Admitted {
            peer,
            role: Role::Home,
            cluster: None,
            is_foreign: false,
        }
    }

    #[test]
    fn what_is_still_so_is_written_once_an_hour_and_what_has_changed_at_once() {
        let (now, peer) = (origin(), PeerId::random());
        let mut limit = AuditLimit::new(now);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(limit.admit(&refused(peer, "token"), now), Some(0));
        for second in 1..100 {
            assert_eq!(limit.admit(&refused(peer, "token"), at(30 * second)), None);
        }
        assert_eq!(limit.admit(&refused(peer, "cluster"), at(3_000)), Some(0));
        assert_eq!(limit.admit(&admitted(peer), at(3_001)), Some(0));
        assert_eq!(limit.admit(&admitted(peer), at(3_002)), None);
        assert_eq!(limit.admit(&admitted(peer), at(3_001 + 3_600)), Some(0));
    }

    #[test]
    fn a_stranger_who_is_refused_for_ever_new_reasons_has_a_line_a_minute() {
        let (now, peer) = (origin(), PeerId::random());
        let mut limit = AuditLimit::new(now);
        let lines = (0..100).filter(|number| {
            let event = refused(peer, &number.to_string());
            limit.admit(&event, now).is_some()
        });
        assert_eq!(lines.count(), 10);
        assert_eq!(limit.admit(&refused(PeerId::random(), "token"), now), Some(90));
        let later = now + Duration::from_secs(60);
        assert_eq!(limit.admit(&refused(peer, "a minute later"), later), Some(0));
        assert_eq!(limit.admit(&refused(peer, "and again"), later), None);
    }

    #[test]
    fn strangers_who_are_another_each_time_share_what_is_written_and_what_is_known() {
        let now = origin();
        let mut limit = AuditLimit::new(now);
        let strangers = (0..2 * AuditLimit::PEERS_MAX).map(|_| PeerId::random());
        let lines = strangers.filter(|stranger| limit.admit(&refused(*stranger, "token"), now).is_some());
        assert_eq!(lines.count(), 1_000);
        assert_eq!(limit.peers.len(), AuditLimit::PEERS_MAX);
        let later = now + AuditLimit::AGAIN;
        assert!(limit.admit(&refused(PeerId::random(), "token"), later).is_some());
        assert_eq!(limit.peers.len(), 1, "what was an hour ago is forgotten");
    }

    #[test]
    fn homes_that_come_all_at_once_have_a_line_each() {
        let now = origin();
        let mut limit = AuditLimit::new(now);
        for _ in 0..2_000 {
            assert_eq!(limit.admit(&admitted(PeerId::random()), now), Some(0));
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test begins at some time")]
    fn origin() -> Instant {
        Instant::now()
    }
}
