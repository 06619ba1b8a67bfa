//! Shares the training samples out among nodes, evenly or unevenly on purpose.
//!
//! A partition is a pure function of the labels, the scheme, the seed and the number of parts, in integers
//! only: each node computes it alone, and all of them agree on every sample.

use std::fmt;
use std::str::FromStr;

use lapwing_base::nearest;

use crate::draws::Draws;

/// How samples are shared out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Partition {
    /// Every part looks like the whole.
    Iid,
    /// The parts' shares of each class are drawn from a symmetric Dirichlet distribution: the smaller the
    /// concentration, the more a class gathers in few parts (Hsu, Qi, Brown 2019, arXiv 1909.06335).
    Dirichlet {
        /// The concentration, in millionths; not 0.
        alpha_micro: u32,
    },
    /// Every part has samples of this many classes at most (McMahan et al. 2017, arXiv 1602.05629).
    Labels(u8),
}

/// Why the samples cannot be shared out so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PartitionError {
    /// Too few for so many parts.
    #[error("{samples} samples are too few for {parts} parts of at least {SAMPLES_MIN}; use fewer parts")]
    TooFew {
        /// Samples.
        samples: usize,
        /// Parts.
        parts: u32,
    },
    /// Some classes would be nobody's.
    #[error("{parts} parts of {labels} labels cannot hold {classes} classes; use more labels or more parts")]
    Uncovered {
        /// Parts.
        parts: u32,
        /// Labels a part.
        labels: u8,
        /// Classes in the samples.
        classes: usize,
    },
    /// A class has too few samples for the parts that share it.
    #[error("part {part} would have {samples} samples, fewer than {SAMPLES_MIN}; use fewer parts")]
    Meagre {
        /// The part, counted from 1.
        part: u32,
        /// Its samples.
        samples: usize,
    },
}

/// The fewest samples of a part: a node with fewer would train on next to nothing, but would be averaged with
/// the same weight as any other.
pub const SAMPLES_MIN: usize = 8;

impl Partition {
    /// The positions of every part's samples, each sorted. Every position is in exactly one part.
    ///
    /// # Errors
    ///
    /// When a part would have fewer than [`SAMPLES_MIN`] samples, or a class none to hold it.
    pub fn parts(self, labels: &[u8], seed: u64, parts: u32) -> Result<Vec<Vec<u32>>, PartitionError> {
        let count = parts as usize;
        if parts == 0 || labels.len() / count < SAMPLES_MIN {
            return Err(PartitionError::TooFew {
                samples: labels.len(),
                parts,
            });
        }
        let mut shares = match self {
            Self::Iid => iid(labels.len(), seed, count),
            Self::Dirichlet { alpha_micro } => dirichlet(labels, seed, count, alpha_micro),
            Self::Labels(each) => by_labels(labels, seed, parts, each)?,
        };
        shares.iter_mut().for_each(|share| share.sort_unstable());
        Ok(shares)
    }
}

/// Shuffles all samples and deals them like cards.
fn iid(samples: usize, seed: u64, parts: usize) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0_u32..).take(samples).collect();
    Draws::new("lapwing train iid 1", &[seed]).shuffle(&mut order);
    let mut shares = vec![vec![]; parts];
    for (turn, position) in order.into_iter().enumerate() {
        shares[turn % parts].push(position);
    }
    shares
}

/// Draws each sample's part from its class's urn.
///
/// Pólya's urn: a part's weight is the concentration plus the samples of the class that it has already. This
/// is the distribution that drawing shares from a Dirichlet distribution and then samples from those shares
/// gives (Blackwell and MacQueen 1973), without gamma variates and their floats.
fn dirichlet(labels: &[u8], seed: u64, parts: usize, alpha_micro: u32) -> Vec<Vec<u32>> {
    /// The weight of one sample, in the unit of the concentration.
    const SAMPLE: u64 = 1_000_000;
    let mut shares: Vec<Vec<u32>> = vec![vec![]; parts];
    for (label, mut class) in by_class(labels) {
        let mut draws = Draws::new("lapwing train dirichlet 1", &[seed, u64::from(label)]);
        draws.shuffle(&mut class);
        let mut weights = vec![u64::from(alpha_micro.max(1)); parts];
        let mut total: u64 = weights.iter().sum();
        for position in class {
            let mut ticket = draws.below(total);
            let mut part = 0;
            while ticket >= weights[part] {
                ticket -= weights[part];
                part += 1;
            }
            shares[part].push(position);
            weights[part] += SAMPLE;
            total += SAMPLE;
        }
    }
    // A part that the draw left nearly empty takes from whoever has most: there are enough for all, so the
    // largest always has one to spare.
    while let Some(poor) = shares.iter().position(|share| share.len() < SAMPLES_MIN) {
        let rich = (0..parts).max_by_key(|part| shares[*part].len()).unwrap_or(poor);
        let Some(position) = shares[rich].pop() else {
            break;
        };
        shares[poor].push(position);
    }
    shares
}

