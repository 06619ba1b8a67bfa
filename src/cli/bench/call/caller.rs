//! Whoever calls, by whatever way: each call says something of the same length, and looks whether it came back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapwing_base::chain;
use lapwing_federation::{
    Call, CallId, Constraint, ErrorCode, Federation, RemoteCall, ServiceName, TraceContext,
};
use serde_json::json;

use super::nats;

/// Makes calls. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// Within the home.
    Home(Arc<HomeCaller>),
    /// By HTTP.
    Http(Arc<HttpCaller>),
    /// Through nats-servers.
    Nats(Arc<nats::Client>),
}

impl Caller {
    /// Makes one call.
    ///
    /// # Errors
    /// Why it was not answered as it should be.
    pub(super) async fn call(&self) -> Result<(), String> {
        match self {
            Self::Home(caller) => caller.call_once().await,
            Self::Http(caller) => caller.call().await,
            Self::Nats(client) => client.request().await,
        }
    }
}

/// Calls through a node of this process.
#[derive(Debug)]
pub(super) struct HomeCaller {
    federation: Federation,
    service: ServiceName,
    method: &'static str,
    arguments: String,
    expected: Result<String, ErrorCode>,
    /// No two calls have the same id, not even of two runs.
    ids_from: u128,
    made: AtomicU64,
}

impl HomeCaller {
    pub(super) fn new(
        federation: Federation,
        service: ServiceName,
        method: &'static str,
        arguments: String,
        expected: Result<String, ErrorCode>,
    ) -> Self {
        Self {
            federation,
            service,
            method,
            arguments,
            expected,
            ids_from: draw(),
            made: AtomicU64::new(0),
        }
    }

    async fn call_once(&self) -> Result<(), String> {
        let outcome = self.call(self.arguments.clone()).await;
        if outcome.as_ref().map_err(|(code, _)| *code) == self.expected.as_ref().map_err(|code| *code) {
            return Ok(());
        }
        Err(match outcome {
            Ok(result) => format!("the answer is wrong: {result}"),
            Err((_, message)) => message,
        })
    }

    /// What comes of a call with these arguments.
    pub(super) async fn call(&self, arguments: String) -> Result<String, (ErrorCode, String)> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let call = Call {
            id: CallId::drawn(self.ids_from.wrapping_add(number.into())),
            address: None,
            target: None,
            service: self.service.clone(),
            method: self.method.to_owned(),
            versions: Constraint::default(),
            resources: BTreeSet::new(),
            arguments: Some(arguments),
            path: Vec::new(),
            links_max: Call::LINKS_MAX,
            remaining_ms: u32::try_from(RemoteCall::TIMEOUT_DEFAULT.as_millis()).unwrap_or(u32::MAX),
            priority: 0,
            is_idempotent: false,
            trace: TraceContext::default(),
            proof: None,
        };
        let outcome = self.federation.call(call).await.outcome;
        outcome.map_err(|failure| (failure.code, failure.message))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "ids of calls are drawn where they are made"
)]
pub(super) fn draw() -> u128 {
    rand::random()
}

/// Calls with JSON-RPC over HTTP, over connections that stay.
#[derive(Debug)]
pub(super) struct HttpCaller {
    client: reqwest::Client,
    url: String,
    body: String,
    expected: String,
}

impl HttpCaller {
    /// Says `text` to the method of a service, by the node whose URL this is.
    pub(super) fn new(client: reqwest::Client, url: &str, service: &str, method: &str, text: &str) -> Self {
        let params = json!({ "service_name": service, "method": method, "args": [text] });
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": params });
        Self {
            client,
            url: format!("{url}/rpc"),
            body: body.to_string(),
            expected: json!(text).to_string(),
        }
    }

    async fn call(&self) -> Result<(), String> {
        let request = self.client.post(&self.url).body(self.body.clone());
        let request = request.header("content-type", "application/json");
        let response = request.send().await.map_err(|error| chain(&error))?;
        let answer = response.text().await.map_err(|error| chain(&error))?;
        if answer.contains(&self.expected) {
            Ok(())
        } else {
            Err(format!("the answer is wrong: {answer}"))
        }
    }
}
