//! Finds the mains that a relay was told of: at multiaddrs, behind URLs that say who is there, in the domain name system, and
//! at gateways. It keeps looking, since a main may come back as another one. What has come of that so far is in [`Known`].

#[cfg(test)]
mod by_name;
mod known;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hickory_resolver::TokioResolver;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::RData;
use lapwing_base::{Multiaddr, PeerId, Protocol, Role};
use lapwing_federation::{Around, Federation, MainAddress};
use lapwing_gateway::Client;
use lapwing_net::Network;
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::known::{FOUND_MAX, Known, Question};
use crate::relay::WantedMains;

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

/// Who and what is asked at the same time: as many as a relay can be told of mains, so that one that does not answer holds up
/// none of them. Those that names lead to beyond that wait for a moment.
const ASKED_MAX: usize = 256;

/// How the domain name system is asked: as the settings of this machine say. They are read when a name is first looked up, since
/// a person may add one at any time, and again as long as they cannot be.
#[derive(Default)]
pub(crate) struct Names {
    resolver: OnceLock<TokioResolver>,
}

impl Names {
    fn resolver(&self) -> Result<&TokioResolver, NetError> {
        match self.resolver.get() {
            Some(resolver) => Ok(resolver),
            None => {
                let built = TokioResolver::builder_tokio()?.build()?;
                Ok(self.resolver.get_or_init(|| built))
            }
        }
    }
}

/// Has names looked up as somebody else says.
impl From<TokioResolver> for Names {
    fn from(resolver: TokioResolver) -> Self {
        Self {
            resolver: OnceLock::from(resolver),
        }
    }
}

/// A main that was found, and where.
type Found = (PeerId, Vec<Multiaddr>);

/// What a question has come to.
enum Heard {
    Named(String, Result<Vec<MainAddress>, LookError>),
    Answered(MainAddress, Result<Found, LookError>),
    Gateway(Option<Vec<Found>>),
}

/// Questions that wait to be asked and those that were: none twice at a time, and not too many at a time.
#[derive(Debug, Default)]
struct Questions {
    waiting: VecDeque<Question>,
    /// At most [`ASKED_MAX`].
    asked: Vec<Question>,
}

impl Questions {
    fn put(&mut self, question: Question) {
        if !self.asked.contains(&question) && !self.waiting.contains(&question) {
            self.waiting.push_back(question);
        }
    }

    /// What may be asked now.
    fn next(&mut self) -> Option<Question> {
        if self.asked.len() == ASKED_MAX {
            return None;
        }
        let question = self.waiting.pop_front()?;
        self.asked.push(question.clone());
        Some(question)
    }

