//! Two public hosts that tell who asks what they see, and answer from where they are told to: what a probe needs to
//! find out what is in between (RFC 5780, with messages of our own).

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::error::LabError;
use crate::host::Host;
use crate::lab::Inner;

/// The ports that both listen on.
const PORTS: [u16; 2] = [3478, 3479];

/// From where an answer is to come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum From {
    /// The address and port that were asked.
    Same,
    /// The same address, the other port.
    OtherPort,
    /// The other host, the same port.
    OtherAddress,
}

/// A question: a number to know the answer by, and from where it is to come.
pub(crate) fn question(number: u64, from: From) -> [u8; 9] {
    let mut question = [0; 9];
    question[..8].copy_from_slice(&number.to_be_bytes());
    question[8] = from as u8;
    question
}

/// The number of an answer and whom the reflector saw; `None` for anything else that may arrive.
pub(crate) fn answer(bytes: &[u8]) -> Option<(u64, SocketAddr)> {
    let (number, seen) = bytes.split_first_chunk()?;
    Some((
        u64::from_be_bytes(*number),
        str::from_utf8(seen).ok()?.parse().ok()?,
    ))
}

/// Both hosts, and the thread that answers for them.
#[derive(Debug)]
pub(crate) struct Reflectors {
    hosts: [Host; 2],
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Reflectors {
    pub(crate) fn start(lab: &Arc<Inner>) -> Result<Self, LabError> {
        let hosts = [lab.public_host("reflector-1")?, lab.public_host("reflector-2")?];
        let failed = LabError::system("start the reflectors");
        let bind = |host: &Host| {
            host.enter(|| -> io::Result<_> {
                let sockets = PORTS.map(|port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)));
                let [first, second] = sockets;
                let sockets = [first?, second?];
                sockets
                    .iter()
                    .try_for_each(|socket| socket.set_nonblocking(true))?;
                Ok(sockets)
            })
        };
        let sockets = [
            bind(&hosts[0])?.map_err(&failed)?,
            bind(&hosts[1])?.map_err(&failed)?,
        ];
        let wake = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(&failed)?;
        let wake = Arc::new(wake);
        let thread = thread::Builder::new().name("netlab-reflect".into()).spawn({
            let wake = wake.clone();
            move || reflect(&sockets, &wake)
        });
        Ok(Self {
            hosts,
            wake,
            thread: Some(thread.map_err(&failed)?),
        })
    }

    /// Where to ask over IPv4: by host, then by port.
    pub(crate) fn targets4(&self) -> [[SocketAddr; 2]; 2] {
        self.hosts
            .each_ref()
            .map(|host| PORTS.map(|port| (host.ipv4(), port).into()))
    }

    /// Where to ask over IPv6.
    pub(crate) fn targets6(&self) -> [[SocketAddr; 2]; 2] {
        let address = |host: &Host| host.ipv6().unwrap_or(Ipv6Addr::UNSPECIFIED);
        self.hosts
            .each_ref()
            .map(|host| PORTS.map(|port| (address(host), port).into()))
    }
}

impl Drop for Reflectors {
    fn drop(&mut self) {
        // An event counter that cannot be written to is full, and wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers on all sockets, by host and by port, until it is woken.
fn reflect(sockets: &[[UdpSocket; 2]; 2], wake: &OwnedFd) {
    loop {
        let [[a, b], [c, d]] = sockets;
        let waits = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut all = [wake.as_fd(), a.as_fd(), b.as_fd(), c.as_fd(), d.as_fd()].map(waits);
        match poll(&mut all, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(_) => return,
        }
        if !all[0].revents().is_empty() {
            return;
        }
        for host in 0..2 {
            for port in 0..2 {
                let mut buffer = [0; 64];
                while let Ok((length, seen)) = sockets[host][port].recv_from(&mut buffer) {
                    let Some((number, &[from])) = buffer[..length].split_first_chunk::<8>() else {
                        continue;
                    };
                    let answerer = match from {
                        1 => &sockets[host][1 - port],
                        2 => &sockets[1 - host][port],
                        _ => &sockets[host][port],
                    };
                    let canonical = SocketAddr::new(seen.ip().to_canonical(), seen.port());
                    let answer = [number.as_slice(), canonical.to_string().as_bytes()].concat();
                    // An answer that gets lost is asked for again.
                    let _ = answerer.send_to(&answer, seen);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reads_as_it_was_written_and_nothing_else_does() {
        let seen: SocketAddr = "[2001:db8::1]:4000".parse().unwrap();
        let written = [7_u64.to_be_bytes().as_slice(), seen.to_string().as_bytes()].concat();
        assert_eq!(answer(&written), Some((7, seen)));
        assert_eq!(answer(&question(7, From::Same)), None);
        assert_eq!(answer(&[]), None);
    }
}
