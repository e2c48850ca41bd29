"""A whole run: read, train and remove, verify, write the smaller model, and say what came of it.

`train` is the entry, and what the command line calls.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Source
from onnxprune.errors import ConfigError, InvariantError, ModelError, NonFiniteLossError
from onnxprune.graph import cost
from onnxprune.graph.parameters import trained
from onnxprune.methods import METHODS
from onnxprune.model import constants, load, save, stored_size
from onnxprune.reports import (
    Event,
    Finished,
    Report,
    Resumed,
    RunDirectory,
    Size,
    Started,
    read_records,
)
from onnxprune.runtime.latency import latencies
from onnxprune.runtime.session import Runner, check_runtime, is_newer, lowered_note
from onnxprune.runtime.single import is_single, saturates
from onnxprune.runtime.verify import TOLERANCE, agreement, compare, tolerance_of
from onnxprune.training.checkpoint import Checkpoint
from onnxprune.training.config import RunConfig, output_path
from onnxprune.training.encoding import encode
from onnxprune.training.evaluation import model_metrics
from onnxprune.training.keeper import Keeper, newest
from onnxprune.training.loop import Loop, Outcome
from onnxprune.training.lowering import evaluation_copy
from onnxprune.training.problem import Problem, pose
from onnxprune.training.pruning import Stage, inputs_of, removable, size
from onnxprune.training.resuming import Request, check_same, describe, reopened
from onnxprune.training.rounds import begin

__all__ = ["train"]

_log = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]
_FILE_TOLERANCE = 1e-5  # of an output's magnitude: the file computes what the session computed


def train(
    model: str | os.PathLike[str] | None = None,
    data: Source | None = None,
    *,
    validation: Source | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    on_event: OnEvent | None = None,
    **options: Any,
) -> tuple[ir.Model, Report]:
    """Train a model and remove what it does not need; write and return the smaller one.

    Args:
        model: path of an ONNX file; never written to.
        data: path of an .npz file, name of an embedded data set, (x, y), or arrays by name.
        validation: the same; by default a part of the training data is put aside.
        output: where the result goes; <stem>.pruned.onnx in the current folder by default.
        resume: folder of a run that was killed, interrupted, or is to get more epochs. It goes on
            from its last checkpoint and, with the same threads, ends with the same bits as if
            nothing had happened. Everything else is then taken from there, where it is not given;
            only arrays must be given again.
        on_event: called with every event of the run (`onnxprune.reports`).
        options: fields of `RunConfig`.

    Returns:
        The pruned model, and the report on it.

    Raises:
        OnnxPruneError: one of its leaves; see `onnxprune.errors`. What is found out before the
            first step leaves nothing behind; later there is the run directory, with the last good
            model in it when the result itself could not be written.
    """
    started = time.perf_counter()
    request = _request(
        model, data, validation=validation, output=output, resume=resume, options=options
    )
    check_runtime(training=True)
    sources = (request.data, request.validation)
    protected = [item for item in sources if isinstance(item, str | os.PathLike)]
    target = output_path(request.model, request.output, protected=protected)
    problem = pose(
        request.model, request.data, validation=request.validation, config=request.config
    )
    stage = _first_stage(problem)
    checkpoint = None
    if request.directory is not None:
        check_same(request, problem)
        checkpoint = newest(request.directory, stage, request.config)
    method = METHODS[request.config.method]
    loop = Loop(
        problem,
        None if method is None else method(),
        stage,
        lambda event: emit(event),
        resumed=checkpoint,
    )
    encode(loop.state)  # before hours of training: a checkpoint must be able to hold it
    directory = _directory(request, problem, loop, target, checkpoint)
    emit = _emitter(directory, on_event)
    if checkpoint is None:
        emit(_started(request.model, stage, request.config))
    elif on_event is not None:
        on_event(Resumed(step=checkpoint.step, steps=loop.steps, run_directory=directory.path))
    outcome = _trained(loop, problem, stage, directory)
    result = outcome.stage.result()
    _save(result, target, directory)
    _check_file(problem, result, target, outcome)
    notes = (
        *(*problem.notes, *request.notes, *_judged_note(problem)),
        *((lowered_note(problem.model),) if is_newer(problem.model) else ()),
        *(*_type_notes(problem, outcome), *outcome.notes),
    )
    report = _report(problem, request.model, target, stage, outcome, result, directory, notes)
    before = 0.0 if checkpoint is None else checkpoint.seconds
    report = replace(report, seconds=before + time.perf_counter() - started)
    emit(Finished(report=report.to_dict()))
    return result, report


def _request(
    model: str | os.PathLike[str] | None,
    data: Source | None,
    *,
    validation: Source | None,
    output: str | os.PathLike[str] | None,
    resume: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
) -> Request:
    if resume is not None:
        return reopened(
            resume, model=model, data=data, validation=validation, output=output, options=options
        )
    config = RunConfig(**options)
    if model is None or data is None:
        raise ConfigError("nothing to train: give a model and data, or resume a run")
    return Request(model=model, data=data, validation=validation, output=output, config=config)


def _first_stage(problem: Problem) -> Stage:
    config = problem.config
    analysis = removable(problem.model, config)
    names = trained(
        problem.model, analysis, train=config.train_params, freeze=config.freeze
    ).parameters
    snapshot = begin(problem, problem.model, names)
    return Stage(model=problem.model, analysis=analysis, snapshot=snapshot)


def _directory(
    request: Request, problem: Problem, loop: Loop, target: Path, checkpoint: Checkpoint | None
) -> RunDirectory:
    """The folder of the run: a new one, or that of the run that goes on, without what came later.

    Raises:
        ConfigError: nothing is left to do there.
    """
    config, directory = request.config, request.directory
    if directory is None:
        if config.run_directory is not None:
            directory = RunDirectory.open(config.run_directory)
        else:
            directory = RunDirectory.create("runs", Path(request.model).stem)
    elif loop.is_over and any(isinstance(e, Finished) for e in read_records(directory.path)):
        raise ConfigError(
            f"--resume {directory.path}: the run is finished after {loop.tally.epochs} epochs; "
            "give more --epochs to train on",
            path=directory.path,
        )
    directory.truncate(0 if checkpoint is None else checkpoint.records)
    directory.write_config(config.to_dict(), describe(request, problem, target))
    return directory


def _emitter(directory: RunDirectory, on_event: OnEvent | None) -> OnEvent:
    """Pass events on; a disk that takes no more records does not end the training."""

    def emit(event: Event) -> None:
        try:
            directory.append(event)
        except OSError as error:
            _log.warning("%s: record not written (%s)", directory.path, error.strerror or error)
        if on_event is not None:
            on_event(event)

    return emit


def _save(model: ir.Model, target: Path, directory: RunDirectory) -> None:
    """Write the result; where that fails, keep it in the run directory before saying so."""
    try:
        save(model, target)
    except ModelError as error:
        kept = directory.path / "last.onnx"
        save(model, kept)
        raise ModelError(f"{error}; the trained model is in {kept}", path=target) from error


def _started(path: str | os.PathLike[str], stage: Stage, config: RunConfig) -> Started:
    groups = stage.analysis.groups
    return Started(
        model=os.fspath(path),
        parameters=cost.parameters(stage.model),
        macs=cost.macs(stage.model, stage.analysis),
        groups=len(groups),
        units=sum(group.size for group in groups),
        config=config.to_dict(),
    )


def _trained(loop: Loop, problem: Problem, stage: Stage, directory: RunDirectory) -> Outcome:
    """Run the loop; when the loss breaks, the last evaluated model is kept in the run directory."""
    baseline = None
    if problem.validation is not None and loop.tally.baseline is None:
        baseline = _metrics(problem, stage.model, problem.validation)
    try:
        return loop.run(baseline, Keeper(directory, stage, problem.config, loop.epoch_steps))
    except NonFiniteLossError as error:
        mark = loop.tally.best or loop.tally.last
        if mark is None:
            raise
        kept = directory.path / "last.onnx"
        save(mark.stage.result(), kept)
        raise NonFiniteLossError(
            f"{error}; the model of the last evaluation is in {kept}", **error.facts
        ) from error


def _metrics(problem: Problem, model: ir.Model, split: Any) -> dict[str, float]:
    return model_metrics(
        model,
        split,
        problem.objective,
        batch_size=problem.batch_size,
        static=problem.static_batch,
        device=problem.device,
    )


def _check_file(problem: Problem, model: ir.Model, path: Path, outcome: Outcome) -> None:
    """The file that was written computes what the training session did, and the model in memory."""
    file = load(path)
    feeds = _some_inputs(problem)
    half = tolerance_of(file)
    tolerance = half if half > TOLERANCE else _FILE_TOLERANCE
    found = compare(model, file, feeds, device=problem.device, tolerance=tolerance)
    if found.holds and outcome.witness is not None:
        feeds, predicted = outcome.witness
        name = problem.objective.prediction
        runner = Runner(evaluation_copy(file, [name]), device=problem.device)
        found = agreement({name: predicted}, runner.run(feeds), tolerance=tolerance)
    if not found.holds:
        raise InvariantError(
            f"{path}: computes something else than the trained model (difference "
            f"{found.error:.1e}); please report this",
            path=path,
        )


def _some_inputs(problem: Problem) -> Mapping[str, np.ndarray[Any, Any]]:
    count = problem.batch_size if problem.static_batch else min(32, len(problem.train))
    return inputs_of(problem.train.batch(np.arange(count)))


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
    models = (problem.model, result)
    times = latencies(models, _some_inputs(problem), device=problem.device)
    analyses = (stage.analysis, outcome.stage.analysis)
    files = (stored_size(path), stored_size(target))
    sizes = [
        Size(
            parameters=cost.parameters(each),
            macs=cost.macs(each, analysis),
            bytes=disk,
            latency_ms=taken,
            metrics={} if problem.judged is None else _metrics(problem, each, problem.judged[1]),
        )
        for each, analysis, taken, disk in zip(models, analyses, times, files, strict=True)
    ]
    goal = problem.config.goal
    achieved = reached = None
    if goal is not None:
        before = size(goal.kind, problem.model, stage.analysis)
        left = size(goal.kind, result, outcome.stage.analysis)
        achieved, reached = left / before, left <= goal.limit(before)
    return Report(
        model=os.fspath(path),
        output=os.fspath(target),
        before=sizes[0],
        after=sizes[1],
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


def _type_notes(problem: Problem, outcome: Outcome) -> tuple[str, ...]:
    """How a model of other float types than float32 was trained, run and written."""
    if is_single(problem.model):
        return ()
    notes = ["trained in float32, written in the types of the file"]
    if Runner(problem.model, device=problem.device).single:
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
