//! The edge: sessions with neighbours, calls that cross links, and what answers them here.
//!
//! The tables are behind one lock that is held for a moment and never while anything is waited for.

mod asked;
mod audit;
mod backend;
mod calls;
mod catalog;
mod child_backend;
mod compat;
mod counts;
mod documents;
mod edge;
mod http;
mod http_backend;
mod http_server;
mod lines;
mod methods;
mod metrics;
mod neighbours;
mod results;
mod spans;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::future::join_all;
use lapwing_base::{Keypair, PeerId, Role};
use lapwing_net::Network;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::field::display;
use tracing::{debug, info, warn};

use crate::announcement::{SignedAnnouncement, Stamp};
use crate::balancer::Balancer;
use crate::executed::Executed;
use crate::policy::Boundary;
use crate::policy::{Admitted, Around, AuditEvent, Claim, Policy};
use crate::retries::Retries;
use crate::{
    Announcement, AnnouncementError, Balancing, Call, CallAnswer, Departure, HearError, Message, NodeName,
    Registry, Sampler, Service, ServiceName, Span, ToSend,
};
use audit::Audit;
use backend::Offer;
pub use backend::{Backend, CallContext, Echo, Exposure, Invocation};
pub use child_backend::{ChildBackend, ChildBackendError};
use counts::Counts;
pub use edge::Headers;
pub use http::{HttpConfig, PeerChange, router};
pub use http_backend::{HttpBackend, HttpBackendError};
pub use http_server::serve;
use lines::Line;
pub use methods::Methods;
use neighbours::{ForeignCalls, Session, SessionError, ToSay, Told};
use results::Results;
use spans::Spans;
use turns::Turns;

/// The clock, read where things happen.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver reads the clock for the cores"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// When something begins, for people to read; how long it takes is measured with the other clock, which is never set.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver reads the clock for the cores"
)]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// What cores are seeded with.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver draws the seeds of the cores"
)]
fn draw() -> u64 {
    rand::random()
}

/// How a node takes part in the federation.
#[derive(Clone)]
pub struct FederationConfig {
    /// The node's identity.
    pub keypair: Keypair,
    /// What it wants to be called, with the ending of its kind or without ([`NodeName::own`]); the first that claims a name has
    /// it. Default: nothing.
    pub name: Option<NodeName>,
    /// Whom it has to do with.
    pub policy: Policy,
    /// Where it is written down who was let in and what was refused; what finds no place there is lost. Default: nowhere.
    pub audit: Option<mpsc::Sender<AuditEvent>>,
    /// Where the spans of calls go whose trace is sampled. What finds no place there is lost and counted, since no call waits
    /// for it. Default: nowhere, which costs nothing.
    pub spans: Option<mpsc::Sender<Span>>,
    /// Which traces are, where spans go somewhere. Default: all that begin at this node's edge, and others as they say.
    pub sampler: Sampler,
    /// How many links away its services are known: 1 to [`Announcement::HOPS_MAX`]. Default
    /// [`Announcement::HOPS_DEFAULT`]: home, main, main, home.
    pub hops_max: u8,
    /// How calls are spread over the instances of each service, where this node chooses. Default: round robin.
    pub balancing: Balancing,
    /// Greater at each start of the node.
    pub epoch: u64,
}

impl FederationConfig {
    /// A node without a name.
    pub fn new(keypair: Keypair, epoch: u64) -> Self {
        Self {
            keypair,
            name: None,
            policy: Policy::default(),
            audit: None,
            spans: None,
            sampler: Sampler::default(),
            hops_max: Announcement::HOPS_DEFAULT,
            balancing: Balancing::default(),
            epoch,
        }
    }
}

