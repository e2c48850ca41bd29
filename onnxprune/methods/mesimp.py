"""meProp and meSimp: back propagation through the k largest gradients; units rarely chosen go.

Sun, Ren, Ma, Wei, Li and Wang, "meProp" (arXiv 1706.06197) and "Training Simplification and Model
Simplification for Deep Learning" (arXiv 1711.06528), with the code of lancopku/meProp and
lancopku/meSimp (Record.cs, DenseMaskedUnit.cs, MLPVar.cs, Mnist.cs).

    meProp   dz~ = the k largest of |dz|, per example or for the whole batch (`gradients.top_k`).
    meSimp   per layer and window of `interval` steps: refer counts examples, hit_j those for which
             unit j was among the k. At the window's end units with hit_j < int(refer * p) go, and
             both counters start again. Cycles of `cycle` windows alternate: in even ones units go,
             in odd ones the network only trains (still with top-k).

Where we deviate from the code, and why:

* Zero gradients count as hits there: its heap is seeded with the indices 0 to k-1. They do not
  here, so units that never learn go, and units with low indices are no better than others.
* Units are removed in fact, not masked; hits of those that remain are kept.
* Moments are reset once, at the first decision of a cycle; the code does so after every chunk of a
  cycle's last epoch, where its comment says "at the start of each cycle" and the paper nothing.
* A unit of a convolution is a channel (ours), and a group whose units are made by several layers
  adds up their hits.
* The papers' LSTM is not among their code. In LSTM, GRU and RNN, ours, k gradients of every gate go
  on per step, before they reach the step before (`gradients.thinning`), also where `unified`
  makes one choice for the batch: one per step. A step counts like an example, and one counter
  serves all gates of a unit: it is hit when any of them is among its k.
* With a target, activeness only ranks: the least active units go, on schedule, until it is met.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.base import Floats, Group, Mask, Observable, Observations, Plan
from onnxprune.graph.groups import Analysis
from onnxprune.methods.compose import Course, Influence, Moment, Pruner, TopK, counter, gathered
from onnxprune.methods.gradual import to_limit
from onnxprune.methods.options import check_range

__all__ = ["meprop", "mesimp"]

_CYCLE = 5  # epochs


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class State:
    """What meSimp remembers between steps.

    Attributes:
        course: of the run.
        next: step of the next decision.
        window: number of the window that ends there, from 0.
        seen: hits since the last decision, per axis of a pre-activation.
    """

    course: Course
    next: int
    window: int = 0
    seen: Observations = field(default_factory=dict)


def mesimp(*, k: int = 160, rate: float = 0.1, cycle: int = 0, unified: bool = False) -> Pruner:
    """Training and model simplification (see the module).

    Args:
        k: gradients that go on per layer, or per gate and step of a recurrent one, at least 1.
            Since active units are always chosen in layers narrower than k, the widths end near k
            at most.
        rate: the paper's p: units hit by a smaller share of the examples go, in [0, 1].
        cycle: windows per cycle; 0 for those of five epochs, as published.
        unified: one choice for the batch instead of one per example.

    Raises:
        ConfigError: an impossible option.
    """
    check_range("[1, inf)", k=k)
    check_range("[0, inf)", cycle=cycle)
    check_range("[0, 1]", rate=rate)

    def init(_analysis: Analysis, course: Course) -> State:
        return State(course=course, next=course.after(0))

    def decide(state: State, moment: Moment) -> tuple[State, Plan | None]:
        length = cycle or max(round(_CYCLE * state.course.epoch / state.course.interval), 1)
        number = state.window // length
        starts = state.window > 0 and state.window % length == 0
        following = state.course.after(moment.step)
        after = replace(state, window=state.window + 1, next=following, seen={})
        if moment.limit is not None:
            plan = _to_target(moment, state)
        elif number % 2 == 0:
            plan = _rarely_hit(moment, state.seen, rate)
        else:
            plan = None
        if starts:
            plan = replace(Plan(keep={}) if plan is None else plan, reset_moments=True)
        return after, plan

    return Pruner(
        init=init,
        decide=decide,
        requires=frozenset({Observable.HITS}),
        observe=gathered,
        influence=lambda _model, _analysis: Influence(top_k=TopK(k=k, unified=unified)),
        every=1,
    )


def meprop(*, k: int = 30, unified: bool = True) -> Pruner:
    """Sparser back propagation alone: nothing is removed.

    Args:
        k: gradients that go on per layer, or per gate and step of a recurrent one, at least 1.
        unified: one choice for the batch, which makes products smaller, but not those of recurrent
            layers; else one per example.

    Raises:
        ConfigError: an impossible option.
    """
    check_range("[1, inf)", k=k)
    return Pruner(
        init=lambda _analysis, _course: None,
        decide=lambda state, _moment: (state, None),
        due=lambda _state, _step: False,
        influence=lambda _model, _analysis: Influence(top_k=TopK(k=k, unified=unified)),
        removes=False,
    )


def _hits(group: Group, seen: Observations) -> tuple[Floats, int] | None:
    """(U,) hits of a group's units, and the examples they are of; None where none were counted.

    Several layers that make the same units count together, several indices of one unit (channels
    behind a fold of space into channels) as their mean.
    """
    total, examples = np.zeros(group.size), 0
    for member in group.members:
        window = seen.get(member.axis)
        if window is not None and window.hits is not None:
            total += window.hits[member.index].mean(axis=1)
            examples = max(examples, window.count)
    return (total, examples) if examples else None


def _rarely_hit(moment: Moment, seen: Observations, rate: float) -> Plan | None:
    """Units with fewer hits than int(refer * p), except for the most active one of each group."""
    keep: dict[str, Mask] = {}
    for group in moment.analysis.groups:
        counted = _hits(group, seen)
        if counted is None:
            continue
        hits, examples = counted
        stays = hits >= int(examples * rate)
        stays[int(np.argmax(hits))] = True
        if not stays.all():
            keep[group.name] = stays
    return Plan(keep=keep) if keep else None


def _to_target(moment: Moment, state: State) -> Plan | None:
    limit = moment.limit
    assert limit is not None
    allowance = limit.final if moment.step >= state.course.deadline else limit.now
    if counter(moment)({}) <= allowance:
        return None
    groups = moment.analysis.groups
    scores = {g.name: hits[0] for g in groups if (hits := _hits(g, state.seen)) is not None}
    return to_limit(moment, scores, allowance, compensate=False)
