//! What others see as our addresses, and what follows: the NAT's mapping, the addresses to advertise, the ports
//! that a sequential NAT will give next. Asks nobody and sends nothing.
//!
//! Any observer may lie. Each network ([`prefix`]) has one vote, so that one machine counts once however many
//! identities and addresses it has; only where all observers are in one network its addresses are counted. One
//! observer that changes its mind changes nothing until others have been asked again.

use crate::reach::scope::prefix;
use crate::{Mapping, Scope};
use lapwing_base::PeerId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// One of this node's UDP sockets. The driver numbers them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SocketId(pub u64);

/// An address family.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4, also when written as an IPv6 address that maps one.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order of their indices.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The one that it is not.
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::V4 => 0,
            Self::V6 => 1,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One observer's word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Observation {
    /// The socket of ours that our packets came from.
    pub socket: SocketId,
    /// Who says so.
    pub observer: PeerId,
    /// Where our packets went: the observer's address.
    pub observed_at: SocketAddr,
    /// Where the observer saw them come from.
    pub seen: SocketAddr,
}

/// Something that others should know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// What is known of the mapping has changed.
    Mapping {
        /// Of which family.
        family: Family,
        /// What it is now.
        mapping: Mapping,
    },
    /// The addresses to advertise have changed; [`Observations::external`] gives them.
    External,
    /// The NAT has given a socket another address: it was restarted, or the mapping had run out.
    Rebound {
        /// Which socket.
        socket: SocketId,
        /// Its address until now.
        from: SocketAddr,
        /// Its address now.
        to: SocketAddr,
    },
    /// It is in doubt whether others still see what they saw: they should be asked again. A packet to each will do, since
    /// they say so of themselves when it comes from elsewhere.
    Recheck,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct PortSpan {
    /// The first.
    pub low: u16,
    /// The last; never below the first.
    pub high: u16,
}

impl PortSpan {
    /// What a NAT gives from when nothing is known of it: all but the privileged ports.
    pub const ANY: Self = Self {
        low: 1024,
        high: u16::MAX,
    };

    /// How many ports there are.
    pub const fn len(self) -> u32 {
        (self.high as u32 + 1).saturating_sub(self.low as u32)
    }

    /// Whether there is none, which only a peer's nonsense can bring about.
    pub const fn is_empty(self) -> bool {
        self.low > self.high
    }
}

/// Everything that was observed lately, and what follows from it.
#[derive(Debug, Default)]
pub struct Observations {
    local_ips: BTreeSet<IpAddr>,
    sockets: BTreeMap<SocketId, SocketAddr>,
    /// Oldest first; at most [`OBSERVATIONS_MAX`].
    seen: Vec<Seen>,
    /// What follows, by [`Family::index`]; not updated while in doubt.
    views: [View; 2],
    doubt_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    said: Observation,
    at: Instant,
    /// Another observer has since seen this address change.
    suspect: bool,
}

/// What follows for one family.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct View {
    mapping: Mapping,
    port_preserving: Option<bool>,
    external: BTreeMap<SocketId, SocketAddr>,
}

impl Observations {
    /// A socket stands; it may be bound to the unspecified address.
    pub fn bound(&mut self, socket: SocketId, local: SocketAddr) {
        self.sockets.insert(socket, local);
    }

    /// Whether a socket is known; what is said of others is not taken in.
    pub fn is_bound(&self, socket: SocketId) -> bool {
        self.sockets.contains_key(&socket)
    }

    /// A socket is gone, and what was seen of it.
    pub fn closed(&mut self, socket: SocketId, now: Instant) -> Vec<Change> {
        self.sockets.remove(&socket);
        self.seen.retain(|seen| seen.said.socket != socket);
        self.follow(now)
    }

    /// This machine is in another network, where nothing counts any more of what was seen.
    pub fn network_changed(&mut self, now: Instant) -> Vec<Change> {
        self.seen.clear();
        self.doubt_until = None;
        self.follow(now)
    }

