//! Classes that hold: what goes first, and how much of the rest may be under way. Sends nothing itself.
//!
//! A path has either two connections (what is urgent, and a bulk lane under a [`DelayWindow`]) or one stream of
//! bytes, on which a [`Mux`] carries the channels of all classes in the order of a [`Scheduler`].

mod arrivals;
mod cubic;
mod delay_window;
mod limiter;
mod mux;
mod packet;
mod rate_limits;
mod scheduler;

#[cfg(test)]
mod bottleneck;
#[cfg(test)]
mod crossing;

pub use arrivals::Arrivals;
pub use delay_window::{DelayWindow, Mode, Remembered, TARGET};
pub use limiter::Limiter;
pub use mux::{CHANNELS_MAX, Event, LaneError, Mux, OpenChannelError, Read, Side, Turn, WriteError};
pub use packet::{ChannelId, PacketError, SLICE_MAX};
pub use rate_limits::{RateLimits, UnlimitedClass};
pub use scheduler::{AckError, Next, Scheduler};
