//! The answering side of a measurement: echoes, takes and gives bytes, to one who measures at a time, and relays between
//! others. It measures nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use libp2p::multiaddr::Protocol;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::floor::FloorServer;
use super::greeting::{Answer, CLUSTER, GREETING, Wish, greet, understand};
use super::lease::Lease;
use super::pipe::Pipe;
use super::target::Relay;
use super::{BLOCK, BenchError, ECHO_SIZE, failed, kind};
use crate::driver::channel::{Channel, ChannelError};
use crate::driver::network::{Network, NetworkConfig};
use crate::driver::now;
use crate::driver::quic::from_multiaddr;
use crate::driver::shared::lock;
use crate::{Gate, encode};
use lapwing_base::{CLASSES, Keypair, Multiaddr, PeerId, Role};

/// What a stream is for, in its first byte.
pub(super) const ECHO: [u8; 1] = [0];
pub(super) const SINK: [u8; 1] = [1];
pub(super) const SOURCE: [u8; 1] = [2];

/// How often a sink tells how much it has.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);

/// A source gives no longer than this to somebody who forgets that it runs.
const SOURCE_TIME_MAX: Duration = Duration::from_secs(600);

/// Streams of one class that may wait to be taken.
const QUEUE: usize = 64;

/// Greetings that may wait, and those who are known at once; the earliest are forgotten for later ones.
const GREETINGS_MAX: usize = 16;
const GUESTS_MAX: usize = 64;

/// A greeting is one short frame each way.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a relay may take to accept circuits for a server.
const RESERVED_TIMEOUT: Duration = Duration::from_secs(20);

/// The answering side: a network of ours, and the floors beside it.
#[derive(Debug)]
#[must_use = "it must be shut down"]
pub struct Server {
    network: Network,
    pub(super) floor: FloorServer,
    relays: Vec<Relay>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Who may measure, and who is a member meanwhile.
#[derive(Debug)]
struct Door {
    lease: Mutex<Lease>,
    gate: watch::Sender<Gate>,
    /// In the order in which they came.
    guests: Mutex<Vec<PeerId>>,
    is_relayed: bool,
    floors: [u16; 2],
}

impl Server {
    /// Listens, and answers whoever comes until it is shut down, and relays for anybody: it is for measuring, not for
    /// staying. One that cannot be reached names other servers as `relays`, and waits until one of them leads to it.
    ///
    /// # Errors
    /// When the address cannot be listened on, or no relay accepts circuits.
    pub async fn start(listen: Multiaddr, relays: &[Multiaddr]) -> Result<Self, BenchError> {
        let (address, _) = from_multiaddr(&listen)
            .ok_or("use an address such as /ip4/0.0.0.0/udp/0/quic-v1")
            .map_err(failed("listen"))?;
        let relays = relays.iter().map(Relay::parse).collect::<Result<Vec<_>, _>>()?;
        let is_relayed = !relays.is_empty();
        let role = if is_relayed { Role::Home } else { Role::Main };
        let (gate, watched) = watch::channel(Gate::default());
        let keypair = Keypair::generate_ed25519();
        let network = start_watching(keypair, vec![listen], role, watched).await?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let floor = FloorServer::start((address.ip(), 0).into(), &tasks, &stop).await;
        let floor = match floor {
            Ok(floor) => floor,
            Err(error) => {
                network.shutdown().await;
                return Err(error);
            }
        };
        let door = Arc::new(Door {
            lease: Mutex::default(),
            gate,
            guests: Mutex::default(),
            is_relayed,
            floors: [floor.quic.port(), floor.tcp.port()],
        });
        // Each queue ends when the network stops.
        for class in CLASSES {
            let arriving = network.serve(kind(class), QUEUE);
            tasks.spawn(take(arriving, Arc::clone(&door), tasks.clone()));
        }
        let greetings = network.serve(GREETING, GREETINGS_MAX);
        tasks.spawn(welcome(greetings, Arc::clone(&door)));
        let server = Self {
            network,
            floor,
            relays,
            tasks,
            stop,
        };
        if is_relayed && let Err(error) = server.reserve(&door).await {
            server.shutdown().await;
            return Err(error);
        }
        Ok(server)
    }

