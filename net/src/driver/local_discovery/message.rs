//! What peers say to each other in the local network: libp2p's use of multicast DNS (RFC 6762, 6763). Pure.
//!
//! A question is for pointers from `_p2p._udp.local`. The answer points to a random name, whose text holds the
//! addresses, each as `dnsaddr=…/p2p/PEER`. libp2p's specification wants no more than that; go-libp2p, however,
//! overlooks whoever has no `SRV` record with an address as well, so ours have them, and all text is in one record.

use std::net::IpAddr;
use std::time::Duration;

use libp2p::multiaddr::Protocol;

use lapwing_base::{Multiaddr, PeerId};

/// The largest message that is read (RFC 6762, 17).
pub(crate) const RECEIVED_MAX: usize = 9000;

/// The largest that is sent: fits into a packet on every link.
const SENT_MAX: usize = 1400;

/// Records of a message that are looked at; others have some eight.
const RECORDS_MAX: usize = 64;

/// Addresses that are taken from one peer.
pub(crate) const ADDRESSES_MAX: usize = 16;

/// Labels of a name, and jumps within it: more than names of 255 bytes that mean anything have.
const LABELS_MAX: usize = 32;

const SERVICE: &str = "_p2p._udp.local";
const ALL_SERVICES: &str = "_services._dns-sd._udp.local";

const A: u16 = 1;
const PTR: u16 = 12;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const ANY: u16 = 255;
const INTERNET: u16 = 1;
/// Set on records of which there is only one owner (RFC 6762, 10.2), and by those who ask for a direct answer.
const UNIQUE: u16 = 0x8000;
/// An answer, by who knows best.
const RESPONSE: u16 = 0x8400;
const HEADER: usize = 12;

/// What others say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Message {
    /// They ask who is there.
    WhoIsThere,
    /// They ask which kinds of service there are.
    WhichServices,
    /// They are there, or were.
    Here(Vec<Announcement>),
}

/// A peer that is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Announcement {
    pub(crate) peer: PeerId,
    /// Without the peer.
    pub(crate) addresses: Vec<Multiaddr>,
    /// For how long it counts. Zero when the peer leaves.
    pub(crate) lifetime: Duration,
}

impl Message {
    /// Reads a message; nothing when it is not for us, or no such message.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { bytes, at: 0 };
        let _id = reader.number()?;
        let flags = reader.number()?;
        let questions = reader.number()?;
        let records = [reader.number()?, reader.number()?, reader.number()?];
        if flags & 0x8000 == 0 {
            // Known answers follow, which we have no use for.
            return reader.question(questions);
        }
        for _ in 0..questions {
            reader.name()?;
            reader.skip(4)?;
        }
        let records: usize = records.map(usize::from).iter().sum();
        let announcements = reader.announcements(records.min(RECORDS_MAX));
        (!announcements.is_empty()).then_some(Self::Here(announcements))
    }
}

/// Asks who is there.
pub(crate) fn who_is_there() -> Vec<u8> {
    let mut message = header(0, 1, 0, 0);
    put_name(&mut message, SERVICE);
    put(&mut message, PTR);
    put(&mut message, INTERNET);
    message
}

/// Says which kind of service is here.
pub(crate) fn services(lifetime: Duration) -> Vec<u8> {
    let mut message = header(RESPONSE, 0, 1, 0);
    put_record(&mut message, ALL_SERVICES, PTR, INTERNET, lifetime, |data| {
        put_name(data, SERVICE)
    });
    message
}

