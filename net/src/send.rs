//! Classes that hold: what goes first, and how much of the rest may be under way. Sends nothing itself.

mod cubic;
mod delay_window;

#[cfg(test)]
mod bottleneck;

pub use delay_window::{DelayWindow, Mode, TARGET};
