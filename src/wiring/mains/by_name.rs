//! Tests of relays whose mains the domain name system names: real relays, and a name server of the test's own.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use lapwing_federation::Token;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Names;
use crate::relay::{MainSource, Relay, RelayConfig, RelayHandle};

const MAINS: &str = "_lapwing._tcp.mains.test";

/// Patience with one condition: what takes a second on an idle machine may take this on a busy one.
const PATIENCE: Duration = Duration::from_secs(60);

/// A name server: it has the records that it was told of, and does not answer where it was told of none. The hosts are this machine,
/// which needs no name server.
struct NameServer {
    address: SocketAddr,
    records: Arc<Mutex<BTreeMap<String, Vec<SRV>>>>,
    _task: JoinSet<()>,
}

impl NameServer {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let records = Arc::new(Mutex::new(BTreeMap::new()));
        let mut task = JoinSet::new();
        task.spawn(answer_queries(socket, Arc::clone(&records)));
        Self {
            address,
            records,
            _task: task,
        }
    }

    /// From now on a name leads to these: each with its priority, its weight, and where it is on this machine.
    fn say(&self, name: &str, mains: &[(u16, u16, u16)]) {
        let host: Name = "localhost.".parse().unwrap();
        let records = mains
            .iter()
            .map(|&(priority, weight, port)| SRV::new(priority, weight, port, host.clone()));
        self.records
            .lock()
            .unwrap()
            .insert(name.to_owned(), records.collect());
    }

    fn names(&self) -> Names {
        let mut connection = ConnectionConfig::udp();
        connection.port = self.address.port();
        let server = NameServerConfig::new(self.address.ip(), true, vec![connection]);
        let config = ResolverConfig::from_name_servers(vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().cache_size = 0;
        Names::from(builder.build().unwrap())
    }
}

async fn answer_queries(socket: UdpSocket, records: Arc<Mutex<BTreeMap<String, Vec<SRV>>>>) {
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        let query = asked.queries[0].clone();
        let name = query.name().to_ascii().to_lowercase();
        let found = match query.query_type() {
            RecordType::SRV => {
                let records = records.lock().unwrap();
                let Some(found) = records.get(name.trim_end_matches('.')) else {
                    continue;
                };
                found.iter().cloned().map(RData::SRV).collect()
            }
            _ => Vec::new(),
        };
        let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
        if found.is_empty() {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.add_query(query.clone());
        answer.add_answers(
            found
                .into_iter()
                .map(|data| Record::from_rdata(query.name().clone(), 0, data)),
        );
        socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
    }
}

/// Where a main is asked who is there. It says what it was told to, or nothing of use.
struct Door {
    port: u16,
    says: watch::Sender<Option<Value>>,
    /// How often it was asked.
    asked: watch::Receiver<u64>,
    _task: JoinSet<()>,
}

#[derive(Clone)]
struct Doorkeeper {
    says: watch::Receiver<Option<Value>>,
    asked: Arc<watch::Sender<u64>>,
}

impl Door {
    async fn open(says: Option<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let says = watch::Sender::new(says);
        let (count, asked) = watch::channel(0);
        let keeper = Doorkeeper {
            says: says.subscribe(),
            asked: Arc::new(count),
        };
        let router = Router::new()
            .route("/federation/identity", get(identity))
            .with_state(keeper);
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            port,
            says,
            asked,
            _task: task,
        }
    }

    fn url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Waits until it was asked so often from now on: all but the last answer were heard then.
    async fn asked_again(&self, times: u64) {
        let mut asked = self.asked.clone();
        let enough = *asked.borrow() + times;
        let waiting = asked.wait_for(|asked| *asked >= enough);
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    }
}

