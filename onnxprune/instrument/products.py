"""Products of values with their gradients, reduced inside the gradient graph.

What a factor ("gate") at an index would get as gradient is the sum of a dL/da over that index, so
no factor needs to be multiplied in. The same holds for parameters: of a weight, the sum of w dL/dw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from onnxprune.base import Axis, Observable
from onnxprune.instrument.reductions import Reductions
from onnxprune.instrument.statistics import Collector

__all__ = ["attach_products"]

_FIELDS = {
    Observable.GATE: ("gate",),
    Observable.SALIENCY: ("saliency", "saliency_square"),
}


def attach_products(
    model: ir.Model,
    gradients: Mapping[str, str],
    axes: Iterable[Axis],
    observables: Iterable[Observable],
    ranks: Mapping[str, int],
) -> tuple[ir.Model, Collector]:
    """A copy of `model` with reduced products of values and their gradients as further outputs.

    Args:
        model: a gradient graph; not changed.
        gradients: name of the gradient per value name.
        axes: whose indices are told apart, of activations or parameters.
        observables: GATE and SALIENCY are seen to, others are not.
        ranks: per value name.

    Returns:
        The instrumented copy, and the collector that reads its outputs. Values that the graph does
        not have, or that have no gradient in it, are left out.
    """
    copy = model.clone()
    fields = [field for each in observables for field in _FIELDS.get(each, ())]
    values = ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False)
    reductions = Reductions(copy)
    outputs: dict[Axis, dict[str, str]] = {}
    products: dict[str, ir.Value] = {}
    for axis in dict.fromkeys(axes):
        name = axis.value
        value, gradient = values.get(name), values.get(gradients.get(name, ""))
        if value is None or gradient is None or not fields:
            continue
        if name not in products:
            products[name] = reductions.append("Mul", [value, gradient], f"{name}/product")
            products[name].type = value.type
        outputs[axis] = {
            field: reductions.reduce(products[name], axis, ranks[name], field) for field in fields
        }
        outputs[axis]["count"] = reductions.count(value)
    return copy, Collector(outputs=outputs)
