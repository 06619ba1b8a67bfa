//! Sessions with neighbours: one channel each, on which both ends say what they know of services. A home has one with the
//! first of its mains that answers, and goes back to an earlier one when that does; mains have one with each other main.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use lapwing_base::{ByteSize, Class, ClusterId, PeerId, Role};
use lapwing_net::{
    Access, Channel, ChannelError, Kind, OpenError, ReceiveHalf, SendHalf, Welcome, decode, encode,
};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::field::display;
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::{Inner, now};
use crate::policy::{Admitted, AuditEvent, Claim, NotAdmitted, Proof};
use crate::{HearError, Message};

/// On which neighbours tell each other of services. Above bulk, so that a call finds its service while models are exchanged.
pub(super) const ANNOUNCE: Kind = Kind {
    class: Class::Call,
    name: "announce",
    // Who may be a neighbour the policy says, once it has greeted.
    access: Access::Anyone,
    frame_max: ByteSize::mib(1),
};

/// Channels that wait to be taken: every home of a main may come back at once.
pub(super) const ANNOUNCE_QUEUE: usize = 1024;

/// What crosses a session.
#[derive(Debug, Serialize, Deserialize)]
enum Frame {
    /// The first frame of each side; whoever has opened the session begins.
    Greeting {
        role: Role,
        cluster: Option<ClusterId>,
        proof: Option<Proof>,
    },
    /// In place of a greeting, or behind the first: why the other is no neighbour, at most [`REASON_MAX`] bytes.
    Refused(String),
    Messages(Vec<Message>),
    /// Asks a main whether it still does its part.
    Probe(u32),
    /// It does.
    Answer(u32),
    /// A main says who has the name that the other wants; `None` where the other has it, after another had.
    NameHolder(Option<PeerId>),
    /// A main is about to end: its homes go to another one. A home answers the same where it has no other. In place of a greeting:
    /// there is no session with it any more.
    Leaving,
}

impl Frame {
    /// How many kinds there are. What is of another is of a later version, and is not for this one.
    const KINDS: u8 = 7;
}

/// What waits to cross a session.
#[derive(Debug)]
pub(super) enum ToSay {
    Messages(Vec<Message>),
    Probe(u32),
    Answer(u32),
    NameHolder(Option<PeerId>),
    Leaving,
}

/// How often a main is asked whether it does its part: its link may stand while the program behind it does not go on.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// What a node that goes asks behind its last word, and behind the last answers that it gives: whoever answers has heard that.
pub(super) const LAST_WORD_PROBE: u32 = u32::MAX - 1;
pub(super) const LAST_PROBE: u32 = u32::MAX;

/// In which it answers.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than any reason that there is.
const REASON_MAX: usize = 512;

/// Batches that wait for a session: as many as a thousand homes that come at once cause. One that is further behind
/// begins anew, and is told everything as it is then.
const OUTBOX_MAX: usize = 1024;

/// Messages of one batch that go in one frame: announcements have up to 64 KiB each, but few are so long.
const FRAME_MESSAGES: usize = 64;

/// Bytes of announcements that go in one frame, so that the last of them still fits.
const FRAME_BYTES: usize = 512 * 1024;

/// In which a neighbour is reached and greets: round trips of a far path, and its relays.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a session that ended is left before it is tried again: at first a quarter of a second, then twice as long each
/// time, up to a second in the first minute of an outage (a main that restarts is back within one) and up to 30 s after it, or at once where
/// it was refused.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_SOON: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
const SOON_FOR: Duration = Duration::from_secs(60);

/// After a session that has stood so long an outage is another one: longer than a program takes that fails as it starts, or a main
/// that lets a neighbour in and then thinks better of it.
const STOOD: Duration = Duration::from_secs(5);

/// How long a home waits for a main before it asks the next of its list as well: longer than one that is there takes on a far
/// link, shorter than people wait.
const START: Duration = Duration::from_secs(2);

/// How long one of two mains leaves it to the other to begin: a greeting takes two round trips. It may not know of this one.
const OTHER_START: Duration = Duration::from_millis(500);

/// What a main has heard others hear within this: a round trip over three hops of far links.
const HEARD_WITHIN: Duration = Duration::from_millis(500);

/// How often a home looks whether an earlier main of its list answers again.
const RETURN_INTERVAL: Duration = Duration::from_secs(30);

