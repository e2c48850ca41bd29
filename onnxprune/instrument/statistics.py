"""Statistics inside the graph: reductions whose results, one vector per axis, leave the session.

`attach` adds them to a model; `Collector` names the outputs and folds what comes out, batch by
batch, into `base.Window`s. The model they are added to is a derived one, thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Floats, Observable, Window
from onnxprune.graph.shapes import dtypes
from onnxprune.instrument.reductions import Reductions
from onnxprune.model import trainable_dtype

__all__ = ["Collector", "attach"]

_FIELDS = {
    Observable.RANGE: ("low", "high"),
    Observable.MEAN: ("total",),
    Observable.VARIANCE: ("total", "square"),
    Observable.ABSOLUTE: ("absolute",),
    Observable.ACTIVE: ("active",),
    Observable.PAIRS: ("pairs",),
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
        return tuple(name for entry in self.outputs.values() for name in entry.values())

    def joined(self, other: Collector) -> Collector:
        """Both: what they hold of an axis becomes one window."""
        outputs = {axis: dict(entry) for axis, entry in self.outputs.items()}
        for axis, entry in other.outputs.items():
            outputs.setdefault(axis, {}).update(entry)
        return Collector(outputs=outputs)

    def collect(self, results: Mapping[str, Array]) -> dict[Axis, Window]:
        """The windows of one batch from the outputs of one run."""
        return {axis: _window(entry, results) for axis, entry in self.outputs.items()}


def _window(outputs: Mapping[str, str], results: Mapping[str, Array]) -> Window:
    vectors = {
        field: _shaped(np.asarray(results[name], np.float64), field)
        for field, name in outputs.items()
        if field != "count"
    }
    size = len(next(iter(vectors.values())))
    if "gate" in vectors:
        vectors["gate_square"] = vectors["gate"] ** 2
    return Window(count=int(results[outputs["count"]]) // size, batches=1, **vectors)


def _shaped(array: Floats, field: str) -> Floats:
    """One number per index, or per pair of them."""
    return array if field == "pairs" else array.reshape(-1)


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
        observables: what is wanted; those that need gradients are not seen to.
        ranks: per value name.

    Returns:
        The instrumented copy, and the collector that reads its outputs. Axes of values that the
        model does not have are left out.
    """
    copy = model.clone()
    names = sorted(
        {field for each in observables if not each.is_gradient for field in _FIELDS[each]}
    )
    if not names:
        return copy, Collector(outputs={})
    values = {value.name: value for value in copy.graph.inputs}
    values |= {value.name: value for node in copy.graph for value in node.outputs}
    wanted = dict.fromkeys(axes)
    if _mixes_precisions(model):
        for name, dtype in dtypes(model).items():
            if name in values:
                values[name].dtype = dtype
    reductions = Reductions(copy)
    outputs: dict[Axis, dict[str, str]] = {}
    for axis in wanted:
        value = values.get(axis.value)
        if value is not None:
            outputs[axis] = {
                field: reductions.reduce(value, axis, ranks[axis.value], field) for field in names
            }
            outputs[axis]["count"] = reductions.count(value)
    return copy, Collector(outputs=outputs)


def _mixes_precisions(model: ir.Model) -> bool:
    """Whether observed values may be other than float32, so that their types must be inferred."""
    given = (*model.graph.inputs, *model.graph.initializers.values())
    types = {value.dtype for value in given if trainable_dtype(value.dtype)}
    return not types <= {ir.DataType.FLOAT}
