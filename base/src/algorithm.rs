//! How a job trains: the algorithm, and the choices that it leaves open.
//!
//! Names and numbers only; what they mean for a model is written in the room that trains.

use crate::Ppm;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How nodes share what they learn.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// SAPS with a cyclic mask: every coordinate is exchanged once in `compression` rounds.
    #[default]
    Default,
    /// SAPS as published: a fresh random mask each round (arXiv 2002.09692).
    Saps,
    /// Each node averages its whole model with both neighbours on a ring (D-PSGD, arXiv 1705.09056).
    DPsgd,
    /// The same with compressed differences, which neighbours add to their copies (DCD-PSGD, arXiv 1803.06443).
    DcdPsgd,
    /// The same with a step of its own towards the neighbours' compressed copies (CHOCO-SGD, arXiv 1902.00340).
    ChocoSgd,
    /// Many local steps, then everybody follows the mean of all changes with momentum (DiLoCo, arXiv 2311.08105).
    #[serde(rename = "diloco")]
    DiLoCo,
    /// The same between two at a time (NoLoCo, arXiv 2506.10911).
    #[serde(rename = "noloco")]
    NoLoCo,
    /// One node averages the models of those it asked (FedAvg, arXiv 1602.05629).
    #[serde(rename = "fedavg")]
    FedAvg,
    /// The same with masked uploads (structured updates, arXiv 1610.05492).
    #[serde(rename = "s-fedavg")]
    SFedAvg,
    /// Every step follows the mean of everybody's gradient, as in a data centre.
    AllReduce,
    /// Nobody hears of anybody.
    Local,
}

impl Algorithm {
    /// Every one of them.
    pub const ALL: [Self; 11] = [
        Self::Default,
        Self::Saps,
        Self::DPsgd,
        Self::DcdPsgd,
        Self::ChocoSgd,
        Self::DiLoCo,
        Self::NoLoCo,
        Self::FedAvg,
        Self::SFedAvg,
        Self::AllReduce,
        Self::Local,
    ];

    /// Its name in a job file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Saps => "saps",
            Self::DPsgd => "d-psgd",
            Self::DcdPsgd => "dcd-psgd",
            Self::ChocoSgd => "choco-sgd",
            Self::DiLoCo => "diloco",
            Self::NoLoCo => "noloco",
            Self::FedAvg => "fedavg",
            Self::SFedAvg => "s-fedavg",
            Self::AllReduce => "all-reduce",
            Self::Local => "local",
        }
    }

    /// Who meets whom in one of its rounds.
    pub const fn meeting(self) -> Meeting {
        match self {
            Self::Default | Self::Saps | Self::NoLoCo => Meeting::Pairs,
            Self::DPsgd | Self::DcdPsgd | Self::ChocoSgd => Meeting::Ring,
            Self::DiLoCo | Self::AllReduce => Meeting::All,
            Self::FedAvg | Self::SFedAvg => Meeting::Server,
            Self::Local => Meeting::Nobody,
        }
    }

    /// The planner that suits it, and that a job has which does not say: what was published came with thresholds.
    pub const fn planner(self) -> Planner {
        match self {
            Self::Saps => Planner::Thresholds,
            // As published: the partner is drawn.
            Self::NoLoCo => Planner::Random,
            Self::Default
            | Self::DPsgd
            | Self::DcdPsgd
            | Self::ChocoSgd
            | Self::DiLoCo
            | Self::FedAvg
            | Self::SFedAvg
            | Self::AllReduce
            | Self::Local => Planner::Adaptive,
        }
    }

    /// What its authors used, where they say, and what a job has that says nothing.
    pub const fn tuning(self) -> Tuning {
        let plain = Tuning {
            momentum_micro: 900_000,
            weight_decay_micro: 100,
            lr_final: Ppm(1_000_000),
            outer_lr_micro: 700_000,
            outer_momentum_micro: 900_000,
            gossip_step_micro: 1_000_000,
            asked: Ppm(500_000),
            clip: false,
            privacy: None,
            slow_momentum_micro: 0,
        };
        match self {
            // Twice the step (docs/algorithms.md).
            Self::Default => Tuning {
                slow_momentum_micro: 500_000,
                ..plain
            },
            // Section 4: alpha = 0.5, beta = 0.7.
            Self::NoLoCo => Tuning {
                outer_momentum_micro: 500_000,
                ..plain
            },
            // A full step towards copies that are a hundredth of what they should be diverges.
            Self::ChocoSgd => Tuning {
                gossip_step_micro: 100_000,
                ..plain
            },
            _ => plain,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who meets whom in a round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meeting {
    /// Everybody one other, as a [`Planner`] says.
    Pairs,
    /// Everybody two neighbours, the same in all rounds.
    Ring,
    /// Everybody all others, in one sum.
    All,
    /// Some of them one, who sums for all.
    Server,
    /// Nobody anybody.
    Nobody,
}

/// How the pairs of a sparse round are chosen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Planner {
    /// What removes the most disagreement a second, by the measured bandwidths.
    #[default]
    Adaptive,
    /// Links above a bandwidth, as long as recent meetings connect everybody (SAPS, arXiv 2002.09692).
    Thresholds,
    /// Fresh random pairs in each round.
    Random,
    /// Partners at distance 1, 2, 4, … in turn (one-peer exponential graph, arXiv 2110.13363).
    Exponential,
}

impl Planner {
    /// Every one of them.
    pub const ALL: [Self; 4] = [Self::Adaptive, Self::Thresholds, Self::Random, Self::Exponential];

    /// Its name in a job file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Thresholds => "thresholds",
            Self::Random => "random",
            Self::Exponential => "exponential",
        }
    }
}

