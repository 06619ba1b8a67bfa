//! Where a main is, as people write it after `--connect` and `--peers`. Asks nobody.

use lapwing_base::{Multiaddr, PeerId, Protocol};
use std::fmt;
use std::str::FromStr;
use url::Url;

/// A main's address: one that can be dialed, or one where the other can be asked for.
///
/// It prints as it was given, without the spaces around it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MainAddress {
    /// `/dns4/relay-a.com/udp/4001/quic-v1/p2p/12D3KooW…`: it can be dialed at once, and nobody else can answer there.
    Multiaddr {
        /// As it was written.
        given: String,
        /// Who is there.
        peer: PeerId,
        /// Where, with `/p2p/` and the peer at its end.
        address: Multiaddr,
    },
    /// `ws://relay-a.com:8080/ws/federation`, `https://relay-a.com`, `relay-a.com:8080`: who is there is asked first. Without
    /// TLS whoever sits between can answer in its place.
    Identity {
        /// As it was written.
        given: String,
        /// What answers with the peer id and the multiaddrs: `/federation/identity` over HTTP.
        url: Url,
    },
}

/// A text that is no address of a main.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseMainAddressError {
    /// It begins with `/` and is no multiaddr.
    #[error("`{text}` is no multiaddr: {problem}")]
    Multiaddr {
        /// As given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A multiaddr without its peer.
    #[error("`{text}` does not say who is there; write `/p2p/` and the peer id of the main behind it")]
    NoPeer {
        /// As given.
        text: String,
    },
    /// A peer without an address.
    #[error("`{text}` says who the main is and not where")]
    NoPlace {
        /// As given.
        text: String,
    },
    /// No URL, nor a host with a port.
    #[error(
        "an address of a main cannot be read; write for example `relay-a.com:8080` or `https://relay-a.com`"
    )]
    Url(#[from] url::ParseError),
    /// Something that mains do not speak.
    #[error("mains do not speak `{scheme}`; write `ws`, `wss`, `http` or `https`")]
    Scheme {
        /// As given.
        scheme: String,
    },
    /// A host alone, which could have its main behind any port, or port 0.
    #[error("`{host}` is given without a port; write for example `{host}:8080`")]
    NoPort {
        /// Whose port it would be.
        host: String,
    },
    /// A path at which no main listens.
    #[error("no main listens at the path `{path}`; leave it out")]
    Path {
        /// As given.
        path: String,
    },
    /// A user, a password, a query or a fragment: not shown, since it may be secret.
    #[error("an address of a main has a host and a port, and neither user nor query nor fragment")]
    Surplus,
}

/// Where a main says who it is.
const IDENTITY_PATH: &str = "/federation/identity";

/// The paths that are understood: the last two are where older mains take homes and other mains.
const PATHS: [&str; 4] = ["/", IDENTITY_PATH, "/ws/federation", "/ws/peers"];

impl FromStr for MainAddress {
    type Err = ParseMainAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let given = text.to_owned();
        if text.starts_with('/') {
            let (peer, address) = parse_multiaddr(text)?;
            return Ok(Self::Multiaddr { given, peer, address });
        }
        let url = identity_url(text)?;
        Ok(Self::Identity { given, url })
    }
}

impl fmt::Display for MainAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Multiaddr { given, .. } | Self::Identity { given, .. }) = self;
        f.write_str(given)
    }
}

fn parse_multiaddr(text: &str) -> Result<(PeerId, Multiaddr), ParseMainAddressError> {
    let owned = || text.to_owned();
    let address: Multiaddr =
        text.parse().map_err(
            |error: <Multiaddr as FromStr>::Err| ParseMainAddressError::Multiaddr {
                text: owned(),
                problem: error.to_string(),
            },
        )?;
    let Some(Protocol::P2p(peer)) = address.iter().last() else {
        return Err(ParseMainAddressError::NoPeer { text: owned() });
    };
    if address.iter().count() == 1 {
        return Err(ParseMainAddressError::NoPlace { text: owned() });
    }
    Ok((peer, address))
}

fn identity_url(text: &str) -> Result<Url, ParseMainAddressError> {
    let is_url = text.contains("://");
    let mut url = if is_url {
        Url::parse(text)?
    } else {
        Url::parse(&format!("http://{text}"))?
    };
    let scheme = match url.scheme() {
        "ws" | "http" => "http",
        "wss" | "https" => "https",
        _ => return Err(unspoken(&url)),
    };
    let user = !url.username().is_empty() || url.password().is_some();
    if user || url.query().is_some() || url.fragment().is_some() {
        return Err(ParseMainAddressError::Surplus);
    }
    // A URL has the port of its scheme. That cannot be asked of the parsed one, which leaves out the usual port.
    if !(is_url || names_port(text)) || url.port() == Some(0) {
        let host = url.host_str().unwrap_or_default().to_owned();
        return Err(ParseMainAddressError::NoPort { host });
    }
    if !PATHS.contains(&url.path()) {
        let path = url.path().to_owned();
        return Err(ParseMainAddressError::Path { path });
    }
    url.set_scheme(scheme).map_err(|()| unspoken(&url))?;
    url.set_path(IDENTITY_PATH);
    Ok(url)
}

