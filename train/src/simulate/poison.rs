//! What a poisoned node tells its partners instead of its model.
//!
//! It trains and merges like the others, so that what it knows is as good as what they know; only its messages lie. It
//! lies where partners meet: in one sum of all, or to a server, it cannot.

#[cfg(feature = "driver")]
use crate::draws::Draws;
#[cfg(feature = "driver")]
use lapwing_base::RoundPlan;
use std::fmt;
use std::str::FromStr;

/// A way to lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Poison {
    /// Bytes that are no finite values.
    NotFinite,
    /// Its model, ten thousand times as large.
    Huge,
    /// Its model, turned around: as long as an honest one, so that no guard by length notices.
    Flipped,
    /// Noise of the length of its model.
    Noise,
}

impl Poison {
    /// Every one of them.
    pub const ALL: [Self; 4] = [Self::NotFinite, Self::Huge, Self::Flipped, Self::Noise];

    /// Its name in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotFinite => "nan",
            Self::Huge => "huge",
            Self::Flipped => "flip",
            Self::Noise => "noise",
        }
    }

    #[cfg(feature = "driver")]
    /// What it says its model is, in a round.
    pub(super) fn model(self, plan: &RoundPlan, model: &[f32]) -> Vec<f32> {
        let times = |factor: f32| model.iter().map(|value| value * factor).collect();
        match self {
            // Encodings refuse what is not finite, so the message is made worse afterwards.
            Self::NotFinite => model.to_vec(),
            Self::Huge => times(10_000.0),
            Self::Flipped => times(-1.0),
            Self::Noise => {
                let squares: f64 = model.iter().map(|value| f64::from(*value).powi(2)).sum();
                let length = (squares / model.len().max(1) as f64).sqrt();
                // A draw from [-1, 1) is a third long in the mean of squares.
                let factor = (length * 3.0_f64.sqrt()) as f32;
                let mut draws = Draws::new("lapwing simulate poison 1", &[plan.round.0]);
                model.iter().map(|_| draws.symmetric() * factor).collect()
            }
        }
    }

    #[cfg(feature = "driver")]
    /// What becomes of its encoded message.
    pub(super) fn spoil(self, message: &mut [u8]) {
        if self == Self::NotFinite {
            // No number in each of the formats.
            message.fill(0xff);
        }
    }
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Poison {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|poison| poison.name() == text)
            .ok_or(())
    }
}
