"""A whole run: read, train and remove, verify, write the smaller model, and say what came of it.

`train` is the entry, and what the command line calls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.data import Source
from onnxprune.errors import ConfigError, NonFiniteLossError
from onnxprune.graph.parameters import trained
from onnxprune.methods import make
from onnxprune.model import save
from onnxprune.reports import (
    Event,
    Finished,
    Report,
    Resumed,
    RunDirectory,
    Started,
    read_records,
)
from onnxprune.runtime.session import check_runtime
from onnxprune.training.config import RunConfig
from onnxprune.training.delivery import deliver, metrics_of
from onnxprune.training.encoding import encode
from onnxprune.training.guards import output_path
from onnxprune.training.keeper import Keeper, newest
from onnxprune.training.loop import Loop
from onnxprune.training.outcome import Outcome
from onnxprune.training.problem import Problem, pose
from onnxprune.training.pruning import Stage, removable
from onnxprune.training.resuming import Request, check_same, describe, reopened
from onnxprune.training.rounds import begin
from onnxprune.training.shortcuts import with_shortcuts

__all__ = ["train"]

_log = logging.getLogger(__name__)

_TERMINATED = 128 + signal.SIGTERM  # what shells report of a process that SIGTERM ended

OnEvent = Callable[[Event], None]


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
        SystemExit: SIGTERM came during the training; model, report and checkpoint are written as
            after Ctrl-C, and the code is 143.
        OnnxPruneError: one of its leaves; see `onnxprune.errors`. What is found out before the
            first step leaves nothing behind; later there is the run directory, with the last good
            model in it when the result itself could not be written.
    """
    request = _request(
        model, data, validation=validation, output=output, resume=resume, options=options
    )
    with contextlib.ExitStack() as held:
        if request.directory is not None:
            held.enter_context(request.directory.claimed())
        return _carried_out(request, on_event, held)


def _carried_out(
    request: Request, on_event: OnEvent | None, held: contextlib.ExitStack
) -> tuple[ir.Model, Report]:
    """The run that `request` asks for; `held` keeps the claim on its folder."""
    started = time.perf_counter()
    target = output_path(request.model, request.output, protected=request.reads)
    check_runtime(training=True)
    problem = pose(
        request.model, request.data, validation=request.validation, config=request.config
    )
    problem = with_shortcuts(problem)
    request = replace(request, config=problem.config)
    stage = _first_stage(problem)
    checkpoint = None
    if request.directory is not None:
        check_same(request, problem)
        checkpoint = newest(request.directory, stage, request.config)
    loop = Loop(
        problem,
        make(request.config.method, request.config.method_options, seed=request.config.seed),
        stage,
        lambda event: emit(event),
        resumed=checkpoint,
    )
    encode(loop.state)  # before hours of training: a checkpoint must be able to hold it
    directory = _directory(request, loop, held)
    directory.truncate(0 if checkpoint is None else checkpoint.records)
    directory.write_config(request.config.to_dict(), describe(request, problem, target))
    emit = _emitter(directory, on_event)
    if checkpoint is None:
        emit(_started(request, stage, loop.before))
    elif on_event is not None:
        on_event(Resumed(step=checkpoint.step, steps=loop.steps, run_directory=directory.path))
    outcome = _trained(loop, problem, stage, directory)
    result, report = deliver(problem, request, target, stage, outcome, directory)
    before = 0.0 if checkpoint is None else checkpoint.seconds
    report = replace(report, seconds=before + time.perf_counter() - started)
    emit(Finished(report=report.to_dict()))
    if outcome.terminated:
        _log.warning("terminated; go on with --resume %s", directory.path)
        raise SystemExit(_TERMINATED)
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
        problem.model, analysis, train=config.train_params, freeze=config.frozen
    ).parameters
    snapshot = begin(problem, problem.model, names)
    return Stage(model=problem.model, analysis=analysis, snapshot=snapshot)


def _directory(request: Request, loop: Loop, held: contextlib.ExitStack) -> RunDirectory:
    """The folder of the run: a new one, claimed, or that of the run that goes on.

    Raises:
        ConfigError: nothing is left to do there.
    """
    config, directory = request.config, request.directory
    if directory is None:
        if config.run_directory is not None:
            directory = RunDirectory.open(config.run_directory)
        else:
            directory = RunDirectory.create("runs", Path(request.model).stem)
        held.enter_context(directory.claimed())
    elif loop.is_over and any(isinstance(e, Finished) for e in read_records(directory.path)):
        done = loop.tally.epochs
        why, more = ("", "more --epochs")
        if done < config.epochs:
            why = f", {config.patience} of them without improvement"
            more = "a larger --patience"
        raise ConfigError(
            f"--resume {directory.path}: the run is finished after {done} epochs{why}; "
            f"give {more} to train on",
            path=directory.path,
        )
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


def _started(request: Request, stage: Stage, before: Mapping[str, int]) -> Started:
    groups = stage.analysis.groups
    return Started(
        model=os.fspath(request.model),
        parameters=before["params"],
        macs=before["macs"],
        groups=len(groups),
        units=sum(group.size for group in groups),
        config=request.config.to_dict(),
    )


def _trained(loop: Loop, problem: Problem, stage: Stage, directory: RunDirectory) -> Outcome:
    """Run the loop; when the loss breaks, the last evaluated model is kept in the run directory."""
    baseline = None
    if problem.validation is not None and loop.tally.baseline is None:
        baseline = metrics_of(problem, stage.model, problem.validation)
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
