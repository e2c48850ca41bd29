"""The scores of NNrelief: what every connection contributes to its output unit, on a sample.

Dekhovich, Tax, Sluiter and Bessa, "Neural network relief" (arXiv 2109.10795). In its symbols, for
output unit j, inputs x_n and N examples:

    fully connected   I_ij = mean over n of |w_ij x_ni|,  I_bj = |b_j|
    convolution       I_ij = (1/N) sum over n of || |K_ij| * |x_ni| ||_F,  I_bj = |b_j| sqrt(H W)
    share             s_ij = I_ij / S_j,  S_j = sum over i of I_ij + I_bj

The formula of the published code (SHiNe, github.com/adekhovich/NNrelief) for convolutions takes the
mean over the examples before the norm, || |K_ij| * mean of |x_ni| ||_F, which is at most the above;
for LeNet it takes a plain sum instead of the norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Floats
from onnxprune.emit import Emitter
from onnxprune.graph.groups import Analysis
from onnxprune.methods.compose import Moment
from onnxprune.methods.connections import Layer

__all__ = ["FORMULAS", "Importance", "depths", "importances", "magnitudes"]

FORMULAS = ("paper", "code", "sum")
_FLOATS = 1 << 26  # of what all kernels of a layer make of a batch

Values = Mapping[str, ir.Value]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Importance:
    """Of a layer's connections (G, I, O), and of its biases (G, O), None without."""

    kernels: Floats
    offsets: Floats | None


