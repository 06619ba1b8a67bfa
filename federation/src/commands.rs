//! Runs the commands of one `request` in the order in which they need each other's results.
//!
//! Pure: it makes no call and reads no clock. Make the calls that [`Commands::ready`] hands out, all at once, report
//! each with [`Commands::on_result`], and go on until there is an answer in [`Commands::finished`]. Who is called,
//! until when, and how often it is tried is not decided here.

mod argument;
mod request;

use crate::{Arguments, CallError, ErrorCode, NodeAddress, ServiceName};
use argument::{Room, measure};
use request::{Command, Request};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::time::Duration;

/// The commands of one request, level by level: the first level needs no results, each later one only those of
/// earlier levels.
#[derive(Debug)]
pub struct Commands {
    request: Request,
    /// One for each command; `None` until it is here, and again when it went into the answer.
    results: Vec<Option<Value>>,
    /// For these, and for the copies in intermediate results.
    room: Room,
    /// One for each finished level, in order.
    times: Vec<Duration>,
    /// The command that has failed, or could not be called.
    failed: Option<usize>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The level after the finished ones may begin.
    Due,
    /// Its commands have been handed out.
    Running {
        /// Those without a result: never empty.
        pending: BTreeSet<usize>,
        /// The longest that one of the others has taken.
        slowest: Duration,
    },
    /// The answer, until it is taken.
    Over(Option<Result<Value, CallError>>),
}

impl Commands {
    /// Reads the `params` of the JSON-RPC method `request`, and puts its commands in order.
    pub fn parse(params: Value) -> Result<Self, CallError> {
        let request = Request::parse(params)?;
        let state = match request.commands.len() {
            0 => State::Over(Some(Ok(Value::Object(Map::new())))),
            _ => State::Due,
        };
        Ok(Self {
            results: vec![None; request.commands.len()],
            room: Room::new("the results of the request"),
            times: Vec::new(),
            failed: None,
            state,
            request,
        })
    }

    /// How long whoever asks waits for all of it: each command has what the ones before have left of that.
    pub fn timeout(&self) -> Duration {
        self.request.timeout
    }

    /// The commands that may be called now, all at the same time; each is handed out once. There are none while some
    /// are running, and when the request is over, which it also is when an argument cannot be made.
    pub fn ready(&mut self) -> Vec<ReadyCommand> {
        let (State::Due, Some(level)) = (&self.state, self.request.levels.get(self.times.len())) else {
            return Vec::new();
        };
        let mut room = Room::new("the arguments of a level");
        let name = |index: &usize| self.request.commands[*index].name.clone();
        let resolved = level.iter().map(|index| {
            let command = &self.request.commands[*index];
            let needs = command.needs.iter().map(name).collect();
            ReadyCommand::new(command, needs, &self.results, &mut room).map_err(|error| (*index, error))
        });
        match resolved.collect() {
            Ok(ready) => {
                self.state = State::Running {
                    pending: level.iter().copied().collect(),
                    slowest: Duration::ZERO,
                };
                ready
            }
            Err((index, error)) => {
                self.failed = Some(index);
                self.state = State::Over(Some(Err(error)));
                Vec::new()
            }
        }
    }

    /// The call of the command `name` has come to `result` and `took` so long.
    pub fn on_result(&mut self, name: &str, result: Result<Value, CallError>, took: Duration) -> Progress {
        let index = self
            .request
            .commands
            .iter()
            .position(|command| command.name == name);
        let (State::Running { pending, slowest }, Some(index)) = (&mut self.state, index) else {
            return Progress::Nothing;
        };
        if !pending.remove(&index) {
            return Progress::Nothing;
        }
        *slowest = took.max(*slowest);
        let finished = pending.is_empty().then_some(*slowest);
        let kept = result
            .map_err(|error| self.blame(index, error))
            .and_then(|value| self.keep(index, value));
        match (kept, finished) {
            (Err(error), _) => {
                self.failed = Some(index);
                self.fail(error)
            }
            (Ok(()), None) => Progress::Nothing,
            (Ok(()), Some(time)) => self.finish_level(time),
        }
    }

    /// The time is over, and what is not finished is not begun any more.
    pub fn on_timeout(&mut self) {
        if matches!(self.state, State::Over(_)) {
            return;
        }
        let (done, all) = (self.times.len(), self.request.levels.len());
        let within = self.request.timeout.as_secs_f64();
        let message = format!("the request was not finished within {within} s: {done} of {all} levels were");
        self.state = State::Over(Some(Err(CallError::new(ErrorCode::Timeout, message))));
    }

    /// The answer, once, when there is one: the results by name, or why there are none.
    pub fn finished(&mut self) -> Option<Result<Value, CallError>> {
        match &mut self.state {
            State::Due | State::Running { .. } => None,
            State::Over(answer) => answer.take(),
        }
    }

    /// The command with which the request has failed: its call, or what it was to be given.
    pub fn failed(&self) -> Option<&str> {
        self.failed
            .map(|index| self.request.commands[index].name.as_str())
    }

    /// How long the levels have taken that are finished, if that was asked for.
    pub fn summary(&self) -> Option<ExecutionSummary> {
        self.request
            .wants_summary
            .then(|| ExecutionSummary::new(&self.request.levels, &self.times))
    }

    /// Whether the answer is to have the intermediate results, however many there are.
    pub fn wants_intermediate(&self) -> bool {
        self.request.wants_intermediate
    }

