//! The local admin address of a node: its status, its cluster and its jobs over HTTP, for the command line
//! and for whoever watches. Loopback only by default, and no secret passes through it.
//!
//! It translates: what is asked goes to the rooms, what they say becomes JSON. Errors are
//! `{"error": …, "hint": …}`.

use crate::documents;
use crate::metrics;
use crate::node::{Membership, Phase, Shared};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use lapwing_base::{JobId, NodeId, PeerId, Round, chain};
use lapwing_consensus::State as ClusterState;
use lapwing_consensus::{Applied, Command, ProposeError, ReadError};
use lapwing_federation::HttpConfig;
use lapwing_train::ExternalModel;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A job file is a few hundred bytes; nothing else has a body.
const BODY_MAX: usize = 64 * 1024;

/// Answers until `stop`.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let router = router(shared);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::warn!(%error, "the admin address stopped answering");
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let federated = lapwing_federation::router(shared.federation.clone(), HttpConfig::default());
    Router::new()
        .route("/v1/status", get(status))
        .route("/metrics", get(prometheus))
        .route("/v1/peers/{peer}/tried", get(tried))
        .route("/v1/members", get(members))
        .route("/v1/members/{id}/promote", post(promote))
        .route("/v1/members/{id}/demote", post(demote))
        .route("/v1/members/{id}/remove", post(remove))
        .route("/v1/leader/{id}", post(transfer_leader))
        .route("/v1/snapshot", post(snapshot))
        .route("/v1/leave", post(leave))
        .route("/v1/jobs", get(jobs).post(submit))
        .route("/v1/jobs/{id}", get(job))
        .route("/v1/jobs/{id}/stop", post(stop_job))
        .route("/v1/jobs/{id}/model", get(model))
        .method_not_allowed_fallback(async || {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        // Calls, and what is known of services, at the paths of a relay; it bounds bodies itself.
        .fallback_service(federated)
        .layer(middleware::from_fn_with_state(shared.clone(), only_named_hosts))
        .with_state(shared)
}

/// A page in a browser on this machine could otherwise reach the admin address under a name of its own that
/// resolves to loopback (DNS rebinding): a name must be `localhost`, anything else an address.
async fn only_named_hosts(State(_): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let name = host.map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name));
    let is_safe = match (host, name) {
        (Some(host), Some(name)) => {
            name == "localhost"
                || host.parse::<SocketAddr>().is_ok()
                || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
        }
        _ => true,
    };
    // One that resolves elsewhere says where it is from; no program of ours does.
    if is_safe && !request.headers().contains_key(header::ORIGIN) {
        next.run(request).await
    } else {
        Failure::new(
            StatusCode::FORBIDDEN,
            "the admin address answers to addresses and localhost only, and to no page in a browser",
        )
        .into_response()
    }
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<crate::StatusDocument> {
    Json(shared.status())
}

/// Every address that was tried for a peer, by its number, name or identity.
async fn tried(State(shared): State<Arc<Shared>>, Path(peer): Path<String>) -> Result<Json<Value>, Failure> {
    let (peer, text) = match peer.parse::<PeerId>() {
        Ok(id) => (id, peer),
        Err(_) => {
            let member = shared.member()?;
            let id = find_member(&member, &peer)?;
            let roster = member.consensus.roster().borrow().clone();
            let record = roster.members.get(&id).map(|record| record.peer);
            let left = || Failure::new(StatusCode::NOT_FOUND, format!("{id} has just left"));
            (record.ok_or_else(left)?, peer)
        }
    };
    if peer == shared.network.peer_id() {
        return Err(
            Failure::new(StatusCode::CONFLICT, format!("{text} is this node itself"))
                .hint("ask for another one; see `lapwing peers`"),
        );
    }
    let rows = shared.network.candidates(peer).await;
    let status = shared.status();
    let known = status.network.peers.iter().find(|known| known.peer_id == peer);
    if known.is_none() && rows.is_empty() {
        return Err(Failure::new(
            StatusCode::NOT_FOUND,
            format!("this node knows no peer {text}: it is no member, and has not been dialed"),
        )
        .hint("see `lapwing peers`"));
    }
    Ok(Json(json!({
        "peer_id": peer.to_string(),
        "name": known.and_then(|known| known.name.as_ref()),
        "connected": known.is_some_and(|known| known.path.is_some()),
        "tried": rows,
    })))
}

async fn prometheus(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        metrics::render(&shared.status()),
    )
}

/// Whether an answer must be true now, and not only as of what this node has applied.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Read {
    linearizable: bool,
}

impl Read {
    async fn state(&self, member: &Membership) -> Result<Arc<ClusterState>, Failure> {
        if self.linearizable {
            Ok(member.consensus.linearizable_state().await?)
        } else {
            Ok(member.consensus.state().borrow().clone())
        }
    }

