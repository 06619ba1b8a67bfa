//! What a node says of itself, of its mains and of the services that it knows: the documents of its HTTP edge. Serves none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use lapwing_base::{ClusterId, Multiaddr, PeerId, Protocol, Role};
use lapwing_net::PeerStatus;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::counts::MainRecord;
use super::{Inner, NamedMain, State, now};
use crate::registry::is_local;
use crate::{Service, ServiceName};

/// Which services a document has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scope {
    /// Those of this node and of the homes that are connected with it.
    Local,
    /// All that it knows.
    Federated,
}

/// Which part of a long document is wanted.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Page {
    /// How many instances it has at most.
    limit: Option<NonZeroUsize>,
    /// Only what comes behind this one; an empty text is the first page, as `null` is.
    #[serde(deserialize_with = "read_token")]
    page_token: Option<PageToken>,
}

/// The last instance of a page. The node's own come first, then those of other nodes, in the order of their ids.
#[derive(Clone, Debug, Eq, PartialEq)]
struct PageToken {
    node: PeerId,
    /// `None` where all of the node's were there.
    service: Option<ServiceName>,
}

impl Page {
    /// Half a megabyte of JSON, and milliseconds for which calls wait for the tables.
    pub(super) const LIMIT_MAX: usize = 1_000;

    /// As a member of what a main is asked.
    pub(super) fn document(&self) -> Value {
        let token = self.page_token.as_ref().map(ToString::to_string);
        json!({ "limit": self.limit, "page_token": token })
    }

    fn limit(&self) -> usize {
        self.limit
            .map_or(Self::LIMIT_MAX, |limit| limit.get().min(Self::LIMIT_MAX))
    }

    /// Whether this page has what a node offers by a name: one of the node with which it begins.
    fn has(&self, node: PeerId, service: &ServiceName) -> bool {
        match &self.page_token {
            Some(token) if token.node == node => token.service.as_ref().is_some_and(|last| service > last),
            _ => true,
        }
    }
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Some(service) => write!(f, "{}/{service}", self.node),
            None => write!(f, "{}", self.node),
        }
    }
}

impl FromStr for PageToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "`page_token` is what `next_page_token` was";
        let (node, service) = match text.split_once('/') {
            Some((node, service)) => (node, Some(service.parse().map_err(|_| wrong)?)),
            None => (text, None),
        };
        let node = node.parse().map_err(|_| wrong)?;
        Ok(Self { node, service })
    }
}

fn read_token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PageToken>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(D::Error::custom))
        .transpose()
}

/// How well a node can do its part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Health {
    /// As it should be.
    Healthy,
    /// A main without one of its mains: some services are out of reach.
    Degraded,
    /// A home without a main, or a node that goes.
    Unhealthy,
}

