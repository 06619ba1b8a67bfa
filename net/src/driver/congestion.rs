//! The congestion controller of a bulk lane: holds the delay that the lane causes. The arithmetic is
//! [`DelayWindow`]'s.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

use crate::{DelayWindow, WindowMode};

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
        let DelayController(window) = state.downcast_ref()?;
        Some(Self {
            window: window.window(),
            mode: window.mode(),
            base_rtt: window.base_rtt(),
        })
    }
}

impl ControllerFactory for DelayCongestion {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(DelayController(DelayWindow::new(now, current_mtu)))
    }
}

#[derive(Clone, Debug)]
struct DelayController(DelayWindow);

impl Controller for DelayController {
    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _: &RttEstimator) {
        // Each packet's own round trip; the delay of its acknowledgement is filtered out with other noise.
        self.0.on_ack(now, sent, bytes, app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        if lost_bytes == 0 {
            // Nothing was lost: a router has marked a packet.
            self.0.on_mark(now, sent);
        } else {
            self.0.on_loss(now, sent, lost_bytes, persistent);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.on_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        self.0.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.0.window();
        metrics.pacing_rate = Some((8.0 * self.0.rate()) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.0.window()
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
        assert_eq!(copy.downcast_ref::<DelayController>().unwrap().0.window(), 2904);
    }
}