    /// Why the request has failed when the command `index` has.
    fn blame(&self, index: usize, error: CallError) -> CallError {
        let commands = &self.request.commands;
        let failed = &commands[index].name;
        let dependent = commands.iter().find(|other| other.needs.contains(&index));
        match dependent {
            // Whoever has asked for too little time is to know that, whoever needed the result.
            Some(Command { name, .. }) if error.code != ErrorCode::Timeout => CallError {
                code: ErrorCode::DependencyFailed,
                message: format!("`{name}` needs the result of `{failed}`, which has failed: {error}"),
                failed_at: error.failed_at,
                // Nobody is told to try again what may have been carried out in part.
                retry_after: None,
                remote: error.remote,
            },
            _ => CallError {
                message: format!("command `{failed}` has failed: {error}"),
                ..error
            },
        }
    }

    fn keep(&mut self, index: usize, value: Value) -> Result<(), CallError> {
        self.room.take(measure(&value).bytes)?;
        self.results[index] = Some(value);
        Ok(())
    }

    fn fail(&mut self, error: CallError) -> Progress {
        let running = match &self.state {
            State::Running { pending, .. } => pending.iter().copied().collect(),
            State::Due | State::Over(_) => Vec::new(),
        };
        self.state = State::Over(Some(Err(error)));
        let names = running
            .into_iter()
            .map(|index| self.request.commands[index].name.clone());
        Progress::Failed {
            cancel: names.collect(),
        }
    }

    fn finish_level(&mut self, time: Duration) -> Progress {
        self.times.push(time);
        self.state = State::Due;
        let intermediate = match self.intermediate() {
            Ok(intermediate) => intermediate,
            Err(error) => return self.fail(error),
        };
        if self.times.len() == self.request.levels.len() {
            let mut answer = Map::new();
            for index in &self.request.returned {
                if let Some(result) = self.results[*index].take() {
                    answer.insert(self.request.commands[*index].name.clone(), result);
                }
            }
            self.state = State::Over(Some(Ok(Value::Object(answer))));
        }
        Progress::LevelDone(intermediate)
    }

    /// What there is after the level that has just been finished, if that was asked for.
    fn intermediate(&mut self) -> Result<Option<IntermediateResult>, CallError> {
        let (done, total) = (self.times.len(), self.request.levels.len());
        let (true, Some(level_index)) = (self.request.wants_intermediate, done.checked_sub(1)) else {
            return Ok(None);
        };
        let level = self.request.levels[level_index].clone();
        let accumulated = self.request.levels[..done].concat();
        let level_results = self.copy(&level)?;
        let accumulated_results = self.copy(&accumulated)?;
        Ok(Some(IntermediateResult {
            level_index,
            level_results,
            accumulated_results,
            total_levels: total,
            completed_levels: done,
            execution_time_ms: self.times.last().map_or(0.0, |time| time.as_secs_f64() * 1000.0),
            is_final_level: done == total,
            progress_percentage: 100.0 * done as f64 / total as f64,
        }))
    }

    /// The results of these commands by name. They take room as others do: each level copies all before it.
    fn copy(&mut self, indexes: &[usize]) -> Result<Map<String, Value>, CallError> {
        let mut copied = Map::new();
        for index in indexes {
            if let Some(result) = &self.results[*index] {
                self.room.take(measure(result).bytes)?;
                copied.insert(self.request.commands[*index].name.clone(), result.clone());
            }
        }
        Ok(copied)
    }
}

/// A command that may be called now.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyCommand {
    /// By which its result is reported.
    pub name: String,
    /// Which node is to answer; `None` where any may that offers the service.
    pub target: Option<NodeAddress>,
    /// What is called.
    pub service: ServiceName,
    /// `None` where the only method of the service is meant.
    pub method: Option<String>,
    /// What it is given: `args` and `kwargs`, without references. A call has arguments by position or by name, so where
    /// both were given those by name are one object in the last position.
    pub arguments: Arguments,
    /// The resources that the instance has to have.
    pub locs: BTreeSet<String>,
    /// Which versions will do: a constraint.
    pub version: Option<String>,
    /// What it may overtake in the queue of a main: -10 to 10, the highest first.
    pub priority: i8,
    /// Whether it may be carried out twice.
    pub is_idempotent: bool,
    /// The commands whose results are in its arguments.
    pub needs: Vec<String>,
}

impl ReadyCommand {
    fn new(
        command: &Command,
        needs: Vec<String>,
        results: &[Option<Value>],
        room: &mut Room,
    ) -> Result<Self, CallError> {
        let Command { name, .. } = command;
        let in_command = |mut error: CallError| {
            error.message = format!("command `{name}`: {}", error.message);
            error
        };
        let args = command.args.resolve(results, room).map_err(in_command)?;
        let Value::Object(kwargs) = command.kwargs.resolve(results, room).map_err(in_command)? else {
            let message = "its `kwargs` refer to a result that is no object";
            return Err(in_command(CallError::new(ErrorCode::DependencyFailed, message)));
        };
        Ok(Self {
            name: name.clone(),
            target: command.target.clone(),
            service: command.service.clone(),
            method: command.method.clone(),
            arguments: join(args.into(), kwargs).map_err(in_command)?,
            locs: command.locs.clone(),
            version: command.version.clone(),
            priority: command.priority,
            is_idempotent: command.is_idempotent,
            needs,
        })
    }
}

fn join(args: Arguments, kwargs: Map<String, Value>) -> Result<Arguments, CallError> {
    match args {
        args if kwargs.is_empty() => Ok(args),
        Arguments::None => Ok(Arguments::Named(kwargs)),
        Arguments::Positional(values) if values.is_empty() => Ok(Arguments::Named(kwargs)),
        Arguments::Positional(mut values) => {
            values.push(Value::Object(kwargs));
            Ok(Arguments::Positional(values))
        }
        Arguments::Named(mut members) => {
            for (key, value) in kwargs {
                if members.contains_key(&key) {
                    let message = format!("`{key}` is given in `args` and in `kwargs`");
                    return Err(CallError::new(ErrorCode::InvalidParams, message));
                }
                members.insert(key, value);
            }
            Ok(Arguments::Named(members))
        }
    }
}