    fn mark(&self, mut document: Value) -> Json<Value> {
        document["read"] = json!(if self.linearizable {
            "linearizable"
        } else {
            "local"
        });
        Json(document)
    }
}

async fn members(
    State(shared): State<Arc<Shared>>,
    Query(read): Query<Read>,
) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    // The read index makes the roster, which is fed from the same state, as fresh as the state.
    let state = read.state(&member).await?;
    let roster = member.consensus.roster().borrow().clone();
    let job = state.running_job().map(|job| &**job);
    Ok(read.mark(documents::members(&roster, job)))
}

async fn jobs(State(shared): State<Arc<Shared>>, Query(read): Query<Read>) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    let state = read.state(&member).await?;
    Ok(read.mark(documents::jobs(&state)))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Since {
    /// Rounds after this one.
    after: u64,
}

async fn job(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(since): Query<Since>,
    Query(read): Query<Read>,
) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    let state = read.state(&member).await?;
    let view = find_job(&state, &id)?;
    let parameters = member.parameters(view);
    Ok(read.mark(documents::job(view, Round(since.after), parameters)))
}

async fn submit(State(shared): State<Arc<Shared>>, body: String) -> Result<Json<Value>, Failure> {
    let mut spec =
        lapwing_train::jobfile::parse(&body).map_err(|error| Failure::of(StatusCode::BAD_REQUEST, &error))?;
    let member = shared.member()?;
    if ExternalModel::named(&spec.model).is_some_and(|model| !model.is_exact()) {
        // All nodes must mean the same one: that of the node which was asked.
        let own = shared.trained.ok_or_else(no_trainer)?;
        spec.model = own.to_string();
    }
    match member.consensus.propose(Command::SubmitJob(spec)).await? {
        Applied::Submitted(id) => Ok(Json(json!({ "id": id.to_string() }))),
        other => Err(unexpected(other)),
    }
}

fn no_trainer() -> Failure {
    let text = "this node has no trainer, and cannot tell which `external` model is meant";
    Failure::new(StatusCode::CONFLICT, text).hint(
        "submit the job at a node that was started with --trainer, or name the model in full, as such a node's log does",
    )
}

async fn stop_job(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    let id = find_job(&member.consensus.state().borrow().clone(), &id)?.id;
    propose(&member, Command::StopJob(id)).await
}

async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let member = shared.member()?;
    let state = member.consensus.state().borrow().clone();
    let view = find_job(&state, &id)?;
    let Some(manifest) = &view.manifest else {
        let text = format!("{} has no consensus model yet: it is {}", view.id, view.phase);
        return Err(Failure::new(StatusCode::CONFLICT, text).hint("wait until the job is finished"));
    };
    let file = lapwing_train::consensus_file(&member.train_dir, view.id);
    let bytes = tokio::fs::read(&file).await.map_err(|_| {
        Failure::new(
            StatusCode::CONFLICT,
            format!("this node does not hold the model of {} yet", view.id),
        )
        .hint(format!(
            "ask one of its holders: {}",
            documents::ids(&manifest.holders).join(", ")
        ))
    })?;
    if !lapwing_train::is_model(&bytes, &manifest.hash) {
        return Err(Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!(
                "{} is damaged: it is not the model whose hash is in the log",
                file.display()
            ),
        )
        .hint(format!(
            "ask another of its holders: {}",
            documents::ids(&manifest.holders).join(", ")
        )));
    }
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/octet-stream"),
    );
    Ok((headers, bytes).into_response())
}

async fn promote(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    let id = find_member(&member, &id)?;
    member.consensus.promote(id).await?;
    Ok(Json(json!({ "id": id.to_string() })))
}

async fn demote(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    let id = find_member(&member, &id)?;
    member.consensus.demote(id).await?;
    Ok(Json(json!({ "id": id.to_string() })))
}

async fn remove(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    let id = find_member(&member, &id)?;
    member.consensus.remove(id).await?;
    Ok(Json(json!({ "id": id.to_string() })))
}

/// How long a voter that was told to lead may take: two elections.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);

async fn transfer_leader(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    let id = find_member(&member, &id)?;
    let mut roster = member.consensus.roster();
    if !roster.borrow_and_update().voters.contains(&id) {
        let text = format!("{id} does not vote, and only a voter can lead");
        return Err(Failure::new(StatusCode::CONFLICT, text).hint(format!(
            "see `lapwing cluster members`, or `lapwing cluster promote {id}`"
        )));
    }
    member.consensus.transfer_leader(id).await?;
    let led = roster.wait_for(|roster| roster.leader == Some(id));
    match tokio::time::timeout(HAND_OVER_PATIENCE, led).await {
        Ok(Ok(_)) => Ok(Json(json!({ "id": id.to_string() }))),
        Ok(Err(_)) | Err(_) => Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{id} was told to lead, but has not begun to within {HAND_OVER_PATIENCE:?}"),
        )
        .hint("see `lapwing cluster members`, and try again")),
    }
}

