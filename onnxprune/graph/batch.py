"""Batches of one size: which models take no others, and the same models for any size.

Many exporters write the size of the one batch they saw into the file. `opened` makes a copy that
takes any, with the operators' own rules for the places where that size stands (`ops.opening`). It
is a guess: whoever uses the copy compares it with the model (`runtime.batches`).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxprune.graph.shapes import settle
from onnxprune.model import model_input
from onnxprune.ops.opening import OPENS, Opening, Trials
from onnxprune.ops.registry import Shapes, Sizes, View

__all__ = ["fixed_batches", "opened"]

_SYMBOL = "onnxprune_batch"
_SWEEPS = 64  # one settles all nodes whose inputs are settled
_SIZES = ("Shape", "Size")


def fixed_batches(model: ir.Model) -> dict[str, int]:
    """The first size of every input where that is a number, by the input's name."""
    return {
        value.name or "": int(value.shape[0])
        for value in model_input(model)
        if value.shape is not None and len(value.shape) and isinstance(value.shape[0], int)
    }


def opened(model: ir.Model, batch: int) -> ir.Model | None:
    """A copy that takes batches of any size; None where no way is found.

    Names stay, and so do the nodes; some get other sizes as inputs, or a few nodes in front.

    Args:
        model: the first axes of its inputs are examples; not changed.
        batch: how many it was made for.
    """
    before, _ = settle(_sized(model, batch))
    copy = _sized(model, _SYMBOL)
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    live = _live(copy)
    for _ in range(_SWEEPS):
        shapes, known = settle(copy)
        trials = shapes.trials if isinstance(shapes, Shapes) else {}
        changed = False
        for node in list(copy.graph):
            opset = copy.graph.opset_imports.get(node.domain, 1)
            rule = OPENS.find(node, opset)
            if rule is not None:
                view = View(node=node, shapes=before, opset=opset, known=known)
                opening = Opening(
                    view=view, trials=trials, batch=batch, live=live, graph=copy.graph
                )
                changed = rule(opening) or changed
        if not changed:
            return copy if _is_open(copy, before, trials) else None
    return None


def _sized(model: ir.Model, batch: int | str) -> ir.Model:
    """A copy for batches of that size."""
    copy = model.clone()
    for value in model_input(copy):
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([batch, *list(value.shape)[1:]])
    return copy


def _live(model: ir.Model) -> set[str]:
    """Names of the values that depend on the numbers in the inputs, not only on their sizes."""
    found = {value.name or "" for value in model_input(model)}
    for node in model.graph:
        read = {value.name for value in node.inputs if value is not None}
        if node.op_type not in _SIZES and read & found:
            found.update(value.name for value in node.outputs if value.name)
    return found


def _is_open(copy: ir.Model, before: Mapping[str, Sizes], trials: Trials) -> bool:
    """Whether the first size of every output follows the batch; writes so into the copy."""
    for value in copy.graph.outputs:
        sizes, pairs = before.get(value.name or ""), trials.get(value.name or "")
        if not sizes or not pairs or sizes[0] is None or pairs[0][0] == pairs[0][1]:
            return False
        value.shape = ir.Shape([None, *sizes[1:]])
    return True
