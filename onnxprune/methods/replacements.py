"""The best replacement of every unit, over all kinds: a constant, another unit, or nothing.

`replacements` is what apoptosis asks at a check. Constants and duplicates by weights come from
`candidates`, duplicates by data from `followers`, units of recurrent nodes from `inside`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.base import Axis, Floats, Fold, Group, Mask, Merge, Observable, Observations
from onnxprune.graph.couplings import views
from onnxprune.methods.candidates import Folding, Merging, Reader, foldings, mergings, readers
from onnxprune.methods.compose import Moment
from onnxprune.methods.followers import either, followers, observable
from onnxprune.methods.inside import drops, seen_together
from onnxprune.methods.lossless import REQUIRES, observed_axes

__all__ = ["Replacements", "replacements"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Replacements:
    """The best replacement of every unit of one group.

    Attributes:
        group: the group.
        fold: by constants; without values where nothing can take one over.
        merge: by other units; None where there is none.
        constant: (U,) exact as a constant: on the sample, and in training since the last check.
        merged: (U,) whether the better replacement is another unit.
        error, bound: (U,) of the better replacement; exact ones have none.
    """

    group: Group
    fold: Folding
    merge: Merging | None
    constant: Mask
    merged: Mask
    error: Floats
    bound: Floats

    @classmethod
    def of(
        cls, group: Group, fold: Folding, merge: Merging | None, seen_constant: Mask
    ) -> Replacements:
        """Compare both replacements of every unit."""
        exact = fold.exact & seen_constant
        folded = np.maximum(fold.error, 1e-9)
        error, bound = np.where(exact, 0.0, folded), np.where(exact, 0.0, fold.bound)
        merged = np.zeros(len(exact), np.bool_)
        if merge is not None:
            other = np.where(merge.exact, 0.0, merge.error)
            merged = ~exact & (other < folded)
            error, bound = np.minimum(error, other), np.where(merged, merge.bound, bound)
        return cls(
            group=group,
            fold=fold,
            merge=merge,
            constant=exact,
            merged=merged,
            error=error,
            bound=bound,
        )

    @property
    def exact(self) -> Mask:
        """(U,) whose replacement changes nothing."""
        return self.constant if self.merge is None else self.constant | self.merge.exact

    def exchange(self, unit: int) -> Fold | Merge | None:
        """What stands for a unit that goes; None for plain zero."""
        if self.merged[unit]:
            assert self.merge is not None
            return Merge(
                group=self.group.name,
                victim=unit,
                survivor=int(self.merge.survivor[unit]),
                scale=float(self.merge.scale[unit]),
                offset=float(self.merge.offset[unit]),
            )
        if not self.fold.values:
            return None
        values = {axis: means[unit] for axis, means in self.fold.values.items()}
        return Fold(group=self.group.name, unit=unit, values=values)


def replacements(
    moment: Moment,
    low: Mapping[Axis, Floats],
    high: Mapping[Axis, Floats],
    *,
    correlation: float = 1.0,
) -> Iterator[Replacements]:
    """Of the units of every group whose consumers can take over, or that may be zero.

    Args:
        moment: of the check.
        low: per consumer axis, the smallest values seen in training since the last check.
        high: the largest ones.
        correlation: from which on units that follow each other on the sample are duplicates;
            1 for none.
    """
    groups = moment.analysis.groups
    seen = moment.probe(observed_axes(moment.model, moment.analysis), REQUIRES)
    by_key = {
        view.key: view
        for view in views(moment.model, moment.analysis.shapes, moment.analysis.known)
    }
    parts: dict[str, list[Reader]] = {}
    for group in groups:
        own = readers(group, by_key, moment.analysis, seen, inside=True)
        if own is not None:
            parts[group.name] = own
    pairs = _pairs(moment, groups, parts) if correlation < 1 else {}
    for group in groups:
        own = parts.get(group.name)
        if own is None:
            continue
        steady = _constant_in_training(group, low, high)
        if group.inner:
            fold = drops(group, own, by_key, seen)
            if fold is not None and not seen_together(moment.model, moment.analysis, group):
                yield Replacements.of(group, fold, None, steady)
            continue
        merge = mergings(moment.model, moment.analysis, group, own, seen)
        if all(part.consumer.axis in pairs for part in own):
            merge = either(merge, followers(own, pairs, correlation))
        yield Replacements.of(group, foldings(own, seen), merge, steady)


def _pairs(
    moment: Moment, groups: Sequence[Group], parts: Mapping[str, Sequence[Reader]]
) -> Observations:
    """What `followers` wants to see, where consumers can take over."""
    free = [part for group in groups if not group.inner for part in parts.get(group.name, ())]
    axes = [part.consumer.axis for part in free]
    sizes = [moment.analysis.shapes[axis.value][axis.position] for axis in axes]
    return moment.probe(sorted(set(observable(free, sizes))), REQUIRES | {Observable.PAIRS})


def _constant_in_training(
    group: Group, low: Mapping[Axis, Floats], high: Mapping[Axis, Floats]
) -> Mask:
    """(U,) whether all consumers were observed since the last check, and the unit stood still."""
    result = np.ones(group.size, np.bool_)
    for consumer in group.consumers:
        if consumer.axis not in low:
            return np.zeros(group.size, np.bool_)
        index = group.member(consumer.axis).index
        result &= (low[consumer.axis][index] == high[consumer.axis][index]).all(axis=1)
    return result
