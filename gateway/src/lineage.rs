//! The name of one gateway data directory's history. Not the name of a cluster: that is `ClusterId`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Drawn when a gateway starts on an empty data directory, and kept for as long as that directory lives.
///
/// Two answers of one lineage come from one history of claims: at most one of them was confirmed. A node
/// that belongs to a cluster does not follow another lineage without being told.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Lineage([u8; 16]);

impl Lineage {
    /// Makes a lineage of 16 random bytes, which the caller draws.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lineage({self})")
    }
}

/// The text is not a lineage.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a lineage is 32 hexadecimal digits, not `{0}`")]
pub struct ParseLineageError(String);

impl FromStr for Lineage {
    type Err = ParseLineageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| ParseLineageError(text.chars().take(64).collect()))?;
        Ok(Self(bytes))
    }
}

impl Serialize for Lineage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Lineage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(D::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lineage_reads_back_what_it_prints() {
        let lineage = Lineage::from_bytes([0x5e; 16]);
        assert_eq!(lineage.to_string().parse(), Ok(lineage));
        assert!("5e5e".parse::<Lineage>().is_err());
    }
}
