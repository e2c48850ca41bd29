"""What a run remembers of its evaluations, and which stage it returns."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from graphs import model

from onnxprune.base import Snapshot
from onnxprune.graph.groups import analyze
from onnxprune.training.config import RunConfig
from onnxprune.training.outcome import concluded
from onnxprune.training.pruning import Stage
from onnxprune.training.tally import Mark, Tally

NETWORK = model("(float[N, 2] x) => (float[N, 2] y) <float[2, 2] w> { y = MatMul(x, w) }")
STAGE = Stage(
    model=NETWORK,
    analysis=analyze(NETWORK),
    snapshot=Snapshot(step=0, parameters={"w": np.ones((2, 2), np.float32)}),
)


def mark(metric: float, step: int, removed: int = 0) -> Mark:
    stage = replace(STAGE, snapshot=replace(STAGE.snapshot, step=step))
    return Mark(stage=stage, metric=metric, loss=1 - metric, bounded=removed)


def judged(*metrics: float, removed: int = 0) -> Tally:
    """After evaluations with these accuracies, of a model given that had 0.9."""
    tally = Tally().started({"accuracy": 0.9, "loss": 0.1}, STAGE)
    for number, metric in enumerate(metrics, start=1):
        tally = replace(tally, bounded=removed)
        tally = tally.judged("accuracy", mark(metric, 10 * number, removed), 0.05)
    return tally


def test_evaluations_in_a_row_that_fell_are_counted() -> None:
    assert judged(0.9, 0.8, 0.7).fallen == 2
    assert judged(0.8, 0.86).fallen == 0
    assert judged(0.8, math.nan).fallen == 1


def test_going_back_takes_up_the_counts_of_the_good_stage() -> None:
    tally = judged(0.8, 0.7, removed=5)
    good = tally.good
    assert good is not None
    assert tally.is_smaller_than(good)
    back = tally.gone_back(good)
    assert (back.bounded, back.fallen, back.stale, back.settled) == (0, 0, 0, True)
    assert back.best is back.last is good
    assert not back.is_smaller_than(good)


@pytest.mark.parametrize(
    ("tally", "limit", "step"),
    [
        (judged(0.95, 0.93), 0.05, 10),
        (judged(0.95, 0.7), 0.05, 10),
        (judged(0.8, 0.7, removed=5), 0.05, 0),
        (judged(0.8, 0.7, removed=5), None, 10),
        (replace(judged(0.88), best=None, bounded=3), 0.05, 10),
        (replace(judged(0.88), best=None, bounded=3), None, 99),
    ],
    ids=["best", "best before a fall", "given", "no limit", "unjudged", "unjudged, no limit"],
)
def test_the_result_is_the_best_that_is_known_to_hold(
    tally: Tally, limit: float | None, step: int
) -> None:
    last = mark(0.0, 99).stage
    config = RunConfig(max_drop=limit)
    found = concluded(config, tally, last, witnesses={}, seconds=1.0, notes=("n",))
    assert found.stage.snapshot.step == step
    assert found.steps == 99
    assert found.notes[-1] == "n"
