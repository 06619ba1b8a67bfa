//! What the method `remote_call` is asked, and what a method that is called directly is: the same call. Looks nothing up and
//! calls nobody.

use crate::service::NAME_MAX;
use crate::{CallError, ErrorCode, NodeAddress, ServiceName};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::time::Duration;

/// A call, as somebody asks for it.
///
/// `null` is as good as absent for every member: clients in languages without optional fields send it for what is not set.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteCall {
    /// Which node is to answer; `None` where any may that offers the service.
    pub target: Option<NodeAddress>,
    /// The service.
    pub service: ServiceName,
    /// What is called in it: between 1 and 128 bytes, as methods are announced.
    pub method: String,
    /// What it is given.
    pub arguments: Arguments,
    /// How long the caller waits: within [`RemoteCall::TIMEOUT_MIN`] and [`RemoteCall::TIMEOUT_MAX`].
    pub timeout: Duration,
    /// Whether the answer is to say by which way it has come, and what took how long.
    pub trace: bool,
    /// Which versions will do, as given: nobody has looked yet whether it is a constraint.
    pub version: Option<String>,
    /// What the service has to work on: at most [`RemoteCall::RESOURCES_MAX`].
    pub resources: BTreeSet<String>,
    /// What it may overtake in the queue of a main: -10 to 10, the highest first.
    pub priority: i8,
    /// Whether it may be carried out twice.
    pub idempotent: bool,
    /// By which a repetition of it is known: between 1 and 128 visible characters of ASCII.
    pub message_id: Option<String>,
}

/// What a method is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Arguments {
    /// Nothing.
    #[default]
    None,
    /// By position.
    Positional(Vec<Value>),
    /// By name.
    Named(Map<String, Value>),
}

impl RemoteCall {
    /// How long a caller waits that does not say.
    pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

    /// Less would pass on the way, with a relay on another continent.
    pub const TIMEOUT_MIN: Duration = Duration::from_millis(50);

    /// More would keep the state of forgotten calls at every node on the way.
    pub const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

    /// As many as a service may announce; whoever wants more wants what there is not.
    pub const RESOURCES_MAX: usize = 64;

    /// Reads the `params` of `remote_call`: by name, or `[node_id, server_name, method, args, timeout]`.
    ///
    /// Without `node_id`, any instance will do. An empty one is refused in both forms: whoever sends it had a node in
    /// mind, and another may not be who the call is meant for.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidParams`], with the first member that is wrong.
    pub fn parse(params: Arguments) -> Result<Self, CallError> {
        let mut members = Members::new(params)?;
        let target = match members.text("node_id") {
            Ok(None) => None,
            Ok(Some(text)) if !text.is_empty() => Some(
                text.parse()
                    .map_err(|error| invalid(format!("invalid node_id: {error}")))?,
            ),
            _ => return Err(invalid("node_id is required as a text that is not empty")),
        };
        let call = Self {
            target,
            service: members.service()?,
            method: members.method()?,
            arguments: members.take("args").map(Arguments::from).unwrap_or_default(),
            timeout: members.timeout()?,
            trace: members.flag("trace")?,
            version: members.version()?,
            resources: members.resources()?,
            priority: members.priority()?,
            idempotent: members.flag("idempotent")?,
            message_id: members.message_id()?,
        };
        members.end()?;
        Ok(call)
    }

    /// What the `params` of a `remote_call` call it, whether they are right otherwise or not.
    pub(crate) fn message_id_in(params: &Arguments) -> Option<String> {
        let Arguments::Named(members) = params else {
            return None;
        };
        let id = members.get("message_id")?.as_str()?;
        is_message_id(id).then(|| id.to_owned())
    }

