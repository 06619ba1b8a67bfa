//! Opens what a data specification names and takes a node's share of it.
//!
//! Four forms: the embedded digits, MNIST's files, tables and texts. It fetches nothing from a network.

mod csv;
mod digits;
mod idx;
mod raw;
mod split;
mod text;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

pub use csv::CsvError;
pub use idx::IdxError;
pub use text::TextError;

use super::partition::PartitionError;
use super::{DataSpec, Dataset, Samples, Scaling, Source};
use crate::model::{BYTES, InputShape};
use csv::Table;
use digits::digits;
use idx::Idx;
use raw::{Raw, Values};
use split::split;
use text::{PIECE, Text};

/// Why there is no data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be opened.
    #[error("failed to open `{}`", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder lacks one of its four files.
    #[error(
        "`{}` has neither `{name}` nor `{name}.gz`; a folder of MNIST's form holds train-images-idx3-ubyte, \
         train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte",
        dir.display()
    )]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The file.
        name: &'static str,
    },
    /// A file is not of MNIST's form.
    #[error("`{}` is not usable", file.display())]
    Idx {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: IdxError,
    },
    /// A file is not a table.
    #[error("`{}` is not usable", file.display())]
    Csv {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: CsvError,
    },
    /// A file is not a text to train on.
    #[error("`{}` is not usable", file.display())]
    Text {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: TextError,
    },
    /// There are more images than labels or fewer.
    #[error("`{}` has {images} images in its {part} part but {labels} labels; are all files of one set?", dir.display())]
    Counts {
        /// The folder.
        dir: PathBuf,
        /// `train` or `t10k`.
        part: &'static str,
        /// Images.
        images: usize,
        /// Labels.
        labels: usize,
    },
    /// Images for training and for testing differ in size.
    #[error("`{}` has images of {train:?} pixels to train and of {test:?} to test; are all files of one set?", dir.display())]
    Shapes {
        /// The folder.
        dir: PathBuf,
        /// Rows and columns to train.
        train: (u32, u32),
        /// Rows and columns to test.
        test: (u32, u32),
    },
    /// There is nothing to train or test on.
    #[error("`{0}` has no samples to train on, or none to test on")]
    Empty(Source),
    /// The samples cannot be shared out so.
    #[error(transparent)]
    Partition(#[from] PartitionError),
}

/// All samples of a source, before anybody's share is taken.
struct Whole {
    pool: Raw,
    /// Positions in `pool` to train on.
    train: Vec<u32>,
    test: Samples,
    classes: usize,
    shape: InputShape,
    scaling: Scaling,
}

/// Reads a data set, and keeps of its training samples this node's share.
///
/// # Errors
///
/// When a file is missing, cut, too large or of another form, or the samples are too few for so many parts.
pub fn load(spec: &DataSpec) -> Result<Dataset, DataError> {
    let whole = match &spec.source {
        Source::Digits => {
            let table = digits().map_err(|source| DataError::Csv {
                file: "digits".into(),
                source,
            })?;
            from_table(table, digits::SHAPE)
        }
        Source::Csv(file) => {
            let mut table = Table::read(open(file)?).map_err(|source| DataError::Csv {
                file: file.clone(),
                source,
            })?;
            table.scale();
            // A line is at most a mebibyte, so its columns are a `u32`.
            let shape = InputShape::flat(u32::try_from(table.width).unwrap_or(u32::MAX));
            from_table(table, shape)
        }
        Source::Idx(dir) => from_idx(dir)?,
        Source::Text(file) => {
            let text = Text::read(open(file)?).map_err(|source| DataError::Text {
                file: file.clone(),
                source,
            })?;
            from_text(text)
        }
    };
    if whole.train.is_empty() || whole.test.is_empty() {
        return Err(DataError::Empty(spec.source.clone()));
    }
    let mut train = whole.train;
    if let Some(share) = spec.share {
        let labels: Vec<u8> = train
            .iter()
            .map(|position| whole.pool.labels[*position as usize])
            .collect();
        let mut parts = share.partition.parts(&labels, share.seed, share.parts)?;
        // `1 <= part <= parts`, as `Share` promises.
        let mine = parts.swap_remove(share.part.saturating_sub(1) as usize);
        train = mine.into_iter().map(|index| train[index as usize]).collect();
    }
    Ok(Dataset {
        train: whole.pool.gather(&train, whole.scaling),
        test: whole.test,
        classes: whole.classes,
        shape: whole.shape,
        scaling: whole.scaling,
    })
}

/// Sets a fifth of a table aside for testing.
fn from_table(table: Table, shape: InputShape) -> Whole {
    let (train, test) = split(&table.labels);
    let pool = Raw {
        values: Values::Floats(table.values),
        labels: table.labels,
        width: table.width,
    };
    let scaling = pool.scaling(&train);
    Whole {
        test: pool.gather(&test, scaling),
        classes: pool.classes(),
        pool,
        train,
        shape,
        scaling,
    }
}

