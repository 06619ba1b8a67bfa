//! `lapwing job`: submits, lists, shows, watches, stops and exports training jobs through any node.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use lapwing_base::ByteSize;
use lapwing_train::Evidence;
use serde_json::{Value, json};

use super::admin_client::{AdminClient, Target};
use super::cluster::{done, escaped};
use super::documents::{
    self, EvaluationDocument, JobDocument, JobsDocument, RoundDocument, SubmittedDocument,
};
use super::failure::Failure;
use super::output::{Align, Output, Table, or_dash, percent, span};

/// What is asked. An ID is a job's number such as job-12, or 12.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Submits a job file; prints the job's ID
    Submit {
        /// TOML file that says what to train, and how
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Every job that the cluster remembers
    List(#[command(flatten)] Target),
    /// What a job asks for and how far it is
    Show(Subject),
    /// Follows a job to its end; leaving early does not stop the job
    Watch(Subject),
    /// Ends a job before its last round
    Stop(Subject),
    /// Writes the consensus model of a finished job
    Export {
        #[command(flatten)]
        subject: Subject,
        /// Where to write it
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Checks what a node has kept of a partner's message that it could not use: who signed it, and for which round
    Evidence {
        /// A file of the folder `train/evidence` in the node's data directory
        file: PathBuf,
    },
}

/// A job, and the node to ask.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Subject {
    /// Number of the job (job-12 or 12)
    id: String,
    #[command(flatten)]
    target: Target,
}

impl Subject {
    fn path(&self) -> String {
        // Both forms that people write; the node's is with the word.
        let number = self.id.strip_prefix("job-").unwrap_or(&self.id);
        format!("/v1/jobs/job-{}", escaped(number))
    }
}

/// Does what was asked, and prints the outcome.
pub(crate) async fn run(command: &JobCommand, output: Output) -> Result<(), Failure> {
    match command {
        JobCommand::Submit { file, target } => submit(file, &target.client()?, output).await,
        JobCommand::List(target) => list(&target.client()?, output).await,
        JobCommand::Show(subject) => show(subject, output).await,
        JobCommand::Watch(subject) => watch(subject, output).await,
        JobCommand::Stop(subject) => {
            let answer: Value = subject
                .target
                .client()?
                .post(&format!("{}/stop", subject.path()), None)
                .await
                .map_err(|error| error.failing_to(format!("stop {}", subject.id)))?;
            done(&answer, &format!("{} is stopped", subject.id), output)
        }
        JobCommand::Export { subject, out } => export(subject, out, output).await,
        JobCommand::Evidence { file } => evidence(file, output),
    }
}

/// The largest job file; ours have fourteen keys.
const JOB_FILE_SIZE_MAX: u64 = 64 * 1024;

async fn submit(file: &Path, client: &AdminClient, output: Output) -> Result<(), Failure> {
    let text = read_job_file(file)
        .map_err(|error| Failure::new(format!("read the job file {}", file.display()), error))?;
    let answer: Value = client
        .post("/v1/jobs", Some(text))
        .await
        .map_err(|error| error.failing_to(format!("submit {}", file.display())))?;
    if output.is_json() {
        return output.document(&answer);
    }
    let submitted: SubmittedDocument =
        documents::read(answer).map_err(|error| Failure::new("read the job's number", error))?;
    output.line(submitted.id)
}

/// Reads no more than a job file may have: what is named may be a device without an end.
fn read_job_file(file: &Path) -> Result<String, JobFileError> {
    let mut bytes = Vec::new();
    fs::File::open(file)?
        .take(JOB_FILE_SIZE_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > JOB_FILE_SIZE_MAX {
        return Err(JobFileError::TooLong);
    }
    String::from_utf8(bytes).map_err(|_| JobFileError::NoText)
}

/// Why a file is not sent as a job.
#[derive(Debug, thiserror::Error)]
enum JobFileError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(
        "it has more than the {} that a job file may have",
        ByteSize(JOB_FILE_SIZE_MAX)
    )]
    TooLong,
    #[error("it is no text; a job file is TOML, with a line such as `rounds = 200`")]
    NoText,
}

