//! The packets of a lane as bytes. Total: no input panics, and nothing is allocated for a length that was
//! only announced.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use std::fmt;

use lapwing_base::{CLASSES, Class};

/// A channel of a lane: odd where the dialer opened it, even where the listener did.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChannelId(pub(crate) u32);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one end of a lane tells the other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Packet {
    /// A channel begins.
    Open { channel: ChannelId, class: Class },
    /// The next bytes of a channel; at least one.
    Data { channel: ChannelId, payload: Bytes },
    /// Nothing follows on this channel.
    Fin { channel: ChannelId },
    /// Nothing follows, and what was sent may be forgotten.
    Reset { channel: ChannelId },
    /// What is sent on this channel is no longer read.
    Stop { channel: ChannelId },
    /// So many more bytes may be sent on this channel.
    Credit { channel: ChannelId, bytes: u32 },
    /// So many bytes of data have arrived since the lane began, whatever their channel.
    Ack { total: u64 },
    /// Asks for the same token.
    Ping { token: u64 },
    /// Answers a ping.
    Pong { token: u64 },
}

/// Longest payload of a data packet: what an urgent packet waits for at most, 6.6 ms at 20 Mbit/s.
pub const SLICE_MAX: usize = 16 << 10;

/// The bytes of a data packet before its payload.
pub(crate) const DATA_HEADER: usize = 7;

/// What arrived is not a packet: the peer speaks another version, or is hostile.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// The first byte names no kind.
    #[error("packet kind {kind} is unknown")]
    Kind {
        /// The byte.
        kind: u8,
    },
    /// No class has this number.
    #[error("class {class} is unknown")]
    Class {
        /// The byte.
        class: u8,
    },
    /// A data packet is empty or longer than a slice.
    #[error("a data packet of {length} bytes is not between 1 and {SLICE_MAX}")]
    Length {
        /// As announced.
        length: usize,
    },
}

impl Packet {
    /// Appends the packet.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Open { channel, class } => {
                head(out, OPEN, *channel);
                out.put_u8(*class as u8);
            }
            Self::Data { channel, payload } => {
                head(out, DATA, *channel);
                // A payload is cut to a slice before it gets here, which fits.
                out.put_u16_le(u16::try_from(payload.len()).unwrap_or(u16::MAX));
                out.put_slice(payload);
            }
            Self::Fin { channel } => head(out, FIN, *channel),
            Self::Reset { channel } => head(out, RESET, *channel),
            Self::Stop { channel } => head(out, STOP, *channel),
            Self::Credit { channel, bytes } => {
                head(out, CREDIT, *channel);
                out.put_u32_le(*bytes);
            }
            Self::Ack { total } => long(out, ACK, *total),
            Self::Ping { token } => long(out, PING, *token),
            Self::Pong { token } => long(out, PONG, *token),
        }
    }

    /// Takes the first packet from `input`, or nothing while it is not whole.
    ///
    /// # Errors
    /// [`PacketError`] where no continuation can make it a packet.
    pub(crate) fn decode(input: &mut BytesMut) -> Result<Option<Self>, PacketError> {
        let Some(&kind) = input.first() else {
            return Ok(None);
        };
        let length = match kind {
            FIN | RESET | STOP => 5,
            OPEN => 6,
            CREDIT | ACK | PING | PONG => 9,
            DATA => match input.get(5..DATA_HEADER) {
                None => return Ok(None),
                Some(length) => {
                    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
                    if length == 0 || length > SLICE_MAX {
                        return Err(PacketError::Length { length });
                    }
                    DATA_HEADER + length
                }
            },
            kind => return Err(PacketError::Kind { kind }),
        };
        if input.len() < length {
            return Ok(None);
        }
        let mut whole = input.split_to(length);
        whole.advance(1);
        Ok(Some(match kind {
            ACK => Self::Ack {
                total: whole.get_u64_le(),
            },
            PING => Self::Ping {
                token: whole.get_u64_le(),
            },
            PONG => Self::Pong {
                token: whole.get_u64_le(),
            },
            kind => {
                let channel = ChannelId(whole.get_u32_le());
                match kind {
                    OPEN => {
                        let class = whole.get_u8();
                        let known = CLASSES.get(usize::from(class)).copied();
                        let class = known.ok_or(PacketError::Class { class })?;
                        Self::Open { channel, class }
                    }
                    FIN => Self::Fin { channel },
                    RESET => Self::Reset { channel },
                    STOP => Self::Stop { channel },
                    CREDIT => Self::Credit {
                        channel,
                        bytes: whole.get_u32_le(),
                    },
                    _ => {
                        whole.advance(2);
                        let payload = whole.freeze();
                        Self::Data { channel, payload }
                    }
                }
            }
        }))
    }
}

const OPEN: u8 = 1;
const DATA: u8 = 2;
const FIN: u8 = 3;
const RESET: u8 = 4;
const STOP: u8 = 5;
const CREDIT: u8 = 6;
const ACK: u8 = 7;
const PING: u8 = 8;
const PONG: u8 = 9;

fn head(out: &mut BytesMut, kind: u8, channel: ChannelId) {
    out.put_u8(kind);
    out.put_u32_le(channel.0);
}

fn long(out: &mut BytesMut, kind: u8, number: u64) {
    out.put_u8(kind);
    out.put_u64_le(number);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_kind() -> Vec<Packet> {
        let channel = ChannelId(0x0102_0304);
        vec![
            Packet::Open {
                channel,
                class: Class::Model,
            },
            Packet::Data {
                channel,
                payload: Bytes::from(vec![7; SLICE_MAX]),
            },
            Packet::Data {
                channel,
                payload: Bytes::from_static(b"x"),
            },
            Packet::Fin { channel },
            Packet::Reset { channel },
            Packet::Stop { channel },
            Packet::Credit {
                channel,
                bytes: u32::MAX,
            },
            Packet::Ack { total: u64::MAX },
            Packet::Ping { token: 1 },
            Packet::Pong { token: 2 },
        ]
    }

    #[test]
    fn packets_survive_the_wire_in_pieces_of_any_size() {
        let mut wire = BytesMut::new();
        for packet in every_kind() {
            packet.encode(&mut wire);
        }
        for piece in [1, 2, 3, 7, 4096, wire.len()] {
            let mut input = BytesMut::new();
            let mut read = Vec::new();
            for piece in wire.chunks(piece) {
                input.extend_from_slice(piece);
                while let Some(packet) = Packet::decode(&mut input).unwrap() {
                    read.push(packet);
                }
            }
            assert_eq!(read, every_kind());
            assert!(input.is_empty());
        }
    }

    #[test]
    fn what_is_no_packet_is_refused_before_the_rest_of_it_arrives() {
        let decode = |bytes: &[u8]| Packet::decode(&mut BytesMut::from(bytes));
        assert_eq!(decode(&[0]), Err(PacketError::Kind { kind: 0 }));
        assert_eq!(decode(&[255]), Err(PacketError::Kind { kind: 255 }));
        assert_eq!(
            decode(&[OPEN, 1, 0, 0, 0, 5]),
            Err(PacketError::Class { class: 5 })
        );
        assert_eq!(
            decode(&[DATA, 1, 0, 0, 0, 0, 0]),
            Err(PacketError::Length { length: 0 })
        );
        let long = Err(PacketError::Length { length: 0x4001 });
        assert_eq!(decode(&[DATA, 1, 0, 0, 0, 0x01, 0x40]), long);
    }
}
