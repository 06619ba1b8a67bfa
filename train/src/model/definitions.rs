//! The layers of each built-in model. Nothing is computed or counted here.

use super::layer::{BYTES, Layer};
use super::{InputKind, InputShape};

/// A built-in model.
pub(super) struct Definition {
    pub(super) name: &'static str,
    /// The inputs it takes, in words.
    pub(super) takes: &'static str,
    /// Its layers for an input and a number of classes; `None` when it does not take such an input.
    pub(super) layers: fn(InputShape, usize) -> Option<Vec<Layer>>,
}

/// Every built-in model, the smallest first.
pub(super) const DEFINITIONS: [Definition; 6] = [
    Definition {
        name: "mlp",
        takes: "samples of numbers of any size",
        layers: mlp,
    },
    Definition {
        name: "lenet",
        takes: IMAGES,
        layers: lenet,
    },
    Definition {
        name: "mnist-cnn",
        takes: IMAGES,
        layers: mnist_cnn,
    },
    Definition {
        name: "cifar10-cnn",
        takes: IMAGES,
        layers: cifar10_cnn,
    },
    Definition {
        name: "resnet20",
        takes: IMAGES,
        layers: resnet20,
    },
    Definition {
        name: "transformer",
        takes: "texts, as `text:FILE` reads them",
        layers: transformer,
    },
];

const IMAGES: &str = "images of 28 x 28 or 32 x 32 pixels";

/// One hidden layer.
fn mlp(input: InputShape, classes: usize) -> Option<Vec<Layer>> {
    /// Width of the hidden layer. Wide layers average better: the 8 x 8 digits on 8 nodes (Dirichlet 0.5,
    /// c = 25, 150 rounds, mean of ten draws) end at 95.1 % with 64, 95.3 % with 128, 96.1 % with 256 and
    /// 95.9 % with 512 of these.
    const HIDDEN: usize = 256;
    (input.kind == InputKind::Numbers).then(|| {
        vec![
            Layer::Flatten,
            dense("hidden", input.values(), HIDDEN),
            Layer::Relu,
            dense("output", HIDDEN, classes),
        ]
    })
}

/// LeNet-5 (LeCun et al., Proc. IEEE 86(11), 1998) as it is trained today: all channels connected, ReLU, largest
/// values pooled. 44,426 parameters for MNIST's images.
///
/// Pooled before the ReLU, which gives the same numbers for a quarter of the work; so in all models here.
fn lenet(input: InputShape, classes: usize) -> Option<Vec<Layer>> {
    let side = image_side(input)?;
    // Two convolutions take four rows each, two pools halve what is left.
    let pooled = ((side - 4) / 2 - 4) / 2;
    Some(vec![
        conv("conv1", input.channels as usize, 6, 5, 0),
        Layer::MaxPool { window: 2 },
        Layer::Relu,
        conv("conv2", 6, 16, 5, 0),
        Layer::MaxPool { window: 2 },
        Layer::Relu,
        Layer::Flatten,
        dense("fc1", 16 * pooled * pooled, 120),
        Layer::Relu,
        dense("fc2", 120, 84),
        Layer::Relu,
        dense("fc3", 84, classes),
    ])
}

/// The network that federated learning was introduced with (McMahan et al., AISTATS 2017, arXiv 1602.05629) and
/// that SAPS trains on MNIST: 1,663,370 parameters there.
fn mnist_cnn(input: InputShape, classes: usize) -> Option<Vec<Layer>> {
    let pooled = image_side(input)? / 4;
    Some(vec![
        conv("conv1", input.channels as usize, 32, 5, 2),
        Layer::MaxPool { window: 2 },
        Layer::Relu,
        conv("conv2", 32, 64, 5, 2),
        Layer::MaxPool { window: 2 },
        Layer::Relu,
        Layer::Flatten,
        dense("fc1", 64 * pooled * pooled, 512),
        Layer::Relu,
        dense("fc2", 512, classes),
    ])
}

/// What SAPS trains on CIFAR-10: 1,756,426 parameters for its images of 3 x 32 x 32.
fn cifar10_cnn(input: InputShape, classes: usize) -> Option<Vec<Layer>> {
    let pooled = image_side(input)? / 4;
    Some(vec![
        conv("conv1", input.channels as usize, 64, 5, 2),
        Layer::MaxPool { window: 2 },
        Layer::Relu,
        conv("conv2", 64, 64, 5, 2),
        Layer::MaxPool { window: 2 },
        Layer::Relu,
        Layer::Flatten,
        dense("fc1", 64 * pooled * pooled, 384),
        Layer::Relu,
        dense("fc2", 384, 192),
        Layer::Relu,
        dense("fc3", 192, classes),
    ])
}

