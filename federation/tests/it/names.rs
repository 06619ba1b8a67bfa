//! Names that two nodes want.

use std::sync::Arc;

use lapwing_base::Role;
use lapwing_federation::{AuditEvent, NodeAddress, NodeName};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::Says;
use crate::http::Edge;
use crate::nodes::{Node, PATIENCE, call, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_name_is_taken_is_told_by_whom_and_called_by_its_id_until_it_is_free() {
    let (audit, mut events) = mpsc::channel(100);
    let main = Node::start_with("main", Role::Main, |config| config.audit = Some(audit)).await;
    let [first, second] = [
        Node::start("alice", Role::Home).await,
        Node::start("alice", Role::Home).await,
    ];
    first.offer("who", Arc::new(Says("first")));
    second.offer("who", Arc::new(Says("second")));
    first.name_mains(&[&main]);
    eventually("the first has its name", || main.offers("who").len() == 1).await;
    second.name_mains(&[&main]);
    let edge = Edge::of(&second).await;
    let holder = first.id().to_string();
    let is_told = |document: &Value| document["name_taken_by"] == holder.as_str();
    let health = edge.until("/federation/health", is_told).await;
    assert_eq!(health["status"], "healthy", "it does its part");
    edge.until("/federation/peers", |peers| is_told(&peers["peers"][0]))
        .await;
    let says = async |address: NodeAddress| {
        let mut by_name = call("who", "say", "[]");
        by_name.address = Some(address);
        main.call(by_name).await.outcome
    };
    let by_name = || "alice".parse::<NodeAddress>().unwrap();
    assert_eq!(says(by_name()).await, Ok("\"first\"".to_owned()));
    assert_eq!(
        says(second.id().to_string().parse().unwrap()).await,
        Ok("\"second\"".to_owned())
    );
    let names: Vec<Option<NodeName>> = main.offers("who").into_iter().map(|one| one.node).collect();
    assert_eq!(names.iter().flatten().count(), 1, "{names:?}");
    let written = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(AuditEvent::NameTaken { peer, holder, .. }) = events.recv().await {
                break (peer, holder);
            }
        }
    });
    assert_eq!(written.await.unwrap(), (second.id(), first.id()));
    // Whoever says something after the holder has gone has the name.
    first.stop().await;
    second.withdraw("who");
    second.offer("who", Arc::new(Says("second")));
    edge.until("/federation/health", |health| health["name_taken_by"].is_null())
        .await;
    eventually("it is called by its name", || {
        main.offers("who").iter().any(|one| one.node.is_some())
    })
    .await;
    assert_eq!(says(by_name()).await, Ok("\"second\"".to_owned()));
    edge.stop().await;
    second.stop().await;
    main.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_named_with_the_ending_of_its_kind_is_called_with_it_and_without() {
    let main = Node::start("relay-a.main", Role::Main).await;
    let alice = Node::start("alice.home", Role::Home).await;
    alice.offer("who", Arc::new(Says("alice")));
    alice.name_mains(&[&main]);
    eventually("the main knows the service", || main.offers("who").len() == 1).await;
    for address in ["alice", "alice.home", "alice.home@relay-a"] {
        let mut by_name = call("who", "say", "[]");
        by_name.address = Some(address.parse().unwrap());
        let outcome = main.call(by_name).await.outcome;
        assert_eq!(outcome, Ok("\"alice\"".to_owned()), "{address}");
    }
    let edge = Edge::of(&main).await;
    let registry = edge.get("/registry").await;
    assert_eq!(registry["node_address"], "relay-a.main");
    assert_eq!(registry["servers"]["who"]["node_address"], "alice.home@relay-a");
    edge.stop().await;
    alice.stop().await;
    main.stop().await;
}
