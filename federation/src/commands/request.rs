//! The parameters of a `request`, read and checked, with its commands put into levels. Runs nothing.

use super::argument::{Argument, Scope};
use crate::remote_call::{BUILT_IN, ECHO, read_priority, read_timeout};
use crate::service::NAME_MAX;
use crate::{CallError, Constraint, ErrorCode, NodeAddress, ServiceName};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// As many as a batch of JSON-RPC holds.
const COMMANDS_MAX: usize = 100;

/// The longest name of a command in bytes. Programs make them, and repeat them in references and answers: a UUID has 36.
const COMMAND_NAME_MAX: usize = 64;

/// No service announces more resources, so none has more than these.
const LOCS_MAX: usize = 64;

/// How long whoever asks waits for all commands, where that is not said: MPREG's clients, whose form of asking this is, wait no
/// longer.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// A `request` that may be run.
#[derive(Debug)]
pub(super) struct Request {
    /// As given.
    pub(super) commands: Vec<Command>,
    /// Each command is in one level, and needs only results of earlier ones.
    pub(super) levels: Vec<Vec<usize>>,
    /// Whose results make up the answer.
    pub(super) returned: BTreeSet<usize>,
    /// For all commands together.
    pub(super) timeout: Duration,
    pub(super) wants_intermediate: bool,
    pub(super) wants_summary: bool,
}

/// One call of a request.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: String,
    pub(super) target: Option<NodeAddress>,
    pub(super) service: ServiceName,
    pub(super) method: Option<String>,
    pub(super) args: Argument,
    pub(super) kwargs: Argument,
    pub(super) locs: BTreeSet<String>,
    /// A constraint, as given.
    pub(super) version: Option<String>,
    pub(super) priority: i8,
    pub(super) is_idempotent: bool,
    /// The commands whose results are in its arguments.
    pub(super) needs: BTreeSet<usize>,
}

impl Request {
    /// Reads the parameters of the JSON-RPC method `request`.
    pub(super) fn parse(params: Value) -> Result<Self, CallError> {
        let Value::Object(params) = params else {
            return Err(invalid(
                "the parameters of `request` are an object with `commands`",
            ));
        };
        let given: GivenRequest = serde_json::from_value(without_nulls(params)).map_err(invalid)?;
        given.check()?;
        if given.commands.len() > COMMANDS_MAX {
            let count = given.commands.len();
            return Err(invalid(format!(
                "a request has at most {COMMANDS_MAX} commands, not {count}"
            )));
        }
        let given_commands = given.commands.into_iter().enumerate().map(|(index, fields)| {
            serde_json::from_value(without_nulls(fields))
                .map_err(|error| invalid(format!("command {}: {error}", index + 1)))
        });
        let given_commands: Vec<GivenCommand> = given_commands.collect::<Result<_, _>>()?;
        let names = names(&given_commands)?;
        let commands = given_commands.into_iter().enumerate().map(|(me, given)| {
            let name = given.name.clone();
            let scope = Scope { names: &names, me };
            given
                .check(scope)
                .map_err(|what| invalid(format!("command `{name}`: {what}")))
        });
        let commands: Vec<Command> = commands.collect::<Result<_, _>>()?;
        let levels = levels(&commands)?;
        let timeout = match &given.timeout {
            Value::Null => TIMEOUT_DEFAULT,
            value => read_timeout(value)?,
        };
        let returned = returned(given.returned.as_ref(), &commands, &levels, &names)?;
        Ok(Self {
            commands,
            levels,
            returned,
            timeout,
            wants_intermediate: given.return_intermediate_results.unwrap_or(false),
            wants_summary: given.include_execution_summary.unwrap_or(false),
        })
    }
}

/// `null` is as good as absent, as in a `remote_call`.
fn without_nulls(mut fields: Map<String, Value>) -> Value {
    fields.retain(|_, value| !value.is_null());
    Value::Object(fields)
}

