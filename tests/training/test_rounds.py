"""The graphs of a round: what they give back, and what they are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import model
from runs import DENSE, examples

from onnxprune.base import Observable
from onnxprune.graph.parameters import trained
from onnxprune.model import save
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import pose
from onnxprune.training.pruning import removable
from onnxprune.training.rounds import begin, opened

pytestmark = pytest.mark.ort


def test_a_step_gives_back_what_is_read_and_no_predictions(tmp_path: Path) -> None:
    save(model(DENSE), tmp_path / "model.onnx")
    config = RunConfig(batch_size=16, check="off", threads=1, clip=1.0)
    problem = pose(tmp_path / "model.onnx", examples(), validation=None, config=config)
    analysis = removable(problem.model, config)
    snapshot = begin(problem, problem.model, trained(problem.model, analysis).parameters)
    sites = [consumer.axis for group in analysis.groups for consumer in group.consumers]
    round_ = opened(problem, problem.model, analysis, snapshot, sites, frozenset({Observable.MEAN}))
    batch = problem.train.batch(np.arange(16))
    with round_.session as session:
        plain = session.train_step(batch, learning_rate=0.0)
        observed = session.train_step(batch, learning_rate=0.0, observe=True)
        assert set(plain.extra) == {"gradient_norm"}
        assert set(observed.extra) == {"gradient_norm", *round_.collector.names}
        assert round_.collector.names
        scores = session.evaluate({"x": batch["x"]})["y"]
    assert scores.shape == (16, 3)
    assert observed.loss == plain.loss
