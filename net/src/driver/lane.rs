//! A lane: channels of all classes over one stream of bytes, moved by two tasks. What goes first and how much is
//! under way is [`Mux`]'s to say.
//!
//! The writing task hands over one slice at a time and flushes it; the reading task takes whatever arrives and
//! waits for no channel. Both belong to the tracker that they were started on, and end with the lane.

mod reading;
mod shared;
mod stream;
mod writing;

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a link between tests has the runtime's clock"
)]
mod link;

pub use shared::LaneEnd;
pub use stream::LaneStream;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::{LANE_CHANNELS_MAX, LaneSide, Mux, OpenChannelError, Pace, WindowMode};
use lapwing_base::{Bandwidth, ByteSize, Class};
use shared::Shared;

/// Says when so many bytes of a class may leave: a node's own limits, which all of its lanes share.
pub type Toll = Arc<dyn Fn(Class, ByteSize, Instant) -> Instant + Send + Sync>;

/// How a lane is held back.
#[derive(Clone, Default)]
pub struct LaneConfig {
    /// What bulk to this peer is held to. Default: nothing.
    pub upload_max: Option<Bandwidth>,
    /// What single classes are held to. Default: nothing.
    pub class_max: Vec<(Class, Bandwidth)>,
    /// What the peer may have under way on a channel of single classes before it was read. Default: what fits a fast
    /// link.
    pub window_max: Vec<(Class, ByteSize)>,
    /// What the link carries, as measured before: maintenance gets a tenth of it. Default: unknown.
    pub link_rate: Option<Bandwidth>,
    /// The node's own limits. Default: none.
    pub toll: Option<Toll>,
    /// Channels that the peer may have open at once. Default: [`LANE_CHANNELS_MAX`].
    pub inbound_max: Option<usize>,
}

/// One end of a lane. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "a lane ends when its handle is dropped"]
pub struct Lane {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// No channel was opened.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenLaneStreamError {
    /// The lane is over: make another.
    #[error("the lane is over: {0}")]
    Over(LaneEnd),
    /// The lane has no channel left for now.
    #[error(transparent)]
    Channel(#[from] OpenChannelError),
}

/// What a lane does at the moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LaneFigures {
    /// Round trip of the last ping, in the class of what is most urgent.
    pub rtt: Option<Duration>,
    /// Round trip of slices of bulk without a queue.
    pub base_rtt: Option<Duration>,
    /// Bytes of bulk that may be under way.
    pub window: u64,
    /// What the window does.
    pub mode: WindowMode,
    /// Bytes sent and not acknowledged.
    pub in_flight: u64,
    /// Bytes of data that have arrived.
    pub received: u64,
    /// Channels that are open.
    pub channels: usize,
}

impl Lane {
    /// Starts a lane over `io`, whose other end does the same with the other [`LaneSide`]. The receiver yields the
    /// channels that the peer opens; dropping it refuses them.
    pub fn start<T>(
        io: T,
        side: LaneSide,
        config: LaneConfig,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> (Self, mpsc::Receiver<(Class, LaneStream)>)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut mux = Mux::new(side, shared::now());
        mux.set_theirs_max(config.inbound_max.unwrap_or(LANE_CHANNELS_MAX));
        let scheduler = mux.scheduler_mut();
        scheduler.limit_peer(config.upload_max);
        for (class, rate) in config.class_max {
            scheduler.limit_class(class, Some(rate));
        }
        scheduler.set_link_rate(config.link_rate);
        for (class, size) in config.window_max {
            mux.limit_window(class, size);
        }
        let stop = stop.child_token();
        let shared = Arc::new(Shared::new(mux, stop.clone()));
        // Every channel that waits here is open, of which there are no more than this.
        let (opened, inbound) = mpsc::channel(LANE_CHANNELS_MAX);
        let (reader, writer) = io.split();
        tasks.spawn(reading::run(reader, Arc::clone(&shared), opened));
        tasks.spawn(writing::run(writer, Arc::clone(&shared), config.toll));
        let lane = Self {
            shared,
            _stop: stop.drop_guard(),
        };
        (lane, inbound)
    }

