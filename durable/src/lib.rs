//! Replaces a file so that a crash at any moment leaves the old content or the new, never a mixture.
//!
//! Every room that keeps small files does it with these three functions. Not for what is appended to or changed in
//! place: that is a database's work.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Replaces a file by `content`: see [`replace`].
///
/// # Errors
///
/// When anything fails; then the old file is as it was.
pub fn write(file: &Path, content: &[u8]) -> io::Result<()> {
    replace(file, |output| output.write_all(content))
}

/// Writes a file's content beside it, brings it to the disk, and only then gives it the name.
///
/// One writer a file at a time: what a crash left beside it is overwritten by the next.
///
/// # Errors
///
/// When anything fails; then the old file is as it was, and what was written beside it is removed.
pub fn replace(file: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    replace_through(&beside(file)?, file, content)
}

/// As [`replace`], with the name under which the content is written first; in the same directory as `file`. For files
/// whose own names change, so that a crash does not leave a draft of each.
///
/// # Errors
///
/// As [`replace`].
pub fn replace_through(
    draft: &Path,
    file: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let written: io::Result<()> = (|| {
        let mut output = BufWriter::with_capacity(BUFFER, File::create(draft)?);
        content(&mut output)?;
        let output = output.into_inner().map_err(io::IntoInnerError::into_error)?;
        output.sync_all()?;
        fs::rename(draft, file)
    })();
    match written {
        // The new name is on the disk only when its directory is.
        Ok(()) => sync_directory(file.parent().unwrap_or_else(|| Path::new(""))),
        Err(error) => {
            // Best effort: the next attempt overwrites it anyway, and the error that matters is the first.
            let _ = fs::remove_file(draft);
            Err(error)
        }
    }
}

/// Brings the names in a directory to the disk, such as after a file in it was renamed or removed. The empty path is
/// the current directory.
///
/// # Errors
///
/// When the directory cannot be opened or the disk fails.
#[cfg(unix)]
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    if directory.as_os_str().is_empty() {
        return File::open(".")?.sync_all();
    }
    File::open(directory)?.sync_all()
}

/// Brings the names in a directory to the disk as far as this system does: it does not open directories, and its
/// renames are as durable as it makes them.
///
/// # Errors
///
/// None here.
#[cfg(not(unix))]
pub fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Bytes gathered before each write: enough that the system calls do not show beside the disk.
const BUFFER: usize = 256 * 1024;

fn beside(file: &Path) -> io::Result<PathBuf> {
    let Some(name) = file.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path names no file",
        ));
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    Ok(file.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        write(&file, b"old").unwrap();
        let failed = replace(&file, |output| {
            output.write_all(b"half of the new")?;
            Err(io::Error::other("power"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        write(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn a_path_without_a_file_name_is_refused() {
        assert!(write(Path::new("/"), b"").is_err());
    }
}
