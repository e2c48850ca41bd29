"""What is trained: constants that reach a parameter slot of an operator, and why others do not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.errors import ConfigError
from onnxprune.graph.constants import fixed_values
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.model import constants, is_constant, node_key, tensor_of, trainable_dtype
from onnxprune.ops.registry import PARAMETERS, Role, View

__all__ = ["Trained", "trained"]

_WAVE = 1e-3  # what rounding may do to sines and cosines, of float16 too
_FEWEST_POSITIONS = 6  # two columns of fewer could be a wave by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Names of what is trained, and (name, why) of float constants that are not."""

    parameters: tuple[str, ...]
    others: tuple[tuple[str, str], ...]


def trained(
    model: ir.Model, analysis: Analysis, *, train: str | None = None, freeze: str | None = None
) -> Trained:
    """Find the trainable parameters by the operators' rules.

    A float constant of rank >= 1 is trained when it reaches a slot that an operator declares as a
    parameter, directly or through operators on constants alone (Identity, Transpose, weight norm).
    Biases, scales and slopes count behind the first weighted operator only, so that means and
    deviations of a normalized input stay what they are. Tables of sines and cosines of positions
    are none: nobody trains them. Learned tables of positions, which frameworks do train, look the
    same to the graph but not to the eye: no learned column is a wave (`_is_wave`).

    Args:
        model: the user's graph.
        analysis: its shapes.
        train: regular expression; constants whose name it matches are trained as well.
        freeze: regular expression; constants whose name it matches are not trained.

    Raises:
        ConfigError: a regular expression that does not compile.
    """
    floats = {
        name: value
        for name, value in constants(model).items()
        if trainable_dtype(value.dtype) and len(analysis.shapes.get(name, ())) > 0
    }
    roles: dict[str, set[str]] = {}
    for name, role in _reached(model, analysis):
        roles.setdefault(name, set()).add(role)
    waves = {name for name, own in roles.items() if name in floats and _is_table(floats[name], own)}
    reached = roles.keys() - waves
    wanted, unwanted = _pattern(train, "--train-params"), _pattern(freeze, "--freeze")
    parameters, others = [], []
    for name in floats:
        if unwanted is not None and unwanted.search(name):
            others.append((name, "frozen on request"))
        elif name in reached or (wanted is not None and wanted.search(name)):
            parameters.append(name)
        elif name in waves:
            others.append((name, "sines and cosines of positions"))
        else:
            others.append((name, "no operator takes it as a parameter"))
    return Trained(parameters=tuple(parameters), others=tuple(others))


def _pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ConfigError(f"{option} {text}: not a regular expression ({error})") from error


def _is_table(value: ir.Value, roles: set[str]) -> bool:
    """Whether a constant that is added, multiplied or looked up holds waves over positions."""
    tensor = tensor_of(value)
    if Role.WEIGHT in roles or tensor is None or len(tensor.shape) < 2:
        return False
    return _is_wave(tensor.numpy())


def _is_wave(array: Array) -> bool:
    """Whether every column of (..., positions, columns) is a sine or cosine of the position.

    Sampled at equal distances, x[k + 1] + x[k - 1] = 2 cos(w) x[k] holds for a wave of any
    frequency and phase, and for nothing that was drawn or learned. Constants are no waves.
    """
    table = array.reshape(-1, *array.shape[-2:])[0].astype(np.float64)
    middle, sides = table[1:-1], table[2:] + table[:-2]
    power = (middle**2).sum(axis=0)
    if len(table) < _FEWEST_POSITIONS or not power.all() or np.abs(table).max() > 1 + _WAVE:
        return False
    factor = (middle * sides).sum(axis=0) / power
    rest = sides - factor * middle
    moving = np.ptp(table, axis=0) > _WAVE
    return bool(moving.any() and (np.abs(rest) <= _WAVE).all() and (np.abs(factor) <= 2.1).all())


def _reached(model: ir.Model, analysis: Analysis) -> Iterator[tuple[str, str]]:
    """Constants behind parameter slots, with the role of the slot."""
    fixed = fixed_values(model)
    weighted: set[str] = set()
    for view in views(model, analysis.shapes, analysis.known):
        behind = any(value is not None and value.name in weighted for value in view.node.inputs)
        for slot, role in _slots(view).items():
            value = view.input(slot)
            if value is None or value.name not in fixed:
                continue
            if role in Role.DEPENDENT and not behind and not _has_weight(view, fixed):
                continue
            behind = behind or role not in Role.DEPENDENT
            yield from ((name, role) for name in _sources(value))
        if behind:
            weighted.update(value.name or "" for value in view.node.outputs)


def _slots(view: View) -> Mapping[int, str]:
    declared = PARAMETERS.find(view.node, view.opset)
    if declared is None or node_key(view.node) in view.known:
        return {}
    return declared()


def _has_weight(view: View, fixed: set[str]) -> bool:
    """Whether the node itself contracts the data with a constant."""
    return any(
        role not in Role.DEPENDENT
        and (value := view.input(slot)) is not None
        and value.name in fixed
        for slot, role in _slots(view).items()
    )


def _sources(value: ir.Value) -> Iterator[str]:
    """Constants that `value` is computed from; quantized weights and their scales are none."""
    stack, seen = [value], set()
    while stack:
        current = stack.pop()
        if current.name in seen:
            continue
        seen.add(current.name)
        if is_constant(current):
            yield current.name or ""
            continue
        producer = current.producer()
        if producer is not None and producer.op_type != "DequantizeLinear":
            stack.extend(source for source in producer.inputs if source is not None)
