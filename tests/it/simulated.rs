//! What nodes in a cluster compute is what the simulation says.

use std::collections::BTreeSet;

use crate::support::Cluster;
use lapwing_base::NodeId;
use lapwing_train::simulate::{Every, Network, Setting, Simulation};
use lapwing_train::{Dataset, Knobs, Partition, backend, import_safetensors, jobfile, load};
use serde_json::Value;

/// The planners of these jobs look at no bandwidth, which a cluster measures and a simulation is given; dense rounds go
/// around a link all the same where a busy machine makes it look slow.
const JOBS: [(&str, usize); 4] = [
    // Eight: after its three dense rounds all hold the mean of all.
    (
        "planner = 'exponential'\nrounds = 12\nlocal_steps = 3\nfinal_dense_rounds = 3",
        8,
    ),
    ("algorithm = 'all-reduce'\nrounds = 20", 3),
    (
        "algorithm = 'diloco'\nrounds = 4\nlocal_steps = 5\nvalues = 'int8'",
        3,
    ),
    ("algorithm = 'choco-sgd'\nrounds = 8\nlocal_steps = 3", 3),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_a_cluster_gives_the_same_model_bit_by_bit_as_its_simulation() {
    for (job, nodes) in JOBS {
        let job = format!("{job}\nseed = 1\nevaluate_every = 0");
        // Without data of their own, nodes have parts by their numbers, as virtual nodes do.
        let mut cluster = Cluster::empty().await;
        for _ in 0..nodes {
            cluster.add(|_| ()).await;
        }
        cluster.formed(nodes, 3).await;
        let (simulated, expected) = simulate(&job, nodes);
        let mut is_same = false;
        for _ in 0..ATTEMPTS {
            let id = cluster.submit(0, &job).await;
            let document = cluster.finished(0, &id).await;
            if !is_undisturbed(&document, nodes) {
                println!(
                    "somebody was late on this busy machine, so that there is nothing to compare: once more"
                );
                continue;
            }
            let model = cluster.try_get(0, &format!("/v1/jobs/{id}/model")).await.unwrap();
            let real = parameters(&job, &model.bytes().await.unwrap());
            assert_eq!(real.len(), simulated.len(), "{job}");
            let differ = || {
                real.iter()
                    .zip(&simulated)
                    .filter(|(real, simulated)| real != simulated)
            };
            is_same = planned(&document) == expected;
            if is_same {
                assert_eq!(differ().count(), 0, "{job}");
                break;
            }
            // Only which pairs of dense rounds came first may differ, and so how sums are rounded.
            let furthest = differ()
                .map(|(real, simulated)| (real - simulated).abs())
                .fold(0.0, f32::max);
            assert!(furthest < 1e-6, "{job}: {furthest}");
            println!(
                "a link looked slow on this busy machine, so that other pairs met in dense rounds: once more"
            );
        }
        assert!(is_same, "{ATTEMPTS} times this machine was too busy: {job}");
    }
}

/// Of each job, until one is planned and carried through as it is simulated.
const ATTEMPTS: usize = 20;

/// The pairs of each round, as the places of their nodes among all.
type Pairs = Vec<BTreeSet<[usize; 2]>>;

/// What the cluster planned for a job in which everybody took part.
fn planned(document: &Value) -> Pairs {
    let number = |name: &Value| name.as_str().unwrap()[1..].parse::<u64>().unwrap();
    let rounds = document["history"].as_array().unwrap();
    let first = rounds[0]["nodes"].as_array().unwrap();
    let mut nodes: Vec<u64> = first.iter().map(|node| number(&node["node"])).collect();
    nodes.sort_unstable();
    let place = |name: &Value| nodes.binary_search(&number(name)).unwrap();
    let pairs = |round: &Value| {
        let pairs = round["pairs"].as_array().unwrap().iter();
        pairs
            .map(|pair| sorted([place(&pair[0]), place(&pair[1])]))
            .collect()
    };
    rounds.iter().map(pairs).collect()
}

fn sorted(mut pair: [usize; 2]) -> [usize; 2] {
    pair.sort_unstable();
    pair
}

/// Whether in every round everybody took part and took as many steps as the others, and all pairs merged: where a machine is
/// busy, who is late is left out, and whom the others wait for takes fewer steps.
fn is_undisturbed(document: &Value, count: usize) -> bool {
    let rounds = document["history"].as_array().unwrap();
    rounds.iter().all(|round| {
        let nodes = round["nodes"].as_array().unwrap();
        let alike = nodes.iter().all(|node| node["samples"] == nodes[0]["samples"]);
        round["merged"] == round["pairs"] && nodes.len() == count && alike
    })
}

/// The mean of the virtual nodes' models after the last round, and who met whom.
fn simulate(job: &str, nodes: usize) -> (Vec<f32>, Pairs) {
    let nodes = nodes as u64;
    let job = jobfile::parse(job).unwrap();
    let data = digits();
    let setting = Setting {
        network: Network::equal(nodes, 1000),
        partition: Partition::Iid,
        knobs: Knobs::default(),
        step_seconds: 0.0,
        overhead_seconds: 0.0,
        every: Every::Rounds(0),
        events: Vec::new(),
        backend: "plain".to_owned(),
        trains: true,
        job,
    };
    let mut simulation = Simulation::new(&setting, &data, 1).unwrap();
    for _ in 0..setting.job.rounds {
        simulation.round().unwrap();
    }
    let models: Vec<&[f32]> = simulation.models().map(|(_, model)| model).collect();
    let length = models[0].len();
    let mean = |at: usize| models.iter().map(|model| f64::from(model[at])).sum::<f64>() / models.len() as f64;
    let place = |node: NodeId| node.0 as usize - 1;
    let pairs = simulation.job().rounds.iter().map(|record| {
        let pairs = record.plan.pairs.iter();
        pairs.map(|pair| sorted(pair.nodes().map(place))).collect()
    });
    ((0..length).map(|at| mean(at) as f32).collect(), pairs.collect())
}

/// The model in a safetensors file, in the order of its layout.
fn parameters(job: &str, file: &[u8]) -> Vec<f32> {
    let (job, data) = (jobfile::parse(job).unwrap(), digits());
    let backend = backend(
        "plain",
        &job.model,
        data.shape,
        data.classes,
        job.seed,
        &job.tuning,
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    std::fs::write(&path, file).unwrap();
    import_safetensors(backend.layout(), &path).unwrap().unwrap()
}

fn digits() -> Dataset {
    load(&"digits".parse().unwrap()).unwrap()
}
