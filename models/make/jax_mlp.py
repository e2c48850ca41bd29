"""Make digits_jax.onnx: a Flax (NNX) perceptron with tanh, exported by jax2onnx.

64-128-96-48-10; the output is logits. The opset is 21, the newest that onnxruntime-training reads
(jax2onnx's own default is 23).

    pip install jax==0.10.2 flax==0.12.8 optax==0.2.8 jax2onnx==0.17.1 onnx==1.23.2 numpy==2.4.6
    python models/make/jax_mlp.py models/
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import jax
import numpy as np
import optax
from digits import load
from flax import nnx
from jax2onnx import to_onnx
from saving import save

SIZES = (64, 128, 96, 48, 10)
EPOCHS = 60
BATCH = 32


class Perceptron(nnx.Module):
    """Linear layers with tanh between them."""

    def __init__(self, sizes: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        """Make one linear layer between each pair of neighbouring sizes."""
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map pixels (N, 64) to logits (N, 10)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = nnx.tanh(layer(x))
        return last(x)


@nnx.jit
def step(model: Perceptron, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
    """One optimizer step on the cross entropy of a batch."""

    def loss(model: Perceptron) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def train() -> Perceptron:
    """Train the perceptron with AdamW and a cosine schedule."""
    data = load()
    x, y = data.x_train.reshape(-1, 64), data.y_train
    model = Perceptron(SIZES, rngs=nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(2e-3, EPOCHS * (len(x) // BATCH))
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=1e-2), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH]
        for batch in order.reshape(-1, BATCH):
            step(model, optimizer, x[batch], y[batch])
    return model


def main() -> None:
    """Train the perceptron and write it to the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write digits_jax.onnx")
    folder = parser.parse_args().folder
    model = to_onnx(train(), [("N", 64)], model_name="digits_jax", opset=21)
    save(model, folder / "digits_jax.onnx")


if __name__ == "__main__":
    main()
