//! One pair at a time, for a closer look.

use std::time::Duration;

use lapwing_base::Role;
use lapwing_net::Path;
use lapwing_netlab::{Lab, Nat, Shape};

use crate::nodes::{LabNode, enrol, eventually, refresh};

#[test]
#[ignore = "needs root"]
fn two_homes_behind_common_routers_are_direct_within_three_round_trips() {
    let lab = Lab::builder().seed(7).start().unwrap();
    let mains: Vec<_> = ["relay-1", "relay-2", "relay-3"]
        .map(|name| {
            let host = lab.public_host(name).unwrap();
            LabNode::start(&host, Some(Role::Main), &["/ip4/0.0.0.0/udp/4001/quic-v1"])
        })
        .into_iter()
        .collect();
    let homes: Vec<_> = ["a", "b"]
        .map(|name| {
            let router = lab
                .router(&format!("nat-{name}"), Nat::port_restricted())
                .unwrap();
            router
                .link()
                .shape(Shape::delayed(Duration::from_millis(10)))
                .unwrap();
            let host = router.host(name).unwrap();
            LabNode::start(&host, None, &["/ip4/0.0.0.0/udp/0/quic-v1"])
        })
        .into_iter()
        .collect();
    enrol(&mains, &homes);
    for home in &homes {
        eventually("the home is settled", Duration::from_secs(30), || {
            let reach = home.reach();
            !reach.standing.provisional && reach.reservations.len() == 2
        });
    }
    refresh(&mains, &homes);
    let (a, b) = (&homes[0], &homes[1]);
    tracing::debug!("asking");
    println!("answered after {:?}", a.ask(b, Duration::from_secs(10)).unwrap());
    let direct = eventually("the path is direct", Duration::from_secs(10), || {
        a.path(b) == Some(Path::Direct)
    });
    println!("direct {direct:?} later");
}
