//! What nodes send under `/v1`, and how it is signed. Decides nothing about the registry.
//!
//! The signature covers a domain name and the postcard encoding of the message as parsed, so that JSON
//! spelling does not matter and a signature for one purpose is worthless for another. The key is inside the
//! peer id (libp2p inlines ed25519 keys), so nobody else can register under it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use lapwing_base::{ClusterId, Keypair, Member, Multiaddr, PeerId, Role, Term, public_key};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Refusal;

/// A message that only the node it is about can send.
pub trait Message: Serialize + DeserializeOwned {
    /// Separates the signatures of this kind of message from all others.
    const DOMAIN: &'static str;

    /// Whose key signs it.
    fn signer(&self) -> &PeerId;

    /// Checks sizes and forms.
    fn check(&self) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A node as it describes itself. Each heartbeat is a whole one.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// Who.
    pub peer_id: PeerId,
    /// Where it listens; at most [`Member::ADDRS_MAX`], each of at most 256 bytes.
    pub addrs: Vec<Multiaddr>,
    /// What people call it; at most [`Member::NAME_MAX`] bytes.
    #[serde(default)]
    pub name: String,
    /// What it offers; at most 64 words of at most 64 bytes.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Publicly reachable or not.
    pub role: Role,
    /// The cluster it is a member of. A founder leaves this empty until its claim is confirmed.
    #[serde(default)]
    pub cluster_id: Option<ClusterId>,
    /// The term in which it knows `leader`.
    #[serde(default)]
    pub term: Option<Term>,
    /// Who leads its cluster, as far as it knows.
    #[serde(default)]
    pub leader: Option<PeerId>,
    /// Grows with every start of the node's process.
    pub incarnation: u64,
    /// Grows with every message of one incarnation. The client raises it by itself where it is too low.
    pub seq: u64,
}

/// Asks to found the cluster. The sender must be registered in this incarnation.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ClaimRequest {
    /// Who.
    pub peer_id: PeerId,
    /// In which incarnation.
    pub incarnation: u64,
    /// Grows with every message of the incarnation; the same number is the same request.
    pub seq: u64,
}

/// What a founder reports when its cluster exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Confirm {
    /// The epoch that was granted.
    pub epoch: u64,
    /// The cluster it founded.
    pub cluster_id: ClusterId,
    /// The term in which it leads.
    pub term: Term,
}

/// A [`Confirm`] as it is sent.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ConfirmRequest {
    /// Who.
    pub peer_id: PeerId,
    /// The epoch that was granted.
    pub epoch: u64,
    /// The cluster it founded.
    pub cluster_id: ClusterId,
    /// The term in which it leads.
    pub term: Term,
}

/// A member's word on who leads, outside a heartbeat.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HintRequest {
    /// Who says so.
    pub peer_id: PeerId,
    /// The cluster it is a member of.
    pub cluster_id: ClusterId,
    /// The leader.
    pub leader: PeerId,
    /// The leader's term.
    pub term: Term,
}

/// Says that a node goes for good.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Leave {
    /// Who.
    pub peer_id: PeerId,
    /// Its incarnation.
    pub incarnation: u64,
    /// Higher than that of its last registration.
    pub seq: u64,
}

/// A message with its signature: one flat JSON object with a `signature` in base64.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Signed<M> {
    /// What is signed.
    #[serde(flatten)]
    pub message: M,
    /// The signature of the domain and the postcard encoding of `message`.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub signature: Vec<u8>,
}

/// Most capabilities of one node.
pub(crate) const CAPABILITIES_MAX: usize = 64;
/// Longest capability, in bytes.
pub(crate) const CAPABILITY_BYTES_MAX: usize = 64;
/// Longest address, in bytes of its binary form: a circuit address with two peer ids and a certificate hash.
const ADDR_BYTES_MAX: usize = 256;

impl<M: Message> Signed<M> {
    /// Signs a message; `None` when the key cannot sign.
    pub fn new(message: M, keypair: &Keypair) -> Option<Self> {
        let signature = keypair.sign(&Self::input(&message)?).ok()?;
        Some(Self { message, signature })
    }

    /// Checks the signature, then the fields.
    pub fn verify(self) -> Result<M, Refusal> {
        let key = public_key(self.message.signer()).ok_or(Refusal::BadSignature)?;
        let input = Self::input(&self.message).ok_or(Refusal::BadSignature)?;
        if !key.verify(&input, &self.signature) {
            return Err(Refusal::BadSignature);
        }
        self.message.check()?;
        Ok(self.message)
    }

    /// The bytes that are signed.
    fn input(message: &M) -> Option<Vec<u8>> {
        let prefix = format!("lapwing-gateway/v1/{}\0", M::DOMAIN);
        postcard::to_extend(message, prefix.into_bytes()).ok()
    }
}

impl Message for Registration {
    const DOMAIN: &'static str = "register";

    fn signer(&self) -> &PeerId {
        &self.peer_id
    }

    fn check(&self) -> Result<(), Refusal> {
        let invalid = |field, problem: String| Err(Refusal::InvalidField { field, problem });
        if self.addrs.len() > Member::ADDRS_MAX {
            return invalid("addrs", format!("more than {} addresses", Member::ADDRS_MAX));
        }
        if self.addrs.iter().any(|addr| addr.len() > ADDR_BYTES_MAX) {
            return invalid("addrs", format!("an address of more than {ADDR_BYTES_MAX} bytes"));
        }
        if self.name.len() > Member::NAME_MAX {
            return invalid("name", format!("more than {} bytes", Member::NAME_MAX));
        }
        if self.name.chars().any(char::is_control) {
            return invalid("name", "a control character".to_owned());
        }
        if let Some(problem) = capabilities_problem(&self.capabilities) {
            return invalid("capabilities", problem);
        }
        if self.leader.is_some() && self.term.is_none() {
            return invalid("term", "a leader without its term".to_owned());
        }
        Ok(())
    }
}

