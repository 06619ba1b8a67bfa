//! A model on its way here: chunk by chunk, each verified before it counts, so that what a lost peer gave stays.
//!
//! It is told what arrives and knows no channel; `models.rs` reads.

use crate::hash_tree::{CHUNK_VALUES, HASH_BYTES, HashTree, chunks_of};
use crate::models::{Header, Resume};

#[derive(Debug)]
pub(crate) struct IncomingModel {
    parameters: usize,
    /// The hash that the log has of it, where it has one.
    expected: Option<[u8; HASH_BYTES]>,
    begun: Option<(Header, HashTree)>,
    /// What is verified: whole chunks, in their order.
    flat: Vec<f32>,
    /// Verified in all, also of models that were given up for a newer one.
    arrived: u64,
}

impl IncomingModel {
    /// Of so many parameters; with `expected`, only the model with that hash.
    pub(crate) const fn new(parameters: usize, expected: Option<[u8; HASH_BYTES]>) -> Self {
        Self {
            parameters,
            expected,
            begun: None,
            flat: Vec::new(),
            arrived: 0,
        }
    }

    /// What is here of which model, for the next peer.
    pub(crate) fn resume(&self) -> Option<Resume> {
        let (header, _) = self.begun.as_ref()?;
        Some(Resume {
            hash: header.hash,
            chunks: self.chunks() as u64,
        })
    }

    /// Bytes of the list of hashes that follows a header.
    pub(crate) const fn list_bytes(&self) -> usize {
        chunks_of(self.parameters) * HASH_BYTES
    }

    /// What a header announces, before its list of hashes is read.
    ///
    /// # Errors
    /// Another model than what is wanted.
    pub(crate) fn check(&self, header: &Header) -> Result<(), IncomingError> {
        if header.parameters != self.parameters as u64 {
            return Err(IncomingError::OtherSize {
                theirs: header.parameters,
                ours: self.parameters,
            });
        }
        if self.expected.is_some_and(|expected| expected != header.hash) {
            return Err(IncomingError::OtherModel);
        }
        Ok(())
    }

    /// A peer begins to give a model: the one that is partly here already, from where it stopped, or any from its start.
    ///
    /// # Errors
    /// As for [`Self::check`]; the list does not belong to the hash; or the peer begins elsewhere.
    pub(crate) fn begin(&mut self, header: Header, list: &[u8]) -> Result<(), IncomingError> {
        self.check(&header)?;
        let tree = HashTree::told(list, self.parameters, &header.hash).ok_or(IncomingError::OtherList)?;
        let goes_on = self
            .resume()
            .is_some_and(|here| here.hash == header.hash && here.chunks == header.from);
        if !goes_on {
            if header.from != 0 {
                return Err(IncomingError::Gap);
            }
            // All at once: its size is our knowledge, and what is reserved bit by bit is copied.
            self.flat = Vec::with_capacity(self.parameters);
        }
        self.begun = Some((header, tree));
        Ok(())
    }

    /// The next chunk.
    ///
    /// # Errors
    /// It is not what the hashes say, or has values that are not finite; what came before it stays.
    pub(crate) fn take(&mut self, chunk: &[u8]) -> Result<(), IncomingError> {
        let index = self.chunks();
        let due = (self.parameters - self.flat.len()).min(CHUNK_VALUES) * size_of::<f32>();
        let Some((_, tree)) = &self.begun else {
            return Err(IncomingError::Gap);
        };
        if chunk.len() != due || !tree.has(index, chunk) {
            return Err(IncomingError::Damaged { chunk: index });
        }
        let (values, _) = chunk.as_chunks::<4>();
        let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
        if !values.clone().all(f32::is_finite) {
            return Err(IncomingError::NotFinite);
        }
        self.flat.extend(values);
        self.arrived += chunk.len() as u64;
        Ok(())
    }

    /// Whether nothing is missing.
    pub(crate) const fn is_whole(&self) -> bool {
        self.begun.is_some() && self.flat.len() == self.parameters
    }

    /// Bytes of parameters that have arrived, over all that was begun.
    pub(crate) const fn arrived(&self) -> u64 {
        self.arrived
    }

    /// The model with its header, once it is whole.
    pub(crate) fn into_whole(self) -> Option<(Header, Vec<f32>)> {
        let is_whole = self.is_whole();
        let (header, _) = self.begun?;
        is_whole.then_some((header, self.flat))
    }

    /// Chunks that are here; only the last one of a model is short.
    const fn chunks(&self) -> usize {
        chunks_of(self.flat.len())
    }
}

