//! Finds peers in the local network by multicast DNS, and is found: on every interface, over IPv4 and IPv6.
//!
//! Only tells where peers say they are; whether they are is for a dial to find out. An address counts when it is of
//! one of our transports and in a network that this machine is in, so that nobody can send us to third parties; and
//! so does a message's sender.
//!
//! Written fresh, since libp2p's own speaks either IPv4 or IPv6 but not both, remembers without a bound whatever is
//! made up in the network, and is overlooked by go-libp2p (see [`message`]).

mod answer;
mod message;
mod neighbours;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::task::Poll;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use rand::RngExt as _;
use rand::rngs::StdRng;
use socket2::{Domain, Socket, Type};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, trace};

use super::interfaces::Interfaces;
use super::now;
use answer::Answer;
use lapwing_base::{Multiaddr, PeerId};
use message::{Message, RECEIVED_MAX};
use neighbours::Neighbours;

/// Where multicast DNS is spoken (RFC 6762, 3).
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const PORT: u16 = 5353;

/// How long what we say counts.
const LIFETIME: Duration = Duration::from_secs(600);

/// How often it is asked who is there: after a second, and then half as often each time, down to this.
const ASK_MIN: Duration = Duration::from_secs(1);
const ASK_MAX: Duration = Duration::from_secs(240);

/// An answer waits a little, at random, so that not all speak at once (RFC 6762, 6).
const ANSWER_DELAY_MS: std::ops::RangeInclusive<u64> = 20..=120;

/// Interfaces that are used: more than machines have, except those that host containers by the hundred.
const LINKS_MAX: usize = 32;

/// How discovery behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalDiscoveryConfig {
    /// Where it is spoken. Default: 5353, together with others on this machine.
    pub(crate) port: u16,
}

impl Default for LocalDiscoveryConfig {
    fn default() -> Self {
        Self { port: PORT }
    }
}

/// Who is around, and where.
pub(crate) type Neighbourhood = BTreeMap<PeerId, Vec<Multiaddr>>;

/// Finds others and tells them of `listen` until it is told to stop; then says farewell. The receiver holds who is
/// around at the moment.
pub(crate) fn discover(
    me: PeerId,
    config: LocalDiscoveryConfig,
    listen: watch::Receiver<Vec<Multiaddr>>,
    interfaces: watch::Receiver<Interfaces>,
    random: StdRng,
    tracker: &TaskTracker,
    stop: CancellationToken,
) -> watch::Receiver<Neighbourhood> {
    let (around, receiver) = watch::channel(Neighbourhood::new());
    let mut discovery = Discovery {
        me,
        name: String::new(),
        port: config.port,
        random,
        listen: Vec::new(),
        interfaces: Interfaces::default(),
        links: Vec::new(),
        neighbours: Neighbours::default(),
        around,
        ask_at: now(),
        ask_interval: ASK_MIN,
        here: Answer::default(),
        services: Answer::default(),
    };
    // Between 32 and 63 letters, says libp2p's specification.
    let letters = (0..32).map(|_| char::from(discovery.random.random_range(b'a'..=b'z')));
    discovery.name = letters.collect();
    tracker.spawn(discovery.run(listen, interfaces, stop));
    receiver
}

struct Discovery {
    me: PeerId,
    name: String,
    port: u16,
    random: StdRng,
    listen: Vec<Multiaddr>,
    interfaces: Interfaces,
    links: Vec<Link>,
    neighbours: Neighbours,
    around: watch::Sender<Neighbourhood>,
    ask_at: Instant,
    ask_interval: Duration,
    /// Who we are, and where.
    here: Answer,
    /// Which services we have.
    services: Answer,
}

/// An interface on which it is spoken, in one family.
struct Link {
    socket: UdpSocket,
    group: SocketAddr,
    /// Our addresses on it; never empty.
    ours: Vec<IpAddr>,
}

