//! TCP under the WebSocket: whom to try in which order, and what the kernel may keep. Speaks nothing.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tracing::debug;

use super::address::{Family, Host};

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 8;

/// How long an address may be silent before the next is tried beside it (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// What the kernel may hold that it has not sent. A message of a higher class waits behind it: 7 ms at 20 Mbit/s.
#[cfg(any(target_os = "android", target_os = "linux"))]
const UNSENT_MAX: u32 = 16 * 1024;

/// How the kernel decides what may be in flight, which our own window over it keeps below the queue; best first, since a
/// user may choose only what the system allows. Where BBR is the system's choice, it lets the link run empty for 200 ms
/// every 10 s, and whatever is urgent waits for that.
#[cfg(target_os = "linux")]
const CONGESTION_CONTROLS: [&str; 2] = ["cubic", "reno"];

/// How long what is sent may stay without an answer before the connection counts as lost.
#[cfg(any(target_os = "android", target_os = "linux"))]
const UNANSWERED_MAX: Duration = Duration::from_secs(20);

/// Silence after which the kernel asks whether the other side is there; NATs forget TCP after minutes, and proxies
/// after one.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Connects to the first address of a host that answers.
///
/// # Errors
/// That the name has no address, or why the last address did not answer.
pub(crate) async fn connect(host: &Host, port: u16) -> io::Result<TcpStream> {
    let mut addresses = match host {
        Host::Ip(ip) => vec![SocketAddr::new(*ip, port)],
        Host::Name { name, family } => resolve(name, port, *family).await?,
    }
    .into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = addresses.next() {
            attempts.push(TcpStream::connect(address));
        }
        if attempts.is_empty() {
            return Err(failure);
        }
        tokio::select! {
            Some(connected) = attempts.next() => match connected {
                Ok(stream) => {
                    tune(&stream);
                    return Ok(stream);
                }
                Err(error) => failure = error,
            },
            () = tokio::time::sleep(STAGGER), if addresses.len() > 0 => (),
        }
    }
}

async fn resolve(name: &str, port: u16, family: Family) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((name, port)).await?;
    Ok(found
        .filter(|address| family.admits(address.ip()))
        .take(ADDRESSES_MAX)
        .collect())
}

/// Makes a connection quick to send and quick to notice a loss.
pub(crate) fn tune(stream: &TcpStream) {
    if let Err(error) = set_options(stream) {
        // It works without, only slower under load.
        debug!(%error, "the options of a TCP connection could not be set");
    }
}

fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(any(target_os = "android", target_os = "linux"))]
    {
        socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
        socket.set_tcp_user_timeout(Some(UNANSWERED_MAX))?;
    }
    // Last, since a system may have been built without any.
    #[cfg(target_os = "linux")]
    choose_congestion_control(&socket)?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn choose_congestion_control(socket: &SockRef<'_>) -> io::Result<()> {
    let mut refused = Ok(());
    for name in CONGESTION_CONTROLS {
        refused = socket.set_tcp_congestion(name.as_bytes());
        if refused.is_ok() {
            break;
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_keeps_little_in_the_kernel_and_notices_losses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = connect(&Host::Ip(address.ip()), address.port()).await.unwrap();
        assert!(stream.nodelay().unwrap());
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_MAX);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_systems_congestion_control_is_not_relied_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = Host::Ip(address.ip());
        let (dialed, accepted) = tokio::join!(connect(&host, address.port()), listener.accept());
        let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap().0);
        tune(&accepted);
        for stream in [&dialed, &accepted] {
            let used = SockRef::from(stream).tcp_congestion().unwrap();
            let used = String::from_utf8_lossy(&used);
            // The kernel fills up with zeros.
            let used = used.trim_end_matches('\0');
            assert!(CONGESTION_CONTROLS.contains(&used), "{used}");
        }
    }

    #[tokio::test]
    async fn a_name_is_resolved_to_the_family_that_was_asked_for() {
        let found = resolve("localhost", 1, Family::V4).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(SocketAddr::is_ipv4));
        let found = resolve("localhost", 1, Family::V6).await.unwrap();
        assert!(found.iter().all(SocketAddr::is_ipv6));
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(&Host::Ip(address.ip()), address.port())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
