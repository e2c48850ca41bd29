"""What each unit could be replaced by, and what that costs: a constant, or another unit.

Errors are relative: the change of a consumer's pre-activation over what varies of it, both as
root mean squares over the sample, so that layers of any width and scale compare. The mean does not
count: biases take it over exactly, and in an untrained deep network, where it is nearly all there
is, every unit would seem negligible beside it. Bounds are largest instead of typical values.
Symbols as in the reconstruction of adaptive neuron apoptosis: v_j are the outgoing weights of unit
j, u_j its incoming ones with the bias, mu_j its mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Consumer, Floats, Group, Index, Mask, Observations, Window
from onnxprune.errors import MissingObservationError
from onnxprune.graph.consumers import absorber, outgoing
from onnxprune.graph.groups import Analysis
from onnxprune.graph.traces import trace
from onnxprune.ops.registry import View
from onnxprune.ops.trace import Kind, Trace

__all__ = [
    "Folding",
    "Merging",
    "Reader",
    "foldings",
    "mergings",
    "observed",
    "readers",
    "rounding",
    "variance",
]

_NOISE = 1e-6  # of a vector's length: rows closer than this are equal up to float32 rounding
_PAIRS = 1 << 20  # compared at a time: 8 MiB per array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reader:
    """One consumer of a group, with what its weights make of each unit.

    Attributes:
        index: (U, k) positions of the units on the consumer's axis.
        strength: (U, k) length |v| of the outgoing weights of each position; offsets of a kernel
            taken as independent.
        reach: (U, k) the same for offsets that all add up: the most a change of 1 can do.
        power: variance of the pre-activation that the whole axis causes, positions taken as
            independent: sum of |v_i|^2 Var[a_i].
        padded: share of output positions that see zeros instead of the unit.
    """

    consumer: Consumer
    index: Index
    strength: Floats
    reach: Floats
    power: float
    padded: float


def readers(
    group: Group,
    views: Mapping[str, View],
    analysis: Analysis,
    seen: Observations,
    *,
    inside: bool = False,
) -> list[Reader] | None:
    """One reader per consumer; None when a consumer cannot take over what a unit contributes.

    None, too, when numbers have overflowed: nothing can be said about units then. Where a
    normalization or a mean sees the units together, what one contributes to the others is nowhere
    bounded. A recurrent node reads its units itself and has no bias to take a constant of theirs:
    None, unless `inside` asks for its consumers all the same; whether anything sees those units
    together is then up to the caller.
    """
    if (group.inner and not inside) or not (group.inner or group.exact):
        return None
    if any(consumer.axis.by >= 0 for consumer in group.consumers):
        return None
    result = []
    for consumer in group.consumers:
        view = views[consumer.node]
        how = absorber(view, consumer)
        if how is None or consumer.axis not in seen:
            return None
        padded = _border(analysis, consumer) if how.padded else 0.0
        varying = variance(seen, consumer.axis, padded)
        weights = np.abs(outgoing(view, how).astype(np.float64))
        strength = np.sqrt((weights**2).sum(axis=(1, 2)))
        reach = np.sqrt((weights.sum(axis=2) ** 2).sum(axis=1))
        index = group.member(consumer.axis).index
        power = float(strength**2 @ varying) if np.isfinite(varying).all() else math.inf
        if not math.isfinite(power):
            return None
        result.append(
            Reader(
                consumer=consumer,
                index=index,
                strength=strength[index],
                reach=reach[index],
                power=power,
                padded=padded,
            )
        )
    return result or None


def observed(seen: Observations, axis: Axis) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean, mean square, smallest and largest value per index of `axis`, each (C,).

    The mean lies between the latter two, also where rounding says otherwise.
    """
    window = seen[axis]
    total, square, low, high = window.total, window.square, window.low, window.high
    if total is None or square is None or low is None or high is None:
        raise MissingObservationError(
            f"{axis}: mean, variance and range are needed; observe RANGE, MEAN and VARIANCE",
            axis=axis,
        )
    count = max(window.count, 1)
    return np.clip(total / count, low, high), square / count, low, high


def variance(seen: Observations, axis: Axis, padded: float) -> Floats:
    """(C,) of each unit as its consumer sees it: at a padded border, zero stands for the unit.

    Sums of a batch come in float32. Where rounding can make up the difference of mean square and
    squared mean, it is the most that the range allows: noise would call some units free. Infinite
    where numbers have overflowed.
    """
    mean, square, low, high = observed(seen, axis)
    if not np.isfinite(square).all():
        return np.full_like(square, np.inf)
    most = ((high - low) / 2) ** 2
    varying = square - mean**2
    sure = varying > rounding(seen[axis], square)
    return np.asarray(np.where(sure, np.minimum(varying, most), most) + padded * mean**2)


