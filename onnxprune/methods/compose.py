"""The interface of a pruning method: a few pure functions over plain data, and a decision.

A method asks for observations, folds them into its state, and now and then decides on a plan. What
it cannot know from the graph and the weights it learns from a `Moment`. What it does to training
itself, a regulariser, noise or a sparser back propagation, it declares as `Influence`: the training
layer writes that into the graphs, and the numbers in it come from the method step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import onnx_ir as ir

from onnxprune.base import Array, Axis, Floats, Observable, Observations, Plan
from onnxprune.emit import Emitter
from onnxprune.graph import cost
from onnxprune.graph.groups import Analysis
from onnxprune.graph.timing import Timing
from onnxprune.windows import merge_windows

__all__ = [
    "NOISE",
    "PENALTY",
    "RECOVERY",
    "Course",
    "Influence",
    "Limit",
    "Measure",
    "Moment",
    "Pruner",
    "TopK",
    "counter",
    "gathered",
    "prolonged",
]

State: TypeAlias = Any

PENALTY = "penalty"
NOISE = "noise"
"""The scalars of a method's influence: the weight of the penalty, the deviation of the noise."""

RECOVERY = 0.5  # share of a run at its end that is left for recovery from removals with an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a run is laid out.

    Attributes:
        steps: optimizer steps in all.
        epoch: steps per epoch.
        interval: steps between decisions.
    """

    steps: int
    epoch: int
    interval: int

    @property
    def deadline(self) -> int:
        """The step by which a target should be reached: what follows is left for recovery."""
        return int((1 - RECOVERY) * self.steps)

    def checks(self, step: int) -> int:
        """Decisions from the one at `step` to that at the deadline, both counted."""
        return 1 + max(math.ceil((self.deadline - step) / self.interval), 0)

    def after(self, step: int) -> int:
        """The step of the decision after one at `step`; never past the deadline or the end."""
        marks = [mark for mark in (self.deadline, self.steps) if mark > step]
        return min([step + self.interval, *marks])


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What may remain, now, for a run that has a target.

    Attributes:
        kind: "params", "macs" or "latency", which counts nanoseconds.
        now: what the schedule allows to remain at this step.
        final: what may remain in the end.
        timing: says how long models take, for latency.
    """

    kind: str
    now: int
    final: int
    timing: Timing | None = None


class Measure(Protocol):
    """Runs nodes that a method writes, over the sample of a `Moment`."""

    def __call__(
        self,
        write: Callable[[Emitter, Mapping[str, ir.Value]], Mapping[str, ir.Value]],
        *,
        examples: int = 256,
    ) -> Mapping[str, Floats]:
        """What the nodes compute, summed over the batches of the sample, in float64.

        Args:
            write: (emitter, values by name) -> results by key; a value of the model may be missing
                where it does not lead to the prediction, and may be of any float type.
            examples: that a batch may hold at most, where the batch size is open.
        """


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Moment:
    """What a method may look at when it decides.

    Attributes:
        step, steps: optimizer steps done, and in the whole run.
        model: the graph with its present weights.
        analysis: its groups; only those the user lets go.
        loss: smoothed training loss; NaN before the first step.
        validation: loss on the validation data at the last evaluation; NaN before the first.
        trivial: loss of the best constant prediction on the training targets: the loss's scale.
        limit: for a run with a target; None leaves the amount to the method.
        probe: (axes, observables) -> observations of a sample of training data, in evaluation mode,
            with the present weights.
        measure: the same for whatever else can be computed: nodes that the method writes.
        altered: the same moment with other arrays in the place of some parameters.
        parameters: names of what is trained, and can be masked.
        round_to: groups of more units than this keep multiples of it; plans are completed so.
    """

    step: int
    steps: int
    model: ir.Model
    analysis: Analysis
    loss: float
    trivial: float
    limit: Limit | None
    probe: Callable[[Iterable[Axis], Iterable[Observable]], Observations]
    measure: Measure
    altered: Callable[[Mapping[str, Array]], Moment]
    parameters: frozenset[str] = frozenset()
    round_to: int = 1
    validation: float = math.nan

    @property
    def judged(self) -> float:
        """The loss that says best how the network does: on validation data, if there are."""
        return self.loss if math.isnan(self.validation) else self.validation


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """Back propagation through the k largest gradients of a layer's pre-activations only.

    Attributes:
        k: how many, at least 1, of a recurrent layer per gate and step; layers that are no wider
            propagate everything.
        unified: one choice for the whole batch, by the sum of |dL/dz| over it, of a recurrent layer
            in every step; else one per example.
    """

    k: int
    unified: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """What a method does to the training of one round.

    Attributes:
        penalized: parameters p whose L1 norm, times the scalar `PENALTY`, is added to the loss:
            the gradient that the optimizer sees grows by PENALTY * sign(p).
        noise: "live" adds normal noise of deviation `NOISE` to every step of those weights whose
            gradient, penalty included, is not zero; "all" to every weight; None to none.
        top_k: sparser back propagation; None for the plain one.
    """

    penalized: tuple[str, ...] = ()
    noise: str | None = None
    top_k: TopK | None = None


def counter(moment: Moment) -> cost.Remaining:
    """What counts what remains under masks, as the moment's limit does; parameters without one."""
    kind = "params" if moment.limit is None else moment.limit.kind
    timing = None if moment.limit is None else moment.limit.timing
    return cost.Remaining(
        moment.model, moment.analysis, kind, round_to=moment.round_to, timing=timing
    )


def prolonged(state: State, course: Course) -> State:
    """`state` with the course of a run that gets other epochs, where it remembers one."""
    names = [entry.name for entry in fields(state)] if is_dataclass(state) else []
    return replace(state, course=course) if "course" in names else state


def gathered(state: State, seen: Observations) -> State:
    """`state` with what it has in `seen` merged with what is `seen` now: an `observe`."""
    return replace(state, seen=merge_windows(state.seen, seen))


def _unchanged(state: State, _seen: Observations) -> State:
    return state


def _reached(state: State, step: int) -> bool:
    return bool(step >= state.next)


def _no_influence(_model: ir.Model, _analysis: Analysis) -> Influence:
    return Influence()


def _no_scalars(_state: State, _step: int) -> Mapping[str, float]:
    return {}


class Pruner(NamedTuple):
    """A method.

    Attributes:
        init: (analysis, the run's course) -> state.
        decide: (state, moment) -> (state, plan or None); called when `due`.
        requires: what `observe` wants to see of the groups' consumers during training.
        observe: (state, observations of one step) -> state; cheap and pure.
        due: (state, step) -> whether to call `decide` now; else from the step `state.next` on.
        influence: (model, analysis) -> what to write into the graphs of the round that begins.
        scalars: (state, step) -> the numbers of that influence for this step.
        every: observe in every so many steps; None leaves it to the loop.
        rewinds: whether plans may ask for the weights of the run's start.
        needs_target: whether it only knows what to remove when it is told how much.
        removes: whether it removes anything at all.
    """

    init: Callable[[Analysis, Course], State]
    decide: Callable[[State, Moment], tuple[State, Plan | None]]
    requires: frozenset[Observable] = frozenset()
    observe: Callable[[State, Observations], State] = _unchanged
    due: Callable[[State, int], bool] = _reached
    influence: Callable[[ir.Model, Analysis], Influence] = _no_influence
    scalars: Callable[[State, int], Mapping[str, float]] = _no_scalars
    every: int | None = None
    rewinds: bool = False
    needs_target: bool = False
    removes: bool = True
