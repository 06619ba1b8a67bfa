//! A shaped link does what was asked of it, within a stated tolerance.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use lapwing_netlab::{Host, Lab, LabError, Nat, Queue, Rate, Shape, Way};

const MS: Duration = Duration::from_millis(1);

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn the_round_trip_is_the_one_that_was_asked_for() {
    let lab = Lab::new().unwrap();
    let server = lab.public_host("server").unwrap();
    let client = lab
        .router("home", Nat::default())
        .unwrap()
        .host("client")
        .unwrap();
    for delay in [MS, 10 * MS, 25 * MS, 300 * MS] {
        client.link().shape(Shape::delayed(delay)).unwrap();
        let got = shortest_round_trip(&client, &server, 5);
        println!("asked {:?}, got {got:?}", delay * 2);
        assert!(got >= delay * 2 - MS / 10 && got <= delay * 2 + 3 * MS, "{got:?}");
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn the_directions_are_shaped_apart_and_counted_apart() {
    let lab = Lab::new().unwrap();
    let (server, client) = (
        lab.public_host("server").unwrap(),
        lab.public_host("client").unwrap(),
    );
    client
        .link()
        .shape_each(Shape::delayed(30 * MS), Shape::default())
        .unwrap();
    let got = shortest_round_trip(&client, &server, 5);
    assert!(got >= 30 * MS - MS / 10 && got < 34 * MS, "{got:?}");
    let (up, down) = (client.link().counters(Way::Up), client.link().counters(Way::Down));
    assert!(
        up.forwarded >= 5 && down.forwarded >= 5 && up.bytes >= 5 * 58,
        "{up:?} {down:?}"
    );
    assert_eq!((up.dropped, up.lost, down.dropped, down.lost), (0, 0, 0, 0));
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_rate_carries_at_least_93_percent_of_it_as_payload() {
    let lab = Lab::new().unwrap();
    for (mbit, queue) in [(20, 200), (100, 200), (20, 1_000), (100, 1_000)] {
        let server = lab.public_host(&format!("server-{mbit}-{queue}")).unwrap();
        let client = lab.public_host(&format!("client-{mbit}-{queue}")).unwrap();
        client
            .link()
            .shape(Shape::mbit(mbit).with_delay(10 * MS).with_queue(queue * MS))
            .unwrap();
        let got = udp_throughput(&client, &server, mbit);
        println!("{mbit} Mbit/s asked, queue {queue} ms: {got:.1} of payload");
        assert!((mbit as f64 * 0.93..mbit as f64).contains(&got), "{got}");
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_path_limits_what_goes_to_one_host_and_nothing_else() {
    let lab = Lab::new().unwrap();
    let [client, near, far] = ["client", "near", "far"].map(|name| lab.public_host(name).unwrap());
    client.shape_path(&far, Shape::mbit(5)).unwrap();
    client.link().shape(Shape::mbit(20).with_queue(200 * MS)).unwrap();
    for (server, mbit) in [(&near, 20), (&far, 5)] {
        let got = udp_throughput(&client, server, 20);
        println!("{}: {mbit} Mbit/s asked, {got:.1} of payload", server.name());
        assert!((f64::from(mbit) * 0.93..f64::from(mbit)).contains(&got), "{got}");
    }
    let back = udp_throughput(&far, &client, 20);
    assert!((20.0 * 0.93..20.0).contains(&back), "{back}");
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_standing_queue_is_as_long_as_it_was_asked_to_be() {
    let lab = Lab::new().unwrap();
    for (number, queue) in [
        Queue::Time(200 * MS),
        Queue::Time(Duration::from_secs(1)),
        Queue::Bytes(500_000),
    ]
    .into_iter()
    .enumerate()
    {
        let server = lab.public_host(&format!("server-{number}")).unwrap();
        let client = lab.public_host(&format!("client-{number}")).unwrap();
        let shape = Shape {
            queue,
            ..Shape::mbit(20).with_delay(25 * MS)
        };
        client.link().shape(shape).unwrap();
        let expected = match queue {
            Queue::Time(longest) => longest,
            Queue::Bytes(most) => Rate::mbit(20).airtime(most as usize),
        } + 50 * MS;
        let got = loaded_round_trip(&client, &server);
        println!("{queue:?}: {expected:?} expected, {got:?} under load");
        assert!(got > expected - 10 * MS && got < expected + 10 * MS, "{got:?}");
        assert!(client.link().counters(Way::Up).dropped > 0);
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn five_percent_of_loss_is_five_percent() {
    // The kernel queues packets by processor, so that one may overtake another where a thread is moved in between. The
    // threads of the laboratory stay where this one is.
    let mut processor = rustix::thread::CpuSet::new();
    processor.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &processor).unwrap();
    let lab = Lab::new().unwrap();
    let (server, client) = (
        lab.public_host("server").unwrap(),
        lab.public_host("client").unwrap(),
    );
    client
        .link()
        .reshape(Shape::default().with_loss(0.05), Shape::default())
        .unwrap();
    let listener = bind(&server);
    let sender = bind(&client);
    listener.set_read_timeout(Some(100 * MS)).unwrap();
    let target = (server.ipv4(), listener.local_addr().unwrap().port());
    let sent = 10_000_u32;
    let mut heard = Vec::new();
    let mut buffer = [0; 4];
    // In groups that fit into the listener's buffer, so that only the link loses.
    for group in 0..sent / 50 {
        for number in group * 50..(group + 1) * 50 {
            sender.send_to(&number.to_be_bytes(), target).unwrap();
        }
        while heard.last() != Some(&(group * 50 + 49)) && listener.recv(&mut buffer).is_ok() {
            heard.push(u32::from_be_bytes(buffer));
        }
    }
    let lost = 100.0 * (1.0 - heard.len() as f64 / f64::from(sent));
    println!("5 % asked, {lost:.2} % lost");
    assert!((3.5..6.5).contains(&lost), "{lost}");
    assert!(heard.is_sorted());
    let up = client.link().counters(Way::Up);
    assert!(up.lost >= u64::from(sent) - heard.len() as u64, "{up:?}");
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_link_without_a_rate_carries_a_gigabit_of_tcp() {
    let lab = Lab::new().unwrap();
    let (server, client) = (
        lab.public_host("server").unwrap(),
        lab.public_host("client").unwrap(),
    );
    client.link().shape(Shape::default()).unwrap();
    let listener = server
        .enter(|| TcpListener::bind("0.0.0.0:5001"))
        .unwrap()
        .unwrap();
    let target = (server.ipv4(), 5_001);
    let mut sender = client.enter(|| TcpStream::connect(target)).unwrap().unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let begun = Instant::now();
    let bytes = thread::scope(|scope| {
        scope.spawn(move || {
            let block = vec![0; 1 << 17];
            while begun.elapsed() < Duration::from_secs(2) && sender.write_all(&block).is_ok() {}
        });
        let mut buffer = vec![0; 1 << 17];
        let mut bytes = 0;
        while let Ok(length @ 1..) = receiver.read(&mut buffer) {
            bytes += length;
        }
        bytes
    });
    let mbit = bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e6;
    println!("{mbit:.0} Mbit/s of TCP");
    let up = client.link().counters(Way::Up);
    // Nobody hands the link a frame that no wire would carry.
    assert!(up.bytes <= up.forwarded * 1_514, "{up:?}");
    // A gigabit on a quiet machine; what a loaded one must still do.
    assert!(mbit > 300.0, "{mbit}");
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_shape_out_of_reason_is_refused() {
    let lab = Lab::new().unwrap();
    let host = lab.public_host("host").unwrap();
    for shape in [
        Shape::default().with_loss(1.5),
        Shape::default().with_loss(f64::NAN),
        Shape::delayed(Duration::MAX),
        Shape::default().with_jitter(Duration::MAX),
    ] {
        assert!(
            matches!(host.link().shape(shape), Err(LabError::Unsupported(_))),
            "{shape:?}"
        );
    }
}

#[test]
#[ignore = "needs root: lays out network namespaces"]
fn a_link_that_is_not_as_asked_is_told() {
    let lab = Lab::new().unwrap();
    let client = lab.public_host("client").unwrap();
    client.link().shape(Shape::delayed(5 * MS)).unwrap();
    lab.verify().unwrap();
    // A jitter that the tolerance does not know of is what a machine that is too busy looks like.
    client.link().reshape(Shape::mbit(1), Shape::default()).unwrap();
    let flood = bind(&client);
    thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let target = (lab.public_host("target").unwrap().ipv4(), 9);
        scope.spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                flood.send_to(&[0; 1_400], target).unwrap();
                thread::sleep(MS);
            }
        });
        while client.link().counters(Way::Up).dropped == 0 {
            thread::yield_now();
        }
        let told = client.link().verify();
        stop.send(()).unwrap();
        assert!(matches!(told, Err(LabError::NotAsAsked { .. })), "{told:?}");
    });
}

fn bind(host: &Host) -> UdpSocket {
    host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap()
}

/// The shortest of some round trips of a small packet.
fn shortest_round_trip(client: &Host, server: &Host, count: usize) -> Duration {
    (0..count)
        .map(|_| echo(&bind(client), &bind(server), server))
        .min()
        .unwrap()
}

/// One round trip; the server's socket is read here, so that only the network takes time.
fn echo(client: &UdpSocket, server: &UdpSocket, at: &Host) -> Duration {
    for socket in [client, server] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    let begun = Instant::now();
    client
        .send_to(b"there", (at.ipv4(), server.local_addr().unwrap().port()))
        .unwrap();
    let mut buffer = [0; 1_500];
    let (_, from) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"back", from).unwrap();
    client.recv_from(&mut buffer).unwrap();
    begun.elapsed()
}

/// Mbit/s of payload that arrive when more is sent than the link takes, over two seconds after the first.
fn udp_throughput(client: &Host, server: &Host, mbit: u64) -> f64 {
    let listener = bind(server);
    listener.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    thread::scope(|scope| {
        let target = (server.ipv4(), listener.local_addr().unwrap().port());
        let flooding = Flood::start(scope, bind(client), target, mbit);
        let mut buffer = [0; 1_500];
        let mut receive = |until: Instant| {
            let mut bytes = 0;
            while Instant::now() < until {
                bytes += listener.recv(&mut buffer).unwrap();
            }
            bytes
        };
        receive(Instant::now() + 500 * MS);
        let begun = Instant::now();
        let bytes = receive(begun + Duration::from_secs(2));
        let got = bytes as f64 * 8.0 / begun.elapsed().as_secs_f64() / 1e6;
        drop(flooding);
        got
    })
}

/// The round trip of a small packet behind a queue that is kept full.
fn loaded_round_trip(client: &Host, server: &Host) -> Duration {
    let (probe, echo_at) = (bind(client), bind(server));
    thread::scope(|scope| {
        let flooding = Flood::start(scope, bind(client), (server.ipv4(), 9), 20);
        let full = client.link().counters(Way::Up).dropped + 100;
        while client.link().counters(Way::Up).dropped < full {
            thread::yield_now();
        }
        // A probe that finds the queue full is dropped, as what floods it is: ask until one gets through.
        probe.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        echo_at.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let target = (server.ipv4(), echo_at.local_addr().unwrap().port());
        scope.spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((length, from)) = echo_at.recv_from(&mut buffer) {
                echo_at.send_to(&buffer[..length], from).unwrap();
            }
        });
        let begun = Instant::now();
        let mut sent = Vec::new();
        for number in 0..100_u8 {
            sent.push(Instant::now());
            probe.send_to(&[number], target).unwrap();
            thread::sleep(MS);
        }
        let mut number = [0];
        probe.recv_from(&mut number).unwrap();
        let took = sent[usize::from(number[0])].elapsed();
        drop(flooding);
        assert!(begun.elapsed() < Duration::from_secs(3));
        took
    })
}

/// Sends full packets at twice a rate until dropped.
struct Flood {
    _stop: std::sync::mpsc::Sender<()>,
}

impl Flood {
    fn start<'scope>(
        scope: &'scope thread::Scope<'scope, '_>,
        socket: UdpSocket,
        target: (std::net::Ipv4Addr, u16),
        mbit: u64,
    ) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let begun = Instant::now();
            let mut sent = 0;
            while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                let due = begun.elapsed().as_micros() as u64 * mbit * 2 / 8;
                while sent < due {
                    socket.send_to(&[0; 1_472], target).unwrap();
                    sent += 1_472;
                }
                thread::sleep(MS / 2);
            }
        });
        Self { _stop: stop }
    }
}
