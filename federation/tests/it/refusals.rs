//! Whoever is not let in, and what is written down of it.

use lapwing_base::Role;
use lapwing_federation::{AuditEvent, Boundary, Policy};
use tokio::sync::mpsc;

use crate::http::Edge;
use crate::nodes::{ELSEWHERE, Node, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_only_one_side_has_is_written_down_once_however_often_it_is_tried() {
    let (to, mut of_bridging) = mpsc::channel(100);
    let bridging = Node::start_with("bridging", Role::Main, |config| {
        config.audit = Some(to);
        config.policy = Policy {
            boundary: Boundary::Bridged([ELSEWHERE].into()),
            ..Policy::default()
        };
    })
    .await;
    let (to, mut of_strict) = mpsc::channel(100);
    let strict = Node::start_with("strict", Role::Main, |config| config.audit = Some(to)).await;
    strict.belong_elsewhere();
    bridging.name_mains(&[&strict]);
    strict.name_mains(&[&bridging]);
    let edge = Edge::of(&bridging).await;
    // The one that lets the other in has a session each time, which ends at once.
    edge.until("/federation/peers", |document| {
        document["peers"][0]["reconnects"].as_u64() >= Some(3)
    })
    .await;
    assert_eq!(strict.federation.neighbours(), []);
    let first = tokio::time::timeout(PATIENCE, async {
        (of_bridging.recv().await, of_strict.recv().await)
    });
    let (admitted, refused) = first.await.unwrap();
    assert!(
        matches!(&admitted, Some(AuditEvent::Admitted { peer, is_foreign: true, .. }) if *peer == strict.id()),
        "{admitted:?}"
    );
    assert!(
        matches!(&refused, Some(AuditEvent::Refused { peer, reason }) if *peer == bridging.id() && reason.contains("--bridge")),
        "{refused:?}"
    );
    let again = (of_bridging.try_recv().ok(), of_strict.try_recv().ok());
    assert_eq!(again, (None, None));
    edge.stop().await;
    bridging.stop().await;
    strict.stop().await;
}
