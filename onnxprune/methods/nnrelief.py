"""NNrelief: connections that hardly contribute to their unit go, and units that have none left.

Dekhovich, Tax, Sluiter and Bessa, "Neural network relief: a pruning algorithm based on neural
activity" (arXiv 2109.10795; Machine Learning 113, 2024), and its code, github.com/adekhovich/
NNrelief. Scores as in `relief`. A round:

    selection  of every output unit, sort the shares of its incoming connections (its bias is one)
               and keep the fewest that reach alpha together:
               p0 = min{p : sum_{i<=p} s_(i) >= alpha}
    residual   of a sum of two branches, a channel of a branch goes where it makes up less than
               1 - alpha of the sum (`branches`)
    dead       a unit that is zero on the whole sample goes
    clean-up   from the last layer to the first, a unit whose outgoing connections are all gone
               loses its incoming ones and its bias, behind Flatten when all its positions are gone
    retraining with the connections left, and a fresh optimizer; optionally with the weights that
               the run began with

What went stays zero in training. Units without any connection leave the network for good: such that
nothing reads, and such that nothing reaches, whose constant moves into the biases behind them.

Where we deviate, and why:

* The code prunes the smallest connection also where all are needed to reach alpha; we follow the
  paper. It takes a unit for dead by the mean of its activations, we by its range.
* A connection of a layer that `@connects` does not know stays, and so does a unit that anything
  else reads; the report says so. Units that a normalization sees together stay in the network.
* The rounds are spread over the first half of the run, and learning rates follow the run's
  schedule; the paper trains each round for itself. Its best epoch is not reloaded.
* The published method does not take a target: what remains is an outcome of alpha. With one, each
  round looks for the largest alphas (by bisection, of both kinds together) with which no more units
  remain than the schedule allows; what no alpha reaches goes by the largest share that a unit has
  in any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.base import Floats, Fold, Group, Mask, Plan
from onnxprune.graph.couplings import views
from onnxprune.graph.ends import consumer_axes
from onnxprune.graph.groups import Analysis
from onnxprune.methods.branches import Branch, branches
from onnxprune.methods.candidates import foldings, readers
from onnxprune.methods.compose import Course, Moment, Pruner, counter
from onnxprune.methods.connections import layers
from onnxprune.methods.gradual import to_limit
from onnxprune.methods.lossless import REQUIRES, dead_units
from onnxprune.methods.options import check_range, check_word
from onnxprune.methods.relief import FORMULAS, depths, importances
from onnxprune.methods.selection import Choice, Scored, joined, masks_of, selected
from onnxprune.model import constant, constants

__all__ = ["nnrelief"]

_HALVINGS = 10  # of the bisection over alpha


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What NNrelief remembers between steps: the course of the run, and when it decides next."""

    course: Course
    next: int


def nnrelief(
    *,
    alpha_fc: float = 0.95,
    alpha_conv: float = 0.9,
    rounds: int = 5,
    formula: str = "paper",
    residual: bool = True,
    rewind: bool = False,
    fresh: bool = True,
) -> Pruner:
    """NNrelief (see the module).

    Args:
        alpha_fc: share of a unit's input that its connections must keep together, in (0, 1], in
            fully connected layers. The code's default; the ResNets on CIFAR have 0.99.
        alpha_conv: the same in convolutions; the paper's networks on CIFAR have 0.95.
        rounds: how often connections go, at least 1.
        formula: of convolutions: "paper", "code", or "sum", which the code has for LeNet.
        residual: whether the rule for sums of two branches applies.
        rewind: whether each round begins with the weights of the run's start.
        fresh: whether each round begins with a fresh optimizer.

    Raises:
        ConfigError: an impossible option.
    """
    check_range("(0, 1]", alpha_fc=alpha_fc, alpha_conv=alpha_conv)
    check_range("[1, inf)", rounds=rounds)
    check_word(FORMULAS, formula=formula)
    alphas = {False: alpha_fc, True: alpha_conv}

    def init(_analysis: Analysis, course: Course) -> State:
        return State(course=course, next=_round_after(course, rounds, 0))

    def decide(state: State, moment: Moment) -> tuple[State, Plan | None]:
        step, deadline = moment.step, max(state.course.deadline, 1)
        after = replace(state, next=_round_after(state.course, rounds, step))
        limit = moment.limit
        if state.next > deadline:  # what was put back, or biases that took over constants
            missing = limit is not None and counter(moment)({}) > limit.final
            return after, _missing(moment, _scores(moment, formula, alphas)) if missing else None
        plan = _round(moment, formula, alphas, residual=residual, late=step >= deadline)
        if plan is None:
            return after, None
        return after, replace(plan, reset_moments=fresh, rewind=rewind)

    return Pruner(init=init, decide=decide, rewinds=rewind)


