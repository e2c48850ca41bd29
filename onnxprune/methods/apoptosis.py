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
  and a check removes the cheapest units until their errors, added in squares, reach the budget
  epsilon, of which each of G groups gets epsilon / sqrt(G): changes add up along a deep network.
  Where asked, it stops when their bounds over all groups add up to tau.
* Units of every type: what is parallel follows from the activation (rectifiers, Tanh, Sigmoid,
  smooth ones such as GELU and SiLU as far as their slope is bounded; BatchNormalization counts as
  folded). Behind any other composition, `followers` finds duplicates in the data. A unit of a
  recurrent node can only become zero: nothing inside takes over a constant or a duplicate.
* Adaptive: a check compares the smoothed loss with the lowest one of all checks so far. If it has
  not risen by more than `tolerance`, epsilon grows by `growth`; else it shrinks by as much and only
  exact removals follow until the network has recovered. (Comparing with the last check alone would
  let the loss climb in small steps.) While the loss is that of the best constant prediction,
  nothing has been learned that a removal could be seen to harm: only exact ones then.
* A check that finds nothing to remove, though epsilon is as large as it gets, doubles the time to
  the next one.
* With a target, each check removes at least what the run's schedule asks for, cheapest error per
  parameter first over all groups; once the target is reached, only exact removals follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.base import Axis, Floats, Fold, Index, Mask, Merge, Observations, Plan
from onnxprune.graph import cost
from onnxprune.graph.groups import Analysis
from onnxprune.methods.compose import RECOVERY, Course, Moment, Pruner, counter
from onnxprune.methods.lossless import REQUIRES
from onnxprune.methods.options import check_range
from onnxprune.methods.replacements import Replacements, replacements

