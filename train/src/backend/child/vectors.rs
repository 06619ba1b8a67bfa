//! The two files that a node and its trainer share: the flat parameters, and what the optimiser remembers.
//!
//! Plain files in a folder that only the user can enter, in memory where there is room. Nobody else is told of them, and
//! they go when this is dropped. Whose turn it is to touch them, the messages say.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

/// A file system in memory, on Linux.
const MEMORY: &str = "/dev/shm";

/// Values converted at a time.
const CHUNK: usize = 16 * 1024;

/// The files cannot be made or used, or are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum VectorsError {
    /// The file system.
    #[error("the file `{}` that is shared with the trainer cannot be used", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path that JSON cannot hold.
    #[error("the folder `{}` has no name in UTF-8, which the trainer could be told", .0.display())]
    Name(PathBuf),
    /// The trainer made it shorter or longer.
    #[error("the trainer left {found} bytes of parameters, not {expected}")]
    Length {
        /// As it is.
        found: u64,
        /// As it should be.
        expected: u64,
    },
    /// The optimiser remembers too much.
    #[error("the optimiser's state has {found} bytes, and at most {max} are kept")]
    TooMuch {
        /// As the trainer says.
        found: u64,
        /// What goes into a checkpoint.
        max: u64,
    },
}

/// The shared files of one job.
#[derive(Debug)]
pub(super) struct Vectors {
    folder: PathBuf,
    model: PathBuf,
    state: PathBuf,
    parameters: usize,
}

impl Vectors {
    /// Makes the files, in memory or else in `dir`. `name` is the same whenever this node opens this job, so that what a
    /// crash has left is replaced.
    pub(super) fn create(dir: &Path, name: &str, parameters: usize) -> Result<Self, VectorsError> {
        let in_memory = Self::create_in(Path::new(MEMORY), name, parameters);
        in_memory.or_else(|_| Self::create_in(dir, name, parameters))
    }

    fn create_in(dir: &Path, name: &str, parameters: usize) -> Result<Self, VectorsError> {
        let folder = std::path::absolute(dir)
            .unwrap_or_else(|_| dir.to_owned())
            .join(name);
        if folder.to_str().is_none() {
            return Err(VectorsError::Name(folder));
        }
        let made = Self {
            model: folder.join("model"),
            state: folder.join("state"),
            parameters,
            folder,
        };
        made.make().map_err(|source| VectorsError::File {
            file: made.model.clone(),
            source,
        })?;
        Ok(made)
    }

