//! What the addresses of this transport mean: `/dns/example.org/tcp/443/tls/ws`. Resolves nothing, opens nothing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use libp2p::multiaddr::Protocol;
use rustls::pki_types::ServerName;

use lapwing_base::{Multiaddr, PeerId};

/// The longest path of a WebSocket that we ask for; ours is `/`.
const PATH_MAX: usize = 256;

/// Whom to dial.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Remote {
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// What the outer TLS asks for. An IP address is never sent, as the RFC (6066) wants it.
    pub(crate) server_name: ServerName<'static>,
    /// Visible ASCII that begins with a slash, safe in a request line.
    pub(crate) path: String,
}

/// Where a peer listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Host {
    Ip(IpAddr),
    /// A name that is valid in DNS.
    Name {
        name: String,
        family: Family,
    },
}

/// Which addresses of a name count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    Any,
    V4,
    V6,
}

impl Family {
    pub(crate) fn admits(self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }
}

impl Remote {
    /// Reads `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT` with `/tls/ws`, `/tls/sni/NAME/ws` or `/wss`, and
    /// perhaps `/p2p/PEER`. Anything else, also with something behind it, is not for this transport.
    pub(crate) fn parse(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter().peekable();
        let host = match parts.next()? {
            Protocol::Ip4(ip) => Host::Ip(ip.into()),
            Protocol::Ip6(ip) => Host::Ip(ip.into()),
            Protocol::Dns(name) => Host::named(&name, Family::Any)?,
            Protocol::Dns4(name) => Host::named(&name, Family::V4)?,
            Protocol::Dns6(name) => Host::named(&name, Family::V6)?,
            _ => return None,
        };
        let Protocol::Tcp(port @ 1..) = parts.next()? else {
            return None;
        };
        let mut server_name = match &host {
            Host::Ip(ip) => ServerName::IpAddress((*ip).into()),
            Host::Name { name, .. } => dns_name(name)?,
        };
        let path = match parts.next()? {
            Protocol::Wss(path) => path,
            Protocol::Tls => {
                if let Some(Protocol::Sni(name)) = parts.peek() {
                    server_name = dns_name(name)?;
                    parts.next();
                }
                match parts.next()? {
                    Protocol::Ws(path) => path,
                    _ => return None,
                }
            }
            _ => return None,
        };
        match (parts.next(), parts.next()) {
            (None | Some(Protocol::P2p(_)), None) => (),
            _ => return None,
        }
        Some(Self {
            host,
            port,
            server_name,
            path: request_path(&path)?,
        })
    }

    /// `HOST:PORT`, as the `Host` header and a proxy want it.
    pub(crate) fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        match host {
            Host::Ip(ip) => SocketAddr::new(*ip, *port).to_string(),
            Host::Name { name, .. } => format!("{name}:{port}"),
        }
    }
}

impl Host {
    fn named(name: &str, family: Family) -> Option<Self> {
        dns_name(name)?;
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        Some(Self::Name { name, family })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name { name, .. } => name.fmt(f),
        }
    }
}

/// The peer that an address ends with.
pub(crate) fn expected_peer(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// The socket to listen on: `/ip4|ip6/IP/tcp/PORT` with `/tls/ws` or `/wss`.
pub(crate) fn listen_socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else {
        return None;
    };
    match (parts.next()?, parts.next(), parts.next()) {
        (Protocol::Wss(_), None, None) | (Protocol::Tls, Some(Protocol::Ws(_)), None) => {
            Some((ip, port).into())
        }
        _ => None,
    }
}

/// How we write the address of a socket: the one spelling that every implementation reads.
pub(crate) fn websocket_address(socket: SocketAddr) -> Multiaddr {
    Multiaddr::from(socket.ip())
        .with(Protocol::Tcp(socket.port()))
        .with(Protocol::Tls)
        .with(Protocol::Ws("/".into()))
}

fn dns_name(name: &str) -> Option<ServerName<'static>> {
    match ServerName::try_from(name).ok()? {
        name @ ServerName::DnsName(_) => Some(name.to_owned()),
        _ => None,
    }
}

/// A path that cannot smuggle a second line, or a space, into a request.
fn request_path(path: &str) -> Option<String> {
    let visible = path.bytes().all(|byte| byte.is_ascii_graphic());
    (path.starts_with('/') && visible && path.len() <= PATH_MAX).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spellings_of_a_websocket_address_are_understood() {
        let peer = PeerId::random();
        for (text, authority) in [
            ("/ip4/192.0.2.1/tcp/443/tls/ws".to_owned(), "192.0.2.1:443"),
            ("/ip6/2001:db8::1/tcp/443/wss".to_owned(), "[2001:db8::1]:443"),
            (
                format!("/dns4/Main.example/tcp/8443/tls/ws/p2p/{peer}"),
                "main.example:8443",
            ),
        ] {
            let remote = Remote::parse(&text.parse().unwrap()).unwrap();
            assert_eq!(remote.authority(), authority);
            assert_eq!(remote.path, "/");
        }
    }

    #[test]
    fn a_name_for_the_outer_tls_may_differ_from_the_host() {
        let address = "/ip4/192.0.2.1/tcp/443/tls/sni/front.example/ws".parse().unwrap();
        let remote = Remote::parse(&address).unwrap();
        assert_eq!(remote.server_name, ServerName::try_from("front.example").unwrap());
        assert_eq!(remote.host, Host::Ip("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn addresses_of_other_transports_are_left_to_them() {
        let peer = PeerId::random();
        for text in [
            "/ip4/192.0.2.1/tcp/443".to_owned(),
            "/ip4/192.0.2.1/tcp/443/ws".to_owned(),
            "/ip4/192.0.2.1/tcp/0/tls/ws".to_owned(),
            "/ip4/192.0.2.1/udp/443/quic-v1".to_owned(),
            "/dnsaddr/example.org".to_owned(),
            format!("/ip4/192.0.2.1/tcp/443/tls/ws/p2p/{peer}/p2p-circuit"),
            format!("/ip4/192.0.2.1/tcp/443/tls/ws/p2p/{peer}/p2p-circuit/p2p/{peer}"),
        ] {
            assert_eq!(Remote::parse(&text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn nothing_in_an_address_can_add_a_line_to_a_request() {
        for part in [
            Protocol::Ws("/a HTTP/1.1\r\nHost: b".into()),
            Protocol::Ws("/é".into()),
        ] {
            let address = Multiaddr::empty()
                .with(Protocol::Ip4([192, 0, 2, 1].into()))
                .with(Protocol::Tcp(443))
                .with(Protocol::Tls)
                .with(part);
            assert_eq!(Remote::parse(&address), None);
        }
        let name = Multiaddr::empty()
            .with(Protocol::Dns("a\r\nb".into()))
            .with(Protocol::Tcp(443))
            .with(Protocol::Wss("/".into()));
        assert_eq!(Remote::parse(&name), None);
    }

    #[test]
    fn what_is_listened_on_is_written_in_one_way() {
        let socket = listen_socket(&"/ip4/127.0.0.1/tcp/0/wss".parse().unwrap()).unwrap();
        assert_eq!(
            websocket_address(socket).to_string(),
            "/ip4/127.0.0.1/tcp/0/tls/ws"
        );
        assert_eq!(listen_socket(&"/dns/localhost/tcp/1/wss".parse().unwrap()), None);
        assert_eq!(listen_socket(&"/ip4/127.0.0.1/tcp/1/ws".parse().unwrap()), None);
    }
}
