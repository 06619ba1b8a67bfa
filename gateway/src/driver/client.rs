//! A node's side of the gateway: register, claim, confirm, discover, leave, and stay registered.
//!
//! Asks several gateways at once and takes the first valid answer; keeps the last one on disk. Does not join
//! clusters: what a leader hint is worth, the node finds out by asking the peer it names.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapwing_base::{ClusterId, Keypair, PeerId, Term, innermost};
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::cache::{Cache, Known, Pin};
use super::clock;
use crate::{
    Backoff, Claim, ClaimRequest, ClusterState, ClusterSummary, Confirm, ConfirmRequest, HintRequest,
    LeaderHint, Leave, Lineage, Message, NodePage, NodeRecord, Problem, Registered, Registration, Signed,
    UnixTime,
};

/// Settings of a client. Checked by [`Client::new`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Base addresses, such as `http://gateway.example:8080`; at least one. The first one owns the bootstrap
    /// claim, since two gateways must not both grant it: give every node the same first one.
    pub gateways: Vec<String>,
    /// Where the last answer is kept across restarts. Default none.
    pub cache_file: Option<PathBuf>,
    /// How old an answer in the cache may be. Default one day: most addresses live longer.
    pub cache_ttl: Duration,
    /// How long one request may take. Default 10 s, as older clients.
    pub timeout: Duration,
    /// How often to send a heartbeat. Default what the gateway asks for.
    pub heartbeat_interval: Option<Duration>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            gateways: Vec::new(),
            cache_file: None,
            cache_ttl: Duration::from_secs(24 * 60 * 60),
            timeout: Duration::from_secs(10),
            heartbeat_interval: None,
        }
    }
}

/// A client cannot be made of these settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No gateway was given.
    #[error("no gateway was given: name at least one, such as http://gateway.example:8080")]
    NoGateway,
    /// An address is not one of a gateway.
    #[error(
        "`{url}` is not the address of a gateway ({problem}); expected one such as http://gateway.example:8080"
    )]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The HTTP stack did not start, such as for want of trusted certificates.
    #[error("cannot set up HTTPS: is there a store of trusted certificates on this machine?")]
    Http(#[source] reqwest::Error),
}

/// A request to the gateways failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No gateway could be reached. Worth trying again.
    #[error("no gateway answered: {}", failures.join("; "))]
    NoAnswer {
        /// What happened at each.
        failures: Vec<String>,
    },
    /// What answered is not a gateway of ours, or a broken one.
    #[error("{gateway} gave no valid answer: {problem}")]
    Malformed {
        /// Which.
        gateway: String,
        /// What was wrong.
        problem: String,
    },
    /// This node belongs to another cluster than the gateway's. It will not change by asking again.
    #[error(
        "{gateway} serves another cluster: {}; give this node the gateway of its own cluster, or another data directory",
        problem.detail
    )]
    ClusterMismatch {
        /// Which.
        gateway: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// A later start of a node with this identity was seen.
    #[error(
        "{gateway} has seen incarnation {known} of this identity: is a second node running with the same key?"
    )]
    Outrun {
        /// Which.
        gateway: String,
        /// The incarnation it has seen.
        known: u64,
    },
    /// The gateway has lost its memory since this node joined its cluster, and stands for nothing now.
    #[error("{gateway} has a new history ({offered}, not {pinned}) and does not know this node's cluster")]
    OtherLineage {
        /// Which.
        gateway: String,
        /// The lineage under which this node joined.
        pinned: Lineage,
        /// The lineage it has now.
        offered: Lineage,
    },
    /// Any other refusal.
    #[error("{gateway} refused: {} ({})", problem.detail, problem.code)]
    Refused {
        /// Which.
        gateway: String,
        /// Its words.
        problem: Box<Problem>,
    },
    /// The node's key cannot sign.
    #[error("the message could not be signed with this node's key")]
    Unsigned,
}

impl ClientError {
    /// Whether the very same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoAnswer { .. } | Self::Malformed { .. } => true,
            Self::Refused { problem, .. } => problem.retryable,
            Self::ClusterMismatch { .. }
            | Self::Outrun { .. }
            | Self::OtherLineage { .. }
            | Self::Unsigned => false,
        }
    }

    fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { problem, .. } => Some(&problem.code),
            _ => None,
        }
    }
}

