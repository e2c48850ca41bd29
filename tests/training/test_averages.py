"""Steps of several passes and moving averages, in whole runs and across removals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxprune_models import path
from runs import SHRINK, Train, digits

from onnxprune.base import Plan
from onnxprune.graph.parameters import trained
from onnxprune.reports import Pruned
from onnxprune.rewrite.prune import prune
from onnxprune.runtime.verify import compare
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import pose
from onnxprune.training.pruning import Stage, apply, inputs_of, removable
from onnxprune.training.rounds import begin, opened

pytestmark = pytest.mark.ort


def test_averages_and_accumulated_steps_survive_removals(train: Train) -> None:
    result = train(path("digits_lenet"), ema=0.9, accumulate=2, batch_size=16, **SHRINK)
    assert result.of(Pruned)
    assert result.report.after.parameters < result.report.before.parameters
    assert result.report.after.metrics["accuracy"] > 0.9
    assert result.report.steps == 4 * -(-len(digits(10**6)[0]) * 9 // 10 // 32)


def test_averages_are_pruned_as_the_model_they_make_is(tmp_path: Path) -> None:
    """After a plan, the averages are those of the averaged model after the same plan."""
    source = path("digits_mlp")
    config = RunConfig(ema=0.5, validation_fraction=0.0)
    problem = pose(source, digits(), validation=None, config=config)
    analysis = removable(problem.model, config)
    snapshot = begin(problem, problem.model, trained(problem.model, analysis).parameters)
    opening = opened(problem, problem.model, analysis, snapshot, (), frozenset())
    with opening.session as session:
        for start in range(0, 320, 32):
            batch = problem.train.batch(np.arange(start, start + 32))
            session.train_step(batch, learning_rate=0.01)
        stage = Stage(model=problem.model, analysis=analysis, snapshot=session.snapshot())
    group = max(analysis.groups, key=lambda group: group.size)
    keep = np.arange(group.size) % 3 > 0
    sample = inputs_of(problem.train.batch(np.arange(32)))
    after, record = apply(problem, stage, Plan(keep={group.name: keep}), sample)
    assert sum(record.removed.values()) == np.count_nonzero(~keep)
    whole, small = stage.result(), after.result()
    expected = prune(whole, analysis, Plan(keep={group.name: keep})).model
    found = compare(expected, small, sample, tolerance=1e-6)
    assert found.holds
    assert not compare(after.current(), small, sample, tolerance=1e-6).holds
