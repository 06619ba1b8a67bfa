//! The floor: an HTTP server that gives everybody one answer. It reads no request beyond its framing.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// A server on a free port of the loopback interface. It serves until it is stopped.
#[derive(Debug)]
pub(super) struct Bare {
    local_addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Bare {
    /// Serves `answer` to whatever is asked.
    pub(super) async fn start(answer: Bytes) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let local_addr = listener.local_addr()?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let accepting = accept(listener, answer, stop.clone(), tasks.clone());
        tasks.spawn(stop.clone().run_until_cancelled_owned(accepting));
        tasks.close();
        Ok(Self {
            local_addr,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    pub(super) const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Ends it, with its connections.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

async fn accept(listener: TcpListener, answer: Bytes, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let conversation = converse(stream, answer.clone());
                tasks.spawn(stop.clone().run_until_cancelled_owned(conversation));
            }
            // Whoever wanted in tells of it.
            Err(error) => return debug!(%error, "could not accept a connection"),
        }
    }
}

async fn converse(stream: TcpStream, answer: Bytes) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "could not disable Nagle's algorithm");
    }
    let service = service_fn(move |_: hyper::Request<Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(Response::new(Body::from(answer))) }
    });
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        debug!(%error, "a connection broke");
    }
}
