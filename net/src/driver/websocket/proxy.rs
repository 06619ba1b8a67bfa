//! An HTTP proxy that lets connections out (`CONNECT`, RFC 9110 9.3.6): which one, for whom, and what it answers.
//!
//! Its password is in no error and no log.

use std::fmt;
use std::io;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use if_watch::IpNet;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::address::{Host, Remote};
use crate::driver::http::{Head, Response};
use lapwing_base::Multiaddr;

/// Exceptions that are looked at; a longer list is cut.
const EXCEPTIONS_MAX: usize = 256;

/// The proxy that this machine's administrator has named. Shows its place, and never its password.
#[derive(Clone)]
pub struct Proxy {
    host: String,
    port: u16,
    /// The value of a `Proxy-Authorization` header.
    authorization: Option<String>,
    exceptions: Vec<Exception>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("authorization", &self.authorization.as_ref().map(|_| "…"))
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why a setting names no proxy that we can use. The setting itself may hold a password and is not repeated.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ProxySettingError {
    /// Only `http://` is spoken to proxies.
    #[error("HTTPS_PROXY names a proxy of kind {scheme}; use one of kind http")]
    Scheme {
        /// What comes before `://`.
        scheme: String,
    },
    /// It cannot be read.
    #[error("HTTPS_PROXY is no address of a proxy; write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")]
    Malformed,
}

/// Why a proxy did not let us through.
#[derive(Debug, Error)]
pub(crate) enum ProxyError {
    /// It wants a user and a password, or others.
    #[error("the proxy asks for a user and a password (set them in HTTPS_PROXY)")]
    Authentication,
    /// It does not connect to this host.
    #[error("the proxy refused: {status} {reason}")]
    Refused {
        /// HTTP's number for it.
        status: u16,
        /// The proxy's words.
        reason: String,
    },
    /// What answers is no HTTP proxy.
    #[error("what answers there is no HTTP proxy")]
    NotAProxy,
    /// The connection failed.
    #[error("the proxy closed the connection")]
    Io(#[source] io::Error),
}

impl Proxy {
    /// The proxy of the environment, where `variable` looks up one variable of it: `https_proxy` or `HTTPS_PROXY`,
    /// except for what `no_proxy` or `NO_PROXY` lists. The lower case wins, as in curl.
    ///
    /// # Errors
    /// When there is a setting that cannot be used: going out without the proxy would fail in worse ways.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ProxySettingError> {
        let either = |lower: &str, upper: &str| {
            let value = variable(lower).or_else(|| variable(upper))?;
            let value = value.trim().to_owned();
            (!value.is_empty()).then_some(value)
        };
        let Some(setting) = either("https_proxy", "HTTPS_PROXY") else {
            return Ok(None);
        };
        let mut proxy = Self::parse(&setting)?;
        let exceptions = either("no_proxy", "NO_PROXY").unwrap_or_default();
        let exceptions = exceptions.split(',').filter_map(Exception::parse);
        proxy.exceptions = exceptions.take(EXCEPTIONS_MAX).collect();
        Ok(Some(proxy))
    }

    /// Whether a dial of this address goes through it: one of WebSocket, unless an exception covers its host.
    pub fn carries(&self, address: &Multiaddr) -> bool {
        Remote::parse(address).is_some_and(|remote| self.serves(&remote))
    }