def importances(
    moment: Moment, layers: Sequence[Layer], formula: str = "paper"
) -> dict[str, Importance]:
    """Importance by layer; without those that do not lead to the prediction.

    Args:
        moment: whose sample is looked at.
        layers: of its model.
        formula: of convolutions; "paper", "code", or "sum" as the code has it for LeNet.
    """
    scale = max((_spread_size(layer, moment.analysis) for layer in layers), default=1)

    def direct(e: Emitter, values: Values) -> dict[str, ir.Value]:
        return dict(_direct(e, values, moment.analysis, layers, formula))

    sums = dict(moment.measure(direct, examples=max(_FLOATS // scale, 1)))
    if formula != "paper":
        means = {
            layer.node: sums[layer.node] / sums[f"{layer.node}/count"]
            for layer in layers
            if layer.how.spread is not None and layer.node in sums
        }

        def of_means(e: Emitter, _values: Values) -> dict[str, ir.Value]:
            return dict(_of_means(e, layers, means, formula))

        sums |= moment.measure(of_means)
    return {layer.node: _importance(layer, sums, formula) for layer in layers if layer.node in sums}


def _spread_size(layer: Layer, analysis: Analysis) -> int:
    """Numbers that all kernels of a layer make of one example; open sizes count as 32."""
    sizes = analysis.shapes[layer.how.out.value][2:]
    positions = math.prod(size or 32 for size in sizes) if layer.how.spread is not None else 1
    return positions * layer.kernels[..., 0].size


def magnitudes(e: Emitter, value: ir.Value) -> ir.Value:
    """|x| in float32."""
    return e.op("Abs", e.op("Cast", value, to=ir.DataType.FLOAT))


def _direct(
    e: Emitter, values: Values, analysis: Analysis, layers: Sequence[Layer], formula: str
) -> list[tuple[str, ir.Value]]:
    """Sums over examples: of |x|, of norms of what each kernel makes of it, of maps of |x|."""
    made: dict[str, ir.Value] = {}
    results: list[tuple[str, ir.Value]] = []
    for layer in layers:
        axis = layer.how.data
        if axis.value not in values:
            continue
        x = made.setdefault(axis.value, magnitudes(e, values[axis.value]))
        rank = len(analysis.shapes[axis.value])
        if layer.how.spread is None:
            axes = [position for position in range(rank) if position != axis.position]
            total = e.reduce("ReduceSum", x, axes, keepdims=False) if axes else x
            count = e.op(
                "Div", _size(e, x), e.scalar(layer.kernels.shape[0] * layer.kernels.shape[1])
            )
        else:
            count = e.op("Cast", _first_size(e, x), to=ir.DataType.FLOAT)
            total = e.reduce("ReduceSum", x, [0], keepdims=False)
            if formula == "paper":
                maps = layer.how.spread(e, x, layer.kernels.astype(np.float32))
                norms = e.reduce("ReduceL2", maps, list(range(2, rank)), keepdims=False)
                total = e.reduce("ReduceSum", norms, [0], keepdims=False)
                results.append((f"{layer.node}/positions", _positions(e, maps, layer)))
        results += [(layer.node, total), (f"{layer.node}/count", count)]
    return results


def _of_means(
    e: Emitter, layers: Sequence[Layer], means: Mapping[str, Floats], formula: str
) -> list[tuple[str, ir.Value]]:
    """What each kernel makes of the mean map, as norm or sum; the data has no part in it."""
    results: list[tuple[str, ir.Value]] = []
    for layer in layers:
        if layer.node not in means or layer.how.spread is None:
            continue
        mean = means[layer.node].astype(np.float32)[None]
        maps = layer.how.spread(e, e.constant(mean), layer.kernels.astype(np.float32))
        axes = list(range(2, mean.ndim))
        total = e.reduce(
            "ReduceL2" if formula == "code" else "ReduceSum", maps, axes, keepdims=False
        )
        one = e.op("Identity", e.scalar(1.0))  # summed as often as the others
        results += [(layer.node, e.reduce("ReduceSum", total, [0], keepdims=False))]
        results += [(f"{layer.node}/positions", _positions(e, maps, layer))]
        results += [(f"{layer.node}/count", one)]
    return results


def _size(e: Emitter, value: ir.Value) -> ir.Value:
    return e.op("Cast", e.op("Size", value), to=ir.DataType.FLOAT)


def _first_size(e: Emitter, value: ir.Value) -> ir.Value:
    return e.op("Gather", e.op("Shape", value), e.constant(np.array(0, np.int64)))


def _positions(e: Emitter, maps: ir.Value, layer: Layer) -> ir.Value:
    """Output positions, summed over examples."""
    return e.op("Div", _size(e, maps), e.scalar(layer.kernels[..., 0].size))


def _importance(layer: Layer, sums: Mapping[str, Floats], formula: str) -> Importance:
    count = np.maximum(sums[f"{layer.node}/count"], 1.0)
    mean = sums[layer.node] / count
    groups, inputs, outputs, _ = layer.kernels.shape
    if layer.how.spread is None:
        kernels = mean.reshape(groups, inputs, 1) * layer.kernels[..., 0]
        return Importance(kernels=kernels, offsets=layer.offsets)
    positions = float(sums[f"{layer.node}/positions"] / count)
    factor = positions if formula == "sum" else math.sqrt(positions)
    offsets = None if layer.offsets is None else layer.offsets * factor
    return Importance(kernels=mean.reshape(groups, inputs, outputs), offsets=offsets)


def depths(found: Importance) -> tuple[Floats, Floats | None]:
    """Per connection and bias, the share of its unit that more important ones have together.

    Sorted by share, largest first and equal ones in order, the fewest that reach alpha together are
    those of a depth below alpha. Where nothing contributes, nothing can be said: all depths are 0.

    Returns:
        (G, I, O) and, with biases, (G, O), in [0, 1].
    """
    stacked = found.kernels
    if found.offsets is not None:
        stacked = np.concatenate([stacked, found.offsets[:, None, :]], axis=1)
    order = np.argsort(-stacked, axis=1, kind="stable")
    total = np.cumsum(np.take_along_axis(stacked, order, axis=1), axis=1)
    whole = total[:, -1:, :]
    before = np.concatenate([np.zeros_like(whole), total[:, :-1, :]], axis=1)
    known = (whole > 0) & np.isfinite(whole)
    before = np.divide(before, whole, out=np.zeros_like(before), where=known)
    result = np.empty(before.shape, np.float32)  # of all layers at once
    np.put_along_axis(result, order, before.astype(np.float32), axis=1)
    if found.offsets is None:
        return result, None
    return result[:, :-1, :], result[:, -1, :]
