//! How fast a gateway answers, beside a bare server that answers the same without looking at what it is asked.
//!
//! A real gateway on loopback in this process, and fifty nodes that keep their connections. It asserts nothing
//! about the figures, but a request that is not answered with 200 is an error: rates of refusals say nothing.

mod bare;
mod load;

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use lapwing_base::{Keypair, Role, Row};
use serde_json::json;

use self::bare::Bare;
use self::load::{Load, Taken};
use super::gateway::{Gateway, GatewayConfig};
use crate::{Registration, Signed};

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

/// Nodes that ask at the same time, each over a connection that it keeps.
const CLIENTS: usize = 50;

/// How long each case is measured.
const CASE_TIME: Duration = Duration::from_secs(3);

/// Renewals that each node has signed beforehand: signing costs about as much as checking, and is not what is
/// measured. Enough for 20,000 a second.
const RENEWALS: usize = 1200;

/// Nodes whose memory is measured: as many as one gateway takes.
const NODES: usize = 100_000;

/// What a gateway with [`NODES`] nodes may need for them: 200 MB.
const NODE_BYTES_TARGET: f64 = 200e6 / NODES as f64;

/// Measures the memory of a node, then requests a second and their 99th percentile for a health check, a heartbeat of
/// the compatible API and a signed renewal. Takes about half a minute. `dir` must be empty; gateways keep their data
/// in it.
///
/// # Errors
///
/// The disk, the loopback network, or a request that was not answered with 200.
pub async fn rows(dir: &Path) -> Result<Vec<Row>, BenchError> {
    // First, while no case has left memory behind that would be used again.
    let mut rows: Vec<Row> = memory(&dir.join("memory")).await?.into_iter().collect();
    let gateway = start(&dir.join("requests")).await?;
    let addr = gateway.local_addr();
    for case in [health(), heartbeat(addr).await?, renewal().await?] {
        rows.extend(case.measure(addr).await?);
    }
    gateway.stop().await;
    Ok(rows)
}

async fn start(data_dir: &Path) -> Result<Gateway, BenchError> {
    let config = GatewayConfig {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        data_dir: data_dir.to_owned(),
        nodes_max: NODES,
        ..GatewayConfig::default()
    };
    Gateway::start(config).await.map_err(failed("start a gateway"))
}

/// The bytes that the process grows by for each signed registration; nothing where the system does not say how large
/// a process is.
async fn memory(dir: &Path) -> Result<Option<Row>, BenchError> {
    let gateway = start(dir).await?;
    let before = resident_bytes();
    let load = Load::new(CLIENTS, |_, nth| (nth < NODES / CLIENTS).then(registration));
    let taken = load.run(gateway.local_addr()).await;
    answered(taken)?;
    let after = resident_bytes();
    gateway.stop().await;
    let (Some(before), Some(after)) = (before, after) else {
        return Ok(None);
    };
    let value = (after - before) / NODES as f64;
    Ok(Some(Row::new(
        "memory",
        format!("{NODES} signed nodes, beside the target"),
        value,
        "B",
        NODE_BYTES_TARGET,
    )))
}

/// What the kernel counts as this process's memory.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

/// One kind of request.
struct Case {
    name: &'static str,
    load: Load,
}

impl Case {
    /// The same load on the gateway and then on a bare server that gives the gateway's own first answer each time.
    async fn measure(&self, gateway: SocketAddr) -> Result<[Row; 2], BenchError> {
        let answer = self.load.first_answer(gateway).await;
        let answer = answer.map_err(failed("ask the gateway once"))?;
        let taken = answered(self.load.run(gateway).await)?;
        let bare = Bare::start(answer)
            .await
            .map_err(failed("start the bare server"))?;
        let floor = self.load.run(bare.local_addr()).await;
        bare.stop().await;
        let floor = answered(floor)?;
        let row = |bench, value: f64, unit, baseline: f64| {
            Row::new(
                bench,
                format!("{CLIENTS} clients, {}", self.name),
                value,
                unit,
                baseline,
            )
        };
        Ok([
            row("requests", taken.per_second(), "1/s", floor.per_second()),
            row("request p99", taken.p99_millis(), "ms", floor.p99_millis()),
        ])
    }
}

fn answered(taken: Taken) -> Result<Taken, BenchError> {
    match &taken.problem {
        None => Ok(taken),
        Some(problem) => Err(BenchError {
            doing: "have every request answered",
            why: format!(
                "{} of {} were not, the first because {problem}",
                taken.lost,
                taken.sent()
            ),
        }),
    }
}

fn health() -> Case {
    let request = load::request("GET", "/health", b"");
    Case {
        name: "GET /health",
        load: Load::new(CLIENTS, move |_, _| Some(request.clone())).lasting(CASE_TIME),
    }
}

async fn heartbeat(gateway: SocketAddr) -> Result<Case, BenchError> {
    // Known first, so that what is measured is an acknowledgement.
    let registrations = Load::new(CLIENTS, |client, nth| {
        let body = json!({
            "node_id": client,
            "ip_address": "127.0.0.1",
            "port": 4001,
            "capabilities": ["train"],
        });
        (nth == 0).then(|| load::request("POST", "/register", body.to_string().as_bytes()))
    });
    answered(registrations.run(gateway).await)?;
    let requests: Vec<Bytes> = (0..CLIENTS)
        .map(|client| {
            let body = json!({ "node_id": client }).to_string();
            load::request("POST", "/heartbeat", body.as_bytes())
        })
        .collect();
    Ok(Case {
        name: "POST /heartbeat",
        load: Load::new(CLIENTS, move |client, _| requests.get(client).cloned()).lasting(CASE_TIME),
    })
}

async fn renewal() -> Result<Case, BenchError> {
    // It computes for a second or two.
    let signing = tokio::task::spawn_blocking(|| {
        let sign_all = |_| {
            let keypair = Keypair::generate_ed25519();
            (1..=RENEWALS as u64).map(|seq| signed(&keypair, seq)).collect()
        };
        (0..CLIENTS).map(sign_all).collect::<Vec<Vec<Bytes>>>()
    });
    let signed = Arc::new(signing.await.map_err(failed("sign renewals"))?);
    Ok(Case {
        name: "POST /v1/nodes, signed",
        load: Load::new(CLIENTS, move |client, nth| signed.get(client)?.get(nth).cloned()).lasting(CASE_TIME),
    })
}

/// The registration of a node that nobody has heard of.
fn registration() -> Bytes {
    signed(&Keypair::generate_ed25519(), 1)
}

/// A registration such as a member's.
fn signed(keypair: &Keypair, seq: u64) -> Bytes {
    let message = Registration {
        peer_id: keypair.public().to_peer_id(),
        addrs: [
            "/ip4/192.0.2.1/udp/4001/quic-v1",
            "/ip4/127.0.0.1/udp/4001/quic-v1",
        ]
        .iter()
        .filter_map(|addr| addr.parse().ok())
        .collect(),
        name: "a node with a name".to_owned(),
        capabilities: vec!["train".to_owned()],
        role: Role::Main,
        cluster_id: None,
        term: None,
        leader: None,
        incarnation: 1,
        seq,
    };
    let body = Signed::new(message, keypair).and_then(|signed| serde_json::to_vec(&signed).ok());
    // A gateway refuses what is empty, and that ends the measurement.
    load::request("POST", "/v1/nodes", &body.unwrap_or_default())
}
