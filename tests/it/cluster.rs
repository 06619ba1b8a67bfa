//! Nodes find each other through a gateway and agree.

use crate::support::{Cluster, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_form_one_cluster_of_three_voters() {
    let cluster = Cluster::of(3).await;
    cluster.formed(3, 3).await;
    let ids: std::collections::BTreeSet<String> = [
        cluster.get(0, "/v1/status").await["cluster_id"].to_string(),
        cluster.get(1, "/v1/status").await["cluster_id"].to_string(),
        cluster.get(2, "/v1/status").await["cluster_id"].to_string(),
    ]
    .into();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_does_not_miss_its_gateway() {
    let mut cluster = Cluster::of(3).await;
    cluster.formed(3, 3).await;
    cluster.gateway.take().unwrap().stop().await;
    let job = cluster
        .submit(1, "rounds = 3\nfinal_dense_rounds = 1\nlocal_steps = 1")
        .await;
    cluster.finished(2, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_comes_back_as_itself() {
    let mut cluster = Cluster::of(3).await;
    cluster.formed(3, 3).await;
    let before = cluster.get(0, "/v1/members").await;
    cluster.stop(2).await;
    cluster.restart(2).await;
    wait_for("the same members", async || {
        let after = cluster
            .try_get(2, "/v1/members")
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        let members: serde_json::Value = serde_json::from_str(&after).unwrap();
        if members["members"] == before["members"] {
            Ok(())
        } else {
            Err(format!("{after}; before {before}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_nodes_at_once_on_an_empty_gateway_form_one_cluster() {
    let mut cluster = Cluster::empty().await;
    for _ in 0..50 {
        cluster.add(|_| ()).await;
    }
    cluster.formed(50, 3).await;
}
