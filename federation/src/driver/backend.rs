//! What answers the calls of a service on its own node.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use lapwing_base::PeerId;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::now;
use crate::{CallError, CallId, ErrorCode, NodeAddress, Service, Token, TraceContext, TraceParent};

/// A call as a service sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Invocation {
    /// What is called.
    pub method: String,
    /// JSON: an array, an object, or nothing.
    pub arguments: Option<String>,
    /// Whose it is, and how long it is waited for.
    pub context: CallContext,
}

/// What a service knows of a call beside what is asked. Where a call is tried again while it is carried out, that of the attempt
/// that came first.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CallContext {
    /// The same where it is tried again.
    pub id: CallId,
    /// The node at which it was made: this one, a neighbour, which has proven that it is, or whom the mains on the way name.
    /// Who may do what is a matter of tokens, since whoever reaches that node may call.
    pub caller: PeerId,
    /// What that node is called, where this one knows: a main knows most, a home itself.
    pub caller_address: Option<NodeAddress>,
    /// When nobody waits for the answer any more, and what is under way is dropped.
    pub deadline: Instant,
    /// The trace that it belongs to.
    pub trace: TraceContext,
}

impl CallContext {
    /// A call with a new id, of no trace, made by a node of which nothing is known: for whoever tests a service.
    pub fn new(caller: PeerId, deadline: Instant) -> Self {
        Self {
            id: CallId::random(),
            caller,
            caller_address: None,
            deadline,
            trace: TraceContext::default(),
        }
    }

    /// How long the answer is waited for from now on.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(now())
    }

    /// The trace as it is written, 32 digits; none where the call belongs to none.
    pub fn trace_id(&self) -> Option<String> {
        let parent: TraceParent = self.trace.parent.as_ref()?.parse().ok()?;
        Some(parent.trace_id())
    }
}

/// Carries out the calls of a service. What it is at is dropped when the time of the call is over, or its caller waits no
/// longer.
pub trait Backend: Send + Sync {
    /// The result as JSON. With `Overloaded`, `PeerUnreachable` or `NodeOffline` it says that nothing was begun: then the call is
    /// made at another instance, where there is one. So the error of a call that it has made itself is no answer of its own.
    fn call(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, Result<String, CallError>>;

    /// Whether it can answer for now, where it knows before it is called. What cannot is announced as unhealthy, and its calls
    /// are made at other instances. Default: it does not know, and is called.
    fn health(&self) -> Option<watch::Receiver<bool>> {
        None
    }
}

/// Who may call a service. Default: everybody, with no token.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Exposure {
    /// Whether only callers of this node's own edge may, and no other node hears of it.
    pub is_private: bool,
    /// What callers have to know.
    pub token: Option<Token>,
}

/// A service with what answers its calls.
#[derive(Clone)]
pub(crate) struct Offer {
    pub(super) service: Service,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) exposure: Exposure,
    /// Cancelled where it is withdrawn: another one of its name may follow.
    pub(super) withdrawn: CancellationToken,
}

/// Says what it is told: `echo` the first of its arguments, `echos` all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Backend for Echo {
    fn call(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        std::future::ready(echo(&invocation)).boxed()
    }
}

fn echo(invocation: &Invocation) -> Result<String, CallError> {
    let arguments = invocation.arguments.as_deref().unwrap_or("null");
    match invocation.method.as_str() {
        "echos" => Ok(arguments.to_owned()),
        "echo" => {
            let first = serde_json::from_str(arguments).map(|arguments| match arguments {
                Value::Array(all) => all.into_iter().next().unwrap_or(Value::Null),
                other => other,
            });
            let wrong = |_| CallError::new(ErrorCode::InvalidParams, "the arguments are no JSON");
            first.map(|first| first.to_string()).map_err(wrong)
        }
        other => {
            let said = format!("service `echo` has no method `{other}`");
            Err(CallError::new(ErrorCode::MethodNotFound, said))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_the_first_of_its_arguments_or_all_of_them() {
        let echo = |method: &str, arguments: Option<&str>| {
            let invocation = Invocation {
                method: method.to_owned(),
                arguments: arguments.map(str::to_owned),
                context: CallContext::new(PeerId::random(), now()),
            };
            echo(&invocation).map_err(|error| error.code)
        };
        assert_eq!(echo("echo", Some("[\"a\",2]")), Ok("\"a\"".to_owned()));
        assert_eq!(echo("echos", Some("[\"a\",2]")), Ok("[\"a\",2]".to_owned()));
        assert_eq!(echo("echo", Some("{\"x\":1}")), Ok("{\"x\":1}".to_owned()));
        assert_eq!(echo("echo", None), Ok("null".to_owned()));
        assert_eq!(echo("echo", Some("nonsense")), Err(ErrorCode::InvalidParams));
        assert_eq!(echo("sing", None), Err(ErrorCode::MethodNotFound));
    }
}
