//! Finds the mains that a relay was told of: at multiaddrs, behind URLs that say who is there, in the domain name system, and
//! at gateways. It keeps looking, since a main may come back as another one.

mod known;

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hickory_resolver::TokioResolver;
use lapwing_base::{Multiaddr, PeerId, Protocol, Role};
use lapwing_federation::{Around, Federation, MainAddress};
use lapwing_gateway::Client;
use lapwing_net::Network;
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::known::Known;
use crate::relay::{MainSource, WantedMains};

/// How often one that is not there is asked for: a main that restarts is back within a second or two.
const LOST_INTERVAL: Duration = Duration::from_millis(500);

/// The same once it has been away for a minute.
const AWAY_INTERVAL: Duration = Duration::from_secs(10);
const AWAY_AFTER: Duration = Duration::from_secs(60);

/// How often one with which there is a session is asked for: it may have more addresses now.
const KNOWN_INTERVAL: Duration = Duration::from_secs(30);

/// How often a session is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// In which a main says who it is.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer to that: a few dozen addresses.
const IDENTITY_MAX: usize = 64 * 1024;

/// Addresses of one main that are kept.
const ADDRESSES_MAX: usize = 32;

/// Mains that one name or one gateway leads to.
const FOUND_MAX: usize = 64;

/// A main that was found.
type Found = Vec<(PeerId, Vec<Multiaddr>)>;

/// What `/federation/identity` says, as far as it is of use.
#[derive(Debug, Deserialize)]
struct Identity {
    peer_id: PeerId,
    addresses: Vec<Multiaddr>,
}

/// Why a main was not found.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("what answers there is no main of ours")]
    NotAMain,
    #[error(transparent)]
    Name(#[from] hickory_resolver::net::NetError),
    #[error(transparent)]
    Gateway(#[from] lapwing_gateway::ClientError),
}

/// Looks for mains, until `stop`.
pub(crate) struct Finder {
    pub(crate) network: Network,
    pub(crate) federation: Federation,
    pub(crate) around: watch::Sender<Around>,
    pub(crate) wanted: watch::Receiver<WantedMains>,
    pub(crate) gateway: Option<Arc<Client>>,
    pub(crate) http: reqwest::Client,
    /// `None` where the system's settings cannot be read.
    pub(crate) resolver: Option<TokioResolver>,
}

/// What is at the bottom of an error: that a connection was refused, and not that a request was not sent.
fn root(error: &dyn Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

impl Finder {
    /// Looks until it is to stop: then nobody waits for mains that do not answer.
    pub(crate) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.look_on()).await;
    }

    async fn look_on(mut self) {
        let mut known = Known::default();
        let me = self.network.peer_id();
        let mut lost_since = now();
        let mut has_told = false;
        loop {
            known.want(self.wanted.borrow_and_update().clone());
            self.tell(&known);
            let places: Vec<MainSource> = known.sources.iter().map(|source| source.place.clone()).collect();
            let looks = places.iter().enumerate();
            let mut looking: FuturesUnordered<_> = looks
                .map(async |(number, place)| (number, self.look(place).await))
                .collect();
            // One that does not answer holds up none that does.
            while let Some((number, found)) = looking.next().await {
                let Some(source) = known.sources.get_mut(number) else {
                    continue;
                };
                match found {
                    Ok(found) => {
                        source.found = self.learn(found);
                        source.error = None;
                    }
                    // What was known stays: it may be right still.
                    Err(error) => {
                        let chain = lapwing_base::chain(&error);
                        debug!(source = %source.place, error = chain, "a main was not found");
                        source.error = Some(root(&error));
                    }
                }
                self.tell(&known);
            }
            drop(looking);
            if let Some(found) = self.ask_gateway().await {
                known.at_gateway = self.learn(found);
            }
            self.tell(&known);
            let asked_at = now();
            loop {
                let now = now();
                let neighbours = self.federation.neighbours();
                let role = self.around.borrow().role;
                let interval = if known.is_whole(role, me, &neighbours) {
                    (lost_since, has_told) = (now, false);
                    KNOWN_INTERVAL
                } else if now < lost_since + AWAY_AFTER {
                    LOST_INTERVAL
                } else {
                    AWAY_INTERVAL
                };
                let missing = known.missing(me, &neighbours);
                if !has_told && now >= lost_since + KNOWN_INTERVAL && !missing.is_empty() {
                    has_told = true;
                    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
                    warn!(
                        mains = missing.join(", "),
                        "these mains are not reached; it goes on trying. See /federation/peers for why"
                    );
                }
                if now >= asked_at + interval {
                    break;
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_INTERVAL.min(interval)) => {}
                    changed = self.wanted.changed() => {
                        if changed.is_err() { return }
                        break;
                    }
                }
            }
        }
    }

    /// Says which mains there are, where that has changed, and where they are to be.
    fn tell(&self, known: &Known) {
        self.federation.show_named(known.named());
        let mains = known.mains(self.network.peer_id());
        self.around.send_if_modified(|around| {
            let is_news = around.mains != mains;
            around.mains.clone_from(&mains);
            is_news
        });
    }

    fn learn(&self, found: Found) -> Vec<PeerId> {
        let mut peers = Vec::new();
        for (peer, mut addresses) in found.into_iter().take(FOUND_MAX) {
            addresses.truncate(ADDRESSES_MAX);
            self.network.learn(peer, addresses);
            peers.push(peer);
        }
        peers
    }

    async fn look(&self, source: &MainSource) -> Result<Found, LookError> {
        match source {
            MainSource::Address(MainAddress::Multiaddr { peer, address, .. }) => {
                Ok(vec![(*peer, vec![address.clone()])])
            }
            MainSource::Address(MainAddress::Identity { url, .. }) => Ok(vec![self.ask(url.clone()).await?]),
            MainSource::Srv(name) => {
                let resolver = self.resolver.as_ref().ok_or(LookError::NotAMain)?;
                let records = resolver.srv_lookup(name.as_str()).await?;
                let mut found = Vec::new();
                for (host, port) in by_priority(&records) {
                    let url = format!("http://{host}:{port}/federation/identity");
                    let Ok(url) = url.parse::<Url>() else { continue };
                    match self.ask(url).await {
                        Ok(main) => found.push(main),
                        Err(error) => {
                            debug!(host, port, %error, "a main of the domain name system does not answer")
                        }
                    }
                }
                if found.is_empty() {
                    Err(LookError::NotAMain)
                } else {
                    Ok(found)
                }
            }
        }
    }

    /// Who is behind a URL, and where: what it says, and where it was asked.
    async fn ask(&self, url: Url) -> Result<(PeerId, Vec<Multiaddr>), LookError> {
        let mut response = self
            .http
            .get(url)
            .timeout(IDENTITY_TIMEOUT)
            .send()
            .await?
            .error_for_status()?;
        let remote = response.remote_addr();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > IDENTITY_MAX {
                return Err(LookError::NotAMain);
            }
            body.extend_from_slice(&chunk);
        }
        let Identity { peer_id, addresses } =
            serde_json::from_slice(&body).map_err(|_| LookError::NotAMain)?;
        Ok((peer_id, with_host(addresses, remote)))
    }

    async fn ask_gateway(&self) -> Option<Found> {
        let discovered = self.gateway.as_ref()?.discover().await;
        match discovered {
            Ok(discovered) => {
                let mains = discovered
                    .nodes
                    .into_iter()
                    .filter(|node| node.role == Role::Main);
                Some(mains.map(|node| (node.peer_id, node.addrs)).collect())
            }
            Err(error) => {
                debug!(error = lapwing_base::chain(&error), "no gateway answers");
                None
            }
        }
    }
}

