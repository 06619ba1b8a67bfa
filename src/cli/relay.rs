//! `lapwing relay`: runs a node that only relays and routes calls, until it is asked to end.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lapwing::{MainSource, Relay, RelayConfig, RelayError, ServiceSpec};
use lapwing_base::{ClusterId, Multiaddr, PeerId, Role};
use lapwing_federation::{Announcement, NodeName};

use super::failure::Failure;
use super::interrupt::{Interrupt, Interrupts};
use super::output::Output;
use super::running;
use crate::federation_settings::{FederationFlags, exposed};
use lapwing_base::chain;

/// What can be set of a relay.
#[derive(Args, Clone, Debug)]
pub(crate) struct RelayFlags {
    /// Be a main: take in homes, know other mains, answer JSON-RPC over HTTP
    #[arg(long, env = "LAPWING_SERVER")]
    server: bool,

    /// Main or home [default: main with --server, home with --connect]
    #[arg(long, env = "LAPWING_NODE_TYPE", value_name = "TYPE")]
    node_type: Option<NodeType>,

    /// Main that this home dials: a URL such as ws://relay-a.com:8080, or a multiaddr
    #[arg(long, env = "LAPWING_CONNECT", value_name = "URL")]
    connect: Option<MainSource>,

    /// Main that this home dials where that one does not answer; repeatable, tried in order
    #[arg(long, env = "LAPWING_FALLBACK", value_name = "URL", value_delimiter = ',')]
    fallback: Vec<MainSource>,

    /// Other main that this main is connected with: a URL, a multiaddr, or srv:_lapwing._tcp.DOMAIN for all that the
    /// domain name system names; repeatable
    #[arg(
        long,
        env = "LAPWING_PEERS",
        value_name = "URL",
        value_delimiter = ',',
        visible_alias = "add-peer"
    )]
    peers: Vec<MainSource>,

    /// Gateway that knows of mains; repeatable
    #[arg(long, env = "LAPWING_GATEWAY", value_name = "URL", value_delimiter = ',')]
    gateway: Vec<String>,

    /// What the relay is called, such as relay-a.com or bob; belongs to whoever claims it first, and an ending that says its
    /// kind, .home or .main, does not belong to it [default: its peer id]
    #[arg(long, env = "LAPWING_NODE_ID", value_name = "NAME")]
    node_id: Option<NodeName>,

    /// Address to answer HTTP on [default: 0.0.0.0 for a main, 127.0.0.1 for a home]
    #[arg(long, env = "LAPWING_HOST", value_name = "ADDR")]
    host: Option<IpAddr>,

    /// Port to answer HTTP on; a main listens for other nodes on the same number of UDP. 0 picks free ones
    #[arg(long, env = "LAPWING_PORT", value_name = "PORT", default_value_t = 8080)]
    port: u16,

    /// Address to listen on for other nodes; repeatable [default: every interface, UDP]
    #[arg(long, env = "LAPWING_LISTEN", value_name = "MULTIADDR", value_delimiter = ',')]
    listen: Vec<Multiaddr>,

    /// Where the relay keeps its identity and its audit log [default: nowhere, and it is another node after each start]
    #[arg(long, env = "LAPWING_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Cluster to which the relay belongs [default: none]
    #[arg(long, env = "LAPWING_CLUSTER", value_name = "ID")]
    cluster: Option<ClusterId>,

    /// Home that this main takes in; repeatable [default: all of its cluster]
    #[arg(long, env = "LAPWING_ADMIT", value_name = "PEER", value_delimiter = ',')]
    admit: Vec<PeerId>,

    /// How many links away the relay's services are known: home, main, main, home are 3
    #[arg(long, env = "LAPWING_MAX_HOPS", value_name = "N", default_value_t = Announcement::HOPS_DEFAULT)]
    max_hops: u8,

    /// Let whoever reaches HTTP add mains and remove them
    #[arg(long, env = "LAPWING_PEERS_MAY_CHANGE")]
    peers_may_change: bool,

    /// Offer nothing, not even the built-in echo: for a relay that only calls and carries
    #[arg(long, env = "LAPWING_DISABLE_REGISTRY")]
    disable_registry: bool,

    #[command(flatten)]
    federation: FederationFlags,

    /// File with a service a line, as --service has it; empty lines and those that begin with # do not count
    #[arg(value_name = "SERVICES_FILE")]
    services_file: Option<PathBuf>,
}

