#!/usr/bin/env python3
"""How many samples a second each backend trains on beside PyTorch: the same models, batch, optimiser and one thread.

    cargo build --release -p lapwing-train --example throughput --features tch
    scripts/beside-pytorch.py target/release/examples/throughput [--rounds N] [MODEL...]

Needs PyTorch, and for the backend `tch` a libtorch that the program finds. Both sides count processor time and take
turns, so that a machine that becomes slower in between slows down both. The best of the rounds counts, since whatever
disturbs only makes slower.
"""

import argparse
import pathlib
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn import functional

BATCH = 64
SAMPLES = 10 * BATCH
# Processor time that is measured for each model of PyTorch's in each round, in seconds; as in `throughput`.
MEASURED = 3.0


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )


def mnist_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )


def cifar10_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(64, 64, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(4096, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, 10),
    )


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(outputs // 8, outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.GroupNorm(outputs // 8, outputs),
        )
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x):
        # The shortcut without parameters (He et al., option A).
        short = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more)) if self.more else x
        return torch.relu(short + self.body(x))


def resnet20():
    stages = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
    blocks = [
        Block(inputs if block == 0 else outputs, outputs, stride if block == 0 else 1)
        for inputs, outputs, stride in stages
        for block in range(3)
    ]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.GroupNorm(2, 16), nn.ReLU(),
        *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, 128), nn.Parameter(torch.zeros(64, 128))
        layer = nn.TransformerEncoderLayer(
            128, 4, 512, dropout=0.0, activation=lambda x: functional.gelu(x, approximate="tanh"),
            batch_first=True, norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(128), enable_nested_tensor=False)
        self.head = nn.Linear(128, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(64))

    def forward(self, x):
        hidden = self.layers(self.bytes(x) + self.places, mask=self.mask, is_causal=True)
        return self.head(hidden).flatten(0, 1)


# Those that `throughput` may have.
BACKENDS = ["plain", "burn", "tch"]

# What makes each model, and the shape of a sample.
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)), (1, 28, 28)),
    "lenet": (lenet, (1, 28, 28)),
    "mnist-cnn": (mnist_cnn, (1, 28, 28)),
    "cifar10-cnn": (cifar10_cnn, (3, 32, 32)),
    "resnet20": (resnet20, (3, 32, 32)),
    "transformer": (Transformer, (64,)),
}


def pytorch(name):
    """Samples a second, and the number of parameters."""
    make, shape = MODELS[name]
    torch.manual_seed(1)
    model = make()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True)
    is_text = len(shape) == 1
    features = torch.randint(256, (SAMPLES, *shape)) if is_text else torch.randn(SAMPLES, *shape)
    labels = torch.randint(256, (SAMPLES, *shape)) if is_text else torch.randint(10, (SAMPLES,))

    def step():
        # The other side copies its batch once too.
        drawn = torch.randint(SAMPLES, (BATCH,))
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(features[drawn]), labels[drawn].flatten())
        loss.backward()
        optimiser.step()
        return loss.item()

    step()
    steps, started = 0, time.process_time()
    while (took := time.process_time() - started) < MEASURED:
        step()
        steps += 1
    return steps * BATCH / took, sum(parameter.numel() for parameter in model.parameters())


def lapwing(program, backend, name):
    """The same."""
    line = subprocess.run([program, backend, name], check=True, capture_output=True, text=True).stdout.split()
    return float(line[4]), int(line[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path, help="the example `throughput`")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["tch", "plain"])
    arguments = parser.parse_args()
    unknown = [name for name in arguments.models if name not in MODELS]
    if unknown or not arguments.program.is_file() or arguments.rounds < 1:
        parser.error(f"no such model: {', '.join(unknown)}" if unknown else "no such program, or no rounds")
    torch.set_num_threads(1)
    columns = (f"{name + '/s':>10} {'ratio':>6}" for name in arguments.backends)
    print(f"{'model':<12} {'parameters':>10} {'PyTorch/s':>10}", *columns)
    for name in arguments.models or MODELS:
        rates = {}
        for _ in range(arguments.rounds):
            for side in ["pytorch", *arguments.backends]:
                rate, parameters = pytorch(name) if side == "pytorch" else lapwing(arguments.program, side, name)
                rates.setdefault(side, []).append((rate, parameters))
        if len({parameters for side in rates.values() for _, parameters in side}) != 1:
            sys.exit(f"{name} is not the same model on both sides: {rates}")
        best = {side: max(rate for rate, _ in measured) for side, measured in rates.items()}
        row = (f"{best[side]:>10.0f} {best[side] / best['pytorch']:>6.2f}" for side in arguments.backends)
        print(f"{name:<12} {rates['pytorch'][0][1]:>10} {best['pytorch']:>10.0f}", *row, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(f"`{' '.join(map(str, error.cmd))}` has failed: {error.stderr.strip()}")