def _round_after(course: Course, rounds: int, step: int) -> int:
    """The next of `rounds` steps that divide the time up to the deadline evenly; checks follow."""
    steps = [max(course.deadline * number // rounds, 1) for number in range(1, rounds + 1)]
    return next((later for later in steps if later > step), course.after(step))


def _round(
    moment: Moment,
    formula: str,
    alphas: Mapping[bool, float],
    *,
    residual: bool,
    late: bool,
) -> Plan | None:
    """One round: what goes, connections and units."""
    found, notes = _scored(moment, formula, alphas)
    sums = branches(moment, [each.layer for each in found]) if residual else []
    dead = _dead(moment)
    choice = _chosen(moment, found, sums, dead)
    masks = masks_of(moment.model, found, choice)
    plan = _with_units(moment, choice, dead, masks)
    limit = moment.limit
    if late and limit is not None and counter(moment)(plan.keep) > limit.final:
        rest = _missing(_masked(moment, masks), _unit_scores(moment, found))
        plan = plan if rest is None else _both(plan, rest)
    plan = replace(plan, notes=notes)
    return None if not masks and not plan.removed() else plan


def _scored(
    moment: Moment, formula: str, alphas: Mapping[bool, float]
) -> tuple[list[Scored], tuple[str, ...]]:
    every, notes = layers(moment.model, moment.analysis, moment.parameters)
    importance = importances(moment, every, formula)
    found = []
    for layer in every:
        if layer.node in importance:
            depth, bias_depth = depths(importance[layer.node])
            alpha = alphas[layer.how.spread is not None]
            found.append(Scored(layer=layer, alpha=alpha, depth=depth, bias_depth=bias_depth))
    return found, notes


def _dead(moment: Moment) -> dict[str, Mask]:
    """(U,) per group whose units can go: which are zero on the whole sample."""
    groups = [group for group in moment.analysis.groups if _may_lose(group)]
    seen = moment.probe(consumer_axes(groups), REQUIRES)
    return {group.name: dead_units(group, seen) for group in groups}


def _may_lose(group: Group) -> bool:
    return bool(group.exact and group.consumers and not group.inner)


def _chosen(
    moment: Moment, found: Sequence[Scored], sums: Sequence[Branch], dead: Mapping[str, Mask]
) -> Choice:
    """What the alphas leave; with a limit, the largest that leave no more than it allows."""
    if moment.limit is None:
        return selected(moment.analysis, found, sums, dead, 1.0)
    remaining, allowance = counter(moment), moment.limit.now
    low, high = 0.0, 2.0
    best = selected(moment.analysis, found, sums, dead, low)
    if remaining(_keep(best.gone)) <= allowance:
        return best
    best = selected(moment.analysis, found, sums, dead, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        trial = selected(moment.analysis, found, sums, dead, middle)
        if remaining(_keep(trial.gone)) <= allowance:
            best, high = trial, middle
        else:
            low = middle
    return best


def _keep(gone: Mapping[str, Mask]) -> dict[str, Mask]:
    return {name: ~mask for name, mask in gone.items() if mask.any()}


def _masked(moment: Moment, masks: Mapping[str, Mask]) -> Moment:
    """The moment with the numbers that `masks` leave."""
    known = constants(moment.model)
    arrays = {name: constant(known[name]) for name in masks}
    return moment.altered(
        {
            name: np.where(masks[name], array, 0).astype(array.dtype)
            for name, array in arrays.items()
            if array is not None
        }
    )


def _with_units(
    moment: Moment, choice: Choice, dead: Mapping[str, Mask], masks: Mapping[str, Mask]
) -> Plan:
    """The plan with all units that have no connections left: unread, dead, and constant ones."""
    moment = _masked(moment, masks)
    groups = [group for group in moment.analysis.groups if group.name in dead]
    seen = moment.probe(consumer_axes(groups), REQUIRES)
    by_key = {v.key: v for v in views(moment.model, moment.analysis.shapes, moment.analysis.known)}
    keep: dict[str, Mask] = {}
    exact: dict[str, Mask] = {}
    folds: list[Fold] = []
    for group in groups:
        unused, gone = choice.unused[group.name], choice.gone[group.name]
        parts = readers(group, by_key, moment.analysis, seen)
        fold = None if parts is None else foldings(parts, seen)
        zero = dead_units(group, seen)
        still = zero if fold is None else zero | fold.exact
        every = joined(gone, still)
        if not every.any():
            continue
        keep[group.name], exact[group.name] = ~every, every & (unused | zero | (still & ~gone))
        if fold is not None:
            moved = every & still & ~gone & ~zero
            folds += [
                Fold(
                    group=group.name, unit=unit, values={a: v[unit] for a, v in fold.values.items()}
                )
                for unit in map(int, np.flatnonzero(moved))
            ]
    return Plan(keep=keep, folds=tuple(folds), exact=exact, masks=masks)


def _both(plan: Plan, rest: Plan) -> Plan:
    """`plan` with the removals of `rest` as well; no group loses what `rest` leaves of it."""
    keep, folds = dict(plan.keep), {(fold.group, fold.unit): fold for fold in rest.folds}
    for name, mask in rest.keep.items():
        both = mask & plan.keep.get(name, np.True_)
        keep[name] = both if both.any() else mask
    for name, mask in plan.keep.items():
        folds = {key: f for key, f in folds.items() if key[0] != name or mask[key[1]]}
    folds |= {(fold.group, fold.unit): fold for fold in plan.folds}
    return replace(
        plan,
        keep=keep,
        folds=tuple(fold for fold in folds.values() if not keep[fold.group][fold.unit]),
        exact={name: mask & ~keep[name] for name, mask in plan.exact.items()},
    )


def _scores(moment: Moment, formula: str, alphas: Mapping[bool, float]) -> dict[str, Floats]:
    return _unit_scores(moment, _scored(moment, formula, alphas)[0])


def _unit_scores(moment: Moment, found: Sequence[Scored]) -> dict[str, Floats]:
    """(U,) per group: how soon a unit is among those that any of its readers needs."""
    by_key = {each.layer.node: each for each in found}
    scores: dict[str, Floats] = {}
    for group in moment.analysis.groups:
        least = np.ones(group.size)
        readers_ = [by_key.get(consumer.node) for consumer in group.consumers]
        for consumer, reader in zip(group.consumers, readers_, strict=True):
            if reader is not None and reader.layer.reads == consumer:
                index = group.member(consumer.axis).index
                rows = reader.depth.reshape(-1, reader.depth.shape[2]).min(axis=1)
                least = np.minimum(least, rows[index].min(axis=1))
        if any(readers_):
            scores[group.name] = 1 - least
    return scores


def _missing(moment: Moment, scores: Mapping[str, Floats]) -> Plan | None:
    """What is still missing for the target."""
    assert moment.limit is not None
    return to_limit(moment, scores, moment.limit.final, allocation="global")
