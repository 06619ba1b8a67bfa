//! What a node knows again after a restart.

use std::time::{Duration, Instant};

use lapwing_base::{Keypair, Role};
use lapwing_net::{NetworkConfig, Transport, Udp};
use lapwing_netlab::{Egress, Lab, Nat};

use crate::nodes::{LabNode, enrol, eventually};

/// The least that the fallback waits for QUIC where nothing is known of the network.
const LEAD: Duration = Duration::from_millis(250);

#[test]
#[ignore = "needs root"]
fn a_node_that_is_started_again_where_udp_is_blocked_does_not_wait_for_quic() {
    let lab = Lab::builder().seed(7).start().unwrap();
    let main = LabNode::start(
        &lab.public_host("relay-1").unwrap(),
        Some(Role::Main),
        &["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/0.0.0.0/tcp/443/tls/ws"],
    );
    let mains = [main];
    let router = lab
        .router("nat", Nat::port_restricted().with_egress(Egress::Web))
        .unwrap();
    let host = router.host("home").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = || NetworkConfig {
        maps_port: false,
        finds_neighbours: false,
        networks_file: Some(dir.path().join("networks")),
        ..NetworkConfig::new(Keypair::generate_ed25519())
    };
    let mut homes = [LabNode::with(&host, config())];
    // Paths are looked for as soon as the addresses are known.
    let since = Instant::now();
    enrol(&mains, &homes);
    homes[0].ask(&mains[0], Duration::from_secs(10)).unwrap();
    let first = since.elapsed();
    assert!(first >= LEAD, "{first:?}");
    eventually("UDP is known to be blocked", Duration::from_secs(10), || {
        homes[0].reach().nat.udp == Udp::Blocked
    });
    let [before] = homes;
    before.stop();

    homes = [LabNode::with(&host, config())];
    enrol(&mains, &homes);
    assert_eq!(
        homes[0].reach().nat.udp,
        Udp::Blocked,
        "before anybody was dialed"
    );
    let again = homes[0].ask(&mains[0], Duration::from_secs(10)).unwrap();
    println!("answered after {first:.0?}, and after {again:.0?} once it was started again");
    let link = homes[0].peer(&mains[0]).unwrap().link.unwrap();
    assert_eq!(link.transport, Transport::Wss);
    assert!(again < first, "{again:?}");
    for node in mains.into_iter().chain(homes) {
        node.stop();
    }
}
