//! Replaces a file so that a crash at any moment leaves the old content or the new, never a mixture.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a file's content beside it, brings it to the disk, and only then gives it the name.
///
/// One writer a file at a time: what a crash left beside it is overwritten by the next.
///
/// # Errors
///
/// When anything fails; then the old file is as it was, and what was written beside it is removed.
pub(crate) fn replace(file: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let beside = beside(file)?;
    let written: io::Result<()> = (|| {
        let mut output = BufWriter::with_capacity(BUFFER, File::create(&beside)?);
        write(&mut output)?;
        let output = output.into_inner().map_err(io::IntoInnerError::into_error)?;
        output.sync_all()?;
        fs::rename(&beside, file)?;
        Ok(())
    })();
    match written {
        // The new name is on the disk only when its folder is.
        Ok(()) => sync_folder(file),
        Err(error) => {
            // Best effort: the next attempt overwrites it anyway, and the error that matters is the first.
            let _ = fs::remove_file(&beside);
            Err(error)
        }
    }
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
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    Ok(file.with_file_name(hidden))
}

#[cfg(unix)]
fn sync_folder(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    // Other systems do not open folders; their rename is as durable as they make it.
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        replace(&file, |output| output.write_all(b"old")).unwrap();
        let failed = replace(&file, |output| {
            output.write_all(b"half of the new")?;
            Err(io::Error::other("power"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&file).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        replace(&file, |output| output.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }
}
