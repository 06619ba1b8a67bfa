//! Measures how many homes one main of the federation carries: how long until the other mains know every service, memory and
//! processor time of the main for each home, and how long until everybody is known again after the main was killed.
//!
//! `homes COUNT` starts three mains in processes of their own and the homes, two services each, in this one, all at the first
//! main. Each home has an identity, a socket and a connection of its own. Linux only: it reads `/proc`.
#![expect(clippy::unwrap_used, reason = "a measurement that fails has nothing to say")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapwing_base::{ByteSize, Keypair, Multiaddr, PeerId, Role};
use lapwing_federation::{
    Around, Call, CallId, Echo, Federation, FederationConfig, HttpConfig, Service, TraceContext, router,
    serve,
};
use lapwing_net::{Gate, Network, NetworkConfig};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Mains; homes dial the first.
const MAINS: u32 = 3;

/// What each home offers.
const SERVICES: usize = 2;

/// Homes that start at the same time; more would only wait for the processor.
const STARTING_MAX: usize = 64;

/// For everybody to be known.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the mains are asked what they know.
const LOOK: Duration = Duration::from_millis(20);

/// How long the main is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(10);

const USAGE: &str = "usage: homes COUNT";

#[tokio::main]
async fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["main", number, epoch, port] => {
            be_main(
                number.parse().unwrap(),
                epoch.parse().unwrap(),
                port.parse().unwrap(),
            )
            .await;
        }
        [count] if count.parse::<u32>().is_ok() => measure(count.parse().unwrap()).await,
        _ => eprintln!("{USAGE}"),
    }
}

/// Is a main, until it is killed. Says where it is found, is told where the others are, and says where it answers HTTP.
async fn be_main(number: u32, epoch: u64, port: u16) {
    let (_gate, gate) = watch::channel(Gate::default());
    let config = NetworkConfig {
        listen: vec![loopback(Ipv4Addr::LOCALHOST, port)],
        role: Some(Role::Main),
        maps_port: false,
        ..NetworkConfig::new(keypair(number))
    };
    let network = Network::start(config, gate).await.unwrap();
    let (around, known) = watch::channel(Around::new(Role::Main));
    let config = FederationConfig::new(keypair(number), epoch);
    let federation = Federation::start(network.clone(), config, known).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{} {}", network.listen_addrs()[0], listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, router(federation, HttpConfig::default()), stop));
    let mut told = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = told.next_line().await.unwrap() {
        let (other, address) = line.split_once(' ').unwrap();
        let other = peer(other.parse().unwrap());
        network.learn(other, vec![address.parse().unwrap()]);
        around.send_modify(|around| around.mains.push(other));
    }
    serving.await.unwrap();
}

async fn measure(count: u32) {
    // Whoever comes second finds one there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut mains = Vec::new();
    for number in 0..MAINS {
        mains.push(Main::start(number, 1, 0).await);
    }
    introduce(&mut mains).await;
    wanted(&http, &mains, 0).await;
    let (empty, expected) = (mains[0].memory(), u64::from(count) * SERVICES as u64);
    println!("main, alone: {}", mains[0].shown());

    let begun = Instant::now();
    let homes = start(count, &mains[0].address).await;
    println!("{count} homes started in {:.1?}", begun.elapsed());
    let joined = all_joined(&homes, begun).await;
    println!("the last of them had joined after {joined:.1?}");
    let known = wanted(&http, &mains, expected).await;
    let late = begun.elapsed().saturating_sub(joined);
    println!("all {known} services are known to the {MAINS} mains: {late:.2?} after the last join");
    let full = mains[0].memory();
    let each = ByteSize(full.0.saturating_sub(empty.0) / u64::from(count));
    println!("main, with {count} homes: {}, {each} for each", mains[0].shown());
    println!("another main: {}", mains[1].shown());
    called(&homes).await;
    let (before, idle_since) = (mains[0].processor_time(), Instant::now());
    tokio::time::sleep(IDLE).await;
    let used = mains[0].processor_time() - before;
    let share = 100.0 * used.as_secs_f64() / idle_since.elapsed().as_secs_f64();
    println!("main, idle: {share:.0} % of a processor");

    println!("the main is killed, and starts again");
    let port = port_of(&mains[0].address);
    mains[0].child.kill().await.unwrap();
    let begun = Instant::now();
    let (begun_at_others, _) = (wanted(&http, &mains[1..], 0).await, ());
    println!(
        "the others know {begun_at_others} of its services {:.2?} after that",
        begun.elapsed()
    );
    mains[0] = Main::start(0, 2, port).await;
    let restarted = begun.elapsed();
    introduce(&mut mains).await;
    wanted(&http, &mains, expected).await;
    let back = begun.elapsed();
    println!(
        "all services are known again {:.2?} after its start ({back:.2?} after the kill)",
        back - restarted
    );
    println!("main, with all of them back: {}", mains[0].shown());
    println!(
        "processor time that this took the main: {:.2?}",
        mains[0].processor_time()
    );
    called(&homes).await;
    for main in &mut mains {
        main.child.kill().await.unwrap();
    }
}

/// A main's process.
struct Main {
    number: u32,
    child: Child,
    /// Kept, so that it does not write into nothing.
    _lines: Lines<BufReader<ChildStdout>>,
    address: Multiaddr,
    http: String,
}

impl Main {
    async fn start(number: u32, epoch: u64, port: u16) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["main", &number.to_string(), &epoch.to_string(), &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().unwrap();
        let (address, http) = line.split_once(' ').unwrap();
        Self {
            number,
            child,
            _lines: lines,
            address: address.parse().unwrap(),
            http: http.to_owned(),
        }
    }

