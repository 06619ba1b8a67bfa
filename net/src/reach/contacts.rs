//! Whom this node has sent UDP to lately, which is what NATs and firewalls remember. Sends nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What a filter that remembers as much as this node would let in.
#[derive(Debug, Default)]
pub struct Contacts {
    ips: BTreeMap<IpAddr, Contact>,
}

#[derive(Debug)]
struct Contact {
    /// At most [`PORTS_MAX`]; when there were more, every port counts as contacted.
    ports: BTreeSet<u16>,
    every_port: bool,
    last_at: Instant,
}

/// How an address is known to what filters on our side.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Contacted {
    /// Nothing was sent to its IP address: only an open filter lets it in.
    Never,
    /// Something was sent to another port of its IP address.
    OtherPort,
    /// Something was sent exactly there.
    Exactly,
}

impl Contacts {
    /// Something goes out. To be told of every address at least once a minute while it is sent to.
    pub fn sent(&mut self, to: SocketAddr, now: Instant) {
        let ip = to.ip().to_canonical();
        if self.ips.len() >= IPS_MAX && !self.ips.contains_key(&ip) {
            self.ips.retain(|_, contact| now < contact.last_at + REMEMBERED);
            if self.ips.len() >= IPS_MAX
                && let Some(oldest) = self.ips.iter().min_by_key(|(_, contact)| contact.last_at)
            {
                let oldest = *oldest.0;
                self.ips.remove(&oldest);
            }
        }
        let contact = self.ips.entry(ip).or_insert_with(|| Contact {
            ports: BTreeSet::new(),
            every_port: false,
            last_at: now,
        });
        contact.last_at = contact.last_at.max(now);
        if contact.ports.len() < PORTS_MAX {
            contact.ports.insert(to.port());
        } else if !contact.ports.contains(&to.port()) {
            contact.every_port = true;
        }
    }

    /// How an address is known.
    pub fn contacted(&self, address: SocketAddr, now: Instant) -> Contacted {
        match self.ips.get(&address.ip().to_canonical()) {
            Some(contact) if now < contact.last_at + REMEMBERED => {
                if contact.every_port || contact.ports.contains(&address.port()) {
                    Contacted::Exactly
                } else {
                    Contacted::OtherPort
                }
            }
            _ => Contacted::Never,
        }
    }

    /// The IP addresses that were contacted last, the latest first, at most `max`.
    pub fn latest(&self, max: usize, now: Instant) -> Vec<IpAddr> {
        let mut fresh: Vec<_> = self
            .ips
            .iter()
            .filter(|(_, contact)| now < contact.last_at + REMEMBERED)
            .map(|(ip, contact)| (contact.last_at, *ip))
            .collect();
        fresh.sort_unstable_by(|a, b| b.cmp(a));
        fresh.truncate(max);
        fresh.into_iter().map(|(_, ip)| ip).collect()
    }
}

/// Longer than any filter known remembers: Linux forgets a stream of UDP after 2 to 3 minutes, others after 5.
const REMEMBERED: Duration = Duration::from_secs(600);
/// As many as a node knows peers; about 100 bytes each.
const IPS_MAX: usize = 4096;
/// More ports of one IP address are sent to only when a symmetric NAT's port is guessed.
const PORTS_MAX: usize = 64;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_exactly_by_ip_or_not() {
        let (mut contacts, now) = (Contacts::default(), Instant::now());
        contacts.sent(addr("203.0.113.1:1000"), now);
        let is = |text| contacts.contacted(addr(text), now);
        assert_eq!(is("203.0.113.1:1000"), Contacted::Exactly);
        assert_eq!(is("[::ffff:203.0.113.1]:1000"), Contacted::Exactly);
        assert_eq!(is("203.0.113.1:1001"), Contacted::OtherPort);
        assert_eq!(is("203.0.113.2:1000"), Contacted::Never);
        let later = now + REMEMBERED;
        assert_eq!(
            contacts.contacted(addr("203.0.113.1:1000"), later),
            Contacted::Never
        );
    }

    #[test]
    fn many_ports_of_one_ip_do_not_crowd_out_other_ips() {
        let (mut contacts, now) = (Contacts::default(), Instant::now());
        contacts.sent(addr("203.0.113.1:1000"), now);
        for port in 1..5000 {
            contacts.sent(SocketAddr::new("198.51.100.1".parse().unwrap(), port), now);
        }
        assert_eq!(
            contacts.contacted(addr("203.0.113.1:1000"), now),
            Contacted::Exactly
        );
        assert_eq!(
            contacts.contacted(addr("198.51.100.1:9"), now),
            Contacted::Exactly
        );
        assert_eq!(contacts.ips.len(), 2);
    }

    #[test]
    fn the_oldest_makes_room() {
        let (mut contacts, now) = (Contacts::default(), Instant::now());
        for n in 0..=IPS_MAX as u32 {
            let ip = IpAddr::from(n.to_be_bytes());
            contacts.sent(SocketAddr::new(ip, 1), now + Duration::from_micros(u64::from(n)));
        }
        assert_eq!(contacts.ips.len(), IPS_MAX);
        assert_eq!(contacts.contacted(addr("0.0.0.0:1"), now), Contacted::Never);
        assert_eq!(contacts.latest(1, now), ["0.0.16.0".parse::<IpAddr>().unwrap()]);
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
