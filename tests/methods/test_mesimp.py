"""meSimp: hits become removals, cycles alternate, moments start again."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model
from moments import moment, observe_training

from onnxprune.base import Axis, Plan, Window
from onnxprune.errors import ConfigError
from onnxprune.graph.groups import analyze
from onnxprune.methods import Course, Pruner, meprop, mesimp
from onnxprune.methods.compose import TopK

pytestmark = pytest.mark.ort

COURSE = Course(steps=100, epoch=20, interval=10)
MLP = """(float[N, 4] x) => (float[N, 3] y) <float[4, 4] w, float[4] b, float[4, 3] v>
    { z = Gemm(x, w, b) a = Relu(z) y = MatMul(a, v) }"""


def network() -> ir.Model:
    return model(MLP)


def after(pruner: Pruner, hits: list[float], *, windows: int = 1, examples: int = 4) -> Plan | None:
    """What the last of several windows with the same hits decides."""
    net = network()
    state = pruner.init(analyze(net), COURSE)
    plan = None
    for number in range(windows):
        window = Window(count=examples, batches=1, hits=np.array(hits, np.float64))
        state = pruner.observe(state, {Axis("z", 1): window})
        now = moment(net, feeds(net), step=10 * (number + 1))
        state, plan = pruner.decide(state, now)
    return plan


def kept(plan: Plan | None) -> list[int]:
    return list(range(4)) if plan is None or not plan.keep else _indices(plan)


def _indices(plan: Plan) -> list[int]:
    return np.flatnonzero(next(iter(plan.keep.values()))).tolist()


@pytest.mark.parametrize(("rate", "expected"), [(0.5, [0, 1, 3]), (0.3, [0, 1, 2, 3]), (1.0, [0])])
def test_units_below_the_threshold_go_and_the_most_active_one_stays(
    rate: float, expected: list[int]
) -> None:
    """Four examples: thresholds int(4 * 0.5) = 2, int(4 * 0.3) = 1 and 4."""
    assert kept(after(mesimp(k=2, rate=rate), [2, 2, 1, 2])) == expected


def test_units_go_in_even_cycles_only_and_moments_start_again_with_each_cycle() -> None:
    pruner = mesimp(k=2, rate=0.5, cycle=2)
    plans = [after(pruner, [2, 2, 1, 2], windows=number) for number in range(1, 6)]
    everything, active = [0, 1, 2, 3], [0, 1, 3]
    assert [kept(plan) for plan in plans] == [active, active, everything, everything, active]
    fresh = [plan is not None and plan.reset_moments for plan in plans]
    assert fresh == [False, False, True, False, True]


def test_cycles_are_five_epochs_long_where_nothing_else_is_said() -> None:
    """An epoch of 20 steps has two windows of 10."""
    plans = [after(mesimp(k=2, rate=0.5), [2, 2, 1, 2], windows=n) for n in (10, 11, 20, 21)]
    assert [kept(plan) for plan in plans] == [[0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 3]]


def test_it_counts_real_examples() -> None:
    net = network()
    pruner = mesimp(k=2)
    seen = observe_training(net, analyze(net), feeds(net, batch=9), pruner)
    window = seen[Axis("z", 1)]
    assert window.count == 9
    assert window.hits is not None
    assert 0 < window.hits.sum() <= 18


def test_meprop_changes_training_and_removes_nothing() -> None:
    net = network()
    pruner = meprop(k=3, unified=True)
    assert pruner.influence(net, analyze(net)).top_k == TopK(k=3, unified=True)
    assert not pruner.due(pruner.init(analyze(net), COURSE), 100)


@pytest.mark.parametrize(("option", "value"), [("k", 0), ("cycle", -1), ("rate", 1.5)])
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        mesimp(**{option: value})
