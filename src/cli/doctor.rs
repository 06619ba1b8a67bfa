//! `lapwing doctor`: what stands between this machine and a cluster, and what to do about it.
//!
//! It takes part in no cluster: it starts the network of a node under an identity of its own, asks the gateways for
//! mains, connects to them, has itself looked at from outside, and looks at the clock and the disk. What is wrong with
//! one thing keeps it from nothing else.

mod finding;
mod machine;
mod mains;
mod place;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use lapwing_base::{Keypair, Multiaddr, Protocol, Role, chain};
use lapwing_gateway::{Client, ClientConfig};
use lapwing_net::{CandidateRow, NatType, Path, Proxy, StartError, Transport};
use serde::Serialize;

use super::failure::Failure;
use super::output::{Align, Output, Table, millis};
use crate::config::{listen_defaults, user_data_dir};
use finding::{Finding, Verdict};
use mains::{Mains, Seen};

/// What to look at.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorFlags {
    /// Gateway to ask for mains; repeatable
    #[arg(long, env = "LAPWING_GATEWAY", value_name = "URL", value_delimiter = ',')]
    gateway: Vec<String>,

    /// Main to look for, as an address that ends with /p2p/PEER; repeatable
    #[arg(long, value_name = "MULTIADDR")]
    main: Vec<Multiaddr>,

    /// Address to listen on, as the node would: says whether a forwarded port is reached; repeatable [default: any port]
    #[arg(long, env = "LAPWING_LISTEN", value_name = "MULTIADDR", value_delimiter = ',')]
    listen: Vec<Multiaddr>,

    /// Where the node keeps its data, or would [default: the user's data directory]
    #[arg(long, env = "LAPWING_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Everything that was found. For programs: the figures have keys of their own, null where they are not known.
#[derive(Debug, Default, Serialize)]
struct Report {
    findings: Vec<Finding>,
    /// Mean time until 4 KiB are on the disk.
    disk_append_ms: Option<f64>,
    /// Our clock less that of the first gateway that tells the time.
    clock_skew_seconds: Option<f64>,
    /// What stands before the IPv4 addresses.
    nat: Option<NatType>,
    /// What stands before the IPv6 addresses.
    nat_ipv6: Option<NatType>,
    role: Option<Role>,
    /// Whether somebody has looked, and the role is not a guess.
    role_confirmed: bool,
    mains: Vec<MainRow>,
    tried: Vec<TriedRow>,
}

/// One main.
#[derive(Debug, Serialize)]
struct MainRow {
    peer_id: String,
    path: Option<Path>,
    transport: Option<Transport>,
    rtt_ms: Option<f64>,
    /// Why it cannot be reached.
    error: Option<String>,
}

/// One address of a main that was tried, as in `lapwing peers --tried`.
#[derive(Debug, Serialize)]
struct TriedRow {
    main: String,
    #[serde(flatten)]
    row: CandidateRow,
}

