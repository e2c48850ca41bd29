"""From where a run ended to its file and its report.

Entry: `deliver`. What is written is read again and compared with what the session computed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnxprune.data import Split
from onnxprune.errors import InvariantError, ModelError
from onnxprune.gradients.lowering import evaluation_copy
from onnxprune.graph import cost
from onnxprune.graph.groups import Analysis
from onnxprune.model import constants, load, save, stored_size
from onnxprune.reports import (
    Report,
    RunDirectory,
    Size,
)
from onnxprune.rewrite.residual import settled
from onnxprune.runtime.batches import in_batches
from onnxprune.runtime.latency import latencies
from onnxprune.runtime.session import Runner, is_newer, lowered_note
from onnxprune.runtime.single import is_single, saturates
from onnxprune.runtime.verify import TOLERANCE, agreement, compare, is_random, tolerance_of
from onnxprune.training.evaluation import model_metrics
from onnxprune.training.outcome import Outcome
from onnxprune.training.problem import Problem
from onnxprune.training.pruning import Stage, removable, size
from onnxprune.training.resuming import Request
from onnxprune.training.target import Target

__all__ = ["deliver", "metrics_of"]

_COMPARED = 32  # examples on which models are compared and timed
_FILE_TOLERANCE = 1e-5  # of an output's magnitude: the file computes what the session computed


def deliver(
    problem: Problem,
    request: Request,
    target: Path,
    stage: Stage,
    outcome: Outcome,
    directory: RunDirectory,
) -> tuple[ir.Model, Report]:
    """Write the result, check the file, and compare it with the model given.

    Args:
        problem: what was trained on what.
        request: of the caller.
        target: where the result goes.
        stage: the model given, as it was trained.
        outcome: where the run ended.
        directory: where the result is kept when it cannot be written to `target`.

    Returns:
        The result, and the report but for the time that all of it took.

    Raises:
        ModelError: the result cannot be written.
        InvariantError: the file computes something else.
    """
    result = settled(outcome.stage.result(), problem.shortcuts)
    _save(result, target, directory)
    _check_file(problem, result, target, outcome)
    notes = (
        *(*problem.notes, *request.notes, *_judged_note(problem)),
        *((lowered_note(problem.model),) if is_newer(problem.model) else ()),
        *(*_runtime_notes(problem, outcome, result), *outcome.notes),
    )
    return result, _report(problem, request.model, target, stage, outcome, result, directory, notes)


def _save(model: ir.Model, target: Path, directory: RunDirectory) -> None:
    """Write the result; where that fails, keep it in the run directory before saying so."""
    try:
        save(model, target)
    except ModelError as error:
        kept = directory.path / "last.onnx"
        save(model, kept)
        raise ModelError(f"{error}; the trained model is in {kept}", path=target) from error


def metrics_of(problem: Problem, model: ir.Model, split: Split) -> dict[str, float]:
    """Metrics of `model` on `split`, on the device of the run."""
    return model_metrics(
        problem.unfixed(model),
        split,
        problem.objectives,
        batch_size=problem.batch_size,
        static=problem.static_batch,
        device=problem.device,
        taught=problem.taught,
    )


def _check_file(problem: Problem, model: ir.Model, path: Path, outcome: Outcome) -> None:
    """The file that was written computes what the training session did, and the model in memory."""
    file = load(path)
    feeds = problem.first_inputs(_COMPARED)
    half = tolerance_of(file)
    tolerance = half if half > TOLERANCE else _FILE_TOLERANCE
    found = compare(model, file, feeds, device=problem.device, tolerance=tolerance)
    if found.holds and outcome.witness is not None:
        witnesses, predicted = outcome.witness
        name = problem.objective.prediction
        copy = evaluation_copy(file, [name])
        if not is_random(copy):  # else the session drew other numbers
            runner = Runner(copy, device=problem.device)
            again = in_batches(runner, witnesses, problem.own_batch or len(predicted))
            found = agreement({name: predicted}, again, tolerance=tolerance)
    if not found.holds:
        raise InvariantError(
            f"{path}: computes something else than the trained model (difference "
            f"{found.error:.1e}); please report this",
            path=path,
        )


def _report(
    problem: Problem,
    path: str | os.PathLike[str],
    target: Path,
    stage: Stage,
    outcome: Outcome,
    result: ir.Model,
    directory: RunDirectory,
    notes: tuple[str, ...],
) -> Report:
    given = settled(problem.model, problem.shortcuts)
    models = (given, result)
    times = latencies(models, problem.first_inputs(_COMPARED), device=problem.device)
    analyses = (stage.analysis, outcome.stage.analysis)
    if problem.shortcuts:
        analyses = (removable(given, problem.config), removable(result, problem.config))
    files = (stored_size(path), stored_size(target))
    before, after = _sizes(problem, stage, outcome, models, analyses, times, files)
    goal = problem.config.goal
    achieved = reached = None
    if goal is not None:
        whole, left = _counted(goal.kind, models, analyses, times)
        achieved, reached = left / whole, left <= goal.limit(whole)
        if not reached:
            notes += _missed(problem, goal, stage)
    return Report(
        model=os.fspath(path),
        output=os.fspath(target),
        before=before,
        after=after,
        exact=outcome.exact,
        bounded=outcome.bounded,
        steps=outcome.steps,
        seconds=0.0,
        training_seconds=outcome.seconds,
        target=problem.config.target,
        achieved=achieved,
        reached=reached,
        notes=notes,
        run_directory=os.fspath(directory.path),
    )


def _sizes(
    problem: Problem,
    stage: Stage,
    outcome: Outcome,
    models: Sequence[ir.Model],
    analyses: Sequence[Analysis],
    times: Sequence[float],
    files: Sequence[int],
) -> tuple[Size, Size]:
    """Of the model that went in, and of the one that came out."""
    units = sum(group.size for group in stage.analysis.groups)
    before, after = (
        Size(
            parameters=cost.parameters(model),
            macs=cost.macs(model, analysis),
            masked=masked,
            units=left,
            bytes=disk,
            latency_ms=taken,
            metrics={} if problem.judged is None else metrics_of(problem, model, problem.judged[1]),
        )
        for model, analysis, masked, left, taken, disk in zip(
            models,
            analyses,
            (0, outcome.stage.snapshot.masked),
            (units, units - outcome.exact - outcome.bounded),
            times,
            files,
            strict=True,
        )
    )
    return before, after


def _counted(
    kind: str,
    models: Sequence[ir.Model],
    analyses: Sequence[Analysis],
    times: Sequence[float],
) -> tuple[int, ...]:
    """Parameters, MACs or nanoseconds of each model."""
    if kind == "latency":
        return tuple(round(1e6 * taken) for taken in times)
    return tuple(size(kind, *each) for each in zip(models, analyses, strict=True))


def _missed(problem: Problem, goal: Target, stage: Stage) -> tuple[str, ...]:
    """Why a target was not reached."""
    config = problem.config
    if goal.kind == "latency":
        return ("latency: what is left was measured, the target was counted by the table",)
    least = cost.ceiling(stage.model, stage.analysis)[goal.kind != "params"]
    before = size(goal.kind, stage.model, stage.analysis)
    if least > goal.limit(before):
        what = "parameters" if goal.kind == "params" else "MACs"
        share = 100 * least / before
        return (f"the target is out of reach: at least {least} {what} ({share:.1f} %) must stay",)
    if config.method in ("none", "meprop"):
        return (f"the target is not reached because --method {config.method} removes nothing",)
    return ()


def _runtime_notes(problem: Problem, outcome: Outcome, result: ir.Model) -> tuple[str, ...]:
    """What the runtime cannot do with the result as it is."""
    runner = Runner(result, device=problem.device)
    notes = _type_notes(problem, outcome, single=runner.single)
    if not runner.plain:
        return notes
    plain = "the runtime's optimizations fail on this model: it was run without (ORT_DISABLE_ALL)"
    return (plain, *notes)


def _type_notes(problem: Problem, outcome: Outcome, *, single: bool) -> tuple[str, ...]:
    """How a model of other float types than float32 was trained, run and written."""
    if is_single(problem.model):
        return ()
    notes = ["trained in float32, written in the types of the file"]
    if single:
        notes.append("the runtime has no kernels for these types, so metrics are those in float32")
    values = constants(outcome.stage.model)
    beyond = [
        name
        for name, array in outcome.stage.snapshot.parameters.items()
        if saturates(array, values[name].dtype)
    ]
    if beyond:
        notes.append(
            f"numbers beyond the range of the file's type were cut off: {', '.join(beyond)}"
        )
    return tuple(notes)


def _judged_note(problem: Problem) -> tuple[str, ...]:
    if problem.judged is None:
        return ("no validation data: no metrics",)
    name, split = problem.judged
    return (f"metrics on {len(split)} {name} examples",)