/// The addresses that a main names, those first that have the host where it has answered: it may not know how it is seen.
fn with_host(addresses: Vec<Multiaddr>, remote: Option<SocketAddr>) -> Vec<Multiaddr> {
    let mut all: Vec<Multiaddr> = Vec::new();
    if let Some(remote) = remote {
        let seen = addresses
            .iter()
            .filter_map(|address| at_host(address, remote.ip()));
        for address in seen {
            if !all.contains(&address) {
                all.push(address);
            }
        }
    }
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// The same address at another host; `None` for one through a relay, which is elsewhere.
fn at_host(address: &Multiaddr, host: IpAddr) -> Option<Multiaddr> {
    if address.iter().any(|part| part == Protocol::P2pCircuit) {
        return None;
    }
    let mut parts = address.iter();
    let first = parts.next()?;
    let is_host = matches!(
        (&first, host),
        (Protocol::Ip4(_), IpAddr::V4(_)) | (Protocol::Ip6(_), IpAddr::V6(_))
    );
    let host = match host {
        IpAddr::V4(ip) => Protocol::Ip4(ip),
        IpAddr::V6(ip) => Protocol::Ip6(ip),
    };
    is_host.then(|| std::iter::once(host).chain(parts).collect())
}

/// As RFC 2782 asks, the lowest priority first; among equals the heaviest, since all of them are asked anyway.
fn by_priority(records: &hickory_resolver::lookup::Lookup) -> Vec<(String, u16)> {
    use hickory_resolver::proto::rr::RData;
    let mut found = Vec::new();
    for record in records.answers() {
        if let RData::SRV(srv) = &record.data {
            let host = srv.target.to_utf8();
            found.push((
                srv.priority,
                u16::MAX - srv.weight,
                host.trim_end_matches('.').to_owned(),
                srv.port,
            ));
        }
    }
    found.sort();
    found.truncate(FOUND_MAX);
    found.into_iter().map(|(_, _, host, port)| (host, port)).collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a driver: it waits for as long as a main has been away"
)]
fn now() -> Instant {
    Instant::now()
}

/// Says once how the domain name system is asked.
pub(crate) fn resolver() -> Option<TokioResolver> {
    match TokioResolver::builder_tokio().and_then(|builder| builder.build()) {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            info!(%error, "names of mains cannot be looked up in the domain name system");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_is_looked_for_where_it_has_answered_before_where_it_says_that_it_is() {
        let addresses: Vec<Multiaddr> = [
            "/ip4/10.0.0.1/udp/4001/quic-v1",
            "/ip4/127.0.0.1/udp/4001/quic-v1",
        ]
        .map(|text| text.parse().unwrap())
        .into();
        let all = with_host(addresses, Some("192.0.2.7:8080".parse().unwrap()));
        let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "/ip4/192.0.2.7/udp/4001/quic-v1",
                "/ip4/10.0.0.1/udp/4001/quic-v1",
                "/ip4/127.0.0.1/udp/4001/quic-v1"
            ]
        );
    }
}
