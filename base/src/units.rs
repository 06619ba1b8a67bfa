//! Quantities: sizes, rates, shares, and the counters that order events.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// One communication step of a job. The first round is 1; 0 is "before any".
    Round
}
counter! {
    /// A raft term: at most one leader each.
    Term
}
counter! {
    /// A position in the replicated log.
    LogIndex
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` times 1,024 bytes.
    pub const fn kib(n: u64) -> Self {
        Self(n * 1024)
    }

    /// `n` times 1,048,576 bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }

    /// The size as an index type; saturates where `usize` is narrower.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

/// A data rate.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bandwidth {
    /// Thousands of bits a second: fine enough for the slowest uplink, and free of floats in the log.
    pub kbit_s: u32,
}

impl Bandwidth {
    /// `n` thousand bits a second.
    pub const fn kbit(n: u32) -> Self {
        Self { kbit_s: n }
    }

    /// `n` million bits a second.
    pub const fn mbit(n: u32) -> Self {
        Self { kbit_s: n * 1000 }
    }

    /// The rate at which `size` takes `took`; the largest one when no time passed.
    pub fn per(size: ByteSize, took: Duration) -> Self {
        let micros = took.as_micros().max(1);
        let kbit_s = u128::from(size.0) * 8 * 1000 / micros;
        Self {
            kbit_s: u32::try_from(kbit_s).unwrap_or(u32::MAX),
        }
    }

    /// How long `size` takes at this rate; `None` at rate zero.
    pub fn time_for(self, size: ByteSize) -> Option<Duration> {
        let micros = (u128::from(size.0) * 8 * 1000).checked_div(u128::from(self.kbit_s))?;
        Some(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
    }

    /// Bytes a second.
    pub fn bytes_per_second(self) -> f64 {
        f64::from(self.kbit_s) * 125.0
    }

    /// Millions of bits a second, for people and for `_mbit_s` keys.
    pub fn as_mbit_s(self) -> f64 {
        f64::from(self.kbit_s) / 1000.0
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kbit_s < 1000 {
            write!(f, "{} kbit/s", self.kbit_s)
        } else {
            write!(f, "{:.1} Mbit/s", self.as_mbit_s())
        }
    }
}

/// The text is not a quantity of the kind that was asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseUnitError {
    text: String,
    expected: &'static str,
}

impl FromStr for Bandwidth {
    type Err = ParseUnitError;

    /// Reads `500kbit`, `10mbit`, `1.5gbit`; bits a second, decimal prefixes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseUnitError {
            text: text.chars().take(64).collect(),
            expected: "a rate such as 500kbit, 10mbit or 1.5gbit",
        };
        let lower = text.trim().to_ascii_lowercase();
        let lower = lower.strip_suffix("/s").unwrap_or(&lower);
        let (number, kbit) = [("kbit", 1.0), ("mbit", 1e3), ("gbit", 1e6)]
            .into_iter()
            .find_map(|(unit, kbit)| Some((lower.strip_suffix(unit)?, kbit)))
            .ok_or_else(wrong)?;
        let value = number.trim().parse::<f64>().map_err(|_| wrong())? * kbit;
        if !(1.0..=f64::from(u32::MAX)).contains(&value) {
            return Err(wrong());
        }
        // Within the range that was just checked, so nothing is lost but the fraction.
        Ok(Self {
            kbit_s: value.round() as u32,
        })
    }
}

/// A share in millionths: an accuracy or a fraction that must enter the log without a float.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ppm(pub u32);

impl Ppm {
    /// The share `part / whole`; zero when `whole` is zero.
    pub fn ratio(part: u64, whole: u64) -> Self {
        let millionths = (u128::from(part) * 1_000_000)
            .checked_div(u128::from(whole))
            .unwrap_or(0);
        Self(u32::try_from(millionths).unwrap_or(u32::MAX))
    }

    /// The share as a number from 0 to 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl fmt::Display for Ppm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} %", self.as_f64() * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_in_the_units_people_write() {
        assert_eq!("500kbit".parse(), Ok(Bandwidth::kbit(500)));
        assert_eq!("10mbit".parse(), Ok(Bandwidth::mbit(10)));
        assert_eq!("1.5 Gbit/s".parse(), Ok(Bandwidth::mbit(1500)));
        for wrong in ["", "10", "10mb", "-1mbit", "0kbit", "nanmbit", "1e99gbit"] {
            assert!(wrong.parse::<Bandwidth>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rate_and_a_time_are_inverse() {
        let rate = Bandwidth::per(ByteSize(1_250_000), Duration::from_secs(1));
        assert_eq!(rate, Bandwidth::mbit(10));
        assert_eq!(rate.time_for(ByteSize(1_250_000)), Some(Duration::from_secs(1)));
        assert_eq!(Bandwidth::kbit(0).time_for(ByteSize(1)), None);
        assert_eq!(
            Bandwidth::per(ByteSize(u64::MAX), Duration::ZERO).kbit_s,
            u32::MAX
        );
    }

    #[test]
    fn a_share_of_nothing_is_zero() {
        assert_eq!(Ppm::ratio(1, 0), Ppm(0));
        assert_eq!(Ppm::ratio(345, 360).to_string(), "95.8 %");
    }

    #[test]
    fn sizes_print_in_binary_units() {
        assert_eq!(ByteSize(1023).to_string(), "1023 B");
        assert_eq!(ByteSize::kib(3).to_string(), "3.0 KiB");
        assert_eq!(ByteSize(u64::MAX).to_string(), "16777216.0 TiB");
    }
}
