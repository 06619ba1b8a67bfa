//! Lines: one channel from a node to each neighbour on which its calls go and their answers come back, many at a time. A
//! channel for each of them would cost both ends more than a short call does.
//!
//! Nothing waits behind what is long: a long call goes over a channel of its own ([`super::calls::CALL`]), and so does a long
//! answer, which whoever gives it opens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapwing_base::{ByteSize, Class, PeerId};
use lapwing_net::{Access, Channel, ChannelError, Kind, RequestError, SendHalf, decode, encode};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::debug;

use super::calls::{self, TELL_TIMEOUT, UNDER_WAY_MAX};
use super::{Inner, now};
use crate::{Call, CallAnswer, CallError, ErrorCode};

/// Calls and their answers, as [`Asked`] and [`Told`].
pub(super) const LINE: Kind = Kind {
    class: Class::Call,
    name: "calls",
    // Whoever is a neighbour.
    access: Access::Guests,
    frame_max: ByteSize::kib(64),
};

/// One long answer: a [`Number`], and then a [`CallAnswer`].
pub(super) const ANSWER: Kind = Kind {
    class: Class::Call,
    name: "answer",
    access: Access::Guests,
    frame_max: ByteSize::mib(16),
};

/// Channels that wait to be taken: a line of every home that comes back at once.
pub(super) const LINE_QUEUE: usize = 1024;
pub(super) const ANSWER_QUEUE: usize = 1_000;

/// The longest call and the longest answer that go over a line, in bytes: over 20 Mbit/s that is 13 ms for whatever is behind.
const SHORT_MAX: usize = 32 * 1024;

/// Calls of one line that are carried out at a time: those that a neighbour may have under way, and as many that it has given up
/// and that are not over yet.
const AT_ONCE_MAX: usize = 2 * UNDER_WAY_MAX;

/// In which a line is opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// So long whoever has opened a channel for a long answer may take to say which it is.
const NUMBER_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells the calls apart that are under way to one neighbour.
type Number = u64;

/// A call, or that nobody waits for its answer any more.
type Asked = (Number, Option<Call>);

/// What came of a call.
type Told = (Number, CallAnswer);

/// What comes back of a call that was asked: an answer, or why there is none, which may concern many.
type Outcome = Result<CallAnswer, Arc<RequestError>>;

/// A line to one neighbour. Its channel is opened with the first call, and closed when the last handle is dropped.
#[derive(Clone, Debug)]
pub(super) struct Line {
    frames: mpsc::Sender<Vec<u8>>,
    pending: Arc<Pending>,
}

/// The calls of one line that wait for their answers.
#[derive(Debug, Default)]
struct Pending {
    waiting: Mutex<HashMap<Number, oneshot::Sender<Outcome>>>,
    asked: AtomicU64,
}

impl Pending {
    fn waiting(&self) -> MutexGuard<'_, HashMap<Number, oneshot::Sender<Outcome>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, number: Number, answer: CallAnswer) {
        if let Some(waiter) = self.waiting().remove(&number) {
            // Whoever has asked may go this moment.
            let _gone = waiter.send(Ok(answer));
        }
    }

    /// None of those that wait now is answered any more, and nothing of what is to be said of them is sent.
    fn fail(&self, frames: &mut mpsc::Receiver<Vec<u8>>, why: RequestError) {
        let why = Arc::new(why);
        // Who begins to wait puts its frame in the queue under the same lock.
        let mut waiting = self.waiting();
        while frames.try_recv().is_ok() {}
        for (_, waiter) in waiting.drain() {
            let _gone = waiter.send(Err(Arc::clone(&why)));
        }
    }
}

/// Says that nobody waits for an answer any more, where that is so when this is dropped.
struct GiveUp<'a> {
    line: &'a Line,
    number: Number,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if self.line.pending.waiting().remove(&self.number).is_some() {
            let nobody: (Number, Option<&Call>) = (self.number, None);
            // Where there is no room, the call is carried out in vain.
            let _full = self.line.frames.try_send(encode(&nobody));
        }
    }
}

impl Inner {
    /// The line to a neighbour.
    pub(super) fn line(self: &Arc<Self>, to: PeerId) -> Line {
        let mut state = self.lock();
        let line = state.lines.entry(to).or_insert_with(|| {
            // One for each call and one for its being given up.
            let (frames, to_send) = mpsc::channel(2 * UNDER_WAY_MAX);
            let pending = Arc::<Pending>::default();
            let keeping = keep(Arc::clone(self), to, to_send, Arc::clone(&pending));
            self.tasks
                .spawn(self.stop.child_token().run_until_cancelled_owned(keeping));
            Line { frames, pending }
        });
        line.clone()
    }
}

