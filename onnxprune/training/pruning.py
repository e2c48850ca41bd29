"""One removal in the middle of a run: what the method sees, and what its plan does to the stage."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import (
    Array,
    Axis,
    Index,
    Mask,
    Plan,
    Snapshot,
)
from onnxprune.data import TARGET
from onnxprune.errors import PlanError
from onnxprune.graph import cost
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.graph.parameters import trained
from onnxprune.graph.timing import Timing
from onnxprune.methods import Limit, Moment
from onnxprune.methods.compose import RECOVERY
from onnxprune.model import constants
from onnxprune.reports import Pruned
from onnxprune.rewrite.checked import Checked, checked_prune
from onnxprune.rewrite.prune import prune, take, take_moments
from onnxprune.runtime.single import widened
from onnxprune.schedules import SPARSITY
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import Problem, sized
from onnxprune.training.rounds import as_stored, averaged, own_array, written
from onnxprune.training.sample import Sample
from onnxprune.training.teacher import descend
from onnxprune.updates.around import AVERAGE

__all__ = [
    "START",
    "Stage",
    "apply",
    "inputs_of",
    "limit_at",
    "moment",
    "remembering",
    "removable",
    "sample_size",
    "size",
]

START = "start"
"""The moment that holds the weights with which the run began, sliced along."""

_LARGEST_SAMPLE = 2048  # examples; more would not change what is constant
_SMALLEST_SAMPLE = 256
_SHARE = 0.015  # of the training time, for probes; observing steps take as much again at most
_FORWARD = 1 / 3  # cost of a forward pass, in training steps
_MARGIN = 0.05  # of a latency: how far below the target the table must say it is


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stage:
    """All that a run carries from round to round.

    Attributes:
        model: the user's graph as pruned so far; its trained numbers are those of the last removal.
        analysis: of this graph.
        snapshot: the numbers of now.
        origins: which indices of the model given those values have left that a teacher's are
            compared with; an axis that lost none is absent.
    """

    model: ir.Model
    analysis: Analysis
    snapshot: Snapshot
    origins: Mapping[Axis, Index] = field(default_factory=dict)

    def current(self) -> ir.Model:
        """The model with the numbers of now."""
        return written(self.model, self.snapshot)

    def result(self) -> ir.Model:
        """The model as it is judged and saved: with the averages of its numbers, if there are."""
        return written(self.model, averaged(self.snapshot))


def removable(model: ir.Model, config: RunConfig, *, before: Analysis | None = None) -> Analysis:
    """The analysis without the groups that the user keeps; names are those of `before`."""
    analysis = analyze(sized(model, config), before=before)
    if config.keep is None:
        return analysis
    pattern = re.compile(config.keep)
    groups = tuple(group for group in analysis.groups if not pattern.search(group.name))
    return replace(analysis, groups=groups)


def size(kind: str, model: ir.Model, analysis: Analysis) -> int:
    """Parameters or MACs of `model`."""
    return cost.parameters(model) if kind == "params" else cost.macs(model, analysis)


def limit_at(
    config: RunConfig, before: Mapping[str, int], progress: float, timing: Timing | None = None
) -> Limit | None:
    """What may remain at `progress` in [0, 1] of the run; None without a target.

    The run's schedule is through before the part that is left for recovery.

    Args:
        config: of the run.
        before: what the model given has, per kind of target.
        progress: steps done, as a share.
        timing: for a latency.
    """
    goal = config.goal
    if goal is None:
        return None
    start = before[goal.kind]
    final = goal.limit(start)
    if goal.kind == "latency" and final < start:
        final = max(int((1 - _MARGIN) * final), 1)
    done = SPARSITY[config.target_schedule](min(progress / (1 - RECOVERY), 1.0))
    now = int(start - (start - final) * done)
    return Limit(kind=goal.kind, now=now, final=final, timing=timing)


def sample_size(interval: int, batch_size: int, examples: int, *, static: bool = False) -> int:
    """Examples for a probe whose forward passes cost at most 1.5 % of the steps between two checks.

    Never fewer than 256, as far as there are as many: fewer say too little about dead units, and
    with short intervals this costs more. Whole batches where the batch axis is static.
    """
    affordable = int(_SHARE * interval * batch_size / _FORWARD)
    count = min(max(affordable, _SMALLEST_SAMPLE), _LARGEST_SAMPLE, examples)
    return max(count // batch_size, 1) * batch_size if static else count


def moment(
    problem: Problem,
    stage: Stage,
    *,
    steps: int,
    loss: float,
    limit: Limit | None,
    validation: float = math.nan,
    sample: Mapping[str, Array],
) -> Moment:
    """What the method may look at now; `sample` is a part of the training inputs."""
    facts = {"steps": steps, "loss": loss, "validation": validation, "limit": limit}
    return _moment_of(problem, stage, stage.current(), sample, **facts)


def _moment_of(
    problem: Problem, stage: Stage, model: ir.Model, inputs: Mapping[str, Array], **facts: Any
) -> Moment:
    """The moment of `stage` with the numbers of `model`."""
    sample = Sample(problem=problem, analysis=stage.analysis, model=model, inputs=inputs)

    def altered(arrays: Mapping[str, Array]) -> Moment:
        other = written(model, Snapshot(step=stage.snapshot.step, parameters=arrays))
        return _moment_of(problem, stage, other, inputs, **facts)

    return Moment(
        step=stage.snapshot.step,
        model=model,
        analysis=stage.analysis,
        trivial=problem.trivial_loss,
        probe=sample.probe,
        measure=sample.measure,
        altered=altered,
        parameters=frozenset(stage.snapshot.parameters),
        round_to=problem.config.multiple,
        **facts,
    )


def apply(
    problem: Problem, stage: Stage, plan: Plan, feeds: Mapping[str, Array]
) -> tuple[Stage, Pruned]:
    """The stage after `plan`, verified on `feeds`, and the record of it."""
    started = time.perf_counter()
    stage = _without_entries(stage, plan)
    checked = checked_prune(stage.current(), stage.analysis, plan, feeds, device=problem.device)
    after = _started_anew(_next(problem, stage, checked), plan)
    removed = {name: int(np.count_nonzero(~mask)) for name, mask in checked.plan.keep.items()}
    return after, Pruned(
        step=stage.snapshot.step,
        removed={name: count for name, count in removed.items() if count},
        exact=checked.exact,
        bounded=checked.bounded,
        error=checked.agreement.error,
        tolerance=checked.agreement.allowed,
        change=plan.change,
        bound=plan.bound,
        rolled_back=checked.rolled_back,
        parameters=cost.parameters(after.model),
        macs=cost.macs(after.model, after.analysis),
        masked=after.snapshot.masked,
        seconds=time.perf_counter() - started,
    )


def _next(problem: Problem, stage: Stage, checked: Checked) -> Stage:
    """Analysis and snapshot of the pruned model; what appeared in exchange is trained as well."""
    model, kept = checked.pruned.model, checked.pruned.kept
    if not kept:
        return stage
    analysis = removable(model, problem.config, before=stage.analysis)
    values = constants(model)
    names = trained(
        model, analysis, train=problem.config.train_params, freeze=problem.config.frozen
    ).parameters
    before = set(constants(stage.model))
    trained_before = set(stage.snapshot.parameters)
    parameters = {
        name: _carried(values[name], stage.snapshot.parameters.get(name), kept)
        for name in names
        if name in trained_before or name not in before
    }
    state = {name: take(name, array, kept) for name, array in stage.snapshot.state.items()}
    moments = take_moments(stage.snapshot.moments, kept, parameters)
    if AVERAGE in moments:
        moments[AVERAGE] = _pruned_averages(stage, checked.plan, (*parameters, *state))
    masks = {
        name: take(name, mask, kept) | (parameters[name] != 0)  # what took something over
        for name, mask in stage.snapshot.masks.items()
        if name in parameters
    }
    snapshot = replace(
        stage.snapshot, parameters=parameters, moments=moments, state=state, masks=masks
    )
    origins = descend(stage.origins, kept, problem.hidden)
    return Stage(model=model, analysis=analysis, snapshot=snapshot, origins=origins)


def _pruned_averages(stage: Stage, plan: Plan, names: Iterable[str]) -> dict[str, Array]:
    """The moving averages after `plan`, which folds and merges by their numbers."""
    model = prune(stage.result(), stage.analysis, plan).model
    values = constants(model)
    return {name: own_array(values[name]) for name in names}


def _without_entries(stage: Stage, plan: Plan) -> Stage:
    """The stage with the plan's masks beside those of earlier plans, and zeros where they say so.

    Raises:
        PlanError: a mask that fits no trained parameter.
    """
    if not plan.masks:
        return stage
    parameters, masks = dict(stage.snapshot.parameters), dict(stage.snapshot.masks)
    averages = dict(stage.snapshot.moments.get(AVERAGE, {}))
    for name, mask in plan.masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise PlanError(
                f"mask of {name}: expected a trained parameter of shape {mask.shape}", name=name
            )
        masks[name] = masks.get(name, np.True_) & mask
        for arrays in (parameters, averages):
            if name in arrays:
                arrays[name] = _masked(arrays[name], masks[name])
    moments = dict(stage.snapshot.moments)
    if averages:
        moments[AVERAGE] = averages
    snapshot = replace(stage.snapshot, parameters=parameters, moments=moments, masks=masks)
    return replace(stage, snapshot=snapshot)


def _masked(array: Array, mask: Mask) -> Array:
    """`array` with zeros where `mask` is not set."""
    return np.where(mask, array, 0).astype(array.dtype)


def _started_anew(stage: Stage, plan: Plan) -> Stage:
    """The stage with fresh moments, and with the weights of the run's start, as the plan asks.

    Raises:
        PlanError: it asks for weights of the start that the run does not keep.
    """
    snapshot = stage.snapshot
    if plan.rewind:
        start = snapshot.moments.get(START)
        if start is None:
            raise PlanError("rewind: the run does not keep the weights it began with")
        parameters = {
            name: _masked(start[name], snapshot.masks[name]) if name in snapshot.masks else array
            for name, array in start.items()
        }
        moments = dict(snapshot.moments)
        if AVERAGE in moments:
            moments[AVERAGE] = {**moments[AVERAGE], **parameters}
        snapshot = replace(snapshot, parameters=parameters, moments=moments)
    if plan.reset_moments:
        kept = {slot: held for slot, held in snapshot.moments.items() if slot in (START, AVERAGE)}
        snapshot = replace(snapshot, moments=kept, since=snapshot.step)
    return replace(stage, snapshot=snapshot)


def remembering(stage: Stage) -> Stage:
    """The stage with its weights kept as those of the start, for methods that rewind."""
    start = {name: np.array(array) for name, array in stage.snapshot.parameters.items()}
    moments = {**stage.snapshot.moments, START: start}
    return replace(stage, snapshot=replace(stage.snapshot, moments=moments))


def _carried(value: ir.Value, master: Array | None, kept: Mapping[Axis, Index]) -> Array:
    """A parameter's numbers after a removal.

    Where the file's type is not float32, numbers that the removal left alone are still those of the
    session, not what became of them in that type.
    """
    after = own_array(value)
    if master is None or value.dtype is ir.DataType.FLOAT:
        return after
    before = take(value.name or "", master, kept)
    if before.shape != after.shape:
        return after
    return np.where(widened(as_stored(value, before)) == after, before, after)


def inputs_of(batch: Mapping[str, Array]) -> dict[str, Array]:
    """A batch without its targets."""
    return {name: array for name, array in batch.items() if not name.startswith(TARGET)}
