"""Export one JAX architecture with random weights through jax2onnx: Flax NNX and Equinox.

    python export_jax.py NAME OUT

Runs in an environment with these; nothing of the package is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox
import jax
import onnx
from flax import nnx
from jax import numpy as jnp
from jax2onnx import to_onnx

Made = tuple[Callable[..., Any], tuple[int, ...]]


class Mixer(nnx.Module):
    """One layer over tokens, one over channels."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(64, rngs=rngs) for _ in range(2)])
        self.tokens = nnx.List([nnx.Linear(*s, rngs=rngs) for s in ((16, 32), (32, 16))])
        self.channels = nnx.List([nnx.Linear(*s, rngs=rngs) for s in ((64, 128), (128, 64))])
        self.last = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, 16, 64) to (N, 10)."""
        y = jnp.swapaxes(self.norms[0](x), 1, 2)
        x = x + jnp.swapaxes(self.tokens[1](nnx.gelu(self.tokens[0](y))), 1, 2)
        x = x + self.channels[1](nnx.gelu(self.channels[0](self.norms[1](x))))
        return self.last(x.mean(1))


class Convolutions(nnx.Module):
    """Three convolutions; residual ones for `residual`."""

    def __init__(self, rngs: nnx.Rngs, *, residual: bool) -> None:
        self.residual = residual
        widths = (32, 32, 32) if residual else (16, 32, 64)
        self.layers = nnx.List(
            [
                nnx.Conv(a, b, (3, 3), rngs=rngs)
                for a, b in zip((3, *widths[:-1]), widths, strict=True)
            ]
        )
        self.norms = nnx.List(
            [nnx.BatchNorm(w, use_running_average=True, rngs=rngs) for w in widths]
        )
        self.last = nnx.Linear(widths[-1], 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, 32, 32, 3) to (N, 10)."""
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y = nnx.relu(norm(layer(x)))
            x = x + y if self.residual and number else y
        return self.last(x.mean((1, 2)))


class Transformer(nnx.Module):
    """One encoder block."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(64, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, 64, decode=False, rngs=rngs)
        self.inner = nnx.List([nnx.Linear(*s, rngs=rngs) for s in ((64, 128), (128, 64))])
        self.last = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, 16, 64) to (N, 10)."""
        x = x + self.attention(self.norms[0](x))
        x = x + self.inner[1](nnx.gelu(self.inner[0](self.norms[1](x))))
        return self.last(x.mean(1))


class Recurrent(nnx.Module):
    """An LSTM cell, unrolled."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.cell = nnx.OptimizedLSTMCell(32, 48, rngs=rngs)
        self.last = nnx.Linear(48, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, 6, 32) to (N, 10)."""
        carry = (jnp.zeros((1, 48)), jnp.zeros((1, 48)))
        for step in range(6):
            carry, y = self.cell(carry, x[:, step])
        return self.last(y)


def equinox_cnn() -> Callable[..., Any]:
    """Convolutions and a perceptron of Equinox."""
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    convolutions = [
        equinox.nn.Conv2d(3, 16, 3, key=keys[0]),
        equinox.nn.Conv2d(16, 32, 3, key=keys[1]),
    ]
    perceptron = equinox.nn.MLP(32, 10, 64, 2, key=keys[2])

    def one(x: jax.Array) -> jax.Array:
        for layer in convolutions:
            x = jax.nn.relu(layer(x))
        return perceptron(x.mean((1, 2)))

    return jax.vmap(one)


def made(name: str) -> Made:
    """The function, and the sizes of its input."""
    rngs = nnx.Rngs(0)
    makers: dict[str, Callable[[], Made]] = {
        "mlp_mixer": lambda: (Mixer(rngs), (1, 16, 64)),
        "cnn": lambda: (Convolutions(rngs, residual=False), (1, 32, 32, 3)),
        "resnet": lambda: (Convolutions(rngs, residual=True), (1, 32, 32, 3)),
        "transformer": lambda: (Transformer(rngs), (1, 16, 64)),
        "lstm": lambda: (Recurrent(rngs), (1, 6, 32)),
        "equinox_cnn": lambda: (equinox_cnn(), (1, 3, 16, 16)),
    }
    return makers[name]()


def main() -> None:
    """Export what the command line names."""
    function, sizes = made(sys.argv[1])
    model = to_onnx(function, [sizes], opset=21)
    if isinstance(model, onnx.ModelProto):
        onnx.save(model, Path(sys.argv[2]))
    else:
        raise TypeError(type(model).__name__)


if __name__ == "__main__":
    main()
