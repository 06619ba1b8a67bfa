//! A service that is a child process: it reads requests of JSON-RPC 2.0 from its standard input and writes answers to its
//! standard output, each on a line of its own.
//!
//! It may answer in any order and be at many calls at once. One that ends is started again after a pause. It is told who
//! calls, for how long and in which trace, in a member `context`; not of calls that nobody waits for any more.

mod lines;
mod process;
mod restarts;
mod told;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::asked::{ANSWER_MAX, Reply, broken, request_with_context};
use super::backend::{Backend, Invocation};
use super::now;
use crate::{CallError, ErrorCode, ServiceName};
use lines::Line;
use process::Process;
use restarts::Restarts;
use told::Told;

/// Passes calls to a child process. It is ended, with all that it has started, when this is dropped.
#[derive(Debug)]
#[must_use = "the process is ended when this is dropped"]
pub struct ChildBackend {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop: DropGuard,
}

/// A process cannot be a service.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChildBackendError {
    /// There is no shell, or no room for a process.
    #[error("`{command}` cannot be started")]
    Start {
        /// As given.
        command: String,
        /// Why.
        source: io::Error,
    },
}

/// Calls that one process is asked at a time: of more the caller is told at once that it is busy. A quarter of what a node
/// has in hand, so that one slow service leaves room for others.
const IN_FLIGHT_MAX: usize = 256;

/// Requests on their way to the pipe; of those that wait for room here, each caller still holds its own.
const QUEUE: usize = 8;

/// When to try again where the process has as much to do as it may.
const BUSY_FOR: Duration = Duration::from_millis(100);

/// How long what a process has written before it ended is waited for: somebody else may hold its pipes.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(500);

/// Of a line in the log, in bytes.
const TOLD_BYTES_MAX: usize = 1024;

/// What callers and the task share.
#[derive(Debug)]
struct Shared {
    service: ServiceName,
    table: Mutex<Table>,
    /// Whether there is a process, for whoever announces that.
    is_up: watch::Sender<bool>,
}

#[derive(Debug)]
struct Table {
    /// Of the last request: no two have the same, whichever process they went to.
    number: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// There is no process now.
    Down,
    Up {
        queue: mpsc::Sender<Request>,
        /// Who waits for which answer.
        waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    },
}

type Outcome = Result<String, CallError>;

#[derive(Debug)]
struct Request {
    number: u64,
    line: String,
}

