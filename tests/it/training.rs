//! Nodes train together: plans, exchanges, merges, evaluations, and the model at the end.

use crate::support::{Cluster, wait_for};
use lapwing::RateRules;
use serde_json::Value;

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

#[tokio::test(flavor = "multi_thread")]
async fn throttling_an_uplink_changes_the_pairs_that_are_planned_after_it() {
    // Thresholds go by bandwidths alone, where the adaptive planner also goes by how long rounds take, which a busy
    // machine makes alike. Whole models, since what an exchange does not feel it does not avoid.
    const JOB: &str = "planner = \"thresholds\"\nrounds = 40\nlocal_steps = 1\ncompression = 1\nfinal_dense_rounds = 1\nevaluate_every = 0";
    let slow = RateRules::new("1mbit".parse::<lapwing::RateRule>()).unwrap();
    let mut cluster = Cluster::of(4).await;
    cluster.formed(4, 3).await;
    // One slow node has to meet a fast one; two meet each other, and leave the fast link to the fast.
    cluster.stop(2).await;
    cluster
        .restart_with(2, |config| config.max_upload = slow.clone())
        .await;
    cluster.formed(4, 3).await;
    measure_links(&cluster, JOB, &[2]).await;
    let job = cluster.submit(0, JOB).await;
    let before = meetings(&cluster.finished(0, &job).await, &slow_members(&cluster).await);
    cluster.stop(3).await;
    cluster.restart_with(3, |config| config.max_upload = slow).await;
    cluster.formed(4, 3).await;
    measure_links(&cluster, JOB, &[2, 3]).await;
    let job = cluster.submit(0, JOB).await;
    let after = meetings(&cluster.finished(0, &job).await, &slow_members(&cluster).await);
    assert!(
        after > before,
        "the slow two met {before} times before the second was slow, and {after} times after"
    );
}

/// Lets everybody meet, since links are made on demand, until every node has measured its links, and those of
/// the slow ones are slow.
async fn measure_links(cluster: &Cluster, job: &str, slow: &[usize]) {
    let job = cluster.submit(0, job).await;
    cluster.finished(0, &job).await;
    for place in 0..4 {
        wait_for(&format!("the bandwidths of node {place}"), async || {
            let status = cluster.get(place, "/v1/status").await;
            let peers = status["network"]["peers"].as_array().unwrap();
            let speeds: Vec<f64> = peers
                .iter()
                .filter_map(|peer| peer["bandwidth_mbit_s"].as_f64())
                .collect();
            let is_slow = slow.contains(&place);
            if speeds.len() == 3 && speeds.iter().all(|speed| (*speed < 2.0) == is_slow) {
                Ok(())
            } else {
                Err(format!("{speeds:?}"))
            }
        })
        .await;
    }
}

/// The numbers of nodes 2 and 3.
async fn slow_members(cluster: &Cluster) -> [Value; 2] {
    let members = cluster.get(0, "/v1/members").await;
    let number = |name: &str| {
        let list = members["members"].as_array().unwrap();
        list.iter().find(|member| member["name"] == name).unwrap()["id"].clone()
    };
    [number("node-2"), number("node-3")]
}