/// What follows from a result.
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Nothing yet: others of the level are running. Also for a result that nobody waits for any more.
    Nothing,
    /// The level is finished; the next is [`Commands::ready`], or the request [`Commands::finished`].
    LevelDone(Option<IntermediateResult>),
    /// The request is [`Commands::finished`], with an error.
    Failed {
        /// The commands that are running still, for nothing: their calls are given up.
        cancel: Vec<String>,
    },
}

/// What there is after a level.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IntermediateResult {
    /// Which level: the first is 0.
    pub level_index: usize,
    /// Its results by name.
    pub level_results: Map<String, Value>,
    /// These and those of all levels before it.
    pub accumulated_results: Map<String, Value>,
    /// How many levels the request has.
    pub total_levels: usize,
    /// How many are finished: `level_index + 1`.
    pub completed_levels: usize,
    /// How long it has taken: as long as the slowest of its commands.
    pub execution_time_ms: f64,
    /// Whether the answer follows.
    pub is_final_level: bool,
    /// The share of finished levels.
    pub progress_percentage: f64,
}

/// Where the time of a request went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExecutionSummary {
    /// How many levels the request has, whether they came to be executed or not.
    pub total_levels: usize,
    /// How long each finished level has taken, in milliseconds: as long as the slowest of its commands.
    pub level_execution_times: Vec<f64>,
    /// The level that has taken longest; `None` before one is finished.
    pub bottleneck_level_index: Option<usize>,
    /// 0 before one is finished.
    pub average_level_time_ms: f64,
    /// How many commands of finished levels were not alone in their level.
    pub parallel_commands_executed: usize,
}

