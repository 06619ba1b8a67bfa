//! A node keeps its identity on disk, and nobody else reads it.

use lapwing_net::{IdentityError, load_or_create_identity};
use std::fs;
use std::thread;

#[test]
fn an_identity_is_made_once_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("data/identity.key");
    let first = load_or_create_identity(&file).unwrap();
    let second = load_or_create_identity(&file).unwrap();
    assert_eq!(first.public(), second.public());
    let left: Vec<_> = fs::read_dir(folder.path().join("data")).unwrap().collect();
    assert_eq!(left.len(), 1, "no draft is left: {left:?}");
}

#[cfg(unix)]
#[test]
fn only_its_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.key");
    let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    load_or_create_identity(&file).unwrap();
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    load_or_create_identity(&file).unwrap();
    assert_eq!(mode(), 0o600, "access that was given to others is taken back");
}

#[test]
fn a_damaged_file_is_named_and_left_alone_and_its_content_told_to_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.key");
    load_or_create_identity(&file).unwrap();
    let whole = fs::read(&file).unwrap();
    let secret = String::from_utf8_lossy(&whole[4..20]).into_owned();
    for damaged in [&whole[..whole.len() / 2], b"", &[0xff; 5000], secret.as_bytes()] {
        fs::write(&file, damaged).unwrap();
        let error = load_or_create_identity(&file).unwrap_err();
        assert!(matches!(error, IdentityError::Corrupt { .. }), "{error:?}");
        let text = format!("{error} {error:?}");
        assert!(
            text.contains("identity.key") && text.contains("restore"),
            "{text}"
        );
        assert!(!text.contains(&secret));
        assert_eq!(fs::read(&file).unwrap(), damaged);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = folder.path().join("file");
    fs::write(&in_the_way, "").unwrap();
    let error = load_or_create_identity(&in_the_way.join("identity.key")).unwrap_err();
    assert!(error.to_string().contains("identity.key"), "{error}");
}

#[test]
fn two_that_start_at_once_get_the_same_identity() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.key");
    let keys: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| load_or_create_identity(&file).unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap().public())
            .collect()
    });
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
}
