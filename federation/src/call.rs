//! A call on its way from link to link, and what each node does with it. Carries nothing itself.

use crate::policy::Proof;
use crate::remote_call::PRIORITY_MAX;
use crate::{
    Arguments, CallError, Constraint, ErrorCode, NodeAddress, Registry, RemoteCall, ServiceName, Token,
    Wanted,
};
use lapwing_base::{PeerId, Role};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// A call as it crosses a link.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Drawn by whoever called; the same when it is tried again, so that it is carried out once.
    pub id: CallId,
    /// Whom the caller has named; nobody where any instance will do.
    pub address: Option<NodeAddress>,
    /// Who is to answer, once a node has known that or chosen.
    pub target: Option<PeerId>,
    /// The service.
    pub service: ServiceName,
    /// What is called in it: at most 128 bytes; empty where the only method that it has is meant.
    pub method: String,
    /// Which versions will do.
    pub versions: Constraint,
    /// What the service has to work on: at most 64 names.
    pub resources: BTreeSet<String>,
    /// JSON: an array, an object, or nothing.
    pub arguments: Option<String>,
    /// The nodes that it has passed, the first that took it in front: as many as links that it has crossed.
    pub path: Vec<PeerId>,
    /// How many links it may cross in all.
    pub links_max: u8,
    /// How long whoever sends it waits for the answer, in milliseconds: no clock is compared with another.
    pub remaining_ms: u32,
    /// Which calls go first where many wait: the higher.
    pub priority: i8,
    /// Whether it may be carried out twice.
    pub is_idempotent: bool,
    /// The trace that it belongs to.
    pub trace: TraceContext,
    /// That whoever calls knows the token of the service, where it wants one.
    pub proof: Option<Proof>,
}

/// Names one call.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct CallId(pub u128);

impl CallId {
    /// Tells those that a caller has named from those that were drawn.
    const NAMED: u128 = 1 << 127;

    /// Of a call that its caller has named, and may make again under the same name: made of the bits of the name's hash.
    pub const fn named(bits: u128) -> Self {
        Self(bits | Self::NAMED)
    }

    /// Of a call that comes once, made of bits that were drawn.
    pub const fn drawn(bits: u128) -> Self {
        Self(bits & !Self::NAMED)
    }

    /// Whether its caller may make it again.
    pub const fn is_named(self) -> bool {
        self.0 & Self::NAMED != 0
    }
}

/// What W3C's Trace Context (Recommendation of 23 November 2021) carries.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct TraceContext {
    /// `traceparent`, 55 characters; none where nobody traces.
    pub parent: Option<String>,
    /// `tracestate`: at most 512 bytes.
    pub state: Option<String>,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallAnswer {
    /// JSON, or why there is none.
    pub outcome: Result<String, Failure>,
    /// What it took at each node that it has passed, the one that has answered first.
    pub hops: Vec<HopTiming>,
}

/// A [`CallError`] as it crosses a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub code: ErrorCode,
    /// The same for people.
    pub message: String,
    /// Where.
    pub failed_at: PeerId,
    /// Not before this the same call may do better.
    pub retry_after_ms: Option<u32>,
    /// What the service itself has answered.
    pub remote: Option<crate::RemoteError>,
}

/// When a call was at one node, and for how long, all by that node's own clocks: those of two nodes need not agree.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HopTiming {
    /// Which.
    pub node: PeerId,
    /// What it says that it is.
    pub role: Role,
    /// When the call has come to it, in nanoseconds since 1970. For people to read: nothing is reckoned with it.
    pub in_unix_ns: u64,
    /// Until it was looked at.
    pub queue_us: u32,
    /// Until the answer came from the next node, that node's own time included; 0 where it was carried out.
    pub forward_us: u32,
    /// Carrying it out; 0 where it was passed on.
    pub exec_us: u32,
}

/// What a node does with a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Carries it out.
    Serve,
    /// Passes it on.
    Forward {
        /// To whom.
        to: PeerId,
        /// What is different there.
        onward: Onward,
    },
}

/// What a node changes in a call that it passes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Onward {
    target: Option<PeerId>,
    path: Vec<PeerId>,
    links_max: u8,
    remaining_ms: u32,
}

/// Bytes of a `traceparent`, of whatever version, and of a `tracestate` that is passed on (sections 3.2.2 and 3.3.1.5).
const TRACE_PARENT_MAX: usize = 128;
pub(crate) const TRACE_STATE_MAX: usize = 512;

