//! Calls on their way: taken from a link or from this node's edge, carried out here or passed on, and answered.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use lapwing_base::{ByteSize, Class, PeerId, Role};
use lapwing_net::{
    Access, Channel, ChannelError, Kind, OpenError, Refusal, RequestError, SendHalf, decode, encode,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::asked::broken;
use super::backend::{Backend, CallContext, Invocation, Offer};
use super::catalog::{self, Catalog};
use super::turns::Full;
use super::{Inner, State, now, wall_clock};
use crate::balancer::{Balancer, Candidate, Chosen, Turned};
use crate::breaker::{BreakerConfig, Outcome};
use crate::executed::{Attempt, ExecutionId, Found};
use crate::policy::AuditEvent;
use crate::{
    Call, CallAnswer, CallError, CallId, ErrorCode, Failure, HopTiming, ServiceName, SpanKind, Step,
    TraceParent,
};

/// One call and its answer.
pub(super) const CALL: Kind = Kind {
    class: Class::Call,
    name: "call",
    // Whoever is a neighbour.
    access: Access::Guests,
    frame_max: ByteSize::mib(16),
};

/// Channels that wait to be taken.
pub(super) const CALL_QUEUE: usize = 1_000;

/// Calls that a node has in hand, of one service as many as others leave free: a thousand where there is no other. Of more the
/// caller is told at once that it is busy.
pub(super) const IN_HAND_MAX: usize = 2_000;
pub(super) const IN_HAND_SHARE: usize = 1;

/// Calls that are under way to one neighbour: it takes 256 channels of a kind from each, and those whose answer is on its
/// way count too. Of one service three times as many as are free: three quarters where there is no other.
pub(super) const UNDER_WAY_MAX: usize = 192;
pub(super) const UNDER_WAY_SHARE: usize = 3;

/// Calls that wait for their turn to go to one neighbour.
pub(super) const WAITING_MAX: usize = 1_000;

/// Channels whose call is read or answered at a time; of more, which would be told that this node is busy, some wait.
const ANSWERED_AT_ONCE: usize = IN_HAND_MAX;

/// When to try again where a node is busy: a call is over in less, mostly.
const BUSY_FOR: Duration = Duration::from_millis(100);

/// So long a home that has lost its main waits for another one with a call that may be made again.
const NEXT_MAIN_WITHIN: Duration = Duration::from_secs(5);

/// A time-out says something of the instance where the call had twice what its calls take, or so long where that is not known:
/// whoever gives a service less shuts it to nobody else.
const PATIENT: Duration = Duration::from_secs(1);
const PATIENT_TIMES: u32 = 2;

/// So long a neighbour with whom there is no connection any more is tried to be reached for a call.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// So long whoever has opened a channel may take to say what it wants.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// So long whoever has asked may take to read its answer: 16 MiB over the slowest links that matter take two minutes.
pub(super) const TELL_TIMEOUT: Duration = Duration::from_secs(150);

/// Answers the calls that come over links, until the queue ends.
pub(super) async fn answer(inner: Arc<Inner>, mut queue: mpsc::Receiver<Channel>) {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            channel = queue.recv(), if answers.len() < ANSWERED_AT_ONCE => match channel {
                Some(channel) => {
                    let inner = Arc::clone(&inner);
                    answers.spawn(async move {
                        let peer = channel.peer();
                        if let Err(error) = answer_one(&inner, channel).await {
                            debug!(%peer, %error, "a call was not answered");
                        }
                    });
                }
                None => return,
            },
            Some(_) = answers.join_next() => (),
        }
    }
}

async fn answer_one(inner: &Arc<Inner>, channel: Channel) -> Result<(), ChannelError> {
    let peer = channel.peer();
    let (mut send, mut receive) = channel.split();
    let asked = tokio::time::timeout(ASK_TIMEOUT, receive.receive()).await;
    let Ok(Some(frame)) = asked.unwrap_or(Ok(None)) else {
        return Ok(());
    };
    let arrived = now();
    let _in_hand = inner.answering.token();
    let answer = match decode::<Call>(&frame) {
        Ok(call) => tokio::select! {
            answer = answer_to(inner, peer, call, arrived) => answer,
            // Nothing follows a call: whoever has asked waits no longer, or does not know how to.
            _ = receive.receive() => return Ok(()),
        },
        Err(_) => {
            let error = CallError::new(ErrorCode::MalformedMessage, "a call cannot be read");
            failed(inner, error)
        }
    };
    let sent = tokio::time::timeout(TELL_TIMEOUT, tell(inner, &mut send, &answer)).await;
    // Whoever does not read its answer has none.
    sent.unwrap_or(Ok(()))
}

/// What a neighbour is answered to a call.
pub(super) async fn answer_to(
    inner: &Arc<Inner>,
    from: PeerId,
    mut call: Call,
    arrived: Instant,
) -> CallAnswer {
    let checked = call.check(from).and_then(|()| inner.allow(from, &call, arrived));
    if let Err(error) = checked {
        return failed(inner, error);
    }
    let span = inner.begin_hop(SpanKind::Server, &mut call, from);
    let answer = carry(inner, call, arrived).await;
    span.end(&answer);
    answer
}

impl Inner {
    /// What this node says of a call that has come at `arrived` and goes on at `begun`, which is now; what follows took no
    /// time yet.
    fn hop(&self, arrived: Instant, begun: Instant) -> HopTiming {
        let queued = begun.saturating_duration_since(arrived);
        // A clock before 1970 is wrong anyway.
        let unix = wall_clock()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        HopTiming {
            node: self.me,
            role: self.role(),
            // Until the year 2554.
            in_unix_ns: u64::try_from(unix.saturating_sub(queued).as_nanos()).unwrap_or(u64::MAX),
            queue_us: micros(queued),
            forward_us: 0,
            exec_us: 0,
        }
    }

