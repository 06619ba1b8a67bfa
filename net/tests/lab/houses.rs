//! Homes behind two routers in a row, beside one another, behind NATs that count, and with IPv6: what a table of one
//! kind of router against another does not show.

use std::time::Duration;

use lapwing_base::{Keypair, Role};
use lapwing_net::{NetworkConfig, Path};
use lapwing_netlab::{Filtering, Found, Host, Ipv6, Lab, Lan, Mapping, Nat, Router, Sequence, Shape};

use crate::cell::{Cell, DELAY};
use crate::kinds::{Expected, Over};
use crate::nodes::{LabNode, admit, enrol, eventually, refresh};

/// A home finds relays, and what stands before it.
const SETTLED: Duration = Duration::from_secs(40);

const V4: &str = "/ip4/0.0.0.0/udp/0/quic-v1";
const V6: &str = "/ip6/::/udp/0/quic-v1";

/// A lab in which houses are built one after the other.
struct Village {
    lab: Lab,
    homes: Vec<LabNode>,
}

impl Village {
    /// A router of a home or a carrier, as far from the internet as every other.
    fn router(&self, name: &str, nat: Nat) -> Router {
        let router = self.lab.router(name, nat).unwrap();
        router.link().shape(Shape::delayed(DELAY)).unwrap();
        router
    }

    /// The router of a home behind a carrier's.
    fn inner(carrier: &Router, name: &str) -> Router {
        carrier
            .router(name, Nat::port_restricted().with_ipv6(Ipv6::Off))
            .unwrap()
    }

    /// A node on a host, which an independent probe finds behind a NAT of this kind.
    fn settle(&mut self, host: &Host, kind: &Nat, listen: &[&str]) {
        let found = self.lab.classify(host).unwrap();
        assert!(found.is(kind), "{}: the laboratory's NAT is {found}", host.name());
        if listen.contains(&V6) {
            let found = self.lab.classify_ipv6(host).unwrap();
            assert!(
                found.is(&firewall()),
                "{}: the laboratory's firewall is {found}",
                host.name()
            );
        }
        self.homes.push(LabNode::start(host, None, listen));
    }

    /// A node behind a router of its own.
    fn house(&mut self, name: &str, nat: Nat, listen: &[&str]) {
        let host = self
            .router(&format!("nat-{name}"), nat.clone())
            .host(name)
            .unwrap();
        self.settle(&host, &nat, listen);
    }

    fn home(&self, name: &str) -> &LabNode {
        self.homes.iter().find(|home| home.name == name).unwrap()
    }

    fn cell<'a>(&'a self, from: &'a str, to: &'a str, expected: Expected) -> Cell<'a> {
        Cell {
            from,
            a: self.home(from),
            to,
            b: self.home(to),
            expected,
        }
    }
}

