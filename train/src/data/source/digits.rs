//! The embedded data set: 1,797 handwritten digits of 8 x 8 pixels, in 57 KB.
//!
//! The test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, UCI Machine
//! Learning Repository, doi 10.24432/C50P49, under CC BY 4.0 (creativecommons.org/licenses/by/4.0); as
//! scikit-learn ships it, unchanged.

use flate2::read::GzDecoder;

use super::csv::{CsvError, Table};
use crate::model::InputShape;

/// Lines of 64 pixels and the digit, gzip.
const FILE: &[u8] = include_bytes!("../../../data/digits.csv.gz");

/// What one digit looks like.
pub(super) const SHAPE: InputShape = InputShape::image(1, 8, 8);

/// Unpacks the digits, every pixel from 0 to 1.
pub(super) fn digits() -> Result<Table, CsvError> {
    /// A pixel counts the dark ones among 4 x 4 of the scan.
    const PIXEL_MAX: f32 = 16.0;
    let mut table = Table::read(std::io::BufReader::new(GzDecoder::new(FILE)))?;
    table.values.iter_mut().for_each(|pixel| *pixel /= PIXEL_MAX);
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_all_there_and_from_zero_to_one() {
        let table = digits().unwrap();
        assert_eq!((table.labels.len(), table.width), (1797, SHAPE.values()));
        assert!(table.values.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        // The first image is a nought, whose first row is 0 0 5 13 9 1 0 0.
        assert_eq!(table.labels[0], 0);
        assert_eq!(
            table.values[2..6],
            [5.0, 13.0, 9.0, 1.0].map(|pixel| pixel / 16.0)
        );
    }
}
