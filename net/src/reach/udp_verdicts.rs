//! On which networks UDP passes, as far as it was seen: a network that blocks it is not waited for twice.

use crate::Udp;
use lapwing_base::PeerId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

/// Names the network that this machine is in: the driver draws it from what stays the same there (the gateway's
/// address, the local subnet), so that a café is recognised the next day.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NetworkPrint(pub u64);

/// What was seen on the networks that this node was in lately.
#[derive(Debug, Default)]
pub struct UdpVerdicts {
    networks: BTreeMap<NetworkPrint, Verdict>,
}

#[derive(Debug)]
struct Verdict {
    udp: Udp,
    /// When that is forgotten, unless it is confirmed before.
    expires_at: Instant,
    /// Mains that answered over the fallback only, since UDP last worked.
    silent: BTreeSet<PeerId>,
}

impl UdpVerdicts {
    /// QUIC works here.
    pub fn open(&mut self, network: NetworkPrint, now: Instant) {
        let verdict = self.verdict(network, now);
        verdict.udp = Udp::Open;
        verdict.silent.clear();
    }

    /// A main answers over the fallback and not over QUIC. Where UDP has worked before, one main is not enough: its
    /// own network may have changed.
    pub fn fallback_only(&mut self, network: NetworkPrint, main: PeerId, now: Instant) {
        let verdict = self.verdict(network, now);
        if verdict.silent.len() < SILENT_ENOUGH {
            verdict.silent.insert(main);
        }
        if verdict.udp != Udp::Open || verdict.silent.len() >= SILENT_ENOUGH {
            verdict.udp = Udp::Blocked;
        }
    }

    /// What is known of a network.
    pub fn udp(&self, network: NetworkPrint, now: Instant) -> Udp {
        match self.networks.get(&network) {
            Some(verdict) if now < verdict.expires_at => verdict.udp,
            _ => Udp::Unknown,
        }
    }

    /// What is known, as text that [`Self::from_text`] reads after a restart: one network a line. `today` is the
    /// present, by the clock on the wall.
    pub fn to_text(&self, now: Instant, today: SystemTime) -> String {
        let mut text = format!("{HEAD}\n");
        for (network, verdict) in &self.networks {
            let left = verdict.expires_at.saturating_duration_since(now);
            let udp = match verdict.udp {
                Udp::Open => OPEN,
                Udp::Blocked => BLOCKED,
                Udp::Unknown => continue,
            };
            if let Ok(expires_at) = (today + left).duration_since(SystemTime::UNIX_EPOCH)
                && !left.is_zero()
            {
                let line = format!("{:016x} {udp} until {}\n", network.0, expires_at.as_secs());
                text.push_str(&line);
            }
        }
        text
    }

    /// What was known before a restart, as far as it still holds.
    ///
    /// # Errors
    /// When the text is not what [`Self::to_text`] writes: nothing of it is to be trusted then.
    pub fn from_text(text: &str, now: Instant, today: SystemTime) -> Result<Self, UdpVerdictsError> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(UdpVerdictsError::Foreign);
        }
        let mut verdicts = Self::default();
        for (number, line) in lines.enumerate() {
            if number >= NETWORKS_MAX {
                return Err(UdpVerdictsError::TooLong);
            }
            let (network, udp, until) =
                parse_line(line).ok_or(UdpVerdictsError::Line { number: number + 2 })?;
            // A clock that was set back makes nothing last longer than it would have from now on.
            let left = until.duration_since(today).unwrap_or_default().min(REMEMBERED);
            let expires_at = now + left;
            let silent = BTreeSet::new();
            if !left.is_zero() {
                let verdict = Verdict {
                    udp,
                    expires_at,
                    silent,
                };
                verdicts.networks.insert(network, verdict);
            }
        }
        Ok(verdicts)
    }

    fn verdict(&mut self, network: NetworkPrint, now: Instant) -> &mut Verdict {
        if self.networks.len() >= NETWORKS_MAX
            && !self.networks.contains_key(&network)
            && let Some(oldest) = self.networks.iter().min_by_key(|(_, verdict)| verdict.expires_at)
        {
            let oldest = *oldest.0;
            self.networks.remove(&oldest);
        }
        let verdict = self.networks.entry(network).or_insert_with(|| Verdict {
            udp: Udp::Unknown,
            expires_at: now,
            silent: BTreeSet::new(),
        });
        if verdict.expires_at <= now {
            verdict.udp = Udp::Unknown;
            verdict.silent.clear();
        }
        verdict.expires_at = now + REMEMBERED;
        verdict
    }
}

fn parse_line(line: &str) -> Option<(NetworkPrint, Udp, SystemTime)> {
    let mut words = line.split(' ');
    let network = NetworkPrint(u64::from_str_radix(words.next()?, 16).ok()?);
    let udp = match words.next()? {
        OPEN => Udp::Open,
        BLOCKED => Udp::Blocked,
        _ => return None,
    };
    let "until" = words.next()? else {
        return None;
    };
    let until = Duration::from_secs(words.next()?.parse().ok()?);
    let until = SystemTime::UNIX_EPOCH.checked_add(until)?;
    words.next().is_none().then_some((network, udp, until))
}

