//! Two mains that know each other, a blog that is a home of one, and a shop that is a home of the other: four relays in one
//! process, which speak to each other over QUIC as they would from four networks.
//!
//! ```text
//! blog ── relay-a ── relay-b ── shop
//! ```

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use lapwing::{Relay, RelayConfig, RelayHandle};
use lapwing_base::PeerId;

use super::{blog, shop};

/// All of them.
#[derive(Debug)]
pub(crate) struct Federated {
    pub(crate) relay_a: RelayHandle,
    pub(crate) relay_b: RelayHandle,
    /// `None` while it is away.
    pub(crate) blog: Option<RelayHandle>,
    pub(crate) shop: RelayHandle,
}

impl Federated {
    /// Starts them, on ports that are free.
    pub(crate) async fn start() -> Result<Self, Box<dyn Error>> {
        let [a, b] = free_addresses()?;
        let relay_a = Relay::start(main("relay-a", a, b)?).await?;
        let relay_b = Relay::start(main("relay-b", b, a)?).await?;
        let blog = start_blog(&relay_a).await?;
        let shop = Relay::start(home("shop", &relay_b)?).await?;
        let (service, methods) = shop::shop(shop.federation());
        shop.federation().offer(service, methods)?;
        Ok(Self {
            relay_a,
            relay_b,
            blog: Some(blog),
            shop,
        })
    }

    /// Ends the blog: everybody hears at once that it goes.
    pub(crate) async fn end_blog(&mut self) {
        if let Some(blog) = self.blog.take() {
            blog.shutdown().await;
        }
    }

    /// Starts the blog, as it was in the beginning.
    pub(crate) async fn start_blog(&mut self) -> Result<(), Box<dyn Error>> {
        self.blog = Some(start_blog(&self.relay_a).await?);
        Ok(())
    }

    /// What a relay is called.
    pub(crate) fn name(&self, peer: PeerId) -> String {
        let relays = [
            ("relay-a", Some(&self.relay_a)),
            ("relay-b", Some(&self.relay_b)),
            ("blog", self.blog.as_ref()),
            ("shop", Some(&self.shop)),
        ];
        let named = relays
            .into_iter()
            .find(|(_, relay)| relay.is_some_and(|relay| relay.peer_id() == peer));
        named.map_or_else(|| peer.to_string(), |(name, _)| name.to_owned())
    }

    /// Ends them, homes first.
    pub(crate) async fn shutdown(mut self) {
        self.end_blog().await;
        for relay in [self.shop, self.relay_b, self.relay_a] {
            relay.shutdown().await;
        }
    }
}

async fn start_blog(relay_a: &RelayHandle) -> Result<RelayHandle, Box<dyn Error>> {
    let relay = Relay::start(home("blog", relay_a)?).await?;
    let (service, methods) = blog::blog();
    relay.federation().offer(service, methods)?;
    Ok(relay)
}

/// A main at an address of ours, which is told of another one. Each has to be told of the other, or both of a token.
fn main(name: &str, at: SocketAddr, other: SocketAddr) -> Result<RelayConfig, Box<dyn Error>> {
    Ok(RelayConfig {
        name: Some(name.parse()?),
        mains: vec![format!("ws://{other}").parse()?],
        // There is enough to see without it.
        has_echo: false,
        ..RelayConfig::main(at)
    })
}

/// A home of one of them.
fn home(name: &str, main: &RelayHandle) -> Result<RelayConfig, Box<dyn Error>> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(RelayConfig {
        name: Some(name.parse()?),
        has_echo: false,
        ..RelayConfig::home(any, format!("ws://{}", main.http_addr()).parse()?)
    })
}

/// Where nothing listens at the moment, so that each main can be told of the other before it runs.
fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bound = [TcpListener::bind(any)?, TcpListener::bind(any)?];
    Ok([bound[0].local_addr()?, bound[1].local_addr()?])
}
