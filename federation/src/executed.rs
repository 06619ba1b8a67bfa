//! Which calls are carried out here or were lately, so that a call that comes twice is carried out once.
//!
//! Pure: it carries nothing out. [`Executed::find`] says what is known of an attempt at a call; who carries it out says so
//! with [`Executed::begin`], and with [`Executed::end`] or [`Executed::lose`] how that ended.

use crate::{Call, CallError, CallId, ErrorCode, Retry};
use lapwing_base::PeerId;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

/// The calls that a node carries out or has carried out. A `J` is by what another attempt joins one that is under way.
///
/// What is known of a call that has ended is kept for [`Executed::KEPT`], or for less where there are more than
/// [`Executed::ENDED_MAX`]; its answer for less where all answers are longer than [`Executed::BYTES_MAX`]. None of it outlives
/// the node's process.
#[derive(Debug)]
pub struct Executed<J> {
    executions: HashMap<Key, Execution<J>>,
    /// In the order in which they ended. Some are not known any more, or have begun anew.
    ended: VecDeque<(Instant, ExecutionId)>,
    /// Those of them whose answers may be kept: in the same order.
    answered: VecDeque<ExecutionId>,
    /// Of all answers that are kept.
    bytes: usize,
    /// So many have begun.
    begun: u64,
}

/// One of the times that a call comes.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    key: Key,
    /// What it asks for, as a hash. Whoever finds two requests with the same has only its own answers to confuse.
    body: u64,
    is_idempotent: bool,
}

/// Names one execution, also where the same call is carried out again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExecutionId {
    key: Key,
    number: u64,
}

/// What is known of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Found<J> {
    /// It is to be carried out.
    Nothing,
    /// It is under way, and can be joined.
    Running(ExecutionId, J),
    /// It has ended so.
    Answered(Result<String, CallError>),
    /// It is not to be carried out.
    Refused(CallError),
}

/// No caller is told what another has asked for, whatever ids it guesses.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Key {
    caller: PeerId,
    id: CallId,
}

#[derive(Debug)]
struct Execution<J> {
    number: u64,
    body: u64,
    state: State<J>,
}

#[derive(Debug)]
enum State<J> {
    Running(J),
    Answered(Result<String, CallError>),
    /// It was carried out, and the answer was not kept; or it was given up, and nobody knows how far it had come.
    Unknown,
}

impl Attempt {
    /// An attempt at a call that has come to `me`.
    pub fn of(me: PeerId, call: &Call) -> Self {
        let mut body = DefaultHasher::new();
        call.service.as_str().hash(&mut body);
        call.method.hash(&mut body);
        call.arguments.hash(&mut body);
        call.resources.hash(&mut body);
        Self {
            key: Key {
                caller: call.path.first().copied().unwrap_or(me),
                id: call.id,
            },
            body: body.finish(),
            is_idempotent: call.is_idempotent,
        }
    }
}

impl<J: Clone> Executed<J> {
    /// How long it is known that a call has ended: whoever has waited for the usual minute may come again for another.
    pub const KEPT: Duration = Duration::from_secs(120);

    /// Calls that have ended: about 25 MB, and five hundred a second for as long as they are kept.
    pub const ENDED_MAX: usize = 65_536;

    /// The longest answer that is kept.
    pub const ANSWER_MAX: usize = 64 * 1024;

    /// All answers that are kept: what a small machine can spare.
    pub const BYTES_MAX: usize = 32 * 1024 * 1024;

    /// Nothing was carried out yet.
    pub fn new() -> Self {
        Self {
            executions: HashMap::new(),
            ended: VecDeque::new(),
            answered: VecDeque::new(),
            bytes: 0,
            begun: 0,
        }
    }

