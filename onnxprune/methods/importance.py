"""How much each unit of a group matters: one number per unit, larger = keep.

An importance is a function `(group, weights, observations) -> scores (U,)`, with what it wants to
see of the group's consumers. Scores of different groups are on different scales; comparing them is
the business of `allocation`. None means that nothing can be said about a group, which is then left
alone: a group without a normalization has no scale, integer activations have no statistics.

Activations are taken where units end, at the inputs of their consumers: for convolution,
BatchNormalization and Relu that is behind the Relu. Where a unit ends at several values, or covers
several indices of one, the statistics are averaged.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from onnxprune.base import Array, Axis, Floats, Group, Index, Observable, Observations, Window
from onnxprune.errors import ConfigError
from onnxprune.graph.weights import Weight
from onnxprune.ops.registry import Role

__all__ = [
    "IMPORTANCES",
    "WITHOUT_GRADIENTS",
    "Importance",
    "Score",
    "apoz",
    "dormancy",
    "fpgm",
    "importance",
    "magnitude",
    "mean_activation",
    "random",
    "scale",
    "snap",
    "snip",
    "taylor",
    "taylor_output",
    "taylor_weight",
    "utility",
    "variance",
]

_BLOCK = 1 << 20  # numbers that are worked on at a time: 8 MiB

Weights: TypeAlias = Mapping[Axis, Weight]
Score: TypeAlias = Callable[[Group, Weights, Observations], "Floats | None"]


class Importance(NamedTuple):
    """A criterion.

    Attributes:
        requires: what must be observed of the groups' consumers; empty when weights suffice.
        score: (group, weights, observations) -> (U,) float64, or None.
    """

    requires: frozenset[Observable]
    score: Score


def random(*, seed: int = 0) -> Importance:
    """Uniform random numbers: the baseline that every criterion has to beat.

    Each group has a stream of its own, so that other groups do not change its numbers.
    """

    def score(group: Group, _weights: Weights, _seen: Observations) -> Floats:
        stream = np.random.default_rng([seed, zlib.crc32(group.name.encode())])
        return stream.random(group.size)

    return Importance(frozenset(), score)


def magnitude(*, order: int = 2) -> Importance:
    """Norm of the weights that make a unit: of a filter, a row of a matrix, an embedding column.

    Li et al. 2017 (arXiv 1608.08710) with order 1: s_j = sum |W_j|. Units with several producers
    (the branches of a residual sum) count the weights of all of them. Only weights that are
    contracted with data (and embedding tables) count; biases, scales and shifts do so where there
    is nothing else. Weights that read the unit belong to the next layer and do not count, unless
    the unit has no others.

    Args:
        order: 1 for the sum of magnitudes, 2 for the root of the sum of squares.

    Raises:
        ConfigError: another order.
    """
    if order not in (1, 2):
        raise ConfigError(f"magnitude: order {order}: expected 1 or 2")

    def score(group: Group, weights: Weights, _seen: Observations) -> Floats | None:
        total, makers = np.zeros(group.size), 0
        for index, position, array in _makers(group, weights):
            total += _powers(array, position, order)[index].sum(axis=1)
            makers += 1
        return _finite(np.sqrt(total) if order == 2 else total) if makers else None

    return Importance(frozenset(), score)


def fpgm() -> Importance:
    """Distance to the other units of the group: what has many neighbours can be replaced.

    He et al. 2019 (arXiv 1811.00250), eq. 4: s_j = sum_k |W_j - W_k|_2 over the filters of a layer.
    Weights as for `magnitude`; those of several producers are put side by side.
    """

    def score(group: Group, weights: Weights, _seen: Observations) -> Floats | None:
        parts = [
            np.moveaxis(array, position, 0)[index].reshape(group.size, -1).astype(np.float64)
            for index, position, array in _makers(group, weights)
        ]
        if not parts:
            return None
        rows = np.concatenate(parts, axis=1)
        square = np.einsum("ud,ud->u", rows, rows)
        total = np.empty(group.size)
        step = max(_BLOCK // group.size, 1)
        for start in range(0, group.size, step):
            some = slice(start, start + step)
            squared = square[some, None] + square[None, :] - 2 * (rows[some] @ rows.T)
            total[some] = np.sqrt(np.maximum(squared, 0.0)).sum(axis=1)  # Eq. 4
        return _finite(total)

    return Importance(frozenset(), score)


def scale() -> Importance:
    """|gamma| of the normalization behind a unit.

    Liu et al. 2017, "Network Slimming" (arXiv 1708.06519), whose training drives scales to zero
    with an L1 penalty; without such training the criterion is weak. Several scales of one unit are
    added. None for groups without a normalization that is still a node of the graph.
    """

    def score(group: Group, weights: Weights, _seen: Observations) -> Floats | None:
        scales = [
            np.abs(weight.array.astype(np.float64))[member.index].sum(axis=1)
            for member in group.members
            if (weight := weights.get(member.axis)) is not None and weight.role == Role.SCALE
        ]
        return _finite(np.sum(scales, axis=0)) if scales else None

    return Importance(frozenset(), score)


def apoz() -> Importance:
    """Share of a unit's values that are not zero: 1 - APoZ.

    Hu et al. 2016, "Network Trimming" (arXiv 1607.03250): APoZ_j is the average percentage of zeros
    among a_j over examples and positions; units with the highest APoZ go. Says nothing about
    activations that are never exactly zero (sigmoid, tanh, GELU).
    """

    def fraction(window: Window) -> Floats | None:
        return None if window.active is None else window.active / max(window.count, 1)

    return Importance(frozenset({Observable.ACTIVE}), _observed(fraction))


def mean_activation() -> Importance:
    """Mean of |a_j| over examples and positions."""

    def mean(window: Window) -> Floats | None:
        return None if window.absolute is None else window.absolute / max(window.count, 1)

    return Importance(frozenset({Observable.ABSOLUTE}), _observed(mean))


def dormancy() -> Importance:
    """Mean activation over that of the layer: what is near zero is dormant.

    Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (arXiv
    2302.12902), eq. 1: s_j = mean |a_j| / (mean over k of mean |a_k|), with 1e-9 added below as in
    the authors' code. Unlike `mean_activation`, scores of different layers compare.
    """
    plain = mean_activation()

    def score(group: Group, weights: Weights, seen: Observations) -> Floats | None:
        scores = plain.score(group, weights, seen)
        return None if scores is None else scores / (float(scores.mean()) + 1e-9)

    return Importance(plain.requires, score)


def taylor() -> Importance:
    """Mean squared change of the loss, to first order, that removing a unit causes, by batch.

    Molchanov et al. 2019 (arXiv 1906.10771), eq. 8 with gates: E[(g_j)^2], g_j = dL/d(factor at the
    unit) = sum of a_j dL/da_j. Where units end at several values, the mean over these.
    """

    def squared(window: Window) -> Floats | None:
        return None if window.gate_square is None else window.gate_square / max(window.batches, 1)

    return Importance(frozenset({Observable.GATE}), _observed(squared))


def taylor_output() -> Importance:
    """|mean of a dL/da| over batches, divided by its norm over the layer.

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient
    Inference" (arXiv 1611.06440), eqs. 7 and 8: the change of the loss, to first order, that
    removing a feature map causes, with the layer-wise L2 normalization that makes layers compare.
    The mean is over what an observed batch holds.
    """
    plain = snap()

    def score(group: Group, weights: Weights, seen: Observations) -> Floats | None:
        scores = plain.score(group, weights, seen)
        return None if scores is None else scores / (float(np.linalg.norm(scores)) or 1.0)

    return Importance(plain.requires, score)


def snap() -> Importance:
    """Change of the loss, to first order, that removing a unit causes: |sum over batches of g_j|.

    Verdenius et al. 2020, "Pruning via Iterative Ranking of Sensitivity Statistics" (arXiv
    2006.00896): structured SNIP; meant for the initialization, in several rounds.
    """

    def absolute(window: Window) -> Floats | None:
        return None if window.gate is None else np.abs(window.gate)

    return Importance(frozenset({Observable.GATE}), _observed(absolute))


def taylor_weight() -> Importance:
    """Squared first-order change of the loss, weight by weight: sum of (w dL/dw)^2, by batch.

    Molchanov et al. 2019 (arXiv 1906.10771), eq. 8, over the weights that make a unit (as for
    `magnitude`).
    """
    return Importance(frozenset({Observable.SALIENCY}), _of_makers("saliency_square"))


def _powers(array: Array, position: int, order: int) -> Floats:
    """(C,) sum of |w|^order over all axes but one, some slices at a time."""
    others = tuple(axis for axis in range(array.ndim) if axis != position)
    total = np.zeros(array.shape[position])
    step = max(_BLOCK * len(array) // max(array.size, 1), 1)
    for start in range(0, len(array), step):
        some = np.abs(array[start : start + step].astype(np.float64)) ** order
        if position == 0:
            total[start : start + step] = some.sum(axis=others)
        else:
            total += some.sum(axis=others)
    return total


def snip() -> Importance:
    """Connection sensitivity of the weights that make a unit: sum of |w dL/dw|.

    Lee et al. 2019, "SNIP" (arXiv 1810.02340), eq. 6, added up per unit; the paper removes single
    connections and divides by the sum over all.
    """
    return Importance(frozenset({Observable.SALIENCY}), _of_makers("saliency"))


def variance() -> Importance:
    """Variance of a_j over examples and positions: what a unit adds beyond a constant.

    The criterion behind dropping nearly constant units, E[a^2] - E[a]^2. A bias can stand
    in for a unit's mean but not for its variance.
    """

    def spread(window: Window) -> Floats | None:
        if window.total is None or window.square is None:
            return None
        count = max(window.count, 1)
        return np.maximum(window.square / count - (window.total / count) ** 2, 0.0)

    return Importance(frozenset({Observable.MEAN, Observable.VARIANCE}), _observed(spread))


def utility() -> Importance:
    """How much a unit moves, times what it is read with, over what makes it.

    The utility of continual back propagation, as in google/dopamine (labs/redo): mean |a - mean a|
    * sum |w_out| / sum |w_in|. We have the standard deviation in place of the mean deviation.
    """
    plain = variance()

    def score(group: Group, weights: Weights, seen: Observations) -> Floats | None:
        spread = plain.score(group, weights, seen)
        makers = _maker_axes(group, weights)
        made = _lengths(group, weights, makers)
        read = _lengths(group, weights, _reader_axes(group, weights))
        if spread is None or made is None or read is None:
            return None
        return _finite(np.sqrt(spread) * read / np.maximum(made, 1e-12))

    return Importance(plain.requires, score)


def _lengths(group: Group, weights: Weights, axes: list[Axis]) -> Floats | None:
    """(U,) sum of |w| over the parameters on `axes`; None without any."""
    rows = [
        _powers(weight.array, weight.position, 1)[group.member(axis).index].sum(axis=1)
        for axis, weight in ((axis, weights[axis]) for axis in axes)
    ]
    return np.sum(rows, axis=0) if rows else None


def _reader_axes(group: Group, weights: Weights) -> list[Axis]:
    """The parameters that are contracted with the units."""
    return [
        member.axis
        for member in group.members
        if (found := weights.get(member.axis)) is not None
        and not found.incoming
        and found.role == Role.WEIGHT
    ]


def _makers(group: Group, weights: Weights) -> Iterator[tuple[Index, int, Array]]:
    """Index (U, k), axis position and array of the parameters that make the units."""
    for axis in _maker_axes(group, weights):
        yield group.member(axis).index, weights[axis].position, weights[axis].array


def _maker_axes(group: Group, weights: Weights) -> list[Axis]:
    """The parameters that make the units: contracted ones before others, readers last."""
    held = [(member, weights[member.axis]) for member in group.members if member.axis in weights]
    contracted = (Role.WEIGHT, Role.TABLE)
    choices = (
        [pair for pair in held if pair[1].incoming and pair[1].role in contracted],
        [pair for pair in held if pair[1].incoming],
        held,
    )
    return [member.axis for member, _ in next((choice for choice in choices if choice), [])]


def _of_makers(field: str) -> Score:
    """A score from a statistic (C,) of the parameters that make the units."""

    def score(group: Group, weights: Weights, seen: Observations) -> Floats | None:
        total = np.zeros(group.size)
        axes = [axis for axis in _maker_axes(group, weights) if axis in seen]
        for axis in axes:
            found = getattr(seen[axis], field)
            if found is None:
                return None
            total += found[group.member(axis).index].sum(axis=1) / max(seen[axis].batches, 1)
        return _finite(total) if axes else None

    return score


def _observed(statistic: Callable[[Window], Floats | None]) -> Score:
    """A score from a statistic (C,) of every value at which units end."""

    def score(group: Group, _weights: Weights, seen: Observations) -> Floats | None:
        rows = []
        for axis in dict.fromkeys(consumer.axis for consumer in group.consumers):
            found = statistic(seen[axis]) if axis in seen else None
            if found is None:
                return None
            rows.append(found[group.member(axis).index].mean(axis=1))
        return _finite(np.mean(rows, axis=0)) if rows else None

    return score


def _finite(scores: Floats) -> Floats | None:
    """`scores`, unless numbers have overflowed: nothing can be said then."""
    return scores if np.isfinite(scores).all() else None


IMPORTANCES: Mapping[str, Callable[[], Importance]] = {
    "magnitude": magnitude,
    "magnitude-l1": lambda: magnitude(order=1),
    "fpgm": fpgm,
    "scale": scale,
    "apoz": apoz,
    "mean-activation": mean_activation,
    "variance": variance,
    "dormancy": dormancy,
    "utility": utility,
    "taylor": taylor,
    "taylor-output": taylor_output,
    "taylor-weight": taylor_weight,
    "snip": snip,
    "snap": snap,
    "random": random,
}
"""Every criterion by its name."""

WITHOUT_GRADIENTS: tuple[str, ...] = tuple(
    name for name, make in IMPORTANCES.items() if not any(o.is_gradient for o in make().requires)
)
"""The criteria that weights and forward passes suffice for: what `--importance` takes."""


def importance(name: str, *, seed: int = 0) -> Importance:
    """The criterion called `name`; `seed` is for the random one.

    Raises:
        ConfigError: no such name.
    """
    if name not in IMPORTANCES:
        raise ConfigError(
            f"--importance {name}: expected one of {', '.join(IMPORTANCES)}", importance=name
        )
    return random(seed=seed) if name == "random" else IMPORTANCES[name]()