/// A claim could not be confirmed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfirmError {
    /// Somebody else has got the claim: give up the cluster and join the other one.
    #[error("the claim was superseded by epoch {epoch}: join the cluster instead")]
    Superseded {
        /// The newest epoch.
        epoch: u64,
        /// The cluster to join, when it exists already.
        cluster_id: Option<ClusterId>,
    },
    /// It is not known whether the confirmation arrived. Confirm again: it is safe to repeat.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What the gateways know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Discovered {
    /// The gateway's lineage.
    pub lineage: Lineage,
    /// Whether there is a cluster.
    pub cluster: ClusterState,
    /// Its id, once there is one.
    pub cluster_id: Option<ClusterId>,
    /// Registered nodes that say they are members.
    pub size: usize,
    /// Who leads, as far as members have said.
    pub leader: Option<LeaderHint>,
    /// The leader's term.
    pub term: Option<Term>,
    /// At most 1,000 nodes; at most 64 when from a registration's answer.
    pub nodes: Vec<NodeRecord>,
    /// True when no gateway answered and this is what was known before.
    #[serde(skip)]
    pub from_cache: bool,
}

/// A node's connection to its gateways. Cheap to share in an [`Arc`].
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    keypair: Keypair,
    peer_id: PeerId,
    http: reqwest::Client,
    /// The owner of the bootstrap claim first.
    gateways: Vec<Arc<Remote>>,
    cache: Arc<Cache>,
    sent: Mutex<Sent>,
    automatic: watch::Sender<Option<Registration>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// One gateway.
#[derive(Debug)]
struct Remote {
    url: Url,
    /// One of `UNTRIED`, `UP`, `DOWN`.
    health: AtomicU8,
}

const UNTRIED: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// What was sent last.
#[derive(Debug, Default)]
struct Sent {
    /// The highest number used in `incarnation`.
    seq: u64,
    incarnation: u64,
    registration: Option<Registration>,
}

/// Longest answer: a page of 1,000 nodes with everything at its bound.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Shortest time between two heartbeats, so that a flapping registration does not flood the gateways.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

/// Longest interval that a gateway may ask for.
const HEARTBEAT_MAX: Duration = Duration::from_secs(300);

/// How often the cache file is written when nothing but times has changed.
const CACHE_SAVE_SECONDS: f64 = 60.0;

impl Client {
    /// Checks the settings and reads the cache. Makes no request.
    pub fn new(config: ClientConfig, keypair: Keypair) -> Result<Self, ConfigError> {
        // An error means that the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let urls = config.gateways.iter().map(|text| parse(text));
        let urls = urls.collect::<Result<Vec<_>, _>>()?;
        if urls.is_empty() {
            return Err(ConfigError::NoGateway);
        }
        let mut http = reqwest::Client::builder()
            .timeout(config.timeout)
            .connect_timeout(config.timeout)
            // Less than a gateway's patience with idle connections, so that none is reused as it closes.
            .pool_idle_timeout(Duration::from_secs(5))
            // A signed message is for the gateway it was sent to.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("lapwing/", env!("CARGO_PKG_VERSION")));
        if urls.iter().all(|url| url.scheme() == "http") {
            // Without HTTPS a machine needs no store of trusted certificates.
            http = http.tls_certs_only([]);
        }
        if urls.iter().all(is_loopback) {
            http = http.no_proxy();
        }
        let remote = |url| {
            let health = AtomicU8::new(UNTRIED);
            Arc::new(Remote { url, health })
        };
        Ok(Self {
            peer_id: keypair.public().to_peer_id(),
            keypair,
            http: http.build().map_err(ConfigError::Http)?,
            gateways: urls.into_iter().map(remote).collect(),
            cache: Arc::new(Cache::open(config.cache_file.clone())),
            sent: Mutex::new(Sent::default()),
            automatic: watch::Sender::new(None),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            config,
        })
    }

