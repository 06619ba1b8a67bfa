//! How fast the network is beside plain QUIC and plain TCP in the same run, and what a full link does to its classes.
//!
//! [`rows`] measures on this machine, [`Server`] and [`run`] between two. Rounds of all candidates are interleaved and
//! the median counts, so that what else the machine does meets all of them. It asserts nothing about the figures.

mod ablation;
mod asking;
mod direct;
mod floor;
mod greeting;
mod lease;
mod link;
mod measuring;
mod pipe;
mod serving;
mod shape;
mod table;
mod target;

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::Connection;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::now;
use super::quic::from_multiaddr;
use crate::{Access, Kind};
use asking::Asking;
use floor::Floor;
use lapwing_base::{Bandwidth, ByteSize, CLASSES, Class, Multiaddr, Row};
use measuring::{Echo, Load, PATIENCE, Times, download};
use pipe::Pipe;
use table::Table;
use target::Target;

pub use serving::Server;
pub use shape::{ParseShapeError, Shape};
pub use table::Told;

/// The benchmark could not be run.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing}: {why}")]
pub struct BenchError {
    doing: &'static str,
    why: String,
}

fn failed<E: Display>(doing: &'static str) -> impl FnOnce(E) -> BenchError {
    move |error| BenchError {
        doing,
        why: error.to_string(),
    }
}

/// Bytes of an echo: a heartbeat.
const ECHO_SIZE: usize = 256;

/// Bytes of a block of bulk: a frame of model values.
const BLOCK: usize = 64 << 10;

/// Rounds of which the median counts.
const ROUNDS: u32 = 3;

/// Handshakes that are timed.
const SET_UPS: usize = 20;

/// Streams that fill the link while round trips are timed.
const LOAD_STREAMS: usize = 4;

/// Between two messages on a link that is not shaped.
const INTERVAL: Duration = Duration::from_millis(5);

const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const LISTEN_ANY: &str = "/ip4/0.0.0.0/udp/0/quic-v1";

/// Percentiles over a shaped link are of as many messages.
const SHAPED_FACTOR: u32 = 4;

/// The links on which latency under load is promised: a home's uplink with a short and a long queue, and a faster one.
pub const SHAPES: [Shape; 3] = [
    Shape {
        rate: Bandwidth::mbit(20),
        rtt: Duration::from_millis(50),
        queue: Duration::from_millis(200),
    },
    Shape {
        rate: Bandwidth::mbit(20),
        rtt: Duration::from_millis(50),
        queue: Duration::from_secs(1),
    },
    Shape {
        rate: Bandwidth::mbit(100),
        rtt: Duration::from_millis(20),
        queue: Duration::from_millis(200),
    },
];

/// What the benchmark's streams are for. Open to anyone: there is no cluster.
const fn kind(class: Class) -> Kind {
    Kind {
        class,
        name: "bench",
        access: Access::Anyone,
        frame_max: ByteSize(BLOCK as u64),
    }
}

/// Measures on loopback, each case for `case_time`: throughput of every class, round trips idle and under load, and
/// the time that a connection takes. Each row is told as soon as it is measured.
///
/// # Errors
/// The loopback network, or no answer.
pub async fn rows(case_time: Duration, told: Told<'_>) -> Result<Vec<Row>, BenchError> {
    let server = Server::start(LOOPBACK.parse().map_err(failed("listen"))?, &[]).await?;
    let rows = match server.addrs().pop() {
        Some(address) => run(&address, case_time, told, &CancellationToken::new()).await,
        None => Err(failed("listen")("there is no address")),
    };
    server.shutdown().await;
    rows
}

/// Measures over a link that is shaped in this process, with as many messages as give a 99th percentile: what a
/// class waits while bulk fills the link, with one QUIC connection, with priorities, with two connections, and with ours.
/// Each row is told as soon as it is measured.
///
/// # Errors
/// The loopback network, or no answer.
pub async fn shaped_rows(shape: Shape, case_time: Duration, told: Told<'_>) -> Result<Vec<Row>, BenchError> {
    let mut table = Table::new(told);
    ablation::rows(shape, case_time * SHAPED_FACTOR, &mut table).await?;
    Ok(table.into_rows())
}

