//! Embeds a gateway, and joins it as any program can: discover, stay registered, say who leads, leave.
//!
//! Run it with `cargo run -p lapwing-gateway --example discover`.

use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::Arc;

use lapwing_base::{Keypair, Role};
use lapwing_gateway::{Client, ClientConfig, Gateway, GatewayConfig, Registration};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let data_dir = tempfile::tempdir()?;
    let gateway = Gateway::start(GatewayConfig {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        data_dir: data_dir.path().to_owned(),
        ..GatewayConfig::default()
    })
    .await?;
    println!("a gateway serves at http://{}", gateway.local_addr());

    let mut clients = Vec::new();
    for name in ["alice", "bob"] {
        let keypair = Keypair::generate_ed25519();
        let peer_id = keypair.public().to_peer_id();
        let config = ClientConfig {
            gateways: vec![format!("http://{}", gateway.local_addr())],
            ..ClientConfig::default()
        };
        let client = Arc::new(Client::new(config, keypair)?);
        let answer = client
            .discover_cluster(Registration {
                peer_id,
                addrs: vec!["/ip4/127.0.0.1/udp/4001/quic-v1".parse()?],
                name: name.to_owned(),
                capabilities: vec!["train".to_owned()],
                role: Role::Main,
                cluster_id: None,
                term: None,
                leader: None,
                incarnation: 1,
                seq: 0,
            })
            .await?;
        println!(
            "{name} finds {} other nodes, cluster {:?}",
            answer.nodes.len(),
            answer.cluster
        );
        if answer.nodes.is_empty() {
            println!("{name} asks to found the cluster: {:?}", client.claim(1).await?);
        }
        clients.push(client);
    }
    for client in clients {
        client.shutdown().await;
    }
    gateway.stop().await;
    Ok(())
}