    /// The call that `service.method` is, of any instance; the name is split at its last `.`, since services have some too.
    /// `echo` and `echos` alone are the built-in ones. `None` where the name is not of that form, or one that JSON-RPC keeps for itself.
    pub fn direct(method: &str, params: Arguments) -> Option<Self> {
        // JSON-RPC 2.0, section 4: names that begin so must not be used for anything else.
        if method.starts_with("rpc.") {
            return None;
        }
        let built_in = || BUILT_IN.contains(&method).then_some((ECHO, method));
        let (service, method) = method.rsplit_once('.').or_else(built_in)?;
        if !(1..=NAME_MAX).contains(&method.len()) {
            return None;
        }
        Some(Self {
            target: None,
            service: service.parse().ok()?,
            method: method.to_owned(),
            arguments: params,
            timeout: Self::TIMEOUT_DEFAULT,
            trace: false,
            version: None,
            resources: BTreeSet::new(),
            priority: 0,
            idempotent: false,
            message_id: None,
        })
    }
}

impl Arguments {
    /// The same as `params` of a request; `None` where it has none.
    pub fn into_params(self) -> Option<Value> {
        match self {
            Self::None => None,
            Self::Positional(values) => Some(Value::Array(values)),
            Self::Named(members) => Some(Value::Object(members)),
        }
    }
}

impl From<Value> for Arguments {
    /// An array is by position, an object by name; anything else is the one argument that there is.
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::None,
            Value::Array(values) => Self::Positional(values),
            Value::Object(members) => Self::Named(members),
            scalar => Self::Positional(vec![scalar]),
        }
    }
}

/// The service that nodes have anyway, and what in it is called without its name too: by MPREG's clients, to whom these are
/// functions of every server.
pub(crate) const ECHO: &str = "echo";
pub(crate) const BUILT_IN: [&str; 2] = ["echo", "echos"];

/// What of the parameters has not been read yet.
struct Members(Map<String, Value>);

/// The names of what is given by position.
const POSITIONS: [&str; 5] = ["node_id", "server_name", "method", "args", "timeout"];

/// All names of members.
const KNOWN: [&str; 14] = [
    "node_id",
    "server_name",
    "service_name",
    "method",
    "args",
    "timeout",
    "trace",
    "version",
    "version_constraint",
    "locs",
    "resources",
    "priority",
    "idempotent",
    "message_id",
];

/// Of a name that is not known.
const NAME_SHOWN: usize = 64;

/// Of nothing else that a caller says is kept as much: it stands in logs, and in tables of calls.
const MESSAGE_ID_MAX: usize = 128;

pub(crate) const PRIORITY_MAX: i8 = 10;

impl Members {
    fn new(params: Arguments) -> Result<Self, CallError> {
        match params {
            Arguments::None => Ok(Self(Map::new())),
            Arguments::Named(members) => Ok(Self(members)),
            // Most likely what belongs into `args` has been put beside it, and its first would be taken for the timeout.
            Arguments::Positional(values) if values.len() > POSITIONS.len() => Err(invalid(format!(
                "invalid args: {} are given by position, and at most {} are taken; `args` is one array",
                values.len(),
                POSITIONS.len()
            ))),
            Arguments::Positional(values) => {
                let names = POSITIONS.into_iter().map(str::to_owned);
                Ok(Self(names.zip(values).collect()))
            }
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A member that has two names.
    fn either(&mut self, name: &str, other: &str) -> Result<Option<Value>, CallError> {
        match (self.take(name), self.take(other)) {
            (Some(one), Some(two)) if one != two => Err(invalid(format!(
                "{name} and {other} mean the same, and are given as two"
            ))),
            (one, two) => Ok(one.or(two)),
        }
    }

    /// Nothing is left. What is not known may be a mistake in writing, and its caller would wait in vain for what it asks.
    fn end(self) -> Result<(), CallError> {
        let left = self.0.iter().find(|(_, value)| !value.is_null());
        match left {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(NAME_SHOWN).collect();
                let known = KNOWN.join(", ");
                Err(invalid(format!("unknown member `{shown}`; there are {known}")))
            }
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, CallError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(format!("{name} is to be a text"))),
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool, CallError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(invalid(format!("{name} is to be true or false"))),
        }
    }

