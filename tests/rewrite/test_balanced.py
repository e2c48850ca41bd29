"""Plans whose blocks keep different members: the pruned model equals the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from checks import agreeing, changed
from graph.test_balance import bidirectional
from graphs import node_types
from hypothesis import given, settings
from hypothesis import strategies as st
from shuffles import (
    beside_a_chain,
    grouped,
    grouped_behind_a_join,
    shufflenet_v1,
    shufflenet_v2,
)
from strategies import random_plan

from onnxprune.base import Axis, Balance, Plan
from onnxprune.errors import PlanError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.rewrite.prune import prune, take_moments
from onnxprune.rewrite.recipe import Recipe, record, replay
from onnxprune.rewrite.reference import reference

pytestmark = pytest.mark.ort

NETWORKS: dict[str, Callable[[int], ir.Model]] = {
    "shufflenet v1": lambda seed: shufflenet_v1(middle=18, seed=seed),
    "shufflenet v1, uneven parts": lambda seed: shufflenet_v1(width=30, middle=24, seed=seed),
    "shufflenet v2": lambda seed: shufflenet_v2(width=24, seed=seed),
    "shufflenet v2 with slices": lambda seed: shufflenet_v2(width=20, slices=True, seed=seed),
    "grouped": lambda seed: grouped(frozen=False, seed=seed),
    "grouped behind the input": lambda seed: grouped(seed=seed),
    "grouped behind a join": lambda seed: grouped_behind_a_join(seed=seed),
    "beside a chain": lambda seed: beside_a_chain(seed=seed),
    "LSTM": lambda _: bidirectional(),
    "GRU": lambda _: bidirectional("GRU", 3),
    "RNN": lambda _: bidirectional("RNN", 1),
}


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=5)
def test_random_plans_in_sequence_equal_the_reference(name: str, seed: int) -> None:
    network = NETWORKS[name](seed % 7)
    analysis = analyze(network)
    for number in range(3):
        plan = random_plan(network, analysis, seed + number)
        network = agreeing(network, analysis, plan, tolerance=1e-4, batch=2 + number)
        analysis = analyze(network, before=analysis)


@pytest.mark.parametrize("name", NETWORKS)
def test_some_plans_keep_different_members_and_change_the_output(name: str) -> None:
    network = NETWORKS[name](0)
    analysis = analyze(network)
    removed, uneven = [], []
    for seed in range(8):
        plan = random_plan(network, analysis, seed)
        if not plan.removed():
            continue
        removed.append(changed(network, reference(network, analysis, plan)))
        uneven += [differs(balance, plan) for balance in analysis.balances]
    assert any(removed)
    assert any(uneven)


def differs(balance: Balance, plan: Plan) -> bool:
    """Whether blocks keep other members than the first one."""
    parts: list[list[bool]] = [[] for _ in balance.sizes]
    for group, block in balance.block.items():
        mask = plan.keep.get(group, np.ones(len(block), np.bool_))
        for unit, number in enumerate(block):
            if number >= 0:
                parts[number].append(bool(mask[unit]))
    return any(part != parts[0] for part in parts[1:])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cost_of_what_is_left_is_that_of_the_pruned_model(name: str) -> None:
    network = NETWORKS[name](0)
    analysis = analyze(network)
    for seed in range(4):
        plan = random_plan(network, analysis, seed, exchange=False)
        smaller = prune(network, analysis, plan).model
        for kind, count in (
            ("params", cost.parameters(smaller)),
            ("macs", cost.macs(smaller, analyze(smaller))),
        ):
            assert cost.Remaining(network, analysis, kind)(plan.keep) == count


def test_torn_blocks_are_refused() -> None:
    network = grouped(frozen=False)
    analysis = analyze(network)
    first = analysis.groups[0]
    plan = Plan(keep={first.name: np.arange(first.size) > 0})
    with pytest.raises(PlanError, match=r"blocks that need equally many units.*completed"):
        prune(network, analysis, plan)


def test_what_a_split_takes_from_a_shuffle_is_gathered() -> None:
    network = shufflenet_v2(width=24, blocks=1)
    analysis = analyze(network)
    assert "Split" in node_types(network)
    found = []
    for seed in range(5):
        plan = random_plan(network, analysis, seed)
        types = node_types(agreeing(network, analysis, plan, tolerance=1e-4))
        assert types.count("Gather") == (0 if "Split" in types else 2)
        found.append(types.count("Gather"))
    assert 2 in found


def test_moments_follow_the_filters_block_by_block() -> None:
    network = grouped(width=8, group=2, frozen=False)
    analysis = analyze(network)
    plan = random_plan(network, analysis, 1, exchange=False)
    assert plan.removed()
    pruned = prune(network, analysis, plan)
    arrays = {
        name: value.const_value.numpy()
        for name, value in network.graph.initializers.items()
        if value.const_value is not None
    }
    after = {
        name: value.const_value.numpy()
        for name, value in pruned.model.graph.initializers.items()
        if value.const_value is not None
    }
    moved = take_moments({"m": arrays}, pruned.kept, after)["m"]
    assert any(axis.by >= 0 for axis in pruned.kept)
    for name, array in after.items():
        if name in arrays:
            np.testing.assert_array_equal(moved[name], array, strict=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recipe_repeats_the_removal(name: str) -> None:
    network, other = NETWORKS[name](0), NETWORKS[name](1)
    analysis = analyze(network)
    plan = random_plan(network, analysis, 4, exchange=False)
    done = record(network, prune(network, analysis, plan).kept, plan, unnamed=frozenset())
    assert all(isinstance(axis, Axis) and axis.by < 0 for axis in done.kept)
    read = Recipe.from_json(Recipe(model="m", rounds=(done,)).to_json(), source="r").rounds[0]
    again = replay(other, analyze(other), read, source="r")
    lost = {group: mask.tolist() for group, mask in plan.keep.items() if not mask.all()}
    assert {group: mask.tolist() for group, mask in again.keep.items()} == lost
