"""Shortcuts that lose other channels than the blocks they pass."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checks import DEVICE, agreeing, changed
from graphs import array, feeds, model, node_types
from onnxprune_models import builders
from strategies import random_plan

from onnxprune.base import Fold, Plan
from onnxprune.graph.groups import analyze
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.rewrite.residual import decoupled, faster, settled
from onnxprune.runtime.verify import compare

BLOCKS = """(float[N, 2, 4, 4] x) => (float[N, 3, 4, 4] y)
<float[5, 2, 1, 1] a, float[5, 5, 1, 1] b, float[5, 5, 1, 1] c, float[3, 5, 1, 1] d> {
    p = Conv(x, a)
    q = Conv(p, b)
    s = Add(q, p)
    r = Conv(s, c)
    t = Add(s, r)
    y = Conv(t, d)
}"""
FEATURES = """(float[N, 2] x) => (float[N, 3] y)
<float[2, 5] a, float[5, 5] b, float[5, 3] d> {
    p = MatMul(x, a)
    h = Relu(p)
    q = MatMul(h, b)
    s = Add(q, h)
    y = MatMul(s, d)
}"""


def kept(text: str) -> np.ndarray:
    return np.array([character == "1" for character in text])


def test_a_product_stands_on_each_shortcut_and_nowhere_else() -> None:
    network = model(BLOCKS)
    assert [group.size for group in analyze(network).groups] == [5]
    loose, names = decoupled(network, analyze(network))
    assert node_types(loose) == ["Conv", "Conv", "Conv", "Add", "Conv", "Conv", "Add", "Conv"]
    assert names == {"p/shortcut_identity", "s/shortcut_identity"}
    groups = analyze(loose).groups
    assert {group.name: group.size for group in groups} == {"a": 5, "b": 5, "c": 5}
    np.testing.assert_array_equal(array(loose, "p/shortcut_identity").reshape(5, 5), np.eye(5))


@pytest.mark.parametrize(
    "text", [BLOCKS.replace("s = Add(q, p)", "e = Conv(p, b) s = Add(q, e)"), ""]
)
def test_projections_and_plain_chains_have_no_shortcut(text: str) -> None:
    network = builders.lenet5() if not text else model(text)
    _, names = decoupled(network, analyze(network))
    assert "p/shortcut_identity" not in names
    assert len(names) == (1 if text else 0)


@pytest.mark.ort
def test_what_is_left_becomes_index_operators() -> None:
    network = model(BLOCKS)
    loose, names = decoupled(network, analyze(network))
    analysis = analyze(loose)
    keep = {"a": kept("11011"), "b": kept("01110"), "c": kept("01010")}
    smaller = agreeing(loose, analysis, Plan(keep=keep), tolerance=1e-5)
    result = settled(smaller, names)
    assert node_types(result) == [
        "Conv", "Conv", "Pad", "Gather", "Add", "Conv", "Gather", "Add", "Conv",
    ]  # fmt: skip
    assert compare(smaller, result, feeds(network), device=DEVICE, tolerance=1e-6).holds
    assert not names & set(result.graph.initializers)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)


def test_where_nothing_went_the_model_is_as_it_was() -> None:
    network = model(BLOCKS)
    loose, names = decoupled(network, analyze(network))
    assert node_types(settled(loose, names)) == node_types(network)
    assert set(settled(loose, names).graph.initializers) == set(network.graph.initializers)
    assert settled(network, ()) is network


@pytest.mark.ort
def test_features_are_gathered_along_the_last_axis() -> None:
    network = model(FEATURES)
    loose, names = decoupled(network, analyze(network))
    analysis = analyze(loose)
    inner, outer = (group.name for group in analysis.groups)
    subset = Plan(keep={inner: kept("11011"), outer: kept("01010")})
    smaller = agreeing(loose, analysis, subset, tolerance=1e-5)
    result = settled(smaller, names)
    assert node_types(result).count("Gather") == 1
    assert compare(smaller, result, feeds(network), device=DEVICE, tolerance=1e-6).holds
    # Zeros would have to be put in: the product stays.
    other = Plan(keep={inner: kept("01010"), outer: kept("11011")})
    assert "Gather" not in node_types(settled(prune(loose, analysis, other).model, names))


@pytest.mark.ort
def test_a_bias_that_a_product_took_over_is_added_and_goes_with_it() -> None:
    network = model(BLOCKS)
    loose, names = decoupled(network, analyze(network))
    analysis = analyze(loose)
    values = {c.axis: np.array([2.0]) for c in analysis.group("a").consumers}
    fold = Fold(group="a", unit=2, values=values)
    plan = Plan(keep={"a": kept("11011")}, folds=(fold,))
    smaller = agreeing(loose, analysis, plan, tolerance=1e-5)
    result = settled(smaller, names)
    assert compare(smaller, result, feeds(network), device=DEVICE, tolerance=1e-6).holds
    assert all(value.uses() for value in result.graph.initializers.values())


@pytest.mark.ort
@pytest.mark.parametrize("shortcut", ["projection", "pad"])
@pytest.mark.parametrize("seed", range(3))
def test_residual_networks_equal_the_reference(shortcut: str, seed: int) -> None:
    network = builders.resnet(14, shortcut=shortcut, image=8)
    loose, names = decoupled(network, analyze(network))
    before = sum(group.size for group in analyze(network).groups)
    assert sum(group.size for group in analyze(loose).groups) > before
    assert compare(network, loose, feeds(network), device=DEVICE, tolerance=1e-6).holds
    for number in range(2):
        analysis = analyze(loose)
        plan = random_plan(loose, analysis, seed + number, exchange=number == 0)
        assert changed(loose, reference(loose, analysis, plan))
        loose = agreeing(loose, analysis, plan, tolerance=1e-4)
    result = settled(loose, names)
    assert compare(loose, result, feeds(network), device=DEVICE, tolerance=1e-5).holds


def test_the_verdict_names_both_times() -> None:
    assert faster(2.0, 1.5) == (
        True,
        "shortcuts are decoupled: 1.5 ms decoupled against 2 ms coupled",
    )
    assert faster(1.0, 1.5)[0] is False