/// Says that `peer` is here, under a random `name` of its own, at `ip`, with these addresses, as far as they fit.
/// A lifetime of zero says that it leaves.
pub(crate) fn here(
    peer: &PeerId,
    name: &str,
    ip: IpAddr,
    addresses: &[Multiaddr],
    lifetime: Duration,
) -> Vec<u8> {
    let (instance, host) = (format!("{name}.{SERVICE}"), format!("{name}.local"));
    let port = addresses.iter().find_map(|address| {
        address.iter().find_map(|part| match part {
            Protocol::Udp(port) | Protocol::Tcp(port) => Some(port),
            _ => None,
        })
    });
    let mut message = header(RESPONSE, 0, 1, 3);
    put_record(&mut message, SERVICE, PTR, INTERNET, lifetime, |data| {
        put_name(data, &instance)
    });
    put_record(
        &mut message,
        &instance,
        SRV,
        INTERNET | UNIQUE,
        lifetime,
        |data| {
            // Neither priority nor weight.
            data.extend([0; 4]);
            put(data, port.unwrap_or(0));
            put_name(data, &host);
        },
    );
    let (kind, octets) = match ip {
        IpAddr::V4(ip) => (A, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AAAA, ip.octets().to_vec()),
    };
    put_record(&mut message, &host, kind, INTERNET | UNIQUE, lifetime, |data| {
        data.extend(octets)
    });
    let room = SENT_MAX.saturating_sub(message.len() + instance.len() + HEADER);
    put_record(
        &mut message,
        &instance,
        TXT,
        INTERNET | UNIQUE,
        lifetime,
        |data| {
            let start = data.len();
            for address in addresses {
                let text = format!("dnsaddr={}", address.clone().with(Protocol::P2p(*peer)));
                // A string of DNS is at most so long.
                let Ok(size) = u8::try_from(text.len()) else {
                    continue;
                };
                if data.len() - start + 1 + text.len() > room {
                    break;
                }
                data.push(size);
                data.extend(text.bytes());
            }
            if data.len() == start {
                // RFC 6763, 6.1: never without a string.
                data.push(0);
            }
        },
    );
    message
}

fn header(flags: u16, questions: u16, answers: u16, additional: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(SENT_MAX);
    for number in [0, flags, questions, answers, 0, additional] {
        put(&mut message, number);
    }
    message
}

fn put(message: &mut Vec<u8>, number: u16) {
    message.extend(number.to_be_bytes());
}

/// Our own names only, whose labels are short.
fn put_name(message: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        message.push(label.len().min(63) as u8);
        message.extend(label.bytes().take(63));
    }
    message.push(0);
}

fn put_record(
    message: &mut Vec<u8>,
    name: &str,
    kind: u16,
    class: u16,
    lifetime: Duration,
    data: impl FnOnce(&mut Vec<u8>),
) {
    put_name(message, name);
    put(message, kind);
    put(message, class);
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    message.extend(seconds.to_be_bytes());
    let size_at = message.len();
    put(message, 0);
    data(message);
    let size = u16::try_from(message.len() - size_at - 2).unwrap_or(0);
    message[size_at..size_at + 2].copy_from_slice(&size.to_be_bytes());
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(size)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn skip(&mut self, size: usize) -> Option<()> {
        self.take(size).map(|_| ())
    }

    fn number(&mut self) -> Option<u16> {
        let bytes = self.take(2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    }

    fn long_number(&mut self) -> Option<u32> {
        let bytes = self.take(4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    /// A name, in small letters and with dots. What is not text in it is replaced.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let mut at = self.at;
        let mut jumped = false;
        for _ in 0..LABELS_MAX {
            let size = *self.bytes.get(at)?;
            match size {
                0 => {
                    if !jumped {
                        self.at = at + 1;
                    }
                    return Some(name);
                }
                1..=63 => {
                    let end = at + 1 + usize::from(size);
                    let label = self.bytes.get(at + 1..end)?;
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
                    at = end;
                }
                // The rest is at another place, which is always an earlier one (RFC 1035, 4.1.4).
                192.. => {
                    let low = *self.bytes.get(at + 1)?;
                    let to = usize::from(u16::from_be_bytes([size & 0x3f, low]));
                    if to >= at {
                        return None;
                    }
                    if !jumped {
                        self.at = at + 2;
                    }
                    jumped = true;
                    at = to;
                }
                _ => return None,
            }
        }
        None
    }

    fn question(&mut self, count: u16) -> Option<Message> {
        for _ in 0..usize::from(count).min(RECORDS_MAX) {
            let name = self.name()?;
            let kind = self.number()?;
            let class = self.number()? & !UNIQUE;
            if !(matches!(kind, PTR | ANY) && matches!(class, INTERNET | ANY)) {
                continue;
            }
            match name.as_str() {
                SERVICE => return Some(Message::WhoIsThere),
                ALL_SERVICES => return Some(Message::WhichServices),
                _ => (),
            }
        }
        None
    }

    fn announcements(&mut self, records: usize) -> Vec<Announcement> {
        let mut pointed: Vec<(String, Duration)> = Vec::new();
        let mut announced: Vec<(String, Announcement)> = Vec::new();
        for _ in 0..records {
            // What was whole before a cut counts.
            if self.record(&mut pointed, &mut announced).is_none() {
                break;
            }
        }
        for (name, announcement) in &mut announced {
            // Whoever leaves says so in the pointer alone, or everywhere.
            if pointed
                .iter()
                .any(|(to, lifetime)| to == name && lifetime.is_zero())
            {
                announcement.lifetime = Duration::ZERO;
            }
        }
        announced
            .into_iter()
            .map(|(_, announcement)| announcement)
            .collect()
    }

    fn record(
        &mut self,
        pointed: &mut Vec<(String, Duration)>,
        announced: &mut Vec<(String, Announcement)>,
    ) -> Option<()> {
        let name = self.name()?;
        let kind = self.number()?;
        let _class = self.number()?;
        let lifetime = Duration::from_secs(self.long_number()?.into());
        let size = usize::from(self.number()?);
        let data_at = self.at;
        let data = self.take(size)?;
        match kind {
            PTR if name == SERVICE => {
                // Names in the data may jump out of it.
                let mut reader = Reader {
                    bytes: self.bytes,
                    at: data_at,
                };
                pointed.push((reader.name()?, lifetime));
            }
            // Names of rust-libp2p are not below the service's; the pointer alone tells whose they are.
            TXT if name.ends_with(SERVICE) || pointed.iter().any(|(to, _)| *to == name) => {
                let addresses = strings(data).filter_map(peer_address);
                // Some write one record for each address.
                for (peer, address) in addresses {
                    let count = announced.len();
                    let same = announced
                        .iter_mut()
                        .find(|(from, known)| *from == name && known.peer == peer);
                    match same {
                        Some((_, known)) if known.addresses.len() < ADDRESSES_MAX => {
                            known.addresses.push(address);
                        }
                        Some(_) => (),
                        None if count < RECORDS_MAX => {
                            let addresses = vec![address];
                            announced.push((
                                name.clone(),
                                Announcement {
                                    peer,
                                    addresses,
                                    lifetime,
                                },
                            ));
                        }
                        None => (),
                    }
                }
            }
            _ => (),
        }
        Some(())
    }
}

/// The strings of a text record, as far as they are whole.
fn strings(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&size, rest) = data.split_first()?;
        let (string, rest) = rest.split_at_checked(size.into())?;
        data = rest;
        Some(string)
    })
}