    /// Whether a neighbour may make a call at all: one of another cluster may call what is let out, and so often.
    fn allow(&self, from: PeerId, call: &Call, now: Instant) -> Result<(), CallError> {
        let allowed = self.is_allowed(from, call, now);
        // Who has just gone elsewhere did nothing wrong.
        if let Err(error) = &allowed
            && error.code != ErrorCode::NodeOffline
        {
            self.audit.write(|| AuditEvent::CallRefused {
                from: Some(from),
                caller: call.path.first().copied(),
                service: call.service.clone(),
                reason: error.message.clone(),
            });
        }
        allowed
    }

    fn is_allowed(&self, from: PeerId, call: &Call, now: Instant) -> Result<(), CallError> {
        let mut state = self.lock();
        let Some(session) = state.sessions.get(&from) else {
            // It may not know yet that its session has ended: the way between them broke, or this home has gone to another main.
            // Nothing was begun, and nobody is to blame.
            let said = "a call has come from a node that is no neighbour; it is to greet first";
            return Err(CallError::new(ErrorCode::NodeOffline, said));
        };
        if session.admitted.role == Role::Home && call.path.len() > 1 {
            let said = "a home has passed on what another node calls";
            return Err(CallError::new(ErrorCode::ForbiddenByPolicy, said));
        }
        if !session.admitted.is_foreign {
            return Ok(());
        }
        if !self.policy.lets_out.allows(&call.service) {
            let said = format!("service `{}` is not let out to other clusters", call.service);
            return Err(CallError::new(ErrorCode::ForbiddenByPolicy, said));
        }
        let most = self.policy.foreign_calls(session.claim.cluster);
        // A session that begins anew does not begin a minute.
        let calls = state.foreign_calls.entry(from).or_default();
        calls.may(most, now).map_err(|after| {
            let said = format!(
                "another cluster may make {} calls a minute here",
                most.unwrap_or(u32::MAX)
            );
            CallError::new(ErrorCode::RateLimited, said).with_retry_after(after)
        })
    }

    /// Whether a call may be passed on to a neighbour: to one of another cluster if its service is let in.
    fn lets_in(&self, to: PeerId, call: &Call) -> Result<(), CallError> {
        let is_foreign = self
            .lock()
            .sessions
            .get(&to)
            .is_some_and(|session| session.admitted.is_foreign);
        if is_foreign && !self.policy.lets_in.allows(&call.service) {
            let said = format!(
                "service `{}` of other clusters is not called from here",
                call.service
            );
            return Err(CallError::new(ErrorCode::ForbiddenByPolicy, said));
        }
        Ok(())
    }
}

pub(super) async fn tell(
    inner: &Inner,
    send: &mut SendHalf,
    answer: &CallAnswer,
) -> Result<(), ChannelError> {
    match send.send(&encode(answer)).await {
        Err(ChannelError::TooLong { size, max, .. }) => {
            let said = format!("an answer of {size} is longer than the {max} that are carried");
            let failed = failed(inner, CallError::new(ErrorCode::PayloadTooLarge, said));
            send.send(&encode(&failed)).await?;
        }
        sent => sent?,
    }
    send.finish().await
}

/// Carries a call as far as it goes from here, says what came of it, and counts that.
pub(super) async fn carry(inner: &Arc<Inner>, call: Call, arrived: Instant) -> CallAnswer {
    let mut counted = CountOnDrop {
        inner,
        id: call.id,
        arrived,
        failed: Some(ErrorCode::Cancelled),
    };
    let answer = attempt(inner, call, arrived).await;
    counted.failed = answer.outcome.as_ref().err().map(|failure| failure.code);
    answer
}

/// Counts a call, also where nobody waits for its end any more.
struct CountOnDrop<'a> {
    inner: &'a Inner,
    id: CallId,
    arrived: Instant,
    failed: Option<ErrorCode>,
}

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        let took = now().saturating_duration_since(self.arrived);
        self.inner.lock().counts.on_call(self.failed, took);
        if self.failed == Some(ErrorCode::Cancelled) {
            debug!(
                call = format_args!("{:032x}", self.id.0),
                ?took,
                "nobody waits for a call any more"
            );
        }
    }
}

impl Inner {
    /// Says that a call has failed, with what it is found by elsewhere, and nothing of what it asks.
    fn log_failure(&self, call: &Call, failure: &Failure) {
        let Failure { code, failed_at, .. } = failure;
        if *code == ErrorCode::Internal {
            warn!(
                call = format_args!("{:032x}", call.id.0), trace_id = trace_id(call), service = %call.service,
                code = code.name(), %failed_at, error = failure.message, "a call has failed by a defect"
            );
        } else {
            debug!(
                call = format_args!("{:032x}", call.id.0), trace_id = trace_id(call), service = %call.service,
                code = code.name(), %failed_at, "a call has failed"
            );
        }
    }
}

fn trace_id(call: &Call) -> Option<String> {
    let parent: TraceParent = call.trace.parent.as_ref()?.parse().ok()?;
    Some(parent.trace_id())
}

