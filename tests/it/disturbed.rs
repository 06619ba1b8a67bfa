//! Nodes as processes of their own that are disturbed during a job: killed, stopped and slowed down, and one that tells
//! garbage. It does so as faulty programs do: its users' trainer computes nonsense.

use crate::processes::{Processes, descendants};
use crate::support::wait_for;
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A node's settings, with a trainer in Python that is an honest one, or one whose values are far too large.
///
/// A round takes 0.3 s at least, as it does with larger models: how many rounds pass while a node is away is then much the
/// same on every machine, and a job does not end before it is back.
fn trainer(is_honest: bool) -> Vec<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let nonsense = if is_honest {
        ""
    } else {
        "
        for place, value in enumerate(self.weight.data):
            self.weight.data[place] = 1e6 * (value + 1)"
    };
    let program = format!(
        "import lapwing, softmax, time
class Model(softmax.Softmax):
    def train(self, steps, lr):
        time.sleep(0.3)
        told = super().train(steps, lr){nonsense}
        return told
lapwing.run(Model(\"{root}/train/data/digits.csv.gz\"))"
    );
    let path = format!("PYTHONPATH='{root}/python:{root}/python/examples'");
    vec!["--trainer".to_owned(), format!("{path} python3 -c '{program}'")]
}

/// So many honest nodes and, after them, nodes that are not; they share so many parts of the digits.
async fn started(honest: usize, liars: usize, parts: usize) -> Processes {
    let python = Command::new("python3").arg("--version").output();
    assert!(
        python.is_ok_and(|python| python.status.success()),
        "install python3 to run this test"
    );
    let places = (0..honest + liars).map(|place| trainer(place < honest));
    let processes = Processes::each(places.collect(), parts).await;
    processes.formed(honest + liars, 3).await;
    processes
}

fn accuracy(document: &Value) -> f64 {
    let last = document["evaluations"].as_array().unwrap().last().unwrap();
    last["averaged_accuracy"].as_f64().unwrap()
}

/// A member's number.
async fn number(processes: &Processes, place: usize) -> Value {
    let members = processes.get(0, "/v1/members").await.unwrap();
    let members = members["members"].as_array().unwrap();
    let name = format!("node-{place}");
    let member = members.iter().find(|member| member["name"] == name.as_str());
    member.unwrap()["id"].clone()
}

/// Waits until node 0 shows that this node is in quarantine, and returns what it shows of it.
async fn quarantined(processes: &Processes, place: usize) -> Value {
    let id = number(processes, place).await;
    wait_for(&format!("node {place} to be in quarantine"), async || {
        let status = processes.get(0, "/v1/status").await?;
        let list = status["training"]["quarantined"].as_array().cloned();
        let found = list
            .unwrap_or_default()
            .into_iter()
            .find(|member| member["id"] == id);
        found.ok_or_else(|| status["training"].to_string())
    })
    .await
}

/// What a command prints of a node.
fn told(processes: &Processes, place: usize, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapwing"));
    command
        .args(arguments)
        .arg("--data-dir")
        .arg(processes.data_dir(place));
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3"]
async fn a_node_whose_python_trainer_computes_nonsense_is_in_quarantine_and_the_others_learn() {
    let processes = started(4, 1, 4).await;
    let job = processes
        .submit(
            0,
            "model = 'external'\nrounds = 60\nlocal_steps = 5\nbatch = 8\ncompression = 4\nlr = 0.2\nfinal_dense_rounds = 3\nevaluate_every = 20",
        )
        .await;
    let quarantine = quarantined(&processes, 4).await;
    assert_eq!(quarantine["reason"], "sent values that are far too large");
    assert!(
        quarantine["refused_by"].as_array().unwrap().len() >= 2,
        "{quarantine}"
    );
    // It ends after ten rounds, and the next one begins when two have refused again.
    wait_for("the command line to show it", async || {
        let status = told(&processes, 0, &["status"]);
        let members = told(&processes, 1, &["cluster", "members"]);
        let shown = status.contains("node-4 is in quarantine until round")
            && members.contains("in quarantine until round");
        if shown {
            Ok(())
        } else {
            Err(format!("{status}\n{members}"))
        }
    })
    .await;
    let document = processes.finished(0, &job).await;
    assert!(accuracy(&document) > 0.85, "{document}");
    let liar = number(&processes, 4).await;
    for round in document["history"].as_array().unwrap() {
        let merged = round["merged"].as_array().unwrap();
        assert!(
            !merged
                .iter()
                .flat_map(|pair| pair.as_array().unwrap())
                .any(|node| *node == liar),
            "{round}"
        );
    }
    let log = std::fs::read_to_string(processes.log(4)).unwrap();
    assert!(
        log.contains("this node is in quarantine"),
        "it is told what to do"
    );
    is_proven(&processes, 4, &job).await;
}

/// Those who refused what this node sent have kept it, and anybody can check whose it is.
async fn is_proven(processes: &Processes, liar: usize, job: &str) {
    let status = processes.get(liar, "/v1/status").await.unwrap();
    let kept = (0..liar).flat_map(|place| {
        let folder = processes.data_dir(place).join("train/evidence");
        std::fs::read_dir(folder).into_iter().flatten().flatten()
    });
    let kept: Vec<_> = kept.map(|entry| entry.path()).collect();
    assert!(kept.len() >= 2, "two have refused it: {kept:?}");
    let check = |file: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapwing"));
        command
            .args(["job", "evidence", "--json"])
            .arg(file)
            .output()
            .unwrap()
    };
    let mut claimed = Vec::new();
    for file in &kept {
        let checked: Value = serde_json::from_slice(&check(file).stdout).unwrap();
        assert_eq!(checked["from"], status["peer_id"], "{checked}");
        assert_eq!(checked["job"], job, "{checked}");
        claimed.push(checked["claimed"].clone());
    }
    assert!(claimed.contains(&"too-large".into()), "{claimed:?}");
    let mut altered = std::fs::read(&kept[0]).unwrap();
    *altered.last_mut().unwrap() ^= 1;
    std::fs::write(&kept[0], altered).unwrap();
    let output = check(&kept[0]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("it proves nothing"),
        "{said}"
    );
}

const JOB: &str = "model = 'external'\nrounds = 90\nlocal_steps = 5\nbatch = 8\ncompression = 4\nlr = 0.4\nlr_final = 0.02\nfinal_dense_rounds = 5\nevaluate_every = 45";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3"]
async fn nodes_with_python_trainers_that_are_killed_paused_slowed_and_poisoned_cost_no_point_of_accuracy() {
    let undisturbed = {
        let processes = started(6, 0, 5).await;
        let job = processes.submit(0, JOB).await;
        processes.reached(0, &job, 45).await;
        accuracy(&processes.finished(0, &job).await)
    };
    // The samples of the one that is poisoned are not lost with it: another has the same part.
    let mut processes = started(5, 1, 5).await;
    let job = processes.submit(0, JOB).await;
    processes.reached(0, &job, 5).await;
    quarantined(&processes, 5).await;

    processes.kill(1);
    missed(&processes, &job, 1, Duration::ZERO).await;
    processes.start(1, 5);
    processes.up(1).await;
    met(&processes, &job, 1).await;

    let paused = processes.nodes[2].as_ref().unwrap().id();
    signal("-STOP", paused);
    // The shortest deadline of a round is 3 s.
    missed(&processes, &job, 2, Duration::from_secs(4)).await;
    signal("-CONT", paused);
    met(&processes, &job, 2).await;

    let slowed = Slowed::new(processes.nodes[3].as_ref().unwrap().id());
    let document = processes.get(0, &format!("/v1/jobs/{job}")).await.unwrap();
    let document = processes
        .reached(0, &job, document["round"].as_u64().unwrap() + 3)
        .await;
    assert_eq!(
        document["phase"], "running",
        "the job was long enough for all that"
    );
    drop(slowed);

    let document = processes.finished(0, &job).await;
    let rounds = document["history"].as_array().unwrap().last().unwrap()["round"].as_u64();
    assert_eq!(rounds, Some(90));
    let disturbed = accuracy(&document);
    println!("undisturbed {undisturbed}, disturbed {disturbed}");
    assert!(
        disturbed > undisturbed - 0.01,
        "{disturbed}, undisturbed {undisturbed}"
    );
}

/// Waits until a round, the one that is open or a later one, has ended without a word of this node, and for so long at least.
#[expect(
    clippy::disallowed_methods,
    reason = "how long a process is paused is real time"
)]
async fn missed(processes: &Processes, job: &str, place: usize, least: Duration) {
    let (id, since) = (number(processes, place).await, Instant::now());
    let now = processes.get(0, &format!("/v1/jobs/{job}")).await.unwrap();
    let before = now["round"].as_u64().unwrap() - 1;
    wait_for(&format!("a round without node {place}"), async || {
        let document = processes
            .get(0, &format!("/v1/jobs/{job}?after={before}"))
            .await?;
        let history = document["history"].as_array().cloned().unwrap_or_default();
        let has_ended_without = |round: &Value| {
            let mut nodes = round["nodes"].as_array().into_iter().flatten();
            round["merged"].is_array() && nodes.all(|node| node["node"] != id)
        };
        let is_missed = since.elapsed() > least && history.iter().any(has_ended_without);
        if is_missed {
            Ok(())
        } else {
            Err(format!("{:?}", history.last()))
        }
    })
    .await;
}