/// Fails where the file proves nothing.
fn evidence(file: &Path, output: Output) -> Result<(), Failure> {
    let evidence = Evidence::read(file)
        .map_err(|error| Failure::new(format!("check the evidence {}", file.display()), error))?;
    let bytes = evidence.message().len() as u64;
    if output.is_json() {
        return output.document(&json!({
            "job": format!("job-{}", evidence.job().0),
            "round": evidence.round().0,
            "from": evidence.from.to_string(),
            "to": evidence.to.to_string(),
            "claimed": evidence.why,
            "bytes": bytes,
        }));
    }
    output.line(format!(
        "{} has signed this message of {} to {}, for round {} of job-{}\nwhoever kept it says that it sent {}, which is not proven",
        evidence.from,
        ByteSize(bytes),
        evidence.to,
        evidence.round(),
        evidence.job().0,
        evidence.why
    ))
}

async fn list(client: &AdminClient, output: Output) -> Result<(), Failure> {
    let document: Value = client
        .get("/v1/jobs")
        .await
        .map_err(|error| error.failing_to("list the jobs"))?;
    if output.is_json() {
        return output.document(&document);
    }
    let document: JobsDocument =
        documents::read(document).map_err(|error| Failure::new("read the list of jobs", error))?;
    let mut table = Table::new([
        ("id", Align::Left),
        ("phase", Align::Left),
        ("round", Align::Right),
        ("rounds", Align::Right),
        ("model", Align::Left),
        ("data", Align::Left),
    ]);
    for job in document.jobs {
        table.row([
            job.id,
            job.phase,
            job.round.to_string(),
            job.rounds.to_string(),
            job.model,
            job.data,
        ]);
    }
    output.line(table)
}

async fn show(subject: &Subject, output: Output) -> Result<(), Failure> {
    let document: Value = subject
        .target
        .client()?
        .get(&subject.path())
        .await
        .map_err(|error| error.failing_to(format!("show {}", subject.id)))?;
    if output.is_json() {
        return output.document(&document);
    }
    let job: JobDocument = documents::read(document).map_err(|error| Failure::new("read the job", error))?;
    output.line(lines(&job).join("\n"))
}

fn lines(job: &JobDocument) -> Vec<String> {
    let mut lines = vec![format!(
        "{} {}, round {} of {}",
        job.id,
        job.phase,
        job.round,
        job.rounds()
    )];
    // A key that is null says nothing, as one that a job file leaves out.
    for (key, value) in job.spec.iter().filter(|(_, value)| !value.is_null()) {
        lines.push(format!("  {key} = {value}"));
    }
    if let Some(parameters) = job.parameters {
        lines.push(format!("parameters   {parameters}"));
    }
    if let Some(round) = job.history.iter().rev().find(|round| round.merged.is_some()) {
        lines.push(format!("last closed  {}", round_line(round, job.rounds())));
    }
    if let Some(evaluation) = job.evaluations.last() {
        lines.push(format!("accuracy     {}", evaluation_line(evaluation)));
    }
    if let Some(manifest) = &job.manifest {
        lines.push(format!(
            "model        {}, held by {}",
            manifest.hash,
            manifest.holders.join(" ")
        ));
    }
    lines
}

fn round_line(round: &RoundDocument, rounds: u64) -> String {
    let sent: u64 = round.nodes.iter().map(|node| node.sent_bytes).sum();
    format!(
        "round {} of {rounds} ({}): {} of {} pairs merged, loss {}, {} sent, took {}",
        round.round,
        round.kind,
        round.merged.as_ref().map_or(0, Vec::len),
        round.pairs.len(),
        or_dash(round.loss().map(|loss| format!("{loss:.3}"))),
        ByteSize(sent),
        or_dash(round.took_ms.map(|took| span(took as f64 / 1000.0))),
    )
}

fn evaluation_line(evaluation: &EvaluationDocument) -> String {
    format!(
        "{} averaged, {} local, after round {}",
        percent(evaluation.averaged_accuracy),
        percent(evaluation.local_accuracy),
        evaluation.round
    )
}