/// The same without the count. Where it failed and may be tried again, it is, once.
async fn attempt(inner: &Arc<Inner>, mut call: Call, arrived: Instant) -> CallAnswer {
    // Whoever only passes it on has nothing to say of what has failed elsewhere.
    let is_made_here = call.path.is_empty();
    let log = |call: &Call, answer: CallAnswer, is_ours: bool| {
        if let Err(failure) = &answer.outcome
            && (is_ours || is_made_here || failure.failed_at == inner.me)
        {
            inner.log_failure(call, failure);
        }
        answer
    };
    let _in_hand = inner.in_hand.token();
    let Ok(_place) = inner.room.try_take(&call.service) else {
        return log(&call, busy(inner, &call.service), true);
    };
    let mut before: Option<CallAnswer> = None;
    // Another attempt is for another instance, where there is one.
    let mut tried: Option<PeerId> = None;
    loop {
        let planned = planned(inner, &call, tried, arrived).await;
        let begun = now();
        let (step, chosen) = match planned.and_then(|planned| inner.goes_on(planned, &call, begun)) {
            Ok(planned) => planned,
            // Where nobody else can be asked, what the first has said tells more.
            Err(error) => {
                let answer = before.unwrap_or_else(|| failed(inner, error));
                return log(&call, answer, true);
            }
        };
        let patience = Duration::from_millis(call.remaining_ms.into());
        let left = patience.saturating_sub(begun.saturating_duration_since(arrived));
        let has_chosen = chosen.as_ref().map(|chosen| *chosen.key());
        let call_in_flight = InFlight {
            inner,
            chosen: chosen.map(|chosen| (call.service.clone(), chosen)),
            begun,
        };
        // Only who has chosen the instance may choose another one, and only a home may go to another main: where every node on
        // the way tried again, one call would become many.
        let main = match &step {
            Step::Forward { to, .. }
                if is_made_here && has_chosen.is_none() && inner.role() == Role::Home =>
            {
                Some(*to)
            }
            _ => None,
        };
        let may_try = before.is_none() && (has_chosen.is_some() || main.is_some());
        let had = main.and_then(|_| inner.uplink_session());
        if may_try {
            let service = has_chosen.map(|_| &call.service);
            inner.lock().retries_of(service).on_request(begun);
        }
        let is_ours = has_chosen.is_some() || step == Step::Serve;
        let (answer, sent, made, kept) = match step {
            Step::Serve => {
                let answer = serve(inner, &call, arrived).await;
                (answer, Sent::at_once(), call, None)
            }
            Step::Forward { to, onward } => {
                // Whoever only passes it on needs no copy.
                let kept = may_try.then(|| call.clone());
                let mut call = call.onward(onward);
                let span = inner.begin_hop(SpanKind::Client, &mut call, to);
                let (answer, sent) = forward(inner, to, &mut call, arrived, left).await;
                span.end(&answer);
                (answer, sent, call, kept)
            }
        };
        let error: Option<CallError> = answer
            .outcome
            .as_ref()
            .err()
            .map(|failure| failure.clone().into());
        call_in_flight.end(error.as_ref(), left.saturating_sub(sent.waited));
        let Some(error) = error else { return answer };
        // A main that is about to end has passed nothing on.
        let is_left = error.code == ErrorCode::NodeOffline
            && main.is_some_and(|main| error.failed_at == Some(main) && inner.has_left(main));
        let was_sent = sent.was_sent && !is_left && !is_turned_away(&error, has_chosen);
        // What has taken all of its time has none left for another attempt. A home asks another main only where it has lost
        // its own: what that says of others, another one would say too.
        let is_lost = matches!(error.code, ErrorCode::PeerUnreachable | ErrorCode::NodeOffline);
        let may_help = has_chosen.is_some() || is_left || (is_lost && error.failed_at == Some(inner.me));
        let may_retry = may_try
            && may_help
            && error.code != ErrorCode::Timeout
            && inner
                .lock()
                .retries_of(has_chosen.map(|_| &made.service))
                .may_retry(now(), &error, was_sent, made.is_idempotent);
        if !may_retry {
            return log(&made, answer, is_ours);
        }
        let next = kept.unwrap_or(made);
        if main.is_some() {
            inner.next_main(had, arrived + patience).await;
        }
        before = Some(answer);
        tried = has_chosen;
        debug!(service = %next.service, %error, "a call is tried again");
        call = next;
    }
}

impl Inner {
    /// What was planned, unless this node is about to end: then it begins nothing itself, and carries on what others do only
    /// for as long as they need to find another way.
    fn goes_on(&self, planned: Planned, call: &Call, now: Instant) -> Result<Planned, CallError> {
        let ends = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let is_refused = ends(&self.is_closed) || (ends(&self.is_leaving) && planned.0 == Step::Serve);
        if !is_refused {
            return Ok(planned);
        }
        // It is never called.
        drop(InFlight {
            inner: self,
            chosen: planned.1.map(|chosen| (call.service.clone(), chosen)),
            begun: now,
        });
        let said = format!("node {} is about to end", self.me);
        Err(CallError::new(ErrorCode::NodeOffline, said))
    }

    /// The session with the main of this home.
    fn uplink_session(&self) -> Option<u64> {
        let state = self.lock();
        state.sessions.get(&state.uplink?).map(|session| session.number)
    }

    /// Whether a main has said that it is about to end, or is no neighbour any more.
    fn has_left(&self, main: PeerId) -> bool {
        let state = self.lock();
        state.sessions.get(&main).is_none_or(|session| session.is_leaving)
    }

    /// Waits for a moment until this home has another session with a main than the one that it had.
    async fn next_main(&self, had: Option<u64>, deadline: Instant) {
        let until = deadline.min(now() + NEXT_MAIN_WITHIN);
        loop {
            // From before it is looked, so that nothing is missed.
            let heard = self.heard.notified();
            let has = self.uplink_session();
            if (has.is_some() && has != had) || tokio::time::timeout_at(until.into(), heard).await.is_err() {
                return;
            }
        }
    }
}

/// What is to be done with a call, and which instance was chosen for it, where it is this node that chooses.
type Planned = (Step, Option<Chosen<PeerId>>);