impl ExecutionSummary {
    fn new(levels: &[Vec<usize>], times: &[Duration]) -> Self {
        let milliseconds: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        // Of equal ones the first, where `max_by_key` has the last.
        let bottleneck = times.iter().enumerate().rev().max_by_key(|(_, time)| **time);
        let finished = levels.iter().take(times.len());
        Self {
            total_levels: levels.len(),
            bottleneck_level_index: bottleneck.map(|(index, _)| index),
            average_level_time_ms: milliseconds.iter().sum::<f64>() / times.len().max(1) as f64,
            level_execution_times: milliseconds,
            parallel_commands_executed: finished.map(Vec::len).filter(|count| *count > 1).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn commands_get_the_results_that_they_name_in_whatever_order_they_are_written() {
        let first = json!({"name": "a", "fun": "m.one"});
        let second = json!({"name": "b", "fun": "m.add", "args": ["a", 2]});
        let third = json!({"name": "c", "fun": "m.add", "args": ["b", {"$ref": "a"}]});
        for commands in [json!([first, second, third]), json!([third, first, second])] {
            let answer = run(json!({"commands": commands}), |command| {
                match command.name.as_str() {
                    "a" => json!(1),
                    _ => json!(sum(&given(command))),
                }
            });
            assert_eq!(answer, Ok(json!({"c": 4})));
        }
    }

    #[test]
    fn references_are_found_in_arrays_and_objects_and_in_arguments_by_name() {
        let args = json!([{"deep": [["a"], {"$ref": "a.x"}]}, "a.x.y", "other", "b.x", "b"]);
        let mut commands = parse(json!([
            {"name": "a", "fun": "s.m"},
            {"name": "b", "fun": "s.m", "args": args, "kwargs": {"k": {"a": "a.x.y"}}},
        ]));
        assert_eq!(names(&commands.ready()), ["a"]);
        let _ = commands.on_result("a", Ok(json!({"x": {"y": 7}})), MS);
        let ready = commands.ready();
        let (a, x) = (json!({"x": {"y": 7}}), json!({"y": 7}));
        // Its own name in a text is a text.
        let by_name = json!({"k": {"a": 7}});
        assert_eq!(
            given(&ready[0]),
            json!([{"deep": [[a], x]}, 7, "other", "b.x", "b", by_name])
        );
    }

    #[test]
    fn what_is_literal_is_taken_as_it_is() {
        let literal =
            json!([{"$lit": "a"}, {"$lit": {"$ref": "a"}}, {"$lit": ["a.x"]}, {"$ref": 1, "$lit": 2}]);
        let mut commands = parse(json!([
            {"name": "a", "fun": "s.m"},
            {"name": "b", "fun": "s.m", "args": literal},
        ]));
        let ready = commands.ready();
        assert_eq!(names(&ready), ["a", "b"]);
        assert_eq!(
            given(&ready[1]),
            json!(["a", {"$ref": "a"}, ["a.x"], {"$ref": 1, "$lit": 2}])
        );
    }

    #[test]
    fn a_text_is_one_argument_and_a_result_may_be_all_arguments() {
        let mut commands = parse(json!([
            {"name": "a", "fun": "s.m", "args": 5},
            {"name": "text", "fun": "s.m", "args": "a"},
            {"name": "all", "fun": "s.m", "args": {"$ref": "a"}},
            {"name": "none", "fun": "s.m", "args": {"$ref": "a.null"}},
            {"name": "more", "fun": "s.m", "args": {"$ref": "a"}, "kwargs": {"$ref": "a.by_name"}},
        ]));
        assert_eq!(given(&commands.ready()[0]), json!([5]));
        let result = json!({"null": null, "by_name": {"k": 1}});
        let _ = commands.on_result("a", Ok(result.clone()), MS);
        let ready = commands.ready();
        assert_eq!(names(&ready), ["text", "all", "none", "more"]);
        assert_eq!(given(&ready[0]), json!([result]));
        assert_eq!(given(&ready[1]), result);
        assert_eq!(ready[2].arguments, Arguments::None);
        assert_eq!(
            given(&ready[3]),
            json!({"null": null, "by_name": {"k": 1}, "k": 1})
        );
    }

    #[test]
    fn arguments_by_position_and_by_name_become_arguments_of_one_call() {
        for (args, kwargs, expected) in [
            (json!(null), json!(null), json!(null)),
            (json!([]), json!({}), json!([])),
            (json!([]), json!({"k": 1}), json!({"k": 1})),
            (json!(null), json!({"k": 1}), json!({"k": 1})),
            (json!({"j": 0}), json!({"k": 1}), json!({"j": 0, "k": 1})),
            (json!([0]), json!({}), json!([0])),
            (json!([0]), json!({"k": 1}), json!([0, {"k": 1}])),
        ] {
            let mut commands = parse(json!([{"name": "a", "fun": "s.m", "args": args, "kwargs": kwargs}]));
            assert_eq!(given(&commands.ready()[0]), expected);
        }
        let mut commands = parse(json!([{"name": "a", "fun": "s.m", "args": {"k": 0}, "kwargs": {"k": 1}}]));
        assert_eq!(commands.ready(), []);
        assert_eq!(
            commands.finished().unwrap().unwrap_err().code,
            ErrorCode::InvalidParams
        );
    }

    #[test]
    fn a_command_says_whom_it_calls() {
        let mut commands = parse(json!([
            {"name": "a", "fun": "blog.list", "locs": ["db", "db"]},
            {"name": "b", "fun": "clock"},
            {"name": "c", "service": "acme.blog", "method": "v1.list"},
            {"name": "d", "fun": "acme.blog.list", "args": null, "kwargs": null, "locs": null, "later": null},
            {"name": "e", "service_name": "blog", "method": "list", "resources": ["db"], "version_constraint": ">=2"},
            {"name": "f", "fun": "echos"},
        ]));
        let ready = commands.ready();
        let whom = |n: usize| (ready[n].service.as_str(), ready[n].method.as_deref());
        assert_eq!(whom(0), ("blog", Some("list")));
        assert_eq!(whom(1), ("clock", None));
        assert_eq!(whom(5), ("echo", Some("echos")));
        assert_eq!(whom(2), ("acme.blog", Some("v1.list")));
        assert_eq!(whom(3), ("acme.blog", Some("list")));
        assert_eq!(ready[0].locs, BTreeSet::from(["db".to_owned()]));
        assert_eq!(ready[3].arguments, Arguments::None);
        assert_eq!(
            (whom(4), &ready[4].locs, ready[4].version.as_deref()),
            (whom(0), &ready[0].locs, Some(">=2"))
        );
    }

    #[test]
    fn a_command_says_what_a_remote_call_says() {
        let mut commands = parse(json!([
            {"name": "a", "fun": "s.m"},
            {"name": "b", "fun": "s.m", "node_id": "bob.home", "version": ">=1,<2", "priority": -10, "idempotent": true},
        ]));
        let ready = commands.ready();
        let said = |n: usize| {
            (
                ready[n].version.as_deref(),
                ready[n].priority,
                ready[n].is_idempotent,
            )
        };
        assert_eq!((&ready[0].target, said(0)), (&None, (None, 0, false)));
        assert_eq!(ready[1].target, Some("bob.home".parse().unwrap()));
        assert_eq!(said(1), (Some(">=1,<2"), -10, true));
    }

    #[test]
    fn a_request_has_half_a_minute_or_as_long_as_it_says() {
        for (timeout, seconds) in [(json!(null), 30.0), (json!(0.5), 0.5), (json!(3600), 3600.0)] {
            let commands = Commands::parse(json!({"commands": [], "timeout": timeout})).unwrap();
            assert_eq!(commands.timeout().as_secs_f64().to_string(), seconds.to_string());
        }
    }

    #[test]
    fn what_is_not_finished_in_time_fails_as_such_whoever_needs_it() {
        let all = json!([{"name": "a", "fun": "s.m"}, {"name": "b", "fun": "s.m", "args": ["a"]}]);
        let mut commands = parse(all.clone());
        let _ = commands.ready();
        let late = CallError::new(ErrorCode::Timeout, "the time is over");
        let _ = commands.on_result("a", Err(late), MS);
        let error = commands.finished().unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::Timeout);

        let mut commands = parse(all);
        let _ = commands.ready();
        let _ = commands.on_result("a", Ok(json!(1)), MS);
        commands.on_timeout();
        assert_eq!(commands.ready(), []);
        let error = commands.finished().unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::Timeout);
        assert!(error.message.contains("within 30 s: 1 of 2 levels"), "{error}");
        commands.on_timeout();
        assert_eq!(commands.finished(), None, "it was over");
    }

    #[test]
    fn what_is_returned_is_what_nobody_needed_or_what_was_asked_for() {
        // On two levels: `c` is needed by nobody, and finished with the first.
        let commands = json!([
            {"name": "a", "fun": "s.m"}, {"name": "b", "fun": "s.m", "args": ["a"]}, {"name": "c", "fun": "s.m"},
        ]);
        for (returned, expected) in [
            (Value::Null, vec!["b", "c"]),
            (json!("sinks"), vec!["b", "c"]),
            (json!("last_level"), vec!["b"]),
            (json!("all"), vec!["a", "b", "c"]),
            (json!(["a", "c", "a"]), vec!["a", "c"]),
            (json!([]), vec![]),
        ] {
            let answer = run(json!({"commands": commands, "return": returned}), |_| json!(0)).unwrap();
            let names: Vec<_> = answer.as_object().unwrap().keys().collect();
            assert_eq!(names, expected, "{returned}");
        }
    }