    /// Registers this node at every gateway, or renews it; the first valid answer wins, and the others are
    /// told all the same.
    ///
    /// A `seq` that was used already is raised, and so is one that a gateway has seen. The peer id is that of
    /// this client's key, whatever the registration says.
    pub async fn register(&self, registration: Registration) -> Result<Registered, ClientError> {
        let mut registration = registration;
        registration.peer_id = self.peer_id;
        match self.try_register(&mut registration).await {
            // Seen numbers come from an earlier life of this node that this one does not remember.
            Err(ClientError::Refused { problem, .. })
                if problem.code == "stale-sequence"
                    && problem.incarnation == Some(registration.incarnation) =>
            {
                registration.seq = problem.seq.unwrap_or(0).saturating_add(1);
                self.try_register(&mut registration).await
            }
            other => other,
        }
    }

    /// Asks the owner of the bootstrap claim whether this node may found the cluster. Register first.
    ///
    /// Safe to repeat after a lost answer: one incarnation gets the same grant again.
    pub async fn claim(&self, incarnation: u64) -> Result<Claim, ClientError> {
        match self.try_claim(incarnation).await {
            Err(ClientError::Refused { problem, .. })
                if problem.code == "not-registered" && self.register_again_at_owner().await? =>
            {
                self.try_claim(incarnation).await
            }
            Err(ClientError::Refused { problem, .. }) if problem.code == "stale-sequence" => {
                self.skip_to(incarnation, problem.seq);
                self.try_claim(incarnation).await
            }
            other => other,
        }
    }