/// The two kinds of relays.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum NodeType {
    Main,
    Home,
}

/// The largest file of services: as many as may be offered, with long commands.
const SERVICES_FILE_MAX: u64 = 1 << 20;

/// Runs a relay.
pub(crate) async fn run(flags: RelayFlags, output: Output) -> Result<(), Failure> {
    let mut interrupts = Interrupts::catch().map_err(|error| Failure::new("catch signals", error))?;
    let config = flags.config()?;
    let (data_dir, role) = (config.data_dir.clone(), config.role);
    let name = config.name.as_ref().map(|name| name.as_str().to_owned());
    if name.is_some() && data_dir.is_none() {
        tracing::warn!(
            "without --data-dir this relay is another node after each start: should it crash, others keep its name for the one before, for ten minutes"
        );
    }
    let relay = tokio::select! {
        biased;
        _ = interrupts.next() => return Err(Failure::Interrupted),
        started = Relay::start(config) => started.map_err(not_started)?,
    };
    let peer = relay.peer_id();
    let name = name.unwrap_or_else(|| peer.to_string());
    let entry = data_dir.and_then(|dir| {
        running::enter(&peer, &name, &dir).unwrap_or_else(|error| {
            tracing::warn!(%error, "other commands need --data-dir to find this relay: its entry cannot be written");
            None
        })
    });
    let url = format!("http://{}", relay.http_addr());
    let told = if output.is_json() {
        output.document(&serde_json::json!({
            "peer_id": peer.to_string(), "name": name, "node_type": role.to_string(), "url": url,
        }))
    } else {
        output.line(format!("{role} relay {name} ({peer}), JSON-RPC at {url}/rpc"))
    };
    let outcome = match told {
        // Whoever started us may not care to read on; we serve all the same.
        Ok(()) | Err(Failure::OutputClosed) => tokio::select! {
            biased;
            interrupt = interrupts.next() => match interrupt {
                Interrupt::Keyboard => Err(Failure::Interrupted),
                Interrupt::Terminate | Interrupt::HangUp => Ok(()),
            },
            () = relay.ended() => Err(Failure::new(
                "keep the relay running",
                "its network has ended by itself, which is a defect: start it again",
            )),
        },
        Err(failure) => Err(failure),
    };
    drop(entry);
    tokio::select! {
        biased;
        () = relay.shutdown() => (),
        _ = interrupts.next() => tracing::warn!("asked twice to end: the relay ends at once"),
    }
    outcome
}

/// What was asked for wrongly is wrong usage; what the machine refuses is a failure.
fn not_started(error: RelayError) -> Failure {
    match error {
        RelayError::Gateway(lapwing_gateway::ConfigError::Url { .. })
        | RelayError::Spans(_)
        | RelayError::Announcement(_)
        | RelayError::Service { .. } => Failure::usage(chain(&error)),
        error => Failure::new("start the relay", error),
    }
}

