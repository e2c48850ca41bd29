"""Removal on schedule: when a method waits, and what for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from graphs import feeds
from moments import moment
from onnxprune_models import builders

from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.methods import Course, Limit, Pruner, make

NETWORK = builders.mlp([10, 24, 16, 4])
LIMIT = Limit(kind="params", now=cost.parameters(NETWORK) - 50, final=cost.parameters(NETWORK) // 2)


def removes(pruner: Pruner, losses: list[tuple[float, float]]) -> list[bool]:
    """Whether each decision of an early run removes something; (training, validation) losses."""
    state = pruner.init(analyze(NETWORK), Course(steps=1000, epoch=20, interval=10))
    found = []
    for number, (loss, validation) in enumerate(losses):
        here = moment(NETWORK, feeds(NETWORK), step=10 * number, loss=loss, limit=LIMIT)
        state, plan = pruner.decide(state, replace(here, validation=validation))
        found.append(plan is not None)
    return found


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([(1.0, math.nan), (1.2, math.nan), (1.0, math.nan)], [True, False, True]),
        ([(1.0, 2.0), (0.5, 3.0), (0.4, 2.05)], [True, False, True]),
        ([(1.0, 2.0), (9.0, 1.0)], [True, True]),
    ],
    ids=["training alone", "validation rises", "only training rises"],
)
def test_an_adaptive_method_waits_while_the_loss_is_above_its_lowest(
    losses: list[tuple[float, float]], expected: list[bool]
) -> None:
    pruner = make("magnitude", {"adaptive": True})
    assert pruner is not None
    assert removes(pruner, losses) == expected
    patient = make("magnitude")
    assert patient is not None
    assert removes(patient, losses) == [True] * len(losses)