/// Measures what lies between this node and a [`Server`], until `stop`. Where the floors beside it cannot be reached, rows
/// have no baseline. Through a relay it measures first how long the two ends need to find each other. Each row is told as
/// soon as it is measured.
///
/// # Errors
/// When the address names no peer, the peer does not answer or measures with somebody else, or it was stopped.
pub async fn run(
    address: &Multiaddr,
    case_time: Duration,
    told: Told<'_>,
    stop: &CancellationToken,
) -> Result<Vec<Row>, BenchError> {
    let target = Target::parse(address)?;
    let stopped = || failed("measure")("it was stopped");
    let Some(asking) = stop.run_until_cancelled(Asking::start(&target)).await else {
        return Err(stopped());
    };
    let asking = asking?;
    let mut table = Table::new(told);
    let measured = stop
        .run_until_cancelled(measure(&asking, &target, case_time, &mut table))
        .await;
    asking.shutdown().await;
    measured.unwrap_or_else(|| Err(stopped()))?;
    Ok(table.into_rows())
}

async fn measure(
    asking: &Asking,
    target: &Target,
    case_time: Duration,
    table: &mut Table<'_>,
) -> Result<(), BenchError> {
    let [quic, tcp] = asking.floors;
    let ip = if target.relay.is_some() {
        table.extend(direct::rows(asking).await?);
        None
    } else {
        table.add(direct::none());
        from_multiaddr(&target.address)
    };
    let floor = match ip.map(|(socket, _)| socket.ip()) {
        Some(ip) => Floors::reach(SocketAddr::new(ip, quic), SocketAddr::new(ip, tcp)).await?,
        None => None,
    };
    table.extend(throughput(asking, floor.as_ref(), case_time).await?);
    round_trips(asking, floor.as_ref(), case_time, table).await?;
    table.extend(set_up(asking, floor.as_ref()).await?);
    if let Some(floors) = floor {
        floors.floor.close().await;
    }
    Ok(())
}

/// What is compared with, where it can be reached.
struct Floors {
    floor: Floor,
    connection: Connection,
}

impl Floors {
    async fn reach(quic: SocketAddr, tcp: SocketAddr) -> Result<Option<Self>, BenchError> {
        /// A port that is not forwarded does not answer.
        const REACH_TIMEOUT: Duration = Duration::from_secs(3);
        let floor = Floor::new(quic, tcp)?;
        let both = async { tokio::try_join!(floor.connect(), floor.tcp()) };
        match tokio::time::timeout(REACH_TIMEOUT, both).await {
            Ok(Ok((connection, _))) => Ok(Some(Self { floor, connection })),
            Ok(Err(_)) | Err(_) => {
                info!(%quic, %tcp, "plain QUIC and TCP cannot be reached, so there is nothing to compare with");
                Ok(None)
            }
        }
    }

