//! Models that users bring: a trainer of their own as a child process of each node. The trainers here are a few lines of
//! shell, so that these tests need nothing; `processes.rs` has one in Python.

use crate::support::{Cluster, wait_for};
use serde_json::Value;

/// Has two parameters that it sets to one, whatever it is given, and is right in three of four cases.
fn trainer(shape: &str) -> String {
    let open = r#"model=$(printf '%s' "$line" | sed 's/.*"model":"\([^"]*\)".*/\1/')"#;
    let ones = r#"printf '\000\000\200\077\000\000\200\077' > "$model""#;
    format!(
        "echo '{{\"type\":\"hello\",\"protocol\":1,\"init\":\"node\",\"layout\":[[\"w\",{shape}]]}}'
        while read -r line; do case \"$line\" in
            *'\"open\"'*) {open}; echo '{{\"type\":\"opened\"}}';;
            *'\"train\"'*) {ones}; echo '{{\"type\":\"trained\",\"loss\":0.5,\"samples\":8}}';;
            *'\"evaluate\"'*) echo '{{\"type\":\"evaluated\",\"accuracy\":0.75}}';;
            *'\"save\"'*) echo '{{\"type\":\"saved\",\"bytes\":0}}';;
            *'\"restore\"'*) echo '{{\"type\":\"restored\"}}';;
            *'\"stop\"'*) exit 0;;
        esac; done"
    )
}

const JOB: &str = "model = 'external'\nrounds = 8\nlocal_steps = 2\ncompression = 1\nfinal_dense_rounds = 2\nevaluate_every = 4";

#[tokio::test(flavor = "multi_thread")]
async fn nodes_train_what_their_own_program_holds_and_one_with_another_model_is_told_so() {
    let mut cluster = Cluster::empty().await;
    for shape in ["[1,2]", "[1,2]", "[2,1]"] {
        cluster.add(|config| config.trainer = Some(trainer(shape))).await;
    }
    let without = cluster.add(|_| ()).await;
    cluster.formed(4, 3).await;

    let refused = cluster.post(without, "/v1/jobs", JOB.to_owned()).await;
    assert_eq!(refused.status().as_u16(), 409);
    let refused = refused.text().await.unwrap();
    assert!(refused.contains("--trainer"), "{refused}");

    let job = cluster.submit(0, JOB).await;
    for (place, told) in [
        (2, "other names or shapes"),
        (without, "start this node with --trainer"),
    ] {
        wait_for(&format!("the reason of node {place}"), async || {
            let status = cluster.get(place, "/v1/status").await;
            let problem = status["training"]["problem"].as_str().unwrap_or_default();
            problem
                .contains(told)
                .then_some(())
                .ok_or_else(|| status["training"].to_string())
        })
        .await;
    }
    let document = cluster.finished(0, &job).await;
    let model = document["spec"]["model"]
        .as_str()
        .or_else(|| document["model"].as_str());
    assert!(
        model.is_some_and(|model| model.starts_with("external:") && model.len() == 25),
        "all nodes are told which model is meant: {document}"
    );
    let evaluated = document["evaluations"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(evaluated["averaged_accuracy"], 0.75);
    let holders: &Vec<Value> = document["manifest"]["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 2, "those that could: {document}");

    let exported = cluster
        .try_get(1, &format!("/v1/jobs/{job}/model"))
        .await
        .unwrap();
    let exported = exported.bytes().await.unwrap();
    let (header, values) = exported.split_at(exported.len() - 8);
    assert_eq!(*values, [0, 0, 128, 63, 0, 0, 128, 63]);
    let header = String::from_utf8_lossy(header);
    assert!(
        header.contains("\"w\":{\"dtype\":\"F32\",\"shape\":[1,2]"),
        "{header}"
    );
}
