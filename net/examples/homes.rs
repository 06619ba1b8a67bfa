//! Measures how many homes one main carries: memory and processor time of the main, how long until everybody is
//! connected and reserved and has its link measured, and how long until everybody is back after the main was killed.
//!
//! `homes COUNT` starts the main in a process of its own and the homes in this one, each with an identity, a socket
//! and a connection of its own; `homes COUNT SECONDS` waits no longer than that for links to be measured. Linux only: it reads what the kernel tells of the main in `/proc`.
#![expect(clippy::unwrap_used, reason = "a measurement that fails has nothing to say")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use lapwing_base::{ByteSize, Class, ClusterId, Keypair, Multiaddr, PeerId, Role};
use lapwing_net::{Access, Gate, Kind, Network, NetworkConfig, ReachStatus};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

const ECHO: Kind = Kind {
    class: Class::Control,
    name: "echo",
    access: Access::Members,
    frame_max: ByteSize::kib(1),
};

/// What the main knows of itself, as text.
const STATE: Kind = Kind {
    name: "state",
    ..ECHO
};

/// Homes that start at the same time; more would only wait for the processor.
const STARTING_MAX: usize = 64;

/// For everybody to come, and to come back.
const PATIENCE: Duration = Duration::from_secs(120);

/// For every link to be measured: twice as long as ten thousand homes put it off.
const MEASURING_PATIENCE: Duration = Duration::from_secs(1000);

/// How long the main is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(10);

const USAGE: &str = "usage: homes COUNT [SECONDS]";

#[tokio::main]
async fn main() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["main", count, port] => serve(count.parse().unwrap(), port.parse().unwrap()).await,
        [count] if count.parse::<u32>().is_ok() => measure(count.parse().unwrap(), MEASURING_PATIENCE).await,
        [count, seconds] if count.parse::<u32>().is_ok() && seconds.parse::<u64>().is_ok() => {
            let patience = Duration::from_secs(seconds.parse().unwrap());
            measure(count.parse().unwrap(), patience).await;
        }
        _ => eprintln!("{USAGE}"),
    }
}

/// Is the main, until it is killed.
async fn serve(count: u32, port: u16) {
    let (_gate, watched) = watch::channel(gate(count));
    let config = NetworkConfig {
        listen: vec![loopback(Ipv4Addr::LOCALHOST, port)],
        role: Some(Role::Main),
        maps_port: false,
        ..NetworkConfig::new(keypair(0))
    };
    let network = Network::start(config, watched).await.unwrap();
    println!("{}", network.listen_addrs()[0]);
    let mut questions = network.serve(STATE, 1);
    // All homes may ask at once.
    let mut inbound = network.serve(ECHO, count as usize);
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            Some(mut channel) = inbound.recv() => {
                answers.spawn(async move {
                    while let Ok(Some(frame)) = channel.receive().await {
                        if channel.send(&frame).await.is_err() {
                            return;
                        }
                    }
                });
            }
            Some(mut channel) = questions.recv() => {
                let status = network.status();
                let measured = status.peers.iter().filter(|peer| peer.download.is_some()).count();
                let said = format!("it has measured {measured} of them, and turned away: {:?}", status.refused);
                // Nobody asks any more where this fails.
                let _ = channel.send(said.as_bytes()).await;
            }
            Some(_) = answers.join_next() => (),
            else => break,
        }
    }
}

async fn measure(count: u32, patience: Duration) {
    let mut main = Main::start(count, 0);
    let address: Multiaddr = main.lines.next_line().await.unwrap().unwrap().parse().unwrap();
    let empty = main.memory();
    println!("main, alone: {}", main.shown());
    let (gates, watched) = watch::channel(gate(count));
    let begun = Instant::now();
    let homes = start(count, &address, &watched).await;
    println!("{count} homes started in {:.1?}", begun.elapsed());
    let came = all(&homes, begun, has_reservation).await;
    println!("connected and reserved: {came}");
    answered(&homes).await;
    let full = main.memory();
    let each = (full.0 - empty.0) / u64::from(count);
    println!(
        "main, with {count} homes: {}, {} for each",
        main.shown(),
        ByteSize(each)
    );
    let (before, begun) = (main.processor_time(), Instant::now());
    tokio::time::sleep(IDLE).await;
    let used = main.processor_time() - before;
    let share = 100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64();
    println!("main, idle: {share:.0} % of a processor, {}", main.shown());
    let measured = measured(&homes, begun, patience).await;
    println!("links measured, since then: {measured}");
    answered(&homes).await;
    println!("main, with all links measured: {}", main.shown());

    println!("the main is killed, and starts again");
    main.child.kill().await.unwrap();
    let begun = Instant::now();
    let lost = all(&homes, begun, |reach| !has_reservation(reach));
    let port = port_of(&address);
    let mut main = Main::start(count, port);
    println!("noticed: {}", lost.await);
    main.lines.next_line().await.unwrap();
    let back = all(&homes, begun, has_reservation).await;
    println!("back and reserved, since it was killed: {back}");
    answered(&homes).await;
    println!("main, with all of them back: {}", main.shown());
    tokio::time::sleep(IDLE).await;
    println!("main, {IDLE:?} later: {}", main.shown());
    main.child.kill().await.unwrap();
    drop(gates);
}

