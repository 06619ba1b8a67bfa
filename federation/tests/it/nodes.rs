//! Nodes to test with: two mains, two homes at the first of them and one at the second.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use lapwing_base::{ClusterId, Keypair, Multiaddr, PeerId, Role};
use lapwing_federation::{
    Around, Backend, Call, CallAnswer, CallId, Federation, FederationConfig, Headers, Offered, Service,
    TraceContext,
};
use lapwing_net::{Gate, Network, NetworkConfig};
use tokio::sync::watch;

/// Long enough for a busy machine; nothing here waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

pub(crate) const ELSEWHERE: ClusterId = ClusterId::from_bytes([8; 16]);

pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) federation: Federation,
    network: Network,
    gate: watch::Sender<Gate>,
    around: watch::Sender<Around>,
}

pub(crate) struct Houses {
    pub(crate) main_a: Node,
    pub(crate) main_b: Node,
    pub(crate) alice: Node,
    pub(crate) carol: Node,
    pub(crate) bob: Node,
}

/// A call as its caller makes it, with an id of its own.
pub(crate) fn call(service: &str, method: &str, arguments: &str) -> Call {
    static MADE: AtomicU64 = AtomicU64::new(0);
    Call {
        id: CallId(MADE.fetch_add(1, Ordering::Relaxed).into()),
        address: None,
        target: None,
        service: service.parse().unwrap(),
        method: method.to_owned(),
        versions: "".parse().unwrap(),
        resources: [].into(),
        arguments: Some(arguments.to_owned()),
        path: Vec::new(),
        links_max: Call::LINKS_MAX,
        remaining_ms: 60_000,
        priority: 0,
        is_idempotent: true,
        trace: TraceContext::default(),
        proof: None,
    }
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let held = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(held.await.is_ok(), "not in time: {what}");
}

impl Node {
    pub(crate) async fn start(name: &'static str, role: Role) -> Self {
        Self::start_with(name, role, |_| ()).await
    }

    /// With settings of its own.
    pub(crate) async fn start_with(
        name: &'static str,
        role: Role,
        set: impl FnOnce(&mut FederationConfig),
    ) -> Self {
        let keypair = Keypair::generate_ed25519();
        let (gate, watched) = watch::channel(Gate::default());
        let config = NetworkConfig {
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
            role: Some(role),
            ..NetworkConfig::new(keypair.clone())
        };
        let network = Network::start(config, watched).await.unwrap();
        let (around, known) = watch::channel(Around {
            cluster: Some(CLUSTER),
            ..Around::new(role)
        });
        let mut config = FederationConfig {
            name: Some(name.parse().unwrap()),
            ..FederationConfig::new(keypair, 1)
        };
        set(&mut config);
        let federation = Federation::start(network.clone(), config, known).unwrap();
        Self {
            name,
            federation,
            network,
            gate,
            around,
        }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.network.peer_id()
    }

    pub(crate) fn offer(&self, service: &str, backend: Arc<dyn Backend>) {
        let service = Service::new(service.parse().unwrap());
        self.federation.offer(service, backend).unwrap();
    }

    pub(crate) fn withdraw(&self, service: &str) -> bool {
        self.federation.withdraw(&service.parse().unwrap())
    }

    /// The instances of a service that it knows and reaches.
    pub(crate) fn offers(&self, service: &str) -> Vec<Offered> {
        let mut offered = self.federation.offered();
        offered.retain(|offered| offered.service.name.as_str() == service && offered.hops.is_some());
        offered
    }

    pub(crate) async fn call(&self, call: Call) -> CallAnswer {
        self.federation.call(call).await
    }

    /// Both belong to the same cluster, by its log.
    pub(crate) fn join(&self, other: &Self) {
        let members = Arc::new(HashSet::from([self.id(), other.id()]));
        self.network.learn(other.id(), other.network.listen_addrs());
        self.gate.send_replace(Gate {
            cluster: Some(CLUSTER),
            members: Arc::clone(&members),
            mains: Arc::clone(&members),
            watched: Arc::clone(&members),
        });
        self.around.send_modify(|around| {
            around.mains = vec![other.id()];
            around.members = Some(members);
        });
    }