/// Where a call goes now. A node that has just started may not have heard of what is there, and waits a moment for it.
async fn planned(
    inner: &Inner,
    call: &Call,
    tried: Option<PeerId>,
    arrived: Instant,
) -> Result<Planned, CallError> {
    loop {
        // From before it is looked, so that nothing is missed.
        let heard = inner.heard.notified();
        let now = now();
        let waited = now.saturating_duration_since(arrived);
        let planned = inner.lock().plan(inner.me, call, tried, waited, now);
        let unheard = |error: &CallError| {
            matches!(error.code, ErrorCode::ServiceNotFound | ErrorCode::NodeNotFound) && tried.is_none()
        };
        let patience = Duration::from_millis(call.remaining_ms.into());
        let until = inner.settled_at.min(arrived + patience);
        if now >= until || !planned.as_ref().is_err_and(unheard) {
            return planned;
        }
        // What comes then is looked at as what has come.
        let _late = tokio::time::timeout_at(until.into(), heard).await;
    }
}

/// What an error says of the instance that was chosen: where others on the way have too much to do, or have lost it, or its
/// node is about to end, nothing. Who can be reached the registry knows, and a breaker would keep one out for half a minute that
/// is back at once. Of a time-out, see [`PATIENT`].
fn of(error: &CallError, chosen: PeerId, left: Duration, usual: Option<Duration>) -> Outcome {
    let is_its_word = error.failed_at == Some(chosen);
    let says_nothing = match error.code {
        ErrorCode::NodeOffline => true,
        ErrorCode::Overloaded | ErrorCode::PeerUnreachable => !is_its_word,
        ErrorCode::Timeout => left < usual.map_or(PATIENT, |usual| usual.saturating_mul(PATIENT_TIMES)),
        _ => false,
    };
    if says_nothing {
        Outcome::Unknown
    } else {
        Outcome::of(error)
    }
}

/// Whether it is sure that the chosen instance did not begin: it is not connected with the node that was to pass the call on, or
/// is about to end; or it says itself that it has too much to do, or that its service is not there. What others on the way have
/// lost it may have begun.
fn is_turned_away(error: &CallError, chosen: Option<PeerId>) -> bool {
    let is_its_word = error.failed_at == chosen;
    let is_not_begun = match error.code {
        ErrorCode::NodeOffline => true,
        ErrorCode::Overloaded | ErrorCode::PeerUnreachable => is_its_word,
        _ => false,
    };
    is_not_begun && chosen.is_some()
}

/// A call that an instance was chosen for: it is told how that ended, also where nobody waits for the end any more.
struct InFlight<'a> {
    inner: &'a Inner,
    chosen: Option<(ServiceName, Chosen<PeerId>)>,
    begun: Instant,
}

impl InFlight<'_> {
    /// It has ended, in this error if there is one; it had so long.
    fn end(mut self, error: Option<&CallError>, left: Duration) {
        self.tell(|chosen, usual| error.map_or(Outcome::Success, |error| of(error, chosen, left, usual)));
    }

    fn tell(&mut self, outcome: impl FnOnce(PeerId, Option<Duration>) -> Outcome) {
        if let Some((service, chosen)) = self.chosen.take() {
            let instance = *chosen.key();
            let turned = {
                let (now, mut state) = (now(), self.inner.lock());
                let took = now.saturating_duration_since(self.begun);
                state.balancers.get_mut(&service).and_then(|balancer| {
                    let usual = balancer.of(&instance).and_then(|metrics| metrics.latency);
                    balancer.on_end(chosen, now, took, outcome(instance, usual))
                })
            };
            match turned {
                Some(Turned::Opened { wait }) => {
                    warn!(%service, %instance, ?wait, "an instance keeps failing, and is not called for now");
                }
                Some(Turned::Closed) => info!(%service, %instance, "an instance is called again"),
                None => {}
            }
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.tell(|_, _| Outcome::Unknown);
    }
}

impl State {
    /// What is to be done with a call, and the instance that was chosen if it is this node that chooses.
    fn plan(
        &mut self,
        me: PeerId,
        call: &Call,
        tried: Option<PeerId>,
        waited: Duration,
        now: Instant,
    ) -> Result<Planned, CallError> {
        let uplink = self.uplink;
        if call.target.is_some() {
            return Ok((
                call.advance(me, call.target, uplink, &self.registry, waited)?,
                None,
            ));
        }
        let is_catalog = call.service.as_str() == catalog::NAME;
        let mut candidates: Vec<Candidate<PeerId>> = Vec::new();
        match &call.address {
            // Every node has it, and none announces it: nothing is chosen, and nothing kept of who was called.
            None if is_catalog => {
                let main = uplink.filter(|_| call.path.is_empty());
                let target = Some(main.unwrap_or(me));
                return Ok((call.advance(me, target, uplink, &self.registry, waited)?, None));
            }
            Some(address) => match self.registry.locate(address) {
                Ok(node)
                    if self.registry.offers(node, &call.service)
                        || (node == me && self.offered_to(call).is_some()) =>
                {
                    let hops = self.registry.hops(node).unwrap_or(0);
                    candidates.push(candidate(node, hops, self.registry.is_local(node)));
                }
                Ok(node) if is_catalog => {
                    return Ok((
                        call.advance(me, Some(node), uplink, &self.registry, waited)?,
                        None,
                    ));
                }
                Ok(node) => {
                    let said = format!("node {node} does not offer service `{}`", call.service);
                    return Err(CallError::new(ErrorCode::ServiceNotFound, said));
                }
                Err(error) => {
                    let passed = [call.path.as_slice(), &[me]].concat();
                    let main = self.registry.main_of(address);
                    let by_main = main.and_then(|main| self.registry.next(main, &passed).ok());
                    let via = by_main.or(uplink).ok_or_else(|| self.lonely(error))?;
                    return Ok((call.advance(me, None, Some(via), &self.registry, waited)?, None));
                }
            },
            // What only this node's own callers know of is theirs before anybody else's.
            None if self.offered_to(call).is_some_and(|offer| {
                offer.exposure.is_private && offer.service.fit(&call.wanted()).is_ok()
            }) =>
            {
                candidates.push(candidate(me, 0, true));
            }
            None => match self.registry.find(&call.wanted()) {
                Ok(found) => {
                    let found = found.iter();
                    candidates.extend(found.map(|one| candidate(one.origin, one.hops, one.is_local)));
                }
                // Whoever knows nobody else asks its main, which may.
                Err(error) => {
                    let main = uplink
                        .filter(|_| call.path.is_empty())
                        .ok_or_else(|| self.lonely(error))?;
                    return Ok((call.advance(me, None, Some(main), &self.registry, waited)?, None));
                }
            },
        }
        if candidates.len() > 1 {
            candidates.retain(|candidate| Some(candidate.key) != tried);
        }
        let balancer = self
            .balancers
            .entry(call.service.clone())
            .or_insert_with(|| Balancer::new(self.balancing.of(&call.service), BreakerConfig::default()));
        // What its caller may make again finds the instance that has carried it out, which has its answer.
        let chosen = if call.id.is_named() {
            balancer.choose_ranked(now, &mut self.rng, &candidates, |node| rank(call.id, *node))
        } else {
            balancer.choose(now, &mut self.rng, &candidates)
        };
        let chosen = chosen.map_err(|refused| refused.error(&call.service, now))?;
        match call.advance(me, Some(*chosen.key()), uplink, &self.registry, waited) {
            Ok(step) => Ok((step, Some(chosen))),
            Err(error) => {
                // It was never called.
                balancer.on_end(chosen, now, Duration::ZERO, Outcome::Unknown);
                Err(error)
            }
        }
    }
}

