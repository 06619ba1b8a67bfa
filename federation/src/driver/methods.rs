//! A service written in Rust, within the node: functions by name, whose arguments and results are types that serde knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::asked::{answered, broken, shortened};
use super::backend::{Backend, CallContext, Invocation};
use crate::{CallError, ErrorCode, RemoteError};

/// Answers calls with functions.
///
/// Arguments by position become a tuple, a list or a structure, in the order of its fields; those by name a structure or a
/// map; a [`serde_json::Value`] takes both as they came. A function that takes nothing takes `()`, and is called with none,
/// `[]` or `{}`. What cannot be read as what it takes is answered with [`ErrorCode::InvalidParams`].
///
/// Callers are told no more of what went wrong in a function than its [`RemoteError`] says.
///
/// ```
/// use lapwing_federation::{Methods, RemoteError, Service};
///
/// let methods = Methods::new()
///     .method("add", |(a, b): (i64, i64)| async move { Ok(a + b) })
///     .method("divide", |(a, b): (i64, i64)| async move {
///         a.checked_div(b).ok_or_else(|| RemoteError::new(1, "not by zero"))
///     });
/// let mut service = Service::new("math".parse().unwrap());
/// service.methods = methods.names();
/// ```
///
/// One that wants to know who calls, for how long its answer is waited for, or to which trace that belongs, takes a
/// [`CallContext`] in front.
///
/// ```
/// use lapwing_federation::{CallContext, Methods};
///
/// let methods = Methods::new().method_with_context("search", |context: CallContext, (word,): (String,)| async move {
///     let is_long = context.remaining().as_secs() > 10;
///     Ok(format!("{word}, for {}, {}", context.caller, if is_long { "everywhere" } else { "near" }))
/// });
/// ```
#[derive(Default)]
pub struct Methods {
    methods: BTreeMap<String, Method>,
}

type Method =
    Box<dyn Fn(Option<String>, CallContext) -> BoxFuture<'static, Result<String, CallError>> + Send + Sync>;

/// Of what is wrong with arguments, in bytes: it may repeat them.
const WRONG_MAX: usize = 512;

impl Methods {
    /// A service without methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more; it takes the place of another of its name.
    #[must_use]
    pub fn method<A, R, F, O>(self, name: impl Into<String>, function: F) -> Self
    where
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(A) -> O + Send + Sync + 'static,
        O: Future<Output = Result<R, RemoteError>> + Send + 'static,
    {
        self.method_with_context(name, move |_, arguments| function(arguments))
    }

    /// The same with one more that is told of each call what there is to know of it.
    #[must_use]
    pub fn method_with_context<A, R, F, O>(mut self, name: impl Into<String>, function: F) -> Self
    where
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(CallContext, A) -> O + Send + Sync + 'static,
        O: Future<Output = Result<R, RemoteError>> + Send + 'static,
    {
        let called = move |arguments: Option<String>, context| match read(arguments.as_deref()) {
            Ok(arguments) => {
                let result = function(context, arguments);
                async move { written(result.await) }.boxed()
            }
            Err(error) => std::future::ready(Err(error)).boxed(),
        };
        self.methods.insert(name.into(), Box::new(called));
        self
    }

    /// What they are called, for the announcement.
    pub fn names(&self) -> BTreeSet<String> {
        self.methods.keys().cloned().collect()
    }
}

impl Backend for Methods {
    fn call(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        match self.methods.get(&invocation.method) {
            Some(method) => method(invocation.arguments, invocation.context),
            None => {
                let said = format!("there is no method `{}`", invocation.method);
                std::future::ready(Err(CallError::new(ErrorCode::MethodNotFound, said))).boxed()
            }
        }
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.methods.keys()).finish()
    }
}

fn read<A: DeserializeOwned>(arguments: Option<&str>) -> Result<A, CallError> {
    let text = arguments.unwrap_or("null");
    let is_nothing = matches!(text, "null" | "[]" | "{}");
    serde_json::from_str(text)
        .or_else(|error| {
            // Nothing is nothing, in whatever form a type takes it: `()`, or a structure whose fields may all be absent.
            let mut forms = ["null", "[]", "{}"].into_iter().filter(|_| is_nothing);
            let read = forms.find_map(|form| serde_json::from_str(form).ok());
            read.ok_or(error)
        })
        .map_err(|error| {
            let said = format!("the arguments are not what the method takes: {error}");
            CallError::new(ErrorCode::InvalidParams, shortened(said, WRONG_MAX))
        })
}