/// The pieces of a text as they are: their values are bytes and stay so.
fn from_text(Text { pieces, train }: Text) -> Whole {
    let scaling = Scaling {
        mean: 0.0,
        deviation: 1.0,
    };
    let mut positions: Vec<u32> = (0_u32..).take(pieces.labels.len()).collect();
    let test = positions.split_off(train);
    Whole {
        test: pieces.gather(&test, scaling),
        pool: pieces,
        train: positions,
        classes: BYTES,
        shape: InputShape::text(PIECE),
        scaling,
    }
}

/// Reads the four files of a folder.
fn from_idx(dir: &Path) -> Result<Whole, DataError> {
    let (pool, train) = images(dir, "train", "train-images-idx3-ubyte", "train-labels-idx1-ubyte")?;
    let (test_pool, test) = images(dir, "t10k", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")?;
    if train != test {
        return Err(DataError::Shapes {
            dir: dir.into(),
            train,
            test,
        });
    }
    let everything = |pool: &Raw| (0_u32..).take(pool.labels.len()).collect::<Vec<_>>();
    let train_positions = everything(&pool);
    let scaling = pool.scaling(&train_positions);
    Ok(Whole {
        train: train_positions,
        test: test_pool.gather(&everything(&test_pool), scaling),
        classes: pool.classes().max(test_pool.classes()),
        pool,
        shape: InputShape::image(1, train.0, train.1),
        scaling,
    })
}

/// Reads images and their labels; also gives the rows and columns of an image.
fn images(
    dir: &Path,
    part: &'static str,
    images: &'static str,
    labels: &'static str,
) -> Result<(Raw, (u32, u32)), DataError> {
    let images = idx::<3>(dir, images)?;
    let labels = idx::<1>(dir, labels)?.bytes;
    let (count, rows, columns) = match images.dimensions[..] {
        [count, rows, columns] => (count as usize, rows, columns),
        _ => (0, 0, 0),
    };
    if count != labels.len() {
        return Err(DataError::Counts {
            dir: dir.into(),
            part,
            images: count,
            labels: labels.len(),
        });
    }
    let width = InputShape::image(1, rows, columns).values();
    if width == 0 || count == 0 {
        return Err(DataError::Empty(Source::Idx(dir.into())));
    }
    let values = Values::Bytes {
        bytes: images.bytes,
        largest: u8::MAX,
    };
    Ok((
        Raw {
            values,
            labels,
            width,
        },
        (rows, columns),
    ))
}

/// Reads one file of a folder, plain or packed.
fn idx<const D: usize>(dir: &Path, name: &'static str) -> Result<Idx, DataError> {
    let plain = dir.join(name);
    let packed = dir.join(format!("{name}.gz"));
    let file = [plain, packed]
        .into_iter()
        .find(|file| file.exists())
        .ok_or_else(|| DataError::Missing {
            dir: dir.into(),
            name,
        })?;
    Idx::read::<D>(open(&file)?).map_err(|source| DataError::Idx { file, source })
}

/// Opens a file, and unpacks it on the way when it begins as gzip does, whatever its name.
fn open(file: &Path) -> Result<Box<dyn BufRead>, DataError> {
    let open = || -> io::Result<Box<dyn BufRead>> {
        let mut input = BufReader::new(File::open(file)?);
        if input.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
            Ok(Box::new(BufReader::new(MultiGzDecoder::new(input))))
        } else {
            Ok(Box::new(input))
        }
    };
    open().map_err(|source| DataError::Open {
        file: file.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;
    use std::io::Write as _;

    fn spec(text: &str) -> DataSpec {
        text.parse().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A small folder of MNIST's form: images of 2 x 3 pixels that count upwards.
    fn folder(train: u8, test: u8) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in [("train", train), ("t10k", test)] {
            let mut images = vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 2, 0, 0, 0, 3];
            images.extend(0..count * 6);
            let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count];
            labels.extend((0..count).map(|i| i % 3));
            std::fs::write(dir.path().join(format!("{name}-images-idx3-ubyte")), images).unwrap();
            let packed = dir.path().join(format!("{name}-labels-idx1-ubyte.gz"));
            std::fs::write(packed, gzip(&labels)).unwrap();
        }
        dir
    }

    #[test]
    fn the_digits_split_into_1437_and_360_with_every_class_in_proportion() {
        let data = load(&spec("digits")).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (1437, 360));
        assert_eq!((data.classes, data.shape), (10, digits::SHAPE));
        for class in 0..10 {
            let count = |samples: &Samples| samples.labels().iter().filter(|l| **l == class).count();
            let (train, test) = (count(&data.train), count(&data.test));
            assert!((35..=37).contains(&test), "{class}: {test}");
            assert!((0.195..0.205).contains(&(test as f64 / (test + train) as f64)));
        }
        // Fixed for ever: two versions that split differently would test on what the other trained on.
        let hash = crate::layout::model_hash(data.test.features());
        let hash: String = hash[..8].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hash, "14c54a9ba88aa12c");
    }

    #[test]
    fn shares_of_the_digits_are_disjoint_and_whole_and_test_sets_equal() {
        let whole = load(&spec("digits")).unwrap();
        let mut rows = vec![];
        for part in 1..=8 {
            let data = load(&spec(&format!(
                "digits#partition=dirichlet:0.5,seed=1,part={part}/8"
            )))
            .unwrap();
            assert_eq!(data.test, whole.test);
            assert_eq!(data.classes, 10);
            assert!(data.train.len() >= crate::data::SAMPLES_MIN);
            rows.extend(
                data.train
                    .chunks(1)
                    .map(|row| (row.features.to_vec(), row.labels[0])),
            );
        }
        let mut all: Vec<_> = whole
            .train
            .chunks(1)
            .map(|row| (row.features.to_vec(), row.labels[0]))
            .collect();
        rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(rows, all);
    }

    #[test]
    fn a_folder_of_mnists_form_is_read_plain_or_packed() {
        let dir = folder(20, 6);
        let data = load(&spec(&format!("idx:{}", dir.path().display()))).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.classes), (20, 6, 3));
        assert_eq!((data.shape.height, data.shape.width), (2, 3));
        let last = data.test.features()[35] * data.scaling.deviation + data.scaling.mean;
        assert!((last - 35.0 / 255.0).abs() < 1e-6, "{last}");
        let half = load(&spec(&format!("idx:{}#part=2/2", dir.path().display()))).unwrap();
        assert_eq!(half.train.len(), 10);
        assert_eq!(half.test, data.test);
    }

    #[test]
    fn what_is_wrong_with_a_folder_is_told_with_the_file() {
        let dir = folder(20, 6);
        let source = spec(&format!("idx:{}", dir.path().display()));
        let labels = dir.path().join("t10k-labels-idx1-ubyte.gz");
        let packed = std::fs::read(&labels).unwrap();

        std::fs::write(&labels, &packed[..packed.len() - 9]).unwrap();
        let error = load(&source).unwrap_err();
        assert!(error.to_string().contains("t10k-labels-idx1-ubyte.gz"), "{error}");
        assert!(error.source().unwrap().to_string().contains("download it again"));

        std::fs::write(&labels, b"<html>not found</html>").unwrap();
        let error = load(&source).unwrap_err();
        assert!(
            error
                .source()
                .unwrap()
                .to_string()
                .contains("is it the right file")
        );

        std::fs::write(&labels, gzip(&[0, 0, 8, 1, 0, 0, 0, 1, 0])).unwrap();
        let error = load(&source).unwrap_err().to_string();
        assert!(
            error.contains("6 images in its t10k part but 1 labels"),
            "{error}"
        );

        std::fs::remove_file(&labels).unwrap();
        let error = load(&source).unwrap_err().to_string();
        assert!(error.contains("neither `t10k-labels-idx1-ubyte` nor"), "{error}");
    }

    #[test]
    fn a_table_is_scaled_and_split() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("table.csv.gz");
        let lines: String = (0..100).map(|i| format!("{i},{},{}\n", i % 7, i % 2)).collect();
        std::fs::write(&file, gzip(format!("a,b,class\n{lines}").as_bytes())).unwrap();
        let data = load(&spec(&format!("csv:{}", file.display()))).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.classes), (80, 20, 2));
        assert_eq!(data.shape, InputShape::flat(2));
        let largest = data.train.features().iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert!((1.0..3.0).contains(&largest), "{largest}");
    }

    #[test]
    fn a_text_is_trained_on_up_to_a_place_and_tested_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("text");
        let text: Vec<u8> = (0..64 * 100 + 1).map(|i| (i / 64) as u8).collect();
        std::fs::write(&file, gzip(&text)).unwrap();
        let whole = load(&spec(&format!("text:{}", file.display()))).unwrap();
        assert_eq!(
            (whole.train.len(), whole.test.len(), whole.classes),
            (80, 20, 256)
        );
        assert_eq!(whole.shape, InputShape::text(64));
        assert!(whole.train.features().iter().all(|byte| *byte < 80.0));
        assert!(whole.test.features().iter().all(|byte| *byte >= 80.0));
        let half = load(&spec(&format!("text:{}#part=1/2", file.display()))).unwrap();
        assert_eq!((half.train.len(), half.test.len()), (40, 20));
        std::fs::write(&file, &text[..100]).unwrap();
        let error = load(&spec(&format!("text:{}", file.display()))).unwrap_err();
        assert!(matches!(error, DataError::Empty(_)), "{error}");
    }

    #[test]
    fn a_missing_or_tiny_file_and_too_many_parts_are_refused() {
        let error = load(&spec("csv:/no/such/file.csv")).unwrap_err();
        assert_eq!(error.to_string(), "failed to open `/no/such/file.csv`");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("one.csv");
        std::fs::write(&file, "1,2,0\n").unwrap();
        assert!(matches!(
            load(&spec(&format!("csv:{}", file.display()))),
            Err(DataError::Empty(_))
        ));
        assert!(matches!(
            load(&spec("digits#part=1/1000")),
            Err(DataError::Partition(_))
        ));
    }
}