/// Gives each part some of the classes, and shares each class evenly among the parts that have it.
fn by_labels(labels: &[u8], seed: u64, parts: u32, each: u8) -> Result<Vec<Vec<u32>>, PartitionError> {
    let mut draws = Draws::new("lapwing train labels 1", &[seed]);
    let mut classes = by_class(labels);
    draws.shuffle(&mut classes);
    let slots = usize::from(each).min(classes.len()) * parts as usize;
    if slots < classes.len() {
        return Err(PartitionError::Uncovered {
            parts,
            labels: each,
            classes: classes.len(),
        });
    }
    // The classes in turn, over and over: consecutive ones differ, so that a part never gets a class twice,
    // and the numbers of parts that share two classes differ by one at most.
    let mut holders: Vec<Vec<usize>> = vec![vec![]; classes.len()];
    let per_part = slots / parts as usize;
    for slot in 0..slots {
        holders[slot % classes.len()].push(slot / per_part);
    }
    let mut shares = vec![vec![]; parts as usize];
    for ((_, mut class), holders) in classes.into_iter().zip(holders) {
        draws.shuffle(&mut class);
        for (turn, position) in class.into_iter().enumerate() {
            shares[holders[turn % holders.len()]].push(position);
        }
    }
    match (1..).zip(&shares).find(|(_, share)| share.len() < SAMPLES_MIN) {
        Some((part, share)) => Err(PartitionError::Meagre {
            part,
            samples: share.len(),
        }),
        None => Ok(shares),
    }
}

/// The positions of each class that occurs, by label.
fn by_class(labels: &[u8]) -> Vec<(u8, Vec<u32>)> {
    let mut classes: Vec<(u8, Vec<u32>)> = (0..=u8::MAX).map(|label| (label, vec![])).collect();
    for (position, label) in (0_u32..).zip(labels) {
        classes[usize::from(*label)].1.push(position);
    }
    classes.retain(|(_, positions)| !positions.is_empty());
    classes
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iid => f.write_str("iid"),
            // The shortest decimal that reads back as the same millionths.
            Self::Dirichlet { alpha_micro } => write!(f, "dirichlet:{}", f64::from(*alpha_micro) / 1e6),
            Self::Labels(labels) => write!(f, "labels:{labels}"),
        }
    }
}

/// The text is not a partition.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParsePartitionError {
    /// No scheme has this name.
    #[error(
        "there is no partition `{name}`; {}",
        match .nearest {
            Some(name) => format!("did you mean `{name}`?"),
            None => "known: iid, dirichlet:ALPHA, labels:K".to_owned(),
        }
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The known name that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The concentration is no number in the range.
    #[error("dirichlet needs a concentration from 0.000001 to 4000, as in dirichlet:0.5")]
    Alpha,
    /// The number of labels is no number in the range.
    #[error("labels needs a number of labels from 1 to 255, as in labels:2")]
    Labels,
}

