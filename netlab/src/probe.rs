//! Finds out what is between a host and the internet with nothing but UDP sockets: mapping, filtering and hairpin as
//! in RFC 5780. It knows nothing of the rules that the lab laid out, and so can tell whether they do what they say.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::LabError;
use crate::host::Host;
use crate::nat::{Egress, Filtering, Mapping, Nat, Ports, Sequence};
use crate::reflectors::{From, answer, question};

/// How long to wait for what may never come, beyond three round trips: a busy machine answers within it.
const PATIENCE: Duration = Duration::from_millis(300);

/// How long to wait for each try of the very first answer, before the round trip is known. All tries together see the
/// slowest satellite links twice over.
const FIRST_PATIENCE: Duration = Duration::from_millis(700);

/// How often a question is asked: one in 1,600 is lost three times on a link that loses 5 % in each direction.
const TRIES: u32 = 3;

/// Ports this close to one another were counted, not drawn: other flows of a test take some in between.
const STEP_MAX: u16 = 16;

/// Why a host could not be probed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The lab refused.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The host's own sockets failed.
    #[error("failed to use a socket of the probed host")]
    Socket(#[from] io::Error),
}

/// What was found between a host and the internet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// Nothing came back.
    NoUdp,
    /// UDP passes.
    Udp {
        /// Which outside ports the host's sockets get.
        mapping: FoundMapping,
        /// From whom they hear.
        filtering: Filtering,
        /// Whether one socket of the host reaches another by its outside address; never where nothing is translated.
        hairpin: bool,
        /// An outside address that was seen.
        outside: SocketAddr,
    },
}

/// Which outside ports were seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FoundMapping {
    /// The host's own address and port: no translation.
    None,
    /// The same for every destination.
    EndpointIndependent(Ports),
    /// The same for every port of an address, another for another address.
    Address,
    /// Another for every destination.
    Symmetric {
        /// Whether they follow one another.
        sequential: bool,
    },
}

