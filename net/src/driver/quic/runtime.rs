//! Where quinn's tasks run: on the room's tracker, so that somebody waits for each of them; and what they send in one turn
//! leaves together.

use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio_util::task::TaskTracker;

use super::batching::Batching;
use super::socket::Socket;

/// Tokio, with an account of what runs on it for one socket.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) tracker: TaskTracker,
    pub(crate) socket: Arc<Socket>,
}

impl Runtime for Tracked {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.tracker.spawn(Batching::new(task, Arc::clone(&self.socket)));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }
}
