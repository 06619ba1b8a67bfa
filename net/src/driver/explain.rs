//! What the transport says went wrong, in words for people.

use std::error::Error;
use std::io;

use either::Either;
use libp2p::core::transport::TransportError;
use libp2p::swarm::DialError;
use quinn::ConnectionError;

use super::addresses::without_peer;
use super::network::StartError;
use super::quic;
use crate::said::legible;
use lapwing_base::{Multiaddr, chain};

/// Longest reason that is shown, in bytes: a few lines of a terminal.
pub(crate) const REASON_MAX: usize = 400;

/// Why an address cannot be listened on.
pub(crate) fn start_error(address: Multiaddr, error: TransportError<io::Error>) -> StartError {
    match error {
        TransportError::MultiaddrNotSupported(address) => StartError::Unsupported { address },
        TransportError::Other(error) => match system_error(&error) {
            Some(io::ErrorKind::AddrInUse) => StartError::AddressInUse { address },
            Some(io::ErrorKind::PermissionDenied) => StartError::PermissionDenied { address },
            Some(io::ErrorKind::AddrNotAvailable) => StartError::NotHere { address },
            Some(_) | None => StartError::Listen {
                address,
                source: error,
            },
        },
    }
}

/// What the system said, under everything that the transports have wrapped it in.
fn system_error(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    // As the transports are combined in the swarm.
    type Combined = Either<Either<quic::Error, io::Error>, io::Error>;
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // A wrapper names what it wraps as its own inside, and not as its source.
        return match error.get_ref() {
            Some(inner) => system_error(inner),
            None => Some(error.kind()),
        };
    }
    match error.downcast_ref::<Combined>() {
        Some(Either::Left(Either::Left(quic::Error::Io(error)))) => system_error(error),
        Some(Either::Left(Either::Right(error)) | Either::Right(error)) => system_error(error),
        Some(Either::Left(Either::Left(_))) | None => system_error(error.source()?),
    }
}

/// Why a session has ended, in one line for people. The peer may have said why.
pub(crate) fn ended(error: &ConnectionError) -> String {
    let why = match error {
        ConnectionError::ApplicationClosed(close) if close.reason.is_empty() => {
            "it has closed the connection".to_owned()
        }
        ConnectionError::ApplicationClosed(close) => {
            let said = String::from_utf8_lossy(&close.reason);
            format!("it has closed the connection: {said}")
        }
        ConnectionError::LocallyClosed => "it was silent, or not needed any more".to_owned(),
        ConnectionError::TimedOut => "it has not answered for too long".to_owned(),
        ConnectionError::Reset => "it has restarted".to_owned(),
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::CidsExhausted => format!("the connection broke: {error}"),
    };
    legible(&why, REASON_MAX)
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
