"""Statistics inside the graph: reductions whose results, one vector per axis, leave the session.

`attach` adds them to a model; `Collector` names the outputs and folds what comes out, batch by
batch, into `base.Window`s. The model they are added to is a derived one, thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Floats, Observable, Observations, Window
from onnxprune.graph.shapes import dtypes
from onnxprune.model import opset, trainable_dtype

__all__ = ["Collector", "attach", "merge_windows"]

_OPERATORS = {
    "total": "ReduceSum",
    "square": "ReduceSumSquare",
    "absolute": "ReduceL1",
    "active": "ReduceSum",
    "low": "ReduceMin",
    "high": "ReduceMax",
}
_ALONE = {"square": ("Mul", 2), "absolute": ("Abs", 1)}  # where nothing is reduced; else Identity
_FIELDS = {
    Observable.RANGE: ("low", "high"),
    Observable.MEAN: ("total",),
    Observable.VARIANCE: ("total", "square"),
    Observable.ABSOLUTE: ("absolute",),
    Observable.ACTIVE: ("active",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Which output of an instrumented model holds what.

    Attributes:
        outputs: per observed axis, output name by field of `Window`; "count" is there always.
    """

    outputs: Mapping[Axis, Mapping[str, str]]

    @property
    def names(self) -> tuple[str, ...]:
        """All statistics outputs."""
        return tuple(name for fields in self.outputs.values() for name in fields.values())

    def collect(self, results: Mapping[str, Array]) -> dict[Axis, Window]:
        """The windows of one batch from the outputs of one run."""
        return {axis: _window(fields, results) for axis, fields in self.outputs.items()}


def _window(fields: Mapping[str, str], results: Mapping[str, Array]) -> Window:
    vectors = {
        field: np.asarray(results[name], np.float64).reshape(-1)
        for field, name in fields.items()
        if field != "count"
    }
    size = len(next(iter(vectors.values())))
    return Window(count=int(results[fields["count"]]) // size, batches=1, **vectors)


def merge_windows(first: Observations, second: Observations) -> dict[Axis, Window]:
    """Statistics over both windows; axes that only one knows are taken as they are."""
    merged = dict(first)
    for axis, window in second.items():
        merged[axis] = _merged(merged[axis], window) if axis in merged else window
    return merged


def _merged(a: Window, b: Window) -> Window:
    return Window(
        count=a.count + b.count,
        batches=a.batches + b.batches,
        total=_both(np.add, a.total, b.total),
        square=_both(np.add, a.square, b.square),
        absolute=_both(np.add, a.absolute, b.absolute),
        active=_both(np.add, a.active, b.active),
        low=_both(np.minimum, a.low, b.low),
        high=_both(np.maximum, a.high, b.high),
    )


def _both(function: np.ufunc, a: Floats | None, b: Floats | None) -> Floats | None:
    return None if a is None or b is None else np.asarray(function(a, b))


def attach(
    model: ir.Model,
    axes: Iterable[Axis],
    observables: Iterable[Observable],
    ranks: Mapping[str, int],
) -> tuple[ir.Model, Collector]:
    """A copy of `model` with statistics of the given axes as further outputs.

    Args:
        model: a derived graph; not changed.
        axes: whose indices are told apart; the reductions run over all other axes.
        observables: what is wanted.
        ranks: per value name.

    Returns:
        The instrumented copy, and the collector that reads its outputs. Axes of values that the
        model does not have are left out.
    """
    copy = model.clone()
    fields = sorted({field for observable in observables for field in _FIELDS[observable]})
    values = {value.name: value for value in copy.graph.inputs}
    values |= {value.name: value for node in copy.graph for value in node.outputs}
    wanted = dict.fromkeys(axes)
    if _mixes_precisions(model):
        for name, dtype in dtypes(model).items():
            if name in values:
                values[name].dtype = dtype
    builder = _Builder(copy)
    outputs: dict[Axis, dict[str, str]] = {}
    for axis in wanted:
        value = values.get(axis.value)
        if value is not None:
            outputs[axis] = {
                field: builder.reduce(value, axis, ranks[axis.value], field) for field in fields
            }
            outputs[axis]["count"] = builder.count(value)
    return copy, Collector(outputs=outputs)


def _mixes_precisions(model: ir.Model) -> bool:
    """Whether observed values may be other than float32, so that their types must be inferred."""
    given = (*model.graph.inputs, *model.graph.initializers.values())
    types = {value.dtype for value in given if trainable_dtype(value.dtype)}
    return not types <= {ir.DataType.FLOAT}


class _Builder:
    """Appends nodes to one graph."""

    def __init__(self, model: ir.Model) -> None:
        self.graph, self.opset = model.graph, opset(model)
        self.counts: dict[str, str] = {}
        self.indicators: dict[str, ir.Value] = {}

    def _append(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: object
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes=attributes)  # type: ignore[arg-type]
        node.outputs[0].name = name
        self.graph.append(node)
        return node.outputs[0]

    def _constant(self, name: str, array: Array) -> ir.Value:
        if name not in self.graph.initializers:
            value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def _publish(self, value: ir.Value, dtype: ir.DataType, shape: list[int | None]) -> str:
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        self.graph.outputs.append(value)
        return value.name or ""

    def count(self, value: ir.Value) -> str:
        """Output with the number of elements of `value`."""
        name = value.name or ""
        if name not in self.counts:
            size = self._append("Size", [value], f"{name}/count")
            self.counts[name] = self._publish(size, ir.DataType.INT64, [])
        return self.counts[name]

    def reduce(self, value: ir.Value, axis: Axis, rank: int, field: str) -> str:
        """Output with one number per index of `axis`, as float32 vector."""
        axes = [position for position in range(rank) if position != axis.position]
        source = self._indicator(value) if field == "active" else value
        name = f"{axis}/{field}"
        op_type = _OPERATORS[field]
        if not axes:
            alone, operands = _ALONE.get(field, ("Identity", 1))
            reduced = self._append(alone, [source] * operands, name)
        elif self.opset >= (13 if op_type == "ReduceSum" else 18):
            wanted = self._constant(f"onnxprune/axes/{axes}", np.array(axes, np.int64))
            reduced = self._append(op_type, [source, wanted], name, keepdims=0)
        else:
            reduced = self._append(op_type, [source], name, axes=axes, keepdims=0)
        return self._publish(reduced, value.dtype or ir.DataType.FLOAT, [None])

    def _indicator(self, value: ir.Value) -> ir.Value:
        """1 where `value` is not zero, else 0."""
        name = value.name or ""
        if name not in self.indicators:
            dtype = value.dtype or ir.DataType.FLOAT
            # Equal takes floats since opset 11 only, Cast to bool has always meant "not zero".
            active = self._append("Cast", [value], f"{name}/is_active", to=int(ir.DataType.BOOL))
            self.indicators[name] = self._append("Cast", [active], f"{name}/active", to=int(dtype))
        return self.indicators[name]
