//! The node's key on disk: made once, kept for ever, readable by its owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use lapwing_base::Keypair;

/// Largest file that can be a key of ours: an Ed25519 key takes 68 bytes.
const SIZE_MAX: u64 = 1024;

/// The identity in a file, which is made with a fresh Ed25519 key when it does not exist.
///
/// The file is written whole or not at all, with access for its owner only, and is never replaced: of two
/// processes that start at once, both get the key of the one that was first.
///
/// # Errors
/// When the file cannot be read or written, or holds no key. The key itself is in no error.
pub fn load_or_create_identity(file: &Path) -> Result<Keypair, IdentityError> {
    match load(file) {
        Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => (),
        result => return result,
    }
    let keypair = Keypair::generate_ed25519();
    match create(file, &keypair) {
        Ok(()) => Ok(keypair),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load(file),
        Err(source) => Err(IdentityError::Write {
            file: file.to_owned(),
            source,
        }),
    }
}

fn load(file: &Path) -> Result<Keypair, IdentityError> {
    let read = || {
        let mut bytes = Vec::new();
        let opened = File::open(file)?;
        restrict(&opened)?;
        opened.take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| IdentityError::Read {
        file: file.to_owned(),
        source,
    })?;
    // What the decoder says could quote what it was given, so it is not passed on.
    Keypair::from_protobuf_encoding(&bytes).map_err(|_| IdentityError::Corrupt {
        file: file.to_owned(),
    })
}

fn create(file: &Path, keypair: &Keypair) -> io::Result<()> {
    let bytes = keypair
        .to_protobuf_encoding()
        .map_err(|_| io::Error::other("the key has no encoding"))?;
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let mut name = file.file_name().unwrap_or_default().to_owned();
    // Its own for each attempt: others may be at it too.
    name.push(format!(".{:016x}.tmp", super::draw::<u64>()));
    let draft = folder.join(name);
    let written = write_new(&draft, &bytes).and_then(|()| {
        // A link fails where the name exists already; a rename would replace another process's key.
        fs::hard_link(&draft, file)
    });
    let removed = fs::remove_file(&draft);
    written?;
    removed?;
    File::open(folder)?.sync_all()
}

fn write_new(draft: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, OWNER_ONLY);
    let mut draft = options.open(draft)?;
    draft.write_all(bytes)?;
    draft.sync_all()
}

/// Takes back access that somebody has given to others.
#[cfg(unix)]
fn restrict(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o077 != 0 {
        tracing::warn!("the identity file was readable by others; its access is now the owner's only");
        permissions.set_mode(OWNER_ONLY);
        file.set_permissions(permissions)?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn restrict(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
const OWNER_ONLY: u32 = 0o600;

/// There is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file exists and cannot be read.
    #[error("cannot read the identity file {}; check that this user owns it", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file cannot be made.
    #[error("cannot write the identity file {}; check that this user may write to its folder", file.display())]
    Write {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds no key.
    #[error(
        "the identity file {} is damaged; restore it from a backup, or remove it and join as a new node",
        file.display()
    )]
    Corrupt {
        /// Which.
        file: PathBuf,
    },
}
