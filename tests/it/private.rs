//! Jobs that promise differential privacy: what nodes show of the promise, and who cannot keep it.

use crate::support::{Cluster, wait_for};
use serde_json::Value;

const JOB: &str = "rounds = 20\nlocal_steps = 2\nbatch = 64\nlr = 0.02\ncompression = 4\nfinal_dense_rounds = 2\n\
    evaluate_every = 10\ndp_noise = 1.0\ndp_norm = 0.5";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_private_job_has_told_is_shown_by_status_and_by_its_models_card_also_after_a_restart() {
    let mut cluster = Cluster::of(2).await;
    let other = cluster.add(|config| config.backend = "burn".to_owned()).await;
    cluster.formed(3, 3).await;
    let refused = cluster
        .post(0, "/v1/jobs", format!("model = 'external'\n{JOB}"))
        .await;
    let refused = refused.text().await.unwrap();
    assert!(
        refused.contains("`dp_noise` needs gradients of single samples"),
        "{refused}"
    );

    let job = cluster.submit(0, JOB).await;
    wait_for("the reason of the node with another backend", async || {
        let status = cluster.get(other, "/v1/status").await;
        let problem = status["training"]["problem"].as_str().unwrap_or_default();
        let told = problem.contains("`--backend plain`").then_some(());
        told.ok_or_else(|| status["training"].to_string())
    })
    .await;
    let document = cluster.finished(0, &job).await;
    assert_eq!(document["spec"]["dp_noise"], 1.0);
    for round in document["history"].as_array().unwrap() {
        for node in round["nodes"].as_array().unwrap() {
            assert_eq!(node["loss"], Value::Null, "a loss tells of the samples: {round}");
        }
    }

    let epsilon = shown(&cluster, 0).await;
    assert!(epsilon > 0.0 && epsilon < 20.0, "{epsilon}");
    let card = card(&cluster, 0, &job).await;
    assert_eq!(card["epsilon"], epsilon.to_string());
    assert_eq!(card["delta"], "0.00001");
    assert_eq!(
        (&card["algorithm"], &card["rounds"]),
        (&"default".into(), &"20".into())
    );
    assert_eq!((&card["data"], &card["model"]), (&"digits".into(), &"mlp".into()));
    let sent: u64 = card["bytes_sent"].as_str().unwrap().parse().unwrap();
    let rounds = document["history"].as_array().unwrap().iter();
    let nodes = rounds.flat_map(|round| round["nodes"].as_array().unwrap());
    assert_eq!(
        sent,
        nodes
            .map(|node| node["sent_bytes"].as_u64().unwrap())
            .sum::<u64>()
    );
    let last = document["evaluations"].as_array().unwrap().last().unwrap();
    assert_eq!(card["accuracy"], last["averaged_accuracy"].to_string());
    assert!(card["job_file"].as_str().unwrap().contains("dp_noise = 1.0"));

    cluster.stop(0).await;
    cluster.restart(0).await;
    assert_eq!(shown(&cluster, 0).await, epsilon, "a restart forgets no step");
}

/// The epsilon in a node's status, once there is one.
async fn shown(cluster: &Cluster, place: usize) -> f64 {
    wait_for("an epsilon", async || {
        let answer = cluster
            .try_get(place, "/v1/status")
            .await
            .map_err(|error| error.to_string())?;
        let status: Value = answer.json().await.map_err(|error| error.to_string())?;
        let epsilon = status["training"]["epsilon"].as_f64();
        epsilon.ok_or_else(|| status["training"].to_string())
    })
    .await
}

/// What the exported model says of itself.
async fn card(cluster: &Cluster, place: usize, job: &str) -> Value {
    let exported = cluster
        .try_get(place, &format!("/v1/jobs/{job}/model"))
        .await
        .unwrap();
    let exported = exported.bytes().await.unwrap();
    let (length, rest) = exported.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&rest[..length]).unwrap();
    header["__metadata__"].clone()
}