    /// Opens a channel of a class; the peer is told at once, and what is written follows.
    ///
    /// # Errors
    /// [`OpenLaneStreamError`] where the lane is over or has too many channels.
    pub fn open(&self, class: Class) -> Result<LaneStream, OpenLaneStreamError> {
        let channel = self.shared.open(class)?;
        Ok(LaneStream::new(Arc::clone(&self.shared), channel, class))
    }

    /// How many channels the peer may have open from now on, of at most [`LANE_CHANNELS_MAX`]; more are refused.
    pub fn set_inbound_max(&self, max: usize) {
        self.shared.with(|state| state.mux.set_theirs_max(max));
    }

    /// The link carries so much, as measured otherwise.
    pub fn set_link_rate(&self, rate: Option<Bandwidth>) {
        self.shared
            .with(|state| state.mux.scheduler_mut().set_link_rate(rate));
    }

    /// Watches the peer more or less closely from now on, while no channel is open; with one it is at least
    /// [`Pace::USED`].
    pub fn set_pace(&self, pace: Pace) {
        self.shared.with(|state| state.pace = pace);
        self.shared.to_send.notify_one();
    }

    /// Asks at once whether the peer is still there: something else says that it may not be.
    pub fn suspect(&self) {
        self.shared.with(|state| state.suspected = true);
        self.shared.to_send.notify_one();
    }

    /// What it does at the moment.
    pub fn figures(&self) -> LaneFigures {
        self.shared.with(|state| {
            let scheduler = state.mux.scheduler();
            let window = scheduler.window();
            LaneFigures {
                rtt: state.mux.rtt(),
                base_rtt: window.base_rtt(),
                window: window.window(),
                mode: window.mode(),
                in_flight: scheduler.in_flight(),
                received: state.mux.received(),
                channels: state.mux.channels(),
            }
        })
    }

    /// Waits until the lane is over, and says why.
    pub async fn ended(&self) -> LaneEnd {
        self.shared.ended().await
    }
}