    /// Reports that the claimed cluster exists. Safe to repeat.
    pub async fn confirm(&self, confirm: Confirm) -> Result<(), ConfirmError> {
        let Confirm {
            epoch,
            cluster_id,
            term,
        } = confirm;
        let request = ConfirmRequest {
            peer_id: self.peer_id,
            epoch,
            cluster_id,
            term,
        };
        let body = self.sign(request)?;
        let confirmed = self
            .ask_owner::<ClusterSummary>("v1/bootstrap/confirm", body)
            .await;
        match confirmed {
            Ok(_) => Ok(()),
            Err(ClientError::Refused { problem, .. }) if problem.code == "epoch-superseded" => {
                Err(ConfirmError::Superseded {
                    epoch: problem.epoch.unwrap_or_default(),
                    cluster_id: problem.cluster_id,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tells every gateway who leads, between heartbeats. Only members are believed.
    pub async fn hint(&self, cluster_id: ClusterId, leader: PeerId, term: Term) -> Result<(), ClientError> {
        let request = HintRequest {
            peer_id: self.peer_id,
            cluster_id,
            leader,
            term,
        };
        let body = self.sign(request)?;
        let accept = |_: &Remote, _: &ClusterSummary| Ok(());
        self.ask_all(Method::POST, "v1/leader".to_owned(), Some(body), accept)
            .await
            .map(drop)
    }

    /// Asks every gateway what it knows; what was known before, when none answers.
    pub async fn discover(&self) -> Result<Discovered, ClientError> {
        let pins = self.cache.known().pins;
        let accept = move |remote: &Remote, page: &NodePage| {
            check_lineage(
                remote,
                pins.get(remote.url.as_str()),
                page.summary.lineage,
                page.summary.cluster_id,
            )
        };
        let path = "v1/nodes?limit=1000".to_owned();
        match self.ask_all::<NodePage>(Method::GET, path, None, accept).await {
            Ok((_, page)) => {
                let discovered = Discovered::from(page);
                self.remember(&discovered);
                Ok(discovered)
            }
            Err(error) => self.recall().ok_or(error),
        }
    }

    /// Tells every gateway that this node goes for good. Nothing to do when it never registered.
    pub async fn leave(&self) -> Result<(), ClientError> {
        let (incarnation, seq) = {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            if sent.registration.take().is_none() {
                return Ok(());
            }
            sent.seq += 1;
            (sent.incarnation, sent.seq)
        };
        let leave = Leave {
            peer_id: self.peer_id,
            incarnation,
            seq,
        };
        let body = self.sign(leave)?;
        let path = format!("v1/nodes/{}", self.peer_id);
        let farewells = self.gateways.iter().map(|remote| {
            let (http, body, path) = (self.http.clone(), body.clone(), path.clone());
            async move {
                match call::<Option<ClusterSummary>>(&http, remote, Method::DELETE, &path, Some(body)).await {
                    Err(error) if error.code() != Some("not-registered") => Err(error),
                    _ => Ok(()),
                }
            }
        });
        let results = futures::future::join_all(farewells).await;
        let errors: Vec<ClientError> = results.into_iter().filter_map(Result::err).collect();
        if errors.len() < self.gateways.len() {
            return Ok(());
        }
        Err(worst(errors))
    }

    /// Stays registered until `stop`: sends a heartbeat at every interval, and one at once when the
    /// registration changes.
    ///
    /// A heartbeat is a whole registration, so a gateway that has forgotten the node knows it again with the
    /// first one. After a failure it waits 0.25 s doubling to 30 s, with full jitter. Does not leave in the end.
    pub async fn keep_registered(
        self: Arc<Self>,
        mut registrations: watch::Receiver<Registration>,
        stop: CancellationToken,
    ) {
        let mut backoff = Backoff::new();
        let mut failing = false;
        loop {
            let registration = registrations.borrow_and_update().clone();
            let answered = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                answered = self.register(registration) => answered,
            };
            let wait = match answered {
                Ok(answer) => {
                    if std::mem::take(&mut failing) {
                        info!("registered again");
                    }
                    backoff.reset();
                    self.interval(&answer)
                }
                Err(error) => {
                    // Told once; that a gateway is lost or back is told where it is noticed.
                    if !std::mem::replace(&mut failing, true)
                        && !matches!(error, ClientError::NoAnswer { .. })
                    {
                        warn!(%error, "could not register");
                    }
                    debug!(%error, "a heartbeat failed");
                    clock::next_wait(&mut backoff)
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(HEARTBEAT_MIN) => (),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = registrations.changed() => (),
                () = tokio::time::sleep(wait.saturating_sub(HEARTBEAT_MIN)) => (),
            }
        }
    }

    /// The paved path for other programs: registers, returns what there is, and keeps sending heartbeats until
    /// [`Self::shutdown`]. Change what they say with [`Self::update`].
    pub async fn discover_cluster(
        self: &Arc<Self>,
        registration: Registration,
    ) -> Result<Registered, ClientError> {
        let answer = self.register(registration.clone()).await?;
        let first = self.automatic.send_replace(Some(registration.clone())).is_none();
        if first {
            let (said, registrations) = watch::channel(registration);
            let mut updates = self.automatic.subscribe();
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                loop {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return,
                        changed = updates.changed() => if changed.is_err() { return },
                    }
                    if let Some(registration) = updates.borrow_and_update().clone() {
                        said.send_replace(registration);
                    }
                }
            });
            let keep = Arc::clone(self).keep_registered(registrations, self.stop.clone());
            self.tasks.spawn(keep);
        }
        Ok(answer)
    }

    /// Changes what the automatic heartbeats say, such as who leads, and sends one at once. Does nothing before
    /// [`Self::discover_cluster`].
    pub fn update(&self, change: impl FnOnce(&mut Registration)) {
        self.automatic
            .send_if_modified(|registration| registration.as_mut().map(change).is_some());
    }

    /// Ends the automatic heartbeats, leaves, and waits for every task of this client.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if let Err(error) = self.leave().await {
            debug!(%error, "could not say goodbye");
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn try_register(&self, registration: &mut Registration) -> Result<Registered, ClientError> {
        {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            if sent.incarnation != registration.incarnation {
                (sent.incarnation, sent.seq) = (registration.incarnation, 0);
            }
            registration.seq = registration.seq.max(sent.seq.saturating_add(1));
            sent.seq = registration.seq;
            sent.registration = Some(registration.clone());
        }
        let body = self.sign(registration.clone())?;
        let pins = self.cache.known().pins;
        let accept = move |remote: &Remote, answer: &Registered| {
            check_lineage(
                remote,
                pins.get(remote.url.as_str()),
                answer.lineage,
                answer.cluster_id,
            )
        };
        let asked = self.ask_all::<Registered>(Method::POST, "v1/nodes".to_owned(), Some(body), accept);
        match asked.await {
            Ok((remote, answer)) => {
                if let Some(cluster_id) = registration.cluster_id {
                    self.pin(&remote, answer.lineage, cluster_id);
                }
                self.remember(&Discovered::from(&answer));
                Ok(answer)
            }
            Err(ClientError::Refused { gateway, problem })
                if problem.code == "stale-sequence"
                    && problem
                        .incarnation
                        .is_some_and(|known| known > registration.incarnation) =>
            {
                let known = problem.incarnation.unwrap_or_default();
                Err(ClientError::Outrun { gateway, known })
            }
            Err(error) => Err(error),
        }
    }

    async fn try_claim(&self, incarnation: u64) -> Result<Claim, ClientError> {
        let seq = {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.seq += 1;
            sent.seq
        };
        let request = ClaimRequest {
            peer_id: self.peer_id,
            incarnation,
            seq,
        };
        self.ask_owner("v1/bootstrap/claim", self.sign(request)?).await
    }

    /// Goes on after a number that a gateway has seen.
    fn skip_to(&self, incarnation: u64, seq: Option<u64>) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.incarnation == incarnation {
            sent.seq = sent.seq.max(seq.unwrap_or_default());
        }
    }

    /// Registers at the owner of the claim alone; false when this node never registered anywhere.
    async fn register_again_at_owner(&self) -> Result<bool, ClientError> {
        let registration = {
            let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            sent.seq += 1;
            let seq = sent.seq;
            sent.registration
                .clone()
                .map(|registration| Registration { seq, ..registration })
        };
        let Some(registration) = registration else {
            return Ok(false);
        };
        let body = self.sign(registration)?;
        self.ask_owner::<Registered>("v1/nodes", body).await?;
        Ok(true)
    }

    fn sign(&self, message: impl Message) -> Result<Vec<u8>, ClientError> {
        let signed = Signed::new(message, &self.keypair).ok_or(ClientError::Unsigned)?;
        serde_json::to_vec(&signed).map_err(|_| ClientError::Unsigned)
    }

    /// Asks the gateway that owns the bootstrap claim.
    async fn ask_owner<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        let Some(owner) = self.gateways.first() else {
            return Err(ClientError::NoAnswer { failures: Vec::new() });
        };
        call(&self.http, owner, Method::POST, path, Some(body)).await
    }

