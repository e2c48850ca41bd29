"""Between a model and the rounds of a run: problems, and stages before and after some steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from graphs import model

from onnxprune.graph.parameters import trained
from onnxprune.model import save
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import Problem, pose
from onnxprune.training.pruning import Stage, removable
from onnxprune.training.rounds import begin, opened


def posed(folder: Path, source: Path | str | ir.Model, data: Any, **options: Any) -> Problem:
    """A run of a file, a model or what `graphs.model` reads."""
    if not isinstance(source, Path):
        save(model(source) if isinstance(source, str) else source, folder / "model.onnx")
        source = folder / "model.onnx"
    return pose(source, data, validation=None, config=RunConfig(**options))


def first_stage(problem: Problem) -> Stage:
    analysis = removable(problem.model, problem.config)
    names = trained(problem.model, analysis).parameters
    return Stage(
        model=problem.model, analysis=analysis, snapshot=begin(problem, problem.model, names)
    )


def stepped(problem: Problem, stage: Stage, steps: int, *, learning_rate: float = 0.05) -> Stage:
    """The stage after steps on 32 examples each."""
    round_ = opened(problem, stage.model, stage.analysis, stage.snapshot, [], frozenset())
    with round_.session as session:
        for step in range(steps):
            batch = problem.train.batch(np.arange(32 * step, 32 * step + 32) % len(problem.train))
            session.train_step(batch, learning_rate=learning_rate)
        snapshot = session.snapshot()
    return replace(stage, snapshot=snapshot)