impl RelayFlags {
    /// Main or home: as it says, or as the other flags suggest.
    fn role(&self) -> Result<Role, Failure> {
        let role = match (self.node_type, self.server, self.connect.is_some()) {
            (Some(NodeType::Home), true, _) => {
                return Err(Failure::usage(
                    "--server and --node-type home contradict each other: leave out --server for a home, or --node-type for a main",
                ));
            }
            (Some(NodeType::Main), ..) => Role::Main,
            (Some(NodeType::Home), false, _) => Role::Home,
            (None, true, true) => {
                return Err(Failure::usage(
                    "--server and --connect contradict each other: leave out --connect for a main, which is told of other mains by --peers, or --server for a home",
                ));
            }
            (None, true, false) => Role::Main,
            (None, false, true) => Role::Home,
            (None, false, false) => {
                return Err(Failure::usage(
                    "a relay is a main or a home; give --server, or the main that it dials as --connect",
                ));
            }
        };
        match role {
            Role::Home if !self.peers.is_empty() => Err(Failure::usage(
                "--peers is for mains, and this relay is a home: give its main as --connect, others as --fallback",
            )),
            Role::Home if self.connect.is_none() && self.gateway.is_empty() => Err(Failure::usage(
                "--node-type home needs --connect, the main that it dials, or a --gateway that knows of mains",
            )),
            Role::Home if !self.admit.is_empty() => Err(Failure::usage(
                "--admit is for mains, and this relay is a home: nobody dials it",
            )),
            Role::Home if !self.federation.balance.is_empty() => Err(Failure::usage(
                "--balance is for mains, and this relay is a home: its main chooses who is called",
            )),
            Role::Home if self.federation.says_what_crosses_clusters() => Err(Failure::usage(
                "--let-out, --let-in and --foreign-calls are for mains, and this relay is a home: what it offers to nobody else is said by --keep",
            )),
            Role::Main if !self.fallback.is_empty() => Err(Failure::usage(
                "--fallback is for homes, and this relay is a main: other mains are named by --peers",
            )),
            Role::Main if self.connect.is_some() => Err(Failure::usage(
                "--connect is for homes, and --node-type main makes a main: leave out --connect, and name other mains by --peers; or leave out --node-type for a home",
            )),
            role => Ok(role),
        }
    }

    fn config(self) -> Result<RelayConfig, Failure> {
        let role = self.role()?;
        let name = self.node_id.map(|name| name.own(Some(role)));
        let name = name
            .transpose()
            .map_err(|error| Failure::usage(format!("--node-id: {error}")))?;
        let mut policy = self
            .federation
            .policy()
            .map_err(|error| Failure::usage(chain(&error)))?;
        policy.homes = (!self.admit.is_empty()).then(|| self.admit.iter().copied().collect::<BTreeSet<_>>());
        let balancing = self
            .federation
            .balancing()
            .map_err(|error| Failure::usage(chain(&error)))?;
        let mut services = self.federation.service;
        if let Some(file) = &self.services_file {
            let failed = |error| Failure::new(format!("read the services in {}", file.display()), error);
            let size = fs::metadata(file).map_err(failed)?.len();
            if size > SERVICES_FILE_MAX {
                return Err(Failure::usage(format!(
                    "{} has {size} bytes, and a file of services at most {SERVICES_FILE_MAX}",
                    file.display()
                )));
            }
            let text = fs::read_to_string(file).map_err(failed)?;
            services.extend(
                services_in(&text)
                    .map_err(|problem| Failure::usage(format!("{}, {problem}", file.display())))?,
            );
        }
        if self.disable_registry && !services.is_empty() {
            return Err(Failure::usage(
                "--disable-registry offers nothing, and services to offer are given",
            ));
        }
        let services = exposed(services, &self.federation.keep, &self.federation.service_token)
            .map_err(|error| Failure::usage(chain(&error)))?;
        let host = self.host.unwrap_or(match role {
            Role::Main => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Role::Home => IpAddr::V4(Ipv4Addr::LOCALHOST),
        });
        let listen = if self.listen.is_empty() {
            listen_defaults(role, self.port)
        } else {
            self.listen
        };
        let mains = match role {
            Role::Main => self.peers,
            Role::Home => self.connect.into_iter().chain(self.fallback).collect(),
        };
        Ok(RelayConfig {
            role,
            name,
            data_dir: self.data_dir,
            http: SocketAddr::new(host, self.port),
            listen,
            mains,
            gateways: self.gateway,
            cluster: self.cluster,
            policy,
            balancing,
            services,
            has_echo: !self.disable_registry,
            hops_max: self.max_hops,
            peers_may_change: self.peers_may_change,
        })
    }
}

/// The services of a file, a line each.
fn services_in(text: &str) -> Result<Vec<ServiceSpec>, String> {
    let lines = text.lines().enumerate();
    let said = lines.map(|(number, line)| (number + 1, line.trim()));
    said.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| line.parse().map_err(|error| format!("line {number}: {error}")))
        .collect()
}

