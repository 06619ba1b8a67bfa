//! The whole transport on loopback: two ends, proxies, and those who mean no good.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _, future};
use libp2p::core::Endpoint;
use libp2p::core::muxing::{StreamMuxer as _, StreamMuxerBox, StreamMuxerExt as _, SubstreamBox};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, Transport as _, TransportEvent};
use libp2p::multiaddr::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::*;
use crate::driver::http::{Head, upgrade_request};
use crate::driver::now;
use lapwing_base::Multiaddr;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn two_peers_know_each_other_and_exchange_bytes() {
    for listen in ["/ip4/127.0.0.1/tcp/0/tls/ws", "/ip6/::1/tcp/0/wss"] {
        let mut main = End::listening(listen, &WebSocketConfig::default()).await;
        let mut home = End::new(&WebSocketConfig::default());
        let address = main.address().with(Protocol::P2p(main.peer));
        let ((from, theirs), (to, ours)) = connect(&mut main, &mut home, &address).await;
        assert_eq!((from, to), (home.peer, main.peer));
        echo(ours, theirs, 1 << 20).await;
    }
}

#[tokio::test]
async fn a_name_is_dialed_too() {
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
    let mut home = End::new(&WebSocketConfig::default());
    let address = format!("/dns4/localhost/tcp/{}/tls/ws", main.socket().port());
    let (_, (to, _)) = connect(&mut main, &mut home, &address.parse().unwrap()).await;
    assert_eq!(to, main.peer);
}

