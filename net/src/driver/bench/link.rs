//! A shaped link on this machine, for whoever has no network to shape: between two UDP sockets, one sender on each
//! side. The arithmetic is [`Direction`]'s.
//!
//! It runs on threads of its own, since a timer of the runtime is a millisecond late, and the runtime's own threads
//! are what is measured.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

use super::shape::{Direction, Shape, UnderWay};
use crate::driver::now;
use crate::driver::shared::lock;

/// How soon its threads notice that it is over.
const NOTICE: Duration = Duration::from_millis(50);

/// What may wait in a socket before the link looks at it: what the system allows of it.
const BUFFER: usize = 4 << 20;

/// A link to one address. It ends, with its threads, when it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    near: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Link {
    /// Lays a link to `far` on loopback.
    ///
    /// # Errors
    /// When the system has no socket or thread left.
    pub(super) fn start(shape: Shape, far: SocketAddr) -> io::Result<Self> {
        let bind = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            let raw = SockRef::from(&socket);
            raw.set_recv_buffer_size(BUFFER)?;
            raw.set_send_buffer_size(BUFFER)?;
            socket.set_read_timeout(Some(NOTICE))?;
            Ok(socket)
        };
        let (near_socket, far_socket) = (Arc::new(bind()?), Arc::new(bind()?));
        far_socket.connect(far)?;
        let mut link = Self {
            near: near_socket.local_addr()?,
            stop: Arc::default(),
            threads: Vec::new(),
        };
        // Whoever sent last from the near side is answered.
        let sender: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let remember = {
            let sender = Arc::clone(&sender);
            move |from| *lock(&sender) = Some(from)
        };
        let forward = {
            let far_socket = Arc::clone(&far_socket);
            move |datagram: &[u8]| drop(far_socket.send(datagram))
        };
        link.carry(Direction::new(shape), Arc::clone(&near_socket), remember, forward)?;
        let answer = move |datagram: &[u8]| {
            if let Some(to) = *lock(&sender) {
                // It is lost where the socket is full, like any datagram.
                drop(near_socket.send_to(datagram, to));
            }
        };
        link.carry(Direction::new(shape), far_socket, |_| (), answer)?;
        Ok(link)
    }

    /// Where to send.
    pub(super) const fn near(&self) -> SocketAddr {
        self.near
    }

    fn carry(
        &mut self,
        mut direction: Direction,
        from: Arc<UdpSocket>,
        remember: impl Fn(SocketAddr) + Send + 'static,
        deliver: impl Fn(&[u8]) + Send + 'static,
    ) -> io::Result<()> {
        let queue: Arc<(Mutex<UnderWay>, Condvar)> = Arc::default();
        let (stop, arrivals) = (Arc::clone(&self.stop), Arc::clone(&queue));
        self.spawn(move || {
            let mut buffer = [0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                // A port that nobody listens on any more reports errors, which end with the link.
                let Ok((size, sender)) = from.recv_from(&mut buffer) else {
                    continue;
                };
                remember(sender);
                if let Some(at) = direction.offer(size, now()) {
                    lock(&arrivals.0).push_back((at, buffer[..size].to_vec()));
                    arrivals.1.notify_one();
                }
            }
        })?;
        let stop = Arc::clone(&self.stop);
        self.spawn(move || {
            let (under_way, arrived) = &*queue;
            while !stop.load(Ordering::Relaxed) {
                let mut under_way = lock(under_way);
                let wait = match under_way.front() {
                    Some((at, _)) => at.saturating_duration_since(now()),
                    None => NOTICE,
                };
                if wait.is_zero() {
                    let datagram = under_way.pop_front();
                    drop(under_way);
                    if let Some((_, datagram)) = datagram {
                        deliver(&datagram);
                    }
                } else {
                    drop(
                        arrived
                            .wait_timeout(under_way, wait)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                }
            }
        })
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("shaped link".to_owned());
        self.threads.push(thread.spawn(work)?);
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot have panicked but by a fault of ours, which has been reported.
            let _ = thread.join();
        }
    }
}