impl fmt::Display for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How an exchanged value is written on the wire.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// Four bytes, exact.
    F32,
    /// Two bytes.
    F16,
    /// One byte and a scale for each block of coordinates.
    #[default]
    Int8,
}

impl Values {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Int8];

    /// Its name in a job file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The numbers of an algorithm that a job may change. What an algorithm does not use stays as
/// [`Algorithm::tuning`] has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// How much of the last direction a local step keeps, in millionths.
    pub momentum_micro: u32,
    /// Pull of every parameter towards zero, relative to the learning rate, in millionths.
    pub weight_decay_micro: u32,
    /// What is left of the learning rate in the last round that trains; in between it falls in a straight line.
    pub lr_final: Ppm,
    /// DiLoCo and NoLoCo: how far the common model follows what all have learnt, in millionths.
    pub outer_lr_micro: u32,
    /// DiLoCo and NoLoCo: how much of its last direction it keeps, in millionths.
    pub outer_momentum_micro: u32,
    /// CHOCO-SGD: the step towards the neighbours' copies; NoLoCo: towards the partner's slow weights; in millionths.
    pub gossip_step_micro: u32,
    /// FedAvg and S-FedAvg: the share of members that a round asks to train.
    pub asked: Ppm,
    /// Averaging in pairs: a partner that is much further away than others were moves a model only as far as those.
    pub clip: bool,
    /// What nodes promise about single samples, if anything. Not written with the rest: logs have had that for longer.
    #[serde(skip)]
    pub privacy: Option<Privacy>,
    /// The default: how much of its last direction a pair keeps once it has averaged, in millionths. Not written with the
    /// rest either.
    #[serde(skip)]
    pub slow_momentum_micro: u32,
}

/// How local steps hide single samples: differentially private SGD.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Privacy {
    /// The standard deviation of the noise on the sum of a step's gradients, in multiples of `norm`, in millionths.
    pub noise_micro: u32,
    /// The length to which each sample's gradient is clipped, in millionths.
    pub norm_micro: u32,
    /// The chance with which the promise may fail, in billionths.
    pub delta_nano: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_job_file_is_the_one_in_a_document() {
        for algorithm in Algorithm::ALL {
            assert_eq!(
                serde_json::to_string(&algorithm).unwrap(),
                format!("\"{algorithm}\"")
            );
        }
    }
}
