//! The congestion controller of a bulk lane: holds the delay that the lane causes. The arithmetic is
//! [`DelayWindow`]'s.

use std::any::Any;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

use super::now;
use super::shared::lock;
use crate::{Arrivals, DelayWindow, RememberedWindow, WindowMode};

/// Makes the controllers of bulk lanes, one for each path.
#[derive(Clone, Copy, Debug, Default)]
pub struct DelayCongestion;

/// What the window of a bulk lane does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WindowFigures {
    /// Bytes that may be in flight.
    pub window: u64,
    /// What the window is doing.
    pub mode: WindowMode,
    /// The round trip without a queue, once something was acknowledged.
    pub base_rtt: Option<Duration>,
}

impl WindowFigures {
    /// Of a connection; `None` where its controller is another.
    pub fn of(connection: &quinn::Connection) -> Option<Self> {
        let state = connection.congestion_state().into_any();
        let DelayController { window, .. } = state.downcast_ref()?;
        Some(Self {
            window: window.window(),
            mode: window.mode(),
            base_rtt: window.base_rtt(),
        })
    }
}

impl ControllerFactory for DelayCongestion {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(DelayController {
            window: DelayWindow::new(now, current_mtu),
            hints: Arc::default(),
        })
    }
}

/// What is known of the queues between this node and a peer while both send bulk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Crossing {
    /// How long what comes from the peer waits, and with it acknowledgements.
    pub(crate) returning: Duration,
    /// How long what we send waits, as the peer sees it, if it says so.
    pub(crate) seen: Option<Duration>,
}

/// The peer of a bulk lane sends bulk too, and this is known of the queues in between at `now`.
pub(crate) fn set_crossing(lane: &quinn::Connection, queues: Crossing, now: Instant) {
    let state = lane.congestion_state().into_any();
    if let Some(DelayController { hints, .. }) = state.downcast_ref() {
        lock(hints).crossing = Some((queues, now));
    }
}

/// Lets a new bulk lane go on with what the one before over the same path had found.
pub(crate) fn resume(lane: &quinn::Connection, remembered: RememberedWindow) {
    let state = lane.congestion_state().into_any();
    if let Some(DelayController { hints, .. }) = state.downcast_ref() {
        lock(hints).remembered = Some(remembered);
    }
}

/// What a bulk lane has found; `None` if that is not enough to go on with.
pub(crate) fn remember(lane: &quinn::Connection, now: Instant) -> Option<RememberedWindow> {
    let state = lane.congestion_state().into_any();
    let DelayController { window, .. } = state.downcast_ref()?;
    window.remember(now)
}

#[derive(Clone, Debug)]
struct DelayController {
    window: DelayWindow,
    /// Copies of the controller, which are all that a connection hands out, share them.
    hints: Arc<Mutex<Hints>>,
}

/// What the session knows and the connection does not.
#[derive(Debug, Default)]
struct Hints {
    /// What was known last of the queues, and when.
    crossing: Option<(Crossing, Instant)>,
    /// Not taken in yet.
    remembered: Option<RememberedWindow>,
}

impl Hints {
    fn crossing(&self, now: Instant) -> Option<Crossing> {
        let fresh = self.crossing.filter(|(_, at)| now < *at + Arrivals::FRESH);
        fresh.map(|(crossing, _)| crossing)
    }
}

impl Controller for DelayController {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _: &RttEstimator) {
        let (crossing, remembered) = {
            let mut hints = lock(&self.hints);
            (hints.crossing(now), hints.remembered.take())
        };
        if let Some(remembered) = remembered {
            self.window.resume(remembered, now);
        }
        self.window.set_returning(
            crossing.map(|crossing| crossing.returning),
            crossing.and_then(|crossing| crossing.seen),
        );
        // Each packet's own round trip; the delay of its acknowledgement is filtered out with other noise.
        self.window.on_ack(now, sent, bytes, app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        if lost_bytes == 0 {
            // Nothing was lost: a router has marked a packet.
            self.window.on_mark(now, sent);
        } else {
            self.window.on_loss(now, sent, lost_bytes, persistent);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.window.on_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        let now = now();
        let (crossing, remembered) = {
            let hints = lock(&self.hints);
            (hints.crossing(now), hints.remembered)
        };
        match remembered {
            Some(remembered) => self.window.window_if_resumed(remembered, now),
            None => self.window.window_at(now, crossing.is_some()),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window.window();
        metrics.pacing_rate = Some((8.0 * self.window.rate()) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.window.window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::now;

    #[test]
    fn what_quinn_reports_reaches_the_window() {
        let mut controller = Arc::new(DelayCongestion).build(now(), 1200);
        assert_eq!(controller.window(), controller.initial_window());
        controller.on_congestion_event(now(), now(), false, 0);
        assert_eq!(controller.window(), 9_600);
        controller.on_congestion_event(now(), now(), true, 1200);
        assert_eq!(controller.window(), 2400);
        controller.on_mtu_update(1452);
        assert_eq!(controller.metrics().congestion_window, 2904);
        let copy = controller.clone_box().into_any();
        assert_eq!(
            copy.downcast_ref::<DelayController>().unwrap().window.window(),
            2904
        );
    }
}
