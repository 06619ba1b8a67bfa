//! Every kind of NAT against every other.

use std::thread;
use std::time::{Duration, Instant};

use lapwing_base::Role;
use lapwing_netlab::{Found, Host, Lab, Shape};

use crate::cell::{Cell, DELAY};
use crate::kinds::{Expected, Kind, Sort, expected, kinds};
use crate::nodes::{LabNode, enrol, eventually, refresh};

/// A home finds relays, and what stands before it.
const SETTLED: Duration = Duration::from_secs(40);

const ANY: &str = "/ip4/0.0.0.0/udp/0/quic-v1";
const WEB: &str = "/ip4/0.0.0.0/tcp/443/tls/ws";

#[test]
#[ignore = "needs root"]
fn every_pair_that_can_be_direct_becomes_direct_and_every_other_is_relayed_with_a_reason() {
    let lab = Lab::builder().seed(7).start().unwrap();
    let mains: Vec<_> = ["relay-1", "relay-2", "relay-3"]
        .map(|name| {
            let host = lab.public_host(name).unwrap();
            LabNode::start(&host, Some(Role::Main), &["/ip4/0.0.0.0/udp/4001/quic-v1", WEB])
        })
        .into_iter()
        .collect();
    let kinds = kinds();
    let mut homes = Vec::new();
    for side in ["a", "b"] {
        for (kind, (host, found)) in kinds.iter().zip(lay_out(&lab, side, &kinds)) {
            assert!(
                found.is(&kind.nat),
                "{}: the laboratory's NAT is {found}",
                kind.name
            );
            homes.push(LabNode::start(&host, None, &[ANY]));
        }
    }
    enrol(&mains, &homes);
    let begun = Instant::now();
    for (home, kind) in homes.iter().zip(kinds.iter().chain(&kinds)) {
        eventually(
            &format!("{} can be reached: {:?}", home.name, home.reach()),
            SETTLED,
            || {
                let reach = home.reach();
                // Where UDP is blocked nobody can find out.
                let settled = !reach.standing.provisional || kind.sort == Sort::Blocked;
                settled && (reach.standing.role == Role::Main || reach.reservations.len() == 2)
            },
        );
    }
    println!("every home can be reached after {:.1?}", begun.elapsed());
    refresh(&mains, &homes);
    for (home, kind) in homes.iter().zip(kinds.iter().chain(&kinds)) {
        let reach = home.reach();
        println!(
            "{:4} {:24} {:?} {:?}",
            home.name, kind.name, reach.standing.role, reach.nat
        );
    }
    Cell::print_head();
    let (left, right) = homes.split_at(kinds.len());
    let cells = left.iter().zip(&kinds).flat_map(|(a, from)| {
        right.iter().zip(&kinds).map(move |(b, to)| Cell {
            from: from.name,
            a,
            to: to.name,
            b,
            expected: expected(from.sort, to.sort),
        })
    });
    let (slow, quick): (Vec<_>, Vec<_>) = cells.partition(|cell| cell.expected == Expected::Guessed);
    let mut wrong = Vec::new();
    for cell in quick {
        // As the roster would, while homes find out more about themselves.
        refresh(&mains, &homes);
        wrong.extend(cell.run().err());
    }
    wrong.extend(Cell::run_at_once(&slow));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for node in mains.into_iter().chain(homes) {
        node.stop();
    }
}

/// A host behind a router of each kind, and what an independent probe finds there: the probes take their time, and do not
/// disturb one another.
fn lay_out(lab: &Lab, side: &str, kinds: &[Kind]) -> Vec<(Host, Found)> {
    let lay_out = |number: usize, kind: &Kind| {
        let router = lab
            .router(&format!("nat-{side}{number}"), kind.nat.clone())
            .unwrap();
        router.link().shape(Shape::delayed(DELAY)).unwrap();
        let host = router.host(&format!("{side}{number}")).unwrap();
        let found = lab.classify(&host).unwrap();
        (host, found)
    };
    thread::scope(|scope| {
        let kinds = kinds.iter().enumerate();
        let probed: Vec<_> = kinds
            .map(|(number, kind)| scope.spawn(move || lay_out(number, kind)))
            .collect();
        probed.into_iter().map(|probe| probe.join().unwrap()).collect()
    })
}
