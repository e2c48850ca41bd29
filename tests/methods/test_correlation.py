"""Correlated units: who takes whose place, and by which numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model
from moments import DEVICE, left, moment, normal

from onnxprune.base import Plan
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.methods import Course, Limit, make
from onnxprune.rewrite.prune import prune
from onnxprune.runtime.verify import compare

pytestmark = pytest.mark.ort
NETWORK = """(float[N, 6] x) => (float[N, 3] y)
    <float[6, 8] w, float[8] b, float[8, 3] v, float[3] c>
    { h = Gemm(x, w, b) a = Tanh(h) y = Gemm(a, v, c) }"""
CONVOLUTION = """(float[N, 2, 6, 6] x) => (float[N, 3, 6, 6] y)
    <float[8, 2, 3, 3] w, float[8] b, float[3, 8, 3, 3] v>
    { h = Conv <pads = [1, 1, 1, 1]> (x, w, b) a = Relu(h)
      y = Conv <pads = [1, 1, 1, 1]> (a, v) }"""


def decided(network: ir.Model, size: int) -> Plan:
    """The plan of an early decision that leaves at most `size` parameters."""
    pruner = make("correlation")
    assert pruner is not None
    state = pruner.init(analyze(network), Course(steps=100, epoch=20, interval=10))
    limit = Limit(kind="params", now=size, final=size)
    _, plan = pruner.decide(state, moment(network, feeds(network, batch=200), limit=limit))
    assert plan is not None
    return plan


def test_a_unit_that_follows_another_is_merged_into_it_and_nothing_changes() -> None:
    """With tanh, whatever the weights say: -u gives -a, which no offset has to mend."""
    w, b = normal(6, 8), normal(8)
    w[:, 5], b[5] = -w[:, 2], -b[2]
    network = model(NETWORK, w=w, b=b)
    plan = decided(network, cost.parameters(network) - 10)
    (merge,) = plan.merges
    assert {merge.victim, merge.survivor} == {2, 5}
    assert merge.scale == pytest.approx(-1, abs=1e-5)
    assert merge.offset == pytest.approx(0, abs=1e-5)
    smaller = prune(network, analyze(network), plan).model
    assert compare(network, smaller, feeds(network, batch=50), device=DEVICE, tolerance=1e-4).holds


def test_chains_of_followers_keep_one_of_them() -> None:
    w, b = normal(6, 8), normal(8)
    for unit in (1, 2, 3):
        w[:, unit], b[unit] = w[:, 0], b[0]
    network = model(NETWORK, w=w, b=b)
    plan = decided(network, cost.parameters(network) - 10)
    assert plan.removed() == 1
    (mask,) = plan.keep.values()
    assert mask[4:].all()
    two = decided(network, cost.parameters(network) - 30)
    (mask,) = two.keep.values()
    assert two.removed() == 3
    assert mask[:4].sum() == 1
    assert len(two.merges) + len(two.folds) == 3


def test_a_constant_unit_goes_first_and_into_the_biases() -> None:
    w, b = normal(6, 8), normal(8)
    w[:, 4], b[4] = 0, 0.7
    network = model(NETWORK, w=w, b=b)
    plan = decided(network, cost.parameters(network) - 10)
    (mask,) = plan.keep.values()
    assert not mask[4]
    assert plan.merges == ()
    (fold,) = plan.folds
    (values,) = fold.values.values()
    assert float(values[0]) == pytest.approx(float(np.tanh(0.7)), abs=1e-6)


def test_behind_padding_nothing_is_offset() -> None:
    w, b = normal(8, 2, 3, 3), normal(8)
    w[6], b[6] = 2 * w[1], 2 * b[1]
    network = model(CONVOLUTION, w=w, b=b)
    plan = decided(network, cost.parameters(network) - 20)
    (merge,) = plan.merges
    assert {merge.victim, merge.survivor} == {1, 6}
    assert merge.offset == 0
    smaller = prune(network, analyze(network), plan).model
    assert compare(network, smaller, feeds(network, batch=20), device=DEVICE, tolerance=1e-4).holds


def test_what_was_asked_for_remains() -> None:
    network = model(NETWORK, w=normal(6, 8), b=normal(8))
    size = cost.parameters(network) // 2
    plan = decided(network, size)
    assert left(network, analyze(network), plan) <= size


def test_a_mean_that_drowns_what_varies_makes_no_unit_free() -> None:
    """The squares of 30000 leave float32 no digit; still, what matters least goes first."""
    v = normal(8, 3)
    v[3] *= 0.01
    relu = NETWORK.replace("Tanh", "Relu")
    network = model(relu, w=normal(6, 8), b=np.full(8, 30000, np.float32), v=v)
    (mask,) = decided(network, cost.parameters(network) - 10).keep.values()
    assert np.flatnonzero(~mask).tolist() == [3]
