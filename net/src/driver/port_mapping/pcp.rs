//! The messages of PCP (RFC 6887), as far as a mapping needs them, and of its predecessor NAT-PMP (RFC 6886), which
//! listens on the same port. Pure: sends nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::MapError;

/// Where gateways listen.
pub(crate) const PORT: u16 = 5351;

/// The largest message (RFC 6887, 7).
pub(crate) const SIZE_MAX: usize = 1100;

/// Sent again with every message about a mapping, to show that it is ours.
pub(crate) type Nonce = [u8; 12];

const VERSION: u8 = 2;
const NAT_PMP_VERSION: u8 = 0;
const MAP: u8 = 1;
const RESPONSE: u8 = 0x80;
const UDP: u8 = 17;
const HEADER: usize = 24;
const MAP_SIZE: usize = HEADER + 36;

/// What a gateway promised.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Promise {
    pub(crate) external: SocketAddr,
    pub(crate) lifetime: Duration,
}

/// Asks PCP to map `port` of `client`, preferably as `external`. A lifetime of zero ends the mapping.
pub(crate) fn request(
    client: IpAddr,
    port: u16,
    external: Option<SocketAddr>,
    lifetime: Duration,
    nonce: &Nonce,
) -> Vec<u8> {
    let external = external.unwrap_or_else(|| {
        let any: IpAddr = match client {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(any, 0)
    });
    let mut message = vec![VERSION, MAP, 0, 0];
    message.extend(seconds(lifetime));
    message.extend(mapped(client).octets());
    message.extend(nonce);
    message.extend([UDP, 0, 0, 0]);
    message.extend(port.to_be_bytes());
    message.extend(external.port().to_be_bytes());
    message.extend(mapped(external.ip()).octets());
    message
}

/// What a message says about our request for `port`; nothing when it is about something else.
pub(crate) fn response(message: &[u8], port: u16, nonce: &Nonce) -> Option<Result<Promise, MapError>> {
    match *message {
        // Older than we: RFC 6887, 9.
        [NAT_PMP_VERSION, RESPONSE..=0xff, ..] => return Some(Err(MapError::Unsupported)),
        [VERSION, operation, ..] if operation == MAP | RESPONSE && message.len() >= HEADER => (),
        _ => return None,
    }
    let result = message[3];
    let Some(map) = message.get(HEADER..MAP_SIZE) else {
        // An error may come without what it is about.
        return (result != 0).then(|| Err(refused(result.into())));
    };
    if map[..12] != *nonce || map[12] != UDP || map[16..18] != port.to_be_bytes() {
        return None;
    }
    if result != 0 {
        return Some(Err(refused(result.into())));
    }
    let lifetime = Duration::from_secs(u32::from_be_bytes(message[4..8].try_into().ok()?).into());
    let external_port = u16::from_be_bytes(map[18..20].try_into().ok()?);
    let ip: [u8; 16] = map[20..36].try_into().ok()?;
    let ip = Ipv6Addr::from(ip).to_canonical();
    Some(promise(ip, external_port, lifetime))
}

/// Asks NAT-PMP for the gateway's address on the outside.
pub(crate) fn nat_pmp_address_request() -> Vec<u8> {
    vec![NAT_PMP_VERSION, 0]
}

/// What it is.
pub(crate) fn nat_pmp_address_response(message: &[u8]) -> Option<Result<Ipv4Addr, MapError>> {
    match nat_pmp_result(message, 0)? {
        Err(error) => Some(Err(error)),
        Ok(()) => {
            let ip: [u8; 4] = message.get(8..12)?.try_into().ok()?;
            Some(Ok(ip.into()))
        }
    }
}

/// Asks NAT-PMP to map `port`, preferably as `external`. A lifetime of zero ends the mapping.
pub(crate) fn nat_pmp_request(port: u16, external: u16, lifetime: Duration) -> Vec<u8> {
    let mut message = vec![NAT_PMP_VERSION, MAP, 0, 0];
    message.extend(port.to_be_bytes());
    message.extend(external.to_be_bytes());
    message.extend(seconds(lifetime));
    message
}

/// What a message says about our request for `port`, at a gateway with the address `ip` outside.
pub(crate) fn nat_pmp_response(message: &[u8], port: u16, ip: Ipv4Addr) -> Option<Result<Promise, MapError>> {
    match nat_pmp_result(message, MAP)? {
        Err(error) => Some(Err(error)),
        Ok(()) => {
            let fields: &[u8; 8] = message.get(8..16)?.try_into().ok()?;
            let &[a, b, c, d, lifetime @ ..] = fields;
            if u16::from_be_bytes([a, b]) != port {
                return None;
            }
            let lifetime = Duration::from_secs(u32::from_be_bytes(lifetime).into());
            Some(promise(ip.into(), u16::from_be_bytes([c, d]), lifetime))
        }
    }
}

fn nat_pmp_result(message: &[u8], operation: u8) -> Option<Result<(), MapError>> {
    match *message {
        [NAT_PMP_VERSION, answered, high, low, ..] if answered == operation | RESPONSE => {
            Some(match u16::from_be_bytes([high, low]) {
                0 => Ok(()),
                code => Err(refused(code)),
            })
        }
        _ => None,
    }
}

fn promise(ip: IpAddr, port: u16, lifetime: Duration) -> Result<Promise, MapError> {
    if ip.is_unspecified() {
        return Err(MapError::NoOutside);
    }
    // The end of a mapping is confirmed without a port.
    if port == 0 && !lifetime.is_zero() {
        return Err(MapError::Misbehaved);
    }
    Ok(Promise {
        external: SocketAddr::new(ip, port),
        lifetime,
    })
}

/// In the words of RFC 6887, 7.4; the codes of NAT-PMP are the same as far as they go, except for 1.
fn refused(code: u16) -> MapError {
    match code {
        1 => MapError::Unsupported,
        2 => MapError::Refused {
            code,
            meaning: "not authorized",
        },
        3 => MapError::Refused {
            code,
            meaning: "malformed request, or the network outside is down",
        },
        4 | 8 => MapError::Refused {
            code,
            meaning: "no resources",
        },
        _ => MapError::Refused {
            code,
            meaning: "see RFC 6887",
        },
    }
}

fn seconds(lifetime: Duration) -> [u8; 4] {
    u32::try_from(lifetime.as_secs())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = [7; 12];

    #[test]
    fn a_request_has_the_form_of_the_rfc() {
        let message = request(
            [192, 168, 1, 7].into(),
            4001,
            None,
            Duration::from_secs(1200),
            &NONCE,
        );
        assert_eq!(message.len(), 60);
        assert_eq!(message[..8], [2, 1, 0, 0, 0, 0, 0x04, 0xb0]);
        assert_eq!(
            message[8..24],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 7]
        );
        assert_eq!(message[36..44], [17, 0, 0, 0, 0x0f, 0xa1, 0, 0]);
        assert_eq!(
            message[44..],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]
        );
        assert_eq!(
            nat_pmp_request(4001, 4001, Duration::from_secs(1200)),
            [0, 1, 0, 0, 0x0f, 0xa1, 0x0f, 0xa1, 0, 0, 0x04, 0xb0]
        );
    }

    #[test]
    fn a_promise_is_read() {
        let promise = response(&answer(0, 4001), 4001, &NONCE).unwrap().unwrap();
        assert_eq!(promise.external, "203.0.113.1:5000".parse().unwrap());
        assert_eq!(promise.lifetime, Duration::from_secs(600));
        let answer = [0, 129, 0, 0, 0, 0, 0, 1, 0x0f, 0xa1, 0x13, 0x88, 0, 0, 0x02, 0x58];
        assert_eq!(
            nat_pmp_response(&answer, 4001, [203, 0, 113, 1].into()),
            Some(Ok(promise))
        );
        let answer = [0, 128, 0, 0, 0, 0, 0, 1, 203, 0, 113, 1];
        assert_eq!(
            nat_pmp_address_response(&answer),
            Some(Ok([203, 0, 113, 1].into()))
        );
    }

    #[test]
    fn what_is_about_something_else_is_passed_over() {
        assert_eq!(response(&answer(0, 4001), 4002, &NONCE), None);
        assert_eq!(response(&answer(0, 4001), 4001, &[8; 12]), None);
        assert_eq!(
            response(
                &request([1; 4].into(), 4001, None, Duration::ZERO, &NONCE),
                4001,
                &NONCE
            ),
            None
        );
        let answer = [0, 129, 0, 0, 0, 0, 0, 1, 0x0f, 0xa1, 0x13, 0x88, 0, 0, 0x02, 0x58];
        assert_eq!(nat_pmp_response(&answer, 4002, [203, 0, 113, 1].into()), None);
        assert_eq!(nat_pmp_address_response(&answer), None);
    }

    #[test]
    fn refusals_are_told_and_an_older_gateway_is_recognised() {
        assert!(matches!(
            response(&answer(2, 4001), 4001, &NONCE),
            Some(Err(MapError::Refused { code: 2, .. }))
        ));
        let older = [0, 129, 0, 1, 0, 0, 0, 0];
        assert_eq!(response(&older, 4001, &NONCE), Some(Err(MapError::Unsupported)));
    }

    #[test]
    fn a_gateway_without_an_outside_promises_nothing() {
        let mut message = answer(0, 4001);
        message[56..].fill(0);
        assert_eq!(response(&message, 4001, &NONCE), Some(Err(MapError::NoOutside)));
    }

    #[test]
    fn no_message_is_too_short_or_too_odd() {
        let whole = answer(0, 4001);
        for size in 0..whole.len() {
            assert!(!matches!(response(&whole[..size], 4001, &NONCE), Some(Ok(_))));
            let _ = nat_pmp_response(&whole[..size], 4001, [1; 4].into());
            let _ = nat_pmp_address_response(&whole[..size]);
        }
        for byte in 0..=u8::MAX {
            let _ = response(&[byte; 60], 4001, &NONCE);
            let _ = nat_pmp_response(&[byte; 16], 4001, [1; 4].into());
        }
    }

    fn answer(result: u8, port: u16) -> Vec<u8> {
        let external = "203.0.113.1:5000".parse().unwrap();
        let lifetime = Duration::from_secs(600);
        let mut message = request([192, 168, 1, 7].into(), port, Some(external), lifetime, &NONCE);
        message[1] |= RESPONSE;
        message[3] = result;
        message[8..24].fill(0);
        message
    }
}