fn unspoken(url: &Url) -> ParseMainAddressError {
    let scheme = url.scheme().to_owned();
    ParseMainAddressError::Scheme { scheme }
}

/// Whether what is in front of the path ends with a port.
fn names_port(text: &str) -> bool {
    let authority = text.split('/').next().unwrap_or_default();
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: &str = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";

    #[test]
    fn a_main_is_asked_over_http_who_it_is_and_its_address_prints_as_it_was_given() {
        for (text, url) in [
            ("ws://relay-a.com:8080", "http://relay-a.com:8080"),
            ("ws://relay-a.com:8080/", "http://relay-a.com:8080"),
            ("ws://relay-a.com:8080/ws/federation", "http://relay-a.com:8080"),
            ("ws://relay-b.com:8081/ws/peers", "http://relay-b.com:8081"),
            ("ws://relay-a.com", "http://relay-a.com"),
            ("ws://relay-a.com:443", "http://relay-a.com:443"),
            ("wss://relay-a.com", "https://relay-a.com"),
            ("wss://relay-a.com:8443/ws/federation", "https://relay-a.com:8443"),
            ("http://relay-a.com:8080", "http://relay-a.com:8080"),
            ("https://Relay-A.com", "https://relay-a.com"),
            ("https://relay-a.com/federation/identity", "https://relay-a.com"),
            ("relay-a.com:8080", "http://relay-a.com:8080"),
            ("relay-a.com:80", "http://relay-a.com"),
            ("relay-a.com:8080/ws/peers", "http://relay-a.com:8080"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("ws://[2001:db8::1]:8080/ws/peers", "http://[2001:db8::1]:8080"),
        ] {
            let address: MainAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            let MainAddress::Identity { url: asked, .. } = address else {
                panic!("{text} is to be asked");
            };
            assert_eq!(asked.as_str(), format!("{url}/federation/identity"), "{text}");
        }
    }

    #[test]
    fn a_multiaddr_says_who_is_there() {
        for place in [
            "/ip4/127.0.0.1/udp/4001/quic-v1",
            "/dns4/relay-a.com/tcp/443/tls/ws",
            "/ip6/0:0:0:0:0:0:0:1/udp/4001/quic-v1",
        ] {
            let text = format!("{place}/p2p/{PEER}");
            let address: MainAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            let MainAddress::Multiaddr { peer, address, .. } = address else {
                panic!("{text} can be dialed");
            };
            assert_eq!(peer.to_string(), PEER);
            assert_eq!(Ok(address), text.parse().map_err(|_| ()));
        }
    }

    #[test]
    fn spaces_around_it_are_left_out() {
        let address: MainAddress = " relay-a.com:8080\n".parse().unwrap();
        assert_eq!(address.to_string(), "relay-a.com:8080");
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_is_wrong() {
        let peer_alone = format!("/p2p/{PEER}");
        for (text, said) in [
            ("", "cannot be read"),
            ("relay-a.com", "write for example `relay-a.com:8080`"),
            ("relay-a.com:", "without a port"),
            ("relay-a.com:0", "without a port"),
            ("ws://relay-a.com:0", "without a port"),
            ("relay-a.com:http", "cannot be read"),
            ("relay-a.com:65536", "cannot be read"),
            ("::1", "cannot be read"),
            ("relay a.com:8080", "cannot be read"),
            ("ws://", "cannot be read"),
            ("ftp://relay-a.com:21", "do not speak `ftp`"),
            ("ws://relay-a.com:8080/rpc", "the path `/rpc`"),
            ("ws://relay-a.com:8080/ws/peers?node_id=alice", "neither user"),
            ("ws://relay-a.com:8080/#here", "neither user"),
            ("ws://alice:secret@relay-a.com:8080", "neither user"),
            ("/ip4/127.0.0.1/udp/4001/quic-v1", "does not say who"),
            ("/ip4/300.0.0.1/udp/4001", "is no multiaddr"),
            ("/ip4/127.0.0.1/udp/4001/quic-v1/p2p/nobody", "is no multiaddr"),
            (&peer_alone, "not where"),
        ] {
            let error = text.parse::<MainAddress>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_given_is_an_address_that_prints_so_or_is_refused(
            text in "(ws|wss|http|https|ftp|)(://|:|/|)[a-z0-9.@:?#/\\[\\] ]{0,24}",
        ) {
            if let Ok(address) = text.parse::<MainAddress>() {
                prop_assert_eq!(address.to_string(), text.trim());
            }
        }
    }
}