/// How often a watched job is looked at: faster than rounds of this size close on one machine is of no use to
/// an eye, and slower makes the view lag.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How often in a row a node may fail to answer before the watch gives up: half a minute of them.
const SILENCES_MAX: u32 = 60;

async fn watch(subject: &Subject, output: Output) -> Result<(), Failure> {
    let client = subject.target.client()?;
    let mut watched = Watched::default();
    let mut silences = 0;
    loop {
        let path = format!("{}?after={}", subject.path(), watched.closed);
        let job: JobDocument = match client.get_document(&path).await {
            Ok(job) => job,
            Err(error) if error.is_temporary() && watched.seen && silences < SILENCES_MAX => {
                silences += 1;
                tokio::time::sleep(WATCH_INTERVAL).await;
                continue;
            }
            Err(error) => return Err(error.failing_to(format!("watch {}", subject.id))),
        };
        silences = 0;
        for news in watched.take(&job) {
            if output.is_json() {
                output.document(&news.document())?;
            } else {
                output.line(news.line(job.rounds()))?;
            }
        }
        if job.is_over() {
            return if output.is_json() {
                output.document(&serde_json::json!({ "event": "over", "id": job.id, "phase": job.phase }))
            } else {
                output.line(format!("{} is {}", job.id, job.phase))
            };
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// How much of a job the watcher has told.
#[derive(Debug, Default)]
struct Watched {
    seen: bool,
    closed: u64,
    evaluated: u64,
}

/// One thing that happened in a watched job.
#[derive(Clone, Debug)]
enum News<'a> {
    Round(&'a RoundDocument),
    Evaluation(&'a EvaluationDocument),
}

impl Watched {
    /// What the document has that was not told yet, in the order in which it happened.
    fn take<'a>(&mut self, job: &'a JobDocument) -> Vec<News<'a>> {
        let mut news: Vec<News<'a>> = Vec::new();
        for round in &job.history {
            if round.merged.is_some() && round.round > self.closed {
                self.closed = round.round;
                news.push(News::Round(round));
            }
        }
        for evaluation in &job.evaluations {
            if evaluation.round > self.evaluated || !self.seen && evaluation.round == 0 {
                self.evaluated = evaluation.round;
                news.push(News::Evaluation(evaluation));
            }
        }
        self.seen = true;
        news.sort_by_key(|news| match news {
            News::Round(round) => (round.round, false),
            News::Evaluation(evaluation) => (evaluation.round, true),
        });
        news
    }
}

impl News<'_> {
    fn line(&self, rounds: u64) -> String {
        // Accuracies stand out on a terminal, since they are what one waits for.
        let strong = io::stdout().is_terminal() && crate::telemetry::colour_is_wanted();
        match self {
            News::Round(round) => round_line(round, rounds),
            News::Evaluation(evaluation) if strong => {
                format!("\x1b[1maccuracy {}\x1b[0m", evaluation_line(evaluation))
            }
            News::Evaluation(evaluation) => format!("accuracy {}", evaluation_line(evaluation)),
        }
    }

    fn document(&self) -> Value {
        match self {
            News::Round(round) => serde_json::json!({
                "event": "round",
                "round": round.round,
                "kind": round.kind,
                "pairs": round.pairs,
                "alone": round.alone,
                "merged": round.merged,
                "loss": round.loss(),
                "sent_bytes": round.nodes.iter().map(|node| node.sent_bytes).sum::<u64>(),
                "took_ms": round.took_ms,
            }),
            News::Evaluation(evaluation) => serde_json::json!({
                "event": "evaluation",
                "round": evaluation.round,
                "averaged_accuracy": evaluation.averaged_accuracy,
                "local_accuracy": evaluation.local_accuracy,
                "transferred_bytes": evaluation.transferred_bytes,
            }),
        }
    }
}

async fn export(subject: &Subject, out: &Path, output: Output) -> Result<(), Failure> {
    let doing = || format!("export {} to {}", subject.id, out.display());
    let client = subject.target.client()?;
    let part = Part::beside(out);
    let mut file = tokio::fs::File::create(&part.path)
        .await
        .map_err(|error| Failure::new(doing(), error))?;
    let size = client
        .download(&format!("{}/model", subject.path()), &mut file)
        .await
        .map_err(|error| error.failing_to(doing()))?;
    fs::rename(&part.path, out).map_err(|error| Failure::new(doing(), error))?;
    let card = card(out);
    if output.is_json() {
        let document = serde_json::json!({ "id": subject.id, "file": out, "size_bytes": size, "card": card });
        return output.document(&document);
    }
    let mut lines = vec![format!("{} ({})", out.display(), ByteSize(size))];
    // All keys of the job, and the tensors' order, are for programs.
    let told = card
        .iter()
        .flatten()
        .filter(|(key, _)| !matches!(key.as_str(), "job_file" | "order"));
    lines.extend(told.map(|(key, text)| format!("  {key} = {text}")));
    output.line(lines.join("\n"))
}

/// The longest header of a model's file whose card is shown: with ten thousand tensors it has 1 MB.
const HEADER_SIZE_MAX: u64 = 16 * 1024 * 1024;

/// What the file says of how its model was made; `None` when it says nothing that can be read.
fn card(file: &Path) -> Option<BTreeMap<String, String>> {
    let mut file = fs::File::open(file).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_SIZE_MAX {
        return None;
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).ok()?;
    let mut header: Value = serde_json::from_slice(&header).ok()?;
    serde_json::from_value(header.get_mut("__metadata__")?.take()).ok()
}

/// The file that a download grows in, so that a broken one never stands where a whole one is expected.
#[derive(Debug)]
struct Part {
    path: PathBuf,
}

impl Part {
    fn beside(out: &Path) -> Self {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        Self {
            path: out.with_file_name(name),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is nothing left to remove.
        let _renamed = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_tells_each_round_and_each_evaluation_once() {
        let first = job(r#"{"history": [{"round": 1, "merged": []}, {"round": 2}], "evaluations": []}"#);
        let second = job(
            r#"{"history": [{"round": 1, "merged": []}, {"round": 2, "merged": []}],
                "evaluations": [{"round": 1, "averaged_accuracy": 0.5}]}"#,
        );
        let mut watched = Watched::default();
        assert!(matches!(watched.take(&first)[..], [News::Round(round)] if round.round == 1));
        assert!(matches!(
            watched.take(&second)[..],
            [News::Evaluation(evaluation), News::Round(round)] if evaluation.round == 1 && round.round == 2
        ));
        assert!(watched.take(&second).is_empty());
    }

    #[test]
    fn a_job_is_named_with_or_without_its_word() {
        for id in ["job-12", "12"] {
            let subject = Subject {
                id: id.to_owned(),
                target: Target::default(),
            };
            assert_eq!(subject.path(), "/v1/jobs/job-12");
        }
    }

    #[test]
    fn a_job_is_shown_with_what_was_asked_and_what_came_of_it() {
        let job = job(
            r#"{"id": "job-12", "phase": "running", "spec": {"model": "mlp", "rounds": 100, "stop": null}, "round": 2, "parameters": 10,
                "history": [{"round": 1, "kind": "sparse", "pairs": [["n1", "n3"]], "merged": [["n1", "n3"]], "took_ms": 120,
                             "nodes": [{"node": "n1", "loss": 0.5, "sent_bytes": 385}]}],
                "evaluations": [{"round": 1, "averaged_accuracy": 0.93, "local_accuracy": 0.88}]}"#,
        );
        assert_eq!(
            lines(&job),
            [
                "job-12 running, round 2 of 100",
                "  model = \"mlp\"",
                "  rounds = 100",
                "parameters   10",
                "last closed  round 1 of 100 (sparse): 1 of 1 pairs merged, loss 0.500, 385 B sent, took 0.1 s",
                "accuracy     93.0 % averaged, 88.0 % local, after round 1",
            ]
        );
    }

    fn job(text: &str) -> JobDocument {
        serde_json::from_str(text).unwrap()
    }
}