fn written<R: Serialize>(result: Result<R, RemoteError>) -> Result<String, CallError> {
    match result {
        Ok(result) => serde_json::to_string(&result).map_err(|error| {
            warn!(%error, "the result of a method cannot be written as JSON");
            broken("the service has failed")
        }),
        Err(RemoteError { code, message, fault }) => Err(answered(code, message, fault)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::PeerId;
    use serde::Deserialize;
    use serde_json::{Value, json};
    use std::collections::HashMap;

    #[derive(Deserialize)]
    struct Point {
        #[serde(default)]
        x: i64,
        #[serde(default)]
        y: i64,
    }

    fn methods() -> Arc<Methods> {
        let methods = Methods::new()
            .method("sum", |Point { x, y }| async move { Ok(x + y) })
            .method("pair", |(a, b): (i64, String)| async move { Ok(json!([b, a])) })
            .method("same", |all: Value| async move { Ok(all) })
            .method("none", |()| async move { Ok("nothing") })
            .method("fails", |(code,): (i64,)| async move {
                Err::<(), _>(RemoteError::new(code, "no stock"))
            })
            .method("mute", |()| async move {
                // JSON has texts alone for names.
                Ok(HashMap::from([((1, 2), 3)]))
            });
        Arc::new(methods)
    }

    async fn call(method: &str, arguments: Option<&str>) -> Result<String, CallError> {
        let invocation = Invocation {
            method: method.to_owned(),
            arguments: arguments.map(str::to_owned),
            context: CallContext::new(PeerId::random(), crate::driver::now()),
        };
        methods().call(invocation).await
    }

    #[tokio::test]
    async fn arguments_by_position_or_by_name_become_what_a_function_takes() {
        for (method, arguments, result) in [
            ("sum", Some("[1,2]"), "3"),
            ("sum", Some(r#"{"y":2,"x":1}"#), "3"),
            ("sum", Some("[]"), "0"),
            ("sum", None, "0"),
            ("pair", Some(r#"[1,"a"]"#), r#"["a",1]"#),
            ("same", Some(r#"{"a":[1]}"#), r#"{"a":[1]}"#),
            ("same", Some("[]"), "[]"),
            ("same", None, "null"),
            ("none", None, r#""nothing""#),
            ("none", Some("[]"), r#""nothing""#),
            ("none", Some("{}"), r#""nothing""#),
        ] {
            let answer = call(method, arguments).await;
            assert_eq!(answer.as_deref(), Ok(result), "{method} {arguments:?}");
        }
    }

    #[tokio::test]
    async fn other_arguments_and_other_methods_are_the_callers_fault() {
        let code = async |method, arguments| call(method, arguments).await.unwrap_err().code;
        for arguments in [None, Some("[1]"), Some("[\"a\",1]"), Some("{}"), Some("[1,\"a\"")] {
            assert_eq!(code("pair", arguments).await, ErrorCode::InvalidParams);
        }
        assert_eq!(code("none", Some("[1]")).await, ErrorCode::InvalidParams);
        assert_eq!(code("sing", None).await, ErrorCode::MethodNotFound);
        let long = format!("[\"{}\"]", "x".repeat(10_000));
        assert!(call("sum", Some(&long)).await.unwrap_err().message.len() <= WRONG_MAX);
    }

    #[tokio::test]
    async fn an_error_of_a_function_says_what_it_says_and_no_more() {
        let error = call("fails", Some("[17]")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::RemoteError);
        assert_eq!(error.remote, Some(RemoteError::new(17, "no stock")));
        let error = call("mute", None).await.unwrap_err();
        assert!(error.remote.is_some_and(|remote| remote.fault));
    }

    #[test]
    fn their_names_are_announced() {
        assert_eq!(methods().names().first().map(String::as_str), Some("fails"));
        assert_eq!(methods().names().len(), 6);
    }
}