/// Why a model, or a part of it, is not taken; another peer may give a better one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum IncomingError {
    #[error("the peer's model has {theirs} parameters, ours {ours}")]
    OtherSize { theirs: u64, ours: usize },
    #[error("the peer has another model than the one in the log")]
    OtherModel,
    #[error("the peer's list of hashes does not belong to its model")]
    OtherList,
    #[error("the peer begins where it was not asked to")]
    Gap,
    #[error("chunk {chunk} is not what its hash says")]
    Damaged { chunk: usize },
    #[error("the peer's model has values that are not finite")]
    NotFinite,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash_tree::to_bytes;
    use lapwing_base::Round;

    const PARAMETERS: usize = 3 * CHUNK_VALUES + 5;

    struct Giver {
        header: Header,
        tree: HashTree,
        chunks: Vec<Vec<u8>>,
    }

    fn giver(scale: f32) -> Giver {
        let flat = model(scale);
        let tree = HashTree::of(&flat);
        Giver {
            header: Header {
                round: Round(4),
                parameters: flat.len() as u64,
                accuracy: None,
                hash: tree.root(),
                from: 0,
            },
            chunks: flat.chunks(CHUNK_VALUES).map(to_bytes).collect(),
            tree,
        }
    }

    fn model(scale: f32) -> Vec<f32> {
        (0..PARAMETERS).map(|i| (i as f32).sin() * scale).collect()
    }

    impl Giver {
        fn begin(&self, incoming: &mut IncomingModel) -> Result<(), IncomingError> {
            let from = match incoming.resume() {
                Some(resume) if resume.hash == self.header.hash => resume.chunks,
                _ => 0,
            };
            let header = Header {
                from,
                ..self.header.clone()
            };
            incoming.begin(header, &self.tree.list())
        }
    }

    #[test]
    fn a_model_goes_on_from_another_holder_where_the_first_was_lost() {
        let (first, second) = (giver(1.0), giver(1.0));
        let mut incoming = IncomingModel::new(PARAMETERS, Some(first.header.hash));
        first.begin(&mut incoming).unwrap();
        incoming.take(&first.chunks[0]).unwrap();
        incoming.take(&first.chunks[1]).unwrap();
        assert!(!incoming.is_whole());
        second.begin(&mut incoming).unwrap();
        incoming.take(&second.chunks[2]).unwrap();
        incoming.take(&second.chunks[3]).unwrap();
        assert!(incoming.is_whole());
        assert_eq!(incoming.arrived(), 4 * PARAMETERS as u64);
        let (_, flat) = incoming.into_whole().unwrap();
        assert_eq!(flat, model(1.0));
    }

    #[test]
    fn a_damaged_chunk_is_known_at_once_and_costs_nothing_that_came_before() {
        let giver = giver(1.0);
        let mut incoming = IncomingModel::new(PARAMETERS, Some(giver.header.hash));
        giver.begin(&mut incoming).unwrap();
        incoming.take(&giver.chunks[0]).unwrap();
        let mut damaged = giver.chunks[1].clone();
        damaged[77] ^= 1;
        assert_eq!(incoming.take(&damaged), Err(IncomingError::Damaged { chunk: 1 }));
        assert_eq!(
            incoming.take(&giver.chunks[2]),
            Err(IncomingError::Damaged { chunk: 1 })
        );
        assert_eq!(incoming.resume().unwrap().chunks, 1);
        for chunk in &giver.chunks[1..] {
            incoming.take(chunk).unwrap();
        }
        // Nothing may follow.
        assert!(incoming.take(&giver.chunks[3]).is_err());
        assert!(incoming.is_whole());
    }

    #[test]
    fn another_model_begins_anew() {
        let (older, newer) = (giver(1.0), giver(2.0));
        let mut incoming = IncomingModel::new(PARAMETERS, None);
        older.begin(&mut incoming).unwrap();
        incoming.take(&older.chunks[0]).unwrap();
        newer.begin(&mut incoming).unwrap();
        for chunk in &newer.chunks {
            incoming.take(chunk).unwrap();
        }
        let (header, flat) = incoming.into_whole().unwrap();
        assert_eq!(header.hash, newer.header.hash);
        assert_eq!(flat, model(2.0));
    }

    #[test]
    fn what_does_not_fit_is_refused_before_its_chunks_are_read() {
        let giver = giver(1.0);
        let list = giver.tree.list();
        let mut incoming = IncomingModel::new(PARAMETERS, Some([7; 32]));
        assert_eq!(giver.begin(&mut incoming), Err(IncomingError::OtherModel));
        let mut incoming = IncomingModel::new(PARAMETERS + 1, None);
        assert!(matches!(
            giver.begin(&mut incoming),
            Err(IncomingError::OtherSize { .. })
        ));
        let mut incoming = IncomingModel::new(PARAMETERS, None);
        assert_eq!(
            incoming.begin(giver.header.clone(), &list[32..]),
            Err(IncomingError::OtherList)
        );
        let later = Header {
            from: 2,
            ..giver.header.clone()
        };
        assert_eq!(incoming.begin(later, &list), Err(IncomingError::Gap));
        assert_eq!(incoming.take(&giver.chunks[0]), Err(IncomingError::Gap));
        assert!(!incoming.is_whole());
    }

    #[test]
    fn values_that_are_not_finite_are_refused_with_their_chunk() {
        let mut flat = model(1.0);
        flat[CHUNK_VALUES] = f32::NAN;
        let tree = HashTree::of(&flat);
        let header = Header {
            hash: tree.root(),
            ..giver(1.0).header
        };
        let mut incoming = IncomingModel::new(PARAMETERS, None);
        incoming.begin(header, &tree.list()).unwrap();
        let chunks: Vec<Vec<u8>> = flat.chunks(CHUNK_VALUES).map(to_bytes).collect();
        incoming.take(&chunks[0]).unwrap();
        assert_eq!(incoming.take(&chunks[1]), Err(IncomingError::NotFinite));
    }
}