/// For programs that call: what they do not say is as in a `remote_call` that does not say it.
///
/// ```
/// use lapwing_federation::Call;
/// use serde_json::json;
/// use std::time::Duration;
///
/// let call = Call::new("blog".parse().unwrap(), "get")
///     .with_arguments(json!([7]))
///     .with_timeout(Duration::from_secs(5))
///     .idempotent();
/// assert_eq!(call.arguments.as_deref(), Some("[7]"));
/// ```
impl Call {
    /// A call of a method of any instance of a service, with a new id: for whoever calls first. What passes a call on keeps its
    /// id.
    pub fn new(service: ServiceName, method: impl Into<String>) -> Self {
        Self {
            id: CallId::random(),
            address: None,
            target: None,
            service,
            method: method.into(),
            versions: Constraint::default(),
            resources: BTreeSet::new(),
            arguments: None,
            path: Vec::new(),
            links_max: Self::LINKS_MAX,
            remaining_ms: millis(RemoteCall::TIMEOUT_DEFAULT),
            priority: 0,
            is_idempotent: false,
            trace: TraceContext::default(),
            proof: None,
        }
    }

    /// The same for one node, which alone may answer it.
    #[must_use]
    pub fn to(mut self, address: NodeAddress) -> Self {
        self.address = Some(address);
        self
    }

    /// The same with arguments: a JSON array is by position, an object by name, anything else the only one.
    #[must_use]
    pub fn with_arguments(mut self, arguments: impl Into<Arguments>) -> Self {
        self.arguments = arguments.into().into_params().map(|params| params.to_string());
        self
    }

    /// The same for versions that will do.
    #[must_use]
    pub fn with_versions(mut self, versions: Constraint) -> Self {
        self.versions = versions;
        self
    }

    /// The same for an instance that has these resources.
    #[must_use]
    pub fn with_resources(mut self, resources: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.resources = resources.into_iter().map(Into::into).collect();
        self
    }

    /// The same for a caller that waits so long: from [`RemoteCall::TIMEOUT_MIN`] to [`RemoteCall::TIMEOUT_MAX`], and what is
    /// beyond is taken for the nearest of them.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.remaining_ms = millis(timeout.clamp(RemoteCall::TIMEOUT_MIN, RemoteCall::TIMEOUT_MAX));
        self
    }

    /// The same with a priority: -10 to 10, the highest first.
    #[must_use]
    pub fn with_priority(mut self, priority: i8) -> Self {
        self.priority = priority.clamp(-PRIORITY_MAX, PRIORITY_MAX);
        self
    }

    /// The same where it may be carried out twice, so that it is tried again where nobody knows whether it was.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.is_idempotent = true;
        self
    }

    /// The same as part of a trace.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceContext) -> Self {
        self.trace = trace;
        self
    }

    /// The same with the proof that its caller knows a token, for services that ask for one. It is of these arguments and no
    /// others, so that they come first.
    #[must_use]
    pub fn with_token(mut self, token: &Token) -> Self {
        let arguments = self.arguments.as_deref();
        self.proof = Some(token.prove_call(self.id.0, &self.service, &self.method, arguments));
        self
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

impl CallId {
    /// One that nobody else has.
    #[expect(
        clippy::disallowed_methods,
        reason = "for programs that call; the cores here are given an id"
    )]
    pub fn random() -> Self {
        Self::drawn(rand::random())
    }
}

impl CallAnswer {
    /// What the service has answered, read as what the caller takes it for.
    ///
    /// # Errors
    /// Why there is nothing; [`ErrorCode::MalformedMessage`] where it is something else.
    pub fn result<R: DeserializeOwned>(self) -> Result<R, CallError> {
        let text = self.outcome.map_err(CallError::from)?;
        serde_json::from_str(&text).map_err(|error| {
            let said = format!("the answer is not what its caller takes it for: {error}");
            CallError::new(ErrorCode::MalformedMessage, said)
        })
    }
}

impl Call {
    /// More links nobody waits for.
    pub const LINKS_MAX: u8 = 8;

    /// What is always kept of the time for the way back, and a part of it.
    const KEPT_MIN: Duration = Duration::from_millis(10);
    const KEPT: f64 = 0.05;

    /// Names, in bytes, and how many of them.
    const METHOD_MAX: usize = 128;
    const RESOURCES_MAX: usize = 64;

