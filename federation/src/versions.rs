//! Versions of services, and which of them will do for a call (Semantic Versioning 2.0.0).

use semver::{Comparator, Op, VersionReq};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A service's version: `1` is 1.0.0, and `v1.2.3` is 1.2.3.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(semver::Version);

/// Which versions will do: `>=1.0,<2`, `==3.2.1`, `version >= 3.0, version < 4`; nothing at all takes any.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Constraint(Vec<Comparator>);

/// A text that is no version, or no constraint.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseVersionError {
    /// A version has one to three numbers.
    #[error("`{text}` is no version: write one to three numbers, as in `1`, `1.2` and `v1.2.3`")]
    Version {
        /// As given.
        text: String,
    },
    /// A part of a constraint.
    #[error("`{text}` is no constraint of versions: write for example `>=1.0,<2`, `==3.2.1` or `^1.2`")]
    Constraint {
        /// As given.
        text: String,
    },
    /// More than anybody writes.
    #[error("a version or constraint has at most {TEXT_MAX} characters, not {length}")]
    Length {
        /// How many it has.
        length: usize,
    },
}

/// The longest text that is looked at.
const TEXT_MAX: usize = 128;

impl Version {
    /// A version of three numbers.
    pub const fn new(major: u64, minor: u64, patch: u64) -> Self {
        Self(semver::Version::new(major, minor, patch))
    }
}

impl Constraint {
    /// Whether this version will do.
    ///
    /// Each part stands for itself: `>=1.0` takes a pre-release of 2.0.0 too, whoever announces one means it.
    pub fn takes(&self, version: &Version) -> bool {
        self.0.iter().all(|part| {
            let numbers = &version.0;
            let of_release = semver::Version::new(numbers.major, numbers.minor, numbers.patch);
            part.matches(numbers) || (part.pre.is_empty() && part.matches(&of_release))
        })
    }

    /// Whether it takes any.
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Version {
    /// What was announced without one.
    fn default() -> Self {
        Self::new(1, 0, 0)
    }
}

impl FromStr for Version {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check_length(text)?;
        let wrong = || ParseVersionError::Version {
            text: text.to_owned(),
        };
        let numbers = text.strip_prefix('v').unwrap_or(text);
        // What follows the numbers belongs to whole versions only.
        let whole = match numbers.split('.').count() {
            1 if !numbers.contains(['-', '+']) => format!("{numbers}.0.0"),
            2 if !numbers.contains(['-', '+']) => format!("{numbers}.0"),
            _ => numbers.to_owned(),
        };
        whole.parse().map(Self).map_err(|_| wrong())
    }
}

impl FromStr for Constraint {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check_length(text)?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let parts: Result<Vec<_>, _> = text.split(',').map(comparator).collect();
        parts.map(Self).map_err(|()| ParseVersionError::Constraint {
            text: text.to_owned(),
        })
    }
}

fn comparator(part: &str) -> Result<Comparator, ()> {
    let part = part.trim();
    let part = part.strip_prefix("version").unwrap_or(part).trim();
    let exact = part.strip_prefix("==").map(|rest| format!("={rest}"));
    let text = exact.unwrap_or_else(|| part.replacen('v', "", usize::from(part.starts_with('v'))));
    let parsed: VersionReq = text.parse().map_err(|_| ())?;
    match <[Comparator; 1]>::try_from(parsed.comparators) {
        Ok([comparator]) if comparator.op != Op::Wildcard => Ok(comparator),
        _ => Err(()),
    }
}

fn check_length(text: &str) -> Result<(), ParseVersionError> {
    let length = text.len();
    if length > TEXT_MAX {
        return Err(ParseVersionError::Length { length });
    }
    Ok(())
}

impl TryFrom<String> for Version {
    type Error = ParseVersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Constraint {
    type Error = ParseVersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Constraint> for String {
    fn from(constraint: Constraint) -> Self {
        constraint.to_string()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, part) in self.0.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{part}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn numbers_that_are_left_out_are_zero() {
        for (text, means) in [
            ("1", "1.0.0"),
            ("1.2", "1.2.0"),
            ("v1.2.3", "1.2.3"),
            ("1.2.3-rc.1", "1.2.3-rc.1"),
        ] {
            assert_eq!(version(text).to_string(), means);
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "1.2.3.4", "1.x", "one", "v", "1.-2", "1-rc", &"1".repeat(300)] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_constraint_takes_the_versions_that_it_means() {
        for (text, takes, refuses) in [
            (">=1.0,<2", vec!["1", "1.9.9"], vec!["0.9", "2"]),
            ("==3.2.1", vec!["3.2.1"], vec!["3.2.2", "3.2"]),
            ("version >= 3.0, version < 4", vec!["3.5"], vec!["4", "2.9"]),
            ("^1.2", vec!["1.3"], vec!["1.1", "2"]),
            ("", vec!["0.0.1", "7"], vec![]),
        ] {
            let constraint: Constraint = text.parse().unwrap();
            assert!(takes.iter().all(|one| constraint.takes(&version(one))), "{text}");
            assert!(
                !refuses.iter().any(|one| constraint.takes(&version(one))),
                "{text}"
            );
            // It means the same when it has travelled.
            let again: Constraint = constraint.to_string().parse().unwrap();
            assert_eq!(again, constraint);
        }
    }

    #[test]
    fn a_pre_release_will_do_where_its_release_would() {
        let constraint: Constraint = ">=1.0,<2".parse().unwrap();
        assert!(constraint.takes(&version("1.5.0-rc.1")));
        assert!(!constraint.takes(&version("2.1.0-rc.1")));
    }

    #[test]
    fn what_is_no_constraint_is_refused() {
        for text in [">=", ">=1.0,,<2", "1.x", "*", ">=1 <2", "!=1", &">".repeat(300)] {
            assert!(text.parse::<Constraint>().is_err(), "{text}");
        }
    }
}
