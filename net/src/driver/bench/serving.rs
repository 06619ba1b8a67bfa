//! The answering side of a measurement: echoes, takes and gives bytes. It measures nothing.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use libp2p::multiaddr::Protocol;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::floor::FloorServer;
use super::pipe::Pipe;
use super::{BLOCK, BenchError, ECHO_SIZE, failed, kind};
use crate::Gate;
use crate::driver::network::{Network, NetworkConfig};
use crate::driver::now;
use crate::driver::quic::from_multiaddr;
use lapwing_base::{CLASSES, Keypair, Multiaddr, PeerId, Role};

/// What a stream is for, in its first byte.
pub(super) const ECHO: [u8; 1] = [0];
pub(super) const SINK: [u8; 1] = [1];
pub(super) const SOURCE: [u8; 1] = [2];
pub(super) const FLOOR: [u8; 1] = [3];

/// How often a sink tells how much it has.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);

/// A source gives no longer than this to somebody who forgets that it runs.
const SOURCE_TIME_MAX: Duration = Duration::from_secs(600);

/// Streams of one class that may wait to be taken.
const QUEUE: usize = 64;

/// The answering side: a network of ours, and the floors beside it.
#[derive(Debug)]
#[must_use = "it must be shut down"]
pub struct Server {
    network: Network,
    pub(super) floor: FloorServer,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// Listens, and answers whoever comes until it is shut down: it is for measuring, not for staying.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(listen: Multiaddr) -> Result<Self, BenchError> {
        let (address, _) = from_multiaddr(&listen)
            .ok_or("use an address such as /ip4/0.0.0.0/udp/0/quic-v1")
            .map_err(failed("listen"))?;
        let network = start_network(vec![listen], Role::Main).await?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let floor = FloorServer::start((address.ip(), 0).into(), &tasks, &stop).await?;
        let floors = (floor.quic, floor.tcp);
        for class in CLASSES {
            let mut arriving = network.serve(kind(class), QUEUE);
            let serving = tasks.clone();
            // The queue ends when the network stops.
            tasks.spawn(async move {
                while let Some(channel) = arriving.recv().await {
                    serving.spawn(attend(Pipe::channel(channel), Some(floors)));
                }
            });
        }
        Ok(Self {
            network,
            floor,
            tasks,
            stop,
        })
    }

    /// Where it listens, with its identity: what the measuring side is told.
    pub fn addrs(&self) -> Vec<Multiaddr> {
        let listen = self.network.listen_addrs();
        let whole = |address: Multiaddr| address.with(Protocol::P2p(self.network.peer_id()));
        listen.into_iter().map(whole).collect()
    }

    pub(super) fn peer_id(&self) -> PeerId {
        self.network.peer_id()
    }

    /// The socket address of its network.
    pub(super) fn listens(&self) -> Result<SocketAddr, BenchError> {
        let listen = self.network.listen_addrs();
        let first = listen.first().and_then(from_multiaddr);
        first
            .map(|(address, _)| address)
            .ok_or("there is no address")
            .map_err(failed("listen"))
    }

    /// Ends every stream and waits for every task.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.network.shutdown().await;
        self.floor.close().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A network without a cluster, which looks for no way in: who measures knows the address.
pub(super) async fn start_network(listen: Vec<Multiaddr>, role: Role) -> Result<Network, BenchError> {
    let config = NetworkConfig {
        listen,
        role: Some(role),
        maps_port: false,
        finds_neighbours: false,
        ..NetworkConfig::new(Keypair::generate_ed25519())
    };
    // Nobody decides about members: what is measured is open to anyone.
    let (_, gate) = watch::channel(Gate::default());
    Network::start(config, gate)
        .await
        .map_err(failed("start the network"))
}

/// Answers one stream to its end.
pub(super) async fn attend(mut pipe: Pipe, floors: Option<(SocketAddr, SocketAddr)>) {
    // Errors are the other side's to report: it measures.
    let _ = match pipe.inn.take().await {
        Ok(Some(ECHO)) => echo(&mut pipe).await,
        Ok(Some(SINK)) => sink(&mut pipe).await,
        Ok(Some(SOURCE)) => source(&mut pipe).await,
        Ok(Some(FLOOR)) => match floors {
            Some((quic, tcp)) => tell_floors(&mut pipe, quic, tcp).await,
            None => Ok(()),
        },
        Ok(_) | Err(_) => Ok(()),
    };
}

async fn echo(pipe: &mut Pipe) -> Result<(), BenchError> {
    while let Some(message) = pipe.inn.take::<ECHO_SIZE>().await? {
        pipe.out.send(&message).await?;
    }
    pipe.out.finish().await
}

async fn sink(pipe: &mut Pipe) -> Result<(), BenchError> {
    let mut total = 0_u64;
    let mut report_at = now();
    while let Some(size) = pipe.inn.drain().await? {
        total += size;
        let now = now();
        if now >= report_at {
            report_at = now + REPORT_INTERVAL;
            pipe.out.send(&total.to_le_bytes()).await?;
        }
    }
    pipe.out.finish().await
}

async fn source(pipe: &mut Pipe) -> Result<(), BenchError> {
    let block = Bytes::from(vec![0x5a; BLOCK]);
    let until = now() + SOURCE_TIME_MAX;
    while now() < until {
        pipe.out.send_block(&block).await?;
    }
    pipe.out.finish().await
}

async fn tell_floors(pipe: &mut Pipe, quic: SocketAddr, tcp: SocketAddr) -> Result<(), BenchError> {
    let [quic, tcp] = [quic.port(), tcp.port()].map(u16::to_le_bytes);
    pipe.out.send(&[quic[0], quic[1], tcp[0], tcp[1]]).await?;
    pipe.out.finish().await
}
