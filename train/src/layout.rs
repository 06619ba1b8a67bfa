//! Where each parameter of a model lies in one flat vector of `f32`.
//!
//! Everything federated (masks, exchanges, merges, checkpoints) works on the flat vector and knows nothing of
//! layers; a backend and an export know the layout. It holds no values.

use std::ops::Range;

/// The names, shapes and places of a model's parameters, in order and without gaps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    parameters: Vec<Parameter>,
    total: usize,
}

/// One tensor of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Parameter {
    /// Its name, such as `hidden.weight`; unique in its layout.
    pub name: String,
    /// Its dimensions, slowest first. A dense layer's weight is `[outputs, inputs]`, as PyTorch has it.
    pub shape: Vec<usize>,
    /// Its coordinates in the flat vector; as many as the product of `shape`.
    pub range: Range<usize>,
}

/// A model of these shapes would not fit the flat vector.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the model has more than {PARAMETERS_MAX} parameters at `{name}`; make the input or the model smaller"
)]
pub struct LayoutError {
    /// The parameter at which it became too many.
    pub name: String,
}

/// The most coordinates a model may have: 2^30, whose 4 GiB are beyond what nodes of this kind exchange, and
/// which keeps every index within a `u32`.
pub const PARAMETERS_MAX: usize = 1 << 30;

impl Layout {
    /// Lays the parameters out one after the other.
    ///
    /// # Errors
    ///
    /// When together they have more than [`PARAMETERS_MAX`] coordinates.
    pub fn new(parameters: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<Self, LayoutError> {
        let mut total = 0;
        let parameters = parameters
            .into_iter()
            .map(|(name, shape)| {
                let end = shape
                    .iter()
                    .try_fold(1_usize, |size, dimension| size.checked_mul(*dimension))
                    .and_then(|size| size.checked_add(total))
                    .filter(|end| *end <= PARAMETERS_MAX);
                let Some(end) = end else {
                    return Err(LayoutError { name });
                };
                let range = total..end;
                total = end;
                Ok(Parameter { name, shape, range })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { parameters, total })
    }

    /// How many coordinates the flat vector has.
    pub fn parameters(&self) -> usize {
        self.total
    }

    /// The tensors, in the order of their coordinates.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> + '_ {
        self.parameters.iter()
    }

    /// The tensor at a position of [`Self::iter`].
    pub fn get(&self, index: usize) -> Option<&Parameter> {
        self.parameters.get(index)
    }

    /// Names this exact layout: BLAKE3 over names and shapes. Nodes whose layouts differ must not average.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("lapwing train layout 1");
        for parameter in &self.parameters {
            // Lengths first, so that no two lists of names and shapes give the same bytes.
            hasher.update(&(parameter.name.len() as u64).to_le_bytes());
            hasher.update(parameter.name.as_bytes());
            hasher.update(&(parameter.shape.len() as u64).to_le_bytes());
            for dimension in &parameter.shape {
                hasher.update(&(*dimension as u64).to_le_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }
}

/// BLAKE3 of a flat vector's values, each as four bytes, little endian: the name of a model in the log.
pub fn model_hash(flat: &[f32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::with_capacity(HASH_CHUNK * size_of::<f32>());
    for chunk in flat.chunks(HASH_CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&bytes);
    }
    *hasher.finalize().as_bytes()
}

/// Values hashed at a time: 64 KiB of bytes, which stay in the nearest caches and hash at full width.
const HASH_CHUNK: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(parameters: &[(&str, &[usize])]) -> Result<Layout, LayoutError> {
        Layout::new(
            parameters
                .iter()
                .map(|(name, shape)| ((*name).to_owned(), shape.to_vec())),
        )
    }

    #[test]
    fn parameters_lie_one_after_the_other_without_gaps() {
        let layout = layout(&[("a.weight", &[3, 4]), ("a.bias", &[3])]).unwrap();
        let ranges: Vec<_> = layout.iter().map(|parameter| parameter.range.clone()).collect();
        assert_eq!(ranges, [0..12, 12..15]);
        assert_eq!(layout.parameters(), 15);
    }

    #[test]
    fn any_change_of_a_name_or_shape_changes_the_hash() {
        let hash = |parameters: &[(&str, &[usize])]| layout(parameters).unwrap().hash();
        let one = hash(&[("a", &[2, 3])]);
        assert_eq!(one, hash(&[("a", &[2, 3])]));
        for other in [
            hash(&[("b", &[2, 3])]),
            hash(&[("a", &[3, 2])]),
            hash(&[("a", &[6])]),
            hash(&[("a", &[2, 3]), ("b", &[])]),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn shapes_beyond_any_memory_are_refused() {
        for shape in [&[usize::MAX, 2][..], &[PARAMETERS_MAX, 2], &[PARAMETERS_MAX + 1]] {
            let error = layout(&[("a", &[1]), ("huge", shape)]).unwrap_err();
            assert_eq!(error.name, "huge");
        }
    }

    #[test]
    fn a_models_hash_is_that_of_its_little_endian_bytes() {
        let flat: Vec<f32> = (0..40_000).map(|i| i as f32 * 0.5).collect();
        let bytes: Vec<u8> = flat.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(model_hash(&flat), *blake3::hash(&bytes).as_bytes());
        assert_ne!(model_hash(&flat), model_hash(&flat[1..]));
    }
}