    #[test]
    fn no_commands_have_no_results() {
        // As MPREG's clients send what they do not set.
        let params = json!({
            "commands": [], "include_execution_summary": true, "debug_mode": false,
            "intermediate_result_callback_topic": null,
        });
        let mut commands = Commands::parse(params).unwrap();
        assert_eq!(commands.ready(), []);
        assert_eq!(commands.finished(), Some(Ok(json!({}))));
        assert_eq!(commands.finished(), None, "the answer is there once");
        let summary = commands.summary().unwrap();
        assert_eq!((summary.total_levels, summary.bottleneck_level_index), (0, None));
        assert_eq!(summary.average_level_time_ms, 0.0);
    }

    #[test]
    fn commands_that_wait_for_each_other_are_refused_with_who_they_are() {
        // `d` needs the cycle and is not in it, and `a` is needed by it.
        let error = refused(json!([
            {"name": "d", "fun": "s.m", "args": ["x"]},
            {"name": "x", "fun": "s.m", "kwargs": {"k": "y"}},
            {"name": "y", "fun": "s.m", "args": [["z.f"]]},
            {"name": "z", "fun": "s.m", "args": [{"$ref": "x"}, "a"]},
            {"name": "a", "fun": "s.m"},
        ]));
        assert_eq!(error.code, ErrorCode::DependencyCycle);
        assert_eq!(
            error.message,
            "commands wait for each other: `x` needs `y` needs `z` needs `x`"
        );
        let error = refused(json!([{"name": "a", "fun": "s.m", "args": [{"$ref": "a"}]}]));
        assert_eq!(error.message, "commands wait for each other: `a` needs `a`");
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused_with_what_is_wrong() {
        let deep = (0..64).fold(json!(0), |inner, _| json!([inner]));
        for (command, said) in [
            (json!({"fun": "s.m"}), "command 2: missing field `name`"),
            (
                json!({"name": "a", "fun": "s.m"}),
                "two commands with the name `a`",
            ),
            (json!({"name": "", "fun": "s.m"}), "not 0"),
            (json!({"name": "n".repeat(65), "fun": "s.m"}), "not 65"),
            (json!({"name": "a.b", "fun": "s.m"}), "`a.b` has a `.`"),
            (json!({"name": "b"}), "command `b`: it takes either"),
            (json!({"name": "b", "fun": "s", "method": "m"}), "it takes either"),
            (
                json!({"name": "b", "fun": "s", "service": "s"}),
                "it takes either",
            ),
            (json!({"name": "b", "method": "m"}), "it takes either"),
            (json!({"name": "b", "fun": "s."}), "`method` has between"),
            (json!({"name": "b", "fun": ".m"}), "`fun`: "),
            (json!({"name": "b", "fun": "no such.m"}), "`fun`: "),
            (json!({"name": "b", "service": "no such"}), "command 2: "),
            (
                json!({"name": "b", "service": "s", "method": "m".repeat(129)}),
                "not 129",
            ),
            (
                json!({"name": "b", "fun": "s.m", "kwargs": [1]}),
                "`kwargs` is an object",
            ),
            (
                json!({"name": "b", "fun": "s.m", "kwargs": {"$lit": 1}}),
                "`kwargs` is an object",
            ),
            (json!({"name": "b", "fun": "s.m", "locs": "db"}), "command 2: "),
            (
                json!({"name": "b", "fun": "s.m", "retries": 3}),
                "command 2: unknown field `retries`, expected one of `name`, `fun`",
            ),
            (
                json!({"name": "b", "fun": "s.m", "locs": [], "resources": []}),
                "duplicate field",
            ),
            (
                json!({"name": "b", "fun": "s.m", "node_id": ""}),
                "invalid `node_id`",
            ),
            (
                json!({"name": "b", "fun": "s.m", "version": "1.x"}),
                "`version`: ",
            ),
            (
                json!({"name": "b", "fun": "s.m", "priority": 11}),
                "between -10 and 10",
            ),
            (json!({"name": "b", "fun": "s.m", "idempotent": 1}), "command 2: "),
            (json!({"name": "b", "fun": "s.m", "locs": [""]}), "a resource has"),
            (
                json!({"name": "b", "fun": "s.m", "locs": vec!["db"; 65]}),
                "at most 64 resources",
            ),
            (
                json!({"name": "b", "fun": "s.m", "args": [{"$ref": "nobody.x"}]}),
                "to `nobody.x`",
            ),
            (
                json!({"name": "b", "fun": "s.m", "args": [{"$ref": ["a"]}]}),
                "takes a text",
            ),
            (json!({"name": "b", "fun": "s.m", "args": [deep]}), "64 deep"),
            (
                json!({"name": "b", "fun": "s.m", "args": {"$lit": [deep]}}),
                "64 deep",
            ),
            (
                json!({"name": "b", "fun": "s.m", "kwargs": {"k": {"$lit": deep}}}),
                "64 deep",
            ),
            (json!("a"), "map"),
        ] {
            let error = refused(json!([{"name": "a", "fun": "s.m"}, command]));
            assert_eq!(error.code, ErrorCode::InvalidParams);
            assert!(error.message.contains(said), "{}", error.message);
        }
        let many: Vec<_> = (0..101)
            .map(|n| json!({"name": format!("c{n}"), "fun": "s.m"}))
            .collect();
        for (params, said) in [
            (json!([]), "an object with `commands`"),
            (json!({}), "missing field `commands`"),
            (json!({"commands": many}), "at most 100 commands, not 101"),
            (json!({"commands": [], "return": "some"}), "`sinks`, `last_level`"),
            (json!({"commands": [], "return": [1]}), "`sinks`, `last_level`"),
            (json!({"commands": [], "return": ["a"]}), "names `a`"),
            (
                json!({"commands": [], "return_intermediate_results": 1}),
                "a boolean",
            ),
            (
                json!({"commands": [], "trace": true}),
                "unknown field `trace`, expected one of `commands`, `return`",
            ),
            (json!({"commands": [], "debug_mode": true}), "`debug_mode` is"),
            (
                json!({"commands": [], "intermediate_result_callback_topic": "t"}),
                "there are no topics",
            ),
            (json!({"commands": [], "timeout": "1"}), "timeout is"),
            (json!({"commands": [], "timeout": 0}), "timeout is"),
        ] {
            let error = Commands::parse(params).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParams);
            assert!(error.message.contains(said), "{}", error.message);
        }
    }