impl Health {
    /// Its word in documents.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A main as this node sees it.
#[derive(Clone, Debug)]
pub(super) struct MainView {
    pub(super) peer: PeerId,
    /// By which it is called.
    pub(super) node_address: String,
    /// Where it was said to be; `None` of one that was found otherwise.
    url: Option<String>,
    /// Why there is no session with it, as it was tried last.
    error: Option<String>,
    /// Where its connection leads or has led last.
    address: Option<Multiaddr>,
    /// Whether there is a session with it.
    pub(super) is_up: bool,
    /// Whether it is the one that this home asks.
    is_uplink: bool,
    /// Who has the name that this node wants, where the main says that another node does.
    name_holder: Option<PeerId>,
    /// Whom it says to belong to, while there is a session.
    cluster: Option<ClusterId>,
    /// What it offers itself, as it has announced it.
    services: Vec<Service>,
    pub(super) record: MainRecord,
    pub(super) rtt: Option<Duration>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Numbers {
    /// Sessions with homes.
    pub(super) homes: usize,
    /// Sessions with mains.
    pub(super) mains: usize,
    /// Other nodes whose announcements are known.
    pub(super) nodes: usize,
    /// Names of services.
    pub(super) services: usize,
    /// Those of them of which no instance would be called.
    pub(super) services_failed: usize,
    /// Services of this node and of its homes, each instance for itself.
    pub(super) local_instances: usize,
    /// Those of all others.
    pub(super) federated_instances: usize,
    /// Instances that would not be called: out of reach, unable to answer by their own word, or with an open breaker.
    pub(super) instances_failed: usize,
    /// Of the services that have local instances.
    local_services: usize,
}

/// The time by both clocks, since documents name points of the second and events are kept by the first.
#[derive(Clone, Copy, Debug)]
struct Moment {
    instant: Instant,
    /// Since 1970.
    unix: Duration,
}

impl Moment {
    #[expect(
        clippy::disallowed_methods,
        reason = "documents name points in time as people know them"
    )]
    fn read() -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            instant: now(),
            // A clock before 1970 is wrong anyway.
            unix: unix.unwrap_or_default(),
        }
    }

    fn text(&self) -> String {
        rfc3339(self.unix)
    }

    /// When an event was.
    fn text_of(&self, at: Instant) -> String {
        rfc3339(
            self.unix
                .saturating_sub(self.instant.saturating_duration_since(at)),
        )
    }
}

/// The time as documents write it.
pub(super) fn time_text() -> String {
    Moment::read().text()
}