    fn on_heard(&mut self, question: &Question) {
        self.asked.retain(|asked| asked != question);
    }
}

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
    #[error("the domain name system has no SRV records of this name")]
    NoRecords,
    #[error(transparent)]
    Name(NetError),
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
    pub(crate) names: Names,
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

    async fn look_on(&self) {
        let mut wanted = self.wanted.clone();
        let mut known = Known::default();
        known.want(wanted.borrow_and_update().clone());
        self.tell(&known);
        let me = self.network.peer_id();
        let mut questions = Questions::default();
        let mut asking = FuturesUnordered::new();
        let mut asked_at = None;
        let mut lost_since = now();
        let mut has_told = false;
        loop {
            let now = now();
            let neighbours = self.federation.neighbours().into_iter().collect();
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
                warn!(
                    mains = missing.join(", "),
                    "these mains are not reached; it goes on trying. See /federation/peers for why"
                );
            }
            if asked_at.is_none_or(|asked_at| now >= asked_at + interval) {
                asked_at = Some(now);
                let at_gateway = self.gateway.is_some().then_some(Question::Gateway);
                known
                    .questions()
                    .into_iter()
                    .chain(at_gateway)
                    .for_each(|question| questions.put(question));
            }
            while let Some(question) = questions.next() {
                asking.push(async move { (self.ask(&question).await, question) });
            }
            // Each is taken in as it comes: one that does not answer holds up none that does.
            tokio::select! {
                Some((heard, question)) = asking.next() => {
                    questions.on_heard(&question);
                    if known.asks(&question) {
                        let more = self.take(&mut known, heard);
                        more.into_iter().for_each(|question| questions.put(question));
                        self.tell(&known);
                    }
                }
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                changed = wanted.changed() => {
                    if changed.is_err() { return }
                    known.want(wanted.borrow_and_update().clone());
                    self.tell(&known);
                    asked_at = None;
                }
            }
        }
    }

    /// Takes in what was heard; returns what is to be asked because of that.
    fn take(&self, known: &mut Known, heard: Heard) -> Vec<Question> {
        match heard {
            Heard::Named(name, said) => {
                if let Err(error) = &said {
                    let error = lapwing_base::chain(error);
                    debug!(name, error, "the domain name system does not say where mains are");
                }
                known.on_named(&name, &said.map_err(|error| root(&error)))
            }
            Heard::Answered(at, answer) => {
                if let Err(error) = &answer {
                    debug!(source = %at, error = lapwing_base::chain(error), "a main was not found");
                }
                let answer = answer.map(|found| self.learn(found));
                known.on_answered(&at, &answer.map_err(|error| root(&error)));
                Vec::new()
            }
            Heard::Gateway(found) => {
                if let Some(found) = found {
                    let found = found.into_iter().take(FOUND_MAX);
                    known.on_gateway(found.map(|found| self.learn(found)).collect());
                }
                Vec::new()
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

    fn learn(&self, (peer, mut addresses): Found) -> PeerId {
        addresses.truncate(ADDRESSES_MAX);
        self.network.learn(peer, addresses);
        peer
    }

    async fn ask(&self, question: &Question) -> Heard {
        match question {
            Question::Name(name) => Heard::Named(name.clone(), self.look_up(name).await),
            Question::Address(at) => {
                let answer = match at {
                    MainAddress::Multiaddr { peer, address, .. } => Ok((*peer, vec![address.clone()])),
                    MainAddress::Identity { url, .. } => self.ask_identity(url.clone()).await,
                };
                Heard::Answered(at.clone(), answer)
            }
            Question::Gateway => Heard::Gateway(self.ask_gateway().await),
        }
    }

    /// Where the domain name system has the mains of a name.
    async fn look_up(&self, name: &str) -> Result<Vec<MainAddress>, LookError> {
        let records = async { self.names.resolver()?.srv_lookup(name).await }.await;
        let records = records.map_err(|error| match error.is_no_records_found() {
            true => LookError::NoRecords,
            false => LookError::Name(error),
        })?;
        Ok(by_priority(&records))
    }

    /// Who is behind a URL, and where: what it says, and where it was asked.
    async fn ask_identity(&self, url: Url) -> Result<Found, LookError> {
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

    async fn ask_gateway(&self) -> Option<Vec<Found>> {
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
fn by_priority(records: &Lookup) -> Vec<MainAddress> {
    let services = records.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    });
    let mut found: Vec<_> = services
        // The root says that there is none.
        .filter(|srv| !srv.target.is_root())
        .map(|srv| {
            let host = srv.target.to_ascii();
            (srv.priority, Reverse(srv.weight), host, srv.port)
        })
        .collect();
    found.sort();
    let addresses = found.into_iter().filter_map(|(.., host, port)| {
        let host = host.trim_end_matches('.');
        format!("http://{host}:{port}")
            .parse()
            .inspect_err(
                |error| debug!(host, port, %error, "the domain name system has a main at no address"),
            )
            .ok()
    });
    addresses.collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a driver: it waits for as long as a main has been away"
)]
fn now() -> Instant {
    Instant::now()
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

    #[test]
    fn what_was_asked_is_not_asked_again_before_the_answer_and_only_so_many_are_asked_at_a_time() {
        let mut questions = Questions::default();
        let all: Vec<Question> = (0..=ASKED_MAX)
            .map(|number| Question::Name(number.to_string()))
            .collect();
        for _ in 0..2 {
            all.iter().cloned().for_each(|question| questions.put(question));
        }
        let asked: Vec<Question> = std::iter::from_fn(|| questions.next()).collect();
        assert_eq!(asked, all[..ASKED_MAX]);
        questions.put(all[0].clone());
        questions.on_heard(&all[1]);
        assert_eq!(questions.next(), Some(all[ASKED_MAX].clone()));
        assert_eq!(questions.next(), None);
        questions.on_heard(&all[0]);
        questions.put(all[0].clone());
        assert_eq!(questions.next(), Some(all[0].clone()));
    }
}