    /// How a call that has come from `from`, or from this node's own edge, goes on once it has waited for `waited`. `target`
    /// is who was chosen to answer; a node that cannot choose, since it knows nobody, asks `uplink`.
    ///
    /// # Errors
    /// Why it does not go on; whoever called is told.
    pub fn advance(
        &self,
        me: PeerId,
        target: Option<PeerId>,
        uplink: Option<PeerId>,
        registry: &Registry,
        waited: Duration,
    ) -> Result<Step, CallError> {
        if self.path.contains(&me) {
            let said = format!("the call has come back to node {me}");
            return Err(CallError::new(ErrorCode::RoutingLoop, said));
        }
        if target == Some(me) {
            return Ok(Step::Serve);
        }
        let mut passed = self.path.clone();
        passed.push(me);
        let to = match target {
            Some(target) => registry
                .next(target, &passed)
                .or_else(|error| match (error.code, uplink) {
                    // A home knows nobody: its main may.
                    (ErrorCode::NodeNotFound, Some(uplink)) if !passed.contains(&uplink) => Ok(uplink),
                    _ => Err(error),
                })?,
            None => uplink
                .filter(|uplink| !passed.contains(uplink))
                .ok_or_else(|| match &self.address {
                    Some(address) => {
                        CallError::new(ErrorCode::NodeNotFound, format!("no node `{address}` is known"))
                    }
                    None => {
                        let said = format!("service `{}` was not announced", self.service);
                        CallError::new(ErrorCode::ServiceNotFound, said)
                    }
                })?,
        };
        // Where the target is known, as far as it is from here and no further.
        let hops = target.and_then(|target| registry.hops_by(target, to));
        let links_max = hops.map_or(Self::LINKS_MAX, |hops| {
            u8::try_from(self.path.len() + hops).unwrap_or(Self::LINKS_MAX)
        });
        let links_max = links_max.min(self.links_max).min(Self::LINKS_MAX);
        if passed.len() > usize::from(links_max) {
            let said = format!(
                "the call has crossed {} links and would need more",
                self.path.len()
            );
            return Err(CallError::new(ErrorCode::HopLimitExceeded, said));
        }
        let left = Duration::from_millis(self.remaining_ms.into()).saturating_sub(waited);
        let kept = left.mul_f64(Self::KEPT).max(Self::KEPT_MIN);
        let Some(remaining) = left.checked_sub(kept).filter(|remaining| !remaining.is_zero()) else {
            let said = "no time is left for the call to go on and its answer to come back";
            return Err(CallError::new(ErrorCode::Timeout, said));
        };
        let onward = Onward {
            target,
            path: passed,
            links_max,
            remaining_ms: millis(remaining),
        };
        Ok(Step::Forward { to, onward })
    }

    /// The call as it is passed on.
    #[must_use]
    pub fn onward(self, onward: Onward) -> Self {
        Self {
            target: onward.target,
            path: onward.path,
            links_max: onward.links_max,
            remaining_ms: onward.remaining_ms,
            ..self
        }
    }

    /// Whether what a neighbour has sent can be a call that has come from it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, from: PeerId) -> Result<(), CallError> {
        let malformed = |said: &str| Err(CallError::new(ErrorCode::MalformedMessage, said));
        let names = self.resources.iter().map(String::len).max().unwrap_or(0);
        if self.path.last() != Some(&from) {
            return malformed("a call does not say that it comes from whoever has sent it");
        }
        if self.path.len() > usize::from(Self::LINKS_MAX) || self.links_max > Self::LINKS_MAX {
            return malformed("a call has passed more nodes than any may");
        }
        if (1..self.path.len()).any(|place| self.path[..place].contains(&self.path[place])) {
            return malformed("a call has passed a node twice");
        }
        if self.method.len().max(names) > Self::METHOD_MAX {
            return malformed("a call has a name that is too long");
        }
        if self.resources.len() > Self::RESOURCES_MAX {
            return malformed("a call wants more resources than any service has");
        }
        let patience = Duration::from_millis(self.remaining_ms.into());
        if patience > RemoteCall::TIMEOUT_MAX || self.priority.unsigned_abs() > PRIORITY_MAX.unsigned_abs() {
            return malformed("a call waits for longer than any may, or is more urgent");
        }
        let trace = [
            (&self.trace.parent, TRACE_PARENT_MAX),
            (&self.trace.state, TRACE_STATE_MAX),
        ];
        if trace
            .iter()
            .any(|(text, max)| text.as_ref().is_some_and(|text| text.len() > *max))
        {
            return malformed("a call belongs to a trace with too long a name");
        }
        Ok(())
    }

    /// What it wants.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            service: self.service.clone(),
            method: self.method.clone(),
            versions: self.versions.clone(),
            resources: self.resources.clone(),
        }
    }
}

