//! Accepts connections and hands requests to the two APIs. Bounds what one peer can take from others.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::keeper::Keeper;
use super::metrics::Metrics;
use super::patient::Patient;
use super::{http, legacy_api, v1_api};

/// What every request can reach.
#[derive(Debug)]
pub(super) struct App {
    pub(super) keeper: Arc<Keeper>,
    pub(super) metrics: Metrics,
    pub(super) request_timeout: Duration,
    pub(super) started_at: Instant,
    /// Tells this start's entity tags from those of others.
    pub(super) start: u64,
    /// Fires when the gateway stops; long polls end with it.
    pub(super) stop: CancellationToken,
}

/// Largest request head, body chunks included: room for long cookies of a proxy in front.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// How long requests in flight may take once the gateway stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Pause after a failed accept: without free file descriptors it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Both APIs and the paths for operation.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .merge(legacy_api::routes())
        .merge(v1_api::routes())
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(no_such_path)
        .with_state(app)
}

/// Serves until stopped, then drains.
pub(super) async fn serve(listener: TcpListener, app: Arc<App>, connections_max: usize) {
    let router = router(Arc::clone(&app));
    let slots = Arc::new(Semaphore::new(connections_max));
    let connections = TaskTracker::new();
    let stop = app.stop.clone();
    let mut failing = false;
    loop {
        // Over the cap new connections wait in the kernel's backlog: idle ones end within the request timeout.
        let slot = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                failing = false;
                let (router, app) = (router.clone(), Arc::clone(&app));
                connections.spawn(async move {
                    app.metrics.opened();
                    converse(stream, router, &app).await;
                    app.metrics.ended();
                    drop(slot);
                });
            }
            Err(error) => {
                // Told once: without free file descriptors every attempt fails until one is closed.
                if !std::mem::replace(&mut failing, true) {
                    warn!(%error, "could not accept a connection");
                }
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => (),
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// One connection, until the peer or the gateway ends it.
async fn converse(stream: TcpStream, router: Router, app: &Arc<App>) {
    // Answers are single small writes that somebody waits for.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "could not disable Nagle's algorithm");
    }
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move {
            let answer: Result<Response, Infallible> = router.oneshot(request.map(Body::new)).await;
            if let Ok(answer) = &answer {
                app.metrics.answered(answer.status().as_u16());
            }
            answer
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(app.request_timeout)
        .max_buf_size(BUFFER_BYTES_MAX);
    let stream = TokioIo::new(Patient::new(stream, app.request_timeout));
    let mut connection = std::pin::pin!(builder.serve_connection(stream, service));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Some(ended),
        () = app.stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, connection).await {
                Ok(ended) => ended,
                Err(_) => return debug!("a request did not end in time"),
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection broke");
    }
}

/// Each API refuses in its own form.
async fn no_such_path(uri: Uri) -> Response {
    match uri.path().strip_prefix("/v1") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => v1_api::no_such_path(),
        _ => legacy_api::no_such_path(),
    }
}

async fn live() -> Response {
    http::empty(StatusCode::OK)
}

/// Ready while what must be kept can be: the answer comes from state that is on disk.
async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.keeper.settled(|_, _| ()).await {
        Ok(()) if !app.stop.is_cancelled() => http::empty(StatusCode::OK),
        _ => http::empty(StatusCode::SERVICE_UNAVAILABLE),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let page = app
        .keeper
        .apply(|directory, now| app.metrics.render(directory, now));
    let mut response = Response::new(Body::from(page));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