impl Line {
    /// Whether nobody uses it, so that nothing is lost with it.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.waiting().is_empty() && self.frames.strong_count() == 1
    }

    /// Asks a neighbour; `None` where the call is too long for a line, or has no place in it. May be dropped: then the
    /// neighbour gives the call up.
    pub(super) async fn ask(&self, to: PeerId, call: &Call) -> Option<Outcome> {
        let number = self.pending.asked.fetch_add(1, Ordering::Relaxed);
        let frame = encode(&(number, Some(call)));
        if frame.len() > SHORT_MAX {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = self.pending.waiting();
            self.frames.try_send(frame).ok()?;
            waiting.insert(number, reply);
        }
        let _give_up = GiveUp { line: self, number };
        // Its other end is dropped only where this node stops.
        let stopped = |_| Err(Arc::new(RequestError::NoAnswer { peer: to, kind: LINE }));
        Some(answer.await.unwrap_or_else(stopped))
    }
}

/// Opens the channel of a line whenever there is something to send, until nobody has the line any more.
async fn keep(inner: Arc<Inner>, peer: PeerId, mut frames: mpsc::Receiver<Vec<u8>>, pending: Arc<Pending>) {
    while let Some(first) = frames.recv().await {
        let why = match calls::open(&inner, peer, LINE, OPEN_TIMEOUT).await {
            Ok(channel) => match carry(channel, first, &mut frames, &pending).await {
                Ok(()) => return,
                Err(error) => error,
            },
            Err(error) => error.into(),
        };
        debug!(%peer, error = %why, "a line was lost");
        pending.fail(&mut frames, why);
    }
}

/// Carries calls and answers over one channel, until nobody has the line any more.
async fn carry(
    channel: Channel,
    first: Vec<u8>,
    frames: &mut mpsc::Receiver<Vec<u8>>,
    pending: &Pending,
) -> Result<(), RequestError> {
    let peer = channel.peer();
    let (mut send, mut receive) = channel.split();
    let asking = async {
        send.send(&first).await?;
        send_all(&mut send, frames).await
    };
    let hearing = async {
        while let Some(frame) = receive.receive().await? {
            let Ok((number, answer)) = decode::<Told>(&frame) else {
                break;
            };
            pending.answer(number, answer);
        }
        Err(RequestError::NoAnswer { peer, kind: LINE })
    };
    tokio::select! {
        // What the peer says tells more of why nothing can be sent.
        biased;
        heard = hearing => heard,
        asked = asking => Ok(asked?),
    }
}

/// Sends what is to be sent until nothing follows.
async fn send_all<F: AsRef<[u8]>>(
    send: &mut SendHalf,
    frames: &mut mpsc::Receiver<F>,
) -> Result<(), ChannelError> {
    let mut batch = Vec::new();
    while let Some(first) = frames.recv().await {
        batch.push(first);
        // Everybody who can go on does so first: what they say then leaves in the same datagrams. Where there is nobody, it
        // costs a look at the sockets.
        tokio::task::yield_now().await;
        while let Ok(frame) = frames.try_recv() {
            batch.push(frame);
        }
        for frame in batch.drain(..) {
            send.send(frame.as_ref()).await?;
        }
    }
    send.finish().await
}

/// Answers the calls of the lines that neighbours open, until the queue ends. A neighbour has one line: another one takes the
/// place of the one before.
pub(super) async fn answer(inner: Arc<Inner>, mut queue: mpsc::Receiver<Channel>) {
    let mut lines = JoinSet::new();
    let mut of_peers: HashMap<PeerId, AbortHandle> = HashMap::new();
    loop {
        tokio::select! {
            channel = queue.recv() => match channel {
                Some(channel) => {
                    let peer = channel.peer();
                    let answering = answer_line(Arc::clone(&inner), channel);
                    let line = lines.spawn(async move {
                        match answering.await {
                            Ok(()) => debug!(%peer, "a line has ended"),
                            Err(error) => debug!(%peer, %error, "a line was lost"),
                        }
                    });
                    if let Some(before) = of_peers.insert(peer, line) {
                        before.abort();
                    }
                }
                None => return,
            },
            Some(_) = lines.join_next() => of_peers.retain(|_, line| !line.is_finished()),
        }
    }
}

