"""Demon pruning (DemP): regularisation and noise make units die on purpose; the dead ones go.

Dufort-Labbé, D'Oro, Nikishin, Rish, Pascanu, Bacon and Baratin, "Maxwell's Demon at Work: Efficient
Pruning by Leveraging Saturation of Neurons" (arXiv 2403.07688), and its code, SimonDufLab/
Maxwell_demon (controlling_overfitting.py, utils/utils.py). In the paper's symbols:

    loss     L_t = CE + lambda(t) * sum of |gamma|, over the scales gamma of all normalizations; no
             factor 1/2, a sum and not a mean. The gradient goes through the optimizer (with Adam it
             is adapted); weight decay stays separate.
    noise    theta <- theta + u_t + sigma(t) * N(0, I) * m_t, u_t being the optimizer's update, and
             m_t = 1 where the gradient of L_t is not zero. sigma is a standard deviation, and is
             not multiplied by the learning rate. All parameters are noised.
    schedule lambda(t) = lambda * one_cycle(t), sigma(t) = eta * one_cycle(t): optax's cosine one
             cycle with its defaults, over `span` of the run.
    dead     in evaluation mode, on batches of training data: the sum of a_j over examples and
             positions is <= 0 in every batch. For a ReLU, that is zero everywhere.
    removal  every `interval` steps and after the last one; moments are sliced along.

Where we deviate, and why:

* The newest code computes m_t as |g| >= 0, which is always true; an older version has >= 1e-8. We
  take > 0, and `mask="all"` for parity with the newest.
* A sum of activations says nothing about GELU or Swish, whose values may cancel. We call a unit
  dead when it is constant at all its consumers, which for a ReLU that is zero on some example is
  the same, and exact for every activation; the constant goes into the consumers' biases.
* The code also removes what is dead at step 0, by initialization alone; we begin with training.
* Units that share a residual sum live and die together; the code prunes each block for itself.
* Models without normalizations are penalized at the weights that make the units.
* The published method does not take a target: sparsity is an outcome of lambda. With one, the
  strength of the penalty follows the schedule of what may remain: it grows by half at every check
  that is behind, up to tenfold, and shrinks as much when it is ahead. What has grown shrinks also
  when the loss has risen, but while units are missing never below the strength asked for: a
  trained network's loss rises with the first of them. When the target is met the penalty ends, and
  from then on only constant units go, however many die with them. From the peak of the cycle to the
  part of the run that is left for recovery, equal parts of what is still missing go at every check:
  first what is dead, then by the smallest scale (or mean activation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Floats, Group, Mask, Observations, Plan
from onnxprune.graph.ends import consumer_axes
from onnxprune.graph.groups import Analysis
from onnxprune.methods.allocation import CHOICES
from onnxprune.methods.compose import (
    NOISE,
    PENALTY,
    Course,
    Influence,
    Limit,
    Moment,
    Pruner,
    counter,
)
from onnxprune.methods.gradual import penalized_scales, scores_of, to_limit
from onnxprune.methods.importance import mean_activation, scale
from onnxprune.methods.lossless import REQUIRES, means
from onnxprune.methods.options import check_range, check_word
from onnxprune.schedules import WARM, one_cycle

__all__ = ["STRONGEST", "demp"]

_MASKS = ("live", "all")
_PRESSURE = 1.5  # by which the penalty's strength follows a target, at each check
STRONGEST = 10.0  # what it may grow to
_TINY = 1e-30  # less than any living unit's score, more than that of the dead
_TOLERANCE, _SLACK = 0.05, 0.01  # rise of the loss, relative and as a share of the trivial one


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class State:
    """What DemP remembers between steps.

    Attributes:
        course: of the run.
        next: step of the next check.
        pressure: factor of the penalty; 1 without a target, 0 once the target is met.
        reference: lowest smoothed loss at any check; NaN before the first.
    """

    course: Course
    next: int
    pressure: float = 1.0
    reference: float = math.nan


def demp(
    *,
    strength: float = 1e-3,
    noise: float = 5e-5,
    span: float = 1.0,
    mask: str = "live",
    variance: float = 0.0,
    allocation: str = "auto",
) -> Pruner:
    """Demon pruning (see the module).

    Args:
        strength: the paper's lambda, the penalty at the peak of the cycle, >= 0. The code's sweeps
            on CIFAR-10: 5e-7 to 0.1 with SGD and momentum, 5e-8 to 0.15 with Adam (ResNet-18).
        noise: the paper's eta, deviation of the noise at the peak of the cycle, >= 0.
        span: share of the run that the cycle takes, in (0, 1]; its reg_param_span.
        mask: "live" noises weights that have a gradient, "all" every weight.
        variance: units whose variance is at most this share of their group's mean variance are
            dead too, for activations that are never constant, and where scales swing around zero;
            0 for none. The code's quasi-dead test has 0.01. A target is not exceeded by them.
        allocation: of what goes by its scale, one of `allocation.CHOICES`.

    Raises:
        ConfigError: an impossible option.
    """
    check_range("[0, inf)", strength=strength, noise=noise, variance=variance)
    check_range("(0, 1]", span=span)
    check_word(_MASKS, mask=mask)
    check_word(CHOICES, allocation=allocation)

    def init(_analysis: Analysis, course: Course) -> State:
        return State(course=course, next=course.after(0))

    def influence(model: ir.Model, analysis: Analysis) -> Influence:
        names = penalized_scales(model, analysis, also_weights=True) if strength else ()
        return Influence(penalized=names, noise=mask if noise else None)

    def scalars(state: State, step: int) -> Mapping[str, float]:
        cycle = one_cycle(max(int(span * state.course.steps), 1))(step)
        return {PENALTY: state.pressure * strength * cycle, NOISE: noise * cycle}

    def decide(state: State, moment: Moment) -> tuple[State, Plan | None]:
        seen = moment.probe(consumer_axes(moment.analysis.groups), REQUIRES)
        plan = _burial(moment, seen, variance if state.pressure else 0.0)
        lowest = float(np.fmin(state.reference, moment.loss))
        after = replace(state, next=state.course.after(moment.step), reference=lowest)
        limit = moment.limit
        if limit is None:
            return after, plan
        living = {} if plan is None else plan.keep
        left = counter(moment)(living)
        after = replace(after, pressure=_pressed(state, moment, limit, left))
        if left < limit.final:
            return after, _held_back(moment, seen, limit.final)
        if left == limit.final or moment.step < span * WARM * state.course.steps:
            return after, plan
        checks = state.course.checks(moment.step)
        allowance = left - math.ceil((left - limit.final) / checks)
        return after, _trimmed(moment, plan, allowance, allocation)

    return Pruner(init=init, decide=decide, influence=influence, scalars=scalars)


def _burial(moment: Moment, seen: Observations, variance: float) -> Plan | None:
    """Everything that is dead on the sample, except for the liveliest unit of each group."""
    keep: dict[str, Mask] = {}
    exact: dict[str, Mask] = {}
    for group in moment.analysis.groups:
        constant, spread = _still(group, seen)
        if spread is None:
            continue
        dead = constant | (spread <= variance * spread.mean() if variance else False)
        if dead.all():
            dead[int(np.argmax(spread))] = False
        if dead.any():
            keep[group.name], exact[group.name] = ~dead, dead & constant & group.exact
    if not keep:
        return None
    folds = means(moment.model, moment.analysis, keep, seen)
    replaced = {(fold.group, fold.unit) for fold in folds}
    kept = {
        name: mask | _unaccounted(moment.analysis.group(name), mask, seen, replaced)
        for name, mask in keep.items()
    }
    plan = Plan(
        keep=kept,
        folds=tuple(fold for fold in folds if not kept[fold.group][fold.unit]),
        exact={name: mask & ~kept[name] for name, mask in exact.items()},
    )
    return plan if plan.removed() else None


def _held_back(moment: Moment, seen: Observations, allowance: int) -> Plan | None:
    """Everything that is constant; of what is nearly so, only as much as has to go."""
    plan = _burial(moment, seen, 0.0)
    if counter(moment)({} if plan is None else plan.keep) <= allowance:
        return plan
    spreads = {group.name: _still(group, seen)[1] for group in moment.analysis.groups}
    scores = {name: spread for name, spread in spreads.items() if spread is not None}
    return to_limit(moment, scores, allowance, allocation="global")


def _still(group: Group, seen: Observations) -> tuple[Mask, Floats | None]:
    """(U,) whether a unit is constant at all consumers, and its variance there; None if unseen."""
    constant, spread = np.ones(group.size, np.bool_), np.zeros(group.size)
    for axis in dict.fromkeys(consumer.axis for consumer in group.consumers):
        window = seen.get(axis)
        if window is None or window.low is None or window.high is None:
            return constant, None
        assert window.total is not None
        assert window.square is not None
        index, count = group.member(axis).index, max(window.count, 1)
        constant &= (window.low == window.high)[index].all(axis=1)
        variances = np.maximum(window.square / count - (window.total / count) ** 2, 0.0)
        spread = spread + variances[index].mean(axis=1)
    return constant, spread if group.consumers else None


def _unaccounted(
    group: Group, keep: Mask, seen: Observations, replaced: set[tuple[str, int]]
) -> Mask:
    """(U,) units that would go although they are not zero and no consumer takes over their mean."""
    zero = np.ones(group.size, np.bool_)
    for consumer in group.consumers:
        window, index = seen[consumer.axis], group.member(consumer.axis).index
        assert window.low is not None
        assert window.high is not None
        zero &= ((window.low == 0) & (window.high == 0))[index].all(axis=1)
    taken = np.array([(group.name, unit) in replaced for unit in range(group.size)], np.bool_)
    return ~keep & ~zero & ~taken


def _trimmed(moment: Moment, dead: Plan | None, allowance: int, allocation: str) -> Plan | None:
    """`dead`, and what lives with the smallest scales or mean activations; down to `allowance`."""
    scores = scores_of(mean_activation(), moment, {}) | scores_of(scale(), moment, {})
    if dead is None:
        return to_limit(moment, scores, allowance, allocation=allocation)
    ranked = {
        name: np.where(dead.keep.get(name, True), np.maximum(row, _TINY), 0.0)
        for name, row in scores.items()
    }
    plan = to_limit(moment, ranked, allowance, allocation=allocation, living=dead.keep)
    if plan is None:
        return dead
    exact = {
        name: mask & ~plan.keep[name] for name, mask in dead.exact.items() if name in plan.keep
    }
    return replace(plan, exact=exact)


def _pressed(state: State, moment: Moment, limit: Limit, left: int) -> float:
    """The factor of the penalty after a check at which `left` are alive."""
    if left <= limit.final or moment.step >= state.course.deadline:
        return 0.0
    if left <= limit.now:
        return state.pressure / _PRESSURE
    allowed = state.reference * (1 + _TOLERANCE) + _SLACK * moment.trivial
    if moment.loss > allowed:
        return max(state.pressure / _PRESSURE, min(state.pressure, 1.0))
    return min(state.pressure * _PRESSURE, STRONGEST)
