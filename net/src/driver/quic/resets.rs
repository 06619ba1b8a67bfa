//! What lets a node that has been restarted tell its peers that it knows nothing of their connections any more.
//!
//! Stateless resets (RFC 9000 section 10.3) are proven by tokens that each connection's peer was given beforehand. Here
//! they follow from the node's identity, so that they outlive the process: a home notices at its next packet that its
//! main was killed and has come back, and not after a silence.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::EndpointConfig;
use quinn_proto::HashedConnectionIdGenerator;
use quinn_proto::crypto::{CryptoError, HmacKey};

use crate::driver::draw;
use lapwing_base::Keypair;

/// A main's homes all come to hear of it within seconds: one reset in this time takes a hundredth of a processor.
const INTERVAL: Duration = Duration::from_millis(1);

/// The secret of one node.
#[derive(Debug)]
pub(super) struct Resets(Secret);

struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Resets {
    /// Those of an identity; of one whose key has no secret to derive from, they end with the process.
    pub(super) fn of(keypair: &Keypair) -> Self {
        let secret = keypair.derive_secret(b"lapwing quic resets");
        Self(Secret(secret.unwrap_or_else(draw)))
    }

    /// Makes an endpoint's tokens and connection ids follow from the secret, and from where it is bound: who sees a
    /// connection of one socket must not get its token from another (RFC 9000 section 21.11).
    pub(super) fn set(&self, config: &mut EndpointConfig, local: SocketAddr) {
        let Self(Secret(secret)) = self;
        let key = blake3::keyed_hash(secret, local.to_string().as_bytes());
        let mut ids = blake3::Hasher::new_keyed(key.as_bytes());
        ids.update(b"connection ids");
        let mut number = [0; size_of::<u64>()];
        ids.finalize_xof().fill(&mut number);
        let number = u64::from_le_bytes(number);
        config
            .reset_key(Arc::new(Key(*key.as_bytes())))
            .min_reset_interval(INTERVAL)
            // Packets whose connection id was never ours are not answered.
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(number)));
    }
}

struct Key([u8; 32]);

impl HmacKey for Key {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(data);
        hasher.finalize_xof().fill(signature);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected: Result<[u8; blake3::OUT_LEN], _> = signature.try_into();
        let expected = blake3::Hash::from_bytes(expected.map_err(|_| CryptoError)?);
        // Compares in constant time.
        if blake3::keyed_hash(&self.0, data) == expected {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_from_the_identity_and_the_address() {
        let keypair = Keypair::generate_ed25519();
        let of = |resets: &Resets, address: &str| {
            let Resets(Secret(secret)) = resets;
            blake3::keyed_hash(
                secret,
                address.parse::<SocketAddr>().unwrap().to_string().as_bytes(),
            )
        };
        let (before, after) = (Resets::of(&keypair), Resets::of(&keypair));
        let other = Resets::of(&Keypair::generate_ed25519());
        assert_eq!(of(&before, "10.0.0.1:4001"), of(&after, "10.0.0.1:4001"));
        assert_ne!(of(&before, "10.0.0.1:4001"), of(&before, "10.0.0.1:4002"));
        assert_ne!(of(&before, "10.0.0.1:4001"), of(&other, "10.0.0.1:4001"));
    }

    #[test]
    fn a_signature_is_good_for_what_was_signed() {
        let key = Key([7; 32]);
        let mut signature = [0; blake3::OUT_LEN];
        key.sign(b"an id", &mut signature);
        assert!(key.verify(b"an id", &signature).is_ok());
        assert!(key.verify(b"another", &signature).is_err());
        assert!(key.verify(b"an id", &signature[1..]).is_err());
    }
}