impl Discovery {
    async fn run(
        mut self,
        mut listen: watch::Receiver<Vec<Multiaddr>>,
        mut interfaces: watch::Receiver<Interfaces>,
        stop: CancellationToken,
    ) {
        self.listen.clone_from(&listen.borrow_and_update());
        let present = interfaces.borrow_and_update().clone();
        self.move_to(present).await;
        let (mut listen_changes, mut interfaces_change) = (true, true);
        let mut buffer = vec![0; RECEIVED_MAX];
        let mut turn: usize = 0;
        loop {
            let wake_at = [
                self.here.due_at(),
                self.services.due_at(),
                self.neighbours.expires_at(),
            ];
            let wake_at = wake_at.into_iter().flatten().min();
            let wake_at = wake_at.map_or(self.ask_at, |at| at.min(self.ask_at));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = interfaces.changed(), if interfaces_change => match changed {
                    Ok(()) => {
                        let present = interfaces.borrow_and_update().clone();
                        self.move_to(present).await;
                    }
                    Err(_) => interfaces_change = false,
                },
                changed = listen.changed(), if listen_changes => match changed {
                    Ok(()) => {
                        self.listen.clone_from(&listen.borrow_and_update());
                        self.answer_soon();
                    }
                    Err(_) => listen_changes = false,
                },
                () = sleep_until(wake_at.into()) => self.on_time().await,
                (size, from) = receive(&self.links, turn, &mut buffer) => {
                    turn = turn.wrapping_add(1);
                    self.on_message(&buffer[..size], from);
                }
            }
        }
        self.say(Duration::ZERO).await;
    }

    /// Opens the links of the networks that this machine is in now.
    async fn move_to(&mut self, present: Interfaces) {
        if present.addresses == self.interfaces.addresses && !self.links.is_empty() {
            return;
        }
        self.interfaces = present;
        self.links.clear();
        let indexes = indexes_v6().await;
        let mut by_index: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for net in &self.interfaces.addresses {
            match net.addr() {
                IpAddr::V4(ip) => self.links.extend(opened(Link::open(ip, self.port), ip.into())),
                // Zero is the system's choice, where it does not tell.
                IpAddr::V6(ip) => {
                    let index = indexes.get(&ip).copied().unwrap_or(0);
                    by_index.entry(index).or_default().push(ip.into());
                }
            }
        }
        for (index, ours) in by_index {
            let first = ours[0];
            self.links
                .extend(opened(Link::open_v6(index, ours, self.port), first));
        }
        self.links.truncate(LINKS_MAX);
        // Whoever was around is so no more, or will say so again.
        if self.neighbours.clear() {
            self.tell();
        }
        self.ask_at = now();
        self.ask_interval = ASK_MIN;
        self.answer_soon();
    }

    async fn on_time(&mut self) {
        let now = now();
        if self.ask_at <= now {
            self.send_all(|_| message::who_is_there()).await;
            self.ask_at = now + self.ask_interval;
            self.ask_interval = (2 * self.ask_interval).min(ASK_MAX);
        }
        if self.here.give(now) {
            self.say(LIFETIME).await;
        }
        if self.services.give(now) {
            self.send_all(|_| message::services(LIFETIME)).await;
        }
        if self.neighbours.expire(now) {
            self.tell();
        }
    }

    fn on_message(&mut self, bytes: &[u8], from: SocketAddr) {
        if !self.is_local(from.ip()) {
            return;
        }
        match Message::parse(bytes) {
            None => (),
            Some(Message::WhoIsThere) => self.answer_soon(),
            Some(Message::WhichServices) => {
                let delay = self.delay();
                self.services.asked(delay, now());
            }
            Some(Message::Here(announced)) => {
                let mut changed = false;
                for mut announcement in announced {
                    if announcement.peer == self.me {
                        continue;
                    }
                    announcement.addresses.retain(|address| self.is_usable(address));
                    trace!(peer = %announcement.peer, addresses = announcement.addresses.len(), "a peer is around");
                    changed |= self.neighbours.heard(announcement, now());
                }
                if changed {
                    self.tell();
                }
            }
        }
    }

    fn answer_soon(&mut self) {
        let delay = self.delay();
        self.here.asked(delay, now());
    }

    fn delay(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(ANSWER_DELAY_MS))
    }

    /// Says on each link which of our addresses are there.
    async fn say(&self, lifetime: Duration) {
        self.send_all(|link| {
            let there = self.listen.iter().filter(|address| {
                let ip = ip_of(address);
                ip.is_some_and(|ip| link.ours.contains(&ip)) && is_ours(address)
            });
            let there: Vec<Multiaddr> = there.map(super::addresses::without_peer).collect();
            message::here(&self.me, &self.name, link.ours[0], &there, lifetime)
        })
        .await;
    }

    async fn send_all(&self, message: impl Fn(&Link) -> Vec<u8>) {
        for link in &self.links {
            if let Err(error) = link.socket.send_to(&message(link), link.group).await {
                trace!(%error, address = %link.ours[0], "a link did not take a message");
            }
        }
    }

    fn tell(&self) {
        let around = self.neighbours.addresses();
        debug!(peers = around.len(), "the peers in the local network changed");
        self.around.send_replace(around);
    }

    /// Whether an address is in a network that this machine is in.
    fn is_local(&self, ip: IpAddr) -> bool {
        let on_link = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        on_link || self.interfaces.addresses.iter().any(|net| net.contains(&ip))
    }

    fn is_usable(&self, address: &Multiaddr) -> bool {
        // An address of the link alone does not say which link.
        let on_link = |ip| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        is_ours(address) && ip_of(address).is_some_and(|ip| self.is_local(ip) && !on_link(ip))
    }
}