/// A main is found at the number that its HTTP has; a home dials out from anywhere.
fn listen_defaults(role: Role, port: u16) -> Vec<Multiaddr> {
    let port = if role == Role::Main { port } else { 0 };
    let texts = crate::config::listen_defaults();
    let at_port = |text: String| text.replace("/udp/0/", &format!("/udp/{port}/"));
    texts
        .into_iter()
        .filter_map(|text| at_port(text).parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        relay: RelayFlags,
    }

    fn config(line: &str) -> Result<RelayConfig, String> {
        let parsed = Line::try_parse_from(["relay"].into_iter().chain(line.split_whitespace()));
        let config = parsed.map_err(|error| error.to_string())?.relay.config();
        config.map_err(|failure| failure.text().unwrap_or_default())
    }

    #[test]
    fn the_kind_of_a_relay_follows_from_what_it_is_told() {
        let role = |line: &str| config(line).map(|config| config.role);
        assert_eq!(role("--server"), Ok(Role::Main));
        assert_eq!(role("--connect ws://relay-a:8080"), Ok(Role::Home));
        assert_eq!(role("--node-type main"), Ok(Role::Main));
        assert_eq!(role("--node-type home --connect relay-a:8080"), Ok(Role::Home));
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused_and_both_named() {
        for (line, flags) in [
            (
                "--server --node-type home",
                ["leave out --server", "--node-type home"],
            ),
            (
                "--server --connect ws://a:1",
                ["leave out --connect", "or --server for a home"],
            ),
            ("--connect ws://a:1 --peers ws://b:1", ["--peers", "--connect"]),
            ("--node-type home", ["--node-type home", "--connect"]),
            ("--connect ws://a:1 --balance random", ["--balance", "a home"]),
            ("--connect ws://a:1 --let-out blog", ["--let-out", "--keep"]),
            ("--server --fallback ws://b:1", ["--fallback", "--peers"]),
            (
                "--node-type main --connect ws://b:1",
                ["--connect", "--node-type main"],
            ),
            (
                "--server --disable-registry --service a=echo:",
                ["--disable-registry", "services"],
            ),
        ] {
            let error = config(line).unwrap_err();
            assert!(flags.iter().all(|flag| error.contains(flag)), "{line}: {error}");
        }
        assert!(config("").unwrap_err().contains("--server"));
    }

    #[test]
    fn a_main_listens_at_the_number_of_its_http_and_a_home_on_loopback_only() {
        let main = config("--server --port 9090 --peers ws://b:1,ws://c:1").unwrap();
        assert_eq!(main.http, "0.0.0.0:9090".parse().unwrap());
        assert!(
            main.listen
                .iter()
                .all(|addr| addr.to_string().contains("/udp/9090/"))
        );
        assert_eq!(main.mains.len(), 2);
        let home =
            config("--connect ws://a:1 --fallback ws://b:1 --service blog=http://127.0.0.1:1/rpc").unwrap();
        assert_eq!(home.http, "127.0.0.1:8080".parse().unwrap());
        assert!(
            home.listen
                .iter()
                .all(|addr| addr.to_string().contains("/udp/0/"))
        );
        assert_eq!(home.mains.len(), 2);
        assert_eq!(home.services.len(), 1);
    }

    #[test]
    fn a_relay_is_named_with_the_ending_of_its_kind_or_without_and_never_with_the_other() {
        let name = |line: &str| {
            let config = config(line)?;
            Ok::<_, String>(config.name.map(|name| name.as_str().to_owned()))
        };
        let alice = Ok(Some("alice".to_owned()));
        assert_eq!(name("--connect ws://a:1 --node-id alice.home"), alice);
        assert_eq!(name("--connect ws://a:1 --node-id alice"), alice);
        assert_eq!(
            name("--server --node-id relay-a.com.main"),
            Ok(Some("relay-a.com".to_owned()))
        );
        let error = name("--connect ws://a:1 --node-id alice.main").unwrap_err();
        assert!(
            error.contains("--node-id") && error.contains("leave `.main` out"),
            "{error}"
        );
    }

    #[test]
    fn a_file_of_services_says_in_which_line_it_is_wrong() {
        let services = services_in("# ours\n\nblog=http://127.0.0.1:9000/rpc\n  echo2=echo:\n").unwrap();
        assert_eq!(services.len(), 2);
        let error = services_in("blog=echo:\nshop\n").unwrap_err();
        assert!(error.starts_with("line 2"), "{error}");
    }
}
