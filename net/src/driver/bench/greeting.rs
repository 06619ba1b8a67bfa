//! What both ends of a measurement say before it and after it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BenchError, failed};
use crate::driver::network::{Network, RequestError};
use crate::{Access, Kind, Refusal, decode, encode};
use lapwing_base::{ByteSize, Class, ClusterId, PeerId};

/// Of the measurements: both ends have to mean the same by a stream.
const VERSION: u16 = 1;

/// The greeting, and its answer.
pub(super) const GREETING: Kind = Kind {
    class: Class::Control,
    name: "bench-greeting",
    access: Access::Anyone,
    frame_max: ByteSize(256),
};

/// Who measures across a relay is a member of this cluster, as are the relay and the other end: nodes find direct
/// paths to members.
pub(super) const CLUSTER: ClusterId = ClusterId::from_bytes(*b"lapwing-bench-01");

#[derive(Debug, Serialize, Deserialize)]
struct Greeting {
    version: u16,
    wish: Wish,
}

/// What the one who greets wants. The node that comes may be another one than the one that asks, so that what is known of
/// the latter does not help it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Wish {
    /// To have its paths found as a member's: of a relay.
    Join(PeerId),
    /// To measure: of the other end.
    Measure(PeerId),
    /// To be done with it.
    Leave(PeerId),
}

/// The answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It may. The ports of the floors, QUIC's and TCP's.
    Welcome { quic: u16, tcp: u16 },
    /// Somebody else measures.
    Busy,
    /// This end is of another version.
    Version(u16),
}

/// Tells a server what is wanted, and returns the ports of its floors.
pub(super) async fn greet(
    network: &Network,
    server: PeerId,
    wish: Wish,
    timeout: Duration,
) -> Result<[u16; 2], BenchError> {
    let greeting = Greeting {
        version: VERSION,
        wish,
    };
    let answered = network
        .request(server, GREETING, &encode(&greeting), timeout)
        .await;
    let answer = answered.map_err(|error| match error.refusal() {
        Some(Refusal::NotServed) => {
            failed("greet the other end")("it is a node, and does not run `lapwing bench net serve`")
        }
        _ => failed("greet the other end")(unwound(&error)),
    })?;
    match decode(&answer).map_err(failed("greet the other end"))? {
        Answer::Welcome { quic, tcp } => Ok([quic, tcp]),
        Answer::Busy => Err(failed("measure")(
            "the other end measures with somebody else; try again when that is over",
        )),
        Answer::Version(theirs) => Err(failed("measure")(format!(
            "the other end measures as of version {theirs}, this one as of {VERSION}; use the same lapwing on both"
        ))),
    }
}

/// With what lies below, which says more.
fn unwound(error: &RequestError) -> String {
    let mut text = error.to_string();
    let mut below = std::error::Error::source(error);
    while let Some(error) = below {
        text.push_str(": ");
        text.push_str(&error.to_string());
        below = error.source();
    }
    text
}

/// What a greeting wants.
///
/// # Errors
/// The answer to one of another version.
pub(super) fn understand(greeting: &[u8]) -> Result<Wish, Answer> {
    match decode::<Greeting>(greeting) {
        Ok(greeting) if greeting.version == VERSION => Ok(greeting.wish),
        Ok(_) | Err(_) => Err(Answer::Version(VERSION)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_of_another_version_is_answered_with_ours() {
        let wish = Wish::Measure(PeerId::random());
        let ours = encode(&Greeting {
            version: VERSION,
            wish,
        });
        assert!(matches!(understand(&ours), Ok(Wish::Measure(_))));
        let newer = encode(&Greeting {
            version: VERSION + 1,
            wish,
        });
        for other in [&newer[..], &newer[..3], b"", b"whatever else it may be"] {
            assert!(matches!(understand(other), Err(Answer::Version(VERSION))));
        }
    }
}
