//! Networks that let no UDP through, and that change their mind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapwing_base::Role;
use lapwing_net::{CandidateOutcome, Path, Transport};
use lapwing_netlab::{Egress, Lab, Nat};

use crate::counting::{Answering, Counting};
use crate::nodes::{ECHO, LabNode, enrol, eventually, refresh};
use crate::world::{ANY, World};

const QUIC: &str = "/ip4/0.0.0.0/udp/4001/quic-v1";
const WEB: &str = "/ip4/0.0.0.0/tcp/443/tls/ws";

fn transport(from: &LabNode, to: &LabNode) -> Option<Transport> {
    Some(from.peer(to)?.link?.transport)
}

#[test]
#[ignore = "needs root"]
fn where_udp_is_blocked_mains_are_reached_over_websocket_and_quic_takes_over_once_it_may() {
    let world = World::new(2, &[Nat::port_restricted().with_egress(Egress::Web)]);
    let (home, router, mains) = (&world.homes[0], &world.routers[0], &world.mains);
    enrol(mains, &world.homes);
    let took = home.ask(&mains[0], Duration::from_secs(10)).unwrap();
    println!(
        "\nanswered over {:?} after {took:.0?}",
        transport(home, &mains[0]).unwrap()
    );
    assert_eq!(transport(home, &mains[0]), Some(Transport::Wss));
    assert!(took < Duration::from_millis(1200), "{took:?}");
    eventually("it is known that UDP is blocked", Duration::from_secs(10), || {
        home.reach().nat.udp == lapwing_net::Udp::Blocked
    });
    // Where that is known nobody waits for QUIC.
    let again = mains.iter().map(|main| {
        let (network, peer) = (home.network.clone(), main.id());
        home.run(async move { network.disconnect(peer).await });
        home.ask(main, Duration::from_secs(10)).unwrap()
    });
    let again: Vec<_> = again.collect();
    println!("on the network that is known to block UDP: {again:.0?}");
    assert!(
        again.iter().all(|took| *took < Duration::from_millis(300)),
        "{again:?}"
    );

    eventually("no dial over QUIC is under way", Duration::from_secs(20), || {
        let (network, peer) = (home.network.clone(), mains[0].id());
        let rows = home.run(async move { network.candidates(peer).await });
        rows.iter()
            .all(|row| !matches!(row.outcome, CandidateOutcome::Trying { .. }))
    });
    let requests = Requests::start(home, &mains[0]);
    router.restrict(Egress::Any).unwrap();
    let migrated = eventually("QUIC is probed again and taken", Duration::from_secs(75), || {
        transport(home, &mains[0]) == Some(Transport::Quic)
    });
    // What stood before is let go meanwhile.
    eventually("only QUIC is left", Duration::from_secs(40), || {
        home.peer(&mains[0]).is_some_and(|peer| peer.connections == 1)
    });
    let (asked, failed) = requests.finish();
    println!("QUIC {migrated:.1?} after UDP was let through: {asked} requests, {failed} failed");
    assert_eq!(failed, 0);

    // And the other way.
    let answering = Answering::start(&mains[0]);
    let counting = Counting::start(home, &mains[0]);
    counting.await_answers(10, Duration::from_secs(10));
    let since = Instant::now();
    router.restrict(Egress::Web).unwrap();
    counting.await_answers(50, Duration::from_secs(30));
    let silence = counting.longest_silence(since);
    println!(
        "answered over {:?} {silence:.2?} after UDP was blocked again",
        transport(home, &mains[0]).unwrap()
    );
    assert_eq!(transport(home, &mains[0]), Some(Transport::Wss));
    assert!(silence < Duration::from_secs(5), "{silence:?}");
    counting.finish(&answering);
}

/// Requests one after another, all the time.
struct Requests {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Requests {
    fn start(from: &LabNode, to: &LabNode) -> Self {
        let requests = Self {
            stop: Arc::default(),
            asked: Arc::default(),
            failed: Arc::default(),
            over: Arc::default(),
        };
        let (stop, asked, failed, over) = (
            Arc::clone(&requests.stop),
            Arc::clone(&requests.asked),
            Arc::clone(&requests.failed),
            Arc::clone(&requests.over),
        );
        let (network, peer) = (from.network.clone(), to.id());
        from.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                asked.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = network
                    .request(peer, ECHO, b"hello", Duration::from_secs(10))
                    .await
                {
                    failed.fetch_add(1, Ordering::Relaxed);
                    println!(
                        "a request failed: {error}: {:?}",
                        std::error::Error::source(&error)
                    );
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            over.store(true, Ordering::Relaxed);
        });
        requests
    }

    fn finish(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        eventually("the requests have ended", Duration::from_secs(30), || {
            self.over.load(Ordering::Relaxed)
        });
        (
            self.asked.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        )
    }
}

#[test]
#[ignore = "needs root"]
fn a_main_without_websocket_is_reached_through_another_main_where_udp_is_blocked() {
    let lab = Lab::builder().seed(7).start().unwrap();
    let start = |name: &str, listen: &[&str]| {
        LabNode::start(&lab.public_host(name).unwrap(), Some(Role::Main), listen)
    };
    let mains = [start("plain", &[QUIC]), start("web", &[QUIC, WEB])];
    let homes = [("blocked", Egress::Web), ("free", Egress::Any)].map(|(name, egress)| {
        let nat = Nat::port_restricted().with_egress(egress);
        let router = lab.router(&format!("nat-{name}"), nat).unwrap();
        LabNode::start(&router.host(name).unwrap(), None, &[ANY])
    });
    enrol(&mains, &homes);
    let [plain, web] = &mains;
    let [blocked, free] = &homes;
    eventually(
        "a relay is found that takes WebSocket",
        Duration::from_secs(20),
        || plain.reach().reservations.len() == 1,
    );
    assert_eq!(plain.reach().reservations[0].0, web.id());
    assert_eq!(web.reach().reservations.len(), 0, "everybody reaches it");
    refresh(&mains, &homes);
    let took = blocked.ask(plain, Duration::from_secs(15)).unwrap();
    println!("answered after {took:.1?}");
    assert_eq!(blocked.path(plain), Some(Path::Relayed));
    free.ask(plain, Duration::from_secs(10)).unwrap();
    assert_eq!(free.path(plain), Some(Path::Direct));
    for node in mains.into_iter().chain(homes) {
        node.stop();
    }
}

#[test]
#[ignore = "needs root"]
fn where_udp_is_blocked_and_nothing_leads_around_it_the_error_says_so() {
    let lab = Lab::builder().seed(7).start().unwrap();
    let mains = [LabNode::start(
        &lab.public_host("plain").unwrap(),
        Some(Role::Main),
        &[QUIC],
    )];
    let nat = Nat::port_restricted().with_egress(Egress::Web);
    let router = lab.router("nat", nat).unwrap();
    let homes = [LabNode::start(&router.host("blocked").unwrap(), None, &[ANY])];
    enrol(&mains, &homes);
    let error = homes[0].ask(&mains[0], Duration::from_secs(15)).unwrap_err();
    println!("{error}");
    assert!(
        error.contains("no WebSocket") && error.contains("no relay"),
        "{error}"
    );
    for node in mains.into_iter().chain(homes) {
        node.stop();
    }
}
