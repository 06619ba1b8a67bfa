//! What a lab does to its own network: reboots, other addresses, cuts, blocks.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use lapwing_netlab::{Filtering, Found, Host, Lab, Mapping, Nat, Shape, Way};

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_reboot_forgets_mappings_and_draws_other_ports() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let home = lab.router("home", Nat::port_restricted().translated()).unwrap();
    let host = home.host("host").unwrap();
    let (client, server) = (bind(&host), bind(&public));
    let before = hello(&client, &server, &public).unwrap();
    assert_eq!(hello(&client, &server, &public), Some(before));
    home.reboot().unwrap();
    // Nobody inside has sent anything since.
    server.send_to(b"again", before).unwrap();
    assert!(!hears(&client));
    let after = hello(&client, &server, &public).unwrap();
    assert_eq!(after.ip(), before.ip());
    assert_ne!(after.port(), before.port());
    assert_eq!(hello(&client, &server, &public), Some(after));
    assert!(lab.classify(&host).unwrap().is(&home.nat()));
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_router_with_another_address_shows_it_and_is_the_same_kind() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let home = lab.router("home", Nat::full_cone()).unwrap();
    let host = home.host("host").unwrap();
    let (client, server) = (bind(&host), bind(&public));
    let before = hello(&client, &server, &public).unwrap();
    let address = home.renumber().unwrap();
    let after = hello(&client, &server, &public).unwrap();
    assert_ne!(before.ip(), after.ip());
    assert_eq!(after.ip(), IpAddr::V4(address));
    assert!(lab.classify(&host).unwrap().is(&home.nat()));
    assert!(
        lab.classify_ipv6(&host)
            .unwrap()
            .is(&Nat::new(Mapping::None, Filtering::AddressAndPort))
    );
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_host_moves_to_another_address_and_is_reached_there() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let home = lab.router("home", Nat::default()).unwrap();
    for host in [lab.public_host("moves").unwrap(), home.host("inside").unwrap()] {
        let before = host.ipv4();
        let (client, server) = (bind(&host), bind(&public));
        hello(&client, &server, &public).unwrap();
        assert_ne!(host.renumber().unwrap(), before);
        hello(&client, &server, &public).unwrap();
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_cut_stops_one_direction_and_a_mended_link_goes_on() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    for (name, shaped) in [("plain", false), ("shaped", true)] {
        let host = lab.public_host(name).unwrap();
        if shaped {
            host.link()
                .shape(Shape::delayed(Duration::from_millis(1)))
                .unwrap();
        }
        let (client, server) = (bind(&host), bind(&public));
        let seen = hello(&client, &server, &public).unwrap();
        host.link().cut(Way::Up).unwrap();
        assert_eq!(hello(&client, &server, &public), None);
        server.send_to(b"down", seen).unwrap();
        assert!(hears(&client));
        host.link().mend(Way::Up).unwrap();
        host.link().cut(Way::Down).unwrap();
        client
            .send_to(b"up", (public.ipv4(), server.local_addr().unwrap().port()))
            .unwrap();
        assert!(hears(&server));
        server.send_to(b"down", seen).unwrap();
        assert!(!hears(&client));
        host.link().mend(Way::Down).unwrap();
        assert_eq!(hello(&client, &server, &public), Some(seen));
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_cut_stays_when_the_link_is_shaped_for_the_first_time() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let host = lab.public_host("host").unwrap();
    let (client, server) = (bind(&host), bind(&public));
    host.link().cut(Way::Up).unwrap();
    host.link().shape(Shape::mbit(10)).unwrap();
    assert_eq!(hello(&client, &server, &public), None);
    host.link().mend(Way::Up).unwrap();
    assert!(hello(&client, &server, &public).is_some());
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_block_stops_what_one_host_sends_to_another_and_nothing_else() {
    let lab = Lab::new().unwrap();
    let (first, second) = (
        lab.public_host("first").unwrap(),
        lab.public_host("second").unwrap(),
    );
    let home = lab.router("home", Nat::default()).unwrap();
    let (host, neighbour) = (home.host("host").unwrap(), home.host("neighbour").unwrap());
    let (client, to_first, to_second) = (bind(&host), bind(&first), bind(&second));
    host.block(&first).unwrap();
    host.block(&neighbour).unwrap();
    assert_eq!(hello(&client, &to_first, &first), None);
    assert!(hello(&client, &to_second, &second).is_some());
    let beside = bind(&neighbour);
    assert!(hello(&beside, &to_first, &first).is_some());
    assert_eq!(hello(&client, &beside, &neighbour), None);
    host.unblock(&first).unwrap();
    host.unblock(&neighbour).unwrap();
    assert!(hello(&client, &to_first, &first).is_some());
    assert!(hello(&client, &beside, &neighbour).is_some());
    home.block(&second).unwrap();
    assert_eq!(hello(&beside, &to_second, &second), None);
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn an_unplugged_link_works_again_when_it_is_plugged_in() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let home = lab.router("home", Nat::default()).unwrap();
    let host = home.host("host").unwrap();
    for link in [home.link(), host.link()] {
        for shaped in [false, true] {
            if shaped {
                link.shape(Shape::delayed(Duration::from_millis(1))).unwrap();
            }
            let (client, server) = (bind(&host), bind(&public));
            assert!(hello(&client, &server, &public).is_some());
            link.unplug().unwrap();
            assert_eq!(hello(&client, &server, &public), None);
            link.plug().unwrap();
            assert!(hello(&client, &server, &public).is_some());
        }
    }
    assert!(matches!(lab.classify_ipv6(&host).unwrap(), Found::Udp { .. }));
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_mapping_ends_with_its_lifetime() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    let nat = Nat {
        lifetime: Duration::from_secs(1),
        ..Nat::full_cone()
    };
    let host = lab.router("home", nat).unwrap().host("host").unwrap();
    let (client, server) = (bind(&host), bind(&public));
    let seen = hello(&client, &server, &public).unwrap();
    // Ask at growing distances, since every packet that gets through keeps the mapping alive.
    let dead = (1..=5).any(|seconds| {
        thread::sleep(Duration::from_secs(seconds));
        server.send_to(b"still there?", seen).unwrap();
        !hears(&client)
    });
    assert!(dead);
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_router_that_accepts_input_gives_an_early_probe_the_port_of_the_answer() {
    let lab = Lab::new().unwrap();
    let public = lab.public_host("public").unwrap();
    for (name, accepts_input) in [("careful", false), ("careless", true)] {
        let home = lab
            .router(
                name,
                Nat {
                    accepts_input,
                    ..Nat::default()
                },
            )
            .unwrap();
        let host = home.host(&format!("behind-{name}")).unwrap();
        let (client, server) = (bind(&host), bind(&public));
        let port = client.local_addr().unwrap().port();
        // The peer is first, at the port that it expects.
        server.send_to(b"early", (home.ipv4(), port)).unwrap();
        assert!(!hears(&client));
        let seen = hello(&client, &server, &public);
        let kept = seen.is_some_and(|seen| seen.port() == port);
        assert_eq!(kept, !accepts_input, "{name}: {seen:?}");
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_large_packet_passes_where_the_links_take_it() {
    let lab = Lab::new().unwrap();
    let (first, second) = (
        lab.public_host("first").unwrap(),
        lab.public_host("second").unwrap(),
    );
    first
        .link()
        .shape(Shape::delayed(Duration::from_millis(1)))
        .unwrap();
    for host in [&first, &second] {
        host.link().set_mtu(9_000).unwrap();
    }
    let (client, server) = (bind(&first), bind(&second));
    client
        .send_to(&[7; 8_900], (second.ipv4(), server.local_addr().unwrap().port()))
        .unwrap();
    let mut buffer = [0; 9_000];
    server.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(server.recv(&mut buffer).unwrap(), 8_900);
    assert!(first.link().set_mtu(100).is_err());
}

fn bind(host: &Host) -> UdpSocket {
    let socket = host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// Asks and is answered: whom the server saw. `None` if either is lost.
fn hello(client: &UdpSocket, server: &UdpSocket, at: &Host) -> Option<SocketAddr> {
    // Without a route the system refuses, which is as good as lost.
    client
        .send_to(b"hello", (at.ipv4(), server.local_addr().unwrap().port()))
        .ok()?;
    let (_, seen) = server.recv_from(&mut [0; 16]).ok()?;
    server.send_to(b"hello", seen).unwrap();
    client.recv_from(&mut [0; 16]).ok()?;
    Some(seen)
}

fn hears(socket: &UdpSocket) -> bool {
    match socket.recv_from(&mut [0; 16]) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            false
        }
    }
}