/// How often two members were paired once the links had been measured.
fn meetings(job: &Value, members: &[Value; 2]) -> usize {
    let rounds = job["history"].as_array().unwrap();
    let pairs = rounds
        .iter()
        .skip(15)
        .flat_map(|round| round["pairs"].as_array().unwrap());
    pairs
        .filter(|pair| {
            members
                .iter()
                .all(|member| pair.as_array().unwrap().contains(member))
        })
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn algorithms_whose_nodes_meet_partners_run_as_they_are_simulated() {
    let cluster = Cluster::of(3).await;
    cluster.formed(3, 3).await;
    for algorithm in ["noloco", "d-psgd", "dcd-psgd", "choco-sgd", "local"] {
        let job = format!("algorithm = \"{algorithm}\"\nrounds = 4\nlocal_steps = 10\nevaluate_every = 0");
        let job = cluster.submit(0, &job).await;
        let document = cluster.finished(0, &job).await;
        let rounds = document["history"].as_array().unwrap();
        assert_eq!(rounds.len(), 4, "{algorithm}");
        let pairs = match algorithm {
            "local" => 0,
            "noloco" => 1,
            _ => 3,
        };
        for round in rounds {
            assert_eq!(
                round["pairs"].as_array().unwrap().len(),
                pairs,
                "{algorithm}: {round}"
            );
        }
        // A round that a busy machine does not end in time is merged by nobody.
        let is_merged = |round: &Value| round["merged"] == round["pairs"];
        assert!(rounds.iter().any(is_merged), "{algorithm}: {rounds:?}");
        let last = document["evaluations"].as_array().unwrap().last().unwrap();
        assert!(
            last["averaged_accuracy"].as_f64().unwrap() > 0.3,
            "{algorithm}: {last}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn algorithms_whose_nodes_make_a_mean_together_run_as_they_are_simulated() {
    let cluster = Cluster::of(3).await;
    cluster.formed(3, 3).await;
    for (algorithm, settings) in [
        ("all-reduce", "rounds = 40\nlr = 0.1"),
        ("diloco", "rounds = 5\nlocal_steps = 10"),
        ("fedavg", "rounds = 5\nlocal_steps = 10"),
        ("s-fedavg", "rounds = 8\nlocal_steps = 10\ncompression = 2"),
    ] {
        let job = format!("algorithm = \"{algorithm}\"\n{settings}\nevaluate_every = 0");
        let job = cluster.submit(0, &job).await;
        let document = cluster.finished(0, &job).await;
        let rounds = document["history"].as_array().unwrap();
        let is_merged = |round: &&Value| {
            round["merged"] == round["pairs"] && !round["pairs"].as_array().unwrap().is_empty()
        };
        // A round that a busy machine does not end in time is merged by nobody.
        let merged = rounds.iter().filter(is_merged).count();
        assert!(merged * 2 > rounds.len(), "{algorithm}: {merged} of {rounds:?}");
        let bytes = document["parameters"].as_u64().unwrap() * 4;
        for node in rounds.iter().rfind(is_merged).unwrap()["nodes"]
            .as_array()
            .unwrap()
        {
            let sent = node["sent_bytes"].as_u64().unwrap();
            assert!(sent > bytes / 3, "{algorithm}: {node}");
        }
        let last = document["evaluations"].as_array().unwrap().last().unwrap();
        assert!(
            last["averaged_accuracy"].as_f64().unwrap() > 0.3,
            "{algorithm}: {last}"
        );
        if algorithm == "all-reduce" {
            all_are_as_good(last, 3);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_an_all_reduce_late_has_the_same_model_as_all_others() {
    let mut cluster = Cluster::of(2).await;
    cluster.formed(2, 2).await;
    let job = cluster
        .submit(
            0,
            "algorithm = \"all-reduce\"\nrounds = 150\nlr = 0.1\nevaluate_every = 0",
        )
        .await;
    let late = cluster
        .add(|config| config.data = Some("digits#partition=iid,seed=1,part=1/2".to_owned()))
        .await;
    let document = cluster.finished(late, &job).await;
    let rounds = document["history"].as_array().unwrap();
    assert_eq!(rounds.last().unwrap()["nodes"].as_array().unwrap().len(), 3);
    all_are_as_good(document["evaluations"].as_array().unwrap().last().unwrap(), 3);
}

/// Models that are bit-identical have the same accuracy.
fn all_are_as_good(evaluation: &Value, nodes: usize) {
    let local: Vec<f64> = evaluation["local"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_f64)
        .collect();
    let same = local.iter().all(|accuracy| *accuracy == local[0]);
    assert!(local.len() == nodes && same, "{evaluation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn saps_as_published_can_be_chosen() {
    let cluster = Cluster::of(2).await;
    cluster.formed(2, 2).await;
    let job = cluster
        .submit(
            1,
            "algorithm = \"saps\"\nrounds = 4\nlocal_steps = 2\ncompression = 10\nfinal_dense_rounds = 1",
        )
        .await;
    let document = cluster.finished(0, &job).await;
    assert_eq!(document["spec"]["algorithm"], "saps");
    assert_eq!(document["spec"]["values"], "f32");
    let round = &document["history"][0];
    let parameters = document["parameters"].as_u64().unwrap();
    let sent = round["nodes"][0]["sent_bytes"].as_u64().unwrap();
    // Values alone, four bytes each, for about a tenth of the coordinates.
    assert!(
        (parameters * 4 / 20..parameters * 4 / 5).contains(&sent),
        "{sent} of {parameters} parameters"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_late_takes_part_and_holds_the_model_at_the_end() {
    let mut cluster = Cluster::of(2).await;
    cluster.formed(2, 2).await;
    let job = cluster
        .submit(
            0,
            "rounds = 300\nlocal_steps = 10\ncompression = 4\nfinal_dense_rounds = 3\nevaluate_every = 0",
        )
        .await;
    let late = cluster
        .add(|config| config.data = Some("digits#partition=iid,seed=1,part=1/2".to_owned()))
        .await;
    let document = cluster.finished(late, &job).await;
    assert_eq!(
        document["manifest"]["holders"].as_array().unwrap().len(),
        3,
        "{}",
        document["manifest"]
    );
    let model = cluster
        .try_get(late, &format!("/v1/jobs/{job}/model"))
        .await
        .unwrap();
    assert!(model.status().is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_other_data_says_so_and_holds_nobody_up() {
    let mut cluster = Cluster::of(2).await;
    let dir = tempfile::tempdir().unwrap();
    let table = dir.path().join("other.csv");
    std::fs::write(&table, "1,2,0\n3,4,1\n".repeat(50)).unwrap();
    let odd = cluster
        .add(|config| config.data = Some(format!("csv:{}", table.display())))
        .await;
    cluster.formed(3, 3).await;
    let job = cluster
        .submit(
            0,
            "rounds = 6\nlocal_steps = 2\ncompression = 4\nfinal_dense_rounds = 1\nevaluate_every = 0",
        )
        .await;
    wait_for("the odd node's problem", async || {
        let status = cluster.get(odd, "/v1/status").await;
        let problem = status["training"]["problem"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if problem.contains("the job trains on `digits`") {
            Ok(())
        } else {
            Err(status["training"].to_string())
        }
    })
    .await;
    cluster.finished(0, &job).await;
}