/// What is wrong with a list of capabilities, on either API.
pub(crate) fn capabilities_problem(capabilities: &[String]) -> Option<String> {
    if capabilities.len() > CAPABILITIES_MAX {
        return Some(format!("more than {CAPABILITIES_MAX} capabilities"));
    }
    capabilities
        .iter()
        .any(|capability| capability.len() > CAPABILITY_BYTES_MAX)
        .then(|| format!("a capability of more than {CAPABILITY_BYTES_MAX} bytes"))
}

impl Message for ClaimRequest {
    const DOMAIN: &'static str = "claim";

    fn signer(&self) -> &PeerId {
        &self.peer_id
    }
}

impl Message for ConfirmRequest {
    const DOMAIN: &'static str = "confirm";

    fn signer(&self) -> &PeerId {
        &self.peer_id
    }
}

impl Message for HintRequest {
    const DOMAIN: &'static str = "hint";

    fn signer(&self) -> &PeerId {
        &self.peer_id
    }
}

impl Message for Leave {
    const DOMAIN: &'static str = "leave";

    fn signer(&self) -> &PeerId {
        &self.peer_id
    }
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64_STANDARD_NO_PAD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    BASE64_STANDARD_NO_PAD
        .decode(text.trim_end_matches('='))
        .map_err(|_| D::Error::custom("signature is not base64"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A registration of a fresh node, for this crate's tests.
    pub(crate) fn registration(keypair: &Keypair) -> Registration {
        Registration {
            peer_id: keypair.public().to_peer_id(),
            addrs: vec!["/ip4/127.0.0.1/udp/4001/quic-v1".parse().unwrap()],
            name: "alice".to_owned(),
            capabilities: vec!["raft".to_owned()],
            role: Role::Main,
            cluster_id: None,
            term: None,
            leader: None,
            incarnation: 1,
            seq: 1,
        }
    }

    #[test]
    fn a_signed_message_survives_json_and_verifies() {
        let keypair = Keypair::generate_ed25519();
        let message = Registration {
            cluster_id: Some(ClusterId::from_bytes([3; 16])),
            term: Some(Term(4)),
            leader: Some(PeerId::random()),
            ..registration(&keypair)
        };
        let signed = Signed::new(message.clone(), &keypair).unwrap();
        let json = serde_json::to_string(&signed).unwrap();
        let read: Signed<Registration> = serde_json::from_str(&json).unwrap();
        assert_eq!(read.verify().unwrap(), message);
    }

    #[test]
    fn a_changed_field_or_a_foreign_key_breaks_the_signature() {
        let keypair = Keypair::generate_ed25519();
        let mut signed = Signed::new(registration(&keypair), &keypair).unwrap();
        signed.message.seq += 1;
        assert!(matches!(signed.verify(), Err(Refusal::BadSignature)));

        let thief = Keypair::generate_ed25519();
        let stolen = Signed::new(registration(&keypair), &thief).unwrap();
        assert!(matches!(stolen.verify(), Err(Refusal::BadSignature)));
    }

    #[test]
    fn a_signature_for_one_purpose_is_worthless_for_another() {
        let keypair = Keypair::generate_ed25519();
        let peer_id = keypair.public().to_peer_id();
        let (incarnation, seq) = (1, 2);
        let claim = ClaimRequest {
            peer_id,
            incarnation,
            seq,
        };
        let leave = Leave {
            peer_id,
            incarnation,
            seq,
        };
        let signature = Signed::new(claim, &keypair).unwrap().signature;
        let reused = Signed {
            message: leave,
            signature,
        };
        assert!(matches!(reused.verify(), Err(Refusal::BadSignature)));
    }

    #[test]
    fn an_id_without_its_key_inside_is_refused() {
        let keypair = Keypair::generate_ed25519();
        // The hash form that libp2p uses for keys too long to inline.
        let mut bytes = vec![0x12, 32];
        bytes.extend([7; 32]);
        let message = Registration {
            peer_id: PeerId::from_bytes(&bytes).unwrap(),
            ..registration(&keypair)
        };
        let signed = Signed::new(message, &keypair).unwrap();
        assert!(matches!(signed.verify(), Err(Refusal::BadSignature)));
    }

    #[test]
    fn oversized_fields_are_refused_by_name() {
        let keypair = Keypair::generate_ed25519();
        let base = registration(&keypair);
        let too_many = Registration {
            addrs: vec![base.addrs[0].clone(); 17],
            ..base.clone()
        };
        let too_long = Registration {
            name: "x".repeat(65),
            ..base.clone()
        };
        let too_able = Registration {
            capabilities: vec!["x".repeat(65)],
            ..base.clone()
        };
        let termless = Registration {
            leader: Some(base.peer_id),
            ..base
        };
        for (message, expected) in [
            (too_many, "addrs"),
            (too_long, "name"),
            (too_able, "capabilities"),
            (termless, "term"),
        ] {
            let refusal = Signed::new(message, &keypair).unwrap().verify().unwrap_err();
            assert!(matches!(refusal, Refusal::InvalidField { field, .. } if field == expected));
        }
    }
}
