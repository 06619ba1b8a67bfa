//! The compatible API at the root, as existing clients know it. Decides nothing: see `Registry`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use lapwing_base::Term;
use serde_json::{Map, Value, json};

use super::clock;
use super::http;
use super::server::App;
use crate::{ClusterState, EnterError, FieldError, LeaderUpdate, NodeKey, Profile, Refusal, Status};

/// The paths of the compatible API.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/health", get(health).fallback(no_such_method))
        .route("/register", post(register).fallback(no_such_method))
        .route("/nodes", get(nodes).fallback(no_such_method))
        .route("/leader", get(leader).post(set_leader).fallback(no_such_method))
        .route("/heartbeat", post(heartbeat).fallback(no_such_method))
        .route("/remove", post(remove).fallback(no_such_method))
        .route("/stats", get(stats).fallback(no_such_method))
}

/// The answer on a path that does not exist.
pub(super) fn no_such_path() -> Response {
    error(StatusCode::NOT_FOUND, "not found")
}

async fn no_such_method() -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
}

async fn health() -> Response {
    let body = json!({
        "status": "healthy",
        "timestamp": clock::now().unix,
        "version": env!("CARGO_PKG_VERSION"),
    });
    http::json(StatusCode::OK, &body)
}

async fn register(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let body = read(&app, request).await?;
    let profile = Profile::from_body(&body)?;
    let node_id = profile.node_id.clone();
    let answer = app.keeper.settled(|directory, now| {
        let entrance = directory.enter(profile, now)?;
        Ok::<_, EnterError>(json!({
            "status": if entrance.updated { "updated" } else { "registered" },
            "node_id": node_id,
            "is_bootstrap": entrance.is_bootstrap,
            "registry_version": directory.registry_version(),
            "nodes": directory.legacy_nodes(Some(&node_id)),
            "leader": directory.legacy_leader(),
        }))
    });
    Ok(http::json(StatusCode::OK, &answer.await??))
}

async fn nodes(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Failure> {
    let query =
        Query::<Vec<(String, String)>>::try_from_uri(&uri).map_or_else(|_| Vec::new(), |query| query.0);
    // A wrong id is ignored, as it always was.
    let except = query
        .iter()
        .find(|(key, _)| key == "node_id")
        .and_then(|(_, value)| NodeKey::from_text(value));
    let answer = app.keeper.settled(|directory, _| {
        let nodes = directory.legacy_nodes(except.as_ref());
        (nodes, directory.registry_version())
    });
    let (nodes, version) = answer.await?;
    let body = json!({ "nodes": nodes, "registry_version": version });
    Ok(http::json(StatusCode::OK, &body))
}

async fn leader(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let answer = app
        .keeper
        .settled(|directory, _| (directory.legacy_leader(), directory.registry_version()));
    let (leader, version) = answer.await?;
    let body = match leader {
        Some(leader) => json!({ "leader": leader, "registry_version": version }),
        None => json!({ "leader": null, "message": "No leader currently registered" }),
    };
    Ok(http::json(StatusCode::OK, &body))
}

async fn set_leader(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let body = read(&app, request).await?;
    let key = NodeKey::from_field(&body, "leader_id")?;
    let term = match body.get("term") {
        None | Some(Value::Null) => None,
        Some(term) => Some(Term(term.as_u64().ok_or_else(|| FieldError::Invalid {
            field: "term",
            problem: "must be a whole number".to_owned(),
        })?)),
    };
    let update = app
        .keeper
        .settled(|directory, _| directory.set_leader(&key, term));
    let failed = |message: &str| json!({ "status": "failed", "message": message });
    let body = match update.await? {
        LeaderUpdate::Updated => json!({ "status": "updated", "leader_id": key }),
        LeaderUpdate::NotFound => failed("Leader not found in registry"),
        LeaderUpdate::TermRequired => {
            failed("A leader with a term is known; a newer one must bring its term")
        }
        LeaderUpdate::Stale { known } => {
            let text = format!("the term is older than {known}");
            return Ok(error(StatusCode::CONFLICT, &text));
        }
        LeaderUpdate::Conflict { term } => {
            let text = format!("term {term} already has another leader");
            return Ok(error(StatusCode::CONFLICT, &text));
        }
    };
    Ok(http::json(StatusCode::OK, &body))
}

async fn heartbeat(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let body = read(&app, request).await?;
    let key = NodeKey::from_field(&body, "node_id")?;
    let known = app.keeper.apply(|directory, now| {
        let known = directory.heartbeat(&key, now);
        known.then(|| directory.registry_version())
    });
    let body = match known {
        Some(version) => json!({ "status": "acknowledged", "registry_version": version }),
        None => json!({ "status": "not_found" }),
    };
    Ok(http::json(StatusCode::OK, &body))
}

async fn remove(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let body = read(&app, request).await?;
    let key = NodeKey::from_field(&body, "node_id")?;
    let removed = app.keeper.settled(|directory, _| directory.remove(&key));
    let status = if removed.await? { "removed" } else { "not_found" };
    let body = json!({ "status": status, "node_id": key });
    Ok(http::json(StatusCode::OK, &body))
}

async fn stats(State(app): State<Arc<App>>) -> Result<Response, Failure> {
    let answer = app.keeper.settled(|directory, now| {
        let (own, summary) = (directory.registry().stats(), directory.summary(now.instant));
        let (records, counts) = (directory.records(), directory.counts());
        let leader_id = match &summary.leader {
            Some(leader) => json!(leader.peer_id),
            None => json!(own.leader),
        };
        json!({
            "total_nodes": own.total + records.len(),
            "active_nodes": own.active + records.count(Status::Active),
            "leader_id": leader_id,
            "registry_version": directory.registry_version(),
            "bootstrap_initiated":
                own.bootstrap_initiated || summary.epoch > 0 || summary.cluster != ClusterState::None,
            "uptime": (now.instant - app.started_at).as_secs_f64(),
            "lineage": summary.lineage,
            "cluster": summary.cluster,
            "cluster_id": summary.cluster_id,
            "cluster_size": summary.size,
            "bootstrap_epoch": summary.epoch,
            "term": summary.term,
            "mass_expiry_guard": records.is_guarded() || directory.registry().is_guarded(),
            "cluster_mismatches": counts.cluster_mismatches,
            "conflicting_hints": counts.hints_conflicting,
        })
    });
    Ok(http::json(StatusCode::OK, &answer.await?))
}

/// The body as JSON; an empty one is an empty object. The content type does not matter, as it never did.
async fn read(app: &App, request: Request) -> Result<Value, Failure> {
    let body = http::read_body(request, app.request_timeout).await?;
    if body.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    serde_json::from_slice(&body).map_err(|error| Failure(Refusal::InvalidJson(error.to_string())))
}

/// A refusal in the form of the compatible API.
#[derive(Debug)]
struct Failure(Refusal);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<FieldError> for Failure {
    fn from(error: FieldError) -> Self {
        Self(Refusal::InvalidJson(error.to_string()))
    }
}

impl From<EnterError> for Failure {
    fn from(error: EnterError) -> Self {
        match error {
            EnterError::Field(error) => error.into(),
            EnterError::Full => Self(Refusal::Full),
        }
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        error(status, &self.0.to_string())
    }
}

fn error(status: StatusCode, text: &str) -> Response {
    let body = json!({
        "error": text,
        "status_code": status.as_u16(),
        "timestamp": clock::now().unix,
    });
    http::json(status, &body)
}