impl Found {
    /// Whether this is what a host behind such a router, and behind no other, finds.
    pub fn is(&self, nat: &Nat) -> bool {
        match self {
            Self::NoUdp => nat.egress != Egress::Any,
            Self::Udp {
                mapping,
                filtering,
                hairpin,
                ..
            } => {
                let expected = match nat.mapping {
                    Mapping::None => FoundMapping::None,
                    Mapping::EndpointIndependent(ports) => FoundMapping::EndpointIndependent(ports),
                    Mapping::Symmetric(sequence) => FoundMapping::Symmetric {
                        sequential: sequence == Sequence::Sequential,
                    },
                };
                nat.egress == Egress::Any
                    && *mapping == expected
                    && *filtering == nat.filtering
                    && *hairpin == nat.hairpin
            }
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Udp {
            mapping,
            filtering,
            hairpin,
            ..
        } = self
        else {
            return f.write_str("no UDP");
        };
        let mapping = match mapping {
            FoundMapping::None => "no translation",
            FoundMapping::EndpointIndependent(Ports::Preserved) => "independent, ports kept",
            FoundMapping::EndpointIndependent(Ports::Translated) => "independent, ports translated",
            FoundMapping::Address => "by address",
            FoundMapping::Symmetric { sequential: false } => "symmetric, scattered",
            FoundMapping::Symmetric { sequential: true } => "symmetric, sequential",
        };
        write!(
            f,
            "{mapping}, {filtering}{}",
            if *hairpin { ", hairpin" } else { "" }
        )
    }
}

/// Probes a host by the reflectors at `targets`, by host and by port.
pub(crate) fn classify(host: &Host, targets: [[SocketAddr; 2]; 2]) -> Result<Found, ProbeError> {
    let own = match targets[0][0] {
        SocketAddr::V4(_) => Some(host.ipv4().into()),
        SocketAddr::V6(_) => host.ipv6().map(Into::into),
    };
    let Some(own) = own else {
        return Ok(Found::NoUdp);
    };
    let socket = || -> Result<Asker, ProbeError> {
        let any = match targets[0][0] {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = host.enter(|| UdpSocket::bind(SocketAddr::new(any, 0)))??;
        let local = SocketAddr::new(own, socket.local_addr()?.port());
        Ok(Asker {
            socket,
            local,
            asked: 0,
        })
    };
    let mut first = socket()?;
    let Some((outside, round_trip)) = first.ask(targets[0][0], FIRST_PATIENCE)? else {
        return Ok(Found::NoUdp);
    };
    let patience = PATIENCE + round_trip * 3;
    let (mapping, filtering, hairpin) = thread::scope(|scope| {
        let filtering = scope.spawn(|| filtering(socket()?, targets[0][0], patience));
        let hairpin = scope.spawn(|| hairpin(socket()?, socket()?, targets[0][0], patience));
        let mapping = mapping(&mut first, socket()?, outside, targets, patience);
        let panicked = |_| io::Error::other("a probe panicked");
        let filtering = filtering.join().map_err(panicked)?;
        let hairpin = hairpin.join().map_err(panicked)?;
        Ok::<_, ProbeError>((mapping?, filtering?, hairpin?))
    })?;
    // A socket without translation is reached at its own address, which says nothing of hairpin.
    let hairpin = hairpin && mapping != FoundMapping::None;
    Ok(Found::Udp {
        mapping,
        filtering,
        hairpin,
        outside,
    })
}

/// Asks all four reflectors from one socket, and one from another to see whether ports are kept by more than chance.
fn mapping(
    first: &mut Asker,
    mut second: Asker,
    outside: SocketAddr,
    targets: [[SocketAddr; 2]; 2],
    patience: Duration,
) -> Result<FoundMapping, ProbeError> {
    let [[_, other_port], [other_address, other_both]] = targets;
    let mut seen = vec![outside];
    for target in [other_port, other_address, other_both] {
        // One that is not heard at all is not known to be the same.
        seen.extend(first.ask(target, patience)?.map(|(seen, _)| seen));
    }
    let of_second = second.ask(targets[0][0], patience)?.map(|(seen, _)| seen);
    let same = |a: usize, b: usize| seen.get(a).is_some() && seen.get(a) == seen.get(b);
    Ok(if seen.iter().all(|seen| *seen == first.local) {
        FoundMapping::None
    } else if same(0, 1) && same(0, 2) && same(0, 3) {
        let kept = outside.port() == first.local.port()
            && of_second.is_some_and(|seen| seen.port() == second.local.port());
        FoundMapping::EndpointIndependent(if kept { Ports::Preserved } else { Ports::Translated })
    } else if same(0, 1) && same(2, 3) {
        FoundMapping::Address
    } else {
        let steps = seen
            .windows(2)
            .map(|pair| pair[1].port().wrapping_sub(pair[0].port()));
        FoundMapping::Symmetric {
            sequential: steps.into_iter().all(|step| step <= STEP_MAX),
        }
    })
}

/// Asks one reflector for answers from other places, which a strict filter does not let through.
fn filtering(mut asker: Asker, target: SocketAddr, patience: Duration) -> Result<Filtering, ProbeError> {
    // The filter knows the reflector before the others answer, whatever gets lost.
    asker.ask(target, patience)?;
    let numbers = [From::OtherAddress, From::OtherPort].map(|from| (asker.next(), from));
    let [(by_address, _), (by_port, _)] = numbers;
    let mut heard = Vec::new();
    asker.until(
        patience,
        TRIES,
        |socket| {
            for (number, from) in numbers {
                socket.send_to(&question(number, from), target)?;
            }
            Ok(())
        },
        |bytes| {
            heard.extend(answer(bytes).map(|(number, _)| number));
            heard.contains(&by_address) && heard.contains(&by_port)
        },
    )?;
    Ok(if heard.contains(&by_address) {
        Filtering::EndpointIndependent
    } else if heard.contains(&by_port) {
        Filtering::Address
    } else {
        Filtering::AddressAndPort
    })
}

/// Sends from one socket to the outside address of another.
fn hairpin(mut to: Asker, from: Asker, target: SocketAddr, patience: Duration) -> Result<bool, ProbeError> {
    let Some((outside, _)) = to.ask(target, patience)? else {
        return Ok(false);
    };
    let number = to.next();
    let sent = question(number, From::Same);
    let send = |_: &UdpSocket| from.socket.send_to(&sent, outside).map(drop);
    Ok(to.until(patience, TRIES, send, |bytes| bytes == sent)?.is_some())
}

/// A socket of the probed host.
#[derive(Debug)]
struct Asker {
    socket: UdpSocket,
    local: SocketAddr,
    asked: u64,
}

impl Asker {
    /// A number that no other question of this socket has.
    fn next(&mut self) -> u64 {
        self.asked += 1;
        self.asked << 16 | u64::from(self.local.port())
    }

    /// Asks a reflector whom it sees, up to [`TRIES`] times; the answer and how long it took.
    fn ask(&mut self, target: SocketAddr, patience: Duration) -> io::Result<Option<(SocketAddr, Duration)>> {
        let number = self.next();
        let mut seen = None;
        let took = self.until(
            patience * TRIES,
            TRIES,
            |socket| socket.send_to(&question(number, From::Same), target).map(drop),
            |bytes| {
                seen = answer(bytes)
                    .filter(|(answered, _)| *answered == number)
                    .map(|(_, seen)| seen);
                seen.is_some()
            },
        )?;
        Ok(seen.zip(took))
    }

    /// Sends `tries` times, evenly spread over `patience`, until something arrives that is enough; how long it took.
    #[expect(clippy::disallowed_methods, reason = "a measurement of real time")]
    fn until(
        &self,
        patience: Duration,
        tries: u32,
        mut send: impl FnMut(&UdpSocket) -> io::Result<()>,
        mut enough: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Option<Duration>> {
        let begun_at = Instant::now();
        for round in 1..=tries {
            // A packet that the host itself refuses to send is a lost one.
            let _ = send(&self.socket);
            let listen_until = begun_at + patience / tries * round;
            loop {
                let left = listen_until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.socket.set_read_timeout(Some(left))?;
                let mut buffer = [0; 128];
                // What fails here is a refusal from afar (ICMP), or the end of the wait.
                let Ok(length) = self.socket.recv(&mut buffer) else {
                    continue;
                };
                if enough(&buffer[..length]) {
                    return Ok(Some(begun_at.elapsed()));
                }
            }
        }
        Ok(None)
    }
}
