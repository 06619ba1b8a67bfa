//! A node that was killed and has come back under the same identity and address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quinn::ConnectionError;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::nodes::{Node, PATIENCE, config, loopback};
use crate::raw_peer::{RawPeer, address};
use lapwing_base::Keypair;
use lapwing_net::NetworkConfig;

#[tokio::test]
async fn it_tells_its_peers_at_once_that_it_knows_nothing_of_their_connections() {
    let keypair = Keypair::generate_ed25519();
    let at = |port: u16| NetworkConfig {
        keypair: keypair.clone(),
        listen: vec![loopback(port)],
        ..config()
    };
    let node = Node::with(at(0)).await.unwrap();
    let wire = Wire::to(address(&node)).await;
    let raw = RawPeer::connect_at(wire.address).await;
    // What the node says first comes when its side of the handshake is over, which ours needs too.
    let greeting = tokio::time::timeout(PATIENCE, raw.connection.accept_uni()).await;
    greeting.unwrap().unwrap();
    // Nothing tells the peer that the node is going.
    wire.cut(true);
    let port = address(&node).port();
    node.network.shutdown().await;
    drop(node);
    let _again = Node::with(at(port)).await.unwrap();
    // What is not acknowledged is sent again and again.
    let mut said = raw.connection.open_uni().await.unwrap();
    said.write_all(b"are you there").await.unwrap();
    wire.cut(false);
    // Its next packet is answered; without an answer it would wait for its idle timeout, which is longer.
    let closed = tokio::time::timeout(PATIENCE, raw.connection.closed()).await;
    assert_eq!(closed.unwrap(), ConnectionError::Reset);
}

/// A forwarder of datagrams between one peer and a node.
struct Wire {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Wire {
    async fn to(node: SocketAddr) -> Self {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        far.connect(node).await.unwrap();
        let address = near.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut out, mut back) = ([0; 1 << 16], [0; 1 << 16]);
            let mut peer = None;
            loop {
                tokio::select! {
                    Ok((size, from)) = near.recv_from(&mut out) => {
                        peer = Some(from);
                        if !is_cut.load(Ordering::Relaxed) {
                            // A closed port is told as an error, and means nothing.
                            let _ = far.send(&out[..size]).await;
                        }
                    }
                    received = far.recv(&mut back) => {
                        if let (Ok(size), Some(peer)) = (received, peer)
                            && !is_cut.load(Ordering::Relaxed)
                        {
                            let _ = near.send_to(&back[..size], peer).await;
                        }
                    }
                }
            }
        });
        Self {
            address,
            cut,
            _tasks: tasks,
        }
    }

    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}
