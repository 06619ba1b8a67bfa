//! The built-in models: a list of layers each, their layout, and their first parameters.
//!
//! Nothing is computed here: a backend walks the layers. The first parameters are drawn here and not by the
//! backend, from integers and with operations that IEEE 754 rounds exactly, so that every node and every
//! backend starts from the same bits.

mod definitions;
mod layer;

use lapwing_base::nearest;

use crate::draws::Draws;
use crate::layout::{Layout, LayoutError};
use definitions::DEFINITIONS;
pub use layer::{BYTES, Extent, Layer, NORM_EPSILON, shortcut};
use layer::{First, extent_after};

/// The layers of one model for one shape of input.
#[derive(Clone, Debug)]
pub struct Model {
    layers: Vec<Layer>,
    input: InputShape,
    classes: usize,
    layout: Layout,
}

/// What one sample looks like.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct InputShape {
    /// Colours; 1 for grey images, for tables and for texts.
    pub channels: u32,
    /// Rows; 1 for tables and for texts.
    pub height: u32,
    /// Columns; for tables, the number of features; for texts, of bytes.
    pub width: u32,
    /// What the values mean.
    pub kind: InputKind,
}

/// What the values of a sample mean, and what is to be told from them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum InputKind {
    /// Measurements, about 0 in the mean and 1 in deviation; the sample has one class.
    Numbers,
    /// A piece of text, each value a byte from 0 to 255. After each byte the next one is to be told; the
    /// sample's class is the one after the last.
    Bytes,
}

impl InputShape {
    /// The shape of a table's row of `features` numbers.
    pub const fn flat(features: u32) -> Self {
        Self::image(1, 1, features)
    }

    /// The shape of an image.
    pub const fn image(channels: u32, height: u32, width: u32) -> Self {
        Self {
            channels,
            height,
            width,
            kind: InputKind::Numbers,
        }
    }

    /// The shape of a piece of text of so many bytes.
    pub const fn text(bytes: u32) -> Self {
        Self {
            kind: InputKind::Bytes,
            ..Self::flat(bytes)
        }
    }

    /// How many numbers a sample has.
    pub fn values(self) -> usize {
        // Saturation is harmless: a layout refuses such a model.
        [self.channels, self.height, self.width]
            .into_iter()
            .fold(1, |product: usize, side| product.saturating_mul(side as usize))
    }

    /// How many classes are told for each sample: one, or one after each byte.
    pub fn answers(self) -> usize {
        match self.kind {
            InputKind::Numbers => 1,
            InputKind::Bytes => self.values(),
        }
    }
}

impl std::fmt::Display for InputShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            channels,
            height,
            width,
            kind,
        } = self;
        match (kind, channels, height) {
            (InputKind::Bytes, ..) => write!(f, "texts of {width} bytes"),
            (InputKind::Numbers, 1, 1) => write!(f, "rows of {width} numbers"),
            (InputKind::Numbers, 1, _) => write!(f, "images of {height} x {width} pixels"),
            (InputKind::Numbers, ..) => {
                write!(f, "images of {height} x {width} pixels in {channels} colours")
            }
        }
    }
}

/// Why there is no such model.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// No model has this name.
    #[error("there is no model `{name}`; {}", hint(*.nearest))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The known name that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The input has no values, or there are fewer than two classes.
    #[error(
        "a model needs an input of at least one value and at least two classes, not {values} and {classes}"
    )]
    Empty {
        /// Values a sample.
        values: usize,
        /// Classes.
        classes: usize,
    },
    /// The model is for other samples.
    #[error("the model `{name}` takes {takes}, not {input}")]
    Input {
        /// The model.
        name: &'static str,
        /// What it is for, in words.
        takes: &'static str,
        /// What the data has.
        input: InputShape,
    },
    /// It would be too large.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

fn hint(nearest: Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known: {}", Model::names().collect::<Vec<_>>().join(", ")),
    }
}