impl Link {
    fn open(ip: Ipv4Addr, port: u16) -> io::Result<Self> {
        let socket = shared_socket(Domain::IPV4)?;
        #[cfg(any(target_os = "android", target_os = "linux"))]
        // Else it would also hear what comes by the other links.
        socket.set_multicast_all_v4(false)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        socket.join_multicast_v4(&GROUP, &ip)?;
        socket.set_multicast_if_v4(&ip)?;
        socket.set_multicast_loop_v4(true)?;
        // RFC 6762, 11.
        socket.set_multicast_ttl_v4(255)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            group: (GROUP, port).into(),
            ours: vec![ip.into()],
        })
    }

    fn open_v6(index: u32, ours: Vec<IpAddr>, port: u16) -> io::Result<Self> {
        let socket = shared_socket(Domain::IPV6)?;
        socket.set_only_v6(true)?;
        #[cfg(any(target_os = "android", target_os = "linux"))]
        socket.set_multicast_all_v6(false)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        socket.join_multicast_v6(&GROUP_V6, index)?;
        socket.set_multicast_if_v6(index)?;
        socket.set_multicast_loop_v6(true)?;
        socket.set_multicast_hops_v6(255)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            group: SocketAddrV6::new(GROUP_V6, port, 0, index).into(),
            ours,
        })
    }
}

/// A socket whose port others on this machine have as well.
fn shared_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn opened(link: io::Result<Link>, ip: IpAddr) -> Option<Link> {
    // Tunnels, and machines without multicast, have none.
    link.inspect_err(|error| debug!(%error, %ip, "peers are not sought on this address"))
        .ok()
}

