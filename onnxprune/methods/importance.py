"""How much each unit of a group matters: one number per unit, larger = keep.

An importance is a function `(group, weights, observations) -> scores (U,)`, with what it wants to
see of the group's consumers. Scores of different groups are on different scales; comparing them is
the business of `allocation`. None means that nothing can be said about a group, which is then left
alone: a group without BatchNormalization has no scale, integer activations have no statistics.

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
    "Importance",
    "Score",
    "apoz",
    "batch_norm_scale",
    "fpgm",
    "importance",
    "magnitude",
    "mean_activation",
    "random",
    "variance",
]

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
        total = np.zeros(group.size)
        held = list(_makers(group, weights))
        for index, position, array in held:
            magnitudes = np.abs(array.astype(np.float64)) ** order
            others = tuple(axis for axis in range(array.ndim) if axis != position)
            total += magnitudes.sum(axis=others)[index].sum(axis=1)
        return _finite(np.sqrt(total) if order == 2 else total) if held else None

    return Importance(frozenset(), score)


def fpgm() -> Importance:
    """Distance to the other units of the group: what has many neighbours can be replaced.

    He et al. 2019 (arXiv 1811.00250), eq. 4: s_j = sum_k |W_j - W_k|_2 over the filters of a layer.
    Weights as for `magnitude`; those of several producers are put side by side.
    """

    def score(group: Group, weights: Weights, _seen: Observations) -> Floats | None:
        gram = np.zeros((group.size, group.size))
        held = list(_makers(group, weights))
        for index, position, array in held:
            rows = np.moveaxis(array, position, 0)[index].reshape(group.size, -1)
            rows = rows.astype(np.float64)
            gram += rows @ rows.T
        square = np.diag(gram)
        distance = np.sqrt(np.maximum(square[:, None] + square[None, :] - 2 * gram, 0.0))  # Eq. 4
        return _finite(distance.sum(axis=1)) if held else None

    return Importance(frozenset(), score)


def batch_norm_scale() -> Importance:
    """|gamma| of the BatchNormalization behind a unit.

    Liu et al. 2017, "Network Slimming" (arXiv 1708.06519), whose training drives scales to zero
    with an L1 penalty; without such training the criterion is weak. Several scales of one unit are
    added. None for groups without a BatchNormalization that is still a node of the graph.
    """

    def score(group: Group, weights: Weights, _seen: Observations) -> Floats | None:
        scales = [
            np.abs(weight.array.astype(np.float64))[member.index].sum(axis=1)
            for member in group.members
            if (weight := weights.get(member.axis)) is not None
            and (weight.op_type, weight.slot) == ("BatchNormalization", 1)
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


def _makers(group: Group, weights: Weights) -> Iterator[tuple[Index, int, Array]]:
    """Index (U, k), axis position and array of the parameters that make the units."""
    held = [(member, weights[member.axis]) for member in group.members if member.axis in weights]
    contracted = (Role.WEIGHT, Role.TABLE)
    choices = (
        [pair for pair in held if pair[1].incoming and pair[1].role in contracted],
        [pair for pair in held if pair[1].incoming],
        held,
    )
    for member, weight in next((choice for choice in choices if choice), []):
        yield member.index, member.axis.position, weight.array


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
    "batch-norm-scale": batch_norm_scale,
    "apoz": apoz,
    "mean-activation": mean_activation,
    "variance": variance,
    "random": random,
}
"""What `--importance` takes."""


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
