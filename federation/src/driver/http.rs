//! The edge over HTTP: JSON-RPC at `/rpc`, and documents for people, load balancers and Prometheus. Knows paths, headers and
//! bounds; what is said is in [`super::documents`] and [`super::edge`].
//!
//! Errors beside `/rpc` are `{"error": …, "hint": …}`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt as _;
use lapwing_base::PeerId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tracing::debug;

use super::documents::{Health, Page, Scope};
use super::edge::Headers;
use super::http_server::Unwritten;
use super::metrics::EdgeNumbers;
use super::results::Share;
use super::{Federation, calls, compat};
use crate::call::TRACE_STATE_MAX;
use crate::json_rpc::{Answer, Id, Incoming, Reply};
use crate::{CallError, ErrorCode, MainAddress, NodeAddress, Token, TraceParent};

/// What the edge may do beside answering.
#[derive(Clone, Debug, Default)]
pub struct HttpConfig {
    /// Where it puts what callers want to change of this node's mains. Default: nowhere, and they are told that they may not:
    /// whoever can reach the edge could connect the node with anybody.
    pub peer_changes: Option<mpsc::Sender<PeerChange>>,
}

/// A caller of the edge wants other mains.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PeerChange {
    /// One more.
    Add {
        /// Who it is to be; `None` where that is whoever is found there.
        node: Option<NodeAddress>,
        /// Where it is, as it was sent: a URL or a multiaddr, of visible ASCII and at most 1024 bytes.
        address: String,
    },
    /// One less.
    Remove {
        /// Which.
        node: PeerId,
    },
}

/// What every request can reach.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) federation: Federation,
    peer_changes: Option<mpsc::Sender<PeerChange>>,
    calls: Semaphore,
    documents: Semaphore,
    /// Places for WebSockets.
    pub(super) sockets: Arc<Semaphore>,
    refused: AtomicU64,
}

/// Requests to `/rpc` in hand: as many as calls that a node has.
const CALLS_MAX: usize = calls::IN_HAND_MAX;

/// Other requests in hand: they are quick, but for bodies that come slowly. Calls do not keep them out.
const DOCUMENTS_MAX: usize = 100;

/// In which the body of a request comes.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// Of a request that changes something.
const CHANGE_MAX: usize = 16 * 1024;

/// How often longer than it may be a body is read and dropped, so that its sender reads the refusal and not a reset.
const DROPPED_TIMES: usize = 4;

/// Of an address in a [`PeerChange`].
const ADDRESS_MAX: usize = 1024;

/// Of an `X-Request-Id`, as of a call's `message_id`.
const REQUEST_ID_MAX: usize = 128;

/// When to try again where there is too much to do.
const BUSY_FOR: Duration = Duration::from_secs(1);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");

/// The paths of a node's edge. Serve them with [`super::serve`], or among others.
pub fn router(federation: Federation, config: HttpConfig) -> Router {
    routes(Edge {
        federation,
        peer_changes: config.peer_changes,
        calls: Semaphore::new(CALLS_MAX),
        documents: Semaphore::new(DOCUMENTS_MAX),
        sockets: Arc::new(Semaphore::new(compat::SOCKETS_MAX)),
        refused: AtomicU64::new(0),
    })
}

fn routes(edge: Edge) -> Router {
    let edge = Arc::new(edge);
    let rpc = MethodRouter::new()
        .post(rpc)
        .options(async || StatusCode::OK)
        .fallback(rpc_by_another_method)
        .layer(middleware::map_response(with_cors));
    let documents = Router::new()
        .route("/registry", get(local_registry))
        .route("/registry/servers", get(servers))
        .route("/registry/peers", get(peers))
        .route("/registry/health", get(health))
        .route("/registry/peers/add", post(add_peer))
        .route("/registry/peers/remove", delete(remove_peer))
        .route("/federation/registry", get(federated_registry))
        .route("/federation/services", get(catalog))
        .route("/federation/peers", get(peers))
        .route("/federation/peers/add", post(add_peer))
        .route("/federation/peers/remove", delete(remove_peer))
        .route("/federation/health", get(federation_health))
        .route("/federation/identity", get(identity))
        .route("/services", get(services))
        .route("/info", get(info))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&edge), in_hand));
    // Whoever asks whether the node lives is answered whatever else it has to do.
    documents
        .route("/health", get(health))
        .route("/ready", get(ready))
        // Each has bounds of its own.
        .route("/ws/p2p", get(compat::upgrade))
        .route("/ws/federation", get(compat::upgrade))
        .route("/ws/peers", get(compat::upgrade))
        .route("/live", get(async || Json(json!({ "status": "alive" }))))
        .fallback(async || Failure::new(StatusCode::NOT_FOUND, "there is nothing at this path").hint(PATHS))
        .method_not_allowed_fallback(async || {
            let said = "this path takes another method";
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, said)
                .hint("the header `Allow` names those that it takes")
        })
        .route("/rpc", rpc)
        .with_state(edge)
}

