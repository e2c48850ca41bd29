"""Small graphs for tests: ONNX text, and what the rules say about it in comparable form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.base import Array, Axis, Coupling, Ends, Frozen, Group, Reason
from onnxprune.graph.couplings import facts, views
from onnxprune.graph.groups import analyze
from onnxprune.graph.shapes import settle
from onnxprune.model import model_input
from onnxprune.ops.registry import View
from onnxprune.scopes import name_all_values

_DECLARED = re.compile(r"(float|int64|bool)\[([\d, ]*)\]\s+([\w.]+)\s*(?=[,>])")


def model(
    text: str,
    *,
    opset: int = 17,
    ir_version: int = 8,
    seed: int = 0,
    vendor: bool = False,
    **constants: Any,
) -> ir.Model:
    """`(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { y = MatMul(x, w) }` as a model.

    What is declared between < and > becomes an initializer: random, positive when its name starts
    with `var`, or the array given under its name. `vendor`: operators of com.microsoft may occur.
    """
    rng = np.random.default_rng(seed)
    declared = text[: text.index("{")].partition("=>")[2].partition("<")[2]
    arrays = {name: np.asarray(array) for name, array in constants.items()}
    for _, sizes, name in _DECLARED.findall(declared):
        shape = [int(size) for size in sizes.split(",") if size.strip()]
        drawn = rng.uniform(0.5, 1.5, shape) if name.startswith("var") else rng.normal(size=shape)
        arrays.setdefault(name, drawn.astype(np.float32))
    domains = f'"": {opset}' + (', "com.microsoft": 1' if vendor else "")
    head = f"<ir_version: {ir_version}, opset_import: [{domains}]> graph "
    proto = onnx.parser.parse_model(head + text)
    described = [info for info in proto.graph.value_info if info.name not in arrays]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(described)
    for name, values in arrays.items():
        proto.graph.initializer.append(ir.to_proto(ir.tensor(values, name=name)))
    found = ir.from_proto(proto)
    name_all_values(found)
    return found


def feeds(network: ir.Model, *, batch: int = 5, seed: int = 0) -> dict[str, Array]:
    """Random inputs; every open size is `batch`."""
    rng = np.random.default_rng(seed)
    result: dict[str, Array] = {}
    for value in model_input(network):
        assert value.shape is not None
        assert value.dtype is not None
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        result[value.name or ""] = rng.normal(size=shape).astype(value.dtype.numpy())
    return result


def axis(text: str) -> Axis:
    """`w[1]` as an Axis."""
    name, _, position = text[:-1].rpartition("[")
    return Axis(name, int(position))


def coupled(network: ir.Model, left: str, right: str) -> list[tuple[int, int]]:
    """All pairs (index of left, index of right) that rules couple directly, sorted."""
    a, b = axis(left), axis(right)
    pairs: list[tuple[int, int]] = []
    for _, fact in facts(network, *settle(network)):
        if isinstance(fact, Coupling) and {fact.left, fact.right} == {a, b}:
            here, there = fact.left_index.tolist(), fact.right_index.tolist()
            pairs += zip(*((here, there) if fact.left == a else (there, here)), strict=True)
    return sorted(pairs)


def straight(size: int) -> list[tuple[int, int]]:
    """(0, 0), (1, 1), ..."""
    return [(index, index) for index in range(size)]


def window(size: int, offset: int) -> list[tuple[int, int]]:
    """(0, offset), (1, offset + 1), ..."""
    return [(index, offset + index) for index in range(size)]


def frozen(network: ir.Model, name: str) -> set[Reason]:
    """Why rules freeze the axis called `name`."""
    wanted = axis(name)
    found = facts(network, *settle(network))
    return {fact.reason for _, fact in found if isinstance(fact, Frozen) and fact.axis == wanted}


def ended(network: ir.Model) -> set[str]:
    """Axes that rules declare to end."""
    found = facts(network, *settle(network))
    return {str(fact.axis) for _, fact in found if isinstance(fact, Ends)}


def view(network: ir.Model, op_type: str, which: int = 0) -> View:
    """The first node of that type, or the one numbered `which`, as rules see it."""
    return [v for v in views(network, *settle(network)) if v.node.op_type == op_type][which]


def members(group: Group) -> dict[str, list[list[int]]]:
    """The group's index arrays by axis."""
    return {str(member.axis): member.index.tolist() for member in group.members}


def group_members(network: ir.Model) -> list[dict[str, list[list[int]]]]:
    """All groups' index arrays."""
    return [members(group) for group in analyze(network).groups]


def rows(size: int) -> list[list[int]]:
    """The index array of an axis on which unit u owns index u."""
    return [[index] for index in range(size)]


def node_types(network: ir.Model) -> Sequence[str]:
    """Operators in order."""
    return [node.op_type for node in network.graph]


def array(network: ir.Model, name: str) -> Array:
    """The initializer called `name`."""
    value = network.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()