    /// It belongs to another cluster than the others here.
    pub(crate) fn belong_elsewhere(&self) {
        let cluster = Some(ELSEWHERE);
        self.around.send_modify(|around| around.cluster = cluster);
    }

    /// It is told of these mains, and where they are.
    pub(crate) fn name_mains(&self, mains: &[&Self]) {
        for main in mains {
            self.network.learn(main.id(), main.network.listen_addrs());
        }
        let list = mains.iter().map(|main| main.id()).collect();
        self.around.send_modify(|around| around.mains = list);
    }

    /// It is told of a main that is none of these nodes.
    pub(crate) fn name_main_at(&self, main: PeerId, addresses: Vec<Multiaddr>) {
        self.network.learn(main, addresses);
        self.around.send_modify(|around| around.mains = vec![main]);
    }

    pub(crate) async fn stop(self) {
        self.federation.shutdown().await;
        self.network.shutdown().await;
    }

    /// Goes without a word.
    pub(crate) async fn kill(self) {
        self.network.shutdown().await;
        self.federation.shutdown().await;
    }
}

impl Houses {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// With settings that all of them have.
    pub(crate) async fn start_with(set: impl Fn(&mut FederationConfig)) -> Self {
        let start = |name, role| Node::start_with(name, role, &set);
        let houses = Self {
            main_a: start("main-a", Role::Main).await,
            main_b: start("main-b", Role::Main).await,
            alice: start("alice", Role::Home).await,
            carol: start("carol", Role::Home).await,
            bob: start("bob", Role::Home).await,
        };
        let all = houses.all();
        let members: Arc<HashSet<PeerId>> = Arc::new(all.iter().map(|node| node.id()).collect());
        let [a, b] = [houses.main_a.id(), houses.main_b.id()];
        for node in all {
            node.gate.send_replace(Gate {
                cluster: Some(CLUSTER),
                members: Arc::clone(&members),
                mains: Arc::new(HashSet::from([a, b])),
                watched: Arc::new(HashSet::from([a, b])),
            });
            for other in all.iter().filter(|other| other.id() != node.id()) {
                node.network.learn(other.id(), other.network.listen_addrs());
            }
            let list = if node.name == "bob" {
                vec![b, a]
            } else {
                vec![a, b]
            };
            // Named, and not found in a log: they are connected before there is anything to tell.
            node.around.send_modify(|around| around.mains = list);
        }
        eventually("everybody has a main", || {
            let is_with = |node: &Node, main: PeerId| node.federation.neighbours().contains(&main);
            is_with(&houses.alice, a)
                && is_with(&houses.carol, a)
                && is_with(&houses.bob, b)
                && is_with(&houses.main_a, b)
                && is_with(&houses.main_b, a)
        })
        .await;
        houses
    }

    /// What Alice's edge answers.
    pub(crate) async fn ask(&self, body: &str) -> serde_json::Value {
        let reply = self
            .alice
            .federation
            .answer(body.as_bytes(), &Headers::default())
            .await;
        assert_eq!(reply.status, 200);
        serde_json::from_str(&reply.body.unwrap()).unwrap()
    }

    fn all(&self) -> [&Node; 5] {
        [&self.main_a, &self.main_b, &self.alice, &self.carol, &self.bob]
    }

    /// Both mains reach an instance of it, at most so many links away.
    pub(crate) async fn until_known(&self, service: &str, links: usize) {
        eventually(&format!("both mains know {service}"), || {
            [&self.main_a, &self.main_b]
                .iter()
                .all(|main| main.offers(service).iter().any(|one| one.hops <= Some(links)))
        })
        .await;
    }

    pub(crate) async fn stop(self) {
        join_all([self.alice, self.carol, self.bob].map(Node::stop)).await;
        join_all([self.main_a, self.main_b].map(Node::stop)).await;
    }
}