impl FromStr for Partition {
    type Err = ParsePartitionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// Beyond this the parts are as even as chance makes them, and the millionths still fit.
        const ALPHA_MAX: f64 = 4000.0;
        let (name, argument) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "iid" if argument.is_empty() => Ok(Self::Iid),
            "dirichlet" => {
                let alpha: f64 = argument.parse().map_err(|_| ParsePartitionError::Alpha)?;
                if !(1e-6..=ALPHA_MAX).contains(&alpha) {
                    return Err(ParsePartitionError::Alpha);
                }
                // In range, as just checked; what is lost is beyond the sixth decimal.
                let alpha_micro = (alpha * 1e6).round() as u32;
                Ok(Self::Dirichlet { alpha_micro })
            }
            "labels" => match argument.parse() {
                Ok(labels) if labels > 0 => Ok(Self::Labels(labels)),
                _ => Err(ParsePartitionError::Labels),
            },
            _ => Err(ParsePartitionError::Unknown {
                name: text.chars().take(64).collect(),
                nearest: nearest(name, ["iid", "dirichlet", "labels"]),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Partition = Partition::Dirichlet { alpha_micro: 500_000 };

    fn labels() -> Vec<u8> {
        (0..1437_u32).map(|i| (i % 10) as u8).collect()
    }

    fn classes_of(share: &[u32], labels: &[u8]) -> usize {
        by_class(&share.iter().map(|p| labels[*p as usize]).collect::<Vec<_>>()).len()
    }

    #[test]
    fn every_sample_is_in_exactly_one_part_and_no_part_is_meagre() {
        let labels = labels();
        for scheme in [
            Partition::Iid,
            HALF,
            Partition::Dirichlet { alpha_micro: 1 },
            Partition::Labels(2),
        ] {
            for parts in [1, 5, 8, 14] {
                if (scheme, parts) == (Partition::Labels(2), 1) {
                    continue;
                }
                for seed in 0..5 {
                    let shares = scheme.parts(&labels, seed, parts).unwrap();
                    assert_eq!(shares.len(), parts as usize);
                    assert!(shares.iter().all(|share| share.len() >= SAMPLES_MIN));
                    assert!(shares.iter().all(|share| share.is_sorted()));
                    let mut all = shares.concat();
                    all.sort_unstable();
                    assert_eq!(all, (0..1437).collect::<Vec<_>>(), "{scheme} {parts} {seed}");
                }
            }
        }
    }

    #[test]
    fn the_seed_alone_decides() {
        let labels = labels();
        for scheme in [Partition::Iid, HALF, Partition::Labels(3)] {
            let parts = |seed| scheme.parts(&labels, seed, 8).unwrap();
            assert_eq!(parts(1), parts(1));
            assert_ne!(parts(1), parts(2));
        }
    }

    #[test]
    fn even_parts_differ_by_one_sample_at_most() {
        let shares = Partition::Iid.parts(&labels(), 3, 8).unwrap();
        assert!(shares.iter().all(|share| (179..=180).contains(&share.len())));
    }

    #[test]
    fn a_smaller_concentration_makes_classes_gather() {
        let labels = labels();
        // The mean over parts of the largest class's share of the part.
        let skew = |alpha_micro| {
            let shares = Partition::Dirichlet { alpha_micro }.parts(&labels, 4, 8).unwrap();
            let largest = |share: &Vec<u32>| {
                let of: Vec<u8> = share.iter().map(|p| labels[*p as usize]).collect();
                let most = by_class(&of).iter().map(|(_, p)| p.len()).max().unwrap();
                most as f64 / share.len() as f64
            };
            shares.iter().map(largest).sum::<f64>() / 8.0
        };
        let (little, half, much) = (skew(50_000), skew(500_000), skew(1_000_000_000));
        assert!(little > half && half > much, "{little} {half} {much}");
        assert!(much < 0.16, "{much}");
        assert!((0.25..0.6).contains(&half), "{half}");
    }

    #[test]
    fn parts_by_label_have_so_many_labels_and_no_more() {
        let labels = labels();
        let shares = Partition::Labels(2).parts(&labels, 1, 8).unwrap();
        assert!(shares.iter().all(|share| classes_of(share, &labels) == 2));
        let shares = Partition::Labels(200).parts(&labels, 1, 8).unwrap();
        assert!(shares.iter().all(|share| classes_of(share, &labels) == 10));
    }

    #[test]
    fn what_cannot_be_shared_out_is_refused_with_the_reason() {
        let labels = labels();
        let error = |scheme: Partition, parts| scheme.parts(&labels, 1, parts).unwrap_err().to_string();
        assert_eq!(
            error(Partition::Iid, 1000),
            "1437 samples are too few for 1000 parts of at least 8; use fewer parts"
        );
        assert_eq!(
            error(Partition::Labels(1), 8),
            "8 parts of 1 labels cannot hold 10 classes; use more labels or more parts"
        );
        assert!(Partition::Iid.parts(&labels, 1, 0).is_err());
        assert!(Partition::Iid.parts(&[], 1, 1).is_err());
    }

    #[test]
    fn a_partition_reads_back_what_it_prints() {
        for text in [
            "iid",
            "dirichlet:0.5",
            "dirichlet:0.000001",
            "dirichlet:100",
            "labels:2",
        ] {
            assert_eq!(text.parse::<Partition>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "iid:3",
            "dirichlet",
            "dirichlet:0",
            "dirichlet:nan",
            "dirichlet:1e9",
            "labels:0",
            "labels:256",
        ] {
            assert!(text.parse::<Partition>().is_err(), "{text}");
        }
        let error = "dirichle:0.5".parse::<Partition>().unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no partition `dirichle:0.5`; did you mean `dirichlet`?"
        );
    }
}
