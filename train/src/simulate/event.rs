//! What happens to a virtual node besides training: it dies, is slow, comes late, or lies.

use super::poison::Poison;
use lapwing_base::NodeId;
use std::fmt;
use std::str::FromStr;

/// Something that happens to one node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// It answers no longer from this round on. Its partner's exchange of that round fails, and with the next round
    /// it is no member any more.
    Dies {
        /// Who.
        node: NodeId,
        /// The first round without it.
        round: u64,
    },
    /// Its local steps take so many times as long as those of others.
    Slow {
        /// Who.
        node: NodeId,
        /// How many times; positive.
        factor: f64,
    },
    /// It is a member from this round on, with the model of the member from whom it gets it fastest.
    Joins {
        /// Who.
        node: NodeId,
        /// The first round with it.
        round: u64,
    },
    /// It tells its partners something else than its model.
    Poisoned {
        /// Who.
        node: NodeId,
        /// What.
        with: Poison,
    },
}

impl Event {
    /// To whom it happens.
    pub fn node(self) -> NodeId {
        match self {
            Self::Dies { node, .. }
            | Self::Slow { node, .. }
            | Self::Joins { node, .. }
            | Self::Poisoned { node, .. } => node,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dies { node, round } => write!(f, "die:{}@{round}", node.0),
            Self::Slow { node, factor } => write!(f, "slow:{}*{factor}", node.0),
            Self::Joins { node, round } => write!(f, "join:{}@{round}", node.0),
            Self::Poisoned { node, with } => write!(f, "poison:{}={with}", node.0),
        }
    }
}

/// The text is no event.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is no event; write die:NODE@ROUND, join:NODE@ROUND, slow:NODE*FACTOR or poison:NODE=nan, =huge, =flip or \
     =noise, counted from 1"
)]
pub struct ParseEventError(String);

impl FromStr for Event {
    type Err = ParseEventError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let (what, rest) = text.split_once(':')?;
            let (node, number) = rest.split_once(match what {
                "slow" => '*',
                "poison" => '=',
                _ => '@',
            })?;
            let node = node.parse().ok().filter(|node| *node > 0).map(NodeId)?;
            let round = || number.parse().ok().filter(|round| *round > 0);
            match what {
                "die" => Some(Self::Dies {
                    node,
                    round: round()?,
                }),
                "join" => Some(Self::Joins {
                    node,
                    round: round()?,
                }),
                "slow" => {
                    let factor: f64 = number.parse().ok()?;
                    (factor.is_finite() && factor > 0.0).then_some(Self::Slow { node, factor })
                }
                "poison" => {
                    let with = number.parse().ok()?;
                    Some(Self::Poisoned { node, with })
                }
                _ => None,
            }
        };
        parsed().ok_or_else(|| ParseEventError(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_back_as_they_are_written() {
        for text in [
            "die:3@50",
            "join:14@1",
            "slow:2*4",
            "slow:2*0.5",
            "poison:2=nan",
            "poison:3=flip",
        ] {
            assert_eq!(text.parse::<Event>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "die",
            "die:0@1",
            "die:1@0",
            "die:1*2",
            "slow:1@2",
            "slow:1*-1",
            "slow:1*nan",
            "eat:1@2",
            "poison:1=soup",
            "poison:1@nan",
        ] {
            assert!(text.parse::<Event>().is_err(), "{text}");
        }
    }
}
