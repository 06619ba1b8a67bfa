//! A folder for as long as a command needs one.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A new folder that only this user can read, since nodes keep their private keys in it. Removed with all that is
/// in it when this is dropped, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    /// Makes a folder in `parent`, with `name` in its own.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(crate) fn new(parent: &Path, name: &str, keep: bool) -> io::Result<Self> {
        // A folder of that name may be left from a process that had our number.
        const TRIES_MAX: u32 = 1000;
        let mut taken = io::ErrorKind::AlreadyExists.into();
        for number in 0..TRIES_MAX {
            let path = parent.join(format!("{name}-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path, keep }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = error,
                Err(error) => return Err(error),
            }
        }
        Err(taken)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %error, "a folder could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn two_folders_of_one_process_are_two_and_nobody_else_reads_them() {
        let parent = tempfile::tempdir().unwrap();
        let first = Folder::new(parent.path(), "demo", false).unwrap();
        let second = Folder::new(parent.path(), "demo", false).unwrap();
        assert_ne!(first.path(), second.path());
        let mode = fs::metadata(first.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_folder_goes_with_all_that_is_in_it_unless_it_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let kept = Folder::new(parent.path(), "kept", true).unwrap();
        let gone = Folder::new(parent.path(), "gone", false).unwrap();
        fs::write(gone.path().join("file"), "x").unwrap();
        let (kept_path, gone_path) = (kept.path().to_owned(), gone.path().to_owned());
        drop((kept, gone));
        assert!(kept_path.exists() && !gone_path.exists());
    }
}
