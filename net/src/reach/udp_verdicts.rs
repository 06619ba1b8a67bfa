//! On which networks UDP passes, as far as it was seen: a network that blocks it is not waited for twice.

use crate::Udp;
use lapwing_base::PeerId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

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
    /// When that was last confirmed.
    at: Instant,
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
            Some(verdict) if now < verdict.at + REMEMBERED => verdict.udp,
            _ => Udp::Unknown,
        }
    }

    /// Everything that is known with its age, to be kept over a restart.
    pub fn known(&self, now: Instant) -> Vec<(NetworkPrint, Udp, Duration)> {
        let mut known: Vec<_> = self
            .networks
            .iter()
            .filter(|(_, verdict)| now < verdict.at + REMEMBERED)
            .map(|(network, verdict)| (*network, verdict.udp, now.saturating_duration_since(verdict.at)))
            .collect();
        known.sort_unstable_by_key(|(network, ..)| *network);
        known
    }

    /// Takes in what was known before a restart, when that is not too old.
    pub fn restore(&mut self, known: impl IntoIterator<Item = (NetworkPrint, Udp, Duration)>, now: Instant) {
        for (network, udp, age) in known.into_iter().take(NETWORKS_MAX) {
            if age < REMEMBERED
                && let Some(at) = now.checked_sub(age)
            {
                let silent = BTreeSet::new();
                self.networks.insert(network, Verdict { udp, at, silent });
            }
        }
    }

    fn verdict(&mut self, network: NetworkPrint, now: Instant) -> &mut Verdict {
        if self.networks.len() >= NETWORKS_MAX
            && !self.networks.contains_key(&network)
            && let Some(oldest) = self.networks.iter().min_by_key(|(_, verdict)| verdict.at)
        {
            let oldest = *oldest.0;
            self.networks.remove(&oldest);
        }
        let verdict = self.networks.entry(network).or_insert_with(|| Verdict {
            udp: Udp::Unknown,
            at: now,
            silent: BTreeSet::new(),
        });
        if verdict.at + REMEMBERED <= now {
            verdict.udp = Udp::Unknown;
            verdict.silent.clear();
        }
        verdict.at = now;
        verdict
    }
}

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
        let later = now + Duration::from_secs(3600);
        let known = verdicts.known(later);
        let mut restarted = UdpVerdicts::default();
        restarted.restore(known, later);
        assert_eq!(restarted.udp(HERE, later), Udp::Blocked);
        assert_eq!(restarted.udp(HERE, now + REMEMBERED), Udp::Unknown);
        assert!(restarted.known(now + REMEMBERED).is_empty());
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
