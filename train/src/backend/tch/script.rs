//! A network made in Python, trained as it is: loads its TorchScript file and computes its logits.
//!
//! Its parameters are sorted by name and made views of the backend's flat tensor. Buffers, such as the running
//! statistics of a batch norm, are state beside the parameters that nobody would exchange: a file with any is refused.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use tch::{CModule, Device, Kind, TchError, Tensor};

use crate::layout::{Layout, LayoutError, PARAMETERS_MAX};
use crate::script::ScriptModel;

/// A network from a file.
#[derive(Debug)]
pub(super) struct Script {
    file: PathBuf,
    module: CModule,
    layout: Layout,
    /// What the module computes with, in the layout's order. Parameters that are frozen are not among them: they are
    /// the same on all nodes, and stay so.
    parameters: Vec<Tensor>,
}

/// Why a file cannot be trained.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScriptError {
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("it has more than {FILE_BYTES_MAX} bytes")]
    Size,
    #[error(
        "its BLAKE3 is {found}, and the job's is another; each node needs the file that the job was made for"
    )]
    Hash { found: blake3::Hash },
    #[error("it is not what torch.jit.save writes: {0}")]
    Archive(#[from] zip::result::ZipError),
    #[error(
        "it stores {stored} tensors and has {parameters} parameters; what else it stores are buffers, such as those of batch norm, or tied \
         parameters, which are not exchanged: use group norm, compute constants in `forward`"
    )]
    Buffers { stored: usize, parameters: usize },
    #[error("its parameter `{name}` does not have 32 bit floating point numbers; save it after `.float()`")]
    Kind { name: String },
    #[error("it has no parameter that is trained")]
    Frozen,
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("it gives numbers of shape {given:?} where logits of shape {wanted:?} are needed")]
    Output { given: Vec<i64>, wanted: Vec<i64> },
    #[error("{0}")]
    Library(#[from] TchError),
}

/// Longest file: all numbers of the largest model, and as much again for code and what is frozen.
const FILE_BYTES_MAX: u64 = 2 * (PARAMETERS_MAX * size_of::<f32>()) as u64;

impl Script {
    /// Reads the file, if it is the one that the job names, for a device.
    pub(super) fn load(model: &ScriptModel, device: Device) -> Result<Self, ScriptError> {
        let mut bytes = Vec::new();
        File::open(&model.file)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(ScriptError::Size);
        }
        let found = blake3::hash(&bytes);
        if found != model.hash {
            return Err(ScriptError::Hash { found });
        }
        let stored = stored_tensors(&bytes)?;
        let module = CModule::load_data_on_device(&mut &bytes[..], device)?;
        let mut parameters = module.named_parameters()?;
        if stored != parameters.len() {
            return Err(ScriptError::Buffers {
                stored,
                parameters: parameters.len(),
            });
        }
        parameters.retain(|(_, tensor)| tensor.requires_grad());
        if parameters.is_empty() {
            return Err(ScriptError::Frozen);
        }
        parameters.sort_by(|(one, _), (other, _)| one.cmp(other));
        if let Some((name, _)) = parameters
            .iter()
            .find(|(_, tensor)| !matches!(tensor.f_kind(), Ok(Kind::Float)))
        {
            return Err(ScriptError::Kind { name: name.clone() });
        }
        let shape = |tensor: &Tensor| {
            let sides = tensor.size();
            sides
                .into_iter()
                .map(|side| usize::try_from(side).unwrap_or(0))
                .collect()
        };
        let layout = Layout::new(
            parameters
                .iter()
                .map(|(name, tensor)| (name.clone(), shape(tensor))),
        )?;
        let parameters = parameters.into_iter().map(|(_, tensor)| tensor).collect();
        Ok(Self {
            file: model.file.clone(),
            module,
            layout,
            parameters,
        })
    }

    /// Where it came from.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Where its parameters lie: sorted by name.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the module computes with.
    pub(super) fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// From now on it computes with these tensors' memory; they have the layout's order and shapes.
    pub(super) fn bind(&mut self, tensors: &[Tensor]) -> Result<(), TchError> {
        self.parameters
            .iter_mut()
            .zip(tensors)
            .try_for_each(|(own, tensor)| own.f_set_data(tensor))
    }

    /// The logits of a batch: a row of `classes` for each of `answers`.
    pub(super) fn logits(
        &mut self,
        input: &Tensor,
        trains: bool,
        [answers, classes]: [i64; 2],
    ) -> Result<Tensor, ScriptError> {
        match trains {
            true => self.module.f_set_train()?,
            false => self.module.f_set_eval()?,
        }
        let output = self.module.forward_ts(&[input])?;
        let given = output.size();
        if given.last() != Some(&classes) || given.iter().product::<i64>() != answers * classes {
            let wanted = vec![answers, classes];
            return Err(ScriptError::Output { given, wanted });
        }
        Ok(output.f_reshape([answers, classes])?)
    }
}

