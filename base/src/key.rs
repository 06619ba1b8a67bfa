//! The key behind a peer id. Signs nothing and checks nothing itself.

use crate::{PeerId, PublicKey};

/// The key inside a peer id; `None` for ids that are only a hash of their key.
pub fn public_key(peer: &PeerId) -> Option<PublicKey> {
    // A multihash is (code, length, digest); code 0 is "identity", whose digest is the encoded key itself.
    let bytes = peer.to_bytes();
    let [0, length, digest @ ..] = bytes.as_slice() else {
        return None;
    };
    if usize::from(*length) != digest.len() {
        return None;
    }
    PublicKey::try_decode_protobuf(digest).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keypair;

    #[test]
    fn an_ed25519_key_comes_back_from_its_peer_id_and_a_hash_gives_none() {
        let key = Keypair::generate_ed25519().public();
        assert_eq!(public_key(&key.to_peer_id()), Some(key));
        // Of 32 bytes that are no key, and of the hash of a long key.
        assert_eq!(public_key(&PeerId::random()), None);
        let hashed: PeerId = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse().unwrap();
        assert_eq!(public_key(&hashed), None);
    }
}
