//! Against routers that are played on loopback, on the wire.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::driver::interfaces::Gateway;
use crate::driver::shared::lock;

/// Longer than anything here takes on a loaded machine.
const WAIT_MAX: Duration = Duration::from_secs(20);

const PORT: u16 = 4001;

#[tokio::test]
async fn a_router_that_speaks_pcp_maps_the_port_until_the_node_stops() {
    let router = Router::start(Speaks::Pcp).await;
    let mut node = Node::start(router.config(), here());
    let (external, by) = node.mapped().await;
    assert_eq!((external, by), ("203.0.113.1:5000".parse().unwrap(), Method::Pcp));
    assert_eq!(router.mappings(), [PORT]);
    node.stop().await;
    assert!(router.mappings().is_empty());
}

#[tokio::test]
async fn a_router_that_speaks_only_nat_pmp_is_asked_so() {
    let router = Router::start(Speaks::NatPmp).await;
    let mut node = Node::start(router.config(), here());
    let (external, by) = node.mapped().await;
    assert_eq!(
        (external, by),
        ("203.0.113.1:5000".parse().unwrap(), Method::NatPmp)
    );
    node.stop().await;
    assert!(router.mappings().is_empty());
}

#[tokio::test]
async fn a_router_that_speaks_upnp_is_found_and_asked_for_another_port_when_ours_is_taken() {
    for taken in [false, true] {
        let router = Router::start(Speaks::Upnp { taken }).await;
        let config = PortMappingConfig {
            pcp: false,
            nat_pmp: false,
            ..router.config()
        };
        let mut node = Node::start(config, here());
        let (external, by) = node.mapped().await;
        assert_eq!((external.ip(), by), ([203, 0, 113, 1].into(), Method::Upnp));
        assert_eq!(external.port() == PORT, !taken);
        assert_eq!(router.mappings(), [external.port()]);
        node.stop().await;
        assert!(router.mappings().is_empty());
    }
}