/// The main's process.
struct Main {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Main {
    fn start(count: u32, port: u16) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["main", &count.to_string(), &port.to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn about(&self, what: &str) -> String {
        let id = self.child.id().unwrap().to_string();
        std::fs::read_to_string(["/proc", &id, what].iter().collect::<PathBuf>()).unwrap()
    }

    /// What of it is in memory.
    fn memory(&self) -> ByteSize {
        self.size_of("VmRSS:")
    }

    /// And the most that ever was.
    fn shown(&self) -> String {
        format!(
            "{} resident, at most {} so far",
            self.memory(),
            self.size_of("VmHWM:")
        )
    }

    fn size_of(&self, what: &str) -> ByteSize {
        let status = self.about("status");
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let kib: u64 = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
        ByteSize::kib(kib)
    }

    fn processor_time(&self) -> Duration {
        let stat = self.about("stat");
        // After the name, which may hold anything, in parentheses: state, and so on; user and system time in ticks.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|field| field.parse::<u64>().unwrap()).sum();
        const TICK: Duration = Duration::from_millis(10);
        TICK * ticks as u32
    }
}

async fn start(count: u32, main: &Multiaddr, gate: &watch::Receiver<Gate>) -> Vec<Network> {
    let mut starting = JoinSet::new();
    let mut homes = Vec::new();
    for number in 1..=count {
        if starting.len() >= STARTING_MAX {
            homes.push(starting.join_next().await.unwrap().unwrap());
        }
        let (main, gate) = (main.clone(), gate.clone());
        starting.spawn(async move {
            // As in the world, everybody has an address of their own.
            let [_, a, b, c] = (number + (1 << 16)).to_be_bytes();
            let config = NetworkConfig {
                listen: vec![loopback(Ipv4Addr::new(127, a, b, c), 0)],
                role: Some(Role::Home),
                maps_port: false,
                ..NetworkConfig::new(keypair(number))
            };
            let home = Network::start(config, gate).await.unwrap();
            home.learn(peer(0), vec![main]);
            home
        });
    }
    homes.extend(starting.join_all().await);
    homes
}

fn has_reservation(reach: &ReachStatus) -> bool {
    !reach.reservations.is_empty()
}

/// Waits until something is so of everybody.
async fn all(homes: &[Network], begun: Instant, is_so: fn(&ReachStatus) -> bool) -> Times {
    let mut waiting = JoinSet::new();
    for home in homes {
        let mut reach = home.reach();
        waiting.spawn(async move {
            let came = tokio::time::timeout(PATIENCE, reach.wait_for(is_so)).await;
            came.is_ok_and(|came| came.is_ok()).then(|| begun.elapsed())
        });
    }
    let times = waiting.join_all().await;
    let mut came: Vec<_> = times.iter().flatten().copied().collect();
    came.sort();
    Times {
        of: times.len(),
        came,
    }
}

/// Waits until every home knows how fast its link to the main is.
async fn measured(homes: &[Network], begun: Instant, patience: Duration) -> Times {
    let mut waiting: Vec<_> = homes.iter().collect();
    let mut came = Vec::new();
    while !waiting.is_empty() && begun.elapsed() < patience {
        tokio::time::sleep(Duration::from_secs(1)).await;
        waiting.retain(|home| home.measured().is_empty());
        came.resize(homes.len() - waiting.len(), begun.elapsed());
    }
    Times {
        of: homes.len(),
        came,
    }
}

/// Asks the main something from everywhere.
async fn answered(homes: &[Network]) {
    let mut asking = JoinSet::new();
    let begun = Instant::now();
    for home in homes {
        let home = home.clone();
        asking.spawn(async move { home.request(peer(0), ECHO, b"hello", PATIENCE).await.is_ok() });
    }
    let answers = asking.join_all().await;
    let answered = answers.iter().filter(|answered| **answered).count();
    println!(
        "the main answered {answered} of {} in {:.1?}",
        answers.len(),
        begun.elapsed()
    );
    let state = homes[0].request(peer(0), STATE, b"", PATIENCE).await.unwrap();
    println!("{}", String::from_utf8_lossy(&state));
}

/// How long it took.
struct Times {
    of: usize,
    came: Vec<Duration>,
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { of, came } = self;
        write!(f, "{} of {of}", came.len())?;
        let Some(last) = came.last() else {
            return Ok(());
        };
        write!(f, ", half of them after {:.1?}", came[came.len() / 2])?;
        write!(f, ", 99 % after {:.1?}", came[came.len() * 99 / 100])?;
        write!(f, ", the last after {last:.1?}")
    }
}

/// The same numbers give the same identities, so that both processes know everybody.
fn keypair(number: u32) -> Keypair {
    let mut secret = [0; 32];
    secret[..4].copy_from_slice(&number.to_le_bytes());
    Keypair::ed25519_from_bytes(secret).unwrap()
}

fn peer(number: u32) -> PeerId {
    keypair(number).public().to_peer_id()
}

fn gate(count: u32) -> Gate {
    let mains = Arc::new(HashSet::from([peer(0)]));
    Gate {
        cluster: Some(CLUSTER),
        members: Arc::new((0..=count).map(peer).collect()),
        watched: Arc::clone(&mains),
        mains,
    }
}

fn loopback(ip: Ipv4Addr, port: u16) -> Multiaddr {
    format!("/ip4/{ip}/udp/{port}/quic-v1").parse().unwrap()
}

fn port_of(address: &Multiaddr) -> u16 {
    let address = address.to_string();
    let port = address.split('/').nth(4).unwrap();
    port.parse().unwrap()
}
