"""Correlation merging: of two units that move together, one takes the other's place.

Reconstructed after the idea of Babaeizadeh, Smaragdis and Campbell, "NoiseOut" (arXiv 1611.06211),
without its noise outputs: unit j is about alpha * a_i + beta by least squares over a sample of
activations a, so that j can go when its outgoing weights, times alpha, are added to those of i, and
beta times them to the consumers' biases. With S_ij the covariance,

    alpha = S_ij / S_ii,  beta = mean_j - alpha mean_i,  error_j^2 = |v_j|^2 S_jj (1 - rho_ij^2) / P

where v_j are the outgoing weights and P is the variance of the consumer's pre-activation (as in
`candidates`). A unit that nothing follows is replaced by its mean: rho = 0. Where a consumer pads
with zeros, beta would be wrong at the border, so that moments are taken about zero and beta is 0.

Units are ordered by elimination: the cheapest goes first, after which it can stand in for nobody,
and so on. Unlike in `apoptosis`, any two units may be compared, whatever makes them; what they have
in common on the sample need not hold on other data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.base import Floats, Fold, Group, Mask, Merge, Observable, Observations, Plan
from onnxprune.graph.balance import completed_keep
from onnxprune.graph.couplings import views
from onnxprune.graph.ends import consumer_axes
from onnxprune.graph.weights import weights
from onnxprune.methods.allocation import CHOICES, allocate, settled_allocation
from onnxprune.methods.candidates import Folding, Reader, foldings, readers, rounding
from onnxprune.methods.compose import Moment, Pruner, counter
from onnxprune.methods.gradual import scheduled
from onnxprune.methods.importance import magnitude
from onnxprune.methods.options import check_word

__all__ = ["correlation"]

_OBSERVED = frozenset({Observable.RANGE, Observable.MEAN, Observable.VARIANCE, Observable.PAIRS})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Stand:
    """What could stand in for the units of one group.

    Attributes:
        group: whose units.
        fold: each replaced by its mean.
        error: (U, U) squared relative error of unit j (row) replaced by i (column); infinite for
            i = j, and for units that never move, or so little beside their mean that rounding could
            be all there is.
        scale, offset: (U, U) alpha and beta.
    """

    group: Group
    fold: Folding
    error: Floats
    scale: Floats
    offset: Floats

    @property
    def alone(self) -> Floats:
        """(U,) squared relative error of the mean."""
        return self.fold.error**2


def correlation(
    *,
    allocation: str = "auto",
    adaptive: bool = False,
    tolerance: float = 0.05,
) -> Pruner:
    """Merge correlated units, on schedule, until the target is met (reconstructed; see the module).

    Args:
        allocation: one of `allocation.CHOICES`.
        adaptive: as for `gradual`.
        tolerance: likewise.

    Raises:
        ConfigError: an impossible option.
    """
    check_word(CHOICES, allocation=allocation)

    def remove(moment: Moment, _seen: Observations, allowance: int) -> Plan | None:
        stands = _stands(moment)
        scores = {stand.group.name: _elimination(stand) for stand in stands}
        scores = {**_others(moment, scores), **scores}
        if not scores:
            return None

        def complete(keep: Mapping[str, Mask]) -> dict[str, Mask]:
            return completed_keep(moment.analysis, keep, worth=scores, round_to=moment.round_to)

        kind = None if moment.limit is None else moment.limit.kind
        found = allocate(
            moment.analysis.groups,
            scores,
            allowance,
            counter(moment),
            allocation=settled_allocation(allocation, kind),
            complete=complete,
        )
        plan = Plan(keep=found.keep)
        if not plan.removed():
            return None
        folds: list[Fold] = []
        merges: list[Merge] = []
        for stand in stands:
            mask = found.keep.get(stand.group.name)
            if mask is not None and not mask.all():
                more, merged = _exchanged(stand, mask)
                folds += more
                merges += merged
        return Plan(keep=found.keep, folds=tuple(folds), merges=tuple(merges))

    return scheduled(remove, adaptive=adaptive, tolerance=tolerance)


def _stands(moment: Moment) -> list[_Stand]:
    """For every group whose consumers can take over what a unit contributes."""
    analysis = moment.analysis
    seen = moment.probe(consumer_axes(analysis.groups), _OBSERVED)
    by_key = {view.key: view for view in views(moment.model, analysis.shapes, analysis.known)}
    found = []
    for group in analysis.groups:
        parts = readers(group, by_key, analysis, seen)
        if parts is not None:
            found.append(_stand(group, parts, seen))
    return found


def _stand(group: Group, parts: list[Reader], seen: Observations) -> _Stand:
    padded = any(part.padded for part in parts)
    moments, means = np.zeros((group.size, group.size)), np.zeros(group.size)
    strength, noise, positions = np.zeros(group.size), np.zeros(group.size), 0
    for part in parts:
        window = seen[part.consumer.axis]
        assert window.pairs is not None
        assert window.total is not None
        count = max(window.count, 1)
        for place in range(part.index.shape[1]):
            index = part.index[:, place]
            mean = window.total[index] / count
            own = window.pairs[np.ix_(index, index)] / count
            moments += own if padded else own - np.outer(mean, mean)
            noise += 0.0 if padded else rounding(window, np.diag(own))
            means += mean
            positions += 1
        strength += (part.strength**2).sum(axis=1) / (part.power or 1.0)
    power = np.maximum(np.diag(moments), 0.0)
    moves = power > np.maximum(noise, 1e-12 * max(float(power.max(initial=0.0)), 1e-30))
    scale = moments / np.where(moves, power, 1.0)[None, :]
    rest = np.maximum(power[:, None] - scale * moments, 0.0)
    error = strength[:, None] * rest / positions
    error[:, ~moves] = error[~moves] = np.inf
    np.fill_diagonal(error, np.inf)
    means = means / positions
    offset = np.zeros_like(scale) if padded else means[:, None] - scale * means[None, :]
    return _Stand(group=group, fold=foldings(parts, seen), error=error, scale=scale, offset=offset)


def _elimination(stand: _Stand) -> Floats:
    """(U,) what a unit costs when all that are cheaper have gone; the last one is the dearest."""
    error, alone = stand.error.copy(), stand.alone
    count = len(alone)
    best, source = error.min(axis=1), error.argmin(axis=1)
    price = np.minimum(best, alone)
    there = np.ones(count, np.bool_)
    result, highest = np.zeros(count), 0.0
    for _ in range(count):
        unit = int(np.argmin(np.where(there, price, np.inf)))
        highest = max(highest, float(price[unit]))
        result[unit] = highest
        there[unit] = False
        error[:, unit] = np.inf
        for other in np.flatnonzero(there & (source == unit)):
            source[other] = int(np.argmin(error[other]))
            price[other] = min(float(error[other, source[other]]), float(alone[other]))
        # Equal prices keep the order in which units went.
        highest = np.nextafter(highest, np.inf)
    return result


def _exchanged(stand: _Stand, keep: Mask) -> tuple[list[Fold], list[Merge]]:
    """Stand-ins for the units that go: each survivor for one of them, the cheapest pairs first."""
    name, alone = stand.group.name, stand.alone
    gone, kept = np.flatnonzero(~keep), np.flatnonzero(keep)
    error = stand.error[np.ix_(gone, kept)]
    better = error < alone[gone][:, None]
    pairs = np.argwhere(better)[np.argsort(error[better], kind="stable")]
    folds: list[Fold] = []
    merges: list[Merge] = []
    replaced, used = set[int](), set[int]()
    for row, place in pairs:
        unit, survivor = int(gone[row]), int(kept[place])
        if unit not in replaced and survivor not in used:
            replaced.add(unit)
            used.add(survivor)
            merges.append(
                Merge(
                    group=name,
                    victim=unit,
                    survivor=survivor,
                    scale=float(stand.scale[unit, survivor]),
                    offset=float(stand.offset[unit, survivor]),
                )
            )
    for unit in map(int, gone):
        if unit not in replaced:
            values = {axis: means[unit] for axis, means in stand.fold.values.items()}
            folds.append(Fold(group=name, unit=unit, values=values))
    return folds, merges


def _others(moment: Moment, known: Mapping[str, Floats]) -> dict[str, Floats]:
    """Groups whose consumers can take over nothing lose their smallest units, without exchange."""
    groups = [group for group in moment.analysis.groups if group.name not in known]
    held, criterion = weights(moment.model, moment.analysis) if groups else {}, magnitude()
    found = {group.name: criterion.score(group, held, {}) for group in groups}
    return {name: score for name, score in found.items() if score is not None}
