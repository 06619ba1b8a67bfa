//! What a node must have on disk to go on after it was killed: one file, replaced as a whole.
//!
//! Written before a round is reported as done, so that what the log counts on is there. It knows nothing of
//! when that is, and keeps no older ones: the log and the partners hold what a lost disk would need.
//!
//! ```text
//! magic 8 · version u32 · header length u32 · header (postcard) · values (f32) · BLAKE3 of all before 32
//! ```
//!
//! Integers and floats are little endian. The values are the model, the optimiser's state, what the algorithm keeps
//! beside them, and, when exchanges are pending, the bytes that were received.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lapwing_base::{JobId, NodeId, Round, RoundReport};
use serde::{Deserialize, Serialize};

use crate::layout::PARAMETERS_MAX;

/// The state of one node's training at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint<'a> {
    /// The job.
    pub job: JobId,
    /// The hash of the model's layout.
    pub layout: [u8; 32],
    /// The last round whose result is in `model`.
    pub round: Round,
    /// Optimiser steps done; the next batch is this one.
    pub step: u64,
    /// The flat parameters.
    pub model: Cow<'a, [f32]>,
    /// The optimiser's momentum, as long as the model.
    pub optimiser: Cow<'a, [f32]>,
    /// What the algorithm keeps beside them, each vector with a name of its own.
    pub kept: Vec<(String, Cow<'a, [f32]>)>,
    /// The report of a round that is trained but that the log had not closed yet; without its links.
    pub held: Option<RoundReport>,
    /// The exchanges of that round that are here.
    pub pending: Option<Pending>,
}

/// What came of a round's exchanges, kept until the log says which of them count. What was sent follows from the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// The digest of the plan under which they were made.
    pub plan: [u8; 32],
    /// What each partner sent, as it is on the wire.
    pub received: Vec<(NodeId, Bytes)>,
}

/// Why a checkpoint was not written. The one before it is intact.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// There is no room.
    #[error("the disk of `{}` is full, or the user's share of it: make room; the checkpoint before is intact", file.display())]
    DiskFull {
        /// The checkpoint.
        file: PathBuf,
    },
    /// Anything else.
    #[error("the checkpoint `{}` cannot be written; the one before is intact", file.display())]
    Write {
        /// The checkpoint.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why there is no checkpoint to go on from, though there is a file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("the checkpoint `{}` cannot be read", file.display())]
    Read {
        /// The checkpoint.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("`{}` is not a checkpoint: {ADVICE}", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
    },
    /// Another version of this program wrote it.
    #[error("the checkpoint `{}` has version {found}, and this program reads {VERSION}: use the program that wrote it, or {ADVICE}", file.display())]
    Version {
        /// The checkpoint.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It was cut, or changed since it was written.
    #[error("the checkpoint `{}` is damaged ({reason}): {ADVICE}", file.display())]
    Damaged {
        /// The checkpoint.
        file: PathBuf,
        /// How that shows.
        reason: &'static str,
    },
}

/// What to do with a file that is of no use.
const ADVICE: &str = "move it away and start the node again; it then takes the model from its cluster";

const MAGIC: [u8; 8] = *b"LAPWCKPT";

/// The version of the format. Another number is another format.
const VERSION: u32 = 2;

/// The largest header that is read. Ours are about 170 bytes, and some dozens for each vector that is kept.
const HEADER_MAX: u32 = 64 << 10;

/// Bytes before the header: magic, version, header length.
const PREFIX: u64 = 8 + 4 + 4;

/// Bytes of the hash at the end.
const HASH: u64 = 32;

/// Everything but the values.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    job: JobId,
    layout: [u8; 32],
    round: Round,
    step: u64,
    model: u64,
    optimiser: u64,
    kept: Vec<(String, u64)>,
    held: Option<RoundReport>,
    pending: Option<PendingHeader>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PendingHeader {
    plan: [u8; 32],
    /// Bytes.
    received: Vec<(NodeId, u64)>,
}

impl Checkpoint<'_> {
    /// Replaces the file with this checkpoint; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// When the disk is full or cannot be written. The file is then as it was.
    pub fn save(&self, file: &Path) -> Result<(), SaveError> {
        lapwing_durable::replace(file, |output| self.write(output)).map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                SaveError::DiskFull { file: file.into() }
            }
            _ => SaveError::Write {
                file: file.into(),
                source,
            },
        })
    }

    fn write(&self, output: &mut dyn Write) -> io::Result<()> {
        let header = Header {
            job: self.job,
            layout: self.layout,
            round: self.round,
            step: self.step,
            model: self.model.len() as u64,
            optimiser: self.optimiser.len() as u64,
            kept: self
                .kept
                .iter()
                .map(|(name, vector)| (name.clone(), vector.len() as u64))
                .collect(),
            held: self.held.clone().map(|held| RoundReport {
                links: Vec::new(),
                ..held
            }),
            pending: self.pending.as_ref().map(|pending| PendingHeader {
                plan: pending.plan,
                received: pending
                    .received
                    .iter()
                    .map(|(partner, bytes)| (*partner, bytes.len() as u64))
                    .collect(),
            }),
        };
        let header = postcard::to_stdvec(&header).map_err(io::Error::other)?;
        let mut hasher = blake3::Hasher::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(bytes);
            output.write_all(bytes)
        };
        put(&MAGIC)?;
        put(&VERSION.to_le_bytes())?;
        // The header is a few numbers and hashes, far below `HEADER_MAX`.
        put(&(header.len() as u32).to_le_bytes())?;
        put(&header)?;
        let kept = self.kept.iter().map(|(_, vector)| vector);
        let mut bytes = Vec::with_capacity(CHUNK * 4);
        for values in [&self.model, &self.optimiser].into_iter().chain(kept) {
            for chunk in values.chunks(CHUNK) {
                bytes.clear();
                bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                put(&bytes)?;
            }
        }
        for (_, received) in self.pending.iter().flat_map(|pending| &pending.received) {
            put(received)?;
        }
        output.write_all(hasher.finalize().as_bytes())
    }

    /// Reads a checkpoint; `None` when there is no such file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is none of ours, or is damaged.
    pub fn load(file: &Path) -> Result<Option<Checkpoint<'static>>, LoadError> {
        let input = match File::open(file) {
            Ok(input) => input,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(LoadError::Read {
                    file: file.into(),
                    source,
                });
            }
        };
        let read = input
            .metadata()
            .map_err(Fault::from)
            .and_then(|metadata| Input::new(input, metadata.len()).checkpoint());
        read.map(Some).map_err(|fault| {
            let file = file.into();
            match fault {
                Fault::Read(source) => LoadError::Read { file, source },
                Fault::Foreign => LoadError::Foreign { file },
                Fault::Version(found) => LoadError::Version { file, found },
                Fault::Damaged(reason) => LoadError::Damaged { file, reason },
            }
        })
    }
}

