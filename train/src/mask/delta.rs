//! A mask that its receiver cannot derive, on the wire: the gaps between its coordinates, seven bits a byte.
//!
//! Only for coordinates that a node chooses by their values ([`Mask::largest`]): one in a hundred takes about 1.3 bytes
//! a coordinate. What both can derive from a seed is never sent.

use super::Mask;

/// The bytes are not the coordinates that they should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DeltaError {
    /// They stop in the middle.
    #[error("the coordinates stop after {got} of {expected}")]
    Short {
        /// Whole coordinates in them.
        got: usize,
        /// Coordinates that were agreed.
        expected: usize,
    },
    /// There are more of them.
    #[error("{left} bytes follow the last coordinate")]
    Long {
        /// How many.
        left: usize,
    },
    /// A coordinate does not exist.
    #[error("coordinate number {index} is beyond a model of {parameters} parameters")]
    Beyond {
        /// Counted from the first.
        index: usize,
        /// The model's.
        parameters: usize,
    },
}

/// Bits of a gap in one byte; the eighth says that more follow.
const BITS: u32 = 7;
const MORE: u8 = 1 << BITS;

impl Mask {
    /// Replaces the contents of `out` by this mask's coordinates.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        let mut next = 0;
        for coordinate in self.coordinates() {
            let mut gap = coordinate - next;
            while gap >= u32::from(MORE) {
                // The low bits and the mark fill the byte.
                out.push(gap as u8 | MORE);
                gap >>= BITS;
            }
            out.push(gap as u8);
            next = coordinate.saturating_add(1);
        }
    }

    /// Reads `count` coordinates of a model of `parameters`, in the memory of this mask. Both numbers are what this
    /// node knows, not what the sender says. On an error the mask is empty.
    ///
    /// # Errors
    ///
    /// When the bytes are not exactly so many coordinates of such a model.
    pub fn read(&mut self, bytes: &[u8], count: usize, parameters: usize) -> Result<(), DeltaError> {
        let mut indices = self.take();
        let read = read(bytes, count, parameters, &mut indices);
        if read.is_err() {
            indices.clear();
        }
        *self = Self::Indices(indices);
        read
    }
}

fn read(bytes: &[u8], count: usize, parameters: usize, indices: &mut Vec<u32>) -> Result<(), DeltaError> {
    indices.clear();
    // A coordinate takes a byte or more.
    indices.reserve(count.min(bytes.len()));
    let mut bytes = bytes.iter();
    let mut next = 0_u64;
    for index in 0..count {
        let (mut gap, mut shift) = (0_u64, 0);
        loop {
            let Some(&byte) = bytes.next() else {
                return Err(DeltaError::Short {
                    got: index,
                    expected: count,
                });
            };
            gap |= u64::from(byte & !MORE) << shift;
            shift += BITS;
            if byte < MORE {
                break;
            }
            // Five bytes are enough for any gap, and more would shift bits out of sight.
            if shift > u32::BITS {
                return Err(DeltaError::Beyond { index, parameters });
            }
        }
        let coordinate = next + gap;
        match u32::try_from(coordinate) {
            Ok(fitting) if coordinate < parameters as u64 => indices.push(fitting),
            _ => return Err(DeltaError::Beyond { index, parameters }),
        }
        next = coordinate + 1;
    }
    match bytes.len() {
        0 => Ok(()),
        left => Err(DeltaError::Long { left }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_back(bytes: &[u8], count: usize, parameters: usize) -> Result<Mask, DeltaError> {
        let mut mask = Mask::Indices(vec![9; 3]);
        mask.read(bytes, count, parameters).map(|()| mask)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(indices in prop::collection::btree_set(any::<u32>(), 0..300), dense: bool) {
            // Neighbours as well as the largest gaps.
            let indices: Vec<u32> = match dense {
                true => (0..indices.len() as u32).map(|index| index * 3 / 2).collect(),
                false => indices.into_iter().collect(),
            };
            let mask = Mask::Indices(indices);
            let mut bytes = vec![1];
            mask.write(&mut bytes);
            prop_assert_eq!(read_back(&bytes, mask.len(), 1 << 32), Ok(mask));
        }

        #[test]
        fn garbage_is_refused_or_read_as_a_mask_of_the_model(
            bytes in prop::collection::vec(any::<u8>(), 0..60), count in 0_usize..60, parameters in 0_usize..5000,
        ) {
            let mut mask = Mask::Indices(Vec::new());
            if mask.read(&bytes, count, parameters).is_ok() {
                prop_assert_eq!(mask.len(), count);
                prop_assert!(mask.coordinates().is_sorted_by(|a, b| a < b) && mask.fits(parameters));
            } else {
                prop_assert!(mask.is_empty());
            }
        }
    }

    #[test]
    fn one_in_a_hundred_takes_less_than_a_byte_and_a_half_each() {
        let mask = Mask::random([1; 32], 100, 1_000_000);
        let mut bytes = Vec::new();
        mask.write(&mut bytes);
        let each = bytes.len() as f64 / mask.len() as f64;
        assert!((1.2..1.4).contains(&each), "{each}");
    }

    #[test]
    fn bytes_that_stop_go_on_or_point_beyond_the_model_are_refused() {
        let short = DeltaError::Short { got: 1, expected: 2 };
        assert_eq!(read_back(&[3, 0x80], 2, 10), Err(short));
        assert_eq!(read_back(&[3, 1, 0], 2, 10), Err(DeltaError::Long { left: 1 }));
        let beyond = DeltaError::Beyond {
            index: 1,
            parameters: 5,
        };
        assert_eq!(read_back(&[3, 1], 2, 5), Err(beyond));
        let endless = DeltaError::Beyond {
            index: 0,
            parameters: 5,
        };
        assert_eq!(read_back(&[0xff; 12], 1, 5), Err(endless));
    }
}