/// Waits until this node has merged with another one in a round after those that are closed now.
async fn met(processes: &Processes, job: &str, place: usize) {
    let id = number(processes, place).await;
    let now = processes.get(0, &format!("/v1/jobs/{job}")).await.unwrap();
    let now = now["round"].as_u64().unwrap();
    wait_for(&format!("a merge with node {place}"), async || {
        let document = processes.get(0, &format!("/v1/jobs/{job}?after={now}")).await?;
        let history = document["history"].as_array().cloned().unwrap_or_default();
        let is_met = history.iter().any(|round| is_in(&round["merged"], &id));
        if is_met {
            Ok(())
        } else {
            Err(format!("{:?}", history.last()))
        }
    })
    .await;
}

/// Whether a node is in one of these pairs.
fn is_in(pairs: &Value, node: &Value) -> bool {
    let pairs = pairs.as_array().into_iter().flatten();
    pairs
        .flat_map(|pair| pair.as_array().into_iter().flatten())
        .any(|of| of == node)
}

fn signal(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// A node that gets what processor time others leave over, and others that leave none. Ends when it is dropped.
struct Slowed(Vec<Child>);

impl Slowed {
    fn new(node: u32) -> Self {
        for process in descendants(node).into_iter().chain([node]) {
            let threads = std::fs::read_dir(format!("/proc/{process}/task"))
                .into_iter()
                .flatten()
                .flatten();
            for thread in threads {
                // One that has ended meanwhile is as good.
                let _ = Command::new("renice")
                    .args(["-n", "19", "-p"])
                    .arg(thread.file_name())
                    .stdout(Stdio::null())
                    .status();
            }
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let busy = || {
            Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn()
                .unwrap()
        };
        Self((0..processors).map(|_| busy()).collect())
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