/// Looks at everything and tells. Fails where something is bad.
pub(crate) async fn run(flags: DoctorFlags, output: Output) -> Result<(), Failure> {
    let mut mains = named(&flags.main)?;
    let mut report = Report::default();
    let data_dir = flags.data_dir.or_else(|| user_data_dir("node"));
    let (finding, took) = machine::disk(data_dir.as_deref());
    report.findings.push(finding);
    report.disk_append_ms = took.map(milliseconds);
    let keypair = Keypair::generate_ed25519();
    for url in &flags.gateway {
        gateway(url, &keypair, &mut mains, &mut report).await;
    }
    let proxy = Proxy::from_environment(|variable| std::env::var(variable).ok());
    report.findings.extend(machine::proxy(&proxy, &mains.addresses()));
    // A network does not start with a proxy that cannot be used.
    if proxy.is_ok() {
        let listen = if flags.listen.is_empty() {
            // They are ours, and can be read.
            listen_defaults()
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect()
        } else {
            flags.listen.clone()
        };
        match mains::look(keypair, &mains, listen).await {
            Ok(seen) => report.take(seen, &mains, &flags.listen),
            Err(error) => report.findings.push(cannot_start(&error)),
        }
    }
    let bad = report
        .findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad);
    let bad = bad.count();
    if output.is_json() {
        output.document(&report)?;
    } else {
        output.line(table(&report.findings))?;
        if !report.tried.is_empty() {
            output.line("\nAddresses of mains that were tried:\n")?;
            output.line(tried_table(&report.tried))?;
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
        table.row([
            finding.verdict.mark().to_owned(),
            finding.topic.to_owned(),
            finding.found.clone(),
            finding.advice.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn tried_table(tried: &[TriedRow]) -> Table {
    let mut table = Table::new([
        ("main", Align::Left),
        ("address", Align::Left),
        ("outcome", Align::Left),
    ]);
    for tried in tried {
        let (address, outcome) = (&tried.row.address, &tried.row.outcome);
        table.row([tried.main.clone(), address.to_string(), outcome.to_string()]);
    }
    table
}

/// The mains of the command line.
fn named(addresses: &[Multiaddr]) -> Result<Mains, Failure> {
    let mut mains = Mains::default();
    for address in addresses {
        match address.iter().last() {
            Some(Protocol::P2p(peer)) => mains.add(peer, [address.clone()]),
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
async fn gateway(url: &str, keypair: &Keypair, mains: &mut Mains, report: &mut Report) {
    let config = ClientConfig {
        gateways: vec![url.to_owned()],
        ..ClientConfig::default()
    };
    let client = match Client::new(config, keypair.clone()) {
        Ok(client) => client,
        Err(error) => {
            let finding = Finding::bad("gateway", chain(&error), "correct the URL");
            return report.findings.push(finding);
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
            return report.findings.push(Finding::bad("gateway", found, advice));
        }
    };
    let known = discovered.nodes.iter().filter(|node| node.role == Role::Main);
    let answered = format!(
        "{url} answers in {} ms and knows {} nodes, {} of them mains",
        took.as_millis(),
        discovered.nodes.len(),
        known.clone().count()
    );
    report.findings.push(Finding::good("gateway", answered));
    for node in known {
        mains.add(node.peer_id, node.addrs.iter().cloned());
    }
    let (finding, skew) = machine::clock(url).await;
    report.findings.push(finding);
    report.clock_skew_seconds = report.clock_skew_seconds.or(skew);
}

impl Report {
    /// Takes in what a network has found out.
    fn take(&mut self, seen: Seen, mains: &Mains, listen: &[Multiaddr]) {
        for (peer, seen) in &seen.mains {
            let link = seen.as_ref().ok().copied().flatten();
            self.mains.push(MainRow {
                peer_id: peer.to_string(),
                path: link.map(|link| link.path),
                transport: link.map(|link| link.transport),
                rtt_ms: link.and_then(|link| link.rtt).map(milliseconds),
                error: seen.as_ref().err().cloned(),
            });
        }
        self.findings.extend(self.mains.iter().map(main_found));
        if mains.is_empty() {
            let advice = "give --gateway, or --main, so that somebody can look at this machine from outside";
            self.findings
                .push(Finding::fair("mains", "none was named", advice));
        } else if self.mains.iter().all(|main| main.error.is_some()) {
            let advice = "allow outgoing UDP, or TCP to port 443 of a main that listens there";
            self.findings
                .push(Finding::bad("mains", "none can be reached", advice));
        } else {
            let reach = &seen.reach;
            self.findings.extend(place::findings(reach, listen));
            (self.nat, self.nat_ipv6) = (Some(reach.nat), Some(reach.nat_v6));
            self.role = Some(reach.standing.role);
            self.role_confirmed = !reach.standing.provisional;
        }
        self.tried
            .extend(seen.tried.into_iter().map(|(main, row)| TriedRow {
                main: main.to_string(),
                row,
            }));
    }
}

fn main_found(main: &MainRow) -> Finding {
    let peer = &main.peer_id;
    let rtt = main
        .rtt_ms
        .map_or_else(String::new, |rtt| format!(", in {}", millis(rtt)));
    match (&main.error, main.transport, main.path) {
        (Some(error), ..) => Finding::fair(
            "main",
            error.clone(),
            "see the addresses below; it may be down, or a firewall may stand between",
        ),
        (None, Some(Transport::Wss), _) => Finding::fair(
            "main",
            format!("{peer} answers over WebSocket only{rtt}"),
            "allow outgoing UDP: QUIC is faster, and direct paths need it",
        ),
        (None, _, Some(Path::Direct)) => Finding::good("main", format!("{peer} answers directly{rtt}")),
        (None, _, Some(Path::Relayed)) => {
            Finding::good("main", format!("{peer} answers through a relay{rtt}"))
        }
        (None, _, None) => Finding::fair("main", format!("{peer} answered and is gone"), "look again"),
    }
}

/// Why the mains could not be asked.
fn cannot_start(error: &StartError) -> Finding {
    let advice = match error {
        StartError::AddressInUse { .. } => {
            "if it is a node of yours, stop it for as long as this looks, or leave --listen out"
        }
        _ => "correct --listen, or leave it out; the mains were not asked",
    };
    Finding::bad("network", chain(error), advice)
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_without_an_identity_is_wrong_usage() {
        let address: Multiaddr = "/ip4/1.2.3.4/udp/4001/quic-v1".parse().unwrap();
        assert!(named(&[address]).is_err());
    }

    #[test]
    fn a_round_trip_that_was_not_measured_is_not_told_as_zero() {
        let main = |rtt_ms| MainRow {
            peer_id: "A".to_owned(),
            path: Some(Path::Direct),
            transport: Some(Transport::Wss),
            rtt_ms,
            error: None,
        };
        assert_eq!(main_found(&main(None)).found, "A answers over WebSocket only");
        assert_eq!(
            main_found(&main(Some(1.23))).found,
            "A answers over WebSocket only, in 1.2 ms"
        );
    }
}