    /// Asks every gateway; the first answer that `accept` takes wins. The rest go on by themselves.
    async fn ask_all<T: DeserializeOwned + Send + 'static>(
        &self,
        method: Method,
        path: String,
        body: Option<Vec<u8>>,
        accept: impl Fn(&Remote, &T) -> Result<(), ClientError>,
    ) -> Result<(Arc<Remote>, T), ClientError> {
        // Each gateway answers once.
        let (answers, mut inbox) = mpsc::channel(self.gateways.len());
        for remote in &self.gateways {
            let (http, remote) = (self.http.clone(), Arc::clone(remote));
            let (method, path, body) = (method.clone(), path.clone(), body.clone());
            let (answers, stop) = (answers.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => (),
                    answer = call::<T>(&http, &remote, method, &path, body) => {
                        // Nobody listens any more once another gateway has answered.
                        let _ = answers.send((Arc::clone(&remote), answer)).await;
                    }
                }
            });
        }
        drop(answers);
        let mut errors = Vec::new();
        while let Some((remote, answer)) = inbox.recv().await {
            match answer.and_then(|answer| accept(&remote, &answer).map(|()| answer)) {
                Ok(answer) => return Ok((remote, answer)),
                Err(error) => errors.push(error),
            }
        }
        Err(worst(errors))
    }

    fn interval(&self, answer: &Registered) -> Duration {
        let asked = Duration::try_from_secs_f64(answer.heartbeat_interval_seconds).unwrap_or(HEARTBEAT_MAX);
        let interval = self.config.heartbeat_interval.unwrap_or(asked);
        interval
            .clamp(HEARTBEAT_MIN, HEARTBEAT_MAX)
            .mul_f64(clock::draw_jitter())
    }

    fn pin(&self, remote: &Remote, lineage: Lineage, cluster_id: ClusterId) {
        let pin = Pin { lineage, cluster_id };
        let changed = self.cache.learn(|known| {
            let before = known.pins.insert(remote.url.to_string(), pin);
            if let Some(before) = before
                && before.cluster_id == cluster_id
                && before.lineage != lineage
            {
                warn!(gateway = %remote.url, "the gateway has lost its memory; it was told of the cluster again");
            }
            before != Some(pin)
        });
        if changed {
            self.save_cache();
        }
    }

    fn remember(&self, discovered: &Discovered) {
        let now = clock::now().unix;
        let due = self.cache.learn(|known| known.learn(discovered, now));
        if due {
            self.save_cache();
        }
    }

    fn save_cache(&self) {
        let cache = Arc::clone(&self.cache);
        self.tasks.spawn_blocking(move || cache.save());
    }

    fn recall(&self) -> Option<Discovered> {
        let known = self.cache.known();
        let age = clock::now().unix.0 - known.learned_at.0;
        // A clock that was set back makes ages negative: such an answer is not known to be old.
        let mut discovered = known
            .discovered
            .filter(|_| age < self.config.cache_ttl.as_secs_f64())?;
        discovered.from_cache = true;
        Some(discovered)
    }
}