    #[test]
    fn as_many_as_may_be_and_as_deep_are_taken() {
        let deep = (0..63).fold(json!("c0"), |inner, _| json!([inner]));
        let many: Vec<_> = (0..100)
            .map(|n| json!({"name": format!("c{n}"), "fun": "s.m", "args": [deep, {"$lit": deep}]}))
            .collect();
        let mut commands = parse(Value::Array(many));
        assert_eq!(names(&commands.ready()), ["c0"]);
        let _ = commands.on_result("c0", Ok(json!(1)), MS);
        assert_eq!(commands.ready().len(), 99);
    }

    #[test]
    fn a_field_that_a_result_has_not_fails_the_request() {
        for (reference, said) in [
            ("a.x.z", "no field `z`"),
            ("a.n.z", "no field `z`"),
            ("a.", "no field ``"),
        ] {
            let mut commands = parse(json!([
                {"name": "a", "fun": "s.m"}, {"name": "b", "fun": "s.m", "args": [reference]},
            ]));
            let _ = commands.ready();
            let _ = commands.on_result("a", Ok(json!({"x": {"y": 1}, "n": 1})), MS);
            assert_eq!(commands.ready(), []);
            let error = commands.finished().unwrap().unwrap_err();
            assert_eq!(commands.failed(), Some("b"));
            assert_eq!(error.code, ErrorCode::DependencyFailed);
            assert!(
                error
                    .message
                    .starts_with(&format!("command `b`: `{reference}` refers")),
                "{error}"
            );
            assert!(error.message.contains(said), "{error}");
        }
    }

    #[test]
    fn arguments_by_name_from_a_result_that_has_no_names_fail_the_request() {
        let mut commands = parse(json!([
            {"name": "a", "fun": "s.m"}, {"name": "b", "fun": "s.m", "kwargs": {"$ref": "a"}},
        ]));
        let _ = commands.ready();
        let _ = commands.on_result("a", Ok(json!([1])), MS);
        assert_eq!(commands.ready(), []);
        assert_eq!(
            commands.finished().unwrap().unwrap_err().code,
            ErrorCode::DependencyFailed
        );
    }

