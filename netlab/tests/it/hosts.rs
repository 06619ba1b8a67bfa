//! What runs on a host is on that host: commands, sockets, threads and what they start.

use std::net::{IpAddr, UdpSocket};
use std::thread;

use lapwing_netlab::{Lab, Nat};

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_command_sees_the_addresses_of_its_host() {
    let lab = Lab::new().unwrap();
    let host = lab.router("home", Nat::default()).unwrap().host("host").unwrap();
    let output = host
        .command("ip")
        .unwrap()
        .args(["-brief", "address"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("{}/24", host.ipv4())), "{text}");
    assert!(text.contains(&format!("{}/64", host.ipv6().unwrap())), "{text}");
    let missing = host.command("no-such-program").unwrap().output().unwrap();
    assert_eq!(missing.status.code(), Some(127));
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn hosts_behind_one_router_reach_one_another_without_it() {
    let lab = Lab::new().unwrap();
    let home = lab.router("home", Nat::default()).unwrap();
    let (first, second) = (home.host("first").unwrap(), home.host("second").unwrap());
    let listener = second.enter(|| UdpSocket::bind("[::]:7000")).unwrap().unwrap();
    let sender = first.enter(|| UdpSocket::bind("[::]:0")).unwrap().unwrap();
    let mapped = second.ipv4().to_ipv6_mapped();
    for (to, from) in [
        (mapped, IpAddr::V4(first.ipv4())),
        (second.ipv6().unwrap(), IpAddr::V6(first.ipv6().unwrap())),
    ] {
        sender.send_to(b"hello", (to, 7_000)).unwrap();
        let (_, seen) = listener.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(seen.ip().to_canonical(), from);
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_thread_of_a_host_starts_threads_of_that_host() {
    let lab = Lab::new().unwrap();
    let (first, second) = (
        lab.public_host("first").unwrap(),
        lab.public_host("second").unwrap(),
    );
    // Both listen on one port, each on its own host.
    let listen = || {
        thread::spawn(|| UdpSocket::bind("0.0.0.0:7000").unwrap())
            .join()
            .unwrap()
    };
    let at_first = first.spawn(listen).unwrap().join().unwrap();
    let at_second = second.spawn(listen).unwrap().join().unwrap();
    at_first.send_to(b"hello", (second.ipv4(), 7_000)).unwrap();
    let (_, seen) = at_second.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(seen, (first.ipv4(), 7_000).into());
}