/// ResNet-20 for small images (He et al., CVPR 2016, arXiv 1512.03385, section 4.2) with group norm for batch
/// norm, which has as many parameters: 269,722 for CIFAR-10.
fn resnet20(input: InputShape, classes: usize) -> Option<Vec<Layer>> {
    /// Channels of one group. Wu and He find 8 and 16 best of 2 to 64; 8 leaves two groups in the first stage.
    const GROUP: usize = 8;
    image_side(input)?;
    let plain_conv = |name: String, inputs, outputs, stride| Layer::Conv2d {
        name,
        inputs,
        outputs,
        kernel: 3,
        stride,
        padding: 1,
        bias: false,
    };
    let norm = |name: String, channels| Layer::GroupNorm {
        name,
        groups: channels / GROUP,
        channels,
    };
    let mut layers = vec![
        plain_conv("conv1".to_owned(), input.channels as usize, 16, 1),
        norm("norm1".to_owned(), 16),
        Layer::Relu,
    ];
    let mut inputs = 16;
    for (stage, outputs) in [(1, 16), (2, 32), (3, 64)] {
        for block in 0..3 {
            let name = |part: &str| format!("layer{stage}.{block}.{part}");
            let stride = if stage > 1 && block == 0 { 2 } else { 1 };
            let body = vec![
                plain_conv(name("conv1"), inputs, outputs, stride),
                norm(name("norm1"), outputs),
                Layer::Relu,
                plain_conv(name("conv2"), outputs, outputs, 1),
                norm(name("norm2"), outputs),
            ];
            layers.extend([Layer::Residual { body }, Layer::Relu]);
            inputs = outputs;
        }
    }
    layers.extend([Layer::GlobalAverage, dense("fc", inputs, classes)]);
    Some(layers)
}

/// A small decoder for text, byte by byte, with norms before each part (Xiong et al., ICML 2020, arXiv
/// 2002.04745). Its parameters are named as in PyTorch's `TransformerEncoder` of `TransformerEncoderLayer` with
/// `norm_first`, and lie in the order in which they are used.
fn transformer(input: InputShape, classes: usize) -> Option<Vec<Layer>> {
    // With these, 470,784 parameters for 64 bytes: small enough that a node without a GPU gets through a book.
    const WIDTH: usize = 128;
    const LAYERS: usize = 2;
    const HEADS: usize = 4;
    if input.kind != InputKind::Bytes || classes != BYTES {
        return None;
    }
    let layer_norm = |name: String| Layer::LayerNorm { name, width: WIDTH };
    let mut layers = vec![Layer::Embedding {
        positions: input.values(),
        width: WIDTH,
    }];
    for layer in 0..LAYERS {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let attend = vec![
            layer_norm(name("norm1")),
            Layer::Attention {
                name: name("self_attn"),
                width: WIDTH,
                heads: HEADS,
            },
        ];
        let think = vec![
            layer_norm(name("norm2")),
            dense(name("linear1"), WIDTH, 4 * WIDTH),
            Layer::Gelu,
            dense(name("linear2"), 4 * WIDTH, WIDTH),
        ];
        layers.extend([attend, think].map(|body| Layer::Residual { body }));
    }
    layers.extend([layer_norm("norm".to_owned()), dense("head", WIDTH, classes)]);
    Some(layers)
}

/// The side of a square image that all networks for images take.
fn image_side(input: InputShape) -> Option<usize> {
    let fits = input.kind == InputKind::Numbers
        && (1..=4).contains(&input.channels)
        && [28, 32].contains(&input.height)
        && input.height == input.width;
    fits.then_some(input.height as usize)
}

fn dense(name: impl Into<String>, inputs: usize, outputs: usize) -> Layer {
    Layer::Dense {
        name: name.into(),
        inputs,
        outputs,
    }
}

fn conv(name: &str, inputs: usize, outputs: usize, kernel: usize, padding: usize) -> Layer {
    Layer::Conv2d {
        name: name.to_owned(),
        inputs,
        outputs,
        kernel,
        stride: 1,
        padding,
        bias: true,
    }
}