    #[test]
    fn a_failed_command_fails_who_needs_it_and_nobody_waits_for_the_others() {
        let mut commands = parse(json!([
            {"name": "a", "fun": "s.m"},
            {"name": "b", "fun": "s.m", "args": ["a"]},
            {"name": "c", "fun": "s.m"},
            {"name": "d", "fun": "s.m"},
        ]));
        assert_eq!(names(&commands.ready()), ["a", "c", "d"]);
        assert_eq!(commands.on_result("d", Ok(json!(1)), MS), Progress::Nothing);
        let mut failure = CallError::new(ErrorCode::RemoteError, "no such post").with_retry_after(MS);
        let remote = crate::RemoteError {
            code: 7,
            message: "no such post".to_owned(),
            fault: false,
        };
        failure.remote = Some(remote.clone());
        let cancel = vec!["c".to_owned()];
        assert_eq!(
            commands.on_result("a", Err(failure), MS),
            Progress::Failed { cancel }
        );
        let error = commands.finished().unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::DependencyFailed);
        assert_eq!(
            error.message,
            "`b` needs the result of `a`, which has failed: no such post"
        );
        assert_eq!((error.remote, error.retry_after), (Some(remote), None));
        assert_eq!(commands.failed(), Some("a"));
        assert_eq!(
            commands.on_result("c", Ok(json!(1)), MS),
            Progress::Nothing,
            "too late"
        );
        assert_eq!(commands.ready(), []);
    }

    #[test]
    fn a_failed_command_that_nobody_needs_fails_the_request_with_its_own_error_and_its_name() {
        let mut commands = parse(json!([{"name": "a", "fun": "s.m"}]));
        let _ = commands.ready();
        let failure = CallError::new(ErrorCode::Overloaded, "the queue is full").with_retry_after(MS);
        let progress = commands.on_result("a", Err(failure.clone()), MS);
        assert_eq!(progress, Progress::Failed { cancel: vec![] });
        let message = "command `a` has failed: the queue is full".to_owned();
        assert_eq!(commands.finished(), Some(Err(CallError { message, ..failure })));
        assert_eq!(commands.failed(), Some("a"));
    }

    #[test]
    fn a_result_counts_once_and_only_for_a_command_that_runs() {
        let mut commands = parse(json!([
            {"name": "a", "fun": "s.m"}, {"name": "b", "fun": "s.m"}, {"name": "c", "fun": "s.m", "args": ["a"]},
        ]));
        assert_eq!(commands.on_result("a", Ok(json!(0)), MS), Progress::Nothing);
        assert_eq!(names(&commands.ready()), ["a", "b"]);
        assert_eq!(commands.ready(), [], "handed out once");
        for (name, result) in [("a", 1), ("a", 2), ("c", 3), ("nobody", 4)] {
            assert_eq!(commands.on_result(name, Ok(json!(result)), MS), Progress::Nothing);
            assert_eq!(commands.ready(), []);
        }
        assert_eq!(
            commands.on_result("b", Ok(json!(5)), MS),
            Progress::LevelDone(None)
        );
        assert_eq!(given(&commands.ready()[0]), json!([1]));
        assert_eq!((commands.finished(), commands.summary()), (None, None));
    }

    #[test]
    fn each_level_is_told_as_it_finishes_and_where_the_time_went() {
        let mut commands = Commands::parse(json!({
            "commands": [
                {"name": "a", "fun": "s.m"}, {"name": "b", "fun": "s.m"}, {"name": "c", "fun": "s.m", "args": ["a"]},
            ],
            "return_intermediate_results": true,
            "include_execution_summary": true,
        }))
        .unwrap();
        let _ = commands.ready();
        let _ = commands.on_result("b", Ok(json!(2)), 30 * MS);
        let progress = commands.on_result("a", Ok(json!(1)), 10 * MS);
        assert_eq!(
            told(progress),
            json!({
                "level_index": 0, "level_results": {"a": 1, "b": 2}, "accumulated_results": {"a": 1, "b": 2},
                "total_levels": 2, "completed_levels": 1, "execution_time_ms": 30.0, "is_final_level": false, "progress_percentage": 50.0,
            })
        );
        let _ = commands.ready();
        let progress = commands.on_result("c", Ok(json!(3)), 10 * MS);
        assert_eq!(
            told(progress),
            json!({
                "level_index": 1, "level_results": {"c": 3}, "accumulated_results": {"a": 1, "b": 2, "c": 3},
                "total_levels": 2, "completed_levels": 2, "execution_time_ms": 10.0, "is_final_level": true, "progress_percentage": 100.0,
            })
        );
        assert_eq!(commands.finished(), Some(Ok(json!({"b": 2, "c": 3}))));
        assert_eq!(
            serde_json::to_value(commands.summary()).unwrap(),
            json!({
                "total_levels": 2, "level_execution_times": [30.0, 10.0], "bottleneck_level_index": 0,
                "average_level_time_ms": 20.0, "parallel_commands_executed": 2,
            })
        );
    }

    #[test]
    fn commands_that_each_repeat_the_one_before_do_not_fill_the_memory() {
        let repeat = |n: usize| {
            let before = format!("c{}", n - 1);
            json!({"name": format!("c{n}"), "fun": "s.echo", "args": vec![before; 10]})
        };
        let mut all = vec![json!({"name": "c0", "fun": "s.echo"})];
        all.extend((1..100).map(repeat));
        let error = run(json!({"commands": all}), given).unwrap_err();
        assert_eq!(error.code, ErrorCode::PayloadTooLarge);
        assert!(error.message.contains("take more than 64 MiB"), "{error}");
    }

    #[test]
    fn commands_that_each_wrap_the_one_before_do_not_fill_the_stack() {
        let wrap = |n: usize| {
            let before = format!("c{}", n - 1);
            json!({"name": format!("c{n}"), "fun": "s.echo", "args": [before]})
        };
        let mut all = vec![json!({"name": "c0", "fun": "s.echo"})];
        all.extend((1..100).map(wrap));
        let error = run(json!({"commands": all}), given).unwrap_err();
        assert_eq!(error.code, ErrorCode::PayloadTooLarge);
        assert!(error.message.contains("64 deep"), "{error}");
    }

    #[test]
    fn results_that_are_too_much_together_fail_the_request() {
        let mut commands = parse(json!([
            {"name": "a", "fun": "s.m"}, {"name": "b", "fun": "s.m"}, {"name": "c", "fun": "s.m"},
        ]));
        let _ = commands.ready();
        let half = Value::String("x".repeat(Room::MAX / 2));
        assert_eq!(commands.on_result("a", Ok(half.clone()), MS), Progress::Nothing);
        let cancel = vec!["c".to_owned()];
        assert_eq!(commands.on_result("b", Ok(half), MS), Progress::Failed { cancel });
        assert_eq!(
            commands.finished().unwrap().unwrap_err().code,
            ErrorCode::PayloadTooLarge
        );
    }

    #[test]
    fn intermediate_results_take_room_as_well() {
        let commands = json!([{"name": "a", "fun": "s.m"}]);
        let mut commands =
            Commands::parse(json!({"commands": commands, "return_intermediate_results": true})).unwrap();
        let _ = commands.ready();
        let half = Value::String("x".repeat(Room::MAX / 2));
        let progress = commands.on_result("a", Ok(half), MS);
        assert_eq!(progress, Progress::Failed { cancel: vec![] });
        assert_eq!(
            commands.finished().unwrap().unwrap_err().code,
            ErrorCode::PayloadTooLarge
        );
    }

    proptest! {
        #[test]
        fn the_results_are_those_of_one_command_after_the_other(
            // For each command, how it refers to each of those before it: 0 to 6, and else not at all.
            edges in proptest::collection::vec(proptest::collection::vec(0_u8..14, 10), 1..10),
            written in Just((0..10_usize).collect::<Vec<_>>()).prop_shuffle(),
            done in Just((0..10_usize).collect::<Vec<_>>()).prop_shuffle(),
            wanted in proptest::collection::vec(proptest::bool::ANY, 10),
        ) {
            let needs = |n: usize| (0..n).filter(|before| edges[n][*before] < 7).collect::<Vec<_>>();
            let command = |n: usize| {
                let refer = |before: &usize| match edges[n][*before] {
                    0 => json!(format!("c{before}.value.of")),
                    1 => json!({"$ref": format!("c{before}.value")}),
                    2 => json!([[format!("c{before}")]]),
                    3 | 4 => json!({"field": {"$ref": format!("c{before}")}}),
                    5 => json!(format!("c{before}.value")),
                    _ => json!([{"field": {"$ref": format!("c{before}.value.of")}}]),
                };
                // References to those after it would be cycles; texts are not.
                let literal = (n + 1..edges.len()).map(|after| json!({"$lit": [format!("c{after}")]}));
                let by_place = needs(n).into_iter().filter(|before| edges[n][*before] < 4);
                let by_name = needs(n).into_iter().filter(|before| edges[n][*before] >= 4);
                let args: Vec<_> = by_place.map(|before| refer(&before)).chain(literal).collect();
                let kwargs: Map<_, _> = by_name.map(|before| (format!("k{before}"), refer(&before))).collect();
                json!({"name": format!("c{n}"), "fun": "s.m", "args": args, "kwargs": kwargs})
            };
            let as_written = written.iter().filter(|n| **n < edges.len());
            let all: Vec<_> = as_written.map(|n| command(*n)).collect();

            // What was given to a command, without the shapes around it: numbers that are all of another prime.
            let mut expected: Vec<u64> = Vec::new();
            for prime in &PRIMES[..edges.len()] {
                let needed = needs(expected.len()).into_iter().map(|before| expected[before]);
                expected.push(prime + needed.sum::<u64>());
            }

            let is_needed = |n: &usize| (0..edges.len()).any(|other| needs(other).contains(n));
            let every = || 0..edges.len();
            let sinks: Vec<_> = every().filter(|n| !is_needed(n)).collect();
            let named: Vec<_> = written.iter().copied().filter(|n| *n < edges.len() && wanted[*n]).collect();
            let names: Vec<_> = named.iter().map(|n| format!("c{n}")).collect();
            for (returned, answered) in [
                (None, sinks),
                (Some(json!("all")), every().collect()),
                (Some(json!(names)), named),
            ] {
                let mut params = json!({"commands": all});
                if let Some(returned) = &returned {
                    params["return"] = returned.clone();
                }
                let mut commands = Commands::parse(params).unwrap();
                let mut here = BTreeSet::new();
                let answer = loop {
                    let mut ready = commands.ready();
                    for command in &ready {
                        let missing = needs(number(command)).into_iter().find(|before| !here.contains(before));
                        prop_assert_eq!(missing, None, "{} came too early", &command.name);
                    }
                    ready.sort_by_key(|command| done[number(command)]);
                    prop_assert!(!ready.is_empty());
                    for command in ready {
                        let n = number(&command);
                        let value = PRIMES[n] + sum(&given(&command));
                        here.insert(n);
                        let _ = commands.on_result(&command.name, Ok(json!({"value": {"of": value}})), MS);
                    }
                    if let Some(answer) = commands.finished() {
                        break answer;
                    }
                };
                prop_assert_eq!(here.len(), edges.len(), "each is carried out, whatever is returned");
                let expected: Map<_, _> = answered
                    .iter()
                    .map(|n| (format!("c{n}"), json!({"value": {"of": expected[*n]}})))
                    .collect();
                prop_assert_eq!(answer, Ok(Value::Object(expected)), "return: {:?}", returned);
            }
        }

        #[test]
        fn whatever_is_asked_is_answered_or_refused(
            texts in proptest::collection::vec("(\\$ref|\\$lit|a|b|[.]){0,3}", 8),
            shapes in proptest::collection::vec(0_u8..5, 8),
        ) {
            let nest = |inner: Value, (text, shape): (&String, &u8)| match shape {
                0 => json!([inner, text]),
                1 => json!({text: inner}),
                2 => json!({"$ref": text}),
                3 => json!({"$lit": inner}),
                _ => json!({text: inner, "and": text}),
            };
            let args = texts.iter().zip(&shapes).fold(json!("a"), nest);
            let commands = json!([{"name": "a", "fun": "s.m"}, {"name": "b", "fun": "s.m", "args": args}]);
            if Commands::parse(json!({"commands": commands})).is_ok() {
                let _ = run(json!({"commands": commands}), given);
            }
        }
    }

    const PRIMES: [u64; 10] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29];

    fn number(command: &ReadyCommand) -> usize {
        command.name[1..].parse().unwrap()
    }

    /// Of all numbers in it.
    fn sum(value: &Value) -> u64 {
        match value {
            Value::String(_) => 0,
            Value::Array(items) => items.iter().map(sum).sum(),
            Value::Object(fields) => fields.values().map(sum).sum(),
            _ => value.as_u64().unwrap(),
        }
    }

    fn parse(commands: Value) -> Commands {
        Commands::parse(json!({"commands": commands})).unwrap()
    }

    fn refused(commands: Value) -> CallError {
        Commands::parse(json!({"commands": commands})).unwrap_err()
    }

    fn names(ready: &[ReadyCommand]) -> Vec<&str> {
        ready.iter().map(|command| command.name.as_str()).collect()
    }

    /// As `params` of the call.
    fn given(command: &ReadyCommand) -> Value {
        command.arguments.clone().into_params().unwrap_or_default()
    }

    fn told(progress: Progress) -> Value {
        let Progress::LevelDone(Some(intermediate)) = progress else {
            panic!("{progress:?}");
        };
        serde_json::to_value(intermediate).unwrap()
    }

    /// Makes every call at once, as `service` answers it.
    fn run(params: Value, service: impl Fn(&ReadyCommand) -> Value) -> Result<Value, CallError> {
        let mut commands = Commands::parse(params).unwrap();
        loop {
            for command in commands.ready() {
                let _ = commands.on_result(&command.name, Ok(service(&command)), MS);
            }
            if let Some(answer) = commands.finished() {
                return answer;
            }
        }
    }
}
