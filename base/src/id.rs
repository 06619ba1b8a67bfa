//! Names for members, clusters and jobs. A peer's own name is its `PeerId`, the hash of its public key.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::str::FromStr;

/// A member's number in its cluster: the log index of its committed `Join`, and 1 for the founder.
///
/// Never reused: a node that lost its disk joins again under a new number, since an old number with an
/// empty log could vote twice in one term.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The node that initialised the cluster.
    pub const FOUNDER: Self = Self(1);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A training job's number: the log index of its committed submission.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", self.0)
    }
}

impl FromStr for JobId {
    type Err = std::num::ParseIntError;

    /// Reads `job-12` and `12`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("job-").unwrap_or(text).parse().map(Self)
    }
}

/// Names one cluster for ever: drawn by its founder, fixed when the gateway confirms the bootstrap.
///
/// Written as 32 hexadecimal digits wherever people read it.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ClusterId([u8; 16]);

impl ClusterId {
    /// Makes an id of 16 random bytes, which the caller draws.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// The text is not a cluster id.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a cluster id is 32 hexadecimal digits, not `{0}`")]
pub struct ParseClusterIdError(String);

impl FromStr for ClusterId {
    type Err = ParseClusterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| ParseClusterIdError(text.chars().take(64).collect()))?;
        Ok(Self(bytes))
    }
}

impl Serialize for ClusterId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ClusterId {
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
    fn a_cluster_id_reads_back_what_it_prints() {
        let id = ClusterId::from_bytes([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<ClusterId>(&json).unwrap(), id);
        let bytes = postcard::to_stdvec(&id).unwrap();
        assert_eq!(bytes.len(), 16);
        assert_eq!(postcard::from_bytes::<ClusterId>(&bytes).unwrap(), id);
    }

    #[test]
    fn a_wrong_cluster_id_is_quoted_in_the_error() {
        let error = "xyz".parse::<ClusterId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "a cluster id is 32 hexadecimal digits, not `xyz`"
        );
    }
}