const PATHS: &str = "see /info for the paths that there are";

/// Of `/info`.
const ENDPOINTS: [&str; 23] = [
    "POST /rpc",
    "GET /registry",
    "GET /services",
    "GET /info",
    "GET /health",
    "GET /ready",
    "GET /live",
    "GET /metrics",
    "GET /federation/registry",
    "GET /federation/services",
    "GET /federation/peers",
    "GET /federation/health",
    "GET /federation/identity",
    "POST /federation/peers/add",
    "DELETE /federation/peers/remove",
    "GET /registry/servers",
    "GET /registry/peers",
    "GET /registry/health",
    "POST /registry/peers/add",
    "DELETE /registry/peers/remove",
    "GET /ws/p2p",
    "GET /ws/federation",
    "GET /ws/peers",
];

// JSON-RPC.

async fn rpc(State(edge): State<Arc<Edge>>, headers: HeaderMap, body: Body) -> Response {
    let asked = edge.asked(&headers);
    let (reply, share) = match edge.rpc(&asked, body).await {
        Ok((reply, share)) => (reply, Some(share)),
        Err(refused) => (refused, None),
    };
    replied(reply, share, &asked)
}

async fn rpc_by_another_method(State(edge): State<Arc<Edge>>, headers: HeaderMap) -> Response {
    let asked = edge.asked(&headers);
    let error = CallError::new(ErrorCode::InvalidRequest, "requests of JSON-RPC are posted");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut response = replied(edge.failed(error, status, &asked), None, &asked);
    let allowed = HeaderValue::from_static("POST, OPTIONS");
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

/// A page in a browser may call from anywhere.
async fn with_cors(mut response: Response) -> Response {
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Content-Type, Authorization",
        ),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// An answer that is being written, with what it has of results.
#[derive(Debug)]
struct Written {
    text: String,
    _share: Option<Arc<Share>>,
}

impl AsRef<[u8]> for Written {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// What came with a request, and what goes back with its answer.
#[derive(Debug)]
struct Asked {
    trace: TraceParent,
    /// Whether that was drawn here.
    is_root: bool,
    token: Option<Token>,
    trace_state: Option<String>,
    request_id: String,
}

/// What the caller of a request says that it knows. What is none proves nothing, and a service that asks for one says so.
pub(super) fn token(headers: &HeaderMap) -> Option<Token> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    Token::new(text.strip_prefix("Bearer ")?).ok()
}

impl Edge {
    /// A trace is begun where none was sent, and then it is what the request is known by too.
    fn asked(&self, headers: &HeaderMap) -> Asked {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let given: Option<TraceParent> = text(TRACE_PARENT).and_then(|text| text.parse().ok());
        let trace = given.unwrap_or_else(|| self.federation.inner.begin_trace());
        let states: Option<Vec<&str>> = headers
            .get_all(TRACE_STATE)
            .iter()
            .map(|value| value.to_str().ok())
            .collect();
        let trace_state = states.filter(|states| given.is_some() && !states.is_empty());
        let is_id = |text: &&str| {
            (1..=REQUEST_ID_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let request_id = text(REQUEST_ID).filter(is_id);
        Asked {
            is_root: given.is_none(),
            token: token(headers),
            trace,
            trace_state: trace_state
                .map(|states| states.join(","))
                .filter(|state| state.len() <= TRACE_STATE_MAX),
            request_id: request_id.map_or_else(|| trace.trace_id(), str::to_owned),
        }
    }

    /// A place among the requests that call, for as long as one is in hand.
    ///
    /// # Errors
    /// When there are too many, which is counted.
    pub(super) fn seat(&self) -> Result<SemaphorePermit<'_>, CallError> {
        self.calls.try_acquire().map_err(|_| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let said = "this node has as many requests in hand as it takes";
            CallError::new(ErrorCode::Overloaded, said).with_retry_after(BUSY_FOR)
        })
    }

    /// # Errors
    /// The answer to a request that was not read.
    async fn rpc(&self, asked: &Asked, body: Body) -> Result<(Reply, Share), Reply> {
        let _seat = match self.seat() {
            Ok(seat) => seat,
            Err(error) => return Err(self.failed(error, StatusCode::OK, asked)),
        };
        let body = match read(body, Incoming::BODY_MAX, BODY_TIMEOUT).await {
            Ok(body) => body,
            Err(error @ BodyError::TooLong { .. }) => {
                let error = CallError::new(ErrorCode::PayloadTooLarge, error.to_string());
                return Err(self.failed(error, StatusCode::PAYLOAD_TOO_LARGE, asked));
            }
            Err(error @ BodyError::TooSlow) => {
                let error = CallError::new(ErrorCode::Timeout, error.to_string());
                return Err(self.failed(error, StatusCode::REQUEST_TIMEOUT, asked));
            }
            Err(error @ BodyError::Broken) => {
                let error = CallError::new(ErrorCode::ParseError, error.to_string());
                return Err(self.failed(error, StatusCode::BAD_REQUEST, asked));
            }
        };
        let headers = Headers {
            trace_parent: Some(asked.trace.to_string()),
            is_root: asked.is_root,
            token: asked.token.clone(),
            trace_state: asked.trace_state.clone(),
            request_id: Some(asked.request_id.clone()),
        };
        Ok(self.federation.answer_with_share(&body, &headers).await)
    }

    /// The answer to a request that was not read.
    fn failed(&self, error: CallError, status: StatusCode, asked: &Asked) -> Reply {
        let inner = &self.federation.inner;
        inner.lock().counts.on_request(Some(error.code));
        let (trace_id, code) = (asked.trace.trace_id(), error.code.name());
        debug!(request_id = asked.request_id, %trace_id, code, "a request was not read");
        let document = error.document(inner.me, &[], &trace_id);
        Reply {
            status: status.as_u16(),
            ..Reply::single(Some(Answer::error(Id::NULL, document)))
        }
    }

    fn numbers(&self) -> EdgeNumbers {
        EdgeNumbers {
            in_hand: CALLS_MAX.saturating_sub(self.calls.available_permits()),
            refused: self.refused.load(Ordering::Relaxed),
            sockets: compat::SOCKETS_MAX.saturating_sub(self.sockets.available_permits()),
        }
    }
}

fn replied(reply: Reply, share: Option<Share>, asked: &Asked) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match reply.body {
        Some(text) => {
            let share = share.map(Arc::new);
            let unwritten = share.as_ref().map(Unwritten::new);
            let body = Bytes::from_owner(Written { text, _share: share });
            let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
            if let Some(unwritten) = unwritten {
                response.extensions_mut().insert(unwritten);
            }
            response
        }
        None => Response::new(Body::empty()),
    };
    *response.status_mut() = status;
    if status == StatusCode::REQUEST_TIMEOUT {
        // The rest of the body is not read.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    let request_id = reply.message_id.unwrap_or_else(|| asked.request_id.clone());
    for (name, text) in [
        (REQUEST_ID, Some(request_id)),
        (TRACE_PARENT, Some(asked.trace.to_string())),
        (TRACE_STATE, asked.trace_state.clone()),
    ] {
        if let Some(text) = text
            && let Ok(value) = HeaderValue::try_from(text)
        {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

// Documents.

type Paged = Result<Query<Page>, QueryRejection>;

/// Which part of a registry is wanted.
fn page(paged: Paged) -> Result<Page, Failure> {
    let Query(page) = paged.map_err(|rejected| {
        Failure::new(StatusCode::BAD_REQUEST, rejected.body_text())
            .hint("`limit` is a number from 1 on, and `page_token` is what `next_page_token` was")
    })?;
    Ok(page)
}

async fn local_registry(State(edge): State<Arc<Edge>>, paged: Paged) -> Result<Json<Value>, Failure> {
    let page = page(paged)?;
    Ok(Json(edge.federation.inner.registry_document(Scope::Local, &page)))
}

async fn federated_registry(State(edge): State<Arc<Edge>>, paged: Paged) -> Result<Json<Value>, Failure> {
    let page = page(paged)?;
    Ok(Json(
        edge.federation.inner.registry_document(Scope::Federated, &page),
    ))
}

/// All that is callable from here: a home asks its main.
async fn catalog(State(edge): State<Arc<Edge>>, paged: Paged) -> Result<Json<Value>, Failure> {
    let answered = edge.federation.catalog(&page(paged)?).await;
    let failed = |error: CallError| {
        let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::BAD_GATEWAY);
        Failure::new(status, error.message).hint("ask the main itself, or again in a moment")
    };
    answered.map(Json).map_err(failed)
}

/// The part of `/registry` that has the services.
async fn servers(State(edge): State<Arc<Edge>>, paged: Paged) -> Result<Json<Value>, Failure> {
    let mut document = edge
        .federation
        .inner
        .registry_document(Scope::Local, &page(paged)?);
    if let Some(members) = document.as_object_mut() {
        members.remove("peers");
    }
    Ok(Json(document))
}

async fn peers(State(edge): State<Arc<Edge>>) -> Json<Value> {
    Json(edge.federation.inner.peers_document())
}

async fn services(State(edge): State<Arc<Edge>>) -> Json<Value> {
    Json(edge.federation.inner.services_document())
}

async fn identity(State(edge): State<Arc<Edge>>) -> Json<Value> {
    Json(edge.federation.inner.identity_document())
}

async fn info(State(edge): State<Arc<Edge>>) -> Json<Value> {
    let mut document = edge.federation.inner.identity_document();
    document["node_id"] = document["peer_id"].clone();
    document["endpoints"] = json!(ENDPOINTS);
    document["methods"] = json!(["remote_call", "request", "echo", "echos", "SERVICE.METHOD"]);
    Json(document)
}

async fn federation_health(State(edge): State<Arc<Edge>>) -> Response {
    let (health, document) = edge.federation.inner.health_document();
    (status_of(health), Json(document)).into_response()
}

async fn health(State(edge): State<Arc<Edge>>) -> Response {
    let (health, document) = edge.federation.inner.node_health_document();
    (status_of(health), Json(document)).into_response()
}

async fn ready(State(edge): State<Arc<Edge>>) -> Response {
    let status = status_of(edge.federation.inner.health());
    let is_ready = status == StatusCode::OK;
    (status, Json(json!({ "ready": is_ready }))).into_response()
}

/// Whoever spreads requests over nodes goes by this alone. A main without another still reaches its homes.
fn status_of(health: Health) -> StatusCode {
    match health {
        Health::Healthy | Health::Degraded => StatusCode::OK,
        Health::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn metrics(State(edge): State<Arc<Edge>>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        edge.federation.metrics_text(edge.numbers()),
    )
}

/// Bounds the requests for documents that are in hand.
async fn in_hand(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let Ok(_seat) = edge.documents.try_acquire() else {
        edge.refused.fetch_add(1, Ordering::Relaxed);
        let said = "this node has as many requests in hand as it takes";
        return Failure::new(StatusCode::SERVICE_UNAVAILABLE, said)
            .hint("try again in a second")
            .into_response();
    };
    next.run(request).await
}

// Changes.

#[derive(Debug, Deserialize)]
struct AddPeer {
    node_id: Option<String>,
    #[serde(alias = "url")]
    address: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RemovePeer {
    node_id: String,
}

async fn add_peer(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, Failure> {
    let changes = edge.changes()?;
    let AddPeer { node_id, address } = read_json(request).await?;
    let wrong = |text: &str| Failure::new(StatusCode::BAD_REQUEST, text);
    let is_address = |text: &String| {
        (1..=ADDRESS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let address = address.filter(is_address).ok_or_else(|| {
        wrong("`address` is required, as a text of up to 1024 visible characters of ASCII")
            .hint("a URL as `http://relay-b.example:8080`, or a multiaddr")
    })?;
    // What the domain name system has is looked up later.
    if !address.starts_with("srv:") {
        let read = address.parse::<MainAddress>();
        read.map_err(|error| {
            wrong(&error.to_string())
                .hint("a URL as `http://relay-b.example:8080`, or a multiaddr with `/p2p/` and a peer id at its end")
        })?;
    }
    let node = node_id.map(|text| text.parse::<NodeAddress>()).transpose();
    let node = node.map_err(|error| wrong(&format!("invalid `node_id`: {error}")))?;
    put(changes, PeerChange::Add { node, address })
}

async fn remove_peer(State(edge): State<Arc<Edge>>, request: Request) -> Result<Response, Failure> {
    let changes = edge.changes()?;
    let RemovePeer { node_id } = read_json(request).await?;
    let mains = edge.federation.inner.mains();
    let node = edge.federation.locate(&node_id);
    let node = node.filter(|node| mains.iter().any(|main| main.peer == *node));
    let node = node.ok_or_else(|| {
        Failure::new(StatusCode::NOT_FOUND, "no main of this node has this `node_id`")
            .hint("see /federation/peers for those that it has")
    })?;
    put(changes, PeerChange::Remove { node })
}

fn put(changes: &mpsc::Sender<PeerChange>, change: PeerChange) -> Result<Response, Failure> {
    changes.try_send(change).map_err(|_| {
        let said = "another change is under way";
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, said).hint("try again in a second")
    })?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "status": "accepted" }))).into_response())
}

impl Edge {
    fn changes(&self) -> Result<&mpsc::Sender<PeerChange>, Failure> {
        self.peer_changes.as_ref().ok_or_else(|| {
            let said = "this node does not take other mains over HTTP";
            Failure::new(StatusCode::FORBIDDEN, said).hint("name them where the node is started")
        })
    }
}

impl Federation {
    /// Who is meant by a peer id or a name.
    fn locate(&self, text: &str) -> Option<PeerId> {
        if let Ok(peer) = text.parse() {
            return Some(peer);
        }
        let address: NodeAddress = text.parse().ok()?;
        self.inner.lock().registry.locate(&address).ok()
    }
}

// Bodies and failures.

/// A body was not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum BodyError {
    #[error("the body has more than the {max} bytes that are taken")]
    TooLong { max: usize },
    #[error("the body has not come in time")]
    TooSlow,
    #[error("the body broke off")]
    Broken,
}

async fn read(body: Body, max: usize, timeout: Duration) -> Result<Vec<u8>, BodyError> {
    let mut chunks = body.into_data_stream();
    let reading = async {
        let (mut body, mut length) = (Vec::new(), 0);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|_| BodyError::Broken)?;
            length += chunk.len();
            if length > max.saturating_mul(DROPPED_TIMES) {
                break;
            }
            if length <= max {
                body.extend_from_slice(&chunk);
            } else {
                body = Vec::new();
            }
        }
        match length <= max {
            true => Ok(body),
            false => Err(BodyError::TooLong { max }),
        }
    };
    let read = tokio::time::timeout(timeout, reading).await;
    read.unwrap_or(Err(BodyError::TooSlow))
}