/// A session that stands.
#[derive(Debug)]
pub(super) struct Session {
    /// Tells this session from an earlier one with the same neighbour.
    pub(super) number: u64,
    /// What it says of itself, and what this node takes it for.
    pub(super) claim: Claim,
    pub(super) admitted: Admitted,
    pub(super) outbox: mpsc::Sender<ToSay>,
    /// The last probe that it has answered.
    pub(super) answered: watch::Receiver<u32>,
    pub(super) stop: CancellationToken,
    /// Who has the name that the neighbour wants, where that is another node and the neighbour was told.
    pub(super) told_holder: Option<PeerId>,
    /// The same of the name that this node wants, as the neighbour says.
    pub(super) name_holder: Option<PeerId>,
    /// Of a main: it is about to end. Of a home: it knows that of this node, and stays.
    pub(super) is_leaving: bool,
}

impl Session {
    /// Has something said, or ends where too much waits: a neighbour is told everything anew when it comes back.
    pub(super) fn say(&self, to_say: ToSay) {
        if self.outbox.try_send(to_say).is_err() {
            self.stop.cancel();
        }
    }
}

/// Counts what a neighbour of another cluster calls, minute by minute.
#[derive(Debug, Default)]
pub(super) struct ForeignCalls {
    since: Option<Instant>,
    count: u32,
}

const MINUTE: Duration = Duration::from_secs(60);

