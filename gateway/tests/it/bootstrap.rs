//! One cluster, whatever is lost, killed or restarted on the way to it.

use std::path::Path;

use futures::future::join_all;
use lapwing_base::Term;
use lapwing_gateway::{
    Claim, ClaimRequest, ClusterState, Confirm, ConfirmError, Gateway, GatewayConfig, Registration,
};
use tempfile::TempDir;

use crate::support::{CLUSTER, Http, Node, OTHER, config, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_nodes_at_once_exactly_one_is_granted() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let nodes: Vec<Node> = (0..50).map(|_| Node::new(&[gateway.local_addr()])).collect();
    let claims = join_all(nodes.iter().map(async |node| {
        node.client.register(node.registration()).await.unwrap();
        node.client.claim(1).await.unwrap()
    }));
    let claims = claims.await;
    let granted = claims
        .iter()
        .filter(|claim| matches!(claim, Claim::Granted { epoch: 1, .. }));
    assert_eq!(granted.count(), 1);
    let pending = claims
        .iter()
        .filter(|claim| matches!(claim, Claim::Pending { .. }));
    assert_eq!(pending.count(), 49);
    gateway.stop().await;
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_answered_the_same_again() {
    let (_dir, gateway, node) = one_node().await;
    let http = Http::new(gateway.local_addr());
    let request = node.sign(ClaimRequest {
        peer_id: node.peer_id(),
        incarnation: 1,
        seq: 50,
    });
    let first = http.post("/v1/bootstrap/claim", &request).await;
    let same = http.post("/v1/bootstrap/claim", &request).await;
    for (status, claim) in [first, same] {
        assert_eq!((status.as_u16(), &claim["status"]), (200, &"granted".into()));
        assert_eq!(claim["epoch"], 1);
    }
    assert_eq!(epoch(node.client.claim(1).await.unwrap()), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_confirmation_of_an_old_epoch_is_superseded() {
    let (_dir, gateway, node) = one_node().await;
    assert_eq!(epoch(node.client.claim(1).await.unwrap()), 1);
    // The claimant dies and comes back: its new life gets a new epoch, and its old one confirms too late.
    let reborn = Registration {
        incarnation: 2,
        ..node.registration()
    };
    node.client.register(reborn).await.unwrap();
    assert_eq!(epoch(node.client.claim(2).await.unwrap()), 2);
    let late = node.client.confirm(confirm(1)).await.unwrap_err();
    assert!(
        matches!(
            late,
            ConfirmError::Superseded {
                epoch: 2,
                cluster_id: None
            }
        ),
        "{late}"
    );
    node.client.confirm(confirm(2)).await.unwrap();
    node.client.confirm(confirm(2)).await.unwrap();
    let other = Confirm {
        cluster_id: OTHER,
        ..confirm(2)
    };
    let second = node.client.confirm(other).await.unwrap_err();
    assert!(
        matches!(
            second,
            ConfirmError::Superseded {
                cluster_id: Some(CLUSTER),
                ..
            }
        ),
        "{second}"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn what_was_answered_survives_a_crash_at_every_step() {
    let (dir, gateway, node) = one_node().await;
    let lineage = node.client.discover().await.unwrap().lineage;

    assert_eq!(epoch(node.client.claim(1).await.unwrap()), 1);
    let claimed = crash_image(dir.path());
    node.client.confirm(confirm(1)).await.unwrap();
    let confirmed = crash_image(dir.path());
    node.client.register(node.membership(7)).await.unwrap();
    let led = crash_image(dir.path());
    gateway.stop().await;

    // It died after the grant: the claim stands, and the epoch goes on from there.
    let gateway = start(claimed.path()).await;
    let (holder, newcomer) = (
        registered(&gateway, Some(&node)).await,
        registered(&gateway, None).await,
    );
    assert!(matches!(
        newcomer.client.claim(1).await.unwrap(),
        Claim::Pending { .. }
    ));
    assert_eq!(epoch(holder.client.claim(1).await.unwrap()), 1);
    let reborn = Registration {
        incarnation: 2,
        ..holder.registration()
    };
    holder.client.register(reborn).await.unwrap();
    assert_eq!(epoch(holder.client.claim(2).await.unwrap()), 2);
    gateway.stop().await;

    // It died after the confirmation: nobody is ever granted again, and the founder leads.
    let gateway = start(confirmed.path()).await;
    let newcomer = registered(&gateway, None).await;
    let formed = Claim::Formed { cluster_id: CLUSTER };
    assert_eq!(newcomer.client.claim(1).await.unwrap(), formed);
    let known = newcomer.client.discover().await.unwrap();
    assert_eq!((known.lineage, known.cluster_id), (lineage, Some(CLUSTER)));
    assert_eq!(known.leader.unwrap().peer_id, node.peer_id());
    gateway.stop().await;

    // It died after a newer hint.
    let gateway = start(led.path()).await;
    let newcomer = registered(&gateway, None).await;
    assert_eq!(newcomer.client.discover().await.unwrap().term, Some(Term(7)));
    gateway.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_registered_nodes() {
    let (dir, gateway, node) = one_node().await;
    gateway.stop().await;
    let gateway = start(dir.path()).await;
    let newcomer = registered(&gateway, None).await;
    let known = newcomer.client.discover().await.unwrap();
    assert!(known.nodes.iter().any(|known| known.peer_id == node.peer_id()));
    gateway.stop().await;
}

#[tokio::test]
async fn an_empty_directory_is_a_new_lineage_that_grants_at_once() {
    let (_dir, gateway, node) = one_node().await;
    let before = node.client.discover().await.unwrap();
    assert_eq!(before.cluster, ClusterState::None);
    node.client.claim(1).await.unwrap();
    assert_eq!(
        node.client.discover().await.unwrap().cluster,
        ClusterState::Forming
    );
    gateway.stop().await;
    let (_dir, gateway, node) = one_node().await;
    assert_ne!(node.client.discover().await.unwrap().lineage, before.lineage);
    assert_eq!(epoch(node.client.claim(1).await.unwrap()), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn without_genesis_claims_are_refused_until_a_member_comes() {
    let dir = tempfile::tempdir().unwrap();
    let restored = GatewayConfig {
        no_genesis: true,
        ..config(dir.path())
    };
    let gateway = Gateway::start(restored).await.unwrap();
    let newcomer = registered(&gateway, None).await;
    assert!(matches!(
        newcomer.client.claim(1).await.unwrap(),
        Claim::Refused { .. }
    ));
    let member = Node::new(&[gateway.local_addr()]);
    let answer = member.client.register(member.membership(3)).await.unwrap();
    assert_eq!(answer.cluster, ClusterState::Formed);
    let formed = Claim::Formed { cluster_id: CLUSTER };
    assert_eq!(newcomer.client.claim(1).await.unwrap(), formed);
    gateway.stop().await;
}

#[tokio::test]
async fn a_claim_at_a_gateway_that_forgot_the_node_registers_it_again() {
    let (_dir, gateway, node) = one_node().await;
    gateway.stop().await;
    let empty = tempfile::tempdir().unwrap();
    let again = GatewayConfig {
        listen: gateway_addr(&node),
        ..config(empty.path())
    };
    let gateway = Gateway::start(again).await.unwrap();
    assert_eq!(epoch(node.client.claim(1).await.unwrap()), 1);
    assert_eq!(node.client.discover().await.unwrap().nodes.len(), 1);
    gateway.stop().await;
}

async fn one_node() -> (TempDir, Gateway, Node) {
    let dir = tempfile::tempdir().unwrap();
    let gateway = start(dir.path()).await;
    let node = registered(&gateway, None).await;
    (dir, gateway, node)
}

/// A node that is registered at the gateway: a new one, or the same identity as another.
async fn registered(gateway: &Gateway, identity: Option<&Node>) -> Node {
    let node = match identity {
        Some(node) => node.at(gateway.local_addr()),
        None => Node::new(&[gateway.local_addr()]),
    };
    node.client.register(node.registration()).await.unwrap();
    node
}

/// What a crash at this moment would leave on the disk.
fn crash_image(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, image.path().join(path.file_name().unwrap())).unwrap();
    }
    image
}

fn gateway_addr(node: &Node) -> std::net::SocketAddr {
    node.gateways[0]
}

fn epoch(claim: Claim) -> u64 {
    match claim {
        Claim::Granted { epoch, .. } => epoch,
        other => panic!("{other:?}"),
    }
}

fn confirm(epoch: u64) -> Confirm {
    Confirm {
        epoch,
        cluster_id: CLUSTER,
        term: Term(1),
    }
}
