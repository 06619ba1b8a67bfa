//! The UDP socket that QUIC shares with probe datagrams: sorts what arrives. Knows neither protocol further.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, SockRef, Socket as RawSocket, Type};
use tokio::io::Interest;
use tokio::sync::mpsc;

use super::batching::{self, Outlet, Waiting};
use crate::{Probe, SocketId};

/// The kernel's buffer in each direction: 60 ms of a gigabit. Memory is used only while packets wait.
const BUFFER: usize = 8 << 20;

/// A datagram that is not QUIC: what finds paths through NATs.
#[derive(Debug)]
pub(crate) struct Stray {
    /// What it came to.
    pub(crate) socket: SocketId,
    pub(crate) from: SocketAddr,
    pub(crate) payload: Bytes,
}

/// Longest probe in bytes.
pub(crate) const PROBE_MAX: usize = 64;

/// One UDP socket.
pub(crate) struct Socket {
    id: SocketId,
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    /// Probes go here; those that find it full are lost like any datagram.
    probes: mpsc::Sender<Stray>,
}

impl Socket {
    /// Binds a socket.
    ///
    /// # Errors
    /// When the system has no such address, or another process has the port.
    pub(crate) fn bind(id: SocketId, address: SocketAddr, probes: mpsc::Sender<Stray>) -> io::Result<Self> {
        let socket = RawSocket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(socket2::Protocol::UDP),
        )?;
        if address.is_ipv6() {
            // IPv4 has a socket of its own, so that addresses look the same in both directions.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        Self::adopt(id, socket.into(), probes)
    }

    /// Takes over a socket that is bound already.
    ///
    /// # Errors
    /// When the system does not let it be used without blocking.
    pub(crate) fn adopt(id: SocketId, socket: UdpSocket, probes: mpsc::Sender<Stray>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let raw = SockRef::from(&socket);
        // As much as the system allows of it; the default drops a tenth of a burst on a fast link.
        let _ = raw.set_recv_buffer_size(BUFFER);
        let _ = raw.set_send_buffer_size(BUFFER);
        let state = UdpSocketState::new((&socket).into())?;
        let io = tokio::net::UdpSocket::from_std(socket)?;
        let local = io.local_addr()?;
        Ok(Self {
            id,
            io,
            state,
            local,
            probes,
        })
    }

    pub(crate) const fn id(&self) -> SocketId {
        self.id
    }

    pub(crate) const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends a probe, unless the socket is busy: then it is lost like any datagram.
    ///
    /// # Errors
    /// What the system says of the destination.
    pub(crate) fn send_probe(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        match self.io.try_send_to(payload, to) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends a datagram that dies after as many hops: it opens the way out of our own NAT and reaches nobody.
    ///
    /// # Errors
    /// What the system says of the destination.
    pub(crate) fn send_priming(&self, to: SocketAddr, payload: &[u8], hops: u32) -> io::Result<()> {
        let raw = SockRef::from(&self.io);
        let (read, write): (ReadHops, WriteHops) = if self.local.is_ipv4() {
            (|raw| raw.ttl_v4(), |raw, hops| raw.set_ttl_v4(hops))
        } else {
            (
                |raw| raw.unicast_hops_v6(),
                |raw, hops| raw.set_unicast_hops_v6(hops),
            )
        };
        // A packet of QUIC that leaves between the two is lost and sent again: a priming datagram is rare.
        let usual = read(&raw)?;
        write(&raw, hops)?;
        let sent = self.send_probe(to, payload);
        write(&raw, usual)?;
        sent
    }

    /// Takes the probes out of what was received.
    fn sort(&self, buf: &[u8], meta: &mut RecvMeta) {
        let stride = meta.stride.max(1);
        let received = buf.get(..meta.len).unwrap_or_default();
        let mut all_probes = !received.is_empty();
        for datagram in received.chunks(stride) {
            if is_quic(datagram) {
                all_probes = false;
            } else if Probe::is_ours(datagram) {
                let _ = self.probes.try_send(Stray {
                    socket: self.id,
                    from: meta.addr,
                    payload: Bytes::copy_from_slice(datagram),
                });
            }
        }
        if all_probes {
            meta.len = 0;
        }
        // Otherwise QUIC sees a probe of the same length among its packets, and drops it.
    }
}

type ReadHops = fn(&SockRef<'_>) -> io::Result<u32>;
type WriteHops = fn(&SockRef<'_>, u32) -> io::Result<()>;

/// Every packet of QUIC version 1 has its "fixed bit" set (RFC 9000 section 17).
fn is_quic(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x40 != 0)
}

impl Outlet for Socket {
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || {
            self.state.send((&self.io).into(), transmit)
        })
    }

    fn at_once_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn writable(self: Arc<Self>) -> Waiting {
        Box::pin(async move { self.io.writable().await })
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Turn)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        batching::send(self, transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let received = self.io.try_io(Interest::READABLE, || {
                self.state.recv((&self.io).into(), bufs, meta)
            });
            if let Ok(count) = received {
                for (buf, meta) in bufs.iter().zip(meta.iter_mut()).take(count) {
                    self.sort(buf, meta);
                }
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// They are put together here.
    fn max_transmit_segments(&self) -> usize {
        1
    }

    /// Room for what the system hands over at once, which is no longer than the longest datagram however many are in
    /// it; and the endpoint's settings ask for that much room already.
    fn max_receive_segments(&self) -> usize {
        1
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

/// A connection that sends in its turn.
#[derive(Debug)]
struct Turn;

impl UdpPoller for Turn {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if batching::is_blocked() {
            // The task is woken when there is room again.
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }
}
