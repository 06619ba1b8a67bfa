//! Nodes train together: plans, exchanges, merges, evaluations, and the model at the end.

use crate::support::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_train_and_merge_until_both_hold_the_same_model() {
    let cluster = Cluster::of(2).await;
    cluster.formed(2, 2).await;
    let job = cluster
        .submit(
            0,
            "rounds = 12\nlocal_steps = 5\ncompression = 4\nfinal_dense_rounds = 2\nevaluate_every = 5",
        )
        .await;
    let document = cluster.finished(1, &job).await;
    let rounds = document["history"].as_array().unwrap();
    assert_eq!(rounds.len(), 12);
    for round in rounds {
        assert_eq!(
            round["merged"], round["pairs"],
            "every pair of an undisturbed round merges: {round}"
        );
    }
    let evaluations = document["evaluations"].as_array().unwrap();
    let last = evaluations.last().unwrap();
    assert!(last["averaged_accuracy"].as_f64().unwrap() > 0.5, "{last}");
    assert_eq!(document["manifest"]["holders"].as_array().unwrap().len(), 2);

    let mut models = Vec::new();
    for place in 0..2 {
        let response = cluster
            .try_get(place, &format!("/v1/jobs/{job}/model"))
            .await
            .unwrap();
        assert!(response.status().is_success());
        models.push(response.bytes().await.unwrap());
    }
    assert!(!models[0].is_empty());
}
