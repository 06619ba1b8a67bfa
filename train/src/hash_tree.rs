//! The tree below a model's hash: what makes each chunk of it verifiable by itself.
//!
//! BLAKE3 is a tree of hashes over pieces of 1 KiB (the BLAKE3 paper, section 2.1). Kept of it here are the hashes of the
//! subtrees over [`CHUNK_BYTES`], from which the root follows: the one that the log has. Whoever knows the root can
//! check that list, and with the list every chunk as it arrives, from whomever it comes.

use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes below one hash of the list: 32 for 64 KiB, two thousandths of a model; and one frame on the wire.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// Values in a chunk; the last one of a model may have fewer.
pub(crate) const CHUNK_VALUES: usize = CHUNK_BYTES / size_of::<f32>();

/// Bytes of a hash.
pub(crate) const HASH_BYTES: usize = 32;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HashTree {
    /// One for each chunk. Where there is one chunk only, it is the root.
    leaves: Vec<[u8; HASH_BYTES]>,
}

impl HashTree {
    /// Of a model's parameters, as little endian bytes.
    pub(crate) fn of(flat: &[f32]) -> Self {
        let is_only = flat.len() <= CHUNK_VALUES;
        let leaves = flat
            .chunks(CHUNK_VALUES)
            .enumerate()
            .map(|(index, values)| leaf(index, &to_bytes(values), is_only))
            .collect();
        Self { leaves }
    }

    /// Of a list that somebody tells, if it is that of a model with this root and so many parameters.
    pub(crate) fn told(list: &[u8], parameters: usize, root: &[u8; HASH_BYTES]) -> Option<Self> {
        let (leaves, rest) = list.as_chunks::<HASH_BYTES>();
        let tree = Self {
            leaves: leaves.to_vec(),
        };
        let fits = rest.is_empty() && leaves.len() == chunks_of(parameters);
        (fits && tree.root() == *root).then_some(tree)
    }

    /// The list, to be told.
    pub(crate) fn list(&self) -> Vec<u8> {
        self.leaves.concat()
    }

    /// The hash of the whole model: that of [`crate::model_hash`].
    pub(crate) fn root(&self) -> [u8; HASH_BYTES] {
        match &self.leaves[..] {
            [] => *blake3::hash(&[]).as_bytes(),
            [only] => *only,
            leaves => {
                let (left, right) = leaves.split_at(left_of(leaves.len()));
                *merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).as_bytes()
            }
        }
    }

    /// Whether these bytes are the chunk at this place.
    pub(crate) fn has(&self, index: usize, chunk: &[u8]) -> bool {
        let is_a_chunk = !chunk.is_empty() && chunk.len() <= CHUNK_BYTES;
        is_a_chunk && self.leaves.get(index) == Some(&leaf(index, chunk, self.leaves.len() == 1))
    }
}

/// How many chunks a model of so many parameters is.
pub(crate) const fn chunks_of(parameters: usize) -> usize {
    parameters.div_ceil(CHUNK_VALUES)
}

pub(crate) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn leaf(index: usize, chunk: &[u8], is_only: bool) -> [u8; HASH_BYTES] {
    if is_only {
        return *blake3::hash(chunk).as_bytes();
    }
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset((index * CHUNK_BYTES) as u64);
    hasher.update(chunk);
    hasher.finalize_non_root()
}

/// The hash of a subtree that is not the whole; of at least one leaf. As deep as the number of leaves has bits.
fn merged(leaves: &[[u8; HASH_BYTES]]) -> [u8; HASH_BYTES] {
    match leaves {
        [only] => *only,
        _ => {
            let (left, right) = leaves.split_at(left_of(leaves.len()));
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

/// Leaves on the left side of a tree of at least two: the largest power of two that leaves something for the right.
const fn left_of(leaves: usize) -> usize {
    leaves.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_hash;

    fn model(parameters: usize) -> Vec<f32> {
        (0..parameters).map(|i| (i as f32).sin()).collect()
    }

    #[test]
    fn the_root_is_the_models_hash_whatever_its_size() {
        for chunks in 0..20 {
            for over in [0, 1, 255, 256, CHUNK_VALUES - 1] {
                let flat = model(chunks * CHUNK_VALUES + over);
                let tree = HashTree::of(&flat);
                assert_eq!(tree.root(), model_hash(&flat), "{} values", flat.len());
                assert_eq!(tree.list().len(), chunks_of(flat.len()) * HASH_BYTES);
            }
        }
    }

    #[test]
    fn a_list_is_believed_only_if_it_leads_to_the_root() {
        let flat = model(5 * CHUNK_VALUES + 3);
        let tree = HashTree::of(&flat);
        let (list, root) = (tree.list(), tree.root());
        assert_eq!(HashTree::told(&list, flat.len(), &root), Some(tree));
        for wrong in 0..list.len() {
            let mut list = list.clone();
            list[wrong] ^= 1;
            assert_eq!(HashTree::told(&list, flat.len(), &root), None, "byte {wrong}");
        }
        assert_eq!(HashTree::told(&list[1..], flat.len(), &root), None);
        assert_eq!(HashTree::told(&list[32..], flat.len(), &root), None);
        assert_eq!(HashTree::told(&list, flat.len() + CHUNK_VALUES, &root), None);
        assert_eq!(HashTree::told(&[], flat.len(), &root), None);
    }

    #[test]
    fn a_chunk_is_known_in_its_own_place_only() {
        let flat = model(2 * CHUNK_VALUES + 7);
        let tree = HashTree::of(&flat);
        let chunks: Vec<Vec<u8>> = flat.chunks(CHUNK_VALUES).map(to_bytes).collect();
        for (index, chunk) in chunks.iter().enumerate() {
            for place in 0..4 {
                assert_eq!(tree.has(place, chunk), place == index);
            }
            assert!(!tree.has(index, &chunk[1..]));
        }
        assert!(!tree.has(0, &[]));
        assert!(!tree.has(0, &[chunks[0].clone(), chunks[1].clone()].concat()));
    }
}
