//! Guessing ports: one home behind a NAT whose mapping is endpoint-independent and whose filter is strict, and another
//! behind a symmetric one, so that only a guess opens the way. One guess for each two peers in ten minutes is allowed, so
//! that every run is by peers that nobody has seen before.

use std::time::Duration;

use lapwing_base::Role;
use lapwing_netlab::{Host, Lab, Nat, Shape};

use crate::cell::{Cell, DELAY};
use crate::kinds::Expected;
use crate::nodes::{LabNode, enrol, eventually, refresh};

/// A home finds relays, and what stands before it.
const SETTLED: Duration = Duration::from_secs(60);

const ANY: &str = "/ip4/0.0.0.0/udp/0/quic-v1";

/// What each run came to: how long after the first answer the path was direct, if it was.
pub(crate) fn run(runs: usize, at_once: usize) -> Vec<Result<Option<Duration>, String>> {
    let lab = Lab::builder().seed(7).start().unwrap();
    let mains: Vec<_> = ["relay-1", "relay-2", "relay-3"]
        .map(|name| {
            let host = lab.public_host(name).unwrap();
            LabNode::start(&host, Some(Role::Main), &["/ip4/0.0.0.0/udp/4001/quic-v1"])
        })
        .into_iter()
        .collect();
    let pairs: Vec<_> = (0..at_once.min(runs))
        .map(|number| {
            let strict = if number % 2 == 0 {
                Nat::port_restricted()
            } else {
                Nat::port_restricted().translated()
            };
            let hosts = [("strict", strict), ("symmetric", Nat::symmetric())];
            hosts.map(|(name, nat)| lay_out(&lab, &format!("{name}-{number}"), &nat))
        })
        .collect();
    Cell::print_head();
    let mut outcomes = Vec::new();
    while outcomes.len() < runs {
        let pairs = &pairs[..pairs.len().min(runs - outcomes.len())];
        let homes: Vec<_> = pairs
            .iter()
            .flatten()
            .map(|host| LabNode::start(host, None, &[ANY]))
            .collect();
        enrol(&mains, &homes);
        for home in &homes {
            eventually(&format!("{} can be reached", home.name), SETTLED, || {
                let reach = home.reach();
                !reach.standing.provisional && reach.reservations.len() == 2
            });
        }
        refresh(&mains, &homes);
        let cells: Vec<_> = homes
            .chunks_exact(2)
            .enumerate()
            .map(|(number, pair)| {
                // Whoever asks makes the first offer.
                let [a, b] = if (outcomes.len() + number / 2) % 2 == 0 {
                    [&pair[0], &pair[1]]
                } else {
                    [&pair[1], &pair[0]]
                };
                let (from, to, expected) = (a.name.as_str(), b.name.as_str(), Expected::Guessed);
                Cell {
                    from,
                    a,
                    to,
                    b,
                    expected,
                }
            })
            .collect();
        outcomes.extend(Cell::run_each_at_once(&cells));
        homes.into_iter().for_each(LabNode::stop);
    }
    mains.into_iter().for_each(LabNode::stop);
    outcomes
}

/// A host behind a router, which an independent probe finds to be of this kind.
fn lay_out(lab: &Lab, name: &str, nat: &Nat) -> Host {
    let router = lab.router(&format!("nat-{name}"), nat.clone()).unwrap();
    router.link().shape(Shape::delayed(DELAY)).unwrap();
    let host = router.host(name).unwrap();
    let found = lab.classify(&host).unwrap();
    assert!(found.is(nat), "{name}: the laboratory's NAT is {found}");
    host
}

#[test]
#[ignore = "needs root"]
fn a_symmetric_nat_and_a_strict_one_are_opened_by_guessing() {
    let outcomes = run(3, 3);
    let direct = outcomes.iter().all(|outcome| matches!(outcome, Ok(Some(_))));
    assert!(direct, "{outcomes:#?}");
}