impl State {
    /// Why a call does not go on: a home without a main knows nothing of what there is.
    fn lonely(&self, error: CallError) -> CallError {
        if self.registry.role() == Role::Home && self.uplink.is_none() {
            CallError::new(
                ErrorCode::PeerUnreachable,
                "this home is connected with no main for now",
            )
        } else {
            error
        }
    }

    /// What answers a call here, and what it is asked.
    fn invoked(
        &self,
        inner: &Arc<Inner>,
        call: &Call,
        deadline: Instant,
    ) -> Result<(Arc<dyn Backend>, Invocation), CallError> {
        if call.service.as_str() == catalog::NAME {
            let catalog: Arc<dyn Backend> = Arc::new(Catalog::new(inner));
            return Ok((catalog, self.invocation(inner.me, call, &call.method, deadline)));
        }
        let Some(offer) = self.offered_to(call) else {
            let said = format!("node {} does not offer service `{}`", inner.me, call.service);
            return Err(CallError::new(ErrorCode::ServiceNotFound, said));
        };
        if let Err(reason) = offer.service.fit(&call.wanted()) {
            return Err(reason.error(&call.wanted()));
        }
        // It fits, so that there is one.
        let method = offer.service.method(&call.method).unwrap_or_default();
        let invocation = self.invocation(inner.me, call, method, deadline);
        Ok((Arc::clone(&offer.backend), invocation))
    }

    fn invocation(&self, me: PeerId, call: &Call, method: &str, deadline: Instant) -> Invocation {
        let caller = call.path.first().copied().unwrap_or(me);
        Invocation {
            method: method.to_owned(),
            arguments: call.arguments.clone(),
            context: CallContext {
                id: call.id,
                trace: call.trace.clone(),
                caller_address: self.registry.known_address(caller),
                ..CallContext::new(caller, deadline)
            },
        }
    }

    /// The service of this node that a call may know of: a private one, only where it was made here.
    fn offered_to(&self, call: &Call) -> Option<&Offer> {
        let offer = self.offers.get(&call.service)?;
        (!offer.exposure.is_private || call.path.is_empty()).then_some(offer)
    }

    /// Whether a call proves what its service wants its callers to know.
    fn permit(&self, call: &Call) -> Result<(), CallError> {
        let Some(token) = self
            .offers
            .get(&call.service)
            .and_then(|offer| offer.exposure.token.as_ref())
        else {
            return Ok(());
        };
        let arguments = call.arguments.as_deref();
        let expected = token.prove_call(call.id.0, &call.service, &call.method, arguments);
        let said = match &call.proof {
            Some(proof) if proof.is(&expected) => return Ok(()),
            Some(_) => format!(
                "service `{}` has another token than the call was made with",
                call.service
            ),
            None => format!("service `{}` is called with a token only", call.service),
        };
        Err(CallError::new(ErrorCode::Unauthenticated, said))
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, IEEE/ACM Transactions on Networking 6(1), 1998): of any instances everybody finds
/// the same for a call.
fn rank(call: CallId, node: PeerId) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("lapwing-federation/v1/instance of a named call");
    hasher.update(&call.0.to_be_bytes());
    hasher.update(&node.to_bytes());
    let mut rank = [0; 8];
    hasher.finalize_xof().fill(&mut rank);
    u64::from_be_bytes(rank)
}

fn candidate(key: PeerId, hops: usize, is_local: bool) -> Candidate<PeerId> {
    Candidate {
        key,
        is_local,
        hops: u8::try_from(hops).unwrap_or(u8::MAX),
    }
}

impl Inner {
    /// Has a call go on to its end although its caller may go: who has named it is expected to ask again.
    fn keep_going(self: &Arc<Self>, call: &Call, execution: Execution, left: Duration) {
        // It counts as one in hand, also where nobody waits. Where there is no place for it, it goes on while somebody does.
        let Ok(place) = self.room.try_take(&call.service) else {
            return;
        };
        let in_hand = self.in_hand.token();
        let going = async move {
            // What comes of it is kept for whoever asks.
            let _ = tokio::time::timeout(left, execution).await;
            drop((place, in_hand));
        };
        self.tasks
            .spawn(self.stop.child_token().run_until_cancelled_owned(going));
    }
}

/// What comes of carrying a call out here.
type Served = Result<String, CallError>;

/// A call that is carried out here, for every attempt at it that waits. It goes on as long as one does, and is dropped with the
/// last.
type Execution = Shared<BoxFuture<'static, Served>>;