async fn snapshot(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    member.consensus.snapshot().await?;
    Ok(Json(
        json!({ "applied_index": member.consensus.raft().borrow().applied.0 }),
    ))
}

async fn leave(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, Failure> {
    let member = shared.member()?;
    shared.phase.send_modify(|phase| phase.leaving = true);
    if let Err(error) = member.consensus.leave().await {
        shared.phase.send_modify(|phase| phase.leaving = false);
        return Err(error.into());
    }
    // The answer goes out first; the drain of this server lets it.
    shared.stop.cancel();
    Ok(Json(json!({ "id": member.consensus.id().to_string() })))
}

async fn propose(member: &Membership, command: Command) -> Result<Json<Value>, Failure> {
    match member.consensus.propose(command).await? {
        Applied::Refused(reason) => Err(Failure::of(StatusCode::CONFLICT, &reason)),
        Applied::Joined(_) | Applied::Submitted(_) | Applied::Done => Ok(Json(json!({}))),
    }
}

fn unexpected(applied: Applied) -> Failure {
    match applied {
        Applied::Refused(reason) => Failure::of(StatusCode::CONFLICT, &reason),
        other => Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the log answered {other:?}"),
        ),
    }
}

fn find_job<'a>(state: &'a ClusterState, id: &str) -> Result<&'a Arc<lapwing_base::JobView>, Failure> {
    let unknown = || {
        let known = documents::ids(state.jobs.keys());
        Failure::new(StatusCode::NOT_FOUND, format!("there is no job `{id}`")).hint(match known.is_empty() {
            true => "submit one with `lapwing job submit FILE.toml`".to_owned(),
            false => format!("known jobs: {}", known.join(", ")),
        })
    };
    let parsed: JobId = id.parse().map_err(|_| unknown())?;
    state.jobs.get(&parsed).ok_or_else(unknown)
}

/// `n3`, a peer id, or a name that only one member has.
fn find_member(member: &Membership, text: &str) -> Result<NodeId, Failure> {
    let roster = member.consensus.roster().borrow().clone();
    let by_number = text
        .strip_prefix('n')
        .and_then(|number| number.parse().ok())
        .map(NodeId);
    let by_peer = text
        .parse::<PeerId>()
        .ok()
        .and_then(|peer| roster.by_peer(&peer))
        .map(|found| found.id);
    if let Some(id) = by_number.filter(|id| roster.members.contains_key(id)).or(by_peer) {
        return Ok(id);
    }
    let named: Vec<NodeId> = roster
        .members
        .values()
        .filter(|record| record.name == text)
        .map(|record| record.id)
        .collect();
    match named[..] {
        [id] => Ok(id),
        [] => Err(
            Failure::new(StatusCode::NOT_FOUND, format!("there is no member `{text}`"))
                .hint("see `lapwing cluster members`"),
        ),
        _ => Err(Failure::new(
            StatusCode::CONFLICT,
            format!("several members are called `{text}`"),
        )
        .hint(format!("name one of {}", documents::ids(&named).join(", ")))),
    }
}

impl Shared {
    /// The member part, or the error that a client gets while there is none.
    fn member(&self) -> Result<Arc<Membership>, Failure> {
        let phase = self.phase.borrow();
        let Phase {
            member,
            waiting,
            failed,
            ..
        } = &*phase;
        member.clone().ok_or_else(|| {
            let text = match (failed, waiting) {
                (Some(reason), _) => format!("this node has failed: {reason}"),
                (None, Some(waiting)) => format!("this node is not a member of a cluster yet: {waiting}"),
                (None, None) => "this node is not a member of a cluster yet".to_owned(),
            };
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, text).hint("see `lapwing status`")
        })
    }
}

/// What a client gets when something could not be done.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    error: String,
    hint: Option<String>,
}

impl Failure {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            hint: None,
        }
    }

    fn of(status: StatusCode, error: &dyn std::error::Error) -> Self {
        Self::new(status, chain(error))
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (
            self.status,
            Json(json!({ "error": self.error, "hint": self.hint })),
        )
            .into_response()
    }
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        Self::of(StatusCode::SERVICE_UNAVAILABLE, &error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::of(StatusCode::SERVICE_UNAVAILABLE, &error)
            .hint("ask without `linearizable` for this node's own view")
    }
}
