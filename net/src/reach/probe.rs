//! The small datagrams that share the socket with QUIC: a connectivity check, its answer, and a witness's proof.
//!
//! Says nothing of when to send one. The shape follows STUN's in ICE (RFC 8445), and is our own so that it stays
//! short and proves more: every datagram carries a tag under a key that only the two sides of one attempt know
//! (they exchanged its token over a connection that is encrypted end to end), and names the side that sent it,
//! so that neither a stranger's nor a reflected datagram counts.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// One datagram's meaning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probe {
    /// What it asks or answers.
    pub kind: ProbeKind,
    /// Who sent it.
    pub from: Side,
    /// Drawn by who asks, repeated by who answers.
    pub transaction: u32,
    /// In an answer: where the question came from, as the answering side saw it.
    pub seen: Option<SocketAddr>,
}

/// What a probe asks or answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProbeKind {
    /// Does this reach you?
    Ping,
    /// It does.
    Pong,
    /// It does in both directions, and this is the pair of addresses that we use: I dial.
    Nominate,
    /// A third party's proof that it can reach an address.
    Witness,
}

/// The two sides of an attempt.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum Side {
    /// Sent the offer.
    Offerer,
    /// Answered it.
    Answerer,
}

impl Side {
    /// The one across.
    pub const fn other(self) -> Self {
        match self {
            Self::Offerer => Self::Answerer,
            Self::Answerer => Self::Offerer,
        }
    }
}

/// The secret of one attempt: who knows it may send probes of it.
#[derive(Clone, Copy, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct Token(pub [u8; 16]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Names an attempt in a datagram without telling its token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ProbeId([u8; ID_SIZE]);

/// What seals and opens the probes of one attempt.
#[derive(Clone)]
pub struct ProbeKey {
    id: ProbeId,
    key: [u8; blake3::KEY_LEN],
}

impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Probe {
    /// Length of every probe in bytes: less than any question of ours is long, so that an answer never grows.
    pub const SIZE: usize = TAG_AT + TAG_SIZE;

    /// Whether a datagram is ours and not QUIC's.
    ///
    /// QUIC's first byte has the fixed bit 0x40 (RFC 9000, 17.2 and 17.3), unless both ends have agreed to draw that
    /// bit at random (RFC 9287), which quinn does by default; the driver turns it off. Should a peer's QUIC do so all
    /// the same, the length and the version still tell all but one packet of 51 bytes in 65,536 apart.
    pub fn is_ours(datagram: &[u8]) -> bool {
        Self::id(datagram).is_ok()
    }

    /// The attempt that a datagram claims to belong to: which key to open it with.
    ///
    /// # Errors
    /// When it cannot be a probe of this version.
    pub fn id(datagram: &[u8]) -> Result<ProbeId, ProbeError> {
        let datagram: &[u8; Self::SIZE] = datagram.try_into().map_err(|_| ProbeError::Length {
            length: datagram.len(),
        })?;
        if datagram[0] != MAGIC {
            return Err(ProbeError::NotOurs);
        }
        if datagram[1] != VERSION {
            return Err(ProbeError::Version { theirs: datagram[1] });
        }
        let mut id = [0; ID_SIZE];
        id.copy_from_slice(&datagram[ID_AT..TRANSACTION_AT]);
        Ok(ProbeId(id))
    }
}

impl ProbeKey {
    /// The key that follows from a token.
    pub fn new(token: &Token) -> Self {
        let mut id = [0; ID_SIZE];
        blake3::Hasher::new_derive_key(ID_CONTEXT)
            .update(&token.0)
            .finalize_xof()
            .fill(&mut id);
        Self {
            id: ProbeId(id),
            key: blake3::derive_key(KEY_CONTEXT, &token.0),
        }
    }

    /// What its datagrams are named by.
    pub const fn id(&self) -> ProbeId {
        self.id
    }

    /// The datagram of a probe.
    pub fn seal(&self, probe: &Probe) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Probe::SIZE);
        bytes.extend([MAGIC, VERSION, kind_byte(probe.kind), side_byte(probe.from)]);
        bytes.extend(self.id.0);
        bytes.extend(probe.transaction.to_be_bytes());
        let (family, ip, port) = match probe.seen {
            None => (0, Ipv6Addr::UNSPECIFIED, 0),
            Some(SocketAddr::V4(seen)) => (4, seen.ip().to_ipv6_mapped(), seen.port()),
            Some(SocketAddr::V6(seen)) => (6, *seen.ip(), seen.port()),
        };
        bytes.push(family);
        bytes.extend(ip.octets());
        bytes.extend(port.to_be_bytes());
        let tag = self.tag(&bytes);
        bytes.extend(tag);
        bytes
    }

    /// The probe in a datagram, if it was sealed with this key.
    ///
    /// # Errors
    /// When it was not, or says nothing that this version knows.
    pub fn open(&self, datagram: &[u8]) -> Result<Probe, ProbeError> {
        if Probe::id(datagram)? != self.id {
            return Err(ProbeError::NotOurs);
        }
        let (body, tag) = datagram.split_at(TAG_AT);
        // Not in constant time: a tag is good for one attempt of seconds, over a network that jitters by more.
        if tag != self.tag(body) {
            return Err(ProbeError::Forged);
        }
        let kind = match body[2] {
            1 => ProbeKind::Ping,
            2 => ProbeKind::Pong,
            3 => ProbeKind::Nominate,
            4 => ProbeKind::Witness,
            _ => return Err(ProbeError::Malformed),
        };
        let from = match body[3] {
            1 => Side::Offerer,
            2 => Side::Answerer,
            _ => return Err(ProbeError::Malformed),
        };
        let mut transaction = [0; 4];
        transaction.copy_from_slice(&body[TRANSACTION_AT..FAMILY_AT]);
        let mut ip = [0; 16];
        ip.copy_from_slice(&body[FAMILY_AT + 1..FAMILY_AT + 17]);
        let ip = Ipv6Addr::from(ip);
        let port = u16::from_be_bytes([body[TAG_AT - 2], body[TAG_AT - 1]]);
        let seen = match body[FAMILY_AT] {
            0 => None,
            4 => {
                let ip = ip.to_ipv4_mapped().ok_or(ProbeError::Malformed)?;
                Some(SocketAddr::new(IpAddr::V4(ip), port))
            }
            6 => Some(SocketAddr::new(IpAddr::V6(ip), port)),
            _ => return Err(ProbeError::Malformed),
        };
        Ok(Probe {
            kind,
            from,
            transaction: u32::from_be_bytes(transaction),
            seen,
        })
    }

    fn tag(&self, body: &[u8]) -> [u8; TAG_SIZE] {
        let mut tag = [0; TAG_SIZE];
        tag.copy_from_slice(&blake3::keyed_hash(&self.key, body).as_bytes()[..TAG_SIZE]);
        tag
    }
}