impl fmt::Debug for FederationConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FederationConfig")
            .field("peer", &self.keypair.public().to_peer_id())
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A node's part in the federation. Cheap to clone; it ends at [`Federation::shutdown`], or when the last clone is dropped.
#[derive(Clone, Debug)]
#[must_use = "a node's services go when its last handle is dropped"]
pub struct Federation {
    inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

/// What the tasks share.
pub(crate) struct Inner {
    network: Network,
    keypair: Keypair,
    me: PeerId,
    around: watch::Receiver<Around>,
    policy: Policy,
    audit: Audit,
    spans: Spans,
    /// Whether this node or a home of its offers anything, or has.
    tells: watch::Sender<bool>,
    state: Mutex<State>,
    /// Places of the calls that are on their way through this node.
    room: Arc<Turns>,
    /// Those calls.
    in_hand: TaskTracker,
    /// What the edge has of results.
    results: Arc<Results>,
    /// What neighbours have asked and are not told yet.
    answering: TaskTracker,
    /// Until when this node, which has just started, may not have heard of what is there.
    settled_at: Instant,
    /// Something was heard of others.
    heard: Notify,
    /// A main has said that it is about to end.
    main_leaves: Notify,
    /// This node is about to end: it carries nothing out any more, and a moment later carries nothing on either.
    is_leaving: AtomicBool,
    is_closed: AtomicBool,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct State {
    registry: Registry,
    /// What this node says of itself, next.
    said: Announcement,
    offers: BTreeMap<ServiceName, Offer>,
    sessions: BTreeMap<PeerId, Session>,
    sessions_begun: u64,
    balancing: Balancing,
    balancers: BTreeMap<ServiceName, Balancer<PeerId>>,
    /// Of the services whose instances were chosen lately.
    retries: BTreeMap<ServiceName, Retries>,
    /// Of a home's calls that its main chooses for.
    retries_by_main: Retries,
    executed: Executed<calls::Join>,
    /// Of calls to each neighbour.
    turns: BTreeMap<PeerId, Arc<Turns>>,
    /// On which short calls go to each neighbour.
    lines: BTreeMap<PeerId, Line>,
    /// What neighbours of other clusters have called lately, whatever has become of their sessions.
    foreign_calls: BTreeMap<PeerId, ForeignCalls>,
    /// With whom a session has ended in order a moment ago.
    let_through: BTreeSet<PeerId>,
    /// Why mains are no neighbours.
    told: BTreeMap<PeerId, Told>,
    /// Where this node's mains are to be, as it was told last.
    named: Vec<NamedMain>,
    /// Who has the name that this node wants, as it was told last.
    told_holder: Option<PeerId>,
    /// The main that a home asks.
    uplink: Option<PeerId>,
    /// What its documents say beside this.
    counts: Counts,
    rng: StdRng,
}

/// Something cannot be offered.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// It has a name that is taken here: another node may offer it too.
    #[error("this node offers a service `{0}` already; offer it under another name, or on another node")]
    Twice(ServiceName),
    /// It is more than others take.
    #[error(transparent)]
    Announcement(#[from] AnnouncementError),
}

/// What is known of one service of one node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offered {
    /// What it is.
    pub service: Service,
    /// Whose it is.
    pub origin: PeerId,
    /// What that node is called; `None` where it wants no name, or one that another node has.
    pub node: Option<NodeName>,
    /// How many links away; `None` while it cannot be reached, and none for this node's own.
    pub hops: Option<usize>,
}

/// Where a main is to be, and who was found there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedMain {
    /// As it was written.
    pub given: String,
    /// Whoever has answered there last.
    pub found: Vec<PeerId>,
    /// Why nobody has when it was asked last; `None` where somebody has, and before it was asked.
    pub error: Option<String>,
}

/// How often what was not refreshed is looked for.
const TICK: Duration = Duration::from_secs(10);

