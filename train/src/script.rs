//! A model that was made in Python: how a job names its TorchScript file.
//!
//! It reads no file; the backend `tch` does.

use std::path::PathBuf;

/// A TorchScript file that every node of a job has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ScriptModel {
    /// Where it is on each node; a relative path is one from where the node was started.
    pub file: PathBuf,
    /// BLAKE3 of its bytes, so that all nodes train the same network from the same parameters.
    pub hash: blake3::Hash,
}

impl ScriptModel {
    /// Reads `torchscript:FILE#HASH`, the hash in hexadecimal; `None` when it is anything else.
    pub fn named(model: &str) -> Option<Self> {
        let (file, hash) = model.strip_prefix("torchscript:")?.rsplit_once('#')?;
        let hash = blake3::Hash::from_hex(hash).ok()?;
        (!file.is_empty()).then(|| Self {
            file: file.into(),
            hash,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_with_its_hash_and_not_without() {
        let hash = blake3::hash(b"a network");
        let named = ScriptModel::named(&format!("torchscript:/models/#1.pt#{hash}")).unwrap();
        assert_eq!((named.file, named.hash), (PathBuf::from("/models/#1.pt"), hash));
        for wrong in [
            "torchscript:a.pt",
            "torchscript:a.pt#",
            "torchscript:a.pt#12",
            "a.pt",
        ] {
            assert_eq!(ScriptModel::named(wrong), None, "{wrong}");
        }
        assert_eq!(ScriptModel::named(&format!("torchscript:#{hash}")), None);
    }
}
