//! Carries frames between the two ends of a shaped link: the driver of two [`Pipe`]s, and of the [`Paths`] beyond it.
//!
//! A thread of its own sleeps until a frame comes or is due, to the nanosecond as far as the kernel goes. The TAP
//! devices have no offloads, so that no frame is larger than the packet size of the link allows.

use std::io;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tappers::linux::Tap;

use crate::error::LabError;
use crate::paths::Paths;
use crate::pipe::{Counters, Pipe};
use crate::shape::Shape;

/// Frames read from one end before the other has its turn.
const BATCH: usize = 64;

/// Buffers kept for the next frames: 1.5 MB of full frames.
const SPARE_MAX: usize = 1_024;

/// The largest frame of a link with jumbo packets.
const FRAME_MAX: usize = 9_018;

/// Which way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From the node to the internet.
    Up,
    /// To the node.
    Down,
}

/// A running forwarder; ends when dropped.
#[derive(Debug)]
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    up: Mutex<Pipe>,
    down: Mutex<Pipe>,
    /// What passes them has passed `up`.
    paths: Mutex<Paths>,
    wake: OwnedFd,
    stopped: AtomicBool,
}

impl Forwarder {
    /// Carries what comes out of `lower` up to `upper`, and what comes out of `upper` down.
    pub(crate) fn start(
        lower: Tap,
        upper: Tap,
        up: Pipe,
        down: Pipe,
        paths: Paths,
    ) -> Result<Self, LabError> {
        let start = || -> io::Result<Self> {
            lower.set_nonblocking(true)?;
            upper.set_nonblocking(true)?;
            let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let (up, down) = (Mutex::new(up), Mutex::new(down));
            let shared = Arc::new(Shared {
                up,
                down,
                paths: Mutex::new(paths),
                wake,
                stopped: AtomicBool::new(false),
            });
            let thread = thread::Builder::new().name("netlab-link".into()).spawn({
                let shared = shared.clone();
                move || shared.run(&lower, &upper)
            })?;
            Ok(Self {
                shared,
                thread: Some(thread),
            })
        };
        start().map_err(LabError::system("start the forwarder of a shaped link"))
    }

    pub(crate) fn set_shape(&self, up: Shape, down: Shape) {
        self.shared.pipe(Way::Up).set_shape(up);
        self.shared.pipe(Way::Down).set_shape(down);
    }

    pub(crate) fn set_path(&self, to: &[IpAddr], shape: Shape) {
        self.shared.paths().set(to, shape);
    }

    pub(crate) fn shape(&self, way: Way) -> Shape {
        self.shared.pipe(way).shape()
    }

    pub(crate) fn counters(&self, way: Way) -> Counters {
        self.shared.pipe(way).counters()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // An event counter that cannot be written to is full, and wakes as well.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn pipe(&self, way: Way) -> MutexGuard<'_, Pipe> {
        let pipe = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(clippy::disallowed_methods, reason = "the driver reads the clock")]
    fn run(&self, lower: &Tap, upper: &Tap) {
        be_punctual();
        let mut scratch = vec![0; FRAME_MAX];
        let mut spare: Vec<Vec<u8>> = Vec::new();
        let mut readable = [true; 2];
        while !self.stopped.load(Ordering::Acquire) {
            let mut next_at: Option<Instant> = None;
            let ways = [(Way::Up, lower, upper), (Way::Down, upper, lower)];
            for ((way, from, to), readable) in ways.into_iter().zip(&mut readable) {
                let mut pipe = self.pipe(way);
                for _ in 0..BATCH {
                    if !*readable {
                        break;
                    }
                    // Whatever is wrong with a device, it has nothing for us; the poll below tells if it is gone.
                    let Ok(length) = from.recv(&mut scratch) else {
                        *readable = false;
                        break;
                    };
                    let mut frame = spare.pop().unwrap_or_default();
                    frame.clear();
                    frame.extend_from_slice(&scratch[..length]);
                    spare.extend(pipe.push(Instant::now(), frame));
                }
                let now = Instant::now();
                let mut paths = (way == Way::Up).then(|| self.paths());
                let mut next = || {
                    while let Some(frame) = pipe.pop(now) {
                        let path = paths.as_mut().and_then(|paths| paths.towards(&frame));
                        let Some(path) = path else { return Some(frame) };
                        // Lost, or dropped at the tail.
                        drop(path.push(now, frame));
                    }
                    paths.as_mut()?.pop(now)
                };
                while let Some(frame) = next() {
                    // A device that is down takes nothing, as a cable that hangs loose.
                    let _ = to.send(&frame);
                    if spare.len() < SPARE_MAX {
                        spare.push(frame);
                    }
                }
                let beyond = paths.as_ref().and_then(|paths| paths.next_at());
                next_at = next_at.into_iter().chain(pipe.next_at()).chain(beyond).min();
            }
            if readable.contains(&true) {
                continue;
            }
            let wait = next_at.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = wait.and_then(|wait| Timespec::try_from(wait).ok());
            let mut polled = [
                PollFd::new(lower, PollFlags::IN),
                PollFd::new(upper, PollFlags::IN),
                PollFd::new(&self.wake, PollFlags::IN),
            ];
            match poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => (),
                Err(_) => return,
            }
            for (readable, polled) in readable.iter_mut().zip(&polled) {
                if polled
                    .revents()
                    .intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
                {
                    return;
                }
                *readable = polled.revents().contains(PollFlags::IN);
            }
        }
    }
}

/// Wakes to the nanosecond instead of within 50 us, and before what only computes. A kernel that refuses either
/// makes the link less exact, which the measurement of a shaped link tells.
fn be_punctual() {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -15);
}
