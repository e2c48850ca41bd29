"""Whether the shortcuts of a run are decoupled: only where models get faster by it.

`with_shortcuts` is the entry. What a run would end with is not known at its beginning, so both
forms of the model are pruned by magnitude to the run's target and measured side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from onnxprune.base import Plan
from onnxprune.graph import cost
from onnxprune.graph.balance import completed_keep
from onnxprune.graph.groups import analyze
from onnxprune.graph.weights import weights
from onnxprune.methods.allocation import allocate
from onnxprune.methods.importance import importance
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.residual import decoupled, faster, settled
from onnxprune.runtime.latency import latencies
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import Problem, sized
from onnxprune.training.pruning import Stage, removable
from onnxprune.training.target import Target

__all__ = ["sizes_given", "with_shortcuts"]

_TRIAL = Target(kind="params", fraction=0.5)  # of a run without a target


def with_shortcuts(problem: Problem) -> Problem:
    """`problem` with the form of the model that its configuration asks for.

    The configuration then says what was decided, so that a run that goes on decides the same.
    """
    config = problem.config
    if config.residual == "coupled":
        return problem
    loose, names = decoupled(problem.model, analyze(sized(problem.model, config)))
    if not names:
        note = "--residual: the model has no shortcuts"
        return _decided(problem, "coupled", note)
    wins, note = True, f"{len(names)} shortcuts decoupled"
    if config.residual == "decouple":
        models = [_small(problem.model, config, ()), _small(loose, config, names)]
        batch = problem.first_inputs(problem.batch_size)
        wins, note = faster(*latencies(models, batch, device=problem.device))
        note += ", pruned by magnitude to the target"
    if not wins:
        return _decided(problem, "coupled", note)
    decided = _decided(problem, "decouple-always", note)
    return replace(decided, model=loose, shortcuts=names)


def sizes_given(problem: Problem, stage: Stage) -> dict[str, int]:
    """Parameters and MACs of the model given; matrices that decouple its shortcuts are not counted.

    Args:
        problem: with the form of the model that was decided.
        stage: the one that the run begins with.
    """
    given = settled(problem.model, problem.shortcuts)
    analysis = removable(given, problem.config) if problem.shortcuts else stage.analysis
    return {"params": cost.parameters(given), "macs": cost.macs(given, analysis)}


def _decided(problem: Problem, residual: str, note: str) -> Problem:
    config = replace(problem.config, residual=residual)
    return replace(problem, config=config, notes=(*problem.notes, note))


def _small(model: ir.Model, config: RunConfig, names: Iterable[str]) -> ir.Model:
    """The model pruned by magnitude, as far as the run is to prune it."""
    analysis, goal = removable(model, config), config.goal or _TRIAL
    if goal.kind == "latency":
        goal = _TRIAL if goal.fraction is None else replace(goal, kind="macs")
    held, criterion = weights(model, analysis), importance("magnitude")
    found = {group.name: criterion.score(group, held, {}) for group in analysis.groups}
    scores = {name: score for name, score in found.items() if score is not None}
    remaining = cost.Remaining(model, analysis, goal.kind)
    complete = partial(completed_keep, analysis, worth=scores, round_to=config.multiple)
    allocated = allocate(
        analysis.groups, scores, goal.limit(remaining({})), remaining, complete=complete
    )
    return settled(prune(model, analysis, Plan(keep=allocated.keep)).model, names)