impl ForeignCalls {
    /// Whether nothing of it counts any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.since
            .is_none_or(|since| now.saturating_duration_since(since) >= MINUTE)
    }

    /// Whether there may be another call now, of so many in a minute.
    ///
    /// # Errors
    /// After how long there may be one.
    pub(super) fn may(&mut self, most: Option<u32>, now: Instant) -> Result<(), Duration> {
        let Some(most) = most else { return Ok(()) };
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        if passed >= MINUTE {
            *self = Self {
                since: Some(now),
                count: 1,
            };
            return Ok(());
        }
        if self.count >= most {
            return Err(MINUTE - passed);
        }
        self.count += 1;
        Ok(())
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("it is not let in: {0}")]
    NotAdmitted(#[from] NotAdmitted),
    #[error("it does not let this node in: {0}")]
    RefusedBy(String),
    #[error("it has not answered a probe in {PROBE_TIMEOUT:?}")]
    Unhealthy,
    #[error("it has not greeted in time")]
    Silent,
    #[error("it is about to end")]
    Leaving,
    #[error("it has ended the session")]
    Closed,
    #[error("it says something that is no announcement")]
    Malformed,
    #[error(transparent)]
    Heard(#[from] HearError),
}

/// Why there is no session with a main.
#[derive(Debug)]
pub(super) struct Told {
    /// Of which it was warned.
    gist: String,
    /// What the last attempt came to.
    pub(super) error: String,
}

impl SessionError {
    /// Whether one of both does not want the other, which is so until somebody has done something about it.
    const fn is_refusal(&self) -> bool {
        matches!(self, Self::RefusedBy(_) | Self::NotAdmitted(_))
    }

    /// What it comes to for whoever was told already: a main that is away is so for another reason at each attempt, as its
    /// machine, its network and its program come back.
    fn gist(&self) -> String {
        if self.is_refusal() {
            self.to_string()
        } else {
            "it does not answer".to_owned()
        }
    }
}

/// How long to wait before another attempt. Knows the time only as it is told.
#[derive(Debug)]
struct Backoff {
    /// When this outage began.
    since: Instant,
    /// Attempts in it.
    times: u32,
    /// Since when there is a session.
    up_since: Option<Instant>,
    /// The last attempt was answered, by a refusal: another one soon would be too.
    is_refused: bool,
}

impl Backoff {
    const fn new(now: Instant) -> Self {
        Self {
            since: now,
            times: 0,
            up_since: None,
            is_refused: false,
        }
    }

    /// A session has begun.
    fn on_up(&mut self, now: Instant) {
        self.up_since = Some(now);
    }

    /// It has ended. After one that has stood another outage begins; one that ends at once belongs to the outage before it.
    fn on_down(&mut self, now: Instant) {
        if self.up_since.take().is_some_and(|since| now >= since + STOOD) {
            *self = Self::new(now);
        }
    }

    /// Full jitter, so that a thousand homes do not come back at once.
    fn next(&mut self, now: Instant, random: f64) -> Duration {
        let most = if !self.is_refused && now < self.since + SOON_FOR {
            RETRY_SOON
        } else {
            RETRY_MAX
        };
        let wait = RETRY_MIN.saturating_mul(1 << self.times.min(8)).min(most);
        self.times += 1;
        wait.mul_f64(random)
    }
}

/// Takes the sessions that others open, until the node stops.
pub(super) async fn accept(inner: Arc<Inner>, mut queue: mpsc::Receiver<Channel>) {
    while let Some(channel) = queue.recv().await {
        let taking = take(Arc::clone(&inner), channel);
        inner
            .tasks
            .spawn(inner.stop.child_token().run_until_cancelled_owned(taking));
    }
}

async fn take(inner: Arc<Inner>, channel: Channel) {
    let peer = channel.peer();
    match taken(&inner, channel).await {
        Ok((greeted, channel)) => {
            let greeting = inner.greeting(peer);
            run(&inner, greeted, channel, Some(greeting), inner.stop.child_token()).await;
        }
        Err(error) => debug!(%peer, %error, "a neighbour's session was not begun"),
    }
}

/// Keeps what this node knows of others: ends the sessions with those that are to be taken for something else now, or not to be
/// let in any more, and says to which cluster it belongs.
pub(super) async fn look_around(inner: Arc<Inner>) {
    let mut around = inner.around.clone();
    loop {
        let known = around.borrow_and_update().clone();
        inner.end_where(|_, session| {
            inner.policy.admit(inner.me, &known, &session.claim).ok() != Some(session.admitted)
        });
        if let Err(error) = inner.be(&known) {
            warn!(%error, "what this node is was not announced");
        }
        if around.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps the sessions that this node opens, until it stops.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut around = inner.around.clone();
    loop {
        let role = around.borrow_and_update().role;
        let becomes_another = around.wait_for(|around| around.role != role);
        tokio::select! {
            () = async {
                match role {
                    Role::Home => keep_uplink(&inner).await,
                    Role::Main => keep_mains(&inner).await,
                }
            } => return,
            changed = becomes_another => if changed.is_err() { return },
        }
    }
}

/// One main at a time, the first of the list that answers.
async fn keep_uplink(inner: &Arc<Inner>) {
    let mut around = inner.around.clone();
    let mut backoff = Backoff::new(now());
    let mut active: Option<(PeerId, CancellationToken)> = None;
    loop {
        let list = around.borrow_and_update().mains.clone();
        if let Some((_, stop)) = active.take_if(|(peer, stop)| stop.is_cancelled() || !list.contains(peer)) {
            stop.cancel();
            backoff.on_down(now());
            // A thousand homes of the same main do not come at once.
            tokio::time::sleep(backoff.next(now(), rand_part(inner))).await;
        }
        let ended = active.as_ref().map(|(_, stop)| stop.clone()).unwrap_or_default();
        let leaving = inner.leaving();
        let is_left = active.as_ref().is_some_and(|(peer, _)| leaving.contains(peer));
        let better = active
            .as_ref()
            .filter(|_| !is_left)
            .and_then(|(peer, _)| list.iter().position(|main| main == peer));
        let mut others = list[..better.unwrap_or(list.len())].to_vec();
        others.retain(|main| !leaving.contains(main));
        let opened = tokio::select! {
            // Who has to go asks all of them at once.
            opened = open_first(inner, &others, if is_left { Duration::ZERO } else { START }) => opened,
            // A better one may be silent for seconds, and meanwhile there is none at all.
            () = ended.cancelled() => continue,
            () = inner.main_leaves.notified() => continue,
        };
        match opened {
            Ok((main, stop)) => {
                info!(%main, "calls go by this main");
                inner.set_uplink(Some(main));
                backoff.on_up(now());
                if let Some((_, before)) = active.replace((main, stop)) {
                    let leaving = leave_when_heard(Arc::clone(inner), main, before);
                    inner
                        .tasks
                        .spawn(inner.stop.child_token().run_until_cancelled_owned(leaving));
                }
            }
            Err(NoMain { is_refused }) => {
                backoff.is_refused = is_refused;
                if let Some((main, _)) = active.as_ref().filter(|_| is_left) {
                    inner.say_leaving(|peer, _| peer == *main);
                }
            }
        }
        if active.is_none() {
            inner.set_uplink(None);
        }
        let wait = match &active {
            Some(_) if !is_left => RETURN_INTERVAL,
            _ => backoff.next(now(), rand_part(inner)),
        };
        let ended = active.as_ref().map(|(_, stop)| stop.clone()).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = ended.cancelled() => {}
            () = inner.main_leaves.notified() => {}
            changed = around.changed() => if changed.is_err() { return },
        }
    }
}

/// Ends the session with the main before once the new one, and through it others, had time to hear what this home offers: nobody
/// is to find it nowhere.
async fn leave_when_heard(inner: Arc<Inner>, main: PeerId, before: CancellationToken) {
    let heard = async {
        let mut answered = inner.answered_by(main).await;
        // The first probe goes behind the announcement. An error means that the new session has ended.
        let _ = answered.wait_for(|number| *number > 0).await;
        tokio::time::sleep(HEARD_WITHIN).await;
    };
    let _ = tokio::time::timeout(PROBE_TIMEOUT, heard).await;
    before.cancel();
}

/// None of a home's mains takes it in.
struct NoMain {
    /// Whether all of them have said so.
    is_refused: bool,
}

/// Begins a session with whichever of these answers first, of which each has a start over the next.
async fn open_first(
    inner: &Arc<Inner>,
    mains: &[PeerId],
    start: Duration,
) -> Result<(PeerId, CancellationToken), NoMain> {
    let mut left = mains.iter();
    let mut refusals = 0;
    let mut trying = FuturesUnordered::new();
    loop {
        if let Some(&main) = left.next() {
            trying.push(async move { (main, open(inner, main).await) });
        }
        tokio::select! {
            Some((main, opened)) = trying.next() => match opened {
                Ok(stop) => return Ok((main, stop)),
                Err(error) => {
                    refusals += usize::from(error.is_refusal());
                    inner.tell_of(main, &error);
                }
            },
            () = tokio::time::sleep(start), if left.len() > 0 => {}
            else => return Err(NoMain { is_refused: refusals > 0 && refusals == mains.len() }),
        }
    }
}

/// One with every other main: with those that were named at once, with those of the cluster as soon as there is something to
/// tell them. Whoever has begins, so that nodes without services cost each other nothing.
async fn keep_mains(inner: &Arc<Inner>) {
    let mut around = inner.around.clone();
    let mut tells = inner.tells.subscribe();
    let mut kept: BTreeMap<PeerId, DropGuard> = BTreeMap::new();
    loop {
        let tells_now = *tells.borrow_and_update();
        let known = around.borrow_and_update().clone();
        let wanted = known.wanted_mains(inner.me, tells_now);
        kept.retain(|peer, _| wanted.contains(peer));
        for main in wanted {
            let is_member = known.is_member(main);
            kept.entry(main).or_insert_with(|| {
                let stop = inner.stop.child_token();
                let keeping = keep_main(Arc::clone(inner), main, is_member);
                inner.tasks.spawn(stop.clone().run_until_cancelled_owned(keeping));
                stop.drop_guard()
            });
        }
        tokio::select! {
            changed = around.changed() => if changed.is_err() { return },
            changed = tells.changed() => if changed.is_err() { return },
        }
    }
}

async fn keep_main(inner: Arc<Inner>, main: PeerId, is_member: bool) {
    let mut backoff = Backoff::new(now());
    // Of two that both know of each other one begins, and the other only where that does not happen: of two members it may
    // have nothing to tell.
    let behind = match (main < inner.me, is_member) {
        (false, _) => Duration::ZERO,
        (true, false) => OTHER_START,
        (true, true) => RETRY_SOON,
    };
    tokio::time::sleep(behind).await;
    loop {
        if let Some(ended) = inner.session_end(main) {
            backoff.on_up(now());
            ended.cancelled().await;
            backoff.on_down(now());
        } else {
            match open(&inner, main).await {
                Ok(ended) => {
                    backoff.on_up(now());
                    // It ends with this, where the main is wanted no longer.
                    let _end = ended.clone().drop_guard();
                    ended.cancelled().await;
                    backoff.on_down(now());
                }
                Err(error) => {
                    backoff.is_refused = error.is_refusal();
                    inner.tell_of(main, &error);
                }
            }
        }
        let wait = backoff.next(now(), rand_part(&inner));
        tokio::time::sleep(wait + behind).await;
    }
}

fn rand_part(inner: &Inner) -> f64 {
    inner.lock().rng.random_range(0.0..1.0)
}

/// Begins a session; returns what is cancelled when it ends, and ends it.
async fn open(inner: &Arc<Inner>, peer: PeerId) -> Result<CancellationToken, SessionError> {
    let channel = inner.network.open(peer, ANNOUNCE, GREETING_TIMEOUT).await?;
    let (greeted, channel) = greeted(inner, channel).await?;
    let ended = CancellationToken::new();
    let end = ended.clone().drop_guard();
    let stop = inner.stop.child_token();
    let (running, stopping) = (stop.clone(), ended.clone());
    let inner_of_task = Arc::clone(inner);
    let session = async move {
        tokio::select! {
            () = run(&inner_of_task, greeted, channel, None, running) => {}
            () = stopping.cancelled() => {}
        }
        drop(end);
    };
    inner
        .tasks
        .spawn(session.instrument(info_span!("neighbour", %peer)));
    Ok(ended)
}

/// A neighbour that is let in.
struct Greeted {
    claim: Claim,
    admitted: Admitted,
    /// As long as this is kept it may call.
    welcome: Welcome,
}

/// Greets whoever a session was opened with, and is greeted.
async fn greeted(inner: &Inner, mut channel: Channel) -> Result<(Greeted, Channel), SessionError> {
    let peer = channel.peer();
    channel.send(&encode(&inner.greeting(peer))).await?;
    let claim = claim(&mut channel).await?;
    match admit(inner, claim) {
        Ok(greeted) => Ok((greeted, channel)),
        Err(refused) => {
            // It has let this node in, and may wonder why that has gone.
            refuse(&mut channel, &refused).await;
            Err(refused.into())
        }
    }
}

/// Says why there will be no session; whoever is refused may be gone already.
async fn refuse(channel: &mut Channel, why: &NotAdmitted) {
    let _ = channel.send(&encode(&Frame::Refused(why.to_string()))).await;
    let _ = channel.finish().await;
}

/// Is greeted by whoever has opened a session. It is greeted in turn once it has a session: it may call as soon as it knows.
async fn taken(inner: &Inner, mut channel: Channel) -> Result<(Greeted, Channel), SessionError> {
    let claim = claim(&mut channel).await?;
    if inner.is_leaving.load(Ordering::Relaxed) {
        // No refusal: it is welcome once this node is there again.
        let _ = channel.send(&encode(&Frame::Leaving)).await;
        let _ = channel.finish().await;
        return Err(SessionError::Leaving);
    }
    // It is let in before it can know.
    let greeted = match admit(inner, claim) {
        Ok(greeted) => greeted,
        Err(refused) => {
            refuse(&mut channel, &refused).await;
            return Err(refused.into());
        }
    };
    Ok((greeted, channel))
}

async fn claim(channel: &mut Channel) -> Result<Claim, SessionError> {
    let peer = channel.peer();
    let first = tokio::time::timeout(GREETING_TIMEOUT, channel.receive()).await;
    let first = first
        .map_err(|_| SessionError::Silent)??
        .ok_or(SessionError::Silent)?;
    match decode(&first) {
        Ok(Frame::Greeting { role, cluster, proof }) => Ok(Claim {
            peer,
            role,
            cluster,
            proof,
        }),
        Ok(Frame::Refused(reason)) if reason.len() <= REASON_MAX => {
            Err(SessionError::RefusedBy(legible(&reason)))
        }
        Ok(Frame::Leaving) => Err(SessionError::Leaving),
        _ => Err(SessionError::Malformed),
    }
}

/// What a peer says, without what would disturb a terminal or a log.
fn legible(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

fn admit(inner: &Inner, claim: Claim) -> Result<Greeted, NotAdmitted> {
    let verdict = inner.policy.admit(inner.me, &inner.around.borrow(), &claim);
    inner.audit.write(|| match &verdict {
        Ok(admitted) => AuditEvent::Admitted {
            peer: claim.peer,
            role: admitted.role,
            cluster: claim.cluster,
            is_foreign: admitted.is_foreign,
        },
        Err(refused) => AuditEvent::Refused {
            peer: claim.peer,
            reason: refused.to_string(),
        },
    });
    let admitted = verdict?;
    // Calls go over mains, and are to end soon where one is lost. A thousand homes would be asked a lot.
    let welcome = match admitted.role {
        Role::Main => inner.network.welcome_watched(claim.peer),
        Role::Home => inner.network.welcome(claim.peer),
    };
    Ok(Greeted {
        admitted,
        welcome,
        claim,
    })
}

impl Inner {
    /// Tells some neighbours that this node is about to end, or that it knows that of them.
    pub(super) fn say_leaving(&self, whom: impl Fn(PeerId, &Session) -> bool) {
        for (peer, session) in &self.lock().sessions {
            if whom(*peer, session) {
                session.say(ToSay::Leaving);
            }
        }
    }

    fn on_leaving(&self, from: PeerId, number: u64) {
        {
            let mut state = self.lock();
            let Some(session) = state.sessions.get_mut(&from) else {
                return;
            };
            if session.number != number || std::mem::replace(&mut session.is_leaving, true) {
                return;
            }
            if session.admitted.role == Role::Main && state.uplink == Some(from) {
                info!(main = %from, "the main of this home is about to end");
            }
        }
        self.main_leaves.notify_one();
        self.heard.notify_waiters();
    }

    /// The last probe that a neighbour has answered, once there is a session with it.
    async fn answered_by(&self, peer: PeerId) -> watch::Receiver<u32> {
        loop {
            // From before it is looked, so that nothing is missed.
            let heard = self.heard.notified();
            let answered = self
                .lock()
                .sessions
                .get(&peer)
                .map(|session| session.answered.clone());
            match answered {
                Some(answered) => return answered,
                None => heard.await,
            }
        }
    }

    /// Who has said that it is about to end.
    fn leaving(&self) -> BTreeSet<PeerId> {
        let state = self.lock();
        let leaving = state.sessions.iter().filter(|(_, session)| session.is_leaving);
        leaving.map(|(peer, _)| *peer).collect()
    }

    /// Waits until all homes have another main, or have said that they stay.
    pub(super) async fn homes_gone(&self) {
        loop {
            // From before it is looked, so that nothing is missed.
            let heard = self.heard.notified();
            let is_waited_for =
                |session: &Session| session.admitted.role == Role::Home && !session.is_leaving;
            if !self.lock().sessions.values().any(is_waited_for) {
                return;
            }
            heard.await;
        }
    }

    /// Why there is no session with a main: it is warned of once, until it comes to something else.
    fn tell_of(&self, main: PeerId, error: &SessionError) {
        let gist = error.gist();
        let (name, is_news) = {
            let mut state = self.lock();
            // Both may have begun one at the same time, and that of the other stands.
            let is_down = !state.sessions.contains_key(&main);
            let error = error.to_string();
            let before = is_down.then(|| {
                let told = Told {
                    gist: gist.clone(),
                    error,
                };
                state.told.insert(main, told)
            });
            let is_news = before.is_some_and(|told| told.is_none_or(|told| told.gist != gist));
            (state.registry.name(main).cloned(), is_news)
        };
        let name = name.as_ref().map(display);
        if is_news {
            warn!(%main, name, %error, "there is no session with a main");
        } else {
            debug!(%main, name, %error, "there is no session with a main yet");
        }
    }

    /// What this node says of itself to a neighbour.
    fn greeting(&self, to: PeerId) -> Frame {
        let (role, cluster) = {
            let around = self.around.borrow();
            (around.role, around.cluster)
        };
        Frame::Greeting {
            role,
            cluster,
            proof: self.policy.token.as_ref().map(|token| token.prove(self.me, to)),
        }
    }
}

/// Carries messages both ways until either end is gone, the first of them before all others.
async fn run(
    inner: &Arc<Inner>,
    greeted: Greeted,
    mut channel: Channel,
    first: Option<Frame>,
    stop: CancellationToken,
) {
    let peer = channel.peer();
    let Greeted {
        claim,
        admitted,
        welcome: _welcome,
    } = greeted;
    let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
    let is_main = admitted.role == Role::Main;
    let answered = watch::Sender::new(0);
    let claimed = claim.clone();
    let number = inner.begin_session(
        claim,
        admitted,
        outbox.clone(),
        answered.subscribe(),
        stop.clone(),
    );
    // Also where the caller drops this.
    let mut end = EndOnDrop {
        inner,
        peer,
        claim: claimed,
        number,
        why: None,
        stop: stop.clone(),
    };
    if let Some(first) = first
        && let Err(error) = channel.send(&encode(&first)).await
    {
        end.why = Some(error.into());
        return;
    }
    let (send, receive) = channel.split();
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        sent = send_all(send, messages) => sent,
        received = receive_all(inner, number, receive, &outbox, &answered) => received,
        unhealthy = probe(inner, peer, &outbox, answered.subscribe()), if is_main => unhealthy,
    };
    end.why = ended.err();
}

struct EndOnDrop<'a> {
    inner: &'a Arc<Inner>,
    peer: PeerId,
    claim: Claim,
    number: u64,
    /// `None` where it is this node that ends it.
    why: Option<SessionError>,
    stop: CancellationToken,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.inner.end_session(self.peer, self.number, self.why.as_ref());
        if let Some(error) = self.why.as_ref().filter(|error| error.is_refusal())
            && self.inner.around.borrow().mains.contains(&self.peer)
        {
            self.inner.tell_of(self.peer, error);
        }
        let is_in_order = matches!(self.why, None | Some(SessionError::Closed));
        let may_come = || {
            let around = self.inner.around.borrow();
            self.inner
                .policy
                .admit(self.inner.me, &around, &self.claim)
                .is_ok()
        };
        if is_in_order && may_come() {
            self.inner.let_answers_through(self.peer);
        }
        // Whoever waits for the end of this session waits for this.
        self.stop.cancel();
    }
}

