//! What each part of the class scheme gives, on a link that bulk fills: one QUIC connection as it ships, then with
//! priorities, then two connections, then ours, whose bulk lane keeps the queue short.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::BoxFuture;
use lapwing_base::{Class, Row};
use quinn::Connection;
use tokio::net::UdpSocket;
use tracing::info;

use super::asking::Asking;
use super::floor::Floor;
use super::link::Link;
use super::measuring::{Echo, Load, PATIENCE, Times};
use super::pipe::Pipe;
use super::serving::Server;
use super::shape::{DATAGRAM_MAX, Shape};
use super::table::Table;
use super::target::Target;
use super::{BenchError, LOOPBACK, failed};
use crate::driver::now;
use crate::driver::quic::to_multiaddr;

/// Streams of bulk, as many as partners that a node exchanges with at once.
const BULK_STREAMS: usize = 4;

/// Cubic needs as long until it has filled the longest queue, and the path's largest datagram is found by then.
const WARM_UP: Duration = Duration::from_secs(4);

/// Between two messages: heartbeats of ten peers.
const INTERVAL: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
enum Variant {
    Stock,
    Priority,
    TwoConnections,
    Ours,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stock => "one QUIC connection",
            Self::Priority => "one with priorities",
            Self::TwoConnections => "two with Cubic",
            Self::Ours => "ours",
        })
    }
}

/// What one variant has come to.
struct Taken {
    idle: Times,
    loaded: Times,
    /// Bytes a second.
    bulk: f64,
}

/// Measures every variant over a link of this shape.
pub(super) async fn rows(shape: Shape, over: Duration, table: &mut Table<'_>) -> Result<(), BenchError> {
    let floor = datagrams(shape).await.map_err(failed("send datagrams"))?;
    for variant in [
        Variant::Stock,
        Variant::Priority,
        Variant::TwoConnections,
        Variant::Ours,
    ] {
        let case = format!("{shape}: {variant}");
        info!(case, "measuring");
        let taken = measure(variant, shape, over).await?;
        // However it was reached, the link must have been in between.
        if taken.idle.at(0.5) < shape.rtt.as_secs_f64() * 1e3 * 0.95 {
            return Err(failed("shape the link")(
                "the round trip is shorter than it was asked to be",
            ));
        }
        let base = taken.idle.at(0.5);
        table.extend([
            Row::new("loaded RTT p50", case.clone(), taken.loaded.at(0.5), "ms", base),
            Row::new("loaded RTT p99", case.clone(), taken.loaded.at(0.99), "ms", base),
            Row::new("bulk beside it", case, taken.bulk * 8e-6, "Mbit/s", floor * 8e-6),
        ]);
    }
    Ok(())
}

async fn measure(variant: Variant, shape: Shape, over: Duration) -> Result<Taken, BenchError> {
    let server = Server::start(LOOPBACK.parse().map_err(failed("listen"))?, &[]).await?;
    let taken = match variant {
        Variant::Ours => ours(&server, shape, over).await,
        Variant::Stock | Variant::Priority | Variant::TwoConnections => {
            plain(&server, variant, shape, over).await
        }
    };
    server.shutdown().await;
    taken
}

async fn ours(server: &Server, shape: Shape, over: Duration) -> Result<Taken, BenchError> {
    let link = Link::start(shape, server.listens()?).map_err(failed("shape the link"))?;
    let target = Target {
        peer: server.peer_id(),
        address: to_multiaddr(link.near()),
        relay: None,
    };
    let asking = Asking::start(&target).await?;
    let opening = |class| -> BoxFuture<'_, _> { Box::pin(asking.open(class)) };
    let taken = load(opening, over).await;
    asking.shutdown().await;
    taken
}

async fn plain(server: &Server, variant: Variant, shape: Shape, over: Duration) -> Result<Taken, BenchError> {
    let link = Link::start(shape, server.floor.quic).map_err(failed("shape the link"))?;
    let floor = Floor::new(link.near(), server.floor.tcp)?;
    let urgent = floor.connect().await?;
    let bulk = match variant {
        Variant::TwoConnections => floor.connect().await?,
        Variant::Stock | Variant::Priority | Variant::Ours => urgent.clone(),
    };
    let with_priorities = !matches!(variant, Variant::Stock);
    let opening = |class| -> BoxFuture<'_, _> {
        let (connection, priority) = match class {
            Class::Model | Class::Maintenance => (&bulk, 0),
            Class::Control | Class::Consensus | Class::Call => (&urgent, 1),
        };
        Box::pin(open_plain(connection, if with_priorities { priority } else { 0 }))
    };
    let taken = load(opening, over).await;
    floor.close().await;
    taken
}

async fn open_plain(connection: &Connection, priority: i32) -> Result<Pipe, BenchError> {
    let streams = connection.open_bi().await.map_err(failed("open a stream"))?;
    streams
        .0
        .set_priority(priority)
        .map_err(failed("open a stream"))?;
    Ok(Pipe::quic(streams))
}

/// The same for every variant: a quiet link first, then a full one.
async fn load<'a>(
    open: impl Fn(Class) -> BoxFuture<'a, Result<Pipe, BenchError>>,
    over: Duration,
) -> Result<Taken, BenchError> {
    let mut echo = Echo::start(open(Class::Consensus).await?).await?;
    echo.once().await?;
    let idle = echo.times(over / 4, INTERVAL).await?;
    let mut pipes = Vec::with_capacity(BULK_STREAMS);
    for _ in 0..BULK_STREAMS {
        pipes.push(open(Class::Model).await?);
    }
    let mut bulk = Load::start(pipes);
    bulk.rate(WARM_UP).await?;
    let measured = tokio::try_join!(echo.times(over, INTERVAL), bulk.rate(over));
    bulk.abort().await;
    let (loaded, bulk) = measured?;
    Ok(Taken { idle, loaded, bulk })
}

/// What datagrams without any protocol get through a link, in bytes a second: a little more is sent than it takes.
async fn datagrams(shape: Shape) -> io::Result<f64> {
    const TIME: Duration = Duration::from_secs(2);
    const TICK: Duration = Duration::from_millis(2);
    let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let (to, from) = tokio::try_join!(bind(), bind())?;
    let link = Link::start(shape, to.local_addr()?)?;
    let sending = async {
        let (began, datagram) = (now(), [0x5a; DATAGRAM_MAX]);
        let (mut ticks, mut sent) = (tokio::time::interval(TICK), 0_f64);
        loop {
            ticks.tick().await;
            while sent < shape.rate.bytes_per_second() * 1.1 * began.elapsed().as_secs_f64() {
                // A full socket drops them, as the link does.
                let _ = from.try_send_to(&datagram, link.near());
                sent += DATAGRAM_MAX as f64;
            }
        }
    };
    let receiving = async {
        let (mut buffer, mut total, mut began) = ([0; DATAGRAM_MAX], 0, None);
        loop {
            let size = to.recv(&mut buffer).await?;
            match began {
                None => began = Some(now()),
                Some(began) => {
                    total += size;
                    let took = began.elapsed();
                    if took >= TIME {
                        return Ok::<f64, io::Error>(total as f64 / took.as_secs_f64());
                    }
                }
            }
        }
    };
    tokio::select! {
        received = tokio::time::timeout(TIME + PATIENCE, receiving) => received?,
        never = sending => never,
    }
}