#[tokio::test]
async fn another_peer_than_the_one_dialed_is_refused() {
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
    let mut home = End::new(&WebSocketConfig::default());
    let expected = PeerId::random();
    let dialed = home.dial(&main.address().with(Protocol::P2p(expected)));
    let (_, dialed) = future::join(main.refuse(), dialed).await;
    let error = dialed.err().unwrap();
    assert!(
        error.contains("another peer answered") && error.contains(&expected.to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn the_end_of_a_peer_is_noticed_at_once() {
    for close_first in [false, true] {
        let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
        let mut home = End::new(&WebSocketConfig::default());
        let address = main.address();
        let ((_, mut theirs), (_, mut ours)) = connect(&mut main, &mut home, &address).await;
        let started = now();
        let noticed = future::poll_fn(|cx| ours.poll_unpin(cx));
        let ends = async {
            if close_first {
                let _ = future::poll_fn(|cx| std::pin::Pin::new(&mut theirs).poll_close(cx)).await;
            }
            drop(theirs);
        };
        let (noticed, ()) = within(future::join(noticed, ends)).await;
        assert!(noticed.is_err());
        assert!(now() - started < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn all_interfaces_are_named_one_by_one() {
    let mut main = End::new(&WebSocketConfig::default());
    main.transport
        .listen_on(ListenerId::next(), "/ip4/0.0.0.0/tcp/0/tls/ws".parse().unwrap())
        .unwrap();
    loop {
        let TransportEvent::NewAddress { listen_addr, .. } = within(main.transport.select_next_some()).await
        else {
            panic!("something else happened");
        };
        let socket = listen_socket(&listen_addr).unwrap();
        assert!(socket.port() != 0 && !socket.ip().is_unspecified());
        if socket.ip().is_loopback() {
            break;
        }
    }
}

#[tokio::test]
async fn a_listener_that_is_removed_says_so_and_frees_its_port() {
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
    assert!(main.transport.remove_listener(main.listener));
    assert!(!main.transport.remove_listener(main.listener));
    let event = within(main.transport.select_next_some()).await;
    assert!(matches!(
        event,
        TransportEvent::ListenerClosed { reason: Ok(()), .. }
    ));
    TcpListener::bind(main.socket()).await.unwrap();
}

#[tokio::test]
async fn a_proxy_is_passed_with_user_and_password() {
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
    let proxy = FakeProxy::start("HTTP/1.1 200 Connection established\r\n\r\n").await;
    let mut home = End::new(&proxy.config("me:secret@"));
    let address = main.address();
    let ((_, theirs), (_, ours)) = connect(&mut main, &mut home, &address).await;
    echo(ours, theirs, 100_000).await;
    let request = proxy.asked().await;
    assert!(
        request.starts_with(&format!("CONNECT {} HTTP/1.1\r\n", main.socket())),
        "{request}"
    );
    assert!(
        request.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"),
        "{request}"
    );
}

#[tokio::test]
async fn a_proxy_is_asked_for_names_and_resolves_them_itself() {
    let proxy = FakeProxy::start("HTTP/1.1 403 Forbidden\r\n\r\n").await;
    let mut home = End::new(&proxy.config(""));
    let dialed = home
        .dial(&"/dns/no-such-host.invalid/tcp/443/tls/ws".parse().unwrap())
        .await;
    assert!(dialed.is_err());
    let request = proxy.asked().await;
    assert!(
        request.starts_with("CONNECT no-such-host.invalid:443 HTTP/1.1\r\n"),
        "{request}"
    );
}

#[tokio::test]
async fn what_a_proxy_refuses_is_said_without_the_password() {
    for (answer, expected) in [
        (
            "HTTP/1.1 403 Not on my watch\r\n\r\n",
            "the proxy refused: 403 Not on my watch",
        ),
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "the proxy asks for a user and a password",
        ),
        ("SSH-2.0-OpenSSH\r\n\r\n", "no HTTP proxy"),
    ] {
        let proxy = FakeProxy::start(answer).await;
        let mut home = End::new(&proxy.config("me:secret@"));
        let dialed = home.dial(&"/ip4/192.0.2.1/tcp/443/tls/ws".parse().unwrap()).await;
        let error = dialed.err().unwrap();
        assert!(
            error.contains(expected) && error.contains("192.0.2.1:443"),
            "{error}"
        );
        assert!(
            !error.contains("secret") && !error.contains("bWU6c2VjcmV0"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = listener.local_addr().unwrap();
    drop(listener);
    let mut home = End::new(&through(&format!("http://me:secret@{place}")));
    let dialed = home.dial(&"/ip4/192.0.2.1/tcp/443/tls/ws".parse().unwrap()).await;
    let error = dialed.err().unwrap();
    assert!(
        error.contains(&format!("cannot connect to the proxy {place}")),
        "{error}"
    );
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn hosts_excepted_from_the_proxy_are_dialed_directly() {
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
    let proxy = Proxy::from_environment(|name| match name {
        "https_proxy" => Some("http://192.0.2.1:1".to_owned()),
        "no_proxy" => Some("127.0.0.0/8".to_owned()),
        _ => None,
    });
    let config = WebSocketConfig {
        proxy: proxy.unwrap(),
        ..WebSocketConfig::default()
    };
    let mut home = End::new(&config);
    let address = main.address();
    let (_, (to, _)) = connect(&mut main, &mut home, &address).await;
    assert_eq!(to, main.peer);
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up_with_the_step_it_was_silent_in() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = WebSocketConfig {
        dial_timeout: Duration::from_millis(200),
        ..WebSocketConfig::default()
    };
    let mut home = End::new(&config);
    let address = address::websocket_address(silent.local_addr().unwrap());
    let error = home.dial(&address).await.err().unwrap();
    assert!(error.contains("within 0.2 s (TLS handshake)"), "{error}");
}

#[tokio::test]
async fn a_browser_gets_a_page_and_no_hang() {
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
    let socket = main.socket();
    let browse = async {
        let mut stream = tls_to(socket).await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    };
    let (refused, page) = within(future::join(main.refuse(), browse)).await;
    assert!(page.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{page}");
    assert!(refused.contains("a web page was asked for"), "{refused}");
    assert_eq!(main.counters.failed_handshakes(), 1);
}

#[tokio::test]
async fn garbage_is_refused() {
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
    let socket = main.socket();
    let plain = async {
        let mut stream = TcpStream::connect(socket).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        read_to_end(stream).await
    };
    let (refused, _) = within(future::join(main.refuse(), plain)).await;
    assert!(refused.contains("the TLS handshake failed"), "{refused}");

    let inside = async {
        let mut stream = tls_to(socket).await;
        let endless = vec![b'a'; 64 * 1024];
        // It may be cut off before it is through.
        let _ = stream.write_all(&endless).await;
        read_to_end(stream).await
    };
    let (refused, _) = within(future::join(main.refuse(), inside)).await;
    assert!(refused.contains("what came is not HTTP"), "{refused}");
    assert_eq!(main.counters.failed_handshakes(), 2);
}

#[tokio::test]
async fn whoever_sends_slowly_or_nothing_is_cut_off() {
    let config = WebSocketConfig {
        handshake_timeout: Duration::from_millis(300),
        ..WebSocketConfig::default()
    };
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &config).await;
    let socket = main.socket();
    let started = now();
    let silent = async { read_to_end(TcpStream::connect(socket).await.unwrap()).await };
    let (refused, _) = within(future::join(main.refuse(), silent)).await;
    assert!(refused.contains("took longer than 0.3 s"), "{refused}");

    let slow = async {
        let mut stream = tls_to(socket).await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        // Always one more header, until nobody listens any more.
        while stream.write_all(b"X-A: b\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (refused, ()) = within(future::join(main.refuse(), slow)).await;
    assert!(refused.contains("took longer than 0.3 s"), "{refused}");
    assert!(now() - started < Duration::from_secs(5));
}

#[tokio::test]
async fn a_websocket_without_noise_is_cut_off() {
    let config = WebSocketConfig {
        handshake_timeout: Duration::from_millis(300),
        ..WebSocketConfig::default()
    };
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &config).await;
    let socket = main.socket();
    let half = async {
        let mut stream = tls_to(socket).await;
        let request = upgrade_request("a", "/", "dGhlIHNhbXBsZSBub25jZQ==");
        stream.write_all(request.as_bytes()).await.unwrap();
        read_to_end(stream).await
    };
    let (refused, _) = within(future::join(main.refuse(), half)).await;
    assert!(refused.contains("Timeout"), "{refused}");
}

#[tokio::test]
async fn handshakes_are_few_and_their_places_come_back() {
    for (max, per_prefix_max) in [(2, 3), (3, 2)] {
        let config = WebSocketConfig {
            handshakes_max: max,
            handshakes_per_prefix_max: per_prefix_max,
            ..WebSocketConfig::default()
        };
        let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &config).await;
        let silent = [
            TcpStream::connect(main.socket()).await.unwrap(),
            TcpStream::connect(main.socket()).await.unwrap(),
        ];
        let held = [main.incoming().await, main.incoming().await];
        // The third is closed unheard.
        let third = TcpStream::connect(main.socket()).await.unwrap();
        let closed = read_to_end(third);
        tokio::pin!(closed);
        let unheard = within(future::select(main.transport.select_next_some(), &mut closed)).await;
        assert!(matches!(unheard, future::Either::Right(_)));
        let refused = (main.counters.refused_crowded(), main.counters.refused_prefix());
        assert_eq!(refused, if max < per_prefix_max { (1, 0) } else { (0, 1) });

        drop((silent, held));
        // Connections that stand hold no place.
        let mut connections = Vec::new();
        for _ in 0..5 {
            let mut home = End::new(&WebSocketConfig::default());
            let address = main.address();
            connections.push(connect(&mut main, &mut home, &address).await);
        }
    }
}

#[tokio::test]
async fn many_homes_come_back_at_once() {
    const HOMES: usize = 100;
    let mut main = End::listening("/ip4/127.0.0.1/tcp/0/tls/ws", &WebSocketConfig::default()).await;
    let address = main.address();
    let mut dials = JoinSet::new();
    for _ in 0..HOMES {
        let address = address.clone();
        dials.spawn(async move {
            let mut home = End::new(&WebSocketConfig::default());
            let (_, mut muxer) = home.dial(&address).await.unwrap();
            // What is negotiated lazily goes out when the connection is first used.
            within(future::poll_fn(|cx| muxer.poll_outbound_unpin(cx)))
                .await
                .unwrap();
            future::poll_fn(|cx| muxer.poll_unpin(cx)).await.map(|_| ())
        });
    }
    let mut accepts = JoinSet::new();
    while accepts.len() < HOMES {
        let upgrade = main.incoming().await;
        accepts.spawn(async { upgrade.await.unwrap() });
    }
    let accepted = within(accepts.join_all()).await;
    assert_eq!(accepted.len(), HOMES);
    assert_eq!(
        main.counters.refused_prefix() + main.counters.failed_handshakes(),
        0
    );
}

#[tokio::test]
async fn addresses_of_other_transports_are_left_to_them() {
    let mut home = End::new(&WebSocketConfig::default());
    let quic: Multiaddr = "/ip4/127.0.0.1/udp/1/quic-v1".parse().unwrap();
    assert!(matches!(
        home.transport.dial(quic.clone(), DIAL),
        Err(libp2p::core::transport::TransportError::MultiaddrNotSupported(_))
    ));
    assert!(home.transport.listen_on(ListenerId::next(), quic).is_err());
}

/// One side.
struct End {
    peer: PeerId,
    transport: Boxed<(PeerId, StreamMuxerBox)>,
    counters: Arc<Counters>,
    listener: ListenerId,
    listening: Option<SocketAddr>,
}

type Upgrade = <Boxed<(PeerId, StreamMuxerBox)> as libp2p::core::Transport>::ListenerUpgrade;

const DIAL: DialOpts = DialOpts {
    role: Endpoint::Dialer,
    port_use: PortUse::New,
};

impl End {
    fn new(config: &WebSocketConfig) -> Self {
        let keypair = Keypair::generate_ed25519();
        let counters = Arc::default();
        let transport = transport(&keypair, config, &counters).unwrap();
        Self {
            peer: keypair.public().to_peer_id(),
            transport,
            counters,
            listener: ListenerId::next(),
            listening: None,
        }
    }

    async fn listening(address: &str, config: &WebSocketConfig) -> Self {
        let mut end = Self::new(config);
        end.transport
            .listen_on(end.listener, address.parse().unwrap())
            .unwrap();
        match within(end.transport.select_next_some()).await {
            TransportEvent::NewAddress { listen_addr, .. } => {
                assert!(listen_addr.to_string().ends_with("/tls/ws"), "{listen_addr}");
                end.listening = listen_socket(&listen_addr);
            }
            other => panic!("{other:?}"),
        }
        end
    }

    fn socket(&self) -> SocketAddr {
        self.listening.unwrap()
    }

    fn address(&self) -> Multiaddr {
        address::websocket_address(self.socket())
    }

    fn dial(
        &mut self,
        address: &Multiaddr,
    ) -> impl Future<Output = Result<(PeerId, StreamMuxerBox), String>> + use<> {
        let dialed = self.transport.dial(address.clone(), DIAL).unwrap();
        async {
            let connected = within(dialed).await;
            connected.map_err(|error| lapwing_base::chain(&error))
        }
    }

    async fn incoming(&mut self) -> Upgrade {
        match within(self.transport.select_next_some()).await {
            TransportEvent::Incoming { upgrade, .. } => upgrade,
            other => panic!("{other:?}"),
        }
    }

    async fn accept(&mut self) -> (PeerId, StreamMuxerBox) {
        within(self.incoming().await).await.unwrap()
    }

    /// Why somebody was not let in.
    async fn refuse(&mut self) -> String {
        let error = within(self.incoming().await).await.err().unwrap();
        lapwing_base::chain(&error)
    }
}

type Connection = (PeerId, StreamMuxerBox);

/// Both ends of a connection.
async fn connect(main: &mut End, home: &mut End, address: &Multiaddr) -> (Connection, Connection) {
    let (dialing, accepting) = (home.dial(address), main.accept());
    tokio::pin!(dialing, accepting);
    let mut accepted = None;
    let (peer, mut muxer) = loop {
        tokio::select! {
            dialed = &mut dialing => break dialed.unwrap(),
            end = &mut accepting, if accepted.is_none() => accepted = Some(end),
        }
    };
    // What is negotiated lazily goes out when the connection is first used.
    let driving = future::poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx);
        std::task::Poll::<()>::Pending
    });
    let accepted = match accepted {
        Some(accepted) => accepted,
        None => tokio::select! {
            accepted = accepting => accepted,
            () = driving => unreachable!("it is never ready"),
        },
    };
    (accepted, (peer, muxer))
}

/// A proxy that says one thing, and passes bytes on if that is yes.
struct FakeProxy {
    place: SocketAddr,
    tasks: JoinSet<String>,
}

impl FakeProxy {
    async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut inside, _) = listener.accept().await.unwrap();
            let request = Head::read(&mut inside).await.unwrap().bytes;
            let request = String::from_utf8(request).unwrap();
            inside.write_all(answer.as_bytes()).await.unwrap();
            if answer.starts_with("HTTP/1.1 200") {
                let to = request.split(' ').nth(1).unwrap();
                let mut outside = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
            }
            request
        });
        Self { place, tasks }
    }

    fn config(&self, user: &str) -> WebSocketConfig {
        through(&format!("http://{user}{}", self.place))
    }

    /// What was asked, once the connection has ended.
    async fn asked(mut self) -> String {
        within(self.tasks.join_next()).await.unwrap().unwrap()
    }
}

fn through(proxy: &str) -> WebSocketConfig {
    let variable = |name: &str| (name == "https_proxy").then(|| proxy.to_owned());
    WebSocketConfig {
        proxy: Proxy::from_environment(variable).unwrap(),
        ..WebSocketConfig::default()
    }
}

async fn tls_to(socket: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(tls::client_config().unwrap()));
    let stream = TcpStream::connect(socket).await.unwrap();
    connector
        .connect("a.example".try_into().unwrap(), stream)
        .await
        .unwrap()
}

async fn read_to_end(mut stream: impl tokio::io::AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Sends bytes there and back over a substream.
async fn echo(ours: StreamMuxerBox, theirs: StreamMuxerBox, size: usize) {
    let mut tasks = JoinSet::new();
    let answering = with_substream(
        theirs,
        Endpoint::Listener,
        |mut stream: SubstreamBox| async move {
            let mut buffer = vec![0; 10_000];
            loop {
                let read = stream.read(&mut buffer).await.unwrap();
                if read == 0 {
                    break;
                }
                stream.write_all(&buffer[..read]).await.unwrap();
                stream.flush().await.unwrap();
            }
            stream.close().await.unwrap();
        },
    );
    tasks.spawn(answering);
    let asking = with_substream(ours, Endpoint::Dialer, move |stream: SubstreamBox| async move {
        let sent: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let (mut read, mut write) = stream.split();
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.close().await.unwrap();
        };
        let mut received = Vec::new();
        let (_, result) = future::join(send, read.read_to_end(&mut received)).await;
        result.unwrap();
        assert!(received == sent);
    });
    within(asking).await;
}

/// Opens or takes a substream and drives the connection while it is used.
async fn with_substream<F: Future<Output = ()>>(
    mut muxer: StreamMuxerBox,
    side: Endpoint,
    work: impl FnOnce(SubstreamBox) -> F,
) {
    let stream = future::poll_fn(|cx| {
        if side.is_dialer() {
            muxer.poll_outbound_unpin(cx)
        } else {
            muxer.poll_inbound_unpin(cx)
        }
    });
    let stream = within(stream).await.unwrap();
    let driving = future::poll_fn(|cx| {
        // Ends with the connection, which the work notices by itself.
        let _ = muxer.poll_unpin(cx);
        std::task::Poll::<()>::Pending
    });
    let working = work(stream);
    if side.is_listener() {
        // What is on its way still has to go out; whoever dialed decides when all is over.
        future::join(working, driving).await;
    } else {
        tokio::select! {
            () = working => (),
            () = driving => (),
        }
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it takes too long")
}