    /// What is known of a call that comes now.
    ///
    /// One that may be carried out twice is, unless there is a result: where it has failed, it may do better.
    pub fn find(&mut self, attempt: &Attempt, now: Instant) -> Found<J> {
        self.on_tick(now);
        let Some(execution) = self.executions.get(&attempt.key) else {
            return Found::Nothing;
        };
        let refused = |said: &str| Found::Refused(CallError::new(ErrorCode::DuplicateRequest, said));
        if execution.body != attempt.body {
            return refused("a call with the same id has asked for something else");
        }
        let id = ExecutionId {
            key: attempt.key,
            number: execution.number,
        };
        match &execution.state {
            State::Running(join) => Found::Running(id, join.clone()),
            State::Answered(answer) if answer.is_ok() || !attempt.is_idempotent => {
                Found::Answered(answer.clone())
            }
            State::Answered(_) | State::Unknown if attempt.is_idempotent => Found::Nothing,
            State::Answered(_) | State::Unknown => {
                refused("the call may have been carried out before, and its answer is not known any more")
            }
        }
    }

    /// Names an execution that is going to begin.
    pub fn next_id(&mut self, attempt: &Attempt) -> ExecutionId {
        self.begun += 1;
        ExecutionId {
            key: attempt.key,
            number: self.begun,
        }
    }

    /// A call is under way from now on.
    pub fn begin(&mut self, attempt: &Attempt, id: ExecutionId, join: J) {
        self.forget(&id.key);
        let execution = Execution {
            number: id.number,
            body: attempt.body,
            state: State::Running(join),
        };
        self.executions.insert(id.key, execution);
    }

    /// A call has ended. Where the error says that nothing was begun, it may come again as if it had not come.
    pub fn end(&mut self, id: ExecutionId, answer: &Result<String, CallError>, now: Instant) {
        if matches!(answer, Err(error) if error.code.retry() == Retry::Later) {
            if self.running(id).is_some() {
                self.forget(&id.key);
            }
            return;
        }
        let length = length(answer);
        let is_kept = length <= Self::ANSWER_MAX;
        let Some(state) = self.running(id) else {
            return;
        };
        *state = if is_kept {
            State::Answered(answer.clone())
        } else {
            State::Unknown
        };
        self.ended.push_back((now, id));
        if is_kept {
            self.bytes += length;
            self.answered.push_back(id);
        }
        self.make_room();
    }

    /// A call was given up, and nobody knows how far it had come.
    pub fn lose(&mut self, id: ExecutionId, now: Instant) {
        if let Some(state) = self.running(id) {
            *state = State::Unknown;
            self.ended.push_back((now, id));
            self.make_room();
        }
    }

    /// Forgets what was kept for long enough.
    pub fn on_tick(&mut self, now: Instant) {
        while let Some((ended_at, _)) = self.ended.front()
            && now.saturating_duration_since(*ended_at) >= Self::KEPT
        {
            self.forget_oldest();
        }
    }

    fn make_room(&mut self) {
        while self.ended.len() > Self::ENDED_MAX {
            self.forget_oldest();
        }
        while self.bytes > Self::BYTES_MAX
            && let Some(oldest) = self.answered.pop_front()
        {
            // It is still known that it was carried out.
            if let Some(execution) = self.execution(oldest)
                && let State::Answered(answer) = &execution.state
            {
                let length = length(answer);
                execution.state = State::Unknown;
                self.bytes -= length;
            }
        }
    }

