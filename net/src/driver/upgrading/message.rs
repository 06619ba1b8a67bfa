//! The one message of `/libp2p/dcutr`, as protocol buffers have it. Sends nothing.

use lapwing_base::Multiaddr;

/// Either half of what is said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Message {
    /// Where the sender may be found.
    Connect(Vec<Multiaddr>),
    /// Now.
    Sync,
}

/// It is not a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the peer's message is none of this protocol")]
pub(super) struct Malformed;

impl Message {
    /// Longest message in bytes: what libp2p's implementations take.
    pub(super) const SIZE_MAX: usize = 4096;
    /// Most addresses that are taken or sent; what comes after them is passed over.
    pub(super) const ADDRESSES_MAX: usize = 32;

    /// Its bytes, without their length.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![TYPE];
        match self {
            Self::Connect(addresses) => {
                write_varint(CONNECT, &mut bytes);
                for address in addresses.iter().take(Self::ADDRESSES_MAX) {
                    bytes.push(ADDRESS);
                    write_varint(address.len() as u64, &mut bytes);
                    bytes.extend_from_slice(address.as_ref());
                }
            }
            Self::Sync => write_varint(SYNC, &mut bytes),
        }
        bytes
    }

    /// The message that these bytes hold. Addresses that are none are passed over, as are fields that are not known.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let (mut kind, mut addresses) = (None, Vec::new());
        while !bytes.is_empty() {
            let tag = read_varint(&mut bytes)?;
            match tag & 7 {
                0 => {
                    let value = read_varint(&mut bytes)?;
                    if tag == u64::from(TYPE) {
                        kind = Some(value);
                    }
                }
                1 => drop(take(8, &mut bytes)?),
                2 => {
                    let field = read_varint(&mut bytes)?;
                    let field = take(field, &mut bytes)?;
                    if tag == u64::from(ADDRESS)
                        && addresses.len() < Self::ADDRESSES_MAX
                        && let Ok(address) = Multiaddr::try_from(field.to_vec())
                    {
                        addresses.push(address);
                    }
                }
                5 => drop(take(4, &mut bytes)?),
                _ => return Err(Malformed),
            }
        }
        match kind {
            Some(CONNECT) => Ok(Self::Connect(addresses)),
            Some(SYNC) => Ok(Self::Sync),
            _ => Err(Malformed),
        }
    }
}

/// Appends a number, seven bits a byte.
pub(super) fn write_varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Malformed)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take<'a>(count: u64, bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let count = usize::try_from(count).map_err(|_| Malformed)?;
    let (field, rest) = bytes.split_at_checked(count).ok_or(Malformed)?;
    *bytes = rest;
    Ok(field)
}

/// Field 1, a number.
const TYPE: u8 = 1 << 3;
/// Field 2, bytes.
const ADDRESS: u8 = (2 << 3) | 2;
const CONNECT: u64 = 100;
const SYNC: u64 = 300;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_as_the_specification_has_them() {
        assert_eq!(Message::Sync.to_bytes(), [0x08, 0xac, 0x02]);
        let address: Multiaddr = "/ip4/192.0.2.1/udp/7/quic-v1".parse().unwrap();
        let bytes = Message::Connect(vec![address.clone()]).to_bytes();
        assert_eq!(bytes[..4], [0x08, 0x64, 0x12, address.len() as u8]);
        assert_eq!(bytes[4..], *address.as_ref());
    }

    #[test]
    fn what_is_not_known_is_passed_over() {
        let address: Multiaddr = "/ip4/192.0.2.1/udp/7/quic-v1".parse().unwrap();
        let mut bytes = vec![0x18, 1, 0x25, 0, 0, 0, 0, 0x12, 1, 0xff];
        bytes.extend(Message::Connect(vec![address.clone(); 99]).to_bytes());
        let taken = vec![address; Message::ADDRESSES_MAX];
        assert_eq!(Message::parse(&bytes), Ok(Message::Connect(taken)));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &[][..],
            &[0x08],
            &[0x08, 1],
            &[0x08, 0x64, 0x12, 9],
            &[0xff; 11],
            &[0x0b],
        ] {
            assert_eq!(Message::parse(bytes), Err(Malformed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_within_the_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(Message::Connect(addresses)) = Message::parse(&bytes) {
                prop_assert!(addresses.len() <= Message::ADDRESSES_MAX);
            }
        }
    }
}
