from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.base import Axis, Floats, Group, Mask, Member
from onnxprune.errors import ConfigError
from onnxprune.methods.allocation import ALLOCATIONS, Cost, allocate, settled_allocation


def group(name: str, size: int, width: int = 1) -> Group:
    index = np.arange(size * width, dtype=np.int64).reshape(size, width)
    members = (Member(Axis(name, 0), index),)
    return Group(name=name, size=size, members=members, consumers=())


def counting(groups: list[Group], price: Mapping[str, int] | None = None) -> Cost:
    """What is left: units, each at the price of its group."""

    def cost(keep: Mapping[str, Mask]) -> int:
        return sum(
            int(keep[g.name].sum() if g.name in keep else g.size) * (price or {}).get(g.name, 1)
            for g in groups
        )

    return cost


def kept(keep: Mapping[str, Mask]) -> dict[str, list[int]]:
    return {name: np.flatnonzero(mask).tolist() for name, mask in keep.items()}


AB = [group("a", 4), group("b", 8)]
SCORES: dict[str, Floats] = {"a": np.array([4.0, 1, 3, 2]), "b": np.arange(8) * 100.0}


def test_uniform_takes_the_same_share_of_every_group() -> None:
    found = allocate(AB, SCORES, 6, counting(AB), allocation="uniform")
    assert kept(found.keep) == {"a": [0, 2], "b": [4, 5, 6, 7]}
    assert (found.size, found.least) == (6, 2)


def test_global_compares_groups_after_dividing_by_their_means() -> None:
    scores = {"a": np.array([1.0, 1, 1, 1]), "b": np.array([0.0, 0, 0, 0, 400, 400, 400, 400])}
    found = allocate(AB, scores, 8, counting(AB), allocation="global")
    assert kept(found.keep) == {"b": [4, 5, 6, 7]}
    scaled = {"a": scores["a"] * 1e6, "b": scores["b"]}
    again = allocate(AB, scaled, 8, counting(AB), allocation="global")
    assert kept(again.keep) == kept(found.keep)


def test_gain_takes_units_where_they_cost_most_and_leaves_some_everywhere() -> None:
    groups = [group("a", 16), group("b", 16)]
    scores = {"a": np.ones(16), "b": np.ones(16)}
    price = {"a": 10, "b": 1}
    found = allocate(groups, scores, 88, counting(groups, price), allocation="gain")
    left = {name: int(mask.sum()) for name, mask in found.keep.items()}
    assert found.size <= 88
    assert 1 < left["a"] < left.get("b", 16)
    even = allocate(groups, scores, 88, counting(groups, price), allocation="uniform")
    assert len(found.keep["a"]) == 16
    assert left["a"] < even.keep["a"].sum()


def test_gain_takes_less_important_units_first() -> None:
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": np.array([4.0, 1, 3, 2]), "b": np.array([10.0, 10, 10, 10])}
    found = allocate(groups, scores, 6, counting(groups), allocation="gain")
    assert kept(found.keep) == {"a": [0, 2]}


@pytest.mark.parametrize(
    ("choice", "kind", "expected"),
    [
        ("auto", "latency", "gain"),
        ("auto", "params", "uniform"),
        ("auto", None, "uniform"),
        ("global", "latency", "global"),
    ],
)
def test_auto_follows_what_the_target_counts(choice: str, kind: str | None, expected: str) -> None:
    assert settled_allocation(choice, kind) == expected


def test_isomorphic_ranks_groups_of_one_form_together() -> None:
    groups = [group("a", 4), group("b", 4), group("c", 4, width=2)]
    scores = {
        "a": np.array([1.0, 2, 3, 4]),
        "b": np.array([10.0, 20, 30, 40]),
        "c": np.array([1.0, 2, 3, 4]),
    }
    found = allocate(groups, scores, 6, counting(groups), allocation="isomorphic")
    assert kept(found.keep) == {"a": [3], "b": [1, 2, 3], "c": [2, 3]}


def test_the_least_important_units_go_and_the_first_of_equal_ones_stay() -> None:
    one = [group("a", 4)]
    found = allocate(one, {"a": np.ones(4)}, 2, counting(one))
    assert kept(found.keep) == {"a": [0, 1]}


def test_the_budget_is_approached_from_below() -> None:
    """The expensive unit overshoots, so that a cheap group gets a unit back."""
    price = {"a": 10, "b": 1}
    found = allocate(AB, SCORES, 41, counting(AB, price), allocation="uniform")
    assert found.size <= 41
    assert 41 - found.size < 10
    assert counting(AB, price)(found.keep) == found.size


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_an_unreachable_budget_leaves_one_unit_per_group_and_says_so(allocation: str) -> None:
    found = allocate(AB, SCORES, 1, counting(AB), allocation=allocation)
    assert kept(found.keep) == {"a": [0], "b": [7]}
    assert found.size == found.least == 2


def test_a_budget_that_is_met_removes_nothing() -> None:
    found = allocate(AB, SCORES, 12, counting(AB))
    assert found.keep == {}
    assert found.size == 12


def test_groups_without_scores_and_an_empty_model_lose_nothing() -> None:
    found = allocate(AB, {"b": SCORES["b"]}, 6, counting(AB))
    assert kept(found.keep) == {"b": [6, 7]}
    assert allocate([], {}, 0, lambda _: 5).size == 5


@pytest.mark.parametrize(("size", "round_to"), [(8, 4), (10, 4), (3, 4), (8, 8), (20, 8)])
def test_round_to_keeps_multiples_and_never_none(size: int, round_to: int) -> None:
    one = [group("a", size)]
    scores = {"a": np.arange(size) * 1.0}
    for budget in range(size + 1):
        found = allocate(one, scores, budget, counting(one), round_to=round_to)
        count = found.size
        assert count == size or (count % round_to == 0 and count > 0)
        assert count <= budget or count == found.least


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="--round-to 0"):
        allocate(AB, SCORES, 5, counting(AB), round_to=0)
    with pytest.raises(ConfigError, match="--allocation magic"):
        allocate(AB, SCORES, 5, counting(AB), allocation="magic")


@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    share=st.floats(0.05, 0.99),
    allocation=st.sampled_from(sorted(ALLOCATIONS)),
    round_to=st.sampled_from([1, 2, 4]),
)
def test_plans_meet_every_budget_that_can_be_met(
    sizes: list[int], seed: int, share: float, allocation: str, round_to: int
) -> None:
    rng = np.random.default_rng(seed)
    groups = [group(f"g{number}", size) for number, size in enumerate(sizes)]
    scores = {g.name: rng.random(g.size) for g in groups}
    price = {g.name: int(rng.integers(1, 20)) for g in groups}
    cost = counting(groups, price)
    budget = int(share * cost({}))
    found = allocate(groups, scores, budget, cost, allocation=allocation, round_to=round_to)
    again = allocate(groups, scores, budget, cost, allocation=allocation, round_to=round_to)
    assert kept(found.keep) == kept(again.keep)
    assert found.size == cost(found.keep)
    assert found.size <= budget or found.size == found.least
    for g in groups:
        mask = found.keep.get(g.name, np.ones(g.size, np.bool_))
        assert mask.any()
        if not mask.all():
            assert mask.sum() % round_to == 0
            assert scores[g.name][mask].min() >= scores[g.name][~mask].max()
