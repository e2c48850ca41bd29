"""Operators that draw random numbers: which they are.

Each runs through a sequence of its own that begins anew in every session; without a seed, somewhere
else each time. Their coupling rules stand elsewhere: `shape` (no inputs), `activation` (Dropout).
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.model import constant

__all__ = ["GENERATORS", "draws"]

GENERATORS = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial"),
    }
)
_TRAINING_MODE = {"Dropout": 2, "BiasDropout": 4, "BitmaskDropout": 2, "BitmaskBiasDropout": 4}


def draws(node: ir.Node) -> bool:
    """Whether `node` may give something else each time, Dropout in training included."""
    if node.op_type not in _TRAINING_MODE:
        return node.op_type in GENERATORS
    place = _TRAINING_MODE[node.op_type]
    mode = node.inputs[place] if place < len(node.inputs) else None
    if mode is None:
        return False
    known = constant(mode)
    return known is None or bool(known)