    fn service(&mut self) -> Result<ServiceName, CallError> {
        let name = self.either("server_name", "service_name")?.unwrap_or_default();
        match name.as_str() {
            None | Some("") => Err(invalid("server_name is required")),
            Some(text) => text
                .parse()
                .map_err(|error| invalid(format!("invalid server_name: {error}"))),
        }
    }

    fn method(&mut self) -> Result<String, CallError> {
        match self.text("method") {
            Ok(Some(method)) if method.len() > NAME_MAX => Err(invalid(format!(
                "invalid method: it has {} bytes, and at most {NAME_MAX} are announced",
                method.len()
            ))),
            Ok(Some(method)) if !method.is_empty() => Ok(method),
            _ => Err(invalid("method is required")),
        }
    }

    fn version(&mut self) -> Result<Option<String>, CallError> {
        match self.either("version", "version_constraint")? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid("version is to be a text")),
        }
    }

    fn timeout(&mut self) -> Result<Duration, CallError> {
        match self.take("timeout") {
            None => Ok(RemoteCall::TIMEOUT_DEFAULT),
            Some(value) => read_timeout(&value),
        }
    }

    fn resources(&mut self) -> Result<BTreeSet<String>, CallError> {
        let wrong = || {
            let count = RemoteCall::RESOURCES_MAX;
            invalid(format!(
                "locs is to be an array of at most {count} texts of 1 to {NAME_MAX} bytes"
            ))
        };
        let values = match self.either("locs", "resources")? {
            None => Vec::new(),
            Some(Value::Array(values)) if values.len() <= RemoteCall::RESOURCES_MAX => values,
            Some(_) => return Err(wrong()),
        };
        let read = |value| match value {
            Value::String(text) if (1..=NAME_MAX).contains(&text.len()) => Ok(text),
            _ => Err(wrong()),
        };
        values.into_iter().map(read).collect()
    }

    fn priority(&mut self) -> Result<i8, CallError> {
        match self.take("priority") {
            None => Ok(0),
            Some(value) => read_priority(&value),
        }
    }

    fn message_id(&mut self) -> Result<Option<String>, CallError> {
        match self.text("message_id")? {
            Some(id) if !is_message_id(&id) => Err(invalid(format!(
                "message_id is to be 1 to {MESSAGE_ID_MAX} visible characters of ASCII"
            ))),
            id => Ok(id),
        }
    }
}

/// A number of seconds.
pub(crate) fn read_timeout(value: &Value) -> Result<Duration, CallError> {
    let (min, max) = (RemoteCall::TIMEOUT_MIN, RemoteCall::TIMEOUT_MAX);
    value
        .as_f64()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|timeout| (min..=max).contains(timeout))
        .ok_or_else(|| {
            let (min, max) = (min.as_secs_f64(), max.as_secs());
            invalid(format!(
                "timeout is to be a number of seconds between {min} and {max}"
            ))
        })
}

pub(crate) fn read_priority(value: &Value) -> Result<i8, CallError> {
    value
        .as_i64()
        .and_then(|number| i8::try_from(number).ok())
        .filter(|priority| (-PRIORITY_MAX..=PRIORITY_MAX).contains(priority))
        .ok_or_else(|| {
            invalid(format!(
                "priority is to be an integer between -{PRIORITY_MAX} and {PRIORITY_MAX}"
            ))
        })
}

