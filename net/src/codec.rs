//! Values as bytes: postcard, whole or not at all. Framing is the channel's.

use serde::{Serialize, de::DeserializeOwned};

/// The bytes of a value.
///
/// Every message of ours is a plain value that postcard can always write; a type that refuses to be serialised
/// (a map with an unknown length) is a mistake of the caller's, told in debug builds, and gives no bytes.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let bytes = postcard::to_stdvec(value);
    debug_assert!(bytes.is_ok(), "a message is a plain value: {:?}", bytes.err());
    bytes.unwrap_or_default()
}

/// The value that exactly these bytes hold.
///
/// # Errors
/// When the bytes are no such value, end early, or go on after it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(DecodeError::Malformed)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(DecodeError::Trailing { bytes: rest.len() })
    }
}

/// Bytes are not a message.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// They do not hold such a value.
    #[error("the message is malformed")]
    Malformed(#[source] postcard::Error),
    /// They hold one and go on after it: a newer version wrote them, or something cut them wrongly.
    #[error("the message goes on for {bytes} bytes after its end")]
    Trailing {
        /// How many bytes are left over.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::Round;

    #[test]
    fn what_was_encoded_is_decoded() {
        let value = (Round(7), "seven".to_owned());
        assert_eq!(decode(&encode(&value)), Ok(value));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&Round(7));
        bytes.extend([0, 0]);
        assert_eq!(decode::<Round>(&bytes), Err(DecodeError::Trailing { bytes: 2 }));
    }

    #[test]
    fn a_message_that_ends_early_is_refused() {
        let bytes = encode(&"seven".to_owned());
        assert!(matches!(
            decode::<String>(&bytes[..3]),
            Err(DecodeError::Malformed(_))
        ));
    }
}