/// A text does not hold verdicts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UdpVerdictsError {
    /// Something else, or a later version, has written it.
    #[error("it is not of this version's making")]
    Foreign,
    /// A line is damaged.
    #[error("line {number} is damaged")]
    Line {
        /// Which, from 1.
        number: usize,
    },
    /// There are more networks than are ever kept.
    #[error("it is longer than it can be")]
    TooLong,
}

const HEAD: &str = "lapwing networks 1";
const OPEN: &str = "open";
const BLOCKED: &str = "blocked";

/// A firewall's rules change seldom, and QUIC is tried beside the fallback anyway.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Networks that one machine moves between; about 100 bytes each.
const NETWORKS_MAX: usize = 64;
/// Mains that make a network that let UDP through one that does not.
const SILENT_ENOUGH: usize = 2;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const HERE: NetworkPrint = NetworkPrint(1);
    const TODAY: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn one_main_condemns_a_network_that_nothing_is_known_of() {
        let (mut verdicts, now) = (UdpVerdicts::default(), Instant::now());
        assert_eq!(verdicts.udp(HERE, now), Udp::Unknown);
        verdicts.fallback_only(HERE, PeerId::random(), now);
        assert_eq!(verdicts.udp(HERE, now), Udp::Blocked);
        assert_eq!(verdicts.udp(NetworkPrint(2), now), Udp::Unknown);
    }

    #[test]
    fn where_udp_has_worked_it_takes_two() {
        let (mut verdicts, now) = (UdpVerdicts::default(), Instant::now());
        let main = PeerId::random();
        verdicts.open(HERE, now);
        verdicts.fallback_only(HERE, main, now);
        verdicts.fallback_only(HERE, main, now);
        assert_eq!(verdicts.udp(HERE, now), Udp::Open);
        verdicts.fallback_only(HERE, PeerId::random(), now);
        assert_eq!(verdicts.udp(HERE, now), Udp::Blocked);
        verdicts.open(HERE, now);
        assert_eq!(verdicts.udp(HERE, now), Udp::Open);
    }

    #[test]
    fn a_verdict_outlives_a_restart_and_not_a_week() {
        let (mut verdicts, now) = (UdpVerdicts::default(), Instant::now());
        verdicts.fallback_only(HERE, PeerId::random(), now);
        verdicts.open(NetworkPrint(u64::MAX), now);
        let hour = Duration::from_secs(3600);
        let text = verdicts.to_text(now + hour, TODAY);
        let read = |later| UdpVerdicts::from_text(&text, now, TODAY + later).unwrap();
        assert_eq!(read(hour).udp(HERE, now), Udp::Blocked);
        assert_eq!(read(hour).udp(NetworkPrint(u64::MAX), now), Udp::Open);
        assert_eq!(read(hour).udp(HERE, now + REMEMBERED), Udp::Unknown);
        assert_eq!(read(REMEMBERED).udp(HERE, now), Udp::Unknown);
    }

    #[test]
    fn a_clock_that_was_set_back_lengthens_nothing() {
        let (mut verdicts, now) = (UdpVerdicts::default(), Instant::now());
        verdicts.fallback_only(HERE, PeerId::random(), now);
        let text = verdicts.to_text(now, TODAY + REMEMBERED * 9);
        let read = UdpVerdicts::from_text(&text, now, TODAY).unwrap();
        assert_eq!(read.udp(HERE, now), Udp::Blocked);
        assert_eq!(read.udp(HERE, now + REMEMBERED), Udp::Unknown);
    }

    #[test]
    fn what_is_damaged_or_of_others_is_refused() {
        let now = Instant::now();
        let why = |text: &str| UdpVerdicts::from_text(text, now, TODAY).unwrap_err();
        for foreign in ["", "lapwing networks 2\n", "\u{7f}ELF", "{}"] {
            assert_eq!(why(foreign), UdpVerdictsError::Foreign);
        }
        for damaged in [
            "",
            "0",
            "x open until 1",
            "1 open until",
            "1 open until 1 2",
            "1 shut until 1",
            "1 open until 99999999999999999999",
        ] {
            let text = format!("{HEAD}\n1 open until 1\n{damaged}\n");
            assert_eq!(why(&text), UdpVerdictsError::Line { number: 3 }, "{damaged}");
        }
        let long = format!("{HEAD}\n{}", "1 open until 1\n".repeat(NETWORKS_MAX + 1));
        assert_eq!(why(&long), UdpVerdictsError::TooLong);
    }

    #[test]
    fn the_network_that_was_left_first_makes_room() {
        let (mut verdicts, now) = (UdpVerdicts::default(), Instant::now());
        for n in 0..=NETWORKS_MAX as u64 {
            verdicts.open(NetworkPrint(n), now + Duration::from_secs(n));
        }
        assert_eq!(verdicts.udp(NetworkPrint(0), now), Udp::Unknown);
        assert_eq!(verdicts.udp(NetworkPrint(1), now), Udp::Open);
    }
}
