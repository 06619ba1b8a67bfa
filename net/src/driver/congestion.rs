//! How much one QUIC connection keeps under way: as Cubic does, or by the delay that it causes. The arithmetic
//! of the latter is [`DelayWindow`]'s.
//!
//! A connection begins with Cubic, since what it is for is known after the handshake only;
//! [`hold_delay`] switches the bulk lane.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

use crate::{DelayWindow, WindowMode};

/// Makes controllers that can be switched.
#[derive(Clone, Copy, Debug, Default)]
pub struct SwitchableCongestion {
    /// Hold the delay from the start, for whoever dials a bulk lane.
    pub bulk: bool,
}

/// What a connection's window does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WindowFigures {
    /// Bytes that may be in flight.
    pub window: u64,
    /// `None` where it is Cubic's.
    pub mode: Option<WindowMode>,
    /// The round trip without a queue, where the delay is held.
    pub base_rtt: Option<Duration>,
}

/// Keeps `connection` from adding more than the target to the round trip, from now on.
///
/// To be called again when its path has changed: quinn then makes a new controller, unless only the port did.
/// Returns whether the connection can be switched.
pub fn hold_delay(connection: &quinn::Connection) -> bool {
    let switch = |switchable: &Switchable| switchable.holds_delay.store(true, Ordering::Relaxed);
    inspect(connection, switch).is_some()
}

/// What the window of `connection` does; `None` where it was made by somebody else.
pub fn window_figures(connection: &quinn::Connection) -> Option<WindowFigures> {
    inspect(connection, Switchable::figures)
}

fn inspect<T>(connection: &quinn::Connection, look: impl FnOnce(&Switchable) -> T) -> Option<T> {
    // A copy of the controller, whose switch is the original's.
    let state = connection.congestion_state().into_any();
    state.downcast_ref::<Switchable>().map(look)
}

impl ControllerFactory for SwitchableCongestion {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Switchable {
            cubic: Arc::new(CubicConfig::default()).build(now, current_mtu),
            delay: None,
            mtu: current_mtu,
            holds_delay: Arc::new(AtomicBool::new(self.bulk)),
        })
    }
}

/// Cubic, and the delay window once it has been asked for.
struct Switchable {
    cubic: Box<dyn Controller>,
    delay: Option<DelayWindow>,
    mtu: u16,
    /// Shared by all copies of the controller.
    holds_delay: Arc<AtomicBool>,
}

impl Switchable {
    fn delay(&mut self, now: Instant) -> Option<&mut DelayWindow> {
        let holds_delay = self.holds_delay.load(Ordering::Relaxed);
        holds_delay.then(|| self.delay.get_or_insert_with(|| DelayWindow::new(now, self.mtu)))
    }

    fn figures(&self) -> WindowFigures {
        WindowFigures {
            window: self.window(),
            mode: self.delay.as_ref().map(DelayWindow::mode),
            base_rtt: self.delay.as_ref().and_then(DelayWindow::base_rtt),
        }
    }
}

impl Controller for Switchable {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        match self.delay(now) {
            Some(delay) => delay.on_ack(now, sent, bytes, app_limited),
            None => self.cubic.on_ack(now, sent, bytes, app_limited, rtt),
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        match self.delay(now) {
            // Nothing was lost: a router has marked a packet.
            Some(delay) if lost_bytes == 0 => delay.on_mark(now, sent),
            Some(delay) => delay.on_loss(now, sent, lost_bytes, is_persistent_congestion),
            None => self
                .cubic
                .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes),
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.cubic.on_mtu_update(new_mtu);
        if let Some(delay) = &mut self.delay {
            delay.on_mtu(new_mtu);
        }
    }

    fn window(&self) -> u64 {
        self.delay
            .as_ref()
            .map_or_else(|| self.cubic.window(), DelayWindow::window)
    }

    fn metrics(&self) -> ControllerMetrics {
        match &self.delay {
            Some(delay) => {
                let mut metrics = ControllerMetrics::default();
                metrics.congestion_window = delay.window();
                metrics
            }
            None => self.cubic.metrics(),
        }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            cubic: self.cubic.clone_box(),
            delay: self.delay.clone(),
            mtu: self.mtu,
            holds_delay: Arc::clone(&self.holds_delay),
        })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl fmt::Debug for Switchable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switchable")
            .field("figures", &self.figures())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::now;

    fn build(bulk: bool) -> Box<dyn Controller> {
        Arc::new(SwitchableCongestion { bulk }).build(now(), 1200)
    }

    fn switch(controller: &dyn Controller) {
        let copy = controller.clone_box().into_any();
        let copy = copy.downcast_ref::<Switchable>().unwrap();
        copy.holds_delay.store(true, Ordering::Relaxed);
    }

    fn figures(controller: &dyn Controller) -> WindowFigures {
        let copy = controller.clone_box().into_any();
        copy.downcast_ref::<Switchable>().unwrap().figures()
    }

    #[test]
    fn a_controller_is_cubic_until_it_is_switched_through_a_copy() {
        let mut controller = build(false);
        let before = controller.window();
        controller.on_congestion_event(now(), now(), false, 1200);
        assert!(controller.window() < before);
        assert_eq!(figures(&*controller).mode, None);
        switch(&*controller);
        controller.on_congestion_event(now(), now(), false, 1200);
        assert_eq!(figures(&*controller).mode, Some(WindowMode::Startup));
        assert_eq!(controller.window(), 12_000);
    }

    #[test]
    fn whoever_dials_a_bulk_lane_holds_the_delay_at_once() {
        let mut controller = build(true);
        controller.on_congestion_event(now(), now(), true, 1200);
        assert_eq!(controller.window(), 2400);
        controller.on_mtu_update(1452);
        assert_eq!(controller.window(), 2904);
        assert_eq!(controller.metrics().congestion_window, 2904);
    }
}
