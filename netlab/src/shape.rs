//! How a link treats what it carries: values only.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::LabError;

/// Longer than to Jupiter, and short enough to reckon with.
const DELAY_MAX: Duration = Duration::from_secs(3_600);

/// How one direction of a link treats its frames. The default changes nothing: no delay, no loss, no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// How fast frames leave, counted on whole Ethernet frames (14 bytes of header and the packet). Default: as fast
    /// as they come.
    pub rate: Option<Rate>,
    /// How long a frame travels once it has left. Default: zero.
    pub delay: Duration,
    /// A frame travels up to this much longer, evenly distributed. Default: zero.
    pub jitter: Duration,
    /// Whether jitter may let a frame overtake another. Default: no, as on most real paths; a frame that would
    /// overtake arrives together with the one before it.
    pub reorder: bool,
    /// The share of frames that vanish on the way, 0 to 1. They take their time on the link first, as real ones do.
    /// Default: zero.
    pub loss: f64,
    /// How much may wait for its turn; more is dropped at the tail. Counts only where there is a rate. Default:
    /// 100 ms, between a good home router and a bad one.
    pub queue: Queue,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            rate: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            reorder: false,
            loss: 0.0,
            queue: Queue::Time(Duration::from_millis(100)),
        }
    }
}

impl Shape {
    /// A shape of so many Mbit/s.
    pub fn mbit(rate: u64) -> Self {
        Self::default().with_rate(Rate::mbit(rate))
    }

    /// A shape of so long a delay in each direction.
    pub fn delayed(delay: Duration) -> Self {
        Self::default().with_delay(delay)
    }

    /// The same with a rate.
    #[must_use]
    pub fn with_rate(self, rate: Rate) -> Self {
        Self {
            rate: Some(rate),
            ..self
        }
    }

    /// The same with a delay.
    #[must_use]
    pub fn with_delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// The same with jitter.
    #[must_use]
    pub fn with_jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    /// The same with a share of loss.
    #[must_use]
    pub fn with_loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// The same with a queue that holds what the link sends in so long a time.
    #[must_use]
    pub fn with_queue(self, longest: Duration) -> Self {
        Self {
            queue: Queue::Time(longest),
            ..self
        }
    }

    /// Whether a link can do it.
    ///
    /// # Errors
    ///
    /// Says what it cannot.
    pub(crate) fn check(&self) -> Result<(), LabError> {
        if !(0.0..=1.0).contains(&self.loss) {
            return Err(LabError::Unsupported("loss is a share of frames, from 0 to 1"));
        }
        if self.delay > DELAY_MAX || self.jitter > DELAY_MAX {
            return Err(LabError::Unsupported("a frame travels for at most an hour"));
        }
        Ok(())
    }

    /// How long a frame of so many bytes takes to leave.
    pub(crate) fn airtime(&self, bytes: usize) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| rate.airtime(bytes))
    }
}

/// How much waits at most for its turn on a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Queue {
    /// What the link sends in so long a time.
    Time(Duration),
    /// So many bytes of frames.
    Bytes(u64),
}

/// Bits per second; never zero.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Rate(u64);

impl Rate {
    /// So many bits per second; at least one, since a link without any rate is a cut link.
    pub fn bits(rate: u64) -> Self {
        Self(rate.max(1))
    }

    /// So many kbit/s (1,000 bits).
    pub fn kbit(rate: u64) -> Self {
        Self::bits(rate.saturating_mul(1_000))
    }

    /// So many Mbit/s (1,000,000 bits).
    pub fn mbit(rate: u64) -> Self {
        Self::bits(rate.saturating_mul(1_000_000))
    }

    /// So many Gbit/s.
    pub fn gbit(rate: u64) -> Self {
        Self::bits(rate.saturating_mul(1_000_000_000))
    }

    /// Bits per second.
    pub fn as_bits(self) -> u64 {
        self.0
    }

    /// How long so many bytes take.
    pub fn airtime(self, bytes: usize) -> Duration {
        let nanos = bytes as u128 * 8 * 1_000_000_000 / u128::from(self.0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How many bytes leave in so long a time.
    pub(crate) fn bytes_in(self, time: Duration) -> u64 {
        u64::try_from(time.as_nanos() * u128::from(self.0) / 8_000_000_000).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit")] {
            if self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}bit", self.0)
    }
}

/// Why a text is not a rate.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a rate: write 20mbit, 1.5mbit, 512kbit or 1gbit")]
pub struct RateError(String);

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let wrong = || RateError(text.into());
        let (number, unit) = text.split_at(text.find(|c: char| c.is_alphabetic()).ok_or_else(wrong)?);
        let unit = match unit {
            "bit" => 1.0,
            "kbit" => 1e3,
            "mbit" => 1e6,
            "gbit" => 1e9,
            _ => return Err(wrong()),
        };
        let rate = number.trim().parse::<f64>().map_err(|_| wrong())? * unit;
        // A petabit is past what a u64 of nanoseconds can pace, and past what anybody has.
        if !(1.0..=1e15).contains(&rate) {
            return Err(wrong());
        }
        Ok(Self::bits(rate as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_reads_as_it_is_written() {
        for text in ["20mbit", "512kbit", "1gbit", "7bit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!("1.5mbit".parse(), Ok(Rate::kbit(1_500)));
        for text in [
            "",
            "20",
            "mbit",
            "-1mbit",
            "0bit",
            "20 furlongs",
            "NaNbit",
            "1e30gbit",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_full_frame_takes_606_microseconds_at_20_mbit() {
        assert_eq!(Rate::mbit(20).airtime(1_514), Duration::from_nanos(605_600));
        assert_eq!(Rate::mbit(20).bytes_in(Duration::from_secs(1)), 2_500_000);
        assert_eq!(Rate::gbit(1).airtime(1_250), Duration::from_micros(10));
    }
}
