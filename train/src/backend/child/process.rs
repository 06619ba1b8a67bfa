//! The process of a trainer: started, spoken with line by line, and ended with everything that it has started.
//!
//! Blocking, with deadlines: it is for the training thread. What is said and what it means is for others to know.

use std::io::{self, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::message::{Answer, Expected, LINE_BYTES_MAX, MessageError, Request, read_line, shown};

/// How long a trainer has to end after it was told to, and again after SIGTERM.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked at while it is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How soon a node that stops stops to wait for an answer.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// Answers that are read ahead: there is one to each request, and signs of life before it.
const LINES_MAX: usize = 4;

/// Longest line of its standard error in the log.
const TOLD_BYTES_MAX: usize = 1024;

/// Most lines of its standard error in the log in [`TOLD_INTERVAL`]: a stack trace, or a progress bar for a while.
const TOLD_MAX: u32 = 100;
const TOLD_INTERVAL: Duration = Duration::from_secs(10);

/// How long the last words of a trainer that has ended are waited for.
const LAST_WORDS_PATIENCE: Duration = Duration::from_millis(500);

/// A running trainer. It is ended when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// `None` when it is being ended.
    stdin: Option<ChildStdin>,
    lines: Receiver<io::Result<Line>>,
    errors: JoinHandle<()>,
    last_words: Arc<Mutex<String>>,
    stop: CancellationToken,
    /// Its number may be another's now.
    is_over: bool,
}

#[derive(Debug)]
enum Line {
    Whole(Vec<u8>),
    TooLong,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it cannot be spoken with")]
    Pipe(#[source] io::Error),
    #[error("it has ended{0}")]
    Ended(String),
    #[error("it has said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The trainer goes on.
    #[error("it says: {0}")]
    Refused(String),
    #[error("the node stops")]
    Stopped,
}

impl Process {
    /// Starts a command of the shell. `stop` ends the waiting for any answer.
    pub(super) fn start(command: &str, stop: CancellationToken) -> io::Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A keyboard's interrupt is for the node, which then ends the trainer; and a group can be ended as a whole.
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        debug!(pid, command, "trainer started");
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (sender, lines) = sync_channel(LINES_MAX);
        let last_words = Arc::new(Mutex::new(String::new()));
        let words = Arc::clone(&last_words);
        // Both end with their pipe, at the latest when the group has been killed.
        let name = |what: &str| format!("trainer-{what}");
        let started = std::thread::Builder::new()
            .name(name("answers"))
            .spawn(move || {
                if let Some(stdout) = stdout {
                    read_answers(stdout, &sender);
                }
            })
            .and_then(|_| {
                std::thread::Builder::new().name(name("errors")).spawn(move || {
                    if let Some(stderr) = stderr {
                        tell_errors(stderr, pid, &words);
                    }
                })
            });
        match started {
            Ok(errors) => Ok(Self {
                child,
                stdin,
                lines,
                errors,
                last_words,
                stop,
                is_over: false,
            }),
            Err(error) => {
                end_group(&mut child);
                Err(error)
            }
        }
    }