/// A request as it is written. What is not known may be a mistake in writing, and is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenRequest {
    commands: Vec<Map<String, Value>>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    #[serde(default)]
    timeout: Value,
    return_intermediate_results: Option<bool>,
    include_execution_summary: Option<bool>,
    debug_mode: Option<bool>,
    intermediate_result_callback_topic: Option<String>,
}

impl GivenRequest {
    /// What MPREG has and this has not is not passed over in silence.
    fn check(&self) -> Result<(), CallError> {
        if self.debug_mode == Some(true) {
            let said = "`debug_mode` is not there: `include_execution_summary` says what took the time, and a `traceparent` finds \
                        the request in logs and traces";
            return Err(invalid(said));
        }
        if self.intermediate_result_callback_topic.is_some() {
            let said = "`intermediate_result_callback_topic`: there are no topics; `return_intermediate_results` puts these results \
                        into the answer";
            return Err(invalid(said));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenCommand {
    name: String,
    fun: Option<String>,
    #[serde(alias = "service_name", alias = "server_name")]
    service: Option<ServiceName>,
    method: Option<String>,
    #[serde(default)]
    args: Value,
    #[serde(default)]
    kwargs: Value,
    #[serde(alias = "resources")]
    locs: Option<Vec<String>>,
    node_id: Option<String>,
    #[serde(alias = "version_constraint")]
    version: Option<String>,
    #[serde(default)]
    priority: Value,
    idempotent: Option<bool>,
}

impl GivenCommand {
    fn check(self, scope: Scope<'_>) -> Result<Command, String> {
        let (service, method) = match (self.fun, self.service) {
            (Some(fun), None) if self.method.is_none() => split_fun(&fun)?,
            (None, Some(service)) => (service, self.method),
            _ => return Err("it takes either `fun`, or `service` and `method`".to_owned()),
        };
        if let Some(method) = &method {
            check_length("`method`", method, NAME_MAX)?;
        }
        let locs = self.locs.unwrap_or_default();
        if locs.len() > LOCS_MAX {
            return Err(format!(
                "`locs` has at most {LOCS_MAX} resources, not {}",
                locs.len()
            ));
        }
        for loc in &locs {
            check_length("a resource", loc, NAME_MAX)?;
        }
        // An empty one is refused, as in a `remote_call`: its caller had a node in mind.
        let target = self.node_id.map(|text| text.parse::<NodeAddress>());
        let target = target
            .transpose()
            .map_err(|error| format!("invalid `node_id`: {error}"))?;
        if let Some(version) = &self.version {
            version
                .parse::<Constraint>()
                .map_err(|error| format!("`version`: {error}"))?;
        }
        let priority = match &self.priority {
            Value::Null => 0,
            value => read_priority(value).map_err(|error| error.message)?,
        };
        let args = match self.args {
            // A text is one argument, also where it refers to a result that is an array.
            text @ Value::String(_) => Value::Array(vec![text]),
            args => args,
        };
        let kwargs = match self.kwargs {
            Value::Null => Value::Object(Map::new()),
            kwargs => kwargs,
        };
        let args = Argument::parse(args, scope)?;
        let kwargs = Argument::parse(kwargs, scope)?;
        if matches!(&kwargs, Argument::Array(_))
            || matches!(&kwargs, Argument::Literal(value) if !value.is_object())
        {
            return Err("`kwargs` is an object".to_owned());
        }
        let mut needs = BTreeSet::new();
        args.collect_needs(&mut needs);
        kwargs.collect_needs(&mut needs);
        Ok(Command {
            name: self.name,
            target,
            service,
            method,
            args,
            kwargs,
            locs: locs.into_iter().collect(),
            version: self.version,
            priority,
            is_idempotent: self.idempotent.unwrap_or(false),
            needs,
        })
    }
}

/// `service.method`, a service alone, or what every node has. Names of services may have dots, so the last one divides.
fn split_fun(fun: &str) -> Result<(ServiceName, Option<String>), String> {
    let (service, method) = match fun.rsplit_once('.') {
        Some((service, method)) => (service, Some(method.to_owned())),
        None if BUILT_IN.contains(&fun) => (ECHO, Some(fun.to_owned())),
        None => (fun, None),
    };
    let service = service.parse().map_err(|error| format!("`fun`: {error}"))?;
    Ok((service, method))
}

fn check_length(what: &str, text: &str, max: usize) -> Result<(), String> {
    match text.len() {
        length if (1..=max).contains(&length) => Ok(()),
        length => Err(format!("{what} has between 1 and {max} bytes, not {length}")),
    }
}

/// Which command is called what.
fn names(given: &[GivenCommand]) -> Result<BTreeMap<String, usize>, CallError> {
    let mut names = BTreeMap::new();
    for (index, GivenCommand { name, .. }) in given.iter().enumerate() {
        check_length("the name of a command", name, COMMAND_NAME_MAX).map_err(invalid)?;
        if name.contains('.') {
            // `a.b` could be the command `a.b`, or the field `b` of `a`.
            return Err(invalid(format!(
                "the name `{name}` has a `.`, which begins a field"
            )));
        }
        if names.insert(name.clone(), index).is_some() {
            return Err(invalid(format!("there are two commands with the name `{name}`")));
        }
    }
    Ok(names)
}

/// Each command into the first level by which there is all that it needs.
fn levels(commands: &[Command]) -> Result<Vec<Vec<usize>>, CallError> {
    let mut left: BTreeSet<usize> = (0..commands.len()).collect();
    let mut levels = Vec::new();
    while !left.is_empty() {
        let is_next = |index: &usize| commands[*index].needs.is_disjoint(&left);
        let level: Vec<usize> = left.iter().copied().filter(is_next).collect();
        if level.is_empty() {
            return Err(cycle(commands, &left));
        }
        for index in &level {
            left.remove(index);
        }
        levels.push(level);
    }
    Ok(levels)
}

/// Every command in `left` needs another one in `left`: whoever follows these comes back to where they were.
fn cycle(commands: &[Command], left: &BTreeSet<usize>) -> CallError {
    let mut way: Vec<usize> = Vec::new();
    let mut next = left.first().copied();
    while let Some(index) = next
        && !way.contains(&index)
    {
        way.push(index);
        next = commands[index].needs.intersection(left).next().copied();
    }
    let entry = way.iter().position(|index| Some(*index) == next).unwrap_or(0);
    let around = way[entry..].iter().copied().chain(next);
    let texts: Vec<String> = around
        .map(|index| format!("`{}`", commands[index].name))
        .collect();
    let message = format!("commands wait for each other: {}", texts.join(" needs "));
    CallError::new(ErrorCode::DependencyCycle, message)
}

/// Whose results make up the answer, by what was asked for.
fn returned(
    asked: Option<&Value>,
    commands: &[Command],
    levels: &[Vec<usize>],
    names: &BTreeMap<String, usize>,
) -> Result<BTreeSet<usize>, CallError> {
    let all: BTreeSet<usize> = (0..commands.len()).collect();
    let wrong = || invalid("`return` is `sinks`, `last_level`, `all` or a list of names");
    let which = match asked {
        None => "sinks",
        Some(Value::String(which)) => which,
        Some(Value::Array(asked)) => {
            let find = |name: &Value| {
                let name = name.as_str().ok_or_else(wrong)?;
                names
                    .get(name)
                    .copied()
                    .ok_or_else(|| invalid(format!("`return` names `{name}`, which is no command")))
            };
            return asked.iter().map(find).collect();
        }
        Some(_) => return Err(wrong()),
    };
    match which {
        "sinks" => {
            let needed: BTreeSet<usize> = commands
                .iter()
                .flat_map(|command| &command.needs)
                .copied()
                .collect();
            Ok(&all - &needed)
        }
        "last_level" => Ok(levels.last().into_iter().flatten().copied().collect()),
        "all" => Ok(all),
        _ => Err(wrong()),
    }
}

fn invalid(what: impl ToString) -> CallError {
    CallError::new(ErrorCode::InvalidParams, what.to_string())
}