impl Inner {
    /// A session has ended in order: what is under way between both may end. A long answer comes over a channel of its own.
    fn let_answers_through(self: &Arc<Self>, peer: PeerId) {
        if !self.lock().let_through.insert(peer) {
            return;
        }
        let (welcome, inner) = (self.network.welcome(peer), Arc::clone(self));
        let holding = async move {
            tokio::time::sleep(super::calls::TELL_TIMEOUT).await;
            inner.lock().let_through.remove(&peer);
            drop(welcome);
        };
        // Where the runtime ends there is nothing to end in order.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let holding = self.stop.child_token().run_until_cancelled_owned(holding);
            self.tasks.spawn_on(holding, &runtime);
        }
    }
}

async fn send_all(mut send: SendHalf, mut outbox: mpsc::Receiver<ToSay>) -> Result<(), SessionError> {
    while let Some(to_say) = outbox.recv().await {
        match to_say {
            ToSay::Messages(batch) => send_batch(&mut send, batch).await?,
            ToSay::Probe(number) => send.send(&encode(&Frame::Probe(number))).await?,
            ToSay::Answer(number) => send.send(&encode(&Frame::Answer(number))).await?,
            ToSay::NameHolder(holder) => send.send(&encode(&Frame::NameHolder(holder))).await?,
            ToSay::Leaving => send.send(&encode(&Frame::Leaving)).await?,
        }
    }
    Ok(())
}