    /// Asks for something and waits for the answer, for as long as there is a sign of life in each `patience`.
    ///
    /// After any fault but [`Fault::Refused`] nothing that it says can be believed any more.
    pub(super) fn ask(
        &mut self,
        request: &Request<'_>,
        expected: Expected,
        patience: Duration,
    ) -> Result<Answer, Fault> {
        self.tell(request).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => self.ended(),
            _ => Fault::Pipe(error),
        })?;
        self.answer(expected, patience)
    }

    /// A request is far smaller than a pipe, and there is one at a time: this does not block.
    fn tell(&mut self, request: &Request<'_>) -> io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(&request.line())
    }

    /// Waits for something that the trainer says by itself, or that it was asked for.
    pub(super) fn answer(&mut self, expected: Expected, patience: Duration) -> Result<Answer, Fault> {
        let mut silent_since = now();
        loop {
            if self.stop.is_cancelled() {
                return Err(Fault::Stopped);
            }
            let left = patience.saturating_sub(now().duration_since(silent_since));
            if left.is_zero() {
                return Err(Fault::Silent(patience));
            }
            let line = match self.lines.recv_timeout(left.min(STOP_INTERVAL)) {
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Ok(line) => line.map_err(Fault::Pipe)?,
            };
            let line = match line {
                Line::Whole(line) => line,
                Line::TooLong => return Err(MessageError::TooLong.into()),
            };
            match expected.read(&line)? {
                Answer::Progress => silent_since = now(),
                Answer::Error { message } => return Err(Fault::Refused(shown(message.as_bytes()))),
                answer => return Ok(answer),
            }
        }
    }

    /// What is known of how it ended.
    fn ended(&mut self) -> Fault {
        let waited_since = now();
        while !(self.errors.is_finished() && (self.is_over || has_ended(&self.child)))
            && now().duration_since(waited_since) < LAST_WORDS_PATIENCE
        {
            std::thread::sleep(LOOK_INTERVAL);
        }
        let mut told = self
            .end()
            .map_or_else(String::new, |status| format!(" ({status})"));
        let last_words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if !last_words.is_empty() {
            told.push_str(": ");
            told.push_str(&last_words);
        }
        Fault::Ended(told)
    }

    /// Ends it, unless that is done.
    fn end(&mut self) -> Option<ExitStatus> {
        if !std::mem::replace(&mut self.is_over, true) {
            end_group(&mut self.child);
        }
        self.child.wait().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_over && !self.stop.is_cancelled() && self.tell(&Request::Stop).is_ok() {
            drop(self.stdin.take());
            ends_within(&self.child, END_PATIENCE);
        }
        drop(self.stdin.take());
        self.end();
    }
}

fn read_answers(stdout: ChildStdout, lines: &SyncSender<io::Result<Line>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let line = match read_line(&mut stdout, LINE_BYTES_MAX) {
            Ok(Some(piece)) if piece.is_whole => Ok(Line::Whole(piece.bytes)),
            Ok(Some(piece)) if piece.bytes.len() > LINE_BYTES_MAX => Ok(Line::TooLong),
            // A line without its end is not all of what was to be said.
            Ok(Some(_) | None) => return,
            Err(error) => Err(error),
        };
        let is_last = !matches!(line, Ok(Line::Whole(_)));
        if lines.send(line).is_err() || is_last {
            return;
        }
    }
}

