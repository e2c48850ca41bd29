"""The master property: a pruned model equals the model with its units replaced where they end."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checks import agreeing, changed
from hypothesis import assume, given
from hypothesis import strategies as st
from onnxprune_models import builders
from strategies import networks, random_network, random_plan

from onnxprune.base import Plan
from onnxprune.graph.balance import completed
from onnxprune.graph.groups import analyze
from onnxprune.model import constant, constants
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference

pytestmark = pytest.mark.ort

SEEDS = st.integers(0, 2**16)


@given(networks(), SEEDS)
def test_a_pruned_network_equals_the_reference(network: ir.Model, seed: int) -> None:
    analysis = analyze(network)
    plan = random_plan(network, analysis, seed)
    assume(plan.removed())
    agreeing(network, analysis, plan, tolerance=1e-4)


@given(networks(), SEEDS)
def test_several_plans_in_sequence_hold_each(network: ir.Model, seed: int) -> None:
    for number in range(3):
        analysis = analyze(network)
        plan = random_plan(network, analysis, seed + number)
        network = agreeing(network, analysis, plan, tolerance=1e-4, batch=3 + number)
        onnx.checker.check_model(ir.to_proto(network), full_check=True)


def test_nearly_every_plan_changes_the_output() -> None:
    found = []
    for seed in range(60):
        network = random_network(seed)
        analysis = analyze(network)
        plan = random_plan(network, analysis, seed)
        if plan.removed():
            found.append(changed(network, reference(network, analysis, plan)))
    assert len(found) > 20
    assert np.mean(found) > 0.8


@given(networks(), SEEDS)
def test_pruning_twice_equals_pruning_once(network: ir.Model, seed: int) -> None:
    analysis = analyze(network)
    plan = random_plan(network, analysis, seed, exchange=False)
    assume(plan.removed() > 1)
    first = completed(analysis, halved(plan, seed))
    middle = prune(network, analysis, first).model
    again = analyze(middle)
    keep = {group.name: np.ones(group.size, np.bool_) for group in analysis.groups} | first.keep
    left = {n: plan.keep.get(n, mask)[mask] for n, mask in keep.items() if mask.sum() > 1}
    sizes = {name: len(mask) for name, mask in left.items()}
    assume({group.name: group.size for group in again.groups} == sizes)
    twice = prune(middle, again, Plan(keep=left)).model
    once = prune(network, analysis, plan).model
    same_weights(once, twice)


def halved(plan: Plan, seed: int) -> Plan:
    """A part of what `plan` removes."""
    rng = np.random.default_rng(seed)
    first = {name: mask | (rng.random(len(mask)) < 0.5) for name, mask in plan.keep.items()}
    return Plan(keep=first)


def same_weights(one: ir.Model, other: ir.Model) -> None:
    """Every floating-point constant is the same, bit by bit."""
    first, second = constants(one), constants(other)
    floats = [name for name, value in first.items() if value.dtype == ir.DataType.FLOAT]
    assert floats == [name for name, value in second.items() if value.dtype == ir.DataType.FLOAT]
    for name in floats:
        np.testing.assert_array_equal(constant(first[name]), constant(second[name]), strict=True)


@pytest.mark.parametrize(
    "network",
    [
        builders.mlp((20, 30, 25, 5)),
        builders.mlp((20, 30, 25, 5), "tanh", form="matmul", output="softmax"),
        builders.mlp((20, 30, 5), "sigmoid", output="sigmoid"),
        builders.lenet5(),
        builders.vgg(((8, 8), (16,)), hidden=24, image=8),
        builders.resnet(20, image=8),
        builders.resnet(14, shortcut="pad", image=8),
        builders.resnet(14, batch_norm=False, image=8),
        builders.densenet((3, 3), growth=6, image=8),
    ],
    ids=[
        "gemm", "matmul", "sigmoid", "lenet5", "vgg", "resnet", "resnet-pad", "resnet-folded",
        "densenet",
    ],
)  # fmt: skip
def test_every_builder_can_be_pruned(network: ir.Model) -> None:
    for number in range(2):
        analysis = analyze(network)
        plan = random_plan(network, analysis, number)
        assert plan.removed() > 2
        assert changed(network, reference(network, analysis, plan))
        network = agreeing(network, analysis, plan, tolerance=1e-4)
