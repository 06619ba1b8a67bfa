//! What a person writes for data: `digits`, `idx:DIR`, `csv:FILE` or `text:FILE`, and which part of it.
//!
//! Only the text: nothing is opened here.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use lapwing_base::nearest;

use super::partition::{ParsePartitionError, Partition};

/// A data set, and which part of its training samples a node takes.
///
/// Written `SOURCE` or `SOURCE#partition=SCHEME,seed=S,part=I/N`, with `I` from 1 to `N`. `partition` is `iid`
/// when left out, and `seed` 0; `part` is needed wherever there is a `#`. A path may hold a `#` of its own if
/// a part follows: the last `#` counts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DataSpec {
    /// Where the samples come from.
    pub source: Source,
    /// Which of the training samples are this node's; all of them when `None`.
    pub share: Option<Share>,
}

/// Where samples come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// The embedded 8 x 8 handwritten digits.
    Digits,
    /// A folder of MNIST's four files, plain or gzip.
    Idx(PathBuf),
    /// Lines of numbers with the class last, plain or gzip.
    Csv(PathBuf),
    /// Any text, plain or gzip, in pieces of 64 bytes: of each byte, the next one is to be told. The last fifth is
    /// for testing. A partition by labels goes by the byte after each piece.
    Text(PathBuf),
}

/// One node's share of the training samples.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share {
    /// How the samples are shared out.
    pub partition: Partition,
    /// The draw; the same for all nodes of a job.
    pub seed: u64,
    /// This node's part: `1 <= part <= parts`.
    pub part: u32,
    /// All parts.
    pub parts: u32,
}

/// The text names no data.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParseDataSpecError {
    /// No source has this name.
    #[error(
        "there is no data source `{name}`; {}",
        match .nearest {
            Some(name) => format!("did you mean `{name}`?"),
            None => "use digits, idx:DIR, csv:FILE or text:FILE".to_owned(),
        }
    )]
    Source {
        /// What was asked for.
        name: String,
        /// The known form that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A source that reads files, without a path.
    #[error("`{source_name}` needs a path, as in `{source_name}:PATH`")]
    Path {
        /// The source.
        source_name: &'static str,
    },
    /// No setting has this name.
    #[error(
        "there is no data setting `{key}`; {}",
        match .nearest {
            Some(name) => format!("did you mean `{name}`?"),
            None => "known: partition, seed, part".to_owned(),
        }
    )]
    Key {
        /// What was asked for.
        key: String,
        /// The known key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A setting that is there twice.
    #[error("the data setting `{0}` is given twice")]
    Twice(&'static str),
    /// The scheme cannot be read.
    #[error(transparent)]
    Partition(#[from] ParsePartitionError),
    /// The seed is not a number.
    #[error("`seed` needs a whole number, as in `seed=1`")]
    Seed,
    /// The part is not one of so many.
    #[error("`part` needs which of how many, counted from 1, as in `part=1/8`")]
    Part,
}

impl DataSpec {
    /// All of a source.
    pub fn whole(source: Source) -> Self {
        Self { source, share: None }
    }
}

impl Share {
    /// What a job's member trains on that brings no data of its own: an even share by its place among the members,
    /// counted from 0.
    pub fn of_place(seed: u64, place: usize, members: usize) -> Self {
        let places = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self {
            partition: Partition::Iid,
            seed,
            // A cluster has far fewer members than a `u32` counts.
            part: places(place + 1),
            parts: places(members.max(place + 1)),
        }
    }
}

impl FromStr for DataSpec {
    type Err = ParseDataSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (source, share) = match text.rsplit_once('#') {
            Some((source, share)) => (source, Some(share.parse()?)),
            None => (text, None),
        };
        Ok(Self {
            source: source.parse()?,
            share,
        })
    }
}

impl FromStr for Source {
    type Err = ParseDataSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = |source_name, path: &str| match path {
            "" => Err(ParseDataSpecError::Path { source_name }),
            path => Ok(PathBuf::from(path)),
        };
        match text.split_once(':').unwrap_or((text, "")) {
            ("digits", "") => Ok(Self::Digits),
            ("idx", dir) => Ok(Self::Idx(path("idx", dir)?)),
            ("csv", file) => Ok(Self::Csv(path("csv", file)?)),
            ("text", file) => Ok(Self::Text(path("text", file)?)),
            (name, _) => Err(ParseDataSpecError::Source {
                name: text.chars().take(64).collect(),
                nearest: nearest(name, ["digits", "idx:DIR", "csv:FILE", "text:FILE"]),
            }),
        }
    }
}