impl fmt::Debug for LaneConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneConfig")
            .field("upload_max", &self.upload_max)
            .field("class_max", &self.class_max)
            .field("window_max", &self.window_max)
            .field("link_rate", &self.link_rate)
            .field("inbound_max", &self.inbound_max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests of the runtime's time")]
mod tests {
    use super::link::Link;
    use super::*;

    use futures::{AsyncWriteExt as _, StreamExt as _, stream::FuturesUnordered};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio_util::compat::TokioAsyncReadCompatExt as _;

    type Inbound = mpsc::Receiver<(Class, LaneStream)>;

    /// 20 Mbit/s, 50 ms, and a queue of a second.
    const LINK: Link = Link {
        rate: 2.5e6,
        rtt: Duration::from_millis(50),
        queue: 2_500_000,
    };

    /// Two ends of a lane, and who waits for their tasks.
    struct Pair {
        lanes: [Lane; 2],
        inbound: [Inbound; 2],
        tasks: TaskTracker,
        stop: CancellationToken,
    }

    impl Pair {
        fn over(link: Link) -> Self {
            let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
            let [left, right] = link.lay(&tasks);
            let (dialer, to_dialer) =
                Lane::start(left, LaneSide::Dialer, LaneConfig::default(), &tasks, &stop);
            let (listener, to_listener) =
                Lane::start(right, LaneSide::Listener, LaneConfig::default(), &tasks, &stop);
            Self {
                lanes: [dialer, listener],
                inbound: [to_dialer, to_listener],
                tasks,
                stop,
            }
        }

        /// A channel from the dialer, as both ends hold it.
        async fn channel(&mut self, class: Class) -> [LaneStream; 2] {
            let ours = self.lanes[0].open(class).unwrap();
            let (opened, theirs) = self.inbound[1].recv().await.unwrap();
            assert_eq!((opened, theirs.class()), (class, class));
            [ours, theirs]
        }

        async fn finish(self) {
            self.stop.cancel();
            drop((self.lanes, self.inbound));
            self.tasks.close();
            self.tasks.wait().await;
        }
    }

    /// Writes without end, and counts at the other end.
    fn saturate(
        tasks: &TaskTracker,
        stop: &CancellationToken,
        [mut from, mut to]: [LaneStream; 2],
    ) -> Counter {
        let counter = Counter::default();
        let counted = Arc::clone(&counter.0);
        let write = async move {
            let slice = vec![7; 64 << 10];
            while from.write_all(&slice).await.is_ok() {}
        };
        let read = async move {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(bytes @ 1..) = to.read(&mut buffer).await {
                counted.fetch_add(bytes as u64, std::sync::atomic::Ordering::Relaxed);
            }
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(write));
        tasks.spawn(stop.clone().run_until_cancelled_owned(read));
        counter
    }

    #[derive(Default)]
    struct Counter(Arc<std::sync::atomic::AtomicU64>);

    impl Counter {
        fn bytes(&self) -> u64 {
            self.0.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    /// Round trips of 256 bytes, in milliseconds, sorted.
    async fn echo([mut ours, mut theirs]: [LaneStream; 2], times: usize) -> Vec<f64> {
        let answer = async {
            let mut message = [0; 256];
            while theirs.read_exact(&mut message).await.is_ok() {
                theirs.write_all(&message).await.unwrap();
            }
        };
        let ask = async {
            let mut took = Vec::new();
            for _ in 0..times {
                let asked_at = tokio::time::Instant::now();
                ours.write_all(&[1; 256]).await.unwrap();
                ours.read_exact(&mut [0; 256]).await.unwrap();
                took.push(asked_at.elapsed().as_secs_f64() * 1000.0);
            }
            ours.close().await.unwrap();
            took.sort_by(f64::total_cmp);
            took
        };
        futures::future::join(ask, answer).await.0
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 251) as u8).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_arrive_in_order_both_ways_and_then_the_end() {
        let mut pair = Pair::over(LINK);
        let [ours, theirs] = pair.channel(Class::Model).await;
        let sent = pattern(700_000);
        let both = [ours, theirs].map(|end| {
            let sent = sent.clone();
            async move {
                let (mut reader, mut writer) = end.split();
                let mut read = Vec::new();
                let write = async {
                    writer.write_all(&sent).await.unwrap();
                    writer.close().await.unwrap();
                };
                let (ended, ()) = futures::future::join(reader.read_to_end(&mut read), write).await;
                ended.unwrap();
                assert!(read == sent);
            }
        });
        futures::future::join_all(both).await;
        pair.finish().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_urgent_keeps_its_latency_while_model_values_fill_the_link() {
        let mut pair = Pair::over(LINK);
        let idle = {
            let streams = pair.channel(Class::Consensus).await;
            echo(streams, 20).await
        };
        let bulk = pair.channel(Class::Model).await;
        let counter = saturate(&pair.tasks, &pair.stop, bulk);
        let streams = pair.channel(Class::Consensus).await;
        echo(streams, 40).await;
        let (before, since) = (counter.bytes(), tokio::time::Instant::now());
        let streams = pair.channel(Class::Consensus).await;
        let loaded = echo(streams, 300).await;
        let rate = (counter.bytes() - before) as f64 / since.elapsed().as_secs_f64();
        let (p50, p99) = (loaded[150], loaded[297]);
        let figures = pair.lanes[0].figures();
        println!(
            "idle {:.1} ms, loaded p50 {p50:.1} p99 {p99:.1} ms, bulk {:.1} Mbit/s, {figures:?}",
            idle[10],
            rate * 8e-6
        );
        assert!(p99 < idle[10] + 25.0, "{p50} {p99}");
        assert!(rate > 0.9 * LINK.rate, "{rate}");
        pair.finish().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_for_its_reader_and_nobody_else_does() {
        let mut pair = Pair::over(LINK);
        let [mut ours, mut theirs] = pair.channel(Class::Call).await;
        let sent = pattern(2_000_000);
        let mut written = 0;
        // Until nothing has moved for a second.
        while let Ok(bytes) = tokio::time::timeout(Duration::from_secs(1), ours.write(&sent[written..])).await
        {
            written += bytes.unwrap();
        }
        assert!(written < 300_000, "{written}");
        let beside = pair.channel(Class::Call).await;
        assert!(echo(beside, 10).await[9] < 60.0);
        let rest = sent[written..].to_vec();
        let write = async {
            ours.write_all(&rest).await.unwrap();
            ours.close().await.unwrap();
        };
        let mut read = Vec::new();
        let (ended, ()) = futures::future::join(theirs.read_to_end(&mut read), write).await;
        ended.unwrap();
        assert!(read == sent);
        pair.finish().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_finishes_a_channel_that_is_not_wanted_reads_why() {
        let mut pair = Pair::over(LINK);
        let [mut ours, mut theirs] = pair.channel(Class::Call).await;
        theirs.write_all(b"no").await.unwrap();
        drop(theirs);
        while ours.write_all(b"please").await.is_ok() {
            tokio::task::yield_now().await;
        }
        ours.close().await.unwrap();
        let mut answer = Vec::new();
        ours.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"no");
        pair.finish().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_channels_talk_at_once() {
        let mut pair = Pair::over(LINK);
        let mut talks = FuturesUnordered::new();
        for _ in 0..1000 {
            let streams = pair.channel(Class::Call).await;
            talks.push(echo(streams, 3));
        }
        while let Some(took) = talks.next().await {
            assert_eq!(took.len(), 3);
        }
        drop(talks);
        assert!(pair.lanes[0].open(Class::Call).is_ok());
        pair.finish().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_abrupt_end_wakes_everybody_who_waits() {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (near, far) = duplex(1 << 20);
        let config = LaneConfig::default();
        let (lane, mut inbound) = Lane::start(near.compat(), LaneSide::Dialer, config, &tasks, &stop);
        let mut reads = lane.open(Class::Call).unwrap();
        let mut writes = lane.open(Class::Model).unwrap();
        let read = async { reads.read(&mut [0; 10]).await.unwrap_err().kind() };
        let write = async {
            loop {
                if let Err(error) = writes.write_all(&[0; 10_000]).await {
                    return error.kind();
                }
            }
        };
        let cut = async {
            // Both wait by then.
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(far);
        };
        let (read, write, ()) = futures::future::join3(read, write, cut).await;
        assert_eq!(
            (read, write),
            (
                std::io::ErrorKind::UnexpectedEof,
                std::io::ErrorKind::UnexpectedEof
            )
        );
        assert!(matches!(lane.ended().await, LaneEnd::Closed));
        assert!(matches!(
            lane.open(Class::Call),
            Err(OpenLaneStreamError::Over(_))
        ));
        assert!(inbound.recv().await.is_none());
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_silent_or_talks_nonsense_ends_the_lane() {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (near, mut far) = duplex(1 << 20);
        let config = LaneConfig::default();
        let (lane, _inbound) = Lane::start(near.compat(), LaneSide::Dialer, config, &tasks, &stop);
        far.write_all(b"GET / HTTP/1.1").await.unwrap();
        assert!(matches!(lane.ended().await, LaneEnd::Misbehaved(_)));
        let (near, mut far) = duplex(1 << 20);
        let config = LaneConfig::default();
        let (lane, _inbound) = Lane::start(near.compat(), LaneSide::Dialer, config, &tasks, &stop);
        let since = tokio::time::Instant::now();
        assert!(matches!(lane.ended().await, LaneEnd::Silent));
        assert!(since.elapsed() <= Pace::LOOSE.silence, "{:?}", since.elapsed());
        // It has asked for an answer.
        let mut asked = Vec::new();
        far.read_to_end(&mut asked).await.unwrap();
        assert!(!asked.is_empty());
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_is_dropped_ends_at_both_ends() {
        let mut pair = Pair::over(LINK);
        let [_ours, mut theirs] = pair.channel(Class::Call).await;
        let [dialer, listener] = pair.lanes;
        drop(dialer);
        assert!(theirs.read(&mut [0; 1]).await.is_err());
        assert!(matches!(listener.ended().await, LaneEnd::Closed));
        drop((listener, pair.inbound));
        pair.tasks.close();
        pair.tasks.wait().await;
    }

    #[tokio::test(start_paused = true)]
    async fn channels_that_nobody_takes_are_refused() {
        let mut pair = Pair::over(LINK);
        let (_sender, closed) = mpsc::channel(1);
        drop(std::mem::replace(&mut pair.inbound[1], closed));
        let mut stream = pair.lanes[0].open(Class::Call).unwrap();
        // The peer ends it at once, and takes nothing.
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        while stream.write_all(&[0; 1000]).await.is_ok() {}
        pair.finish().await;
    }
}
