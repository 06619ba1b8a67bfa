//! The strict API under `/v1`: signatures in, problem documents out. Decides nothing: see `Directory`.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use lapwing_base::PeerId;

use super::http;
use super::server::App;
use crate::{ClaimRequest, ConfirmRequest, HintRequest, Leave, NodePage, Refusal, Registration, Signed};

/// The paths under `/v1`.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/nodes", get(nodes).post(register).fallback(no_such_method))
        .route("/v1/nodes/{id}", delete(leave).fallback(no_such_method))
        .route("/v1/cluster", get(cluster).fallback(no_such_method))
        .route("/v1/leader", post(hint).fallback(no_such_method))
        .route("/v1/bootstrap/claim", post(claim).fallback(no_such_method))
        .route("/v1/bootstrap/confirm", post(confirm).fallback(no_such_method))
}

/// Most nodes on one page.
const LIMIT_MAX: usize = 1000;
/// Nodes on a page when nothing was asked.
const LIMIT: usize = 100;
/// Longest long poll, in seconds: below the minute after which middleboxes cut silent connections.
const WAIT_SECONDS_MAX: u64 = 50;

/// The answer on a path that does not exist.
pub(super) fn no_such_path() -> Response {
    http::problem(&Refusal::NoSuchPath)
}

async fn no_such_method() -> Failure {
    Failure(Refusal::NoSuchMethod)
}

async fn register(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let signed: Signed<Registration> = http::read_json(request, app.request_timeout).await?;
    let registration = signed.verify()?;
    let answer = app
        .keeper
        .settled(|directory, now| directory.register(registration, now));
    Ok(http::json(StatusCode::OK, &answer.await??))
}

async fn leave(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let signed: Signed<Leave> = http::read_json(request, app.request_timeout).await?;
    let leave = signed.verify()?;
    if id.parse::<PeerId>().ok() != Some(leave.peer_id) {
        return Err(Failure(Refusal::InvalidField {
            field: "peer_id",
            problem: "differs from the path".to_owned(),
        }));
    }
    let answer = app.keeper.settled(|directory, now| directory.leave(&leave, now));
    answer.await??;
    Ok(http::empty(StatusCode::NO_CONTENT))
}

async fn claim(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let signed: Signed<ClaimRequest> = http::read_json(request, app.request_timeout).await?;
    let claim = signed.verify()?;
    let answer = app.keeper.settled(|directory, now| directory.claim(&claim, now));
    Ok(http::json(StatusCode::OK, &answer.await??))
}

async fn confirm(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let signed: Signed<ConfirmRequest> = http::read_json(request, app.request_timeout).await?;
    let confirm = signed.verify()?;
    let answer = app.keeper.settled(|directory, now| {
        Ok::<_, Refusal>((directory.confirm(&confirm)?, directory.summary(now.instant)))
    });
    let ((), summary) = answer.await??;
    Ok(http::json(StatusCode::OK, &summary))
}

async fn hint(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let signed: Signed<HintRequest> = http::read_json(request, app.request_timeout).await?;
    let hint = signed.verify()?;
    let answer = app
        .keeper
        .settled(|directory, now| Ok::<_, Refusal>((directory.hint(&hint)?, directory.summary(now.instant))));
    let ((), summary) = answer.await??;
    Ok(http::json(StatusCode::OK, &summary))
}

async fn cluster(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let summary = app
        .keeper
        .settled(|directory, now| directory.summary(now.instant));
    Ok(http::json(StatusCode::OK, &summary.await?))
}

async fn nodes(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Result<Response, Failure> {
    let query = PageQuery::from_uri(&uri)?;
    if let Some(since) = query.since {
        let mut version = app.keeper.watch_version();
        let moved = version.wait_for(|version| *version != since);
        tokio::select! {
            biased;
            () = app.stop.cancelled() => (),
            _ = moved => (),
            () = tokio::time::sleep(query.wait) => (),
        }
    }
    let answer = app.keeper.settled(|directory, now| {
        let summary = directory.summary(now.instant);
        (directory.page(query.after, query.limit), summary)
    });
    let ((nodes, more), summary) = answer.await?;
    // Weak: the times that nodes were last seen move without it.
    let tag = format!("W/\"{:x}-{}\"", app.start, summary.version);
    let is_known = |value: &HeaderValue| value.to_str().is_ok_and(|known| known.contains(&tag));
    let mut response = if headers.get(header::IF_NONE_MATCH).is_some_and(is_known) {
        http::empty(StatusCode::NOT_MODIFIED)
    } else {
        let last = nodes.last().filter(|_| more);
        let next_cursor = last.map(|node| BASE64_URL_SAFE_NO_PAD.encode(node.peer_id.to_bytes()));
        let page = NodePage {
            summary,
            nodes,
            next_cursor,
        };
        http::json(StatusCode::OK, &page)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// The query of `GET /v1/nodes`.
#[derive(Debug)]
struct PageQuery {
    limit: usize,
    after: Option<PeerId>,
    since: Option<u64>,
    wait: Duration,
}

impl PageQuery {
    fn from_uri(uri: &Uri) -> Result<Self, Refusal> {
        let invalid = |problem: &str| Refusal::InvalidQuery(problem.to_owned());
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Refusal::InvalidQuery(error.to_string()))?;
        let mut this = Self {
            limit: LIMIT,
            after: None,
            since: None,
            wait: Duration::ZERO,
        };
        for (key, value) in pairs {
            match key.as_str() {
                "limit" => {
                    let limit = value.parse().ok();
                    this.limit = limit
                        .filter(|limit| (1..=LIMIT_MAX).contains(limit))
                        .ok_or_else(|| invalid("`limit` must be from 1 to 1000"))?;
                }
                "cursor" => {
                    let bytes = BASE64_URL_SAFE_NO_PAD.decode(&value).ok();
                    let peer = bytes.and_then(|bytes| PeerId::from_bytes(&bytes).ok());
                    this.after = Some(peer.ok_or_else(|| invalid("`cursor` is not one that was given out"))?);
                }
                "since" => {
                    let since = value.parse().ok();
                    this.since = Some(since.ok_or_else(|| invalid("`since` must be a version"))?);
                }
                "wait" => {
                    let seconds = value.strip_suffix('s').unwrap_or(&value).parse::<u64>().ok();
                    let seconds = seconds.ok_or_else(|| invalid("`wait` must be seconds, such as 30s"))?;
                    this.wait = Duration::from_secs(seconds.min(WAIT_SECONDS_MAX));
                }
                _ => return Err(Refusal::InvalidQuery(format!("unknown parameter `{key}`"))),
            }
        }
        Ok(this)
    }
}

/// A refusal as a problem document.
#[derive(Debug)]
struct Failure(Refusal);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        http::problem(&self.0)
    }
}