    fn parse(setting: &str) -> Result<Self, ProxySettingError> {
        let rest = match setting.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => {
                let scheme = scheme.chars().filter(char::is_ascii_alphanumeric).take(16);
                let scheme = scheme.collect();
                return Err(ProxySettingError::Scheme { scheme });
            }
            None => setting,
        };
        // A password may hold any sign, so the last `@` is the one that counts.
        let (user, place) = match rest.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, rest),
        };
        let place = place.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = host_and_port(place).ok_or(ProxySettingError::Malformed)?;
        let authorization = user.map(|user| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            let mut both = percent_decoded(user);
            both.push(b':');
            both.extend(percent_decoded(password));
            format!("Basic {}", STANDARD.encode(both))
        });
        Ok(Self {
            host: host.to_owned(),
            // What browsers take for `http://` without a port.
            port: port.unwrap_or(80),
            authorization,
            exceptions: Vec::new(),
        })
    }

    /// Where it listens; the host may be a name.
    pub(crate) fn place(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Whether connections to this host go through it.
    pub(crate) fn serves(&self, remote: &Remote) -> bool {
        !self
            .exceptions
            .iter()
            .any(|exception| exception.covers(&remote.host, remote.port))
    }

    /// Asks the proxy at the other end of `stream` for a connection; the stream then leads to `authority`.
    pub(crate) async fn connect(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        authority: &str,
    ) -> Result<(), ProxyError> {
        let authorization = match &self.authorization {
            Some(value) => format!("Proxy-Authorization: {value}\r\n"),
            None => String::new(),
        };
        let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(ProxyError::Io)?;
        let head = Head::read(stream).await.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => ProxyError::NotAProxy,
            _ => ProxyError::Io(error),
        })?;
        let response = Response::parse(&head.bytes).ok_or(ProxyError::NotAProxy)?;
        match response.status {
            // The other side speaks only after we have, so nothing can be behind the head.
            200..=299 if head.rest.is_empty() => Ok(()),
            200..=299 => Err(ProxyError::NotAProxy),
            407 => Err(ProxyError::Authentication),
            status => Err(ProxyError::Refused {
                status,
                reason: response.reason,
            }),
        }
    }
}

/// One entry of `NO_PROXY`.
#[derive(Clone, Debug)]
enum Exception {
    All,
    Network(IpNet),
    /// A domain with everything under it, and perhaps only one port.
    Domain {
        name: String,
        port: Option<u16>,
    },
    Ip {
        ip: IpAddr,
        port: Option<u16>,
    },
}

impl Exception {
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim();
        if entry == "*" {
            return Some(Self::All);
        }
        if let Ok(network) = entry.parse() {
            return Some(Self::Network(network));
        }
        if let Ok(ip) = entry.parse() {
            return Some(Self::Ip { ip, port: None });
        }
        let (name, port) = host_and_port(entry)?;
        if let Ok(ip) = name.parse() {
            return Some(Self::Ip { ip, port });
        }
        let name = name
            .trim_start_matches("*.")
            .trim_matches('.')
            .to_ascii_lowercase();
        (!name.is_empty()).then_some(Self::Domain { name, port })
    }

    fn covers(&self, host: &Host, to_port: u16) -> bool {
        let port_fits = |port: Option<u16>| port.is_none_or(|port| port == to_port);
        match (self, host) {
            (Self::All, _) => true,
            (Self::Network(network), Host::Ip(ip)) => network.contains(ip),
            (Self::Ip { ip, port }, Host::Ip(to)) => ip == to && port_fits(*port),
            (Self::Domain { name, port }, Host::Name { name: to, .. }) => {
                let under = to.strip_suffix(name.as_str());
                under.is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) && port_fits(*port)
            }
            (Self::Network(_) | Self::Ip { .. }, Host::Name { .. }) | (Self::Domain { .. }, Host::Ip(_)) => {
                false
            }
        }
    }
}

/// `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
        None if port.is_empty() => None,
        None => return None,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    (!host.is_empty() && host.bytes().all(plain)).then_some((host, port))
}