/// Values converted at a time, when written and when read.
const CHUNK: usize = 16 * 1024;

/// A checkpoint being read.
struct Input {
    reader: BufReader<File>,
    hasher: blake3::Hasher,
    /// The file's length as the disk knows it.
    length: u64,
}

/// A [`LoadError`] before it knows the file.
enum Fault {
    Read(io::Error),
    Foreign,
    Version(u32),
    Damaged(&'static str),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("it was cut"),
            _ => Self::Read(error),
        }
    }
}

impl Input {
    fn new(file: File, length: u64) -> Self {
        Self {
            reader: BufReader::new(file),
            hasher: blake3::Hasher::new(),
            length,
        }
    }

    fn checkpoint(mut self) -> Result<Checkpoint<'static>, Fault> {
        let mut magic = [0; 8];
        match self.take(&mut magic) {
            Ok(()) if magic == MAGIC => {}
            Ok(()) | Err(Fault::Damaged(_)) => return Err(Fault::Foreign),
            Err(fault) => return Err(fault),
        }
        let version = self.number()?;
        if version != VERSION {
            return Err(Fault::Version(version));
        }
        let header_length = self.number()?;
        if header_length > HEADER_MAX {
            return Err(Fault::Damaged("its header is too long"));
        }
        let mut header = vec![0; header_length as usize];
        self.take(&mut header)?;
        let header: Header =
            postcard::from_bytes(&header).map_err(|_| Fault::Damaged("its header makes no sense"))?;
        self.check_length(&header, header_length)?;
        let model = self.values(header.model)?;
        let optimiser = self.values(header.optimiser)?;
        let mut kept = Vec::with_capacity(header.kept.len());
        for (name, length) in header.kept {
            kept.push((name, self.values(length)?.into()));
        }
        let pending = match header.pending {
            Some(pending) => {
                let mut received = Vec::with_capacity(pending.received.len());
                for (partner, length) in pending.received {
                    let mut bytes = vec![0; length as usize];
                    self.take(&mut bytes)?;
                    received.push((partner, bytes.into()));
                }
                Some(Pending {
                    plan: pending.plan,
                    received,
                })
            }
            None => None,
        };
        let expected = self.hasher.finalize();
        let mut found = [0; 32];
        self.reader.read_exact(&mut found)?;
        // `blake3::Hash` compares in constant time, which does no harm here.
        if expected != found {
            return Err(Fault::Damaged("its content does not match its hash"));
        }
        Ok(Checkpoint {
            job: header.job,
            layout: header.layout,
            round: header.round,
            step: header.step,
            model: model.into(),
            optimiser: optimiser.into(),
            kept,
            held: header.held,
            pending,
        })
    }

    /// Compares what the header claims with what the file has, before anything of that size is made.
    fn check_length(&self, header: &Header, header_length: u32) -> Result<(), Fault> {
        let nonsense = || Fault::Damaged("its header makes no sense");
        let kept = header.kept.iter().map(|(_, length)| *length);
        let values = [header.model, header.optimiser]
            .into_iter()
            .chain(kept)
            .try_fold(0_u64, |sum, length| {
                (length <= PARAMETERS_MAX as u64).then_some(sum + length)
            })
            .ok_or_else(nonsense)?;
        let received = header.pending.iter().flat_map(|pending| &pending.received);
        let expected = received
            .map(|(_, bytes)| *bytes)
            .try_fold(
                PREFIX + u64::from(header_length) + values * 4 + HASH,
                u64::checked_add,
            )
            .ok_or_else(nonsense)?;
        match self.length.cmp(&expected) {
            std::cmp::Ordering::Less => Err(Fault::Damaged("it was cut")),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(Fault::Damaged("it goes on after its end")),
        }
    }

    fn take(&mut self, bytes: &mut [u8]) -> Result<(), Fault> {
        self.reader.read_exact(bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn number(&mut self) -> Result<u32, Fault> {
        let mut bytes = [0; 4];
        self.take(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads `count` values, a number that [`Self::check_length`] has seen.
    fn values(&mut self, count: u64) -> Result<Vec<f32>, Fault> {
        let mut rest = count as usize;
        let mut values = Vec::with_capacity(rest);
        let mut bytes = vec![0; rest.min(CHUNK) * 4];
        while rest > 0 {
            let now = rest.min(CHUNK);
            let bytes = &mut bytes[..now * 4];
            self.take(bytes)?;
            let (words, _) = bytes.as_chunks::<4>();
            values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
            rest -= now;
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(pending: bool) -> Checkpoint<'static> {
        let values = |count: u16, scale: f32| (0..count).map(|i| f32::from(i) * scale).collect();
        Checkpoint {
            job: JobId(7),
            layout: [3; 32],
            round: Round(41),
            step: 410,
            model: values(40_000, 0.5),
            optimiser: values(40_000, -0.25),
            kept: vec![
                ("slow".into(), values(40_000, 1.0)),
                ("none".into(), Cow::default()),
            ],
            held: None,
            pending: pending.then(|| Pending {
                plan: [9; 32],
                received: vec![(NodeId(5), (0..101).collect()), (NodeId(6), vec![7; 3].into())],
            }),
        }
    }

    #[test]
    fn a_checkpoint_reads_back_what_was_saved_and_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("checkpoint");
        assert_eq!(Checkpoint::load(&file).unwrap(), None);
        for pending in [true, false] {
            let saved = checkpoint(pending);
            saved.save(&file).unwrap();
            assert_eq!(Checkpoint::load(&file).unwrap(), Some(saved));
        }
    }

    #[test]
    fn a_cut_file_is_damaged_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("checkpoint");
        checkpoint(true).save(&file).unwrap();
        let whole = std::fs::read(&file).unwrap();
        for length in (0..200).chain([whole.len() / 2, whole.len() - 33, whole.len() - 1]) {
            std::fs::write(&file, &whole[..length]).unwrap();
            let error = Checkpoint::load(&file).unwrap_err();
            assert!(error.to_string().contains("move it away"), "{length}: {error}");
            assert!(error.to_string().contains("checkpoint`"), "{length}: {error}");
        }
        std::fs::write(&file, [&whole[..], &[0]].concat()).unwrap();
        assert!(matches!(Checkpoint::load(&file), Err(LoadError::Damaged { .. })));
    }

    #[test]
    fn a_flipped_bit_is_noticed_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("checkpoint");
        checkpoint(true).save(&file).unwrap();
        let whole = std::fs::read(&file).unwrap();
        for position in (0..250)
            .chain((250..whole.len()).step_by(9973))
            .chain([whole.len() - 1])
        {
            let mut changed = whole.clone();
            changed[position] ^= 0x10;
            std::fs::write(&file, &changed).unwrap();
            assert!(Checkpoint::load(&file).is_err(), "{position}");
        }
    }

    #[test]
    fn a_checkpoint_of_another_version_names_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("checkpoint");
        checkpoint(false).save(&file).unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[8] = 9;
        std::fs::write(&file, bytes).unwrap();
        let error = Checkpoint::load(&file).unwrap_err().to_string();
        assert!(
            error.contains("has version 9, and this program reads 2"),
            "{error}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_as_such_and_leaves_the_checkpoint_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("checkpoint");
        let before = checkpoint(false);
        before.save(&file).unwrap();
        // What would be written beside the checkpoint goes to the device that is always full.
        std::os::unix::fs::symlink("/dev/full", dir.path().join(".checkpoint.partial")).unwrap();
        let error = checkpoint(true).save(&file).unwrap_err();
        assert!(matches!(error, SaveError::DiskFull { .. }), "{error}");
        assert_eq!(Checkpoint::load(&file).unwrap(), Some(before));
    }

    #[test]
    fn a_folder_that_is_not_there_is_told_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gone").join("checkpoint");
        let error = checkpoint(false).save(&file).unwrap_err();
        assert!(matches!(error, SaveError::Write { .. }), "{error}");
    }
}