impl Federation {
    /// Begins to tell the mains of what this node offers, to hear of what others do, and to carry calls. Of the mains in
    /// `around` a home takes one, and a main all.
    ///
    /// # Errors
    /// When what the node says of itself is nothing that others take.
    pub fn start(
        network: Network,
        config: FederationConfig,
        around: watch::Receiver<Around>,
    ) -> Result<Self, AnnouncementError> {
        let me = network.peer_id();
        if config.policy.boundary == Boundary::Open {
            warn!("nodes of every cluster are let in (--bridge any), and may call what this one lets out");
        }
        let role = around.borrow().role;
        let name = config.name.map(|name| name.own(Some(role))).transpose()?;
        let said = Announcement {
            origin: me,
            stamp: Stamp {
                epoch: config.epoch,
                number: 0,
            },
            cluster: around.borrow().cluster,
            name,
            role,
            hops_max: config.hops_max,
            services: Vec::new(),
            departure: None,
        };
        let stop = CancellationToken::new();
        let inner = Arc::new(Inner {
            me,
            keypair: config.keypair,
            around,
            policy: config.policy,
            audit: Audit::new(config.audit),
            spans: Spans::new(config.spans, config.sampler),
            tells: watch::Sender::new(false),
            state: Mutex::new(State {
                registry: Registry::new(me, said.role),
                said,
                offers: BTreeMap::new(),
                sessions: BTreeMap::new(),
                sessions_begun: 0,
                balancing: config.balancing,
                balancers: BTreeMap::new(),
                retries: BTreeMap::new(),
                retries_by_main: Retries::new(),
                executed: Executed::new(),
                turns: BTreeMap::new(),
                lines: BTreeMap::new(),
                foreign_calls: BTreeMap::new(),
                let_through: BTreeSet::new(),
                told: BTreeMap::new(),
                named: Vec::new(),
                told_holder: None,
                uplink: None,
                counts: Counts::new(),
                rng: StdRng::seed_from_u64(draw()),
            }),
            room: Turns::new(calls::IN_HAND_MAX, calls::IN_HAND_SHARE, 0),
            in_hand: TaskTracker::new(),
            results: Arc::default(),
            answering: TaskTracker::new(),
            settled_at: now() + SETTLES_IN,
            heard: Notify::new(),
            main_leaves: Notify::new(),
            is_leaving: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            stop: stop.clone(),
            network,
        });
        inner.announce()?;
        let announced = inner
            .network
            .serve(neighbours::ANNOUNCE, neighbours::ANNOUNCE_QUEUE);
        let called = inner.network.serve(calls::CALL, calls::CALL_QUEUE);
        let lines_opened = inner.network.serve(lines::LINE, lines::LINE_QUEUE);
        let long_answers = inner.network.serve(lines::ANSWER, lines::ANSWER_QUEUE);
        let accepting = neighbours::accept(Arc::clone(&inner), announced);
        let keeping = neighbours::keep(Arc::clone(&inner));
        let answering = calls::answer(Arc::clone(&inner), called);
        let answering_lines = lines::answer(Arc::clone(&inner), lines_opened);
        let taking = lines::take_answers(Arc::clone(&inner), long_answers);
        let looking = neighbours::look_around(Arc::clone(&inner));
        let ticking = tick(Arc::clone(&inner));
        inner
            .tasks
            .spawn(stop.child_token().run_until_cancelled_owned(accepting));
        inner
            .tasks
            .spawn(stop.child_token().run_until_cancelled_owned(keeping));
        inner
            .tasks
            .spawn(stop.child_token().run_until_cancelled_owned(looking));
        inner
            .tasks
            .spawn(stop.child_token().run_until_cancelled_owned(answering));
        inner
            .tasks
            .spawn(stop.child_token().run_until_cancelled_owned(answering_lines));
        inner
            .tasks
            .spawn(stop.child_token().run_until_cancelled_owned(taking));
        inner
            .tasks
            .spawn(stop.child_token().run_until_cancelled_owned(ticking));
        Ok(Self {
            inner,
            _stop: Arc::new(stop.drop_guard()),
        })
    }

    /// Offers a service to everybody from now on, and says so at once.
    ///
    /// # Errors
    /// When this node has one of the name, or others would not take it.
    pub fn offer(&self, service: Service, backend: Arc<dyn Backend>) -> Result<(), OfferError> {
        self.offer_to(service, backend, Exposure::default())
    }

    /// Offers a service from now on to those that may call it, and says so at once to whom that concerns.
    ///
    /// # Errors
    /// As [`Federation::offer`].
    pub fn offer_to(
        &self,
        service: Service,
        backend: Arc<dyn Backend>,
        exposure: Exposure,
    ) -> Result<(), OfferError> {
        let name = service.name.clone();
        if name.as_str() == catalog::NAME {
            return Err(OfferError::Twice(name));
        }
        service.check().map_err(AnnouncementError::from)?;
        let health = backend.health();
        let withdrawn = CancellationToken::new();
        {
            let mut state = self.inner.lock();
            if state.offers.contains_key(&name) {
                return Err(OfferError::Twice(name));
            }
            let mut offer = Offer {
                service,
                backend,
                exposure,
                withdrawn: withdrawn.clone(),
            };
            if let Some(health) = &health {
                offer.service.is_healthy = *health.borrow();
            }
            state.offers.insert(name.clone(), offer);
            state.list_services();
        }
        self.inner.announce().inspect_err(|_| {
            drop(self.inner.lock().take(&name));
        })?;
        if let Some(health) = health {
            let stop = self.inner.stop.clone();
            let following = follow_health(Arc::clone(&self.inner), name, health, withdrawn);
            self.inner.tasks.spawn(stop.run_until_cancelled_owned(following));
        }
        Ok(())
    }