async fn send_batch(send: &mut SendHalf, batch: Vec<Message>) -> Result<(), SessionError> {
    let (mut frame, mut bytes) = (Vec::new(), 0);
    for message in batch {
        bytes += message.bytes();
        frame.push(message);
        if frame.len() == FRAME_MESSAGES || bytes >= FRAME_BYTES {
            let whole = Frame::Messages(std::mem::take(&mut frame));
            send.send(&encode(&whole)).await?;
            bytes = 0;
        }
    }
    if !frame.is_empty() {
        send.send(&encode(&Frame::Messages(frame))).await?;
    }
    Ok(())
}

async fn receive_all(
    inner: &Arc<Inner>,
    number: u64,
    mut receive: ReceiveHalf,
    outbox: &mpsc::Sender<ToSay>,
    answered: &watch::Sender<u32>,
) -> Result<(), SessionError> {
    while let Some(frame) = receive.receive().await? {
        inner.lock().counts.on_frame(receive.peer(), now());
        match decode(&frame) {
            Ok(Frame::Messages(messages)) if messages.len() <= FRAME_MESSAGES => {
                inner.heard(receive.peer(), number, messages)?;
            }
            // Whoever asks more often than is answered waits for its answers longer.
            Ok(Frame::Probe(probe)) => drop(outbox.send(ToSay::Answer(probe)).await),
            Ok(Frame::Answer(probe)) => drop(answered.send_replace(probe)),
            Ok(Frame::NameHolder(holder)) => inner.on_name_holder(receive.peer(), number, holder),
            Ok(Frame::Leaving) => inner.on_leaving(receive.peer(), number),
            Err(_) if frame.first().is_some_and(|kind| *kind >= Frame::KINDS) => {
                debug!("a neighbour of a later version says what this one does not know");
            }
            Ok(Frame::Refused(reason)) if reason.len() <= REASON_MAX => {
                return Err(SessionError::RefusedBy(legible(&reason)));
            }
            _ => return Err(SessionError::Malformed),
        }
    }
    Err(SessionError::Closed)
}

