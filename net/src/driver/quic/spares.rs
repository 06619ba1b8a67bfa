//! Sockets that are opened to be guessed: of hundreds, one at most becomes an endpoint, the others are closed.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::socket::{PROBE_MAX, Stray};
use crate::SocketId;

/// The sockets of one attempt; closed when this is dropped.
#[derive(Debug)]
pub(super) struct Spares {
    sockets: HashMap<SocketId, Arc<UdpSocket>>,
    stop: CancellationToken,
}

impl Spares {
    /// Opens as many as there can be, up to `count`.
    pub(super) fn open(
        ids: impl Iterator<Item = SocketId>,
        count: u16,
        strays: &mpsc::Sender<Stray>,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let stop = stop.child_token();
        let mut sockets = HashMap::new();
        for id in ids.take(usize::from(count)) {
            // The system may have no more to give.
            let Ok(socket) = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
                .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
                .and_then(UdpSocket::from_std)
            else {
                break;
            };
            let socket = Arc::new(socket);
            tracker.spawn(listen(id, Arc::clone(&socket), strays.clone(), stop.clone()));
            sockets.insert(id, socket);
        }
        Self { sockets, stop }
    }

    pub(super) fn ids(&self) -> Vec<SocketId> {
        self.sockets.keys().copied().collect()
    }

    /// Sends a probe from one of them; `None` when it is not among them.
    pub(super) fn send(&self, id: SocketId, to: SocketAddr, payload: &[u8]) -> Option<io::Result<()>> {
        let socket = self.sockets.get(&id)?;
        Some(match socket.try_send_to(payload, to) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        })
    }

    /// Takes one out, to go on with. Its port stays open through a second handle, and the first one's reader ends.
    pub(super) fn take(&self, id: SocketId) -> Option<io::Result<std::net::UdpSocket>> {
        let socket = self.sockets.get(&id)?;
        self.stop.cancel();
        Some(socket2::SockRef::from(&**socket).try_clone().map(Into::into))
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn listen(id: SocketId, socket: Arc<UdpSocket>, strays: mpsc::Sender<Stray>, stop: CancellationToken) {
    let reading = async {
        let mut buffer = [0; PROBE_MAX];
        loop {
            // A port that is closed at the other end is told as an error here, and means nothing.
            let Ok((size, from)) = socket.recv_from(&mut buffer).await else {
                continue;
            };
            let payload = Bytes::copy_from_slice(&buffer[..size]);
            let _ = strays.try_send(Stray {
                socket: id,
                from,
                payload,
            });
        }
    };
    stop.run_until_cancelled(reading).await;
}