    fn forget_oldest(&mut self) {
        let Some((_, oldest)) = self.ended.pop_front() else {
            return;
        };
        self.answered.pop_front_if(|answered| *answered == oldest);
        if self.execution(oldest).is_some() {
            self.forget(&oldest.key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(Execution {
            state: State::Answered(answer),
            ..
        }) = self.executions.remove(key)
        {
            self.bytes -= length(&answer);
        }
    }

    /// `None` where it is not known any more, or the call was carried out anew.
    fn execution(&mut self, id: ExecutionId) -> Option<&mut Execution<J>> {
        let execution = self.executions.get_mut(&id.key)?;
        (execution.number == id.number).then_some(execution)
    }

    fn running(&mut self, id: ExecutionId) -> Option<&mut State<J>> {
        let state = &mut self.execution(id)?.state;
        matches!(state, State::Running(_)).then_some(state)
    }
}

impl<J: Clone> Default for Executed<J> {
    fn default() -> Self {
        Self::new()
    }
}

fn length(answer: &Result<String, CallError>) -> usize {
    match answer {
        Ok(result) => result.len(),
        Err(error) => {
            let remote = error.remote.as_ref();
            error.message.len() + remote.map_or(0, |remote| remote.message.len())
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use crate::{Constraint, TraceContext};
    use proptest::prelude::*;
    use std::collections::HashSet;

    type Calls = Executed<&'static str>;

    fn call(caller: PeerId, id: u128, arguments: &str, is_idempotent: bool) -> Call {
        Call {
            id: CallId(id),
            address: None,
            target: None,
            service: "shop".parse().unwrap(),
            method: "buy".to_owned(),
            versions: Constraint::default(),
            resources: [].into(),
            arguments: Some(arguments.to_owned()),
            path: vec![caller, PeerId::random()],
            links_max: Call::LINKS_MAX,
            remaining_ms: 60_000,
            priority: 0,
            is_idempotent,
            trace: TraceContext::default(),
            proof: None,
        }
    }

    fn attempt(caller: PeerId, id: u128, is_idempotent: bool) -> Attempt {
        Attempt::of(PeerId::random(), &call(caller, id, "[1]", is_idempotent))
    }

    fn begun(calls: &mut Calls, attempt: &Attempt) -> ExecutionId {
        let id = calls.next_id(attempt);
        calls.begin(attempt, id, "join");
        id
    }

    fn done() -> Result<String, CallError> {
        Ok("7".to_owned())
    }

    fn failed(code: ErrorCode) -> Result<String, CallError> {
        Err(CallError::new(code, "it has failed"))
    }

    fn is_refused(found: &Found<&str>) -> bool {
        matches!(found, Found::Refused(error) if error.code == ErrorCode::DuplicateRequest)
    }

    #[test]
    fn a_call_that_comes_again_joins_the_first_and_later_gets_its_answer() {
        let (now, mut calls, caller) = (Instant::now(), Calls::new(), PeerId::random());
        // By whatever way, and whether or not it may be carried out twice.
        let [first, second] = [(); 2].map(|()| attempt(caller, 1, false));
        assert_eq!(calls.find(&first, now), Found::Nothing);
        let id = begun(&mut calls, &first);
        assert_eq!(calls.find(&second, now), Found::Running(id, "join"));
        calls.end(id, &done(), now);
        assert_eq!(calls.find(&second, now), Found::Answered(done()));
        assert_eq!(
            calls.find(&attempt(caller, 1, true), now),
            Found::Answered(done())
        );
        let late = now + Calls::KEPT;
        assert_eq!(calls.find(&second, late), Found::Nothing);
        assert_eq!((calls.executions.len(), calls.bytes), (0, 0));
    }

    #[test]
    fn another_caller_or_another_request_gets_nothing_of_it() {
        let (now, mut calls, caller) = (Instant::now(), Calls::new(), PeerId::random());
        let id = begun(&mut calls, &attempt(caller, 1, false));
        calls.end(id, &done(), now);
        let stranger = attempt(PeerId::random(), 1, false);
        assert_eq!(calls.find(&stranger, now), Found::Nothing);
        let other = Attempt::of(PeerId::random(), &call(caller, 1, "[2]", true));
        assert!(is_refused(&calls.find(&other, now)));
    }

    #[test]
    fn a_call_of_this_node_is_its_own() {
        let me = PeerId::random();
        let mut own = call(me, 1, "[1]", false);
        let from_afar = Attempt::of(PeerId::random(), &own);
        own.path.clear();
        assert_eq!(Attempt::of(me, &own).key, from_afar.key);
    }

    #[test]
    fn what_was_given_up_or_is_too_long_is_carried_out_again_only_where_it_may_be() {
        let (now, caller) = (Instant::now(), PeerId::random());
        let long = Ok("x".repeat(Calls::ANSWER_MAX + 1));
        for ends in [None, Some(long), Some(failed(ErrorCode::Timeout))] {
            let mut calls = Calls::new();
            let id = begun(&mut calls, &attempt(caller, 1, false));
            match &ends {
                Some(answer) => calls.end(id, answer, now),
                None => calls.lose(id, now),
            }
            let again = calls.find(&attempt(caller, 1, true), now);
            assert_eq!(again, Found::Nothing);
            let again = calls.find(&attempt(caller, 1, false), now);
            match ends {
                Some(Err(error)) => assert_eq!(again, Found::Answered(Err(error))),
                _ => assert!(is_refused(&again)),
            }
        }
    }

    #[test]
    fn what_was_not_begun_may_come_again() {
        let (now, mut calls, caller) = (Instant::now(), Calls::new(), PeerId::random());
        let id = begun(&mut calls, &attempt(caller, 1, false));
        calls.end(id, &failed(ErrorCode::Overloaded), now);
        assert_eq!(calls.find(&attempt(caller, 1, false), now), Found::Nothing);
    }

    #[test]
    fn an_execution_that_was_given_up_does_not_end_the_one_after_it() {
        let (now, mut calls, caller) = (Instant::now(), Calls::new(), PeerId::random());
        let again = attempt(caller, 1, true);
        let first = begun(&mut calls, &again);
        calls.lose(first, now);
        let second = begun(&mut calls, &again);
        calls.lose(first, now);
        calls.end(first, &done(), now);
        assert_eq!(calls.find(&again, now), Found::Running(second, "join"));
        // Nor does the time of the first run out for the second.
        assert_eq!(
            calls.find(&again, now + Calls::KEPT),
            Found::Running(second, "join")
        );
    }

    #[test]
    fn where_answers_are_too_many_the_oldest_go_and_that_there_were_calls_stays_known() {
        let (now, mut calls, caller) = (Instant::now(), Calls::new(), PeerId::random());
        let long = Ok("x".repeat(Calls::ANSWER_MAX));
        let fit = u128::try_from(Calls::BYTES_MAX / Calls::ANSWER_MAX).unwrap();
        for id in 0..=fit {
            let execution = begun(&mut calls, &attempt(caller, id, false));
            calls.end(execution, &long, now);
        }
        assert!(is_refused(&calls.find(&attempt(caller, 0, false), now)));
        assert_eq!(calls.find(&attempt(caller, 1, false), now), Found::Answered(long));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_call_is_carried_out_twice_that_may_not_be_and_the_sums_are_right(
            steps in prop::collection::vec((0..4_u8, 0..6_u128, 0..40_u64), 1..200),
        ) {
            let (mut now, mut calls, caller) = (Instant::now(), Calls::new(), PeerId::random());
            let mut running: HashMap<u128, ExecutionId> = HashMap::new();
            let mut ended: HashMap<u128, Instant> = HashMap::new();
            for (kind, id, seconds) in steps {
                let attempt = attempt(caller, id, false);
                match (kind, running.get(&id).copied()) {
                    (0 | 1, _) => {
                        if calls.find(&attempt, now) == Found::Nothing {
                            prop_assert!(!running.contains_key(&id));
                            prop_assert!(ended.get(&id).is_none_or(|at| now - *at >= Calls::KEPT));
                            running.insert(id, begun(&mut calls, &attempt));
                        }
                    }
                    (2, Some(execution)) => {
                        calls.end(execution, &done(), now);
                        running.remove(&id);
                        ended.insert(id, now);
                    }
                    (3, Some(execution)) => {
                        calls.lose(execution, now);
                        running.remove(&id);
                        ended.insert(id, now);
                    }
                    _ => now += Duration::from_secs(seconds),
                }
                let kept = calls.executions.values();
                let bytes: usize = kept.map(|one| match &one.state {
                    State::Answered(answer) => length(answer),
                    State::Running(_) | State::Unknown => 0,
                }).sum();
                prop_assert_eq!(bytes, calls.bytes);
                let known: HashSet<_> = calls.ended.iter().map(|(_, id)| id.number).collect();
                prop_assert!(calls.answered.iter().all(|id| known.contains(&id.number)));
            }
        }
    }
}