__all__ = ["apoptosis"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class State:
    """What apoptosis remembers between steps.

    Attributes:
        epsilon: allowed relative change of the consumers' pre-activations per check.
        interval: steps between checks, as long as they remove something.
        wait: steps from the last check to the next: the interval, doubled by every check that
            found nothing to remove with an epsilon that stays.
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


def apoptosis(
    *,
    epsilon: float = 0.02,
    growth: float = 1.5,
    largest: float = 0.2,
    tolerance: float = 0.05,
    slack: float = 0.01,
    most: float = 0.5,
    until: float = 1 - RECOVERY,
    correlation: float = 1.0,
    tau: float = math.inf,
) -> Pruner:
    """Adaptive neuron apoptosis (reconstructed; see the module).

    Args:
        epsilon: what the budget per check first grows from, relative to what varies of the
            consumers' pre-activations, > 0.
        growth: factor by which epsilon adapts, > 1.
        largest: what epsilon may grow to, > 0.
        tolerance: relative rise of the smoothed loss that still counts as none, >= 0.
        slack: rise of the loss, as a share of the best constant prediction's, that still counts as
            none, and distance from that loss within which nothing counts as learned, >= 0.
        most: largest share of a group's units that one check removes, in (0, 1].
        until: share of the run after which only exact removals follow, in (0, 1]; where a target
            is missed still (biases that took over constants count, too), those that it asks for.
        correlation: from which on a unit that follows another one on the sample counts as its
            duplicate, in (0, 1]; 1 leaves duplicates to the weights.
        tau: what the bounds of all inexact removals of a check may add up to, > 0; those that a
            target asks for are not held to it.

    Raises:
        ConfigError: an impossible option.
    """
    check_range("(0, inf)", epsilon=epsilon, largest=largest)
    check_range("(1, inf)", growth=growth)
    check_range("[0, inf)", tolerance=tolerance, slack=slack)
    check_range("(0, 1]", most=most, until=until, correlation=correlation)
    check_range("(0, inf]", tau=tau)

    def init(_analysis: Analysis, course: Course) -> State:
        every = course.interval
        return State(epsilon=epsilon, interval=every, wait=every, next=every)

    def decide(state: State, moment: Moment) -> tuple[State, Plan | None]:
        allowed = state.reference * (1 + tolerance) + slack * moment.trivial
        risen = moment.loss > allowed
        untaught = abs(moment.loss - moment.trivial) < slack * moment.trivial
        waits = risen or untaught
        unjudged = untaught and not risen
        adapted = state if unjudged else _adapt(state, moment, risen, growth, largest)
        options = list(replacements(moment, state.low, state.high, correlation=correlation))
        deadline = int(until * moment.steps)
        early = moment.step <= deadline
        remaining = counter(moment)
        reached = moment.limit is not None and remaining({}) <= moment.limit.final
        removed = _exact(options)
        if early and not reached and not waits:
            cheap = _within_budget(options, removed, adapted.epsilon, most)
            cheap = _within_bound(options, removed, cheap, tau)
            removed = cheap if _leaves_enough(options, cheap, moment, remaining) else removed
        if moment.limit is not None and not reached:
            allowance = moment.limit.now if moment.step < deadline else moment.limit.final
            removed = _to_limit(options, removed, moment, remaining, allowance)
        inexact = any(np.any(gone & ~o.exact) for o, gone in zip(options, removed, strict=True))
        plan = _plan(options, removed)
        settled = adapted.epsilon == state.epsilon and not (early and waits)
        wait = 2 * state.wait if plan is None and settled else state.interval
        following = moment.step + wait
        if moment.limit is not None and not reached and moment.step < deadline:
            following = min(following, deadline)  # by when the target should be reached
        after = replace(adapted, removed=inexact, wait=wait, next=following)
        return replace(after, low={}, high={}), plan

    return Pruner(init=init, decide=decide, requires=REQUIRES, observe=_observe)


def _observe(state: State, observations: Observations) -> State:
    """Widen the ranges seen since the last check."""
    low, high = dict(state.low), dict(state.high)
    for axis, window in observations.items():
        if window.low is not None and window.high is not None:
            low[axis] = np.minimum(low.get(axis, window.low), window.low)
            high[axis] = np.maximum(high.get(axis, window.high), window.high)
    return replace(state, low=low, high=high)


def _adapt(state: State, moment: Moment, risen: bool, growth: float, largest: float) -> State:
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


def _exact(options: Sequence[Replacements]) -> list[Mask]:
    """Constant units; of exact copies all but those others are merged into."""
    removed = []
    for option in options:
        gone = option.constant.copy()
        if option.merge is not None:
            gone = _add(option, gone, np.flatnonzero(option.merge.exact & ~gone))
        removed.append(_spare_last(option, gone))
    return removed


def _spare_last(option: Replacements, gone: Mask) -> Mask:
    if gone.all():
        gone[int(np.argmax(option.fold.bound))] = False
    return gone


def _survivors(option: Replacements, gone: Mask) -> set[int]:
    """Units that removed ones are merged into."""
    if option.merge is None:
        return set()
    return set(option.merge.survivor[gone & option.merged].tolist())


def _add(option: Replacements, gone: Mask, units: Index) -> Mask:
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
    options: Sequence[Replacements], removed: Sequence[Mask], epsilon: float, most: float
) -> list[Mask]:
    """The cheapest units of each group, while errors stay below its part of epsilon."""
    result = []
    part = epsilon / math.sqrt(max(len(options), 1))
    for option, gone in zip(options, removed, strict=True):
        order = np.argsort(option.error, kind="stable")
        fixed = gone | np.isin(np.arange(len(gone)), list(_survivors(option, gone)))
        order = order[~fixed[order]]
        total = np.sqrt(np.cumsum(option.error[order] ** 2))
        room = max(int(most * option.group.size) - int(gone.sum()), 0)
        result.append(_add(option, gone, order[total <= part][:room]))
    return result


def _within_bound(
    options: Sequence[Replacements], sure: Sequence[Mask], removed: Sequence[Mask], tau: float
) -> list[Mask]:
    """`removed` without the largest bounds over all groups, so that the rest add up to `tau`.

    Args:
        options: of every group.
        sure: what goes anyway.
        removed: that, and what else is to go.
        tau: the budget.
    """
    result = [gone.copy() for gone in removed]
    ranked = sorted(
        (float(option.bound[unit]), number, unit)
        for number, option in enumerate(options)
        for unit in np.flatnonzero(removed[number] & ~sure[number]).tolist()
    )
    total = 0.0
    for bound, number, unit in ranked:
        total += bound
        result[number][unit] &= total <= tau
    return result


def _to_limit(
    options: Sequence[Replacements],
    removed: Sequence[Mask],
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
    options: Sequence[Replacements],
    removed: Sequence[Mask],
    ranked: Sequence[tuple[float, int, int]],
) -> list[Mask]:
    units: list[list[int]] = [[] for _ in options]
    for _, number, unit in ranked:
        units[number].append(unit)
    return [
        _add(option, gone, np.array(more, np.int64))
        for option, gone, more in zip(options, removed, units, strict=True)
    ]


def _masks(options: Sequence[Replacements], removed: Sequence[Mask]) -> dict[str, Mask]:
    return {o.group.name: ~gone for o, gone in zip(options, removed, strict=True)}


def _leaves_enough(
    options: Sequence[Replacements],
    removed: Sequence[Mask],
    moment: Moment,
    remaining: cost.Remaining,
) -> bool:
    """Whether a removal that nothing but its low cost asks for stays above the target."""
    if moment.limit is None:
        return True
    return remaining(_masks(options, removed)) >= moment.limit.final


def _plan(options: Sequence[Replacements], removed: Sequence[Mask]) -> Plan | None:
    if not any(gone.any() for gone in removed):
        return None
    pairs = list(zip(options, removed, strict=True))
    found = [o.exchange(int(unit)) for o, gone in pairs for unit in np.flatnonzero(gone)]
    changes = [o.error[gone] for o, gone in pairs]
    bounds = [o.bound[gone] for o, gone in pairs]
    return Plan(
        keep={name: mask for name, mask in _masks(options, removed).items() if not mask.all()},
        folds=tuple(each for each in found if isinstance(each, Fold)),
        merges=tuple(each for each in found if isinstance(each, Merge)),
        exact={o.group.name: gone & o.exact for o, gone in pairs},
        change=float(np.sqrt((np.concatenate(changes) ** 2).sum())),
        bound=float(np.max(np.concatenate(bounds))),
    )
