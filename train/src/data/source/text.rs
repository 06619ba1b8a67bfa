//! Reads a text, byte by byte, and cuts it in pieces.
//!
//! It knows no language and no encoding: what follows a byte is a byte.

use std::io::{self, Read};

use super::raw::{Raw, Values};

/// A text in pieces.
#[derive(Debug)]
pub(super) struct Text {
    /// The pieces in their order, each with the byte after it.
    pub(super) pieces: Raw,
    /// So many of the pieces, from the beginning, are for training, and the others for testing.
    pub(super) train: usize,
}

/// Why a file is no text to train on.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// It is larger than we would read.
    #[error("it is longer than {TEXT_BYTES_MAX} bytes; train on a part of it")]
    TooLong,
    /// It cannot be read or unpacked.
    #[error("it cannot be read or unpacked")]
    Read(#[source] io::Error),
}

/// Bytes of a piece: enough for a sentence, and of a batch of 64 a step of the built-in model takes a tenth of a
/// second.
pub(super) const PIECE: u32 = 64;

/// The longest text that is read. A node that trains on all of it holds four times as many bytes, since samples are
/// `f32`.
const TEXT_BYTES_MAX: u64 = 1 << 28;

impl Text {
    /// Reads a text to its end. Its last bytes, fewer than a piece, are left out.
    pub(super) fn read(input: impl Read) -> Result<Self, TextError> {
        /// One piece in five is for testing, as of tables.
        const TEST_SHARE: usize = 5;
        let mut bytes = Vec::new();
        input
            .take(TEXT_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(TextError::Read)?;
        if bytes.len() as u64 > TEXT_BYTES_MAX {
            return Err(TextError::TooLong);
        }
        let piece = PIECE as usize;
        let labels: Vec<u8> = bytes.iter().skip(piece).step_by(piece).copied().collect();
        bytes.truncate(labels.len() * piece);
        // The last part and not a draw: a text repeats itself, and what stands beside a piece gives it away.
        let train = labels.len() - labels.len().div_ceil(TEST_SHARE);
        let values = Values::Bytes { bytes, largest: 1 };
        let pieces = Raw {
            values,
            labels,
            width: piece,
        };
        Ok(Self { pieces, train })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Scaling;

    #[test]
    fn a_text_is_cut_in_pieces_that_each_know_the_byte_after_them() {
        let bytes: Vec<u8> = (0..=255).cycle().take(64 * 6).collect();
        let text = Text::read(&bytes[..]).unwrap();
        // The sixth piece has no byte after it.
        assert_eq!(text.pieces.labels, [64, 128, 192, 0, 64]);
        assert_eq!(text.train, 4);
        let plain = Scaling {
            mean: 0.0,
            deviation: 1.0,
        };
        let samples = text.pieces.gather(&[1], plain);
        let expected: Vec<f32> = bytes[64..128].iter().map(|byte| f32::from(*byte)).collect();
        assert_eq!(samples.features(), expected);
    }

    #[test]
    fn texts_without_a_whole_piece_have_none() {
        for length in [0, 1, 63, 64] {
            let text = Text::read(&vec![b'a'; length][..]).unwrap();
            assert_eq!((text.pieces.labels.len(), text.train), (0, 0), "{length}");
        }
    }
}
