//! Reads MNIST's file format: a magic number, dimensions, bytes (yann.lecun.com/exdb/mnist).
//!
//! It opens no file: its input may be unpacked on the way.

use std::io::{self, Read};

/// An array of bytes as an IDX file holds it.
#[derive(Debug)]
pub(super) struct Idx {
    /// Its dimensions, slowest first; none is more than [`SIZE_MAX`], nor is their product.
    pub(super) dimensions: Vec<u32>,
    /// As many bytes as the product of the dimensions.
    pub(super) bytes: Vec<u8>,
}

/// Why a file is no such array.
#[derive(Debug, thiserror::Error)]
pub enum IdxError {
    /// It is another kind of file.
    #[error(
        "it begins with {found:02x?} where {expected:02x?} was expected; \
         is it the right file, and of bytes?"
    )]
    Magic {
        /// What it begins with.
        found: [u8; 4],
        /// What an array of bytes with the expected number of dimensions begins with.
        expected: [u8; 4],
    },
    /// It ends too early.
    #[error("it ends after {found} bytes where {expected} were expected; copy or download it again")]
    Truncated {
        /// Bytes that are there, after unpacking.
        found: u64,
        /// Bytes that its own header asks for; of the header itself, when that is cut.
        expected: u64,
    },
    /// It goes on after its end.
    #[error("it goes on after the {expected} bytes that its header asks for; copy or download it again")]
    TooLong {
        /// Bytes that its own header asks for.
        expected: u64,
    },
    /// It claims to be larger than we would read.
    #[error("its header asks for an array of {dimensions:?}, more than {SIZE_MAX} bytes")]
    TooLarge {
        /// The dimensions that it claims.
        dimensions: Vec<u32>,
    },
    /// It cannot be read or unpacked.
    #[error("it cannot be read or unpacked")]
    Read(#[source] io::Error),
}

/// The largest array that is read: 1 GiB, twenty times MNIST's training images.
pub(super) const SIZE_MAX: u64 = 1 << 30;

impl Idx {
    /// Reads an array of bytes of `D` dimensions to its end.
    pub(super) fn read<const D: usize>(mut input: impl Read) -> Result<Self, IdxError> {
        // The length is a number of dimensions, at most three here.
        let expected = [0, 0, 8, D as u8];
        let header_size = 4 + 4 * D as u64;
        let mut found = [0; 4];
        fill(&mut input, &mut found, 0, header_size)?;
        if found != expected {
            return Err(IdxError::Magic { found, expected });
        }
        let mut dimensions = Vec::with_capacity(D);
        for index in 0..D as u64 {
            let mut dimension = [0; 4];
            fill(&mut input, &mut dimension, 4 + 4 * index, header_size)?;
            dimensions.push(u32::from_be_bytes(dimension));
        }
        let size = dimensions
            .iter()
            .try_fold(1_u64, |size, dimension| size.checked_mul(u64::from(*dimension)))
            .filter(|size| *size <= SIZE_MAX && dimensions.iter().all(|d| u64::from(*d) <= SIZE_MAX));
        let Some(size) = size else {
            return Err(IdxError::TooLarge { dimensions });
        };
        // The buffer grows with what arrives, so that a lying header costs nothing.
        let mut bytes = vec![];
        let outcome = input.take(size + 1).read_to_end(&mut bytes);
        let expected = header_size + size;
        match (outcome, bytes.len() as u64) {
            (Err(error), found) => Err(classify(error, header_size + found, expected)),
            (Ok(_), found) if found < size => Err(IdxError::Truncated {
                found: header_size + found,
                expected,
            }),
            (Ok(_), found) if found > size => Err(IdxError::TooLong { expected }),
            (Ok(_), _) => Ok(Self { dimensions, bytes }),
        }
    }
}

/// Fills a piece of the header that begins at byte `at`.
fn fill(input: &mut impl Read, piece: &mut [u8; 4], at: u64, header_size: u64) -> Result<(), IdxError> {
    input
        .read_exact(piece)
        .map_err(|error| classify(error, at, header_size))
}

/// A packed file that was cut shows itself as an unexpected end, too.
fn classify(error: io::Error, found: u64, expected: u64) -> IdxError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => IdxError::Truncated { found, expected },
        _ => IdxError::Read(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
        let mut file = vec![0, 0, 8, dimensions.len() as u8];
        file.extend(dimensions.iter().flat_map(|d| d.to_be_bytes()));
        file.extend_from_slice(bytes);
        file
    }

    #[test]
    fn an_array_is_read_with_its_dimensions() {
        let idx = Idx::read::<3>(&*file(&[2, 1, 3], &[1, 2, 3, 4, 5, 6])).unwrap();
        assert_eq!(idx.dimensions, [2, 1, 3]);
        assert_eq!(idx.bytes, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_cut_file_says_how_much_is_missing_wherever_it_was_cut() {
        let whole = file(&[3, 2], &[0; 6]);
        for length in 0..whole.len() {
            match Idx::read::<2>(&whole[..length]).unwrap_err() {
                IdxError::Truncated { found, expected } => {
                    assert!(found <= length as u64 && expected > length as u64, "{length}");
                }
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn another_kind_of_file_and_a_trailing_byte_are_refused() {
        let labels = file(&[1], &[7]);
        assert!(matches!(Idx::read::<3>(&*labels), Err(IdxError::Magic { .. })));
        let long = file(&[1], &[7, 8]);
        assert!(matches!(
            Idx::read::<1>(&*long),
            Err(IdxError::TooLong { expected: 9 })
        ));
    }

    #[test]
    fn a_header_that_asks_for_too_much_is_refused_before_anything_is_read() {
        for dimensions in [&[u32::MAX; 3][..], &[1 << 30, 2, 1], &[0, u32::MAX, 1]] {
            let error = Idx::read::<3>(&*file(dimensions, &[])).unwrap_err();
            assert!(matches!(error, IdxError::TooLarge { .. }), "{error}");
        }
    }
}