    /// Offers a service no longer, and says so at once. Whether it was offered.
    pub fn withdraw(&self, name: &ServiceName) -> bool {
        let was = self.inner.lock().take(name).is_some();
        // Of fewer services there are never too many.
        was && self.inner.announce().is_ok()
    }

    /// Carries a call to whoever answers it, and its answer back. Its path is that of whoever it has come from: none.
    pub async fn call(&self, call: Call) -> CallAnswer {
        calls::carry(&self.inner, call, now()).await
    }

    /// Everything that is offered as far as this node knows: a home knows of its own.
    pub fn offered(&self) -> Vec<Offered> {
        let state = self.inner.lock();
        let own = state.registry.own().map(|own| (own, Some(0)));
        let all = own.into_iter().chain(state.registry.known());
        all.flat_map(|(announcement, hops)| {
            let node = state.registry.name(announcement.origin);
            announcement.services.iter().map(move |service| Offered {
                service: service.clone(),
                origin: announcement.origin,
                node: node.cloned(),
                hops,
            })
        })
        .collect()
    }

    /// Has it shown where mains are to be, those too that nobody was found at. That changes nothing of whom it is connected
    /// with, which [`Around::mains`] says.
    pub fn show_named(&self, named: Vec<NamedMain>) {
        self.inner.lock().named = named;
    }

    /// With whom there are sessions now.
    pub fn neighbours(&self) -> Vec<PeerId> {
        self.inner.lock().sessions.keys().copied().collect()
    }

    /// Spans that found no place in their queue since the start.
    pub fn spans_lost(&self) -> u64 {
        self.inner.spans.lost()
    }

