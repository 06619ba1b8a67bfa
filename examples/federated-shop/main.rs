//! A shop that calls a blog across two mains, started by one command:
//!
//! ```sh
//! cargo run --example federated-shop              # tells what happens, and ends
//! cargo run --example federated-shop -- --keep    # goes on after that, for curl
//! ```

#[path = "../federated-blog/blog.rs"]
mod blog;
mod federated;
mod shop;
mod story;

use std::error::Error;

use federated::Federated;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let keeps = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--keep") => true,
        Some(_) => return Err("usage: federated-shop [--keep]".into()),
    };
    let mut federated = Federated::start().await?;
    let told = story::tell(&mut federated).await;
    if keeps && told.is_ok() {
        let url = format!("http://{}", federated.relay_b.http_addr());
        println!("\nEverything runs until Ctrl-C. In another terminal:\n");
        println!("curl -d '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"shop.products\"}}' {url}/rpc");
        println!(
            "curl -d '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"remote_call\",\"params\":{{\"service_name\":\"blog\",\"method\":\"get\",\"args\":[1],\"trace\":true}}}}' {url}/rpc"
        );
        println!("curl {url}/federation/registry");
        tokio::signal::ctrl_c().await?;
    }
    federated.shutdown().await;
    told
}