async fn identity(State(keeper): State<Doorkeeper>) -> Result<Json<Value>, StatusCode> {
    keeper.asked.send_modify(|asked| *asked += 1);
    let says = keeper.says.borrow().clone();
    says.map(Json).ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

/// A main that knows no other, and takes in those that know the token.
async fn main() -> RelayHandle {
    let config = RelayConfig::main(loopback());
    Relay::start(with_token(config)).await.unwrap()
}

fn with_token(mut config: RelayConfig) -> RelayConfig {
    config.policy.token = Some(Token::new("the-token-of-these-tests").unwrap());
    config
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn srv(name: &str) -> MainSource {
    MainSource::Srv(name.to_owned())
}

async fn get_json(relay: &RelayHandle, path: &str) -> Value {
    // An error means that the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().tls_certs_only([]).no_proxy();
    let url = format!("http://{}{path}", relay.http_addr());
    let answer = http.build().unwrap().get(url).send().await.unwrap();
    answer.json().await.unwrap()
}

async fn identity_of(relay: &RelayHandle) -> Option<Value> {
    Some(get_json(relay, "/federation/identity").await)
}

/// Waits until the mains that a relay shows are so, and returns them.
async fn until(relay: &RelayHandle, what: &str, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    let mut last = Value::Null;
    let waiting = async {
        loop {
            interval.tick().await;
            last = get_json(relay, "/federation/peers").await;
            if let Some(peers) = last["peers"].as_array().filter(|peers| is_so(peers)) {
                return peers.clone();
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("waited in vain for {what}: {last:#}"))
}

fn row<'a>(peers: &'a [Value], relay: &RelayHandle) -> Option<&'a Value> {
    let id = relay.peer_id().to_string();
    peers.iter().find(|peer| peer["node_id"] == id)
}

fn is_up(peers: &[Value], relay: &RelayHandle) -> bool {
    row(peers, relay).is_some_and(|peer| peer["healthy"] == true)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_main_stays_connected_while_a_name_leads_to_it_whether_it_says_who_it_is_or_not() {
    let [one, other, third] = [main().await, main().await, main().await];
    let at_one = Door::open(identity_of(&one).await).await;
    let at_other = Door::open(identity_of(&other).await).await;
    let nowhere = Door::open(None).await;
    let [a, b, c] = [at_one.port, at_other.port, nowhere.port];
    let server = NameServer::start().await;
    server.say(MAINS, &[(1, 0, a), (1, 0, b), (1, 0, c)]);
    let mut config = RelayConfig::main(loopback());
    config.mains = vec![srv(MAINS)];
    let relay = Relay::start_with(with_token(config), server.names())
        .await
        .unwrap();

    let peers = until(&relay, "two mains, and one that is missing", |peers| {
        is_up(peers, &one) && is_up(peers, &other) && peers.len() == 3
    })
    .await;
    let missing = peers.iter().find(|peer| peer["node_id"].is_null()).unwrap();
    assert_eq!(missing["url"], nowhere.url());
    let since = row(&peers, &one).unwrap()["connected_since"].clone();

    // One is missing, so all are asked again and again, and the first says nothing of use now.
    at_one.says.send_replace(None);
    at_one.asked_again(3).await;
    let peers = until(&relay, "the mains", |peers| peers.len() == 3).await;
    let still = row(&peers, &one).unwrap();
    assert_eq!(
        (&still["healthy"], &still["connected_since"], &still["reconnects"]),
        (&json!(true), &since, &json!(0)),
        "{still}"
    );

    // The name leads to the other no more.
    server.say(MAINS, &[(1, 0, a), (1, 0, c)]);
    until(&relay, "the other to be gone", |peers| {
        row(peers, &other).is_none()
    })
    .await;
    // Somebody else is where the first was.
    at_one.says.send_replace(identity_of(&third).await);
    until(&relay, "the third in place of the first", |peers| {
        is_up(peers, &third) && row(peers, &one).is_none()
    })
    .await;
    // Nobody says anything of the name: all stay.
    server.say(MAINS, &[]);
    at_one.asked_again(3).await;
    let peers = until(&relay, "the mains", |peers| !peers.is_empty()).await;
    assert!(is_up(&peers, &third), "{peers:?}");
    for relay in [relay, one, other, third] {
        relay.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_takes_the_main_with_the_lowest_priority_and_of_those_the_heaviest() {
    let [far, light, heavy] = [main().await, main().await, main().await];
    let at_far = Door::open(identity_of(&far).await).await;
    let at_light = Door::open(identity_of(&light).await).await;
    let at_heavy = Door::open(identity_of(&heavy).await).await;
    let server = NameServer::start().await;
    server.say(
        MAINS,
        &[
            (20, 9, at_far.port),
            (10, 1, at_light.port),
            (10, 5, at_heavy.port),
        ],
    );
    let config = RelayConfig::home(loopback(), srv(MAINS));
    let home = Relay::start_with(with_token(config), server.names())
        .await
        .unwrap();
    // Whichever has answered first may have been taken before the best one was known.
    until(&home, "calls to go by the best main", |peers| {
        row(peers, &heavy).is_some_and(|peer| peer["is_uplink"] == true)
    })
    .await;
    for relay in [home, far, light, heavy] {
        relay.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_and_a_name_server_that_are_silent_hold_up_nobody() {
    // It takes connections and says nothing; it hears when whoever has asked gives up.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at_silent = silent.local_addr().unwrap().port();
    let (gave_up, mut has_given_up) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut stream, _) = silent.accept().await.unwrap();
        let mut request = Vec::new();
        match stream.read_to_end(&mut request).await {
            Ok(_) => (),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        gave_up.send_replace(true);
    });
    let late = Door::open(None).await;
    let server = NameServer::start().await;
    server.say(MAINS, &[(1, 0, at_silent), (2, 0, late.port)]);
    let mut config = RelayConfig::main(loopback());
    config.mains = vec![srv("_lapwing._tcp.silent.test"), srv(MAINS)];
    let relay = Relay::start_with(config, server.names()).await.unwrap();
    let waiting = has_given_up.wait_for(|has| *has);
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    // Twice a second for five seconds, on a machine with nothing else to do.
    let asked = *late.asked.borrow();
    assert!(asked >= 3, "it was asked {asked} times while another was silent");
    relay.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_added_over_http_is_looked_up_and_shown_while_there_is_nothing_under_it() {
    let one = main().await;
    let at_one = Door::open(identity_of(&one).await).await;
    let server = NameServer::start().await;
    server.say(MAINS, &[]);
    let mut config = with_token(RelayConfig::main(loopback()));
    config.peers_may_change = true;
    let relay = Relay::start_with(config, server.names()).await.unwrap();
    let http = reqwest::Client::builder().tls_certs_only([]).no_proxy();
    let url = format!("http://{}/federation/peers/add", relay.http_addr());
    let add = http.build().unwrap().post(url);
    let body = json!({ "address": format!("srv:{MAINS}") });
    let answer = add.json(&body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    until(&relay, "the name, and that nothing is there", |peers| {
        peers.len() == 1
            && peers[0]["url"] == format!("srv:{MAINS}")
            && peers[0]["error"] == "the domain name system has no SRV records of this name"
    })
    .await;
    server.say(MAINS, &[(1, 0, at_one.port)]);
    until(&relay, "the main", |peers| peers.len() == 1 && is_up(peers, &one)).await;
    for relay in [relay, one] {
        relay.shutdown().await;
    }
}