impl Known {
    /// Takes an answer; true when it is worth writing to disk.
    fn learn(&mut self, discovered: &Discovered, now: UnixTime) -> bool {
        let gist = |discovered: &Discovered| {
            let peers: Vec<PeerId> = discovered.nodes.iter().map(|node| node.peer_id).collect();
            (discovered.cluster_id, discovered.leader.clone(), peers)
        };
        let changed = self
            .discovered
            .as_ref()
            .is_none_or(|before| gist(before) != gist(discovered));
        let due = changed || now.0 - self.learned_at.0 > CACHE_SAVE_SECONDS;
        self.discovered = Some(discovered.clone());
        if due {
            self.learned_at = now;
        }
        due
    }
}

impl From<NodePage> for Discovered {
    fn from(page: NodePage) -> Self {
        let summary = page.summary;
        Self {
            lineage: summary.lineage,
            cluster: summary.cluster,
            cluster_id: summary.cluster_id,
            size: summary.size,
            leader: summary.leader,
            term: summary.term,
            nodes: page.nodes,
            from_cache: false,
        }
    }
}

impl From<&Registered> for Discovered {
    fn from(answer: &Registered) -> Self {
        Self {
            lineage: answer.lineage,
            cluster: answer.cluster,
            cluster_id: answer.cluster_id,
            size: answer.size,
            leader: answer.leader.clone(),
            term: answer.leader.as_ref().map(|leader| leader.term),
            nodes: answer.nodes.clone(),
            from_cache: false,
        }
    }
}

