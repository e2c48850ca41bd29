from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from checks import DEVICE
from graphs import feeds, model

from onnxprune.base import Plan
from onnxprune.graph.groups import analyze
from onnxprune.instrument.statistics import attach
from onnxprune.methods.lossless import REQUIRES, Findings, lossless, observed_axes
from onnxprune.rewrite.prune import prune
from onnxprune.runtime.session import Runner
from onnxprune.runtime.verify import compare
from onnxprune.windows import merge_windows

DEEP = """(float[N, 3] x) => (float[N, 2] y)
<float[3, 4] w, float[4] b, float[4, 5] v, float[5] c, float[5, 2] u>
{ h = MatMul(x, w) hb = Add(h, b) a = Relu(hb) k = MatMul(a, v) kc = Add(k, c) r = Relu(kc)
  y = MatMul(r, u) }"""


def deep(**constants: Any) -> ir.Model:
    """DEEP without a unit that is dead by chance: every column of v has a positive weight."""
    v = np.random.default_rng(5).normal(size=(4, 5)).astype(np.float32)
    v[0] = np.abs(v[0])
    return model(DEEP, **{"v": v, **constants})


def found(network: ir.Model, *, trusted: bool, **data: Any) -> Findings | None:
    analysis = analyze(network)
    ranks = {name: len(sizes) for name, sizes in analysis.shapes.items()}
    axes = observed_axes(network, analysis)
    instrumented, collector = attach(network, axes, REQUIRES, ranks)
    inputs = data or feeds(network, batch=40)
    results = Runner(instrumented, device=DEVICE).run(inputs, collector.names)
    seen = merge_windows({}, collector.collect(results))
    return lossless(network, analysis, seen, trusted=trusted)


def removed(plan: Plan) -> dict[str, list[int]]:
    return {name: np.flatnonzero(~mask).tolist() for name, mask in plan.keep.items()}


def unchanged(network: ir.Model, plan: Plan) -> bool:
    smaller = prune(network, analyze(network), plan).model
    data = feeds(network, batch=30, seed=9)
    return compare(network, smaller, data, device=DEVICE, tolerance=1e-5).holds


def test_units_made_of_zeros_go_whatever_their_bias_and_whatever_the_input() -> None:
    w = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    w[:, [1, 2]] = 0
    network = deep(w=w, b=np.array([0, 2, -1, 0], np.float32))
    result = found(network, trusted=False)
    assert result is not None
    assert removed(result.plan) == {"w": [1, 2]}
    assert (result.proven, result.observed, result.duplicates) == (2, 0, 0)
    assert [fold.unit for fold in result.plan.folds] == [1]
    assert unchanged(network, result.plan)


def test_a_relu_that_no_input_can_make_positive_goes() -> None:
    v = np.abs(np.random.default_rng(0).normal(size=(4, 5))).astype(np.float32)
    v[:, 3] *= -1
    network = deep(v=v, c=np.zeros(5, np.float32))
    result = found(network, trusted=False)
    assert result is not None
    assert removed(result.plan) == {"v": [3]}
    assert result.proven == 1
    assert unchanged(network, result.plan)


def test_units_that_are_dead_on_a_sample_go_only_when_the_sample_is_data() -> None:
    network = deep(b=np.array([0, 0, -1000, 0], np.float32))
    assert found(network, trusted=False) is None
    result = found(network, trusted=True)
    assert result is not None
    assert removed(result.plan) == {"w": [2]}
    assert (result.proven, result.observed) == (0, 1)


def test_duplicates_go_without_data_and_one_survivor_takes_over_several() -> None:
    w = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    w[:, 1], w[:, 3] = w[:, 0], 2 * w[:, 0]
    network = deep(w=w, b=np.zeros(4, np.float32))
    total = 0
    for _ in range(3):
        result = found(network, trusted=False)
        if result is None:
            break
        assert unchanged(network, result.plan)
        total += result.duplicates
        network = prune(network, analyze(network), result.plan).model
    assert total == 2


def test_nothing_is_found_in_an_ordinary_network_and_the_last_unit_stays() -> None:
    assert found(deep(), trusted=False) is None
    dead = deep(w=np.zeros((3, 4), np.float32), b=np.zeros(4, np.float32))
    result = found(dead, trusted=True)
    assert result is not None
    assert all(mask.any() for mask in result.plan.keep.values())


def test_groups_seen_as_a_whole_by_a_mean_are_left_alone() -> None:
    w = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    w[:, 1] = 0
    network = model(
        """(float[N, 3] x) => (float[N, 1] y) <float[3, 4] w>
        { h = MatMul(x, w) y = ReduceMean<axes = [1]>(h) }""",
        w=w,
    )
    assert found(network, trusted=True) is None