def rounding(window: Window, square: Floats) -> Floats:
    """By how much `square`, a mean of squares in `window`, may be off: each batch adds in float32.

    As errors of either sign add up. Values that are nearly equal are all rounded alike, so that it
    can be more for many of them; then their range is narrow, which bounds what they vary.
    """
    batch = window.count / max(window.batches, 1)
    return float(np.finfo(np.float32).eps) * math.sqrt(batch) * square


def _border(analysis: Analysis, consumer: Consumer) -> float:
    """Share of positions on the rim of the map, where a padded kernel sees zeros."""
    sizes = analysis.shapes[consumer.axis.value][2:]
    inner = [max((size or 32) - 2, 0) / (size or 32) for size in sizes]
    return 1.0 - float(np.prod(inner))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Folding:
    """Replacing each unit of a group by its mean.

    Attributes:
        error: (U,) relative root mean square change of the worst consumer, >= 0.
        bound: (U,) relative largest change of the worst consumer on the sample.
        exact: (U,) bool: constant on the whole sample, and the constant goes without remainder.
        values: per consumer axis the (U, k) means.
    """

    error: Floats
    bound: Floats
    exact: Mask
    values: Mapping[Axis, Floats]


def foldings(parts: list[Reader], seen: Observations) -> Folding:
    """Errors and bounds of constants: |delta z| <= |v_j| max(max_j - mu_j, mu_j - min_j)."""
    count = len(parts[0].index)
    error, bound = np.zeros(count), np.zeros(count)
    exact = np.ones(count, np.bool_)
    values: dict[Axis, Floats] = {}
    for part in parts:
        mean, _, low, high = (row[part.index] for row in observed(seen, part.consumer.axis))
        constant = low == high
        varying = variance(seen, part.consumer.axis, part.padded)[part.index]
        deviation = np.maximum(high - mean, mean - low)
        if part.padded:
            deviation = np.maximum(deviation, np.abs(mean))
        scale = np.sqrt(part.power) or 1.0
        error = np.maximum(error, np.sqrt((part.strength**2 * varying).sum(axis=1)) / scale)
        bound = np.maximum(bound, (part.reach * deviation).sum(axis=1) / scale)
        exact &= (constant & ((mean == 0) | (part.padded == 0))).all(axis=1)
        values[part.consumer.axis] = mean
    return Folding(error=error, bound=bound, exact=exact, values=values)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Merging:
    """For every unit the best survivor to stand in for it.

    Attributes:
        survivor: (U,) unit, or -1 where nothing comes close.
        scale, offset: (U,) the victim is about scale * survivor + offset.
        error, bound: (U,) as for Folding; infinite without a survivor.
        exact: (U,) bool: the same function up to rounding.
    """

    survivor: Index
    scale: Floats
    offset: Floats
    error: Floats
    bound: Floats
    exact: Mask


def mergings(
    model: ir.Model, analysis: Analysis, group: Group, parts: list[Reader], seen: Observations
) -> Merging | None:
    """Parallel units: |delta z| <= |v_j| |u_j - c u_i| |[x; 1]|; None when nothing is known.

    Only functions of the incoming weights are compared, so the bound holds on any data whose inputs
    are no longer than those of the sample.
    """
    found = trace(model, analysis, group)
    if found is None or len(found.rows) < 2:
        return None
    nearest, survivor, scale, offset = _nearest(found)
    typical, largest = _reach(found, seen)
    exact = nearest <= _NOISE * np.maximum(np.linalg.norm(found.rows, axis=1), 1e-30)
    known = exact | (np.isfinite(nearest) & np.isfinite(typical))
    for part in parts:  # scale alone passes zero padding
        known &= (offset == 0) | (part.padded == 0)
    inexact = known & ~exact
    nearest = np.where(inexact, nearest, 0.0)
    error: Floats = np.zeros(len(nearest))
    bound: Floats = np.zeros(len(nearest))
    for part in parts if inexact.any() else ():
        size = np.sqrt(part.power) or 1.0
        strength = np.sqrt((part.strength**2).sum(axis=1)) / size
        error = np.maximum(error, strength * nearest * typical)
        bound = np.maximum(bound, part.reach.sum(axis=1) / size * nearest * largest)
    error, bound = np.where(known, error, np.inf), np.where(known, bound, np.inf)
    return Merging(
        survivor=np.where(known, survivor, -1).astype(np.int64),
        scale=np.where(known, scale, 0.0),
        offset=np.where(known, offset, 0.0),
        error=error,
        bound=bound,
        exact=exact & known,
    )


