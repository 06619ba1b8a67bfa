//! The first frame of every stream: who speaks which version, from which cluster, about what.

use crate::{DecodeError, Kind, Refusal, decode, encode};
use lapwing_base::ClusterId;
use serde::{Deserialize, Serialize};

/// The version of everything that peers say to one another after the hello.
pub const VERSION: u16 = 1;

/// What the opener of a stream says first.
///
/// The version stands first for ever, so that a peer of any version can read it and answer with its own.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The version that the opener speaks.
    pub version: u16,
    /// The cluster that the opener belongs to, when it belongs to one.
    pub cluster: Option<ClusterId>,
    /// The kind's name; the class was negotiated with the stream.
    pub name: String,
}

impl Hello {
    /// Longest hello in bytes: version, cluster and a name of the longest kind, with room for what a later
    /// version may add.
    pub const SIZE_MAX: usize = 256;

    /// What a node of this version and cluster says to open a channel of a kind.
    pub fn new(cluster: Option<ClusterId>, kind: &Kind) -> Self {
        Self {
            version: VERSION,
            cluster,
            name: kind.name.to_owned(),
        }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the version, and the rest only when the version is ours.
    ///
    /// # Errors
    /// [`HelloError::Version`] is to be answered; a malformed one deserves none.
    pub fn parse(bytes: &[u8]) -> Result<Self, HelloError> {
        let (version, _) = postcard::take_from_bytes::<u16>(bytes).map_err(DecodeError::Malformed)?;
        if version != VERSION {
            return Err(HelloError::Version { theirs: version });
        }
        Ok(decode(bytes)?)
    }
}

/// A stream does not begin as one of ours.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HelloError {
    /// Not a hello.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// Of another version.
    #[error("the peer speaks version {theirs} of the protocol")]
    Version {
        /// The version that the peer speaks.
        theirs: u16,
    },
}

impl HelloError {
    /// What to answer.
    pub const fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Malformed(_) => None,
            Self::Version { .. } => Some(Refusal::Version { theirs: VERSION }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access;
    use lapwing_base::{ByteSize, Class};

    #[test]
    fn the_longest_hello_fits() {
        const NAME: &str = "a-name-of-sixty-four-bytes-which-is-the-longest-that-a-kind-has-";
        assert_eq!(NAME.len(), Kind::NAME_MAX);
        let kind = Kind {
            class: Class::Control,
            name: NAME,
            access: Access::Anyone,
            frame_max: ByteSize::kib(1),
        };
        let hello = Hello::new(Some(ClusterId::from_bytes([0xff; 16])), &kind);
        assert!(hello.to_bytes().len() <= Hello::SIZE_MAX);
        assert_eq!(Hello::parse(&hello.to_bytes()), Ok(hello));
    }

    #[test]
    fn another_version_is_told_ours_whatever_follows_its_number() {
        let mut bytes = encode(&2_u16);
        bytes.extend(b"a shape that this version has never seen");
        let error = Hello::parse(&bytes).unwrap_err();
        assert_eq!(error, HelloError::Version { theirs: 2 });
        assert_eq!(error.refusal(), Some(Refusal::Version { theirs: VERSION }));
    }

    #[test]
    fn garbage_gets_no_answer() {
        let error = Hello::parse(&[VERSION as u8, 9, 9, 9]).unwrap_err();
        assert_eq!(error.refusal(), None);
    }
}
