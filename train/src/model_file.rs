//! Writes a model as a `.safetensors` file, which PyTorch and others read, and reads one of ours back.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensorError, SafeTensors, View};

use crate::layout::{Layout, Parameter};

/// Why a model was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The vector is another model's.
    #[error("a vector of {given} values is not one of this model's {expected}")]
    Length {
        /// Its length.
        given: usize,
        /// The layout's.
        expected: usize,
    },
    /// The names or the metadata cannot be written down.
    #[error("the model cannot be written as safetensors")]
    Format(#[source] SafeTensorError),
    /// The file cannot be written.
    #[error("`{}` cannot be written", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The key of the metadata that names the tensors in the order of the flat vector: the format itself sorts
/// them, and a model's hash is that of the flat vector.
const ORDER: &str = "order";

/// Replaces a file with a flat vector's tensors under the names and shapes of its layout, and with `metadata`
/// beside them.
///
/// # Errors
///
/// When the vector is not of this layout, or the file cannot be written. A file that was there is then as it
/// was.
pub fn export_safetensors(
    layout: &Layout,
    flat: &[f32],
    mut metadata: HashMap<String, String>,
    file: &Path,
) -> Result<(), ExportError> {
    if flat.len() != layout.parameters() {
        return Err(ExportError::Length {
            given: flat.len(),
            expected: layout.parameters(),
        });
    }
    let tensors = layout.iter().map(|parameter| {
        let values = &flat[parameter.range.clone()];
        (parameter.name.as_str(), Tensor { parameter, values })
    });
    let names: Vec<&str> = layout.iter().map(|parameter| parameter.name.as_str()).collect();
    metadata.insert(ORDER.to_owned(), names.join(","));
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(ExportError::Format)?;
    lapwing_durable::write(file, &bytes).map_err(|source| ExportError::Write {
        file: file.into(),
        source,
    })
}

/// Why a model file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be read.
    #[error("`{}` cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not safetensors.
    #[error("`{}` is not a whole safetensors file; delete it, and the node fetches the model again", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Why.
        source: SafeTensorError,
    },
    /// A tensor is missing, or of another shape.
    #[error("`{}` is of another model: `{name}` is missing or has another shape", file.display())]
    AnotherModel {
        /// The file.
        file: PathBuf,
        /// The parameter.
        name: String,
    },
}

/// Reads the flat vector of a file that [`export_safetensors`] wrote; `None` when there is no such file.
///
/// # Errors
///
/// When the file cannot be read, is none, or holds another model.
pub fn import_safetensors(layout: &Layout, file: &Path) -> Result<Option<Vec<f32>>, ImportError> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ImportError::Read {
                file: file.into(),
                source,
            });
        }
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|source| ImportError::Format {
        file: file.into(),
        source,
    })?;
    let mut flat = Vec::with_capacity(layout.parameters());
    for parameter in layout.iter() {
        let tensor = tensors
            .tensor(&parameter.name)
            .ok()
            .filter(|tensor| tensor.dtype() == Dtype::F32 && tensor.shape() == parameter.shape)
            .ok_or_else(|| ImportError::AnotherModel {
                file: file.into(),
                name: parameter.name.clone(),
            })?;
        flat.extend(
            tensor
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|value| f32::from_le_bytes(*value)),
        );
    }
    Ok(Some(flat))
}

/// Whether the bytes are a file that [`export_safetensors`] wrote, with the model of this [`crate::model_hash`].
pub fn is_model(bytes: &[u8], hash: &[u8; 32]) -> bool {
    let Ok((_, header)) = SafeTensors::read_metadata(bytes) else {
        return false;
    };
    let Ok(tensors) = SafeTensors::deserialize(bytes) else {
        return false;
    };
    let order = header
        .metadata()
        .as_ref()
        .and_then(|metadata| metadata.get(ORDER));
    let Some(order) = order else {
        return false;
    };
    let mut hasher = blake3::Hasher::new();
    let mut count = 0;
    for name in order.split(',') {
        let Ok(tensor) = tensors.tensor(name) else {
            return false;
        };
        hasher.update(tensor.data());
        count += 1;
    }
    count == tensors.len() && hasher.finalize().as_bytes() == hash
}

/// One parameter with its values.
struct Tensor<'a> {
    parameter: &'a Parameter,
    values: &'a [f32],
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.parameter.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InputShape, Model};

    #[test]
    fn an_exported_model_is_read_back_by_name_and_shape() {
        let model = Model::named("mlp", InputShape::flat(5), 3).unwrap();
        let flat = model.initial(1);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        let metadata = HashMap::from([("job".to_owned(), "job-7".to_owned())]);
        export_safetensors(model.layout(), &flat, metadata.clone(), &file).unwrap();

        assert_eq!(
            import_safetensors(model.layout(), &file).unwrap(),
            Some(flat.clone())
        );
        let other = Model::named("mlp", InputShape::flat(6), 3).unwrap();
        let wrong = import_safetensors(other.layout(), &file);
        assert!(matches!(wrong, Err(ImportError::AnotherModel { .. })));

        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        let cut = import_safetensors(model.layout(), &file);
        assert!(matches!(cut, Err(ImportError::Format { .. })));
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 4);
        let weight = tensors.tensor("output.weight").unwrap();
        assert_eq!(weight.shape()[0], 3);
        for parameter in model.layout().iter() {
            let values = flat[parameter.range.clone()].iter();
            let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(tensors.tensor(&parameter.name).unwrap().data(), bytes);
        }
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let kept = header.metadata().as_ref().unwrap();
        assert_eq!(kept["job"], metadata["job"]);
    }

    #[test]
    fn a_model_file_is_known_by_the_hash_in_the_log() {
        let model = Model::named("mlp", InputShape::flat(5), 3).unwrap();
        let flat = model.initial(1);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        export_safetensors(model.layout(), &flat, HashMap::new(), &file).unwrap();
        let whole = std::fs::read(&file).unwrap();
        let hash = crate::model_hash(&flat);
        assert!(is_model(&whole, &hash));

        let mut damaged = whole.clone();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(!is_model(&damaged, &hash));
        assert!(!is_model(&whole[..last], &hash));
        assert!(!is_model(b"", &hash));
        assert!(!is_model(&whole, &[0; 32]));
    }

    #[test]
    fn a_file_that_is_not_there_is_no_model() {
        let model = Model::named("mlp", InputShape::flat(5), 3).unwrap();
        let dir = tempfile::tempdir().unwrap();
        assert!(
            import_safetensors(model.layout(), &dir.path().join("none"))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_vector_of_another_model_is_refused_and_no_file_appears() {
        let model = Model::named("mlp", InputShape::flat(5), 3).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        let refused = export_safetensors(model.layout(), &[1.0], HashMap::new(), &file);
        assert!(matches!(refused, Err(ExportError::Length { given: 1, .. })));
        assert!(!file.exists());
    }
}