def _reach(found: Trace, seen: Observations) -> tuple[float, float]:
    """Typical and largest |[x; 1]| of what the rows are multiplied with; inf where not observed.

    The largest counts every column of the rows, those of constants too, as one of each input.
    """
    if any(axis not in seen for axis in found.inputs) or not found.inputs:
        return float("inf"), float("inf")
    typical = largest = 0.0
    channels, columns = 0, found.rows.shape[1]
    for axis in found.inputs:
        _, square, low, high = observed(seen, axis)
        channels += len(square)
        typical += float(square.sum())
        square = np.maximum(low**2, high**2)
        largest += math.ceil(columns / len(square)) * float(np.maximum(square, 1.0).sum())
    if not math.isfinite(largest):
        return math.inf, math.inf
    positions = max(columns // channels, 1)
    return float(np.sqrt(1 + positions * typical)), float(np.sqrt(largest))


def _nearest(found: Trace) -> tuple[Floats, Index, Floats, Floats]:
    """For every victim j the survivor i with the smallest |u_j - c u_i|: distance, i, c, offset.

    All pairs are compared, some victims at a time, so that memory grows with the number of units
    and not with its square. The distance carries the activation's Lipschitz constant.
    """
    count = len(found.rows)
    square = np.einsum("ud,ud->u", found.rows, found.rows)
    nearest, survivor = np.empty(count), np.zeros(count, np.int64)
    scale, offset = np.empty(count), np.empty(count)
    settled = 4 * count  # pairs that may be compared once more, digit by digit
    step = max(_PAIRS // count, 1)
    for start in range(0, count, step):
        victims = slice(start, start + step)
        distance, factors, offsets, close = _distances(found, square, victims, settled)
        settled -= close
        best = distance.argmin(axis=1)
        rows = np.arange(len(best))
        nearest[victims], survivor[victims] = distance[rows, best], best
        scale[victims], offset[victims] = factors[rows, best], offsets[rows, best]
    return nearest, survivor, scale, offset


def _distances(
    found: Trace, square: Floats, victims: slice, most: int
) -> tuple[Floats, Floats, Floats, int]:
    """|u_j - c u_i|, c and offset for some victims j (rows) and all survivors i (columns).

    Args:
        found: with rows (U, D).
        square: (U,) |u_i|^2.
        victims: which rows.
        most: how many near-duplicates may be settled by their difference.

    Returns:
        Three arrays (victims, U), and how many near-duplicates were settled.
    """
    rows = found.rows
    gram = rows[victims] @ rows.T
    own = square[victims]
    scale, offset = _factors(found.kind, gram, square)
    squared = own[:, None] - 2 * scale * gram + scale**2 * square[None, :]
    distance = np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)
    distance[np.arange(len(own)), np.arange(victims.start, victims.start + len(own))] = np.inf
    # The subtraction above loses half the digits: settle near-duplicates by the difference itself.
    close = np.argwhere(distance <= 1e-3 * np.sqrt(own)[:, None])[:most]
    for j, i in close:
        distance[j, i] = np.linalg.norm(rows[victims.start + j] - scale[j, i] * rows[i])
    if found.kind is Kind.EQUAL:
        distance = np.where(distance <= _NOISE * np.sqrt(own)[:, None], 0.0, np.inf)
    else:
        distance *= found.slope
    distance[:, square == 0] = np.inf
    return distance, scale, offset, len(close)


def _factors(kind: Kind, gram: Floats, square: Floats) -> tuple[Floats, Floats]:
    """C and offset of every pair, by what is known of the function of the rows."""
    if kind <= Kind.HOMOGENEOUS:
        scale = gram / np.maximum(square, 1e-30)[None, :]
        if kind is Kind.HOMOGENEOUS:
            np.maximum(scale, 0.0, out=scale)
    elif kind in (Kind.ODD, Kind.SIGMOID):
        scale = np.where(gram < 0, -1.0, 1.0)
    else:
        scale = np.broadcast_to(1.0, gram.shape)
    if kind is Kind.SIGMOID:
        return scale, (1.0 - scale) / 2
    return scale, np.broadcast_to(0.0, gram.shape)