/// By what another attempt joins it: it keeps nothing going.
pub(super) type Join = WeakShared<BoxFuture<'static, Served>>;

/// Carries a call out here, unless it was or is already.
async fn serve(inner: &Arc<Inner>, call: &Call, arrived: Instant) -> CallAnswer {
    let begun = now();
    let mut hop = inner.hop(arrived, begun);
    // Arguments may be long: they are looked at before the tables are taken.
    let attempt = Attempt::of(inner.me, call);
    let left = Duration::from_millis(call.remaining_ms.into())
        .saturating_sub(begun.saturating_duration_since(arrived));
    let (execution, is_new) = inner.lock().execution(inner, call, &attempt, begun, begun + left);
    if let Ok(execution) = &execution
        && is_new
        && call.id.is_named()
    {
        inner.keep_going(call, execution.clone(), left);
    }
    let outcome = match execution {
        Ok(execution) => {
            let called = tokio::time::timeout(left, execution).await;
            called.unwrap_or_else(|_| {
                let said = format!(
                    "service `{}` has not answered in {}",
                    call.service,
                    span_text(left)
                );
                Err(CallError::new(ErrorCode::Timeout, said))
            })
        }
        Err(served) => served,
    };
    hop.exec_us = micros(now().saturating_duration_since(begun));
    CallAnswer {
        outcome: outcome.map_err(|error| Failure::of(error, inner.me)),
        hops: vec![hop],
    }
}

impl State {
    /// What an attempt at a call waits for here, or what has come of it already; and whether it is begun by this.
    fn execution(
        &mut self,
        inner: &Arc<Inner>,
        call: &Call,
        attempt: &Attempt,
        now: Instant,
        deadline: Instant,
    ) -> (Result<Execution, Served>, bool) {
        if let Err(error) = self.permit(call) {
            inner.audit.write(|| AuditEvent::CallRefused {
                from: call.path.last().copied(),
                caller: call.path.first().copied(),
                service: call.service.clone(),
                reason: error.message.clone(),
            });
            return (Err(Err(error)), false);
        }
        let found = match self.executed.find(attempt, now) {
            Found::Running(id, join) => match join.upgrade() {
                Some(execution) => return (Ok(execution), false),
                None => {
                    // Its last caller has gone this moment.
                    self.executed.lose(id, now);
                    self.executed.find(attempt, now)
                }
            },
            found => found,
        };
        match found {
            Found::Answered(served) => return (Err(served), false),
            Found::Refused(error) => return (Err(Err(error)), false),
            // None is under way any more.
            Found::Nothing | Found::Running(..) => {}
        }
        let (backend, invocation) = match self.invoked(inner, call, deadline) {
            Ok(invoked) => invoked,
            Err(error) => return (Err(Err(error)), false),
        };
        let id = self.executed.next_id(attempt);
        let execution = execute(Underway::new(inner, id), backend, invocation)
            .boxed()
            .shared();
        if let Some(join) = execution.downgrade() {
            self.executed.begin(attempt, id, join);
        }
        (Ok(execution), true)
    }
}

async fn execute(underway: Underway, backend: Arc<dyn Backend>, invocation: Invocation) -> Served {
    let called = AssertUnwindSafe(async move { backend.call(invocation).await }).catch_unwind();
    // The panic itself is in the log, and nothing that callers are told.
    let served = called
        .await
        .unwrap_or_else(|_| Err(broken("the service has failed")));
    underway.end(&served);
    served
}

/// A call that is carried out: how that ends is kept, also where nobody waits for the end any more.
struct Underway {
    inner: Arc<Inner>,
    id: Option<ExecutionId>,
}

impl Underway {
    fn new(inner: &Arc<Inner>, id: ExecutionId) -> Self {
        Self {
            inner: Arc::clone(inner),
            id: Some(id),
        }
    }

    fn end(mut self, served: &Served) {
        if let Some(id) = self.id.take() {
            self.inner.lock().executed.end(id, served, now());
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.inner.lock().executed.lose(id, now());
        }
    }
}

/// What has become of a call at its link.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// Whether anything has left.
    was_sent: bool,
    /// How long it has waited for its turn.
    waited: Duration,
}

impl Sent {
    const fn at_once() -> Self {
        Self {
            was_sent: true,
            waited: Duration::ZERO,
        }
    }

    const fn never(waited: Duration) -> Self {
        Self {
            was_sent: false,
            waited,
        }
    }
}

/// Passes a call on, and says what came back and what has left. Whoever is asked has a little less time than
/// this node waits, so that it is the one that says what has taken too long.
async fn forward(
    inner: &Arc<Inner>,
    to: PeerId,
    call: &mut Call,
    arrived: Instant,
    patience: Duration,
) -> (CallAnswer, Sent) {
    if let Err(error) = inner.lets_in(to, call) {
        return (failed(inner, error), Sent::never(Duration::ZERO));
    }
    let waiting_since = now();
    // Whoever has waited for half of its time is told so while another instance or a later attempt may still do.
    let longest = patience / 2;
    let turn = tokio::time::timeout(longest, inner.turns(to).take(&call.service, call.priority)).await;
    let begun = now();
    let refused = match &turn {
        Ok(Ok(_)) => None,
        Ok(Err(Full)) => {
            let said = format!("{WAITING_MAX} calls wait to go to node {to}");
            Some(CallError::new(ErrorCode::Overloaded, said).with_retry_after(BUSY_FOR))
        }
        Err(_) => {
            let waited = span_text(longest);
            let said = format!("the call has waited {waited} for its turn to go to node {to}");
            Some(CallError::new(ErrorCode::Overloaded, said).with_retry_after(BUSY_FOR))
        }
    };
    if let Some(refused) = refused {
        return (failed(inner, refused), Sent::never(longest));
    }
    // What has waited has less time than was said when it came.
    let mut hop = inner.hop(arrived, begun);
    let waited = begun.saturating_duration_since(waiting_since);
    let less = u32::try_from(waited.as_millis()).unwrap_or(u32::MAX);
    call.remaining_ms = call.remaining_ms.saturating_sub(less).max(1);
    let patience = patience.saturating_sub(waited);
    let asked = tokio::time::timeout(patience, ask(inner, to, call, patience)).await;
    let asked = asked.unwrap_or_else(|_| {
        Err(Arc::new(RequestError::Timeout {
            peer: to,
            kind: CALL,
            waited: patience,
        }))
    });
    drop(turn);
    let (mut answer, was_sent) = match asked {
        Ok(answer) => (answer, true),
        Err(error) => {
            let (error, was_sent) = lost(inner, to, call, &error);
            (failed(inner, error), was_sent)
        }
    };
    // No more than links can have been crossed, whatever a peer says.
    answer.hops.truncate(usize::from(Call::LINKS_MAX) + 1);
    hop.forward_us = micros(now().saturating_duration_since(begun));
    answer.hops.push(hop);
    (answer, Sent { was_sent, waited })
}

