"""Operators that draw random numbers: which they are, and what a draw may look like.

Each runs through a sequence of its own that begins anew in every session; without a seed, somewhere
else each time. Two models that draw can only be compared when both are given the same numbers:
`typical`. The coupling rules of these operators stand elsewhere: `shape` (no inputs), `activation`
(Dropout).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.model import constant

__all__ = ["GENERATORS", "draws", "typical"]

_TRAINING_MODE = {"Dropout": 2, "BiasDropout": 4, "BitmaskDropout": 2, "BitmaskBiasDropout": 4}
_CAST_LIKE = 15  # first opset that has it


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


def typical(e: Emitter, node: ir.Node) -> Sequence[ir.Value] | None:
    """Values for the outputs of a node that draws, without drawing; None where that is unknown.

    They depend on the inputs, element by element or row by row, and on no position, so that they
    stay the same when other elements are removed. None is zero, which would hide what it is
    multiplied with.

    Args:
        e: where they are written.
        node: one of which `draws` is true.
    """
    rule = _TYPICAL.get(node.op_type)
    return None if rule is None else rule(e, node)


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _normal(node: ir.Node) -> float:
    """Half a deviation above the mean."""
    return _number(node, "mean", 0.0) + _number(node, "scale", 1.0) / 2


def _uniform(node: ir.Node) -> float:
    """Three quarters of the way."""
    low, high = _number(node, "low", 0.0), _number(node, "high", 1.0)
    return low + (high - low) * 3 / 4


def _filled(e: Emitter, node: ir.Node, sizes: ir.Value, number: float) -> ir.Value:
    value = ir.Tensor(np.array([number], np.float32))
    return _of_type(e, node, e.op("ConstantOfShape", sizes, value=value))


def _of_type(e: Emitter, node: ir.Node, value: ir.Value) -> ir.Value:
    """`value` in the type that the node says, else in that of its input."""
    named = node.attributes.get("dtype")
    x = node.inputs[0] if node.inputs else None
    known = node.outputs[0].dtype or (None if x is None else x.dtype)
    if named is not None:
        return e.op("Cast", value, to=ir.DataType(named.as_int()))
    if known is None and x is not None and e.opset >= _CAST_LIKE:
        return e.op("CastLike", value, x)
    return e.op("Cast", value, to=known or ir.DataType.FLOAT)


def _like(number: Callable[[ir.Node], float]) -> Callable[[Emitter, ir.Node], list[ir.Value]]:
    return lambda e, node: [_filled(e, node, e.op("Shape", node.inputs[0]), number(node))]


def _sized(number: Callable[[ir.Node], float]) -> Callable[[Emitter, ir.Node], list[ir.Value]]:
    return lambda e, node: [
        _filled(e, node, e.integers(*node.attributes["shape"].as_ints()), number(node))
    ]


def _bernoulli(e: Emitter, node: ir.Node) -> list[ir.Value]:
    """The probability; in other types than floats, whether it is more than a half."""
    named = node.attributes.get("dtype")
    share = e.op("Cast", node.inputs[0], to=ir.DataType.FLOAT)
    if named is not None and not ir.DataType(named.as_int()).is_floating_point():
        share = e.op("Greater", share, e.constant(np.array(0.5, np.float32)))
    return [_of_type(e, node, share)]


def _multinomial(e: Emitter, node: ir.Node) -> list[ir.Value]:
    """The likeliest class, as often as asked for."""
    count = int(_number(node, "sample_size", 1))
    best = e.op("ArgMax", node.inputs[0], axis=1, keepdims=1)
    named = node.attributes.get("dtype")
    kind = ir.DataType.INT32 if named is None else ir.DataType(named.as_int())
    return [e.op("Cast", e.op("Expand", best, e.integers(1, count)), to=kind)]


def _dropout(e: Emitter, node: ir.Node) -> list[ir.Value]:
    """Nothing dropped."""
    x = node.inputs[0]
    kept = ir.Tensor(np.array([True]))
    return [e.op("Identity", x), e.op("ConstantOfShape", e.op("Shape", x), value=kept)]


_TYPICAL: Mapping[str, Callable[[Emitter, ir.Node], Sequence[ir.Value]]] = {
    "RandomNormal": _sized(_normal),
    "RandomNormalLike": _like(_normal),
    "RandomUniform": _sized(_uniform),
    "RandomUniformLike": _like(_uniform),
    "Bernoulli": _bernoulli,
    "Multinomial": _multinomial,
    "Dropout": _dropout,
}
GENERATORS = frozenset(_TYPICAL) - {"Dropout"}
