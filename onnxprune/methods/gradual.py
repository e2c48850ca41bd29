"""Removal to a target, a little at a time: importance x allocation x schedule.

The classical criteria during training. Each decision removes the least important units until no
more remains than the schedule allows (`Moment.limit`); what a criterion wants to see is taken from
training steps where it needs gradients, and from a sample in evaluation mode otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Floats, Mask, Observable, Observations, Plan
from onnxprune.errors import MethodError
from onnxprune.graph.balance import completed_keep
from onnxprune.graph.ends import consumer_axes
from onnxprune.graph.groups import Analysis
from onnxprune.graph.weights import Weight, weights
from onnxprune.methods.allocation import CHOICES, allocate, settled_allocation
from onnxprune.methods.compose import (
    PENALTY,
    Course,
    Influence,
    Moment,
    Pruner,
    counter,
    gathered,
)
from onnxprune.methods.importance import Importance, importance
from onnxprune.methods.lossless import REQUIRES, means
from onnxprune.methods.options import check_range, check_word
from onnxprune.ops.registry import Role

__all__ = ["gradual", "penalized_scales", "scheduled", "scores_of", "slimming", "to_limit"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class State:
    """What remains to be known between steps.

    Attributes:
        course: of the run.
        next: step of the next decision.
        reference: lowest loss at any decision; NaN before the first.
        seen: what training steps showed since the last decision.
    """

    course: Course
    next: int
    reference: float = math.nan
    seen: Observations = field(default_factory=dict)


def gradual(
    criterion: str | Importance,
    *,
    allocation: str = "auto",
    compensate: bool = True,
    adaptive: bool = False,
    tolerance: float = 0.05,
    seed: int = 0,
) -> Pruner:
    """Remove the least important units, on schedule, until the target is met.

    Args:
        criterion: a name in `importance.IMPORTANCES`, or an importance.
        allocation: one of `allocation.CHOICES`.
        compensate: whether consumers take over the mean of what goes, where they can.
        adaptive: whether to wait while the loss (on validation data, if there are; else that of
            training, smoothed) is above its lowest value at any decision by more than `tolerance`;
            what was missed is made up when the part of the run that is left for recovery begins.
        tolerance: relative rise of the loss that still counts as none, >= 0.
        seed: of the random criterion.

    Raises:
        ConfigError: no such criterion, or an impossible option.
        MethodError: when it decides: the criterion says nothing about any group.
    """
    check_word(CHOICES, allocation=allocation)
    chosen = importance(criterion, seed=seed) if isinstance(criterion, str) else criterion

    def remove(moment: Moment, seen: Observations, allowance: int) -> Plan | None:
        scores = scores_of(chosen, moment, seen)
        if moment.analysis.groups and not scores:
            raise MethodError(
                f"{criterion}: says nothing about any of the {len(moment.analysis.groups)} groups "
                "of this model; choose another method",
                method=criterion,
            )
        return to_limit(moment, scores, allowance, allocation=allocation, compensate=compensate)

    from_steps = frozenset(o for o in chosen.requires if o.is_gradient)
    return scheduled(remove, from_steps, adaptive=adaptive, tolerance=tolerance)


def scheduled(
    remove: Callable[[Moment, Observations, int], Plan | None],
    requires: frozenset[Observable] = frozenset(),
    *,
    adaptive: bool = False,
    tolerance: float = 0.05,
) -> Pruner:
    """A method that removes as much as the schedule asks for.

    Args:
        remove: (moment, what training steps showed since the last decision, what may remain) ->
            plan; called when more remains than the schedule allows.
        requires: what to observe in training steps.
        adaptive: as for `gradual`.
        tolerance: likewise.

    Raises:
        ConfigError: an impossible tolerance.
    """
    check_range("[0, inf)", tolerance=tolerance)

    def init(_analysis: Analysis, course: Course) -> State:
        return State(course=course, next=course.after(0))

    def decide(state: State, moment: Moment) -> tuple[State, Plan | None]:
        late = moment.step >= state.course.deadline
        waits = adaptive and not late and moment.judged > state.reference * (1 + tolerance)
        after = replace(
            state,
            next=state.course.after(moment.step),
            reference=float(np.fmin(state.reference, moment.judged)),
            seen={},
        )
        limit = moment.limit
        if limit is None or waits:
            return after, None
        allowance = limit.final if late else limit.now
        if counter(moment)({}) <= allowance:
            return after, None
        return after, remove(moment, state.seen, allowance)

    return Pruner(init=init, decide=decide, requires=requires, observe=gathered, needs_target=True)


def scores_of(chosen: Importance, moment: Moment, seen: Observations) -> dict[str, Floats]:
    """Scores per group; groups of which the criterion says nothing are left out.

    Args:
        chosen: the criterion.
        moment: of the decision.
        seen: of training steps, for criteria that need gradients.
    """
    groups = moment.analysis.groups
    if chosen.requires and not any(o.is_gradient for o in chosen.requires):
        seen = moment.probe(consumer_axes(groups), chosen.requires)
    held = weights(moment.model, moment.analysis)
    found = {group.name: chosen.score(group, held, seen) for group in groups}
    return {name: score for name, score in found.items() if score is not None}


def to_limit(
    moment: Moment,
    scores: Mapping[str, Floats],
    allowance: int,
    *,
    allocation: str = "auto",
    compensate: bool = True,
    living: Mapping[str, Mask] | None = None,
) -> Plan | None:
    """The plan that leaves at most `allowance`, or as little as can be; None if nothing goes.

    Args:
        moment: of the decision.
        scores: (U,) per group name, larger = keep.
        allowance: what may remain, as the moment's limit counts.
        allocation: one of `allocation.CHOICES`.
        compensate: whether consumers take over the mean of what goes, where they can.
        living: (U,) per group name, False for what goes in any case; its scores are the lowest.
    """
    if not scores:
        return None
    groups, size = moment.analysis.groups, counter(moment)
    kind = None if moment.limit is None else moment.limit.kind
    order = settled_allocation(allocation, kind)

    def complete(keep: Mapping[str, Mask]) -> dict[str, Mask]:
        left = dict(living or {})
        left |= {name: mask & left.get(name, True) for name, mask in keep.items()}
        return completed_keep(moment.analysis, left, worth=scores, round_to=moment.round_to)

    found = allocate(groups, scores, allowance, size, allocation=order, complete=complete)
    plan = Plan(keep=found.keep)
    if not plan.removed():
        return None
    if not compensate:
        return plan
    axes = consumer_axes(group for group in groups if group.name in found.keep)
    seen = moment.probe(axes, REQUIRES)
    return replace(plan, folds=means(moment.model, moment.analysis, found.keep, seen))


def slimming(*, strength: float = 1e-4, allocation: str = "global") -> Pruner:
    """Network slimming: scales of normalizations shrink under an L1 penalty, the smallest go.

    Liu et al. 2017 (arXiv 1708.06519), eq. 1: the loss grows by strength * sum of |gamma|; one
    threshold over all layers. The paper trains, prunes once and fine-tunes; here the schedule says
    when. Its global threshold compares scales as they are, ours after division by their group's
    mean, so that no group goes as a whole.

    Args:
        strength: the paper's lambda: 1e-4 for VGG, 1e-5 for ResNet and DenseNet, >= 0.
        allocation: a key of `allocation.ALLOCATIONS`.

    Raises:
        ConfigError: an impossible option.
    """
    check_range("[0, inf)", strength=strength)
    base = gradual("scale", allocation=allocation)

    def influence(model: ir.Model, analysis: Analysis) -> Influence:
        return Influence(penalized=penalized_scales(model, analysis))

    return base._replace(influence=influence, scalars=lambda _state, _step: {PENALTY: strength})


def penalized_scales(
    model: ir.Model, analysis: Analysis, *, also_weights: bool = False
) -> tuple[str, ...]:
    """The scales of normalizations behind units, shortcuts included; sorted.

    Args:
        model: the graph.
        analysis: its groups.
        also_weights: whether groups without any such scale are represented by the weights that
            make their units.
    """
    held = weights(model, analysis)
    names: set[str] = set()
    for group in analysis.groups:
        found = {m.axis: held[m.axis] for m in group.members if m.axis in held}
        scales = _of_role(found, Role.SCALE)
        names |= scales or (_of_role(found, Role.WEIGHT) if also_weights else set())
    return tuple(sorted(names))


def _of_role(found: Mapping[Axis, Weight], role: str) -> set[str]:
    return {axis.value for axis, w in found.items() if w.role == role and w.incoming}