/// One request to one gateway. An answer without a body reads as JSON's `null`.
async fn call<T: DeserializeOwned>(
    http: &reqwest::Client,
    remote: &Remote,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<T, ClientError> {
    let gateway = || remote.url.to_string();
    let answered = fetch(http, remote, method, path, body).await;
    remote.note(answered.as_ref().err());
    let (status, body) = answered.map_err(|failure| ClientError::NoAnswer {
        failures: vec![format!("{}: {failure}", remote.url)],
    })?;
    if status.is_success() {
        let json = if body.is_empty() {
            b"null".as_slice()
        } else {
            &body
        };
        return serde_json::from_slice(json).map_err(|error| ClientError::Malformed {
            gateway: gateway(),
            problem: error.to_string(),
        });
    }
    let gateway = gateway();
    match serde_json::from_slice::<Box<Problem>>(&body) {
        Ok(problem) if problem.code == "cluster-mismatch" => {
            Err(ClientError::ClusterMismatch { gateway, problem })
        }
        Ok(problem) => Err(ClientError::Refused { gateway, problem }),
        Err(_) => Err(ClientError::Malformed {
            gateway,
            problem: format!("status {status} without a problem document"),
        }),
    }
}

/// Sends one request and reads the whole answer. The error is for people.
async fn fetch(
    http: &reqwest::Client,
    remote: &Remote,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<(StatusCode, Vec<u8>), String> {
    let url = remote.url.join(path).map_err(|error| error.to_string())?;
    let mut request = http.request(method, url);
    if let Some(body) = body {
        request = request
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
    }
    let mut response = request.send().await.map_err(|error| cause(&error))?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| cause(&error))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((response.status(), body))
}

impl Remote {
    /// Tells a gateway's loss and return, once each.
    fn note(&self, failure: Option<&String>) {
        match failure {
            Some(problem) => {
                if self.health.swap(DOWN, Ordering::Relaxed) != DOWN {
                    warn!(gateway = %self.url, %problem, "the gateway does not answer");
                }
            }
            None => {
                if self.health.swap(UP, Ordering::Relaxed) == DOWN {
                    info!(gateway = %self.url, "the gateway answers again");
                }
            }
        }
    }
}

/// A member does not take a gateway's word that has lost its memory and does not stand for the member's cluster.
fn check_lineage(
    remote: &Remote,
    pin: Option<&Pin>,
    offered: Lineage,
    cluster_id: Option<ClusterId>,
) -> Result<(), ClientError> {
    match pin {
        Some(pin) if pin.lineage != offered && cluster_id != Some(pin.cluster_id) => {
            Err(ClientError::OtherLineage {
                gateway: remote.url.to_string(),
                pinned: pin.lineage,
                offered,
            })
        }
        _ => Ok(()),
    }
}

/// The error that says most: a refusal rather than a silence, else all the silences as one.
fn worst(errors: Vec<ClientError>) -> ClientError {
    let mut failures = Vec::new();
    for error in errors {
        match error {
            ClientError::NoAnswer { failures: more } => failures.extend(more),
            telling => return telling,
        }
    }
    ClientError::NoAnswer { failures }
}

/// What went wrong with a request, without naming it.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    innermost(error)
}

fn parse(text: &str) -> Result<Url, ConfigError> {
    let wrong = |problem: &str| ConfigError::Url {
        url: text.chars().take(200).collect(),
        problem: problem.to_owned(),
    };
    let mut url = Url::parse(text.trim()).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("it must start with http:// or https://"));
    }
    if !url.has_host() {
        return Err(wrong("it names no host"));
    }
    if url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
    {
        return Err(wrong("it has more than a host, a port and a path"));
    }
    // Paths are joined to it, and joining replaces everything after the last slash.
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_address_is_quoted_with_what_is_wrong() {
        for wrong in [
            "",
            "gateway",
            "gateway:8080",
            "ftp://gateway",
            "http://",
            "http://a/?b",
            "http://u:p@a/",
        ] {
            let config = ClientConfig {
                gateways: vec![wrong.to_owned()],
                ..ClientConfig::default()
            };
            let error = Client::new(config, Keypair::generate_ed25519()).unwrap_err();
            assert!(matches!(error, ConfigError::Url { .. }), "{wrong}: {error}");
            assert!(error.to_string().contains(&format!("`{wrong}`")));
        }
        let none = Client::new(ClientConfig::default(), Keypair::generate_ed25519());
        assert!(matches!(none, Err(ConfigError::NoGateway)));
    }

    #[test]
    fn a_gateway_behind_a_path_keeps_it() {
        let url = parse("https://example.com/lapwing").unwrap();
        assert_eq!(
            url.join("v1/nodes").unwrap().as_str(),
            "https://example.com/lapwing/v1/nodes"
        );
    }

    #[test]
    fn a_refusal_says_more_than_a_silence() {
        let silence = |text: &str| ClientError::NoAnswer {
            failures: vec![text.to_owned()],
        };
        let both = worst(vec![silence("a: refused"), silence("b: timed out")]);
        assert_eq!(both.to_string(), "no gateway answered: a: refused; b: timed out");
        let telling = worst(vec![silence("a"), ClientError::Unsigned]);
        assert!(matches!(telling, ClientError::Unsigned));
    }
}