/// Bytes of a user or password as they are written in an address (RFC 3986 2.1).
fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let value = digits.and_then(|digits| {
            let digits = str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        decoded.push(value.unwrap_or(byte));
        at += if value.is_some() { 3 } else { 1 };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_means_no_proxy() {
        assert!(proxy(&[]).unwrap().is_none());
        assert!(proxy(&[("HTTPS_PROXY", " ")]).unwrap().is_none());
    }

    #[test]
    fn a_proxy_is_read_with_and_without_everything_optional() {
        for (setting, shown) in [
            ("http://proxy.example:3128", "proxy.example:3128"),
            ("proxy.example:3128", "proxy.example:3128"),
            ("http://user:p%40ss@proxy.example/", "proxy.example:80"),
            ("http://[2001:db8::1]:3128/", "2001:db8::1:3128"),
        ] {
            let proxy = proxy(&[("HTTPS_PROXY", setting)]).unwrap().unwrap();
            assert_eq!(proxy.to_string(), shown);
        }
    }

    #[test]
    fn the_lower_case_variable_wins() {
        let both = [("https_proxy", "http://a:1"), ("HTTPS_PROXY", "http://b:1")];
        assert_eq!(proxy(&both).unwrap().unwrap().to_string(), "a:1");
    }

    #[test]
    fn settings_that_cannot_be_used_are_said_so_without_their_password() {
        for setting in [
            "socks5://me:secret@proxy.example:1080",
            "http://me:secret@proxy.example:port",
            "http://me:secret@",
            "http://me:secret@pro\r\nxy",
        ] {
            let error = proxy(&[("HTTPS_PROXY", setting)]).unwrap_err();
            assert!(!error.to_string().contains("secret") && !format!("{error:?}").contains("secret"));
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let proxy = proxy(&[("HTTPS_PROXY", "http://me:secret@proxy.example:1")])
            .unwrap()
            .unwrap();
        assert_eq!(proxy.authorization.as_deref(), Some("Basic bWU6c2VjcmV0"));
        let shown = format!("{proxy:?} {proxy}");
        assert!(
            !shown.contains("secret") && !shown.contains("bWU6c2VjcmV0"),
            "{shown}"
        );
    }

    #[test]
    fn exceptions_are_domains_addresses_networks_or_everything() {
        let listed = "example.org, .local,10.0.0.0/8,192.0.2.1,[2001:db8::1]:443,one.example:443";
        for (address, excepted) in [
            ("/dns/example.org/tcp/443/wss", true),
            ("/dns/main.example.org/tcp/443/wss", true),
            ("/dns/notexample.org/tcp/443/wss", false),
            ("/dns/host.local/tcp/443/wss", true),
            ("/ip4/10.1.2.3/tcp/443/wss", true),
            ("/ip4/11.1.2.3/tcp/443/wss", false),
            ("/ip4/192.0.2.1/tcp/8443/wss", true),
            ("/ip6/2001:db8::1/tcp/443/wss", true),
            ("/ip6/2001:db8::1/tcp/8443/wss", false),
            ("/dns/one.example/tcp/8443/wss", false),
        ] {
            let settings = [("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", listed)];
            let remote = Remote::parse(&address.parse().unwrap()).unwrap();
            assert_eq!(
                !proxy(&settings).unwrap().unwrap().serves(&remote),
                excepted,
                "{address}"
            );
        }
        let everything = [("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", "*")];
        let remote = Remote::parse(&"/dns/a.b/tcp/443/wss".parse().unwrap()).unwrap();
        assert!(!proxy(&everything).unwrap().unwrap().serves(&remote));
    }

    #[test]
    fn only_websocket_goes_through_it() {
        let proxy = proxy(&[("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", "b.example")]);
        let proxy = proxy.unwrap().unwrap();
        assert!(proxy.carries(&"/dns/a.example/tcp/443/tls/ws".parse().unwrap()));
        assert!(!proxy.carries(&"/dns/b.example/tcp/443/tls/ws".parse().unwrap()));
        assert!(!proxy.carries(&"/ip4/192.0.2.1/udp/4001/quic-v1".parse().unwrap()));
    }

    fn proxy(variables: &[(&str, &str)]) -> Result<Option<Proxy>, ProxySettingError> {
        Proxy::from_environment(|name| {
            let found = variables.iter().find(|(each, _)| *each == name)?;
            Some(found.1.to_owned())
        })
    }
}
