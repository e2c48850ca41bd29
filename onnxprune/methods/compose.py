"""The interface of a pruning method: a pair of pure functions over plain data, and a decision.

A method asks for observations, folds them into its state, and now and then decides on a plan. What
it cannot know from the graph and the weights it learns from a `Moment`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import onnx_ir as ir

from onnxprune.base import Axis, Observable, Observations, Plan
from onnxprune.graph.groups import Analysis

__all__ = ["RECOVERY", "Limit", "Moment", "Pruner"]

State: TypeAlias = Any

RECOVERY = 0.5  # share of a run at its end that is left for recovery from removals with an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What may remain, now, for a run that has a target.

    Attributes:
        kind: "params" or "macs".
        now: what the schedule allows to remain at this step.
        final: what may remain in the end.
    """

    kind: str
    now: int
    final: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Moment:
    """What a method may look at when it decides.

    Attributes:
        step, steps: optimizer steps done, and in the whole run.
        model: the graph with its present weights.
        analysis: its groups; only those the user lets go.
        loss: smoothed training loss; NaN before the first step.
        trivial: loss of the best constant prediction on the training targets: the loss's scale.
        limit: for a run with a target; None leaves the amount to the method.
        probe: (axes, observables) -> observations of a sample of training data, in evaluation mode,
            with the present weights.
    """

    step: int
    steps: int
    model: ir.Model
    analysis: Analysis
    loss: float
    trivial: float
    limit: Limit | None
    probe: Callable[[Iterable[Axis], Iterable[Observable]], Observations]


class Pruner(NamedTuple):
    """A method.

    Attributes:
        requires: what `observe` wants to see of the groups' consumers during training.
        init: (analysis, steps between decisions) -> state.
        observe: (state, observations of one step) -> state; cheap and pure.
        decide: (state, moment) -> (state, plan or None); called when `due`.
        due: (state, step) -> whether to call `decide` now.
    """

    requires: frozenset[Observable]
    init: Callable[[Analysis, int], State]
    observe: Callable[[State, Observations], State]
    decide: Callable[[State, Moment], tuple[State, Plan | None]]
    due: Callable[[State, int], bool]