    fn make(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        // Fails where anything is in the way: nobody else's folder is used.
        DirBuilder::new().mode(0o700).create(&self.folder)?;
        let file = File::create_new(&self.model)?;
        let bytes = self.bytes();
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => (),
            // Not every file system can; then room is found missing when the file is written.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes)?,
            Err(error) => return Err(error.into()),
        }
        File::create_new(&self.state)?;
        Ok(())
    }

    /// The file with the parameters.
    pub(super) fn model(&self) -> &Path {
        &self.model
    }

    /// The file with the optimiser's state.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    fn bytes(&self) -> u64 {
        4 * self.parameters as u64
    }

    /// Most bytes of an optimiser's state: twice what Adam has, and what a format needs beside that.
    pub(super) fn state_bytes_max(&self) -> u64 {
        16 * self.parameters as u64 + (1 << 20)
    }

    /// Gives the trainer the parameters, as many as were told when the files were made.
    pub(super) fn write_model(&self, flat: &[f32]) -> Result<(), VectorsError> {
        debug_assert_eq!(flat.len(), self.parameters);
        let write = || {
            let mut file = File::options().write(true).open(&self.model)?;
            file.set_len(self.bytes())?;
            let mut bytes = Vec::with_capacity(CHUNK * 4);
            for chunk in flat.chunks(CHUNK) {
                bytes.clear();
                bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                file.write_all(&bytes)?;
            }
            Ok(())
        };
        write().map_err(|source| self.unusable(&self.model, source))
    }

    /// Takes the parameters that the trainer has left. They may be anything but too many or too few.
    pub(super) fn read_model(&self) -> Result<Vec<f32>, VectorsError> {
        let unusable = |source| self.unusable(&self.model, source);
        let mut file = File::open(&self.model).map_err(unusable)?;
        let (found, expected) = (file.metadata().map_err(unusable)?.len(), self.bytes());
        if found != expected {
            return Err(VectorsError::Length { found, expected });
        }
        let mut flat = Vec::with_capacity(self.parameters);
        let mut bytes = vec![0; CHUNK * 4];
        while flat.len() < self.parameters {
            let length = (self.parameters - flat.len()).min(CHUNK) * 4;
            let bytes = &mut bytes[..length];
            file.read_exact(bytes).map_err(unusable)?;
            let (values, _) = bytes.as_chunks::<4>();
            flat.extend(values.iter().map(|value| f32::from_le_bytes(*value)));
        }
        Ok(flat)
    }

    /// Gives the trainer an optimiser's state.
    pub(super) fn write_state(&self, state: &[u8]) -> Result<(), VectorsError> {
        fs::write(&self.state, state).map_err(|source| self.unusable(&self.state, source))
    }

    /// Takes the state that the trainer has left, of which it says how long it is.
    pub(super) fn read_state(&self, bytes: u64) -> Result<Vec<u8>, VectorsError> {
        let max = self.state_bytes_max();
        if bytes > max {
            return Err(VectorsError::TooMuch { found: bytes, max });
        }
        let read = || {
            let mut file = File::open(&self.state)?;
            let mut state = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
            file.read_exact(&mut state)?;
            Ok(state)
        };
        read().map_err(|source| self.unusable(&self.state, source))
    }

    fn unusable(&self, file: &Path, source: io::Error) -> VectorsError {
        VectorsError::File {
            file: file.to_owned(),
            source,
        }
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(%error, folder = %self.folder.display(), "what was shared with the trainer is left behind");
            }
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_writes_the_other_reads_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let vectors = Vectors::create_in(dir.path(), "job", CHUNK + 3).unwrap();
        let flat: Vec<f32> = (0..CHUNK + 3).map(|i| i as f32 * 0.5 - 9.0).collect();
        vectors.write_model(&flat).unwrap();
        assert_eq!(vectors.read_model().unwrap(), flat);
        let bytes = fs::read(vectors.model()).unwrap();
        assert_eq!(bytes[4..8], (-8.5_f32).to_le_bytes());
        vectors.write_state(b"momentum").unwrap();
        assert_eq!(vectors.read_state(8).unwrap(), b"momentum");
        assert_eq!(vectors.read_state(0).unwrap(), b"");
        let folder = vectors.folder.clone();
        drop(vectors);
        assert!(!folder.exists());
    }

    #[test]
    fn files_of_another_length_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let vectors = Vectors::create_in(dir.path(), "job", 5).unwrap();
        fs::write(vectors.model(), [0; 24]).unwrap();
        assert!(matches!(
            vectors.read_model(),
            Err(VectorsError::Length {
                found: 24,
                expected: 20
            })
        ));
        vectors.write_model(&[1.0; 5]).unwrap();
        assert_eq!(vectors.read_model().unwrap(), [1.0; 5]);
        vectors.write_state(b"short").unwrap();
        assert!(vectors.read_state(6).is_err());
        assert!(matches!(
            vectors.read_state(u64::MAX),
            Err(VectorsError::TooMuch { .. })
        ));
        fs::remove_file(vectors.model()).unwrap();
        assert!(vectors.read_model().is_err());
    }

    #[test]
    fn what_a_crash_has_left_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("job");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("model"), b"old").unwrap();
        let vectors = Vectors::create_in(dir.path(), "job", 2).unwrap();
        assert_eq!(vectors.read_model().unwrap(), [0.0; 2]);
    }
}