/// Asks a main at once and then from time to time whether it does its part, until it does not.
async fn probe(
    inner: &Inner,
    peer: PeerId,
    outbox: &mpsc::Sender<ToSay>,
    mut answered: watch::Receiver<u32>,
) -> Result<(), SessionError> {
    for number in 1..LAST_WORD_PROBE {
        let asked_at = now();
        let answer = async {
            // Both go on for as long as the session does.
            let _ = outbox.send(ToSay::Probe(number)).await;
            let _ = answered.wait_for(|answered| *answered == number).await;
        };
        let came = tokio::time::timeout(PROBE_TIMEOUT, answer).await;
        came.map_err(|_| SessionError::Unhealthy)?;
        let took = now().saturating_duration_since(asked_at);
        inner.lock().counts.on_probed(peer, took);
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;
    use crate::driver::documents::tests::Alone;
    use crate::driver::edge::tests::Log;

    #[tokio::test]
    async fn sessions_between_mains_are_in_the_log_with_why_they_ended_and_one_warning_until_there_is_another()
     {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.subscriber());
        let [one, other] = [Alone::start(Role::Main).await, Alone::start(Role::Main).await];
        one.name_main(&other);
        other.name_main(&one);
        let counts = |said: &str| log.text().matches(said).count();
        let until = async |said: &str, times| {
            let there = async {
                while counts(said) < times {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let came = tokio::time::timeout(Duration::from_secs(30), there).await;
            assert!(came.is_ok(), "{said} {times} times: {}", log.text());
        };
        until("a session with a main has begun", 2).await;
        other.stop().await;
        until("there is no session with a main yet", 2).await;
        let text = log.text();
        let ended: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("a session with a main has ended"))
            .collect();
        assert_eq!(ended.len(), 2, "{text}");
        assert!(
            ended
                .iter()
                .all(|line| line.contains("INFO") && line.contains("reason=")),
            "{ended:?}"
        );
        assert_eq!(counts("there is no session with a main main="), 1, "{text}");
        one.stop().await;
    }

    #[tokio::test]
    async fn a_home_that_loses_its_main_while_it_waits_for_a_better_one_does_not_wait_for_that() {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.subscriber());
        let counts = |said: &str| log.text().matches(said).count();
        let until_taken = async |times| {
            let there = async {
                while counts("calls go by this main") < times {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let came = tokio::time::timeout(Duration::from_secs(30), there).await;
            assert!(came.is_ok(), "{}", log.text());
        };
        let [home, main] = [Alone::start(Role::Home).await, Alone::start(Role::Main).await];
        home.name_main(&main);
        until_taken(1).await;
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let address = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
        home.name_better(PeerId::random(), address.parse().unwrap());
        let asked = tokio::time::timeout(Duration::from_secs(30), silent.recv_from(&mut [0; 2048])).await;
        assert!(asked.is_ok(), "{}", log.text());
        main.federation.inner.end_where(|_, _| true);
        until_taken(2).await;
        // Which it says of the better one once it has waited for it in vain.
        assert_eq!(counts("there is no session with a main"), 0, "{}", log.text());
        home.stop().await;
        main.stop().await;
    }

    #[test]
    fn a_neighbour_of_another_cluster_calls_as_often_in_a_minute_as_it_may() {
        let mut calls = ForeignCalls::default();
        let at = now();
        assert!((0..3).all(|_| calls.may(Some(3), at).is_ok()));
        assert_eq!(
            calls.may(Some(3), at + Duration::from_secs(20)),
            Err(Duration::from_secs(40))
        );
        assert_eq!(calls.may(None, at), Ok(()), "where there is no bound");
        assert_eq!(calls.may(Some(3), at + Duration::from_secs(60)), Ok(()));
    }

    #[test]
    fn attempts_are_soon_at_first_and_never_far_apart_within_the_first_minute() {
        let begun = now();
        let mut backoff = Backoff::new(begun);
        assert_eq!(waits(&mut backoff, begun, 5), [250, 500, 1000, 1000, 1000]);
        let later = begun + SOON_FOR;
        assert_eq!(backoff.next(later, 1.0), Duration::from_secs(8));
        assert_eq!(backoff.next(later, 0.0), Duration::ZERO);
        assert_eq!(backoff.next(later, 1.0), RETRY_MAX);
    }

    #[test]
    fn the_first_minute_is_that_of_the_last_outage_however_often_there_was_one_before() {
        let mut at = now();
        let mut backoff = Backoff::new(at);
        for _ in 0..20 {
            backoff.on_up(at);
            at += Duration::from_secs(10);
            backoff.on_down(at);
            assert_eq!(waits(&mut backoff, at, 4), [250, 500, 1000, 1000]);
            at += Duration::from_secs(3);
        }
    }

    #[test]
    fn sessions_that_end_at_once_are_tried_less_and_less_often() {
        let mut at = now();
        let mut backoff = Backoff::new(at);
        let mut wait = Duration::ZERO;
        for _ in 0..90 {
            backoff.on_up(at);
            at += Duration::from_millis(100);
            backoff.on_down(at);
            wait = backoff.next(at, 1.0);
            at += wait;
        }
        assert_eq!(wait, RETRY_MAX);
    }

    #[test]
    fn whoever_is_refused_tries_again_less_and_less_often_from_the_first_time() {
        let at = now();
        let mut backoff = Backoff::new(at);
        backoff.is_refused = true;
        let refused = waits(&mut backoff, at, 8);
        assert_eq!(refused, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000]);
        backoff.is_refused = false;
        assert_eq!(
            backoff.next(at, 1.0),
            RETRY_SOON,
            "it does not answer, and may restart"
        );
    }

    /// In milliseconds, of attempts that fail at once.
    fn waits(backoff: &mut Backoff, at: Instant, times: usize) -> Vec<u128> {
        (0..times).map(|_| backoff.next(at, 1.0).as_millis()).collect()
    }
}