/// A datagram is not a probe of this attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProbeError {
    /// It belongs to another protocol or attempt.
    #[error("the datagram belongs to nothing that is under way")]
    NotOurs,
    /// It is longer or shorter than every probe.
    #[error("a datagram of {length} bytes is no probe")]
    Length {
        /// Its length.
        length: usize,
    },
    /// Another version wrote it.
    #[error("the probe has version {theirs}")]
    Version {
        /// The version it names.
        theirs: u8,
    },
    /// Its sender does not know the token.
    #[error("the probe is not from who exchanged the token")]
    Forged,
    /// Its sender knows the token and writes nonsense.
    #[error("the probe is malformed")]
    Malformed,
}

const fn kind_byte(kind: ProbeKind) -> u8 {
    match kind {
        ProbeKind::Ping => 1,
        ProbeKind::Pong => 2,
        ProbeKind::Nominate => 3,
        ProbeKind::Witness => 4,
    }
}

const fn side_byte(side: Side) -> u8 {
    match side {
        Side::Offerer => 1,
        Side::Answerer => 2,
    }
}

/// "L" without its top bits. STUN has 0 to 3, ZRTP 16 to 19, DTLS 20 to 63, TURN 64 to 79 (RFC 7983), QUIC 64 and
/// above: this one is free.
const MAGIC: u8 = 0x0c;
const VERSION: u8 = 1;
const ID_AT: usize = 4;
const ID_SIZE: usize = 8;
const TRANSACTION_AT: usize = ID_AT + ID_SIZE;
const FAMILY_AT: usize = TRANSACTION_AT + 4;
const TAG_AT: usize = FAMILY_AT + 1 + 16 + 2;
/// 128 bits: nobody guesses one in the seconds of an attempt.
const TAG_SIZE: usize = 16;
const ID_CONTEXT: &str = "lapwing 2026 probe id";
const KEY_CONTEXT: &str = "lapwing 2026 probe key";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TOKEN: Token = Token([7; 16]);

    #[test]
    fn a_probe_is_short_and_never_looks_like_quic() {
        let bytes = ProbeKey::new(&TOKEN).seal(&ping(1));
        assert_eq!(bytes.len(), Probe::SIZE);
        assert!(bytes.len() <= 64);
        assert!(Probe::is_ours(&bytes));
        assert!(bytes[0] < 0x40);
        assert!(!Probe::is_ours(&[0x40; Probe::SIZE]) && !Probe::is_ours(&[]));
    }

    #[test]
    fn a_probe_of_another_attempt_is_not_taken() {
        let bytes = ProbeKey::new(&Token([8; 16])).seal(&ping(1));
        assert_eq!(ProbeKey::new(&TOKEN).open(&bytes), Err(ProbeError::NotOurs));
    }

    #[test]
    fn a_token_is_not_told_by_its_datagrams_or_logs() {
        let token = Token(*b"sixteen secrets!");
        let bytes = ProbeKey::new(&token).seal(&ping(1));
        assert!(
            !bytes
                .windows(4)
                .any(|window| token.0.windows(4).any(|part| part == window))
        );
        assert_eq!(format!("{token:?}"), "Token(secret)");
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_opened(
            kind in 0_u8..4, offerer: bool, transaction: u32, ip: Option<IpAddr>, port: u16,
        ) {
            let kinds = [ProbeKind::Ping, ProbeKind::Pong, ProbeKind::Nominate, ProbeKind::Witness];
            let probe = Probe {
                kind: kinds[usize::from(kind)],
                from: if offerer { Side::Offerer } else { Side::Answerer },
                transaction,
                seen: ip.map(|ip| SocketAddr::new(ip, port)),
            };
            let key = ProbeKey::new(&TOKEN);
            let bytes = key.seal(&probe);
            prop_assert_eq!(Probe::id(&bytes), Ok(key.id()));
            prop_assert_eq!(key.open(&bytes), Ok(probe));
        }

        #[test]
        fn one_changed_bit_is_noticed(bit in 0..Probe::SIZE * 8) {
            let key = ProbeKey::new(&TOKEN);
            let mut bytes = key.seal(&ping(5));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(key.open(&bytes).is_err());
        }

        #[test]
        fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(ProbeKey::new(&TOKEN).open(&bytes).is_err());
        }
    }

    fn ping(transaction: u32) -> Probe {
        Probe {
            kind: ProbeKind::Ping,
            from: Side::Offerer,
            transaction,
            seen: None,
        }
    }
}