impl Model {
    /// The names of the built-in models.
    pub fn names() -> impl Iterator<Item = &'static str> {
        DEFINITIONS.iter().map(|definition| definition.name)
    }

    /// A built-in model, fitted to an input and a number of classes.
    ///
    /// # Errors
    ///
    /// When no model has the name, it is for other inputs, the input is empty, there are fewer than two classes,
    /// or the model would be too large.
    pub fn named(name: &str, input: InputShape, classes: usize) -> Result<Self, ModelError> {
        let Some(definition) = DEFINITIONS.iter().find(|definition| definition.name == name) else {
            return Err(ModelError::Unknown {
                name: name.chars().take(64).collect(),
                nearest: nearest(name, Self::names()),
            });
        };
        let values = input.values();
        if values == 0 || classes < 2 {
            return Err(ModelError::Empty { values, classes });
        }
        let layers = (definition.layers)(input, classes).ok_or(ModelError::Input {
            name: definition.name,
            takes: definition.takes,
            input,
        })?;
        let model = Self::of(layers, input, classes)?;
        debug_assert_eq!(
            extent_after(&model.layers, model.extent()).map(Extent::values),
            Some(input.answers() * classes)
        );
        Ok(model)
    }

    /// A model of these layers, which must fit each other and make a row of logits for each answer.
    pub(crate) fn of(layers: Vec<Layer>, input: InputShape, classes: usize) -> Result<Self, ModelError> {
        let layout = Layout::new(
            tensors(&layers)
                .into_iter()
                .map(|tensor| (tensor.name, tensor.shape)),
        )?;
        Ok(Self {
            layers,
            input,
            classes,
            layout,
        })
    }

    /// The layers, from the input on. The last one's outputs are the logits of the classes.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What one sample looks like.
    pub fn input(&self) -> InputShape {
        self.input
    }

    /// What the first layer is given of a sample.
    pub fn extent(&self) -> Extent {
        Extent {
            channels: self.input.channels as usize,
            height: self.input.height as usize,
            width: self.input.width as usize,
        }
    }

    /// How many classes it tells apart.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Where its parameters lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The first parameters: the same for the same seed on every machine and for every backend.
    ///
    /// Each tensor has draws of its own, named by its place in the layout.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.layout.parameters());
        for (index, tensor) in (0_u64..).zip(tensors(&self.layers)) {
            let length = tensor.shape.iter().product();
            match tensor.first {
                First::Within(bound) => {
                    let mut draws = Draws::new("lapwing train initial 1", &[seed, index]);
                    flat.extend((0..length).map(|_| draws.symmetric() * bound));
                }
                First::Zeros => flat.extend(std::iter::repeat_n(0.0, length)),
                First::Ones => flat.extend(std::iter::repeat_n(1.0, length)),
            }
        }
        debug_assert_eq!(flat.len(), self.layout.parameters());
        flat
    }
}