    /// The addresses of this machine's interfaces; none of them while there is no network. Others than before in the
    /// same network may be beside the way, like those of containers: whoever sees our packets come from elsewhere now
    /// will say so.
    pub fn set_local_ips(&mut self, ips: impl IntoIterator<Item = IpAddr>, now: Instant) -> Vec<Change> {
        let ips: BTreeSet<_> = ips
            .into_iter()
            .map(|ip| ip.to_canonical())
            .take(LOCAL_IPS_MAX)
            .collect();
        if self.local_ips == ips || ips.is_empty() {
            return Vec::new();
        }
        self.local_ips = ips;
        let mut changes = self.follow(now);
        if !self.seen.is_empty() {
            changes.push(Change::Recheck);
        }
        changes
    }

    /// Takes in what an observer says. Only what came over a connection whose identity is proven counts.
    pub fn observe(&mut self, said: Observation, now: Instant) -> Vec<Change> {
        let said = Observation {
            observed_at: canonical(said.observed_at),
            seen: canonical(said.seen),
            ..said
        };
        if !self.sockets.contains_key(&said.socket)
            || said.seen.port() == 0
            || Scope::of(said.seen.ip()) == Scope::Nowhere
            || Family::of(said.seen.ip()) != Family::of(said.observed_at.ip())
        {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let before = self.seen.iter().position(|seen| same_view(&seen.said, &said));
        let before = before.map(|at| self.seen.remove(at));
        if let Some(before) = before
            && before.said.seen != said.seen
            && self.cast_doubt(&before.said, now)
        {
            changes.push(Change::Recheck);
        }
        self.make_room(&said.observer);
        self.seen.push(Seen {
            said,
            at: now,
            suspect: false,
        });
        // Two that agree on something new end the doubt at once.
        if !self.seen.iter().any(|seen| seen.suspect) || self.agreed_anew(&said) {
            self.doubt_until = None;
        }
        changes.extend(self.follow(now));
        changes
    }

    /// Forgets what is too old; call at [`Self::next_at`].
    pub fn expire(&mut self, now: Instant) -> Vec<Change> {
        self.seen.retain(|seen| now < seen.at + FRESH);
        if self.doubt_until.is_some_and(|until| until <= now) {
            // Nobody has confirmed the change: the word of one is not enough.
            self.doubt_until = None;
            for seen in &mut self.seen {
                seen.suspect = false;
            }
        }
        self.follow(now)
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_at(&self) -> Option<Instant> {
        let oldest = self.seen.iter().map(|seen| seen.at + FRESH).min();
        oldest.into_iter().chain(self.doubt_until).min()
    }

    /// How public addresses are given to our packets.
    pub fn mapping(&self, family: Family) -> Mapping {
        self.views[family.index()].mapping
    }

    /// Whether public ports are the local ones; `None` without a NAT or without an observer.
    pub fn port_preserving(&self, family: Family) -> Option<bool> {
        self.views[family.index()].port_preserving
    }

    /// The addresses to advertise: what observers in different places agree on, and what one has seen that is
    /// this machine's own.
    pub fn external(&self) -> Vec<SocketAddr> {
        let all = self.views.iter().flat_map(|view| view.external.values().copied());
        let distinct: BTreeSet<_> = all.collect();
        distinct.into_iter().collect()
    }

    /// Every address that somebody sees, for a peer to probe: the advertised ones first, then the latest.
    pub fn reflexive(&self, now: Instant) -> Vec<SocketAddr> {
        let mut addresses = self.external();
        for seen in self.seen.iter().rev().filter(|seen| now < seen.at + FRESH) {
            if !addresses.contains(&seen.said.seen) {
                addresses.push(seen.said.seen);
            }
        }
        addresses.truncate(REFLEXIVE_MAX);
        addresses
    }

    /// What to have checked for reachability, and whether it is this machine's own: for each socket and family the
    /// address to advertise, or else one that somebody sees. What comes in at an address that only one observer has
    /// seen, or that a symmetric NAT gave for one observer, tells the filter as well.
    pub fn to_check(&self, now: Instant) -> Vec<(SocketAddr, bool)> {
        let mut addresses = BTreeMap::new();
        for (&socket, &local) in &self.sockets {
            for family in Family::ALL {
                let advertised = self.views[family.index()].external.get(&socket).copied();
                let group = self.group(socket, family, now);
                // The smallest, so that it stays the same whoever spoke last.
                let seen = || group.iter().map(|seen| seen.said.seen).min();
                if let Some(address) = advertised.or_else(seen) {
                    addresses.insert(address, self.is_own(local, address));
                }
            }
        }
        addresses.into_iter().collect()
    }

    /// The addresses that a NAT which counts its ports up or down will give next to this socket; empty for others.
    ///
    /// Good for seconds only: whatever else goes out through the NAT moves the count on.
    pub fn predicted(&self, socket: SocketId, family: Family, now: Instant) -> Vec<SocketAddr> {
        if !matches!(
            self.mapping(family),
            Mapping::Symmetric | Mapping::AddressDependent
        ) {
            return Vec::new();
        }
        let group = self.group(socket, family, now);
        let latest: Vec<_> = group.iter().rev().take(PREDICT_FROM_MAX).rev().collect();
        let Some(last) = latest.last() else {
            return Vec::new();
        };
        let steps: Vec<i32> = latest
            .windows(2)
            .map(|pair| i32::from(pair[1].said.seen.port()) - i32::from(pair[0].said.seen.port()))
            .collect();
        let counts = |sign: i32| steps.iter().all(|step| (1..=STEP_MAX).contains(&(step * sign)));
        let one_ip = latest
            .iter()
            .all(|seen| seen.said.seen.ip() == last.said.seen.ip());
        let sign = match () {
            () if steps.is_empty() || !one_ip || now >= last.at + PREDICT_FRESH => return Vec::new(),
            () if counts(1) => 1,
            () if counts(-1) => -1,
            () => return Vec::new(),
        };
        // Other flows take ports in between, so the smallest step is the NAT's own.
        let step = sign * steps.iter().map(|step| step.abs()).min().unwrap_or(1);
        (1..=PREDICTED)
            .filter_map(|n| u16::try_from(i32::from(last.said.seen.port()) + step * n).ok())
            .filter(|port| *port >= PortSpan::ANY.low)
            .map(|port| SocketAddr::new(last.said.seen.ip(), port))
            .collect()
    }

    /// The block of ports that a carrier's NAT has set aside for us, when what was seen gives it away.
    pub fn port_block(&self, now: Instant) -> Option<PortSpan> {
        let group: Vec<_> = self
            .sockets
            .keys()
            .flat_map(|socket| self.group(*socket, Family::V4, now))
            .collect();
        let ips: BTreeSet<_> = group.iter().map(|seen| seen.said.seen.ip()).collect();
        let ports: BTreeSet<_> = group.iter().map(|seen| seen.said.seen.port()).collect();
        let (first, last) = (*ports.first()?, *ports.last()?);
        // By chance four random ports share one of 63 blocks once in 250,000 times.
        let seen_enough = ips.len() == 1 && ports.len() >= BLOCK_PORTS_MIN;
        (seen_enough && first / BLOCK == last / BLOCK).then(|| {
            let low = first / BLOCK * BLOCK;
            PortSpan {
                low,
                high: low + (BLOCK - 1),
            }
        })
    }

    /// Doubts everything that agrees with what an observer no longer sees; says whether others should be asked.
    fn cast_doubt(&mut self, before: &Observation, now: Instant) -> bool {
        let mut others = false;
        for seen in &mut self.seen {
            if seen.said.socket == before.socket && seen.said.seen == before.seen {
                seen.suspect = true;
                others = true;
            }
        }
        // One doubt at a time: who changes its mind often cannot keep everybody busy.
        let news = others && self.doubt_until.is_none();
        if news {
            self.doubt_until = Some(now + DOUBT);
        }
        news
    }

    /// Whether somebody in another place says the same since the doubt began.
    fn agreed_anew(&self, said: &Observation) -> bool {
        let of_socket = || self.seen.iter().filter(|seen| seen.said.socket == said.socket);
        let in_one_network = networks(of_socket().map(|seen| seen.said.observed_at.ip())) == 1;
        let ip = said.observed_at.ip();
        of_socket().any(|seen| {
            let other = seen.said.observed_at.ip();
            let elsewhere = prefix(other) != prefix(ip) || (in_one_network && other != ip);
            !seen.suspect && seen.said.seen == said.seen && elsewhere
        })
    }

    fn make_room(&mut self, observer: &PeerId) {
        let of_observer = |seen: &Seen| seen.said.observer == *observer;
        if self.seen.iter().filter(|seen| of_observer(seen)).count() >= PER_OBSERVER_MAX
            && let Some(oldest) = self.seen.iter().position(of_observer)
        {
            self.seen.remove(oldest);
        }
        if self.seen.len() >= OBSERVATIONS_MAX {
            self.seen.remove(0);
        }
    }

    /// Draws the conclusions anew and tells what is different.
    fn follow(&mut self, now: Instant) -> Vec<Change> {
        if self.doubt_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let mut external = false;
        for family in Family::ALL {
            let view = self.view(family, now);
            let before = std::mem::replace(&mut self.views[family.index()], view);
            let view = &self.views[family.index()];
            if view.mapping != before.mapping {
                let mapping = view.mapping;
                changes.push(Change::Mapping { family, mapping });
            }
            for (&socket, &from) in &before.external {
                if let Some(&to) = view.external.get(&socket)
                    && to != from
                {
                    changes.push(Change::Rebound { socket, from, to });
                }
            }
            external |= view.external != before.external;
        }
        if external {
            changes.push(Change::External);
        }
        changes
    }

    fn view(&self, family: Family, now: Instant) -> View {
        let mut view = View::default();
        let mut weight_max = (0, 0);
        for (&socket, &local) in &self.sockets {
            let group = self.group(socket, family, now);
            let Some(verdict) = self.verdict(&group, local) else {
                continue;
            };
            if let Some(address) = verdict.external {
                view.external.insert(socket, address);
            }
            // The socket that most have seen speaks for the NAT.
            if verdict.weight > weight_max {
                weight_max = verdict.weight;
                view.mapping = verdict.mapping;
                view.port_preserving = verdict.port_preserving;
            }
        }
        view
    }

    /// What counts for one socket: fresh, not in doubt, and from the widest scope that there are observers in,
    /// since an observer on this side of the NAT does not see what it does. In the order in which it was said.
    fn group(&self, socket: SocketId, family: Family, now: Instant) -> Vec<Seen> {
        let mut group: Vec<_> = self
            .seen
            .iter()
            .filter(|seen| seen.said.socket == socket && Family::of(seen.said.seen.ip()) == family)
            .filter(|seen| !seen.suspect && now < seen.at + FRESH)
            .copied()
            .collect();
        let scope = |seen: &Seen| Scope::of(seen.said.observed_at.ip());
        let widest = group.iter().map(scope).max();
        group.retain(|seen| Some(scope(seen)) == widest);
        group
    }

    /// Whether a socket's packets are seen to come from where it is bound.
    fn is_own(&self, local: SocketAddr, seen: SocketAddr) -> bool {
        let own = if local.ip().is_unspecified() {
            self.local_ips.contains(&seen.ip())
        } else {
            local.ip().to_canonical() == seen.ip()
        };
        own && seen.port() == local.port()
    }

    fn verdict(&self, group: &[Seen], local: SocketAddr) -> Option<Verdict> {
        // The last word of each place that was sent to.
        let by_ip: BTreeMap<IpAddr, SocketAddr> = group
            .iter()
            .map(|seen| (seen.said.observed_at.ip(), seen.said.seen))
            .collect();
        let witnesses = by_ip.len();
        let networks = networks(by_ip.keys().copied());
        let mut votes: BTreeMap<SocketAddr, (BTreeSet<[u8; 6]>, usize)> = BTreeMap::new();
        for (ip, seen) in &by_ip {
            let vote = votes.entry(*seen).or_default();
            vote.0.insert(prefix(*ip));
            vote.1 += 1;
        }
        let (&address, (agreeing, ips)) = votes
            .iter()
            .max_by_key(|(_, (prefixes, ips))| (prefixes.len(), *ips))?;
        let (agreed, voters) = match networks {
            1 => (*ips, witnesses),
            _ => (agreeing.len(), networks),
        };
        let majority = agreed >= 2 && agreed * 2 >= voters;
        // Different views from one place tell what the mapping depends on.
        let differs_within_ip = group.iter().any(|a| {
            group.iter().any(|b| {
                a.said.observed_at.ip() == b.said.observed_at.ip()
                    && a.said.observed_at.port() != b.said.observed_at.port()
                    && a.said.seen != b.said.seen
            })
        });
        let same_within_ip = group.iter().any(|a| {
            group.iter().any(|b| {
                a.said.observed_at.ip() == b.said.observed_at.ip()
                    && a.said.observed_at.port() != b.said.observed_at.port()
                    && a.said.seen == b.said.seen
            })
        });
        let mapping = match () {
            () if self.is_own(local, address) && (majority || witnesses == 1) => Mapping::None,
            () if majority => Mapping::EndpointIndependent,
            () if differs_within_ip => Mapping::Symmetric,
            () if witnesses < 2 => Mapping::Unknown,
            () if same_within_ip => Mapping::AddressDependent,
            () => Mapping::Symmetric,
        };
        let preserved = if majority {
            address.port() == local.port()
        } else {
            by_ip.values().filter(|seen| seen.port() == local.port()).count() * 2 > witnesses
        };
        Some(Verdict {
            mapping,
            port_preserving: (mapping != Mapping::None).then_some(preserved),
            external: matches!(mapping, Mapping::None | Mapping::EndpointIndependent).then_some(address),
            weight: (networks, witnesses),
        })
    }
}

/// What one socket's observations say together.
struct Verdict {
    mapping: Mapping,
    port_preserving: Option<bool>,
    external: Option<SocketAddr>,
    /// Networks and IP addresses in which there are observers.
    weight: (usize, usize),
}

/// In how many networks addresses are.
fn networks(ips: impl Iterator<Item = IpAddr>) -> usize {
    ips.map(prefix).collect::<BTreeSet<_>>().len()
}

fn same_view(a: &Observation, b: &Observation) -> bool {
    a.socket == b.socket
        && a.observer == b.observer
        && a.observed_at == b.observed_at
        && Family::of(a.seen.ip()) == Family::of(b.seen.ip())
}

pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A mapping that is not used runs out after 2 minutes or more (RFC 4787); those that are used are told again by
/// observers in a third of this ([`super::sighting`]).
pub(super) const FRESH: Duration = Duration::from_secs(600);
/// How long others have to confirm that an address has changed: a question to a main takes an RTT or two.
const DOUBT: Duration = Duration::from_secs(20);
/// All mains that one node talks to, a few times over; about 150 bytes each.
const OBSERVATIONS_MAX: usize = 256;
/// Two sockets or families, each seen at two ports.
const PER_OBSERVER_MAX: usize = 8;
/// A machine with more interfaces is a router.
const LOCAL_IPS_MAX: usize = 64;
/// What fits into an offer beside the local addresses.
const REFLEXIVE_MAX: usize = 6;
/// Ports that are foretold: what else goes out meanwhile takes some of them.
const PREDICTED: i32 = 8;
/// Steps of a NAT that counts, with a few ports taken by others in between.
const STEP_MAX: i32 = 16;
const PREDICT_FROM_MAX: usize = 6;
const PREDICT_FRESH: Duration = Duration::from_secs(30);
/// The usual size of the blocks that carriers set aside for one customer (RFC 7422 gives the scheme).
const BLOCK: u16 = 1024;
const BLOCK_PORTS_MIN: usize = 4;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SOCKET: SocketId = SocketId(0);
    const LOCAL: &str = "192.168.1.5:4001";

    #[test]
    fn two_observers_that_agree_make_an_address_to_advertise() {
        let (mut all, now) = behind_nat();
        assert_eq!(all.say("198.51.100.1:1", "203.0.113.9:4001", now), []);
        assert!(all.inner.external().is_empty(), "one observer is not enough");
        assert_eq!(all.inner.reflexive(now), [addr("203.0.113.9:4001")]);
        let changes = all.say("198.51.101.1:1", "203.0.113.9:4001", now);
        assert!(changes.contains(&Change::External));
        assert_eq!(all.mapping(), Mapping::EndpointIndependent);
        assert_eq!(all.inner.port_preserving(Family::V4), Some(true));
        assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
    }

    #[test]
    fn an_address_of_this_machine_needs_one_observer_only() {
        let now = Instant::now();
        let mut all = Told::new("0.0.0.0:4001", &["203.0.113.9"], now);
        let _ = all.say("198.51.100.1:1", "203.0.113.9:4001", now);
        assert_eq!(all.mapping(), Mapping::None);
        assert_eq!(all.inner.port_preserving(Family::V4), None);
        assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
    }

    #[test]
    fn different_ports_at_different_observers_mean_a_symmetric_nat() {
        let (mut all, now) = behind_nat();
        let _ = all.say("198.51.100.1:1", "203.0.113.9:50001", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:61234", now);
        assert_eq!(all.mapping(), Mapping::Symmetric);
        assert_eq!(all.inner.port_preserving(Family::V4), Some(false));
        assert!(all.inner.external().is_empty());
        assert!(all.inner.predicted(SOCKET, Family::V4, now).is_empty());
    }

    #[test]
    fn a_mapping_that_depends_on_the_address_only_is_told_by_two_ports_of_one_observer() {
        let (mut all, now) = behind_nat();
        let _ = all.say("198.51.100.1:1", "203.0.113.9:50001", now);
        let _ = all.say("198.51.100.1:2", "203.0.113.9:50001", now);
        assert_eq!(all.mapping(), Mapping::Unknown);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:61234", now);
        assert_eq!(all.mapping(), Mapping::AddressDependent);
    }

    #[test]
    fn one_liar_among_three_is_outvoted() {
        let (mut all, now) = behind_nat();
        let _ = all.say("198.51.100.1:1", "8.8.8.8:53", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.102.1:1", "203.0.113.9:4001", now);
        assert_eq!(all.mapping(), Mapping::EndpointIndependent);
        assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
    }

    #[test]
    fn many_identities_of_one_network_weigh_less_than_two_networks() {
        let (mut all, now) = behind_nat();
        for n in 1..=20 {
            let _ = all.say(&format!("198.51.100.{n}:1"), "8.8.8.8:53", now);
        }
        let _ = all.say("192.0.2.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.18.0.1:1", "203.0.113.9:4001", now);
        assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
    }

    #[test]
    fn liars_in_one_network_take_nothing_from_what_two_networks_have_seen() {
        for lies in ["203.0.113.9:7777", "8.8.8.8:53"] {
            let now = Instant::now();
            let mut all = Told::new("0.0.0.0:4001", &["203.0.113.9"], now);
            let _ = all.say("192.0.2.1:1", "203.0.113.9:4001", now);
            let _ = all.say("198.18.0.1:1", "203.0.113.9:4001", now);
            for n in 1..=3 {
                let _ = all.say(&format!("198.51.100.{n}:1"), lies, now);
            }
            assert_eq!(all.mapping(), Mapping::None);
            assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
        }
    }

    #[test]
    fn liars_in_one_network_cannot_end_a_doubt_that_they_have_raised() {
        let (mut all, now) = behind_nat();
        let liar = PeerId::random();
        let _ = all.say("192.0.2.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.18.0.1:1", "203.0.113.9:4001", now);
        let _ = all.say_as(liar, "198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say_as(liar, "198.51.100.1:1", "203.0.113.9:7777", now);
        let _ = all.say("198.51.100.2:1", "203.0.113.9:7777", now);
        assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
        assert_eq!(all.inner.expire(now + DOUBT), []);
        assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
    }

    #[test]
    fn where_all_observers_are_in_one_network_two_machines_suffice() {
        let (mut all, now) = behind_nat();
        let _ = all.say("198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.100.2:1", "203.0.113.9:4001", now);
        assert_eq!(all.mapping(), Mapping::EndpointIndependent);
    }

    #[test]
    fn observers_on_this_side_of_the_nat_do_not_hide_it() {
        let (mut all, now) = behind_nat();
        let _ = all.say("192.168.1.7:1", LOCAL, now);
        assert_eq!(all.mapping(), Mapping::None);
        let _ = all.say("198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:4001", now);
        let _ = all.say("192.168.1.8:1", LOCAL, now);
        assert_eq!(all.mapping(), Mapping::EndpointIndependent);
        assert!(all.inner.reflexive(now).contains(&addr(LOCAL)));
    }

    #[test]
    fn a_restarted_nat_is_noticed_once_two_have_seen_it() {
        let (mut all, now) = behind_nat();
        let (one, two) = (PeerId::random(), PeerId::random());
        let _ = all.say_as(one, "198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say_as(two, "198.51.101.1:1", "203.0.113.9:4001", now);
        let changes = all.say_as(one, "198.51.100.1:1", "203.0.113.9:7777", now);
        assert_eq!(changes, [Change::Recheck]);
        assert_eq!(
            all.mapping(),
            Mapping::EndpointIndependent,
            "not taken for symmetric meanwhile"
        );
        let changes = all.say_as(two, "198.51.101.1:1", "203.0.113.9:7777", now);
        let (from, to) = (addr("203.0.113.9:4001"), addr("203.0.113.9:7777"));
        let socket = SOCKET;
        assert_eq!(changes, [Change::Rebound { socket, from, to }, Change::External]);
    }

    #[test]
    fn one_observer_that_changes_its_mind_changes_nothing() {
        let (mut all, now) = behind_nat();
        let liar = PeerId::random();
        let _ = all.say_as(liar, "198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.102.1:1", "203.0.113.9:4001", now);
        let mut rechecks = 0;
        for port in 1..100 {
            let said = all.say_as(liar, "198.51.100.1:1", &format!("203.0.113.9:{port}"), now);
            rechecks += said.iter().filter(|change| **change == Change::Recheck).count();
        }
        assert_eq!(rechecks, 1);
        let later = all.inner.next_at().unwrap();
        assert_eq!(all.inner.expire(later), []);
        assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
    }

    #[test]
    fn another_network_forgets_everything() {
        let (mut all, now) = behind_nat();
        let _ = all.say("198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:4001", now);
        let changes = all.inner.network_changed(now);
        let (family, mapping) = (Family::V4, Mapping::Unknown);
        assert_eq!(changes, [Change::Mapping { family, mapping }, Change::External]);
        assert!(all.inner.reflexive(now).is_empty());
    }

    #[test]
    fn an_address_more_or_less_in_the_same_network_forgets_nothing_and_is_a_reason_to_ask() {
        let (mut all, now) = behind_nat();
        let _ = all.say("198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:4001", now);
        let with = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        let here = ["192.168.1.5", "172.17.0.1"];
        assert_eq!(all.inner.set_local_ips(with(&here), now), [Change::Recheck]);
        assert_eq!(all.inner.set_local_ips([], now), [], "there is nobody to ask");
        assert_eq!(all.inner.set_local_ips(with(&here), now), []);
        assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
    }

    #[test]
    fn what_was_seen_of_a_socket_goes_with_it() {
        let (mut all, now) = behind_nat();
        let _ = all.say("198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:4001", now);
        assert!(all.inner.closed(SOCKET, now).contains(&Change::External));
        assert!(!all.inner.is_bound(SOCKET));
        assert!(all.inner.reflexive(now).is_empty());
    }

    #[test]
    fn what_nobody_has_said_for_long_is_forgotten() {
        let (mut all, now) = behind_nat();
        let _ = all.say("198.51.100.1:1", "203.0.113.9:4001", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:4001", now);
        let at = all.inner.next_at().unwrap();
        assert!(at > now + Duration::from_secs(60));
        assert!(all.inner.expire(at).contains(&Change::External));
        assert_eq!(all.mapping(), Mapping::Unknown);
        assert_eq!(all.inner.next_at(), None);
    }

    #[test]
    fn what_is_checked_is_what_is_advertised_or_else_one_thing_that_was_seen() {
        let (mut all, now) = behind_nat();
        assert!(all.inner.to_check(now).is_empty());
        let _ = all.say("192.168.1.7:1", LOCAL, now);
        assert_eq!(all.inner.to_check(now), [(addr(LOCAL), true)]);
        let _ = all.say("198.51.100.1:1", "203.0.113.9:50002", now);
        let _ = all.say("198.51.101.1:1", "203.0.113.9:50001", now);
        assert_eq!(all.inner.to_check(now), [(addr("203.0.113.9:50001"), false)]);
        let _ = all.say("198.51.102.1:1", "203.0.113.9:50002", now);
        assert_eq!(all.inner.to_check(now), [(addr("203.0.113.9:50002"), false)]);
    }

    #[test]
    fn a_nat_that_counts_is_foretold() {
        for (ports, next) in [
            ([50_000, 50_001, 50_003], 50_004),
            ([50_003, 50_001, 50_000], 49_999),
        ] {
            let (mut all, now) = behind_nat();
            for (n, port) in ports.iter().enumerate() {
                let _ = all.say(&format!("198.51.10{n}.1:1"), &format!("203.0.113.9:{port}"), now);
            }
            let predicted = all.inner.predicted(SOCKET, Family::V4, now);
            assert_eq!(predicted.first(), Some(&addr(&format!("203.0.113.9:{next}"))));
            assert_eq!(predicted.len(), 8);
            let late = all.inner.predicted(SOCKET, Family::V4, now + PREDICT_FRESH);
            assert!(late.is_empty(), "the count has moved on");
        }
    }

    #[test]
    fn a_carriers_port_block_is_recognised() {
        let (mut all, now) = behind_nat();
        for (n, port) in [2050, 2900, 2400, 3071].iter().enumerate() {
            assert_eq!(all.inner.port_block(now), None);
            let _ = all.say(&format!("198.51.10{n}.1:1"), &format!("203.0.113.9:{port}"), now);
        }
        let block = all.inner.port_block(now).unwrap();
        assert_eq!((block.low, block.high, block.len()), (2048, 3071, 1024));
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_an_honest_majority_holds(
            said in proptest::collection::vec((any::<u16>(), any::<u16>(), any::<u8>()), 0..600)
        ) {
            let (mut all, now) = behind_nat();
            let liar = PeerId::random();
            let honest = [PeerId::random(), PeerId::random(), PeerId::random()];
            for (observed_port, port, step) in said {
                let _ = all.say_as(
                    liar,
                    &format!("192.0.2.{}:{observed_port}", 1 + step % 3),
                    &format!("203.0.113.9:{port}"),
                    now,
                );
                prop_assert!(all.inner.seen.len() <= OBSERVATIONS_MAX);
            }
            for (n, peer) in honest.iter().enumerate() {
                let _ = all.say_as(*peer, &format!("198.51.{n}.1:1"), "203.0.113.9:4001", now);
            }
            let settled = all.inner.expire(now + DOUBT);
            prop_assert!(settled.len() <= 4);
            prop_assert_eq!(all.inner.external(), [addr("203.0.113.9:4001")]);
        }
    }

    struct Told {
        inner: Observations,
    }

    impl Told {
        fn new(local: &str, ips: &[&str], now: Instant) -> Self {
            let mut inner = Observations::default();
            inner.bound(SOCKET, addr(local));
            let _ = inner.set_local_ips(ips.iter().map(|ip| ip.parse().unwrap()), now);
            Self { inner }
        }

        fn say(&mut self, observed_at: &str, seen: &str, now: Instant) -> Vec<Change> {
            self.say_as(PeerId::random(), observed_at, seen, now)
                .into_iter()
                .filter(|change| !matches!(change, Change::Mapping { .. }))
                .collect()
        }

        fn say_as(&mut self, observer: PeerId, observed_at: &str, seen: &str, now: Instant) -> Vec<Change> {
            let said = Observation {
                socket: SOCKET,
                observer,
                observed_at: addr(observed_at),
                seen: addr(seen),
            };
            self.inner.observe(said, now)
        }

        fn mapping(&self) -> Mapping {
            self.inner.mapping(Family::V4)
        }
    }

    fn behind_nat() -> (Told, Instant) {
        let now = Instant::now();
        (Told::new("0.0.0.0:4001", &["192.168.1.5"], now), now)
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