    /// Says that this node goes, waits until its neighbours could hear it, and ends.
    pub async fn shutdown(self) {
        self.inner.lock().said.departure = Some(Departure::Shutdown);
        self.inner.is_leaving.store(true, Ordering::Relaxed);
        // Homes go to another main while this one still carries on what is theirs.
        self.inner
            .say_leaving(|_, session| session.admitted.role == Role::Home);
        if self.inner.announce().is_ok() {
            let heard = join_all(self.inner.probed(neighbours::LAST_WORD_PROBE));
            // Whoever does not answer is told by the end of the connection.
            let _ = tokio::time::timeout(GOODBYE_MAX, heard).await;
        }
        let _ = tokio::time::timeout(HOMES_GO_MAX, self.inner.homes_gone()).await;
        self.inner.is_closed.store(true, Ordering::Relaxed);
        if self.inner.let_calls_end().await {
            let heard = join_all(self.inner.probed(neighbours::LAST_PROBE));
            // What they were answered is on its way since before.
            let _ = tokio::time::timeout(GOODBYE_MAX, heard).await;
        }
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

/// Neighbours come back to a main that was away, and have said everything, within this.
const SETTLES_IN: Duration = Duration::from_secs(2);

/// A node that goes waits so long for its last word to be heard.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// And so long for its homes to go elsewhere.
const HOMES_GO_MAX: Duration = Duration::from_secs(2);

/// And so long for the calls to end that it has in hand; new ones are refused.
const CALLS_END_MAX: Duration = Duration::from_secs(30);

/// Announces whether a service can answer, as often as that changes, until it is withdrawn.
async fn follow_health(
    inner: Arc<Inner>,
    name: ServiceName,
    mut health: watch::Receiver<bool>,
    withdrawn: CancellationToken,
) {
    loop {
        let is_healthy = *health.borrow_and_update();
        let is_news = inner.lock().set_health(&name, is_healthy, &withdrawn);
        if is_news && let Err(error) = inner.announce() {
            warn!(service = %name, %error, "it was not announced whether a service can answer");
        }
        match withdrawn.run_until_cancelled(health.changed()).await {
            Some(Ok(())) => {}
            // Nobody says any more, or nobody is to be told.
            Some(Err(_)) | None => return,
        }
    }
}

async fn tick(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(TICK);
    let mut announced_at = now();
    loop {
        ticks.tick().await;
        if now() >= announced_at + Registry::REFRESH {
            announced_at = now();
            if let Err(error) = inner.announce() {
                warn!(%error, "this node's services were not announced again");
            }
        }
        let mut state = inner.lock();
        let to_send = state.registry.on_tick(now());
        state.send(to_send);
        state.forget_instances();
        state.retries.retain(|_, retries| !retries.is_idle(now()));
        state.executed.on_tick(now());
        state.foreign_calls.retain(|_, calls| !calls.is_over(now()));
        // Mains that nobody names any more are not told of again.
        let mains = inner.around.borrow().mains.clone();
        let State { told, counts, .. } = &mut *state;
        // What has stood for a moment has ended for another reason if it does.
        let stands = |main| {
            counts
                .main(main)
                .up_since
                .is_some_and(|since| now() >= since + TICK)
        };
        told.retain(|main, _| mains.contains(main) && !stands(*main));
        state.turns.retain(|_, turns| !turns.is_idle());
        // A new one takes whatever path is the best by then.
        state.lines.retain(|_, line| !line.is_idle());
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What was written before a panic is whole: every change of a table ends before the next thing that could.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all neighbours what this node says of itself now.
    fn announce(&self) -> Result<(), AnnouncementError> {
        let mut state = self.lock();
        if !state.said.services.is_empty() {
            self.has_news();
        }
        state.said.stamp.number += 1;
        let signed = SignedAnnouncement::new(&state.said, &self.keypair)?;
        let to_send = state.registry.announce(signed)?;
        state.send(to_send);
        Ok(())
    }

    /// From now on there is something that other mains are to be told.
    fn has_news(&self) {
        self.tells
            .send_if_modified(|tells| !std::mem::replace(tells, true));
    }

    /// What this node is.
    fn role(&self) -> Role {
        self.around.borrow().role
    }

    /// Takes in what this node is, and says that and to which cluster it belongs, where it has changed. Neighbours of a node
    /// that has become a main, or is none any more, begin anew with it.
    fn be(&self, around: &Around) -> Result<(), AnnouncementError> {
        let (role, cluster) = (around.role, around.cluster);
        let was = {
            let mut state = self.lock();
            state.registry.set_role(role);
            let to_send = state.registry.set_mesh(around.mesh());
            state.send(to_send);
            let said = &mut state.said;
            (
                std::mem::replace(&mut said.role, role),
                std::mem::replace(&mut said.cluster, cluster),
            )
        };
        if was.0 != role {
            self.end_where(|_, _| true);
        }
        if was == (role, cluster) {
            Ok(())
        } else {
            self.announce()
        }
    }

    /// Asks all neighbours for an answer; each is waited for by one of what is returned.
    fn probed(&self, number: u32) -> Vec<impl Future<Output = ()> + use<>> {
        let state = self.lock();
        let asked = state.sessions.values().filter(|session| {
            let probe = ToSay::Probe(number);
            session.outbox.try_send(probe).is_ok()
        });
        let answers = asked.map(|session| {
            let mut answered = session.answered.clone();
            async move {
                // An error means that the session has ended.
                let _ = answered.wait_for(|answered| *answered == number).await;
            }
        });
        answers.collect()
    }

    /// Waits for the calls that this node has in hand, and until their answers were written; says whether there were any.
    async fn let_calls_end(&self) -> bool {
        let in_hand = self.in_hand.len();
        self.answering.close();
        self.in_hand.close();
        if in_hand == 0 && self.answering.is_empty() {
            return false;
        }
        info!(
            in_hand,
            "calls that are under way have up to {CALLS_END_MAX:?} to end"
        );
        let ended = async {
            self.in_hand.wait().await;
            self.answering.wait().await;
        };
        if tokio::time::timeout(CALLS_END_MAX, ended).await.is_err() {
            warn!("calls that have not ended are cut off");
        }
        true
    }

    fn turns(&self, to: PeerId) -> Arc<Turns> {
        let new = || Turns::new(calls::UNDER_WAY_MAX, calls::UNDER_WAY_SHARE, calls::WAITING_MAX);
        Arc::clone(self.lock().turns.entry(to).or_insert_with(new))
    }

    fn set_uplink(&self, main: Option<PeerId>) {
        self.lock().uplink = main;
        self.heard.notify_waiters();
    }

    fn begin_session(
        &self,
        claim: Claim,
        admitted: Admitted,
        outbox: mpsc::Sender<ToSay>,
        answered: watch::Receiver<u32>,
        stop: CancellationToken,
    ) -> u64 {
        let (peer, role) = (claim.peer, admitted.role);
        let mut state = self.lock();
        state.sessions_begun += 1;
        let number = state.sessions_begun;
        let session = Session {
            number,
            claim,
            admitted,
            outbox,
            answered,
            stop,
            told_holder: None,
            name_holder: None,
            is_leaving: false,
        };
        if role == Role::Main {
            state.counts.on_session(peer, now());
        }
        if let Some(before) = state.sessions.insert(peer, session) {
            before.stop.cancel();
            // What it was told over that one it may not have heard.
            let to_send = state.registry.on_disconnected(peer);
            state.send(to_send);
        } else if role == Role::Main {
            let name = state.registry.name(peer).map(display);
            info!(main = %peer, name, "a session with a main has begun");
        }
        let to_send = state.registry.on_connected(peer, role);
        state.send(to_send);
        if role == Role::Home
            && self.is_leaving.load(Ordering::Relaxed)
            && let Some(session) = state.sessions.get(&peer)
        {
            // It has come at the same moment.
            session.say(ToSay::Leaving);
        }
        drop(state);
        self.heard.notify_waiters();
        number
    }

    /// A session has ended, by this node or for a reason; there may be another with the same neighbour already.
    fn end_session(&self, peer: PeerId, number: u64, why: Option<&SessionError>) {
        let mut state = self.lock();
        let is_it = |session: &Session| session.number == number;
        if !state.sessions.get(&peer).is_some_and(is_it) {
            return;
        }
        let ended = state.sessions.remove(&peer);
        state.counts.on_session_end(peer);
        if state.uplink == Some(peer) {
            state.uplink = None;
        }
        // The thousand homes of a main come and go.
        let is_main = ended.is_some_and(|session| session.admitted.role == Role::Main);
        let reason = why.map_or_else(|| "this node has ended it".to_owned(), ToString::to_string);
        if is_main {
            let name = state.registry.name(peer).map(display);
            info!(main = %peer, name, reason, "a session with a main has ended");
        } else {
            debug!(%peer, reason, "a session with a home has ended");
        }
        let to_send = state.registry.on_disconnected(peer);
        state.send(to_send);
        drop(state);
        self.heard.notify_waiters();
    }

    /// Ends some sessions; who wants one begins another.
    fn end_where(&self, ends: impl Fn(PeerId, &Session) -> bool) {
        for (peer, session) in &self.lock().sessions {
            if ends(*peer, session) {
                session.stop.cancel();
            }
        }
    }

    /// What is cancelled when the session with a neighbour ends; `None` where there is none.
    fn session_end(&self, peer: PeerId) -> Option<CancellationToken> {
        self.lock()
            .sessions
            .get(&peer)
            .map(|session| session.stop.clone())
    }

    /// What a neighbour has said in this session. An error where it is nothing that anybody says who means well.
    fn heard(&self, from: PeerId, session: u64, messages: Vec<Message>) -> Result<(), HearError> {
        let mut to_send = Vec::new();
        let mut wrong = None;
        for message in messages {
            // For one at a time, since signatures are looked at meanwhile.
            let mut state = self.lock();
            if state
                .sessions
                .get(&from)
                .is_none_or(|stands| stands.number != session)
            {
                // Another session with it has begun, in which it says everything anew.
                break;
            }
            let origin = message.origin();
            let holder = |registry: &Registry| Some(registry.claim(origin?)?.1);
            let before = holder(&state.registry);
            match state.registry.on_message(from, message, now()) {
                Ok((_, more)) => {
                    to_send.extend(more);
                    if let Some(origin) = origin {
                        self.on_claim(&mut state, origin, before);
                    }
                }
                Err(error @ (HearError::Announcement(_) | HearError::NotAMain)) => {
                    wrong = Some(error);
                    break;
                }
                Err(error) => warn!(%from, %error, "an announcement was not kept"),
            }
        }
        let state = self.lock();
        state.send(to_send);
        let is_home = state
            .sessions
            .get(&from)
            .is_some_and(|session| session.admitted.role == Role::Home);
        if is_home && state.registry.has_services(from) {
            self.has_news();
        }
        drop(state);
        self.heard.notify_waiters();
        wrong.map_or(Ok(()), Err)
    }
}

impl Inner {
    /// Whether a node has the name that it wants may have changed: it is told where it is a neighbour, and somebody has to do
    /// something where another node has it.
    fn on_claim(&self, state: &mut State, node: PeerId, before: Option<PeerId>) {
        let Some((name, holder)) = state.registry.claim(node) else {
            return;
        };
        let taken_by = (holder != node).then_some(holder);
        if taken_by.is_some() && taken_by != before {
            warn!(%node, %name, %holder, "a node wants a name that another one has; what it offers is called by its peer id");
            self.audit.write(|| AuditEvent::NameTaken {
                name: name.clone(),
                peer: node,
                holder,
            });
        }
        let Some(session) = state.sessions.get_mut(&node) else {
            return;
        };
        if session.told_holder != taken_by {
            session.told_holder = taken_by;
            session.say(ToSay::NameHolder(taken_by));
        }
    }

    /// A main has said who has the name that this node wants, where another node does.
    fn on_name_holder(&self, from: PeerId, number: u64, holder: Option<PeerId>) {
        let mut state = self.lock();
        let name = state.said.name.clone();
        let Some(session) = state.sessions.get_mut(&from) else {
            return;
        };
        // Homes decide nothing, and nobody takes from a node what it does not want.
        let (Some(name), Role::Main, true) = (name, session.admitted.role, session.number == number) else {
            return;
        };
        session.name_holder = holder;
        match holder {
            Some(holder) if state.told_holder != Some(holder) => warn!(
                main = %from, %name, %holder,
                "the name of this node belongs to another one: it is called by its peer id only; give another --node-id, or \
                 stop that node, or wait for ten minutes after it has stopped without a word"
            ),
            None if state.told_holder.is_some() => info!(main = %from, %name, "this node has its name now"),
            _ => {}
        }
        state.told_holder = holder;
    }
}

impl State {
    /// Puts messages in the outboxes of their sessions, in one batch each.
    fn send(&self, to_send: Vec<ToSend>) {
        let mut batches: BTreeMap<PeerId, Vec<Message>> = BTreeMap::new();
        for ToSend { to, message } in to_send {
            batches.entry(to).or_default().push(message);
        }
        for (to, batch) in batches {
            let Some(session) = self.sessions.get(&to) else {
                continue;
            };
            session.say(ToSay::Messages(batch));
        }
    }

    fn take(&mut self, name: &ServiceName) -> Option<Offer> {
        let taken = self.offers.remove(name);
        if let Some(offer) = &taken {
            offer.withdrawn.cancel();
        }
        self.list_services();
        taken
    }

    /// A service can answer from now on, or cannot; whether others are to be told.
    fn set_health(&mut self, name: &ServiceName, is_healthy: bool, withdrawn: &CancellationToken) -> bool {
        let Some(offer) = self.offers.get_mut(name) else {
            return false;
        };
        if withdrawn.is_cancelled() || offer.service.is_healthy == is_healthy {
            return false;
        }
        offer.service.is_healthy = is_healthy;
        let is_announced = !offer.exposure.is_private;
        self.list_services();
        is_announced
    }

    /// What others are told that this node offers: in the order of their names, as the table has them.
    fn list_services(&mut self) {
        let announced = self.offers.values().filter(|offer| !offer.exposure.is_private);
        self.said.services = announced.map(|offer| offer.service.clone()).collect();
    }

    /// How often calls of a service may be tried again; `None` for all that a home's main chooses for, whatever they ask.
    fn retries_of(&mut self, service: Option<&ServiceName>) -> &mut Retries {
        match service {
            Some(service) => self.retries.entry(service.clone()).or_default(),
            None => &mut self.retries_by_main,
        }
    }

    /// Balancers keep no instances that are gone.
    fn forget_instances(&mut self) {
        let Self {
            registry,
            balancers,
            offers,
            said,
            ..
        } = self;
        balancers.retain(|name, balancer| {
            // What this node keeps to itself it announces to nobody.
            let is_kept = |origin: PeerId| origin == said.origin && offers.contains_key(name);
            balancer.retain(|origin| is_kept(*origin) || registry.offers(*origin, name));
            balancer.metrics().next().is_some()
        });
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}