/// The parameters of layers one after the other.
fn tensors(layers: &[Layer]) -> Vec<layer::Tensor> {
    let after = layers.iter().skip(1).map(Some).chain([None]);
    layers
        .iter()
        .zip(after)
        .flat_map(|(layer, next)| layer.tensors(next))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::model_hash;

    const DIGITS: InputShape = InputShape::image(1, 8, 8);
    const MNIST: InputShape = InputShape::image(1, 28, 28);
    const CIFAR: InputShape = InputShape::image(3, 32, 32);
    const TEXT: InputShape = InputShape::text(64);

    #[test]
    fn the_same_seed_gives_the_same_bits_and_another_seed_gives_others() {
        let model = Model::named("mlp", DIGITS, 10).unwrap();
        let flat = model.initial(1);
        assert_eq!(flat.len(), 64 * 256 + 256 + 256 * 10 + 10);
        assert_eq!(model_hash(&flat), model_hash(&model.initial(1)));
        assert_ne!(model_hash(&flat), model_hash(&model.initial(2)));
        // Fixed for ever: nodes of different versions must start one job from one model.
        let hash: String = model_hash(&flat)[..8]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(hash, "596359a3ed63c25c");
    }

    #[test]
    fn first_weights_have_the_variance_that_their_layer_asks_for() {
        let model = Model::named("mlp", DIGITS, 10).unwrap();
        let flat = model.initial(3);
        for (name, fan) in [("hidden.weight", 64.0), ("output.weight", 266.0)] {
            let parameter = model.layout().iter().find(|p| p.name == name).unwrap();
            let weights = &flat[parameter.range.clone()];
            let variance = weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32;
            let ratio = variance / (2.0 / fan);
            assert!((0.9..1.1).contains(&ratio), "{name}: {ratio}");
        }
        let bias = model.layout().iter().find(|p| p.name == "hidden.bias").unwrap();
        assert!(flat[bias.range.clone()].iter().all(|value| *value == 0.0));
    }

    #[test]
    fn every_model_has_the_published_number_of_parameters_and_fixed_first_ones() {
        // Fixed for ever, like those of the first test.
        for (name, input, classes, parameters, first) in [
            ("mlp", DIGITS, 10, 19_210, "596359a3ed63c25c"),
            ("mlp", MNIST, 10, 203_530, "f41ed6abb2b5f5f9"),
            ("lenet", MNIST, 10, 44_426, "fde849404d24e6be"),
            ("lenet", CIFAR, 10, 62_006, "b71a633ceeb8f5b5"),
            ("mnist-cnn", MNIST, 10, 1_663_370, "234984966a8ae690"),
            ("cifar10-cnn", CIFAR, 10, 1_756_426, "0598ff6bfc3cfddc"),
            ("resnet20", CIFAR, 10, 269_722, "2a6dd2afcb2a947b"),
            ("resnet20", MNIST, 10, 269_434, "033874957bf6a18f"),
            ("transformer", TEXT, BYTES, 470_784, "50dbcd607afe31d4"),
        ] {
            let model = Model::named(name, input, classes).unwrap();
            assert_eq!(model.layout().parameters(), parameters, "{name}");
            let hash = model_hash(&model.initial(1));
            let hash: String = hash[..8].iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hash, first, "{name} of {input}");
            let logits = extent_after(model.layers(), model.extent()).unwrap();
            assert_eq!(logits.values(), input.answers() * classes, "{name}");
        }
    }

    #[test]
    fn parameters_are_named_and_shaped_as_in_pytorch() {
        let names = |name: &str, input, classes| {
            let model = Model::named(name, input, classes).unwrap();
            let layout = model.layout().iter();
            layout
                .map(|parameter| format!("{} {:?}", parameter.name, parameter.shape))
                .collect::<Vec<_>>()
        };
        let lenet = names("lenet", MNIST, 10);
        assert_eq!(lenet[..2], ["conv1.weight [6, 1, 5, 5]", "conv1.bias [6]"]);
        assert_eq!(lenet[4..6], ["fc1.weight [120, 256]", "fc1.bias [120]"]);
        let resnet = names("resnet20", CIFAR, 10);
        assert!(resnet.contains(&"layer2.0.conv1.weight [32, 16, 3, 3]".to_owned()));
        assert!(resnet.contains(&"layer3.2.norm2.weight [64]".to_owned()));
        let transformer = names("transformer", TEXT, BYTES);
        for expected in [
            "token.weight [256, 128]",
            "position.weight [64, 128]",
            "layers.1.self_attn.in_proj_weight [384, 128]",
            "layers.1.self_attn.out_proj.bias [128]",
            "layers.0.linear1.weight [512, 128]",
            "norm.bias [128]",
            "head.weight [256, 128]",
        ] {
            assert!(
                transformer.contains(&expected.to_owned()),
                "{expected}: {transformer:?}"
            );
        }
    }

    #[test]
    fn a_model_for_other_samples_says_which_it_takes() {
        let error = |name, input, classes| Model::named(name, input, classes).unwrap_err().to_string();
        assert_eq!(
            error("lenet", DIGITS, 10),
            "the model `lenet` takes images of 28 x 28 or 32 x 32 pixels, not images of 8 x 8 pixels"
        );
        assert_eq!(
            error("transformer", InputShape::flat(64), 256),
            "the model `transformer` takes texts, as `text:FILE` reads them, not rows of 64 numbers"
        );
        assert_eq!(
            error("mlp", TEXT, BYTES),
            "the model `mlp` takes samples of numbers of any size, not texts of 64 bytes"
        );
        assert!(error("resnet20", InputShape::image(3, 32, 28), 10).contains("in 3 colours"));
    }

    #[test]
    fn a_mistyped_model_is_answered_with_the_one_that_was_meant() {
        let error = Model::named("mlpp", DIGITS, 10).unwrap_err().to_string();
        assert_eq!(error, "there is no model `mlpp`; did you mean `mlp`?");
        let error = Model::named("nothing-like-it", DIGITS, 10)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "there is no model `nothing-like-it`; known: mlp, lenet, mnist-cnn, cifar10-cnn, resnet20, transformer"
        );
    }

    #[test]
    fn an_input_or_a_choice_of_nothing_is_refused() {
        assert!(Model::named("mlp", InputShape::flat(0), 10).is_err());
        assert!(Model::named("mlp", DIGITS, 1).is_err());
        assert!(Model::named("mlp", InputShape::flat(u32::MAX), 2).is_err());
    }
}