impl ChildBackend {
    /// Starts a command of the shell as a service. At once, and not at the first call: what cannot run is seen in the log when
    /// the node starts, and no caller waits for a program to load. To be called within a runtime.
    ///
    /// # Errors
    /// When nothing can be started. Whether the command is any good shows in the log.
    pub fn start(service: ServiceName, command: &str) -> Result<Self, ChildBackendError> {
        let error = |source| ChildBackendError::Start {
            command: command.to_owned(),
            source,
        };
        let process = Process::start(command).map_err(error)?;
        let span = info_span!("service", %service);
        let shared = Arc::new(Shared {
            service,
            table: Mutex::new(Table {
                number: 0,
                state: State::Down,
            }),
            is_up: watch::Sender::new(false),
        });
        let requests = shared.up();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let kept = keep(
            Arc::clone(&shared),
            command.to_owned(),
            process,
            requests,
            stop.clone(),
        );
        tasks.spawn(kept.instrument(span));
        Ok(Self {
            shared,
            tasks,
            _stop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// Ends the process and waits until it is gone; calls fail from now on.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Backend for ChildBackend {
    fn call(self: Arc<Self>, invocation: Invocation) -> BoxFuture<'static, Outcome> {
        async move { self.shared.ask(&invocation).await }.boxed()
    }

    /// It can answer while there is a process.
    fn health(&self) -> Option<watch::Receiver<bool>> {
        Some(self.shared.is_up.subscribe())
    }
}

impl Shared {
    async fn ask(&self, invocation: &Invocation) -> Outcome {
        let (asked, queue, answer) = self.begin()?;
        let number = asked.number;
        let line = request_with_context(&number.to_string(), invocation)? + "\n";
        if queue.send(Request { number, line }).await.is_err() {
            return Err(self.not_running());
        }
        drop(queue);
        answer
            .await
            .unwrap_or_else(|_| Err(broken("the service has ended")))
    }

    fn begin(&self) -> Result<(Asked<'_>, mpsc::Sender<Request>, oneshot::Receiver<Outcome>), CallError> {
        let mut table = self.lock();
        let number = table.number + 1;
        let State::Up { queue, waiting } = &mut table.state else {
            return Err(self.not_running());
        };
        if waiting.len() >= IN_FLIGHT_MAX {
            let said = format!("service `{}` is at {IN_FLIGHT_MAX} calls", self.service);
            return Err(CallError::new(ErrorCode::Overloaded, said).with_retry_after(BUSY_FOR));
        }
        let (tell, answer) = oneshot::channel();
        waiting.insert(number, tell);
        let queue = queue.clone();
        table.number = number;
        let shared = self;
        Ok((Asked { shared, number }, queue, answer))
    }

    /// Nothing was begun, so that the call may be made elsewhere.
    fn not_running(&self) -> CallError {
        let said = format!("service `{}` is not running for now", self.service);
        CallError::new(ErrorCode::PeerUnreachable, said)
    }

    /// A process is there; what it is to be asked.
    fn up(&self) -> mpsc::Receiver<Request> {
        let (queue, requests) = mpsc::channel(QUEUE);
        self.lock().state = State::Up {
            queue,
            waiting: HashMap::new(),
        };
        self.is_up.send_replace(true);
        requests
    }

    /// The process is gone; whoever waits is told so.
    fn down(&self) {
        self.lock().state = State::Down;
        self.is_up.send_replace(false);
    }

    fn is_waited_for(&self, number: u64) -> bool {
        match &self.lock().state {
            State::Down => false,
            State::Up { waiting, .. } => waiting.contains_key(&number),
        }
    }

    fn forget(&self, number: u64) -> Option<oneshot::Sender<Outcome>> {
        match &mut self.lock().state {
            State::Down => None,
            State::Up { waiting, .. } => waiting.remove(&number),
        }
    }

    /// Tells whoever waits for it what came of a request; nobody does where it was given up.
    fn tell(&self, number: u64, outcome: Outcome) {
        if let Some(waits) = self.forget(number) {
            // It may have gone this moment.
            let _ = waits.send(outcome);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing that is done with it can panic half way.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose caller waits: its number is forgotten where that goes.
struct Asked<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.shared.forget(self.number);
    }
}

/// Keeps a process running until `stop`.
async fn keep(
    shared: Arc<Shared>,
    command: String,
    mut process: Process,
    mut requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
) {
    let mut restarts = Restarts::default();
    loop {
        let began_at = now();
        talk(&shared, &mut process, requests, &stop).await;
        shared.down();
        let status = process.end().await;
        if stop.is_cancelled() {
            debug!("the service is stopped");
            return;
        }
        let mut pause = restarts.ended(began_at, now());
        warn!(
            status,
            ?pause,
            "the service has ended and is started again after a pause"
        );
        process = loop {
            if stop
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return;
            }
            match Process::start(&command) {
                Ok(process) => break process,
                Err(error) => {
                    pause = restarts.ended(now(), now());
                    warn!(%error, ?pause, "the service cannot be started");
                }
            }
        };
        requests = shared.up();
    }
}

/// Passes requests and answers until the process ends, takes or says nothing more, or is to be stopped.
async fn talk(
    shared: &Shared,
    process: &mut Process,
    requests: mpsc::Receiver<Request>,
    stop: &CancellationToken,
) {
    let Some((stdin, stdout, stderr)) = process.take_pipes() else {
        return;
    };
    let silent = CancellationToken::new();
    let answers = async {
        if let Err(error) = hear(shared, stdout).await {
            debug!(%error, "the service cannot be read from");
        }
        silent.cancel();
    };
    let words = join(answers, log(stderr));
    tokio::pin!(words);
    let has_said_all = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        _ = &mut words => true,
        () = silent.cancelled() => false,
        error = write(shared, stdin, requests) => {
            debug!(error = error.err().map(tracing::field::display), "the service takes no more requests");
            false
        }
        () = process.ended() => false,
    };
    if !has_said_all {
        // What it has answered is answered.
        let _ = tokio::time::timeout(LAST_WORDS_PATIENCE, words).await;
    }
}

async fn write(
    shared: &Shared,
    mut stdin: impl AsyncWrite + Unpin,
    mut requests: mpsc::Receiver<Request>,
) -> io::Result<()> {
    while let Some(Request { number, line }) = requests.recv().await {
        if shared.is_waited_for(number) {
            stdin.write_all(line.as_bytes()).await?;
            stdin.flush().await?;
        }
    }
    Ok(())
}

/// Reads answers until there are no more.
async fn hear(shared: &Shared, stdout: impl AsyncRead + Unpin) -> io::Result<()> {
    let mut stdout = BufReader::new(stdout);
    let mut told = Told::new(now());
    while let Some(line) = Line::read(&mut stdout, ANSWER_MAX).await? {
        let (number, outcome) = match read(&line) {
            Heard::Answer(number, outcome) => (number, outcome),
            Heard::TooLong(Some(number)) => {
                let said = format!("the service has answered with more than {ANSWER_MAX} bytes");
                (number, Err(CallError::new(ErrorCode::PayloadTooLarge, said)))
            }
            Heard::TooLong(None) | Heard::Other => {
                if told.may_tell(now()) {
                    let line = line.shown(TOLD_BYTES_MAX);
                    info!(line, "the service has said what is no answer");
                }
                continue;
            }
        };
        shared.tell(number, outcome);
    }
    Ok(())
}

/// What a line says.
#[derive(Debug, PartialEq)]
enum Heard {
    Answer(u64, Outcome),
    /// Whose answer it is, where that can be seen.
    TooLong(Option<u64>),
    Other,
}

fn read(line: &Line) -> Heard {
    if line.is_too_long() {
        return Heard::TooLong(line.number());
    }
    if let Some(reply) = Reply::read(line.bytes()) {
        let number = reply.id.and_then(|id| id.get().parse().ok());
        return number.map_or(Heard::Other, |number| {
            Heard::Answer(number, reply.into_outcome(false))
        });
    }
    match serde_json::from_slice(line.bytes()) {
        Ok(Numbered { id, method: None }) => {
            Heard::Answer(id, Err(broken("the service has answered what cannot be read")))
        }
        _ => Heard::Other,
    }
}

/// What is an answer as far as its number goes.
#[derive(Debug, Deserialize)]
struct Numbered {
    id: u64,
    /// Something that the process asks has a number of its own.
    method: Option<IgnoredAny>,
}

/// Brings what a process writes to its standard error into the log.
async fn log(stderr: impl AsyncRead + Unpin) {
    let mut stderr = BufReader::new(stderr);
    let mut told = Told::new(now());
    while let Ok(Some(line)) = Line::read(&mut stderr, TOLD_BYTES_MAX).await {
        let line = line.shown(TOLD_BYTES_MAX);
        if !line.trim().is_empty() && told.may_tell(now()) {
            info!(line, "the service says");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CallContext;
    use futures::future::join_all;
    use lapwing_base::PeerId;
    use rustix::process::{Pid, test_kill_process_group};
    use serde_json::Value;

    /// Answers each line with its own number and method.
    const ANSWERS: &str = r#"
        answer() {
            id=${1#*\"id\":}; id=${id%%,*}
            method=${1#*\"method\":}; method=${method%%[,\}]*}
            echo "{\"jsonrpc\":\"2.0\",\"id\":$id,\"result\":[$id, $method]}"
        }
        "#;

    fn started(command: &str) -> Arc<ChildBackend> {
        let command = format!("{ANSWERS}\n{command}");
        Arc::new(ChildBackend::start("math".parse().unwrap(), &command).unwrap())
    }

    async fn call(backend: &Arc<ChildBackend>, method: &str) -> Outcome {
        let invocation = Invocation {
            method: method.to_owned(),
            arguments: None,
            context: CallContext::new(PeerId::random(), now()),
        };
        Arc::clone(backend).call(invocation).await
    }

    fn fault(outcome: Outcome) -> String {
        let remote = outcome.unwrap_err().remote.unwrap();
        assert!(remote.fault);
        remote.message
    }

    async fn eventually(mut holds: impl FnMut() -> bool) {
        let held = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, held).await.expect("not in time");
    }

    fn waiting(backend: &ChildBackend) -> usize {
        match &backend.shared.lock().state {
            State::Down => 0,
            State::Up { waiting, .. } => waiting.len(),
        }
    }

    fn is_gone(group: &str) -> bool {
        let group = Pid::from_raw(group.trim().parse().unwrap()).unwrap();
        test_kill_process_group(group).is_err()
    }

    #[tokio::test]
    async fn calls_are_answered_each_with_its_own_in_whatever_order() {
        let backend = started(
            r#"while read -r one && read -r two; do answer "$two"; echo nonsense; answer "$one"; done"#,
        );
        let calls = join_all((0..100).map(|number| {
            let backend = Arc::clone(&backend);
            async move { call(&backend, &format!("m{number}")).await }
        }));
        for (number, outcome) in calls.await.into_iter().enumerate() {
            assert_eq!(outcome, Ok(format!("[{}, \"m{number}\"]", number + 1)));
        }
        backend.shutdown().await;
    }

    #[tokio::test]
    async fn it_is_told_beside_what_is_asked_who_calls_and_for_how_long() {
        let backend = started(r#"read -r line; echo "{\"id\":1,\"result\":$line}"; sleep 1000"#);
        let asked: Value = serde_json::from_str(&call(&backend, "any").await.unwrap()).unwrap();
        assert!(asked["context"]["caller"].is_string(), "{asked}");
        assert!(asked["context"]["remaining_ms"].is_u64(), "{asked}");
        backend.shutdown().await;
    }

    #[tokio::test]
    async fn a_call_under_way_ends_with_its_process_which_is_started_again() {
        let backend =
            started(r#"while read -r line; do case "$line" in *die*) exit 3;; esac; answer "$line"; done"#);
        assert_eq!(fault(call(&backend, "die").await), "the service has ended");
        let comes_back = async {
            loop {
                match call(&backend, "live").await {
                    Ok(result) => break result,
                    Err(error) => assert_eq!(error.code, ErrorCode::PeerUnreachable),
                }
                tokio::task::yield_now().await;
            }
        };
        let patience = Duration::from_secs(30);
        let result = tokio::time::timeout(patience, comes_back).await.unwrap();
        assert!(result.contains("live"), "{result}");
        backend.shutdown().await;
        assert_eq!(
            call(&backend, "live").await.unwrap_err().code,
            ErrorCode::PeerUnreachable
        );
    }

    #[tokio::test]
    async fn it_can_answer_while_there_is_a_process_and_says_so() {
        let backend = started(r#"while read -r line; do answer "$line"; done"#);
        let health = backend.health().unwrap();
        assert!(*health.borrow());
        backend.shared.down();
        assert!(!*health.borrow());
        drop(backend.shared.up());
        assert!(*health.borrow());
        backend.shutdown().await;
        assert!(!*health.borrow());
    }

    #[tokio::test]
    async fn what_was_answered_before_the_end_is_answered() {
        let backend = started(r#"read -r line; answer "$line""#);
        assert!(call(&backend, "last").await.is_ok());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_forgotten_and_more_than_so_many_are_refused() {
        let backend = started("read -r line; sleep 1000");
        let calls = (0..=IN_FLIGHT_MAX).map(|_| call(&backend, "never"));
        let (refused, _, others) = futures::future::select_all(calls.map(Box::pin)).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::Overloaded);
        assert_eq!(waiting(&backend), IN_FLIGHT_MAX);
        drop(others);
        assert_eq!(waiting(&backend), 0);
        backend.shutdown().await;
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_of_the_call_that_it_answers() {
        let backend = started(r#"read -r line; echo '{"id":1,"error":"oh"}'; sleep 1000"#);
        assert_eq!(
            fault(call(&backend, "any").await),
            "the service has answered what cannot be read"
        );
        let long = Line::read(&mut &br#"{"id":1,"result":[1,2,3,4,5,6,7]}"#[..], 25).await;
        assert_eq!(read(&long.unwrap().unwrap()), Heard::TooLong(Some(1)));
        let asked = Line::read(&mut &br#"{"id":1,"method":"log"}"#[..], 25).await;
        assert_eq!(read(&asked.unwrap().unwrap()), Heard::Other);
    }

    #[tokio::test]
    async fn a_service_that_is_dropped_is_ended_with_its_own_children_and_leaves_nothing() {
        let backend = started(
            r#"trap '' TERM; sleep 1000 & while read -r line; do echo "{\"id\":1,\"result\":$$}"; done; wait"#,
        );
        let group = call(&backend, "group").await.unwrap();
        assert!(!is_gone(&group));
        drop(backend);
        eventually(|| is_gone(&group)).await;
    }

    #[test]
    fn a_service_ends_with_the_runtime() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
        };
        let first = runtime();
        let (backend, group) = first.block_on(async {
            let backend = started(r#"read -r line; echo "{\"id\":1,\"result\":$$}"; sleep 1000"#);
            let group = call(&backend, "group").await.unwrap();
            (backend, group)
        });
        drop(first);
        drop(backend);
        // Some runtime takes note of its end.
        runtime().block_on(async {
            let _deaths = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()).unwrap();
            let mut other = tokio::process::Command::new("true").spawn().unwrap();
            other.wait().await.unwrap();
            eventually(|| is_gone(&group)).await;
        });
    }
}
