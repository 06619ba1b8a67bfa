//! A blog that everybody who is connected with a main can call, from behind any NAT.
//!
//! ```sh
//! lapwing relay --server --port 18080 --node-id relay-a.com
//! cargo run --example federated-blog -- ws://127.0.0.1:18080
//! curl -d '{"jsonrpc":"2.0","id":1,"method":"blog.list"}' http://127.0.0.1:18080/rpc
//! ```
//!
//! It ends with Ctrl-C.

mod blog;

use std::error::Error;

use lapwing::{Relay, RelayConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let main = std::env::args()
        .nth(1)
        .ok_or("usage: federated-blog URL-OF-A-MAIN, such as ws://127.0.0.1:18080")?;
    let config = RelayConfig {
        name: Some("blog".parse()?),
        ..RelayConfig::home("127.0.0.1:0".parse()?, main.parse()?)
    };
    let relay = Relay::start(config).await?;
    let (service, methods) = blog::blog();
    relay.federation().offer(service, methods)?;
    println!(
        "the blog is offered; JSON-RPC at http://{}/rpc too",
        relay.http_addr()
    );
    tokio::signal::ctrl_c().await?;
    relay.shutdown().await;
    Ok(())
}