    async fn tell(&mut self, other: u32, address: &Multiaddr) {
        use tokio::io::AsyncWriteExt as _;
        let line = format!("{other} {address}\n");
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(line.as_bytes()).await.unwrap();
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

/// Tells each main where the others are.
async fn introduce(mains: &mut [Main]) {
    let known: Vec<(u32, Multiaddr)> = mains
        .iter()
        .map(|main| (main.number, main.address.clone()))
        .collect();
    for main in mains {
        for (other, address) in &known {
            if *other != main.number {
                main.tell(*other, address).await;
            }
        }
    }
}

/// Waits until every main knows as many services that can be called, and of every other main.
async fn wanted(http: &reqwest::Client, mains: &[Main], services: u64) -> u64 {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut least = u64::MAX;
        let mut most = 0;
        for main in mains {
            let url = format!("http://{}/federation/health", main.http);
            let Ok(response) = http.get(url).send().await else {
                least = 0;
                continue;
            };
            let health: Value = response.json().await.unwrap();
            let number = |name: &str| health[name].as_u64().unwrap();
            let whole = number("total_instances") - number("failed_instances");
            least = least.min(whole);
            most = most.max(whole);
        }
        if least == services && most == services {
            return least;
        }
        assert!(
            Instant::now() < until,
            "only {least} to {most} of {services} services are known"
        );
        tokio::time::sleep(LOOK).await;
    }
}

/// A home with its services.
struct Home {
    federation: Federation,
    _network: Network,
    _gate: watch::Sender<Gate>,
    _around: watch::Sender<Around>,
}

async fn start(count: u32, main: &Multiaddr) -> Vec<Home> {
    let mut starting = JoinSet::new();
    let mut homes = Vec::new();
    for number in 0..count {
        if starting.len() >= STARTING_MAX {
            homes.push(starting.join_next().await.unwrap().unwrap());
        }
        starting.spawn(start_one(number, main.clone()));
    }
    homes.extend(starting.join_all().await);
    homes
}

async fn start_one(number: u32, main: Multiaddr) -> Home {
    // As in the world, everybody has an address of their own.
    let [_, a, b, c] = (number + (1 << 16)).to_be_bytes();
    let keypair = keypair(number + MAINS);
    let (gate, gate_receiver) = watch::channel(Gate::default());
    let config = NetworkConfig {
        listen: vec![loopback(Ipv4Addr::new(127, a, b, c), 0)],
        role: Some(Role::Home),
        maps_port: false,
        ..NetworkConfig::new(keypair.clone())
    };
    let network = Network::start(config, gate_receiver).await.unwrap();
    network.learn(peer(0), vec![main]);
    let (around, known) = watch::channel(Around {
        mains: vec![peer(0)],
        ..Around::new(Role::Home)
    });
    let config = FederationConfig::new(keypair, 1);
    let federation = Federation::start(network.clone(), config, known).unwrap();
    for service in 0..SERVICES {
        // A hundred names, so that each has many instances.
        let name = format!("service-{}", (number as usize * SERVICES + service) % 100);
        federation
            .offer(Service::new(name.parse().unwrap()), Arc::new(Echo))
            .unwrap();
    }
    Home {
        federation,
        _network: network,
        _gate: gate,
        _around: around,
    }
}

/// Waits until every home has its main; says when the last had.
async fn all_joined(homes: &[Home], begun: Instant) -> Duration {
    let until = Instant::now() + PATIENCE;
    while !homes.iter().all(|home| !home.federation.neighbours().is_empty()) {
        assert!(Instant::now() < until, "not all homes have joined");
        tokio::time::sleep(LOOK).await;
    }
    begun.elapsed()
}

/// Every home calls a service of another, all at once.
async fn called(homes: &[Home]) {
    let begun = Instant::now();
    let mut calls = JoinSet::new();
    for (number, home) in homes.iter().enumerate() {
        let federation = home.federation.clone();
        calls.spawn(async move {
            let call = call(number as u128 + 1, &format!("service-{}", (number + 7) % 100));
            federation.call(call).await.outcome
        });
    }
    let outcomes = calls.join_all().await;
    let answered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    println!(
        "{answered} of {} calls, one from each home at once, answered in {:.2?}",
        outcomes.len(),
        begun.elapsed()
    );
    let failure = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
    assert_eq!(failure, None, "one that was not");
}

fn call(id: u128, service: &str) -> Call {
    Call {
        id: CallId(id),
        address: None,
        target: None,
        service: service.parse().unwrap(),
        method: "echo".to_owned(),
        versions: "".parse().unwrap(),
        resources: [].into(),
        arguments: Some("[\"hello\"]".to_owned()),
        path: Vec::new(),
        links_max: Call::LINKS_MAX,
        remaining_ms: 60_000,
        priority: 0,
        is_idempotent: true,
        trace: TraceContext::default(),
        proof: None,
    }
}

/// The same numbers give the same identities, so that all processes know the mains.
fn keypair(number: u32) -> Keypair {
    let mut secret = [0; 32];
    secret[..4].copy_from_slice(&number.to_le_bytes());
    Keypair::ed25519_from_bytes(secret).unwrap()
}

fn peer(number: u32) -> PeerId {
    keypair(number).public().to_peer_id()
}

fn loopback(ip: Ipv4Addr, port: u16) -> Multiaddr {
    format!("/ip4/{ip}/udp/{port}/quic-v1").parse().unwrap()
}

fn port_of(address: &Multiaddr) -> u16 {
    let address = address.to_string();
    address.split('/').nth(4).unwrap().parse().unwrap()
}
