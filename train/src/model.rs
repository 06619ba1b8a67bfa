//! The built-in models: a list of layers each, their layout, and their first parameters.
//!
//! Nothing is computed here: a backend walks the layers. The first parameters are drawn here and not by the
//! backend, from integers and with operations that IEEE 754 rounds exactly, so that every node and every
//! backend starts from the same bits.

use lapwing_base::nearest;

use crate::draws::Draws;
use crate::layout::{Layout, LayoutError};

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
    /// Colours; 1 for grey images and for tables.
    pub channels: u32,
    /// Rows; 1 for tables.
    pub height: u32,
    /// Columns; for tables, the number of features.
    pub width: u32,
}

impl InputShape {
    /// The shape of a table's row of `features` numbers.
    pub const fn flat(features: u32) -> Self {
        Self {
            channels: 1,
            height: 1,
            width: features,
        }
    }

    /// How many numbers a sample has.
    pub fn values(self) -> usize {
        // Saturation is harmless: a layout refuses such a model.
        [self.channels, self.height, self.width]
            .into_iter()
            .fold(1, |product: usize, side| product.saturating_mul(side as usize))
    }
}

/// One step from the input to the logits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    /// `y = W x + b`. Its parameters are `NAME.weight`, `[outputs, inputs]`, and `NAME.bias`, `[outputs]`.
    Dense {
        /// Names its parameters.
        name: &'static str,
        /// Length of `x`.
        inputs: usize,
        /// Length of `y`.
        outputs: usize,
    },
    /// `max(x, 0)`, value by value.
    Relu,
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

/// A built-in model: its name and its layers for an input of `values` and for `classes`.
type Definition = (&'static str, fn(InputShape, usize) -> Vec<Layer>);

/// Every built-in model.
const DEFINITIONS: [Definition; 1] = [("mlp", mlp)];

/// One hidden layer.
fn mlp(input: InputShape, classes: usize) -> Vec<Layer> {
    /// Width of the hidden layer. Wide layers average better: the 8 x 8 digits on 8 nodes (Dirichlet 0.5,
    /// c = 25, 150 rounds, mean of ten draws) end at 95.1 % with 64, 95.3 % with 128, 96.1 % with 256 and
    /// 95.9 % with 512 of these.
    const HIDDEN: usize = 256;
    vec![
        Layer::Dense {
            name: "hidden",
            inputs: input.values(),
            outputs: HIDDEN,
        },
        Layer::Relu,
        Layer::Dense {
            name: "output",
            inputs: HIDDEN,
            outputs: classes,
        },
    ]
}

impl Model {
    /// The names of the built-in models.
    pub fn names() -> impl Iterator<Item = &'static str> {
        DEFINITIONS.iter().map(|(name, _)| *name)
    }

    /// A built-in model, fitted to an input and a number of classes.
    ///
    /// # Errors
    ///
    /// When no model has the name, the input is empty, there are fewer than two classes, or the model would
    /// be too large.
    pub fn named(name: &str, input: InputShape, classes: usize) -> Result<Self, ModelError> {
        let Some((_, layers)) = DEFINITIONS.iter().find(|(known, _)| *known == name) else {
            return Err(ModelError::Unknown {
                name: name.chars().take(64).collect(),
                nearest: nearest(name, Self::names()),
            });
        };
        let values = input.values();
        if values == 0 || classes < 2 {
            return Err(ModelError::Empty { values, classes });
        }
        let layers = layers(input, classes);
        let layout = Layout::new(layers.iter().flat_map(|layer| layer.parameters()))?;
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
    /// Weights are uniform with a variance that keeps the size of what passes through: He's (2015,
    /// arXiv 1502.01852) before a ReLU, Glorot's (AISTATS 2010) elsewhere. Biases start at zero.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.layout.parameters());
        for (index, layer) in self.layers.iter().enumerate() {
            match *layer {
                Layer::Dense { inputs, outputs, .. } => {
                    let fan = match self.layers.get(index + 1) {
                        Some(Layer::Relu) => inputs,
                        Some(Layer::Dense { .. }) | None => inputs + outputs,
                    };
                    // A uniform draw from -b to b has variance b^2 / 3; both sources ask for 2 / fan.
                    let bound = (6.0 / fan as f32).sqrt();
                    let mut draws = Draws::new("lapwing train initial 1", &[seed, index as u64]);
                    flat.extend((0..inputs * outputs).map(|_| draws.symmetric() * bound));
                    flat.extend(std::iter::repeat_n(0.0, outputs));
                }
                Layer::Relu => {}
            }
        }
        debug_assert_eq!(flat.len(), self.layout.parameters());
        flat
    }
}

impl Layer {
    /// The names and shapes of its parameters, in the order in which they lie.
    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        match *self {
            Self::Dense {
                name,
                inputs,
                outputs,
            } => vec![
                (format!("{name}.weight"), vec![outputs, inputs]),
                (format!("{name}.bias"), vec![outputs]),
            ],
            Self::Relu => vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::model_hash;

    const DIGITS: InputShape = InputShape {
        channels: 1,
        height: 8,
        width: 8,
    };

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
    fn a_mistyped_model_is_answered_with_the_one_that_was_meant() {
        let error = Model::named("mlpp", DIGITS, 10).unwrap_err().to_string();
        assert_eq!(error, "there is no model `mlpp`; did you mean `mlp`?");
        let error = Model::named("transformer", DIGITS, 10).unwrap_err().to_string();
        assert_eq!(error, "there is no model `transformer`; known: mlp");
    }

    #[test]
    fn an_input_or_a_choice_of_nothing_is_refused() {
        assert!(Model::named("mlp", InputShape::flat(0), 10).is_err());
        assert!(Model::named("mlp", DIGITS, 1).is_err());
        assert!(Model::named("mlp", InputShape::flat(u32::MAX), 2).is_err());
    }
}
