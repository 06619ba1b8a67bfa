//! What every node answers about the federation itself, under a name that no service has. It is announced nowhere: whoever calls
//! it names the node, or means the one that it asks, or the main of that where it is a home, which knows more.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use lapwing_base::Role;
use rand::RngExt as _;
use serde_json::Value;

use super::backend::{Backend, Invocation};
use super::documents::Page;
use super::{Federation, Inner};
use crate::{Call, CallError, CallId, ErrorCode, TraceContext};

/// Nobody else's: services are not offered under this name.
pub(super) const NAME: &str = "federation";

/// In which a main answers what it knows.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers from a node's own tables: `services` with `limit` and `page_token`, and `list_peers`.
pub(super) struct Catalog(Weak<Inner>);

impl Catalog {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(inner))
    }

    fn answer(&self, invocation: &Invocation) -> Result<String, CallError> {
        let inner = self.0.upgrade();
        let inner = inner.ok_or_else(|| CallError::new(ErrorCode::Internal, "the node has stopped"))?;
        let document = match invocation.method.as_str() {
            "services" => {
                let text = invocation.arguments.as_deref().unwrap_or("{}");
                let wrong = |error| {
                    let said = format!("`services` takes `limit` and `page_token` by name: {error}");
                    CallError::new(ErrorCode::InvalidParams, said)
                };
                let page: Page = serde_json::from_str(text).map_err(wrong)?;
                inner.catalog_document(&page)
            }
            "list_peers" | "cluster_map" => inner.peers_document(),
            other => {
                let said = format!("`{NAME}` has no method `{other}`; there are `services` and `list_peers`");
                return Err(CallError::new(ErrorCode::MethodNotFound, said));
            }
        };
        Ok(document.to_string())
    }
}

impl Backend for Catalog {
    fn call(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, Result<String, CallError>> {
        std::future::ready(self.answer(&invocation)).boxed()
    }
}

impl Federation {
    /// Everything that is callable from here: a home asks its main, which knows more. A page at a time.
    ///
    /// # Errors
    /// When the main does not answer.
    pub(super) async fn catalog(&self, page: &Page) -> Result<Value, CallError> {
        let inner = &self.inner;
        let (uplink, id) = {
            let mut state = inner.lock();
            (state.uplink, CallId::drawn(state.rng.random()))
        };
        let Some(main) = uplink.filter(|_| inner.role() == Role::Home) else {
            return Ok(inner.catalog_document(page));
        };
        let unnamed = || CallError::new(ErrorCode::Internal, "the catalog has no name");
        let call = Call {
            id,
            address: None,
            target: Some(main),
            service: NAME.parse().map_err(|_| unnamed())?,
            method: "services".to_owned(),
            versions: "".parse().map_err(|_| unnamed())?,
            resources: [].into(),
            arguments: Some(page.document().to_string()),
            path: Vec::new(),
            links_max: Call::LINKS_MAX,
            remaining_ms: u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX),
            priority: 0,
            is_idempotent: true,
            trace: TraceContext::default(),
            proof: None,
        };
        let answer = self.call(call).await.outcome.map_err(CallError::from)?;
        let unreadable = |_| {
            CallError::new(
                ErrorCode::MalformedMessage,
                "a main has answered what is no catalog",
            )
        };
        serde_json::from_str(&answer).map_err(unreadable)
    }
}