/// How many tensors an archive stores beside its code's constants: `NAME/data/NUMBER` each.
fn stored_tensors(bytes: &[u8]) -> Result<usize, ScriptError> {
    let archive = zip::ZipArchive::new(Cursor::new(bytes))?;
    let is_tensor = |name: &&str| {
        let mut parts = name.rsplit('/');
        let number = parts.next().unwrap_or_default();
        parts.next() == Some("data") && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    Ok(archive.file_names().filter(is_tensor).count())
}

#[cfg(test)]
mod tests {
    use lapwing_base::Algorithm;

    use crate::backend::{Backend, BackendError, backend};
    use crate::data::Samples;
    use crate::draws::Draws;
    use crate::model::InputShape;

    const SHAPE: InputShape = InputShape::flat(6);

    /// A file of `fixtures/`, which `fixtures/make.py` makes, as a job names it.
    fn named(name: &str) -> String {
        let file = format!(
            "{}/src/backend/tch/fixtures/{name}.pt",
            env!("CARGO_MANIFEST_DIR")
        );
        let hash = blake3::hash(&std::fs::read(&file).unwrap());
        format!("torchscript:{file}#{hash}")
    }

    fn open(model: &str, classes: usize) -> Result<Box<dyn Backend>, BackendError> {
        backend("tch", model, SHAPE, classes, 1, &Algorithm::Default.tuning())
    }

    fn refusal(model: &str, classes: usize) -> String {
        open(model, classes).err().unwrap().to_string()
    }

    fn samples() -> Samples {
        let mut draws = Draws::new("script tests", &[1]);
        let features = (0..32 * 6).map(|_| draws.symmetric()).collect();
        Samples::new(features, (0..32).map(|i| i % 4).collect(), 6).unwrap()
    }

    #[test]
    fn a_network_from_python_trains_as_the_same_one_built_in() {
        let mut script = open(&named("mlp"), 4).unwrap();
        let mut built_in = backend("plain", "mlp", SHAPE, 4, 1, &Algorithm::Default.tuning()).unwrap();
        let names: Vec<String> = script.layout().iter().map(|one| one.name.clone()).collect();
        assert_eq!(
            names,
            ["hidden.bias", "hidden.weight", "output.bias", "output.weight"]
        );
        let reordered = |flat: &[f32], script: &dyn Backend, built_in: &dyn Backend| -> Vec<f32> {
            let of = |name: &str| script.layout().iter().find(|own| own.name == name).unwrap();
            let parameters = built_in.layout().iter();
            parameters
                .flat_map(|one| flat[of(&one.name).range.clone()].to_vec())
                .collect()
        };
        let (data, mut flat, mut expected) = (samples(), vec![], vec![]);
        script.read(&mut flat);
        built_in.write(&reordered(&flat, &*script, &*built_in)).unwrap();
        for counts in [&[][..], &[5, 0, 2, 9]] {
            let batch = crate::data::Batch {
                counts,
                ..data.as_batch()
            };
            for _ in 0..5 {
                let one = script.step(&batch, 0.1).unwrap();
                let other = built_in.step(&batch, 0.1).unwrap();
                assert!((one.loss - other.loss).abs() < 1e-5, "{one:?} {other:?}");
            }
        }
        script.read(&mut flat);
        built_in.read(&mut expected);
        let found = reordered(&flat, &*script, &*built_in);
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
        let (one, other) = (script.evaluate(&data).unwrap(), built_in.evaluate(&data).unwrap());
        assert_eq!((one.correct, one.total), (other.correct, other.total));
    }

    #[test]
    fn parameters_that_are_written_are_those_that_it_computes_with() {
        let mut script = open(&named("mlp"), 4).unwrap();
        let zeros = vec![0.0; script.layout().parameters()];
        script.write(&zeros).unwrap();
        let score = script.evaluate(&samples()).unwrap();
        assert!((score.loss - 4_f32.ln()).abs() < 1e-6, "{score:?}");
    }

    #[test]
    fn frozen_parameters_are_left_out_and_unused_ones_stay() {
        let mut script = open(&named("frozen"), 4).unwrap();
        let names: Vec<String> = script.layout().iter().map(|one| one.name.clone()).collect();
        assert_eq!(names, ["output.bias", "output.weight", "unused"]);
        let (_, gradient) = script.gradient(&samples().as_batch()).unwrap();
        let unused = script.layout().get(2).unwrap().range.clone();
        assert!(gradient[unused].iter().all(|slope| *slope == 0.0));
        assert!(gradient.iter().any(|slope| *slope != 0.0));
    }

    #[test]
    fn a_file_that_cannot_be_trained_is_refused_with_what_would_help() {
        let error = refusal(&named("batch_norm"), 4);
        assert!(error.contains("use group norm"), "{error}");
        let error = refusal(&named("mlp"), 5);
        assert!(error.contains("[1, 4]") && error.contains("[1, 5]"), "{error}");
        let (file, _) = named("mlp")
            .rsplit_once('#')
            .map(|(file, hash)| (file.to_owned(), hash.to_owned()))
            .unwrap();
        let other = format!("{file}#{}", blake3::hash(b"another"));
        assert!(
            refusal(&other, 4).contains("the job's is another"),
            "{}",
            refusal(&other, 4)
        );
        let nowhere = format!("torchscript:/nowhere.pt#{}", blake3::hash(b""));
        assert!(refusal(&nowhere, 4).contains("/nowhere.pt"));
        let mistaken = backend(
            "tch",
            &named("mlp"),
            InputShape::flat(7),
            4,
            1,
            &Algorithm::Default.tuning(),
        );
        let error = mistaken.err().unwrap().to_string();
        assert!(error.contains("shapes cannot be multiplied"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn what_is_no_script_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [&b""[..], b"PK\x05\x06", b"torch", &[0; 100]] {
            let file = dir.path().join("other.pt");
            std::fs::write(&file, bytes).unwrap();
            let model = format!("torchscript:{}#{}", file.display(), blake3::hash(bytes));
            let error = refusal(&model, 4);
            assert!(error.contains("torch.jit.save"), "{error}");
        }
    }

    #[test]
    fn other_backends_name_the_one_that_can() {
        for name in ["plain", "burn"] {
            let other = backend(name, &named("mlp"), SHAPE, 4, 1, &Algorithm::Default.tuning());
            let error = other.err().unwrap().to_string();
            assert!(error.contains("--backend tch"), "{error}");
        }
    }
}