/// A page in a browser cannot send JSON to another host unasked, so that it changes nothing here.
async fn read_json<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    let declared = request.headers().get(header::CONTENT_TYPE);
    let declared = declared.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let said = "the body is to be JSON";
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, said)
            .hint("send it with `Content-Type: application/json`"));
    }
    let body = read(request.into_body(), CHANGE_MAX, BODY_TIMEOUT).await;
    let body = body.map_err(|error| {
        let status = match error {
            BodyError::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            BodyError::Broken => StatusCode::BAD_REQUEST,
        };
        Failure::new(status, error.to_string())
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        Failure::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not what is asked for: {error}"),
        )
    })
}

/// What a caller gets when something could not be done.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    error: String,
    hint: Option<&'static str>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            hint: None,
        }
    }

    pub(super) fn hint(self, hint: &'static str) -> Self {
        Self {
            hint: Some(hint),
            ..self
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let document = json!({ "error": self.error, "hint": self.hint });
        let mut response = (self.status, Json(document)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let after = HeaderValue::from(BUSY_FOR.as_secs());
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::Method;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use lapwing_base::Role;

    use super::*;
    use crate::driver::documents::tests::Alone;

    #[tokio::test]
    async fn what_is_not_there_or_not_taken_is_told_as_json() {
        let (alone, routes) = (Alone::start(Role::Main).await, routes);
        let edge = || edge(&alone, None);
        let (status, _, document) = asked(routes(edge()), Method::GET, "/nothing", None).await;
        assert_eq!(status, 404);
        assert!(
            document["error"].is_string() && document["hint"].is_string(),
            "{document}"
        );
        let (status, headers, document) = asked(routes(edge()), Method::PUT, "/registry", None).await;
        assert_eq!((status, &headers["allow"]), (405, &"GET,HEAD".parse().unwrap()));
        assert!(document["error"].is_string());
        for (query, expected) in [("limit=x", 400), ("limit=0", 400), ("limit=1&page_token=", 200)] {
            let path = format!("/registry?{query}");
            let (status, _, document) = asked(routes(edge()), Method::GET, &path, None).await;
            assert_eq!(status, expected, "{document}");
        }
        alone.stop().await;
    }

    #[tokio::test]
    async fn who_does_not_post_is_told_so_by_an_error_of_json_rpc_that_any_page_may_read() {
        let alone = Alone::start(Role::Main).await;
        for (method, status) in [(Method::GET, 405), (Method::PUT, 405), (Method::OPTIONS, 200)] {
            let answer = asked(routes(edge(&alone, None)), method, "/rpc", None).await;
            assert_eq!(answer.0, status);
            assert_eq!(answer.1["access-control-allow-origin"], "*");
            assert_eq!(answer.1["access-control-allow-methods"], "POST, GET, OPTIONS");
            assert_eq!(
                answer.1["access-control-allow-headers"],
                "Content-Type, Authorization"
            );
            if status == 405 {
                assert_eq!(answer.2["error"]["code"], -32600);
                assert_eq!(answer.2["id"], Value::Null);
            }
        }
        alone.stop().await;
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_too_slow_or_broken_is_refused() {
        let alone = Alone::start(Role::Main).await;
        for length in [Incoming::BODY_MAX + 1, DROPPED_TIMES * Incoming::BODY_MAX + 1] {
            let body = "x".repeat(length);
            let answer = asked(routes(edge(&alone, None)), Method::POST, "/rpc", Some(body)).await;
            assert_eq!((answer.0, &answer.2["error"]["code"]), (413, &json!(-32014)));
        }
        let never = futures::stream::pending::<Result<Bytes, std::io::Error>>();
        let never = read(Body::from_stream(never), 10, Duration::ZERO).await;
        assert_eq!(never, Err(BodyError::TooSlow));
        let begun = Ok(Bytes::from_static(b"["));
        let broken = futures::stream::iter([begun, Err(std::io::Error::other("gone"))]);
        let broken = read(Body::from_stream(broken), 10, BODY_TIMEOUT).await;
        assert_eq!(broken, Err(BodyError::Broken));
        alone.stop().await;
    }

    #[tokio::test]
    async fn where_there_is_too_much_to_do_that_is_told_and_whether_it_lives_too() {
        let alone = Alone::start(Role::Main).await;
        let busy = Edge {
            calls: Semaphore::new(0),
            documents: Semaphore::new(0),
            ..edge(&alone, None)
        };
        let router = routes(busy);
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "none.echo"}).to_string();
        let (status, _, answer) = asked(router.clone(), Method::POST, "/rpc", Some(request)).await;
        assert_eq!((status, &answer["error"]["code"]), (200, &json!(-32010)));
        assert_eq!(answer["error"]["data"]["retry_after_ms"], 1000);
        let (status, headers, _) = asked(router.clone(), Method::GET, "/metrics", None).await;
        assert_eq!((status, &headers["retry-after"]), (503, &"1".parse().unwrap()));
        let (status, ..) = asked(router, Method::GET, "/health", None).await;
        assert_eq!(status, 200);
        alone.stop().await;
    }

    #[tokio::test]
    async fn a_home_without_a_main_lives_and_is_not_ready() {
        let alone = Alone::start(Role::Home).await;
        for (path, expected) in [
            ("/live", 200),
            ("/ready", 503),
            ("/health", 503),
            ("/federation/health", 503),
        ] {
            let (status, ..) = asked(routes(edge(&alone, None)), Method::GET, path, None).await;
            assert_eq!(status, expected, "{path}");
        }
        let (_, _, health) = asked(routes(edge(&alone, None)), Method::GET, "/health", None).await;
        assert_eq!(
            (&health["status"], &health["servers"]),
            (&json!("unhealthy"), &json!(0))
        );
        assert!(health["timestamp"].is_string());
        alone.stop().await;
    }

    #[tokio::test]
    async fn other_mains_are_taken_only_where_somebody_takes_them() {
        let alone = Alone::start(Role::Main).await;
        let add = json!({"node_id": "relay-b.com", "address": "http://relay-b.com:8080"}).to_string();
        for path in ["/federation/peers/add", "/registry/peers/add"] {
            let router = routes(edge(&alone, None));
            let (status, _, document) = asked(router, Method::POST, path, Some(add.clone())).await;
            assert_eq!(status, 403);
            assert!(document["error"].is_string() && document["hint"].is_string());
        }
        let (changes, mut taken) = mpsc::channel(1);
        let router = routes(edge(&alone, Some(changes)));
        let post = |body: &str| {
            let path = "/federation/peers/add";
            asked(router.clone(), Method::POST, path, Some(body.to_owned()))
        };
        let too_long = json!({"address": "x".repeat(ADDRESS_MAX + 1)}).to_string();
        for wrong in [
            "",
            "{}",
            "[",
            r#"{"node_id":"a@b@c","address":"x:1"}"#,
            r#"{"address":"ftp://x"}"#,
            r#"{"address":"/ip4/127.0.0.1/udp/1/quic-v1"}"#,
            &too_long,
        ] {
            let (status, _, document) = post(wrong).await;
            assert_eq!(status, 400, "{wrong}: {document}");
        }
        assert_eq!(post(&add).await.0, 202);
        assert_eq!(post(&add).await.0, 503, "nobody has taken the first yet");
        let expected = PeerChange::Add {
            node: Some("relay-b.com".parse().unwrap()),
            address: "http://relay-b.com:8080".to_owned(),
        };
        assert_eq!(taken.try_recv(), Ok(expected));
        let node = PeerId::random();
        let remove = |text: &str| {
            let body = json!({ "node_id": text }).to_string();
            asked(
                router.clone(),
                Method::DELETE,
                "/registry/peers/remove",
                Some(body),
            )
        };
        assert_eq!(remove("nobody").await.0, 404);
        assert_eq!(
            remove(&node.to_string()).await.0,
            404,
            "it is no main of this node"
        );
        alone.name_peer(node);
        assert_eq!(remove(&node.to_string()).await.0, 202);
        assert_eq!(taken.try_recv(), Ok(PeerChange::Remove { node }));
        alone.stop().await;
    }

    #[tokio::test]
    async fn a_request_is_known_by_what_its_caller_says_or_else_by_its_trace() {
        let alone = Alone::start(Role::Main).await;
        let edge = edge(&alone, None);
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let given = |name: HeaderName, text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACE_STATE, HeaderValue::from_static("a=1"));
            headers.append(TRACE_STATE, HeaderValue::from_static("b=2"));
            headers.insert(name, text.parse().unwrap());
            edge.asked(&headers)
        };
        assert_eq!(given(REQUEST_ID, "mine-7").request_id, "mine-7");
        let continued = given(TRACE_PARENT, trace);
        assert_eq!(continued.trace.to_string(), trace);
        assert_eq!(continued.trace_state.as_deref(), Some("a=1,b=2"));
        assert_eq!(continued.request_id, "0af7651916cd43dd8448eb211c80319c");
        for wrong in ["", "a b", &"x".repeat(REQUEST_ID_MAX + 1)] {
            let begun = given(REQUEST_ID, wrong);
            assert_eq!(begun.request_id, begun.trace.trace_id(), "{wrong}");
            assert_eq!(begun.trace_state, None, "it belongs to a trace that was not sent");
        }
        alone.stop().await;
    }

    fn edge(alone: &Alone, peer_changes: Option<mpsc::Sender<PeerChange>>) -> Edge {
        Edge {
            federation: alone.federation.clone(),
            peer_changes,
            calls: Semaphore::new(1),
            documents: Semaphore::new(1),
            sockets: Arc::new(Semaphore::new(1)),
            refused: AtomicU64::new(0),
        }
    }

    /// Status, headers and document of an answer; a body is sent as JSON.
    async fn asked(
        router: Router,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> (u16, HeaderMap, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.map(Body::from).unwrap_or_default())
            .unwrap();
        let response = TowerToHyperService::new(router).call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let document = serde_json::from_slice(&body).unwrap_or_default();
        (head.status.as_u16(), head.headers, document)
    }
}