fn peer_address(string: &[u8]) -> Option<(PeerId, Multiaddr)> {
    let text = str::from_utf8(string.strip_prefix(b"dnsaddr=")?).ok()?;
    let mut address: Multiaddr = text.parse().ok()?;
    match address.pop()? {
        Protocol::P2p(peer) if !address.is_empty() => Some((peer, address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(600);

    #[test]
    fn what_we_say_is_understood() {
        let peer = PeerId::random();
        assert_eq!(Message::parse(&who_is_there()), Some(Message::WhoIsThere));
        let addresses = addresses();
        let message = here(&peer, "name", [192, 168, 1, 7].into(), &addresses, LIFETIME);
        let announcement = Announcement {
            peer,
            addresses,
            lifetime: LIFETIME,
        };
        assert_eq!(Message::parse(&message), Some(Message::Here(vec![announcement])));
        // It says nothing about peers, so it is not for us.
        assert_eq!(Message::parse(&services(LIFETIME)), None);
    }

    #[test]
    fn a_farewell_is_understood() {
        let message = here(
            &PeerId::random(),
            "name",
            [192, 168, 1, 7].into(),
            &addresses(),
            Duration::ZERO,
        );
        let Some(Message::Here(announced)) = Message::parse(&message) else {
            panic!("it announces");
        };
        assert!(announced[0].lifetime.is_zero());
    }

    #[test]
    fn questions_in_other_forms_are_understood() {
        // In capitals, and asking for a direct answer.
        let mut message = header(0, 1, 0, 0);
        put_name(&mut message, "_P2P._udp.LOCAL");
        put(&mut message, PTR);
        put(&mut message, INTERNET | UNIQUE);
        assert_eq!(Message::parse(&message), Some(Message::WhoIsThere));
        let mut message = header(0, 1, 0, 0);
        put_name(&mut message, ALL_SERVICES);
        put(&mut message, PTR);
        put(&mut message, INTERNET);
        assert_eq!(Message::parse(&message), Some(Message::WhichServices));
        let mut message = header(0, 1, 0, 0);
        put_name(&mut message, "_ipp._tcp.local");
        put(&mut message, PTR);
        put(&mut message, INTERNET);
        assert_eq!(Message::parse(&message), None);
    }

    #[test]
    fn one_record_for_each_address_under_a_bare_name_is_understood() {
        // As rust-libp2p does.
        let name = |message: &mut Vec<u8>| put_name(message, "x");
        assert_eq!(
            Message::parse(&records(name, name)),
            Some(Message::Here(vec![announcement()]))
        );
    }

    #[test]
    fn compressed_names_are_understood() {
        // As go-libp2p does: `x`, and then the service's name, which is where the first record begins.
        let name = |message: &mut Vec<u8>| message.extend([1, b'x', 0xc0, HEADER as u8]);
        assert_eq!(
            Message::parse(&records(name, name)),
            Some(Message::Here(vec![announcement()]))
        );
    }

    #[test]
    fn texts_of_other_services_are_passed_over() {
        let (to, of) = (
            |message: &mut Vec<u8>| put_name(message, "x"),
            |message: &mut Vec<u8>| put_name(message, "y"),
        );
        assert_eq!(Message::parse(&records(to, of)), None);
    }

    #[test]
    fn names_that_lead_in_circles_are_refused() {
        for circle in [[0xc0, 12], [0xc0, 13], [0xff, 0xff]] {
            let mut message = header(0, 1, 0, 0);
            message.extend(circle);
            message.extend([0, 12, 0, 1]);
            assert_eq!(Message::parse(&message), None);
        }
    }

    #[test]
    fn no_message_is_too_short_or_too_odd() {
        let message = here(
            &PeerId::random(),
            "name",
            [192, 168, 1, 7].into(),
            &addresses(),
            LIFETIME,
        );
        for size in 0..message.len() {
            let _ = Message::parse(&message[..size]);
        }
        for at in 0..message.len() {
            for byte in [0, 1, 63, 64, 192, 255] {
                let mut odd = message.clone();
                odd[at] = byte;
                let _ = Message::parse(&odd);
            }
        }
    }

    #[test]
    fn more_addresses_than_fit_are_left_out_in_both_directions() {
        let peer = PeerId::random();
        let many: Vec<Multiaddr> = (1..=200)
            .map(|port| format!("/ip4/192.168.1.7/udp/{port}/quic-v1").parse().unwrap())
            .collect();
        let message = here(&peer, "name", [192, 168, 1, 7].into(), &many, LIFETIME);
        assert!(message.len() <= SENT_MAX);
        let Some(Message::Here(announced)) = Message::parse(&message) else {
            panic!("it announces");
        };
        assert!((8..=ADDRESSES_MAX).contains(&announced[0].addresses.len()));
        let none = here(&peer, "name", [192, 168, 1, 7].into(), &[], LIFETIME);
        assert_eq!(Message::parse(&none), None);
    }

    /// A pointer to one name, and texts of another, one for each address.
    fn records(to: impl Fn(&mut Vec<u8>), of: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let Announcement { peer, addresses, .. } = announcement();
        let mut message = header(RESPONSE, 0, 1, 2);
        put_record(&mut message, SERVICE, PTR, INTERNET, LIFETIME, to);
        for address in addresses {
            of(&mut message);
            put(&mut message, TXT);
            put(&mut message, INTERNET);
            message.extend(600_u32.to_be_bytes());
            let text = format!("dnsaddr={address}/p2p/{peer}");
            put(&mut message, text.len() as u16 + 1);
            message.push(text.len() as u8);
            message.extend(text.bytes());
        }
        message
    }

    fn announcement() -> Announcement {
        let peer = "12D3KooWCDPsbZikpSfh72Mj9MbF3SondPZkUS4AiY413sBHDfjn";
        Announcement {
            peer: peer.parse().unwrap(),
            addresses: addresses(),
            lifetime: LIFETIME,
        }
    }

    fn addresses() -> Vec<Multiaddr> {
        [
            "/ip4/192.168.1.7/udp/4001/quic-v1",
            "/ip4/192.168.1.7/tcp/443/tls/ws",
        ]
        .map(|address| address.parse().unwrap())
        .to_vec()
    }
}
