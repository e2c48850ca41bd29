"""Adaptive neuron apoptosis: redundant units leave while the network trains.

Reconstructed. Siegel, Daily and Vishnu, "Adaptive Neuron Apoptosis for Accelerating Deep Learning
on Large Scale Systems", IEEE BigData 2016 (arXiv 1610.00790), remove neurons that do not contribute
to learning, during training, for several neuron types, with bounded loss of accuracy and an
adaptive schedule. The redundancy test, thresholds and schedule of the paper were not available to
us; the ones here follow from first principles and are ours:

* A unit is redundant when it is constant at all its consumers (dead or saturated, whatever the
  activation), c_j: its contribution v_j c_j goes into their biases. Or when it is parallel to
  another one, u_j = c u_i: its outgoing weights are added to the other's, v_i += c v_j.
* Both are exact when they hold exactly. Otherwise the error of a removal is known (`candidates`),
  and a check removes the cheapest units of each group until their errors, added in squares, reach
  the budget epsilon.
* Adaptive: a check compares the smoothed loss with the lowest one of all checks so far. If it has
  not risen by more than `tolerance`, epsilon grows by `growth`; else it shrinks by as much and only
  exact removals follow until the network has recovered. (Comparing with the last check alone would
  let the loss climb in small steps.)
* A check that finds nothing to remove doubles the time to the next one.
* With a target, each check removes at least what the run's schedule asks for, cheapest error per
  parameter first over all groups; once the target is reached, only exact removals follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.base import (
    Axis,
    Floats,
    Fold,
    Group,
    Index,
    Mask,
    Merge,
    Observable,
    Observations,
    Plan,
)
from onnxprune.graph import cost
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.graph.traces import trace
from onnxprune.methods.candidates import Folding, Merging, foldings, mergings, readers
from onnxprune.methods.compose import RECOVERY, Course, Moment, Pruner, counter
from onnxprune.methods.options import check_range

__all__ = ["apoptosis"]

_OBSERVED = frozenset({Observable.RANGE, Observable.MEAN, Observable.VARIANCE})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class State:
    """What apoptosis remembers between steps.

    Attributes:
        epsilon: allowed relative change of a consumer's pre-activation per check and group.
        interval: steps between checks, as long as they remove something.
        wait: steps from the last check to the next: the interval, doubled by every check that
            found nothing to remove.
        next: step of the next check.
        reference: lowest smoothed loss at any check; NaN before the first.
        removed: whether anything went inexactly since epsilon was last changed.
        low, high: per consumer axis, the range seen in training since the last check.
    """

    epsilon: float
    interval: int
    wait: int
    next: int
    reference: float = math.nan
    removed: bool = False
    low: Mapping[Axis, Floats] = field(default_factory=dict)
    high: Mapping[Axis, Floats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Options:
    """The best replacement of every unit of one group: a constant or another unit."""

    group: Group
    fold: Folding
    merge: Merging | None
    exact: Mask  # (U,) constant on the sample, and in training since the last check
    merged: Mask  # (U,) whether the better replacement is another unit
    error: Floats  # (U,) of the better replacement; exact ones have none
    bound: Floats  # (U,) largest relative change on the sample by the better replacement

    @classmethod
    def of(
        cls, group: Group, fold: Folding, merge: Merging | None, seen_constant: Mask
    ) -> _Options:
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
            exact=exact,
            merged=merged,
            error=error,
            bound=bound,
        )


def apoptosis(
    *,
    epsilon: float = 0.02,
    growth: float = 1.5,
    largest: float = 0.15,
    tolerance: float = 0.05,
    slack: float = 0.01,
    most: float = 0.5,
    until: float = 1 - RECOVERY,
) -> Pruner:
    """Adaptive neuron apoptosis (reconstructed; see the module).

    Args:
        epsilon: first budget per check and group, relative to the consumers' pre-activations, > 0.
        growth: factor by which epsilon adapts, > 1.
        largest: what epsilon may grow to, > 0.
        tolerance: relative rise of the smoothed loss that still counts as none, >= 0.
        slack: rise of the loss, as a share of the best constant prediction's, that still counts as
            none, >= 0.
        most: largest share of a group's units that one check removes, in (0, 1].
        until: share of the run after which only exact removals follow, in (0, 1]; where a target
            is missed still (biases that took over constants count, too), those that it asks for.

    Raises:
        ConfigError: an impossible option.
    """
    check_range("(0, inf)", epsilon=epsilon, largest=largest)
    check_range("(1, inf)", growth=growth)
    check_range("[0, inf)", tolerance=tolerance, slack=slack)
    check_range("(0, 1]", most=most, until=until)

    def init(_analysis: Analysis, course: Course) -> State:
        every = course.interval
        return State(epsilon=epsilon, interval=every, wait=every, next=every)

    def due(state: State, step: int) -> bool:
        return step >= state.next

    def decide(state: State, moment: Moment) -> tuple[State, Plan | None]:
        allowed = state.reference * (1 + tolerance) + slack * moment.trivial
        risen = moment.loss > allowed
        adapted = _adapt(state, moment, risen=risen, growth=growth, largest=largest)
        options = list(_options(state, moment))
        deadline = int(until * moment.steps)
        early = moment.step <= deadline
        remaining = counter(moment)
        reached = moment.limit is not None and remaining({}) <= moment.limit.final
        removed = _exact(options)
        if early and not reached and not risen:
            cheap = _within_budget(options, removed, adapted.epsilon, most)
            removed = cheap if _leaves_enough(options, cheap, moment, remaining) else removed
        if moment.limit is not None and not reached:
            allowance = moment.limit.now if moment.step < deadline else moment.limit.final
            removed = _to_limit(options, removed, moment, remaining, allowance)
        inexact = any(
            np.any(gone & ~_is_exact(o)) for o, gone in zip(options, removed, strict=True)
        )
        plan = _plan(options, removed)
        wait = state.interval if plan is not None or (risen and early) else 2 * state.wait
        following = moment.step + wait
        if moment.limit is not None and not reached and moment.step < deadline:
            following = min(following, deadline)  # by when the target should be reached
        after = replace(adapted, removed=inexact, wait=wait, next=following)
        return replace(after, low={}, high={}), plan

    return Pruner(requires=_OBSERVED, init=init, observe=_observe, decide=decide, due=due)


def _observe(state: State, observations: Observations) -> State:
    """Widen the ranges seen since the last check."""
    low, high = dict(state.low), dict(state.high)
    for axis, window in observations.items():
        if window.low is not None and window.high is not None:
            low[axis] = np.minimum(low.get(axis, window.low), window.low)
            high[axis] = np.maximum(high.get(axis, window.high), window.high)
    return replace(state, low=low, high=high)


def _adapt(state: State, moment: Moment, *, risen: bool, growth: float, largest: float) -> State:
    """Grow or shrink epsilon by what removals did to the loss; remember the lowest loss."""
    epsilon = state.epsilon
    if risen and state.removed:
        epsilon /= growth
    elif not risen:
        epsilon = min(epsilon * growth, largest)
    return replace(
        state,
        epsilon=epsilon,
        reference=float(np.fmin(state.reference, moment.loss)),
    )


def _options(state: State, moment: Moment) -> Iterator[_Options]:
    """Replacements for the units of every group whose consumers can take over."""
    groups = moment.analysis.groups
    axes = {consumer.axis for group in groups for consumer in group.consumers}
    for group in groups:
        found = trace(moment.model, moment.analysis, group)
        axes.update(found.inputs if found is not None else ())
    seen = moment.probe(sorted(axes), _OBSERVED)
    by_key = {
        view.key: view
        for view in views(moment.model, moment.analysis.shapes, moment.analysis.known)
    }
    for group in groups:
        parts = readers(group, by_key, moment.analysis, seen)
        if parts is not None:
            yield _Options.of(
                group=group,
                fold=foldings(parts, seen),
                merge=mergings(moment.model, moment.analysis, group, parts, seen),
                seen_constant=_constant_in_training(state, group),
            )


def _constant_in_training(state: State, group: Group) -> Mask:
    """(U,) whether all consumers were observed since the last check, and the unit stood still."""
    result = np.ones(group.size, np.bool_)
    for consumer in group.consumers:
        if consumer.axis not in state.low:
            return np.zeros(group.size, np.bool_)
        index = group.member(consumer.axis).index
        low, high = state.low[consumer.axis][index], state.high[consumer.axis][index]
        result &= (low == high).all(axis=1)
    return result


def _is_exact(option: _Options) -> Mask:
    exact = option.exact
    return exact if option.merge is None else exact | option.merge.exact


def _exact(options: list[_Options]) -> list[Mask]:
    """Constant units; of exact copies all but those others are merged into."""
    removed = []
    for option in options:
        gone = option.exact.copy()
        if option.merge is not None:
            gone = _add(option, gone, np.flatnonzero(option.merge.exact & ~gone))
        removed.append(_spare_last(option, gone))
    return removed


def _spare_last(option: _Options, gone: Mask) -> Mask:
    if gone.all():
        gone[int(np.argmax(option.fold.bound))] = False
    return gone


def _survivors(option: _Options, gone: Mask) -> set[int]:
    """Units that removed ones are merged into."""
    if option.merge is None:
        return set()
    return set(option.merge.survivor[gone & option.merged].tolist())


def _add(option: _Options, gone: Mask, units: Index) -> Mask:
    """Remove `units` one by one, as far as their replacements are still there."""
    gone = gone.copy()
    survivors, left = _survivors(option, gone), int(np.count_nonzero(~gone))
    for unit in map(int, units):
        if left <= 1:
            break
        if gone[unit] or unit in survivors:
            continue
        if option.merged[unit]:
            assert option.merge is not None
            survivor = int(option.merge.survivor[unit])
            if gone[survivor] or survivor in survivors:
                continue
            survivors.add(survivor)
        gone[unit] = True
        left -= 1
    return gone


def _within_budget(
    options: list[_Options], removed: list[Mask], epsilon: float, most: float
) -> list[Mask]:
    """Per group the cheapest units, while their errors, added in squares, stay below epsilon."""
    result = []
    for option, gone in zip(options, removed, strict=True):
        order = np.argsort(option.error, kind="stable")
        fixed = gone | np.isin(np.arange(len(gone)), list(_survivors(option, gone)))
        order = order[~fixed[order]]
        total = np.sqrt(np.cumsum(option.error[order] ** 2))
        room = max(int(most * option.group.size) - int(gone.sum()), 0)
        result.append(_add(option, gone, order[total <= epsilon][:room]))
    return result


def _to_limit(
    options: list[_Options],
    removed: list[Mask],
    moment: Moment,
    remaining: cost.Remaining,
    allowance: int,
) -> list[Mask]:
    """The cheapest units over all groups, by squared error per parameter, until few enough remain.

    Args:
        options: of every group.
        removed: what goes anyway.
        moment: the model and its groups.
        remaining: what counts the limit's parameters or MACs.
        allowance: how many parameters or MACs may remain.
    """
    weights = cost.unit_parameters(moment.model, moment.analysis)
    ranked = sorted(
        (float(error) ** 2 / max(weights[option.group.name], 1.0), number, unit)
        for number, option in enumerate(options)
        for unit, error in enumerate(option.error)
        if not removed[number][unit]
    )
    low, high = 0, len(ranked)
    while low < high:  # the fewest units that reach the limit
        middle = (low + high) // 2
        trial = _with_first(options, removed, ranked[:middle])
        if remaining(_masks(options, trial)) <= allowance:
            high = middle
        else:
            low = middle + 1
    return _with_first(options, removed, ranked[:low])


def _with_first(
    options: list[_Options], removed: list[Mask], ranked: list[tuple[float, int, int]]
) -> list[Mask]:
    units: list[list[int]] = [[] for _ in options]
    for _, number, unit in ranked:
        units[number].append(unit)
    return [
        _add(option, gone, np.array(more, np.int64))
        for option, gone, more in zip(options, removed, units, strict=True)
    ]


def _masks(options: list[_Options], removed: list[Mask]) -> dict[str, Mask]:
    return {o.group.name: ~gone for o, gone in zip(options, removed, strict=True)}


def _leaves_enough(
    options: list[_Options], removed: list[Mask], moment: Moment, remaining: cost.Remaining
) -> bool:
    """Whether a removal that nothing but its low cost asks for stays above the target."""
    if moment.limit is None:
        return True
    return remaining(_masks(options, removed)) >= moment.limit.final


def _plan(options: list[_Options], removed: list[Mask]) -> Plan | None:
    if not any(gone.any() for gone in removed):
        return None
    folds: list[Fold] = []
    merges: list[Merge] = []
    exact: dict[str, Mask] = {}
    for option, gone in zip(options, removed, strict=True):
        exact[option.group.name] = gone & _is_exact(option)
        for unit in map(int, np.flatnonzero(gone)):
            if option.merged[unit]:
                merges.append(_merge(option, unit))
            else:
                folds.append(_fold(option, unit))
    keep = {name: mask for name, mask in _masks(options, removed).items() if not mask.all()}
    changes = [o.error[gone] for o, gone in zip(options, removed, strict=True)]
    bounds = [o.bound[gone] for o, gone in zip(options, removed, strict=True)]
    return Plan(
        keep=keep,
        folds=tuple(folds),
        merges=tuple(merges),
        exact=exact,
        change=float(np.sqrt((np.concatenate(changes) ** 2).sum())),
        bound=float(np.max(np.concatenate(bounds))),
    )


def _merge(option: _Options, unit: int) -> Merge:
    assert option.merge is not None
    return Merge(
        group=option.group.name,
        victim=unit,
        survivor=int(option.merge.survivor[unit]),
        scale=float(option.merge.scale[unit]),
        offset=float(option.merge.offset[unit]),
    )


def _fold(option: _Options, unit: int) -> Fold:
    values = {axis: means[unit] for axis, means in option.fold.values.items()}
    return Fold(group=option.group.name, unit=unit, values=values)