/// It goes back in a header of HTTP, which has room for no others.
pub(crate) fn is_message_id(text: &str) -> bool {
    (1..=MESSAGE_ID_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn invalid(message: impl Into<String>) -> CallError {
    CallError::new(ErrorCode::InvalidParams, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_call_of_a_node_by_name_says_all_there_is() {
        let call = parse(json!({
            "node_id": "bob.home@relay-a.com",
            "server_name": "blog",
            "method": "get",
            "args": [1, "two"],
            "timeout": 2.5,
            "trace": true,
            "version": ">=1.0,<2",
            "locs": ["model-b", "model-a", "model-a"],
            "priority": -10,
            "idempotent": true,
            "message_id": "m-1",
        }));
        let expected = RemoteCall {
            target: Some("bob.home@relay-a.com".parse().unwrap()),
            service: "blog".parse().unwrap(),
            method: "get".to_owned(),
            arguments: Arguments::Positional(vec![json!(1), json!("two")]),
            timeout: Duration::from_millis(2500),
            trace: true,
            version: Some(">=1.0,<2".to_owned()),
            resources: ["model-a", "model-b"].map(str::to_owned).into(),
            priority: -10,
            idempotent: true,
            message_id: Some("m-1".to_owned()),
        };
        assert_eq!(call, Ok(expected));
    }

    #[test]
    fn what_is_absent_or_null_has_its_default() {
        let short = parse(json!({"service_name": "blog", "method": "get"})).unwrap();
        let nulls = json!({
            "node_id": null, "server_name": null, "service_name": "blog", "method": "get", "args": null, "timeout": null,
            "trace": null, "version": null, "locs": null, "priority": null, "idempotent": null, "message_id": null,
        });
        assert_eq!(parse(nulls).unwrap(), short);
        assert_eq!(short, RemoteCall::direct("blog.get", Arguments::None).unwrap());
        assert_eq!((short.target, short.timeout), (None, Duration::from_secs(60)));
    }

    #[test]
    fn server_and_service_are_one_word_in_both_shapes() {
        for name in ["server_name", "service_name"] {
            for node in [json!(null), json!("bob.home")] {
                let call = parse(json!({"node_id": node, name: "blog", "method": "get"})).unwrap();
                assert_eq!(call.service.as_str(), "blog");
                assert_eq!(call.target.is_some(), node.is_string());
            }
        }
        assert!(parse(json!({"server_name": "blog", "service_name": "blog", "method": "get"})).is_ok());
    }

    #[test]
    fn version_and_resources_have_other_names() {
        let call = |members: Value| {
            let mut params = json!({"server_name": "blog", "method": "get"});
            for (name, value) in members.as_object().unwrap() {
                params[name] = value.clone();
            }
            parse(params)
        };
        assert_eq!(
            call(json!({"version_constraint": ">=2", "resources": ["model-a"]})),
            call(json!({"version": ">=2", "locs": ["model-a"]}))
        );
        let error = call(json!({"version_constraint": ">=2", "version": ">=1"})).unwrap_err();
        assert!(
            error.message.starts_with("version and version_constraint mean"),
            "{error}"
        );
    }

    #[test]
    fn a_member_that_nobody_knows_is_refused_by_its_name_with_those_that_are_known() {
        let mut params = json!({"server_name": "blog", "method": "get", "time_out": 5});
        let error = parse(params.clone()).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParams);
        assert!(
            error
                .message
                .starts_with("unknown member `time_out`; there are node_id, "),
            "{error}"
        );
        for known in KNOWN {
            assert!(error.message.contains(known), "{error}");
        }
        params["time_out"] = Value::Null;
        assert!(parse(params).is_ok());
    }

    #[test]
    fn by_position_the_same_is_said_in_order() {
        let named = json!({
            "node_id": "bob.home", "server_name": "blog", "method": "get", "args": {"id": 7}, "timeout": 1,
        });
        assert_eq!(
            parse(json!(["bob.home", "blog", "get", {"id": 7}, 1])),
            parse(named)
        );
        let short = parse(json!([null, "blog", "get"])).unwrap();
        assert_eq!(short, RemoteCall::direct("blog.get", Arguments::None).unwrap());
    }

    #[test]
    fn arguments_are_by_position_by_name_or_the_only_one() {
        let named = json!({"id": 7});
        for (args, expected) in [
            (json!(null), Arguments::None),
            (json!([]), Arguments::Positional(vec![])),
            (
                json!([null, [1]]),
                Arguments::Positional(vec![json!(null), json!([1])]),
            ),
            (
                named.clone(),
                Arguments::Named(named.as_object().unwrap().clone()),
            ),
            (json!("one"), Arguments::Positional(vec![json!("one")])),
            (json!(1.5), Arguments::Positional(vec![json!(1.5)])),
            (json!(false), Arguments::Positional(vec![json!(false)])),
        ] {
            let call = parse(json!({"server_name": "blog", "method": "get", "args": args})).unwrap();
            assert_eq!(call.arguments, expected);
        }
    }

    #[test]
    fn arguments_go_on_as_they_came() {
        for params in [json!([]), json!([1, null]), json!({}), json!({"a": [1]})] {
            assert_eq!(Arguments::from(params.clone()).into_params(), Some(params));
        }
        assert_eq!(Arguments::None.into_params(), None);
    }

    #[test]
    fn a_member_that_is_wrong_is_named() {
        let long = "x".repeat(129);
        let locs = vec!["a"; 65];
        for (member, value, said) in [
            ("node_id", json!(""), "node_id is required"),
            ("node_id", json!(7), "node_id is required"),
            ("node_id", json!("a@b@c"), "invalid node_id"),
            ("server_name", json!(null), "server_name is required"),
            ("server_name", json!(""), "server_name is required"),
            ("server_name", json!(7), "server_name is required"),
            ("server_name", json!("no such"), "invalid server_name"),
            ("service_name", json!("shop"), "server_name and service_name"),
            ("method", json!(null), "method is required"),
            ("method", json!(""), "method is required"),
            ("method", json!([]), "method is required"),
            ("method", json!(long), "invalid method"),
            ("timeout", json!(0), "timeout is"),
            ("timeout", json!(-1), "timeout is"),
            ("timeout", json!(0.049), "between 0.05 and 3600"),
            ("timeout", json!(3600.1), "timeout is"),
            ("timeout", json!(1e300), "timeout is"),
            ("timeout", json!("1"), "timeout is"),
            ("trace", json!(1), "trace is"),
            ("version", json!(1), "version is"),
            ("locs", json!("model-a"), "locs is"),
            ("locs", json!([1]), "locs is"),
            ("locs", json!([""]), "locs is"),
            ("locs", json!([long]), "locs is"),
            ("locs", json!(locs), "locs is"),
            ("priority", json!(11), "between -10 and 10"),
            ("priority", json!(-11), "priority is"),
            ("priority", json!(1.5), "priority is"),
            ("priority", json!(i64::MAX), "priority is"),
            ("idempotent", json!("yes"), "idempotent is"),
            ("message_id", json!(""), "message_id is"),
            ("message_id", json!(long), "message_id is"),
            ("message_id", json!("a\r\nb"), "message_id is"),
            ("message_id", json!(7), "message_id is"),
        ] {
            let mut params = json!({"server_name": "blog", "method": "get"});
            params[member] = value.clone();
            let error = parse(params).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParams);
            assert!(error.message.contains(said), "{member} {value}: {error}");
        }
    }

    #[test]
    fn what_is_missing_by_position_is_named_too() {
        for (params, said) in [
            (json!([]), "server_name is required"),
            (json!(["", "blog", "get"]), "node_id is required"),
            (json!(["bob.home"]), "server_name is required"),
            (json!(["bob.home", "blog"]), "method is required"),
            (json!(["bob.home", "blog", "get", 1, 2, 3]), "invalid args"),
        ] {
            let error = parse(params).unwrap_err();
            assert!(error.message.contains(said), "{error}");
        }
        let error = RemoteCall::parse(Arguments::None).unwrap_err();
        assert_eq!(error.message, "server_name is required");
    }

    #[test]
    fn bounds_belong_to_what_is_allowed() {
        for timeout in [json!(0.05), json!(3600)] {
            let call = parse(json!({"server_name": "blog", "method": "get", "timeout": timeout})).unwrap();
            assert_eq!(json!(call.timeout.as_secs_f64()), json!(timeout.as_f64()));
        }
        let call = json!({
            "server_name": "blog", "method": "x".repeat(128), "priority": 10, "message_id": "x".repeat(128),
            "locs": (0..64).map(|i| format!("{i:0128}")).collect::<Vec<_>>(),
        });
        assert_eq!(parse(call).unwrap().resources.len(), 64);
    }

    #[test]
    fn a_method_called_directly_is_split_at_its_last_dot() {
        let params = Arguments::Positional(vec![json!(1)]);
        for (name, service, method) in [
            ("blog.get", "blog", "get"),
            ("blog.posts.get", "blog.posts", "get"),
            ("blog.get post", "blog", "get post"),
            ("echo", "echo", "echo"),
            ("echos", "echo", "echos"),
        ] {
            let call = RemoteCall::direct(name, params.clone()).unwrap();
            assert_eq!((call.service.as_str(), call.method.as_str()), (service, method));
            assert_eq!((call.target, call.arguments), (None, params.clone()));
        }
    }

    #[test]
    fn what_is_no_service_and_method_is_not_called_directly() {
        let long = format!("blog.{}", "x".repeat(129));
        for name in [
            "",
            ".",
            "get",
            "blog.",
            ".get",
            "no such.get",
            "blog..get",
            "rpc.discover",
            &long,
        ] {
            assert_eq!(RemoteCall::direct(name, Arguments::None), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sent_is_within_the_bounds_or_refused(
            names in (any_name(), any_name(), any_name(), any_name()),
            values in (any_value(), any_value(), any_value(), any_value(), any_value()),
        ) {
            let (node, service, method, id) = names;
            let (args, timeout, trace, locs, priority) = values;
            let direct = RemoteCall::direct(&format!("{service}.{method}"), Arguments::None);
            let positions = parse(json!([node, service, method, args, timeout]));
            let names = parse(json!({
                "node_id": node, "server_name": service, "method": method, "args": args, "timeout": timeout,
                "trace": trace, "locs": locs, "priority": priority, "message_id": id,
            }));
            for call in [direct, positions.ok(), names.ok()].into_iter().flatten() {
                prop_assert!((RemoteCall::TIMEOUT_MIN..=RemoteCall::TIMEOUT_MAX).contains(&call.timeout));
                prop_assert!((-10..=10).contains(&call.priority));
                prop_assert!((1..=NAME_MAX).contains(&call.method.len()));
                prop_assert!(call.resources.len() <= RemoteCall::RESOURCES_MAX);
            }
        }

        #[test]
        fn every_timeout_within_the_bounds_is_taken(milliseconds in 50_u32..=3_600_000) {
            let seconds = f64::from(milliseconds) / 1000.0;
            let call = parse(json!({"server_name": "blog", "method": "get", "timeout": seconds})).unwrap();
            prop_assert_eq!(call.timeout, Duration::from_millis(milliseconds.into()));
        }
    }

    fn any_name() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            (0_usize..260).prop_map(|length| "x".repeat(length)),
            Just("blog".to_owned())
        ]
    }

    /// Half of them are absent, so that some calls are taken.
    fn any_value() -> impl Strategy<Value = Value> {
        let value = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-20..20).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            (0_usize..100).prop_map(|count| (0..count).map(|i| i.to_string()).collect()),
        ];
        prop_oneof![Just(Value::Null), value]
    }

    fn parse(params: Value) -> Result<RemoteCall, CallError> {
        RemoteCall::parse(Arguments::from(params))
    }
}
