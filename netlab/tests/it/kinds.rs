//! Every router that a lab can lay out is of the kind it claims, as an independent probe sees it.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use lapwing_netlab::{
    Egress, Filtering, Found, FoundMapping, Host, Ipv6, Lab, Lan, Mapping, Nat, Ports, Sequence, Shape,
};

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn every_kind_of_router_is_what_it_claims() {
    let lab = Lab::new().unwrap();
    let mut wrong = Vec::new();
    println!("\n{:<62} | found", "laid out");
    let kinds: Vec<_> = Nat::kinds().into_iter().enumerate().collect();
    for some in kinds.chunks(8) {
        let probe = |(number, nat): &(usize, Nat)| {
            let router = lab.router(&format!("nat-{number}"), nat.clone()).unwrap();
            lab.classify(&router.host(&format!("host-{number}")).unwrap())
                .unwrap()
        };
        let found: Vec<_> = thread::scope(|scope| {
            let probes: Vec<_> = some.iter().map(|kind| scope.spawn(|| probe(kind))).collect();
            probes.into_iter().map(|probe| probe.join().unwrap()).collect()
        });
        for ((_, nat), found) in some.iter().zip(found) {
            println!("{:<62} | {found}", nat.to_string());
            if !found.is(nat) {
                wrong.push(format!("{nat}: {found}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What a punch achieves follows from the kinds alone: of each pair, both send to the address that a third saw.
#[test]
#[ignore = "needs root: lays out network namespaces"]
fn two_hosts_reach_each_other_unless_one_is_symmetric_and_the_other_filters_by_port() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let observer = bind(&public);
    let kinds = [
        Nat::full_cone(),
        Nat::restricted(),
        Nat::port_restricted(),
        Nat::full_cone().translated(),
        Nat::restricted().translated(),
        Nat::port_restricted().translated(),
        Nat::symmetric(),
    ];
    let side = |side: &str| -> Vec<Host> {
        let kinds = kinds.iter().enumerate();
        let lay_out = |(number, nat): (usize, &Nat)| {
            let router = lab.router(&format!("nat-{side}-{number}"), nat.clone()).unwrap();
            router.host(&format!("{side}-{number}")).unwrap()
        };
        kinds.map(lay_out).collect()
    };
    let (left, right) = (side("left"), side("right"));
    for (a, one) in kinds.iter().zip(&left) {
        for (b, other) in kinds.iter().zip(&right) {
            let symmetric = |nat: &Nat| matches!(nat.mapping, Mapping::Symmetric(_));
            let strict = |nat: &Nat| nat.filtering == Filtering::AddressAndPort;
            let possible = !(symmetric(a) && strict(b) || symmetric(b) && strict(a));
            let sockets = [bind(one), bind(other)];
            let seen = sockets.each_ref().map(|socket| {
                socket
                    .send_to(b"who", (public.ipv4(), observer.local_addr().unwrap().port()))
                    .unwrap();
                observer.recv_from(&mut [0; 16]).unwrap().1
            });
            let reached = (0..3).any(|_| {
                sockets[0].send_to(b"punch", seen[1]).unwrap();
                sockets[1].send_to(b"punch", seen[0]).unwrap();
                sockets.iter().any(|socket| {
                    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                    socket.recv_from(&mut [0; 16]).is_ok()
                })
            });
            assert_eq!(reached, possible, "{a} against {b}");
        }
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_public_host_finds_nothing_in_between() {
    let lab = Lab::new().unwrap();
    let host = lab.public_host("host").unwrap();
    for found in [lab.classify(&host).unwrap(), lab.classify_ipv6(&host).unwrap()] {
        assert!(found.is(&Nat::open()), "{found}");
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn of_two_routers_in_a_row_the_stricter_one_shows() {
    let lab = Lab::new().unwrap();
    let carrier = lab.router("carrier", Nat::carrier()).unwrap();
    let home = carrier
        .router(
            "home",
            Nat {
                lan: Lan::Prefix([192, 168, 1, 0].into()),
                ..Nat::full_cone()
            },
        )
        .unwrap();
    let host = home.host("host").unwrap();
    assert_eq!(home.ipv4().octets()[..2], [100, 64]);
    assert_eq!(host.ipv4().octets()[..3], [192, 168, 1]);
    let Found::Udp {
        mapping,
        filtering,
        outside,
        ..
    } = lab.classify(&host).unwrap()
    else {
        panic!("no UDP");
    };
    assert_eq!(mapping, FoundMapping::EndpointIndependent(Ports::Translated));
    assert_eq!(filtering, Filtering::AddressAndPort);
    assert_eq!(outside.ip(), carrier.ipv4());
    assert_eq!(host.ipv6(), None);
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_slow_link_that_loses_does_not_change_what_is_found() {
    let lab = Lab::new().unwrap();
    let slow = Shape::mbit(2)
        .with_delay(Duration::from_millis(150))
        .with_loss(0.05);
    for (number, nat) in [Nat::full_cone(), Nat::restricted().translated(), Nat::symmetric()]
        .into_iter()
        .enumerate()
    {
        let host = lab
            .router(&format!("nat-{number}"), nat.clone())
            .unwrap()
            .host(&format!("host-{number}"))
            .unwrap();
        host.link().shape(slow).unwrap();
        let found = lab.classify(&host).unwrap();
        assert!(found.is(&nat), "{nat}: {found}");
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn public_addresses_come_from_where_they_were_asked_to() {
    let lab = Lab::builder()
        .addresses([5, 8, 0, 0].into(), "2a00:1::".parse().unwrap())
        .start()
        .unwrap();
    let host = lab.public_host("host").unwrap();
    let inside = lab.router("open", Nat::open()).unwrap().host("inside").unwrap();
    assert_eq!(host.ipv4().octets()[..2], [5, 8]);
    assert_eq!(inside.ipv4().octets()[..2], [5, 9]);
    assert_eq!(host.ipv6().unwrap().segments()[..2], [0x2a00, 1]);
    assert!(lab.classify(&inside).unwrap().is(&Nat::open()));
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn outside_ports_stay_in_the_customers_block() {
    let lab = Lab::new().unwrap();
    for (number, sequence) in [Sequence::Hashed, Sequence::Random, Sequence::Sequential]
        .into_iter()
        .enumerate()
    {
        let nat = Nat {
            ports: 20_480..=21_503,
            ..Nat::new(Mapping::Symmetric(sequence), Filtering::AddressAndPort)
        };
        let router = lab.router(&format!("nat-{number}"), nat).unwrap();
        let host = router.host(&format!("host-{number}")).unwrap();
        for _ in 0..3 {
            let Found::Udp { outside, .. } = lab.classify(&host).unwrap() else {
                panic!("no UDP");
            };
            assert!(
                (20_480..=21_503).contains(&outside.port()),
                "{sequence:?}: {outside}"
            );
        }
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn ipv6_behind_a_firewall_goes_out_and_hears_only_answers() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let home = lab.router("home", Nat::default()).unwrap();
    let inner = home.router("inner", Nat::default()).unwrap();
    let (host, deep) = (home.host("host").unwrap(), inner.host("deep").unwrap());
    let firewalled = Nat::new(Mapping::None, Filtering::AddressAndPort);
    for host in [&host, &deep] {
        let found = lab.classify_ipv6(host).unwrap();
        assert!(found.is(&firewalled), "{}: {found}", host.name());
        assert!(!hears(host, &public), "{}", host.name());
    }
    let open = lab.router("open", Nat::default().with_ipv6(Ipv6::Open)).unwrap();
    let reachable = open.host("reachable").unwrap();
    assert!(lab.classify_ipv6(&reachable).unwrap().is(&Nat::open()));
    assert!(hears(&reachable, &public));
    let off = lab.router("off", Nat::default().with_ipv6(Ipv6::Off)).unwrap();
    assert_eq!(
        lab.classify_ipv6(&off.host("without").unwrap()).unwrap(),
        Found::NoUdp
    );
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn where_udp_is_blocked_tcp_and_dns_pass() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let home = lab
        .router("home", Nat::default().with_egress(Egress::NoUdp))
        .unwrap();
    let host = home.host("host").unwrap();
    assert_eq!(lab.classify(&host).unwrap(), Found::NoUdp);
    assert_eq!(lab.classify_ipv6(&host).unwrap(), Found::NoUdp);
    assert!(asks(&host, &public, 53));
    assert!(connects(&host, &public, 443));
    assert!(connects(&host, &public, 8_000));
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn where_only_443_is_open_other_tcp_does_not_pass() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let home = lab
        .router("home", Nat::default().with_egress(Egress::Web))
        .unwrap();
    let host = home.host("host").unwrap();
    assert_eq!(lab.classify(&host).unwrap(), Found::NoUdp);
    assert!(asks(&host, &public, 53));
    assert!(connects(&host, &public, 443));
    assert!(!connects(&host, &public, 8_000));
    home.restrict(Egress::Any).unwrap();
    assert!(connects(&host, &public, 8_000));
    assert!(lab.classify(&host).unwrap().is(&home.nat()));
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn what_does_not_go_together_is_refused() {
    let lab = Lab::new().unwrap();
    assert!(lab.router("a", Nat::open().with_hairpin()).is_err());
    assert!(
        lab.router(
            "b",
            Nat {
                ports: 0..=0,
                ..Nat::default()
            }
        )
        .is_err()
    );
    assert!(lab.public_host("no spaces").is_err());
    lab.public_host("c").unwrap();
    assert!(lab.router("c", Nat::default()).is_err());
}

fn bind(host: &Host) -> UdpSocket {
    host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap()
}

/// Whether an IPv6 packet that nobody asked for reaches a host.
fn hears(host: &Host, from: &Host) -> bool {
    let listener = host.enter(|| UdpSocket::bind("[::]:7000")).unwrap().unwrap();
    let sender = from.enter(|| UdpSocket::bind("[::]:0")).unwrap().unwrap();
    listener
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    sender
        .send_to(b"hello", SocketAddr::from((host.ipv6().unwrap(), 7_000)))
        .unwrap();
    listener.recv_from(&mut [0; 16]).is_ok()
}

/// Whether a question to a UDP port of a public host is answered.
fn asks(host: &Host, public: &Host, port: u16) -> bool {
    let server = public
        .enter(|| UdpSocket::bind(("0.0.0.0", port)))
        .unwrap()
        .unwrap();
    let client = host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    }
    client.send_to(b"who", (public.ipv4(), port)).unwrap();
    let Ok((_, asker)) = server.recv_from(&mut [0; 16]) else {
        return false;
    };
    server.send_to(b"you", asker).unwrap();
    client.recv_from(&mut [0; 16]).is_ok()
}

/// Whether a TCP port of a public host can be connected to.
fn connects(host: &Host, public: &Host, port: u16) -> bool {
    let _listener = public
        .enter(|| TcpListener::bind(("0.0.0.0", port)))
        .unwrap()
        .unwrap();
    let target = SocketAddr::from((public.ipv4(), port));
    match host
        .enter(|| TcpStream::connect_timeout(&target, Duration::from_millis(800)))
        .unwrap()
    {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            false
        }
    }
}