impl FromStr for Share {
    type Err = ParseDataSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut partition, mut seed, mut part) = (None, None, None);
        for setting in text.split(',') {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            match key {
                "partition" => once(&mut partition, "partition", value)?,
                "seed" => once(&mut seed, "seed", value)?,
                "part" => once(&mut part, "part", value)?,
                _ => {
                    return Err(ParseDataSpecError::Key {
                        key: key.chars().take(64).collect(),
                        nearest: nearest(key, ["partition", "seed", "part"]),
                    });
                }
            }
        }
        let (part, parts) = part
            .and_then(|text| text.split_once('/'))
            .and_then(|(part, parts)| Some((part.parse().ok()?, parts.parse().ok()?)))
            .filter(|(part, parts)| (1..=*parts).contains(part))
            .ok_or(ParseDataSpecError::Part)?;
        Ok(Self {
            partition: partition.map_or(Ok(Partition::Iid), str::parse)?,
            seed: seed
                .map_or(Ok(0), str::parse)
                .map_err(|_| ParseDataSpecError::Seed)?,
            part,
            parts,
        })
    }
}

fn once<'a>(slot: &mut Option<&'a str>, key: &'static str, value: &'a str) -> Result<(), ParseDataSpecError> {
    match slot.replace(value) {
        Some(_) => Err(ParseDataSpecError::Twice(key)),
        None => Ok(()),
    }
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.share {
            Some(share) => write!(f, "{}#{share}", self.source),
            None => self.source.fmt(f),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digits => f.write_str("digits"),
            Self::Idx(dir) => write!(f, "idx:{}", dir.display()),
            Self::Csv(file) => write!(f, "csv:{}", file.display()),
            Self::Text(file) => write!(f, "text:{}", file.display()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            partition,
            seed,
            part,
            parts,
        } = self;
        write!(f, "partition={partition},seed={seed},part={part}/{parts}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        text.parse::<DataSpec>().unwrap_err().to_string()
    }

    #[test]
    fn the_forms_of_the_manual_are_read() {
        assert_eq!("digits".parse(), Ok(DataSpec::whole(Source::Digits)));
        let spec: DataSpec = "idx:/data/mnist#partition=dirichlet:0.5,seed=1,part=3/8"
            .parse()
            .unwrap();
        assert_eq!(spec.source, Source::Idx("/data/mnist".into()));
        let share = spec.share.unwrap();
        assert_eq!(share.partition, Partition::Dirichlet { alpha_micro: 500_000 });
        assert_eq!((share.seed, share.part, share.parts), (1, 3, 8));
        let spec: DataSpec = "csv:a#b.csv#part=2/2".parse().unwrap();
        assert_eq!(spec.to_string(), "csv:a#b.csv#partition=iid,seed=0,part=2/2");
    }

    #[test]
    fn a_mistake_is_named_with_what_was_probably_meant() {
        assert_eq!(
            error("digit"),
            "there is no data source `digit`; did you mean `digits`?"
        );
        assert_eq!(error("idx"), "`idx` needs a path, as in `idx:PATH`");
        assert_eq!(
            error("digits#partitoin=iid,part=1/2"),
            "there is no data setting `partitoin`; did you mean `partition`?"
        );
        assert_eq!(
            error("digits#part=1/2,part=1/2"),
            "the data setting `part` is given twice"
        );
        for part in ["0/8", "9/8", "1", "a/b", "-1/2", ""] {
            assert!(
                error(&format!("digits#part={part}")).starts_with("`part` needs"),
                "{part}"
            );
        }
        assert!(error("digits#partition=iid").starts_with("`part` needs"));
        assert!(error("digits#seed=x,part=1/2").starts_with("`seed` needs"));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_reads_back_what_it_prints(text in "(digits|idx:|csv:|text:)?[a-z0-9#=,:/.]{0,40}") {
            if let Ok(spec) = text.parse::<DataSpec>() {
                prop_assert_eq!(spec.to_string().parse(), Ok(spec));
            }
        }

        #[test]
        fn every_share_reads_back_what_it_prints(
            alpha_micro in 1..4_000_000_000_u32, seed in any::<u64>(), part in 1..1000_u32, more in 0..1000_u32,
        ) {
            let share = Share {
                partition: Partition::Dirichlet { alpha_micro }, seed, part, parts: part + more,
            };
            prop_assert_eq!(share.to_string().parse(), Ok(share));
        }
    }
}
