"""Integers that exporters compute at run time though nothing about them can change.

TorchScript writes paddings and slice bounds as chains of Shape, Gather, Concat and Cast. `fold`
evaluates those chains with the reference implementation; weights are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.model import constants, evaluate
from onnxprune.ops.random import draws
from onnxprune.ops.registry import Sizes
from onnxprune.scopes import nodes, subgraphs
from onnxprune.tensors import constant_tensor, numbers

__all__ = ["fixed_values", "fold"]

_LARGEST = 1024  # elements; shapes, paddings and indices are smaller
_STANDARD = ("", "ai.onnx")


def fold(model: ir.Model, shapes: Mapping[str, Sizes]) -> dict[str, Array]:
    """The arrays of all values computed from integers, scalars and static shapes alone.

    Args:
        model: not changed.
        shapes: static sizes per value name.

    Returns:
        Per value name its array; constants themselves are not listed.
    """
    known: dict[str, Array] = {}
    chain: list[ir.Node] = []
    roots: dict[str, Array] = {}
    members: set[int] = set()
    for node in nodes(model):
        if node.domain not in _STANDARD or draws(node) or any(subgraphs(node)):
            continue
        if node.op_type == "Shape":
            sizes = shapes.get(node.inputs[0].name or "") if node.inputs[0] is not None else None
            if sizes is not None and None not in sizes and node.outputs[0].name:
                window = slice(_integer(node, "start", 0), _integer(node, "end", None))
                roots[node.outputs[0].name] = np.array(sizes, np.int64)[window]
        elif node.op_type != "Constant" and _foldable(node, roots, members):
            chain.append(node)
            members.add(id(node))
    if chain:
        known = _evaluate(model, chain, roots)
    given = constants(model)
    computed = {name: array for name, array in roots.items() if name not in given}
    return {**computed, **known}


def fixed_values(model: ir.Model) -> set[str]:
    """Names of the values that depend on constants alone; nothing is computed."""
    found = set(constants(model))
    for node in nodes(model):
        if node.inputs and all(v is None or not v.name or v.name in found for v in node.inputs):
            found.update(value.name or "" for value in node.outputs)
    return found


def _integer(node: ir.Node, name: str, default: int | None) -> int | None:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)


def _foldable(node: ir.Node, roots: dict[str, Array], chain: set[int]) -> bool:
    """Whether all inputs are small known integers or scalars; records constant inputs as roots."""
    found: dict[str, Array] = {}
    for value in node.inputs:
        if value is None or not value.name:
            continue
        producer = value.producer()
        if value.name in roots or (producer is not None and id(producer) in chain):
            continue
        tensor = constant_tensor(value)
        if tensor is None or tensor.size > _LARGEST or _may_be_weight(tensor):
            return False
        found[value.name] = numbers(tensor)
    roots.update(found)
    return bool(node.inputs)


def _may_be_weight(tensor: Any) -> bool:
    """Real numbers of any width, and integers of 8 bits or less, but no lone ones."""
    dtype = tensor.dtype.numpy()
    quantized = dtype.itemsize == 1 and dtype.kind != "b"
    return tensor.size > 1 and (dtype.kind in "fV" or quantized)


def _evaluate(
    model: ir.Model, chain: list[ir.Node], roots: Mapping[str, Array]
) -> dict[str, Array]:
    outputs = [value.name for node in chain for value in node.outputs if value.name]
    results = evaluate(model, chain, roots, outputs)
    return {name: array for name, array in results.items() if array.size <= _LARGEST}
