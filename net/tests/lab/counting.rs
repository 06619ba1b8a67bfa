//! One node counts, another answers each number, for as long as a test disturbs what is between them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapwing_base::{ByteSize, Class};
use lapwing_net::{Access, Channel, Kind};

use crate::nodes::{LabNode, eventually};

const COUNT: Kind = Kind {
    class: Class::Call,
    name: "count",
    access: Access::Members,
    frame_max: ByteSize::kib(1),
};

/// Between two numbers.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the next channel may take.
const OPENED: Duration = Duration::from_secs(30);

/// What arrived, by channel, in the order in which it did.
pub(crate) struct Answering {
    channels: Arc<Mutex<Vec<Vec<u64>>>>,
}

impl Answering {
    /// The node answers from now on.
    pub(crate) fn start(node: &LabNode) -> Self {
        let channels: Arc<Mutex<Vec<Vec<u64>>>> = Arc::default();
        let mut inbound = node.network.serve(COUNT, 64);
        let logs = Arc::clone(&channels);
        node.spawn(async move {
            while let Some(mut channel) = inbound.recv().await {
                let logs = Arc::clone(&logs);
                let number = {
                    let mut logs = logs.lock().unwrap();
                    logs.push(Vec::new());
                    logs.len() - 1
                };
                tokio::spawn(async move {
                    while let Ok(Some(frame)) = channel.receive().await {
                        let count = u64::from_le_bytes(frame[..8].try_into().unwrap());
                        logs.lock().unwrap()[number].push(count);
                        if channel.send(&frame).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { channels }
    }
}

/// A node that counts towards another: over one channel for as long as it lives, then over the next.
pub(crate) struct Counting {
    pub(crate) name: String,
    stop: Arc<AtomicBool>,
    progress: Arc<Mutex<Progress>>,
    began_at: Instant,
}

#[derive(Default)]
struct Progress {
    /// When each number was answered.
    answered_at: Vec<Instant>,
    channels_lost: usize,
    over: bool,
}

impl Counting {
    pub(crate) fn start(from: &LabNode, to: &LabNode) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let progress: Arc<Mutex<Progress>> = Arc::default();
        let counting = Self {
            name: format!("{} to {}", from.name, to.name),
            stop: Arc::clone(&stop),
            progress: Arc::clone(&progress),
            began_at: Instant::now(),
        };
        let (network, peer) = (from.network.clone(), to.id());
        from.spawn(async move {
            let mut next = 0_u64;
            let mut channel: Option<Channel> = None;
            while !stop.load(Ordering::Relaxed) {
                let Some(open) = &mut channel else {
                    channel = network.open(peer, COUNT, OPENED).await.ok();
                    if channel.is_none() {
                        tokio::time::sleep(PAUSE).await;
                    }
                    continue;
                };
                let answered = async {
                    open.send(&next.to_le_bytes()).await?;
                    open.receive().await
                };
                if matches!(answered.await, Ok(Some(frame)) if frame[..] == next.to_le_bytes()) {
                    next += 1;
                    progress.lock().unwrap().answered_at.push(Instant::now());
                    tokio::time::sleep(PAUSE).await;
                } else {
                    // Not answered: nobody may count on it, and it is asked again.
                    channel = None;
                    progress.lock().unwrap().channels_lost += 1;
                }
            }
            progress.lock().unwrap().over = true;
        });
        counting
    }

    /// How long nothing was answered at most since then, up to now.
    pub(crate) fn longest_silence(&self, since: Instant) -> Duration {
        let progress = self.progress.lock().unwrap();
        let before = progress.answered_at.iter().rev().find(|at| **at <= since);
        let mut last = before.copied().unwrap_or(self.began_at).max(since);
        let mut longest = Duration::ZERO;
        for at in progress.answered_at.iter().filter(|at| **at > since) {
            longest = longest.max(at.duration_since(last));
            last = *at;
        }
        longest.max(last.elapsed())
    }

    pub(crate) fn answered(&self) -> usize {
        self.progress.lock().unwrap().answered_at.len()
    }

    pub(crate) fn channels_lost(&self) -> usize {
        self.progress.lock().unwrap().channels_lost
    }

    /// Waits for so many more answers.
    pub(crate) fn await_answers(&self, more: usize, patience: Duration) -> Duration {
        let enough = self.answered() + more;
        eventually(&format!("{} is answered", self.name), patience, || {
            self.answered() >= enough
        })
    }

    /// Ends, and checks that whatever was answered has arrived exactly once on the channel that answered it, and in
    /// order.
    pub(crate) fn finish(self, answering: &Answering) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        eventually("the counting has ended", Duration::from_secs(60), || {
            self.progress.lock().unwrap().over
        });
        let answered = self.answered() as u64;
        let channels = answering.channels.lock().unwrap();
        let mut arrived: HashSet<u64> = HashSet::new();
        for channel in channels.iter() {
            assert!(
                channel.windows(2).all(|pair| pair[1] == pair[0] + 1),
                "{}: a channel has lost, repeated or reordered: {channel:?}",
                self.name
            );
            arrived.extend(channel);
        }
        let lost: Vec<_> = (0..answered).filter(|number| !arrived.contains(number)).collect();
        assert!(
            lost.is_empty(),
            "{}: answered and never arrived: {lost:?}",
            self.name
        );
        self.channels_lost()
    }
}