/// The next message of any link, beginning with the one at `first`, so that a busy link cannot silence the others.
/// Is silent for ever when there are none.
async fn receive(links: &[Link], first: usize, buffer: &mut [u8]) -> (usize, SocketAddr) {
    std::future::poll_fn(|cx| {
        let (before, from_first) = links.split_at(first % links.len().max(1));
        for link in from_first.iter().chain(before) {
            let mut read = ReadBuf::new(buffer);
            match link.socket.poll_recv_from(cx, &mut read) {
                Poll::Ready(Ok(from)) => return Poll::Ready((read.filled().len(), from)),
                // Such as an answer to what we sent that nobody took. The next attempt must come by itself.
                Poll::Ready(Err(_)) => cx.waker().wake_by_ref(),
                Poll::Pending => (),
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether one of our transports takes it.
fn is_ours(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let is_ip = matches!(parts.next(), Some(Protocol::Ip4(_) | Protocol::Ip6(_)));
    let rest: Vec<_> = parts.filter(|part| !matches!(part, Protocol::P2p(_))).collect();
    is_ip
        && matches!(
            rest.as_slice(),
            [Protocol::Udp(1..), Protocol::QuicV1]
                | [Protocol::Tcp(1..), Protocol::Tls, Protocol::Ws(_)]
                | [Protocol::Tcp(1..), Protocol::Wss(_)]
        )
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The interfaces of our IPv6 addresses, where the system lists them in a file: address, index, and more, in
/// hexadecimal digits.
async fn indexes_v6() -> BTreeMap<Ipv6Addr, u32> {
    let table = tokio::fs::read_to_string("/proc/net/if_inet6")
        .await
        .unwrap_or_default();
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let index = u32::from_str_radix(fields.next()?, 16).ok()?;
        Some((address.into(), index))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    /// Longer than anything here takes on a loaded machine.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn two_peers_find_each_other_and_notice_a_farewell() {
        let port = free_port();
        let here = networks("127.0.0.1/8");
        let listen: Multiaddr = "/ip4/127.0.0.1/udp/4001/quic-v1".parse().unwrap();
        let mut a = Node::start(port, &here, &listen);
        let mut b = Node::start(port, &here, &listen);
        let (me_a, me_b) = (a.me, b.me);
        for (node, other) in [(&mut a, me_b), (&mut b, me_a)] {
            let found = node.around.wait_for(|around| around.contains_key(&other));
            let found = within(found).await.unwrap();
            assert_eq!(*found, BTreeMap::from([(other, vec![listen.clone()])]));
        }
        b.stop().await;
        within(a.around.wait_for(BTreeMap::is_empty)).await.unwrap();
        a.stop().await;
    }

    #[tokio::test]
    async fn a_peer_that_begins_to_listen_is_found_and_one_that_moves_away_is_forgotten() {
        let port = free_port();
        let here = networks("127.0.0.1/8");
        let listen: Multiaddr = "/ip4/127.0.0.1/tcp/443/tls/ws".parse().unwrap();
        let mut a = Node::start(port, &here, &listen);
        let b = Node::start(port, &here, &Multiaddr::empty());
        b.listen.send_replace(vec![listen.clone()]);
        let found = a.around.wait_for(|around| around.contains_key(&b.me));
        assert_eq!(within(found).await.unwrap()[&b.me], [listen]);
        a.interfaces.send_replace(Interfaces::default());
        within(a.around.wait_for(BTreeMap::is_empty)).await.unwrap();
        a.stop().await;
        b.stop().await;
    }

    #[tokio::test]
    async fn what_others_make_up_leads_nowhere_else() {
        let port = free_port();
        let here = networks("127.0.0.1/8");
        let mut node = Node::start(port, &here, &"/ip4/127.0.0.1/udp/1/quic-v1".parse().unwrap());
        let liar = PeerId::random();
        let addresses = [
            // A third party, other transports, a relay, and one that would do.
            "/ip4/203.0.113.1/udp/4001/quic-v1",
            "/ip4/127.0.0.1/tcp/4001",
            "/dns/example.org/udp/4001/quic-v1",
            "/ip4/127.0.0.1/udp/4001/quic-v1/p2p-circuit",
            "/ip4/127.0.0.1/udp/0/quic-v1",
            "/ip4/127.0.0.1/udp/4001/quic-v1",
        ]
        .map(|address| address.parse().unwrap());
        let link = Link::open(Ipv4Addr::LOCALHOST, port).unwrap();
        let lie = message::here(&liar, "liar", [127, 0, 0, 1].into(), &addresses, LIFETIME);
        let mut repeat = tokio::time::interval(Duration::from_millis(50));
        let found = within(async {
            loop {
                tokio::select! {
                    found = node.around.wait_for(|around| around.contains_key(&liar)) => break found.unwrap().clone(),
                    // The node may not listen yet.
                    _ = repeat.tick() => link.socket.send_to(&lie, link.group).await.unwrap(),
                };
            }
        })
        .await;
        assert_eq!(found[&liar], addresses[5..]);
        node.stop().await;
    }

    #[tokio::test]
    async fn a_machine_without_a_network_waits_for_one() {
        let port = free_port();
        let listen: Multiaddr = "/ip4/127.0.0.1/udp/4001/quic-v1".parse().unwrap();
        let mut a = Node::start(port, &Interfaces::default(), &listen);
        let b = Node::start(port, &networks("127.0.0.1/8"), &listen);
        a.interfaces.send_replace(networks("127.0.0.1/8"));
        within(a.around.wait_for(|around| around.contains_key(&b.me)))
            .await
            .unwrap();
        a.stop().await;
        b.stop().await;
    }

    struct Node {
        me: PeerId,
        around: watch::Receiver<Neighbourhood>,
        listen: watch::Sender<Vec<Multiaddr>>,
        interfaces: watch::Sender<Interfaces>,
        tracker: TaskTracker,
        stop: CancellationToken,
    }

    impl Node {
        fn start(port: u16, here: &Interfaces, listen: &Multiaddr) -> Self {
            let me = PeerId::random();
            let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
            let (listen, listening) = watch::channel(vec![listen.clone()]);
            let (interfaces, present) = watch::channel(here.clone());
            let seed = u64::from_be_bytes(me.to_bytes()[8..16].try_into().unwrap());
            let around = discover(
                me,
                LocalDiscoveryConfig { port },
                listening,
                present,
                StdRng::seed_from_u64(seed),
                &tracker,
                stop.clone(),
            );
            Self {
                me,
                around,
                listen,
                interfaces,
                tracker,
                stop,
            }
        }

        async fn stop(self) {
            self.stop.cancel();
            self.tracker.close();
            within(self.tracker.wait()).await;
        }
    }

    fn networks(address: &str) -> Interfaces {
        Interfaces {
            addresses: BTreeSet::from([address.parse().unwrap()]),
            ..Interfaces::default()
        }
    }

    /// A port for this test alone: others on this machine may speak on the usual one.
    fn free_port() -> u16 {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, future)
            .await
            .expect("it takes too long")
    }
}
