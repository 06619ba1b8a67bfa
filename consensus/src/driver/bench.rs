//! How fast a cluster commits on this disk, beside the disk alone.
//!
//! Three members over loopback in one process, each with a log of its own on the same disk: every commit waits
//! for two synced appends. The floor is one append and `fdatasync` of a plain file, in the same run, before and after it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapwing_base::{ClusterId, Keypair, PeerId, Role, Roster, Row};
use lapwing_net::{Gate, Network, NetworkConfig};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Consensus, ConsensusConfig, Start, join, now};
use crate::{Command, JoinRequest, Timing};

/// The benchmark could not be run.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing}: {why}")]
pub struct BenchError {
    doing: &'static str,
    why: String,
}

fn failed<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> BenchError {
    move |error| BenchError {
        doing,
        why: error.to_string(),
    }
}

/// Bytes of one command's payload.
const PAYLOAD: usize = 256;

/// How long each case is measured.
const CASE_TIME: Duration = Duration::from_secs(3);

/// How long the cluster may take to form.
const FORM_TIMEOUT: Duration = Duration::from_secs(60);

/// Measures commit latency and throughput with 1 and with 64 writers, and the time to fail over. `dir` must be empty, on the disk in
/// question.
///
/// # Errors
///
/// The disk, the network, or a cluster that does not form within a minute.
pub async fn rows(dir: &Path) -> Result<Vec<Row>, BenchError> {
    let before = floor(dir).await?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let members = form(dir, &stop, &mut tasks).await?;
    let mut cases = Vec::new();
    for writers in [1, 64] {
        let name = format!("3 members, {writers} writers, {PAYLOAD} B");
        cases.push((name, write(&members[0].0, writers).await?));
    }
    let fail_over = fail_over(&members).await?;
    for (consensus, _) in &members {
        consensus.shutdown().await;
    }
    for (_, network) in &members {
        network.shutdown().await;
    }
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    let after = floor(dir).await?;
    // What else the disk does only ever adds time.
    let floor = if before.per_second() > after.per_second() {
        before
    } else {
        after
    };
    let rows = cases
        .iter()
        .flat_map(|(name, taken)| compare(name, taken, &floor));
    Ok(rows.chain([fail_over]).collect())
}

/// How long nothing can be committed when the leader is gone from one moment to the next, beside the longest
/// silence after which another one should stand up.
async fn fail_over(members: &[(Consensus, Network)]) -> Result<Row, BenchError> {
    let leader = members[0].0.roster().borrow().leader;
    let (gone, others): (Vec<_>, Vec<_>) = members
        .iter()
        .map(|(consensus, _)| consensus)
        .partition(|consensus| Some(consensus.id()) == leader);
    let began = now();
    for consensus in gone {
        consensus.shutdown().await;
    }
    let other = others
        .first()
        .ok_or("there is no other member")
        .map_err(failed("fail over"))?;
    other
        .propose(Command::Bandwidth(Vec::new()))
        .await
        .map_err(failed("commit"))?;
    let value = began.elapsed().as_secs_f64() * 1e3;
    let baseline = Timing::default().silence_max().as_secs_f64() * 1e3;
    Ok(Row::new(
        "fail over",
        "3 members, the leader stops".to_owned(),
        value,
        "ms",
        baseline,
    ))
}

/// What one case took: the time of each commit, and of all together.
struct Taken {
    each: Vec<Duration>,
    all: Duration,
}

impl Taken {
    fn at(&self, share: f64) -> f64 {
        let last = self.each.len().saturating_sub(1);
        let position = (last as f64 * share).round() as usize;
        self.each
            .get(position)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }

    fn per_second(&self) -> f64 {
        self.each.len() as f64 / self.all.as_secs_f64()
    }
}

fn compare(case: &str, taken: &Taken, floor: &Taken) -> [Row; 3] {
    let row =
        |bench, value: f64, unit, baseline: f64| Row::new(bench, case.to_owned(), value, unit, baseline);
    [
        row("commit p50", taken.at(0.5), "us", floor.at(0.5)),
        row("commit p99", taken.at(0.99), "us", floor.at(0.99)),
        row("commits", taken.per_second(), "1/s", floor.per_second()),
    ]
}

/// What the disk alone takes for one synced append.
async fn floor(dir: &Path) -> Result<Taken, BenchError> {
    let file = dir.join("floor");
    let measured = tokio::task::spawn_blocking(move || measure_floor(&file)).await;
    measured
        .map_err(failed("measure the disk"))?
        .map_err(failed("measure the disk"))
}

