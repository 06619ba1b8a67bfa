//! `lapwing doctor`: what stands between this machine and a cluster, and what to do about it.
//!
//! It takes part in no cluster: it starts the network of a node under an identity of its own, asks the gateways for
//! mains, connects to them, has itself looked at from outside, and looks at the clock and the disk.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use lapwing_base::{Keypair, Multiaddr, PeerId, Role, chain};
use lapwing_gateway::{Client, ClientConfig};
use lapwing_net::{CandidateRow, Gate, Mapping, Network, NetworkConfig, Path, ReachStatus, Transport, Udp};
use serde::Serialize;
use tokio::sync::watch;

use super::failure::Failure;
use super::folder::Folder;
use super::output::{Align, Output, Table};

/// What to look at.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorFlags {
    /// Gateway to ask for mains; repeatable
    #[arg(long, env = "LAPWING_GATEWAY", value_name = "URL", value_delimiter = ',')]
    gateway: Vec<String>,

    /// Main to look for, as an address that ends with /p2p/PEER; repeatable
    #[arg(long, value_name = "MULTIADDR")]
    main: Vec<Multiaddr>,

    /// Folder on the disk in question [default: the current one]
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    data_dir: PathBuf,
}

/// Mains that are asked: one to be reached by, one to look from another place, one more against a dead one.
const MAINS_MAX: usize = 3;

/// A main answers within this, or is of no use: a climb over all paths.
const MAIN_PATIENCE: Duration = Duration::from_secs(8);

/// Being looked at from outside: a question that is passed on, its patience, and once again.
const LOOK_PATIENCE: Duration = Duration::from_secs(12);

/// A certificate, a vote's deadline or a log line is off by less than this without harm.
const SKEW_MAX: Duration = Duration::from_secs(5);

/// An append that a vote waits for; the disks of the slowest machines that people use take about 30 ms.
const SYNC_SLOW: Duration = Duration::from_millis(50);

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
struct Finding {
    topic: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do; nothing where all is well.
    advice: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// It works, and could work better.
    Fair,
    Bad,
}

impl Finding {
    fn good(topic: &'static str, found: impl Into<String>) -> Self {
        Self::new(topic, Verdict::Good, found, None)
    }

    fn fair(topic: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(topic, Verdict::Fair, found, Some(advice.into()))
    }

    fn bad(topic: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(topic, Verdict::Bad, found, Some(advice.into()))
    }

    fn new(topic: &'static str, verdict: Verdict, found: impl Into<String>, advice: Option<String>) -> Self {
        Self {
            topic,
            verdict,
            found: found.into(),
            advice,
        }
    }
}

/// One address of a main that was tried.
#[derive(Clone, Debug, Serialize)]
struct Tried {
    main: String,
    address: String,
    outcome: String,
}

/// Looks at everything and tells. Fails where something is bad.
pub(crate) async fn run(flags: DoctorFlags, output: Output) -> Result<(), Failure> {
    let mut findings = vec![disk(&flags.data_dir)?];
    let keypair = Keypair::generate_ed25519();
    let mut mains = named(&flags.main)?;
    for url in &flags.gateway {
        let (found, known) = gateway(url, &keypair).await;
        findings.extend(found);
        mains.extend(known);
    }
    mains.truncate(MAINS_MAX);
    let (seen, tried) = network(keypair, mains).await?;
    findings.extend(seen);
    if std::env::var_os("HTTPS_PROXY")
        .or_else(|| std::env::var_os("https_proxy"))
        .is_some()
    {
        // What it says may hold a password.
        findings.push(Finding::good(
            "proxy",
            "HTTPS_PROXY is set, and WebSocket goes through it",
        ));
    }
    let bad = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad)
        .count();
    if output.is_json() {
        output.document(&serde_json::json!({ "findings": findings, "tried": tried }))?;
    } else {
        output.line(table(&findings))?;
        if !tried.is_empty() {
            output.line("\nAddresses of mains that were tried:\n")?;
            output.line(tried_table(&tried))?;
        }
    }
    if bad == 0 {
        Ok(())
    } else {
        Err(Failure::new("find this machine in order", Unwell(bad)))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} of the findings above are bad; each says what to do")]