    async fn quic(&self) -> Result<Pipe, BenchError> {
        let streams = self.connection.open_bi().await;
        Ok(Pipe::quic(streams.map_err(failed("open a stream"))?))
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Candidate {
    Quic,
    Tcp,
    Ours(Class),
}

impl Candidate {
    /// The floors, and every class, `Model` beside them.
    fn all() -> impl Iterator<Item = Self> {
        let ours = CLASSES.into_iter().rev().map(Self::Ours);
        [Self::Quic, Self::Tcp].into_iter().chain(ours)
    }

    async fn open(self, asking: &Asking, floors: Option<&Floors>) -> Result<Option<Pipe>, BenchError> {
        Ok(match (self, floors) {
            (Self::Ours(class), _) => Some(asking.open(class).await?),
            (Self::Quic, Some(floors)) => Some(floors.quic().await?),
            (Self::Tcp, Some(floors)) => Some(floors.floor.tcp().await?),
            (Self::Quic | Self::Tcp, None) => None,
        })
    }
}

/// Figures of each candidate, one a round.
#[derive(Debug, Default)]
struct Figures(Vec<(Candidate, f64)>);

impl Figures {
    /// The median; not a number where nothing was measured.
    fn of(&self, candidate: Candidate) -> f64 {
        let mut figures: Vec<f64> = self
            .0
            .iter()
            .filter(|(of, _)| *of == candidate)
            .map(|(_, figure)| *figure)
            .collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

async fn throughput(
    asking: &Asking,
    floors: Option<&Floors>,
    case_time: Duration,
) -> Result<Vec<Row>, BenchError> {
    let (mut up, mut down) = (Figures::default(), Figures::default());
    for round in 1..=ROUNDS {
        for candidate in Candidate::all() {
            info!(round, ?candidate, "measuring throughput");
            if let Some(pipe) = candidate.open(asking, floors).await? {
                let mut load = Load::start([pipe]);
                let rate = load.rate(case_time / ROUNDS).await;
                load.finish().await?;
                up.0.push((candidate, rate?));
            }
            if let Some(pipe) = candidate.open(asking, floors).await? {
                down.0
                    .push((candidate, download(pipe, case_time / ROUNDS).await?));
            }
        }
    }
    let mut rows = Vec::new();
    for (bench, figures) in [("upload", up), ("download", down)] {
        let row = |candidate, case: String, baseline| {
            Row::new(
                bench,
                case,
                figures.of(candidate) / 1e6,
                "MB/s",
                figures.of(baseline) / 1e6,
            )
        };
        rows.push(row(
            Candidate::Quic,
            "plain QUIC beside TCP".to_owned(),
            Candidate::Tcp,
        ));
        for class in CLASSES.into_iter().rev() {
            rows.push(row(
                Candidate::Ours(class),
                format!("{class} beside plain QUIC"),
                Candidate::Quic,
            ));
        }
        rows.push(row(
            Candidate::Ours(Class::Model),
            "model beside TCP".to_owned(),
            Candidate::Tcp,
        ));
    }
    // Of what could not be reached there is nothing to say, and once is enough of what is compared with it.
    let beside_nothing = |row: &Row| floors.is_none() && row.case.ends_with("TCP");
    rows.retain(|row| !row.value.is_nan() && !beside_nothing(row));
    Ok(rows)
}

async fn round_trips(
    asking: &Asking,
    floors: Option<&Floors>,
    case_time: Duration,
    table: &mut Table<'_>,
) -> Result<(), BenchError> {
    let (mut floor, mut idle) = (None, Vec::new());
    for candidate in [Candidate::Quic].into_iter().chain(CLASSES.map(Candidate::Ours)) {
        info!(?candidate, "measuring round trips");
        let Some(pipe) = candidate.open(asking, floors).await? else {
            continue;
        };
        let mut echo = Echo::start(pipe).await?;
        echo.once().await?;
        let times = echo.times(case_time, INTERVAL).await?;
        let Candidate::Ours(class) = candidate else {
            floor = Some(times);
            continue;
        };
        for (name, share) in [("RTT p50", 0.5), ("RTT p99", 0.99)] {
            let case = format!("{class}, idle, beside plain QUIC");
            let baseline = floor.as_ref().map_or(f64::NAN, |floor| floor.at(share));
            table.add(Row::new(name, case, times.at(share), "ms", baseline));
        }
        idle.push((class, times));
    }
    for (class, idle) in idle {
        info!(%class, "measuring round trips under load");
        let mut echo = Echo::start(asking.open(class).await?).await?;
        echo.once().await?;
        let mut pipes = Vec::with_capacity(LOAD_STREAMS);
        for _ in 0..LOAD_STREAMS {
            pipes.push(asking.open(Class::Model).await?);
        }
        let mut load = Load::start(pipes);
        let measured = tokio::try_join!(echo.times(case_time, INTERVAL), load.rate(case_time));
        load.finish().await?;
        let (times, _) = measured?;
        for (name, share) in [("loaded RTT p50", 0.5), ("loaded RTT p99", 0.99)] {
            let case = format!("{class}, beside its own idle");
            table.add(Row::new(name, case, times.at(share), "ms", idle.at(share)));
        }
    }
    Ok(())
}

/// From nothing to the first answer.
async fn set_up(asking: &Asking, floors: Option<&Floors>) -> Result<Vec<Row>, BenchError> {
    let (mut ours, mut quic, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SET_UPS {
        asking.disconnect().await;
        let began = now();
        first_answer(asking.open(Class::Control).await?).await?;
        ours.push(began.elapsed());
        if let Some(floors) = floors {
            let began = now();
            let connection = floors.floor.connect().await?;
            let streams = connection.open_bi().await.map_err(failed("open a stream"))?;
            first_answer(Pipe::quic(streams)).await?;
            quic.push(began.elapsed());
            connection.close(0_u32.into(), b"done");
            let began = now();
            first_answer(floors.floor.tcp().await?).await?;
            tcp.push(began.elapsed());
        }
    }
    let [ours, quic, tcp] = [ours, quic, tcp].map(|each| Times::new(each).at(0.5));
    let mut rows = vec![Row::new(
        "set-up",
        "first answer, beside plain QUIC",
        ours,
        "ms",
        quic,
    )];
    if floors.is_some() {
        rows.push(Row::new("set-up", "first answer, beside TCP", ours, "ms", tcp));
    }
    Ok(rows)
}

async fn first_answer(pipe: Pipe) -> Result<(), BenchError> {
    let answered = async { Echo::start(pipe).await?.once().await };
    let answered = tokio::time::timeout(PATIENCE, answered).await;
    answered.map_err(failed("connect"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_the_rounds_counts() {
        let quic = Candidate::Quic;
        let figures = Figures(vec![(quic, 3.0), (Candidate::Tcp, 9.0), (quic, 1.0), (quic, 2.0)]);
        assert_eq!(figures.of(quic), 2.0);
        assert!(figures.of(Candidate::Ours(Class::Model)).is_nan());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_row_on_loopback_has_a_figure_and_a_baseline() {
        let mut told = Vec::new();
        let mut tell = |row: &Row| told.push(row.case.clone());
        let rows = rows(Duration::from_millis(90), &mut tell).await.unwrap();
        assert_eq!(rows.len(), 37);
        assert!(rows.iter().map(|row| &row.case).eq(&told));
        for row in rows {
            let without = row.bench == "time to direct" && row.value.is_nan();
            assert!(without || (row.value > 0.0 && row.baseline > 0.0), "{row:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_measures_at_a_time_and_whoever_is_stopped_makes_room_at_once() {
        let server = Server::start(LOOPBACK.parse().unwrap(), &[]).await.unwrap();
        let address = server.addrs().pop().unwrap();
        let target = Target::parse(&address).unwrap();
        let first = Asking::start(&target).await.unwrap();
        let second = Asking::start(&target).await.unwrap_err();
        assert!(
            second.to_string().contains("measures with somebody else"),
            "{second}"
        );
        first.shutdown().await;
        let stop = CancellationToken::new();
        stop.cancel();
        let stopped = run(&address, Duration::from_millis(90), &mut |_: &Row| (), &stop)
            .await
            .unwrap_err();
        assert!(stopped.to_string().contains("it was stopped"), "{stopped}");
        Asking::start(&target).await.unwrap().shutdown().await;
        server.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_ends_that_meet_at_a_relay_measure_until_they_speak_directly() {
        let relay = Server::start(LOOPBACK.parse().unwrap(), &[]).await.unwrap();
        let server = Server::start(LOOPBACK.parse().unwrap(), &relay.addrs())
            .await
            .unwrap();
        let target = Target::parse(&server.addrs().pop().unwrap()).unwrap();
        assert_eq!(
            target.relay.as_ref().map(|through| through.peer),
            Some(relay.peer_id())
        );
        let asking = Asking::start(&target).await.unwrap();
        let rows = direct::rows(&asking).await.unwrap();
        assert_eq!(rows.len(), 2);
        for row in rows {
            assert!(row.value > 0.0, "{row:?}");
        }
        asking.shutdown().await;
        server.shutdown().await;
        relay.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shaped_link_is_as_slow_as_it_was_asked_to_be() {
        let shape = "50mbit,20ms,queue=50ms".parse().unwrap();
        let mut tell = |_: &Row| ();
        let rows = shaped_rows(shape, Duration::from_millis(200), &mut tell)
            .await
            .unwrap();
        assert_eq!(rows.len(), 12);
        for row in rows {
            match row.unit {
                "ms" => assert!(row.baseline >= 19.0, "{row:?}"),
                _ => assert!(
                    row.value < 50.0 && row.baseline > 40.0 && row.baseline < 50.0,
                    "{row:?}"
                ),
            }
        }
    }
}
