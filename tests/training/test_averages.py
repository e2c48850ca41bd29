"""Steps of several passes and moving averages, in whole runs and across removals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnxprune_models import path
from runs import SHRINK, Train, digits
from stages import first_stage, posed, stepped

from onnxprune.base import Plan
from onnxprune.reports import Pruned
from onnxprune.rewrite.prune import prune
from onnxprune.runtime.verify import compare
from onnxprune.training.pruning import apply, inputs_of

pytestmark = pytest.mark.ort


def test_averages_and_accumulated_steps_survive_removals(train: Train) -> None:
    result = train(path("digits_lenet"), ema=0.9, accumulate=2, batch_size=16, **SHRINK)
    assert result.of(Pruned)
    assert result.report.after.parameters < result.report.before.parameters
    assert result.report.after.metrics["accuracy"] > 0.9
    assert result.report.steps == 4 * -(-len(digits(10**6)[0]) * 9 // 10 // 32)


def test_averages_are_pruned_as_the_model_they_make_is(tmp_path: Path) -> None:
    """After a plan, the averages are those of the averaged model after the same plan."""
    problem = posed(tmp_path, path("digits_mlp"), digits(), ema=0.5, validation_fraction=0.0)
    stage = stepped(problem, first_stage(problem), 10, learning_rate=0.01)
    group = max(stage.analysis.groups, key=lambda group: group.size)
    keep = np.arange(group.size) % 3 > 0
    sample = inputs_of(problem.train.batch(np.arange(32)))
    after, record = apply(problem, stage, Plan(keep={group.name: keep}), sample)
    assert sum(record.removed.values()) == np.count_nonzero(~keep)
    whole, small = stage.result(), after.result()
    expected = prune(whole, stage.analysis, Plan(keep={group.name: keep})).model
    found = compare(expected, small, sample, tolerance=1e-6)
    assert found.holds
    assert not compare(after.current(), small, sample, tolerance=1e-6).holds