/// Opens a channel to a neighbour. One that is lost is not waited for until it comes back.
pub(super) async fn open(
    inner: &Inner,
    to: PeerId,
    kind: Kind,
    patience: Duration,
) -> Result<Channel, OpenError> {
    let opening = inner.network.open(to, kind, patience);
    let Some(ended) = inner.session_end(to) else {
        return opening.await;
    };
    tokio::select! {
        channel = opening => channel,
        () = ended.cancelled() => Err(OpenError::Unreachable {
            peer: to,
            kind,
            reason: "the session with it has ended".to_owned(),
        }),
    }
}

/// Asks a neighbour, over its line or, where a call is too long for that, over a channel of its own.
async fn ask(
    inner: &Arc<Inner>,
    to: PeerId,
    call: &Call,
    patience: Duration,
) -> Result<CallAnswer, Arc<RequestError>> {
    if let Some(outcome) = inner.line(to).ask(to, call).await {
        return outcome;
    }
    // Apart, since it would make the task of every call as long as this one.
    let frame = Box::pin(ask_apart(inner, to, call, patience)).await?;
    Ok(decode(&frame).unwrap_or_else(|_| unreadable(inner, to)))
}

/// What has been sent is not followed by an end: where this is dropped, that is what the neighbour sees, and it gives the call
/// up too.
async fn ask_apart(
    inner: &Inner,
    to: PeerId,
    call: &Call,
    patience: Duration,
) -> Result<Bytes, RequestError> {
    let mut channel = open(inner, to, CALL, patience.min(OPEN_TIMEOUT)).await?;
    channel.send(&encode(call)).await?;
    let answer = channel.receive().await?;
    answer.ok_or(RequestError::NoAnswer { peer: to, kind: CALL })
}

/// Why a node has not answered, and whether it may have begun.
fn lost(inner: &Inner, to: PeerId, call: &Call, error: &RequestError) -> (CallError, bool) {
    let (code, was_sent) = meaning(error, call.target == Some(to));
    let said = match error {
        // What the network says of it is for whoever never was a member.
        RequestError::Channel(ChannelError::Refused {
            refusal: Refusal::NotMember,
            ..
        }) => format!("node {to} takes this node for no neighbour any more; they greet anew"),
        RequestError::Timeout { waited, .. } => {
            format!("node {to} has not answered within {}", span_text(*waited))
        }
        error => lapwing_base::chain(error),
    };
    let mut error = CallError::new(code, said);
    error.failed_at = Some(inner.me);
    // Whoever refuses a channel says no more than that it is busy.
    error.retry_after = (code == ErrorCode::Overloaded).then_some(BUSY_FOR);
    (error, was_sent)
}

/// What it means for a call that the node that it was sent to has not answered, and whether that may have begun.
fn meaning(error: &RequestError, is_target: bool) -> (ErrorCode, bool) {
    match error {
        RequestError::Timeout { .. } => (ErrorCode::Timeout, true),
        RequestError::Open(_) if is_target => (ErrorCode::NodeOffline, false),
        RequestError::Open(_) => (ErrorCode::PeerUnreachable, false),
        RequestError::Channel(ChannelError::Refused { refusal, .. }) => match refusal {
            Refusal::Busy => (ErrorCode::Overloaded, false),
            // Calls go to neighbours only. One that takes this node for none has noticed before this node that the way
            // between them broke.
            Refusal::NotServed | Refusal::NotMember => (ErrorCode::PeerUnreachable, false),
            Refusal::TooLong { .. } => (ErrorCode::PayloadTooLarge, false),
            Refusal::WrongCluster { .. } | Refusal::Version { .. } => (ErrorCode::ForbiddenByPolicy, false),
        },
        RequestError::Channel(ChannelError::TooLong { .. }) => (ErrorCode::PayloadTooLarge, false),
        _ => (ErrorCode::PeerUnreachable, true),
    }
}

pub(super) fn failed(inner: &Inner, error: CallError) -> CallAnswer {
    CallAnswer {
        outcome: Err(Failure::of(error, inner.me)),
        hops: Vec::new(),
    }
}

/// A node has as many calls in hand as it takes.
pub(super) fn busy(inner: &Inner, service: &ServiceName) -> CallAnswer {
    let said = format!(
        "node {} has as many calls of service `{service}` in hand as it takes",
        inner.me
    );
    let busy = CallError::new(ErrorCode::Overloaded, said);
    failed(inner, busy.with_retry_after(BUSY_FOR))
}

/// What a neighbour has answered cannot be understood.
pub(super) fn unreadable(inner: &Inner, peer: PeerId) -> CallAnswer {
    let said = format!("node {peer} has answered what cannot be read");
    failed(inner, CallError::new(ErrorCode::MalformedMessage, said))
}

