//! A node for tests with other implementations: obeys lines on standard input, and answers each with a line of JSON.
//!
//! | line                  | what it does                                                                  |
//! | --------------------- | ----------------------------------------------------------------------------- |
//! | `status`              | nothing; says where this node can be reached, and all that it knows of peers  |
//! | `learn PEER ADDRESS…` | replaces the addresses that are known of a peer                               |
//! | `relay PEER`          | takes a peer for a relay: a home reserves there                               |
//! | `echo PEER MS`        | has a peer send a frame back, which only a node of ours does                  |
//!
//! It stops at the end of its input. Arguments: `main` or `home`, which is its role, and where it listens. A main
//! relays for everybody.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapwing_base::{ByteSize, Class, Keypair, Multiaddr, PeerId, Role};
use lapwing_net::{Access, Gate, Kind, Network, NetworkConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::watch;
use tokio::task::JoinSet;

const ECHO: Kind = Kind {
    class: Class::Call,
    name: "interop-echo",
    access: Access::Anyone,
    frame_max: ByteSize(1024),
};

/// Echoes at once: the tests have one.
const ECHOES: usize = 4;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let role = match arguments.next().as_deref() {
        Some("main") => Role::Main,
        Some("home") => Role::Home,
        _ => return Err("name a role: main or home".into()),
    };
    let config = NetworkConfig {
        listen: vec![arguments.next().ok_or("say where to listen")?.parse()?],
        role: Some(role),
        relays_strangers: role == Role::Main,
        maps_port: false,
        // Nobody is to be found but by what a test says.
        finds_neighbours: false,
        ..NetworkConfig::new(Keypair::generate_ed25519())
    };
    let (gate, gates) = watch::channel(Gate::default());
    let network = Network::start(config, gates).await?;
    let mut inbound = network.serve(ECHO, ECHOES);
    let mut echoes = JoinSet::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut out = tokio::io::stdout();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line? else { break };
                let answer = match obey(&network, &gate, &line).await {
                    Ok(answer) => answer,
                    Err(error) => json!({ "error": error.to_string() }),
                };
                out.write_all(format!("{answer}\n").as_bytes()).await?;
                out.flush().await?;
            }
            Some(mut channel) = inbound.recv() => {
                echoes.spawn(async move {
                    // Whoever asked sees what is missing.
                    if let Ok(Some(frame)) = channel.receive().await {
                        let _ = channel.send(&frame).await;
                        let _ = channel.finish().await;
                    }
                });
            }
            Some(_) = echoes.join_next() => (),
        }
    }
    network.shutdown().await;
    Ok(())
}

async fn obey(network: &Network, gate: &watch::Sender<Gate>, line: &str) -> Result<Value, Box<dyn Error>> {
    let mut words = line.split_whitespace();
    let verb = words.next().ok_or("an empty line")?;
    if verb == "status" {
        return Ok(status(network));
    }
    let peer: PeerId = words.next().ok_or("name a peer")?.parse()?;
    match verb {
        "learn" => {
            let addresses = words.map(str::parse).collect::<Result<Vec<Multiaddr>, _>>()?;
            network.learn(peer, addresses);
            Ok(json!({}))
        }
        "relay" => {
            gate.send_modify(|gate| gate.mains = Arc::new(HashSet::from([peer])));
            Ok(json!({}))
        }
        "echo" => {
            let patience = Duration::from_millis(words.next().ok_or("say for how long to wait")?.parse()?);
            let asked_at = now();
            let answer = network.request(peer, ECHO, b"interop", patience).await?;
            if &*answer != b"interop" {
                return Err("something else came back".into());
            }
            Ok(json!({ "ms": now().duration_since(asked_at).as_secs_f64() * 1e3 }))
        }
        _ => Err(format!("no such thing as {verb}").into()),
    }
}

fn status(network: &Network) -> Value {
    let status = network.status();
    let reservations = status.reach.reservations.iter();
    let advertised = status.reach.advertised.iter();
    json!({
        "peer": status.peer.to_string(),
        "listen": status.listen.iter().map(Multiaddr::to_string).collect::<Vec<_>>(),
        "advertised": advertised.map(Multiaddr::to_string).collect::<Vec<_>>(),
        "reservations": reservations.map(|(relay, _)| relay.to_string()).collect::<Vec<_>>(),
        "peers": status.peers,
    })
}

#[expect(clippy::disallowed_methods, reason = "an example measures on the real clock")]
fn now() -> Instant {
    Instant::now()
}