#[test]
#[ignore = "needs root"]
fn homes_behind_two_routers_beside_one_another_or_with_ipv6_find_what_path_there_is() {
    let lab = Lab::builder().seed(7).start().unwrap();
    let mains: Vec<_> = ["relay-1", "relay-2", "relay-3"]
        .map(|name| {
            let listen = ["/ip4/0.0.0.0/udp/4001/quic-v1", "/ip6/::/udp/4001/quic-v1"];
            LabNode::start(&lab.public_host(name).unwrap(), Some(Role::Main), &listen)
        })
        .into_iter()
        .collect();
    let mut village = Village {
        lab,
        homes: Vec::new(),
    };
    build(&mut village);
    enrol(&mains, &village.homes);
    for home in &village.homes {
        eventually(&format!("{} can be reached", home.name), SETTLED, || {
            let reach = home.reach();
            reach.standing.role == Role::Main || reach.reservations.len() == 2
        });
    }
    refresh(&mains, &village.homes);
    Cell::print_head();
    let mut wrong = Vec::new();
    for cell in plain_cells(&village) {
        wrong.extend(cell.run().err());
        refresh(&mains, &village.homes);
    }
    wrong.extend(Cell::run_at_once(&slow_cells(&village)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for node in mains.into_iter().chain(village.homes) {
        node.stop();
    }
}

#[test]
#[ignore = "needs root"]
fn two_in_one_home_find_each_other_while_it_has_no_internet() {
    let lab = Lab::builder().seed(7).start().unwrap();
    let router = lab.router("nat", Nat::symmetric()).unwrap();
    let homes = ["a", "b"].map(|name| {
        let config = NetworkConfig {
            listen: vec![V4.parse().unwrap()],
            maps_port: false,
            probe_interval: Duration::from_secs(600),
            ..NetworkConfig::new(Keypair::generate_ed25519())
        };
        LabNode::with(&router.host(name).unwrap(), config)
    });
    router.link().unplug().unwrap();
    admit(&[], &homes);
    let [a, b] = &homes;
    // Neither was told where the other is.
    let found = eventually("the other is found", Duration::from_secs(30), || {
        a.ask(b, Duration::from_secs(5)).is_ok()
    });
    let address = a.peer(b).and_then(|peer| peer.address);
    println!("found after {found:.1?} at {}", address.unwrap());
    assert_eq!(a.path(b), Some(Path::Direct));
    homes.into_iter().for_each(LabNode::stop);
}

/// What a home's IPv6 is behind.
fn firewall() -> Nat {
    Nat::new(Mapping::None, Filtering::AddressAndPort)
}

fn build(village: &mut Village) {
    let plain = || Nat::port_restricted().with_ipv6(Ipv6::Off);
    let translated = plain().translated();
    let symmetric = Nat::symmetric().with_ipv6(Ipv6::Off);
    let counting = Nat {
        mapping: Mapping::Symmetric(Sequence::Sequential),
        ..plain()
    };
    village.house("open", Nat::open().with_ipv6(Ipv6::Off), &[V4]);
    village.house("plain", plain(), &[V4]);
    village.house("translating", translated.clone(), &[V4]);
    village.house("symmetric", symmetric.clone(), &[V4]);
    village.house("counting", counting.clone(), &[V4]);
    village.house("counting-too", counting, &[V4]);

    let symmetric_carrier = Nat {
        lan: Lan::Carrier,
        ..symmetric.clone()
    };
    for (name, carrier, seen) in [
        ("double", Nat::carrier(), translated.clone()),
        ("double-too", Nat::carrier(), translated.clone()),
        ("double-symmetric", symmetric_carrier, symmetric),
    ] {
        let outer = village.router(&format!("carrier-{name}"), carrier);
        let host = Village::inner(&outer, &format!("nat-{name}")).host(name).unwrap();
        village.settle(&host, &seen, &[V4]);
    }

    // Customers of one carrier, who meet at its outside if it lets them turn there.
    for (name, carrier) in [
        ("hairpin", Nat::carrier().with_hairpin()),
        ("flat", Nat::carrier()),
    ] {
        let outer = village.router(&format!("carrier-{name}"), carrier.clone());
        let probed = outer.host(&format!("probe-{name}")).unwrap();
        assert!(village.lab.classify(&probed).unwrap().is(&carrier));
        for side in ["a", "b"] {
            let inner = Village::inner(&outer, &format!("nat-{name}-{side}"));
            let host = inner.host(&format!("{name}-{side}")).unwrap();
            village.settle(&host, &translated, &[V4]);
        }
    }

    // In one home, whose members do not listen for one another.
    for (name, nat) in [("lan", plain()), ("lan-hairpin", plain().with_hairpin())] {
        let router = village.router(&format!("nat-{name}"), nat.clone());
        for side in ["a", "b"] {
            let host = router.host(&format!("{name}-{side}")).unwrap();
            village.settle(&host, &nat, &[V4]);
        }
    }

    village.house("six-a", Nat::symmetric(), &[V4, V6]);
    village.house("six-b", Nat::symmetric(), &[V4, V6]);
    village.house("six-and-four", Nat::port_restricted(), &[V4, V6]);
    // Who writes `::` means every address there is.
    village.house("listens-six", Nat::port_restricted(), &[V6]);
    let host = village
        .router("nat-only-six", Nat::port_restricted())
        .host("only-six")
        .unwrap();
    let mut without_ipv4 = host.command("ip").unwrap();
    without_ipv4.args(["-4", "addr", "flush", "dev", "eth0"]);
    assert!(without_ipv4.status().unwrap().success());
    assert_eq!(village.lab.classify(&host).unwrap(), Found::NoUdp);
    assert!(village.lab.classify_ipv6(&host).unwrap().is(&firewall()));
    village.homes.push(LabNode::start(&host, None, &[V6]));
}

fn plain_cells(village: &Village) -> Vec<Cell<'_>> {
    use Expected::{Direct, DirectOver, Relayed};
    [
        ("double", "open", Direct),
        ("open", "double-too", Direct),
        ("double", "plain", DirectOver(Over::Ipv4)),
        ("plain", "double-too", DirectOver(Over::Ipv4)),
        ("double", "double-too", DirectOver(Over::Ipv4)),
        ("double-symmetric", "open", Direct),
        ("double-symmetric", "symmetric", Relayed),
        ("counting", "open", Direct),
        ("hairpin-a", "hairpin-b", DirectOver(Over::Ipv4)),
        ("hairpin-a", "double", DirectOver(Over::Ipv4)),
        ("lan-a", "lan-b", DirectOver(Over::Lan)),
        ("lan-hairpin-a", "lan-hairpin-b", DirectOver(Over::Lan)),
        ("six-a", "six-b", DirectOver(Over::Ipv6)),
        ("six-and-four", "six-b", DirectOver(Over::Ipv6)),
        ("only-six", "six-and-four", DirectOver(Over::Ipv6)),
        // Who has one family only meets who has both, whichever of them that one's relays are connected over.
        ("six-and-four", "plain", DirectOver(Over::Ipv4)),
        ("double", "six-and-four", DirectOver(Over::Ipv4)),
        ("open", "six-a", DirectOver(Over::Ipv4)),
        ("listens-six", "plain", DirectOver(Over::Ipv4)),
        ("translating", "listens-six", DirectOver(Over::Ipv4)),
        ("listens-six", "six-b", DirectOver(Over::Ipv6)),
    ]
    .map(|(from, to, expected)| village.cell(from, to, expected))
    .into()
}

/// Ports are guessed, or it takes an attempt or two until it is known that nothing helps: for each node, at most two at
/// a time, which is how many it guesses with.
fn slow_cells(village: &Village) -> Vec<Cell<'_>> {
    use Expected::{Guessed, Relayed};
    [
        ("double", "symmetric", Guessed),
        ("double-symmetric", "plain", Guessed),
        ("counting", "plain", Guessed),
        ("translating", "counting-too", Guessed),
        ("flat-a", "flat-b", Relayed),
        ("only-six", "open", Relayed),
        ("hairpin-b", "only-six", Relayed),
    ]
    .map(|(from, to, expected)| village.cell(from, to, expected))
    .into()
}
