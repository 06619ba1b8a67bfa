//! Calls of one relay's edge, and how they end for whoever makes them.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::{Value, json};

/// Speaks HTTP to relays. Each request has a connection of its own, so that none is lost with a relay that was killed in
/// between, and each test with its own runtime may use it.
pub(crate) static HTTP: LazyLock<reqwest::Client> = LazyLock::new(|| {
    // Another test may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .tls_certs_only([])
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()
        .unwrap()
});

/// How long calls of tests wait that do not say otherwise.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Whoever has asked waits so much longer than the relay: a busy machine is late.
const MARGIN: Duration = Duration::from_secs(20);

/// How a call has ended.
#[derive(Clone, Debug)]
#[expect(
    dead_code,
    reason = "what is in it is for messages of assertions, which print all of it"
)]
pub(crate) enum Ended {
    Answered(Value),
    /// With an error of the federation, as JSON-RPC has it.
    Failed(Value),
    /// The relay that was asked is not there, or was killed.
    Gone(String),
    /// Nothing has come, which must never be.
    Silent,
}

/// A call that has ended, and when.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) number: u64,
    pub(crate) begun: Instant,
    pub(crate) took: Duration,
    pub(crate) ended: Ended,
}

impl Ended {
    /// The result, where there has to be one.
    #[track_caller]
    pub(crate) fn result(self) -> Value {
        match self {
            Self::Answered(result) => result,
            other => panic!("the call was not answered: {other:?}"),
        }
    }

    /// The error, where there has to be one.
    #[track_caller]
    pub(crate) fn error(self) -> Value {
        match self {
            Self::Failed(error) => error,
            other => panic!("the call has not failed: {other:?}"),
        }
    }

    /// `ok`, the name of the error, `gone` or `silent`.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Answered(_) => "ok",
            Self::Failed(error) => error["data"]["name"].as_str().unwrap_or("nameless"),
            Self::Gone(_) => "gone",
            Self::Silent => "silent",
        }
    }

    pub(crate) fn is_ok(&self) -> bool {
        matches!(self, Self::Answered(_))
    }
}

/// The edge of one relay.
#[derive(Clone, Debug)]
pub(crate) struct Edge {
    pub(crate) url: String,
}

impl Edge {
    /// Calls a method with `remote_call`.
    pub(crate) async fn call(&self, params: Value) -> Ended {
        let (_, ended) = self.asked(params).await;
        ended
    }

    /// The same, with the whole document that has come.
    pub(crate) async fn asked(&self, mut params: Value) -> (Value, Ended) {
        let seconds = params["timeout"].as_f64().unwrap_or(TIMEOUT.as_secs_f64());
        params["timeout"] = json!(seconds);
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "remote_call", "params": params });
        let asking = async {
            let request = HTTP.post(format!("{}/rpc", self.url)).body(request.to_string());
            request.send().await?.json::<Value>().await
        };
        let answered = tokio::time::timeout(Duration::from_secs_f64(seconds) + MARGIN, asking).await;
        let document = match answered {
            Err(_) => return (Value::Null, Ended::Silent),
            Ok(Err(error)) => return (Value::Null, Ended::Gone(lapwing_base::chain(&error))),
            Ok(Ok(document)) => document,
        };
        let ended = match document.get("error") {
            Some(error) => Ended::Failed(error.clone()),
            None => Ended::Answered(document["result"].clone()),
        };
        (document, ended)
    }

    /// Calls any instance of a service with a number, by which its execution is counted.
    pub(crate) async fn number(&self, service: &str, number: u64, more: &Value) -> Done {
        let mut params = json!({ "service_name": service, "method": "say", "args": [number] });
        for (name, value) in more.as_object().into_iter().flatten() {
            params[name] = value.clone();
        }
        let begun = Instant::now();
        let ended = self.call(params).await;
        Done {
            number,
            begun,
            took: begun.elapsed(),
            ended,
        }
    }

    /// Calls with all of these numbers, so many at a time.
    pub(crate) async fn numbers(
        &self,
        service: &str,
        numbers: impl IntoIterator<Item = u64>,
        at_a_time: usize,
        more: Value,
    ) -> Vec<Done> {
        let calls = numbers
            .into_iter()
            .map(|number| self.number(service, number, &more));
        futures::stream::iter(calls)
            .buffer_unordered(at_a_time)
            .collect()
            .await
    }

    /// What a body is answered: the status, and the document if it is one.
    pub(crate) async fn post(&self, body: impl Into<reqwest::Body>) -> (u16, Value) {
        let response = HTTP.post(format!("{}/rpc", self.url)).body(body).send().await;
        let response = response.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// What a path other than that of calls is asked with a document: the status, and what it answers.
    pub(crate) async fn ask(&self, method: reqwest::Method, path: &str, document: &Value) -> (u16, Value) {
        let request = HTTP.request(method, format!("{}{path}", self.url)).json(document);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// A document of the edge.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, String> {
        let asking = async { HTTP.get(format!("{}{path}", self.url)).send().await?.json().await };
        let answered = tokio::time::timeout(MARGIN, asking).await;
        let answered: reqwest::Result<Value> = answered.map_err(|_| "it does not answer".to_owned())?;
        answered.map_err(|error| lapwing_base::chain(&error))
    }
}

/// How many have ended how, for people and for messages of assertions.
pub(crate) fn tally(done: &[Done]) -> std::collections::BTreeMap<String, usize> {
    let mut counts = std::collections::BTreeMap::new();
    for one in done {
        *counts.entry(one.ended.name().to_owned()).or_default() += 1;
    }
    counts
}