#[tokio::test]
async fn a_router_that_forgot_the_mapping_is_asked_again() {
    let router = Router::start(Speaks::Pcp).await;
    let config = PortMappingConfig {
        renew_min: Duration::from_millis(20),
        ..router.config()
    };
    let mut node = Node::start(config, here());
    node.mapped().await;
    lock(&router.state).mappings.clear();
    within(async {
        while router.mappings().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    node.stop().await;
}

#[tokio::test]
async fn another_network_is_asked_at_once() {
    let router = Router::start(Speaks::Pcp).await;
    let mut node = Node::start(
        PortMappingConfig {
            upnp: false,
            ..router.config()
        },
        Interfaces::default(),
    );
    let PortMapping::Unavailable { because } = node.settled().await else {
        panic!("there is no router yet");
    };
    let both = [
        (Method::Pcp, MapError::NoGateway),
        (Method::NatPmp, MapError::NoGateway),
    ];
    assert_eq!(because, both);
    node.interfaces.send_replace(here());
    node.mapped().await;
    node.interfaces.send_replace(Interfaces::default());
    // The mapping led to where we were.
    within(
        node.state
            .wait_for(|state| !matches!(state, PortMapping::Mapped { .. })),
    )
    .await
    .unwrap();
    assert!(router.mappings().is_empty());
    node.stop().await;
}

#[tokio::test]
async fn without_a_router_every_way_says_why() {
    let router = Router::start(Speaks::Nothing).await;
    let mut node = Node::start(router.config(), here());
    let PortMapping::Unavailable { because } = node.settled().await else {
        panic!("nobody maps anything");
    };
    let methods: Vec<_> = because.iter().map(|(method, _)| *method).collect();
    assert_eq!(methods, [Method::Pcp, Method::NatPmp, Method::Upnp]);
    assert!(
        because.iter().all(|(_, error)| *error == MapError::Silent),
        "{because:?}"
    );
    node.stop().await;
}

#[tokio::test]
async fn nothing_is_asked_when_all_is_switched_off() {
    let config = PortMappingConfig {
        pcp: false,
        nat_pmp: false,
        upnp: false,
        ..PortMappingConfig::default()
    };
    let mut node = Node::start(config, here());
    assert_eq!(
        node.settled().await,
        PortMapping::Unavailable { because: Vec::new() }
    );
    node.stop().await;
}

struct Node {
    state: watch::Receiver<PortMapping>,
    interfaces: watch::Sender<Interfaces>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Node {
    fn start(config: PortMappingConfig, interfaces: Interfaces) -> Self {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let (sender, receiver) = watch::channel(interfaces);
        Self {
            state: map_port(PORT, config, receiver, &tracker, stop.clone()),
            interfaces: sender,
            tracker,
            stop,
        }
    }

    async fn settled(&mut self) -> PortMapping {
        let settled = self.state.wait_for(|state| *state != PortMapping::Searching);
        within(settled).await.unwrap().clone()
    }

    async fn mapped(&mut self) -> (SocketAddr, Method) {
        let mapped = self
            .state
            .wait_for(|state| matches!(state, PortMapping::Mapped { .. }));
        match within(mapped).await.unwrap().clone() {
            PortMapping::Mapped { external, by } => (external, by),
            other => panic!("{other:?}"),
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tracker.close();
        within(self.tracker.wait()).await;
    }
}

fn here() -> Interfaces {
    Interfaces {
        addresses: BTreeSet::from(["127.0.0.1/8".parse().unwrap()]),
        gateway: Some(Gateway {
            ip: Ipv4Addr::LOCALHOST.into(),
            mac: None,
        }),
        gateway_v6: None,
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Speaks {
    Pcp,
    NatPmp,
    Upnp {
        /// Whether another node has the port.
        taken: bool,
    },
    /// It takes everything in and says nothing.
    Nothing,
}

#[derive(Debug, Default)]
struct State {
    mappings: BTreeSet<u16>,
}

/// A router; its tasks end with it.
struct Router {
    gateway: SocketAddr,
    ssdp: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Router {
    async fn start(speaks: Speaks) -> Self {
        let gateway = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let ssdp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (at, ssdp_at) = (gateway.local_addr().unwrap(), ssdp.local_addr().unwrap());
        let http_at = http.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(datagrams(gateway, {
            let state = Arc::clone(&state);
            move |message| answer(speaks, message, &state)
        }));
        tasks.spawn(datagrams(ssdp, move |_| {
            let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: http://{http_at}/root.xml\r\n\r\n");
            matches!(speaks, Speaks::Upnp { .. }).then(|| answer.into_bytes())
        }));
        if let Speaks::Upnp { taken } = speaks {
            tasks.spawn(web(http, taken, Arc::clone(&state)));
        }
        Self {
            gateway: at,
            ssdp: ssdp_at,
            state,
            _tasks: tasks,
        }
    }

    fn config(&self) -> PortMappingConfig {
        let SocketAddr::V4(ssdp) = self.ssdp else {
            panic!("it listens on IPv4");
        };
        PortMappingConfig {
            gateway_port: self.gateway.port(),
            ssdp,
            ..PortMappingConfig::default()
        }
    }

    fn mappings(&self) -> Vec<u16> {
        lock(&self.state).mappings.iter().copied().collect()
    }
}

async fn datagrams(socket: UdpSocket, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = [0; 2048];
    loop {
        let (size, from) = socket.recv_from(&mut buffer).await.unwrap();
        if let Some(answer) = answer(&buffer[..size]) {
            socket.send_to(&answer, from).await.unwrap();
        }
    }
}

fn answer(speaks: Speaks, message: &[u8], state: &Mutex<State>) -> Option<Vec<u8>> {
    const OUTSIDE: [u8; 4] = [203, 0, 113, 1];
    let change = |port: &[u8], lifetime: &[u8]| {
        let port = u16::from_be_bytes(port.try_into().unwrap());
        if lifetime == [0; 4] {
            lock(state).mappings.remove(&port);
        } else {
            lock(state).mappings.insert(port);
        }
    };
    match (speaks, message) {
        (Speaks::Pcp, [2, 1, ..]) => {
            change(&message[40..42], &message[4..8]);
            let mut answer = message.to_vec();
            answer[1] |= 0x80;
            answer[8..24].fill(0);
            answer[42..44].copy_from_slice(&5000_u16.to_be_bytes());
            answer[56..].copy_from_slice(&OUTSIDE);
            if message[4..8] != [0; 4] {
                // One second.
                answer[4..8].copy_from_slice(&[0, 0, 0, 1]);
            }
            Some(answer)
        }
        (Speaks::NatPmp, [2, ..]) => Some(vec![0, 0x81, 0, 1, 0, 0, 0, 9]),
        (Speaks::NatPmp, [0, 0]) => Some([&[0, 0x80, 0, 0, 0, 0, 0, 9], &OUTSIDE[..]].concat()),
        (Speaks::NatPmp, [0, 1, 0, 0, port_high, port_low, external @ .., _, _, _, _]) => {
            let lifetime = &message[8..12];
            change(&[*port_high, *port_low], lifetime);
            // The end of a mapping is asked for, and confirmed, without a port outside.
            let external = if lifetime == [0; 4] {
                external.to_vec()
            } else {
                5000_u16.to_be_bytes().to_vec()
            };
            let head = [0, 0x81, 0, 0, 0, 0, 0, 9, *port_high, *port_low];
            Some([&head[..], &external, lifetime].concat())
        }
        _ => None,
    }
}

async fn web(listener: TcpListener, taken: bool, state: Arc<Mutex<State>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !is_whole(&request) {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        let request = String::from_utf8(request).unwrap();
        let port = || -> u16 {
            let (_, rest) = request.split_once("<NewExternalPort>").unwrap();
            rest.split_once('<').unwrap().0.parse().unwrap()
        };
        let (status, body) = if request.starts_with("GET /root.xml ") {
            let service = "<service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
                 <controlURL>/ctl</controlURL></service>";
            ("200 OK", format!("<root>{service}</root>"))
        } else if request.contains("#GetExternalIPAddress\"") {
            (
                "200 OK",
                "<NewExternalIPAddress>203.0.113.1</NewExternalIPAddress>".to_owned(),
            )
        } else if request.contains("#DeletePortMapping\"") {
            lock(&state).mappings.remove(&port());
            ("200 OK", String::new())
        } else if taken && port() == PORT {
            (
                "500 Internal Server Error",
                "<errorCode>718</errorCode>".to_owned(),
            )
        } else if !request.contains("<NewLeaseDuration>0<") {
            (
                "500 Internal Server Error",
                "<errorCode>725</errorCode>".to_owned(),
            )
        } else {
            lock(&state).mappings.insert(port());
            ("200 OK", String::new())
        };
        let size = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn is_whole(request: &[u8]) -> bool {
    let Some((head, body)) = str::from_utf8(request).unwrap().split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.split_once("Content-Length: ").map_or("0", |(_, rest)| rest);
    let length: usize = length.lines().next().unwrap().parse().unwrap();
    body.len() >= length
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(WAIT_MAX, future).await.expect("it takes too long")
}
