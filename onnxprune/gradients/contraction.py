"""Slopes of Einsum, CumSum and ReverseSequence: operators of the same kind, turned around."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.elementwise import unbroadcast
from onnxprune.gradients.hidden import Call
from onnxprune.gradients.slots import attribute, rank_of
from onnxprune.model import shape_of
from onnxprune.ops.registry import gradient

__all__: list[str] = []

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@gradient("Einsum")
def einsum(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """Per operand, the Einsum of the slope with all other operands to the operand's labels.

    A label that only this operand has was summed over: the slope is repeated along it. A label that
    it has twice took a diagonal: an identity matrix puts the slope back there.
    """
    terms, result, broadcast = _labels(call.node)
    slope = call.slopes[0]
    assert slope is not None
    slopes: list[ir.Value | None] = []
    for number, (term, need) in enumerate(zip(terms, call.wanted, strict=True)):
        if not need:
            slopes.append(None)
            continue
        others = [(terms[n], call.input(n)) for n in range(len(terms)) if n != number]
        made = _operand_slope(e, term, call.input(number), [(result, slope), *others])
        repeated = broadcast or 1 in (shape_of(call.input(number)) or (1,))
        slopes.append(unbroadcast(e, made, call.input(number)) if repeated else made)
    return slopes


def _labels(node: ir.Node) -> tuple[list[str], str, bool]:
    """Labels of every operand and of the result, "..." written out; whether there was one."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in _LETTERS if letter not in equation]
    widths = [
        (rank_of(value) or 0) - len(term.replace("...", "")) if value is not None else 0
        for term, value in zip(terms, node.inputs, strict=True)
    ]
    most = max((w for w, term in zip(widths, terms, strict=True) if "..." in term), default=0)
    dots = "".join(free[:most])
    if not arrow:
        plain = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(
            sorted(letter for letter in set(plain) if plain.count(letter) == 1)
        )
    written = [
        term.replace("...", dots[most - width :]) for term, width in zip(terms, widths, strict=True)
    ]
    return written, right.replace("...", dots), most > 0


def _operand_slope(
    e: Emitter, term: str, operand: ir.Value, known: Sequence[tuple[str, ir.Value]]
) -> ir.Value:
    parts = list(known)
    free = [c for c in _LETTERS if c not in term and all(c not in labels for labels, _ in known)]
    target = ""
    for position, label in enumerate(term):
        if label in target:
            twin = free.pop(0)
            parts.append((label + twin, _identity(e, operand, position)))
            label = twin
        target += label
    there = [label for label in target if any(label in labels for labels, _ in parts)]
    equation = ",".join(labels for labels, _ in parts) + "->" + "".join(there)
    made = e.op("Einsum", *(value for _, value in parts), equation=equation)
    missing = [position for position, label in enumerate(target) if label not in there]
    if not missing:
        return made
    made = e.op("Unsqueeze", made, e.integers(*missing))
    return e.op("Expand", made, e.op("Shape", operand))


def _identity(e: Emitter, operand: ir.Value, position: int) -> ir.Value:
    size = e.op("Gather", e.op("Shape", operand), e.integers(position))
    square = e.op("Concat", size, size, axis=0)
    blank = ir.Tensor(np.zeros(1, dtype=e.dtype.numpy()))
    return e.op("EyeLike", e.op("ConstantOfShape", square, value=blank), dtype=e.dtype)


@gradient("CumSum")
def cumulative_sum(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """The cumulative sum of the slope from the other end."""
    exclusive = attribute(call.node, "exclusive", 0)
    turned = 1 - attribute(call.node, "reverse", 0)
    axis = call.input(1)
    slope = e.op("CumSum", call.slopes[0], axis, exclusive=exclusive, reverse=turned)
    return [slope, None]


@gradient("ReverseSequence")
def reverse_sequence(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """Reversing is its own inverse."""
    options = {name: attribute.value for name, attribute in call.node.attributes.items()}
    return [e.op("ReverseSequence", call.slopes[0], call.input(1), **options), None]
