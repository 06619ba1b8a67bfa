//! Every kind of NAT against every other.

use std::time::{Duration, Instant};

use lapwing_base::Role;
use lapwing_net::Path;
use lapwing_netlab::{Lab, Shape};

use crate::kinds::{Expected, Kind, Sort, expected, kinds};
use crate::nodes::{LabNode, enrol, eventually, refresh};

/// From a home to the internet, one way; between two homes it is four times as much there and back.
const DELAY: Duration = Duration::from_millis(10);

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
        for (number, kind) in kinds.iter().enumerate() {
            let router = lab
                .router(&format!("nat-{side}{number}"), kind.nat.clone())
                .unwrap();
            router.link().shape(Shape::delayed(DELAY)).unwrap();
            let host = router.host(&format!("{side}{number}")).unwrap();
            if kind.sort != Sort::Blocked {
                let found = lab.classify(&host).unwrap();
                assert!(
                    found.is(&kind.nat),
                    "{}: the laboratory's NAT is {found:?}",
                    kind.name
                );
            }
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
    println!(
        "\n{:25} {:25} {:8} {:>9} {:>9} {:>6}  reason",
        "from", "to", "path", "answered", "direct", "RTT"
    );
    let mut wrong = Vec::new();
    let (left, right) = homes.split_at(kinds.len());
    for (a, from) in left.iter().zip(&kinds) {
        for (b, to) in right.iter().zip(&kinds) {
            if let Err(why) = pair(a, from, b, to) {
                wrong.push(format!("{} to {}: {why}", from.name, to.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for node in mains.into_iter().chain(homes) {
        node.stop();
    }
}

fn pair(a: &LabNode, from: &Kind, b: &LabNode, to: &Kind) -> Result<(), String> {
    let expected = expected(from.sort, to.sort);
    let begun = Instant::now();
    let answered = a.ask(b, Duration::from_secs(15));
    let answered_after = begun.elapsed();
    let patience = match expected {
        Expected::Direct => Duration::from_secs(10),
        Expected::Guessed => Duration::from_secs(60),
        Expected::Relayed => Duration::from_secs(6),
    };
    let mut direct = None;
    while begun.elapsed() < patience && direct.is_none() {
        let peer = a.peer(b);
        if peer
            .as_ref()
            .and_then(|peer| peer.link)
            .is_some_and(|link| link.path == Path::Direct)
        {
            direct = Some(begun.elapsed());
        }
        let because = peer.and_then(|peer| peer.relayed_because);
        if expected == Expected::Relayed && because.is_some_and(|because| !because.is_transient()) {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let because = a.peer(b).and_then(|peer| peer.relayed_because);
    let path = a
        .path(b)
        .map_or_else(|| "none".to_owned(), |path| format!("{path:?}"));
    let rtts =
        direct.map(|direct| (direct - answered_after.min(direct)).as_secs_f64() / (DELAY * 4).as_secs_f64());
    println!(
        "{:25} {:25} {path:8} {:>9} {:>9} {:>6}  {}",
        from.name,
        to.name,
        format!("{:.0} ms", answered_after.as_secs_f64() * 1e3),
        direct.map_or_else(
            || "-".to_owned(),
            |at| format!("{:.0} ms", at.as_secs_f64() * 1e3)
        ),
        rtts.map_or_else(|| "-".to_owned(), |rtts| format!("{rtts:.1}")),
        because.map_or_else(String::new, |because| because.to_string()),
    );
    answered.map_err(|error| format!("no answer: {error}"))?;
    match (expected, direct) {
        (Expected::Direct | Expected::Guessed, Some(_)) => Ok(()),
        (Expected::Relayed, None) if because.is_some() => Ok(()),
        (expected, direct) => Err(format!(
            "{expected:?} was expected, and it is {direct:?} {because:?}"
        )),
    }
}
