//! Nodes and a gateway as processes of their own: killed without warning, and started again.

use crate::support::{http, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A gateway and nodes as processes. Killed and gone when it is dropped.
pub(crate) struct Processes {
    dir: TempDir,
    gateway: Option<Child>,
    gateway_url: String,
    pub(crate) nodes: Vec<Option<Child>>,
    /// What each node is started with beside its place.
    arguments: Vec<Vec<String>>,
    pub(crate) http: reqwest::Client,
}

impl Processes {
    async fn of(count: usize) -> Self {
        Self::each(vec![Vec::new(); count], count).await
    }

    /// As many nodes as there are lists of arguments, which share so many parts of the digits.
    pub(crate) async fn each(arguments: Vec<Vec<String>>, parts: usize) -> Self {
        let count = arguments.len();
        let dir = tempfile::tempdir().unwrap();
        let gateway = lapwing(&dir.path().join("gateway.log"))
            .args(["gateway", "--host", "127.0.0.1", "--port", "0", "--data-dir"])
            .arg(dir.path().join("gateway"))
            .spawn()
            .unwrap();
        let gateway_url = address(&dir.path().join("gateway/gateway.addr")).await;
        let mut processes = Self {
            dir,
            gateway: Some(gateway),
            gateway_url,
            nodes: Vec::new(),
            arguments,
            http: http(),
        };
        for place in 0..count {
            processes.nodes.push(None);
            processes.start(place, parts);
        }
        for place in 0..count {
            processes.up(place).await;
        }
        processes
    }

    pub(crate) fn data_dir(&self, place: usize) -> PathBuf {
        self.dir.path().join(format!("node-{place}"))
    }

    pub(crate) fn log(&self, place: usize) -> PathBuf {
        self.dir.path().join(format!("node-{place}.log"))
    }

    pub(crate) fn start(&mut self, place: usize, parts: usize) {
        assert!(self.nodes[place].is_none(), "it runs");
        let child = lapwing(&self.log(place))
            .args([
                "node",
                "--listen",
                "/ip4/127.0.0.1/udp/0/quic-v1",
                "--gateway",
                &self.gateway_url,
            ])
            .args(["--name", &format!("node-{place}")])
            .args(&self.arguments[place])
            .args([
                "--data",
                &format!("digits#partition=iid,seed=1,part={}/{parts}", place % parts + 1),
            ])
            .arg("--data-dir")
            .arg(self.data_dir(place))
            .spawn()
            .unwrap();
        self.nodes[place] = Some(child);
    }

    pub(crate) async fn up(&self, place: usize) {
        wait_for(&format!("node {place} to answer"), async || {
            self.get(place, "/v1/members").await.map(drop)
        })
        .await;
    }

    pub(crate) fn kill(&mut self, place: usize) {
        let mut child = self.nodes[place].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) async fn get(&self, place: usize, path: &str) -> Result<Value, String> {
        let addr =
            std::fs::read_to_string(self.data_dir(place).join("admin.addr")).map_err(|e| e.to_string())?;
        let answer = self
            .http
            .get(format!("http://{addr}{path}"))
            .send()
            .await
            .map_err(|e| e.to_string())?;
        let is_good = answer.status().is_success();
        let document: Value = answer.json().await.map_err(|e| e.to_string())?;
        if is_good {
            Ok(document)
        } else {
            Err(document.to_string())
        }
    }

    pub(crate) async fn submit(&self, place: usize, toml: &'static str) -> String {
        let addr = std::fs::read_to_string(self.data_dir(place).join("admin.addr")).unwrap();
        let answer = self
            .http
            .post(format!("http://{addr}/v1/jobs"))
            .body(toml)
            .send()
            .await
            .unwrap();
        let document: Value = answer.json().await.unwrap();
        document["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{document}"))
            .to_owned()
    }

    pub(crate) async fn formed(&self, count: usize, voters: usize) -> Value {
        wait_for(&format!("{count} members and {voters} voters"), async || {
            let members = self.get(0, "/v1/members").await?;
            let list = members["members"].as_array().cloned().unwrap_or_default();
            let active = list.iter().filter(|member| member["state"] == "active").count();
            let voting = list.iter().filter(|member| member["voter"] == true).count();
            if (active, voting) == (count, voters) {
                Ok(members)
            } else {
                Err(members.to_string())
            }
        })
        .await
    }

    /// Waits until a job has closed this round, as node `place` sees it.
    pub(crate) async fn reached(&self, place: usize, job: &str, round: u64) -> Value {
        wait_for(&format!("round {round} of {job}"), async || {
            let document = self.get(place, &format!("/v1/jobs/{job}")).await?;
            let now = document["round"].as_u64().unwrap_or(0);
            if now > round || document["phase"] != "running" {
                Ok(document)
            } else {
                Err(format!("round {now}"))
            }
        })
        .await
    }

    pub(crate) async fn finished(&self, place: usize, job: &str) -> Value {
        wait_for(&format!("the end of {job}"), async || {
            let document = self.get(place, &format!("/v1/jobs/{job}")).await?;
            if document["phase"] == "finished" {
                Ok(document)
            } else {
                Err(format!("round {}", document["round"]))
            }
        })
        .await
    }

    async fn leader(&self, place: usize) -> usize {
        wait_for("a leader", async || {
            let members = self.get(place, "/v1/members").await?;
            let list = members["members"].as_array().cloned().unwrap_or_default();
            let leader = list.iter().find(|member| member["id"] == members["leader"]);
            let name = leader
                .and_then(|leader| leader["name"].as_str())
                .and_then(|name| name.strip_prefix("node-"));
            name.and_then(|place| place.parse().ok())
                .ok_or_else(|| members.to_string())
        })
        .await
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().chain([&mut self.gateway]).flatten() {
            // Gone already is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.dir.path()).unwrap().flatten() {
                if entry
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "log")
                {
                    let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    let tail: Vec<&str> = text.lines().rev().take(15).collect();
                    eprintln!("--- {}", entry.path().display());
                    tail.into_iter().rev().for_each(|line| eprintln!("{line}"));
                }
            }
        }
    }
}