struct Unwell(usize);

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new([
        ("", Align::Left),
        ("what", Align::Left),
        ("found", Align::Left),
        ("to do", Align::Left),
    ]);
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "good",
            Verdict::Fair => "fair",
            Verdict::Bad => "BAD",
        };
        table.row([
            mark.to_owned(),
            finding.topic.to_owned(),
            finding.found.clone(),
            finding.advice.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn tried_table(tried: &[Tried]) -> Table {
    let mut table = Table::new([
        ("main", Align::Left),
        ("address", Align::Left),
        ("outcome", Align::Left),
    ]);
    for tried in tried {
        table.row([tried.main.clone(), tried.address.clone(), tried.outcome.clone()]);
    }
    table
}

/// The mains of the command line.
fn named(addresses: &[Multiaddr]) -> Result<Vec<(PeerId, Vec<Multiaddr>)>, Failure> {
    let mut mains = Vec::new();
    for address in addresses {
        match address.iter().last() {
            Some(lapwing_base::Protocol::P2p(peer)) => mains.push((peer, vec![address.clone()])),
            _ => {
                let text =
                    format!("--main {address} does not end with /p2p/PEER, so nobody can be expected there");
                return Err(Failure::usage(text));
            }
        }
    }
    Ok(mains)
}

/// Asks one gateway, and compares its clock.
async fn gateway(url: &str, keypair: &Keypair) -> (Vec<Finding>, Vec<(PeerId, Vec<Multiaddr>)>) {
    let config = ClientConfig {
        gateways: vec![url.to_owned()],
        ..ClientConfig::default()
    };
    let client = match Client::new(config, keypair.clone()) {
        Ok(client) => client,
        Err(error) => {
            return (
                vec![Finding::bad("gateway", error.to_string(), "correct the URL")],
                Vec::new(),
            );
        }
    };
    let begun = now();
    let discovered = client.discover().await;
    let took = now().duration_since(begun);
    client.shutdown().await;
    let discovered = match discovered {
        Ok(discovered) => discovered,
        Err(error) => {
            let found = format!("{url}: {}", chain(&error));
            let advice = "check the address, and that nothing between here and there blocks HTTP";
            return (vec![Finding::bad("gateway", found, advice)], Vec::new());
        }
    };
    let mains: Vec<_> = discovered
        .nodes
        .iter()
        .filter(|node| node.role == Role::Main)
        .map(|node| (node.peer_id, node.addrs.clone()))
        .collect();
    let answered = format!(
        "{url} answers in {} ms and knows {} nodes, {} of them mains",
        took.as_millis(),
        discovered.nodes.len(),
        mains.len()
    );
    let mut findings = vec![Finding::good("gateway", answered)];
    findings.extend(clock(url).await);
    (findings, mains)
}

/// Compares the clock with a gateway's, which tells whole seconds.
async fn clock(url: &str) -> Option<Finding> {
    let health = format!("{}/health", url.trim_end_matches('/'));
    let asked = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .build()
        .ok()?;
    let begun = now();
    let answer = asked.get(health).send().await.ok()?;
    let date = answer.headers().get(reqwest::header::DATE)?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()? + Duration::from_millis(500);
    let ours = wall_clock() - now().duration_since(begun) / 2;
    let (skew, which) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let found = format!("{:.1} s {which} the gateway's", skew.as_secs_f64());
    Some(if skew <= SKEW_MAX {
        Finding::good("clock", found)
    } else {
        Finding::fair(
            "clock",
            found,
            "set the clock (timedatectl set-ntp true); logs and expiries disagree otherwise",
        )
    })
}

/// How long an append takes that has to be on the disk.
fn disk(dir: &std::path::Path) -> Result<Finding, Failure> {
    const APPENDS: u32 = 32;
    let folder = Folder::new(dir, "lapwing-doctor", false)
        .map_err(|error| Failure::new("write to the disk", error))?;
    let measure = || -> std::io::Result<Duration> {
        let mut file = std::fs::File::create(folder.path().join("appends"))?;
        let begun = now();
        for _ in 0..APPENDS {
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
        }
        Ok(now().duration_since(begun) / APPENDS)
    };
    let each = measure().map_err(|error| Failure::new("write to the disk", error))?;
    let found = format!(
        "an append of 4 KiB is on the disk after {:.1} ms",
        each.as_secs_f64() * 1e3
    );
    Ok(if each <= SYNC_SLOW {
        Finding::good("disk", found)
    } else {
        let advice = "put --data-dir on another disk; every vote and every commit waits for this";
        Finding::fair("disk", found, advice)
    })
}

/// Starts a network, connects to the mains and has itself looked at.
async fn network(
    keypair: Keypair,
    mains: Vec<(PeerId, Vec<Multiaddr>)>,
) -> Result<(Vec<Finding>, Vec<Tried>), Failure> {
    let gate = Gate {
        mains: Arc::new(mains.iter().map(|(peer, _)| *peer).collect()),
        ..Gate::default()
    };
    let (_gate, gates) = watch::channel(gate);
    let network = Network::start(NetworkConfig::new(keypair), gates)
        .await
        .map_err(|error| Failure::new("start the network", error))?;
    let mut findings = Vec::new();
    let mut tried = Vec::new();
    let mut connecting = tokio::task::JoinSet::new();
    for (peer, addresses) in mains.iter().cloned() {
        network.learn(peer, addresses);
        let network = network.clone();
        connecting.spawn(async move { (peer, network.connect(peer, MAIN_PATIENCE).await) });
    }
    let mut reached = 0;
    while let Some(connected) = connecting.join_next().await {
        let Ok((peer, connected)) = connected else {
            continue;
        };
        match connected {
            Ok(()) => {
                reached += 1;
                findings.push(main_found(&network, peer));
            }
            Err(error) => findings.push(Finding::fair(
                "main",
                format!("{peer}: {error}"),
                "see the addresses below; it may be down, or a firewall may stand between",
            )),
        }
    }
    if mains.is_empty() {
        let advice = "give --gateway, or --main, so that somebody can look at this machine from outside";
        findings.push(Finding::fair("mains", "none was named", advice));
    } else if reached == 0 {
        let advice = "allow outgoing UDP, or TCP to port 443 of a main that listens there";
        findings.push(Finding::bad("mains", "none can be reached", advice));
    } else {
        let mut reach = network.reach();
        let settled = reach.wait_for(|reach| !reach.standing.provisional);
        // Without a third party it may stay provisional, which is told.
        let _ = tokio::time::timeout(LOOK_PATIENCE, settled).await;
    }
    for (peer, _) in &mains {
        let rows = network.candidates(*peer).await;
        tried.extend(rows.into_iter().map(|row| tried_row(*peer, &row)));
    }
    let reach = network.reach().borrow().clone();
    findings.extend(standing(&reach, reached > 0));
    network.shutdown().await;
    Ok((findings, tried))
}

fn main_found(network: &Network, peer: PeerId) -> Finding {
    let status = network.status();
    let link = status
        .peers
        .iter()
        .find(|status| status.peer == peer)
        .and_then(|status| status.link);
    match link {
        Some(link) if link.transport == Transport::Wss => Finding::fair(
            "main",
            format!(
                "{peer} answers over WebSocket only, in {:.0} ms",
                link.rtt.as_secs_f64() * 1e3
            ),
            "allow outgoing UDP: QUIC is faster, and direct paths need it",
        ),
        Some(link) => {
            let path = if link.path == Path::Direct {
                "directly"
            } else {
                "through a relay"
            };
            Finding::good(
                "main",
                format!("{peer} answers {path}, in {:.1} ms", link.rtt.as_secs_f64() * 1e3),
            )
        }
        None => Finding::fair("main", format!("{peer} answered and is gone"), "look again"),
    }
}

fn tried_row(main: PeerId, row: &CandidateRow) -> Tried {
    Tried {
        main: main.to_string(),
        address: row.address.to_string(),
        outcome: row.outcome.to_string(),
    }
}

/// What the network has found out about itself.
fn standing(reach: &ReachStatus, asked: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !asked {
        return findings;
    }
    findings.push(match reach.nat.udp {
        Udp::Open => Finding::good("UDP", "passes"),
        Udp::Blocked => Finding::bad(
            "UDP",
            "is blocked on this network",
            "ask for outgoing UDP to be allowed; until then everything goes over TLS to a main, and is relayed",
        ),
        Udp::Unknown => Finding::fair("UDP", "is not known to pass", "look again with a gateway that knows a main"),
    });
    let seen = reach
        .observed
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let seen = if seen.is_empty() {
        "no address yet".to_owned()
    } else {
        seen
    };
    findings.push(match reach.nat.mapping {
        Mapping::None => Finding::good("NAT", format!("none; others see {seen}")),
        Mapping::EndpointIndependent => Finding::good(
            "NAT",
            format!("one port for everybody (endpoint-independent); others see {seen}"),
        ),
        Mapping::AddressDependent | Mapping::Symmetric => Finding::fair(
            "NAT",
            "another port for everybody (symmetric)",
            "direct paths to other symmetric NATs are not possible: switch on UPnP or NAT-PMP in the router, \
             forward a port, or use IPv6",
        ),
        Mapping::Unknown => Finding::fair(
            "NAT",
            format!("not enough mains have looked; others see {seen}"),
            "look again when the gateway knows two mains in different places",
        ),
    });
    findings.push(match (reach.standing.role, reach.standing.provisional) {
        (Role::Main, false) => Finding::good(
            "role",
            "main: everybody reaches this machine, so it may relay and vote",
        ),
        (Role::Main, true) => Finding::good("role", "main, as far as anybody has looked"),
        (Role::Home, false) => Finding::good(
            "role",
            "home: it dials out and is reached through relays; nothing is needed",
        ),
        (Role::Home, true) => Finding::good("role", "home, as far as anybody has looked"),
    });
    findings
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "it looks at the clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_net::NatType;

    #[test]
    fn a_blocked_network_is_bad_and_says_what_to_ask_for() {
        let reach = ReachStatus {
            nat: NatType {
                udp: Udp::Blocked,
                ..NatType::default()
            },
            ..ReachStatus::default()
        };
        let findings = standing(&reach, true);
        let udp = findings.iter().find(|finding| finding.topic == "UDP").unwrap();
        assert_eq!(udp.verdict, Verdict::Bad);
        assert!(udp.advice.as_ref().unwrap().contains("outgoing UDP"));
    }

    #[test]
    fn a_symmetric_nat_works_and_could_work_better() {
        let reach = ReachStatus {
            nat: NatType {
                mapping: Mapping::Symmetric,
                udp: Udp::Open,
                ..NatType::default()
            },
            ..ReachStatus::default()
        };
        let findings = standing(&reach, true);
        let nat = findings.iter().find(|finding| finding.topic == "NAT").unwrap();
        assert_eq!(nat.verdict, Verdict::Fair);
    }

    #[test]
    fn a_main_without_an_identity_is_wrong_usage() {
        let address: Multiaddr = "/ip4/1.2.3.4/udp/4001/quic-v1".parse().unwrap();
        assert!(named(&[address]).is_err());
    }
}
