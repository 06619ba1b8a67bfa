//! Takes connections of HTTP and hands what they ask to a router. Bounds what one caller can take from others. What a connection
//! becomes that is asked to be something else, whoever has agreed to that has to bound.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Connections at a time: twice the calls that the edge has in hand, so that of more a caller is told, and does not wait.
const CONNECTIONS_MAX: usize = 2_048;

/// In which the head of a request comes, also that of the next one of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a caller may leave its answer unread: then its connection is closed.
#[cfg(target_os = "linux")]
const UNREAD_FOR: Duration = Duration::from_secs(15);

/// Bytes of a head, cookies of a proxy in front included.
const BUFFER_MAX: usize = 64 * 1024;

/// How long requests in hand may take once the server stops.
const DRAIN: Duration = Duration::from_secs(30);

/// Pause after a failed accept: without free file descriptors it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then lets what is in hand end.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let mut is_failing = false;
    loop {
        // Over the bound connections wait in the kernel's queue: idle ones end within the timeout.
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let Some((slot, accepted)) = stop.run_until_cancelled(next).await else {
            break;
        };
        match accepted {
            Ok((stream, _)) => {
                is_failing = false;
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    converse(stream, router, stop).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Told once: without free file descriptors every attempt fails until one is closed.
                if !std::mem::replace(&mut is_failing, true) {
                    warn!(%error, "could not accept a connection");
                }
                stop.run_until_cancelled(tokio::time::sleep(ACCEPT_PAUSE)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// One connection, until its caller or the server ends it.
async fn converse(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Answers are single small writes that somebody waits for.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "could not disable Nagle's algorithm");
    }
    // Elsewhere a caller that never reads keeps its connection.
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_FOR)) {
        debug!(%error, "could not bound how long answers stay unread");
    }
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_MAX);
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(
        builder
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => None,
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
