//! One step of a model: what it computes, what it needs of its input, and which parameters it has.
//!
//! It computes nothing itself; a backend does. What is said here of a layer is all that backends agree on.

/// The numbers between two layers, for one sample: `channels` planes of `height` rows of `width` numbers.
///
/// A table's row and whatever was flattened is one row of one plane. A text is one plane with a row for each
/// position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    /// Planes.
    pub channels: usize,
    /// Rows of a plane.
    pub height: usize,
    /// Numbers in a row.
    pub width: usize,
}

/// One step from the input to the logits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Layer {
    /// `y = W x + b` for every row `x`. Parameters: `NAME.weight`, `[outputs, inputs]`, `NAME.bias`, `[outputs]`.
    Dense {
        /// Names its parameters.
        name: String,
        /// Length of `x`.
        inputs: usize,
        /// Length of `y`.
        outputs: usize,
    },
    /// Cross-correlation with square kernels and zeros around the image, as PyTorch's `Conv2d`. Parameters:
    /// `NAME.weight`, `[outputs, inputs, kernel, kernel]`, and, if there is one, `NAME.bias`, `[outputs]`.
    Conv2d {
        /// Names its parameters.
        name: String,
        /// Channels of the input.
        inputs: usize,
        /// Channels of the output.
        outputs: usize,
        /// Rows and columns of a kernel; not 0.
        kernel: usize,
        /// Rows and columns from one output to the next; not 0.
        stride: usize,
        /// Rows and columns of zeros on each side; less than `kernel`.
        padding: usize,
        /// Whether a number is added to each channel.
        bias: bool,
    },
    /// The largest of each square of `window` by `window`; rows and columns that fill no square are left out.
    /// Of equal ones the first gets the gradient.
    MaxPool {
        /// Rows and columns of a square, and from one square to the next; from 1 to 15.
        window: usize,
    },
    /// The mean of each channel.
    GlobalAverage,
    /// Brings each of `groups` groups of channels to mean 0 and variance 1 within a sample, then scales and
    /// shifts each channel: Wu and He (ECCV 2018, arXiv 1803.08494). It stands where published models have batch
    /// norm, whose running statistics would be exchanged too and differ from node to node. Parameters:
    /// `NAME.weight` and `NAME.bias`, `[channels]`.
    GroupNorm {
        /// Names its parameters.
        name: String,
        /// Divides `channels`.
        groups: usize,
        /// Channels.
        channels: usize,
    },
    /// Brings each row to mean 0 and variance 1, then scales and shifts each column: Ba et al. (2016, arXiv
    /// 1607.06450). Parameters: `NAME.weight` and `NAME.bias`, `[width]`.
    LayerNorm {
        /// Names its parameters.
        name: String,
        /// Columns.
        width: usize,
    },
    /// What `body` makes of the input, plus the input. Where the body has smaller images of more channels, every
    /// so many rows and columns of the input are taken and channels of zeros put around them: the shortcut A of
    /// He et al. (CVPR 2016, arXiv 1512.03385), which has no parameters.
    Residual {
        /// The layers beside the shortcut.
        body: Vec<Self>,
    },
    /// `max(x, 0)`, number by number.
    Relu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`, number by number: Hendrycks and Gimpel (2016, arXiv
    /// 1606.08415), PyTorch's `gelu` with `approximate="tanh"`.
    Gelu,
    /// All numbers in one row, plane by plane.
    Flatten,
    /// A row for each byte: one for what it is plus one for where it stands. Parameters: `token.weight`,
    /// `[256, width]`, and `position.weight`, `[positions, width]`.
    Embedding {
        /// Bytes a sample.
        positions: usize,
        /// Length of a row.
        width: usize,
    },
    /// Each row asks the rows up to itself and takes a mean of what they offer, in `heads` shares of the row:
    /// Vaswani et al. (NeurIPS 2017, arXiv 1706.03762), as PyTorch's `MultiheadAttention` with a causal mask.
    /// Parameters: `NAME.in_proj_weight`, `[3 width, width]`, `NAME.in_proj_bias`, `NAME.out_proj.weight` and
    /// `NAME.out_proj.bias`.
    Attention {
        /// Names its parameters.
        name: String,
        /// Length of a row.
        width: usize,
        /// Divides `width`.
        heads: usize,
    },
}

/// What is added to a variance before its root is taken, in either norm; as in PyTorch.
pub const NORM_EPSILON: f32 = 1e-5;

/// How many bytes there are, and so classes of the next one.
pub const BYTES: usize = 256;

/// One tensor of a layer.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) first: First,
}

/// What a tensor starts with.
pub(super) enum First {
    /// Evenly drawn from -bound to bound.
    Within(f32),
    Zeros,
    Ones,
}

impl Extent {
    /// How many numbers.
    pub fn values(self) -> usize {
        self.channels * self.height * self.width
    }

    const fn row(width: usize) -> Self {
        Self {
            channels: 1,
            height: 1,
            width,
        }
    }
}

impl Layer {
    /// What it makes of an input; `None` when it cannot take that.
    pub fn output(&self, input: Extent) -> Option<Extent> {
        let Extent {
            channels,
            height,
            width,
        } = input;
        match *self {
            Self::Dense { inputs, outputs, .. } => (channels == 1 && width == inputs).then_some(Extent {
                width: outputs,
                ..input
            }),
            Self::Conv2d {
                inputs,
                outputs,
                kernel,
                stride,
                padding,
                ..
            } => {
                let side = |side: usize| Some((side + 2 * padding).checked_sub(kernel)? / stride + 1);
                (channels == inputs).then_some(Extent {
                    channels: outputs,
                    height: side(height)?,
                    width: side(width)?,
                })
            }
            Self::MaxPool { window } => (height >= window && width >= window).then_some(Extent {
                channels,
                height: height / window,
                width: width / window,
            }),
            Self::GlobalAverage => Some(Extent::row(channels)),
            Self::GroupNorm { channels: own, .. } => (channels == own).then_some(input),
            Self::LayerNorm { width: own, .. } | Self::Attention { width: own, .. } => {
                (channels == 1 && width == own).then_some(input)
            }
            Self::Residual { ref body } => {
                let output = extent_after(body, input)?;
                shortcut(input, output).map(|_| output)
            }
            Self::Relu | Self::Gelu => Some(input),
            Self::Flatten => Some(Extent::row(input.values())),
            Self::Embedding {
                positions,
                width: own,
            } => (input == Extent::row(positions)).then_some(Extent {
                channels: 1,
                height: positions,
                width: own,
            }),
        }
    }

    /// How many numbers its parameters have.
    pub fn parameters(&self) -> usize {
        self.tensors(None)
            .iter()
            .map(|tensor| tensor.shape.iter().product::<usize>())
            .sum()
    }

    /// Its parameters in the order in which they lie, before the layer `next`.
    ///
    /// Weights start with a variance that keeps the size of what passes through: He's (2015, arXiv 1502.01852)
    /// before a ReLU, Glorot's (AISTATS 2010) elsewhere. An even draw from -b to b has variance b^2 / 3; both
    /// sources ask for 2 / fan.
    pub(super) fn tensors(&self, next: Option<&Self>) -> Vec<Tensor> {
        let weight = |name: String, shape: Vec<usize>, fan: usize| {
            let first = First::Within((6.0 / fan as f32).sqrt());
            Tensor { name, shape, first }
        };
        let filled = |name: String, length: usize, first: First| Tensor {
            name,
            shape: vec![length],
            first,
        };
        match self {
            Self::Dense {
                name,
                inputs,
                outputs,
            } => {
                let fan = match next {
                    Some(Self::Relu) => *inputs,
                    _ => inputs + outputs,
                };
                vec![
                    weight(format!("{name}.weight"), vec![*outputs, *inputs], fan),
                    filled(format!("{name}.bias"), *outputs, First::Zeros),
                ]
            }
            Self::Conv2d {
                name,
                inputs,
                outputs,
                kernel,
                bias,
                ..
            } => {
                // A ReLU follows, if only after a pool, a norm or a shortcut.
                let fan = inputs * kernel * kernel;
                let shape = vec![*outputs, *inputs, *kernel, *kernel];
                let mut tensors = vec![weight(format!("{name}.weight"), shape, fan)];
                if *bias {
                    tensors.push(filled(format!("{name}.bias"), *outputs, First::Zeros));
                }
                tensors
            }
            Self::GroupNorm {
                name,
                channels: length,
                ..
            }
            | Self::LayerNorm { name, width: length } => vec![
                filled(format!("{name}.weight"), *length, First::Ones),
                filled(format!("{name}.bias"), *length, First::Zeros),
            ],
            Self::Residual { body } => {
                let after = body.iter().skip(1).map(Some).chain([None]);
                body.iter()
                    .zip(after)
                    .flat_map(|(layer, next)| layer.tensors(next))
                    .collect()
            }
            Self::Embedding { positions, width } => {
                /// The deviation that GPT-2 starts its embeddings with; those of bytes and of places are added.
                const DEVIATION: f32 = 0.02;
                let bound = DEVIATION * 3.0_f32.sqrt();
                [("token", BYTES), ("position", *positions)]
                    .map(|(name, rows)| Tensor {
                        name: format!("{name}.weight"),
                        shape: vec![rows, *width],
                        first: First::Within(bound),
                    })
                    .into()
            }
            Self::Attention { name, width, .. } => vec![
                // Three square matrices, one below the other, each with its own fan.
                weight(
                    format!("{name}.in_proj_weight"),
                    vec![3 * width, *width],
                    2 * width,
                ),
                filled(format!("{name}.in_proj_bias"), 3 * width, First::Zeros),
                weight(format!("{name}.out_proj.weight"), vec![*width, *width], 2 * width),
                filled(format!("{name}.out_proj.bias"), *width, First::Zeros),
            ],
            Self::MaxPool { .. } | Self::GlobalAverage | Self::Relu | Self::Gelu | Self::Flatten => vec![],
        }
    }
}

/// What layers make of an input, one after the other; `None` when one cannot take what comes.
pub(super) fn extent_after(layers: &[Layer], input: Extent) -> Option<Extent> {
    layers
        .iter()
        .try_fold(input, |extent, layer| layer.output(extent))
}

/// How a residual's input becomes as large as its output: each `.0`th row and column is taken, and `.1` channels
/// of zeros come before and after; `None` where that cannot be.
pub fn shortcut(input: Extent, output: Extent) -> Option<(usize, usize)> {
    let stride = input.height.div_ceil(output.height.max(1));
    let more = output.channels.checked_sub(input.channels)?;
    let fits = stride > 0
        && input.height.div_ceil(stride) == output.height
        && input.width.div_ceil(stride) == output.width
        && more.is_multiple_of(2);
    fits.then_some((stride, more / 2))
}