fn measure_floor(path: &Path) -> std::io::Result<Taken> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let payload = [0x5a; PAYLOAD];
    let began = now();
    let mut each = Vec::new();
    while began.elapsed() < CASE_TIME / 3 {
        let at = now();
        file.write_all(&payload)?;
        file.sync_data()?;
        each.push(at.elapsed());
    }
    let all = began.elapsed();
    each.sort();
    Ok(Taken { each, all })
}

async fn write(consensus: &Consensus, writers: usize) -> Result<Taken, BenchError> {
    let began = now();
    let mut tasks: JoinSet<Result<Vec<Duration>, BenchError>> = JoinSet::new();
    for writer in 0..writers {
        let consensus = consensus.clone();
        tasks.spawn(async move { write_alone(&consensus, writer, began).await });
    }
    let mut each = Vec::new();
    while let Some(taken) = tasks.join_next().await {
        each.extend(taken.map_err(failed("write"))??);
    }
    let all = began.elapsed();
    each.sort();
    Ok(Taken { each, all })
}

async fn write_alone(
    consensus: &Consensus,
    writer: usize,
    began: Instant,
) -> Result<Vec<Duration>, BenchError> {
    let mut each = Vec::new();
    while began.elapsed() < CASE_TIME {
        // A key that no cluster has: committed, applied and refused, and as long as it should be.
        let command = Command::SetConfig {
            key: format!("{writer:0PAYLOAD$}"),
            value: String::new(),
            expected: None,
        };
        let at = now();
        consensus.propose(command).await.map_err(failed("commit"))?;
        each.push(at.elapsed());
    }
    Ok(each)
}

async fn form(
    dir: &Path,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<Vec<(Consensus, Network)>, BenchError> {
    let mut members: Vec<(Consensus, Network)> = Vec::new();
    for number in 0..3 {
        let (gate, gate_receiver) = watch::channel(Gate::default());
        let keypair = Keypair::generate_ed25519();
        let listen = "/ip4/127.0.0.1/udp/0/quic-v1".parse().map_err(failed("listen"))?;
        let config = NetworkConfig {
            listen: vec![listen],
            ..NetworkConfig::new(keypair)
        };
        let network = Network::start(config, gate_receiver)
            .await
            .map_err(failed("start the network"))?;
        let config = ConsensusConfig {
            data_dir: dir.join(number.to_string()),
            peer: network.peer_id(),
            name: number.to_string(),
            addrs: network.listen_addrs(),
            role: Role::Main,
            timing: Timing::default(),
        };
        std::fs::create_dir_all(&config.data_dir).map_err(failed("make a directory"))?;
        let start = match members.first() {
            None => Start::Found {
                cluster: ClusterId::from_bytes(super::draw_request_id().0),
                epoch: 0,
            },
            Some((_, founder)) => {
                network.learn(founder.peer_id(), founder.listen_addrs());
                let request = JoinRequest {
                    peer: network.peer_id(),
                    name: config.name.clone(),
                    addrs: config.addrs.clone(),
                    role: config.role,
                    known: None,
                };
                let candidates = vec![founder.peer_id()];
                let accepted = join(&network, candidates, request, FORM_TIMEOUT)
                    .await
                    .map_err(failed("join"))?;
                gate.send_replace(Gate::of(accepted.cluster, &accepted.members));
                Start::Joined(accepted)
            }
        };
        let consensus = Consensus::start(config, start, network.clone())
            .await
            .map_err(failed("start"))?;
        consensus.open_admission();
        tasks.spawn(let_in(consensus.roster(), gate, stop.clone()));
        members.push((consensus, network));
    }
    let mut roster = members[0].0.roster();
    let formed = roster.wait_for(|roster| roster.voters.len() == 3);
    let formed = tokio::time::timeout(FORM_TIMEOUT, formed)
        .await
        .map_err(failed("form a cluster"))?;
    formed.map_err(failed("form a cluster"))?;
    Ok(members)
}

/// Whoever is in the roster may come in.
async fn let_in(
    mut roster: watch::Receiver<Arc<Roster>>,
    gate: watch::Sender<Gate>,
    stop: CancellationToken,
) {
    let work = async {
        loop {
            let latest = roster.borrow_and_update().clone();
            let members: std::collections::HashSet<PeerId> =
                latest.members.values().map(|member| member.peer).collect();
            if !members.is_empty() {
                gate.send_replace(Gate {
                    cluster: Some(latest.cluster),
                    members: Arc::new(members),
                    ..Gate::default()
                });
            }
            if roster.changed().await.is_err() {
                return;
            }
        }
    };
    stop.run_until_cancelled(work).await;
}