/// Brings what a trainer writes to its standard error into the log, and keeps the last line of it.
fn tell_errors(stderr: ChildStderr, pid: u32, last_words: &Mutex<String>) {
    let mut stderr = BufReader::new(stderr);
    let mut told = Told::new(now());
    while let Ok(Some(piece)) = read_line(&mut stderr, TOLD_BYTES_MAX) {
        let line = shown_whole(&piece.bytes);
        if line.trim().is_empty() {
            continue;
        }
        let (may_tell, left_out) = told.line(now());
        if left_out > 0 {
            info!(pid, left_out, "lines of the trainer are not in the log");
        }
        if may_tell {
            info!(pid, line, "the trainer says");
        }
        *last_words.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

fn shown_whole(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.chars().filter(|character| !character.is_control()).collect()
}

/// How much of a trainer's talk is in the log.
#[derive(Debug)]
struct Told {
    since: Instant,
    lines: u32,
}

impl Told {
    fn new(now: Instant) -> Self {
        Self { since: now, lines: 0 }
    }

    /// Counts a line: whether it may be told, and how many were not since that was last said.
    fn line(&mut self, now: Instant) -> (bool, u32) {
        let mut left_out = 0;
        if now.duration_since(self.since) >= TOLD_INTERVAL {
            left_out = self.lines.saturating_sub(TOLD_MAX);
            *self = Self::new(now);
        }
        self.lines = self.lines.saturating_add(1);
        (self.lines <= TOLD_MAX, left_out)
    }
}

/// Ends the process and all of its group that is still there. Not for one that was waited for.
fn end_group(child: &mut Child) {
    let group = Pid::from_child(child);
    // As long as the child was not waited for, its number is no other's.
    if !has_ended(child) {
        let _ = kill_process_group(group, Signal::TERM);
        ends_within(child, END_PATIENCE);
    }
    let _ = kill_process_group(group, Signal::KILL);
    // Nothing survives that signal.
    let _ = child.wait();
}

fn ends_within(child: &Child, patience: Duration) {
    let since = now();
    while !has_ended(child) && now().duration_since(since) < patience {
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Whether it has ended; its number stays its own.
fn has_ended(child: &Child) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(Pid::from_child(child)), options), Ok(None))
}

#[expect(clippy::disallowed_methods, reason = "a process is waited for")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(command: &str) -> (Process, Pid, CancellationToken) {
        let stop = CancellationToken::new();
        let process = Process::start(command, stop.clone()).unwrap();
        let group = Pid::from_child(&process.child);
        (process, group, stop)
    }

    fn assert_gone(group: Pid) {
        let since = now();
        // Killed at once; its parent takes note a moment later.
        while rustix::process::test_kill_process_group(group).is_ok() {
            assert!(
                now().duration_since(since) < Duration::from_secs(30),
                "it is still there"
            );
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    #[test]
    fn a_trainer_that_never_answers_is_given_up_and_ended_with_its_own_children() {
        let (mut process, group, _stop) = started("sleep 1000 & sleep 1000");
        let patience = Duration::from_millis(200);
        let fault = process.ask(&Request::Evaluate, Expected::Evaluated, patience);
        assert!(matches!(fault, Err(Fault::Silent(_))), "{fault:?}");
        drop(process);
        assert_gone(group);
    }

    #[test]
    fn signs_of_life_extend_the_patience() {
        let busy = r#"read -r line; for i in 1 2 3; do sleep 1; echo '{"type":"progress"}'; done; echo '{"type":"restored"}'"#;
        let (mut process, ..) = started(busy);
        let patience = Duration::from_millis(2500);
        let answer = process.ask(&Request::Restore { bytes: 0 }, Expected::Restored, patience);
        assert_eq!(answer.unwrap(), Answer::Restored);
    }

    #[test]
    fn a_node_that_stops_waits_for_no_answer_and_a_trainer_that_ignores_sigterm_is_killed() {
        let (mut process, group, stop) = started("trap '' TERM; while :; do sleep 1; done");
        let stopping = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            stop.cancel();
        });
        let fault = process.ask(&Request::Evaluate, Expected::Evaluated, Duration::from_secs(600));
        assert!(matches!(fault, Err(Fault::Stopped)), "{fault:?}");
        stopping.join().unwrap();
        drop(process);
        assert_gone(group);
    }

    #[test]
    fn the_last_words_of_a_trainer_are_part_of_the_fault() {
        let (mut process, group, _stop) = started("echo first >&2; echo 'no data' >&2; exit 4");
        let fault = process
            .answer(Expected::Hello, Duration::from_secs(60))
            .unwrap_err();
        assert_eq!(fault.to_string(), "it has ended (exit status: 4): no data");
        let fault = process.ask(&Request::Evaluate, Expected::Evaluated, Duration::from_secs(60));
        assert!(matches!(fault, Err(Fault::Ended(_))), "{fault:?}");
        assert_gone(group);
    }

    #[test]
    fn a_chatty_trainer_fills_no_log() {
        let start = now();
        let mut told = Told::new(start);
        let first: Vec<_> = (0..TOLD_MAX + 50).map(|_| told.line(start)).collect();
        assert!(first[..100].iter().all(|line| *line == (true, 0)));
        assert!(first[100..].iter().all(|line| *line == (false, 0)));
        assert_eq!(told.line(start + TOLD_INTERVAL), (true, 50));
        assert_eq!(told.line(start + TOLD_INTERVAL), (true, 0));
    }
}