impl Inner {
    /// Services by name, in the shape of the peer-to-peer edge before: one instance for each name, the nearest, and beneath
    /// it all of them.
    pub(super) fn registry_document(&self, scope: Scope, page: &Page) -> Value {
        let moment = Moment::read();
        let peers: Map<String, Value> = self
            .mains()
            .iter()
            .map(|main| (main.peer.to_string(), main.document(&moment)))
            .collect();
        let me = self.me;
        let state = self.lock();
        let first = page.page_token.as_ref().map(|token| token.node);
        let own = state
            .registry
            .own()
            .filter(|_| first.is_none_or(|node| node == me));
        let others: Box<dyn Iterator<Item = _>> = match first.filter(|node| *node != me) {
            Some(node) => Box::new(state.registry.known_from(node)),
            None => Box::new(state.registry.known()),
        };
        let others =
            others.filter(|(announcement, hops)| scope == Scope::Federated || is_local(announcement, *hops));
        let mut services: BTreeMap<String, Vec<(Option<usize>, Value)>> = BTreeMap::new();
        let (mut left, mut last, mut next) = (page.limit(), None, None);
        'nodes: for (announcement, hops) in own.map(|own| (own, Some(0))).into_iter().chain(others) {
            let origin = announcement.origin;
            let mut offered: Vec<&Service> = announcement.services.iter().collect();
            offered.retain(|service| page.has(origin, &service.name));
            if offered.is_empty() {
                continue;
            }
            offered.sort_by_key(|service| &service.name);
            let node_address = state.registry.address(origin).to_string();
            let heard_at = state.registry.heard_at(origin);
            for service in offered {
                if left == 0 {
                    next = last.map(|token: PageToken| token.to_string());
                    break 'nodes;
                }
                let mut shown = service_document(service);
                shown["node_id"] = origin.to_string().into();
                shown["node_address"] = node_address.clone().into();
                shown["is_local"] = is_local(announcement, hops).into();
                shown["hops"] = hops.into();
                shown["is_healthy"] = (service.is_healthy && hops.is_some()).into();
                shown["last_seen"] = moment.text_of(heard_at.unwrap_or(moment.instant)).into();
                let instances = services.entry(service.name.to_string()).or_default();
                instances.push((hops, shown));
                left -= 1;
                last = Some(PageToken {
                    node: origin,
                    service: Some(service.name.clone()),
                });
            }
        }
        let node_address = state.registry.address(me).to_string();
        drop(state);
        let servers: Map<String, Value> = services
            .into_iter()
            .map(|(name, instances)| (name, nearest_first(instances)))
            .collect();
        json!({
            "node_id": me.to_string(),
            "node_address": node_address,
            "servers": servers,
            "peers": peers,
            "next_page_token": next,
            "timestamp": moment.text(),
        })
    }

    /// Everything that is callable from here, an instance a row.
    pub(super) fn catalog_document(&self, page: &Page) -> Value {
        let registry = self.registry_document(Scope::Federated, page);
        let servers = registry["servers"].as_object();
        let rows: Vec<&Value> = servers
            .into_iter()
            .flat_map(|servers| servers.values())
            .filter_map(|server| server["instances"].as_array())
            .flatten()
            .collect();
        json!({
            "node_id": registry["node_id"],
            "node_address": registry["node_address"],
            "services": rows,
            "next_page_token": registry["next_page_token"],
            "timestamp": registry["timestamp"],
        })
    }

    /// The services of this node.
    pub(super) fn services_document(&self) -> Value {
        let state = self.lock();
        let services = state.registry.own().map(|own| own.services.as_slice());
        let services: Vec<Value> = services
            .unwrap_or_default()
            .iter()
            .map(service_document)
            .collect();
        json!({
            "node_id": self.me.to_string(),
            "node_address": state.registry.address(self.me).to_string(),
            "services": services,
            "timestamp": Moment::read().text(),
        })
    }

    /// The mains that this node is to be connected with, and those that it is.
    pub(super) fn peers_document(&self) -> Value {
        let moment = Moment::read();
        let mains = self.mains();
        let found = mains.iter().map(|main| main.document(&moment));
        let missing = self.missing_mains();
        let peers: Vec<Value> = found.chain(missing.iter().map(missing_document)).collect();
        json!({
            "node_id": self.me.to_string(),
            "node_type": self.role().to_string(),
            "peers": peers,
            "timestamp": moment.text(),
        })
    }

    /// How the federation is, as far as this node sees it.
    pub(super) fn health_document(&self) -> (Health, Value) {
        let (health, numbers) = (self.health(), self.numbers());
        let (mains, missing) = (self.mains(), self.missing_mains().len());
        // A home is connected with one; that it is not with others means nothing before it has tried.
        let is_main = self.role() == Role::Main;
        let is_failing = |main: &&MainView| !main.is_up && (is_main || main.error.is_some());
        let document = json!({
            "status": health.as_str(),
            "connected_homes": numbers.homes,
            "connected_peers": numbers.mains,
            "total_peers": mains.len() + missing,
            "failed_peers": mains.iter().filter(is_failing).count() + missing,
            "total_services": numbers.services,
            "failed_services": numbers.services_failed,
            "average_latency": millis_text(self.average_latency()),
            "total_instances": numbers.local_instances + numbers.federated_instances,
            "failed_instances": numbers.instances_failed,
            "node_id": self.me.to_string(),
            "node_type": self.role().to_string(),
            "name_taken_by": self.name_holder().map(|holder| holder.to_string()),
            "timestamp": Moment::read().text(),
        });
        (health, document)
    }

    /// Who has the name that this node wants, where one of its mains says that another node does.
    fn name_holder(&self) -> Option<PeerId> {
        let state = self.lock();
        state.sessions.values().find_map(|session| session.name_holder)
    }

    /// The short form of it, for whoever spreads requests over nodes.
    pub(super) fn node_health_document(&self) -> (Health, Value) {
        let health = self.health();
        let document = json!({
            "status": health.as_str(),
            "timestamp": Moment::read().text(),
            "servers": self.numbers().local_services,
            "node_type": self.role().to_string(),
        });
        (health, document)
    }

    /// Who this node is, and where it is reached.
    pub(super) fn identity_document(&self) -> Value {
        let me = self.me;
        let addresses = self.network.listen_addrs();
        let addresses: Vec<String> = addresses
            .into_iter()
            .map(|address| with_peer(address, me).to_string())
            .collect();
        let state = self.lock();
        json!({
            "peer_id": me.to_string(),
            "addresses": addresses,
            "name": state.said.name.as_ref().map(ToString::to_string),
            "node_address": state.registry.address(me).to_string(),
            "node_type": self.role().to_string(),
            "cluster_id": state.said.cluster.map(|cluster| cluster.to_string()),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    /// Whether this node can do its part now.
    pub(super) fn health(&self) -> Health {
        if self.stop.is_cancelled() {
            return Health::Unhealthy;
        }
        let mains = self.around.borrow().wanted_mains(self.me, *self.tells.borrow());
        let state = self.lock();
        match self.role() {
            Role::Home if state.uplink.is_none() => Health::Unhealthy,
            Role::Home => Health::Healthy,
            Role::Main => {
                let is_there = state.named.iter().all(|named| !named.found.is_empty());
                match is_there && mains.iter().all(|main| state.sessions.contains_key(main)) {
                    true => Health::Healthy,
                    false => Health::Degraded,
                }
            }
        }
    }

    /// Where mains are to be, and nobody was ever found.
    pub(super) fn missing_mains(&self) -> Vec<NamedMain> {
        let state = self.lock();
        let missing = state.named.iter().filter(|named| named.found.is_empty());
        missing.cloned().collect()
    }

    /// The mains of its list and those with whom there are sessions, in the order of their ids.
    pub(super) fn mains(&self) -> Vec<MainView> {
        let status = self.network.status();
        let links: BTreeMap<PeerId, &PeerStatus> =
            status.peers.iter().map(|peer| (peer.peer, peer)).collect();
        let mut mains: BTreeSet<PeerId> = self.around.borrow().mains.iter().copied().collect();
        let state = self.lock();
        let sessions = state.sessions.iter();
        let connected = sessions.filter(|(_, session)| session.admitted.role == Role::Main);
        mains.extend(connected.map(|(peer, _)| *peer));
        mains.remove(&self.me);
        mains
            .into_iter()
            .map(|peer| {
                let link = links.get(&peer);
                let named = state.named.iter().find(|named| named.found.contains(&peer));
                let is_up = state.sessions.contains_key(&peer);
                // That nobody answers where it was says more than that the way to it has ended.
                let error = named
                    .and_then(|named| named.error.as_ref())
                    .or_else(|| Some(&state.told.get(&peer)?.error));
                MainView {
                    peer,
                    url: named.map(|named| named.given.clone()),
                    error: error.filter(|_| !is_up).cloned(),
                    node_address: state.registry.address(peer).to_string(),
                    address: link.and_then(|link| link.address.clone()),
                    is_up,
                    is_uplink: state.uplink == Some(peer),
                    name_holder: state.sessions.get(&peer).and_then(|session| session.name_holder),
                    cluster: state
                        .sessions
                        .get(&peer)
                        .and_then(|session| session.claim.cluster),
                    services: state.registry.services_of(peer).to_vec(),
                    record: state.counts.main(peer),
                    rtt: link.and_then(|link| link.link).and_then(|link| link.rtt),
                }
            })
            .collect()
    }

    /// Counts what there is.
    pub(super) fn numbers(&self) -> Numbers {
        self.lock().numbers()
    }

    /// Of the instances that were called lately; zero before the first was.
    fn average_latency(&self) -> Duration {
        let state = self.lock();
        let metrics = state.balancers.values().flat_map(|balancer| balancer.metrics());
        let latencies = metrics.filter_map(|(_, metrics)| metrics.latency);
        let (sum, count) = latencies.fold((Duration::ZERO, 0_u32), |(sum, count), latency| {
            (sum.saturating_add(latency), count.saturating_add(1))
        });
        sum.checked_div(count).unwrap_or_default()
    }
}

impl State {
    fn numbers(&self) -> Numbers {
        let is_home = |session: &&super::Session| session.admitted.role == Role::Home;
        let homes = self.sessions.values().filter(is_home).count();
        let mut numbers = Numbers {
            homes,
            mains: self.sessions.len() - homes,
            ..Numbers::default()
        };
        // By name, whether an instance would be called, and whether one is local.
        let mut services: BTreeMap<&ServiceName, (bool, bool)> = BTreeMap::new();
        let own = self.registry.own().map(|own| (own, Some(0)));
        for (announcement, hops) in own.into_iter().chain(self.registry.known()) {
            let is_local = is_local(announcement, hops);
            for service in &announcement.services {
                let is_well = hops.is_some()
                    && service.is_healthy
                    && !self.has_open_breaker(&service.name, announcement.origin);
                let of_name = services.entry(&service.name).or_default();
                of_name.0 |= is_well;
                of_name.1 |= is_local;
                numbers.local_instances += usize::from(is_local);
                numbers.federated_instances += usize::from(!is_local);
                numbers.instances_failed += usize::from(!is_well);
            }
        }
        numbers.nodes = self.registry.known().count();
        numbers.services = services.len();
        numbers.services_failed = services.values().filter(|(is_well, _)| !is_well).count();
        numbers.local_services = services.values().filter(|(_, is_local)| *is_local).count();
        numbers
    }

    fn has_open_breaker(&self, service: &ServiceName, node: PeerId) -> bool {
        let metrics = self
            .balancers
            .get(service)
            .and_then(|balancer| balancer.of(&node));
        metrics.is_some_and(|metrics| metrics.retry_at.is_some())
    }
}

impl MainView {
    fn document(&self, moment: &Moment) -> Value {
        json!({
            "node_id": self.peer.to_string(),
            "node_address": self.node_address,
            "url": self.url,
            "address": self.address.as_ref().map(ToString::to_string),
            "healthy": self.is_up,
            "status": if self.is_up { "connected" } else { "disconnected" },
            "cluster_id": self.cluster.map(|cluster| cluster.to_string()),
            "funs": funs(&self.services),
            "locs": self.services.iter().flat_map(|service| &service.resources).collect::<BTreeSet<_>>(),
            "error": self.error,
            "is_uplink": self.is_uplink,
            "last_seen": self.record.heard_at.map(|at| moment.text_of(at)),
            "connected_since": self.record.up_since.map(|at| moment.text_of(at)),
            "rtt_ms": self.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            "probe_ms": self.record.probe_took.map(|took| took.as_secs_f64() * 1e3),
            "reconnects": self.record.reconnects,
            "name_taken_by": self.name_holder.map(|holder| holder.to_string()),
        })
    }
}

/// The same of a main that nobody knows yet.
fn missing_document(named: &NamedMain) -> Value {
    json!({
        "node_id": null,
        "node_address": null,
        "url": named.given,
        "address": null,
        "healthy": false,
        "status": "disconnected",
        "cluster_id": null,
        "funs": [],
        "locs": [],
        "error": named.error,
        "is_uplink": false,
        "last_seen": null,
        "connected_since": null,
        "rtt_ms": null,
        "probe_ms": null,
        "reconnects": 0,
        "name_taken_by": null,
    })
}

/// What can be called, as commands name it: by the service alone where it does not tell its methods.
fn funs(services: &[Service]) -> BTreeSet<String> {
    let of = |service: &Service| match service.methods.is_empty() {
        true => vec![service.name.to_string()],
        false => {
            let methods = service.methods.iter();
            methods
                .map(|method| format!("{}.{method}", service.name))
                .collect()
        }
    };
    services.iter().flat_map(of).collect()
}

fn service_document(service: &Service) -> Value {
    json!({
        "name": service.name.as_str(),
        "version": service.version.to_string(),
        "methods": service.methods,
        "resources": service.resources,
        "is_healthy": service.is_healthy,
    })
}

/// The instances of one name: those out of reach last.
fn nearest_first(mut instances: Vec<(Option<usize>, Value)>) -> Value {
    instances.sort_by_key(|(hops, _)| hops.unwrap_or(usize::MAX));
    let instances: Vec<Value> = instances.into_iter().map(|(_, shown)| shown).collect();
    let mut nearest = instances.first().cloned().unwrap_or_default();
    nearest["instances"] = instances.into();
    nearest
}

/// An address with whom it leads to, so that it can be dialed as it is.
fn with_peer(mut address: Multiaddr, peer: PeerId) -> Multiaddr {
    if !matches!(address.iter().last(), Some(Protocol::P2p(_))) {
        address.push(Protocol::P2p(peer));
    }
    address
}

/// `45ms`, and of less than ten a tenth.
fn millis_text(latency: Duration) -> String {
    let millis = latency.as_secs_f64() * 1e3;
    match millis < 10.0 && latency > Duration::ZERO {
        true => format!("{millis:.1}ms"),
        false => format!("{millis:.0}ms"),
    }
}

/// A time since 1970 as RFC 3339 writes it, in UTC and milliseconds.
fn rfc3339(unix: Duration) -> String {
    let (days, seconds) = (unix.as_secs() / 86_400, unix.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let mut text = String::with_capacity(24);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
    );
    let _ = write!(text, ".{:03}Z", unix.subsec_millis());
    text
}

/// Year, month and day of a day since 1970-01-01, by the Gregorian calendar, which repeats itself every 400 years.
const fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the day that only some have is their last; day 0 is 0000-03-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leap_days = day_of_era / 1_460 + day_of_era / 146_096;
    let year_of_era = (day_of_era + day_of_era / 36_524 - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months from March on have 153 days.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    match month < 10 {
        true => (year, month + 3, day),
        false => (year + 1, month - 9, day),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use lapwing_base::Keypair;
    use lapwing_net::{Gate, Network, NetworkConfig};
    use tokio::sync::watch;

    use super::*;
    use crate::Federation;
    use crate::driver::metrics::EdgeNumbers;
    use crate::{Around, Echo, FederationConfig};

    /// A node without neighbours.
    pub(in crate::driver) struct Alone {
        pub(in crate::driver) federation: Federation,
        network: Network,
        _gate: watch::Sender<Gate>,
        around: watch::Sender<Around>,
    }

    impl Alone {
        pub(in crate::driver) async fn start(role: Role) -> Self {
            let keypair = Keypair::generate_ed25519();
            let (gate, watched) = watch::channel(Gate::default());
            let config = NetworkConfig {
                listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
                role: Some(role),
                ..NetworkConfig::new(keypair.clone())
            };
            let network = Network::start(config, watched).await.unwrap();
            let (around, known) = watch::channel(Around::new(role));
            let config = FederationConfig {
                name: Some("alone".parse().unwrap()),
                ..FederationConfig::new(keypair, 1)
            };
            let federation = Federation::start(network.clone(), config, known).unwrap();
            Self {
                federation,
                network,
                _gate: gate,
                around,
            }
        }

        fn offer(&self, service: &str) {
            let service = Service::new(service.parse().unwrap());
            self.federation.offer(service, Arc::new(Echo)).unwrap();
        }

        /// It is told of a main, and where that is.
        pub(in crate::driver) fn name_main(&self, main: &Self) {
            let peer = main.network.peer_id();
            self.network.learn(peer, main.network.listen_addrs());
            self.name_peer(peer);
        }

        /// It is told of a main that is nowhere.
        pub(in crate::driver) fn name_peer(&self, peer: PeerId) {
            self.around.send_modify(|around| around.mains.push(peer));
        }

        /// It is told of a main that it is to take before all others.
        pub(in crate::driver) fn name_better(&self, peer: PeerId, address: Multiaddr) {
            self.network.learn(peer, vec![address]);
            self.around.send_modify(|around| around.mains.insert(0, peer));
        }

        pub(in crate::driver) async fn stop(self) {
            self.federation.shutdown().await;
            self.network.shutdown().await;
        }
    }

    #[tokio::test]
    async fn a_registry_has_what_the_node_offers_itself_marked_as_local() {
        let alone = Alone::start(Role::Main).await;
        alone.offer("blog");
        for scope in [Scope::Local, Scope::Federated] {
            let document = alone.federation.inner.registry_document(scope, &Page::default());
            assert_eq!(document["node_address"], "alone.main");
            let blog = &document["servers"]["blog"];
            assert_eq!(blog["node_id"], alone.network.peer_id().to_string());
            assert_eq!((&blog["is_local"], &blog["hops"]), (&json!(true), &json!(0)));
            assert_eq!(blog["instances"].as_array().map(Vec::len), Some(1));
            assert_eq!(document["next_page_token"], Value::Null);
        }
        alone.stop().await;
    }

    #[tokio::test]
    async fn a_page_has_as_many_instances_as_it_may_also_of_one_node() {
        let alone = Alone::start(Role::Main).await;
        for service in ["c", "a", "b"] {
            alone.offer(service);
        }
        let page = |token: &Value| {
            let page: Page = serde_json::from_value(json!({"limit": 2, "page_token": token})).unwrap();
            let document = alone.federation.inner.catalog_document(&page);
            let rows = document["services"].as_array().unwrap().iter();
            let names: Vec<String> = rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect();
            (names.concat(), document["next_page_token"].clone())
        };
        let (names, next) = page(&json!(""));
        assert_eq!(names, "ab", "an empty token is the first page");
        assert_eq!(page(&next), ("c".to_owned(), Value::Null));
        let node = alone.network.peer_id().to_string();
        assert_eq!(page(&json!(node)).0, "", "behind all of a node");
        for wrong in [
            json!({"limit": 0}),
            json!({"page_token": "x"}),
            json!({"page_token": format!("{node}/")}),
        ] {
            assert!(serde_json::from_value::<Page>(wrong).is_err());
        }
        alone.stop().await;
    }

    #[tokio::test]
    async fn the_health_of_the_federation_has_six_members_that_dashboards_know() {
        let alone = Alone::start(Role::Main).await;
        alone.offer("blog");
        let (health, document) = alone.federation.inner.health_document();
        assert_eq!(health, Health::Healthy);
        for (name, expected) in [
            ("status", json!("healthy")),
            ("connected_homes", json!(0)),
            ("connected_peers", json!(0)),
            ("total_services", json!(1)),
            ("failed_services", json!(0)),
            ("average_latency", json!("0ms")),
        ] {
            assert_eq!(document[name], expected, "{name}");
        }
        let missing = PeerId::random();
        alone.around.send_modify(|around| around.mains = vec![missing]);
        assert_eq!(alone.federation.inner.health(), Health::Degraded);
        let peers = alone.federation.inner.peers_document();
        assert_eq!(peers["peers"][0]["node_id"], missing.to_string());
        assert_eq!(peers["peers"][0]["healthy"], false);
        assert_eq!(peers["peers"][0]["last_seen"], Value::Null);
        assert_eq!(peers["peers"][0]["status"], "disconnected");
        assert_eq!(peers["peers"][0]["funs"], json!([]));
        alone.stop().await;
    }

    #[tokio::test]
    async fn a_main_that_was_named_is_shown_and_counted_before_anybody_knows_who_it_is() {
        let alone = Alone::start(Role::Main).await;
        let inner = &alone.federation.inner;
        let known = PeerId::random();
        alone.around.send_modify(|around| around.mains = vec![known]);
        let named = |given: &str, found: &[PeerId], error: &str| NamedMain {
            given: given.to_owned(),
            found: found.to_vec(),
            error: Some(error.to_owned()),
        };
        alone.federation.show_named(vec![
            named("http://known.example:80", &[known], "connection reset"),
            named("http://unknown.example:80", &[], "Connection refused"),
        ]);
        let peers = inner.peers_document()["peers"].clone();
        for (place, id, url, error) in [
            (
                0,
                json!(known.to_string()),
                "http://known.example:80",
                "connection reset",
            ),
            (1, Value::Null, "http://unknown.example:80", "Connection refused"),
        ] {
            let peer = &peers[place];
            assert_eq!(
                (&peer["node_id"], &peer["healthy"]),
                (&id, &json!(false)),
                "{peers}"
            );
            assert_eq!(
                (&peer["url"], &peer["error"]),
                (&json!(url), &json!(error)),
                "{peers}"
            );
        }
        let shapes = [0, 1].map(|place| Vec::from_iter(peers[place].as_object().unwrap().keys().cloned()));
        assert_eq!(shapes[0], shapes[1], "each has the same members");
        let (health, document) = inner.health_document();
        assert_eq!(health, Health::Degraded);
        assert_eq!(
            (&document["total_peers"], &document["failed_peers"]),
            (&json!(2), &json!(2))
        );
        let text = alone.federation.metrics_text(EdgeNumbers::default());
        let line = "lapwing_federation_peer_healthy{peer=\"\",name=\"http://unknown.example:80\"} 0";
        assert!(text.lines().any(|found| found == line), "{text}");
        alone.stop().await;
    }

    #[tokio::test]
    async fn an_identity_can_be_dialed() {
        let alone = Alone::start(Role::Main).await;
        let me = alone.network.peer_id().to_string();
        let document = alone.federation.inner.identity_document();
        let address = document["addresses"][0].as_str().unwrap();
        assert!(address.starts_with("/ip4/127.0.0.1/udp/"), "{address}");
        assert!(address.ends_with(&format!("/p2p/{me}")), "{address}");
        assert_eq!(document["peer_id"], me);
        assert_eq!(
            (&document["name"], &document["node_type"]),
            (&json!("alone"), &json!("main"))
        );
        alone.stop().await;
    }

    #[tokio::test]
    async fn a_call_moves_the_counters_and_every_sample_has_a_type() {
        let alone = Alone::start(Role::Main).await;
        alone.offer("blog");
        let answer = |body: &'static str| {
            let federation = alone.federation.clone();
            async move {
                federation
                    .answer(body.as_bytes(), &crate::Headers::default())
                    .await
            }
        };
        let said = answer(r#"{"jsonrpc":"2.0","id":1,"method":"blog.echo","params":[1]}"#).await;
        assert_eq!(
            said.body.as_deref(),
            Some(r#"{"jsonrpc":"2.0","id":1,"result":1}"#)
        );
        let _ = answer(r#"{"jsonrpc":"2.0","id":1,"method":"none.echo"}"#).await;
        let _ = answer("nonsense").await;
        let text = alone.federation.metrics_text(EdgeNumbers::default());
        let me = alone.network.peer_id();
        for sample in [
            "calls_total{outcome=\"ok\"} 1".to_owned(),
            "calls_total{outcome=\"service_not_found\"} 1".to_owned(),
            "requests_total{outcome=\"parse_error\"} 1".to_owned(),
            "call_duration_seconds_count 2".to_owned(),
            "calls_in_hand 0".to_owned(),
            format!("instance_calls_total{{service=\"blog\",node=\"{me}\",outcome=\"ok\"}} 1"),
            format!("breaker_open{{service=\"blog\",node=\"{me}\"}} 0"),
            "instances{scope=\"local\"} 1".to_owned(),
        ] {
            let line = format!("lapwing_federation_{sample}");
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let mut typed = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                typed = rest.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(typed), "{line} comes under {typed}");
            }
        }
        alone.stop().await;
    }

    #[test]
    fn times_are_written_as_rfc_3339_asks() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        }
        assert_eq!(rfc3339(Duration::from_millis(1_234)), "1970-01-01T00:00:01.234Z");
    }

    #[test]
    fn a_latency_is_a_text_in_milliseconds() {
        for (micros, text) in [(0, "0ms"), (400, "0.4ms"), (45_200, "45ms")] {
            assert_eq!(millis_text(Duration::from_micros(micros)), text);
        }
    }
}
