"""The graphs of a round: what they give back, and what they are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import DENSE, examples
from stages import first_stage, posed

from onnxprune.base import Observable
from onnxprune.graph.ends import consumer_axes
from onnxprune.training.rounds import opened

pytestmark = pytest.mark.ort


def test_a_step_gives_back_what_is_read_and_no_predictions(tmp_path: Path) -> None:
    options = {"batch_size": 16, "check": "off", "threads": 1, "clip": 1.0}
    problem = posed(tmp_path, DENSE, examples(), **options)
    stage = first_stage(problem)
    sites, wanted = consumer_axes(stage.analysis.groups), frozenset({Observable.MEAN})
    round_ = opened(problem, stage.model, stage.analysis, stage.snapshot, sites, wanted)
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