    /// Becomes a guest of the relays, and waits until one of them accepts circuits.
    async fn reserve(&self, door: &Door) -> Result<(), BenchError> {
        let me = self.network.peer_id();
        for relay in &self.relays {
            self.network.learn(relay.peer, vec![relay.address.clone()]);
            greet(&self.network, relay.peer, Wish::Join(me), GREETING_TIMEOUT).await?;
        }
        let relays: Vec<_> = self.relays.iter().map(|relay| relay.peer).collect();
        door.gate.send_replace(Gate {
            cluster: Some(CLUSTER),
            members: Arc::new(relays.iter().copied().collect()),
            mains: Arc::new(relays.iter().copied().collect()),
            watched: Arc::new(relays.iter().copied().collect()),
        });
        let mut reach = self.network.reach();
        let reserved = reach.wait_for(|reach| !reach.reservations.is_empty());
        match tokio::time::timeout(RESERVED_TIMEOUT, reserved).await {
            Ok(_) => Ok(()),
            Err(_) => Err(failed("be reached through a relay")(
                "none accepts circuits for this end",
            )),
        }
    }

    /// Where it is reached, with its identity: what the measuring side is told.
    pub fn addrs(&self) -> Vec<Multiaddr> {
        let me = self.network.peer_id();
        if !self.relays.is_empty() {
            return self.relays.iter().map(|relay| relay.circuit_to(me)).collect();
        }
        let listen = self.network.listen_addrs();
        listen
            .into_iter()
            .map(|address| address.with(Protocol::P2p(me)))
            .collect()
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

/// A network that looks for no way in: who measures knows the address. Whom it lets in does not change.
pub(super) async fn start_network(
    keypair: Keypair,
    listen: Vec<Multiaddr>,
    role: Role,
    gate: Gate,
) -> Result<Network, BenchError> {
    let (_, watched) = watch::channel(gate);
    start_watching(keypair, listen, role, watched).await
}

async fn start_watching(
    keypair: Keypair,
    listen: Vec<Multiaddr>,
    role: Role,
    gate: watch::Receiver<Gate>,
) -> Result<Network, BenchError> {
    let config = NetworkConfig {
        listen,
        role: Some(role),
        relays_strangers: true,
        maps_port: false,
        finds_neighbours: false,
        // Nothing else is to travel while something is measured.
        probe_interval: SOURCE_TIME_MAX,
        ..NetworkConfig::new(keypair)
    };
    Network::start(config, gate)
        .await
        .map_err(failed("start the network"))
}

/// Takes the streams of a class until there are no more.
async fn take(mut arriving: mpsc::Receiver<Channel>, door: Arc<Door>, tasks: TaskTracker) {
    while let Some(channel) = arriving.recv().await {
        let (door, peer) = (Arc::clone(&door), channel.peer());
        // Of somebody who has not asked, or does not measure any more, it is dropped.
        if lock(&door.lease).begun(&peer, now()) {
            tasks.spawn(async move {
                attend(Pipe::channel(channel)).await;
                lock(&door.lease).ended(&peer, now());
            });
        }
    }
}

/// Answers greetings, one after the other, until there are no more.
async fn welcome(mut greetings: mpsc::Receiver<Channel>, door: Arc<Door>) {
    while let Some(channel) = greetings.recv().await {
        // Whoever did not wait for the answer greets again.
        let _ = tokio::time::timeout(GREETING_TIMEOUT, door.answer(channel)).await;
    }
}

impl Door {
    async fn answer(&self, mut channel: Channel) -> Result<(), ChannelError> {
        let Some(greeting) = channel.receive().await? else {
            return Ok(());
        };
        let answer = match understand(&greeting) {
            Ok(wish) => self.grant(wish),
            Err(answer) => answer,
        };
        channel.send(&encode(&answer)).await?;
        channel.finish().await
    }

    fn grant(&self, wish: Wish) -> Answer {
        match wish {
            Wish::Join(guest) => self.admit(guest),
            Wish::Measure(guest) => {
                if !lock(&self.lease).take(guest, now()) {
                    return Answer::Busy;
                }
                // Only then does a path have to be found.
                if self.is_relayed {
                    self.admit(guest);
                }
            }
            Wish::Leave(guest) => lock(&self.lease).give_back(&guest),
        }
        let [quic, tcp] = self.floors;
        Answer::Welcome { quic, tcp }
    }

    /// Takes somebody for a member from now on.
    fn admit(&self, guest: PeerId) {
        let mut guests = lock(&self.guests);
        guests.retain(|known| *known != guest);
        if guests.len() >= GUESTS_MAX {
            guests.remove(0);
        }
        guests.push(guest);
        self.gate.send_modify(|gate| {
            gate.cluster = Some(CLUSTER);
            let members = gate.mains.iter().chain(guests.iter());
            gate.members = Arc::new(members.copied().collect());
        });
    }
}

/// Answers one stream to its end.
pub(super) async fn attend(mut pipe: Pipe) {
    // Errors are the other side's to report: it measures.
    let _ = match pipe.inn.take().await {
        Ok(Some(ECHO)) => echo(&mut pipe).await,
        Ok(Some(SINK)) => sink(&mut pipe).await,
        Ok(Some(SOURCE)) => source(&mut pipe).await,
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
