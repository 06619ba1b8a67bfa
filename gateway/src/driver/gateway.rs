//! The gateway as a value: start, address, stop. Everything it serves is elsewhere.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::clock;
use super::keeper::Keeper;
use super::server::{self, App};
use super::store::Store;
use crate::{Directory, Limits};

/// Settings of a gateway. Checked by [`Gateway::start`].
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where to listen; port 0 takes a free one. Default `0.0.0.0:8080`, as older gateways.
    pub listen: SocketAddr,
    /// Where claims, the cluster id, the leader hint and the nodes are kept. An empty directory is a new
    /// lineage. Default `gateway-data` in the current directory.
    pub data_dir: PathBuf,
    /// A node silent for this long has failed. Default 300 s, as older gateways.
    pub node_timeout: Duration,
    /// How often nodes send a heartbeat; three missed make one suspected. Default 30 s.
    pub heartbeat_interval: Duration,
    /// How often silence is looked for; a status changes at most this late. Default 10 s.
    pub cleanup_interval: Duration,
    /// Longest time for a request's head, for its body, for a stalled answer, and for an idle connection.
    /// Default 10 s.
    pub request_timeout: Duration,
    /// Most connections at once; more wait in the kernel's backlog. Default 4,096, about 50 MB at the worst.
    pub max_connections: usize,
    /// Most nodes on each API; more are refused with 503. Default 100,000.
    pub nodes_max: usize,
    /// Refuse to found a cluster until a member has told of one: for restoring a lost gateway. Default false.
    pub no_genesis: bool,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::UNSPECIFIED, 8080).into(),
            data_dir: PathBuf::from("gateway-data"),
            node_timeout: Duration::from_secs(300),
            heartbeat_interval: Duration::from_secs(30),
            cleanup_interval: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            max_connections: 4096,
            nodes_max: 100_000,
            no_genesis: false,
        }
    }
}

/// A gateway could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another program has the address.
    #[error("{addr} is in use: stop the program that listens there, or choose another port with --port")]
    AddressInUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The data directory cannot be created, read or written.
    #[error("cannot use the data directory {}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another gateway runs on the data directory.
    #[error(
        "the data directory {} belongs to a running gateway: stop that one, or choose another with --data-dir",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The file is damaged, or not a gateway's.
    #[error(
        "{} is not a readable gateway file ({problem}): restore it from a copy, or move it away and start with \
         --no-genesis so that no second cluster is founded",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The file is of another version of this program.
    #[error("{} has format {found}, and this version reads format 1: run the version that wrote it", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A setting makes no sense.
    #[error("the setting {setting} must be greater than zero")]
    Setting {
        /// Which.
        setting: &'static str,
    },
}

/// A running gateway.
#[must_use = "a gateway stops when it is dropped"]
#[derive(Debug)]
pub struct Gateway {
    local_addr: SocketAddr,
    /// Ends the server.
    stop: CancellationToken,
    /// Ends the flusher and the sweeper, once the server has answered everybody.
    stop_upkeep: CancellationToken,
    server: TaskTracker,
    upkeep: TaskTracker,
    _on_drop: [DropGuard; 2],
}

impl Gateway {
    /// Opens the data directory, takes the address and serves, on the current tokio runtime.
    pub async fn start(config: GatewayConfig) -> Result<Self, StartError> {
        check(&config)?;
        let addr = config.listen;
        let listener = TcpListener::bind(addr)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => StartError::AddressInUse { addr },
                _ => StartError::Listen { addr, source },
            })?;
        let local_addr = listener
            .local_addr()
            .map_err(|source| StartError::Listen { addr, source })?;

        let dir = config.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || Store::open(&dir)).await;
        // The engine checks its file with assertions in places: a damaged one can end in a panic there.
        let (store, loaded) = opened.map_err(|error| StartError::Corrupt {
            path: config.data_dir.clone(),
            problem: error.to_string(),
        })??;

        let limits = Limits {
            nodes_max: config.nodes_max,
            node_timeout: config.node_timeout,
            heartbeat_interval: config.heartbeat_interval,
        };
        let now = clock::now();
        let directory = Directory::new(limits, loaded, !config.no_genesis, now.instant);
        let summary = directory.summary(now.instant);
        info!(
            addr = %local_addr,
            data_dir = %config.data_dir.display(),
            lineage = %summary.lineage,
            cluster = ?summary.cluster_id,
            nodes = directory.records().len(),
            "the gateway serves"
        );
        if config.no_genesis && summary.cluster_id.is_none() {
            warn!("claims are refused until a member tells of its cluster (--no-genesis)");
        }

        let (stop, stop_upkeep) = (CancellationToken::new(), CancellationToken::new());
        let keeper = Arc::new(Keeper::new(directory));
        let upkeep = TaskTracker::new();
        upkeep.spawn(Arc::clone(&keeper).flush_until(Arc::new(store), stop_upkeep.clone()));
        upkeep.spawn(Arc::clone(&keeper).sweep_until(config.cleanup_interval, stop_upkeep.clone()));
        upkeep.close();

        let app = Arc::new(App {
            keeper,
            metrics: Default::default(),
            request_timeout: config.request_timeout,
            started_at: now.instant,
            start: clock::draw_start(),
            stop: stop.clone(),
        });
        let server = TaskTracker::new();
        server.spawn(server::serve(listener, app, config.max_connections));
        server.close();
        Ok(Self {
            local_addr,
            _on_drop: [stop.clone().drop_guard(), stop_upkeep.clone().drop_guard()],
            stop,
            stop_upkeep,
            server,
            upkeep,
        })
    }

    /// Where it listens.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops in order: accepts nobody more, answers what is in flight, writes what is left, lets the data
    /// directory go.
    pub async fn stop(self) {
        self.stop.cancel();
        self.server.wait().await;
        self.stop_upkeep.cancel();
        self.upkeep.wait().await;
        info!("the gateway has stopped");
    }
}

fn check(config: &GatewayConfig) -> Result<(), StartError> {
    let settings = [
        ("node_timeout", config.node_timeout.is_zero()),
        ("heartbeat_interval", config.heartbeat_interval.is_zero()),
        ("cleanup_interval", config.cleanup_interval.is_zero()),
        ("request_timeout", config.request_timeout.is_zero()),
        ("max_connections", config.max_connections == 0),
        ("nodes_max", config.nodes_max == 0),
    ];
    match settings.into_iter().find(|(_, is_zero)| *is_zero) {
        Some((setting, _)) => Err(StartError::Setting { setting }),
        None => Ok(()),
    }
}