fn lapwing(log: &Path) -> Command {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapwing"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

async fn address(file: &Path) -> String {
    wait_for(&file.display().to_string(), async || {
        std::fs::read_to_string(file).map_err(|e| e.to_string())
    })
    .await
}

const JOB: &str =
    "rounds = 40\nlocal_steps = 20\ncompression = 4\nfinal_dense_rounds = 3\nevaluate_every = 20";

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_in_a_round_loses_no_round() {
    let mut processes = Processes::of(4).await;
    processes.formed(4, 3).await;
    let job = processes.submit(0, JOB).await;
    let leader = processes.leader(0).await;
    let witness = (leader + 1) % 4;
    processes.reached(witness, &job, 5).await;
    processes.kill(leader);
    let killed_at = processes.get(witness, &format!("/v1/jobs/{job}")).await.unwrap()["round"]
        .as_u64()
        .unwrap();
    processes.reached(witness, &job, killed_at + 1).await;
    processes.start(leader, 4);
    let document = processes.finished(witness, &job).await;
    let rounds: Vec<u64> = document["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|round| round["round"].as_u64().unwrap())
        .collect();
    assert_eq!(rounds, (1..=40).collect::<Vec<_>>());
    processes.up(leader).await;
    processes.finished(leader, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_every_node_is_killed_goes_on_from_its_checkpoints() {
    let accuracy = accuracy_after_all_were_killed(JOB, 40).await;
    assert!(
        accuracy > 0.85,
        "what was learned before the crash is not lost: {accuracy}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_algorithm_keeps_beside_the_model_survives_the_death_of_all_nodes() {
    for job in [
        // Copies of two neighbours each.
        "algorithm = 'choco-sgd'\nrounds = 40\nlocal_steps = 20\ncompression = 4\nevaluate_every = 20",
        // The model of all, and the outer momentum.
        "algorithm = 'diloco'\nrounds = 40\nlocal_steps = 20\nevaluate_every = 20",
    ] {
        let accuracy = accuracy_after_all_were_killed(job, 40).await;
        assert!(accuracy > 0.85, "{job}: {accuracy}");
    }
}

/// Has three nodes work on a job, kills them and the gateway in its eighth round, and starts the nodes again.
async fn accuracy_after_all_were_killed(job: &'static str, rounds: usize) -> f64 {
    let mut processes = Processes::of(3).await;
    let before = processes.formed(3, 3).await;
    let job = processes.submit(0, job).await;
    let document = processes.reached(1, &job, 8).await;
    let round = document["round"].as_u64().unwrap();
    // The gateway too: nobody is there to ask.
    let mut gateway = processes.gateway.take().unwrap();
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    for place in 0..3 {
        processes.kill(place);
    }
    for place in 0..3 {
        processes.start(place, 3);
    }
    for place in 0..3 {
        processes.up(place).await;
    }
    let document = processes.finished(2, &job).await;
    let history = document["history"].as_array().unwrap();
    assert_eq!(history.len(), rounds, "rounds go on where they were, at {round}");
    let after = processes.formed(3, 3).await;
    let ids = |members: &Value| -> Vec<String> {
        members["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|member| member["id"].to_string())
            .collect()
    };
    assert_eq!(ids(&before), ids(&after), "the same members");
    let last = document["evaluations"].as_array().unwrap().last().unwrap();
    last["averaged_accuracy"].as_f64().unwrap()
}

/// The processes that a process has started, and theirs, as the kernel lists them now.
pub(crate) fn descendants(of: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, parent(pid)?))
        })
        .collect();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.split_off(1)
}

/// The parent of a process; `None` when it is gone, or dead and only not waited for.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    fields
        .next()?
        .parse()
        .ok()
        .filter(|_| state != "Z" && state != "X")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3"]
async fn a_python_trainer_is_trained_by_gossip_and_dies_with_its_node() {
    let python = Command::new("python3").arg("--version").output();
    assert!(
        python.is_ok_and(|python| python.status.success()),
        "install python3 to run this test"
    );
    let root = env!("CARGO_MANIFEST_DIR");
    let trainer = format!(
        "PYTHONPATH='{root}/python' python3 '{root}/python/examples/softmax.py' '{root}/train/data/digits.csv.gz'"
    );
    let mut processes = Processes::each(vec![vec!["--trainer".to_owned(), trainer]; 3], 3).await;
    processes.formed(3, 3).await;
    let job = processes
        .submit(
            0,
            "model = 'external'\nrounds = 40\nlocal_steps = 5\ncompression = 4\nlr = 0.2\nfinal_dense_rounds = 3\nevaluate_every = 20",
        )
        .await;
    processes.reached(0, &job, 5).await;
    // A trainer that is killed is started again, and so is one whose node is.
    let trainers = descendants(processes.nodes[1].as_ref().unwrap().id());
    assert!(!trainers.is_empty(), "node 1 has a trainer");
    for trainer in &trainers {
        let _ = Command::new("kill")
            .args(["-KILL", &trainer.to_string()])
            .status();
    }
    processes.reached(0, &job, 8).await;
    let orphans = descendants(processes.nodes[2].as_ref().unwrap().id());
    processes.kill(2);
    wait_for("the end of the trainer of a node that was killed", async || {
        let left: Vec<u32> = orphans
            .iter()
            .copied()
            .filter(|orphan| parent(*orphan).is_some())
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    processes.start(2, 3);
    processes.up(2).await;
    let document = processes.finished(0, &job).await;
    let accuracy = document["evaluations"].as_array().unwrap().last().unwrap()["averaged_accuracy"]
        .as_f64()
        .unwrap();
    // One node alone, with a third of the digits, comes to 0.90.
    assert!(accuracy > 0.85, "{accuracy}");
    for place in 0..3 {
        let status = processes.get(place, "/v1/status").await.unwrap();
        assert_eq!(status["training"]["problem"], Value::Null, "node {place}");
    }
    let admin = std::fs::read_to_string(processes.data_dir(0).join("admin.addr")).unwrap();
    let model = processes.http.get(format!("http://{admin}/v1/jobs/{job}/model"));
    let model = model.send().await.unwrap().bytes().await.unwrap();
    let header = String::from_utf8_lossy(&model[8..model.len() - 650 * 4]);
    assert!(
        header.contains("\"weight\":{\"dtype\":\"F32\",\"shape\":[10,64]"),
        "{header}"
    );
}
