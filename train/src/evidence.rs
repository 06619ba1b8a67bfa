//! What a partner has sent that cannot be used, with the partner's signature, so that anybody can check who sent it.
//!
//! It proves that the holder of a key sent these very bytes to this node, for that round and plan. Why they were refused is the
//! keeper's word: whoever has the job's plan can look whether the bytes are garbage. It judges nobody: what follows from a
//! refusal, the log decides (`trust.rs`).

use crate::exchange::SignedOffer;
use lapwing_base::{Garbage, JobId, PeerId, Round};
use lapwing_durable as durable;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A message that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evidence {
    format: u8,
    /// Who sent it.
    pub from: PeerId,
    /// To whom.
    pub to: PeerId,
    /// Why it was refused, as the keeper says; nothing proves that.
    pub why: Garbage,
    offer: SignedOffer,
    message: Vec<u8>,
}

/// Why a file proves nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// It is larger than any message.
    #[error("it has more than the {SIZE_MAX} bytes that evidence may have")]
    TooLarge,
    /// It is no evidence, or of another version.
    #[error("it is not evidence that this version of lapwing has written")]
    Malformed,
    /// Nobody has signed this.
    #[error("the signature is not that of the peer that it names; it proves nothing")]
    Forged,
    /// The signature is of other bytes.
    #[error("the message is not the one that was signed; it proves nothing")]
    Altered,
}

impl Evidence {
    /// Of what `from` has sent to `to`.
    pub(crate) const fn new(
        (from, to): (PeerId, PeerId),
        why: Garbage,
        offer: SignedOffer,
        message: Vec<u8>,
    ) -> Self {
        Self {
            format: FORMAT,
            from,
            to,
            why,
            offer,
            message,
        }
    }

    /// The job that it was sent for.
    pub const fn job(&self) -> JobId {
        self.offer.offer.job
    }

    /// The round that it was sent for.
    pub const fn round(&self) -> Round {
        self.offer.offer.round
    }

    /// What was sent, as the algorithm writes it.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Reads a file, and checks the signature and the message.
    ///
    /// # Errors
    /// [`EvidenceError`] where the file proves nothing.
    pub fn read(file: &Path) -> Result<Self, EvidenceError> {
        let mut bytes = Vec::new();
        fs::File::open(file)?.take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > SIZE_MAX {
            return Err(EvidenceError::TooLarge);
        }
        let (evidence, rest): (Self, _) =
            postcard::take_from_bytes(&bytes).map_err(|_| EvidenceError::Malformed)?;
        if evidence.format != FORMAT || !rest.is_empty() {
            return Err(EvidenceError::Malformed);
        }
        if !evidence.offer.is_signed_by(evidence.from, evidence.to) {
            return Err(EvidenceError::Forged);
        }
        let offer = &evidence.offer.offer;
        let is_whole = offer.bytes == evidence.message.len() as u64
            && offer.hash == *blake3::hash(&evidence.message).as_bytes();
        if is_whole {
            Ok(evidence)
        } else {
            Err(EvidenceError::Altered)
        }
    }

    /// Writes it into a folder that keeps the newest of each partner and job, and [`KEPT_MAX`] in all. Says where.
    pub(crate) fn keep(&self, folder: &Path) -> io::Result<PathBuf> {
        // One after the other: two that make room at once would take away too much.
        static KEEPING: Mutex<()> = Mutex::new(());
        let _turn = KEEPING.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(folder)?;
        let file = folder.join(format!("job-{}-{}.{EXTENSION}", self.job().0, self.from));
        let bytes = postcard::to_allocvec(self).map_err(io::Error::other)?;
        if bytes.len() as u64 > SIZE_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        durable::write(&file, &bytes)?;
        let mut kept: Vec<_> = fs::read_dir(folder)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION) && *path != file)
            .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
            .collect();
        kept.sort();
        let over = (kept.len() + 1).saturating_sub(KEPT_MAX);
        for (_, old) in kept.into_iter().take(over) {
            fs::remove_file(old)?;
        }
        Ok(file)
    }
}

const FORMAT: u8 = 1;

const EXTENSION: &str = "evidence";

/// Of a gigabyte of values, more than any exchange takes.
const SIZE_MAX: u64 = 1 << 30;

/// A cluster with more nodes that send garbage has other worries.
const KEPT_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Offer;
    use lapwing_base::Keypair;

    fn evidence(job: u64, from: &Keypair, to: PeerId) -> Evidence {
        let message = vec![0xFF; 100];
        let offer = Offer {
            job: JobId(job),
            round: Round(7),
            plan: [3; 32],
            bytes: message.len() as u64,
            hash: *blake3::hash(&message).as_bytes(),
        };
        let offer = SignedOffer::new(offer, from, to).unwrap();
        let from = from.public().to_peer_id();
        Evidence::new((from, to), Garbage::NotFinite, offer, message)
    }

    #[test]
    fn what_was_kept_names_its_sender_and_neither_that_nor_the_message_can_be_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (Keypair::generate_ed25519(), PeerId::random());
        let evidence = evidence(1, &from, to);
        let read = Evidence::read(&evidence.keep(folder.path()).unwrap()).unwrap();
        assert_eq!((read.job(), read.round(), read.to), (JobId(1), Round(7), to));
        assert_eq!((read.from, read.message()), (evidence.from, &[0xFF; 100][..]));
        let other = PeerId::from(Keypair::generate_ed25519().public());
        let forged = [
            Evidence {
                from: other,
                ..evidence.clone()
            },
            Evidence {
                to: other,
                ..evidence.clone()
            },
        ];
        for forged in forged {
            let file = forged.keep(folder.path()).unwrap();
            assert!(matches!(Evidence::read(&file), Err(EvidenceError::Forged)));
        }
        let altered = Evidence {
            message: vec![0xFE; 100],
            ..evidence
        };
        let file = altered.keep(folder.path()).unwrap();
        assert!(matches!(Evidence::read(&file), Err(EvidenceError::Altered)));
        let mut longer = fs::read(&file).unwrap();
        longer.push(0);
        fs::write(&file, longer).unwrap();
        assert!(matches!(Evidence::read(&file), Err(EvidenceError::Malformed)));
        fs::write(&file, b"nothing of the kind").unwrap();
        assert!(matches!(Evidence::read(&file), Err(EvidenceError::Malformed)));
        assert!(matches!(
            Evidence::read(&folder.path().join("none")),
            Err(EvidenceError::Io(_))
        ));
    }

    #[test]
    fn a_folder_of_evidence_does_not_grow_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (Keypair::generate_ed25519(), PeerId::random());
        for job in 0..20 {
            let file = evidence(job, &from, to).keep(folder.path()).unwrap();
            assert!(file.exists());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), KEPT_MAX);
    }
}