/// Carries out what is asked over one line, until either end is gone.
async fn answer_line(inner: Arc<Inner>, channel: Channel) -> Result<(), ChannelError> {
    let peer = channel.peer();
    let (mut send, mut receive) = channel.split();
    let (answers, mut to_tell) = mpsc::channel::<Answer>(AT_ONCE_MAX);
    let telling = send_all(&mut send, &mut to_tell);
    let carrying = async {
        let mut calls = JoinSet::new();
        let mut under_way: HashMap<Number, AbortHandle> = HashMap::new();
        loop {
            tokio::select! {
                frame = receive.receive() => {
                    let Some(frame) = frame? else { return Ok(()) };
                    let Ok((number, asked)) = decode::<Asked>(&frame) else {
                        debug!(%peer, "a line carries something that is no call");
                        return Ok(());
                    };
                    match asked {
                        Some(call) if calls.len() < AT_ONCE_MAX => {
                            let one = answer_one(Arc::clone(&inner), peer, number, call, answers.clone());
                            under_way.insert(number, calls.spawn(one));
                        }
                        Some(call) => {
                            let busy = Answer {
                                frame: encode(&(number, &calls::busy(&inner, &call.service))),
                                _in_hand: inner.answering.token(),
                            };
                            if answers.try_send(busy).is_err() {
                                // It does not read its answers either.
                                return Ok(());
                            }
                        }
                        None => if let Some(call) = under_way.remove(&number) {
                            call.abort();
                        },
                    }
                }
                Some(ended) = calls.join_next() => match ended {
                    Ok(number) => drop(under_way.remove(&number)),
                    Err(error) if error.is_cancelled() => {}
                    // Whoever has asked is told by the end of the line.
                    Err(_) => return Ok(()),
                },
            }
        }
    };
    tokio::select! {
        told = telling => told,
        carried = carrying => carried,
    }
}

/// An answer on its way into the line: a node that ends waits until it was written.
struct Answer {
    frame: Vec<u8>,
    _in_hand: TaskTrackerToken,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

async fn answer_one(
    inner: Arc<Inner>,
    peer: PeerId,
    number: Number,
    call: Call,
    answers: mpsc::Sender<Answer>,
) -> Number {
    let in_hand = inner.answering.token();
    // Apart, so that a task is moved to where it stays before it is long.
    let answer = Box::pin(calls::answer_to(&inner, peer, call, now())).await;
    let mut frame = encode(&(number, &answer));
    if frame.len() > SHORT_MAX {
        // Apart, since it would make every task that answers a call as long as this one.
        let told = Box::pin(tell_apart(&inner, peer, number, &answer));
        let told = tokio::time::timeout(TELL_TIMEOUT, told).await;
        match told {
            Ok(Err(error)) => {
                let error = CallError::new(ErrorCode::PeerUnreachable, lapwing_base::chain(&error));
                frame = encode(&(number, &calls::failed(&inner, error)));
            }
            // Whoever does not read its answer has none.
            Ok(Ok(())) | Err(_) => return number,
        }
    }
    // Where nobody takes it, the line has ended.
    let answer = Answer {
        frame,
        _in_hand: in_hand,
    };
    let _ended = answers.send(answer).await;
    number
}

/// Tells a long answer over a channel of its own.
async fn tell_apart(
    inner: &Inner,
    peer: PeerId,
    number: Number,
    answer: &CallAnswer,
) -> Result<(), RequestError> {
    let mut channel = inner.network.open(peer, ANSWER, TELL_TIMEOUT).await?;
    channel.send(&encode(&number)).await?;
    let (mut send, mut receive) = channel.split();
    calls::tell(inner, &mut send, answer).await?;
    // Nothing comes but the end, or why it is not taken.
    receive.receive().await?;
    Ok(())
}

/// Takes the long answers of neighbours, until the queue ends.
pub(super) async fn take_answers(inner: Arc<Inner>, mut queue: mpsc::Receiver<Channel>) {
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            channel = queue.recv(), if answers.len() < ANSWER_QUEUE => match channel {
                Some(channel) => drop(answers.spawn(take_answer(Arc::clone(&inner), channel))),
                None => return,
            },
            Some(_) = answers.join_next() => (),
        }
    }
}

async fn take_answer(inner: Arc<Inner>, mut channel: Channel) {
    let peer = channel.peer();
    let Ok(Ok(Some(frame))) = tokio::time::timeout(NUMBER_TIMEOUT, channel.receive()).await else {
        return;
    };
    let line = inner.lock().lines.get(&peer).cloned();
    let (Some(line), Ok(number)) = (line, decode::<Number>(&frame)) else {
        return;
    };
    if !line.pending.waiting().contains_key(&number) {
        // Nothing is read that nobody waits for.
        return;
    }
    if let Ok(Ok(Some(frame))) = tokio::time::timeout(TELL_TIMEOUT, channel.receive()).await {
        let answer = decode(&frame).unwrap_or_else(|_| calls::unreadable(&inner, peer));
        line.pending.answer(number, answer);
    }
}
