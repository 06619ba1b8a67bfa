//! What the transport says went wrong, in words for people.

use std::io;

use either::Either;
use libp2p::core::transport::TransportError;
use libp2p::swarm::DialError;

use super::addresses::without_peer;
use super::network::StartError;
use super::quic;
use crate::said::{REASON_MAX, legible};
use lapwing_base::{Multiaddr, chain};

/// Why an address cannot be listened on.
pub(crate) fn start_error(address: Multiaddr, error: TransportError<io::Error>) -> StartError {
    match error {
        TransportError::MultiaddrNotSupported(address) => StartError::Unsupported { address },
        TransportError::Other(error) => {
            // As the transports are combined in the swarm.
            type Combined = Either<Either<quic::Error, io::Error>, io::Error>;
            let combined = error.get_ref().and_then(|inner| inner.downcast_ref::<Combined>());
            let in_use = match combined {
                Some(Either::Left(Either::Left(quic::Error::Io(inner)))) => {
                    inner.kind() == io::ErrorKind::AddrInUse
                }
                _ => false,
            };
            if in_use || error.kind() == io::ErrorKind::AddrInUse {
                StartError::AddressInUse { address }
            } else {
                StartError::Listen {
                    address,
                    source: error,
                }
            }
        }
    }
}

/// Why a dial failed, in one line for people. Whoever has answered may have had a word in it.
pub(crate) fn dial_error(error: &DialError) -> String {
    legible(&every_address(error), REASON_MAX)
}

fn every_address(error: &DialError) -> String {
    match error {
        DialError::WrongPeerId { obtained, address } => {
            format!("at {} answers another node, {obtained}", without_peer(address))
        }
        DialError::LocalPeerId { address } => format!("{} is this node's own", without_peer(address)),
        DialError::Transport(errors) => {
            let each = errors.iter().map(|(address, error)| {
                let error = match error {
                    TransportError::MultiaddrNotSupported(_) => {
                        "this kind of address is not supported".to_owned()
                    }
                    TransportError::Other(error) => chain(error),
                };
                format!("{}: {error}", without_peer(address))
            });
            let shown: Vec<_> = each.take(3).collect();
            let more = errors.len() - shown.len();
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!("{}{more}", shown.join("; "))
        }
        DialError::Denied { cause } => chain(cause),
        DialError::NoAddresses | DialError::DialPeerConditionFalse(_) | DialError::Aborted => {
            error.to_string()
        }
    }
}