/// A length of time as people write it: `10.8 s`, and of less than one `45 ms`.
fn span_text(span: Duration) -> String {
    match span.as_millis() {
        millis @ 0..1_000 => format!("{millis} ms"),
        _ => format!("{:.1} s", span.as_secs_f64()),
    }
}

fn micros(took: Duration) -> u32 {
    u32::try_from(took.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::documents::tests::Alone;
    use crate::{Exposure, Retry, Service};

    /// Answers nothing, by its own fault.
    struct Broken;

    impl Backend for Broken {
        fn call(self: Arc<Self>, _: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
            std::future::ready(Err(broken("the service is broken"))).boxed()
        }
    }

    #[tokio::test]
    async fn the_breaker_of_a_service_that_is_kept_to_this_node_stays_until_it_is_withdrawn() {
        let alone = Alone::start(Role::Main).await;
        let federation = &alone.federation;
        let exposure = Exposure {
            is_private: true,
            ..Exposure::default()
        };
        let name: ServiceName = "diary".parse().unwrap();
        let service = Service::new(name.clone());
        federation.offer_to(service, Arc::new(Broken), exposure).unwrap();
        let called = async || {
            let answer = federation.call(Call::new(name.clone(), "read")).await;
            answer.outcome.unwrap_err().code
        };
        for _ in 0..10 {
            called().await;
        }
        assert_eq!(called().await, ErrorCode::CircuitOpen);
        federation.inner.lock().forget_instances();
        assert_eq!(called().await, ErrorCode::CircuitOpen);
        assert!(federation.withdraw(&name));
        federation.inner.lock().forget_instances();
        assert!(federation.inner.lock().balancers.is_empty());
        alone.stop().await;
    }

    #[test]
    fn a_length_of_time_is_written_as_people_do() {
        for (micros, text) in [(10_812_345, "10.8 s"), (1_000_000, "1.0 s"), (45_678, "45 ms")] {
            assert_eq!(span_text(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn a_neighbour_that_has_noticed_a_cut_before_this_node_may_be_asked_again() {
        let refused = |refusal| {
            let (peer, kind) = (PeerId::random(), CALL);
            let error = RequestError::Channel(ChannelError::Refused { peer, kind, refusal });
            meaning(&error, true)
        };
        let (code, was_sent) = refused(Refusal::NotMember);
        assert_eq!((code, was_sent), (ErrorCode::PeerUnreachable, false));
        assert_eq!(code.retry(), Retry::Later);
        let (code, _) = refused(Refusal::WrongCluster { theirs: None });
        assert_eq!(code, ErrorCode::ForbiddenByPolicy);
    }

    #[tokio::test]
    async fn who_is_told_that_a_neighbour_is_busy_is_told_when_to_try_again() {
        let alone = Alone::start(Role::Main).await;
        let (peer, kind, refusal) = (PeerId::random(), CALL, Refusal::Busy);
        let refused = RequestError::Channel(ChannelError::Refused { peer, kind, refusal });
        let call = Call::new("blog".parse().unwrap(), "read");
        let (error, was_sent) = lost(&alone.federation.inner, peer, &call, &refused);
        assert_eq!((error.code, was_sent), (ErrorCode::Overloaded, false));
        assert_eq!(error.retry_after, Some(BUSY_FOR));
        alone.stop().await;
    }

    #[test]
    fn what_an_instance_has_turned_away_was_not_begun_and_what_was_lost_on_the_way_may_have_been() {
        let [instance, other] = [(); 2].map(|()| PeerId::random());
        for (code, failed_at, expected) in [
            (ErrorCode::PeerUnreachable, Some(instance), true),
            (ErrorCode::Overloaded, Some(instance), true),
            (ErrorCode::NodeOffline, Some(instance), true),
            (ErrorCode::NodeOffline, Some(other), true),
            (ErrorCode::PeerUnreachable, Some(other), false),
            (ErrorCode::Timeout, Some(instance), false),
            (ErrorCode::RemoteError, Some(instance), false),
        ] {
            let mut error = CallError::new(code, "as it was");
            error.failed_at = failed_at;
            assert_eq!(is_turned_away(&error, Some(instance)), expected, "{code:?}");
            assert!(
                !is_turned_away(&error, None),
                "whoever has not chosen knows nothing"
            );
        }
    }

    #[test]
    fn who_is_about_to_end_is_not_to_blame_and_who_was_given_no_time_is_not_either() {
        let [instance, other] = [(); 2].map(|()| PeerId::random());
        let [soon, late] = [50, 5_000].map(Duration::from_millis);
        let [quick, slow] = [Some(Duration::from_millis(2)), Some(Duration::from_millis(40))];
        for (code, failed_at, left, usual, expected) in [
            (ErrorCode::NodeOffline, instance, late, None, Outcome::Unknown),
            (ErrorCode::Overloaded, instance, late, None, Outcome::ServersFault),
            (ErrorCode::Overloaded, other, late, None, Outcome::Unknown),
            (
                ErrorCode::PeerUnreachable,
                instance,
                late,
                None,
                Outcome::ServersFault,
            ),
            (ErrorCode::Timeout, instance, late, None, Outcome::ServersFault),
            (ErrorCode::Timeout, instance, soon, None, Outcome::Unknown),
            (ErrorCode::Timeout, instance, soon, slow, Outcome::Unknown),
            (ErrorCode::Timeout, instance, soon, quick, Outcome::ServersFault),
            (ErrorCode::Timeout, instance, late, Some(late), Outcome::Unknown),
        ] {
            let mut error = CallError::new(code, "as it was");
            error.failed_at = Some(failed_at);
            assert_eq!(
                of(&error, instance, left, usual),
                expected,
                "{code:?} {left:?} {usual:?}"
            );
        }
    }
}