impl Failure {
    /// As an error of `me` crosses a link, or one that has come to it.
    pub fn of(error: CallError, me: PeerId) -> Self {
        Self {
            code: error.code,
            message: error.message,
            failed_at: error.failed_at.unwrap_or(me),
            retry_after_ms: error.retry_after.map(millis),
            remote: error.remote,
        }
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code,
            message: failure.message,
            failed_at: Some(failure.failed_at),
            retry_after: failure
                .retry_after_ms
                .map(|after| Duration::from_millis(after.into())),
            remote: failure.remote,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Message;
    use crate::announcement::tests::announcement;
    use crate::{Forwarded, SignedAnnouncement};
    use lapwing_base::Keypair;
    use std::time::Instant;

    /// A main that knows a home of its own, and one behind another main.
    struct Main {
        me: PeerId,
        registry: Registry,
        home: PeerId,
        other: PeerId,
        far: PeerId,
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn main() -> Main {
        let now = Instant::now();
        let [me, other] = [(); 2].map(|()| PeerId::random());
        let [home, far] = [(); 2].map(|()| Keypair::generate_ed25519());
        let mut registry = Registry::new(me, Role::Main);
        let id = |key: &Keypair| key.public().to_peer_id();
        drop(registry.on_connected(id(&home), Role::Home));
        drop(registry.on_connected(other, Role::Main));
        for (key, path) in [(&home, vec![id(&home)]), (&far, vec![id(&far), other])] {
            let signed = SignedAnnouncement::new(&announcement(key, &["blog"]), key).unwrap();
            let from = *path.last().unwrap();
            let message = Message::Announced(Box::new(Forwarded { path, signed }));
            registry.on_message(from, message, now).unwrap();
        }
        Main {
            me,
            registry,
            home: id(&home),
            other,
            far: id(&far),
        }
    }

    /// One that has come by this path.
    pub(crate) fn call(path: &[PeerId]) -> Call {
        Call {
            id: CallId(7),
            address: None,
            target: None,
            service: "blog".parse().unwrap(),
            method: "read".to_owned(),
            versions: Constraint::default(),
            resources: BTreeSet::new(),
            arguments: None,
            path: path.to_vec(),
            links_max: Call::LINKS_MAX,
            remaining_ms: 60_000,
            priority: 0,
            is_idempotent: false,
            trace: TraceContext::default(),
            proof: None,
        }
    }

    impl Main {
        fn advance(&self, call: &Call, target: Option<PeerId>) -> Result<Step, ErrorCode> {
            let step = call.advance(self.me, target, None, &self.registry, Duration::ZERO);
            step.map_err(|error| error.code)
        }
    }

    #[test]
    fn a_main_passes_a_call_to_its_home_or_to_the_main_of_another() {
        let main = main();
        let caller = PeerId::random();
        for (target, next, links) in [(main.home, main.home, 2), (main.far, main.other, 3)] {
            let before = call(&[caller]);
            let step = main.advance(&before, Some(target));
            let Ok(Step::Forward { to, onward }) = step else {
                panic!("{step:?}")
            };
            let call = before.onward(onward);
            assert_eq!((to, call.target), (next, Some(target)));
            assert_eq!(call.path, [caller, main.me]);
            // As far as the target is from here, and no further.
            assert_eq!(call.links_max, links);
            assert_eq!(call.remaining_ms, 57_000);
            assert_eq!(call.check(main.me), Ok(()));
        }
    }

    #[test]
    fn whoever_was_chosen_carries_it_out() {
        let main = main();
        assert_eq!(main.advance(&call(&[]), Some(main.me)), Ok(Step::Serve));
    }

    #[test]
    fn a_home_that_knows_nobody_asks_its_main() {
        let [me, uplink] = [(); 2].map(|()| PeerId::random());
        let registry = Registry::new(me, Role::Home);
        for target in [None, Some(PeerId::random())] {
            let before = call(&[]);
            let step = before.advance(me, target, Some(uplink), &registry, Duration::ZERO);
            let Ok(Step::Forward { to, onward }) = step else {
                panic!("{step:?}")
            };
            let call = before.onward(onward);
            assert_eq!((to, call.target, call.path), (uplink, target, vec![me]));
        }
        let nobody = call(&[]).advance(me, None, None, &registry, Duration::ZERO);
        assert_eq!(nobody.unwrap_err().code, ErrorCode::ServiceNotFound);
    }

    #[test]
    fn what_has_been_here_or_has_gone_too_far_goes_no_further() {
        let main = main();
        let before = call(&[main.me, PeerId::random()]);
        assert_eq!(
            main.advance(&before, Some(main.home)),
            Err(ErrorCode::RoutingLoop)
        );
        let mut tired = call(&[PeerId::random(), PeerId::random()]);
        tired.links_max = 2;
        assert_eq!(
            main.advance(&tired, Some(main.home)),
            Err(ErrorCode::HopLimitExceeded)
        );
        tired.links_max = 3;
        assert!(main.advance(&tired, Some(main.home)).is_ok());
    }

    #[test]
    fn what_has_no_time_left_is_told_so_at_once() {
        let main = main();
        let advance = |waited| {
            let mut late = call(&[]);
            late.remaining_ms = 100;
            late.advance(
                main.me,
                Some(main.home),
                None,
                &main.registry,
                Duration::from_millis(waited),
            )
            .map_err(|error| error.code)
        };
        assert!(matches!(advance(0), Ok(Step::Forward { onward, .. }) if onward.remaining_ms == 90));
        assert_eq!(advance(90), Err(ErrorCode::Timeout));
        assert_eq!(advance(5000), Err(ErrorCode::Timeout));
    }

    #[test]
    fn what_cannot_have_come_from_its_sender_is_malformed() {
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let is_refused = |call: &Call, from| {
            let checked = call.check(from);
            checked.is_err_and(|error| error.code == ErrorCode::MalformedMessage)
        };
        assert!(!is_refused(&call(&[a, b]), b));
        assert!(is_refused(&call(&[a, b]), a));
        assert!(is_refused(&call(&[]), a));
        assert!(is_refused(&call(&[b, a, b]), b));
        let mut long = call(&[a]);
        long.method = "x".repeat(Call::METHOD_MAX + 1);
        assert!(is_refused(&long, a));
        let mut far = call(&[a]);
        far.links_max = 200;
        assert!(is_refused(&far, a));
        let mut patient = call(&[a]);
        patient.remaining_ms = 3_600_001;
        assert!(is_refused(&patient, a));
        let mut urgent = call(&[a]);
        urgent.priority = 11;
        assert!(is_refused(&urgent, a));
        let mut traced = call(&[a]);
        traced.trace.state = Some("x".repeat(513));
        assert!(is_refused(&traced, a));
    }

    #[test]
    fn a_program_says_of_a_call_what_differs_from_any_other() {
        let name = || "blog".parse().unwrap();
        let plain = Call::new(name(), "list");
        assert_ne!(plain.id, Call::new(name(), "list").id);
        assert_eq!((plain.remaining_ms, plain.arguments.as_ref()), (60_000, None));
        let token = Token::new("correct horse battery staple").unwrap();
        let call = Call::new(name(), "get")
            .to("bob.home@relay-a".parse().unwrap())
            .with_arguments(serde_json::json!("only"))
            .with_versions(">=1,<2".parse().unwrap())
            .with_resources(["de"])
            .with_timeout(Duration::ZERO)
            .with_priority(100)
            .idempotent()
            .with_token(&token);
        assert_eq!(call.arguments.as_deref(), Some("[\"only\"]"));
        assert_eq!((call.remaining_ms, call.priority), (50, 10));
        assert!(call.is_idempotent && call.resources.contains("de"));
        assert!(call.address.is_some() && call.proof.is_some());
        let sent = Call {
            path: vec![PeerId::random()],
            ..call
        };
        assert_eq!(sent.check(sent.path[0]), Ok(()));
    }

    #[test]
    fn an_answer_is_read_as_what_its_caller_takes_it_for() {
        let answer = |outcome| CallAnswer {
            outcome,
            hops: Vec::new(),
        };
        assert_eq!(answer(Ok("[1,2]".to_owned())).result(), Ok(vec![1, 2]));
        let other = answer(Ok("[1,2]".to_owned())).result::<String>();
        assert_eq!(other.unwrap_err().code, ErrorCode::MalformedMessage);
        let busy = Failure::of(CallError::new(ErrorCode::Overloaded, "busy"), PeerId::random());
        let failed = answer(Err(busy)).result::<String>();
        assert_eq!(failed.unwrap_err().code, ErrorCode::Overloaded);
    }

    #[test]
    fn an_error_says_where_it_happened_however_many_links_away() {
        let (near, far) = (PeerId::random(), PeerId::random());
        let failure = Failure::of(CallError::new(ErrorCode::Overloaded, "busy"), far);
        let error: CallError = failure.into();
        assert_eq!(Failure::of(error, near).failed_at, far);
    }
}
